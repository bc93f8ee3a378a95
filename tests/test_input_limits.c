/* P1 beyond damage: files made to be slow, large or endless. Each is refused with a sentence, within a second of processor time. */
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "checkpoints/checkpoint.h"
#include "damage.h"
#include "data/data.h"
#include "input_files.h"

struct text { char *p; size_t n, capacity; };

static void add(struct text *t, const char *format, ...) PRINTF_LIKE(2, 3);
static void add(struct text *t, const char *format, ...)
{
    va_list args;
    if (t->n + 512 > t->capacity) {
        t->capacity = 2 * t->capacity + (1 << 16);
        t->p = realloc(t->p, t->capacity);
        assert_non_null(t->p);
    }
    va_start(args, format);
    t->n += (size_t)vsnprintf(t->p + t->n, 512, format, args);
    va_end(args);
}

static void add_times(struct text *t, const char *what, int64_t times)
{
    for (int64_t i = 0; i < times; i++)
        add(t, "%s", what);
}

static void text_free(struct text *t)
{
    free(t->p);
    *t = (struct text){0};
}

static double cpu(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Under sanitizers everything takes several times as long. */
#if defined(__SANITIZE_ADDRESS__)
static const double SLOWER = 10;
#else
static const double SLOWER = 1;
#endif

static void within(const char *what, double start, double limit)
{
    double spent = cpu() - start;
    printf("%-44s %.3f s\n", what, spent);
    if (spent > limit * SLOWER)
        print_error("%s took %.2f s of processor time, allowed are %.2f\n", what, spent, limit * SLOWER);
    assert_true(spent <= limit * SLOWER);
}

/* ---- YAML (R26) --------------------------------------------------------------------------------------------------- */

static void bomb(const char *what, struct text *t, const char *part)
{
    struct config *c = NULL;
    double start = cpu();
    if (t->n > 1 << 20)
        t->n = 1 << 20;
    enum code code = config_parse(&c, t->p, t->n, "bomb.yaml");
    if (code != ERR_USAGE || !strstr(fail_text(), part) || strncmp(fail_text(), "bomb.yaml", 9))
        print_error("%s: code %d, \"%s\", wanted \"%s\"\n", what, (int)code, code == OK ? "" : fail_text(), part);
    assert_int_equal(code, ERR_USAGE);
    assert_non_null(strstr(fail_text(), part));
    within(what, start, 0.5);
    text_free(t);
}

static void test_yaml_bombs(void **state)
{
    (void)state;
    struct text t = {0};
    static const struct { const char *what, *piece, *part; } pieces[] = {
        {"yaml: [ at depth", "[", "deeper than 32"},   {"yaml: { at depth", "{", ""},          {"yaml: - at depth", "- ", "deeper than 32"},
        {"yaml: ? at depth", "? ", "plain word"},      {"yaml: key in key", "a: ", ""},        {"yaml: anchors", "&a ", ""},
        {"yaml: documents", "--- a\n...\n", "second"}, {"yaml: version lines", "%YAML 1.1\n", ""}, {"yaml: tabs", "a: 1\n\t", ""},
        {"yaml: NULs", "a\\0", ""},                    {"yaml: quotes", "'", ""},              {"yaml: a tag of escapes", "!<%41", ""},
        {"yaml: BOMs", "\xef\xbb\xbf", ""},            {"yaml: aliases", "*a ", ""},
    };
    for (size_t i = 0; i < COUNT_OF(pieces); i++) {
        add_times(&t, pieces[i].piece, (1 << 20) / (int64_t)strlen(pieces[i].piece));
        bomb(pieces[i].what, &t, pieces[i].part);
    }
    for (int i = 0; i < 80000; i++)
        add(&t, "%%TAG !a%d! b\n", i);
    bomb("yaml: %TAG lines", &t, "more than 1000 %TAG");
    add(&t, "\xff\xfe");
    for (int i = 0; i < 30000; i++) {
        char word[32];
        int n = snprintf(word, sizeof word, "%%TAG !%d! b\n", i);
        for (int k = 0; k < n; k++) {
            add(&t, "%c", word[k]);
            t.p[t.n++] = 0;
        }
    }
    bomb("yaml: %TAG lines in UTF-16", &t, "more than 1000 %TAG");
    for (int m = 0; m < 150; m++) {
        add(&t, "m%d:\n", m);
        for (int i = 0; i < 1020; i++)
            add(&t, " k%x:\n", i);
    }
    bomb("yaml: keys", &t, "more than 8192 keys");
    add(&t, "a: [");
    add_times(&t, "[],", 300000);
    bomb("yaml: items", &t, "more than 65536 values");
    add(&t, "&a [x]\n");
    for (int i = 0; i < 40; i++) /* a billion laughs */
        add(&t, "- &a%d [*a, *a, *a, *a, *a, *a, *a, *a, *a]\n", i);
    bomb("yaml: a billion laughs", &t, "anchors");
    add(&t, "a: 1\nb: {c: 2, c: 3}\n");
    bomb("yaml: a key twice", &t, "'c' is given twice, first at line 2");
}

/* ---- JSON files ---------------------------------------------------------------------------------------------------- */

static void test_json_bombs(void **state)
{
    (void)state;
    struct text t = {0};
    char *dir = temp_path("json");
    assert_ok(io_mkdirs(dir));
    double start;
    static const char *const pieces[] = {"[", "{\"a\":", "[[],", "{\"a\":{},", "\"", "1e5,", "-"};
    for (size_t i = 0; i < COUNT_OF(pieces); i++) {
        add(&t, "{\"x\":");
        add_times(&t, pieces[i], (4 << 20) / (int64_t)strlen(pieces[i]) - 16);
        damage_put("json/config.json", t.p, t.n);
        start = cpu();
        assert_refused(input_open("json"), ERR_INPUT, "config.json");
        within(pieces[i], start, 1);
        text_free(&t);
    }
    add(&t, "{\"x\":["); /* valid, and as many values as its bytes allow */
    add_times(&t, "[],", 1390000);
    add(&t, "[]]}");
    damage_put("json/config.json", t.p, t.n);
    start = cpu();
    assert_refused(input_open("json"), ERR_INPUT, "\"model_type\": expected a string");
    within("{\"x\":[[],[],...]}", start, 1);
    text_free(&t);
    add(&t, "{\"a\": 1");
    add_times(&t, ", \"a\": 1", 1 << 18);
    add(&t, "}");
    damage_put("json/config.json", t.p, t.n);
    assert_refused(input_open("json"), ERR_INPUT, "duplicate");
    text_free(&t);
    add_times(&t, " ", (4 << 20) + 1);
    damage_put("json/config.json", t.p, t.n);
    assert_refused(input_open("json"), ERR_INPUT, "more than the");
    text_free(&t);
    /* sizes that lie: nothing is reserved by them */
    static const char *const lies[] = {"\"num_hidden_layers\": 2147483647", "\"num_hidden_layers\": -1", "\"hidden_size\": 9223372036854775807", "\"vocab_size\": 4611686018427387904",
                                       "\"num_attention_heads\": 0", "\"hidden_size\": 1e300", "\"head_dim\": 2147483646", "\"num_hidden_layers\": 4096"};
    for (size_t i = 0; i < COUNT_OF(lies); i++) {
        char text[1024];
        snprintf(text, sizeof text, "{%s, %s", lies[i], strstr(INPUT_CONFIG, "\"model_type\""));
        const char *key = lies[i];
        char *again = strstr(text + 1 + strlen(lies[i]), (snprintf(text + 900, 100, "%.*s", (int)(strchr(key, ':') - key), key), text + 900));
        if (again) /* the true value out, or the key would stand there twice */
            memset(again, ' ', (size_t)(strchr(again, ',') - again + 1));
        damage_put("json/config.json", text, strlen(text));
        start = cpu();
        enum code c = input_open("json");
        assert_true(c == ERR_INPUT || c == ERR_UNSUPPORTED);
        within(lies[i], start, 0.1);
    }
    free(dir);
}

/* Two indices of 100 000 tensors against a file that holds all but one of them. */
static void test_index_of_many(void **state)
{
    (void)state;
    enum { MANY = 100000 };
    struct text header = {0}, index = {0};
    char *dir = temp_path("many");
    assert_ok(io_mkdirs(dir));
    add(&header, "        {");
    add(&index, "{\"weight_map\":{\"z\":\"m\"");
    for (int i = 0; i < MANY; i++) {
        add(&header, "%s\"%05d\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}", i ? "," : "", i);
        add(&index, ",\"%05d\":\"m\"", i);
    }
    add(&header, "}");
    add(&index, "}}");
    uint64_t n = header.n - 8;
    memcpy(header.p, &n, 8);
    damage_put("many/m", header.p, header.n);
    damage_put("many/config.json", INPUT_CONFIG, strlen(INPUT_CONFIG));
    damage_put("many/model.safetensors.index.json", index.p, index.n);
    double start = cpu();
    assert_refused(input_open("many"), ERR_INPUT, "says tensor \"z\" is in m, which does not hold it");
    within("an index of 100 000 tensors", start, 1.5);
    text_free(&header);
    text_free(&index);
    free(dir);
}

static void test_many_added_tokens(void **state)
{
    (void)state;
    struct text t = {0};
    struct tokenizer *tokenizer;
    add(&t, "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]},\"added_tokens\":[");
    for (int i = 0; i < 100000; i++)
        add(&t, "%s{\"id\":%d,\"content\":\"<%d>\",\"special\":true}", i ? "," : "", i + 1, i);
    add(&t, "]}");
    double start = cpu();
    assert_ok(tokenizer_parse(&tokenizer, t.p, t.n, "many"));
    assert_int_equal(tokenizer_vocab(tokenizer), 100001);
    tokenizer_close(tokenizer);
    within("100 000 added tokens", start, 1);
    text_free(&t);
}

/* Words chosen so that a table without a key of its own would put all of them into one run: 8e8 comparisons. */
static void test_hash_collisions(void **state)
{
    (void)state;
    enum { WORDS = 40000, SLOTS = 1 << 17, WINDOW = 512 };
    struct text t = {0};
    struct tokenizer *tokenizer;
    char word[16];
    add(&t, "{\"model\":{\"type\":\"BPE\",\"vocab\":{");
    for (uint32_t tried = 0, kept = 0; kept < WORDS; tried++) {
        int n = snprintf(word, sizeof word, "w%07x", tried);
        if (hash64(word, (size_t)n) % SLOTS < WINDOW)
            add(&t, "%s\"%s\":%u", kept ? "," : "", word, kept), kept++;
    }
    add(&t, "},\"merges\":[]}}");
    double start = cpu();
    assert_ok(tokenizer_parse(&tokenizer, t.p, t.n, "collisions"));
    tokenizer_close(tokenizer);
    within("40 000 words of one hash", start, 0.5);
    text_free(&t);
}

/* ---- what is no file ----------------------------------------------------------------------------------------------- */

/* A pipe that nobody writes to, in the place of each file. */
static void test_pipes(void **state)
{
    (void)state;
    static const char *const files[] = {"config.json", "model.safetensors", "model.safetensors.index.json"};
    struct tokenizer *tokenizer;
    struct tokens *tokens;
    struct config *config;
    struct tokens_options o = {.V = 300, .eos = -1, .bos = -1};
    char *dir = temp_path("pipes"), *pipe = temp_path("pipe"), *made = temp_path("made.h5"), *bin = temp_path("made.bin");
    int checked;
    alarm(60); /* the fault would be waiting for ever */
    assert_ok(io_mkdirs(dir));
    for (size_t i = 0; i < COUNT_OF(files); i++) {
        char *path = io_join(dir, files[i]);
        damage_put("pipes/config.json", INPUT_CONFIG, strlen(INPUT_CONFIG));
        unlink(path);
        assert_int_equal(mkfifo(path, 0666), 0);
        assert_refused(input_open("pipes"), ERR_INPUT, files[i]);
        unlink(path);
        free(path);
    }
    assert_int_equal(mkfifo(pipe, 0666), 0);
    assert_int_equal(mkfifo(made, 0666), 0);
    assert_int_equal(mkfifo(bin, 0666), 0);
    struct checkpoint *ck;
    assert_int_equal(ckpt_open(&ck, made, NULL), ERR_INPUT);
    assert_int_equal(ckpt_open(&ck, bin, NULL), ERR_INPUT);
    assert_int_equal(ckpt_verify(made, &checked), ERR_INPUT);
    assert_refused(tokenizer_open(&tokenizer, pipe), ERR_INPUT, "a pipe");
    assert_refused(config_load(&config, pipe, 0, NULL), ERR_USAGE, "a pipe");
    for (int f = DATA_AUTO; f <= DATA_JSONL; f++) {
        o.format = (enum data_format)f;
        assert_ok(tokenizer_open(&tokenizer, "bytes"));
        o.tokenizer = tokenizer;
        enum code c = tokens_open(&tokens, pipe, &o);
        assert_true(c == ERR_INPUT || (f == DATA_MEGATRON && c == ERR_IO)); /* Megatron looks for pipe.idx */
        tokenizer_close(tokenizer);
    }
    o.format = DATA_RAW;
    o.tokenizer = NULL;
    assert_refused(tokens_open(&tokens, "/dev/zero", &o), ERR_INPUT, "/dev/zero");
    alarm(0);
    free(dir), free(pipe), free(made), free(bin);
}

/* A name out of a file writes no line of its own and commands no terminal. */
static void test_sentences(void **state)
{
    (void)state;
    char *dir = temp_path("names");
    assert_ok(io_mkdirs(dir));
    static const char evil[] = "{\"weight_map\": {\"a\\n\\u001b[2Jgqa-convert: done\": 1}}";
    damage_put("names/config.json", INPUT_CONFIG, strlen(INPUT_CONFIG));
    damage_put("names/model.safetensors.index.json", evil, strlen(evil));
    assert_refused(input_open("names"), ERR_INPUT, "must name a file");
    for (const char *p = fail_text(); *p; p++)
        assert_true((unsigned char)*p >= ' ' && *p != 127);
    assert_int_equal(fail(ERR_INPUT, "a\xc2\x9b" "2Jb\x7f"), ERR_INPUT);
    assert_string_equal(fail_text(), "a??2Jb ");
    free(dir);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_yaml_bombs), cmocka_unit_test(test_json_bombs), cmocka_unit_test(test_index_of_many),
        cmocka_unit_test(test_many_added_tokens), cmocka_unit_test(test_hash_collisions), cmocka_unit_test(test_pipes), cmocka_unit_test(test_sentences),
    };
    log_quiet(1);
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
