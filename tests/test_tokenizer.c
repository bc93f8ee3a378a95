/* Tokenizers: ids equal to those of the Hugging Face library (tests/golden, made by tools/make-tokenizer-goldens), the ids of the
 * real checkpoints' reference.json where the data is there, decoding, refusals by name, and hostile input. */
#include "harness.h"
#include "data/data.h"

static json_t *load_json(const char *path, size_t *n, char **bytes)
{
    json_error_t error;
    assert_ok(io_read_all(path, 64 << 20, bytes, n));
    json_t *root = json_loadb(*bytes, *n, JSON_ALLOW_NUL, &error);
    assert_non_null(root);
    return root;
}

static struct tokenizer *open_value(const json_t *value)
{
    struct tokenizer *t = NULL;
    char *text = json_dumps(value, 0);
    assert_ok(tokenizer_parse(&t, text, strlen(text), "golden"));
    free(text);
    return t;
}

static int same_ids(const json_t *want, const int32_t *ids, int64_t n)
{
    int same = (int64_t)json_array_size(want) == n;
    for (int64_t i = 0; same && i < n; i++)
        same = json_integer_value(json_array_get(want, (size_t)i)) == ids[i];
    return same;
}

static void check_ids(const struct tokenizer *t, const json_t *text, int specials, const json_t *want)
{
    int32_t *ids = NULL;
    int64_t n = -1;
    assert_ok(tokenizer_encode(t, json_string_value(text), json_string_length(text), specials, &ids, &n));
    if (!same_ids(want, ids, n)) {
        char *s = json_dumps(text, JSON_ENCODE_ANY | JSON_ENSURE_ASCII), *w = json_dumps(want, 0);
        print_error("text %s specials %d: wanted %s, found", s, specials, w);
        for (int64_t i = 0; i < n; i++)
            print_error(" %d", ids[i]);
        print_error("\n");
        assert_true(0);
    }
    free(ids);
}

/* The library writes U+FFFD for broken characters, we the bytes: compared where it wrote none. */
static void check_decoded(const struct tokenizer *t, const json_t *ids, const json_t *want)
{
    if (strstr(json_string_value(want), "\xEF\xBF\xBD") != NULL)
        return;
    int32_t v[512];
    size_t count = json_array_size(ids), n = 0;
    assert_true(count <= COUNT_OF(v));
    for (size_t i = 0; i < count; i++)
        v[i] = (int32_t)json_integer_value(json_array_get(ids, i));
    char *text = NULL;
    assert_ok(tokenizer_decode(t, v, (int64_t)count, &text, &n));
    if (n != json_string_length(want) || memcmp(text, json_string_value(want), n) != 0) {
        char *w = json_dumps(want, JSON_ENCODE_ANY | JSON_ENSURE_ASCII);
        print_error("decoded %s, wanted %s\n", text, w);
        assert_true(0);
    }
    free(text);
}

static void check_golden(const char *name)
{
    char path[128], *bytes;
    size_t n, i;
    json_t *c;
    snprintf(path, sizeof path, "tests/golden/tokenizer_%s.json", name);
    json_t *root = load_json(path, &n, &bytes), *cases = json_object_get(root, "cases");
    struct tokenizer *t = open_value(json_object_get(root, "tokenizer"));
    assert_true(json_array_size(cases) >= 200);
    json_array_foreach(cases, i, c) {
        check_ids(t, json_array_get(c, 0), 1, json_array_get(c, 1));
        check_ids(t, json_array_get(c, 0), 0, json_array_get(c, 2));
        check_decoded(t, json_array_get(c, 1), json_array_get(c, 3));
    }
    tokenizer_close(t);
    json_decref(root);
    free(bytes);
}

static void test_golden_gpt2(void **s) { (void)s; check_golden("gpt2"); }
static void test_golden_llama(void **s) { (void)s; check_golden("llama"); }
static void test_golden_llama3(void **s) { (void)s; check_golden("llama3"); }
static void test_golden_metaspace(void **s) { (void)s; check_golden("metaspace"); }
static void test_golden_splits(void **s) { (void)s; check_golden("splits"); }
static void test_golden_gemma(void **s) { (void)s; check_golden("gemma"); }
static void test_golden_falcon(void **s) { (void)s; check_golden("falcon"); }
static void test_golden_words(void **s) { (void)s; check_golden("words"); }

