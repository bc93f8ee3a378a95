/* safetensors headers and shard indices: every malformed case by name, truncation at every byte, every bit flipped, and
 * random headers there and back. */
#include "harness.h"

#include <unistd.h>

#include "checkpoints/safetensors.h"

/* A whole file: the JSON with its length before it and `data` bytes behind it. */
static enum code parse_n(const char *json, size_t length, uint64_t claimed, int64_t data)
{
    unsigned char head[8];
    struct st_header h;
    int64_t n;
    for (int i = 0; i < 8; i++)
        head[i] = (unsigned char)(claimed >> (8 * i));
    int64_t file_bytes = 8 + (int64_t)length + data;
    enum code c = st_length(head, file_bytes, ST_HEADER_DEFAULT, "x.safetensors", &n);
    if (c == OK)
        c = st_parse(&h, json, n, file_bytes, "x.safetensors");
    if (c == OK)
        st_free(&h);
    return c;
}

static enum code parse(const char *json, int64_t data) { return parse_n(json, strlen(json), strlen(json), data); }

#define ONE "{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}"

static void test_accepted(void **state)
{
    (void)state;
    assert_ok(parse(ONE, 24));
    assert_ok(parse("   \n\t" ONE, 24));      /* leading white space: the reference reader takes it */
    assert_ok(parse(ONE "        ", 24));     /* padding */
    assert_ok(parse("{}", 0));
    assert_ok(parse("{\"__metadata__\":{\"format\":\"pt\"}}", 0));
    assert_ok(parse("{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}", 4));      /* empty shape: a scalar */
    assert_ok(parse("{\"a\":{\"dtype\":\"F32\",\"shape\":[2,0],\"data_offsets\":[0,0]}}", 0));   /* zero sized */
    assert_ok(parse("{\"a\":{\"dtype\":\"F4\",\"shape\":[2,1],\"data_offsets\":[0,1]}}", 1));
    assert_ok(parse("{\"b\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[2,10]},"
                    "\"a\":{\"dtype\":\"F8_E4M3\",\"shape\":[2],\"data_offsets\":[0,2]},"
                    "\"c\":{\"dtype\":\"BOOL\",\"shape\":[0],\"data_offsets\":[2,2]}}", 10));
}

