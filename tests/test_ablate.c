/* gqa-eval ablate on a tiny byte-level model: the grid with its controls, files of the report, that a second run changes nothing, that
 * a stopped or damaged run continues, and what is refused. */
#include "harness.h"
#include "small_checkpoint.h"

#include <math.h>
#include <sys/stat.h>

static const char yaml[] = "name: tiny\n"
                           "model: {path: MODEL}\n"
                           "output_dir: RUN\n"
                           "grid: {num_key_value_heads: [3, 1], method: [mean, first], uptrain_fraction: [0, 0.5]}\n"
                           "uptrain:\n"
                           "  data: {train: [TEXT], validation: [TEXT], tokenizer: bytes}\n"
                           "  sequence_len: 32\n"
                           "  micro_batch_size: 4\n"
                           "  original_tokens: 1024\n"
                           "  optimizer: {lr: 1.0e-3}\n"
                           "  logging_steps: 1\n"
                           "evaluate: {data: [TEXT], tokenizer: bytes, context: 32, limit: 500, decode: {batch: [1], context: [16, 64], new: 2, repeats: 2}}\n"
                           "margin: 0.5\n"
                           "threads: 1\n";

/* The YAML with MODEL, RUN and TEXT replaced by paths of the test's directory, and one more line. */
static char *write_config(const char *name, const char *more)
{
    char out[4096];
    size_t n = 0;
    for (const char *p = yaml; *p;) {
        const char *word = strncmp(p, "MODEL", 5) == 0 ? "model" : strncmp(p, "RUN", 3) == 0 ? "run" : strncmp(p, "TEXT", 4) == 0 ? "text.txt" : NULL;
        if (word) {
            n += (size_t)snprintf(out + n, sizeof out - n, "%s/%s", temp_dir(), word);
            p += strncmp(p, "MODEL", 5) == 0 ? 5 : strncmp(p, "RUN", 3) == 0 ? 3 : 4;
        } else {
            out[n++] = *p++;
        }
    }
    n += (size_t)snprintf(out + n, sizeof out - n, "%s", more);
    temp_write(name, out, n);
    return temp_path(name);
}

static struct child ablate(const char *config, const char *override)
{
    char *program = program_path("gqa-eval");
    const char *argv[] = { program, "ablate", config, override, NULL };
    struct child c = child_run(argv, NULL);
    free(program);
    return c;
}

static char *run_file(const char *name)
{
    char path[512];
    snprintf(path, sizeof path, "run/%s", name);
    return temp_path(path);
}

static json_t *results(void)
{
    json_t *j = NULL;
    char *path = run_file("results.json");
    assert_ok(json_read_file(path, 1 << 24, &j));
    free(path);
    return j;
}

static int setup(void **state)
{
    (void)state;
    struct arch a;
    small_arch(&a, 6, 6, DT_F32);
    a.V = a.original_vocab = 256;
    a.bos = a.eos = -1;
    char *model = temp_path("model"), text[4000];
    small_write(model, &a, 3, 1, NULL);
    arch_free(&a);
    free(model);
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = (char)("the quick brown fox "[i % 20]);
    temp_write("text.txt", text, sizeof text);
    return 0;
}

