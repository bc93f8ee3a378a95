/* Views of what a block keeps, for the B and T of a pass. */
#include "parts.h"

struct view heads_3d(const struct arch_block *b, struct view packed, int64_t first, int64_t count)
{
    struct view v = view_3d(packed.p, packed.dtype, packed.n[0], packed.n[1] / b->D, b->D);
    return view_slice(v, 1, first, count);
}

struct view heads_4d(const struct block_env *e, const struct arch_block *b, struct view packed, int64_t first, int64_t count)
{
    struct view v = view_4d(packed.p, packed.dtype, e->B, e->T, packed.n[1] / b->D, b->D);
    return view_slice(v, 2, first, count);
}

static struct view rows_of(const struct block_env *e, void *p, int64_t width)
{
    return p ? act_2d(e, p, e->B * e->T, width) : view_none();
}

static struct view statistics(float *p, int64_t n)
{
    return p ? view_1d(p, DT_F32, n) : view_none();
}

static void views_of_heads(const struct block_env *e, const struct arch_block *b, const struct block_keep *k, struct block_views *v)
{
    int v_apart = k->raw && !(e->arch->clip_qkv > 0.0);
    int64_t N = e->B * e->T, full = e->arch->qk_norm == QK_NORM_FULL;
    v->qkv = rows_of(e, k->qkv, v_apart ? (b->H + b->G) * b->D : qkv_width(b));
    v->proj = k->raw ? rows_of(e, k->raw, qkv_width(b)) : v->qkv;
    v->q = heads_4d(e, b, v->qkv, 0, b->H);
    v->k = heads_4d(e, b, v->qkv, b->H, b->G);
    v->v = heads_4d(e, b, v_apart ? v->proj : v->qkv, b->H + b->G, b->G);
    v->rotated = heads_3d(b, v->qkv, 0, b->H + b->G);
    v->q_mean = statistics(k->q_mean, full ? N : N * b->H);
    v->q_rstd = statistics(k->q_rstd, full ? N : N * b->H);
    v->k_mean = statistics(k->k_mean, full ? N : N * b->G);
    v->k_rstd = statistics(k->k_rstd, full ? N : N * b->G);
}

struct block_views block_views(const struct block_env *e, const struct arch_block *b, const struct block_keep *k)
{
    struct block_views v;
    int64_t N = e->B * e->T, C = e->arch->C;
    v.x = rows_of(e, k->x, C);
    v.mid = rows_of(e, k->mid, C);
    v.sub1 = rows_of(e, k->sub1, C);
    v.sub2 = rows_of(e, k->sub2, C);
    v.out = rows_of(e, k->out, C);
    v.mean1 = statistics(k->mean1, N);
    v.rstd1 = statistics(k->rstd1, N);
    v.mean2 = statistics(k->mean2, N);
    v.rstd2 = statistics(k->rstd2, N);
    views_of_heads(e, b, k, &v);
    v.o = rows_of(e, k->o, b->H * b->D);
    v.o4 = heads_4d(e, b, v.o, 0, b->H);
    v.lse = view_3d(k->lse, DT_F32, e->B, b->H, e->T);
    v.in = rows_of(e, k->in, in_width(e->arch, b));
    int gated = mlp_is_gated(e->arch->mlp);
    v.gate = gated ? view_slice(v.in, 1, 0, b->F) : view_none();
    v.up = gated ? view_slice(v.in, 1, b->F, b->F) : v.in;
    return v;
}
