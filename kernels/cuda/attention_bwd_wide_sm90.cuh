/* Private to attention_bwd_*sm90.cu: the consumers for D = 256, where dK and dV of 64 keys by 256 columns would be all the registers of a
 * warpgroup. Of a step of 64 keys by 64 queries a warpgroup computes the scores of 32 queries, then, from P^T and dS^T of both in shared
 * memory (two buffers each), its half of the columns of dV, dK and dQ. */
#ifndef GQAKIT_KERNELS_CUDA_ATTENTION_BWD_WIDE_SM90_CUH
#define GQAKIT_KERNELS_CUDA_ATTENTION_BWD_WIDE_SM90_CUH

#include "attention_bwd_parts_sm90.cuh"

namespace CUDA_NS {
namespace {

__device__ __forceinline__ heads_view columns_of(heads_view x, int first)
{
    x.p = (bf16 *)x.p + first;
    return x;
}

template <bool DQ>
__device__ __forceinline__ void bwd_consume_wide(const attention_problem &p, const bwd_tile &tile, const runs &all, unsigned char *bytes)
{
    using shape = bwd_shape<256, DQ>;
    constexpr int D = 256, M = 64, N = 64, HALF = 2 * N * panel<D>::row; /* bytes of two panels: the columns of a warpgroup */
    const uint32_t smem = smem_addr(bytes);
    const bwd_bars bar = {smem + shape::bars};
    const int w = uniform(threadIdx.x / 128 - 1), lane = threadIdx.x & 31;
    const int row = threadIdx.x % 128 / 32 * 16; /* the warp's first of the 64 keys */
    const float scale_log2 = p.scale * LOG2_E;
    key_range *row_queries = (key_range *)(bytes + shape::rows) + 64 * w + row;
    if (lane < 16) {
        const key_range none = {0, 0};
        row_queries[lane] = tile.s0 + row + lane < p.S ? queries_of_key(p, tile.b, tile.s0 + row + lane, all.visit) : none;
    }
    __syncwarp();
    const uint64_t k = rows_operand<D, N>(smem + shape::k), v = rows_operand<D, N>(smem + shape::v);
    float dk[64], dv[64];
#pragma unroll
    for (int i = 0; i < 64; i++)
        dk[i] = dv[i] = 0;
    mbarrier_wait(bar.kv_full(), 0);
    unsigned step = 0;
    for (int h = tile.g * p.R; h < (tile.g + 1) * p.R; h++)
        for (int t0 = all.visit.lo / M * M; t0 < all.visit.hi; t0 += M, step++) {
            const int stage = stage_of(step), first = t0 + 32 * w;
            const uint32_t q = smem + shape::q + stage * shape::q_bytes, dout = smem + shape::dout + stage * shape::q_bytes;
            const uint32_t pt = smem + shape::ds + (step & 1) * 2 * shape::ds_bytes, ds = pt + shape::ds_bytes;
            const float *stats = (const float *)(bytes + shape::stats + stage * shape::stats_bytes) + 32 * w + 2 * (lane & 3);
            float s[16], dp[16];
            uint32_t a[2][4];
            mbarrier_wait(bar.q_full(stage), parity_of(step));
            scores_issue<D, N, M, 32>(s, k, rows_operand<D, M>(q + w * 32 * panel<D>::row));
            mbarrier_wait(bar.dout_full(stage), parity_of(step));
            scores_issue<D, N, M, 32>(dp, v, rows_operand<D, M>(dout + w * 32 * panel<D>::row));
            mbarrier_wait(bar.stats_full(stage), parity_of(step));
            wgmma_wait<1>();
            wgmma_keep(s);
            if (first < all.seen.lo || first + 32 > all.seen.hi)
                mask_columns<32>(s, first, row_queries);
            if (p.slopes != NULL)
                bias_queries<32>(s, p, h, tile.s0 + row, first);
            probabilities<32>(s, stats, scale_log2);
            fragments_of<32>(a, s);
            fragments_store<32, N>(pt, a, row, 4 * w);
            wgmma_wait<0>();
            wgmma_keep(dp);
#pragma unroll
            for (int j = 0; j < 4; j++)
                score_gradients<32>(dp, s, stats + M, j);
            fragments_of<32>(a, dp);
            fragments_store<32, N>(ds, a, row, 4 * w);
            fence_async_shared();
            named_barrier_sync(1, 256);
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < M / 16; i++)
                wgmma_ss<128, 0, 1>(dv, rows_operand<M, N>(pt) + rows_step<M, N>(i), columns_operand<D, M>(dout + w * HALF) + columns_step<D, M>(i),
                                    1);
#pragma unroll
            for (int i = 0; i < M / 16; i++)
                wgmma_ss<128, 0, 1>(dk, rows_operand<M, N>(ds) + rows_step<M, N>(i), columns_operand<D, M>(q + w * HALF) + columns_step<D, M>(i), 1);
            wgmma_commit();
            float dq[64];
            if (DQ)
                dq_issue<D, M, N, 128>(dq, columns_operand<M, N>(ds), columns_operand<D, N>(smem + shape::k + w * HALF));
            wgmma_wait<DQ ? 1 : 0>();
            stage_release(bar, stage);
            if (DQ) {
                wgmma_wait<0>();
                wgmma_keep(dq);
                dq_add(p.dq_sum + (((int64_t)tile.b * p.H + h) * p.Tp + t0) * D + dq_index(16 * w, 0), dq, 0);
            }
        }
    wgmma_wait<0>();
    wgmma_keep(dk);
    wgmma_keep(dv);
    rows_store<128>(dk, p.scale, p.scale, columns_of(p.dk, 128 * w), tile.b, tile.g, tile.s0 + row, p.S, p.D - 128 * w);
    rows_store<128>(dv, 1, 1, columns_of(p.dv, 128 * w), tile.b, tile.g, tile.s0 + row, p.S, p.D - 128 * w);
}

} // namespace
} // namespace CUDA_NS
#endif
