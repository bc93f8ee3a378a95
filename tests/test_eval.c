/* gqa-eval as its users run it, on a tiny checkpoint: the commands agree with each other and with themselves, and refuse what is
 * wrong. The arithmetic itself is tested with the model. They run where GQAKIT_TEST_DEVICE says. */
#include "harness.h"
#include "programs.h"
#include "small_checkpoint.h"
#include "data/data.h"
#include "kernels/kernels.h"

#include <math.h>

/* A byte-level model (V 256) so that text needs no tokenizer. */
static char *byte_model(const char *name, int64_t G)
{
    struct arch a;
    small_arch(&a, 6, G, DT_F32);
    a.V = a.original_vocab = 256;
    a.bos = a.eos = -1;
    char *path = temp_path(name);
    small_write(path, &a, 3, 1, NULL);
    arch_free(&a);
    return path;
}

static char *text_file(void)
{
    char text[1500];
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = (char)('a' + random_int(9, i, 0, 25));
    temp_write("text.txt", text, sizeof text);
    return temp_path("text.txt");
}

static void perplexity_is_the_mean_of_scores(void **state)
{
    (void)state;
    char *model = byte_model("p-model", 6), *text = text_file();
    json_t *p = program_json(EVAL("perplexity", model, "--data", text, "--tokenizer", "bytes", "--context", "50", "--json"));
    assert_int_equal(json_integer_value(json_object_get(p, "tokens")), 1499);
    double loss = json_number_at(p, "nats_per_token");
    assert_true(loss > 4.0 && loss < 8.0);
    assert_true(fabs(json_number_at(p, "perplexity") - exp(loss)) < 1e-6 * exp(loss));
    assert_int_equal(json_integer_value(json_object_get(p, "bytes")), 1499); /* of the tokens scored, not of the text */
    assert_true(fabs(json_number_at(p, "bits_per_byte") - loss / log(2.0)) < 1e-6);
    json_t *part = program_json(EVAL("perplexity", model, "--data", text, "--tokenizer", "bytes", "--context", "50", "--limit", "321", "--json"));
    assert_int_equal(json_integer_value(json_object_get(part, "bytes")), 321);
    assert_true(fabs(json_number_at(part, "bits_per_byte") - json_number_at(part, "nats_per_token") / log(2.0)) < 1e-6);
    json_decref(part);
    /* The same windows by hand: window i is ids[50 i .. 50 i + 50]. */
    char line[4096];
    double sum = 0;
    char bytes[1500];
    FILE *f = fopen(text, "rb");
    assert_int_equal(fread(bytes, 1, 1500, f), 1500);
    fclose(f);
    char *lines = temp_path("windows.jsonl");
    f = fopen(lines, "w");
    for (int first = 0; first < 1499; first += 50) {
        int n = first + 51 > 1500 ? 1500 - first : 51, used = 0;
        for (int i = 0; i < n; i++)
            used += snprintf(line + used, sizeof line - (size_t)used, "%s%d", i ? "," : "", bytes[first + i]);
        fprintf(f, "{\"ids\": [%s]}\n", line);
    }
    fclose(f);
    struct child c = EVAL("score", model, "--tokens", lines);
    assert_int_equal(c.status, 0);
    int count = 0;
    for (char *s = strtok(c.out, "\n"); s; s = strtok(NULL, "\n"), count++) {
        json_t *j = json_loads(s, 0, NULL);
        sum += json_number_at(j, "sum");
        assert_int_equal(json_array_size(json_object_get(j, "logprob")) + 1, json_array_size(json_object_get(j, "ids")));
        json_decref(j);
    }
    assert_int_equal(count, 30);
    assert_true(fabs(-sum / 1499 - loss) < 1e-5);
    child_free(&c);
    json_decref(p);
    free(model);
    free(text);
    free(lines);
}

