/* Files, directories, locks, hashes, JSON: complete, atomic, and refused with the path in the sentence. */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"

static void test_read_and_write(void **state)
{
    (void)state;
    char *path = temp_path("a.bin"), *none = temp_path("none"), *copy = temp_path("copy"), *bytes;
    size_t n;
    assert_ok(io_write_atomic(path, "hello\0x", 7));
    assert_ok(io_read_all(path, 7, &bytes, &n));
    assert_true(n == 7 && !memcmp(bytes, "hello\0x", 8));
    free(bytes);
    assert_refused(io_read_all(path, 6, &bytes, &n), ERR_INPUT, "7 bytes, more than the 6 allowed");
    assert_refused(io_read_all(none, 6, &bytes, &n), ERR_IO, "none: open: No such file");
    assert_refused(io_read_all(temp_dir(), 6, &bytes, &n), ERR_INPUT, "found a directory");
    assert_ok(io_read_all("/proc/self/status", 1 << 20, &bytes, &n)); /* size unknown beforehand */
    assert_true(n > 100 && strlen(bytes) == n);
    free(bytes);
    assert_refused(io_read_all("/proc/self/status", 50, &bytes, &n), ERR_INPUT, "more than the 50");
    assert_ok(io_copy_file(path, copy));
    assert_int_equal(io_file_bytes(copy), 7);
    assert_refused(io_copy_file(none, copy), ERR_IO, "none");
    assert_refused(io_copy_file(path, "/nonexistent/x"), ERR_IO, "/nonexistent/x: create");
    assert_true(io_exists(path) && !io_exists(none) && io_is_dir(temp_dir()) && !io_is_dir(path));
    assert_true(io_file_bytes(none) == -1 && io_file_bytes(temp_dir()) == -1);
    assert_refused(io_fsync_path(none), ERR_IO, "none");
    free(path);
    free(none);
    free(copy);
}

static void test_positions_and_truncation(void **state)
{
    (void)state;
    char *path = temp_path("p.bin"), block[8];
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0666);
    assert_true(fd >= 0);
    assert_ok(io_pwrite(fd, path, "abcdefgh", 8, 4));
    assert_ok(io_pread(fd, path, block, 4, 8));
    assert_memory_equal(block, "efgh", 4);
    assert_refused(io_pread(fd, path, block, 8, 8), ERR_INPUT, "expected 8 bytes at offset 8, the file ends after 4");
    close(fd);
    assert_refused(io_pread(fd, path, block, 1, 0), ERR_IO, "read");
    assert_refused(io_pwrite(fd, path, block, 1, 0), ERR_IO, "write");
    struct io_map m;
    assert_ok(io_map_open(path, &m));
    assert_true(m.n == 12 && m.p[4] == 'a');
    io_map_close(&m);
    temp_write("empty", "", 0);
    char *empty = temp_path("empty");
    assert_ok(io_map_open(empty, &m));
    assert_true(m.n == 0 && m.p != NULL);
    io_map_close(&m);
    assert_refused(io_map_open(temp_dir(), &m), ERR_INPUT, "regular file");
    assert_refused(io_map_open("/nonexistent", &m), ERR_IO, "/nonexistent");
    int full = open("/dev/full", O_WRONLY);
    if (full >= 0) {
        assert_refused(io_pwrite(full, "/dev/full", "x", 1, 0), ERR_IO, "free some space");
        close(full);
    }
    free(path);
    free(empty);
}

/* A failed replacement leaves the old file and nothing else. */
static void test_atomic(void **state)
{
    (void)state;
    char *dir = temp_path("atomic/deep/"), *path = temp_path("atomic/deep/f"), *below = temp_path("atomic/deep/f/g");
    assert_ok(io_mkdirs(dir));
    assert_ok(io_mkdirs(dir));
    assert_ok(io_write_atomic(path, "old", 3));
    assert_refused(io_write_atomic(below, "new", 3), ERR_IO, "create");
    assert_refused(io_mkdirs(below), ERR_IO, "make directory");
    assert_refused(io_mkdirs(""), ERR_USAGE, "without a name");
    assert_refused(io_write_atomic(dir, "new", 3), ERR_IO, "");
    assert_ok(io_write_atomic(path, "newer", 5));
    assert_int_equal(io_file_bytes(path), 5);
    char **names;
    int n;
    assert_ok(io_list(dir, &names, &n));
    assert_true(n == 1 && !strcmp(names[0], "f"));
    io_names_free(names, n);
    assert_refused(io_rename("/nonexistent", path), ERR_IO, "rename");
    free(dir);
    free(path);
    free(below);
}

