/* Token files of every form: reading, malformed headers by name, truncation at every byte, ids outside the vocabulary, text in
 * all its wrappings, the cache. */
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include "harness.h"
#include "data/data.h"

static void put_le(unsigned char *p, uint64_t v, int width) {
    for (int i = 0; i < width; i++)
        p[i] = (unsigned char)(v >> 8 * i);
}

static enum code try_open(const char *name, const struct tokens_options *o, struct tokens **t) {
    char *path = temp_path(name);
    enum code c = tokens_open(t, path, o);
    if (c != OK)
        assert_null(*t);
    free(path);
    return c;
}

static const struct tokens_options plain = {.eos = -1, .bos = -1};

static enum code opens(const char *name, const struct tokens_options *o) {
    struct tokens *t;
    enum code c = try_open(name, o, &t);
    tokens_close(t);
    return c;
}

static void check_stream(const char *name, const struct tokens_options *o, const int32_t *want, int64_t n, int64_t bytes) {
    struct tokens *t;
    int32_t got[64];
    uint8_t mask[64];
    assert_true(n <= 64);
    assert_ok(try_open(name, o, &t));
    assert_int_equal(tokens_count(t), n);
    assert_int_equal(tokens_bytes(t), bytes);
    assert_int_equal(strlen(tokens_sha256(t)), 64);
    for (int64_t from = 0; from <= n; from++) /* every range */
        for (int64_t k = 0; from + k <= n; k++) {
            tokens_get(t, from, k, got);
            assert_memory_equal(got, want + from, (size_t)k * 4);
        }
    tokens_get_mask(t, 0, n, mask);
    for (int64_t i = 0; i < n && !tokens_has_mask(t); i++)
        assert_int_equal(mask[i], 1);
    tokens_close(t);
}

static void cut_file(const char *name, size_t n) {
    char *path = temp_path(name);
    assert_int_equal(truncate(path, (off_t)n), 0);
    free(path);
}

/* ---- llm.c ---- */

static void llmc_file(const char *name, uint32_t magic, uint32_t version, uint32_t count, size_t bytes) {
    unsigned char *p = calloc(1, bytes < 1024 ? 1024 : bytes);
    put_le(p, magic, 4);
    put_le(p + 4, version, 4);
    put_le(p + 8, count, 4);
    temp_write(name, p, bytes);
    free(p);
}

static void test_llmc_round_trip(void **s) {
    (void)s;
    static const int64_t vocabularies[] = {65536, 65537};
    int32_t ids[] = {0, 1, 65535, 300, 2};
    for (int k = 0; k < 2; k++) {
        struct tokens_options o = {.V = vocabularies[k], .eos = -1, .bos = -1};
        char *path = temp_path("round.bin");
        assert_ok(tokens_write(path, ids, 5, vocabularies[k], 1234, 2, "abc"));
        assert_int_equal(io_file_bytes(path), 1024 + 5 * (k == 0 ? 2 : 4));
        check_stream("round.bin", &o, ids, 5, 1234);
        assert_refused(tokens_write(path, ids, 5, 300, -1, -1, NULL), ERR_INPUT, "token 2 has the id 65535");
        o.V = 65535;
        assert_refused(opens("round.bin", &o), ERR_INPUT, k == 0 ? "token 2 (byte 1028) has the id 65535, but the vocabulary has 65535" : "token 2 (byte 1032)");
        free(path);
    }
    char hash[70];
    memset(hash, 'a', 69);
    hash[69] = 0;
    assert_refused(tokens_write("unused", ids, 5, 65536, -1, -1, hash), ERR_INPUT, "64 characters");
}