/* The bytes of a file are those of all its tokens: with a mask there is no count of the bytes that were scored. */
static void masked_tokens_have_no_bits_per_byte(void **state)
{
    (void)state;
    char *model = byte_model("m-model", 6), *path = temp_path("masked.bin");
    int32_t ids[200];
    uint8_t mask[200];
    for (int i = 0; i < 200; i++) {
        ids[i] = (int32_t)random_int(4, (uint64_t)i, 0, 255);
        mask[i] = i % 2 == 0;
    }
    assert_ok(tokens_write(path, ids, 200, 256, 200, -1, "bytes"));
    json_t *all = program_json(EVAL("perplexity", model, "--data", path, "--context", "50", "--json"));
    temp_write("masked.bin.mask", mask, sizeof mask);
    json_t *half = program_json(EVAL("perplexity", model, "--data", path, "--context", "50", "--json"));
    assert_int_equal(json_integer_value(json_object_get(all, "tokens")), 199);
    assert_int_equal(json_integer_value(json_object_get(all, "bytes")), 200);
    assert_int_equal(json_integer_value(json_object_get(half, "tokens")), 99);
    assert_true(json_is_null(json_object_get(half, "bits_per_byte")));
    json_decref(all);
    json_decref(half);
    free(model);
    free(path);
}

static void stride_gives_more_context(void **state)
{
    (void)state;
    char *model = byte_model("s-model", 6), *text = text_file();
    json_t *a = program_json(EVAL("perplexity", model, "--data", text, "--tokenizer", "bytes", "--context", "40", "--stride", "40", "--json"));
    json_t *b = program_json(EVAL("perplexity", model, "--data", text, "--tokenizer", "bytes", "--context", "40", "--stride", "7", "--json"));
    assert_int_equal(json_integer_value(json_object_get(a, "tokens")), json_integer_value(json_object_get(b, "tokens")));
    assert_true(fabs(json_number_at(a, "nats_per_token") - json_number_at(b, "nats_per_token")) > 1e-9);
    json_t *c = program_json(EVAL("perplexity", model, "--data", text, "--tokenizer", "bytes", "--context", "1", "--json"));
    assert_int_equal(json_integer_value(json_object_get(c, "tokens")), 1499);
    json_decref(a);
    json_decref(b);
    json_decref(c);
    free(model);
    free(text);
}

static void grouped_equals_repeated_heads(void **state)
{
    (void)state;
    struct arch a;
    small_arch(&a, 6, 6, DT_F32);
    a.V = a.original_vocab = 256;
    a.bos = a.eos = -1;
    char *full = temp_path("e-full"), *grouped = temp_path("e-grouped"), *text = text_file();
    small_write(full, &a, 3, 3, NULL);
    arch_free(&a);
    struct child c = CONVERT(full, grouped, "--kv-heads", "2");
    assert_int_equal(c.status, 0);
    child_free(&c);
    json_t *x = program_json(EVAL("perplexity", full, "--data", text, "--context", "64", "--json"));
    json_t *y = program_json(EVAL("perplexity", grouped, "--data", text, "--context", "64", "--json"));
    assert_true(fabs(json_number_at(x, "nats_per_token") - json_number_at(y, "nats_per_token")) < 1e-6);
    json_decref(x);
    json_decref(y);
    free(full);
    free(grouped);
    free(text);
}

static void decode_rows(void **state)
{
    (void)state;
    char *model = byte_model("d-model", 2);
    json_t *j = program_json(EVAL("decode", model, "--batch", "1,3", "--context", "0,100", "--new", "4", "--repeats", "2", "--json"));
    const json_t *rows = json_object_get(j, "rows");
    assert_int_equal(json_array_size(rows), 4);
    for (size_t i = 0; i < 4; i++) {
        const json_t *r = json_array_get(rows, i);
        assert_true(json_number_at(r, "ms_per_token") > 0 && json_number_at(r, "decode_tok_s") > 0 && json_number_at(r, "prefill_tok_s") > 0);
        assert_int_equal(json_integer_value(json_object_get(r, "kv_bytes_per_token")), 2 * 2 * 2 * 8 * 4);
    }
    json_decref(j);
    free(model);
}

