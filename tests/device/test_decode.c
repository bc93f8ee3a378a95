/* The K/V cache and attention over it on a device, against the double oracle: lengths that differ, groups, windows, splits, both types.
 * What nobody wrote is NaN and, in the executor, uninitialised: a kernel that reads beyond a sequence's length shows. */
#include <math.h>

#include "device_case.h"
#include "reference/attention.h"

struct shape {
    int B, Tq, H, G, D, S, window, splits;
    enum dtype type, cache;
    int lens[4];
    int alibi;
};
static const float slopes[32] = {0.5f, -0.02f, 0.125f, 0.003f, 0.0625f, 0.2f, -0.1f, 0.05f, 0.7f, 0.01f, 0.3f}; /* the rest are 0 */

static void *room(int64_t n, size_t size)
{
    void *p = calloc((size_t)n + 1, size);
    assert_non_null(p);
    return p;
}

/* A cache as the backend's user has it: zeroed once. In the executor everything but the backend's own words at the end (which
 * stay zero: 256 bytes per sequence and group) is then made NaN and uninitialised. */
static struct kv_layer cache_make(const struct shape *a)
{
    const struct backend *be = case_backend();
    struct kv_layer cache = {.dtype = a->cache, .B = a->B, .G = a->G, .S = a->S, .D = a->D};
    const size_t bytes = be->cache_bytes(case_device(), a->B, a->G, a->S, a->D, a->cache), own = (size_t)(a->B * a->G) * 256;
    void *zeros = room((int64_t)own, 1);
    cache.p = case_bytes(bytes);
    assert_ok(be->device_copy(case_device(), (char *)cache.p + bytes - own, zeros, own));
    free(zeros);
    return cache;
}

/* Random k and v for positions [from[b], from[b] + n) go to the cache and, as the cache rounds them, to k64 and v64 [B,S,G,D]. */
static void cache_fill(const struct shape *a, const struct kv_layer *cache, double *const *kv64, const int32_t *from, int n, uint64_t seed)
{
    const int64_t row = (int64_t)a->G * a->D, dims[4] = {a->B, n, 2 * a->G + 1, a->D};
    double *x = room(a->B * n * (2 * a->G + 1) * a->D, sizeof(double));
    fill_random_f64(x, a->B * n * (2 * a->G + 1) * a->D, seed);
    struct view both = case_upload(x, a->type, 4, dims);
    assert_ok(case_backend()->cache_write(case_device(), cache, view_slice(both, 2, 0, a->G), view_slice(both, 2, a->G, a->G),
                                          case_upload_i32(from, 1, (int64_t[]){a->B})));
    for (int b = 0; b < a->B; b++)
        for (int t = 0; t < n && from[b] + t < a->S; t++)
            for (int i = 0; i < 2; i++)
                for (int64_t j = 0; j < row; j++) {
                    const double y = x[((b * n + t) * (2 * a->G + 1) + i * a->G) * a->D + j];
                    kv64[i][(b * a->S + from[b] + t) * row + j] = a->cache == DT_BF16 ? (double)f32_from_bf16(bf16_from_f32((float)y)) : y;
                }
    free(x);
}

/* One sequence by f32 arithmetic, P and O rounded to bf16 where a naive bf16 program would. */
static void plain_decode(const struct shape *a, double *o, const double *q, const double *k, const double *v, const struct ref_attention *ref)
{
    const int low = a->type == DT_BF16;
    float *p = room(ref->S, sizeof(float));
    for (int64_t t = 0; t < ref->T; t++)
        for (int64_t h = 0; h < ref->H; h++) {
            const int64_t g = h / (ref->H / ref->G), at = (t * ref->H + h) * ref->D;
            float top = -HUGE_VALF, sum = 0;
            for (int64_t s = 0; s < ref->S; s++) {
                float x = 0;
                for (int64_t d = 0; d < ref->D; d++)
                    x += (float)q[at + d] * (float)k[(s * ref->G + g) * ref->D + d];
                if (a->alibi)
                    x += slopes[h] * (float)(s - t - ref->q_offset) / (float)ref->scale;
                p[s] = ref_attention_visible(ref, 0, t, s) ? x * (float)ref->scale : -HUGE_VALF;
                top = fmaxf(top, p[s]);
            }
            for (int64_t s = 0; s < ref->S; s++)
                sum += p[s] = expf(p[s] - top);
            for (int64_t d = 0; d < ref->D; d++) {
                float x = 0;
                for (int64_t s = 0; s < ref->S; s++)
                    x += (low ? f32_from_bf16(bf16_from_f32(p[s] / sum)) : p[s] / sum) * (float)v[(s * ref->G + g) * ref->D + d];
                o[at + d] = low ? (double)f32_from_bf16(bf16_from_f32(x)) : (double)x;
            }
        }
    free(p);
}

