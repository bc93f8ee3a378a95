/* gqa-eval ablate from end to end on a tiny byte-level model with everything on: distillation, KL, a task, method auto, seeds; what
 * each cell's training was told; a stop in the middle and what continues; a page without gnuplot. */
#include "harness.h"
#include "small_checkpoint.h"

#include <math.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static void write_config(void)
{
    char out[2048];
    const char *d = temp_dir();
    int n = snprintf(out, sizeof out,
                     "name: whole\nmodel: {path: %s/model}\noutput_dir: %s/run\n"
                     "grid: {num_key_value_heads: [3], method: [mean, auto], loss: [ce, distill], uptrain_fraction: [0, 0.5], seed: [0, 1]}\n"
                     "uptrain:\n  data: {train: [%s/text.txt], tokenizer: bytes}\n  sequence_len: 32\n  micro_batch_size: 4\n  original_tokens: 1024\n"
                     "  optimizer: {lr: 1.0e-3}\n  logging_steps: 1\n"
                     "distill: {weight: 0.7, top_k: 5}\n"
                     "evaluate: {data: [%s/text.txt], tokenizer: bytes, context: 32, tasks: [%s/pairs.jsonl], decode: {batch: [1], context: [16], new: 2, repeats: 1}}\n"
                     "margin: 5\nthreads: 1\n",
                     d, d, d, d, d);
    assert_true(n > 0 && (size_t)n < sizeof out);
    temp_write("whole.yaml", out, (size_t)n);
}

static int setup(void **state)
{
    (void)state;
    struct arch a;
    small_arch(&a, 6, 6, DT_F32);
    a.V = a.original_vocab = 256;
    a.bos = a.eos = -1;
    char *model = temp_path("model"), text[1500];
    small_write(model, &a, 3, 1, NULL);
    arch_free(&a);
    free(model);
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = (char)("the quick brown fox "[i % 20]);
    temp_write("text.txt", text, sizeof text);
    static const char pairs[] = "{\"sentence_good\": \"the fox\", \"sentence_bad\": \"xof eht\"}\n{\"sentence_good\": \"quick brown\", \"sentence_bad\": \"kciuq nworb\"}\n";
    temp_write("pairs.jsonl", pairs, sizeof pairs - 1);
    write_config();
    return 0;
}

static char *read_text(const char *name)
{
    char *path = temp_path(name), *text = NULL;
    size_t n = 0;
    assert_ok(io_read_all(path, 1 << 26, &text, &n));
    free(path);
    return text;
}

static json_t *results(void)
{
    json_t *j = NULL;
    char *path = temp_path("run/results.json");
    assert_ok(json_read_file(path, 1 << 26, &j));
    free(path);
    return j;
}

static int count_in(const char *name)
{
    char *path = temp_path(name), **names = NULL;
    int n = 0;
    if (!io_is_dir(path)) {
        free(path);
        return 0;
    }
    assert_ok(io_list(path, &names, &n));
    io_names_free(names, n);
    free(path);
    return n;
}

static double of(const json_t *cell, const char *key) { return json_is_number(json_object_get(cell, key)) ? json_number_value(json_object_get(cell, key)) : (double)NAN; }

/* Stopped after the third cell's result: exit 75, a report of what there is; the rest follows later. */
static void stopped_in_the_middle(void **state)
{
    (void)state;
    char *program = program_path("gqa-eval"), *config = temp_path("whole.yaml"), *log = temp_path("stop.log");
    pid_t pid = fork();
    if (pid == 0) {
        if (!freopen(log, "w", stderr) || !freopen("/dev/null", "w", stdout))
            _exit(126);
        execl(program, "gqa-eval", "ablate", config, (char *)NULL);
        _exit(127);
    }
    int status = 0, results_seen = 0;
    for (int i = 0; i < 60000 && results_seen < 3; i++) {
        struct stat st;
        char *dir = temp_path("run/cells"), **names = NULL;
        int n = 0;
        results_seen = 0;
        if (io_is_dir(dir)) {
            assert_ok(io_list(dir, &names, &n));
            for (int k = 0; k < n; k++) {
                char path[900];
                snprintf(path, sizeof path, "%s/%s/result.json", dir, names[k]);
                results_seen += stat(path, &st) == 0;
            }
            io_names_free(names, n);
        }
        free(dir);
        usleep(2000);
    }
    assert_true(results_seen >= 3);
    kill(pid, SIGTERM);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) || WIFSIGNALED(status));
    if (WIFSIGNALED(status)) { /* between two children the signal ends the program itself */
        assert_int_equal(WTERMSIG(status), SIGTERM);
    } else if (WEXITSTATUS(status) != 0) {
        assert_int_equal(WEXITSTATUS(status), 75);
        char *page = read_text("run/report.html");
        assert_non_null(strstr(page, "have not run yet"));
        free(page);
    }
    free(program);
    free(config);
    free(log);
}

