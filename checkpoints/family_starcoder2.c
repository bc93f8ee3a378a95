/* StarCoder2 (Lozhkov et al. 2024): llama's attention and residuals with LayerNorms (weight and bias), an MLP without a gate
 * (c_fc, c_proj), biases on everything but the head unless use_bias is false, an optional window in all layers. Tied unless the
 * config says otherwise; absent key/value heads are 2. */
#include "family_common.h"

static const char *const TYPES[] = {"starcoder2", NULL};
static const char *const KEYS[] = {FAMILY_KEYS_DIMS, FAMILY_KEYS_ROPE, "hidden_act", "norm_epsilon", "use_bias", "sliding_window",
                                   "mlp_type", "norm_type", NULL};
static const struct family_dims DIMS = {FAMILY_DIMS_USUAL, .V_absent = 49152, .C_absent = 3072, .F_absent = 12288, .L_absent = 30, .H_absent = 24,
                                        .P_absent = 4096, .G_absent = 2};

static enum code starcoder2_read(struct arch *a, const json_t *config, const char *where)
{
    int use_bias = 1;
    int64_t window = 0;
    TRY(family_dims_read(a, config, where, &DIMS));
    TRY(family_word_only(config, where, "mlp_type", "default"));
    TRY(family_word_only(config, where, "norm_type", "layer_norm"));
    a->norm = NORM_LAYER;
    a->norm_eps = 1e-5;
    TRY(json_want_f64(config, where, "norm_epsilon", &a->norm_eps));
    TRY(family_act_read(a, config, where, "hidden_act", "gelu_pytorch_tanh", 0));
    TRY(json_want_bool(config, where, "use_bias", &use_bias));
    a->bias = BIAS_NORM | (use_bias ? FAMILY_BIAS_ATTENTION | FAMILY_BIAS_MLP : 0);
    TRY(json_want_i64(config, where, "sliding_window", 1, INT32_MAX, &window));
    TRY(family_windows_read(a, config, where, window, 0));
    a->pos = POS_ROPE;
    a->tied = 1;
    a->bos = a->eos = 50256;
    return config_rope_read(a, config, where);
}

static void starcoder2_place(const struct arch *a, const struct tensor_spec *t, struct family_place *p)
{
    static const char *const MLP[T_SLOTS] = {[T_UP_W] = "mlp.c_fc.weight", [T_UP_B] = "mlp.c_fc.bias", [T_DOWN_W] = "mlp.c_proj.weight",
                                             [T_DOWN_B] = "mlp.c_proj.bias"};
    if (MLP[t->slot])
        family_place_named(p, t, MLP, FAMILY_LAYERS_LLAMA);
    else
        family_place_llama(a, t, p);
}

static enum code starcoder2_fresh(const struct arch *a, json_t *config)
{
    family_fresh_begin(a, config, "Starcoder2ForCausalLM", "starcoder2", &DIMS);
    json_object_set_new(config, "hidden_act", json_string(family_act_name(a->mlp)));
    json_object_set_new(config, "norm_epsilon", json_real(a->norm_eps));
    json_object_set_new(config, "use_bias", json_boolean(a->bias & BIAS_Q));
    family_windows_fresh(a, config);
    family_rope_fresh(a, config, 1);
    return family_fresh_end(a, config);
}

const struct family family_starcoder2 = {
    .model_types = TYPES,
    .keys = KEYS,
    .groups_key = "num_key_value_heads",
    .heads_key = "num_attention_heads",
    .read = starcoder2_read,
    .place = starcoder2_place,
    .ignores = family_ignores_usual,
    .fresh = starcoder2_fresh,
};
