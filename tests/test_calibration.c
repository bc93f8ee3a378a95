/* Calibrated conversion: sums against double loops, least squares against what was planted, the program against the laws that a refit must
 * keep: nothing to repair is left alone, what is exactly representable comes back, more freedom is never worse by much, what is written is
 * what was measured, same bits in every run; and the refusals. */
#include <math.h>

#include "convert/calibrate.h"
#include "data/data.h"
#include "model/model.h"
#include "model_variants.h"
#include "model_fixture.h"
#include "programs.h"
#include "small_checkpoint.h"

enum { T = 32, SEQUENCES = 120 };

/* ---- sums and regressions ---- */

static void moments_are_the_direct_sum(void **state)
{
    (void)state;
    enum { ROWS = 1300, W = 17, C = 5 };
    float *u = malloc(sizeof(float) * ROWS * (W + 3)), *r = malloc(sizeof(float) * ROWS * C);
    struct gram g;
    fill_random(u, ROWS * (W + 3), 1);
    fill_random(r, ROWS * C, 2);
    assert_ok(gram_open(&g, W, 1, C));
    gram_add(&g, u, W + 3, r, C, 700);
    gram_add(&g, u + 700 * (W + 3), W + 3, r + 700 * C, C, ROWS - 700);
    assert_int_equal(g.count, ROWS);
    for (int i = 0; i <= W; i++) {
        for (int j = i; j <= W; j++) {
            double sum = 0;
            for (int t = 0; t < ROWS; t++)
                sum += (i < W ? (double)u[t * (W + 3) + i] : 1.0) * (j < W ? (double)u[t * (W + 3) + j] : 1.0);
            assert_true(fabs(g.a[i * (W + 1) + j] - sum) <= 1e-5 * ROWS);
        }
        for (int c = 0; c < C; c++) {
            double sum = 0;
            for (int t = 0; t < ROWS; t++)
                sum += (i < W ? (double)u[t * (W + 3) + i] : 1.0) * (double)r[t * C + c];
            assert_true(fabs(g.b[i * C + c] - sum) <= 1e-5 * ROWS);
        }
    }
    gram_close(&g);
    free(u);
    free(r);
}

/* r = u m + b is found again; a strong ridge on the second part keeps that part at zero. */
static void planted_maps_are_found(void **state)
{
    (void)state;
    enum { ROWS = 900, W = 12, C = 4, FIRST = 7 };
    float *u = malloc(sizeof(float) * ROWS * W), *r = malloc(sizeof(float) * ROWS * C), m[(W + 1) * C];
    double delta[(W + 1) * C];
    struct gram g;
    fill_random(u, ROWS * W, 3);
    fill_random(m, (W + 1) * C, 4);
    for (int t = 0; t < ROWS; t++)
        for (int c = 0; c < C; c++) {
            double sum = (double)m[W * C + c];
            for (int i = 0; i < W; i++)
                sum += (double)u[t * W + i] * (double)m[i * C + c];
            r[t * C + c] = (float)sum;
        }
    assert_ok(gram_open(&g, W, 1, C));
    gram_add(&g, u, W, r, C, ROWS);
    assert_ok(ridge_solve(&g, &(struct ridge_parts){FIRST}, 1e-8, delta));
    for (int i = 0; i < (W + 1) * C; i++)
        assert_true(fabs(delta[i] - (double)m[i]) <= 1e-4);
    for (int i = FIRST; i < W; i++) /* a part without any weight in the sums: its own mean diagonal, not the other's */
        for (int j = 0; j <= W; j++)
            g.a[i * (W + 1) + j] = g.a[j * (W + 1) + i] = i == j ? 1e-9 : 0;
    assert_ok(ridge_solve(&g, &(struct ridge_parts){FIRST}, 1e-3, delta));
    for (int i = 0; i < (W + 1) * C; i++)
        assert_true(isfinite(delta[i]));
    gram_close(&g);
    free(u);
    free(r);
}

static void spilled_memory(void **state)
{
    (void)state;
    for (int disk = 0; disk < 2; disk++) {
        struct spill s = {.dir = temp_dir(), .on_disk = disk};
        float *a, *b;
        assert_ok(spill_take(&s, 5000, &a));
        assert_ok(spill_take(&s, 3, &b));
        for (int i = 0; i < 5000; i++)
            assert_true(a[i] == 0.0f);
        a[4999] = 7;
        b[2] = 8;
        assert_true(a[4999] == 7.0f);
        spill_close(&s);
    }
    char **names;
    int n;
    assert_ok(io_list(temp_dir(), &names, &n)); /* the file has no name */
    for (int i = 0; i < n; i++)
        assert_null(strstr(names[i], ".gqa-convert"));
    io_names_free(names, n);
    struct spill none = {.dir = "/nonexistent", .on_disk = 1};
    float *p;
    assert_refused(spill_take(&none, 10, &p), ERR_IO, "/nonexistent");
    spill_close(&none);
}

