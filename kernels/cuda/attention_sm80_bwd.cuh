/* Private to the two files of the sm_80 attention backward: what is computed on the transposed scores S' [keys][rows] of
 * attention_sm80_bwd.cu between its products. */
#ifndef GQAKIT_KERNELS_CUDA_ATTENTION_SM80_BWD_CUH
#define GQAKIT_KERNELS_CUDA_ATTENTION_SM80_BWD_CUH

#include "attention_sm80_mask.cuh"

namespace CUDA_NS {

/* dQ without atomics, from lse and p.delta: the deterministic mode's second kernel (attention_sm80_bwd_dq.cu). */
enum code attention_bwd_dq_sm80(struct device *dev, const attention_problem &p);

struct bwd_params {
    attention_problem p;
    divider by_r;
    int tiles;    /* of keys */
    float scale2; /* scale log2 e */
};

/* What the rows of a tile need beside Q and dO. Rows that do not exist, and those that see no key: lse2 = inf makes P 0; t = -1 is
 * seen by no key. */
template <int ROWS> struct rows_info {
    float lse2[ROWS], delta[ROWS], slope[ROWS]; /* slope: of raw scores, ALiBi's */
    int t[ROWS], seg[ROWS];
};
struct row_info {
    float lse2, delta, slope;
    int t, seg;
};

template <int ALIBI> __device__ __forceinline__ row_info row_info_load(const bwd_params &f, int b, int g, int n, int end)
{
    const attention_problem &p = f.p;
    row_info r = {INFINITY, 0.0f, 0.0f, -1, 0};
    if (n < end) {
        const packed_row w = packed_row_of(f.by_r, p.R, g, n);
        const float lse = p.lse[b * p.lse_batch + w.h * p.lse_head + w.t];
        r.lse2 = lse == -INFINITY ? INFINITY : lse * 1.4426950408889634f;
        r.delta = p.delta[((int64_t)b * p.H + w.h) * p.Tp + w.t];
        r.slope = ALIBI ? p.slopes[w.h] * p.unscale : 0.0f;
        r.t = w.t;
        r.seg = p.seg_q != NULL ? p.seg_q[b * p.seg_q_batch + w.t] : 0;
    }
    return r;
}
template <int ALIBI, int ROWS> __device__ __forceinline__ void row_info_put(rows_info<ROWS> *info, const row_info &r)
{
    info->lse2[threadIdx.x] = r.lse2;
    info->delta[threadIdx.x] = r.delta;
    if (ALIBI)
        info->slope[threadIdx.x] = r.slope;
    info->t[threadIdx.x] = r.t;
    info->seg[threadIdx.x] = r.seg;
}

/* Bit 4 j + e is set where element s[0][j][e] of scores s'[16 keys][8 N rows], rows from `first` of the tile, is invisible. key: this
 * lane's first, the other is key + 8. Made before the scores are, while registers are free, and in tiles that are not whole alone. */
template <int N, int ROWS>
__device__ __forceinline__ uint32_t scores_hidden(const rows_info<ROWS> *info, int first, const attention_problem &p, int b, int key)
{
    const int column = first + (threadIdx.x & 3) * 2;
    uint32_t hidden = 0;
    static_assert(N <= 8, "one word of bits");
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int s = key + 8 * half, seg = p.seg_k != NULL ? p.seg_k[b * p.seg_k_batch + min(s, p.S - 1)] : 0;
        const key_range rows = attention_queries(p, s, s + 1);
        const unsigned count = s < p.S ? (unsigned)(rows.hi - rows.lo) : 0;
#pragma unroll
        for (int j = 0; j < N; j++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const int row = column + 8 * j + e;
                if ((unsigned)(info->t[row] - rows.lo) >= count || info->seg[row] != seg)
                    hidden |= 1u << (4 * j + 2 * half + e);
            }
    }
    return hidden;
}
/* ALiBi on raw scores; at: the query position that sees this lane's first key at distance 0. */
template <int N, int ROWS>
__device__ __forceinline__ void scores_bias_rows(float (&s)[1][N][4], const rows_info<ROWS> *info, int first, int at)
{
    const int column = first + (threadIdx.x & 3) * 2;
#pragma unroll
    for (int j = 0; j < N; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int row = column + 8 * j + e;
            const float slope = info->slope[row], distance = (float)(at - info->t[row]);
            s[0][j][e] = fmaf(slope, distance, s[0][j][e]);
            s[0][j][2 + e] = fmaf(slope, distance + 8.0f, s[0][j][2 + e]);
        }
}
/* Scores become P'. */
template <int N, int ROWS>
__device__ __forceinline__ void scores_exp(float (&s)[1][N][4], const rows_info<ROWS> *info, int first, float scale2, uint32_t hidden)
{
    const int column = first + (threadIdx.x & 3) * 2;
#pragma unroll
    for (int j = 0; j < N; j++) {
        const float2 lse2 = *reinterpret_cast<const float2 *>(info->lse2 + column + 8 * j);
#pragma unroll
        for (int e = 0; e < 4; e++)
            s[0][j][e] = exp2_approx(fmaf(s[0][j][e], scale2, e & 1 ? -lse2.y : -lse2.x));
    }
    if (hidden != 0) {
#pragma unroll
        for (int j = 0; j < N; j++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                if (hidden >> (4 * j + e) & 1)
                    s[0][j][e] = 0.0f;
    }
}
/* dS' = P' (dP' - delta), in place of dP'. */
template <int N, int ROWS>
__device__ __forceinline__ void scores_grad(float (&dp)[1][N][4], const float (&s)[1][N][4], const rows_info<ROWS> *info, int first)
{
    const int column = first + (threadIdx.x & 3) * 2;
#pragma unroll
    for (int j = 0; j < N; j++) {
        const float2 delta = *reinterpret_cast<const float2 *>(info->delta + column + 8 * j);
#pragma unroll
        for (int e = 0; e < 4; e++)
            dp[0][j][e] = s[0][j][e] * (dp[0][j][e] - (e & 1 ? delta.y : delta.x));
    }
}

/* Stores 16 x 16 of a transposed tile [keys][ROWS]: this lane's operand words, keys r .., rows from chunk c. */
template <int ROWS> __device__ __forceinline__ void operand_put(unsigned char *tile, int r, int c, const uint32_t (&a)[4])
{
    const int lane = threadIdx.x & 31, key = r + (lane >> 2), word = (lane & 3) * 4;
#pragma unroll
    for (int i = 0; i < 4; i++)
        *reinterpret_cast<uint32_t *>(tile + tile_offset<ROWS>(key + 8 * (i & 1), c + (i >> 1)) + word) = a[i];
}

} // namespace CUDA_NS
#endif
