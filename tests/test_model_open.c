/* Opening a model: what is refused by name, the flat range, measured memory, fresh parameters, loading, counts. */
#include <math.h>

#include "model_fixture.h"

#define REFUSED(field, change)                                                                          \
    do {                                                                                                \
        struct arch a;                                                                                  \
        struct model *m;                                                                                \
        struct model_options o = tiny_options(0);                                                       \
        fixture_arch(&a);                                                                                  \
        struct arch_block *block = a.stack[STACK_DEC].block;                                            \
        (void)block;                                                                                    \
        change;                                                                                         \
        assert_refused(model_open(&m, &a, be, dev, &o), ERR_UNSUPPORTED, field);                        \
        assert_null(m);                                                                                 \
        a.stack[STACK_ENC].present = 0;                                                                 \
        arch_free(&a);                                                                                  \
    } while (0)

static void test_refusals(void **state)
{
    (void)state;
    const struct backend *be;
    struct device *dev;
    struct device_options device = {0};
    assert_ok(backend_find("cpu", &be));
    assert_ok(be->device_open(&dev, &device));
    REFUSED("stack[1]", a.stack[STACK_ENC].present = 1);
    REFUSED("causal", a.stack[STACK_DEC].causal = 0);
    REFUSED("residual", (a.residual = RESIDUAL_PARALLEL_ONE_NORM, a.norm_place = NORM_POST_SUBLAYER));
    REFUSED("residual_scale", (a.residual_scale = 0.5, a.norm_place = NORM_POST_RESIDUAL));
    REFUSED("relative", a.pos = POS_REL_BIAS);
    REFUSED("not all of q, k and v", a.bias = BIAS_Q | BIAS_V);
    REFUSED("residual_scale", (a.residual_scale = 0.5, a.bias = BIAS_O));
    REFUSED("logit_scale", (a.logit_scale = 0.5, a.bias = BIAS_HEAD));
    REFUSED("Dv", block[1].Dv = 4);
    REFUSED("global_tokens", block[1].global_tokens = 1);
    REFUSED("blocksparse", block[1].blocksparse = 1);
    REFUSED("cross", block[0].cross = 1);
    REFUSED("rope.dims", a.rope.dims = 10);
    REFUSED("dilation", (block[0].dilation = calloc(6, sizeof(int32_t))));
    REFUSED("training keeps", (o.train = 1, o.dtype = DT_BF16));
    REFUSED("f32 or bf16", o.dtype = DT_F16);
    REFUSED("cache can be", (o.cache_B = 1, o.cache_S = 8, o.cache_dtype = DT_F16));
    be->device_close(dev);
}

static void test_usage(void **state)
{
    (void)state;
    const struct backend *be;
    struct device *dev;
    struct device_options device = {0};
    struct model_options o = tiny_options(0);
    struct model *m;
    struct arch a;
    assert_ok(backend_find("cpu", &be));
    assert_ok(be->device_open(&dev, &device));
    fixture_arch(&a);
    a.pos = POS_LEARNED;
    o.T = 65;
    assert_refused(model_open(&m, &a, be, dev, &o), ERR_USAGE, "learned positions for 64");
    o.T = -1;
    assert_refused(model_open(&m, &a, be, dev, &o), ERR_USAGE, "negative");
    o.T = (int64_t)1 << 60;
    assert_refused(model_open(&m, &a, be, dev, &o), ERR_USAGE, "2^31");
    o.T = 0;
    assert_refused(model_open(&m, &a, be, dev, &o), ERR_USAGE, "batch of rows");
    model_close(NULL);
    arch_free(&a);
    be->device_close(dev);
}

static void test_flat_range(void **state)
{
    (void)state;
    struct arch a;
    struct tiny t;
    struct model_options o = tiny_options(1);
    fixture_arch(&a);
    a.bias = BIAS_Q | BIAS_K | BIAS_V | BIAS_MLP_IN;
    a.stack[STACK_DEC].block[1].F = 21;
    a.stack[STACK_DEC].block[1].G = 1;
    tiny_open(&t, &a, &o);
    struct model_flat f = model_flat(t.m);
    const float *flat = f.params;
    double inside = 0.0, whole = 0.0;
    int64_t end = 0;
    for (int i = 0; i < model_param_count(t.m); i++) {
        const struct model_param *p = model_param_at(t.m, i);
        int joined = strstr(p->spec.name, "attn.k.") || strstr(p->spec.name, "attn.v.") || strstr(p->spec.name, "mlp.up.");
        assert_ptr_equal(p->value.p, flat + p->offset);
        assert_ptr_equal(p->grad.p, f.grads + p->offset);
        assert_true(p->offset >= end);
        if (joined)
            assert_int_equal(p->offset, end);
        else
            assert_int_equal((uintptr_t)p->value.p % 64, 0);
        end = p->offset + p->count;
        for (int64_t k = 0; k < p->count; k++)
            inside += fabs((double)flat[p->offset + k]);
    }
    for (int64_t k = 0; k < f.n; k++)
        whole += fabs((double)flat[k]);
    assert_true(end <= f.n);
    assert_true(fabs(inside - whole) <= 1e-9 * whole); /* the padding is zero */
    assert_null(model_param_find(t.m, "dec.2.attn.k.w"));
    tiny_close(&t);
}

