/* Cross-entropy with the output projection on the device: loss, log-probabilities, gradients. f32 against the double reference and its
 * gradient in closed form (held against differences); bf16 by the 2x rule, the plain computation being the same steps with the
 * logits' gradient rounded to bf16. */
#include <math.h>

#include "reference/ops.h"
#include "tensor.h"

/* Of inv * loss: dx [N,C], dw [V,C], db [V] (NULL: not wanted), all added to. low: gradients of the logits are rounded to bf16. */
static void xent_gradient(double *dx, double *dw, double *db, const double *x, const double *w, const double *bias, const int32_t *targets, int64_t N,
                          int64_t C, int64_t V, double scale, double cap, double inv, int low)
{
    double *z = tensor_doubles(V);
    for (int64_t n = 0; n < N; n++) {
        if (targets[n] < 0 || targets[n] >= V)
            continue;
        double max = -HUGE_VAL, sum = 0;
        for (int64_t v = 0; v < V; v++) {
            z[v] = bias != NULL ? bias[v] : 0;
            for (int64_t c = 0; c < C; c++)
                z[v] += x[n * C + c] * w[v * C + c];
            z[v] *= scale;
            if (cap > 0)
                z[v] = cap * tanh(z[v] / cap);
            max = fmax(max, z[v]);
        }
        for (int64_t v = 0; v < V; v++)
            sum += exp(z[v] - max);
        for (int64_t v = 0; v < V; v++) {
            double d = (exp(z[v] - max) / sum - (v == targets[n])) * inv * scale * (cap > 0 ? 1 - z[v] / cap * (z[v] / cap) : 1);
            d = low ? tensor_round(d, DT_BF16) : d;
            for (int64_t c = 0; c < C; c++) {
                dx[n * C + c] += d * w[v * C + c];
                dw[v * C + c] += d * x[n * C + c];
            }
            if (db != NULL)
                db[v] += d;
        }
    }
}

static void test_closed_form(void **state)
{
    (void)state;
    enum { N = 3, C = 4, V = 5 };
    const double h = 1e-5;
    const int32_t targets[N] = {2, -1, 4};
    double all[N * C + V * C + V], got[N * C + V * C + V] = {0}, want[N * C + V * C + V];
    fill_random_f64(all, N * C + V * C + V, 1);
    for (int cap = 0; cap < 3; cap += 2) {
        memset(got, 0, sizeof got);
        double *x = all, *w = all + N * C, *b = w + V * C;
        xent_gradient(got, got + N * C, got + N * C + V * C, x, w, b, targets, N, C, V, 0.7, cap, 1, 0);
        for (int i = 0; i < N * C + V * C + V; i++) {
            const double was = all[i];
            all[i] = was + h;
            want[i] = ref_xent(NULL, x, w, b, targets, N, C, V, 0.7, cap);
            all[i] = was - h;
            want[i] = (want[i] - ref_xent(NULL, x, w, b, targets, N, C, V, 0.7, cap)) / (2 * h);
            all[i] = was;
        }
        case_expect_near("xent gradient by differences", got, want, COUNT_OF(want), 1e-7, 1e-7);
    }
    tensors_free();
}

struct shape {
    int64_t N, C, V;
    int bias;
    float scale, cap;
    int gradients;
};

