/* LLaMA (Touvron et al. 2023) and what is published under its name: llama 1-3, codellama, vicuna, deepseek-llm; and mistral
 * (Jiang et al. 2023), which is llama with a sliding window and without biases.
 *   x += o(attention(rope(q(n1 x)), rope(k(n1 x)), v(n1 x)));  x += down(silu(gate(n2 x)) * up(n2 x));  RMSNorm, untied or tied
 * File names: model.embed_tokens, model.layers.N.{self_attn.{q,k,v,o}_proj, mlp.{gate,up,down}_proj, input_layernorm,
 * post_attention_layernorm}, model.norm, lm_head; all [out, in], rotary pairs (i, i + D/2): the canonical form itself. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "family.h"

static const char *const TYPES[] = {"llama", "mistral", NULL};
static const char *const KEYS[] = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                                   "head_dim", "hidden_act", "rms_norm_eps", "max_position_embeddings", "attention_bias", "mlp_bias",
                                   "rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings",
                                   "sliding_window", "layer_types", NULL};

static const char *const NAMES[T_SLOTS] = {
    [T_EMBED] = "model.embed_tokens.weight",
    [T_ATTN_NORM_W] = "input_layernorm.weight",
    [T_Q_W] = "self_attn.q_proj.weight",
    [T_K_W] = "self_attn.k_proj.weight",
    [T_V_W] = "self_attn.v_proj.weight",
    [T_Q_B] = "self_attn.q_proj.bias",
    [T_K_B] = "self_attn.k_proj.bias",
    [T_V_B] = "self_attn.v_proj.bias",
    [T_O_W] = "self_attn.o_proj.weight",
    [T_O_B] = "self_attn.o_proj.bias",
    [T_MLP_NORM_W] = "post_attention_layernorm.weight",
    [T_GATE_W] = "mlp.gate_proj.weight",
    [T_UP_W] = "mlp.up_proj.weight",
    [T_GATE_B] = "mlp.gate_proj.bias",
    [T_UP_B] = "mlp.up_proj.bias",
    [T_DOWN_W] = "mlp.down_proj.weight",
    [T_DOWN_B] = "mlp.down_proj.bias",
    [T_FINAL_NORM_W] = "model.norm.weight",
    [T_HEAD_W] = "lm_head.weight",
};

enum { BIAS_ATTENTION = BIAS_Q | BIAS_K | BIAS_V | BIAS_O, BIAS_MLP = BIAS_MLP_IN | BIAS_MLP_OUT };

/* ---- config.json -> arch ------------------------------------------------------------------------------------------ */

static const struct { const char *name; enum mlp_kind kind; } ACTS[] = {
    {"silu", MLP_SWIGLU}, {"swish", MLP_SWIGLU}, {"gelu_pytorch_tanh", MLP_GEGLU_TANH}, {"gelu_new", MLP_GEGLU_TANH}, {"gelu", MLP_GEGLU_ERF}};

static enum code act_read(struct arch *a, const json_t *config, const char *where)
{
    const char *act = "silu";
    TRY(json_want_str(config, where, "hidden_act", &act));
    for (size_t i = 0; i < sizeof ACTS / sizeof *ACTS; i++)
        if (!strcmp(ACTS[i].name, act)) {
            a->mlp = ACTS[i].kind;
            return OK;
        }
    return fail(ERR_UNSUPPORTED, "%s: \"hidden_act\": \"%.40s\" is not supported; known are silu, gelu_pytorch_tanh, gelu", where, act);
}

/* layer_types (transformers 5) says per layer whether the window holds; without it, it holds in all of them. */
static enum code windows_read(struct arch *a, const json_t *config, const char *where, int64_t window)
{
    struct arch_stack *s = &a->stack[STACK_DEC];
    const json_t *types = json_object_get(config, "layer_types");
    int given = types && !json_is_null(types);
    if (given && (!json_is_array(types) || (int64_t)json_array_size(types) != s->L))
        return fail(ERR_INPUT, "%s: \"layer_types\" must be a list of %lld strings", where, (long long)s->L);
    for (int64_t l = 0; l < s->L; l++) {
        const char *type = given ? json_string_value(json_array_get(types, (size_t)l)) : window ? "sliding_attention" : "full_attention";
        if (type && !strcmp(type, "sliding_attention") && window)
            s->block[l].window = window;
        else if (!type || strcmp(type, "full_attention") != 0)
            return fail(ERR_UNSUPPORTED, "%s: \"layer_types\": layer %lld is \"%.40s\", which is not supported here", where, (long long)l,
                        type ? type : "(no string)");
    }
    return OK;
}

