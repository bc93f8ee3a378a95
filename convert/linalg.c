/* See linalg.h. LAPACK is column-major: a symmetric matrix is the same either way, and of a general one LAPACK sees the transpose. */
#include "linalg.h"

#include <cblas.h>
#include <lapacke.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

void mul(double *C, int64_t ldc, const double *A, int64_t lda, int ta, const double *B, int64_t ldb, int tb, int64_t m, int64_t n, int64_t k,
         double alpha, double beta)
{
    cblas_dgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, (int)m, (int)n, (int)k, alpha, A, (int)lda, B,
                (int)ldb, beta, C, (int)ldc);
}

static enum code refused(const char *what, lapack_int info)
{
    return fail(info == LAPACK_WORK_MEMORY_ERROR ? ERR_MEMORY : ERR_NUMERIC, "%s of a layer's moments failed (LAPACK says %d): are all values finite?",
                what, (int)info);
}

enum code eigen_top(double *values, double *vectors, double *a, int64_t n, int64_t k)
{
    double *all = malloc((size_t)n * sizeof *all); /* dsyevr may use all n */
    lapack_int *support = malloc((size_t)(2 * n) * sizeof *support), found = 0, info = LAPACK_WORK_MEMORY_ERROR;
    if (all && support)
        info = LAPACKE_dsyevr(LAPACK_COL_MAJOR, 'V', 'I', 'U', (lapack_int)n, a, (lapack_int)n, 0, 0, (lapack_int)(n - k + 1), (lapack_int)n, 0,
                              &found, all, vectors, (lapack_int)n, support);
    if (info == 0)
        memcpy(values, all, (size_t)k * sizeof *values);
    free(all);
    free(support);
    return info == 0 && found == k ? OK : refused("an eigenvalue decomposition", info);
}

enum code matrix_roots(double *root, double *inverse, double *a, int64_t n)
{
    double *values = malloc((size_t)(n + 2 * n * n) * sizeof *values);
    if (!values)
        return fail(ERR_MEMORY, "out of memory for a square root of %lld rows", (long long)n);
    double *vectors = values + n, *scaled = vectors + n * n;
    enum code c = eigen_top(values, vectors, a, n, n);
    double least = c == OK ? values[n - 1] * 1e-14 : 0;
    for (int side = 0; c == OK && side < 2; side++) {
        double *out = side ? inverse : root;
        if (!out)
            continue;
        for (int64_t i = 0; i < n; i++) {
            double v = sqrt(values[i] > least ? values[i] : least), s = side ? (v > 0 ? 1 / v : 0) : v;
            for (int64_t j = 0; j < n; j++)
                scaled[i * n + j] = s * vectors[i * n + j];
        }
        mul(out, n, vectors, n, TRANSPOSED, scaled, n, PLAIN, n, n, n, 1, 0);
    }
    free(values);
    return c;
}

enum code nearest_orthogonal(double *q, double *a, int64_t n)
{
    double *u = malloc((size_t)(n + 2 * n * n) * sizeof *u);
    if (!u)
        return fail(ERR_MEMORY, "out of memory for a decomposition of %lld rows", (long long)n);
    double *vt = u + n * n, *s = vt + n * n;
    lapack_int N = (lapack_int)n, info = LAPACKE_dgesdd(LAPACK_COL_MAJOR, 'A', N, N, a, N, s, u, N, vt, N);
    if (info == 0) /* column-major u vt is the transpose's factor, and column-major again: q itself, row-major */
        cblas_dgemm(CblasColMajor, CblasNoTrans, CblasNoTrans, (int)n, (int)n, (int)n, 1, u, (int)n, vt, (int)n, 0, q, (int)n);
    free(u);
    return info == 0 ? OK : refused("a singular value decomposition", info);
}

enum code solve_spd(double *b, double *a, int64_t n, int64_t r)
{
    lapack_int info = LAPACKE_dposv(LAPACK_ROW_MAJOR, 'U', (lapack_int)n, (lapack_int)r, a, (lapack_int)n, b, (lapack_int)r);
    return info == 0 ? OK : refused("a Cholesky decomposition", info);
}

double dot_f32(const float *x, const float *y, int64_t n)
{
    double total = 0;
    for (int64_t from = 0; from < n; from += 1024) {
        double sum = 0;
        int64_t to = from + 1024 < n ? from + 1024 : n;
        for (int64_t i = from; i < to; i++)
            sum += (double)x[i] * (double)y[i];
        total += sum;
    }
    return total;
}
