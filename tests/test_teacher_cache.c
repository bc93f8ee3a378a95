/* The teacher cache on disk: what is written comes back (within f16), grows over runs, survives an interruption at every byte, and is refused
 * when it belongs to another run or is damaged. */
#include <math.h>
#include <sys/wait.h>
#include <unistd.h>

#include "data/data.h"
#include "harness.h"

enum { T = 7, K = 5, V = 300, WINDOWS = 9 };

static json_t *facts_of(double temperature)
{
    return json_pack("{s:{s:s, s:f}, s:{s:s}}", "key", "teacher", "0123abcd", "temperature", temperature, "about", "teacher", "models/big");
}

static struct teacher_about about_of(json_t *facts)
{
    return (struct teacher_about){K, T, V, WINDOWS, facts};
}

/* A window's entries: falling logarithms, one unused place, tokens up to V - 1. */
static void make(int64_t window, int32_t *ids, float *logp)
{
    for (int t = 0; t < T; t++)
        for (int k = 0; k < K; k++) {
            int at = t * K + k;
            ids[at] = (int32_t)((window * 31 + t * 7 + k * 61) % V);
            logp[at] = -0.003f * (float)(t + 1) - (float)(k * k) * (0.37f + 0.01f * (float)window);
        }
    ids[K - 1] = -1;
    ids[K] = V - 1;
    logp[K] = -1e-5f;
    logp[2 * K] = 2e-8f; /* rounding above a probability of one */
}

static void add(struct teacher_writer *w, int64_t window)
{
    int32_t ids[T * K];
    float logp[T * K];
    make(window, ids, logp);
    assert_ok(teacher_writer_add(w, window, ids, logp));
}

static void check(struct teacher_cache *c, int64_t window)
{
    int32_t ids[T * K], want[T * K];
    float logp[T * K], from[T * K];
    make(window, want, from);
    memset(ids, 0xee, sizeof ids);
    fill_nan(logp, T * K);
    assert_ok(teacher_cache_read(c, window, ids, logp));
    assert_memory_equal(ids, want, sizeof ids);
    for (int i = 0; i < T * K; i++) {
        float x = from[i] > 0 ? 0 : from[i];
        if (ids[i] >= 0)
            assert_true(fabsf(logp[i] - x) <= fabsf(x) / 2048 + 1e-7f && logp[i] <= 0);
    }
}

static void write_windows(const char *path, json_t *facts, int64_t from, int64_t to)
{
    struct teacher_writer *w;
    struct teacher_about a = about_of(facts);
    assert_ok(teacher_writer_open(&w, path, &a));
    for (int64_t i = to - 1; i >= from; i--)
        if (!teacher_writer_has(w, i))
            add(w, i);
    assert_ok(teacher_writer_commit(w));
    teacher_writer_close(w);
}

static void test_round_trip_and_growth(void **state)
{
    (void)state;
    char *path = temp_path("a.topk");
    json_t *facts = facts_of(1);
    struct teacher_cache *c;
    write_windows(path, facts, 2, 5);
    assert_ok(teacher_cache_open(&c, path));
    assert_int_equal(teacher_cache_count(c), 3);
    assert_true(!teacher_cache_has(c, 1) && teacher_cache_has(c, 2) && teacher_cache_has(c, 4) && !teacher_cache_has(c, 5));
    check(c, 3);
    int32_t ids[T * K];
    float logp[T * K];
    assert_refused(teacher_cache_read(c, 7, ids, logp), ERR_INPUT, "no window 7");
    teacher_cache_close(c);
    write_windows(path, facts, 0, WINDOWS);
    assert_ok(teacher_cache_open(&c, path));
    assert_int_equal(teacher_cache_count(c), WINDOWS);
    for (int i = 0; i < WINDOWS; i++)
        check(c, i);
    assert_int_equal(teacher_cache_bytes(c), io_file_bytes(path));
    teacher_cache_close(c);
    char part[512];
    snprintf(part, sizeof part, "%s.part", path);
    assert_false(io_exists(part));
    json_decref(facts);
    free(path);
}

static void test_another_run(void **state)
{
    (void)state;
    char *path = temp_path("b.topk");
    json_t *facts = facts_of(1), *other = facts_of(2);
    struct teacher_cache *c;
    struct teacher_writer *w;
    write_windows(path, facts, 0, 2);
    assert_ok(teacher_cache_open(&c, path));
    struct teacher_about a = about_of(other), same = about_of(facts);
    assert_ok(teacher_about_same(teacher_cache_about(c), &same, path));
    assert_refused(teacher_about_same(teacher_cache_about(c), &a, path), ERR_USAGE, "temperature is 1.0 (teacher \"models/big\"), here it is 2.0");
    teacher_cache_close(c);
    assert_refused(teacher_writer_open(&w, path, &a), ERR_USAGE, "temperature is 1.0");
    json_decref(facts);
    json_decref(other);
    free(path);
}

