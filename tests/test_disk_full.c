/* A disk, a quota or a limit that is full, directories that may not be written: the programs as users run them end with 5, the sentence has the
 * path, what is needed and what is free, what was there before still verifies, nothing is left over, and no signal ends them. */
#include <errno.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sched.h>
#include <unistd.h>

#include "faults.h"
#include "programs.h"
#include "runs.h"
#include "small_checkpoint.h"

static char *source, *place, *target;

/* A program under a limit of file sizes; -1: none. */
static struct child limited(const char *name, int64_t limit, const char *const *arguments)
{
    char *path = program_path(name), text[32];
    const char *argv[20] = {"sh", "-c", "[ $0 -lt 0 ] || ulimit -f $0; exec \"$@\"", text, path};
    int n = 5;
    snprintf(text, sizeof text, "%lld", (long long)(limit < 0 ? -1 : limit / 512)); /* dash counts in 512 bytes */
    for (; *arguments; arguments++)
        argv[n++] = *arguments;
    argv[n] = NULL;
    struct child c = child_run(argv, NULL);
    free(path);
    return c;
}

static void show(const struct child *c, const char *what, long long at)
{
    print_error("%s at %lld: status %d: %s\n", what, at, c->status, c->err);
}

/* ---- RLIMIT_FSIZE ---------------------------------------------------------------------------------------------------- */

static void convert_limited(const char *name, int64_t step)
{
    int done = 0, refused = 0, stale = 0;
    char *path = io_join(place, name);
    CONVERT_OK(source, path, "--kv-heads", "3", "--force", "--quiet");
    int entries = fault_entries(place);
    for (int64_t limit = 0; !done; limit += step) {
        struct child c = limited("gqa-convert", limit, (const char *const[]){source, path, "--kv-heads", "2", "--force", "--quiet", NULL});
        int right = c.status == 0 || (c.status == 5 && strstr(c.err, " needed, ") && strstr(c.err, " free") && strstr(c.err, name));
        if (!right)
            show(&c, name, (long long)limit);
        assert_true(right);
        done = c.status == 0;
        refused += !done;
        stale += fault_entries(place) != entries;
        if (!done) {
            if (!strstr(name, ".gguf"))
                CONVERT_OK("--verify", path);
        }
        child_free(&c);
    }
    print_message("  gqa-convert to %s: %d limits refused, then done; left over: %d\n", name, refused, stale);
    assert_int_equal(stale, 0);
    assert_true(refused > 2);
    free(path);
}

static void test_convert_file_limit(void **state)
{
    (void)state;
    int64_t step = soak_count(131072, 65536);
    convert_limited("model", step);
    convert_limited("model.h5", step);
    convert_limited("model.gguf", step);
}

static void test_uptrain_file_limit(void **state)
{
    (void)state;
    int done = 0, refused = 0, starts = 0;
    char out[700], *dir = temp_path("limited");
    snprintf(out, sizeof out, "output_dir=%s", dir);
    runs_train("limited", ARGS("max_steps=2", "save_steps=1", "model.arch.intermediate_size=900"));
    for (int64_t limit = 0; !done; limit += soak_count(262144, 65536), starts++) {
        char *from = runs_path("limited", "step-00000003"), *final = runs_path("limited", "final");
        assert_ok(io_remove_tree(from)); /* a run that was stopped at step 2 */
        int before = fault_entries(dir);
        struct child c = limited("gqa-uptrain", limit, (const char *const[]){runs_config(), out, "max_steps=3", "save_steps=1", "save_total_limit=50", "eval_steps=0",
                                                                             "model.arch.intermediate_size=900", "logging.tensorboard=false", NULL});
        int right = c.status == 0 || (c.status == 5 && strstr(c.err, dir));
        if (!right || (c.status == 5 && strstr(c.err, "step-00000003") && !strstr(c.err, " needed, ")))
            show(&c, "uptrain", (long long)limit);
        assert_true(right);
        done = c.status == 0;
        refused += !done;
        if (!done) {
            assert_true(fault_entries(dir) <= before + 1); /* a step may have been saved before final/ did not fit */
            struct child v = CONVERT("--verify", dir);
            program_ok(v);
        }
        child_free(&c);
        free(from);
        free(final);
    }
    print_message("  gqa-uptrain: %d limits refused, then done\n", refused);
    assert_true(refused > 2);
    free(dir);
}

