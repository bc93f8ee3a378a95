/* Metadata of a GGUF file: general.* and what llama.cpp reads to build the graph (src/llama-model.cpp, load_hparams), under the
 * prefix of the architecture. Rotary scaling: linear and YaRN (Peng et al. 2023) are numbers; llama3's and LongRoPE's (Ding et al.
 * 2024) are divisors of the frequencies theta^(-2i/r), stored as tensors. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gguf.h"
#include "gguf_write.h"

struct keys { struct gguf_buffer *b; const char *prefix; char text[96]; };

static const char *key(struct keys *k, const char *name)
{
    snprintf(k->text, sizeof k->text, "%s.%s", k->prefix, name);
    return k->text;
}

static void number(struct keys *k, const char *name, int64_t v)
{
    CHECK(v >= 0 && v <= UINT32_MAX);
    gguf_put_u32(k->b, key(k, name), (uint32_t)v);
}

static void real(struct keys *k, const char *name, double v) { gguf_put_f32(k->b, key(k, name), v); }

static uint32_t file_type(enum dtype t) { return t == DT_F32 ? 0 : t == DT_F16 ? 1 : 32; }

/* One number, or one for each layer where they differ. */
static void kv_heads(struct keys *k, const struct arch *a)
{
    const struct arch_stack *s = &a->stack[STACK_DEC];
    uint32_t *G = gguf_layers_differ(a) ? malloc((size_t)s->L * sizeof *G) : NULL;
    if (!gguf_layers_differ(a)) {
        number(k, "attention.head_count_kv", s->block[0].G);
        return;
    }
    k->b->failed |= !G;
    for (int64_t l = 0; G && l < s->L; l++)
        G[l] = (uint32_t)s->block[l].G;
    if (G)
        gguf_put_u32s(k->b, key(k, "attention.head_count_kv"), G, (size_t)s->L);
    free(G);
}

/* Only for architectures that have windows: others would ignore them. */
static void windows(struct keys *k, const struct arch *a)
{
    const struct arch_stack *s = &a->stack[STACK_DEC];
    unsigned char *pattern = malloc((size_t)s->L);
    int64_t window = 0;
    k->b->failed |= !pattern;
    for (int64_t l = 0; pattern && l < s->L; l++) {
        pattern[l] = s->block[l].window > 0;
        window = s->block[l].window > 0 ? s->block[l].window : window;
    }
    if (pattern && window) {
        number(k, "attention.sliding_window", window);
        gguf_put_bools(k->b, key(k, "attention.sliding_window_pattern"), pattern, (size_t)s->L);
    }
    free(pattern);
}

static void rope(struct keys *k, const struct arch *a)
{
    const struct arch_rope *r = &a->rope;
    number(k, "rope.dimension_count", r->dims);
    real(k, "rope.freq_base", r->theta);
    switch (r->kind) {
    case ROPE_LINEAR:
        gguf_put_text(k->b, key(k, "rope.scaling.type"), "linear");
        real(k, "rope.scaling.factor", r->factor);
        break;
    case ROPE_YARN:
        gguf_put_text(k->b, key(k, "rope.scaling.type"), "yarn");
        real(k, "rope.scaling.factor", r->factor);
        number(k, "rope.scaling.original_context_length", r->original_max_positions);
        if (r->factor > 1) /* llama.cpp multiplies by 0.1 ln s + 1 itself */
            real(k, "rope.scaling.attn_factor", r->attention_factor / (0.1 * log(r->factor) + 1));
        break;
    case ROPE_LONGROPE:
        gguf_put_text(k->b, key(k, "rope.scaling.type"), "longrope");
        number(k, "rope.scaling.original_context_length", r->original_max_positions);
        real(k, "rope.scaling.attn_factor", r->attention_factor);
        break;
    case ROPE_DEFAULT: case ROPE_DYNAMIC: case ROPE_LLAMA3: /* "none" would forbid scaling on llama.cpp's command line too */
        break;
    }
}

