/* What a user of any family reads: gqa-convert --inspect, and the refusals that are likely: each must say what to do. */
#include <math.h>

#include "hf_case.h"
#include "programs.h"

#define GOLDEN "tests/golden/hf/"

static char *tokens;

static int setup(void **state)
{
    (void)state;
    uint16_t ids[400];
    for (size_t i = 0; i < COUNT_OF(ids); i++)
        ids[i] = (uint16_t)random_int(5, i, 3, 38);
    temp_write("tokens.bin", ids, sizeof ids);
    tokens = temp_path("tokens.bin");
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    free(tokens);
    return 0;
}

/* ---- inspect --------------------------------------------------------------------------------------------------------------- */

static void says(const char *model, const char *part)
{
    char *path = io_join(GOLDEN, model);
    struct child c = CONVERT("--inspect", path);
    if (c.status != 0 || !strstr(c.out, part))
        print_error("%s: no \"%s\" in\n%s%s\n", model, part, c.out, c.err);
    assert_int_equal(c.status, 0);
    assert_non_null(strstr(c.out, part));
    child_free(&c);
    free(path);
}

static void inspect_tells_families_apart(void **state)
{
    (void)state;
    static const struct { const char *model, *part; } table[] = {
        {"llama-rope-llama3", "RMSNorm before each sublayer, one sublayer after the other, rotary positions (theta 10000, llama3), swiglu MLP, no biases, head tied"},
        {"gpt_neox-parallel", "both sublayers side by side, rotary positions (2 of 8 dimensions, theta 10000), gelu_erf MLP, biases of q k v o mlp_in mlp_out norm, head of its own"},
        {"gptj-plain", "both sublayers from one norm, rotary positions (4 of 8 dimensions"},
        {"gpt2-plain", "learned positions, gelu_tanh MLP"},
        {"gpt2-inverse-layer", "a softmax scale for each layer"},
        {"gpt_neo-local", "a window of 7 in 1 of 2 layers, softmax scale 1, "},
        {"gemma-mha", "RMSNorm (1 + w) before"},
        {"olmo-clip", "LayerNorm without weights before each sublayer"},
        {"olmo-clip", "projections clipped at 0.75"},
        {"olmo2-mha", "RMSNorm behind each sublayer"},
        {"olmo2-mha", "norms of queries and keys (over all heads together)"},
        {"qwen3-mha-tied", "norms of queries and keys (one for all heads)"},
        {"stablelm-qk-layernorm", "norms of queries and keys (one per head)"},
        {"bloom-plain", "ALiBi, gelu_tanh MLP"},
        {"bloom-plain", "a norm behind the embedding"},
        {"falcon-alibi", "ALiBi (scaled with the scores)"},
        {"opt-350m", "LayerNorm behind the residual of each sublayer"},
        {"opt-350m", "an embedding of width 16"},
        {"phi3-mha", "query heads 4, key/value heads 4, head width 8"}};
    for (size_t i = 0; i < COUNT_OF(table); i++)
        says(table[i].model, table[i].part);
}

/* The numbers of inspect agree with the tensors it lists, for every model. */
static void inspect_adds_up(void **state)
{
    (void)state;
    char **names;
    int n;
    assert_ok(io_list(GOLDEN, &names, &n));
    for (int i = 0; i < n; i++) {
        char *path = io_join(GOLDEN, names[i]);
        json_t *j = program_json(CONVERT("--inspect", path, "--json"));
        const json_t *tensors = json_object_get(j, "tensors"), *legal = json_object_get(j, "legal_kv_heads"), *tensor, *blocks;
        size_t k, sources = 0;
        double elements = 0.0, kv = 0.0;
        json_array_foreach(tensors, k, tensor) {
            const json_t *shape = json_object_get(tensor, "shape");
            double count = 1.0;
            for (size_t d = 0; d < json_array_size(shape); d++)
                count *= json_number_value(json_array_get(shape, d));
            elements += count;
            sources += json_string_length(json_object_get(tensor, "source")) > 0;
            if (strstr(json_string_value(json_object_get(tensor, "name")), ".attn.k.w") || strstr(json_string_value(json_object_get(tensor, "name")), ".attn.v.w"))
                kv += json_number_value(json_array_get(shape, 0)) * (!strcmp(json_string_value(json_object_get(json_object_get(j, "arch"), "dtype")), "f32") ? 4 : 2);
        }
        assert_int_equal(sources, json_array_size(tensors));
        assert_true(fabs(json_number_at(j, "parameters") - elements) < 0.5);
        blocks = json_object_get(json_object_get(json_object_get(j, "arch"), "decoder"), "blocks");
        json_int_t G = json_integer_value(json_object_get(json_array_get(blocks, 0), "G"));
        assert_int_equal(json_integer_value(json_array_get(legal, 0)), G);
        assert_int_equal(json_integer_value(json_array_get(legal, json_array_size(legal) - 1)), 1);
        for (k = 0; k < json_array_size(legal); k++) {
            char key[24];
            json_int_t now = json_integer_value(json_array_get(legal, k));
            assert_int_equal(G % now, 0);
            snprintf(key, sizeof key, "%lld", (long long)now);
            assert_true(fabs(json_number_at(json_object_get(j, "kv_bytes_per_token"), key) - kv * (double)now / (double)G) < 0.5);
            assert_true(json_string_length(json_object_get(json_object_get(json_object_get(j, "homes"), key), "sentence")) > 20);
        }
        json_decref(j);
        free(path);
    }
    io_names_free(names, n);
}

