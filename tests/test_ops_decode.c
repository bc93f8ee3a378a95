/* The cache and attention over it against the double oracle, for shapes, lengths, groups, windows, splits and both dtypes. */
#include <math.h>

#include "ops.h"
#include "reference/attention.h"

struct shape { int64_t B, Tq, H, G, D, S, window; int splits; enum dtype dtype; const float *slopes; };

/* No two heads alike. */
static const float slopes24[24] = {0.5f, 0.03125f, 0.70710678f, 0, 0.125f, 0.0078125f, 0.35f, 0.021f, 0.9f, 0.01f, 0.11f, 0.005f,
                                   0.6f, 0.04f,    0.8f,        1, 0.15f,  0.009f,     0.4f,  0.03f,  0.7f, 0.02f, 0.2f,  0.004f};

static float rounded(float x, enum dtype t) { return t == DT_BF16 ? f32_from_bf16(bf16_from_f32(x)) : x; }

/* Fills the cache in two writes (lens positions, then Tq more), decodes, compares each sequence with the oracle. */
static void one_decode(struct device *dev, struct shape a)
{
    const int64_t B = a.B, Tq = a.Tq, H = a.H, G = a.G, D = a.D, gap = 3, row_q = H * D + gap, row_k = G * D + gap;
    int32_t lens[8], zeros[8] = {0};
    int64_t longest = 0;
    for (int64_t b = 0; b < B; b++) {
        lens[b] = b == 1 ? 0 : (int32_t)(a.S - Tq - b * 17 < 0 ? 0 : a.S - Tq - b * 17);
        longest = lens[b] > longest ? lens[b] : longest;
    }
    struct kv_layer cache = {.dtype = a.dtype, .B = B, .G = G, .S = a.S, .D = D};
    size_t bytes = cpu_cache_bytes(dev, B, G, a.S, D, a.dtype);
    cache.p = aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
    memset(cache.p, 0, bytes);
    float *q = calloc((size_t)(B * Tq * row_q), 4), *k = calloc((size_t)(B * a.S * row_k), 4), *v = calloc((size_t)(B * a.S * row_k), 4);
    float *o = calloc((size_t)(B * Tq * row_q), 4);
    fill_random(q, B * Tq * row_q, 1), fill_random(k, B * a.S * row_k, 2), fill_random(v, B * a.S * row_k, 3), fill_nan(o, B * Tq * row_q);
    struct view vk = {.p = k, .dtype = DT_F32, .nd = 4, .n = {B, a.S, G, D}, .s = {a.S * row_k, row_k, D, 1}}, vv = vk;
    struct view vq = {.p = q, .dtype = DT_F32, .nd = 4, .n = {B, Tq, H, D}, .s = {Tq * row_q, row_q, D, 1}}, vo = vq;
    vv.p = v;
    vo.p = o;
    /* First write: the same number of positions for all (longest), later ones overwritten by the second. */
    struct view lv = view_1d(lens, DT_I32, B), zv = view_1d(zeros, DT_I32, B);
    if (longest > 0)
        assert_ok(cpu_cache_write(dev, &cache, view_slice(vk, 1, 0, longest), view_slice(vv, 1, 0, longest), zv));
    float *k2 = calloc((size_t)(B * Tq * row_k), 4), *v2 = calloc((size_t)(B * Tq * row_k), 4);
    for (int64_t b = 0; b < B; b++) {
        memcpy(k2 + b * Tq * row_k, k + (b * a.S + lens[b]) * row_k, (size_t)(Tq * row_k) * 4);
        memcpy(v2 + b * Tq * row_k, v + (b * a.S + lens[b]) * row_k, (size_t)(Tq * row_k) * 4);
    }
    struct view nk = {.p = k2, .dtype = DT_F32, .nd = 4, .n = {B, Tq, G, D}, .s = {Tq * row_k, row_k, D, 1}}, nv = nk;
    nv.p = v2;
    assert_ok(cpu_cache_write(dev, &cache, nk, nv, lv));
    struct attention_args args = {.mask = attention_mask_causal(), .scale = 0.3f};
    args.mask.window_left = a.window;
    if (a.slopes != NULL)
        args.mask.alibi_slopes = view_1d((void *)(uintptr_t)a.slopes, DT_F32, H);
    size_t scratch_bytes = cpu_attention_decode_scratch(dev, B, Tq, H, D, a.S);
    char *scratch = aligned_alloc(64, (scratch_bytes + 63) / 64 * 64 + 64);
    memset(scratch, 0xff, scratch_bytes);
    scratch[scratch_bytes] = 0x5a;
    assert_ok(cpu_attention_decode(dev, vo, vq, &cache, lv, &args, a.splits, scratch));
    assert_int_equal(scratch[scratch_bytes], 0x5a);
    for (int64_t b = 0; b < B; b++) {
        const int64_t S = lens[b] + Tq;
        double *q64 = calloc((size_t)(Tq * H * D), 8), *k64 = calloc((size_t)(S * G * D), 8), *v64 = calloc((size_t)(S * G * D), 8);
        double *o64 = calloc((size_t)(Tq * H * D), 8), *lse = calloc((size_t)(Tq * H), 8);
        float *got = calloc((size_t)(Tq * H * D), 4);
        for (int64_t t = 0; t < Tq; t++)
            for (int64_t i = 0; i < H * D; i++) {
                q64[t * H * D + i] = (double)q[(b * Tq + t) * row_q + i];
                got[t * H * D + i] = o[(b * Tq + t) * row_q + i];
            }
        for (int64_t t = 0; t < S; t++)
            for (int64_t i = 0; i < G * D; i++) {
                k64[t * G * D + i] = (double)rounded(k[(b * a.S + t) * row_k + i], a.dtype);
                v64[t * G * D + i] = (double)rounded(v[(b * a.S + t) * row_k + i], a.dtype);
            }
        struct ref_attention ref = {.B = 1, .T = Tq, .S = S, .H = H, .G = G, .D = D, .scale = (double)args.scale, .causal = 1, .q_offset = lens[b],
                                    .window_left = a.window, .window_right = -1, .slopes = a.slopes};
        ref_attention_fwd(&ref, o64, lse, q64, k64, v64);
        char name[160];
        snprintf(name, sizeof name, "%s B %d Tq %d H %d G %d D %d len %d window %d splits %d %s%s", dev->loops->name, (int)B, (int)Tq, (int)H, (int)G,
                 (int)D, (int)lens[b], (int)a.window, a.splits, dtype_name(a.dtype), a.slopes ? " alibi" : "");
        assert_true(compare_f32(name, got, o64, Tq * H * D, 1e-5, 5e-6));
        for (int64_t t = 0; t < Tq; t++)
            for (int64_t i = H * D; i < row_q; i++)
                assert_true(isnan(o[(b * Tq + t) * row_q + i]));
        free(q64), free(k64), free(v64), free(o64), free(lse), free(got);
    }
    free(cache.p), free(q), free(k), free(v), free(o), free(k2), free(v2), free(scratch);
}

