/* Fitting the query projection of a converted layer to the original's attention scores, in two linear steps.
 *
 * 1. For each token t and head, the change d of the rotated query under which the scores against the new keys k_s come nearest to the
 *    original's, as the original's attention p_s weighs them (softmax ignores a constant, so both sides are centred under p):
 *
 *      min over d of  sum_s p_s (d . (k_s - k_mean) - (r_s - r_mean))^2 + mu |d|^2,    r_s = (original score - score now) / softmax scale
 *      (sum_s p_s k_s k_s^T - k_mean k_mean^T + mu) d = sum_s p_s r_s k_s - r_mean k_mean
 *
 *    mu a share of the mean variance of the sequence's keys: a token that sees one key only hardly moves.
 * 2. The changes are rotated back and regressed on the layer's input, as any other map (refit.c).
 *
 * The [D, D] systems of LANES tokens are made by one product: row s of Z holds k_s k_s^T (lower half), A = Z^T P^T; they are solved side
 * by side, one token per lane. Parallel over sequences and K/V heads; results do not depend on the number of threads. */
#include "calibrate_parts.h"

#include <cblas.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

enum { LANES = 32 };
#define QUERY_RIDGE 0.003f

static int64_t pairs(int64_t D) { return D * (D + 1) / 2; }

/* One thread's memory. */
struct work { float *z, *key_mean, *p, *pr, *now, *a, *b, *mean; };

static int64_t work_floats(int64_t T, int64_t D) { return T * pairs(D) + 3 * LANES * T + LANES * (pairs(D) + 2 * D) + D; }

static struct work work_at(float *base, int64_t T, int64_t D)
{
    struct work w;
    w.z = base;
    w.p = w.z + T * pairs(D);
    w.pr = w.p + LANES * T;
    w.now = w.pr + LANES * T;
    w.a = w.now + LANES * T;
    w.b = w.a + LANES * pairs(D);
    w.mean = w.b + LANES * D;
    w.key_mean = w.mean + LANES * D;
    return w;
}

/* One head of one sequence. Strides are in floats from token to token. */
struct head {
    const float *q0, *k0, *q1, *k1, *lse;
    const int32_t *segment;
    int64_t sq0, sk0, sq1, sk1, T, D, window; /* window 0: none */
    float scale, slope, mu;
    float *d; /* out, [T, stride] */
    int64_t stride;
};

/* Z, and the ridge from the keys' variance. */
static float keys_square(const struct work *w, const float *k, int64_t stride, int64_t T, int64_t D)
{
    double total = 0;
    for (int64_t i = 0; i < D; i++) {
        double sum = 0, square = 0;
        for (int64_t s = 0; s < T; s++) {
            double x = (double)k[s * stride + i];
            sum += x;
            square += x * x;
        }
        total += square / (double)T - sum / (double)T * (sum / (double)T);
    }
    for (int64_t s = 0; s < T; s++) {
        float *z = w->z + s * pairs(D);
        for (int64_t i = 0; i < D; i++)
            for (int64_t j = 0; j <= i; j++)
                *z++ = k[s * stride + i] * k[s * stride + j];
    }
    return (float)(total / (double)D) * QUERY_RIDGE;
}

/* p [rows, T] and p r, zero where query t does not see key s; S keys are looked at. */
static void weigh(const struct head *h, const struct work *w, int64_t t0, int64_t rows, int64_t S)
{
    for (int64_t i = 0; i < rows; i++) {
        int64_t t = t0 + i;
        float *p = w->p + i * h->T, *pr = w->pr + i * h->T, *now = w->now + i * h->T;
        for (int64_t s = 0; s < S; s++) {
            int sees = s <= t && h->segment[s] == h->segment[t] && (h->window == 0 || s > t - h->window);
            float score = p[s], r = (score - now[s]) / h->scale;
            p[s] = sees ? expf(score + h->slope * (float)(s - t) - h->lse[t]) : 0.0f;
            pr[s] = sees ? p[s] * r : 0.0f;
        }
    }
}

