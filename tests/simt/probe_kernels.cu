/* Kernels that prove the executor (tests/device/test_simt.c): right ones that must run without a report, and the same with one bug
 * seeded each, which must be reported. Ordinary CUDA C++ that nvcc compiles too. */
#include "kernels/cuda/cuda.cuh"
#include "probe_kernels.h"

namespace CUDA_NS {
namespace {

/* ---- sum of each row: shuffles within a warp, shared memory between warps; `rows` rows by one block, so that memory is used again ---- */
template <int BUG> __global__ void __launch_bounds__(128) reduce_k(float *out, const float *in, int rows, int n)
{
    SMEM(float, part);
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    for (int row = 0; row < rows; row++) {
        float sum = 0.0f;
        for (int i = (int)threadIdx.x; i < n; i += 128)
            sum += in[row * n + i];
        for (int by = 16; by > 0; by /= 2)
            sum += __shfl_xor_sync(0xffffffffu, sum, by);
        if (lane == 0)
            part[warp] = sum;
        if (BUG != PROBE_NO_BARRIER)
            __syncthreads();
        if (threadIdx.x == 0)
            out[row] = part[0] + part[1] + part[2] + part[3];
        if (BUG != PROBE_EARLY_WRITE)
            __syncthreads();
    }
}

/* ---- c [M,N] f32 = a [M,K] b [N,K]', bf16; M, N multiples of 64, K of 32; three stages of cp.async ---- */
constexpr int TILE = 64, STEP = 32, ROW = STEP + 8, STAGES = 3; /* rows of 80 bytes: eight of them touch every bank once */

__device__ __forceinline__ void gemm_fetch(bf16 *tile, const bf16 *from, int row0, int k0, int K)
{
    for (int i = (int)threadIdx.x; i < TILE * STEP / 8; i += 128) {
        const int r = i / (STEP / 8), c = i % (STEP / 8) * 8;
        cp_async_16(smem_addr(tile + r * ROW + c), from + (int64_t)(row0 + r) * K + k0 + c, 1);
    }
}

template <int BUG> __global__ void __launch_bounds__(128) gemm_k(float *c, const bf16 *a, const bf16 *b, int N, int K)
{
    SMEM(bf16, tiles);
    bf16 *ta = tiles, *tb = tiles + STAGES * TILE * ROW;
    const int row0 = (int)blockIdx.y * TILE, col0 = (int)blockIdx.x * TILE, warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    const int steps = K / STEP;
    float acc[8][4] = {};
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < steps) {
            gemm_fetch(ta + s * TILE * ROW, a, row0, s * STEP, K);
            gemm_fetch(tb + s * TILE * ROW, b, col0, s * STEP, K);
        }
        cp_async_commit();
    }
    for (int s = 0; s < steps; s++) {
        if (BUG != PROBE_NO_WAIT)
            cp_async_wait<STAGES - 2>();
        if (BUG != PROBE_NO_BARRIER)
            __syncthreads();
        const int next = s + STAGES - 1, stage = BUG == PROBE_EARLY_WRITE ? (next + 1) % STAGES : next % STAGES;
        if (next < steps) {
            gemm_fetch(ta + stage * TILE * ROW, a, row0, next * STEP, K);
            gemm_fetch(tb + stage * TILE * ROW, b, col0, next * STEP, K);
        }
        cp_async_commit();
        const bf16 *x = ta + s % STAGES * TILE * ROW + warp * 16 * ROW, *y = tb + s % STAGES * TILE * ROW;
        for (int k = 0; k < STEP; k += 16) {
            uint32_t fa[4], fb[4];
            ldmatrix_x4(fa, smem_addr(x + lane % 16 * ROW + k + lane / 16 * 8));
            for (int j = 0; j < 4; j++) {
                ldmatrix_x4(fb, smem_addr(y + (16 * j + lane / 16 * 8 + lane % 8) * ROW + k + lane / 8 % 2 * 8));
                mma_bf16(acc[2 * j], fa, fb[0], fb[1]);
                mma_bf16(acc[2 * j + 1], fa, fb[2], fb[3]);
            }
        }
    }
    for (int j = 0; j < 8; j++)
        for (int i = 0; i < 4; i++)
            c[(int64_t)(row0 + warp * 16 + lane / 4 + i / 2 * 8) * N + col0 + j * 8 + lane % 4 * 2 + i % 2] = acc[j][i];
}

/* ---- what single instructions do, for the tables of the test ---- */
__global__ void fragment_k(uint32_t *out, const uint16_t *in, int how)
{
    SMEM(uint16_t, tile);
    for (int i = (int)threadIdx.x; i < 256; i += 32)
        tile[i] = in[i];
    __syncwarp();
    const uint32_t row = smem_addr(tile + threadIdx.x * 8);
    uint32_t r[4] = {0, 0, 0, 0}, r2[2] = {0, 0};
    if (how == 0)
        ldmatrix_x4(r, row);
    else if (how == 1)
        ldmatrix_x4_trans(r, row);
    else if (how == 2)
        ldmatrix_x2(r2, row);
    else
        ldmatrix_x2_trans(r2, row);
    for (int i = 0; i < 4; i++)
        out[threadIdx.x * 4 + i] = how < 2 ? r[i] : i < 2 ? r2[i] : 0;
}

