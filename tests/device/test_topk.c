/* The likeliest tokens on the device: which they are, their order among equals, their log-probabilities; rows that are not numbers. */
#include <math.h>

#include "reference/teacher.h"
#include "tensor.h"

struct form {
    int64_t N, C, V, K;
    float scale, cap, tau;
    int bias;
};

struct found { int32_t *ids; double *logp; };

static struct found run(struct view x, struct view w, struct view bias, const struct form *f)
{
    const struct backend *k = case_backend();
    struct device *dev = case_device();
    const int64_t wide = f->K + 3;
    int32_t *before = calloc((size_t)(f->N * wide), 4), *all = calloc((size_t)(f->N * wide), 4);
    for (int64_t i = 0; i < f->N * wide; i++)
        before[i] = -77;
    struct view whole = case_upload_i32(before, 2, (int64_t[]){f->N, wide}), ids = view_slice(whole, 1, 0, f->K);
    struct tensor logp = tensor_output(DT_F32, f->N, f->K, 3);
    assert_ok(k->topk(dev, ids, logp.v, x, w, bias, f->scale, f->cap, f->tau, case_bytes(k->topk_scratch(dev, f->N, f->C, f->V, f->K))));
    assert_ok(k->device_copy(dev, all, whole.p, (size_t)(f->N * wide) * 4));
    assert_ok(k->device_sync(dev));
    struct found r = {(int32_t *)(void *)tensor_doubles(f->N * f->K), tensor_get(logp)};
    for (int64_t n = 0; n < f->N; n++) {
        memcpy(r.ids + n * f->K, all + n * wide, (size_t)f->K * 4);
        for (int64_t i = f->K; i < wide; i++)
            assert_int_equal(all[n * wide + i], -77);
    }
    assert_true(tensor_gaps_ok(logp));
    assert_int_equal(case_faults(), 0);
    free(before), free(all);
    return r;
}

static void one(struct form f, enum dtype type, int64_t gap)
{
    struct tensor x = tensor_random(type, f.N, f.C, gap, 1, 1), w = tensor_random(type, f.V, f.C, gap, 2, 1);
    double *b64 = tensor_doubles(f.V), *z = tensor_doubles(f.V), *want = tensor_doubles(f.N * f.K);
    int32_t *order = calloc((size_t)f.V, 4);
    fill_random_f64(b64, f.V, 3);
    struct view bias = tensor_vector(b64, DT_F32, f.V);
    char name[128];
    snprintf(name, sizeof name, "topk %s N %d C %d V %d K %d scale %g cap %g tau %g", dtype_name(type), (int)f.N, (int)f.C, (int)f.V, (int)f.K, (double)f.scale,
             (double)f.cap, (double)f.tau);
    const struct ref_head head = {x.x, w.x, f.bias ? b64 : NULL, f.C, (double)f.scale, (double)f.cap};
    const struct found r = run(x.v, w.v, f.bias ? bias : view_none(), &f), again = run(x.v, w.v, f.bias ? bias : view_none(), &f);
    for (int64_t n = 0; n < f.N; n++) {
        ref_logits(z, &head, n, f.V);
        ref_topk(order, want + n * f.K, z, f.V, f.K, (double)f.tau);
        for (int64_t k = 0; k < f.K; k++) { /* rounding may swap logits as near as this */
            const int32_t id = r.ids[n * f.K + k];
            assert_true(id >= 0 && id < f.V && fabs(z[id] - z[order[k]]) <= 4e-6 * (1 + fabs(z[id])));
            for (int64_t j = 0; j < k && k < 70; j++)
                assert_true(r.ids[n * f.K + j] != id);
        }
    }
    case_expect_near(name, r.logp, want, (size_t)(f.N * f.K), 1e-5, 1e-5);
    assert_memory_equal(r.ids, again.ids, (size_t)(f.N * f.K) * 4);
    assert_memory_equal(r.logp, again.logp, (size_t)(f.N * f.K) * 8);
    free(order);
    tensors_free();
}

