/* The likeliest tokens of each row, in chunks of rows as in xent: logits = x w^T, bias and cap, then one scan with a heap of the K best so
 * far, whose root is the worst of them; sorted at the end. Tokens come by rising id, so one that equals the root never replaces it
 * and the lower id stays.
 * Scratch: logits [chunk, V], then the bias times logit_scale [V], then heaps [chunk, K]. */
#include "xent.h"

#include <math.h>

struct token { float z; int32_t id; };

size_t cpu_topk_scratch(struct device *dev, int64_t N, int64_t C, int64_t V, int64_t K)
{
    (void)dev, (void)C;
    int64_t rows = xent_chunk_most(V);
    rows = N < 1 ? 1 : N < rows ? N : rows;
    return xent_round(rows * V * 4) + xent_round(V * 4) + xent_round(rows * K * (int64_t)sizeof(struct token));
}

static int worse(struct token a, struct token b) { return a.z < b.z || (a.z == b.z && a.id > b.id); }

/* Puts t at the root of the heap of n and lets it sink. */
static void sink(struct token *heap, int64_t n, struct token t)
{
    int64_t at = 0;
    for (int64_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && worse(heap[child + 1], heap[child]))
            child++;
        if (!worse(heap[child], t))
            break;
        heap[at] = heap[child];
    }
    heap[at] = t;
}

/* heap [K] becomes the K best of z [V], the best first. */
static void row_choose(struct token *heap, const float *z, int64_t V, int64_t K)
{
    for (int64_t v = 0; v < K; v++) { /* rises to its place */
        const struct token t = {z[v], (int32_t)v};
        int64_t at = v;
        for (; at > 0 && worse(t, heap[(at - 1) / 2]); at = (at - 1) / 2)
            heap[at] = heap[(at - 1) / 2];
        heap[at] = t;
    }
    for (int64_t v = K; v < V; v++)
        if (z[v] > heap[0].z) {
            const struct token t = {z[v], (int32_t)v};
            sink(heap, K, t);
        }
    for (int64_t n = K - 1; n > 0; n--) { /* the worst goes last */
        const struct token last = heap[n];
        heap[n] = heap[0];
        sink(heap, n, last);
    }
}

static enum code check(struct view ids, struct view logp, struct view x, struct view w, struct view bias, float temperature)
{
    const char *op = "topk";
    TRY(cpu_check(op, "x", x, DT_F32, 2, -1, -1, 0));
    TRY(cpu_check(op, "w", w, w.dtype == DT_BF16 ? DT_BF16 : DT_F32, 2, -1, x.n[1], 0));
    TRY(cpu_check(op, "bias", bias, DT_F32, 1, w.n[0], -1, 1));
    TRY(cpu_check(op, "ids", ids, DT_I32, 2, x.n[0], -1, 0));
    TRY(cpu_check(op, "logp", logp, DT_F32, 2, x.n[0], ids.n[1], 0));
    if (ids.n[1] < 1 || ids.n[1] > w.n[0] || w.n[0] > INT32_MAX)
        return fail(ERR_UNSUPPORTED, "%s: %lld tokens of a vocabulary of %lld; there must be 1 to all of them", op, (long long)ids.n[1], (long long)w.n[0]);
    if (!(temperature > 0 && isfinite(temperature)))
        return fail(ERR_UNSUPPORTED, "%s: a temperature of %g; it must be above 0", op, (double)temperature);
    return OK;
}

enum code cpu_topk(struct device *dev, struct view ids, struct view logp, struct view x, struct view w, struct view bias, float logit_scale,
                   float logit_softcap, float temperature, void *scratch)
{
    TRY(check(ids, logp, x, w, bias, temperature));
    const int64_t N = x.n[0], V = w.n[0], K = ids.n[1];
    if (N == 0)
        return OK;
    CHECK(scratch != NULL && (uintptr_t)scratch % 64 == 0);
    const int64_t rows_max = xent_chunk_rows(N, V);
    float *logits = scratch, *scaled = (float *)(void *)((char *)scratch + xent_round(rows_max * V * 4));
    struct token *heaps = (struct token *)(void *)((char *)scaled + xent_round(V * 4));
    if (bias.p != NULL)
        dev->loops->axpby(scaled, bias.p, logit_scale, 0, V);
    for (int64_t n0 = 0; n0 < N; n0 += rows_max) {
        const int64_t rows = N - n0 < rows_max ? N - n0 : rows_max;
        TRY(cpu_matmul(dev, view_2d(logits, DT_F32, rows, V), view_slice(x, 0, n0, rows), w, view_none(), 0, 1, logit_scale, 0));
#pragma omp parallel for num_threads(cpu_team(dev, rows * V * 4)) schedule(static)
        for (int64_t n = 0; n < rows; n++) {
            const struct xent_row row = {.l = logits + n * V, .bias = bias.p != NULL ? scaled : NULL, .V = V, .softcap = logit_softcap};
            const float max = dev->loops->xent_see(&row);
            const double lse = log(dev->loops->xent_sum(row.l, V, max, 1.0f / temperature));
            struct token *heap = heaps + n * K;
            int32_t *id = (int32_t *)ids.p + (n0 + n) * ids.s[0];
            float *lnp = view_f32(logp) + (n0 + n) * logp.s[0];
            if (isfinite(lse))
                row_choose(heap, row.l, V, K);
            for (int64_t k = 0; k < K; k++) {
                id[k] = isfinite(lse) ? heap[k].id : -1;
                lnp[k] = isfinite(lse) ? (float)(((double)heap[k].z - (double)max) / (double)temperature - lse) : NAN;
            }
        }
    }
    return OK;
}
