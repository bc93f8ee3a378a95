/* A model held one part at a time: the same log-probabilities as the whole model, for every residual form and place of norms; what is
 * handed out of a block is what the next step reads; a block can be taken up again from x and o. */
#include <math.h>

#include "model_checks.h"
#include "model_variants.h"
#include "small_checkpoint.h"

static struct model *layered_open(const struct tiny *t)
{
    struct model_options o = {.dtype = DT_F32, .B = TINY_B, .T = TINY_T, .layered = 1};
    struct model *m;
    assert_ok(model_open(&m, &t->arch, t->be, t->dev, &o));
    return m;
}

/* The part's parameters as the whole model has them. */
static void part_copy(struct model *m, const struct model *whole, int64_t part)
{
    model_part_set(m, part);
    int n = 0;
    for (int i = 0; i < model_param_count(m); i++) {
        const struct model_param *p = model_param_at(m, i), *from = model_param_find(whole, p->spec.name);
        if (!p->value.p)
            continue;
        memcpy(p->value.p, from->value.p, (size_t)p->count * sizeof(float));
        n++;
    }
    assert_true(n > 0 || part == model_arch(m)->stack[STACK_DEC].L);
}

static void whole_logp(const struct tiny *t, float *logp, double *loss)
{
    int64_t count = 0;
    *loss = 0;
    assert_ok(model_score(t->m, &t->batch, view_2d(logp, DT_F32, TINY_B, TINY_T), loss, &count));
}

static void same_logp(const char *what, const float *got, const float *want)
{
    double exact[TINY_B * TINY_T];
    for (int i = 0; i < TINY_B * TINY_T; i++)
        exact[i] = (double)want[i];
    if (!compare_f32(what, got, exact, TINY_B * TINY_T, 1e-6, 1e-6))
        assert_string_equal(what, "");
}

static void check_variant(const struct model_variant *variant)
{
    struct arch a;
    struct tiny t;
    struct model_options o = tiny_options(0);
    fixture_arch(&a);
    if (variant)
        variant->change(&a);
    tiny_open(&t, &a, &o);
    int64_t L = t.arch.stack[STACK_DEC].L, N = TINY_B * TINY_T, C = t.arch.C;
    struct model *m = layered_open(&t);
    assert_true(model_memory(m)->parameters < model_memory(t.m)->parameters);
    float *x = malloc((size_t)(N * C) * sizeof *x), want[TINY_B * TINY_T], got[TINY_B * TINY_T];
    double loss, sum = 0;
    int64_t count = 0;
    fill_nan(x, N * C);
    fill_nan(got, N);
    whole_logp(&t, want, &loss);
    part_copy(m, t.m, MODEL_PART_EMBED);
    assert_ok(model_part_embed(m, &t.batch, x));
    for (int64_t l = 0; l < L; l++) {
        struct model_block_values v;
        part_copy(m, t.m, l);
        assert_ok(model_block_attend(m, &t.batch, x, &v));
        assert_int_equal(v.n.n[1], C);
        assert_ok(model_block_finish(m, x, &v));
    }
    part_copy(m, t.m, L);
    assert_ok(model_part_score(m, &t.batch, x, view_2d(got, DT_F32, TINY_B, TINY_T), &sum, &count));
    same_logp(variant ? variant->name : "llama", got, want);
    assert_int_equal(count, t.valid);
    assert_true(fabs(sum - loss) <= 1e-5 * loss);
    free(x);
    model_close(m);
    tiny_close(&t);
}

static void every_form_scores_as_the_whole_model(void **state)
{
    (void)state;
    check_variant(NULL);
    for (int i = 0; i < model_variants(); i++)
        check_variant(&MODEL_VARIANTS[i]);
}

/* out = x w^T (+ b) in double. */
static double product_at(const float *x, const struct model_param *w, const struct model_param *b, int64_t row)
{
    double sum = b ? (double)((const float *)b->value.p)[row] : 0.0;
    const float *p = (const float *)w->value.p + row * w->spec.n[1];
    for (int64_t i = 0; i < w->spec.n[1]; i++)
        sum += (double)x[i] * (double)p[i];
    return sum;
}

