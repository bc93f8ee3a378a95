/* Log-probabilities without gradients. */
#include "parts.h"

enum code model_score(struct model *m, const struct batch *b, struct view logp, double *loss_sum, int64_t *count)
{
    int64_t N = b->B * b->T;
    if (b->B > m->options.B || b->T > m->options.T)
        return fail(ERR_USAGE, "a batch of %lld x %lld does not fit the model opened for %lld x %lld", (long long)b->B, (long long)b->T,
                    (long long)m->options.B, (long long)m->options.T);
    TRY(pass_begin(m, b->B, b->T, b->ids, b->positions, b->segments, b->targets));
    TRY(pass_blocks(m));
    const struct block_env *e = &m->env;
    struct view none = view_none(), hidden;
    struct view p = logp.p ? view_1d(m->logp, DT_F32, N) : none;
    struct score_sums sums = {*loss_sum, *count}; /* the device goes on adding to them: one order of additions over all batches */
    TRY(head_input_all(m, &hidden));
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