/* ---- refusals -------------------------------------------------------------------------------------------------------------- */

static char *copy_with(const char *name, const char *model, const char *from, const char *to)
{
    size_t n, m;
    char source[200], *dir = temp_path(name);
    snprintf(source, sizeof source, GOLDEN "%s", model);
    assert_ok(io_mkdirs(dir));
    char *config = hf_slurp(source, "config.json", &n), *weights = hf_slurp(source, "model.safetensors", &m), *at = strstr(config, from);
    assert_non_null(at);
    char *edited = malloc(n + strlen(to) + 1);
    int k = sprintf(edited, "%.*s%s%s", (int)(at - config), config, to, at + strlen(from));
    hf_put(dir, "config.json", edited, (size_t)k);
    hf_put(dir, "model.safetensors", weights, m);
    free(config);
    free(weights);
    free(edited);
    return dir;
}

static void sources(void **state)
{
    (void)state;
    char *out = temp_path("out"), *unknown = copy_with("unknown", "llama-mha", "\"llama\"", "\"mamba\""), *bare = temp_path("bare");
    program_refused(CONVERT(unknown, out, "--kv-heads", "2"), 4, "model_type \"mamba\" is not supported; supported are llama, mistral");
    program_refused(EVAL("score", unknown, "--tokens", tokens), 4, "model_type \"mamba\" is not supported");
    size_t n;
    char *config = hf_slurp(GOLDEN "gpt2-plain", "config.json", &n);
    assert_ok(io_mkdirs(bare));
    hf_put(bare, "config.json", config, n);
    program_refused(CONVERT(bare, out), 3, "if a download was cut short, repeat it");
    hf_put(bare, "tf_model.h5", "x", 1);
    program_refused(CONVERT(bare, out), 4, "holds tf_model.h5, which is not read; save the model as safetensors first");
    hf_put(bare, "pytorch_model.bin", "x", 1);
    program_refused(CONVERT(bare, out), 4, "pytorch_model.bin, which can run code when opened and is not read; save the model as safetensors first");
    program_refused(CONVERT("nobody-here/model-70m", out), 5, "downloaded first");
    char *wrong = copy_with("wrong", "gpt2-plain", "\"n_embd\": 24", "\"n_embd\": 30");
    program_refused(CONVERT(wrong, out), 3, "from config.json, found [");
    assert_false(io_exists(out));
    free(config);
    free(out);
    free(unknown);
    free(bare);
    free(wrong);
}

