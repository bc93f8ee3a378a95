/* Norms of queries and keys: every head of [N,heads,D] is normalised over its D elements, with weights [D] for all heads or [heads*D]. Rows
 * lie apart by two strides (heads of a packed q|k|v buffer); otherwise the formulas are norm.cu's and norm_backward.cu's, and one head
 * (the full-width norms) goes there.
 * Tiling: D <= 256 and 16-byte rows: 8, 16 or 32 lanes a row, eight elements a lane. Else a block a row, element by element, reading it again.
 * dw: a block takes rows of one head, adds them in registers, then its groups of lanes in order through shared memory, and leaves one row of D sums
 * in the workspace: [blocks, heads, D], of which columns_add adds either the rows of all heads or those of each. No atomics.
 * Limit: memory; in bf16 4 bytes an element forward, 6 backward. */
#include "norm.cuh"

namespace CUDA_NS {
namespace {

const int THREADS = 256;

struct head_rows {
    const void *x, *dy;
    void *y; /* dx in the backward */
    const float *w;
    float *mean, *rstd;
    float *dw; /* [gridDim.x, heads, D]; NULL: not wanted */
    int64_t x_row, x_head, y_row, y_head, dy_row, dy_head;
    int64_t N;
    int heads, D, w_head; /* w_head: 0 or D */
    int rms, plus_one;
    float eps;
};

/* Sum over groups of L lanes; the whole warp calls it. */
template <int L> __device__ __forceinline__ float lanes_sum(float x)
{
#pragma unroll
    for (int i = L / 2; i > 0; i >>= 1)
        x += __shfl_xor_sync(0xffffffffu, x, i);
    return x;
}

__device__ __forceinline__ float weight_at(const head_rows &p, int h, int d)
{
    return p.w == NULL ? 1.0f : p.w[h * p.w_head + d] + (p.plus_one ? 1.0f : 0.0f);
}
__device__ __forceinline__ void weights_at(float (&w)[8], const head_rows &p, int h, int d)
{
    if (p.w != NULL)
        load_f32x8(w, p.w + h * p.w_head + d);
#pragma unroll
    for (int i = 0; i < 8; i++)
        w[i] = p.w == NULL ? 1.0f : w[i] + (p.plus_one ? 1.0f : 0.0f);
}

template <class T, int L> __global__ void __launch_bounds__(THREADS) head_norm_fwd_k(head_rows p)
{
    const int64_t r = (int64_t)blockIdx.x * (THREADS / L) + threadIdx.x / L, n = r / p.heads;
    const int h = (int)(r % p.heads), d = (int)(threadIdx.x % L) * 8;
    const bool mine = n < p.N && d < p.D;
    float x[8] = {0, 0, 0, 0, 0, 0, 0, 0}, mean = 0, total = 0;
    if (mine)
        load_f32x8(x, (const T *)p.x + n * p.x_row + h * p.x_head + d);
    if (!p.rms) {
#pragma unroll
        for (int i = 0; i < 8; i++)
            mean += x[i];
        mean = lanes_sum<L>(mean) / (float)p.D;
    }
    if (mine)
#pragma unroll
        for (int i = 0; i < 8; i++)
            total += (x[i] - mean) * (x[i] - mean);
    const float rstd = 1.0f / sqrtf(lanes_sum<L>(total) / (float)p.D + p.eps);
    if (!mine)
        return;
    float w[8];
    weights_at(w, p, h, d);
#pragma unroll
    for (int i = 0; i < 8; i++)
        x[i] = (x[i] - mean) * rstd * w[i];
    store_f32x8((T *)p.y + n * p.y_row + h * p.y_head + d, x);
    if (d == 0) {
        if (p.mean != NULL)
            p.mean[r] = mean;
        if (p.rstd != NULL)
            p.rstd[r] = rstd;
    }
}

template <class T> __global__ void __launch_bounds__(THREADS) head_norm_fwd_wide_k(head_rows p)
{
    SMEM(float, part);
    const int64_t r = blockIdx.x, n = r / p.heads;
    const int h = (int)(r % p.heads);
    const T *x = (const T *)p.x + n * p.x_row + h * p.x_head;
    T *y = (T *)p.y + n * p.y_row + h * p.y_head;
    float mean = 0, total = 0;
    if (!p.rms) {
        for (int d = threadIdx.x; d < p.D; d += blockDim.x)
            mean += f32_of(x[d]);
        mean = block_sum(mean, part) / (float)p.D;
    }
    for (int d = threadIdx.x; d < p.D; d += blockDim.x) {
        const float v = f32_of(x[d]) - mean;
        total += v * v;
    }
    const float rstd = 1.0f / sqrtf(block_sum(total, part + 32) / (float)p.D + p.eps);
    for (int d = threadIdx.x; d < p.D; d += blockDim.x)
        y[d] = num_of<T>((f32_of(x[d]) - mean) * rstd * weight_at(p, h, d));
    if (threadIdx.x == 0) {
        if (p.mean != NULL)
            p.mean[r] = mean;
        if (p.rstd != NULL)
            p.rstd[r] = rstd;
    }
}

/* grid (blocks, heads) */
template <class T, int L> __global__ void __launch_bounds__(THREADS) head_norm_bwd_k(head_rows p)
{
    SMEM(float, sums); /* [groups][8 L] */
    const int groups = THREADS / L, group = threadIdx.x / L, h = blockIdx.y, d = (int)(threadIdx.x % L) * 8;
    float w[8], dw[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    if (d < p.D)
        weights_at(w, p, h, d);
    /* Every thread of the block makes the same turns. */
    for (int64_t first = (int64_t)blockIdx.x * groups; first < p.N; first += (int64_t)gridDim.x * groups) {
        const int64_t n = first + group, r = n * p.heads + h;
        const bool mine = n < p.N && d < p.D;
        float x[8], dy[8], mean = 0, rstd = 0, sg = 0, sgx = 0;
        if (mine) {
            load_f32x8(x, (const T *)p.x + n * p.x_row + h * p.x_head + d);
            load_f32x8(dy, (const T *)p.dy + n * p.dy_row + h * p.dy_head + d);
            mean = p.rms ? 0.0f : p.mean[r];
            rstd = p.rstd[r];
#pragma unroll
            for (int i = 0; i < 8; i++) {
                x[i] = (x[i] - mean) * rstd;
                dw[i] += dy[i] * x[i];
                dy[i] *= w[i];
                sg += dy[i];
                sgx += dy[i] * x[i];
            }
        }
        sgx = lanes_sum<L>(sgx) / (float)p.D;
        sg = p.rms ? 0.0f : lanes_sum<L>(sg) / (float)p.D;
        if (!mine)
            continue;
#pragma unroll
        for (int i = 0; i < 8; i++)
            x[i] = rstd * (dy[i] - sg - x[i] * sgx);
        store_f32x8((T *)p.y + n * p.y_row + h * p.y_head + d, x);
    }
    if (p.dw == NULL)
        return;
    store_f32x8(sums + group * 8 * L + d, dw);
    __syncthreads();
    for (int c = threadIdx.x; c < p.D; c += THREADS) {
        float sum = 0;
        for (int i = 0; i < groups; i++)
            sum += sums[i * 8 * L + c];
        p.dw[((int64_t)blockIdx.x * p.heads + h) * p.D + c] = sum;
    }
}

/* grid (blocks, heads). The sums of a block are added up in its row of the workspace: a thread always has the same columns. */
template <class T> __global__ void __launch_bounds__(THREADS) head_norm_bwd_wide_k(head_rows p)
{
    SMEM(float, parts); /* two sums of 32 floats, twice: a thread may be one row ahead of another */
    const int h = blockIdx.y;
    float *dw = p.dw != NULL ? p.dw + ((int64_t)blockIdx.x * p.heads + h) * p.D : NULL;
    if (dw != NULL)
        for (int d = threadIdx.x; d < p.D; d += blockDim.x)
            dw[d] = 0;
    int turn = 0;
    for (int64_t n = blockIdx.x; n < p.N; n += gridDim.x) {
        float *part = parts + turn;
        turn ^= 64;
        const T *x = (const T *)p.x + n * p.x_row + h * p.x_head, *dy = (const T *)p.dy + n * p.dy_row + h * p.dy_head;
        T *dx = (T *)p.y + n * p.y_row + h * p.y_head;
        const float mean = p.rms ? 0.0f : p.mean[n * p.heads + h], rstd = p.rstd[n * p.heads + h];
        float sg = 0, sgx = 0;
        for (int d = threadIdx.x; d < p.D; d += blockDim.x) {
            const float xhat = (f32_of(x[d]) - mean) * rstd, g = f32_of(dy[d]) * weight_at(p, h, d);
            sg += g;
            sgx += g * xhat;
            if (dw != NULL)
                dw[d] += f32_of(dy[d]) * xhat;
        }
        sgx = block_sum(sgx, part) / (float)p.D;
        sg = p.rms ? 0.0f : block_sum(sg, part + 32) / (float)p.D;
        for (int d = threadIdx.x; d < p.D; d += blockDim.x)
            dx[d] = num_of<T>(rstd * (f32_of(dy[d]) * weight_at(p, h, d) - sg - (f32_of(x[d]) - mean) * rstd * sgx));
    }
}

int lanes_of(int D) { return D <= 64 ? 8 : D <= 128 ? 16 : 32; }
/* Of a block that takes a row element by element. */
unsigned wide_threads(int D) { return D >= THREADS ? THREADS : (unsigned)ceil_div(D, 32) * 32; }

template <class T> enum code fwd_run(struct device *dev, const head_rows &p, bool vec)
{
    const int L = lanes_of(p.D);
    unsigned blocks;
    TRY(grid_of("head_norm_fwd", p.N * p.heads, vec ? THREADS / L : 1, &blocks));
    if (!vec)
        return LAUNCH(dev, (head_norm_fwd_wide_k<T>), blocks, wide_threads(p.D), 64 * sizeof(float), p);
    return L == 8    ? LAUNCH(dev, (head_norm_fwd_k<T, 8>), blocks, THREADS, 0, p)
           : L == 16 ? LAUNCH(dev, (head_norm_fwd_k<T, 16>), blocks, THREADS, 0, p)
                     : LAUNCH(dev, (head_norm_fwd_k<T, 32>), blocks, THREADS, 0, p);
}

template <class T> enum code bwd_run(struct device *dev, const head_rows &p, dim3 grid, bool vec)
{
    const size_t smem = THREADS * 8 * sizeof(float);
    if (!vec)
        return LAUNCH(dev, (head_norm_bwd_wide_k<T>), grid, wide_threads(p.D), 128 * sizeof(float), p);
    const int L = lanes_of(p.D);
    return L == 8    ? LAUNCH(dev, (head_norm_bwd_k<T, 8>), grid, THREADS, smem, p)
           : L == 16 ? LAUNCH(dev, (head_norm_bwd_k<T, 16>), grid, THREADS, smem, p)
                     : LAUNCH(dev, (head_norm_bwd_k<T, 32>), grid, THREADS, smem, p);
}

/* The tensors both passes have: x, y (dx in the backward) and weights. */
enum code rows_make(head_rows *p, const char *op, struct view y, struct view x, struct view w, struct view mean, struct view rstd, enum norm_kind kind)
{
    TRY(cuda_check_type(op, x));
    TRY(cuda_check(op, "x", x, x.dtype, 3, -1, -1, 0));
    const int64_t N = x.n[0], heads = x.n[1], D = x.n[2];
    TRY(cuda_check(op, "y", y, x.dtype, 3, N, heads, 0));
    if (y.n[2] != D)
        return fail(ERR_UNSUPPORTED, "%s: heads of %lld become heads of %lld", op, (long long)D, (long long)y.n[2]);
    TRY(cuda_check(op, "w", w, DT_F32, 1, -1, -1, 1));
    if (w.p != NULL && w.n[0] != D && w.n[0] != heads * D)
        return fail(ERR_UNSUPPORTED, "%s: w has %lld elements; %lld heads of %lld take one row or one each", op, (long long)w.n[0], (long long)heads,
                    (long long)D);
    TRY(norm_check(op, kind, N, heads * D));
    if (heads > 65535 || N * heads > INT32_MAX)
        return fail(ERR_UNSUPPORTED, "%s: %lld rows of %lld heads; the CUDA backend takes 65535 heads and 2^31 in all", op, (long long)N, (long long)heads);
    TRY(cuda_check(op, "mean", mean, DT_F32, 1, N * heads, -1, 1));
    TRY(cuda_check(op, "rstd", rstd, DT_F32, 1, N * heads, -1, 1));
    head_rows r = {};
    r.x = x.p, r.y = y.p;
    if (kind != NORM_LAYER_NOP)
        r.w = ptr<const float>(w), r.w_head = w.p != NULL && w.n[0] != D ? (int)D : 0;
    r.mean = ptr<float>(mean), r.rstd = ptr<float>(rstd);
    r.x_row = x.s[0], r.x_head = x.s[1], r.y_row = y.s[0], r.y_head = y.s[1];
    r.N = N, r.heads = (int)heads, r.D = (int)D, r.rms = norm_is_rms(kind), r.plus_one = kind == NORM_RMS1P;
    *p = r;
    return OK;
}

/* One head as rows of a matrix. */
struct view matrix_of(struct view x)
{
    struct view m = x;
    m.nd = 2, m.n[1] = x.n[2], m.s[1] = x.s[2], m.n[2] = 1;
    return m;
}

} // namespace

enum code cuda_head_norm_fwd(struct device *dev, struct view y, struct view mean, struct view rstd, struct view x, struct view w, enum norm_kind kind,
                             float eps)
{
    head_rows p = {};
    TRY(rows_make(&p, "head_norm_fwd", y, x, w, mean, rstd, kind));
    if (p.heads == 1)
        return cuda_norm_fwd(dev, matrix_of(y), view_none(), mean, rstd, matrix_of(x), view_none(), w, view_none(), kind, eps);
    if (p.N * p.heads * p.D == 0)
        return OK;
    p.eps = eps;
    const bool vec = p.D <= 256 && rows_aligned(x) && rows_aligned(y) && rows_aligned(w);
    return WITH_TYPE(x.dtype, (fwd_run<T>(dev, p, vec)));
}

enum code cuda_head_norm_bwd(struct device *dev, struct view dx, struct view dw, struct view dy, struct view x, struct view w, struct view mean,
                             struct view rstd, enum norm_kind kind)
{
    const char *op = "head_norm_bwd";
    head_rows p = {};
    TRY(rows_make(&p, op, dx, x, w, mean, rstd, kind));
    TRY(cuda_check(op, "dy", dy, x.dtype, 3, p.N, p.heads, 0));
    if (dy.n[2] != p.D)
        return fail(ERR_UNSUPPORTED, "%s: heads of %d have a gradient of %lld", op, p.D, (long long)dy.n[2]);
    TRY(cuda_check(op, "mean", mean, DT_F32, 1, -1, -1, p.rms));
    TRY(cuda_check(op, "rstd", rstd, DT_F32, 1, -1, -1, 0));
    TRY(cuda_check(op, "dw", dw, DT_F32, 1, w.p != NULL ? w.n[0] : dw.p != NULL && dw.n[0] == p.D ? p.D : (int64_t)p.heads * p.D, -1, 1));
    if (p.heads == 1)
        return cuda_norm_bwd(dev, matrix_of(dx), dw, view_none(), matrix_of(dy), view_none(), matrix_of(x), w, mean, rstd, kind);
    if (p.N * p.heads * p.D == 0)
        return OK;
    p.dy = dy.p, p.dy_row = dy.s[0], p.dy_head = dy.s[1];
    const bool vec = p.D <= 256 && rows_aligned(x) && rows_aligned(dx) && rows_aligned(dy) && rows_aligned(w);
    /* Enough blocks to fill the device, but four rows to a group of lanes so that the sums stay few. */
    int64_t blocks = least(ceil_div((int64_t)dev->sm_count * 8, p.heads), ceil_div(p.N, 4 * (vec ? THREADS / lanes_of(p.D) : 1)));
    if (dw.p != NULL) {
        p.dw = (float *)(void *)dev->work;
        blocks = least(blocks, (int64_t)dev->work_bytes / ((int64_t)p.heads * p.D * 4));
    }
    if (blocks < 1)
        return fail(ERR_UNSUPPORTED, "%s: %d heads of %d; the workspace of %zu bytes holds no row of sums", op, p.heads, p.D, dev->work_bytes);
    TRY(WITH_TYPE(x.dtype, (bwd_run<T>(dev, p, dim3((unsigned)blocks, (unsigned)p.heads), vec))));
    if (dw.p == NULL)
        return OK;
    const int64_t to = dw.n[0];
    return columns_add(dev, ptr<float>(dw), p.dw, blocks * p.heads * p.D / to, to);
}

} // namespace CUDA_NS
