/* Normalizer steps: text in, text out. Unicode forms by utf8proc (UAX 15); text whose characters are all below U+0300 is its
 * own NFC, text in ASCII its own everything. */
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>
#include "tokenizer.h"

static int all_below(const char *text, size_t n, unsigned char lead)
{
    unsigned char top = 0;
    for (size_t i = 0; i < n; i++)
        top = (unsigned char)text[i] > top ? (unsigned char)text[i] : top;
    return top < lead;
}

static enum code unicode_form(enum unicode_form form, const char *text, size_t n, struct buffer *out)
{
    if (all_below(text, n, form == FORM_NFC ? 0xCC : 0x80)) /* 0xCC leads U+0300 */
        return buffer_add(out, text, n);
    int options = UTF8PROC_STABLE | (form == FORM_NFC || form == FORM_NFKC ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) |
                  (form == FORM_NFKC || form == FORM_NFKD ? UTF8PROC_COMPAT : 0);
    utf8proc_uint8_t *mapped = NULL;
    utf8proc_ssize_t got = utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)n, &mapped, (utf8proc_option_t)options);
    if (got < 0)
        return fail(ERR_MEMORY, "normalising %zu bytes of text: %s", n, utf8proc_errmsg(got));
    enum code c = buffer_add(out, mapped, (size_t)got);
    free(mapped);
    return c;
}

static enum code replace_all(struct encoder *e, const struct step *s, const char *text, size_t n, struct buffer *out)
{
    size_t from = 0, start, end;
    for (size_t at = 0; at <= n;) {
        int found;
        TRY(pattern_find(s->pattern, e->patterns, text, n, at, &found, &start, &end));
        if (!found)
            break;
        TRY(buffer_add(out, text + from, start - from));
        TRY(buffer_add(out, s->text, s->text_n));
        from = end;
        at = end > start ? end : end < n ? end + utf8_length((unsigned char)text[end]) : n + 1;
    }
    return buffer_add(out, text + from, n - from);
}

static enum code strip_spaces(const struct step *s, const char *text, size_t n, struct buffer *out)
{
    size_t from = 0, length;
    while (s->a && from < n && char_is_space(utf8_read(text + from, &length)))
        from += length;
    while (s->b && n > from) {
        size_t last = utf8_back(text, n);
        if (!char_is_space(utf8_read(text + last, &length)))
            break;
        n = last;
    }
    return buffer_add(out, text + from, n - from);
}

static enum code normalize_step(struct encoder *e, const struct step *s, const char *text, size_t n, struct buffer *out)
{
    out->n = 0;
    switch (s->kind) {
    case STEP_PREPEND:
        if (n > 0)
            TRY(buffer_add(out, s->text, s->text_n));
        return buffer_add(out, text, n);
    case STEP_REPLACE: return replace_all(e, s, text, n, out);
    case STEP_UNICODE: return unicode_form((enum unicode_form)s->a, text, n, out);
    case STEP_STRIP: return strip_spaces(s, text, n, out);
    default: CHECK(s->kind == STEP_BYTE_MAP); return byte_chars_add(out, text, n);
    }
}

enum code normalize_piece(struct encoder *e, const char *text, size_t n, const char **out, size_t *out_n)
{
    const struct steps *steps = &e->t->normalizer;
    for (int i = 0; i < steps->n; i++) {
        struct buffer *b = &e->normal[i & 1]; /* the step before wrote the other one */
        TRY(normalize_step(e, &steps->v[i], text, n, b));
        text = b->p;
        n = b->n;
    }
    *out = text;
    *out_n = n;
    return OK;
}
