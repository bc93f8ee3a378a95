/* Gradients of every parameter by name against central differences of the double reference; recomputation, accumulation,
 * GQA against MHA with repeated heads, announced ranges. */
#include <math.h>

#include "model_checks.h"

static void test_llama(void **state)
{
    (void)state;
    struct arch a;
    fixture_arch(&a);
    check_gradients(&a, 0, 24);
}

static void test_untied_layers_differ(void **state)
{
    (void)state;
    struct arch a;
    fixture_arch(&a);
    struct arch_block *b = a.stack[STACK_DEC].block;
    a.tied = 0;
    a.rope.dims = 6;
    b[0].G = 1;
    b[0].window = 3;
    b[1].H = 4;
    b[1].G = 4;
    b[1].D = b[1].Dv = 10;
    b[1].F = 33;
    check_gradients(&a, 1, 24);
}

static void test_layer_norm_biases(void **state)
{
    (void)state;
    struct arch a;
    fixture_arch(&a);
    a.norm = NORM_LAYER;
    a.mlp = MLP_GELU_ERF;
    a.pos = POS_LEARNED;
    a.pos_offset = 2;
    a.bias = BIAS_NORM | BIAS_Q | BIAS_K | BIAS_V | BIAS_O | BIAS_MLP_IN | BIAS_MLP_OUT | BIAS_HEAD;
    check_gradients(&a, 1, 24);
}

static void test_scales(void **state)
{
    (void)state;
    struct arch a;
    fixture_arch(&a);
    a.norm = NORM_RMS1P;
    a.mlp = MLP_GEGLU_TANH;
    a.embed_scale = 1.7;
    a.logit_scale = 0.6;
    a.logit_softcap = 5.0;
    a.residual_scale = 0.8;
    check_gradients(&a, 0, 24);
}

static float *copy_grads(const struct tiny *t)
{
    struct model_flat f = model_flat(t->m);
    float *copy = malloc((size_t)f.n * sizeof *copy);
    assert_non_null(copy);
    memcpy(copy, f.grads, (size_t)f.n * sizeof *copy);
    return copy;
}

static void test_recompute_same_bits(void **state)
{
    (void)state;
    float *grads[2];
    double loss[2];
    int64_t n = 0, activations[2];
    for (int i = 0; i < 2; i++) {
        struct arch a;
        struct tiny t;
        struct model_options o = tiny_options(1);
        o.recompute = i;
        fixture_arch(&a);
        tiny_open(&t, &a, &o);
        gradients(&t, &loss[i]);
        grads[i] = copy_grads(&t);
        n = model_flat(t.m).n;
        activations[i] = model_memory(t.m)->activations;
        tiny_close(&t);
    }
    assert_memory_equal(&loss[0], &loss[1], sizeof loss[0]);
    assert_memory_equal(grads[0], grads[1], (size_t)n * sizeof(float));
    assert_true(activations[1] < activations[0]);
    free(grads[0]);
    free(grads[1]);
}

static void test_rerun_same_bits(void **state)
{
    (void)state;
    struct arch a;
    struct tiny t;
    struct model_options o = tiny_options(1);
    double loss[2];
    fixture_arch(&a);
    tiny_open(&t, &a, &o);
    gradients(&t, &loss[0]);
    float *first = copy_grads(&t);
    gradients(&t, &loss[1]);
    assert_memory_equal(&loss[0], &loss[1], sizeof loss[0]);
    assert_memory_equal(first, model_flat(t.m).grads, (size_t)model_flat(t.m).n * sizeof(float));
    free(first);
    tiny_close(&t);
}

static void test_accumulation(void **state)
{
    (void)state;
    struct arch a;
    struct tiny t;
    struct model_options o = tiny_options(1);
    double loss, parts = 0.0;
    int64_t count = 0;
    fixture_arch(&a);
    tiny_open(&t, &a, &o);
    gradients(&t, &loss);
    float *whole = copy_grads(&t), inv = 1.0f / (float)t.valid;
    struct model_flat f = model_flat(t.m);
    memset(f.grads, 0, (size_t)f.n * sizeof *f.grads);
    for (int64_t row = 0; row < TINY_B; row++) {
        struct batch b = {1, TINY_T, t.batch.ids + row * TINY_T, t.batch.targets + row * TINY_T, t.batch.positions + row * TINY_T,
                          t.batch.segments + row * TINY_T};
        assert_ok(model_forward_backward(t.m, &b, &inv, &parts, &count));
    }
    assert_int_equal(count, t.valid);
    assert_true(fabs(parts - loss) <= 1e-6 * fabs(loss));
    double error = 0.0, power = 0.0;
    for (int64_t i = 0; i < f.n; i++) {
        double d = (double)f.grads[i] - (double)whole[i];
        error += d * d;
        power += (double)whole[i] * (double)whole[i];
    }
    assert_true(sqrt(error / power) <= 1e-6);
    free(whole);
    tiny_close(&t);
}

