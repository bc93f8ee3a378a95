/* From cells to an answer, on made-up results: which cells are the same, means and spreads, the recommendation and its reasons, what a
 * start is worth, the time left. */
#include "ablate_case.h"
#include "harness.h"

#include <math.h>

static int count(const struct ablation *a, double alpha)
{
    int n = 0;
    for (int i = 0; i < a->n_cells; i++)
        n += fabs(a->cells[i].alpha - alpha) < 1e-12;
    return n;
}

static void equal_cells_are_one(void **state)
{
    (void)state;
    struct ablation a;
    ablate_case(&a);
    assert_int_equal(count(&a, 0), 1 + 3 * 2); /* neither loss nor seed matters without training */
    assert_int_equal(count(&a, 0.005), 2 * 2 * (1 + 3 * 2));
    assert_int_equal(a.n_cells, 7 + 2 * 28);
    assert_int_equal(a.baseline, 0);
    const struct cell *zero = ablate_case_cell(&a, 2, "svd+all", "ce", 0, 0), *ce = ablate_case_cell(&a, 2, "svd+all", "ce", 0.05, 0),
                      *distill = ablate_case_cell(&a, 2, "svd+all", "distill", 0.05, 1), *mean = ablate_case_cell(&a, 2, "mean", "ce", 0.05, 0);
    assert_string_equal(zero->conversion, distill->conversion);
    assert_string_equal(zero->zero, distill->zero);
    assert_string_not_equal(zero->conversion, mean->conversion);
    assert_string_not_equal(ce->training, distill->training);
    ablate_free(&a);
}

/* Only what a change touches is done again. */
static void ids_follow_what_they_depend_on(void **state)
{
    (void)state;
    static const char *const data[] = { "other.txt" };
    struct ablation a, b;
    ablate_case(&a);
    ablate_case(&b);
    b.config.tasks = (struct config_list){ 1, data };
    ablate_case_again(&b);
    const struct cell *x = ablate_case_cell(&a, 4, "mean", "distill", 0.05, 1), *y = ablate_case_cell(&b, 4, "mean", "distill", 0.05, 1);
    assert_string_not_equal(x->id, y->id);
    assert_string_equal(x->zero, y->zero);
    assert_string_equal(x->training, y->training);
    b.config.data = (struct config_list){ 1, data };
    ablate_case_again(&b);
    y = ablate_case_cell(&b, 4, "mean", "distill", 0.05, 1);
    assert_string_not_equal(x->zero, y->zero);
    assert_string_equal(x->training, y->training);
    json_object_set_new(b.distill, "weight", json_real(0.9));
    ablate_case_again(&b);
    assert_string_not_equal(x->training, ablate_case_cell(&b, 4, "mean", "distill", 0.05, 1)->training);
    x = ablate_case_cell(&a, 4, "mean", "ce", 0.05, 1);
    assert_string_equal(x->training, ablate_case_cell(&b, 4, "mean", "ce", 0.05, 1)->training);
    ablate_free(&a);
    ablate_free(&b);
}

static void random_starts_have_seeds(void **state)
{
    (void)state;
    static const char *const methods[] = { "random+output" };
    struct ablation a;
    ablate_case(&a);
    a.config.method = (struct config_list){ 1, methods };
    ablate_case_again(&a);
    assert_int_equal(count(&a, 0), 1 + 3 * 2);
    assert_string_not_equal(ablate_case_cell(&a, 2, "random+output", "ce", 0, 0)->conversion, ablate_case_cell(&a, 2, "random+output", "ce", 0, 1)->conversion);
    ablate_free(&a);
}

static void measures(void **state)
{
    (void)state;
    const double x[] = { 1, (double)NAN, 4, 1 };
    struct measure m = ablate_measure(x, 4);
    assert_int_equal(m.n, 3);
    assert_true(fabs(m.mean - 2) < 1e-12 && fabs(m.sd - sqrt(3)) < 1e-12);
    m = ablate_measure(x, 1);
    assert_true(m.n == 1 && !(m.sd > 0));
    m = ablate_measure(x + 1, 1);
    assert_true(m.n == 0 && isnan(m.mean));
}

