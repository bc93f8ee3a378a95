/* Alternating least squares on the projections of queries and keys, each in two linear steps:
 *
 * 1. For each token and head, the change of its rotated query (refit_query.c) or key (refit_key.c) that brings its scores nearest to the
 *    original's, as the original's attention weighs them: a [D, D] ridge solve, as scores are linear in either when the other is held.
 * 2. The changes are rotated back and regressed on the layer's input, as any other map (refit.c).
 *
 * Queries, keys, queries; after svd keys and queries (the first step gained nothing there on a trained model: the merge has adapted the
 * queries). Where the systems would cost more than the layer's own forward, only some sequences are used.
 * Parallel over sequences and K/V heads; results do not depend on the number of threads. */
#include "refit_scores.h"

#include <cblas.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

void scores_gemm(float *c, int64_t ldc, const float *a, int64_t lda, int ta, const float *b, int64_t ldb, int tb, int64_t m, int64_t n, int64_t k,
                 float alpha, float beta)
{
    cblas_sgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, (int)m, (int)n, (int)k, alpha, a, (int)lda, b, (int)ldb,
                beta, c, (int)ldc);
}

void scores_weigh(const struct group *g, float *p, float *pr, const float *now, int64_t j, int64_t t0, int64_t rows, int64_t S)
{
    float slope = g->slopes ? g->slopes[j] : 0.0f;
    const float *lse = g->lse + j * g->T;
    for (int64_t i = 0; i < LANES; i++, p += g->T, pr += g->T, now += g->T) {
        int64_t t = t0 + i;
        for (int64_t s = 0; s < S; s++) {
            int sees = i < rows && s <= t && g->segment[s] == g->segment[t] && (g->window == 0 || s > t - g->window);
            float score = p[s], r = (score - now[s]) / g->scale;
            p[s] = sees ? expf(score + slope * (float)(s - t) - lse[t]) : 0.0f;
            pr[s] = sees ? p[s] * r : 0.0f;
        }
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

/* The diagonal holds its inverse. */
void scores_solve(float *a, float *b, int64_t D, int64_t stride)
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

/* ---- one step over all tokens ---- */

struct step {
    const char *map;
    int64_t heads; /* of the map's output */
    int64_t floats;
    void (*changes)(const struct group *g, float *memory);
    int64_t every;
    int64_t rows, fit_rows; /* kept so far */
};

/* Every how many sequences: the steps shall not cost more than the layer's own forward, as long as tokens are many. */
static int64_t thinning(const struct calibrating *c, const struct arch_block *b, int steps)
{
    double systems = steps * (double)b->H * (double)c->t.length / 2 * (double)pairs(b->D);
    double forward = (double)c->C * (double)((2 * b->H + 2 * b->G) * b->D + (mlp_is_gated(c->to.mlp) ? 3 : 2) * b->F);
    int64_t every = (int64_t)ceil(systems / forward), most = c->fit_rows / (4 * c->C);
    every = every > most ? most : every;
    return every < 1 ? 1 : every;
}

static struct group group_of(const struct calibrating *c, int64_t layer, const struct model_block_values *v0, const struct model_block_values *v1, int64_t b,
                             int64_t head)
{
    const struct arch_block *from = &ckpt_arch(c->source)->stack[STACK_DEC].block[layer], *to = &c->to.stack[STACK_DEC].block[layer];
    int64_t T = c->t.length, D = to->D, R = to->H / to->G, h = head * R;
    CHECK(v0->q.s[2] == D && v0->k.s[2] == D && v1->q.s[2] == D && v1->k.s[2] == D);
    struct group g = {.q0 = view_f32(v0->q) + b * v0->q.s[0] + h * D, .q1 = view_f32(v1->q) + b * v1->q.s[0] + h * D,
                      .k1 = view_f32(v1->k) + b * v1->k.s[0] + head * D, .lse = view_f32(v0->lse) + (b * to->H + h) * T,
                      .slopes = v0->alibi.p ? view_f32(v0->alibi) + h : NULL, .k0 = view_f32(v0->k) + b * v0->k.s[0],
                      .segment = c->batch.segments + b * T, .sq0 = v0->q.s[1], .sk0 = v0->k.s[1], .sq1 = v1->q.s[1], .sk1 = v1->k.s[1], .T = T, .D = D, .R = R,
                      .window = to->window, .first = h, .R0 = from->H / from->G, .scale = (float)(to->scale > 0.0 ? to->scale : c->to.attn_scale)};
    return g;
}

/* The next sequences of a step: all of them, or every so manieth, the first that is held out among them. */
static int step_next(const struct calibrating *c, const struct step *step, struct span *s)
{
    int64_t T = c->t.length, fit = c->t.sequences - c->t.held_out;
    if (step->every == 1)
        return span_next(c, s, 0, c->t.sequences);
    int64_t sequence = s->count ? s->first + step->every : fit % step->every;
    *s = (struct span){sequence, 1, sequence * T, T};
    return sequence < c->t.sequences;
}

/* Changes into the features [rows, heads*D], inputs into mid1 [rows, C]. */
static enum code changes_all(struct calibrating *c, int64_t layer, struct step *step, float *memory)
{
    const struct arch_block *to = &c->to.stack[STACK_DEC].block[layer];
    int64_t T = c->t.length, width = step->heads * to->D, each = width / to->G;
    struct span s = {0};
    while (step_next(c, step, &s)) {
        struct model_block_values v0, v1;
        const struct batch *b = span_batch(c, &s);
        float *d = rows_at(c->features, step->rows, width);
        TRY(model_block_attend(c->m0, b, rows_at(c->x0, s.row, c->C), &v0));
        TRY(model_block_attend(c->m1, b, rows_at(c->x1, s.row, c->C), &v1));
        int64_t jobs = s.count * to->G;
#pragma omp parallel for schedule(dynamic)
        for (int64_t job = 0; job < jobs; job++) {
            int64_t sequence = job / to->G, head = job % to->G;
            struct group g = group_of(c, layer, &v0, &v1, sequence, head);
            g.d = d + sequence * T * width + head * each;
            g.stride = width;
            step->changes(&g, memory + omp_get_thread_num() * step->floats);
        }
        TRY(model_block_unrotate(c->m1, b, d, step->heads));
        memcpy(rows_at(c->mid1, step->rows, c->C), v1.n.p, (size_t)(s.rows * c->C) * sizeof(float));
        step->rows += s.rows;
        step->fit_rows += s.row < c->fit_rows ? s.rows : 0;
    }
    return OK;
}

static enum code step_run(struct calibrating *c, int64_t layer, struct step *step)
{
    int64_t width = step->heads * c->to.stack[STACK_DEC].block[layer].D;
    struct map map = map_of(c, layer, step->map);
    struct regression r = {.parts = {c->C}, .u = c->mid1, .ld = c->C, .residual = c->features, .width = c->C, .C = width};
    float *delta = NULL, *memory = calloc((size_t)(step->floats * omp_get_max_threads()), sizeof *memory);
    double share = 0;
    enum code code = memory ? changes_all(c, layer, step, memory) : fail(ERR_MEMORY, "out of memory for the scores of %lld tokens", (long long)c->t.length);
    free(memory);
    r.rows = step->rows;
    r.fit_rows = step->fit_rows;
    if (code == OK && r.fit_rows > 0 && r.rows > r.fit_rows)
        code = regression_run(c, &r, map.b != NULL, &delta, &share);
    if (code == OK && delta) {
        map_add(&map, delta, width, 1.0f);
        if (map.b)
            bias_add(&map, delta + c->C * width, width);
        c->result->layer[layer].share[2] = share;
        code = map_keep(c, &map);
    }
    gram_close(&r.g);
    free(delta);
    return code;
}

int64_t refit_scores_bytes(const struct arch_block *b, int64_t G, int64_t length)
{
    int64_t q = query_floats(length, b->D, b->H / G), k = key_floats(length, b->D, b->H / G);
    return (q > k ? q : k) * omp_get_max_threads() * (int64_t)sizeof(float);
}

enum code refit_scores(struct calibrating *c, int64_t layer)
{
    const struct arch_block *to = &c->to.stack[STACK_DEC].block[layer];
    int64_t T = c->t.length, D = to->D, R = to->H / to->G, first = c->o->method == MERGE_SVD, every = thinning(c, to, (int)(3 - first));
    for (int64_t i = first; i < 3; i++) {
        int keys = i == 1;
        struct step step = {keys ? "attn.k" : "attn.q", keys ? to->G : to->H, keys ? key_floats(T, D, R) : query_floats(T, D, R),
                            keys ? key_changes : query_changes, every, 0, 0};
        TRY(step_run(c, layer, &step));
    }
    return OK;
}
