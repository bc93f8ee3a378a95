/* struct arch <-> JSON, the form the native checkpoint stores. Enumerators are spelled as words, so a stored file survives a
 * reordering of the enums. Every number is written so that it reads back to the same bits (17 digits). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arch.h"

struct word { const char *name; int value; };
static const struct word NORMS[] = {{"rms", NORM_RMS}, {"rms1p", NORM_RMS1P}, {"layer", NORM_LAYER}, {"layer_nop", NORM_LAYER_NOP}, {0}};
static const struct word NORM_PLACES[] = {{"pre", NORM_PRE}, {"post_sublayer", NORM_POST_SUBLAYER}, {"post_residual", NORM_POST_RESIDUAL}, {0}};
static const struct word RESIDUALS[] = {{"sequential", RESIDUAL_SEQUENTIAL}, {"parallel_one_norm", RESIDUAL_PARALLEL_ONE_NORM},
                                        {"parallel_two_norms", RESIDUAL_PARALLEL_TWO_NORMS}, {0}};
static const struct word POSITIONS[] = {{"none", POS_NONE}, {"rope", POS_ROPE}, {"learned", POS_LEARNED}, {"alibi", POS_ALIBI},
                                        {"rel_bias", POS_REL_BIAS}, {0}};
static const struct word ROPES[] = {{"default", ROPE_DEFAULT}, {"linear", ROPE_LINEAR}, {"dynamic", ROPE_DYNAMIC}, {"yarn", ROPE_YARN},
                                    {"longrope", ROPE_LONGROPE}, {"llama3", ROPE_LLAMA3}, {0}};
static const struct word MLPS[] = {{"swiglu", MLP_SWIGLU}, {"geglu_tanh", MLP_GEGLU_TANH}, {"geglu_erf", MLP_GEGLU_ERF},
                                   {"gelu_erf", MLP_GELU_ERF}, {"gelu_tanh", MLP_GELU_TANH}, {"relu", MLP_RELU}, {0}};
static const struct word QK_NORMS[] = {{"none", QK_NORM_NONE}, {"head", QK_NORM_HEAD}, {"per_head", QK_NORM_PER_HEAD}, {"full", QK_NORM_FULL}, {0}};
static const struct word BIASES[] = {{"q", BIAS_Q}, {"k", BIAS_K}, {"v", BIAS_V}, {"o", BIAS_O}, {"mlp_in", BIAS_MLP_IN},
                                     {"mlp_out", BIAS_MLP_OUT}, {"norm", BIAS_NORM}, {"head", BIAS_HEAD}, {0}};

static const char *word_name(const struct word *words, int value)
{
    while (words->name && words->value != value)
        words++;
    CHECK(words->name);
    return words->name;
}

static enum code word_read(const json_t *object, const char *where, const char *key, const struct word *words, int *out)
{
    const char *text;
    TRY(json_need_str(object, where, key, &text));
    for (; words->name; words++)
        if (!strcmp(words->name, text)) {
            *out = words->value;
            return OK;
        }
    return fail(ERR_INPUT, "%s: \"%s\" holds the unknown word \"%.40s\"", where, key, text);
}

/* The numbers of struct arch and of a block, each named once: written and read by the same list. */
#define ARCH_INTEGERS(X)                                                                                           \
    X(C) X(V) X(max_positions) X(original_vocab) X(pos_offset) X(rel_buckets) X(rel_max_distance) X(alibi_scaled)   \
    X(tied) X(embed_norm) X(embed_proj) X(bos) X(eos) X(pad) X(decoder_start)
#define ARCH_REALS(X) \
    X(norm_eps) X(residual_scale) X(alibi_bias_max) X(attn_scale) X(embed_scale) X(logit_scale) X(logit_softcap) X(clip_qkv)
#define ROPE_REALS(X) \
    X(theta) X(factor) X(low_freq_factor) X(high_freq_factor) X(beta_fast) X(beta_slow) X(attention_factor)
#define BLOCK_INTEGERS(X) X(H) X(G) X(D) X(Dv) X(F) X(window) X(global_tokens) X(blocksparse) X(cross) X(G_cross)

/* ---- writing ------------------------------------------------------------------------------------------------------ */

static json_t *reals_to_json(const double *v, int64_t n)
{
    json_t *list = json_array();
    for (int64_t i = 0; i < n; i++)
        json_array_append_new(list, json_real(v[i]));
    return list;
}

static json_t *rope_to_json(const struct arch_rope *r)
{
    json_t *j = json_object();
    json_object_set_new(j, "kind", json_string(word_name(ROPES, (int)r->kind)));
    json_object_set_new(j, "dims", json_integer(r->dims));
    json_object_set_new(j, "original_max_positions", json_integer(r->original_max_positions));
#define PUT(name) json_object_set_new(j, #name, json_real(r->name));
    ROPE_REALS(PUT)
#undef PUT
    if (r->long_factor)
        json_object_set_new(j, "long_factor", reals_to_json(r->long_factor, r->dims / 2));
    if (r->short_factor)
        json_object_set_new(j, "short_factor", reals_to_json(r->short_factor, r->dims / 2));
    return j;
}

