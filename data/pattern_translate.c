/* Patterns in tokenizer.json are written for Oniguruma (Ruby syntax); PCRE2 runs them. What the two read differently is
 * rewritten here: \s \w \h and their negations (Unicode White_Space and Word here, other sets in PCRE2), \uHHHH, {,n}, and
 * X{n,m}+ (possessive for PCRE2, a repeated greedy interval for Oniguruma), [a[bc]] (the union [abc]). What cannot be rewritten is
 * refused: character class intersection (&&), a nested class that is negated, (?m), verbs. ^ and $ are line anchors in both, by PCRE2_MULTILINE. */
#include <ctype.h>
#include <string.h>
#include "pattern.h"

#define SPACE "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define WORD "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"
#define HEX "0-9A-Fa-f"
enum { NEST_MAX = 64 };

struct reader {
    const char *s;
    size_t n, i;
    struct buffer *out;
    const char *where;
    size_t atom;             /* where the last complete atom starts in out */
    size_t groups[NEST_MAX]; /* where each open group starts in out */
    int depth;
};

static enum code put(struct reader *r, const char *s) { return buffer_add(r->out, s, strlen(s)); }

static enum code refuse(const struct reader *r, const char *what)
{
    return fail(ERR_UNSUPPORTED, "%s: the pattern \"%.*s\" uses %s, which is not supported", r->where, r->n > 200 ? 200 : (int)r->n,
                r->s, what);
}

/* At a backslash. */
static enum code translate_escape(struct reader *r, int in_class)
{
    char c = r->i + 1 < r->n ? r->s[r->i + 1] : 0;
    const char *set = c == 's' || c == 'S' ? SPACE : c == 'w' || c == 'W' ? WORD : c == 'h' || c == 'H' ? HEX : NULL;
    if (c == 0)
        return refuse(r, "a backslash at its end");
    if (set != NULL && in_class && !islower((unsigned char)c)) {
        if (c == 'H')
            return refuse(r, "\\H inside a character class");
        return r->i += 2, put(r, c == 'S' ? "\\S" : "\\W"); /* PCRE2's own sets: apart on U+180E and a few marks */
    }
    if (set != NULL) {
        r->i += 2;
        if (in_class)
            return put(r, set);
        TRY(put(r, islower((unsigned char)c) ? "[" : "[^"));
        TRY(put(r, set));
        return put(r, "]");
    }
    if (c == 'u') {
        char hex[16] = "\\x{";
        for (size_t k = 0; k < 4; k++) {
            if (r->i + 2 + k >= r->n || !isxdigit((unsigned char)r->s[r->i + 2 + k]))
                return refuse(r, "\\u without four digits");
            hex[3 + k] = r->s[r->i + 2 + k];
        }
        hex[7] = '}';
        r->i += 6;
        return put(r, hex);
    }
    if (strchr("CGKR", c) != NULL && !in_class)
        return refuse(r, "\\C, \\G, \\K or \\R");
    size_t length = 2;
    if ((c == 'p' || c == 'P' || c == 'x') && r->i + 2 < r->n && r->s[r->i + 2] == '{') {
        const char *end = memchr(r->s + r->i, '}', r->n - r->i);
        if (end == NULL)
            return refuse(r, "an unclosed {");
        length = (size_t)(end - (r->s + r->i)) + 1;
    }
    TRY(buffer_add(r->out, r->s + r->i, length));
    r->i += length;
    return OK;
}

static enum code translate_posix(struct reader *r)
{
    const char *end = memmem(r->s + r->i + 2, r->n - r->i - 2, ":]", 2);
    if (end == NULL)
        return refuse(r, "an unclosed [:");
    size_t length = (size_t)(end - (r->s + r->i)) + 2;
    TRY(buffer_add(r->out, r->s + r->i, length));
    r->i += length;
    return OK;
}