/* ---- the program on small models ---- */

static char *token_file(void)
{
    char *path = temp_path("tokens.bin");
    int32_t ids[T * SEQUENCES + 1];
    for (size_t i = 0; i < COUNT_OF(ids); i++)
        ids[i] = (int32_t)random_int(9, i, 0, 36);
    assert_ok(tokens_write(path, ids, (int64_t)COUNT_OF(ids), 37, -1, -1, NULL));
    return path;
}

/* A row of the calibrations below. */
static json_t *calibrate(const char *source, const char *target, const char *heads, const char *method, const char *refit)
{
    char *tokens = token_file();
    json_t *j = program_json(CONVERT(source, target, "--force", "--quiet", "--json", "--calibration", tokens, "--sequence-length", "32", "--threads", "2",
                                     "--refit", refit, "--method", method, heads ? "--kv-heads" : "--quiet", heads ? heads : "--quiet"));
    free(tokens);
    return j;
}

static double last_error(const json_t *j)
{
    const json_t *fits = json_object_get(json_object_get(j, "calibration"), "fits");
    assert_true(json_array_size(fits) > 0);
    return json_number_at(json_array_get(fits, json_array_size(fits) - 1), "hidden_rel_error");
}

/* Two heads of a group have equal keys; the second's values are the first's, reversed and doubled. */
static void related_values(const struct ckpt_tensor *t, float *x)
{
    int64_t head = 8 * t->n[1];
    int keys = strstr(t->name, "attn.k.w") != NULL, values = strstr(t->name, "attn.v.w") != NULL;
    for (int64_t g = 0; (keys || values) && g < 3; g++)
        for (int64_t d = 0; d < 8; d++)
            for (int64_t i = 0; i < t->n[1]; i++) {
                float from = x[2 * g * head + (keys ? d : 7 - d) * t->n[1] + i];
                x[(2 * g + 1) * head + d * t->n[1] + i] = keys ? from : 2 * from;
            }
}

static char *source_model(const char *name, small_edit_fn *edit)
{
    struct arch a;
    small_arch(&a, 6, 6, DT_F32);
    char *path = temp_path(name);
    small_write(path, &a, 21, 1, edit);
    arch_free(&a);
    return path;
}

/* Values that differ by a map only the output projection can undo: the first head's serve both once it is fitted. */
static void representable_change_is_recovered(void **state)
{
    (void)state;
    char *source = source_model("related", related_values), *target = temp_path("related-gqa");
    json_t *none = calibrate(source, target, "3", "first", "none"), *output = calibrate(source, target, "3", "first", "output");
    double before = json_number_at(none, "loss_before"), lost = fabs(json_number_at(none, "loss_after") - before);
    double left = fabs(json_number_at(output, "loss_after") - json_number_at(output, "loss_before"));
    print_message("loss %.4f, lost by first %.2e, after the refit %.2e\n", before, lost, left);
    assert_true(lost > 1e-3);
    assert_true(left < 1e-4);
    assert_true(last_error(output) < 1e-3);
    json_decref(none);
    json_decref(output);
    free(source);
    free(target);
}

static double largest_change(const char *a, const char *b)
{
    struct checkpoint *x, *y;
    double worst = 0;
    assert_ok(ckpt_open(&x, a, NULL));
    assert_ok(ckpt_open(&y, b, NULL));
    for (int i = 0; i < ckpt_count(x); i++) {
        const struct ckpt_tensor *t = ckpt_at(x, i);
        float *p = small_read(x, t->name), *q = small_read(y, t->name);
        for (int64_t k = 0; k < t->n[0] * t->n[1]; k++)
            worst = worse_error(worst, fabs((double)p[k] - (double)q[k]));
        free(p);
        free(q);
    }
    ckpt_close(x);
    ckpt_close(y);
    return worst;
}

static void nothing_to_repair_is_left_alone(void **state)
{
    (void)state;
    char *source = source_model("whole", NULL), *target = temp_path("whole-out");
    json_t *j = calibrate(source, target, NULL, "mean", "all");
    double change = largest_change(source, target);
    print_message("largest change of a weight %.1e\n", change);
    assert_true(change < 2e-4);
    assert_true(fabs(json_number_at(j, "loss_after") - json_number_at(j, "loss_before")) < 1e-5);
    json_decref(j);
    free(source);
    free(target);
}

