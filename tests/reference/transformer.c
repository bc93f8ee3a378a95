/* See transformer.h. Head h reads K/V head h * G / H (integer division). Weights are [out, in]. */
#include "transformer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double *doubles(int64_t n)
{
    double *p = calloc((size_t)(n > 0 ? n : 1), sizeof *p);
    CHECK(p);
    return p;
}

void reference_model_init(struct reference_model *m, const struct arch *arch)
{
    struct tensor_spec *specs;
    m->arch = arch;
    CHECK(arch_tensors(arch, &specs, &m->count) == OK);
    m->tensor = calloc((size_t)m->count, sizeof *m->tensor);
    CHECK(m->tensor);
    for (int i = 0; i < m->count; i++) {
        memcpy(m->tensor[i].name, specs[i].name, sizeof m->tensor[i].name);
        m->tensor[i].n = specs[i].n[0] * specs[i].n[1];
        m->tensor[i].p = doubles(m->tensor[i].n);
    }
    free(specs);
}

void reference_model_free(struct reference_model *m)
{
    for (int i = 0; i < m->count; i++)
        free(m->tensor[i].p);
    free(m->tensor);
    m->tensor = NULL;
    m->count = 0;
}

double *reference_tensor(const struct reference_model *m, const char *name)
{
    for (int i = 0; i < m->count; i++)
        if (!strcmp(m->tensor[i].name, name))
            return m->tensor[i].p;
    return NULL;
}

void reference_model_fill(struct reference_model *m, uint64_t seed)
{
    for (int i = 0; i < m->count; i++) {
        struct reference_tensor *t = &m->tensor[i];
        int norm_weight = strstr(t->name, "norm.w") != NULL, bias = t->name[strlen(t->name) - 1] == 'b';
        double size = norm_weight ? 0.2 : bias ? 0.3 : strstr(t->name, "proj") ? 0.25 : strstr(t->name, "embed") || strstr(t->name, "pos") ? 1.0 : 0.25;
        double centre = norm_weight && m->arch->norm != NORM_RMS1P ? 1.0 : 0.0;
        for (int64_t k = 0; k < t->n; k++) {
            float x;
            random_normal_f32(&x, 1, k, 1.0f, seed, STREAM_TEST + (uint64_t)i + 100, 0);
            t->p[k] = (double)(float)(centre + size * (double)x); /* a float, so that both models hold the same value */
        }
    }
}

static const double *layer_tensor(const struct reference_model *m, int64_t l, const char *name)
{
    char full[96];
    snprintf(full, sizeof full, "dec.%lld.%s", (long long)l, name);
    return reference_tensor(m, full);
}

/* A norm of the arch's kind over n numbers; y may be x. */
static void norm(const struct reference_model *m, double *y, const double *x, const double *w, const double *b, int64_t n)
{
    double mean = 0.0, square = 0.0;
    int centred = m->arch->norm == NORM_LAYER || m->arch->norm == NORM_LAYER_NOP;
    for (int64_t c = 0; centred && c < n; c++)
        mean += x[c] / (double)n;
    for (int64_t c = 0; c < n; c++)
        square += (x[c] - mean) * (x[c] - mean) / (double)n;
    for (int64_t c = 0; c < n; c++) {
        double z = (x[c] - mean) / sqrt(square + m->arch->norm_eps);
        y[c] = z * (m->arch->norm == NORM_RMS1P ? 1.0 + w[c] : w ? w[c] : 1.0) + (b ? b[c] : 0.0);
    }
}

/* The norms of T rows, weights by the norm's name: "attn_norm", "mlp_norm". */
static void layer_norm_rows(const struct reference_model *m, int64_t l, const char *name, int64_t T, double *y, const double *x)
{
    char w[32], b[32];
    snprintf(w, sizeof w, "%s.w", name);
    snprintf(b, sizeof b, "%s.b", name);
    for (int64_t t = 0; t < T; t++)
        norm(m, y + t * m->arch->C, x + t * m->arch->C, layer_tensor(m, l, w), layer_tensor(m, l, b), m->arch->C);
}

static void linear(double *y, const double *w, const double *b, const double *x, int64_t out, int64_t in)
{
    for (int64_t o = 0; o < out; o++) {
        double sum = b ? b[o] : 0.0;
        for (int64_t i = 0; i < in; i++)
            sum += w[o * in + i] * x[i];
        y[o] = sum;
    }
}

