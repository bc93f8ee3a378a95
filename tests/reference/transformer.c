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
        double size = norm_weight ? 0.2 : bias ? 0.3 : strstr(t->name, "embed") || strstr(t->name, "pos") ? 1.0 : 0.25;
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

static void norm(const struct reference_model *m, double *y, const double *x, const double *w, const double *b)
{
    int64_t C = m->arch->C;
    double mean = 0.0, square = 0.0;
    int centred = m->arch->norm == NORM_LAYER || m->arch->norm == NORM_LAYER_NOP;
    for (int64_t c = 0; centred && c < C; c++)
        mean += x[c] / (double)C;
    for (int64_t c = 0; c < C; c++)
        square += (x[c] - mean) * (x[c] - mean) / (double)C;
    for (int64_t c = 0; c < C; c++) {
        double z = (x[c] - mean) / sqrt(square + m->arch->norm_eps);
        y[c] = z * (m->arch->norm == NORM_RMS1P ? 1.0 + w[c] : w ? w[c] : 1.0) + (b ? b[c] : 0.0);
    }
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

static void attend_row(const struct arch *a, const struct arch_block *b, double *out, const double *q, const double *k, const double *v,
                       int64_t t, const int32_t *segment)
{
    double *p = doubles(t + 1);
    for (int64_t h = 0; h < b->H; h++) {
        int64_t g = h * b->G / b->H;
        double top = -HUGE_VAL, sum = 0.0;
        for (int64_t s = 0; s <= t; s++) {
            int visible = (!segment || segment[s] == segment[t]) && (b->window == 0 || t - s < b->window);
            p[s] = visible ? 0.0 : -HUGE_VAL;
            for (int64_t d = 0; visible && d < b->D; d++)
                p[s] += a->attn_scale * q[(t * b->H + h) * b->D + d] * k[(s * b->G + g) * b->D + d];
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

static void attention_block(const struct reference_model *m, int64_t l, int64_t T, double *x, const int32_t *positions, const int32_t *segments)
{
    const struct arch *a = m->arch;
    const struct arch_block *b = &a->stack[STACK_DEC].block[l];
    int64_t C = a->C, HD = b->H * b->D, GD = b->G * b->D;
    double *n = doubles(C), *q = doubles(T * HD), *k = doubles(T * GD), *v = doubles(T * GD), *o = doubles(HD), *y = doubles(C);
    for (int64_t t = 0; t < T; t++) {
        norm(m, n, x + t * C, layer_tensor(m, l, "attn_norm.w"), layer_tensor(m, l, "attn_norm.b"));
        linear(q + t * HD, layer_tensor(m, l, "attn.q.w"), layer_tensor(m, l, "attn.q.b"), n, HD, C);
        linear(k + t * GD, layer_tensor(m, l, "attn.k.w"), layer_tensor(m, l, "attn.k.b"), n, GD, C);
        linear(v + t * GD, layer_tensor(m, l, "attn.v.w"), layer_tensor(m, l, "attn.v.b"), n, GD, C);
        for (int64_t h = 0; a->pos == POS_ROPE && h < b->H; h++)
            rotate(a, q + t * HD + h * b->D, positions ? positions[t] : (int32_t)t);
        for (int64_t g = 0; a->pos == POS_ROPE && g < b->G; g++)
            rotate(a, k + t * GD + g * b->D, positions ? positions[t] : (int32_t)t);
    }
    for (int64_t t = 0; t < T; t++) {
        attend_row(a, b, o, q, k, v, t, segments);
        linear(y, layer_tensor(m, l, "attn.o.w"), layer_tensor(m, l, "attn.o.b"), o, C, HD);
        for (int64_t c = 0; c < C; c++)
            x[t * C + c] += a->residual_scale * y[c];
    }
    free(n), free(q), free(k), free(v), free(o), free(y);
}

static void mlp_block(const struct reference_model *m, int64_t l, int64_t T, double *x)
{
    const struct arch *a = m->arch;
    int64_t C = a->C, F = a->stack[STACK_DEC].block[l].F;
    double *n = doubles(C), *gate = doubles(F), *up = doubles(F), *y = doubles(C);
    for (int64_t t = 0; t < T; t++) {
        norm(m, n, x + t * C, layer_tensor(m, l, "mlp_norm.w"), layer_tensor(m, l, "mlp_norm.b"));
        linear(up, layer_tensor(m, l, "mlp.up.w"), layer_tensor(m, l, "mlp.up.b"), n, F, C);
        if (mlp_is_gated(a->mlp))
            linear(gate, layer_tensor(m, l, "mlp.gate.w"), layer_tensor(m, l, "mlp.gate.b"), n, F, C);
        for (int64_t f = 0; f < F; f++)
            up[f] = mlp_is_gated(a->mlp) ? activation(a->mlp, gate[f]) * up[f] : activation(a->mlp, up[f]);
        linear(y, layer_tensor(m, l, "mlp.down.w"), layer_tensor(m, l, "mlp.down.b"), up, C, F);
        for (int64_t c = 0; c < C; c++)
            x[t * C + c] += a->residual_scale * y[c];
    }
    free(n), free(gate), free(up), free(y);
}

static void sequence_logits(const struct reference_model *m, int64_t T, const int32_t *ids, const int32_t *positions,
                            const int32_t *segments, double *logits)
{
    const struct arch *a = m->arch;
    int64_t C = a->C;
    double *x = doubles(T * C), *n = doubles(C);
    const double *embed = reference_tensor(m, "embed.weight"), *table = reference_tensor(m, "pos.weight");
    const double *head = a->tied ? embed : reference_tensor(m, "head.w");
    for (int64_t t = 0; t < T; t++)
        for (int64_t c = 0; c < C; c++) {
            int64_t position = positions ? positions[t] : t;
            x[t * C + c] = a->embed_scale * embed[ids[t] * C + c] + (table ? table[(position + a->pos_offset) * C + c] : 0.0);
        }
    for (int64_t l = 0; l < a->stack[STACK_DEC].L; l++) {
        attention_block(m, l, T, x, positions, segments);
        mlp_block(m, l, T, x);
    }
    for (int64_t t = 0; t < T; t++) {
        norm(m, n, x + t * C, reference_tensor(m, "dec.final_norm.w"), reference_tensor(m, "dec.final_norm.b"));
        linear(logits + t * a->V, head, NULL, n, a->V, C);
        for (int64_t v = 0; v < a->V; v++) {
            double z = a->logit_scale * logits[t * a->V + v] + (a->bias & BIAS_HEAD ? reference_tensor(m, "head.b")[v] : 0.0);
            logits[t * a->V + v] = a->logit_softcap > 0.0 ? a->logit_softcap * tanh(z / a->logit_softcap) : z;
        }
    }
    free(x), free(n);
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
