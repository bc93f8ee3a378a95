/* Memory that runs out at every allocation of gqa-convert, its own main included: an exit code with a sentence, the older result or the new one whole, no
 * temporary, no crash. And address-space limits of the program as users run it. */
#include "checkpoints/checkpoint.h"
#include "faults.h"
#include "programs.h"
#include "small_checkpoint.h"

int convert_main(int argc, char **argv);

static char *source, *run, *target, *h5, *tokens;

static void before(void)
{
    assert_ok(io_remove_tree(run));
    assert_ok(io_mkdirs(run));
}

static enum code convert(const char *to, const char *method, const char *more, const char *value)
{
    const char *argv[] = {"gqa-convert", source, to, "--kv-heads", "2", "--force", "--quiet", "--method", method, "--threads", "1", more, value, NULL};
    host_threads_set(1); /* a team of threads does not survive the fork */
    return (enum code)convert_main(more ? 13 : 11, (char **)(uintptr_t)argv);
}
static enum code act_mean(void) { return convert(target, "mean", NULL, NULL); }
static enum code act_svd(void) { return convert(h5, "svd", "--grouping", "similar"); }
static enum code act_calibrated(void) { return convert(target, "mean", "--calibration", tokens); }

static enum code act_inspect(void)
{
    const char *argv[] = {"gqa-convert", "--inspect", source, "--json", NULL};
    return (enum code)convert_main(4, (char **)(uintptr_t)argv);
}

static void whole(const char *path, int status)
{
    int files;
    if (status == 0 || io_exists(path))
        assert_ok(ckpt_verify(path, &files));
}
static void check_dir(int status) { whole(target, status); }
static void check_h5(int status) { whole(h5, status); }

static void test_convert(void **state)
{
    (void)state;
    fault_memory_play(&(struct memory_scene){"gqa-convert, mean", run, before, act_mean, check_dir, 120});
    fault_memory_play(&(struct memory_scene){"gqa-convert, svd to .h5", run, before, act_svd, check_h5, 120});
    fault_memory_play(&(struct memory_scene){"gqa-convert --inspect", NULL, before, act_inspect, NULL, 60});
}

static void test_calibrated(void **state)
{
    (void)state;
    fault_memory_play(&(struct memory_scene){"gqa-convert --calibration", run, before, act_calibrated, check_dir, 90});
}

/* Limits of the address space, from too little to start to enough. */
static void test_address_space(void **state)
{
    (void)state;
#ifdef __SANITIZE_ADDRESS__
    print_message("skipped: limits of the address space; AddressSanitizer takes terabytes of it\n");
    skip();
#endif
    char *program = program_path("gqa-convert"), text[2000];
    int refused = 0, unstarted = 0, done = 0;
    before();
    for (int mib = soak() ? 160 : 240; mib < 1200 && done < 2; mib += soak() ? 4 : 12 + mib / 12) {
        snprintf(text, sizeof text, "ulimit -v %d; exec timeout -s KILL 20 %s %s %s --kv-heads 2 --method svd --force --quiet --calibration %s --threads 1", mib * 1024, program, source, target, tokens);
        struct child c = child_run((const char *const[]){"sh", "-c", text, NULL}, (const char *const[]){"OMP_NUM_THREADS=1", "OPENBLAS_NUM_THREADS=1", NULL});
        int says_memory = strstr(c.err, "memory") || strstr(c.err, "resource");
        int loader = strstr(c.err, "loading shared") || strstr(c.err, "cannot allocate") || strstr(c.err, "libgomp") || strstr(c.err, "OpenBLAS") || strstr(c.err, "cannot map");
        int before_main = c.status == 137 && !c.err[0] && mib < 200; /* OpenBLAS, when it is loaded, tries for ever to get its memory */
        loader |= before_main;
        int right = c.status == 0 || loader || c.status == 127 || (c.status == 6 && says_memory) || c.status == 5;
        if (!right)
            print_error("ulimit -v %d MiB: status %d: %s\n", mib, c.status, c.err);
        done += c.status == 0;
        refused += c.status == 6 || c.status == 5;
        unstarted += loader || c.status == 127;
        assert_true(right);
        char **names;
        int n;
        assert_ok(io_list(run, &names, &n));
        for (int i = 0; i < n; i++)
            assert_null(strstr(names[i], ".tmp-"));
        io_names_free(names, n);
        child_free(&c);
    }
    print_message("  gqa-convert under ulimit -v: %d not even loaded, %d refused, %d done\n", unstarted, refused, done);
    free(program);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_convert), cmocka_unit_test(test_calibrated), cmocka_unit_test(test_address_space)};
    struct arch a;
    uint16_t ids[600];
    source = temp_path("source");
    run = temp_path("run");
    target = temp_path("run/model");
    h5 = temp_path("run/model.h5");
    tokens = temp_path("tokens.bin");
    for (int i = 0; i < 600; i++)
        ids[i] = (uint16_t)random_int(4, (uint64_t)i, 0, 36);
    temp_write("tokens.bin", ids, sizeof ids);
    small_arch(&a, 6, 6, DT_F32);
    small_write(source, &a, 5, 1, NULL);
    arch_free(&a);
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