static void test_real_references(void **s)
{
    (void)s;
    static const char *const dirs[] = {"models/babyllama-tok105-hf", "models/stories260K-hf"};
    for (size_t k = 0; k < COUNT_OF(dirs); k++) {
        char *dir = data_path(dirs[k]), *bytes;
        size_t n;
        if (dir == NULL)
            continue;
        struct tokenizer *t;
        assert_ok(tokenizer_open(&t, dir));
        assert_int_equal(tokenizer_bos(t), 1);
        assert_int_equal(tokenizer_eos(t), 2);
        assert_int_equal(tokenizer_vocab(t), k == 0 ? 105 : 512);
        char *path = io_join(dir, "reference.json");
        json_t *root = load_json(path, &n, &bytes);
        check_ids(t, json_object_get(root, "text"), 1, json_object_get(root, "ids"));
        json_decref(root);
        free(bytes);
        free(path);
        free(dir);
        tokenizer_close(t);
    }
}

/* ---- round trips ---- */

static void random_text(uint64_t seed, char *text, size_t *n)
{
    static const char *const parts[] = {"a", "the ", "Straße", "\n\n", "  ", "12345", "e\xCC\x81", "中文", "👩‍👩‍👧", "\t", "<|endoftext|>", "don't", "\x01", "עברית", "!?"};
    *n = 0;
    for (uint64_t i = 0; i < 40; i++) {
        const char *p = parts[random_int(seed, i, 0, (int64_t)COUNT_OF(parts) - 1)];
        memcpy(text + *n, p, strlen(p));
        *n += strlen(p);
    }
}

static void test_byte_level_round_trip(void **s)
{
    (void)s;
    char text[2048], *bytes, *back;
    size_t n, back_n;
    json_t *root = load_json("tests/golden/tokenizer_llama3.json", &n, &bytes);
    json_object_set_new(json_object_get(root, "tokenizer"), "normalizer", json_null());
    struct tokenizer *t = open_value(json_object_get(root, "tokenizer")), *b;
    assert_ok(tokenizer_open(&b, "bytes"));
    for (uint64_t seed = 0; seed < 300; seed++) {
        random_text(seed, text, &n);
        for (int k = 0; k < 2; k++) {
            int32_t *ids;
            int64_t count;
            assert_ok(tokenizer_encode(k ? b : t, text, n, seed & 1, &ids, &count));
            assert_ok(tokenizer_decode(k ? b : t, ids, count, &back, &back_n));
            assert_int_equal(back_n, n);
            assert_memory_equal(back, text, n);
            assert_int_equal(back[n], 0);
            free(ids);
            free(back);
        }
    }
    tokenizer_close(t);
    tokenizer_close(b);
    json_decref(root);
    free(bytes);
}

static void test_bytes(void **s)
{
    (void)s;
    struct tokenizer *t;
    int32_t *ids;
    int64_t n;
    char *text;
    size_t text_n;
    assert_ok(tokenizer_open(&t, "bytes"));
    assert_int_equal(tokenizer_vocab(t), 256);
    assert_int_equal(tokenizer_bos(t), -1);
    assert_int_equal(tokenizer_eos(t), -1);
    assert_string_equal(tokenizer_sha256(t), "bytes");
    assert_ok(tokenizer_encode(t, "\xFF\x00z", 3, 1, &ids, &n)); /* any bytes, no UTF-8 asked for */
    assert_int_equal(n, 3);
    assert_true(ids[0] == 255 && ids[1] == 0 && ids[2] == 'z');
    assert_refused(tokenizer_decode(t, (int32_t[]){256}, 1, &text, &text_n), ERR_INPUT, "256");
    free(ids);
    assert_ok(tokenizer_encode(t, "", 0, 1, &ids, &n));
    assert_int_equal(n, 0);
    assert_non_null(ids);
    free(ids);
    tokenizer_close(t);
}

/* ---- the directory form ---- */

