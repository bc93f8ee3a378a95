/* GPT-NeoX (Black et al. 2022), Pythia (Biderman et al. 2023).
 *   x + dense(attention(n1 x)) + mlp(n2 x), two norms in parallel; without use_parallel_residual one after the other
 * query_key_value's rows are [H, 3, D]; rotary on the first int(D * rotary_pct) dimensions of a head; GELU with erf; untied.
 * rotary_pct and rotary_emb_base are this family's own names; transformers 5 writes rope_parameters, and ignores rope_theta outside. */
#include "family_gpt.h"

#include <math.h>
#include <string.h>

static const char *const TYPES[] = {"gpt_neox", NULL};
static const char *const KEYS[] = {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings",
                                   "hidden_act", "layer_norm_eps", "use_parallel_residual", "attention_bias", "rotary_pct", "rotary_emb_base",
                                   "partial_rotary_factor", FAMILY_KEYS_ROPE, GPT_KEYS_HARMLESS, NULL};
static const struct family_dims DIMS = {.C = "hidden_size", .L = "num_hidden_layers", .H = "num_attention_heads", .P = "max_position_embeddings",
                                        .F = "intermediate_size", .V_absent = 50432, .C_absent = 6144, .L_absent = 44, .H_absent = 64,
                                        .P_absent = 2048, .F_absent = 24576};

#define QKV "attention.query_key_value."
static const char *const NAMES[T_SLOTS] = {
    [T_EMBED] = "gpt_neox.embed_in.weight",
    [T_ATTN_NORM_W] = "input_layernorm.weight", [T_ATTN_NORM_B] = "input_layernorm.bias",
    [T_Q_W] = QKV "weight", [T_K_W] = QKV "weight", [T_V_W] = QKV "weight",
    [T_Q_B] = QKV "bias", [T_K_B] = QKV "bias", [T_V_B] = QKV "bias",
    [T_O_W] = "attention.dense.weight", [T_O_B] = "attention.dense.bias",
    [T_MLP_NORM_W] = "post_attention_layernorm.weight", [T_MLP_NORM_B] = "post_attention_layernorm.bias",
    [T_UP_W] = "mlp.dense_h_to_4h.weight", [T_UP_B] = "mlp.dense_h_to_4h.bias",
    [T_DOWN_W] = "mlp.dense_4h_to_h.weight", [T_DOWN_B] = "mlp.dense_4h_to_h.bias",
    [T_FINAL_NORM_W] = "gpt_neox.final_layer_norm.weight", [T_FINAL_NORM_B] = "gpt_neox.final_layer_norm.bias",
    [T_HEAD_W] = "embed_out.weight",
};

/* Two keys for one number: `own` is what transformers reads; `usual` may repeat it, and must then agree. */
static enum code two_names(const json_t *config, const char *where, const char *own, const char *usual, double *value)
{
    double other;
    TRY(json_want_f64(config, where, own, value));
    other = *value;
    TRY(json_want_f64(config, where, usual, &other));
    if (!(fabs(other - *value) <= 1e-12 * fabs(*value)))
        return fail(ERR_INPUT, "%s: \"%s\" is %g, but \"%s\", which counts here, is %g; remove one", where, usual, other, own, *value);
    return OK;
}

/* What stands in the rotary settings wins over both. */
static enum code rope_read(struct arch *a, const json_t *config, const char *where)
{
    double theta = 10000, partial = 0.25;
    TRY(two_names(config, where, "rotary_emb_base", "rope_theta", &theta));
    TRY(two_names(config, where, "rotary_pct", "partial_rotary_factor", &partial));
    json_t *usual = json_copy((json_t *)config);
    json_object_set_new(usual, "rope_theta", json_real(theta));
    json_object_set_new(usual, "partial_rotary_factor", json_real(partial));
    enum code c = usual ? family_rope_read(a, usual, where, partial) : fail(ERR_MEMORY, "%s: out of memory", where);
    json_decref(usual);
    return c;
}

static enum code neox_read(struct arch *a, const json_t *config, const char *where)
{
    int parallel = 1, bias = 1;
    TRY(gpt_read(a, config, where, &DIMS, NULL, "layer_norm_eps", 0, 2));
    TRY(family_act_read(a, config, where, "hidden_act", "gelu", 0));
    TRY(json_want_bool(config, where, "use_parallel_residual", &parallel));
    TRY(json_want_bool(config, where, "attention_bias", &bias));
    a->residual = parallel ? RESIDUAL_PARALLEL_TWO_NORMS : RESIDUAL_SEQUENTIAL;
    a->bias = BIAS_MLP_IN | BIAS_MLP_OUT | BIAS_NORM | (bias ? BIAS_Q | BIAS_K | BIAS_V | BIAS_O : 0u);
    a->tied = 0;
    return rope_read(a, config, where);
}

static void neox_place(const struct arch *a, const struct tensor_spec *t, struct family_place *p)
{
    family_place_named(p, t, NAMES, "gpt_neox.layers.%lld.");
    gpt_place_qkv(p, a, t, GPT_BY_GROUP);
}

static enum code neox_fresh(const struct arch *a, json_t *config)
{
    TRY(gpt_fresh_begin(a, config, "GPTNeoXForCausalLM", "gpt_neox", &DIMS, "hidden_act", "layer_norm_eps"));
    json_object_set_new(config, "use_parallel_residual", json_boolean(a->residual != RESIDUAL_SEQUENTIAL));
    json_object_set_new(config, "attention_bias", json_boolean(a->bias & BIAS_Q));
    family_rope_fresh(a, config, 0.25);
    json_object_set_new(config, "rotary_emb_base", json_real(a->rope.theta));
    json_t *partial = json_object_get(config, "partial_rotary_factor");
    if (partial)
        json_object_set(config, "rotary_pct", partial);
    return family_fresh_end(a, config);
}

const struct family family_gpt_neox = {
    .model_types = TYPES,
    .keys = KEYS,
    .prefix = "gpt_neox.",
    .read = neox_read,
    .place = neox_place,
    .ignores = gpt_ignores,
    .fresh = neox_fresh,
    .holds = gpt_holds_mha,
};
