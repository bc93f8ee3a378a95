/* Row norms on the device: all kinds, every kernel (by width and alignment), aliasing, against the double reference. The backward's truth is the
 * closed form in double, which is itself held against finite differences of the reference. */
#include <math.h>

#include "reference/ops.h"
#include "tensor.h"

static const char *const kinds[] = {"rms", "rms1p", "layer", "layer_nop"};
static const enum dtype types[] = {DT_F32, DT_BF16};

/* dx, dw, db (written; NULL: not wanted) of sum(dy * norm(x)). */
static void norm_gradient(double *dx, double *dw, double *db, const double *dy, const double *x, const double *w, int64_t N, int64_t C,
                          enum norm_kind kind, double eps)
{
    const int layer = kind == NORM_LAYER || kind == NORM_LAYER_NOP;
    for (int64_t n = 0; n < N; n++) {
        double mean = 0, var = 0, sg = 0, sgx = 0;
        for (int64_t c = 0; c < C && layer; c++)
            mean += x[n * C + c] / (double)C;
        for (int64_t c = 0; c < C; c++)
            var += (x[n * C + c] - mean) * (x[n * C + c] - mean) / (double)C;
        const double rstd = 1 / sqrt(var + eps);
        for (int pass = 0; pass < 2; pass++)
            for (int64_t c = 0; c < C; c++) {
                const double weight = kind == NORM_LAYER_NOP || w == NULL ? 1 : w[c] + (kind == NORM_RMS1P);
                const double xhat = (x[n * C + c] - mean) * rstd, g = dy[n * C + c] * weight;
                if (pass == 1) {
                    dx[n * C + c] = rstd * (g - (layer ? sg : 0) - xhat * sgx);
                    continue;
                }
                sg += g / (double)C;
                sgx += g * xhat / (double)C;
                if (dw != NULL)
                    dw[c] += dy[n * C + c] * xhat;
                if (db != NULL)
                    db[c] += dy[n * C + c];
            }
    }
}

static void test_closed_form(void **state)
{
    (void)state;
    const int64_t N = 3, C = 7;
    const double h = 1e-5;
    for (int kind = NORM_RMS; kind <= NORM_LAYER_NOP; kind++) {
        double x[21], w[7], dy[21], y[21], dx[21], dw[7] = {0}, db[7] = {0}, truth[28];
        fill_random_f64(x, 21, 1), fill_random_f64(w, 7, 2), fill_random_f64(dy, 21, 3);
        norm_gradient(dx, dw, db, dy, x, w, N, C, (enum norm_kind)kind, 1e-5);
        for (int64_t i = 0; i < N * C + C; i++) {
            double *at = i < N * C ? x + i : w + i - N * C, was = *at, loss[2];
            for (int side = 0; side < 2; side++) {
                *at = was + (side ? h : -h);
                ref_norm(y, NULL, NULL, x, w, NULL, N, C, (enum norm_kind)kind, 1e-5);
                loss[side] = 0;
                for (int64_t j = 0; j < N * C; j++)
                    loss[side] += dy[j] * y[j];
            }
            *at = was;
            truth[i] = (loss[1] - loss[0]) / (2 * h);
        }
        case_expect_near("dx by differences", dx, truth, 21, 1e-7, 1e-7);
        if (kind != NORM_LAYER_NOP)
            case_expect_near("dw by differences", dw, truth + 21, 7, 1e-7, 1e-7);
    }
}

enum alias { NO_RESIDUAL, APART, SUM_IS_X, SUM_IS_RESIDUAL, NO_SUM, ALIASES };