static void check_sequence(const struct shape *a, int b, const double *got, const double *q, const double *k, const double *v, float scale)
{
    const int64_t n = (int64_t)a->Tq * a->H * a->D;
    double *truth = room(n, sizeof(double)), *plain = room(n, sizeof(double)), *lse = room(a->Tq * a->H, sizeof(double));
    const struct ref_attention ref = {.B = 1,
                                      .T = a->Tq,
                                      .S = a->lens[b] + a->Tq,
                                      .H = a->H,
                                      .G = a->G,
                                      .D = a->D,
                                      .scale = (double)scale,
                                      .causal = 1,
                                      .q_offset = a->lens[b],
                                      .window_left = a->window,
                                      .window_right = -1,
                                      .slopes = a->alibi ? slopes : NULL};
    char name[200];
    ref_attention_fwd(&ref, truth, lse, q, k, v);
    plain_decode(a, plain, q, k, v, &ref);
    snprintf(name, sizeof name, "B %d Tq %d H %d G %d D %d len %d of %d window %d splits %d alibi %d %s over %s", a->B, a->Tq, a->H, a->G, a->D, a->lens[b],
             a->S, a->window, a->splits, a->alibi, dtype_name(a->type), dtype_name(a->cache));
    case_expect_2x(name, got, truth, plain, (size_t)n, a->type == DT_BF16 ? 2e-3 : 4e-6);
    free(truth), free(plain), free(lse);
}

static void check(const struct shape *a)
{
    const struct backend *be = case_backend();
    const int64_t row = (int64_t)a->G * a->D, n = (int64_t)a->Tq * a->H * a->D, dims[4] = {a->B, a->Tq, a->H + 1, a->D};
    double *kv64[2] = {room(a->B * a->S * row, sizeof(double)), room(a->B * a->S * row, sizeof(double))};
    double *q64 = room(a->B * a->Tq * (a->H + 1) * a->D, sizeof(double)), *got = room(a->B * a->Tq * (a->H + 1) * a->D, sizeof(double));
    double *q_own = room(n, sizeof(double)), *got_own = room(n, sizeof(double));
    struct kv_layer cache = cache_make(a);
    int32_t lens[4], from[4];
    /* Each sequence's prompt by a write of its own, in which the others' positions are outside the cache; then the new positions. */
    for (int b = 0; b < a->B; b++) {
        for (int i = 0; i < a->B; i++)
            from[i] = i == b ? 0 : a->S;
        if (a->lens[b] > 0)
            cache_fill(a, &cache, kv64, from, a->lens[b], (uint64_t)(1 + b));
        lens[b] = a->lens[b];
    }
    cache_fill(a, &cache, kv64, lens, a->Tq, 7);

    fill_random_f64(q64, a->B * a->Tq * (a->H + 1) * a->D, 8);
    struct view q = view_slice(case_upload(q64, a->type, 4, dims), 2, 0, a->H), whole = case_output(a->type, 4, dims);
    struct attention_args args = {.mask = attention_mask_causal(), .scale = 1.5f / sqrtf((float)a->D)};
    args.mask.window_left = a->window;
    if (a->alibi) {
        double slopes64[32];
        for (int h = 0; h < a->H; h++)
            slopes64[h] = (double)slopes[h];
        args.mask.alibi_slopes = case_upload(slopes64, DT_F32, 1, (int64_t[]){a->H});
    }
    struct view lens_view = case_upload_i32(lens, 1, (int64_t[]){a->B});
    /* Twice, each time with fresh scratch: what the first call leaves in the cache's own words must serve the second. */
    for (int i = 0; i < 2; i++)
        assert_ok(be->attention_decode(case_device(), view_slice(whole, 2, 0, a->H), q, &cache, lens_view, &args, a->splits,
                                       case_bytes(be->attention_decode_scratch(case_device(), a->B, a->Tq, a->H, a->D, a->S))));
    assert_ok(be->device_sync(case_device()));
    case_download(got, whole);
    for (int b = 0; b < a->B; b++) {
        for (int t = 0; t < a->Tq; t++)
            for (int64_t i = 0; i < (a->H + 1) * a->D; i++) {
                const int64_t at = (b * a->Tq + t) * (a->H + 1) * a->D + i;
                if (i >= a->H * a->D) {
                    assert_true(isnan(got[at]));
                    continue;
                }
                q_own[t * a->H * a->D + i] = q64[at], got_own[t * a->H * a->D + i] = got[at];
            }
        check_sequence(a, b, got_own, q_own, kv64[0] + b * a->S * row, kv64[1] + b * a->S * row, args.scale);
    }
    free(kv64[0]), free(kv64[1]), free(q64), free(got), free(q_own), free(got_own);
    case_free();
    assert_int_equal(case_faults(), 0);
}

