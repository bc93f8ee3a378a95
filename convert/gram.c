/* Ridge regression from sums over tokens. With features u [n], residuals r [C] and U, R their rows:
 *
 *   delta = (U^T U + diag(mu))^-1 U^T R      the change of a linear map that explains most of what is missing
 *
 * which is the ridge solution W' = argmin |U W'^T - Y|^2 + mu |W' - W|^2 (W the map so far, R = Y - U W^T) written for W' - W. Blocks of
 * rows are multiplied in f32, the sums are f64; a constant feature carries a bias and is not penalised. */
#include "calibrate.h"

#include <cblas.h>
#include <stdlib.h>
#include <string.h>

#include "linalg.h"

enum { BLOCK_ROWS = 512 };

int64_t gram_bytes(int64_t width, int64_t C)
{
    int64_t n = width + 1;
    return n * n * 12 + n * C * 12 + BLOCK_ROWS * n * 4;
}

enum code gram_open(struct gram *g, int64_t width, int ones, int64_t C)
{
    memset(g, 0, sizeof *g);
    g->n = width + (ones != 0);
    g->C = C;
    g->ones = ones;
    int64_t most = g->n > C ? g->n : C;
    g->a = calloc((size_t)(g->n * g->n), sizeof *g->a);
    g->b = calloc((size_t)(g->n * C) + 1, sizeof *g->b);
    g->block = malloc((size_t)(g->n * most) * sizeof *g->block);
    g->rows = malloc((size_t)(BLOCK_ROWS * g->n) * sizeof *g->rows);
    if (g->a && g->b && g->block && g->rows)
        return OK;
    gram_close(g);
    return fail(ERR_MEMORY, "out of memory for the moments of %lld features", (long long)width);
}

void gram_close(struct gram *g)
{
    free(g->a);
    free(g->b);
    free(g->block);
    free(g->rows);
    memset(g, 0, sizeof *g);
}

static void pack(const struct gram *g, const float *u, int64_t ldu, int64_t rows)
{
    int64_t width = g->n - g->ones;
    for (int64_t i = 0; i < rows; i++) {
        memcpy(g->rows + i * g->n, u + i * ldu, (size_t)width * sizeof *u);
        if (g->ones)
            g->rows[i * g->n + width] = 1.0f;
    }
}

static void add_block(struct gram *g, const float *r, int64_t ldr, int64_t rows)
{
    const int n = (int)g->n, k = (int)rows, C = (int)g->C;
    cblas_ssyrk(CblasRowMajor, CblasUpper, CblasTrans, n, k, 1.0f, g->rows, n, 0.0f, g->block, n);
#pragma omp parallel for schedule(static, 16)
    for (int i = 0; i < n; i++)
        for (int j = i; j < n; j++)
            g->a[(int64_t)i * n + j] += (double)g->block[(int64_t)i * n + j];
    if (C == 0)
        return;
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, n, C, k, 1.0f, g->rows, n, r, (int)ldr, 0.0f, g->block, C);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < (int64_t)n * C; i++)
        g->b[i] += (double)g->block[i];
}

void gram_add(struct gram *g, const float *u, int64_t ldu, const float *r, int64_t ldr, int64_t rows)
{
    for (int64_t row = 0; row < rows; row += BLOCK_ROWS) {
        int64_t now = rows - row < BLOCK_ROWS ? rows - row : BLOCK_ROWS;
        pack(g, u + row * ldu, ldu, now);
        add_block(g, r ? r + row * ldr : NULL, ldr, now);
    }
    g->count += rows;
}

static double mean_diagonal(const struct gram *g, int64_t from, int64_t to)
{
    double sum = 0;
    for (int64_t i = from; i < to; i++)
        sum += g->a[i * g->n + i];
    return to > from ? sum / (double)(to - from) : 0;
}

enum code ridge_solve(const struct gram *g, const struct ridge_parts *parts, double share, double *delta)
{
    int64_t n = g->n, width = n - g->ones;
    double *a = malloc((size_t)(n * n) * sizeof *a);
    if (!a)
        return fail(ERR_MEMORY, "out of memory for a regression on %lld features", (long long)n);
    memcpy(a, g->a, (size_t)(n * n) * sizeof *a);
    memcpy(delta, g->b, (size_t)(n * g->C) * sizeof *delta);
    double mu[2] = {share * mean_diagonal(g, 0, parts->first), share * mean_diagonal(g, parts->first, width)};
    for (int64_t i = 0; i < width; i++) /* features that are always 0 keep their weights: the least diagonal makes them solvable */
        a[i * n + i] += mu[i >= parts->first] + 1e-12 * (double)(g->count + 1);
    if (g->ones)
        a[n * n - 1] += 1e-6 * (double)(g->count + 1);
    enum code c = solve_spd(delta, a, n, g->C);
    free(a);
    return c;
}
