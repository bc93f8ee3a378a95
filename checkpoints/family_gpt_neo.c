/* GPT-Neo (Black et al. 2021), also TinyStories: GPT-2's block with nn.Linear [out, in], q, k, v apart and without biases, softmax
 * scale 1, and layers in turn global and local: a local query sees itself and window_size - 1 keys before it.
 * attention_types is run-length: [[["global", "local"], 12]]; attention_layers, where present, is the same written out. */
#include "family_gpt.h"

#include <string.h>

static const char *const TYPES[] = {"gpt_neo", NULL};
static const char *const KEYS[] = {"hidden_size", "num_layers", "num_hidden_layers", "num_heads", "num_attention_heads", "max_position_embeddings",
                                   "intermediate_size", "attention_types", "attention_layers", "window_size", "activation_function",
                                   "layer_norm_epsilon", GPT_KEYS_HARMLESS, NULL};
static const struct family_dims DIMS = {.C = "hidden_size", .L = "num_layers", .H = "num_heads", .P = "max_position_embeddings", .F = "intermediate_size",
                                        .V_absent = 50257, .C_absent = 2048, .L_absent = 24, .H_absent = 16, .P_absent = 2048, .F_times = 4};
static const struct gpt_alias ALIASES[] = {{"num_layers", "num_hidden_layers"}, {"num_heads", "num_attention_heads"}, {NULL, NULL}};

static const char *const NAMES[T_SLOTS] = {
    [T_EMBED] = "transformer.wte.weight", [T_POS] = "transformer.wpe.weight",
    [T_ATTN_NORM_W] = "ln_1.weight", [T_ATTN_NORM_B] = "ln_1.bias",
    [T_Q_W] = "attn.attention.q_proj.weight", [T_K_W] = "attn.attention.k_proj.weight", [T_V_W] = "attn.attention.v_proj.weight",
    [T_O_W] = "attn.attention.out_proj.weight", [T_O_B] = "attn.attention.out_proj.bias",
    [T_MLP_NORM_W] = "ln_2.weight", [T_MLP_NORM_B] = "ln_2.bias",
    [T_UP_W] = "mlp.c_fc.weight", [T_UP_B] = "mlp.c_fc.bias",
    [T_DOWN_W] = "mlp.c_proj.weight", [T_DOWN_B] = "mlp.c_proj.bias",
    [T_FINAL_NORM_W] = "transformer.ln_f.weight", [T_FINAL_NORM_B] = "transformer.ln_f.bias",
    [T_HEAD_W] = "lm_head.weight",
};

static enum code layer_set(struct arch *a, const char *where, int64_t l, const json_t *type, int64_t window)
{
    const char *word = json_string_value(type);
    if (l >= a->stack[STACK_DEC].L)
        return fail(ERR_INPUT, "%s: \"attention_types\" describes more than the %lld layers of \"num_layers\"", where, (long long)a->stack[STACK_DEC].L);
    if (!word || (strcmp(word, "global") != 0 && strcmp(word, "local") != 0))
        return fail(ERR_UNSUPPORTED, "%s: \"attention_types\": layer %lld is \"%.40s\"; known are global, local", where, (long long)l,
                    word ? word : "(no string)");
    a->stack[STACK_DEC].block[l].window = *word == 'l' ? window : 0;
    return OK;
}

/* [[["global", "local"], 12], ...] */
static enum code types_read(struct arch *a, const json_t *types, const char *where, int64_t window, int64_t *layers)
{
    size_t i;
    json_t *item;
    *layers = 0;
    json_array_foreach ((json_t *)types, i, item) {
        const json_t *words = json_array_get(item, 0), *times = json_array_get(item, 1);
        if (!json_is_array(words) || !json_is_integer(times) || json_integer_value(times) < 0)
            return fail(ERR_INPUT, "%s: \"attention_types\": entry %zu must be a list of words and a number of times", where, i);
        for (json_int_t n = 0; n < json_integer_value(times) && json_array_size(words); n++)
            for (size_t w = 0; w < json_array_size(words); w++)
                TRY(layer_set(a, where, (*layers)++, json_array_get(words, w), window));
    }
    return OK;
}

