/* gqa-uptrain as a program, on a tiny random model (H=6, G=3, D=8, C=24) and byte text made here: it learns; accumulation does not
 * change the result; stop and resume, rerun and faults keep the promises of trainer.c and state.c. */
#include <math.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"

#include "checkpoints/checkpoint.h"

static const char *const words[] = {"the ", "cat ", "sat ", "on ", "a ", "mat", ". ", "dog ", "ran ", "to ", "house ", "and ", "saw "};

static void write_text(const char *name, uint64_t seed, int n)
{
    char *text = malloc((size_t)n * 8 + 1);
    size_t at = 0;
    CHECK(text);
    for (int i = 0; i < n; i++) {
        const char *w = words[random_int(seed, (uint64_t)i, 0, (int64_t)COUNT_OF(words) - 1)];
        memcpy(text + at, w, strlen(w));
        at += strlen(w);
    }
    temp_write(name, text, at);
    free(text);
}

static char *config_path(void)
{
    static char *path;
    if (path)
        return path;
    char text[2048];
    write_text("train.txt", 1, 6000);
    write_text("val.txt", 2, 600);
    int n = snprintf(text, sizeof text,
                     "model: {init: random, arch: {hidden_size: 24, num_hidden_layers: 2, num_attention_heads: 6, num_key_value_heads: 3, "
                     "head_dim: 8, intermediate_size: 40, max_position_embeddings: 64, tie_word_embeddings: true}}\n"
                     "data: {train: [%s/train.txt], validation: [%s/val.txt], tokenizer: bytes}\n"
                     "sequence_len: 33\nmicro_batch_size: 2\nmax_steps: 12\noptimizer: {lr: 1e-2}\n"
                     "lr_scheduler: {name: cosine, warmup_steps: 4, min_lr_ratio: 0.1}\nmax_grad_norm: 0.5\n"
                     "save_steps: 0\neval_steps: 5\neval_batches: 3\nlogging_steps: 1\nseed: 7\nthreads: 1\noutput_dir: %s/unset\n",
                     temp_dir(), temp_dir(), temp_dir());
    temp_write("run.yaml", text, (size_t)n);
    return path = temp_path("run.yaml");
}

/* Runs gqa-uptrain CONFIG output_dir=TEMP/out ARGS...; args end with NULL. */
static struct child uptrain(const char *out, const char *const *args, const char *const *env)
{
    const char *argv[24] = {NULL};
    char dir[600], *program = program_path("gqa-uptrain");
    int n = 0;
    snprintf(dir, sizeof dir, "output_dir=%s/%s", temp_dir(), out);
    argv[n++] = program;
    argv[n++] = config_path();
    argv[n++] = dir;
    for (; args && *args; args++)
        argv[n++] = *args;
    struct child c = child_run(argv, env);
    free(program);
    return c;
}

static void expect(struct child *c, int status, const char *part)
{
    if (c->status != status || (part && !strstr(c->err, part))) {
        print_error("exit %d, wanted %d with \"%s\"; stderr:\n%s\n", c->status, status, part ? part : "", c->err);
        assert_true(0);
    }
    child_free(c);
}

static void train(const char *out, const char *const *args)
{
    struct child c = uptrain(out, args, NULL);
    expect(&c, 0, NULL);
}

static char *in_run(const char *out, const char *name)
{
    char text[700];
    snprintf(text, sizeof text, "%s/%s", out, name);
    return temp_path(text);
}

static const char *weights(const char *out)
{
    static char hex[4][65];
    static int next;
    char *at = hex[next++ % 4], *path = in_run(out, "final/model.safetensors");
    assert_ok(sha256_file(path, at));
    free(path);
    return at;
}

#define ARGS(...) ((const char *const[]){__VA_ARGS__, NULL})

/* Lines of log.jsonl as an array of objects. */
static json_t *log_lines(const char *out)
{
    char *path = in_run(out, "log.jsonl"), *bytes;
    size_t n;
    json_t *lines = json_array();
    assert_ok(io_read_all(path, 1 << 24, &bytes, &n));
    for (char *at = bytes, *end; (end = strchr(at, '\n')) != NULL; at = end + 1) {
        json_t *line;
        assert_ok(json_parse_object(at, (size_t)(end - at), path, &line));
        json_array_append_new(lines, line);
    }
    free(bytes);
    free(path);
    return lines;
}

static double number(const json_t *line, const char *key)
{
    const json_t *v = json_object_get(line, key);
    return json_is_number(v) ? json_number_value(v) : (double)NAN;
}

