/* Flat ranges on the device: the gradient norm, AdamW in its three forms (f32 weights; with a bf16 copy; bf16 alone, rounded
 * stochastically), y += a x, fills, conversions; aligned ranges, unaligned ones, and lengths that are no multiple of eight. */
#include <math.h>

#include "reference/ops.h"
#include "tensor.h"

static const struct backend *k;

static void read_back(void *to, const void *from, size_t bytes)
{
    assert_ok(k->device_copy(case_device(), to, from, bytes));
    assert_ok(k->device_sync(case_device()));
}

static void *on_device(const void *bytes, size_t n)
{
    void *p = case_bytes(n);
    assert_ok(k->device_copy(case_device(), p, bytes, n));
    return p;
}

static void test_norm_and_clip(void **state)
{
    (void)state;
    k = case_backend();
    const int64_t n = 2 * SUMSQ_BLOCK + 1234;
    for (int64_t shift = 0; shift < 2; shift++) {
        double *x = tensor_doubles(n + 1), truth[3] = {0}, got[2][3];
        fill_random_f64(x, n + 1, 1);
        struct view v = tensor_vector(x, DT_F32, n + 1);
        for (int64_t i = 0; i < n; i++)
            truth[i / SUMSQ_BLOCK] += x[i + shift] * x[i + shift];
        for (int run = 0; run < 2; run++) {
            double *partial = case_bytes(3 * sizeof *partial);
            assert_ok(k->sumsq(case_device(), partial, view_f32(v) + shift, n));
            read_back(got[run], partial, sizeof got[run]);
        }
        case_expect_near("sumsq", got[0], truth, 3, 0, 1e-6);
        assert_memory_equal(got[0], got[1], sizeof got[0]);
    }
    /* one partial, loss, max_norm -> skip */
    static const struct {
        double value, loss, max_norm;
        int skip;
    } cases[] = {{2, 1, 1, 0},
                 {2, 1, 0, 0},
                 {2, 1, 1000, 0},
                 {(double)INFINITY, 1, 1, 1},
                 {(double)NAN, 1, 1, 1},
                 {2, (double)NAN, 1, 1},
                 {2, -(double)INFINITY, 1, 1}};
    const int counts[] = {1, 5, 1500};
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        for (size_t c = 0; c < COUNT_OF(counts); c++) {
            double partial[1500], sum = 0, norm64;
            for (int j = 0; j < counts[c]; j++) {
                partial[j] = j == counts[c] / 2 ? cases[i].value : 0.25 * j;
                sum += partial[j];
            }
            double *norm = case_bytes(sizeof *norm);
            float *clip = case_bytes(sizeof *clip), clip32;
            int32_t *skip = case_bytes(sizeof *skip), skip32;
            assert_ok(k->grad_clip(case_device(), norm, clip, skip, on_device(partial, (size_t)counts[c] * sizeof *partial), counts[c],
                                   on_device(&cases[i].loss, sizeof(double)), cases[i].max_norm));
            read_back(&norm64, norm, sizeof norm64), read_back(&clip32, clip, sizeof clip32), read_back(&skip32, skip, sizeof skip32);
            assert_int_equal(skip32, cases[i].skip);
            const double want = skip32 || cases[i].max_norm <= 0 ? 1 : fmin(1, cases[i].max_norm / sqrt(sum));
            assert_true(fabs((double)clip32 - want) <= 1e-6 * want);
            assert_true(isfinite(sum) ? fabs(norm64 - sqrt(sum)) <= 1e-12 * norm64 : !isfinite(norm64));
        }
    assert_int_equal(case_faults(), 0);
    tensors_free();
}

enum form { MASTER, COPY, LOW_ALONE };