static json_t *stack_to_json(const struct arch_stack *s)
{
    json_t *j = json_object(), *blocks = json_array();
    json_object_set_new(j, "causal", json_boolean(s->causal));
    for (int64_t l = 0; l < s->L; l++) {
        const struct arch_block *b = &s->block[l];
        json_t *block = json_object();
#define PUT(name) json_object_set_new(block, #name, json_integer(b->name));
        BLOCK_INTEGERS(PUT)
#undef PUT
        if (b->scale > 0.0)
            json_object_set_new(block, "scale", json_real(b->scale));
        if (b->dilation) {
            json_t *list = json_array();
            for (int64_t h = 0; h < b->H; h++)
                json_array_append_new(list, json_integer(b->dilation[h]));
            json_object_set_new(block, "dilation", list);
        }
        json_array_append_new(blocks, block);
    }
    json_object_set_new(j, "blocks", blocks);
    return j;
}

json_t *arch_to_json(const struct arch *a)
{
    json_t *j = json_object(), *bias = json_array();
    json_object_set_new(j, "family", json_string(a->family));
#define PUT(name) json_object_set_new(j, #name, json_integer(a->name));
    ARCH_INTEGERS(PUT)
#undef PUT
#define PUT(name) json_object_set_new(j, #name, json_real(a->name));
    ARCH_REALS(PUT)
#undef PUT
    json_object_set_new(j, "norm", json_string(word_name(NORMS, (int)a->norm)));
    json_object_set_new(j, "norm_place", json_string(word_name(NORM_PLACES, (int)a->norm_place)));
    json_object_set_new(j, "residual", json_string(word_name(RESIDUALS, (int)a->residual)));
    json_object_set_new(j, "pos", json_string(word_name(POSITIONS, (int)a->pos)));
    json_object_set_new(j, "mlp", json_string(word_name(MLPS, (int)a->mlp)));
    json_object_set_new(j, "qk_norm", json_string(word_name(QK_NORMS, (int)a->qk_norm)));
    json_object_set_new(j, "dtype", json_string(dtype_name(a->dtype)));
    for (const struct word *w = BIASES; w->name; w++)
        if (a->bias & (unsigned)w->value)
            json_array_append_new(bias, json_string(w->name));
    json_object_set_new(j, "bias", bias);
    if (a->pos == POS_ROPE)
        json_object_set_new(j, "rope", rope_to_json(&a->rope));
    if (a->stack[STACK_DEC].present)
        json_object_set_new(j, "decoder", stack_to_json(&a->stack[STACK_DEC]));
    if (a->stack[STACK_ENC].present)
        json_object_set_new(j, "encoder", stack_to_json(&a->stack[STACK_ENC]));
    if (a->source_config)
        json_object_set_new(j, "source_config", json_string(a->source_config));
    return j;
}

/* ---- reading ------------------------------------------------------------------------------------------------------ */

static enum code integer_read(const json_t *j, const char *where, const char *key, int64_t *out)
{
    return json_need_i64(j, where, key, INT32_MIN, INT32_MAX, out);
}

static enum code reals_read(const json_t *j, const char *where, const char *key, int64_t n, double **out)
{
    const json_t *list = json_object_get(j, key);
    if (!list)
        return OK;
    if (!json_is_array(list) || (int64_t)json_array_size(list) != n)
        return fail(ERR_INPUT, "%s: \"%s\" must be a list of %lld numbers", where, key, (long long)n);
    *out = malloc((size_t)(n ? n : 1) * sizeof **out);
    if (!*out)
        return fail(ERR_MEMORY, "%s: out of memory for \"%s\"", where, key);
    for (int64_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(list, (size_t)i);
        if (!json_is_number(v))
            return fail(ERR_INPUT, "%s: \"%s\" must be a list of %lld numbers", where, key, (long long)n);
        (*out)[i] = json_number_value(v);
    }
    return OK;
}

static enum code rope_from_json(struct arch_rope *r, const json_t *j, const char *where)
{
    int kind;
    if (!json_is_object(j))
        return fail(ERR_INPUT, "%s: \"rope\" is missing or no object", where);
    TRY(word_read(j, where, "kind", ROPES, &kind));
    r->kind = (enum rope_kind)kind;
    TRY(integer_read(j, where, "dims", &r->dims));
    TRY(integer_read(j, where, "original_max_positions", &r->original_max_positions));
#define GET(name) TRY(json_need_f64(j, where, #name, &r->name));
    ROPE_REALS(GET)
#undef GET
    if (r->dims < 0)
        return fail(ERR_INPUT, "%s: \"dims\" of \"rope\" is negative", where);
    TRY(reals_read(j, where, "long_factor", r->dims / 2, &r->long_factor));
    return reals_read(j, where, "short_factor", r->dims / 2, &r->short_factor);
}

