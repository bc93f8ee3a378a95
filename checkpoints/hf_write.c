/* Hugging Face directory, writing. All sizes are known from the architecture, so headers come first and rows go straight to
 * their final place (hf_layout.c). Write-back is started block by block, so that the one fsync per file at the end finds little
 * left to do. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hf_layout.h"

#define WRITEBACK_BYTES ((int64_t)8 << 20)

int hf_claims(const char *path)
{
    static const char *const files[] = {".bin", ".safetensors", ".gguf", ".pt", ".pth", ".json", ".hdf5", ".h5"};
    size_t n = strlen(path);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        size_t k = strlen(files[i]);
        if (n > k && !strcmp(path + n - k, files[i]))
            return 0;
    }
    return n > 0;
}

/* ---- files -------------------------------------------------------------------------------------------------------- */

static enum code shard_create(struct hf_writer *w, int i)
{
    struct hf_out_shard *s = &w->shards[i];
    struct st_tensor *list = malloc((size_t)w->n_stored * sizeof *list);
    char *head = NULL;
    size_t n = 0;
    int count = 0;
    s->path = io_join(w->base.temporary, s->name);
    if (!s->path || !list) {
        free(list);
        return fail(ERR_MEMORY, "%s: out of memory", w->base.path);
    }
    for (int t = 0; t < w->n_stored; t++)
        if (w->stored[t].shard == i)
            list[count++] = w->stored[t].tensor;
    enum code c = st_header_make(list, count, &head, &n, s->path);
    free(list);
    if (c == OK && strchr(s->name, '/')) { /* an index may name files in subdirectories */
        char *slash = strrchr(s->path, '/');
        *slash = 0;
        c = io_mkdirs(s->path);
        *slash = '/';
    }
    if (c == OK && (s->fd = open(s->path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666)) < 0)
        c = fail_errno(s->path, "create");
    if (c == OK)
        c = io_pwrite(s->fd, s->path, head, n, 0);
    s->data = (int64_t)n;
    free(head);
    return c;
}

static enum code writer_open(struct hf_writer *w, const struct ckpt_target *target)
{
    struct arch *a = &w->base.arch;
    TRY(arch_to_config_json(a, target->dtype, &w->config));
    if (!a->family[0])
        memcpy(a->family, "llama", sizeof "llama"); /* as the config says */
    TRY(hf_layout_make(w, target));
    TRY(io_mkdirs(w->base.temporary));
    for (int s = 0; s < w->n_shards; s++)
        TRY(shard_create(w, s));
    return OK;
}

static enum code files_add(struct hf_writer *w)
{
    const struct family *family = family_of(w->base.arch.family);
    struct family_file f;
    for (int i = 0; family && family->file && family->file(i, &f); i++)
        TRY(ckpt_add_file(&w->base, f.name, f.bytes, f.n));
    return OK;
}

enum code hf_create(struct ckpt_writer **w, const struct ckpt_target *target)
{
    TRY(form_writer_new(w, sizeof(struct hf_writer), &form_hf, target));
    enum code c = writer_open((struct hf_writer *)*w, target);
    if (c == OK)
        c = files_add((struct hf_writer *)*w);
    if (c != OK)
        ckpt_abandon(*w);
    return c;
}

static enum code shard_write(struct hf_out_shard *s, const void *src, int64_t bytes, int64_t offset)
{
    TRY(io_pwrite(s->fd, s->path, src, (size_t)bytes, s->data + offset));
    s->unsynced += bytes;
    if (s->unsynced >= WRITEBACK_BYTES) {
        s->unsynced = 0;
        sync_file_range(s->fd, 0, 0, SYNC_FILE_RANGE_WRITE); /* starts, does not wait; an error shows at fsync */
    }
    return OK;
}

/* Rows that do not lie in rows there are collected until their file tensor is complete. */
static enum code rows_collect(struct hf_out_shard *s, struct hf_stored *t, const struct row_map *m, int64_t row, int64_t rows, const void *src,
                              size_t element)
{
    int64_t bytes = t->tensor.end - t->tensor.begin;
    if (!t->whole)
        t->whole = calloc(1, (size_t)bytes);
    if (!t->whole)
        return fail(ERR_MEMORY, "%s: out of memory for tensor %s of %lld bytes", s->path, t->tensor.name, (long long)bytes);
    rows_scatter(t->whole, m, src, row, rows, element);
    t->left -= rows;
    if (t->left)
        return OK;
    enum code c = shard_write(s, t->whole, bytes, t->tensor.begin);
    free(t->whole);
    t->whole = NULL;
    return c;
}

