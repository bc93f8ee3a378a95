/* Looking at a parsed config: paths, marks, scalars, JSON and YAML forms, the nearest word. */
#include "base/config.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <yaml.h>

#include "base/config_private.h"

const struct config_node *config_root(const struct config *c)
{
    return c->root;
}

const char *config_mark(const char *where, int line, int column)
{
    static _Thread_local char buffers[4][512];
    static _Thread_local unsigned turn;
    char *out = buffers[turn++ % 4];
    if (line > 0)
        snprintf(out, sizeof buffers[0], "%.480s:%d:%d", where, line, column);
    else
        snprintf(out, sizeof buffers[0], "%.500s", where);
    return out;
}

const struct config_pair *config_pair_at(const struct config_node *node, const char *key)
{
    const struct config_pair *found = NULL;
    while (node && node->kind == CONFIG_IS_MAPPING) {
        size_t n = strcspn(key, ".");
        found = NULL;
        for (int i = 0; i < node->n && !found; i++)
            if (!strncmp(node->pairs[i].key, key, n) && !node->pairs[i].key[n])
                found = &node->pairs[i];
        if (!found || !key[n])
            return found;
        node = found->value;
        key += n + 1;
    }
    return NULL;
}

int config_has(const struct config_node *node, const char *key)
{
    return config_pair_at(node, key) != NULL;
}

const struct config_node *config_at(const struct config_node *node, const char *key)
{
    const struct config_pair *pair = config_pair_at(node, key);
    return pair ? pair->value : NULL;
}

const char *config_where(const struct config *c, const struct config_node *node, const char *key)
{
    const struct config_pair *pair = key ? config_pair_at(node, key) : NULL;
    if (pair)
        return config_mark(pair->where, pair->line, pair->column);
    if (node)
        return config_mark(node->where, node->line, node->column);
    return config_mark(c->where, 0, 0);
}

int config_is_null(const struct config_node *node)
{
    return node->kind == CONFIG_IS_SCALAR && node->plain &&
           (!*node->text || !strcmp(node->text, "~") || !strcasecmp(node->text, "null"));
}

/* The text without underscores between digits, if it can be a decimal number at all. */
static int number_text(const struct config_node *node, char out[64])
{
    if (node->kind != CONFIG_IS_SCALAR || !node->plain)
        return 0;
    const char *t = node->text;
    size_t n = strlen(t), o = 0;
    if (n == 0 || n > 60 || strspn(t, "0123456789_+-.eE") != n || !strpbrk(t, "0123456789"))
        return 0;
    for (size_t i = 0; i < n; i++) {
        if (t[i] != '_')
            out[o++] = t[i];
        else if (i == 0 || i + 1 == n || !strchr("0123456789", t[i - 1]) || !strchr("0123456789", t[i + 1]))
            return 0;
    }
    out[o] = 0;
    return 1;
}

int config_scalar_float(const struct config_node *node, double *out)
{
    char text[64], *end;
    if (node->kind == CONFIG_IS_SCALAR && node->plain) {
        const char *t = node->text + (*node->text == '-' || *node->text == '+');
        if (!strcasecmp(t, ".inf") || !strcasecmp(t, "inf")) {
            *out = *node->text == '-' ? -HUGE_VAL : HUGE_VAL;
            return 1;
        }
    }
    if (!number_text(node, text))
        return 0;
    double x = strtod(text, &end);
    if (*end || !isfinite(x))
        return 0;
    *out = x;
    return 1;
}

int config_scalar_int(const struct config_node *node, int64_t *out)
{
    char text[64];
    double x;
    if (!number_text(node, text))
        return 0;
    const char *digits = text + (*text == '-' || *text == '+');
    if (strspn(digits, "0123456789") == strlen(digits)) {
        int64_t v = 0;
        for (const char *p = digits; *p; p++)
            if (__builtin_mul_overflow(v, 10, &v) || __builtin_sub_overflow(v, *p - '0', &v)) /* negative: reaches INT64_MIN */
                return 0;
        if (*text != '-' && v == INT64_MIN)
            return 0;
        *out = *text == '-' ? v : -v;
        return 1;
    }
    if (!config_scalar_float(node, &x) || x != floor(x) || fabs(x) > 0x1p53) /* 1e9 */
        return 0;
    *out = (int64_t)x;
    return 1;
}