static enum code dilation_read(struct arch_block *b, const json_t *list, const char *where)
{
    if (!list)
        return OK;
    if (!json_is_array(list) || (int64_t)json_array_size(list) != b->H)
        return fail(ERR_INPUT, "%s: \"dilation\" must be a list of %lld integers", where, (long long)b->H);
    b->dilation = calloc((size_t)(b->H ? b->H : 1), sizeof *b->dilation);
    if (!b->dilation)
        return fail(ERR_MEMORY, "%s: out of memory for \"dilation\"", where);
    for (int64_t h = 0; h < b->H; h++) {
        json_int_t v = json_integer_value(json_array_get(list, (size_t)h));
        if (v < 1 || v > INT32_MAX)
            return fail(ERR_INPUT, "%s: \"dilation\" must be a list of positive integers", where);
        b->dilation[h] = (int32_t)v;
    }
    return OK;
}

static enum code stack_from_json(struct arch_stack *s, const json_t *j, const char *where)
{
    const json_t *blocks = json_object_get(j, "blocks");
    s->causal = json_is_true(json_object_get(j, "causal"));
    for (int64_t l = 0; l < s->L; l++) {
        struct arch_block *b = &s->block[l];
        const json_t *block = json_array_get(blocks, (size_t)l);
        int64_t v;
#define GET(name)                                 \
    TRY(integer_read(block, where, #name, &v));   \
    b->name = (__typeof__(b->name))v;
        BLOCK_INTEGERS(GET)
#undef GET
        TRY(json_want_f64(block, where, "scale", &b->scale));
        TRY(dilation_read(b, json_object_get(block, "dilation"), where));
    }
    return OK;
}

static enum code fields_from_json(struct arch *a, const json_t *j, const char *where)
{
    const char *text;
    int word;
    int64_t v;
    TRY(json_need_str(j, where, "family", &text));
    if (strlen(text) >= sizeof a->family)
        return fail(ERR_INPUT, "%s: \"family\" is longer than %zu bytes", where, sizeof a->family - 1);
    snprintf(a->family, sizeof a->family, "%s", text);
#define GET(name)                             \
    TRY(integer_read(j, where, #name, &v));   \
    a->name = (__typeof__(a->name))v;
    ARCH_INTEGERS(GET)
#undef GET
#define GET(name) TRY(json_need_f64(j, where, #name, &a->name));
    ARCH_REALS(GET)
#undef GET
#define GET(member, words)                              \
    TRY(word_read(j, where, #member, words, &word));    \
    a->member = (__typeof__(a->member))word;
    GET(norm, NORMS)
    GET(norm_place, NORM_PLACES)
    GET(residual, RESIDUALS)
    GET(pos, POSITIONS)
    GET(mlp, MLPS)
    GET(qk_norm, QK_NORMS)
#undef GET
    TRY(json_need_str(j, where, "dtype", &text));
    a->dtype = dtype_parse(text);
    if (a->dtype != DT_F32 && a->dtype != DT_BF16 && a->dtype != DT_F16 && a->dtype != DT_F64)
        return fail(ERR_INPUT, "%s: \"dtype\" holds the unknown word \"%.40s\"", where, text);
    const json_t *bias = json_object_get(j, "bias");
    if (!json_is_array(bias))
        return fail(ERR_INPUT, "%s: \"bias\" must be a list of words", where);
    for (size_t i = 0; i < json_array_size(bias); i++) {
        const struct word *w = BIASES;
        text = json_string_value(json_array_get(bias, i));
        while (w->name && (!text || strcmp(w->name, text)))
            w++;
        if (!w->name)
            return fail(ERR_INPUT, "%s: \"bias\" holds an unknown word", where);
        a->bias |= (unsigned)w->value;
    }
    text = NULL;
    TRY(json_want_str(j, where, "source_config", &text));
    if (text && !(a->source_config = strdup(text)))
        return fail(ERR_MEMORY, "%s: out of memory for \"source_config\"", where);
    return OK;
}

static enum code body_from_json(struct arch *a, const json_t *j, const char *where)
{
    TRY(fields_from_json(a, j, where));
    if (a->pos == POS_ROPE)
        TRY(rope_from_json(&a->rope, json_object_get(j, "rope"), where));
    TRY(stack_from_json(&a->stack[STACK_DEC], json_object_get(j, "decoder"), where));
    const json_t *enc = json_object_get(j, "encoder");
    if (enc) {
        struct arch_stack *s = &a->stack[STACK_ENC];
        s->L = (int64_t)json_array_size(json_object_get(enc, "blocks"));
        s->block = calloc((size_t)(s->L ? s->L : 1), sizeof *s->block);
        if (!s->block)
            return fail(ERR_MEMORY, "%s: out of memory for the encoder", where);
        s->present = 1;
        TRY(stack_from_json(s, enc, where));
    }
    return arch_check(a, where);
}

enum code arch_from_json(struct arch *a, const json_t *j, const char *where)
{
    const json_t *blocks = json_object_get(json_object_get(j, "decoder"), "blocks");
    memset(a, 0, sizeof *a);
    if (!json_is_array(blocks))
        return fail(ERR_INPUT, "%s: \"decoder\" with its \"blocks\" is missing", where);
    enum code c = arch_init(a, (int64_t)json_array_size(blocks));
    if (c == OK)
        c = body_from_json(a, j, where);
    if (c != OK)
        arch_free(a);
    return c;
}
