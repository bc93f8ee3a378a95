/* The host side of the CUDA backend without a GPU: nvcc's own objects on a fake runtime and a fake cuBLASLt (tests/cuda), in which
 * everything runs as late as allowed. Device and refusals, copies through the pinned ring, graphs, products; and with kernels that do
 * nothing, whole training and decode steps of a large shape, whose launches must obey the limits of the hardware, and which must
 * neither allocate nor wait. */
#include "harness.h"

#include <math.h>

#include "cuda/fake_cuda.h"
#include "model/model.h"

struct head {
    int arch, sm_count;
}; /* struct device of kernels/cuda/cuda.cuh begins so */

static const struct backend *be;
static struct device *dev;

static void no_fault(void)
{
    if (fake.fault[0])
        print_error("the fake runtime says: %s\n", fake.fault);
    assert_string_equal(fake.fault, "");
}

static int open_device(void **state)
{
    (void)state;
    fake_cuda_reset();
    be = cuda_backend();
    assert_ok(cuda_usable());
    assert_ok(be->device_open(&dev, NULL));
    return 0;
}

static int close_device(void **state)
{
    (void)state;
    be->device_close(dev);
    no_fault();
    assert_int_equal(fake.live, 0);
    assert_int_equal(fake.device_bytes, 0);
    return 0;
}

/* ---- which device ---- */

static void auto_means_auto(void)
{
    unsetenv("GQAKIT_DEVICE");
} /* the harness says the CPU */

static void refuses(int driver, int devices, int major, int minor, const char *part)
{
    const struct backend *found = NULL;
    auto_means_auto();
    fake_cuda_reset();
    fake.driver = driver < 0 ? fake.driver : driver;
    fake.devices = devices;
    fake.major = major;
    fake.minor = minor;
    assert_refused(cuda_usable(), ERR_DEVICE, part);
    assert_refused(cuda_backend()->device_open(&dev, NULL), ERR_DEVICE, part);
    assert_refused(backend_find("cuda", &found), ERR_DEVICE, "--device cuda: ");
    assert_ok(backend_find("auto", &found));
    assert_string_equal(found->name, "cpu");
    assert_int_equal(fake.live, 0);
}

static void test_refusals(void **state)
{
    (void)state;
    refuses(0, 0, 9, 0, "no NVIDIA driver");
    refuses(11080, 1, 9, 0, "knows CUDA 11.8");
    refuses(-1, 0, 9, 0, "sees no GPU");
    refuses(-1, 1, 7, 5, "compute capability 7.5; 8.0 or newer");
}

static void test_generations(void **state)
{
    (void)state;
    static const int cases[][3] = {{8, 0, 80}, {8, 6, 80}, {8, 9, 80}, {9, 0, 90}, {10, 0, 80}, {12, 1, 80}}; /* sm_90a code runs on 9.0 alone */
    auto_means_auto();
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        const struct backend *found = NULL;
        fake_cuda_reset();
        fake.major = cases[i][0];
        fake.minor = cases[i][1];
        assert_ok(backend_find("auto", &found));
        assert_string_equal(found->name, "cuda");
        assert_ok(found->device_open(&dev, NULL));
        assert_int_equal(((struct head *)(void *)dev)->arch, cases[i][2]);
        assert_int_equal(((struct head *)(void *)dev)->sm_count, 132);
        assert_non_null(strstr(found->device_name(dev), "Fake GPU"));
        found->device_close(dev);
        assert_int_equal(fake.live, 0);
    }
    no_fault();
}

static void test_memory_runs_out(void **state)
{
    (void)state;
    struct arena a = {0};
    for (int n = 1; n <= 2; n++) { /* the workspace, the pinned ring */
        fake_cuda_reset();
        fake.fail_at = n;
        assert_refused(cuda_backend()->device_open(&dev, NULL), ERR_MEMORY, "out of memory");
        assert_int_equal(fake.live, 0);
    }
    open_device(NULL);
    fake.fail_at = 1;
    assert_refused(be->device_alloc(dev, &a, "parameters", 123 << 20), ERR_MEMORY, "cannot reserve 123.0 MiB for parameters on cuda Fake GPU");
    close_device(NULL);
}

/* ---- copies ---- */

