/* Private to attention_bwd_*sm90.cu: dK and dV, and by atomic addition dQ, for D up to 128 on Hopper (FlashAttention-2, Dao 2023, alg. 2;
 * the work of warps after FlashAttention-3, Shah et al. 2024).
 *
 * A block has one tile of N = 128 keys of one K/V head, 64 keys for each of two consumer warpgroups, and walks over the R query heads of the
 * group and their tiles of M queries: dK and dV stay in registers over the whole group. A producer warp copies Q and dO (two stages each)
 * by TMA, two more bring lse and delta. Scores are transposed, keys by queries, so that what the second products need from registers is
 * already there:
 *   S^T  = K Q^T      dP^T = V dO^T       both operands in shared memory, 64 x M f32 each
 *   P^T  = exp2(scale log2(e) S^T - log2(e) lse),  dS^T = P^T (dP^T - delta)
 *   dV  += P^T dO     dK += dS^T Q        P^T, dS^T from registers as bf16 (fragments_of), dO and Q transposed by their descriptors
 *   dQ   = dS K       dS^T goes through shared memory (two buffers), where it is the transposed A operand
 * dQ's products are shared evenly: for M = 64 a warpgroup computes half of the columns (D = 96: both 64, the shared 32
 * are added by the first), for M = 128 half of the rows. They
 * are added to p.dq_sum, whose order within 64 rows is that of the fragments (dq_index), so that every addition is 16 bytes
 * of 512 that a warp adds in one piece. scale is left to the last step of dK and dQ.
 *
 * One barrier of the consumers per step: both halves of dS^T are written. A buffer of dS^T is written again two steps later, and nobody
 * gets past the barrier in between before the products that read it are done.
 *
 * Limit: 5 products of M N D per step, 5 * M N D / 2048 cycles (2560 at D = 128), M N / 16 cycles of exponentials (512) and as many again for
 * the rest of P and dS, which overlap only as far as the two warpgroups drift apart. */
#ifndef GQAKIT_KERNELS_CUDA_ATTENTION_BWD_SM90_CUH
#define GQAKIT_KERNELS_CUDA_ATTENTION_BWD_SM90_CUH

#include "attention_dq_sm90.cuh"

