/* See runs.h. */
#include "runs.h"

#include <math.h>

static const char *const words[] = {"the ", "cat ", "sat ", "on ", "a ", "mat", ". ", "dog ", "ran ", "to ", "house ", "and ", "saw "};

void runs_text(const char *name, uint64_t seed, int n)
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

char *runs_config(void)
{
    static char *path;
    if (path)
        return path;
    char text[2048];
    runs_text("train.txt", 1, 6000);
    runs_text("val.txt", 2, 600);
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
struct child runs_start(const char *out, const char *const *args, const char *const *env)
{
    const char *argv[24] = {NULL};
    char dir[600], *program = program_path("gqa-uptrain");
    int n = 0;
    snprintf(dir, sizeof dir, "output_dir=%s/%s", temp_dir(), out);
    argv[n++] = program;
    argv[n++] = runs_config();
    argv[n++] = dir;
    for (; args && *args; args++)
        argv[n++] = *args;
    struct child c = child_run(argv, env);
    free(program);
    return c;
}

void runs_expect(struct child *c, int status, const char *part)
{
    if (c->status != status || (part && !strstr(c->err, part))) {
        print_error("exit %d, wanted %d with \"%s\"; stderr:\n%s\n", c->status, status, part ? part : "", c->err);
        assert_true(0);
    }
    child_free(c);
}

void runs_train(const char *out, const char *const *args)
{
    struct child c = runs_start(out, args, NULL);
    runs_expect(&c, 0, NULL);
}

char *runs_path(const char *out, const char *name)
{
    char text[700];
    snprintf(text, sizeof text, "%s/%s", out, name);
    return temp_path(text);
}

const char *runs_weights(const char *out)
{
    static char hex[4][65];
    static int next;
    char *at = hex[next++ % 4], *path = runs_path(out, "final/model.safetensors");
    assert_ok(sha256_file(path, at));
    free(path);
    return at;
}


/* Lines of log.jsonl as an array of objects. */
json_t *runs_log(const char *out)
{
    char *path = runs_path(out, "log.jsonl"), *bytes;
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

double runs_number(const json_t *line, const char *key)
{
    const json_t *v = json_object_get(line, key);
    return json_is_number(v) ? json_number_value(v) : (double)NAN;
}

/* Reads every tensor of a checkpoint into one f32 array. */
float *runs_read(const char *path, int64_t *n)
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

void runs_step(const char *out, int step, const char *name, float *dst, int64_t n0, int64_t n1)
{
    char text[64];
    int found = 0;
    struct step_reader *r;
    struct step_array a = {.dtype = DT_F32, .nd = n1 > 1 ? 2 : 1, .n = {n0, n1}, .p = dst};
    snprintf(text, sizeof text, "%s/step-%08d", out, step);
    snprintf(a.name, sizeof a.name, "%s", name);
    char *path = temp_path(text);
    assert_ok(step_open(&r, path, &found));
    assert_int_equal(found, 1);
    assert_ok(step_read(r, &a));
    step_close(r);
    free(path);
}