static void test_copies(void **state)
{
    (void)state;
    static const size_t sizes[] = {1, 4, 255, 4096, 70001, 4 << 20, (4 << 20) + 3, 77 << 20};
    struct arena a = {0};
    const size_t most = 80 << 20;
    unsigned char *x = malloc(most), *y = malloc(most);
    assert_ok(be->device_alloc(dev, &a, "a test", 2 * most));
    assert_false(a.host);
    assert_ok(be->device_copy(dev, y, a.base + 12345, 1000));
    for (int i = 0; i < 1000; i++)
        assert_int_equal(y[i], 0); /* device_alloc gives zeros */
    for (size_t s = 0; s < COUNT_OF(sizes); s++) {
        for (size_t i = 0; i < sizes[s]; i++)
            x[i] = (unsigned char)(i * 31 + (i >> 8) * 7 + s);
        assert_ok(be->device_copy(dev, a.base + s, x, sizes[s]));
        memset(x, 0xee, sizes[s]); /* the source may change at once */
        assert_ok(be->device_copy(dev, a.base + most, a.base + s, sizes[s]));
        memset(y, 0, sizes[s]);
        assert_ok(be->device_copy(dev, y, a.base + most, sizes[s]));
        for (size_t i = 0; i < sizes[s]; i++)
            if (y[i] != (unsigned char)(i * 31 + (i >> 8) * 7 + s))
                assert_int_equal(i, -1);
    }
    be->device_free(dev, &a);
    assert_null(a.base);
    free(x), free(y);
}

/* Small copies do not wait until the list of pieces is full; nothing that is still on its way is overwritten, in any mix of sizes. */
static void test_ring(void **state)
{
    (void)state;
    enum { N = 60, ROOM = 5 << 20 };
    struct arena a = {0};
    int32_t *x = malloc(ROOM), *y = malloc(ROOM);
    assert_ok(be->device_alloc(dev, &a, "a test", (size_t)N * ROOM));
    assert_ok(be->device_sync(dev));
    long waits = fake.waits;
    for (int i = 0; i < 64; i++)
        assert_ok(be->device_copy(dev, a.base + (size_t)i * 4096, &i, sizeof i));
    assert_int_equal(fake.waits, waits);
    for (int i = 0; i < N; i++) {
        const size_t n = i % 7 == 0 ? ROOM / 4 : i % 5 == 0 ? 300000 : (size_t)(i % 3) * 1000 + 1;
        for (size_t k = 0; k < n; k++)
            x[k] = (int32_t)((size_t)i * 1000003u + k);
        assert_ok(be->device_copy(dev, a.base + (size_t)i * ROOM, x, n * 4));
    }
    for (int i = 0; i < N; i++) {
        const size_t n = i % 7 == 0 ? ROOM / 4 : i % 5 == 0 ? 300000 : (size_t)(i % 3) * 1000 + 1;
        assert_ok(be->device_copy(dev, y, a.base + (size_t)i * ROOM, n * 4));
        for (size_t k = 0; k < n; k++)
            if (y[k] != (int32_t)((size_t)i * 1000003u + k))
                assert_int_equal(i, -1);
    }
    be->device_free(dev, &a);
    free(x), free(y);
}

/* ---- products ---- */

struct tensor {
    struct view v;
    double *x;
}; /* on the device; dense values */

static double rounded(double x, enum dtype t)
{
    return t == DT_BF16 ? (double)f32_from_bf16(bf16_from_f32((float)x)) : x;
}

static struct tensor tensor_make(struct arena *a, enum dtype t, int64_t rows, int64_t cols, int64_t stride, int seed)
{
    struct tensor m = {view_2d(arena_carve(a, (size_t)(rows * stride) * dtype_bytes(t)), t, rows, cols),
                       calloc((size_t)(rows * cols), sizeof(double))};
    float *f = calloc((size_t)(rows * stride), sizeof *f);
    void *low = calloc((size_t)(rows * stride), 4);
    m.v.s[0] = stride;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < stride; j++) {
            const double x = j < cols ? (double)((i * 37 + j * 11 + seed * 5) % 17 - 8) / 4.0 : (double)NAN;
            f[i * stride + j] = (float)x;
            if (j < cols)
                m.x[i * cols + j] = x;
        }
    convert_elements(low, t, f, DT_F32, (size_t)(rows * stride));
    assert_ok(be->device_copy(dev, m.v.p, low, (size_t)(rows * stride) * dtype_bytes(t)));
    free(f), free(low);
    return m;
}

