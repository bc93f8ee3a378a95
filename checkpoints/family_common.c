/* What repeats between families; see family_common.h. */
#include "family_common.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- config.json -> arch ------------------------------------------------------------------------------------------ */

static enum code dim_read(const json_t *config, const char *where, const char *key, int64_t absent, int64_t *out)
{
    *out = absent;
    if (!key)
        return OK;
    return absent ? json_want_i64(config, where, key, 1, INT32_MAX, out) : json_need_i64(config, where, key, 1, INT32_MAX, out);
}

enum code family_dims_read(struct arch *a, const json_t *config, const char *where, const struct family_dims *d)
{
    const char *type;
    int64_t L, H, F, D = 0, G = 0;
    TRY(json_need_str(config, where, "model_type", &type));
    TRY(dim_read(config, where, d->L, d->L_absent, &L));
    enum code c = arch_init(a, L);
    if (c != OK)
        return fail_in(c, "%s", where);
    snprintf(a->family, sizeof a->family, "%s", type);
    a->V = d->V_absent;
    TRY(dim_read(config, where, d->C, d->C_absent, &a->C));
    TRY(dim_read(config, where, d->H, d->H_absent, &H));
    TRY(dim_read(config, where, d->F, d->F_times ? d->F_times * a->C : d->F_absent, &F));
    TRY(dim_read(config, where, d->P, d->P_absent, &a->max_positions));
    if (d->G && !json_object_get(config, d->G))
        G = d->G_absent;
    if (d->G)
        TRY(json_want_i64(config, where, d->G, 1, INT32_MAX, &G));
    if (d->D && !json_object_get(config, d->D))
        D = d->D_absent;
    if (d->D)
        TRY(json_want_i64(config, where, d->D, 1, INT32_MAX, &D));
    if (!D && a->C % H)
        return fail(ERR_INPUT, "%s: \"%s\" %lld is not a multiple of \"%s\" %lld, and there is no \"head_dim\"", where, d->C,
                    (long long)a->C, d->H, (long long)H);
    D = D ? D : a->C / H;

    for (int64_t l = 0; l < L; l++) {
        struct arch_block *b = &a->stack[STACK_DEC].block[l];
        b->H = H;
        b->G = G ? G : H;
        b->D = b->Dv = D;
        b->F = F;
    }
    a->attn_scale = 1 / sqrt((double)D);
    a->rope.dims = D;
    return OK;
}

/* As transformers names them (activations.py); the first name of a kind is the one written. */
static const struct { const char *name; int gated, ungated; /* enum mlp_kind, -1: not supported */ } ACTS[] = {
    {"silu", MLP_SWIGLU, -1},
    {"swish", MLP_SWIGLU, -1},
    {"gelu_pytorch_tanh", MLP_GEGLU_TANH, MLP_GELU_TANH},
    {"gelu_new", MLP_GEGLU_TANH, MLP_GELU_TANH},
    {"gelu_fast", MLP_GEGLU_TANH, MLP_GELU_TANH},
    {"gelu", MLP_GEGLU_ERF, MLP_GELU_ERF},
    {"gelu_python", MLP_GEGLU_ERF, MLP_GELU_ERF},
    {"relu", -1, MLP_RELU},
};
enum { N_ACTS = sizeof ACTS / sizeof *ACTS };

enum code family_act_read(struct arch *a, const json_t *config, const char *where, const char *key, const char *fallback, int gated)
{
    const char *act = fallback;
    TRY(json_want_str(config, where, key, &act));
    for (int i = 0; i < N_ACTS; i++) {
        int kind = gated ? ACTS[i].gated : ACTS[i].ungated;
        if (kind >= 0 && !strcmp(ACTS[i].name, act)) {
            a->mlp = (enum mlp_kind)kind;
            return OK;
        }
    }
    return fail(ERR_UNSUPPORTED, "%s: \"%s\": \"%.40s\" is not supported; known are %s, gelu_pytorch_tanh (gelu_new), gelu", where, key, act,
                gated ? "silu" : "relu");
}

const char *family_act_name(enum mlp_kind kind)
{
    for (int i = 0; i < N_ACTS; i++)
        if (ACTS[i].gated == (int)kind || ACTS[i].ungated == (int)kind)
            return ACTS[i].name;
    CHECK(0);
    return NULL;
}

