/* GGUF in the table of forms: written, never read. All sizes are known from the architecture, so the header comes first and rows go
 * straight to their final place, in any order. Companions other than the tokenizer, and the model card, have no place in the file. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "form.h"
#include "gguf.h"
#include "gguf_write.h"

#define WRITEBACK_BYTES ((int64_t)8 << 20)

struct rows { int tensor; struct gguf_place place; };

struct gguf_writer {
    struct ckpt_writer base;
    int fd;
    struct gguf_tensor *tensors; /* of the file: [n] */
    int n;
    struct rows *rows; /* [base.n_tensors] */
    struct gguf_extra extras[2];
    int n_extras;
    int64_t data, unsynced;
};

/* ---- reading -------------------------------------------------------------------------------------------------------- */

int gguf_claims(const char *path)
{
    size_t n = strlen(path);
    return n > 5 && !strcasecmp(path + n - 5, ".gguf");
}

static int gguf_probe(const char *path)
{
    char magic[4] = "";
    int fd = -1;
    int found = io_open_regular(path, &fd) == OK && read(fd, magic, 4) == 4 && !memcmp(magic, "GGUF", 4);
    if (fd >= 0)
        close(fd);
    return found || (fd >= 0 && gguf_claims(path));
}

static enum code gguf_open(struct checkpoint **ck, const char *path, const struct ckpt_options *options)
{
    (void)options;
    *ck = NULL;
    return fail(ERR_UNSUPPORTED, "%s: GGUF files are written, not read; give the Hugging Face directory or .h5 it was made from", path);
}

static enum code gguf_read(struct checkpoint *ck, int i, int64_t row, int64_t rows, void *dst)
{
    (void)i, (void)row, (void)rows, (void)dst;
    return fail(ERR_INTERNAL, "%s: a GGUF file was read", ck->path);
}

/* ---- plan ----------------------------------------------------------------------------------------------------------- */

static int tensor_named(const struct gguf_writer *w, const char *name)
{
    for (int i = w->n - 1; i >= 0; i--)
        if (!strcmp(w->tensors[i].name, name))
            return i;
    return -1;
}

/* The matrices' type where the writer is free: f64 and what else GGUF lacks becomes f32. */
static enum dtype stored_type(enum dtype t) { return t == DT_F16 || t == DT_BF16 ? t : DT_F32; }

static void tensor_plan(struct gguf_writer *w, int i, const struct gguf_row *row, const struct tensor_spec *spec)
{
    struct ckpt_tensor *t = &w->base.tensors[i];
    struct rows *r = &w->rows[i];
    gguf_place(row, &w->base.arch, spec, &r->place);
    r->tensor = tensor_named(w, r->place.name);
    if (r->tensor < 0) {
        r->tensor = w->n++;
        w->tensors[r->tensor] = (struct gguf_tensor){.name = r->place.name, .nd = r->place.nd, .n = {r->place.n[0], r->place.n[1]}};
        w->tensors[r->tensor].dtype = r->place.f32 ? DT_F32 : stored_type(t->dtype);
    }
    t->dtype = w->tensors[r->tensor].dtype; /* the parts of a fused tensor share one type */
    t->bytes = t->n[0] * t->n[1] * (int64_t)dtype_bytes(t->dtype);
    t->source = r->place.name;
    t->file = "";
}

static enum code plan(struct gguf_writer *w, const struct gguf_row *row)
{
    struct tensor_spec *specs;
    int n;
    TRY(arch_tensors(&w->base.arch, &specs, &n));
    CHECK(n == w->base.n_tensors);
    w->rows = calloc((size_t)n, sizeof *w->rows);
    w->tensors = calloc((size_t)n + 2, sizeof *w->tensors);
    for (int i = 0; w->rows && w->tensors && i < n; i++)
        for (int s = 0; s < n; s++)
            if (!strcmp(specs[s].name, w->base.tensors[i].name))
                tensor_plan(w, i, row, &specs[s]);
    free(specs);
    if (!w->rows || !w->tensors)
        return fail(ERR_MEMORY, "%s: out of memory", w->base.path);
    TRY(gguf_extras(&w->base.arch, w->extras, &w->n_extras, w->base.path));
    for (int i = 0; i < w->n_extras; i++)
        w->tensors[w->n++] = (struct gguf_tensor){.name = w->extras[i].name, .dtype = DT_F32, .nd = 1, .n = {w->extras[i].n, 1}};
    return OK;
}

