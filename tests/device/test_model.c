/* The whole model on a device: scores, loss and every gradient by name, decode, training steps, resume. f32 against the CPU; bf16 by
 * the 2x rule, truth being the CPU in f32 on the same rounded weights and the plain computation tests/bf16_backend.h.
 * Shapes that see mistakes: C 48 != H*D 96, H 6, G 3, D 16, L 2, T 11, packed documents, masked targets. */
#include <math.h>

#include "bf16_backend.h"
#include "device_case.h"
#include "model_fixture.h"
#include "model_variants.h"
#include "runs.h"
#include "train_here.h"

enum { N = TINY_B * TINY_T, V = 61 };

struct side { const struct backend *be; struct device *dev; enum dtype type; int recompute; };

/* What a micro-batch, run twice, leaves. */
struct pass {
    double logp[N], loss, *grad; /* gradients of all tensors one after another, in the reference's order */
    int64_t count, n;
};

static void llama(struct arch *a)
{
    fixture_arch(a);
    a->C = 48;
    a->V = V;
    a->rope.dims = 16;
    a->attn_scale = 0.25;
    for (int l = 0; l < 2; l++) {
        struct arch_block *b = &a->stack[STACK_DEC].block[l];
        b->D = b->Dv = 16;
        b->F = 40;
    }
}

static void gpt(struct arch *a)
{
    llama(a);
    a->tied = 0;
    a->norm = NORM_LAYER;
    a->mlp = MLP_GELU_TANH;
    a->pos = POS_LEARNED;
    a->pos_offset = 2;
    a->logit_softcap = 6.0;
    a->stack[STACK_DEC].block[0].window = 4;
    a->stack[STACK_DEC].block[1].G = 1;
    a->bias = BIAS_NORM | BIAS_Q | BIAS_K | BIAS_V | BIAS_O | BIAS_MLP_IN | BIAS_MLP_OUT | BIAS_HEAD;
}

/* A variant of tests/model_variants.c with this test's sizes. */
static void variant(struct arch *a, const char *name)
{
    int i = 0;
    while (strcmp(MODEL_VARIANTS[i].name, name)) {
        i++;
        assert_true(i < model_variants());
    }
    llama(a);
    MODEL_VARIANTS[i].change(a);
}

static void stablelm(struct arch *a) { variant(a, "stablelm-12b"); } /* parallel, one norm, norms by head */
static void neox(struct arch *a) { variant(a, "gpt_neox"); }         /* parallel, two norms, every bias */
static void olmo2(struct arch *a) { variant(a, "olmo2"); }           /* norms on outputs and over the whole width of q and k */
static void opt(struct arch *a) { variant(a, "opt-350m"); }          /* norms on sums, an embedding of another width */
static void olmo(struct arch *a) { variant(a, "olmo"); }             /* clipping */
static void bloom(struct arch *a) { variant(a, "bloom"); }           /* ALiBi, a norm after the embedding */
static void falcon(struct arch *a) { variant(a, "falcon, one head, ALiBi"); } /* scaled slopes, one key/value head */

static const struct { const char *name; void (*make)(struct arch *); } SHAPES[] = {
    {"llama", llama}, {"gpt", gpt},   {"stablelm", stablelm}, {"neox", neox},    {"olmo2", olmo2},
    {"opt", opt},     {"olmo", olmo}, {"bloom", bloom},       {"falcon", falcon}};

/* The reference's weights and the batch; t->m itself is not used. */
static void open_reference(struct tiny *t, void (*make)(struct arch *))
{
    struct arch a;
    struct model_options o = tiny_options(0);
    make(&a);
    tiny_open(t, &a, &o);
}

/* A model on a side, with the reference's weights rounded to bf16 whatever its type: all sides compute on the same ones. */
static struct model *open_side(const struct tiny *t, const struct side *s, const struct model_options *o)
{
    struct model *m;
    assert_ok(model_open(&m, &t->arch, s->be, s->dev, o));
    for (int i = 0; i < t->ref.count; i++) {
        const struct model_param *p = model_param_find(m, t->ref.tensor[i].name);
        size_t n = (size_t)p->count;
        uint16_t *rounded = malloc(n * sizeof *rounded);
        float *value = malloc(n * sizeof *value);
        assert_true(rounded && value);
        convert_elements(rounded, DT_BF16, t->ref.tensor[i].p, DT_F64, n);
        convert_elements(value, p->master.dtype, rounded, DT_BF16, n);
        assert_ok(s->be->device_copy(s->dev, p->master.p, value, n * dtype_bytes(p->master.dtype)));
        free(rounded);
        free(value);
    }
    assert_ok(model_refresh(m));
    return m;
}

static void take_gradients(const struct tiny *t, const struct side *s, const struct model *m, struct pass *out)
{
    for (int i = 0; i < t->ref.count; i++)
        out->n += t->ref.tensor[i].n;
    out->grad = malloc((size_t)out->n * sizeof *out->grad);
    assert_non_null(out->grad);
    double *to = out->grad;
    for (int i = 0; i < t->ref.count; to += t->ref.tensor[i++].n) {
        size_t n = (size_t)t->ref.tensor[i].n;
        float *host = malloc(n * sizeof *host);
        assert_non_null(host);
        assert_ok(s->be->device_copy(s->dev, host, model_param_find(m, t->ref.tensor[i].name)->grad.p, n * sizeof *host));
        convert_elements(to, DT_F64, host, DT_F32, n);
        free(host);
    }
}

