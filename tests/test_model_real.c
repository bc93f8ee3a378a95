/* Real checkpoints against their reference.json (float64 log-probabilities by an independent program), in the Hugging Face and
 * llama2.c forms, by scoring, and by prefill and decode. */
#include <math.h>

#include "harness.h"
#include "model/model.h"

struct real { int64_t n; int32_t *ids; double *logp; };

static int real_read(const char *relative, struct real *r)
{
    json_t *root;
    char *path = data_path(relative);
    if (!path)
        return 0;
    assert_ok(json_read_file(path, 1 << 24, &root));
    const json_t *ids = json_object_get(root, "ids"), *logp = json_object_get(root, "logprob");
    r->n = (int64_t)json_array_size(ids);
    assert_int_equal(json_array_size(logp), r->n - 1);
    r->ids = calloc((size_t)r->n, sizeof *r->ids);
    r->logp = calloc((size_t)r->n, sizeof *r->logp);
    for (int64_t i = 0; i < r->n; i++) {
        r->ids[i] = (int32_t)json_integer_value(json_array_get(ids, (size_t)i));
        if (i + 1 < r->n)
            r->logp[i] = json_number_value(json_array_get(logp, (size_t)i));
    }
    json_decref(root);
    free(path);
    return 1;
}

static double score(struct model *m, const struct real *r, float *logp)
{
    struct batch b;
    double loss = 0.0;
    int64_t count = 0, T = r->n - 1;
    assert_ok(batch_alloc(&b, 1, T));
    for (int64_t t = 0; t < T; t++) {
        b.ids[t] = r->ids[t];
        b.targets[t] = r->ids[t + 1];
        b.positions[t] = (int32_t)t;
        b.segments[t] = 0;
    }
    fill_nan(logp, T);
    assert_ok(model_score(m, &b, view_2d(logp, DT_F32, 1, T), &loss, &count));
    assert_int_equal(count, T);
    batch_free(&b);
    return loss;
}

/* Log-probabilities again, token by token through the cache after a prompt of 5. */
static void decode(struct model *m, const struct real *r, float *logp)
{
    int64_t V = model_arch(m)->V;
    float *logits = calloc((size_t)V, sizeof *logits);
    for (int64_t t = 4; t + 1 < r->n; t++) {
        double sum = 0.0, top = -HUGE_VAL;
        if (t == 4)
            assert_ok(model_prefill(m, r->ids, 1, 5, logits));
        else
            assert_ok(model_decode(m, r->ids + t, 1, 1, logits));
        for (int64_t v = 0; v < V; v++)
            top = fmax(top, (double)logits[v]);
        for (int64_t v = 0; v < V; v++)
            sum += exp((double)logits[v] - top);
        logp[t] = (float)((double)logits[r->ids[t + 1]] - top - log(sum));
    }
    free(logits);
}

static void check_checkpoint(const char *relative, const char *reference)
{
    struct real r;
    struct checkpoint *ck;
    struct model *m;
    const struct backend *be;
    struct device *dev;
    struct device_options device = {0};
    char *path = data_path(relative);
    if (!path || !real_read(reference, &r)) {
        free(path);
        return;
    }
    struct model_options o = {.dtype = DT_F32, .B = 1, .T = r.n, .cache_B = 1, .cache_S = r.n, .cache_dtype = DT_F32};
    assert_ok(backend_find("cpu", &be));
    assert_ok(be->device_open(&dev, &device));
    assert_ok(ckpt_open(&ck, path, NULL));
    assert_ok(model_open(&m, ckpt_arch(ck), be, dev, &o));
    assert_ok(model_load(m, ck));
    float *logp = calloc((size_t)r.n, sizeof *logp);
    double worst = 0.0, loss = score(m, &r, logp);
    for (int64_t i = 0; i + 1 < r.n; i++)
        worst = fmax(worst, fabs((double)logp[i] - r.logp[i]));
    print_message("%-44s %lld tokens, %.6f nats/token, largest error %.2g\n", relative, (long long)r.n, loss / (double)(r.n - 1), worst);
    assert_f32(relative, logp, r.logp, r.n - 1, 0.0, 1e-5);
    fill_nan(logp, r.n);
    decode(m, &r, logp);
    assert_f32("decode", logp + 4, r.logp + 4, r.n - 5, 0.0, 2e-5);
    model_close(m);
    ckpt_close(ck);
    be->device_close(dev);
    free(logp);
    free(r.ids);
    free(r.logp);
    free(path);
}

static void test_hugging_face(void **state)
{
    (void)state;
    check_checkpoint("models/babyllama-tok105-hf", "models/babyllama-tok105-hf/reference.json");
    check_checkpoint("models/babyllama-tok105-mha-hf", "models/babyllama-tok105-mha-hf/reference.json");
    check_checkpoint("models/stories260K-hf", "models/stories260K-hf/reference.json");
    check_checkpoint("models/stories260K-mha-hf", "models/stories260K-mha-hf/reference.json");
}

static void test_llama2c(void **state)
{
    (void)state;
    check_checkpoint("models/babyllama-tok105/model5000.bin", "models/babyllama-tok105-hf/reference.json");
    check_checkpoint("models/babyllama-tok105-mha/model.bin", "models/babyllama-tok105-mha-hf/reference.json");
    check_checkpoint("models/stories260K/stories260K.bin", "models/stories260K-hf/reference.json");
    check_checkpoint("models/stories260K/stories260K_v1.bin", "models/stories260K-hf/reference.json");
    check_checkpoint("models/stories260K-mha/model.bin", "models/stories260K-mha-hf/reference.json");
}

static void test_load_refuses(void **state)
{
    (void)state;
    struct checkpoint *ck;
    struct model *m;
    const struct backend *be;
    struct device *dev;
    struct device_options device = {0};
    struct arch a;
    struct model_options o = {.dtype = DT_F32, .B = 1, .T = 8};
    char *path = data_path("models/stories260K-hf");
    if (!path)
        return;
    assert_ok(backend_find("cpu", &be));
    assert_ok(be->device_open(&dev, &device));
    assert_ok(ckpt_open(&ck, path, NULL));
    assert_ok(arch_copy(&a, ckpt_arch(ck)));
    a.stack[STACK_DEC].block[1].G = 2;
    assert_ok(model_open(&m, &a, be, dev, &o));
    assert_refused(model_load(m, ck), ERR_INPUT, "differs from the model's in \"decoder\"");
    model_close(m);
    arch_free(&a);
    ckpt_close(ck);
    be->device_close(dev);
    free(path);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_hugging_face), cmocka_unit_test(test_llama2c), cmocka_unit_test(test_load_refuses)};
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
