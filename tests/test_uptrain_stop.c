/* gqa-uptrain under stops and faults: resume from every step, refusals, skipped steps, the lock, signals. */
#include <math.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runs.h"

/* Shuffled data, accumulation 3, clipping active, warm-up over at step 4: from every step the same weights come out. */
static void test_resume_is_bit_equal_from_every_step(void **state)
{
    (void)state;
    runs_train("whole", ARGS("gradient_accumulation_steps=3", "max_steps=20", "save_steps=1", "save_total_limit=50"));
    char want[65];
    snprintf(want, sizeof want, "%s", runs_weights("whole"));
    json_t *lines = runs_log("whole");
    int clipped = 0;
    for (size_t i = 1; i < json_array_size(lines); i++)
        clipped += runs_number(json_array_get(lines, i), "grad_norm") > 0.5;
    assert_true(clipped > 0);
    json_decref(lines);
    for (int k = 1; k <= 20; k++) {
        char out[32], step[64], from[700];
        snprintf(out, sizeof out, "from%d", k);
        snprintf(step, sizeof step, "whole/step-%08d", k);
        char *path = temp_path(step);
        snprintf(from, sizeof from, "resume=%s", path);
        runs_train(out, ARGS("gradient_accumulation_steps=3", "max_steps=20", from));
        assert_string_equal(runs_weights(out), want);
        free(path);
    }
}

static void test_resume_refuses_what_changed(void **state)
{
    (void)state;
    struct child c;
    runs_train("base", ARGS("max_steps=4", "save_steps=2"));
    static const struct { const char *arg, *part; int status; } cases[] = {
        {"seed=8", "seed 7, now it is 8", 2},
        {"global_batch_size=4", "global_batch_size 2", 2},
        {"sequence_len=32", "sequence_len 33", 2},
        {"model.arch.num_key_value_heads=6", "other tensors", 2},
        {"data.pack=false", "data.pack", 2},
        {"max_steps=3", "beyond the 3 steps", 2},
        {"resume=never", "already holds checkpoints", 2},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        c = runs_start("base", ARGS(i == 5 ? "save_steps=2" : "max_steps=4", cases[i].arg), NULL);
        runs_expect(&c, cases[i].status, cases[i].part);
    }
    char other[700];
    runs_text("other.txt", 3, 5000);
    snprintf(other, sizeof other, "data.train=%s/other.txt", temp_dir());
    c = runs_start("base", ARGS("max_steps=4", other), NULL);
    runs_expect(&c, 3, "data.train has changed");
    c = runs_start("base", ARGS("max_steps=4", "resume=/nonexistent/x"), NULL);
    assert_int_not_equal(c.status, 0);
    child_free(&c);
    c = runs_start("base", ARGS("max_steps=4", "threads=2"), ARGS("GQAKIT_ISA=plain"));
    assert_non_null(strstr(c.err, "threads were 1, now 2"));
    runs_expect(&c, 0, host_isa() == ISA_PLAIN ? "" : "instruction set was");
    /* A larger budget goes on, said aloud; a finished run is only written again. */
    char first[65];
    snprintf(first, sizeof first, "%s", runs_weights("base"));
    runs_train("base", ARGS("max_steps=4", "save_steps=2"));
    assert_string_equal(runs_weights("base"), first);
    c = runs_start("base", ARGS("max_steps=6", "save_steps=2"), NULL);
    runs_expect(&c, 0, "max_steps was 4, now it is 6");
    json_t *lines = runs_log("base");
    for (size_t i = 0; i < json_array_size(lines); i++)
        assert_int_equal(json_integer_value(json_object_get(json_array_get(lines, i), "step")), i);
    assert_int_equal(json_array_size(lines), 7);
    json_decref(lines);
}

static void test_nan_skips_then_aborts(void **state)
{
    (void)state;
    enum { N = 24 * 48 };
    static float before[N], after[N], later[N];
    struct child c = runs_start("skip", ARGS("save_steps=1", "save_total_limit=50", "max_skips=3", "--json"),
                             ARGS("GQAKIT_FAULT_NAN=3:4"));
    if (c.status != 0)
        print_error("%s", c.err);
    assert_int_equal(c.status, 0);
    assert_non_null(strstr(c.out, "\"skipped\": 2"));
    child_free(&c);
    static const char *const names[] = {"param/dec.1.attn.q.w", "m/dec.1.attn.q.w", "v/dec.1.attn.q.w"};
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        runs_step("skip", 2, names[i], before, 48, 24);
        runs_step("skip", 4, names[i], after, 48, 24);
        runs_step("skip", 5, names[i], later, 48, 24);
        assert_memory_equal(before, after, sizeof before);
        assert_memory_not_equal(before, later, sizeof before);
        assert_int_equal(count_nonfinite(later, DT_F32, N), 0);
    }
    c = runs_start("abort", ARGS("save_steps=2", "max_skips=3"), ARGS("GQAKIT_FAULT_NAN=5:99"));
    assert_non_null(strstr(c.err, "abort/step-00000006"));
    assert_non_null(strstr(c.err, "parameters are those of step 4"));
    runs_expect(&c, 7, "max_skips 3");
    char *final = runs_path("abort", "final");
    assert_false(io_exists(final));
    free(final);
}