enum code family_windows_read(struct arch *a, const json_t *config, const char *where, int64_t window, int64_t first)
{
    struct arch_stack *s = &a->stack[STACK_DEC];
    const json_t *types = json_object_get(config, "layer_types");
    int given = types && !json_is_null(types);
    if (given && (!json_is_array(types) || (int64_t)json_array_size(types) != s->L))
        return fail(ERR_INPUT, "%s: \"layer_types\" must be a list of %lld strings", where, (long long)s->L);
    for (int64_t l = 0; l < s->L; l++) {
        const char *type = given ? json_string_value(json_array_get(types, (size_t)l))
                                 : window && l >= first ? "sliding_attention" : "full_attention";
        if (type && !strcmp(type, "sliding_attention") && window)
            s->block[l].window = window;
        else if (!type || strcmp(type, "full_attention") != 0)
            return fail(ERR_UNSUPPORTED, "%s: \"layer_types\": layer %lld is \"%.40s\", which is not supported here", where, (long long)l,
                        type ? type : "(no string)");
    }
    return OK;
}

enum code family_windows_switched_read(struct arch *a, const json_t *config, const char *where)
{
    int on = 0;
    int64_t window = 0, first = 28;
    TRY(json_want_bool(config, where, "use_sliding_window", &on));
    if (!json_object_get(config, "sliding_window"))
        window = 4096;
    TRY(json_want_i64(config, where, "sliding_window", 1, INT32_MAX, &window));
    TRY(json_want_i64(config, where, "max_window_layers", 0, INT32_MAX, &first));
    return family_windows_read(a, config, where, on ? window : 0, first);
}

enum code family_clip_read(struct arch *a, const json_t *config, const char *where)
{
    TRY(json_want_f64(config, where, "clip_qkv", &a->clip_qkv));
    if (json_is_number(json_object_get(config, "clip_qkv")) && !(a->clip_qkv > 0))
        return fail(ERR_INPUT, "%s: \"clip_qkv\" must be a positive number or null, found %g", where, a->clip_qkv);
    return OK;
}

enum code family_word_only(const json_t *config, const char *where, const char *key, const char *only)
{
    const char *word = only;
    TRY(json_want_str(config, where, key, &word));
    if (!strcmp(word, only))
        return OK;
    return fail(ERR_UNSUPPORTED, "%s: \"%s\": \"%.40s\" is not supported; known is \"%s\"", where, key, word, only);
}

enum code family_rope_read(struct arch *a, const json_t *config, const char *where, double fallback)
{
    double partial = fallback;
    TRY(json_want_f64(config, where, "partial_rotary_factor", &partial));
    TRY(config_rope_partial(config, where, &partial));
    if (!(partial > 0 && partial <= 1))
        return fail(ERR_INPUT, "%s: \"partial_rotary_factor\" must be above 0 and at most 1, found %g", where, partial);
    a->pos = POS_ROPE;
    a->rope.dims = (int64_t)((double)a->stack[STACK_DEC].block[0].D * partial);
    return config_rope_read(a, config, where);
}

/* ---- tensors ------------------------------------------------------------------------------------------------------ */

const char *const FAMILY_NAMES_LLAMA[T_SLOTS] = {
    [T_EMBED] = "model.embed_tokens.weight",
    [T_ATTN_NORM_W] = "input_layernorm.weight",
    [T_ATTN_NORM_B] = "input_layernorm.bias",
    [T_Q_W] = "self_attn.q_proj.weight",
    [T_K_W] = "self_attn.k_proj.weight",
    [T_V_W] = "self_attn.v_proj.weight",
    [T_Q_B] = "self_attn.q_proj.bias",
    [T_K_B] = "self_attn.k_proj.bias",
    [T_V_B] = "self_attn.v_proj.bias",
    [T_Q_NORM_W] = "self_attn.q_norm.weight",
    [T_K_NORM_W] = "self_attn.k_norm.weight",
    [T_O_W] = "self_attn.o_proj.weight",
    [T_O_B] = "self_attn.o_proj.bias",
    [T_MLP_NORM_W] = "post_attention_layernorm.weight",
    [T_MLP_NORM_B] = "post_attention_layernorm.bias",
    [T_GATE_W] = "mlp.gate_proj.weight",
    [T_UP_W] = "mlp.up_proj.weight",
    [T_GATE_B] = "mlp.gate_proj.bias",
    [T_UP_B] = "mlp.up_proj.bias",
    [T_DOWN_W] = "mlp.down_proj.weight",
    [T_DOWN_B] = "mlp.down_proj.bias",
    [T_FINAL_NORM_W] = "model.norm.weight",
    [T_FINAL_NORM_B] = "model.norm.bias",
    [T_HEAD_W] = "lm_head.weight",
};

