/* grid.kv_budget: budgets beside numbers of heads, in the grid, its order, the answer and the tables, on made-up results; then a whole small
 * ablation, whose children convert under budgets and train what comes of it; and what is refused before anything runs. */
#include "ablate_case.h"
#include "data/data.h"
#include "programs.h"
#include "runs.h"
#include "small_checkpoint.h"

#include <math.h>

/* ---- made-up results ---- */

static const char *const budgets[] = {"25%", "40%"};

static void with_budgets(struct ablation *a)
{
    ablate_case(a);
    a->config.budgets = (struct config_list){.n = 2, .items = (void *)(uintptr_t)budgets};
    a->budget_share[0] = 0.25;
    a->budget_share[1] = 0.4;
    ablate_case_again(a);
}

static void cells_and_order(void **state)
{
    (void)state;
    struct ablation a;
    ablate_case(&a);
    int before = a.n_cells;
    char plain[17];
    snprintf(plain, sizeof plain, "%s", ablate_case_cell(&a, 2, "mean", "ce", 0, 0)->id);
    ablate_free(&a);
    with_budgets(&a);
    assert_int_equal(a.n_cells, before + 2 * (2 + 2 * 2 * 2 * 2)); /* two methods; two shares, losses, seeds */
    assert_string_equal(ablate_case_cell(&a, 2, "mean", "ce", 0, 0)->id, plain); /* what ran before stays done */
    const struct cell *mean = ablate_case_cell(&a, -1, "mean", "ce", 0, 0), *other = ablate_case_cell(&a, -2, "mean", "ce", 0, 0);
    assert_string_not_equal(mean->conversion, other->conversion);
    assert_string_not_equal(mean->conversion, ablate_case_cell(&a, 2, "mean", "ce", 0, 0)->conversion);
    assert_string_equal(ablate_calibration(&a, mean), "calibration.txt"); /* weights do not say which layers matter */
    assert_null(ablate_calibration(&a, ablate_case_cell(&a, 2, "mean", "ce", 0, 0)));
    assert_false(ablate_same_shape(mean, ablate_case_cell(&a, -1, "svd+all", "ce", 0, 0)));
    assert_true(ablate_same_shape(mean, ablate_case_cell(&a, -1, "mean", "distill", 0.05, 1)));

    static const int64_t want[] = {8, 4, -2, 2, -1, 1}; /* 8 x 40% = 3.2 heads, 8 x 25% = 2 */
    int64_t G[16];
    ablate_case_fill(&a);
    assert_ok(ablate_summarise(&a));
    assert_int_equal(ablate_groups(&a, G, 16), COUNT_OF(want));
    assert_memory_equal(G, want, sizeof want);
    ablate_free(&a);
}

/* A budget as good as the original is the answer: less than four heads, more than two. */
static void answer_and_tables(void **state)
{
    (void)state;
    struct ablation a;
    with_budgets(&a);
    ablate_case_fill(&a);
    a.config.margin = 0.005;
    for (int i = 0; i < a.n_cells; i++)
        if (a.cells[i].G == -2 && !strcmp(a.cells[i].method, "svd+all")) {
            a.cells[i].loss_final = 1.001;
            snprintf(a.cells[i].chosen, sizeof a.cells[i].chosen, "heads 8 2 2 1");
        }
    assert_ok(ablate_summarise(&a));
    assert_int_equal(a.summaries[a.advice.pick].G, -2);
    assert_non_null(strstr(a.advice.reason, "A K/V budget of 40% instead of 8 heads: svd+all"));
    assert_non_null(strstr(a.advice.reason, "40% of the K/V cache"));
    char *markdown = ablate_markdown(&a), *csv = ablate_csv(&a), *html = ablate_html(&a);
    assert_non_null(strstr(markdown, "| 40% | svd+all (heads 8 2 2 1)"));
    assert_non_null(strstr(markdown, "| 40% (heads 8 2 2 1) | 1 | 512 |")); /* the shape that was timed */
    assert_non_null(strstr(csv, "id,num_key_value_heads,kv_budget,method"));
    assert_non_null(strstr(csv, ",,40%,svd+all,heads 8 2 2 1,"));
    assert_non_null(strstr(csv, ",2,,svd+all,"));
    assert_non_null(strstr(html, "40% of 8"));
    char *script = ablate_plot_script(&a, PLOT_SHARE, 0);
    assert_true(!script || strstr(script, "title 'budget 40%, best start'") != NULL);
    json_t *j = ablate_results(&a);
    int seen = 0;
    for (size_t i = 0; i < json_array_size(json_object_get(j, "cells")); i++) {
        const json_t *cell = json_array_get(json_object_get(j, "cells"), i), *budget = json_object_get(cell, "kv_budget");
        assert_true(json_is_null(budget) != json_is_null(json_object_get(cell, "G")));
        seen += json_is_string(budget);
    }
    assert_int_equal(seen, 36);
    json_decref(j);
    free(script);
    free(html);
    free(csv);
    free(markdown);
    ablate_free(&a);
}