/* Rows of one file tensor. */
static enum code stored_write(struct hf_writer *w, struct hf_stored *t, const struct row_map *m, int64_t row, int64_t rows, const char *src,
                              size_t element)
{
    struct hf_out_shard *s = &w->shards[t->shard];
    int64_t row_bytes = m->length * (int64_t)element, run;
    if (row_map_scattered(m))
        return rows_collect(s, t, m, row, rows, src, element);
    for (int64_t done = 0; done < rows; done += run) {
        int64_t there = row_map_at(m, row + done, rows - done, &run);
        TRY(shard_write(s, src + done * row_bytes, run * row_bytes, t->tensor.begin + there * row_bytes));
    }
    return OK;
}

enum code hf_write(struct ckpt_writer *base, int i, int64_t row, int64_t rows, const void *src)
{
    struct hf_writer *w = (struct hf_writer *)base;
    const struct hf_rows *r = &w->rows[i];
    size_t element = dtype_bytes(base->tensors[i].dtype);
    for (int64_t done = 0, now; done < rows; done += now) {
        int64_t piece = (row + done) / r->map.piece, within = (row + done) % r->map.piece;
        now = r->map.piece - within < rows - done ? r->map.piece - within : rows - done;
        TRY(stored_write(w, &w->stored[w->place[r->at + piece]], &r->map, within, now, (const char *)src + done * r->map.length * (int64_t)element, element));
    }
    return OK;
}

static enum code file_write(const char *dir, const char *name, const void *bytes, size_t n)
{
    char *path = io_join(dir, name);
    if (!path)
        return fail(ERR_MEMORY, "%s: out of memory", dir);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    enum code c = fd < 0 ? fail_errno(path, "create") : io_pwrite(fd, path, bytes, n, 0);
    if (c == OK && fsync(fd))
        c = fail_errno(path, "fsync");
    if (fd >= 0 && close(fd) && c == OK)
        c = fail_errno(path, "close");
    free(path);
    return c;
}

static enum code index_write(const struct hf_writer *w)
{
    json_t *map = json_object();
    json_int_t total = 0;
    for (int i = 0; i < w->n_stored; i++) {
        json_object_set_new(map, w->stored[i].tensor.name, json_string(w->shards[w->stored[i].shard].name));
        total += w->stored[i].tensor.end - w->stored[i].tensor.begin;
    }
    json_t *root = json_pack("{s:{s:I}, s:o}", "metadata", "total_size", total, "weight_map", map);
    char *text = root ? json_text(root, JSON_INDENT(2)) : NULL;
    json_decref(root);
    if (!text)
        return fail(ERR_MEMORY, "%s: out of memory for its index", w->base.path);
    enum code c = file_write(w->base.temporary, HF_INDEX, text, strlen(text));
    free(text);
    return c;
}

enum code hf_finish(struct ckpt_writer *base)
{
    struct hf_writer *w = (struct hf_writer *)base;
    for (int i = 0; i < w->n_shards; i++) {
        struct hf_out_shard *s = &w->shards[i];
        int fd = s->fd;
        if (fsync(fd))
            return fail_errno(s->path, "fsync");
        s->fd = -1;
        if (close(fd))
            return fail_errno(s->path, "close");
    }
    for (int i = 0; i < base->n_companions; i++)
        TRY(file_write(base->temporary, base->companions[i].name, base->companions[i].bytes, base->companions[i].n));
    if (w->n_shards > 1 || strcmp(w->shards[0].name, HF_SINGLE) != 0)
        TRY(index_write(w));
    TRY(file_write(base->temporary, "config.json", w->config, strlen(w->config)));
    return io_fsync_path(base->temporary);
}

void hf_drop(struct ckpt_writer *base)
{
    struct hf_writer *w = (struct hf_writer *)base;
    for (int i = 0; i < w->n_shards; i++) {
        if (w->shards[i].fd >= 0)
            close(w->shards[i].fd);
        free(w->shards[i].path);
    }
    for (int i = 0; i < w->n_stored; i++) {
        free(w->stored[i].tensor.name);
        free(w->stored[i].whole);
    }
    free(w->stored);
    free(w->shards);
    free(w->rows);
    free(w->place);
    free(w->config);
}
