/* The whole way of every family through the programs, on the small models that transformers saved: convert to fewer key/value heads,
 * evaluate, uptrain with `gqa:`, resume in the middle, evaluate, generate, and convert the result again: to .h5 and back, to GGUF; and the grid of gqa-eval ablate.
 * The numbers of different programs are compared with each other; that they are right is test_hf_golden's business.
 * GQAKIT_TEST_LONG=1: every golden model with every group count, and gqa-eval decode for each. */
#include <dirent.h>
#include <math.h>

#include "hf_case.h"
#include "model/model.h"
#include "programs.h"

#define GOLDEN "tests/golden/hf/"

#if defined(__SANITIZE_ADDRESS__)
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif

enum { T = 26, PERIOD = 13, STEPS = 60 };

/* home and gguf: where the result of training must live, and whether GGUF can hold it. sanitized: run under sanitizers too. */
struct route { const char *model; int G; const char *family; int gguf, decode, sanitized; };
static const struct route ROUTES[] = {
    {"llama-mha", 2, "llama", 1, 1, 1},
    {"llama-rope-llama3", 1, "llama", 1, 0, 0},
    {"mistral-bare", 4, "mistral", 1, 0, 0},
    {"qwen2-mha", 3, "qwen2", 1, 0, 1},
    {"qwen3-mha-tied", 2, "qwen3", 1, 0, 0},
    {"olmo-mha", 3, "olmo", 1, 0, 0},
    {"olmo-clip", 1, "olmo", 1, 0, 0},
    {"olmo2-mha", 3, "olmo2", 1, 0, 1},
    {"gemma-mha", 2, "gemma", 1, 0, 1},
    {"phi-mha", 2, "phi", 1, 0, 0},
    {"phi3-mha", 2, "phi3", 1, 0, 1},
    {"stablelm-mha", 2, "stablelm", 1, 0, 0},
    {"stablelm-qk-layernorm", 1, "stablelm", 1, 0, 1},
    {"starcoder2-mha-window", 3, "starcoder2", 1, 0, 0},
    {"gpt2-plain", 3, "gqakit", 1, 0, 1},
    {"gpt2-plain", 1, "gpt_bigcode", 1, 0, 0},
    {"gpt_bigcode-mha", 1, "gpt_bigcode", 1, 0, 0},
    {"gpt_neo-local", 3, "gqakit", 1, 1, 1},
    {"gpt_neox-parallel", 2, "phi", 1, 0, 1},
    {"gpt_neox-sequential", 2, "gqakit", 1, 0, 0},
    {"gptj-plain", 2, "phi", 1, 0, 0},
    {"opt-plain", 1, "gpt_bigcode", 0, 0, 0},
    {"opt-350m", 3, "gqakit", 0, 0, 1},
    {"bloom-plain", 2, "gqakit", 1, 1, 1},
    {"mpt-plain", 2, "gqakit", 1, 0, 0},
    {"falcon-mha", 3, "falcon", 1, 0, 1},
    {"falcon-mqa", 1, "falcon", 1, 0, 0},
    {"falcon-alibi", 2, "gqakit", 0, 0, 1},
};

static int on_cpu(void)
{
    const char *s = getenv("GQAKIT_DEVICE"); /* set by harness_main */
    return !s || !strcmp(s, "cpu");
}

static double tolerance(void) { return on_cpu() ? 1e-5 : 1e-4; }

static int is_long(void)
{
    const char *s = getenv("GQAKIT_TEST_LONG");
    return s && *s && strcmp(s, "0") != 0;
}

/* ---- data: a pattern that one token of context does not predict -------------------------------------------------------- */

static const uint16_t PATTERN[PERIOD] = {3, 7, 12, 3, 9, 5, 7, 14, 3, 5, 12, 8, 10};

static char *tokens; /* a raw file of the pattern, in which every window of T tokens is the same */
static char *window; /* such a window with the token after it, as JSON */

static int setup(void **state)
{
    (void)state;
    uint16_t ids[T * 80];
    char text[4000];
    for (size_t i = 0; i < COUNT_OF(ids); i++)
        ids[i] = PATTERN[i % PERIOD];
    temp_write("tokens.bin", ids, sizeof ids);
    tokens = temp_path("tokens.bin");
    int n = 0;
    for (int i = 0; i <= T; i++)
        n += snprintf(text + n, sizeof text - (size_t)n, "%s%d", i ? ", " : "{\"ids\": [", PATTERN[i % PERIOD]);
    n += snprintf(text + n, sizeof text - (size_t)n, "]}\n");
    temp_write("window.jsonl", text, (size_t)n);
    window = temp_path("window.jsonl");
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    free(tokens);
    free(window);
    return 0;
}

