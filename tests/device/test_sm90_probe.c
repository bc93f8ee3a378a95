/* What the sm_90a instructions compute, on whatever device the test is linked with: in the executor this tests the models, on a GPU the
 * tables they were written from. Operands are laid out here by the canonical layouts of the PTX ISA ("Canonical Layouts") as CuTe
 * shapes and strides, independently of tests/simt/sm90_layout.cpp; all values are small integers, so results are exact; what no
 * instruction may read is NaN. */
#include "device_case.h"

#include <math.h>

#include "simt/probe_sm90.h"

static void need_sm90(void)
{
    if (case_arch(90))
        return;
    print_message("skipped: the device is not of generation 90\n");
    skip();
}

static double small(unsigned i)
{
    return (double)((i * 2654435761u >> 16) % 17) - 8;
}

static struct view bf16_of(double *x, int64_t n)
{
    return case_upload(x, DT_BF16, 1, &n);
}
static struct view f32_out(int64_t n)
{
    return case_output(DT_F32, 1, &n);
}

/* ---- products: one instruction, any layout ---- */

/* Element (mn, k) at sum of digits times strides, in elements; then Swizzle<bits,4,3> on the byte address. */
struct layout {
    const char *name;
    int mn_major, swizzle, bits;
    int mn_shape[3], mn_stride[3], k_shape[2], k_stride[2];
    uint32_t lbo, sbo;   /* bytes */
    int mn_from, k_from; /* the operand begins at this element */
};

static uint32_t place_of(const struct layout *l, uint32_t base, int mn, int k)
{
    mn += l->mn_from, k += l->k_from;
    int at = mn % l->mn_shape[0] * l->mn_stride[0] + mn / l->mn_shape[0] % l->mn_shape[1] * l->mn_stride[1] +
             mn / l->mn_shape[0] / l->mn_shape[1] * l->mn_stride[2];
    at += k % l->k_shape[0] * l->k_stride[0] + k / l->k_shape[0] * l->k_stride[1];
    uint32_t byte = base + 2 * (uint32_t)at;
    return byte ^ (byte & ((1u << l->bits) - 1) << 7) >> 3;
}
/* Address of the first element before the swizzle. */
static uint32_t start_of(const struct layout *l, uint32_t base)
{
    struct layout plain = *l;
    plain.bits = 0;
    return place_of(&plain, base, 0, 0);
}

/* For up to 128 rows of M or N. T = 8; LBO and SBO as in the tables' examples, spread to hold that many rows. */
static const struct layout layouts[] = {
    {"K-major, 128 bytes", 0, 128, 3, {8, 1, 16}, {64, 0, 512}, {8, 8}, {1, 8}, 16, 1024, 0, 0},
    {"K-major, 128 bytes, fourth step", 0, 128, 3, {8, 1, 16}, {64, 0, 512}, {8, 8}, {1, 8}, 16, 1024, 0, 48},
    {"K-major, 128 bytes, from row 8", 0, 128, 3, {8, 1, 16}, {64, 0, 512}, {8, 8}, {1, 8}, 16, 1024, 8, 16},
    {"K-major, 64 bytes", 0, 64, 2, {8, 1, 16}, {32, 0, 256}, {8, 4}, {1, 8}, 16, 512, 0, 0},
    {"K-major, 64 bytes, second step", 0, 64, 2, {8, 1, 16}, {32, 0, 256}, {8, 4}, {1, 8}, 16, 512, 0, 16},
    {"K-major, 32 bytes", 0, 32, 1, {8, 1, 16}, {16, 0, 128}, {8, 2}, {1, 8}, 16, 256, 0, 0},
    {"K-major, 32 bytes, groups apart", 0, 32, 1, {8, 1, 16}, {16, 0, 256}, {8, 2}, {1, 8}, 16, 512, 0, 0},
    {"MN-major, 128 bytes", 1, 128, 3, {8, 8, 2}, {1, 8, 1024}, {8, 2}, {64, 512}, 2048, 1024, 0, 0},
    {"MN-major, 128 bytes, panels inside", 1, 128, 3, {8, 8, 2}, {1, 8, 512}, {8, 2}, {64, 1024}, 1024, 2048, 0, 0},
    {"MN-major, 128 bytes, second step", 1, 128, 3, {8, 8, 2}, {1, 8, 2048}, {8, 4}, {64, 512}, 4096, 1024, 0, 16},
    {"MN-major, 64 bytes", 1, 64, 2, {8, 4, 4}, {1, 8, 256}, {8, 2}, {32, 1024}, 512, 2048, 0, 0},
    {"MN-major, 32 bytes", 1, 32, 1, {8, 2, 8}, {1, 8, 128}, {8, 2}, {16, 1024}, 256, 2048, 0, 0},
};
/* Code in the field reads these two tables the other way round. */
static const struct layout no_swizzle[] = {
    {"K-major, no swizzle", 0, 0, 0, {8, 1, 16}, {8, 0, 64}, {8, 2}, {1, 1024}, 2048, 128, 0, 0},
    {"MN-major, no swizzle", 1, 0, 0, {8, 1, 16}, {1, 0, 64}, {8, 2}, {8, 1024}, 2048, 128, 0, 0},
};
/* Not in the tables, but common: an operand that begins inside a panel. */
static const struct layout inside[] = {
    {"MN-major, 128 bytes, from the middle of a panel", 1, 128, 3, {8, 8, 2}, {1, 8, 1024}, {8, 2}, {64, 512}, 2048, 1024, 32, 0},
};

