/* The K/V cache and attention over it for up to 8 new positions per sequence (decode.cuh says how the work is divided; its
 * arithmetic is in decode_mma.cu and decode_vector.cu). Nothing here reads lens on the host: grid and number of splits follow from the cache's capacity,
 * so that a recorded step stays valid while sequences grow. */
#include "decode.cuh"

namespace CUDA_NS {
namespace {

const int THREADS = 256;
const int COUNTERS = 64;         /* per sequence and group, in the cache */
const int MERGE_INSIDE_MAX = 64; /* rows x splits of a block that its last one merges: 32 KiB at D = 128, about 1 us; a kernel of its own costs 2 */
const int SPLIT_KEYS_MIN = 64;   /* fewer are not worth a split */

/* ---- cache ---- */

/* grid (pieces, B): one piece of 8 of k and of v per thread. A position outside the cache is not written. */
template <class X, class C>
__global__ void __launch_bounds__(THREADS) cache_write_k(C *to_k, C *to_v, heads_view k, heads_view v, const int32_t *lens, int Tq, int G, int S, int D, int W,
                                                         int aligned)
{
    const int b = blockIdx.y, pieces = W / 8;
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= (int64_t)Tq * G * pieces)
        return;
    const int d = (int)(i % pieces) * 8, g = (int)(i / pieces % G), t = (int)(i / pieces / G);
    const int64_t at = (int64_t)lens[b] + t;
    if (at < 0 || at >= S)
        return;
    const X *from_k = (const X *)k.p + b * k.batch + t * k.row + g * k.head + d, *from_v = (const X *)v.p + b * v.batch + t * v.row + g * v.head + d;
    const int64_t to = (((int64_t)b * G + g) * S + at) * W + d;
    float x[8], y[8];
    if (aligned) {
        load_f32x8(x, from_k);
        load_f32x8(y, from_v);
    } else
        for (int e = 0; e < 8; e++) {
            x[e] = d + e < D ? f32_of(from_k[e]) : 0.0f;
            y[e] = d + e < D ? f32_of(from_v[e]) : 0.0f;
        }
    store_f32x8(to_k + to, x);
    store_f32x8(to_v + to, y);
}

/* ---- merge ---- */

/* One row per block: each warp takes a share of the splits, then their shares are put together in order. */
__global__ void __launch_bounds__(THREADS) merge_k(decode_problem p)
{
    const int WARPS = THREADS / 32;
    SMEM(float, shares); /* o [WARPS][256], then (m, l) [WARPS] */
    const int warp = threadIdx.x / 32, lane = threadIdx.x & 31, rows = p.R * p.Tq;
    const int n = blockIdx.x % rows, g = blockIdx.x / rows % p.G, b = blockIdx.x / rows / p.G;
    float own_m, own_l, m = -INFINITY, l = 0, o = 0;
    float4 own[2];
    decode_merge(p, blockIdx.x, p.splits * warp / WARPS, p.splits * (warp + 1) / WARPS, &own_m, &own_l, own);
#pragma unroll
    for (int c = 0; c < 2; c++)
        *reinterpret_cast<float4 *>(shares + 256 * warp + 128 * c + 4 * lane) = own[c];
    if (lane == 0)
        shares[256 * WARPS + 2 * warp] = own_m, shares[256 * WARPS + 2 * warp + 1] = own_l;
    __syncthreads();
    const float *ml = shares + 256 * WARPS;
    for (int w = 0; w < WARPS; w++)
        m = fmaxf(m, ml[2 * w]);
    const float base = m == -INFINITY ? 0.0f : m;
    for (int w = 0; w < WARPS; w++) {
        const float f = exp2_approx(ml[2 * w] - base);
        l += f * ml[2 * w + 1];
        o += f * shares[256 * w + threadIdx.x];
    }
    decode_store(p, b, g, n, threadIdx.x, l > 0 ? o / l : 0.0f);
}

/* ---- host ---- */

int64_t row_width(int64_t D) { return ceil_div(D, 8) * 8; }
size_t tensor_bytes(int64_t B, int64_t G, int64_t S, int64_t D, enum dtype dtype)
{
    return ((size_t)(B * G * S * row_width(D)) * dtype_bytes(dtype) + 63) & ~(size_t)63;
}

/* The most splits a call may have, from what attention_decode_scratch knows: twice over what B groups alone would need. */
int64_t splits_limit(const struct device *dev, int64_t B, int64_t S)
{
    int64_t limit = least(4 * dev->sm_count / (B < 1 ? 1 : B) + 2, DECODE_SPLITS_MAX);
    limit = least(limit, ceil_div(S, SPLIT_KEYS_MIN));
    return limit < 1 ? 1 : limit;
}

/* Blocks run in waves of `slots`; a block costs its share of the cache, and a start and an end worth some keys; the merge reads
 * every split once. */
int choose_splits(int64_t items, int64_t slots, int64_t S, int64_t limit, int rows)
{
    const int64_t START = 64;
    int64_t best = 1, best_cost = INT64_MAX;
    for (int64_t s = 1; s <= limit; s++) {
        const int64_t cost = ceil_div(items * s, slots) * (ceil_div(S, s) + START) + (s > 1 ? s * rows / 8 : 0);
        if (cost < best_cost)
            best = s, best_cost = cost;
    }
    return (int)best;
}

heads_view heads_of(struct view x)
{
    heads_view h = {x.p, x.s[0], x.s[1], x.s[2]};
    return h;
}

int pieces_aligned(struct view x)
{
    const int64_t piece = 16 / (int64_t)dtype_bytes(x.dtype);
    return x.n[3] % 8 == 0 && (uintptr_t)x.p % 16 == 0 && x.s[0] % piece == 0 && x.s[1] % piece == 0 && x.s[2] % piece == 0;
}

enum code check_cache(const char *op, const struct kv_layer *cache, struct view lens)
{
    if (cache->dtype != DT_F32 && cache->dtype != DT_BF16)
        return fail(ERR_UNSUPPORTED, "%s: a cache of %s; the CUDA backend keeps f32 or bf16", op, dtype_name(cache->dtype));
    if (cache->D < 1 || cache->D > 256)
        return fail(ERR_UNSUPPORTED, "%s: head width %lld; the CUDA backend does 1 to 256", op, (long long)cache->D);
    if (cache->B > 65535 || cache->B * cache->G > 65535 || cache->S > INT32_MAX / 2)
        return fail(ERR_UNSUPPORTED, "%s: a cache of %lld sequences, %lld heads and %lld positions is too large for the CUDA backend", op,
                    (long long)cache->B, (long long)cache->G, (long long)cache->S);
    return cuda_check(op, "lens", lens, DT_I32, 1, cache->B, -1, 0);
}

enum code check_rows(const char *op, const char *name, struct view x, enum dtype type, int64_t B, int64_t Tq, int64_t heads, int64_t D)
{
    TRY(cuda_check(op, name, x, type, 4, B, Tq, 0));
    if (x.n[2] != heads || x.n[3] != D)
        return fail(ERR_UNSUPPORTED, "%s: %s has %lld heads of %lld, must be %lld of %lld", op, name, (long long)x.n[2], (long long)x.n[3],
                    (long long)heads, (long long)D);
    return OK;
}

template <class X, class C> enum code run_write(struct device *dev, const struct kv_layer *cache, struct view k, struct view v, struct view lens)
{
    C *to = (C *)cache->p;
    const int W = (int)row_width(cache->D), Tq = (int)k.n[1], G = (int)cache->G;
    const dim3 grid((unsigned)ceil_div((int64_t)Tq * G * (W / 8), THREADS), (unsigned)cache->B);
    return LAUNCH(dev, (cache_write_k<X, C>), grid, dim3(THREADS), 0, to,
                  to + tensor_bytes(cache->B, cache->G, cache->S, cache->D, cache->dtype) / sizeof(C), heads_of(k), heads_of(v), ptr<const int32_t>(lens), Tq,
                  G, (int)cache->S, (int)cache->D, W, pieces_aligned(k) && pieces_aligned(v));
}

} // namespace

