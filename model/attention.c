/* Attention as a sublayer: qkv = n Wqkv^T (+ b), clipped; q and k normalised, then rotated in place (with a cache: on their way into
 * it); o = attention(q, k, v); y = o Wo^T (+ b). Clipping and norms stand in the order of transformers' OLMo, MPT and OLMo 2.
 * Backward: do = dy Wo; dq|dk|dv; rotate back; through norms and clipping; dWqkv += dqkv^T n; dn = dqkv Wqkv.
 * In training a projection that is changed stays in `raw`: the changed values lie in qkv, and an unchanged v is read from raw. */
#include <string.h>

#include "parts.h"

static struct attention_args attention_args_of(const struct block_env *e, const struct arch_block *b, const struct block_params *w)
{
    struct attention_args a;
    memset(&a, 0, sizeof a);
    a.mask = attention_mask_causal();
    a.mask.window_left = b->window > 0 ? b->window - 1 : -1;
    a.mask.alibi_slopes = w->alibi;
    if (e->attention == ATTEND_BATCH && e->seg.p)
        a.mask.seg_q = a.mask.seg_k = e->seg;
    a.scale = (float)(b->scale > 0.0 ? b->scale : e->arch->attn_scale);
    a.deterministic = e->deterministic;
    return a;
}

static enum code attend(const struct block_env *e, const struct arch_block *b, const struct block_params *w, const struct block_views *v,
                        const struct kv_layer *kv)
{
    struct attention_args args = attention_args_of(e, b, w);
    if (e->attention != ATTEND_BATCH && e->rope_cos.p)
        TRY(e->be->rope_cache_write(e->dev, kv, v->q, v->k, v->v, e->lens, e->rope_cos, e->rope_sin, e->pos));
    else if (e->attention != ATTEND_BATCH)
        TRY(e->be->cache_write(e->dev, kv, v->k, v->v, e->lens));
    if (e->attention == ATTEND_CACHE)
        return e->be->attention_decode(e->dev, v->o4, v->q, kv, e->lens, &args, 0, e->scratch);
    return e->be->attention_fwd(e->dev, v->o4, v->lse, v->q, v->k, v->v, &args, e->scratch);
}

/* What the norms of q and of k see of a packed [N,width] buffer: heads of D, or the whole part as one head. */
struct parts { struct view q, k; };

static struct view one_head(struct view heads)
{
    heads.n[2] *= heads.n[1];
    heads.n[1] = 1;
    return heads;
}

static struct parts norm_parts(const struct block_env *e, const struct arch_block *b, struct view packed)
{
    struct parts p = {heads_3d(b, packed, 0, b->H), heads_3d(b, packed, b->H, b->G)};
    if (e->arch->qk_norm == QK_NORM_FULL) {
        p.q = one_head(p.q);
        p.k = one_head(p.k);
    }
    return p;
}

/* From the projection to the q, k and v of before the rotation. */
static enum code change_qkv(const struct block_env *e, const struct arch_block *b, const struct block_params *w, const struct block_views *v)
{
    const struct arch *a = e->arch;
    int clips = a->clip_qkv > 0.0;
    if (clips)
        TRY(e->be->clip_fwd(e->dev, v->qkv, v->proj, (float)a->clip_qkv));
    if (a->qk_norm == QK_NORM_NONE)
        return OK;
    struct parts to = norm_parts(e, b, v->qkv), from = clips ? to : norm_parts(e, b, v->proj);
    TRY(e->be->head_norm_fwd(e->dev, to.q, v->q_mean, v->q_rstd, from.q, w->q_norm_w, a->norm, (float)a->norm_eps));
    return e->be->head_norm_fwd(e->dev, to.k, v->k_mean, v->k_rstd, from.k, w->k_norm_w, a->norm, (float)a->norm_eps);
}

