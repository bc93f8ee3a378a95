/* The readers of what holds text; see readers.h: token files with what lies beside them, text, JSON lines, tokenizers (as they are, and as a GGUF file
 * takes them over), a teacher's cache, configs. */
#include <zlib.h>

#include "checkpoints/gguf_tokenizer.h"
#include "data/data.h"
#include "readers.h"

/* ---- tokens ------------------------------------------------------------------------------------------------------------ */

static enum code read_tokens(const char *path, uint64_t *sum)
{
    struct tokenizer *bytes = NULL;
    struct tokens *t;
    TRY(tokenizer_open(&bytes, "bytes"));
    struct tokens_options o = {.V = 300, .eos = 256, .bos = 257, .tokenizer = bytes};
    enum code c = tokens_open(&t, path, &o);
    if (c == OK) {
        int32_t ids[256];
        int64_t n = tokens_count(t), text = tokens_bytes(t);
        CHECK(n > 0 && n <= 256);
        tokens_get(t, 0, n, ids);
        *sum = damage_add(damage_add(0, ids, 4 * (size_t)n), &text, 8);
        tokens_close(t);
    }
    tokenizer_close(bytes);
    return c;
}

/* Through a cache of its tokens, made new every time. */
static enum code read_cached(const char *path, uint64_t *sum)
{
    struct tokenizer *bytes = NULL;
    struct tokens *t = NULL;
    char *dir = temp_path("cache");
    if (!dir)
        return fail(ERR_MEMORY, "no memory for the test's path");
    enum code c = io_remove_tree(dir);
    if (c == OK)
        c = tokenizer_open(&bytes, "bytes");
    struct tokens_options o = {.V = 300, .eos = 256, .bos = -1, .tokenizer = bytes, .cache_dir = dir};
    for (int again = 0; c == OK && again < 2; again++)
        if ((c = tokens_open(&t, path, &o)) == OK) {
            int32_t ids[256];
            CHECK(tokens_count(t) <= 256);
            tokens_get(t, 0, tokens_count(t), ids);
            *sum = damage_add(again ? *sum : 0, ids, 4 * (size_t)tokens_count(t));
            tokens_close(t);
        }
    if (bytes)
        tokenizer_close(bytes);
    free(dir);
    return c;
}

static void put_le(unsigned char *p, uint64_t v, int width)
{
    for (int i = 0; i < width; i++)
        p[i] = (unsigned char)(v >> 8 * i);
}

static void put_gz(const char *name, const char *text)
{
    char *path = temp_path(name);
    gzFile f = gzopen(path, "wb");
    assert_int_equal(gzwrite(f, text, (unsigned)strlen(text)), (int)strlen(text));
    gzclose(f);
    free(path);
}

static void make_tokens(void)
{
    unsigned char bin[1024 + 16] = {0}, idx[34 + 2 * 12 + 3 * 8] = "MMIDIDX";
    put_le(bin, 20240520, 4), put_le(bin + 4, 1, 4), put_le(bin + 8, 8, 4);
    for (int i = 0; i < 8; i++)
        put_le(bin + 1024 + 2 * i, (uint64_t)(i * 40), 2);
    damage_put("t.bin", bin, sizeof bin);
    damage_text("t.bin.json", "{\"dtype\": \"uint16\", \"vocab\": 300, \"tokenizer_sha256\": \"\", \"bytes\": 12, \"eos\": 2, \"input_sha256\": null, \"tokens\": 8}");
    damage_text("t.bin.mask", "\1\1\1\1\1\1\1\1");
    put_le(idx + 9, 1, 8), idx[17] = 8, put_le(idx + 18, 2, 8), put_le(idx + 26, 3, 8);
    put_le(idx + 34, 3, 4), put_le(idx + 38, 5, 4), put_le(idx + 42, 0, 8), put_le(idx + 50, 6, 8);
    put_le(idx + 66, 1, 8), put_le(idx + 74, 2, 8);
    damage_put("m.idx", idx, sizeof idx);
    damage_put("m.bin", bin + 1024, 16);
    damage_put("r.npy", bin + 1024, 16);
    damage_text("l.jsonl", "{\"text\": \"one\"}\n{\"text\": \"two \\u00e9\", \"x\": [1, {}]}\n");
    put_gz("z.jsonl.gz", "{\"text\": \"one\"}\n{\"text\": \"two \\u00e9\", \"x\": [1, {}]}\n");
    damage_text("x.txt", "one\n<|endoftext|>\ntwo and two\n");
}

struct readers readers_tokens(void)
{
    static const struct reader subjects[] = {
        {"llm.c tokens with sidecar and mask", "t.bin", read_tokens, 300}, {"Megatron tokens", "m.idx", read_tokens, 300},
        {"headerless tokens", "r.npy", read_tokens, 300},                  {"JSON lines, gzip", "z.jsonl.gz", read_tokens, 300},
        {"text", "x.txt", read_tokens, 300},                               {"JSON lines through a cache", "l.jsonl", read_cached, 300},
    };
    static int made;
    if (!made++)
        make_tokens();
    return (struct readers){subjects, COUNT_OF(subjects)};
}

