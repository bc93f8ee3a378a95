/* Token files with ids in them: llm.c, headerless, Megatron; malformed headers by name, truncation at every byte, ids outside the
 * vocabulary, masks and sidecars. */
#include <sys/stat.h>
#include <unistd.h>
#include "harness.h"
#include "token_case.h"

/* ---- llm.c ---- */

static void llmc_file(const char *name, uint32_t magic, uint32_t version, uint32_t count, size_t bytes)
{
    unsigned char *p = calloc(1, bytes < 1024 ? 1024 : bytes);
    token_put_le(p, magic, 4);
    token_put_le(p + 4, version, 4);
    token_put_le(p + 8, count, 4);
    temp_write(name, p, bytes);
    free(p);
}

static void test_llmc_round_trip(void **s)
{
    (void)s;
    static const int64_t vocabularies[] = {65536, 65537};
    int32_t ids[] = {0, 1, 65535, 300, 2};
    for (int k = 0; k < 2; k++) {
        struct tokens_options o = {.V = vocabularies[k], .eos = -1, .bos = -1};
        char *path = temp_path("round.bin");
        assert_ok(tokens_write(path, ids, 5, vocabularies[k], 1234, 2, "abc"));
        assert_int_equal(io_file_bytes(path), 1024 + 5 * (k == 0 ? 2 : 4));
        token_check_stream("round.bin", &o, ids, 5, 1234);
        assert_refused(tokens_write(path, ids, 5, 300, -1, -1, NULL), ERR_INPUT, "token 2 has the id 65535");
        o.V = 65535;
        assert_refused(token_opens("round.bin", &o), ERR_INPUT, k == 0 ? "token 2 (byte 1028) has the id 65535, but the vocabulary has 65535" : "token 2 (byte 1032)");
        free(path);
    }
    char hash[70];
    memset(hash, 'a', 69);
    hash[69] = 0;
    assert_refused(tokens_write("unused", ids, 5, 65536, -1, -1, hash), ERR_INPUT, "64 characters");
}

static void test_llmc_lies(void **s)
{
    (void)s;
    llmc_file("lie.bin", 20240520, 1, 0xFFFFFFFFu, 1034);
    assert_refused(token_opens("lie.bin", &token_plain), ERR_INPUT, "header says -1 tokens");
    llmc_file("lie.bin", 20240520, 1, 0x80000000u, 1034);
    assert_refused(token_opens("lie.bin", &token_plain), ERR_INPUT, "header says -2147483648 tokens");
    llmc_file("lie.bin", 20240520, 1, 0x7FFFFFFFu, 1034);
    assert_refused(token_opens("lie.bin", &token_plain), ERR_INPUT, "the file has 1034");
    llmc_file("lie.bin", 20240520, 1, 6, 1034);
    assert_refused(token_opens("lie.bin", &token_plain), ERR_INPUT, "so 1036 bytes");
    llmc_file("lie.bin", 20240520, 1, 4, 1034);
    assert_refused(token_opens("lie.bin", &token_plain), ERR_INPUT, "so 1032 bytes");
    llmc_file("lie.bin", 20240520, 2, 5, 1034);
    assert_refused(token_opens("lie.bin", &token_plain), ERR_UNSUPPORTED, "version 2");
    llmc_file("lie.bin", 20240801, 1, 5, 1044);
    assert_refused(token_opens("lie.bin", &token_plain), ERR_UNSUPPORTED, "version 1");
    llmc_file("lie.bin", 20240522, 1, 5, 1034);
    assert_refused(token_opens("lie.bin", &token_plain), ERR_UNSUPPORTED, "evaluation");
    struct tokens_options o = {.format = DATA_LLMC, .eos = -1, .bos = -1};
    llmc_file("lie.bin", 5, 1, 5, 1034);
    assert_refused(token_opens("lie.bin", &o), ERR_INPUT, "magic 5");
    llmc_file("lie.bin", 20240520, 1, 10, 1044);
    assert_ok(token_opens("lie.bin", &o));
    for (size_t n = 1044; n-- > 0;) { /* every truncation */
        token_cut_file("lie.bin", n);
        assert_int_equal(token_opens("lie.bin", &o), ERR_INPUT);
    }
}