size_t cuda_cache_bytes(struct device *dev, int64_t B, int64_t G, int64_t S, int64_t D, enum dtype dtype)
{
    (void)dev;
    return 2 * tensor_bytes(B, G, S, D, dtype) + (size_t)(B * G * COUNTERS) * sizeof(unsigned);
}

size_t cache_half(const struct kv_layer *cache) { return tensor_bytes(cache->B, cache->G, cache->S, cache->D, cache->dtype); }

enum code cache_write_check(const struct kv_layer *cache, struct view k, struct view v, struct view lens)
{
    const char *op = "cache_write";
    TRY(cuda_check_type(op, k));
    if (k.nd != 4)
        return fail(ERR_UNSUPPORTED, "%s: k has %d axes, must be [batch, position, head, width]", op, k.nd);
    TRY(check_cache(op, cache, lens));
    TRY(check_rows(op, "k", k, k.dtype, cache->B, k.n[1], cache->G, cache->D));
    TRY(check_rows(op, "v", v, k.dtype, cache->B, k.n[1], cache->G, cache->D));
    if (k.n[1] > cache->S)
        return fail(ERR_UNSUPPORTED, "%s: %lld positions at once; the cache has room for %lld", op, (long long)k.n[1], (long long)cache->S);
    return OK;
}

