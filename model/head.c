/* From the last block's output to what the head reads: the final norm (none where norms stand on the sums: the last one is it), then,
 * where the embedding has a width E of its own, hidden Wout^T. Shared by training, scoring and decode. */
#include "parts.h"

/* [rows,E] behind the input of the final norm in u, and its gradient behind that. */
static struct view projected(const struct model *m, int64_t rows, int gradient)
{
    const struct block_env *e = &m->env;
    int64_t E = embed_width(&m->arch);
    char *p = u_second(e, m->rows * m->arch.C);
    return act_2d(e, gradient ? p + act_padded(e, m->rows * E) : p, rows, E);
}

enum code head_input(struct model *m, struct block_output rows, const struct head_norm *norm, struct view *hidden)
{
    const struct arch *a = &m->arch;
    *hidden = rows.base;
    if (has_final_norm(a)) {
        *hidden = norm->n;
        TRY(m->be->norm_fwd(m->dev, norm->n, norm->sum, norm->mean, norm->rstd, rows.base, rows.branch, m->value.final_norm_w, m->value.final_norm_b,
                            a->norm, (float)a->norm_eps));
    }
    if (!a->embed_proj)
        return OK;
    struct view narrow = projected(m, hidden->n[0], 0);
    TRY(m->be->matmul(m->dev, narrow, *hidden, m->value.proj_out, view_none(), 0, 1, 1.0f, 0.0f));
    *hidden = narrow;
    return OK;
}

enum code head_forward_backward(struct model *m, const float *inv_count, double *loss_sum, int64_t *count)
{
    const struct arch *a = &m->arch;
    const struct block_env *e = &m->env;
    int64_t N = e->B * e->T;
    struct view none = view_none(), d = act_2d(e, e->d, N, a->C), n = act_2d(e, e->n, N, a->C), hidden;
    struct head_norm norm = {n, act_2d(e, e->u, N, a->C), m->final_mean ? view_1d(m->final_mean, DT_F32, N) : none, view_1d(m->final_rstd, DT_F32, N)};
    struct xent_args args = model_xent_args(m);
    args.inv_count = inv_count;
    args.dbias = m->grad.head_b;
    args.teacher = m->teacher ? &m->lesson : NULL;

    TRY(head_input(m, pass_output(m), &norm, &hidden));
    struct view dn = has_final_norm(a) ? act_2d(e, e->branch, N, a->C) : d, dhidden = a->embed_proj ? projected(m, N, 1) : dn;
    TRY(m->be->xent(m->dev, loss_sum, count, none, dhidden, m->grad.head, hidden, m->value.head, view_1d(m->targets, DT_I32, N), &args, e->scratch));
    if (a->embed_proj) /* without a final norm the last block's output lies in n too */
        TRY(linear_backward(e, dn, m->grad.proj_out, none, dhidden, n, m->value.proj_out, 1.0f, 0.0f));
    if (!has_final_norm(a))
        return OK;
    return m->be->norm_bwd(m->dev, d, m->grad.final_norm_w, m->grad.final_norm_b, dn, none, norm.sum, m->value.final_norm_w, norm.mean, norm.rstd, a->norm);
}