void gguf_meta(struct gguf_buffer *b, const struct gguf_row *row, const struct arch *a, enum dtype type)
{
    struct keys k = {b, row->name, ""};
    const struct arch_stack *s = &a->stack[STACK_DEC];
    const struct arch_block *first = &s->block[0];
    int rms = a->norm == NORM_RMS || a->norm == NORM_RMS1P;
    gguf_put_text(b, "general.architecture", row->name);
    gguf_put_text(b, "general.type", "model");
    gguf_put_u32(b, "general.file_type", file_type(type));
    gguf_put_u32(b, "general.quantization_version", 2);
    gguf_put_u32(b, "general.alignment", GGUF_ALIGNMENT);
    number(&k, "context_length", a->max_positions);
    number(&k, "embedding_length", a->C);
    number(&k, "block_count", s->L);
    number(&k, "feed_forward_length", first->F);
    number(&k, "vocab_size", a->V);
    number(&k, "attention.head_count", first->H);
    kv_heads(&k, a);
    number(&k, "attention.key_length", first->D);
    number(&k, "attention.value_length", first->Dv);
    real(&k, rms ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon", a->norm_eps);
    if (a->pos == POS_ROPE)
        rope(&k, a);
    if (row->traits & GGUF_PARALLEL_KEY)
        gguf_put_bool(b, key(&k, "use_parallel_residual"), a->residual != RESIDUAL_SEQUENTIAL);
    if (row->traits & GGUF_ALIBI_MAX)
        real(&k, "attention.max_alibi_bias", a->pos == POS_ALIBI ? a->alibi_bias_max : 0);
    if (row->traits & GGUF_CLIP && a->clip_qkv > 0)
        real(&k, "attention.clamp_kqv", a->clip_qkv);
    if (row->traits & GGUF_WINDOWS)
        windows(&k, a);
}

/* ---- divisors of the rotary frequencies ----------------------------------------------------------------------------- */

static enum code extra_add(struct gguf_extra *extras, int *n, const char *name, int64_t count, const char *where)
{
    struct gguf_extra *e = &extras[*n];
    e->name = name;
    e->n = count;
    e->values = malloc((size_t)count * sizeof *e->values);
    if (!e->values)
        return fail(ERR_MEMORY, "%s: out of memory for %s", where, name);
    ++*n;
    return OK;
}

/* Llama 3: wavelengths below P / high stay, those above P / low grow by the factor, between them the frequencies are blended. */
static double llama3_divisor(const struct arch_rope *r, int64_t i)
{
    double P = (double)r->original_max_positions, low = r->low_freq_factor, high = r->high_freq_factor;
    double wavelength = 2 * 3.14159265358979323846 * pow(r->theta, 2.0 * (double)i / (double)r->dims);
    if (wavelength < P / high)
        return 1;
    if (wavelength > P / low)
        return r->factor;
    double blend = (P / wavelength - low) / (high - low);
    return 1 / ((1 - blend) / r->factor + blend);
}

enum code gguf_extras(const struct arch *a, struct gguf_extra extras[2], int *n, const char *where)
{
    const struct arch_rope *r = &a->rope;
    int64_t half = r->dims / 2;
    *n = 0;
    if (a->pos != POS_ROPE || (r->kind != ROPE_LLAMA3 && r->kind != ROPE_LONGROPE))
        return OK;
    if (r->kind == ROPE_LLAMA3) {
        TRY(extra_add(extras, n, "rope_freqs.weight", half, where));
        for (int64_t i = 0; i < half; i++)
            extras[0].values[i] = (float)llama3_divisor(r, i);
        return OK;
    }
    TRY(extra_add(extras, n, "rope_factors_long.weight", half, where));
    TRY(extra_add(extras, n, "rope_factors_short.weight", half, where));
    for (int64_t i = 0; i < half; i++) {
        extras[0].values[i] = (float)r->long_factor[i];
        extras[1].values[i] = (float)r->short_factor[i];
    }
    return OK;
}
