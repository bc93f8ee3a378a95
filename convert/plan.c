/* What a conversion will do: how many heads remain, where the result lives, its architecture; checked before anything is written. */
#include "convert.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum dtype options_dtype(const struct options *o)
{
    static const enum dtype types[] = { DT_NONE, DT_F32, DT_BF16, DT_F16 };
    return types[o->dtype];
}

static void list_legal(const struct arch *a, char *list, size_t n)
{
    int64_t legal[64];
    const struct arch_stack *s = &a->stack[STACK_DEC];
    int count = arch_legal_groups(a, legal, 64), more = 0;
    size_t used = 0;
    for (int i = 0; i < count && used + 24 < n; i++)
        used += (size_t)snprintf(list + used, n - used, "%s%lld", i ? ", " : "", (long long)legal[i]);
    for (int64_t G = 2 * s->block[0].G; G <= s->block[0].H && used + 48 < n; G++) {
        int fits = 1;
        for (int64_t l = 0; l < s->L; l++)
            fits &= G % s->block[l].G == 0 && s->block[l].H % G == 0;
        if (fits)
            used += (size_t)snprintf(list + used, n - used, "%s%lld", more++ ? ", " : "; by repeating heads ", (long long)G);
    }
}

static enum code refuse_groups(const struct arch *a, int64_t asked, int64_t layer)
{
    char list[512] = "";
    list_legal(a, list, sizeof list);
    return fail(ERR_USAGE, "%lld key/value heads cannot be made from layer %lld's %lld: legal counts are %s", (long long)asked,
                (long long)layer, (long long)a->stack[STACK_DEC].block[layer].G, list);
}

static int legal(const struct arch_block *b, int64_t G)
{
    return G >= 1 && (G <= b->G ? b->G % G == 0 : G % b->G == 0 && b->H % G == 0);
}

enum code plan_groups(struct arch *a, int64_t G)
{
    for (int64_t l = 0; l < a->stack[STACK_DEC].L; l++) {
        struct arch_block *b = &a->stack[STACK_DEC].block[l];
        if (!legal(b, G))
            return refuse_groups(a, G, l);
        b->G = G;
    }
    return OK;
}

static enum code set_groups(struct arch *a, const struct options *o)
{
    struct arch_stack *stack = &a->stack[STACK_DEC];
    const struct cli_ints *list = &o->kv_heads_per_layer;
    if (o->kv_heads != KV_HEADS_KEEP && list->n)
        return fail(ERR_USAGE, "--kv-heads and --kv-heads-per-layer exclude each other");
    for (int64_t l = 0; o->budget && l < stack->L; l++)
        stack->block[l].G = o->budget->layer[l].option[o->budget->layer[l].chosen].G;
    if (o->kv_heads != KV_HEADS_KEEP)
        return plan_groups(a, o->kv_heads);
    if (list->n && list->n != stack->L)
        return fail(ERR_USAGE, "--kv-heads-per-layer needs %lld counts, one per layer; %d given", (long long)stack->L, list->n);
    for (int64_t l = 0; list->n && l < stack->L; l++) {
        if (!legal(&stack->block[l], list->v[l]))
            return refuse_groups(a, list->v[l], l);
        stack->block[l].G = list->v[l];
    }
    return OK;
}

/* Merging across these would need more than a mean; refusing is better than a wrong model. */
static enum code refuse_unmergeable(const struct arch *a, const struct options *o)
{
    if (o->grouping == GROUPING_SIMILAR && a->pos == POS_ALIBI)
        return fail(ERR_UNSUPPORTED, "%s: --grouping similar changes the order of the heads, but an ALiBi slope belongs to its head's number; use consecutive", a->family);
    if (a->qk_norm == QK_NORM_FULL && a->norm != NORM_RMS)
        return fail(ERR_UNSUPPORTED, "%s: merging heads under a key norm over the full width is possible for RMSNorm only", a->family);
    for (int64_t l = 0; l < a->stack[STACK_DEC].L; l++)
        if (a->stack[STACK_DEC].block[l].dilation)
            return fail(ERR_UNSUPPORTED, "layer %lld: heads with different dilations cannot be merged", (long long)l);
    return OK;
}

/* Before the choice expands anything: how many heads each layer keeps. */
static enum code set_pooled(struct plan *p)
{
    const struct arch_stack *in = &p->from.stack[STACK_DEC], *out = &p->arch.stack[STACK_DEC];
    p->pooled = malloc((size_t)in->L * sizeof *p->pooled);
    if (!p->pooled)
        return fail(ERR_MEMORY, "out of memory for %lld layers", (long long)in->L);
    for (int64_t l = 0; l < in->L; l++) {
        p->pooled[l] = out->block[l].G < in->block[l].G ? out->block[l].G : in->block[l].G;
        p->merges |= p->pooled[l] < in->block[l].G;
    }
    return OK;
}