#define BF16 .type = DT_BF16, .cache = DT_BF16
#define F32 .type = DT_F32, .cache = DT_F32

/* bf16 over bf16: mma for any number of rows. */
static void test_bf16(void **state)
{
    (void)state;
    static const struct shape shapes[] = {
        {2, 1, 6, 6, 64, 300, -1, 0, BF16, .lens = {299, 0}},
        {1, 1, 4, 4, 128, 700, -1, 1, BF16, .lens = {690}}, /* many stages per warp */
        {1, 1, 4, 4, 128, 700, -1, 0, BF16, .lens = {650}},
        {3, 1, 6, 3, 80, 200, -1, 3, BF16, .lens = {150, 1, 64}},
        {2, 1, 8, 2, 128, 333, -1, 2, BF16, .lens = {332, 17}},
        {2, 1, 8, 1, 96, 130, -1, 0, BF16, .lens = {127, 90}},
        {1, 1, 32, 1, 128, 400, -1, 0, BF16, .lens = {390}}, /* two tiles of rows, merged by a kernel of its own */
        {2, 1, 32, 1, 64, 200, -1, 3, BF16, .lens = {199, 3}},
        {2, 3, 6, 3, 64, 300, -1, 0, BF16, .lens = {100, 256}},
        {1, 8, 8, 2, 128, 200, -1, 2, BF16, .lens = {192}},
        {2, 8, 32, 1, 96, 100, -1, 0, BF16, .lens = {92, 31}}, /* 256 rows */
        {2, 1, 4, 2, 256, 150, -1, 0, BF16, .lens = {140, 66}},
        {1, 3, 16, 1, 256, 100, -1, 2, BF16, .lens = {70}},
        {2, 1, 6, 3, 40, 100, -1, 0, BF16, .lens = {99, 50}},
        {1, 1, 3, 1, 20, 90, -1, 0, BF16, .lens = {80}}, /* rows of 40 bytes, padded in the cache */
        {2, 1, 6, 3, 64, 300, 20, 0, BF16, .lens = {290, 7}},
        {2, 8, 6, 3, 128, 200, 40, 3, BF16, .lens = {180, 11}},
        {1, 3, 2, 1, 80, 300, 0, 1000, BF16, .lens = {256}},
        {2, 1, 6, 2, 64, 500, 130, 1000, BF16, .lens = {499, 130}},
    };
    for (size_t i = 0; i < COUNT_OF(shapes); i++)
        check(&shapes[i]);
}

