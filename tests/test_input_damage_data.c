/* R4 and R5 of what holds text: token files and what lies beside them, JSON lines, tokenizers. See test_input_damage.c. */
#include "checkpoints/gguf_tokenizer.h"
#include "damage.h"
#include "data/data.h"
#include "input_files.h"

/* ---- tokens and tokenizers ---------------------------------------------------------------------------------------- */

static enum code tokens_sum(const char *name, enum data_format format, uint64_t *sum)
{
    static struct tokenizer *bytes;
    struct tokens *t;
    if (!bytes)
        assert_ok(tokenizer_open(&bytes, "bytes"));
    struct tokens_options o = {.format = format, .V = 300, .eos = -1, .bos = -1, .tokenizer = bytes};
    char *path = temp_path(name);
    enum code c = tokens_open(&t, path, &o);
    free(path);
    TRY(c);
    int64_t n = tokens_count(t), text = tokens_bytes(t);
    int32_t *ids = malloc(4 * (size_t)n + 4);
    tokens_get(t, 0, n, ids);
    *sum = damage_add(damage_add(0, ids, 4 * (size_t)n), &text, 8);
    free(ids);
    tokens_close(t);
    return OK;
}

static enum code read_tokens(const char *name, uint64_t *sum) { return tokens_sum(name, DATA_AUTO, sum); }
static enum code read_beside(const char *name, uint64_t *sum) { (void)name; return tokens_sum("t.bin", DATA_AUTO, sum); }
static enum code read_pair(const char *name, uint64_t *sum) { (void)name; return tokens_sum("m.idx", DATA_AUTO, sum); }

static void test_tokens(void **state)
{
    (void)state;
    static const struct damage_subject subjects[] = {
        {"llm.c .bin", "t.bin", read_tokens, DAMAGE_SEEN, DAMAGE_PARTIAL},       {"FILE.json", "t.bin.json", read_beside, DAMAGE_SEEN, DAMAGE_PARTIAL},
        {"FILE.mask", "t.bin.mask", read_beside, DAMAGE_SEEN, DAMAGE_PARTIAL},   {"Megatron .idx", "m.idx", read_pair, DAMAGE_SEEN, DAMAGE_PARTIAL},
        {"Megatron .bin", "m.bin", read_pair, DAMAGE_SEEN, DAMAGE_PARTIAL},      {"headerless .npy", "r.npy", read_tokens, DAMAGE_PARTIAL, DAMAGE_PARTIAL},
        {"JSON lines", "l.jsonl", read_tokens, DAMAGE_PARTIAL, DAMAGE_PARTIAL},  {"JSON lines, gzip", "z.jsonl.gz", read_tokens, DAMAGE_SEEN, DAMAGE_PARTIAL},
        {"text, gzip", "z.txt.gz", read_tokens, DAMAGE_PARTIAL, DAMAGE_PARTIAL}, /* its first byte alone is text */
    };
    input_tokens();
    input_gz("z.txt.gz", "one\n<|endoftext|>\ntwo and two and two and two\n");
    for (size_t i = 0; i < COUNT_OF(subjects); i++) {
        struct damage_count c = damage_cut(&subjects[i], 1);
        damage_print("cut", &subjects[i], &c);
        assert_true(subjects[i].cut != DAMAGE_SEEN || c.refused == c.cases);
        assert_true(c.other <= (strstr(subjects[i].name, "text, gzip") ? 1 : 100));
        c = damage_flip(&subjects[i], 0, -1, 1);
        damage_print("bit", &subjects[i], &c);
    }
}

static enum code tokenizer_sum(const char *path, uint64_t *sum)
{
    static const char text[] = "Hello  w\xc3\xb6rld, don't 1234 <s>\n ab ba";
    struct tokenizer *t;
    int32_t *ids;
    int64_t n, ends[3];
    TRY(tokenizer_open(&t, path));
    ends[0] = tokenizer_bos(t), ends[1] = tokenizer_eos(t), ends[2] = tokenizer_vocab(t);
    *sum = damage_add(0, ends, sizeof ends);
    for (int special = 0; special < 2; special++) /* a text that a tokenizer has no token for is refused by name, which is a reading too */
        if (tokenizer_encode(t, text, sizeof text - 1, special, &ids, &n) == OK) {
            *sum = damage_add(*sum, ids, 4 * (size_t)n);
            free(ids);
        }
    tokenizer_close(t);
    return OK;
}

