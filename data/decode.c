/* Ids back to text. The tokens' strings pass through the decoder's steps as a list of pieces; what is left is put together.
 * Bytes come out as they are: half a character stays half a character, so that text can be printed as it is generated. */
#include <stdlib.h>
#include <string.h>
#include "tokenizer.h"

#define META "\xE2\x96\x81"

/* ---- reading ---- */

static enum code decoder_text(struct decoder *d, const char *text)
{
    d->text = strdup(text);
    d->text_n = strlen(text);
    return d->text != NULL ? OK : fail(ERR_MEMORY, "no memory for a decoder");
}

static enum code read_decoder(struct decoders *list, const json_t *node, const char *where, int depth)
{
    const char *type = NULL, *text = NULL;
    if (!json_is_object(node))
        return fail(ERR_INPUT, "%s: expected an object with a \"type\"", where);
    TRY(json_need_str(node, where, "type", &type));
    if (strcmp(type, "Sequence") == 0) {
        const json_t *inner = json_object_get(node, "decoders");
        if (!json_is_array(inner) || depth >= 8)
            return fail(ERR_INPUT, "%s: a Sequence needs the array \"decoders\", at most 8 deep", where);
        for (size_t i = 0; i < json_array_size(inner); i++)
            TRY(read_decoder(list, json_array_get(inner, i), where, depth + 1));
        return OK;
    }
    if (list->n == STEPS_MAX)
        return fail(ERR_UNSUPPORTED, "%s: more than %d decoders", where, STEPS_MAX);
    struct decoder *d = &list->v[list->n++];
    *d = (struct decoder){0};
    if (strcmp(type, "ByteLevel") == 0) {
        d->kind = DECODE_BYTE_LEVEL;
    } else if (strcmp(type, "ByteFallback") == 0) {
        d->kind = DECODE_BYTE_FALLBACK;
    } else if (strcmp(type, "Fuse") == 0) {
        d->kind = DECODE_FUSE;
    } else if (strcmp(type, "Replace") == 0) {
        d->kind = DECODE_REPLACE;
        TRY(json_need_str(node, where, "content", &text));
        TRY(decoder_text(d, text));
        return step_pattern_read(&d->pattern, json_object_get(node, "pattern"), where);
    } else if (strcmp(type, "Strip") == 0) {
        int64_t start = 0, stop = 0;
        d->kind = DECODE_STRIP;
        TRY(json_need_str(node, where, "content", &text));
        TRY(json_want_i64(node, where, "start", 0, 1 << 20, &start));
        TRY(json_want_i64(node, where, "stop", 0, 1 << 20, &stop));
        d->a = (int)start;
        d->b = (int)stop;
        if (text[0] == 0)
            return fail(ERR_INPUT, "%s: the content of Strip is empty", where);
        return decoder_text(d, text);
    } else if (strcmp(type, "Metaspace") == 0) {
        const char *scheme = NULL;
        int prefix = 1;
        d->kind = DECODE_METASPACE;
        text = META;
        TRY(json_want_str(node, where, "replacement", &text));
        TRY(json_want_str(node, where, "prepend_scheme", &scheme));
        TRY(json_want_bool(node, where, "add_prefix_space", &prefix));
        d->a = scheme != NULL ? strcmp(scheme, "never") != 0 : prefix;
        if (text[0] == 0)
            return fail(ERR_INPUT, "%s: the replacement of Metaspace is empty", where);
        return decoder_text(d, text);
    } else {
        return fail(ERR_UNSUPPORTED, "%s: decoder %s is not supported", where, type);
    }
    return OK;
}

enum code decoders_read(struct decoders *d, const json_t *node, const char *where)
{
    char here[512];
    snprintf(here, sizeof here, "%.400s: decoder", where);
    return node == NULL || json_is_null(node) ? OK : read_decoder(d, node, here, 0);
}

void decoders_free(struct decoders *d)
{
    for (int i = 0; i < d->n; i++) {
        pattern_free(d->v[i].pattern);
        free(d->v[i].text);
    }
    d->n = 0;
}

/* ---- running ---- */

struct pieces { struct buffer text; struct id_list ends; /* offsets into text; int32: decoding works on less than 2 GiB */ };