/* What the device must do to the f32 bits of a weight kept in bf16 alone. */
static uint16_t round_by_philox(float x, uint64_t seed, uint64_t step, uint64_t element)
{
    const struct random_u32x4 r = random_philox(seed, STREAM_ROUNDING, step, element / 8);
    const uint32_t bits = r.v[element % 8 / 2] >> (element % 2 ? 16 : 0) & 0xffffu;
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return (uint16_t)((u + bits) >> 16);
}

static void one_adamw(enum form form, int64_t n, int64_t shift, int64_t first)
{
    char name[64];
    snprintf(name, sizeof name, "adamw form %d n %d shift %d first %d", (int)form, (int)n, (int)shift, (int)first);
    const enum dtype weight = form == LOW_ALONE ? DT_BF16 : DT_F32;
    double *p = tensor_doubles(n + 8), *g = tensor_doubles(n + 8), *m = tensor_doubles(n + 8), *v = tensor_doubles(n + 8);
    fill_random_f64(p, n + 8, 1), fill_random_f64(m, n + 8, 2), fill_random_f64(v, n + 8, 3);
    for (int64_t i = 0; i < n + 8; i++)
        v[i] *= v[i];
    struct view vp = tensor_vector(p, weight, n + 8), vm = tensor_vector(m, DT_F32, n + 8), vv = tensor_vector(v, DT_F32, n + 8);
    const int64_t room = n + 8;
    struct view low = form == COPY ? case_output(DT_BF16, 1, &room) : vp;
    const float clip = 0.25f;
    int32_t skip = 0;
    struct adamw_args args = {.lr = 0.01f,
                              .beta1 = 0.9f,
                              .beta2 = 0.95f,
                              .eps = 1e-8f,
                              .weight_decay = 0.1f,
                              .clip = on_device(&clip, sizeof clip),
                              .zero_grad = 1,
                              .seed = 77,
                              .first = first};
    if (form != MASTER)
        args.low = (uint16_t *)low.p + shift;
    float *p32 = form == LOW_ALONE ? NULL : view_f32(vp) + shift;
    for (int step = 1; step <= 3; step++) {
        args.step = step;
        fill_random_f64(g, n + 8, 40 + (uint64_t)step);
        struct view vg = tensor_vector(g, DT_F32, n + 8);
        double *was = form == LOW_ALONE ? tensor_get_view(vp) : NULL;
        for (int64_t i = shift; i < n + shift; i++) {
            if (was != NULL)
                p[i] = was[i];
            ref_adamw(p + i, m + i, v + i, 0.25 * g[i], (double)args.lr, (double)args.beta1, (double)args.beta2, (double)args.eps,
                      (double)args.weight_decay, step);
        }
        args.skip = on_device(&skip, sizeof skip);
        assert_ok(k->adamw(case_device(), p32, view_f32(vg) + shift, view_f32(vm) + shift, view_f32(vv) + shift, n, &args));
        double *left = tensor_get_view(vg), *now = tensor_get_view(vp);
        for (int64_t i = 0; i < n + 8; i++)
            assert_true(left[i] == (i >= shift && i < n + shift ? 0 : g[i])); /* zeroed, and nothing outside the range */
        if (form == LOW_ALONE)
            for (int64_t i = shift; i < n + shift; i++) {
                /* The device's f32 value differs from the double in the last bits, which may cross the rounding threshold: one of two. */
                const double spread = 4e-6 * fabs(p[i]) + 1e-7;
                const double lo =
                    (double)f32_from_bf16(round_by_philox((float)(p[i] - spread), args.seed, (uint64_t)step, (uint64_t)(first + i - shift)));
                const double hi =
                    (double)f32_from_bf16(round_by_philox((float)(p[i] + spread), args.seed, (uint64_t)step, (uint64_t)(first + i - shift)));
                assert_true(now[i] == lo || now[i] == hi);
            }
        else
            case_expect_near(name, now, p, (size_t)(n + 8), 1e-6, 1e-5);
    }
    case_expect_near(name, tensor_get_view(vm), m, (size_t)(n + 8), 1e-6, 1e-5);
    case_expect_near(name, tensor_get_view(vv), v, (size_t)(n + 8), 1e-6, 1e-5);
    double *final = tensor_get_view(vp);
    if (form == COPY) {
        double *copy = tensor_get_view(low);
        for (int64_t i = 0; i < n + 8; i++)
            assert_true(i >= shift && i < n + shift ? copy[i] == tensor_round(final[i], DT_BF16) : isnan(copy[i]));
    }
    skip = 1; /* weights and moments stay, gradients are zeroed */
    args.skip = on_device(&skip, sizeof skip);
    struct view vg = tensor_vector(g, DT_F32, n + 8);
    double *m_was = tensor_get_view(vm);
    assert_ok(k->adamw(case_device(), p32, view_f32(vg) + shift, view_f32(vm) + shift, view_f32(vv) + shift, n, &args));
    assert_memory_equal(tensor_get_view(vp), final, (size_t)(n + 8) * sizeof *final);
    assert_memory_equal(tensor_get_view(vm), m_was, (size_t)(n + 8) * sizeof *final);
    assert_true(tensor_get_view(vg)[shift] == 0);
    args.zero_grad = 0;
    vg = tensor_vector(g, DT_F32, n + 8);
    assert_ok(k->adamw(case_device(), p32, view_f32(vg) + shift, view_f32(vm) + shift, view_f32(vv) + shift, n, &args));
    assert_true(tensor_get_view(vg)[shift] == g[shift]);
    assert_int_equal(case_faults(), 0);
    tensors_free();
}

