/* Column sums in a fixed order, and a bias on every row. bias_grad: a block takes 256 columns of a range of rows, its eight warps
 * every eighth row, and leaves one row of partial sums in the workspace; columns_add then adds those rows. f32, no atomics.
 * Limit: memory; the bytes of dy once. */
#include "rows.cuh"

namespace CUDA_NS {
namespace {

#define STRIP 256   /* columns of a block of bias_grad_k: 32 lanes of eight */
#define ROW_WARPS 8
#define ROWS_MIN 64 /* rows worth a block: eight for each warp */

/* Block (32, 8): 32 columns; warp j adds rows j, j + 8, ...; then the eight sums in order. */
__global__ void __launch_bounds__(256) columns_add_k(float *to, const float *rows, int64_t P, int64_t C)
{
    SMEM(float, part);
    const int64_t c = (int64_t)blockIdx.x * 32 + threadIdx.x;
    float sum = 0;
    if (c < C)
#pragma unroll 4
        for (int64_t r = threadIdx.y; r < P; r += 8)
            sum += rows[r * C + c];
    part[threadIdx.y * 32 + threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y != 0 || c >= C)
        return;
    for (int i = 1; i < 8; i++)
        sum += part[i * 32 + threadIdx.x];
    to[c] += sum;
}

/* partial [gridDim.y, C] */
template <class T, bool VEC> __global__ void __launch_bounds__(256) bias_grad_k(float *partial, const T *dy, int64_t ld, int64_t N, int64_t C)
{
    SMEM(float, part);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int64_t c = (int64_t)blockIdx.x * STRIP + lane * 8;
    float sum[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    if (c < C)
#pragma unroll 4
        for (int64_t n = (int64_t)blockIdx.y * ROW_WARPS + warp; n < N; n += (int64_t)gridDim.y * ROW_WARPS) {
            float x[8];
            load8<VEC>(x, dy + n * ld + c, C - c);
#pragma unroll
            for (int i = 0; i < 8; i++)
                sum[i] += x[i];
        }
    /* Element i of every lane side by side, so that neither side has bank conflicts. */
#pragma unroll
    for (int i = 0; i < 8; i++)
        part[warp * STRIP + i * 32 + lane] = sum[i];
    __syncthreads();
    const int64_t mine = (int64_t)blockIdx.x * STRIP + (threadIdx.x & 31) * 8 + (threadIdx.x >> 5); /* the column of slot threadIdx.x */
    if (mine >= C)
        return;
    float total = 0;
#pragma unroll
    for (int i = 0; i < ROW_WARPS; i++)
        total += part[i * STRIP + threadIdx.x];
    partial[(int64_t)blockIdx.y * C + mine] = total;
}

template <class T, bool VEC> __global__ void __launch_bounds__(128) bias_add_k(T *c, int64_t ld, const float *bias, int64_t C, unsigned parts)
{
    const int64_t row = blockIdx.x / parts, at = ((int64_t)(blockIdx.x % parts) * blockDim.x + threadIdx.x) * 8;
    if (at >= C)
        return;
    float x[8], b[8];
    load8<VEC>(x, c + row * ld + at, C - at);
    load8<VEC>(b, bias + at, C - at);
#pragma unroll
    for (int i = 0; i < 8; i++)
        x[i] += b[i];
    store8<VEC>(c + row * ld + at, x, C - at);
}

template <class T> enum code grad_run(struct device *dev, float *partial, struct view dy, unsigned P)
{
    const dim3 grid((unsigned)ceil_div(dy.n[1], STRIP), P);
    const size_t smem = ROW_WARPS * STRIP * sizeof(float);
    return rows_aligned(dy) ? LAUNCH(dev, (bias_grad_k<T, true>), grid, 256, smem, partial, ptr<const T>(dy), dy.s[0], dy.n[0], dy.n[1])
                            : LAUNCH(dev, (bias_grad_k<T, false>), grid, 256, smem, partial, ptr<const T>(dy), dy.s[0], dy.n[0], dy.n[1]);
}

template <class T> enum code add_run(struct device *dev, struct view c, struct view bias, unsigned blocks, unsigned parts)
{
    return rows_aligned(c) && rows_aligned(bias)
               ? LAUNCH(dev, (bias_add_k<T, true>), blocks, 128, 0, ptr<T>(c), c.s[0], ptr<const float>(bias), c.n[1], parts)
               : LAUNCH(dev, (bias_add_k<T, false>), blocks, 128, 0, ptr<T>(c), c.s[0], ptr<const float>(bias), c.n[1], parts);
}

} // namespace

enum code columns_add(struct device *dev, float *to, const float *rows, int64_t P, int64_t C)
{
    unsigned blocks;
    TRY(grid_of("columns_add", C, 32, &blocks));
    return LAUNCH(dev, columns_add_k, blocks, dim3(32, 8), 256 * sizeof(float), to, rows, P, C);
}

enum code cuda_bias_grad(struct device *dev, struct view db, struct view dy)
{
    const char *op = "bias_grad";
    TRY(cuda_check_type(op, dy));
    TRY(cuda_check(op, "dy", dy, dy.dtype, 2, -1, -1, 0));
    TRY(cuda_check(op, "db", db, DT_F32, 1, dy.n[1], -1, 0));
    const int64_t N = dy.n[0], C = dy.n[1];
    if (N == 0 || C == 0)
        return OK;
    /* Enough blocks for the device (four of 256 threads on each multiprocessor), as long as each has rows to add. */
    int64_t P = least(ceil_div((int64_t)dev->sm_count * 4, ceil_div(C, STRIP)), ceil_div(N, ROWS_MIN));
    P = least(P, least((int64_t)dev->work_bytes / (C * 4), 65535));
    if (P < 1)
        return fail(ERR_UNSUPPORTED, "%s: %lld columns; the workspace of %zu bytes holds no row of sums", op, (long long)C, dev->work_bytes);
    float *partial = (float *)(void *)dev->work;
    TRY(WITH_TYPE(dy.dtype, (grad_run<T>(dev, partial, dy, (unsigned)P))));
    return columns_add(dev, ptr<float>(db), partial, P, C);
}

enum code bias_add(struct device *dev, struct view c, struct view bias)
{
    const char *op = "bias_add";
    TRY(cuda_check_type(op, c));
    TRY(cuda_check(op, "c", c, c.dtype, 2, -1, -1, 0));
    TRY(cuda_check(op, "bias", bias, DT_F32, 1, c.n[1], -1, 0));
    if (c.n[0] == 0 || c.n[1] == 0)
        return OK;
    const int64_t parts = ceil_div(c.n[1], 1024);
    unsigned blocks;
    TRY(grid_of(op, c.n[0] * parts, 1, &blocks));
    return WITH_TYPE(c.dtype, (add_run<T>(dev, c, bias, blocks, (unsigned)parts)));
}

} // namespace CUDA_NS
