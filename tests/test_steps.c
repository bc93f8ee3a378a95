/* Step directories: save, prune, choose the newest that verifies, refuse the torn. */
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checkpoints/step.h"
#include "harness.h"
#include "native_model.h"

static struct arch A;

static char *fresh(const char *name)
{
    char *run = temp_path(name);
    assert_ok(io_remove_tree(run));
    return run;
}

static int entries(const char *dir)
{
    char **names;
    int n;
    assert_ok(io_list(dir, &names, &n));
    io_names_free(names, n);
    return n;
}

static void flip(const char *path, int64_t offset, int bit)
{
    unsigned char byte;
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0 && pread(fd, &byte, 1, offset) == 1);
    byte ^= (unsigned char)(1 << bit);
    assert_true(pwrite(fd, &byte, 1, offset) == 1);
    close(fd);
}

static char *inside(const char *run, int64_t step, const char *name)
{
    char *path = NULL;
    assert_true(asprintf(&path, "%s/step-%08lld%s%s", run, (long long)step, *name ? "/" : "", name) > 0);
    return path;
}

static void test_save_prune_open(void **state)
{
    (void)state;
    struct step_reader *r;
    int found;
    char *run = fresh("prune");
    assert_ok(io_mkdirs(run));
    assert_ok(step_open(&r, run, &found));
    assert_int_equal(found, 0);
    for (int64_t s = 10; s <= 50; s += 10) {
        assert_ok(step_put(run, &A, s, 2));
        assert_int_equal(step_found(run, &A), s);
    }
    assert_int_equal(entries(run), 2);
    char *old = inside(run, 40, "");
    assert_int_equal(step_found(old, &A), 40);
    int files = 0;
    assert_ok(ckpt_verify(run, &files));
    assert_int_equal(files, 2);
    assert_ok(ckpt_verify(old, &files));
    assert_int_equal(files, 1);
    assert_ok(step_put(run, &A, 50, 2)); /* the same step again replaces it */
    assert_int_equal(step_found(run, &A), 50);
    assert_ok(step_put(run, &A, 45, 2)); /* resumed from an older one: never prunes itself, nor what is newer */
    assert_int_equal(entries(run), 3);
    assert_int_equal(step_found(run, &A), 50);
    free(old);
    free(run);
}

static void test_same_bytes(void **state)
{
    (void)state;
    char *a = fresh("same-a"), *b = fresh("same-b"), ha[33], hb[33];
    assert_ok(step_put(a, &A, 7, 0));
    assert_ok(step_put(b, &A, 7, 0));
    static const char *const names[] = {"rank-00000.h5", "MANIFEST.json"};
    for (int i = 0; i < 2; i++) {
        char *x = inside(a, 7, names[i]), *y = inside(b, 7, names[i]);
        assert_ok(xxh128_file(x, ha));
        assert_ok(xxh128_file(y, hb));
        assert_string_equal(ha, hb);
        free(x);
        free(y);
    }
    free(a);
    free(b);
}

static void test_torn(void **state)
{
    (void)state;
    char *run = fresh("torn"), *file = inside(run, 20, "rank-00000.h5"), *manifest = inside(run, 20, "MANIFEST.json"), *dir = inside(run, 20, "");
    int files;
    for (int round = 0; round < 20; round++) {
        assert_ok(io_remove_tree(run));
        assert_ok(step_put(run, &A, 10, 0));
        assert_ok(step_put(run, &A, 20, 0));
        int64_t bytes = io_file_bytes(file), text = io_file_bytes(manifest);
        uint64_t seed = (uint64_t)round;
        const char *part = round % 5 == 1 ? "missing" : round % 5 < 3 ? "MANIFEST.json" : "rank-00000.h5";
        switch (round % 5) {
        case 0: flip(manifest, random_int(seed, 1, 0, text - 1), round % 8); break;
        case 1: assert_int_equal(unlink(manifest), 0); break;
        case 2: assert_int_equal(truncate(manifest, random_int(seed, 1, 0, text - 1)), 0); break;
        case 3: flip(file, random_int(seed, 1, 0, bytes - 1), round % 8); break;
        default: assert_int_equal(truncate(file, random_int(seed, 1, 0, bytes - 1)), 0);
        }
        assert_int_equal(step_found(run, &A), 10);
        struct step_reader *r;
        int found;
        assert_refused(step_open(&r, dir, &found), ERR_INPUT, part);
        assert_refused(ckpt_verify(dir, &files), ERR_INPUT, part);
    }
    char *older = inside(run, 10, "MANIFEST.json");
    assert_int_equal(unlink(older), 0);
    struct step_reader *r;
    int found;
    assert_refused(step_open(&r, run, &found), ERR_INPUT, "none verifies");
    assert_ok(step_put(run, &A, 20, 2)); /* a damaged step is replaced by a new save of it */
    assert_int_equal(step_found(run, &A), 20);
    free(older);
    free(run);
    free(file);
    free(manifest);
    free(dir);
}

static void test_every_manifest_bit(void **state)
{
    (void)state;
    char *run = fresh("bits"), *manifest = inside(run, 3, "MANIFEST.json"), *text;
    size_t n;
    json_t *root;
    assert_ok(step_put(run, &A, 3, 0));
    assert_ok(io_read_all(manifest, 1 << 20, &text, &n));
    assert_ok(manifest_parse(text, n, "m", &root));
    json_decref(root);
    for (size_t i = 0; i < n; i++) {
        text[i] ^= (char)(1 << (i % 8));
        assert_true(manifest_parse(text, n, "m", &root) == ERR_INPUT);
        text[i] ^= (char)(1 << (i % 8));
        if (i % 8 == 0)
            assert_true(manifest_parse(text, i, "m", &root) == ERR_INPUT);
    }
    free(text);
    free(run);
    free(manifest);
}