static void test_adamw(void **state)
{
    (void)state;
    k = case_backend();
    for (int form = MASTER; form <= LOW_ALONE; form++) {
        one_adamw((enum form)form, 1, 0, 0);
        one_adamw((enum form)form, 5000, 0, 0);
        one_adamw((enum form)form, 2051, 1, 13);
        one_adamw((enum form)form, 2051, 0, 5);
        one_adamw((enum form)form, 64, 4, 1 << 20); /* f32 at 16 bytes, bf16 at 8 */
    }
    struct adamw_args args = {.step = 0};
    assert_refused(k->adamw(case_device(), NULL, NULL, NULL, NULL, 1, &args), ERR_INTERNAL, "step 0");
    args.step = 1;
    assert_refused(k->adamw(case_device(), NULL, NULL, NULL, NULL, 1, &args), ERR_INTERNAL, "neither");
}

/* Stochastic rounding has no bias: with gradients 0 and only decay, the mean over many elements follows the exact value. And a range
 * cut in two gives the bits of the whole. */
static void test_rounding(void **state)
{
    (void)state;
    k = case_backend();
    const int64_t n = 16384;
    double *ones = tensor_doubles(n), *zero = tensor_doubles(n), mean = 0;
    for (int64_t i = 0; i < n; i++)
        ones[i] = 1;
    struct adamw_args args = {.lr = 0.001f, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .weight_decay = 1, .step = 1, .seed = 5};
    double *got[2];
    for (int cut = 0; cut < 2; cut++) {
        struct view p = tensor_vector(ones, DT_BF16, n), g = tensor_vector(zero, DT_F32, n), m = tensor_vector(zero, DT_F32, n),
                    v = tensor_vector(zero, DT_F32, n);
        const int64_t at[3] = {0, cut ? 1003 : n, n};
        for (int part = 0; part < 2; part++) {
            args.low = (uint16_t *)p.p + at[part], args.first = at[part];
            assert_ok(k->adamw(case_device(), NULL, view_f32(g) + at[part], view_f32(m) + at[part], view_f32(v) + at[part], at[part + 1] - at[part],
                               &args));
        }
        got[cut] = tensor_get_view(p);
    }
    assert_memory_equal(got[0], got[1], (size_t)n * sizeof(double));
    for (int64_t i = 0; i < n; i++)
        mean += got[0][i] / (double)n;
    /* 0.999 lies between bf16 neighbours 0.99609375 and 1: deviation of the mean of 16384 is about 1.4e-5 */
    assert_true(fabs(mean - 0.999) < 8e-5);
    assert_int_equal(case_faults(), 0);
    tensors_free();
}

