/* libyaml's events to our tree. The limits are applied while events arrive, so that a bomb is refused before it is held:
 * libyaml alone takes quadratic time over deep nesting and over %TAG lines (47 s for 1 MiB of them). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <yaml.h>

#include "base/config_private.h"
#include "base/io.h"

enum { MAX_BYTES = 1 << 20, MAX_DEPTH = 32, MAX_KEYS = 1024, MAX_ALL_KEYS = 8192, MAX_NODES = 1 << 16, MAX_TAG_LINES = 1000 };

struct config_pool { struct config_pool *next; };

void *config_alloc(const struct config *c, size_t bytes)
{
    struct config_pool *block = calloc(1, sizeof(struct config_pool) + 8 + bytes);
    if (!block) {
        fail(ERR_MEMORY, "%s: no memory for the config", c->where ? c->where : "config");
        return NULL;
    }
    block->next = c->pool->next;
    c->pool->next = block;
    return (char *)block + sizeof(struct config_pool) + 8;
}

static char *copy_text(const struct config *c, const char *text, size_t n)
{
    char *p = config_alloc(c, n + 1);
    if (p)
        memcpy(p, text, n);
    return p;
}

struct reader {
    const struct config *c;
    const char *where;
    int marks, nodes, keys;
    yaml_parser_t parser;
};

static enum code refuse(const struct reader *r, yaml_mark_t at, const char *why)
{
    return fail(ERR_USAGE, "%s: %s", config_mark(r->where, r->marks ? (int)at.line + 1 : 0, (int)at.column + 1), why);
}

static enum code next_event(struct reader *r, yaml_event_t *e)
{
    if (yaml_parser_parse(&r->parser, e))
        return OK;
    memset(e, 0, sizeof *e);
    if (r->parser.error == YAML_MEMORY_ERROR)
        return fail(ERR_MEMORY, "%s: no memory to parse it", r->where);
    if (r->parser.error == YAML_READER_ERROR)
        return fail(ERR_USAGE, "%s: not text: %s at byte %zu", r->where, r->parser.problem, r->parser.problem_offset);
    char why[256];
    snprintf(why, sizeof why, "not valid YAML: %s", r->parser.problem ? r->parser.problem : "unknown problem");
    return refuse(r, r->parser.problem_mark, why);
}

static struct config_node *node_new(struct reader *r, enum config_kind kind, const yaml_event_t *e)
{
    struct config_node *node = config_alloc(r->c, sizeof *node);
    if (node) {
        node->kind = kind;
        node->where = r->where;
        node->line = r->marks ? (int)e->start_mark.line + 1 : 0;
        node->column = (int)e->start_mark.column + 1;
    }
    return node;
}

/* Room for one more pair or item; old arrays stay in the pool. */
static enum code node_grow(const struct config *c, struct config_node *node)
{
    if (node->n < node->capacity)
        return OK;
    int capacity = node->capacity ? 2 * node->capacity : 8;
    size_t each = node->kind == CONFIG_IS_MAPPING ? sizeof *node->pairs : sizeof *node->items;
    void *larger = config_alloc(c, (size_t)capacity * each);
    if (!larger)
        return ERR_MEMORY;
    if (node->kind == CONFIG_IS_MAPPING) {
        if (node->n)
            memcpy(larger, node->pairs, (size_t)node->n * each);
        node->pairs = larger;
    } else {
        if (node->n)
            memcpy(larger, node->items, (size_t)node->n * each);
        node->items = larger;
    }
    node->capacity = capacity;
    return OK;
}

static enum code refuse_extras(struct reader *r, const yaml_event_t *e, const void *anchor, const void *tag)
{
    if (anchor)
        return refuse(r, e->start_mark, "anchors (&name) are not used in configs; write the value out");
    if (tag)
        return refuse(r, e->start_mark, "tags (!name) are not used in configs; write the plain value");
    return OK;
}

