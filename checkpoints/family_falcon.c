/* Falcon (Almazrouei et al. 2023), in three shapes that share their names and, told by G alone, the row order [G, R + 2, D]:
 *   falcon-rw    sequential, n1 then n2; [H, 3, D]; ALiBi, which here is multiplied by D^-0.5 as the scores are
 *   falcon-7b    parallel with one norm; multi_query: q | k | v; rotary
 *   falcon-40b   new_decoder_architecture: parallel with two norms ln_attn, ln_mlp (falcon-11b: one); num_kv_heads groups; rotary
 * (transformers rounds slope * position to bf16; vLLM and we do not: the same only for slopes that are powers of two, up to position 256.)
 * Biases on all matrices or none; LayerNorm always with bias; GELU with erf; tied unless said. */
#include "family_gpt.h"

#include <stdio.h>
#include <string.h>

static const char *const TYPES[] = {"falcon", NULL};
static const char *const KEYS[] = {"hidden_size", "n_embed", "num_hidden_layers", "num_attention_heads", "num_kv_heads", "max_position_embeddings",
                                   "ffn_hidden_size", "layer_norm_epsilon", "num_ln_in_parallel_attn", "alibi", "new_decoder_architecture",
                                   "multi_query", "parallel_attn", "bias", "activation", "apply_residual_connection_post_layernorm",
                                   "ff_factor" /* ffn_hidden_size counts */,
                                   FAMILY_KEYS_ROPE, GPT_KEYS_HARMLESS, NULL};
static const struct family_dims DIMS = {.C = "hidden_size", .L = "num_hidden_layers", .H = "num_attention_heads", .P = "max_position_embeddings",
                                        .F = "ffn_hidden_size", .V_absent = 65024, .C_absent = 4544, .L_absent = 32, .H_absent = 71,
                                        .P_absent = 2048, .F_times = 4};
static const struct gpt_alias ALIASES[] = {{"hidden_size", "n_embed"}, {NULL, NULL}};
static const struct gpt_only ONLY[] = {{"apply_residual_connection_post_layernorm", "false"}};

