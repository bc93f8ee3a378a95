/* Private to attention_bwd_*sm90.cu: what the backward of every width shares: shapes and barriers, the producer warps, the arithmetic
 * between the products, the addition to dQ. See attention_bwd_sm90.cuh. */
#ifndef GQAKIT_KERNELS_CUDA_ATTENTION_BWD_PARTS_SM90_CUH
#define GQAKIT_KERNELS_CUDA_ATTENTION_BWD_PARTS_SM90_CUH

#include "attention_dq_sm90.cuh"

namespace CUDA_NS {
namespace {

template <int D, bool DQ> struct bwd_shape {
    static constexpr int M = D == 64 ? 128 : 64, N = D == 256 ? 64 : 128;
    static constexpr int kv_bytes = N * D * 2, q_bytes = M * D * 2, ds_bytes = N * M * 2, stats_bytes = 2 * M * 4;
    static constexpr int k = 0, v = kv_bytes, q = 2 * kv_bytes, dout = q + STAGES * q_bytes, ds = dout + STAGES * q_bytes;
    static constexpr int stats = ds + (D == 256 ? 4 : DQ ? 2 : 0) * ds_bytes; /* of each stage: log2(e) lse [M], delta [M] */
    static constexpr int rows = stats + STAGES * stats_bytes;  /* the queries of every key, a key_range each, per warp */
    static constexpr int all = rows + 8 * 128, bars = all + 16, smem = bars + 8 * (1 + 5 * STAGES);
};
struct bwd_bars {
    uint32_t base;
    __device__ __forceinline__ uint32_t kv_full() const { return base; }
    __device__ __forceinline__ uint32_t q_full(int i) const { return base + 8 * (1 + i); }
    __device__ __forceinline__ uint32_t q_empty(int i) const { return base + 8 * (1 + STAGES + i); } /* Q and its statistics */
    __device__ __forceinline__ uint32_t dout_full(int i) const { return base + 8 * (1 + 2 * STAGES + i); }
    __device__ __forceinline__ uint32_t dout_empty(int i) const { return base + 8 * (1 + 3 * STAGES + i); }
    __device__ __forceinline__ uint32_t stats_full(int i) const { return base + 8 * (1 + 4 * STAGES + i); }
};

/* A block's work: keys s0 .. of K/V head g of sequence b. `all`, in shared memory, says which queries these see, of each head of the group. */
struct bwd_tile { int s0, g, b; };
__device__ __forceinline__ bwd_tile bwd_tile_of(const attention_problem &p, int tiles, int keys)
{
    const int head = blockIdx.x / tiles;
    bwd_tile tile = {(int)blockIdx.x % tiles * keys, head % p.G, head / p.G};
    return tile;
}

template <int D, bool DQ>
__device__ __forceinline__ void bwd_copy(const attention_problem &p, const tensor_map *q_map, const tensor_map *k_map, const tensor_map *v_map,
                                         const tensor_map *dout_map, const bwd_tile &tile, const runs &all, uint32_t smem)
{
    using shape = bwd_shape<D, DQ>;
    const bwd_bars bar = {smem + shape::bars};
    mbarrier_arrive_expect(bar.kv_full(), 2 * shape::kv_bytes);
    tile_load<D, shape::N>(smem + shape::k, k_map, bar.kv_full(), tile.s0, tile.g, tile.b);
    tile_load<D, shape::N>(smem + shape::v, v_map, bar.kv_full(), tile.s0, tile.g, tile.b);
    unsigned step = 0;
#pragma unroll 1
    for (int r = 0; r < p.R; r++)
#pragma unroll 1
        for (int t0 = all.visit.lo / shape::M * shape::M; t0 < all.visit.hi; t0 += shape::M, step++) {
            const int stage = stage_of(step);
            mbarrier_wait(bar.q_empty(stage), parity_of(step) ^ 1);
            mbarrier_arrive_expect(bar.q_full(stage), shape::q_bytes);
            tile_load<D, shape::M>(smem + shape::q + stage * shape::q_bytes, q_map, bar.q_full(stage), t0, tile.g * p.R + r, tile.b);
            mbarrier_wait(bar.dout_empty(stage), parity_of(step) ^ 1);
            mbarrier_arrive_expect(bar.dout_full(stage), shape::q_bytes);
            tile_load<D, shape::M>(smem + shape::dout + stage * shape::q_bytes, dout_map, bar.dout_full(stage), t0, tile.g * p.R + r, tile.b);
        }
}

/* One warp brings lse, one delta. lse of a query that sees no key, or of none, becomes +inf: its P is 0. */
template <int D, bool DQ>
__device__ __forceinline__ void bwd_statistics(const attention_problem &p, const bwd_tile &tile, const runs &all, unsigned char *bytes,
                                               bool of_lse)
{
    using shape = bwd_shape<D, DQ>;
    const bwd_bars bar = {smem_addr(bytes) + shape::bars};
    const int lane = threadIdx.x & 31;
    unsigned step = 0;
#pragma unroll 1
    for (int r = 0; r < p.R; r++) {
        const int h = tile.g * p.R + r;
        const float *from = lane + (of_lse ? p.lse + tile.b * p.lse_batch + h * p.lse_head : p.delta + ((int64_t)tile.b * p.H + h) * p.Tp);
#pragma unroll 1
        for (int t0 = all.visit.lo / shape::M * shape::M; t0 < all.visit.hi; t0 += shape::M, step++) {
            const int stage = stage_of(step);
            float *to = (float *)(bytes + shape::stats + stage * shape::stats_bytes) + (of_lse ? lane : shape::M + lane);
            mbarrier_wait(bar.q_empty(stage), parity_of(step) ^ 1);
#pragma unroll 1 /* few registers here */
            for (int i = 0; i < shape::M; i += 64) {
                float x[2];
#pragma unroll
                for (int j = 0; j < 2; j++)
                    x[j] = t0 + i + 32 * j + lane < p.T ? from[t0 + i + 32 * j] : of_lse ? NO_KEY : 0.0f;
#pragma unroll
                for (int j = 0; j < 2; j++)
                    to[i + 32 * j] = !of_lse ? x[j] : x[j] == NO_KEY ? -NO_KEY : x[j] * LOG2_E;
            }
            mbarrier_arrive(bar.stats_full(stage));
        }
    }
}

/* Fragments of a warp, 16 keys (the first: row) by M queries, into the tile [N][..] of P^T or dS^T from 16-byte piece `first` of the
 * rows on (panels of 64 queries, 128-byte swizzle). */
template <int M, int N> __device__ __forceinline__ void fragments_store(uint32_t tile, const uint32_t (&a)[M / 16][4], int row, int first)
{
    const int lane = threadIdx.x & 31, at = row + (lane & 15);
#pragma unroll
    for (int i = 0; i < M / 16; i++)
        stmatrix_x4(tile + (uint32_t)(i / 4 * N * 128 + at * 128 + (((first + 2 * i + (lane >> 4)) & 7) ^ (at & 7)) * 16), a[i]);
}

/* 64 keys by C queries of S^T or dP^T: `keys` has D columns of N rows, `queries` of M. */
template <int D, int N, int M, int C> __device__ __forceinline__ void scores_issue(float (&s)[C / 2], uint64_t keys, uint64_t queries)
{
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < D / 16; i++)
        wgmma_ss<C, 0, 0>(s, keys + rows_step<D, N>(i), queries + rows_step<D, M>(i), i != 0);
    wgmma_commit();
}
/* S^T becomes P^T: exp2 of it less the column's lse, which is -(-inf) where P must be 0. lse: of the lane's first column. */
template <int M> __device__ __forceinline__ void probabilities(float (&s)[M / 2], const float *lse_at, float scale_log2)
{
#pragma unroll
    for (int j = 0; j < M / 8; j++) {
        const float2 lse = *reinterpret_cast<const float2 *>(lse_at + 8 * j);
        s[4 * j] = exp2_approx(fmaf(s[4 * j], scale_log2, -lse.x));
        s[4 * j + 1] = exp2_approx(fmaf(s[4 * j + 1], scale_log2, -lse.y));
        s[4 * j + 2] = exp2_approx(fmaf(s[4 * j + 2], scale_log2, -lse.x));
        s[4 * j + 3] = exp2_approx(fmaf(s[4 * j + 3], scale_log2, -lse.y));
    }
}
/* Column group j (8 queries) of dP^T becomes dS^T. */
template <int M> __device__ __forceinline__ void score_gradients(float (&dp)[M / 2], const float (&p)[M / 2], const float *delta_at, int j)
{
    const float2 delta = *reinterpret_cast<const float2 *>(delta_at + 8 * j);
    dp[4 * j] = p[4 * j] * (dp[4 * j] - delta.x);
    dp[4 * j + 1] = p[4 * j + 1] * (dp[4 * j + 1] - delta.y);
    dp[4 * j + 2] = p[4 * j + 2] * (dp[4 * j + 2] - delta.x);
    dp[4 * j + 3] = p[4 * j + 3] * (dp[4 * j + 3] - delta.y);
}

/* dV += P^T dO, or dK += dS^T Q. */
template <int D, int M> __device__ __forceinline__ void gradient_issue(float (&d)[D / 2], const uint32_t (&a)[M / 16][4], uint32_t tile)
{
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < M / 16; i++)
        wgmma_rs<D, 1>(d, a[i], columns_operand<D, M>(tile) + columns_step<D, M>(i), 1);
    wgmma_commit();
}

