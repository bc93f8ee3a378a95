/* MPT (MosaicML 2023): pre-norm, LayerNorm without bias and no biases anywhere, ALiBi, GELU with erf, tied. Wqkv's rows are Q | K | V.
 * attn_config is an object of its own. Mosaic's code, vLLM and llama.cpp read kv_n_heads, alibi_bias_max and logit_scale; the class of
 * transformers has no K/V heads of its own and ignores the other two: here they mean what the model was trained with. */
#include "family_gpt.h"

#include <math.h>
#include <string.h>

static const char *const TYPES[] = {"mpt", NULL};
static const char *const KEYS[] = {"d_model", "hidden_size", "n_layers", "num_hidden_layers", "n_heads", "num_attention_heads", "max_seq_len",
                                   "expansion_ratio", "attn_config", "no_bias", "logit_scale", "norm_type", "layer_norm_epsilon", "ffn_config", "fc_type",
                                   "learned_pos_emb" /* not with ALiBi */, "emb_pdrop", "resid_pdrop", "embedding_fraction", "init_device",
                                   "init_config", "verbose", "tokenizer_name", NULL};
static const char *const ATTN_KEYS[] = {"attn_type", "kv_n_heads", "clip_qkv", "softmax_scale", "qk_ln", "qk_gn", "alibi", "alibi_bias_max",
                                        "prefix_lm", "attn_uses_sequence_id", "rope", "sliding_window_size", "fused_qkv", "attn_impl", NULL};
static const char *const FFN_KEYS[] = {"ffn_type", "fc_type", NULL};
static const struct family ATTN = {.keys = ATTN_KEYS}, FFN = {.keys = FFN_KEYS};
static const struct family_dims DIMS = {.C = "d_model", .L = "n_layers", .H = "n_heads", .P = "max_seq_len", .V_absent = 50368, .C_absent = 2048,
                                        .L_absent = 24, .H_absent = 16, .P_absent = 2048, .F_times = 4};
static const struct gpt_alias ALIASES[] = {{"d_model", "hidden_size"}, {"n_layers", "num_hidden_layers"}, {"n_heads", "num_attention_heads"}, {NULL, NULL}};
static const struct gpt_only ONLY[] = {{"no_bias", "true"}, {"fc_type", "\"torch\""}};
static const struct gpt_only FFN_ONLY[] = {{"ffn_type", "\"mptmlp\""}, {"fc_type", "\"torch\""}};
static const struct gpt_only ATTN_ONLY[] = {{"qk_ln", "false"}, {"qk_gn", "false"}, {"alibi", "true"}, {"prefix_lm", "false"},
                                            {"attn_uses_sequence_id", "false"}, {"rope", "false"}, {"sliding_window_size", "-1"}, {"fused_qkv", "true"}};

static const char *const NAMES[T_SLOTS] = {
    [T_EMBED] = "transformer.wte.weight",
    [T_ATTN_NORM_W] = "norm_1.weight",
    [T_Q_W] = "attn.Wqkv.weight", [T_K_W] = "attn.Wqkv.weight", [T_V_W] = "attn.Wqkv.weight",
    [T_O_W] = "attn.out_proj.weight",
    [T_MLP_NORM_W] = "norm_2.weight",
    [T_UP_W] = "ffn.up_proj.weight", [T_DOWN_W] = "ffn.down_proj.weight",
    [T_FINAL_NORM_W] = "transformer.norm_f.weight",
    [T_HEAD_W] = "lm_head.weight",
};

static enum code groups_read(struct arch *a, const json_t *attn, const char *where)
{
    const char *type = "multihead_attention";
    int64_t H = a->stack[STACK_DEC].block[0].H, G = H;
    TRY(json_want_str(attn, where, "attn_type", &type));
    if (!strcmp(type, "multiquery_attention"))
        G = 1;
    else if (strcmp(type, "multihead_attention") != 0 && strcmp(type, "grouped_query_attention") != 0)
        return fail(ERR_UNSUPPORTED, "%s: \"attn_type\": \"%.40s\" is not supported; known are multihead_attention, multiquery_attention, "
                    "grouped_query_attention", where, type);
    TRY(json_want_i64(attn, where, "kv_n_heads", 1, H, &G));
    for (int64_t l = 0; l < a->stack[STACK_DEC].L; l++)
        a->stack[STACK_DEC].block[l].G = G;
    return OK;
}

static enum code attn_read(struct arch *a, const json_t *config, const char *where)
{
    const json_t *attn = json_object_get(config, "attn_config");
    if (!attn || json_is_null(attn))
        return OK;
    if (!json_is_object(attn))
        return fail(ERR_INPUT, "%s: \"attn_config\" must be an object", where);
    TRY(config_keys_check(attn, &ATTN, where));
    TRY(gpt_only_check(attn, where, ATTN_ONLY, sizeof ATTN_ONLY / sizeof *ATTN_ONLY));
    TRY(groups_read(a, attn, where));
    TRY(json_want_f64(attn, where, "clip_qkv", &a->clip_qkv));
    TRY(json_want_f64(attn, where, "softmax_scale", &a->attn_scale));
    TRY(json_want_f64(attn, where, "alibi_bias_max", &a->alibi_bias_max));
    if (a->clip_qkv < 0 || !(a->alibi_bias_max > 0))
        return fail(ERR_INPUT, "%s: \"clip_qkv\" %g must not be negative, and \"alibi_bias_max\" %g must be positive", where, a->clip_qkv, a->alibi_bias_max);
    return OK;
}