static enum code read_tokenizer(const char *name, uint64_t *sum)
{
    char *path = temp_path(name);
    enum code c = tokenizer_sum(path, sum);
    free(path);
    return c;
}

static enum code read_tokenizer_folder(const char *name, uint64_t *sum)
{
    char *dir = damage_folder(name);
    enum code c = tokenizer_sum(dir, sum);
    free(dir);
    return c;
}

/* As a GGUF file takes it over. */
static enum code read_gguf(const char *name, uint64_t *sum)
{
    char *path = temp_path(name), *bytes;
    size_t n;
    struct arch a;
    struct gguf_buffer b = {0};
    assert_ok(io_read_all(path, 1 << 20, &bytes, &n));
    assert_ok(arch_init(&a, 1));
    a.V = 300;
    struct ckpt_companion file = {strrchr(path, '/') + 1, bytes, n};
    enum code c = gguf_tokenizer(&b, &a, &file, 1, "m", name);
    *sum = damage_add(0, b.bytes, b.n);
    gguf_buffer_free(&b);
    arch_free(&a);
    free(bytes);
    free(path);
    return c;
}

static void test_tokenizers(void **state)
{
    (void)state;
    static const struct damage_subject subjects[] = {
        {"tokenizer.json, llama", "llama.json", read_tokenizer, DAMAGE_SEEN, DAMAGE_PARTIAL},
        {"tokenizer.json, qwen", "qwen.json", read_tokenizer, DAMAGE_SEEN, DAMAGE_PARTIAL},
        {"tokenizer.json, metaspace", "metaspace.json", read_tokenizer, DAMAGE_SEEN, DAMAGE_PARTIAL},
        {"vocab.json", "words/vocab.json", read_tokenizer_folder, DAMAGE_SEEN, DAMAGE_PARTIAL},
        {"merges.txt", "words/merges.txt", read_tokenizer_folder, DAMAGE_PARTIAL, DAMAGE_PARTIAL},
        {"tokenizer_config.json", "words/tokenizer_config.json", read_tokenizer_folder, DAMAGE_SEEN, DAMAGE_PARTIAL},
        {"tokenizer.json to GGUF", "gguf/tokenizer.json", read_gguf, DAMAGE_SEEN, DAMAGE_PARTIAL},
        {"tokenizer.model to GGUF", "gguf/tokenizer.model", read_gguf, DAMAGE_PARTIAL, DAMAGE_PARTIAL},
    };
    char *words = temp_path("words"), *gguf = temp_path("gguf");
    assert_ok(io_mkdirs(words));
    assert_ok(io_mkdirs(gguf));
    input_corpus("tests/fuzz/corpus/tokenizer_json/llama", "llama.json");
    input_corpus("tests/fuzz/corpus/tokenizer_json/qwen", "qwen.json");
    input_corpus("tests/fuzz/corpus/tokenizer_json/metaspace", "metaspace.json");
    input_corpus("tests/fuzz/corpus/gguf_tokenizer/bytes.json", "gguf/tokenizer.json");
    input_corpus("tests/fuzz/corpus/gguf_tokenizer/sentencepiece", "gguf/tokenizer.model");
    damage_text("words/vocab.json", "{\"!\":0,\"a\":1,\"b\":2,\"ab\":3,\"\\u0120\":4,\"\\u0120a\":5,\"<|endoftext|>\":6}");
    damage_text("words/merges.txt", "#version: 0.2\na b\n\xc4\xa0 a\n");
    damage_text("words/tokenizer_config.json", "{\"tokenizer_class\": \"GPT2Tokenizer\", \"bos_token\": \"<|endoftext|>\", \"added_tokens_decoder\": {\"7\": {\"content\": \"<x>\"}}}");
    for (size_t i = 0; i < COUNT_OF(subjects); i++) {
        int large = subjects[i].read == read_gguf && i == COUNT_OF(subjects) - 1;
        struct damage_count c = damage_cut(&subjects[i], large && !damage_soak() ? 3 : 1);
        damage_print("cut", &subjects[i], &c);
        c = damage_flip(&subjects[i], 0, -1, damage_soak() ? 1 : large ? 11 : 3);
        damage_print("bit", &subjects[i], &c);
    }
    free(words);
    free(gguf);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_tokens), cmocka_unit_test(test_tokenizers)};
    log_quiet(1);
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