/* What most of the matrices' bytes are: general.file_type. */
static enum dtype main_type(const struct gguf_writer *w)
{
    int64_t bytes[DT_COUNT] = {0};
    for (int i = 0; i < w->base.n_tensors; i++)
        if (!w->rows[i].place.f32)
            bytes[w->base.tensors[i].dtype] += w->base.tensors[i].bytes;
    return bytes[DT_F32] >= bytes[DT_F16] && bytes[DT_F32] >= bytes[DT_BF16] ? DT_F32 : bytes[DT_F16] >= bytes[DT_BF16] ? DT_F16 : DT_BF16;
}

/* "model" of "/path/model.gguf". */
static void model_name(const char *path, char out[128])
{
    const char *slash = strrchr(path, '/');
    snprintf(out, 128, "%s", slash ? slash + 1 : path);
    size_t n = strlen(out);
    if (gguf_claims(out))
        out[n - 5] = 0;
}

/* ---- files ---------------------------------------------------------------------------------------------------------- */

static enum code head_write(struct gguf_writer *w, const struct gguf_buffer *pairs)
{
    char *head;
    int64_t total;
    const char *path = w->base.temporary;
    TRY(gguf_header(pairs, w->tensors, w->n, w->base.path, &head, &w->data, &total));
    enum code c = OK;
    w->fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (w->fd < 0)
        c = fail_errno(path, "create");
    else if (ftruncate(w->fd, total)) /* zeros between the tensors */
        c = fail_errno(path, "set the size");
    else
        c = io_pwrite(w->fd, path, head, (size_t)w->data, 0);
    free(head);
    for (int i = 0; c == OK && i < w->n_extras; i++) {
        const struct gguf_tensor *t = &w->tensors[w->n - w->n_extras + i];
        c = io_pwrite(w->fd, path, w->extras[i].values, (size_t)t->bytes, w->data + t->offset);
    }
    return c;
}

static enum code writer_open(struct gguf_writer *w)
{
    const struct gguf_row *row;
    struct gguf_buffer pairs = {0};
    struct ckpt_writer *base = &w->base;
    char name[128];
    enum code c = gguf_row_of(&base->arch, &row);
    if (c != OK)
        return fail_in(c, "%s", base->path);
    TRY(plan(w, row));
    model_name(base->path, name);
    gguf_meta(&pairs, row, &base->arch, main_type(w));
    c = gguf_tokenizer(&pairs, &base->arch, base->companions, base->n_companions, name, base->path);
    if (c == OK)
        c = head_write(w, &pairs);
    gguf_buffer_free(&pairs);
    return c;
}

static enum code gguf_create(struct ckpt_writer **out, const struct ckpt_target *target)
{
    TRY(form_writer_new(out, sizeof(struct gguf_writer), &form_gguf, target));
    struct gguf_writer *w = (struct gguf_writer *)*out;
    w->fd = -1;
    enum code c = writer_open(w);
    if (c != OK)
        ckpt_abandon(*out);
    return c;
}

/* ---- rows ----------------------------------------------------------------------------------------------------------- */

static int64_t paired(int64_t i, int64_t rotary) { return i < rotary / 2 ? 2 * i : 2 * (i - rotary / 2) + 1; }

