/* Everything above kernels/ on memory the host must not touch (tests/hostile.h): the model's passes, decode under recorded steps,
 * the trainer with checkpoints and resume, and the commands of gqa-eval, each against the plain CPU backend bit for bit. */
#include <math.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bf16_backend.h"
#include "eval/eval.h"
#include "hostile.h"
#include "model_fixture.h"
#include "model_variants.h"
#include "runs.h"
#include "small_checkpoint.h"
#include "train_here.h"

#define CPU_SLOT(op) .op = cpu_##op,
static const struct backend cpu = {.name = "cpu", KERNEL_OPS(CPU_SLOT)};
static const struct backend *chosen = &cpu;

/* Stands before kernels/backend.c: the commands of gqa-eval and the fixtures take what the test has chosen. */
enum code backend_find(const char *name, const struct backend **backend)
{
    (void)name;
    *backend = chosen;
    return OK;
}

/* ---- the backend itself ------------------------------------------------------------------------------------------------- */

static void test_touching_is_fatal(void **state)
{
    (void)state;
    const struct backend *be = hostile_backend(&cpu);
    struct arena a = {0};
    struct device *dev = NULL;
    struct device_options o = {1};
    float host[4] = {1, 2, 3, 4};
    assert_ok(be->device_open(&dev, &o));
    assert_ok(be->device_alloc(dev, &a, "test", 256));
    float *p = arena_carve(&a, 16);
    assert_ok(be->device_copy(dev, p, host, 16));
    assert_ok(be->fill(dev, p, 5.0f, 2));
    assert_refused(be->fill(dev, host, 0.0f, 4), ERR_INTERNAL, "not device memory");
    assert_refused(be->fill(dev, p, 0.0f, 1 << 20), ERR_INTERNAL, "not device memory");
    assert_ok(be->device_copy(dev, host, p, 16));
    assert_true(host[0] == 5.0f && host[3] == 4.0f);
    pid_t child = fork();
    if (child == 0) {
        signal(SIGSEGV, SIG_DFL);
        p[0] = 1.0f;
        _exit(0);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) || (WIFEXITED(status) && WEXITSTATUS(status) != 0)); /* AddressSanitizer exits instead */
    be->device_free(dev, &a);
    be->device_close(dev);
}

/* ---- model ---------------------------------------------------------------------------------------------------------------- */

struct outputs {
    float logp[TINY_B * TINY_T], logits[16][TINY_B * 37], *grads;
    double score, loss;
    int64_t scored, count, n;
};

static void upload(struct tiny *t)
{
    for (int i = 0; i < t->ref.count; i++) {
        const struct model_param *p = model_param_find(t->m, t->ref.tensor[i].name);
        size_t bytes = (size_t)p->count * dtype_bytes(p->master.dtype);
        void *host = malloc(bytes);
        assert_non_null(host);
        convert_elements(host, p->master.dtype, t->ref.tensor[i].p, DT_F64, (size_t)p->count);
        assert_ok(t->be->device_copy(t->dev, p->master.p, host, bytes));
        free(host);
    }
    assert_ok(model_refresh(t->m));
}

static void open_on(struct tiny *t, const struct backend *be, struct arch *a, const struct model_options *o)
{
    struct model_options none = tiny_options(0);
    tiny_open(t, a, &none); /* the reference's weights and the batch; its own model is not used */
    model_close(t->m);
    t->be->device_close(t->dev);
    struct device_options device = {1};
    t->be = be;
    assert_ok(be->device_open(&t->dev, &device));
    assert_ok(model_open(&t->m, &t->arch, be, t->dev, o));
    upload(t);
}

static void gradients(struct tiny *t, struct outputs *out)
{
    struct step_scalars host = {.inv_count = 1.0f / (float)t->valid}, *s;
    struct arena a = {0};
    struct model_flat f = model_flat(t->m);
    assert_ok(t->be->device_alloc(t->dev, &a, "scalars", 256));
    s = arena_carve(&a, sizeof *s);
    assert_ok(t->be->device_copy(t->dev, s, &host, sizeof host));
    int64_t reads = hostile_counts().reads;
    for (int micro = 0; micro < 2; micro++)
        assert_ok(model_forward_backward(t->m, &t->batch, &s->inv_count, &s->loss_sum, &s->count));
    assert_int_equal(hostile_counts().reads, reads);
    assert_ok(t->be->device_copy(t->dev, &host, s, sizeof host));
    out->grads = malloc((size_t)f.n * sizeof(float));
    assert_non_null(out->grads);
    assert_ok(t->be->device_copy(t->dev, out->grads, f.grads, (size_t)f.n * sizeof(float)));
    out->loss = host.loss_sum;
    out->count = host.count;
    out->n = f.n;
    t->be->device_free(t->dev, &a);
}

