/* Prefill and decode. A decode step reads every weight once and the cache once; nothing else in it is longer than [B, F]. */
#include <math.h>

#include "parts.h"

static enum code cache_fits(const struct model *m, int64_t B, int64_t T)
{
    if (!m->kv)
        return fail(ERR_USAGE, "this model was opened without a K/V cache");
    if (B != m->options.cache_B)
        return fail(ERR_USAGE, "%lld sequences for a K/V cache of %lld", (long long)B, (long long)m->options.cache_B);
    for (int64_t b = 0; b < B; b++)
        if (T > m->options.cache_S - m->host_lens[b])
            return fail(ERR_USAGE, "the K/V cache is full: sequence %lld has %lld of %lld positions, %lld more asked for", (long long)b,
                        (long long)m->host_lens[b], (long long)m->options.cache_S, (long long)T);
    return OK;
}

/* Final norm and head on the last row of each sequence. */
static enum code last_logits(struct model *m, float *logits)
{
    const struct arch *a = &m->arch;
    const struct block_env *e = &m->env;
    int64_t N = e->B * e->T;
    struct view none = view_none(), n = view_2d(e->n, DT_F32, e->B, a->C), out = view_2d(logits, DT_F32, e->B, a->V);
    struct view rows[2] = {view_2d(m->keep[a->stack[STACK_DEC].L - 1].mid, DT_F32, N, a->C), view_2d(e->branch, DT_F32, N, a->C)};
    for (int i = 0; i < 2; i++) {
        rows[i] = view_slice(rows[i], 0, e->T - 1, N - e->T + 1);
        rows[i].n[0] = e->B;
        rows[i].s[0] *= e->T;
    }
    TRY(m->be->norm_fwd(m->dev, n, none, none, none, rows[0], rows[1], m->value.final_norm_w, m->value.final_norm_b, a->norm, (float)a->norm_eps));
    TRY(m->be->matmul(m->dev, out, n, m->value.head, m->value.head_b, 0, 1, (float)a->logit_scale, 0.0f));
    if (a->logit_softcap > 0.0) {
        float cap = (float)a->logit_softcap;
        for (int64_t i = 0; i < e->B * a->V; i++)
            logits[i] = cap * tanhf(logits[i] / cap);
    }
    return OK;
}

static enum code run_cached(struct model *m, enum block_attention how, int64_t B, int64_t T, float *logits)
{
    m->env.attention = how;
    m->env.lens = view_1d(m->lens, DT_I32, B);
    TRY(m->be->device_copy(m->dev, m->lens, m->host_lens, (size_t)B * sizeof(int32_t)));
    TRY(pass_blocks(m));
    if (logits)
        TRY(last_logits(m, logits));
    for (int64_t b = 0; b < B; b++)
        m->host_lens[b] += (int32_t)T;
    return OK;
}

enum code model_prefill(struct model *m, const int32_t *ids, int64_t B, int64_t T, float *logits)
{
    TRY(cache_fits(m, B, T));
    if (T < 1 || T > m->options.T || B > m->options.B)
        return fail(ERR_USAGE, "a prompt of %lld x %lld does not fit the model opened for %lld x %lld", (long long)B, (long long)T,
                    (long long)m->options.B, (long long)m->options.T);
    for (int64_t b = 0; b < B; b++)
        if (m->host_lens[b])
            return fail(ERR_USAGE, "prefill needs an empty cache, sequence %lld has %d positions", (long long)b, m->host_lens[b]);
    TRY(pass_begin(m, B, T, ids, NULL, NULL, NULL));
    return run_cached(m, ATTEND_PREFILL, B, T, logits);
}

enum code model_decode(struct model *m, const int32_t *ids, int64_t B, int64_t Tq, float *logits)
{
    TRY(cache_fits(m, B, Tq));
    if (Tq < 1 || Tq > 8)
        return fail(ERR_USAGE, "a decode step takes 1 to 8 tokens per sequence, not %lld", (long long)Tq);
    for (int64_t b = 0; b < B; b++)
        for (int64_t j = 0; j < Tq; j++)
            m->host_pos[b * Tq + j] = m->host_lens[b] + (int32_t)j;
    TRY(pass_begin(m, B, Tq, ids, m->host_pos, NULL, NULL));
    return run_cached(m, ATTEND_CACHE, B, Tq, logits);
}
