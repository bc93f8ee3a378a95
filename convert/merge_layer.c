/* One attention layer in memory: its tensors in one piece, read from a checkpoint in f64. */
#include "merge.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct { enum tensor_slot slot; const char *name; } SLOTS[] = {
    {T_Q_W, "attn.q.w"}, {T_K_W, "attn.k.w"}, {T_V_W, "attn.v.w"}, {T_O_W, "attn.o.w"}, {T_Q_B, "attn.q.b"},
    {T_K_B, "attn.k.b"}, {T_V_B, "attn.v.b"}, {T_Q_NORM_W, "attn.q_norm.w"}, {T_K_NORM_W, "attn.k_norm.w"},
};
enum { N_SLOTS = sizeof SLOTS / sizeof *SLOTS };

static double **place(struct attention_layer *a, enum tensor_slot slot)
{
    switch (slot) {
    case T_Q_W: return &a->q;
    case T_K_W: return &a->k;
    case T_V_W: return &a->v;
    case T_O_W: return &a->o;
    case T_Q_B: return &a->q_bias;
    case T_K_B: return &a->k_bias;
    case T_V_B: return &a->v_bias;
    case T_Q_NORM_W: return &a->q_norm;
    case T_K_NORM_W: return &a->k_norm;
    default: return NULL;
    }
}

static int64_t elements(const struct attention_layer *a, enum tensor_slot slot)
{
    switch (slot) {
    case T_Q_W: case T_O_W: return a->H * a->D * a->C;
    case T_K_W: case T_V_W: return a->G * a->D * a->C;
    case T_Q_B: return a->H * a->D;
    case T_K_B: case T_V_B: return a->G * a->D;
    case T_Q_NORM_W: return a->qk_norm == QK_NORM_HEAD ? a->D : a->H * a->D;
    case T_K_NORM_W: return a->qk_norm == QK_NORM_HEAD ? a->D : a->G * a->D;
    default: return 0;
    }
}

static int present(const struct arch *a, enum tensor_slot slot)
{
    switch (slot) {
    case T_Q_B: return (a->bias & BIAS_Q) != 0;
    case T_K_B: return (a->bias & BIAS_K) != 0;
    case T_V_B: return (a->bias & BIAS_V) != 0;
    case T_Q_NORM_W: case T_K_NORM_W: return a->qk_norm != QK_NORM_NONE;
    default: return 1;
    }
}

double *attention_layer_tensor(const struct attention_layer *a, const char *name, int64_t *n)
{
    struct attention_layer copy = *a;
    const char *attn = strstr(name, "attn.");
    *n = 0;
    for (int i = 0; attn && i < N_SLOTS; i++)
        if (!strcmp(attn, SLOTS[i].name)) {
            double *p = *place(&copy, SLOTS[i].slot);
            *n = p ? elements(a, SLOTS[i].slot) : 0;
            return p;
        }
    return NULL;
}

static void describe(struct attention_layer *a, const struct arch *arch, int64_t layer, int64_t G)
{
    const struct arch_block *b = &arch->stack[STACK_DEC].block[layer];
    *a = (struct attention_layer){.layer = layer, .C = arch->C, .D = b->D, .H = b->H, .G = G ? G : b->G, .qk_norm = arch->qk_norm};
    a->rotary = arch->pos == POS_ROPE ? arch->rope.dims : 0;
    a->norm_rms = arch->norm == NORM_RMS || arch->norm == NORM_RMS1P;
    a->fixed_heads = arch->pos == POS_ALIBI || arch->pos == POS_REL_BIAS || b->dilation != NULL;
}

static int64_t total(const struct attention_layer *a, const struct arch *arch)
{
    int64_t n = 0;
    for (int i = 0; i < N_SLOTS; i++)
        n += present(arch, SLOTS[i].slot) ? elements(a, SLOTS[i].slot) : 0;
    return n;
}

enum code attention_layer_new(struct attention_layer *a, const struct arch *arch, int64_t layer, int64_t G)
{
    const struct arch_block *b = &arch->stack[STACK_DEC].block[layer];
    if (b->Dv != b->D)
        return fail(ERR_UNSUPPORTED, "layer %lld: a value width %lld other than the head width %lld is not supported", (long long)layer,
                    (long long)b->Dv, (long long)b->D);
    describe(a, arch, layer, G);
    double *at = calloc((size_t)total(a, arch), sizeof *at);
    if (!at)
        return fail(ERR_MEMORY, "out of memory for layer %lld's attention", (long long)layer);
    a->memory = at;
    for (int i = 0; i < N_SLOTS; i++)
        if (present(arch, SLOTS[i].slot)) {
            *place(a, SLOTS[i].slot) = at;
            at += elements(a, SLOTS[i].slot);
        }
    return OK;
}