enum code cuda_cache_write(struct device *dev, const struct kv_layer *cache, struct view k, struct view v, struct view lens)
{
    TRY(cache_write_check(cache, k, v, lens));
    if (cache->B * k.n[1] * cache->G == 0)
        return OK;
    if (cache->dtype == DT_BF16)
        return WITH_TYPE(k.dtype, (run_write<T, bf16>(dev, cache, k, v, lens)));
    return WITH_TYPE(k.dtype, (run_write<T, float>(dev, cache, k, v, lens)));
}

size_t cuda_attention_decode_scratch(struct device *dev, int64_t B, int64_t Tq, int64_t H, int64_t D, int64_t S)
{
    return (size_t)(B * Tq * H * splits_limit(dev, B, S) * (row_width(D) + 2)) * sizeof(float) + 64;
}

enum code cuda_attention_decode(struct device *dev, struct view o, struct view q, const struct kv_layer *cache, struct view lens,
                                const struct attention_args *args, int splits, void *scratch)
{
    const char *op = "attention_decode";
    const struct attention_mask *m = &args->mask;
    TRY(cuda_check_type(op, q));
    if (q.nd != 4 || q.n[1] < 1 || q.n[1] > DECODE_TQ_MAX)
        return fail(ERR_UNSUPPORTED, "%s: q has %d axes and %lld positions; it must be [batch, 1 to %d, head, width]", op, q.nd, (long long)q.n[1],
                    DECODE_TQ_MAX);
    const int64_t B = cache->B, Tq = q.n[1], H = q.n[2], G = cache->G, D = cache->D;
    if (G < 1 || H < 1 || H % G != 0 || H > 4096)
        return fail(ERR_UNSUPPORTED, "%s: %lld query heads cannot be shared evenly by %lld key/value heads", op, (long long)H, (long long)G);
    TRY(check_cache(op, cache, lens));
    TRY(check_rows(op, "q", q, q.dtype, B, Tq, H, D));
    TRY(check_rows(op, "o", o, q.dtype, B, Tq, H, D));
    if (!m->causal || m->dilation != NULL || m->global_index.p != NULL || m->rel_bias.p != NULL || m->blocks != NULL ||
        m->seg_q.p != NULL || args->dropout.rate != 0)
        return fail(ERR_UNSUPPORTED, "%s: the CUDA backend decodes causally with an optional window and ALiBi; other masks, biases and dropout are not done", op);
    TRY(cuda_check(op, "alibi_slopes", m->alibi_slopes, DT_F32, 1, H, -1, 1));
    if (B == 0 || cache->S == 0)
        return OK;
    CHECK(scratch != NULL && (uintptr_t)scratch % 64 == 0);
    const int rows = (int)(H / G * Tq), with_mma = cache->dtype == DT_BF16 && q.dtype == DT_BF16;
    int row_tile;
    const size_t bytes = with_mma ? decode_mma_bytes(D, rows, &row_tile)
                                  : decode_vector_bytes(D, m->alibi_slopes.p != NULL ? 1 : rows, &row_tile); /* four rows have no registers for ALiBi */
    const int64_t row_blocks = ceil_div(rows, row_tile), limit = splits_limit(dev, B, cache->S);
    const int block_rows = (int)least(rows, row_tile);
    const size_t half = tensor_bytes(B, G, cache->S, D, cache->dtype);
    decode_problem p = {};
    p.row_tile = row_tile;
    p.q = heads_of(q), p.o = heads_of(o);
    p.k = cache->p, p.v = (const char *)cache->p + half;
    p.lens = ptr<const int32_t>(lens);
    p.B = (int)B, p.G = (int)G, p.S = (int)cache->S, p.H = (int)H, p.R = (int)(H / G), p.Tq = (int)Tq, p.D = (int)D, p.W = (int)row_width(D);
    p.q_bf16 = q.dtype == DT_BF16;
    p.scale = args->scale;
    p.slopes = ptr<const float>(m->alibi_slopes);
    p.window = m->window_left < 0 ? -1 : (int)least(m->window_left, INT32_MAX / 4);
    p.splits = splits > 0 ? (int)least(splits, limit)
                          : choose_splits(B * G * row_blocks, dev->sm_count * (2 * bytes <= dev->smem_max ? 2 : 1), cache->S, limit, block_rows);
    p.part_o = (float *)scratch;
    p.part_ml = (float2 *)(p.part_o + B * G * rows * p.splits * p.W);
    if (p.splits > 1 && block_rows * p.splits <= MERGE_INSIDE_MAX && row_blocks <= COUNTERS)
        p.counters = (unsigned *)((char *)cache->p + 2 * half);
    if (with_mma)
        TRY(decode_mma(dev, p));
    else
        TRY(decode_vector(dev, p, cache->dtype));
    if (p.splits == 1 || p.counters != NULL)
        return OK;
    return LAUNCH(dev, merge_k, dim3((unsigned)(B * H * Tq)), dim3(THREADS), sizeof(float) * (256 + 2) * (THREADS / 32), p);
}

} // namespace CUDA_NS
