/* Cross-entropy fused with the output projection, in chunks of rows: logits = x w^T (one product), each row's log-sum-exp and
 * gradient in place (xent_stats, xent_grad), dx = dlogits w and dw += dlogits^T x (two products). Only one chunk of logits
 * exists at a time.
 * Scratch: logits [chunk, V], then the bias times logit_scale [V], then loss terms f64 [chunk], then a teacher's (xent_teacher.c). */
#include "xent.h"

#include <math.h>
#include <omp.h>

#define CHUNK_BYTES ((int64_t)64 << 20)
#define CHUNK_ROWS_MAX 1024
#define CHUNK_ROWS_MIN 16

int64_t xent_chunk_most(int64_t V)
{
    int64_t rows = CHUNK_BYTES / (V * 4) / 16 * 16;
    return rows > CHUNK_ROWS_MAX ? CHUNK_ROWS_MAX : rows < CHUNK_ROWS_MIN ? CHUNK_ROWS_MIN : rows;
}

int64_t xent_chunk_rows(int64_t N, int64_t V)
{
    int64_t rows = xent_chunk_most(V), chunks = (N + rows - 1) / rows; /* of nearly equal size */
    if (chunks > 1)
        rows = ((N + chunks - 1) / chunks + 15) / 16 * 16;
    return rows < N ? rows : N;
}

size_t cpu_xent_scratch(struct device *dev, int64_t N, int64_t C, int64_t V, int64_t K)
{
    (void)dev, (void)C;
    int64_t rows = xent_chunk_most(V); /* not xent_chunk_rows(N): fewer rows than N may make larger chunks */
    rows = N < 1 ? 1 : N < rows ? N : rows;
    return xent_round(rows * V * 4) + xent_round(V * 4) + xent_round(rows * 8) + xent_teacher_scratch(rows, V, K);
}

static enum code check(struct view logp, struct view dx, struct view dw, struct view x, struct view w, struct view targets,
                       const struct xent_args *args)
{
    const char *op = "xent";
    TRY(cpu_check(op, "x", x, DT_F32, 2, -1, -1, 0));
    const int64_t N = x.n[0], C = x.n[1];
    TRY(cpu_check(op, "w", w, w.dtype == DT_BF16 && dx.p == NULL ? DT_BF16 : DT_F32, 2, -1, C, 0));
    const int64_t V = w.n[0];
    TRY(cpu_check(op, "targets", targets, DT_I32, 1, N, -1, 0));
    TRY(cpu_check(op, "logp", logp, DT_F32, 1, N, -1, 1));
    TRY(cpu_check(op, "dx", dx, DT_F32, 2, N, C, 1));
    TRY(cpu_check(op, "dw", dw, DT_F32, 2, V, C, 1));
    TRY(cpu_check(op, "bias", args->bias, DT_F32, 1, V, -1, 1));
    TRY(cpu_check(op, "dbias", args->dbias, DT_F32, 1, V, -1, 1));
    if (args->teacher != NULL)
        TRY(xent_teacher_check(args->teacher, N, V));
    if (dx.p == NULL && dw.p != NULL)
        return fail(ERR_UNSUPPORTED, "%s: a gradient of the head is wanted without one of its input", op);
    if (dx.p != NULL && args->inv_count == NULL)
        return fail(ERR_UNSUPPORTED, "%s: gradients need inv_count", op);
    const int32_t *target = targets.p;
    for (int64_t n = 0; n < N; n++)
        if (target[n] < -1 || target[n] >= V)
            return fail(ERR_INTERNAL, "%s: target %d of row %lld is outside the vocabulary of %lld", op, (int)target[n], (long long)n, (long long)V);
    return OK;
}

