/* Literal strings and regular expressions, found in text. Expressions run in PCRE2 with UTF and Unicode properties, by its JIT
 * where there is one. Limits: 16 KiB of pattern, 1,000,000 match steps, 16 MiB of heap and 4 MiB of JIT stack for one
 * match, so that a hostile pattern is an error and not a hang. Text given to pattern_find must be valid UTF-8. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>
#include "pattern.h"

enum { PATTERN_MAX = 16384, MATCH_STEPS = 1000000, MATCH_DEPTH = 100000, MATCH_HEAP_KIB = 16384, JIT_STACK = 4 << 20 };

struct pattern {
    pcre2_code *code; /* NULL: a literal */
    int jit;
    char *literal;
    size_t n;
    char *where;
};

struct pattern_scratch {
    pcre2_match_data *match;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
};

static enum code pattern_new(struct pattern **out, const char *s, size_t n, const char *where)
{
    struct pattern *p = calloc(1, sizeof *p);
    *out = p;
    if (p == NULL)
        return fail(ERR_MEMORY, "no memory for a pattern");
    p->literal = malloc(n + 1);
    p->where = strdup(where);
    if (p->literal == NULL || p->where == NULL)
        return fail(ERR_MEMORY, "no memory for a pattern");
    memcpy(p->literal, s, n);
    p->literal[n] = 0;
    p->n = n;
    return OK;
}

enum code pattern_literal(struct pattern **p, const char *s, size_t n) { return pattern_new(p, s, n, ""); }

static enum code pattern_compile(struct pattern *p, const struct buffer *text)
{
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (context == NULL)
        return fail(ERR_MEMORY, "no memory for a pattern");
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    int error;
    PCRE2_SIZE at;
    p->code = pcre2_compile((PCRE2_SPTR)text->p, text->n, PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &at,
                            context);
    pcre2_compile_context_free(context);
    if (p->code == NULL) {
        PCRE2_UCHAR message[160];
        pcre2_get_error_message(error, message, sizeof message);
        return fail(ERR_UNSUPPORTED, "%s: the pattern \"%.200s\" cannot be used: %s", p->where, p->literal, (char *)message);
    }
    p->jit = pcre2_jit_compile(p->code, PCRE2_JIT_COMPLETE) == 0;
    return OK;
}

enum code pattern_regex(struct pattern **p, const char *s, size_t n, const char *where)
{
    *p = NULL;
    if (n > PATTERN_MAX)
        return fail(ERR_UNSUPPORTED, "%s: a pattern of %zu bytes is longer than %d", where, n, PATTERN_MAX);
    TRY(pattern_new(p, s, n, where));
    struct buffer text = {0};
    enum code c = buffer_need(&text, 1);
    if (c == OK)
        c = pattern_translate(s, n, where, &text);
    if (c == OK)
        c = pattern_compile(*p, &text);
    free(text.p);
    return c;
}

void pattern_free(struct pattern *p)
{
    if (p == NULL)
        return;
    pcre2_code_free(p->code);
    free(p->literal);
    free(p->where);
    free(p);
}

enum code pattern_scratch_new(struct pattern_scratch **out)
{
    struct pattern_scratch *s = calloc(1, sizeof *s);
    *out = s;
    if (s != NULL) {
        s->match = pcre2_match_data_create(1, NULL);
        s->context = pcre2_match_context_create(NULL);
        s->stack = pcre2_jit_stack_create(32 << 10, JIT_STACK, NULL); /* NULL without JIT support: then it is not used */
    }
    if (s == NULL || s->match == NULL || s->context == NULL)
        return fail(ERR_MEMORY, "no memory for matching patterns");
    pcre2_set_match_limit(s->context, MATCH_STEPS);
    pcre2_set_depth_limit(s->context, MATCH_DEPTH);
    pcre2_set_heap_limit(s->context, MATCH_HEAP_KIB);
    if (s->stack != NULL)
        pcre2_jit_stack_assign(s->context, NULL, s->stack);
    return OK;
}

void pattern_scratch_free(struct pattern_scratch *s)
{
    if (s == NULL)
        return;
    pcre2_match_data_free(s->match);
    pcre2_match_context_free(s->context);
    if (s->stack != NULL)
        pcre2_jit_stack_free(s->stack);
    free(s);
}

enum code pattern_find(const struct pattern *p, struct pattern_scratch *s, const char *text, size_t n, size_t from, int *found,
                       size_t *start, size_t *end)
{
    *found = 0;
    if (p->code == NULL) {
        const char *hit = p->n > 0 && p->n <= n - from ? memmem(text + from, n - from, p->literal, p->n) : NULL;
        *found = hit != NULL;
        *start = hit != NULL ? (size_t)(hit - text) : n;
        *end = *start + p->n;
        return OK;
    }
    int rc = p->jit ? pcre2_jit_match(p->code, (PCRE2_SPTR)text, n, from, PCRE2_NO_UTF_CHECK, s->match, s->context)
                    : pcre2_match(p->code, (PCRE2_SPTR)text, n, from, PCRE2_NO_UTF_CHECK, s->match, s->context);
    if (rc == PCRE2_ERROR_NOMATCH)
        return OK;
    if (rc < 0) {
        PCRE2_UCHAR message[160];
        pcre2_get_error_message(rc, message, sizeof message);
        return fail(ERR_INPUT, "%s: the pattern \"%.200s\" fails on this text: %s", p->where, p->literal, (char *)message);
    }
    PCRE2_SIZE *ends = pcre2_get_ovector_pointer(s->match);
    *found = 1;
    *start = ends[0];
    *end = ends[1] >= ends[0] ? ends[1] : ends[0];
    return OK;
}