/* The held-out windows, scored by the model that was written. */
static double written_loss(const char *path)
{
    struct checkpoint *ck;
    const struct backend *be;
    struct device *dev;
    struct device_options device = {0};
    struct model *m;
    struct model_options o = {.dtype = DT_F32, .B = 1, .T = T};
    struct batch b;
    double sum = 0;
    int64_t count = 0;
    assert_ok(ckpt_open(&ck, path, NULL));
    assert_ok(backend_find("cpu", &be));
    assert_ok(be->device_open(&dev, &device));
    assert_ok(model_open(&m, ckpt_arch(ck), be, dev, &o));
    assert_ok(model_load(m, ck));
    assert_ok(batch_alloc(&b, 1, T));
    for (int64_t s = SEQUENCES - SEQUENCES / 10; s < SEQUENCES; s++) {
        for (int64_t t = 0; t < T; t++) {
            b.ids[t] = (int32_t)random_int(9, (uint64_t)(s * T + t), 0, 36);
            b.targets[t] = (int32_t)random_int(9, (uint64_t)(s * T + t + 1), 0, 36);
            b.positions[t] = (int32_t)t;
            b.segments[t] = 0;
        }
        assert_ok(model_score(m, &b, view_none(), &sum, &count));
    }
    batch_free(&b);
    model_close(m);
    be->device_close(dev);
    ckpt_close(ck);
    return sum / (double)count;
}

/* Every form that a model can have: what is measured is what is written, and a refit brings hidden states nearer. */
static void check_variant(const struct model_variant *variant)
{
    struct arch a;
    fixture_arch(&a);
    if (variant)
        variant->change(&a);
    a.eos = -1;
    char *source = temp_path("variant.h5"), *target = temp_path("variant-gqa.h5"), *tokens = token_file();
    int refittable = a.norm_place == NORM_PRE, queries = a.qk_norm == QK_NORM_NONE && a.clip_qkv == 0.0, merges = 0;
    for (int64_t l = 0; l < 2; l++)
        merges |= a.stack[STACK_DEC].block[l].G > 1;
    small_write(source, &a, 31, 1, NULL);
    const char *name = variant ? variant->name : "llama";
    double error[4];
    for (enum refit r = REFIT_NONE; r <= REFIT_ALL; r++) {
        error[r] = HUGE_VAL;
        if (r != REFIT_NONE && (!refittable || (r == REFIT_ALL && !queries))) {
            program_refused(CONVERT(source, target, "--force", "--calibration", tokens, "--sequence-length", "32", "--refit", refit_name(r), "--kv-heads", "1"),
                            4, "--refit");
            continue;
        }
        json_t *j = calibrate(source, target, "1", "svd", refit_name(r));
        double measured = json_number_at(j, "loss_after"), written = written_loss(target);
        if (!(fabs(measured - written) <= 2e-5 * written) || !(fabs(json_number_at(j, "loss_before") - written_loss(source)) <= 2e-5 * written)) {
            print_error("%s, refit %s: measured %.7f, written %.7f\n", name, refit_name(r), measured, written);
            assert_true(0);
        }
        error[r] = r == REFIT_NONE ? HUGE_VAL : last_error(j);
        json_decref(j);
    }
    print_message("%-28s distance by output %.4f, block %.4f, all %.4f\n", name, error[1], error[2], error[3]);
    if (refittable && merges)
        assert_true(error[REFIT_BLOCK] <= error[REFIT_OUTPUT] * 1.001);
    free(source);
    free(target);
    free(tokens);
    arch_free(&a);
}

static void every_form(void **state)
{
    (void)state;
    check_variant(NULL);
    for (int i = 0; i < model_variants(); i++)
        check_variant(&MODEL_VARIANTS[i]);
}

static void same_bits_every_run(void **state)
{
    (void)state;
    char *source = source_model("bits", NULL), *targets[2] = {temp_path("bits-a"), temp_path("bits-b")};
    char hex[2][65];
    for (int i = 0; i < 2; i++) {
        json_decref(calibrate(source, targets[i], "2", "svd", "all"));
        char *file = io_join(targets[i], "model.safetensors");
        assert_ok(sha256_file(file, hex[i]));
        free(file);
        free(targets[i]);
    }
    assert_string_equal(hex[0], hex[1]);
    free(source);
}