static void test_llmc_lies(void **s) {
    (void)s;
    llmc_file("lie.bin", 20240520, 1, 0xFFFFFFFFu, 1034);
    assert_refused(opens("lie.bin", &plain), ERR_INPUT, "header says -1 tokens");
    llmc_file("lie.bin", 20240520, 1, 0x80000000u, 1034);
    assert_refused(opens("lie.bin", &plain), ERR_INPUT, "header says -2147483648 tokens");
    llmc_file("lie.bin", 20240520, 1, 0x7FFFFFFFu, 1034);
    assert_refused(opens("lie.bin", &plain), ERR_INPUT, "the file has 1034");
    llmc_file("lie.bin", 20240520, 1, 6, 1034);
    assert_refused(opens("lie.bin", &plain), ERR_INPUT, "so 1036 bytes");
    llmc_file("lie.bin", 20240520, 1, 4, 1034);
    assert_refused(opens("lie.bin", &plain), ERR_INPUT, "so 1032 bytes");
    llmc_file("lie.bin", 20240520, 2, 5, 1034);
    assert_refused(opens("lie.bin", &plain), ERR_UNSUPPORTED, "version 2");
    llmc_file("lie.bin", 20240801, 1, 5, 1044);
    assert_refused(opens("lie.bin", &plain), ERR_UNSUPPORTED, "version 1");
    llmc_file("lie.bin", 20240522, 1, 5, 1034);
    assert_refused(opens("lie.bin", &plain), ERR_UNSUPPORTED, "evaluation");
    struct tokens_options o = {.format = DATA_LLMC, .eos = -1, .bos = -1};
    llmc_file("lie.bin", 5, 1, 5, 1034);
    assert_refused(opens("lie.bin", &o), ERR_INPUT, "magic 5");
    llmc_file("lie.bin", 20240520, 1, 10, 1044);
    assert_ok(opens("lie.bin", &o));
    for (size_t n = 1044; n-- > 0;) { /* every truncation */
        cut_file("lie.bin", n);
        assert_int_equal(opens("lie.bin", &o), ERR_INPUT);
    }
}

static void test_big_ids(void **s) {
    (void)s;
    unsigned char p[1024 + 4 * 5000] = {0};
    put_le(p, 20240801, 4);
    put_le(p + 4, 7, 4);
    put_le(p + 8, 5000, 4);
    put_le(p + 1024 + 4 * 4999, 0x80000001u, 4);
    temp_write("big.bin", p, sizeof p);
    assert_refused(opens("big.bin", &plain), ERR_INPUT, "token 4999 (byte 21020) has the id 2147483649");
}

/* ---- headerless ---- */

static void test_raw(void **s) {
    (void)s;
    static const unsigned char bytes[] = {1, 0, 2, 0, 3, 1, 0, 0};
    int32_t as16[] = {1, 2, 259, 0}, as32[] = {131073, 259};
    temp_write("raw.bin", bytes, 8);
    temp_write("olmo.npy", bytes, 8);
    struct tokens_options o = {.V = 50000, .eos = -1, .bos = -1};
    check_stream("raw.bin", &o, as16, 4, -1);
    check_stream("olmo.npy", &o, as16, 4, -1);
    o.V = 200000;
    check_stream("raw.bin", &o, as32, 2, -1);
    o.dtype = DT_U16;
    check_stream("raw.bin", &o, as16, 4, -1);
    o.V = 259;
    assert_refused(opens("raw.bin", &o), ERR_INPUT, "token 2 (byte 4) has the id 259");
    o.dtype = DT_F32;
    assert_refused(opens("raw.bin", &o), ERR_USAGE, "f32");
    temp_write("raw.bin", bytes, 7);
    assert_refused(opens("raw.bin", &plain), ERR_INPUT, "7 bytes are not a whole number");
    temp_write("raw.bin", bytes, 0);
    assert_refused(opens("raw.bin", &plain), ERR_INPUT, "empty");
    temp_write("numpy.npy", "\x93NUMPY\1\0\0\0", 10);
    assert_refused(opens("numpy.npy", &plain), ERR_UNSUPPORTED, "tofile");
    temp_write("x.parquet", "PAR1....", 8);
    assert_refused(opens("x.parquet", &plain), ERR_UNSUPPORTED, "Parquet");
    temp_write("x.arrow", "ARROW1..", 8);
    assert_refused(opens("x.arrow", &plain), ERR_UNSUPPORTED, "Arrow");
    temp_write("x.dat", "12345678", 8);
    assert_refused(opens("x.dat", &plain), ERR_INPUT, "data.format");
    assert_refused(opens("absent.bin", &plain), ERR_IO, "absent.bin");
}

static void test_sidecar_and_mask(void **s) {
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
    check_stream("side.bin", &o, as32, 2, 77);
    static const char *const bad[][2] = {{"{\"dtype\":\"float\"}", "neither uint16"}, {"{\"bytes\":\"x\"}", "bytes"}, {"{", "side.bin.json"}, {"{\"eos\":-2}", "eos"},
        {"{\"input_sha256\":\"00000000000000000000000000000000000000000000000000000000000000000000000\"}", "64 characters"}};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        temp_write("side.bin.json", bad[i][0], strlen(bad[i][0]));
        assert_refused(opens("side.bin", &o), ERR_INPUT, bad[i][1]);
    }
    temp_write("side.bin.json", good, sizeof good - 1);
    temp_write("side.bin.mask", "\1", 1);
    assert_refused(opens("side.bin", &o), ERR_INPUT, "one for each of the 2 tokens");
    temp_write("side.bin.mask", "\0\5", 2);
    struct tokens *t;
    uint8_t mask[2];
    assert_ok(try_open("side.bin", &o, &t));
    assert_true(tokens_has_mask(t));
    tokens_get_mask(t, 0, 2, mask);
    assert_true(mask[0] == 0 && mask[1] == 1);
    tokens_close(t);
    tokenizer_close(tok);
}