/* A budget in bytes is no number of heads, in no table; programs read it as it was given. */
static void bytes_and_many_layers(void **state)
{
    (void)state;
    static const char *const mixed[] = {"25%", "3277"};
    struct ablation a;
    char text[120];
    with_budgets(&a);
    a.config.budgets.items = (void *)(uintptr_t)mixed;
    ablate_case_fill(&a);
    a.config.margin = 0.005;
    for (int i = 0; i < a.n_cells; i++)
        if (a.cells[i].G == -2 && !strcmp(a.cells[i].method, "svd+all"))
            a.cells[i].loss_final = 1.001;
    assert_ok(ablate_summarise(&a));
    assert_non_null(strstr(a.advice.reason, "A K/V budget of 3277 B instead of 8 heads: svd+all"));
    char *markdown = ablate_markdown(&a), *csv = ablate_csv(&a), *html = ablate_html(&a);
    assert_non_null(strstr(markdown, "| 3277 B | svd+all |"));
    assert_null(strstr(markdown, "| 3277 |"));
    assert_non_null(strstr(markdown, "budget 3277 B: "));
    assert_non_null(strstr(csv, ",,3277,svd+all,"));
    assert_non_null(strstr(html, "40% of 8"));
    free(html);
    free(csv);
    free(markdown);
    ablate_free(&a);

    for (size_t layers = 1; layers < 80; layers++) { /* all of them, or as many as fit and a mark */
        json_t *groups = json_array();
        for (size_t l = 0; l < layers; l++)
            json_array_append_new(groups, json_integer(1));
        ablate_heads_chosen(groups, text, sizeof text);
        size_t listed = 0;
        for (const char *p = text; *p; p++)
            listed += *p == '1';
        assert_true((listed == layers) == (strstr(text, "...") == NULL) && listed >= (layers < 50 ? layers : 50));
        json_decref(groups);
    }
}

/* ---- a whole one ---- */

static char *config(void)
{
    char text[2000], *model = temp_path("source"), *tokens = temp_path("tokens.bin");
    struct arch a;
    int32_t ids[1500];
    small_arch(&a, 6, 6, DT_F32);
    a.eos = -1;
    small_write(model, &a, 41, 1, NULL);
    for (size_t i = 0; i < COUNT_OF(ids); i++)
        ids[i] = (int32_t)random_int(9, i, 0, 36);
    assert_ok(tokens_write(tokens, ids, (int64_t)COUNT_OF(ids), 37, -1, -1, NULL));
    int n = snprintf(text, sizeof text,
                     "name: budgets\nmodel: {path: %s}\noutput_dir: %s/ablation\ngqa: {calibration: %s}\n"
                     "grid: {num_key_value_heads: [3], kv_budget: [767, 25%%], method: [mean, svd], uptrain_fraction: [0, 0.5]}\n"
                     "uptrain: {data: {train: [%s]}, sequence_len: 24, micro_batch_size: 2, original_tokens: 192}\n"
                     "evaluate: {data: [%s], limit: 200, decode: {batch: [1], context: [16], new: 2, repeats: 1}}\nmargin: 9\nthreads: 1\n",
                     model, temp_dir(), tokens, tokens, tokens);
    temp_write("ablate.yaml", text, (size_t)n);
    arch_free(&a);
    free(model);
    free(tokens);
    return temp_path("ablate.yaml");
}

static void whole(void **state)
{
    (void)state;
    char *yaml = config(), *path = temp_path("ablation/results.json");
    json_t *j = NULL;
    struct child c = EVAL("ablate", yaml);
    assert_non_null(strstr(c.out, "   767 B mean"));
    program_ok(c);
    assert_ok(json_read_file(path, 1 << 22, &j));
    const json_t *cells = json_object_get(j, "cells");
    int budgeted = 0;
    assert_int_equal(json_array_size(cells), 2 + 2 * 3 * 2);
    for (size_t i = 0; i < json_array_size(cells); i++) {
        const json_t *cell = json_array_get(cells, i);
        const char *budget = json_string_value(json_object_get(cell, "kv_budget")), *chosen = json_string_value(json_object_get(cell, "chosen"));
        assert_string_equal(json_string_value(json_object_get(cell, "status")), "done");
        if (!budget)
            continue;
        budgeted++;
        double bytes = json_number_at(cell, "kv_bytes");
        assert_true(bytes <= (strcmp(budget, "767") ? 192 : 767)); /* of 768 */
        int first = 0, second = 0;
        assert_int_equal(sscanf(chosen, "heads %d %d", &first, &second), 2);
        assert_true(bytes == (first + second) * 64);
        assert_true(strcmp(budget, "767") || first != second);
    }
    assert_int_equal(budgeted, 8);
    json_decref(j);
    c = EVAL("ablate", yaml); /* again: nothing is left to do */
    assert_null(strstr(c.err, "calibrate"));
    program_ok(c);
    free(path);
    free(yaml);
}

static void refused(void **state)
{
    (void)state;
    char *yaml = config();
    program_refused(EVAL("ablate", yaml, "grid.kv_budget=[some]"), 2, "grid.kv_budget \"some\": expected a share");
    program_refused(EVAL("ablate", yaml, "grid.kv_budget=[1%]"), 2, "one head in every layer takes 128");
    program_refused(EVAL("ablate", yaml, "grid.kv_budget=[50%, 100%]"), 2, "100% keeps every head");
    program_refused(EVAL("ablate", yaml, "gqa={}"), 2, "grid.kv_budget needs gqa.calibration");
    free(yaml);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(cells_and_order), cmocka_unit_test(answer_and_tables), cmocka_unit_test(bytes_and_many_layers), cmocka_unit_test(whole), cmocka_unit_test(refused)};
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
