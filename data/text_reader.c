/* Text files as a row of documents, read through zlib, which passes plain files on and unpacks gzip by its magic.
 *   .txt    a line that is exactly <|endoftext|> ends a document (as TinyStories is distributed); the line itself and the newline
 *           before it belong to no document. Without such lines the file is one document.
 *   .jsonl  one JSON object per line; the text is the string under `field`. Blank lines are skipped.
 * Documents without a character are skipped. One document is in memory at a time, at most 1 GiB. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include "tokenizer.h"
#include "tokens.h"

enum { CHUNK = 1 << 18, DOCUMENT_MAX = 1 << 30 };
static const char marker[] = "<|endoftext|>";

struct text_reader {
    gzFile file;
    char *path, *field;
    int jsonl, ended;
    char *chunk;
    size_t at, n;
    int64_t line; /* number of the line last read */
    struct buffer document;
    json_t *object;
};

enum code text_reader_open(struct text_reader **out, const char *path, int jsonl, const char *field)
{
    struct text_reader *r = calloc(1, sizeof *r);
    *out = r;
    if (r == NULL)
        return fail(ERR_MEMORY, "no memory to read %s", path);
    r->path = strdup(path);
    r->field = strdup(field != NULL ? field : "text");
    r->chunk = malloc(CHUNK);
    r->jsonl = jsonl;
    if (r->path == NULL || r->field == NULL || r->chunk == NULL)
        return fail(ERR_MEMORY, "no memory to read %s", path);
    r->file = gzopen(path, "rb");
    if (r->file == NULL)
        return fail_errno(path, "open");
    gzbuffer(r->file, CHUNK);
    return OK;
}

void text_reader_close(struct text_reader *r)
{
    if (r == NULL)
        return;
    if (r->file != NULL)
        gzclose(r->file);
    json_decref(r->object);
    free(r->path);
    free(r->field);
    free(r->chunk);
    free(r->document.p);
    free(r);
}

int64_t text_reader_position(struct text_reader *r) { return (int64_t)gzoffset(r->file); }
int64_t text_reader_line(const struct text_reader *r) { return r->line; }

/* gzread reports a stream that stops in the middle only through gzerror. */
static enum code fill_chunk(struct text_reader *r)
{
    int got = gzread(r->file, r->chunk, CHUNK), error = Z_OK;
    const char *message = gzerror(r->file, &error);
    if (error == Z_ERRNO)
        return fail_errno(r->path, "read");
    if (got < 0 || error == Z_BUF_ERROR || error == Z_DATA_ERROR)
        return fail(ERR_INPUT, "%s: the gzip data is damaged or cut off (%s)", r->path, message);
    r->at = 0;
    r->n = (size_t)got;
    r->ended = got == 0;
    return OK;
}

/* Appends one line with its newline to the document; *n 0 at the end of the file. */
static enum code read_line(struct text_reader *r, size_t *n)
{
    size_t before = r->document.n;
    for (int done = 0; !done;) {
        if (r->at == r->n && !r->ended)
            TRY(fill_chunk(r));
        if (r->ended)
            break;
        const char *newline = memchr(r->chunk + r->at, '\n', r->n - r->at);
        size_t take = newline != NULL ? (size_t)(newline - (r->chunk + r->at)) + 1 : r->n - r->at;
        TRY(buffer_add(&r->document, r->chunk + r->at, take));
        r->at += take;
        done = newline != NULL;
        if (r->document.n > DOCUMENT_MAX)
            return fail(ERR_UNSUPPORTED, "%s: the document around line %lld is longer than 1 GiB; put <|endoftext|> lines "
                        "between documents", r->path, (long long)r->line + 1);
    }
    *n = r->document.n - before;
    r->line += *n > 0;
    return OK;
}

static int is_marker(const char *line, size_t n)
{
    while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r'))
        n--;
    return n == sizeof marker - 1 && memcmp(line, marker, n) == 0;
}

static enum code next_text(struct text_reader *r, const char **text, size_t *n)
{
    for (size_t length;;) {
        r->document.n = 0;
        int marked = 0;
        do {
            TRY(read_line(r, &length));
            marked = length > 0 && is_marker(r->document.p + r->document.n - length, length);
        } while (length > 0 && !marked);
        size_t end = r->document.n - (marked ? length : 0);
        if (marked && end > 0)
            end -= end > 1 && r->document.p[end - 2] == '\r' ? 2 : 1;
        *text = end > 0 ? r->document.p : NULL;
        *n = end;
        if (end > 0 || !marked)
            return OK;
    }
}

/* The document has no NUL after it. */
static int is_blank(const char *line, size_t n)
{
    while (n > 0 && (line[n - 1] == ' ' || line[n - 1] == '\t' || line[n - 1] == '\r' || line[n - 1] == '\n'))
        n--;
    return n == 0;
}

static enum code next_json(struct text_reader *r, const char **text, size_t *n)
{
    *text = NULL;
    *n = 0;
    for (size_t length; *n == 0;) {
        r->document.n = 0;
        TRY(read_line(r, &length));
        if (length == 0)
            return OK;
        if (is_blank(r->document.p, length))
            continue;
        json_error_t error;
        json_decref(r->object);
        r->object = json_loadb(r->document.p, length, JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, &error);
        const json_t *value = json_object_get(r->object, r->field);
        if (r->object == NULL)
            return fail(ERR_INPUT, "%s:%lld: not a JSON object: %s", r->path, (long long)r->line, error.text);
        if (!json_is_string(value))
            return fail(ERR_INPUT, "%s:%lld: no string under \"%s\"; data.text_field names the key that holds the text", r->path,
                        (long long)r->line, r->field);
        *text = json_string_value(value);
        *n = json_string_length(value);
    }
    return OK;
}

enum code text_reader_next(struct text_reader *r, const char **text, size_t *n)
{
    return r->jsonl ? next_json(r, text, n) : next_text(r, text, n);
}