static void test_loss_falls_and_files_are_there(void **state)
{
    (void)state;
    struct child c = uptrain("learn", ARGS("max_steps=60", "eval_steps=20", "save_steps=30", "--json"), NULL);
    json_t *result;
    assert_int_equal(c.status, 0);
    assert_ok(json_parse_object(c.out, strlen(c.out), "stdout", &result));
    assert_non_null(strstr(c.err, "memory: "));
    assert_string_equal(json_string_value(json_object_get(result, "schema")), "gqakit/uptrain/1");
    print_message("loss %.4f -> %.4f\n", number(result, "loss_zero_step"), number(result, "loss_final"));
    assert_true(fabs(number(result, "loss_zero_step") - log(256.0)) < 0.1);
    assert_true(number(result, "loss_final") < 2.8);
    assert_int_equal(json_integer_value(json_object_get(result, "steps")), 60);
    json_decref(result);
    child_free(&c);
    json_t *lines = log_lines("learn");
    assert_int_equal(json_array_size(lines), 61);
    for (size_t i = 0; i <= 60; i++) {
        const json_t *line = json_array_get(lines, i);
        assert_int_equal(json_integer_value(json_object_get(line, "step")), i);
        assert_int_equal(json_integer_value(json_object_get(line, "tokens")), i * 66);
        assert_true(isfinite(number(line, "loss")) == (i > 0));
        assert_true((json_object_get(line, "eval_loss") != NULL) == (i % 20 == 0));
    }
    json_decref(lines);
    static const char *const files[] = {"resolved-config.yaml", "step-00000030/MANIFEST.json", "step-00000060/MANIFEST.json", "tensorboard",
                                        "final/config.json", "final/README.md", "final/PROVENANCE.json", "final/model.safetensors"};
    for (size_t i = 0; i < COUNT_OF(files); i++) {
        char *path = in_run("learn", files[i]);
        if (!io_exists(path))
            print_error("missing: %s\n", path);
        assert_true(io_exists(path));
        free(path);
    }
    int checked = 0;
    char *final = in_run("learn", "final");
    assert_ok(ckpt_verify(final, &checked));
    assert_true(checked >= 3);
    free(final);
}

/* Reads every tensor of a checkpoint into one f32 array. */
static float *read_all(const char *path, int64_t *n)
{
    struct checkpoint *ck;
    assert_ok(ckpt_open(&ck, path, NULL));
    float *all = NULL;
    *n = 0;
    for (int i = 0; i < ckpt_count(ck); i++) {
        const struct ckpt_tensor *t = ckpt_at(ck, i);
        int64_t count = t->n[0] * (t->nd > 1 ? t->n[1] : 1);
        all = realloc(all, (size_t)(*n + count) * sizeof *all);
        assert_ok(ckpt_read(ck, t, 0, t->n[0], all + *n, DT_F32));
        *n += count;
    }
    ckpt_close(ck);
    return all;
}

static void test_accumulation_does_not_change_the_result(void **state)
{
    (void)state;
    train("acc1", ARGS("micro_batch_size=8", "global_batch_size=8", "eval_batches=1", "max_steps=6"));
    train("acc8", ARGS("micro_batch_size=1", "gradient_accumulation_steps=8", "eval_batches=8", "max_steps=6"));
    json_t *a = log_lines("acc1"), *b = log_lines("acc8");
    double worst = 0.0;
    assert_int_equal(json_array_size(a), json_array_size(b));
    for (size_t i = 0; i < json_array_size(a); i++)
        for (int k = 0; k < 3; k++) {
            static const char *const keys[] = {"loss", "grad_norm", "eval_loss"};
            double x = number(json_array_get(a, i), keys[k]), y = number(json_array_get(b, i), keys[k]);
            assert_int_equal(isnan(x), isnan(y));
            if (!isnan(x))
                worst = fmax(worst, fabs(x - y) / fabs(x));
        }
    print_message("1 x 8 against 8 x 1: worst relative difference of loss and gradient norm %.2g\n", worst);
    assert_true(worst <= 1e-6);
    json_decref(a);
    json_decref(b);
}

