/* gqa-uptrain as a program: it learns; accumulation, recomputation and reruns do not change the result; freeze, a budget of nothing,
 * the plan and the refusals. */
#include <math.h>

#include "runs.h"

static void test_loss_falls_and_files_are_there(void **state)
{
    (void)state;
    struct child c = runs_start("learn", ARGS("max_steps=60", "eval_steps=20", "save_steps=30", "--json"), NULL);
    json_t *result;
    assert_int_equal(c.status, 0);
    assert_ok(json_parse_object(c.out, strlen(c.out), "stdout", &result));
    assert_non_null(strstr(c.err, "memory: "));
    assert_string_equal(json_string_value(json_object_get(result, "schema")), "gqakit/uptrain/1");
    print_message("loss %.4f -> %.4f\n", runs_number(result, "loss_zero_step"), runs_number(result, "loss_final"));
    assert_true(fabs(runs_number(result, "loss_zero_step") - log(256.0)) < 0.1);
    assert_true(runs_number(result, "loss_final") < 2.8);
    assert_int_equal(json_integer_value(json_object_get(result, "steps")), 60);
    json_decref(result);
    child_free(&c);
    json_t *lines = runs_log("learn");
    assert_int_equal(json_array_size(lines), 61);
    for (size_t i = 0; i <= 60; i++) {
        const json_t *line = json_array_get(lines, i);
        assert_int_equal(json_integer_value(json_object_get(line, "step")), i);
        assert_int_equal(json_integer_value(json_object_get(line, "tokens")), i * 66);
        assert_true(isfinite(runs_number(line, "loss")) == (i > 0));
        assert_true((json_object_get(line, "eval_loss") != NULL) == (i % 20 == 0));
    }
    json_decref(lines);
    static const char *const files[] = {"resolved-config.yaml", "step-00000030/MANIFEST.json", "step-00000060/MANIFEST.json", "tensorboard",
                                        "final/config.json", "final/README.md", "final/PROVENANCE.json", "final/model.safetensors"};
    for (size_t i = 0; i < COUNT_OF(files); i++) {
        char *path = runs_path("learn", files[i]);
        if (!io_exists(path))
            print_error("missing: %s\n", path);
        assert_true(io_exists(path));
        free(path);
    }
    int checked = 0;
    char *final = runs_path("learn", "final");
    assert_ok(ckpt_verify(final, &checked));
    assert_true(checked >= 3);
    free(final);
}

static void test_accumulation_does_not_change_the_result(void **state)
{
    (void)state;
    runs_train("acc1", ARGS("micro_batch_size=8", "global_batch_size=8", "eval_batches=1", "max_steps=6"));
    runs_train("acc8", ARGS("micro_batch_size=1", "gradient_accumulation_steps=8", "eval_batches=8", "max_steps=6"));
    json_t *a = runs_log("acc1"), *b = runs_log("acc8");
    double worst = 0.0;
    assert_int_equal(json_array_size(a), json_array_size(b));
    for (size_t i = 0; i < json_array_size(a); i++)
        for (int k = 0; k < 3; k++) {
            static const char *const keys[] = {"loss", "grad_norm", "eval_loss"};
            double x = runs_number(json_array_get(a, i), keys[k]), y = runs_number(json_array_get(b, i), keys[k]);
            assert_int_equal(isnan(x), isnan(y));
            if (!isnan(x))
                worst = worse_error(worst, fabs(x - y) / fabs(x));
        }
    print_message("1 x 8 against 8 x 1: worst relative difference of loss and gradient norm %.2g\n", worst);
    assert_true(worst <= 1e-6);
    json_decref(a);
    json_decref(b);
}

static void test_rerun_is_bit_equal(void **state)
{
    (void)state;
    runs_train("rerun1", ARGS("gradient_accumulation_steps=3"));
    runs_train("rerun2", ARGS("gradient_accumulation_steps=3"));
    assert_string_equal(runs_weights("rerun1"), runs_weights("rerun2"));
    runs_train("rerun3", ARGS("gradient_accumulation_steps=3", "seed=8"));
    assert_string_not_equal(runs_weights("rerun1"), runs_weights("rerun3"));
    runs_train("rerun4", ARGS("gradient_accumulation_steps=3", "activation_checkpointing=block"));
    assert_string_equal(runs_weights("rerun1"), runs_weights("rerun4"));
}

