/* The models of the sm_90a instructions, executor only: addresses and fragments against tables typed from the PTX ISA
 * (numbers as in 9.2), and bugs that must be reported. What the instructions compute is tested by test_sm90_probe.c, which also runs on a GPU. */
#include "device_case.h"

#include "simt_host.h"
#include "simt/probe_sm90.h"
#include "simt/sm90_layout.h"

#define FAIL(...)                  \
    do {                           \
        print_error(__VA_ARGS__);  \
        print_error("\n");         \
        _fail(__FILE__, __LINE__); \
    } while (0)

/* ---- addresses ---- */

static struct sm90_operand operand(uint32_t start, uint32_t lbo, uint32_t sbo, int swizzle)
{
    const struct sm90_operand o = {start, lbo, sbo, swizzle, 0};
    return o;
}

struct address {
    int mn, k;
    uint32_t expected;
};
static void expect_addresses(const char *what, struct sm90_operand o, int mn_major, const struct address *a, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (sm90_element(&o, mn_major, a[i].mn, a[i].k) != a[i].expected)
            FAIL("%s: element (%d, %d) at %u, expected %u", what, a[i].mn, a[i].k, sm90_element(&o, mn_major, a[i].mn, a[i].k), a[i].expected);
}
#define EXPECT_ADDRESSES(what, o, mn_major, ...)               \
    do {                                                       \
        const struct address a_[] = {__VA_ARGS__};             \
        expect_addresses(what, o, mn_major, a_, COUNT_OF(a_)); \
    } while (0)

/* 9.7.15.5.1.2.2: start 0-13, LBO 16-29, SBO 32-45, each >> 4; base offset 49-51; mode 62-63: 0 none, 1 128, 2 64, 3 32 bytes. */
static void test_descriptor(void **state)
{
    (void)state;
    struct sm90_operand o = sm90_operand_decode(0x4000004000010040ull); /* 1024, 16, 1024, 128-byte */
    assert_int_equal(o.start, 1024);
    assert_int_equal(o.lbo, 16);
    assert_int_equal(o.sbo, 1024);
    assert_int_equal(o.swizzle, 128);
    assert_int_equal(o.base_offset, 0);
    o = sm90_operand_decode(0x8000004000203fffull); /* the last 16 bytes of 256 KiB; 512, 1024, 64-byte */
    assert_int_equal(o.start, 262128);
    assert_int_equal(o.lbo, 512);
    assert_int_equal(o.sbo, 1024);
    assert_int_equal(o.swizzle, 64);
    o = sm90_operand_decode(0xc00a002000100000ull);
    assert_int_equal(o.swizzle, 32);
    assert_int_equal(o.base_offset, 5);
    assert_int_equal(o.sbo, 512);
    assert_int_equal(o.lbo, 256);
}

/* "Canonical Layouts", K-major rows: one row of the atom is the swizzle's width; atoms of 8 rows are SBO apart (9.7.15.5.1.2.1.2). */
static void test_k_major(void **state)
{
    (void)state;
    EXPECT_ADDRESSES("128 bytes", operand(1024, 16, 1024, 128), 0, {0, 0, 1024}, {0, 9, 1042}, {1, 0, 1168}, {1, 8, 1152}, {2, 0, 1312}, {3, 9, 1442},
                     {7, 15, 2030}, {8, 0, 2048}, {9, 15, 2190});
    /* The second K step of 16: start + 32, the chunks go on with 2 and 3. */
    EXPECT_ADDRESSES("128 bytes, step 1", operand(1056, 16, 1024, 128), 0, {0, 0, 1056}, {5, 0, 1776}, {2, 8, 1296}, {10, 8, 2320});
    EXPECT_ADDRESSES("64 bytes", operand(0, 16, 512, 64), 0, {0, 0, 0}, {1, 0, 64}, {2, 0, 144}, {3, 8, 192}, {7, 0, 496}, {8, 0, 512}, {10, 3, 662});
    EXPECT_ADDRESSES("32 bytes", operand(0, 16, 256, 32), 0, {0, 8, 16}, {3, 8, 112}, {4, 0, 144}, {4, 8, 128}, {8, 0, 256}, {13, 1, 434});
    /* Figure 166 has tf32: ((8,2),(4,4)):((4,32),(1,64)), LBO 256 bytes, SBO 128 bytes. With bf16 a chunk holds 8 elements. */
    EXPECT_ADDRESSES("none", operand(0, 256, 128, 0), 0, {1, 0, 16}, {8, 0, 128}, {0, 8, 256}, {9, 11, 406});
}

