/* Qwen3 (Yang et al. 2025): llama with an RMSNorm of every q and k head before the rotation, one weight [D] for all heads, with the
 * norms' own epsilon. head_dim is its own number, 128 when absent and never C / H; key/value heads 32 when absent. */
#include "family_common.h"

static const char *const TYPES[] = {"qwen3", NULL};
static const char *const KEYS[] = {FAMILY_KEYS_DIMS, FAMILY_KEYS_ROPE, FAMILY_KEYS_SWITCHED_WINDOWS, "hidden_act", "rms_norm_eps",
                                   "attention_bias", NULL};
static const struct family_dims DIMS = {FAMILY_DIMS_USUAL, .V_absent = 151936, .C_absent = 4096, .F_absent = 22016, .L_absent = 32, .H_absent = 32,
                                        .P_absent = 32768, .G_absent = 32, .D_absent = 128};

static enum code qwen3_read(struct arch *a, const json_t *config, const char *where)
{
    int attention_bias = 0;
    TRY(family_dims_read(a, config, where, &DIMS));
    a->norm = NORM_RMS;
    a->norm_eps = 1e-6;
    TRY(json_want_f64(config, where, "rms_norm_eps", &a->norm_eps));
    TRY(family_act_read(a, config, where, "hidden_act", "silu", 1));
    TRY(json_want_bool(config, where, "attention_bias", &attention_bias));
    a->bias = attention_bias ? FAMILY_BIAS_ATTENTION : 0;
    a->qk_norm = QK_NORM_HEAD;
    TRY(family_windows_switched_read(a, config, where));
    a->pos = POS_ROPE;
    return config_rope_read(a, config, where);
}

static enum code qwen3_fresh(const struct arch *a, json_t *config)
{
    family_fresh_begin(a, config, "Qwen3ForCausalLM", "qwen3", &DIMS);
    json_object_set_new(config, "hidden_act", json_string(family_act_name(a->mlp)));
    json_object_set_new(config, "rms_norm_eps", json_real(a->norm_eps));
    json_object_set_new(config, "attention_bias", json_boolean(a->bias & BIAS_Q));
    family_windows_switched_fresh(a, config);
    family_rope_fresh(a, config, 1);
    return family_fresh_end(a, config);
}

const struct family family_qwen3 = {
    .model_types = TYPES,
    .keys = KEYS,
    .groups_key = "num_key_value_heads",
    .heads_key = "num_attention_heads",
    .read = qwen3_read,
    .place = family_place_llama,
    .ignores = family_ignores_usual,
    .fresh = qwen3_fresh,
};
