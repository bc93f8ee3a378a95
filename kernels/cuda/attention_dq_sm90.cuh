/* Private to attention_bwd_*sm90.cu: the two ways to dQ on Hopper.
 *   dq_store_run   rounds what attention_bwd_sm90_k added up in p.dq_sum
 *   dq_run         deterministic: computes S and dS again, a block per 128 queries, without atomics: seven products in place of five
 *
 * dq_run is the forward with dS where the forward has P: two consumer warpgroups with 64 queries of one head each, Q and dO in shared memory for
 * good, tiles of N keys of K and V in two stages from a producer warp.
 *   S = Q K^T, dP = dO V^T    P = exp2(scale log2(e) S - log2(e) lse), dS = P (dP - delta)    dQ += dS K, dS from registers
 * Registers: dQ D / 2, S and dP N / 2 each. */
#ifndef GQAKIT_KERNELS_CUDA_ATTENTION_DQ_SM90_CUH
#define GQAKIT_KERNELS_CUDA_ATTENTION_DQ_SM90_CUH

#include "attention_sm90.cuh"

namespace CUDA_NS {
namespace {

/* Where thread `thread` of a warpgroup keeps accumulators 4 i .. 4 i + 3 of 64 rows of dQ: row 16 (thread / 32) + g, columns 8 i + 2 t and the next,
 * then the same of row + 8. In floats from the first of the 64 rows. */
__device__ __forceinline__ int dq_index(int i, int thread) { return (i * 128 + thread) * 4; }

/* 64 rows of one head a block, 16 a warp; a lane has its D / 2 floats in flight. */
template <int D> __global__ void __launch_bounds__(128) dq_store_sm90_k(const __grid_constant__ attention_problem p)
{
    const int h = blockIdx.x % p.H, t0 = blockIdx.x / p.H * 64, b = blockIdx.y;
    const float *from = p.dq_sum + (((int64_t)b * p.H + h) * p.Tp + t0) * D;
    float dq[D / 2];
#pragma unroll
    for (int i = 0; i < D / 8; i++) {
        const float4 x = *reinterpret_cast<const float4 *>(from + dq_index(i, threadIdx.x));
        dq[4 * i] = x.x, dq[4 * i + 1] = x.y, dq[4 * i + 2] = x.z, dq[4 * i + 3] = x.w;
    }
    rows_store<D>(dq, p.scale, p.scale, p.dq, b, h, t0 + threadIdx.x / 32 * 16, p.T, p.D);
}

template <int D> enum code dq_store_run(struct device *dev, const attention_problem &p)
{
    const dim3 grid((unsigned)(p.H * ceil_div(p.T, 64)), (unsigned)p.B);
    return LAUNCH(dev, dq_store_sm90_k<D>, grid, dim3(128), 0, p);
}

template <int D> struct dq_shape {
    static constexpr int M = 128, N = D == 256 ? 32 : 64;
    static constexpr int q_bytes = 64 * D * 2, kv_bytes = N * D * 2; /* of a warpgroup; of a K or V tile */
    static constexpr int q = 0, dout = 2 * q_bytes, k = 4 * q_bytes, v = k + STAGES * kv_bytes;
    static constexpr int rows = v + STAGES * kv_bytes, bars = rows + 8 * M, smem = bars + 8 * (1 + 2 * STAGES);
};
struct dq_bars {
    uint32_t base;
    __device__ __forceinline__ uint32_t q_full() const { return base; }
    __device__ __forceinline__ uint32_t full(int i) const { return base + 8 * (1 + i); }
    __device__ __forceinline__ uint32_t empty(int i) const { return base + 8 * (1 + STAGES + i); }
};

struct dq_tile { int t0, h, b; };

template <int D>
__device__ __forceinline__ void dq_copy(const attention_problem &p, const tensor_map *q_map, const tensor_map *k_map, const tensor_map *v_map,
                                        const tensor_map *dout_map, const dq_tile &tile, key_range keys, uint32_t smem)
{
    using shape = dq_shape<D>;
    const dq_bars bar = {smem + shape::bars};
    mbarrier_arrive_expect(bar.q_full(), 4 * shape::q_bytes);
#pragma unroll 1
    for (int w = 0; w < 2; w++) {
        tile_load<D, 64>(smem + shape::q + w * shape::q_bytes, q_map, bar.q_full(), tile.t0 + 64 * w, tile.h, tile.b);
        tile_load<D, 64>(smem + shape::dout + w * shape::q_bytes, dout_map, bar.q_full(), tile.t0 + 64 * w, tile.h, tile.b);
    }
    unsigned step = 0;
#pragma unroll 1
    for (int s0 = keys.lo / shape::N * shape::N; s0 < keys.hi; s0 += shape::N, step++) {
        const int stage = stage_of(step);
        mbarrier_wait(bar.empty(stage), parity_of(step) ^ 1);
        mbarrier_arrive_expect(bar.full(stage), 2 * shape::kv_bytes);
        tile_load<D, shape::N>(smem + shape::k + stage * shape::kv_bytes, k_map, bar.full(stage), s0, tile.h / p.R, tile.b);
        tile_load<D, shape::N>(smem + shape::v + stage * shape::kv_bytes, v_map, bar.full(stage), s0, tile.h / p.R, tile.b);
    }
}

template <int D> __device__ __forceinline__ void dq_consume(const attention_problem &p, const dq_tile &tile, key_range keys, unsigned char *bytes)
{
    using shape = dq_shape<D>;
    constexpr int N = shape::N;
    const uint32_t smem = smem_addr(bytes);
    const dq_bars bar = {smem + shape::bars};
    const int w = uniform(threadIdx.x / 128 - 1), lane = threadIdx.x & 31;
    const int row = 64 * w + threadIdx.x % 128 / 32 * 16; /* the warp's first of the 128 rows */
    const int t0 = tile.t0 + 64 * w;
    const key_range seen = keys_of_rows(p, tile.b, min(t0, p.T - 1), min(t0 + 64, p.T)).seen; /* by all 64 rows */
    key_range *row_keys = (key_range *)(bytes + shape::rows) + row;
    if (lane < 16)
        row_keys[lane] = keys_of_row(p, tile.b, min(tile.t0 + row + lane, p.T - 1), keys);
    __syncwarp();
    const float scale_log2 = p.scale * LOG2_E;
    float lse[2], delta[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int t = min(tile.t0 + row + (lane >> 2) + 8 * r, p.T - 1);
        const float x = p.lse[tile.b * p.lse_batch + tile.h * p.lse_head + t];
        lse[r] = x == NO_KEY ? -NO_KEY : x * LOG2_E; /* a row that sees no key: P is 0 */
        delta[r] = p.delta[((int64_t)tile.b * p.H + tile.h) * p.Tp + t];
    }
    const uint64_t q = rows_operand<D, 64>(smem + shape::q + w * shape::q_bytes), dout = rows_operand<D, 64>(smem + shape::dout + w * shape::q_bytes);
    float dq[D / 2];
#pragma unroll
    for (int i = 0; i < D / 2; i++)
        dq[i] = 0;
    mbarrier_wait(bar.q_full(), 0);
    unsigned step = 0;
    for (int s0 = keys.lo / N * N; s0 < keys.hi; s0 += N, step++) {
        const int stage = stage_of(step);
        const uint32_t k = smem + shape::k + stage * shape::kv_bytes, v = smem + shape::v + stage * shape::kv_bytes;
        float s[N / 2], dp[N / 2];
        uint32_t a[N / 16][4];
        mbarrier_wait(bar.full(stage), parity_of(step));
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < D / 16; i++)
            wgmma_ss<N, 0, 0>(s, q + rows_step<D, 64>(i), rows_operand<D, N>(k) + rows_step<D, N>(i), i != 0);
        wgmma_commit();
#pragma unroll
        for (int i = 0; i < D / 16; i++)
            wgmma_ss<N, 0, 0>(dp, dout + rows_step<D, 64>(i), rows_operand<D, N>(v) + rows_step<D, N>(i), i != 0);
        wgmma_commit();
        wgmma_wait<1>();
        wgmma_keep(s);
        if (s0 < seen.lo || s0 + N > seen.hi)
            mask_columns<N>(s, s0, row_keys);
        if (p.slopes != NULL)
            bias_keys<N>(s, p, tile.h, tile.t0 + row, 0, s0);
#pragma unroll
        for (int i = 0; i < N / 2; i++)
            s[i] = exp2_approx(fmaf(s[i], scale_log2, -lse[i >> 1 & 1]));
        wgmma_wait<0>();
        wgmma_keep(dp);
#pragma unroll
        for (int i = 0; i < N / 2; i++)
            dp[i] = s[i] * (dp[i] - delta[i >> 1 & 1]);
        fragments_of<N>(a, dp);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < N / 16; i++)
            wgmma_rs<D, 1>(dq, a[i], columns_operand<D, N>(k) + columns_step<D, N>(i), 1);
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_keep(dq);
        if (lane == 0)
            mbarrier_arrive(bar.empty(stage));
    }
    rows_store<D>(dq, p.scale, p.scale, p.dq, tile.b, tile.h, tile.t0 + row, p.T, p.D);
}