/* What stands in a class, up to its ']'. A '-' at either end of a nested class is itself, not a range with its new neighbours. */
static enum code translate_members(struct reader *r, int depth)
{
    size_t first = r->i;
    while (r->i < r->n && (r->s[r->i] != ']' || r->i == first)) {
        char c = r->s[r->i], next = r->i + 1 < r->n ? r->s[r->i + 1] : 0;
        if (c == '\\') {
            TRY(translate_escape(r, 1));
        } else if (c == '[' && next == ':') {
            TRY(translate_posix(r));
        } else if (c == '[' && (next == '^' || depth == NEST_MAX)) {
            return refuse(r, "a negated character class inside a character class");
        } else if (c == '[') {
            r->i++;
            TRY(translate_members(r, depth + 1));
            r->i++;
        } else if (c == '&' && next == '&') {
            return refuse(r, "the intersection && of character classes");
        } else {
            if ((c == '-' && depth > 0 && (r->i == first || next == ']')) || (c == ']' && depth > 0))
                TRY(put(r, "\\"));
            TRY(buffer_add(r->out, &c, 1));
            r->i++;
        }
    }
    return r->i < r->n ? OK : refuse(r, "an unclosed character class");
}

/* At '['; leaves i after the closing ']'. */
static enum code translate_class(struct reader *r)
{
    size_t first = r->i + 1;
    if (first < r->n && r->s[first] == '^')
        first++;
    TRY(buffer_add(r->out, r->s + r->i, first - r->i));
    r->i = first;
    TRY(translate_members(r, 0));
    r->i++;
    return put(r, "]");
}

/* At '{': a quantifier or a literal brace. */
static enum code translate_brace(struct reader *r)
{
    size_t k = r->i + 1;
    while (k < r->n && (isdigit((unsigned char)r->s[k]) || r->s[k] == ','))
        k++;
    if (k >= r->n || r->s[k] != '}' || k == r->i + 1) {
        r->atom = r->out->n;
        r->i++;
        return put(r, "\\{");
    }
    TRY(put(r, r->s[r->i + 1] == ',' ? "{0" : "{"));
    TRY(buffer_add(r->out, r->s + r->i + 1, k - r->i));
    r->i = k + 1;
    if (r->i < r->n && r->s[r->i] == '+') { /* (?:X{n,m})+ */
        TRY(buffer_add(r->out, "(?:)", 4));
        memmove(r->out->p + r->atom + 3, r->out->p + r->atom, r->out->n - 4 - r->atom);
        memcpy(r->out->p + r->atom, "(?:", 3);
        r->out->p[r->out->n - 1] = ')';
    }
    return OK;
}

static enum code translate_open(struct reader *r)
{
    const char *p = r->s + r->i;
    size_t left = r->n - r->i;
    if (left > 1 && p[1] == '*')
        return refuse(r, "a (*VERB)");
    if (left > 2 && p[1] == '?')
        for (size_t k = 2; k < left && (islower((unsigned char)p[k]) || p[k] == '-'); k++)
            if (p[k] == 'm')
                return refuse(r, "the option (?m)");
    if (r->depth == NEST_MAX)
        return refuse(r, "groups nested too deeply");
    r->groups[r->depth++] = r->out->n;
    r->i++;
    return put(r, "(");
}

enum code pattern_translate(const char *s, size_t n, const char *where, struct buffer *out)
{
    struct reader r = {.s = s, .n = n, .out = out, .where = where};
    while (r.i < r.n) {
        size_t before = out->n;
        char c = s[r.i];
        switch (c) {
        case '\\': TRY(translate_escape(&r, 0)); r.atom = before; break;
        case '[': TRY(translate_class(&r)); r.atom = before; break;
        case '{': TRY(translate_brace(&r)); break;
        case '(': TRY(translate_open(&r)); break;
        case ')':
            if (r.depth == 0)
                return refuse(&r, "a ) without (");
            r.atom = r.groups[--r.depth];
            TRY(put(&r, ")"));
            r.i++;
            break;
        default:
            if (strchr("*+?|", c) == NULL || c == 0)
                r.atom = before;
            size_t length = utf8_length((unsigned char)c);
            TRY(buffer_add(out, s + r.i, length));
            r.i += length;
        }
    }
    return OK;
}
