/* Rows on their way between a caller and a form: range checks, dtype conversion through one bounded buffer, and the
 * book-keeping that every row of a result is written exactly once. Same dtype on both sides: no copy here. */
#include "blocks.h"

#include <stdlib.h>
#include <string.h>

/* Large enough that a system call is nothing, small enough to stay in the second-level cache of most machines. */
#define BLOCK_BYTES ((int64_t)1 << 20)

static int64_t block_rows(const struct ckpt_tensor *t, int64_t rows)
{
    int64_t fit = BLOCK_BYTES / (t->n[1] * (int64_t)dtype_bytes(t->dtype));
    return fit < 1 ? 1 : fit < rows ? fit : rows;
}

enum code blocks_read(struct checkpoint *ck, int i, int64_t row, int64_t rows, void *dst, enum dtype as)
{
    const struct ckpt_tensor *t = &ck->tensors[i];
    CHECK(row >= 0 && rows >= 0 && rows <= t->n[0] && row <= t->n[0] - rows);
    if (rows == 0)
        return OK;
    if (as == DT_NONE || as == t->dtype)
        return ck->form->read(ck, i, row, rows, dst);
    if (ck->form->read_as)
        return ck->form->read_as(ck, i, row, rows, dst, as);

    int64_t step = block_rows(t, rows);
    size_t stored = (size_t)t->n[1] * dtype_bytes(t->dtype), wanted = (size_t)t->n[1] * dtype_bytes(as);
    void *buffer = malloc((size_t)step * stored);
    if (!buffer)
        return fail(ERR_MEMORY, "%s: %s: out of memory for %lld rows", ck->path, t->name, (long long)step);
    enum code c = OK;
    for (int64_t done = 0; c == OK && done < rows; done += step) {
        int64_t now = step < rows - done ? step : rows - done;
        c = ck->form->read(ck, i, row + done, now, buffer);
        if (c == OK)
            convert_elements((char *)dst + (size_t)done * wanted, as, buffer, t->dtype, (size_t)(now * t->n[1]));
    }
    free(buffer);
    return c;
}

/* ---- writing ------------------------------------------------------------------------------------------------------ */

static enum code rows_mark(struct ckpt_writer *w, int i, int64_t row, int64_t rows)
{
    const struct ckpt_tensor *t = &w->tensors[i];
    if (!w->rows_done[i])
        w->rows_done[i] = calloc((size_t)(t->n[0] + 7) / 8, 1);
    if (!w->rows_done[i])
        return fail(ERR_MEMORY, "%s: out of memory", w->path);
    for (int64_t r = row; r < row + rows; r++) {
        unsigned char *byte = &w->rows_done[i][r / 8], bit = (unsigned char)(1u << (r % 8));
        if (*byte & bit)
            return fail(ERR_INTERNAL, "%s: row %lld of %s is written twice", w->path, (long long)r, t->name);
        *byte |= bit;
    }
    w->rows_left[i] -= rows;
    return OK;
}

enum code blocks_write(struct ckpt_writer *w, int i, int64_t row, int64_t rows, const void *src, enum dtype type)
{
    const struct ckpt_tensor *t = &w->tensors[i];
    CHECK(row >= 0 && rows >= 0 && rows <= t->n[0] && row <= t->n[0] - rows);
    if (rows == 0)
        return OK;
    TRY(rows_mark(w, i, row, rows));
    if (type == DT_NONE || type == t->dtype)
        return w->form->write(w, i, row, rows, src);

    int64_t step = block_rows(t, rows);
    size_t stored = (size_t)t->n[1] * dtype_bytes(t->dtype), given = (size_t)t->n[1] * dtype_bytes(type);
    void *buffer = malloc((size_t)step * stored);
    if (!buffer)
        return fail(ERR_MEMORY, "%s: %s: out of memory for %lld rows", w->path, t->name, (long long)step);
    enum code c = OK;
    for (int64_t done = 0; c == OK && done < rows; done += step) {
        int64_t now = step < rows - done ? step : rows - done;
        convert_elements(buffer, t->dtype, (const char *)src + (size_t)done * given, type, (size_t)(now * t->n[1]));
        c = w->form->write(w, i, row + done, now, buffer);
    }
    free(buffer);
    return c;
}

enum code blocks_complete(const struct ckpt_writer *w)
{
    for (int i = 0; i < w->n_tensors; i++)
        if (w->rows_left[i])
            return fail(ERR_INTERNAL, "%s: %lld of %lld rows of %s were never written", w->path, (long long)w->rows_left[i],
                        (long long)w->tensors[i].n[0], w->tensors[i].name);
    return OK;
}