void attention_layer_free(struct attention_layer *a)
{
    free(a->memory);
    *a = (struct attention_layer){0};
}

static enum code read_tensor(struct checkpoint *ck, int64_t layer, const char *name, double *to, int64_t n)
{
    char canonical[64];
    snprintf(canonical, sizeof canonical, "dec.%lld.%s", (long long)layer, name);
    const struct ckpt_tensor *t = ckpt_find(ck, canonical);
    if (!t)
        return fail(ERR_INTERNAL, "%s: tensor %s is missing", ckpt_path(ck), canonical);
    int64_t width = t->nd == 2 ? t->n[1] : 1;
    CHECK(t->n[0] * width == n);
    TRY(ckpt_read(ck, t, 0, t->n[0], to, DT_F64));
    size_t bad = count_nonfinite(to, DT_F64, (size_t)n);
    if (bad)
        return fail(ERR_INPUT, "%s: tensor %s has %zu non-finite values; merging would spread them. Repair the source first", ckpt_path(ck),
                    t->source && *t->source ? t->source : t->name, bad);
    return OK;
}

enum code attention_layer_read(struct attention_layer *a, struct checkpoint *ck, int64_t layer)
{
    TRY(attention_layer_new(a, ckpt_arch(ck), layer, 0));
    for (int i = 0; i < N_SLOTS; i++) {
        int64_t n;
        double *to = attention_layer_tensor(a, SLOTS[i].name, &n);
        enum code c = to ? read_tensor(ck, layer, SLOTS[i].name, to, n) : OK;
        if (c != OK) {
            attention_layer_free(a);
            return c;
        }
    }
    return OK;
}

/* E[(n; 1)(n; 1)^T] of n = gain x + bias, x of variance 1 and uncorrelated. */
static void norm_moments(double *moments, const double *gain, const double *bias, int64_t C)
{
    int64_t n = C + 1;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            double mean = (i < C ? bias[i] : 1) * (j < C ? bias[j] : 1);
            moments[i * n + j] = mean + (i == j && i < C ? gain[i] * gain[i] : 0);
        }
}

enum code merge_input_guess(double **moments, struct checkpoint *ck, int64_t layer)
{
    const struct arch *a = ckpt_arch(ck);
    char name[2][64];
    *moments = NULL;
    for (int i = 0; i < 2; i++)
        snprintf(name[i], sizeof name[i], "dec.%lld.attn_norm.%s", (long long)layer, i ? "b" : "w");
    if (a->norm_place != NORM_PRE || !ckpt_find(ck, name[0]))
        return OK;
    int64_t C = a->C;
    double *values = calloc((size_t)(2 * C), sizeof *values);
    *moments = malloc((size_t)((C + 1) * (C + 1)) * sizeof **moments);
    enum code c = values && *moments ? OK : fail(ERR_MEMORY, "out of memory for the moments of %lld features", (long long)C);
    if (c == OK)
        c = read_tensor(ck, layer, "attn_norm.w", values, C);
    for (int64_t i = 0; c == OK && a->norm == NORM_RMS1P && i < C; i++)
        values[i] += 1;
    if (c == OK && ckpt_find(ck, name[1]))
        c = read_tensor(ck, layer, "attn_norm.b", values + C, C);
    if (c == OK)
        norm_moments(*moments, values, values + C, C);
    free(values);
    return c;
}

int64_t merge_bytes(const struct arch *arch, int64_t layer, int64_t G)
{
    struct attention_layer from, to;
    describe(&from, arch, layer, 0);
    describe(&to, arch, layer, G);
    int64_t heads = from.G * from.D, row = arch->C + 1;
    /* Moments: k's and v's over all heads, the weights, the input's, and what the decomposition of one group takes. */
    int64_t moments = 2 * heads * heads + 2 * heads * from.D + row * row + heads * row, m = from.G / (G ? G : from.G), group = m * from.D;
    return (int64_t)sizeof(double) * (total(&from, arch) + total(&to, arch) + moments + 6 * group * group);
}