static void test_fraction_zero_copies(void **state)
{
    (void)state;
    char source[700];
    snprintf(source, sizeof source, "%s/zero1/final", temp_dir());
    runs_train("zero1", ARGS("max_steps=2"));
    char text[3000], *yaml = temp_path("zero.yaml"), *program = program_path("gqa-uptrain");
    int n = snprintf(text, sizeof text, "model: {path: %s}\ndata: {train: [%s/train.txt], validation: [%s/val.txt], tokenizer: bytes}\n"
                     "sequence_len: 33\noriginal_tokens: 1e6\nuptrain_fraction: 0\noutput_dir: %s/zero2\n", source, temp_dir(), temp_dir(),
                     temp_dir());
    temp_write("zero.yaml", text, (size_t)n);
    struct child c = child_run(ARGS(program, yaml, "--json"), NULL);
    if (c.status)
        print_error("%s", c.err);
    assert_int_equal(c.status, 0);
    json_t *j;
    assert_ok(json_parse_object(c.out, strlen(c.out), "stdout", &j));
    assert_true(isfinite(runs_number(j, "loss_final")) && runs_number(j, "loss_final") == runs_number(j, "loss_zero_step"));
    assert_int_equal(json_integer_value(json_object_get(j, "steps")), 0);
    json_decref(j);
    child_free(&c);
    int64_t na, nb;
    char *final = runs_path("zero2", "final");
    float *a = runs_read(source, &na), *b = runs_read(final, &nb);
    assert_int_equal(na, nb);
    assert_memory_equal(a, b, (size_t)na * sizeof *a);
    free(a);
    free(b);
    free(final);
    free(yaml);
    free(program);
}

static void test_freeze(void **state)
{
    (void)state;
    enum { N = 24 * 48, E = 256 * 24 };
    static float a[E], b[E];
    struct child c = runs_start("frozen", ARGS("max_steps=2", "save_steps=1", "freeze=['embed.*', 'dec.1.attn.q.w']", "optimizer.weight_decay=0.3"), NULL);
    runs_expect(&c, 0, "freeze: ");
    runs_step("frozen", 1, "param/embed.weight", a, 256, 24);
    runs_step("frozen", 2, "param/embed.weight", b, 256, 24);
    assert_memory_equal(a, b, sizeof a);
    runs_step("frozen", 1, "param/dec.1.attn.q.w", a, 48, 24);
    runs_step("frozen", 2, "param/dec.1.attn.q.w", b, 48, 24);
    assert_memory_equal(a, b, N * sizeof *a);
    runs_step("frozen", 1, "param/dec.0.attn.q.w", a, 48, 24);
    runs_step("frozen", 2, "param/dec.0.attn.q.w", b, 48, 24);
    assert_memory_not_equal(a, b, N * sizeof *a);
    /* Attention only: everything but q, k, v and o of every layer; their norm is no part of it. */
    c = runs_start("attention", ARGS("max_steps=2", "save_steps=1", "freeze=['*', '!*.attn.*']", "optimizer.weight_decay=0.3"), NULL);
    runs_expect(&c, 0, "freeze: ");
    static const struct { const char *name; int n0, n1, moves; } parts[] = {{"param/embed.weight", 256, 24, 0}, {"param/dec.0.attn_norm.w", 24, 1, 0},
        {"param/dec.1.mlp.up.w", 40, 24, 0}, {"param/dec.final_norm.w", 24, 1, 0}, {"param/dec.0.attn.q.w", 48, 24, 1}, {"param/dec.1.attn.k.w", 24, 24, 1},
        {"param/dec.0.attn.v.w", 24, 24, 1}, {"param/dec.1.attn.o.w", 24, 48, 1}};
    for (size_t i = 0; i < COUNT_OF(parts); i++) {
        runs_step("attention", 1, parts[i].name, a, parts[i].n0, parts[i].n1);
        runs_step("attention", 2, parts[i].name, b, parts[i].n0, parts[i].n1);
        int same = !memcmp(a, b, (size_t)(parts[i].n0 * parts[i].n1) * sizeof *a);
        if (same == parts[i].moves)
            print_error("%s: %s\n", parts[i].name, same ? "did not move" : "moved");
        assert_int_equal(same, !parts[i].moves);
    }
    c = runs_start("frozen2", ARGS("freeze=[nothing.*]"), NULL);
    runs_expect(&c, 2, "matches no tensor");
    c = runs_start("frozen3", ARGS("freeze=['*', '!*.attention.*']"), NULL);
    runs_expect(&c, 2, "'!*.attention.*' matches no tensor");
}

