/* OLMo 1 (Groeneveld et al. 2024): llama with LayerNorms that have no parameters (so there are no norm tensors at all) and a fixed
 * epsilon of 1e-5, and with q, k and v limited to +-clip_qkv after their projections and biases. */
#include "family_common.h"

static const char *const TYPES[] = {"olmo", NULL};
static const char *const KEYS[] = {FAMILY_KEYS_DIMS, FAMILY_KEYS_ROPE, "hidden_act", "attention_bias", "clip_qkv", NULL};
static const struct family_dims DIMS = {FAMILY_DIMS_USUAL, .V_absent = 50304, .C_absent = 4096, .F_absent = 11008, .L_absent = 32, .H_absent = 32,
                                        .P_absent = 2048};

static enum code olmo_read(struct arch *a, const json_t *config, const char *where)
{
    int attention_bias = 0;
    TRY(family_dims_read(a, config, where, &DIMS));
    a->norm = NORM_LAYER_NOP;
    a->norm_eps = 1e-5;
    TRY(family_act_read(a, config, where, "hidden_act", "silu", 1));
    TRY(json_want_bool(config, where, "attention_bias", &attention_bias));
    a->bias = attention_bias ? FAMILY_BIAS_ATTENTION : 0;
    TRY(family_clip_read(a, config, where));
    a->pos = POS_ROPE;
    a->eos = 50279;
    a->pad = 1;
    return config_rope_read(a, config, where);
}

static enum code olmo_fresh(const struct arch *a, json_t *config)
{
    family_fresh_begin(a, config, "OlmoForCausalLM", "olmo", &DIMS);
    json_object_set_new(config, "hidden_act", json_string(family_act_name(a->mlp)));
    json_object_set_new(config, "attention_bias", json_boolean(a->bias & BIAS_Q));
    json_object_set_new(config, "clip_qkv", a->clip_qkv > 0 ? json_real(a->clip_qkv) : json_null());
    family_rope_fresh(a, config, 1);
    return family_fresh_end(a, config);
}

const struct family family_olmo = {
    .model_types = TYPES,
    .keys = KEYS,
    .groups_key = "num_key_value_heads",
    .heads_key = "num_attention_heads",
    .read = olmo_read,
    .place = family_place_llama,
    .ignores = family_ignores_usual,
    .fresh = olmo_fresh,
};
