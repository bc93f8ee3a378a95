/* See ops.h. */
#include "ops.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>

void ref_matmul(double *c, const double *a, const double *b, const double *bias, int64_t M, int64_t N, int64_t K, int trans_a, int trans_b,
                double alpha, double beta)
{
    for (int64_t m = 0; m < M; m++)
        for (int64_t n = 0; n < N; n++) {
            double s = 0;
            for (int64_t k = 0; k < K; k++)
                s += (trans_a ? a[k * M + m] : a[m * K + k]) * (trans_b ? b[n * K + k] : b[k * N + n]);
            c[m * N + n] = alpha * s + (beta != 0 ? beta * c[m * N + n] : 0) + (bias != NULL ? bias[n] : 0);
        }
}

void ref_norm(double *y, double *mean, double *rstd, const double *x, const double *w, const double *b, int64_t N, int64_t C, enum norm_kind kind,
              double eps)
{
    for (int64_t t = 0; t < N; t++) {
        const double *row = x + t * C;
        double mu = 0, var = 0;
        if (kind == NORM_LAYER || kind == NORM_LAYER_NOP)
            for (int64_t i = 0; i < C; i++)
                mu += row[i] / (double)C;
        for (int64_t i = 0; i < C; i++)
            var += (row[i] - mu) * (row[i] - mu) / (double)C;
        double r = 1 / sqrt(var + eps);
        for (int64_t i = 0; i < C; i++) {
            double weight = kind == NORM_LAYER_NOP || w == NULL ? 1 : kind == NORM_RMS1P ? 1 + w[i] : w[i];
            y[t * C + i] = (row[i] - mu) * r * weight + (b != NULL && kind != NORM_LAYER_NOP ? b[i] : 0);
        }
        if (mean != NULL)
            mean[t] = mu;
        if (rstd != NULL)
            rstd[t] = r;
    }
}

void ref_rope(double *x, int64_t heads, int64_t D, const double *cosines, const double *sines, int64_t half)
{
    for (int64_t h = 0; h < heads; h++)
        for (int64_t i = 0; i < half; i++) {
            double a = x[h * D + i], b = x[h * D + half + i];
            x[h * D + i] = a * cosines[i] - b * sines[i];
            x[h * D + half + i] = a * sines[i] + b * cosines[i];
        }
}

double ref_act(double gate, double up, enum mlp_kind kind)
{
    const double x = mlp_is_gated(kind) ? gate : up, pi = acos(-1.0);
    double value = 0;
    switch (kind) {
    case MLP_SWIGLU: value = x / (1 + exp(-x)); break;
    case MLP_GEGLU_TANH:
    case MLP_GELU_TANH: value = 0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x * x * x))); break;
    case MLP_GEGLU_ERF:
    case MLP_GELU_ERF: value = 0.5 * x * (1 + erf(x / sqrt(2.0))); break;
    case MLP_RELU: value = x > 0 ? x : 0; break;
    }
    return mlp_is_gated(kind) ? value * up : value;
}

double ref_xent(double *logp, const double *x, const double *w, const double *bias, const int32_t *targets, int64_t N, int64_t C, int64_t V,
                double logit_scale, double softcap)
{
    double loss = 0, *z = malloc((size_t)V * sizeof *z);
    for (int64_t n = 0; n < N; n++) {
        if (logp != NULL)
            logp[n] = 0;
        if (targets[n] < 0)
            continue;
        double max = -HUGE_VAL, sum = 0;
        for (int64_t v = 0; v < V; v++) {
            z[v] = bias != NULL ? bias[v] : 0;
            for (int64_t c = 0; c < C; c++)
                z[v] += x[n * C + c] * w[v * C + c];
            z[v] *= logit_scale;
            if (softcap > 0)
                z[v] = softcap * tanh(z[v] / softcap);
            max = fmax(max, z[v]);
        }
        for (int64_t v = 0; v < V; v++)
            sum += exp(z[v] - max);
        double lnp = z[targets[n]] - max - log(sum);
        loss -= lnp;
        if (logp != NULL)
            logp[n] = lnp;
    }
    free(z);
    return loss;
}

void ref_adamw(double *p, double *m, double *v, double g, double lr, double beta1, double beta2, double eps, double decay, int64_t step)
{
    *m = beta1 * *m + (1 - beta1) * g;
    *v = beta2 * *v + (1 - beta2) * g * g;
    double mhat = *m / (1 - pow(beta1, (double)step)), vhat = *v / (1 - pow(beta2, (double)step));
    *p -= lr * (mhat / (sqrt(vhat) + eps) + decay * *p);
}
