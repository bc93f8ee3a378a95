/* Training treats every tensor of every family as what it is: weight decay acts on matrices of layers and head only, `freeze` finds
 * the tensors by name, every tensor learns, and the memory measured is the memory reserved. On the models that transformers saved. */
#include <fnmatch.h>

#include "model/model.h"
#include "programs.h"
#include "small_checkpoint.h"

#define GOLDEN "tests/golden/hf/"

static int setup(void **state)
{
    (void)state;
    uint16_t ids[1000];
    for (size_t i = 0; i < COUNT_OF(ids); i++)
        ids[i] = (uint16_t)random_int(5, i, 3, 15);
    temp_write("tokens.bin", ids, sizeof ids);
    return 0;
}

static struct checkpoint *opened(const char *path)
{
    struct checkpoint *ck;
    assert_ok(ckpt_open(&ck, path, NULL));
    return ck;
}

static int ends(const char *name, const char *suffix)
{
    size_t n = strlen(name), k = strlen(suffix);
    return n >= k && !strcmp(name + n - k, suffix);
}

/* The rule, by name alone. */
static int should_decay(const char *name)
{
    static const char *const matrices[] = {".attn.q.w", ".attn.k.w", ".attn.v.w", ".attn.o.w", ".mlp.gate.w", ".mlp.up.w", ".mlp.down.w"};
    for (size_t i = 0; i < COUNT_OF(matrices); i++)
        if (ends(name, matrices[i]))
            return 1;
    return !strcmp(name, "head.w") || !strcmp(name, "embed_proj_in.w") || !strcmp(name, "embed_proj_out.w");
}

static void flags_by_name(void **state)
{
    (void)state;
    char **names;
    int n, seen[T_SLOTS] = {0};
    assert_ok(io_list(GOLDEN, &names, &n));
    for (int i = 0; i < n; i++) {
        char *path = io_join(GOLDEN, names[i]);
        struct checkpoint *ck = opened(path);
        struct tensor_spec *specs;
        int count;
        assert_ok(arch_tensors(ckpt_arch(ck), &specs, &count));
        for (int k = 0; k < count; k++) {
            if (specs[k].decay != should_decay(specs[k].name))
                print_error("%s: %s: decay %d\n", names[i], specs[k].name, specs[k].decay);
            assert_int_equal(specs[k].decay, should_decay(specs[k].name));
            assert_true(!specs[k].decay || specs[k].nd == 2);
            seen[specs[k].slot] = 1;
        }
        free(specs);
        ckpt_close(ck);
        free(path);
    }
    for (int s = 0; s < T_SLOTS; s++)
        assert_true(seen[s]); /* the golden models have every tensor there is */
    io_names_free(names, n);
}

static void measured_is_reserved(void **state)
{
    (void)state;
    const struct backend *backend;
    struct device_options one = {1};
    struct device *device = NULL;
    char **names;
    int n;
    assert_ok(backend_find("cpu", &backend));
    assert_ok(backend->device_open(&device, &one));
    assert_ok(io_list(GOLDEN, &names, &n));
    for (int i = 0; i < n; i++) {
        char *path = io_join(GOLDEN, names[i]);
        struct checkpoint *ck = opened(path);
        for (int how = 0; how < 3; how++) { /* inference with a cache, training, recomputing */
            struct model_options o = {.train = how > 0, .recompute = how == 2, .dtype = DT_F32, .deterministic = 1, .B = 2, .T = 9, .cache_B = how ? 0 : 2,
                                      .cache_S = how ? 0 : 11, .cache_dtype = DT_F32};
            struct model_memory plan;
            struct model *m;
            assert_ok(model_measure(ckpt_arch(ck), backend, device, &o, &plan));
            assert_ok(model_open(&m, ckpt_arch(ck), backend, device, &o));
            assert_memory_equal(&plan, model_memory(m), sizeof plan);
            assert_true(plan.parameters >= 4 * arch_parameters(ckpt_arch(ck)));
            assert_int_equal(plan.gradients, how ? plan.parameters : 0);
            assert_true((plan.cache > 0) == (how == 0));
            model_close(m);
        }
        ckpt_close(ck);
        free(path);
    }
    backend->device_close(device);
    io_names_free(names, n);
}

/* ---- by the program ------------------------------------------------------------------------------------------------------ */

/* One step from `model`; result in TEMP/out/final. */
static char *one_step(const char *model, const char *out, const char *more)
{
    char text[1500], *yaml = temp_path("step.yaml");
    int n = snprintf(text, sizeof text,
                     "model: {path: " GOLDEN "%s, dtype: f32}\ndata: {train: [%s/tokens.bin], format: raw, dtype: uint16, pack: false}\nsequence_len: 13\n"
                     "micro_batch_size: 8\nmax_steps: 1\noptimizer: {lr: 1e-2, weight_decay: 0}\nlr_scheduler: {name: constant}\nsave_steps: 0\nthreads: 1\n"
                     "logging: {tensorboard: false, jsonl: false}\noutput_dir: %s/%s\n", model, temp_dir(), temp_dir(), out);
    temp_write("step.yaml", text, (size_t)n);
    program_ok(UPTRAIN(yaml, "--quiet", "--resume", "never", more));
    free(yaml);
    snprintf(text, sizeof text, "%s/final", out);
    return temp_path(text);
}

