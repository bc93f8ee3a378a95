/* How kernels are written here so that one source runs on a GPU (nvcc) and in the SIMT executor of tests/simt (g++):
 *   - a launch goes through LAUNCH, dynamic shared memory through SMEM (one array per kernel, no static __shared__);
 *   - inline PTX lives in ptx.cuh and wgmma.cuh alone;
 *   - no cooperative groups, no library templates, no CUDA header types beyond dim3, float2/float4, int2/int4, uint2/uint4.
 * Everything is inside namespace CUDA_NS, so that both builds can be linked into one program. */
#ifndef GQAKIT_KERNELS_CUDA_LAUNCH_CUH
#define GQAKIT_KERNELS_CUDA_LAUNCH_CUH

#include <stddef.h>
#include <stdint.h>

#ifdef GQAKIT_SIMT
#define CUDA_NS gqakit_simt
#include "simt.h" /* tests/simt, which the build of the executor puts on the include path */
#else
#define CUDA_NS gqakit_cuda
#include <cuda_runtime.h>

#include "kernels/kernels.h"

/* The dynamic shared memory of the block as an array of `type`; 1024-byte aligned, as swizzled tiles need. */
#define SMEM(type, name)                                   \
    extern __shared__ __align__(1024) unsigned char smem_bytes_[]; \
    type *name = reinterpret_cast<type *>(smem_bytes_)

namespace CUDA_NS {
enum code launch_check(const char *kernel, cudaError_t error); /* device.cu: OK or ERR_DEVICE with the kernel's name */

template <class Kernel, class... Args>
enum code launch(cudaStream_t stream, const char *name, Kernel kernel, dim3 grid, dim3 block, size_t smem, Args... args)
{
    if (smem > 48 * 1024) {
        cudaError_t e = cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, (int)smem);
        if (e != cudaSuccess)
            return launch_check(name, e);
    }
    kernel<<<grid, block, smem, stream>>>(args...);
    return launch_check(name, cudaPeekAtLastError());
}
} // namespace CUDA_NS
/* TRY(LAUNCH(dev, kernel, grid, block, smem_bytes, arguments...)); a template kernel in parentheses: (kernel<128, true>). */
#define LAUNCH(dev, kernel, grid, block, smem, ...) \
    CUDA_NS::launch((cudaStream_t)(dev)->stream, #kernel, kernel, grid, block, smem, __VA_ARGS__)
#endif

#endif
