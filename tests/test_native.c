/* The native .h5: round trips, what it keeps of its source, mutants that must be refused, a full disk. */
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "checkpoints/h5.h"
#include "harness.h"
#include "native_model.h"

static void files_equal(const char *a, const char *b)
{
    char x[33], y[33];
    assert_ok(xxh128_file(a, x));
    assert_ok(xxh128_file(b, y));
    if (strcmp(x, y))
        printf("%s and %s differ\n", a, b);
    assert_string_equal(x, y);
}

static void dirs_equal(const char *a, const char *b)
{
    char **x, **y;
    int n, m;
    assert_ok(io_list(a, &x, &n));
    assert_ok(io_list(b, &y, &m));
    assert_int_equal(n, m);
    for (int i = 0; i < n; i++) {
        assert_string_equal(x[i], y[i]);
        char *p = io_join(a, x[i]), *q = io_join(b, y[i]);
        files_equal(p, q);
        free(p);
        free(q);
    }
    io_names_free(x, n);
    io_names_free(y, m);
}

static void test_round_trip(void **state)
{
    (void)state;
    static const enum dtype types[] = {DT_F32, DT_BF16, DT_F16};
    for (int per_layer = 0; per_layer < 2; per_layer++)
        for (int compress = 0; compress < 2; compress++)
            for (size_t i = 0; i < COUNT_OF(types); i++) {
                struct arch a;
                struct checkpoint *ck;
                const struct ckpt_companion *list;
                char *path = temp_path("round.h5"), *again = temp_path("again.h5");
                int files;
                native_arch(&a, 20, per_layer);
                model_make(path, &a, types[i], compress);
                assert_ok(ckpt_open(&ck, path, NULL));
                assert_string_equal(ckpt_form_name(ck), "native HDF5 file");
                assert_int_equal(ckpt_at(ck, 0)->dtype, types[i]);
                assert_int_equal(ckpt_arch(ck)->stack[STACK_DEC].block[1].G, per_layer ? 2 : 3);
                model_check(ck, types[i]);
                assert_int_equal(ckpt_companions(ck, &list), 1);
                assert_string_equal(list[0].name, "tokenizer.json");
                assert_int_equal(list[0].n, 10);
                assert_memory_equal(list[0].bytes, "{\"a\":\0\"b\"}", 10);
                ckpt_close(ck);
                assert_ok(ckpt_verify(path, &files));
                assert_int_equal(files, 1);
                if (!per_layer && !compress && !i)
                    sleep(1); /* no time of day in the file */
                model_make(again, &a, types[i], compress); /* the same content gives the same bytes */
                files_equal(path, again);
                arch_free(&a);
                free(path);
                free(again);
            }
}

/* Rows longer than a chunk, several chunks, block edges off the chunk edges. */
static void test_large(void **state)
{
    (void)state;
    struct arch a;
    struct checkpoint *ck;
    char *path = temp_path("large.h5");
    native_arch(&a, 4096, 0);
    a.V = 1031;
    model_make(path, &a, DT_F32, 0);
    assert_ok(ckpt_open(&ck, path, NULL));
    model_check(ck, DT_F32);
    ckpt_close(ck);
    unlink(path);
    arch_free(&a);
    free(path);
}

static void test_hugging_face_and_back(void **state)
{
    (void)state;
    static const int64_t shards[] = {0, 3000};
    struct arch a;
    native_arch(&a, 20, 0);
    char *hf = temp_path("hf"), *h5 = temp_path("mid.h5"), *back = temp_path("back"), *config = temp_path("hf/config.json");
    for (size_t i = 0; i < COUNT_OF(shards); i++) {
        struct ckpt_writer *w;
        struct ckpt_target target = {.path = hf, .arch = &a, .dtype = i ? DT_F16 : DT_BF16, .shard_bytes = shards[i], .force = 1};
        assert_ok(ckpt_create(&w, &target));
        assert_ok(ckpt_add_file(w, "tokenizer.json", "{}\n", 3));
        assert_ok(ckpt_add_file(w, "LICENSE", "", 0));
        model_fill(w, 3);
        assert_ok(ckpt_commit(w));
        char *text, *edited = NULL; /* a config of a foreign hand: its spacing and unknown keys must survive */
        size_t n;
        assert_ok(io_read_all(config, 1 << 20, &text, &n));
        assert_true(asprintf(&edited, "{  \"_name_or_path\":\"\xc3\xa9\",%s", strchr(text, '{') + 1) > 0);
        assert_ok(io_write_atomic(config, edited, strlen(edited)));
        free(edited);
        free(text);
        model_convert(hf, h5, DT_NONE);
        model_convert(h5, back, DT_NONE);
        dirs_equal(hf, back);
    }
    arch_free(&a);
    free(hf), free(h5), free(back), free(config);
}

