/* Backward of block_forward.c, from the last operation to the first. d is the gradient of the residual stream, updated in place: a
 * norm's backward adds its part to it, and where no norm stands before a sublayer the sublayer's last product does (beta = 1).
 * Norm outputs are made again from what the norm read. dn stands in env.branch.
 *   sequential, pre-norm   dn = mlp'(d); d += n2'(dn); dn = attn'(d); d += n1'(dn)
 *   parallel               one norm: dn = mlp'(d) + attn'(d), d += n1'(dn); two: both from the same d, then both norms
 *   norm on the output     g = n2'(d), d += mlp'(g); g = n1'(d), d += attn'(g)
 *   norm on the sum        g = n2'(d), g += mlp'(g); d = n1'(g), d += attn'(d) */
#include "parts.h"

struct block {
    const struct block_env *e;
    const struct arch_block *dims;
    const struct block_params *w, *dw;
    struct block_views v;
    struct view d, n, branch; /* [N,C] */
};

static enum code norm_again(const struct block *b, int which, struct view x)
{
    const struct block_env *e = b->e;
    const struct arch *a = e->arch;
    struct view none = view_none(), w = which == 1 ? b->w->attn_norm_w : b->w->mlp_norm_w, bias = which == 1 ? b->w->attn_norm_b : b->w->mlp_norm_b;
    return e->be->norm_fwd(e->dev, b->n, none, none, none, x, none, w, bias, a->norm, (float)a->norm_eps);
}

/* dx = (residual p NULL: 0) residual + gradient of the norm that read x. */
static enum code norm_back(const struct block *b, int which, struct view dx, struct view dy, struct view residual, struct view x)
{
    const struct block_env *e = b->e;
    if (which == 1)
        return e->be->norm_bwd(e->dev, dx, b->dw->attn_norm_w, b->dw->attn_norm_b, dy, residual, x, b->w->attn_norm_w, b->v.mean1, b->v.rstd1,
                               e->arch->norm);
    return e->be->norm_bwd(e->dev, dx, b->dw->mlp_norm_w, b->dw->mlp_norm_b, dy, residual, x, b->w->mlp_norm_w, b->v.mean2, b->v.rstd2, e->arch->norm);
}

static enum code mlp_back(const struct block *b, struct view dy, struct view n, struct view dn, float beta)
{
    return mlp_backward(b->e, b->dims, b->w, b->dw, &b->v, dy, n, dn, beta);
}

static enum code attn_back(const struct block *b, struct view dy, struct view n, struct view dn, float beta)
{
    return attn_backward(b->e, b->dims, b->w, b->dw, &b->v, dy, n, dn, beta);
}

static enum code sequential(const struct block *b)
{
    TRY(norm_again(b, 2, b->v.mid));
    TRY(mlp_back(b, b->d, b->n, b->branch, 0.0f));
    TRY(norm_back(b, 2, b->d, b->branch, b->d, b->v.mid));
    TRY(norm_again(b, 1, b->v.x));
    TRY(attn_back(b, b->d, b->n, b->branch, 0.0f));
    return norm_back(b, 1, b->d, b->branch, b->d, b->v.x);
}

static enum code parallel_one_norm(const struct block *b)
{
    TRY(norm_again(b, 1, b->v.x));
    TRY(mlp_back(b, b->d, b->n, b->branch, 0.0f));
    TRY(attn_back(b, b->d, b->n, b->branch, 1.0f));
    return norm_back(b, 1, b->d, b->branch, b->d, b->v.x);
}

/* The second dn takes the place of n, its last reader gone. */
static enum code parallel_two_norms(const struct block *b)
{
    TRY(norm_again(b, 2, b->v.x));
    TRY(mlp_back(b, b->d, b->n, b->branch, 0.0f));
    TRY(norm_again(b, 1, b->v.x));
    TRY(attn_back(b, b->d, b->n, b->n, 0.0f));
    TRY(norm_back(b, 2, b->d, b->branch, b->d, b->v.x));
    return norm_back(b, 1, b->d, b->n, b->d, b->v.x);
}

static enum code post_sublayer(const struct block *b)
{
    struct view none = view_none();
    TRY(norm_back(b, 2, b->branch, b->d, none, b->v.sub2));
    TRY(mlp_back(b, b->branch, b->v.mid, b->d, 1.0f));
    TRY(norm_back(b, 1, b->branch, b->d, none, b->v.sub1));
    return attn_back(b, b->branch, b->v.x, b->d, 1.0f);
}

static enum code post_residual(const struct block *b)
{
    struct view none = view_none();
    TRY(norm_back(b, 2, b->branch, b->d, none, b->v.sub2));
    TRY(norm_again(b, 1, b->v.sub1));
    TRY(mlp_back(b, b->branch, b->n, b->branch, 1.0f));
    TRY(norm_back(b, 1, b->d, b->branch, none, b->v.sub1));
    return attn_back(b, b->d, b->v.x, b->d, 1.0f);
}

enum code block_backward(const struct block_env *e, const struct arch_block *dims, const struct block_params *w,
                         const struct block_params *dw, const struct block_keep *keep)
{
    int64_t N = e->B * e->T, C = e->arch->C;
    struct block b = {e, dims, w, dw, block_views(e, dims, keep), act_2d(e, e->d, N, C), act_2d(e, e->n, N, C), act_2d(e, e->branch, N, C)};
    switch (e->arch->norm_place) {
    case NORM_PRE: break;
    case NORM_POST_SUBLAYER: return post_sublayer(&b);
    case NORM_POST_RESIDUAL: return post_residual(&b);
    }
    switch (e->arch->residual) {
    case RESIDUAL_SEQUENTIAL: return sequential(&b);
    case RESIDUAL_PARALLEL_ONE_NORM: return parallel_one_norm(&b);
    case RESIDUAL_PARALLEL_TWO_NORMS: return parallel_two_norms(&b);
    }
    return fail(ERR_INTERNAL, "norm place %d with residual kind %d", (int)e->arch->norm_place, (int)e->arch->residual);
}
