/* One decoder block. attn and mlp are the sublayers of attention.c and mlp.c, n1 and n2 the norms; a step in brackets is one pass:
 *   sequential, pre-norm   [x = base + branch, n = n1 x]  branch = attn n  [mid = x + branch, n = n2 mid]  branch = mlp n  -> mid + branch
 *   parallel               [x = base + branch, n = n1 x]  branch = attn n  (two norms: n = n2 x)  branch += mlp n          -> x + branch
 *   norm on the output     branch = attn x  [mid = x + n1 branch]  branch = mlp mid  [out = mid + n2 branch]               -> out
 *   norm on the sum        branch = attn x  [n = n1(x + branch)]  branch = mlp n  [out = n2(n + branch)]                   -> out
 * Pre-norm: Radford et al. 2019; parallel: Wang, Komatsuzaki 2021 (GPT-J), Black et al. 2022 (GPT-NeoX); norm on the output: OLMo 2
 * (OLMo team 2024), section 3; norm on the sum: Vaswani et al. 2017. */
#include "parts.h"

struct block {
    const struct block_env *e;
    const struct arch_block *dims;
    const struct block_params *w;
    const struct kv_layer *kv;
    struct block_views v;
    struct view n, branch;
};

/* y = norm(x + residual) with the block's first (1) or second (2) norm; sum gets x + residual. */
static enum code norm(const struct block *b, int which, struct view y, struct view sum, struct view x, struct view residual)
{
    const struct block_env *e = b->e;
    const struct block_params *w = b->w;
    const struct arch *a = e->arch;
    if (which == 1)
        return e->be->norm_fwd(e->dev, y, sum, b->v.mean1, b->v.rstd1, x, residual, w->attn_norm_w, w->attn_norm_b, a->norm, (float)a->norm_eps);
    return e->be->norm_fwd(e->dev, y, sum, b->v.mean2, b->v.rstd2, x, residual, w->mlp_norm_w, w->mlp_norm_b, a->norm, (float)a->norm_eps);
}

/* x and n = n1(x) at the start of a pre-norm block. */
static enum code norm_in(const struct block *b, struct view base)
{
    return base.p ? norm(b, 1, b->n, b->v.x, base, b->branch) : norm(b, 1, b->n, view_none(), b->v.x, view_none());
}

/* y = x + norm(sub). */
static enum code norm_add(const struct block *b, int which, struct view y, struct view sub, struct view x)
{
    const struct block_env *e = b->e;
    const struct block_params *w = b->w;
    const struct arch *a = e->arch;
    if (which == 1)
        return e->be->norm_add_fwd(e->dev, y, b->v.mean1, b->v.rstd1, sub, x, w->attn_norm_w, w->attn_norm_b, a->norm, (float)a->norm_eps);
    return e->be->norm_add_fwd(e->dev, y, b->v.mean2, b->v.rstd2, sub, x, w->mlp_norm_w, w->mlp_norm_b, a->norm, (float)a->norm_eps);
}

/* What the attention reads, its projection and the attention itself: o in keep. The input of a block with its norms at the end is never
 * a pair. */
static enum code attend(const struct block *b, struct view base)
{
    if (b->e->arch->norm_place != NORM_PRE)
        return attn_forward(b->e, b->dims, b->w, &b->v, b->kv, b->v.x);
    TRY(norm_in(b, base));
    return attn_forward(b->e, b->dims, b->w, &b->v, b->kv, b->n);
}

static enum code sequential(const struct block *b, int for_backward)
{
    TRY(attn_output(b->e, b->w, &b->v, b->branch, 0.0f));
    TRY(norm(b, 2, b->n, b->v.mid, b->v.x, b->branch));
    TRY(mlp_forward(b->e, b->w, &b->v, b->n));
    return for_backward ? OK : mlp_output(b->e, b->dims, b->w, &b->v, b->branch, 0.0f);
}