/* a [pair, lane] and b [D, lane] become the systems; b the right sides. */
static void center(const struct head *h, const struct work *w, int64_t rows, int64_t S)
{
    int64_t D = h->D;
    for (int64_t l = 0; l < LANES; l++) {
        double r = 0;
        for (int64_t s = 0; l < rows && s < S; s++)
            r += (double)w->pr[l * h->T + s];
        for (int64_t i = 0; i < D; i++)
            w->b[i * LANES + l] = l < rows ? w->b[i * LANES + l] - (float)r * w->mean[i * LANES + l] : 0.0f;
    }
    float *a = w->a;
    for (int64_t i = 0; i < D; i++)
        for (int64_t j = 0; j <= i; j++, a += LANES) {
            const float *x = w->mean + i * LANES, *y = w->mean + j * LANES;
#pragma omp simd
            for (int l = 0; l < LANES; l++)
                a[l] = l < rows ? a[l] - x[l] * y[l] + (i == j ? h->mu : 0.0f) : i == j ? 1.0f : 0.0f;
        }
}

/* x -= y * z by lane. */
static inline void take(float *x, const float *y, const float *z)
{
#pragma omp simd
    for (int l = 0; l < LANES; l++)
        x[l] -= y[l] * z[l];
}

static inline void scale_by(float *x, const float *y)
{
#pragma omp simd
    for (int l = 0; l < LANES; l++)
        x[l] *= y[l];
}

/* Cholesky, one system per lane; the diagonal holds its inverse. b becomes the solution. */
static void solve_lanes(float *a, float *b, int64_t D)
{
    for (int64_t i = 0; i < D; i++) {
        float *row = a + i * (i + 1) / 2 * LANES;
        for (int64_t j = 0; j <= i; j++) {
            const float *other = a + j * (j + 1) / 2 * LANES;
            float *x = row + j * LANES;
            for (int64_t k = 0; k < j; k++)
                take(x, row + k * LANES, other + k * LANES);
            if (j < i)
                scale_by(x, other + j * LANES);
        }
        float *x = row + i * LANES;
        for (int l = 0; l < LANES; l++) /* the ridge keeps it positive but for rounding */
            x[l] = x[l] > 1e-30f ? 1.0f / sqrtf(x[l]) : 0.0f;
        for (int64_t k = 0; k < i; k++)
            take(b + i * LANES, row + k * LANES, b + k * LANES);
        scale_by(b + i * LANES, x);
    }
    for (int64_t i = D - 1; i >= 0; i--) {
        scale_by(b + i * LANES, a + (i * (i + 1) / 2 + i) * LANES);
        for (int64_t k = 0; k < i; k++)
            take(b + k * LANES, a + (i * (i + 1) / 2 + k) * LANES, b + i * LANES);
    }
}

static void gemm(float *c, int64_t ldc, const float *a, int64_t lda, int ta, const float *b, int64_t ldb, int tb, int64_t m, int64_t n, int64_t k, float alpha)
{
    cblas_sgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, (int)m, (int)n, (int)k, alpha, a, (int)lda, b, (int)ldb,
                0.0f, c, (int)ldc);
}

static void head_changes(const struct head *h, const struct work *w)
{
    int64_t D = h->D, T = h->T;
    for (int64_t t0 = 0; t0 < T; t0 += LANES) {
        int64_t rows = T - t0 < LANES ? T - t0 : LANES, S = t0 + rows;
        gemm(w->p, T, h->q0 + t0 * h->sq0, h->sq0, 0, h->k0, h->sk0, 1, rows, S, D, h->scale);
        gemm(w->now, T, h->q1 + t0 * h->sq1, h->sq1, 0, h->k1, h->sk1, 1, rows, S, D, h->scale);
        weigh(h, w, t0, rows, S);
        gemm(w->a, LANES, w->z, pairs(D), 1, w->p, T, 1, pairs(D), rows, S, 1.0f);
        gemm(w->mean, LANES, h->k1, h->sk1, 1, w->p, T, 1, D, rows, S, 1.0f);
        gemm(w->b, LANES, h->k1, h->sk1, 1, w->pr, T, 1, D, rows, S, 1.0f);
        center(h, w, rows, S);
        solve_lanes(w->a, w->b, D);
        for (int64_t i = 0; i < rows; i++)
            for (int64_t d = 0; d < D; d++)
                h->d[(t0 + i) * h->stride + d] = w->b[d * LANES + i];
    }
}