/* Losses and, with gradient, gradients of the logits of `rows` rows. teach NULL: no teacher. */
static void chunk_rows_run(const struct device *dev, float *logits, const float *bias, double *loss, float *logp, const int32_t *target, int64_t rows,
                           int64_t V, float softcap, int gradient, float factor, const struct xent_teach *teach)
{
#pragma omp parallel for num_threads(cpu_team(dev, rows * V * 4)) schedule(static)
    for (int64_t n = 0; n < rows; n++) {
        const struct xent_row row = {.l = logits + n * V, .bias = bias, .V = V, .softcap = softcap};
        const int keep_exp = gradient && softcap <= 0 && teach == NULL;
        loss[n] = 0;
        if (logp != NULL)
            logp[n] = 0;
        if (target[n] < 0) {
            if (gradient)
                dev->loops->fill(row.l, 0, V);
            continue;
        }
        float max, raw = row.l[target[n]] + (bias != NULL ? bias[target[n]] : 0.0f);
        double sum;
        dev->loops->xent_stats(&row, keep_exp, &max, &sum);
        double z = softcap > 0 ? (double)softcap * tanh((double)raw / (double)softcap) : (double)raw;
        loss[n] = (double)max + log(sum) - z;
        if (logp != NULL)
            logp[n] = (float)-loss[n];
        if (teach != NULL)
            xent_teach_row(dev, teach, n, &row, max, sum, target[n], gradient, factor);
        else if (gradient)
            dev->loops->xent_grad(&row, keep_exp, max, sum, target[n], factor);
    }
}

enum code cpu_xent(struct device *dev, double *loss_sum, int64_t *count, struct view logp, struct view dx, struct view dw, struct view x,
                   struct view w, struct view targets, const struct xent_args *args, void *scratch)
{
    TRY(check(logp, dx, dw, x, w, targets, args));
    const int64_t N = x.n[0], V = w.n[0];
    if (N == 0)
        return OK;
    CHECK(scratch != NULL && (uintptr_t)scratch % 64 == 0);
    const int64_t rows_max = xent_chunk_rows(N, V);
    float *logits = scratch, *bias = (float *)(void *)((char *)scratch + xent_round(rows_max * V * 4));
    double *loss = (double *)(void *)((char *)bias + xent_round(V * 4));
    const float scale = args->logit_scale;
    const struct xent_teacher *t = args->teacher;
    struct xent_teach teaching, *teach = t != NULL && (t->weight > 0 || t->kl_sum != NULL) ? &teaching : NULL;
    if (teach != NULL)
        xent_teach_init(dev, teach, t, rows_max, V, (char *)loss + xent_round(rows_max * 8));
    if (args->bias.p != NULL)
        dev->loops->axpby(bias, args->bias.p, scale, 0, V);
    for (int64_t n0 = 0; n0 < N; n0 += rows_max) {
        const int64_t rows = N - n0 < rows_max ? N - n0 : rows_max;
        const int32_t *target = (const int32_t *)targets.p + n0;
        struct view l = view_2d(logits, DT_F32, rows, V), xs = view_slice(x, 0, n0, rows);
        TRY(cpu_matmul(dev, l, xs, w, view_none(), 0, 1, scale, 0));
        if (teach != NULL)
            TRY(xent_teach_chunk(dev, teach, n0, rows));
        chunk_rows_run(dev, logits, args->bias.p != NULL ? bias : NULL, loss, logp.p != NULL ? view_f32(logp) + n0 : NULL, target, rows, V,
                       args->logit_softcap, dx.p != NULL, dx.p != NULL ? *args->inv_count * scale : 0.0f, teach);
        for (int64_t n = 0; n < rows; n++)
            if (target[n] >= 0) {
                *loss_sum += loss[n];
                if (teach != NULL && t->kl_sum != NULL)
                    *t->kl_sum += teach->kl[n];
                ++*count;
            }
        if (dx.p == NULL)
            continue;
        TRY(cpu_matmul(dev, view_slice(dx, 0, n0, rows), l, w, view_none(), 0, 0, 1, 0));
        if (dw.p != NULL)
            TRY(cpu_matmul(dev, dw, l, xs, view_none(), 1, 0, 1, 1));
        if (args->dbias.p != NULL) {
            /* the bias enters before the scale, so its gradient carries it too: already in the factor */
            TRY(cpu_bias_grad(dev, args->dbias, l));
        }
    }
    return OK;
}
