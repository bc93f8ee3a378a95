/* xent against the double reference and its finite differences; AdamW, sums of squares and other flat ranges; backend and comm. */
#include <math.h>

#include "ops.h"
#include "reference/ops.h"

void harness_boot(int argc, char **argv) { kernels_boot(argc, argv); }

struct xent_context { double *x, *w, *bias; const int32_t *targets; int64_t N, C, V; double scale, cap; };

static double xent_loss(void *context)
{
    struct xent_context *k = context;
    return ref_xent(NULL, k->x, k->w, k->bias, k->targets, k->N, k->C, k->V, k->scale, k->cap);
}

static void one_xent(struct device *dev, int64_t N, int64_t C, int64_t V, int with_bias, float scale, float cap, int gradients)
{
    struct view x = ops_rows(N, C, 3, 1), w = ops_rows(V, C, gradients ? 5 : 0, 2), bias = ops_vector(V, 3);
    struct view dx = ops_rows(N, C, 2, 0), dw = ops_rows(V, C, 0, 4), dbias = ops_vector(V, 5), logp = ops_vector(N, 0), w16 = view_none();
    int32_t *targets = calloc((size_t)N, sizeof *targets);
    int64_t valid = 0;
    for (int64_t n = 0; n < N; n++) {
        targets[n] = n % 4 == 1 ? -1 : (int32_t)random_int(6, (uint64_t)n, 0, V - 1);
        valid += targets[n] >= 0;
    }
    if (!gradients)
        w16 = ops_bf16(w);
    double *x64 = ops_f64(x), *w64 = ops_f64(w), *b64 = with_bias ? ops_f64(bias) : NULL, *logp64 = calloc((size_t)N, 8);
    struct xent_context k = {x64, w64, b64, targets, N, C, V, (double)scale, (double)cap};
    double want = ref_xent(logp64, x64, w64, b64, targets, N, C, V, (double)scale, (double)cap), got = 100;
    float inv = 1.0f / (float)(valid ? valid : 1);
    int64_t count = 7;
    size_t bytes = cpu_xent_scratch(dev, N, C, V, 0);
    char *scratch = aligned_alloc(64, (bytes + 127) / 64 * 64);
    memset(scratch, 0xff, bytes);
    scratch[bytes] = 0x5a;
    const struct xent_args args = {.logit_scale = scale, .logit_softcap = cap, .inv_count = &inv, .bias = with_bias ? bias : view_none(),
                                   .dbias = with_bias && gradients ? dbias : view_none()};
    double *dw0 = ops_f64(dw), *db0 = ops_f64(dbias);
    assert_ok(cpu_xent(dev, &got, &count, logp, gradients ? dx : view_none(), gradients ? dw : view_none(), x, gradients ? w : w16,
                       view_1d(targets, DT_I32, N), &args, scratch));
    char name[128];
    snprintf(name, sizeof name, "%s N %d C %d V %d bias %d scale %g cap %g", dev->loops->name, (int)N, (int)C, (int)V, with_bias, (double)scale,
             (double)cap);
    assert_int_equal(scratch[bytes], 0x5a);
    assert_int_equal(count, 7 + valid);
    assert_true(fabs(got - 100 - want) <= 2e-6 * (1 + fabs(want)));
    assert_true(ops_compare(name, logp, logp64, 5e-6, 5e-6));
    if (gradients) {
        double *d = calloc((size_t)(V * C + N * C + V), 8);
        ops_differences(xent_loss, &k, x64, N * C, d);
        for (int64_t i = 0; i < N * C; i++)
            d[i] *= (double)inv;
        assert_true(ops_compare(name, dx, d, 2e-5, 1e-6));
        assert_true(ops_gaps_ok(dx, 2));
        ops_differences(xent_loss, &k, w64, V * C, d);
        for (int64_t i = 0; i < V * C; i++)
            d[i] = d[i] * (double)inv + dw0[i];
        assert_true(ops_compare(name, dw, d, 2e-5, 1e-6));
        if (with_bias) {
            ops_differences(xent_loss, &k, b64, V, d);
            for (int64_t i = 0; i < V; i++)
                d[i] = d[i] * (double)inv + db0[i];
            assert_true(ops_compare(name, dbias, d, 2e-5, 1e-6));
        }
        free(d);
    }
    free(x.p), free(w.p), free(bias.p), free(dx.p), free(dw.p), free(dbias.p), free(logp.p), free(w16.p), free(targets), free(x64), free(w64), free(b64);
    free(logp64), free(scratch), free(dw0), free(db0);
}