static void test_big_ids(void **s)
{
    (void)s;
    unsigned char p[1024 + 4 * 5000] = {0};
    token_put_le(p, 20240801, 4);
    token_put_le(p + 4, 7, 4);
    token_put_le(p + 8, 5000, 4);
    token_put_le(p + 1024 + 4 * 4999, 0x80000001u, 4);
    temp_write("big.bin", p, sizeof p);
    assert_refused(token_opens("big.bin", &token_plain), ERR_INPUT, "token 4999 (byte 21020) has the id 2147483649");
}

/* ---- headerless ---- */

static void test_raw(void **s)
{
    (void)s;
    static const unsigned char bytes[] = {1, 0, 2, 0, 3, 1, 0, 0};
    int32_t as16[] = {1, 2, 259, 0}, as32[] = {131073, 259};
    temp_write("raw.bin", bytes, 8);
    temp_write("olmo.npy", bytes, 8);
    struct tokens_options o = {.V = 50000, .eos = -1, .bos = -1};
    token_check_stream("raw.bin", &o, as16, 4, -1);
    token_check_stream("olmo.npy", &o, as16, 4, -1);
    o.V = 200000;
    token_check_stream("raw.bin", &o, as32, 2, -1);
    o.dtype = DT_U16;
    token_check_stream("raw.bin", &o, as16, 4, -1);
    o.V = 259;
    assert_refused(token_opens("raw.bin", &o), ERR_INPUT, "token 2 (byte 4) has the id 259");
    o.dtype = DT_F32;
    assert_refused(token_opens("raw.bin", &o), ERR_USAGE, "f32");
    temp_write("raw.bin", bytes, 7);
    assert_refused(token_opens("raw.bin", &token_plain), ERR_INPUT, "7 bytes are not a whole number");
    temp_write("raw.bin", bytes, 0);
    assert_refused(token_opens("raw.bin", &token_plain), ERR_INPUT, "empty");
    temp_write("numpy.npy", "\x93NUMPY\1\0\0\0", 10);
    assert_refused(token_opens("numpy.npy", &token_plain), ERR_UNSUPPORTED, "tofile");
    temp_write("x.parquet", "PAR1....", 8);
    assert_refused(token_opens("x.parquet", &token_plain), ERR_UNSUPPORTED, "Parquet");
    temp_write("x.arrow", "ARROW1..", 8);
    assert_refused(token_opens("x.arrow", &token_plain), ERR_UNSUPPORTED, "Arrow");
    temp_write("x.dat", "12345678", 8);
    assert_refused(token_opens("x.dat", &token_plain), ERR_INPUT, "data.format");
    assert_refused(token_opens("absent.bin", &token_plain), ERR_IO, "absent.bin");
}

static void test_sidecar_and_mask(void **s)
{
    (void)s;
    static const unsigned char bytes[] = {1, 0, 2, 0, 3, 1, 0, 0};
    int32_t as32[] = {131073, 259};
    struct tokens_options o = {.V = 0, .eos = -1, .bos = -1};
    struct tokenizer *tok;
    assert_ok(tokenizer_open(&tok, "bytes"));
    o.tokenizer = tok; /* another one than the sidecar's: a warning */
    temp_write("side.bin", bytes, 8);
    static const char good[] = "{\"dtype\":\"uint32\",\"bytes\":77,\"tokenizer_sha256\":\"00\"}";
    temp_write("side.bin.json", good, sizeof good - 1);
    token_check_stream("side.bin", &o, as32, 2, 77);
    static const char *const bad[][2] = {{"{\"dtype\":\"float\"}", "neither uint16"}, {"{\"bytes\":\"x\"}", "bytes"}, {"{", "side.bin.json"}, {"{\"eos\":-2}", "eos"},
        {"{\"input_sha256\":\"00000000000000000000000000000000000000000000000000000000000000000000000\"}", "64 characters"}};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        temp_write("side.bin.json", bad[i][0], strlen(bad[i][0]));
        assert_refused(token_opens("side.bin", &o), ERR_INPUT, bad[i][1]);
    }
    temp_write("side.bin.json", good, sizeof good - 1);
    temp_write("side.bin.mask", "\1", 1);
    assert_refused(token_opens("side.bin", &o), ERR_INPUT, "one for each of the 2 tokens");
    temp_write("side.bin.mask", "\0\5", 2);
    struct tokens *t;
    uint8_t mask[2];
    assert_ok(token_try_open("side.bin", &o, &t));
    assert_true(tokens_has_mask(t));
    tokens_get_mask(t, 0, 2, mask);
    assert_true(mask[0] == 0 && mask[1] == 1);
    tokens_close(t);
    tokenizer_close(tok);
}

