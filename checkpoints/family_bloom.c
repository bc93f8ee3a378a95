/* BLOOM (BigScience 2022): a norm on the embedding, ALiBi instead of positions (Press et al. 2022), pre-norm, GELU by tanh, tied.
 * query_key_value's rows are [H, 3, D]. There is no limit to positions; seq_length, where given, is what it was trained on. */
#include "family_gpt.h"

static const char *const TYPES[] = {"bloom", NULL};
static const char *const KEYS[] = {"hidden_size", "n_embed", "n_layer", "num_hidden_layers", "n_head", "num_attention_heads", "layer_norm_epsilon",
                                   "apply_residual_connection_post_layernorm", "n_inner", "seq_length", /* kernels of its trainer: */
                                   "attention_softmax_in_fp32", "bias_dropout_fusion", "masked_softmax_fusion", "offset_alibi", "skip_bias_add",
                                   "skip_bias_add_qkv", "slow_but_exact", GPT_KEYS_HARMLESS, NULL};
static const struct family_dims DIMS = {.C = "hidden_size", .L = "n_layer", .H = "n_head", .P = "seq_length", .F = "n_inner", .V_absent = 250880,
                                        .C_absent = 64, .L_absent = 2, .H_absent = 8, .P_absent = 2048, .F_times = 4};
static const struct gpt_alias ALIASES[] = {{"hidden_size", "n_embed"}, {"n_layer", "num_hidden_layers"}, {"n_head", "num_attention_heads"}, {NULL, NULL}};
static const struct gpt_only ONLY[] = {{"apply_residual_connection_post_layernorm", "false"}, {"skip_bias_add_qkv", "false"}};

#define QKV "self_attention.query_key_value."
static const char *const NAMES[T_SLOTS] = {
    [T_EMBED] = "transformer.word_embeddings.weight",
    [T_EMBED_NORM_W] = "transformer.word_embeddings_layernorm.weight", [T_EMBED_NORM_B] = "transformer.word_embeddings_layernorm.bias",
    [T_ATTN_NORM_W] = "input_layernorm.weight", [T_ATTN_NORM_B] = "input_layernorm.bias",
    [T_Q_W] = QKV "weight", [T_K_W] = QKV "weight", [T_V_W] = QKV "weight",
    [T_Q_B] = QKV "bias", [T_K_B] = QKV "bias", [T_V_B] = QKV "bias",
    [T_O_W] = "self_attention.dense.weight", [T_O_B] = "self_attention.dense.bias",
    [T_MLP_NORM_W] = "post_attention_layernorm.weight", [T_MLP_NORM_B] = "post_attention_layernorm.bias",
    [T_UP_W] = "mlp.dense_h_to_4h.weight", [T_UP_B] = "mlp.dense_h_to_4h.bias",
    [T_DOWN_W] = "mlp.dense_4h_to_h.weight", [T_DOWN_B] = "mlp.dense_4h_to_h.bias",
    [T_FINAL_NORM_W] = "transformer.ln_f.weight", [T_FINAL_NORM_B] = "transformer.ln_f.bias",
    [T_HEAD_W] = "lm_head.weight",
};

static enum code bloom_read(struct arch *a, const json_t *config, const char *where)
{
    TRY(gpt_read(a, config, where, &DIMS, ALIASES, "layer_norm_epsilon", 1, 2));
    TRY(gpt_only_check(config, where, ONLY, sizeof ONLY / sizeof *ONLY));
    if (a->stack[STACK_DEC].block[0].F != 4 * a->C)
        return fail(ERR_UNSUPPORTED, "%s: \"n_inner\": %lld is not supported; known is 4 * \"hidden_size\"", where, (long long)a->stack[STACK_DEC].block[0].F);
    a->mlp = MLP_GELU_TANH;
    a->pos = POS_ALIBI;
    a->alibi_bias_max = 8;
    a->embed_norm = 1;
    a->bias = BIAS_Q | BIAS_K | BIAS_V | BIAS_O | BIAS_MLP_IN | BIAS_MLP_OUT | BIAS_NORM;
    return OK;
}

static void bloom_place(const struct arch *a, const struct tensor_spec *t, struct family_place *p)
{
    family_place_named(p, t, NAMES, "transformer.h.%lld.");
    gpt_place_qkv(p, a, t, GPT_BY_GROUP);
}

static enum code bloom_fresh(const struct arch *a, json_t *config)
{
    TRY(gpt_fresh_begin(a, config, "BloomForCausalLM", "bloom", &DIMS, NULL, "layer_norm_epsilon"));
    return family_fresh_end(a, config);
}

const struct family family_bloom = {
    .model_types = TYPES,
    .keys = KEYS,
    .prefix = "transformer.",
    .read = bloom_read,
    .place = bloom_place,
    .ignores = gpt_ignores,
    .fresh = bloom_fresh,
    .holds = gpt_holds_mha,
};