static void one_norm(enum dtype type, enum norm_kind kind, int64_t N, int64_t C, int64_t gap, enum alias alias, int has_b)
{
    const struct backend *k = case_backend();
    struct device *dev = case_device();
    char name[128];
    snprintf(name, sizeof name, "%s %s N %d C %d gap %d alias %d", dtype_name(type), kinds[kind], (int)N, (int)C, (int)gap, (int)alias);
    double *base = tensor_doubles(N * C), *w64 = tensor_doubles(C), *b64 = tensor_doubles(C);
    fill_random_f64(base, N * C, 11), fill_random_f64(w64, C, 13), fill_random_f64(b64, C, 14);
    for (int64_t i = 0; i < N * C; i++)
        base[i] += 3; /* a mean to subtract */
    struct tensor x = tensor_of(type, N, C, gap, base), r = tensor_random(type, N, C, gap, 12, 1);
    struct tensor y = tensor_output(type, N, C, gap), sum = alias == SUM_IS_X ? x : alias == SUM_IS_RESIDUAL ? r : tensor_output(type, N, C, gap);
    if (alias == NO_SUM && N == 1)
        w64 = NULL; /* weights 1 */
    struct view w = w64 != NULL ? tensor_vector(w64, DT_F32, C) : view_none(), b = has_b ? tensor_vector(b64, DT_F32, C) : view_none();
    struct view mean = case_output(DT_F32, 1, &N), rstd = case_output(DT_F32, 1, &N);
    double *in = tensor_doubles(N * C), *y64 = tensor_doubles(N * C), *mean64 = tensor_doubles(N), *rstd64 = tensor_doubles(N);
    for (int64_t i = 0; i < N * C; i++)
        in[i] = alias == NO_RESIDUAL ? x.x[i] : tensor_round(x.x[i] + r.x[i], type);
    ref_norm(y64, mean64, rstd64, in, w64, has_b ? b64 : NULL, N, C, kind, 1e-5);
    assert_ok(k->norm_fwd(dev, y.v, alias == NO_RESIDUAL || alias == NO_SUM ? view_none() : sum.v, mean, rstd, x.v,
                          alias == NO_RESIDUAL ? view_none() : r.v, w, b, kind, 1e-5f));
    tensor_expect(name, type, tensor_get(y), y64, N * C, 2e-5);
    case_expect_near(name, tensor_get_view(rstd), rstd64, (size_t)N, 1e-6, 1e-5);
    case_expect_near(name, tensor_get_view(mean), mean64, (size_t)N, 1e-6, 1e-5);
    assert_true(tensor_gaps_ok(y));
    if (alias == NO_RESIDUAL || alias == NO_SUM)
        sum = tensor_of(type, N, C, gap, in);
    else
        case_expect_near(name, tensor_get(sum), in, (size_t)(N * C), 0, 0);

    const int layer = kind == NORM_LAYER || kind == NORM_LAYER_NOP, has_w = kind != NORM_LAYER_NOP;
    struct tensor dy = tensor_random(type, N, C, gap, 15, 1), dres = tensor_random(type, N, C, gap, 16, 1);
    struct tensor dx = alias == SUM_IS_X ? dres : tensor_output(type, N, C, gap);
    double *dw64 = tensor_doubles(C), *db64 = tensor_doubles(C), *dx64 = tensor_doubles(N * C);
    fill_random_f64(dw64, C, 17), fill_random_f64(db64, C, 18);
    struct view dw = tensor_vector(dw64, DT_F32, C), db = tensor_vector(db64, DT_F32, C);
    norm_gradient(dx64, dw64, db64, dy.x, in, w64, N, C, kind, 1e-5);
    for (int64_t i = 0; i < N * C && alias != NO_RESIDUAL; i++)
        dx64[i] += dres.x[i];
    assert_ok(k->norm_bwd(dev, dx.v, has_w ? dw : view_none(), has_b ? db : view_none(), dy.v, alias == NO_RESIDUAL ? view_none() : dres.v, sum.v, w,
                          layer ? mean : view_none(), rstd, kind));
    tensor_expect(name, type, tensor_get(dx), dx64, N * C, 5e-5);
    assert_true(tensor_gaps_ok(dx));
    if (has_w)
        case_expect_near(name, tensor_get_view(dw), dw64, (size_t)C, 2e-4, 2e-5);
    if (has_b)
        case_expect_near(name, tensor_get_view(db), db64, (size_t)C, 2e-5, 2e-5);
    assert_int_equal(case_faults(), 0);
    tensors_free();
}

/* The widths at which another kernel takes over (see norm.cu), on both sides of a few. */
static void test_norm_widths(void **state)
{
    (void)state;
    static const int64_t wide[] = {1, 7, 24, 100, 256, 264, 520, 768, 1032, 2056, 4104, 8200};
    for (size_t t = 0; t < COUNT_OF(types); t++)
        for (size_t i = 0; i < COUNT_OF(wide); i++)
            for (int gap = 8; gap >= 3; gap -= 5) {
                const int64_t C = wide[i], N = C <= 100 ? 33 : C <= 1032 ? 5 : 2;
                if (gap == 3 && C > 1032)
                    continue;
                one_norm(types[t], NORM_LAYER, N, C, gap, APART, 1);
                one_norm(types[t], NORM_RMS, N, C, gap, NO_RESIDUAL, 0);
            }
}

