/* Memory that runs out at every allocation while checkpoints are saved, opened, read, verified and written in each form. */
#include "faults.h"
#include "gguf_check.h"
#include "native_model.h"

static struct arch A;
static char *run, *hf, *h5, *gguf;

static void before(void)
{
    assert_ok(io_remove_tree(run));
    assert_ok(step_put(run, &A, 10, 2));
    assert_ok(step_put(run, &A, 20, 2));
}

/* step_put of native_model.c asserts; this one only calls the library. */
static struct step_made made;
static json_t *meta;
static enum code act_save(void)
{
    struct step_content content = {.step = 30, .arch = &A, .arrays = made.arrays, .n_arrays = made.n, .meta = meta};
    return step_save(run, &content, 2);
}

/* Old or new, whatever the status; new when it says so. */
static void check_save(int status)
{
    int64_t found = step_found(run, &A);
    if (found != 30 && !(found == 20 && status))
        print_error("step %lld found after status %d\n", (long long)found, status);
    assert_true(found == 30 || (found == 20 && status));
}

static enum code act_load(void)
{
    struct step_reader *r;
    int found = 0;
    TRY(step_open(&r, run, &found));
    enum code c = found ? OK : fail(ERR_INPUT, "no step");
    for (int i = 0; c == OK && i < made.n; i++)
        c = step_read(r, &made.arrays[i]);
    step_close(r);
    return c;
}

static enum code act_verify(void)
{
    int files;
    return ckpt_verify(run, &files);
}

static enum code copy(const char *to)
{
    struct checkpoint *ck = NULL;
    struct ckpt_writer *w = NULL;
    static float block[1 << 14];
    TRY(ckpt_open(&ck, hf, NULL));
    struct ckpt_target target = {.path = to, .arch = ckpt_arch(ck), .source = ck, .dtype = DT_BF16, .force = 1};
    enum code c = ckpt_create(&w, &target);
    for (int i = 0; c == OK && i < ckpt_writer_count(w); i++) {
        const struct ckpt_tensor *t = ckpt_writer_at(w, i), *s = ckpt_find(ck, t->name);
        c = ckpt_read(ck, s, 0, s->n[0], block, DT_F32);
        if (c == OK)
            c = ckpt_write(w, t, 0, t->n[0], block, DT_F32);
    }
    if (c == OK)
        c = ckpt_commit(w);
    else
        ckpt_abandon(w);
    ckpt_close(ck);
    return c;
}

static char *to_hf;
static enum code act_hf(void) { return copy(to_hf); }
static enum code act_h5(void) { return copy(h5); }
static enum code act_gguf(void) { return copy(gguf); }

static enum code act_read_h5(void)
{
    struct checkpoint *ck = NULL;
    static float block[1 << 14];
    char *path = temp_path("kept.h5"); /* NULL when memory is out already */
    if (!path)
        return fail(ERR_MEMORY, "no memory for the test's path");
    enum code c = ckpt_open(&ck, path, NULL);
    for (int i = 0; c == OK && i < ckpt_count(ck); i++)
        c = ckpt_read(ck, ckpt_at(ck, i), 0, ckpt_at(ck, i)->n[0], block, DT_F32);
    ckpt_close(ck);
    free(path);
    return c;
}

/* jansson loses bytes of a token when its lexer gets no memory (base/json.c): the reserve serves every single refusal, and nothing is lost. */
static enum code act_json(void)
{
    static const char text[] = "{\"key with \\u00e9 and \\n\": [\"a value longer than the sixteen bytes that it starts with\", 1.5, {\"k\": \"v\"}], \"b\": \"\\ud83d\\ude00\"}";
    json_t *root = NULL;
    TRY(json_parse_object(text, sizeof text - 1, "text", &root));
    const char *first = json_string_value(json_array_get(json_object_get(root, "key with \u00e9 and \n"), 0)), *b = json_string_value(json_object_get(root, "b"));
    int whole = first && b && strcmp(first, "a value longer than the sixteen bytes that it starts with") == 0 && strcmp(b, "\U0001F600") == 0 && json_object_size(root) == 2;
    json_decref(root);
    return whole ? OK : ERR_INTERNAL;
}
static void nothing(void) { }
static void check_json(int status) { assert_int_equal(status, 0); }

static void test_json(void **state)
{
    (void)state;
    fault_memory_play(&(struct memory_scene){"reading JSON", NULL, nothing, act_json, check_json, 10000});
}

static void test_save(void **state)
{
    (void)state;
    fault_memory_play(&(struct memory_scene){"saving a step", run, before, act_save, check_save, 70});
}

static void test_load(void **state)
{
    (void)state;
    fault_memory_play(&(struct memory_scene){"resuming from a step", run, before, act_load, NULL, 70});
    fault_memory_play(&(struct memory_scene){"verifying a run", run, before, act_verify, NULL, 40});
}

static void test_forms(void **state)
{
    (void)state;
    fault_memory_play(&(struct memory_scene){"directory to directory", run, before, act_hf, NULL, 70});
    fault_memory_play(&(struct memory_scene){"directory to .h5", run, before, act_h5, NULL, 70});
    fault_memory_play(&(struct memory_scene){"directory to .gguf", run, before, act_gguf, NULL, 70});
    fault_memory_play(&(struct memory_scene){"reading a .h5", run, before, act_read_h5, NULL, 70});
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_json), cmocka_unit_test(test_save), cmocka_unit_test(test_load), cmocka_unit_test(test_forms)};
    native_arch(&A, 8, 0);
    log_quiet(1);
    run = temp_path("run");
    hf = temp_path("model");
    to_hf = temp_path("run/model");
    h5 = temp_path("run/model.h5");
    gguf = temp_path("run/model.gguf");
    char *kept = temp_path("kept.h5");
    gguf_check_hush(1);
    struct ckpt_writer *w;
    struct ckpt_target target = {.path = hf, .arch = &A, .dtype = DT_F32};
    assert_ok(ckpt_create(&w, &target));
    model_fill(w, 5);
    assert_ok(ckpt_commit(w));
    model_make(kept, &A, DT_F32, 0);
    gguf_check_hush(0);
    free(kept);
    step_make(&made, &A, 30);
    meta = json_pack("{s:I, s:f, s:s}", "position", (json_int_t)90, "lr", 0.1, "isa", "plain");
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