static void product(enum dtype in, enum dtype out, int ta, int tb, float beta, int with_bias, int spare)
{
    const int64_t M = 5, N = 7, K = 6;
    struct arena a = {0};
    assert_ok(be->device_alloc(dev, &a, "a test", 1 << 16));
    struct tensor x = tensor_make(&a, in, ta ? K : M, ta ? M : K, (ta ? M : K) + spare, 1),
                  y = tensor_make(&a, in, tb ? N : K, tb ? K : N, (tb ? K : N) + spare, 2);
    struct tensor c = tensor_make(&a, out, M, N, N + spare, 3), bias = tensor_make(&a, DT_F32, 1, N, N, 4);
    struct view bv = view_1d(bias.v.p, DT_F32, N);
    const long launches = fake.launches;
    assert_ok(be->matmul(dev, c.v, x.v, y.v, with_bias ? bv : view_none(), ta, tb, 0.5f, beta));
    const int by_kernel = with_bias && (out == DT_BF16 || fake.no_bias); /* a kernel of ours adds it, which does nothing here */
    assert_int_equal(fake.launches - launches, by_kernel);
    void *low = calloc((size_t)(M * c.v.s[0]), 4);
    float *got = calloc((size_t)(M * c.v.s[0]), sizeof *got);
    assert_ok(be->device_copy(dev, low, c.v.p, (size_t)(M * c.v.s[0]) * dtype_bytes(out)));
    convert_elements(got, DT_F32, low, out, (size_t)(M * c.v.s[0]));
    for (int64_t m = 0; m < M; m++)
        for (int64_t n = 0; n < N; n++) {
            double want = 0;
            for (int64_t k = 0; k < K; k++)
                want += x.x[ta ? k * M + m : m * K + k] * y.x[tb ? n * K + k : k * N + n];
            want = 0.5 * want + (double)beta * c.x[m * N + n] + (with_bias && !by_kernel ? bias.x[n] : 0.0);
            if (!((double)got[m * c.v.s[0] + n] == rounded(want, out)))
                print_error("%s -> %s ta %d tb %d beta %g bias %d: [%d,%d]\n", dtype_name(in), dtype_name(out), ta, tb, (double)beta, with_bias,
                            (int)m, (int)n);
            assert_true((double)got[m * c.v.s[0] + n] == rounded(want, out));
        }
    for (int64_t m = 0; m < M; m++)
        for (int64_t j = N; j < c.v.s[0]; j++)
            assert_true(isnan(got[m * c.v.s[0] + j]));
    free(low), free(got), free(x.x), free(y.x), free(c.x), free(bias.x);
    be->device_free(dev, &a);
}

static void test_products(void **state)
{
    (void)state;
    static const enum dtype types[][2] = {{DT_F32, DT_F32}, {DT_BF16, DT_BF16}, {DT_BF16, DT_F32}};
    for (int no_bias = 0; no_bias < 2; no_bias++) {
        close_device(NULL); /* and its plans */
        open_device(NULL);
        fake.no_bias = no_bias;
        for (size_t t = 0; t < COUNT_OF(types); t++)
            for (int bits = 0; bits < 32; bits++)
                product(types[t][0], types[t][1], bits & 1, bits >> 1 & 1, bits >> 2 & 1 ? 1.0f : 0.0f, bits >> 3 & 1, bits >> 4 & 1 ? 8 : 0);
    }
    no_fault();
}

