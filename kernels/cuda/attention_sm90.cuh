/* Private to attention_*_sm90.cu: how tiles lie in shared memory, which keys a row sees, the order of the work, and the
 * fragment code that forward and backward share.
 *
 * Tiles. [rows, D] bf16 lies as D / W panels [rows][W], as bulk tensor copies of boxes {W, rows} write them: W = 64 columns, 128-byte
 * swizzle; for D = 96, W = 32 and 64-byte swizzle (64 does not divide 96). Groups of 8 rows are 1024 (512) bytes, every panel starts
 * at a multiple of that. Rows past T or S and columns past the head's width are zero: the tensor map ends there.
 *
 * Masks. Document ids do not decrease, so every query sees one run of keys [lo, hi), and both ends grow with t. A tile of rows
 * visits [lo of its first row, hi of its last); what lies in [lo of the last row, hi of the first) needs no mask. */
#ifndef GQAKIT_KERNELS_CUDA_ATTENTION_SM90_CUH
#define GQAKIT_KERNELS_CUDA_ATTENTION_SM90_CUH

#include "attention.cuh"
#include "num.cuh"
#include "tensor_map.cuh"
#include "wgmma.cuh"

namespace CUDA_NS {
namespace {

#define LOG2_E 1.4426950408889634f
#define NO_KEY (-__int_as_float(0x7f800000))

/* A value that is the same in all lanes, said so that the compiler keeps what follows from it in uniform registers. */
__device__ __forceinline__ int uniform(int x) { return __shfl_sync(0xffffffffu, x, 0); }

/* ---- tiles ---- */

template <int D> struct panel {
    static constexpr int W = D == 96 ? 32 : 64;
    static constexpr int row = 2 * W; /* bytes of a row, and the swizzle */
    static constexpr int n = D / W;
    static constexpr int row_log2 = W == 64 ? 7 : 6;
};

/* Descriptors of a tile of ROWS rows, and what to add for step i of 16 along K: rows as M or N, columns as K ... */
template <int D, int ROWS> __device__ __forceinline__ uint64_t rows_operand(uint32_t tile)
{
    return wgmma_descriptor(tile, 16, 8 * panel<D>::row, panel<D>::row);
}
template <int D, int ROWS> __device__ __forceinline__ uint64_t rows_step(int i)
{
    return (uint64_t)((i * 16 / panel<D>::W * ROWS * panel<D>::row + i * 16 % panel<D>::W * 2) >> 4);
}
/* ... and columns as M or N, rows as K (transposed). */
template <int D, int ROWS> __device__ __forceinline__ uint64_t columns_operand(uint32_t tile)
{
    return wgmma_descriptor(tile, ROWS * panel<D>::row, 8 * panel<D>::row, panel<D>::row);
}
template <int D, int ROWS> __device__ __forceinline__ uint64_t columns_step(int i) { return (uint64_t)(i * panel<D>::row); }

/* One tile by one thread; the barrier has been told of its bytes. */
template <int D, int ROWS> __device__ __forceinline__ void tile_load(uint32_t tile, const tensor_map *map, uint32_t bar, int row, int head, int batch)
{
#pragma unroll
    for (int i = 0; i < panel<D>::n; i++)
        tma_load_4d(tile + (uint32_t)(i * ROWS * panel<D>::row), map, bar, i * panel<D>::W, head, row, batch);
}

/* The accumulator of a 64 x N product as the A operand of the next: columns 16 i .. 16 i + 15 are d[8 i .. 8 i + 7], and pairs of
 * them are in the order of the fragment's registers (row g, row g + 8, then the same eight columns on). */
template <int N> __device__ __forceinline__ void fragment_of(uint32_t (&a)[4], const float (&d)[N], int i)
{
#pragma unroll
    for (int r = 0; r < 4; r++)
        a[r] = pack_bf16(d[8 * i + 2 * r], d[8 * i + 2 * r + 1]);
}
template <int N> __device__ __forceinline__ void fragments_of(uint32_t (&a)[N / 16][4], const float (&d)[N / 2])
{
#pragma unroll
    for (int i = 0; i < N / 16; i++)
        fragment_of(a[i], d, i);
}

/* Word j of lane t of each four lanes goes to word t of lane j: the four words of a lane become 8 adjacent columns. */
__device__ __forceinline__ void quad_transpose(uint32_t (&w)[4], int t)
{
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const uint32_t got = __shfl_xor_sync(0xffffffffu, t & 1 ? w[i] : w[i + 1], 1);
        w[i] = t & 1 ? got : w[i], w[i + 1] = t & 1 ? w[i + 1] : got;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t got = __shfl_xor_sync(0xffffffffu, t & 2 ? w[i] : w[i + 2], 2);
        w[i] = t & 2 ? got : w[i], w[i + 2] = t & 2 ? w[i + 2] : got;
    }
}

/* Rows g and g + 8 of a warp's 16 x D accumulator, each scaled, to bf16 in global memory: 16 bytes a lane, 64 a row.
 * row: the one of lane 0; rows from `rows` on and columns from `width` on are not written. pack: 2^pack heads from h on lie in the rows,
 * row i is position i >> pack. */
template <int D>
__device__ __forceinline__ void rows_store(const float (&d)[D / 2], float scale0, float scale1, const heads_view &to, int b, int h, int row, int rows,
                                           int width, int pack = 0)
{
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int i = row + g + 8 * r, at = i >> pack;
        bf16 *p = (bf16 *)to.p + b * to.batch + at * to.row + (h + (i & ((1 << pack) - 1))) * to.head;
        const float scale = r ? scale1 : scale0;
#pragma unroll
        for (int c = 0; c < D; c += 32) {
            uint32_t w[4];
#pragma unroll
            for (int j = 0; j < 4; j++)
                w[j] = pack_bf16(d[c / 2 + 4 * j + 2 * r] * scale, d[c / 2 + 4 * j + 2 * r + 1] * scale);
            quad_transpose(w, t);
            if (at < rows && c + 8 * t < width)
                *reinterpret_cast<uint4 *>(p + c + 8 * t) = make_uint4(w[0], w[1], w[2], w[3]);
        }
    }
}