static void test_rerun_is_bit_equal(void **state)
{
    (void)state;
    train("rerun1", ARGS("gradient_accumulation_steps=3"));
    train("rerun2", ARGS("gradient_accumulation_steps=3"));
    assert_string_equal(weights("rerun1"), weights("rerun2"));
    train("rerun3", ARGS("gradient_accumulation_steps=3", "seed=8"));
    assert_string_not_equal(weights("rerun1"), weights("rerun3"));
    train("rerun4", ARGS("gradient_accumulation_steps=3", "activation_checkpointing=block"));
    assert_string_equal(weights("rerun1"), weights("rerun4"));
}

/* Shuffled data, accumulation 3, clipping active, warm-up over at step 4: from every step the same weights come out. */
static void test_resume_is_bit_equal_from_every_step(void **state)
{
    (void)state;
    train("whole", ARGS("gradient_accumulation_steps=3", "save_steps=1", "save_total_limit=50"));
    char want[65];
    snprintf(want, sizeof want, "%s", weights("whole"));
    json_t *lines = log_lines("whole");
    int clipped = 0;
    for (size_t i = 1; i < json_array_size(lines); i++)
        clipped += number(json_array_get(lines, i), "grad_norm") > 0.5;
    assert_true(clipped > 0);
    json_decref(lines);
    for (int k = 1; k <= 12; k++) {
        char out[32], step[64], from[700];
        snprintf(out, sizeof out, "from%d", k);
        snprintf(step, sizeof step, "whole/step-%08d", k);
        char *path = temp_path(step);
        snprintf(from, sizeof from, "resume=%s", path);
        train(out, ARGS("gradient_accumulation_steps=3", from));
        assert_string_equal(weights(out), want);
        free(path);
    }
}

static void test_resume_refuses_what_changed(void **state)
{
    (void)state;
    struct child c;
    train("base", ARGS("max_steps=4", "save_steps=2"));
    static const struct { const char *arg, *part; int status; } cases[] = {
        {"seed=8", "seed 7, now it is 8", 2},
        {"global_batch_size=4", "global_batch_size 2", 2},
        {"sequence_len=32", "sequence_len 33", 2},
        {"model.arch.num_key_value_heads=6", "other tensors", 2},
        {"data.pack=false", "data.pack", 2},
        {"max_steps=3", "beyond the 3 steps", 2},
        {"resume=never", "already holds checkpoints", 2},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        c = uptrain("base", ARGS(i == 5 ? "save_steps=2" : "max_steps=4", cases[i].arg), NULL);
        expect(&c, cases[i].status, cases[i].part);
    }
    char other[700];
    write_text("other.txt", 3, 5000);
    snprintf(other, sizeof other, "data.train=%s/other.txt", temp_dir());
    c = uptrain("base", ARGS("max_steps=4", other), NULL);
    expect(&c, 3, "data.train has changed");
    c = uptrain("base", ARGS("max_steps=4", "resume=/nonexistent/x"), NULL);
    assert_int_not_equal(c.status, 0);
    child_free(&c);
    /* A larger budget goes on, said aloud; a finished run is only written again. */
    char first[65];
    snprintf(first, sizeof first, "%s", weights("base"));
    train("base", ARGS("max_steps=4", "save_steps=2"));
    assert_string_equal(weights("base"), first);
    c = uptrain("base", ARGS("max_steps=6", "save_steps=2"), NULL);
    expect(&c, 0, "max_steps was 4, now it is 6");
    json_t *lines = log_lines("base");
    for (size_t i = 0; i < json_array_size(lines); i++)
        assert_int_equal(json_integer_value(json_object_get(json_array_get(lines, i), "step")), i);
    assert_int_equal(json_array_size(lines), 7);
    json_decref(lines);
}

static void read_step(const char *out, int step, const char *name, float *dst, int64_t n0, int64_t n1)
{
    char text[64];
    int found = 0;
    struct step_reader *r;
    struct step_array a = {.dtype = DT_F32, .nd = 2, .n = {n0, n1}, .p = dst};
    snprintf(text, sizeof text, "%s/step-%08d", out, step);
    snprintf(a.name, sizeof a.name, "%s", name);
    char *path = temp_path(text);
    assert_ok(step_open(&r, path, &found));
    assert_int_equal(found, 1);
    assert_ok(step_read(r, &a));
    step_close(r);
    free(path);
}