static void decode(struct tiny *t, struct outputs *out)
{
    int32_t ids[TINY_B * 3];
    for (int step = 0, at = 0, n = 3; step < 9 && at + n <= TINY_T; at += n, n = 1, step++) {
        for (int b = 0; b < TINY_B; b++)
            memcpy(ids + b * n, t->batch.ids + b * TINY_T + at, (size_t)n * sizeof *ids);
        if (step == 0)
            assert_ok(model_prefill(t->m, ids, TINY_B, n, out->logits[step]));
        else
            assert_ok(model_decode(t->m, ids, TINY_B, n, step == 4 ? NULL : out->logits[step]));
    }
}

static void all_passes(const struct backend *be, void (*change)(struct arch *), int recompute, struct outputs *out)
{
    struct tiny t;
    struct arch a;
    struct model_options o = tiny_options(1);
    memset(out, 0, sizeof *out);
    o.recompute = recompute;
    fixture_arch(&a);
    change(&a);
    open_on(&t, be, &a, &o);
    assert_ok(model_score(t.m, &t.batch, view_2d(out->logp, DT_F32, TINY_B, TINY_T), &out->score, &out->scored));
    assert_ok(model_score(t.m, &t.batch, view_none(), &out->score, &out->scored));
    gradients(&t, out);
    tiny_close(&t);
    o = tiny_options(0);
    o.cache_B = TINY_B;
    o.cache_S = 16;
    o.dtype = o.cache_dtype = recompute ? DT_BF16 : DT_F32;
    fixture_arch(&a);
    change(&a);
    open_on(&t, be, &a, &o);
    decode(&t, out);
    tiny_close(&t);
}

static void plain(struct arch *a) { a->logit_softcap = 3.0; }

static void biased(struct arch *a)
{
    a->tied = 0;
    a->norm = NORM_LAYER;
    a->mlp = MLP_GELU_TANH;
    a->pos = POS_LEARNED;
    a->pos_offset = 2;
    a->bias = BIAS_NORM | BIAS_Q | BIAS_K | BIAS_V | BIAS_O | BIAS_MLP_IN | BIAS_MLP_OUT | BIAS_HEAD;
}

static void check_passes(void (*change)(struct arch *), int recompute)
{
    struct outputs want, got;
    all_passes(&cpu, change, recompute, &want);
    int64_t runs = hostile_counts().graph_runs;
    all_passes(hostile_backend(&cpu), change, recompute, &got);
    assert_true(hostile_counts().graph_runs - runs >= 6);
    assert_memory_equal(want.logp, got.logp, sizeof want.logp);
    assert_memory_equal(want.logits, got.logits, sizeof want.logits);
    assert_memory_equal(&want.score, &got.score, sizeof want.score);
    assert_memory_equal(&want.loss, &got.loss, sizeof want.loss);
    assert_int_equal(want.scored, got.scored);
    assert_int_equal(want.count, got.count);
    assert_int_equal(want.n, got.n);
    assert_memory_equal(want.grads, got.grads, (size_t)want.n * sizeof(float));
    free(want.grads);
    free(got.grads);
}

static void test_model(void **state)
{
    (void)state;
    check_passes(plain, 0);
    check_passes(biased, 1);
    for (int i = 0; i < model_variants(); i++)
        check_passes(MODEL_VARIANTS[i].change, i % 2);
}

/* The gradients of a variant on a backend, matrices of a type; without the padding, which depends on the type. */
static void variant_gradients(int i, const struct backend *be, enum dtype type, int recompute, struct outputs *out)
{
    struct tiny t;
    struct arch a;
    struct model_options o = tiny_options(1);
    memset(out, 0, sizeof *out);
    o.dtype = type;
    o.recompute = o.no_master = recompute;
    fixture_arch(&a);
    MODEL_VARIANTS[i].change(&a);
    open_on(&t, be, &a, &o);
    gradients(&t, out);
    out->n = 0;
    for (int k = 0; k < model_param_count(t.m); k++) {
        const struct model_param *p = model_param_at(t.m, k);
        memmove(out->grads + out->n, out->grads + p->offset, (size_t)p->count * sizeof(float));
        out->n += p->count;
    }
    tiny_close(&t);
}