/* Whole heads are reordered in memory and written at once; parts of one row by row. */
static enum code paired_write(const struct gguf_writer *w, const struct rows *r, int64_t row, int64_t rows, const char *src, int64_t row_bytes)
{
    int64_t rotary = r->place.rotary, at = w->data + w->tensors[r->tensor].offset + r->place.first * row_bytes;
    char *head = malloc((size_t)(rotary * row_bytes));
    if (!head)
        return fail(ERR_MEMORY, "%s: out of memory for one head", w->base.path);
    enum code c = OK;
    for (int64_t done = 0; c == OK && done < rows;) {
        int64_t first = (row + done) / rotary * rotary, i = row + done - first, now = rotary - i < rows - done ? rotary - i : rows - done;
        for (int64_t k = 0; now == rotary && k < rotary; k++)
            memcpy(head + paired(k, rotary) * row_bytes, src + (done + k) * row_bytes, (size_t)row_bytes);
        if (now == rotary)
            c = io_pwrite(w->fd, w->base.temporary, head, (size_t)(rotary * row_bytes), at + first * row_bytes);
        for (int64_t k = 0; now < rotary && c == OK && k < now; k++)
            c = io_pwrite(w->fd, w->base.temporary, src + (done + k) * row_bytes, (size_t)row_bytes, at + (first + paired(i + k, rotary)) * row_bytes);
        done += now;
    }
    free(head);
    return c;
}

static enum code added_write(const struct gguf_writer *w, const struct rows *r, int64_t row, int64_t rows, const float *src)
{
    float *sum = malloc((size_t)rows * sizeof *sum);
    if (!sum)
        return fail(ERR_MEMORY, "%s: out of memory for a norm", w->base.path);
    for (int64_t i = 0; i < rows; i++)
        sum[i] = (float)((double)src[i] + r->place.add);
    enum code c = io_pwrite(w->fd, w->base.temporary, sum, (size_t)rows * sizeof *sum, w->data + w->tensors[r->tensor].offset + row * (int64_t)sizeof *sum);
    free(sum);
    return c;
}

static enum code gguf_write_rows(struct ckpt_writer *base, int i, int64_t row, int64_t rows, const void *src)
{
    struct gguf_writer *w = (struct gguf_writer *)base;
    const struct ckpt_tensor *t = &base->tensors[i];
    const struct rows *r = &w->rows[i];
    int64_t row_bytes = t->n[1] * (int64_t)dtype_bytes(t->dtype), at = w->data + w->tensors[r->tensor].offset + (r->place.first + row) * row_bytes;
    if (r->place.rotary)
        TRY(paired_write(w, r, row, rows, src, row_bytes));
    else if (r->place.add > 0)
        TRY(added_write(w, r, row, rows, src));
    else
        TRY(io_pwrite(w->fd, base->temporary, src, (size_t)(rows * row_bytes), at));
    w->unsynced += rows * row_bytes;
    if (w->unsynced >= WRITEBACK_BYTES) {
        w->unsynced = 0;
        sync_file_range(w->fd, 0, 0, SYNC_FILE_RANGE_WRITE); /* starts, does not wait; an error shows at fsync */
    }
    return OK;
}

static enum code gguf_finish(struct ckpt_writer *base)
{
    struct gguf_writer *w = (struct gguf_writer *)base;
    int fd = w->fd;
    if (fsync(fd))
        return fail_errno(base->temporary, "fsync");
    w->fd = -1;
    return close(fd) ? fail_errno(base->temporary, "close") : OK;
}

static void gguf_drop(struct ckpt_writer *base)
{
    struct gguf_writer *w = (struct gguf_writer *)base;
    if (w->rows && w->fd >= 0) /* without rows: refused before fd meant anything */
        close(w->fd);
    for (int i = 0; i < w->n_extras; i++)
        free(w->extras[i].values);
    free(w->tensors);
    free(w->rows);
}

const struct ckpt_form form_gguf = {
    .name = "GGUF file",
    .probe = gguf_probe,
    .open = gguf_open,
    .read = gguf_read,
    .claims = gguf_claims,
    .create = gguf_create,
    .write = gguf_write_rows,
    .finish = gguf_finish,
    .drop = gguf_drop,
};
