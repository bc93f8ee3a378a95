/* LLaMA (Touvron et al. 2023) and what is published under its name: llama 1-3, codellama, vicuna, deepseek-llm; and mistral
 * (Jiang et al. 2023), which is llama with a sliding window and without biases.
 *   x += o(attention(rope(q(n1 x)), rope(k(n1 x)), v(n1 x)));  x += down(silu(gate(n2 x)) * up(n2 x));  RMSNorm, untied or tied
 * File names: model.embed_tokens, model.layers.N.{self_attn.{q,k,v,o}_proj, mlp.{gate,up,down}_proj, input_layernorm,
 * post_attention_layernorm}, model.norm, lm_head; all [out, in], rotary pairs (i, i + D/2): the canonical form itself. */
#include <string.h>

#include "family_common.h"

static const char *const TYPES[] = {"llama", "mistral", NULL};
static const char *const KEYS[] = {FAMILY_KEYS_DIMS, FAMILY_KEYS_ROPE, "hidden_act", "rms_norm_eps", "attention_bias", "mlp_bias",
                                   "sliding_window", "layer_types", NULL};
static const struct family_dims LLAMA = {FAMILY_DIMS_USUAL, .V_absent = 32000, .C_absent = 4096, .F_absent = 11008, .L_absent = 32, .H_absent = 32,
                                         .P_absent = 2048};
static const struct family_dims MISTRAL = {FAMILY_DIMS_USUAL, .V_absent = 32000, .C_absent = 4096, .F_absent = 14336, .L_absent = 32, .H_absent = 32,
                                           .P_absent = 131072, .G_absent = 8};

static enum code llama_read(struct arch *a, const json_t *config, const char *where)
{
    const char *type;
    int64_t window = 0;
    TRY(json_need_str(config, where, "model_type", &type));
    int mistral = !strcmp(type, "mistral");
    TRY(family_dims_read(a, config, where, mistral ? &MISTRAL : &LLAMA));

    a->norm = NORM_RMS;
    a->norm_eps = 1e-6;
    TRY(json_want_f64(config, where, "rms_norm_eps", &a->norm_eps));
    TRY(family_act_read(a, config, where, "hidden_act", "silu", 1));
    int attention_bias = 0, mlp_bias = 0;
    TRY(json_want_bool(config, where, "attention_bias", &attention_bias));
    TRY(json_want_bool(config, where, "mlp_bias", &mlp_bias));
    if (mistral && (attention_bias || mlp_bias))
        return fail(ERR_UNSUPPORTED, "%s: mistral has no biases, but \"%s\" is true", where, attention_bias ? "attention_bias" : "mlp_bias");
    a->bias = (attention_bias ? (unsigned)FAMILY_BIAS_ATTENTION : 0) | (mlp_bias ? (unsigned)FAMILY_BIAS_MLP : 0);

    if (mistral && !json_object_get(config, "sliding_window"))
        window = 4096;
    TRY(json_want_i64(config, where, "sliding_window", 1, INT32_MAX, &window));
    if (window && !mistral)
        return fail(ERR_UNSUPPORTED, "%s: model_type \"llama\" has no \"sliding_window\"; set it to null, or use model_type \"mistral\"", where);
    TRY(family_windows_read(a, config, where, window, 0));

    a->pos = POS_ROPE;
    a->bos = 1;
    a->eos = 2;
    return config_rope_read(a, config, where);
}

static enum code llama_fresh(const struct arch *a, json_t *config)
{
    int mistral = 0;
    for (int64_t l = 0; l < a->stack[STACK_DEC].L; l++)
        mistral |= a->stack[STACK_DEC].block[l].window > 0;
    family_fresh_begin(a, config, mistral ? "MistralForCausalLM" : "LlamaForCausalLM", mistral ? "mistral" : "llama", mistral ? &MISTRAL : &LLAMA);
    json_object_set_new(config, "hidden_act", json_string(family_act_name(a->mlp)));
    json_object_set_new(config, "rms_norm_eps", json_real(a->norm_eps));
    if (mistral) {
        family_windows_fresh(a, config);
    } else {
        json_object_set_new(config, "attention_bias", json_boolean(a->bias & BIAS_Q));
        json_object_set_new(config, "mlp_bias", json_boolean(a->bias & BIAS_MLP_IN));
    }
    family_rope_fresh(a, config, 1);
    return family_fresh_end(a, config);
}

const struct family family_llama = {
    .model_types = TYPES,
    .keys = KEYS,
    .groups_key = "num_key_value_heads",
    .heads_key = "num_attention_heads",
    .read = llama_read,
    .place = family_place_llama,
    .ignores = family_ignores_usual,
    .fresh = llama_fresh,
};
