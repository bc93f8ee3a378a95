/* Rotary position settings of a config.json -> struct arch_rope, and back for a new config.
 * Sources: Hugging Face transformers, modeling_rope_utils.py (meaning and defaults of the keys). YaRN: Peng, Quesnelle, Fan,
 * Shippole 2023: attention factor 0.1 ln(s) + 1. LongRoPE: Ding et al. 2024: sqrt(1 + ln s / ln P). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "family.h"

static const char *const KINDS[] = {[ROPE_DEFAULT] = "default", [ROPE_LINEAR] = "linear",     [ROPE_DYNAMIC] = "dynamic",
                                    [ROPE_YARN] = "yarn",       [ROPE_LONGROPE] = "longrope", [ROPE_LLAMA3] = "llama3"};

static const char *const KEYS[] = {"rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", "attention_factor",
                                   "beta_fast", "beta_slow", "short_factor", "long_factor", "low_freq_factor", "high_freq_factor",
                                   "mscale", "mscale_all_dim", "truncate", "partial_rotary_factor", "finetuned"};

static enum code keys_check(const struct arch *a, const json_t *settings, const char *where)
{
    const char *key;
    json_t *v;
    json_object_foreach ((json_t *)settings, key, v) {
        int known = json_is_null(v);
        for (size_t i = 0; i < sizeof KEYS / sizeof *KEYS; i++)
            known |= !strcmp(KEYS[i], key);
        if (!known)
            return fail(ERR_UNSUPPORTED, "%s: \"%.80s\" among the rotary settings is not understood", where, key);
    }
    int truncate = 1;
    double D = (double)a->stack[STACK_DEC].block[0].D, partial = 0;
    TRY(json_want_bool(settings, where, "truncate", &truncate));
    TRY(json_want_f64(settings, where, "partial_rotary_factor", &partial));
    if (!truncate)
        return fail(ERR_UNSUPPORTED, "%s: \"truncate\": false among the rotary settings is not supported", where);
    const json_t *given = json_object_get(settings, "partial_rotary_factor"); /* a family without that key turns whole heads */
    if (json_is_number(given) && (!(partial > 0 && partial <= 1) || (int64_t)(D * partial) != a->rope.dims))
        return fail(ERR_UNSUPPORTED, "%s: \"partial_rotary_factor\": %g among the rotary settings is not supported", where, partial);
    return OK;
}

static enum code factors_read(const json_t *settings, const char *where, const char *key, int64_t n, double **out)
{
    const json_t *list = json_object_get(settings, key);
    if (!json_is_array(list) || (int64_t)json_array_size(list) != n)
        return fail(ERR_INPUT, "%s: \"%s\" must be a list of %lld numbers, half the rotary dimensions", where, key, (long long)n);
    *out = malloc((size_t)n * sizeof **out);
    if (!*out)
        return fail(ERR_MEMORY, "%s: out of memory for \"%s\"", where, key);
    for (int64_t i = 0; i < n; i++) {
        (*out)[i] = json_number_value(json_array_get(list, (size_t)i));
        if (!((*out)[i] > 0))
            return fail(ERR_INPUT, "%s: \"%s\": entry %lld is no positive number", where, key, (long long)i);
    }
    return OK;
}

static double yarn_scale(double factor, double m) { return factor > 1 ? 0.1 * m * log(factor) + 1 : 1; }

static enum code yarn_read(struct arch_rope *r, const json_t *s, const char *where)
{
    double mscale = 0, mscale_all = 0;
    r->beta_fast = 32;
    r->beta_slow = 1;
    TRY(json_want_f64(s, where, "beta_fast", &r->beta_fast));
    TRY(json_want_f64(s, where, "beta_slow", &r->beta_slow));
    TRY(json_want_f64(s, where, "mscale", &mscale));
    TRY(json_want_f64(s, where, "mscale_all_dim", &mscale_all));
    if (!(r->attention_factor > 0))
        r->attention_factor = mscale > 0 && mscale_all > 0 ? yarn_scale(r->factor, mscale) / yarn_scale(r->factor, mscale_all)
                                                           : yarn_scale(r->factor, 1);
    return OK;
}

static enum code longrope_read(struct arch *a, const json_t *s, const char *where)
{
    struct arch_rope *r = &a->rope;
    if (!(r->factor > 0))
        r->factor = (double)a->max_positions / (double)r->original_max_positions;
    if (!(r->attention_factor > 0))
        r->attention_factor = r->factor > 1 && r->original_max_positions > 1
                                  ? sqrt(1 + log(r->factor) / log((double)r->original_max_positions)) : 1;
    TRY(factors_read(s, where, "long_factor", r->dims / 2, &r->long_factor));
    return factors_read(s, where, "short_factor", r->dims / 2, &r->short_factor);
}