__global__ void mma_k(float *d, const uint32_t *a, const uint32_t *b)
{
    float acc[4];
    uint32_t fa[4];
    for (int i = 0; i < 4; i++)
        acc[i] = d[threadIdx.x * 4 + i], fa[i] = a[threadIdx.x * 4 + i];
    mma_bf16(acc, fa, b[threadIdx.x * 2], b[threadIdx.x * 2 + 1]);
    for (int i = 0; i < 4; i++)
        d[threadIdx.x * 4 + i] = acc[i];
}

/* ---- one bug each; bug -1 and correct counterparts: none ---- */
__global__ void bugs_k(float *out, const float *in, int bug, int n)
{
    SMEM(float, s);
    const int t = (int)threadIdx.x;
    s[t] = in[t];
    __syncthreads();
    float x = s[(t + 1) % (int)blockDim.x];
    __syncthreads();
    if (bug == PROBE_SHARED_BOUNDS)
        s[t + 1] = x; /* the last thread writes beyond */
    if (bug == PROBE_GLOBAL_BOUNDS)
        x += in[t + n];
    if (bug == PROBE_GLOBAL_BOUNDS_WRITE && t == 0)
        out[-1] = x;
    if (bug == PROBE_SHARED_UNINITIALISED)
        x += s[blockDim.x + t];
    if (bug == PROBE_GLOBAL_UNINITIALISED)
        x += out[t];
    if (bug == PROBE_DIVERGENT_RETURN) {
        if (t < 40)
            return;
        __syncthreads();
    }
    if (bug == PROBE_DIVERGENT_LINES) {
        if (t < 64)
            __syncthreads();
        else
            __syncthreads();
    }
    if (bug == PROBE_DEADLOCK) {
        if (t < 32)
            named_barrier_sync(1, 64);
        else
            __syncthreads();
    }
    if (bug == PROBE_DEADLOCK_WARP) {
        if (t % 32 < 16)
            __syncwarp();
        else
            __syncthreads();
    }
    if (bug == PROBE_MISALIGNED) {
        const float4 v = *reinterpret_cast<const float4 *>(in + 1);
        x += v.x + v.w;
    }
    if (bug == PROBE_MISALIGNED_SHARED && t < 32)
        *reinterpret_cast<float2 *>(s + 1 + 2 * t) = make_float2(x, x);
    if (bug == PROBE_WARP_RACE) { /* a shuffle does not order memory; the next line would need __syncwarp */
        s[t] = x;
        x = __shfl_xor_sync(0xffffffffu, x, 1);
        x += s[t ^ 1];
    }
    if (bug == PROBE_WARP_ORDER) {
        s[t] = x;
        __syncwarp();
        x += s[t ^ 1];
    }
    if (bug == PROBE_NAMED_ORDER) { /* right: warps 0 and 1 give to warp 2 by bar.arrive */
        if (t < 64) {
            s[t] = x;
            named_barrier_arrive(3, 96);
        } else if (t < 96) {
            named_barrier_sync(3, 96);
            x += s[t - 64] + s[t - 32];
        }
    }
    if (bug == PROBE_NAMED_RACE) { /* warp 3 did not take part */
        if (t < 64) {
            s[t] = x;
            named_barrier_arrive(3, 96);
        } else if (t < 96) {
            named_barrier_sync(3, 96);
            x += s[t - 64];
        } else
            x += s[t - 96];
    }
    if (bug == PROBE_MANY_READERS) { /* the write of thread 127 is ordered after the reads of its own warp only */
        x += s[3];
        __syncwarp();
        if (t == 127)
            s[3] = 0.0f;
    }
    if (bug == PROBE_GLOBAL_RACE) {
        out[t] = x;
        x += out[(t + 32) % (int)blockDim.x];
        __syncthreads();
    }
    if (bug == PROBE_GLOBAL_EARLY_WRITE) {
        x += out[(t + 32) % (int)blockDim.x];
        out[t] = x;
        __syncthreads();
    }
    if (bug == PROBE_ATOMIC_ORDER) {
        if (t == 0)
            s[0] = 0.0f;
        __syncthreads();
        atomicAdd(&s[0], 1.0f);
        __syncthreads();
        x = s[0];
    }
    if (bug == PROBE_ATOMIC_RACE) {
        atomicAdd(&s[0], 1.0f);
        x = s[0];
    }
    if (bug == PROBE_PRIVATE_BOUNDS) {
        float own[4] = {x, x, x, x};
        own[(t + bug) % 4] = 0.0f;
        x += own[t % 5]; /* 4 is beyond */
    }
    if (bug == PROBE_SHUFFLE_RETURNED) {
        if (t % 32 == 31)
            return;
        x += __shfl_down_sync(0xffffffffu, x, 1);
    }
    if (bug == PROBE_CP_MISALIGNED)
        cp_async_16(smem_addr(s + 4 * t), in + 2, 1);
    out[t] = x;
}

