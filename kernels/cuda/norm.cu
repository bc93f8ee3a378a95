/* Row norms, forward and backward, on [N,C]. Sums are f32 over registers, two passes (the mean first), never E[x^2] - mean^2.
 * With a residual the sum is rounded to T before it is normalised, so that the backward, which reads the stored sum, differentiates
 * what the forward computed.
 * Backward, with xhat = (x - mean) rstd and g = dy w: dx = rstd (g - mean(g) - xhat mean(g xhat)); RMS kinds have no mean(g).
 * dw and db: each row group (a warp, or a block) adds the rows it takes in registers and leaves one row of partial sums in the
 * workspace; a second kernel adds those in order. No atomics: the same device gives the same bits.
 * Tiling: a thread holds K chunks of eight elements. C <= 512 (backward) or 1024 (forward): a warp a row; C <= 8192: a block a row; wider or
 * unaligned rows (in f32 backward, above 4096) take plain
 * loops that read the row again. Limit: memory; bf16 forward with residual moves 8 bytes an element
 * (x, residual, sum, y), the backward 8 (x, dy, dresidual, dx). The backward loads the next row while it reduces the present one. */
#include "rows.cuh"

namespace CUDA_NS {
namespace {

struct norm_rows {
    const void *x, *residual, *dy; /* residual: dresidual in the backward */
    void *y, *sum;                 /* y: dx in the backward */
    const float *w, *b;
    float *mean, *rstd;
    float *dw, *db; /* partial sums, one row of C for each group */
    int64_t ldx, ldr, ldy, ldsum, lddy;
    int64_t N;
    int C;
    int rms, plus_one;
    float eps;
};

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
        y[c] = num_of<T>((v - mean) * rstd * weight_of(p, c) + (p.b != NULL ? p.b[c] : 0.0f));
    }
    if (threadIdx.x == 0) {
        if (p.mean != NULL)
            p.mean[n] = mean;
        if (p.rstd != NULL)
            p.rstd[n] = rstd;
    }
}

/* What one row of the backward reads, as it lies in memory. */
template <class T, int K> struct bwd_row { chunk<T> x[K], dy[K], dres[K]; };

template <class T, int K> __device__ __forceinline__ void bwd_load(bwd_row<T, K> &r, const norm_rows &p, int64_t n, int at, int width)
{
#pragma unroll
    for (int k = 0; k < K; k++) {
        const int c = (k * width + at) * 8;
        chunk_zero(r.x[k]), chunk_zero(r.dy[k]), chunk_zero(r.dres[k]);
        if (c >= p.C || n >= p.N)
            continue;
        chunk_load(r.x[k], (const T *)p.x + n * p.ldx + c);
        chunk_load(r.dy[k], (const T *)p.dy + n * p.lddy + c);
        if (p.residual != NULL)
            chunk_load(r.dres[k], (const T *)p.residual + n * p.ldr + c);
    }
}

