/* Entropy of attention, -sum over s of p_ts ln p_ts in nats: how many tokens a query spreads over (uniform over n: ln n). A merge that mixes
 * heads which do not belong together flattens attention, so the layer's mean rises. With scores x_ts and the attention's own lse_t,
 * ln p_ts = x_ts - lse_t; a block of ROWS queries of one head is in memory at a time. */
#include "calibrate_parts.h"

#include <cblas.h>
#include <math.h>
#include <stdlib.h>

#define ROWS 32

/* One head of one sequence. Strides in floats from token to token. */
struct head { const float *q, *k, *lse; const int32_t *segment; int64_t sq, sk, T, D, window; float scale, slope; };

static double row_entropy(const struct head *a, const float *score, int64_t t)
{
    double sum = 0;
    int64_t first = a->window > 0 && t >= a->window ? t - a->window + 1 : 0;
    for (int64_t s = first; s <= t; s++) {
        if (a->segment[s] != a->segment[t])
            continue;
        double ln = (double)(score[s] + a->slope * (float)(s - t) - a->lse[t]);
        sum -= exp(ln) * ln;
    }
    return sum;
}

static double head_entropy(const struct head *a, float *scores)
{
    double sum = 0;
    for (int64_t t = 0; t < a->T; t += ROWS) {
        int64_t rows = a->T - t < ROWS ? a->T - t : ROWS, S = t + rows;
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)rows, (int)S, (int)a->D, a->scale, a->q + t * a->sq, (int)a->sq, a->k, (int)a->sk, 0.0f, scores,
                    (int)a->T);
        for (int64_t i = 0; i < rows; i++)
            sum += row_entropy(a, scores + i * a->T, t + i);
    }
    return sum;
}

enum code attention_entropy(double *sum, const struct model_block_values *v, const struct batch *b, const struct arch *arch, int64_t layer)
{
    const struct arch_block *block = &arch->stack[STACK_DEC].block[layer];
    int64_t T = b->T, H = block->H, D = block->D, R = H / v->k.n[2], n = b->B * H;
    float scale = (float)(block->scale > 0 ? block->scale : arch->attn_scale);
    double *each = malloc((size_t)n * sizeof *each);
    int failed = 0;
    if (!each)
        return fail(ERR_MEMORY, "out of memory for the entropies of a layer");
#pragma omp parallel
    {
        float *scores = malloc((size_t)(ROWS * T) * sizeof *scores);
#pragma omp for
        for (int64_t i = 0; i < n; i++) {
            int64_t row = i / H, h = i % H;
            struct head a = {view_f32(v->q) + row * v->q.s[0] + h * D, view_f32(v->k) + row * v->k.s[0] + h / R * D, view_f32(v->lse) + i * T, b->segments + row * T,
                             v->q.s[1], v->k.s[1], T, D, block->window, scale, v->alibi.p ? view_f32(v->alibi)[h] : 0.0f};
            if (scores)
                each[i] = head_entropy(&a, scores);
            else
#pragma omp atomic write
                failed = 1;
        }
        free(scores);
    }
    *sum = 0;
    for (int64_t i = 0; !failed && i < n; i++)
        *sum += each[i];
    free(each);
    return failed ? fail(ERR_MEMORY, "out of memory for the scores of a head") : OK;
}

enum code entropy_take(struct calibrating *c, int64_t layer, int after, const struct span *s, const struct model_block_values *v)
{
    struct calibration_layer *l = &c->result->layer[layer];
    double sum;
    if (s->row < c->fit_rows)
        return OK;
    TRY(attention_entropy(&sum, v, &c->batch, &c->to, layer));
    l->entropy[after] += sum;
    l->entropy_rows[after] += s->rows * c->to.stack[STACK_DEC].block[layer].H;
    return OK;
}