/* The refusal of a home, with those that are none: what a user can ask for instead. */
static enum code add_alternatives(const struct arch *a, const struct options *o)
{
    char why[768], list[128] = "";
    size_t used = 0;
    size_t n = strlen(o->target);
    int gguf = n > 5 && !strcasecmp(o->target + n - 5, ".gguf");
    snprintf(why, sizeof why, "%s", fail_text());
    for (enum ckpt_home home = HOME_NATIVE; home <= HOME_EXPANDED; home++) {
        struct ckpt_choice choice;
        if (home != HOME_GGUF && ckpt_choose(a, "a directory", home, NULL, &choice) == OK)
            used += (size_t)snprintf(list + used, sizeof list - used, "%s%s%s", used ? ", " : "", ckpt_home_name(home), choice.exact ? "" : " (approximate)");
    }
    if (!used)
        return fail(ERR_UNSUPPORTED, "%s; only a .h5 holds this model", why);
    if (gguf)
        return fail(ERR_UNSUPPORTED, "%s; write a directory (a DST without .gguf) with --target %s", why, list);
    return fail(ERR_UNSUPPORTED, "%s; --target can be %s, or leave it out", why, list);
}

/* Bytes of the result by its own tensor table; a tensor that the source lacks has the type of its first. */
static enum code count_bytes(struct plan *p, struct checkpoint *source, enum dtype t)
{
    struct tensor_spec *specs;
    int n;
    for (int i = 0; i < ckpt_count(source); i++)
        p->bytes_in += ckpt_at(source, i)->bytes;
    TRY(arch_tensors(&p->arch, &specs, &n));
    for (int i = 0; i < n; i++) {
        const struct ckpt_tensor *x = ckpt_find(source, specs[i].name);
        enum dtype type = t != DT_NONE ? t : x ? x->dtype : ckpt_at(source, 0)->dtype;
        p->bytes_out += specs[i].n[0] * specs[i].n[1] * (int64_t)dtype_bytes(type);
    }
    free(specs);
    return OK;
}

enum code plan_make(struct plan *p, struct checkpoint *source, const struct options *o)
{
    memset(p, 0, sizeof *p);
    TRY(arch_copy(&p->from, ckpt_arch(source)));
    TRY(arch_copy(&p->arch, &p->from));
    TRY(set_groups(&p->arch, o));
    TRY(set_pooled(p));
    if (p->merges) {
        TRY(refuse_unmergeable(&p->from, o));
        knorm_note(&p->from, (enum merge_method)o->method, p->note, sizeof p->note);
        p->whole_layers = o->method > MERGE_RANDOM || (o->grouping == GROUPING_SIMILAR && o->method != MERGE_RANDOM);
    }
    p->whole_layers |= p->merges && o->calibration != NULL;
    for (int64_t l = 0; p->whole_layers && l < p->from.stack[STACK_DEC].L; l++) {
        int64_t bytes = p->pooled[l] < p->from.stack[STACK_DEC].block[l].G ? merge_bytes(&p->from, l, p->pooled[l]) : 0;
        p->layer_bytes = bytes > p->layer_bytes ? bytes : p->layer_bytes;
    }
    enum dtype t = options_dtype(o);
    if (t != DT_NONE)
        p->arch.dtype = t;
    enum code c = ckpt_choose(&p->arch, o->target, (enum ckpt_home)o->home, o->family, &p->choice);
    if (c == ERR_UNSUPPORTED)
        c = add_alternatives(&p->arch, o);
    TRY(c);
    TRY(ckpt_choice_arch(&p->arch, &p->choice));
    for (int64_t l = 0; l < p->arch.stack[STACK_DEC].L; l++)
        p->repeats |= p->arch.stack[STACK_DEC].block[l].G > p->pooled[l];
    return count_bytes(p, source, t);
}

void plan_free(struct plan *p)
{
    arch_free(&p->arch);
    arch_free(&p->from);
    free(p->pooled);
}

void plan_groups_text(const struct plan *p, char *out, size_t n)
{
    const struct arch_stack *in = &p->from.stack[STACK_DEC], *to = &p->arch.stack[STACK_DEC];
    int same = 1;
    size_t used = 0;
    for (int64_t l = 1; l < to->L; l++)
        same &= to->block[l].G == to->block[0].G && in->block[l].G == in->block[0].G && p->pooled[l] == p->pooled[0];
    if (same) {
        long long from = in->block[0].G, pooled = p->pooled[0], G = to->block[0].G;
        used = (size_t)snprintf(out, n, "%lld -> %lld", from, pooled);
        if (G > pooled)
            snprintf(out + used, n - used, ", repeated to %lld", G);
        else if (from == G)
            snprintf(out + used, n - used, " (unchanged)");
        return;
    }
    for (int64_t l = 0; l < to->L && used + 40 < n; l++) {
        long long from = in->block[l].G, pooled = p->pooled[l], G = to->block[l].G;
        used += (size_t)snprintf(out + used, n - used, "%s%lld->%lld", l ? " " : "", from, pooled);
        if (G > pooled)
            used += (size_t)snprintf(out + used, n - used, "x%lld", G / pooled);
    }
}
