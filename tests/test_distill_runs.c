/* Distillation as users run it: the default teacher, what logs and results say, resume, the teacher's tokens on disk, and refusals. The model is the
 * tiny one of runs.h: trained for a moment, then converted from 3 K/V heads to 1 by gqa-uptrain itself. */
#include <math.h>
#include <sys/stat.h>

#include "programs.h"
#include "runs.h"

static const char *teacher(void)
{
    static char path[700];
    if (!path[0]) {
        runs_train("teacher", ARGS("max_steps=40", "eval_steps=0"));
        snprintf(path, sizeof path, "%s/teacher/final", temp_dir());
    }
    return path;
}

/* A config of 12 steps with gqa and distill: more goes into args. */
static struct child start(const char *out, const char *distill, const char *const *args)
{
    char text[2048], dir[700], *yaml = temp_path("distill.yaml"), *program = program_path("gqa-uptrain");
    const char *argv[24] = {program, yaml, dir, NULL};
    int n = snprintf(text, sizeof text,
                     "model: {path: %s}\ngqa: {num_key_value_heads: 1}\ndata: {train: [%s/train.txt], validation: [%s/val.txt], tokenizer: bytes}\n"
                     "sequence_len: 33\nmicro_batch_size: 2\nglobal_batch_size: 4\nmax_steps: 12\noptimizer: {lr: 1e-2}\nsave_steps: 6\neval_steps: 0\n"
                     "eval_batches: 3\nlogging_steps: 1\nseed: 7\nthreads: 1\noutput_dir: %s/unset\n%s%s\n", teacher(), temp_dir(), temp_dir(), temp_dir(),
                     distill ? "distill: " : "", distill ? distill : "");
    temp_write("distill.yaml", text, (size_t)n);
    snprintf(dir, sizeof dir, "output_dir=%s/%s", temp_dir(), out);
    n = 3;
    for (; args && *args; args++)
        argv[n++] = *args;
    argv[n] = NULL;
    struct child c = child_run(argv, NULL);
    free(yaml);
    free(program);
    return c;
}

static void train(const char *out, const char *distill, const char *const *args)
{
    struct child c = start(out, distill, args);
    runs_expect(&c, 0, NULL);
}

static void refused(const char *out, const char *distill, const char *const *args, int status, const char *part)
{
    struct child c = start(out, distill, args);
    runs_expect(&c, status, part);
}

static char *file_text(const char *out, const char *name)
{
    char *path = runs_path(out, name), *bytes;
    size_t n;
    assert_ok(io_read_all(path, 1 << 24, &bytes, &n));
    free(path);
    return bytes;
}

static void holds(const char *out, const char *name, const char *part)
{
    char *text = file_text(out, name);
    if (!strstr(text, part))
        print_error("%s/%s lacks \"%s\":\n%s\n", out, name, part, text);
    assert_non_null(strstr(text, part));
    free(text);
}

static double last_kl(const char *out)
{
    json_t *lines = runs_log(out);
    double kl = runs_number(json_array_get(lines, json_array_size(lines) - 1), "kl");
    json_decref(lines);
    return kl;
}

/* Of the first and the last step. */
static void log_kls(const char *out, double kl[2])
{
    json_t *lines = runs_log(out);
    size_t n = json_array_size(lines), first = json_integer_value(json_object_get(json_array_get(lines, 0), "step")) == 0;
    kl[0] = runs_number(json_array_get(lines, first), "kl");
    kl[1] = runs_number(json_array_get(lines, n - 1), "kl");
    json_decref(lines);
}

static void test_default_teacher_and_what_is_said(void **state)
{
    (void)state;
    train("said", "{weight: 0.5}", NULL);
    json_t *lines = runs_log("said");
    for (size_t i = 0; i < json_array_size(lines); i++) {
        const json_t *line = json_array_get(lines, i);
        assert_true(json_integer_value(json_object_get(line, "step")) == 0 ? isnan(runs_number(line, "kl")) : runs_number(line, "kl") > 0);
    }
    json_decref(lines);
    holds("said", "resolved-config.yaml", "teacher/final");
    holds("said", "final/README.md", "| distilled from |");
    holds("said", "final/PROVENANCE.json", "\"teacher_hash\"");
    holds("said", "final/PROVENANCE.json", "\"sha256\"");
    char *board = runs_path("said", "tensorboard"), **names, text[800], *bytes;
    int n;
    size_t size;
    assert_ok(io_list(board, &names, &n));
    snprintf(text, sizeof text, "%s/%s", board, names[0]);
    assert_ok(io_read_all(text, 1 << 20, &bytes, &size));
    assert_non_null(memmem(bytes, size, "train/kl", 8));
    free(bytes);
    io_names_free(names, n);
    free(board);
}