static void test_named_malformed_cases(void **state)
{
    (void)state;
    /* header_too_small, header_too_large, invalid_header_length */
    assert_refused(parse_n("", 0, 0, -8), ERR_INPUT, "too few for a safetensors file");
    assert_refused(parse_n(ONE, strlen(ONE), 100000001, 24), ERR_INPUT, "safetensors allows 100000000");
    assert_refused(parse_n(ONE, strlen(ONE), UINT64_MAX, 24), ERR_INPUT, "claims 18446744073709551615 bytes");
    assert_refused(parse_n(ONE, strlen(ONE), 50000000, 24), ERR_INPUT, "raise the header limit");
    assert_refused(parse_n(ONE, strlen(ONE), strlen(ONE) + 25, 24), ERR_INPUT, "the file has");
    /* non_utf8, not_json */
    assert_refused(parse("{\"\xff\xfe\":1}", 0), ERR_INPUT, "unable to decode byte 0xff");
    assert_refused(parse("{", 0), ERR_INPUT, "not valid JSON");
    assert_refused(parse("", 0), ERR_INPUT, "not valid JSON");
    assert_refused(parse("[]", 0), ERR_INPUT, "expected a JSON object");
    assert_refused(parse(ONE "x", 24), ERR_INPUT, "not valid JSON");
    /* duplicate keys */
    assert_refused(parse("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
                         "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8), ERR_INPUT, "duplicate");
    /* json_attack: ten tensors on the same bytes */
    char attack[2048] = "{";
    for (int i = 0; i < 10; i++)
        snprintf(attack + strlen(attack), sizeof attack - strlen(attack),
                 "%s\"t%d\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]}", i ? "," : "", i);
    strcat(attack, "}");
    assert_refused(parse(attack, 16), ERR_INPUT, "tensors overlap");
    /* hole, and not from zero */
    assert_refused(parse("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
                         "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[5,9]}}", 9), ERR_INPUT, "there is a hole");
    assert_refused(parse("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4,8]}}", 8), ERR_INPUT, "there is a hole");
    /* incomplete_buffer, both ways */
    assert_refused(parse(ONE, 22), ERR_INPUT, "it is truncated");
    assert_refused(parse(ONE, 30), ERR_INPUT, "extra bytes behind them");
    /* invalid_info */
    assert_refused(parse("{\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,4]}}", 4), ERR_INPUT, "shape and dtype need 16 bytes");
    assert_refused(parse("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4), ERR_INPUT, "begin <= end");
    assert_refused(parse("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4), ERR_INPUT, "[begin, end]");
    assert_refused(parse("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4), ERR_INPUT, "[begin, end]");
    assert_refused(parse("{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4), ERR_INPUT, "\"shape\" must be");
    assert_refused(parse("{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4), ERR_INPUT, "needs \"dtype\"");
    assert_refused(parse("{\"a\":7}", 0), ERR_INPUT, "needs \"dtype\"");
    assert_refused(parse("{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4), ERR_INPUT, "\"shape\" must be");
    assert_refused(parse("{\"a\":{\"dtype\":\"F32\",\"shape\":[1.0],\"data_offsets\":[0,4]}}", 4), ERR_INPUT, "\"shape\" must be");
    assert_refused(parse("{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4), ERR_INPUT, "at most 8");
    assert_refused(parse("{\"a\":{\"dtype\":\"F31\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4), ERR_INPUT, "unknown dtype \"F31\"");
    assert_refused(parse("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":1}}", 4), ERR_INPUT, "unknown member \"x\"");
    /* validation_overflow: the shape, and shape times dtype */
    assert_refused(parse("{\"a\":{\"dtype\":\"F32\",\"shape\":[9223372036854775807,2],\"data_offsets\":[0,4]}}", 4), ERR_INPUT, "overflows");
    assert_refused(parse("{\"a\":{\"dtype\":\"F32\",\"shape\":[2305843009213693952,2],\"data_offsets\":[0,16]}}", 16), ERR_INPUT, "overflows");
    assert_refused(parse("{\"a\":{\"dtype\":\"F32\",\"shape\":[9223372036854775808],\"data_offsets\":[0,4]}}", 4), ERR_INPUT, "");
    /* fp4 misaligned */
    assert_refused(parse("{\"a\":{\"dtype\":\"F4\",\"shape\":[1,3],\"data_offsets\":[0,2]}}", 2), ERR_INPUT, "no whole bytes");
    /* metadata */
    assert_refused(parse("{\"__metadata__\":{\"a\":1}}", 0), ERR_INPUT, "is no string");
    assert_refused(parse("{\"__metadata__\":[]}", 0), ERR_INPUT, "object of strings");
}

/* A real file of about 4 KB, made by our writer of headers. */
static size_t small_file(unsigned char **file)
{
    struct st_tensor t[6] = {0};
    char names[6][32], *head;
    size_t n;
    int64_t at = 0;
    for (int i = 0; i < 6; i++) {
        snprintf(names[i], sizeof names[i], "layer.%d.weight", i);
        t[i] = (struct st_tensor){.name = names[i], .dtype = i < 3 ? DT_F32 : DT_BF16, .nd = 2, .n = {10 + i, 12}, .begin = at};
        at += t[i].n[0] * 12 * (i < 3 ? 4 : 2);
        t[i].end = at;
    }
    assert_ok(st_header_make(t, 6, &head, &n, "small"));
    assert_int_equal(n % 8, 0);
    assert_int_equal(head[8], '{');
    assert_non_null(memmem(head + 8, n - 8, "\"format\":\"pt\"", 13)); /* the header has no NUL after it */
    *file = calloc(1, n + (size_t)at);
    memcpy(*file, head, n);
    free(head);
    return n + (size_t)at;
}

static enum code open_file(const char *name)
{
    char *path = temp_path(name);
    struct st_header h;
    int fd;
    enum code c = st_open(&h, &fd, path, ST_HEADER_DEFAULT);
    if (c == OK) {
        close(fd);
        st_free(&h);
    }
    free(path);
    return c;
}

static void test_truncated_at_every_byte(void **state)
{
    (void)state;
    unsigned char *file;
    size_t n = small_file(&file);
    assert_true(n > 2500);
    temp_write("cut", file, n);
    assert_ok(open_file("cut"));
    char *path = temp_path("cut");
    for (size_t cut = n; cut-- > 0;) {
        assert_int_equal(truncate(path, (off_t)cut), 0);
        assert_int_equal(open_file("cut"), ERR_INPUT);
        assert_non_null(strstr(fail_text(), path));
    }
    free(path);
    free(file);
    assert_refused(open_file("absent"), ERR_IO, "absent");
    char *dir = temp_path(".");
    struct st_header h;
    int fd;
    assert_int_equal(st_open(&h, &fd, dir, ST_HEADER_DEFAULT), ERR_INPUT);
    free(dir);
}

/* A flipped bit in the header is refused, or leaves a table that still tiles the file (a changed letter of a name). */
static void test_every_bit_flipped(void **state)
{
    (void)state;
    unsigned char *file;
    size_t n = small_file(&file);
    int64_t length = 0;
    assert_ok(st_length(file, (int64_t)n, ST_HEADER_DEFAULT, "small", &length));
    int accepted = 0;
    for (int64_t bit = 0; bit < 8 * (8 + length); bit++) {
        struct st_header h;
        int64_t claimed;
        file[bit / 8] ^= (unsigned char)(1 << bit % 8);
        enum code c = st_length(file, (int64_t)n, ST_HEADER_DEFAULT, "small", &claimed);
        if (c == OK)
            c = st_parse(&h, (char *)file + 8, claimed, (int64_t)n, "small");
        if (c == OK) {
            int64_t end = 0;
            for (int i = 0; i < h.count; i++) {
                assert_int_equal(h.tensors[i].begin, end);
                end = h.tensors[i].end;
            }
            assert_int_equal(h.data + end, (int64_t)n);
            accepted++;
            st_free(&h);
        } else {
            assert_int_equal(c, ERR_INPUT);
        }
        file[bit / 8] ^= (unsigned char)(1 << bit % 8);
    }
    assert_true(accepted > 0 && accepted < 4 * length);
    free(file);
}

static void test_random_round_trip(void **state)
{
    (void)state;
    static const enum dtype types[] = {DT_F32, DT_BF16, DT_F16, DT_F64, DT_I64, DT_U8, DT_BOOL};
    for (uint64_t seed = 0; seed < 50; seed++) {
        struct st_tensor t[8] = {0};
        char names[8][64], *head;
        size_t n;
        int64_t at = 0;
        int count = (int)random_int(seed, 0, 0, 8);
        for (int i = 0; i < count; i++) {
            snprintf(names[i], sizeof names[i], "x\"\\\xc3\xa9/%d.%llu", i, (unsigned long long)seed);
            t[i].name = names[i];
            t[i].dtype = types[random_int(seed, 100 + (uint64_t)i, 0, 6)];
            t[i].nd = (int)random_int(seed, 200 + (uint64_t)i, 0, 8);
            int64_t size = (int64_t)dtype_bytes(t[i].dtype);
            for (int d = 0; d < t[i].nd; d++)
                size *= t[i].n[d] = random_int(seed, 300 + (uint64_t)(8 * i + d), d ? 1 : 0, 4);
            t[i].begin = at;
            t[i].end = at += size;
        }
        assert_ok(st_header_make(t, count, &head, &n, "random"));
        struct st_header h;
        int64_t length;
        assert_ok(st_length((unsigned char *)head, (int64_t)n + at, ST_HEADER_DEFAULT, "random", &length));
        assert_ok(st_parse(&h, head + 8, length, (int64_t)n + at, "random"));
        assert_int_equal(h.count, count);
        for (int i = 0; i < count; i++) {
            int j = 0;
            while (strcmp(h.tensors[j].name, t[i].name) != 0)
                assert_true(++j < count);
            assert_int_equal(h.tensors[j].dtype, t[i].dtype);
            assert_int_equal(h.tensors[j].nd, t[i].nd);
            assert_int_equal(h.tensors[j].begin, t[i].begin);
            assert_int_equal(h.tensors[j].end, t[i].end);
            assert_memory_equal(h.tensors[j].n, t[i].n, sizeof t[i].n);
        }
        st_free(&h);
        free(head);
    }
}

/* ---- index -------------------------------------------------------------------------------------------------------- */

static enum code index_of(const char *text)
{
    struct st_index x;
    enum code c = st_index_parse(&x, text, strlen(text), "index.json");
    if (c == OK)
        st_index_free(&x);
    return c;
}

static void test_index(void **state)
{
    (void)state;
    static const char text[] = "{\"metadata\": {\"total_size\": 1}, \"weight_map\": {\"b\": \"2.safetensors\", \"a\": \"1.safetensors\","
                               " \"c\": \"1.safetensors\"}}";
    struct st_index x;
    assert_ok(st_index_parse(&x, text, sizeof text - 1, "index.json"));
    assert_int_equal(x.n_files, 2);
    assert_int_equal(x.count, 3);
    assert_string_equal(x.files[st_index_find(&x, "b")->file], "2.safetensors");
    assert_string_equal(x.files[st_index_find(&x, "c")->file], "1.safetensors");
    assert_null(st_index_find(&x, "d"));
    st_index_free(&x);
    for (size_t cut = 0; cut < sizeof text - 1; cut++)
        assert_int_equal(st_index_parse(&x, text, cut, "index.json"), ERR_INPUT);
    assert_refused(index_of("{}"), ERR_INPUT, "weight_map");
    assert_refused(index_of("{\"weight_map\": []}"), ERR_INPUT, "weight_map");
    assert_refused(index_of("{\"weight_map\": {}}"), ERR_INPUT, "empty");
    assert_refused(index_of("{\"weight_map\": {\"a\": 1}}"), ERR_INPUT, "must name a file");
    assert_refused(index_of("{\"weight_map\": {\"a\": \"../x\"}}"), ERR_INPUT, "leaves the directory");
    assert_refused(index_of("{\"weight_map\": {\"a\": \"x/../../y\"}}"), ERR_INPUT, "leaves the directory");
    assert_refused(index_of("{\"weight_map\": {\"a\": \"/etc/passwd\"}}"), ERR_INPUT, "leaves the directory");
    assert_refused(index_of("{\"weight_map\": {\"a\": \"\"}}"), ERR_INPUT, "leaves the directory");
    assert_refused(index_of("{\"weight_map\": {\"a\": \"x\\u0000y\"}}"), ERR_INPUT, "");
    assert_ok(index_of("{\"weight_map\": {\"a\": \"mod\xc3\xa8le 1.safetensors\"}}"));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accepted),
        cmocka_unit_test(test_named_malformed_cases),
        cmocka_unit_test(test_truncated_at_every_byte),
        cmocka_unit_test(test_every_bit_flipped),
        cmocka_unit_test(test_random_round_trip),
        cmocka_unit_test(test_index),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