static void test_nan_skips_then_aborts(void **state)
{
    (void)state;
    enum { N = 24 * 48 };
    static float before[N], after[N], later[N];
    struct child c = uptrain("skip", ARGS("save_steps=1", "save_total_limit=50", "max_skips=3", "--json"),
                             ARGS("GQAKIT_FAULT_NAN=3:4"));
    if (c.status != 0)
        print_error("%s", c.err);
    assert_int_equal(c.status, 0);
    assert_non_null(strstr(c.out, "\"skipped\": 2"));
    child_free(&c);
    static const char *const names[] = {"param/dec.1.attn.q.w", "m/dec.1.attn.q.w", "v/dec.1.attn.q.w"};
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        read_step("skip", 2, names[i], before, 48, 24);
        read_step("skip", 4, names[i], after, 48, 24);
        read_step("skip", 5, names[i], later, 48, 24);
        assert_memory_equal(before, after, sizeof before);
        assert_memory_not_equal(before, later, sizeof before);
        assert_int_equal(count_nonfinite(later, DT_F32, N), 0);
    }
    c = uptrain("abort", ARGS("save_steps=2", "max_skips=3"), ARGS("GQAKIT_FAULT_NAN=5:99"));
    assert_non_null(strstr(c.err, "abort/step-00000006"));
    assert_non_null(strstr(c.err, "parameters are those of step 4"));
    expect(&c, 7, "max_skips 3");
    char *final = in_run("abort", "final");
    assert_false(io_exists(final));
    free(final);
}

static void test_lock(void **state)
{
    (void)state;
    struct io_lock l;
    char *dir = temp_path("locked");
    assert_ok(io_mkdirs(dir));
    assert_ok(io_lock_take(dir, &l));
    struct child c = uptrain("locked", NULL, NULL);
    expect(&c, 9, "");
    io_lock_drop(&l);
    train("locked", NULL);
    free(dir);
}

static void test_fraction_zero_copies(void **state)
{
    (void)state;
    char source[700];
    snprintf(source, sizeof source, "%s/zero1/final", temp_dir());
    train("zero1", ARGS("max_steps=2"));
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
    assert_true(isfinite(number(j, "loss_final")) && number(j, "loss_final") == number(j, "loss_zero_step"));
    assert_int_equal(json_integer_value(json_object_get(j, "steps")), 0);
    json_decref(j);
    child_free(&c);
    int64_t na, nb;
    char *final = in_run("zero2", "final");
    float *a = read_all(source, &na), *b = read_all(final, &nb);
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
    struct child c = uptrain("frozen", ARGS("max_steps=2", "save_steps=1", "freeze=['embed.*', 'dec.1.attn.q.w']", "optimizer.weight_decay=0.3"), NULL);
    expect(&c, 0, "freeze: ");
    read_step("frozen", 1, "param/embed.weight", a, 256, 24);
    read_step("frozen", 2, "param/embed.weight", b, 256, 24);
    assert_memory_equal(a, b, sizeof a);
    read_step("frozen", 1, "param/dec.1.attn.q.w", a, 48, 24);
    read_step("frozen", 2, "param/dec.1.attn.q.w", b, 48, 24);
    assert_memory_equal(a, b, N * sizeof *a);
    read_step("frozen", 1, "param/dec.0.attn.q.w", a, 48, 24);
    read_step("frozen", 2, "param/dec.0.attn.q.w", b, 48, 24);
    assert_memory_not_equal(a, b, N * sizeof *a);
    c = uptrain("frozen2", ARGS("freeze=[nothing.*]"), NULL);
    expect(&c, 2, "matches no tensor");
}

static void test_plan_and_refusals(void **state)
{
    (void)state;
    struct child c = uptrain("plan", ARGS("--plan", "--json"), NULL);
    json_t *j;
    if (c.status)
        print_error("%s", c.err);
    assert_int_equal(c.status, 0);
    assert_ok(json_parse_object(c.out, strlen(c.out), "stdout", &j));
    assert_int_equal(json_integer_value(json_object_get(j, "steps")), 12);
    assert_true(number(j, "flops") > 0.0 && number(json_object_get(j, "memory"), "total") > 0.0);
    json_decref(j);
    child_free(&c);
    char *dir = temp_path("plan");
    assert_false(io_exists(dir));
    free(dir);
    c = uptrain("plan", ARGS("--plan"), NULL);
    assert_non_null(strstr(c.out, "steps  "));
    expect(&c, 0, NULL);
    c = uptrain("no", ARGS("precision=bf16", "--device", "cpu"), NULL);
    expect(&c, 4, "precision bf16");
    c = uptrain("no", ARGS("sequence_len=65"), NULL);
    expect(&c, 2, "max_position_embeddings 64");
    c = uptrain("no", ARGS("data.train=/nonexistent/a.bin"), NULL);
    assert_true(c.status == 3 || c.status == 5);
    child_free(&c);
    c = uptrain("no", ARGS("maxsteps=4"), NULL);
    expect(&c, 2, "max_steps");
    char *program = program_path("gqa-uptrain");
    c = child_run(ARGS(program, "--help"), NULL);
    assert_non_null(strstr(c.out, "lr_scheduler.min_lr_ratio"));
    expect(&c, 0, NULL);
    free(program);
}