/* f32, and the mixed kinds. */
static void test_f32(void **state)
{
    (void)state;
    static const struct shape shapes[] = {
        {2, 1, 6, 6, 64, 300, -1, 0, F32, .lens = {299, 0}},
        {3, 1, 6, 3, 80, 200, -1, 3, F32, .lens = {150, 1, 64}},
        {2, 1, 8, 1, 128, 130, -1, 0, F32, .lens = {127, 90}},
        {1, 1, 32, 1, 96, 200, -1, 0, F32, .lens = {199}},
        {2, 3, 6, 3, 40, 300, -1, 2, F32, .lens = {100, 256}},
        {1, 8, 4, 2, 256, 100, 30, 0, F32, .lens = {90}},
        {2, 1, 2, 1, 33, 90, -1, 0, F32, .lens = {80, 5}},
        {1, 1, 3, 3, 1, 90, 5, 1, F32, .lens = {80}},
        {1, 3, 3, 3, 250, 90, 5, 1000, F32, .lens = {80}},
        {2, 1, 6, 6, 128, 200, -1, 0, .type = DT_F32, .cache = DT_BF16, .lens = {199, 30}},
        {2, 3, 6, 2, 80, 200, 50, 3, .type = DT_F32, .cache = DT_BF16, .lens = {100, 30}},
        {1, 1, 8, 2, 64, 150, -1, 0, .type = DT_BF16, .cache = DT_F32, .lens = {149}},
    };
    for (size_t i = 0; i < COUNT_OF(shapes); i++)
        check(&shapes[i]);
}

/* Slopes of every head of a group beside each other, positions of several new tokens. */
static void test_alibi(void **state)
{
    (void)state;
    static const struct shape shapes[] = {
        {3, 1, 6, 3, 80, 200, -1, 3, BF16, .lens = {150, 1, 64}, .alibi = 1},
        {2, 1, 6, 6, 64, 300, -1, 0, BF16, .lens = {299, 0}, .alibi = 1},
        {2, 1, 8, 1, 128, 333, -1, 2, BF16, .lens = {332, 17}, .alibi = 1},
        {1, 3, 16, 1, 96, 100, -1, 2, BF16, .lens = {70}, .alibi = 1},
        {2, 8, 6, 3, 128, 200, 40, 3, BF16, .lens = {180, 11}, .alibi = 1},
        {2, 1, 4, 2, 256, 150, 30, 0, BF16, .lens = {140, 66}, .alibi = 1},
        {3, 1, 6, 3, 80, 200, -1, 3, F32, .lens = {150, 1, 64}, .alibi = 1},
        {2, 3, 6, 1, 64, 130, 20, 0, F32, .lens = {127, 90}, .alibi = 1},
        {2, 1, 8, 1, 128, 130, -1, 1, F32, .lens = {99, 3}, .alibi = 1},
        {2, 3, 6, 2, 80, 200, 50, 3, .type = DT_F32, .cache = DT_BF16, .lens = {100, 30}, .alibi = 1},
    };
    for (size_t i = 0; i < COUNT_OF(shapes); i++)
        check(&shapes[i]);
}

/* Lengths and windows around the edges of a stage of 16 or 32 positions. */
static void test_edges(void **state)
{
    (void)state;
    for (int len = 13; len < 36; len += len == 17 ? 10 : 1)
        for (int Tq = 1; Tq <= 2; Tq++) {
            const int width = Tq == 1 ? 64 : 128;
            check(&(struct shape){4, Tq, 2, 1, width, 80, -1, 1, BF16, .lens = {len, len + 1, len + 16, len + 32}});
            check(&(struct shape){4, Tq, 2, 1, width, 80, len - 2, 1, BF16, .lens = {len, len + 1, len + 16, len + 32}});
        }
}

