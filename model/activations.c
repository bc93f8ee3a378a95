/* What a pass keeps and works in. Elements per layer and row for training: x, mid C each; qkv (H+2G)*D; o H*D; gate|up 2F; lse H;
 * two or four statistics (the last two kinds always f32). Norm outputs and the MLP's hidden are recomputed in backward: one cheap pass
 * each over data that backward reads anyway. With `recompute` a layer keeps x alone, without training not even that.
 * By arch: parallel forms have no mid; norms at the end keep what they read (sub1, sub2, C each; those on sums no mid); norms of queries and
 * keys keep the projection and their statistics, clipping the projection: (H+G)*D or (H+2G)*D more. */
#include "parts.h"

struct widths { int64_t raw, qkv, o, heads, groups, in; }; /* of one layer, or the largest of any */

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* What training keeps of a changed projection: the projection, and what stands for it (without v when v is not changed). */
static int keeps_raw(const struct model *m) { return m->options.train && changes_qkv(&m->arch); }

static struct widths widths_of(const struct model *m, const struct arch_block *b)
{
    int64_t changed = keeps_raw(m) && !(m->arch.clip_qkv > 0.0) ? (b->H + b->G) * b->D : qkv_width(b);
    struct widths w = {keeps_raw(m) ? qkv_width(b) : 0, changed, b->H * b->D, b->H, b->G, in_width(&m->arch, b)};
    return w;
}

static size_t largest(size_t a, size_t b) { return a > b ? a : b; }

/* Of u: both halves when training, else the MLP's hidden alone. Also takes the input of the final norm, [N,C], with the projected hidden
 * state [N,E] and its gradient behind it, and the rows of an embedding of another width. */
static size_t u_bytes(const struct model *m)
{
    const struct block_env *e = &m->env;
    int64_t N = m->rows;
    size_t bytes = act_bytes(e, N * m->arch.C);
    if (m->arch.embed_proj)
        bytes = act_padded(e, N * m->arch.C) + 2 * act_padded(e, N * m->arch.embed_proj);
    for (int64_t l = 0; l < m->arch.stack[STACK_DEC].L; l++) {
        const struct arch_block *b = &m->arch.stack[STACK_DEC].block[l];
        bytes = largest(bytes, act_bytes(e, N * b->F));
        if (!m->options.train)
            continue;
        bytes = largest(bytes, act_padded(e, N * b->F) + act_bytes(e, N * b->F));
        bytes = largest(bytes, act_padded(e, N * qkv_width(b)) + act_bytes(e, N * b->H * b->D));
    }
    return bytes;
}

static struct widths widths_max(const struct model *m)
{
    struct widths most = {0, 0, 0, 0, 0, 0};
    for (int64_t l = 0; l < m->arch.stack[STACK_DEC].L; l++) {
        struct widths w = widths_of(m, &m->arch.stack[STACK_DEC].block[l]);
        most.raw = larger(most.raw, w.raw);
        most.qkv = larger(most.qkv, w.qkv);
        most.o = larger(most.o, w.o);
        most.heads = larger(most.heads, w.heads);
        most.groups = larger(most.groups, w.groups);
        most.in = larger(most.in, w.in);
    }
    return most;
}

static float *carve_f32(struct arena *a, int64_t n)
{
    return arena_carve(a, (size_t)n * sizeof(float));
}

static void *carve_act(const struct model *m, struct arena *a, int64_t n)
{
    return arena_carve(a, act_bytes(&m->env, n));
}

/* Statistics of the norms of queries and keys. */
static void qk_norm_carve(struct model *m, struct block_keep *k, const struct widths *w)
{
    struct arena *a = &m->activations;
    int64_t N = m->rows;
    int full = m->arch.qk_norm == QK_NORM_FULL, mean = norm_has_mean(m->arch.norm);
    if (m->arch.qk_norm == QK_NORM_NONE || !m->options.train)
        return;
    k->q_mean = mean ? carve_f32(a, full ? N : N * w->heads) : NULL;
    k->q_rstd = carve_f32(a, full ? N : N * w->heads);
    k->k_mean = mean ? carve_f32(a, full ? N : N * w->groups) : NULL;
    k->k_rstd = carve_f32(a, full ? N : N * w->groups);
}

static void keep_carve(struct model *m, struct block_keep *k, const struct widths *w)
{
    struct arena *a = &m->activations;
    int64_t N = m->rows, C = m->arch.C;
    int mean = norm_has_mean(m->arch.norm), post = m->arch.norm_place != NORM_PRE && m->options.train;
    int has_mid = m->arch.norm_place != NORM_POST_RESIDUAL && !is_parallel(&m->arch), second = m->arch.residual != RESIDUAL_PARALLEL_ONE_NORM;
    k->x = carve_act(m, a, N * C);
    k->raw = w->raw ? carve_act(m, a, N * w->raw) : NULL;
    k->qkv = carve_act(m, a, N * w->qkv);
    k->o = carve_act(m, a, N * w->o);
    k->lse = carve_f32(a, N * w->heads);
    k->mid = has_mid ? carve_act(m, a, N * C) : NULL;
    k->in = carve_act(m, a, N * w->in);
    k->sub1 = post ? carve_act(m, a, N * C) : NULL;
    k->sub2 = post ? carve_act(m, a, N * C) : NULL;
    k->mean1 = mean ? carve_f32(a, N) : NULL;
    k->rstd1 = carve_f32(a, N);
    k->mean2 = mean && second ? carve_f32(a, N) : NULL;
    k->rstd2 = second ? carve_f32(a, N) : NULL;
    qk_norm_carve(m, k, w);
}

