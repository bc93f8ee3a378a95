/* From token ids to the residual stream: x = scale * embed[id] (+ pos[position]), or, where the embedding has a width E of its own
 * (OPT-350m), x = (scale * embed[id]) Win^T (+ pos[position]); then a norm, where the arch has one (BLOOM). Backward makes again what it
 * needs: the embedding rows and the input of the norm are one gather away. */
#include "parts.h"

static enum code embed_rows(struct model *m, struct view e)
{
    return m->be->embed_fwd(m->dev, e, m->env.ids, m->value.embed, view_none(), view_none(), (float)m->arch.embed_scale);
}

/* x before the norm. The position rows come first, the product is added to them. */
static enum code embed_sum(struct model *m, struct view x)
{
    const struct block_env *e = &m->env;
    struct view none = view_none(), rows = act_2d(e, e->u, e->B * e->T, embed_width(&m->arch));
    if (!m->arch.embed_proj)
        return m->be->embed_fwd(m->dev, x, e->ids, m->value.embed, m->value.pos, e->pos, (float)m->arch.embed_scale);
    TRY(embed_rows(m, rows));
    if (m->value.pos.p)
        TRY(m->be->embed_fwd(m->dev, x, e->pos, m->value.pos, none, none, 1.0f));
    return m->be->matmul(m->dev, x, rows, m->value.proj_in, none, 0, 1, 1.0f, m->value.pos.p ? 1.0f : 0.0f);
}

static struct view embed_statistics(const struct model *m, float *p)
{
    return p ? view_1d(p, DT_F32, m->env.B * m->env.T) : view_none();
}

enum code embed_forward(struct model *m)
{
    const struct arch *a = &m->arch;
    struct view none = view_none(), x = act_2d(&m->env, m->keep[0].x, m->env.B * m->env.T, a->C);
    TRY(embed_sum(m, x));
    if (!a->embed_norm)
        return OK;
    return m->be->norm_fwd(m->dev, x, none, embed_statistics(m, m->embed_mean), embed_statistics(m, m->embed_rstd), x, none, m->value.embed_norm_w,
                           m->value.embed_norm_b, a->norm, (float)a->norm_eps);
}

/* The gradient of the tables from that of embed_sum's result. */
static enum code embed_sum_backward(struct model *m, struct view dx)
{
    const struct block_env *e = &m->env;
    struct view none = view_none(), rows = act_2d(e, e->u, e->B * e->T, embed_width(&m->arch));
    float scale = (float)m->arch.embed_scale;
    if (!m->arch.embed_proj)
        return m->be->embed_bwd(m->dev, m->grad.embed, m->grad.pos, dx, e->ids, e->pos, scale);
    if (m->grad.pos.p)
        TRY(m->be->embed_bwd(m->dev, m->grad.pos, none, dx, e->pos, none, 1.0f));
    TRY(embed_rows(m, rows));
    TRY(linear_backward(e, rows, m->grad.proj_in, none, dx, rows, m->value.proj_in, 1.0f, 0.0f));
    return m->be->embed_bwd(m->dev, m->grad.embed, none, rows, e->ids, none, scale);
}

enum code embed_backward(struct model *m)
{
    const struct block_env *e = &m->env;
    int64_t N = e->B * e->T, C = m->arch.C;
    struct view d = act_2d(e, e->d, N, C), x = act_2d(e, e->n, N, C), dx = act_2d(e, e->branch, N, C);
    if (!m->arch.embed_norm)
        return embed_sum_backward(m, d);
    TRY(embed_sum(m, x));
    TRY(m->be->norm_bwd(m->dev, dx, m->grad.embed_norm_w, m->grad.embed_norm_b, d, view_none(), x, m->value.embed_norm_w,
                        embed_statistics(m, m->embed_mean), embed_statistics(m, m->embed_rstd), m->arch.norm));
    return embed_sum_backward(m, dx);
}