static enum code parallel(const struct block *b, int for_backward)
{
    if (!for_backward)
        TRY(attn_output(b->e, b->w, &b->v, b->branch, 0.0f));
    if (b->e->arch->residual == RESIDUAL_PARALLEL_TWO_NORMS)
        TRY(norm(b, 2, b->n, view_none(), b->v.x, view_none()));
    TRY(mlp_forward(b->e, b->w, &b->v, b->n));
    return for_backward ? OK : mlp_output(b->e, b->dims, b->w, &b->v, b->branch, 1.0f);
}

static enum code post_sublayer(const struct block *b)
{
    struct view sub1 = b->v.sub1.p ? b->v.sub1 : b->branch, sub2 = b->v.sub2.p ? b->v.sub2 : b->branch;
    TRY(attn_output(b->e, b->w, &b->v, sub1, 0.0f));
    TRY(norm_add(b, 1, b->v.mid, sub1, b->v.x));
    TRY(mlp_forward(b->e, b->w, &b->v, b->v.mid));
    TRY(mlp_output(b->e, b->dims, b->w, &b->v, sub2, 0.0f));
    return norm_add(b, 2, b->v.out, sub2, b->v.mid);
}

static enum code post_residual(const struct block *b)
{
    TRY(attn_output(b->e, b->w, &b->v, b->branch, 0.0f));
    TRY(norm(b, 1, b->n, b->v.sub1, b->v.x, b->branch));
    TRY(mlp_forward(b->e, b->w, &b->v, b->n));
    TRY(mlp_output(b->e, b->dims, b->w, &b->v, b->branch, 0.0f));
    return norm(b, 2, b->v.out, b->v.sub2, b->n, b->branch);
}

static struct block block_of(const struct block_env *e, const struct arch_block *dims, const struct block_params *w, const struct block_keep *keep,
                             const struct kv_layer *kv)
{
    int64_t N = e->B * e->T, C = e->arch->C;
    struct block b = {e, dims, w, kv, block_views(e, dims, keep), act_2d(e, e->n, N, C), act_2d(e, e->branch, N, C)};
    return b;
}

enum code block_attend(const struct block_env *e, const struct arch_block *dims, const struct block_params *w, const struct block_keep *keep,
                       const struct kv_layer *kv, struct view base)
{
    struct block b = block_of(e, dims, w, keep, kv);
    return attend(&b, base);
}

enum code block_norm_in(const struct block_env *e, const struct arch_block *dims, const struct block_params *w, const struct block_keep *keep)
{
    struct block b = block_of(e, dims, w, keep, NULL);
    return norm_in(&b, view_none());
}

enum code block_rest(const struct block_env *e, const struct arch_block *dims, const struct block_params *w, const struct block_keep *keep,
                     int for_backward)
{
    struct block b = block_of(e, dims, w, keep, NULL);
    switch (e->arch->norm_place) {
    case NORM_PRE: return is_parallel(e->arch) ? parallel(&b, for_backward) : sequential(&b, for_backward);
    case NORM_POST_SUBLAYER: return post_sublayer(&b);
    case NORM_POST_RESIDUAL: return post_residual(&b);
    }
    return fail(ERR_INTERNAL, "norm place %d is unknown", (int)e->arch->norm_place);
}

enum code block_forward(const struct block_env *e, const struct arch_block *dims, const struct block_params *w,
                        const struct block_keep *keep, const struct kv_layer *kv, struct view base, int for_backward)
{
    TRY(block_attend(e, dims, w, keep, kv, base));
    return block_rest(e, dims, w, keep, for_backward);
}

struct block_output block_output(const struct block_env *e, const struct block_keep *keep)
{
    int64_t N = e->B * e->T, C = e->arch->C;
    struct block_output pair = {act_2d(e, keep->mid ? keep->mid : keep->x, N, C), act_2d(e, e->branch, N, C)};
    struct block_output done = {act_2d(e, keep->out, N, C), view_none()};
    return keep->out ? done : pair;
}
