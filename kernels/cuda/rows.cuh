/* Private to the kernels that walk rows and flat ranges: eight elements at a time, sums in a fixed order, launch sizes.
 * VEC: every row starts at a 16-byte boundary and holds a multiple of eight elements, so that a chunk of eight is one 16-byte
 * access of bf16 or two of f32; without it a chunk is read element by element up to the end of its row. */
#ifndef GQAKIT_KERNELS_CUDA_ROWS_CUH
#define GQAKIT_KERNELS_CUDA_ROWS_CUH

#include "cuda.cuh"

namespace CUDA_NS {

/* Eight elements as they lie in memory: the form to prefetch in (four registers of bf16). */
template <class T> struct chunk { uint32_t w[2 * sizeof(T)]; };

template <class T> __device__ __forceinline__ void chunk_load(chunk<T> &c, const T *p)
{
#pragma unroll
    for (int i = 0; i < (int)sizeof(T) / 2; i++) {
        const uint4 u = reinterpret_cast<const uint4 *>(p)[i];
        c.w[4 * i] = u.x, c.w[4 * i + 1] = u.y, c.w[4 * i + 2] = u.z, c.w[4 * i + 3] = u.w;
    }
}
template <class T> __device__ __forceinline__ void chunk_zero(chunk<T> &c)
{
#pragma unroll
    for (int i = 0; i < 2 * (int)sizeof(T); i++)
        c.w[i] = 0;
}
__device__ __forceinline__ void chunk_f32(float (&x)[8], const chunk<bf16> &c)
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x[2 * i] = __uint_as_float(c.w[i] << 16);
        x[2 * i + 1] = __uint_as_float(c.w[i] & 0xffff0000u);
    }
}
__device__ __forceinline__ void chunk_f32(float (&x)[8], const chunk<float> &c)
{
#pragma unroll
    for (int i = 0; i < 8; i++)
        x[i] = __uint_as_float(c.w[i]);
}

/* Up to eight elements; those from n on are 0. With VEC all eight are there. */
template <bool VEC, class T> __device__ __forceinline__ void load8(float (&x)[8], const T *p, int64_t n)
{
    if (VEC)
        load_f32x8(x, p);
    else
#pragma unroll
        for (int i = 0; i < 8; i++)
            x[i] = i < n ? f32_of(p[i]) : 0.0f;
}
template <bool VEC, class T> __device__ __forceinline__ void store8(T *p, const float (&x)[8], int64_t n)
{
    if (VEC)
        store_f32x8(p, x);
    else
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (i < n)
                p[i] = num_of<T>(x[i]);
}

__device__ __forceinline__ float warp_sum(float x)
{
#pragma unroll
    for (int i = 16; i > 0; i >>= 1)
        x += __shfl_xor_sync(0xffffffffu, x, i);
    return x;
}

/* Sum over the block, known to every thread. part: 32 floats of shared memory that no other sum in flight uses. */
__device__ __forceinline__ float block_sum(float x, float *part)
{
    const int warps = (int)(blockDim.x + 31) >> 5;
    x = warp_sum(x);
    if ((threadIdx.x & 31) == 0)
        part[threadIdx.x >> 5] = x;
    __syncthreads();
    x = 0;
    for (int i = 0; i < warps; i++)
        x += part[i];
    return x;
}

/* Sum over a block of a power of two threads, in thread 0 (0 in the others). part: one double for each thread. */
__device__ __forceinline__ double block_sum_f64(double x, double *part)
{
    part[threadIdx.x] = x;
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half)
            part[threadIdx.x] += part[threadIdx.x + half];
    }
    return threadIdx.x == 0 ? part[0] : 0; /* thread 0 wrote it */
}

/* Whether rows of this view (the last axis) can be taken in chunks; an absent view never objects. */
static inline bool rows_aligned(struct view x)
{
    if (x.p == NULL)
        return true;
    if ((uintptr_t)x.p % 16 != 0 || x.n[x.nd - 1] % 8 != 0)
        return false;
    for (int i = 0; i + 1 < x.nd; i++)
        if (x.n[i] > 1 && x.s[i] % 8 != 0)
            return false;
    return true;
}

/* Blocks of a launch with one block for each `per` of n items; a grid has at most 2^31 - 1. */
static inline enum code grid_of(const char *op, int64_t n, int64_t per, unsigned *blocks)
{
    const int64_t want = ceil_div(n, per);
    *blocks = 0;
    if (want > INT32_MAX)
        return fail(ERR_UNSUPPORTED, "%s: %lld blocks of threads; a launch takes 2^31", op, (long long)want);
    *blocks = (unsigned)want;
    return OK;
}

/* The arguments of rope: x [N,heads,D], tables of one shape, pos [N] (rope.cu). */
enum code rope_check(struct view x, struct view cos_table, struct view sin_table, struct view pos) MUST_USE;

/* to [C] += the sum of P rows of C floats, in a fixed order (bias.cu). */
enum code columns_add(struct device *dev, float *to, const float *rows, int64_t P, int64_t C);

} // namespace CUDA_NS
#endif
