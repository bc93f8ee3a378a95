/* Every instant of a save at which a machine can stop, an operating system refuse, or power be lost (faults.h): training steps with their pruning,
 * .h5 and .gguf files that replace others. After each, the loader must find the old or the new state, whole, and the next save must work
 * and leave nothing behind. */
#include <fcntl.h>
#include <unistd.h>

#include "faults.h"
#include "gguf_check.h"
#include "native_model.h"

/* ---- the scenes --------------------------------------------------------------------------------------------------- */

static struct arch A;
static char *run, *h5, *gguf;

static enum code save_next(void) { return step_put(run, &A, 30, 2); }
static enum code save_again(void) { return step_put(run, &A, 20, 2); }

static enum code write_again(const char *path)
{
    struct ckpt_writer *w;
    struct ckpt_target target = {.path = path, .arch = &A, .dtype = DT_BF16, .force = 1};
    TRY(ckpt_create(&w, &target));
    for (int i = 0; i < ckpt_writer_count(w); i++) {
        const struct ckpt_tensor *t = ckpt_writer_at(w, i);
        int64_t n = t->n[0] * t->n[1];
        float *p = malloc((size_t)n * sizeof *p);
        for (int64_t k = 0; k < n; k++)
            p[k] = model_value(t->name, k);
        enum code c = ckpt_write(w, t, 0, t->n[0], p, DT_F32);
        free(p);
        if (c != OK) {
            ckpt_abandon(w);
            return c;
        }
    }
    return ckpt_commit(w);
}

static enum code file_again(void) { return write_again(h5); }
static enum code gguf_again(void) { return write_again(gguf); }

static void before_step(void)
{
    assert_ok(io_remove_tree(run));
    assert_ok(step_put(run, &A, 10, 2));
    assert_ok(step_put(run, &A, 20, 2));
}

static void before_file(void)
{
    assert_ok(io_remove_tree(run));
    assert_ok(io_mkdirs(run));
    model_make(h5, &A, DT_F32, 0);
}

static void before_gguf(void)
{
    assert_ok(io_remove_tree(run));
    assert_ok(io_mkdirs(run));
    gguf_check_hush(1);
    model_make(gguf, &A, DT_F32, 0);
    gguf_check_hush(0);
}

/* 1 when the new state is there, 0 when the old one is; anything else fails the test. */
static int after_step(int64_t was, int64_t new)
{
    int64_t found = step_found(run, &A);
    assert_true(found == was || found == new);
    return found == new;
}
static int after_next(void) { return after_step(20, 30); }
static int after_again(void) { return after_step(20, 20); }

static int after_file(void)
{
    struct checkpoint *ck;
    int files;
    assert_ok(ckpt_verify(h5, &files));
    assert_ok(ckpt_open(&ck, h5, NULL));
    enum dtype t = ckpt_at(ck, 0)->dtype;
    assert_true(t == DT_F32 || t == DT_BF16);
    model_check(ck, t);
    ckpt_close(ck);
    return t == DT_BF16;
}

/* Whole, and every value of token_embd.weight is that of its state: the same, rounded or not. */
static int after_gguf(void)
{
    struct gguf_file f;
    gguf_check_open(&f, gguf);
    const struct gguf_entry *t = gguf_check_tensor(&f, "token_embd.weight");
    int new = t->type != 0;
    for (uint64_t i = 0; i < t->ne[0] * t->ne[1]; i++) {
        float x = model_value("embed.weight", (int64_t)i);
        assert_true(gguf_check_element(t, i) == (new ? f32_from_bf16(bf16_from_f32(x)) : x));
    }
    gguf_check_close(&f);
    return new;
}

static struct scene next_step = {.name = "a new step, one pruned", .before = before_step, .act = save_next, .after = after_next, .left = 2, .heals = 1, .space = 1};
static struct scene step_again = {.name = "a step saved again", .before = before_step, .act = save_again, .after = after_again, .left = 2, .heals = 1, .same = 1, .space = 1};
static struct scene file_replaced = {.name = "an .h5 replaced", .before = before_file, .act = file_again, .after = after_file, .left = 1, .space = 1};
static struct scene gguf_replaced = {.name = "a .gguf replaced", .before = before_gguf, .act = gguf_again, .after = after_gguf, .left = 1, .space = 1};

static void test_next_step(void **state) { (void)state, fault_play(&next_step); }
static void test_step_again(void **state) { (void)state, fault_play(&step_again); }
static void test_file_replaced(void **state) { (void)state, fault_play(&file_replaced); }
static void test_gguf_replaced(void **state) { (void)state, fault_play(&gguf_replaced); }

static void test_power(void **state)
{
    (void)state;
    int random = soak_count(40, 500);
    fault_power(&next_step, random);
    fault_power(&step_again, random);
    fault_power(&file_replaced, random);
    fault_power(&gguf_replaced, random);
}

/* ---- the model of power loss itself: a file replaced without fsync must be seen torn ------------------------------------ */

static int torn;

static void before_careless(void)
{
    assert_ok(io_remove_tree(run));
    assert_ok(io_mkdirs(run));
    temp_write("run/file", "old old old old", 15);
}

static enum code act_careless(void)
{
    char *path = temp_path("run/file"), *aside = temp_path("run/aside");
    static char text[4096];
    memset(text, 'n', sizeof text);
    int fd = open(aside, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    enum code c = fd < 0 ? ERR_IO : io_pwrite(fd, aside, text, sizeof text, 0);
    for (int i = 0; c == OK && i < 10; i++)
        c = io_pwrite(fd, aside, "m", 1, 100 * i);
    close(fd);
    return c == OK ? io_rename(aside, path) : c;
}

static int after_careless(void)
{
    char *path = temp_path("run/file"), *text = NULL;
    size_t n = 0;
    enum code c = io_read_all(path, 1 << 16, &text, &n);
    int old = c == OK && n == 15, new = c == OK && n == 4096 && text[4095] == 'n' && text[900] == 'm' && text[0] == 'm';
    torn += !old && !new;
    free(text);
    free(path);
    return !old;
}

static void test_power_sees_a_missing_fsync(void **state)
{
    (void)state;
    const struct scene careless = {.name = "the careless way, for comparison", .dir = run, .before = before_careless,
                                   .act = act_careless, .after = after_careless};
    torn = 0;
    fault_power(&careless, 40);
    print_message("  of these torn: %d\n", torn);
    assert_true(torn > 5);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_next_step), cmocka_unit_test(test_step_again), cmocka_unit_test(test_file_replaced),
                                       cmocka_unit_test(test_gguf_replaced), cmocka_unit_test(test_power),
                                       cmocka_unit_test(test_power_sees_a_missing_fsync)};
    native_arch(&A, 8, 0);
    log_quiet(1);
    run = temp_path("run");
    h5 = temp_path("run/m.h5");
    gguf = temp_path("run/m.gguf");
    next_step.dir = step_again.dir = file_replaced.dir = gguf_replaced.dir = run;
    int status = harness_main(argc, argv, tests, COUNT_OF(tests));
    arch_free(&A);
    free(run);
    free(h5);
    free(gguf);
    return status;
}
