/* Text to tokens, once. Each document becomes [bos] ids [eos]; special tokens inside the text are plain text. The result is kept
 * as CACHE_DIR/KEY.bin in llm.c form with its sidecar, where KEY = SHA-256 of everything that decides it: the input's
 * SHA-256, the tokenizer's, the form, the field, bos and eos. A cached file that cannot be read is made again. */
#include <stdlib.h>
#include <string.h>
#include "tokenizer.h"
#include "tokens.h"

enum { PROGRESS_FROM = 8 << 20 /* bytes of input */ };

struct text_job {
    const char *path;
    const struct tokens_options *o;
    int jsonl;
    struct sidecar about; /* what the result will say of itself */
    struct id_list ids;
};

static enum code encode_documents(struct text_job *j, struct text_reader *r, struct encoder *e, struct progress *progress)
{
    const char *text;
    size_t n;
    for (;;) {
        TRY(text_reader_next(r, &text, &n));
        if (text == NULL)
            return OK;
        if (j->o->bos >= 0)
            TRY(id_list_add(&j->ids, j->o->bos));
        TRY(fail_in(encoder_add(e, text, n, 0, &j->ids), "%s: document ending at line %lld", j->path, (long long)text_reader_line(r)));
        if (j->o->eos >= 0)
            TRY(id_list_add(&j->ids, j->o->eos));
        j->about.bytes += (int64_t)n;
        if (progress != NULL)
            progress_update(progress, text_reader_position(r), NULL);
    }
}

static enum code encode_file(struct text_job *j)
{
    struct text_reader *r = NULL;
    struct encoder e = {0};
    struct progress progress;
    char title[256];
    int64_t size = io_file_bytes(j->path);
    int shown = size >= PROGRESS_FROM;
    enum code c = text_reader_open(&r, j->path, j->jsonl, j->o->text_field);
    if (c == OK)
        c = encoder_open(&e, j->o->tokenizer);
    if (c == OK && !j->o->tokenizer->bytes)
        c = bpe_scratch_cache(&e.bpe);
    if (shown) {
        snprintf(title, sizeof title, "tokenising %.200s", j->path);
        progress_begin(&progress, title, size);
    }
    if (c == OK)
        c = encode_documents(j, r, &e, shown ? &progress : NULL);
    if (shown)
        progress_end(&progress);
    encoder_close(&e);
    text_reader_close(r);
    if (c == OK && j->about.bytes == 0)
        c = fail(ERR_INPUT, "%s: holds no text", j->path);
    return c;
}

static void cache_key(const struct text_job *j, char hex[65])
{
    char text[512];
    const char *field = j->o->text_field != NULL ? j->o->text_field : "text";
    char field_hash[65];
    sha256_of(field, strlen(field), field_hash);
    int n = snprintf(text, sizeof text, "gqakit tokens 1\n%s\n%s\n%d %s %d %d\n", j->about.input_sha256, j->about.tokenizer_sha256,
                     j->jsonl, field_hash, j->o->bos, j->o->eos);
    sha256_of(text, (size_t)n, hex);
}

/* Opens a finished cache file. *hit 0 when there is none or it is not what the key promises. */
static void open_cached(struct tokens *t, const struct text_job *j, const char *path, int *hit)
{
    struct sidecar s;
    int found = 0;
    *hit = 0;
    if (!io_exists(path))
        return;
    enum code c = sidecar_read(&s, path, &found);
    if (c == OK && (!found || s.eos != j->about.eos || strcmp(s.input_sha256, j->about.input_sha256) != 0 ||
                    strcmp(s.tokenizer_sha256, j->about.tokenizer_sha256) != 0))
        return;
    if (c == OK)
        c = tokens_open_llmc(t, path);
    if (c == OK)
        c = tokens_check_ids(t, j->about.vocab);
    if (c == OK) {
        t->bytes = s.bytes;
        *hit = 1;
        return;
    }
    log_warn("the cached tokens cannot be used and are made again: %s", fail_text());
    io_map_close(&t->map);
    free(t->path);
    *t = (struct tokens){0};
}

static enum code keep_in_memory(struct tokens *t, struct text_job *j)
{
    t->path = strdup(j->path);
    t->memory = j->ids.p;
    t->ids = (const unsigned char *)j->ids.p;
    t->n = j->ids.n;
    t->width = 4;
    t->bytes = j->about.bytes;
    j->ids = (struct id_list){0};
    return t->path != NULL ? OK : fail(ERR_MEMORY, "no memory to open %s", j->path);
}

static enum code open_through_cache(struct tokens *t, struct text_job *j)
{
    char key[65], *path = NULL;
    int hit = 0;
    cache_key(j, key);
    if (asprintf(&path, "%s/%s.bin", j->o->cache_dir, key) < 0)
        return fail(ERR_MEMORY, "no memory for a path");
    open_cached(t, j, path, &hit);
    enum code c = OK;
    if (!hit)
        c = encode_file(j);
    if (c == OK && !hit)
        c = io_mkdirs(j->o->cache_dir);
    if (c == OK && !hit)
        c = tokens_store(path, j->ids.p, j->ids.n, &j->about);
    if (c == OK && !hit)
        c = tokens_open_llmc(t, path);
    if (c == OK && !hit)
        t->bytes = j->about.bytes;
    free(path);
    return c;
}

enum code tokens_open_text(struct tokens *t, const char *path, const struct tokens_options *o, int jsonl)
{
    struct text_job j = {.path = path, .o = o, .jsonl = jsonl};
    if (o->tokenizer == NULL)
        return fail(ERR_USAGE, "%s: text needs a tokenizer; set data.tokenizer to a tokenizer.json, or to bytes", path);
    int64_t V = tokenizer_vocab(o->tokenizer);
    int64_t top = o->bos > o->eos ? o->bos : o->eos;
    j.about.vocab = top >= V ? top + 1 : V; /* an eos beyond the tokenizer's own ids is the caller's choice */
    j.about.eos = o->eos;
    snprintf(j.about.tokenizer_sha256, sizeof j.about.tokenizer_sha256, "%s", tokenizer_sha256(o->tokenizer));
    TRY(sha256_file(path, j.about.input_sha256));
    enum code c = o->cache_dir != NULL ? open_through_cache(t, &j) : encode_file(&j);
    if (c == OK && o->cache_dir == NULL)
        c = keep_in_memory(t, &j);
    free(j.ids.p);
    memcpy(t->sha256, j.about.input_sha256, sizeof t->sha256);
    if (c == OK && (c = tokens_check_ids(t, o->V)) != OK && o->cache_dir != NULL)
        return fail_in(c, "%s, tokenised", path);
    return c;
}