/* Lengths that no user should give: nothing outside the cache is read or written, whatever comes out. */
static void test_wrong_lengths(void **state)
{
    (void)state;
    const struct backend *be = case_backend();
    static const enum dtype types[] = {DT_F32, DT_BF16};
    for (int i = 0; i < 2; i++) {
        struct shape a = {3, 2, 4, 2, 64, 50, -1, 2, types[i], types[i], {0}, 0};
        struct kv_layer cache = cache_make(&a);
        double *zeros = room(3 * 50 * 4 * 64, sizeof(double));
        struct view kv = case_upload(zeros, a.type, 4, (int64_t[]){3, 50, 2, 64}), q = case_upload(zeros, a.type, 4, (int64_t[]){3, 2, 4, 64});
        struct view start = case_upload_i32((int32_t[]){0, 0, 0}, 1, (int64_t[]){3}),
                    lens = case_upload_i32((int32_t[]){-7, 49, 1 << 30}, 1, (int64_t[]){3});
        struct view o = case_output(a.type, 4, (int64_t[]){3, 2, 4, 64});
        struct attention_args args = {.mask = attention_mask_causal(), .scale = 1};
        void *scratch = case_bytes(be->attention_decode_scratch(case_device(), 3, 2, 4, 64, 50));
        assert_ok(be->cache_write(case_device(), &cache, kv, kv, start));
        assert_ok(be->cache_write(case_device(), &cache, view_slice(kv, 1, 0, 2), view_slice(kv, 1, 0, 2), lens));
        assert_ok(be->attention_decode(case_device(), o, q, &cache, lens, &args, 2, scratch));
        assert_ok(be->device_sync(case_device()));
        free(zeros);
        case_free();
        assert_int_equal(case_faults(), 0);
    }
}

static void test_refusals(void **state)
{
    (void)state;
    const struct backend *be = case_backend();
    struct device *dev = case_device();
    struct kv_layer cache = {.p = case_bytes(be->cache_bytes(dev, 2, 2, 32, 8, DT_F32)), .dtype = DT_F32, .B = 2, .G = 2, .S = 32, .D = 8};
    struct view q = case_output(DT_F32, 4, (int64_t[]){2, 1, 4, 8}), odd = case_output(DT_F32, 4, (int64_t[]){2, 1, 3, 8});
    struct view many = case_output(DT_F32, 4, (int64_t[]){2, 9, 4, 8}), lens = case_upload_i32((int32_t[]){3, 4}, 1, (int64_t[]){2});
    void *scratch = case_bytes(be->attention_decode_scratch(dev, 2, 8, 4, 8, 32));
    struct attention_args args = {.mask = attention_mask_causal(), .scale = 1};
    assert_refused(be->attention_decode(dev, many, many, &cache, lens, &args, 0, scratch), ERR_UNSUPPORTED, "1 to 8");
    assert_refused(be->attention_decode(dev, odd, odd, &cache, lens, &args, 0, scratch), ERR_UNSUPPORTED, "shared evenly");
    assert_refused(be->cache_write(dev, &cache, q, q, lens), ERR_UNSUPPORTED, "k has 4 heads of 8");
    args.mask.causal = 0;
    assert_refused(be->attention_decode(dev, q, q, &cache, lens, &args, 0, scratch), ERR_UNSUPPORTED, "causally");
    args.mask.causal = 1, args.dropout.rate = 0.1f;
    assert_refused(be->attention_decode(dev, q, q, &cache, lens, &args, 0, scratch), ERR_UNSUPPORTED, "dropout");
    args.dropout.rate = 0, args.mask.alibi_slopes = view_1d(q.p, DT_F32, 3);
    assert_refused(be->attention_decode(dev, q, q, &cache, lens, &args, 0, scratch), ERR_UNSUPPORTED, "axis 0 of alibi_slopes is 3, must be 4");
    args.mask.alibi_slopes = view_none(), cache.dtype = DT_F16;
    assert_refused(be->attention_decode(dev, q, q, &cache, lens, &args, 0, scratch), ERR_UNSUPPORTED, "f16");
    cache.dtype = DT_F32, cache.D = 300;
    assert_refused(be->attention_decode(dev, q, q, &cache, lens, &args, 0, scratch), ERR_UNSUPPORTED, "300");
    case_free();
    assert_int_equal(case_faults(), 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_bf16), cmocka_unit_test(test_f32), cmocka_unit_test(test_alibi), cmocka_unit_test(test_edges),
                                       cmocka_unit_test(test_wrong_lengths), cmocka_unit_test(test_refusals)};
    return case_main(argc, argv, tests, COUNT_OF(tests));
}
