/* One decoder block, pre-norm and sequential:
 *   x   = base + branch              n = norm(x)        one pass
 *   qkv = n Wqkv^T (+ b), rotate q and k in place (with a cache: on their way into it), o = attention(q, k, v)
 *   branch = o Wo^T (+ b)
 *   mid = x + branch                 n = norm(mid)      one pass
 *   gate|up = n Win^T (+ b), h = act(gate) * up, branch = h Wdown^T (+ b)
 * and the sum mid + branch is left to the next norm. */
#include <string.h>

#include "parts.h"

void qkv_split(const struct block_env *e, const struct arch_block *b, void *qkv, struct view *q, struct view *k, struct view *v)
{
    struct view all = view_4d(qkv, e->act, e->B, e->T, b->H + 2 * b->G, b->D);
    *q = view_slice(all, 2, 0, b->H);
    *k = view_slice(all, 2, b->H, b->G);
    *v = view_slice(all, 2, b->H + b->G, b->G);
}

struct view qkv_rotated(const struct block_env *e, const struct arch_block *b, void *qkv)
{
    return view_slice(view_3d(qkv, e->act, e->B * e->T, b->H + 2 * b->G, b->D), 1, 0, b->H + b->G);
}

struct block_views block_views(const struct block_env *e, const struct arch_block *b, const struct block_keep *k)
{
    struct block_views v;
    int64_t N = e->B * e->T, C = e->arch->C;
    v.x = act_2d(e, k->x, N, C);
    v.mid = act_2d(e, k->mid, N, C);
    v.mean1 = view_1d(k->mean1, DT_F32, N);
    v.rstd1 = view_1d(k->rstd1, DT_F32, N);
    v.mean2 = view_1d(k->mean2, DT_F32, N);
    v.rstd2 = view_1d(k->rstd2, DT_F32, N);
    v.qkv = act_2d(e, k->qkv, N, qkv_width(b));
    qkv_split(e, b, k->qkv, &v.q, &v.k, &v.v);
    v.o = act_2d(e, k->o, N, b->H * b->D);
    v.o4 = view_4d(k->o, e->act, e->B, e->T, b->H, b->D);
    v.lse = view_3d(k->lse, DT_F32, e->B, b->H, e->T);
    v.in = act_2d(e, k->in, N, in_width(e->arch, b));
    int gated = mlp_is_gated(e->arch->mlp);
    v.gate = gated ? view_slice(v.in, 1, 0, b->F) : view_none();
    v.up = gated ? view_slice(v.in, 1, b->F, b->F) : v.in;
    return v;
}

struct attention_args block_attention_args(const struct block_env *e, const struct arch_block *b)
{
    struct attention_args a;
    memset(&a, 0, sizeof a);
    a.mask = attention_mask_causal();
    a.mask.window_left = b->window > 0 ? b->window - 1 : -1;
    if (e->attention == ATTEND_BATCH && e->seg.p)
        a.mask.seg_q = a.mask.seg_k = e->seg;
    a.scale = (float)e->arch->attn_scale;
    a.deterministic = e->deterministic;
    return a;
}

static enum code attend(const struct block_env *e, const struct arch_block *b, const struct block_views *v, const struct kv_layer *kv)
{
    struct attention_args args = block_attention_args(e, b);
    if (e->attention != ATTEND_BATCH && e->rope_cos.p)
        TRY(e->be->rope_cache_write(e->dev, kv, v->q, v->k, v->v, e->lens, e->rope_cos, e->rope_sin, e->pos));
    else if (e->attention != ATTEND_BATCH)
        TRY(e->be->cache_write(e->dev, kv, v->k, v->v, e->lens));
    if (e->attention == ATTEND_CACHE)
        return e->be->attention_decode(e->dev, v->o4, v->q, kv, e->lens, &args, 0, e->scratch);
    return e->be->attention_fwd(e->dev, v->o4, v->lse, v->q, v->k, v->v, &args, e->scratch);
}

enum code block_forward(const struct block_env *e, const struct arch_block *b, const struct block_params *w,
                        const struct block_keep *keep, const struct kv_layer *kv, struct view base, int for_backward)
{
    const struct backend *be = e->be;
    const struct arch *a = e->arch;
    struct block_views v = block_views(e, b, keep);
    int64_t N = e->B * e->T;
    struct view n = act_2d(e, e->n, N, a->C), branch = act_2d(e, e->branch, N, a->C), none = view_none();
    struct view h = act_2d(e, e->u, N, b->F);
    float eps = (float)a->norm_eps, scale = (float)a->residual_scale;

    if (base.p)
        TRY(be->norm_fwd(e->dev, n, v.x, v.mean1, v.rstd1, base, branch, w->attn_norm_w, w->attn_norm_b, a->norm, eps));
    else
        TRY(be->norm_fwd(e->dev, n, none, v.mean1, v.rstd1, v.x, none, w->attn_norm_w, w->attn_norm_b, a->norm, eps));
    TRY(be->matmul(e->dev, v.qkv, n, w->qkv_w, w->qkv_b, 0, 1, 1.0f, 0.0f));
    if (e->rope_cos.p && e->attention == ATTEND_BATCH)
        TRY(be->rope(e->dev, qkv_rotated(e, b, keep->qkv), e->rope_cos, e->rope_sin, e->pos, 0));
    TRY(attend(e, b, &v, kv));
    TRY(be->matmul(e->dev, branch, v.o, w->o_w, w->o_b, 0, 1, scale, 0.0f));
    TRY(be->norm_fwd(e->dev, n, v.mid, v.mean2, v.rstd2, v.x, branch, w->mlp_norm_w, w->mlp_norm_b, a->norm, eps));
    TRY(be->matmul(e->dev, v.in, n, w->in_w, w->in_b, 0, 1, 1.0f, 0.0f));
    if (for_backward)
        return OK;
    TRY(be->act_fwd(e->dev, h, v.gate, v.up, a->mlp));
    return be->matmul(e->dev, branch, h, w->down_w, w->down_b, 0, 1, scale, 0.0f);
}
