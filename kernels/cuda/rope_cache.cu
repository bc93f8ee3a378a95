/* Rotary positions and the cache write of a decode step in one launch: q and k turn in place (rope.cu has the formula) and the turned
 * k goes into the cache together with v (layout in decode.cuh). One block per new position; its threads share out three kinds of
 * pieces: eight pairs of a rotated head (of q or k), eight dims of k past the rotated ones, eight dims of v.
 * What does not start at 16-byte boundaries takes the two operations one after the other: same bits.
 * Limit: launches; a step of one sequence moves some KiB here. */
#include "decode.cuh"
#include "rows.cuh"

namespace CUDA_NS {
namespace {

#define BLOCK 128

struct rope_cache {
    heads_view q, k, v; /* row: between the B*Tq rows; batch unused */
    const float *cosines, *sines;
    const int32_t *pos, *lens;
    int64_t ldcos, ldsin, P;
    int Tq, H, G, S, D, W, half;
};

template <class X, class C> __device__ __forceinline__ void both_stored(X *x, C *cache, const float (&y)[8])
{
    float z[8];
#pragma unroll
    for (int i = 0; i < 8; i++)
        z[i] = f32_of(num_of<X>(y[i])); /* the cache holds what a write after the rotation would have read */
    store_f32x8(x, y);
    if (cache != NULL)
        store_f32x8(cache, z);
}

template <class X, class C> __global__ void __launch_bounds__(BLOCK) rope_cache_k(rope_cache p, C *to_k, C *to_v)
{
    const int64_t n = blockIdx.x;
    const int b = (int)(n / p.Tq), turned = p.half / 8, still = (p.D - 2 * p.half) / 8, whole = p.D / 8;
    const int items1 = (p.H + p.G) * turned, items2 = items1 + p.G * still, items3 = items2 + p.G * whole;
    const int64_t at = (int64_t)p.lens[b] + n % p.Tq;
    const bool inside = at >= 0 && at < p.S;
    const int32_t pos = p.pos[n];
    const bool known = pos >= 0 && pos < p.P;
    for (int i = (int)(blockIdx.y * blockDim.x + threadIdx.x); i < items3; i += (int)(gridDim.y * blockDim.x)) {
        float x[8], y[8];
        if (i < items1) {
            const int h = i / turned, d = i % turned * 8, g = h - p.H;
            const heads_view &from = h < p.H ? p.q : p.k;
            X *head = (X *)from.p + n * from.row + (h < p.H ? h : g) * from.head + d;
            C *to = h < p.H || !inside ? NULL : to_k + (((int64_t)b * p.G + g) * p.S + at) * p.W + d;
            float c[8], s[8];
#pragma unroll
            for (int k = 0; k < 8; k++)
                c[k] = s[k] = __uint_as_float(0x7fc00000u);
            if (known) {
                load_f32x8(c, p.cosines + pos * p.ldcos + d);
                load_f32x8(s, p.sines + pos * p.ldsin + d);
            }
            load_f32x8(x, head);
            load_f32x8(y, head + p.half);
#pragma unroll
            for (int k = 0; k < 8; k++) {
                const float u = x[k], w = y[k];
                x[k] = u * c[k] - w * s[k];
                y[k] = u * s[k] + w * c[k];
            }
            both_stored(head, to, x);
            both_stored(head + p.half, to == NULL ? to : to + p.half, y);
            continue;
        }
        if (!inside)
            continue;
        const bool of_k = i < items2;
        const int j = of_k ? i - items1 : i - items2, per = of_k ? still : whole, g = j / per, d = (of_k ? 2 * p.half : 0) + j % per * 8;
        const heads_view &from = of_k ? p.k : p.v;
        load_f32x8(x, (const X *)from.p + n * from.row + g * from.head + d);
        store_f32x8((of_k ? to_k : to_v) + (((int64_t)b * p.G + g) * p.S + at) * p.W + d, x);
    }
}

/* [B,T,heads,D] whose rows are evenly spaced as [B*T,heads,D]. */
enum code as_rows(const char *name, struct view x, struct view *rows)
{
    if (x.p == NULL || x.nd != 4 || (x.n[0] > 1 && x.s[0] != x.n[1] * x.s[1]))
        return fail(ERR_UNSUPPORTED, "rope_cache_write: the rows of %s are not evenly spaced", name);
    *rows = view_3d(x.p, x.dtype, x.n[0] * x.n[1], x.n[2], x.n[3]);
    rows->s[0] = x.s[1];
    rows->s[1] = x.s[2];
    return OK;
}

heads_view rows_of(struct view x)
{
    heads_view h = {x.p, 0, x.s[0], x.s[1]};
    return h;
}

template <class X, class C> enum code run(struct device *dev, const rope_cache &p, const struct kv_layer *cache, int64_t N)
{
    const int64_t items = (p.H + p.G) * (p.half / 8) + p.G * ((p.D - 2 * p.half) / 8 + p.D / 8);
    const unsigned down = N < 2 * dev->sm_count ? (unsigned)ceil_div(items, BLOCK) : 1;
    C *to = (C *)cache->p;
    return LAUNCH(dev, (rope_cache_k<X, C>), dim3((unsigned)N, down), dim3(BLOCK), 0, p, to, to + cache_half(cache) / sizeof(C));
}

} // namespace

enum code cuda_rope_cache_write(struct device *dev, const struct kv_layer *cache, struct view q, struct view k, struct view v, struct view lens,
                                struct view cos_table, struct view sin_table, struct view pos)
{
    struct view q_rows = {}, k_rows = {}, v_rows = {};
    TRY(as_rows("q", q, &q_rows));
    TRY(as_rows("k", k, &k_rows));
    TRY(as_rows("v", v, &v_rows));
    const int64_t half = cos_table.n[1], N = q_rows.n[0];
    const bool apart = q.dtype != k.dtype || k.dtype != v.dtype || N != k_rows.n[0] || N != v_rows.n[0] || !rows_aligned(q) || !rows_aligned(k) ||
                       !rows_aligned(v) || !rows_aligned(cos_table) || !rows_aligned(sin_table) || half % 8 != 0 || N > INT32_MAX;
    if (apart) {
        TRY(cuda_rope(dev, q_rows, cos_table, sin_table, pos, 0));
        TRY(cuda_rope(dev, k_rows, cos_table, sin_table, pos, 0));
        return cuda_cache_write(dev, cache, k, v, lens);
    }
    TRY(rope_check(q_rows, cos_table, sin_table, pos));
    TRY(rope_check(k_rows, cos_table, sin_table, pos));
    TRY(cache_write_check(cache, k, v, lens));
    if (q.n[3] != cache->D)
        return fail(ERR_UNSUPPORTED, "rope_cache_write: q has heads of %lld, the cache of %lld", (long long)q.n[3], (long long)cache->D);
    if (N == 0)
        return OK;
    rope_cache p = {};
    p.q = rows_of(q_rows), p.k = rows_of(k_rows), p.v = rows_of(v_rows);
    p.cosines = ptr<const float>(cos_table), p.sines = ptr<const float>(sin_table);
    p.pos = ptr<const int32_t>(pos), p.lens = ptr<const int32_t>(lens);
    p.ldcos = cos_table.s[0], p.ldsin = sin_table.s[0], p.P = cos_table.n[0];
    p.Tq = (int)k.n[1], p.H = (int)q.n[2], p.G = (int)cache->G, p.S = (int)cache->S, p.D = (int)cache->D, p.W = (int)cache->D, p.half = (int)half;
    if (cache->dtype == DT_BF16)
        return WITH_TYPE(k.dtype, (run<T, bf16>(dev, p, cache, N)));
    return WITH_TYPE(k.dtype, (run<T, float>(dev, p, cache, N)));
}

} // namespace CUDA_NS
