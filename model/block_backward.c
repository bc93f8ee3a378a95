/* Backward of block_forward.c, from the last operation to the first. d is the gradient of the residual stream and is updated in
 * place: a norm's backward adds its part to it. Weight gradients are products with beta = 1 into the flat gradient.
 *   MLP:        dh = d Wdown; act backward turns gate|up into its gradient and gives h; dWdown += d^T h
 *               dn = d(gate|up) Win; dWin += d(gate|up)^T n with n normalised again from mid; d += norm backward
 *   attention:  do = d Wo; dWo += d^T o; dq|dk|dv; rotate back; dn = dqkv Wqkv; dWqkv += dqkv^T n; d += norm backward */
#include "parts.h"

/* dw += dy^T x, db += columns of dy, dx = alpha dy w. */
static enum code linear_bwd(const struct block_env *e, struct view dx, struct view dw, struct view db, struct view dy, struct view x,
                            struct view w, float alpha)
{
    struct view none = view_none();
    TRY(e->be->matmul(e->dev, dw, dy, x, none, 1, 0, alpha, 1.0f));
    if (db.p)
        TRY(e->be->bias_grad(e->dev, db, dy));
    return dx.p ? e->be->matmul(e->dev, dx, dy, w, none, 0, 0, alpha, 0.0f) : OK;
}

static enum code mlp_bwd(const struct block_env *e, const struct arch_block *b, const struct block_params *w,
                         const struct block_params *dw, const struct block_views *v)
{
    const struct backend *be = e->be;
    const struct arch *a = e->arch;
    int64_t N = e->B * e->T;
    float scale = (float)a->residual_scale;
    struct view none = view_none();
    struct view d = act_2d(e, e->d, N, a->C), n = act_2d(e, e->n, N, a->C), dn = act_2d(e, e->branch, N, a->C);
    struct view h = act_2d(e, e->u, N, b->F), dh = act_2d(e, u_second(e, N * b->F), N, b->F);

    TRY(be->matmul(e->dev, dh, d, w->down_w, none, 0, 0, scale, 0.0f));
    TRY(be->act_bwd(e->dev, v->gate, v->up, h, dh, v->gate, v->up, a->mlp));
    TRY(linear_bwd(e, none, dw->down_w, dw->down_b, d, h, none, scale));
    TRY(be->norm_fwd(e->dev, n, none, none, none, v->mid, none, w->mlp_norm_w, w->mlp_norm_b, a->norm, (float)a->norm_eps));
    TRY(linear_bwd(e, dn, dw->in_w, dw->in_b, v->in, n, w->in_w, 1.0f));
    return be->norm_bwd(e->dev, d, dw->mlp_norm_w, dw->mlp_norm_b, dn, d, v->mid, w->mlp_norm_w, v->mean2, v->rstd2, a->norm);
}

static enum code attn_bwd(const struct block_env *e, const struct arch_block *b, const struct block_params *w,
                          const struct block_params *dw, const struct block_views *v)
{
    const struct backend *be = e->be;
    const struct arch *a = e->arch;
    int64_t N = e->B * e->T, C = a->C;
    struct view none = view_none();
    struct view d = act_2d(e, e->d, N, C), n = act_2d(e, e->n, N, C), dn = act_2d(e, e->branch, N, C);
    void *dqkv_p = e->u, *do_p = u_second(e, N * qkv_width(b));
    struct view dqkv = act_2d(e, dqkv_p, N, qkv_width(b)), dout = act_2d(e, do_p, N, b->H * b->D);
    struct view dout4 = view_4d(do_p, e->act, e->B, e->T, b->H, b->D), dq, dk, dv;
    struct attention_args args = block_attention_args(e, b);
    qkv_split(e, b, dqkv_p, &dq, &dk, &dv);

    TRY(linear_bwd(e, dout, dw->o_w, dw->o_b, d, v->o, w->o_w, (float)a->residual_scale));
    TRY(be->attention_bwd(e->dev, dq, dk, dv, dout4, v->o4, v->lse, v->q, v->k, v->v, &args, e->scratch));
    if (e->rope_cos.p)
        TRY(be->rope(e->dev, qkv_rotated(e, b, dqkv_p), e->rope_cos, e->rope_sin, e->pos, 1));
    TRY(be->norm_fwd(e->dev, n, none, none, none, v->x, none, w->attn_norm_w, w->attn_norm_b, a->norm, (float)a->norm_eps));
    TRY(linear_bwd(e, dn, dw->qkv_w, dw->qkv_b, dqkv, n, w->qkv_w, 1.0f));
    return be->norm_bwd(e->dev, d, dw->attn_norm_w, dw->attn_norm_b, dn, d, v->x, w->attn_norm_w, v->mean1, v->rstd1, a->norm);
}

enum code block_backward(const struct block_env *e, const struct arch_block *b, const struct block_params *w,
                         const struct block_params *dw, const struct block_keep *keep)
{
    struct block_views v = block_views(e, b, keep);
    TRY(mlp_bwd(e, b, w, dw, &v));
    return attn_bwd(e, b, w, dw, &v);
}
