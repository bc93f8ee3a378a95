/* What the families of the GPT-2 line share; see family_gpt.h. */
#include "family_gpt.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- config.json -> arch ------------------------------------------------------------------------------------------ */

enum code gpt_dim_read(const json_t *config, const char *where, const struct gpt_dim *dim, int64_t *value)
{
    int64_t one = 0, other = 0;
    TRY(json_want_i64(config, where, dim->key, 1, INT32_MAX, &one));
    if (dim->alias)
        TRY(json_want_i64(config, where, dim->alias, 1, INT32_MAX, &other));
    if (one && other && one != other)
        return fail(ERR_INPUT, "%s: \"%s\" is %lld, but \"%s\" is %lld; both mean the same", where, dim->key, (long long)one, dim->alias,
                    (long long)other);
    *value = one ? one : other ? other : dim->absent;
    return OK;
}

enum code gpt_read(struct arch *a, const json_t *config, const char *where, const struct gpt_dims *d, const char *eps_key, int bos, int eos)
{
    const char *type;
    int64_t L, H, F;
    TRY(json_need_str(config, where, "model_type", &type));
    TRY(gpt_dim_read(config, where, &d->L, &L));
    enum code c = arch_init(a, L);
    if (c != OK)
        return fail_in(c, "%s", where);
    snprintf(a->family, sizeof a->family, "%s", type);
    TRY(gpt_dim_read(config, where, &d->C, &a->C));
    TRY(gpt_dim_read(config, where, &d->H, &H));
    TRY(gpt_dim_read(config, where, &d->P, &a->max_positions));
    F = d->F_times ? d->F_times * a->C : d->F_absent;
    if (d->F)
        TRY(json_want_i64(config, where, d->F, 1, INT32_MAX, &F));
    if (a->C % H)
        return fail(ERR_INPUT, "%s: \"%s\" %lld is not a multiple of \"%s\" %lld", where, d->C.key, (long long)a->C, d->H.key, (long long)H);
    for (int64_t l = 0; l < L; l++) {
        struct arch_block *b = &a->stack[STACK_DEC].block[l];
        b->H = b->G = H;
        b->D = b->Dv = a->C / H;
        b->F = F;
    }
    a->attn_scale = 1 / sqrt((double)(a->C / H));
    a->rope.dims = a->C / H;
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
        char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
        enum code c = fail(ERR_UNSUPPORTED, "%s: \"%s\": %.60s is not supported; known is %s", where, list[i].key, text ? text : "?", list[i].value);
        free(text);
        return c;
    }
    return OK;
}

/* ---- tensors ------------------------------------------------------------------------------------------------------ */

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

enum code gpt_fresh_refused(const struct arch *a, json_t *config)
{
    (void)config;
    return fail(ERR_UNSUPPORTED, "a config.json of model_type \"%s\" is only written from one; write a .h5", a->family);
}
