/* Norms of heads, and clipping, on the device: all kinds, every kernel (by width and alignment), shared and own weights, packed buffers, in
 * place, against the double reference. The backward's truth is the closed form in double, which is itself held against finite
 * differences of the reference. */
#include <math.h>

#include "reference/ops.h"
#include "tensor.h"

static const char *const kinds[] = {"rms", "rms1p", "layer", "layer_nop"};
static const enum dtype types[] = {DT_F32, DT_BF16};

/* [N,heads,D] inside of [N,heads+1,D+gap], whose other elements no operation may write. */
struct heads {
    struct view v, whole;
    double *x; /* dense, as the device has it; NULL for outputs */
};
struct shape {
    int64_t N, heads, D, gap;
};

static struct heads heads_of(enum dtype type, struct shape a, const double *x)
{
    const int64_t n[3] = {a.N, a.heads + 1, a.D + a.gap};
    struct heads h = {.x = NULL};
    if (x == NULL)
        h.whole = case_output(type, 3, n);
    else {
        double *all = tensor_doubles(n[0] * n[1] * n[2]);
        h.x = tensor_doubles(a.N * a.heads * a.D);
        for (int64_t i = 0; i < n[0] * n[1] * n[2]; i++)
            all[i] = NAN;
        for (int64_t i = 0; i < a.N * a.heads * a.D; i++)
            all[(i / a.D / a.heads * n[1] + i / a.D % a.heads) * n[2] + i % a.D] = x[i];
        h.whole = case_upload(all, type, 3, n);
        for (int64_t i = 0; i < a.N * a.heads * a.D; i++)
            h.x[i] = all[(i / a.D / a.heads * n[1] + i / a.D % a.heads) * n[2] + i % a.D];
    }
    h.v = view_slice(view_slice(h.whole, 1, 0, a.heads), 2, 0, a.D);
    return h;
}
static struct heads heads_random(enum dtype type, struct shape a, uint64_t seed, double mean)
{
    double *x = tensor_doubles(a.N * a.heads * a.D);
    fill_random_f64(x, a.N * a.heads * a.D, seed);
    for (int64_t i = 0; i < a.N * a.heads * a.D; i++)
        x[i] += mean;
    return heads_of(type, a, x);
}
static int gaps_ok(struct heads h)
{
    const int64_t *n = h.whole.n;
    double *all = tensor_get_view(h.whole);
    for (int64_t i = 0; i < n[0] * n[1] * n[2]; i++)
        if ((i % n[2] >= h.v.n[2] || i / n[2] % n[1] >= h.v.n[1]) && !isnan(all[i]))
            return 0;
    return 1;
}

/* dx (written) and dw (added to; [D] or [heads*D]) of sum(dy * norm(x)); y, mean, rstd of the forward when not NULL. */
static void reference(double *y, double *mean, double *rstd, double *dx, double *dw, const double *dy, const double *x, const double *w, struct shape a,
                      int own, enum norm_kind kind, double eps)
{
    const int layer = kind == NORM_LAYER || kind == NORM_LAYER_NOP;
    static double weights[8200], row[8200];
    assert_true(a.D <= (int64_t)COUNT_OF(row));
    for (int64_t r = 0; r < a.N * a.heads; r++) {
        const int64_t at = r * a.D, w_at = own ? r % a.heads * a.D : 0;
        double m, s, sg = 0, sgx = 0;
        for (int64_t d = 0; d < a.D; d++)
            weights[d] = w == NULL ? 0 : w[w_at + d];
        ref_norm(row, &m, &s, x + at, w == NULL ? NULL : weights, NULL, 1, a.D, kind, eps);
        if (y != NULL)
            memcpy(y + at, row, (size_t)a.D * sizeof *row), mean[r] = m, rstd[r] = s;
        if (dx == NULL)
            continue;
        m = layer ? m : 0;
        for (int pass = 0; pass < 2; pass++)
            for (int64_t d = 0; d < a.D; d++) {
                const double weight = kind == NORM_LAYER_NOP || w == NULL ? 1 : weights[d] + (kind == NORM_RMS1P);
                const double xhat = (x[at + d] - m) * s, g = dy[at + d] * weight;
                if (pass == 1) {
                    dx[at + d] = s * (g - (layer ? sg : 0) - xhat * sgx);
                    continue;
                }
                sg += g / (double)a.D, sgx += g * xhat / (double)a.D;
                if (dw != NULL)
                    dw[w_at + d] += dy[at + d] * xhat;
            }
    }
}