/* ---- Megatron ---- */

struct index { unsigned char p[512]; size_t n; };

/* Three sequences of 2, 0 and 3 ids in the order given by `at` (in ids); documents 0, 1, 3. */
static struct index index_of(int dtype, int width, const int64_t at[3]) {
    static const int lengths[] = {2, 0, 3}, documents[] = {0, 1, 3};
    struct index x = {.n = 34 + 3 * 12 + 3 * 8};
    memcpy(x.p, "MMIDIDX\0\0", 9);
    put_le(x.p + 9, 1, 8);
    x.p[17] = (unsigned char)dtype;
    put_le(x.p + 18, 3, 8);
    put_le(x.p + 26, 3, 8);
    for (int i = 0; i < 3; i++) {
        put_le(x.p + 34 + 4 * i, (uint64_t)lengths[i], 4);
        put_le(x.p + 46 + 8 * i, (uint64_t)(at[i] * width), 8);
        put_le(x.p + 70 + 8 * i, (uint64_t)documents[i], 8);
    }
    return x;
}

static void write_bin(const char *name, int width, const int64_t *ids, int n) {
    unsigned char p[256];
    for (int i = 0; i < n; i++)
        put_le(p + i * width, (uint64_t)ids[i], width);
    temp_write(name, p, (size_t)(n * width));
}

static void test_megatron(void **s) {
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
        check_stream("meg.idx", &o, a, 5, -1);
        check_stream("meg.bin", &o, a, 5, -1);
        check_stream("meg", &o, a, 5, -1);
        x = index_of(kinds[k].dtype, kinds[k].width, shifted);
        temp_write("meg.idx", x.p, x.n);
        check_stream("meg", &o, c, 5, -1);
        x = index_of(kinds[k].dtype, kinds[k].width, moved);
        temp_write("meg.idx", x.p, x.n + 3); /* with modes */
        check_stream("meg", &o, b, 5, -1);
        o.V = 9;
        assert_refused(opens("meg", &o), ERR_INPUT, "token 1 (byte ");
        o.V = 11;
        stored[4] = -1;
        if (kinds[k].dtype != 1 && kinds[k].dtype != 8) {
            write_bin("meg.bin", kinds[k].width, stored, 6);
            assert_refused(opens("meg", &o), ERR_INPUT, "has the id -1");
        }
        stored[4] = 9;
    }
}

static void patched(size_t at, uint64_t v, int width, enum code code, const char *part) {
    static const int64_t in_order[] = {0, 2, 2};
    struct index x = index_of(8, 2, in_order);
    put_le(x.p + at, v, width);
    temp_write("bad.idx", x.p, x.n);
    assert_refused(opens("bad.idx", &plain), code, part);
}

static void test_megatron_lies(void **s) {
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
        cut_file("bad.idx", n);
        assert_int_equal(opens("bad.idx", &plain), ERR_INPUT);
    }
    temp_write("bad.idx", x.p, x.n);
    for (int n = 0; n < 5; n++) {
        write_bin("bad.bin", 2, ids, n);
        assert_refused(opens("bad.idx", &plain), ERR_INPUT, "beyond");
    }
    write_bin("bad.bin", 2, ids, 5);
    assert_ok(opens("bad.idx", &plain));
    char *bin = temp_path("bad.bin");
    assert_int_equal(unlink(bin), 0);
    assert_refused(opens("bad.idx", &plain), ERR_IO, "bad.bin");
    free(bin);
    memset(x.p + 18, 0, 16); /* no sequence at all is a file without tokens */
    temp_write("bad.idx", x.p, 34);
    temp_write("bad.bin", "", 0);
    assert_ok(opens("bad.idx", &plain));
}

/* ---- text ---- */

static void write_gz(const char *name, const char *text) {
    char *path = temp_path(name);
    gzFile f = gzopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(gzwrite(f, text, (unsigned)strlen(text)), (int)strlen(text));
    gzclose(f);
    free(path);
}

#define TXT "ab\n<|endoftext|>\nc\r\n<|endoftext|>\r\n<|endoftext|>\n\nd\n"
#define JSONL "{\"text\": \"ab\"}\n\n  \n{\"other\": 1, \"text\": \"c\\u0000\"}\n{\"text\": \"\"}\n{\"text\": \"d\\n\"}"