static void homes(void **state)
{
    (void)state;
    char *out = temp_path("home"), *gguf = temp_path("home.gguf");
    program_refused(CONVERT(GOLDEN "gpt2-plain", out, "--kv-heads", "3", "--target", "native"), 4,
                    "as many key/value heads as query heads, 6; layer 0 has 3; --target can be custom, expanded, or leave it out");
    program_refused(CONVERT(GOLDEN "gpt2-plain", out, "--kv-heads", "1", "--target", "native"), 4, "--target can be retarget, custom, expanded");
    program_refused(CONVERT(GOLDEN "gpt_neo-local", out, "--kv-heads", "1", "--target", "native"), 4, "--target can be retarget (approximate), custom");
    program_refused(CONVERT(GOLDEN "bloom-plain", out, "--kv-heads", "2", "--target", "retarget"), 4, "--target can be custom, expanded");
    program_refused(CONVERT(GOLDEN "opt-350m", gguf, "--kv-heads", "3"), 4, "write a directory (a DST without .gguf) with --target custom, expanded");
    program_refused(CONVERT(GOLDEN "gpt2-plain", out, "--kv-heads", "4"), 2, "legal counts are 6, 3, 2, 1");
    assert_false(io_exists(out));
    struct child c = CONVERT(GOLDEN "gpt_neo-local", out, "--kv-heads", "1", "--target", "retarget");
    assert_int_equal(c.status, 0);
    assert_non_null(strstr(c.out, "retarget (approximate)"));
    assert_non_null(strstr(c.out, "only for contexts up to 7 tokens"));
    child_free(&c);
    c = CONVERT(GOLDEN "gpt_neo-local", out, "--kv-heads", "1", "--dry-run", "--force");
    assert_non_null(strstr(c.out, "custom")); /* what is approximate is not chosen by itself */
    child_free(&c);
    free(out);
    free(gguf);
}

static void contexts(void **state)
{
    (void)state;
    char text[900], *yaml = temp_path("context.yaml");
    program_refused(EVAL("perplexity", GOLDEN "gpt2-plain", "--data", tokens, "--format", "raw", "--context", "51"), 2, "learned positions for 50 tokens, asked for 51: lower the context");
    program_refused(EVAL("decode", GOLDEN "opt-plain", "--context", "48", "--new", "8"), 2, "lower the context");
    program_refused(EVAL("generate", GOLDEN "gpt_neo-local", "--new", "60", "--tokenizer", "bytes"), 2, "lower --new");
    int n = snprintf(text, sizeof text, "model: {path: " GOLDEN "gpt2-plain}\ndata: {train: [%s], format: raw, dtype: uint16}\nsequence_len: 60\nmax_steps: 1\noutput_dir: %s/never\n",
                     tokens, temp_dir());
    temp_write("context.yaml", text, (size_t)n);
    program_refused(UPTRAIN(yaml), 2, "max_position_embeddings 50; lower it");
    program_refused(UPTRAIN(yaml, "sequence_len=20", "gqa.num_key_value_heads=4"), 2, "legal counts are 6, 3, 2, 1");
    free(yaml);
}

static void tokenizers(void **state)
{
    (void)state;
    static const char other[] = "another tokenizer than the model's made it";
    char *text = temp_path("text.txt"), *yaml = temp_path("tokenizer.yaml"), config[900], part[300];
    temp_write("text.txt", "hello hello hello hello", 23);
    program_refused(EVAL("generate", GOLDEN "bloom-plain", "--prompt", "hello", "--new", "2"), 2, "name a tokenizer");
    program_refused(EVAL("generate", GOLDEN "bloom-plain", "--prompt", "hello", "--new", "2", "--tokenizer", "bytes"), 3, "not the tokenizer it was trained with");
    program_refused(EVAL("score", GOLDEN "bloom-plain", "--text", "hello", "--tokenizer", "bytes"), 3, "name that one with --tokenizer");
    program_refused(EVAL("perplexity", GOLDEN "bloom-plain", "--data", text, "--tokenizer", "bytes"), 3, other);
    int n = snprintf(config, sizeof config, "model: {path: " GOLDEN "bloom-plain}\ndata: {train: [%s], tokenizer: bytes}\nsequence_len: 4\nmax_steps: 1\noutput_dir: %s/never\n", text,
                     temp_dir());
    temp_write("tokenizer.yaml", config, (size_t)n);
    snprintf(part, sizeof part, "%s, tokenised: ", text);
    program_refused(UPTRAIN(yaml), 3, part);
    program_refused(UPTRAIN(yaml), 3, other); /* the second time from the cache */
    free(text);
    free(yaml);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(inspect_tells_families_apart), cmocka_unit_test(inspect_adds_up), cmocka_unit_test_setup_teardown(sources, setup, teardown), cmocka_unit_test(homes),
                                       cmocka_unit_test_setup_teardown(contexts, setup, teardown), cmocka_unit_test(tokenizers)};
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
