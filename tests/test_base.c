/* Errors, arenas, command lines, log, host. */
#include <errno.h>
#include <math.h>
#include <omp.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

static enum code two_levels(void)
{
    enum code c = fail(ERR_INPUT, "tensor %d", 3);
    return c == OK ? OK : fail_in(c, "%s", "file");
}

static enum code forwards(void)
{
    TRY(two_levels());
    return OK;
}

static void test_errors(void **state)
{
    (void)state;
    assert_refused(forwards(), ERR_INPUT, "file: tensor 3");
    assert_int_equal(fail(ERR_USAGE, "again: %s", fail_text()), ERR_USAGE); /* its own text as an argument */
    assert_string_equal(fail_text(), "again: file: tensor 3");
    assert_int_equal(fail_in(OK, "nothing"), OK);
    assert_string_equal(fail_text(), "again: file: tensor 3");
    char longer[5000];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    assert_int_equal(fail_in(fail(ERR_INPUT, "%s", longer), "%s", longer), ERR_INPUT);
    assert_true(strlen(fail_text()) == 2047);
    (void)fail(ERR_INPUT, "%.4s|%s", "abc\xc3\xa9", "\xe4\xb8\xad \xed\xa0\x80 \xf0\x9f\x98\x80\xff");
    assert_string_equal(fail_text(), "abc?|\xe4\xb8\xad ??? \xf0\x9f\x98\x80?"); /* cut inside a character, a surrogate, no UTF-8 */
    static const struct { int e; const char *part; } advice[] = {
        {ENOSPC, "free some space"}, {EDQUOT, "quota"}, {EACCES, "permissions"}, {EROFS, "read-only"}, {EMFILE, "ulimit"}, {EIO, "p: write: "}};
    for (size_t i = 0; i < COUNT_OF(advice); i++) {
        errno = advice[i].e;
        assert_refused(fail_errno("p", "write"), ERR_IO, advice[i].part);
    }
    assert_int_equal(fail_exit("gqa-x", OK), 0);
    assert_int_equal(fail_exit("gqa-x", ERR_LOCKED), 9);
    assert_int_equal(fail_exit("gqa-x", ERR_STOPPED), 75);
    pid_t pid = fork(); /* CHECK aborts */
    if (pid == 0) {
        CHECK(1 + 1 == 3);
        _exit(0);
    }
    int status;
    waitpid(pid, &status, 0);
    assert_true(WIFSIGNALED(status));
}

static void carve_three(struct arena *a, char *out[3])
{
    out[0] = arena_carve(a, 100);
    out[1] = arena_carve(a, 64);
    out[2] = arena_carve(a, 0);
    (void)arena_carve(a, 1);
}

static void test_arena(void **state)
{
    (void)state;
    struct arena a = {0};
    char *p[3];
    carve_three(&a, p);
    assert_true(!p[0] && !p[1] && a.used >= 100 + 64 + 1);
    size_t need = a.used;
    assert_ok(arena_reserve(&a, "test", need));
    carve_three(&a, p);
    assert_int_equal(a.used, need);
    for (int i = 0; i < 3; i++)
        assert_int_equal((uintptr_t)p[i] % 64, 0);
    for (int i = 0; i < 128; i++) /* payload and its padding */
        assert_int_equal(p[0][i], 0);
    memset(p[0], 7, 128);
    arena_rewind(&a, 0);
    char *again = arena_carve(&a, 90);
    assert_true(again == p[0] && again[89] == 7 && again[90] == 0 && again[127] == 0);
#if defined(__SANITIZE_ADDRESS__)
    assert_true(!__asan_address_is_poisoned(again + 127) && __asan_address_is_poisoned(again + 128));
    assert_true(__asan_address_is_poisoned(p[1]));
#else
    print_message("skipped: arena redzones (SAN=1 only)\n");
#endif
    arena_release(&a);
    assert_true(a.base == NULL && a.used == 0);
    assert_refused(arena_reserve(&a, "gradients", (size_t)1 << 60), ERR_MEMORY, "MiB for gradients");
}

struct parsed { int64_t n; double x; const char *s; int set, choice; struct cli_ints list; };
static const struct cli_flag flags[] = {
    {"--kv-heads", CLI_INT, offsetof(struct parsed, n), "G", "K/V heads (default: as they are)"},
    {"--alpha", CLI_FLOAT, offsetof(struct parsed, x), "SHARE", "share (default 0.05)"},
    {"--out", CLI_STR, offsetof(struct parsed, s), "FILE", "where to (default stdout)"},
    {"--force", CLI_SET, offsetof(struct parsed, set), NULL, "overwrite"},
    {"--method", CLI_CHOICE, offsetof(struct parsed, choice), "mean|first|random-with-a-rather-long-name", "how (default mean)"},
    {"--batch", CLI_INTS, offsetof(struct parsed, list), "1,8", "batch sizes"},
};
static const struct cli cli = {"gqa-test", "SRC [DST] [flags]", "Tests the parser.", flags, COUNT_OF(flags), 1, 2};