static void one_xent(enum dtype type, struct shape s, int64_t gap)
{
    const struct backend *k = case_backend();
    struct device *dev = case_device();
    const int64_t N = s.N, C = s.C, V = s.V;
    char name[128];
    snprintf(name, sizeof name, "xent %s N %d C %d V %d bias %d scale %g cap %g gap %d", dtype_name(type), (int)N, (int)C, (int)V, s.bias,
             (double)s.scale, (double)s.cap, (int)gap);
    struct tensor x = tensor_random(type, N, C, gap, 1, 1), w = tensor_random(type, V, C, gap, 2, 1);
    double *b64 = tensor_doubles(V), *logp64 = tensor_doubles(N);
    fill_random_f64(b64, V, 3);
    struct view bias = tensor_vector(b64, DT_F32, V);
    int32_t *targets = calloc((size_t)N, sizeof *targets);
    int64_t valid = 0, seven = 7;
    for (int64_t n = 0; n < N; n++) {
        targets[n] = n % 4 == 1 ? -1 : (int32_t)random_int(6, (uint64_t)n, 0, V - 1);
        valid += targets[n] >= 0;
    }
    const double *with = s.bias ? b64 : NULL, want = ref_xent(logp64, x.x, w.x, with, targets, N, C, V, (double)s.scale, (double)s.cap),
                 hundred = 100;
    const float inv = 1.0f / (float)(valid ? valid : 1);
    float *inv_device = case_bytes(sizeof inv);
    assert_ok(k->device_copy(dev, inv_device, &inv, sizeof inv));
    const struct view vt = case_upload_i32(targets, 1, &N);
    double *bits[2][4] = {{NULL}};
    for (int run = 0; run < 2; run++) {
        struct tensor dx = tensor_output(type, N, C, gap), dw = tensor_random(DT_F32, V, C, gap, 4, 1);
        double *db64 = tensor_doubles(V), loss_got;
        int64_t count_got;
        fill_random_f64(db64, V, 5);
        struct view db = tensor_vector(db64, DT_F32, V), logp = case_output(DT_F32, 1, &N);
        double *loss = case_bytes(sizeof *loss);
        int64_t *count = case_bytes(sizeof *count);
        assert_ok(k->device_copy(dev, loss, &hundred, sizeof hundred));
        assert_ok(k->device_copy(dev, count, &seven, sizeof seven));
        struct xent_args args = {.logit_scale = s.scale,
                                 .logit_softcap = s.cap,
                                 .inv_count = inv_device,
                                 .bias = s.bias ? bias : view_none(),
                                 .dbias = s.bias && s.gradients ? db : view_none()};
        void *scratch = case_bytes(k->xent_scratch(dev, N, C, V, 0));
        assert_ok(k->xent(dev, loss, count, logp, s.gradients ? dx.v : view_none(), s.gradients ? dw.v : view_none(), x.v, w.v, vt, &args, scratch));
        assert_ok(k->device_copy(dev, &loss_got, loss, sizeof loss_got));
        assert_ok(k->device_copy(dev, &count_got, count, sizeof count_got));
        assert_ok(k->device_sync(dev));
        assert_int_equal(count_got, 7 + valid);
        bits[run][0] = tensor_get_view(logp);
        case_expect_near(name, bits[run][0], logp64, (size_t)N, 1e-5, 1e-5);
        case_expect_near(name, (double[]){loss_got - 100}, &want, 1, 1e-5, 1e-6);
        if (s.gradients) {
            double *dx64 = tensor_doubles(N * C), *dw64 = tensor_doubles(V * C), *dxp = tensor_doubles(N * C), *dwp = tensor_doubles(V * C);
            double *dbt = tensor_doubles(V), *dbp = tensor_doubles(V);
            memcpy(dw64, dw.x, (size_t)(V * C) * 8), memcpy(dwp, dw.x, (size_t)(V * C) * 8), memcpy(dbt, db64, (size_t)V * 8),
                memcpy(dbp, db64, (size_t)V * 8);
            xent_gradient(dx64, dw64, dbt, x.x, w.x, with, targets, N, C, V, (double)s.scale, (double)s.cap, (double)inv, 0);
            xent_gradient(dxp, dwp, dbp, x.x, w.x, with, targets, N, C, V, (double)s.scale, (double)s.cap, (double)inv, type == DT_BF16);
            const double floor = 1e-6 + 1e-9 * (double)V; /* f32 sums over the vocabulary */
            for (int64_t i = 0; i < N * C; i++)
                dxp[i] = tensor_round(dxp[i], type);
            bits[run][1] = tensor_get(dx), bits[run][2] = tensor_get(dw), bits[run][3] = tensor_get_view(db);
            case_expect_2x(name, bits[run][1], dx64, dxp, (size_t)(N * C), floor);
            case_expect_2x(name, bits[run][2], dw64, dwp, (size_t)(V * C), floor);
            if (s.bias)
                case_expect_2x(name, bits[run][3], dbt, dbp, (size_t)V, floor);
            assert_true(tensor_gaps_ok(dx) && tensor_gaps_ok(dw));
            if (run == 0 && N < 30) { /* a frozen head: dx alone, the same bits */
                struct tensor alone = tensor_output(type, N, C, gap);
                args.dbias = view_none();
                assert_ok(k->xent(dev, loss, count, view_none(), alone.v, view_none(), x.v, w.v, vt, &args, scratch));
                assert_memory_equal(tensor_get(alone), bits[0][1], (size_t)(N * C) * 8);
            }
        }
        if (run == 1)
            for (int i = 0; i < (s.gradients ? 4 : 1); i++)
                assert_memory_equal(bits[0][i], bits[1][i], (size_t)(i == 0 ? N : i == 1 ? N * C : i == 2 ? V * C : V) * 8);
    }
    assert_int_equal(case_faults(), 0);
    free(targets);
    tensors_free();
}

static void test_xent(void **state)
{
    (void)state;
    static const struct shape shapes[] = {{5, 7, 11, 0, 1, 0, 1},   {33, 8, 33, 1, 1, 0, 1},   {19, 5, 64, 1, 0.7f, 3, 1},
                                          {1, 24, 150, 0, 2, 0, 1}, {3, 16, 2, 1, 1, 30, 1},   {9, 24, 517, 1, 0.5f, 5, 0},
                                          {5, 8, 2500, 1, 1, 0, 1}, {2, 8, 16500, 0, 1, 0, 1}, {2, 8, 17001, 1, 1, 10, 1},
                                          {33, 1, 1, 0, 1, 0, 1},   {300, 8, 150, 1, 1, 0, 1}}; /* the last: three chunks in the executor, where
                                                                                                   chunks are small */
    for (size_t i = 0; i < COUNT_OF(shapes); i++)
        for (int bf16 = 0; bf16 < 2; bf16++)
            one_xent(bf16 ? DT_BF16 : DT_F32, shapes[i], i % 2 ? 8 : 3);
}