static enum code windows_read(struct arch *a, const json_t *config, const char *where)
{
    struct arch_stack *s = &a->stack[STACK_DEC];
    const json_t *types = json_object_get(config, "attention_types"), *list = json_object_get(config, "attention_layers");
    int64_t window = 256, layers = s->L;
    TRY(json_want_i64(config, where, "window_size", 1, INT32_MAX, &window));
    int with_types = types && !json_is_null(types), with_list = list && !json_is_null(list);
    if ((with_types && !json_is_array(types)) || (with_list && !json_is_array(list)))
        return fail(ERR_INPUT, "%s: \"attention_types\" and \"attention_layers\" must be lists", where);
    if (with_types)
        TRY(types_read(a, types, where, window, &layers));
    else if (!with_list)
        for (int64_t l = 0; l < s->L; l++)
            s->block[l].window = l % 2 ? window : 0; /* [[["global", "local"], 12]]: for 24 layers */
    if (!with_types && !with_list && s->L != 24)
        return fail(ERR_INPUT, "%s: \"attention_types\" is missing; its default describes 24 layers, not %lld", where, (long long)s->L);
    if (layers != s->L || (with_list && (int64_t)json_array_size(list) != s->L))
        return fail(ERR_INPUT, "%s: \"attention_types\" and \"attention_layers\" must describe the %lld layers of \"num_layers\"", where, (long long)s->L);
    for (int64_t l = 0; with_list && l < s->L; l++) {
        int64_t was = s->block[l].window;
        TRY(layer_set(a, where, l, json_array_get(list, (size_t)l), window));
        if (with_types && s->block[l].window != was)
            return fail(ERR_INPUT, "%s: \"attention_types\" and \"attention_layers\" differ in layer %lld", where, (long long)l);
    }
    return OK;
}

static enum code neo_read(struct arch *a, const json_t *config, const char *where)
{
    TRY(gpt_read(a, config, where, &DIMS, ALIASES, "layer_norm_epsilon", 50256, 50256));
    TRY(family_act_read(a, config, where, "activation_function", "gelu_new", 0));
    a->pos = POS_LEARNED;
    a->bias = BIAS_O | BIAS_MLP_IN | BIAS_MLP_OUT | BIAS_NORM;
    a->attn_scale = 1;
    return windows_read(a, config, where);
}

static void neo_place(const struct arch *a, const struct tensor_spec *t, struct family_place *p)
{
    (void)a;
    family_place_named(p, t, NAMES, "transformer.h.%lld.");
}

static enum code neo_fresh(const struct arch *a, json_t *config)
{
    const struct arch_stack *s = &a->stack[STACK_DEC];
    int64_t window = 0;
    json_t *words = json_array();
    for (int64_t l = 0; l < s->L; l++) {
        window = window ? window : s->block[l].window;
        json_array_append_new(words, json_string(s->block[l].window ? "local" : "global"));
    }
    enum code c = gpt_fresh_begin(a, config, "GPTNeoForCausalLM", "gpt_neo", &DIMS, "activation_function", "layer_norm_epsilon");
    json_object_set_new(config, "window_size", json_integer(window ? window : 256));
    json_object_set_new(config, "attention_types", json_pack("[[O, i]]", words, 1));
    json_object_set_new(config, "attention_layers", words);
    return c == OK ? family_fresh_end(a, config) : c;
}

const struct family family_gpt_neo = {
    .model_types = TYPES,
    .keys = KEYS,
    .prefix = "transformer.",
    .read = neo_read,
    .place = neo_place,
    .ignores = gpt_ignores,
    .fresh = neo_fresh,
    .holds = gpt_holds_mha,
};
