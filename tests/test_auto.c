/* --method auto over the forms that models have, and what the report of a calibrated conversion measures: attention's entropy against a
 * double loop and known values, the loss of a plain mean run beside, heads compared in the order that grouping gave them. */
#include <math.h>

#include "convert/calibrate_parts.h"
#include "model_fixture.h"
#include "model_variants.h"
#include "programs.h"
#include "small_checkpoint.h"

enum { B = 2, T = 37, H = 6, G = 3, D = 8, SEQUENCES = 60, LENGTH = 32 };

/* ---- what is chosen ---- */

static struct options asked(const char *calibration, int method)
{
    return (struct options){.method = method, .grouping = -1, .refit = -1, .calibration = calibration};
}

static void choices_by_form(void **state)
{
    (void)state;
    for (int i = -1; i < model_variants(); i++) {
        struct arch a;
        struct auto_choice c;
        fixture_arch(&a);
        if (i >= 0)
            MODEL_VARIANTS[i].change(&a);
        struct options o = asked("tokens.bin", METHOD_AUTO), weights = asked(NULL, METHOD_AUTO), plain = asked("tokens.bin", -1);
        auto_choose(&c, &o, &a);
        enum refit strongest = a.norm_place != NORM_PRE ? REFIT_NONE : a.qk_norm != QK_NORM_NONE || a.clip_qkv > 0 ? REFIT_BLOCK : REFIT_ALL;
        assert_int_equal(o.refit, strongest);
        assert_int_equal(c.n_refused, REFIT_ALL - strongest);
        assert_int_equal(o.method, strongest == REFIT_ALL ? MERGE_ALIGN : MERGE_SVD);
        assert_int_equal(o.grouping, a.pos == POS_ALIBI ? GROUPING_CONSECUTIVE : GROUPING_SIMILAR);
        assert_true(c.chosen && strlen(c.why) > 10);
        auto_choose(&c, &weights, &a);
        assert_true(weights.method == MERGE_SVD && weights.refit == REFIT_NONE && strstr(c.why, "--calibration") != NULL);
        auto_choose(&c, &plain, &a);
        assert_true(!c.chosen && plain.method == MERGE_MEAN && plain.refit == REFIT_NONE && plain.grouping == GROUPING_CONSECUTIVE);
        struct options mine = asked("tokens.bin", METHOD_AUTO);
        mine.refit = REFIT_NONE;
        mine.grouping = GROUPING_CONSECUTIVE;
        auto_choose(&c, &mine, &a);
        assert_true(mine.refit == REFIT_NONE && mine.grouping == GROUPING_CONSECUTIVE && c.n_refused == 0);
        arch_free(&a);
    }
}

/* ---- entropy ---- */

struct attention { struct arch arch; struct batch batch; struct model_block_values v; float *q, *k, *lse, *alibi; };

static int sees(const struct attention *x, int64_t b, int64_t t, int64_t s)
{
    int64_t window = x->arch.stack[STACK_DEC].block[1].window;
    return s <= t && x->batch.segments[b * T + s] == x->batch.segments[b * T + t] && (window == 0 || s > t - window);
}

static double score(const struct attention *x, int64_t b, int64_t h, int64_t t, int64_t s)
{
    double sum = 0;
    for (int64_t d = 0; d < D; d++)
        sum += (double)x->q[((b * T + t) * H + h) * D + d] * (double)x->k[((b * T + s) * G + h / (H / G)) * D + d];
    return sum * x->arch.attn_scale + (x->alibi ? (double)x->alibi[h] * (double)(s - t) : 0.0);
}

/* Sum of entropies by definition; fills lse. */
static double entropy_by_loops(struct attention *x)
{
    double total = 0;
    for (int64_t b = 0; b < B; b++)
        for (int64_t h = 0; h < H; h++)
            for (int64_t t = 0; t < T; t++) {
                double z = 0, most = -HUGE_VAL, lse;
                for (int64_t s = 0; s <= t; s++)
                    most = sees(x, b, t, s) ? fmax(most, score(x, b, h, t, s)) : most;
                for (int64_t s = 0; s <= t; s++)
                    z += sees(x, b, t, s) ? exp(score(x, b, h, t, s) - most) : 0;
                lse = log(z) + most;
                x->lse[(b * H + h) * T + t] = (float)lse;
                for (int64_t s = 0; s <= t; s++)
                    total -= sees(x, b, t, s) ? exp(score(x, b, h, t, s) - lse) * (score(x, b, h, t, s) - lse) : 0;
            }
    return total;
}