/* Targets outside the vocabulary count as masked and turn the loss into NaN; so do logits that are not finite. */
static void test_bad_targets(void **state)
{
    (void)state;
    const struct backend *k = case_backend();
    struct device *dev = case_device();
    const int64_t N = 4, C = 8, V = 20;
    static const int32_t bad[][4] = {{3, 20, -1, 1}, {3, -2, -1, 1}, {3, INT32_MAX, -1, 1}, {3, 0, -1, 1}};
    for (int i = 0; i < 5; i++)
        for (int bf16 = 0; bf16 < 2; bf16++) {
            const enum dtype type = bf16 ? DT_BF16 : DT_F32;
            double *x64 = tensor_doubles(N * C);
            fill_random_f64(x64, N * C, 1);
            if (i == 4)
                x64[9] = (double)NAN;
            struct tensor x = tensor_of(type, N, C, 0, x64), w = tensor_random(type, V, C, 0, 2, 1), dx = tensor_output(type, N, C, 0);
            struct tensor dw = tensor_random(DT_F32, V, C, 0, 4, 1);
            const double zero = 0;
            const int64_t none = 0;
            const float one = 1;
            double *loss = case_bytes(8), got;
            int64_t *count = case_bytes(8), n;
            float *inv = case_bytes(4);
            assert_ok(k->device_copy(dev, loss, &zero, 8));
            assert_ok(k->device_copy(dev, count, &none, 8));
            assert_ok(k->device_copy(dev, inv, &one, 4));
            const struct xent_args args = {.logit_scale = 1, .inv_count = inv};
            struct view logp = case_output(DT_F32, 1, &N);
            assert_ok(k->xent(dev, loss, count, logp, dx.v, dw.v, x.v, w.v, case_upload_i32(bad[i < 3 ? i : 3], 1, &N), &args,
                              case_bytes(k->xent_scratch(dev, N, C, V, 0))));
            assert_ok(k->device_copy(dev, &got, loss, 8));
            assert_ok(k->device_copy(dev, &n, count, 8));
            assert_ok(k->device_sync(dev));
            assert_true(isnan(got) == (i != 3));
            assert_int_equal(n, i < 3 ? 2 : 3);
            double *d = tensor_get(dx), *p = tensor_get_view(logp);
            for (int64_t c = 0; c < C; c++)
                assert_true(isfinite(d[c]) && (i == 3 ? d[C + c] != 0 : i == 4 ? isnan(d[C + c]) : d[C + c] == 0));
            assert_true(i == 3 ? p[1] < 0 : i == 4 ? isnan(p[1]) : p[1] == 0);
            assert_int_equal(case_faults(), 0);
            tensors_free();
        }
}

/* A model reserves scratch once, for its largest pass; a smaller one must fit in it. And the refusals. */
static void test_scratch(void **state)
{
    (void)state;
    const struct backend *k = case_backend();
    static const int64_t vocabularies[] = {256, 1000, 32000, 128256, 262144};
    for (size_t v = 0; v < COUNT_OF(vocabularies); v++)
        for (int64_t N = 1, largest = 0; N < 9000; N += N < 300 ? 1 : 97) {
            const int64_t bytes = (int64_t)k->xent_scratch(case_device(), N, 64, vocabularies[v], 0);
            assert_true(bytes >= largest && bytes <= ((int64_t)513 << 20));
            largest = bytes;
        }
    struct tensor x = tensor_random(DT_F32, 2, 8, 0, 1, 1), w = tensor_random(DT_BF16, 5, 8, 0, 1, 1);
    const int32_t zeros[2] = {0, 0};
    const int64_t two = 2;
    struct xent_args args = {.logit_scale = 1};
    const struct view t = case_upload_i32(zeros, 1, &two);
    assert_refused(k->xent(case_device(), NULL, NULL, view_none(), view_none(), view_none(), x.v, w.v, t, &args, NULL), ERR_UNSUPPORTED, "w is bf16");
    assert_refused(k->xent(case_device(), NULL, NULL, view_none(), x.v, view_none(), x.v, x.v, t, &args, NULL), ERR_UNSUPPORTED, "inv_count");
    assert_refused(k->xent(case_device(), NULL, NULL, view_none(), view_none(), x.v, x.v, x.v, t, &args, NULL), ERR_UNSUPPORTED, "without");
    tensors_free();
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_closed_form), cmocka_unit_test(test_xent), cmocka_unit_test(test_bad_targets),
                                       cmocka_unit_test(test_scratch)};
    return case_main(argc, argv, tests, COUNT_OF(tests));
}