/* Of one sequence and one K/V head of the result: all the queries that read it. */
static void group_changes(const struct calibrating *c, int64_t layer, const struct model_block_values *v0, const struct model_block_values *v1, float *d,
                          int64_t b, int64_t g, const struct work *w)
{
    const struct arch_block *from = &ckpt_arch(c->source)->stack[STACK_DEC].block[layer], *to = &c->to.stack[STACK_DEC].block[layer];
    int64_t T = c->t.length, D = to->D, R = to->H / to->G, R0 = from->H / from->G;
    const float *k1 = view_f32(v1->k) + b * v1->k.s[0] + g * v1->k.s[2];
    float mu = keys_square(w, k1, v1->k.s[1], T, D);
    for (int64_t h = g * R; h < (g + 1) * R; h++) {
        struct head one = {.q0 = view_f32(v0->q) + b * v0->q.s[0] + h * v0->q.s[2], .k0 = view_f32(v0->k) + b * v0->k.s[0] + h / R0 * v0->k.s[2],
                           .q1 = view_f32(v1->q) + b * v1->q.s[0] + h * v1->q.s[2], .k1 = k1, .lse = view_f32(v0->lse) + (b * to->H + h) * T,
                           .segment = c->batch.segments + b * T, .sq0 = v0->q.s[1], .sk0 = v0->k.s[1], .sq1 = v1->q.s[1], .sk1 = v1->k.s[1], .T = T, .D = D,
                           .window = to->window, .scale = (float)(to->scale > 0.0 ? to->scale : c->to.attn_scale),
                           .slope = v0->alibi.p ? view_f32(v0->alibi)[h] : 0.0f, .mu = mu, .d = d + b * T * to->H * D + h * D, .stride = to->H * D};
        head_changes(&one, w);
    }
}

/* Changes of all queries into the features [N, H*D], inputs into mid1 [N, C]. */
static enum code changes_all(struct calibrating *c, int64_t layer, float *memory)
{
    const struct arch_block *to = &c->to.stack[STACK_DEC].block[layer];
    int64_t each = work_floats(c->t.length, to->D), width = to->H * to->D;
    struct span s = {0};
    while (span_next(c, &s, 0, c->t.sequences)) {
        struct model_block_values v0, v1;
        const struct batch *b = span_batch(c, &s);
        float *d = rows_at(c->features, s.row, width);
        TRY(model_block_attend(c->m0, b, rows_at(c->x0, s.row, c->C), &v0));
        TRY(model_block_attend(c->m1, b, rows_at(c->x1, s.row, c->C), &v1));
        memcpy(rows_at(c->mid1, s.row, c->C), v1.n.p, (size_t)(s.rows * c->C) * sizeof(float));
        int64_t jobs = s.count * to->G;
#pragma omp parallel for schedule(dynamic)
        for (int64_t job = 0; job < jobs; job++) {
            struct work w = work_at(memory + omp_get_thread_num() * each, c->t.length, to->D);
            group_changes(c, layer, &v0, &v1, d, job / to->G, job % to->G, &w);
        }
        TRY(model_block_unrotate(c->m1, b, d, to->H));
    }
    return OK;
}

enum code refit_queries(struct calibrating *c, int64_t layer)
{
    const struct arch_block *to = &c->to.stack[STACK_DEC].block[layer];
    struct map q = map_of(c, layer, "attn.q");
    int64_t width = to->H * to->D;
    float *delta = NULL, *memory = malloc((size_t)(work_floats(c->t.length, to->D) * omp_get_max_threads()) * sizeof *memory);
    struct regression r = {.parts = {c->C}, .u = c->mid1, .ld = c->C, .residual = c->features, .width = c->C, .C = width};
    enum code code = memory ? changes_all(c, layer, memory) : fail(ERR_MEMORY, "out of memory for the scores of %lld tokens", (long long)c->t.length);
    free(memory);
    if (code == OK)
        code = regression_run(c, &r, q.b != NULL, &delta, &c->result->layer[layer].share[2]);
    if (code == OK) {
        map_add(&q, delta, width, 1.0f);
        if (q.b)
            bias_add(&q, delta + c->C * width, width);
        code = map_keep(c, &q);
    }
    gram_close(&r.g);
    free(delta);
    return code;
}