template <class T, int K, bool WARP> __global__ void __launch_bounds__(WARP ? 128 : K == 2 && sizeof(T) == 2 ? 512 : 256) norm_bwd_k(norm_rows p)
{
    SMEM(float, parts); /* two sums of 32 floats, twice: a thread may be one row ahead of another */
    const int width = WARP ? 32 : (int)blockDim.x, at = WARP ? (int)threadIdx.x & 31 : (int)threadIdx.x;
    const int64_t groups = WARP ? (int64_t)gridDim.x * (blockDim.x / 32) : (int64_t)gridDim.x;
    const int64_t group = WARP ? (int64_t)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32 : (int64_t)blockIdx.x;
    float dw[K][8], db[K][8];
#pragma unroll
    for (int k = 0; k < K; k++)
#pragma unroll
        for (int i = 0; i < 8; i++)
            dw[k][i] = db[k][i] = 0;
    bwd_row<T, K> row, next;
    bwd_load(row, p, group, at, width);
    int turn = 0;
    for (int64_t n = group; n < p.N; n += groups) {
        float *part = parts + turn;
        turn ^= 64;
        bwd_load(next, p, n + groups, at, width);
        const float mean = p.rms ? 0.0f : p.mean[n], rstd = p.rstd[n];
        float sg = 0, sgx = 0;
#pragma unroll
        for (int k = 0; k < K; k++) {
            const int c = (k * width + at) * 8;
            if (c >= p.C)
                continue;
            float x[8], dy[8], w[8];
            chunk_f32(x, row.x[k]), chunk_f32(dy, row.dy[k]);
            weight8(w, p, c);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const float xhat = (x[i] - mean) * rstd, g = dy[i] * w[i];
                sg += g;
                sgx += g * xhat;
                dw[k][i] += dy[i] * xhat;
                db[k][i] += dy[i];
            }
        }
        sgx = group_sum<WARP>(sgx, part) / (float)p.C;
        sg = p.rms ? 0.0f : group_sum<WARP>(sg, part + 32) / (float)p.C;
#pragma unroll
        for (int k = 0; k < K; k++) {
            const int c = (k * width + at) * 8;
            if (c >= p.C)
                continue;
            float x[8], dy[8], w[8], d[8];
            chunk_f32(x, row.x[k]), chunk_f32(dy, row.dy[k]), chunk_f32(d, row.dres[k]);
            weight8(w, p, c);
#pragma unroll
            for (int i = 0; i < 8; i++)
                d[i] += rstd * (dy[i] * w[i] - sg - (x[i] - mean) * rstd * sgx);
            store_f32x8((T *)p.y + n * p.ldy + c, d);
        }
        row = next;
    }
#pragma unroll
    for (int k = 0; k < K; k++) {
        const int c = (k * width + at) * 8;
        if (c >= p.C)
            continue;
        if (p.dw != NULL)
            store_f32x8(p.dw + group * p.C + c, dw[k]);
        if (p.db != NULL)
            store_f32x8(p.db + group * p.C + c, db[k]);
    }
}

/* Any C and any alignment. The partial sums of a block are added up in its row of the workspace: a thread always has the same columns. */
template <class T> __global__ void __launch_bounds__(256) norm_bwd_wide_k(norm_rows p)
{
    SMEM(float, parts);
    float *dw = p.dw != NULL ? p.dw + (int64_t)blockIdx.x * p.C : NULL, *db = p.db != NULL ? p.db + (int64_t)blockIdx.x * p.C : NULL;
    for (int c = threadIdx.x; c < p.C; c += blockDim.x) {
        if (dw != NULL)
            dw[c] = 0;
        if (db != NULL)
            db[c] = 0;
    }
    int turn = 0;
    for (int64_t n = blockIdx.x; n < p.N; n += gridDim.x) {
        float *part = parts + turn;
        turn ^= 64;
        const T *x = (const T *)p.x + n * p.ldx, *dy = (const T *)p.dy + n * p.lddy;
        const T *dres = p.residual != NULL ? (const T *)p.residual + n * p.ldr : NULL;
        T *dx = (T *)p.y + n * p.ldy;
        const float mean = p.rms ? 0.0f : p.mean[n], rstd = p.rstd[n];
        float sg = 0, sgx = 0;
        for (int c = threadIdx.x; c < p.C; c += blockDim.x) {
            const float d = f32_of(dy[c]), xhat = (f32_of(x[c]) - mean) * rstd, g = d * weight_of(p, c);
            sg += g;
            sgx += g * xhat;
            if (dw != NULL)
                dw[c] += d * xhat;
            if (db != NULL)
                db[c] += d;
        }
        sgx = block_sum(sgx, part) / (float)p.C;
        sg = p.rms ? 0.0f : block_sum(sg, part + 32) / (float)p.C;
        for (int c = threadIdx.x; c < p.C; c += blockDim.x) {
            const float d = rstd * (f32_of(dy[c]) * weight_of(p, c) - sg - (f32_of(x[c]) - mean) * rstd * sgx);
            dx[c] = num_of<T>(dres != NULL ? f32_of(dres[c]) + d : d);
        }
    }
}

