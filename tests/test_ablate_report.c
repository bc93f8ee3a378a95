/* The report of an ablation, on made-up results: the page stands alone, every number of the tables is there once, failures show their
 * reasons, figures follow the data, and without gnuplot or without data it says so. */
#include "ablate_case.h"
#include "harness.h"

#include <math.h>

static void filled(struct ablation *a)
{
    ablate_case(a);
    ablate_case_fill(a);
    assert_ok(ablate_summarise(a));
}

static int occurrences(const char *text, const char *part)
{
    int n = 0;
    for (const char *p = text; (p = strstr(p, part)); p += strlen(part))
        n++;
    return n;
}

static void page_stands_alone(void **state)
{
    (void)state;
    struct ablation a;
    filled(&a);
    char *page = ablate_html(&a);
    assert_non_null(page);
    static const char *const outside[] = { "src=", "<link", "@import", "url(http", "<iframe" };
    for (size_t i = 0; i < COUNT_OF(outside); i++)
        assert_null(strstr(page, outside[i]));
    assert_int_equal(occurrences(page, "http"), 2 * occurrences(page, "<svg")); /* the two names of SVG's own namespaces */
    assert_int_equal(occurrences(page, "<b>&amp;"), 0);
    assert_non_null(strstr(page, "case &lt;b&gt;&amp;"));
    static const char *const pairs[][2] = { { "<table", "</table>" }, { "<tr", "</tr>" }, { "<figure>", "</figure>" }, { "<details", "</details>" }, { "<svg", "</svg>" } };
    for (size_t i = 0; i < COUNT_OF(pairs); i++)
        assert_int_equal(occurrences(page, pairs[i][0]), occurrences(page, pairs[i][1]));
    assert_int_equal(occurrences(page, "<table>"), 4);
    /* the answer stands before figures and tables, its row is marked, the checkpoint is named */
    const char *answer = strstr(page, "class=\"answer\"");
    assert_non_null(answer);
    assert_true(answer < strstr(page, "<table") && (!strstr(page, "<figure") || answer < strstr(page, "<figure")));
    assert_non_null(strstr(answer, "runs/case/trained/"));
    assert_int_equal(occurrences(page, "<tr class=\"pick\">"), 1);
    assert_null(strstr(page, "nan"));
    assert_null(strstr(page, "class=alert"));
    free(page);
    ablate_free(&a);
}

static void failures_are_shown(void **state)
{
    (void)state;
    struct ablation a;
    filled(&a);
    struct cell *bad = ablate_case_cell(&a, 1, "mean", "ce", 0.05, 0), *waiting = ablate_case_cell(&a, 1, "mean", "ce", 0.05, 1);
    bad->done = waiting->done = 0;
    snprintf(bad->error, sizeof bad->error, "gqa-uptrain: loss <nan> | at step 3");
    assert_ok(ablate_summarise(&a));
    char *page = ablate_html(&a), *markdown = ablate_markdown(&a), *csv = ablate_csv(&a);
    assert_non_null(strstr(page, "failed: gqa-uptrain: loss &lt;nan&gt; | at step 3"));
    assert_non_null(strstr(page, "1 of 63 cells failed"));
    assert_non_null(strstr(page, "<details open>"));
    assert_non_null(strstr(page, "not run yet"));
    assert_non_null(strstr(markdown, "failed: gqa-uptrain: loss <nan> \\| at step 3"));
    assert_int_equal(occurrences(csv, ",failed,"), 1);
    assert_int_equal(occurrences(csv, ",waiting,"), 1);
    json_t *j = ablate_results(&a);
    int failed = 0;
    size_t i;
    const json_t *cell;
    json_array_foreach(json_object_get(j, "cells"), i, cell)
        if (strcmp(json_string_value(json_object_get(cell, "status")), "failed") == 0) {
            failed++;
            assert_non_null(strstr(json_string_value(json_object_get(cell, "error")), "step 3"));
        }
    assert_int_equal(failed, 1);
    json_decref(j);
    free(page);
    free(markdown);
    free(csv);
    ablate_free(&a);
}