static int same_tensor(struct checkpoint *a, struct checkpoint *b, const struct ckpt_tensor *t)
{
    float *x = small_read(a, t->name), *y = small_read(b, t->name);
    int same = memcmp(x, y, (size_t)(t->n[0] * (t->nd > 1 ? t->n[1] : 1)) * sizeof *x) == 0;
    free(x);
    free(y);
    return same;
}

/* Every tensor is moved by a step; a weight decay moves the matrices otherwise and nothing else; what is frozen stays. */
static void decay_and_freeze(void **state)
{
    (void)state;
    static const struct { const char *model, *freeze; } table[] = {
        {"bloom-plain", "embed_norm.*"},      {"qwen3-mha-tied", "*_norm.w"},         {"stablelm-qk-layernorm", "*q_norm*"},
        {"olmo2-mha", "*.attn.k_norm.w"},     {"opt-350m", "embed_proj*"},            {"opt-plain", "pos.*"},
        {"gptj-plain", "head.*"},             {"gpt2-plain", "*.attn.*"},             {"falcon-new-mha", "dec.0.*"}};
    for (size_t i = 0; i < COUNT_OF(table); i++) {
        const char *model = table[i].model;
        char freeze[64];
        snprintf(freeze, sizeof freeze, "freeze=['%s']", table[i].freeze);
        char *path = io_join(GOLDEN, model), *plain = one_step(model, "plain", NULL);
        char *decayed = one_step(model, "decayed", "optimizer.weight_decay=0.5"), *frozen = one_step(model, "frozen", freeze);
        struct checkpoint *source = opened(path), *a = opened(plain), *b = opened(decayed), *c = opened(frozen);
        int kept = 0;
        for (int k = 0; k < ckpt_count(a); k++) {
            const struct ckpt_tensor *t = ckpt_at(a, k);
            int hold = fnmatch(table[i].freeze, t->name, 0) == 0;
            kept += hold;
            /* a bias of the keys shifts all scores of a query alike, and softmax does not see that */
            int moved = !same_tensor(source, a, t), decays = !same_tensor(a, b, t), stays = same_tensor(source, c, t);
            if ((!moved && !ends(t->name, "attn.k.b")) || decays != should_decay(t->name) || stays < hold)
                print_error("%s: %s: moved %d, decays %d, frozen %d (%d)\n", model, t->name, moved, decays, stays, hold);
            assert_true(moved || ends(t->name, "attn.k.b"));
            assert_int_equal(decays, should_decay(t->name));
            assert_true(stays == hold || ends(t->name, "attn.k.b"));
        }
        assert_true(kept > 0);
        ckpt_close(source);
        ckpt_close(a);
        ckpt_close(b);
        ckpt_close(c);
        free(path);
        free(plain);
        free(decayed);
        free(frozen);
    }
}

/* A new model of each family that model.arch can say: its class stands in config.json. */
static void new_models(void **state)
{
    (void)state;
    static const char *const families[][2] = {{"llama", "LlamaForCausalLM"}, {"mistral", "MistralForCausalLM"}, {"qwen2", "Qwen2ForCausalLM"},
                                              {"qwen3", "Qwen3ForCausalLM"}, {"olmo2", "Olmo2ForCausalLM"},     {"phi3", "Phi3ForCausalLM"}};
    char text[1500], *yaml = temp_path("new.yaml"), *out = temp_path("new"), *config = temp_path("new/final/config.json"), *final = temp_path("new/final");
    for (size_t i = 0; i <= COUNT_OF(families); i++) {
        int n = snprintf(text, sizeof text,
                         "model: {init: random, arch: {family: %s, hidden_size: 24, num_hidden_layers: 2, num_attention_heads: 6, num_key_value_heads: 3, head_dim: 8, "
                         "intermediate_size: 40, vocab_size: 40}}\ndata: {train: [%s/tokens.bin], format: raw, dtype: uint16}\nsequence_len: 13\nmax_steps: 1\n"
                         "save_steps: 0\nthreads: 1\nlogging: {tensorboard: false, jsonl: false}\noutput_dir: %s\n",
                         i < COUNT_OF(families) ? families[i][0] : "gpt2", temp_dir(), out);
        temp_write("new.yaml", text, (size_t)n);
        if (i == COUNT_OF(families)) {
            program_refused(UPTRAIN(yaml), 2, "a new model can be llama");
            break;
        }
        program_ok(UPTRAIN(yaml, "--quiet"));
        json_t *j;
        assert_ok(json_read_file(config, 1 << 16, &j));
        assert_string_equal(json_string_value(json_array_get(json_object_get(j, "architectures"), 0)), families[i][1]);
        assert_string_equal(json_string_value(json_object_get(j, "model_type")), families[i][0]);
        json_decref(j);
        ckpt_close(opened(final));
        assert_ok(io_remove_tree(out));
    }
    free(yaml);
    free(out);
    free(config);
    free(final);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(flags_by_name), cmocka_unit_test(measured_is_reserved), cmocka_unit_test_setup(decay_and_freeze, setup),
                                       cmocka_unit_test_setup(new_models, setup)};
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