/* `raw` as a norm of queries or keys read it: itself, or clipped again into the second half of u, whose gradient of o is used up. */
static enum code norm_input(const struct block_env *e, const struct arch_block *b, struct view *raw)
{
    if (!(e->arch->clip_qkv > 0.0))
        return OK;
    int64_t N = raw->n[0], width = raw->n[1] * raw->n[2];
    struct view rows = *raw, to = act_2d(e, u_second(e, N * qkv_width(b)), N, width);
    rows.nd = 2;
    rows.n[1] = width;
    rows.n[2] = 1;
    rows.s[1] = rows.s[2] = 1;
    TRY(e->be->clip_fwd(e->dev, to, rows, (float)e->arch->clip_qkv));
    *raw = view_3d(to.p, e->act, N, raw->n[1], raw->n[2]);
    return OK;
}

/* dqkv, the gradient of what change_qkv gives, becomes that of the projection. */
static enum code change_qkv_backward(const struct block_env *e, const struct arch_block *b, const struct block_params *w,
                                     const struct block_params *dw, const struct block_views *v, struct view dqkv)
{
    const struct arch *a = e->arch;
    if (a->qk_norm != QK_NORM_NONE) {
        struct parts d = norm_parts(e, b, dqkv), x = norm_parts(e, b, v->proj);
        TRY(norm_input(e, b, &x.q));
        TRY(e->be->head_norm_bwd(e->dev, d.q, dw->q_norm_w, d.q, x.q, w->q_norm_w, v->q_mean, v->q_rstd, a->norm));
        TRY(norm_input(e, b, &x.k));
        TRY(e->be->head_norm_bwd(e->dev, d.k, dw->k_norm_w, d.k, x.k, w->k_norm_w, v->k_mean, v->k_rstd, a->norm));
    }
    return a->clip_qkv > 0.0 ? e->be->clip_bwd(e->dev, dqkv, v->proj, (float)a->clip_qkv) : OK;
}

enum code attn_forward(const struct block_env *e, const struct arch_block *b, const struct block_params *w, const struct block_views *v,
                       const struct kv_layer *kv, struct view n)
{
    TRY(e->be->matmul(e->dev, v->proj, n, w->qkv_w, w->qkv_b, 0, 1, 1.0f, 0.0f));
    TRY(change_qkv(e, b, w, v));
    if (e->rope_cos.p && e->attention == ATTEND_BATCH)
        TRY(e->be->rope(e->dev, v->rotated, e->rope_cos, e->rope_sin, e->pos, 0));
    return attend(e, b, w, v, kv);
}

enum code attn_output(const struct block_env *e, const struct block_params *w, const struct block_views *v, struct view out, float beta)
{
    return e->be->matmul(e->dev, out, v->o, w->o_w, w->o_b, 0, 1, (float)e->arch->residual_scale, beta);
}

enum code attn_backward(const struct block_env *e, const struct arch_block *b, const struct block_params *w, const struct block_params *dw,
                        const struct block_views *v, struct view dy, struct view n, struct view dn, float beta)
{
    int64_t N = e->B * e->T;
    struct view dqkv = act_2d(e, e->u, N, qkv_width(b)), dout = act_2d(e, u_second(e, N * qkv_width(b)), N, b->H * b->D);
    struct view dq = heads_4d(e, b, dqkv, 0, b->H), dk = heads_4d(e, b, dqkv, b->H, b->G), dv = heads_4d(e, b, dqkv, b->H + b->G, b->G);
    struct attention_args args = attention_args_of(e, b, w);
    TRY(linear_backward(e, dout, dw->o_w, dw->o_b, dy, v->o, w->o_w, (float)e->arch->residual_scale, 0.0f));
    TRY(e->be->attention_bwd(e->dev, dq, dk, dv, heads_4d(e, b, dout, 0, b->H), v->o4, v->lse, v->q, v->k, v->v, &args, e->scratch));
    if (e->rope_cos.p)
        TRY(e->be->rope(e->dev, heads_3d(b, dqkv, 0, b->H + b->G), e->rope_cos, e->rope_sin, e->pos, 1));
    TRY(change_qkv_backward(e, b, w, dw, v, dqkv));
    return linear_backward(e, dn, dw->qkv_w, dw->qkv_b, dqkv, n, w->qkv_w, 1.0f, beta);
}
