/* The executor as a backend: the table of kernels/cuda compiled for it, with memory, copies and dense products of its own. */
#include <stdio.h>

#include "kernels/cuda/cuda.cuh"
#include "state.h"

#define SIMT_SMS 8 /* fewer than any GPU: loops over work run more than once */

namespace CUDA_NS {

static int open_arch = 90;

enum code cuda_device_open(struct device **dev, const struct device_options *options)
{
    (void)options;
    struct device *d = (struct device *)calloc(1, sizeof *d);
    CHECK(d != NULL);
    d->arch = open_arch;
    d->sm_count = SIMT_SMS;
    d->smem_max = open_arch >= 90 ? 232448 : open_arch > 80 ? 101376 : 166912; /* 227, 99, 163 KB */
    d->work_bytes = CUDA_WORK_BYTES;
    d->work = (char *)simt_alloc(d->work_bytes, 0);
    if (d->work == NULL) {
        free(d);
        return fail(ERR_MEMORY, "simt executor: its range of device memory is used up");
    }
    snprintf(d->name, sizeof d->name, "simt executor, sm_%d", open_arch);
    *dev = d;
    return OK;
}

void cuda_device_close(struct device *dev)
{
    if (dev == NULL)
        return;
    simt_free(dev->work);
    free(dev);
}

enum code cuda_device_alloc(struct device *dev, struct arena *a, const char *name, size_t bytes)
{
    (void)dev;
    memset(a, 0, sizeof *a);
    a->base = (char *)simt_alloc(bytes > 0 ? bytes : 1, 1);
    if (a->base == NULL)
        return fail(ERR_MEMORY, "%s: %zu bytes of device memory", name, bytes);
    a->capacity = bytes;
    a->name = name;
    return OK;
}

void cuda_device_free(struct device *dev, struct arena *a)
{
    (void)dev;
    simt_free(a->base);
    a->base = NULL;
    a->used = a->capacity = 0;
}

enum code cuda_device_copy(struct device *dev, void *dst, const void *src, size_t bytes)
{
    (void)dev;
    simt_copy(dst, src, bytes);
    return OK;
}

enum code cuda_device_sync(struct device *dev)
{
    (void)dev;
    return OK;
}

const char *cuda_device_name(struct device *dev) { return dev->name; }
double cuda_probe_bandwidth(struct device *dev) { return (void)dev, 0; }
double cuda_probe_flops(struct device *dev) { return (void)dev, 0; }

enum code cuda_graph_begin(struct device *dev, int *recording)
{
    (void)dev;
    *recording = 0;
    return OK;
}
enum code cuda_graph_end(struct device *dev, struct graph **graph)
{
    (void)dev;
    *graph = NULL;
    return OK;
}
enum code cuda_graph_run(struct device *dev, struct graph *graph)
{
    (void)dev, (void)graph;
    return fail(ERR_INTERNAL, "graph_run: the executor records no graphs");
}
void cuda_graph_free(struct device *dev, struct graph *graph) { (void)dev, (void)graph; }

/* ---- matmul, which is cuBLASLt's on a GPU ---- */

/* op(x) as dense f32 [rows, cols]; free by the caller. NULL: not device memory. */
static float *dense(struct view x, int transpose, int64_t rows, int64_t cols)
{
    float *out = (float *)malloc((size_t)(rows * cols + 1) * sizeof *out);
    CHECK(out != NULL);
    const size_t wide = dtype_bytes(x.dtype);
    for (int64_t i = 0; i < x.n[0]; i++) {
        const char *row = (const char *)x.p + (size_t)(i * x.s[0]) * wide;
        if (!simt::host_touch(row, (size_t)x.n[1] * wide, 0)) {
            free(out);
            return NULL;
        }
        for (int64_t j = 0; j < x.n[1]; j++)
            out[transpose ? j * cols + i : i * cols + j] = x.dtype == DT_BF16 ? f32_from_bf16(((const uint16_t *)row)[j]) : ((const float *)row)[j];
    }
    return out;
}

static enum code matmul_check(struct view c, struct view a, struct view b, struct view bias, int trans_a, int trans_b)
{
    const char *op = "matmul";
    TRY(cuda_check_type(op, a));
    TRY(cuda_check_type(op, c));
    if (a.dtype == DT_F32 && c.dtype != DT_F32)
        return fail(ERR_UNSUPPORTED, "%s: c is %s; f32 matrices give f32", op, dtype_name(c.dtype));
    TRY(cuda_check(op, "c", c, c.dtype, 2, -1, -1, 0));
    TRY(cuda_check(op, "a", a, a.dtype, 2, trans_a ? -1 : c.n[0], trans_a ? c.n[0] : -1, 0));
    const int64_t K = a.n[trans_a ? 0 : 1];
    TRY(cuda_check(op, "b", b, a.dtype, 2, trans_b ? c.n[1] : K, trans_b ? K : c.n[1], 0));
    TRY(cuda_check(op, "bias", bias, DT_F32, 1, c.n[1], -1, 1));
    if (K == 0)
        return fail(ERR_UNSUPPORTED, "%s: nothing to sum over (the inner dimension is 0)", op);
    return OK;
}

enum code cuda_matmul(struct device *dev, struct view c, struct view a, struct view b, struct view bias, int trans_a, int trans_b, float alpha,
                      float beta)
{
    TRY(matmul_check(c, a, b, bias, trans_a, trans_b));
    const int64_t M = c.n[0], N = c.n[1], K = a.n[trans_a ? 0 : 1];
    if (M == 0 || N == 0)
        return OK;
    simt::now.name = "matmul";
    float *x = dense(a, trans_a, M, K), *y = dense(b, trans_b, K, N), *sum = (float *)malloc((size_t)N * sizeof *sum);
    CHECK(sum != NULL);
    const int good = x != NULL && y != NULL && (bias.p == NULL || simt::host_touch(bias.p, (size_t)N * 4, 0));
    for (int64_t i = 0; i < M && good; i++) {
        memset(sum, 0, (size_t)N * sizeof *sum);
        for (int64_t k = 0; k < K; k++)
            for (int64_t j = 0; j < N; j++)
                sum[j] += x[i * K + k] * y[k * N + j];
        const size_t wide = dtype_bytes(c.dtype);
        char *row = (char *)c.p + (size_t)(i * c.s[0]) * wide;
        if (beta != 0)
            simt::host_touch(row, (size_t)N * wide, 0);
        if (!simt::host_touch(row, (size_t)N * wide, 1))
            break;
        for (int64_t j = 0; j < N; j++) {
            float v = alpha * sum[j];
            if (beta != 0)
                v += beta * (c.dtype == DT_BF16 ? f32_from_bf16(((uint16_t *)row)[j]) : ((float *)row)[j]);
            if (bias.p != NULL && c.dtype == DT_F32)
                v += ((const float *)bias.p)[j];
            if (c.dtype == DT_BF16)
                ((uint16_t *)row)[j] = bf16_from_f32(v);
            else
                ((float *)row)[j] = v;
        }
    }
    free(x), free(y), free(sum);
    if (!good)
        return fail(ERR_DEVICE, "matmul: an argument is not in device memory");
    return bias.p != NULL && c.dtype == DT_BF16 ? bias_add(dev, c, bias) : OK; /* as matmul.cu does */
}

} // namespace CUDA_NS

#define SIMT_SLOT(op) CUDA_NS::cuda_##op,
static const struct backend backend_simt = {"simt", KERNEL_OPS(SIMT_SLOT)};
const struct backend *simt_backend(void) { return &backend_simt; }

void simt_open_as(int arch)
{
    CHECK(arch == 80 || arch == 86 || arch == 90);
    CUDA_NS::open_arch = arch;
}