void family_place_named(struct family_place *p, const struct tensor_spec *t, const char *const names[T_SLOTS], const char *layers)
{
    CHECK(names[t->slot]);
    const char *mark = t->layer >= 0 ? strstr(layers, "%lld") : NULL;
    char name[128];
    if (mark)
        snprintf(name, sizeof name, "%.*s%lld%s%s", (int)(mark - layers), layers, (long long)t->layer, mark + 4, names[t->slot]);
    else
        snprintf(name, sizeof name, "%s", names[t->slot]);
    family_place_plain(p, t, name);
}

void family_place_llama(const struct arch *a, const struct tensor_spec *t, struct family_place *p)
{
    (void)a;
    family_place_named(p, t, FAMILY_NAMES_LLAMA, FAMILY_LAYERS_LLAMA);
}

int family_name_ends(const char *name, const char *suffix)
{
    size_t n = strlen(name), k = strlen(suffix);
    return n >= k && !strcmp(name + n - k, suffix);
}

int family_ignores_usual(const struct arch *a, const char *name)
{
    /* a tied head: the embedding is used instead, as transformers does */
    return family_name_ends(name, "rotary_emb.inv_freq") || (a->tied && !strcmp(name, "lm_head.weight"));
}

/* ---- arch -> config.json ------------------------------------------------------------------------------------------ */

void family_fresh_begin(const struct arch *a, json_t *config, const char *class_name, const char *model_type, const struct family_dims *d)
{
    const struct arch_block *b = &a->stack[STACK_DEC].block[0];
    const struct { const char *key; int64_t value; } dims[] = {{d->C, a->C}, {d->F, b->F}, {d->L, a->stack[STACK_DEC].L}, {d->H, b->H},
                                                               {d->G, b->G}, {d->D, b->D}, {d->P, a->max_positions}};
    json_object_set_new(config, "architectures", json_pack("[s]", class_name));
    json_object_set_new(config, "model_type", json_string(model_type));
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++)
        if (dims[i].key)
            json_object_set_new(config, dims[i].key, json_integer(dims[i].value));
    json_object_set_new(config, "tie_word_embeddings", json_boolean(a->tied));
    json_object_set_new(config, "initializer_range", json_real(0.02));
}

void family_rope_fresh(const struct arch *a, json_t *config, double fallback)
{
    int64_t D = a->stack[STACK_DEC].block[0].D, dims = a->rope.dims;
    if (D > 0 && (int64_t)((double)D * fallback) != dims) {
        double partial = (double)dims / (double)D;
        while ((int64_t)((double)D * partial) < dims)
            partial = nextafter(partial, 1);
        json_object_set_new(config, "partial_rotary_factor", json_real(partial));
    }
    config_rope_fresh(&a->rope, config);
}

int family_windows_fresh(const struct arch *a, json_t *config)
{
    const struct arch_stack *s = &a->stack[STACK_DEC];
    int64_t window = 0;
    int mixed = 0;
    json_t *types = json_array();
    for (int64_t l = 0; l < s->L; l++) {
        window = window ? window : s->block[l].window;
        mixed |= s->block[l].window != s->block[0].window;
        json_array_append_new(types, json_string(s->block[l].window ? "sliding_attention" : "full_attention"));
    }
    json_object_set_new(config, "sliding_window", window ? json_integer(window) : json_null());
    if (mixed)
        json_object_set(config, "layer_types", types);
    json_decref(types);
    return window > 0;
}

void family_windows_switched_fresh(const struct arch *a, json_t *config)
{
    const struct arch_stack *s = &a->stack[STACK_DEC];
    int64_t first = 0;
    while (first < s->L && !s->block[first].window)
        first++;
    json_object_set_new(config, "use_sliding_window", json_boolean(family_windows_fresh(a, config)));
    json_object_set_new(config, "max_window_layers", json_integer(first));
}