static enum code parse(struct parsed *p, struct cli_words *w, int *help, const char *const *argv)
{
    int argc = 0;
    while (argv[argc])
        argc++;
    memset(p, 0, sizeof *p);
    return cli_parse(&cli, argc, (char **)(uintptr_t)argv, p, w, help);
}
#define ARGS(...) ((const char *const[]){"gqa-test", __VA_ARGS__, NULL})

static void test_command_lines(void **state)
{
    (void)state;
    struct parsed p;
    struct cli_words w;
    int help;
    assert_ok(parse(&p, &w, &help, ARGS("src", "--kv-heads", "-4", "--alpha=2e-5", "--out=a=b", "--force", "--batch", "1,8,64", "--method=first", "--", "--dst")));
    assert_true(p.n == -4 && p.x == 2e-5 && !strcmp(p.s, "a=b") && p.set && p.choice == 1 && p.list.n == 3 && p.list.v[2] == 64);
    assert_true(w.n == 2 && !strcmp(w.v[0], "src") && !strcmp(w.v[1], "--dst") && !help);
    assert_ok(parse(&p, &w, &help, ARGS("-")));
    assert_true(w.n == 1);
    static const char *const shown[] = {"--help", "-h", "--version"};
    for (size_t i = 0; i < COUNT_OF(shown); i++) {
        assert_ok(parse(&p, &w, &help, ARGS(shown[i])));
        assert_int_equal(help, 1);
    }
    assert_refused(parse(&p, &w, &help, ARGS("s", "--kv-head", "3")), ERR_USAGE, "unknown flag --kv-head; did you mean --kv-heads? (see gqa-test --help)");
    assert_refused(parse(&p, &w, &help, ARGS("s", "--zzzzzzzz=1")), ERR_USAGE, "unknown flag --zzzzzzzz; see gqa-test --help");
    assert_refused(parse(&p, &w, &help, ARGS("s", "--force=1")), ERR_USAGE, "takes no value");
    assert_refused(parse(&p, &w, &help, ARGS("s", "--kv-heads")), ERR_USAGE, "its value G is missing");
    assert_refused(parse(&p, &w, &help, ARGS("s", "--kv-heads", "4x")), ERR_USAGE, "expected an integer, found '4x'");
    assert_refused(parse(&p, &w, &help, ARGS("s", "--kv-heads=")), ERR_USAGE, "expected an integer");
    assert_refused(parse(&p, &w, &help, ARGS("s", "--kv-heads", "99999999999999999999")), ERR_USAGE, "expected an integer");
    assert_refused(parse(&p, &w, &help, ARGS("s", "--alpha", "nan")), ERR_USAGE, "expected a number");
    assert_refused(parse(&p, &w, &help, ARGS("s", "--batch", "1,,2")), ERR_USAGE, "integer list");
    assert_refused(parse(&p, &w, &help, ARGS("s", "--method", "mea")), ERR_USAGE, "expected mean|first");
    assert_refused(parse(&p, &w, &help, ARGS("a", "b", "c")), ERR_USAGE, "unexpected argument 'c'");
    assert_refused(parse(&p, &w, &help, ARGS("--force")), ERR_USAGE, "1 argument missing");
}

static void test_formats(void **state)
{
    (void)state;
    char t[16];
    static const struct { double x; const char *bytes, *count; } sizes[] = {
        {0, "0 B", "0"}, {1023, "1023 B", "1.0k"}, {1536, "1.5 KiB", "1.5k"}, {12400, "12.1 KiB", "12.4k"}, {1.61061e9, "1.5 GiB", "1.6G"}, {1e30, NULL, NULL}};
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        format_bytes(t, sizes[i].x);
        if (sizes[i].bytes)
            assert_string_equal(t, sizes[i].bytes);
        format_count(t, sizes[i].x);
        if (sizes[i].count)
            assert_string_equal(t, sizes[i].count);
    }
    static const struct { double s; const char *want; } times[] = {{0, "00:00:00"}, {2470, "00:41:10"}, {183600, "2d 03:00:00"}, {-1, "?"}, {1e300, "?"}};
    for (size_t i = 0; i < COUNT_OF(times); i++) {
        format_duration(t, times[i].s);
        assert_string_equal(t, times[i].want);
    }
    format_duration(t, (double)NAN);
    assert_string_equal(t, "?");
}