/* The heuristic is asked once for a product, and again for those that do not fit into the table, which still come out right. */
static void test_plans(void **state)
{
    (void)state;
    struct arena a = {0};
    assert_ok(be->device_alloc(dev, &a, "a test", 1 << 20));
    struct view x = view_2d(arena_carve(&a, 1 << 14), DT_F32, 1, 8), c = view_2d(arena_carve(&a, 1 << 18), DT_F32, 1, 8);
    struct view w = view_2d(arena_carve(&a, 1 << 18), DT_F32, 8, 8);
    assert_ok(be->fill(dev, x.p, 1.0f, 8));
    for (int round = 0; round < 3; round++) {
        const long asked = fake.questions;
        for (int64_t n = 1; n <= 700; n++) {
            w.n[0] = c.n[1] = n;
            assert_ok(be->matmul(dev, c, x, w, view_none(), 0, 1, 1.0f, 0.0f));
        }
        assert_int_equal(fake.questions - asked, round == 0 ? 700 : 0);
    }
    for (int64_t n = 701; n <= 1000; n++) {
        w.n[0] = c.n[1] = n;
        assert_ok(be->matmul(dev, c, x, w, view_none(), 0, 1, 1.0f, 0.0f));
    }
    const long asked = fake.questions;
    w.n[0] = c.n[1] = 1000;
    assert_ok(be->matmul(dev, c, x, w, view_none(), 0, 1, 1.0f, 0.0f));
    assert_int_equal(fake.questions - asked, 1);
    fake.nothing = 1;
    w.n[0] = c.n[1] = 1001;
    assert_refused(be->matmul(dev, c, x, w, view_none(), 0, 1, 1.0f, 0.0f), ERR_UNSUPPORTED, "no algorithm for [1,1001]");
    w.dtype = DT_BF16;
    assert_refused(be->matmul(dev, c, x, w, view_none(), 0, 1, 1.0f, 0.0f), ERR_UNSUPPORTED, "b is bf16");
    be->device_free(dev, &a);
}

/* ---- graphs ---- */

static void test_graphs(void **state)
{
    (void)state;
    struct arena a = {0};
    struct graph *g = NULL;
    int recording = 0;
    float one = 1, got = 0;
    assert_ok(be->device_alloc(dev, &a, "a test", 4096));
    float *x = arena_carve(&a, 64), *y = arena_carve(&a, 64);
    struct view vx = view_2d(x, DT_F32, 1, 1), vy = view_2d(y, DT_F32, 1, 1);
    assert_ok(be->device_copy(dev, x, &one, 4));
    assert_ok(be->matmul(dev, vy, vx, vx, view_none(), 0, 0, 1.0f, 1.0f)); /* y = 1 */
    assert_ok(be->graph_begin(dev, &recording));
    assert_int_equal(recording, 1);
    assert_ok(be->matmul(dev, vy, vx, vx, view_none(), 0, 0, 1.0f, 1.0f)); /* y += x x, recorded, not run */
    assert_refused(be->device_copy(dev, x, &one, 4), ERR_INTERNAL, "cannot be recorded");
    assert_ok(be->graph_end(dev, &g));
    assert_ok(be->device_copy(dev, &got, y, 4));
    assert_true(got == 1.0f);
    for (int i = 0; i < 3; i++) {
        float v = (float)(i + 1);
        assert_ok(be->device_copy(dev, x, &v, 4)); /* arguments are frozen, contents are not */
        assert_ok(be->graph_run(dev, g));
    }
    assert_ok(be->device_copy(dev, &got, y, 4));
    assert_true(got == 1.0f + 1.0f + 4.0f + 9.0f);
    be->graph_free(dev, g);
    be->graph_free(dev, NULL);
    be->device_free(dev, &a);
}

static void test_probes(void **state)
{
    (void)state;
    fake.dry = 1;
    assert_true(be->probe_bandwidth(dev) > 0);
    assert_true(be->probe_flops(dev) > 0);
    fake.fail_at = 1;
    assert_true(be->probe_bandwidth(dev) == 0);
    fake.fail_at = 1;
    assert_true(be->probe_flops(dev) == 0);
}

/* ---- whole steps with kernels that do nothing ---- */

static void large_arch(struct arch *a, int64_t L, int64_t G, int64_t D)
{
    assert_ok(arch_init(a, L));
    snprintf(a->family, sizeof a->family, "llama");
    a->C = 2048, a->V = 32000, a->max_positions = 131072, a->norm_eps = 1e-5;
    a->pos = POS_ROPE, a->rope.dims = D, a->rope.theta = 10000.0, a->mlp = MLP_SWIGLU, a->attn_scale = 0.0884;
    for (int64_t l = 0; l < L; l++) {
        struct arch_block *b = &a->stack[STACK_DEC].block[l];
        b->H = 16, b->G = G, b->D = b->Dv = D, b->F = 5504;
    }
    assert_ok(arch_check(a, "test_cuda_host"));
}

