/* Binding a mapping to a struct by a table: every key is known, every value has its type, range or choice. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/config_private.h"
#include "base/log.h"

enum { LONGEST_PATH = 256, MOST_NAMES = 256 };

/* The i-th word of "a|b|c": 1 and copied to out, or 0 when there are fewer. */
static int word_at(const char *words, int i, char out[LONGEST_PATH])
{
    for (; words && i > 0; i--) {
        words = strchr(words, '|');
        words = words ? words + 1 : NULL;
    }
    if (!words)
        return 0;
    snprintf(out, LONGEST_PATH, "%.*s", (int)strcspn(words, "|"), words);
    return 1;
}

/* The spellings of a field: its key, then each alias as it stands, then each alias in the place of the key's last part. */
static int spelling_at(const struct config_field *f, int i, char out[LONGEST_PATH])
{
    if (i == 0) {
        snprintf(out, LONGEST_PATH, "%s", f->key);
        return 1;
    }
    if (!f->alias)
        return 0;
    int count = 1;
    for (const char *p = f->alias; (p = strchr(p, '|')); p++)
        count++;
    if (i <= count)
        return word_at(f->alias, i - 1, out);
    const char *dot = strrchr(f->key, '.');
    char word[LONGEST_PATH];
    if (!dot || i > 2 * count || !word_at(f->alias, i - 1 - count, word))
        return 0;
    snprintf(out, LONGEST_PATH, "%.*s%.120s", (int)(dot + 1 - f->key) < 120 ? (int)(dot + 1 - f->key) : 120, f->key, word);
    return 1;
}

/* The pair that gives a field its value. Two spellings at once are refused unless just one comes from the command line. */
static enum code find_pair(const struct config_node *node, const struct config_field *f, const struct config_pair **out,
                           int *by_alias)
{
    char path[LONGEST_PATH];
    *out = NULL;
    *by_alias = 0;
    for (int i = 0; spelling_at(f, i, path); i++) {
        const struct config_pair *pair = config_pair_at(node, path);
        if (!pair || pair == *out)
            continue;
        if (*out && (pair->line == 0) == ((*out)->line == 0))
            return fail(ERR_USAGE, "%s: '%s' says the same as '%s' at %s; keep one", config_mark(pair->where, pair->line, pair->column),
                        pair->key, (*out)->key, config_mark((*out)->where, (*out)->line, (*out)->column));
        if (!*out || pair->line == 0) {
            *out = pair;
            *by_alias = i > 0;
        }
    }
    return OK;
}

static const char *found_text(const struct config_node *v)
{
    static _Thread_local char text[96];
    if (v->kind == CONFIG_IS_SCALAR)
        snprintf(text, sizeof text, v->plain ? "'%.60s'" : "the quoted text \"%.60s\"", v->text);
    else
        snprintf(text, sizeof text, "%s", v->kind == CONFIG_IS_MAPPING ? "a mapping" : "a list");
    return text;
}

static const char *mark_of(const struct config_node *v)
{
    return config_mark(v->where, v->line, v->column);
}

static enum code wrong(const struct config_field *f, const struct config_node *v, const char *expected)
{
    return fail(ERR_USAGE, "%s: %s: expected %s, found %s", mark_of(v), f->key, expected, found_text(v));
}

static enum code take_int(const struct config_field *f, const struct config_node *v, int64_t *out)
{
    if (!config_scalar_int(v, out))
        return wrong(f, v, "an integer");
    if ((f->lo != 0.0 || f->hi != 0.0) && !((double)*out >= f->lo && (double)*out <= f->hi))
        return fail(ERR_USAGE, "%s: %s: expected an integer from %.15g to %.15g, found %s", mark_of(v), f->key, f->lo, f->hi,
                    found_text(v));
    return OK;
}

static enum code take_float(const struct config_field *f, const struct config_node *v, double *out)
{
    if (!config_scalar_float(v, out))
        return wrong(f, v, "a number");
    if ((f->lo != 0.0 || f->hi != 0.0) && !(*out >= f->lo && *out <= f->hi))
        return fail(ERR_USAGE, "%s: %s: expected a number from %.15g to %.15g, found %s", mark_of(v), f->key, f->lo, f->hi,
                    found_text(v));
    return OK;
}

