/* Private to the attention kernels of kernels/cuda: one problem, three sets of kernels.
 *   attention_*_plain   f32, ordinary arithmetic: checks, and any type on request of a test
 *   attention_*_sm80    bf16: mma.sync, ldmatrix, cp.async (FlashAttention-2, Dao 2023)
 *   attention_*_sm90    bf16: wgmma, TMA, mbarrier pipelines, warp specialisation (after FlashAttention-3, Shah et al. 2024)
 * ALiBi is done by all three. The bf16 kernels add it to raw scores (times 1 / scale), because the scale is part of the exponential; packed
 * rows are of several heads, so a slope belongs to a row. sm90, plain and dq_sm80 test p.slopes once per tile; the two others, which have no
 * register to spare, are compiled twice.
 * attention.cu checks arguments and chooses. D is a multiple of 8 up to 256 for bf16 (tiles of 64, 96, 128, 256, the rest is zero).
 * Rows of q, k, v, o, dout, dq, dk, dv are 16-byte aligned in the bf16 kernels. */
#ifndef GQAKIT_KERNELS_CUDA_ATTENTION_CUH
#define GQAKIT_KERNELS_CUDA_ATTENTION_CUH

#include "cuda.cuh"

namespace CUDA_NS {

/* A [B,T,heads,D] tensor: strides in elements. */
struct heads_view { void *p; int64_t batch, row, head; };

struct attention_problem {
    struct heads_view o, q, k, v;             /* T rows: q, o; S rows: k, v */
    struct heads_view dout, dq, dk, dv;       /* backward only */
    float *lse;                               /* [B,H,T] contiguous in T; strides below */
    int64_t lse_batch, lse_head;
    int B, T, S, H, G, R, D;
    int causal, q_offset, window_left, window_right; /* windows < 0: none (attention_mask) */
    const int32_t *seg_q, *seg_k;             /* NULL: one document */
    int64_t seg_q_batch, seg_k_batch;
    const float *slopes; /* ALiBi (attention_mask): f32 [H] in device memory; NULL: none */
    float scale;
    float unscale; /* 1 / scale: makes a bias one of the raw scores q.k (bf16 kernels, which scale within the exponential) */
    int deterministic;
    /* Backward scratch, carved by attention.cu: rowsum(dO * O) f32 [B,H,Tp] and, when not deterministic, dQ's accumulator f32
     * [B,H,Tp,Dp] (attention_delta fills the one and zeroes the other); Tp = T rounded up to 128, Dp = D's tile (64, 96, 128, 256). */
    float *delta, *dq_sum;
    int64_t Tp, Dp;
};

/* Whether query t of sequence b sees key s. The tile classification of every kernel follows this function and no other rule. */
__host__ __device__ __forceinline__ int attention_visible(const attention_problem &p, int t, int s, int seg_t, int seg_s)
{
    const int at = t + p.q_offset;
    return (!p.causal || s <= at) && (p.window_left < 0 || s >= at - p.window_left) && (p.window_right < 0 || s <= at + p.window_right) &&
           seg_t == seg_s;
}

/* Keys [lo, hi) that rows [t0, t1) may see by causality and window alone: the tiles to visit. */
struct key_range { int lo, hi; };
__host__ __device__ __forceinline__ key_range attention_keys(const attention_problem &p, int t0, int t1)
{
    key_range r;
    r.lo = p.window_left >= 0 && t0 + p.q_offset - p.window_left > 0 ? t0 + p.q_offset - p.window_left : 0;
    r.hi = p.S;
    if (p.causal && t1 - 1 + p.q_offset + 1 < r.hi)
        r.hi = t1 + p.q_offset;
    if (p.window_right >= 0 && t1 - 1 + p.q_offset + p.window_right + 1 < r.hi)
        r.hi = t1 + p.q_offset + p.window_right;
    r.hi = r.hi < r.lo ? r.lo : r.hi;
    return r;
}
/* Queries [lo, hi) that may see keys [s0, s1): the mirror of attention_keys, for dK and dV. */
__host__ __device__ __forceinline__ key_range attention_queries(const attention_problem &p, int s0, int s1)
{
    key_range r;
    r.lo = p.causal && s0 - p.q_offset > 0 ? s0 - p.q_offset : 0;
    if (p.window_right >= 0 && s0 - p.q_offset - p.window_right > r.lo)
        r.lo = s0 - p.q_offset - p.window_right;
    r.hi = p.T;
    if (p.window_left >= 0 && s1 - p.q_offset + p.window_left < r.hi)
        r.hi = s1 - p.q_offset + p.window_left;
    r.hi = r.hi < r.lo ? r.lo : r.hi;
    return r;
}

enum code attention_fwd_plain(struct device *dev, const attention_problem &p, enum dtype type);
enum code attention_bwd_plain(struct device *dev, const attention_problem &p, enum dtype type);
enum code attention_fwd_sm80(struct device *dev, const attention_problem &p);
enum code attention_bwd_sm80(struct device *dev, const attention_problem &p);
enum code attention_fwd_sm90(struct device *dev, const attention_problem &p);
enum code attention_bwd_sm90(struct device *dev, const attention_problem &p);
/* delta = rowsum(dout * o), f32; rows from T to Tp are 0. Also zeroes dq_sum, whole, for bf16 when not deterministic: then the backward
 * kernels may add to it at once (attention_delta.cu). */
enum code attention_delta(struct device *dev, const attention_problem &p, enum dtype type);
/* dq = dq_sum in bf16, rows [0,T), columns [0,D): the sum already carries the softmax scale (attention_delta.cu). */
enum code attention_dq_store(struct device *dev, const attention_problem &p);

} // namespace CUDA_NS
#endif
