/* softmax(scale q.k + bias + mask) v and its derivative, the whole row of probabilities in memory (Vaswani et al. 2017, eq. 1;
 * grouped heads: Ainslie et al. 2023, section 2.2). With p = softmax(s):
 *   dv_j = sum_i p_ij do_i;  dp_ij = do_i.v_j;  ds_ij = p_ij (dp_ij - sum_j' p_ij' dp_ij');  dq_i = scale sum_j ds_ij k_j;
 *   dk_j = scale sum_i ds_ij q_i, summed over the query heads that read the key. */
#include "attention.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int ref_attention_visible(const struct ref_attention *a, int64_t b, int64_t t, int64_t s)
{
    int64_t at = t + a->q_offset;
    if (a->causal && s > at)
        return 0;
    if (a->window_left >= 0 && s < at - a->window_left)
        return 0;
    if (a->window_right >= 0 && s > at + a->window_right)
        return 0;
    return a->seg_q == NULL || a->seg_q[b * a->T + t] == a->seg_k[b * a->S + s];
}

static const double *row(const double *x, int64_t b, int64_t t, int64_t h, int64_t T, int64_t H, int64_t D)
{
    return x + ((b * T + t) * H + h) * D;
}

static double dot(const double *x, const double *y, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += x[i] * y[i];
    return sum;
}

/* p[s], the probabilities of one query; returns ln sum exp, -inf when it sees nothing (then p is 0). */
static double probabilities(const struct ref_attention *a, double *p, const double *q, const double *k, int64_t b, int64_t t, int64_t h)
{
    int64_t g = h / (a->H / a->G);
    double top = -HUGE_VAL, sum = 0;
    for (int64_t s = 0; s < a->S; s++) {
        p[s] = -HUGE_VAL;
        if (ref_attention_visible(a, b, t, s))
            p[s] = a->scale * dot(row(q, b, t, h, a->T, a->H, a->D), row(k, b, s, g, a->S, a->G, a->D), a->D) +
                   (a->slopes != NULL ? (double)a->slopes[h] * (double)(s - (t + a->q_offset)) : 0);
        top = fmax(top, p[s]);
    }
    for (int64_t s = 0; s < a->S; s++) {
        p[s] = p[s] == -HUGE_VAL ? 0 : exp(p[s] - top);
        sum += p[s];
    }
    for (int64_t s = 0; s < a->S && sum > 0; s++)
        p[s] /= sum;
    return sum > 0 ? top + log(sum) : -HUGE_VAL;
}

void ref_attention_fwd(const struct ref_attention *a, double *o, double *lse, const double *q, const double *k, const double *v)
{
    double *p = calloc((size_t)a->S + 1, sizeof(double));
    memset(o, 0, (size_t)(a->B * a->T * a->H * a->D) * sizeof(double));
    for (int64_t b = 0; b < a->B; b++)
        for (int64_t t = 0; t < a->T; t++)
            for (int64_t h = 0; h < a->H; h++) {
                lse[(b * a->H + h) * a->T + t] = probabilities(a, p, q, k, b, t, h);
                double *o_bth = o + ((b * a->T + t) * a->H + h) * a->D;
                for (int64_t s = 0; s < a->S; s++)
                    for (int64_t d = 0; d < a->D; d++)
                        o_bth[d] += p[s] * row(v, b, s, h / (a->H / a->G), a->S, a->G, a->D)[d];
            }
    free(p);
}

void ref_attention_bwd(const struct ref_attention *a, double *dq, double *dk, double *dv, const double *dout, const double *q,
                       const double *k, const double *v)
{
    double *p = calloc(2 * (size_t)a->S + 1, sizeof(double)), *dp = p + a->S;
    memset(dq, 0, (size_t)(a->B * a->T * a->H * a->D) * sizeof(double));
    memset(dk, 0, (size_t)(a->B * a->S * a->G * a->D) * sizeof(double));
    memset(dv, 0, (size_t)(a->B * a->S * a->G * a->D) * sizeof(double));
    for (int64_t b = 0; b < a->B; b++)
        for (int64_t t = 0; t < a->T; t++)
            for (int64_t h = 0; h < a->H; h++) {
                int64_t g = h / (a->H / a->G), q_at = ((b * a->T + t) * a->H + h) * a->D;
                double mean = 0;
                probabilities(a, p, q, k, b, t, h);
                for (int64_t s = 0; s < a->S; s++) {
                    dp[s] = dot(dout + q_at, row(v, b, s, g, a->S, a->G, a->D), a->D);
                    mean += p[s] * dp[s];
                }
                for (int64_t s = 0; s < a->S; s++) {
                    int64_t k_at = ((b * a->S + s) * a->G + g) * a->D;
                    double ds = a->scale * p[s] * (dp[s] - mean);
                    for (int64_t d = 0; d < a->D; d++) {
                        dv[k_at + d] += p[s] * dout[q_at + d];
                        dk[k_at + d] += ds * q[q_at + d];
                        dq[q_at + d] += ds * k[k_at + d];
                    }
                }
            }
    free(p);
}