static enum code take_choice(const struct config_field *f, const struct config_node *v, int *out)
{
    char word[LONGEST_PATH];
    for (int i = 0; v->kind == CONFIG_IS_SCALAR && word_at(f->choices, i, word); i++)
        if (!strcmp(word, v->text)) {
            *out = i;
            return OK;
        }
    char expected[512];
    size_t n = (size_t)snprintf(expected, sizeof expected, "one of");
    for (int i = 0; word_at(f->choices, i, word) && n < 380; i++)
        n += (size_t)snprintf(expected + n, sizeof expected - n, "%s %.100s", i ? "," : "", word);
    return wrong(f, v, expected);
}

static enum code take_list(const struct config *c, const struct config_field *f, const struct config_node *v,
                           struct config_list *out)
{
    int one = v->kind == CONFIG_IS_SCALAR, n = one ? 1 : v->n;
    if (v->kind == CONFIG_IS_MAPPING)
        return wrong(f, v, "a list [a, b, ...]");
    void *items = config_alloc(c, (size_t)(n ? n : 1) * 8);
    if (!items)
        return ERR_MEMORY;
    for (int i = 0; i < n; i++) {
        const struct config_node *item = one ? v : v->items[i];
        if (f->type == CONFIG_INTS)
            TRY(take_int(f, item, (int64_t *)items + i));
        else if (f->type == CONFIG_FLOATS)
            TRY(take_float(f, item, (double *)items + i));
        else if (item->kind == CONFIG_IS_SCALAR)
            ((const char **)items)[i] = item->text;
        else
            return wrong(f, item, "a text");
    }
    out->n = n;
    out->items = items;
    return OK;
}

static enum code take(const struct config *c, const struct config_field *f, const struct config_node *v, void *dst)
{
    switch (f->type) {
    case CONFIG_INT: {
        int64_t x; /* dst is left alone when the value is refused */
        TRY(take_int(f, v, &x));
        *(int64_t *)dst = x;
        return OK;
    }
    case CONFIG_FLOAT: {
        double x;
        TRY(take_float(f, v, &x));
        *(double *)dst = x;
        return OK;
    }
    case CONFIG_BOOL:
        return config_scalar_bool(v, dst) ? OK : wrong(f, v, "true or false");
    case CONFIG_STR:
        if (v->kind != CONFIG_IS_SCALAR)
            return wrong(f, v, "a text");
        *(const char **)dst = v->text;
        return OK;
    case CONFIG_CHOICE:
        return take_choice(f, v, dst);
    case CONFIG_INTS:
    case CONFIG_FLOATS:
    case CONFIG_STRS:
        return take_list(c, f, v, dst);
    case CONFIG_MAP:
        if (v->kind != CONFIG_IS_MAPPING)
            return wrong(f, v, "a mapping of keys");
        *(const struct config_node **)dst = v;
        return OK;
    }
    return fail(ERR_INTERNAL, "a table names a type that does not exist");
}

/* 2: the path names a field; 1: fields lie below it; 0: unknown. */
static int path_known(const struct config_field *fields, int n, const char *path, const struct config_field **field)
{
    char spelling[LONGEST_PATH];
    size_t length = strlen(path);
    int below = 0;
    for (int i = 0; i < n; i++)
        for (int s = 0; spelling_at(&fields[i], s, spelling); s++) {
            if (!strcmp(spelling, path)) {
                *field = &fields[i];
                return 2;
            }
            below |= !strncmp(spelling, path, length) && spelling[length] == '.';
        }
    return below;
}

/* Refuses pair: names the legal key meant, by its place or by its spelling, or lists the legal keys. */
static enum code unknown_key(const struct config_field *fields, int n, const struct config_pair *pair, const char *prefix,
                             const char *path)
{
    const char *mark = config_mark(pair->where, pair->line, pair->column);
    if (strchr(pair->key, '.'))
        return fail(ERR_USAGE, "%s: unknown key '%.80s'; write dotted keys as nested ones (a dot is for the command line)", mark,
                    path);
    char names[MOST_NAMES][64];
    const char *candidates[MOST_NAMES];
    int count = 0;
    size_t skip = strlen(prefix);
    for (int i = 0; i < n; i++) {
        const char *dot = strrchr(fields[i].key, '.'), *last = dot ? dot + 1 : fields[i].key;
        if (!strcmp(last, pair->key))
            return fail(ERR_USAGE, "%s: unknown key '%.80s'; did you mean '%s'?", mark, path, fields[i].key);
        if (strncmp(fields[i].key, prefix, skip) != 0 || count == MOST_NAMES)
            continue;
        const char *rest = fields[i].key + skip;
        size_t length = strcspn(rest, ".");
        snprintf(names[count], sizeof names[0], "%.*s", (int)(length < 63 ? length : 63), rest);
        int seen = 0;
        for (int k = 0; k < count && !seen; k++)
            seen = !strcmp(names[k], names[count]);
        if (!seen) {
            candidates[count] = names[count];
            count++;
        }
    }
    const char *near = config_nearest(pair->key, candidates, count);
    if (near)
        return fail(ERR_USAGE, "%s: unknown key '%.80s'; did you mean '%s%s'?", mark, path, prefix, near);
    char list[700] = "";
    size_t used = 0;
    for (int i = 0; i < count && used < 600; i++)
        used += (size_t)snprintf(list + used, sizeof list - used, "%s%s", i ? ", " : "", names[i]);
    return fail(ERR_USAGE, "%s: unknown key '%.80s'; keys here: %s%s", mark, path, list, used >= 600 ? ", ..." : "");
}

