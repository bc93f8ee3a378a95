/* Distillation: a teacher beside the model, and what a teacher is asked for when its answers are kept on disk. The teacher's pass leaves its
 * hidden states in its own scratch, where they stay until its next pass; the student's loss projects them chunk by chunk (xent). */
#include "parts.h"

void model_teach(struct model *m, const struct model_teacher *teacher)
{
    m->teacher = teacher;
}

static enum code fits(const struct model *m, const struct batch *b, const char *who)
{
    if (b->B > m->options.B || b->T > m->options.T)
        return fail(ERR_USAGE, "a batch of %lld x %lld does not fit the %s opened for %lld x %lld", (long long)b->B, (long long)b->T, who,
                    (long long)m->options.B, (long long)m->options.T);
    return OK;
}

/* Its hidden states at every position of the batch. */
static enum code hidden_states(struct model *m, const struct batch *b, struct view *hidden)
{
    struct view none = view_none();
    struct head_norm norm = {act_2d(&m->env, m->env.n, b->B * b->T, m->arch.C), none, none, none};
    TRY(pass_begin(m, b->B, b->T, b->ids, b->positions, b->segments, NULL));
    TRY(pass_blocks(m));
    return head_input(m, pass_output(m), &norm, hidden);
}

static enum code kept_lesson(const struct model *m, const struct batch *b)
{
    const struct model_teacher *t = m->teacher;
    if (!t->ids.p || !t->logp.p)
        return fail(ERR_USAGE, "a teacher needs a model, or its tokens and their probabilities");
    if (t->ids.n[0] != b->B * b->T || t->logp.n[0] != b->B * b->T || t->ids.n[1] != t->logp.n[1] || (m->options.taught >= 0 && t->ids.n[1] > m->options.taught))
        return fail(ERR_USAGE, "a teacher's %lld x %lld tokens do not go with a batch of %lld x %lld (at most %lld each)", (long long)t->ids.n[0],
                    (long long)t->ids.n[1], (long long)b->B, (long long)b->T, (long long)m->options.taught);
    return OK;
}

enum code teacher_run(struct model *m, const struct batch *b)
{
    const struct model_teacher *t = m->teacher;
    struct view none = view_none();
    if (!t)
        return OK;
    if (m->options.taught == 0)
        return fail(ERR_USAGE, "this model was opened without room for a teacher");
    m->lesson = (struct xent_teacher){none, none, none, 1.0f, 0.0f, t->ids, t->logp, t->weight, t->temperature, t->kl_sum};
    if (!t->model)
        return kept_lesson(m, b);
    struct model *from = t->model;
    CHECK(from != m && from->be == m->be && from->dev == m->dev);
    if (from->arch.V != m->arch.V || m->options.taught > 0)
        return fail(ERR_USAGE, "a teacher of %lld tokens cannot teach a model of %lld", (long long)from->arch.V, (long long)m->arch.V);
    TRY(fits(from, b, "teacher"));
    m->lesson.ids = m->lesson.logp = none;
    m->lesson.head = from->value.head;
    m->lesson.bias = from->value.head_b;
    m->lesson.logit_scale = (float)from->arch.logit_scale;
    m->lesson.logit_softcap = (float)from->arch.logit_softcap;
    return hidden_states(from, b, &m->lesson.hidden);
}

const struct xent_teacher *lesson_rows(const struct model *m, int64_t from, int64_t rows, double *kl_sum, struct xent_teacher *lesson)
{
    if (!m->teacher)
        return NULL;
    *lesson = m->lesson;
    lesson->kl_sum = kl_sum;
    if (lesson->head.p)
        lesson->hidden = view_slice(lesson->hidden, 0, from, rows);
    else {
        lesson->ids = view_slice(lesson->ids, 0, from, rows);
        lesson->logp = view_slice(lesson->logp, 0, from, rows);
    }
    return lesson;
}

enum code model_topk(struct model *m, const struct batch *b, float temperature, struct view ids, struct view logp)
{
    int64_t N = b->B * b->T, K = ids.n[1];
    struct view hidden;
    CHECK(ids.n[0] == N && view_same_shape(ids, logp) && view_contiguous(ids) && view_contiguous(logp) && K <= m->options.topk);
    TRY(fits(m, b, "model"));
    TRY(hidden_states(m, b, &hidden));
    TRY(m->be->topk(m->dev, view_2d(m->top_ids, DT_I32, N, K), view_2d(m->top_logp, DT_F32, N, K), hidden, m->value.head, m->value.head_b,
                    (float)m->arch.logit_scale, (float)m->arch.logit_softcap, temperature, m->env.scratch));
    TRY(m->be->device_copy(m->dev, ids.p, m->top_ids, (size_t)(N * K) * sizeof(int32_t)));
    return m->be->device_copy(m->dev, logp.p, m->top_logp, (size_t)(N * K) * sizeof(float));
}
