/* Log-probabilities without gradients. */
#include "parts.h"

enum code score_rows(struct model *m, struct block_output rows, struct view logp, double *loss_sum, int64_t *count)
{
    const struct block_env *e = &m->env;
    int64_t N = e->B * e->T;
    struct view none = view_none(), hidden;
    struct view p = logp.p ? view_1d(m->logp, DT_F32, N) : none;
    struct score_sums sums = {*loss_sum, *count}; /* the device goes on adding to them: one order of additions over all batches */
    struct head_norm norm = {act_2d(e, e->n, N, m->arch.C), none, none, none};
    TRY(head_input(m, rows, &norm, &hidden));
    struct xent_args args = model_xent_args(m);
    TRY(m->be->device_copy(m->dev, m->sums, &sums, sizeof sums));
    TRY(m->be->xent(m->dev, &m->sums->loss, &m->sums->count, p, none, none, hidden, m->value.head, view_1d(m->targets, DT_I32, N), &args, e->scratch));
    if (logp.p)
        TRY(m->be->device_copy(m->dev, logp.p, m->logp, (size_t)N * sizeof(float)));
    TRY(m->be->device_copy(m->dev, &sums, m->sums, sizeof sums));
    *loss_sum = sums.loss;
    *count = sums.count;
    return OK;
}

enum code model_score(struct model *m, const struct batch *b, struct view logp, double *loss_sum, int64_t *count)
{
    CHECK(!m->options.layered);
    if (b->B > m->options.B || b->T > m->options.T)
        return fail(ERR_USAGE, "a batch of %lld x %lld does not fit the model opened for %lld x %lld", (long long)b->B, (long long)b->T,
                    (long long)m->options.B, (long long)m->options.T);
    TRY(pass_begin(m, b->B, b->T, b->ids, b->positions, b->segments, b->targets));
    TRY(pass_blocks(m));
    return score_rows(m, pass_output(m), logp, loss_sum, count);
}
