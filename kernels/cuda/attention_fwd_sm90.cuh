/* Private to attention_fwd_*sm90.cu: the forward kernel for Hopper, after FlashAttention-3 (Shah et al. 2024).
 *
 * A block is one producer warp, which copies tiles of Q, K and V into shared memory by TMA, and WGS consumer warpgroups, each with 64 query rows of
 * one head (or, of short sequences, of a group's heads): M = 64 WGS rows share every K/V tile of N keys. Blocks are persistent, one per SM, and take tiles of queries in
 * the order of fwd_order. K and V have two stages each, with a barrier for "full" and one for "empty" per stage.
 *
 *   S = Q K^T       wgmma, both operands in shared memory, 64 x N f32 in registers
 *   P = exp2(...)   in registers, base 2, running maximum and sum per row
 *   O += P V        wgmma, P from registers as bf16 (fragments_of), V transposed by its descriptor
 *
 * Two overlaps hide the softmax. Within a warpgroup, the products of the next S and of this P V are issued together, and the softmax of
 * the next S runs while P V is still going. Between warpgroups, a token goes round (named barriers): only its holder issues products, so
 * while one computes exponentials the other has the tensor cores.
 *
 * Q's buffer is free once the last S of a tile is there: the next Q arrives during the last softmax, P V and the stores of O, which
 * go from registers straight to global memory in pieces of 16 bytes (rows past T are simply not written).
 *
 * Limit: per 64 x N x D step the tensor cores need N D / 16 cycles (4096 dense bf16 FLOP per cycle per SM, 4 * 64 N D FLOP) and the
 * exponentials 64 N / 16 = 4 N cycles (16 per cycle per SM): the same at D = 64, half at D = 128. */
#ifndef GQAKIT_KERNELS_CUDA_ATTENTION_FWD_SM90_CUH
#define GQAKIT_KERNELS_CUDA_ATTENTION_FWD_SM90_CUH

#include "attention_sm90.cuh"

