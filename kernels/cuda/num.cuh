/* Element types of the CUDA backend: float and bf16 (a type of our own, so that the executor needs no CUDA headers). Kernels are
 * templates over the element type T; arithmetic is always f32. */
#ifndef GQAKIT_KERNELS_CUDA_NUM_CUH
#define GQAKIT_KERNELS_CUDA_NUM_CUH

#include "ptx.cuh"

namespace CUDA_NS {

struct bf16 { uint16_t bits; };

__device__ __forceinline__ float f32_of(float x) { return x; }
__device__ __forceinline__ float f32_of(bf16 x) { return __uint_as_float((uint32_t)x.bits << 16); }
template <class T> __device__ __forceinline__ T num_of(float x);
template <> __device__ __forceinline__ float num_of<float>(float x) { return x; }
/* To nearest even; NaN stays NaN. */
template <> __device__ __forceinline__ bf16 num_of<bf16>(float x)
{
    bf16 y;
    y.bits = (uint16_t)pack_bf16(x, 0.0f);
    return y;
}

/* Eight bf16 (16 bytes) or four f32 in one access; p 16-byte aligned. */
__device__ __forceinline__ void load_f32x8(float (&x)[8], const bf16 *p)
{
    uint4 u = *reinterpret_cast<const uint4 *>(p);
    const uint32_t w[4] = {u.x, u.y, u.z, u.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x[2 * i] = __uint_as_float(w[i] << 16);
        x[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
    }
}
__device__ __forceinline__ void load_f32x8(float (&x)[8], const float *p)
{
    float4 a = reinterpret_cast<const float4 *>(p)[0], b = reinterpret_cast<const float4 *>(p)[1];
    x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}
__device__ __forceinline__ void store_f32x8(bf16 *p, const float (&x)[8])
{
    uint4 u;
    u.x = pack_bf16(x[0], x[1]);
    u.y = pack_bf16(x[2], x[3]);
    u.z = pack_bf16(x[4], x[5]);
    u.w = pack_bf16(x[6], x[7]);
    *reinterpret_cast<uint4 *>(p) = u;
}
__device__ __forceinline__ void store_f32x8(float *p, const float (&x)[8])
{
    float4 a, b;
    a.x = x[0], a.y = x[1], a.z = x[2], a.w = x[3], b.x = x[4], b.y = x[5], b.z = x[6], b.w = x[7];
    reinterpret_cast<float4 *>(p)[0] = a;
    reinterpret_cast<float4 *>(p)[1] = b;
}

} // namespace CUDA_NS
#endif
