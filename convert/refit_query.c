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
 * The [D, D] systems of LANES tokens and all heads of a group are made by one product: row s of Z holds k_s k_s^T (lower half),
 * A = Z^T P^T; they are solved side by side, one token per lane. Where that would cost more than the layer's own forward, every second or
 * third block of tokens is used. Parallel over sequences and K/V heads; results do not depend on the number of threads. */
#include "calibrate_parts.h"

#include <cblas.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

enum { LANES = 32 };
#define QUERY_RIDGE 0.003f /* of 0.003, 0.03 and 0.3 on a trained model the best by its loss */

static int64_t pairs(int64_t D) { return D * (D + 1) / 2; }

/* One thread's memory; R query heads that read one K/V head are worked on together, their lanes side by side. */
struct work { float *z, *p, *pr, *now, *a, *b, *mean; };

static int64_t work_floats(int64_t T, int64_t D, int64_t R) { return T * pairs(D) + R * LANES * (3 * T + pairs(D) + 2 * D); }

static struct work work_at(float *base, int64_t T, int64_t D, int64_t R)
{
    struct work w;
    w.z = base;
    w.p = w.z + T * pairs(D);
    w.pr = w.p + R * LANES * T;
    w.now = w.pr + R * LANES * T;
    w.a = w.now + R * LANES * T;
    w.b = w.a + R * LANES * pairs(D);
    w.mean = w.b + R * LANES * D;
    return w;
}

