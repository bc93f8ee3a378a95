/* gqa-convert at every instant (faults.h): the program's own main, in a child, writing a Hugging Face directory, a .h5 and a .gguf over older
 * results, and a directory where none was. The old or the new result is there, whole; the source is untouched; a refusal leaves nothing. */
#include <unistd.h>

#include "checkpoints/checkpoint.h"
#include "faults.h"
#include "gguf_check.h"
#include "small_checkpoint.h"

int convert_main(int argc, char **argv);

static char *source, *run, *hf, *h5, *gguf, source_hash[65], gguf_hash[2][65];

static void hash_dir(const char *dir, char hex[65])
{
    char **names, *all = NULL;
    size_t size;
    int n;
    FILE *f = open_memstream(&all, &size);
    assert_ok(io_list(dir, &names, &n));
    for (int i = 0; i < n; i++) {
        char one[65], *path = io_join(dir, names[i]);
        assert_ok(sha256_file(path, one));
        fprintf(f, "%s %s\n", names[i], one);
        free(path);
    }
    fclose(f);
    sha256_of(all, size, hex);
    free(all);
    io_names_free(names, n);
}

/* A failed main has said its sentence; it counts by its exit status. */
static enum code convert(const char *to, const char *heads)
{
    const char *argv[] = {"gqa-convert", source, to, "--kv-heads", heads, "--force", "--quiet", NULL};
    return (enum code)convert_main(7, (char **)(uintptr_t)argv);
}

static enum code act_hf(void) { return convert(hf, "2"); }
static enum code act_h5(void) { return convert(h5, "2"); }
static enum code act_gguf(void) { return convert(gguf, "2"); }

static void empty(void)
{
    assert_ok(io_remove_tree(run));
    assert_ok(io_mkdirs(run));
}

/* Older results, G = 3, made once. */
static void older(const char *path, const char *kept)
{
    empty();
    if (!io_exists(kept))
        assert_int_equal(convert(kept, "3"), OK);
    if (!io_is_dir(kept)) {
        assert_ok(io_copy_file(kept, path));
        return;
    }
    char **names;
    int n;
    assert_ok(io_mkdirs(path));
    assert_ok(io_list(kept, &names, &n));
    for (int i = 0; i < n; i++) {
        char *a = io_join(kept, names[i]), *b = io_join(path, names[i]);
        assert_ok(io_copy_file(a, b));
        free(a);
        free(b);
    }
    io_names_free(names, n);
}

static void before(const char *path, const char *name)
{
    char *kept = temp_path(name);
    older(path, kept);
    free(kept);
}
static void before_hf(void) { before(hf, "kept-model"); }
static void before_h5(void) { before(h5, "kept.h5"); }
static void before_gguf(void) { before(gguf, "kept.gguf"); }

/* 1 for the new group count, 0 for the old; all its hashes hold, and the source is as it was. */
static int whole(const char *path)
{
    struct checkpoint *ck;
    char hex[65];
    int files;
    assert_ok(ckpt_verify(path, &files));
    assert_ok(ckpt_open(&ck, path, NULL));
    int64_t G = ckpt_arch(ck)->stack[STACK_DEC].block[0].G;
    ckpt_close(ck);
    assert_true(G == 2 || G == 3);
    hash_dir(source, hex);
    assert_string_equal(hex, source_hash);
    return G == 2;
}
static int after_hf(void) { return whole(hf); }
static int after_h5(void) { return whole(h5); }
static int after_fresh(void) { return io_exists(hf) ? whole(hf) : 0; }

static int after_gguf(void)
{
    char hex[65];
    assert_ok(sha256_file(gguf, hex));
    int new = !strcmp(hex, gguf_hash[1]);
    assert_true(new || !strcmp(hex, gguf_hash[0]));
    return new;
}

static struct scene to_hf = {.name = "gqa-convert over a directory", .before = before_hf, .act = act_hf, .after = after_hf, .left = 1, .space = 1};
static struct scene to_fresh = {.name = "gqa-convert to a new directory", .before = empty, .act = act_hf, .after = after_fresh, .left = 1, .fresh = 1, .space = 1};
static struct scene to_h5 = {.name = "gqa-convert over a .h5", .before = before_h5, .act = act_h5, .after = after_h5, .left = 1, .space = 1};
static struct scene to_gguf = {.name = "gqa-convert over a .gguf", .before = before_gguf, .act = act_gguf, .after = after_gguf, .left = 1, .space = 1};

static void test_directory(void **state) { (void)state, fault_play(&to_hf); }
static void test_new_directory(void **state) { (void)state, fault_play(&to_fresh); }
static void test_h5(void **state) { (void)state, fault_play(&to_h5); }

static void gguf_hashes(void)
{
    before_gguf();
    assert_ok(sha256_file(gguf, gguf_hash[0]));
    assert_int_equal(act_gguf(), OK);
    assert_ok(sha256_file(gguf, gguf_hash[1]));
}

static void test_gguf(void **state)
{
    (void)state;
    gguf_hashes();
    fault_play(&to_gguf);
}

static void test_power(void **state)
{
    (void)state;
    int random = soak_count(15, 500);
    gguf_hashes();
    fault_power(&to_hf, random);
    fault_power(&to_fresh, random);
    fault_power(&to_h5, random);
    fault_power(&to_gguf, random);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_directory), cmocka_unit_test(test_new_directory), cmocka_unit_test(test_h5),
                                       cmocka_unit_test(test_gguf), cmocka_unit_test(test_power)};
    struct arch a;
    log_quiet(1);
    source = temp_path("source");
    run = temp_path("run");
    hf = temp_path("run/model");
    h5 = temp_path("run/model.h5");
    gguf = temp_path("run/model.gguf");
    to_hf.dir = to_fresh.dir = to_h5.dir = to_gguf.dir = run;
    small_arch(&a, 6, 6, DT_F32);
    small_write(source, &a, 5, 1, NULL);
    arch_free(&a);
    hash_dir(source, source_hash);
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
