/* See tensor.h. */
#include "tensor.h"

#include <math.h>

#define BLOCKS_MAX 4096

static double *blocks[BLOCKS_MAX];
static int n_blocks;

double *tensor_doubles(int64_t n)
{
    double *x = calloc((size_t)n + 1, sizeof *x);
    CHECK(x != NULL && n_blocks < BLOCKS_MAX);
    return blocks[n_blocks++] = x;
}

void tensors_free(void)
{
    case_free();
    while (n_blocks > 0)
        free(blocks[--n_blocks]);
}

struct tensor tensor_of(enum dtype type, int64_t rows, int64_t cols, int64_t gap, const double *x)
{
    const int64_t ld = cols + gap, n[2] = {rows, ld};
    double *padded = tensor_doubles(rows * ld);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < ld; j++)
            padded[i * ld + j] = j < cols && x != NULL ? x[i * cols + j] : (double)NAN;
    struct tensor t = {.whole = case_upload(padded, type, 2, n), .gap = gap};
    t.v = view_slice(t.whole, 1, 0, cols);
    if (x != NULL) {
        t.x = tensor_doubles(rows * cols);
        for (int64_t i = 0; i < rows; i++)
            memcpy(t.x + i * cols, padded + i * ld, (size_t)cols * sizeof *t.x);
    }
    return t;
}

struct tensor tensor_random(enum dtype type, int64_t rows, int64_t cols, int64_t gap, uint64_t seed, double size)
{
    double *x = tensor_doubles(rows * cols);
    fill_random_f64(x, rows * cols, seed);
    for (int64_t i = 0; i < rows * cols; i++)
        x[i] *= size;
    return tensor_of(type, rows, cols, gap, x);
}

struct tensor tensor_output(enum dtype type, int64_t rows, int64_t cols, int64_t gap)
{
    const int64_t n[2] = {rows, cols + gap};
    struct tensor t = {.whole = case_output(type, 2, n), .gap = gap};
    t.v = view_slice(t.whole, 1, 0, cols);
    return t;
}

struct tensor tensor_copy(struct tensor t)
{
    return tensor_of(t.v.dtype, t.v.n[0], t.v.n[1], t.gap, t.x);
}

struct view tensor_vector(double *x, enum dtype type, int64_t n)
{
    return case_upload(x, type, 1, &n);
}

double *tensor_get_view(struct view v)
{
    double *x = tensor_doubles(view_count(v));
    case_download(x, v);
    return x;
}

double *tensor_get(struct tensor t)
{
    return tensor_get_view(t.v);
}

int tensor_gaps_ok(struct tensor t)
{
    if (t.gap == 0)
        return 1;
    const int64_t rows = t.v.n[0], cols = t.v.n[1];
    double *gap = tensor_get_view(view_slice(t.whole, 1, cols, t.gap));
    for (int64_t i = 0; i < rows * t.gap; i++)
        if (!isnan(gap[i])) {
            print_error("element %lld past row %lld was written: %g\n", (long long)(i % t.gap), (long long)(i / t.gap), gap[i]);
            return 0;
        }
    return 1;
}

double tensor_round(double x, enum dtype type)
{
    return type == DT_BF16 ? (double)f32_from_bf16(bf16_from_f32((float)x)) : (double)(float)x;
}

void tensor_expect(const char *what, enum dtype type, const double *got, const double *truth, int64_t n, double absolute)
{
    case_expect_near(what, got, truth, (size_t)n, absolute, type == DT_BF16 ? 0x1p-8 + 1e-5 : 1e-5);
}
