/* The executor itself: kernels without a bug give the right values and no report, in every order of threads and landing of copies;
 * kernels with one seeded bug give a report of the right kind. Fragment layouts of ldmatrix and mma are compared with tables copied
 * cell by cell from the figures of the PTX ISA 9.0 ("ldmatrix", "Matrix Fragments for mma.m16n8k16 with floating point type"), not with
 * the formulas the models use. Runs in the executor alone. */
#include "device_case.h"
#include "simt_host.h"
#include "simt/probe_kernels.h"

/* ---- figures ---- */

/* A (16 x 16): row by row, the lane that holds columns 0-1, 2-3 ... 14-15; then the first element's name (a0 .. a7) there. */
static const int A_LANE[16][8] = {
    {0, 1, 2, 3, 0, 1, 2, 3},         {4, 5, 6, 7, 4, 5, 6, 7},         {8, 9, 10, 11, 8, 9, 10, 11},     {12, 13, 14, 15, 12, 13, 14, 15},
    {16, 17, 18, 19, 16, 17, 18, 19}, {20, 21, 22, 23, 20, 21, 22, 23}, {24, 25, 26, 27, 24, 25, 26, 27}, {28, 29, 30, 31, 28, 29, 30, 31},
    {0, 1, 2, 3, 0, 1, 2, 3},         {4, 5, 6, 7, 4, 5, 6, 7},         {8, 9, 10, 11, 8, 9, 10, 11},     {12, 13, 14, 15, 12, 13, 14, 15},
    {16, 17, 18, 19, 16, 17, 18, 19}, {20, 21, 22, 23, 20, 21, 22, 23}, {24, 25, 26, 27, 24, 25, 26, 27}, {28, 29, 30, 31, 28, 29, 30, 31},
};
static const int A_ELEMENT[16][8] = {
    {0, 0, 0, 0, 4, 4, 4, 4}, {0, 0, 0, 0, 4, 4, 4, 4}, {0, 0, 0, 0, 4, 4, 4, 4}, {0, 0, 0, 0, 4, 4, 4, 4},
    {0, 0, 0, 0, 4, 4, 4, 4}, {0, 0, 0, 0, 4, 4, 4, 4}, {0, 0, 0, 0, 4, 4, 4, 4}, {0, 0, 0, 0, 4, 4, 4, 4},
    {2, 2, 2, 2, 6, 6, 6, 6}, {2, 2, 2, 2, 6, 6, 6, 6}, {2, 2, 2, 2, 6, 6, 6, 6}, {2, 2, 2, 2, 6, 6, 6, 6},
    {2, 2, 2, 2, 6, 6, 6, 6}, {2, 2, 2, 2, 6, 6, 6, 6}, {2, 2, 2, 2, 6, 6, 6, 6}, {2, 2, 2, 2, 6, 6, 6, 6},
};
/* B (16 x 8): row by row (k), the lane of each column and the element's name (b0 .. b3). */
static const int B_LANE[16][8] = {
    {0, 4, 8, 12, 16, 20, 24, 28}, {0, 4, 8, 12, 16, 20, 24, 28}, {1, 5, 9, 13, 17, 21, 25, 29},  {1, 5, 9, 13, 17, 21, 25, 29},
    {2, 6, 10, 14, 18, 22, 26, 30}, {2, 6, 10, 14, 18, 22, 26, 30}, {3, 7, 11, 15, 19, 23, 27, 31}, {3, 7, 11, 15, 19, 23, 27, 31},
    {0, 4, 8, 12, 16, 20, 24, 28}, {0, 4, 8, 12, 16, 20, 24, 28}, {1, 5, 9, 13, 17, 21, 25, 29},  {1, 5, 9, 13, 17, 21, 25, 29},
    {2, 6, 10, 14, 18, 22, 26, 30}, {2, 6, 10, 14, 18, 22, 26, 30}, {3, 7, 11, 15, 19, 23, 27, 31}, {3, 7, 11, 15, 19, 23, 27, 31},
};
static const int B_ELEMENT[16] = {0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3};
/* C and D (16 x 8): row by row, the lane of columns 0-1 ... 6-7; c0, c1 in rows 0-7, c2, c3 in rows 8-15. */
static const int D_LANE[16][4] = {
    {0, 1, 2, 3}, {4, 5, 6, 7}, {8, 9, 10, 11}, {12, 13, 14, 15}, {16, 17, 18, 19}, {20, 21, 22, 23}, {24, 25, 26, 27}, {28, 29, 30, 31},
    {0, 1, 2, 3}, {4, 5, 6, 7}, {8, 9, 10, 11}, {12, 13, 14, 15}, {16, 17, 18, 19}, {20, 21, 22, 23}, {24, 25, 26, 27}, {28, 29, 30, 31},
};
/* One 8 x 8 matrix of ldmatrix: row by row, the lane of columns 0-1 ... 6-7. */
static const int LD_LANE[8][4] = {{0, 1, 2, 3},     {4, 5, 6, 7},     {8, 9, 10, 11},   {12, 13, 14, 15},
                                  {16, 17, 18, 19}, {20, 21, 22, 23}, {24, 25, 26, 27}, {28, 29, 30, 31}};