/* MN-major: Figures 168 (none), 169 (32 bytes), 170 (64 bytes), all bf16 with their LBO and SBO; 128 bytes by the table. */
static void test_mn_major(void **state)
{
    (void)state;
    /* ((8,1,2),(8,2)):((1,8,64),(8,128)): LBO 128 and SBO 64 elements. */
    EXPECT_ADDRESSES("none", operand(0, 256, 128, 0), 1, {1, 0, 2}, {0, 1, 16}, {8, 0, 128}, {0, 8, 256}, {11, 9, 406});
    /* ((8,2,2),(8,2)):((1,8,128),(16,256)): LBO 128 and SBO 256 elements; bit 4 ^= bit 7. */
    EXPECT_ADDRESSES("32 bytes", operand(0, 256, 512, 32), 1, {8, 0, 16}, {0, 1, 32}, {16, 0, 256}, {0, 4, 144}, {8, 4, 128}, {0, 8, 512},
                     {25, 13, 930});
    /* ((8,4,2),(8,2)):((1,8,256),(32,512)): LBO 256 and SBO 512 elements; bits 4-5 ^= bits 7-8. */
    EXPECT_ADDRESSES("64 bytes", operand(0, 512, 1024, 64), 1, {24, 0, 48}, {0, 1, 64}, {0, 2, 144}, {8, 3, 192}, {32, 0, 512}, {40, 6, 928},
                     {0, 8, 1024});
    /* ((8,8,m),(8,k)):((1,8,LBO),(64,SBO)): panels of 64 elements, here 64 rows of K each; bits 4-6 ^= bits 7-9. */
    EXPECT_ADDRESSES("128 bytes", operand(0, 8192, 1024, 128), 1, {9, 0, 18}, {0, 1, 144}, {9, 2, 306}, {8, 15, 2016}, {64, 0, 8192}, {70, 8, 9228},
                     {0, 8, 1024});
}

static void test_descriptor_faults(void **state)
{
    (void)state;
    const struct {
        struct sm90_operand o;
        int mn_major, rows, fault;
    } all[] = {
        {{1024, 16, 1024, 128, 0}, 0, 256, 0},  {{1120, 16, 1024, 128, 0}, 0, 64, 0}, /* the fourth K step */
        {{1152, 16, 1024, 128, 0}, 0, 64, 1},                                         /* begins in row 1 of the pattern */
        {{1136, 16, 1024, 128, 0}, 0, 64, 1},                                         /* the 32 bytes cross the row */
        {{1024, 16, 1040, 128, 0}, 0, 64, 1},   {{1024, 16, 0, 128, 0}, 0, 8, 0},
        {{512, 16, 512, 64, 0}, 0, 64, 0},      {{256, 16, 512, 64, 0}, 0, 64, 1},
        {{1024, 16, 1024, 128, 3}, 0, 64, 1}, /* base offset */
        {{1024, 8192, 1024, 128, 0}, 1, 80, 0}, {{1024, 8200 / 16 * 16, 1024, 128, 0}, 1, 80, 0},
        {{1024, 8208, 1024, 128, 0}, 1, 80, 1}, {{1024, 16, 1024, 128, 0}, 1, 64, 0}, /* one panel: LBO is not used */
        {{1088, 16, 1024, 128, 0}, 1, 32, 0},                                         /* half a panel */
        {{1088, 16, 1024, 128, 0}, 1, 64, 1},
    };
    for (size_t i = 0; i < COUNT_OF(all); i++) {
        const char *why = sm90_operand_fault(&all[i].o, 0, all[i].mn_major, all[i].rows);
        if ((why != NULL) != all[i].fault)
            FAIL("descriptor %zu: %s", i, why != NULL ? why : "no fault");
    }
    assert_non_null(sm90_operand_fault(&all[0].o, 1ull << 14, 0, 64));
}