/* Writes the first n bytes of a file under another name. */
static void cut(const char *from, const char *to, size_t n)
{
    char *bytes;
    size_t all;
    assert_ok(io_read_all(from, 1 << 20, &bytes, &all));
    assert_true(n <= all);
    temp_write(to, bytes, n);
    free(bytes);
}

static void test_interrupted_anywhere(void **state)
{
    (void)state;
    char *path = temp_path("c.topk"), *whole = temp_path("d.topk");
    json_t *facts = facts_of(1);
    struct teacher_cache *c;
    int64_t kept = 0, most = 0;
    write_windows(whole, facts, 0, 4);
    for (int64_t n = io_file_bytes(whole) - 1; n >= 0; n--) { /* the longest ones hold the index as well */
        char *bad = temp_path("e.topk");
        cut(whole, "e.topk", (size_t)n);
        assert_true(teacher_cache_open(&c, bad) == ERR_INPUT);
        free(bad);
        cut(whole, "c.topk.part", (size_t)n);
        struct teacher_writer *w;
        struct teacher_about a = about_of(facts);
        assert_ok(teacher_writer_open(&w, path, &a));
        kept = 0;
        for (int i = 0; i < 4; i++) {
            kept += teacher_writer_has(w, i);
            if (!teacher_writer_has(w, i))
                add(w, i);
        }
        most = kept > most ? kept : most;
        assert_ok(teacher_writer_commit(w));
        teacher_writer_close(w);
        assert_ok(teacher_cache_open(&c, path));
        for (int i = 0; i < 4; i++)
            check(c, i);
        teacher_cache_close(c);
        unlink(path);
    }
    assert_int_equal(most, 4);
    assert_int_equal(kept, 0);
    json_decref(facts);
    free(path);
    free(whole);
}

/* Every byte of the file in turn: refused when it is opened or read, never another value. */
static void test_damaged(void **state)
{
    (void)state;
    char *path = temp_path("f.topk"), *bytes;
    size_t n;
    json_t *facts = facts_of(1);
    struct teacher_cache *c;
    write_windows(path, facts, 0, 3);
    assert_ok(io_read_all(path, 1 << 20, &bytes, &n));
    for (size_t i = 0; i < n; i++) {
        bytes[i] = (char)(bytes[i] ^ 0x10);
        temp_write("g.topk", bytes, n);
        bytes[i] = (char)(bytes[i] ^ 0x10);
        char *bad = temp_path("g.topk");
        enum code e = teacher_cache_open(&c, bad);
        assert_true(e == OK || e == ERR_INPUT);
        for (int w = 0; e == OK && w < 3; w++) { /* frame headers are not read once there is an index: changing those is no damage */
            int32_t ids[T * K];
            float logp[T * K];
            enum code read = teacher_cache_read(c, w, ids, logp);
            assert_true(read == OK || read == ERR_INPUT);
            if (read == OK)
                check(c, w);
        }
        if (e == OK)
            teacher_cache_close(c);
        free(bad);
    }
    free(bytes);
    free(path);
    json_decref(facts);
}

static void test_locked(void **state)
{
    (void)state;
    char *path = temp_path("h.topk");
    json_t *facts = facts_of(1);
    struct teacher_about a = about_of(facts);
    struct teacher_writer *w, *second;
    assert_ok(teacher_writer_open(&w, path, &a));
    assert_refused(teacher_writer_open(&second, path, &a), ERR_LOCKED, "another run");
    add(w, 3);
    teacher_writer_close(w);
    assert_ok(teacher_writer_open(&w, path, &a));
    assert_true(teacher_writer_has(w, 3) && !teacher_writer_has(w, 2));
    int32_t ids[T * K];
    float logp[T * K];
    make(2, ids, logp);
    logp[11] = NAN;
    assert_refused(teacher_writer_add(w, 2, ids, logp), ERR_NUMERIC, "NaN");
    teacher_writer_close(w);
    json_decref(facts);
    free(path);
}

static void test_not_a_cache(void **state)
{
    (void)state;
    struct teacher_cache *c;
    char *path = temp_path("i.topk");
    temp_write("i.topk", "a text file that has nothing to do with any of this, at all", 58);
    assert_refused(teacher_cache_open(&c, path), ERR_INPUT, "is no teacher cache");
    temp_write("i.topk", "", 0);
    assert_refused(teacher_cache_open(&c, path), ERR_INPUT, "no teacher cache");
    unlink(path);
    assert_refused(teacher_cache_open(&c, path), ERR_IO, "i.topk");
    free(path);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_round_trip_and_growth), cmocka_unit_test(test_another_run), cmocka_unit_test(test_interrupted_anywhere),
    cmocka_unit_test(test_damaged),               cmocka_unit_test(test_locked),      cmocka_unit_test(test_not_a_cache),
};
int main(int argc, char **argv) { return harness_main(argc, argv, tests, COUNT_OF(tests)); }
