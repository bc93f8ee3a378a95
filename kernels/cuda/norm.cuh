/* Private to norm.cu and norm_backward.cu: the rows of a row norm, its weights, its kinds. */
#ifndef GQAKIT_KERNELS_CUDA_NORM_CUH
#define GQAKIT_KERNELS_CUDA_NORM_CUH

#include "rows.cuh"

namespace CUDA_NS {

struct norm_rows {
    const void *x, *residual, *dy; /* residual: dresidual in the backward */
    const void *base;              /* forward: added to the normalised row; NULL: nothing */
    void *y, *sum;                 /* y: dx in the backward */
    const float *w, *b;
    float *mean, *rstd;
    float *dw, *db; /* partial sums, one row of C for each group */
    int64_t ldx, ldr, ldy, ldsum, lddy, ldbase;
    int64_t N;
    int C;
    int rms, plus_one;
    float eps;
};

/* A row belongs to a warp or to a block. part: 32 floats of shared memory, for a block only. */
template <bool WARP> __device__ __forceinline__ float group_sum(float x, float *part) { return WARP ? warp_sum(x) : block_sum(x, part); }

__device__ __forceinline__ float weight_of(const norm_rows &p, int c)
{
    return p.w == NULL ? 1.0f : p.w[c] + (p.plus_one ? 1.0f : 0.0f);
}
__device__ __forceinline__ void weight8(float (&w)[8], const norm_rows &p, int c)
{
    if (p.w != NULL)
        load_f32x8(w, p.w + c);
#pragma unroll
    for (int i = 0; i < 8; i++)
        w[i] = p.w == NULL ? 1.0f : w[i] + (p.plus_one ? 1.0f : 0.0f);
}

/* Threads that hold a row of C elements in chunks, K each. */
static inline int norm_threads(int64_t C, int K) { return (int)(ceil_div(C, 8 * K * 32) * 32); }

static inline enum code norm_check(const char *op, enum norm_kind kind, int64_t N, int64_t C)
{
    if ((unsigned)kind > NORM_LAYER_NOP)
        return fail(ERR_UNSUPPORTED, "%s: norm kind %d is unknown", op, (int)kind);
    if (C > INT32_MAX / 2 || N > INT32_MAX)
        return fail(ERR_UNSUPPORTED, "%s: [%lld,%lld]; the CUDA backend takes up to 2^31 rows and 2^30 columns", op, (long long)N, (long long)C);
    return OK;
}

static inline bool norm_is_rms(enum norm_kind kind) { return kind == NORM_RMS || kind == NORM_RMS1P; }

} // namespace CUDA_NS
#endif
