/* Private to the sm_80 attention kernels: which tiles are visited, which of them need the mask, and the mask of one element. All of it
 * follows attention_keys and attention_queries, whose interval for one row (one key) is exactly what attention_visible allows,
 * and the document ids, which do not decrease: the keys of one document are an interval too. */
#ifndef GQAKIT_KERNELS_CUDA_ATTENTION_SM80_MASK_CUH
#define GQAKIT_KERNELS_CUDA_ATTENTION_SM80_MASK_CUH

#include "attention_sm80_tile.cuh"

namespace CUDA_NS {

/* The first index of [0, n) whose id is >= id (after = 0) or > id (after = 1); n when there is none. The 32 lanes of a warp call it
 * together with the same arguments: 32-ary search, 3 dependent loads for 32768 ids. */
__device__ __forceinline__ int segment_bound(const int32_t *seg, int n, int id, int after)
{
    const int lane = threadIdx.x & 31;
    int lo = 0, hi = n;
    while (lo < hi) {
        const int step = (hi - lo + 31) / 32, at = lo + (lane + 1) * step - 1;
        const int before = at < hi && (after ? seg[at] <= id : seg[at] < id);
        const int k = __popc(__ballot_sync(0xffffffffu, before));
        hi = k < 32 && lo + (k + 1) * step - 1 < hi ? lo + (k + 1) * step - 1 : hi;
        lo += k * step;
    }
    return lo;
}

/* What a tile of rows [t0, t1) does with keys (or, mirrored, what a tile of keys does with rows): [lo, hi) are visited; a tile of the
 * other side inside [inner_lo, inner_hi) is visible as a whole. */
struct tile_range {
    int lo, hi, inner_lo, inner_hi;
};

/* Narrows r to the documents of ids[first] .. ids[last] of the other side's `seg`; nothing is inner when there are two documents. */
__device__ __forceinline__ void range_narrow(tile_range &r, const int32_t *ids, int first, int last, const int32_t *seg, int n)
{
    const int a = ids[first], z = ids[last];
    const int lo = segment_bound(seg, n, a, 0), hi = segment_bound(seg, n, z, 1);
    r.lo = max(r.lo, lo);
    r.hi = min(r.hi, hi);
    r.inner_lo = max(r.inner_lo, lo);
    r.inner_hi = a == z ? min(r.inner_hi, hi) : 0;
}

/* Keys for rows [t0, t1), t0 < t1 <= T, of sequence b. */
__device__ __forceinline__ tile_range range_of_rows(const attention_problem &p, int b, int t0, int t1)
{
    const key_range all = attention_keys(p, t0, t1), first = attention_keys(p, t0, t0 + 1), last = attention_keys(p, t1 - 1, t1);
    tile_range r = {all.lo, all.hi, last.lo, first.hi};
    if (p.seg_q != NULL)
        range_narrow(r, p.seg_q + b * p.seg_q_batch, t0, t1 - 1, p.seg_k + b * p.seg_k_batch, p.S);
    return r;
}
/* Rows for keys [s0, s1), s0 < s1 <= S; a tile of keys that reaches beyond S has no inner rows. */
__device__ __forceinline__ tile_range range_of_keys(const attention_problem &p, int b, int s0, int s1, int whole)
{
    const key_range all = attention_queries(p, s0, s1), first = attention_queries(p, s0, s0 + 1), last = attention_queries(p, s1 - 1, s1);
    tile_range r = {all.lo, all.hi, last.lo, first.hi};
    if (p.seg_q != NULL)
        range_narrow(r, p.seg_k + b * p.seg_k_batch, s0, s1 - 1, p.seg_q + b * p.seg_q_batch, p.T);
    if (!whole)
        r.inner_hi = 0;
    return r;
}

/* Scores s[M][N] of packed rows n + 16 i + .. and keys s0 + 8 j + ..: times `sign` where visible, `hidden` elsewhere. */
template <int M, int N>
__device__ __forceinline__ void scores_mask(float (&s)[M][N][4], const attention_problem &p, divider by_r, int b, int n, int s0, float sign,
                                            float hidden)
{
    const int lane = threadIdx.x & 31, column = (lane & 3) * 2;
    const int32_t *seg_k = p.seg_k != NULL ? p.seg_k + b * p.seg_k_batch : NULL;
#pragma unroll
    for (int i = 0; i < M; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int t = divide(by_r, n + 16 * i + 8 * half + (lane >> 2));
            const key_range keys = attention_keys(p, t, t + 1);
            const int lo = keys.lo - s0 - column;
            const unsigned count = (unsigned)(keys.hi - keys.lo);
#pragma unroll
            for (int j = 0; j < N; j++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float &x = s[i][j][2 * half + e];
                    x = (unsigned)(8 * j + e - lo) < count ? x * sign : hidden;
                }
            if (seg_k != NULL) {
                const int id = p.seg_q[b * p.seg_q_batch + min(t, p.T - 1)];
#pragma unroll
                for (int j = 0; j < N; j++)
#pragma unroll
                    for (int e = 0; e < 2; e++)
                        if (seg_k[min(s0 + column + 8 * j + e, p.S - 1)] != id)
                            s[i][j][2 * half + e] = hidden;
            }
        }
}

/* ALiBi on raw scores s[M][N] of packed rows n + 16 i + .. of group g and keys s0 + 8 j + ..; the rows' heads differ. */
template <int M, int N>
__device__ __forceinline__ void scores_bias(float (&s)[M][N][4], const attention_problem &p, divider by_r, int g, int n, int s0, float unscale)
{
    const int lane = threadIdx.x & 31, column = (lane & 3) * 2;
#pragma unroll
    for (int i = 0; i < M; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const packed_row w = packed_row_of(by_r, p.R, g, n + 16 * i + 8 * half + (lane >> 2));
            const float slope = p.slopes[w.h] * unscale, first = (float)(s0 + column - w.t - p.q_offset);
#pragma unroll
            for (int j = 0; j < N; j++)
#pragma unroll
                for (int e = 0; e < 2; e++)
                    s[i][j][2 * half + e] = fmaf(slope, first + (float)(8 * j + e), s[i][j][2 * half + e]);
        }
}

} // namespace CUDA_NS
#endif
