/* Row norms on [N,C], backward. With xhat = (x - mean) rstd and g = dy w: dx = rstd (g - mean(g) - xhat mean(g xhat)); RMS kinds have
 * no mean(g). x is the stored sum of the forward.
 * dw and db: each row group (a warp, or a block) adds the rows it takes in registers and leaves one row of partial sums in the
 * workspace; a second kernel adds those in order. No atomics: the same device gives the same bits.
 * Tiling: a thread holds K chunks of eight elements. C <= 512: a warp a row; C <= 8192 (f32: 4096): a block a row, the next row loading
 * while the present one is reduced; wider or unaligned rows take plain loops that read the row again.
 * Limit: memory; 8 bytes an element in bf16 (x, dy, dresidual, dx). */
#include "norm.cuh"

namespace CUDA_NS {
namespace {

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

/* The shape of the backward's launch: K chunks a thread, `threads` a block, `blocks` blocks that each hold `warp ? 4 : 1` groups. */
struct bwd_shape { bool wide, warp; int K, threads, blocks, groups; };

bwd_shape bwd_shape_of(const struct device *dev, int64_t N, int64_t C, enum dtype type, bool vec, int sums)
{
    bwd_shape s = {};
    s.wide = !vec || C > (type == DT_BF16 ? 8192 : 4096);
    s.warp = !s.wide && C <= 512;
    s.K = C <= 256 || (C > 512 && C <= 2048) ? 1 : 2;
    s.threads = s.wide ? 256 : s.warp ? 128 : norm_threads(C, s.K);
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

} // namespace

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
    TRY(cuda_check(op, "mean", mean, DT_F32, 1, N, -1, norm_is_rms(kind)));
    TRY(cuda_check(op, "rstd", rstd, DT_F32, 1, N, -1, 0));
    TRY(norm_check(op, kind, N, C));
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
    p.N = N, p.C = (int)C, p.rms = norm_is_rms(kind), p.plus_one = kind == NORM_RMS1P;
    TRY(WITH_TYPE(type, (bwd_run<T>(dev, p, s))));
    if (dw.p != NULL)
        TRY(columns_add(dev, ptr<float>(dw), p.dw, s.groups, C));
    return db.p != NULL ? columns_add(dev, ptr<float>(db), p.db, s.groups, C) : OK;
}

} // namespace CUDA_NS