/* ---- directories that refuse ----------------------------------------------------------------------------------------- */

/* In the child: 1 on the first thing that is not as it should be. */
static void need(int right, const char *what, const struct child *c)
{
    if (right)
        return;
    fprintf(stderr, "%s: status %d: %s\n", what, c->status, c->err);
    _exit(1);
}

static void test_no_permission(void **state)
{
    (void)state;
    CONVERT_OK(source, target, "--kv-heads", "3", "--force", "--quiet");
    assert_int_equal(chmod(temp_dir(), 0755), 0);
    assert_int_equal(chmod(place, 0555), 0);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        if (geteuid() == 0 && (setgid(65534) || setuid(65534))) /* the superuser may write everywhere */
            _exit(77);
        struct child c = CONVERT(source, target, "--kv-heads", "2", "--force", "--quiet");
        if (c.status == 127 || strstr(c.err, "cannot open shared object"))
            _exit(77); /* the build lies where others may not look */
        need(c.status == 5 && strstr(c.err, "permissions") && strstr(c.err, place), "a directory that may not be written", &c);
        char out[700];
        snprintf(out, sizeof out, "output_dir=%s/run", place);
        c = UPTRAIN(runs_config(), out);
        need(c.status == 5 && strstr(c.err, "permissions"), "a directory that may not be written", &c);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(chmod(place, 0755), 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
        print_message("skipped: no other user could be tried here, EACCES is untested\n");
    else
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_int_equal(fault_entries(place), 3); /* model, model.h5, model.gguf of the tests before */
    CONVERT_OK("--verify", target);
}

/* A small file system of our own, where the kernel lets us have one: in a child with its own view of mounts. */
static int in_small_filesystem(const char *options, void (*scene)(void), unsigned long flags)
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        uid_t uid = geteuid();
        gid_t gid = getegid();
        if (unshare(CLONE_NEWNS | (uid ? CLONE_NEWUSER : 0)) != 0)
            _exit(77);
        if (uid) {
            char text[64];
            FILE *f = fopen("/proc/self/setgroups", "w");
            if (f && (fputs("deny", f) < 0 || fclose(f)))
                _exit(77);
            snprintf(text, sizeof text, "0 %d 1", (int)uid);
            f = fopen("/proc/self/uid_map", "w");
            if (!f || fputs(text, f) < 0 || fclose(f))
                _exit(77);
            snprintf(text, sizeof text, "0 %d 1", (int)gid);
            f = fopen("/proc/self/gid_map", "w");
            if (!f || fputs(text, f) < 0 || fclose(f))
                _exit(77);
        }
        if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 || mount("none", place, "tmpfs", 0, options) != 0)
            _exit(77);
        if (flags && mount(NULL, place, NULL, MS_REMOUNT | flags, options) != 0)
            _exit(77);
        scene();
        fflush(NULL);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77) {
        print_message("skipped: no mount of a small tmpfs is allowed here (%s)\n", options);
        return 0;
    }
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    return 1;
}

