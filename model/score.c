/* Log-probabilities without gradients, and how far a teacher is from them. */
#include "parts.h"

/* Rows [from, from + rows) of the pass: loss and count are added to m->sums, the teacher's distance to *kl_sum. */
static enum code score_part(struct model *m, struct view hidden, int64_t from, int64_t rows, int want_logp, double *kl_sum)
{
    struct view none = view_none(), targets = view_slice(view_1d(m->targets, DT_I32, hidden.n[0]), 0, from, rows);
    struct view p = want_logp ? view_slice(view_1d(m->logp, DT_F32, hidden.n[0]), 0, from, rows) : none;
    struct xent_args args = model_xent_args(m);
    struct xent_teacher lesson;
    args.teacher = lesson_rows(m, from, rows, kl_sum, &lesson);
    return m->be->xent(m->dev, &m->sums->loss, &m->sums->count, p, none, none, view_slice(hidden, 0, from, rows), m->value.head, targets, &args,
                       m->env.scratch);
}

/* One sequence after the other, each with a sum of its own. */
static enum code score_sequences(struct model *m, struct view hidden, int want_logp, struct score_sums *sums, double *kl_rows)
{
    for (int64_t b = 0; b < m->env.B; b++) {
        sums->kl = 0.0;
        TRY(m->be->device_copy(m->dev, m->sums, sums, sizeof *sums));
        TRY(score_part(m, hidden, b * m->env.T, m->env.T, want_logp, &m->sums->kl));
        TRY(m->be->device_copy(m->dev, sums, m->sums, sizeof *sums));
        kl_rows[b] += sums->kl;
    }
    return OK;
}

enum code score_rows(struct model *m, struct block_output rows, struct view logp, double *loss_sum, int64_t *count)
{
    const struct block_env *e = &m->env;
    int64_t N = e->B * e->T;
    struct view none = view_none(), hidden;
    struct score_sums sums = {*loss_sum, 0.0, *count}; /* the device goes on adding to them: one order of additions over all batches */
    struct head_norm norm = {act_2d(e, e->n, N, m->arch.C), none, none, none};
    TRY(head_input(m, rows, &norm, &hidden));
    if (m->teacher && m->teacher->kl_rows)
        TRY(score_sequences(m, hidden, logp.p != NULL, &sums, m->teacher->kl_rows));
    else {
        TRY(m->be->device_copy(m->dev, m->sums, &sums, sizeof sums));
        TRY(score_part(m, hidden, 0, N, logp.p != NULL, m->teacher ? m->teacher->kl_sum : NULL));
        TRY(m->be->device_copy(m->dev, &sums, m->sums, sizeof sums));
    }
    if (logp.p)
        TRY(m->be->device_copy(m->dev, logp.p, m->logp, (size_t)N * sizeof(float)));
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
    TRY(teacher_run(m, b));
    TRY(pass_begin(m, b->B, b->T, b->ids, b->positions, b->segments, b->targets));
    TRY(pass_blocks(m));
    return score_rows(m, pass_output(m), logp, loss_sum, count);
}
