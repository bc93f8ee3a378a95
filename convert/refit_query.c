/* The change d of the rotated query of token t, p_s the original's attention, r_s = (original score - score now) / softmax scale, both
 * centred under p (softmax ignores a constant):
 *
 *      min over d of  sum_s p_s (d . (k_s - k_mean) - (r_s - r_mean))^2 + mu |d|^2
 *      (sum_s p_s k_s k_s^T - k_mean k_mean^T + mu) d = sum_s p_s r_s k_s - r_mean k_mean
 *
 * mu is a share of the mean variance of the sequence's keys: a token that sees one key only hardly moves. The systems of LANES tokens and
 * all heads of a group come from one product: row s of Z holds k_s k_s^T (lower half), A = Z^T P^T. */
#include "refit_scores.h"

#include <math.h>

#define QUERY_RIDGE 0.003f /* of 0.003, 0.03 and 0.3 on a trained model the best by its loss */

struct work { float *z, *p, *pr, *now, *a, *b, *mean; };

int64_t query_floats(int64_t T, int64_t D, int64_t R) { return T * pairs(D) + R * LANES * (3 * T + pairs(D) + 2 * D); }

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

static float mean_variance(const struct group *g)
{
    double total = 0;
    for (int64_t i = 0; i < g->D; i++) {
        double sum = 0, square = 0;
        for (int64_t s = 0; s < g->T; s++) {
            double x = (double)g->k1[s * g->sk1 + i];
            sum += x;
            square += x * x;
        }
        total += square / (double)g->T - sum / (double)g->T * (sum / (double)g->T);
    }
    return (float)(total / (double)g->D);
}

/* a [pair, lane] and b [D, lane] become the systems and their right sides, lanes of all R heads. A lane without a token has zeros and the
 * ridge: its solution is zero. */
static void center(const struct group *g, const struct work *w, int64_t S, float mu)
{
    int64_t D = g->D, lanes = g->R * LANES;
    for (int64_t l = 0; l < lanes; l++) {
        double r = 0;
        for (int64_t s = 0; s < S; s++)
            r += (double)w->pr[l * g->T + s];
        for (int64_t i = 0; i < D; i++)
            w->b[i * lanes + l] -= (float)r * w->mean[i * lanes + l];
    }
    float *a = w->a;
    for (int64_t i = 0; i < D; i++)
        for (int64_t j = 0; j <= i; j++, a += lanes) {
            const float *x = w->mean + i * lanes, *y = w->mean + j * lanes;
            float ridge = i == j ? mu : 0.0f;
#pragma omp simd
            for (int64_t l = 0; l < lanes; l++)
                a[l] += ridge - x[l] * y[l];
        }
}

static void block_changes(const struct group *g, const struct work *w, int64_t t0, float mu)
{
    int64_t D = g->D, T = g->T, rows = T - t0 < LANES ? T - t0 : LANES, S = t0 + rows, lanes = g->R * LANES;
    for (int64_t j = 0; j < g->R; j++) {
        const float *k0 = g->k0 + (g->first + j) / g->R0 * D;
        float *p = w->p + j * LANES * T, *pr = w->pr + j * LANES * T, *now = w->now + j * LANES * T;
        scores_gemm(p, T, g->q0 + t0 * g->sq0 + j * D, g->sq0, 0, k0, g->sk0, 1, rows, S, D, g->scale, 0.0f);
        scores_gemm(now, T, g->q1 + t0 * g->sq1 + j * D, g->sq1, 0, g->k1, g->sk1, 1, rows, S, D, g->scale, 0.0f);
        scores_weigh(g, p, pr, now, j, t0, rows, S);
    }
    scores_gemm(w->a, lanes, w->z, pairs(D), 1, w->p, T, 1, pairs(D), lanes, S, 1.0f, 0.0f);
    scores_gemm(w->mean, lanes, g->k1, g->sk1, 1, w->p, T, 1, D, lanes, S, 1.0f, 0.0f);
    scores_gemm(w->b, lanes, g->k1, g->sk1, 1, w->pr, T, 1, D, lanes, S, 1.0f, 0.0f);
    center(g, w, S, mu);
    for (int64_t j = 0; j < g->R; j++) {
        scores_solve(w->a + j * LANES, w->b + j * LANES, D, lanes);
        for (int64_t i = 0; i < rows; i++)
            for (int64_t d = 0; d < D; d++)
                g->d[(t0 + i) * g->stride + j * D + d] = w->b[d * lanes + j * LANES + i];
    }
}

void query_changes(const struct group *g, float *memory)
{
    struct work w = work_at(memory, g->T, g->D, g->R);
    float mu = QUERY_RIDGE * mean_variance(g);
    for (int64_t s = 0; s < g->T; s++)
        scores_square(w.z + s * pairs(g->D), g->k1 + s * g->sk1, g->D);
    for (int64_t t0 = 0; t0 < g->T; t0 += LANES)
        block_changes(g, &w, t0, mu);
}