/* A model with G heads equals one with H heads whose K/V tensors repeat each head R times; its dK is the sum over the copies. */
static void test_gqa_is_mha_repeated(void **state)
{
    (void)state;
    enum { H = 6, G = 3, R = 2, D = 8, C = 24 };
    struct arch a;
    struct tiny gqa, mha;
    struct model_options o = tiny_options(1);
    double loss[2];
    fixture_arch(&a);
    tiny_open(&gqa, &a, &o);
    fixture_arch(&a);
    for (int l = 0; l < 2; l++)
        a.stack[STACK_DEC].block[l].G = H;
    tiny_open(&mha, &a, &o);
    for (int i = 0; i < gqa.ref.count; i++) {
        const struct reference_tensor *from = &gqa.ref.tensor[i], *to = &mha.ref.tensor[i];
        int repeated = strstr(from->name, "attn.k.w") || strstr(from->name, "attn.v.w");
        assert_string_equal(from->name, to->name);
        for (int64_t h = 0; repeated && h < H; h++)
            memcpy(to->p + h * D * C, from->p + h / R * D * C, D * C * sizeof(double));
        if (!repeated)
            memcpy(to->p, from->p, (size_t)from->n * sizeof(double));
    }
    tiny_upload(&mha);
    gradients(&gqa, &loss[0]);
    gradients(&mha, &loss[1]);
    assert_true(fabs(loss[0] - loss[1]) <= 1e-6 * loss[0]);
    for (int i = 0; i < gqa.ref.count; i++) {
        const struct model_param *g = model_param_find(gqa.m, gqa.ref.tensor[i].name), *h = model_param_find(mha.m, g->spec.name);
        const float *got = g->grad.p, *wide = h->grad.p;
        double *want = calloc((size_t)g->count, sizeof *want);
        for (int64_t k = 0; k < g->count; k++)
            if (g->count == h->count)
                want[k] = (double)wide[k];
            else
                for (int64_t r = 0; r < R; r++)
                    want[k] += (double)wide[(k / (D * C) * R + r) * D * C + k % (D * C)];
        assert_f32(g->spec.name, got, want, g->count, 1e-4, 1e-6);
        free(want);
    }
    tiny_close(&gqa);
    tiny_close(&mha);
}

struct ranges { int64_t from[8], to[8]; int n; };

static void on_ready(void *context, int64_t from, int64_t to)
{
    struct ranges *r = context;
    assert_true(r->n < 8);
    r->from[r->n] = from;
    r->to[r->n++] = to;
}

static void test_ranges_announced(void **state)
{
    (void)state;
    for (int tied = 0; tied < 2; tied++) {
        struct arch a;
        struct tiny t;
        struct model_options o = tiny_options(1);
        struct ranges r = {.n = 0};
        double loss;
        fixture_arch(&a);
        a.tied = tied;
        tiny_open(&t, &a, &o);
        model_on_grad_ready(t.m, on_ready, &r);
        gradients(&t, &loss);
        assert_int_equal(r.n, 4); /* after the layers, two layers, embedding */
        assert_int_equal(r.to[0], model_flat(t.m).n);
        for (int i = 1; i < r.n; i++)
            assert_int_equal(r.to[i], r.from[i - 1]);
        assert_int_equal(r.from[r.n - 1], 0);
        tiny_close(&t);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama), cmocka_unit_test(test_untied_layers_differ), cmocka_unit_test(test_layer_norm_biases),
        cmocka_unit_test(test_scales), cmocka_unit_test(test_recompute_same_bits), cmocka_unit_test(test_rerun_same_bits),
        cmocka_unit_test(test_accumulation), cmocka_unit_test(test_gqa_is_mha_repeated), cmocka_unit_test(test_ranges_announced),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