/* The older spelling wins where both are, as in transformers. */
static const json_t *settings_of(const json_t *config)
{
    const json_t *s = json_object_get(config, "rope_scaling");
    if (!s || json_is_null(s) || (json_is_object(s) && json_object_size(s) == 0))
        s = json_object_get(config, "rope_parameters");
    return s;
}

enum code config_rope_partial(const json_t *config, const char *where, double *partial)
{
    const json_t *s = settings_of(config);
    return json_is_object(s) ? json_want_f64(s, where, "partial_rotary_factor", partial) : OK;
}

enum code config_rope_read(struct arch *a, const json_t *config, const char *where)
{
    struct arch_rope *r = &a->rope;
    const json_t *s = settings_of(config);
    int64_t outer = r->original_max_positions;
    r->original_max_positions = 0;
    r->kind = ROPE_DEFAULT;
    r->theta = 10000;
    TRY(json_want_f64(config, where, "rope_theta", &r->theta));
    if (!s || json_is_null(s))
        return OK;
    if (!json_is_object(s))
        return fail(ERR_INPUT, "%s: \"rope_scaling\" must be an object or null", where);
    TRY(keys_check(a, s, where));
    TRY(json_want_f64(s, where, "rope_theta", &r->theta));

    const char *kind = "default";
    TRY(json_want_str(s, where, "type", &kind));
    TRY(json_want_str(s, where, "rope_type", &kind));
    if (!strcmp(kind, "su"))
        kind = "longrope"; /* its first name */
    size_t k = 0;
    while (k < sizeof KINDS / sizeof *KINDS && strcmp(KINDS[k], kind) != 0)
        k++;
    if (k == sizeof KINDS / sizeof *KINDS)
        return fail(ERR_UNSUPPORTED, "%s: \"rope_type\": \"%.40s\" is not supported", where, kind);
    r->kind = (enum rope_kind)k;
    if (r->kind == ROPE_DEFAULT)
        return OK;

    if (r->kind != ROPE_LONGROPE)
        TRY(json_need_f64(s, where, "factor", &r->factor));
    TRY(json_want_f64(s, where, "factor", &r->factor));
    r->original_max_positions = a->max_positions;
    if (r->kind == ROPE_LINEAR || r->kind == ROPE_DYNAMIC)
        return OK; /* scaled against max_position_embeddings, whatever original_max_position_embeddings says */
    TRY(json_want_i64(s, where, "original_max_position_embeddings", 1, INT32_MAX, &r->original_max_positions));
    r->original_max_positions = outer ? outer : r->original_max_positions; /* outside wins */
    TRY(json_want_i64(config, where, "original_max_position_embeddings", 1, INT32_MAX, &r->original_max_positions));
    if (r->kind != ROPE_LLAMA3)
        TRY(json_want_f64(s, where, "attention_factor", &r->attention_factor));
    switch (r->kind) {
    case ROPE_YARN: return yarn_read(r, s, where);
    case ROPE_LONGROPE: return longrope_read(a, s, where);
    case ROPE_LLAMA3:
        TRY(json_need_f64(s, where, "low_freq_factor", &r->low_freq_factor));
        return json_need_f64(s, where, "high_freq_factor", &r->high_freq_factor);
    default: return OK;
    }
}

void config_rope_fresh(const struct arch_rope *r, json_t *config)
{
    json_object_set_new(config, "rope_theta", json_real(r->theta));
    if (r->kind == ROPE_DEFAULT)
        return;
    json_t *s = json_object();
    json_object_set_new(s, "rope_type", json_string(KINDS[r->kind]));
    json_object_set_new(s, "factor", json_real(r->factor));
    const struct { const char *key; double value; } reals[] = {
        {"attention_factor", r->attention_factor}, {"beta_fast", r->beta_fast},           {"beta_slow", r->beta_slow},
        {"low_freq_factor", r->low_freq_factor},   {"high_freq_factor", r->high_freq_factor}};
    for (size_t i = 0; i < sizeof reals / sizeof *reals; i++)
        if (reals[i].value > 0)
            json_object_set_new(s, reals[i].key, json_real(reals[i].value));
    if (r->original_max_positions)
        json_object_set_new(s, "original_max_position_embeddings", json_integer(r->original_max_positions));
    const struct { const char *key; const double *v; } lists[] = {{"long_factor", r->long_factor}, {"short_factor", r->short_factor}};
    for (size_t i = 0; i < 2; i++) {
        if (!lists[i].v)
            continue;
        json_t *list = json_array();
        for (int64_t j = 0; j < r->dims / 2; j++)
            json_array_append_new(list, json_real(lists[i].v[j]));
        json_object_set_new(s, lists[i].key, list);
    }
    json_object_set_new(config, "rope_scaling", s);
}