static void tables_have_every_row(void **state)
{
    (void)state;
    struct ablation a;
    filled(&a);
    char *text = ablate_markdown(&a), *csv = ablate_csv(&a);
    /* starts: 3 counts x 2 methods x 2 losses and 2 controls; summary 7 + 2 x 14; decode 4; cells 63; 4 heads of two lines */
    int rows = 0;
    for (const char *p = text; p; p = strchr(p, '\n') ? strchr(p, '\n') + 1 : NULL)
        rows += *p == '|';
    assert_int_equal(rows, 14 + 35 + 4 + 63 + 8);
    assert_non_null(strstr(text, "| 2 | svd+all, distill | +0.2000 | +0.0480 +- 0.0014 | +0.0080 +- 0.0014 |"));
    assert_non_null(strstr(text, "* 2 heads: svd+all, distill reaches"));
    int lines = occurrences(csv, "\n"), commas = -1;
    assert_int_equal(lines, 64);
    for (const char *p = csv; *p; p = strchr(p, '\n') + 1) { /* no field holds a comma here */
        int n = 0;
        for (const char *q = p; *q != '\n'; q++)
            n += *q == ',';
        assert_true(commas < 0 || n == commas);
        commas = n;
    }
    free(text);
    free(csv);
    ablate_free(&a);
}

static void results_for_programs(void **state)
{
    (void)state;
    struct ablation a;
    filled(&a);
    json_t *j = ablate_results(&a);
    assert_string_equal(json_string_value(json_object_get(j, "schema")), "gqakit/ablation/1");
    static const char *const keys[] = { "id", "G", "method", "grouping", "loss", "alpha", "seed", "steps", "loss_zero_step", "loss_final", "kl", "bits_per_byte",
                                        "tasks", "curve", "decode", "kv_bytes", "convert_s", "uptrain_s", "status", "error" };
    const json_t *cell = json_array_get(json_object_get(j, "cells"), 5), *r = json_object_get(j, "recommendation");
    for (size_t i = 0; i < COUNT_OF(keys); i++)
        assert_non_null(json_object_get(cell, keys[i]));
    assert_int_equal(json_array_size(json_object_get(j, "summary")), 35);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(r, "cell"), "G")), 1);
    assert_non_null(json_string_value(json_object_get(r, "path")));
    char *text = json_dumps(j, 0);
    assert_non_null(text); /* nothing in it that JSON cannot hold */
    free(text);
    json_decref(j);
    ablate_free(&a);
}

/* A gnuplot data block of the script: "$name << EOD\n...EOD". */
static char *block(const char *script, const char *name)
{
    char head[32];
    snprintf(head, sizeof head, "$%s << EOD\n", name);
    const char *from = strstr(script, head);
    assert_non_null(from);
    from += strlen(head);
    return strndup(from, (size_t)(strstr(from, "EOD") - from));
}