static uint64_t seed;
static float number(void) { return (float)random_int(7, seed++, -64, 64) / 8.0f; } /* exact in bf16, and so are sums of products in f32 */

static void *upload(const void *bytes, size_t n)
{
    void *p = simt_alloc(n, 0);
    simt_copy(p, bytes, n);
    return p;
}

static void test_ldmatrix(void **state)
{
    (void)state;
    uint16_t in[32][8];
    uint32_t out[32][4];
    for (int r = 0; r < 32; r++)
        for (int c = 0; c < 8; c++)
            in[r][c] = (uint16_t)(100 * r + c);
    void *x = upload(in, sizeof in), *y = simt_alloc(sizeof out, 1);
    for (int how = 0; how < 4; how++) {
        assert_ok(probe_fragment(case_device(), y, x, how));
        simt_copy(out, y, sizeof out);
        for (int m = 0; m < (how < 2 ? 4 : 2); m++)
            for (int r = 0; r < 8; r++)
                for (int c = 0; c < 8; c++) {
                    const uint32_t half = out[LD_LANE[r][c / 2]][m] >> (16 * (c % 2)) & 0xffffu;
                    assert_int_equal(half, how % 2 == 0 ? in[8 * m + r][c] : in[8 * m + c][r]);
                }
    }
    simt_free(x), simt_free(y);
    assert_int_equal(simt_faults(), 0);
}

static void test_mma(void **state)
{
    (void)state;
    float a[16][16], b[16][8], c[16][8], d[32][4];
    uint32_t fa[32][4] = {{0}}, fb[32][2] = {{0}};
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 16; k++) {
            a[i][k] = number();
            const int e = A_ELEMENT[i][k / 2] + k % 2;
            fa[A_LANE[i][k / 2]][e / 2] |= (uint32_t)bf16_from_f32(a[i][k]) << (16 * (e % 2));
        }
    for (int k = 0; k < 16; k++)
        for (int j = 0; j < 8; j++) {
            b[k][j] = number();
            const int e = B_ELEMENT[k];
            fb[B_LANE[k][j]][e / 2] |= (uint32_t)bf16_from_f32(b[k][j]) << (16 * (e % 2));
        }
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++)
            d[D_LANE[i][j / 2]][i / 8 * 2 + j % 2] = c[i][j] = number();
    void *pa = upload(fa, sizeof fa), *pb = upload(fb, sizeof fb), *pd = upload(d, sizeof d);
    assert_ok(probe_mma(case_device(), pd, pa, pb));
    simt_copy(d, pd, sizeof d);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++) {
            float want = c[i][j];
            for (int k = 0; k < 16; k++)
                want += a[i][k] * b[k][j];
            assert_true(d[D_LANE[i][j / 2]][i / 8 * 2 + j % 2] == want);
        }
    simt_free(pa), simt_free(pb), simt_free(pd);
    assert_int_equal(simt_faults(), 0);
}