static void test_elementwise(void **state)
{
    (void)state;
    k = case_backend();
    static const int64_t sizes[] = {1, 7, 2048, 5001};
    for (size_t s = 0; s < COUNT_OF(sizes); s++)
        for (int64_t shift = 0; shift < 2; shift++) {
            const int64_t n = sizes[s], room = n + 2;
            double *x = tensor_doubles(room), *y = tensor_doubles(room), *want = tensor_doubles(room);
            fill_random_f64(x, room, 1), fill_random_f64(y, room, 2);
            struct view vx = tensor_vector(x, DT_F32, room), vy = tensor_vector(y, DT_F32, room);
            for (int64_t i = 0; i < room; i++)
                want[i] = y[i] + (i >= shift && i < n + shift ? 0.5 * x[i] : 0);
            assert_ok(k->axpy(case_device(), view_f32(vy) + shift, view_f32(vx) + shift, 0.5f, n));
            case_expect_near("axpy", tensor_get_view(vy), want, (size_t)room, 1e-7, 1e-6);
            assert_ok(k->fill(case_device(), view_f32(vy) + shift, 3.5f, n));
            for (int64_t i = shift; i < n + shift; i++)
                want[i] = 3.5;
            case_expect_near("fill", tensor_get_view(vy), want, (size_t)room, 1e-7, 1e-6);

            struct view low = case_output(DT_BF16, 1, &room), wide = case_output(DT_F32, 1, &room), copy = case_output(DT_BF16, 1, &room);
            uint16_t *low16 = (uint16_t *)low.p + shift, *copy16 = (uint16_t *)copy.p + shift;
            assert_ok(k->cast(case_device(), low16, DT_BF16, view_f32(vx) + shift, DT_F32, n));
            assert_ok(k->cast(case_device(), view_f32(wide) + shift, DT_F32, low16, DT_BF16, n));
            assert_ok(k->cast(case_device(), copy16, DT_BF16, low16, DT_BF16, n));
            double *a = tensor_get_view(low), *b = tensor_get_view(wide), *c = tensor_get_view(copy);
            for (int64_t i = 0; i < room; i++) {
                const int inside = i >= shift && i < n + shift;
                assert_true(inside ? a[i] == tensor_round(x[i], DT_BF16) : isnan(a[i]));
                assert_true(inside ? b[i] == a[i] && c[i] == a[i] : isnan(b[i]) && isnan(c[i]));
            }
            assert_int_equal(case_faults(), 0);
            tensors_free();
        }
    /* Bit patterns survive: rounding to even, infinities, NaN. */
    double x[] = {1 + 0x1p-8, 1 + 3 * 0x1p-8, (double)INFINITY, -(double)INFINITY, (double)NAN, 0x1p-130, -0.0, 3e38};
    const int64_t n = COUNT_OF(x);
    struct view wide = tensor_vector(x, DT_F32, n), low = case_output(DT_BF16, 1, &n);
    assert_ok(k->cast(case_device(), low.p, DT_BF16, wide.p, DT_F32, n));
    double *got = tensor_get_view(low);
    for (int64_t i = 0; i < n; i++)
        assert_true(isnan(x[i]) ? isnan(got[i]) : got[i] == tensor_round(x[i], DT_BF16));
    assert_refused(k->cast(case_device(), low.p, DT_F16, wide.p, DT_F32, n), ERR_UNSUPPORTED, "f32 to f16");
    tensors_free();
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_norm_and_clip), cmocka_unit_test(test_adamw), cmocka_unit_test(test_rounding),
                                       cmocka_unit_test(test_elementwise)};
    return case_main(argc, argv, tests, COUNT_OF(tests));
}
