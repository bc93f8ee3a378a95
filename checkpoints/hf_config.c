/* config.json <-> struct arch: the part common to all families. Out: the source's own text with a few values replaced, so
 * that whatever else it says, in whatever order and spelling, stays. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "family.h"

#define FAMILY_ADDRESS(name) &name,
static const struct family *const ALL[] = {FAMILIES(FAMILY_ADDRESS)};
enum { N_FAMILIES = sizeof ALL / sizeof *ALL };

const struct family *family_of(const char *model_type)
{
    for (int f = 0; f < N_FAMILIES; f++)
        for (const char *const *t = ALL[f]->model_types; *t; t++)
            if (!strcmp(*t, model_type))
                return ALL[f];
    return NULL;
}

const char *family_list(void)
{
    static _Thread_local char list[512];
    size_t n = 0;
    list[0] = 0;
    for (int f = 0; f < N_FAMILIES; f++)
        for (const char *const *t = ALL[f]->model_types; *t && n < sizeof list; t++)
            n += (size_t)snprintf(list + n, sizeof list - n, "%s%s", n ? ", " : "", *t);
    return list;
}

void family_place_plain(struct family_place *p, const struct tensor_spec *t, const char *name)
{
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "%s", name);
    p->nd = t->nd;
    p->n[0] = t->n[0];
    p->n[1] = t->n[1];
    p->inner = p->stride = t->n[0];
}

void family_place_name(const struct family_place *p, int piece, char out[160])
{
    const char *at = p->pieces > 1 ? strstr(p->name, "%d") : NULL;
    if (at)
        snprintf(out, 160, "%.*s%d%s", (int)(at - p->name), p->name, piece, at + 2);
    else
        snprintf(out, 160, "%s", p->name);
}

/* ---- in ----------------------------------------------------------------------------------------------------------- */

/* A token id, or the first of a list of them; null and absent leave *id. */
static enum code id_read(const json_t *config, const char *where, const char *key, int *id)
{
    const json_t *v = json_object_get(config, key);
    if (json_is_array(v))
        v = json_array_get(v, 0);
    if (!v)
        return OK;
    if (json_is_null(v)) {
        *id = -1;
        return OK;
    }
    if (!json_is_integer(v) || json_integer_value(v) < -1 || json_integer_value(v) > INT32_MAX)
        return fail(ERR_INPUT, "%s: \"%s\" must be a token id, a list of them, or null", where, key);
    *id = (int)json_integer_value(v);
    return OK;
}

enum code config_dtype_read(const json_t *config, const char *where, enum dtype *dtype)
{
    const char *name = NULL;
    *dtype = DT_F32;
    TRY(json_want_str(config, where, "torch_dtype", &name));
    TRY(json_want_str(config, where, "dtype", &name));
    if (!name || !strcmp(name, "auto"))
        return OK;
    if (!strncmp(name, "torch.", 6))
        name += 6;
    *dtype = dtype_parse(name);
    if (*dtype == DT_F32 || *dtype == DT_BF16 || *dtype == DT_F16 || *dtype == DT_F64)
        return OK;
    return fail(ERR_UNSUPPORTED, "%s: \"torch_dtype\": \"%.40s\" is not supported; known are float32, bfloat16, float16, float64", where, name);
}

static enum code fields_read(struct arch *a, const json_t *config, const char *where)
{
    const char *type;
    TRY(json_need_str(config, where, "model_type", &type));
    const struct family *family = family_of(type);
    if (!family)
        return fail(ERR_UNSUPPORTED, "%s: model_type \"%.40s\" is not supported; supported are %s", where, type, family_list());
    TRY(config_keys_check(config, family, where));
    TRY(family->read(a, config, where));
    TRY(a->V ? json_want_i64(config, where, "vocab_size", 1, INT32_MAX, &a->V) : json_need_i64(config, where, "vocab_size", 1, INT32_MAX, &a->V));
    a->original_vocab = a->V;
    TRY(json_want_bool(config, where, "tie_word_embeddings", &a->tied));
    TRY(id_read(config, where, "bos_token_id", &a->bos));
    TRY(id_read(config, where, "eos_token_id", &a->eos));
    TRY(id_read(config, where, "pad_token_id", &a->pad));
    TRY(config_dtype_read(config, where, &a->dtype));
    return arch_check(a, where);
}

enum code arch_from_config_json(struct arch *a, const char *bytes, size_t n, const char *where)
{
    json_t *config;
    memset(a, 0, sizeof *a);
    TRY(json_parse_object(bytes, n, where, &config));
    enum code c = fields_read(a, config, where);
    json_decref(config);
    if (c == OK && !(a->source_config = strndup(bytes, n)))
        c = fail(ERR_MEMORY, "%s: out of memory", where);
    if (c != OK)
        arch_free(a);
    return c;
}

/* ---- out ---------------------------------------------------------------------------------------------------------- */

const char *config_dtype_name(enum dtype t)
{
    switch (t) {
    case DT_F32: return "float32";
    case DT_BF16: return "bfloat16";
    case DT_F16: return "float16";
    case DT_F64: return "float64";
    default: return "";
    }
}