/* Differences 1, 3, 2 over 2, 4, 4 tokens: mean 0.6 a token, residuals -0.2, 0.6, -0.4. */
static void paired_windows(void **state)
{
    (void)state;
    json_t *x = json_pack("[[f, i], [f, i], [f, i]]", 3.0, 2, 7.0, 4, 9.0, 4), *y = json_pack("[[f, i], [f, i], [f, i]]", 2.0, 2, 4.0, 4, 7.0, 4);
    assert_true(fabs(ablate_paired_stderr(x, y) - sqrt(0.56 * 3 / 2) / 10) < 1e-12);
    assert_true(fabs(ablate_paired_stderr(x, x)) < 1e-12);
    json_array_remove(y, 2);
    assert_true(isnan(ablate_paired_stderr(x, y)));
    json_array_append_new(y, json_pack("[f, i]", 7.0, 5));
    assert_true(isnan(ablate_paired_stderr(x, y)));
    json_decref(x);
    json_decref(y);
    struct summary s = { .final = { 1, 0.4, 4 }, .difference_stderr = { 0.15, 0, 4 } };
    assert_true(fabs(ablate_uncertainty(&s) - 0.25) < 1e-12);
}

static void summaries_are_over_seeds(void **state)
{
    (void)state;
    struct ablation a;
    ablate_case(&a);
    ablate_case_fill(&a);
    struct cell *bad = ablate_case_cell(&a, 2, "mean", "ce", 0.05, 1);
    bad->done = 0;
    snprintf(bad->error, sizeof bad->error, "it broke");
    assert_ok(ablate_summarise(&a));
    const struct summary *s = ablate_find(&a, 1, "svd+all", "consecutive", "distill", 0.005);
    assert_non_null(s);
    assert_int_equal(s->n, 2);
    assert_true(fabs(s->final.mean - (1 + 0.2 * 0.3 * 2 * 0.8)) < 1e-9);
    assert_true(fabs(s->final.sd - sqrt(2) * 0.001) < 1e-9);
    assert_true(fabs(ablate_uncertainty(s) - 0.001) < 1e-9);
    assert_int_equal(a.cells[s->best].seed, 0);
    assert_true(fabs(ablate_task(&a, s, "pairs").mean - (0.9 - 0.0096)) < 1e-9);
    assert_true(isnan(ablate_task(&a, s, "absent").mean));
    s = ablate_find(&a, 2, "mean", "consecutive", "ce", 0.05);
    assert_int_equal(s->n, 1);
    assert_int_equal(s->failed, 1);
    /* without training every loss is the same cell; at the original's count every method is */
    assert_ptr_equal(ablate_find(&a, 2, "mean", "consecutive", "ce", 0), ablate_find(&a, 2, "mean", "consecutive", "distill", 0));
    assert_ptr_equal(ablate_find(&a, 8, "mean", "consecutive", "ce", 0.05), ablate_find(&a, 8, "svd+all", "consecutive", "ce", 0.05));
    int64_t G[8];
    double shares[8];
    assert_int_equal(ablate_groups(&a, G, 8), 4);
    assert_true(G[0] == 8 && G[1] == 4 && G[2] == 2 && G[3] == 1);
    assert_int_equal(ablate_shares(&a, shares, 8), 3);
    assert_true(shares[0] < shares[1] && shares[1] < shares[2]);
    ablate_free(&a);
}

/* Excess at 5%: svd+all distill 0.016 at 1 head, 0.008 at 2; ce 0.02 and 0.01. Margin 0.02, uncertainty 0.001. */
static void recommends_the_smallest_cache(void **state)
{
    (void)state;
    struct ablation a;
    ablate_case(&a);
    ablate_case_fill(&a);
    assert_ok(ablate_summarise(&a));
    const struct summary *s = &a.summaries[a.advice.pick];
    assert_int_equal(s->G, 1);
    assert_string_equal(s->loss, "distill");
    assert_non_null(strstr(a.advice.reason, "1 key/value head instead of 8: svd+all, distill, uptrained on 5% of the original tokens. 12.5% of the K/V cache"));
    assert_non_null(strstr(a.advice.reason, "+0.0160"));
    assert_non_null(strstr(a.advice.path, "runs/case/trained/"));
    assert_non_null(strstr(a.advice.path, a.cells[s->best].training));
    assert_non_null(strstr(a.advice.command, a.advice.path));
    assert_int_equal(ablate_focus(&a), 1);

    a.config.margin = 0.0165; /* the mean is within it, the mean and its error are not */
    assert_ok(ablate_summarise(&a));
    assert_int_equal(a.summaries[a.advice.pick].G, 2);

    a.config.margin = 0.0045; /* 4 heads: svd+all, distill, 5%: 0.0008; with 0.5% ce would do as well? 0.006: no */
    assert_ok(ablate_summarise(&a));
    assert_int_equal(a.summaries[a.advice.pick].G, 4);
    assert_null(strstr(a.advice.reason, "Enough would be"));
    a.config.margin = 0.0065;
    assert_ok(ablate_summarise(&a));
    assert_non_null(strstr(a.advice.reason, "Enough would be: svd+all, distill, uptrained on 0.5%"));
    ablate_free(&a);
}