#define IMAGE 16384 /* elements; a at 0, b in the second half */

static void image_put(double *image, const struct layout *l, uint32_t base, int rows, unsigned seed)
{
    for (int r = 0; r < rows; r++)
        for (int k = 0; k < 16; k++) {
            double *x = &image[place_of(l, base, r, k) / 2];
            CHECK(isnan(*x)); /* the layout is injective */
            *x = small(seed + (unsigned)(r * 16 + k));
        }
}

static void expect_product(const struct layout *a, const struct layout *b, int n, int add)
{
    static double image[IMAGE], d[128 * 40];
    for (int i = 0; i < IMAGE; i++)
        image[i] = NAN;
    image_put(image, a, 0, 64, 1);
    image_put(image, b, IMAGE, n, 5000);
    const struct sm90_probe_product p = {.n = n,
                                         .ta = a->mn_major,
                                         .tb = b->mn_major,
                                         .add = add,
                                         .a_start = start_of(a, 0),
                                         .a_lbo = a->lbo,
                                         .a_sbo = a->sbo,
                                         .a_swizzle = a->swizzle,
                                         .b_start = start_of(b, IMAGE),
                                         .b_lbo = b->lbo,
                                         .b_sbo = b->sbo,
                                         .b_swizzle = b->swizzle};
    struct view out = f32_out(128 * n / 2), in = bf16_of(image, IMAGE);
    assert_int_equal(sm90_probe_product(case_device(), &p, out.p, in.p), OK);
    case_download(d, out);
    for (int t = 0; t < 128; t++)
        for (int i = 0; i < n / 2; i++) {
            /* Figure 149. */
            const int row = t / 32 * 16 + t % 32 / 4 + (i % 4 < 2 ? 0 : 8), column = i / 4 * 8 + t % 4 * 2 + i % 2;
            double sum = add ? 1000 : 0;
            for (int k = 0; k < 16; k++)
                sum += small(1 + (unsigned)(row * 16 + k)) * small(5000 + (unsigned)(column * 16 + k));
            if (!(d[t * (n / 2) + i] == sum)) {
                print_error("a %s; b %s; n %d: d[%d] of thread %d is %g, expected %g\n", a->name, b->name, n, i, t, d[t * (n / 2) + i], sum);
                _fail(__FILE__, __LINE__);
            }
        }
    assert_int_equal(case_faults(), 0);
    case_free();
}