/* A number, or the word for C^-0.5. */
static enum code logit_scale_read(struct arch *a, const json_t *config, const char *where)
{
    const json_t *v = json_object_get(config, "logit_scale");
    if (json_is_string(v) && !strcmp(json_string_value(v), "inv_sqrt_d_model")) {
        a->logit_scale = 1 / sqrt((double)a->C);
        return OK;
    }
    return json_want_f64(config, where, "logit_scale", &a->logit_scale);
}

static enum code mpt_read(struct arch *a, const json_t *config, const char *where)
{
    const char *norm = "low_precision_layernorm";
    double ratio = 4;
    TRY(gpt_read(a, config, where, &DIMS, ALIASES, "layer_norm_epsilon", -1, -1));
    TRY(gpt_only_check(config, where, ONLY, sizeof ONLY / sizeof *ONLY));
    TRY(json_want_str(config, where, "norm_type", &norm));
    if (strcmp(norm, "low_precision_layernorm") != 0 && strcmp(norm, "layernorm") != 0)
        return fail(ERR_UNSUPPORTED, "%s: \"norm_type\": \"%.40s\" is not supported; known are low_precision_layernorm, layernorm", where, norm);
    const json_t *ffn = json_object_get(config, "ffn_config");
    if (ffn && !json_is_null(ffn)) {
        if (!json_is_object(ffn))
            return fail(ERR_INPUT, "%s: \"ffn_config\" must be an object", where);
        TRY(config_keys_check(ffn, &FFN, where));
        TRY(gpt_only_check(ffn, where, FFN_ONLY, sizeof FFN_ONLY / sizeof *FFN_ONLY));
    }
    TRY(json_want_f64(config, where, "expansion_ratio", &ratio));
    if (!(ratio * (double)a->C >= 1 && ratio * (double)a->C <= INT32_MAX))
        return fail(ERR_INPUT, "%s: \"expansion_ratio\" %g is out of range", where, ratio);
    for (int64_t l = 0; l < a->stack[STACK_DEC].L; l++)
        a->stack[STACK_DEC].block[l].F = (int64_t)(ratio * (double)a->C);
    a->mlp = MLP_GELU_ERF;
    a->pos = POS_ALIBI;
    a->alibi_bias_max = 8;
    TRY(logit_scale_read(a, config, where));
    return attn_read(a, config, where);
}

static void mpt_place(const struct arch *a, const struct tensor_spec *t, struct family_place *p)
{
    family_place_named(p, t, NAMES, "transformer.blocks.%lld.");
    gpt_place_qkv(p, a, t, GPT_BY_PART);
}

/* A source of Mosaic's own with fewer K/V heads may be copied as it is: its config says so already. */
static enum code mpt_holds(const struct arch *a)
{
    struct arch said;
    if (a->source_config && arch_from_config_json(&said, a->source_config, strlen(a->source_config), "config.json") == OK) {
        int same = !strcmp(said.family, a->family) && said.stack[STACK_DEC].L == a->stack[STACK_DEC].L;
        for (int64_t l = 0; same && l < said.stack[STACK_DEC].L; l++)
            same = said.stack[STACK_DEC].block[l].G == a->stack[STACK_DEC].block[l].G;
        arch_free(&said);
        if (same)
            return OK;
    }
    return gpt_holds_mha(a);
}

/* The class insists on integers where they are whole. */
static json_t *number(double x) { return x >= 1 && x <= INT32_MAX && !(x > floor(x)) ? json_integer((json_int_t)x) : json_real(x); }

static enum code mpt_fresh(const struct arch *a, json_t *config)
{
    json_t *attn = json_object();
    json_object_set_new(attn, "attn_type", json_string("multihead_attention")); /* mpt_holds has seen to it */
    json_object_set_new(attn, "alibi", json_true());
    json_object_set_new(attn, "alibi_bias_max", number(a->alibi_bias_max));
    json_object_set_new(attn, "clip_qkv", a->clip_qkv > 0 ? json_real(a->clip_qkv) : json_null());
    json_object_set_new(attn, "softmax_scale", json_real(a->attn_scale));
    enum code c = gpt_fresh_begin(a, config, "MptForCausalLM", "mpt", &DIMS, NULL, "layer_norm_epsilon");
    json_object_set_new(config, "expansion_ratio", number((double)a->stack[STACK_DEC].block[0].F / (double)a->C));
    json_object_set_new(config, "logit_scale", json_real(a->logit_scale));
    json_object_set_new(config, "no_bias", json_true());
    json_object_set_new(config, "attn_config", attn);
    return c == OK ? family_fresh_end(a, config) : c;
}

const struct family family_mpt = {
    .model_types = TYPES,
    .keys = KEYS,
    .prefix = "transformer.",
    .read = mpt_read,
    .place = mpt_place,
    .ignores = gpt_ignores,
    .fresh = mpt_fresh,
    .holds = mpt_holds,
};
