/* matmul at the sizes where the CPU backend uses its own packed product: every transposition, edges of every block, strides, beta
 * over NaN, and the same bits for any team and any number of rows. */
#include <math.h>

#include "harness.h"
#include "kernels/kernels.h"

static const struct backend *be;

static struct device *device_of(int threads)
{
    struct device_options o = {.threads = threads};
    struct device *dev;
    assert_ok(backend_find("cpu", &be));
    assert_ok(be->device_open(&dev, &o));
    return dev;
}

static void reference(double *c, const float *a, const float *b, int64_t M, int64_t N, int64_t K, int64_t lda, int64_t ldb, int ta, int tb,
                      double alpha, double beta)
{
    for (int64_t i = 0; i < M; i++)
        for (int64_t j = 0; j < N; j++) {
            double sum = 0.0;
            for (int64_t k = 0; k < K; k++)
                sum += (double)a[ta ? k * lda + i : i * lda + k] * (double)b[tb ? j * ldb + k : k * ldb + j];
            c[i * N + j] = alpha * sum + (beta != 0.0 ? beta * c[i * N + j] : 0.0);
        }
}

static void check(struct device *dev, int64_t M, int64_t N, int64_t K, int ta, int tb, float beta)
{
    int64_t lda = (ta ? M : K) + 3, ldb = (tb ? K : N) + 5, ldc = N + 7;
    float *a = malloc((size_t)((ta ? K : M) * lda) * 4), *b = malloc((size_t)((tb ? N : K) * ldb) * 4), *c = malloc((size_t)(M * ldc) * 4);
    float *got = malloc((size_t)(M * N) * 4);
    double *want = malloc((size_t)(M * N) * 8);
    char name[80];
    assert_true(a && b && c && got && want);
    fill_random(a, (ta ? K : M) * lda, 1);
    fill_random(b, (tb ? N : K) * ldb, 2);
    fill_nan(c, M * ldc);
    for (int64_t i = 0; i < M * N; i++) {
        want[i] = (double)(float)(i % 13);
        if (beta != 0.0f)
            c[i / N * ldc + i % N] = (float)(i % 13);
    }
    reference(want, a, b, M, N, K, lda, ldb, ta, tb, 0.5, (double)beta);
    struct view va = view_2d(a, DT_F32, ta ? K : M, lda), vb = view_2d(b, DT_F32, tb ? N : K, ldb), vc = view_2d(c, DT_F32, M, ldc);
    assert_ok(be->matmul(dev, view_slice(vc, 1, 0, N), view_slice(va, 1, 0, ta ? M : K), view_slice(vb, 1, 0, tb ? K : N), view_none(), ta, tb,
                         0.5f, beta));
    for (int64_t i = 0; i < M * N; i++)
        got[i] = c[i / N * ldc + i % N];
    for (int64_t i = 0; i < M; i++)
        for (int64_t j = N; j < ldc; j++)
            assert_true(isnan(c[i * ldc + j])); /* nothing beside the result is touched */
    snprintf(name, sizeof name, "%lld x %lld x %lld %d%d beta %g", (long long)M, (long long)N, (long long)K, ta, tb, (double)beta);
    assert_f32(name, got, want, M * N, 1e-5, 1e-5 * sqrt((double)K));
    free(a);
    free(b);
    free(c);
    free(got);
    free(want);
}

static void test_shapes(void **state)
{
    (void)state;
    static const int64_t SHAPES[][3] = {{17, 33, 2000}, {30, 200, 200}, {14, 32, 2300}, {43, 197, 129}, {1023, 31, 40}, {1030, 47, 33},
                                        {64, 224, 769}, {29, 450, 1537}, {100, 1, 12000}, {2050, 16, 31}};
    for (int threads = 1; threads <= 3; threads++) {
        struct device *dev = device_of(threads);
        for (size_t s = 0; s < COUNT_OF(SHAPES); s++)
            for (int t = 0; t < 4; t++)
                check(dev, SHAPES[s][0], SHAPES[s][1], SHAPES[s][2], t & 1, t >> 1, (s + (size_t)t) % 3 == 0 ? 1.0f : (s + (size_t)t) % 3 == 1 ? 0.0f : -0.25f);
        be->device_close(dev);
    }
}

/* The products of a batch's rows do not depend on the other rows, nor on the team. */
static void test_same_bits(void **state)
{
    (void)state;
    if (host_isa() != ISA_AVX512) {
        print_message("skipped: below AVX-512 the BLAS multiplies, whose rounding depends on the size\n");
        return;
    }
    enum { M = 120, N = 190, K = 1000, FEW = 60 };
    static float a[M * K], b[N * K], c[4][M * N];
    fill_random(a, M * K, 3);
    fill_random(b, N * K, 4);
    for (int threads = 1; threads <= 3; threads++) {
        struct device *dev = device_of(threads);
        assert_ok(be->matmul(dev, view_2d(c[threads - 1], DT_F32, M, N), view_2d(a, DT_F32, M, K), view_2d(b, DT_F32, N, K), view_none(), 0, 1, 1.0f, 0.0f));
        if (threads == 2)
            assert_ok(be->matmul(dev, view_2d(c[3], DT_F32, FEW, N), view_2d(a, DT_F32, FEW, K), view_2d(b, DT_F32, N, K), view_none(), 0, 1, 1.0f, 0.0f));
        be->device_close(dev);
    }
    assert_memory_equal(c[0], c[1], sizeof c[0]);
    assert_memory_equal(c[0], c[2], sizeof c[0]);
    assert_memory_equal(c[0], c[3], sizeof(float) * FEW * N);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_shapes), cmocka_unit_test(test_same_bits)};
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
