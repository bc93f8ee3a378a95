/* Bytes of text by token (data.h): the lengths of a text's tokens add up to the length of what the decoder makes of all of them, for every text of the
 * tokenizers' goldens. */
#include "harness.h"
#include "data/data.h"

static void check_sum(const struct tokenizer *t, struct text_bytes *b, const json_t *list)
{
    int32_t ids[512];
    size_t n = json_array_size(list), length = 0;
    int64_t sum = 0;
    char *text = NULL;
    assert_true(n <= COUNT_OF(ids));
    for (size_t i = 0; i < n; i++) {
        ids[i] = (int32_t)json_integer_value(json_array_get(list, i));
        assert_ok(text_bytes_add(b, i ? ids[i - 1] : -1, ids[i], &sum));
    }
    assert_ok(tokenizer_decode(t, ids, (int64_t)n, &text, &length));
    if (sum != (int64_t)length)
        print_error("\"%s\": %zu bytes, by tokens %lld\n", text, length, (long long)sum);
    assert_int_equal(sum, (int64_t)length);
    free(text);
}

static void test_lengths_of_tokens_add_up(void **state)
{
    (void)state;
    static const char *const names[] = {"gpt2", "llama", "llama3", "metaspace", "splits", "gemma", "falcon"};
    int cases = 0;
    for (size_t k = 0; k < COUNT_OF(names); k++) {
        char path[128];
        size_t i;
        json_error_t error;
        json_t *c, *root;
        struct tokenizer *t = NULL;
        struct text_bytes *b = NULL;
        snprintf(path, sizeof path, "tests/golden/tokenizer_%s.json", names[k]);
        assert_non_null(root = json_load_file(path, JSON_ALLOW_NUL, &error));
        char *text = json_text(json_object_get(root, "tokenizer"), 0);
        assert_ok(tokenizer_parse(&t, text, strlen(text), "golden"));
        free(text);
        assert_ok(text_bytes_open(&b, t, 1 << 18, tokenizer_bos(t), -1));
        json_array_foreach(json_object_get(root, "cases"), i, c) {
            check_sum(t, b, json_array_get(c, 2));
            cases++;
        }
        text_bytes_close(b);
        tokenizer_close(t);
        json_decref(root);
    }
    assert_true(cases > 1000);
}

/* What begins a document is measured as such behind bos and eos; marks and unknown ids have no text. */
static void test_documents_begin_behind_their_marks(void **state)
{
    (void)state;
    struct tokenizer *t = NULL;
    struct text_bytes *b = NULL;
    static const char text[] = "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"<s>\":0,\"\xE2\x96\x81\":1,\"a\":2,\"\xE2\x96\x81" "a\":3},\"merges\":[\"\xE2\x96\x81 a\"]},"
                               "\"added_tokens\":[{\"id\":0,\"content\":\"<s>\",\"special\":true}],"
                               "\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"\xE2\x96\x81\",\"prepend_scheme\":\"first\"},"
                               "\"decoder\":{\"type\":\"Metaspace\",\"replacement\":\"\xE2\x96\x81\",\"prepend_scheme\":\"first\"}}";
    assert_ok(tokenizer_parse(&t, text, sizeof text - 1, "small"));
    assert_ok(text_bytes_open(&b, t, 9, 0, 8));
    static const struct { int32_t before, id; int64_t bytes; } cases[] = {
        {-1, 3, 1}, {0, 3, 1}, {8, 3, 1}, {2, 3, 2}, {2, 2, 1}, {0, 2, 1}, {2, 0, 0}, {2, 7, 0}, {2, 8, 0}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        int64_t sum = 100;
        assert_ok(text_bytes_add(b, cases[i].before, cases[i].id, &sum));
        if (sum != 100 + cases[i].bytes)
            print_error("case %zu: %lld\n", i, (long long)sum - 100);
        assert_int_equal(sum, 100 + cases[i].bytes);
    }
    text_bytes_close(b);
    tokenizer_close(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_lengths_of_tokens_add_up), cmocka_unit_test(test_documents_begin_behind_their_marks)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