static void says_when_nothing_qualifies(void **state)
{
    (void)state;
    struct ablation a;
    ablate_case(&a);
    ablate_case_fill(&a);
    a.config.margin = 1e-4;
    assert_ok(ablate_summarise(&a));
    assert_int_equal(a.advice.pick, -1);
    assert_int_equal(a.summaries[a.advice.nearest].G, 4);
    assert_non_null(strstr(a.advice.reason, "Nothing below 8 key/value heads"));
    assert_non_null(strstr(a.advice.next, "add 0.1 to grid.uptrain_fraction"));
    assert_null(strstr(a.advice.next, "distill"));
    a.config.loss.n = 1;
    a.config.method.n = 1;
    assert_ok(ablate_summarise(&a));
    assert_non_null(strstr(a.advice.next, "add align+all to grid.method; add distill to grid.loss"));
    for (int i = 0; i < a.n_cells; i++)
        a.cells[i].done = a.cells[i].G == 8;
    assert_ok(ablate_summarise(&a));
    assert_true(a.advice.pick == -1 && a.advice.nearest == -1);
    assert_non_null(strstr(a.advice.reason, "nothing to recommend"));
    ablate_free(&a);
}

static void a_control_that_gets_worse_is_a_warning(void **state)
{
    (void)state;
    struct ablation a;
    ablate_case(&a);
    ablate_case_fill(&a);
    assert_ok(ablate_summarise(&a));
    assert_string_equal(a.advice.warning, "");
    ablate_case_cell(&a, 8, "none", "distill", 0.05, 0)->loss_final = 1.05;
    ablate_case_cell(&a, 8, "none", "distill", 0.05, 1)->loss_final = 1.06;
    assert_ok(ablate_summarise(&a));
    assert_non_null(strstr(a.advice.warning, "even the original worse: +0.0550 nats after 5% (distill)"));
    ablate_case_cell(&a, 8, "none", "distill", 0.05, 1)->loss_final = 0.96; /* the seeds do not agree */
    assert_ok(ablate_summarise(&a));
    assert_string_equal(a.advice.warning, "");
    ablate_free(&a);
}

static void one_seed_says_so(void **state)
{
    (void)state;
    struct ablation a;
    ablate_case(&a);
    a.config.seed.n = 1;
    ablate_case_again(&a);
    ablate_case_fill(&a);
    assert_ok(ablate_summarise(&a));
    assert_non_null(strstr(a.advice.reason, "one seed: spread unknown"));
    ablate_free(&a);
}

static void worth_of_a_start(void **state)
{
    (void)state;
    struct ablation a;
    char line[512];
    ablate_case(&a);
    ablate_case_fill(&a);
    assert_ok(ablate_summarise(&a));
    /* mean, ce at 5%: 0.1 x heads; svd+all, distill at 0.5%: 0.048 x heads */
    assert_int_equal(ablate_worth(&a, 2, line, sizeof line), 1);
    assert_non_null(strstr(line, "2 heads: svd+all, distill reaches 1.0480 with 0.5%; mean, ce needs 5% for 1.1000: 10 times less training"));
    assert_int_equal(ablate_worth(&a, 8, line, sizeof line), 0);
    a.config.method.n = 1; /* mean alone: distill of mean is compared */
    ablate_case_again(&a);
    ablate_case_fill(&a);
    assert_ok(ablate_summarise(&a));
    assert_int_equal(ablate_worth(&a, 1, line, sizeof line), 1);
    assert_non_null(strstr(line, "mean, distill reaches 1.1600 with 5%"));
    ablate_free(&a);
}