/* ---- whole kernels ---- */

static int reduce(int bug) /* 1: all sums are right */
{
    enum { ROWS = 5, N = 200 };
    float in[ROWS][N], out[ROWS];
    double want[ROWS] = {0};
    for (int r = 0; r < ROWS; r++)
        for (int i = 0; i < N; i++)
            want[r] += (double)(in[r][i] = number());
    void *x = upload(in, sizeof in), *y = simt_alloc(sizeof out, 0);
    assert_ok(probe_reduce(case_device(), y, x, ROWS, N, bug));
    simt_copy(out, y, sizeof out);
    int good = 1;
    for (int r = 0; r < ROWS; r++)
        good &= (double)out[r] == want[r];
    simt_free(x), simt_free(y);
    return good;
}

static int gemm(int bug)
{
    enum { M = 128, N = 64, K = 160 };
    static float a[M][K], b[N][K], c[M][N];
    static uint16_t ha[M][K], hb[N][K];
    for (int i = 0; i < M; i++)
        for (int k = 0; k < K; k++)
            ha[i][k] = bf16_from_f32(a[i][k] = number());
    for (int j = 0; j < N; j++)
        for (int k = 0; k < K; k++)
            hb[j][k] = bf16_from_f32(b[j][k] = number());
    void *x = upload(ha, sizeof ha), *y = upload(hb, sizeof hb), *z = simt_alloc(sizeof c, 0);
    assert_ok(probe_gemm(case_device(), z, x, y, M, N, K, bug));
    simt_copy(c, z, sizeof c);
    int good = 1;
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            float want = 0;
            for (int k = 0; k < K; k++)
                want += a[i][k] * b[j][k];
            good &= c[i][j] == want;
        }
    simt_free(x), simt_free(y), simt_free(z);
    return good;
}

static void test_right(void **state)
{
    (void)state;
    static const char orders[] = "frxx";
    for (int i = 0; i < 8; i++) {
        simt_set_order(orders[i / 2], (unsigned)i);
        simt_set_async(i % 2 ? 'e' : 'l');
        assert_true(reduce(PROBE_RIGHT));
        assert_true(gemm(PROBE_RIGHT));
        assert_int_equal(simt_faults(), 0);
    }
    simt_set_order('f', 0);
    simt_set_async('l');
}

/* Exactly one kind of fault, at least once. */
static void expect(enum simt_fault_kind kind, const char *what)
{
    const int of_kind = simt_fault_count(kind), all = simt_faults();
    if (of_kind < 1 || of_kind != all)
        print_error("%s: %d faults of the kind expected, %d in all\n", what, of_kind, all);
    assert_true(of_kind >= 1 && of_kind == all);
}

static void test_seeded_pipelines(void **state)
{
    (void)state;
    simt_quiet(1);
    for (int i = 0; i < 3; i++) {
        simt_set_order("frx"[i], 3);
        reduce(PROBE_NO_BARRIER); /* in some orders also a read of what nobody has written */
        assert_true(simt_fault_count(SIMT_RACE) >= 1);
        simt_faults();
        reduce(PROBE_EARLY_WRITE);
        expect(SIMT_RACE, "reduction that writes before all have read");
        gemm(PROBE_NO_BARRIER);
        assert_true(simt_fault_count(SIMT_RACE) + simt_fault_count(SIMT_ASYNC) >= 1);
        simt_faults();
        assert_false(gemm(PROBE_NO_WAIT));
        expect(SIMT_ASYNC, "product without cp_async_wait");
        gemm(PROBE_EARLY_WRITE);
        assert_true(simt_fault_count(SIMT_RACE) + simt_fault_count(SIMT_ASYNC) >= 1);
        simt_faults();
    }
    simt_set_order('f', 0);
    simt_set_async('e');
    assert_false(gemm(PROBE_EARLY_WRITE)); /* copies that land at once also show in the values */
    simt_set_async('l');
    simt_faults();
    simt_quiet(0);
}