static void run_pass(const struct tiny *t, const struct side *s, struct pass *out)
{
    struct model_options o = tiny_options(1);
    struct step_scalars host = {.inv_count = 1.0f / (float)t->valid}, *scalars;
    struct arena a = {0};
    float logp[N];
    double score = 0.0;
    int64_t scored = 0;
    memset(out, 0, sizeof *out);
    o.dtype = s->type;
    o.recompute = s->recompute;
    o.deterministic = 1;
    struct model *m = open_side(t, s, &o);
    fill_nan(logp, N);
    assert_ok(model_score(m, &t->batch, view_2d(logp, DT_F32, TINY_B, TINY_T), &score, &scored));
    convert_elements(out->logp, DT_F64, logp, DT_F32, N);
    assert_ok(s->be->device_alloc(s->dev, &a, "scalars", 256));
    scalars = arena_carve(&a, sizeof *scalars);
    assert_ok(s->be->device_copy(s->dev, scalars, &host, sizeof host));
    for (int micro = 0; micro < 2; micro++)
        assert_ok(model_forward_backward(m, &t->batch, &scalars->inv_count, &scalars->loss_sum, &scalars->count));
    assert_ok(s->be->device_copy(s->dev, &host, scalars, sizeof host));
    out->loss = host.loss_sum;
    out->count = host.count;
    assert_int_equal(scored, t->valid);
    assert_int_equal(host.count, 2 * t->valid);
    assert_true(fabs(score - host.loss_sum / 2) <= 1e-6 * score);
    take_gradients(t, s, m, out);
    s->be->device_free(s->dev, &a);
    model_close(m);
}

static double largest(const double *x, int64_t n)
{
    double most = 0.0;
    for (int64_t i = 0; i < n; i++)
        most = fmax(most, fabs(x[i]));
    return most;
}

/* truth and, for bf16, plain. */
static void compare(const struct tiny *t, const char *shape, const struct pass *got, const struct pass *truth, const struct pass *plain)
{
    char what[128];
    int64_t at = 0;
    snprintf(what, sizeof what, "%s: ln p", shape);
    if (plain)
        case_expect_2x(what, got->logp, truth->logp, plain->logp, N, 2e-3);
    else
        case_expect_near(what, got->logp, truth->logp, N, 1e-4, 1e-4);
    assert_true(fabs(got->loss - truth->loss) <= (plain ? 0.01 : 1e-5) * truth->loss);
    for (int i = 0; i < t->ref.count; at += t->ref.tensor[i++].n) {
        int64_t n = t->ref.tensor[i].n;
        double most = largest(truth->grad + at, n);
        snprintf(what, sizeof what, "%s: gradient of %s", shape, t->ref.tensor[i].name);
        if (plain)
            case_expect_2x(what, got->grad + at, truth->grad + at, plain->grad + at, (size_t)n, 4e-3 * most + 1e-6);
        else
            case_expect_near(what, got->grad + at, truth->grad + at, (size_t)n, 1e-4 * most + 1e-6, 1e-4);
    }
}

static void check_shape(size_t shape, enum dtype type)
{
    struct tiny t;
    struct pass truth, plain, got;
    open_reference(&t, SHAPES[shape].make);
    struct side cpu = {t.be, t.dev, DT_F32, 0}, rounded = {bf16_backend(), t.dev, DT_BF16, 0}, device = {case_backend(), case_device(), type, 0};
    run_pass(&t, &cpu, &truth);
    run_pass(&t, &rounded, &plain);
    run_pass(&t, &device, &got);
    compare(&t, SHAPES[shape].name, &got, &truth, type == DT_BF16 ? &plain : NULL);
    free(truth.grad);
    free(plain.grad);
    free(got.grad);
    tiny_close(&t);
    assert_int_equal(case_faults(), 0);
}

static void test_f32(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(SHAPES); i++)
        check_shape(i, DT_F32);
}

static void test_bf16(void **state)
{
    (void)state;
    for (int arch = 80; arch <= 90; arch += 10)
        for (size_t i = 0; i < COUNT_OF(SHAPES) && case_arch(arch); i++)
            check_shape(i, DT_BF16);
}

/* A second run, and one that computes each block again in backward, leave the same bits. */
static void test_same_bits(void **state)
{
    (void)state;
    struct tiny t;
    struct pass first, again;
    open_reference(&t, gpt);
    for (int type = 0; type < 2; type++)
        for (int recompute = 0; recompute < 2; recompute++) {
            struct side s = {case_backend(), case_device(), type ? DT_BF16 : DT_F32, 0};
            run_pass(&t, &s, &first);
            s.recompute = recompute;
            run_pass(&t, &s, &again);
            assert_memory_equal(first.logp, again.logp, sizeof first.logp);
            assert_memory_equal(&first.loss, &again.loss, sizeof first.loss);
            assert_memory_equal(first.grad, again.grad, (size_t)first.n * sizeof(double));
            free(first.grad);
            free(again.grad);
        }
    tiny_close(&t);
    assert_int_equal(case_faults(), 0);
}

