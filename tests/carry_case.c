/* See carry_case.h. */
#include "carry_case.h"

#include "programs.h"
#include "runs.h"
#include "small_checkpoint.h"

char *carry_model(const char *name, int64_t G, int64_t repeat)
{
    struct arch a;
    small_arch(&a, H, G, DT_F32);
    a.V = a.original_vocab = 256;
    a.bos = a.eos = -1;
    char *path = temp_path(name);
    small_write(path, &a, 3, repeat, NULL);
    arch_free(&a);
    return path;
}

char *carry_config(void)
{
    char text[1024];
    runs_text("carry.txt", 1, 900);
    runs_text("window.txt", 4, 9); /* cut below: one window, so that every step sees the same */
    char *window = temp_path("window.txt"), *bytes = NULL;
    size_t n = 0;
    assert_ok(io_read_all(window, 1 << 16, &bytes, &n));
    assert_true(n >= 25);
    temp_write("window.txt", bytes, 25);
    free(bytes);
    free(window);
    snprintf(text, sizeof text, "model: {path: %s/unset}\ndata: {train: [%s/carry.txt], tokenizer: bytes}\nsequence_len: 24\nmicro_batch_size: 2\n"
             "max_steps: 3\noptimizer: {lr: 3e-3}\nlr_scheduler: {name: constant}\nsave_steps: 3\nlogging_steps: 1\nthreads: 1\noutput_dir: %s/unset\n",
             temp_dir(), temp_dir(), temp_dir());
    temp_write("carry.yaml", text, strlen(text));
    return temp_path("carry.yaml");
}

/* gqa-uptrain on `model` into TEMP/out; returns that path. */
char *carry_train(const char *model, const char *out, const char *a, const char *b, const char *c, const char *say)
{
    char path[700], dir[700], *yaml = carry_config(), *to = temp_path(out);
    snprintf(path, sizeof path, "model.path=%s", model);
    snprintf(dir, sizeof dir, "output_dir=%s", to);
    struct child run = UPTRAIN(yaml, path, dir, a, b, c);
    if (run.status != 0 || (say && !strstr(run.err, say)))
        print_error("exit %d: %s\n", run.status, run.err);
    assert_int_equal(run.status, 0);
    assert_true(!say || strstr(run.err, say) != NULL);
    child_free(&run);
    free(yaml);
    return to;
}

float *carry_values(const char *dir, const char *name, int64_t n0, int64_t n1)
{
    struct step_reader *r;
    int found;
    float *x = malloc((size_t)(n0 * n1) * sizeof *x);
    assert_non_null(x);
    assert_ok(step_open(&r, dir, &found));
    assert_true(found);
    struct step_array a = {.dtype = DT_F32, .nd = n1 > 1 ? 2 : 1, .n = {n0, n1}, .p = x};
    snprintf(a.name, sizeof a.name, "%s", name);
    assert_ok(step_read(r, &a));
    step_close(r);
    return x;
}

float *carry_moment(const char *dir, char which, int layer, const char *name, int64_t n0, int64_t n1)
{
    char full[80];
    snprintf(full, sizeof full, "%c/dec.%d.%s", which, layer, name);
    return carry_values(dir, full, n0, n1);
}

char *carry_beside(const char *converted)
{
    char *path = io_join(converted, MOMENTS_DIR);
    assert_non_null(path);
    return path;
}

float *carry_weight(const char *path, int layer, const char *name)
{
    char full[80];
    struct checkpoint *ck;
    snprintf(full, sizeof full, "dec.%d.%s", layer, name);
    assert_ok(ckpt_open(&ck, path, NULL));
    float *x = small_read(ck, full);
    ckpt_close(ck);
    return x;
}
