/* What the families of the GPT-2 line share; see family_gpt.h. */
#include "family_gpt.h"

#include <stdio.h>
#include <string.h>

/* ---- config.json -> arch ------------------------------------------------------------------------------------------ */

const struct gpt_alias GPT_ALIASES[] = {{"n_embd", "hidden_size"}, {"n_layer", "num_hidden_layers"}, {"n_head", "num_attention_heads"},
                                        {"n_positions", "max_position_embeddings"}, {NULL, NULL}};

static int given(const json_t *v) { return v && !json_is_null(v); }

static enum code aliases_apply(json_t *config, const char *where, const struct gpt_alias *aliases)
{
    for (; aliases && aliases->key; aliases++) {
        json_t *one = json_object_get(config, aliases->key), *other = json_object_get(config, aliases->alias);
        if (!given(other))
            continue;
        if (given(one) && !json_equal(one, other))
            return fail(ERR_INPUT, "%s: \"%s\" and \"%s\" mean the same, but differ", where, aliases->key, aliases->alias);
        if (json_object_set(config, aliases->key, other))
            return fail(ERR_MEMORY, "%s: out of memory", where);
    }
    return OK;
}

enum code gpt_read(struct arch *a, const json_t *config, const char *where, const struct family_dims *dims, const struct gpt_alias *aliases,
                   const char *eps_key, int bos, int eos)
{
    json_t *plain = json_copy((json_t *)config);
    enum code c = plain ? aliases_apply(plain, where, aliases) : fail(ERR_MEMORY, "%s: out of memory", where);
    if (c == OK)
        c = family_dims_read(a, plain, where, dims);
    json_decref(plain);
    TRY(c);
    a->norm = NORM_LAYER;
    a->norm_eps = 1e-5;
    a->tied = 1;
    a->bos = bos;
    a->eos = eos;
    return eps_key ? json_want_f64(config, where, eps_key, &a->norm_eps) : OK;
}

enum code gpt_only_check(const json_t *config, const char *where, const struct gpt_only *list, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_object_get(config, list[i].key);
        json_t *only = json_loads(list[i].value, JSON_DECODE_ANY, NULL);
        int same = !v || json_is_null(v) || json_equal(v, only) ||
                   (json_is_number(v) && json_is_number(only) && !(json_number_value(v) < json_number_value(only)) &&
                    !(json_number_value(v) > json_number_value(only)));
        json_decref(only);
        if (same)
            continue;
        char *text = json_text(v, JSON_ENCODE_ANY | JSON_COMPACT);
        enum code c = fail(ERR_UNSUPPORTED, "%s: \"%s\": %.60s is not supported; known is %s", where, list[i].key, text ? text : "?", list[i].value);
        free(text);
        return c;
    }
    return OK;
}

/* ---- tensors ------------------------------------------------------------------------------------------------------ */

const char *const GPT_NAMES[T_SLOTS] = {
    [T_EMBED] = "transformer.wte.weight", [T_POS] = "transformer.wpe.weight",
    [T_ATTN_NORM_W] = "ln_1.weight", [T_ATTN_NORM_B] = "ln_1.bias",
    [T_Q_W] = "attn.c_attn.weight", [T_K_W] = "attn.c_attn.weight", [T_V_W] = "attn.c_attn.weight",
    [T_Q_B] = "attn.c_attn.bias", [T_K_B] = "attn.c_attn.bias", [T_V_B] = "attn.c_attn.bias",
    [T_O_W] = "attn.c_proj.weight", [T_O_B] = "attn.c_proj.bias",
    [T_MLP_NORM_W] = "ln_2.weight", [T_MLP_NORM_B] = "ln_2.bias",
    [T_UP_W] = "mlp.c_fc.weight", [T_UP_B] = "mlp.c_fc.bias",
    [T_DOWN_W] = "mlp.c_proj.weight", [T_DOWN_B] = "mlp.c_proj.bias",
    [T_FINAL_NORM_W] = "transformer.ln_f.weight", [T_FINAL_NORM_B] = "transformer.ln_f.bias",
    [T_HEAD_W] = "lm_head.weight",
};

void gpt_place_qkv(struct family_place *p, const struct arch *a, const struct tensor_spec *t, enum gpt_order order)
{
    if (t->slot < T_Q_W || t->slot > T_V_B)
        return;
    const struct arch_block *b = &a->stack[STACK_DEC].block[t->layer];
    int part = t->slot == T_Q_W || t->slot == T_Q_B ? 0 : t->slot == T_K_W || t->slot == T_K_B ? 1 : 2;
    int64_t R = b->H / b->G;
    p->n[0] = (b->H + 2 * b->G) * b->D;
    if (order == GPT_BY_PART) {
        p->first = (part == 0 ? 0 : part == 1 ? b->H : b->H + b->G) * b->D;
        return;
    }
    p->first = (part == 0 ? 0 : part == 1 ? R : R + 1) * b->D;
    p->inner = (part == 0 ? R : 1) * b->D;
    p->stride = (R + 2) * b->D;
}

void gpt_place_transposed(struct family_place *p)
{
    int64_t rows = p->n[0];
    p->n[0] = p->n[1];
    p->n[1] = rows;
    p->transposed = 1;
}

int gpt_ignores(const struct arch *a, const char *name)
{
    static const char *const buffers[] = {".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias"};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        if (family_name_ends(name, buffers[i]))
            return 1;
    return family_ignores_usual(a, name) || (a->tied && !strcmp(name, "embed_out.weight"));
}

/* ---- arch -> config.json ------------------------------------------------------------------------------------------ */

enum code gpt_holds_mha(const struct arch *a)
{
    for (int64_t l = 0; l < a->stack[STACK_DEC].L; l++) {
        const struct arch_block *b = &a->stack[STACK_DEC].block[l];
        if (b->G != b->H)
            return fail(ERR_UNSUPPORTED, "the class of model_type \"%s\" has as many key/value heads as query heads, %lld; layer %lld has %lld",
                        a->family, (long long)b->H, (long long)l, (long long)b->G);
    }
    return OK;
}

enum code gpt_fresh_begin(const struct arch *a, json_t *config, const char *class_name, const char *model_type, const struct family_dims *dims,
                          const char *act_key, const char *eps_key)
{
    if (mlp_is_gated(a->mlp))
        return fail(ERR_UNSUPPORTED, "config.json of the %s family cannot express a gated MLP; write a .h5", model_type);
    family_fresh_begin(a, config, class_name, model_type, dims);
    if (act_key)
        json_object_set_new(config, act_key, json_string(family_act_name(a->mlp)));
    if (eps_key)
        json_object_set_new(config, eps_key, json_real(a->norm_eps));
    return OK;
}
