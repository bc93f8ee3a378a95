/* Memory that runs out at every allocation of every reader of bytes from outside: what is read is what is read with enough memory, or it is ERR_MEMORY.
 * Anything else would blame a good file. */
#include "faults.h"
#include "readers.h"

static const struct reader *now;
static uint64_t want;
static int wrong;

static enum code act(void) { return reader_again(now, want); }
static void nothing(void) { }

static void check(int status)
{
    char *path = temp_path("memory.txt"), *said = NULL;
    size_t n;
    if (status != OK && status != ERR_MEMORY && io_read_all(path, 1 << 16, &said, &n) == OK)
        print_error("%s: status %d: %s\n", now->name, status, said);
    wrong += status != OK && status != ERR_MEMORY;
    free(said);
    free(path);
}

static void play(struct readers r)
{
    for (size_t i = 0; i < r.n; i++) {
        now = &r.v[i];
        want = reader_sum(now);
        fault_memory_play(&(struct memory_scene){now->name, temp_dir(), nothing, act, check, now->cases});
    }
    assert_int_equal(wrong, 0);
}

static void test_models(void **state) { (void)state, play(readers_models()); }
static void test_runs(void **state) { (void)state, play(readers_runs()); }
static void test_configs(void **state) { (void)state, play(readers_configs()); }
static void test_tokens(void **state) { (void)state, play(readers_tokens()); }
static void test_tokenizers(void **state) { (void)state, play(readers_tokenizers()); }
static void test_others(void **state) { (void)state, play(readers_others()); }

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_models), cmocka_unit_test(test_runs), cmocka_unit_test(test_configs),
                                       cmocka_unit_test(test_tokens), cmocka_unit_test(test_tokenizers), cmocka_unit_test(test_others)};
    log_quiet(1);
    host_threads_set(1); /* a team of threads does not survive the fork */
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