int config_scalar_bool(const struct config_node *node, int *out)
{
    static const char *const words[2][3] = {{"false", "no", "off"}, {"true", "yes", "on"}};
    if (node->kind != CONFIG_IS_SCALAR || !node->plain)
        return 0;
    for (int v = 0; v < 2; v++)
        for (int i = 0; i < 3; i++)
            if (!strcasecmp(node->text, words[v][i])) {
                *out = v;
                return 1;
            }
    return 0;
}

static int is_json_bool(const struct config_node *node)
{
    return node->plain && (!strcasecmp(node->text, "true") || !strcasecmp(node->text, "false"));
}

static json_t *scalar_to_json(const struct config_node *node)
{
    int64_t i;
    double x;
    if (config_is_null(node))
        return json_null();
    if (is_json_bool(node))
        return json_boolean(!strcasecmp(node->text, "true"));
    if (config_scalar_int(node, &i) && !strpbrk(node->text, ".eE"))
        return json_integer(i);
    if (config_scalar_float(node, &x) && isfinite(x))
        return json_real(x);
    return json_string(node->text);
}

json_t *config_to_json(const struct config_node *node)
{
    if (!node)
        return json_null();
    if (node->kind == CONFIG_IS_SCALAR)
        return scalar_to_json(node);
    json_t *out = node->kind == CONFIG_IS_MAPPING ? json_object() : json_array();
    for (int i = 0; i < node->n && out; i++) {
        int bad = node->kind == CONFIG_IS_MAPPING
                      ? json_object_set_new(out, node->pairs[i].key, config_to_json(node->pairs[i].value))
                      : json_array_append_new(out, config_to_json(node->items[i]));
        if (bad) {
            json_decref(out);
            out = NULL;
        }
    }
    return out;
}

static int emit_text(yaml_emitter_t *e, const char *text, int quote)
{
    yaml_event_t v;
    return yaml_scalar_event_initialize(&v, NULL, NULL, (const yaml_char_t *)text, (int)strlen(text), !quote, 1,
                                        quote ? YAML_DOUBLE_QUOTED_SCALAR_STYLE : YAML_ANY_SCALAR_STYLE) &&
           yaml_emitter_emit(e, &v);
}

/* Words that a YAML reader (ours or a YAML 1.1 one) would take for something else than a string are quoted. */
static int emit_string(yaml_emitter_t *e, const char *text)
{
    struct config_node as = {.kind = CONFIG_IS_SCALAR, .plain = 1, .text = text};
    int b;
    double x;
    int quote = config_is_null(&as) || config_scalar_bool(&as, &b) || config_scalar_float(&as, &x) ||
                strspn(text, "0123456789_+-.:eExXabcdefABCDEF") == strlen(text) || !strcasecmp(text, "y") || !strcasecmp(text, "n");
    return emit_text(e, text, quote);
}

