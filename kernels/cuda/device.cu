/* A GPU as a device: choosing and opening it, memory, copies, waiting, errors. The first visible GPU is used (CUDA_VISIBLE_DEVICES
 * chooses another). Everything runs on one stream of our own. The runtime is linked statically and loads the driver when it is
 * first called, so a program with this backend starts on a machine without one. */
#include "device.cuh"

#include "blas.cuh"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace CUDA_NS {

enum code cuda_result(const char *what, cudaError_t error)
{
    if (error == cudaSuccess)
        return OK;
    (void)cudaGetLastError(); /* what a later launch_check must not report again */
    return fail(error == cudaErrorMemoryAllocation ? ERR_MEMORY : ERR_DEVICE, "%s: CUDA: %s", what, cudaGetErrorString(error));
}

/* Errors of a kernel while it runs show at a later call; CUDA_LAUNCH_BLOCKING=1 in the environment makes each launch wait and so
 * puts the name of the kernel in the sentence. */
enum code launch_check(const char *kernel, cudaError_t error) { return error == cudaSuccess ? OK : cuda_result(kernel, error); }

struct found { int index, capability, sm_count, smem_max, driver; cudaDeviceProp properties; };

/* The refusals are the rest of a sentence: "--device cuda: ...", "device: the CPU, because ...". */
static enum code device_find(struct found *f)
{
    int count = 0;
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    cudaError_t e = cudaGetDeviceCount(&count);
    (void)cudaGetLastError();
    if (cudaDriverGetVersion(&f->driver) != cudaSuccess || f->driver == 0)
        return fail(ERR_DEVICE, "this machine has no NVIDIA driver (libcuda.so.1 is missing or does not load)");
    if (e == cudaErrorInsufficientDriver)
        return fail(ERR_DEVICE, "the NVIDIA driver knows CUDA %d.%d and this build needs %d.%d (update the driver, or build with an older toolkit)",
                    f->driver / 1000, f->driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    if (e == cudaErrorNoDevice || (e == cudaSuccess && count == 0))
        return fail(ERR_DEVICE, "the NVIDIA driver sees no GPU (CUDA_VISIBLE_DEVICES is %s)", visible ? visible : "not set");
    TRY(cuda_result("looking for a GPU failed", e));
    TRY(cuda_result("looking at the GPU failed", cudaGetDeviceProperties(&f->properties, f->index)));
    f->capability = f->properties.major * 10 + f->properties.minor;
    if (f->capability < CUDA_LEAST_CAPABILITY)
        return fail(ERR_DEVICE, "%s is compute capability %d.%d; %d.%d or newer is needed", f->properties.name, f->properties.major,
                    f->properties.minor, CUDA_LEAST_CAPABILITY / 10, CUDA_LEAST_CAPABILITY % 10);
    f->sm_count = f->properties.multiProcessorCount;
    f->smem_max = (int)f->properties.sharedMemPerBlockOptin;
    return OK;
}

static enum code open_parts(struct device *d, const struct found *f)
{
    TRY(cuda_result("device cuda", cudaSetDevice(f->index)));
    TRY(cuda_result("device cuda: a stream", cudaStreamCreateWithFlags(&d->own->stream, cudaStreamNonBlocking)));
    d->stream = d->own->stream;
    TRY(cuda_result("device cuda: the workspace", cudaMalloc((void **)&d->work, CUDA_WORK_BYTES)));
    d->work_bytes = CUDA_WORK_BYTES;
    return staging_open(&d->own->staging);
}

enum code cuda_device_open(struct device **dev, const struct device_options *options)
{
    (void)options;
    struct found f = {};
    const struct blas *blas;
    TRY(device_find(&f));
    TRY(blas_load(&blas));
    struct device *d = (struct device *)calloc(1, sizeof *d);
    struct device_private *own = (struct device_private *)calloc(1, sizeof *own);
    if (d == NULL || own == NULL) {
        free(d), free(own);
        return fail(ERR_MEMORY, "device cuda: out of memory");
    }
    d->own = own;
    d->arch = f.capability == CUDA_WGMMA_CAPABILITY ? 90 : 80;
    d->sm_count = f.sm_count;
    d->smem_max = (size_t)f.smem_max;
    snprintf(d->name, sizeof d->name, "cuda %.48s, compute %d.%d, %d SMs, %.0f GiB", f.properties.name, f.properties.major, f.properties.minor,
             f.sm_count, (double)f.properties.totalGlobalMem / 1073741824.0);
    enum code c = open_parts(d, &f);
    if (c != OK)
        cuda_device_close(d);
    else
        *dev = d;
    return c;
}

void cuda_device_close(struct device *dev)
{
    if (dev == NULL)
        return;
    if (dev->own->stream != NULL)
        cudaStreamSynchronize(dev->own->stream);
    matmul_close(dev);
    staging_close(&dev->own->staging);
    if (dev->work != NULL)
        cudaFree(dev->work);
    if (dev->own->stream != NULL)
        cudaStreamDestroy(dev->own->stream);
    (void)cudaGetLastError();
    free(dev->own);
    free(dev);
}

enum code cuda_device_alloc(struct device *dev, struct arena *a, const char *name, size_t bytes)
{
    void *p = NULL;
    cudaError_t e = cudaMalloc(&p, bytes ? bytes : 1);
    if (e != cudaSuccess) {
        size_t spare = 0, total = 0;
        (void)cudaGetLastError();
        if (e != cudaErrorMemoryAllocation || cudaMemGetInfo(&spare, &total) != cudaSuccess)
            return cuda_result("device_alloc", e);
        return fail(ERR_MEMORY, "cannot reserve %.1f MiB for %s on %s: %.1f MiB of %.1f are free", (double)bytes / 1048576.0, name, dev->name,
                    (double)spare / 1048576.0, (double)total / 1048576.0);
    }
    e = cudaMemsetAsync(p, 0, bytes ? bytes : 1, dev->own->stream);
    if (e != cudaSuccess) {
        cudaFree(p);
        return cuda_result("device_alloc", e);
    }
    a->base = (char *)p;
    a->used = 0;
    a->capacity = bytes;
    a->name = name;
    a->host = 0;
    return OK;
}

void cuda_device_free(struct device *dev, struct arena *a)
{
    if (a->base != NULL) {
        CHECK(!a->host);
        cudaStreamSynchronize(dev->own->stream);
        cudaFree(a->base);
    }
    a->base = NULL;
    a->used = a->capacity = 0;
}

static enum code on_device(const void *p, int *yes)
{
    cudaPointerAttributes a;
    TRY(cuda_result("device_copy", cudaPointerGetAttributes(&a, p)));
    *yes = a.type == cudaMemoryTypeDevice || a.type == cudaMemoryTypeManaged;
    return OK;
}

/* To the device: returns at once. From it: waits for everything before it, and for the copy. */
enum code cuda_device_copy(struct device *dev, void *dst, const void *src, size_t bytes)
{
    int to = 0, from = 0;
    if (bytes == 0)
        return OK;
    TRY(on_device(dst, &to));
    TRY(on_device(src, &from));
    if (dev->own->recording && !(to && from))
        return fail(ERR_INTERNAL, "device_copy: copies from or to the host cannot be recorded");
    if (to && !from)
        return staging_copy(&dev->own->staging, dev->own->stream, dst, src, bytes);
    if (to && from)
        return cuda_result("device_copy", cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, dev->own->stream));
    if (from) {
        TRY(cuda_result("device_copy", cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToHost, dev->own->stream)));
        return cuda_result("device_copy", cudaStreamSynchronize(dev->own->stream));
    }
    memcpy(dst, src, bytes);
    return OK;
}

enum code cuda_device_sync(struct device *dev) { return cuda_result("device_sync", cudaStreamSynchronize(dev->own->stream)); }

const char *cuda_device_name(struct device *dev) { return dev->name; }

} // namespace CUDA_NS

extern "C" enum code cuda_usable(void)
{
    CUDA_NS::found f = {};
    const struct blas *blas;
    TRY(CUDA_NS::device_find(&f));
    return CUDA_NS::blas_load(&blas);
}