static void test_directory(void **s)
{
    (void)s;
    static const char vocab[] = "{\"a\":0,\"b\":1,\"\\u0120\":2,\"ab\":3,\"\\u0120ab\":4,\"1\":5,\"<|endoftext|>\":6,\"e\":7,\"\\u00cc\":8,\"\\u0123\":9,\"\\u00c3\":10,\"\\u00a9\":11}";
    static const char merges[] = "#version: 0.2\na b\r\n\xC4\xA0 ab\n";
    char *dir = temp_path("gpt2dir");
    struct tokenizer *t;
    assert_refused(tokenizer_open(&t, dir), ERR_IO, "gpt2dir");
    assert_ok(io_mkdirs(dir));
    assert_refused(tokenizer_open(&t, dir), ERR_INPUT, "neither tokenizer.json");
    temp_write("gpt2dir/vocab.json", vocab, sizeof vocab - 1);
    temp_write("gpt2dir/merges.txt", merges, sizeof merges - 1);
    assert_ok(tokenizer_open(&t, dir));
    assert_int_equal(tokenizer_vocab(t), 12);
    assert_int_equal(tokenizer_eos(t), 6);
    assert_int_equal(strlen(tokenizer_sha256(t)), 64);
    int32_t *ids;
    int64_t n;
    assert_ok(tokenizer_encode(t, "ab ab 11<|endoftext|>", 21, 1, &ids, &n));
    int32_t want[] = {3, 4, 2, 5, 5, 6};
    assert_int_equal(n, 6);
    assert_memory_equal(ids, want, sizeof want);
    free(ids);
    tokenizer_close(t);

    static const char config[] = "{\"tokenizer_class\":\"Qwen2Tokenizer\",\"bos_token\":null,\"eos_token\":{\"content\":\"<end>\"},"
                                 "\"added_tokens_decoder\":{\"20\":{\"content\":\"<end>\",\"special\":true,\"normalized\":false}}}";
    temp_write("gpt2dir/tokenizer_config.json", config, sizeof config - 1);
    assert_ok(tokenizer_open(&t, dir));
    assert_int_equal(tokenizer_vocab(t), 13); /* 20 is only a claim: ids follow the vocabulary */
    assert_int_equal(tokenizer_eos(t), 12);
    assert_int_equal(tokenizer_bos(t), -1);
    assert_ok(tokenizer_encode(t, "1e\xCC\x81<end>", 9, 1, &ids, &n)); /* NFC: one character of two bytes */
    int32_t composed[] = {5, 10, 11, 12};
    assert_int_equal(n, 4);
    assert_memory_equal(ids, composed, sizeof composed);
    free(ids);
    tokenizer_close(t);
    temp_write("gpt2dir/merges.txt", "a b\na \xFF\n", 8);
    assert_refused(tokenizer_open(&t, dir), ERR_INPUT, "merges.txt:2");
    temp_write("gpt2dir/merges.txt", "a c\n", 4);
    assert_refused(tokenizer_open(&t, dir), ERR_INPUT, "\"c\" is not in the vocabulary");
    free(dir);
}

static void test_real_gpt2_directory(void **s)
{
    (void)s;
    char *dir = data_path("tokenizers/gpt2");
    if (dir == NULL)
        return;
    struct tokenizer *t;
    int32_t *ids;
    int64_t n;
    assert_ok(tokenizer_open(&t, dir)); /* merges in vocab.bpe */
    assert_int_equal(tokenizer_vocab(t), 50257);
    assert_int_equal(tokenizer_eos(t), 50256);
    assert_ok(tokenizer_encode(t, "Hello world", 11, 1, &ids, &n));
    assert_true(n == 2 && ids[0] == 15496 && ids[1] == 995);
    free(ids);
    tokenizer_close(t);
    free(dir);
}

/* ---- refusals ---- */

