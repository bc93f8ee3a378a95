/* See device_case.h. Nothing here knows which backend it is; link.h does. */
#include "device_case.h"

#include <math.h>

#include "link.h"

#define ALLOCATIONS_MAX 4096

static struct device *device;
static void *allocations[ALLOCATIONS_MAX];
static int n_allocations;

static void *remember(void *p)
{
    CHECK(p != NULL && n_allocations < ALLOCATIONS_MAX);
    return allocations[n_allocations++] = p;
}

/* 0 when there is no such device; the reason is in fail_text(). */
static int open_as(int arch)
{
    CHECK(device == NULL);
    if (!link_arch(NULL, arch))
        return 0;
    const struct device_options options = {0};
    const enum code code = case_backend()->device_open(&device, &options);
    if (code == ERR_DEVICE || code == ERR_UNSUPPORTED)
        return 0;
    assert_int_equal(code, OK);
    return link_arch(device, arch) || link_arch(device, 80);
}

int case_open(void **state)
{
    (void)state;
    if (device != NULL || open_as(90))
        return 0;
    printf("skipped: %s\n[  PASSED  ] 0 test(s).\n", fail_text());
    exit(0);
}

int case_close(void **state)
{
    (void)state;
    case_free();
    case_backend()->device_close(device);
    device = NULL;
    return 0;
}

struct device *case_device(void)
{
    case_open(NULL);
    return device;
}

int case_arch(int arch)
{
    case_close(NULL);
    return open_as(arch) && link_arch(device, arch);
}

int case_main(int argc, char **argv, const struct CMUnitTest *tests, size_t n)
{
    harness_boot(argc, argv);
    case_open(NULL);
    const int status = harness_main(argc, argv, tests, n);
    case_close(NULL);
    return status;
}

static struct view view_of(void *p, enum dtype type, int nd, const int64_t *n)
{
    struct view v = view_1d(p, type, 1);
    int64_t stride = 1;
    CHECK(nd >= 1 && nd <= 4);
    v.nd = nd;
    for (int i = nd - 1; i >= 0; i--) {
        v.n[i] = n[i];
        v.s[i] = stride;
        stride *= n[i];
    }
    return v;
}

static size_t view_bytes(int nd, const int64_t *n, enum dtype type)
{
    size_t bytes = dtype_bytes(type);
    for (int i = 0; i < nd; i++)
        bytes *= (size_t)n[i];
    return bytes;
}

static struct view upload(const void *bytes, enum dtype type, int nd, const int64_t *n)
{
    const size_t size = view_bytes(nd, n, type);
    void *p = remember(link_alloc(case_device(), size > 0 ? size : 1, 1));
    link_write(device, p, bytes, size);
    return view_of(p, type, nd, n);
}

struct view case_upload(double *x, enum dtype type, int nd, const int64_t *n)
{
    const size_t size = view_bytes(nd, n, type);
    void *rounded = malloc(size + 1);
    CHECK(rounded != NULL);
    convert_elements(rounded, type, x, DT_F64, size / dtype_bytes(type));
    convert_elements(x, DT_F64, rounded, type, size / dtype_bytes(type));
    struct view v = upload(rounded, type, nd, n);
    free(rounded);
    return v;
}

struct view case_upload_i32(const int32_t *x, int nd, const int64_t *n)
{
    return upload(x, DT_I32, nd, n);
}

struct view case_output(enum dtype type, int nd, const int64_t *n)
{
    return view_of(case_bytes(view_bytes(nd, n, type)), type, nd, n);
}

void *case_bytes(size_t bytes)
{
    void *p = remember(link_alloc(case_device(), bytes > 0 ? bytes : 1, 0)), *poison = malloc(bytes + 1);
    CHECK(poison != NULL);
    memset(poison, 0xff, bytes); /* NaN in every float type, -1 in i32 */
    link_write(device, p, poison, bytes);
    free(poison);
    return p;
}

void case_download(double *x, struct view v)
{
    if (view_count(v) == 0)
        return;
    size_t span = 1;
    for (int i = 0; i < v.nd; i++)
        span += (size_t)((v.n[i] - 1) * v.s[i]);
    const size_t wide = dtype_bytes(v.dtype);
    char *bytes = malloc(span * wide);
    CHECK(bytes != NULL);
    assert_ok(case_backend()->device_copy(case_device(), bytes, v.p, span * wide));
    assert_ok(case_backend()->device_sync(device));
    for (int64_t i0 = 0; i0 < v.n[0]; i0++)
        for (int64_t i1 = 0; i1 < v.n[1]; i1++)
            for (int64_t i2 = 0; i2 < v.n[2]; i2++)
                for (int64_t i3 = 0; i3 < v.n[3]; i3++, x++) {
                    const char *from = bytes + (size_t)(i0 * v.s[0] + i1 * v.s[1] + i2 * v.s[2] + i3 * v.s[3]) * wide;
                    int32_t integer;
                    if (v.dtype == DT_I32) {
                        memcpy(&integer, from, sizeof integer);
                        *x = integer;
                    } else
                        convert_elements(x, DT_F64, from, v.dtype, 1);
                }
    free(bytes);
}

void case_free(void)
{
    if (n_allocations > 0)
        assert_ok(case_backend()->device_sync(device));
    while (n_allocations > 0)
        link_free(device, allocations[--n_allocations]);
}

/* 0 for equal infinities (the log-sum-exp of a row that sees nothing). */
static double distance(double a, double b)
{
    return a == b ? 0 : fabs(a - b);
}

/* Index of the largest distance, a NaN being larger than anything. */
static size_t worst_of(const double *x, const double *truth, size_t n)
{
    size_t worst = 0;
    for (size_t i = 0; i < n; i++) {
        const double d = distance(x[i], truth[i]);
        if (isnan(d))
            return i;
        if (d > distance(x[worst], truth[worst]))
            worst = i;
    }
    return worst;
}

void case_expect_2x(const char *what, const double *got, const double *truth, const double *plain, size_t n, double floor)
{
    CHECK(n > 0);
    const size_t g = worst_of(got, truth, n), p = worst_of(plain, truth, n);
    const double error = distance(got[g], truth[g]), allowed = 2 * distance(plain[p], truth[p]) + floor;
    if (error <= allowed)
        return;
    print_error("%s: error %.3g at element %zu of %zu (got %.9g, truth %.9g); the plain computation's is %.3g, allowed %.3g\n", what, error, g, n,
                got[g], truth[g], distance(plain[p], truth[p]), allowed);
    _fail(__FILE__, __LINE__);
}

void case_expect_near(const char *what, const double *got, const double *truth, size_t n, double absolute, double relative)
{
    size_t bad = 0, first = 0;
    for (size_t i = 0; i < n; i++)
        if (!(distance(got[i], truth[i]) <= absolute + relative * fabs(truth[i])) && bad++ == 0)
            first = i;
    if (bad == 0)
        return;
    const size_t worst = worst_of(got, truth, n);
    print_error("%s: %zu of %zu elements differ; first %zu: got %.9g, truth %.9g; worst %zu: got %.9g, truth %.9g\n", what, bad, n, first, got[first],
                truth[first], worst, got[worst], truth[worst]);
    _fail(__FILE__, __LINE__);
}

int case_faults(void)
{
    return link_faults();
}