/* Figures 148 (A), 149 (D) and stmatrix's .m8n8 figure. */
static void test_fragments(void **state)
{
    (void)state;
    static const struct {
        int thread, i, row, column;
    } d[] = {
        {0, 0, 0, 0},  {0, 1, 0, 1},   {0, 2, 8, 0},   {0, 3, 8, 1},    {0, 4, 0, 8},     {5, 0, 1, 2},        {5, 7, 9, 11},
        {31, 0, 7, 6}, {36, 0, 17, 0}, {64, 2, 40, 0}, {127, 0, 55, 6}, {127, 7, 63, 15}, {127, 127, 63, 255},
    };
    static const struct {
        int thread, r, h, row, k;
    } a[] = {
        {0, 0, 0, 0, 0}, {0, 0, 1, 0, 1},  {0, 1, 0, 8, 0},    {0, 2, 0, 0, 8},
        {0, 3, 1, 8, 9}, {6, 2, 1, 1, 13}, {100, 1, 0, 57, 0}, {127, 3, 1, 63, 15},
    };
    int row, column;
    for (size_t i = 0; i < COUNT_OF(d); i++) {
        sm90_fragment_d(d[i].thread, d[i].i, &row, &column);
        if (row != d[i].row || column != d[i].column)
            FAIL("d[%d] of thread %d is (%d, %d), expected (%d, %d)", d[i].i, d[i].thread, row, column, d[i].row, d[i].column);
    }
    for (size_t i = 0; i < COUNT_OF(a); i++) {
        sm90_fragment_a(a[i].thread, a[i].r, a[i].h, &row, &column);
        if (row != a[i].row || column != a[i].k)
            FAIL("a[%d] half %d of thread %d is (%d, %d), expected (%d, %d)", a[i].r, a[i].h, a[i].thread, row, column, a[i].row, a[i].k);
    }
    sm90_fragment_stmatrix(0, 1, &row, &column);
    assert_true(row == 0 && column == 1);
    sm90_fragment_stmatrix(23, 0, &row, &column);
    assert_true(row == 5 && column == 6);
}

/* ---- seeded bugs ---- */

static int found(unsigned kinds)
{
    int n = 0;
    for (int k = 0; k < SIMT_FAULT_KINDS; k++)
        n += kinds >> k & 1 ? simt_fault_count((enum simt_fault_kind)k) : 0;
    return n;
}
#define KIND(k) (1u << SIMT_##k)

static void every_mode(const char *what, unsigned kinds, enum code (*run)(enum sm90_bug bug), enum sm90_bug bug)
{
    simt_quiet(1);
    for (int mode = 0; mode < 6; mode++) {
        simt_set_order("frx"[mode / 2], 7);
        simt_set_async(mode % 2 ? 'e' : 'l');
        simt_faults();
        run(bug);
        if (found(kinds) == 0)
            FAIL("%s: order %c, copies %s: not reported (%d other faults)", what, "frx"[mode / 2], mode % 2 ? "early" : "late", simt_faults());
        simt_faults();
    }
    simt_set_order('f', 0);
    simt_set_async('l');
    simt_quiet(0);
}

static uint16_t *bytes_of_ones(size_t n)
{
    uint16_t *host = malloc(n * 2), *p = case_bytes(n * 2);
    for (size_t i = 0; i < n; i++)
        host[i] = 0x3f80;
    simt_copy(p, host, n * 2);
    free(host);
    return p;
}

static enum code run_gemm(enum sm90_bug bug)
{
    const struct sm90_probe_gemm p = {.m = 128, .n = 64, .k = 320, .tb = 1, .swizzle = 128, .bug = bug};
    uint16_t *a = bytes_of_ones(128 * 320), *b = bytes_of_ones(64 * 320);
    return sm90_probe_gemm(case_device(), &p, case_bytes(128 * 64 * 4), a, b);
}

static enum code run_store(enum sm90_bug bug)
{
    uint16_t *x = bytes_of_ones(256 * 64);
    return sm90_probe_store(case_device(), 256, bug, case_bytes(256 * 64 * 2), x, (float *)bytes_of_ones(64 * 64 * 2));
}

