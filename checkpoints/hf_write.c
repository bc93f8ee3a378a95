/* Hugging Face directory, writing. All sizes are known from the architecture, so headers come first and rows go straight to
 * their final place. With a Hugging Face source, its tensor order and shards are kept: a copy reads and writes sequentially.
 * Without one, tensors are sorted by alignment, then name, as the format's own writer does, and shards split at 5 GB.
 * Write-back is started block by block, so that the one fsync per file at the end finds little left to do. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hf.h"
#include "safetensors.h"

#define SHARD_BYTES ((int64_t)5000000000)
#define WRITEBACK_BYTES ((int64_t)8 << 20)

struct out_shard { const char *name; char *path; int fd; int64_t data, bytes; int64_t unsynced; };

struct hf_writer {
    struct ckpt_writer base;
    char *config;
    struct out_shard *shards;
    int n_shards;
    struct st_tensor *stored; /* the files' tensors, in order; begin and end relative to their shard's data */
    int *stored_shard;
    int n_stored;
    struct hf_rows *rows; /* [n_tensors] */
};

/* A canonical tensor and its place, while the order is still open. */
struct item { struct ckpt_tensor tensor; struct family_place place; };

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

/* ---- plan --------------------------------------------------------------------------------------------------------- */

static int by_alignment(const void *a, const void *b)
{
    const struct item *x = a, *y = b;
    size_t p = dtype_bytes(x->tensor.dtype), q = dtype_bytes(y->tensor.dtype);
    if (p != q)
        return p > q ? -1 : 1;
    int order = strcmp(x->place.name, y->place.name);
    return order ? order : x->place.first < y->place.first ? -1 : x->place.first > y->place.first;
}

static enum code items_make(struct hf_writer *w, struct item *items, int sort)
{
    const struct family *family = family_of(w->base.arch.family);
    struct tensor_spec *specs;
    int n;
    TRY(arch_tensors(&w->base.arch, &specs, &n));
    CHECK(n == w->base.n_tensors);
    for (int i = 0; i < n; i++) {
        int at = form_tensor_index(w->base.tensors, n, specs[i].name);
        CHECK(at >= 0);
        items[at].tensor = w->base.tensors[at];
        family->place(&w->base.arch, &specs[i], &items[at].place);
    }
    free(specs);
    if (sort)
        qsort(items, (size_t)n, sizeof *items, by_alignment);
    return OK;
}

/* Gathers canonical tensors into those of the files: one each, unless the family fuses some. */
static enum code stored_make(struct hf_writer *w, const struct item *items)
{
    int n = w->base.n_tensors;
    w->stored = calloc((size_t)n, sizeof *w->stored);
    w->stored_shard = calloc((size_t)n, sizeof *w->stored_shard);
    w->rows = calloc((size_t)n, sizeof *w->rows);
    if (!w->stored || !w->stored_shard || !w->rows)
        return fail(ERR_MEMORY, "%s: out of memory", w->base.path);
    for (int i = 0; i < n; i++) {
        const struct family_place *p = &items[i].place;
        int s = w->n_stored - 1;
        while (s >= 0 && strcmp(w->stored[s].name, p->name) != 0)
            s--;
        if (s < 0) {
            struct st_tensor *t = &w->stored[s = w->n_stored];
            t->name = strdup(p->name);
            if (!t->name)
                return fail(ERR_MEMORY, "%s: out of memory", w->base.path);
            w->n_stored++;
            t->dtype = items[i].tensor.dtype;
            t->nd = p->nd;
            t->n[0] = p->n[0];
            t->n[1] = p->n[1];
            t->end = p->n[0] * p->n[1] * (int64_t)dtype_bytes(t->dtype);
        }
        w->base.tensors[i] = items[i].tensor;
        w->base.rows_left[i] = items[i].tensor.n[0];
        w->rows[i] = (struct hf_rows){s, 0, p->first, p->inner, p->stride}; /* shard holds the stored index for now */
    }
    return OK;
}

static int shard_named(const struct hf_writer *w, const char *name)
{
    for (int s = 0; s < w->n_shards; s++)
        if (!strcmp(w->shards[s].name, name))
            return s;
    return -1;
}

/* The source's files again. What the source lacks (an untied head) joins the last of them. */
static enum code shards_like_source(struct hf_writer *w)
{
    for (int i = 0; i < w->base.n_tensors; i++) {
        const char *file = w->base.tensors[i].file;
        int s = *file ? shard_named(w, file) : w->n_shards ? w->n_shards - 1 : 0;
        if (s < 0 || !w->n_shards) {
            s = w->n_shards++;
            w->shards[s].name = *file ? file : HF_SINGLE;
        }
        w->stored_shard[w->rows[i].shard] = s;
    }
    return OK;
}

