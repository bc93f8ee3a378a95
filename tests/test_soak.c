/* Many times the same: steps saved, found, loaded, verified and pruned, in one process. Open files do not grow, nor does memory after the first rounds.
 * And the same configuration twice: the same bits, for three seeds. 300 rounds, 10000 under soak. */
#include <dirent.h>

#include "faults.h"
#include "native_model.h"
#include "runs.h"

static int open_files(void)
{
    int n = 0;
    DIR *d = opendir("/proc/self/fd");
    if (!d)
        return 0;
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

static long resident_kib(void)
{
    long pages = 0, all = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f && fscanf(f, "%ld %ld", &all, &pages) != 2)
        pages = 0;
    if (f)
        fclose(f);
    return pages * 4;
}

static void test_cycles(void **state)
{
    (void)state;
    struct arch a;
    char *run = temp_path("cycles");
    int rounds = soak_count(300, 10000), files_then = 0, files = 0;
    long then = 0;
    native_arch(&a, 8, 0);
    for (int i = 1; i <= rounds; i++) {
        assert_ok(step_put(run, &a, i, 2));
        if (i % 10 == 0) {
            assert_int_equal(step_found(run, &a), i);
            assert_ok(ckpt_verify(run, &files));
            assert_int_equal(files, 2);
            assert_int_equal(fault_entries(run), 2);
        }
        if (i == rounds / 3) {
            files_then = open_files();
            then = resident_kib();
        }
    }
    long now = resident_kib();
    print_message("  %d saves, %d loads: open files %d then and %d now, resident %ld and %ld KiB\n", rounds, rounds / 10, files_then, open_files(), then, now);
    assert_int_equal(open_files(), files_then);
    assert_true(now <= then + then / 100 + 1024);
    arch_free(&a);
    free(run);
}

/* Bits of the losses and of the result. */
static void test_same_bits(void **state)
{
    (void)state;
    for (int seed = 1; seed <= 3; seed++) {
        char text[32], out[2][32];
        json_t *log[2];
        snprintf(text, sizeof text, "seed=%d", seed);
        for (int i = 0; i < 2; i++) {
            snprintf(out[i], sizeof out[i], "bits%d-%d", seed, i);
            runs_train(out[i], ARGS(text, "max_steps=100", "gradient_accumulation_steps=3"));
            log[i] = runs_log(out[i]);
        }
        assert_string_equal(runs_weights(out[0]), runs_weights(out[1]));
        assert_int_equal(json_array_size(log[0]), 101);
        for (size_t k = 0; k < json_array_size(log[0]); k++)
            for (int key = 0; key < 3; key++) {
                static const char *const keys[] = {"loss", "grad_norm", "eval_loss"};
                double x = runs_number(json_array_get(log[0], k), keys[key]), y = runs_number(json_array_get(log[1], k), keys[key]);
                assert_memory_equal(&x, &y, sizeof x);
            }
        json_decref(log[0]);
        json_decref(log[1]);
    }
    print_message("  3 seeds twice, 100 steps: losses, gradient norms and weights bit-equal\n");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_cycles), cmocka_unit_test(test_same_bits)};
    log_quiet(1);
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