static void decode_shapes(int alibi)
{
    static const int64_t widths[] = {8, 16, 20, 64, 80, 128, 7}, groups[][2] = {{6, 1}, {6, 3}, {6, 6}, {24, 1}}, queries[] = {1, 3, 8};
    static const int64_t batches[] = {1, 3};
    FOR_EACH_ISA(isa) {
        struct device *dev = ops_device((enum isa)isa, 2);
        int i = 0;
        for (size_t d = 0; d < COUNT_OF(widths); d++)
            for (size_t g = 0; g < COUNT_OF(groups); g++)
                for (size_t t = 0; t < COUNT_OF(queries); t++)
                    for (size_t b = 0; b < COUNT_OF(batches); b++, i++)
                        one_decode(dev, (struct shape){.B = batches[b], .Tq = queries[t], .H = groups[g][0], .G = groups[g][1], .D = widths[d],
                                                       .S = i % 5 == 4 ? 300 : i % 3 == 0 ? 64 : 77, .window = i % 4 == 3 ? 20 : -1,
                                                       .splits = i % 7 == 6 ? 3 : i % 11 == 10 ? 1000 : 0,
                                                       .dtype = i % 2 ? DT_BF16 : DT_F32, .slopes = alibi ? slopes24 : NULL});
        cpu_device_close(dev);
    }
}

static void test_decode(void **state)
{
    (void)state;
    decode_shapes(0);
}

static void test_decode_alibi(void **state)
{
    (void)state;
    decode_shapes(1);
}

/* A slope of 0 adds nothing, to the bit. */
static void test_decode_slope_0_is_none(void **state)
{
    (void)state;
    static const float zeros[6] = {0, -0.0f, 0, 0, 0, 0};
    const int64_t B = 2, Tq = 3, H = 6, G = 3, D = 20, S = 150;
    FOR_EACH_ISA(isa) {
        struct device *dev = ops_device((enum isa)isa, 2);
        struct kv_layer cache = {.dtype = DT_F32, .B = B, .G = G, .S = S, .D = D};
        size_t bytes = cpu_cache_bytes(dev, B, G, S, D, DT_F32), scratch_bytes = cpu_attention_decode_scratch(dev, B, Tq, H, D, S);
        cache.p = aligned_alloc(64, (bytes + 63) / 64 * 64);
        fill_random(cache.p, (int64_t)(bytes / 4), 1);
        float *q = calloc((size_t)(B * Tq * H * D), 4), *o[2];
        fill_random(q, B * Tq * H * D, 2);
        int32_t lens[2] = {131, 63};
        char *scratch = aligned_alloc(64, (scratch_bytes + 63) / 64 * 64);
        for (int i = 0; i < 2; i++) {
            struct attention_args args = {.mask = attention_mask_causal(), .scale = 0.3f};
            if (i)
                args.mask.alibi_slopes = view_1d((void *)(uintptr_t)zeros, DT_F32, H);
            o[i] = calloc((size_t)(B * Tq * H * D), 4);
            fill_nan(o[i], B * Tq * H * D);
            assert_ok(cpu_attention_decode(dev, view_4d(o[i], DT_F32, B, Tq, H, D), view_4d(q, DT_F32, B, Tq, H, D), &cache,
                                           view_1d(lens, DT_I32, B), &args, 2, scratch));
        }
        assert_memory_equal(o[0], o[1], (size_t)(B * Tq * H * D) * 4);
        free(cache.p), free(q), free(o[0]), free(o[1]), free(scratch);
        cpu_device_close(dev);
    }
}

