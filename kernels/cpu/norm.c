/* Row norms, norms of heads, and rotary positions: checks and ranges. The sums over rows for dw and db are taken over a fixed number of row
 * blocks and added in order, so they do not depend on the number of threads. */
#include "cpu.h"

#include <omp.h>
#include <string.h>

#define ROW_BLOCKS 16
#define ROW_BLOCK_MIN 8 /* rows */

/* Row blocks whose sums of `width` columns fit into the shared workspace; -1 when not even one does. */
static int64_t row_blocks(int64_t N, int64_t width)
{
    int64_t blocks = (N + ROW_BLOCK_MIN - 1) / ROW_BLOCK_MIN;
    blocks = blocks > ROW_BLOCKS ? ROW_BLOCKS : blocks;
    const int64_t room = width ? (int64_t)CPU_SHARED_BYTES / (width * 4) : blocks;
    return room < 1 && blocks > 0 ? -1 : blocks > room ? room : blocks;
}

static float *row_or_null(struct view x) { return x.p; }

/* Both forwards: the sum x + residual before, base after. */
struct around { struct view sum, residual, base; };

static enum code norm_rows(const char *op, struct device *dev, struct view y, struct view mean, struct view rstd, struct view x,
                           const struct around *around, struct view w, struct view b, enum norm_kind kind, float eps)
{
    struct view sum = around->sum, residual = around->residual, base = around->base;
    TRY(cpu_check(op, "x", x, DT_F32, 2, -1, -1, 0));
    const int64_t N = x.n[0], C = x.n[1];
    TRY(cpu_check(op, "y", y, DT_F32, 2, N, C, 0));
    TRY(cpu_check(op, "sum", sum, DT_F32, 2, N, C, 1));
    TRY(cpu_check(op, "residual", residual, DT_F32, 2, N, C, 1));
    TRY(cpu_check(op, "base", base, DT_F32, 2, N, C, 1));
    TRY(cpu_check(op, "mean", mean, DT_F32, 1, N, -1, 1));
    TRY(cpu_check(op, "rstd", rstd, DT_F32, 1, N, -1, 1));
    TRY(cpu_check(op, "w", w, DT_F32, 1, C, -1, 1));
    TRY(cpu_check(op, "b", b, DT_F32, 1, C, -1, 1));
    if ((unsigned)kind > NORM_LAYER_NOP)
        return fail(ERR_UNSUPPORTED, "%s: norm kind %d is unknown", op, (int)kind);
    const int plain = kind == NORM_LAYER_NOP;
    const struct norm_job job = {.y = y.p, .sum = row_or_null(sum), .mean = mean.p, .rstd = rstd.p, .x = x.p, .residual = residual.p,
                                 .base = base.p, .w = plain ? NULL : w.p, .b = plain ? NULL : b.p, .ldy = y.s[0], .ldsum = sum.s[0],
                                 .ldx = x.s[0], .ldr = residual.s[0], .ldbase = base.s[0], .C = C, .kind = kind, .eps = eps};
#pragma omp parallel num_threads(cpu_team(dev, N * C * 8))
    {
        struct range r = cpu_range(N, 1, omp_get_num_threads(), omp_get_thread_num());
        dev->loops->norm_fwd(&job, r.lo, r.hi);
    }
    return OK;
}

enum code cpu_norm_fwd(struct device *dev, struct view y, struct view sum, struct view mean, struct view rstd, struct view x, struct view residual,
                       struct view w, struct view b, enum norm_kind kind, float eps)
{
    const struct around a = {sum, residual, view_none()};
    return norm_rows("norm_fwd", dev, y, mean, rstd, x, &a, w, b, kind, eps);
}

