/* Tokenizers in GGUF files: tokens, types, scores, merges, the splitter's name, special tokens, templates; and tokenizer files that
 * are no such thing. Whether llama.cpp then gives the same ids is tools/check-llamacpp. */
#include "checkpoints/checkpoint.h"
#include "gguf_check.h"
#include "harness.h"
#include "hf_case.h"
#include "small_checkpoint.h"

static char *source, *target;

/* A small model with V tokens in a directory without tokenizer files. */
static void begin(int64_t V)
{
    struct arch a;
    small_arch(&a, 6, 3, DT_F32);
    a.V = a.original_vocab = V;
    free(source);
    free(target);
    source = temp_path("model");
    target = temp_path("model.gguf");
    assert_ok(io_remove_tree(source));
    small_write(source, &a, 1, 1, NULL);
    arch_free(&a);
}

static void put(const char *name, const char *text) { hf_put(source, name, text, strlen(text)); }

static enum code convert(void)
{
    gguf_check_hush(1);
    enum code c = hf_copy(source, target, DT_NONE, 0, 1);
    gguf_check_hush(0);
    return c;
}

static struct gguf_file converted(void)
{
    struct gguf_file f;
    assert_ok(convert());
    gguf_check_open(&f, target);
    return f;
}

static int token_is(const struct gguf_file *f, uint64_t i, const char *text)
{
    size_t n;
    const char *token = gguf_check_text(f, "tokenizer.ggml.tokens", i, &n);
    return n == strlen(text) && !memcmp(token, text, n);
}

static int type_of(const struct gguf_file *f, uint64_t i) { return gguf_check_i32(f, "tokenizer.ggml.token_type", i); }

/* tests/golden/NAME's tokenizer becomes the model's. */
static json_t *golden(const char *name)
{
    json_t *root;
    char path[128];
    snprintf(path, sizeof path, "tests/golden/%s", name);
    assert_non_null(root = json_load_file(path, JSON_ALLOW_NUL, NULL)); /* its cases hold NULs */
    json_t *tokenizer = json_incref(json_object_get(root, "tokenizer"));
    char *text = json_dumps(tokenizer, 0);
    put("tokenizer.json", text);
    free(text);
    json_decref(root);
    return tokenizer;
}

/* The texts of merge i, joined by `between`. */
static void merge_text(const json_t *merge, const char *between, char out[512])
{
    char copy[512];
    const char *text = json_string_value(merge);
    if (text) {
        snprintf(copy, sizeof copy, "%s", text);
        char *space = strchr(copy + 1, ' ');
        *space = 0;
        snprintf(out, 512, "%.200s%s%.200s", copy, between, space + 1);
    } else {
        snprintf(out, 512, "%.200s%s%.200s", json_string_value(json_array_get(merge, 0)), between, json_string_value(json_array_get(merge, 1)));
    }
}