/* ---- signals --------------------------------------------------------------------------------------------------------- */

static pid_t start(const char *out, const char *steps)
{
    char dir[600], *program = program_path("gqa-uptrain"), *config = config_path();
    snprintf(dir, sizeof dir, "output_dir=%s/%s", temp_dir(), out);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        if (!freopen("/dev/null", "w", stderr) || !freopen("/dev/null", "w", stdout))
            _exit(126);
        execl(program, program, config, dir, steps, "eval_steps=0", (char *)NULL);
        _exit(127);
    }
    free(program);
    return pid;
}

static int wait_status(pid_t pid)
{
    int status = 0;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* Waits until log.jsonl holds at least n lines. */
static void wait_lines(const char *out, int n)
{
    char *path = in_run(out, "log.jsonl");
    for (int tries = 0; tries < 4000; tries++) {
        char *bytes;
        size_t size;
        int seen = 0;
        if (io_exists(path) && io_read_all(path, 1 << 24, &bytes, &size) == OK) {
            for (size_t i = 0; i < size; i++)
                seen += bytes[i] == '\n';
            free(bytes);
        }
        if (seen >= n)
            break;
        usleep(5000);
    }
    free(path);
}

static void test_signals_save_and_resume(void **state)
{
    (void)state;
    train("calm", ARGS("max_steps=400", "eval_steps=0"));
    static const int stops[] = {SIGTERM, SIGINT};
    for (size_t i = 0; i < COUNT_OF(stops); i++) {
        char out[32];
        snprintf(out, sizeof out, "stopped%d", stops[i]);
        pid_t pid = start(out, "max_steps=400");
        wait_lines(out, 20);
        kill(pid, stops[i]);
        int status = wait_status(pid);
        if (status == 0)
            print_message("skipped: the run ended before the signal\n");
        else
            assert_int_equal(status, 75);
        train(out, ARGS("max_steps=400", "eval_steps=0"));
        assert_string_equal(weights(out), weights("calm"));
        json_t *lines = log_lines(out);
        assert_int_equal(json_array_size(lines), 401);
        for (size_t k = 0; k < json_array_size(lines); k++)
            assert_int_equal(json_integer_value(json_object_get(json_array_get(lines, k), "step")), k);
        json_decref(lines);
    }
}

static int has_step(const char *out)
{
    char **names, *dir = temp_path(out);
    int n, found = 0;
    assert_ok(io_list(dir, &names, &n));
    for (int i = 0; i < n; i++)
        found += !strncmp(names[i], "step-", 5) && !strstr(names[i], "tmp");
    io_names_free(names, n);
    free(dir);
    return found;
}

static void test_save_on_request_goes_on(void **state)
{
    (void)state;
    for (int how = 0; how < 3; how++) {
        char out[32];
        snprintf(out, sizeof out, "asked%d", how);
        pid_t pid = start(out, "max_steps=400");
        wait_lines(out, 5);
        char *touch = in_run(out, "save-now");
        if (how == 2)
            assert_ok(io_write_atomic(touch, "", 0));
        else
            kill(pid, how == 0 ? SIGUSR1 : SIGHUP);
        assert_int_equal(wait_status(pid), 0);
        assert_true(has_step(out) >= 1);
        assert_false(io_exists(touch));
        assert_string_equal(weights(out), weights("calm"));
        free(touch);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loss_falls_and_files_are_there), cmocka_unit_test(test_accumulation_does_not_change_the_result),
        cmocka_unit_test(test_rerun_is_bit_equal), cmocka_unit_test(test_resume_is_bit_equal_from_every_step),
        cmocka_unit_test(test_resume_refuses_what_changed), cmocka_unit_test(test_nan_skips_then_aborts), cmocka_unit_test(test_lock),
        cmocka_unit_test(test_fraction_zero_copies), cmocka_unit_test(test_freeze), cmocka_unit_test(test_plan_and_refusals),
        cmocka_unit_test(test_signals_save_and_resume), cmocka_unit_test(test_save_on_request_goes_on)};
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