static void test_plan_and_refusals(void **state)
{
    (void)state;
    struct child c = runs_start("plan", ARGS("--plan", "--json"), NULL);
    json_t *j;
    if (c.status)
        print_error("%s", c.err);
    assert_int_equal(c.status, 0);
    assert_ok(json_parse_object(c.out, strlen(c.out), "stdout", &j));
    assert_int_equal(json_integer_value(json_object_get(j, "steps")), 12);
    assert_true(runs_number(j, "flops") > 0.0 && runs_number(json_object_get(j, "memory"), "total") > 0.0);
    json_decref(j);
    child_free(&c);
    char *dir = temp_path("plan");
    assert_false(io_exists(dir));
    free(dir);
    c = runs_start("plan", ARGS("--plan"), NULL);
    assert_non_null(strstr(c.out, "steps  "));
    runs_expect(&c, 0, NULL);
    c = runs_start("no", ARGS("precision=bf16", "--device", "cpu"), NULL);
    runs_expect(&c, 4, "precision bf16");
    c = runs_start("no", ARGS("sequence_len=65"), NULL);
    runs_expect(&c, 2, "max_position_embeddings 64");
    c = runs_start("no", ARGS("data.train=/nonexistent/a.bin"), NULL);
    assert_true(c.status == 3 || c.status == 5);
    child_free(&c);
    c = runs_start("no", ARGS("maxsteps=4"), NULL);
    runs_expect(&c, 2, "max_steps");
    char *program = program_path("gqa-uptrain");
    c = child_run(ARGS(program, "--help"), NULL);
    assert_non_null(strstr(c.out, "lr_scheduler.min_lr_ratio"));
    runs_expect(&c, 0, NULL);
    free(program);
}

/* gqa: converts first, once; the second start finds it done; another group count would orphan the checkpoints. */
static void test_convert_first(void **state)
{
    (void)state;
    char text[3000], source[700], *yaml = temp_path("gqa.yaml"), *program = program_path("gqa-uptrain"), *convert = program_path("gqa-convert");
    if (!io_exists(convert)) {
        print_message("skipped: gqa-convert is not built\n");
        skip();
    }
    runs_train("mha", ARGS("max_steps=3", "model.arch.num_key_value_heads=6"));
    snprintf(source, sizeof source, "%s/mha/final", temp_dir());
    int n = snprintf(text, sizeof text,
                     "model: {path: %s, dtype: bf16}\ngqa: {num_key_value_heads: 3}\ndata: {train: [%s/train.txt], validation: [%s/val.txt], "
                     "tokenizer: bytes}\nsequence_len: 33\nmax_steps: 3\nsave_steps: 1\noutput_dir: %s/gqa\n",
                     source, temp_dir(), temp_dir(), temp_dir());
    temp_write("gqa.yaml", text, (size_t)n);
    struct child c = child_run(ARGS(program, yaml), NULL);
    assert_non_null(strstr(c.err, "converting"));
    runs_expect(&c, 0, NULL);
    char *final = runs_path("gqa", "final");
    struct checkpoint *ck;
    assert_ok(ckpt_open(&ck, final, NULL));
    assert_int_equal(ckpt_arch(ck)->stack[STACK_DEC].block[0].G, 3);
    assert_int_equal(ckpt_at(ck, 0)->dtype, DT_BF16);
    ckpt_close(ck);
    int checked;
    assert_ok(ckpt_verify(final, &checked));
    free(final);
    c = child_run(ARGS(program, yaml), NULL);
    runs_expect(&c, 0, "already converted");
    c = child_run(ARGS(program, yaml, "gqa.num_key_value_heads=2"), NULL);
    runs_expect(&c, 2, "converted otherwise");
    c = child_run(ARGS(program, yaml, "gqa.num_key_value_heads=4", "output_dir=/nonexistent-for-a-plan/x", "--plan"), NULL);
    runs_expect(&c, 2, "use a divisor");
    free(yaml);
    free(program);
    free(convert);
}

static void test_plan_says_what_does_not_fit(void **state)
{
    (void)state;
    struct child c = runs_start("huge", ARGS("--plan", "model.arch.hidden_size=16384", "model.arch.num_attention_heads=128", "model.arch.head_dim=128",
                                             "model.arch.num_key_value_heads=128", "model.arch.num_hidden_layers=120",
                                             "model.arch.intermediate_size=65536", "--device", "cpu"), NULL); /* a GPU says it itself */
    assert_non_null(strstr(c.out, "parameters"));
    runs_expect(&c, 6, "micro_batch_size");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loss_falls_and_files_are_there), cmocka_unit_test(test_accumulation_does_not_change_the_result),
        cmocka_unit_test(test_rerun_is_bit_equal), cmocka_unit_test(test_fraction_zero_copies), cmocka_unit_test(test_freeze),
        cmocka_unit_test(test_plan_and_refusals), cmocka_unit_test(test_convert_first), cmocka_unit_test(test_plan_says_what_does_not_fit)};
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