static enum code shards_by_size(struct hf_writer *w, int64_t limit)
{
    int64_t filled = 0;
    int s = 0;
    for (int i = 0; i < w->n_stored; i++) {
        int64_t bytes = w->stored[i].end;
        if (filled && bytes > limit - filled) {
            s++;
            filled = 0;
        }
        filled += bytes;
        w->stored_shard[i] = s;
    }
    w->n_shards = s + 1;
    for (int i = 0; i < w->n_shards; i++) {
        char name[64];
        snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", i + 1, w->n_shards);
        w->shards[i].name = form_string(&w->base.strings, w->n_shards == 1 ? HF_SINGLE : name);
        if (!w->shards[i].name)
            return fail(ERR_MEMORY, "%s: out of memory", w->base.path);
    }
    return OK;
}

/* Offsets within each shard, and the final rows and names of the canonical tensors. */
static enum code offsets_assign(struct hf_writer *w)
{
    for (int i = 0; i < w->n_stored; i++) {
        struct out_shard *s = &w->shards[w->stored_shard[i]];
        w->stored[i].begin = s->bytes;
        w->stored[i].end += s->bytes;
        s->bytes = w->stored[i].end;
    }
    for (int i = 0; i < w->base.n_tensors; i++) {
        struct ckpt_tensor *t = &w->base.tensors[i];
        int stored = w->rows[i].shard;
        w->rows[i].shard = w->stored_shard[stored];
        w->rows[i].offset = w->stored[stored].begin;
        t->file = w->shards[w->rows[i].shard].name;
        t->source = w->stored[stored].name;
    }
    return OK;
}

/* A Hugging Face directory, or a native file made from one (which remembers the shard of every tensor). */
static int from_safetensors(const struct checkpoint *source)
{
    for (int i = 0; source && i < source->n_tensors; i++) {
        const char *dot = strrchr(source->tensors[i].file, '.');
        if (!dot || strcmp(dot, ".safetensors") || !io_name_is_safe(source->tensors[i].file))
            return 0;
    }
    return source != NULL;
}

static enum code plan(struct hf_writer *w, const struct ckpt_target *target)
{
    int like_source = from_safetensors(target->source);
    int n = w->base.n_tensors;
    struct item *items = malloc((size_t)n * sizeof *items);
    w->shards = calloc((size_t)n, sizeof *w->shards);
    for (int s = 0; w->shards && s < n; s++)
        w->shards[s].fd = -1;
    if (!items || !w->shards) {
        free(items);
        return fail(ERR_MEMORY, "%s: out of memory", w->base.path);
    }
    enum code c = items_make(w, items, !like_source);
    if (c == OK)
        c = stored_make(w, items);
    free(items);
    TRY(c);
    if (like_source && !target->shard_bytes)
        TRY(shards_like_source(w));
    else
        TRY(shards_by_size(w, target->shard_bytes > 0 ? target->shard_bytes : SHARD_BYTES));
    return offsets_assign(w);
}

/* ---- files -------------------------------------------------------------------------------------------------------- */

static enum code shard_create(struct hf_writer *w, int i)
{
    struct out_shard *s = &w->shards[i];
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
        if (w->stored_shard[t] == i)
            list[count++] = w->stored[t];
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
    TRY(plan(w, target));
    TRY(io_mkdirs(w->base.temporary));
    for (int s = 0; s < w->n_shards; s++)
        TRY(shard_create(w, s));
    return OK;
}

enum code hf_create(struct ckpt_writer **w, const struct ckpt_target *target)
{
    TRY(form_writer_new(w, sizeof(struct hf_writer), &form_hf, target));
    enum code c = writer_open((struct hf_writer *)*w, target);
    if (c != OK)
        ckpt_abandon(*w);
    return c;
}

enum code hf_write(struct ckpt_writer *base, int i, int64_t row, int64_t rows, const void *src)
{
    struct hf_writer *w = (struct hf_writer *)base;
    const struct hf_rows *m = &w->rows[i];
    struct out_shard *s = &w->shards[m->shard];
    int64_t row_bytes = base->tensors[i].n[1] * (int64_t)dtype_bytes(base->tensors[i].dtype);
    for (int64_t done = 0; done < rows;) {
        int64_t now, at = hf_rows_run(m, row + done, rows - done, &now);
        TRY(io_pwrite(s->fd, s->path, (const char *)src + done * row_bytes, (size_t)(now * row_bytes), s->data + m->offset + at * row_bytes));
        done += now;
    }
    s->unsynced += rows * row_bytes;
    if (s->unsynced >= WRITEBACK_BYTES) {
        s->unsynced = 0;
        sync_file_range(s->fd, 0, 0, SYNC_FILE_RANGE_WRITE); /* starts, does not wait; an error shows at fsync */
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
        json_object_set_new(map, w->stored[i].name, json_string(w->shards[w->stored_shard[i]].name));
        total += w->stored[i].end - w->stored[i].begin;
    }
    json_t *root = json_pack("{s:{s:I}, s:o}", "metadata", "total_size", total, "weight_map", map);
    char *text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
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
        struct out_shard *s = &w->shards[i];
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
    for (int i = 0; i < w->n_stored; i++)
        free(w->stored[i].name);
    free(w->stored);
    free(w->stored_shard);
    free(w->shards);
    free(w->rows);
    free(w->config);
}
