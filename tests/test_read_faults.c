/* A disk that fails while it is read, at every call of every reader of bytes from outside. Interrupted and short reads change nothing. Where reading,
 * opening, fstat or the listing of a directory fails, the same is read all the same, or the program says ERR_IO: no good file is blamed. */
#include <unistd.h>

#include "faults.h"
#include "readers.h"

static const struct reader *now;
static uint64_t want;

static enum code act(void) { return reader_again(now, want); }

static int wrong(enum fault mode, int status)
{
    int zlib = strstr(now->name, "JSON lines") || !strcmp(now->name, "text"); /* it does not try again after EINTR */
    return (mode == FAULT_READ_EINTR && !zlib) || mode == FAULT_READ_SHORT ? status != OK : status != OK && status != ERR_IO;
}

static void play(struct readers r)
{
    static const enum fault modes[] = {FAULT_READ_EIO, FAULT_READ_OWN, FAULT_READ_EINTR, FAULT_READ_SHORT, FAULT_LOOK_EIO};
    int bad = 0;
    for (size_t i = 0; i < r.n; i++) {
        now = &r.v[i];
        want = reader_sum(now);
        for (size_t m = 0; m < COUNT_OF(modes); m++) {
            const struct scene scene = {.name = now->name, .act = act};
            int k = 1, said[101] = {0};
            for (;; k += soak() || k < 20 ? 1 : 7) { /* an .h5 takes some 200 calls */
                int status = fault_run(&scene, modes[m], k);
                if (status >= 100) {
                    assert_int_equal(status, 100);
                    break;
                }
                assert_true(status >= 0);
                if (wrong(modes[m], status)) {
                    char *path = temp_path("stderr.txt"), *text = NULL;
                    size_t n;
                    assert_ok(io_read_all(path, 1 << 16, &text, &n));
                    print_error("%s, %s at call %d: status %d: %s\n", now->name, FAULT_NAMES[modes[m]], k, status, text);
                    free(text);
                    free(path);
                    bad++;
                }
                said[status]++;
            }
            print_message("  %s, %s: %d calls, %d read all the same, %d ERR_IO\n", now->name, FAULT_NAMES[modes[m]], k - 1, said[OK], said[ERR_IO]);
        }
    }
    assert_int_equal(bad, 0);
}

static void test_models(void **state) { (void)state, play(readers_models()); }
static void test_runs(void **state) { (void)state, play(readers_runs()); }
static void test_tokens(void **state) { (void)state, play(readers_tokens()); }
static void test_tokenizers(void **state) { (void)state, play(readers_tokenizers()); }
static void test_others(void **state) { (void)state, play(readers_others()); }

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_models), cmocka_unit_test(test_runs), cmocka_unit_test(test_tokens),
                                       cmocka_unit_test(test_tokenizers), cmocka_unit_test(test_others)};
    log_quiet(1);
    host_threads_set(1); /* a team of threads does not survive the fork */
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
