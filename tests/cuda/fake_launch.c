/* The fake runtime's kernels: registered by nvcc's start-up code; a launch is pushed, popped by the kernel's stub, judged, and does
 * nothing. Also the one function of the driver in use. */
#include <stdint.h>
#include <string.h>

#include "fake_cuda.h"
#include "fake_runtime.h"

#define KERNELS 4096

struct kernel {
    const void *entry;
    const char *name;
    int smem; /* dynamic shared memory it may have */
};
static struct kernel kernels[KERNELS];
static int n_kernels;

void **CUDARTAPI __cudaRegisterFatBinary(void *cubin);
void CUDARTAPI __cudaRegisterFatBinaryEnd(void **handle);
void CUDARTAPI __cudaUnregisterFatBinary(void **handle);
void CUDARTAPI __cudaRegisterFunction(void **handle, const char *entry, char *device, const char *name, int limit, void *tid, void *bid, void *block,
                                      void *grid, int *warp);
unsigned CUDARTAPI __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t smem, struct CUstream_st *s);
cudaError_t CUDARTAPI __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *smem, void *s);
cudaError_t CUDARTAPI __cudaGetKernel(cudaKernel_t *k, const void *entry);
cudaError_t CUDARTAPI __cudaLaunchKernel(cudaKernel_t k, dim3 grid, dim3 block, void **args, size_t smem, cudaStream_t s);

void **CUDARTAPI __cudaRegisterFatBinary(void *cubin)
{
    return cubin ? (void **)&n_kernels : NULL;
}
void CUDARTAPI __cudaRegisterFatBinaryEnd(void **handle)
{
    (void)handle;
}
void CUDARTAPI __cudaUnregisterFatBinary(void **handle)
{
    (void)handle;
}
void CUDARTAPI __cudaRegisterFunction(void **handle, const char *entry, char *device, const char *name, int limit, void *tid, void *bid, void *block,
                                      void *grid, int *warp)
{
    (void)handle, (void)device, (void)limit, (void)tid, (void)bid, (void)block, (void)grid, (void)warp;
    if (n_kernels < KERNELS) {
        struct kernel k = {entry, name, 48 * 1024};
        kernels[n_kernels++] = k;
    }
}

static struct {
    dim3 grid, block;
    size_t smem;
    cudaStream_t s;
} pushed;
unsigned CUDARTAPI __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t smem, struct CUstream_st *s)
{
    pushed.grid = grid, pushed.block = block, pushed.smem = smem, pushed.s = s;
    return 0;
}
cudaError_t CUDARTAPI __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *smem, void *s)
{
    *grid = pushed.grid, *block = pushed.block, *smem = pushed.smem, *(cudaStream_t *)s = pushed.s;
    return cudaSuccess;
}
static struct kernel *kernel_of(const void *entry)
{
    for (int i = 0; i < n_kernels; i++)
        if (kernels[i].entry == entry)
            return &kernels[i];
    return NULL;
}
cudaError_t CUDARTAPI __cudaGetKernel(cudaKernel_t *k, const void *entry)
{
    *k = (cudaKernel_t)(uintptr_t)entry;
    return cudaSuccess;
}
cudaError_t CUDARTAPI cudaFuncSetAttribute(const void *entry, enum cudaFuncAttribute what, int value)
{
    struct kernel *k = kernel_of(entry);
    if (!k) {
        fake_fault("an attribute of a kernel nobody registered");
        return fake_error(cudaErrorInvalidDeviceFunction);
    }
    if (what == cudaFuncAttributeMaxDynamicSharedMemorySize) {
        if (value > FAKE_SMEM_MAX)
            return fake_error(cudaErrorInvalidValue);
        k->smem = value;
    }
    return cudaSuccess;
}
static void nothing(void *context)
{
    (void)context;
}
cudaError_t CUDARTAPI __cudaLaunchKernel(cudaKernel_t handle, dim3 grid, dim3 block, void **args, size_t smem, cudaStream_t s)
{
    const struct kernel *k = kernel_of((const void *)handle);
    const uint64_t threads = (uint64_t)block.x * block.y * block.z;
    const char *name = k ? k->name : "(unknown)";
    (void)args;
    fake.launches++;
    if (!k)
        fake_fault("a launch of a kernel nobody registered");
    else if (threads < 1 || threads > 1024 || block.z > 64)
        fake_fault("%s: %u x %u x %u threads", name, block.x, block.y, block.z);
    else if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.x > INT32_MAX || grid.y > 65535 || grid.z > 65535)
        fake_fault("%s: a grid of %u x %u x %u", name, grid.x, grid.y, grid.z);
    else if (smem > (size_t)k->smem)
        fake_fault("%s: %zu bytes of shared memory, allowed are %d", name, smem, k->smem);
    else if (s != fake_stream())
        fake_fault("%s: not on the device's stream", name);
    fake_enqueue(nothing, "", 1);
    return cudaSuccess;
}

/* The one driver function in use encodes tensor maps, whose rules tensor_map.cu checks itself. */
static int encode(void)
{
    return 0;
}
cudaError_t CUDARTAPI cudaGetDriverEntryPointByVersion(const char *symbol, void **f, unsigned version, unsigned long long flags,
                                                       enum cudaDriverEntryPointQueryResult *found)
{
    int (*fn)(void) = encode;
    (void)version, (void)flags;
    if (strcmp(symbol, "cuTensorMapEncodeTiled") != 0)
        fake_fault("the driver's %s is not faked", symbol);
    memcpy(f, &fn, sizeof fn);
    *found = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}
