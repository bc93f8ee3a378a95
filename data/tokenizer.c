/* The tokenizer's door: opening by path, and running the chain of tokenizer.h over a text. */
#include <stdlib.h>
#include <string.h>
#include "tokenizer.h"

enum { FILE_LIMIT = 256 << 20, CACHE_FROM = 4096 /* bytes of text from which the word cache pays */ };

/* ---- encoding ---- */

enum code encoder_open(struct encoder *e, const struct tokenizer *t)
{
    memset(e, 0, sizeof *e);
    e->t = t;
    return t->bytes ? OK : pattern_scratch_new(&e->patterns);
}

void encoder_close(struct encoder *e)
{
    pattern_scratch_free(e->patterns);
    bpe_scratch_free(&e->bpe);
    for (int i = 0; i < STEPS_MAX; i++)
        free(e->scratch[i].p);
    free(e->normal[0].p);
    free(e->normal[1].p);
    memset(e, 0, sizeof *e);
}

/* Text between raw added tokens: normalised, then cut at the added tokens that live in normalised text. */
static enum code encode_plain(struct encoder *e, const char *raw, size_t raw_n, int head)
{
    const struct added_tokens *added = &e->t->added;
    const char *text;
    size_t n, taken = 0, at = 0, start, end;
    TRY(normalize_piece(e, raw, raw_n, &text, &n));
    for (int i; (i = added_find(added, 1, !e->specials, text, n, &at, taken, &start, &end)) >= 0;) {
        if (start > taken)
            TRY(pretokenize_piece(e, text + taken, start - taken, head && taken == 0));
        TRY(id_list_add(e->out, added->v[i].id));
        taken = end;
    }
    return taken < n ? pretokenize_piece(e, text + taken, n - taken, head && taken == 0) : OK;
}

static enum code encode_text(struct encoder *e, const char *text, size_t n)
{
    const struct added_tokens *added = &e->t->added;
    size_t taken = 0, at = 0, start, end;
    for (int i; (i = added_find(added, 0, !e->specials, text, n, &at, taken, &start, &end)) >= 0;) {
        if (start > taken)
            TRY(encode_plain(e, text + taken, start - taken, taken == 0));
        TRY(id_list_add(e->out, added->v[i].id));
        taken = end;
    }
    return taken < n ? encode_plain(e, text + taken, n - taken, taken == 0) : OK;
}

static enum code encode_bytes(const char *text, size_t n, struct id_list *out)
{
    for (size_t i = 0; i < n; i++)
        TRY(id_list_add(out, (unsigned char)text[i]));
    return OK;
}

enum code encoder_add(struct encoder *e, const char *text, size_t n, int specials, struct id_list *out)
{
    const struct tokenizer *t = e->t;
    if (t->bytes)
        return encode_bytes(text, n, out);
    size_t bad = utf8_check(text, n);
    if (bad < n)
        return fail(ERR_INPUT, "the text is not valid UTF-8 at byte %zu (0x%02x)", bad, (unsigned char)text[bad]);
    if (n >= CACHE_FROM)
        TRY(bpe_scratch_cache(&e->bpe));
    e->specials = specials;
    e->out = out;
    if (specials)
        TRY(id_list_add_all(out, t->before.p, t->before.n));
    TRY(encode_text(e, text, n));
    return specials ? id_list_add_all(out, t->after.p, t->after.n) : OK;
}

enum code tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, int specials, int32_t **ids, int64_t *n_ids)
{
    struct encoder e;
    struct id_list out = {0};
    enum code c = encoder_open(&e, t);
    if (c == OK)
        c = encoder_add(&e, text, n, specials, &out);
    encoder_close(&e);
    if (c == OK && out.p == NULL && (out.p = malloc(sizeof *out.p)) == NULL)
        c = fail(ERR_MEMORY, "no memory for token ids");
    if (c != OK)
        free(out.p);
    *ids = c == OK ? out.p : NULL;
    *n_ids = c == OK ? out.n : 0;
    return c;
}

/* ---- opening ---- */

static struct tokenizer *tokenizer_new(void)
{
    struct tokenizer *t = calloc(1, sizeof *t);
    if (t != NULL) {
        t->bos = t->eos = t->bpe.unk = -1;
        memset(t->added.first, -1, sizeof t->added.first);
    }
    return t;
}

enum code tokenizer_parse(struct tokenizer **out, const char *bytes, size_t n, const char *where)
{
    json_t *root = NULL;
    *out = NULL;
    TRY(json_parse_object(bytes, n, where, &root));
    struct tokenizer *t = tokenizer_new();
    enum code c = t == NULL ? fail(ERR_MEMORY, "no memory for a tokenizer") : tokenizer_read_json(t, root, where);
    json_decref(root);
    if (c != OK) {
        tokenizer_close(t);
        return c;
    }
    sha256_of(bytes, n, t->sha256);
    *out = t;
    return OK;
}

static enum code open_file(struct tokenizer **t, const char *path)
{
    char *bytes;
    size_t n;
    TRY(io_read_all(path, FILE_LIMIT, &bytes, &n));
    enum code c = tokenizer_parse(t, bytes, n, path);
    free(bytes);
    return c;
}

static enum code open_directory(struct tokenizer **t, const char *dir)
{
    char *json = io_join(dir, "tokenizer.json"), *vocab = io_join(dir, "vocab.json");
    enum code c = OK;
    if (json == NULL || vocab == NULL) {
        c = fail(ERR_MEMORY, "no memory for a path");
    } else if (io_exists(json)) {
        c = open_file(t, json);
    } else if (!io_exists(vocab)) {
        c = fail(ERR_INPUT, "%s: holds neither tokenizer.json nor vocab.json with merges.txt", dir);
    } else {
        *t = tokenizer_new();
        c = *t == NULL ? fail(ERR_MEMORY, "no memory for a tokenizer") : tokenizer_read_directory(*t, dir);
    }
    if (c == OK)
        c = tokenizer_read_names(*t, dir);
    free(json);
    free(vocab);
    return c;
}

enum code tokenizer_open(struct tokenizer **t, const char *path)
{
    *t = NULL;
    enum code c = OK;
    if (strcmp(path, "bytes") == 0) {
        *t = tokenizer_new();
        if (*t == NULL)
            return fail(ERR_MEMORY, "no memory for a tokenizer");
        (*t)->bytes = 1;
        (*t)->V = 256;
        strcpy((*t)->sha256, "bytes");
    } else {
        c = io_is_dir(path) ? open_directory(t, path) : open_file(t, path);
    }
    if (c != OK) {
        tokenizer_close(*t);
        *t = NULL;
    }
    return c;
}

void tokenizer_close(struct tokenizer *t)
{
    if (t == NULL)
        return;
    steps_free(&t->normalizer);
    steps_free(&t->pretokenizer);
    decoders_free(&t->decoders);
    added_free(&t->added);
    bpe_free(&t->bpe);
    free(t->before.p);
    free(t->after.p);
    free(t);
}

int64_t tokenizer_vocab(const struct tokenizer *t) { return t->V; }
int tokenizer_bos(const struct tokenizer *t) { return t->bos; }
int tokenizer_eos(const struct tokenizer *t) { return t->eos; }
const char *tokenizer_sha256(const struct tokenizer *t) { return t->sha256; }