static void test_text(void **s) {
    (void)s;
    struct tokenizer *tok;
    assert_ok(tokenizer_open(&tok, "bytes"));
    struct tokens_options o = {.V = 258, .eos = 257, .bos = 256, .tokenizer = tok};
    int32_t want[] = {256, 'a', 'b', 257, 256, 'c', 257, 256, '\n', 'd', '\n', 257};
    int32_t lines[] = {256, 'a', 'b', 257, 256, 'c', 0, 257, 256, 'd', '\n', 257};
    temp_write("t.txt", TXT, sizeof TXT - 1);
    write_gz("t.txt.gz", TXT);
    write_gz("gzip-by-content", TXT);
    temp_write("t.jsonl", JSONL, sizeof JSONL - 1);
    write_gz("t.jsonl.gz", JSONL);
    check_stream("t.txt", &o, want, 12, 6);
    check_stream("t.txt.gz", &o, want, 12, 6);
    check_stream("gzip-by-content", &o, want, 12, 6);
    check_stream("t.jsonl", &o, lines, 12, 6);
    check_stream("t.jsonl.gz", &o, lines, 12, 6);
    o.V = 200;
    assert_refused(opens("t.txt", &o), ERR_INPUT, "token 0 has the id 256");
    o.V = 0;
    o.text_field = "body";
    assert_refused(opens("t.jsonl", &o), ERR_INPUT, "t.jsonl:1: no string under \"body\"");
    o.text_field = NULL;
    temp_write("bad.jsonl", "{\"text\":\"a\"}\n{\"text\":", 21);
    assert_refused(opens("bad.jsonl", &o), ERR_INPUT, "bad.jsonl:2: not a JSON object");
    temp_write("bad.jsonl", "[1]\n", 4);
    assert_refused(opens("bad.jsonl", &o), ERR_INPUT, "bad.jsonl:1");
    temp_write("none.txt", "<|endoftext|>\n", 14);
    assert_refused(opens("none.txt", &o), ERR_INPUT, "holds no text");
    o.tokenizer = NULL;
    assert_refused(opens("t.txt", &o), ERR_USAGE, "data.tokenizer");
    tokenizer_close(tok);
}

static void test_gzip_damage(void **s) {
    (void)s;
    struct tokenizer *tok;
    char *path = temp_path("whole.txt.gz"), *bytes;
    size_t n;
    assert_ok(tokenizer_open(&tok, "bytes"));
    struct tokens_options o = {.eos = -1, .bos = -1, .tokenizer = tok, .format = DATA_TEXT};
    write_gz("whole.txt.gz", "some text that is long enough to be packed, packed, packed, packed");
    assert_ok(io_read_all(path, 1 << 20, &bytes, &n));
    for (size_t k = 11; k < n; k++) { /* shorter ones are no gzip header any more */
        temp_write("cut.txt.gz", bytes, k);
        assert_int_equal(opens("cut.txt.gz", &o), ERR_INPUT);
    }
    bytes[n - 6] = (char)(bytes[n - 6] ^ 1); /* the checksum */
    temp_write("cut.txt.gz", bytes, n);
    assert_refused(opens("cut.txt.gz", &o), ERR_INPUT, "gzip");
    free(bytes);
    free(path);
    tokenizer_close(tok);
}

static const char tiny[] = "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"</s>\":3},\"merges\":[\"a b\"],\"unk_token\":\"a\"}}";

static void test_invalid_text_names_the_line(void **s) {
    (void)s;
    struct tokenizer *tok;
    assert_ok(tokenizer_parse(&tok, tiny, sizeof tiny - 1, "tiny"));
    struct tokens_options o = {.eos = -1, .bos = -1, .tokenizer = tok};
    temp_write("latin1.txt", "ab\n<|endoftext|>\nb\xE9\n", 20);
    assert_refused(opens("latin1.txt", &o), ERR_INPUT, "latin1.txt: document ending at line 3: the text is not valid UTF-8 at byte 1");
    tokenizer_close(tok);
}

static int64_t count_files(const char *dir, const char *end) {
    char **names;
    int n, hits = 0;
    assert_ok(io_list(dir, &names, &n));
    for (int i = 0; i < n; i++)
        hits += strlen(names[i]) > strlen(end) && strcmp(names[i] + strlen(names[i]) - strlen(end), end) == 0;
    io_names_free(names, n);
    return hits;
}