static enum code read_scalar(struct reader *r, const yaml_event_t *e, struct config_node **out)
{
    TRY(refuse_extras(r, e, e->data.scalar.anchor, e->data.scalar.tag));
    const char *text = (const char *)e->data.scalar.value;
    if (strlen(text) != e->data.scalar.length)
        return refuse(r, e->start_mark, "a text holds a NUL character");
    struct config_node *node = node_new(r, CONFIG_IS_SCALAR, e);
    if (!node || !(node->text = copy_text(r->c, text, e->data.scalar.length)))
        return ERR_MEMORY;
    node->plain = e->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
    *out = node;
    return OK;
}

static enum code add_key(struct reader *r, struct config_node *map, const yaml_event_t *e, struct config_pair **out)
{
    if (e->type != YAML_SCALAR_EVENT)
        return refuse(r, e->start_mark, "a key must be a plain word");
    struct config_node *key;
    TRY(read_scalar(r, e, &key));
    if (!*key->text)
        return refuse(r, e->start_mark, "a key is empty");
    if (key->plain && !strcmp(key->text, "<<"))
        return refuse(r, e->start_mark, "merge keys (<<) are not used in configs; write the keys out");
    if (map->n >= MAX_KEYS)
        return refuse(r, e->start_mark, "more than 1024 keys in one mapping");
    if (++r->keys > MAX_ALL_KEYS)
        return refuse(r, e->start_mark, "more than 8192 keys in one config");
    for (int i = 0; i < map->n; i++)
        if (!strcmp(map->pairs[i].key, key->text))
            return fail(ERR_USAGE, "%s: '%.80s' is given twice, first at line %d; keep one",
                        config_mark(key->where, key->line, key->column), key->text, map->pairs[i].line);
    TRY(node_grow(r->c, map));
    struct config_pair pair = {key->text, key->where, key->line, key->column, NULL, 0};
    *out = &map->pairs[map->n];
    **out = pair;
    return OK;
}

static enum code read_node(struct reader *r, const yaml_event_t *e, int depth, struct config_node **out);

static enum code read_mapping(struct reader *r, int depth, struct config_node *map)
{
    for (;;) {
        yaml_event_t e;
        struct config_pair *pair = NULL;
        TRY(next_event(r, &e));
        int last = e.type == YAML_MAPPING_END_EVENT;
        enum code c = last ? OK : add_key(r, map, &e, &pair);
        yaml_event_delete(&e);
        if (last || c != OK)
            return c;
        TRY(next_event(r, &e));
        c = read_node(r, &e, depth, &pair->value);
        yaml_event_delete(&e);
        TRY(c);
        map->n++;
    }
}

static enum code read_sequence(struct reader *r, int depth, struct config_node *list)
{
    for (;;) {
        yaml_event_t e;
        TRY(next_event(r, &e));
        int last = e.type == YAML_SEQUENCE_END_EVENT;
        enum code c = last ? OK : node_grow(r->c, list);
        if (!last && c == OK)
            c = read_node(r, &e, depth, &list->items[list->n]);
        yaml_event_delete(&e);
        if (last || c != OK)
            return c;
        list->n++;
    }
}

static enum code read_node(struct reader *r, const yaml_event_t *e, int depth, struct config_node **out)
{
    if (++r->nodes > MAX_NODES)
        return refuse(r, e->start_mark, "more than 65536 values in one config");
    if (e->type == YAML_ALIAS_EVENT)
        return refuse(r, e->start_mark, "aliases (*name) are not used in configs; write the value out");
    if (e->type == YAML_SCALAR_EVENT)
        return read_scalar(r, e, out);
    CHECK(e->type == YAML_MAPPING_START_EVENT || e->type == YAML_SEQUENCE_START_EVENT);
    int map = e->type == YAML_MAPPING_START_EVENT;
    if (depth >= MAX_DEPTH)
        return refuse(r, e->start_mark, "nested deeper than 32 levels");
    if (map)
        TRY(refuse_extras(r, e, e->data.mapping_start.anchor, e->data.mapping_start.tag));
    else
        TRY(refuse_extras(r, e, e->data.sequence_start.anchor, e->data.sequence_start.tag));
    struct config_node *node = node_new(r, map ? CONFIG_IS_MAPPING : CONFIG_IS_SEQUENCE, e);
    if (!node)
        return ERR_MEMORY;
    *out = node;
    return map ? read_mapping(r, depth + 1, node) : read_sequence(r, depth + 1, node);
}