static void training(int capability, enum dtype type, int64_t G, int64_t D, int deterministic)
{
    struct arch arch;
    struct model *m;
    struct batch b;
    struct arena scalars = {0};
    const struct model_options options = {.train = 1, .dtype = type, .deterministic = deterministic, .B = 4, .T = 2048};
    fake_cuda_reset();
    fake.dry = 1;
    fake.major = capability / 10;
    be = cuda_backend();
    assert_ok(be->device_open(&dev, NULL));
    large_arch(&arch, 2, G, D);
    assert_ok(model_open(&m, &arch, be, dev, &options));
    assert_ok(be->device_alloc(dev, &scalars, "a test", 4096));
    assert_ok(batch_alloc(&b, 4, 2048));
    memset(b.ids, 0, (size_t)(4 * 2048) * 4), memset(b.targets, 0, (size_t)(4 * 2048) * 4);
    memset(b.positions, 0, (size_t)(4 * 2048) * 4), memset(b.segments, 0, (size_t)(4 * 2048) * 4);
    float *inv = arena_carve(&scalars, 4);
    double *loss = arena_carve(&scalars, 8);
    int64_t *count = arena_carve(&scalars, 8);
    long allocations = 0, waits = 0, questions = 0, launches = 0;
    for (int step = 0; step < 3; step++) {
        if (step == 1) {
            assert_ok(be->device_sync(dev));
            allocations = fake.allocations, waits = fake.waits, questions = fake.questions, launches = fake.launches;
        }
        assert_ok(model_forward_backward(m, &b, inv, loss, count));
    }
    printf("sm_%d %s G %lld D %lld%s: %ld launches and %ld products a step\n", capability, dtype_name(type), (long long)G, (long long)D,
           deterministic ? " deterministic" : "", (fake.launches - launches) / 2, fake.products / 3);
    no_fault();
    assert_int_equal(fake.allocations, allocations);
    assert_int_equal(fake.waits, waits);
    assert_int_equal(fake.questions, questions);
    batch_free(&b);
    model_close(m);
    be->device_free(dev, &scalars);
    arch_free(&arch);
    close_device(NULL);
}

static void test_training_step(void **state)
{
    (void)state;
    training(80, DT_BF16, 16, 128, 0);
    training(80, DT_BF16, 4, 128, 1);
    training(90, DT_BF16, 16, 128, 0);
    training(90, DT_BF16, 4, 128, 1);
    training(90, DT_BF16, 2, 80, 0);
    training(90, DT_BF16, 1, 256, 0);
    training(90, DT_F32, 4, 128, 1);
}

static void test_decode_step(void **state)
{
    (void)state;
    static const int64_t heads[] = {1, 4, 16};
    for (size_t i = 0; i < COUNT_OF(heads); i++) {
        struct arch arch;
        struct model *m;
        const struct model_options options = {.dtype = DT_BF16, .cache_B = 8, .cache_S = 131072 - 64, .cache_dtype = DT_BF16};
        const int32_t ids[8] = {0};
        float *logits = malloc((size_t)(8 * 32000) * sizeof *logits);
        fake_cuda_reset();
        fake.dry = 1;
        be = cuda_backend();
        assert_ok(be->device_open(&dev, NULL));
        large_arch(&arch, 2, heads[i], 128);
        assert_ok(model_open(&m, &arch, be, dev, &options));
        model_cache_set_length(m, 100000);
        for (int step = 0; step < 3; step++)
            assert_ok(model_decode(m, ids, 8, 1, logits));
        assert_true(fake.captured > 0); /* the step is a graph */
        const long allocations = fake.allocations, launches = fake.launches, products = fake.products;
        assert_ok(model_decode(m, ids, 8, 1, logits));
        assert_int_equal(fake.allocations, allocations);
        assert_int_equal(fake.launches, launches); /* only replayed */
        assert_int_equal(fake.products, products);
        no_fault();
        model_close(m);
        arch_free(&arch);
        free(logits);
        close_device(NULL);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_generations),
        cmocka_unit_test(test_memory_runs_out),
        cmocka_unit_test_setup_teardown(test_copies, open_device, close_device),
        cmocka_unit_test_setup_teardown(test_ring, open_device, close_device),
        cmocka_unit_test_setup_teardown(test_products, open_device, close_device),
        cmocka_unit_test_setup_teardown(test_plans, open_device, close_device),
        cmocka_unit_test_setup_teardown(test_graphs, open_device, close_device),
        cmocka_unit_test_setup_teardown(test_probes, open_device, close_device),
        cmocka_unit_test(test_training_step),
        cmocka_unit_test(test_decode_step),
    };
    harness_boot(argc, argv);
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