static enum code piece_end(struct pieces *p)
{
    if (p->text.n > INT32_MAX)
        return fail(ERR_UNSUPPORTED, "decoding more than 2 GiB of text at once is not supported");
    return id_list_add(&p->ends, (int32_t)p->text.n);
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static int byte_token(const char *s, size_t n) { /* "<0xNN>" -> NN, else -1 */
    if (n != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>' || hex_digit(s[3]) < 0 || hex_digit(s[4]) < 0)
        return -1;
    return hex_digit(s[3]) * 16 + hex_digit(s[4]);
}

/* A token that is not made of byte characters only (an added one) stays text. */
static enum code decode_byte_level(const char *s, size_t n, struct buffer *out)
{
    size_t before = out->n, length;
    for (size_t i = 0; i < n; i += length) {
        int b = byte_of_char(utf8_read(s + i, &length));
        if (b < 0) {
            out->n = before;
            return buffer_add(out, s, n);
        }
        TRY(buffer_add(out, &(char){(char)b}, 1));
    }
    return OK;
}

static enum code decode_replace(const struct decoder *d, struct pattern_scratch *ps, const char *s, size_t n, struct buffer *out)
{
    size_t from = 0, start, end;
    for (int found = 1; from < n;) {
        TRY(pattern_find(d->pattern, ps, s, n, from, &found, &start, &end));
        if (!found || end == start)
            break;
        TRY(buffer_add(out, s + from, start - from));
        TRY(buffer_add(out, d->text, d->text_n));
        from = end;
    }
    return buffer_add(out, s + from, n - from);
}

static enum code decode_strip(const struct decoder *d, const char *s, size_t n, struct buffer *out)
{
    for (int k = 0; k < d->a && n >= d->text_n && memcmp(s, d->text, d->text_n) == 0; k++)
        s += d->text_n, n -= d->text_n;
    for (int k = 0; k < d->b && n >= d->text_n && memcmp(s + n - d->text_n, d->text, d->text_n) == 0; k++)
        n -= d->text_n;
    return buffer_add(out, s, n);
}

static enum code decode_metaspace(const struct decoder *d, int first, const char *s, size_t n, struct buffer *out)
{
    for (size_t i = 0; i < n;) {
        if (n - i >= d->text_n && memcmp(s + i, d->text, d->text_n) == 0) {
            if (!(first && d->a))
                TRY(buffer_add(out, " ", 1));
            i += d->text_n;
        } else {
            TRY(buffer_add(out, s + i++, 1));
        }
    }
    return OK;
}

static enum code decode_step(const struct decoder *d, struct pattern_scratch *ps, const struct pieces *in, struct pieces *out)
{
    out->text.n = 0;
    out->ends.n = 0;
    size_t from = 0;
    for (int64_t i = 0; i < in->ends.n; i++) {
        size_t to = (size_t)in->ends.p[i], n = to - from;
        const char *s = in->text.p + from;
        int b;
        switch (d->kind) {
        case DECODE_BYTE_LEVEL: TRY(decode_byte_level(s, n, &out->text)); break;
        case DECODE_REPLACE: TRY(decode_replace(d, ps, s, n, &out->text)); break;
        case DECODE_STRIP: TRY(decode_strip(d, s, n, &out->text)); break;
        case DECODE_METASPACE: TRY(decode_metaspace(d, i == 0, s, n, &out->text)); break;
        case DECODE_BYTE_FALLBACK:
            b = byte_token(s, n);
            TRY(b >= 0 ? buffer_add(&out->text, &(char){(char)b}, 1) : buffer_add(&out->text, s, n));
            break;
        case DECODE_FUSE: TRY(buffer_add(&out->text, s, n)); break;
        }
        if (d->kind != DECODE_FUSE)
            TRY(piece_end(out));
        from = to;
    }
    return d->kind == DECODE_FUSE && in->ends.n > 0 ? piece_end(out) : OK;
}

static const struct added_token *added_by_id(const struct tokenizer *t, int32_t id)
{
    for (int i = 0; i < t->added.n; i++)
        if (t->added.v[i].id == id)
            return &t->added.v[i];
    return NULL;
}

/* Special tokens are left out. Without a decoder the tokens are joined by spaces, as the reference implementation does. */
static enum code token_pieces(const struct tokenizer *t, const int32_t *ids, int64_t n, struct pieces *out)
{
    for (int64_t i = 0; i < n; i++) {
        size_t length = 0;
        const char *s = NULL;
        const struct added_token *a = t->added.n > 0 ? added_by_id(t, ids[i]) : NULL;
        if (a != NULL && a->special)
            continue;
        if (a != NULL)
            s = a->written, length = strlen(a->written);
        else
            s = vocab_text(&t->bpe.vocab, ids[i], &length);
        if (s == NULL)
            return fail(ERR_INPUT, "the tokenizer has no token with the id %d", ids[i]);
        if (t->decoders.n == 0 && out->ends.n > 0)
            TRY(buffer_add(&out->text, " ", 1));
        TRY(buffer_add(&out->text, s, length));
        TRY(piece_end(out));
    }
    return OK;
}

static enum code decode_bytes(const int32_t *ids, int64_t n, struct buffer *out)
{
    for (int64_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] > 255)
            return fail(ERR_INPUT, "the byte tokenizer has no token with the id %d", ids[i]);
        TRY(buffer_add(out, &(char){(char)ids[i]}, 1));
    }
    return OK;
}

enum code tokenizer_decode(const struct tokenizer *t, const int32_t *ids, int64_t n_ids, char **text, size_t *n)
{
    struct pieces p[2] = {0};
    struct pattern_scratch *ps = NULL;
    int k = 0;
    enum code c = t->bytes ? decode_bytes(ids, n_ids, &p[0].text) : token_pieces(t, ids, n_ids, &p[0]);
    if (c == OK && t->decoders.n > 0)
        c = pattern_scratch_new(&ps);
    for (int i = 0; c == OK && i < t->decoders.n; i++, k ^= 1)
        c = decode_step(&t->decoders.v[i], ps, &p[k], &p[k ^ 1]);
    if (c == OK)
        c = buffer_add(&p[k].text, "", 1); /* the NUL */
    *text = c == OK ? p[k].text.p : NULL;
    *n = c == OK ? p[k].text.n - 1 : 0;
    if (c != OK)
        free(p[k].text.p);
    free(p[k ^ 1].text.p);
    free(p[0].ends.p);
    free(p[1].ends.p);
    pattern_scratch_free(ps);
    return c;
}
