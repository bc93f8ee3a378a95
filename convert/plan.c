/* What a conversion will do: the architecture of the result, checked before anything is written. */
#include "convert.h"

#include <stdio.h>
#include <string.h>

static enum code refuse_groups(const struct arch *a, int64_t asked, int64_t layer)
{
    int64_t legal[64];
    int n = arch_legal_groups(a, legal, 64), used = 0;
    char list[512] = "";
    for (int i = 0; i < n && used < 480; i++)
        used += snprintf(list + used, sizeof list - (size_t)used, "%s%lld", i ? ", " : "", (long long)legal[i]);
    int64_t G = a->stack[STACK_DEC].block[layer].G;
    return fail(ERR_USAGE, "%lld key/value heads cannot be made from layer %lld's %lld: legal counts are %s", (long long)asked,
                (long long)layer, (long long)G, list);
}

static enum code set_groups(struct arch *a, const struct arch *from, const struct options *o)
{
    const struct arch_stack *in = &from->stack[STACK_DEC];
    struct arch_stack *stack = &a->stack[STACK_DEC];
    const struct cli_ints *list = &o->kv_heads_per_layer;
    if (o->kv_heads != KV_HEADS_KEEP && list->n)
        return fail(ERR_USAGE, "--kv-heads and --kv-heads-per-layer exclude each other");
    if (list->n && list->n != stack->L)
        return fail(ERR_USAGE, "--kv-heads-per-layer needs %lld counts, one per layer; %d given", (long long)stack->L, list->n);
    for (int64_t l = 0; l < stack->L; l++) {
        int64_t G = list->n ? list->v[l] : o->kv_heads;
        if (!list->n && o->kv_heads == KV_HEADS_KEEP)
            continue;
        if (G < 1 || G > in->block[l].G || in->block[l].G % G != 0)
            return refuse_groups(from, G, l);
        stack->block[l].G = G;
    }
    return OK;
}

/* Merging across these would need more than a mean; refusing is better than a wrong model. */
static enum code refuse_unmergeable(const struct arch *a)
{
    if (a->qk_norm == QK_NORM_FULL || a->qk_norm == QK_NORM_PER_HEAD)
        return fail(ERR_UNSUPPORTED, "%s: merging heads under a query/key norm over the full width is not supported yet", a->family);
    for (int64_t l = 0; l < a->stack[STACK_DEC].L; l++)
        if (a->stack[STACK_DEC].block[l].dilation)
            return fail(ERR_UNSUPPORTED, "layer %lld: heads with different dilations cannot be merged", (long long)l);
    return OK;
}

enum code plan_make(struct plan *p, struct checkpoint *source, const struct options *o)
{
    memset(p, 0, sizeof *p);
    p->from = ckpt_arch(source);
    TRY(arch_copy(&p->arch, p->from));
    TRY(set_groups(&p->arch, p->from, o));
    const struct arch_stack *in = &p->from->stack[STACK_DEC], *out = &p->arch.stack[STACK_DEC];
    for (int64_t l = 0; l < in->L; l++)
        p->merges |= in->block[l].G != out->block[l].G;
    if (p->merges)
        TRY(refuse_unmergeable(p->from));
    enum dtype t = options_dtype(o);
    if (t != DT_NONE)
        p->arch.dtype = t;
    for (int i = 0; i < ckpt_count(source); i++) {
        const struct ckpt_tensor *x = ckpt_at(source, i);
        int64_t bytes = t == DT_NONE ? x->bytes : x->bytes / (int64_t)dtype_bytes(x->dtype) * (int64_t)dtype_bytes(t);
        p->bytes_in += x->bytes;
        p->bytes_out += x->pool == POOL_KV && x->layer >= 0 ? bytes / in->block[x->layer].G * out->block[x->layer].G : bytes;
    }
    return OK;
}

void plan_free(struct plan *p) { arch_free(&p->arch); }

void plan_groups_text(const struct plan *p, char *out, size_t n)
{
    const struct arch_stack *in = &p->from->stack[STACK_DEC], *to = &p->arch.stack[STACK_DEC];
    int same = 1;
    for (int64_t l = 1; l < to->L; l++)
        same &= to->block[l].G == to->block[0].G && in->block[l].G == in->block[0].G;
    if (same) {
        int64_t from = in->block[0].G, G = to->block[0].G;
        snprintf(out, n, "%lld -> %lld%s", (long long)from, (long long)G, from == G ? " (unchanged)" : "");
        return;
    }
    size_t used = 0;
    for (int64_t l = 0; l < to->L && used + 24 < n; l++)
        used += (size_t)snprintf(out + used, n - used, "%s%lld->%lld", l ? " " : "", (long long)in->block[l].G, (long long)to->block[l].G);
}
