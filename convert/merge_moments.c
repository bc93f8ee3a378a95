/* Moments of a layer's heads from those of its input: with n~ = (n; 1), W~ = [W | b] and N = E[n~ n~^T], E[k k^T] = W~ N W~^T, and the
 * same for v and q. Without N (the weight-only form) N is 1.
 *   K's weight M_j = sum over readers of E[q q^T]: where positions rotate, one number for each plane, E|q_p|^2 (a full weight would not
 *   commute with the rotation); V's is the sum over readers of W_O,h^T W_O,h.
 * Keys that meet the softmax unrotated count without their mean: q . mean is the same for every key, and the softmax does not see it.
 * RIDGE keeps every M_j positive definite: a direction that no query uses still counts a millionth of the average. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "linalg.h"
#include "merge_parts.h"

#define RIDGE 1e-6

/* Rows of a weight with their bias (NULL: none) against the input's moments (NULL: 1). */
struct rows { const double *w, *b; int64_t C; const double *N; };

/* P [n, C+1] = W~ N of rows first .. first + n. */
static void against_input(double *P, const struct rows *x, int64_t first, int64_t n)
{
    int64_t C = x->C, L = C + 1;
    for (int64_t i = 0; i < n && !x->N; i++) {
        memcpy(P + i * L, x->w + (first + i) * C, (size_t)C * sizeof *P);
        P[i * L + C] = x->b ? x->b[first + i] : 0;
    }
    if (!x->N)
        return;
    mul(P, L, x->w + first * C, C, PLAIN, x->N, L, PLAIN, n, L, C, 1, 0);
    for (int64_t i = 0; x->b && i < n; i++)
        for (int64_t c = 0; c < L; c++)
            P[i * L + c] += x->b[first + i] * x->N[C * L + c];
}

/* out [n, count] (leading dimension ld) += P W~^T, the rows of W~ from `first` on. */
static void with_rows(double *out, int64_t ld, const double *P, int64_t n, const struct rows *x, int64_t first, int64_t count)
{
    int64_t C = x->C, L = C + 1;
    mul(out, ld, P, L, PLAIN, x->w + first * C, C, TRANSPOSED, n, count, C, 1, 1);
    for (int64_t i = 0; x->b && i < n; i++)
        for (int64_t j = 0; j < count; j++)
            out[i * ld + j] += P[i * L + C] * x->b[first + j];
}

/* 1 for a dim whose mean the softmax does not see. */
static int is_centred(const struct attention_layer *a, int64_t dim) { return a->qk_norm == QK_NORM_NONE && dim >= a->rotary; }

/* Second moments of all heads' rows, head by head; the mean taken out of the dims that do not see it (centred: K's). */
static void all_heads(double *out, const struct attention_layer *a, const struct rows *x, int centred, double *room, double *mean)
{
    int64_t D = a->D, n = a->G * D, L = a->C + 1;
    memset(out, 0, (size_t)(n * n) * sizeof *out);
#pragma omp parallel for schedule(dynamic)
    for (int64_t j = 0; j < a->G; j++) {
        double *P = room + j * D * L;
        against_input(P, x, j * D, D);
        with_rows(out + j * D * n, n, P, D, x, 0, n);
        for (int64_t i = 0; i < D; i++)
            mean[j * D + i] = P[i * L + a->C];
    }
    for (int64_t i = 0; i < n; i++) /* equal but for rounding: make it exactly so */
        for (int64_t j = 0; j <= i; j++) {
            double v = (out[i * n + j] + out[j * n + i]) / 2;
            if (centred && is_centred(a, i % D) && is_centred(a, j % D))
                v -= mean[i] * mean[j];
            out[i * n + j] = out[j * n + i] = v;
        }
}

/* One head's weights, each source head's readers summed. */
static void query_weights(double *kw, const struct attention_layer *a, const struct rows *q, double *room)
{
    int64_t D = a->D, R = a->H / a->G, h2 = a->rotary / 2;
    memset(kw, 0, (size_t)(a->G * D * D) * sizeof *kw);
#pragma omp parallel for schedule(dynamic)
    for (int64_t j = 0; j < a->G; j++) {
        double *P = room + j * D * (a->C + 1), *M = kw + j * D * D;
        for (int64_t h = j * R; h < (j + 1) * R; h++) {
            against_input(P, q, h * D, D);
            with_rows(M, D, P, D, q, h * D, D);
        }
        for (int64_t p = 0; p < h2; p++)
            M[p * D + p] = M[(p + h2) * D + p + h2] = M[p * D + p] + M[(p + h2) * D + p + h2];
        for (int64_t x = 0; x < D; x++)
            for (int64_t y = 0; y < D; y++)
                if (x != y && (x < a->rotary || y < a->rotary))
                    M[x * D + y] = 0;
    }
}

