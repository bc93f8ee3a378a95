/* Memory that runs out at every allocation of a run of gqa-uptrain (two steps, a save, final/, from a run that stands at step 1), and of gqa-eval
 * perplexity, and a device that has none or dies at every call that could tell. */
#include "eval/eval.h"
#include "faults.h"
#include "runs.h"
#include "small_checkpoint.h"
#include "train_here.h"

static const char *const args[] = {"max_steps=2", "save_steps=1", "eval_steps=0", NULL};
static char *run, *model, *text, want[65];
static const struct backend *cpu;

static enum code train(const struct backend *be, int64_t stop_at)
{
    struct train_here t = {.backend = be, .out = "run", .args = args, .stop_at = stop_at};
    return train_here(&t);
}

static void before(void)
{
    assert_ok(io_remove_tree(run));
    assert_ok(train(cpu, 1));
}

static enum code act_train(void) { return train(cpu, 0); }

static void check_train(int status)
{
    (void)status;
    static int n;
    if (n++ % 8)
        return;
    assert_ok(act_train());
    assert_string_equal(runs_weights("run"), want);
}

static enum code act_perplexity(void)
{
    const char *const argv[] = {"perplexity", model, "--data", text, "--context", "21", "--stride", "8", "--threads", "1"};
    return command_perplexity(COUNT_OF(argv), (char **)(uintptr_t)argv);
}

static void nothing(void) {}

static void test_training(void **state)
{
    (void)state;
    before();
    assert_ok(act_train());
    snprintf(want, sizeof want, "%s", runs_weights("run"));
    fault_memory_play(&(struct memory_scene){"gqa-uptrain", run, before, act_train, check_train, 120});
}

static void test_eval(void **state)
{
    (void)state;
    fault_memory_play(&(struct memory_scene){"gqa-eval perplexity", NULL, nothing, act_perplexity, NULL, 90});
}

/* ---- a device that refuses -------------------------------------------------------------------------------------------- */

static struct backend faulty;
static long device_calls, device_at;
static enum code device_code;

static int device_fault(void) { return ++device_calls == device_at; }

static enum code faulty_alloc(struct device *d, struct arena *a, const char *what, size_t bytes)
{
    if (device_fault())
        return device_code == ERR_MEMORY ? fail(ERR_MEMORY, "device memory: %zu bytes for %s are not there", bytes, what) : fail(ERR_DEVICE, "device lost: launch failure");
    return cpu->device_alloc(d, a, what, bytes);
}

static enum code faulty_copy(struct device *d, void *to, const void *from, size_t n)
{
    return device_fault() ? fail(ERR_DEVICE, "device lost: launch failure") : cpu->device_copy(d, to, from, n);
}

static enum code faulty_sync(struct device *d)
{
    return device_fault() ? fail(ERR_DEVICE, "device lost: launch failure") : cpu->device_sync(d);
}

static enum code faulty_fill(struct device *d, float *p, float x, int64_t n)
{
    return device_fault() ? fail(ERR_DEVICE, "device lost: launch failure") : cpu->fill(d, p, x, n);
}

static void play_device(enum code code, const char *part)
{
    int refused = 0, done = 0, hinted = 0, stride = soak() ? 1 : 7;
    device_code = code;
    for (device_at = 1; !done; device_at += stride) {
        before();
        device_calls = 0;
        enum code c = train(&faulty, 0);
        done = device_calls < device_at;
        if (done) {
            assert_ok(c);
            break;
        }
        if (c != code && c != ERR_DEVICE)
            print_error("device call %ld: code %d: %s\n", device_at, (int)c, c ? fail_text() : "");
        assert_true(c == code || c == ERR_DEVICE);
        int hint = c == ERR_MEMORY && strstr(fail_text(), part) != NULL;
        if (c == ERR_MEMORY && !hint)
            print_error("device call %ld: %s\n", device_at, fail_text());
        assert_true(c != ERR_MEMORY || hint);
        hinted += hint;
        refused++;
        int64_t saved = device_at;
        device_at = 0;
        assert_ok(act_train());
        assert_string_equal(runs_weights("run"), want);
        device_at = saved;
    }
    print_message("  device code %d at each %d. of %ld calls: %d runs refused, %d with a smaller micro_batch_size named, all went on bit-equal\n", (int)code, stride,
                  device_calls, refused, hinted);
    assert_true(refused > 3);
}

static void test_device(void **state)
{
    (void)state;
    faulty = *cpu;
    faulty.device_alloc = faulty_alloc;
    faulty.device_copy = faulty_copy;
    faulty.device_sync = faulty_sync;
    faulty.fill = faulty_fill;
    before();
    assert_ok(act_train());
    snprintf(want, sizeof want, "%s", runs_weights("run"));
    play_device(ERR_MEMORY, "micro_batch_size");
    play_device(ERR_DEVICE, "");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_training), cmocka_unit_test(test_eval), cmocka_unit_test(test_device)};
    struct arch a;
    log_quiet(1);
    assert_ok(backend_find("cpu", &cpu));
    run = temp_path("run");
    model = temp_path("model");
    text = temp_path("eval.txt");
    small_arch(&a, 6, 3, DT_F32);
    a.V = a.original_vocab = 256;
    a.bos = a.eos = -1;
    small_write(model, &a, 3, 1, NULL);
    arch_free(&a);
    runs_text("eval.txt", 4, 200);
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
