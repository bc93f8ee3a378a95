/* Text in all its wrappings: .txt, .jsonl, gzip, damaged input by line, and the cache of what was tokenised. */
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include "harness.h"
#include "token_case.h"

/* ---- text ---- */

static void write_gz(const char *name, const char *text)
{
    char *path = temp_path(name);
    gzFile f = gzopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(gzwrite(f, text, (unsigned)strlen(text)), (int)strlen(text));
    gzclose(f);
    free(path);
}

#define TXT "ab\n<|endoftext|>\nc\r\n<|endoftext|>\r\n<|endoftext|>\n\nd\n"
#define JSONL "{\"text\": \"ab\"}\n\n  \n{\"other\": 1, \"text\": \"c\\u0000\"}\n{\"text\": \"\"}\n{\"text\": \"d\\n\"}"

static void test_text(void **s)
{
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
    token_check_stream("t.txt", &o, want, 12, 6);
    token_check_stream("t.txt.gz", &o, want, 12, 6);
    token_check_stream("gzip-by-content", &o, want, 12, 6);
    token_check_stream("t.jsonl", &o, lines, 12, 6);
    token_check_stream("t.jsonl.gz", &o, lines, 12, 6);
    o.V = 200;
    assert_refused(token_opens("t.txt", &o), ERR_INPUT, "token 0 has the id 256");
    o.V = 0;
    o.text_field = "body";
    assert_refused(token_opens("t.jsonl", &o), ERR_INPUT, "t.jsonl:1: no string under \"body\"");
    o.text_field = NULL;
    temp_write("bad.jsonl", "{\"text\":\"a\"}\n{\"text\":", 21);
    assert_refused(token_opens("bad.jsonl", &o), ERR_INPUT, "bad.jsonl:2: not a JSON object");
    temp_write("bad.jsonl", "[1]\n", 4);
    assert_refused(token_opens("bad.jsonl", &o), ERR_INPUT, "bad.jsonl:1");
    temp_write("none.txt", "<|endoftext|>\n", 14);
    assert_refused(token_opens("none.txt", &o), ERR_INPUT, "holds no text");
    temp_write("none.jsonl", "{\"text\": \"\"}\n", 13);
    o.eos = 1; /* its id alone is no text either */
    assert_refused(token_opens("none.jsonl", &o), ERR_INPUT, "holds no text");
    o.eos = -1;
    o.tokenizer = NULL;
    assert_refused(token_opens("t.txt", &o), ERR_USAGE, "data.tokenizer");
    tokenizer_close(tok);
}

static void test_gzip_damage(void **s)
{
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
        assert_int_equal(token_opens("cut.txt.gz", &o), ERR_INPUT);
    }
    bytes[n - 6] = (char)(bytes[n - 6] ^ 1); /* the checksum */
    temp_write("cut.txt.gz", bytes, n);
    assert_refused(token_opens("cut.txt.gz", &o), ERR_INPUT, "gzip");
    free(bytes);
    free(path);
    tokenizer_close(tok);
}

static const char tiny[] = "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"</s>\":3},\"merges\":[\"a b\"],\"unk_token\":\"a\"}}";

static void test_invalid_text_names_the_line(void **s)
{
    (void)s;
    struct tokenizer *tok;
    assert_ok(tokenizer_parse(&tok, tiny, sizeof tiny - 1, "tiny"));
    struct tokens_options o = {.eos = -1, .bos = -1, .tokenizer = tok};
    temp_write("latin1.txt", "ab\n<|endoftext|>\nb\xE9\n", 20);
    assert_refused(token_opens("latin1.txt", &o), ERR_INPUT, "latin1.txt: document ending at line 3: the text is not valid UTF-8 at byte 1");
    tokenizer_close(tok);
}

static int64_t count_files(const char *dir, const char *end)
{
    char **names;
    int n, hits = 0;
    assert_ok(io_list(dir, &names, &n));
    for (int i = 0; i < n; i++)
        hits += strlen(names[i]) > strlen(end) && strcmp(names[i] + strlen(names[i]) - strlen(end), end) == 0;
    io_names_free(names, n);
    return hits;
}

static void test_cache(void **s)
{
    (void)s;
    struct tokenizer *tok;
    char *dir = temp_path("cache/deep"), **names;
    int n;
    assert_ok(tokenizer_parse(&tok, tiny, sizeof tiny - 1, "tiny"));
    struct tokens_options o = {.V = 4, .eos = 3, .bos = -1, .tokenizer = tok, .cache_dir = dir};
    int32_t want[] = {2, 1, 3}, other[] = {2, 2, 3}, with_bos[] = {0, 2, 1, 3};
    temp_write("c.txt", "abb", 3);
    for (int k = 0; k < 3; k++)
        token_check_stream("c.txt", &o, want, 3, 3);
    assert_int_equal(count_files(dir, ".bin"), 1);
    assert_int_equal(count_files(dir, ".bin.json"), 1);
    assert_ok(io_list(dir, &names, &n));
    char *bin = io_join(dir, names[0]), *side = io_join(dir, names[1]), *bytes;
    size_t size;
    struct stat before, after;
    assert_int_equal(stat(bin, &before), 0);
    token_check_stream("c.txt", &o, want, 3, 3);
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
        token_check_stream("c.txt", &o, want, 3, 3);
        assert_int_equal(io_file_bytes(bin), (int64_t)size);
    }
    bytes[1024] = 9; /* an id beyond the vocabulary */
    assert_ok(io_write_atomic(bin, bytes, size));
    token_check_stream("c.txt", &o, want, 3, 3);
    temp_write("c.txt", "abab", 4); /* another input, then other options: other keys */
    token_check_stream("c.txt", &o, other, 3, 4);
    assert_int_equal(count_files(dir, ".bin"), 2);
    temp_write("c.txt", "abb", 3);
    o.bos = 0;
    token_check_stream("c.txt", &o, with_bos, 4, 3);
    assert_int_equal(count_files(dir, ".bin"), 3);
    /* the same text as .jsonl is another input */
    o.bos = -1;
    o.text_field = "t";
    temp_write("c.jsonl", "{\"t\":\"abb\"}", 11);
    token_check_stream("c.jsonl", &o, want, 3, 3);
    assert_int_equal(count_files(dir, ".bin"), 4);
    struct tokens *t;
    char hex[65], *path = temp_path("c.jsonl");
    assert_ok(sha256_file(path, hex));
    assert_ok(token_try_open("c.jsonl", &o, &t));
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
    assert_ok(token_try_open("large.txt", &o, &t));
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

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {cmocka_unit_test(test_text),
        cmocka_unit_test(test_gzip_damage),
        cmocka_unit_test(test_invalid_text_names_the_line),
        cmocka_unit_test(test_cache),
        cmocka_unit_test(test_large_text)};
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