/* ---- masks ---- */

/* The first of ids[lo, hi) that is >= id, or > id when `after`; hi when none. Warp: all lanes ask the same, 32 probes a round. */
__device__ __forceinline__ int ids_find_warp(const int32_t *ids, int lo, int hi, int id, bool after)
{
    const int lane = threadIdx.x & 31;
    while (lo < hi) {
        const int step = (hi - lo + 31) / 32, at = lo + (lane + 1) * step - 1; /* the last of the lane's share */
        const bool below = at < hi && (ids[at] < id || (after && ids[at] == id));
        lo += step * __popc(__ballot_sync(0xffffffffu, below));
        hi = min(hi, lo + step - 1);
    }
    return lo;
}
__device__ __forceinline__ int ids_find(const int32_t *ids, int lo, int hi, int id, bool after)
{
    while (lo < hi) {
        const int at = lo + (hi - lo) / 2;
        if (ids[at] < id || (after && ids[at] == id))
            lo = at + 1;
        else
            hi = at;
    }
    return lo;
}

/* Keys of query t by causality and windows; nothing when hi <= lo. */
__device__ __forceinline__ key_range row_range(const attention_problem &p, int t)
{
    const int at = t + p.q_offset;
    key_range r = {0, p.S};
    if (p.window_left >= 0)
        r.lo = max(0, at - p.window_left);
    if (p.causal)
        r.hi = min(r.hi, at + 1);
    if (p.window_right >= 0)
        r.hi = min(r.hi, at + p.window_right + 1);
    return r;
}
/* Queries of key s likewise. */
__device__ __forceinline__ key_range column_range(const attention_problem &p, int s)
{
    const int at = s - p.q_offset;
    key_range r = {0, p.T};
    if (p.causal)
        r.lo = max(0, at);
    if (p.window_right >= 0)
        r.lo = max(r.lo, at - p.window_right);
    if (p.window_left >= 0)
        r.hi = min(r.hi, at + p.window_left + 1);
    return r;
}