/* ---- tokenizers -------------------------------------------------------------------------------------------------------- */

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

static void corpus_copy(const char *from, const char *to)
{
    char *bytes;
    size_t n;
    assert_ok(io_read_all(from, 1 << 20, &bytes, &n));
    const char *nul = n ? memchr(bytes, 0, n) : NULL; /* where a target takes its text from behind it */
    damage_put(to, bytes, nul && !strstr(from, "sentencepiece") ? (size_t)(nul - bytes) : n);
    free(bytes);
}

static void make_tokenizers(void)
{
    static const char *const folders[] = {"words", "gguf"};
    for (size_t i = 0; i < COUNT_OF(folders); i++) {
        char *dir = temp_path(folders[i]);
        assert_ok(io_mkdirs(dir));
        free(dir);
    }
    corpus_copy("tests/fuzz/corpus/tokenizer_json/llama", "llama.json");
    corpus_copy("tests/fuzz/corpus/tokenizer_json/qwen", "qwen.json");
    corpus_copy("tests/fuzz/corpus/tokenizer_json/metaspace", "metaspace.json");
    corpus_copy("tests/fuzz/corpus/gguf_tokenizer/bytes.json", "gguf/tokenizer.json");
    corpus_copy("tests/fuzz/corpus/gguf_tokenizer/sentencepiece", "gguf/tokenizer.model");
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

/* ---- a teacher's cache, configs ---------------------------------------------------------------------------------------- */

enum { T = 3, K = 2, V = 50, WINDOWS = 3 };

static enum code write_teacher(const char *path, int64_t from, int64_t to)
{
    static const int32_t ids[T * K] = {1, 2, 3, 4, 5, 49};
    static const float logp[T * K] = {-0.5f, -1, -0.25f, -2, -0.125f, -4};
    struct teacher_writer *w;
    json_t *facts = json_pack("{s:{s:s}, s:{s:s}}", "key", "teacher", "0123abcd", "about", "teacher", "models/big");
    struct teacher_about about = {K, T, V, WINDOWS, facts};
    enum code c = facts ? teacher_writer_open(&w, path, &about) : fail(ERR_MEMORY, "no memory for the test's facts");
    if (c == OK) {
        for (int64_t i = from; c == OK && i < to; i++)
            c = teacher_writer_has(w, i) ? OK : teacher_writer_add(w, i, ids, logp);
        if (c == OK)
            c = teacher_writer_commit(w);
        teacher_writer_close(w);
    }
    json_decref(facts);
    return c;
}

static enum code read_teacher(const char *path, uint64_t *sum)
{
    struct teacher_cache *t;
    int32_t ids[T * K];
    float logp[T * K];
    TRY(teacher_cache_open(&t, path));
    enum code c = OK;
    *sum = (uint64_t)teacher_cache_count(t);
    for (int64_t i = 0; c == OK && i < WINDOWS; i++)
        if (teacher_cache_has(t, i) && (c = teacher_cache_read(t, i, ids, logp)) == OK)
            *sum = damage_add(damage_add(*sum, ids, sizeof ids), logp, sizeof logp);
    teacher_cache_close(t);
    return c;
}

static enum code grow_teacher(const char *path, uint64_t *sum)
{
    *sum = 1;
    return write_teacher(path, 0, 1);
}

static enum code read_config(const char *path, uint64_t *sum)
{
    char *overrides[] = {"a.b=3", "list=[x, 'y z']"};
    struct config *config;
    TRY(config_load(&config, path, 2, overrides));
    json_t *j = config_to_json(config_root(config));
    char *yaml = j ? config_json_to_yaml(j) : NULL, *text = j ? json_text(j, JSON_COMPACT) : NULL;
    if (yaml && text)
        *sum = damage_add(damage_add(0, text, strlen(text)), yaml, strlen(yaml));
    enum code c = yaml && text ? OK : fail(ERR_MEMORY, "no memory for the config as text");
    if (!json_starved())
        free(text);
    free(yaml);
    json_decref(j);
    config_free(config);
    return c;
}

static void make_others(void)
{
    char *path = temp_path("a.topk"), *grow = temp_path("grow.topk");
    assert_ok(write_teacher(path, 0, 2));
    assert_ok(write_teacher(grow, 1, 3));
    damage_text("c.yaml", "# of a test\na: {b: 1, c: \"two\\n\"}\nlist:\n  - 1.5\n  - on\n  - {x: ~}\ntext: |\n  lines\n  of it\n");
    free(path);
    free(grow);
}

struct readers readers_others(void)
{
    static const struct reader subjects[] = {
        {"a teacher's cache", "a.topk", read_teacher, 300},
        {"a teacher's cache that grows", "grow.topk", grow_teacher, 300},
        {"a config with overrides", "c.yaml", read_config, 300},
    };
    static int made;
    if (!made++)
        make_others();
    return (struct readers){subjects, COUNT_OF(subjects)};
}
