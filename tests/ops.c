/* See ops.h. */
#include "ops.h"

#include <math.h>

#define GAP_PATTERN 12345.0f

struct device *ops_device(enum isa isa, int threads)
{
    struct device *dev = NULL;
    const struct device_options options = {.threads = threads};
    assert_ok(cpu_device_open(&dev, &options));
    dev->isa = isa;
    dev->loops = cpu_loops(isa);
    return dev;
}

struct view ops_rows(int64_t n0, int64_t n1, int64_t gap, uint64_t seed)
{
    const int64_t ld = n1 + gap;
    float *p = aligned_alloc(64, (size_t)((n0 * ld + 16) / 16 * 64 + 64));
    assert_non_null(p);
    if (seed)
        fill_random(p, n0 * ld, seed);
    else
        fill_nan(p, n0 * ld);
    for (int64_t i = 0; i < n0; i++)
        for (int64_t j = n1; j < ld; j++)
            p[i * ld + j] = GAP_PATTERN;
    struct view v = view_2d(p, DT_F32, n0, n1);
    v.s[0] = ld;
    return v;
}

int ops_gaps_ok(struct view x, int64_t gap)
{
    for (int64_t i = 0; i < x.n[0]; i++)
        for (int64_t j = x.n[1]; j < x.n[1] + gap; j++)
            if (view_f32(x)[i * x.s[0] + j] != GAP_PATTERN) {
                print_error("float %lld past row %lld was written\n", (long long)(j - x.n[1]), (long long)i);
                return 0;
            }
    return 1;
}

struct view ops_vector(int64_t n, uint64_t seed)
{
    struct view v = ops_rows(1, n, 0, seed);
    return view_1d(v.p, DT_F32, n);
}

struct view ops_bf16(struct view x)
{
    uint16_t *p = malloc((size_t)(x.n[0] * x.n[1]) * 2 + 64);
    assert_non_null(p);
    for (int64_t i = 0; i < x.n[0]; i++)
        for (int64_t j = 0; j < x.n[1]; j++) {
            float *from = view_f32(x) + i * x.s[0] + j;
            p[i * x.n[1] + j] = bf16_from_f32(*from);
            *from = f32_from_bf16(p[i * x.n[1] + j]);
        }
    return view_2d(p, DT_BF16, x.n[0], x.n[1]);
}

double *ops_f64(struct view x)
{
    if (x.p == NULL)
        return NULL;
    double *out = malloc((size_t)view_count(x) * sizeof *out + 8);
    assert_non_null(out);
    const int64_t rows = x.nd == 1 ? 1 : x.n[0], cols = x.nd == 1 ? x.n[0] : x.n[1];
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++)
            out[i * cols + j] = (double)view_f32(x)[(x.nd == 1 ? 0 : i * x.s[0]) + j];
    return out;
}

float *ops_dense(struct view x)
{
    float *out = malloc((size_t)view_count(x) * sizeof *out + 8);
    assert_non_null(out);
    const int64_t rows = x.nd == 1 ? 1 : x.n[0], cols = x.nd == 1 ? x.n[0] : x.n[1];
    for (int64_t i = 0; i < rows; i++)
        memcpy(out + i * cols, view_f32(x) + (x.nd == 1 ? 0 : i * x.s[0]), (size_t)cols * sizeof *out);
    return out;
}

int ops_compare(const char *name, struct view got, const double *want, double rtol, double atol)
{
    float *dense = ops_dense(got);
    int ok = compare_f32(name, dense, want, view_count(got), rtol, atol);
    free(dense);
    return ok;
}

void ops_differences(double (*f)(void *context), void *context, double *x, int64_t n, double *grad)
{
    const double h = 1e-5;
    for (int64_t i = 0; i < n; i++) {
        const double at = x[i];
        x[i] = at + h;
        double up = f(context);
        x[i] = at - h;
        grad[i] = (up - f(context)) / (2 * h);
        x[i] = at;
    }
}
