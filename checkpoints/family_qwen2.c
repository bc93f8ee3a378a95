/* Qwen2 (Yang et al. 2024), Qwen2.5 and Qwen1.5: llama with biases on q, k and v but not on o, always; and a sliding window from
 * layer max_window_layers on, if use_sliding_window. Traps of absent keys: 32 key/value heads, not H. */
#include "family_common.h"

static const char *const TYPES[] = {"qwen2", NULL};
static const char *const KEYS[] = {FAMILY_KEYS_DIMS, FAMILY_KEYS_ROPE, FAMILY_KEYS_SWITCHED_WINDOWS, "hidden_act", "rms_norm_eps", NULL};
static const struct family_dims DIMS = {FAMILY_DIMS_USUAL, .V_absent = 151936, .C_absent = 4096, .F_absent = 22016, .L_absent = 32, .H_absent = 32,
                                        .P_absent = 32768, .G_absent = 32};

static enum code qwen2_read(struct arch *a, const json_t *config, const char *where)
{
    TRY(family_dims_read(a, config, where, &DIMS));
    a->norm = NORM_RMS;
    a->norm_eps = 1e-6;
    TRY(json_want_f64(config, where, "rms_norm_eps", &a->norm_eps));
    TRY(family_act_read(a, config, where, "hidden_act", "silu", 1));
    a->bias = BIAS_Q | BIAS_K | BIAS_V;
    TRY(family_windows_switched_read(a, config, where));
    a->pos = POS_ROPE;
    return config_rope_read(a, config, where);
}

static enum code qwen2_fresh(const struct arch *a, json_t *config)
{
    family_fresh_begin(a, config, "Qwen2ForCausalLM", "qwen2", &DIMS);
    json_object_set_new(config, "hidden_act", json_string(family_act_name(a->mlp)));
    json_object_set_new(config, "rms_norm_eps", json_real(a->norm_eps));
    family_windows_switched_fresh(a, config);
    family_rope_fresh(a, config, 1);
    return family_fresh_end(a, config);
}

const struct family family_qwen2 = {
    .model_types = TYPES,
    .keys = KEYS,
    .groups_key = "num_key_value_heads",
    .heads_key = "num_attention_heads",
    .read = qwen2_read,
    .place = family_place_llama,
    .ignores = family_ignores_usual,
    .fresh = qwen2_fresh,
};
