/* Limits on activations (OLMo's and MPT's clip_qkv): checks and ranges. */
#include "cpu.h"

static enum code check_limit(const char *op, float limit)
{
    return limit > 0 ? OK : fail(ERR_UNSUPPORTED, "%s: the limit is %g, must be positive", op, (double)limit);
}

enum code cpu_clip_fwd(struct device *dev, struct view y, struct view x, float limit)
{
    const char *op = "clip_fwd";
    TRY(check_limit(op, limit));
    TRY(cpu_check(op, "x", x, DT_F32, 2, -1, -1, 0));
    const int64_t N = x.n[0], C = x.n[1];
    TRY(cpu_check(op, "y", y, DT_F32, 2, N, C, 0));
#pragma omp parallel for num_threads(cpu_team(dev, N * C * 8)) schedule(static)
    for (int64_t n = 0; n < N; n++)
        dev->loops->clip(view_f32(y) + n * y.s[0], view_f32(x) + n * x.s[0], limit, C);
    return OK;
}

enum code cpu_clip_bwd(struct device *dev, struct view dx, struct view x, float limit)
{
    const char *op = "clip_bwd";
    TRY(check_limit(op, limit));
    TRY(cpu_check(op, "x", x, DT_F32, 2, -1, -1, 0));
    const int64_t N = x.n[0], C = x.n[1];
    TRY(cpu_check(op, "dx", dx, DT_F32, 2, N, C, 0));
#pragma omp parallel for num_threads(cpu_team(dev, N * C * 8)) schedule(static)
    for (int64_t n = 0; n < N; n++)
        dev->loops->clip_grad(view_f32(dx) + n * dx.s[0], view_f32(x) + n * x.s[0], limit, C);
    return OK;
}