#define MODEL "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}"
static const struct { const char *json; enum code code; const char *part; } refusals[] = {
    {"{}", ERR_INPUT, "model"},
    {"[]", ERR_INPUT, "object"},
    {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}", ERR_UNSUPPORTED, "Unigram"},
    {"{\"model\":{\"type\":\"WordPiece\",\"vocab\":{}}}", ERR_UNSUPPORTED, "WordPiece"},
    {"{\"model\":{\"vocab\":{}}}", ERR_UNSUPPORTED, "without merges"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":[],\"merges\":[]}}", ERR_INPUT, "model.vocab"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}}", ERR_INPUT, "\"a\""},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":99999999},\"merges\":[]}}", ERR_INPUT, "\"a\""},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1,\"b\":1},\"merges\":[]}}", ERR_INPUT, "the id 1"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1},\"merges\":{}}}", ERR_INPUT, "model.merges"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1},\"merges\":[\"a\"]}}", ERR_INPUT, "merge 0"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1},\"merges\":[[\"a\",1]]}}", ERR_INPUT, "two strings"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1},\"merges\":[[\"a\",\"a\"]]}}", ERR_INPUT, "\"aa\""},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1},\"merges\":[],\"unk_token\":\"u\"}}", ERR_INPUT, "unk_token"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1},\"merges\":[],\"dropout\":0.1}}", ERR_UNSUPPORTED, "dropout"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1},\"merges\":[],\"continuing_subword_prefix\":\"#\"}}", ERR_UNSUPPORTED, "continuing_subword_prefix"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1},\"merges\":[],\"end_of_word_suffix\":\"</w>\"}}", ERR_UNSUPPORTED, "end_of_word_suffix"},
    {"{" MODEL ",\"normalizer\":{\"type\":\"BertNormalizer\"}}", ERR_UNSUPPORTED, "BertNormalizer"},
    {"{" MODEL ",\"normalizer\":{\"type\":\"Sequence\"}}", ERR_INPUT, "normalizers"},
    {"{" MODEL ",\"normalizer\":3}", ERR_INPUT, "normalizer"},
    {"{" MODEL ",\"normalizer\":{\"type\":\"Replace\",\"content\":\"\",\"pattern\":{}}}", ERR_INPUT, "pattern"},
    {"{" MODEL ",\"pre_tokenizer\":{\"type\":\"UnicodeScripts\"}}", ERR_UNSUPPORTED, "UnicodeScripts"},
    {"{" MODEL ",\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Sideways\",\"pattern\":\"a\"}}", ERR_UNSUPPORTED, "Sideways"},
    {"{" MODEL ",\"pre_tokenizer\":{\"type\":\"Punctuation\",\"behavior\":\"Upwards\"}}", ERR_UNSUPPORTED, "Upwards"},
    {"{" MODEL ",\"pre_tokenizer\":{\"type\":\"Metaspace\",\"prepend_scheme\":\"last\"}}", ERR_INPUT, "last"},
    {"{" MODEL ",\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"\"}}", ERR_INPUT, "empty"},
    {"{" MODEL ",\"decoder\":{\"type\":\"WordPiece\"}}", ERR_UNSUPPORTED, "WordPiece"},
    {"{" MODEL ",\"decoder\":{\"type\":\"Sequence\"}}", ERR_INPUT, "decoders"},
    {"{" MODEL ",\"decoder\":[]}", ERR_INPUT, "decoder"},
    {"{" MODEL ",\"decoder\":{\"type\":\"Strip\",\"content\":\"\"}}", ERR_INPUT, "Strip"},
    {"{" MODEL ",\"decoder\":{\"type\":\"Metaspace\",\"replacement\":\"\"}}", ERR_INPUT, "Metaspace"},
    {"{" MODEL ",\"post_processor\":{\"type\":\"Other\"}}", ERR_UNSUPPORTED, "Other"},
    {"{" MODEL ",\"post_processor\":[]}", ERR_INPUT, "post_processor"},
    {"{" MODEL ",\"post_processor\":{\"type\":\"TemplateProcessing\"}}", ERR_INPUT, "single"},
    {"{" MODEL ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[]}}", ERR_UNSUPPORTED, "no Sequence"},
    {"{" MODEL ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{}},{\"Sequence\":{}}]}}", ERR_UNSUPPORTED, "one Sequence"},
    {"{" MODEL ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"x\"}}]}}", ERR_INPUT, "\"x\""},
    {"{" MODEL ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"x\"}},{\"Sequence\":{}}],\"special_tokens\":{\"x\":{\"ids\":[\"y\"]}}}}", ERR_INPUT, "integers"},
    {"{" MODEL ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"x\"}},{\"Sequence\":{}}],\"special_tokens\":{\"x\":{\"ids\":[7]}}}}", ERR_INPUT, "beyond the vocabulary of 3"},
    {"{" MODEL ",\"post_processor\":{\"type\":\"BertProcessing\",\"cls\":[\"a\"]}}", ERR_INPUT, "cls"},
    {"{" MODEL ",\"post_processor\":{\"type\":\"Sequence\",\"processors\":[{\"type\":\"BertProcessing\",\"cls\":[\"a\",0],\"sep\":[\"b\",1]},{\"type\":\"BertProcessing\"}]}}", ERR_UNSUPPORTED, "two post-processors"},
    {"{" MODEL ",\"added_tokens\":{}}", ERR_INPUT, "array"},
    {"{" MODEL ",\"added_tokens\":[4]}", ERR_INPUT, "added_tokens[0]"},
    {"{" MODEL ",\"added_tokens\":[{\"id\":-1,\"content\":\"x\"}]}", ERR_INPUT, "id"},
};

