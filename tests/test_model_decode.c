/* Prefill and decode against the double reference at every position; bf16 cache and weights; lengths and refusals. */
#include <math.h>

#include "model_checks.h"

static void test_prefill_then_decode(void **state)
{
    (void)state;
    struct model_options o = cached_options(DT_F32, DT_F32);
    struct arch a;
    for (int64_t first = 0; first <= TINY_T; first += 5)
        for (int64_t step = 1; step <= 3; step++) {
            fixture_arch(&a);
            check_decode(&a, "llama", &o, first, step, 1e-5);
        }
}

static void test_variants(void **state)
{
    (void)state;
    struct model_options o = cached_options(DT_F32, DT_F32);
    struct arch a;
    fixture_arch(&a);
    a.tied = 0;
    a.pos = POS_LEARNED;
    a.norm = NORM_LAYER;
    a.mlp = MLP_GELU_TANH;
    a.bias = BIAS_NORM | BIAS_Q | BIAS_K | BIAS_V | BIAS_O | BIAS_MLP_IN | BIAS_MLP_OUT | BIAS_HEAD;
    check_decode(&a, "layer norm, biases, learned", &o, 3, 1, 1e-5);
    fixture_arch(&a);
    struct arch_block *b = a.stack[STACK_DEC].block;
    a.logit_softcap = 4.0;
    a.logit_scale = 0.7;
    a.rope.dims = 6;
    b[0].G = 1;
    b[0].window = 3;
    b[1].H = 4;
    b[1].G = 4;
    b[1].D = b[1].Dv = 10;
    b[1].F = 33;
    check_decode(&a, "layers differ, window, softcap", &o, 4, 1, 1e-5);
}

static void test_bf16(void **state)
{
    (void)state;
    struct arch a;
    struct model_options o = cached_options(DT_F32, DT_BF16);
    fixture_arch(&a);
    check_decode(&a, "bf16 cache", &o, 4, 1, 0.05);
    o = cached_options(DT_BF16, DT_BF16);
    fixture_arch(&a);
    check_decode(&a, "bf16 weights and cache", &o, 4, 1, 0.15);
}

static void test_cache_only(void **state)
{
    (void)state;
    struct arch a;
    struct model_options o = cached_options(DT_F32, DT_F32);
    o.B = o.T = 0;
    fixture_arch(&a);
    check_decode(&a, "opened to decode only", &o, 0, 1, 1e-5);
}

static void test_refusals_and_lengths(void **state)
{
    (void)state;
    struct arch a;
    struct tiny t;
    struct model_options o = cached_options(DT_F32, DT_F32);
    const int32_t ids[TINY_B * 16] = {0};
    fixture_arch(&a);
    tiny_open(&t, &a, &o);
    assert_refused(model_decode(t.m, ids, 1, 1, NULL), ERR_USAGE, "1 sequences");
    assert_refused(model_decode(t.m, ids, TINY_B, 9, NULL), ERR_USAGE, "1 to 8");
    assert_refused(model_prefill(t.m, ids, TINY_B, TINY_T + 1, NULL), ERR_USAGE, "does not fit");
    model_cache_set_length(t.m, o.cache_S - 1);
    assert_ok(model_decode(t.m, ids, TINY_B, 1, NULL));
    assert_int_equal(model_cache_length(t.m, 1), o.cache_S);
    assert_refused(model_decode(t.m, ids, TINY_B, 1, NULL), ERR_USAGE, "full");
    model_cache_reset(t.m);
    assert_ok(model_prefill(t.m, ids, TINY_B, 2, NULL));
    assert_refused(model_prefill(t.m, ids, TINY_B, 2, NULL), ERR_USAGE, "empty cache");
    tiny_close(&t);
    o = tiny_options(0);
    fixture_arch(&a);
    tiny_open(&t, &a, &o);
    assert_refused(model_decode(t.m, ids, TINY_B, 1, NULL), ERR_USAGE, "without a K/V cache");
    tiny_close(&t);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prefill_then_decode), cmocka_unit_test(test_variants), cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_cache_only), cmocka_unit_test(test_refusals_and_lengths),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
