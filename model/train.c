/* One micro-batch: forward, loss, backward into the flat gradient. */
#include "parts.h"

/* Tells the listener that the gradients of the tensors of `layer` are final: -1 what comes before the layers, L what comes after. */
static void announce(const struct model *m, int64_t layer)
{
    int64_t L = m->arch.stack[STACK_DEC].L, from = -1, to = model_flat(m).n, seen_layer = 0;
    if (!m->ready)
        return;
    for (int i = 0; i < m->n_params; i++) {
        const struct model_param *p = &m->param[i];
        int64_t here = p->spec.layer;
        seen_layer |= here >= 0;
        if (here < 0)
            here = seen_layer ? L : -1;
        if (here == layer && from < 0)
            from = p->offset;
        if (here > layer) {
            to = p->offset;
            break;
        }
    }
    if (from >= 0)
        m->ready(m->ready_context, from, to);
}

static enum code blocks_backward(struct model *m)
{
    const struct arch_stack *stack = &m->arch.stack[STACK_DEC];
    for (int64_t l = stack->L - 1; l >= 0; l--) {
        if (m->options.recompute && l < stack->L - 1) /* what the last block left is still there */
            TRY(block_forward(&m->env, &stack->block[l], &m->value.block[l], &m->keep[l], NULL, view_none(), 1));
        TRY(block_backward(&m->env, &stack->block[l], &m->value.block[l], &m->grad.block[l], &m->keep[l]));
        announce(m, l);
    }
    return OK;
}

enum code model_forward_backward(struct model *m, const struct batch *b, const float *inv_count, double *loss_sum, int64_t *count)
{
    if (!m->options.train)
        return fail(ERR_USAGE, "this model was opened without gradients");
    if (b->B > m->options.B || b->T > m->options.T)
        return fail(ERR_USAGE, "a batch of %lld x %lld does not fit the model opened for %lld x %lld", (long long)b->B, (long long)b->T,
                    (long long)m->options.B, (long long)m->options.T);
    TRY(teacher_run(m, b));
    TRY(pass_begin(m, b->B, b->T, b->ids, b->positions, b->segments, b->targets));
    TRY(pass_blocks(m));
    TRY(head_forward_backward(m, inv_count, loss_sum, count));
    announce(m, m->arch.stack[STACK_DEC].L);
    TRY(blocks_backward(m));
    TRY(embed_backward(m));
    announce(m, -1);
    return OK;
}

void model_on_grad_ready(struct model *m, model_grad_ready_fn *fn, void *context)
{
    m->ready = fn;
    m->ready_context = context;
}