/* A golden model with a tokenizer beside it: one character for an id, '0' + id; of the last ids of a vocabulary it knows nothing. */
static char *with_tokenizer(const char *model)
{
    char text[4000], *from = io_join(GOLDEN, model), *to = temp_path("source");
    static const char *const files[] = {"config.json", "model.safetensors"};
    struct checkpoint *ck;
    assert_ok(ckpt_open(&ck, from, NULL));
    int ids = ckpt_arch(ck)->V < 40 ? (int)ckpt_arch(ck)->V : 38;
    ckpt_close(ck);
    assert_ok(io_mkdirs(to));
    for (size_t i = 0; i < COUNT_OF(files); i++) {
        size_t n;
        char *bytes = hf_slurp(from, files[i], &n);
        hf_put(to, files[i], bytes, n);
        free(bytes);
    }
    int n = snprintf(text, sizeof text,
                     "{\"version\": \"1.0\", \"truncation\": null, \"padding\": null, \"added_tokens\": [], \"normalizer\": null, \"pre_tokenizer\": "
                     "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, \"use_regex\": true}, \"post_processor\": null, "
                     "\"decoder\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true, \"trim_offsets\": true, \"use_regex\": true}, \"model\": "
                     "{\"type\": \"BPE\", \"dropout\": null, \"unk_token\": null, \"continuing_subword_prefix\": null, \"end_of_word_suffix\": null, "
                     "\"fuse_unk\": false, \"merges\": [], \"vocab\": {");
    for (int i = 0; i < ids; i++)
        n += snprintf(text + n, sizeof text - (size_t)n, "%s\"%c\": %d", i ? ", " : "", '0' + i, i);
    n += snprintf(text + n, sizeof text - (size_t)n, "}}}");
    hf_put(to, "tokenizer.json", text, (size_t)n);
    free(from);
    return to;
}

/* ---- what is asked of a checkpoint --------------------------------------------------------------------------------------- */

static double loss_of(const char *path)
{
    json_t *j = program_json(EVAL("perplexity", path, "--data", tokens, "--format", "raw", "--context", "26", "--limit", "520", "--dtype", "f32", "--threads", "1", "--json"));
    double loss = json_number_at(j, "nats_per_token");
    assert_int_equal(json_integer_value(json_object_get(j, "tokens")), 520);
    json_decref(j);
    return loss;
}

/* All those windows are the same: one of them, by its scores. */
static double score_of(const char *path)
{
    struct child c = EVAL("score", path, "--tokens", window, "--dtype", "f32", "--threads", "1");
    json_t *j = program_json(c);
    double sum = json_number_at(j, "sum");
    assert_int_equal(json_array_size(json_object_get(j, "logprob")), T);
    json_decref(j);
    return -sum / T;
}

/* Greedy; the pattern's first period is the prompt. Returns how many of the 8 new ids go on with the pattern. */
static int continues(const char *path)
{
    char prompt[PERIOD + 1] = "";
    for (int i = 0; i < PERIOD; i++)
        prompt[i] = (char)('0' + PATTERN[i]);
    json_t *j = program_json(EVAL("generate", path, "--prompt", prompt, "--new", "8", "--temperature", "0", "--ignore-eos", "--dtype", "f32", "--threads", "1", "--json"));
    const json_t *ids = json_object_get(j, "ids");
    int right = 0;
    assert_int_equal(json_array_size(ids), PERIOD + 8);
    for (int i = 0; i < PERIOD + 8; i++)
        right += json_integer_value(json_array_get(ids, (size_t)i)) == PATTERN[i % PERIOD];
    json_decref(j);
    assert_true(right >= PERIOD); /* the prompt */
    return right - PERIOD;
}

static void decodes(const char *path)
{
    json_t *j = program_json(EVAL("decode", path, "--batch", "1,2", "--context", "4,13", "--new", "2", "--repeats", "1", "--threads", "1", "--json"));
    assert_int_equal(json_array_size(json_object_get(j, "rows")), 4);
    json_decref(j);
}