static void pieces(void **state)
{
    (void)state;
    begin(640);
    json_t *tokenizer = golden("tokenizer_llama.json"), *model = json_object_get(tokenizer, "model"), *vocab = json_object_get(model, "vocab"), *merge;
    struct gguf_file f = converted();
    assert_true(gguf_check_is(&f, "tokenizer.ggml.model", "llama") && gguf_check_is(&f, "tokenizer.ggml.pre", "default"));
    assert_int_equal(gguf_check_length(&f, "tokenizer.ggml.tokens"), 640);
    assert_int_equal(gguf_check_length(&f, "tokenizer.ggml.scores"), 640);
    assert_int_equal(gguf_check_length(&f, "tokenizer.ggml.token_type"), 640);
    const char *text;
    json_t *id;
    json_object_foreach (vocab, text, id)
        assert_true(token_is(&f, (uint64_t)json_integer_value(id), text));
    assert_true(token_is(&f, 639, "[PAD639]") && type_of(&f, 639) == 5);
    assert_int_equal(type_of(&f, (uint64_t)json_integer_value(json_object_get(vocab, "<0x0A>"))), 6);
    assert_int_equal(type_of(&f, (uint64_t)json_integer_value(json_object_get(vocab, "<s>"))), 3);
    assert_int_equal(type_of(&f, (uint64_t)json_integer_value(json_object_get(vocab, "<unk>"))), 2);
    size_t rank;
    json_array_foreach (json_object_get(model, "merges"), rank, merge) { /* the score is that of the first merge that makes the token */
        char joined[512];
        merge_text(merge, "", joined);
        uint64_t token = (uint64_t)json_integer_value(json_object_get(vocab, joined));
        double score = gguf_check_real(&f, "tokenizer.ggml.scores", token);
        assert_true(score >= -(double)rank);
        if (score < -(double)rank + 0.5)
            continue;
        merge_text(json_array_get(json_object_get(model, "merges"), (size_t)-score), "", joined);
        assert_true(token_is(&f, token, joined));
    }
    assert_true(gguf_check_bool(&f, "tokenizer.ggml.add_space_prefix") && gguf_check_bool(&f, "tokenizer.ggml.add_bos_token"));
    assert_true(!gguf_check_bool(&f, "tokenizer.ggml.add_eos_token"));
    assert_int_equal(gguf_check_u32(&f, "tokenizer.ggml.bos_token_id"), json_integer_value(json_object_get(vocab, "<s>")));
    gguf_check_close(&f);
    json_decref(tokenizer);

    json_decref(golden("tokenizer_gemma.json"));
    f = converted();
    assert_true(gguf_check_is(&f, "tokenizer.ggml.model", "llama") && !gguf_check_bool(&f, "tokenizer.ggml.add_space_prefix"));
    gguf_check_close(&f);
}

static void bytes(void **state)
{
    (void)state;
    begin(420);
    json_t *tokenizer = golden("tokenizer_llama3.json"), *merges = json_object_get(json_object_get(tokenizer, "model"), "merges");
    struct gguf_file f = converted();
    size_t n;
    char joined[512];
    assert_true(gguf_check_is(&f, "tokenizer.ggml.model", "gpt2") && gguf_check_is(&f, "tokenizer.ggml.pre", "llama-bpe"));
    assert_int_equal(gguf_check_length(&f, "tokenizer.ggml.merges"), json_array_size(merges));
    assert_null(gguf_check_value(&f, "tokenizer.ggml.scores"));
    for (size_t i = 0; i < json_array_size(merges); i++) {
        const char *merge = gguf_check_text(&f, "tokenizer.ggml.merges", i, &n);
        merge_text(json_array_get(merges, i), " ", joined);
        assert_true(n == strlen(joined) && !memcmp(merge, joined, n));
    }
    gguf_check_close(&f);
    json_decref(tokenizer);
    json_decref(golden("tokenizer_metaspace.json")); /* neither bytes nor pieces with bytes */
    f = converted();
    assert_true(gguf_check_is(&f, "tokenizer.ggml.model", "no_vocab") && !gguf_check_value(&f, "tokenizer.ggml.tokens"));
    gguf_check_close(&f);
}

/* A byte-level tokenizer of five tokens around this pre_tokenizer and these members. */
static void put_small(const char *pre, const char *model, const char *rest)
{
    char text[4096];
    snprintf(text, sizeof text, "{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2, \"c\": 3}, \"merges\": [\"a b\"]%s}, "
             "\"pre_tokenizer\": %s%s}", model, pre, rest);
    put("tokenizer.json", text);
}

#define BYTES "{\"type\": \"ByteLevel\", \"use_regex\": false}"
#define SPLIT(pattern) "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", \"pattern\": {\"Regex\": \"" pattern "\"}}, " BYTES "]}"
#define LLAMA3 "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"
#define QWEN2 "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\r\\n]*|\\\\s*[\\r\\n]+|\\\\s+(?!\\\\S)|\\\\s+"

static void splitters(void **state)
{
    (void)state;
    static const struct { const char *pre, *model, *name; } cases[] = {
        {"{\"type\": \"ByteLevel\"}", "", "gpt-2"},
        {"{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"ByteLevel\", \"use_regex\": true}]}", "", "gpt-2"},
        {SPLIT(LLAMA3), ", \"ignore_merges\": true", "llama-bpe"},
        {SPLIT(LLAMA3), "", "dbrx"},
        {SPLIT(QWEN2), "", "qwen2"}, /* line ends as characters, not as escapes */
        {SPLIT("\\\\w+"), "", "default"},
        {"{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Digits\", \"individual_digits\": true}, {\"type\": \"ByteLevel\"}]}", "", "starcoder"},
        {"{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Digits\"}, {\"type\": \"ByteLevel\"}]}", "", "default"},
    };
    begin(6);
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        put_small(cases[i].pre, cases[i].model, "");
        struct gguf_file f = converted();
        if (!gguf_check_is(&f, "tokenizer.ggml.pre", cases[i].name))
            print_error("case %zu is not %s\n", i, cases[i].name);
        assert_true(gguf_check_is(&f, "tokenizer.ggml.pre", cases[i].name));
        gguf_check_close(&f);
    }
}