#define QKV "self_attention.query_key_value."
static const char *const NAMES[T_SLOTS] = {
    [T_EMBED] = "transformer.word_embeddings.weight",
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
static const char *const NAMES_TWO_NORMS[T_SLOTS] = {[T_ATTN_NORM_W] = "ln_attn.weight", [T_ATTN_NORM_B] = "ln_attn.bias",
                                              [T_MLP_NORM_W] = "ln_mlp.weight", [T_MLP_NORM_B] = "ln_mlp.bias"};

struct flags { int new_decoder, multi_query, parallel, alibi, bias; int64_t norms; };

static enum code flags_read(const json_t *config, const char *where, struct flags *f)
{
    *f = (struct flags){.multi_query = 1, .parallel = 1};
    TRY(json_want_bool(config, where, "new_decoder_architecture", &f->new_decoder));
    TRY(json_want_bool(config, where, "multi_query", &f->multi_query));
    TRY(json_want_bool(config, where, "parallel_attn", &f->parallel));
    TRY(json_want_bool(config, where, "alibi", &f->alibi));
    TRY(json_want_bool(config, where, "bias", &f->bias));
    f->norms = f->new_decoder ? 2 : 1;
    TRY(json_want_i64(config, where, "num_ln_in_parallel_attn", 1, 2, &f->norms));
    if (f->new_decoder && !f->parallel)
        return fail(ERR_UNSUPPORTED, "%s: \"parallel_attn\": false with \"new_decoder_architecture\" is no model that transformers can run", where);
    if (!f->new_decoder && f->parallel && f->norms == 2)
        return fail(ERR_UNSUPPORTED, "%s: \"num_ln_in_parallel_attn\": 2 without \"new_decoder_architecture\" is no model that transformers can run", where);
    return OK;
}

static enum code falcon_read(struct arch *a, const json_t *config, const char *where)
{
    struct flags f;
    TRY(gpt_read(a, config, where, &DIMS, ALIASES, "layer_norm_epsilon", 11, 11));
    TRY(gpt_only_check(config, where, ONLY, sizeof ONLY / sizeof *ONLY));
    TRY(family_act_read(a, config, where, "activation", "gelu", 0));
    TRY(flags_read(config, where, &f));
    int64_t H = a->stack[STACK_DEC].block[0].H, G = H;
    if (f.new_decoder)
        TRY(json_want_i64(config, where, "num_kv_heads", 1, H, &G));
    else if (f.multi_query)
        G = 1; /* whatever num_kv_heads says */
    for (int64_t l = 0; l < a->stack[STACK_DEC].L; l++)
        a->stack[STACK_DEC].block[l].G = G;
    a->residual = !f.parallel ? RESIDUAL_SEQUENTIAL : f.norms == 2 ? RESIDUAL_PARALLEL_TWO_NORMS : RESIDUAL_PARALLEL_ONE_NORM;
    a->bias = BIAS_NORM | (f.bias ? BIAS_Q | BIAS_K | BIAS_V | BIAS_O | BIAS_MLP_IN | BIAS_MLP_OUT : 0u);
    a->pos = f.alibi ? POS_ALIBI : POS_ROPE;
    a->alibi_bias_max = f.alibi ? 8 : 0;
    a->alibi_scaled = f.alibi;
    return f.alibi ? OK : config_rope_read(a, config, where);
}

static void falcon_place(const struct arch *a, const struct tensor_spec *t, struct family_place *p)
{
    int norm = t->slot == T_ATTN_NORM_W || t->slot == T_ATTN_NORM_B || t->slot == T_MLP_NORM_W || t->slot == T_MLP_NORM_B;
    family_place_named(p, t, norm && a->residual == RESIDUAL_PARALLEL_TWO_NORMS ? NAMES_TWO_NORMS : NAMES, "transformer.h.%lld.");
    gpt_place_qkv(p, a, t, GPT_BY_GROUP);
}

static enum code falcon_holds(const struct arch *a)
{
    for (int64_t l = 0; l < a->stack[STACK_DEC].L; l++) {
        const struct arch_block *b = &a->stack[STACK_DEC].block[l];
        if (a->residual == RESIDUAL_SEQUENTIAL && b->G != b->H && b->G != 1)
            return fail(ERR_UNSUPPORTED, "the class of model_type \"falcon\" has groups of key/value heads only with parallel residuals; without, one "
                        "head or as many as query heads, %lld; layer %lld has %lld", (long long)b->H, (long long)l, (long long)b->G);
    }
    return OK;
}

/* The old shapes say only one head or all; a parallel one with groups becomes the new shape with its one norm. */
static enum code falcon_set_groups(const struct arch *a, char **text)
{
    const struct arch_block *b = &a->stack[STACK_DEC].block[0];
    json_t *config;
    struct flags f;
    char value[32];
    TRY(json_parse_object(*text, strlen(*text), "config.json", &config));
    enum code c = flags_read(config, "config.json", &f);
    json_decref(config);
    TRY(c);
    snprintf(value, sizeof value, "%lld", (long long)b->G);
    if (!f.new_decoder && (b->G == 1 || b->G == b->H))
        return config_text_set(text, "multi_query", b->G == 1 ? "true" : "false", "num_attention_heads");
    TRY(config_text_set(text, "num_kv_heads", value, "num_attention_heads"));
    if (f.new_decoder)
        return OK;
    TRY(config_text_set(text, "new_decoder_architecture", "true", "num_kv_heads"));
    return config_text_set(text, "num_ln_in_parallel_attn", "1", "new_decoder_architecture");
}

static enum code falcon_fresh(const struct arch *a, json_t *config)
{
    int parallel = a->residual != RESIDUAL_SEQUENTIAL;
    TRY(gpt_fresh_begin(a, config, "FalconForCausalLM", "falcon", &DIMS, "activation", "layer_norm_epsilon"));
    json_object_set_new(config, "new_decoder_architecture", json_boolean(parallel));
    json_object_set_new(config, "parallel_attn", json_boolean(parallel));
    json_object_set_new(config, "multi_query", json_boolean(a->stack[STACK_DEC].block[0].G == 1));
    if (parallel) {
        json_object_set_new(config, "num_kv_heads", json_integer(a->stack[STACK_DEC].block[0].G));
        json_object_set_new(config, "num_ln_in_parallel_attn", json_integer(a->residual == RESIDUAL_PARALLEL_TWO_NORMS ? 2 : 1));
    }
    json_object_set_new(config, "alibi", json_boolean(a->pos == POS_ALIBI));
    json_object_set_new(config, "bias", json_boolean(a->bias & BIAS_Q));
    if (a->pos == POS_ROPE)
        config_rope_fresh(&a->rope, config);
    return family_fresh_end(a, config);
}

const struct family family_falcon = {
    .model_types = TYPES,
    .keys = KEYS,
    .prefix = "transformer.",
    .read = falcon_read,
    .place = falcon_place,
    .ignores = gpt_ignores,
    .fresh = falcon_fresh,
    .holds = falcon_holds,
    .set_groups = falcon_set_groups,
};