static void same_file(const char *a, const char *b, const char *name)
{
    char *x = io_join(a, name), *y = io_join(b, name), hx[65], hy[65];
    assert_ok(sha256_file(x, hx));
    assert_ok(sha256_file(y, hy));
    if (strcmp(hx, hy) != 0)
        print_error("%s and %s differ\n", x, y);
    assert_string_equal(hx, hy);
    free(x);
    free(y);
}

static void family_is(const char *path, const char *family, int64_t G)
{
    struct checkpoint *ck;
    assert_ok(ckpt_open(&ck, path, NULL));
    if (family)
        assert_string_equal(ckpt_arch(ck)->family, family);
    for (int64_t l = 0; l < ckpt_arch(ck)->stack[STACK_DEC].L; l++)
        assert_int_equal(ckpt_arch(ck)->stack[STACK_DEC].block[l].G, G);
    ckpt_close(ck);
}

static void near(const char *what, double a, double b, double tolerance)
{
    if (!(fabs(a - b) <= tolerance))
        print_error("%s: %.9g and %.9g\n", what, a, b);
    assert_true(fabs(a - b) <= tolerance);
}

/* ---- the way --------------------------------------------------------------------------------------------------------------- */

static char *write_yaml(const char *source, int64_t G, int64_t length, const char *out)
{
    char text[2000];
    int n = snprintf(text, sizeof text,
                     "model: {path: %s, dtype: f32}\ngqa: {num_key_value_heads: %lld}\n"
                     "data: {train: [%s], validation: [%s], format: raw, dtype: uint16, pack: false}\nsequence_len: %lld\nmicro_batch_size: 4\n"
                     "max_steps: %d\neval_steps: 0\neval_batches: 5\nsave_steps: %d\noptimizer: {lr: 1e-2}\nlr_scheduler: {warmup_steps: 5}\n"
                     "threads: 1\nseed: 0\nlogging: {tensorboard: false}\noutput_dir: %s\n",
                     source, (long long)G, tokens, tokens, (long long)length, STEPS, STEPS / 2, out);
    temp_write("route.yaml", text, (size_t)n);
    return temp_path("route.yaml");
}

/* What --plan said of a model is what the model of the converted checkpoint reserves, and its parameters are the file's. */
static void plan_is_kept(const json_t *plan, const char *converted, int64_t length)
{
    const json_t *memory = json_object_get(plan, "memory");
    const struct backend *backend;
    struct device_options one = {1};
    struct device *device = NULL;
    struct checkpoint *ck;
    struct model *m;
    int64_t elements = 0;
    assert_ok(ckpt_open(&ck, converted, NULL));
    for (int i = 0; i < ckpt_count(ck); i++)
        elements += ckpt_at(ck, i)->n[0] * (ckpt_at(ck, i)->nd > 1 ? ckpt_at(ck, i)->n[1] : 1);
    assert_int_equal(json_number_at(plan, "parameters"), elements);
    assert_ok(backend_find("cpu", &backend));
    assert_ok(backend->device_open(&device, &one));
    struct model_options o = {.train = 1, .dtype = DT_F32, .deterministic = 1, .B = 4, .T = length, .cache_dtype = DT_F32};
    assert_ok(model_open(&m, ckpt_arch(ck), backend, device, &o));
    const struct model_memory *used = model_memory(m);
    assert_int_equal(json_number_at(memory, "parameters"), used->parameters);
    assert_int_equal(json_number_at(memory, "gradients"), used->gradients);
    if (!SANITIZED) /* arenas have redzones there */
        assert_int_equal(json_number_at(memory, "moments"), 2 * model_flat(m).n * (int64_t)sizeof(float));
    assert_int_equal(json_number_at(memory, "activations"), used->activations);
    assert_int_equal(json_number_at(memory, "scratch"), used->scratch);
    model_close(m);
    backend->device_close(device);
    ckpt_close(ck);
}