static enum code parse_text(const char *json)
{
    struct tokenizer *t = NULL;
    enum code c = tokenizer_parse(&t, json, strlen(json), "T");
    if (c != OK)
        assert_null(t);
    tokenizer_close(t);
    return c;
}

static void test_refusals(void **s)
{
    (void)s;
    assert_ok(parse_text("{" MODEL "}"));
    for (size_t i = 0; i < COUNT_OF(refusals); i++) {
        assert_refused(parse_text(refusals[i].json), refusals[i].code, refusals[i].part);
    }
}

static enum code parse_pattern(const char *regex, struct tokenizer **t)
{
    json_t *root = json_pack("{s:{s:s,s:{s:i,s:i,s:i},s:[s]},s:{s:s,s:s,s:{s:s}}}", "model", "type", "BPE", "vocab", "a", 0, "b", 1, "ab", 2,
                             "merges", "a b", "pre_tokenizer", "type", "Split", "behavior", "Isolated", "pattern", "Regex", regex);
    assert_non_null(root);
    char *text = json_dumps(root, 0);
    enum code c = tokenizer_parse(t, text, strlen(text), "T");
    free(text);
    json_decref(root);
    return c;
}

static void test_pattern_refusals(void **s)
{
    (void)s;
    static const char *const bad[][2] = {
        {"[a&&b]", "&&"}, {"[a[^bc]]", "inside a character class"}, {"[a[b]", "unclosed character class"}, {"(?m)a", "(?m)"}, {"(*ACCEPT)", "VERB"}, {"\\Ka", "\\K"}, {"[a", "unclosed"},
        {"a)", "without ("}, {"(a", "cannot be used"}, {"\\u12", "four digits"}, {"\\", "backslash"}, {"\\p{L", "unclosed {"},
        {"[[:alpha", "unclosed [:"}, {"[\\H]", "\\H"}, {"\\p{Klingon}", "cannot be used"}};
    struct tokenizer *t;
    for (size_t i = 0; i < COUNT_OF(bad); i++)
        assert_refused(parse_pattern(bad[i][0], &t), ERR_UNSUPPORTED, bad[i][1]);
    char *deep = calloc(1, 201), *many = malloc(20001);
    memset(deep, '(', 200);
    memset(many, 'a', 20000);
    many[20000] = 0;
    assert_refused(parse_pattern(deep, &t), ERR_UNSUPPORTED, "nested");
    assert_refused(parse_pattern(many, &t), ERR_UNSUPPORTED, "longer than");
    free(deep);
    free(many);
    static const char *const good[] = {"[[:alpha:]\\s\\S\\w\\W\\h]", "\\h+\\H", "\\W|\\S", "\\u0061", "a{,3}", "a{b}", "a{", "(?:a){1,2}+", "(?i:x)|[]a]|[^]a]", "[a[b-]-[-c]]", "", "\\bab?"};
    for (size_t i = 0; i < COUNT_OF(good); i++) {
        int32_t *ids;
        int64_t n;
        assert_ok(parse_pattern(good[i], &t));
        assert_ok(tokenizer_encode(t, "a b\xC3\xA9 b", 7, 1, &ids, &n));
        free(ids);
        tokenizer_close(t);
    }
}