static void time_left(void **state)
{
    (void)state;
    struct ablation a;
    ablate_case(&a);
    assert_true(isnan(ablate_time_left(&a)));
    ablate_case_fill(&a);
    assert_true(fabs(ablate_time_left(&a)) < 1e-12);
    struct cell *c = ablate_case_cell(&a, 1, "mean", "distill", 0.05, 1);
    c->done = 0;
    assert_true(fabs(ablate_time_left(&a) - (3 + 0.05 * 1e6 * 2e-3)) < 1e-6);
    snprintf(c->error, sizeof c->error, "failed"); /* not tried again in this run */
    assert_true(fabs(ablate_time_left(&a)) < 1e-12);
    for (int i = 0; i < a.n_cells; i++)
        a.cells[i].done = !(a.cells[i].alpha > 0);
    assert_true(isnan(ablate_time_left(&a))); /* no training seen yet */
    ablate_free(&a);
}

static void task_metrics(void **state)
{
    (void)state;
    json_t *j = json_pack("{s:{s:{s:s, s:f, s:f, s:f, s:f}, s:{s:f, s:s}}, s:{s:{s:i, s:i}}}", "results", "arc", "alias", "arc", "acc,none", 0.25, "acc_stderr,none", 0.1, "acc_norm,none",
                          0.5, "acc_norm_stderr,none", 0.2, "sums", "exact_match,none", 0.75, "exact_match_stderr,none", "N/A", "n-samples", "arc", "original", 9, "effective", 8);
    json_t *values = ablate_task_values(j);
    assert_non_null(values);
    const json_t *arc = json_object_get(values, "arc"), *sums = json_object_get(values, "sums");
    assert_string_equal(json_string_value(json_object_get(arc, "metric")), "acc_norm");
    assert_true(fabs(json_number_value(json_object_get(arc, "value")) - 0.5) < 1e-12);
    assert_int_equal(json_integer_value(json_object_get(arc, "n")), 8);
    assert_true(fabs(json_number_value(json_object_get(sums, "value")) - 0.75) < 1e-12);
    assert_true(json_is_null(json_object_get(sums, "stderr")));
    json_decref(values);
    json_object_clear(json_object_get(j, "results"));
    assert_null(ablate_task_values(j));
    json_decref(j);
}

static void records_round_trip(void **state)
{
    (void)state;
    struct ablation a;
    ablate_case(&a);
    ablate_case_fill(&a);
    struct cell *c = ablate_case_cell(&a, 2, "svd+all", "distill", 0.05, 1), back = { .loss_final = (double)NAN, .bits_per_byte = (double)NAN };
    snprintf(c->chosen, sizeof c->chosen, "svd+block");
    json_t *j = ablate_record(c);
    char *path = temp_path("record.json");
    assert_ok(json_write_file(path, j));
    json_decref(j);
    assert_ok(ablate_record_load(&back, path));
    assert_true(fabs(back.loss_final - c->loss_final) < 1e-12 && fabs(back.kl - c->kl) < 1e-12 && back.steps == c->steps);
    assert_true(json_equal(back.tasks, c->tasks) && json_equal(back.evals, c->evals));
    assert_string_equal(back.chosen, "svd+block");
    json_decref(back.tasks);
    json_decref(back.evals);
    json_decref(back.curve);
    c->loss_final = (double)NAN;
    assert_null(ablate_record(c));
    free(path);
    ablate_free(&a);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equal_cells_are_one),        cmocka_unit_test(ids_follow_what_they_depend_on), cmocka_unit_test(random_starts_have_seeds),
        cmocka_unit_test(measures), cmocka_unit_test(paired_windows),cmocka_unit_test(summaries_are_over_seeds),       cmocka_unit_test(recommends_the_smallest_cache),
        cmocka_unit_test(says_when_nothing_qualifies), cmocka_unit_test(one_seed_says_so), cmocka_unit_test(a_control_that_gets_worse_is_a_warning),              cmocka_unit_test(worth_of_a_start),
        cmocka_unit_test(time_left),                  cmocka_unit_test(task_metrics),                   cmocka_unit_test(records_round_trip),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