static void attention_open(struct attention *x, float size, int64_t window, int slopes)
{
    *x = (struct attention){.q = malloc(sizeof(float) * B * T * H * D), .k = malloc(sizeof(float) * B * T * G * D), .lse = malloc(sizeof(float) * B * H * T)};
    small_arch(&x->arch, H, G, DT_F32);
    x->arch.stack[STACK_DEC].block[1].window = window;
    assert_ok(batch_alloc(&x->batch, B, T));
    x->batch.B = B;
    x->batch.T = T;
    for (int64_t i = 0; i < B * T; i++)
        x->batch.segments[i] = i % T > 19;
    fill_random(x->q, B * T * H * D, 3);
    fill_random(x->k, B * T * G * D, 4);
    for (int64_t i = 0; i < B * T * H * D; i++)
        x->q[i] *= size;
    if (slopes) {
        x->alibi = malloc(sizeof(float) * H);
        for (int h = 0; h < H; h++)
            x->alibi[h] = 0.1f * (float)h;
        x->v.alibi = view_1d(x->alibi, DT_F32, H);
    }
    x->v.q = view_4d(x->q, DT_F32, B, T, H, D);
    x->v.k = view_4d(x->k, DT_F32, B, T, G, D);
    x->v.lse = view_3d(x->lse, DT_F32, B, H, T);
}

static void attention_close(struct attention *x)
{
    batch_free(&x->batch);
    arch_free(&x->arch);
    free(x->q);
    free(x->k);
    free(x->lse);
    free(x->alibi);
}

static void entropy_by_definition(void **state)
{
    (void)state;
    for (int64_t window = 0; window <= 7; window += 7)
        for (int slopes = 0; slopes < 2; slopes++) {
            struct attention x;
            double sum = (double)NAN;
            attention_open(&x, 2, window, slopes);
            double expected = entropy_by_loops(&x);
            assert_ok(attention_entropy(&sum, &x.v, &x.batch, &x.arch, 1));
            assert_true(fabs(sum - expected) <= 1e-5 * expected);
            attention_close(&x);
        }
}

/* Queries of zero see all tokens alike: ln n. Of great size: one token, 0. */
static void entropy_of_known_attention(void **state)
{
    (void)state;
    struct attention x;
    double sum = (double)NAN, expected = 0;
    attention_open(&x, 0, 0, 0);
    entropy_by_loops(&x);
    assert_ok(attention_entropy(&sum, &x.v, &x.batch, &x.arch, 1));
    for (int64_t t = 0; t < T; t++)
        expected += B * H * log((double)(t > 19 ? t - 19 : t + 1));
    assert_true(fabs(sum - expected) <= 1e-5 * expected);
    attention_close(&x);
    attention_open(&x, 1e4f, 0, 0);
    entropy_by_loops(&x);
    assert_ok(attention_entropy(&sum, &x.v, &x.batch, &x.arch, 1));
    assert_true(fabs(sum) < 1e-2 * expected);
    attention_close(&x);
}

/* ---- the program ---- */

static char *token_file(void)
{
    char *path = temp_path("tokens.bin");
    int32_t ids[LENGTH * SEQUENCES + 1];
    for (size_t i = 0; i < COUNT_OF(ids); i++)
        ids[i] = (int32_t)random_int(9, i, 0, 36);
    assert_ok(tokens_write(path, ids, (int64_t)COUNT_OF(ids), 37, -1, -1, NULL));
    return path;
}

static char *source_model(const char *name, int64_t repeat, small_edit_fn *edit)
{
    struct arch a;
    small_arch(&a, 6, 6, DT_F32);
    char *path = temp_path(name);
    small_write(path, &a, 21, repeat, edit);
    arch_free(&a);
    return path;
}

static json_t *calibrated(const char *source, const char *heads, const char *method, const char *flag, const char *value)
{
    char *tokens = token_file(), *target = temp_path("result");
    json_t *j = program_json(CONVERT(source, target, "--force", "--quiet", "--json", "--calibration", tokens, "--sequence-length", "32", "--threads", "1", "--kv-heads",
                                     heads, "--method", method, flag ? flag : "--quiet", flag ? value : "--quiet"));
    free(tokens);
    free(target);
    return j;
}

static const char *text_at(const json_t *j, const char *key)
{
    const char *text = json_string_value(json_object_get(j, key));
    return text ? text : "";
}

static void auto_in_the_report(void **state)
{
    (void)state;
    char *source = source_model("source", 1, NULL), *target = temp_path("weights");
    json_t *j = calibrated(source, "3", "auto", NULL, NULL), *mean = calibrated(source, "3", "mean", NULL, NULL);
    assert_string_equal(text_at(j, "chosen_by"), "auto");
    assert_string_equal(text_at(j, "method"), "align");
    assert_string_equal(text_at(j, "refit"), "all");
    assert_string_equal(text_at(j, "grouping"), "similar");
    assert_true(json_is_null(json_object_get(j, "advice")) && json_array_size(json_object_get(j, "refused")) == 0);
    assert_string_equal(text_at(mean, "chosen_by"), "user");
    assert_non_null(strstr(text_at(mean, "advice"), "--method auto"));
    /* the mean beside is the mean alone */
    assert_true(fabs(json_number_at(j, "loss_mean") - json_number_at(mean, "loss_after")) < 1e-6);
    assert_true(fabs(json_number_at(mean, "loss_mean") - json_number_at(mean, "loss_after")) < 1e-9);
    const json_t *entropy = json_object_get(json_object_get(j, "calibration"), "attention_entropy");
    assert_int_equal(json_array_size(entropy), 2);
    assert_true(json_number_at(json_array_get(entropy, 1), "before") > 0 && json_number_at(json_array_get(entropy, 1), "after") > 0);
    json_decref(j);
    json_decref(mean);
    j = program_json(CONVERT(source, target, "--quiet", "--json", "--kv-heads", "2", "--method", "auto"));
    assert_string_equal(text_at(j, "method"), "svd");
    assert_string_equal(text_at(j, "refit"), "none");
    assert_non_null(strstr(text_at(j, "chosen_because"), "--calibration"));
    json_decref(j);
    struct child c = CONVERT(source, target, "--force", "--kv-heads", "2", "--method", "first", "--dry-run");
    assert_non_null(strstr(c.out, "first is a poor start: --method auto"));
    program_ok(c);
    free(source);
    free(target);
}

