/* What a new config.json says, compared with what it should say: it is read like any other, and every member of the arch must
 * come back. So no family needs a list of what it cannot hold, and none can claim too much. */
#include "family_common.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Members that do not stand in a config.json, or mean nothing for this arch. */
static int skipped(const struct arch *a, const char *key)
{
    static const char *const always[] = {"family", "original_vocab", "dtype", "source_config", "decoder_start"};
    for (size_t i = 0; i < sizeof always / sizeof *always; i++)
        if (!strcmp(always[i], key))
            return 1;
    if (a->pos != POS_ALIBI && !strncmp(key, "alibi_", 6))
        return 1;
    return a->pos != POS_REL_BIAS && !strncmp(key, "rel_", 4);
}

/* Numbers agree to rounding: a scale may have been computed in another order. On a difference, `path` says where. */
static int same(const json_t *x, const json_t *y, char *path, size_t n)
{
    size_t k = strlen(path);
    if (json_is_real(x) && json_is_real(y)) {
        double p = json_real_value(x), q = json_real_value(y);
        return fabs(p - q) <= 1e-12 * fabs(p);
    }
    if (json_is_object(x) && json_is_object(y)) {
        const char *key;
        json_t *v;
        json_object_foreach ((json_t *)x, key, v) {
            snprintf(path + k, n - k, ".%s", key);
            if (!same(v, json_object_get(y, key), path, n))
                return 0;
        }
        path[k] = 0;
        return json_object_size(x) == json_object_size(y);
    }
    if (json_is_array(x) && json_is_array(y) && json_array_size(x) == json_array_size(y)) {
        for (size_t i = 0; i < json_array_size(x); i++) {
            snprintf(path + k, n - k, "[%zu]", i);
            if (!same(json_array_get(x, i), json_array_get(y, i), path, n))
                return 0;
        }
        path[k] = 0;
        return 1;
    }
    return x && y && json_equal(x, y);
}

int family_arch_same(const struct arch *want, const struct arch *said, char *what, size_t n)
{
    json_t *x = arch_to_json(want), *y = arch_to_json(said), *v;
    const char *key;
    int good = x && y;
    json_object_foreach (x, key, v) {
        char path[128];
        snprintf(path, sizeof path, "%s", key);
        if (!good || skipped(want, key) || same(v, json_object_get(y, key), path, sizeof path))
            continue;
        char *have = json_text(v, JSON_ENCODE_ANY | JSON_COMPACT);
        snprintf(what, n, "%s%s%s", path, have && strlen(have) <= 40 ? " = " : "", have && strlen(have) <= 40 ? have : "");
        free(have);
        good = 0;
    }
    json_decref(x);
    json_decref(y);
    return good;
}

enum code family_fresh_end(const struct arch *a, const json_t *config)
{
    const char *family = json_string_value(json_object_get(config, "model_type"));
    json_t *whole = json_copy((json_t *)config);
    config_common_fresh(a, DT_NONE, whole);
    char *text = json_text(whole, JSON_REAL_PRECISION(17));
    json_decref(whole);
    if (!text)
        return fail(ERR_MEMORY, "config.json: out of memory");
    struct arch said;
    enum code c = arch_from_config_json(&said, text, strlen(text), "config.json");
    free(text);
    if (c == ERR_MEMORY)
        return c;
    if (c != OK)
        return fail_in(ERR_UNSUPPORTED, "config.json of the %s family cannot express this model", family);
    char what[192] = "architecture";
    if (!family_arch_same(a, &said, what, sizeof what))
        c = fail(ERR_UNSUPPORTED, "config.json of the %s family cannot express this model's %s; write a .h5", family, what);
    arch_free(&said);
    return c;
}
