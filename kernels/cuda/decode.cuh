/* Private to decode*.cu: attention of a few new positions over the cache (Flash-Decoding, Dao et al. 2023), and how the results of
 * the parts of a cache are put together.
 *
 * Cache of a layer: K [B,G,S,W], then V [B,G,S,W], W = D rounded up to 8 (rows start on 16 bytes; columns from D to W are zero), then
 * counters that are zero between calls (the cache is zeroed once; whoever uses a counter sets it back).
 *
 * The R * Tq query rows of a group are packed: row n is query n / R of head g * R + n % R. A block takes up to row_tile of them and
 * one split of the positions that they see; a split is a share of the actual length, so splits are even whatever the capacity.
 * Result of a split and a row: m = max of the scores (scale q.k, and ALiBi) times log2(e), l = sum 2^(score - m),
 * o = sum 2^(score - m) v. Results are merged in split order: by the last block of the rows to finish when that is little work, else by
 * a kernel of its own. */
#ifndef GQAKIT_KERNELS_CUDA_DECODE_CUH
#define GQAKIT_KERNELS_CUDA_DECODE_CUH

#include "attention.cuh"

namespace CUDA_NS {

const int DECODE_TQ_MAX = 8, DECODE_SPLITS_MAX = 256;

struct decode_problem {
    heads_view q, o;
    const void *k, *v;
    const int32_t *lens;
    int B, G, S, H, R, Tq, D, W;
    int q_bf16; /* q and o are bf16, else f32 */
    float scale;
    int window;          /* < 0: none */
    const float *slopes; /* ALiBi, f32 [H]; NULL: none */
    int splits, row_tile;
    float *part_o;     /* [B*G*R*Tq, splits, W] */
    float2 *part_ml;   /* [B*G*R*Tq, splits] */
    unsigned *counters; /* [B*G*row blocks]; NULL: a kernel of its own merges */
};

/* bf16 queries over a bf16 cache (decode_mma.cu); everything else (decode_vector.cu). *_bytes: shared memory of a block for this width
 * and number of rows, and the rows it takes. */
enum code decode_mma(struct device *dev, const decode_problem &p);
enum code decode_vector(struct device *dev, const decode_problem &p, enum dtype cache);
size_t decode_mma_bytes(int64_t D, int rows, int *row_tile);
size_t decode_vector_bytes(int64_t D, int rows, int *row_tile);

/* decode.cu: the arguments of cache_write; bytes of a cache's K, after which V starts. */
enum code cache_write_check(const struct kv_layer *cache, struct view k, struct view v, struct view lens) MUST_USE;
size_t cache_half(const struct kv_layer *cache);

/* In units of `unit` keys: positions [lo, hi) that the block's rows see, units [from, to) of them are this split's. */
struct decode_range { int len, lo, hi, from, to; };
__device__ __forceinline__ decode_range decode_range_of(const decode_problem &p, int b, int first_row, int rows, int split, int unit)
{
    decode_range r;
    r.len = p.lens[b];
    r.len = r.len < 0 ? 0 : r.len > p.S ? p.S : r.len; /* no length makes a block leave the cache */
    r.lo = p.window < 0 ? 0 : r.len + first_row / p.R - p.window;
    r.lo = r.lo < 0 ? 0 : r.lo;
    r.hi = r.len + (first_row + rows - 1) / p.R + 1;
    r.hi = r.hi > p.S ? p.S : r.hi;
    r.hi = r.hi < r.lo ? r.lo : r.hi;
    const int64_t units = (r.hi - r.lo + unit - 1) / unit;
    r.from = (int)(units * split / p.splits);
    r.to = (int)(units * (split + 1) / p.splits);
    return r;
}

__device__ __forceinline__ int64_t decode_row(const decode_problem &p, int b, int g, int n) { return ((int64_t)b * p.G + g) * (p.R * p.Tq) + n; }

__device__ __forceinline__ void decode_store(const decode_problem &p, int b, int g, int n, int d, float x)
{
    const int64_t at = b * p.o.batch + n / p.R * p.o.row + (g * p.R + n % p.R) * p.o.head + d;
    if (d >= p.D)
        return;
    if (p.q_bf16)
        ((bf16 *)p.o.p)[at] = num_of<bf16>(x);
    else
        ((float *)p.o.p)[at] = x;
}

/* The states of the block's parts (warps, or groups of lanes) in shared memory: part i at parts + i * stride holds o [rows][ld], and
 * from float ml_at on, (m, l) [rows]. Together they are this split's result: to o when it is the only one. Whole block. */
__device__ __forceinline__ void decode_combine(const decode_problem &p, const float *parts, int stride, int n_parts, int ld, int ml_at, int rows, int b, int g,
                                               int n0, int split)
{
    const int pieces = p.W / 4;
    for (int i = threadIdx.x; i < rows * pieces; i += blockDim.x) {
        const int r = i / pieces, d = i % pieces * 4;
        float m = -INFINITY, l = 0;
        float4 o = {0, 0, 0, 0};
        for (int w = 0; w < n_parts; w++)
            m = fmaxf(m, parts[w * stride + ml_at + 2 * r]);
        const float base = m == -INFINITY ? 0.0f : m;
        for (int w = 0; w < n_parts; w++) {
            const float *part = parts + w * stride;
            const float f = exp2_approx(part[ml_at + 2 * r] - base);
            const float4 x = *reinterpret_cast<const float4 *>(part + r * ld + d);
            l += f * part[ml_at + 2 * r + 1];
            o.x += f * x.x, o.y += f * x.y, o.z += f * x.z, o.w += f * x.w;
        }
        if (p.splits == 1) {
            const float f = l > 0 ? 1 / l : 0.0f;
            decode_store(p, b, g, n0 + r, d, f * o.x), decode_store(p, b, g, n0 + r, d + 1, f * o.y);
            decode_store(p, b, g, n0 + r, d + 2, f * o.z), decode_store(p, b, g, n0 + r, d + 3, f * o.w);
            continue;
        }
        const int64_t at = decode_row(p, b, g, n0 + r) * p.splits + split;
        *reinterpret_cast<float4 *>(p.part_o + at * p.W + d) = o;
        if (d == 0)
            p.part_ml[at] = make_float2(m, l);
    }
}

/* One warp: splits [from, to) of a row together; lane i holds columns 4 i and 128 + 4 i of o. Reads past the first-level cache. */
__device__ __forceinline__ void decode_merge(const decode_problem &p, int64_t row, int from, int to, float *m_out, float *l_out, float4 (&o)[2])
{
    const int lane = threadIdx.x & 31;
    const float2 *ml = p.part_ml + row * p.splits;
    const float *part = p.part_o + row * p.splits * p.W + 4 * lane;
    float m = -INFINITY, l = 0;
    for (int s = from + lane; s < to; s += 32)
        m = fmaxf(m, __ldcg(ml + s).x);
    for (int i = 16; i > 0; i >>= 1)
        m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, i));
    const float base = m == -INFINITY ? 0.0f : m;
    for (int c = 0; c < 2; c++)
        o[c] = make_float4(0, 0, 0, 0);
