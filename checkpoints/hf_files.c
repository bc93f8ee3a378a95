/* The weight files of a Hugging Face directory: model.safetensors, or the shards that model.safetensors.index.json names. They stay
 * open; index and files must agree in both directions. */
#include "hf.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define INDEX_LIMIT ((size_t)64 << 20)

int hf_has(const char *dir, const char *name)
{
    char path[PATH_MAX]; /* a question that lack of memory must not answer */
    return snprintf(path, sizeof path, "%s/%s", dir, name) < (int)sizeof path && io_exists(path);
}

enum code hf_read_in(const char *dir, const char *name, size_t limit, char **path, char **bytes, size_t *n)
{
    *bytes = NULL;
    *path = io_join(dir, name);
    if (!*path)
        return fail(ERR_MEMORY, "%s: out of memory", dir);
    return io_read_all(*path, limit, bytes, n);
}

static enum code shard_add(struct checkpoint *ck, struct hf_files *files, const char *name, int64_t limit)
{
    struct hf_shard *s = &files->shard[files->n];
    s->fd = -1;
    TRY(form_add_fileref(ck, name));
    s->name = ck->files[ck->n_files - 1];
    s->path = io_join(ck->path, name);
    if (!s->path)
        return fail(ERR_MEMORY, "%s: out of memory", ck->path);
    files->n++;
    TRY(st_open(&s->header, &s->fd, s->path, limit));
    posix_fadvise(s->fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    return OK;
}

static enum code shards_reserve(const struct checkpoint *ck, struct hf_files *files, int n)
{
    files->shard = calloc((size_t)n, sizeof *files->shard);
    return files->shard ? OK : fail(ERR_MEMORY, "%s: out of memory", ck->path);
}

/* Index and files must agree in both directions: serving tools refuse anything else. */
static enum code index_check(const char *dir, const struct hf_files *files, struct st_index *x)
{
    int in_files = 0;
    for (int s = 0; s < files->n; s++)
        for (int i = 0; i < files->shard[s].header.count; i++, in_files++) {
            const char *name = files->shard[s].header.tensors[i].name;
            const struct st_index_entry *e = st_index_find(x, name);
            if (!e)
                return fail(ERR_INPUT, "%s/" HF_INDEX ": does not list tensor \"%.80s\" of %s", dir, name, files->shard[s].name);
            if (e->file != s)
                return fail(ERR_INPUT, "%s/" HF_INDEX ": says tensor \"%.80s\" is in %s, but %s holds it", dir, name,
                            x->files[e->file], files->shard[s].name);
        }
    if (in_files == x->count)
        return OK;
    for (int s = 0; s < files->n; s++) /* by marks, not by searches: an index may list 100 000 names */
        for (int i = 0; i < files->shard[s].header.count; i++)
            x->entries[st_index_find(x, files->shard[s].header.tensors[i].name) - x->entries].file = -1;
    for (int i = 0; i < x->count; i++)
        if (x->entries[i].file >= 0)
            return fail(ERR_INPUT, "%s/" HF_INDEX ": says tensor \"%.80s\" is in %s, which does not hold it", dir, x->entries[i].tensor,
                        x->files[x->entries[i].file]);
    return OK;
}

/* 1 if `path` is below `dir`; both without links. */
static int below(const char *path, const char *dir)
{
    size_t n = strlen(dir);
    return !strncmp(path, dir, n) && (path[n] == '/' || (n && dir[n - 1] == '/'));
}

/* A name that leads out by a link is refused like "../name". The hub's cache is made of such links, from
 * models--OWNER--NAME/snapshots/HASH into models--OWNER--NAME/blobs: those are followed. */
static enum code link_check(const char *dir, const char *name)
{
    char *path = io_join(dir, name), *real = path ? realpath(path, NULL) : NULL, *home = real ? realpath(dir, NULL) : NULL, *blobs = NULL;
    enum code c = OK;
    if (!path || ((!real || !home) && errno == ENOMEM)) {
        c = fail(ERR_MEMORY, "%s: out of memory for a path", dir);
    } else if ((!real || !home) && (errno == EACCES || errno == EIO)) {
        c = fail_errno(path, "open");
    } else if (!real || !home) {
        c = fail(ERR_INPUT, "%s: " HF_INDEX " names this file, which is missing; if a download was cut short, repeat it", path);
    } else if (!below(real, home)) {
        char *cache = strdup(home), *slash = cache ? strrchr(cache, '/') : NULL;
        if (slash)
            *slash = 0;
        size_t n = cache ? strlen(cache) : 0;
        int hub = n > 10 && !strcmp(cache + n - 10, "/snapshots");
        if (hub) {
            cache[n - 10] = 0;
            blobs = io_join(cache, "blobs");
        }
        if (!cache || (hub && !blobs))
            c = fail(ERR_MEMORY, "%s: out of memory for a path", dir);
        else if (!hub || !below(real, blobs))
            c = fail(ERR_INPUT, "%s: " HF_INDEX " names this file, which is a link out of the directory, to %s; copy the file here", path, real);
        free(cache);
    }
    free(blobs);
    free(home);
    free(real);
    free(path);
    return c;
}

static enum code sharded_open(struct checkpoint *ck, struct hf_files *files, int64_t limit)
{
    char *path, *bytes;
    size_t n;
    struct st_index x = {0};
    enum code c = hf_read_in(ck->path, HF_INDEX, INDEX_LIMIT, &path, &bytes, &n);
    if (c == OK)
        c = st_index_parse(&x, bytes, n, path);
    if (c == OK)
        c = form_add_fileref(ck, HF_INDEX);
    if (c == OK)
        c = shards_reserve(ck, files, x.n_files);
    for (int f = 0; c == OK && f < x.n_files; f++) {
        c = link_check(ck->path, x.files[f]);
        if (c == OK)
            c = shard_add(ck, files, x.files[f], limit);
    }
    if (c == OK)
        c = index_check(ck->path, files, &x);
    st_index_free(&x);
    free(bytes);
    free(path);
    return c;
}

enum code hf_files_open(struct checkpoint *ck, struct hf_files *files, const struct ckpt_options *options)
{
    const char *dir = ck->path;
    int64_t limit = options->header_limit ? options->header_limit : ST_HEADER_DEFAULT;
    if (hf_has(dir, HF_SINGLE)) {
        TRY(shards_reserve(ck, files, 1));
        return shard_add(ck, files, HF_SINGLE, limit);
    }
    if (hf_has(dir, HF_INDEX))
        return sharded_open(ck, files, limit);
    if (hf_has(dir, "pytorch_model.bin") || hf_has(dir, "pytorch_model.bin.index.json"))
        return fail(ERR_UNSUPPORTED, "%s: holds pytorch_model.bin, which can run code when opened and is not read; save the model as "
                    "safetensors first (from_pretrained, then save_pretrained, of transformers)", dir);
    static const char *const others[] = {"tf_model.h5", "flax_model.msgpack", "consolidated.00.pth"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (hf_has(dir, others[i]))
            return fail(ERR_UNSUPPORTED, "%s: holds %s, which is not read; save the model as safetensors first (by transformers)", dir, others[i]);
    return fail(ERR_INPUT, "%s: holds neither " HF_SINGLE " nor " HF_INDEX "; if a download was cut short, repeat it", dir);
}

void hf_files_close(struct hf_files *files)
{
    for (int s = 0; s < files->n; s++) {
        if (files->shard[s].fd >= 0)
            close(files->shard[s].fd);
        st_free(&files->shard[s].header);
        free(files->shard[s].path);
    }
    free(files->shard);
}