/* Trains, and again from the middle into another directory; true numbers of the first run in *before and *after. */
static void trained(const char *source, int64_t G, int64_t length, const char *out, double *before, double *after)
{
    char *yaml = write_yaml(source, G, length, out), *again = temp_path("again"), *middle = io_join(out, "step-00000030"), text[700];
    char *converted = io_join(out, "converted");
    json_t *plan = program_json(UPTRAIN(yaml, "--plan", "--json"));
    struct child c = UPTRAIN(yaml, "--json", "--quiet");
    if (strstr(c.err, "home  ")) /* gqa-convert's report */
        print_error("--quiet, and still: %s\n", c.err);
    assert_null(strstr(c.err, "home  "));
    json_t *j = program_json(c);
    *before = json_number_at(j, "loss_zero_step");
    *after = json_number_at(j, "loss_final");
    json_decref(j);
    if (on_cpu())
        plan_is_kept(plan, converted, length);
    json_decref(plan);
    snprintf(text, sizeof text, "output_dir=%s", again);
    program_ok(UPTRAIN(yaml, text, "--resume", middle, "--quiet", "activation_checkpointing=block")); /* the same bits with less memory */
    char *a = io_join(out, "final"), *b = io_join(again, "final");
    same_file(a, b, "model.safetensors");
    same_file(a, b, "config.json");
    same_file(source, b, "tokenizer.json");
    assert_ok(io_remove_tree(again));
    free(a);
    free(b);
    free(yaml);
    free(again);
    free(converted);
    free(middle);
}

/* To .h5 and back, byte for byte; to GGUF, where an architecture of llama.cpp computes it; every head its own copy, which computes the
 * same; and to one head per layer. */
static void converts_again(const char *final, int gguf, double loss)
{
    char *h5 = temp_path("final.h5"), *back = temp_path("back"), *file = temp_path("final.gguf"), *one = temp_path("one"), *whole = temp_path("whole");
    program_ok(CONVERT(final, h5, "--quiet", "--force"));
    program_ok(CONVERT(h5, back, "--quiet", "--force"));
    same_file(final, back, "model.safetensors");
    same_file(final, back, "config.json");
    same_file(final, back, "tokenizer.json");
    struct child c = CONVERT(final, file, "--quiet", "--force");
    if (gguf >= 0 && c.status != (gguf ? 0 : 4))
        print_error("GGUF: exit %d: %s\n", c.status, c.err);
    assert_true(gguf < 0 ? c.status == 0 || c.status == 4 : c.status == (gguf ? 0 : 4));
    child_free(&c);
    program_ok(CONVERT(final, whole, "--quiet", "--force", "--target", "expanded"));
    near("expanded", loss_of(whole), loss, tolerance());
    program_ok(CONVERT(final, one, "--quiet", "--force", "--kv-heads", "1"));
    family_is(one, NULL, 1);
    free(h5);
    free(back);
    free(file);
    free(one);
    free(whole);
}

/* What only our own form holds: with every head's own copy it is a model of its first family again, of the same class. */
static void goes_home(const char *source, const char *final, double loss)
{
    struct checkpoint *ck;
    char family[32], heads[24], *home = temp_path("home");
    assert_ok(ckpt_open(&ck, final, NULL));
    int ours = !strcmp(ckpt_arch(ck)->family, "gqakit");
    ckpt_close(ck);
    assert_ok(ckpt_open(&ck, source, NULL));
    snprintf(family, sizeof family, "%s", ckpt_arch(ck)->family);
    snprintf(heads, sizeof heads, "%lld", (long long)ckpt_arch(ck)->stack[STACK_DEC].block[0].H);
    ckpt_close(ck);
    if (ours) {
        program_ok(CONVERT(final, home, "--quiet", "--force", "--kv-heads", heads, "--target", "retarget", "--target-family", family));
        family_is(home, family, atoi(heads));
        near("home", loss_of(home), loss, tolerance());
    }
    free(home);
}

static void walk(const char *model, int64_t G, int64_t length, const char *family, int gguf, int decode)
{
    char *source = with_tokenizer(model), *grouped = temp_path("grouped"), *run = temp_path("run"), heads[24];
    char *final = io_join(run, "final"), *converted = io_join(run, "converted");
    double before, after, first = loss_of(source), merged;
    snprintf(heads, sizeof heads, "%lld", (long long)G);
    program_ok(CONVERT(source, grouped, "--kv-heads", heads, "--quiet", "--force"));
    family_is(grouped, family, G);
    assert_true(first > 1.0 && first < 20.0);
    merged = loss_of(grouped);
    near("score and perplexity", score_of(grouped), merged, tolerance());
    continues(source);
    trained(source, G, length, run, &before, &after);
    same_file(grouped, converted, "model.safetensors");
    family_is(final, family, G);
    double last = loss_of(final);
    if (length == T) { /* the trainer's own windows */
        near("before training", before, merged, tolerance());
        near("after training", after, last, tolerance());
    }
    int right = continues(final);
    print_message("%-26s %lld heads: loss %.3f, merged %.3f, trained %.4f, %d of 8 tokens right\n", model, (long long)G, first, merged, last, right);
    assert_true(after < 0.5 * before);
    if (last < 0.03)
        assert_int_equal(right, 8);
    if (decode) {
        decodes(source);
        decodes(final);
    }
    converts_again(final, gguf, last);
    goes_home(source, final, last);
    assert_ok(io_remove_tree(run));
    assert_ok(io_remove_tree(source));
    free(source);
    free(grouped);
    free(run);
    free(final);
    free(converted);
}