static void test_products(void **state)
{
    (void)state;
    need_sm90();
    for (size_t i = 0; i < COUNT_OF(layouts); i++) {
        expect_product(&layouts[i], &layouts[(i + 3) % COUNT_OF(layouts)], 64, (int)(i & 1));
        expect_product(&layouts[(i + 5) % COUNT_OF(layouts)], &layouts[i], 16 + 64 * (layouts[i].mn_major == 0), 1);
    }
}

static void test_products_no_swizzle(void **state)
{
    (void)state;
    need_sm90();
    for (size_t i = 0; i < COUNT_OF(no_swizzle); i++) {
        expect_product(&no_swizzle[i], &layouts[0], 64, 0);
        expect_product(&layouts[0], &no_swizzle[i], 80, 0);
    }
}

/* N ends inside the last panel, or the operand begins inside one. */
static void test_products_part_of_a_panel(void **state)
{
    (void)state;
    need_sm90();
    for (size_t i = 0; i < COUNT_OF(layouts); i++)
        if (layouts[i].mn_major)
            expect_product(&layouts[0], &layouts[i], 80, 0);
    expect_product(&layouts[0], &inside[0], 16, 0);
}

/* ---- pipelines ---- */

static void expect_gemm(int m, int n, int k, int ta, int tb, int swizzle, int from_registers)
{
    double *a = malloc(sizeof *a * (size_t)(m * k)), *b = malloc(sizeof *b * (size_t)(n * k)), *out = malloc(sizeof *out * (size_t)(m * n));
    for (int i = 0; i < m * k; i++)
        a[i] = small((unsigned)i + 77);
    for (int i = 0; i < n * k; i++)
        b[i] = small((unsigned)i + 12345);
    const struct sm90_probe_gemm p = {.m = m, .n = n, .k = k, .ta = ta, .tb = tb, .swizzle = swizzle, .from_registers = from_registers};
    struct view vo = f32_out(m * n), va = bf16_of(a, m * k), vb = bf16_of(b, n * k);
    assert_int_equal(sm90_probe_gemm(case_device(), &p, vo.p, va.p, vb.p), OK);
    case_download(out, vo);
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            double sum = 0;
            for (int x = 0; x < k; x++)
                sum += a[ta ? x * m + i : i * k + x] * b[tb ? x * n + j : j * k + x];
            if (!(out[i * n + j] == sum)) {
                print_error("m %d n %d k %d ta %d tb %d swizzle %d registers %d: [%d][%d] is %g, expected %g\n", m, n, k, ta, tb, swizzle,
                            from_registers, i, j, out[i * n + j], sum);
                _fail(__FILE__, __LINE__);
            }
        }
    assert_int_equal(case_faults(), 0);
    free(a), free(b), free(out);
    case_free();
}

/* m, n, k that end inside tiles; two blocks. */
static void test_pipelines(void **state)
{
    (void)state;
    need_sm90();
    static const int ns[] = {64, 80, 128, 256};
    for (size_t i = 0; i < COUNT_OF(ns); i++)
        for (int tb = 0; tb < 2; tb++) {
            expect_gemm(200, ns[i], 328, 0, tb, 128, 0);
            expect_gemm(72, ns[i], 168, 0, tb, 64, 0);
        }
    for (int tb = 0; tb < 2; tb++) {
        expect_gemm(200, 64, 328, 1, tb, 128, 0);
        expect_gemm(72, 64, 168, 1, tb, 64, 0);
        expect_gemm(200, 64, 328, 0, tb, 128, 1);
        expect_gemm(72, 64, 168, 0, tb, 64, 1);
    }
}