/* Trained in bf16 every variant comes near f32, and recomputed, without master weights, it leaves the same bits. */
static void test_variants_bf16(void **state)
{
    (void)state;
    for (int i = 0; i < model_variants(); i++) {
        struct outputs want, got, again;
        double error = 0.0, power = 0.0;
        variant_gradients(i, &cpu, DT_F32, 0, &want);
        variant_gradients(i, hostile_backend(bf16_backend()), DT_BF16, 0, &got);
        variant_gradients(i, hostile_backend(bf16_backend()), DT_BF16, 1, &again);
        assert_int_equal(want.n, got.n);
        assert_memory_equal(got.grads, again.grads, (size_t)got.n * sizeof(float));
        for (int64_t k = 0; k < want.n; k++) {
            error += pow((double)got.grads[k] - (double)want.grads[k], 2.0);
            power += pow((double)want.grads[k], 2.0);
        }
        print_message("%-24s gradients in bf16: relative error %.4f\n", MODEL_VARIANTS[i].name, sqrt(error / power));
        assert_true(sqrt(error / power) <= 0.1);
        assert_true(fabs(got.loss - want.loss) <= 0.02 * want.loss);
        free(want.grads);
        free(got.grads);
        free(again.grads);
    }
}

static void test_load_and_init(void **state)
{
    (void)state;
    struct arch a;
    struct checkpoint *ck;
    struct device *dev;
    struct device_options device = {1};
    struct model_options o = {.train = 1, .dtype = DT_F32, .B = 1, .T = 5};
    const struct backend *be = hostile_backend(&cpu);
    char *path = temp_path("small-load");
    small_arch(&a, 6, 3, DT_BF16);
    small_write(path, &a, 3, 1, NULL);
    assert_ok(ckpt_open(&ck, path, NULL));
    assert_ok(be->device_open(&dev, &device));
    struct model *m;
    assert_ok(model_open(&m, ckpt_arch(ck), be, dev, &o));
    assert_ok(model_init(m, 0.02, 5));
    assert_ok(model_load(m, ck));
    const struct model_param *p = model_param_find(m, "dec.1.attn.v.w");
    assert_non_null(p);
    float *want = small_read(ck, p->spec.name), *got = malloc((size_t)p->count * sizeof *got);
    assert_ok(be->device_copy(dev, got, p->value.p, (size_t)p->count * sizeof *got));
    assert_memory_equal(want, got, (size_t)p->count * sizeof *got);
    free(want);
    free(got);
    model_close(m);
    be->device_close(dev);
    ckpt_close(ck);
    arch_free(&a);
    free(path);
}

/* ---- training ------------------------------------------------------------------------------------------------------------- */

static void same_file(const char *out_a, const char *out_b, const char *name)
{
    char a[65], b[65], *x = runs_path(out_a, name), *y = runs_path(out_b, name);
    assert_ok(sha256_file(x, a));
    assert_ok(sha256_file(y, b));
    assert_string_equal(a, b);
    free(x);
    free(y);
}

static void test_training(void **state)
{
    (void)state;
    const char *const args[] = {"save_steps=5", "global_batch_size=4", "freeze=[dec.0.attn.q.*]", "max_grad_norm=0.3", NULL};
    struct train_here here = {.backend = &cpu, .out = "cpu", .args = args}, hostile = {.backend = hostile_backend(&cpu), .out = "hostile", .args = args};
    assert_ok(train_here(&here));
    assert_ok(train_here(&hostile));
    same_file("cpu", "hostile", "final/model.safetensors");
    same_file("cpu", "hostile", "step-00000010/rank-00000.h5");
    hostile.out = "resumed";
    hostile.stop_at = 7;
    assert_ok(train_here(&hostile));
    hostile.stop_at = 0;
    assert_ok(train_here(&hostile));
    same_file("cpu", "resumed", "final/model.safetensors");
    same_file("cpu", "resumed", "step-00000012/rank-00000.h5");
}