static void test_log_and_progress(void **state)
{
    (void)state;
    struct progress p;
    progress_begin(&p, "steps", 200);
    progress_update(&p, 1, NULL);
    assert_int_equal(p.shown, 0); /* not a terminal, not 10 s yet */
    p.drawn -= 11.0;
    progress_update(&p, 12, "loss 2.5");
    assert_int_equal(p.shown, 1);
    progress_end(&p);
    progress_begin(&p, "bytes", 0);
    p.drawn -= 11.0;
    log_quiet(1);
    log_info("not shown");
    progress_update(&p, 3, NULL);
    assert_int_equal(p.shown, 0);
    log_quiet(0);
    progress_update(&p, 3, NULL);
    assert_int_equal(p.shown, 1);
    progress_end(&p);
    log_info("info %d", 1);
    log_warn("warning %d", 2);
}

static void test_host(void **state)
{
    (void)state;
    assert_true(host_cpus() >= 1 && host_threads() == host_cpus());
    assert_true(host_l1d_bytes() >= 8192 && host_l2_bytes() > host_l1d_bytes());
    assert_true(host_peak_rss() > 1 << 20 && host_memory_total() > host_peak_rss() && strlen(host_cpu_name()) > 0);
    assert_string_equal(host_isa_name(ISA_AVX2), "avx2");
    assert_true(host_isa() <= ISA_AVX512 && (!host_has_avx512_bf16() || host_isa() == ISA_AVX512));
    double t = host_seconds();
    assert_true(host_seconds() >= t);
    const char *bind = getenv("OMP_PROC_BIND");
    if (bind && *bind) {
        print_message("skipped: pinning (OMP_PROC_BIND is set)\n");
        return;
    }
    int cpu[1024], width[1024], n = host_threads();
#pragma omp parallel num_threads(n)
    {
        cpu_set_t set;
        int me = omp_get_thread_num();
        sched_getaffinity(0, sizeof set, &set);
        width[me] = CPU_COUNT(&set);
        cpu[me] = sched_getcpu();
    }
    for (int i = 0; i < n; i++) {
        assert_int_equal(width[i], 1);
        for (int j = 0; j < i; j++)
            assert_int_not_equal(cpu[i], cpu[j]);
    }
    pid_t pid = fork(); /* a child may use every CPU again */
    if (pid == 0) {
        cpu_set_t set;
        sched_getaffinity(0, sizeof set, &set);
        _exit(CPU_COUNT(&set) == host_cpus() ? 0 : 1);
    }
    int status;
    waitpid(pid, &status, 0);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void test_isa_setting(void **state)
{
    (void)state;
    if (getenv("TEST_PRINT_ISA")) { /* the child below */
        fprintf(stderr, "isa=%s\n", host_isa_name(host_isa()));
        return;
    }
    static const char *const asked[] = {"plain", "avx2", "sse9"};
    for (size_t i = 0; i < COUNT_OF(asked); i++) {
        char setting[32], want[32];
        snprintf(setting, sizeof setting, "GQAKIT_ISA=%s", asked[i]);
        snprintf(want, sizeof want, "isa=%s\n", i == 2 || host_isa() < ISA_AVX2 ? host_isa_name(host_isa()) : asked[i]);
        if (i == 0)
            strcpy(want, "isa=plain\n");
        struct child c = child_run((const char *const[]){"/proc/self/exe", "test_isa_setting", NULL},
                                   (const char *const[]){setting, "TEST_PRINT_ISA=1", NULL});
        assert_int_equal(c.status, 0);
        assert_non_null(strstr(c.err, want));
        if (i == 2)
            assert_non_null(strstr(c.err, "expected plain, avx2 or avx512"));
        child_free(&c);
    }
}

static void test_harness_sees_mistakes(void **state)
{
    (void)state;
    float x[4] = {1.0f, 2.0f, 3.0f, 4.0f};
    double y[4] = {1.0, 2.0, 3.0, 4.0}, bad[4] = {1.0, 2.0, 3.0, (double)NAN};
    assert_true(compare_f32("same", x, y, 4, 0, 0) && compare_view("same", view_1d(x, DT_F32, 4), y, 0, 0));
    assert_true(!compare_f32("(meant) nan wanted", x, bad, 4, 1e9, 1e9));
    x[2] = 3.1f;
    assert_true(!compare_f32("(meant) off", x, y, 4, 1e-3, 0) && compare_f32("within", x, y, 4, 0.1, 0));
    fill_nan(x, 4);
    assert_true(!compare_f32("(meant) nan", x, y, 4, 1e300, 1e300));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_errors),           cmocka_unit_test(test_arena), cmocka_unit_test(test_command_lines),
        cmocka_unit_test(test_formats),          cmocka_unit_test(test_log_and_progress), cmocka_unit_test(test_host),
        cmocka_unit_test(test_isa_setting),      cmocka_unit_test(test_harness_sees_mistakes),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