/* Of a pre-norm form: mid (or x) + hidden Wdown^T is the output, mid is x + o Wo^T, and both come again from x and o. */
static void check_values(const struct model_variant *variant)
{
    struct arch a;
    struct tiny t;
    struct model_options o = tiny_options(0);
    fixture_arch(&a);
    if (variant)
        variant->change(&a);
    if (a.norm_place != NORM_PRE || a.residual_scale != 1.0) {
        arch_free(&a);
        return;
    }
    tiny_open(&t, &a, &o);
    struct model *m = layered_open(&t);
    int64_t N = TINY_B * TINY_T, C = t.arch.C, F = t.arch.stack[STACK_DEC].block[0].F, W = t.arch.stack[STACK_DEC].block[0].H * t.arch.stack[STACK_DEC].block[0].D;
    float *x = malloc((size_t)(2 * N * C + N * W + N * F) * sizeof *x), *out = x + N * C, *features = out + N * C, *hidden = features + N * W;
    struct model_block_values v;
    part_copy(m, t.m, MODEL_PART_EMBED);
    assert_ok(model_part_embed(m, &t.batch, x));
    part_copy(m, t.m, 0);
    assert_ok(model_block_attend(m, &t.batch, x, &v));
    memcpy(features, v.o.p, (size_t)(N * W) * sizeof(float));
    assert_ok(model_block_finish(m, out, &v));
    assert_null(v.n.p);
    memcpy(hidden, v.hidden.p, (size_t)(N * F) * sizeof(float));
    const struct model_param *wo = model_param_find(m, "dec.0.attn.o.w"), *bo = model_param_find(m, "dec.0.attn.o.b");
    const struct model_param *wd = model_param_find(m, "dec.0.mlp.down.w"), *bd = model_param_find(m, "dec.0.mlp.down.b");
    for (int64_t i = 0; i < N * C; i++) {
        double mid = (double)x[i] + product_at(features + i / C * W, wo, bo, i % C);
        if (v.mid.p)
            assert_true(fabs(mid - (double)((float *)v.mid.p)[i]) <= 1e-4);
        assert_true(fabs(mid + product_at(hidden + i / C * F, wd, bd, i % C) - (double)out[i]) <= 1e-4);
    }
    assert_ok(model_block_attend(m, &t.batch, out, &v)); /* something else in between */
    assert_ok(model_block_hidden(m, &t.batch, x, features, &v));
    assert_memory_equal(v.hidden.p, hidden, (size_t)(N * F) * sizeof(float));
    free(x);
    model_close(m);
    tiny_close(&t);
}

static void values_are_what_the_block_reads(void **state)
{
    (void)state;
    check_values(NULL);
    for (int i = 0; i < model_variants(); i++)
        check_values(&MODEL_VARIANTS[i]);
}

static void yarn(struct arch *a)
{
    a->rope.kind = ROPE_YARN;
    a->rope.factor = 4;
    a->rope.original_max_positions = 16;
}

/* Queries as attention read them, turned back: n Wq^T (+ b), also where the tables carry a factor (YaRN) or turn only some dims. */
static void check_unrotate(const struct model_variant *variant)
{
    struct arch a;
    struct tiny t;
    struct model_options o = tiny_options(0);
    fixture_arch(&a);
    variant->change(&a);
    if (a.norm_place != NORM_PRE || a.qk_norm != QK_NORM_NONE || a.clip_qkv > 0.0) {
        arch_free(&a);
        return;
    }
    tiny_open(&t, &a, &o);
    struct model *m = layered_open(&t);
    const struct arch_block *b = &t.arch.stack[STACK_DEC].block[0];
    int64_t N = TINY_B * TINY_T, C = t.arch.C, W = b->H * b->D;
    float *x = malloc((size_t)(2 * N * C + N * W) * sizeof *x), *n = x + N * C, *q = n + N * C;
    struct model_block_values v;
    part_copy(m, t.m, MODEL_PART_EMBED);
    assert_ok(model_part_embed(m, &t.batch, x));
    part_copy(m, t.m, 0);
    assert_ok(model_block_attend(m, &t.batch, x, &v));
    memcpy(n, v.n.p, (size_t)(N * C) * sizeof *n);
    for (int64_t i = 0; i < N; i++)
        memcpy(q + i * W, view_f32(v.q) + i * v.q.s[1], (size_t)W * sizeof *q);
    assert_ok(model_block_unrotate(m, &t.batch, q, b->H));
    const struct model_param *w = model_param_find(m, "dec.0.attn.q.w"), *bias = model_param_find(m, "dec.0.attn.q.b");
    for (int64_t i = 0; i < N * W; i++)
        if (!(fabs(product_at(n + i / W * C, w, bias, i % W) - (double)q[i]) <= 1e-4)) {
            print_error("%s, element %lld\n", variant->name, (long long)i);
            assert_true(0);
        }
    free(x);
    model_close(m);
    tiny_close(&t);
}

