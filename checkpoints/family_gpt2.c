/* GPT-2 (Radford et al. 2019).
 *   x = wte[id] + wpe[p];  x += c_proj(attention(q, k, v of c_attn(ln_1 x)));  x += mlp.c_proj(gelu(c_fc(ln_2 x)));  LayerNorm, tied
 * Layer matrices are Conv1D, [in, out]; c_attn's columns are Q | K | V. Published files name the tensors of the bare model, without
 * "transformer.", and hold the causal masks h.N.attn.bias. Softmax scale: D^-0.5, or 1 without scale_attn_weights; divided by the
 * layer's number from 1 on with scale_attn_by_inverse_layer_idx. reorder_and_upcast_attn is about precision alone. */
#include "family_gpt.h"

static const char *const TYPES[] = {"gpt2", NULL};
static const char *const KEYS[] = {GPT_KEYS_DIMS, "activation_function", "layer_norm_epsilon", "scale_attn_weights",
                                   "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", GPT_KEYS_HARMLESS, NULL};
static const struct family_dims DIMS = {GPT_DIMS, .V_absent = 50257, .C_absent = 768, .L_absent = 12, .H_absent = 12, .P_absent = 1024};

static enum code gpt2_read(struct arch *a, const json_t *config, const char *where)
{
    int scaled = 1, by_layer = 0;
    TRY(gpt_read(a, config, where, &DIMS, GPT_ALIASES, "layer_norm_epsilon", 50256, 50256));
    TRY(family_act_read(a, config, where, "activation_function", "gelu_new", 0));
    TRY(json_want_bool(config, where, "scale_attn_weights", &scaled));
    TRY(json_want_bool(config, where, "scale_attn_by_inverse_layer_idx", &by_layer));
    a->pos = POS_LEARNED;
    a->bias = BIAS_Q | BIAS_K | BIAS_V | BIAS_O | BIAS_MLP_IN | BIAS_MLP_OUT | BIAS_NORM;
    if (!scaled)
        a->attn_scale = 1;
    for (int64_t l = 0; by_layer && l < a->stack[STACK_DEC].L; l++)
        a->stack[STACK_DEC].block[l].scale = a->attn_scale / (double)(l + 1);
    return OK;
}

static void gpt2_place(const struct arch *a, const struct tensor_spec *t, struct family_place *p)
{
    family_place_named(p, t, GPT_NAMES, "transformer.h.%lld.");
    gpt_place_qkv(p, a, t, GPT_BY_PART);
    if (t->layer >= 0 && t->nd == 2)
        gpt_place_transposed(p);
}

static enum code gpt2_fresh(const struct arch *a, json_t *config)
{
    TRY(gpt_fresh_begin(a, config, "GPT2LMHeadModel", "gpt2", &DIMS, "activation_function", "layer_norm_epsilon"));
    json_object_set_new(config, "scale_attn_weights", json_boolean(a->attn_scale < 1 || a->attn_scale > 1));
    json_object_set_new(config, "scale_attn_by_inverse_layer_idx", json_boolean(a->stack[STACK_DEC].block[0].scale > 0));
    return family_fresh_end(a, config);
}

const struct family family_gpt2 = {
    .model_types = TYPES,
    .keys = KEYS,
    .prefix = "transformer.",
    .read = gpt2_read,
    .place = gpt2_place,
    .ignores = gpt_ignores,
    .fresh = gpt2_fresh,
    .holds = gpt_holds_mha,
};
