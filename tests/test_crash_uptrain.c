/* gqa-uptrain at every instant (faults.h), in the process of the test: two steps with saves, pruning, log and final/, from a run that stands at step
 * 2. Whatever call fails or kills it, running it again ends with the bits of the run that nothing disturbed. And the cache of a teacher's tokens. */
#include "data/data.h"
#include "data/teacher_cache.h"
#include "faults.h"
#include "runs.h"
#include "train_here.h"

/* ---- a run ----------------------------------------------------------------------------------------------------------- */

static const char *const args[] = {"max_steps=4", "save_steps=1", "save_total_limit=2", "eval_steps=0", "data.validation=[]", NULL};
static char *run, *cache_dir, *cache, want[65];
static const struct backend *cpu;

static enum code train(int64_t stop_at)
{
    struct train_here t = {.backend = cpu, .out = "run", .args = args, .stop_at = stop_at};
    return train_here(&t);
}

static void before_run(void)
{
    log_quiet(1);
    assert_ok(io_remove_tree(run));
    assert_ok(train(2));
}

static enum code act_run(void)
{
    struct io_lock lock;
    TRY(io_lock_take(run, &lock));
    enum code c = train(0);
    io_lock_drop(&lock);
    return c;
}

/* 1 when final/ is there; else going on must make it. */
static int after_run(void)
{
    char *final = runs_path("run", "final");
    int there = io_exists(final), files = 0;
    if (there)
        assert_ok(ckpt_verify(final, &files));
    free(final);
    if (!there)
        assert_ok(act_run());
    assert_string_equal(runs_weights("run"), want);
    return there;
}

static struct scene to_end = {.name = "two steps and the end of a run", .before = before_run, .act = act_run, .after = after_run, .left = 4, .stride = 25};

static void whole(void)
{
    assert_ok(backend_find("cpu", &cpu));
    before_run();
    assert_ok(act_run());
    snprintf(want, sizeof want, "%s", runs_weights("run"));
    to_end.left = fault_entries(run);
}

static void test_run(void **state)
{
    (void)state;
    whole();
    fault_play(&to_end);
}

static void test_power(void **state)
{
    (void)state;
    whole();
    fault_power(&to_end, soak_count(6, 300));
}

/* ---- a teacher's tokens ---------------------------------------------------------------------------------------------- */

enum { K = 3, T = 5, V = 50, WINDOWS = 9 };

static enum code cache_make(int64_t windows)
{
    json_t *facts = json_pack("{s:{s:s}, s:{}}", "key", "teacher", "someone", "about");
    struct teacher_about about = {K, T, V, WINDOWS, facts};
    struct teacher_writer *w;
    enum code c = teacher_writer_open(&w, cache, &about);
    for (int64_t i = 0; c == OK && i < windows; i++) {
        int32_t ids[T * K];
        float logp[T * K];
        for (int k = 0; k < T * K; k++) {
            ids[k] = (int32_t)((i + 7 * k) % V);
            logp[k] = -0.5f - (float)(k % K) - (float)i / 8;
        }
        if (!teacher_writer_has(w, i))
            c = teacher_writer_add(w, i, ids, logp);
    }
    if (c == OK)
        c = teacher_writer_commit(w);
    teacher_writer_close(w);
    json_decref(facts);
    return c;
}

static void before_cache(void)
{
    assert_ok(io_remove_tree(cache_dir));
    assert_ok(io_mkdirs(cache_dir));
    assert_ok(cache_make(3));
}

static enum code act_cache(void) { return cache_make(WINDOWS); }

static int after_cache(void)
{
    struct teacher_cache *c;
    assert_ok(teacher_cache_open(&c, cache));
    int64_t n = teacher_cache_count(c);
    assert_true(n == 3 || n == WINDOWS);
    for (int64_t i = 0; i < n; i++) {
        int32_t ids[T * K];
        float logp[T * K];
        assert_ok(teacher_cache_read(c, i, ids, logp));
        for (int k = 0; k < T * K; k++)
            assert_int_equal(ids[k], (i + 7 * k) % V);
    }
    teacher_cache_close(c);
    return n == WINDOWS;
}

/* A PATH.part may stay: the next run goes on with it. */
static int after_cache_and_again(void)
{
    int new = after_cache();
    assert_ok(act_cache());
    assert_true(after_cache());
    return new;
}

static struct scene grown = {.name = "a teacher's cache grown", .before = before_cache, .act = act_cache, .after = after_cache_and_again, .stride = 3};

static void test_cache(void **state)
{
    (void)state;
    before_cache();
    assert_ok(act_cache());
    grown.left = fault_entries(cache_dir);
    fault_play(&grown);
    fault_power(&grown, soak_count(40, 500));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_cache), cmocka_unit_test(test_run), cmocka_unit_test(test_power)};
    run = temp_path("run");
    cache_dir = temp_path("cache");
    cache = temp_path("cache/teacher.gqkt");
    to_end.dir = run;
    grown.dir = cache_dir;
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