static void test_real_checkpoints(void **state)
{
    (void)state;
    static const char *const names[] = {"models/babyllama-tok105-hf", "models/stories260K-mha-hf"};
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        char *from = data_path(names[i]), *h5 = temp_path("real.h5"), *one = temp_path("real-hf"), *two = temp_path("real-hf-2");
        if (from && io_is_dir(from)) {
            model_convert(from, h5, DT_NONE);
            model_convert(h5, one, DT_NONE);
            model_convert(from, two, DT_NONE);
            dirs_equal(one, two);
        }
        free(from), free(h5), free(one), free(two);
    }
}

static void test_refusals(void **state)
{
    (void)state;
    struct arch a;
    struct checkpoint *ck;
    struct ckpt_writer *w;
    int files;
    char *path = temp_path("refuse.h5"), *text = temp_path("text.h5");
    native_arch(&a, 20, 0);
    model_make(path, &a, DT_F32, 0);
    struct ckpt_target target = {.path = path, .arch = &a};
    assert_refused(ckpt_create(&w, &target), ERR_USAGE, "--force");
    temp_write("text.h5", "this is no HDF5 file, only text", 31);
    assert_refused(ckpt_open(&ck, text, NULL), ERR_INPUT, "neither");
    assert_refused(ckpt_verify(text, &files), ERR_INPUT, "nothing to verify against");
    temp_write("text.h5", "", 0);
    assert_refused(ckpt_open(&ck, text, NULL), ERR_INPUT, "neither");
    char *dir = temp_path("empty-dir");
    assert_ok(io_mkdirs(dir));
    assert_refused(ckpt_verify(dir, &files), ERR_INPUT, "to verify against");
    arch_free(&a);
    free(path), free(text), free(dir);
}

/* ---- mutants ------------------------------------------------------------------------------------------------------ */

static void mutate(unsigned char *bytes, size_t n, uint64_t seed)
{
    for (int64_t k = random_int(seed, 0, 1, 8), i = 1; i <= k; i++) {
        size_t at = (size_t)random_int(seed, (uint64_t)(10 * i), 0, (int64_t)n - 1);
        if (seed % 3 == 0)
            bytes[at] ^= (unsigned char)(1 << random_int(seed, (uint64_t)(10 * i + 1), 0, 7));
        else if (seed % 3 == 1)
            bytes[at] = (unsigned char)random_int(seed, (uint64_t)(10 * i + 1), 0, 255);
        else
            memset(bytes + at, seed & 8 ? 0xff : 0, n - at < 8 ? n - at : 8);
    }
}

static void test_mutants(void **state)
{
    (void)state;
    struct arch a;
    struct checkpoint *ck;
    size_t n;
    char *good, *path = temp_path("mutant.h5");
    native_arch(&a, 20, 0);
    model_make(path, &a, DT_BF16, 0);
    assert_ok(io_read_all(path, 1 << 20, &good, &n));
    char *copy = malloc(n);
    int sealed = 0;
    for (uint64_t seed = 0; seed < 600; seed++) {
        size_t size = seed % 4 == 3 ? (size_t)random_int(seed, 99, 0, (int64_t)n - 1) : n;
        memcpy(copy, good, n);
        if (size == n)
            mutate((unsigned char *)copy, seed % 4 == 2 ? 4096 : n, seed);
        if (size == n && !memcmp(copy, good, n))
            continue;
        temp_write("mutant.h5", copy, size);
        enum code c = ckpt_open(&ck, path, NULL);
        assert_int_equal(c, ERR_INPUT);
        sealed++;
    }
    printf("%d sealed mutants, all refused before libhdf5 saw them\n", sealed);

    /* Without the seal a mutant is checked in a child: it is refused, or what it says is still right or at least readable. */
    size_t bare = n - H5_USER_BLOCK;
    int refused = 0, opened = 0;
    for (uint64_t seed = 0; seed < 120; seed++) {
        memcpy(copy, good, n);
        mutate((unsigned char *)copy + H5_USER_BLOCK + 8, seed % 2 ? 3000 : bare - 8, 1000 + seed);
        temp_write("mutant.h5", copy + H5_USER_BLOCK, seed % 10 ? bare : bare - (size_t)seed * 7);
        enum code c = ckpt_open(&ck, path, NULL);
        assert_true(c == OK || c == ERR_INPUT);
        if (c == OK) {
            for (int i = 0; i < ckpt_count(ck); i++) {
                const struct ckpt_tensor *t = ckpt_at(ck, i);
                void *block = malloc((size_t)t->bytes);
                c = ckpt_read(ck, t, 0, t->n[0], block, DT_NONE);
                assert_true(c == OK || c == ERR_INPUT);
                free(block);
            }
            ckpt_close(ck);
            opened++;
        } else
            refused++;
    }
    printf("%d mutants without a seal: %d refused, %d opened\n", refused + opened, refused, opened);
    assert_true(refused > 20);
    free(copy);
    free(good);
    free(path);
    arch_free(&a);
}

