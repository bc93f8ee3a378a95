/* Log-probabilities without gradients. */
#include "parts.h"

enum code model_score(struct model *m, const struct batch *b, struct view logp, double *loss_sum, int64_t *count)
{
    const struct arch *a = &m->arch;
    int64_t N = b->B * b->T;
    if (b->B > m->options.B || b->T > m->options.T)
        return fail(ERR_USAGE, "a batch of %lld x %lld does not fit the model opened for %lld x %lld", (long long)b->B, (long long)b->T,
                    (long long)m->options.B, (long long)m->options.T);
    TRY(pass_begin(m, b->B, b->T, b->ids, b->positions, b->segments, b->targets));
    TRY(pass_blocks(m));
    struct view n = view_2d(m->env.n, DT_F32, N, a->C), none = view_none();
    struct view mid = view_2d(m->keep[a->stack[STACK_DEC].L - 1].mid, DT_F32, N, a->C), branch = view_2d(m->env.branch, DT_F32, N, a->C);
    TRY(m->be->norm_fwd(m->dev, n, none, none, none, mid, branch, m->value.final_norm_w, m->value.final_norm_b, a->norm, (float)a->norm_eps));
    if (logp.p)
        logp = view_1d(logp.p, DT_F32, N);
    struct xent_args args = model_xent_args(m);
    return m->be->xent(m->dev, loss_sum, count, logp, none, none, n, m->value.head, view_1d(m->targets, DT_I32, N), &args, m->env.scratch);
}