static void test_trees_and_names(void **state)
{
    (void)state;
    char *top = temp_path("tree"), *sub = temp_path("tree/a/b"), *link = temp_path("tree/a/link"), *kept = temp_path("kept");
    assert_ok(io_mkdirs(sub));
    assert_ok(io_mkdirs(kept));
    for (int i = 0; i < 40; i++) {
        char name[32];
        snprintf(name, sizeof name, "tree/a/f%02d", 39 - i);
        temp_write(name, "x", 1);
    }
    temp_write("kept/file", "x", 1);
    assert_int_equal(symlink(kept, link), 0);
    char *a = temp_path("tree/a"), **names;
    int n;
    assert_ok(io_list(a, &names, &n));
    assert_int_equal(n, 42);
    for (int i = 1; i < n; i++)
        assert_true(strcmp(names[i - 1], names[i]) < 0);
    io_names_free(names, n);
    assert_ok(io_remove_tree(top));
    assert_ok(io_remove_tree(top));
    assert_true(!io_exists(top));
    char *file = temp_path("kept/file");
    assert_true(io_exists(file)); /* links are not followed */
    assert_refused(io_list(top, &names, &n), ERR_IO, "list");
    int64_t bytes = -1;
    assert_ok(io_free_bytes(sub, &bytes));
    assert_true(bytes >= 0);
    assert_ok(io_free_bytes("not-here/x", &bytes));
    static const char *const good[] = {"a", "a/b", "..a", "a..", ".x/..."};
    static const char *const bad[] = {"", "/a", "..", "a/../b", "a/..", "../a"};
    for (size_t i = 0; i < COUNT_OF(good); i++)
        assert_true(io_name_is_safe(good[i]));
    for (size_t i = 0; i < COUNT_OF(bad); i++)
        assert_true(!io_name_is_safe(bad[i]));
    assert_true(!io_name_is_safe(NULL));
    free(top), free(sub), free(link), free(kept), free(a), free(file);
}

static void test_lock(void **state)
{
    (void)state;
    struct io_lock mine, other;
    assert_ok(io_lock_take(temp_dir(), &mine));
    char pid[32];
    snprintf(pid, sizeof pid, "pid %ld on ", (long)getpid());
    assert_refused(io_lock_take(temp_dir(), &other), ERR_LOCKED, pid);
    io_lock_drop(&mine);
    assert_ok(io_lock_take(temp_dir(), &other));
    io_lock_drop(&other);
    io_lock_drop(&other);
    pid_t child = fork(); /* a holder that is killed holds nothing */
    if (child == 0) {
        if (io_lock_take(temp_dir(), &mine) != OK)
            _exit(1);
        raise(SIGKILL);
    }
    int status;
    waitpid(child, &status, 0);
    assert_true(WIFSIGNALED(status));
    assert_ok(io_lock_take(temp_dir(), &mine));
    io_lock_drop(&mine);
    assert_refused(io_lock_take("/nonexistent", &mine), ERR_IO, "/nonexistent/.lock");
}

static void test_hashes(void **state)
{
    (void)state;
    char hex[65], two[65], x[33];
    sha256_of("abc", 3, hex);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"); /* FIPS 180-2 */
    temp_write("abc", "abc", 3);
    char *path = temp_path("abc");
    assert_ok(sha256_file(path, two));
    assert_string_equal(hex, two);
    struct sha256 *h = sha256_begin();
    sha256_add(h, "a", 1);
    sha256_add(h, "bc", 2);
    sha256_end(h, two);
    assert_string_equal(hex, two);
    assert_ok(xxh128_file(path, x));
    assert_string_equal(x, "06b05ab6733a618578af5f94892f3950"); /* xxhsum -H2 */
    assert_true(hash64("", 0) == 0x2d06800538d394c2u);
    assert_refused(sha256_file("/nonexistent", two), ERR_IO, "/nonexistent");
    assert_refused(xxh128_file("/nonexistent", x), ERR_IO, "/nonexistent");
    free(path);
}

static void refuse_json(const char *text, size_t n, const char *part)
{
    json_t *root = NULL;
    assert_refused(json_parse_object(text, n, "x.json", &root), ERR_INPUT, part);
    assert_null(root);
}

