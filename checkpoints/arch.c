/* The life of a struct arch: made, copied, checked, counted. No family knowledge here, and no arithmetic on weights. */
#include "arch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* More layers than any model has; bounds what a lying config can make us allocate (L * sizeof(struct arch_block)). */
enum { LAYERS_MAX = 1 << 12 };
#define DIM_MAX ((int64_t)INT32_MAX)

enum code arch_init(struct arch *a, int64_t L)
{
    memset(a, 0, sizeof *a);
    if (L < 1 || L > LAYERS_MAX)
        return fail(ERR_INPUT, "number of layers must be 1 to %d, found %lld", LAYERS_MAX, (long long)L);
    a->residual_scale = a->attn_scale = a->embed_scale = a->logit_scale = 1.0;
    a->bos = a->eos = a->pad = a->decoder_start = -1;
    a->dtype = DT_F32;
    struct arch_stack *dec = &a->stack[STACK_DEC];
    dec->present = dec->causal = 1;
    dec->L = L;
    dec->block = calloc((size_t)L, sizeof *dec->block);
    if (!dec->block)
        return fail(ERR_MEMORY, "out of memory for %lld layers", (long long)L);
    return OK;
}

void arch_free(struct arch *a)
{
    if (!a)
        return;
    for (int s = 0; s < 2; s++) {
        for (int64_t l = 0; a->stack[s].block && l < a->stack[s].L; l++)
            free(a->stack[s].block[l].dilation);
        free(a->stack[s].block);
    }
    free(a->source_config);
    free(a->rope.long_factor);
    free(a->rope.short_factor);
    memset(a, 0, sizeof *a);
}

/* Replaces *p, which belongs to another arch, by a copy of its n bytes. */
static int own(void *p, size_t n)
{
    void *old, *copy;
    memcpy(&old, p, sizeof old);
    if (!old)
        return 1;
    copy = malloc(n ? n : 1);
    if (copy)
        memcpy(copy, old, n);
    memcpy(p, &copy, sizeof copy);
    return copy != NULL;
}

enum code arch_copy(struct arch *dst, const struct arch *src)
{
    *dst = *src;
    size_t factors = (size_t)(src->rope.dims / 2) * sizeof(double);
    int good = own(&dst->source_config, src->source_config ? strlen(src->source_config) + 1 : 0);
    good &= own(&dst->rope.long_factor, factors);
    good &= own(&dst->rope.short_factor, factors);
    for (int s = 0; s < 2; s++) {
        struct arch_stack *stack = &dst->stack[s];
        if (!own(&stack->block, (size_t)stack->L * sizeof *stack->block)) {
            good = 0;
            continue;
        }
        for (int64_t l = 0; stack->block && l < stack->L; l++)
            good &= own(&stack->block[l].dilation, (size_t)stack->block[l].H * sizeof(int32_t));
    }
    if (good)
        return OK;
    arch_free(dst);
    return fail(ERR_MEMORY, "out of memory for a copy of the architecture");
}

/* ---- check -------------------------------------------------------------------------------------------------------- */

static enum code dim_check(const char *where, const char *what, int64_t value)
{
    if (value < 1 || value > DIM_MAX)
        return fail(ERR_INPUT, "%s: %s must be 1 to %lld, found %lld", where, what, (long long)DIM_MAX, (long long)value);
    return OK;
}

static enum code number_check(const char *where, const char *what, double value, int positive)
{
    if (!isfinite(value) || (positive && !(value > 0)))
        return fail(ERR_INPUT, "%s: %s must be a finite%s number, found %g", where, what, positive ? " positive" : "", value);
    return OK;
}

/* What only our own forms spell out (arch_json.c): families compute these themselves. */
static enum code range_check(const char *where, const char *what, int64_t value, int64_t most)
{
    if (value < 0 || value > most)
        return fail(ERR_INPUT, "%s: %s must be 0 to %lld, found %lld", where, what, (long long)most, (long long)value);
    return OK;
}

static enum code extent_check(const char *where, const char *what, double value)
{
    TRY(number_check(where, what, value, 0));
    return value < 0 ? fail(ERR_INPUT, "%s: %s must not be negative, found %g", where, what, value) : OK;
}

static enum code block_check(const struct arch_block *b, int64_t layer, const char *where)
{
    TRY(dim_check(where, "num_attention_heads", b->H));
    TRY(dim_check(where, "num_key_value_heads", b->G));
    TRY(dim_check(where, "head_dim", b->D));
    TRY(dim_check(where, "value head_dim", b->Dv));
    TRY(dim_check(where, "intermediate_size", b->F));
    if (b->H % b->G)
        return fail(ERR_INPUT, "%s: layer %lld: num_attention_heads %lld is not a multiple of num_key_value_heads %lld", where,
                    (long long)layer, (long long)b->H, (long long)b->G);
    TRY(extent_check(where, "attention scale of a layer", b->scale));
    TRY(range_check(where, "global_tokens", b->global_tokens, 1));
    TRY(range_check(where, "cross", b->cross, 1));
    if (b->window < 0)
        return fail(ERR_INPUT, "%s: layer %lld: window must not be negative, found %lld", where, (long long)layer, (long long)b->window);
    if (b->cross && (b->G_cross < 1 || b->H % b->G_cross))
        return fail(ERR_INPUT, "%s: layer %lld: num_attention_heads %lld is not a multiple of the cross-attention's %lld key/value heads",
                    where, (long long)layer, (long long)b->H, (long long)b->G_cross);
    return OK;
}