static void test_xent(void **state)
{
    (void)state;
    FOR_EACH_ISA(isa) {
        struct device *dev = ops_device((enum isa)isa, 2);
        one_xent(dev, 5, 7, 11, 0, 1, 0, 1);
        one_xent(dev, 21, 8, 33, 1, 1, 0, 1);
        one_xent(dev, 19, 5, 64, 1, 0.7f, 3, 1);
        one_xent(dev, 1, 5, 150, 0, 2, 0, 1);
        one_xent(dev, 3, 16, 2, 1, 1, 30, 1);
        one_xent(dev, 40, 24, 157, 1, 0.5f, 5, 0);
        one_xent(dev, 40, 24, 1003, 0, 1, 0, 0);
        one_xent(dev, 2100, 4, 77, 0, 1, 0, 0); /* more than one chunk */
        cpu_device_close(dev);
    }
}

/* Chunks add up: gradients of a long batch equal those of its halves. And the refusals. */
static void test_xent_chunks(void **state)
{
    (void)state;
    struct device *dev = ops_device(host_isa(), 2);
    const int64_t N = 2090, C = 8, V = 50;
    struct view x = ops_rows(N, C, 0, 1), w = ops_rows(V, C, 0, 2), dx = ops_rows(N, C, 0, 0), dw = ops_rows(V, C, 0, 0), dw2 = ops_rows(V, C, 0, 0);
    struct view dx2 = ops_rows(N, C, 0, 0);
    int32_t targets[2090];
    for (int64_t n = 0; n < N; n++)
        targets[n] = (int32_t)(n % V) - 1;
    float inv = 0.001f;
    double loss = 0, loss2 = 0;
    int64_t count = 0, count2 = 0;
    void *scratch = aligned_alloc(64, (cpu_xent_scratch(dev, N, C, V, 0) + 63) / 64 * 64);
    struct xent_args args = {.logit_scale = 1, .inv_count = &inv};
    struct view t = view_1d(targets, DT_I32, N);
    assert_ok(cpu_fill(dev, dw.p, 0, V * C));
    assert_ok(cpu_fill(dev, dw2.p, 0, V * C));
    assert_ok(cpu_xent(dev, &loss, &count, view_none(), dx, dw, x, w, t, &args, scratch));
    for (int64_t at = 0; at < N; at += N / 2)
        assert_ok(cpu_xent(dev, &loss2, &count2, view_none(), view_slice(dx2, 0, at, N / 2), dw2, view_slice(x, 0, at, N / 2), w,
                           view_slice(t, 0, at, N / 2), &args, scratch));
    double *want = ops_f64(dx2), *want_w = ops_f64(dw2);
    assert_int_equal(count, count2);
    assert_true(fabs(loss - loss2) <= 1e-6 * loss);
    assert_true(ops_compare("dx", dx, want, 1e-5, 1e-8));
    assert_true(ops_compare("dw", dw, want_w, 1e-4, 1e-6));
    struct view frozen = ops_rows(N, C, 0, 0); /* a frozen head: dx alone, the same */
    assert_ok(cpu_xent(dev, &loss, &count, view_none(), frozen, view_none(), x, w, t, &args, scratch));
    assert_memory_equal(frozen.p, dx.p, (size_t)(N * C) * 4);

    double loss3 = 5;
    targets[9] = (int32_t)V;
    assert_refused(cpu_xent(dev, &loss3, &count, view_none(), dx, dw, x, w, t, &args, scratch), ERR_INTERNAL, "target 50 of row 9");
    targets[9] = -1;
    assert_refused(cpu_xent(dev, &loss3, &count, view_none(), view_none(), dw, x, w, t, &args, scratch), ERR_UNSUPPORTED, "without");
    args.inv_count = NULL;
    assert_refused(cpu_xent(dev, &loss3, &count, view_none(), dx, dw, x, w, t, &args, scratch), ERR_UNSUPPORTED, "inv_count");
    args.inv_count = &inv;
    struct view w16 = ops_bf16(w);
    assert_refused(cpu_xent(dev, &loss3, &count, view_none(), dx, dw, x, w16, t, &args, scratch), ERR_UNSUPPORTED, "bf16");
    assert_true(loss3 == 5);
    free(x.p), free(w.p), free(dx.p), free(dw.p), free(dw2.p), free(dx2.p), free(want), free(want_w), free(frozen.p), free(scratch), free(w16.p);
    cpu_device_close(dev);
}

