/* MLP activations: checks and ranges. Rows are cut, and when they are few (decode) nothing is. */
#include "cpu.h"

#include <omp.h>

static enum code check_kind(const char *op, enum mlp_kind kind, struct view gate)
{
    if ((unsigned)kind > MLP_RELU)
        return fail(ERR_UNSUPPORTED, "%s: MLP kind %d is unknown", op, (int)kind);
    if (mlp_is_gated(kind) && gate.p == NULL)
        return fail(ERR_UNSUPPORTED, "%s: a gated MLP needs its gate, which is missing", op);
    return OK;
}

enum code cpu_act_fwd(struct device *dev, struct view y, struct view gate, struct view up, enum mlp_kind kind)
{
    const char *op = "act_fwd";
    TRY(check_kind(op, kind, gate));
    TRY(cpu_check(op, "up", up, DT_F32, 2, -1, -1, 0));
    const int64_t N = up.n[0], F = up.n[1];
    TRY(cpu_check(op, "gate", gate, DT_F32, 2, N, F, 1));
    TRY(cpu_check(op, "y", y, DT_F32, 2, N, F, 0));
    const struct act_job job = {.y = y.p, .gate = gate.p, .up = up.p, .ldy = y.s[0], .ldgate = gate.s[0], .ldup = up.s[0], .F = F, .kind = kind};
#pragma omp parallel num_threads(cpu_team(dev, N * F * 8))
    {
        struct range r = cpu_range(N, 1, omp_get_num_threads(), omp_get_thread_num());
        dev->loops->act_fwd(&job, r.lo, r.hi);
    }
    return OK;
}

enum code cpu_act_bwd(struct device *dev, struct view dgate, struct view dup, struct view y, struct view dy, struct view gate, struct view up,
                      enum mlp_kind kind)
{
    const char *op = "act_bwd";
    TRY(check_kind(op, kind, gate));
    TRY(cpu_check(op, "up", up, DT_F32, 2, -1, -1, 0));
    const int64_t N = up.n[0], F = up.n[1];
    TRY(cpu_check(op, "gate", gate, DT_F32, 2, N, F, 1));
    TRY(cpu_check(op, "dgate", dgate, DT_F32, 2, N, F, !mlp_is_gated(kind)));
    TRY(cpu_check(op, "dup", dup, DT_F32, 2, N, F, 0));
    TRY(cpu_check(op, "dy", dy, DT_F32, 2, N, F, 0));
    TRY(cpu_check(op, "y", y, DT_F32, 2, N, F, 1));
    const struct act_job job = {.y = y.p, .dgate = dgate.p, .dup = dup.p, .gate = gate.p, .up = up.p, .dy = dy.p, .ldy = y.s[0],
                                .lddgate = dgate.s[0], .lddup = dup.s[0], .ldgate = gate.s[0], .ldup = up.s[0], .lddy = dy.s[0], .F = F,
                                .kind = kind};
#pragma omp parallel num_threads(cpu_team(dev, N * F * 8))
    {
        struct range r = cpu_range(N, 1, omp_get_num_threads(), omp_get_thread_num());
        dev->loops->act_bwd(&job, r.lo, r.hi);
    }
    return OK;
}