#pragma unroll 8
    for (int s = from; s < to; s++) {
        const float2 x = __ldcg(ml + s);
        const float f = exp2_approx(x.x - base);
        l += f * x.y;
#pragma unroll
        for (int c = 0; c < 2; c++)
            if (128 * c + 4 * lane < p.W) {
                const float4 y = __ldcg(reinterpret_cast<const float4 *>(part + s * p.W + 128 * c));
                o[c].x += f * y.x, o[c].y += f * y.y, o[c].z += f * y.z, o[c].w += f * y.w;
            }
    }
    *m_out = m;
    *l_out = l;
}

__device__ __forceinline__ void decode_store_merged(const decode_problem &p, int b, int g, int n, const float4 (&o)[2], float f)
{
#pragma unroll
    for (int c = 0; c < 2; c++) {
        const int d = 128 * c + 4 * (threadIdx.x & 31);
        decode_store(p, b, g, n, d, f * o[c].x), decode_store(p, b, g, n, d + 1, f * o[c].y);
        decode_store(p, b, g, n, d + 2, f * o[c].z), decode_store(p, b, g, n, d + 3, f * o[c].w);
    }
}

/* After decode_combine: the last block of these rows to arrive merges them. flag: one word of shared memory nobody else uses now. */
__device__ __forceinline__ void decode_last_merges(const decode_problem &p, unsigned *flag, int b, int g, int row_block, int row_blocks, int n0, int rows)
{
    unsigned *counter = p.counters + ((int64_t)b * p.G + g) * row_blocks + row_block;
    __threadfence(); /* the results of this thread before the count */
    __syncthreads();
    if (threadIdx.x == 0)
        *flag = atomicAdd(counter, 1u) == (unsigned)p.splits - 1;
    __syncthreads();
    if (!*flag)
        return;
    __threadfence();
    for (int r = threadIdx.x / 32; r < rows; r += blockDim.x / 32) {
        float m, l;
        float4 o[2];
        decode_merge(p, decode_row(p, b, g, n0 + r), 0, p.splits, &m, &l, o);
        decode_store_merged(p, b, g, n0 + r, o, l > 0 ? 1 / l : 0.0f);
    }
    if (threadIdx.x == 0)
        *counter = 0;
}

} // namespace CUDA_NS
#endif
