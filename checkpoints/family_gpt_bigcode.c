/* GPTBigCode: SantaCoder, StarCoder (Li et al. 2023): GPT-2 with multi-query attention, nn.Linear [out, in], and any activation.
 * Rows of c_attn: with multi_query Q | K | V, K and V one head each; without, [H, 3, D]. Both are [G, R + 2, D].
 * The one class of transformers that has learned positions and fewer K/V heads than heads (one): the home of an MQA GPT-2. */
#include "family_gpt.h"

#include <stdio.h>
#include <string.h>

static const char *const TYPES[] = {"gpt_bigcode", NULL};
static const char *const KEYS[] = {GPT_KEYS_DIMS, "activation_function", "layer_norm_epsilon", "scale_attn_weights",
                                   "multi_query", "num_key_value_heads", /* precision and serving: */ "attention_softmax_in_fp32",
                                   "scale_attention_softmax_in_fp32", "inference_runner", "validate_runner_input", "pre_allocate_kv_cache",
                                   "pad_key_length", "max_batch_size", GPT_KEYS_HARMLESS, NULL};
static const struct family_dims DIMS = {GPT_DIMS, .V_absent = 50257, .C_absent = 768, .L_absent = 12, .H_absent = 12, .P_absent = 1024};

static enum code bigcode_read(struct arch *a, const json_t *config, const char *where)
{
    int scaled = 1, multi_query = 1;
    TRY(gpt_read(a, config, where, &DIMS, GPT_ALIASES, "layer_norm_epsilon", 50256, 50256));
    TRY(family_act_read(a, config, where, "activation_function", "gelu_pytorch_tanh", 0));
    TRY(json_want_bool(config, where, "scale_attn_weights", &scaled));
    TRY(json_want_bool(config, where, "multi_query", &multi_query));
    a->pos = POS_LEARNED;
    a->bias = BIAS_Q | BIAS_K | BIAS_V | BIAS_O | BIAS_MLP_IN | BIAS_MLP_OUT | BIAS_NORM;
    if (!scaled)
        a->attn_scale = 1;
    for (int64_t l = 0; multi_query && l < a->stack[STACK_DEC].L; l++)
        a->stack[STACK_DEC].block[l].G = 1;
    return OK;
}

static void bigcode_place(const struct arch *a, const struct tensor_spec *t, struct family_place *p)
{
    family_place_named(p, t, GPT_NAMES, "transformer.h.%lld.");
    gpt_place_qkv(p, a, t, GPT_BY_GROUP);
}

static enum code bigcode_holds(const struct arch *a)
{
    for (int64_t l = 0; l < a->stack[STACK_DEC].L; l++) {
        const struct arch_block *b = &a->stack[STACK_DEC].block[l];
        if (b->G != b->H && b->G != 1)
            return fail(ERR_UNSUPPORTED, "the class of model_type \"gpt_bigcode\" has one key/value head or as many as query heads, %lld; "
                        "layer %lld has %lld", (long long)b->H, (long long)l, (long long)b->G);
    }
    return OK;
}

/* num_key_value_heads, which newer files say too, follows from multi_query. */
static enum code bigcode_set_groups(const struct arch *a, char **text)
{
    const struct arch_block *b = &a->stack[STACK_DEC].block[0];
    char value[32];
    TRY(config_text_set(text, "multi_query", b->G == 1 ? "true" : "false", "n_head"));
    json_t *config;
    TRY(json_parse_object(*text, strlen(*text), "config.json", &config));
    int said = json_object_get(config, "num_key_value_heads") != NULL;
    json_decref(config);
    snprintf(value, sizeof value, "%lld", (long long)b->G);
    return said ? config_text_set(text, "num_key_value_heads", value, "") : OK;
}

static enum code bigcode_fresh(const struct arch *a, json_t *config)
{
    TRY(gpt_fresh_begin(a, config, "GPTBigCodeForCausalLM", "gpt_bigcode", &DIMS, "activation_function", "layer_norm_epsilon"));
    json_object_set_new(config, "scale_attn_weights", json_boolean(a->attn_scale < 1 || a->attn_scale > 1));
    json_object_set_new(config, "multi_query", json_boolean(a->stack[STACK_DEC].block[0].G == 1));
    return family_fresh_end(a, config);
}

const struct family family_gpt_bigcode = {
    .model_types = TYPES,
    .keys = KEYS,
    .prefix = "transformer.",
    .read = bigcode_read,
    .place = bigcode_place,
    .ignores = gpt_ignores,
    .fresh = bigcode_fresh,
    .holds = bigcode_holds,
    .set_groups = bigcode_set_groups,
};
