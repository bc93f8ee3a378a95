/* Phi 1, 1.5 and 2 (Gunasekar et al. 2023, Li et al. 2023): attention and MLP side by side on one LayerNorm,
 *   x += dense(attention(rope(q(n x)), rope(k(n x)), v(n x))) + fc2(gelu(fc1(n x)))
 * with a bias on everything, the head included; the first int(D * partial_rotary_factor) numbers of a head are rotated, half of
 * them when the config is silent. What GPT-NeoX and GPT-J become when they get fewer key/value heads. */
#include "family_common.h"

static const char *const TYPES[] = {"phi", NULL};
static const char *const KEYS[] = {FAMILY_KEYS_DIMS, FAMILY_KEYS_ROPE, "hidden_act", "layer_norm_eps", "partial_rotary_factor",
                                   "qk_layernorm", NULL};
static const struct family_dims DIMS = {FAMILY_DIMS_USUAL, .V_absent = 51200, .C_absent = 2048, .F_absent = 8192, .L_absent = 24, .H_absent = 32,
                                        .P_absent = 2048};

static const char *const NAMES[T_SLOTS] = {
    [T_EMBED] = "model.embed_tokens.weight",
    [T_ATTN_NORM_W] = "input_layernorm.weight",
    [T_ATTN_NORM_B] = "input_layernorm.bias",
    [T_Q_W] = "self_attn.q_proj.weight",
    [T_K_W] = "self_attn.k_proj.weight",
    [T_V_W] = "self_attn.v_proj.weight",
    [T_Q_B] = "self_attn.q_proj.bias",
    [T_K_B] = "self_attn.k_proj.bias",
    [T_V_B] = "self_attn.v_proj.bias",
    [T_O_W] = "self_attn.dense.weight",
    [T_O_B] = "self_attn.dense.bias",
    [T_UP_W] = "mlp.fc1.weight",
    [T_UP_B] = "mlp.fc1.bias",
    [T_DOWN_W] = "mlp.fc2.weight",
    [T_DOWN_B] = "mlp.fc2.bias",
    [T_FINAL_NORM_W] = "model.final_layernorm.weight",
    [T_FINAL_NORM_B] = "model.final_layernorm.bias",
    [T_HEAD_W] = "lm_head.weight",
    [T_HEAD_B] = "lm_head.bias",
};

static enum code phi_read(struct arch *a, const json_t *config, const char *where)
{
    int qk_layernorm = 0;
    TRY(family_dims_read(a, config, where, &DIMS));
    TRY(json_want_bool(config, where, "qk_layernorm", &qk_layernorm));
    if (qk_layernorm)
        return fail(ERR_UNSUPPORTED, "%s: \"qk_layernorm\": true is not supported for phi (a LayerNorm with bias on q and k)", where);
    a->norm = NORM_LAYER;
    a->norm_eps = 1e-5;
    TRY(json_want_f64(config, where, "layer_norm_eps", &a->norm_eps));
    a->residual = RESIDUAL_PARALLEL_ONE_NORM;
    TRY(family_act_read(a, config, where, "hidden_act", "gelu_new", 0));
    a->bias = FAMILY_BIAS_ATTENTION | FAMILY_BIAS_MLP | BIAS_NORM | BIAS_HEAD;
    a->bos = 1;
    a->eos = 2;
    return family_rope_read(a, config, where, 0.5);
}

static void phi_place(const struct arch *a, const struct tensor_spec *t, struct family_place *p)
{
    (void)a;
    family_place_named(p, t, NAMES, FAMILY_LAYERS_LLAMA);
}

static enum code phi_fresh(const struct arch *a, json_t *config)
{
    family_fresh_begin(a, config, "PhiForCausalLM", "phi", &DIMS);
    json_object_set_new(config, "hidden_act", json_string(a->mlp == MLP_GELU_TANH ? "gelu_new" : family_act_name(a->mlp)));
    json_object_set_new(config, "layer_norm_eps", json_real(a->norm_eps));
    json_object_set_new(config, "qk_layernorm", json_false());
    family_rope_fresh(a, config, 0.5);
    return family_fresh_end(a, config);
}

const struct family family_phi = {
    .model_types = TYPES,
    .keys = KEYS,
    .groups_key = "num_key_value_heads",
    .heads_key = "num_attention_heads",
    .read = phi_read,
    .place = phi_place,
    .ignores = family_ignores_usual,
    .fresh = phi_fresh,
};
