/* Flat ranges (kernels/cpu/adamw.c): AdamW, the gradient norm, y += a x, fills, conversions. A thread does eight consecutive
 * elements with 16-byte accesses, or one by one where a range does not start at a 16-byte boundary and at the last few.
 * All are limited by memory. Bytes an element: sumsq 4; adamw with f32 weights 28, with gradients zeroed 32, with a bf16 copy 2
 * more; adamw on bf16 weights alone 20, 24 with gradients zeroed; axpy 12, fill 4, cast 6.
 * Stochastic rounding: element e of the whole range takes 16-bit word e % 8 of Philox block e / 8 of (seed, STREAM_ROUNDING,
 * step), least significant half of word 0 first, so that the bits do not depend on how a range is cut. */
#include "rows.cuh"

namespace CUDA_NS {
namespace {

#define BLOCK 256
#define EACH 8

bool aligned_16(const void *p) { return (uintptr_t)p % 16 == 0; }

/* ---- gradient norm ---- */

#define SUM_THREADS 512

/* Block i adds the squares of elements [i * SUMSQ_BLOCK, ...): a thread every 512th group of four, in f64 after each group. */
__global__ void __launch_bounds__(SUM_THREADS) sumsq_k(double *partial, const float *x, int64_t n, int vec)
{
    SMEM(double, part);
    const int64_t lo = (int64_t)blockIdx.x * SUMSQ_BLOCK, hi = lo + SUMSQ_BLOCK < n ? lo + SUMSQ_BLOCK : n;
    double sum = 0;
    if (vec && hi - lo == SUMSQ_BLOCK) {
#pragma unroll 8
        for (int k = 0; k < SUMSQ_BLOCK / (4 * SUM_THREADS); k++) {
            const float4 v = reinterpret_cast<const float4 *>(x + lo)[k * SUM_THREADS + threadIdx.x];
            sum += (double)((v.x * v.x + v.y * v.y) + (v.z * v.z + v.w * v.w));
        }
    } else
        for (int64_t i = lo + threadIdx.x; i < hi; i += SUM_THREADS)
            sum += (double)(x[i] * x[i]);
    sum = block_sum_f64(sum, part);
    if (threadIdx.x == 0)
        partial[blockIdx.x] = sum;
}

__device__ __forceinline__ bool finite(double x) { return x - x == 0; }

/* One block. Thread t adds partials t, t + 1024, ...; then a tree: always the same order. */
__global__ void __launch_bounds__(1024) grad_clip_k(double *norm, float *clip, int32_t *skip, const double *partial, int64_t n, const double *loss_sum,
                                                    double max_norm)
{
    SMEM(double, part);
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x)
        sum += partial[i];
    sum = block_sum_f64(sum, part);
    if (threadIdx.x != 0)
        return;
    const double root = sqrt(sum);
    const bool bad = !finite(root) || !finite(*loss_sum);
    *norm = root;
    *skip = bad;
    *clip = !bad && max_norm > 0 && root > max_norm ? (float)(max_norm / root) : 1.0f;
}

/* ---- AdamW ---- */

struct adamw_range {
    float *p, *g, *m, *v;
    bf16 *low;
    const float *clip;
    const int32_t *skip;
    int64_t n, first;
    uint64_t seed, step;
    float beta1, beta2, step_size, inv_bc2, eps, decay;
    int zero_grad;
};

/* Philox4x32-10, the words of base/random.c's random_philox. */
__device__ __forceinline__ void philox(uint32_t (&word)[4], uint64_t seed, uint64_t stream, uint64_t step, uint64_t index)
{
    const uint64_t key = seed ^ ((stream >> 32) * 0x9e3779b97f4a7c15u) ^ ((step >> 32) * 0xc2b2ae3d27d4eb4fu);
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    uint32_t c0 = (uint32_t)index, c1 = (uint32_t)(index >> 32), c2 = (uint32_t)step, c3 = (uint32_t)stream;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)c0 * 0xd2511f53u, p1 = (uint64_t)c2 * 0xcd9e8d57u;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    word[0] = c0, word[1] = c1, word[2] = c2, word[3] = c3;
}

/* Adds 16 random bits below the last bit that stays: up with the probability of the part cut off. Infinity and NaN stay. */
__device__ __forceinline__ bf16 round_stochastic(float x, uint32_t bits)
{
    const uint32_t u = __float_as_uint(x);
    bf16 y = num_of<bf16>(x);
    if ((u & 0x7f800000u) != 0x7f800000u)
        y.bits = (uint16_t)((u + bits) >> 16);
    return y;
}

__device__ __forceinline__ uint32_t half_word(const uint32_t (&word)[4], int i)
{
    const uint32_t w = i < 2 ? word[0] : i < 4 ? word[1] : i < 6 ? word[2] : word[3];
    return i % 2 == 0 ? w & 0xffffu : w >> 16;
}

