/* Row norms and rotary positions: checks and ranges. The sums over rows for dw and db are taken over a fixed number of row
 * blocks and added in order, so they do not depend on the number of threads. */
#include "cpu.h"

#include <omp.h>
#include <string.h>

#define ROW_BLOCKS 16
#define ROW_BLOCK_MIN 8 /* rows */

static float *row_or_null(struct view x) { return x.p; }

enum code cpu_norm_fwd(struct device *dev, struct view y, struct view sum, struct view mean, struct view rstd, struct view x, struct view residual,
                       struct view w, struct view b, enum norm_kind kind, float eps)
{
    const char *op = "norm_fwd";
    TRY(cpu_check(op, "x", x, DT_F32, 2, -1, -1, 0));
    const int64_t N = x.n[0], C = x.n[1];
    TRY(cpu_check(op, "y", y, DT_F32, 2, N, C, 0));
    TRY(cpu_check(op, "sum", sum, DT_F32, 2, N, C, 1));
    TRY(cpu_check(op, "residual", residual, DT_F32, 2, N, C, 1));
    TRY(cpu_check(op, "mean", mean, DT_F32, 1, N, -1, 1));
    TRY(cpu_check(op, "rstd", rstd, DT_F32, 1, N, -1, 1));
    TRY(cpu_check(op, "w", w, DT_F32, 1, C, -1, 1));
    TRY(cpu_check(op, "b", b, DT_F32, 1, C, -1, 1));
    if ((unsigned)kind > NORM_LAYER_NOP)
        return fail(ERR_UNSUPPORTED, "%s: norm kind %d is unknown", op, (int)kind);
    const int plain = kind == NORM_LAYER_NOP;
    const struct norm_job job = {.y = y.p, .sum = row_or_null(sum), .mean = mean.p, .rstd = rstd.p, .x = x.p, .residual = residual.p,
                                 .w = plain ? NULL : w.p, .b = plain ? NULL : b.p, .ldy = y.s[0], .ldsum = sum.s[0], .ldx = x.s[0],
                                 .ldr = residual.s[0], .C = C, .kind = kind, .eps = eps};
#pragma omp parallel num_threads(cpu_team(dev, N * C * 8))
    {
        struct range r = cpu_range(N, 1, omp_get_num_threads(), omp_get_thread_num());
        dev->loops->norm_fwd(&job, r.lo, r.hi);
    }
    return OK;
}

enum code cpu_norm_bwd(struct device *dev, struct view dx, struct view dw, struct view db, struct view dy, struct view dresidual, struct view x,
                       struct view w, struct view mean, struct view rstd, enum norm_kind kind)
{
    const char *op = "norm_bwd";
    TRY(cpu_check(op, "x", x, DT_F32, 2, -1, -1, 0));
    const int64_t N = x.n[0], C = x.n[1];
    TRY(cpu_check(op, "dx", dx, DT_F32, 2, N, C, 0));
    TRY(cpu_check(op, "dy", dy, DT_F32, 2, N, C, 0));
    TRY(cpu_check(op, "dresidual", dresidual, DT_F32, 2, N, C, 1));
    TRY(cpu_check(op, "dw", dw, DT_F32, 1, C, -1, 1));
    TRY(cpu_check(op, "db", db, DT_F32, 1, C, -1, 1));
    TRY(cpu_check(op, "w", w, DT_F32, 1, C, -1, 1));
    TRY(cpu_check(op, "mean", mean, DT_F32, 1, N, -1, kind == NORM_RMS || kind == NORM_RMS1P));
    TRY(cpu_check(op, "rstd", rstd, DT_F32, 1, N, -1, 0));
    if ((unsigned)kind > NORM_LAYER_NOP)
        return fail(ERR_UNSUPPORTED, "%s: norm kind %d is unknown", op, (int)kind);
    const int sums = (dw.p != NULL) + (db.p != NULL);
    int64_t blocks = (N + ROW_BLOCK_MIN - 1) / ROW_BLOCK_MIN;
    blocks = blocks > ROW_BLOCKS ? ROW_BLOCKS : blocks;
    const int64_t room = sums ? (int64_t)CPU_SHARED_BYTES / (C * 4 * sums) : blocks;
    if (room < 1)
        return fail(ERR_UNSUPPORTED, "%s: rows of %lld; the CPU backend sums at most %lld columns", op, (long long)C, (long long)CPU_SHARED_BYTES / 8);
    blocks = blocks > room ? room : blocks;
    float *partial = (float *)(void *)dev->shared;
    const struct norm_bwd_job job = {.dx = dx.p, .dy = dy.p, .dres = dresidual.p, .x = x.p, .w = kind == NORM_LAYER_NOP ? NULL : w.p,
                                     .mean = mean.p, .rstd = rstd.p, .lddx = dx.s[0], .lddy = dy.s[0], .lddres = dresidual.s[0], .ldx = x.s[0],
                                     .C = C, .kind = kind};
#pragma omp parallel num_threads(cpu_team(dev, N * C * 8))
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < blocks; i++) {
            struct range r = cpu_range(N, 1, (int)blocks, (int)i);
            float *mine = partial + i * C * sums;
            if (sums)
                dev->loops->fill(mine, 0, C * sums);
            dev->loops->norm_bwd(&job, dw.p ? mine : NULL, db.p ? mine + (sums - 1) * C : NULL, r.lo, r.hi);
        }
        struct range c = cpu_range(C, 16, omp_get_num_threads(), omp_get_thread_num());
        for (int64_t i = 0; i < blocks; i++) {
            const float *mine = partial + i * C * sums;
            if (dw.p)
                dev->loops->axpby(view_f32(dw) + c.lo, mine + c.lo, 1.0f, 1.0f, c.hi - c.lo);
            if (db.p)
                dev->loops->axpby(view_f32(db) + c.lo, mine + (sums - 1) * C + c.lo, 1.0f, 1.0f, c.hi - c.lo);
        }
    }
    return OK;
}

enum code cpu_rope(struct device *dev, struct view x, struct view cos_table, struct view sin_table, struct view pos, int inverse)
{
    const char *op = "rope";
    TRY(cpu_check(op, "x", x, DT_F32, 3, -1, -1, 0));
    TRY(cpu_check(op, "cos table", cos_table, DT_F32, 2, -1, -1, 0));
    TRY(cpu_check(op, "sin table", sin_table, DT_F32, 2, cos_table.n[0], cos_table.n[1], 0));
    TRY(cpu_check(op, "pos", pos, DT_I32, 1, x.n[0], -1, 0));
    const int64_t N = x.n[0], half = cos_table.n[1];
    if (2 * half > x.n[2])
        return fail(ERR_UNSUPPORTED, "%s: %lld rotary dims, but heads are %lld wide", op, (long long)(2 * half), (long long)x.n[2]);
    const int32_t *at = pos.p;
    for (int64_t n = 0; n < N; n++)
        if (at[n] < 0 || at[n] >= cos_table.n[0])
            return fail(ERR_INTERNAL, "%s: position %d of row %lld is outside the table of %lld", op, (int)at[n], (long long)n,
                        (long long)cos_table.n[0]);
#pragma omp parallel for num_threads(cpu_team(dev, N * x.n[1] * half * 16)) schedule(static)
    for (int64_t n = 0; n < N; n++)
        dev->loops->rope(view_f32(x) + n * x.s[0], x.n[1], x.s[1], view_f32(cos_table) + at[n] * cos_table.s[0],
                         view_f32(sin_table) + at[n] * sin_table.s[0], half, inverse);
    return OK;
}