static void figures_follow_the_data(void **state)
{
    (void)state;
    struct ablation a;
    filled(&a);
    char *script = ablate_plot_script(&a, PLOT_SHARE, 0), *b = block(script, "b2"), *p = block(script, "p2");
    assert_string_equal(b, "0 1.2 0\n0.5 1.048 0.00141421\n5 1.008 0.00141421\n"); /* 2 heads, the best start */
    assert_string_equal(p, "0 3 0\n0.5 1.6 0.00141421\n5 1.1 0.00141421\n");      /* mean, ce */
    free(b);
    free(p);
    free(script);
    script = ablate_plot_script(&a, PLOT_TIME_GROUPS, 0);
    b = block(script, "d0");
    assert_string_equal(b, "8 1.8 0.01\n4 1.4 0.01\n2 1.2 0.01\n1 1.1 0.01\n");
    assert_non_null(strstr(script, "set xtics (8, 4, 2, 1)"));
    free(b);
    free(script);
    script = ablate_plot_script(&a, PLOT_RECOVERY, 4);
    b = block(script, "c3"); /* svd+all, distill: from 1.02 to 1.0008 over 50 thousand tokens, the mean of two seeds */
    double x[4], y[4];
    assert_int_equal(sscanf(b, "%lf %lf\n%lf %lf\n%lf %lf\n%lf %lf", x, y, x + 1, y + 1, x + 2, y + 2, x + 3, y + 3), 8);
    assert_true(!(fabs(x[0]) > 0) && fabs(x[3] - 50) < 0.1 && fabs(y[0] - 1.02) < 1e-4 && fabs(y[3] - 1.0008) < 1e-4);
    free(b);
    free(script);
    script = ablate_plot_script(&a, PLOT_METHODS, 1);
    b = block(script, "b1");
    assert_int_equal(occurrences(b, "\n"), 4);
    assert_true(strncmp(b, "0.016 0 ", 8) == 0); /* the best start first */
    free(b);
    free(script);
    ablate_free(&a);
}

static void svg_is_part_of_the_page(void **state)
{
    (void)state;
    if (!ablate_have_gnuplot()) {
        print_message("skipped: gnuplot is not installed\n");
        return;
    }
    struct ablation a;
    filled(&a);
    for (int p = 0; p < N_PLOTS; p++) {
        char *script = ablate_plot_script(&a, (enum ablate_plot)p, 2), *svg = ablate_svg(script, "x7-");
        assert_non_null(svg);
        assert_true(strncmp(svg, "<svg", 4) == 0 && strstr(svg, "</svg>"));
        assert_null(strstr(svg, "<title>"));
        assert_null(strstr(svg, "rgb( 10"));
        assert_null(strstr(svg, "rgb(10,"));
        assert_non_null(strstr(svg, "var(--s0)"));
        assert_non_null(strstr(svg, "x7-gpPt"));
        assert_null(strstr(svg, "'#gpPt"));
        free(script);
        free(svg);
    }
    assert_null(ablate_svg("this is no script", "x"));
    ablate_free(&a);
}

/* Speed unknown, one share, no seeds, no tasks, no KL: nothing is drawn or printed that is not there. */
static void little_is_enough(void **state)
{
    (void)state;
    struct ablation a;
    ablate_case(&a);
    a.config.alpha.n = 1;
    ablate_case_again(&a);
    ablate_case_fill(&a);
    for (int i = 0; i < a.n_cells; i++) {
        struct cell *c = &a.cells[i];
        json_decref(c->decode);
        json_decref(c->tasks);
        c->decode = c->tasks = NULL;
        c->kl = c->bits_per_byte = (double)NAN;
        c->kv_bytes = 0;
    }
    assert_ok(ablate_summarise(&a));
    assert_null(ablate_plot_script(&a, PLOT_QUALITY_TIME, 2));
    assert_null(ablate_plot_script(&a, PLOT_TIME_GROUPS, 2));
    assert_null(ablate_plot_script(&a, PLOT_SHARE, 2));
    assert_null(ablate_plot_script(&a, PLOT_RECOVERY, 2));
    char *page = ablate_html(&a);
    assert_non_null(page);
    assert_null(strstr(page, "nan"));
    free(page);
    for (int i = 1; i < a.n_cells; i++)
        a.cells[i].done = 0;
    assert_ok(ablate_summarise(&a));
    page = ablate_html(&a);
    assert_non_null(strstr(page, "nothing to recommend"));
    free(page);
    ablate_free(&a);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(page_stands_alone),       cmocka_unit_test(failures_are_shown),      cmocka_unit_test(tables_have_every_row),
        cmocka_unit_test(results_for_programs),    cmocka_unit_test(figures_follow_the_data), cmocka_unit_test(svg_is_part_of_the_page),
        cmocka_unit_test(little_is_enough),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
