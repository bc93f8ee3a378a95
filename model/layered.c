/* One part of a model at a time: embedding, blocks, head, each run on hidden states that the caller keeps. For calibration, which
 * streams a model larger than memory over tokens that fit, and looks at (or replaces) what is inside a block on the way. */
#include "parts.h"

enum code model_part_load(struct model *m, struct checkpoint *ck, int64_t part)
{
    model_part_set(m, part);
    return load_part(m, ck, part);
}

void model_part_set(struct model *m, int64_t part)
{
    CHECK(m->options.layered && part >= MODEL_PART_EMBED && part <= m->arch.stack[STACK_DEC].L);
    params_part(m, part);
}

static enum code batch_begin(struct model *m, const struct batch *b, const int32_t *targets)
{
    if (b->B > m->options.B || b->T > m->options.T)
        return fail(ERR_USAGE, "a batch of %lld x %lld does not fit the model opened for %lld x %lld", (long long)b->B, (long long)b->T,
                    (long long)m->options.B, (long long)m->options.T);
    return pass_begin(m, b->B, b->T, b->ids, b->positions, b->segments, targets);
}

static size_t hidden_bytes(const struct model *m)
{
    return (size_t)(m->env.B * m->env.T * m->arch.C) * sizeof(float);
}

enum code model_part_embed(struct model *m, const struct batch *b, float *x)
{
    CHECK(m->part == MODEL_PART_EMBED);
    TRY(batch_begin(m, b, NULL));
    TRY(embed_forward(m));
    return m->be->device_copy(m->dev, x, m->keep[0].x, hidden_bytes(m));
}

/* Of the block in memory. */
struct current { const struct arch_block *dims; const struct block_params *w; const struct block_keep *keep; };

static struct current current_block(const struct model *m)
{
    CHECK(m->part >= 0 && m->part < m->arch.stack[STACK_DEC].L);
    struct current c = {&m->arch.stack[STACK_DEC].block[m->part], &m->value.block[m->part], &m->keep[m->part]};
    return c;
}

static void values_attend(const struct model *m, const struct current *c, struct model_block_values *v)
{
    struct block_views b = block_views(&m->env, c->dims, c->keep);
    struct view none = view_none();
    struct model_block_values values = {b.x, b.q, b.k, b.v, b.lse, c->w->alibi, b.o, none, none};
    if (m->arch.norm_place == NORM_PRE)
        values.n = act_2d(&m->env, m->env.n, m->env.B * m->env.T, m->arch.C);
    *v = values;
}

static void values_hidden(const struct model *m, const struct current *c, struct model_block_values *v)
{
    struct block_views b = block_views(&m->env, c->dims, c->keep);
    v->n = view_none();
    v->mid = b.mid;
    v->hidden = act_2d(&m->env, m->env.u, m->env.B * m->env.T, c->dims->F);
}

enum code model_block_attend(struct model *m, const struct batch *b, const float *x, struct model_block_values *v)
{
    struct current c = current_block(m);
    TRY(batch_begin(m, b, NULL));
    TRY(m->be->device_copy(m->dev, c.keep->x, x, hidden_bytes(m)));
    TRY(block_attend(&m->env, c.dims, c.w, c.keep, NULL, view_none()));
    values_attend(m, &c, v);
    return OK;
}

enum code model_block_finish(struct model *m, float *out, struct model_block_values *v)
{
    struct current c = current_block(m);
    TRY(block_rest(&m->env, c.dims, c.w, c.keep, 0));
    struct block_output pair = block_output(&m->env, c.keep);
    struct view sum = pair.branch.p ? pair.branch : pair.base; /* added in the branch: mid stays what it is */
    if (pair.branch.p)
        TRY(m->be->axpy(m->dev, view_f32(sum), view_f32(pair.base), 1.0f, m->env.B * m->env.T * m->arch.C));
    TRY(m->be->device_copy(m->dev, out, sum.p, hidden_bytes(m)));
    values_hidden(m, &c, v);
    return OK;
}

enum code model_block_hidden(struct model *m, const struct batch *b, const float *x, const float *o, struct model_block_values *v)
{
    struct current c = current_block(m);
    CHECK(m->arch.norm_place == NORM_PRE);
    TRY(batch_begin(m, b, NULL));
    struct block_views at = block_views(&m->env, c.dims, c.keep);
    TRY(m->be->device_copy(m->dev, c.keep->x, x, hidden_bytes(m)));
    TRY(m->be->device_copy(m->dev, c.keep->o, o, (size_t)view_count(at.o) * sizeof(float)));
    if (m->arch.residual == RESIDUAL_PARALLEL_ONE_NORM)
        TRY(block_norm_in(&m->env, c.dims, c.w, c.keep));
    TRY(block_rest(&m->env, c.dims, c.w, c.keep, 1));
    values_attend(m, &c, v);
    values_hidden(m, &c, v);
    return m->be->act_fwd(m->dev, v->hidden, at.gate, at.up, m->arch.mlp);
}

/* The rotation by -angle multiplies by the tables' factor as the rotation does (YaRN scales both): twice too often. */
static void unscale(const struct model *m, float *q, int64_t vectors, int64_t D)
{
    double factor = (double)*view_f32(m->env.rope_cos);
    float inverse = (float)(1.0 / (factor * factor));
    for (int64_t i = 0; i < vectors && factor != 1.0; i++)
        for (int64_t d = 0; d < m->arch.rope.dims; d++)
            q[i * D + d] *= inverse;
}

enum code model_block_rotate(struct model *m, const struct batch *b, float *q, int64_t heads, int transposed)
{
    struct current c = current_block(m);
    if (m->arch.pos != POS_ROPE)
        return OK;
    CHECK(m->parameters.host);
    TRY(batch_begin(m, b, NULL));
    return m->be->rope(m->dev, view_3d(q, DT_F32, b->B * b->T, heads, c.dims->D), m->env.rope_cos, m->env.rope_sin, m->env.pos, transposed);
}

enum code model_block_unrotate(struct model *m, const struct batch *b, float *q, int64_t heads)
{
    TRY(model_block_rotate(m, b, q, heads, 1));
    if (m->arch.pos == POS_ROPE)
        unscale(m, q, b->B * b->T * heads, current_block(m).dims->D);
    return OK;
}

enum code model_part_score(struct model *m, const struct batch *b, const float *x, struct view logp, double *loss_sum, int64_t *count)
{
    CHECK(m->part == m->arch.stack[STACK_DEC].L);
    TRY(batch_begin(m, b, b->targets));
    struct block_output rows = {act_2d(&m->env, m->keep[0].x, b->B * b->T, m->arch.C), view_none()};
    TRY(m->be->device_copy(m->dev, rows.base.p, x, hidden_bytes(m)));
    return score_rows(m, rows, logp, loss_sum, count);
}