static void specials(void **state)
{
    (void)state;
    begin(8);
    put_small(BYTES, "", ", \"added_tokens\": [{\"id\": 4, \"content\": \"<s>\", \"special\": true}, {\"id\": 5, \"content\": \"user\", \"special\": false}, "
              "{\"id\": 99, \"content\": \"out\", \"special\": true}], \"post_processor\": {\"type\": \"Sequence\", \"processors\": [{\"type\": \"ByteLevel\"}, "
              "{\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": {\"id\": \"<s>\"}}, {\"Sequence\": {\"id\": \"A\"}}]}]}");
    struct gguf_file f = converted();
    assert_true(type_of(&f, 3) == 1 && type_of(&f, 4) == 3 && type_of(&f, 5) == 4 && type_of(&f, 6) == 3 && type_of(&f, 7) == 5);
    assert_true(token_is(&f, 6, "out")); /* numbered by its place, as the tokenizers library does */
    assert_true(gguf_check_bool(&f, "tokenizer.ggml.add_bos_token") && gguf_check_u32(&f, "tokenizer.ggml.bos_token_id") == 4);
    assert_null(gguf_check_value(&f, "tokenizer.chat_template"));
    gguf_check_close(&f);

    put("tokenizer_config.json", "{\"add_bos_token\": false, \"add_eos_token\": true, \"bos_token\": {\"content\": \"user\"}, \"eos_token\": \"ab\", "
        "\"pad_token\": \"c\", \"unk_token\": null, \"chat_template\": [{\"name\": \"tool\", \"template\": \"t\"}, {\"name\": \"default\", \"template\": \"d {{ x }}\"}]}");
    f = converted();
    assert_true(!gguf_check_bool(&f, "tokenizer.ggml.add_bos_token") && gguf_check_bool(&f, "tokenizer.ggml.add_eos_token"));
    assert_true(gguf_check_u32(&f, "tokenizer.ggml.bos_token_id") == 5 && gguf_check_u32(&f, "tokenizer.ggml.eos_token_id") == 2);
    assert_true(gguf_check_u32(&f, "tokenizer.ggml.padding_token_id") == 3 && !gguf_check_value(&f, "tokenizer.ggml.unknown_token_id"));
    assert_true(gguf_check_is(&f, "tokenizer.chat_template", "d {{ x }}"));
    gguf_check_close(&f);

    put("tokenizer_config.json", "{\"tokenizer_class\": \"LlamaTokenizerFast\", \"chat_template\": \"plain\"}");
    put("chat_template.jinja", "from a file");
    put_small(BYTES, "", "");
    f = converted();
    assert_true(gguf_check_bool(&f, "tokenizer.ggml.add_bos_token") && gguf_check_u32(&f, "tokenizer.ggml.bos_token_id") == 1); /* config.json's */
    assert_true(gguf_check_is(&f, "tokenizer.chat_template", "from a file"));
    gguf_check_close(&f);
}

static void parts(void **state)
{
    (void)state;
    begin(8);
    put("vocab.json", "{\"a\": 0, \"b\": 1, \"ab\": 2, \"\\u0120a\": 3}");
    put("merges.txt", "#version: 0.2\r\na b\r\n\xc4\xa0 a\n");
    put("tokenizer_config.json", "{\"tokenizer_class\": \"Qwen2Tokenizer\", \"added_tokens_decoder\": {\"4\": {\"content\": \"<|endoftext|>\", \"special\": true}}}");
    struct gguf_file f = converted();
    size_t n;
    assert_true(gguf_check_is(&f, "tokenizer.ggml.model", "gpt2") && gguf_check_is(&f, "tokenizer.ggml.pre", "qwen2"));
    assert_true(token_is(&f, 4, "<|endoftext|>") && type_of(&f, 4) == 3 && gguf_check_length(&f, "tokenizer.ggml.merges") == 2);
    assert_memory_equal(gguf_check_text(&f, "tokenizer.ggml.merges", 1, &n), "\xc4\xa0 a", 4);
    gguf_check_close(&f);
    put("tokenizer_config.json", "{\"tokenizer_class\": \"GPT2Tokenizer\"}");
    f = converted();
    assert_true(gguf_check_is(&f, "tokenizer.ggml.pre", "gpt-2"));
    gguf_check_close(&f);
    put("merges.txt", "a b\n#version a\n"); /* a comment in the first line alone */
    f = converted();
    assert_int_equal(gguf_check_length(&f, "tokenizer.ggml.merges"), 2);
    gguf_check_close(&f);
    put("merges.txt", "a b\n\xff a\n");
    assert_refused(convert(), ERR_INPUT, "not UTF-8");
}

/* A field of a protocol buffer: number << 3 | type, then a varint, four bytes, or a length below 128 and bytes. */
static void field(char *out, size_t *n, int number, int type, const void *bytes, size_t size)
{
    out[(*n)++] = (char)(number << 3 | type);
    if (type == 2)
        out[(*n)++] = (char)size;
    memcpy(out + *n, bytes, size);
    *n += size;
}

static void piece(char *out, size_t *n, const char *text, float score, char type)
{
    char inner[128];
    size_t size = 0;
    field(inner, &size, 1, 2, text, strlen(text));
    field(inner, &size, 2, 5, &score, 4);
    if (type != 1)
        field(inner, &size, 3, 0, &type, 1);
    field(out, n, 1, 2, inner, size);
}

static void sentencepiece(void **state)
{
    (void)state;
    static char model[8192];
    char text[8], inner[8];
    size_t n = 0, size = 0;
    piece(model, &n, "<unk>", 0, 2);
    piece(model, &n, "<s>", 0, 3);
    for (int b = 0; b < 256; b++) {
        snprintf(text, sizeof text, "<0x%02X>", (unsigned)b);
        piece(model, &n, text, 0, 6);
    }
    piece(model, &n, "ab", -1.5f, 1);
    piece(model, &n, "mine", -7, 4);
    field(inner, &size, 3, 0, "\2", 1); /* BPE */
    field(model, &n, 2, 2, inner, size);
    size = 0;
    field(inner, &size, 3, 0, "\0", 1); /* no space before the text */
    field(model, &n, 3, 2, inner, size);
    begin(264);
    hf_put(source, "tokenizer.model", model, n);
    put("tokenizer_config.json", "{\"bos_token\": \"<s>\", \"add_bos_token\": true}");
    struct gguf_file f = converted();
    assert_true(gguf_check_is(&f, "tokenizer.ggml.model", "llama") && !gguf_check_bool(&f, "tokenizer.ggml.add_space_prefix"));
    assert_true(type_of(&f, 0) == 2 && type_of(&f, 1) == 3 && type_of(&f, 2) == 6 && type_of(&f, 258) == 1 && type_of(&f, 259) == 4 && type_of(&f, 260) == 5);
    assert_true(token_is(&f, 258, "ab") && gguf_check_real(&f, "tokenizer.ggml.scores", 258) == -1.5 && token_is(&f, 259, "mine"));
    gguf_check_close(&f);
    for (size_t cut = 0; cut < 700; cut += 3) { /* whatever is cut off, it is refused or makes a file */
        hf_put(source, "tokenizer.model", model + (cut > 350), cut > 350 ? n - cut : cut);
        enum code c = convert();
        assert_true(c == OK || c == ERR_INPUT);
    }
    assert_true(hf_no_temporaries());
}

/* llama.cpp aborts on a text that occurs twice, and throws where a model called phi-3 lacks some tokens. */
static void traps(void **state)
{
    (void)state;
    begin(8);
    put("tokenizer.json", "{\"model\": {\"vocab\": {\"a\": 0, \"[PAD5]\": 1, \"\": 2, \"b\": 4}, \"merges\": []}, \"pre_tokenizer\": {\"type\": \"ByteLevel\"}}");
    struct gguf_file f = converted();
    for (uint64_t i = 0; i < 8; i++)
        for (uint64_t k = 0; k < i; k++) {
            size_t n, m;
            const char *x = gguf_check_text(&f, "tokenizer.ggml.tokens", i, &n), *y = gguf_check_text(&f, "tokenizer.ggml.tokens", k, &m);
            assert_true(n > 0 && !(n == m && !memcmp(x, y, n)));
        }
    assert_true(token_is(&f, 1, "[PAD5]") && type_of(&f, 1) == 1 && type_of(&f, 5) == 5 && type_of(&f, 2) == 5);
    gguf_check_close(&f);
    free(target);
    target = temp_path("Tiny-Phi-3.gguf");
    f = converted();
    assert_null(gguf_check_value(&f, "general.name"));
    gguf_check_close(&f);
}

static void hostile(void **state)
{
    (void)state;
    static const struct { const char *text, *part; } refused[] = {
        {"[]", "tokenizer.json"},
        {"{\"a\": 1, \"a\": 2}", "tokenizer.json"},
        {"{\"model\": {\"type\": \"BPE\"}, \"pre_tokenizer\": {\"type\": \"ByteLevel\"}}", "no \"vocab\""},
        {"{\"model\": {\"vocab\": {\"a\": \"0\"}}, \"pre_tokenizer\": {\"type\": \"ByteLevel\"}}", "has no id"},
        {"{\"model\": {\"vocab\": {\"a\": -1}}, \"pre_tokenizer\": {\"type\": \"ByteLevel\"}}", "has no id"},
        {"{\"model\": {\"vocab\": {\"a\": 0}, \"merges\": [5]}, \"pre_tokenizer\": {\"type\": \"ByteLevel\"}}", "merge 0"},
        {"{\"model\": {\"vocab\": {\"a\": 0}, \"merges\": [[\"a\"]]}, \"pre_tokenizer\": {\"type\": \"ByteLevel\"}}", "merge 0"},
        {"{\"model\": {\"vocab\": {\"a\": 0}}, \"added_tokens\": [{\"id\": 3}], \"pre_tokenizer\": {\"type\": \"ByteLevel\"}}", "no content"},
    };
    static const char *const without[] = {
        "{}", "{\"model\": 5}", "{\"model\": {\"type\": \"Unigram\", \"vocab\": [[\"a\", 0.5]]}}", "{\"model\": {\"type\": \"WordPiece\", \"vocab\": {}}}",
        "{\"model\": {\"vocab\": {\"a\": 0}}}", "{\"model\": {\"vocab\": {\"a\": 0}, \"byte_fallback\": true, \"merges\": [1]}}",
    };
    begin(8);
    for (size_t i = 0; i < COUNT_OF(refused); i++) {
        put("tokenizer.json", refused[i].text);
        assert_refused(convert(), ERR_INPUT, refused[i].part);
    }
    for (size_t i = 0; i < COUNT_OF(without); i++) {
        put("tokenizer.json", without[i]);
        struct gguf_file f = converted();
        assert_true(gguf_check_is(&f, "tokenizer.ggml.model", "no_vocab"));
        gguf_check_close(&f);
    }
    put("tokenizer.json", "{\"model\": {\"vocab\": {\"a\": 9223372036854775807, \"b\": 8, \"c\": 7}, \"merges\": []}, \"pre_tokenizer\": {\"type\": \"ByteLevel\"}, "
        "\"added_tokens\": [{\"content\": \"a\"}, {\"content\": \"new\"}]}");
    struct gguf_file f = converted(); /* tokens beyond the embedding are left out */
    assert_true(token_is(&f, 7, "c") && type_of(&f, 0) == 5);
    gguf_check_close(&f);
    assert_true(hf_no_temporaries());
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(pieces), cmocka_unit_test(bytes), cmocka_unit_test(splitters), cmocka_unit_test(specials),
        cmocka_unit_test(parts),  cmocka_unit_test(sentencepiece), cmocka_unit_test(traps), cmocka_unit_test(hostile),
    };
    int status = harness_main(argc, argv, tests, COUNT_OF(tests));
    free(source);
    free(target);
    return status;
}
