/* The readers of what is no model; see readers.h: token files with what lies beside them, text, JSON lines, a teacher's cache, configs, files as such. */
#include "data/data.h"
#include "input_files.h"
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

static void make_tokens(void)
{
    input_tokens();
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

/* Files as base/ copies, lists, locks and removes them. */
static enum code read_files(const char *path, uint64_t *sum)
{
    struct io_lock lock = {-1, 0, 0}, share = {-1, 0, 0};
    int64_t space = -1;
    int n;
    size_t size;
    char *bytes, **names, *to = io_join(path, "made/by/copying"), *from = io_join(path, "one"), *made = io_join(path, "made");
    enum code c = to && from && made ? io_remove_tree(made) : fail(ERR_MEMORY, "no memory for the test's paths");
    if (c == OK)
        c = io_lock_take(path, &lock);
    io_lock_drop(&lock);
    if (c == OK)
        c = io_lock_share(path, &share);
    io_lock_drop(&share);
    if (c == OK)
        c = io_mkdirs(made);
    if (c == OK && (c = io_free_bytes(to, &space)) == OK)
        *strrchr(to, '/') = 0;
    if (c == OK && (c = io_mkdirs(to)) == OK)
        *strrchr(to, 0) = '/';
    if (c == OK)
        c = io_copy_file(from, to);
    if (c == OK && (c = io_read_all(to, 1 << 20, &bytes, &size)) == OK) {
        *sum = damage_add(space >= 0, bytes, size);
        free(bytes);
    }
    if (c == OK && (c = io_list(path, &names, &n)) == OK) {
        for (int i = 0; i < n; i++)
            *sum = damage_add(*sum, names[i], strlen(names[i]));
        io_names_free(names, n);
    }
    free(to), free(from), free(made);
    return c;
}

static void make_others(void)
{
    char *files = temp_path("files");
    assert_ok(io_mkdirs(files));
    damage_text("files/one", "one\n");
    free(files);
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
        {"files copied, listed, locked", "files", read_files, 300},
    };
    static int made;
    if (!made++)
        make_others();
    return (struct readers){subjects, COUNT_OF(subjects)};
}
