/* Models that Hugging Face transformers made and saved (tests/golden/hf, written by tools/make-hf-goldens): what a config.json of
 * the llama family can say about biases, head width, rotary scaling and window must give the log-probabilities that transformers
 * gives, by scoring and by prefill and decode. The sequences run past the trained positions and past the window. */
#include <dirent.h>
#include <math.h>

#include "harness.h"
#include "model/model.h"

#define GOLDEN "tests/golden/hf"

struct golden { int64_t n; int32_t *ids; double *logp; };

static void golden_read(struct golden *g, const char *dir)
{
    json_t *root;
    char *path = io_join(dir, "expected.json");
    assert_ok(json_read_file(path, 1 << 20, &root));
    const json_t *ids = json_object_get(root, "ids"), *logp = json_object_get(root, "logprob");
    g->n = (int64_t)json_array_size(ids);
    assert_true(g->n > 8);
    assert_int_equal(json_array_size(logp), g->n - 1);
    g->ids = calloc((size_t)g->n, sizeof *g->ids);
    g->logp = calloc((size_t)g->n, sizeof *g->logp);
    for (size_t i = 0; i < (size_t)g->n; i++) {
        g->ids[i] = (int32_t)json_integer_value(json_array_get(ids, i));
        if (i + 1 < (size_t)g->n)
            g->logp[i] = json_real_value(json_array_get(logp, i));
    }
    json_decref(root);
    free(path);
}

static void golden_free(struct golden *g)
{
    free(g->ids);
    free(g->logp);
}

static void score(struct model *m, const struct golden *g, float *logp)
{
    struct batch b;
    double loss = 0.0;
    int64_t count = 0, T = g->n - 1;
    assert_ok(batch_alloc(&b, 1, T));
    for (int64_t t = 0; t < T; t++) {
        b.ids[t] = g->ids[t];
        b.targets[t] = g->ids[t + 1];
        b.positions[t] = (int32_t)t;
        b.segments[t] = 0;
    }
    fill_nan(logp, T);
    assert_ok(model_score(m, &b, view_2d(logp, DT_F32, 1, T), &loss, &count));
    assert_int_equal(count, T);
    batch_free(&b);
}

/* The same, token by token through the cache after a prompt of 3. */
static void decode(struct model *m, const struct golden *g, float *logp)
{
    int64_t V = model_arch(m)->V;
    float *logits = calloc((size_t)V, sizeof *logits);
    fill_nan(logp, g->n - 1);
    for (int64_t t = 2; t + 1 < g->n; t++) {
        double sum = 0.0, top = -HUGE_VAL;
        fill_nan(logits, V);
        if (t == 2)
            assert_ok(model_prefill(m, g->ids, 1, 3, logits));
        else
            assert_ok(model_decode(m, g->ids + t, 1, 1, logits));
        for (int64_t v = 0; v < V; v++)
            top = fmax(top, (double)logits[v]);
        for (int64_t v = 0; v < V; v++)
            sum += exp((double)logits[v] - top);
        logp[t] = (float)((double)logits[g->ids[t + 1]] - top - log(sum));
    }
    free(logits);
}

static void check_case(const char *name)
{
    struct golden g;
    struct checkpoint *ck;
    struct model *m;
    const struct backend *be;
    struct device *dev;
    struct device_options device = {0};
    char *dir = io_join(GOLDEN, name);
    golden_read(&g, dir);
    int64_t T = g.n - 1;
    struct model_options o = {.dtype = DT_F32, .B = 1, .T = T, .cache_B = 1, .cache_S = T, .cache_dtype = DT_F32};
    assert_ok(backend_find("cpu", &be));
    assert_ok(be->device_open(&dev, &device));
    assert_ok(ckpt_open(&ck, dir, NULL));
    assert_ok(model_open(&m, ckpt_arch(ck), be, dev, &o));
    assert_ok(model_load(m, ck));
    float *logp = calloc((size_t)T, sizeof *logp);
    double worst = 0.0;
    score(m, &g, logp);
    for (int64_t i = 0; i < T; i++)
        worst = fmax(worst, fabs((double)logp[i] - g.logp[i]));
    print_message("%-16s %-8s largest error %.2g\n", name, dtype_name(ckpt_at(ck, 0)->dtype), worst);
    assert_f32(name, logp, g.logp, T, 0.0, 1e-5);
    decode(m, &g, logp);
    assert_f32("decode", logp + 2, g.logp + 2, T - 2, 0.0, 1e-5);
    model_close(m);
    ckpt_close(ck);
    be->device_close(dev);
    free(logp);
    golden_free(&g);
    free(dir);
}

static void test_goldens(void **state)
{
    (void)state;
    int cases = 0;
    DIR *d = opendir(GOLDEN);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d)) != NULL;)
        if (e->d_name[0] != '.') {
            check_case(e->d_name);
            cases++;
        }
    closedir(d);
    assert_int_equal(cases, 9);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_goldens)};
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
