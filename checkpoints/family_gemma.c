/* Gemma 1 (Gemma team 2024): llama whose RMSNorm multiplies by 1 + w, whose embedding is scaled by sqrt(C), with geglu of the tanh
 * kind and heads of 256 whatever C / H is; the head is tied unless the config says otherwise.
 * Traps: transformers rounds sqrt(C) to the type the weights are loaded in (55.4256 is 55.5 in bf16); "gelu" in hidden_act is an old
 * slip that means the tanh form; absent key/value heads are 16. */
#include <math.h>
#include <string.h>

#include "family_common.h"

static const char *const TYPES[] = {"gemma", NULL};
static const char *const KEYS[] = {FAMILY_KEYS_DIMS, FAMILY_KEYS_ROPE, "hidden_act", "hidden_activation", "rms_norm_eps", "attention_bias", NULL};
static const struct family_dims DIMS = {FAMILY_DIMS_USUAL, .V_absent = 256000, .C_absent = 3072, .F_absent = 24576, .L_absent = 28, .H_absent = 16,
                                        .P_absent = 8192, .G_absent = 16, .D_absent = 256};

static double embed_scale(int64_t C, enum dtype dtype)
{
    double exact = sqrt((double)C), rounded;
    unsigned char narrow[8];
    if (dtype == DT_F64) /* the buffer holds a float; only its product is wider */
        dtype = DT_F32;
    convert_elements(narrow, dtype, &exact, DT_F64, 1);
    convert_elements(&rounded, DT_F64, narrow, dtype, 1);
    return rounded;
}

/* Which releases of transformers look at which of the two keys has changed; all agree where both mean the tanh form. */
static enum code act_read(struct arch *a, const json_t *config, const char *where)
{
    const char *const keys[] = {"hidden_act", "hidden_activation"};
    for (int i = 0; i < 2; i++) {
        const char *act = "gelu_pytorch_tanh";
        TRY(json_want_str(config, where, keys[i], &act));
        int old_slip = i == 0 && !strcmp(act, "gelu");
        if (!old_slip && strcmp(act, "gelu_pytorch_tanh") != 0 && strcmp(act, "gelu_new") != 0 && strcmp(act, "gelu_fast") != 0)
            return fail(ERR_UNSUPPORTED, "%s: \"%s\": \"%.40s\" is not supported for gemma; known is gelu_pytorch_tanh", where, keys[i], act);
    }
    a->mlp = MLP_GEGLU_TANH;
    return OK;
}

static enum code gemma_read(struct arch *a, const json_t *config, const char *where)
{
    int attention_bias = 0;
    enum dtype dtype;
    TRY(family_dims_read(a, config, where, &DIMS));
    a->norm = NORM_RMS1P;
    a->norm_eps = 1e-6;
    TRY(json_want_f64(config, where, "rms_norm_eps", &a->norm_eps));
    TRY(act_read(a, config, where));
    TRY(json_want_bool(config, where, "attention_bias", &attention_bias));
    a->bias = attention_bias ? FAMILY_BIAS_ATTENTION : 0;
    TRY(config_dtype_read(config, where, &dtype));
    a->embed_scale = embed_scale(a->C, dtype);
    a->pos = POS_ROPE;
    a->tied = 1;
    a->bos = 2;
    a->eos = 1;
    a->pad = 0;
    return config_rope_read(a, config, where);
}

static enum code gemma_fresh(const struct arch *a, json_t *config)
{
    family_fresh_begin(a, config, "GemmaForCausalLM", "gemma", &DIMS);
    json_object_set_new(config, "hidden_act", json_string("gelu_pytorch_tanh"));
    json_object_set_new(config, "hidden_activation", json_string("gelu_pytorch_tanh")); /* what older releases read */
    json_object_set_new(config, "rms_norm_eps", json_real(a->norm_eps));
    json_object_set_new(config, "attention_bias", json_boolean(a->bias & BIAS_Q));
    family_rope_fresh(a, config, 1);
    /* sqrt(C) in whatever precision: the one of the result's type is what its readers will use */
    static const enum dtype roundings[] = {DT_F32, DT_BF16, DT_F16};
    struct arch wanted = *a;
    for (size_t i = 0; i < sizeof roundings / sizeof *roundings; i++)
        if (fabs(a->embed_scale - embed_scale(a->C, roundings[i])) <= 1e-7 * a->embed_scale)
            wanted.embed_scale = embed_scale(a->C, a->dtype);
    return family_fresh_end(&wanted, config);
}

const struct family family_gemma = {
    .model_types = TYPES,
    .keys = KEYS,
    .groups_key = "num_key_value_heads",
    .heads_key = "num_attention_heads",
    .read = gemma_read,
    .place = family_place_llama,
    .ignores = family_ignores_usual,
    .fresh = gemma_fresh,
};
