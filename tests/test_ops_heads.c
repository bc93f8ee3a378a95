/* Norms of queries and keys, and limits on activations: against the double reference, gradients against its finite differences. */
#include <math.h>

#include "ops.h"
#include "reference/ops.h"

static const char *const norm_names[] = {"rms", "rms1p", "layer", "layer_nop"};

/* x [N,heads,D] inside rows that also hold something else before and after it, as a fused QKV row does. */
enum { BEFORE = 3 };
static struct view heads_of(struct view rows, int64_t heads, int64_t D, int64_t between)
{
    struct view v = {.p = view_f32(rows) + BEFORE, .dtype = DT_F32, .nd = 3, .n = {rows.n[0], heads, D, 1}, .s = {rows.s[0], D + between, 1, 1}};
    return v;
}

static double *dense_f64(struct view v)
{
    double *to = calloc((size_t)view_count(v), 8), *at = to;
    for (int64_t n = 0; n < v.n[0]; n++)
        for (int64_t h = 0; h < v.n[1]; h++)
            for (int64_t d = 0; d < v.n[2]; d++)
                *at++ = (double)view_f32(v)[n * v.s[0] + h * v.s[1] + d];
    return to;
}

/* Compares every head, and that everything of `rows` outside the heads is as in `kept`. */
static int heads_compare(const char *name, struct view rows, struct view v, const double *want, const float *kept, double tol)
{
    double *got = dense_f64(v);
    float *as_f32 = calloc((size_t)view_count(v), 4), *now = ops_dense(rows);
    for (int64_t i = 0; i < view_count(v); i++)
        as_f32[i] = (float)got[i];
    struct view flat = view_2d(as_f32, DT_F32, v.n[0] * v.n[1], v.n[2]);
    int ok = ops_compare(name, flat, want, tol, tol);
    for (int64_t n = 0; n < rows.n[0]; n++)
        for (int64_t c = 0; c < rows.n[1]; c++) {
            int64_t at = c - BEFORE, inside = at >= 0 && at < v.n[1] * v.s[1] && at % v.s[1] < v.n[2];
            if (!inside && memcmp(&now[n * rows.n[1] + c], &kept[n * rows.n[1] + c], 4) != 0) {
                print_error("%s: row %d, column %d, outside every head, was written\n", name, (int)n, (int)c);
                ok = 0;
            }
        }
    free(got), free(as_f32), free(now);
    return ok;
}

struct norm_context { double *x, *w, *y; const double *dy; int64_t N, heads, D; enum norm_kind kind; int per_head; };

static double norm_loss(void *context)
{
    struct norm_context *k = context;
    double s = 0;
    for (int64_t r = 0; r < k->N * k->heads; r++) {
        ref_norm(k->y + r * k->D, NULL, NULL, k->x + r * k->D, k->w + (k->per_head ? r % k->heads * k->D : 0), NULL, 1, k->D, k->kind, 1e-5);
        for (int64_t d = 0; d < k->D; d++)
            s += k->dy[r * k->D + d] * k->y[r * k->D + d];
    }
    return s;
}