static enum code llama_read(struct arch *a, const json_t *config, const char *where)
{
    const char *type;
    int64_t L, H, F, D = 0, G = 0, window = 0;
    TRY(json_need_str(config, where, "model_type", &type));
    int mistral = !strcmp(type, "mistral");
    TRY(json_need_i64(config, where, "num_hidden_layers", 1, INT32_MAX, &L));
    enum code c = arch_init(a, L);
    if (c != OK)
        return fail_in(c, "%s", where);
    snprintf(a->family, sizeof a->family, "%s", type);
    TRY(json_need_i64(config, where, "hidden_size", 1, INT32_MAX, &a->C));
    TRY(json_need_i64(config, where, "intermediate_size", 1, INT32_MAX, &F));
    TRY(json_need_i64(config, where, "num_attention_heads", 1, INT32_MAX, &H));
    if (mistral && !json_object_get(config, "num_key_value_heads"))
        G = 8;
    TRY(json_want_i64(config, where, "num_key_value_heads", 1, INT32_MAX, &G));
    TRY(json_want_i64(config, where, "head_dim", 1, INT32_MAX, &D));
    if (!D && a->C % H)
        return fail(ERR_INPUT, "%s: \"hidden_size\" %lld is not a multiple of \"num_attention_heads\" %lld, and there is no \"head_dim\"",
                    where, (long long)a->C, (long long)H);
    D = D ? D : a->C / H;
    a->max_positions = mistral ? 131072 : 2048;
    TRY(json_want_i64(config, where, "max_position_embeddings", 1, INT32_MAX, &a->max_positions));

    a->norm = NORM_RMS;
    a->norm_eps = 1e-6;
    TRY(json_want_f64(config, where, "rms_norm_eps", &a->norm_eps));
    TRY(act_read(a, config, where));
    int attention_bias = 0, mlp_bias = 0;
    TRY(json_want_bool(config, where, "attention_bias", &attention_bias));
    TRY(json_want_bool(config, where, "mlp_bias", &mlp_bias));
    if (mistral && (attention_bias || mlp_bias))
        return fail(ERR_UNSUPPORTED, "%s: mistral has no biases, but \"%s\" is true", where, attention_bias ? "attention_bias" : "mlp_bias");
    a->bias = (attention_bias ? (unsigned)BIAS_ATTENTION : 0) | (mlp_bias ? (unsigned)BIAS_MLP : 0);

    for (int64_t l = 0; l < L; l++) {
        struct arch_block *b = &a->stack[STACK_DEC].block[l];
        b->H = H;
        b->G = G ? G : H;
        b->D = b->Dv = D;
        b->F = F;
    }
    if (mistral && !json_object_get(config, "sliding_window"))
        window = 4096;
    TRY(json_want_i64(config, where, "sliding_window", 1, INT32_MAX, &window));
    if (window && !mistral)
        return fail(ERR_UNSUPPORTED, "%s: model_type \"llama\" has no \"sliding_window\"; set it to null, or use model_type \"mistral\"", where);
    TRY(windows_read(a, config, where, window));

    a->attn_scale = 1 / sqrt((double)D);
    a->pos = POS_ROPE;
    a->rope.dims = D;
    a->bos = 1;
    a->eos = 2;
    return config_rope_read(a, config, where);
}

/* ---- tensors ------------------------------------------------------------------------------------------------------ */

static void llama_place(const struct arch *a, const struct tensor_spec *t, struct family_place *p)
{
    (void)a;
    CHECK(NAMES[t->slot]);
    char name[128];
    if (t->layer >= 0)
        snprintf(name, sizeof name, "model.layers.%lld.%s", (long long)t->layer, NAMES[t->slot]);
    else
        snprintf(name, sizeof name, "%s", NAMES[t->slot]);
    family_place_plain(p, t, name);
}