static void test_hostile_pattern_stops(void **s)
{
    (void)s;
    struct tokenizer *t;
    int32_t *ids;
    int64_t n;
    char text[64];
    memset(text, 'a', sizeof text);
    text[62] = 'b'; /* no match, but the c that the pattern needs is there */
    text[63] = 'c';
    assert_ok(parse_pattern("(?:(?:a+)+)+c", &t));
    double started = host_seconds();
    assert_refused(tokenizer_encode(t, text, sizeof text, 1, &ids, &n), ERR_INPUT, "fails on this text");
    assert_true(host_seconds() - started < 5);
    assert_null(ids);
    tokenizer_close(t);
}

static void test_truncation(void **s)
{
    (void)s;
    static const char json[] =
        "{\"added_tokens\":[{\"id\":3,\"content\":\"<x>\",\"special\":true}],\"normalizer\":{\"type\":\"NFC\"},\"pre_tokenizer\":{\"type\":\"ByteLevel\"},"
        "\"post_processor\":{\"type\":\"BertProcessing\",\"cls\":[\"a\",0],\"sep\":[\"b\",1]},\"decoder\":{\"type\":\"ByteLevel\"}," MODEL "}";
    struct tokenizer *t = NULL;
    for (size_t n = 0; n < sizeof json - 1; n++) {
        assert_int_equal(tokenizer_parse(&t, json, n, "T"), ERR_INPUT);
        assert_null(t);
    }
    assert_ok(tokenizer_parse(&t, json, sizeof json - 1, "T"));
    tokenizer_close(t);
}

static void test_invalid_utf8(void **s)
{
    (void)s;
    static const char *const bad[] = {"a\xFF", "a\xC3", "a\xC0\x80", "a\xED\xA0\x80", "a\xF4\x90\x80\x80", "a\xE0\x80\x80", "a\xE4\xB8", "a\x80", "a\xF0\x80\x80\x80", ("a\xE4" "b\x80")};
    struct tokenizer *t;
    int32_t *ids;
    int64_t n;
    assert_ok(parse_pattern(".", &t));
    for (size_t i = 0; i < COUNT_OF(bad); i++)
        assert_refused(tokenizer_encode(t, bad[i], strlen(bad[i]), 1, &ids, &n), ERR_INPUT, "byte 1");
    tokenizer_close(t);
}

/* A single word of a million characters must cost n log n, not n squared. */
static void test_long_word(void **s)
{
    (void)s;
    struct tokenizer *t;
    enum { N = 1000000 };
    static const char json[] = "{" MODEL "}";
    char *text = malloc(N);
    for (int i = 0; i < N; i++)
        text[i] = i % 2 ? 'b' : 'a';
    int32_t *ids;
    int64_t n;
    assert_ok(tokenizer_parse(&t, json, sizeof json - 1, "T"));
    double started = host_seconds();
    assert_ok(tokenizer_encode(t, text, N, 1, &ids, &n));
    assert_true(host_seconds() - started < 20);
    assert_int_equal(n, N / 2);
    for (int i = 0; i < N / 2; i++)
        assert_int_equal(ids[i], 2);
    char *back;
    size_t back_n;
    assert_refused(tokenizer_decode(t, (int32_t[]){0, 5}, 2, &back, &back_n), ERR_INPUT, "id 5");
    assert_refused(tokenizer_decode(t, (int32_t[]){-1}, 1, &back, &back_n), ERR_INPUT, "id -1");
    free(ids);
    free(text);
    tokenizer_close(t);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_gpt2), cmocka_unit_test(test_golden_llama), cmocka_unit_test(test_golden_llama3),
        cmocka_unit_test(test_golden_metaspace), cmocka_unit_test(test_golden_splits), cmocka_unit_test(test_golden_gemma), cmocka_unit_test(test_golden_falcon), cmocka_unit_test(test_golden_words),
        cmocka_unit_test(test_real_references), cmocka_unit_test(test_real_gpt2_directory), cmocka_unit_test(test_byte_level_round_trip),
        cmocka_unit_test(test_bytes), cmocka_unit_test(test_directory), cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_pattern_refusals), cmocka_unit_test(test_hostile_pattern_stops), cmocka_unit_test(test_truncation),
        cmocka_unit_test(test_invalid_utf8), cmocka_unit_test(test_long_word)};
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
