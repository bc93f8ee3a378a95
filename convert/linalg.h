/* Small dense linear algebra in f64 by OpenBLAS and LAPACKE: the few forms that merging heads needs. Row-major everywhere.
 * Results do not depend on the number of threads: callers call from inside a parallel region, where OpenBLAS does not split. */
#ifndef GQAKIT_CONVERT_LINALG_H
#define GQAKIT_CONVERT_LINALG_H

#include "base/base.h"

enum { PLAIN = 0, TRANSPOSED = 1 };
/* C [m, n] = alpha op(A) op(B) + beta C, op(A) [m, k]; leading dimensions in elements. */
void mul(double *C, int64_t ldc, const double *A, int64_t lda, int ta, const double *B, int64_t ldb, int tb, int64_t m, int64_t n, int64_t k,
         double alpha, double beta);
/* The k largest eigenvalues of the symmetric a [n, n] (destroyed), ascending, and their vectors as rows [k, n]. */
enum code eigen_top(double *values, double *vectors, double *a, int64_t n, int64_t k) MUST_USE;
/* Both square roots of a symmetric positive definite a [n, n] (destroyed): root = a^(1/2), inverse = a^(-1/2); either may be NULL.
 * Eigenvalues below 1e-14 of the largest count as that. */
enum code matrix_roots(double *root, double *inverse, double *a, int64_t n) MUST_USE;
/* The orthogonal matrix nearest to a [n, n] (destroyed): U V^T of its singular value decomposition. */
enum code nearest_orthogonal(double *q, double *a, int64_t n) MUST_USE;
/* b [n, r] = a^-1 b for a symmetric positive definite a [n, n] (destroyed). */
enum code solve_spd(double *b, double *a, int64_t n, int64_t r) MUST_USE;
/* Sum of x[i] y[i] of n floats, in f64 over blocks: the same bits whatever the number of threads (BLAS's dsdot splits by it). */
double dot_f32(const float *x, const float *y, int64_t n);

#endif
