/* R8: hostile HDF5. Mutants of a native file, without a seal or with one made right for them (a forger can), go through the loader: the child
 * that walks them may die, we may not. What is let through is read whole. 400 here, 30 000 with GQAKIT_SOAK=1. */
#include <fcntl.h>
#include <hdf5.h>
#include <time.h>
#include <unistd.h>
#include <zlib.h>

#include "checkpoints/h5.h"
#include "damage.h"
#include "small_checkpoint.h"

static void mutate(unsigned char *bytes, size_t n, uint64_t seed)
{
    static const uint64_t numbers[] = {0, 1, 0xff, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff, 0x100000000, 0x7fffffffffffffff, 0xffffffffffffffff, 0x8000000000000000, 8, 512, 4096};
    for (int64_t k = random_int(seed, 0, 1, 6), i = 1; i <= k; i++) {
        uint64_t at = (uint64_t)random_int(seed, (uint64_t)(10 * i), 0, (int64_t)n - 9), number;
        int64_t width = 1 << random_int(seed, (uint64_t)(10 * i + 1), 0, 3);
        switch (random_int(seed, (uint64_t)(10 * i + 2), 0, 4)) {
        case 0: bytes[at] ^= (unsigned char)(1 << random_int(seed, (uint64_t)(10 * i + 3), 0, 7)); break;
        case 1: bytes[at] = (unsigned char)random_int(seed, (uint64_t)(10 * i + 3), 0, 255); break;
        case 2: /* an address or a size of the file, or beyond it, where one may stand */
            number = (uint64_t)random_int(seed, (uint64_t)(10 * i + 3), 0, (int64_t)(2 * n));
            memcpy(bytes + at / 8 * 8, &number, 8);
            break;
        case 3: /* another part of the file */
            memcpy(bytes + at, bytes + random_int(seed, (uint64_t)(10 * i + 4), 0, (int64_t)n - 9), 8);
            break;
        default:
            number = numbers[random_int(seed, (uint64_t)(10 * i + 3), 0, COUNT_OF(numbers) - 1)];
            memcpy(bytes + at, &number, (size_t)width);
        }
    }
}

static void seal(const char *path)
{
    char block[H5_USER_BLOCK], hex[33];
    int64_t bytes;
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    assert_ok(h5_seal_hash(fd, path, &bytes, hex));
    h5_seal_text(block, bytes, hex);
    assert_true(pwrite(fd, block, sizeof block, 0) == (ssize_t)sizeof block);
    close(fd);
}

static enum code open_and_read(const char *path)
{
    struct checkpoint *ck;
    TRY(ckpt_open(&ck, path, NULL));
    enum code c = OK;
    for (int i = 0; c == OK && i < ckpt_count(ck); i++) {
        const struct ckpt_tensor *t = ckpt_at(ck, i);
        char *block = malloc((size_t)t->bytes);
        assert_non_null(block);
        c = ckpt_read(ck, t, 0, t->n[0], block, DT_NONE);
        free(block);
    }
    ckpt_close(ck);
    return c;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void mutants(int sealed, int64_t n, uint64_t seed)
{
    struct arch a;
    size_t size, head = sealed ? H5_USER_BLOCK : 0;
    char *path = temp_path("m.h5"), *good;
    int64_t refused = 0, late = 0, opened = 0, died = 0;
    double slowest = 0;
    small_arch(&a, 6, 3, DT_BF16);
    small_write(path, &a, 3, 1, NULL);
    arch_free(&a);
    assert_ok(io_read_all(path, 1 << 24, &good, &size));
    char *copy = malloc(size);
    for (int64_t i = 0; i < n; i++) {
        memcpy(copy, good, size);
        size_t span = i % 2 ? 8192 : size - H5_USER_BLOCK; /* half of them where the structure begins */
        mutate((unsigned char *)copy + H5_USER_BLOCK + (sealed ? 0 : 8), span - 8, seed + (uint64_t)i);
        damage_put("m.h5", copy + H5_USER_BLOCK - head, size - H5_USER_BLOCK + head);
        if (sealed)
            seal(path);
        double start = now();
        enum code c = open_and_read(path);
        slowest = now() - start > slowest ? now() - start : slowest;
        if (c != OK && c != ERR_INPUT && c != ERR_UNSUPPORTED)
            print_error("mutant %lld: code %d: %s\n", (long long)i, (int)c, fail_text());
        assert_true(c == OK || c == ERR_INPUT || c == ERR_UNSUPPORTED);
        opened += c == OK;
        refused += c != OK;
        died += c != OK && strstr(fail_text(), "the process that checked it died");
        late += c != OK && strstr(fail_text(), "took more than");
    }
    printf("%s: %lld mutants, %lld refused (the child died %lld times, was too slow %lld times), %lld read; slowest %.2f s\n", sealed ? "sealed by a forger" : "without a seal",
           (long long)n, (long long)refused, (long long)died, (long long)late, (long long)opened, slowest);
    free(copy);
    free(good);
    free(path);
}

static void test_without_a_seal(void **state)
{
    (void)state;
    mutants(0, damage_soak() ? 15000 : 200, 1000);
}

static void test_forged_seal(void **state)
{
    (void)state;
    mutants(1, damage_soak() ? 15000 : 200, 1000000);
}

/* Chunks whose filters give back other sizes than they promise, which libhdf5 1.10 does not check before it reads them: the guard must. */
static void put_chunk(const char *path, const char *name, uint32_t mask, const void *bytes, size_t n)
{
    hsize_t at[2] = {0, 0};
    hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT), set = H5Dopen2(file, name, H5P_DEFAULT);
    assert_true(file >= 0);
    assert_true(set >= 0);
    assert_true(H5Dwrite_chunk(set, H5P_DEFAULT, mask, at, n, bytes) >= 0);
    H5Dclose(set);
    assert_true(H5Fclose(file) >= 0);
    seal(path);
}