/* ---- Megatron ---- */

struct index { unsigned char p[512]; size_t n; };

/* Three sequences of 2, 0 and 3 ids in the order given by `at` (in ids); documents 0, 1, 3. */
static struct index index_of(int dtype, int width, const int64_t at[3])
{
    static const int lengths[] = {2, 0, 3}, documents[] = {0, 1, 3};
    struct index x = {.n = 34 + 3 * 12 + 3 * 8};
    memcpy(x.p, "MMIDIDX\0\0", 9);
    token_put_le(x.p + 9, 1, 8);
    x.p[17] = (unsigned char)dtype;
    token_put_le(x.p + 18, 3, 8);
    token_put_le(x.p + 26, 3, 8);
    for (int i = 0; i < 3; i++) {
        token_put_le(x.p + 34 + 4 * i, (uint64_t)lengths[i], 4);
        token_put_le(x.p + 46 + 8 * i, (uint64_t)(at[i] * width), 8);
        token_put_le(x.p + 70 + 8 * i, (uint64_t)documents[i], 8);
    }
    return x;
}

static void write_bin(const char *name, int width, const int64_t *ids, int n)
{
    unsigned char p[256];
    for (int i = 0; i < n; i++)
        token_put_le(p + i * width, (uint64_t)ids[i], width);
    temp_write(name, p, (size_t)(n * width));
}

static void test_megatron(void **s)
{
    (void)s;
    static const struct { int dtype, width; } kinds[] = {{1, 1}, {2, 1}, {3, 2}, {4, 4}, {5, 8}, {8, 2}};
    static const int64_t in_order[] = {0, 2, 2}, moved[] = {3, 1, 0}, shifted[] = {1, 3, 3};
    int64_t stored[] = {5, 6, 7, 8, 9, 10};
    int32_t a[] = {5, 6, 7, 8, 9}, b[] = {8, 9, 5, 6, 7}, c[] = {6, 7, 8, 9, 10};
    struct tokens_options o = {.V = 11, .eos = -1, .bos = -1};
    for (size_t k = 0; k < COUNT_OF(kinds); k++) {
        write_bin("meg.bin", kinds[k].width, stored, 6);
        struct index x = index_of(kinds[k].dtype, kinds[k].width, in_order);
        temp_write("meg.idx", x.p, x.n);
        token_check_stream("meg.idx", &o, a, 5, -1);
        token_check_stream("meg.bin", &o, a, 5, -1);
        token_check_stream("meg", &o, a, 5, -1);
        x = index_of(kinds[k].dtype, kinds[k].width, shifted);
        temp_write("meg.idx", x.p, x.n);
        token_check_stream("meg", &o, c, 5, -1);
        x = index_of(kinds[k].dtype, kinds[k].width, moved);
        temp_write("meg.idx", x.p, x.n + 3); /* with modes */
        token_check_stream("meg", &o, b, 5, -1);
        o.V = 9;
        assert_refused(token_opens("meg", &o), ERR_INPUT, "token 1 (byte ");
        o.V = 11;
        stored[4] = -1;
        if (kinds[k].dtype != 1 && kinds[k].dtype != 8) {
            write_bin("meg.bin", kinds[k].width, stored, 6);
            assert_refused(token_opens("meg", &o), ERR_INPUT, "has the id -1");
        }
        stored[4] = 9;
    }
}