static void one_head_norm(struct device *dev, int64_t N, int64_t heads, int64_t D, enum norm_kind kind, int per_head, int in_place)
{
    const int64_t wide = heads * (D + 5) + BEFORE + 4, rows = N * heads, W = per_head ? heads * D : D; /* no two strides alike, but in place */
    struct view fx = ops_rows(N, wide, 2, 51), fy = in_place ? fx : ops_rows(N, wide, 1, 52), fdy = ops_rows(N, wide, 0, 53);
    struct view fdx = in_place ? fdy : ops_rows(N, wide, 3, 54), x = heads_of(fx, heads, D, 5), y = heads_of(fy, heads, D, in_place ? 5 : 0);
    struct view dy = heads_of(fdy, heads, D, 3), dx = heads_of(fdx, heads, D, in_place ? 3 : 1);
    struct view w = ops_vector(W, 55), dw = ops_vector(W, 56), mean = ops_vector(rows, 0), rstd = ops_vector(rows, 0);
    for (int64_t i = 0; i < N * fx.s[0] - 2; i++)
        view_f32(fx)[i] += 2; /* a mean to subtract */
    float *keep_y = ops_dense(fy), *keep_dx = ops_dense(fdx);
    double *x64 = dense_f64(x), *dy64 = dense_f64(dy), *w64 = ops_f64(w), *want_dw = ops_f64(dw), *dw64 = calloc((size_t)W, 8);
    double *y64 = calloc((size_t)(rows * D), 8), *dx64 = calloc((size_t)(rows * D), 8), *mean64 = calloc((size_t)rows, 8), *rstd64 = calloc((size_t)rows, 8);
    for (int64_t r = 0; r < rows; r++)
        ref_norm(y64 + r * D, mean64 + r, rstd64 + r, x64 + r * D, w64 + (per_head ? r % heads * D : 0), NULL, 1, D, kind, 1e-5);
    char name[96];
    snprintf(name, sizeof name, "%s head_norm %s heads %d D %d per head %d", dev->loops->name, norm_names[kind], (int)heads, (int)D, per_head);
    const int has_w = kind != NORM_LAYER_NOP, rms = kind == NORM_RMS || kind == NORM_RMS1P;
    struct view x_saved = {.p = NULL};
    if (in_place) { /* the backward needs what the forward overwrites */
        x_saved = ops_rows(rows, D, 0, 0);
        for (int64_t i = 0; i < rows * D; i++)
            view_f32(x_saved)[i] = (float)x64[i];
    }
    struct view from = in_place ? view_3d(x_saved.p, DT_F32, N, heads, D) : x;
    assert_ok(cpu_head_norm_fwd(dev, y, mean, rstd, x, has_w ? w : view_none(), kind, 1e-5f));
    assert_true(heads_compare(name, fy, y, y64, keep_y, 1e-5));
    assert_true(ops_compare(name, rstd, rstd64, 1e-5, 1e-6));
    assert_true(ops_compare(name, mean, mean64, 1e-5, 1e-6));

    struct norm_context k = {x64, w64, y64, dy64, N, heads, D, kind, per_head};
    ops_differences(norm_loss, &k, x64, rows * D, dx64);
    ops_differences(norm_loss, &k, w64, W, dw64);
    for (int64_t i = 0; i < W; i++)
        want_dw[i] += dw64[i];
    assert_ok(cpu_head_norm_bwd(dev, dx, has_w ? dw : view_none(), dy, from, has_w ? w : view_none(), rms ? view_none() : mean, rstd, kind));
    assert_true(heads_compare(name, fdx, dx, dx64, keep_dx, 2e-5));
    if (has_w)
        assert_true(ops_compare(name, dw, want_dw, 3e-5, 3e-5));
    if (!in_place)
        free(fy.p), free(fdx.p);
    free(fx.p), free(fdy.p), free(w.p), free(dw.p), free(mean.p), free(rstd.p), free(x_saved.p), free(keep_y), free(keep_dx), free(x64), free(dy64);
    free(w64), free(want_dw), free(dw64), free(y64), free(dx64), free(mean64), free(rstd64);
}

static void test_head_norm(void **state)
{
    (void)state;
    static const int64_t shapes[][2] = {{6, 10}, {3, 16}, {1, 50}, {5, 33}, {2, 1}}; /* heads, D */
    FOR_EACH_ISA(isa) {
        struct device *dev = ops_device((enum isa)isa, 2);
        for (int kind = NORM_RMS; kind <= NORM_LAYER_NOP; kind++)
            for (size_t i = 0; i < COUNT_OF(shapes); i++)
                for (int per_head = 0; per_head < 2; per_head++)
                    one_head_norm(dev, 9, shapes[i][0], shapes[i][1], (enum norm_kind)kind, per_head, (i + (size_t)per_head) % 2 == 1);
        cpu_device_close(dev);
    }
}

/* heads 1 is norm_fwd and norm_bwd on rows; and the sums for dw do not follow the team. */
static void test_head_norm_same_bits(void **state)
{
    (void)state;
    const int64_t N = 333, C = 96;
    struct view x = ops_rows(N, C, 0, 1), dy = ops_rows(N, C, 0, 2), w = ops_vector(C, 3), mean = ops_vector(N, 0), rstd = ops_vector(N, 0);
    for (int heads = 1; heads <= 6; heads += 5) {
        struct view y[2], dx[2], dw[2], stat[2];
        for (int i = 0; i < 2; i++) {
            struct device *dev = ops_device(host_isa(), i ? 3 : 1);
            y[i] = ops_rows(N, C, 0, 0), dx[i] = ops_rows(N, C, 0, 0), dw[i] = ops_vector(C, 4), stat[i] = ops_vector(N * heads, 0);
            struct view y3 = view_3d(y[i].p, DT_F32, N, heads, C / heads), x3 = view_3d(x.p, DT_F32, N, heads, C / heads);
            struct view dx3 = view_3d(dx[i].p, DT_F32, N, heads, C / heads), dy3 = view_3d(dy.p, DT_F32, N, heads, C / heads);
            if (heads == 1 && i == 1) {
                assert_ok(cpu_norm_fwd(dev, y[i], view_none(), mean, rstd, x, view_none(), w, view_none(), NORM_RMS, 1e-5f));
                assert_ok(cpu_norm_bwd(dev, dx[i], dw[i], view_none(), dy, view_none(), x, w, mean, rstd, NORM_RMS));
            } else {
                assert_ok(cpu_head_norm_fwd(dev, y3, view_none(), stat[i], x3, w, NORM_RMS, 1e-5f));
                assert_ok(cpu_head_norm_bwd(dev, dx3, dw[i], dy3, x3, w, view_none(), stat[i], NORM_RMS));
            }
            cpu_device_close(dev);
        }
        assert_memory_equal(y[0].p, y[1].p, (size_t)(N * C) * 4);
        assert_memory_equal(dx[0].p, dx[1].p, (size_t)(N * C) * 4);
        assert_memory_equal(dw[0].p, dw[1].p, (size_t)C * 4);
        for (int i = 0; i < 2; i++)
            free(y[i].p), free(dx[i].p), free(dw[i].p), free(stat[i].p);
    }
    free(x.p), free(dy.p), free(w.p), free(mean.p), free(rstd.p);
}