static enum code rope_check(const struct arch *a, const char *where)
{
    const struct arch_rope *r = &a->rope;
    if (r->dims < 2 || r->dims % 2 || r->dims > DIM_MAX)
        return fail(ERR_INPUT, "%s: rotary dimensions must be even and positive, found %lld", where, (long long)r->dims);
    TRY(number_check(where, "rope_theta", r->theta, 1));
    TRY(range_check(where, "original_max_position_embeddings", r->original_max_positions, DIM_MAX));
    TRY(extent_check(where, "rope attention_factor", r->attention_factor));
    if (r->kind != ROPE_DEFAULT && r->kind != ROPE_LONGROPE)
        TRY(number_check(where, "rope scaling factor", r->factor, 1));
    if (r->kind == ROPE_LONGROPE && !(r->long_factor && r->short_factor))
        return fail(ERR_INPUT, "%s: longrope needs \"long_factor\" and \"short_factor\"", where);
    if (r->kind == ROPE_DYNAMIC && r->dims == 2)
        return fail(ERR_INPUT, "%s: dynamic rotary scaling needs more than 2 rotary dimensions", where);
    for (int64_t l = 0; l < a->stack[STACK_DEC].L; l++)
        if (r->dims > a->stack[STACK_DEC].block[l].D)
            return fail(ERR_INPUT, "%s: layer %lld: %lld rotary dimensions exceed head_dim %lld", where, (long long)l,
                        (long long)r->dims, (long long)a->stack[STACK_DEC].block[l].D);
    return OK;
}

static enum code scalars_check(const struct arch *a, const char *where)
{
    TRY(extent_check(where, "norm epsilon", a->norm_eps));
    TRY(number_check(where, "attention scale", a->attn_scale, 0));
    TRY(number_check(where, "embedding scale", a->embed_scale, 0));
    TRY(number_check(where, "logit scale", a->logit_scale, 0));
    TRY(number_check(where, "residual scale", a->residual_scale, 0));
    TRY(extent_check(where, "logit softcap", a->logit_softcap));
    TRY(extent_check(where, "clip_qkv", a->clip_qkv));
    TRY(number_check(where, "alibi_bias_max", a->alibi_bias_max, a->pos == POS_ALIBI));
    TRY(range_check(where, "alibi_scaled", a->alibi_scaled, 1));
    TRY(range_check(where, "tied", a->tied, 1));
    TRY(range_check(where, "embed_norm", a->embed_norm, 1));
    TRY(range_check(where, "embed_proj", a->embed_proj, DIM_MAX));
    return range_check(where, "pos_offset", a->pos_offset, DIM_MAX);
}

enum code arch_check(const struct arch *a, const char *where)
{
    TRY(dim_check(where, "hidden_size", a->C));
    TRY(dim_check(where, "vocab_size", a->V));
    TRY(dim_check(where, "max_position_embeddings", a->max_positions));
    TRY(scalars_check(a, where));
    if (!a->stack[STACK_DEC].present)
        return fail(ERR_INPUT, "%s: the model has no decoder", where);
    for (int s = 0; s < 2; s++) {
        const struct arch_stack *stack = &a->stack[s];
        if (stack->present && (stack->L < 1 || stack->L > LAYERS_MAX || !stack->block))
            return fail(ERR_INPUT, "%s: num_hidden_layers must be 1 to %d, found %lld", where, LAYERS_MAX, (long long)stack->L);
        for (int64_t l = 0; stack->present && l < stack->L; l++)
            TRY(block_check(&stack->block[l], l, where));
    }
    if (a->pos == POS_ROPE)
        TRY(rope_check(a, where));

    struct tensor_spec *specs;
    int n;
    int64_t bytes = 0;
    TRY(arch_tensors(a, &specs, &n));
    for (int i = 0; i < n; i++) {
        int64_t size;
        if (!checked_mul(specs[i].n[0], specs[i].n[1], &size) || !checked_mul(size, 8, &size) || !checked_add(bytes, size, &bytes)) {
            enum code c = fail(ERR_INPUT, "%s: the sizes of %s overflow: %lld x %lld", where, specs[i].name,
                               (long long)specs[i].n[0], (long long)specs[i].n[1]);
            free(specs);
            return c;
        }
    }
    free(specs);
    return OK;
}

/* ---- counts ------------------------------------------------------------------------------------------------------- */

int64_t arch_parameters(const struct arch *a)
{
    struct tensor_spec *specs;
    int n;
    int64_t count = 0;
    if (arch_tensors(a, &specs, &n) != OK)
        return 0;
    for (int i = 0; i < n; i++)
        count += specs[i].n[0] * specs[i].n[1];
    free(specs);
    return count;
}

int64_t arch_kv_bytes_per_token(const struct arch *a, int64_t G, enum dtype t)
{
    int64_t elements = 0;
    for (int64_t l = 0; l < a->stack[STACK_DEC].L; l++) {
        const struct arch_block *b = &a->stack[STACK_DEC].block[l];
        elements += (G ? G : b->G) * (b->D + b->Dv);
    }
    return elements * (int64_t)dtype_bytes(t);
}

int arch_legal_groups(const struct arch *a, int64_t *groups, int max)
{
    int64_t common = 0; /* greatest common divisor of every layer's G */
    for (int s = 0; s < 2; s++)
        for (int64_t l = 0; a->stack[s].present && l < a->stack[s].L; l++) {
            int64_t x = common, y = a->stack[s].block[l].G;
            while (y) {
                int64_t r = x % y;
                x = y;
                y = r;
            }
            common = x;
        }
    int n = 0;
    for (int64_t g = common; g >= 1 && n < max; g--)
        if (common % g == 0)
            groups[n++] = g;
    return n;
}