/* MASTER: p is there, low a copy or NULL. Otherwise low is the weight. */
template <bool MASTER, bool VEC> __global__ void __launch_bounds__(BLOCK) adamw_k(adamw_range a)
{
    const int64_t at = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) * EACH, left = a.n - at;
    if (left <= 0)
        return;
    const bool skip = a.skip != NULL && *a.skip != 0, whole = VEC && left >= EACH;
    const float clip = a.clip != NULL ? *a.clip : 1.0f;
    const float zero[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    if (!skip) {
        float p[8], g[8], m[8], v[8];
        if (whole) {
            load_f32x8(g, a.g + at), load_f32x8(m, a.m + at), load_f32x8(v, a.v + at);
            if (MASTER)
                load_f32x8(p, a.p + at);
            else
                load_f32x8(p, a.low + at);
        } else {
            load8<false>(g, a.g + at, left), load8<false>(m, a.m + at, left), load8<false>(v, a.v + at, left);
            if (MASTER)
                load8<false>(p, a.p + at, left);
            else
                load8<false>(p, a.low + at, left);
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float d = g[i] * clip;
            m[i] = a.beta1 * m[i] + (1.0f - a.beta1) * d;
            v[i] = a.beta2 * v[i] + (1.0f - a.beta2) * (d * d);
            p[i] = p[i] * a.decay - a.step_size * (m[i] / (sqrtf(v[i] * a.inv_bc2) + a.eps));
        }
        if (whole) {
            store_f32x8(a.m + at, m), store_f32x8(a.v + at, v);
            if (MASTER)
                store_f32x8(a.p + at, p);
        } else {
            store8<false>(a.m + at, m, left), store8<false>(a.v + at, v, left);
            if (MASTER)
                store8<false>(a.p + at, p, left);
        }
        if (!MASTER) {
            const uint64_t e = (uint64_t)(a.first + at);
            uint32_t word[4];
            philox(word, a.seed, STREAM_ROUNDING, a.step, e / 8);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const int slot = (int)(e % 8) + i;
                if (slot == 8) /* the same for all threads: `first` is not a multiple of eight */
                    philox(word, a.seed, STREAM_ROUNDING, a.step, e / 8 + 1);
                p[i] = f32_of(round_stochastic(p[i], half_word(word, slot & 7)));
            }
        }
        if (!MASTER || a.low != NULL) {
            if (whole)
                store_f32x8(a.low + at, p);
            else
                store8<false>(a.low + at, p, left);
        }
    }
    if (a.zero_grad) {
        if (whole)
            store_f32x8(a.g + at, zero);
        else
            store8<false>(a.g + at, zero, left);
    }
}

/* ---- elementwise ---- */

template <bool VEC> __global__ void __launch_bounds__(BLOCK) axpy_k(float *y, const float *x, float a, int64_t n)
{
    const int64_t at = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) * EACH, left = n - at;
    if (left <= 0)
        return;
    float u[8], v[8];
    const bool whole = VEC && left >= EACH;
    if (whole)
        load_f32x8(u, x + at), load_f32x8(v, y + at);
    else
        load8<false>(u, x + at, left), load8<false>(v, y + at, left);
#pragma unroll
    for (int i = 0; i < 8; i++)
        v[i] += a * u[i];
    if (whole)
        store_f32x8(y + at, v);
    else
        store8<false>(y + at, v, left);
}

template <bool VEC> __global__ void __launch_bounds__(BLOCK) fill_k(float *y, float a, int64_t n)
{
    const int64_t at = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) * EACH, left = n - at;
    if (left <= 0)
        return;
    const float v[8] = {a, a, a, a, a, a, a, a};
    if (VEC && left >= EACH)
        store_f32x8(y + at, v);
    else
        store8<false>(y + at, v, left);
}

template <class Y, class X, bool VEC> __global__ void __launch_bounds__(BLOCK) cast_k(Y *y, const X *x, int64_t n)
{
    const int64_t at = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) * EACH, left = n - at;
    if (left <= 0)
        return;
    float v[8];
    if (VEC && left >= EACH) {
        load_f32x8(v, x + at);
        store_f32x8(y + at, v);
    } else {
        load8<false>(v, x + at, left);
        store8<false>(y + at, v, left);
    }
}

/* A copy, of any type: 16 bytes a thread. */
template <bool VEC> __global__ void __launch_bounds__(BLOCK) copy_k(unsigned char *y, const unsigned char *x, int64_t bytes)
{
    const int64_t at = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) * 16, left = bytes - at;
    if (left <= 0)
        return;
    if (VEC && left >= 16)
        *reinterpret_cast<uint4 *>(y + at) = *reinterpret_cast<const uint4 *>(x + at);
    else
        for (int i = 0; i < 16 && i < left; i++)
            y[at + i] = x[at + i];
}

template <class Y, class X> enum code cast_run(struct device *dev, void *y, const void *x, int64_t n, unsigned blocks)
{
    return aligned_16(y) && aligned_16(x) ? LAUNCH(dev, (cast_k<Y, X, true>), blocks, BLOCK, 0, (Y *)y, (const X *)x, n)
                                          : LAUNCH(dev, (cast_k<Y, X, false>), blocks, BLOCK, 0, (Y *)y, (const X *)x, n);
}

} // namespace

