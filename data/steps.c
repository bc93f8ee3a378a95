/* Reads the "normalizer" and "pre_tokenizer" of a tokenizer.json into flat lists of steps. Sequences are flattened; a component
 * type that is not in the tables below is refused by its name. */
#include <stdlib.h>
#include <string.h>
#include "tokenizer.h"

enum { DEPTH_MAX = 8 };

/* GPT-2's own split, which ByteLevel applies when use_regex is true. */
static const char gpt2_pattern[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

static enum code step_new(struct steps *s, enum step_kind kind, const char *where, struct step **out)
{
    if (s->n == STEPS_MAX)
        return fail(ERR_UNSUPPORTED, "%s: more than %d steps", where, STEPS_MAX);
    *out = &s->v[s->n++];
    **out = (struct step){.kind = kind};
    return OK;
}

static enum code step_text(struct step *s, const char *text, size_t n)
{
    s->text = malloc(n + 1);
    if (s->text == NULL)
        return fail(ERR_MEMORY, "no memory for %zu bytes of a tokenizer", n);
    memcpy(s->text, text, n);
    s->text[n] = 0;
    s->text_n = n;
    return OK;
}

enum code step_pattern_read(struct pattern **p, const json_t *node, const char *where)
{
    const json_t *literal = json_object_get(node, "String"), *regex = json_object_get(node, "Regex");
    if (json_is_string(node))
        literal = node;
    if (json_is_string(literal))
        return pattern_literal(p, json_string_value(literal), json_string_length(literal));
    if (json_is_string(regex))
        return pattern_regex(p, json_string_value(regex), json_string_length(regex), where);
    return fail(ERR_INPUT, "%s: expected \"pattern\": {\"String\" or \"Regex\": text}", where);
}

static enum code component_type(const json_t *node, const char *where, const char **type)
{
    if (!json_is_object(node))
        return fail(ERR_INPUT, "%s: expected an object with a \"type\"", where);
    return json_need_str(node, where, "type", type);
}

/* A Sequence calls `read` for each element of its list. */
static enum code read_list(struct steps *s, const json_t *node, const char *key, const char *where, int depth,
                           enum code (*read)(struct steps *, const json_t *, const char *, int))
{
    const json_t *list = json_object_get(node, key);
    if (!json_is_array(list))
        return fail(ERR_INPUT, "%s: a Sequence needs the array \"%s\"", where, key);
    if (depth >= DEPTH_MAX)
        return fail(ERR_UNSUPPORTED, "%s: Sequences nested more than %d deep", where, DEPTH_MAX);
    for (size_t i = 0; i < json_array_size(list); i++)
        TRY(read(s, json_array_get(list, i), where, depth + 1));
    return OK;
}

/* ---- normalizers ---- */

static enum code read_normalizer(struct steps *s, const json_t *node, const char *where, int depth)
{
    static const char *const forms[] = {"NFC", "NFD", "NFKC", "NFKD"};
    const char *type = NULL, *text = NULL;
    struct step *step = NULL;
    TRY(component_type(node, where, &type));
    if (strcmp(type, "Sequence") == 0)
        return read_list(s, node, "normalizers", where, depth, read_normalizer);
    for (int i = 0; i < 4; i++)
        if (strcmp(type, forms[i]) == 0) {
            TRY(step_new(s, STEP_UNICODE, where, &step));
            step->a = i; /* enum unicode_form has this order */
            return OK;
        }
    if (strcmp(type, "Prepend") == 0) {
        TRY(json_need_str(node, where, "prepend", &text));
        TRY(step_new(s, STEP_PREPEND, where, &step));
        return step_text(step, text, strlen(text));
    }
    if (strcmp(type, "Replace") == 0) {
        TRY(json_need_str(node, where, "content", &text));
        TRY(step_new(s, STEP_REPLACE, where, &step));
        TRY(step_text(step, text, strlen(text)));
        return step_pattern_read(&step->pattern, json_object_get(node, "pattern"), where);
    }
    if (strcmp(type, "Strip") == 0) {
        TRY(step_new(s, STEP_STRIP, where, &step));
        TRY(json_want_bool(node, where, "strip_left", &step->a));
        return json_want_bool(node, where, "strip_right", &step->b);
    }
    if (strcmp(type, "ByteLevel") == 0)
        return step_new(s, STEP_BYTE_MAP, where, &step);
    return fail(ERR_UNSUPPORTED, "%s: normalizer %s is not supported", where, type);
}

/* ---- pre-tokenizers ---- */

/* "behavior", in the order of enum split_behavior; absent: `otherwise`, or an error when that is NULL. */
static enum code read_behavior(const json_t *node, const char *where, const char *otherwise, enum split_behavior *behavior)
{
    static const char *const names[] = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    const char *name = otherwise;
    if (otherwise == NULL)
        TRY(json_need_str(node, where, "behavior", &name));
    else
        TRY(json_want_str(node, where, "behavior", &name));
    for (int k = 0; k < 5; k++)
        if (strcmp(name, names[k]) == 0)
            return *behavior = (enum split_behavior)k, OK;
    return fail(ERR_UNSUPPORTED, "%s: split behavior %s is not supported", where, name);
}

static enum code read_split(struct steps *s, const json_t *node, const char *where)
{
    enum split_behavior behavior;
    struct step *step = NULL;
    TRY(read_behavior(node, where, NULL, &behavior));
    TRY(step_new(s, STEP_SPLIT, where, &step));
    step->a = (int)behavior;
    TRY(json_want_bool(node, where, "invert", &step->b));
    return step_pattern_read(&step->pattern, json_object_get(node, "pattern"), where);
}

static enum code split_by_class(struct steps *s, const char *where, enum char_class class, enum split_behavior behavior)
{
    struct step *step = NULL;
    TRY(step_new(s, STEP_SPLIT, where, &step));
    step->class = class;
    step->a = (int)behavior;
    return OK;
}

static enum code split_by_regex(struct steps *s, const char *where, const char *regex, enum split_behavior behavior, int invert)
{
    struct step *step = NULL;
    TRY(step_new(s, STEP_SPLIT, where, &step));
    step->a = (int)behavior;
    step->b = invert;
    return pattern_regex(&step->pattern, regex, strlen(regex), where);
}

static enum code read_byte_level(struct steps *s, const json_t *node, const char *where)
{
    int prefix = 1, regex = 1;
    struct step *step = NULL;
    TRY(json_want_bool(node, where, "add_prefix_space", &prefix));
    TRY(json_want_bool(node, where, "use_regex", &regex));
    if (prefix)
        TRY(step_new(s, STEP_PREFIX_SPACE, where, &step));
    if (regex)
        TRY(split_by_regex(s, where, gpt2_pattern, SPLIT_ISOLATED, 0));
    return step_new(s, STEP_BYTE_MAP, where, &step);
}

/* prepend_scheme came after add_prefix_space and wins over it. */
static enum code read_metaspace(struct steps *s, const json_t *node, const char *where)
{
    const char *replacement = "\xE2\x96\x81", *scheme = NULL;
    int prefix = 1, split = 1;
    struct step *step = NULL;
    TRY(json_want_str(node, where, "replacement", &replacement));
    TRY(json_want_str(node, where, "prepend_scheme", &scheme));
    TRY(json_want_bool(node, where, "add_prefix_space", &prefix));
    TRY(json_want_bool(node, where, "split", &split));
    if (scheme == NULL)
        scheme = prefix ? "always" : "never";
    TRY(step_new(s, STEP_METASPACE, where, &step));
    step->a = strcmp(scheme, "always") == 0 ? PREPEND_ALWAYS : strcmp(scheme, "first") == 0 ? PREPEND_FIRST : PREPEND_NEVER;
    if (step->a == PREPEND_NEVER && strcmp(scheme, "never") != 0)
        return fail(ERR_INPUT, "%s: prepend_scheme \"%s\" is none of always, first, never", where, scheme);
    step->b = split;
    if (replacement[0] == 0)
        return fail(ERR_INPUT, "%s: the replacement of a Metaspace is empty", where);
    TRY(step_text(step, replacement, strlen(replacement)));
    return pattern_literal(&step->pattern, replacement, strlen(replacement));
}

static enum code read_pretokenizer(struct steps *s, const json_t *node, const char *where, int depth)
{
    const char *type = NULL;
    TRY(component_type(node, where, &type));
    if (strcmp(type, "Sequence") == 0)
        return read_list(s, node, "pretokenizers", where, depth, read_pretokenizer);
    if (strcmp(type, "ByteLevel") == 0)
        return read_byte_level(s, node, where);
    if (strcmp(type, "Split") == 0)
        return read_split(s, node, where);
    if (strcmp(type, "Metaspace") == 0)
        return read_metaspace(s, node, where);
    if (strcmp(type, "Digits") == 0) {
        int each = 0;
        TRY(json_want_bool(node, where, "individual_digits", &each));
        return split_by_class(s, where, CLASS_NUMERIC, each ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS);
    }
    if (strcmp(type, "Punctuation") == 0) {
        enum split_behavior behavior;
        TRY(read_behavior(node, where, "Isolated", &behavior));
        return split_by_class(s, where, CLASS_PUNCTUATION, behavior);
    }
    if (strcmp(type, "WhitespaceSplit") == 0)
        return split_by_class(s, where, CLASS_SPACE, SPLIT_REMOVED);
    if (strcmp(type, "Whitespace") == 0) /* run by another engine there, whose \w holds the joiners too */
        return split_by_regex(s, where, "[\\w\\x{200c}\\x{200d}]+|[^\\w\\s\\x{200c}\\x{200d}]+", SPLIT_REMOVED, 1);
    return fail(ERR_UNSUPPORTED, "%s: pre-tokenizer %s is not supported", where, type);
}

/* ---- doors ---- */

static enum code read_optional(struct steps *s, const json_t *node, const char *where, const char *key,
                               enum code (*read)(struct steps *, const json_t *, const char *, int))
{
    char here[512];
    snprintf(here, sizeof here, "%.400s: %s", where, key);
    return node == NULL || json_is_null(node) ? OK : read(s, node, here, 0);
}

enum code steps_read_normalizer(struct steps *s, const json_t *node, const char *where)
{
    return read_optional(s, node, where, "normalizer", read_normalizer);
}

enum code steps_read_pretokenizer(struct steps *s, const json_t *node, const char *where)
{
    return read_optional(s, node, where, "pre_tokenizer", read_pretokenizer);
}

void steps_free(struct steps *s)
{
    for (int i = 0; i < s->n; i++) {
        pattern_free(s->v[i].pattern);
        free(s->v[i].text);
    }
    s->n = 0;
}