static void grid_and_report(void **state)
{
    (void)state;
    char *config = write_config("a.yaml", "");
    struct child c = ablate(config, NULL);
    if (c.status != 0)
        print_error("%s", c.err);
    assert_int_equal(c.status, 0);
    assert_non_null(strstr(c.out, "report.html"));
    child_free(&c);
    json_t *j = results();
    const json_t *cells = json_object_get(j, "cells");
    /* G 6 once per alpha (method does not matter), G 3 and 1 by two methods and two alphas. */
    assert_int_equal(json_array_size(cells), 2 + 2 * 2 * 2);
    size_t i;
    const json_t *cell;
    json_array_foreach(cells, i, cell) {
        assert_string_equal(json_string_value(json_object_get(cell, "status")), "done");
        double zero = json_number_value(json_object_get(cell, "loss_zero_step")), final = json_number_value(json_object_get(cell, "loss_final"));
        double alpha = json_number_value(json_object_get(cell, "alpha"));
        int64_t G = json_integer_value(json_object_get(cell, "G"));
        assert_true(zero > 1 && zero < 12);
        if (alpha > 0)
            assert_true(final < zero); /* four steps on a periodic text */
        else
            assert_true(fabs(final - zero) < 1e-12);
        assert_int_equal(json_integer_value(json_object_get(cell, "steps")), alpha > 0 ? 4 : 0);
        assert_int_equal(json_array_size(json_object_get(cell, "decode")), 2);
        assert_int_equal(json_integer_value(json_object_get(cell, "kv_bytes")), 2 * 2 * G * 8 * 4);
    }
    assert_int_equal(json_integer_value(json_object_get(json_array_get(cells, 0), "G")), 6);
    assert_string_equal(json_string_value(json_object_get(j, "baseline")), json_string_value(json_object_get(json_array_get(cells, 0), "id")));
    json_decref(j);
    static const char *const files[] = { "report.html", "report.md", "results.csv" };
    for (i = 0; i < COUNT_OF(files); i++) {
        char *path = run_file(files[i]), *text = NULL;
        size_t n = 0;
        assert_ok(io_read_all(path, 1 << 24, &text, &n));
        assert_true(n > 500);
        if (i < 2) { /* the page says which machine and command made it */
            assert_non_null(strstr(text, "gqa-eval ablate "));
            assert_non_null(strstr(text, ", 1 threads ("));
        }
        free(text);
        free(path);
    }
    free(config);
}

static void second_run_repeats_nothing(void **state)
{
    (void)state;
    char *config = write_config("a.yaml", ""), *log = temp_path("run/cells");
    struct stat before, after;
    char **names = NULL, path[600];
    int n = 0;
    assert_ok(io_list(log, &names, &n));
    snprintf(path, sizeof path, "%s/%s/result.json", log, names[0]);
    assert_int_equal(stat(path, &before), 0);
    json_t *old = results();
    struct child c = ablate(config, NULL);
    assert_int_equal(c.status, 0);
    child_free(&c);
    json_t *new = results();
    assert_int_equal(stat(path, &after), 0);
    assert_int_equal(before.st_ino, after.st_ino);
    assert_true(json_equal(json_object_get(old, "cells"), json_object_get(new, "cells")));
    json_decref(old);
    json_decref(new);
    io_names_free(names, n);
    free(config);
    free(log);
}

static void damaged_result_is_made_again(void **state)
{
    (void)state;
    char *config = write_config("a.yaml", ""), *dir = temp_path("run/cells"), path[600];
    char **names = NULL;
    int n = 0;
    json_t *old = results();
    assert_ok(io_list(dir, &names, &n));
    snprintf(path, sizeof path, "%s/%s/result.json", dir, names[1]);
    assert_ok(io_write_atomic(path, "{\"id\": ", 7));
    struct child c = ablate(config, NULL);
    assert_int_equal(c.status, 0);
    child_free(&c);
    json_t *new = results();
    for (size_t i = 0; i < json_array_size(json_object_get(old, "cells")); i++) {
        const json_t *x = json_array_get(json_object_get(old, "cells"), i), *y = json_array_get(json_object_get(new, "cells"), i);
        assert_true(fabs(json_number_value(json_object_get(x, "loss_final")) - json_number_value(json_object_get(y, "loss_final"))) < 1e-12);
    }
    json_decref(old);
    json_decref(new);
    io_names_free(names, n);
    free(config);
    free(dir);
}

static void failing_cell_does_not_stop_the_others(void **state)
{
    (void)state;
    char *config = write_config("b.yaml", "");
    /* A window longer than the text: training cannot start, evaluation of the untouched cells can. */
    struct child c = ablate(config, "uptrain.sequence_len=100000");
    assert_int_equal(c.status, 0);
    assert_non_null(strstr(c.out, "failed"));
    child_free(&c);
    json_t *j = results();
    int done = 0;
    for (size_t i = 0; i < json_array_size(json_object_get(j, "cells")); i++)
        done += strcmp(json_string_value(json_object_get(json_array_get(json_object_get(j, "cells"), i), "status")), "done") == 0;
    assert_int_equal(done, 5);
    json_decref(j);
    free(config);
}

