/* Views, and conversions of every bit pattern against slow arithmetic, on the plain and the vector loops. */
#include <math.h>

#include "base/view_convert.h"
#include "harness.h"

/* Nearest even by searching: the reference knows only what each 16-bit pattern is worth. */
static double worth(uint16_t h, int exponent_bits, int fraction_bits)
{
    int bias = (1 << (exponent_bits - 1)) - 1, e = h >> fraction_bits & ((1 << exponent_bits) - 1);
    double f = (double)(h & ((1 << fraction_bits) - 1)), sign = h & 0x8000 ? -1.0 : 1.0;
    if (e == 0)
        return sign * ldexp(f, 1 - bias - fraction_bits);
    return sign * ldexp(f + (double)(1 << fraction_bits), e - bias - fraction_bits);
}

static uint16_t nearest(double x, int exponent_bits, int fraction_bits)
{
    int top = ((1 << exponent_bits) - 1) << fraction_bits; /* infinity */
    uint16_t sign = signbit(x) ? 0x8000 : 0;
    if (isnan(x))
        return 0xffff; /* any NaN: compared apart */
    double a = fabs(x);
    int lo = 0, hi = top; /* worth(lo) <= a < worth(hi), with infinity worth the next power */
    if (a >= worth((uint16_t)top, exponent_bits, fraction_bits))
        return (uint16_t)(sign | top);
    while (hi - lo > 1) {
        int mid = (lo + hi) / 2;
        *(worth((uint16_t)mid, exponent_bits, fraction_bits) <= a ? &lo : &hi) = mid;
    }
    double below = a - worth((uint16_t)lo, exponent_bits, fraction_bits), above = worth((uint16_t)hi, exponent_bits, fraction_bits) - a;
    int take = below < above ? lo : below > above ? hi : lo & 1 ? hi : lo;
    return (uint16_t)(sign | take);
}

static int same16(uint16_t got, double x, int exponent_bits, int fraction_bits)
{
    int mask = ((1 << exponent_bits) - 1) << fraction_bits, quiet = 1 << (fraction_bits - 1);
    if (isnan(x))
        return (got & mask) == mask && (got & quiet) && !(got & 0x8000) == !signbit(x);
    return got == nearest(x, exponent_bits, fraction_bits);
}

/* Every 16-bit value, its neighbours in f32 and the halfway points between it and the next. */
static size_t interesting(float *out)
{
    size_t n = 0;
    for (uint32_t h = 0; h < 0x10000; h++) {
        float f = f32_from_f16((uint16_t)h), b = f32_from_bf16((uint16_t)h);
        float half = (float)((worth((uint16_t)h, 5, 10) + worth((uint16_t)(h + 1), 5, 10)) / 2.0);
        uint32_t middle = h << 16 | 0x8000u;
        out[n++] = f;
        out[n++] = nextafterf(f, INFINITY);
        out[n++] = nextafterf(f, -INFINITY);
        out[n++] = half;
        out[n++] = nextafterf(half, INFINITY);
        out[n++] = nextafterf(half, -INFINITY);
        out[n++] = b;
        for (uint32_t d = 0; d < 3; d++) {
            uint32_t u = middle + d - 1;
            memcpy(&out[n++], &u, 4);
        }
    }
    return n;
}

static void test_narrowing_to_nearest_even(void **state)
{
    (void)state;
    enum { MOST = 10 * 0x10000 };
    float *x = malloc(MOST * sizeof *x);
    uint16_t *bf = malloc(MOST * 2), *hf = malloc(MOST * 2);
    size_t n = interesting(x);
    assert_int_equal(n, MOST);
    static const char *const which[] = {"plain", "convert_elements"};
    for (int way = 0; way < 2; way++) {
        memset(bf, 0xa5, MOST * 2);
        memset(hf, 0xa5, MOST * 2);
        if (way == 0) {
            convert_plain.bf16_from_f32(bf, x, n);
            convert_plain.f16_from_f32(hf, x, n);
        } else {
            convert_elements(bf, DT_BF16, x, DT_F32, n);
            convert_elements(hf, DT_F16, x, DT_F32, n);
        }
        for (size_t i = 0; i < n; i++)
            if (!same16(bf[i], (double)x[i], 8, 7) || !same16(hf[i], (double)x[i], 5, 10)) {
                print_error("%s: %a became bf16 %04x, f16 %04x\n", which[way], (double)x[i], bf[i], hf[i]);
                assert_true(0);
            }
    }
    for (size_t i = 0; i < n; i += 97) {
        assert_true(bf[i] == bf16_from_f32(x[i]));
        assert_true(hf[i] == f16_from_f32(x[i]));
    }
    free(x);
    free(bf);
    free(hf);
}