static void test_weight_zero_is_no_distillation(void **state)
{
    (void)state;
    train("plain", NULL, NULL);
    train("zero", "{weight: 0}", NULL);
    assert_string_equal(runs_weights("plain"), runs_weights("zero"));
    assert_true(isnan(last_kl("zero")));
    char *text = file_text("zero", "resolved-config.yaml");
    assert_null(strstr(text, "distill"));
    free(text);
    assert_string_not_equal(runs_weights("plain"), runs_weights("said"));
}

/* Removes the last checkpoint and the result, so that the run continues from step 6. */
static void forget_end(const char *out)
{
    static const char *const names[] = {"step-00000012", "final"};
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        char *path = runs_path(out, names[i]);
        assert_ok(io_remove_tree(path));
        free(path);
    }
}

static void check_resume(const char *out, const char *distill)
{
    char before[65];
    train(out, distill, NULL);
    snprintf(before, sizeof before, "%s", runs_weights(out));
    double kl = last_kl(out);
    forget_end(out);
    struct child c = start(out, distill, NULL);
    assert_non_null(strstr(c.err, "resumed at step 6 of 12"));
    runs_expect(&c, 0, NULL);
    assert_string_equal(before, runs_weights(out));
    assert_true(kl == last_kl(out));
}

static void test_resume_is_bit_equal(void **state)
{
    (void)state;
    check_resume("resume", "{weight: 0.7, temperature: 2}");
    check_resume("resume-kept", "{weight: 0.7, top_k: 4}");
}

static void test_kept_tokens(void **state)
{
    (void)state;
    char all[900], dir[700];
    snprintf(dir, sizeof dir, "%s/kept", temp_dir());
    snprintf(all, sizeof all, "{weight: 0.5, top_k: 256, cache: %s/}", dir);
    train("kept", all, NULL);
    double kept[2], whole[2], difference = 0.0, size = 0.0;
    log_kls("kept", kept);
    log_kls("said", whole);
    int64_t n, m;
    char *x = runs_path("kept", "final"), *y = runs_path("said", "final");
    float *a = runs_read(x, &n), *b = runs_read(y, &m);
    assert_int_equal(n, m);
    for (int64_t i = 0; i < n; i++) {
        difference += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        size += (double)b[i] * (double)b[i];
    }
    difference = sqrt(difference / size);
    print_message("all 256 tokens kept: KL %.6f then %.6f, in memory %.6f then %.6f; weights after 12 steps differ by %.2g of their norm\n", kept[0], kept[1],
                  whole[0], whole[1], difference);
    assert_true(fabs(kept[0] - whole[0]) <= 1e-4 && fabs(kept[1] - whole[1]) <= 1e-4 && difference <= 1e-2); /* f16 logarithms */
    free(a);
    free(b);
    free(x);
    free(y);
    /* found again, by another seed as far as its samples are there */
    struct child c = start("kept2", all, NULL);
    assert_non_null(strstr(c.err, "holds all"));
    runs_expect(&c, 0, NULL);
    assert_string_equal(runs_weights("kept"), runs_weights("kept2"));
    c = start("kept3", all, ARGS("seed=8", "max_steps=20"));
    assert_non_null(strstr(c.err, "into "));
    runs_expect(&c, 0, NULL);
    c = start("kept4", all, ARGS("--plan"));
    assert_non_null(strstr(c.out, "0 of 48 samples missing"));
    assert_non_null(strstr(c.out, "teacher (before)"));
    runs_expect(&c, 0, NULL);
}