namespace CUDA_NS {
namespace {

template <int D, int WGS, int N> struct fwd_shape {
    static constexpr int M = 64 * WGS, threads = 128 * (WGS + 1);
    static constexpr int q_bytes = 64 * D * 2, kv_bytes = N * D * 2; /* of a warpgroup's Q; of a K or V tile */
    static constexpr int q = 0, k = WGS * q_bytes, v = k + STAGES * kv_bytes, bars = v + STAGES * kv_bytes;
    static constexpr int rows = bars + 8 * (2 * WGS + 4 * STAGES), smem = rows + 8 * M; /* rows: the keys of every row, a key_range each */
    static constexpr int producer_registers = WGS == 2 ? 40 : 32, consumer_registers = WGS == 2 ? 232 : 160;
};
/* Addresses of the barriers. */
template <int D, int WGS, int N> struct fwd_bars {
    uint32_t base;
    __device__ __forceinline__ uint32_t q_full(int w) const { return base + 8 * w; }
    __device__ __forceinline__ uint32_t q_empty(int w) const { return base + 8 * (WGS + w); }
    __device__ __forceinline__ uint32_t k_full(int i) const { return base + 8 * (2 * WGS + i); }
    __device__ __forceinline__ uint32_t k_empty(int i) const { return base + 8 * (2 * WGS + STAGES + i); }
    __device__ __forceinline__ uint32_t v_full(int i) const { return base + 8 * (2 * WGS + 2 * STAGES + i); }
    __device__ __forceinline__ uint32_t v_empty(int i) const { return base + 8 * (2 * WGS + 3 * STAGES + i); }
};

/* The order of the tiles. Heads are taken in sections whose K and V fit in L2 together; in a section, late queries of all heads
 * come first (under a causal mask they are the heaviest), the R heads of a group next to each other. Every other round over the
 * blocks runs backwards, which evens out what a round's first blocks have too much.
 *
 * Few queries: the 2^pack heads of a group lie in the rows of one tile, heads of a position next to each other, and `heads` counts groups. */
struct fwd_order { int tiles_m, heads, section, total, pack; };
struct fwd_tile { int row, b, h; }; /* the first row; position row >> pack */

__device__ __forceinline__ int order_index(int round)
{
    return round * (int)gridDim.x + (round & 1 ? (int)gridDim.x - 1 - (int)blockIdx.x : (int)blockIdx.x);
}
template <int M> __device__ __forceinline__ fwd_tile order_tile(const attention_problem &p, const fwd_order &order, int i)
{
    const int whole = order.section * order.tiles_m, first = i / whole * order.section, heads = min(order.section, order.heads - first);
    const int in = i % whole, head = first + in % heads;
    const int per_batch = p.H >> order.pack;
    fwd_tile tile = {(order.tiles_m - 1 - in / heads) * M, head / per_batch, (head % per_batch) << order.pack};
    return tile;
}

template <int D, int WGS, int N>
__device__ __forceinline__ void fwd_produce(const attention_problem &p, const tensor_map *q_map, const tensor_map *k_map, const tensor_map *v_map,
                                            const fwd_order &order, uint32_t smem)
{
    using shape = fwd_shape<D, WGS, N>;
    const fwd_bars<D, WGS, N> bar = {smem + shape::bars};
    const bool issuer = (threadIdx.x & 31) == 0;
    unsigned used = 0; /* K tiles so far, and V tiles */
    uint32_t q_parity = 1; /* fresh barriers: the first wait for an empty buffer passes at once */
    for (int round = 0;; round++) {
        const int i = order_index(round);
        if (i >= order.total)
            break;
        const fwd_tile tile = order_tile<shape::M>(p, order, i);
        const key_range keys = keys_of_rows(p, tile.b, tile.row >> order.pack, min((tile.row + shape::M) >> order.pack, p.T)).visit;
        const int g = tile.h / p.R, lo = keys.lo / N, n = keys.hi <= keys.lo ? 0 : (keys.hi + N - 1) / N - lo;
        if (n == 0)
            continue;
        if (issuer) {
#pragma unroll 1 /* few registers here */
            for (int w = 0; w < WGS; w++) {
                mbarrier_wait(bar.q_empty(w), q_parity);
                mbarrier_arrive_expect(bar.q_full(w), shape::q_bytes);
                tile_load<D, 64>(smem + shape::q + w * shape::q_bytes, q_map, bar.q_full(w), (tile.row + 64 * w) >> order.pack, tile.h,
                                 tile.b);
            }
#pragma unroll 1
            for (int j = 0; j <= n; j++) { /* K of step j, V of the one before: the order in which they are used */
                if (j < n) {
                    const int stage = stage_of(used + j);
                    mbarrier_wait(bar.k_empty(stage), parity_of(used + j) ^ 1);
                    mbarrier_arrive_expect(bar.k_full(stage), shape::kv_bytes);
                    tile_load<D, N>(smem + shape::k + stage * shape::kv_bytes, k_map, bar.k_full(stage), (lo + n - 1 - j) * N, g, tile.b);
                }
                if (j > 0) {
                    const int stage = stage_of(used + j - 1);
                    mbarrier_wait(bar.v_empty(stage), parity_of(used + j - 1) ^ 1);
                    mbarrier_arrive_expect(bar.v_full(stage), shape::kv_bytes);
                    tile_load<D, N>(smem + shape::v + stage * shape::kv_bytes, v_map, bar.v_full(stage), (lo + n - j) * N, g, tile.b);
                }
            }
        }
        used += n;
        q_parity ^= 1;
        __syncwarp();
    }
}

/* Running maximum and sum of rows g and g + 8 of a warp; the sum is the lane's own part of it. */
struct softmax_rows { float max[2], sum[2]; };

/* s becomes exp2(scale_log2 (s - max)) with the new maximum; factor: what turns earlier sums into the new ones. */
template <int N> __device__ __forceinline__ void softmax_step(float (&s)[N / 2], softmax_rows &rows, float (&factor)[2], float scale_log2)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float m = rows.max[r];
#pragma unroll
        for (int j = 0; j < N / 8; j++)
            m = fmaxf(m, fmaxf(s[4 * j + 2 * r], s[4 * j + 2 * r + 1]));
        m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
        m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
        const float base = m == NO_KEY ? 0.0f : m * scale_log2; /* no key so far: exp2(-inf) below, not exp2(NaN) */
        factor[r] = exp2_approx(rows.max[r] * scale_log2 - base);
        rows.max[r] = m;
        float sum = 0;
#pragma unroll
        for (int j = 0; j < N / 8; j++) {
            s[4 * j + 2 * r] = exp2_approx(fmaf(s[4 * j + 2 * r], scale_log2, -base));
            s[4 * j + 2 * r + 1] = exp2_approx(fmaf(s[4 * j + 2 * r + 1], scale_log2, -base));
            sum += s[4 * j + 2 * r] + s[4 * j + 2 * r + 1];
        }
        rows.sum[r] = rows.sum[r] * factor[r] + sum;
    }
}

template <int D, int N> __device__ __forceinline__ void scores_issue(float (&s)[N / 2], uint64_t q, uint64_t k)
{
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < D / 16; i++)
        wgmma_ss<N, 0, 0>(s, q + rows_step<D, 64>(i), k + rows_step<D, N>(i), i != 0);
    wgmma_commit();
}
template <int D, int N> __device__ __forceinline__ void output_issue(float (&o)[D / 2], const uint32_t (&a)[N / 16][4], uint64_t v)
{
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < N / 16; i++)
        wgmma_rs<D, 1>(o, a[i], v + columns_step<D, N>(i), 1);
    wgmma_commit();
}