/* What rows i0 .. i1 (queries, or keys) visit of the others, and the part of it that all of them see. first, last: the runs of i0 and i1 without
 * documents; mine, other: document ids or NULL. Whole warps. */
struct runs { key_range visit, seen; };
__device__ __forceinline__ runs runs_of(key_range first, key_range last, const int32_t *mine, const int32_t *other, int i0, int i1)
{
    runs r = {{first.lo, last.hi}, {last.lo, first.hi}};
    if (mine == NULL || r.visit.hi <= r.visit.lo)
        return r;
    const int id0 = mine[i0], id1 = mine[i1];
    r.visit.lo = ids_find_warp(other, r.visit.lo, r.visit.hi, id0, false);
    r.visit.hi = ids_find_warp(other, r.visit.lo, r.visit.hi, id1, true);
    r.seen.lo = max(r.seen.lo, r.visit.lo);
    r.seen.hi = id0 == id1 ? min(r.seen.hi, r.visit.hi) : r.seen.lo;
    return r;
}
/* The run of row i alone; visit: that of its tile. */
__device__ __forceinline__ key_range run_of(key_range r, key_range visit, const int32_t *mine, const int32_t *other, int i)
{
    r.lo = max(r.lo, visit.lo), r.hi = min(r.hi, visit.hi);
    if (mine != NULL && r.lo < r.hi) {
        const int id = mine[i];
        if (other[r.lo] != id)
            r.lo = ids_find(other, r.lo, r.hi, id, false);
        if (r.lo < r.hi && other[r.hi - 1] != id)
            r.hi = ids_find(other, r.lo, r.hi, id, true);
    }
    return r;
}

__device__ __forceinline__ const int32_t *ids_of_queries(const attention_problem &p, int b)
{
    return p.seg_q == NULL ? NULL : p.seg_q + b * p.seg_q_batch;
}
__device__ __forceinline__ const int32_t *ids_of_keys(const attention_problem &p, int b)
{
    return p.seg_q == NULL ? NULL : p.seg_k + b * p.seg_k_batch;
}
/* The keys of queries [t0, t1), the queries of keys [s0, s1), of sequence b; neither is empty. */
__device__ __forceinline__ runs keys_of_rows(const attention_problem &p, int b, int t0, int t1)
{
    return runs_of(row_range(p, t0), row_range(p, t1 - 1), ids_of_queries(p, b), ids_of_keys(p, b), t0, t1 - 1);
}
__device__ __forceinline__ runs queries_of_keys(const attention_problem &p, int b, int s0, int s1)
{
    return runs_of(column_range(p, s0), column_range(p, s1 - 1), ids_of_keys(p, b), ids_of_queries(p, b), s0, s1 - 1);
}
__device__ __forceinline__ key_range keys_of_row(const attention_problem &p, int b, int t, key_range visit)
{
    return run_of(row_range(p, t), visit, ids_of_queries(p, b), ids_of_keys(p, b), t);
}
__device__ __forceinline__ key_range queries_of_key(const attention_problem &p, int b, int s, key_range visit)
{
    return run_of(column_range(p, s), visit, ids_of_keys(p, b), ids_of_queries(p, b), s);
}

