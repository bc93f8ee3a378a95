/* Embedding. The backward cuts the columns, not the rows: every thread walks all ids in order and adds its own columns, so
 * there are no atomics and the result does not depend on the team. */
#include "cpu.h"

#include <omp.h>

static enum code check_ids(const char *op, const char *name, struct view ids, int64_t limit)
{
    const int32_t *id = ids.p;
    for (int64_t n = 0; n < ids.n[0]; n++)
        if (id[n] < 0 || id[n] >= limit)
            return fail(ERR_INTERNAL, "%s: %s %d of row %lld is outside the table of %lld", op, name, (int)id[n], (long long)n, (long long)limit);
    return OK;
}

static enum code check_table(const char *op, struct view table, int64_t C)
{
    return cpu_check(op, "table", table, table.dtype == DT_BF16 ? DT_BF16 : DT_F32, 2, -1, C, 0);
}

enum code cpu_embed_fwd(struct device *dev, struct view y, struct view ids, struct view table, struct view pos_table, struct view pos, float scale)
{
    const char *op = "embed_fwd";
    TRY(cpu_check(op, "y", y, DT_F32, 2, -1, -1, 0));
    const int64_t N = y.n[0], C = y.n[1];
    TRY(cpu_check(op, "ids", ids, DT_I32, 1, N, -1, 0));
    TRY(check_table(op, table, C));
    TRY(check_ids(op, "id", ids, table.n[0]));
    if (pos_table.p != NULL) {
        TRY(cpu_check(op, "pos", pos, DT_I32, 1, N, -1, 0));
        TRY(check_table(op, pos_table, C));
        TRY(check_ids(op, "position", pos, pos_table.n[0]));
    }
#pragma omp parallel for num_threads(cpu_team(dev, N * C * 8)) schedule(static)
    for (int64_t n = 0; n < N; n++) {
        float *to = view_f32(y) + n * y.s[0];
        const int64_t row = (int64_t)((const int32_t *)ids.p)[n] * table.s[0];
        if (table.dtype == DT_BF16) {
            dev->loops->from_bf16(to, (const uint16_t *)table.p + row, C);
            if (scale != 1)
                dev->loops->axpby(to, to, scale, 0, C);
        } else
            dev->loops->axpby(to, view_f32(table) + row, scale, 0, C);
        if (pos_table.p == NULL)
            continue;
        const int64_t at = (int64_t)((const int32_t *)pos.p)[n] * pos_table.s[0];
        if (pos_table.dtype == DT_BF16)
            for (int64_t c = 0; c < C; c++)
                to[c] += f32_from_bf16(((const uint16_t *)pos_table.p)[at + c]);
        else
            dev->loops->axpby(to, view_f32(pos_table) + at, 1, 1, C);
    }
    return OK;
}

enum code cpu_embed_bwd(struct device *dev, struct view dtable, struct view dpos_table, struct view dy, struct view ids, struct view pos, float scale)
{
    const char *op = "embed_bwd";
    TRY(cpu_check(op, "dy", dy, DT_F32, 2, -1, -1, 0));
    const int64_t N = dy.n[0], C = dy.n[1];
    TRY(cpu_check(op, "ids", ids, DT_I32, 1, N, -1, 0));
    TRY(cpu_check(op, "dtable", dtable, DT_F32, 2, -1, C, 0));
    TRY(check_ids(op, "id", ids, dtable.n[0]));
    if (dpos_table.p != NULL) {
        TRY(cpu_check(op, "dpos_table", dpos_table, DT_F32, 2, -1, C, 0));
        TRY(cpu_check(op, "pos", pos, DT_I32, 1, N, -1, 0));
        TRY(check_ids(op, "position", pos, dpos_table.n[0]));
    }
#pragma omp parallel num_threads(cpu_team(dev, N * C * 8))
    {
        struct range r = cpu_range(C, 16, omp_get_num_threads(), omp_get_thread_num());
        for (int64_t n = 0; n < N && r.lo < r.hi; n++) {
            const float *from = view_f32(dy) + n * dy.s[0] + r.lo;
            dev->loops->axpby(view_f32(dtable) + ((const int32_t *)ids.p)[n] * dtable.s[0] + r.lo, from, scale, 1, r.hi - r.lo);
            if (dpos_table.p != NULL)
                dev->loops->axpby(view_f32(dpos_table) + ((const int32_t *)pos.p)[n] * dpos_table.s[0] + r.lo, from, 1, 1, r.hi - r.lo);
        }
    }
    return OK;
}
