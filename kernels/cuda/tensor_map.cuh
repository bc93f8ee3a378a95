/* Tensor maps: what a bulk tensor copy (tma_load_4d, tma_store_4d of ptx.cuh) knows of the tensor in global memory and of the box it
 * moves. In shared memory the box lies packed, innermost axis first, and swizzled by the bits of the shared address:
 *   swizzle 128: bits 4-6 ^= bits 7-9;  64: bits 4-5 ^= bits 7-8;  32: bit 4 ^= bit 7
 * as wgmma descriptors of the same swizzle read it. A load fills what lies outside the tensor with zeros; a store leaves it out. */
#ifndef GQAKIT_KERNELS_CUDA_TENSOR_MAP_CUH
#define GQAKIT_KERNELS_CUDA_TENSOR_MAP_CUH

#include "base/base.h"
#include "ptx.cuh"

namespace CUDA_NS {

struct tensor_map_spec {
    void *base;              /* device memory, 16-byte aligned */
    enum dtype type;         /* DT_F32, DT_BF16 or DT_F16 */
    int rank;                /* 1 .. 4; tma_load_4d and tma_store_4d take 4 */
    int64_t n[4];            /* elements, innermost axis first, each 1 .. 2^32 */
    int64_t stride_bytes[3]; /* of axes 1, 2, 3: multiples of 16 below 2^40; the innermost axis is contiguous */
    int box[4];              /* elements, each 1 .. 256; the innermost a multiple of 16 bytes, with a swizzle exactly its width */
    int swizzle;             /* 0, 32, 64 or 128 bytes; the box in shared memory is aligned to 8 x swizzle (0: 128) bytes */
};

/* Host code. Refuses by a sentence (ERR_UNSUPPORTED) what cuTensorMapEncodeTiled would; ERR_DEVICE when the driver has no tensor maps. */
enum code tensor_map_make(tensor_map *map, const struct tensor_map_spec *spec) MUST_USE;

} // namespace CUDA_NS
#endif
