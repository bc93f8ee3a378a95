/* OPT (Zhang et al. 2022), Galactica.
 *   x = project_in(embed_tokens[id]) + embed_positions[p + 2];  pre-norm with a last norm; OPT-350m (do_layer_norm_before false) norms
 *   after each sum instead, without a last norm;  head on project_out(x), tied
 * The position table's first two rows are never read. project_in and project_out are there when word_embed_proj_dim differs from
 * hidden_size. LayerNorm's eps is always 1e-5; without layer_norm_elementwise_affine it has no parameters. ReLU or GELU. */
#include "family_gpt.h"

static const char *const TYPES[] = {"opt", NULL};
static const char *const KEYS[] = {"hidden_size", "num_hidden_layers", "num_attention_heads", "ffn_dim", "max_position_embeddings",
                                   "word_embed_proj_dim", "do_layer_norm_before", "_remove_final_layer_norm", "enable_bias",
                                   "layer_norm_elementwise_affine", "activation_function", "learned_embeddings", "scale_embeddings",
                                   "layer_norm_bias", "dropout", "activation_dropout", "layerdrop", "init_std", "output_projection", NULL};
static const struct family_dims DIMS = {.C = "hidden_size", .L = "num_hidden_layers", .H = "num_attention_heads", .P = "max_position_embeddings",
                                        .F = "ffn_dim", .V_absent = 50272, .C_absent = 768, .L_absent = 12, .H_absent = 12, .P_absent = 2048,
                                        .F_absent = 3072};
static const struct gpt_only ONLY[] = {{"learned_embeddings", "true"}, {"scale_embeddings", "false"}, {"layer_norm_bias", "true"}};

static const char *const NAMES[T_SLOTS] = {
    [T_EMBED] = "model.decoder.embed_tokens.weight", [T_POS] = "model.decoder.embed_positions.weight",
    [T_EMBED_PROJ_IN] = "model.decoder.project_in.weight", [T_EMBED_PROJ_OUT] = "model.decoder.project_out.weight",
    [T_ATTN_NORM_W] = "self_attn_layer_norm.weight", [T_ATTN_NORM_B] = "self_attn_layer_norm.bias",
    [T_Q_W] = "self_attn.q_proj.weight", [T_K_W] = "self_attn.k_proj.weight", [T_V_W] = "self_attn.v_proj.weight",
    [T_Q_B] = "self_attn.q_proj.bias", [T_K_B] = "self_attn.k_proj.bias", [T_V_B] = "self_attn.v_proj.bias",
    [T_O_W] = "self_attn.out_proj.weight", [T_O_B] = "self_attn.out_proj.bias",
    [T_MLP_NORM_W] = "final_layer_norm.weight", [T_MLP_NORM_B] = "final_layer_norm.bias",
    [T_UP_W] = "fc1.weight", [T_UP_B] = "fc1.bias", [T_DOWN_W] = "fc2.weight", [T_DOWN_B] = "fc2.bias",
    [T_FINAL_NORM_W] = "model.decoder.final_layer_norm.weight", [T_FINAL_NORM_B] = "model.decoder.final_layer_norm.bias",
    [T_HEAD_W] = "lm_head.weight",
};

static enum code opt_read(struct arch *a, const json_t *config, const char *where)
{
    int before = 1, removed = 0, bias = 1, affine = 1;
    TRY(gpt_read(a, config, where, &DIMS, NULL, NULL, 2, 2));
    TRY(family_act_read(a, config, where, "activation_function", "relu", 0));
    TRY(gpt_only_check(config, where, ONLY, sizeof ONLY / sizeof *ONLY));
    TRY(json_want_bool(config, where, "do_layer_norm_before", &before));
    TRY(json_want_bool(config, where, "_remove_final_layer_norm", &removed));
    TRY(json_want_bool(config, where, "enable_bias", &bias));
    TRY(json_want_bool(config, where, "layer_norm_elementwise_affine", &affine));
    if (before && removed)
        return fail(ERR_UNSUPPORTED, "%s: \"_remove_final_layer_norm\": true is not supported", where);
    int64_t width = a->C;
    TRY(json_want_i64(config, where, "word_embed_proj_dim", 1, INT32_MAX, &width));
    a->embed_proj = width == a->C ? 0 : width;
    a->pos = POS_LEARNED;
    a->pos_offset = 2;
    a->norm = affine ? NORM_LAYER : NORM_LAYER_NOP;
    a->norm_place = before ? NORM_PRE : NORM_POST_RESIDUAL;
    a->bias = (affine ? (unsigned)BIAS_NORM : 0) | (bias ? BIAS_Q | BIAS_K | BIAS_V | BIAS_O | BIAS_MLP_IN | BIAS_MLP_OUT : 0u);
    a->pad = 1;
    return OK;
}

static void opt_place(const struct arch *a, const struct tensor_spec *t, struct family_place *p)
{
    (void)a;
    family_place_named(p, t, NAMES, "model.decoder.layers.%lld.");
}

static enum code opt_fresh(const struct arch *a, json_t *config)
{
    TRY(gpt_fresh_begin(a, config, "OPTForCausalLM", "opt", &DIMS, "activation_function", NULL));
    json_object_set_new(config, "word_embed_proj_dim", json_integer(a->embed_proj ? a->embed_proj : a->C));
    json_object_set_new(config, "do_layer_norm_before", json_boolean(a->norm_place == NORM_PRE));
    json_object_set_new(config, "enable_bias", json_boolean(a->bias & BIAS_Q));
    json_object_set_new(config, "layer_norm_elementwise_affine", json_boolean(a->norm != NORM_LAYER_NOP));
    return family_fresh_end(a, config);
}

const struct family family_opt = {
    .model_types = TYPES,
    .keys = KEYS,
    .prefix = "model.",
    .read = opt_read,
    .place = opt_place,
    .ignores = gpt_ignores,
    .fresh = opt_fresh,
    .holds = gpt_holds_mha,
};