/* Prefill 3, then 1 at a time (run, recorded, repeated), 2 at the end; logits of every step, one after another. */
enum { STEPS = 8 };
static void run_decode(const struct tiny *t, const struct side *s, double *out)
{
    struct model_options o = tiny_options(0);
    float logits[TINY_B * V];
    int32_t ids[TINY_B * 3];
    o.dtype = o.cache_dtype = s->type;
    o.cache_B = TINY_B;
    o.cache_S = 61;
    struct model *m = open_side(t, s, &o);
    for (int step = 0, at = 0; step < STEPS; step++) {
        int n = step == 0 ? 3 : step == STEPS - 1 ? 2 : 1;
        for (int b = 0; b < TINY_B; b++)
            memcpy(ids + b * n, t->batch.ids + b * TINY_T + at, (size_t)n * sizeof *ids);
        fill_nan(logits, TINY_B * V);
        assert_ok(step == 0 ? model_prefill(m, ids, TINY_B, n, logits) : model_decode(m, ids, TINY_B, n, logits));
        convert_elements(out + step * TINY_B * V, DT_F64, logits, DT_F32, TINY_B * V);
        at += n;
    }
    model_close(m);
}

static void test_decode(void **state)
{
    (void)state;
    static double truth[STEPS * TINY_B * V], plain[STEPS * TINY_B * V], got[STEPS * TINY_B * V];
    for (size_t shape = 0; shape < COUNT_OF(SHAPES); shape++) {
        struct tiny t;
        open_reference(&t, SHAPES[shape].make);
        struct side cpu = {t.be, t.dev, DT_F32, 0}, rounded = {bf16_backend(), t.dev, DT_BF16, 0};
        struct side f32 = {case_backend(), case_device(), DT_F32, 0}, bf16 = {case_backend(), case_device(), DT_BF16, 0};
        run_decode(&t, &cpu, truth);
        run_decode(&t, &rounded, plain);
        run_decode(&t, &f32, got);
        case_expect_near(SHAPES[shape].name, got, truth, COUNT_OF(got), 1e-4, 1e-4);
        run_decode(&t, &bf16, got);
        case_expect_2x(SHAPES[shape].name, got, truth, plain, COUNT_OF(got), 4e-3 * largest(truth, COUNT_OF(truth)));
        tiny_close(&t);
    }
    assert_int_equal(case_faults(), 0);
}

/* The trainer: f32 steps close to the CPU's, and for each way to keep weights a run stopped and resumed has the bits of one that was not. */
static void test_training(void **state)
{
    (void)state;
    const char *const args[] = {"max_steps=5", "sequence_len=17", "data.validation=[]", NULL};
    const struct backend *cpu;
    assert_ok(backend_find("cpu", &cpu));
    struct train_here here = {.backend = cpu, .out = "cpu", .args = args}, there = {.backend = case_backend(), .out = "device", .args = args};
    assert_ok(train_here(&here));
    assert_ok(train_here(&there));
    json_t *want = runs_log("cpu"), *got = runs_log("device");
    assert_int_equal(json_array_size(got), json_array_size(want));
    for (size_t i = 0; i < json_array_size(want); i++) {
        double x = runs_number(json_array_get(want, i), "loss"), y = runs_number(json_array_get(got, i), "loss");
        assert_true(fabs(x - y) <= 1e-4 * x);
        x = runs_number(json_array_get(want, i), "grad_norm"), y = runs_number(json_array_get(got, i), "grad_norm");
        assert_true(fabs(x - y) <= 1e-3 * x);
    }
    json_decref(want);
    json_decref(got);
    assert_int_equal(case_faults(), 0);
}

static void test_resume(void **state)
{
    (void)state;
    static const char *const kinds[][2] = {{"precision=fp32", "seed=7"}, {"precision=bf16", "master_weights=true"}, {"precision=bf16", "master_weights=false"}};
    for (size_t i = 0; i < COUNT_OF(kinds); i++) {
        const char *const args[] = {kinds[i][0], kinds[i][1], "max_steps=3", "save_steps=1", "sequence_len=17", "data.validation=[]", NULL};
        char whole[32], resumed[32];
        snprintf(whole, sizeof whole, "whole-%zu", i);
        snprintf(resumed, sizeof resumed, "resumed-%zu", i);
        struct train_here t = {.backend = case_backend(), .out = whole, .args = args};
        assert_ok(train_here(&t));
        t.out = resumed;
        t.stop_at = 2;
        assert_ok(train_here(&t));
        t.stop_at = 0;
        assert_ok(train_here(&t));
        assert_string_equal(runs_weights(whole), runs_weights(resumed));
    }
    assert_int_equal(case_faults(), 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f32),    cmocka_unit_test(test_bf16),     cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_decode), cmocka_unit_test(test_training), cmocka_unit_test(test_resume),
    };
    return case_main(argc, argv, tests, COUNT_OF(tests));
}
