/* Rows between callers and forms; see blocks.c. Internal to checkpoints/. */
#ifndef GQAKIT_CHECKPOINTS_BLOCKS_H
#define GQAKIT_CHECKPOINTS_BLOCKS_H

#include "form.h"

enum code blocks_read(struct checkpoint *ck, int i, int64_t row, int64_t rows, void *dst, enum dtype as) MUST_USE;
enum code blocks_write(struct ckpt_writer *w, int i, int64_t row, int64_t rows, const void *src, enum dtype type) MUST_USE;
/* ERR_INTERNAL names the first tensor with rows that were never written. */
enum code blocks_complete(const struct ckpt_writer *w) MUST_USE;

#endif