static void queries_turned_back(void **state)
{
    (void)state;
    static const struct model_variant yarned = {"yarn", yarn};
    check_unrotate(&yarned);
    for (int i = 0; i < model_variants(); i++)
        check_unrotate(&MODEL_VARIANTS[i]);
}

/* Parts from a checkpoint, in any order, a smaller batch than the model was opened for. */
static void parts_from_a_checkpoint(void **state)
{
    (void)state;
    struct arch a;
    struct checkpoint *ck;
    const struct backend *be;
    struct device *dev;
    struct device_options device = {0};
    struct model *whole, *m;
    struct model_options o = {.dtype = DT_F32, .B = 3, .T = 9};
    small_arch(&a, 6, 3, DT_BF16);
    char *path = temp_path("layered-src");
    small_write(path, &a, 11, 1, NULL);
    assert_ok(ckpt_open(&ck, path, NULL));
    assert_ok(backend_find("cpu", &be));
    assert_ok(be->device_open(&dev, &device));
    assert_ok(model_open(&whole, &a, be, dev, &o));
    assert_ok(model_load(whole, ck));
    o.layered = 1;
    assert_ok(model_open(&m, &a, be, dev, &o));
    struct batch b;
    assert_ok(batch_alloc(&b, 2, 7));
    for (int64_t i = 0; i < 14; i++) {
        b.ids[i] = (int32_t)random_int(3, (uint64_t)i, 0, a.V - 1);
        b.targets[i] = (int32_t)random_int(4, (uint64_t)i, 0, a.V - 1);
        b.positions[i] = (int32_t)(i % 7);
        b.segments[i] = 0;
    }
    float *x = malloc((size_t)(14 * a.C) * sizeof *x), want[14], got[14];
    double exact[14], loss = 0, sum = 0;
    int64_t count = 0;
    struct model_block_values v;
    assert_ok(model_score(whole, &b, view_2d(want, DT_F32, 2, 7), &loss, &count));
    assert_ok(model_part_load(m, ck, 1));
    assert_null(model_param_find(m, "dec.0.attn.q.w")->value.p);
    assert_ok(model_part_load(m, ck, MODEL_PART_EMBED));
    assert_ok(model_part_embed(m, &b, x));
    for (int64_t l = 0; l < 2; l++) {
        assert_ok(model_part_load(m, ck, l));
        assert_ok(model_block_attend(m, &b, x, &v));
        assert_ok(model_block_finish(m, x, &v));
    }
    assert_ok(model_part_load(m, ck, 2));
    assert_ok(model_part_score(m, &b, x, view_2d(got, DT_F32, 2, 7), &sum, &count));
    for (int i = 0; i < 14; i++)
        exact[i] = (double)want[i];
    assert_f32("logp", got, exact, 14, 1e-6, 1e-6);
    model_part_set(m, MODEL_PART_EMBED);
    b.B = 4;
    assert_refused(model_part_embed(m, &b, x), ERR_USAGE, "4 x 7");
    b.B = 2;
    batch_free(&b);
    free(x);
    free(path);
    model_close(m);
    model_close(whole);
    be->device_close(dev);
    ckpt_close(ck);
    arch_free(&a);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_form_scores_as_the_whole_model),
        cmocka_unit_test(values_are_what_the_block_reads),
        cmocka_unit_test(parts_from_a_checkpoint),
        cmocka_unit_test(queries_turned_back),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
