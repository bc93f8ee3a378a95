/* Row-major products in a library that counts in columns. cuBLASLt computes D = op(A) op(B) (m x n, depth k) on column-major
 * matrices: element (i, j) of one is p[i + j * ld]. A row-major view x with row stride s is, read column by column, its transpose with
 * ld = s. So c = op(a) op(b) of kernels.h is asked for as c' = op(b)' op(a)': the library's A is b, its B is a,
 *     m = columns of c,  n = rows of c,  and a view is transposed for the library exactly when it is for us.
 * `bias` adds one number per row of the library's D, which is one per column of c: what kernels.h asks for.
 * Plain C so that tests/test_matmul_layout.c can check it without a GPU. */
#ifndef GQAKIT_KERNELS_CUDA_MATMUL_LAYOUT_H
#define GQAKIT_KERNELS_CUDA_MATMUL_LAYOUT_H

#include "kernels/kernels.h"

struct matmul_matrix {
    int64_t rows, cols, ld, transposed;
}; /* as stored, column-major; no padding: compared as bytes */

struct matmul_layout {
    int64_t m, n, k;
    struct matmul_matrix A, B, D; /* A is b's memory, B is a's, D is c's */
};

static inline struct matmul_matrix matmul_matrix_of(struct view x, int transposed)
{
    struct matmul_matrix a;
    a.rows = x.n[1];
    a.cols = x.n[0];
    a.ld = x.n[0] > 1 && x.s[0] > x.n[1] ? x.s[0] : x.n[1]; /* the stride of a single row is never used and may be anything */
    a.transposed = transposed;
    return a;
}

/* c [M,N], op(a) [M,K], op(b) [K,N]: shapes already checked. */
static inline struct matmul_layout matmul_layout_of(struct view c, struct view a, struct view b, int trans_a, int trans_b)
{
    struct matmul_layout l;
    l.m = c.n[1];
    l.n = c.n[0];
    l.k = a.n[trans_a ? 0 : 1];
    l.A = matmul_matrix_of(b, trans_b);
    l.B = matmul_matrix_of(a, trans_a);
    l.D = matmul_matrix_of(c, 0);
    return l;
}

#endif