static void generation(void **state)
{
    (void)state;
    char *model = byte_model("g-model", 3);
    json_t *a = program_json(EVAL("generate", model, "--prompt", "abc", "--new", "20", "--temperature", "0", "--json"));
    json_t *b = program_json(EVAL("generate", model, "--prompt", "abc", "--new", "20", "--temperature", "0", "--seed", "4", "--json"));
    assert_int_equal(json_integer_value(json_object_get(a, "new_tokens")), 20);
    assert_true(json_equal(json_object_get(a, "ids"), json_object_get(b, "ids")));
    json_t *c = program_json(EVAL("generate", model, "--prompt", "abc", "--new", "20", "--temperature", "1.5", "--top-k", "1", "--json"));
    assert_true(json_equal(json_object_get(a, "ids"), json_object_get(c, "ids")));
    json_decref(a);
    json_decref(b);
    json_decref(c);
    free(model);
}

static void put_nan(const struct ckpt_tensor *t, float *x) { if (strcmp(t->name, "dec.1.mlp.up.w") == 0) x[7] = (float)NAN; }

/* A broken model has no loss: never a number, never exit 0. */
static void nan_is_no_result(void **state)
{
    (void)state;
    struct arch a;
    small_arch(&a, 6, 6, DT_F32);
    a.V = a.original_vocab = 256;
    a.bos = a.eos = -1;
    char *model = temp_path("nan-model"), *text = text_file();
    small_write(model, &a, 3, 1, put_nan);
    arch_free(&a);
    struct child runs[] = { EVAL("perplexity", model, "--data", text, "--json"), EVAL("score", model, "--text", "abc"),
                            EVAL("generate", model, "--prompt", "abc", "--new", "3") };
    for (size_t i = 0; i < COUNT_OF(runs); i++) {
        assert_int_equal(runs[i].status, 7);
        assert_non_null(strstr(runs[i].err, "not finite"));
        child_free(&runs[i]);
    }
    free(model);
    free(text);
}

static size_t generated(const char *model, const char *flag)
{
    json_t *j = program_json(EVAL("generate", model, "--prompt", "abc", "--new", "20", "--temperature", "0", "--json", flag));
    size_t n = json_array_size(json_object_get(j, "ids"));
    json_decref(j);
    return n;
}

/* Every end of a list ends the text; generation_config.json goes before config.json. */
static void generate_stops(void **state)
{
    (void)state;
    char *model = byte_model("stop-model", 2), file[128];
    json_t *j = program_json(EVAL("generate", model, "--prompt", "abc", "--new", "20", "--temperature", "0", "--json"));
    const json_t *ids = json_object_get(j, "ids");
    assert_int_equal(json_array_size(ids), 23);
    json_int_t third = json_integer_value(json_array_get(ids, 5));
    size_t first = 3;
    while (json_integer_value(json_array_get(ids, first)) != third)
        first++;
    snprintf(file, sizeof file, "{\"eos_token_id\": [255, %lld]}", (long long)third);
    temp_write("stop-model/generation_config.json", file, strlen(file));
    assert_int_equal(generated(model, "--json"), first);
    assert_int_equal(generated(model, "--ignore-eos"), 23);
    char *path = io_join(model, "config.json"), *text = NULL, *edited = NULL;
    size_t n = 0;
    assert_ok(io_read_all(path, 1 << 16, &text, &n));
    char *null = strstr(text, "\"eos_token_id\": null");
    assert_non_null(null);
    assert_true(asprintf(&edited, "%.*s\"eos_token_id\": [255, %lld]%s", (int)(null - text), text, (long long)third, null + 20) > 0);
    temp_write("stop-model/config.json", edited, strlen(edited));
    temp_write("stop-model/generation_config.json", "{\"eos_token_id\": 255}", 21);
    assert_int_equal(generated(model, "--json"), 23);
    temp_write("stop-model/generation_config.json", "{}", 2);
    assert_int_equal(generated(model, "--json"), first);
    json_decref(j);
    free(path);
    free(text);
    free(edited);
    free(model);
}