template <int D, int WGS, int N> __device__ __forceinline__ void fwd_consume(const attention_problem &p, const fwd_order &order, unsigned char *bytes)
{
    const uint32_t smem = smem_addr(bytes);
    using shape = fwd_shape<D, WGS, N>;
    const fwd_bars<D, WGS, N> bar = {smem + shape::bars};
    const int w = uniform(threadIdx.x / 128 - 1), lane = threadIdx.x & 31, row = threadIdx.x % 128 / 32 * 16; /* the warp's first of the 64 rows */
    const int mine = 1 + w, next = 1 + (w + 1) % WGS; /* named barriers: whose turn it is */
    const uint64_t q = rows_operand<D, 64>(smem + shape::q + w * shape::q_bytes);
    const float scale_log2 = p.scale * LOG2_E;
    unsigned used = 0; /* K tiles so far; V is one behind within a tile of queries */
    uint32_t q_parity = 0;
    if (w == WGS - 1)
        named_barrier_arrive(next, 256); /* the first turn is the first warpgroup's */
    for (int round = 0;; round++) {
        const int index = order_index(round);
        if (index >= order.total)
            break;
        const fwd_tile tile = order_tile<shape::M>(p, order, index);
        const key_range keys = keys_of_rows(p, tile.b, tile.row >> order.pack, min((tile.row + shape::M) >> order.pack, p.T)).visit;
        const int row0 = tile.row + 64 * w, first = keys.lo / N * N;
        const key_range seen = keys_of_rows(p, tile.b, min(row0 >> order.pack, p.T - 1), min((row0 + 64) >> order.pack, p.T)).seen; /* by all 64 rows */
        key_range *row_keys = (key_range *)(bytes + shape::rows) + threadIdx.x / 32 * 16 - 64;
        __syncwarp();
        if (lane < 16)
            row_keys[lane] = keys_of_row(p, tile.b, min((row0 + row + lane) >> order.pack, p.T - 1), keys);
        __syncwarp();
        float o[D / 2], s[N / 2], factor[2];
        softmax_rows rows = {{NO_KEY, NO_KEY}, {0, 0}};
#pragma unroll
        for (int i = 0; i < D / 2; i++)
            o[i] = 0;
        if (keys.lo < keys.hi) {
            uint32_t a[N / 16][4];
            int s0 = (keys.hi - 1) / N * N; /* K/V tiles from the last to the first */
            mbarrier_wait(bar.q_full(w), q_parity);
            q_parity ^= 1;
            mbarrier_wait(bar.k_full(stage_of(used)), parity_of(used));
            scores_issue<D, N>(s, q, rows_operand<D, N>(smem + shape::k + stage_of(used) * shape::kv_bytes));
            wgmma_wait<0>();
            wgmma_keep(s);
            if (lane == 0)
                mbarrier_arrive(bar.k_empty(stage_of(used)));
            used++;
            if (s0 < seen.lo || s0 + N > seen.hi)
                mask_columns<N>(s, s0, row_keys);
            if (p.slopes != NULL)
                bias_keys<N>(s, p, tile.h, row0 + row, order.pack, s0);
            softmax_step<N>(s, rows, factor, scale_log2);
            fragments_of<N>(a, s);
            if (s0 == first && lane == 0)
                mbarrier_arrive(bar.q_empty(w));
            while (s0 > first) {
                s0 -= N;
                mbarrier_wait(bar.k_full(stage_of(used)), parity_of(used));
                named_barrier_sync(mine, 256);
                scores_issue<D, N>(s, q, rows_operand<D, N>(smem + shape::k + stage_of(used) * shape::kv_bytes));
                mbarrier_wait(bar.v_full(stage_of(used - 1)), parity_of(used - 1));
                output_issue<D, N>(o, a, columns_operand<D, N>(smem + shape::v + stage_of(used - 1) * shape::kv_bytes));
                named_barrier_arrive(next, 256);
                wgmma_wait<1>();
                wgmma_keep(s);
                if (lane == 0) {
                    mbarrier_arrive(bar.k_empty(stage_of(used)));
                    if (s0 == first)
                        mbarrier_arrive(bar.q_empty(w));
                }
                if (s0 < seen.lo || s0 + N > seen.hi)
                    mask_columns<N>(s, s0, row_keys);
                if (p.slopes != NULL)
                    bias_keys<N>(s, p, tile.h, row0 + row, order.pack, s0);
                softmax_step<N>(s, rows, factor, scale_log2);
                wgmma_wait<0>();
                wgmma_keep(o);
                if (lane == 0)
                    mbarrier_arrive(bar.v_empty(stage_of(used - 1)));
                used++;
#pragma unroll
                for (int i = 0; i < D / 2; i++)
                    o[i] *= factor[i >> 1 & 1];
                fragments_of<N>(a, s);
            }
            mbarrier_wait(bar.v_full(stage_of(used - 1)), parity_of(used - 1));
            output_issue<D, N>(o, a, columns_operand<D, N>(smem + shape::v + stage_of(used - 1) * shape::kv_bytes));
            wgmma_wait<0>();
            wgmma_keep(o);
            if (lane == 0)
                mbarrier_arrive(bar.v_empty(stage_of(used - 1)));
        }
        float scale[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float sum = rows.sum[r];
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            scale[r] = sum == 0 ? 0.0f : 1 / sum; /* no key: O = 0, lse = -inf */
            const int i = row0 + row + (lane >> 2) + 8 * r, t = i >> order.pack, h = tile.h + (i & ((1 << order.pack) - 1));
            if ((lane & 3) == 0 && t < p.T)
                p.lse[tile.b * p.lse_batch + h * p.lse_head + t] = sum == 0 ? NO_KEY : rows.max[r] * p.scale + logf(sum);
        }
        rows_store<D>(o, scale[0], scale[1], p.o, tile.b, tile.h, row0 + row, p.T, p.D, order.pack);
    }
    if (w == 0)
        named_barrier_sync(mine, 256); /* takes the last turn off the barrier */
}