enum code cpu_norm_add_fwd(struct device *dev, struct view y, struct view mean, struct view rstd, struct view x, struct view base, struct view w,
                           struct view b, enum norm_kind kind, float eps)
{
    const struct around a = {view_none(), view_none(), base};
    TRY(cpu_check("norm_add_fwd", "base", base, DT_F32, 2, -1, -1, 0));
    return norm_rows("norm_add_fwd", dev, y, mean, rstd, x, &a, w, b, kind, eps);
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
    const int64_t blocks = row_blocks(N, C * sums);
    if (blocks < 0)
        return fail(ERR_UNSUPPORTED, "%s: rows of %lld; the CPU backend sums at most %lld columns", op, (long long)C, (long long)CPU_SHARED_BYTES / 8);
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

/* What the two head norms check of the operation's x [N,heads,D]-shaped arguments, and whether w has a row for each head. */
static enum code check_heads(const char *op, const char *name, struct view v, struct view x)
{
    TRY(cpu_check(op, name, v, DT_F32, 3, x.n[0], x.n[1], 0));
    return v.n[2] == x.n[2] ? OK : fail(ERR_UNSUPPORTED, "%s: axis 2 of %s is %lld, must be %lld", op, name, (long long)v.n[2], (long long)x.n[2]);
}

static enum code check_head_weight(const char *op, const char *name, struct view w, struct view x, int *per_head)
{
    TRY(cpu_check(op, name, w, DT_F32, 1, -1, -1, 1));
    if (w.p != NULL && w.n[0] != x.n[2] && w.n[0] != x.n[1] * x.n[2])
        return fail(ERR_UNSUPPORTED, "%s: %s has %lld elements; %lld heads of %lld take one row or one each", op, name, (long long)w.n[0],
                    (long long)x.n[1], (long long)x.n[2]);
    *per_head = w.p != NULL && w.n[0] != x.n[2];
    return OK;
}

enum code cpu_head_norm_fwd(struct device *dev, struct view y, struct view mean, struct view rstd, struct view x, struct view w, enum norm_kind kind,
                            float eps)
{
    const char *op = "head_norm_fwd";
    int per_head = 0;
    TRY(cpu_check(op, "x", x, DT_F32, 3, -1, -1, 0));
    const int64_t N = x.n[0], heads = x.n[1], D = x.n[2];
    TRY(check_heads(op, "y", y, x));
    TRY(cpu_check(op, "mean", mean, DT_F32, 1, N * heads, -1, 1));
    TRY(cpu_check(op, "rstd", rstd, DT_F32, 1, N * heads, -1, 1));
    TRY(check_head_weight(op, "w", w, x, &per_head));
    if ((unsigned)kind > NORM_LAYER_NOP)
        return fail(ERR_UNSUPPORTED, "%s: norm kind %d is unknown", op, (int)kind);
    const int64_t rows = per_head ? 1 : heads; /* of one call of the loop: its rows share a weight */
#pragma omp parallel num_threads(cpu_team(dev, N * heads * D * 8))
    {
        struct range r = cpu_range(N, 1, omp_get_num_threads(), omp_get_thread_num());
        for (int64_t i = r.lo * heads; i < r.hi * heads; i += rows) {
            const int64_t n = i / heads, h = i % heads;
            const struct norm_job job = {.y = view_f32(y) + n * y.s[0] + h * y.s[1], .x = view_f32(x) + n * x.s[0] + h * x.s[1],
                                         .mean = mean.p ? view_f32(mean) + i : NULL, .rstd = rstd.p ? view_f32(rstd) + i : NULL,
                                         .w = w.p && kind != NORM_LAYER_NOP ? view_f32(w) + (per_head ? h * D : 0) : NULL, .ldy = y.s[1],
                                         .ldx = x.s[1], .C = D, .kind = kind, .eps = eps};
            dev->loops->norm_fwd(&job, 0, rows);
        }
    }
    return OK;
}

enum code cpu_head_norm_bwd(struct device *dev, struct view dx, struct view dw, struct view dy, struct view x, struct view w, struct view mean,
                            struct view rstd, enum norm_kind kind)
{
    const char *op = "head_norm_bwd";
    int per_head = 0, dw_per_head = 0;
    TRY(cpu_check(op, "x", x, DT_F32, 3, -1, -1, 0));
    const int64_t N = x.n[0], heads = x.n[1], D = x.n[2];
    TRY(check_heads(op, "dx", dx, x));
    TRY(check_heads(op, "dy", dy, x));
    TRY(cpu_check(op, "mean", mean, DT_F32, 1, N * heads, -1, kind == NORM_RMS || kind == NORM_RMS1P));
    TRY(cpu_check(op, "rstd", rstd, DT_F32, 1, N * heads, -1, 0));
    TRY(check_head_weight(op, "w", w, x, &per_head));
    TRY(check_head_weight(op, "dw", dw, x, &dw_per_head));
    if ((unsigned)kind > NORM_LAYER_NOP)
        return fail(ERR_UNSUPPORTED, "%s: norm kind %d is unknown", op, (int)kind);
    const int64_t width = dw.p ? dw.n[0] : 0, rows = per_head || dw_per_head ? 1 : heads;
    int64_t blocks = row_blocks(N, width);
    if (blocks < 0)
        return fail(ERR_UNSUPPORTED, "%s: a weight of %lld; the CPU backend sums at most %lld columns", op, (long long)width,
                    (long long)CPU_SHARED_BYTES / 4);
    float *partial = (float *)(void *)dev->shared;
#pragma omp parallel num_threads(cpu_team(dev, N * heads * D * 8))
    {
#pragma omp for schedule(static)
        for (int64_t b = 0; b < blocks; b++) {
            struct range r = cpu_range(N, 1, (int)blocks, (int)b);
            float *mine = partial + b * width;
            if (dw.p)
                dev->loops->fill(mine, 0, width);
            for (int64_t i = r.lo * heads; i < r.hi * heads; i += rows) {
                const int64_t n = i / heads, h = i % heads;
                const struct norm_bwd_job job = {.dx = view_f32(dx) + n * dx.s[0] + h * dx.s[1], .dy = view_f32(dy) + n * dy.s[0] + h * dy.s[1],
                                                 .x = view_f32(x) + n * x.s[0] + h * x.s[1], .mean = mean.p ? view_f32(mean) + i : NULL,
                                                 .w = w.p && kind != NORM_LAYER_NOP ? view_f32(w) + (per_head ? h * D : 0) : NULL,
                                                 .rstd = view_f32(rstd) + i, .lddx = dx.s[1], .lddy = dy.s[1], .ldx = x.s[1], .C = D, .kind = kind};
                dev->loops->norm_bwd(&job, dw.p ? mine + (dw_per_head ? h * D : 0) : NULL, NULL, 0, rows);
            }
        }
        struct range c = cpu_range(width, 16, omp_get_num_threads(), omp_get_thread_num());
        for (int64_t b = 0; dw.p && b < blocks; b++)
            dev->loops->axpby(view_f32(dw) + c.lo, partial + b * width + c.lo, 1.0f, 1.0f, c.hi - c.lo);
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