static void test_norm_kinds(void **state)
{
    (void)state;
    for (size_t t = 0; t < COUNT_OF(types); t++)
        for (int kind = NORM_RMS; kind <= NORM_LAYER_NOP; kind++)
            for (int alias = 0; alias < ALIASES; alias++) {
                one_norm(types[t], (enum norm_kind)kind, 1, 24, 8, (enum alias)alias, kind == NORM_LAYER);
                one_norm(types[t], (enum norm_kind)kind, 5, 768, 8, (enum alias)alias, kind == NORM_LAYER);
                one_norm(types[t], (enum norm_kind)kind, 5, 7, 3, (enum alias)alias, kind == NORM_LAYER);
            }
}

/* base + norm(x), written apart, over x or over base. */
static void one_norm_add(enum dtype type, enum norm_kind kind, int64_t C, int64_t gap, int where)
{
    const int64_t N = 5;
    char name[96];
    snprintf(name, sizeof name, "%s %s added, C %d gap %d where %d", dtype_name(type), kinds[kind], (int)C, (int)gap, where);
    double *w64 = tensor_doubles(C), *b64 = tensor_doubles(C), *y64 = tensor_doubles(N * C);
    fill_random_f64(w64, C, 43), fill_random_f64(b64, C, 44);
    struct tensor x = tensor_random(type, N, C, gap, 41, 1), base = tensor_random(type, N, C, gap, 42, 1);
    struct tensor y = where == 1 ? x : where == 2 ? base : tensor_output(type, N, C, gap);
    struct view w = tensor_vector(w64, DT_F32, C), b = tensor_vector(b64, DT_F32, C), rstd = case_output(DT_F32, 1, &N);
    ref_norm(y64, NULL, NULL, x.x, w64, b64, N, C, kind, 1e-5);
    for (int64_t i = 0; i < N * C; i++)
        y64[i] += base.x[i];
    assert_ok(case_backend()->norm_add_fwd(case_device(), y.v, view_none(), rstd, x.v, base.v, w, b, kind, 1e-5f));
    tensor_expect(name, type, tensor_get(y), y64, N * C, 2e-5);
    assert_true(tensor_gaps_ok(y));
    assert_int_equal(case_faults(), 0);
    tensors_free();
}

static void test_norm_add(void **state)
{
    (void)state;
    static const int64_t widths[] = {7, 24, 768, 2056};
    for (size_t t = 0; t < COUNT_OF(types); t++)
        for (size_t i = 0; i < COUNT_OF(widths); i++)
            for (int where = 0; where < 3; where++) {
                one_norm_add(types[t], NORM_RMS, widths[i], 8, where);
                one_norm_add(types[t], NORM_LAYER, widths[i], 3, where);
            }
    struct tensor x = tensor_random(DT_F32, 2, 8, 0, 1, 1);
    struct view none = view_none();
    assert_refused(case_backend()->norm_add_fwd(case_device(), x.v, none, none, x.v, none, none, none, NORM_RMS, 1e-5f), ERR_UNSUPPORTED, "base is missing");
    tensors_free();
}

/* Many rows to a group, so that the sums of dw have several terms in each stage; and the same bits again. */
static void test_norm_rows(void **state)
{
    (void)state;
    const struct backend *k = case_backend();
    static const int64_t shapes[][2] = {{700, 24}, {90, 768}, {90, 1}};
    for (size_t t = 0; t < COUNT_OF(types); t++)
        for (size_t s = 0; s < COUNT_OF(shapes); s++) {
            const int64_t N = shapes[s][0], C = shapes[s][1];
            one_norm(types[t], NORM_LAYER, N, C, 8, APART, 1);
            struct tensor x = tensor_random(types[t], N, C, 8, 1, 1), dy = tensor_random(types[t], N, C, 8, 2, 1);
            double *ones = tensor_doubles(C), *got[2][4];
            for (int64_t i = 0; i < C; i++)
                ones[i] = 1;
            struct view w = tensor_vector(ones, DT_F32, C);
            for (int run = 0; run < 2; run++) {
                double *zero = tensor_doubles(C);
                struct tensor y = tensor_output(types[t], N, C, 8), dx = tensor_output(types[t], N, C, 8);
                struct view dw = tensor_vector(zero, DT_F32, C), db = tensor_vector(zero, DT_F32, C);
                struct view mean = case_output(DT_F32, 1, &N), rstd = case_output(DT_F32, 1, &N);
                assert_ok(k->norm_fwd(case_device(), y.v, view_none(), mean, rstd, x.v, view_none(), w, w, NORM_LAYER, 1e-5f));
                assert_ok(k->norm_bwd(case_device(), dx.v, dw, db, dy.v, view_none(), x.v, w, mean, rstd, NORM_LAYER));
                got[run][0] = tensor_get(y), got[run][1] = tensor_get(dx), got[run][2] = tensor_get_view(dw), got[run][3] = tensor_get_view(db);
            }
            for (int i = 0; i < 4; i++)
                assert_memory_equal(got[0][i], got[1][i], (size_t)(i < 2 ? N * C : C) * sizeof(double));
            assert_int_equal(case_faults(), 0);
            tensors_free();
        }
}