namespace CUDA_NS {
namespace {

template <int D, bool DQ> struct bwd_shape {
    static constexpr int M = D == 64 ? 128 : 64, N = 128;
    static constexpr int kv_bytes = N * D * 2, q_bytes = M * D * 2, ds_bytes = N * M * 2, stats_bytes = 2 * M * 4;
    static constexpr int k = 0, v = kv_bytes, q = 2 * kv_bytes, dout = q + STAGES * q_bytes, ds = dout + STAGES * q_bytes;
    static constexpr int stats = ds + (DQ ? 2 * ds_bytes : 0); /* of each stage: log2(e) lse [M], delta [M] */
    static constexpr int rows = stats + STAGES * stats_bytes;  /* the queries of every key, a key_range each */
    static constexpr int all = rows + 8 * N, bars = all + 16, smem = bars + 8 * (1 + 5 * STAGES);
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
template <int D, bool DQ> __device__ __forceinline__ void bwd_statistics(const attention_problem &p, const bwd_tile &tile, const runs &all, unsigned char *bytes, bool of_lse)
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

/* dS^T of a warp, 16 keys by M queries, as fragments, into its rows of the tile [128][M] (panels of 64 queries, 128-byte swizzle). */
template <int M> __device__ __forceinline__ void ds_store(uint32_t tile, const uint32_t (&a)[M / 16][4], int row)
{
    const int lane = threadIdx.x & 31, at = row + (lane & 15);
#pragma unroll
    for (int i = 0; i < M / 16; i++)
        stmatrix_x4(tile + (uint32_t)(i / 4 * 128 * 128 + at * 128 + (((2 * i + (lane >> 4)) & 7) ^ (at & 7)) * 16), a[i]);
}

/* C columns of 64 rows of dQ: dS K, added to `to` (the fragments of the first column). Meanwhile waits for dV and dK of this step and lets Q
 * and dO go. a: dS^T, 128 keys by 64 queries; b: K from that column on. The first `skip` groups of 8 columns are not added. */
template <int D, int M, int C> __device__ __forceinline__ void dq_add(float *to, uint64_t a, uint64_t b, uint32_t q_empty, uint32_t dout_empty, int skip = 0)
{
    float dq[C / 2];
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 128 / 16; i++)
        wgmma_ss<C, 1, 1>(dq, a + columns_step<M, 128>(i), b + columns_step<D, 128>(i), i != 0);
    wgmma_commit();
    wgmma_wait<1>();
    __syncwarp(); /* every lane has read its statistics */
    if ((threadIdx.x & 31) == 0)
        mbarrier_arrive(q_empty), mbarrier_arrive(dout_empty);
    wgmma_wait<0>();
    wgmma_keep(dq);
#pragma unroll
    for (int i = 0; i < C / 8; i++)
        if (i >= skip)
            red_add_f32x4(to + dq_index(i, threadIdx.x % 128), dq[4 * i], dq[4 * i + 1], dq[4 * i + 2], dq[4 * i + 3]);
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

template <int D, bool DQ> __device__ __forceinline__ void bwd_consume(const attention_problem &p, const bwd_tile &tile, const runs &all, unsigned char *bytes)
{
    using shape = bwd_shape<D, DQ>;
    constexpr int M = shape::M, N = shape::N, PANEL = N * panel<D>::row;
    constexpr bool EARLY = M == 64; /* dV's product runs while dS is computed; for M = 128 there are not registers enough for P twice */
    const uint32_t smem = smem_addr(bytes);
    const bwd_bars bar = {smem + shape::bars};
    const int w = threadIdx.x / 128 - 1, lane = threadIdx.x & 31, row = 64 * w + threadIdx.x % 128 / 32 * 16; /* the warp's first of the 128 keys */
    const float scale_log2 = p.scale * LOG2_E;
    key_range *row_queries = (key_range *)(bytes + shape::rows) + row;
    if (lane < 16) {
        const key_range none = {0, 0};
        row_queries[lane] = tile.s0 + row + lane < p.S ? queries_of_key(p, tile.b, tile.s0 + row + lane, all.visit) : none;
    }
    __syncwarp();
    const uint64_t k = rows_operand<D, N>(smem + shape::k + w * 64 * panel<D>::row), v = rows_operand<D, N>(smem + shape::v + w * 64 * panel<D>::row);
    float dk[D / 2], dv[D / 2];
#pragma unroll
    for (int i = 0; i < D / 2; i++)
        dk[i] = dv[i] = 0;
    mbarrier_wait(bar.kv_full(), 0);
    unsigned step = 0;
    for (int h = tile.g * p.R; h < (tile.g + 1) * p.R; h++)
        for (int t0 = all.visit.lo / M * M; t0 < all.visit.hi; t0 += M, step++) {
            const int stage = stage_of(step);
            const uint32_t q = smem + shape::q + stage * shape::q_bytes, dout = smem + shape::dout + stage * shape::q_bytes;
            const float *stats = (const float *)(bytes + shape::stats + stage * shape::stats_bytes) + 2 * (lane & 3);
            float s[M / 2], dp[M / 2];
            uint32_t a[M / 16][4], b[M / 16][4];
            mbarrier_wait(bar.q_full(stage), parity_of(step));
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < D / 16; i++)
                wgmma_ss<M, 0, 0>(s, k + rows_step<D, N>(i), rows_operand<D, M>(q) + rows_step<D, M>(i), i != 0);
            wgmma_commit();
            mbarrier_wait(bar.dout_full(stage), parity_of(step));
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < D / 16; i++)
                wgmma_ss<M, 0, 0>(dp, v + rows_step<D, N>(i), rows_operand<D, M>(dout) + rows_step<D, M>(i), i != 0);
            wgmma_commit();
            mbarrier_wait(bar.stats_full(stage), parity_of(step));
            wgmma_wait<1>();
            wgmma_keep(s);
            if (t0 < all.seen.lo || t0 + M > all.seen.hi)
                mask_columns<M>(s, t0, row_queries);
#pragma unroll
            for (int j = 0; j < M / 8; j++) {
                const float2 lse = *reinterpret_cast<const float2 *>(stats + 8 * j);
                s[4 * j] = exp2_approx(fmaf(s[4 * j], scale_log2, -lse.x));
                s[4 * j + 1] = exp2_approx(fmaf(s[4 * j + 1], scale_log2, -lse.y));
                s[4 * j + 2] = exp2_approx(fmaf(s[4 * j + 2], scale_log2, -lse.x));
                s[4 * j + 3] = exp2_approx(fmaf(s[4 * j + 3], scale_log2, -lse.y));
            }
            if (EARLY) {
                fragments_of<M>(a, s);
                gradient_issue<D, M>(dv, a, dout);
                wgmma_wait<1>();
            } else
                wgmma_wait<0>();
            wgmma_keep(dp);
#pragma unroll
            for (int i = 0; i < M / 16; i++) {
#pragma unroll
                for (int j = 2 * i; j < 2 * i + 2; j++) {
                    const float2 delta = *reinterpret_cast<const float2 *>(stats + M + 8 * j);
                    dp[4 * j] = s[4 * j] * (dp[4 * j] - delta.x);
                    dp[4 * j + 1] = s[4 * j + 1] * (dp[4 * j + 1] - delta.y);
                    dp[4 * j + 2] = s[4 * j + 2] * (dp[4 * j + 2] - delta.x);
                    dp[4 * j + 3] = s[4 * j + 3] * (dp[4 * j + 3] - delta.y);
                }
                fragment_of(b[i], dp, i);
                if (!EARLY)
                    fragment_of(a[i], s, i);
            }
            if (!EARLY)
                gradient_issue<D, M>(dv, a, dout);
            const uint32_t ds = smem + shape::ds + (step & 1) * shape::ds_bytes;
            if (DQ) {
                ds_store<M>(ds, b, row);
                fence_async_shared();
            }
            gradient_issue<D, M>(dk, b, q);
            if (DQ) {
                named_barrier_sync(1, 256);
                const uint64_t ds_columns = columns_operand<M, N>(ds), k_columns = columns_operand<D, N>(smem + shape::k);
                float *to = p.dq_sum + (((int64_t)tile.b * p.H + h) * p.Tp + t0) * D;
                if (D == 64)
                    dq_add<D, M, 64>(to + w * 64 * D, ds_columns + (w * N * 128 >> 4), k_columns, bar.q_empty(stage), bar.dout_empty(stage));
                else if (D == 128)
                    dq_add<D, M, 64>(to + dq_index(8 * w, 0), ds_columns, k_columns + (w * PANEL >> 4), bar.q_empty(stage), bar.dout_empty(stage));
                else
                    dq_add<D, M, 64>(to + dq_index(4 * w, 0), ds_columns, k_columns + (w * PANEL >> 4), bar.q_empty(stage), bar.dout_empty(stage), 4 * w);
            } else {
                wgmma_wait<0>();
                __syncwarp();
                if (lane == 0)
                    mbarrier_arrive(bar.q_empty(stage)), mbarrier_arrive(bar.dout_empty(stage));
            }
        }
    wgmma_wait<0>();
    wgmma_keep(dk);
    wgmma_keep(dv);
    rows_store<D>(dk, p.scale, p.scale, p.dk, tile.b, tile.g, tile.s0 + row, p.S, p.D);
    rows_store<D>(dv, 1, 1, p.dv, tile.b, tile.g, tile.s0 + row, p.S, p.D);
}

template <int D, bool DQ>
__global__ void __launch_bounds__(384, 1)
    attention_bwd_sm90_k(const __grid_constant__ attention_problem p, const __grid_constant__ tensor_map q_map, const __grid_constant__ tensor_map k_map,
                         const __grid_constant__ tensor_map v_map, const __grid_constant__ tensor_map dout_map, int tiles)
{
    using shape = bwd_shape<D, DQ>;
    SMEM(unsigned char, bytes);
    const uint32_t smem = smem_addr(bytes);
    if (threadIdx.x == 0) {
        const bwd_bars bar = {smem + shape::bars};
        mbarrier_init(bar.kv_full(), 1);
        for (int i = 0; i < STAGES; i++) {
            mbarrier_init(bar.q_full(i), 1), mbarrier_init(bar.q_empty(i), 8); /* the consumers' warps arrive one by one */
            mbarrier_init(bar.dout_full(i), 1), mbarrier_init(bar.dout_empty(i), 8);
            mbarrier_init(bar.stats_full(i), 64);
        }
        fence_mbarrier_init();
    }
    /* The tiles of a group follow each other: blocks that run together read the same Q and dO. Under a causal mask the first is the heaviest. */
    const bwd_tile tile = bwd_tile_of(p, tiles, shape::N);
    runs *all = (runs *)(bytes + shape::all);
    if (threadIdx.x < 32) {
        runs r = queries_of_keys(p, tile.b, tile.s0, min(tile.s0 + shape::N, p.S));
        if (tile.s0 + shape::N > p.S)
            r.seen.hi = r.seen.lo; /* keys that are not there see nothing */
        if (r.visit.hi <= r.visit.lo)
            r.visit.lo = r.visit.hi = 0;
        if (threadIdx.x == 0)
            *all = r;
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        registers_shrink<24>();
        if (threadIdx.x == 0)
            bwd_copy<D, DQ>(p, &q_map, &k_map, &v_map, &dout_map, tile, *all, smem);
        else if (threadIdx.x >= 32 && threadIdx.x < 96)
            bwd_statistics<D, DQ>(p, tile, *all, bytes, threadIdx.x < 64);
    } else {
        registers_grow<240>();
        bwd_consume<D, DQ>(p, tile, *all, bytes);
    }
}

template <int D, bool DQ> enum code bwd_run(struct device *dev, const attention_problem &p)
{
    using shape = bwd_shape<D, DQ>;
    tensor_map q, k, v, dout;
    TRY(heads_map(&q, p.q, p.D, p.T, p.H, p.B, panel<D>::W, shape::M));
    TRY(heads_map(&dout, p.dout, p.D, p.T, p.H, p.B, panel<D>::W, shape::M));
    TRY(heads_map(&k, p.k, p.D, p.S, p.G, p.B, panel<D>::W, shape::N));
    TRY(heads_map(&v, p.v, p.D, p.S, p.G, p.B, panel<D>::W, shape::N));
    const int tiles = (int)ceil_div(p.S, shape::N);
    return LAUNCH(dev, (attention_bwd_sm90_k<D, DQ>), dim3((unsigned)(tiles * p.B * p.G)), dim3(384), shape::smem, p, q, k, v, dout, tiles);
}

} // namespace
} // namespace CUDA_NS
#endif