static void test_lock(void **state)
{
    (void)state;
    struct io_lock l;
    char *dir = temp_path("locked");
    assert_ok(io_mkdirs(dir));
    assert_ok(io_lock_take(dir, &l));
    struct child c = runs_start("locked", NULL, NULL);
    runs_expect(&c, 9, "");
    io_lock_drop(&l);
    runs_train("locked", NULL);
    free(dir);
}

/* ---- signals --------------------------------------------------------------------------------------------------------- */

static pid_t start(const char *out, const char *steps)
{
    char dir[600], *program = program_path("gqa-uptrain"), *config = runs_config();
    snprintf(dir, sizeof dir, "output_dir=%s/%s", temp_dir(), out);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        if (!freopen("/dev/null", "w", stderr) || !freopen("/dev/null", "w", stdout))
            _exit(126);
        execl(program, program, config, dir, steps, "eval_steps=0", (char *)NULL);
        _exit(127);
    }
    free(program);
    return pid;
}

static int wait_status(pid_t pid)
{
    int status = 0;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* Waits until log.jsonl holds at least n lines. */
static void wait_lines(const char *out, int n)
{
    char *path = runs_path(out, "log.jsonl");
    for (int tries = 0; tries < 4000; tries++) {
        char *bytes;
        size_t size;
        int seen = 0;
        if (io_exists(path) && io_read_all(path, 1 << 24, &bytes, &size) == OK) {
            for (size_t i = 0; i < size; i++)
                seen += bytes[i] == '\n';
            free(bytes);
        }
        if (seen >= n)
            break;
        usleep(5000);
    }
    free(path);
}

static void test_signals_save_and_resume(void **state)
{
    (void)state;
    runs_train("calm", ARGS("max_steps=400", "eval_steps=0"));
    static const int stops[] = {SIGTERM, SIGINT};
    for (size_t i = 0; i < COUNT_OF(stops); i++) {
        char out[32];
        snprintf(out, sizeof out, "stopped%d", stops[i]);
        pid_t pid = start(out, "max_steps=400");
        wait_lines(out, 20);
        kill(pid, stops[i]);
        int status = wait_status(pid);
        if (status == 0)
            print_message("skipped: the run ended before the signal\n");
        else
            assert_int_equal(status, 75);
        runs_train(out, ARGS("max_steps=400", "eval_steps=0"));
        assert_string_equal(runs_weights(out), runs_weights("calm"));
        json_t *lines = runs_log(out);
        assert_int_equal(json_array_size(lines), 401);
        for (size_t k = 0; k < json_array_size(lines); k++)
            assert_int_equal(json_integer_value(json_object_get(json_array_get(lines, k), "step")), k);
        json_decref(lines);
    }
}

static int has_step(const char *out)
{
    char **names, *dir = temp_path(out);
    int n, found = 0;
    assert_ok(io_list(dir, &names, &n));
    for (int i = 0; i < n; i++)
        found += !strncmp(names[i], "step-", 5) && !strstr(names[i], "tmp");
    io_names_free(names, n);
    free(dir);
    return found;
}

static void test_save_on_request_goes_on(void **state)
{
    (void)state;
    for (int how = 0; how < 3; how++) {
        char out[32];
        snprintf(out, sizeof out, "asked%d", how);
        pid_t pid = start(out, "max_steps=400");
        wait_lines(out, 5);
        char *touch = runs_path(out, "save-now");
        if (how == 2)
            assert_ok(io_write_atomic(touch, "", 0));
        else
            kill(pid, how == 0 ? SIGUSR1 : SIGHUP);
        assert_int_equal(wait_status(pid), 0);
        assert_true(has_step(out) >= 1);
        assert_false(io_exists(touch));
        assert_string_equal(runs_weights(out), runs_weights("calm"));
        free(touch);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_resume_is_bit_equal_from_every_step), cmocka_unit_test(test_resume_refuses_what_changed),
        cmocka_unit_test(test_nan_skips_then_aborts), cmocka_unit_test(test_lock), cmocka_unit_test(test_signals_save_and_resume),
        cmocka_unit_test(test_save_on_request_goes_on)};
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
