/* The config of gqa-uptrain: budgets, aliases, contradictions refused with file and line, the resolved config as a legal config. */
#include <math.h>

#include "harness.h"

#include "uptrain/options.c"
#include "uptrain/options_check.c"

#define HEAD "model: {path: m}\ndata: {train: [a.bin]}\noutput_dir: out\nsequence_len: 64\n"

static enum code load(struct options *o, const char *text, int n, const char *const *overrides)
{
    temp_write("c.yaml", text, strlen(text));
    char *path = temp_path("c.yaml"), *copy[8];
    for (int i = 0; i < n; i++)
        copy[i] = strdup(overrides[i]);
    enum code c = options_load(o, path, n, copy);
    for (int i = 0; i < n; i++)
        free(copy[i]);
    free(path);
    return c;
}

static void refused(const char *text, enum code code, const char *part)
{
    struct options o;
    assert_refused(load(&o, text, 0, NULL), code, part);
    options_free(&o);
}

static void test_defaults(void **state)
{
    (void)state;
    struct options o;
    struct budget b;
    assert_ok(load(&o, HEAD "max_steps: 10\n", 0, NULL));
    assert_int_equal(o.micro_batch_size, 1);
    assert_int_equal(o.global_batch_size, 1);
    assert_int_equal(o.accumulation, 1);
    assert_true(o.optimizer.lr == 1e-4 && o.optimizer.beta1 == 0.9 && o.optimizer.beta2 == 0.95 && o.optimizer.weight_decay == 0.1);
    assert_true(o.max_grad_norm == 1.0);
    assert_int_equal(o.schedule.name, SCHEDULE_COSINE);
    assert_int_equal(o.save_total_limit, 2);
    assert_string_equal(o.resume, "auto");
    assert_int_equal(o.gqa.kv_heads, UNSET_INT);
    assert_ok(options_budget(&o, &b));
    assert_int_equal(b.steps, 10);
    assert_int_equal(b.tokens, 640);
    options_free(&o);
}

static void test_budgets(void **state)
{
    (void)state;
    static const struct { const char *text; int64_t steps, warmup; } cases[] = {
        {"original_tokens: 1.0e6\nuptrain_fraction: 0.05\nglobal_batch_size: 4\n", 196, 0}, /* 50000 / 256 = 195.3 */
        {"original_tokens: 1.28e4\nuptrain_fraction: 0.02\nglobal_batch_size: 4\n", 1, 0},  /* 256 exactly */
        {"original_tokens: 1e6\nuptrain_fraction: 0\n", 0, 0},
        {"max_tokens: 1_000\nlr_scheduler: {warmup_ratio: 0.1}\n", 16, 2},
        {"max_steps: 7\ngradient_accumulation_steps: 3\nmicro_batch_size: 2\nlr_scheduler: {name: wsd, warmup_steps: 7}\n", 7, 7},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        char text[1024];
        struct options o;
        struct budget b;
        snprintf(text, sizeof text, "%s%s", HEAD, cases[i].text);
        assert_ok(load(&o, text, 0, NULL));
        assert_ok(options_budget(&o, &b));
        assert_int_equal(b.steps, cases[i].steps);
        assert_int_equal(b.warmup, cases[i].warmup);
        options_free(&o);
    }
}

static void test_aliases_and_overrides(void **state)
{
    (void)state;
    struct options o;
    const char *const over[] = {"optimizer.lr=2e-5", "max_steps=5", "model.path=other"};
    assert_ok(load(&o, "base_model: m\ndata: {train: a.bin}\nout_dir: o\nseq_length: 32\nlearning_rate: 1e-3\nadam_beta1: 0.8\n"
                       "gradient_checkpointing: true\nwarmup_steps: 1\nlog_interval: 3\n", 3, over));
    assert_string_equal(o.model_path, "other");
    assert_string_equal(o.output_dir, "o");
    assert_int_equal(o.sequence_len, 32);
    assert_true(o.optimizer.lr == 2e-5 && o.optimizer.beta1 == 0.8 && o.optimizer.beta2 == 0.95);
    assert_int_equal(o.checkpointing, 1);
    assert_int_equal(o.schedule.warmup_steps, 1);
    assert_int_equal(o.logging_steps, 3);
    assert_int_equal(o.data.train.n, 1);
    options_free(&o);
}