static void keeps_carve(struct model *m)
{
    const struct arch_stack *s = &m->arch.stack[STACK_DEC];
    struct widths most = widths_max(m);
    if (m->options.train && !m->options.recompute) {
        for (int64_t l = 0; l < s->L; l++) {
            struct widths w = widths_of(m, &s->block[l]);
            keep_carve(m, &m->keep[l], &w);
        }
        return;
    }
    keep_carve(m, &m->keep[0], &most);
    for (int64_t l = 1; l < s->L; l++) {
        m->keep[l] = m->keep[0];
        if (m->options.train)
            m->keep[l].x = carve_act(m, &m->activations, m->rows * m->arch.C);
    }
}

/* Where blocks with their norms at the end write their outputs: the last one where nothing else lies that the head still needs. */
static void outputs_set(struct model *m)
{
    int64_t L = m->arch.stack[STACK_DEC].L;
    void *last = m->arch.norm_place == NORM_POST_RESIDUAL ? m->env.n : m->env.branch;
    for (int64_t l = 0; l < L && m->arch.norm_place != NORM_PRE; l++)
        m->keep[l].out = l < L - 1 ? m->keep[l + 1].x : last;
}

static void alibi_carve(struct model *m)
{
    const struct arch_stack *s = &m->arch.stack[STACK_DEC];
    for (int64_t l = 0; l < s->L && m->arch.pos == POS_ALIBI; l++)
        m->value.block[l].alibi = view_1d(carve_f32(&m->activations, s->block[l].H), DT_F32, s->block[l].H);
}

static void tables_carve(struct model *m)
{
    struct arena *a = &m->activations;
    int64_t half = m->arch.rope.dims / 2, P = m->positions;
    m->env.rope_cos = m->env.rope_sin = view_none();
    if (m->arch.pos != POS_ROPE)
        return;
    m->env.rope_cos = view_2d(carve_f32(a, P * half), DT_F32, P, half);
    m->env.rope_sin = view_2d(carve_f32(a, P * half), DT_F32, P, half);
}

static size_t kernel_scratch(const struct model *m)
{
    const struct model_options *o = &m->options;
    const struct arch *a = &m->arch;
    int64_t N = o->B * o->T, taught = o->taught < 0 ? a->V : o->taught;
    size_t bytes = N > 0 ? m->be->xent_scratch(m->dev, N, embed_width(a), a->V, taught) : 0;
    if (N > 0 && o->topk > 0)
        bytes = largest(bytes, m->be->topk_scratch(m->dev, N, embed_width(a), a->V, o->topk));
    for (int64_t l = 0; l < a->stack[STACK_DEC].L; l++) {
        const struct arch_block *b = &a->stack[STACK_DEC].block[l];
        if (o->B * o->T > 0)
            bytes = largest(bytes, m->be->attention_scratch(m->dev, o->B, o->T, o->T, b->H, b->G, b->D, o->train));
        if (o->cache_B * o->cache_S > 0)
            bytes = largest(bytes, m->be->attention_decode_scratch(m->dev, o->cache_B, 8, b->H, b->D, o->cache_S));
    }
    return bytes;
}

void activations_carve(struct model *m)
{
    struct arena *a = &m->activations, *s = &m->scratch;
    int64_t N = m->rows, C = m->arch.C;
    size_t i32 = (size_t)N * sizeof(int32_t);
    m->ids = arena_carve(a, i32);
    m->targets = arena_carve(a, i32);
    m->pos = arena_carve(a, i32);
    m->seg = arena_carve(a, i32);
    m->lens = arena_carve(a, (size_t)m->options.cache_B * sizeof(int32_t));
    m->step = arena_carve(a, (size_t)step_layout(m->options.cache_B, 8).count * sizeof(int32_t));
    m->final_mean = has_final_norm(&m->arch) && norm_has_mean(m->arch.norm) ? carve_f32(a, N) : NULL;
    m->final_rstd = has_final_norm(&m->arch) ? carve_f32(a, N) : NULL;
    m->embed_mean = m->arch.embed_norm && norm_has_mean(m->arch.norm) ? carve_f32(a, N) : NULL;
    m->embed_rstd = m->arch.embed_norm ? carve_f32(a, N) : NULL;
    m->logp = carve_f32(a, m->options.B * m->options.T);
    m->logits = carve_f32(a, m->options.cache_S > 0 ? m->options.cache_B * m->arch.V : 0);
    m->sums = arena_carve(a, sizeof *m->sums);
    m->top_ids = arena_carve(a, (size_t)(m->options.B * m->options.T * m->options.topk) * sizeof(int32_t));
    m->top_logp = carve_f32(a, m->options.B * m->options.T * m->options.topk);
    tables_carve(m);
    alibi_carve(m);
    keeps_carve(m);
    m->env.n = carve_act(m, s, N * C);
    m->env.branch = carve_act(m, s, N * C);
    outputs_set(m);
    m->env.u = arena_carve(s, u_bytes(m));
    m->env.d = m->options.train ? carve_act(m, s, N * C) : NULL;
    m->env.scratch = arena_carve(s, kernel_scratch(m));
}
