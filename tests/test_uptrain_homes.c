/* Families whose class has no key/value heads go through gqa-uptrain: conversion chooses a home, training runs, final/ is written
 * there and opens again; a model that only a .h5 can hold natively ends in gqakit's own form. */
#include "runs.h"

static void tokens_file(void)
{
    uint16_t ids[4000];
    for (size_t i = 0; i < COUNT_OF(ids); i++)
        ids[i] = (uint16_t)random_int(4, i, 0, 30);
    temp_write("tokens.bin", ids, sizeof ids);
}

/* Runs from a model with G heads (0: as it is); the caller frees nothing. */
static struct child train(const char *model, int G, const char *out, const char *more)
{
    char text[2000], gqa[64] = "", *yaml = temp_path("home.yaml"), *program = program_path("gqa-uptrain");
    if (G)
        snprintf(gqa, sizeof gqa, "gqa: {num_key_value_heads: %d}\n", G);
    int n = snprintf(text, sizeof text,
                     "model: {path: %s, dtype: f32}\n%sdata: {train: [%s/tokens.bin], validation: [%s/tokens.bin], format: raw, dtype: uint16}\n"
                     "sequence_len: 17\nmicro_batch_size: 2\nmax_steps: 3\neval_batches: 2\nsave_steps: 0\nthreads: 1\noutput_dir: %s/%s\n",
                     model, gqa, temp_dir(), temp_dir(), temp_dir(), out);
    temp_write("home.yaml", text, (size_t)n);
    struct child c = child_run(ARGS(program, yaml, more), NULL);
    free(yaml);
    free(program);
    return c;
}

static void final_is(const char *out, const char *family, int64_t G)
{
    struct checkpoint *ck;
    char *final = runs_path(out, "final");
    int checked;
    assert_ok(ckpt_open(&ck, final, NULL));
    assert_string_equal(ckpt_arch(ck)->family, family);
    assert_int_equal(ckpt_arch(ck)->stack[STACK_DEC].block[0].G, G);
    ckpt_close(ck);
    assert_ok(ckpt_verify(final, &checked));
    free(final);
}

static void families_without_groups(void **state)
{
    (void)state;
    static const struct { const char *model; int G; const char *family; } table[] = {
        {"gpt_neox-parallel", 2, "phi"}, {"gpt2-plain", 3, "gqakit"}, {"gpt2-plain", 1, "gpt_bigcode"}, {"bloom-plain", 2, "gqakit"}, {"falcon-mha", 3, "falcon"}};
    tokens_file();
    for (size_t i = 0; i < COUNT_OF(table); i++) {
        char *model = io_join("tests/golden/hf", table[i].model), out[32];
        snprintf(out, sizeof out, "run%zu", i);
        struct child c = train(model, table[i].G, out, "--plan");
        runs_expect(&c, 0, NULL);
        c = train(model, table[i].G, out, NULL);
        runs_expect(&c, 0, NULL);
        final_is(out, table[i].family, table[i].G);
        free(model);
    }
}

static void what_only_h5_holds(void **state)
{
    (void)state;
    char *program = program_path("gqa-convert"), *h5 = temp_path("layers.h5");
    tokens_file();
    struct child c = child_run(ARGS(program, "tests/golden/hf/llama-mha", h5, "--kv-heads-per-layer", "2,1", "--force"), NULL);
    runs_expect(&c, 0, NULL);
    c = train(h5, 0, "layers", NULL);
    runs_expect(&c, 0, "trust_remote_code");
    final_is("layers", "gqakit", 2);
    free(program);
    free(h5);
}

/* gqa: passes on to gqa-convert; a changed calibration file is another conversion. */
static void calibrated_first(void **state)
{
    (void)state;
    char calibration[600], *program = program_path("gqa-uptrain"), *yaml = temp_path("home.yaml");
    tokens_file();
    struct child c = train("tests/golden/hf/gpt_neox-parallel", 2, "calibrated", "--plan");
    runs_expect(&c, 0, NULL);
    snprintf(calibration, sizeof calibration, "gqa.calibration=%s/tokens.bin", temp_dir());
    for (int i = 0; i < 2; i++) {
        c = child_run(ARGS(program, yaml, "gqa.method=svd", "gqa.grouping=similar", calibration, "gqa.refit=block", "gqa.calibration_tokens=2000"), NULL);
        runs_expect(&c, 0, i ? "already converted" : "converting");
    }
    final_is("calibrated", "phi", 2);
    char *path = temp_path("calibrated/converted/README.md"), *text;
    size_t n;
    assert_ok(io_read_all(path, 1 << 16, &text, &n));
    assert_non_null(strstr(text, "Starting loss"));
    assert_non_null(strstr(text, "put side by side"));
    free(text);
    free(path);
    free(program);
    free(yaml);
}

/* The whole recipe by gqa-eval ablate, whose children choose the homes. */
static void ablation(void **state)
{
    (void)state;
    char text[2000], *yaml = temp_path("ablate.yaml"), *program = program_path("gqa-eval");
    tokens_file();
    temp_write("tokens.bin.json", "{\"dtype\": \"uint16\", \"vocab\": 40}", 32);
    int n = snprintf(text, sizeof text,
                     "name: homes\nmodel: {path: tests/golden/hf/gpt_neox-parallel}\noutput_dir: %s/ablation\n"
                     "grid: {num_key_value_heads: [2, 1], method: [mean, svd+block], uptrain_fraction: [0, 0.5]}\n"
                     "gqa: {calibration: %s/tokens.bin, calibration_tokens: 2000}\n"
                     "uptrain:\n  data: {train: [%s/tokens.bin], validation: [%s/tokens.bin], format: raw, dtype: uint16}\n"
                     "  sequence_len: 16\n  micro_batch_size: 4\n  original_tokens: 512\n  optimizer: {lr: 1.0e-3}\n"
                     "evaluate: {data: [%s/tokens.bin], context: 16, limit: 200, decode: {batch: [1], context: [16], new: 2, repeats: 1}}\n"
                     "margin: 9\nthreads: 1\n",
                     temp_dir(), temp_dir(), temp_dir(), temp_dir(), temp_dir());
    temp_write("ablate.yaml", text, (size_t)n);
    struct child c = child_run(ARGS(program, "ablate", yaml), NULL);
    runs_expect(&c, 0, NULL);
    char *path = temp_path("ablation/results.json");
    json_t *j = NULL;
    assert_ok(json_read_file(path, 1 << 22, &j));
    const json_t *cells = json_object_get(j, "cells");
    assert_int_equal(json_array_size(cells), 2 + 2 * 2 * 2);
    for (size_t i = 0; i < 10; i++)
        assert_string_equal(json_string_value(json_object_get(json_array_get(cells, i), "status")), "done");
    assert_non_null(strstr(json_string_value(json_object_get(json_array_get(cells, 1), "home")), "PhiForCausalLM"));
    json_decref(j);
    free(path);
    path = temp_path("ablation/report.md");
    char *report = NULL;
    size_t bytes = 0;
    assert_ok(io_read_all(path, 1 << 22, &report, &bytes));
    assert_non_null(strstr(report, "Home: "));
    free(report);
    free(path);
    free(yaml);
    free(program);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(families_without_groups), cmocka_unit_test(what_only_h5_holds), cmocka_unit_test(calibrated_first), cmocka_unit_test(ablation)};
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