static void test_a_file_of_another_run(void **state)
{
    (void)state;
    char one[900], two[900];
    snprintf(one, sizeof one, "{top_k: 4, cache: %s/one.topk}", temp_dir());
    snprintf(two, sizeof two, "{top_k: 4, temperature: 2, cache: %s/one.topk}", temp_dir());
    train("file", one, NULL);
    refused("file2", two, NULL, ERR_USAGE, "its temperature is 1.0");
    char *path = temp_path("one.topk"), *bytes;
    size_t n;
    assert_ok(io_read_all(path, 1 << 24, &bytes, &n));
    bytes[n / 2] ^= 1;
    temp_write("one.topk", bytes, n);
    refused("file3", one, NULL, ERR_INPUT, "delete it");
    free(bytes);
    free(path);
}

static void test_refusals(void **state)
{
    (void)state;
    refused("r1", "{top_k: 300}", NULL, ERR_USAGE, "more than the 256 tokens");
    refused("r2", "{teacher: nowhere}", NULL, ERR_IO, "distill.teacher");
    char other[700], text[800];
    runs_train("other", ARGS("max_steps=1", "model.arch.vocab_size=260"));
    snprintf(other, sizeof other, "%s/other/final", temp_dir());
    snprintf(text, sizeof text, "{teacher: %s}", other);
    refused("r3", text, NULL, ERR_USAGE, "vocabulary of 260 tokens");
    /* a teacher that changes under a run */
    runs_train("moving", ARGS("max_steps=2"));
    snprintf(other, sizeof other, "%s/moving/final", temp_dir());
    snprintf(text, sizeof text, "{teacher: %s}", other);
    train("r4", text, NULL);
    forget_end("r4");
    runs_train("moving2", ARGS("max_steps=3"));
    char from[760], to[760];
    snprintf(from, sizeof from, "%s/moving2/final/model.safetensors", temp_dir());
    snprintf(to, sizeof to, "%s/model.safetensors", other);
    assert_ok(io_copy_file(from, to));
    refused("r4", text, NULL, ERR_INPUT, "the teacher");
}

static void test_divergence_from_a_reference(void **state)
{
    (void)state;
    char converted[700], data[700];
    (void)teacher();
    snprintf(converted, sizeof converted, "%s/converted", temp_dir());
    snprintf(data, sizeof data, "%s/val.txt", temp_dir());
    CONVERT_OK(teacher(), converted, "--kv-heads", "1", "--quiet");
    json_t *self = program_json(EVAL("perplexity", teacher(), "--reference", teacher(), "--data", data, "--tokenizer", "bytes", "--context", "32", "--json"));
    json_t *other = program_json(EVAL("perplexity", converted, "--reference", teacher(), "--data", data, "--tokenizer", "bytes", "--context", "32", "--json"));
    json_t *alone = program_json(EVAL("perplexity", converted, "--data", data, "--tokenizer", "bytes", "--context", "32", "--json"));
    double kl = json_number_at(other, "kl_per_token"), se = json_number_at(other, "kl_stderr");
    print_message("KL of a model with itself %.2g, of its conversion %.5f +- %.5f\n", json_number_at(self, "kl_per_token"), kl, se);
    assert_true(fabs(json_number_at(self, "kl_per_token")) <= 1e-6 && kl > 1e-3 && se > 0 && se < kl);
    assert_true(fabs(json_number_at(other, "nats_per_token") - json_number_at(alone, "nats_per_token")) <= 1e-5);
    assert_null(json_object_get(alone, "kl_per_token"));
    json_decref(self);
    json_decref(other);
    json_decref(alone);
    char wrong[700];
    snprintf(wrong, sizeof wrong, "%s/other/final", temp_dir());
    program_refused(EVAL("perplexity", converted, "--reference", wrong, "--data", data, "--tokenizer", "bytes"), ERR_USAGE, "vocabulary of 256");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_default_teacher_and_what_is_said), cmocka_unit_test(test_weight_zero_is_no_distillation),
    cmocka_unit_test(test_resume_is_bit_equal),              cmocka_unit_test(test_kept_tokens),
    cmocka_unit_test(test_a_file_of_another_run),            cmocka_unit_test(test_refusals),
    cmocka_unit_test(test_divergence_from_a_reference),
};
int main(int argc, char **argv) { return harness_main(argc, argv, tests, COUNT_OF(tests)); }