static enum code bugs(int bug)
{
    float in[128], out[128];
    for (int i = 0; i < 128; i++)
        in[i] = number();
    void *x = upload(in, sizeof in), *y = simt_alloc(sizeof out, bug == PROBE_DIVERGENT_RETURN || bug == PROBE_GLOBAL_RACE || bug == PROBE_GLOBAL_EARLY_WRITE);
    const enum code code = probe_bugs(case_device(), y, x, bug, 128);
    if (code == OK)
        simt_copy(out, y, sizeof out);
    simt_free(x), simt_free(y);
    return code;
}

static void test_seeded_bugs(void **state)
{
    (void)state;
    static const struct { int bug; int kind; const char *what; int stops; } cases[] = {
        {PROBE_RIGHT, -1, "no bug", 0},
        {PROBE_SHARED_BOUNDS, SIMT_BOUNDS, "write beyond shared memory", 0},
        {PROBE_GLOBAL_BOUNDS, SIMT_BOUNDS, "read beyond an allocation", 0},
        {PROBE_GLOBAL_BOUNDS_WRITE, SIMT_BOUNDS, "write before an allocation", 0},
        {PROBE_SHARED_UNINITIALISED, SIMT_UNINITIALISED, "shared memory nobody wrote", 0},
        {PROBE_GLOBAL_UNINITIALISED, SIMT_UNINITIALISED, "device memory nobody wrote", 0},
        {PROBE_DIVERGENT_RETURN, SIMT_DIVERGENT, "barrier after some have returned", 0},
        {PROBE_DIVERGENT_LINES, SIMT_DIVERGENT, "two barriers in two branches", 0},
        {PROBE_DEADLOCK, SIMT_DEADLOCK, "named barrier against __syncthreads", 1},
        {PROBE_DEADLOCK_WARP, SIMT_DEADLOCK, "__syncwarp against __syncthreads", 1},
        {PROBE_MISALIGNED, SIMT_MISALIGNED, "float4 at an odd address", 0},
        {PROBE_MISALIGNED_SHARED, SIMT_MISALIGNED, "float2 at an odd shared address", 0},
        {PROBE_WARP_RACE, SIMT_RACE, "shared memory between lanes without __syncwarp", 0},
        {PROBE_WARP_ORDER, -1, "the same with __syncwarp", 0},
        {PROBE_NAMED_ORDER, -1, "bar.arrive and bar.sync", 0},
        {PROBE_NAMED_RACE, SIMT_RACE, "a warp that takes no part in a named barrier", 0},
        {PROBE_MANY_READERS, SIMT_RACE, "a write after many reads, ordered after some", 0},
        {PROBE_GLOBAL_RACE, SIMT_RACE, "device memory within a block", 0},
        {PROBE_GLOBAL_EARLY_WRITE, SIMT_RACE, "device memory written before others have read it", 0},
        {PROBE_ATOMIC_ORDER, -1, "atomics, then a barrier", 0},
        {PROBE_ATOMIC_RACE, SIMT_RACE, "atomics, then a read", 0},
        {PROBE_PRIVATE_BOUNDS, SIMT_BOUNDS, "beyond a private array", 0},
        {PROBE_SHUFFLE_RETURNED, SIMT_MODEL, "shuffle from a lane that has returned", 0},
        {PROBE_CP_MISALIGNED, SIMT_MISALIGNED, "cp.async from an odd address", 0},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        for (int order = 0; order < 3; order++) {
            simt_set_order("frx"[order], 5);
            simt_quiet(cases[i].kind >= 0);
            assert_int_equal(bugs(cases[i].bug), cases[i].stops ? ERR_DEVICE : OK);
            if (cases[i].kind >= 0)
                expect((enum simt_fault_kind)cases[i].kind, cases[i].what);
            else
                assert_int_equal(simt_faults(), 0);
        }
    simt_quiet(0);
    simt_set_order('f', 0);
}

static void test_host_memory(void **state)
{
    (void)state;
    float *in = calloc(128, sizeof *in);
    void *out = simt_alloc(512, 0);
    simt_quiet(1);
    assert_ok(probe_bugs(case_device(), out, in, PROBE_RIGHT, 128));
    expect(SIMT_BOUNDS, "host memory in a kernel");
    simt_free(out);
    assert_ok(probe_bugs(case_device(), simt_alloc(256, 0), in, PROBE_RIGHT, 128));
    assert_true(simt_faults() > 128); /* and an output half as long */
    simt_quiet(0);
    free(in);
}

static void test_launches(void **state)
{
    (void)state;
    float *p = simt_alloc(4096 * 4, 1);
    static const struct { unsigned grid, block; size_t smem; int good; } cases[] = {
        {1, 1024, 4096, 1}, {1, 1025, 4096, 0}, {0, 32, 128, 0}, {1, 0, 128, 0}, {1, 32, 227 * 1024, 1}, {1, 32, 227 * 1024 + 16, 0}, {3, 128, 512, 1},
    };
    simt_quiet(1);
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        assert_int_equal(probe_launch(case_device(), p + 4, p, cases[i].grid, cases[i].block, cases[i].smem), cases[i].good ? OK : ERR_DEVICE);
        if (!cases[i].good)
            expect(SIMT_LAUNCH, "a launch");
        simt_faults(); /* in and out overlap: a race, which is not the point here */
    }
    simt_quiet(0);
    simt_free(p);
}