static int emit_json(yaml_emitter_t *e, const json_t *v)
{
    yaml_event_t ev;
    char number[40];
    const char *key;
    json_t *child;
    size_t i;
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        if (!yaml_mapping_start_event_initialize(&ev, NULL, NULL, 1, YAML_BLOCK_MAPPING_STYLE) || !yaml_emitter_emit(e, &ev))
            return 0;
        json_object_foreach((json_t *)(uintptr_t)v, key, child)
        {
            if (!emit_string(e, key) || !emit_json(e, child))
                return 0;
        }
        return yaml_mapping_end_event_initialize(&ev) && yaml_emitter_emit(e, &ev);
    case JSON_ARRAY: {
        int flow = 1; /* lists of plain values on one line */
        json_array_foreach(v, i, child)
        {
            flow = flow && !json_is_object(child) && !json_is_array(child);
        }
        if (!yaml_sequence_start_event_initialize(&ev, NULL, NULL, 1,
                                                  flow ? YAML_FLOW_SEQUENCE_STYLE : YAML_BLOCK_SEQUENCE_STYLE) ||
            !yaml_emitter_emit(e, &ev))
            return 0;
        json_array_foreach(v, i, child)
        {
            if (!emit_json(e, child))
                return 0;
        }
        return yaml_sequence_end_event_initialize(&ev) && yaml_emitter_emit(e, &ev);
    }
    case JSON_STRING:
        return emit_string(e, json_string_value(v));
    case JSON_INTEGER:
        snprintf(number, sizeof number, "%lld", (long long)json_integer_value(v));
        return emit_text(e, number, 0);
    case JSON_REAL: {
        double x = json_real_value(v);
        for (int digits = 6; digits <= 17; digits++) { /* the shortest that reads back the same */
            snprintf(number, sizeof number, "%.*g", digits, x);
            if (strtod(number, NULL) == x)
                break;
        }
        if (!strpbrk(number, ".eE")) /* stays a real */
            strcat(number, ".0");
        return emit_text(e, number, 0);
    }
    case JSON_TRUE:
    case JSON_FALSE:
        return emit_text(e, json_is_true(v) ? "true" : "false", 0);
    default:
        return emit_text(e, "null", 0);
    }
}

char *config_json_to_yaml(const json_t *root)
{
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    if (!f)
        return NULL;
    yaml_emitter_t e;
    yaml_event_t ev;
    int good = yaml_emitter_initialize(&e);
    if (good) {
        yaml_emitter_set_output_file(&e, f);
        yaml_emitter_set_unicode(&e, 1);
        yaml_emitter_set_width(&e, 120);
        good = yaml_stream_start_event_initialize(&ev, YAML_UTF8_ENCODING) && yaml_emitter_emit(&e, &ev) &&
               yaml_document_start_event_initialize(&ev, NULL, NULL, NULL, 1) && yaml_emitter_emit(&e, &ev) &&
               emit_json(&e, root) && yaml_document_end_event_initialize(&ev, 1) && yaml_emitter_emit(&e, &ev) &&
               yaml_stream_end_event_initialize(&ev) && yaml_emitter_emit(&e, &ev);
        yaml_emitter_delete(&e);
    }
    fclose(f);
    if (!good) {
        free(text);
        text = NULL;
    }
    return text;
}

/* Edits between two words: insert, delete, replace, or swap of neighbours (optimal string alignment). */
static int edit_distance(const char *a, const char *b, int limit)
{
    enum { LONGEST = 64 };
    int n = (int)strlen(a), m = (int)strlen(b), row[3][LONGEST + 1];
    if (n > LONGEST || m > LONGEST || abs(n - m) > limit)
        return limit + 1;
    for (int j = 0; j <= m; j++)
        row[0][j] = j;
    for (int i = 1; i <= n; i++) {
        int *now = row[i % 3], *up = row[(i + 2) % 3], *up2 = row[(i + 1) % 3];
        now[0] = i;
        for (int j = 1; j <= m; j++) {
            int best = up[j - 1] + (a[i - 1] != b[j - 1]);
            best = up[j] + 1 < best ? up[j] + 1 : best;
            best = now[j - 1] + 1 < best ? now[j - 1] + 1 : best;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && up2[j - 2] + 1 < best)
                best = up2[j - 2] + 1;
            now[j] = best;
        }
    }
    return row[n % 3][m];
}

const char *config_nearest(const char *word, const char *const *candidates, int n)
{
    int length = (int)strlen(word), limit = length < 3 ? 1 : length < 6 ? 2 : length / 3 + 1, best = limit + 1;
    const char *nearest = NULL;
    for (int i = 0; i < n; i++) {
        int d = edit_distance(word, candidates[i], limit);
        if (d < best) {
            best = d;
            nearest = candidates[i];
        }
    }
    for (int i = 0; i < n && !nearest; i++) { /* a word cut short or drawn long */
        size_t have = strlen(candidates[i]), shorter = have < (size_t)length ? have : (size_t)length;
        if (shorter >= 3 && !strncmp(word, candidates[i], shorter))
            nearest = candidates[i];
    }
    return nearest;
}
