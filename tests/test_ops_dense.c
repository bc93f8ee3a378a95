/* matmul and bias_grad against the double reference: every transposition, few and many rows, f32 and bf16 weights, strides. */
#include <math.h>

#include "ops.h"
#include "reference/ops.h"

void harness_boot(int argc, char **argv) { kernels_boot(argc, argv); }

static void one_matmul(struct device *dev, int64_t M, int64_t N, int64_t K, int ta, int tb, int bf16, int with_bias, float alpha, float beta)
{
    const int64_t gap = 5;
    struct view a = ops_rows(ta ? K : M, ta ? M : K, gap, 1), b = ops_rows(tb ? N : K, tb ? K : N, bf16 ? 0 : gap, 2);
    struct view c = ops_rows(M, N, gap, beta != 0 ? 3 : 0), bias = ops_vector(N, 4), w = b;
    if (bf16)
        w = ops_bf16(b);
    double *a64 = ops_f64(a), *b64 = ops_f64(b), *c64 = ops_f64(c), *bias64 = ops_f64(bias);
    ref_matmul(c64, a64, b64, with_bias ? bias64 : NULL, M, N, K, ta, tb, (double)alpha, (double)beta);
    assert_ok(cpu_matmul(dev, c, a, w, with_bias ? bias : view_none(), ta, tb, alpha, beta));
    char name[128];
    snprintf(name, sizeof name, "%s M %d N %d K %d ta %d tb %d bf16 %d bias %d alpha %g beta %g", dev->loops->name, (int)M, (int)N, (int)K, ta, tb,
             bf16, with_bias, (double)alpha, (double)beta);
    assert_true(ops_compare(name, c, c64, 2e-5, 2e-6 * sqrt((double)K) + 5e-6)); /* sums of K normals */
    assert_true(ops_gaps_ok(c, gap));
    if (bf16)
        free(w.p);
    free(a.p), free(b.p), free(c.p), free(bias.p), free(a64), free(b64), free(c64), free(bias64);
}

static void test_matmul_few_rows(void **state)
{
    (void)state;
    FOR_EACH_ISA(isa) {
        struct device *dev = ops_device((enum isa)isa, 2);
        for (int64_t M = 1; M <= 20; M++)
            for (int bf16 = 0; bf16 < 2; bf16++) {
                one_matmul(dev, M, 37, 67, 0, 1, bf16, M % 2 == 0, 1, 0);
                one_matmul(dev, M, 130, 256, 0, 1, bf16, M % 3 == 0, 0.5f, M % 2 ? 1.0f : 0.25f);
                one_matmul(dev, M, 3, 7, 0, 1, bf16, 1, 2, 0);
            }
        one_matmul(dev, 1, 300, 500, 0, 1, 1, 1, 1, 0); /* enough bytes for the whole team */
        one_matmul(dev, 3, 301, 259, 0, 1, 0, 1, 1, 1);
        cpu_device_close(dev);
    }
}

static void test_matmul_many_rows(void **state)
{
    (void)state;
    FOR_EACH_ISA(isa) {
        struct device *dev = ops_device((enum isa)isa, 2);
        for (int ta = 0; ta < 2; ta++)
            for (int tb = 0; tb < 2; tb++)
                for (int bias = 0; bias < 2; bias++) {
                    one_matmul(dev, 45, 33, 70, ta, tb, 0, bias, 1, 0);
                    one_matmul(dev, 5, 33, 70, ta, tb, 0, bias, 0.5f, 1);
                    one_matmul(dev, 129, 64, 31, ta, tb, 0, bias, -1, 0.5f);
                }
        one_matmul(dev, 45, 333, 70, 0, 1, 1, 1, 1, 0);
        one_matmul(dev, 45, 333, 70, 1, 1, 1, 0, 1, 1);
        one_matmul(dev, 17, 700, 4097, 0, 1, 1, 0, 1, 0); /* more than one widened block */
        cpu_device_close(dev);
    }
}

static void test_bias_grad(void **state)
{
    (void)state;
    FOR_EACH_ISA(isa)
        for (int threads = 1; threads <= 2; threads++) {
            struct device *dev = ops_device((enum isa)isa, threads);
            for (int64_t N = 1; N < 2000; N = N * 3 + 2) {
                const int64_t M = 131;
                struct view dy = ops_rows(M, N, 3, 7), db = ops_vector(N, 8);
                double *dy64 = ops_f64(dy), *want = ops_f64(db);
                for (int64_t i = 0; i < M * N; i++)
                    want[i % N] += dy64[i];
                assert_ok(cpu_bias_grad(dev, db, dy));
                assert_true(ops_compare("db", db, want, 1e-5, 1e-5));
                free(dy.p), free(db.p), free(dy64), free(want);
            }
            cpu_device_close(dev);
        }
}

static void test_matmul_refuses(void **state)
{
    (void)state;
    struct device *dev = ops_device(host_isa(), 1);
    struct view a = ops_rows(4, 8, 0, 1), b = ops_rows(6, 8, 0, 2), c = ops_rows(4, 6, 0, 3), w = ops_bf16(b), wrong = ops_rows(4, 5, 0, 4);
    assert_refused(cpu_matmul(dev, wrong, a, b, view_none(), 0, 1, 1, 0), ERR_UNSUPPORTED, "axis 0 of b is 6, must be 5");
    assert_refused(cpu_matmul(dev, c, a, b, view_none(), 0, 0, 1, 0), ERR_UNSUPPORTED, "axis 0 of b");
    assert_refused(cpu_matmul(dev, c, view_2d(w.p, DT_BF16, 4, 8), b, view_none(), 0, 1, 1, 0), ERR_UNSUPPORTED, "a is bf16");
    assert_refused(cpu_matmul(dev, c, a, view_2d(w.p, DT_BF16, 8, 6), view_none(), 0, 0, 1, 0), ERR_UNSUPPORTED, "b is bf16");
    assert_refused(cpu_matmul(dev, c, view_none(), b, view_none(), 0, 1, 1, 0), ERR_UNSUPPORTED, "a is missing");
    assert_refused(cpu_bias_grad(dev, view_1d(b.p, DT_F32, 5), c), ERR_UNSUPPORTED, "db");
    struct view slanted = b;
    slanted.s[1] = 2;
    assert_refused(cpu_matmul(dev, c, a, slanted, view_none(), 0, 1, 1, 0), ERR_UNSUPPORTED, "stride 2");
    free(a.p), free(b.p), free(c.p), free(w.p), free(wrong.p);
    cpu_device_close(dev);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_matmul_few_rows), cmocka_unit_test(test_matmul_many_rows),
                                       cmocka_unit_test(test_bias_grad), cmocka_unit_test(test_matmul_refuses)};
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