/* %TAG lines never arrive as events: libyaml compares each with all before it, and reads them all before the first event. Counted
 * as bytes, since it takes them in UTF-16 and after any kind of line break. */
static enum code refuse_tag_lines(const char *bytes, size_t n, const char *where)
{
    int found = 0;
    const char *end = bytes + n;
    for (const char *p = bytes; n && (p = memchr(p, '%', (size_t)(end - p))); p++) {
        found += end - p > 2 && (p[1] == 'T' || (!p[1] && p[2] == 'T'));
        if (found > MAX_TAG_LINES)
            return fail(ERR_USAGE, "%s: more than %d %%TAG directives; a config needs none", where, MAX_TAG_LINES);
    }
    return OK;
}

/* STREAM-START (DOCUMENT-START node DOCUMENT-END)? STREAM-END */
static enum code read_stream(struct reader *r, struct config_node **out)
{
    *out = NULL;
    for (;;) {
        yaml_event_t e;
        TRY(next_event(r, &e));
        enum code c = OK;
        yaml_event_type_t type = e.type;
        if (type == YAML_DOCUMENT_START_EVENT) {
            if (*out)
                c = refuse(r, e.start_mark, "a second document starts here; a config is one document");
        } else if (type != YAML_STREAM_START_EVENT && type != YAML_DOCUMENT_END_EVENT && type != YAML_STREAM_END_EVENT) {
            c = read_node(r, &e, 0, out);
        }
        yaml_event_delete(&e);
        if (c != OK || type == YAML_STREAM_END_EVENT)
            return c;
    }
}

enum code config_parse_text(const struct config *c, const char *bytes, size_t n, const char *where, int line_marks,
                            struct config_node **out)
{
    struct reader r = {.c = c, .where = copy_text(c, where, strlen(where)), .marks = line_marks};
    *out = NULL;
    if (!r.where)
        return ERR_MEMORY;
    if (n > MAX_BYTES)
        return fail(ERR_USAGE, "%s: %zu bytes; a config has at most 1 MiB", where, n);
    TRY(refuse_tag_lines(bytes, n, where));
    if (!yaml_parser_initialize(&r.parser))
        return fail(ERR_MEMORY, "%s: no memory to parse it", where);
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)bytes, n);
    enum code code = read_stream(&r, out);
    yaml_parser_delete(&r.parser);
    return code;
}

static enum code config_new(struct config **out)
{
    struct config *c = calloc(1, sizeof *c);
    if (c)
        c->pool = calloc(1, sizeof *c->pool);
    if (!c || !c->pool) {
        free(c);
        return fail(ERR_MEMORY, "no memory for the config");
    }
    *out = c;
    return OK;
}

void config_free(struct config *c)
{
    if (!c)
        return;
    for (struct config_pool *p = c->pool, *next; p; p = next) {
        next = p->next;
        free(p);
    }
    free(c);
}

static enum code parse_root(struct config *c, const char *bytes, size_t n, const char *where)
{
    if (!(c->where = copy_text(c, where, strlen(where))))
        return ERR_MEMORY;
    TRY(config_parse_text(c, bytes, n, where, 1, &c->root));
    if (!c->root || config_is_null(c->root)) {
        if (!(c->root = config_alloc(c, sizeof *c->root)))
            return ERR_MEMORY;
        c->root->kind = CONFIG_IS_MAPPING;
        c->root->where = c->where;
        c->root->line = c->root->column = 1;
    }
    if (c->root->kind != CONFIG_IS_MAPPING)
        return fail(ERR_USAGE, "%s: expected 'key: value' lines at the top",
                    config_mark(c->root->where, c->root->line, c->root->column));
    return OK;
}