static void test_no_false_reports(void **state)
{
    (void)state;
    for (int mode = 0; mode < 6; mode++) {
        simt_set_order("frx"[mode / 2], 3);
        simt_set_async(mode % 2 ? 'e' : 'l');
        assert_int_equal(run_gemm(BUG_NONE), OK);
        assert_int_equal(run_store(BUG_NONE), OK);
        assert_int_equal(case_faults(), 0);
    }
    case_free();
}

static void test_gemm_bugs(void **state)
{
    (void)state;
    static const struct {
        const char *what;
        enum sm90_bug bug;
        unsigned kinds;
    } all[] = {
        {"no wait for the stage", BUG_NO_FULL_WAIT, KIND(ASYNC) | KIND(UNINITIALISED)},
        {"one warp does not wait for the stage", BUG_WARP_NO_WAIT, KIND(ASYNC) | KIND(RACE) | KIND(UNINITIALISED)},
        {"ordinary stores before a bulk load, no fence", BUG_LOAD_NO_FENCE, KIND(ASYNC)},
        {"stage released before wgmma_wait", BUG_EARLY_RELEASE, KIND(ASYNC) | KIND(RACE)},
        {"no wgmma_wait", BUG_NO_WGMMA_WAIT, KIND(ASYNC)},
        {"one wgmma_wait too lax", BUG_FEW_WGMMA_WAIT, KIND(ASYNC)},
        {"too few bytes announced", BUG_BYTES_FEW, KIND(MODEL)},
        {"too many bytes announced", BUG_BYTES_MANY, KIND(DEADLOCK)},
        {"no fence_mbarrier_init", BUG_NO_INIT_FENCE, KIND(MODEL)},
        {"no __syncthreads after mbarrier_init", BUG_NO_INIT_BARRIER, KIND(RACE) | KIND(MODEL) | KIND(UNINITIALISED)},
        {"mbarrier_init twice", BUG_INIT_TWICE, KIND(MODEL)},
        {"no mbarrier_init", BUG_NO_INIT, KIND(MODEL)},
        {"an arrival too many", BUG_ARRIVE_TWICE, KIND(MODEL)},
        {"one warp does not execute wgmma", BUG_ONE_WARP_MISSING, KIND(DEADLOCK) | KIND(DIVERGENT)},
        {"tiles off the swizzle's pattern", BUG_BASE_MISALIGNED, KIND(MISALIGNED)},
        {"registers beyond the block's", BUG_GROW_TOO_FAR, KIND(DEADLOCK)},
        {"accumulators written in flight", BUG_TOUCHED, KIND(ASYNC)},
    };
    for (size_t i = 0; i < COUNT_OF(all); i++) {
        every_mode(all[i].what, all[i].kinds, run_gemm, all[i].bug);
        case_free();
    }
}

static void test_store_bugs(void **state)
{
    (void)state;
    every_mode("no fence_async_shared", KIND(ASYNC), run_store, BUG_NO_FENCE_ASYNC);
    every_mode("source overwritten without bulk_wait_read", KIND(ASYNC), run_store, BUG_NO_READ_WAIT);
    every_mode("block ends with a bulk store in flight", KIND(ASYNC), run_store, BUG_NO_END_WAIT);
    every_mode("bulk store not committed", KIND(ASYNC), run_store, BUG_NO_COMMIT);
    case_free();
}

/* Generation 80 has none of this. */
static void test_generation(void **state)
{
    (void)state;
    case_arch(80);
    simt_quiet(1);
    run_gemm(BUG_NONE);
    assert_true(found(KIND(MODEL)) > 0);
    simt_faults();
    simt_quiet(0);
    case_arch(90);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_descriptor),        cmocka_unit_test(test_k_major),    cmocka_unit_test(test_mn_major),
        cmocka_unit_test(test_descriptor_faults), cmocka_unit_test(test_fragments),  cmocka_unit_test(test_no_false_reports),
        cmocka_unit_test(test_gemm_bugs),         cmocka_unit_test(test_store_bugs), cmocka_unit_test(test_generation),
    };
    return case_main(argc, argv, tests, COUNT_OF(tests));
}
