/* The readers of tokenizers; see readers.h: as they are, and as a GGUF file takes them over. */
#include "checkpoints/gguf_tokenizer.h"
#include "data/data.h"
#include "input_files.h"
#include "readers.h"

static enum code read_tokenizer(const char *path, uint64_t *sum)
{
    static const char text[] = "aab  abba\xc3\xb6, don't 1234 <s>\n ab ba";
    struct tokenizer *t;
    TRY(tokenizer_open(&t, path));
    int64_t ends[3] = {tokenizer_bos(t), tokenizer_eos(t), tokenizer_vocab(t)}, n;
    int32_t *ids;
    *sum = damage_add(0, ends, sizeof ends);
    enum code c = OK;
    for (int special = 0; c == OK && special < 2; special++) {
        c = tokenizer_encode(t, text, sizeof text - 1, special, &ids, &n);
        if (c == OK) {
            char *back;
            size_t size;
            *sum = damage_add(*sum, ids, 4 * (size_t)n);
            c = tokenizer_decode(t, ids, n, &back, &size);
            if (c == OK) {
                *sum = damage_add(*sum, back, size);
                free(back);
            }
            free(ids);
        } else if (c == ERR_INPUT) /* a text that it has no token for is refused by name, which is a reading too */
            c = OK;
    }
    tokenizer_close(t);
    return c;
}

static enum code read_folder(const char *path, uint64_t *sum)
{
    char *dir = strdup(path);
    if (!dir)
        return fail(ERR_MEMORY, "no memory for the test's path");
    *strrchr(dir, '/') = 0;
    enum code c = read_tokenizer(dir, sum);
    free(dir);
    return c;
}

static enum code read_gguf(const char *path, uint64_t *sum)
{
    char *bytes;
    size_t n;
    struct arch a;
    struct gguf_buffer b = {0};
    TRY(io_read_all(path, 1 << 20, &bytes, &n));
    enum code c = arch_init(&a, 1);
    if (c == OK) {
        a.V = 300;
        struct ckpt_companion file = {strrchr(path, '/') + 1, bytes, n};
        c = gguf_tokenizer(&b, &a, &file, 1, "m", path);
        if (c == OK && b.failed)
            c = fail(ERR_MEMORY, "no memory for the header");
        *sum = damage_add(0, b.bytes, b.n);
        gguf_buffer_free(&b);
        arch_free(&a);
    }
    free(bytes);
    return c;
}

static void make_tokenizers(void)
{
    static const char *const folders[] = {"words", "gguf"};
    for (size_t i = 0; i < COUNT_OF(folders); i++) {
        char *dir = temp_path(folders[i]);
        assert_ok(io_mkdirs(dir));
        free(dir);
    }
    input_corpus("tests/fuzz/corpus/tokenizer_json/llama", "llama.json");
    input_corpus("tests/fuzz/corpus/tokenizer_json/qwen", "qwen.json");
    input_corpus("tests/fuzz/corpus/tokenizer_json/metaspace", "metaspace.json");
    input_corpus("tests/fuzz/corpus/gguf_tokenizer/bytes.json", "gguf/tokenizer.json");
    input_corpus("tests/fuzz/corpus/gguf_tokenizer/sentencepiece", "gguf/tokenizer.model");
    damage_text("words/vocab.json", "{\"!\":0,\"a\":1,\"b\":2,\"ab\":3,\"\\u0120\":4,\"\\u0120a\":5,\"<|endoftext|>\":6}");
    damage_text("words/merges.txt", "#version: 0.2\na b\n\xc4\xa0 a\n");
    damage_text("words/tokenizer_config.json", "{\"tokenizer_class\": \"GPT2Tokenizer\", \"bos_token\": \"<|endoftext|>\", \"added_tokens_decoder\": {\"7\": {\"content\": \"<x>\"}}}");
}

struct readers readers_tokenizers(void)
{
    static const struct reader subjects[] = {
        {"tokenizer.json, llama", "llama.json", read_tokenizer, 300},
        {"tokenizer.json, qwen", "qwen.json", read_tokenizer, 300},
        {"tokenizer.json, metaspace", "metaspace.json", read_tokenizer, 300},
        {"vocab.json and merges.txt", "words/vocab.json", read_folder, 300},
        {"tokenizer.json to GGUF", "gguf/tokenizer.json", read_gguf, 300},
        {"tokenizer.model to GGUF", "gguf/tokenizer.model", read_gguf, 300},
    };
    static int made;
    if (!made++)
        make_tokenizers();
    return (struct readers){subjects, COUNT_OF(subjects)};
}
