/* What of struct arch the transformer does: decoders, with the combinations of norms, residuals and positions that families use.
 * Everything else is refused here, by the name of the field, so that the code of the blocks holds no half-done cases. */
#include "parts.h"

static enum code refuse(const struct arch *a, const char *what, const char *field)
{
    return fail(ERR_UNSUPPORTED, "%s: %s (arch field %s) can be converted but not run yet", a->family[0] ? a->family : "model", what, field);
}

static enum code block_supported(const struct arch *a, const struct arch_block *b)
{
    if (b->Dv != b->D)
        return refuse(a, "a value width other than the head width", "block.Dv");
    if (b->dilation)
        return refuse(a, "dilated attention", "block.dilation");
    if (b->global_tokens)
        return refuse(a, "attention with global tokens", "block.global_tokens");
    if (b->blocksparse)
        return refuse(a, "block-sparse attention", "block.blocksparse");
    if (b->cross)
        return refuse(a, "cross-attention", "block.cross");
    if (a->pos == POS_ROPE && (a->rope.dims > b->D || a->rope.dims < 2 || a->rope.dims % 2))
        return refuse(a, "a rotary width that is odd or beyond the head width", "rope.dims");
    return OK;
}

static enum code arch_supported(const struct arch *a)
{
    const unsigned qkv = BIAS_Q | BIAS_K | BIAS_V;
    if (a->stack[STACK_ENC].present)
        return refuse(a, "an encoder stack", "stack[1].present");
    if (!a->stack[STACK_DEC].causal)
        return refuse(a, "attention that is not causal", "stack[0].causal");
    if (a->norm_place != NORM_PRE && a->residual != RESIDUAL_SEQUENTIAL)
        return refuse(a, "attention and MLP in parallel with norms after them", "residual");
    if (a->pos == POS_REL_BIAS)
        return refuse(a, "relative position biases", "pos");
    if ((a->bias & qkv) && (a->bias & qkv) != qkv)
        return refuse(a, "a bias on some but not all of q, k and v", "bias");
    if (a->residual_scale != 1.0 && (a->bias & (BIAS_O | BIAS_MLP_OUT)))
        return refuse(a, "a scaled residual with output biases", "residual_scale");
    if (a->residual_scale != 1.0 && a->norm_place != NORM_PRE)
        return refuse(a, "a scaled residual with norms after the sublayers", "residual_scale");
    if (a->logit_scale != 1.0 && (a->bias & BIAS_HEAD))
        return refuse(a, "scaled logits with a head bias", "logit_scale");
    for (int64_t l = 0; l < a->stack[STACK_DEC].L; l++)
        TRY(block_supported(a, &a->stack[STACK_DEC].block[l]));
    return OK;
}

enum code model_supports(const struct arch *a, const struct model_options *o, enum dtype activations)
{
    TRY(arch_supported(a));
    if (o->dtype != DT_F32 && o->dtype != DT_BF16)
        return fail(ERR_UNSUPPORTED, "parameters in memory can be f32 or bf16, not %s", dtype_name(o->dtype));
    if (o->layered && (o->train || o->dtype != DT_F32 || activations != DT_F32 || o->cache_B > 0))
        return fail(ERR_UNSUPPORTED, "a model held one layer at a time is f32, does not train and has no K/V cache");
    if (o->train && o->dtype != activations)
        return fail(ERR_UNSUPPORTED, "training keeps its parameters in %s on this device, not %s", dtype_name(activations), dtype_name(o->dtype));
    if (o->cache_B > 0 && o->cache_S > 0 && o->cache_dtype != DT_F32 && o->cache_dtype != DT_BF16)
        return fail(ERR_UNSUPPORTED, "the K/V cache can be f32 or bf16, not %s", dtype_name(o->cache_dtype));
    if (o->B < 0 || o->T < 0 || o->cache_B < 0 || o->cache_S < 0)
        return fail(ERR_USAGE, "a negative batch size or length");
    if (o->T > INT32_MAX || o->cache_S > INT32_MAX || (o->T > 0 && o->B > INT32_MAX / o->T) || o->cache_B > INT32_MAX / 8 ||
        (o->cache_S > 0 && o->cache_B > INT32_MAX / o->cache_S)) /* keeps every product of sizes inside 64 bits */
        return fail(ERR_USAGE, "%lld x %lld tokens in a pass or %lld x %lld in the K/V cache: more than 2^31 - 1", (long long)o->B, (long long)o->T,
                    (long long)o->cache_B, (long long)o->cache_S);
    if (a->pos == POS_LEARNED && (o->T > a->max_positions || o->cache_S > a->max_positions))
        return fail(ERR_USAGE, "the model has learned positions for %lld tokens, asked for %lld: lower the context (and the number of new tokens)", (long long)a->max_positions,
                    (long long)(o->T > o->cache_S ? o->T : o->cache_S));
    return OK;
}