static void output_weights(double *vw, const struct attention_layer *a)
{
    int64_t D = a->D, R = a->H / a->G, ld = a->H * D;
    memset(vw, 0, (size_t)(a->G * D * D) * sizeof *vw);
#pragma omp parallel for schedule(dynamic)
    for (int64_t j = 0; j < a->G; j++)
        for (int64_t h = j * R; h < (j + 1) * R; h++)
            mul(vw + j * D * D, D, a->o + h * D, ld, TRANSPOSED, a->o + h * D, ld, PLAIN, D, D, a->C, 1, 1);
}

/* Adds the ridge, and sums tr(M_j S_jj). */
static double finish_weights(double *w, const double *S, int64_t heads, int64_t D)
{
    double trace = 0, size = 0;
    for (int64_t j = 0; j < heads; j++)
        for (int64_t i = 0; i < D; i++)
            trace += w[(j * D + i) * D + i];
    double ridge = trace > 0 ? RIDGE * trace / (double)(heads * D) : 1;
    for (int64_t j = 0; j < heads; j++)
        for (int64_t i = 0; i < D; i++) {
            w[(j * D + i) * D + i] += ridge;
            for (int64_t k = 0; k < D; k++)
                size += w[(j * D + i) * D + k] * S[(j * D + k) * heads * D + j * D + i];
        }
    return size;
}

/* What a norm of the keys leaves free: see merge.h. */
static void find_freedom(struct moments *s, const struct attention_layer *a)
{
    int h2 = (int)s->planes, turns = a->qk_norm == QK_NORM_HEAD && a->norm_rms;
    s->rest = a->qk_norm == QK_NORM_NONE ? FREE : FIXED;
    for (int p = 0; p < h2; p++) {
        s->plane[p] = a->qk_norm == QK_NORM_NONE ? FREE : FIXED;
        if (turns && fabs(a->q_norm[p] - a->q_norm[p + h2]) <= 1e-6 * fabs(a->q_norm[p]) &&
            fabs(a->k_norm[p] - a->k_norm[p + h2]) <= 1e-6 * fabs(a->k_norm[p]))
            s->plane[p] = TURN;
    }
}

enum code moments_new(struct moments *s, const struct attention_layer *a, const struct merge_input *input)
{
    int64_t D = a->D, n = a->G * D, planes = a->rotary / 2;
    const double *N = input ? input->moments : NULL;
    *s = (struct moments){.heads = a->G, .D = D, .planes = planes};
    s->memory = malloc((size_t)(2 * n * n + 2 * n * D) * sizeof(double) + (size_t)(planes + 1) * sizeof *s->plane);
    double *room = malloc((size_t)(n * (a->C + 2)) * sizeof *room);
    if (!s->memory || !room) {
        free(s->memory);
        free(room);
        s->memory = NULL;
        return fail(ERR_MEMORY, "out of memory for the moments of layer %lld's heads", (long long)a->layer);
    }
    s->kk = s->memory;
    s->vv = s->kk + n * n;
    s->kw = s->vv + n * n;
    s->vw = s->kw + n * D;
    s->plane = (enum freedom *)(void *)(s->vw + n * D);
    struct rows k = {a->k, a->k_bias, a->C, N}, v = {a->v, a->v_bias, a->C, N}, q = {a->q, a->q_bias, a->C, N};
    double *mean = room + n * (a->C + 1);
    all_heads(s->kk, a, &k, 1, room, mean);
    all_heads(s->vv, a, &v, 0, room, mean);
    query_weights(s->kw, a, &q, room);
    output_weights(s->vw, a);
    free(room);
    s->k_size = finish_weights(s->kw, s->kk, a->G, D);
    s->v_size = finish_weights(s->vw, s->vv, a->G, D);
    find_freedom(s, a);
    return OK;
}

void moments_free(struct moments *s)
{
    free(s->memory);
    *s = (struct moments){0};
}

enum code keys_to_merge(struct attention_layer *source, double **memory, const struct attention_layer *a, int64_t m)
{
    *source = *a;
    *memory = NULL;
    if (a->qk_norm != QK_NORM_FULL || m == 1)
        return OK;
    int64_t n = a->G * a->D;
    double *scaled = malloc((size_t)(n * (a->C + 1)) * sizeof *scaled);
    if (!scaled)
        return fail(ERR_MEMORY, "out of memory for layer %lld's keys", (long long)a->layer);
    *memory = source->k = scaled;
    source->k_bias = a->k_bias ? scaled + n * a->C : NULL;
    for (int64_t i = 0; i < n; i++) {
        for (int64_t c = 0; c < a->C; c++)
            scaled[i * a->C + c] = a->k_norm[i] * a->k[i * a->C + c];
        if (a->k_bias)
            source->k_bias[i] = a->k_norm[i] * a->k_bias[i];
    }
    return OK;
}