static void test_refusals_name_the_line(void **state)
{
    (void)state;
    refused(HEAD "max_steps: 5\nmax_tokens: 9\n", ERR_USAGE, "c.yaml:5");
    refused(HEAD "max_steps: 5\nmax_tokens: 9\n", ERR_USAGE, "exclude each other");
    refused(HEAD "uptrain_fraction: 0.1\n", ERR_USAGE, "original_tokens");
    refused(HEAD "uptrain_fraction: 0.1\n", ERR_USAGE, "c.yaml:5");
    refused(HEAD, ERR_USAGE, "no budget");
    refused(HEAD "max_steps: 5\nglobal_batch_size: 4\ngradient_accumulation_steps: 2\n", ERR_USAGE, "c.yaml:7");
    refused(HEAD "max_steps: 5\nglobal_batch_size: 5\nmicro_batch_size: 2\n", ERR_USAGE, "no multiple of micro_batch_size 2");
    refused(HEAD "max_steps: 5\nlearnin_rate: 2\n", ERR_USAGE, "c.yaml:6");
    refused(HEAD "max_steps: 5\noptimizer: {lrr: 2}\n", ERR_USAGE, "optimizer.lr");
    refused(HEAD "max_steps: 5\noptimizer: {betas: [0.9]}\n", ERR_USAGE, "two numbers");
    refused(HEAD "max_steps: 5\noptimizer: {betas: [0.9, 1.0]}\n", ERR_USAGE, "below 1");
    refused(HEAD "max_steps: 5\noptimizer: {betas: [0.9, 0.99], adam_beta2: 0.9}\n", ERR_USAGE, "keep one");
    refused(HEAD "max_steps: 5\noptimizer: {name: adafactor}\n", ERR_UNSUPPORTED, "T5");
    refused(HEAD "max_steps: 5\nsave_total_limit: 1\n", ERR_USAGE, "save_total_limit");
    refused(HEAD "max_steps: 5\nlr_scheduler: {name: cosinus}\n", ERR_USAGE, "cosine");
    refused(HEAD "max_steps: 5\nlr_scheduler: {warmup_steps: 1, warmup_ratio: 0.1}\n", ERR_USAGE, "exclude each other");
    refused(HEAD "max_steps: 5\ngqa: {num_key_value_heads: 2, refit: procrustes}\n", ERR_USAGE, "gqa.refit");
    refused(HEAD "max_steps: 5\ngqa: {num_key_value_heads: 2, refit: all}\n", ERR_USAGE, "gqa.calibration");
    refused(HEAD "max_steps: 5\ngqa: {num_key_value_heads: 2, calibration_tokens: 10}\n", ERR_USAGE, "calibration_tokens");
    refused(HEAD "max_steps: 5\ndistill: {weight: 0.3}\n", ERR_USAGE, "distill needs a teacher");
    refused(HEAD "max_steps: 5\ndistill: {teacher: x, cache: f}\n", ERR_USAGE, "needs distill.top_k");
    refused(HEAD "max_steps: 5\ndistill: {teacher: x, weight: 1.5}\n", ERR_USAGE, "distill.weight");
    refused(HEAD "max_steps: 5\ndistill: {teacher: x, temperature: 0}\n", ERR_USAGE, "distill.temperature");
    refused(HEAD "max_steps: 5\ndistill: {techer: x}\n", ERR_USAGE, "distill.teacher");
    refused(HEAD "max_steps: 5\ngqa: {method: mean}\n", ERR_USAGE, "num_key_value_heads or kv_budget");
    refused(HEAD "max_steps: 5\ngqa: {kv_budget: 25%}\n", ERR_USAGE, "gqa.kv_budget needs gqa.calibration");
    refused(HEAD "max_steps: 5\ngqa: {kv_budget: 25%, calibration: f, num_key_value_heads: 2}\n", ERR_USAGE, "exclude each other");
    refused(HEAD "max_steps: 5\ninit: random\n", ERR_USAGE, "model.init");
    refused("data: {train: a}\noutput_dir: o\nsequence_len: 4\nmax_steps: 1\n", ERR_USAGE, "model.path");
    refused("model: {path: m}\noutput_dir: o\nsequence_len: 4\nmax_steps: 1\n", ERR_USAGE, "data.train");
    refused("model: {path: m}\ndata: {train: a}\noutput_dir: o\nmax_steps: 1\n", ERR_USAGE, "sequence_len");
    refused("model: {path: m}\ndata: {train: a}\nsequence_len: 4\nmax_steps: 1\n", ERR_USAGE, "output_dir");
    refused("model: {init: random}\ndata: {train: a}\nsequence_len: 4\nmax_steps: 1\noutput_dir: o\n", ERR_USAGE, "hidden_size");
    refused("model: {init: random, path: m}\ndata: {train: a}\nsequence_len: 4\nmax_steps: 1\noutput_dir: o\n", ERR_USAGE, "exclude");
    refused(HEAD "max_steps: 9_000_000_000_000_000\nglobal_batch_size: 268435456\n", ERR_USAGE, "too large");
}

/* Loading the resolved config gives the same resolved config. */
static void test_resolved_config_is_a_fixed_point(void **state)
{
    (void)state;
    static const char *const texts[] = {
        HEAD "max_steps: 5\ngqa: {num_key_value_heads: 2}\nfreeze: [embed.*, 'dec.0.*']\nglobal_batch_size: 6\nmicro_batch_size: 2\n"
             "optimizer: {lr: 3e-5, betas: [0.91, 0.97]}\n",
        HEAD "max_steps: 5\ngqa: {kv_budget: 25%, calibration: f, method: auto}\ndistill: {weight: 0.5}\n",
        HEAD "max_steps: 5\ngqa: {kv_budget: 4096, calibration: f}\n",
        "model: {init: random, arch: {hidden_size: 48, num_hidden_layers: 2, num_attention_heads: 6, intermediate_size: 64, "
        "tie_word_embeddings: true}}\ndata: {train: [a.txt, b.txt], validation: v.txt, tokenizer: bytes, pack: false}\n"
        "sequence_len: 16\noriginal_tokens: 5.0e9\nuptrain_fraction: 0.05\noutput_dir: 'out 1'\nlogging: {tensorboard: false}\n",
    };
    for (size_t i = 0; i < COUNT_OF(texts); i++) {
        struct options o, again;
        assert_ok(load(&o, texts[i], 0, NULL));
        json_t *first = options_to_json(&o);
        char *yaml = config_json_to_yaml(first);
        assert_ok(load(&again, yaml, 0, NULL));
        json_t *second = options_to_json(&again);
        if (!json_equal(first, second))
            print_error("%s", yaml);
        assert_true(json_equal(first, second));
        json_decref(first);
        json_decref(second);
        free(yaml);
        options_free(&o);
        options_free(&again);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_defaults), cmocka_unit_test(test_budgets),
                                       cmocka_unit_test(test_aliases_and_overrides), cmocka_unit_test(test_refusals_name_the_line),
                                       cmocka_unit_test(test_resolved_config_is_a_fixed_point)};
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