static void test_stale(void **state)
{
    (void)state;
    char *run = fresh("stale"), *mine = NULL;
    assert_ok(step_put(run, &A, 1, 2));
    char *dead = io_join(run, "step-00000002.tmp-999999999"), *old = io_join(run, "step-00000001.old-999999999");
    char *alive = NULL, *other = io_join(run, "step-notes");
    assert_true(asprintf(&alive, "%s/step-00000002.tmp-%ld", run, (long)getppid()) > 0);
    assert_true(asprintf(&mine, "%s/step-00000002.tmp-%ld", run, (long)getpid()) > 0);
    assert_ok(io_mkdirs(dead));
    assert_ok(io_mkdirs(old));
    assert_ok(io_mkdirs(alive));
    assert_ok(io_mkdirs(mine));
    assert_ok(io_mkdirs(other));
    assert_int_equal(step_found(run, &A), 1);
    assert_ok(step_put(run, &A, 2, 2));
    assert_false(io_exists(dead) || io_exists(old) || io_exists(mine));
    assert_true(io_exists(alive) && io_exists(other));
    assert_int_equal(step_found(run, &A), 2);
    free(run), free(dead), free(old), free(alive), free(mine), free(other);
}

static void test_wrong_array(void **state)
{
    (void)state;
    struct step_reader *r;
    int found;
    float p[101];
    char *run = fresh("wrong");
    assert_ok(step_put(run, &A, 5, 0));
    assert_ok(step_open(&r, run, &found));
    struct step_array a = {.name = "m/flat", .dtype = DT_F32, .nd = 1, .n = {101, 1}, .p = p};
    assert_ok(step_read(r, &a));
    a.n[0] = 100;
    assert_refused(step_read(r, &a), ERR_INPUT, "expected f32 [100, 1], found f32 [101, 1]");
    a.n[0] = 101;
    a.dtype = DT_BF16;
    assert_refused(step_read(r, &a), ERR_INPUT, "bf16");
    snprintf(a.name, sizeof a.name, "m/absent");
    assert_refused(step_read(r, &a), ERR_INPUT, "m/absent is missing");
    step_close(r);
    char *renamed = inside(run, 6, ""), *from = inside(run, 5, "");
    assert_int_equal(rename(from, renamed), 0);
    assert_refused(step_open(&r, renamed, &found), ERR_INPUT, "says step 6");
    free(renamed);
    free(from);
    free(run);
}

static void test_as_checkpoint(void **state)
{
    (void)state;
    struct checkpoint *ck;
    char *run = fresh("model"), *h5 = temp_path("from-step.h5");
    assert_ok(step_put(run, &A, 0, 0)); /* step 0 holds model_value itself */
    assert_ok(ckpt_open(&ck, run, NULL));
    assert_string_equal(ckpt_form_name(ck), "training step directory");
    model_check(ck, DT_F32);
    ckpt_close(ck);
    model_convert(run, h5, DT_BF16);
    assert_ok(ckpt_open(&ck, h5, NULL));
    model_check(ck, DT_BF16);
    ckpt_close(ck);
    free(run);
    free(h5);
}

/* A limit on file sizes stands in for a full disk: every save fails cleanly, or is whole. */
static void test_file_limit(void **state)
{
    (void)state;
    char *run = fresh("limit");
    struct rlimit was, limit;
    getrlimit(RLIMIT_FSIZE, &was);
    assert_ok(step_put(run, &A, 1, 2));
    int64_t whole = 0, refused = 0;
    for (int64_t bytes = 0; bytes <= 512 << 10; bytes += bytes < 4096 ? 512 : 8192) {
        limit = was;
        limit.rlim_cur = (rlim_t)bytes;
        setrlimit(RLIMIT_FSIZE, &limit);
        enum code c = step_put(run, &A, 2, 2);
        setrlimit(RLIMIT_FSIZE, &was);
        assert_true(c == OK || c == ERR_IO);
        whole += c == OK;
        refused += c != OK;
        assert_int_equal(step_found(run, &A), c == OK ? 2 : 1);
        assert_int_equal(entries(run), c == OK ? 2 : 1);
        if (c == OK)
            break;
    }
    assert_true(whole > 0 && refused > 10);
    free(run);
}

static void test_read_only(void **state)
{
    (void)state;
    if (geteuid() == 0) {
        printf("skipped: a directory that refuses writes (running as root)\n");
        return;
    }
    char *run = fresh("readonly");
    assert_ok(step_put(run, &A, 1, 2));
    assert_int_equal(chmod(run, 0555), 0);
    assert_refused(step_put(run, &A, 2, 2), ERR_IO, "step-00000002");
    assert_int_equal(step_found(run, &A), 1);
    assert_int_equal(chmod(run, 0755), 0);
    free(run);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_save_prune_open), cmocka_unit_test(test_same_bytes), cmocka_unit_test(test_torn),
        cmocka_unit_test(test_every_manifest_bit), cmocka_unit_test(test_stale), cmocka_unit_test(test_wrong_array),
        cmocka_unit_test(test_as_checkpoint), cmocka_unit_test(test_file_limit), cmocka_unit_test(test_read_only),
    };
    native_arch(&A, 20, 1);
    log_quiet(1);
    int status = harness_main(argc, argv, tests, COUNT_OF(tests));
    arch_free(&A);
    return status;
}