static void test_head_norm_refusals(void **state)
{
    (void)state;
    struct device *dev = ops_device(ISA_PLAIN, 1);
    float space[64] = {0};
    struct view x = view_3d(space, DT_F32, 2, 3, 4), other = view_3d(space, DT_F32, 2, 3, 5), stat = view_1d(space, DT_F32, 6);
    assert_refused(cpu_head_norm_fwd(dev, other, stat, stat, x, view_none(), NORM_RMS, 1e-5f), ERR_UNSUPPORTED, "axis 2 of y is 5");
    assert_refused(cpu_head_norm_fwd(dev, x, stat, stat, x, view_1d(space, DT_F32, 8), NORM_RMS, 1e-5f), ERR_UNSUPPORTED, "3 heads of 4");
    assert_refused(cpu_head_norm_fwd(dev, x, view_1d(space, DT_F32, 2), stat, x, view_none(), NORM_RMS, 1e-5f), ERR_UNSUPPORTED, "mean");
    assert_refused(cpu_head_norm_fwd(dev, x, stat, stat, x, view_none(), (enum norm_kind)9, 1e-5f), ERR_UNSUPPORTED, "unknown");
    assert_refused(cpu_head_norm_bwd(dev, x, view_none(), x, x, view_none(), view_none(), stat, NORM_LAYER), ERR_UNSUPPORTED, "mean");
    assert_refused(cpu_head_norm_bwd(dev, x, view_1d(space, DT_F32, 5), x, x, view_none(), stat, stat, NORM_LAYER), ERR_UNSUPPORTED, "dw has 5");
    assert_refused(cpu_clip_fwd(dev, view_2d(space, DT_F32, 2, 3), view_2d(space, DT_F32, 2, 4), 1), ERR_UNSUPPORTED, "axis 1 of y");
    assert_refused(cpu_clip_fwd(dev, view_2d(space, DT_F32, 2, 3), view_2d(space, DT_F32, 2, 3), 0), ERR_UNSUPPORTED, "limit");
    assert_refused(cpu_clip_bwd(dev, view_2d(space, DT_F32, 2, 3), view_2d(space, DT_F32, 2, 3), NAN), ERR_UNSUPPORTED, "limit");
    cpu_device_close(dev);
}

static void test_clip(void **state)
{
    (void)state;
    const float limit = 0.75f;
    FOR_EACH_ISA(isa)
        for (int64_t C = 1; C < 80; C += 13)
            for (int in_place = 0; in_place < 2; in_place++) {
                const int64_t N = 60, gap = 3;
                struct device *dev = ops_device((enum isa)isa, 2);
                struct view x = ops_rows(N, C, gap, 61), saved = ops_rows(N, C, gap, 61), y = in_place ? x : ops_rows(N, C, gap, 0), dx = ops_rows(N, C, gap, 62);
                for (int64_t n = 0; n < N; n++)
                    view_f32(x)[n * x.s[0]] = view_f32(saved)[n * x.s[0]] = n % 2 ? limit : -limit; /* on the limit: kept, with its gradient */
                double *want = ops_f64(x), *dwant = ops_f64(dx);
                for (int64_t i = 0; i < N * C; i++) {
                    if (!(fabs(want[i]) <= (double)limit))
                        dwant[i] = 0;
                    want[i] = fmin(fmax(want[i], -(double)limit), (double)limit);
                }
                assert_ok(cpu_clip_fwd(dev, y, x, limit));
                assert_ok(cpu_clip_bwd(dev, dx, saved, limit));
                assert_true(ops_compare("clip", y, want, 0, 0));
                assert_true(ops_compare("clip gradient", dx, dwant, 0, 0));
                assert_true(ops_gaps_ok(y, gap) && ops_gaps_ok(dx, gap));
                view_f32(saved)[0] = NAN;
                assert_ok(cpu_clip_fwd(dev, y, saved, limit));
                assert_true(isnan(view_f32(y)[0]));
                if (!in_place)
                    free(y.p);
                free(x.p), free(saved.p), free(dx.p), free(want), free(dwant);
                cpu_device_close(dev);
            }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_head_norm), cmocka_unit_test(test_head_norm_same_bits),
                                       cmocka_unit_test(test_head_norm_refusals), cmocka_unit_test(test_clip)};
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
