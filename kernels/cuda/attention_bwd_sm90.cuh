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
 * dQ's products are shared evenly: for M = 64 a warpgroup computes half of the columns (D = 96: both compute 64, the shared 32 are added
 * by the first), for M = 128 half of the rows. They are added to p.dq_sum, whose order within 64 rows is that of the fragments (dq_index), so that
 * every addition is 16 bytes of 512 that a warp adds in one piece. scale is left to the last step of dK and dQ.
 *
 * Overlap: exponentials run under dP's product, dS under dV's, the additions to dQ under the next S. The order of issue per step is dP, dV, dK,
 * dQ, next S. One barrier of the consumers per step: both halves of dS^T are written. A buffer of dS^T is written again two steps later, and
 * nobody gets past the barrier in between before the products that read it are done.
 *
 * Limit: 5 products of M N D per step, 5 * M N D / 2048 cycles (2560 at D = 128), M N / 16 cycles of exponentials (512) and about as many for
 * the rest of P and dS. S and dP with M = 64 read both operands at the full rate of shared memory (4 KiB per 32 cycles). */
#ifndef GQAKIT_KERNELS_CUDA_ATTENTION_BWD_SM90_CUH
#define GQAKIT_KERNELS_CUDA_ATTENTION_BWD_SM90_CUH

#include "attention_bwd_parts_sm90.cuh"
#include "attention_bwd_wide_sm90.cuh"

namespace CUDA_NS {
namespace {

template <int D, bool DQ>
__device__ __forceinline__ void bwd_consume(const attention_problem &p, const bwd_tile &tile, const runs &all, unsigned char *bytes)
{
    using shape = bwd_shape<D, DQ>;
    constexpr int M = shape::M, N = shape::N, PANEL = N * panel<D>::row;
    constexpr bool EARLY = M == 64; /* dV's product runs while dS is computed; for M = 128 there are not registers enough for P twice */
    const uint32_t smem = smem_addr(bytes);
    const bwd_bars bar = {smem + shape::bars};
    const int w = uniform(threadIdx.x / 128 - 1), lane = threadIdx.x & 31;
    const int row = 64 * w + threadIdx.x % 128 / 32 * 16; /* the warp's first of the 128 keys */
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
    const int first = all.visit.lo / M * M, steps = p.R * ((all.visit.hi - first + M - 1) / M);
    float s[M / 2];
    if (steps > 0) {
        mbarrier_wait(bar.q_full(0), 0);
        scores_issue<D, N, M, M>(s, k, rows_operand<D, M>(smem + shape::q));
        wgmma_wait<0>();
        wgmma_keep(s);
    }
    int h = tile.g * p.R, t0 = first;
    for (int step = 0; step < steps; step++) {
        const int stage = stage_of(step);
        const uint32_t q = smem + shape::q + stage * shape::q_bytes, dout = smem + shape::dout + stage * shape::q_bytes;
        const float *stats = (const float *)(bytes + shape::stats + stage * shape::stats_bytes) + 2 * (lane & 3);
        float dp[M / 2];
        uint32_t a[M / 16][4], b[M / 16][4];
        mbarrier_wait(bar.dout_full(stage), parity_of(step));
        scores_issue<D, N, M, M>(dp, v, rows_operand<D, M>(dout));
        mbarrier_wait(bar.stats_full(stage), parity_of(step));
        if (t0 < all.seen.lo || t0 + M > all.seen.hi)
            mask_columns<M>(s, t0, row_queries);
        if (p.slopes != NULL)
            bias_queries<M>(s, p, h, tile.s0 + row, t0);
        probabilities<M>(s, stats, scale_log2);
        if (EARLY) {
            fragments_of<M>(a, s);
            gradient_issue<D, M>(dv, a, dout);
            wgmma_wait<1>();
        } else
            wgmma_wait<0>();
        wgmma_keep(dp);
#pragma unroll
        for (int i = 0; i < M / 16; i++) {
            score_gradients<M>(dp, s, stats + M, 2 * i);
            score_gradients<M>(dp, s, stats + M, 2 * i + 1);
            fragment_of(b[i], dp, i);
            if (!EARLY)
                fragment_of(a[i], s, i);
        }
        if (!EARLY)
            gradient_issue<D, M>(dv, a, dout);
        const uint32_t ds = smem + shape::ds + (step & 1) * shape::ds_bytes;
        if (DQ) {
            fragments_store<M, N>(ds, b, row, 0);
            fence_async_shared();
        }
        gradient_issue<D, M>(dk, b, q);
        float dq[32];
        if (DQ) {
            named_barrier_sync(1, 256);
            dq_issue<D, M, N, 64>(dq, columns_operand<M, N>(ds) + (D == 64 ? w * N * 128 >> 4 : 0),
                                  columns_operand<D, N>(smem + shape::k) + (D == 64 ? 0 : w * PANEL >> 4));
        }
        wgmma_wait<DQ ? 1 : 0>(); /* dV and dK are done, so there are registers for what follows */
        stage_release(bar, stage);
        /* The next S^T; at the end this one again, lest the products depend on a branch (nobody writes to the stage any more). */
        const int next = step + 1 < steps ? stage_of(step + 1) : stage;
        if (step + 1 < steps)
            mbarrier_wait(bar.q_full(next), parity_of(step + 1));
        scores_issue<D, N, M, M>(s, k, rows_operand<D, M>(smem + shape::q + next * shape::q_bytes));
        if (DQ) {
            float *to = p.dq_sum + (((int64_t)tile.b * p.H + h) * p.Tp + t0) * D;
            wgmma_wait<1>();
            wgmma_keep(dq);
            dq_add(to + (D == 64 ? w * 64 * D : dq_index((D == 128 ? 8 : 4) * w, 0)), dq, D == 96 ? 4 * w : 0);
        }
        wgmma_wait<0>();
        wgmma_keep(s);
        t0 += M;
        if (t0 >= all.visit.hi)
            t0 = first, h++;
    }
    wgmma_wait<0>();
    wgmma_keep(dk);
    wgmma_keep(dv);
    rows_store<D>(dk, p.scale, p.scale, p.dk, tile.b, tile.g, tile.s0 + row, p.S, p.D);
    rows_store<D>(dv, 1, 1, p.dv, tile.b, tile.g, tile.s0 + row, p.S, p.D);
}

template <int D, bool DQ>
__global__ void __launch_bounds__(384, 1)
    attention_bwd_sm90_k(const __grid_constant__ attention_problem p, const __grid_constant__ tensor_map q_map,
                         const __grid_constant__ tensor_map k_map, const __grid_constant__ tensor_map v_map,
                         const __grid_constant__ tensor_map dout_map, int tiles)
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
        tma_prefetch(&q_map), tma_prefetch(&k_map), tma_prefetch(&v_map), tma_prefetch(&dout_map);
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
        if constexpr (D == 256)
            bwd_consume_wide<DQ>(p, tile, *all, bytes);
        else
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
