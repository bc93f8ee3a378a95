/* Signals to the programs as users run them: gqa-convert leaves no temporary and an intact source; gqa-uptrain saves and ends with 75 within a step
 * and a save, at random times; a second signal ends it at once with nothing torn; the converting child of a run ends with it; an ablation
 * hands the signal on. And locks: whoever comes second is told by whom the directory is held. */
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "faults.h"
#include "programs.h"
#include "runs.h"
#include "small_checkpoint.h"

static char *source, *place, *target;

struct running { pid_t pid; double started; };

static struct running start(const char *name, const char *log, const char *const *arguments)
{
    const char *argv[24];
    int n = 0;
    char *path = program_path(name), *to = temp_path(log);
    argv[n++] = path;
    for (; *arguments; arguments++)
        argv[n++] = *arguments;
    argv[n] = NULL;
    fflush(NULL);
    struct running r = {fork(), host_seconds()};
    if (r.pid == 0) {
        int fd = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        setpgid(0, 0);
        dup2(fd, 1);
        dup2(fd, 2);
        execv(path, (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    free(path);
    free(to);
    return r;
}
#define START(name, log, ...) start(name, log, (const char *const[]){__VA_ARGS__, NULL})

static int finish(struct running r)
{
    int status = 0;
    assert_int_equal(waitpid(r.pid, &status, 0), r.pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int says(const char *log, const char *part)
{
    char *path = temp_path(log), *text = NULL;
    size_t n;
    int found = io_exists(path) && io_read_all(path, 1 << 24, &text, &n) == OK && strstr(text, part) != NULL;
    free(text);
    free(path);
    return found;
}

static void nap(double seconds) { usleep((useconds_t)(1e6 * seconds)); }

/* ---- gqa-convert ----------------------------------------------------------------------------------------------------- */

static void test_convert(void **state)
{
    (void)state;
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
    char before[65], after[65], *weights = io_join(source, "model.safetensors");
    int stopped = 0, done = 0, left = 0, early = 0, trials = soak_count(18, 150);
    assert_ok(sha256_file(weights, before));
    assert_ok(io_mkdirs(place));
    double began = host_seconds();
    CONVERT_OK(source, target, "--kv-heads", "3", "--method", "svd", "--grouping", "similar", "--force", "--quiet");
    double whole = host_seconds() - began;
    for (int i = 0; i < trials; i++) {
        struct running r = START("gqa-convert", "convert.log", source, target, "--kv-heads", "2", "--method", "svd", "--grouping", "similar", "--force", "--quiet");
        nap(whole * random_uniform(3, STREAM_TEST, 0, (uint64_t)i));
        kill(r.pid, signals[i % 3]);
        int status = finish(r);
        if (status != 0 && status != 128 + signals[i % 3]) {
            print_error("gqa-convert: status %d after signal %d\n", status, signals[i % 3]);
            assert_true(0);
        }
        stopped += status != 0;
        early += status != 0 && !says("convert.log", "nothing was written"); /* before it has begun */
        done += status == 0;
        left += fault_entries(place) != 1;
        CONVERT_OK("--verify", target);
    }
    assert_ok(sha256_file(weights, after));
    assert_string_equal(before, after);
    print_message("  gqa-convert: %d signals, %d stopped (%d of them before it began), %d were done; something left: %d\n", trials, stopped, early, done, left);
    assert_int_equal(left, 0);
    free(weights);
}

/* ---- gqa-uptrain ----------------------------------------------------------------------------------------------------- */

static char out_arg[700];

static struct running train(const char *name, const char *steps)
{
    snprintf(out_arg, sizeof out_arg, "output_dir=%s/%s", temp_dir(), name);
    return START("gqa-uptrain", "train.log", runs_config(), out_arg, steps, "eval_steps=0", "save_steps=7", "gradient_accumulation_steps=3");
}

static const char *wanted(void)
{
    static char hex[65];
    if (!hex[0]) {
        runs_train("calm", ARGS("max_steps=120", "eval_steps=0", "save_steps=7", "gradient_accumulation_steps=3"));
        snprintf(hex, sizeof hex, "%s", runs_weights("calm"));
    }
    return hex;
}

/* Random times; the same command afterwards ends with the same bits. The time from the signal to the end is that of a step and a save. */
static void stop_at_random(int signal_number, int trials)
{
    const char *want = wanted();
    int ended = 0, stopped = 0, early = 0, starts = 0;
    double slowest = 0;
    char name[40];
    for (int i = 0; i < trials;) {
        int status = -1;
        snprintf(name, sizeof name, "stop%d", signal_number);
        char *dir = temp_path(name);
        assert_ok(io_remove_tree(dir));
        free(dir);
        for (int tries = 0; status != 0; tries++) {
            struct running r = train(name, "max_steps=120");
            starts++;
            if (i < trials && tries < 12) {
                nap(0.02 + 0.5 * random_uniform(9, STREAM_TEST, (uint64_t)signal_number, (uint64_t)i++));
                double at = host_seconds();
                kill(r.pid, signal_number);
                status = finish(r);
                slowest = status == 75 && host_seconds() - at > slowest ? host_seconds() - at : slowest;
            } else
                status = finish(r);
            ended += status == 0;
            stopped += status == 75;
            early += status == 128 + signal_number; /* before the handlers were there */
            if (status != 0 && status != 75 && status != 128 + signal_number)
                print_error("gqa-uptrain: status %d after signal %d\n", status, signal_number);
            assert_true(status == 0 || status == 75 || status == 128 + signal_number);
        }
        assert_string_equal(runs_weights(name), want);
    }
    print_message("  signal %d: %d sent, %d saved and stopped (slowest after %.2f s), %d before the start, %d runs ended bit-equal\n", signal_number, trials,
                  stopped, slowest, early, ended);
    assert_true(slowest < 20);
}

static void test_stop(void **state)
{
    (void)state;
    stop_at_random(SIGTERM, soak_count(6, 50));
    stop_at_random(SIGINT, soak_count(6, 50));
}

static void test_save_and_go_on(void **state)
{
    (void)state;
    const char *want = wanted();
    int trials = soak_count(3, 50), ended = 0;
    for (int i = 0; i < 2 * trials; i++) {
        char *dir = temp_path("asked");
        assert_ok(io_remove_tree(dir));
        struct running r = train("asked", "max_steps=120");
        for (int tries = 0; tries < 500 && !says("asked/log.jsonl", "\n"); tries++)
            nap(0.01);
        nap(0.2 * random_uniform(10, STREAM_TEST, 0, (uint64_t)i));
        kill(r.pid, i % 2 ? SIGHUP : SIGUSR1);
        assert_int_equal(finish(r), 0);
        assert_string_equal(runs_weights("asked"), want);
        ended++;
        free(dir);
    }
    print_message("  SIGUSR1 and SIGHUP: %d runs went on and ended bit-equal\n", ended);
}

/* The second signal does not wait for the end of the step: 128 + n, at once, and going on gives the same bits. */
static void test_second_signal(void **state)
{
    (void)state;
    char out[700], want[65], accumulation[64] = "gradient_accumulation_steps=300";
    const char *const slow[] = {"max_steps=2", "eval_steps=0", "save_steps=1", accumulation, "logging.tensorboard=false", NULL};
    int trials = soak_count(3, 50), at_once = 0, other = 0;
    double took = host_seconds();
    runs_train("quick", slow);
    took = host_seconds() - took;
    /* Two steps of about 1.2 s, so that both signals come in the first one however fast the machine is (a second signal counts after 0.2 s). */
    snprintf(accumulation, sizeof accumulation, "gradient_accumulation_steps=%d", (int)(300 * (1 + 2.4 / took)));
    took = host_seconds();
    runs_train("slow", slow);
    took = host_seconds() - took;
    snprintf(want, sizeof want, "%s", runs_weights("slow"));
    snprintf(out, sizeof out, "output_dir=%s/twice", temp_dir());
    for (int i = 0; i < trials; i++) {
        char *dir = temp_path("twice");
        assert_ok(io_remove_tree(dir));
        struct running r = START("gqa-uptrain", "twice.log", runs_config(), out, slow[0], slow[1], slow[2], slow[3], slow[4]);
        nap(took * (0.1 + 0.1 * random_uniform(12, STREAM_TEST, 0, (uint64_t)i)));
        kill(r.pid, SIGTERM);
        nap(0.25);
        double at = host_seconds();
        kill(r.pid, SIGINT);
        int status = finish(r);
        assert_true(status == 128 + SIGINT || status == 128 + SIGTERM /* it did not listen yet */ || status == 75 || status == 0);
        at_once += status == 128 + SIGINT && host_seconds() - at < 2;
        other += status != 128 + SIGINT;
        runs_train("twice", slow);
        assert_string_equal(runs_weights("twice"), want);
        free(dir);
    }
    print_message("  a second signal: %d runs, %d left at once, %d had ended or not begun; all ended bit-equal\n", trials, at_once, other);
    assert_int_equal(at_once + other, trials);
    assert_true(at_once > 0);
}

/* A scheduler's way to end a job: SIGTERM to all of its processes, a while later SIGKILL. The run converts first. */
static void test_group(void **state)
{
    (void)state;
    char model[700], name[40];
    int trials = soak_count(4, 50), stopped = 0;
    snprintf(model, sizeof model, "model={path: %s}", source);
    for (int i = 0; i < trials; i++) {
        snprintf(name, sizeof name, "group%d", i);
        snprintf(out_arg, sizeof out_arg, "output_dir=%s/%s", temp_dir(), name);
        const char *const all[] = {runs_config(), out_arg, model, "gqa={num_key_value_heads: 2, method: svd, grouping: similar}", "max_steps=3000",
                                   "data.tokenizer=bytes", "eval_steps=0", "save_steps=50", NULL};
        struct running r = start("gqa-uptrain", "group.log", all);
        nap(0.05 + 0.6 * random_uniform(13, STREAM_TEST, 0, (uint64_t)i));
        kill(-r.pid, SIGTERM);
        int status = finish(r);
        if (status != 75 && status != 128 + SIGTERM) {
            char *path = temp_path("group.log"), *text;
            size_t n;
            assert_ok(io_read_all(path, 1 << 20, &text, &n));
            print_error("status %d: %s\n", status, text);
        }
        assert_true(status == 75 || status == 128 + SIGTERM);
        stopped += status == 75;
        char *dir = temp_path(name);
        char **names;
        int n;
        if (io_is_dir(dir)) {
            assert_ok(io_list(dir, &names, &n));
            for (int k = 0; k < n; k++)
                assert_null(strstr(names[k], ".tmp-"));
            io_names_free(names, n);
        }
        free(dir);
    }
    print_message("  SIGTERM to a whole job that converts first: %d of %d stopped with 75, nothing left over\n", stopped, trials);
}

static void test_ablation(void **state)
{
    (void)state;
    char text[3000];
    int n = snprintf(text, sizeof text,
                     "name: stopped\noutput_dir: %s/ablation\nmodel: {path: %s}\ngrid: {num_key_value_heads: [3, 2, 1], method: [mean], uptrain_fraction: [0, 0.01]}\n"
                     "uptrain: {data: {train: [%s/train.txt], validation: [%s/val.txt], tokenizer: bytes}, sequence_len: 33, micro_batch_size: 2, "
                     "original_tokens: 4.0e5, optimizer: {lr: 1e-3}, threads: 1}\nevaluate: {data: [%s/val.txt], tokenizer: bytes, context: 32, "
                     "decode: {batch: [1], context: [16], new: 4, repeats: 1}}\nthreads: 1\n",
                     temp_dir(), source, temp_dir(), temp_dir(), temp_dir());
    runs_config();
    temp_write("ablation.yaml", text, (size_t)n);
    char *config = temp_path("ablation.yaml");
    int trials = soak_count(2, 20), stopped = 0;
    for (int i = 0; i < trials; i++) {
        struct running r = START("gqa-eval", "ablation.log", "ablate", config);
        nap(0.2 + 1.0 * random_uniform(14, STREAM_TEST, 0, (uint64_t)i));
        kill(r.pid, i % 2 ? SIGTERM : SIGINT);
        double at = host_seconds();
        int status = finish(r);
        if (status == 0 || host_seconds() - at > 20) { /* done before the signal came */
            print_message("skipped: the ablation had ended\n");
            break;
        }
        if (status != 75 && status != 128 + SIGTERM && status != 128 + SIGINT)
            print_error("gqa-eval ablate: status %d\n", status);
        assert_true(status == 75 || status == 128 + SIGTERM || status == 128 + SIGINT);
        stopped++;
    }
    struct running second, r = START("gqa-eval", "ablation.log", "ablate", config);
    nap(0.3);
    second = START("gqa-eval", "second.log", "ablate", config);
    char who[60];
    snprintf(who, sizeof who, "pid %ld on ", (long)r.pid);
    int status = finish(second);
    assert_true(status == 9 || status == 0);
    if (status == 9)
        assert_true(says("second.log", who));
    status = finish(r);
    if (status != 0) {
        char *path = temp_path("ablation.log"), *log;
        size_t size;
        assert_ok(io_read_all(path, 1 << 20, &log, &size));
        print_error("%s\n", log);
    }
    assert_int_equal(status, 0);
    print_message("  an ablation stopped %d times, then done\n", stopped);
    free(config);
}

/* ---- locks ----------------------------------------------------------------------------------------------------------- */

static void test_locks(void **state)
{
    (void)state;
    char *dir = temp_path("held"), *final = temp_path("held/final"), who[96], host[65] = "";
    wanted();
    struct running r = train("held", "max_steps=100000"), second;
    for (int tries = 0; tries < 500 && !says("held/log.jsonl", "\n"); tries++)
        nap(0.01);
    gethostname(host, sizeof host - 1);
    snprintf(who, sizeof who, "pid %ld on %s", (long)r.pid, host);
    char *to[] = {final, dir}; /* the run's own result, and the run itself */
    for (int i = 0; i < 2; i++) {
        assert_ok(io_mkdirs(final)); /* what is there is a model: --force could replace it */
        struct child c = CONVERT(source, to[i], "--kv-heads", "2", "--force", "--quiet");
        if (i == 0)
            program_refused(c, 9, who);
        else {
            assert_true(c.status == 9 || c.status == 2);
            child_free(&c);
        }
    }
    char *h5 = temp_path("held/mine.h5");
    program_refused(CONVERT(source, h5, "--quiet"), 9, who);
    assert_false(io_exists(h5));
    second = train("held", "max_steps=100000");
    assert_int_equal(finish(second), 9);
    assert_true(says("train.log", who));
    kill(r.pid, SIGKILL); /* the file stays, the lock does not */
    finish(r);
    CONVERT_OK(source, h5, "--quiet");
    second = train("held", "max_steps=100000");
    nap(1);
    kill(second.pid, SIGTERM);
    assert_int_equal(finish(second), 75);
    free(dir);
    free(final);
    free(h5);
}

int main(int argc, char **argv)
{
    signal(SIGINT, SIG_DFL); /* a shell's background job ignores it, and so would the programs */
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_convert), cmocka_unit_test(test_stop), cmocka_unit_test(test_save_and_go_on), cmocka_unit_test(test_second_signal),
                                       cmocka_unit_test(test_group), cmocka_unit_test(test_ablation), cmocka_unit_test(test_locks)};
    struct arch a;
    source = temp_path("source");
    place = temp_path("place");
    target = temp_path("place/model");
    small_arch(&a, 6, 6, DT_F32);
    a.V = a.original_vocab = 256;
    a.bos = a.eos = -1;
    small_write(source, &a, 5, 1, NULL);
    arch_free(&a);
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