/* Heads in pairs of equals: nothing is lost at half of them, and said so; at a third something is. */
static void equal_heads_need_nothing(void **state)
{
    (void)state;
    char *source = source_model("pairs", 2, NULL), *target = temp_path("pairs-gqa");
    json_t *j = calibrated(source, "3", "auto", NULL, NULL);
    assert_string_equal(text_at(j, "method"), "mean");
    assert_string_equal(text_at(j, "refit"), "none");
    assert_non_null(strstr(text_at(j, "chosen_because"), "equal"));
    assert_non_null(strstr(text_at(j, "expect"), "nothing to repair"));
    assert_true(fabs(json_number_at(j, "loss_after") - json_number_at(j, "loss_before")) < 1e-6);
    for (size_t l = 0; l < 2; l++) {
        const json_t *e = json_array_get(json_object_get(json_object_get(j, "calibration"), "attention_entropy"), l);
        assert_true(fabs(json_number_at(e, "before") - json_number_at(e, "after")) < 1e-5);
    }
    json_decref(j);
    j = program_json(CONVERT(source, target, "--quiet", "--json", "--kv-heads", "2", "--method", "auto"));
    assert_string_equal(text_at(j, "method"), "svd");
    json_decref(j);
    free(source);
    free(target);
}

/* K/V heads i and i + 3 are equal: neighbours differ. */
static void equal_across(const struct ckpt_tensor *t, float *x)
{
    int64_t half = t->n[0] / 2 * t->n[1];
    if (strstr(t->name, "attn.k.w") || strstr(t->name, "attn.v.w"))
        memcpy(x + half, x, (size_t)half * sizeof *x);
}

/* Grouped by likeness nothing is lost, and a refit of scores, head by head against the original's, finds nothing to change. */
static void heads_compared_in_their_order(void **state)
{
    (void)state;
    char *source = source_model("across", 1, equal_across);
    json_t *j = calibrated(source, "3", "svd", "--grouping", "similar"), *all;
    char *tokens = token_file(), *target = temp_path("across-gqa");
    assert_true(fabs(json_number_at(j, "loss_after") - json_number_at(j, "loss_before")) < 1e-5);
    all = program_json(CONVERT(source, target, "--quiet", "--json", "--calibration", tokens, "--sequence-length", "32", "--threads", "1", "--kv-heads", "3", "--method",
                               "svd", "--grouping", "similar", "--refit", "all"));
    print_message("loss %.6f, after %.6f\n", json_number_at(all, "loss_before"), json_number_at(all, "loss_after"));
    assert_true(fabs(json_number_at(all, "loss_after") - json_number_at(all, "loss_before")) < 1e-4);
    json_decref(j);
    json_decref(all);
    free(source);
    free(target);
    free(tokens);
}

static void layers_in_the_card(void **state)
{
    (void)state;
    char *source = source_model("card", 1, NULL), *target = temp_path("card-gqa"), *tokens = token_file(), *path, *card;
    size_t n;
    program_ok(CONVERT(source, target, "--kv-budget", "50%", "--method", "auto", "--calibration", tokens, "--sequence-length", "32", "--threads", "1"));
    path = io_join(target, "README.md");
    assert_ok(io_read_all(path, 1 << 20, &card, &n));
    assert_non_null(strstr(card, "## Layers"));
    assert_non_null(strstr(card, "entropy before | after"));
    assert_non_null(strstr(card, "chosen by gqakit"));
    assert_non_null(strstr(card, "mean would start at"));
    assert_non_null(strstr(card, "K/V budget of 50%"));
    assert_null(strstr(card, " nan"));
    free(card);
    free(path);
    free(source);
    free(target);
    free(tokens);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(choices_by_form),          cmocka_unit_test(entropy_by_definition),         cmocka_unit_test(entropy_of_known_attention),
        cmocka_unit_test(auto_in_the_report),       cmocka_unit_test(equal_heads_need_nothing),      cmocka_unit_test(heads_compared_in_their_order),
        cmocka_unit_test(layers_in_the_card),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
