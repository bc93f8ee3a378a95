/* Every variant of tests/model_variants.c through every way a model runs: scoring, gradients, prefill and decode, checkpointed
 * activations, packed documents, bf16 weights, measured memory; and the ALiBi slopes against published numbers. */
#include <math.h>

#include "model_checks.h"
#include "model_variants.h"
#include "model/parts.h"

enum { N = TINY_B * TINY_T };

static struct arch variant(int i)
{
    struct arch a;
    fixture_arch(&a);
    MODEL_VARIANTS[i].change(&a);
    return a;
}

static void test_score(void **state)
{
    (void)state;
    for (int i = 0; i < model_variants(); i++)
        for (int train = 0; train < 2; train++) {
            struct arch a = variant(i);
            check_score(&a, MODEL_VARIANTS[i].name, train);
        }
}

static void test_decode(void **state)
{
    (void)state;
    struct model_options o = cached_options(DT_F32, DT_F32);
    for (int i = 0; i < model_variants(); i++)
        for (int64_t first = 0; first <= TINY_T; first += 4) {
            struct arch a = variant(i);
            check_decode(&a, MODEL_VARIANTS[i].name, &o, first, 1 + i % 3, 2e-5);
        }
}

static void test_gradients(void **state)
{
    (void)state;
    for (int i = 0; i < model_variants(); i++) {
        struct arch a = variant(i);
        print_message("%s\n", MODEL_VARIANTS[i].name);
        check_gradients(&a, i % 2, 8);
    }
}

static void test_recompute_same_bits(void **state)
{
    (void)state;
    for (int i = 0; i < model_variants(); i++) {
        float *grads[2];
        double loss[2];
        int64_t n = 0, bytes[2];
        for (int recompute = 0; recompute < 2; recompute++) {
            struct arch a = variant(i);
            struct tiny t;
            struct model_options o = tiny_options(1);
            o.recompute = recompute;
            tiny_open(&t, &a, &o);
            gradients(&t, &loss[recompute]);
            n = model_flat(t.m).n;
            bytes[recompute] = model_memory(t.m)->activations;
            grads[recompute] = malloc((size_t)n * sizeof(float));
            assert_non_null(grads[recompute]);
            memcpy(grads[recompute], model_flat(t.m).grads, (size_t)n * sizeof(float));
            tiny_close(&t);
        }
        assert_memory_equal(&loss[0], &loss[1], sizeof loss[0]);
        assert_memory_equal(grads[0], grads[1], (size_t)n * sizeof(float));
        assert_true(bytes[1] < bytes[0]);
        free(grads[0]);
        free(grads[1]);
    }
}

/* Every document of the packed batch alone, positions from 0. */
static void documents_alone(const struct tiny *t, float *logp)
{
    for (int64_t row = 0; row < TINY_B; row++)
        for (int64_t from = 0, to; from < TINY_T; from = to) {
            int64_t at = row * TINY_T + from;
            for (to = from + 1; to < TINY_T && t->batch.segments[row * TINY_T + to] == t->batch.segments[at];)
                to++;
            struct batch one = {1, to - from, t->batch.ids + at, t->batch.targets + at, NULL, NULL};
            double loss = 0.0;
            int64_t count = 0;
            assert_ok(model_score(t->m, &one, view_2d(logp + at, DT_F32, 1, to - from), &loss, &count));
        }
}

static void test_packed_is_separate(void **state)
{
    (void)state;
    for (int i = 0; i < model_variants(); i++) {
        struct arch a = variant(i);
        struct tiny t;
        struct model_options o = tiny_options(0);
        float packed[N], alone[N];
        double want[N], loss = 0.0;
        int64_t count = 0;
        tiny_open(&t, &a, &o);
        assert_ok(model_score(t.m, &t.batch, view_2d(packed, DT_F32, TINY_B, TINY_T), &loss, &count));
        fill_nan(alone, N);
        documents_alone(&t, alone);
        for (int k = 0; k < N; k++)
            want[k] = (double)alone[k];
        assert_f32(MODEL_VARIANTS[i].name, packed, want, N, 0.0, 1e-5);
        tiny_close(&t);
    }
}

static void test_bf16_weights(void **state)
{
    (void)state;
    for (int i = 0; i < model_variants(); i++) {
        struct arch a = variant(i);
        struct tiny t;
        struct model_options o = tiny_options(0);
        float logp[N];
        double want[N], loss = 0.0;
        int64_t count = 0;
        o.dtype = DT_BF16;
        tiny_open(&t, &a, &o);
        for (int k = 0; k < t.ref.count; k++) { /* the reference takes the rounded weights: only the arithmetic is compared */
            const struct model_param *p = model_param_find(t.m, t.ref.tensor[k].name);
            convert_elements(t.ref.tensor[k].p, DT_F64, p->value.p, p->value.dtype, (size_t)p->count);
        }
        tiny_reference_loss(&t, want);
        assert_ok(model_score(t.m, &t.batch, view_2d(logp, DT_F32, TINY_B, TINY_T), &loss, &count));
        assert_f32(MODEL_VARIANTS[i].name, logp, want, N, 0.0, 0.08);
        tiny_close(&t);
        a = variant(i);
        o = cached_options(DT_BF16, DT_BF16);
        check_decode(&a, MODEL_VARIANTS[i].name, &o, 4, 1, 0.25);
    }
}

static void test_measured_is_reserved(void **state)
{
    (void)state;
    for (int i = 0; i < model_variants(); i++)
        for (int how = 0; how < 3; how++) { /* inference, training, recomputing */
            struct arch a = variant(i);
            struct tiny t;
            struct model_options o = tiny_options(how > 0);
            struct model_memory plan;
            o.recompute = how == 2;
            o.cache_B = 2;
            o.cache_S = 16;
            o.cache_dtype = DT_F32;
            tiny_open(&t, &a, &o);
            assert_ok(model_measure(&t.arch, t.be, t.dev, &o, &plan));
            assert_memory_equal(&plan, model_memory(t.m), sizeof plan);
            tiny_close(&t);
        }
}

/* Press et al. 2022, section 3 (8 heads: 1/2 ... 1/256) and their code's list for 6 heads; MPT's for 6 heads with alibi_bias_max 4. */
static void test_alibi_slopes(void **state)
{
    (void)state;
    static const struct { int64_t H; double bias_max, minus_log2[8]; } WANT[] = {
        {8, 8.0, {1, 2, 3, 4, 5, 6, 7, 8}}, {6, 8.0, {2, 4, 6, 8, 1, 3}}, {6, 4.0, {1, 2, 3, 4, 0.5, 1.5}}, {1, 8.0, {8}}, {3, 8.0, {4, 8, 2}}};
    for (size_t i = 0; i < COUNT_OF(WANT); i++)
        for (int scaled = 0; scaled < 2; scaled++) {
            struct arch a = {.alibi_bias_max = WANT[i].bias_max, .alibi_scaled = scaled, .attn_scale = 0.25};
            struct arch_block b = {.H = WANT[i].H};
            float slopes[8];
            alibi_slopes(&a, &b, slopes);
            for (int64_t h = 0; h < b.H; h++)
                assert_true(slopes[h] == (float)(exp2(-WANT[i].minus_log2[h]) * (scaled ? 0.25 : 1.0)));
        }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_score), cmocka_unit_test(test_decode), cmocka_unit_test(test_gradients), cmocka_unit_test(test_recompute_same_bits),
        cmocka_unit_test(test_packed_is_separate), cmocka_unit_test(test_bf16_weights), cmocka_unit_test(test_measured_is_reserved),
        cmocka_unit_test(test_alibi_slopes),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