enum code cuda_sumsq(struct device *dev, double *partial, const float *x, int64_t n)
{
    if (n == 0)
        return OK;
    unsigned blocks;
    TRY(grid_of("sumsq", n, SUMSQ_BLOCK, &blocks));
    return LAUNCH(dev, sumsq_k, blocks, SUM_THREADS, SUM_THREADS * sizeof(double), partial, x, n, (int)aligned_16(x));
}

enum code cuda_grad_clip(struct device *dev, double *norm, float *clip, int32_t *skip, const double *partial, int64_t n_partials,
                         const double *loss_sum, double max_norm)
{
    return LAUNCH(dev, grad_clip_k, 1, 1024, 1024 * sizeof(double), norm, clip, skip, partial, n_partials, loss_sum, max_norm);
}

enum code cuda_adamw(struct device *dev, float *p, float *g, float *m, float *v, int64_t n, const struct adamw_args *args)
{
    if (args->step < 1)
        return fail(ERR_INTERNAL, "adamw: step %lld, must be at least 1", (long long)args->step);
    if (p == NULL && args->low == NULL)
        return fail(ERR_INTERNAL, "adamw: neither f32 nor bf16 weights are given");
    if (n == 0)
        return OK;
    const double bc1 = 1 - pow((double)args->beta1, (double)args->step), bc2 = 1 - pow((double)args->beta2, (double)args->step);
    adamw_range a = {};
    a.p = p, a.g = g, a.m = m, a.v = v, a.low = (bf16 *)(void *)args->low, a.clip = args->clip, a.skip = args->skip;
    a.n = n, a.first = args->first, a.seed = args->seed, a.step = (uint64_t)args->step;
    a.beta1 = args->beta1, a.beta2 = args->beta2, a.step_size = (float)((double)args->lr / bc1), a.inv_bc2 = (float)(1 / bc2), a.eps = args->eps;
    a.decay = (float)(1 - (double)args->lr * (double)args->weight_decay), a.zero_grad = args->zero_grad;
    unsigned blocks;
    TRY(grid_of("adamw", n, BLOCK * EACH, &blocks));
    const bool vec = aligned_16(p) && aligned_16(g) && aligned_16(m) && aligned_16(v) && aligned_16(args->low);
    if (p != NULL)
        return vec ? LAUNCH(dev, (adamw_k<true, true>), blocks, BLOCK, 0, a) : LAUNCH(dev, (adamw_k<true, false>), blocks, BLOCK, 0, a);
    return vec ? LAUNCH(dev, (adamw_k<false, true>), blocks, BLOCK, 0, a) : LAUNCH(dev, (adamw_k<false, false>), blocks, BLOCK, 0, a);
}

enum code cuda_axpy(struct device *dev, float *y, const float *x, float a, int64_t n)
{
    if (n == 0)
        return OK;
    unsigned blocks;
    TRY(grid_of("axpy", n, BLOCK * EACH, &blocks));
    return aligned_16(y) && aligned_16(x) ? LAUNCH(dev, axpy_k<true>, blocks, BLOCK, 0, y, x, a, n) : LAUNCH(dev, axpy_k<false>, blocks, BLOCK, 0, y, x, a, n);
}

enum code cuda_fill(struct device *dev, float *y, float a, int64_t n)
{
    if (n == 0)
        return OK;
    unsigned blocks;
    TRY(grid_of("fill", n, BLOCK * EACH, &blocks));
    return aligned_16(y) ? LAUNCH(dev, fill_k<true>, blocks, BLOCK, 0, y, a, n) : LAUNCH(dev, fill_k<false>, blocks, BLOCK, 0, y, a, n);
}

enum code cuda_cast(struct device *dev, void *y, enum dtype y_type, const void *x, enum dtype x_type, int64_t n)
{
    if (n == 0)
        return OK;
    unsigned blocks;
    if (y_type == x_type) {
        const int64_t bytes = n * (int64_t)dtype_bytes(x_type);
        TRY(grid_of("cast", bytes, BLOCK * 16, &blocks));
        unsigned char *to = (unsigned char *)y;
        const unsigned char *from = (const unsigned char *)x;
        return aligned_16(y) && aligned_16(x) ? LAUNCH(dev, copy_k<true>, blocks, BLOCK, 0, to, from, bytes)
                                              : LAUNCH(dev, copy_k<false>, blocks, BLOCK, 0, to, from, bytes);
    }
    TRY(grid_of("cast", n, BLOCK * EACH, &blocks));
    if (y_type == DT_BF16 && x_type == DT_F32)
        return cast_run<bf16, float>(dev, y, x, n, blocks);
    if (y_type == DT_F32 && x_type == DT_BF16)
        return cast_run<float, bf16>(dev, y, x, n, blocks);
    return fail(ERR_UNSUPPORTED, "cast: %s to %s; the CUDA backend converts between f32 and bf16", dtype_name(x_type), dtype_name(y_type));
}

} // namespace CUDA_NS