static void test_widening_is_exact(void **state)
{
    (void)state;
    enum { N = 0x10000 };
    uint16_t *h = malloc(N * 2), *back = malloc(N * 2);
    float *f = malloc(N * 4);
    double *d = malloc(N * 8);
    for (int i = 0; i < N; i++)
        h[i] = (uint16_t)i;
    for (int way = 0; way < 4; way++) {
        enum dtype t = way < 2 ? DT_F16 : DT_BF16;
        int e = t == DT_F16 ? 5 : 8, m = t == DT_F16 ? 10 : 7;
        fill_nan(f, N);
        if (way % 2)
            convert_elements(f, DT_F32, h, t, N);
        else if (t == DT_F16)
            convert_plain.f32_from_f16(f, h, N);
        else
            convert_plain.f32_from_bf16(f, h, N);
        convert_elements(back, t, f, DT_F32, N);
        convert_elements(d, DT_F64, h, t, N);
        for (int i = 0; i < N; i++) {
            int top = ((1 << e) - 1) << m, nan = (i & top) == top && (i & ((1 << m) - 1)), inf = (i & 0x7fff) == top;
            if (nan) {
                assert_true(isnan(f[i]) && isnan(d[i]));
                assert_int_equal(back[i], i | 1 << (m - 1)); /* quiet, the rest kept */
                continue;
            }
            double want = inf ? (i & 0x8000 ? -(double)INFINITY : (double)INFINITY) : worth(h[i], e, m);
            assert_true((double)f[i] == want && d[i] == want && !signbit(f[i]) == !(i & 0x8000));
            assert_int_equal(back[i], i);
        }
    }
    free(h);
    free(back);
    free(f);
    free(d);
}

/* A double just above a halfway point must not be rounded twice. */
static void test_doubles_round_once(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < 20000; i++) {
        uint16_t h = (uint16_t)random_int(1, i, 0, 0x7bfe);
        double half = (worth(h, 5, 10) + worth((uint16_t)(h + 1), 5, 10)) / 2.0, bhalf = (worth(h, 8, 7) + worth((uint16_t)(h + 1), 8, 7)) / 2.0;
        double cases[] = {half, nextafter(half, 1e300), nextafter(half, -1e300), bhalf, nextafter(bhalf, 1e300), -nextafter(bhalf, 0.0), 1e-300, -1e300};
        uint16_t b[COUNT_OF(cases)], f[COUNT_OF(cases)];
        convert_elements(b, DT_BF16, cases, DT_F64, COUNT_OF(cases));
        convert_elements(f, DT_F16, cases, DT_F64, COUNT_OF(cases));
        for (size_t k = 0; k < COUNT_OF(cases); k++)
            if (!same16(b[k], cases[k], 8, 7) || !same16(f[k], cases[k], 5, 10)) {
                print_error("%a became bf16 %04x, f16 %04x\n", cases[k], b[k], f[k]);
                assert_true(0);
            }
    }
    double d[3] = {1.0 / 3.0, -1e300, (double)NAN};
    float f[3];
    convert_elements(f, DT_F32, d, DT_F64, 3);
    assert_true(f[0] == (float)(1.0 / 3.0) && f[1] == -INFINITY && isnan(f[2]));
}

/* All lengths and offsets around a vector; neighbours stay untouched. */
static void test_tails_and_chunks(void **state)
{
    (void)state;
    enum { N = 2100 };
    static float x[N + 2];
    static uint16_t h[N + 2], other[N + 2];
    fill_random(x, N + 2, 4);
    for (size_t n = 0; n < N; n += n < 70 ? 1 : 401)
        for (size_t at = 0; at < 2; at++) {
            memset(h, 0x11, sizeof h);
            convert_elements(h + at, DT_BF16, x + at, DT_F32, n);
            for (size_t i = 0; i < N + 2; i++)
                assert_int_equal(h[i], i >= at && i < at + n ? bf16_from_f32(x[i]) : 0x1111);
            memset(other, 0x22, sizeof other);
            convert_elements(other + at, DT_F16, h + at, DT_BF16, n); /* through chunks */
            for (size_t i = 0; i < N + 2; i++)
                assert_int_equal(other[i], i >= at && i < at + n ? f16_from_f32(f32_from_bf16(h[i])) : 0x2222);
        }
    convert_elements(h, DT_BF16, h, DT_BF16, N); /* equal pointers: a copy */
    convert_elements(NULL, DT_F32, NULL, DT_BF16, 0);
}