static enum code groups_check(const struct arch *a)
{
    const struct family *family = family_of(a->family);
    if (family && family->holds)
        TRY(family->holds(a));
    const struct arch_stack *s = &a->stack[STACK_DEC];
    for (int64_t l = 1; l < s->L && !(family && family->per_layer); l++)
        if (s->block[l].G != s->block[0].G)
            return fail(ERR_UNSUPPORTED, "config.json has one num_key_value_heads for all layers, but layer 0 has %lld and layer %lld has "
                        "%lld; write a .h5, or give all layers the same number", (long long)s->block[0].G, (long long)l,
                        (long long)s->block[l].G);
    return OK;
}

static int groups_differ(const struct arch *a, const struct arch *b)
{
    int differ = 0;
    for (int64_t l = 0; l < a->stack[STACK_DEC].L; l++)
        differ |= a->stack[STACK_DEC].block[l].G != b->stack[STACK_DEC].block[l].G;
    return differ;
}

static enum code edit(const struct arch *a, const struct arch *was, const struct family *family, enum dtype dtype, char **text)
{
    char value[32];
    if (groups_differ(a, was)) {
        snprintf(value, sizeof value, "%lld", (long long)a->stack[STACK_DEC].block[0].G);
        TRY(family->set_groups ? family->set_groups(a, text) : config_text_set(text, family->groups_key, value, family->heads_key));
    }
    if (a->tied != was->tied)
        TRY(config_text_set(text, "tie_word_embeddings", a->tied ? "true" : "false", ""));
    if (dtype == DT_NONE || dtype == was->dtype)
        return OK;
    snprintf(value, sizeof value, "\"%s\"", config_dtype_name(dtype));
    json_t *config;
    TRY(json_parse_object(*text, strlen(*text), "config.json", &config));
    int new_name = json_object_get(config, "dtype") != NULL;
    int old_name = json_object_get(config, "torch_dtype") != NULL || !new_name;
    json_decref(config);
    if (new_name)
        TRY(config_text_set(text, "dtype", value, ""));
    return old_name ? config_text_set(text, "torch_dtype", value, "") : OK;
}

/* The edited text must say what the arch says. Catches an arch changed in a way that edit() does not know. A change of the stored
 * type may change an embedding scale that is rounded to it (Gemma), here as in transformers. */
static enum code edit_verify(const struct arch *a, enum dtype was, const char *text)
{
    struct arch said;
    char what[192] = "architecture";
    TRY(arch_from_config_json(&said, text, strlen(text), "the new config.json"));
    if (said.dtype != was)
        said.embed_scale = a->embed_scale;
    int same = family_arch_same(a, &said, what, sizeof what);
    arch_free(&said);
    if (!same && json_starved())
        return fail(ERR_MEMORY, "out of memory for the new config.json");
    return same ? OK : fail(ERR_INTERNAL, "the new config.json does not say the model's %s", what);
}

static enum code config_edited(const struct arch *a, enum dtype dtype, char **out)
{
    struct arch was;
    TRY(arch_from_config_json(&was, a->source_config, strlen(a->source_config), "config.json of the source"));
    char *text = strdup(a->source_config);
    enum code c = text ? edit(a, &was, family_of(was.family), dtype, &text) : fail(ERR_MEMORY, "config.json: out of memory");
    if (c == OK)
        c = edit_verify(a, was.dtype, text);
    arch_free(&was);
    if (c != OK)
        free(text);
    else
        *out = text;
    return c;
}

/* The fewest digits that read back to the same numbers: 1e-5 and not 1.0000000000000001e-5. */
char *config_dump(const json_t *config)
{
    for (size_t digits = 6; digits <= 17; digits++) {
        char *text = json_text(config, JSON_INDENT(2) | JSON_REAL_PRECISION(digits));
        json_t *back = text ? json_loads(text, 0, NULL) : NULL;
        int same = back && json_equal(back, config);
        json_decref(back);
        if (same)
            return text;
        free(text);
    }
    return NULL;
}

void config_common_fresh(const struct arch *a, enum dtype dtype, json_t *config)
{
    const struct { const char *key; int id; } ids[] = {{"bos_token_id", a->bos}, {"eos_token_id", a->eos}, {"pad_token_id", a->pad}};
    json_object_set_new(config, "vocab_size", json_integer(a->V));
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++)
        json_object_set_new(config, ids[i].key, ids[i].id >= 0 ? json_integer(ids[i].id) : json_null());
    json_object_set_new(config, "torch_dtype", json_string(config_dtype_name(dtype == DT_NONE ? a->dtype : dtype)));
}

static enum code config_fresh(const struct arch *a, enum dtype dtype, char **out)
{
    const struct family *family = a->family[0] ? family_of(a->family) : family_of("llama");
    if (!family)
        return fail(ERR_UNSUPPORTED, "model_type \"%s\" is not supported; supported are %s", a->family, family_list());
    json_t *config = json_object();
    enum code c = family->fresh(a, config);
    config_common_fresh(a, dtype, config);
    char *text = NULL, *ended = NULL;
    if (c == OK && ((text = config_dump(config)) == NULL || asprintf(&ended, "%s\n", text) < 0))
        c = fail(ERR_MEMORY, "config.json: out of memory");
    free(text);
    json_decref(config);
    if (c == OK)
        *out = ended;
    return c;
}

enum code arch_to_config_json(const struct arch *a, enum dtype dtype, char **text)
{
    *text = NULL;
    TRY(groups_check(a));
    return a->source_config ? config_edited(a, dtype, text) : config_fresh(a, dtype, text);
}