/* One K/V head of the result in one sequence, and the queries that read it. Strides are in floats from token to token. */
struct group {
    const float *q0, *q1, *k1, *lse, *slopes; /* of the first head */
    const float *k0;                          /* of K/V head 0 */
    const int32_t *segment;
    int64_t sq0, sk0, sq1, sk1, T, D, R, window; /* window 0: none */
    int64_t first, R0;                           /* number of the first head; query heads for each K/V head of the original */
    float scale, mu;
    float *d; /* out, [T, stride], of the first head */
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

/* p and p r of head j at tokens t0 .. t0 + rows - 1, zero where a query does not see a key; S keys are looked at. */
static void weigh(const struct group *g, const struct work *w, int64_t j, int64_t t0, int64_t rows, int64_t S)
{
    float slope = g->slopes ? g->slopes[j] : 0.0f;
    const float *lse = g->lse + j * g->T;
    for (int64_t i = 0; i < LANES; i++) {
        int64_t t = t0 + i, at = (j * LANES + i) * g->T;
        float *p = w->p + at, *pr = w->pr + at, *now = w->now + at;
        for (int64_t s = 0; s < S; s++) {
            int sees = i < rows && s <= t && g->segment[s] == g->segment[t] && (g->window == 0 || s > t - g->window);
            float score = p[s], r = (score - now[s]) / g->scale;
            p[s] = sees ? expf(score + slope * (float)(s - t) - lse[t]) : 0.0f;
            pr[s] = sees ? p[s] * r : 0.0f;
        }
    }
}

/* a [pair, lane] and b [D, lane] become the systems and their right sides; lanes of R heads, `lanes` in all. A lane without a token has
 * zeros and the ridge: its solution is zero. */
static void center(const struct group *g, const struct work *w, int64_t S)
{
    int64_t D = g->D, lanes = g->R * LANES;
    for (int64_t l = 0; l < lanes; l++) {
        double r = 0;
        for (int64_t s = 0; s < S; s++)
            r += (double)w->pr[l * g->T + s];
        for (int64_t i = 0; i < D; i++)
            w->b[i * lanes + l] -= (float)r * w->mean[i * lanes + l];
    }
    float *a = w->a, mu = g->mu;
    for (int64_t i = 0; i < D; i++)
        for (int64_t j = 0; j <= i; j++, a += lanes) {
            const float *x = w->mean + i * lanes, *y = w->mean + j * lanes;
            float ridge = i == j ? mu : 0.0f;
#pragma omp simd
            for (int64_t l = 0; l < lanes; l++)
                a[l] += ridge - x[l] * y[l];
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

/* Cholesky, one system per lane, LANES of `stride`; the diagonal holds its inverse. b becomes the solution. */
static void solve_lanes(float *a, float *b, int64_t D, int64_t stride)
{
    for (int64_t i = 0; i < D; i++) {
        float *row = a + i * (i + 1) / 2 * stride;
        for (int64_t j = 0; j <= i; j++) {
            const float *other = a + j * (j + 1) / 2 * stride;
            float *x = row + j * stride;
            for (int64_t k = 0; k < j; k++)
                take(x, row + k * stride, other + k * stride);
            if (j < i)
                scale_by(x, other + j * stride);
        }
        float *x = row + i * stride;
        for (int l = 0; l < LANES; l++) /* the ridge keeps it positive but for rounding */
            x[l] = x[l] > 1e-30f ? 1.0f / sqrtf(x[l]) : 0.0f;
        for (int64_t k = 0; k < i; k++)
            take(b + i * stride, row + k * stride, b + k * stride);
        scale_by(b + i * stride, x);
    }
    for (int64_t i = D - 1; i >= 0; i--) {
        scale_by(b + i * stride, a + (i * (i + 1) / 2 + i) * stride);
        for (int64_t k = 0; k < i; k++)
            take(b + k * stride, a + (i * (i + 1) / 2 + k) * stride, b + i * stride);
    }
}

static void gemm(float *c, int64_t ldc, const float *a, int64_t lda, int ta, const float *b, int64_t ldb, int tb, int64_t m, int64_t n, int64_t k, float alpha)
{
    cblas_sgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, (int)m, (int)n, (int)k, alpha, a, (int)lda, b, (int)ldb,
                0.0f, c, (int)ldc);
}

static void block_changes(const struct group *g, const struct work *w, int64_t t0)
{
    int64_t D = g->D, T = g->T, rows = T - t0 < LANES ? T - t0 : LANES, S = t0 + rows, lanes = g->R * LANES;
    for (int64_t j = 0; j < g->R; j++) {
        const float *k0 = g->k0 + (g->first + j) / g->R0 * D;
        gemm(w->p + j * LANES * T, T, g->q0 + t0 * g->sq0 + j * D, g->sq0, 0, k0, g->sk0, 1, rows, S, D, g->scale);
        gemm(w->now + j * LANES * T, T, g->q1 + t0 * g->sq1 + j * D, g->sq1, 0, g->k1, g->sk1, 1, rows, S, D, g->scale);
        weigh(g, w, j, t0, rows, S);
    }
    gemm(w->a, lanes, w->z, pairs(D), 1, w->p, T, 1, pairs(D), lanes, S, 1.0f);
    gemm(w->mean, lanes, g->k1, g->sk1, 1, w->p, T, 1, D, lanes, S, 1.0f);
    gemm(w->b, lanes, g->k1, g->sk1, 1, w->pr, T, 1, D, lanes, S, 1.0f);
    center(g, w, S);
    for (int64_t j = 0; j < g->R; j++) {
        solve_lanes(w->a + j * LANES, w->b + j * LANES, D, lanes);
        for (int64_t i = 0; i < rows; i++)
            for (int64_t d = 0; d < D; d++)
                g->d[(t0 + i) * g->stride + j * D + d] = w->b[d * lanes + j * LANES + i];
    }
}

static void group_changes(const struct calibrating *c, int64_t layer, const struct model_block_values *v0, const struct model_block_values *v1, float *d,
                          int64_t b, int64_t head, int64_t every, int64_t offset, const struct work *w)
{
    const struct arch_block *from = &ckpt_arch(c->source)->stack[STACK_DEC].block[layer], *to = &c->to.stack[STACK_DEC].block[layer];
    int64_t T = c->t.length, D = to->D, R = to->H / to->G, h = head * R;
    const float *k1 = view_f32(v1->k) + b * v1->k.s[0] + head * v1->k.s[2];
    CHECK(v0->q.s[2] == D && v0->k.s[2] == D && v1->q.s[2] == D);
    struct group g = {.q0 = view_f32(v0->q) + b * v0->q.s[0] + h * D, .q1 = view_f32(v1->q) + b * v1->q.s[0] + h * D, .k1 = k1,
                      .lse = view_f32(v0->lse) + (b * to->H + h) * T, .slopes = v0->alibi.p ? view_f32(v0->alibi) + h : NULL,
                      .k0 = view_f32(v0->k) + b * v0->k.s[0], .segment = c->batch.segments + b * T, .sq0 = v0->q.s[1], .sk0 = v0->k.s[1],
                      .sq1 = v1->q.s[1], .sk1 = v1->k.s[1], .T = T, .D = D, .R = R, .window = to->window, .first = h, .R0 = from->H / from->G,
                      .scale = (float)(to->scale > 0.0 ? to->scale : c->to.attn_scale), .mu = keys_square(w, k1, v1->k.s[1], T, D),
                      .d = d + b * T * to->H * D + h * D, .stride = to->H * D};
    for (int64_t t0 = offset * LANES; t0 < T; t0 += every * LANES)
        block_changes(&g, w, t0);
}

/* Every how many blocks of tokens: the systems shall not cost more than the layer's own forward, as long as tokens are many. */
static int64_t thinning(const struct calibrating *c, const struct arch_block *b)
{
    double systems = (double)b->H * (double)c->t.length / 2 * (double)pairs(b->D);
    double forward = (double)c->C * (double)((2 * b->H + 2 * b->G) * b->D + (mlp_is_gated(c->to.mlp) ? 3 : 2) * b->F);
    int64_t every = (int64_t)ceil(systems / forward), most = c->fit_rows / (8 * c->C);
    every = every > most ? most : every;
    return every < 1 ? 1 : every;
}

struct tokens_kept { int64_t rows, fit_rows; };

/* Of a batch, the rows of the blocks that were worked on, moved down behind those of earlier ones. */
static void rows_pack(struct calibrating *c, const struct span *s, const float *n, int64_t width, int64_t every, struct tokens_kept *kept)
{
    for (int64_t i = 0; i < s->rows; i++) {
        int64_t sequence = s->first + i / c->t.length, block = i % c->t.length / LANES;
        if (block % every != sequence % every)
            continue;
        memmove(rows_at(c->features, kept->rows, width), rows_at(c->features, s->row + i, width), (size_t)width * sizeof(float));
        memcpy(rows_at(c->mid1, kept->rows, c->C), n + i * c->C, (size_t)c->C * sizeof(float));
        kept->rows++;
        kept->fit_rows += s->row < c->fit_rows;
    }
}

/* Changes of queries into the features [rows, H*D], inputs into mid1 [rows, C]. */
static enum code changes_all(struct calibrating *c, int64_t layer, float *memory, struct tokens_kept *kept)
{
    const struct arch_block *to = &c->to.stack[STACK_DEC].block[layer];
    int64_t T = c->t.length, D = to->D, R = to->H / to->G, each = work_floats(T, D, R), width = to->H * D, every = thinning(c, to);
    struct span s = {0};
    while (span_next(c, &s, 0, c->t.sequences)) {
        struct model_block_values v0, v1;
        const struct batch *b = span_batch(c, &s);
        float *d = rows_at(c->features, s.row, width);
        TRY(model_block_attend(c->m0, b, rows_at(c->x0, s.row, c->C), &v0));
        TRY(model_block_attend(c->m1, b, rows_at(c->x1, s.row, c->C), &v1));
        int64_t jobs = s.count * to->G;
#pragma omp parallel for schedule(dynamic)
        for (int64_t job = 0; job < jobs; job++) {
            struct work w = work_at(memory + omp_get_thread_num() * each, T, D, R);
            int64_t sequence = job / to->G;
            group_changes(c, layer, &v0, &v1, d, sequence, job % to->G, every, (s.first + sequence) % every, &w);
        }
        TRY(model_block_unrotate(c->m1, b, d, to->H));
        rows_pack(c, &s, view_f32(v1.n), width, every, kept);
    }
    return OK;
}

int64_t refit_query_bytes(const struct arch_block *b, int64_t G, int64_t length)
{
    return work_floats(length, b->D, b->H / G) * omp_get_max_threads() * (int64_t)sizeof(float);
}

enum code refit_queries(struct calibrating *c, int64_t layer)
{
    const struct arch_block *to = &c->to.stack[STACK_DEC].block[layer];
    struct map q = map_of(c, layer, "attn.q");
    int64_t width = to->H * to->D;
    struct tokens_kept kept = {0, 0};
    float *delta = NULL, *memory = calloc((size_t)(work_floats(c->t.length, to->D, to->H / to->G) * omp_get_max_threads()), sizeof *memory);
    struct regression r = {.parts = {c->C}, .u = c->mid1, .ld = c->C, .residual = c->features, .width = c->C, .C = width};
    enum code code = memory ? changes_all(c, layer, memory, &kept) : fail(ERR_MEMORY, "out of memory for the scores of %lld tokens", (long long)c->t.length);
    free(memory);
    r.rows = kept.rows;
    r.fit_rows = kept.fit_rows;
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