static void patched(size_t at, uint64_t v, int width, enum code code, const char *part)
{
    static const int64_t in_order[] = {0, 2, 2};
    struct index x = index_of(8, 2, in_order);
    token_put_le(x.p + at, v, width);
    temp_write("bad.idx", x.p, x.n);
    assert_refused(token_opens("bad.idx", &token_plain), code, part);
}

static void test_megatron_lies(void **s)
{
    (void)s;
    static const int64_t in_order[] = {0, 2, 2}, ids[] = {1, 2, 3, 4, 5};
    write_bin("bad.bin", 2, ids, 5);
    patched(0, 'X', 1, ERR_INPUT, "MMIDIDX");
    patched(9, 2, 8, ERR_UNSUPPORTED, "version 2");
    patched(17, 6, 1, ERR_INPUT, "code 6");
    patched(17, 9, 1, ERR_INPUT, "code 9");
    patched(18, UINT64_MAX / 12, 8, ERR_INPUT, "do not fit");
    patched(18, 9, 8, ERR_INPUT, "do not fit");
    patched(26, UINT64_MAX, 8, ERR_INPUT, "do not fit");
    patched(26, 1, 8, ERR_INPUT, "16 bytes are left");
    patched(34, UINT32_MAX, 4, ERR_INPUT, "sequence 0 has the length -1");
    patched(34, INT32_MAX, 4, ERR_INPUT, "beyond the 10 bytes");
    patched(46, 12, 8, ERR_INPUT, "beyond the 10 bytes");
    patched(46, UINT64_MAX, 8, ERR_INPUT, "beyond the 10 bytes");
    patched(62, 6, 8, ERR_INPUT, "sequence 2");
    patched(78, 4, 8, ERR_INPUT, "document 1");
    patched(70, 2, 8, ERR_INPUT, "document 1");
    patched(86, UINT64_MAX, 8, ERR_INPUT, "document 2");
    struct index x = index_of(8, 2, in_order);
    temp_write("bad.idx", x.p, x.n);
    for (size_t n = x.n; n-- > 0;) {
        token_cut_file("bad.idx", n);
        assert_int_equal(token_opens("bad.idx", &token_plain), ERR_INPUT);
    }
    temp_write("bad.idx", x.p, x.n);
    for (int n = 0; n < 5; n++) {
        write_bin("bad.bin", 2, ids, n);
        assert_refused(token_opens("bad.idx", &token_plain), ERR_INPUT, "beyond");
    }
    write_bin("bad.bin", 2, ids, 5);
    assert_ok(token_opens("bad.idx", &token_plain));
    char *bin = temp_path("bad.bin");
    assert_int_equal(unlink(bin), 0);
    assert_refused(token_opens("bad.idx", &token_plain), ERR_IO, "bad.bin");
    free(bin);
    memset(x.p + 18, 0, 16); /* no sequence at all is a file without tokens */
    temp_write("bad.idx", x.p, 34);
    temp_write("bad.bin", "", 0);
    assert_ok(token_opens("bad.idx", &token_plain));
}

static void test_real_files(void **s)
{
    (void)s;
    static const struct { const char *path; int64_t V; } files[] = {{"tokens/tinystories_tok105_train.bin", 105}, {"tokens/tinystories_tok512_val.bin", 512}};
    for (size_t k = 0; k < COUNT_OF(files); k++) {
        char *path = data_path(files[k].path);
        if (path == NULL)
            continue;
        struct tokens *t;
        struct tokens_options o = {.V = files[k].V, .eos = 2, .bos = 1};
        int32_t first;
        assert_ok(tokens_open(&t, path, &o));
        assert_int_equal(tokens_count(t), (io_file_bytes(path) - 1024) / 2);
        tokens_get(t, 0, 1, &first);
        assert_int_equal(first, 1);
        tokens_close(t);
        free(path);
    }
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {cmocka_unit_test(test_llmc_round_trip),
        cmocka_unit_test(test_llmc_lies),
        cmocka_unit_test(test_big_ids),
        cmocka_unit_test(test_raw),
        cmocka_unit_test(test_sidecar_and_mask),
        cmocka_unit_test(test_megatron),
        cmocka_unit_test(test_megatron_lies),
        cmocka_unit_test(test_real_files)};
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
