/* Rotation and cache write in one pass against the two operations one after the other: the same bits, in q, k and the whole cache. */
#include "tensor.h"

struct shape { int64_t B, Tq, H, G, D, S, half, gap; enum dtype type, cache; };

static struct view heads(struct tensor t, int64_t B, int64_t T, int64_t from, int64_t n, int64_t D)
{
    const int64_t row = t.v.s[0];
    struct view x = view_4d((char *)t.v.p + (size_t)(from * D) * dtype_bytes(t.v.dtype), t.v.dtype, B, T, n, D);
    x.s[0] = T * row;
    x.s[1] = row;
    return x;
}

/* Runs one way and returns the cache's bytes; qkv_out: the packed rows afterwards. */
static unsigned char *one_way(struct shape a, int fused, double **qkv_out, size_t *bytes)
{
    const struct backend *be = case_backend();
    struct device *dev = case_device();
    const int64_t N = a.B * a.Tq, width = (a.H + 2 * a.G) * a.D;
    struct tensor qkv = tensor_random(a.type, N, width, a.gap, 5, 1.0);
    double *angles = tensor_doubles(2 * a.S * a.half);
    int32_t lens[8], pos[64];
    fill_random_f64(angles, 2 * a.S * a.half, 6);
    for (int64_t b = 0; b < a.B; b++) {
        lens[b] = (int32_t)((b * 3) % (a.S - a.Tq + 1));
        for (int64_t t = 0; t < a.Tq; t++)
            pos[b * a.Tq + t] = lens[b] + (int32_t)t;
    }
    const int64_t table_n[2] = {a.S, a.half}, lens_n[1] = {a.B}, pos_n[1] = {N};
    struct view cosines = case_upload(angles, DT_F32, 2, table_n), sines = case_upload(angles + a.S * a.half, DT_F32, 2, table_n);
    struct view vl = case_upload_i32(lens, 1, lens_n), vp = case_upload_i32(pos, 1, pos_n);
    struct kv_layer cache = {.dtype = a.cache, .B = a.B, .G = a.G, .S = a.S, .D = a.D};
    struct arena memory = {0};
    *bytes = be->cache_bytes(dev, a.B, a.G, a.S, a.D, a.cache);
    assert_ok(be->device_alloc(dev, &memory, "cache", *bytes));
    cache.p = memory.base;
    struct view q = heads(qkv, a.B, a.Tq, 0, a.H, a.D), k = heads(qkv, a.B, a.Tq, a.H, a.G, a.D), v = heads(qkv, a.B, a.Tq, a.H + a.G, a.G, a.D);
    if (fused)
        assert_ok(be->rope_cache_write(dev, &cache, q, k, v, vl, cosines, sines, vp));
    else {
        struct view x = view_3d(qkv.v.p, a.type, N, a.H + a.G, a.D);
        x.s[0] = qkv.v.s[0];
        assert_ok(be->rope(dev, x, cosines, sines, vp, 0));
        assert_ok(be->cache_write(dev, &cache, k, v, vl));
    }
    unsigned char *host = malloc(*bytes);
    assert_non_null(host);
    assert_ok(be->device_copy(dev, host, cache.p, *bytes));
    assert_true(tensor_gaps_ok(qkv));
    *qkv_out = tensor_get(qkv);
    be->device_free(dev, &memory);
    return host;
}

static void check(struct shape a)
{
    const int64_t n = a.B * a.Tq * (a.H + 2 * a.G) * a.D;
    double *x[2];
    size_t bytes[2];
    unsigned char *cache[2];
    int written = 0;
    for (int fused = 0; fused < 2; fused++)
        cache[fused] = one_way(a, fused, &x[fused], &bytes[fused]);
    for (size_t i = 0; i < bytes[0]; i++)
        written |= cache[0][i];
    assert_true(written);
    assert_memory_equal(cache[0], cache[1], bytes[0]);
    for (int64_t i = 0; i < n; i++)
        if (!(x[0][i] == x[1][i])) {
            print_message("element %lld: %g and %g\n", (long long)i, x[0][i], x[1][i]);
            assert_true(0);
        }
    free(cache[0]);
    free(cache[1]);
    tensors_free();
    case_free();
    assert_int_equal(case_faults(), 0);
}

static void test_shapes(void **state)
{
    (void)state;
    static const struct shape SHAPES[] = {
        {2, 1, 6, 3, 64, 20, 32, 8, DT_BF16, DT_BF16}, /* every dim rotated */
        {1, 1, 32, 1, 128, 9, 64, 0, DT_BF16, DT_BF16},
        {2, 3, 6, 3, 80, 20, 16, 8, DT_BF16, DT_BF16}, /* partly */
        {2, 3, 6, 3, 80, 20, 16, 8, DT_F32, DT_F32},
        {3, 5, 4, 4, 40, 11, 8, 8, DT_BF16, DT_F32},
        {2, 2, 4, 2, 48, 11, 12, 8, DT_BF16, DT_BF16}, /* half is no multiple of eight: the two operations */
        {2, 2, 4, 2, 64, 11, 32, 3, DT_F32, DT_BF16},  /* rows not aligned: the same */
    };
    for (size_t i = 0; i < COUNT_OF(SHAPES); i++)
        check(SHAPES[i]);
}

static void test_bad_length(void **state)
{
    (void)state;
    const struct backend *be = case_backend();
    struct device *dev = case_device();
    struct tensor qkv = tensor_random(DT_BF16, 1, 3 * 64, 8, 7, 1.0);
    double angles[32] = {0};
    int32_t lens[1] = {4}, pos[1] = {0};
    const int64_t one[1] = {1}, table[2] = {1, 32};
    struct view t = case_upload(angles, DT_F32, 2, table), vl = case_upload_i32(lens, 1, one), vp = case_upload_i32(pos, 1, one);
    struct kv_layer cache = {.dtype = DT_BF16, .B = 1, .G = 1, .S = 4, .D = 64};
    struct arena memory = {0};
    size_t bytes = be->cache_bytes(dev, 1, 1, 4, 64, DT_BF16);
    assert_ok(be->device_alloc(dev, &memory, "cache", bytes));
    cache.p = memory.base;
    assert_ok(be->rope_cache_write(dev, &cache, heads(qkv, 1, 1, 0, 1, 64), heads(qkv, 1, 1, 1, 1, 64), heads(qkv, 1, 1, 2, 1, 64), vl, t, t, vp));
    unsigned char *host = malloc(bytes);
    assert_non_null(host);
    assert_ok(be->device_copy(dev, host, cache.p, bytes));
    for (size_t i = 0; i < bytes; i++)
        assert_int_equal(host[i], 0); /* position 4 of 4: nothing is written */
    free(host);
    be->device_free(dev, &memory);
    tensors_free();
    case_free();
    assert_int_equal(case_faults(), 0);
}

static const struct CMUnitTest tests[] = {cmocka_unit_test(test_shapes), cmocka_unit_test(test_bad_length)};
int main(int argc, char **argv) { return case_main(argc, argv, tests, COUNT_OF(tests)); }