/* A mean a thousand deviations away: E[x^2] - mean^2 would lose the variance. */
static void test_far_mean(void **state)
{
    (void)state;
    static const int64_t shapes[][2] = {{24, 8}, {768, 8}, {4104, 8}, {100, 3}};
    for (size_t s = 0; s < COUNT_OF(shapes); s++) {
        const int64_t N = 2, C = shapes[s][0];
        double *in = tensor_doubles(N * C), *truth = tensor_doubles(N * C);
        fill_random_f64(in, N * C, 1);
        for (int64_t i = 0; i < N * C; i++)
            in[i] += 1000;
        struct tensor x = tensor_of(DT_F32, N, C, shapes[s][1], in), y = tensor_output(DT_F32, N, C, shapes[s][1]);
        ref_norm(truth, NULL, NULL, x.x, NULL, NULL, N, C, NORM_LAYER_NOP, 1e-5);
        assert_ok(case_backend()->norm_fwd(case_device(), y.v, view_none(), view_none(), view_none(), x.v, view_none(), view_none(), view_none(),
                                           NORM_LAYER_NOP, 1e-5f));
        case_expect_near("far mean", tensor_get(y), truth, (size_t)(N * C), 5e-4, 1e-4);
        assert_int_equal(case_faults(), 0);
        tensors_free();
    }
}

/* Statistics that nobody wants, and no rows at all. */
static void test_absent(void **state)
{
    (void)state;
    const struct backend *k = case_backend();
    const int64_t N = 5, C = 24;
    const struct view none = view_none();
    double *truth = tensor_doubles(N * C);
    struct tensor x = tensor_random(DT_BF16, N, C, 8, 1, 1), y = tensor_output(DT_BF16, N, C, 8);
    ref_norm(truth, NULL, NULL, x.x, NULL, NULL, N, C, NORM_RMS, 1e-5);
    assert_ok(k->norm_fwd(case_device(), y.v, none, none, none, x.v, none, none, none, NORM_RMS, 1e-5f));
    tensor_expect("no statistics", DT_BF16, tensor_get(y), truth, N * C, 2e-5);
    struct view empty = view_slice(y.v, 0, 0, 0), zero = view_1d(y.v.p, DT_F32, 0);
    assert_ok(k->norm_fwd(case_device(), empty, none, zero, zero, empty, none, none, none, NORM_RMS, 1e-5f));
    assert_ok(k->norm_bwd(case_device(), empty, none, none, empty, none, empty, none, none, zero, NORM_RMS));
    assert_ok(k->act_fwd(case_device(), empty, none, empty, MLP_RELU));
    assert_ok(k->bias_grad(case_device(), view_1d(y.v.p, DT_F32, C), empty));
    assert_int_equal(case_faults(), 0);
    tensors_free();
}

static void test_refusals(void **state)
{
    (void)state;
    const struct backend *k = case_backend();
    struct tensor x = tensor_random(DT_F32, 2, 8, 0, 1, 1), y = tensor_random(DT_BF16, 2, 8, 0, 1, 1);
    const int64_t two = 2;
    struct view r = case_output(DT_F32, 1, &two);
    assert_refused(k->norm_fwd(case_device(), y.v, view_none(), r, r, x.v, view_none(), view_none(), view_none(), NORM_RMS, 1e-5f), ERR_UNSUPPORTED,
                   "bf16");
    assert_refused(k->norm_fwd(case_device(), x.v, view_none(), r, r, x.v, view_none(), view_none(), view_none(), (enum norm_kind)9, 1e-5f),
                   ERR_UNSUPPORTED, "unknown");
    assert_refused(k->norm_bwd(case_device(), x.v, view_none(), view_none(), x.v, view_none(), x.v, view_none(), view_none(), r, NORM_LAYER),
                   ERR_UNSUPPORTED, "mean is missing");
    tensors_free();
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_closed_form), cmocka_unit_test(test_norm_widths), cmocka_unit_test(test_norm_kinds), cmocka_unit_test(test_norm_add),
                                       cmocka_unit_test(test_norm_rows),   cmocka_unit_test(test_far_mean),    cmocka_unit_test(test_absent),
                                       cmocka_unit_test(test_refusals)};
    return case_main(argc, argv, tests, COUNT_OF(tests));
}