static void everything_is_measured(void **state)
{
    (void)state;
    char *program = program_path("gqa-eval"), *config = temp_path("whole.yaml");
    const char *argv[] = { program, "ablate", config, NULL };
    struct child c = child_run(argv, NULL);
    if (c.status != 0)
        print_error("%s", c.err);
    assert_int_equal(c.status, 0);
    assert_non_null(strstr(c.err, "cell 2 of ")); /* progress */
    assert_non_null(strstr(c.err, " left: "));
    child_free(&c);
    json_t *j = results();
    const json_t *cells = json_object_get(j, "cells"), *cell;
    assert_int_equal(json_array_size(cells), 3 + 3 * 2 * 2);
    size_t i;
    double kl_ce = 0, kl_distill = 0;
    json_array_foreach(cells, i, cell) {
        double alpha = of(cell, "alpha"), kl = of(cell, "kl");
        const char *loss = json_string_value(json_object_get(cell, "loss")), *method = json_string_value(json_object_get(cell, "method"));
        assert_string_equal(json_string_value(json_object_get(cell, "status")), "done");
        if (i == 0)
            assert_true(!(fabs(kl) > 0)); /* the original against itself */
        else
            assert_true(kl > 0 && kl < 20);
        assert_true(of(cell, "bits_per_byte") > 0);
        const json_t *pairs = json_object_get(json_object_get(cell, "tasks"), "pairs");
        assert_true(of(pairs, "value") >= 0 && of(pairs, "value") <= 1);
        assert_int_equal(json_integer_value(json_object_get(pairs, "n")), 2);
        assert_true(json_array_size(json_object_get(cell, "evals")) >= (alpha > 0 ? 3 : 0)); /* asked for, without eval_steps in the config */
        if (alpha > 0 && of(cell, "G") < 6)
            *(strcmp(loss, "distill") == 0 ? &kl_distill : &kl_ce) += kl;
        assert_true((json_string_value(json_object_get(cell, "chosen")) != NULL) == (strcmp(method, "auto") == 0));
    }
    assert_true(kl_distill < kl_ce); /* trained towards the original, it is nearer */
    assert_non_null(json_string_value(json_object_get(json_object_get(j, "recommendation"), "path")));
    json_decref(j);
    free(program);
    free(config);
}

/* Only distill cells have the block, with the original as teacher and one cache for all of them; conversions and scores before training
 * are shared. */
static void steps_are_shared(void **state)
{
    (void)state;
    assert_int_equal(count_in("run/trained"), 3 * 2 * 2);
    assert_int_equal(count_in("run/zero"), 3);
    assert_int_equal(count_in("run/converted"), 2 * 2); /* a directory and its record */
    char *dir = temp_path("run/trained"), **names = NULL, teacher[700], cache[700];
    int n = 0, distilled = 0;
    snprintf(teacher, sizeof teacher, "%s/model", temp_dir());
    snprintf(cache, sizeof cache, "%s/run/teacher", temp_dir());
    assert_ok(io_list(dir, &names, &n));
    for (int i = 0; i < n; i++) {
        char path[300];
        snprintf(path, sizeof path, "run/trained/%s/uptrain.yaml", names[i]);
        char *text = read_text(path), *block = strstr(text, "distill:");
        distilled += block != NULL;
        if (block)
            assert_true(strstr(block, teacher) && strstr(block, cache));
        free(text);
        snprintf(path, sizeof path, "run/trained/%s/run/final", names[i]);
        assert_true(count_in(path) > 0);
        snprintf(path, sizeof path, "run/trained/%s/run/cache", names[i]);
        assert_int_equal(count_in(path), 0); /* a finished run keeps its result */
    }
    assert_int_equal(distilled, n / 2);
    assert_true(count_in("run/teacher") >= 1);
    io_names_free(names, n);
    free(dir);
}

/* A new report of finished cells takes no training; without gnuplot the page says so and has no empty figures. */
static void page_without_gnuplot(void **state)
{
    (void)state;
    char *program = program_path("gqa-eval"), *config = temp_path("whole.yaml");
    json_t *before = results();
    const char *argv[] = { program, "ablate", config, "margin=0.0001", NULL }, *env[] = { "PATH=/nonexistent", NULL };
    struct child c = child_run(argv, env);
    assert_int_equal(c.status, 0);
    child_free(&c);
    json_t *after = results();
    assert_true(json_equal(json_object_get(before, "cells"), json_object_get(after, "cells")));
    char *page = read_text("run/report.html");
    assert_non_null(strstr(page, "gnuplot was not found"));
    assert_null(strstr(page, "<svg"));
    assert_null(strstr(page, "<figure"));
    assert_non_null(strstr(page, "<table"));
    free(page);
    json_decref(before);
    json_decref(after);
    free(program);
    free(config);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(stopped_in_the_middle, setup),
        cmocka_unit_test(everything_is_measured),
        cmocka_unit_test(steps_are_shared),
        cmocka_unit_test(page_without_gnuplot),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
