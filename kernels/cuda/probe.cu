/* What this GPU can do in this run: the ceilings that measured speeds are compared with.
 *   bandwidth: a copy within device memory of a range far beyond the L2 cache, bytes read plus bytes written per second
 *   flops:     a bf16 product of 8192 x 8192 x 8192 through the library. On random numbers: zeros run faster (less power) */
#include "device.cuh"

#define COPY_BYTES ((size_t)1 << 30)
#define COPY_ROUNDS 20
#define SIDE ((int64_t)8192)
#define PRODUCT_ROUNDS 30

namespace CUDA_NS {
namespace {

/* Values of about -1 to 1, all different enough. */
__global__ void probe_fill_k(bf16 *x, int64_t n)
{
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x) {
        uint32_t h = (uint32_t)i * 2654435761u;
        h = (h ^ h >> 15) * 2246822519u;
        h ^= h >> 13;
        x[i] = num_of<bf16>((float)(int32_t)h * 4.6566129e-10f);
    }
}

} // namespace

struct timer { cudaEvent_t from, to; };

static int timer_open(struct timer *t)
{
    t->from = t->to = NULL;
    return cudaEventCreate(&t->from) == cudaSuccess && cudaEventCreate(&t->to) == cudaSuccess;
}

static void timer_close(struct timer *t)
{
    if (t->from != NULL)
        cudaEventDestroy(t->from);
    if (t->to != NULL)
        cudaEventDestroy(t->to);
    (void)cudaGetLastError();
}

/* Seconds of what the stream does between the two events; 0 when it failed. */
static double timer_seconds(struct device *dev, struct timer *t)
{
    float ms = 0;
    if (cudaEventRecord(t->to, dev->own->stream) != cudaSuccess || cudaEventSynchronize(t->to) != cudaSuccess ||
        cudaEventElapsedTime(&ms, t->from, t->to) != cudaSuccess)
        return 0;
    return (double)ms * 1e-3;
}

double cuda_probe_bandwidth(struct device *dev)
{
    struct arena a = {};
    struct timer t;
    double best = 0;
    if (cuda_device_alloc(dev, &a, "the bandwidth probe", 2 * COPY_BYTES) != OK)
        return 0;
    if (timer_open(&t))
        for (int round = 0; round <= COPY_ROUNDS; round++) {
            cudaEventRecord(t.from, dev->own->stream);
            cudaMemcpyAsync(a.base + (round & 1 ? COPY_BYTES : 0), a.base + (round & 1 ? 0 : COPY_BYTES), COPY_BYTES, cudaMemcpyDeviceToDevice,
                            dev->own->stream);
            const double s = timer_seconds(dev, &t);
            if (round > 0 && s > 0 && 2.0 * (double)COPY_BYTES / s > best)
                best = 2.0 * (double)COPY_BYTES / s;
        }
    timer_close(&t);
    cuda_device_free(dev, &a);
    return best;
}

static enum code products(struct device *dev, char *memory, struct timer *t, double *seconds)
{
    struct view x[3];
    for (int i = 0; i < 3; i++)
        x[i] = view_2d(memory + i * SIDE * SIDE * 2, DT_BF16, SIDE, SIDE);
    TRY(LAUNCH(dev, probe_fill_k, dim3(1024), dim3(256), 0, ptr<bf16>(x[0]), 2 * SIDE * SIDE));
    for (int i = 0; i < 4; i++)
        TRY(cuda_matmul(dev, x[2], x[0], x[1], view_none(), 0, 1, 1.0f, 0.0f));
    TRY(cuda_result("probe_flops", cudaEventRecord(t->from, dev->own->stream)));
    for (int i = 0; i < PRODUCT_ROUNDS; i++)
        TRY(cuda_matmul(dev, x[2], x[0], x[1], view_none(), 0, 1, 1.0f, 0.0f));
    *seconds = timer_seconds(dev, t);
    return OK;
}

/* The mean of many products in a row: what a training step could reach, not the best moment of a cool chip. */
double cuda_probe_flops(struct device *dev)
{
    struct arena a = {};
    struct timer t;
    double seconds = 0;
    if (cuda_device_alloc(dev, &a, "the product probe", 3 * (size_t)(SIDE * SIDE) * 2) != OK)
        return 0;
    if (!timer_open(&t) || products(dev, a.base, &t, &seconds) != OK)
        seconds = 0;
    timer_close(&t);
    cuda_device_free(dev, &a);
    return seconds > 0 ? 2.0 * (double)SIDE * (double)SIDE * (double)SIDE * PRODUCT_ROUNDS / seconds : 0;
}

} // namespace CUDA_NS
