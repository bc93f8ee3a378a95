/* The likeliest tokens on the CPU against the double reference, for every instruction set: order, ties, log-probabilities, strides, chunks,
 * rows that are not numbers, refusals. And what xent makes of them. */
#include <math.h>

#include "ops.h"
#include "reference/teacher.h"

void harness_boot(int argc, char **argv) { kernels_boot(argc, argv); }

struct form {
    int64_t N, C, V, K;
    float scale, cap, tau;
    int bias, bf16;
};

static struct view ids_rows(int64_t N, int64_t K, int64_t gap)
{
    int32_t *p = malloc((size_t)(N * (K + gap)) * 4);
    for (int64_t i = 0; i < N * (K + gap); i++)
        p[i] = -77;
    struct view v = view_2d(p, DT_I32, N, K);
    v.s[0] = K + gap;
    return v;
}

static int32_t id_at(struct view v, int64_t n, int64_t k) { return ((int32_t *)v.p)[n * v.s[0] + k]; }

static enum code call(struct device *dev, struct view ids, struct view logp, struct view x, struct view w, struct view bias, const struct form *f)
{
    const size_t bytes = cpu_topk_scratch(dev, f->N, f->C, f->V, f->K);
    char *scratch = aligned_alloc(64, (bytes + 127) / 64 * 64);
    memset(scratch, 0xff, bytes);
    scratch[bytes] = 0x5a;
    const enum code c = cpu_topk(dev, ids, logp, x, w, bias, f->scale, f->cap, f->tau, scratch);
    assert_int_equal(scratch[bytes], 0x5a);
    free(scratch);
    return c;
}

static void one(struct device *dev, struct form f)
{
    struct view x = ops_rows(f.N, f.C, 3, 1), w = ops_rows(f.V, f.C, f.bf16 ? 0 : 5, 2), bias = ops_vector(f.V, 3), logp = ops_rows(f.N, f.K, 2, 0);
    struct view ids = ids_rows(f.N, f.K, 3), w16 = f.bf16 ? ops_bf16(w) : view_none();
    double *x64 = ops_f64(x), *w64 = ops_f64(w), *b64 = ops_f64(bias), *z = calloc((size_t)f.V, 8), *want = calloc((size_t)(f.N * f.K), 8);
    int32_t *order = calloc((size_t)f.V, 4);
    const struct ref_head head = {x64, w64, f.bias ? b64 : NULL, f.C, (double)f.scale, (double)f.cap};
    char name[128];
    snprintf(name, sizeof name, "%s N %d C %d V %d K %d scale %g cap %g tau %g", dev->loops->name, (int)f.N, (int)f.C, (int)f.V, (int)f.K, (double)f.scale,
             (double)f.cap, (double)f.tau);
    assert_ok(call(dev, ids, logp, x, f.bf16 ? w16 : w, f.bias ? bias : view_none(), &f));
    for (int64_t n = 0; n < f.N; n++) {
        ref_logits(z, &head, n, f.V);
        ref_topk(order, want + n * f.K, z, f.V, f.K, (double)f.tau);
        for (int64_t k = 0; k < f.K; k++) {
            const int32_t id = id_at(ids, n, k); /* rounding may swap logits as near as this */
            assert_true(id >= 0 && id < f.V && fabs(z[id] - z[order[k]]) <= 2e-6 * (1 + fabs(z[id])));
            for (int64_t j = 0; j < k; j++)
                assert_true(id_at(ids, n, j) != id);
        }
        for (int64_t k = f.K; k < f.K + 3; k++)
            assert_int_equal(id_at(ids, n, k), -77);
    }
    assert_true(ops_compare(name, logp, want, 3e-6, 5e-6));
    assert_true(ops_gaps_ok(logp, 2));
    free(x.p), free(w.p), free(bias.p), free(logp.p), free(ids.p), free(w16.p), free(x64), free(w64), free(b64), free(z), free(want), free(order);
}

static void test_topk(void **state)
{
    (void)state;
    static const struct form forms[] = {{5, 7, 11, 1, 1, 0, 1, 0, 0},      {21, 8, 33, 33, 1, 0, 1, 1, 0},   {9, 5, 64, 7, 0.7f, 3, 2, 1, 0},
                                        {6, 5, 150, 32, 2, 0, 0.5f, 0, 0}, {2, 3, 1, 1, 1, 0, 2, 1, 0},      {40, 24, 1003, 16, 1, 5, 1, 1, 1},
                                        {2100, 4, 77, 3, 1, 0, 1, 0, 0},   {17, 24, 500, 499, 1, 0, 1, 0, 1}};
    FOR_EACH_ISA(isa) {
        struct device *dev = ops_device((enum isa)isa, 2);
        for (size_t i = 0; i < COUNT_OF(forms); i++)
            one(dev, forms[i]);
        cpu_device_close(dev);
    }
}

