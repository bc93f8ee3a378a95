/* Random SIGKILLs and stop signals of a training run that saves at every step: whatever the moment (start, step, save, prune, end), the
 * same command continues and ends with the weights of the uninterrupted run; at most one save interval is lost.
 * GQAKIT_KILLS sets how many of each (default 6); the seed is fixed, the moments are not. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runs.h"

#define MOST_STARTS 60

static const char *const options[] = {"max_steps=40", "save_steps=1", "eval_steps=10", "gradient_accumulation_steps=2"};

static int wanted(void)
{
    const char *n = getenv("GQAKIT_KILLS");
    return n && atoi(n) > 0 ? atoi(n) : 6;
}

static pid_t start(const char *out)
{
    char dir[600], *program = program_path("gqa-uptrain"), *config = runs_config();
    snprintf(dir, sizeof dir, "output_dir=%s/%s", temp_dir(), out);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        if (!freopen("/dev/null", "w", stderr) || !freopen("/dev/null", "w", stdout))
            _exit(126);
        execl(program, program, config, dir, options[0], options[1], options[2], options[3], (char *)NULL);
        _exit(127);
    }
    free(program);
    return pid;
}

/* Newest step directory that is complete, 0 when none. */
static int newest(const char *out)
{
    char **names, *dir = temp_path(out);
    int n = 0, step = 0;
    if (io_is_dir(dir)) {
        assert_ok(io_list(dir, &names, &n));
        for (int i = 0; i < n; i++)
            if (!strncmp(names[i], "step-", 5) && strlen(names[i]) == 13 && atoi(names[i] + 5) > step)
                step = atoi(names[i] + 5);
        io_names_free(names, n);
    }
    free(dir);
    return step;
}

static double whole_seconds(char want[65])
{
    static char hex[65];
    static double seconds;
    if (!hex[0]) {
        double begin = host_seconds();
        runs_train("whole", ARGS(options[0], options[1], options[2], options[3]));
        seconds = host_seconds() - begin;
        snprintf(hex, sizeof hex, "%s", runs_weights("whole"));
    }
    memcpy(want, hex, sizeof hex);
    return seconds;
}

/* Interrupts runs by `signal` at random moments until `count` signals have been sent, finishing each run. */
static void interrupt(int signal_number, int count)
{
    char want[65];
    double seconds = whole_seconds(want);
    int sent = 0, finished = 0, runs = 0;
    while (sent < count) {
        char out[32];
        snprintf(out, sizeof out, "run%d-%d", signal_number, runs++);
        int status = -1, before = 0;
        for (int starts = 0; starts < MOST_STARTS; starts++) {
            pid_t pid = start(out);
            int kill_it = sent < count && starts < MOST_STARTS / 2;
            if (kill_it) {
                usleep((useconds_t)(1e6 * 1.1 * seconds * random_uniform(5, STREAM_TEST, (uint64_t)signal_number, (uint64_t)sent)));
                kill(pid, signal_number);
                sent++;
            }
            waitpid(pid, &status, 0);
            int now = newest(out);
            assert_true(now >= before); /* nothing saved is lost */
            before = now;
            if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
                break;
            if (signal_number == SIGKILL)
                assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
            else if (WIFEXITED(status))
                assert_int_equal(WEXITSTATUS(status), 75);
            else
                assert_int_equal(WTERMSIG(status), signal_number); /* before the handlers were there */
        }
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        assert_string_equal(runs_weights(out), want);
        json_t *lines = runs_log(out);
        assert_int_equal(json_array_size(lines), 41);
        for (size_t i = 0; i < json_array_size(lines); i++)
            assert_int_equal(json_integer_value(json_object_get(json_array_get(lines, i), "step")), i);
        json_decref(lines);
        finished++;
    }
    print_message("%d signals %d, %d runs finished bit-equal\n", sent, signal_number, finished);
}

static void test_sigkill(void **state)
{
    (void)state;
    interrupt(SIGKILL, wanted());
}

static void test_sigterm(void **state)
{
    (void)state;
    interrupt(SIGTERM, wanted());
}

static void test_sigint(void **state)
{
    (void)state;
    interrupt(SIGINT, wanted());
}

/* SIGHUP and SIGUSR1 only save: the run ends by itself, unchanged. */
static void test_save_signals(void **state)
{
    (void)state;
    char want[65];
    double seconds = whole_seconds(want);
    for (int i = 0; i < 2; i++) {
        char out[32];
        int status;
        snprintf(out, sizeof out, "saves%d", i);
        pid_t pid = start(out);
        usleep((useconds_t)(1e6 * 0.5 * seconds)); /* the handlers are there by then */
        for (int k = 0; k < 10; k++) {
            kill(pid, i ? SIGHUP : SIGUSR1);
            usleep(3000);
        }
        waitpid(pid, &status, 0);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        assert_string_equal(runs_weights(out), want);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_sigkill), cmocka_unit_test(test_sigterm), cmocka_unit_test(test_sigint),
                                       cmocka_unit_test(test_save_signals)};
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
