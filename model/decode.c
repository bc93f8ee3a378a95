/* Prefill and decode. A decode step reads every weight once and the cache once; nothing else in it is longer than [B, F].
 *
 * Its operations are the same at every step, only the contents of ids, positions and lengths change, and these are copied to the
 * device before it. So a step of one shape (new tokens, logits or none) is run once as it is, then recorded, then repeated by one
 * call: a backend with graphs saves the launches. A backend without them runs the operations as they are called. */
#include <math.h>
#include <string.h>

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

/* The last row of each sequence of [B*T,C]. */
static struct view last_rows(const struct block_env *e, struct view x)
{
    if (!x.p)
        return x;
    x = view_slice(x, 0, e->T - 1, (e->B - 1) * e->T + 1);
    x.n[0] = e->B;
    x.s[0] *= e->T;
    return x;
}

/* Final norm and head on the last row of each sequence, into m->logits. */
static enum code last_logits(struct model *m)
{
    const struct arch *a = &m->arch;
    const struct block_env *e = &m->env;
    struct view none = view_none(), out = view_2d(m->logits, DT_F32, e->B, a->V), hidden;
    struct head_norm norm = {act_2d(e, e->n, e->B, a->C), none, none, none};
    struct block_output rows = pass_output(m);
    rows.base = last_rows(e, rows.base);
    rows.branch = last_rows(e, rows.branch);
    TRY(head_input(m, rows, &norm, &hidden));
    return m->be->matmul(m->dev, out, hidden, m->value.head, m->value.head_b, 0, 1, (float)a->logit_scale, 0.0f);
}

static enum code logits_to_host(const struct model *m, int64_t B, float *logits)
{
    int64_t n = B * m->arch.V;
    float cap = (float)m->arch.logit_softcap;
    TRY(m->be->device_copy(m->dev, logits, m->logits, (size_t)n * sizeof *logits));
    for (int64_t i = 0; cap > 0.0f && i < n; i++)
        logits[i] = cap * tanhf(logits[i] / cap);
    return OK;
}

static enum code run_step(struct model *m, int want_logits)
{
    TRY(pass_blocks(m));
    return want_logits ? last_logits(m) : OK;
}

/* The second step of its shape. A step that cannot be recorded has not run: it runs as it is, then and later. */
static enum code record_step(struct model *m, struct decode_graph *g, int want_logits)
{
    int recording = 0;
    g->state = DECODE_PLAIN;
    if (m->be->graph_begin(m->dev, &recording) != OK)
        log_warn("%s; decode steps run operation by operation", fail_text());
    if (!recording)
        return run_step(m, want_logits);
    enum code c = run_step(m, want_logits), end = m->be->graph_end(m->dev, &g->graph);
    if (c != OK || end != OK) { /* what is wrong with the step itself, its second run says */
        log_warn("%s; decode steps run operation by operation", fail_text());
        return run_step(m, want_logits);
    }
    g->state = DECODE_RECORDED;
    return m->be->graph_run(m->dev, g->graph);
}

static enum code decode_step(struct model *m, int64_t T, int want_logits)
{
    struct decode_graph *g = &m->decode[T - 1][want_logits];
    switch (g->state) {
    case DECODE_NEW: g->state = DECODE_WARM; break;
    case DECODE_WARM: return record_step(m, g, want_logits);
    case DECODE_RECORDED: return m->be->graph_run(m->dev, g->graph);
    case DECODE_PLAIN: break;
    }
    return run_step(m, want_logits);
}

void decode_close(struct model *m)
{
    for (int t = 0; t < 8; t++)
        for (int logits = 0; logits < 2; logits++)
            m->be->graph_free(m->dev, m->decode[t][logits].graph);
}

static enum code run_cached(struct model *m, enum block_attention how, int64_t B, int64_t T, int want_logits)
{
    m->env.attention = how;
    TRY(how == ATTEND_CACHE ? decode_step(m, T, want_logits) : run_step(m, want_logits));
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
    TRY(m->be->device_copy(m->dev, m->lens, m->host_lens, (size_t)B * sizeof(int32_t)));
    m->env.lens = view_1d(m->lens, DT_I32, B);
    TRY(run_cached(m, ATTEND_PREFILL, B, T, logits != NULL));
    return logits ? logits_to_host(m, B, logits) : OK;
}

enum code model_decode(struct model *m, const int32_t *ids, int64_t B, int64_t Tq, float *logits)
{
    TRY(model_decode_queue(m, ids, B, Tq, logits != NULL));
    return logits ? logits_to_host(m, B, logits) : OK;
}

struct step_layout step_layout(int64_t B, int64_t Tq)
{
    int64_t rows = (B * Tq + 15) / 16 * 16;
    struct step_layout l = {rows, 2 * rows, 2 * rows + B};
    return l;
}

/* pass_begin for a step, with one copy. */
static enum code step_begin(struct model *m, const int32_t *ids, int64_t B, int64_t Tq)
{
    struct step_layout l = step_layout(B, Tq);
    int32_t *host = m->host_step;
    memcpy(host, ids, (size_t)(B * Tq) * sizeof *host);
    memcpy(host + l.lens, m->host_lens, (size_t)B * sizeof *host);
    for (int64_t i = 0; i < B * Tq; i++)
        host[l.pos + i] = m->host_lens[i / Tq] + (int32_t)(i % Tq);
    TRY(m->be->device_copy(m->dev, m->step, host, (size_t)l.count * sizeof *host));
    m->env.B = B;
    m->env.T = Tq;
    m->env.ids = view_1d(m->step, DT_I32, B * Tq);
    m->env.pos = view_1d(m->step + l.pos, DT_I32, B * Tq);
    m->env.lens = view_1d(m->step + l.lens, DT_I32, B);
    m->env.seg = view_none();
    return OK;
}

enum code model_decode_queue(struct model *m, const int32_t *ids, int64_t B, int64_t Tq, int want_logits)
{
    TRY(cache_fits(m, B, Tq));
    if (Tq < 1 || Tq > 8)
        return fail(ERR_USAGE, "a decode step takes 1 to 8 tokens per sequence, not %lld", (long long)Tq);
    TRY(step_begin(m, ids, B, Tq));
    return run_cached(m, ATTEND_CACHE, B, Tq, want_logits != 0);
}