static void write_zeros(const char *path, int compress)
{
    struct arch a;
    small_arch(&a, 6, 3, DT_BF16);
    struct ckpt_target target = {.path = path, .arch = &a, .dtype = a.dtype, .force = 1, .compress = compress};
    struct ckpt_writer *w = NULL;
    assert_ok(ckpt_create(&w, &target));
    for (int i = 0; i < ckpt_writer_count(w); i++) {
        const struct ckpt_tensor *t = ckpt_writer_at(w, i);
        float *x = calloc((size_t)(t->n[0] * t->n[1]), sizeof *x);
        assert_non_null(x);
        assert_ok(ckpt_write(w, t, 0, t->n[0], x, DT_F32));
        free(x);
    }
    assert_ok(ckpt_commit(w));
    arch_free(&a);
}

static void test_chunks_that_lie(void **state)
{
    (void)state;
    static const struct { int compress; uint32_t mask; size_t inflated, stored; const char *expect; } cases[] = {
        {0, 0, 0, 2, "damaged, a chunk has an impossible size"},
        {0, 0, 0, 4, "damaged, a chunk has an impossible size"},
        {0, 1, 0, 64, "damaged, a chunk has an impossible size"},
        {1, 1, 0, 64, "a chunk that was written without its filters"},
        {1, 0, 0, 2, "damaged, a chunk has an impossible size"},
        {1, 0, 0, 64, "damaged, a chunk cannot be inflated to its size"},
        {1, 0, 100, 0, "damaged, a chunk cannot be inflated to its size"},
        {1, 0, 1 << 16, 0, "damaged, a chunk cannot be inflated to its size"},
    };
    unsigned char *plain = calloc(1, 1 << 20), *raw = calloc(1, 1 << 21);
    char *path = temp_path("lie.h5");
    assert_true(plain && raw);
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        uLongf n = (1 << 21) - 4;
        write_zeros(path, cases[i].compress);
        assert_ok(open_and_read(path));
        if (cases[i].inflated)
            assert_true(compress2(raw, &n, plain, cases[i].inflated, 1) == Z_OK);
        put_chunk(path, "param/embed.weight", cases[i].mask, raw, cases[i].inflated ? n + 4 : cases[i].stored);
        assert_refused(open_and_read(path), ERR_INPUT, cases[i].expect);
    }
    free(raw);
    free(plain);
    free(path);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_without_a_seal), cmocka_unit_test(test_forged_seal), cmocka_unit_test(test_chunks_that_lie)};
    log_quiet(1);
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