static void test_nonfinite_counts(void **state)
{
    (void)state;
    enum { N = 1000 };
    float x[N];
    uint16_t b[N], h[N];
    double d[N];
    fill_random(x, N, 5);
    for (int i = 0; i < 60; i++)
        x[i * 7 + i % 3] = i % 3 == 0 ? NAN : i % 3 == 1 ? INFINITY : -INFINITY;
    convert_elements(b, DT_BF16, x, DT_F32, N);
    convert_elements(h, DT_F16, x, DT_F32, N);
    convert_elements(d, DT_F64, x, DT_F32, N);
    for (size_t from = 0; from < 20; from++) {
        size_t want = 0;
        for (size_t i = from; i < N; i++)
            want += isfinite(x[i]) ? 0u : 1u;
        assert_int_equal(count_nonfinite(x + from, DT_F32, N - from), want);
        assert_int_equal(count_nonfinite(b + from, DT_BF16, N - from), want);
        assert_int_equal(count_nonfinite(h + from, DT_F16, N - from), want);
        assert_int_equal(count_nonfinite(d + from, DT_F64, N - from), want);
        assert_int_equal(convert_plain.nonfinite_32((const uint32_t *)(const void *)(x + from), N - from), want);
        assert_int_equal(convert_plain.nonfinite_16(b + from, N - from, 0x7f80), want);
    }
    size_t many = (size_t)3 << 20; /* over the width of a vector counter */
    uint16_t *all = malloc(many * 2);
    memset(all, 0xff, many * 2);
    assert_int_equal(count_nonfinite(all, DT_BF16, many), many);
    assert_int_equal(count_nonfinite(all, DT_F32, many / 2), many / 2);
    free(all);
}

static void test_views(void **state)
{
    (void)state;
    float x[2 * 3 * 5 * 7];
    struct view v = view_4d(x, DT_F32, 2, 3, 5, 7);
    assert_true(view_count(v) == 210 && view_contiguous(v) && v.s[0] == 105 && v.s[3] == 1);
    struct view s = view_slice(v, 2, 1, 3);
    assert_true(s.p == (void *)(x + 7) && s.n[2] == 3 && s.s[1] == 35 && !view_contiguous(s) && !view_same_shape(v, s));
    assert_true(view_contiguous(view_slice(v, 0, 1, 1)) && view_count(view_slice(v, 3, 0, 0)) == 0);
    assert_true(view_count(view_1d(x, DT_F32, 9)) == 9 && view_count(view_2d(x, DT_F32, 3, 5)) == 15);
    struct view m = view_3d(x, DT_F32, 3, 5, 7);
    assert_true(m.n[3] == 1 && m.s[0] == 35 && m.s[1] == 7 && m.s[2] == 1 && view_same_shape(m, m));
    assert_true(view_none().p == NULL && view_count(view_none()) == 0);
}

static void test_dtypes_and_products(void **state)
{
    (void)state;
    for (int t = DT_NONE + 1; t < DT_COUNT; t++)
        assert_int_equal(dtype_parse(dtype_name((enum dtype)t)), t);
    assert_true(dtype_parse("torch.bfloat16") == DT_BF16 && dtype_parse("FP16") == DT_F16 && dtype_parse("float") == DT_F32);
    assert_true(!dtype_parse("") && !dtype_parse("none") && !dtype_parse("float33") && !dtype_parse("fp16|half") && !dtype_parse(NULL));
    assert_true(dtype_bytes(DT_NONE) == 0 && dtype_bytes(DT_BF16) == 2 && dtype_bytes(DT_F64) == 8 && dtype_bytes(DT_BOOL) == 1);
    int64_t r = 5;
    assert_true(!checked_mul(INT64_MAX, 2, &r) && !checked_mul(-1, 2, &r) && !checked_add(INT64_MAX, 1, &r) && !checked_add(1, -1, &r) && r == 5);
    assert_true(checked_mul(1 << 20, 1 << 20, &r) && r == (int64_t)1 << 40 && checked_add(1, 2, &r) && r == 3);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_narrowing_to_nearest_even), cmocka_unit_test(test_widening_is_exact),
        cmocka_unit_test(test_doubles_round_once),        cmocka_unit_test(test_tails_and_chunks),
        cmocka_unit_test(test_nonfinite_counts),          cmocka_unit_test(test_views),
        cmocka_unit_test(test_dtypes_and_products),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