template <int D>
__global__ void __launch_bounds__(384, 1)
    attention_dq_sm90_k(const __grid_constant__ attention_problem p, const __grid_constant__ tensor_map q_map,
                        const __grid_constant__ tensor_map k_map, const __grid_constant__ tensor_map v_map,
                        const __grid_constant__ tensor_map dout_map)
{
    using shape = dq_shape<D>;
    SMEM(unsigned char, bytes);
    const uint32_t smem = smem_addr(bytes);
    if (threadIdx.x == 0) {
        const dq_bars bar = {smem + shape::bars};
        mbarrier_init(bar.q_full(), 1);
        for (int i = 0; i < STAGES; i++)
            mbarrier_init(bar.full(i), 1), mbarrier_init(bar.empty(i), 8); /* the consumers' warps arrive one by one */
        fence_mbarrier_init();
        tma_prefetch(&q_map), tma_prefetch(&k_map), tma_prefetch(&v_map), tma_prefetch(&dout_map);
    }
    __syncthreads();
    /* Heads next to each other, late queries (under a causal mask the heaviest) first. */
    const int heads = p.B * p.H, head = blockIdx.x % heads, tiles = gridDim.x / heads;
    const dq_tile tile = {(tiles - 1 - (int)blockIdx.x / heads) * shape::M, head % p.H, head / p.H};
    const key_range keys = keys_of_rows(p, tile.b, tile.t0, min(tile.t0 + shape::M, p.T)).visit;
    if (threadIdx.x < 128) {
        registers_shrink<40>();
        if (threadIdx.x == 0)
            dq_copy<D>(p, &q_map, &k_map, &v_map, &dout_map, tile, keys, smem);
    } else {
        registers_grow<232>();
        dq_consume<D>(p, tile, keys, bytes);
    }
}

template <int D> enum code dq_run(struct device *dev, const attention_problem &p)
{
    using shape = dq_shape<D>;
    tensor_map q, k, v, dout;
    TRY(heads_map(&q, p.q, p.D, p.T, p.H, p.B, panel<D>::W, 64));
    TRY(heads_map(&dout, p.dout, p.D, p.T, p.H, p.B, panel<D>::W, 64));
    TRY(heads_map(&k, p.k, p.D, p.S, p.G, p.B, panel<D>::W, shape::N));
    TRY(heads_map(&v, p.v, p.D, p.S, p.G, p.B, panel<D>::W, shape::N));
    return LAUNCH(dev, attention_dq_sm90_k<D>, dim3((unsigned)(ceil_div(p.T, shape::M) * p.B * p.H)), dim3(384), shape::smem, p, q, k, v, dout);
}

} // namespace
} // namespace CUDA_NS
#endif
