/* What the reader (hf.c) and the writer (hf_write.c) of Hugging Face directories share. Internal to checkpoints/. */
#ifndef GQAKIT_CHECKPOINTS_HF_H
#define GQAKIT_CHECKPOINTS_HF_H

#include "family.h"
#include "form.h"

#define HF_SINGLE "model.safetensors"
#define HF_INDEX "model.safetensors.index.json"

/* Where the rows of one canonical tensor lie: in `shard`, from byte `offset` on, by family_place's three numbers. */
struct hf_rows { int shard; int64_t offset, first, inner, stride; };

/* The file's row of canonical row `row`, and in *run how many of the `rows` that follow are adjacent there. */
static inline int64_t hf_rows_run(const struct hf_rows *m, int64_t row, int64_t rows, int64_t *run)
{
    int64_t left = m->inner - row % m->inner;
    if (m->inner == m->stride)
        left = rows; /* no gaps at all */
    *run = left < rows ? left : rows;
    return m->first + row / m->inner * m->stride + row % m->inner;
}

int hf_claims(const char *path);
enum code hf_create(struct ckpt_writer **w, const struct ckpt_target *target);
enum code hf_write(struct ckpt_writer *w, int i, int64_t row, int64_t rows, const void *src);
enum code hf_finish(struct ckpt_writer *w);
void hf_drop(struct ckpt_writer *w);

#endif