/* bf16 in and out, groups by likeness, copies of merged heads. */
static void other_ways_out(void **state)
{
    (void)state;
    struct arch a;
    small_arch(&a, 6, 6, DT_BF16);
    char *source = temp_path("bf16"), *target = temp_path("bf16-gqa"), *tokens = token_file();
    small_write(source, &a, 23, 1, NULL);
    program_ok(CONVERT(source, target, "--calibration", tokens, "--sequence-length", "32", "--kv-heads", "2", "--method", "svd", "--grouping", "similar", "--refit",
                       "block", "--target", "expanded"));
    struct checkpoint *ck;
    assert_ok(ckpt_open(&ck, target, NULL));
    assert_int_equal(ckpt_arch(ck)->stack[STACK_DEC].block[0].G, 6);
    assert_int_equal(ckpt_find(ck, "dec.0.attn.k.w")->dtype, DT_BF16);
    float *k = small_read(ck, "dec.0.attn.k.w");
    assert_memory_equal(k, k + 2 * 8 * 24, 8 * 24 * sizeof *k);
    free(k);
    ckpt_close(ck);
    json_t *j = program_json(CONVERT(source, target, "--calibration", tokens, "--kv-heads", "2", "--refit", "all", "--dry-run", "--json", "--force"));
    assert_true(json_number_at(json_object_get(j, "calibration"), "memory_bytes") > 0);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(j, "calibration"), "sequence_length")), 64);
    json_decref(j);
    free(source);
    free(target);
    free(tokens);
    arch_free(&a);
}

static void refusals(void **state)
{
    (void)state;
    char *source = source_model("refuse", NULL), *target = temp_path("refuse-out"), *tokens = token_file(), *few = temp_path("few.bin");
    int32_t ids[5] = {1, 2, 3, 4, 5}, foreign[400];
    assert_ok(tokens_write(few, ids, 5, 37, -1, -1, NULL));
    program_refused(CONVERT(source, target, "--kv-heads", "2", "--refit", "block"), 2, "--calibration");
    program_refused(CONVERT(source, target, "--kv-heads", "2", "--calibration", few), 3, "too few");
    program_refused(CONVERT(source, target, "--kv-heads", "2", "--calibration", tokens, "--sequence-length", "65"), 2, "64 positions");
    program_refused(CONVERT(source, target, "--kv-heads", "2", "--calibration", few, "--sequence-length", "3"), 3, "too few");
    program_refused(CONVERT(source, target, "--kv-heads", "2", "--calibration", "absent.bin"), 5, "absent.bin");
    int32_t short_file[41] = {0};
    assert_ok(tokens_write(few, short_file, 41, 37, -1, -1, NULL));
    for (int i = 0; i < 2; i++) { /* two sequences of 20 fit, of 21 not: ten of 4 then */
        json_t *j = program_json(CONVERT(source, target, "--kv-heads", "2", "--json", "--calibration", few, "--sequence-length", i ? "21" : "20", "--dry-run"));
        assert_int_equal(json_integer_value(json_object_get(json_object_get(j, "calibration"), "sequence_length")), i ? 4 : 20);
        json_decref(j);
    }
    for (int i = 0; i < 400; i++)
        foreign[i] = 40;
    assert_ok(tokens_write(few, foreign, 400, 50, -1, -1, NULL));
    program_refused(CONVERT(source, target, "--kv-heads", "2", "--calibration", few), 3, "few.bin");
    assert_false(io_exists(target));
    free(source);
    free(target);
    free(tokens);
    free(few);
}

/* ---- a trained model ---- */

static double trained(const char *source, const char *tokens, const char *target, const char *method, const char *refit, double *before)
{
    json_t *j = program_json(CONVERT(source, target, "--force", "--quiet", "--json", "--kv-heads", "2", "--method", method, "--refit", refit, "--calibration", tokens,
                                     "--calibration-tokens", "10000"));
    double loss = json_number_at(j, "loss_after");
    *before = json_number_at(j, "loss_before");
    print_message("4 -> 2, %-5s refit %-6s %.4f (original %.4f)\n", method, refit, loss, *before);
    json_decref(j);
    return loss;
}

static void a_trained_model(void **state)
{
    (void)state;
    char *source = data_path("models/babyllama-tok105-hf"), *tokens = data_path("tokens/tinystories_tok105_train.bin"), *target = temp_path("trained");
    if (source && tokens) {
        double before, mean = trained(source, tokens, target, "mean", "none", &before), svd = trained(source, tokens, target, "svd", "none", &before);
        double output = trained(source, tokens, target, "svd", "output", &before), block = trained(source, tokens, target, "svd", "block", &before);
        double all = trained(source, tokens, target, "svd", "all", &before);
        assert_true(svd < mean && output < svd && block < output && all < block);
        assert_true(all - before < 0.06 * (mean - before));
    }
    free(source);
    free(tokens);
    free(target);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(moments_are_the_direct_sum),        cmocka_unit_test(planted_maps_are_found),
        cmocka_unit_test(spilled_memory),                    cmocka_unit_test(representable_change_is_recovered),
        cmocka_unit_test(nothing_to_repair_is_left_alone),   cmocka_unit_test(every_form),
        cmocka_unit_test(same_bits_every_run),               cmocka_unit_test(other_ways_out),
        cmocka_unit_test(refusals),                          cmocka_unit_test(a_trained_model),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
