/* See teacher.h. p, q: classes are the tokens, or K tokens and the rest. */
#include "teacher.h"

#include <math.h>
#include <stdlib.h>

void ref_logits(double *z, const struct ref_head *h, int64_t n, int64_t V)
{
    for (int64_t v = 0; v < V; v++) {
        z[v] = h->bias != NULL ? h->bias[v] : 0;
        for (int64_t c = 0; c < h->C; c++)
            z[v] += h->x[n * h->C + c] * h->w[v * h->C + c];
        z[v] *= h->scale;
        if (h->cap > 0)
            z[v] = h->cap * tanh(z[v] / h->cap);
    }
}

/* lnp [V] = ln softmax(z / tau) */
static void log_softmax(double *lnp, const double *z, int64_t V, double tau)
{
    double max = -HUGE_VAL, sum = 0;
    for (int64_t v = 0; v < V; v++)
        max = fmax(max, z[v]);
    for (int64_t v = 0; v < V; v++)
        sum += exp((z[v] - max) / tau);
    for (int64_t v = 0; v < V; v++)
        lnp[v] = (z[v] - max) / tau - log(sum);
}

/* KL(p || q) of row n, and dq [V] = d KL / d(z / tau). lnq [V]: the student's. y [V]: room. */
static double row_kl(double *dq, const double *lnq, double *y, const struct ref_teacher *t, int64_t n, int64_t V)
{
    double kl = 0;
    if (t->head != NULL) {
        ref_logits(y, t->head, n, V);
        log_softmax(y, y, V, t->tau);
        for (int64_t v = 0; v < V; v++) {
            kl += exp(y[v]) * (y[v] - lnq[v]);
            dq[v] = exp(lnq[v]) - exp(y[v]);
        }
        return kl;
    }
    const int32_t *ids = t->ids + n * t->K;
    const double *logp = t->logp + n * t->K;
    double p_rest = 1, q_rest = 0;
    for (int64_t v = 0; v < V; v++)
        y[v] = 0; /* 1: listed */
    for (int64_t k = 0; k < t->K; k++)
        if (ids[k] >= 0) {
            y[ids[k]] = 1;
            p_rest -= exp(logp[k]);
            kl += exp(logp[k]) * (logp[k] - lnq[ids[k]]);
            dq[ids[k]] = exp(lnq[ids[k]]) - exp(logp[k]);
        }
    for (int64_t v = 0; v < V; v++)
        q_rest += y[v] > 0 ? 0 : exp(lnq[v]);
    if (p_rest < 0 || q_rest == 0)
        p_rest = 0;
    for (int64_t v = 0; v < V; v++)
        if (y[v] == 0)
            dq[v] = exp(lnq[v]) * (1 - p_rest / q_rest);
    return p_rest > 0 ? kl + p_rest * (log(p_rest) - log(q_rest)) : kl;
}

double ref_teacher_loss(const struct ref_head *student, const struct ref_teacher *t, const int32_t *targets, int64_t N, int64_t V, double *ce, double *kl)
{
    double *z = calloc((size_t)V * 4, sizeof *z), *lnq = z + V, sums[2] = {0, 0};
    for (int64_t n = 0; n < N; n++) {
        if (targets[n] < 0)
            continue;
        ref_logits(z, student, n, V);
        log_softmax(lnq, z, V, 1);
        sums[0] -= lnq[targets[n]];
        log_softmax(lnq, z, V, t->tau);
        sums[1] += row_kl(z + 2 * V, lnq, z + 3 * V, t, n, V);
    }
    free(z);
    if (ce != NULL)
        *ce = sums[0];
    if (kl != NULL)
        *kl = sums[1];
    return (1 - t->weight) * sums[0] + t->weight * t->tau * t->tau * sums[1];
}

void ref_teacher_gradient(double *dx, double *dw, double *db, const struct ref_head *student, const struct ref_teacher *t, const int32_t *targets,
                          int64_t N, int64_t V, double factor, double (*round_logit)(double))
{
    const int64_t C = student->C;
    const double cap = student->cap;
    double *z = calloc((size_t)V * 5, sizeof *z), *lnq = z + V, *dq = z + 2 * V, *plain = z + 4 * V;
    for (int64_t n = 0; n < N; n++) {
        if (targets[n] < 0 || targets[n] >= V)
            continue;
        ref_logits(z, student, n, V);
        log_softmax(plain, z, V, 1);
        log_softmax(lnq, z, V, t->tau);
        row_kl(dq, lnq, z + 3 * V, t, n, V);
        for (int64_t v = 0; v < V; v++) {
            double d = (1 - t->weight) * (exp(plain[v]) - (v == targets[n])) + t->weight * t->tau * dq[v];
            d *= factor * student->scale * (cap > 0 ? 1 - z[v] / cap * (z[v] / cap) : 1);
            d = round_logit != NULL ? round_logit(d) : d;
            for (int64_t c = 0; c < C; c++) {
                dx[n * C + c] += d * student->w[v * C + c];
                if (dw != NULL)
                    dw[v * C + c] += d * student->x[n * C + c];
            }
            if (db != NULL)
                db[v] += d;
        }
    }
    free(z);
}

void ref_topk(int32_t *ids, double *logp, const double *z, int64_t V, int64_t K, double tau)
{
    double *lnp = calloc((size_t)V, sizeof *lnp);
    char *taken = calloc((size_t)V, 1);
    log_softmax(lnp, z, V, tau);
    for (int64_t k = 0; k < K; k++) {
        int64_t best = -1;
        for (int64_t v = 0; v < V; v++)
            if (!taken[v] && (best < 0 || z[v] > z[best]))
                best = v;
        taken[best] = 1;
        ids[k] = (int32_t)best;
        logp[k] = lnp[best];
    }
    free(lnp), free(taken);
}