/* Rotary scalings that follow the sequence's length: a short sequence scores the same alone and beside a long one. */
static void lengths_of_dynamic_positions(void **state)
{
    (void)state;
    static const char *const models[] = {"tests/golden/hf/llama-rope-longrope", "tests/golden/hf/llama-rope-dynamic"};
    static const char longer[] = "{\"ids\": [1, 21, 7, 7, 30, 11, 19, 4, 33, 2, 40, 41, 8, 9, 13, 17, 25, 6, 12, 14, 3, 22, 10, 35, 36, 5]}\n", shorter[] = "{\"ids\": [1, 21, 7, 30]}\n";
    char both[512], *alone = temp_path("short.jsonl"), *beside = temp_path("both.jsonl");
    snprintf(both, sizeof both, "%s%s", longer, shorter);
    temp_write("short.jsonl", shorter, sizeof shorter - 1);
    temp_write("both.jsonl", both, strlen(both));
    for (size_t i = 0; i < COUNT_OF(models); i++) {
        json_t *want = program_json(EVAL("score", models[i], "--tokens", alone, "--dtype", "f32"));
        struct child c = EVAL("score", models[i], "--tokens", beside, "--dtype", "f32");
        assert_int_equal(c.status, 0);
        json_t *got = json_loads(strchr(c.out, '\n') + 1, 0, NULL);
        assert_non_null(got);
        assert_true(fabs(json_number_at(got, "sum") - json_number_at(want, "sum")) < 1e-5);
        json_decref(want);
        json_decref(got);
        child_free(&c);
    }
    free(alone);
    free(beside);
}

static void refusals(void **state)
{
    (void)state;
    char *model = byte_model("r-model", 6), *text = text_file();
    temp_write("bad.jsonl", "{\"ids\": [1, 2]}\n{\"ids\": [1, 999]}\n", 34);
    char *bad = temp_path("bad.jsonl");
    const struct { const char *v[10]; int status; const char *part; } cases[] = {
        { { "perplexity" }, 2, "--help" },
        { { "perplexity", model }, 2, "--data" },
        { { "perplexity", model, "--data", text, "--context", "10", "--stride", "11" }, 2, "stride" },
        { { "perplexity", model, "--data", text, "--context", "-5" }, 2, "--context" },
        { { "perplexity", model, "--data", text, "--context", "9000000000000000000" }, 2, "--context" },
        { { "perplexity", model, "--data", text, "--limit", "-1" }, 2, "--limit" },
        { { "score", model, "--text", "a", "--context", "-1" }, 2, "--context" },
        { { "decode", model, "--new", "9000000000000000000" }, 2, "--new" },
        { { "perplexity", "/nonexistent", "--data", text }, 3, "/nonexistent" },
        { { "perplexity", model, "--data", "/nonexistent.txt" }, 3, "/nonexistent.txt" },
        { { "perplexty", model }, 2, "perplexity" },
        { { "tasks", model }, 2, "--tasks" },
        { { "score", model }, 2, "--tokens" },
        { { "score", model, "--tokens", bad }, 3, "bad.jsonl:2" },
        { { "decode", model, "--batch", "0" }, 2, "--batch" },
        { { "generate", model, "--new", "-3" }, 2, "--new" },
        { { "perplexity", model, "--data", text, "--device", "cuda" }, 8, "cuda" },
    };
    const struct backend *cuda;
    const char *here = getenv("GQAKIT_TEST_DEVICE"); /* the last case is for machines without a GPU */
    int gpu = backend_find("cuda", &cuda) == OK || (here && !strcmp(here, "cuda"));
    for (size_t i = 0; i < COUNT_OF(cases) - (size_t)gpu; i++) {
        struct child c = program_run("gqa-eval", cases[i].v);
        int ok = c.status == cases[i].status || (cases[i].status == 3 && c.status == 5);
        if (!ok || !strstr(c.err, cases[i].part))
            print_error("case %zu: status %d, %s", i, c.status, c.err);
        assert_true(ok);
        assert_non_null(strstr(c.err, cases[i].part));
        child_free(&c);
    }
    free(model);
    free(text);
    free(bad);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(perplexity_is_the_mean_of_scores), cmocka_unit_test(stride_gives_more_context),
        cmocka_unit_test(grouped_equals_repeated_heads),    cmocka_unit_test(decode_rows),
        cmocka_unit_test(generation),                       cmocka_unit_test(nan_is_no_result),
        cmocka_unit_test(masked_tokens_have_no_bits_per_byte),
        cmocka_unit_test(generate_stops),                   cmocka_unit_test(lengths_of_dynamic_positions),
        cmocka_unit_test(refusals),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