/* The host looks at the device once in a step, and nothing is allocated there. */
static void test_nothing_waits(void **state)
{
    (void)state;
    const char *const args[] = {"eval_batches=1", "data.validation=[]", "global_batch_size=6", "max_steps=4", NULL};
    struct train_here t = {.backend = hostile_backend(&cpu), .out = "waits", .args = args};
    struct run r;
    struct plan plan;
    assert_ok(train_here_open(&r, &t));
    struct hostile_counts before = hostile_counts();
    assert_ok(trainer_run(&r));
    struct hostile_counts after = hostile_counts();
    assert_int_equal(r.state.step, 4);
    assert_int_equal(after.reads - before.reads, 4);
    assert_int_equal(after.allocations, before.allocations);
    r.plan = 1;
    assert_ok(plan_make(&r, &plan)); /* says what was reserved */
    assert_memory_equal(&plan.memory, model_memory(r.model), sizeof plan.memory);
    assert_true((size_t)plan.moments <= r.optimizer.moments.capacity && r.optimizer.moments.capacity <= (size_t)plan.moments + 512);
    train_here_close(&r);
}

static void test_skipped_steps(void **state)
{
    (void)state;
    const char *const args[] = {"data.validation=[]", "max_steps=6", NULL}, *const abort_args[] = {"data.validation=[]", "max_skips=2", NULL};
    struct train_here t = {.backend = hostile_backend(&cpu), .out = "nan", .args = args};
    struct run r;
    setenv("GQAKIT_FAULT_NAN", "2:3", 1);
    assert_ok(train_here_open(&r, &t));
    assert_ok(trainer_run(&r));
    assert_int_equal(r.state.skips, 2);
    assert_int_equal(r.state.skips_row, 0);
    assert_true(isfinite(r.state.loss) && isfinite(r.state.grad_norm));
    train_here_close(&r);
    t.out = "nan-abort";
    t.args = abort_args;
    assert_refused(train_here(&t), ERR_NUMERIC, "2 steps in a row");
    unsetenv("GQAKIT_FAULT_NAN");
}

static double final_loss(const char *out)
{
    json_t *log = runs_log(out);
    double loss = runs_number(json_array_get(log, json_array_size(log) - 1), "eval_loss");
    json_decref(log);
    return loss;
}

/* Matrices and activations in bf16: close to f32, the same bits after a resume, and what is stored is what was trained. */
static void check_bf16(const char *name, const char *master, double loss)
{
    const char *const args[] = {"precision=bf16", master, "save_steps=5", "activation_checkpointing=block", "global_batch_size=4", NULL};
    const struct backend *be = hostile_backend(bf16_backend());
    char resumed[64];
    snprintf(resumed, sizeof resumed, "%s-resumed", name);
    struct train_here t = {.backend = be, .out = name, .args = args};
    assert_ok(train_here(&t));
    double got = final_loss(name);
    print_message("%-16s validation loss %.5f, in f32 %.5f\n", name, got, loss);
    assert_true(fabs(got - loss) <= 0.02 * loss);
    t.out = resumed;
    t.stop_at = 7;
    assert_ok(train_here(&t));
    t.stop_at = 0;
    assert_ok(train_here(&t));
    same_file(name, resumed, "final/model.safetensors");
    same_file(name, resumed, "step-00000012/rank-00000.h5");
}

static void test_training_bf16(void **state)
{
    (void)state;
    const char *const args[] = {"global_batch_size=4", NULL}, *const refused[] = {"precision=bf16", NULL}, *const senseless[] = {"master_weights=false", NULL};
    struct train_here t = {.backend = hostile_backend(&cpu), .out = "f32", .args = args};
    assert_ok(train_here(&t));
    double loss = final_loss("f32");
    check_bf16("master", "master_weights=true", loss);
    check_bf16("no-master", "master_weights=false", loss);
    t.backend = hostile_backend(&cpu);
    t.out = "refused";
    t.args = refused;
    assert_refused(train_here(&t), ERR_UNSUPPORTED, "precision bf16 trains on CUDA only");
    t.args = senseless;
    assert_refused(train_here(&t), ERR_USAGE, "goes with precision: bf16");
}