static void test_json_refusals(void **state)
{
    (void)state;
    static const char *const bad[] = {"", "{", "[]", "1", "{\"a\":1,\"a\":2}", "{\"a\":1} x", "{\"a\":\"\\u0000\"}", "{\"a\":1e999}",
                                      "{\"a\":01}", "{'a':1}", "{\"a\":\"\xff\"}", "{\"a\":NaN}"};
    for (size_t i = 0; i < COUNT_OF(bad); i++)
        refuse_json(bad[i], strlen(bad[i]), "x.json: ");
    char *deep = malloc(100000);
    memset(deep, '[', 100000);
    memcpy(deep, "{\"a\":", 5);
    refuse_json(deep, 100000, "maximum parsing depth");
    free(deep);
    refuse_json("{\"a\":1}\0", 8, "x.json: ");
    json_t *root;
    static const char wide[] = "{\"a\\\"12345678901234567890\": 1000000000000000019884624838656, \"b\": [-99999999999999999999, 7, 1.25, 1e12345678901234567890e]}";
    refuse_json(wide, sizeof wide - 1, "x.json: ");
    static const char fine[] = "{\"a\\\"12345678901234567890\": 1000000000000000019884624838656, \"b\": [-99999999999999999999, 7, 1.2345678901234567890123]}";
    assert_ok(json_parse_object(fine, sizeof fine - 1, "x.json", &root));
    assert_true(json_real_value(json_object_get(root, "a\"12345678901234567890")) == 1e30);
    assert_true(json_is_integer(json_array_get(json_object_get(root, "b"), 1)));
    json_decref(root);
}

static void test_json_fields(void **state)
{
    (void)state;
    json_t *o;
    static const char text[] = "{\"i\": 5, \"x\": 1.5, \"s\": \"t\", \"b\": true, \"n\": null}";
    assert_ok(json_parse_object(text, sizeof text - 1, "c.json", &o));
    int64_t i = 0;
    double x = 0;
    const char *s = NULL;
    int b = 0;
    assert_ok(json_need_i64(o, "c.json", "i", 0, 5, &i));
    assert_ok(json_need_f64(o, "c.json", "x", &x));
    assert_ok(json_need_str(o, "c.json", "s", &s));
    assert_ok(json_want_bool(o, "c.json", "b", &b));
    assert_true(i == 5 && x == 1.5 && !strcmp(s, "t") && b == 1);
    assert_ok(json_need_f64(o, "c.json", "i", &x));
    assert_true(x == 5.0);
    assert_ok(json_want_i64(o, "c.json", "n", 0, 1, &i));
    assert_ok(json_want_i64(o, "c.json", "absent", 0, 1, &i));
    assert_int_equal(i, 5);
    assert_refused(json_need_i64(o, "c.json", "i", 0, 4, &i), ERR_INPUT, "c.json: \"i\": expected an integer from 0 to 4, found 5");
    assert_refused(json_need_i64(o, "c.json", "n", 0, 4, &i), ERR_INPUT, "expected an integer, found null");
    assert_refused(json_need_i64(o, "c.json", "absent", 0, 4, &i), ERR_INPUT, "expected an integer, found nothing");
    assert_refused(json_want_i64(o, "c.json", "x", 0, 4, &i), ERR_INPUT, "expected an integer, found a number");
    assert_refused(json_want_f64(o, "c.json", "s", &x), ERR_INPUT, "expected a number, found the string \"t\"");
    assert_refused(json_need_f64(o, "c.json", "n", &x), ERR_INPUT, "a number");
    assert_refused(json_need_str(o, "c.json", "n", &s), ERR_INPUT, "a string");
    assert_refused(json_want_str(o, "c.json", "b", &s), ERR_INPUT, "a string, found true");
    assert_refused(json_want_bool(o, "c.json", "i", &b), ERR_INPUT, "true or false");
    char *path = temp_path("c.json"), *bytes;
    size_t n;
    assert_ok(json_write_file(path, o));
    assert_ok(io_read_all(path, 1000, &bytes, &n));
    assert_true(strstr(bytes, "{\n  \"i\": 5,\n  \"x\": 1.5") == bytes && bytes[n - 1] == '\n');
    free(bytes);
    json_t *back;
    assert_ok(json_read_file(path, 1000, &back));
    assert_true(json_equal(o, back));
    json_decref(back);
    json_decref(o);
    assert_refused(json_read_file(path, 5, &back), ERR_INPUT, "allowed");
    free(path);
}

static void test_json_result(void **state)
{
    (void)state;
    char *argv[] = {"gqa-x", "--json", "a"};
    json_result_command(3, argv);
    json_t *r = json_result("perplexity", "cpu");
    assert_non_null(r);
    assert_string_equal(json_string_value(json_object_get(r, "schema")), "gqakit/perplexity/1");
    assert_string_equal(json_string_value(json_object_get(r, "command")), "gqa-x --json a");
    json_t *host = json_object_get(r, "host");
    assert_true(json_integer_value(json_object_get(host, "threads")) >= 1);
    assert_string_equal(json_string_value(json_object_get(host, "device")), "cpu");
    json_print(r, 0);
    json_print(r, 2);
    json_decref(r);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read_and_write),  cmocka_unit_test(test_positions_and_truncation),
        cmocka_unit_test(test_atomic),          cmocka_unit_test(test_trees_and_names),
        cmocka_unit_test(test_lock),            cmocka_unit_test(test_hashes),
        cmocka_unit_test(test_json_refusals),   cmocka_unit_test(test_json_fields),
        cmocka_unit_test(test_json_result),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
