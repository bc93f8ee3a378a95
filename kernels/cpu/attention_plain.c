/* Attention in portable C: the specification that the vector files are read against.
 *
 * Forward (Dao 2023, FlashAttention-2, algorithm 1), for one query row against tiles of keys:
 *   s_j = scale q.k_j + slope (j - t');  m' = max(m, max_j s_j);  l' = l e^(m-m') + sum_j e^(s_j-m');  o' = o e^(m-m') + sum_j e^(s_j-m') v_j
 *   at the end  O = o / l,  lse = m + ln l; t' = t + q_offset, slope 0 without ALiBi (Press et al. 2022).
 * Backward (ibid., algorithm 2), the scores recomputed from lse:
 *   p_ij = e^(s_ij - lse_i);  dv_j = sum_i p_ij do_i;  ds_ij = p_ij (do_i.v_j - delta_i),  delta_i = do_i.o_i
 *   dq_i = scale sum_j ds_ij k_j;  dk_j = scale sum_i ds_ij q_i
 * dk and dv of a group sum over its R query heads in the order of the heads, then of the rows: one task owns a group, so
 * nothing is shared and the bits do not depend on the threads. A query head's forward does not depend on its group:
 * equal K/V heads give equal bits whatever G is. */
#include "attention.h"

#include <math.h>
#include <string.h>

#define TILE 32     /* keys at a time */
#define D_MAX 256

static float dot(const float *a, const float *b, int64_t n)
{
    float sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

static void add_scaled(float *restrict y, float a, const float *restrict x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] += a * x[i];
}

/* The score of query (b,t) of head h and key s, before softmax. */
static float score(const struct attention_problem *p, int64_t b, int64_t t, int64_t h, int64_t s)
{
    float product = p->scale * dot(attention_row(p->q, b, t, h), attention_row(p->k, b, s, h / p->R), p->D);
    return p->slopes != NULL ? product + p->slopes[h] * (float)(s - t - p->q_offset) : product;
}

static void fwd_row(const struct attention_problem *p, int64_t b, int64_t t, int64_t h)
{
    float acc[D_MAX] = {0}, s[TILE];
    float m = -INFINITY, l = 0;
    int64_t lo = p->key_lo[b * p->T + t], hi = p->key_hi[b * p->T + t], g = h / p->R;

    for (int64_t s0 = lo; s0 < hi; s0 += TILE) {
        int64_t n = attention_min(TILE, hi - s0);
        float m_new = m;
        for (int64_t j = 0; j < n; j++) {
            s[j] = score(p, b, t, h, s0 + j);
            m_new = fmaxf(m_new, s[j]);
        }
        if (m_new > m) {
            float shrink = expf(m - m_new); /* 0 for the first tile */
            l *= shrink;
            for (int64_t d = 0; d < p->D; d++)
                acc[d] *= shrink;
            m = m_new;
        }
        for (int64_t j = 0; j < n; j++) {
            float e = expf(s[j] - m);
            l += e;
            add_scaled(acc, e, attention_row(p->v, b, s0 + j, g), p->D);
        }
    }
    float *o = attention_row(p->o, b, t, h);
    for (int64_t d = 0; d < p->D; d++)
        o[d] = hi > lo ? acc[d] / l : 0;
    view_f32(p->lse)[b * p->lse.s[0] + h * p->lse.s[1] + t] = hi > lo ? m + logf(l) : -INFINITY;
}

static void plain_fwd(const struct attention_problem *p)
{
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(p->threads)
    for (int64_t bh = 0; bh < p->B * p->H; bh++)
        for (int64_t tile = 0; tile < (p->T + TILE - 1) / TILE; tile++)
            for (int64_t t = tile * TILE; t < attention_min(p->T, (tile + 1) * TILE); t++)
                fwd_row(p, bh / p->H, t, bh % p->H);
}

/* Adds what query row (b,t) of head h gives to dk, dv of the keys [s0, s0 + n) and to its own dq. */
static void bwd_row(const struct attention_problem *p, int64_t b, int64_t t, int64_t h, int64_t s0, int64_t n,
                    float dk[TILE][D_MAX], float dv[TILE][D_MAX])
{
    int64_t lo = attention_max(s0, p->key_lo[b * p->T + t]), hi = attention_min(s0 + n, p->key_hi[b * p->T + t]), g = h / p->R;
    if (lo >= hi)
        return;
    const float *q = attention_row(p->q, b, t, h), *dout = attention_row(p->dout, b, t, h);
    float *dq = attention_row(p->dq, b, t, h);
    float lse = view_f32(p->lse)[b * p->lse.s[0] + h * p->lse.s[1] + t];
    float delta = dot(dout, attention_row(p->o, b, t, h), p->D);
    for (int64_t s = lo; s < hi; s++) {
        const float *k = attention_row(p->k, b, s, g);
        float prob = expf(score(p, b, t, h, s) - lse);
        float ds = p->scale * prob * (dot(dout, attention_row(p->v, b, s, g), p->D) - delta);
        add_scaled(dv[s - s0], prob, dout, p->D);
        add_scaled(dk[s - s0], ds, q, p->D);
        add_scaled(dq, ds, k, p->D);
    }
}

static void bwd_group(const struct attention_problem *p, int64_t b, int64_t g)
{
    float dk[TILE][D_MAX], dv[TILE][D_MAX];
    for (int64_t t = 0; t < p->T; t++)
        for (int64_t r = 0; r < p->R; r++)
            memset(attention_row(p->dq, b, t, g * p->R + r), 0, (size_t)p->D * sizeof(float));
    for (int64_t s0 = 0; s0 < p->S; s0 += TILE) {
        int64_t n = attention_min(TILE, p->S - s0);
        memset(dk, 0, sizeof(dk));
        memset(dv, 0, sizeof(dv));
        for (int64_t r = 0; r < p->R; r++)
            for (int64_t t = 0; t < p->T; t++)
                bwd_row(p, b, t, g * p->R + r, s0, n, dk, dv);
        for (int64_t j = 0; j < n; j++) {
            memcpy(attention_row(p->dk, b, s0 + j, g), dk[j], (size_t)p->D * sizeof(float));
            memcpy(attention_row(p->dv, b, s0 + j, g), dv[j], (size_t)p->D * sizeof(float));
        }
    }
}

static void plain_bwd(const struct attention_problem *p)
{
#pragma omp parallel for schedule(dynamic) num_threads(p->threads)
    for (int64_t bg = 0; bg < p->B * p->G; bg++)
        bwd_group(p, bg / p->G, bg % p->G);
}

static size_t plain_scratch(const struct attention_problem *p)
{
    (void)p;
    return 0;
}

const struct attention_kernels attention_plain = {plain_fwd, plain_bwd, plain_scratch, plain_scratch};