static void test_topk(void **state)
{
    (void)state;
    static const struct form forms[] = {{5, 7, 11, 1, 1, 0, 1, 0},    {33, 8, 33, 33, 1, 0, 1, 1},     {9, 5, 64, 7, 0.7f, 3, 2, 1},    {6, 5, 150, 32, 2, 0, 0.5f, 0},
                                        {2, 3, 1, 1, 1, 0, 2, 1},     {3, 8, 2500, 300, 1, 0, 1, 1},   {2, 8, 16500, 32, 1, 5, 1, 0},   {300, 8, 150, 4, 1, 0, 1, 1},
                                        {2, 16, 700, 699, 1, 0, 1, 1}};
    for (size_t i = 0; i < COUNT_OF(forms); i++)
        for (int bf16 = 0; bf16 < 2; bf16++)
            one(forms[i], bf16 ? DT_BF16 : DT_F32, i % 2 ? 8 : 3);
}

/* Logits from the bias alone, in four heaps of equals, zeros of both signs among them: ties by rising id, in every K. A row that is not
 * numbers, beside ones that are. */
static void test_ties(void **state)
{
    (void)state;
    enum { V = 96 };
    double values[V], x64[3 * 8];
    for (int v = 0; v < V; v++)
        values[v] = v % 4 == 1 ? (v % 8 == 1 ? 0.0 : -0.0) : v % 4 - 1;
    for (int64_t K = 1; K <= V; K += K < 5 ? 1 : 13) {
        const struct form f = {3, 8, V, K, 1, 0, 1, 1};
        double *zeros = tensor_doubles(V * 8);
        for (int i = 0; i < 3 * 8; i++)
            x64[i] = K % 2 && i == 9 ? (double)NAN : 1;
        struct tensor x = tensor_of(DT_F32, 3, 8, 0, x64), w = tensor_of(DT_F32, V, 8, 0, zeros);
        const struct found r = run(x.v, w.v, tensor_vector(values, DT_F32, V), &f);
        for (int64_t n = 0; n < 3; n++)
            for (int64_t k = 0; k < K; k++) {
                const int bad = n == 1 && K % 2;
                assert_int_equal(r.ids[n * K + k], bad ? -1 : 3 - k / 24 + 4 * (k % 24));
                assert_true(isnan(r.logp[n * K + k]) == bad);
            }
        tensors_free();
    }
}

static void test_refusals(void **state)
{
    (void)state;
    const struct backend *k = case_backend();
    struct tensor x = tensor_random(DT_F32, 2, 8, 0, 1, 1), w = tensor_random(DT_F32, 5, 8, 0, 1, 1), low = tensor_random(DT_BF16, 5, 8, 0, 1, 1);
    struct tensor logp = tensor_output(DT_F32, 2, 6, 0);
    const int32_t zeros[12] = {0};
    const struct view ids = case_upload_i32(zeros, 2, (int64_t[]){2, 6}), none = view_none();
    assert_refused(k->topk(case_device(), ids, logp.v, x.v, w.v, none, 1, 0, 1, NULL), ERR_UNSUPPORTED, "6 tokens of a vocabulary of 5");
    assert_refused(k->topk(case_device(), view_slice(ids, 1, 0, 3), logp.v, x.v, w.v, none, 1, 0, 1, NULL), ERR_UNSUPPORTED, "logp");
    assert_refused(k->topk(case_device(), view_slice(ids, 1, 0, 3), view_slice(logp.v, 1, 0, 3), x.v, low.v, none, 1, 0, 1, NULL), ERR_UNSUPPORTED, "w is bf16");
    assert_refused(k->topk(case_device(), view_slice(ids, 1, 0, 3), view_slice(logp.v, 1, 0, 3), x.v, w.v, none, 1, 0, NAN, NULL), ERR_UNSUPPORTED, "temperature");
    tensors_free();
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_topk), cmocka_unit_test(test_ties), cmocka_unit_test(test_refusals)};
    return case_main(argc, argv, tests, COUNT_OF(tests));
}