enum code config_parse(struct config **out, const char *bytes, size_t n, const char *where)
{
    *out = NULL;
    struct config *c = NULL;
    TRY(config_new(&c));
    enum code code = parse_root(c, bytes, n, where);
    if (code != OK)
        config_free(c);
    else
        *out = c;
    return code;
}

/* Puts one "a.b=value" into the tree, making the mappings on its way. */
static enum code apply_override(struct config *c, const char *text)
{
    const char *equals = strchr(text, '='), *where = "command line";
    size_t key_n = equals ? (size_t)(equals - text) : 0;
    char *path = copy_text(c, text, key_n);
    if (!path)
        return ERR_MEMORY;
    if (!key_n || path[0] == '.' || path[key_n - 1] == '.' || strstr(path, ".."))
        return fail(ERR_USAGE, "command line: '%.80s': expected key.sub=value", text);
    struct config_node *value;
    enum code code = config_parse_text(c, equals + 1, strlen(equals + 1), where, 0, &value);
    if (code != OK)
        return fail_in(code, "%.*s", (int)key_n, text);
    if (!value) {
        if (!(value = config_alloc(c, sizeof *value)))
            return ERR_MEMORY;
        value->plain = 1;
        value->text = "";
        value->where = where;
    }
    struct config_node *map = c->root;
    int depth = 0;
    for (char *part = path; part;) {
        char *dot = strchr(part, '.');
        if (dot)
            *dot = 0;
        if (++depth > MAX_DEPTH)
            return fail(ERR_USAGE, "command line: '%.80s': nested deeper than 32 levels", text);
        struct config_pair *pair = NULL;
        for (int i = 0; i < map->n && !pair; i++)
            if (!strcmp(map->pairs[i].key, part))
                pair = &map->pairs[i];
        if (!pair) {
            TRY(node_grow(c, map));
            pair = &map->pairs[map->n++];
            struct config_pair fresh = {part, where, 0, 0, NULL, 0};
            *pair = fresh;
        }
        if (!dot) {
            pair->where = where;
            pair->line = pair->column = 0;
            pair->value = value;
            return OK;
        }
        if (!pair->value || config_is_null(pair->value)) {
            if (!(pair->value = config_alloc(c, sizeof *pair->value)))
                return ERR_MEMORY;
            pair->value->kind = CONFIG_IS_MAPPING;
            pair->value->where = where;
        }
        if (pair->value->kind != CONFIG_IS_MAPPING)
            return fail(ERR_USAGE, "command line: '%.80s': '%s' is a single value at %s, not a mapping", text, part,
                        config_mark(pair->where, pair->line, pair->column));
        map = pair->value;
        part = dot + 1;
    }
    return OK;
}

enum code config_load(struct config **out, const char *path, int n_overrides, char **overrides)
{
    *out = NULL;
    struct stat st;
    if (stat(path, &st) != 0 && (errno == ENOENT || errno == ENOTDIR))
        return fail(ERR_USAGE, "%s: no such config file", path);
    char *bytes;
    size_t n;
    enum code code = io_read_all(path, MAX_BYTES, &bytes, &n);
    if (code == ERR_INPUT) /* a directory, or too large: the wrong argument */
        code = ERR_USAGE;
    TRY(code);
    struct config *c = NULL;
    code = config_parse(&c, bytes, n, path);
    free(bytes);
    TRY(code);
    for (int i = 0; i < n_overrides && code == OK; i++)
        code = apply_override(c, overrides[i]);
    if (code != OK)
        config_free(c);
    else
        *out = c;
    return code;
}
