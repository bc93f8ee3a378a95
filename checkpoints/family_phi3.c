/* Phi 3 and 4 (Abdin et al. 2024): llama with fused weights, qkv_proj [(H + 2G) * D, C] of rows Q | K | V and gate_up_proj [2F, C] of
 * rows gate | up, without biases; an optional window in all layers; longrope beyond original_max_position_embeddings.
 * Trap: that key beside the rotary settings is the class's own and 4096 when absent, and it wins over one inside them. */
#include "family_common.h"

static const char *const TYPES[] = {"phi3", NULL};
static const char *const KEYS[] = {FAMILY_KEYS_DIMS, FAMILY_KEYS_ROPE, "hidden_act", "rms_norm_eps", "partial_rotary_factor",
                                   "sliding_window", NULL};
static const struct family_dims DIMS = {FAMILY_DIMS_USUAL, .V_absent = 32064, .C_absent = 3072, .F_absent = 8192, .L_absent = 32, .H_absent = 32,
                                        .P_absent = 4096};

static enum code phi3_read(struct arch *a, const json_t *config, const char *where)
{
    int64_t window = 0;
    TRY(family_dims_read(a, config, where, &DIMS));
    a->norm = NORM_RMS;
    a->norm_eps = 1e-5;
    TRY(json_want_f64(config, where, "rms_norm_eps", &a->norm_eps));
    TRY(family_act_read(a, config, where, "hidden_act", "silu", 1));
    TRY(json_want_i64(config, where, "sliding_window", 1, INT32_MAX, &window));
    TRY(family_windows_read(a, config, where, window, 0));
    a->bos = 1;
    a->eos = a->pad = 32000;
    a->rope.original_max_positions = 4096;
    TRY(family_rope_read(a, config, where, 1));
    if (a->rope.kind != ROPE_DEFAULT && a->rope.kind != ROPE_LONGROPE)
        return fail(ERR_UNSUPPORTED, "%s: rotary scaling of phi3 must be \"default\" or \"longrope\"", where);
    return OK;
}

static void phi3_place(const struct arch *a, const struct tensor_spec *t, struct family_place *p)
{
    static const char *const FUSED[T_SLOTS] = {[T_Q_W] = "self_attn.qkv_proj.weight", [T_K_W] = "self_attn.qkv_proj.weight",
                                               [T_V_W] = "self_attn.qkv_proj.weight", [T_GATE_W] = "mlp.gate_up_proj.weight",
                                               [T_UP_W] = "mlp.gate_up_proj.weight"};
    if (!FUSED[t->slot]) {
        family_place_llama(a, t, p);
        return;
    }
    const struct arch_block *b = &a->stack[STACK_DEC].block[t->layer];
    family_place_named(p, t, FUSED, FAMILY_LAYERS_LLAMA);
    if (t->slot == T_GATE_W || t->slot == T_UP_W) {
        p->n[0] = 2 * b->F;
        p->first = t->slot == T_UP_W ? b->F : 0;
    } else {
        p->n[0] = b->H * b->D + b->G * b->D + b->G * b->Dv;
        p->first = t->slot == T_Q_W ? 0 : b->H * b->D + (t->slot == T_V_W ? b->G * b->D : 0);
    }
}

static enum code phi3_fresh(const struct arch *a, json_t *config)
{
    family_fresh_begin(a, config, "Phi3ForCausalLM", "phi3", &DIMS);
    json_object_set_new(config, "hidden_act", json_string(family_act_name(a->mlp)));
    json_object_set_new(config, "rms_norm_eps", json_real(a->norm_eps));
    family_windows_fresh(a, config);
    family_rope_fresh(a, config, 1);
    if (a->rope.kind == ROPE_LONGROPE)
        json_object_set_new(config, "original_max_position_embeddings", json_integer(a->rope.original_max_positions));
    return family_fresh_end(a, config);
}

const struct family family_phi3 = {
    .model_types = TYPES,
    .keys = KEYS,
    .groups_key = "num_key_value_heads",
    .heads_key = "num_attention_heads",
    .read = phi3_read,
    .place = phi3_place,
    .ignores = family_ignores_usual,
    .fresh = phi3_fresh,
};