static void test_closed_form(void **state)
{
    (void)state;
    const struct shape a = {2, 3, 5, 0};
    const double h = 1e-5;
    for (int own = 0; own < 2; own++)
        for (int kind = NORM_RMS; kind <= NORM_LAYER_NOP; kind++) {
            double x[30], w[15], dy[30], y[30], mean[6], rstd[6], dx[30], dw[15] = {0}, truth[45];
            const int weights = own ? 15 : 5;
            fill_random_f64(x, 30, 1), fill_random_f64(w, 15, 2), fill_random_f64(dy, 30, 3);
            reference(NULL, NULL, NULL, dx, dw, dy, x, w, a, own, (enum norm_kind)kind, 1e-5);
            for (int i = 0; i < 30 + weights; i++) {
                double *at = i < 30 ? x + i : w + i - 30, was = *at, loss[2] = {0, 0};
                for (int side = 0; side < 2; side++) {
                    *at = was + (side ? h : -h);
                    reference(y, mean, rstd, NULL, NULL, NULL, x, w, a, own, (enum norm_kind)kind, 1e-5);
                    for (int j = 0; j < 30; j++)
                        loss[side] += dy[j] * y[j];
                }
                *at = was;
                truth[i] = (loss[1] - loss[0]) / (2 * h);
            }
            case_expect_near("dx by differences", dx, truth, 30, 1e-6, 1e-6);
            if (kind != NORM_LAYER_NOP)
                case_expect_near("dw by differences", dw, truth + 30, (size_t)weights, 1e-6, 1e-6);
        }
    tensors_free();
}

static void one_norm(enum dtype type, enum norm_kind kind, struct shape a, int own, int has_w, int in_place)
{
    const struct backend *k = case_backend();
    const int64_t n = a.N * a.heads * a.D, rows = a.N * a.heads, weights = own ? a.heads * a.D : a.D;
    const int has_mean = kind == NORM_LAYER || kind == NORM_LAYER_NOP;
    char name[128];
    snprintf(name, sizeof name, "%s %s N %d heads %d D %d gap %d own %d in place %d", dtype_name(type), kinds[kind], (int)a.N, (int)a.heads, (int)a.D,
             (int)a.gap, own, in_place);
    double *w64 = tensor_doubles(weights), *dw64 = tensor_doubles(weights), *y64 = tensor_doubles(n), *dx64 = tensor_doubles(n);
    double *mean64 = tensor_doubles(rows), *rstd64 = tensor_doubles(rows);
    fill_random_f64(w64, weights, 12), fill_random_f64(dw64, weights, 13);
    struct view w = has_w ? tensor_vector(w64, DT_F32, weights) : view_none(), dw = tensor_vector(dw64, DT_F32, weights);
    struct view mean = case_output(DT_F32, 1, &rows), rstd = case_output(DT_F32, 1, &rows);
    struct heads x = heads_random(type, a, 11, 3), dy = heads_random(type, a, 14, 0), copy = heads_of(type, a, x.x);
    struct heads y = in_place ? copy : heads_of(type, a, NULL), dx = in_place ? dy : heads_of(type, a, NULL);
    reference(y64, mean64, rstd64, dx64, dw64, dy.x, x.x, has_w ? w64 : NULL, a, own, kind, 1e-5);
    assert_ok(k->head_norm_fwd(case_device(), y.v, has_mean ? mean : view_none(), rstd, in_place ? y.v : x.v, w, kind, 1e-5f));
    tensor_expect(name, type, tensor_get_view(y.v), y64, n, 2e-5);
    case_expect_near(name, tensor_get_view(rstd), rstd64, (size_t)rows, 1e-6, 1e-5);
    if (has_mean)
        case_expect_near(name, tensor_get_view(mean), mean64, (size_t)rows, 1e-6, 1e-5);
    assert_ok(k->head_norm_bwd(case_device(), dx.v, has_w ? dw : view_none(), dy.v, x.v, w, has_mean ? mean : view_none(), rstd, kind));
    tensor_expect(name, type, tensor_get_view(dx.v), dx64, n, 5e-5);
    if (has_w)
        case_expect_near(name, tensor_get_view(dw), dw64, (size_t)weights, 2e-4, 2e-5);
    assert_true(gaps_ok(y) && gaps_ok(dx));
    assert_int_equal(case_faults(), 0);
    tensors_free();
}

