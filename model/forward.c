/* The pass shared by training, scoring, prefill and decode: put the batch on the device, embed, run the blocks. */
#include "parts.h"

static int one_document_per_row(const int32_t *segments, int64_t B, int64_t T)
{
    for (int64_t i = 0; i < B * T; i++)
        if (segments[i] != segments[i / T * T])
            return 0;
    return 1;
}

enum code pass_begin(struct model *m, int64_t B, int64_t T, const int32_t *ids, const int32_t *positions, const int32_t *segments,
                     const int32_t *targets)
{
    int64_t N = B * T;
    size_t bytes = (size_t)N * sizeof(int32_t);
    CHECK(B > 0 && T > 0 && N <= m->rows);
    if (!positions) {
        for (int64_t i = 0; i < N; i++)
            m->host_pos[i] = (int32_t)(i % T);
        positions = m->host_pos;
    }
    TRY(m->be->device_copy(m->dev, m->ids, ids, bytes));
    TRY(m->be->device_copy(m->dev, m->pos, positions, bytes));
    if (segments && !m->activations.host && one_document_per_row(segments, B, T))
        segments = NULL; /* a GPU's kernels are faster without them */
    if (segments)
        TRY(m->be->device_copy(m->dev, m->seg, segments, bytes));
    if (targets)
        TRY(m->be->device_copy(m->dev, m->targets, targets, bytes));
    m->env.B = B;
    m->env.T = T;
    m->env.attention = ATTEND_BATCH;
    m->env.ids = view_1d(m->ids, DT_I32, N);
    m->env.pos = view_1d(m->pos, DT_I32, N);
    m->env.seg = segments ? view_2d(m->seg, DT_I32, B, T) : view_none();
    return OK;
}

enum code pass_blocks(struct model *m)
{
    const struct block_env *e = &m->env;
    const struct arch_stack *stack = &m->arch.stack[STACK_DEC];
    struct view base = view_none();
    TRY(embed_forward(m));
    for (int64_t l = 0; l < stack->L; l++) {
        TRY(block_forward(e, &stack->block[l], &m->value.block[l], &m->keep[l], m->kv ? &m->kv[l] : NULL, base, 0));
        base = block_output(e, &m->keep[l]).base;
    }
    return OK;
}

struct block_output pass_output(const struct model *m)
{
    return block_output(&m->env, &m->keep[m->arch.stack[STACK_DEC].L - 1]);
}

struct xent_args model_xent_args(const struct model *m)
{
    struct xent_args x;
    x.logit_scale = (float)m->arch.logit_scale;
    x.logit_softcap = (float)m->arch.logit_softcap;
    x.inv_count = NULL;
    x.bias = m->value.head_b;
    x.dbias = view_none();
    x.teacher = NULL;
    return x;
}