/* Threads that hold a row of C elements in chunks, K each. */
int threads_for(int64_t C, int K) { return (int)(ceil_div(C, 8 * K * 32) * 32); }

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
        return LAUNCH(dev, (norm_fwd_k<T, 1, false>), N, threads_for(p.C, 1), smem, p);
    if (p.C <= 4096)
        return LAUNCH(dev, (norm_fwd_k<T, 2, false>), N, threads_for(p.C, 2), smem, p);
    return LAUNCH(dev, (norm_fwd_k<T, 4, false>), N, threads_for(p.C, 4), smem, p);
}

/* The shape of the backward's launch: K chunks a thread, `threads` a block, `blocks` blocks that each hold `warp ? 4 : 1` groups. */
struct bwd_shape { bool wide, warp; int K, threads, blocks, groups; };

bwd_shape bwd_shape_of(const struct device *dev, int64_t N, int64_t C, enum dtype type, bool vec, int sums)
{
    bwd_shape s = {};
    s.wide = !vec || C > (type == DT_BF16 ? 8192 : 4096);
    s.warp = !s.wide && C <= 512;
    s.K = C <= 256 || (C > 512 && C <= 2048) ? 1 : 2;
    s.threads = s.wide ? 256 : s.warp ? 128 : threads_for(C, s.K);
    /* Enough threads to fill the device, but several rows to a group so that the partial sums stay few. */
    const int per_block = s.warp ? 4 : 1;
    int64_t blocks = (int64_t)dev->sm_count * (s.threads >= 1024 ? 1 : 1024 / s.threads);
    blocks = least(blocks, ceil_div(N, (s.warp ? 16 : 4) * per_block));
    if (sums > 0)
        blocks = least(blocks, (int64_t)dev->work_bytes / (C * 4 * sums * per_block));
    s.blocks = (int)blocks;
    s.groups = s.blocks * per_block;
    return s;
}

template <class T> enum code bwd_run(struct device *dev, const norm_rows &p, const bwd_shape &s)
{
    const size_t smem = 128 * sizeof(float);
    if (s.wide)
        return LAUNCH(dev, (norm_bwd_wide_k<T>), s.blocks, s.threads, smem, p);
    if (s.warp)
        return s.K == 1 ? LAUNCH(dev, (norm_bwd_k<T, 1, true>), s.blocks, s.threads, 0, p)
                        : LAUNCH(dev, (norm_bwd_k<T, 2, true>), s.blocks, s.threads, 0, p);
    return s.K == 1 ? LAUNCH(dev, (norm_bwd_k<T, 1, false>), s.blocks, s.threads, smem, p)
                    : LAUNCH(dev, (norm_bwd_k<T, 2, false>), s.blocks, s.threads, smem, p);
}

enum code check_kind(const char *op, enum norm_kind kind, int64_t N, int64_t C)
{
    if ((unsigned)kind > NORM_LAYER_NOP)
        return fail(ERR_UNSUPPORTED, "%s: norm kind %d is unknown", op, (int)kind);
    if (C > INT32_MAX / 2 || N > INT32_MAX)
        return fail(ERR_UNSUPPORTED, "%s: [%lld,%lld]; the CUDA backend takes up to 2^31 rows and 2^30 columns", op, (long long)N, (long long)C);
    return OK;
}

bool is_rms(enum norm_kind kind) { return kind == NORM_RMS || kind == NORM_RMS1P; }

} // namespace

