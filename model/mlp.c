/* The MLP as a sublayer: gate|up = n Win^T (+ b), h = act(gate) * up (or act(up)), y = h Wdown^T (+ b).
 * Backward: dh = dy Wdown; act backward turns gate|up into its own gradient and gives h again; dWdown += dy^T h; dWin += d(gate|up)^T n;
 * dn = d(gate|up) Win. Weight gradients are products with beta = 1 into the flat gradient. */
#include "parts.h"

enum code linear_backward(const struct block_env *e, struct view dx, struct view dw, struct view db, struct view dy, struct view x,
                          struct view w, float alpha, float beta)
{
    struct view none = view_none();
    TRY(e->be->matmul(e->dev, dw, dy, x, none, 1, 0, alpha, 1.0f));
    if (db.p)
        TRY(e->be->bias_grad(e->dev, db, dy));
    return dx.p ? e->be->matmul(e->dev, dx, dy, w, none, 0, 0, alpha, beta) : OK;
}

enum code mlp_forward(const struct block_env *e, const struct block_params *w, const struct block_views *v, struct view n)
{
    return e->be->matmul(e->dev, v->in, n, w->in_w, w->in_b, 0, 1, 1.0f, 0.0f);
}

enum code mlp_output(const struct block_env *e, const struct arch_block *b, const struct block_params *w, const struct block_views *v,
                     struct view out, float beta)
{
    struct view h = act_2d(e, e->u, e->B * e->T, b->F);
    TRY(e->be->act_fwd(e->dev, h, v->gate, v->up, e->arch->mlp));
    return e->be->matmul(e->dev, out, h, w->down_w, w->down_b, 0, 1, (float)e->arch->residual_scale, beta);
}

enum code mlp_backward(const struct block_env *e, const struct arch_block *b, const struct block_params *w, const struct block_params *dw,
                       const struct block_views *v, struct view dy, struct view n, struct view dn, float beta)
{
    int64_t N = e->B * e->T;
    float scale = (float)e->arch->residual_scale;
    struct view none = view_none();
    struct view h = act_2d(e, e->u, N, b->F), dh = act_2d(e, u_second(e, N * b->F), N, b->F);
    TRY(e->be->matmul(e->dev, dh, dy, w->down_w, none, 0, 0, scale, 0.0f));
    TRY(e->be->act_bwd(e->dev, v->gate, v->up, h, dh, v->gate, v->up, e->arch->mlp));
    TRY(linear_backward(e, none, dw->down_w, dw->down_b, dy, h, none, scale, 0.0f));
    return linear_backward(e, dn, dw->in_w, dw->in_b, v->in, n, w->in_w, 1.0f, beta);
}