static void test_foreign(void **state)
{
    (void)state;
    struct arch a;
    struct checkpoint *ck;
    size_t n;
    int files;
    char *good, *path = temp_path("foreign.h5");
    native_arch(&a, 20, 1);
    model_make(path, &a, DT_F16, 1);
    assert_ok(io_read_all(path, 1 << 20, &good, &n));
    temp_write("foreign.h5", good + H5_USER_BLOCK, n - H5_USER_BLOCK);
    assert_ok(ckpt_open(&ck, path, NULL));
    model_check(ck, DT_F16);
    ckpt_close(ck);
    assert_refused(ckpt_verify(path, &files), ERR_INPUT, "records no hash");
    free(good);
    free(path);
    arch_free(&a);
}

/* ---- a full disk -------------------------------------------------------------------------------------------------- */

static enum code try_make(const char *path, const struct arch *a)
{
    struct ckpt_writer *w;
    struct ckpt_target target = {.path = path, .arch = a, .dtype = DT_F32, .force = 1};
    TRY(ckpt_create(&w, &target));
    for (int i = 0; i < ckpt_writer_count(w); i++) {
        const struct ckpt_tensor *t = ckpt_writer_at(w, i);
        float *p = calloc((size_t)(t->n[0] * t->n[1]), 4);
        enum code c = ckpt_write(w, t, 0, t->n[0], p, DT_F32);
        free(p);
        if (c != OK) {
            ckpt_abandon(w);
            return c;
        }
    }
    return ckpt_commit(w);
}

static void test_file_limit(void **state)
{
    (void)state;
    struct arch a;
    struct rlimit was, limit;
    char hex[33], now[33], *path = temp_path("limit/m.h5"), *dir = temp_path("limit");
    native_arch(&a, 20, 0);
    assert_ok(io_mkdirs(dir));
    model_make(path, &a, DT_BF16, 0);
    assert_ok(xxh128_file(path, hex));
    getrlimit(RLIMIT_FSIZE, &was);
    int refused = 0;
    enum code c = ERR_IO;
    for (int64_t bytes = 0; bytes < 1 << 20 && c != OK; bytes += bytes < 4096 ? 256 : 4096) {
        limit = was;
        limit.rlim_cur = (rlim_t)bytes;
        setrlimit(RLIMIT_FSIZE, &limit);
        c = try_make(path, &a);
        setrlimit(RLIMIT_FSIZE, &was);
        assert_true(c == OK || c == ERR_IO);
        char **names;
        int n;
        assert_ok(io_list(dir, &names, &n));
        io_names_free(names, n);
        assert_int_equal(n, 1);
        assert_ok(xxh128_file(path, now));
        if (c != OK) {
            assert_string_equal(hex, now);
            refused++;
        }
    }
    assert_int_equal(c, OK);
    assert_true(refused > 15);
    arch_free(&a);
    free(path);
    free(dir);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_large), cmocka_unit_test(test_hugging_face_and_back),
        cmocka_unit_test(test_real_checkpoints), cmocka_unit_test(test_refusals), cmocka_unit_test(test_mutants),
        cmocka_unit_test(test_foreign), cmocka_unit_test(test_file_limit),
    };
    log_quiet(1);
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
