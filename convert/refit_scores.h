/* Private to the refit: fitting the projections of queries and keys to the original's attention scores (refit_scores.c). */
#ifndef GQAKIT_CONVERT_REFIT_SCORES_H
#define GQAKIT_CONVERT_REFIT_SCORES_H

#include "calibrate_parts.h"

enum { LANES = 32 }; /* tokens whose systems are solved side by side */

/* One K/V head of the result in one sequence, and the R query heads that read it. Strides are in floats from token to token. */
struct group {
    const float *q0, *q1, *lse, *slopes; /* of the first query head; the original's and the converted model's; slopes NULL: no ALiBi */
    const float *k0, *k1;                /* K/V head 0 of the original; this one of the result */
    const int32_t *segment;
    int64_t sq0, sk0, sq1, sk1, T, D, R, window; /* window 0: none */
    int64_t first, R0;                           /* number of the first head; query heads for each K/V head of the original */
    float scale;
    float *d; /* out, [T, stride]: changes of the R query heads, or of the key head */
    int64_t stride;
};

static inline int64_t pairs(int64_t D) { return D * (D + 1) / 2; }
/* p [rows, S] holds the original's scores, `now` the result's, of head j at tokens t0 .. t0 + rows - 1 (row stride T): p becomes the
 * original's attention, pr the attention times what the score lacks; zero where a query does not see a key. LANES rows are written. */
void scores_weigh(const struct group *g, float *p, float *pr, const float *now, int64_t j, int64_t t0, int64_t rows, int64_t S);
/* Cholesky solves of LANES systems [D, D]: lower halves a [pair, stride], right sides b [D, stride], which become the solutions. */
void scores_solve(float *a, float *b, int64_t D, int64_t stride);
/* c = alpha op(a) op(b) + beta c */
void scores_gemm(float *c, int64_t ldc, const float *a, int64_t lda, int ta, const float *b, int64_t ldb, int tb, int64_t m, int64_t n, int64_t k,
                 float alpha, float beta);
/* z [D(D+1)/2]: lower half of x x^T */
static inline void scores_square(float *z, const float *x, int64_t D)
{
    for (int64_t i = 0; i < D; i++)
        for (int64_t j = 0; j <= i; j++)
            *z++ = x[i] * x[j];
}

/* refit_query.c, refit_key.c: floats of memory for one thread, and the changes of one group. */
int64_t query_floats(int64_t T, int64_t D, int64_t R);
void query_changes(const struct group *g, float *memory);
int64_t key_floats(int64_t T, int64_t D, int64_t R);
void key_changes(const struct group *g, float *memory);

#endif