static void test_measure_is_what_is_reserved(void **state)
{
    (void)state;
    for (int train = 0; train < 2; train++) {
        struct arch a;
        struct tiny t;
        struct model_options o = tiny_options(train);
        struct model_memory plan;
        o.cache_B = 2;
        o.cache_S = 16;
        o.cache_dtype = DT_BF16;
        fixture_arch(&a);
        tiny_open(&t, &a, &o);
        assert_ok(model_measure(&t.arch, t.be, t.dev, &o, &plan));
        assert_memory_equal(&plan, model_memory(t.m), sizeof plan);
        assert_true(plan.cache > 0);
        assert_true(plan.parameters >= 4 * arch_parameters(&t.arch));
        assert_int_equal(plan.gradients, train ? plan.parameters : 0);
        tiny_close(&t);
    }
}

static void test_init(void **state)
{
    (void)state;
    struct arch a;
    struct tiny t;
    struct model_options o = tiny_options(0);
    fixture_arch(&a);
    a.bias = BIAS_O;
    tiny_open(&t, &a, &o);
    assert_ok(model_init(t.m, 0.02, 3));
    const struct model_param *q = model_param_find(t.m, "dec.1.attn.q.w"), *down = model_param_find(t.m, "dec.1.mlp.down.w");
    const struct model_param *norm = model_param_find(t.m, "dec.0.mlp_norm.w"), *bias = model_param_find(t.m, "dec.0.attn.o.b");
    double sd_q = 0.0, sd_down = 0.0;
    for (int64_t i = 0; i < q->count; i++)
        sd_q += pow((double)view_f32(q->value)[i], 2.0) / (double)q->count;
    for (int64_t i = 0; i < down->count; i++)
        sd_down += pow((double)view_f32(down->value)[i], 2.0) / (double)down->count;
    assert_true(fabs(sqrt(sd_q) - 0.02) <= 0.002);
    assert_true(fabs(sqrt(sd_down) - 0.01) <= 0.002); /* 0.02 / sqrt(2 * 2 layers) */
    for (int64_t i = 0; i < 24; i++)
        assert_true(view_f32(norm->value)[i] == 1.0f && view_f32(bias->value)[i] == 0.0f);
    float first = view_f32(q->value)[5];
    assert_ok(model_init(t.m, 0.02, 3));
    assert_true(view_f32(q->value)[5] == first);
    assert_ok(model_init(t.m, 0.02, 4));
    assert_true(view_f32(q->value)[5] != first);
    tiny_close(&t);
}

static void test_counts(void **state)
{
    (void)state;
    struct arch a;
    fixture_arch(&a);
    /* C=24, HD=48, GD=24, F=20, V=37; per layer q 1152, k and v 576 each, o 1152, gate, up, down 480 each, norms 48 */
    double parameters = 2.0 * (1152 + 2 * 576 + 1152 + 3 * 480 + 48) + 37 * 24 + 24;
    assert_int_equal(arch_parameters(&a), (int64_t)parameters);
    assert_true(fabs(model_train_flops_per_token(&a, 100) - (6.0 * parameters + 3.5 * 2.0 * (2.0 * 48 * 100))) <= 1e-6);
    double weights = 2.0 * (1152 + 2 * 576 + 1152 + 3 * 480) + 37 * 24, kv = 2.0 * 2 * 24;
    assert_true(fabs(model_decode_bytes(&a, 3, 10, DT_F32, DT_BF16) - (4.0 * weights + 2.0 * 3 * 10 * kv)) <= 1e-6);
    a.tied = 0;
    assert_true(fabs(model_decode_bytes(&a, 1, 10, DT_BF16, DT_F32) - (2.0 * weights + 4.0 * 10 * kv)) <= 1e-6);
    a.stack[STACK_DEC].block[0].window = 4;
    assert_true(fabs(model_decode_bytes(&a, 1, 10, DT_BF16, DT_F32) - (2.0 * weights + 4.0 * (10 + 4) * kv / 2)) <= 1e-6);
    a.embed_proj = 10; /* a narrow head, and two projections C x 10 */
    double narrow = 2.0 * (1152 + 2 * 576 + 1152 + 3 * 480) + 37 * 10 + 2 * 24 * 10;
    assert_true(fabs(model_decode_bytes(&a, 1, 10, DT_BF16, DT_F32) - (2.0 * narrow + 4.0 * (10 + 4) * kv / 2)) <= 1e-6);
    a.embed_proj = 0;
    assert_true(model_train_flops_per_token(&a, 100) < 6.0 * (parameters + 37 * 24) + 3.5 * 2.0 * (2.0 * 48 * 100));
    arch_free(&a);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refusals), cmocka_unit_test(test_usage), cmocka_unit_test(test_flat_range),
        cmocka_unit_test(test_measure_is_what_is_reserved), cmocka_unit_test(test_init), cmocka_unit_test(test_counts),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
