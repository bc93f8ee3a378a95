/* Canonical rows <-> rows of the files' tensors, by the numbers of family_place (family.h). Pure index arithmetic and copies in
 * memory; hf.c and hf_write.c bring the bytes. Internal to checkpoints/. */
#ifndef GQAKIT_CHECKPOINTS_ROWS_H
#define GQAKIT_CHECKPOINTS_ROWS_H

#include "family.h"

struct row_map {
    int64_t first, inner, stride, head, rotary;
    int64_t piece;  /* canonical rows that lie in one file tensor: all of them without pieces */
    int64_t length; /* elements of a canonical row */
    int64_t width;  /* elements of a row of a transposed file tensor; 0: not transposed */
};

/* Of a canonical tensor of `rows` rows of `length` elements. CHECKs that the place makes sense: a family's mistake. */
struct row_map row_map_make(const struct family_place *p, int64_t rows, int64_t length);
/* 1 when neighbouring canonical rows are no neighbours in the file: then the whole file tensor is held in memory and gathered. */
static inline int row_map_scattered(const struct row_map *m) { return m->width > 0 || m->rotary > 0; }
/* Row of the file tensor (its column, when transposed) of canonical row `row` of a piece, and in *run how many of the `rows`
 * rows that follow are adjacent there, this one included. */
int64_t row_map_at(const struct row_map *m, int64_t row, int64_t rows, int64_t *run);
/* Canonical rows [row, row + rows) of a piece from the whole file tensor in memory, and back. Elements of `bytes` bytes: 2, 4, 8. */
void rows_gather(void *canonical, const struct row_map *m, const void *file, int64_t row, int64_t rows, size_t bytes);
void rows_scatter(void *file, const struct row_map *m, const void *canonical, int64_t row, int64_t rows, size_t bytes);

#endif