/* A warp's 16 rows of scores: columns c0 + column outside of each row's run become -inf. runs: of the 16 rows. */
template <int N> __device__ __forceinline__ void mask_columns(float (&s)[N / 2], int c0, const key_range *runs)
{
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const key_range row = runs[(lane >> 2) + 8 * r];
        const unsigned base = (unsigned)(c0 + 2 * (lane & 3) - row.lo), n = (unsigned)max(row.hi - row.lo, 0);
#pragma unroll
        for (int j = 0; j < N / 8; j++)
#pragma unroll
            for (int e = 0; e < 2; e++)
                if (base + 8 * j + e >= n)
                    s[4 * j + 2 * r + e] = NO_KEY;
    }
}

/* ALiBi on a warp's 16 rows of raw scores: row r (g, g + 8) gets slope[r] times its distance, which is distance[r] in the lane's first column
 * and grows with the column. */
template <int N> __device__ __forceinline__ void bias_columns(float (&s)[N / 2], const float (&slope)[2], const float (&distance)[2])
{
#pragma unroll
    for (int r = 0; r < 2; r++)
#pragma unroll
        for (int j = 0; j < N / 8; j++)
#pragma unroll
            for (int e = 0; e < 2; e++)
                s[4 * j + 2 * r + e] = fmaf(slope[r], distance[r] + (float)(8 * j + e), s[4 * j + 2 * r + e]);
}
/* The same where rows are queries, from packed row `row` (2^pack heads from h on) of the warp, and columns keys from c0 on ... */
template <int N> __device__ __forceinline__ void bias_keys(float (&s)[N / 2], const attention_problem &p, int h, int row, int pack, int c0)
{
    const int lane = threadIdx.x & 31, i = row + (lane >> 2), c = c0 + 2 * (lane & 3) - p.q_offset, mask = (1 << pack) - 1;
    const float slope[2] = {p.slopes[h + (i & mask)] * p.unscale, p.slopes[h + ((i + 8) & mask)] * p.unscale};
    const float distance[2] = {(float)(c - (i >> pack)), (float)(c - ((i + 8) >> pack))};
    bias_columns<N>(s, slope, distance);
}
/* ... and where rows are keys, and columns queries of head h from c0 on. */
template <int N> __device__ __forceinline__ void bias_queries(float (&s)[N / 2], const attention_problem &p, int h, int row, int c0)
{
    const int lane = threadIdx.x & 31, c = c0 + 2 * (lane & 3) + p.q_offset - row - (lane >> 2);
    const float x = -p.slopes[h] * p.unscale, slope[2] = {x, x}, distance[2] = {(float)c, (float)(c - 8)};
    bias_columns<N>(s, slope, distance);
}

/* ---- rings of stages: the i-th tile lies in stage i % STAGES and completes this phase of the stage's barriers ---- */

const int STAGES = 2;
__device__ __forceinline__ int stage_of(unsigned i) { return (int)(i % STAGES); }
__device__ __forceinline__ uint32_t parity_of(unsigned i) { return i / STAGES & 1; }

/* ---- the host's side ---- */

/* A [B,rows,heads,D] tensor as {column, head, row, batch}; boxes of one panel, box_rows rows, a head each (or box_heads, heads innermost). */
static inline enum code heads_map(tensor_map *map, const heads_view &x, int width, int64_t rows, int heads, int batch, int panel, int box_rows,
                                  int box_heads = 1)
{
    struct tensor_map_spec s = {};
    s.base = x.p, s.type = DT_BF16, s.rank = 4;
    s.n[0] = width, s.n[1] = heads, s.n[2] = rows, s.n[3] = batch;
    /* the stride of an axis of one is never used, but must be legal */
    s.stride_bytes[0] = heads > 1 ? 2 * x.head : 16;
    s.stride_bytes[1] = rows > 1 ? 2 * x.row : 16;
    s.stride_bytes[2] = batch > 1 ? 2 * x.batch : 16;
    s.box[0] = panel, s.box[1] = box_heads, s.box[2] = box_rows, s.box[3] = 1;
    s.swizzle = 2 * panel;
    return tensor_map_make(map, &s);
}

} // namespace
} // namespace CUDA_NS
#endif