/* The same inputs give the same bits again, and other splits the same values to rounding (one_decode checks those). */
static void test_decode_refuses(void **state)
{
    (void)state;
    struct device *dev = ops_device(host_isa(), 2);
    const int64_t B = 2, G = 2, H = 4, D = 8, S = 32;
    struct kv_layer cache = {.dtype = DT_F32, .B = B, .G = G, .S = S, .D = D};
    cache.p = aligned_alloc(64, cpu_cache_bytes(dev, B, G, S, D, DT_F32));
    memset(cache.p, 0, cpu_cache_bytes(dev, B, G, S, D, DT_F32));
    float q[2 * 9 * 4 * 8], o[2 * 9 * 4 * 8];
    fill_random(q, COUNT_OF(q), 1);
    struct view vq = view_4d(q, DT_F32, B, 1, H, D), vo = view_4d(o, DT_F32, B, 1, H, D), kv = view_4d(q, DT_F32, B, 1, G, D);
    int32_t lens[2] = {31, 32};
    struct view lv = view_1d(lens, DT_I32, B);
    struct attention_args args = {.mask = attention_mask_causal(), .scale = 1};
    _Alignas(64) static char scratch[1 << 20];
    assert_true(cpu_attention_decode_scratch(dev, B, 8, H, D, S) < sizeof scratch);
    assert_refused(cpu_cache_write(dev, &cache, kv, kv, lv), ERR_INTERNAL, "sequence 1 holds 32 positions");
    assert_refused(cpu_attention_decode(dev, vo, vq, &cache, lv, &args, 0, scratch), ERR_INTERNAL, "room for 32");
    lens[1] = -1;
    assert_refused(cpu_attention_decode(dev, vo, vq, &cache, lv, &args, 0, scratch), ERR_INTERNAL, "-1");
    lens[1] = 3;
    assert_refused(cpu_attention_decode(dev, vo, view_4d(q, DT_F32, B, 9, H, D), &cache, lv, &args, 0, scratch), ERR_UNSUPPORTED, "1 to 8");
    assert_refused(cpu_attention_decode(dev, vo, view_4d(q, DT_F32, B, 1, 3, D), &cache, lv, &args, 0, scratch), ERR_UNSUPPORTED, "shared evenly");
    assert_refused(cpu_cache_write(dev, &cache, vq, kv, lv), ERR_UNSUPPORTED, "k has 4 heads of 8");
    args.dropout.rate = 0.1f;
    assert_refused(cpu_attention_decode(dev, vo, vq, &cache, lv, &args, 0, scratch), ERR_UNSUPPORTED, "dropout");
    args.dropout.rate = 0;
    args.mask.alibi_slopes = view_1d(q, DT_F32, 3);
    assert_refused(cpu_attention_decode(dev, vo, vq, &cache, lv, &args, 0, scratch), ERR_UNSUPPORTED, "ALiBi slopes");
    args.mask.alibi_slopes = view_none();
    args.mask.causal = 0;
    assert_refused(cpu_attention_decode(dev, vo, vq, &cache, lv, &args, 0, scratch), ERR_UNSUPPORTED, "causally");
    cache.dtype = DT_F16;
    assert_refused(cpu_cache_write(dev, &cache, kv, kv, lv), ERR_UNSUPPORTED, "f16");
    cache.dtype = DT_F32;
    cache.D = 300;
    assert_refused(cpu_cache_write(dev, &cache, view_4d(q, DT_F32, 1, 1, 1, 300), view_4d(q, DT_F32, 1, 1, 1, 300), lv), ERR_UNSUPPORTED, "");
    free(cache.p);
    cpu_device_close(dev);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_decode), cmocka_unit_test(test_decode_alibi), cmocka_unit_test(test_decode_slope_0_is_none),
                                       cmocka_unit_test(test_decode_refuses)};
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
