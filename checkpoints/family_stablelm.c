/* StableLM 2 and 3B (Bellagente et al. 2024): llama with LayerNorms (weight and bias), the first quarter of each head rotated,
 * optional biases on q, k, v. use_parallel_residual puts the MLP beside attention on the same norm (then there is no
 * post_attention_layernorm). qk_layernorm: a LayerNorm without bias for each head of q and of k on its own, the weights of head i in
 * q_layernorm.norms.i. Absent key/value heads are 32. */
#include "family_common.h"

static const char *const TYPES[] = {"stablelm", NULL};
static const char *const KEYS[] = {FAMILY_KEYS_DIMS, FAMILY_KEYS_ROPE, "hidden_act", "layer_norm_eps", "partial_rotary_factor",
                                   "use_qkv_bias", "qk_layernorm", "use_parallel_residual", NULL};
static const struct family_dims DIMS = {FAMILY_DIMS_USUAL, .V_absent = 50304, .C_absent = 2560, .F_absent = 6912, .L_absent = 32, .H_absent = 32,
                                        .P_absent = 4096, .G_absent = 32};

static enum code stablelm_read(struct arch *a, const json_t *config, const char *where)
{
    int qkv_bias = 0, qk_layernorm = 0, parallel = 0;
    TRY(family_dims_read(a, config, where, &DIMS));
    const struct arch_block *b = &a->stack[STACK_DEC].block[0];
    if (b->H * b->D != a->C)
        return fail(ERR_UNSUPPORTED, "%s: stablelm needs hidden_size %lld = num_attention_heads %lld x head_dim, found head_dim %lld", where,
                    (long long)a->C, (long long)b->H, (long long)b->D);
    a->norm = NORM_LAYER;
    a->norm_eps = 1e-5;
    TRY(json_want_f64(config, where, "layer_norm_eps", &a->norm_eps));
    TRY(family_act_read(a, config, where, "hidden_act", "silu", 1));
    TRY(json_want_bool(config, where, "use_qkv_bias", &qkv_bias));
    TRY(json_want_bool(config, where, "qk_layernorm", &qk_layernorm));
    TRY(json_want_bool(config, where, "use_parallel_residual", &parallel));
    a->bias = BIAS_NORM | (qkv_bias ? BIAS_Q | BIAS_K | BIAS_V : 0);
    a->qk_norm = qk_layernorm ? QK_NORM_PER_HEAD : QK_NORM_NONE;
    a->residual = parallel ? RESIDUAL_PARALLEL_ONE_NORM : RESIDUAL_SEQUENTIAL;
    a->bos = a->eos = 0;
    return family_rope_read(a, config, where, 0.25);
}

static void stablelm_place(const struct arch *a, const struct tensor_spec *t, struct family_place *p)
{
    static const char *const ONE[T_SLOTS] = {[T_Q_NORM_W] = "self_attn.q_layernorm.norms.0.weight",
                                             [T_K_NORM_W] = "self_attn.k_layernorm.norms.0.weight"};
    static const char *const MANY[T_SLOTS] = {[T_Q_NORM_W] = "self_attn.q_layernorm.norms.%d.weight",
                                              [T_K_NORM_W] = "self_attn.k_layernorm.norms.%d.weight"};
    if (!ONE[t->slot]) {
        family_place_llama(a, t, p);
        return;
    }
    const struct arch_block *b = &a->stack[STACK_DEC].block[t->layer];
    int64_t heads = t->slot == T_Q_NORM_W ? b->H : b->G;
    family_place_named(p, t, heads > 1 ? MANY : ONE, FAMILY_LAYERS_LLAMA);
    if (heads > 1) {
        p->pieces = (int)heads;
        p->n[0] = p->inner = p->stride = b->D;
    }
}

static enum code stablelm_fresh(const struct arch *a, json_t *config)
{
    family_fresh_begin(a, config, "StableLmForCausalLM", "stablelm", &DIMS);
    json_object_set_new(config, "hidden_act", json_string(family_act_name(a->mlp)));
    json_object_set_new(config, "layer_norm_eps", json_real(a->norm_eps));
    json_object_set_new(config, "use_qkv_bias", json_boolean(a->bias & BIAS_Q));
    json_object_set_new(config, "qk_layernorm", json_boolean(a->qk_norm != QK_NORM_NONE));
    json_object_set_new(config, "use_parallel_residual", json_boolean(a->residual != RESIDUAL_SEQUENTIAL));
    family_rope_fresh(a, config, 0.25);
    return family_fresh_end(a, config);
}

const struct family family_stablelm = {
    .model_types = TYPES,
    .keys = KEYS,
    .groups_key = "num_key_value_heads",
    .heads_key = "num_attention_heads",
    .read = stablelm_read,
    .place = stablelm_place,
    .ignores = family_ignores_usual,
    .fresh = stablelm_fresh,
};