/* C columns of 64 rows of dQ: dS K. a: dS^T, N keys by 64 queries; b: K from the first of the columns on. */
template <int D, int M, int N, int C> __device__ __forceinline__ void dq_issue(float (&dq)[C / 2], uint64_t a, uint64_t b)
{
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < N / 16; i++)
        wgmma_ss<C, 1, 1>(dq, a + columns_step<M, N>(i), b + columns_step<D, N>(i), i != 0);
    wgmma_commit();
}
/* Adds them to the fragments at `to`, but for the first `skip` groups of 8 columns. */
template <int C> __device__ __forceinline__ void dq_add(float *to, const float (&dq)[C], int skip)
{
#pragma unroll
    for (int i = 0; i < C / 4; i++)
        if (i >= skip)
            red_add_f32x4(to + dq_index(i, threadIdx.x % 128), dq[4 * i], dq[4 * i + 1], dq[4 * i + 2], dq[4 * i + 3]);
}
/* The warp is done with a stage of Q, dO and the statistics. */
__device__ __forceinline__ void stage_release(const bwd_bars &bar, int stage)
{
    __syncwarp(); /* every lane has read its statistics */
    if ((threadIdx.x & 31) == 0)
        mbarrier_arrive(bar.q_empty(stage)), mbarrier_arrive(bar.dout_empty(stage));
}

} // namespace
} // namespace CUDA_NS
#endif