/* Without master weights what is stored is bf16, vectors f32; a resume with the other setting is refused. */
static void test_stored_bf16(void **state)
{
    (void)state;
    const char *const args[] = {"precision=bf16", "master_weights=false", "save_steps=2", "max_steps=2", NULL};
    const char *const other[] = {"precision=bf16", "save_steps=2", "max_steps=2", NULL};
    struct train_here t = {.backend = hostile_backend(bf16_backend()), .out = "stored", .args = args};
    struct run r;
    assert_ok(train_here(&t));
    assert_ok(train_here_open(&r, &t));
    assert_int_equal(r.state.step, 2);
    int64_t vectors = 0;
    for (int i = 0; i < r.n_arrays; i++) {
        int matrix = !strncmp(r.arrays[i].name, "param/", 6) && r.arrays[i].nd == 2;
        assert_int_equal(r.arrays[i].dtype, matrix ? DT_BF16 : DT_F32);
        vectors += r.arrays[i].nd == 1 && r.arrays[i].name[0] == 'p';
    }
    assert_int_equal(vectors, 5);
    assert_true(model_flat(r.model).params == NULL && model_flat(r.model).low != NULL);
    assert_true(model_memory(r.model)->parameters < model_memory(r.model)->gradients);
    train_here_close(&r);
    t.args = other;
    assert_refused(train_here(&t), ERR_USAGE, "master_weights false, now it is true");
}

/* ---- gqa-eval ---------------------------------------------------------------------------------------------------------------- */

/* What a command prints on stdout. */
static char *printed(const struct backend *be, command_fn *command, int argc, const char *const *argv)
{
    char *path = temp_path("stdout.txt"), *text = NULL;
    size_t n = 0;
    fflush(stdout);
    int kept = dup(STDOUT_FILENO);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    dup2(fileno(f), STDOUT_FILENO);
    chosen = be;
    enum code c = command(argc, (char **)(uintptr_t)argv);
    chosen = &cpu;
    fflush(stdout);
    dup2(kept, STDOUT_FILENO);
    close(kept);
    fclose(f);
    assert_ok(c);
    assert_ok(io_read_all(path, 1 << 20, &text, &n));
    free(path);
    return text;
}

static void test_commands(void **state)
{
    (void)state;
    struct arch a;
    small_arch(&a, 6, 3, DT_BF16);
    a.V = a.original_vocab = 256;
    a.bos = a.eos = -1;
    char *path = temp_path("small-eval"), *text = temp_path("eval.txt");
    small_write(path, &a, 3, 1, NULL);
    arch_free(&a);
    runs_text("eval.txt", 4, 300);
    const char *const perplexity[] = {"perplexity", path, "--data", text, "--context", "21", "--stride", "8", "--threads", "1"};
    const char *const score[] = {"score", path, "--text", "the cat sat", "--threads", "1"};
    const char *const generate[] = {"generate", path, "--prompt", "a", "--new", "12", "--dtype", "f32", "--threads", "1"};
    const struct { command_fn *run; int argc; const char *const *argv; } cases[] = {
        {command_perplexity, COUNT_OF(perplexity), perplexity}, {command_score, COUNT_OF(score), score}, {command_generate, COUNT_OF(generate), generate}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        char *want = printed(&cpu, cases[i].run, cases[i].argc, cases[i].argv);
        char *got = printed(hostile_backend(&cpu), cases[i].run, cases[i].argc, cases[i].argv);
        assert_true(strlen(want) > 8);
        assert_string_equal(want, got);
        free(want);
        free(got);
    }
    const char *const decode_args[] = {"decode", path, "--batch", "3", "--context", "20", "--new", "4", "--repeats", "2", "--threads", "1", "--json"};
    char *out = printed(hostile_backend(&cpu), command_decode, COUNT_OF(decode_args), decode_args);
    assert_non_null(strstr(out, "ms_per_token"));
    free(out);
    free(path);
    free(text);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_touching_is_fatal), cmocka_unit_test(test_model), cmocka_unit_test(test_variants_bf16),         cmocka_unit_test(test_load_and_init),
        cmocka_unit_test(test_training),          cmocka_unit_test(test_nothing_waits), cmocka_unit_test(test_skipped_steps),
        cmocka_unit_test(test_training_bf16),     cmocka_unit_test(test_stored_bf16),   cmocka_unit_test(test_commands),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