static void fill_disk(void)
{
    /* 2 MiB: the first result fits, a second beside it does not. */
    struct child c = CONVERT(source, target, "--kv-heads", "3", "--quiet");
    need(c.status == 0, "the first conversion", &c);
    for (int i = 0; i < 3; i++) {
        static const char *const names[] = {"model", "other.h5", "other.gguf"};
        char *to = io_join(place, names[i]);
        c = CONVERT(source, to, "--kv-heads", "2", "--force", "--quiet");
        need(c.status == 5 && strstr(c.err, " needs ") && strstr(c.err, " free"), names[i], &c);
        need(fault_entries(place) == 1, "something is left", &c);
        c = CONVERT("--verify", target);
        need(c.status == 0, "the older result", &c);
    }
    /* Others fill the disk after the look at its free space: nothing is left to write with. */
    char *ballast = io_join(place, "ballast");
    FILE *f = fopen(ballast, "w");
    while (f && fputs("----------------------------------------------------------------", f) >= 0)
        ;
    if (f)
        fclose(f);
    c = CONVERT(source, target, "--kv-heads", "2", "--force", "--quiet");
    need(c.status == 5 && strstr(c.err, " free"), "a full disk", &c);
    c = CONVERT("--verify", target);
    need(c.status == 0, "the older result", &c);
}

static void read_only(void)
{
    struct child c = CONVERT(source, target, "--kv-heads", "2", "--quiet");
    need(c.status == 5 && strstr(c.err, "read-only"), "a read-only file system", &c);
    const char *dir = place;
    char out[700];
    snprintf(out, sizeof out, "output_dir=%s/run", dir);
    c = UPTRAIN(runs_config(), out);
    need(c.status == 5 && strstr(c.err, "read-only"), "a read-only file system", &c);
}

static void test_small_disk(void **state)
{
    (void)state;
    assert_ok(io_remove_tree(place));
    assert_ok(io_mkdirs(place));
    if (in_small_filesystem("size=2m", fill_disk, 0))
        print_message("  a tmpfs of 2 MiB: 3 forms and a disk that others fill, 4 refusals, the older result whole\n");
    in_small_filesystem("size=4m", read_only, MS_RDONLY);
}

/* ---- a pipe whose reader has gone ------------------------------------------------------------------------------------ */

static void test_closed_pipe(void **state)
{
    (void)state;
    char *convert = program_path("gqa-convert"), *uptrain = program_path("gqa-uptrain"), text[3000];
    /* stdout and stderr go to a reader that has gone: the work is done, the result nobody got is no success (5), no signal (141) */
    snprintf(text, sizeof text, "{ sleep 0.2; %s %s %s --kv-heads 2 --force 2>&1; echo $? >%s/status; } | true; wait; sleep 0.1; while [ ! -s %s/status ]; do sleep 0.1; done; cat %s/status",
             convert, source, target, temp_dir(), temp_dir(), temp_dir());
    struct child c = child_run((const char *const[]){"sh", "-c", text, NULL}, NULL);
    assert_int_equal(atoi(c.out), 5);
    child_free(&c);
    CONVERT_OK("--verify", target);
    snprintf(text, sizeof text, "rm -f %s/status; { sleep 0.2; %s %s output_dir=%s/piped max_steps=6 2>&1; echo $? >%s/status; } | true; while [ ! -s %s/status ]; do sleep 0.1; done; cat %s/status",
             temp_dir(), uptrain, runs_config(), temp_dir(), temp_dir(), temp_dir(), temp_dir());
    c = child_run((const char *const[]){"sh", "-c", text, NULL}, NULL);
    assert_int_equal(atoi(c.out), 5);
    child_free(&c);
    runs_train("calm", ARGS("max_steps=6"));
    assert_string_equal(runs_weights("piped"), runs_weights("calm"));
    free(convert);
    free(uptrain);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_convert_file_limit), cmocka_unit_test(test_uptrain_file_limit), cmocka_unit_test(test_no_permission),
                                       cmocka_unit_test(test_small_disk), cmocka_unit_test(test_closed_pipe)};
    struct arch a;
    source = temp_path("source");
    place = temp_path("place");
    target = temp_path("place/model");
    assert_ok(io_mkdirs(place));
    small_arch(&a, 6, 6, DT_F32);
    a.V = a.original_vocab = 6000; /* 0.6 MB */
    small_write(source, &a, 5, 1, NULL);
    arch_free(&a);
    runs_config();
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