enum code cuda_norm_fwd(struct device *dev, struct view y, struct view sum, struct view mean, struct view rstd, struct view x, struct view residual,
                        struct view w, struct view b, enum norm_kind kind, float eps)
{
    const char *op = "norm_fwd";
    TRY(cuda_check_type(op, x));
    const enum dtype type = x.dtype;
    TRY(cuda_check(op, "x", x, type, 2, -1, -1, 0));
    const int64_t N = x.n[0], C = x.n[1];
    TRY(cuda_check(op, "y", y, type, 2, N, C, 0));
    TRY(cuda_check(op, "sum", sum, type, 2, N, C, 1));
    TRY(cuda_check(op, "residual", residual, type, 2, N, C, 1));
    TRY(cuda_check(op, "mean", mean, DT_F32, 1, N, -1, 1));
    TRY(cuda_check(op, "rstd", rstd, DT_F32, 1, N, -1, 1));
    TRY(cuda_check(op, "w", w, DT_F32, 1, C, -1, 1));
    TRY(cuda_check(op, "b", b, DT_F32, 1, C, -1, 1));
    TRY(check_kind(op, kind, N, C));
    if (N == 0 || C == 0)
        return OK;
    norm_rows p = {};
    p.x = x.p, p.residual = residual.p, p.y = y.p, p.sum = sum.p;
    if (kind != NORM_LAYER_NOP)
        p.w = ptr<const float>(w), p.b = ptr<const float>(b);
    p.mean = ptr<float>(mean), p.rstd = ptr<float>(rstd);
    p.ldx = x.s[0], p.ldr = residual.s[0], p.ldy = y.s[0], p.ldsum = sum.s[0];
    p.N = N, p.C = (int)C, p.rms = is_rms(kind), p.plus_one = kind == NORM_RMS1P, p.eps = eps;
    const bool vec = rows_aligned(x) && rows_aligned(residual) && rows_aligned(y) && rows_aligned(sum) && rows_aligned(w) && rows_aligned(b);
    return WITH_TYPE(type, (fwd_run<T>(dev, p, vec)));
}

enum code cuda_norm_bwd(struct device *dev, struct view dx, struct view dw, struct view db, struct view dy, struct view dresidual, struct view x,
                        struct view w, struct view mean, struct view rstd, enum norm_kind kind)
{
    const char *op = "norm_bwd";
    TRY(cuda_check_type(op, x));
    const enum dtype type = x.dtype;
    TRY(cuda_check(op, "x", x, type, 2, -1, -1, 0));
    const int64_t N = x.n[0], C = x.n[1];
    TRY(cuda_check(op, "dx", dx, type, 2, N, C, 0));
    TRY(cuda_check(op, "dy", dy, type, 2, N, C, 0));
    TRY(cuda_check(op, "dresidual", dresidual, type, 2, N, C, 1));
    TRY(cuda_check(op, "dw", dw, DT_F32, 1, C, -1, 1));
    TRY(cuda_check(op, "db", db, DT_F32, 1, C, -1, 1));
    TRY(cuda_check(op, "w", w, DT_F32, 1, C, -1, 1));
    TRY(cuda_check(op, "mean", mean, DT_F32, 1, N, -1, is_rms(kind)));
    TRY(cuda_check(op, "rstd", rstd, DT_F32, 1, N, -1, 0));
    TRY(check_kind(op, kind, N, C));
    if (N == 0 || C == 0)
        return OK;
    const bool vec = rows_aligned(x) && rows_aligned(dx) && rows_aligned(dy) && rows_aligned(dresidual) && rows_aligned(w);
    const int sums = (dw.p != NULL) + (db.p != NULL);
    const bwd_shape s = bwd_shape_of(dev, N, C, type, vec, sums);
    if (s.blocks < 1)
        return fail(ERR_UNSUPPORTED, "%s: rows of %lld; the workspace of %zu bytes holds no row of sums", op, (long long)C, dev->work_bytes);
    norm_rows p = {};
    p.x = x.p, p.residual = dresidual.p, p.dy = dy.p, p.y = dx.p;
    if (kind != NORM_LAYER_NOP)
        p.w = ptr<const float>(w);
    p.mean = ptr<float>(mean), p.rstd = ptr<float>(rstd);
    float *partial = (float *)(void *)dev->work, *second = partial + (dw.p != NULL ? (int64_t)s.groups * C : 0);
    p.dw = dw.p != NULL ? partial : NULL, p.db = db.p != NULL ? second : NULL;
    p.ldx = x.s[0], p.ldr = dresidual.s[0], p.ldy = dx.s[0], p.lddy = dy.s[0];
    p.N = N, p.C = (int)C, p.rms = is_rms(kind), p.plus_one = kind == NORM_RMS1P;
    TRY(WITH_TYPE(type, (bwd_run<T>(dev, p, s))));
    if (dw.p != NULL)
        TRY(columns_add(dev, ptr<float>(dw), p.dw, s.groups, C));
    return db.p != NULL ? columns_add(dev, ptr<float>(db), p.db, s.groups, C) : OK;
}

} // namespace CUDA_NS
