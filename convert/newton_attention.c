/* Attention as a linear map of small changes of q, k and v, and its transpose. With P = softmax(scale q k^T), o = P v:
 *
 *   dS = scale (dq k^T + q dk^T)     U = P o dS     do = U v - rowsum(U) o + P dv
 *
 *   dv = P^T do     dS = scale P o (do v^T - rowsum(do o))     dq = dS k     dk = dS^T q
 *
 * P is kept, in blocks of rows. Parallel over sequences and K/V heads; results do not depend on the number of threads. */
#include "newton.h"

#include <math.h>
#include <omp.h>
#include <string.h>

#include "refit_scores.h"

enum { ROWS = ATTENTION_ROWS };

int64_t attention_floats(int64_t T)
{
    int64_t blocks = (T + ROWS - 1) / ROWS;
    return ROWS * ROWS * blocks * (blocks + 1) / 2;
}

/* One head of one sequence. */
struct head { const float *q, *k, *v, *o; float *p; int64_t hd, gd, row, query, key; };

static struct head head_of(const struct linearised *a, int64_t sequence, int64_t h)
{
    int64_t row = sequence * a->T, hd = a->H * a->D, gd = a->G * a->D, query = row * hd + h * a->D, key = row * gd + h / a->R * a->D;
    struct head x = {a->q + query, a->k + key, a->v + key, a->o + query, a->p + (sequence * a->H + h) * attention_floats(a->T), hd, gd, row, query, key};
    return x;
}

void attention_fill(const struct linearised *a, int64_t sequence, const int32_t *segment, const float *lse, const float *slopes, int64_t window)
{
    int64_t T = a->T, D = a->D;
#pragma omp parallel for schedule(dynamic)
    for (int64_t h = 0; h < a->H; h++) {
        struct head x = head_of(a, sequence, h);
        float slope = slopes ? slopes[h] : 0.0f, *p = x.p;
        for (int64_t t0 = 0; t0 < T; t0 += ROWS) {
            int64_t rows = T - t0 < ROWS ? T - t0 : ROWS, S = t0 + rows, ld = t0 + ROWS;
            scores_gemm(p, ld, x.q + t0 * x.hd, x.hd, 0, x.k, x.gd, 1, rows, S, D, a->scale, 0.0f);
            for (int64_t t = t0; t < t0 + rows; t++, p += ld)
                for (int64_t s = 0; s < S; s++) {
                    int sees = s <= t && segment[s] == segment[t] && (window == 0 || s > t - window);
                    p[s] = sees ? expf(p[s] + slope * (float)(s - t) - lse[h * T + t]) : 0.0f;
                }
            p += (ROWS - rows) * ld;
        }
    }
}

static void change(const struct linearised *a, const struct head *x, float *d_o, const float *dq, const float *dk, const float *dv, float *u)
{
    int64_t T = a->T, D = a->D;
    const float *p = x->p;
    for (int64_t t0 = 0; t0 < T; t0 += ROWS) {
        int64_t rows = T - t0 < ROWS ? T - t0 : ROWS, S = t0 + rows, ld = t0 + ROWS;
        float *to = d_o + t0 * x->hd;
        scores_gemm(u, ld, dq + t0 * x->hd, x->hd, 0, x->k, x->gd, 1, rows, S, D, a->scale, 0.0f);
        scores_gemm(u, ld, x->q + t0 * x->hd, x->hd, 0, dk, x->gd, 1, rows, S, D, a->scale, 1.0f);
        float sum[ROWS];
        for (int64_t i = 0; i < rows; i++) {
            float total = 0;
#pragma omp simd reduction(+ : total)
            for (int64_t s = 0; s < S; s++) {
                u[i * ld + s] *= p[i * ld + s];
                total += u[i * ld + s];
            }
            sum[i] = total;
        }
        scores_gemm(to, x->hd, u, ld, 0, x->v, x->gd, 0, rows, D, S, 1.0f, 0.0f);
        scores_gemm(to, x->hd, p, ld, 0, dv, x->gd, 0, rows, D, S, 1.0f, 1.0f);
        for (int64_t i = 0; i < rows; i++)
            for (int64_t d = 0; d < D; d++)
                to[i * x->hd + d] -= sum[i] * x->o[(t0 + i) * x->hd + d];
        p += ROWS * ld;
    }
}

void attention_change(const struct linearised *a, float *out, const float *dq, const float *dk, const float *dv)
{
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < a->count * a->H; i++) {
        struct head x = head_of(a, i / a->H, i % a->H);
        change(a, &x, out + x.query, dq + x.query, dk + x.key, dv + x.key, a->memory + omp_get_thread_num() * 2 * ROWS * (a->T + ROWS));
    }
}

static void gradient(const struct linearised *a, const struct head *x, const float *d_o, float *dq, float *dk, float *dv, float *u)
{
    int64_t T = a->T, D = a->D;
    const float *p = x->p;
    for (int64_t t0 = 0; t0 < T; t0 += ROWS) {
        int64_t rows = T - t0 < ROWS ? T - t0 : ROWS, S = t0 + rows, ld = t0 + ROWS;
        const float *from = d_o + t0 * x->hd;
        scores_gemm(u, ld, from, x->hd, 0, x->v, x->gd, 1, rows, S, D, 1.0f, 0.0f);
        for (int64_t i = 0; i < rows; i++) {
            float dot = 0;
#pragma omp simd reduction(+ : dot)
            for (int64_t d = 0; d < D; d++)
                dot += from[i * x->hd + d] * x->o[(t0 + i) * x->hd + d];
            for (int64_t s = 0; s < S; s++)
                u[i * ld + s] = a->scale * p[i * ld + s] * (u[i * ld + s] - dot);
        }
        scores_gemm(dq + t0 * x->hd, x->hd, u, ld, 0, x->k, x->gd, 0, rows, D, S, 1.0f, 0.0f);
        scores_gemm(dk, x->gd, u, ld, 1, x->q + t0 * x->hd, x->hd, 0, S, D, rows, 1.0f, 1.0f);
        scores_gemm(dv, x->gd, p, ld, 1, from, x->hd, 0, S, D, rows, 1.0f, 1.0f);
        p += ROWS * ld;
    }
}

void attention_gradient(const struct linearised *a, const float *d_o, float *dq, float *dk, float *dv)
{
    memset(dk, 0, (size_t)(a->N * a->G * a->D) * sizeof *dk);
    memset(dv, 0, (size_t)(a->N * a->G * a->D) * sizeof *dv);
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < a->count * a->G; i++)
        for (int64_t j = 0; j < a->R; j++) {
            struct head x = head_of(a, i / a->G, i % a->G * a->R + j);
            gradient(a, &x, d_o + x.query, dq + x.query, dk + x.key, dv + x.key, a->memory + omp_get_thread_num() * 2 * ROWS * (a->T + ROWS));
        }
}