/* Only the plain kind: the scaled kinds have a test of their own against published formulas. */
static void rotate(const struct arch *a, double *head, int32_t position)
{
    int64_t half = a->rope.dims / 2;
    for (int64_t i = 0; i < half; i++) {
        double angle = (double)position / pow(a->rope.theta, (double)(2 * i) / (double)a->rope.dims);
        double x = head[i], y = head[i + half];
        head[i] = x * cos(angle) - y * sin(angle);
        head[i + half] = x * sin(angle) + y * cos(angle);
    }
}

static double activation(enum mlp_kind k, double x)
{
    switch (k) {
    case MLP_SWIGLU: return x / (1.0 + exp(-x));
    case MLP_GEGLU_ERF: case MLP_GELU_ERF: return 0.5 * x * (1.0 + erf(x / sqrt(2.0)));
    case MLP_GEGLU_TANH: case MLP_GELU_TANH: return 0.5 * x * (1.0 + tanh(sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
    case MLP_RELU: return x > 0.0 ? x : 0.0;
    }
    return (double)NAN;
}

/* Press et al. 2022; their code's recursion for a number of heads that is no power of two, generalised to bias_max. */
static double alibi_slope(const struct arch *a, int64_t H, int64_t h)
{
    int64_t n = 1;
    while (n * 2 <= H)
        n *= 2;
    double start = pow(2.0, -a->alibi_bias_max / (double)n), between = sqrt(start);
    return h < n ? pow(start, (double)(h + 1)) : pow(between, (double)(2 * (h - n) + 1));
}

static void attend_row(const struct arch *a, const struct arch_block *b, double *out, const double *q, const double *k, const double *v,
                       int64_t t, const int32_t *segment)
{
    double *p = doubles(t + 1), scale = b->scale > 0.0 ? b->scale : a->attn_scale;
    for (int64_t h = 0; h < b->H; h++) {
        int64_t g = h * b->G / b->H;
        double top = -HUGE_VAL, sum = 0.0, slope = a->pos == POS_ALIBI ? alibi_slope(a, b->H, h) : 0.0;
        for (int64_t s = 0; s <= t; s++) {
            int visible = (!segment || segment[s] == segment[t]) && (b->window == 0 || t - s < b->window);
            double dot = 0.0, bias = slope * (double)(s - t);
            for (int64_t d = 0; visible && d < b->D; d++)
                dot += q[(t * b->H + h) * b->D + d] * k[(s * b->G + g) * b->D + d];
            p[s] = !visible ? -HUGE_VAL : a->alibi_scaled ? (dot + bias) * scale : dot * scale + bias;
            top = fmax(top, p[s]);
        }
        for (int64_t s = 0; s <= t; s++)
            sum += p[s] = exp(p[s] - top);
        for (int64_t d = 0; d < b->D; d++) {
            double o = 0.0;
            for (int64_t s = 0; s <= t; s++)
                o += p[s] / sum * v[(s * b->G + g) * b->D + d];
            out[h * b->D + d] = o;
        }
    }
    free(p);
}

static void clip(const struct arch *a, double *x, int64_t n)
{
    for (int64_t i = 0; a->clip_qkv > 0.0 && i < n; i++)
        x[i] = fmin(fmax(x[i], -a->clip_qkv), a->clip_qkv);
}

/* The norm of a row of queries (or keys): `heads` of them. */
static void qk_norm(const struct reference_model *m, double *x, const double *w, int64_t heads, int64_t D)
{
    enum qk_norm_kind kind = m->arch->qk_norm;
    if (kind == QK_NORM_FULL)
        norm(m, x, x, w, NULL, heads * D);
    for (int64_t h = 0; (kind == QK_NORM_HEAD || kind == QK_NORM_PER_HEAD) && h < heads; h++)
        norm(m, x + h * D, x + h * D, kind == QK_NORM_PER_HEAD ? w + h * D : w, NULL, D);
}

/* One projection of T rows, as attention reads it: "attn.q", "attn.k" or "attn.v". */
static double *projection(const struct reference_model *m, int64_t l, const char *name, int64_t heads, int64_t T, const double *x,
                          const int32_t *positions)
{
    const struct arch *a = m->arch;
    int64_t D = a->stack[STACK_DEC].block[l].D, C = a->C;
    char w[32], b[32], weight[32];
    double *y = doubles(T * heads * D);
    snprintf(w, sizeof w, "%s.w", name);
    snprintf(b, sizeof b, "%s.b", name);
    snprintf(weight, sizeof weight, "%s_norm.w", name);
    for (int64_t t = 0; t < T; t++) {
        double *row = y + t * heads * D;
        linear(row, layer_tensor(m, l, w), layer_tensor(m, l, b), x + t * C, heads * D, C);
        clip(a, row, heads * D);
        if (!strcmp(name, "attn.v"))
            continue;
        qk_norm(m, row, layer_tensor(m, l, weight), heads, D);
        for (int64_t h = 0; a->pos == POS_ROPE && h < heads; h++)
            rotate(a, row + h * D, positions ? positions[t] : (int32_t)t);
    }
    return y;
}

/* y = attention(x), T rows of C. */
static void attention(const struct reference_model *m, int64_t l, int64_t T, double *y, const double *x, const int32_t *positions,
                      const int32_t *segments)
{
    const struct arch_block *b = &m->arch->stack[STACK_DEC].block[l];
    double *q = projection(m, l, "attn.q", b->H, T, x, positions), *k = projection(m, l, "attn.k", b->G, T, x, positions);
    double *v = projection(m, l, "attn.v", b->G, T, x, positions), *o = doubles(b->H * b->D);
    for (int64_t t = 0; t < T; t++) {
        attend_row(m->arch, b, o, q, k, v, t, segments);
        linear(y + t * m->arch->C, layer_tensor(m, l, "attn.o.w"), layer_tensor(m, l, "attn.o.b"), o, m->arch->C, b->H * b->D);
    }
    free(q), free(k), free(v), free(o);
}

/* y = MLP(x), T rows of C. */
static void mlp(const struct reference_model *m, int64_t l, int64_t T, double *y, const double *x)
{
    const struct arch *a = m->arch;
    int64_t C = a->C, F = a->stack[STACK_DEC].block[l].F;
    double *gate = doubles(F), *up = doubles(F);
    for (int64_t t = 0; t < T; t++) {
        linear(up, layer_tensor(m, l, "mlp.up.w"), layer_tensor(m, l, "mlp.up.b"), x + t * C, F, C);
        if (mlp_is_gated(a->mlp))
            linear(gate, layer_tensor(m, l, "mlp.gate.w"), layer_tensor(m, l, "mlp.gate.b"), x + t * C, F, C);
        for (int64_t f = 0; f < F; f++)
            up[f] = mlp_is_gated(a->mlp) ? activation(a->mlp, gate[f]) * up[f] : activation(a->mlp, up[f]);
        linear(y + t * C, layer_tensor(m, l, "mlp.down.w"), layer_tensor(m, l, "mlp.down.b"), up, C, F);
    }
    free(gate), free(up);
}

/* x += residual_scale y */
static void residual(const struct reference_model *m, int64_t T, double *x, const double *y)
{
    for (int64_t i = 0; i < T * m->arch->C; i++)
        x[i] += m->arch->residual_scale * y[i];
}

static void block(const struct reference_model *m, int64_t l, int64_t T, double *x, const int32_t *positions, const int32_t *segments)
{
    const struct arch *a = m->arch;
    int64_t C = a->C;
    double *n = doubles(T * C), *y = doubles(T * C), *z = doubles(T * C);
    if (a->residual != RESIDUAL_SEQUENTIAL) { /* x + attention(n1(x)) + mlp(n2(x)) */
        layer_norm_rows(m, l, "attn_norm", T, n, x);
        attention(m, l, T, y, n, positions, segments);
        layer_norm_rows(m, l, a->residual == RESIDUAL_PARALLEL_TWO_NORMS ? "mlp_norm" : "attn_norm", T, n, x);
        mlp(m, l, T, z, n);
        residual(m, T, x, y);
        residual(m, T, x, z);
    } else if (a->norm_place == NORM_PRE) { /* x + attention(n1(x)), then x + mlp(n2(x)) */
        layer_norm_rows(m, l, "attn_norm", T, n, x);
        attention(m, l, T, y, n, positions, segments);
        residual(m, T, x, y);
        layer_norm_rows(m, l, "mlp_norm", T, n, x);
        mlp(m, l, T, y, n);
        residual(m, T, x, y);
    } else if (a->norm_place == NORM_POST_SUBLAYER) { /* x + n1(attention(x)), then x + n2(mlp(x)) */
        attention(m, l, T, y, x, positions, segments);
        layer_norm_rows(m, l, "attn_norm", T, n, y);
        residual(m, T, x, n);
        mlp(m, l, T, y, x);
        layer_norm_rows(m, l, "mlp_norm", T, n, y);
        residual(m, T, x, n);
    } else { /* n1(x + attention(x)), then n2(x + mlp(x)) */
        attention(m, l, T, y, x, positions, segments);
        residual(m, T, x, y);
        layer_norm_rows(m, l, "attn_norm", T, x, x);
        mlp(m, l, T, y, x);
        residual(m, T, x, y);
        layer_norm_rows(m, l, "mlp_norm", T, x, x);
    }
    free(n), free(y), free(z);
}

/* The row of the residual stream that a token starts with. */
static void embedding(const struct reference_model *m, double *x, int32_t id, int64_t position)
{
    const struct arch *a = m->arch;
    int64_t C = a->C, E = a->embed_proj ? a->embed_proj : C;
    const double *row = reference_tensor(m, "embed.weight") + id * E, *table = reference_tensor(m, "pos.weight");
    if (a->embed_proj)
        linear(x, reference_tensor(m, "embed_proj_in.w"), NULL, row, C, E);
    for (int64_t c = 0; c < C; c++)
        x[c] = a->embed_scale * (a->embed_proj ? x[c] : row[c]) + (table ? table[(position + a->pos_offset) * C + c] : 0.0);
    if (a->embed_norm)
        norm(m, x, x, reference_tensor(m, "embed_norm.w"), reference_tensor(m, "embed_norm.b"), C);
}

/* The logits of one row of the residual stream, which is overwritten. */
static void head(const struct reference_model *m, double *logits, double *x)
{
    const struct arch *a = m->arch;
    int64_t C = a->C, E = a->embed_proj ? a->embed_proj : C;
    double *narrow = doubles(E);
    if (a->norm_place != NORM_POST_RESIDUAL)
        norm(m, x, x, reference_tensor(m, "dec.final_norm.w"), reference_tensor(m, "dec.final_norm.b"), C);
    if (a->embed_proj)
        linear(narrow, reference_tensor(m, "embed_proj_out.w"), NULL, x, E, C);
    linear(logits, reference_tensor(m, a->tied ? "embed.weight" : "head.w"), NULL, a->embed_proj ? narrow : x, a->V, E);
    for (int64_t v = 0; v < a->V; v++) {
        double z = a->logit_scale * logits[v] + (a->bias & BIAS_HEAD ? reference_tensor(m, "head.b")[v] : 0.0);
        logits[v] = a->logit_softcap > 0.0 ? a->logit_softcap * tanh(z / a->logit_softcap) : z;
    }
    free(narrow);
}

static void sequence_logits(const struct reference_model *m, int64_t T, const int32_t *ids, const int32_t *positions,
                            const int32_t *segments, double *logits)
{
    double *x = doubles(T * m->arch->C);
    for (int64_t t = 0; t < T; t++)
        embedding(m, x + t * m->arch->C, ids[t], positions ? positions[t] : t);
    for (int64_t l = 0; l < m->arch->stack[STACK_DEC].L; l++)
        block(m, l, T, x, positions, segments);
    for (int64_t t = 0; t < T; t++)
        head(m, logits + t * m->arch->V, x + t * m->arch->C);
    free(x);
}

void reference_logits(const struct reference_model *m, int64_t B, int64_t T, const int32_t *ids, const int32_t *positions,
                      const int32_t *segments, double *logits)
{
    for (int64_t b = 0; b < B; b++)
        sequence_logits(m, T, ids + b * T, positions ? positions + b * T : NULL, segments ? segments + b * T : NULL,
                        logits + b * T * m->arch->V);
}

double reference_loss(const struct reference_model *m, int64_t B, int64_t T, const int32_t *ids, const int32_t *positions,
                      const int32_t *segments, const int32_t *targets, double *logp)
{
    int64_t V = m->arch->V;
    double *logits = doubles(B * T * V), loss = 0.0;
    reference_logits(m, B, T, ids, positions, segments, logits);
    for (int64_t i = 0; i < B * T; i++) {
        double top = -HUGE_VAL, sum = 0.0, value = 0.0;
        for (int64_t v = 0; v < V; v++)
            top = fmax(top, logits[i * V + v]);
        for (int64_t v = 0; v < V; v++)
            sum += exp(logits[i * V + v] - top);
        if (targets[i] >= 0)
            value = logits[i * V + targets[i]] - top - log(sum);
        loss -= value;
        if (logp)
            logp[i] = value;
    }
    free(logits);
    return loss;
}