/* The dense product, which is plain loops here, against sums in order. */
static void test_matmul(void **state)
{
    (void)state;
    enum { M = 5, N = 7, K = 6 };
    const int64_t shape[4][2] = {{M, K}, {K, M}, {K, N}, {N, K}}, cn[2] = {M, N}, bn[1] = {N};
    for (int how = 0; how < 16; how++) {
        const int ta = how & 1, tb = how >> 1 & 1;
        const enum dtype type = how & 4 ? DT_BF16 : DT_F32, out = how & 8 ? type : DT_F32;
        double a[M * K], b[K * N], c[M * N], bias[N], truth[M * N];
        for (int i = 0; i < M * K; i++)
            a[i] = (double)number();
        for (int i = 0; i < K * N; i++)
            b[i] = (double)number();
        for (int i = 0; i < M * N; i++)
            c[i] = (double)number();
        for (int i = 0; i < N; i++)
            bias[i] = (double)number();
        struct view va = case_upload(a, type, 2, shape[ta]), vb = case_upload(b, type, 2, shape[2 + tb]), vc = case_upload(c, out, 2, cn),
                    vbias = case_upload(bias, DT_F32, 1, bn);
        for (int i = 0; i < M; i++)
            for (int j = 0; j < N; j++) {
                double sum = 0;
                for (int k = 0; k < K; k++)
                    sum += a[ta ? k * M + i : i * K + k] * b[tb ? j * K + k : k * N + j];
                truth[i * N + j] = 0.5 * sum + 2 * c[i * N + j] + bias[j];
            }
        assert_ok(case_backend()->matmul(case_device(), vc, va, vb, vbias, ta, tb, 0.5f, 2.0f));
        case_download(c, vc);
        /* A bf16 c is rounded before the bias is added, and after. */
        case_expect_near("matmul", c, truth, M * N, out == DT_BF16 ? 0.5 : 0, out == DT_BF16 ? 1.0 / 256 : 0);
        case_free();
    }
    assert_int_equal(case_faults(), 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ldmatrix),         cmocka_unit_test(test_mma),         cmocka_unit_test(test_right),
        cmocka_unit_test(test_seeded_pipelines), cmocka_unit_test(test_seeded_bugs), cmocka_unit_test(test_host_memory),
        cmocka_unit_test(test_launches),         cmocka_unit_test(test_matmul),
    };
    return case_main(argc, argv, tests, COUNT_OF(tests));
}
