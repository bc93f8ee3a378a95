/* Row norms on [N,C], forward. Sums are f32 over registers, two passes (the mean first), never E[x^2] - mean^2. With a residual the sum is
 * rounded to T before it is normalised, so that the backward, which reads the stored sum, differentiates what the forward computed.
 * Tiling: a thread holds K chunks of eight elements. C <= 1024: a warp a row; C <= 8192: a block a row; wider or unaligned rows take
 * plain loops that read the row again. Limit: memory; bf16 with a residual moves 8 bytes an element (x, residual, sum, y). */
#include "norm.cuh"

namespace CUDA_NS {
namespace {

template <class T, int K, bool WARP> __global__ void __launch_bounds__(WARP ? 128 : 256) norm_fwd_k(norm_rows p)
{
    SMEM(float, part);
    const int width = WARP ? 32 : (int)blockDim.x, at = WARP ? (int)threadIdx.x & 31 : (int)threadIdx.x;
    const int64_t n = WARP ? (int64_t)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32 : (int64_t)blockIdx.x;
    if (n >= p.N)
        return;
    const T *x = (const T *)p.x + n * p.ldx, *residual = p.residual != NULL ? (const T *)p.residual + n * p.ldr : NULL;
    T *sum = p.sum != NULL ? (T *)p.sum + n * p.ldsum : NULL, *y = (T *)p.y + n * p.ldy;
    float v[K][8], total = 0;
#pragma unroll
    for (int k = 0; k < K; k++) {
        const int c = (k * width + at) * 8;
        if (c < p.C)
            load_f32x8(v[k], x + c);
    }
#pragma unroll
    for (int k = 0; k < K; k++) {
        const int c = (k * width + at) * 8;
        if (c >= p.C)
            continue;
        if (residual != NULL) {
            float r[8];
            load_f32x8(r, residual + c);
#pragma unroll
            for (int i = 0; i < 8; i++)
                v[k][i] = f32_of(num_of<T>(v[k][i] + r[i]));
        }
        if (sum != NULL)
            store_f32x8(sum + c, v[k]);
#pragma unroll
        for (int i = 0; i < 8; i++)
            total += p.rms ? v[k][i] * v[k][i] : v[k][i];
    }
    total = group_sum<WARP>(total, part) / (float)p.C;
    float mean = 0;
    if (!p.rms) {
        mean = total;
        total = 0;
#pragma unroll
        for (int k = 0; k < K; k++)
            if ((k * width + at) * 8 < p.C)
#pragma unroll
                for (int i = 0; i < 8; i++)
                    total += (v[k][i] - mean) * (v[k][i] - mean);
        total = group_sum<WARP>(total, part + 32) / (float)p.C;
    }
    const float rstd = 1.0f / sqrtf(total + p.eps);
#pragma unroll
    for (int k = 0; k < K; k++) {
        const int c = (k * width + at) * 8;
        if (c >= p.C)
            continue;
        float w[8], b[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        weight8(w, p, c);
        if (p.b != NULL)
            load_f32x8(b, p.b + c);
#pragma unroll
        for (int i = 0; i < 8; i++)
            w[i] = (v[k][i] - mean) * rstd * w[i] + b[i];
        if (p.base != NULL) {
            load_f32x8(b, (const T *)p.base + n * p.ldbase + c);
#pragma unroll
            for (int i = 0; i < 8; i++)
                w[i] += b[i];
        }
        store_f32x8(y + c, w);
    }
    if (at == 0) {
        if (p.mean != NULL)
            p.mean[n] = mean;
        if (p.rstd != NULL)
            p.rstd[n] = rstd;
    }
}

/* Any C and any alignment: a block a row, element by element. sum may be x or residual: it is written last. */
template <class T> __device__ __forceinline__ float sum_at(const T *x, const T *residual, int c)
{
    return residual == NULL ? f32_of(x[c]) : f32_of(num_of<T>(f32_of(x[c]) + f32_of(residual[c])));
}

template <class T> __global__ void __launch_bounds__(256) norm_fwd_wide_k(norm_rows p)
{
    SMEM(float, part);
    const int64_t n = blockIdx.x;
    const T *x = (const T *)p.x + n * p.ldx, *residual = p.residual != NULL ? (const T *)p.residual + n * p.ldr : NULL;
    T *sum = p.sum != NULL ? (T *)p.sum + n * p.ldsum : NULL, *y = (T *)p.y + n * p.ldy;
    float total = 0, mean = 0;
    for (int c = threadIdx.x; c < p.C; c += blockDim.x) {
        const float v = sum_at(x, residual, c);
        total += p.rms ? v * v : v;
    }
    total = block_sum(total, part) / (float)p.C;
    if (!p.rms) {
        mean = total;
        total = 0;
        for (int c = threadIdx.x; c < p.C; c += blockDim.x) {
            const float v = sum_at(x, residual, c) - mean;
            total += v * v;
        }
        total = block_sum(total, part + 32) / (float)p.C;
    }
    const float rstd = 1.0f / sqrtf(total + p.eps);
    for (int c = threadIdx.x; c < p.C; c += blockDim.x) {
        const float v = sum_at(x, residual, c);
        if (sum != NULL)
            sum[c] = num_of<T>(v);
        const float out = (v - mean) * rstd * weight_of(p, c) + (p.b != NULL ? p.b[c] : 0.0f);
        y[c] = num_of<T>(p.base != NULL ? f32_of(((const T *)p.base)[n * p.ldbase + c]) + out : out);
    }
    if (threadIdx.x == 0) {
        if (p.mean != NULL)
            p.mean[n] = mean;
        if (p.rstd != NULL)
            p.rstd[n] = rstd;
    }
}

template <class T> enum code fwd_run(struct device *dev, const norm_rows &p, bool vec)
{
    const unsigned N = (unsigned)p.N, quarter = (unsigned)ceil_div(p.N, 4);
    const size_t smem = 64 * sizeof(float);
    if (!vec || p.C > 8192)
        return LAUNCH(dev, (norm_fwd_wide_k<T>), N, 256, smem, p);
    if (p.C <= 256)
        return LAUNCH(dev, (norm_fwd_k<T, 1, true>), quarter, 128, 0, p);
    if (p.C <= 512)
        return LAUNCH(dev, (norm_fwd_k<T, 2, true>), quarter, 128, 0, p);
    if (p.C <= 1024)
        return LAUNCH(dev, (norm_fwd_k<T, 4, true>), quarter, 128, 0, p);
    if (p.C <= 2048)
        return LAUNCH(dev, (norm_fwd_k<T, 1, false>), N, norm_threads(p.C, 1), smem, p);
    if (p.C <= 4096)
        return LAUNCH(dev, (norm_fwd_k<T, 2, false>), N, norm_threads(p.C, 2), smem, p);
    return LAUNCH(dev, (norm_fwd_k<T, 4, false>), N, norm_threads(p.C, 4), smem, p);
}

/* Both forwards: the sum x + residual before, base after. */
struct around { struct view sum, residual, base; };

enum code rows_run(const char *op, struct device *dev, struct view y, struct view mean, struct view rstd, struct view x, const around &a, struct view w,
                   struct view b, enum norm_kind kind, float eps)
{
    const struct view sum = a.sum, residual = a.residual, base = a.base;
    TRY(cuda_check_type(op, x));
    const enum dtype type = x.dtype;
    TRY(cuda_check(op, "x", x, type, 2, -1, -1, 0));
    const int64_t N = x.n[0], C = x.n[1];
    TRY(cuda_check(op, "y", y, type, 2, N, C, 0));
    TRY(cuda_check(op, "sum", sum, type, 2, N, C, 1));
    TRY(cuda_check(op, "residual", residual, type, 2, N, C, 1));
    TRY(cuda_check(op, "base", base, type, 2, N, C, 1));
    TRY(cuda_check(op, "mean", mean, DT_F32, 1, N, -1, 1));
    TRY(cuda_check(op, "rstd", rstd, DT_F32, 1, N, -1, 1));
    TRY(cuda_check(op, "w", w, DT_F32, 1, C, -1, 1));
    TRY(cuda_check(op, "b", b, DT_F32, 1, C, -1, 1));
    TRY(norm_check(op, kind, N, C));
    if (N == 0 || C == 0)
        return OK;
    norm_rows p = {};
    p.x = x.p, p.residual = residual.p, p.base = base.p, p.y = y.p, p.sum = sum.p;
    if (kind != NORM_LAYER_NOP)
        p.w = ptr<const float>(w), p.b = ptr<const float>(b);
    p.mean = ptr<float>(mean), p.rstd = ptr<float>(rstd);
    p.ldx = x.s[0], p.ldr = residual.s[0], p.ldy = y.s[0], p.ldsum = sum.s[0], p.ldbase = base.s[0];
    p.N = N, p.C = (int)C, p.rms = norm_is_rms(kind), p.plus_one = kind == NORM_RMS1P, p.eps = eps;
    const bool around = rows_aligned(sum) && rows_aligned(residual) && rows_aligned(base);
    const bool vec = around && rows_aligned(x) && rows_aligned(y) && rows_aligned(w) && rows_aligned(b);
    return WITH_TYPE(type, (fwd_run<T>(dev, p, vec)));
}

} // namespace

enum code cuda_norm_fwd(struct device *dev, struct view y, struct view sum, struct view mean, struct view rstd, struct view x, struct view residual,
                        struct view w, struct view b, enum norm_kind kind, float eps)
{
    const around a = {sum, residual, view_none()};
    return rows_run("norm_fwd", dev, y, mean, rstd, x, a, w, b, kind, eps);
}

enum code cuda_norm_add_fwd(struct device *dev, struct view y, struct view mean, struct view rstd, struct view x, struct view base, struct view w,
                            struct view b, enum norm_kind kind, float eps)
{
    const around a = {view_none(), view_none(), base};
    if (base.p == NULL)
        return fail(ERR_UNSUPPORTED, "norm_add_fwd: base is missing");
    return rows_run("norm_add_fwd", dev, y, mean, rstd, x, a, w, b, kind, eps);
}

} // namespace CUDA_NS