/* ---- random programs (test_simt_order.c) ---- */
template <class T> __device__ __forceinline__ int script_access(T *p, int kind)
{
    if (kind == PROBE_READ)
        return *(volatile T *)p;
    *(volatile T *)p = 1;
    return 0;
}

__global__ void script_k(const int32_t *script)
{
    SMEM(int, word);
    const int t = (int)threadIdx.x, warp = t / 32;
    int sum = 0;
    word[t] = 0;
    __syncthreads();
    for (int phase = 0; phase < PROBE_SCRIPT_PHASES; phase++) {
        for (int i = 0; i < PROBE_SCRIPT_PER_PHASE; i++, script += PROBE_SCRIPT_THREADS) {
            const int s = script[t], kind = s & 15, bytes = s >> 4 & 15;
            char *p = reinterpret_cast<char *>(word + (s >> 12)) + (s >> 8 & 15);
            if (kind == PROBE_ATOMIC)
                sum += atomicAdd(reinterpret_cast<int *>(p), 1);
            else if (kind != PROBE_NOTHING)
                sum += bytes == 4   ? script_access(reinterpret_cast<int *>(p), kind)
                       : bytes == 2 ? script_access(reinterpret_cast<short *>(p), kind)
                                    : script_access(p, kind);
        }
        const int how = *script++;
        if (how == PROBE_SYNC_BLOCK)
            __syncthreads();
        else if (how == PROBE_SYNC_WARP)
            __syncwarp();
        else if (how == PROBE_SYNC_HALF)
            __syncwarp(t % 32 < 16 ? 0xffffu : 0xffff0000u);
        else if (how == PROBE_SYNC_NAMED && warp < 2)
            named_barrier_sync(1, 64);
        else if (how == PROBE_SYNC_ARRIVE && warp == 1)
            named_barrier_sync(2 + phase, 96);
        else if (how == PROBE_SYNC_ARRIVE)
            named_barrier_arrive(2 + phase, 96);
    }
    if (sum == -1)
        __trap();
}

template <int BUG> enum code reduce_run(struct device *dev, float *out, const float *in, int rows, int n)
{
    return LAUNCH(dev, (reduce_k<BUG>), dim3(1), dim3(128), 16, out, in, rows, n);
}

template <int BUG> enum code gemm_run(struct device *dev, float *c, const void *a, const void *b, int M, int N, int K)
{
    return LAUNCH(dev, (gemm_k<BUG>), dim3(N / TILE, M / TILE), dim3(128), 2 * STAGES * TILE * ROW * sizeof(bf16), c, (const bf16 *)a,
                  (const bf16 *)b, N, K);
}

} // namespace
} // namespace CUDA_NS

using namespace CUDA_NS;

enum code probe_reduce(struct device *dev, float *out, const float *in, int rows, int n, int bug)
{
    return bug == PROBE_NO_BARRIER    ? reduce_run<PROBE_NO_BARRIER>(dev, out, in, rows, n)
           : bug == PROBE_EARLY_WRITE ? reduce_run<PROBE_EARLY_WRITE>(dev, out, in, rows, n)
                                      : reduce_run<PROBE_RIGHT>(dev, out, in, rows, n);
}

enum code probe_gemm(struct device *dev, float *c, const void *a, const void *b, int M, int N, int K, int bug)
{
    return bug == PROBE_NO_BARRIER    ? gemm_run<PROBE_NO_BARRIER>(dev, c, a, b, M, N, K)
           : bug == PROBE_EARLY_WRITE ? gemm_run<PROBE_EARLY_WRITE>(dev, c, a, b, M, N, K)
           : bug == PROBE_NO_WAIT     ? gemm_run<PROBE_NO_WAIT>(dev, c, a, b, M, N, K)
                                      : gemm_run<PROBE_RIGHT>(dev, c, a, b, M, N, K);
}

enum code probe_fragment(struct device *dev, uint32_t *out, const uint16_t *in, int how) { return LAUNCH(dev, fragment_k, dim3(1), dim3(32), 512, out, in, how); }
enum code probe_mma(struct device *dev, float *d, const uint32_t *a, const uint32_t *b) { return LAUNCH(dev, mma_k, dim3(1), dim3(32), 0, d, a, b); }
enum code probe_bugs(struct device *dev, float *out, const float *in, int bug, int n)
{
    return LAUNCH(dev, bugs_k, dim3(1), dim3(128), bug == PROBE_SHARED_UNINITIALISED || bug == PROBE_CP_MISALIGNED ? 2048 : 512, out, in, bug, n);
}
enum code probe_script(struct device *dev, const int32_t *script)
{
    return LAUNCH(dev, script_k, dim3(1), dim3(PROBE_SCRIPT_THREADS), PROBE_SCRIPT_THREADS * 4, script);
}
enum code probe_launch(struct device *dev, float *out, const float *in, unsigned grid, unsigned block, size_t smem)
{
    return LAUNCH(dev, bugs_k, dim3(grid), dim3(block), smem, out, in, -1, 0);
}
