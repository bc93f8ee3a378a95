/* Private to xent.c, xent_teacher.c and topk.c: how rows are cut into chunks, and a teacher beside a chunk. */
#ifndef GQAKIT_KERNELS_CPU_XENT_H
#define GQAKIT_KERNELS_CPU_XENT_H

#include "cpu.h"

/* Rows of the largest chunk of any pass, and of each chunk of a pass of N. */
int64_t xent_chunk_most(int64_t V);
int64_t xent_chunk_rows(int64_t N, int64_t V);
static inline size_t xent_round(int64_t bytes) { return (size_t)((bytes + 63) & ~(int64_t)63); }

/* A teacher beside one chunk. Scratch: [rows, V] its logits or [rows, K] the student's logits of its tokens, its bias [V], kl f64 [rows]. */
struct xent_teach {
    const struct xent_teacher *t;
    int64_t V, K;
    float *room;       /* [rows, K] */
    const float *bias; /* times logit_scale, or NULL */
    double *kl;        /* [rows] */
    const int32_t *ids;
    const float *logp; /* of the chunk; ids NULL: a teacher with a head */
    int64_t ld_ids, ld_logp;
};
size_t xent_teacher_scratch(int64_t rows, int64_t V, int64_t K);
/* Refusals; nothing is written. */
enum code xent_teacher_check(const struct xent_teacher *t, int64_t N, int64_t V) MUST_USE;
void xent_teach_init(const struct device *dev, struct xent_teach *teach, const struct xent_teacher *t, int64_t rows, int64_t V, void *scratch);
/* The chunk [n0, n0 + rows): projects the teacher's logits. */
enum code xent_teach_chunk(struct device *dev, struct xent_teach *teach, int64_t n0, int64_t rows) MUST_USE;
/* Row n of the chunk, whose row->l holds z, max and sum its xent_stats: writes kl[n] and, with gradient, leaves that of the mixed loss
 * times factor in row->l. */
void xent_teach_row(const struct device *dev, const struct xent_teach *teach, int64_t n, const struct xent_row *row, float max, double sum,
                    int32_t target, int gradient, float factor);

#endif