static enum code check_keys(const struct config_field *fields, int n, const struct config_node *node, const char *prefix)
{
    for (int i = 0; i < node->n; i++) {
        const struct config_pair *pair = &node->pairs[i];
        const struct config_field *field = NULL;
        char path[LONGEST_PATH], deeper[LONGEST_PATH];
        snprintf(path, sizeof path, "%.120s%.120s", prefix, pair->key);
        int known = strchr(pair->key, '.') ? 0 : path_known(fields, n, path, &field);
        if (known == 0)
            return unknown_key(fields, n, pair, prefix, path);
        if (known == 2 || config_is_null(pair->value))
            continue;
        if (pair->value->kind != CONFIG_IS_MAPPING)
            return fail(ERR_USAGE, "%s: %s: expected a mapping of keys, found %s", mark_of(pair->value), path,
                        found_text(pair->value));
        snprintf(deeper, sizeof deeper, "%.250s.", path);
        TRY(check_keys(fields, n, pair->value, deeper));
    }
    return OK;
}

static enum code bind_default(const struct config *c, const struct config_field *f, void *dst)
{
    struct config_node *v;
    if (!f->def)
        return OK;
    enum code code = config_parse_text(c, f->def, strlen(f->def), "default", 0, &v);
    if (code == OK && f->type == CONFIG_STR && !v)
        *(const char **)dst = "";
    else if (code == OK && v && !config_is_null(v))
        code = take(c, f, v, dst);
    return code == OK ? OK : fail_in(code == ERR_MEMORY ? code : ERR_INTERNAL, "config table, key %s", f->key);
}

enum code config_bind(const struct config *c, const struct config_node *node, const struct config_field *fields, int n, void *dst)
{
    if (node && config_is_null(node))
        node = NULL;
    if (node && node->kind != CONFIG_IS_MAPPING)
        return fail(ERR_USAGE, "%s: expected a mapping of keys, found %s", mark_of(node), found_text(node));
    if (node)
        TRY(check_keys(fields, n, node, ""));
    for (int i = 0; i < n; i++) {
        const struct config_field *f = &fields[i];
        const struct config_pair *pair = NULL;
        int by_alias = 0;
        void *slot = (char *)dst + f->offset;
        if (f->type == CONFIG_MAP)
            *(const struct config_node **)slot = NULL;
        if (node)
            TRY(find_pair(node, f, &pair, &by_alias));
        if (pair && by_alias && !pair->warned) {
            ((struct config_pair *)(uintptr_t)pair)->warned = 1;
            log_warn("%s: '%s' is read as '%s'", config_mark(pair->where, pair->line, pair->column), pair->key, f->key);
        }
        /* A key without a value is as good as absent. */
        if (pair && !config_is_null(pair->value))
            TRY(take(c, f, pair->value, slot));
        else
            TRY(bind_default(c, f, slot));
    }
    return OK;
}

void config_help(const struct config_field *fields, int n)
{
    int key = 4, def = 7;
    for (int i = 0; i < n; i++) {
        int k = (int)strlen(fields[i].key), d = fields[i].def ? (int)strlen(fields[i].def) : 0;
        key = k > key ? k : key;
        def = d > def && d <= 16 ? d : def;
    }
    printf("  %-*s  %-*s  %s\n", key, "key", def, "default", "meaning");
    for (int i = 0; i < n; i++) {
        const struct config_field *f = &fields[i];
        printf("  %-*s  %-*s  %s", key, f->key, def, f->def ? f->def : "-", f->help ? f->help : "");
        if (f->type == CONFIG_CHOICE)
            printf(" (%s)", f->choices);
        putchar('\n');
    }
}
