/* Distillation where the host cannot touch the device's memory, and in bf16: the teacher beside the student, and from its kept tokens. */
#include "bf16_backend.h"
#include "harness.h"
#include "hostile.h"
#include "runs.h"
#include "train_here.h"

static struct backend cpu;

static void find_cpu(void)
{
    const struct backend *be;
    assert_ok(backend_find("cpu", &be));
    cpu = *be;
}

/* distill.teacher=PATH of a model of the same kind. */
static const char *teacher(void)
{
    static char text[700];
    if (!text[0]) {
        const char *const args[] = {"max_steps=6", "seed=11", "data.validation=[]", NULL};
        struct train_here t = {.backend = &cpu, .out = "teacher", .args = args};
        assert_ok(train_here(&t));
        snprintf(text, sizeof text, "distill.teacher=%s/teacher/final", temp_dir());
    }
    return text;
}

static void same_result(const char *a, const char *b)
{
    char one[65];
    snprintf(one, sizeof one, "%s", runs_weights(a));
    assert_string_equal(one, runs_weights(b));
}

static void check_same(const char *kind, const char *more)
{
    char names[2][40];
    const char *const args[] = {teacher(), more, "distill.weight=0.8", "distill.temperature=1.5", "global_batch_size=4", "data.validation=[]", NULL};
    snprintf(names[0], sizeof names[0], "cpu-%s", kind);
    snprintf(names[1], sizeof names[1], "hostile-%s", kind);
    struct train_here here = {.backend = &cpu, .out = names[0], .args = args}, hostile = {.backend = hostile_backend(&cpu), .out = names[1], .args = args};
    assert_ok(train_here(&here));
    assert_ok(train_here(&hostile));
    same_result(names[0], names[1]);
}

static void test_same_bits(void **state)
{
    (void)state;
    check_same("memory", "distill.top_k=0");
    check_same("kept", "distill.top_k=7");
}

/* One look at the device in a step, nothing allocated, and the plan says what was reserved. */
static void check_quiet(const char *out, const char *more)
{
    const char *const args[] = {teacher(), more, "data.validation=[]", "global_batch_size=6", "max_steps=4", NULL};
    struct train_here t = {.backend = hostile_backend(&cpu), .out = out, .args = args};
    struct run r;
    struct plan plan;
    assert_ok(train_here_open(&r, &t));
    struct hostile_counts before = hostile_counts();
    assert_ok(trainer_run(&r));
    struct hostile_counts after = hostile_counts();
    assert_int_equal(after.reads - before.reads, 4);
    assert_int_equal(after.allocations, before.allocations);
    assert_true(r.state.kl > 0);
    r.plan = 1;
    assert_ok(plan_make(&r, &plan));
    assert_memory_equal(&plan.memory, model_memory(r.model), sizeof plan.memory);
    if (r.distill.model)
        assert_memory_equal(&plan.teacher, model_memory(r.distill.model), sizeof plan.teacher);
    assert_int_equal(plan.cache.missing, 0);
    train_here_close(&r);
}

static void test_nothing_waits(void **state)
{
    (void)state;
    check_quiet("quiet-memory", "distill.top_k=0");
    check_quiet("quiet-kept", "distill.top_k=7");
}

static double last_kl(const char *out)
{
    json_t *log = runs_log(out);
    double kl = runs_number(json_array_get(log, json_array_size(log) - 1), "kl");
    json_decref(log);
    return kl;
}

static void test_bf16(void **state)
{
    (void)state;
    const char *const f32[] = {teacher(), "data.validation=[]", NULL}, *const bf16[] = {teacher(), "precision=bf16", "data.validation=[]", NULL};
    struct train_here t = {.backend = &cpu, .out = "f32", .args = f32}, low = {.backend = hostile_backend(bf16_backend()), .out = "bf16", .args = bf16};
    assert_ok(train_here(&t));
    assert_ok(train_here(&low));
    print_message("KL after 12 steps: %.5f in f32, %.5f in bf16\n", last_kl("f32"), last_kl("bf16"));
    assert_true(last_kl("bf16") > 0 && last_kl("bf16") < 1.1 * last_kl("f32") + 0.01);
}

static const struct CMUnitTest tests[] = {cmocka_unit_test(test_same_bits), cmocka_unit_test(test_nothing_waits), cmocka_unit_test(test_bf16)};
int main(int argc, char **argv)
{
    harness_boot(argc, argv);
    find_cpu();
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