template <int D, int WGS, int N>
__global__ void __launch_bounds__(128 * (WGS + 1), 1)
    attention_fwd_sm90_k(const __grid_constant__ attention_problem p, const __grid_constant__ tensor_map q_map,
                         const __grid_constant__ tensor_map k_map, const __grid_constant__ tensor_map v_map,
                         const __grid_constant__ fwd_order order)
{
    using shape = fwd_shape<D, WGS, N>;
    SMEM(unsigned char, bytes);
    const uint32_t smem = smem_addr(bytes);
    if (threadIdx.x == 0) {
        const fwd_bars<D, WGS, N> bar = {smem + shape::bars};
        for (int w = 0; w < WGS; w++)
            mbarrier_init(bar.q_full(w), 1), mbarrier_init(bar.q_empty(w), 4); /* a consumer's warps arrive one by one */
        for (int i = 0; i < STAGES; i++) {
            mbarrier_init(bar.k_full(i), 1), mbarrier_init(bar.k_empty(i), 4 * WGS);
            mbarrier_init(bar.v_full(i), 1), mbarrier_init(bar.v_empty(i), 4 * WGS);
        }
        fence_mbarrier_init();
        tma_prefetch(&q_map), tma_prefetch(&k_map), tma_prefetch(&v_map);
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        registers_shrink<shape::producer_registers>();
        if (threadIdx.x < 32)
            fwd_produce<D, WGS, N>(p, &q_map, &k_map, &v_map, order, smem);
    } else {
        registers_grow<shape::consumer_registers>();
        fwd_consume<D, WGS, N>(p, order, bytes);
    }
}

template <int D, int WGS, int N> enum code fwd_run(struct device *dev, const attention_problem &p)
{
    using shape = fwd_shape<D, WGS, N>;
    tensor_map q, k, v;
    int pack = 0; /* a group's heads in one tile where that saves tiles; the rows of a warpgroup must hold whole positions */
    if (p.T <= 1024 && 64 % p.R == 0 && ceil_div((int64_t)p.T * p.R, shape::M) < p.R * ceil_div(p.T, shape::M))
        while (1 << pack < p.R)
            pack++;
    TRY(heads_map(&q, p.q, p.D, p.T, p.H, p.B, panel<D>::W, 64 >> pack, 1 << pack));
    TRY(heads_map(&k, p.k, p.D, p.S, p.G, p.B, panel<D>::W, N));
    TRY(heads_map(&v, p.v, p.D, p.S, p.G, p.B, panel<D>::W, N));
    fwd_order order;
    const int64_t l2 = 32 << 20, groups = l2 / ((int64_t)p.S * D * 4) + 1;
    order.pack = pack;
    order.tiles_m = (int)ceil_div((int64_t)p.T << pack, shape::M), order.heads = (p.B * p.H) >> pack;
    order.section = (int)least((groups * p.R) >> pack, order.heads);
    order.total = order.tiles_m * order.heads;
    const dim3 grid((unsigned)least(dev->sm_count, order.total));
    return LAUNCH(dev, (attention_fwd_sm90_k<D, WGS, N>), grid, dim3(shape::threads), shape::smem, p, q, k, v, order);
}

} // namespace
} // namespace CUDA_NS
#endif
