/* The change d of the rotated key of token s, over all tokens t and heads h that see it, p_ts the original's attention, r_ts what the score
 * lacks over the softmax scale, less its mean under p_t (softmax ignores a constant):
 *
 *      min over d of  sum_{h,t} p_ts (d . q_t - r_ts)^2 + mu |d|^2
 *      (sum_{h,t} p_ts q_t q_t^T + mu) d = sum_{h,t} p_ts r_ts q_t
 *
 * mu is a share of what a key has on average: one that nobody attends to hardly moves. The systems of LANES keys come from one product for
 * each head: row t of Z holds q_t q_t^T (lower half), A += Z^T P. */
#include "refit_scores.h"

#include <math.h>
#include <string.h>

#define KEY_RIDGE 0.003f /* 0.001 to 0.01 give the same loss on a trained model, 0.1 a little more */

/* a, b: of every block of keys, one after the other. */
struct work { float *z, *a, *b, *mean, *p, *now, *pr; };

int64_t key_floats(int64_t T, int64_t D, int64_t R)
{
    int64_t blocks = (T + LANES - 1) / LANES;
    (void)R;
    return T * pairs(D) + blocks * LANES * (pairs(D) + D) + T + 3 * LANES * T;
}

static struct work work_at(float *base, int64_t T, int64_t D)
{
    int64_t blocks = (T + LANES - 1) / LANES;
    struct work w;
    w.z = base;
    w.a = w.z + T * pairs(D);
    w.b = w.a + blocks * LANES * pairs(D);
    w.mean = w.b + blocks * LANES * D;
    w.p = w.mean + T;
    w.now = w.p + LANES * T;
    w.pr = w.now + LANES * T;
    return w;
}

/* mean [T]: what the scores of every token lack on average, under the original's attention. */
static void means(const struct group *g, const struct work *w, int64_t j, const float *k0)
{
    int64_t T = g->T;
    for (int64_t t0 = 0; t0 < T; t0 += LANES) {
        int64_t rows = T - t0 < LANES ? T - t0 : LANES, S = t0 + rows;
        scores_gemm(w->p, T, g->q0 + t0 * g->sq0 + j * g->D, g->sq0, 0, k0, g->sk0, 1, rows, S, g->D, g->scale, 0.0f);
        scores_gemm(w->now, T, g->q1 + t0 * g->sq1 + j * g->D, g->sq1, 0, g->k1, g->sk1, 1, rows, S, g->D, g->scale, 0.0f);
        scores_weigh(g, w->p, w->pr, w->now, j, t0, rows, S);
        for (int64_t i = 0; i < rows; i++) {
            double sum = 0;
            for (int64_t s = 0; s < S; s++)
                sum += (double)w->pr[i * T + s];
            w->mean[t0 + i] = (float)sum;
        }
    }
}

/* p [n, LANES]: attention of tokens s0 .. T-1 to keys s0 .. s0 + rows - 1; now becomes the attention times what the score lacks. */
static void weigh_columns(const struct group *g, const struct work *w, int64_t j, int64_t s0, int64_t rows)
{
    float slope = g->slopes ? g->slopes[j] : 0.0f;
    for (int64_t t = s0; t < g->T; t++)
        for (int64_t l = 0; l < LANES; l++) {
            float *p = w->p + (t - s0) * LANES + l, *now = w->now + (t - s0) * LANES + l;
            int64_t s = s0 + l;
            int sees = l < rows && s <= t && g->segment[s] == g->segment[t] && (g->window == 0 || s > t - g->window);
            float r = (*p - *now) / g->scale - w->mean[t];
            *p = sees ? expf(*p + slope * (float)(s - t) - g->lse[j * g->T + t]) : 0.0f;
            *now = sees ? *p * r : 0.0f;
        }
}

static void block_add(const struct group *g, const struct work *w, int64_t j, const float *k0, int64_t s0)
{
    int64_t D = g->D, P = pairs(D), rows = g->T - s0 < LANES ? g->T - s0 : LANES, n = g->T - s0;
    const float *q0 = g->q0 + s0 * g->sq0 + j * D, *q1 = g->q1 + s0 * g->sq1 + j * D;
    scores_gemm(w->p, LANES, q0, g->sq0, 0, k0 + s0 * g->sk0, g->sk0, 1, n, rows, D, g->scale, 0.0f);
    scores_gemm(w->now, LANES, q1, g->sq1, 0, g->k1 + s0 * g->sk1, g->sk1, 1, n, rows, D, g->scale, 0.0f);
    weigh_columns(g, w, j, s0, rows);
    scores_gemm(w->a + s0 * P, LANES, w->z + s0 * P, P, 1, w->p, LANES, 0, P, LANES, n, 1.0f, 1.0f);
    scores_gemm(w->b + s0 * D, LANES, q1, g->sq1, 1, w->now, LANES, 0, D, LANES, n, 1.0f, 1.0f);
}

static void block_solve(const struct group *g, const struct work *w, int64_t s0, float mu)
{
    int64_t D = g->D;
    float *a = w->a + s0 * pairs(D), *b = w->b + s0 * D;
    for (int64_t i = 0; i < D; i++)
        for (int64_t l = 0; l < LANES; l++)
            a[(i * (i + 1) / 2 + i) * LANES + l] += mu;
    scores_solve(a, b, D, LANES);
    for (int64_t l = 0; l < LANES && s0 + l < g->T; l++)
        for (int64_t i = 0; i < D; i++)
            g->d[(s0 + l) * g->stride + i] = b[i * LANES + l];
}

void key_changes(const struct group *g, float *memory)
{
    int64_t D = g->D, T = g->T, blocks = (T + LANES - 1) / LANES;
    struct work w = work_at(memory, T, D);
    double power = 0;
    memset(w.a, 0, (size_t)(blocks * LANES * (pairs(D) + D)) * sizeof *w.a);
    for (int64_t j = 0; j < g->R; j++) {
        const float *k0 = g->k0 + (g->first + j) / g->R0 * D;
        means(g, &w, j, k0);
        for (int64_t t = 0; t < T; t++) {
            const float *q = g->q1 + t * g->sq1 + j * D;
            for (int64_t i = 0; i < D; i++)
                power += (double)q[i] * (double)q[i];
            scores_square(w.z + t * pairs(D), q, D);
        }
        for (int64_t s0 = 0; s0 < T; s0 += LANES)
            block_add(g, &w, j, k0, s0);
    }
    float mu = KEY_RIDGE * (float)(power / (double)(T * D));
    for (int64_t s0 = 0; s0 < T; s0 += LANES)
        block_solve(g, &w, s0, mu);
}