static int llama_ignores(const struct arch *a, const char *name)
{
    static const char suffix[] = "rotary_emb.inv_freq";
    size_t n = strlen(name), k = sizeof suffix - 1;
    if (n >= k && !strcmp(name + n - k, suffix))
        return 1;
    return a->tied && !strcmp(name, "lm_head.weight"); /* the embedding is used instead, as transformers does */
}

/* ---- arch -> config.json ------------------------------------------------------------------------------------------ */

static enum code expressible(const struct arch *a)
{
    const struct arch_stack *s = &a->stack[STACK_DEC];
    unsigned attention = a->bias & (unsigned)BIAS_ATTENTION, mlp = a->bias & (unsigned)BIAS_MLP;
    const char *what = NULL;
    if (a->norm != NORM_RMS || a->norm_place != NORM_PRE || a->residual != RESIDUAL_SEQUENTIAL)
        what = "its norms or residuals";
    else if (a->pos != POS_ROPE || a->rope.dims != s->block[0].D || a->stack[STACK_ENC].present)
        what = "its positions";
    else if (!mlp_is_gated(a->mlp))
        what = "its MLP";
    else if ((attention && attention != BIAS_ATTENTION) || (mlp && mlp != BIAS_MLP) || (a->bias & ~(unsigned)(BIAS_ATTENTION | BIAS_MLP)))
        what = "its biases";
    for (int64_t l = 1; l < s->L && !what; l++) {
        const struct arch_block *x = &s->block[0], *y = &s->block[l];
        if (x->H != y->H || x->D != y->D || x->F != y->F || x->window != y->window || y->D != y->Dv)
            what = "layers that differ";
    }
    return what ? fail(ERR_UNSUPPORTED, "config.json of the llama family cannot express %s; write a .h5", what) : OK;
}

static enum code llama_fresh(const struct arch *a, json_t *config)
{
    const struct arch_block *b = &a->stack[STACK_DEC].block[0];
    const char *act = "silu";
    int mistral = b->window > 0;
    TRY(expressible(a));
    for (size_t i = 0; i < sizeof ACTS / sizeof *ACTS; i++)
        if (ACTS[i].kind == a->mlp) {
            act = ACTS[i].name;
            break;
        }
    json_object_set_new(config, "architectures", json_pack("[s]", mistral ? "MistralForCausalLM" : "LlamaForCausalLM"));
    json_object_set_new(config, "model_type", json_string(mistral ? "mistral" : "llama"));
    json_object_set_new(config, "hidden_size", json_integer(a->C));
    json_object_set_new(config, "intermediate_size", json_integer(b->F));
    json_object_set_new(config, "num_hidden_layers", json_integer(a->stack[STACK_DEC].L));
    json_object_set_new(config, "num_attention_heads", json_integer(b->H));
    json_object_set_new(config, "num_key_value_heads", json_integer(b->G));
    json_object_set_new(config, "head_dim", json_integer(b->D));
    json_object_set_new(config, "hidden_act", json_string(act));
    json_object_set_new(config, "max_position_embeddings", json_integer(a->max_positions));
    json_object_set_new(config, "rms_norm_eps", json_real(a->norm_eps));
    config_rope_fresh(&a->rope, config);
    if (mistral) {
        json_object_set_new(config, "sliding_window", json_integer(b->window));
    } else {
        json_object_set_new(config, "attention_bias", json_boolean(a->bias & BIAS_Q));
        json_object_set_new(config, "mlp_bias", json_boolean(a->bias & BIAS_MLP_IN));
    }
    json_object_set_new(config, "tie_word_embeddings", json_boolean(a->tied));
    json_object_set_new(config, "initializer_range", json_real(0.02));
    return OK;
}

const struct family family_llama = {
    .model_types = TYPES,
    .keys = KEYS,
    .groups_key = "num_key_value_heads",
    .heads_key = "num_attention_heads",
    .read = llama_read,
    .place = llama_place,
    .ignores = llama_ignores,
    .fresh = llama_fresh,
};