static void test_adamw(void **state)
{
    (void)state;
    FOR_EACH_ISA(isa)
        for (int threads = 1; threads <= 2; threads++) {
            struct device *dev = ops_device((enum isa)isa, threads);
            const int64_t n = 20011;
            struct view p = ops_vector(n, 1), m = ops_vector(n, 2), v = ops_vector(n, 3), g = ops_vector(n, 4);
            for (int64_t i = 0; i < n; i++)
                view_f32(v)[i] *= view_f32(v)[i];
            double *p64 = ops_f64(p), *m64 = ops_f64(m), *v64 = ops_f64(v);
            float clip = 0.25f;
            int32_t skip = 0;
            struct adamw_args args = {.lr = 0.01f, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .weight_decay = 0.1f, .step = 1, .clip = &clip,
                                      .skip = &skip, .zero_grad = 1};
            for (int step = 1; step <= 3; step++) {
                args.step = step;
                fill_random(g.p, n, 40 + (uint64_t)step);
                for (int64_t i = 0; i < n; i++)
                    ref_adamw(p64 + i, m64 + i, v64 + i, 0.25 * (double)view_f32(g)[i], (double)args.lr, (double)args.beta1, (double)args.beta2,
                              (double)args.eps, (double)args.weight_decay, step);
                assert_ok(cpu_adamw(dev, p.p, g.p, m.p, v.p, n, &args));
                for (int64_t i = 0; i < n; i++)
                    assert_true(view_f32(g)[i] == 0);
            }
            assert_true(ops_compare("p", p, p64, 1e-5, 1e-5));
            assert_true(ops_compare("m", m, m64, 1e-5, 1e-6));
            assert_true(ops_compare("v", v, v64, 1e-5, 1e-6));
            skip = 1;
            float before = view_f32(p)[5];
            fill_random(g.p, n, 9);
            assert_ok(cpu_adamw(dev, p.p, g.p, m.p, v.p, n, &args));
            assert_true(view_f32(p)[5] == before && view_f32(g)[n - 1] == 0);
            args.zero_grad = 0;
            fill_random(g.p, n, 9);
            assert_ok(cpu_adamw(dev, p.p, g.p, m.p, v.p, n, &args));
            assert_true(view_f32(g)[n - 1] != 0);
            args.step = 0;
            assert_refused(cpu_adamw(dev, p.p, g.p, m.p, v.p, n, &args), ERR_INTERNAL, "step 0");
            free(p.p), free(m.p), free(v.p), free(g.p), free(p64), free(m64), free(v64);
            cpu_device_close(dev);
        }
}

