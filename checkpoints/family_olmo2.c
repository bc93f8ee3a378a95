/* OLMo 2 (OLMo team 2024): no norm before the sublayers but an RMSNorm on their outputs,
 *   x += n1(o(attention(rope(nq(q x)), rope(nk(k x)), v x)));  x += n2(down(silu(gate x) * up x));  final norm
 * and RMSNorms of q and k over their whole widths [H*D] and [G*D] before the rotation. */
#include "family_common.h"

static const char *const TYPES[] = {"olmo2", NULL};
static const char *const KEYS[] = {FAMILY_KEYS_DIMS, FAMILY_KEYS_ROPE, "hidden_act", "rms_norm_eps", "attention_bias", NULL};
static const struct family_dims DIMS = {FAMILY_DIMS_USUAL, .V_absent = 50304, .C_absent = 4096, .F_absent = 11008, .L_absent = 32, .H_absent = 32,
                                        .P_absent = 2048};

static enum code olmo2_read(struct arch *a, const json_t *config, const char *where)
{
    int attention_bias = 0;
    TRY(family_dims_read(a, config, where, &DIMS));
    a->norm = NORM_RMS;
    a->norm_eps = 1e-5;
    TRY(json_want_f64(config, where, "rms_norm_eps", &a->norm_eps));
    a->norm_place = NORM_POST_SUBLAYER;
    a->qk_norm = QK_NORM_FULL;
    TRY(family_act_read(a, config, where, "hidden_act", "silu", 1));
    TRY(json_want_bool(config, where, "attention_bias", &attention_bias));
    a->bias = attention_bias ? FAMILY_BIAS_ATTENTION : 0;
    a->pos = POS_ROPE;
    a->eos = 50279;
    a->pad = 1;
    return config_rope_read(a, config, where);
}

static void olmo2_place(const struct arch *a, const struct tensor_spec *t, struct family_place *p)
{
    static const char *const NORMS[T_SLOTS] = {[T_ATTN_NORM_W] = "post_attention_layernorm.weight",
                                                         [T_MLP_NORM_W] = "post_feedforward_layernorm.weight"};
    if (NORMS[t->slot])
        family_place_named(p, t, NORMS, FAMILY_LAYERS_LLAMA);
    else
        family_place_llama(a, t, p);
}

static enum code olmo2_fresh(const struct arch *a, json_t *config)
{
    family_fresh_begin(a, config, "Olmo2ForCausalLM", "olmo2", &DIMS);
    json_object_set_new(config, "hidden_act", json_string(family_act_name(a->mlp)));
    json_object_set_new(config, "rms_norm_eps", json_real(a->norm_eps));
    json_object_set_new(config, "attention_bias", json_boolean(a->bias & BIAS_Q));
    family_rope_fresh(a, config, 1);
    return family_fresh_end(a, config);
}

const struct family family_olmo2 = {
    .model_types = TYPES,
    .keys = KEYS,
    .groups_key = "num_key_value_heads",
    .heads_key = "num_attention_heads",
    .read = olmo2_read,
    .place = olmo2_place,
    .ignores = family_ignores_usual,
    .fresh = olmo2_fresh,
};