/* The widths at which another kernel takes over, on both sides; gap 8 keeps 16-byte rows, gap 3 does not. */
static void test_widths(void **state)
{
    (void)state;
    static const int64_t widths[] = {1, 8, 40, 64, 72, 80, 128, 136, 256, 264};
    for (size_t t = 0; t < COUNT_OF(types); t++)
        for (size_t i = 0; i < COUNT_OF(widths); i++)
            for (int own = 0; own < 2; own++)
                for (int64_t gap = 8; gap >= 3; gap -= 5) {
                    one_norm(types[t], NORM_RMS, (struct shape){13, 3, widths[i], gap}, own, 1, own);
                    one_norm(types[t], NORM_LAYER, (struct shape){9, 6, widths[i], gap}, own, 1, !own);
                }
}

static void test_kinds(void **state)
{
    (void)state;
    for (size_t t = 0; t < COUNT_OF(types); t++)
        for (int kind = NORM_RMS; kind <= NORM_LAYER_NOP; kind++)
            for (int own = 0; own < 2; own++)
                for (int in_place = 0; in_place < 2; in_place++) {
                    const int has_w = kind != NORM_LAYER_NOP;
                    one_norm(types[t], (enum norm_kind)kind, (struct shape){5, 3, 64, 8}, own, has_w, in_place);
                    one_norm(types[t], (enum norm_kind)kind, (struct shape){5, 6, 33, 3}, own, has_w, in_place);
                    one_norm(types[t], (enum norm_kind)kind, (struct shape){5, 1, 200, 8}, own, has_w, in_place); /* the full width */
                    one_norm(types[t], (enum norm_kind)kind, (struct shape){2, 1, 8200, 8}, own, has_w, in_place);
                    one_norm(types[t], (enum norm_kind)kind, (struct shape){1, 2, 128, 8}, own, 0, in_place); /* weights 1 */
                }
}

/* Many rows to a group of lanes, several blocks to a head; and the same bits again. */
static void test_rows(void **state)
{
    (void)state;
    const struct backend *k = case_backend();
    static const struct shape shapes[] = {{700, 3, 64, 8}, {300, 2, 128, 8}, {90, 3, 7, 3}};
    for (size_t t = 0; t < COUNT_OF(types); t++)
        for (size_t s = 0; s < COUNT_OF(shapes); s++)
            for (int own = 0; own < 2; own++) {
                const struct shape a = shapes[s];
                const int64_t rows = a.N * a.heads, weights = own ? a.heads * a.D : a.D;
                one_norm(types[t], NORM_LAYER, a, own, 1, 0);
                struct heads x = heads_random(types[t], a, 1, 0), dy = heads_random(types[t], a, 2, 0);
                double *ones = tensor_doubles(weights), *got[2];
                for (int64_t i = 0; i < weights; i++)
                    ones[i] = 1;
                struct view w = tensor_vector(ones, DT_F32, weights), rstd = case_output(DT_F32, 1, &rows);
                for (int run = 0; run < 2; run++) {
                    struct heads y = heads_of(types[t], a, NULL);
                    struct view dw = tensor_vector(tensor_doubles(weights), DT_F32, weights);
                    assert_ok(k->head_norm_fwd(case_device(), y.v, view_none(), rstd, x.v, w, NORM_RMS, 1e-5f));
                    assert_ok(k->head_norm_bwd(case_device(), y.v, dw, dy.v, x.v, w, view_none(), rstd, NORM_RMS));
                    got[run] = tensor_get_view(dw);
                }
                assert_memory_equal(got[0], got[1], (size_t)weights * sizeof(double));
                assert_int_equal(case_faults(), 0);
                tensors_free();
            }
}