/* Logits from the bias alone: ties by rising id, whatever comes first; a row that is not numbers, beside ones that are. */
static void test_ties(void **state)
{
    (void)state;
    struct device *dev = ops_device(host_isa(), 2);
    enum { V = 40 };
    float values[V];
    for (int v = 0; v < V; v++)
        values[v] = (float)(v % 4); /* 3 at 3, 7, ..; 2 at 2, 6, .. */
    struct view x = ops_rows(3, 2, 0, 1), w = ops_rows(V, 2, 0, 2), bias = view_1d(values, DT_F32, V);
    assert_ok(cpu_fill(dev, w.p, 0, V * 2));
    for (int64_t K = 1; K <= V; K++) {
        const struct form f = {3, 2, V, K, 1, 0, 1, 1, 0};
        struct view ids = ids_rows(3, K, 0), logp = ops_rows(3, K, 0, 0);
        view_f32(x)[2] = K % 2 ? NAN : 1; /* times 0 */
        assert_ok(call(dev, ids, logp, x, w, bias, &f));
        for (int64_t n = 0; n < 3; n++)
            for (int64_t k = 0; k < K; k++) {
                const int bad = n == 1 && K % 2;
                assert_int_equal(id_at(ids, n, k), bad ? -1 : 3 - k / 10 + 4 * (k % 10));
                assert_true(isnan(view_f32(logp)[n * K + k]) == bad);
            }
        free(ids.p), free(logp.p);
    }
    free(x.p), free(w.p);
    cpu_device_close(dev);
}

/* Tokens of a teacher given to a student that is the teacher: no divergence, however many they are. */
static void test_of_itself(void **state)
{
    (void)state;
    FOR_EACH_ISA(isa) {
        struct device *dev = ops_device((enum isa)isa, 2);
        static const int64_t sizes[] = {1, 3, 9, 59, 60};
        for (size_t i = 0; i < COUNT_OF(sizes); i++) {
            const int64_t K = sizes[i];
            const struct form f = {30, 6, 60, K, 1, 0, 2, 1, 0};
            struct view x = ops_rows(f.N, f.C, 0, 1), w = ops_rows(f.V, f.C, 0, 2), bias = ops_vector(f.V, 3), dx = ops_rows(f.N, f.C, 0, 0);
            struct view ids = ids_rows(f.N, K, 0), logp = ops_rows(f.N, K, 0, 0);
            assert_ok(call(dev, ids, logp, x, w, bias, &f));
            int32_t targets[30] = {0};
            double loss = 0, kl = 0;
            int64_t count = 0;
            const float inv = 1;
            const struct xent_teacher t = {.ids = ids, .logp = logp, .weight = 1, .temperature = f.tau, .kl_sum = &kl};
            const struct xent_args args = {.logit_scale = 1, .inv_count = &inv, .bias = bias, .teacher = &t};
            void *scratch = aligned_alloc(64, (cpu_xent_scratch(dev, f.N, f.C, f.V, K) + 63) / 64 * 64);
            assert_ok(cpu_xent(dev, &loss, &count, view_none(), dx, view_none(), x, w, view_1d(targets, DT_I32, f.N), &args, scratch));
            assert_true(fabs(kl) <= 1e-6);
            for (int64_t j = 0; j < f.N * f.C; j++)
                assert_true(fabsf(view_f32(dx)[j]) <= 2e-6f);
            free(x.p), free(w.p), free(bias.p), free(dx.p), free(ids.p), free(logp.p), free(scratch);
        }
        cpu_device_close(dev);
    }
}

static void test_refusals(void **state)
{
    (void)state;
    struct device *dev = ops_device(host_isa(), 2);
    struct form f = {3, 2, 8, 4, 1, 0, 1, 0, 0};
    struct view x = ops_rows(3, 2, 0, 1), w = ops_rows(8, 2, 0, 2), logp = ops_rows(3, 4, 0, 0), ids = ids_rows(3, 4, 0), none = view_none();
    struct view many = ids_rows(3, 9, 0), lnp9 = ops_rows(3, 9, 0, 0);
    assert_refused(call(dev, many, lnp9, x, w, none, &f), ERR_UNSUPPORTED, "9 tokens of a vocabulary of 8");
    assert_refused(call(dev, ids, lnp9, x, w, none, &f), ERR_UNSUPPORTED, "logp");
    assert_refused(call(dev, logp, logp, x, w, none, &f), ERR_UNSUPPORTED, "ids");
    f.tau = 0;
    assert_refused(call(dev, ids, logp, x, w, none, &f), ERR_UNSUPPORTED, "temperature");
    assert_int_equal(id_at(ids, 0, 0), -77);
    free(x.p), free(w.p), free(logp.p), free(ids.p), free(many.p), free(lnp9.p);
    cpu_device_close(dev);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_topk), cmocka_unit_test(test_ties), cmocka_unit_test(test_of_itself),
                                       cmocka_unit_test(test_refusals)};
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