static void test_store(void **state)
{
    (void)state;
    need_sm90();
    const int m = 200;
    double *x = malloc(sizeof *x * 64 * (size_t)m), *out = malloc(sizeof *out * 64 * (size_t)m), sum[64 * 64];
    for (int i = 0; i < 64 * m; i++)
        x[i] = small((unsigned)i);
    for (int i = 0; i < 64 * 64; i++)
        sum[i] = i;
    struct view vx = bf16_of(x, 64 * m), vs = case_upload(sum, DT_F32, 1, (int64_t[]){64 * 64}), vo = case_output(DT_BF16, 1, (int64_t[]){64 * m});
    assert_int_equal(sm90_probe_store(case_device(), m, BUG_NONE, vo.p, vx.p, vs.p), OK);
    case_download(out, vo);
    case_download(sum, vs);
    for (int i = 0; i < 64 * m; i++)
        assert_true(out[i] == x[i] + 1);
    /* The second tiles of both blocks: rows 64 .. 127 and 192 .. 255, of which 200 .. are zero. */
    for (int i = 0; i < 64 * 64; i++)
        assert_true(sum[i] == i + x[64 * 64 + i] + 1 + (i < 8 * 64 ? x[192 * 64 + i] + 1 : 0));
    assert_int_equal(case_faults(), 0);
    free(x), free(out);
    case_free();
}

/* The inverse of ldmatrix: thread l's register j holds columns 2 (l % 4) and + 1 of row l / 4 of matrix j. */
static void test_stmatrix(void **state)
{
    (void)state;
    need_sm90();
    int32_t r[128];
    double out[256];
    for (int l = 0; l < 32; l++)
        for (int j = 0; j < 4; j++) {
            const int row = 8 * j + l / 4, column = l % 4 * 2;
            r[4 * l + j] = bf16_from_f32((float)(8 * row + column)) | (int32_t)bf16_from_f32((float)(8 * row + column + 1)) << 16;
        }
    struct view vr = case_upload_i32(r, 1, (int64_t[]){128}), vo = case_output(DT_BF16, 1, (int64_t[]){256});
    assert_int_equal(sm90_probe_stmatrix(case_device(), vo.p, vr.p), OK);
    case_download(out, vo);
    for (int i = 0; i < 256; i++)
        assert_true(out[i] == i);
    assert_int_equal(case_faults(), 0);
    case_free();
}

/* ---- boxes ---- */

static void expect_box(enum dtype type, const int64_t *n, const int *box, const int *c, int swizzle, uint32_t offset)
{
    const int64_t size = (int64_t)dtype_bytes(type), elements = n[0] * n[1] * n[2] * n[3];
    const int count = box[0] * box[1] * box[2] * box[3];
    double *x = malloc(sizeof *x * (size_t)elements), *out = malloc(sizeof *out * (size_t)count);
    for (int64_t i = 0; i < elements; i++)
        x[i] = (double)(i % 251 + 1);
    struct sm90_probe_box p = {.type = (int)type,
                               .n = {n[0], n[1], n[2], n[3]},
                               .box = {box[0], box[1], box[2], box[3]},
                               .c = {c[0], c[1], c[2], c[3]},
                               .stride_bytes = {n[0] * size, n[0] * n[1] * size, n[0] * n[1] * n[2] * size},
                               .swizzle = swizzle,
                               .offset = offset};
    struct view vx = case_upload(x, type, 1, &elements), vo = case_output(type, 1, (int64_t[]){count});
    assert_int_equal(sm90_probe_box(case_device(), &p, vo.p, vx.p), OK);
    case_download(out, vo);
    for (int i = 0; i < count; i++) {
        const int64_t at[4] = {c[0] + i % box[0], c[1] + i / box[0] % box[1], c[2] + i / box[0] / box[1] % box[2],
                               c[3] + i / box[0] / box[1] / box[2]};
        int in = 1;
        for (int k = 0; k < 4; k++)
            in &= at[k] >= 0 && at[k] < n[k];
        const double expected = in ? x[((at[3] * n[2] + at[2]) * n[1] + at[1]) * n[0] + at[0]] : 0;
        /* offset is a multiple of the pattern, so it does not matter here. */
        const uint32_t byte = (uint32_t)(i * size), mask = swizzle == 0 ? 0 : (uint32_t)swizzle / 16 - 1;
        const uint32_t found = (byte ^ (byte >> 7 & mask) << 4) / (uint32_t)size;
        if (!(out[found] == expected)) {
            print_error("box of %s, swizzle %d: element %d is %g, expected %g\n", dtype_name(type), swizzle, i, out[found], expected);
            _fail(__FILE__, __LINE__);
        }
    }
    assert_int_equal(case_faults(), 0);
    free(x), free(out);
    case_free();
}