static void every_family(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(ROUTES); i++) {
        const struct route *r = &ROUTES[i];
        if (!SANITIZED || r->sanitized || is_long())
            walk(r->model, r->G, T, r->family, r->gguf, r->decode || is_long());
    }
}

static void every_golden(void **state)
{
    (void)state;
    if (!is_long()) {
        print_message("skipped: every golden model with every group count (GQAKIT_TEST_LONG=1)\n");
        skip();
    }
    char **names;
    int n;
    assert_ok(io_list(GOLDEN, &names, &n));
    for (int i = 0; i < n; i++) {
        struct checkpoint *ck;
        int64_t legal[16];
        char *path = io_join(GOLDEN, names[i]);
        assert_ok(ckpt_open(&ck, path, NULL));
        int count = arch_legal_groups(ckpt_arch(ck), legal, 16);
        int64_t length = ckpt_arch(ck)->max_positions < T ? PERIOD : T;
        ckpt_close(ck);
        for (int k = count > 1; k < count; k++)
            walk(names[i], legal[k], length, NULL, -1, 1);
        free(path);
    }
    io_names_free(names, n);
}

/* ---- the grid -------------------------------------------------------------------------------------------------------------- */

static json_t *ablated(const char *model, int G, const char *where)
{
    char text[1500], *yaml = temp_path("ablate.yaml");
    int n = snprintf(text, sizeof text,
                     "name: families\nmodel: {path: " GOLDEN "%s}\noutput_dir: %s\ngrid: {num_key_value_heads: [%d], uptrain_fraction: [0, 0.5]}\nuptrain:\n"
                     "  data: {train: [%s], validation: [%s], format: raw, dtype: uint16}\n  sequence_len: %d\n  micro_batch_size: 4\n"
                     "  original_tokens: 4160\n  optimizer: {lr: 1.0e-2}\nthreads: 1\n"
                     "evaluate: {data: [%s], context: %d, limit: 520, decode: {batch: [1], context: [8], new: 2, repeats: 1}}\n",
                     model, where, G, tokens, tokens, T, tokens, T);
    temp_write("ablate.yaml", text, (size_t)n);
    json_t *j = program_json(EVAL("ablate", yaml, "--json"));
    free(yaml);
    return j;
}

/* Cells of families that convert to another class, or to our own form, are trained and measured like any other. */
static void ablations(void **state)
{
    (void)state;
    static const struct { const char *model; int H, G; const char *home; } table[] = {
        {"gpt_neox-parallel", 4, 2, "PhiForCausalLM"}, {"bloom-plain", 6, 3, "trust_remote_code"}};
    char *where = temp_path("ablation");
    for (size_t i = 0; i < COUNT_OF(table); i++) {
        json_t *j = ablated(table[i].model, table[i].G, where);
        const json_t *cells = json_object_get(j, "cells"), *cell;
        size_t k;
        assert_int_equal(json_array_size(cells), 4);
        json_array_foreach(cells, k, cell) {
            const char *home = json_string_value(json_object_get(cell, "home"));
            double zero = json_number_at(cell, "loss_zero_step"), final = json_number_at(cell, "loss_final"), alpha = json_number_at(cell, "alpha");
            int64_t G = (int64_t)json_number_at(cell, "G");
            assert_string_equal(json_string_value(json_object_get(cell, "status")), "done");
            assert_true(alpha > 0.0 ? final < 0.8 * zero : fabs(final - zero) < 1e-12);
            assert_true(G == table[i].H || (G == table[i].G && home && strstr(home, table[i].home)));
            assert_int_equal(json_integer_value(json_object_get(json_array_get(json_object_get(cell, "decode"), 0), "kv_bytes_per_token")), json_number_at(cell, "kv_bytes"));
        }
        json_decref(j);
        assert_ok(io_remove_tree(where));
    }
    free(where);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup_teardown(every_family, setup, teardown),
                                       cmocka_unit_test_setup_teardown(every_golden, setup, teardown),
                                       cmocka_unit_test_setup_teardown(ablations, setup, teardown)};
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