/* A value on the limit is not cut; NaN stays. */
static void test_clip(void **state)
{
    (void)state;
    const struct backend *k = case_backend();
    static const int64_t shapes[][3] = {{5, 24, 8}, {3, 33, 3}, {2, 1100, 8}, {1, 1, 3}};
    for (size_t t = 0; t < COUNT_OF(types); t++)
        for (size_t s = 0; s < COUNT_OF(shapes); s++)
            for (int in_place = 0; in_place < 2; in_place++) {
                const int64_t N = shapes[s][0], C = shapes[s][1], gap = shapes[s][2];
                double *in = tensor_doubles(N * C), *y64 = tensor_doubles(N * C), *dx64 = tensor_doubles(N * C);
                fill_random_f64(in, N * C, 1);
                for (int64_t i = 0; i < N * C; i += 5)
                    in[i] = i % 2 ? 0.75 : -0.75;
                struct tensor x = tensor_of(types[t], N, C, gap, in), dx = tensor_random(types[t], N, C, gap, 2, 1), same = tensor_copy(x);
                struct tensor y = in_place ? same : tensor_output(types[t], N, C, gap);
                for (int64_t i = 0; i < N * C; i++) {
                    y64[i] = fmin(fmax(x.x[i], -0.75), 0.75);
                    dx64[i] = fabs(x.x[i]) > 0.75 ? 0 : dx.x[i];
                }
                assert_ok(k->clip_fwd(case_device(), y.v, in_place ? y.v : x.v, 0.75f));
                assert_ok(k->clip_bwd(case_device(), dx.v, x.v, 0.75f));
                case_expect_near("clip", tensor_get(y), y64, (size_t)(N * C), 0, 0);
                case_expect_near("its gradient", tensor_get(dx), dx64, (size_t)(N * C), 0, 0);
                assert_true(tensor_gaps_ok(y) && tensor_gaps_ok(dx));
                assert_int_equal(case_faults(), 0);
                tensors_free();
            }
    double nan = NAN;
    struct tensor x = tensor_of(DT_F32, 1, 1, 0, &nan), y = tensor_of(DT_F32, 1, 1, 0, (double[]){1});
    assert_ok(k->clip_fwd(case_device(), y.v, x.v, 0.75f));
    assert_true(isnan(tensor_get(y)[0]));
    tensors_free();
}

static void test_absent_and_refused(void **state)
{
    (void)state;
    const struct backend *k = case_backend();
    struct device *dev = case_device();
    const struct view none = view_none();
    struct heads x = heads_random(DT_F32, (struct shape){2, 3, 8, 0}, 1, 0), low = heads_random(DT_BF16, (struct shape){2, 3, 8, 0}, 1, 0);
    struct heads wide = heads_random(DT_F32, (struct shape){2, 3, 9, 0}, 1, 0);
    struct view empty = view_slice(x.v, 0, 0, 0), w = tensor_vector(tensor_doubles(7), DT_F32, 7);
    struct view r = case_output(DT_F32, 1, (int64_t[]){6}), zero = view_1d(r.p, DT_F32, 0);
    assert_ok(k->head_norm_fwd(dev, empty, none, zero, empty, none, NORM_RMS, 1e-5f));
    assert_ok(k->head_norm_bwd(dev, empty, none, empty, empty, none, none, zero, NORM_RMS));
    assert_refused(k->head_norm_fwd(dev, low.v, none, r, x.v, none, NORM_RMS, 1e-5f), ERR_UNSUPPORTED, "bf16");
    assert_refused(k->head_norm_fwd(dev, wide.v, none, r, x.v, none, NORM_RMS, 1e-5f), ERR_UNSUPPORTED, "9");
    assert_refused(k->head_norm_fwd(dev, x.v, none, r, x.v, w, NORM_RMS, 1e-5f), ERR_UNSUPPORTED, "w has 7 elements");
    assert_refused(k->head_norm_fwd(dev, x.v, none, r, x.v, none, (enum norm_kind)9, 1e-5f), ERR_UNSUPPORTED, "unknown");
    assert_refused(k->head_norm_bwd(dev, x.v, none, x.v, x.v, none, none, r, NORM_LAYER), ERR_UNSUPPORTED, "mean is missing");
    struct view flat = view_2d(r.p, DT_F32, 2, 3), flat_low = view_2d(r.p, DT_BF16, 2, 3);
    assert_refused(k->clip_fwd(dev, flat, flat_low, 1), ERR_UNSUPPORTED, "bf16");
    assert_ok(k->clip_bwd(dev, view_slice(flat, 0, 0, 0), view_slice(flat, 0, 0, 0), 1));
    assert_int_equal(case_faults(), 0);
    tensors_free();
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_closed_form), cmocka_unit_test(test_widths), cmocka_unit_test(test_kinds),
                                       cmocka_unit_test(test_rows),        cmocka_unit_test(test_clip),   cmocka_unit_test(test_absent_and_refused)};
    return case_main(argc, argv, tests, COUNT_OF(tests));
}
