/* model_score against the double reference, one arch feature at a time; refusals; bf16 weights. */
#include <math.h>

#include "model_checks.h"

static void test_llama(void **state)
{
    (void)state;
    struct arch a;
    fixture_arch(&a);
    check_score(&a, "llama", 0);
    fixture_arch(&a);
    check_score(&a, "llama, opened for training", 1);
    fixture_arch(&a);
    a.tied = 0;
    check_score(&a, "untied head", 0);
}

static void test_norms_and_biases(void **state)
{
    (void)state;
    static const struct { const char *name; enum norm_kind kind; } KINDS[] = {
        {"rms", NORM_RMS}, {"rms1p", NORM_RMS1P}, {"layer", NORM_LAYER}, {"layer_nop", NORM_LAYER_NOP}};
    for (size_t i = 0; i < COUNT_OF(KINDS); i++) {
        struct arch a;
        fixture_arch(&a);
        a.norm = KINDS[i].kind;
        a.tied = (int)(i % 2);
        if (a.norm == NORM_LAYER)
            a.bias = BIAS_NORM | BIAS_Q | BIAS_K | BIAS_V | BIAS_O | BIAS_MLP_IN | BIAS_MLP_OUT | BIAS_HEAD;
        check_score(&a, KINDS[i].name, 0);
    }
}

static void test_mlp_kinds(void **state)
{
    (void)state;
    static const struct { const char *name; enum mlp_kind kind; } KINDS[] = {
        {"geglu_tanh", MLP_GEGLU_TANH}, {"geglu_erf", MLP_GEGLU_ERF}, {"gelu_erf", MLP_GELU_ERF}, {"gelu_tanh", MLP_GELU_TANH}, {"relu", MLP_RELU}};
    for (size_t i = 0; i < COUNT_OF(KINDS); i++) {
        struct arch a;
        fixture_arch(&a);
        a.mlp = KINDS[i].kind;
        a.bias = BIAS_MLP_IN | BIAS_MLP_OUT;
        check_score(&a, KINDS[i].name, 0);
    }
}

static void test_positions_and_scales(void **state)
{
    (void)state;
    struct arch a;
    fixture_arch(&a);
    a.pos = POS_LEARNED;
    a.pos_offset = 2;
    check_score(&a, "learned positions", 0);
    fixture_arch(&a);
    a.pos = POS_NONE;
    check_score(&a, "no positions", 0);
    fixture_arch(&a);
    a.rope.dims = 4;
    check_score(&a, "rotary on half a head", 0);
    fixture_arch(&a);
    a.embed_scale = 1.7;
    a.logit_scale = 0.6;
    a.logit_softcap = 5.0;
    a.residual_scale = 0.8;
    a.attn_scale = 0.2;
    check_score(&a, "scales and softcap", 0);
}

static void test_layers_differ(void **state)
{
    (void)state;
    struct arch a;
    fixture_arch(&a);
    struct arch_block *b = a.stack[STACK_DEC].block;
    b[0].G = 6;
    b[0].window = 3;
    b[1].H = 4;
    b[1].G = 1;
    b[1].D = b[1].Dv = 10;
    b[1].F = 33;
    check_score(&a, "layers differ", 0);
    fixture_arch(&a);
    b = a.stack[STACK_DEC].block;
    b[0].H = 4;
    b[0].G = 2;
    b[1].F = 33;
    check_score(&a, "layers differ, training", 1);
}

static void test_short_batch(void **state)
{
    (void)state;
    struct arch a;
    struct tiny t;
    struct model_options o = tiny_options(0);
    fixture_arch(&a);
    tiny_open(&t, &a, &o);
    struct batch b = t.batch;
    b.B = 1;
    b.T = 7;
    float logp[7];
    double want[7], loss = 0.0;
    int64_t count = 0;
    reference_loss(&t.ref, 1, 7, b.ids, b.positions, b.segments, b.targets, want);
    assert_ok(model_score(t.m, &b, view_2d(logp, DT_F32, 1, 7), &loss, &count));
    assert_f32("short batch", logp, want, 7, 0.0, 1e-5);
    b.T = 12;
    assert_refused(model_score(t.m, &b, view_none(), &loss, &count), ERR_USAGE, "does not fit");
    assert_refused(model_forward_backward(t.m, &b, NULL, &loss, &count), ERR_USAGE, "without gradients");
    tiny_close(&t);
}

static void test_bf16_weights(void **state)
{
    (void)state;
    enum { N = TINY_B * TINY_T };
    struct arch a;
    struct tiny t;
    struct model_options o = tiny_options(0);
    float logp[N];
    double want[N], loss = 0.0;
    int64_t count = 0;
    o.dtype = DT_BF16;
    fixture_arch(&a);
    tiny_open(&t, &a, &o);
    for (int i = 0; i < t.ref.count; i++) { /* the reference takes the rounded weights: only the arithmetic is compared */
        const struct model_param *p = model_param_find(t.m, t.ref.tensor[i].name);
        convert_elements(t.ref.tensor[i].p, DT_F64, p->value.p, p->value.dtype, (size_t)p->count);
    }
    tiny_reference_loss(&t, want);
    assert_ok(model_score(t.m, &t.batch, view_2d(logp, DT_F32, TINY_B, TINY_T), &loss, &count));
    print_message("bf16 weights: largest error of ln p %.2g\n", largest_error(logp, want, N));
    assert_f32("bf16 weights", logp, want, N, 0.0, 0.05);
    tiny_close(&t);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama), cmocka_unit_test(test_norms_and_biases), cmocka_unit_test(test_mlp_kinds),
        cmocka_unit_test(test_positions_and_scales), cmocka_unit_test(test_layers_differ), cmocka_unit_test(test_short_batch),
        cmocka_unit_test(test_bf16_weights),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