/* Another tokenizer scores other tokens, so nothing measured with the first may be taken over. */
static void tokenizer_is_part_of_a_cell(void **state)
{
    (void)state;
    char *config = write_config("t.yaml", "");
    struct child c = ablate(config, "evaluate.tokenizer=/nonexistent");
    assert_int_not_equal(c.status, 0);
    assert_non_null(strstr(c.err, "/nonexistent"));
    child_free(&c);
    free(config);
}

/* A grouping makes cells of its own, but none at G = H; the table tells them apart. */
static void groupings_are_cells(void **state)
{
    (void)state;
    char *config = write_config("g.yaml", ""), *program = program_path("gqa-eval"), out[600];
    snprintf(out, sizeof out, "output_dir=%s/groupings", temp_dir());
    const char *argv[] = { program, "ablate", config, out, "grid.num_key_value_heads=[3]", "grid.method=[svd]", "grid.grouping=[consecutive, similar]",
                           "grid.uptrain_fraction=[0]", NULL };
    struct child c = child_run(argv, NULL);
    if (c.status != 0)
        print_error("%s", c.err);
    assert_int_equal(c.status, 0);
    assert_non_null(strstr(c.out, "svd similar"));
    char *path = temp_path("groupings/results.json");
    json_t *j = NULL;
    assert_ok(json_read_file(path, 1 << 24, &j));
    const json_t *cells = json_object_get(j, "cells");
    assert_int_equal(json_array_size(cells), 3);
    for (size_t i = 0; i < 3; i++)
        assert_string_equal(json_string_value(json_object_get(json_array_get(cells, i), "grouping")), i == 2 ? "similar" : "consecutive");
    json_decref(j);
    child_free(&c);
    free(path);
    free(config);
    free(program);
}

static void refusals(void **state)
{
    (void)state;
    static const struct { const char *override; int status; const char *part; } cases[] = {
        { "grid.num_key_value_heads=[4]", 2, "does not divide" },
        { "grid.method=[median]", 2, "median" },
        { "grid.method=[svd+everything]", 2, "svd+everything" },
        { "grid.method=[svd+all]", 2, "gqa.calibration" },
        { "grid.uptrain_fraction=[-1]", 2, "-1" },
        { "uptrain.seed=3", 2, "uptrain.seed" },
        { "uptrain.model.path=x", 2, "uptrain.model" },
        { "evalute.context=3", 2, "evaluate" },
        { "model.path=/nonexistent", 3, "/nonexistent" },
        { "evaluate.tasks=[/nonexistent.jsonl]", 2, "no such file" },
        { "grid.method=[auto+all]", 2, "auto+all" },
        { "grid.loss=[kl]", 2, "distill" },
        { "grid.loss=[]", 2, "grid.loss is empty" },
        { "distill=3", 2, "distill" },
        { "evaluate.decode.batch=[]", 2, "evaluate.decode.batch" },
        { "evaluate.decode.new=0", 2, "evaluate.decode.new" },
        { "evaluate.stride=33", 2, "evaluate.stride" },
        { "evaluate.data=[/nonexistent.txt]", 3, "baseline" },
    };
    char *config = write_config("r.yaml", "");
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct child c = ablate(config, cases[i].override);
        int ok = c.status == cases[i].status || (cases[i].status == 3 && c.status == 5);
        if (!ok || !strstr(c.err, cases[i].part))
            print_error("case %zu: status %d, %s", i, c.status, c.err);
        assert_true(ok);
        assert_non_null(strstr(c.err, cases[i].part));
        child_free(&c);
    }
    struct child c = ablate(NULL, NULL);
    assert_int_equal(c.status, 2);
    child_free(&c);
    free(config);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(grid_and_report, setup),        cmocka_unit_test(second_run_repeats_nothing),
        cmocka_unit_test(damaged_result_is_made_again),        cmocka_unit_test(failing_cell_does_not_stop_the_others),
        cmocka_unit_test(tokenizer_is_part_of_a_cell),         cmocka_unit_test(groupings_are_cells),
        cmocka_unit_test(refusals),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