static void test_boxes(void **state)
{
    (void)state;
    need_sm90();
    const int64_t n[4] = {72, 11, 3, 2};
    static const struct {
        int box[4], swizzle, c[4];
        uint32_t offset;
    } all[] = {
        {{64, 8, 1, 1}, 128, {0, 0, 0, 0}, 0},    {{64, 16, 2, 1}, 128, {8, 5, 2, 1}, 2048}, {{64, 9, 1, 2}, 128, {-24, -3, 1, 0}, 0},
        {{32, 8, 2, 1}, 64, {48, 2, -1, 1}, 512}, {{16, 8, 3, 1}, 32, {64, 0, 0, 1}, 256},   {{24, 5, 1, 1}, 0, {3, 7, 2, 1}, 128},
        {{64, 4, 1, 1}, 128, {100, 0, 0, 0}, 0},  {{64, 4, 1, 1}, 128, {0, 0, 5, 0}, 0},     {{8, 1, 1, 1}, 0, {-4, 0, 0, 0}, 0},
    };
    for (size_t i = 0; i < COUNT_OF(all); i++)
        expect_box(DT_BF16, n, all[i].box, all[i].c, all[i].swizzle, all[i].offset);
    expect_box(DT_F32, n, (int[]){32, 12, 1, 1}, (int[]){50, 0, 1, 1}, 128, 1024);
    expect_box(DT_F32, n, (int[]){16, 3, 1, 1}, (int[]){-1, -1, 1, 1}, 64, 0);
}

static void test_map_refusals(void **state)
{
    (void)state;
    need_sm90();
    const struct sm90_probe_box good = {.type = DT_BF16, .n = {64, 8, 1, 1}, .stride_bytes = {128, 1024, 1024}, .box = {64, 8, 1, 1}, .swizzle = 128};
    char *base = case_bytes(4096);
    struct sm90_probe_box p;
#define REFUSED(change, sentence)                                                                 \
    do {                                                                                          \
        p = good;                                                                                 \
        change;                                                                                   \
        assert_int_equal(sm90_probe_box(case_device(), &p, base, base + shift), ERR_UNSUPPORTED); \
        if (strstr(fail_text(), sentence) == NULL)                                                \
            print_error("%s\n", fail_text()), _fail(__FILE__, __LINE__);                          \
        shift = 0;                                                                                \
    } while (0)
    int shift = 0;
    REFUSED(shift = 8, "not 16-byte aligned");
    REFUSED(p.stride_bytes[0] = 136, "stride of 136 bytes");
    REFUSED(p.stride_bytes[2] = (int64_t)1 << 40, "below 2^40");
    REFUSED(p.stride_bytes[1] = 0, "axis 2");
    REFUSED(p.n[3] = 0, "0 elements");
    REFUSED(p.n[0] = ((int64_t)1 << 32) + 1, "2^32");
    REFUSED(p.box[1] = 257, "257 elements");
    REFUSED(p.box[1] = 0, "0 elements");
    REFUSED((p.box[0] = 4, p.swizzle = 0), "a multiple of 16");
    REFUSED(p.box[0] = 72, "width of the swizzle");
    REFUSED(p.swizzle = 64, "width of the swizzle");
    REFUSED(p.swizzle = 96, "swizzle is 96");
    REFUSED(p.type = DT_F64, "f64");
    case_free();
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_products_no_swizzle),
        cmocka_unit_test(test_products_part_of_a_panel),
        cmocka_unit_test(test_pipelines),
        cmocka_unit_test(test_store),
        cmocka_unit_test(test_stmatrix),
        cmocka_unit_test(test_boxes),
        cmocka_unit_test(test_map_refusals),
    };
    return case_main(argc, argv, tests, COUNT_OF(tests));
}