static void test_flat(void **state)
{
    (void)state;
    const int64_t n = 3 * SUMSQ_BLOCK + 1234;
    struct view x = ops_vector(n, 1), y = ops_vector(n, 2);
    double *x64 = ops_f64(x), *want = ops_f64(y), sums[4], first[4], total[4] = {0};
    for (int64_t i = 0; i < n; i++) {
        want[i] += 0.5 * x64[i];
        total[i / SUMSQ_BLOCK] += x64[i] * x64[i];
    }
    FOR_EACH_ISA(isa)
        for (int threads = 1; threads <= 3; threads++) {
            struct device *dev = ops_device((enum isa)isa, threads);
            assert_ok(cpu_sumsq(dev, sums, x.p, n));
            for (int i = 0; i < 4; i++)
                assert_true(fabs(sums[i] - total[i]) <= 1e-6 * total[i]);
            if (threads == 1)
                memcpy(first, sums, sizeof sums);
            else
                assert_memory_equal(sums, first, sizeof sums); /* the team does not change the bits */
            fill_random(y.p, n, 2);
            assert_ok(cpu_axpy(dev, y.p, x.p, 0.5f, n));
            assert_true(ops_compare("axpy", y, want, 1e-6, 1e-6));
            fill_nan(y.p, n);
            assert_ok(cpu_fill(dev, y.p, 3.5f, n));
            for (int64_t i = 0; i < n; i++)
                if (view_f32(y)[i] != 3.5f)
                    assert_int_equal(i, -1);
            cpu_device_close(dev);
        }
    free(x.p), free(y.p), free(x64), free(want);
}

static void test_backend(void **state)
{
    (void)state;
    const struct backend *backend = NULL;
    assert_refused(backend_find("cuda", &backend), ERR_DEVICE, "--device cuda: ");
    assert_refused(backend_find("tpu", &backend), ERR_USAGE, "tpu");
    assert_ok(backend_find("auto", &backend));
    assert_string_equal(backend->name, "cpu");
#define SLOT_FILLED(op) assert_true(backend->op != NULL);
    KERNEL_OPS(SLOT_FILLED)
    struct device *dev;
    struct arena a;
    float word = 3;
    assert_ok(backend->device_open(&dev, NULL));
    assert_non_null(strstr(backend->device_name(dev), "cpu "));
    assert_ok(backend->device_alloc(dev, &a, "a test", 1000));
    float *p = arena_carve(&a, 100);
    assert_true(p[7] == 0);
    assert_ok(backend->device_copy(dev, p, &word, sizeof word));
    assert_true(p[0] == 3);
    assert_ok(backend->device_sync(dev));
    backend->device_free(dev, &a);
    assert_true(backend->probe_bandwidth(dev) > 1e8);
    assert_true(backend->probe_flops(dev) > 1e8);
    backend->device_close(dev);
    backend->device_close(NULL);
    struct comm *comm = comm_single();
    double value = 2;
    assert_int_equal(comm->size, 1);
    assert_ok(comm->all_reduce(comm, &value, 1));
    assert_ok(comm->broadcast(comm, &value, sizeof value, 0));
    assert_ok(comm->reduce_scatter(comm, &word, 1));
    assert_ok(comm->all_gather(comm, &word, 1));
    assert_true(value == 2 && word == 3);
}

/* A model reserves scratch once, for its largest pass; a smaller one (the last batch of an evaluation) must fit in it. */
static void test_xent_scratch_only_grows(void **state)
{
    (void)state;
    struct device *dev = ops_device(host_isa(), 2);
    static const int64_t vocabularies[] = {256, 1000, 32000, 128000};
    for (size_t v = 0; v < COUNT_OF(vocabularies); v++)
        for (int64_t N = 1, largest = 0; N < 2600; N++) {
            int64_t bytes = (int64_t)cpu_xent_scratch(dev, N, 64, vocabularies[v], 0);
            assert_true(bytes >= largest);
            largest = bytes;
        }
    cpu_device_close(dev);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_xent), cmocka_unit_test(test_xent_chunks), cmocka_unit_test(test_adamw),
                                       cmocka_unit_test(test_flat), cmocka_unit_test(test_backend),
                                       cmocka_unit_test(test_xent_scratch_only_grows)};
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