static void test_cache(void **s) {
    (void)s;
    struct tokenizer *tok;
    char *dir = temp_path("cache/deep"), **names;
    int n;
    assert_ok(tokenizer_parse(&tok, tiny, sizeof tiny - 1, "tiny"));
    struct tokens_options o = {.V = 4, .eos = 3, .bos = -1, .tokenizer = tok, .cache_dir = dir};
    int32_t want[] = {2, 1, 3}, other[] = {2, 2, 3}, with_bos[] = {0, 2, 1, 3};
    temp_write("c.txt", "abb", 3);
    for (int k = 0; k < 3; k++)
        check_stream("c.txt", &o, want, 3, 3);
    assert_int_equal(count_files(dir, ".bin"), 1);
    assert_int_equal(count_files(dir, ".bin.json"), 1);
    assert_ok(io_list(dir, &names, &n));
    char *bin = io_join(dir, names[0]), *side = io_join(dir, names[1]), *bytes;
    size_t size;
    struct stat before, after;
    assert_int_equal(stat(bin, &before), 0);
    check_stream("c.txt", &o, want, 3, 3);
    assert_int_equal(stat(bin, &after), 0);
    assert_true(before.st_ino == after.st_ino); /* a hit writes nothing */
    assert_ok(io_read_all(bin, 1 << 20, &bytes, &size)); /* damaged ones are made again */
    for (int k = 0; k < 4; k++) {
        if (k == 0)
            assert_ok(io_write_atomic(bin, bytes, size - 1));
        else if (k == 1)
            assert_ok(io_write_atomic(side, "{", 1));
        else if (k == 2)
            assert_ok(io_write_atomic(side, "{\"eos\": 1}", 10));
        else
            assert_int_equal(unlink(side), 0);
        check_stream("c.txt", &o, want, 3, 3);
        assert_int_equal(io_file_bytes(bin), (int64_t)size);
    }
    bytes[1024] = 9; /* an id beyond the vocabulary */
    assert_ok(io_write_atomic(bin, bytes, size));
    check_stream("c.txt", &o, want, 3, 3);
    temp_write("c.txt", "abab", 4); /* another input, then other options: other keys */
    check_stream("c.txt", &o, other, 3, 4);
    assert_int_equal(count_files(dir, ".bin"), 2);
    temp_write("c.txt", "abb", 3);
    o.bos = 0;
    check_stream("c.txt", &o, with_bos, 4, 3);
    assert_int_equal(count_files(dir, ".bin"), 3);
    /* the same text as .jsonl is another input */
    o.bos = -1;
    o.text_field = "t";
    temp_write("c.jsonl", "{\"t\":\"abb\"}", 11);
    check_stream("c.jsonl", &o, want, 3, 3);
    assert_int_equal(count_files(dir, ".bin"), 4);
    struct tokens *t;
    char hex[65], *path = temp_path("c.jsonl");
    assert_ok(sha256_file(path, hex));
    assert_ok(try_open("c.jsonl", &o, &t));
    assert_string_equal(tokens_sha256(t), hex); /* of the text, also through the cache */
    tokens_close(t);
    io_names_free(names, n);
    free(path);
    free(bin);
    free(side);
    free(bytes);
    free(dir);
    tokenizer_close(tok);
}

static void test_large_text(void **s) { /* over the chunk and the progress limits */
    (void)s;
    enum { N = 9 << 20 };
    struct tokenizer *tok;
    struct tokens *t;
    char *text = malloc(N);
    for (int i = 0; i < N; i++)
        text[i] = (char)(i % 251 == 250 ? '\n' : 'a' + i % 7);
    assert_ok(tokenizer_open(&tok, "bytes"));
    struct tokens_options o = {.V = 256, .eos = -1, .bos = -1, .tokenizer = tok};
    temp_write("large.txt", text, N);
    log_quiet(1);
    assert_ok(try_open("large.txt", &o, &t));
    log_quiet(0);
    assert_int_equal(tokens_count(t), N);
    for (int64_t i = 0; i < N; i += 99991) {
        int32_t id;
        tokens_get(t, i, 1, &id);
        assert_int_equal(id, text[i]);
    }
    tokens_close(t);
    tokenizer_close(tok);
    free(text);
}

static void test_real_files(void **s) {
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

int main(int argc, char **argv) {
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llmc_round_trip), cmocka_unit_test(test_llmc_lies), cmocka_unit_test(test_big_ids), cmocka_unit_test(test_raw),
        cmocka_unit_test(test_sidecar_and_mask), cmocka_unit_test(test_megatron), cmocka_unit_test(test_megatron_lies), cmocka_unit_test(test_text),
        cmocka_unit_test(test_gzip_damage), cmocka_unit_test(test_invalid_text_names_the_line), cmocka_unit_test(test_cache),
        cmocka_unit_test(test_large_text), cmocka_unit_test(test_real_files)};
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
