/* Rotary positions, activations, embedding and column sums on the device, against the double references. */
#include <math.h>

#include "reference/ops.h"
#include "tensor.h"

static const enum dtype types[] = {DT_F32, DT_BF16};

static void one_rope(enum dtype type, int64_t N, int64_t heads, int64_t D, int64_t half, int64_t gap)
{
    const struct backend *k = case_backend();
    const int64_t P = 40, bad = N > 4 ? 3 : -1;
    char name[96];
    snprintf(name, sizeof name, "rope %s N %d heads %d D %d half %d gap %d", dtype_name(type), (int)N, (int)heads, (int)D, (int)half, (int)gap);
    struct tensor rows = tensor_random(type, N, heads * D, gap, 21, 1);
    double *c64 = tensor_doubles(P * half), *s64 = tensor_doubles(P * half), *want = tensor_doubles(N * heads * D);
    for (int64_t i = 0; i < P * half; i++) {
        c64[i] = cos((double)(i / half) / (double)(i % half + 1));
        s64[i] = sin((double)(i / half) / (double)(i % half + 1));
    }
    struct tensor c = tensor_of(DT_F32, P, half, gap, c64), s = tensor_of(DT_F32, P, half, 0, s64);
    int32_t pos[64];
    memcpy(want, rows.x, (size_t)(N * heads * D) * sizeof *want);
    for (int64_t n = 0; n < N; n++) {
        pos[n] = n == bad ? (int32_t)P : (int32_t)random_int(24, (uint64_t)n, 0, P - 1);
        if (n != bad)
            ref_rope(want + n * heads * D, heads, D, c.x + pos[n] * half, s.x + pos[n] * half, half);
    }
    struct view x = rows.v, at = case_upload_i32(pos, 1, &N);
    x.nd = 3, x.n[1] = heads, x.n[2] = D, x.s[1] = D, x.s[2] = 1;
    assert_ok(k->rope(case_device(), x, c.v, s.v, at, 0));
    double *got = tensor_get(rows);
    for (int64_t h = 0; bad >= 0 && h < heads; h++) /* the bad row is NaN where it turns, and as it was elsewhere */
        for (int64_t i = 0; i < D; i++) {
            const int64_t j = (bad * heads + h) * D + i;
            assert_true(isnan(got[j]) == (i < 2 * half));
            got[j] = want[j];
        }
    tensor_expect(name, type, got, want, N * heads * D, 1e-6);
    assert_ok(k->rope(case_device(), x, c.v, s.v, at, 1));
    got = tensor_get(rows);
    for (int64_t j = 0; bad >= 0 && j < heads * D; j++)
        got[bad * heads * D + j] = rows.x[bad * heads * D + j];
    case_expect_near(name, got, rows.x, (size_t)(N * heads * D), type == DT_BF16 ? 0.03 : 1e-5, type == DT_BF16 ? 0.01 : 1e-5);
    assert_true(tensor_gaps_ok(rows));
    assert_int_equal(case_faults(), 0);
    tensors_free();
}

static void test_rope(void **state)
{
    (void)state;
    for (size_t t = 0; t < COUNT_OF(types); t++) {
        one_rope(types[t], 13, 3, 8, 4, 3);
        one_rope(types[t], 13, 6, 64, 32, 8);
        one_rope(types[t], 5, 6, 64, 32, 3);
        one_rope(types[t], 5, 3, 80, 16, 8);
        one_rope(types[t], 5, 3, 10, 3, 0);
        one_rope(types[t], 1, 40, 128, 64, 8);
        one_rope(types[t], 33, 1, 40, 20, 8);
    }
}

/* With more rows than twice the multiprocessors, one block walks all heads of a row. */
static void test_rope_many_rows(void **state)
{
    (void)state;
    const int64_t N = 600, heads = 20, D = 16, half = 8, P = 2;
    double table[32];
    for (int i = 0; i < 32; i++)
        table[i] = i < 16 ? 0 : 1; /* position 0: both 0; position 1: both 1 */
    struct tensor x = tensor_random(DT_BF16, N, heads * D, 0, 3, 1), c = tensor_of(DT_F32, P, half, 0, table);
    int32_t *pos = calloc((size_t)N, sizeof *pos);
    for (int64_t n = 0; n < N; n++)
        pos[n] = n % 3 == 0;
    struct view v = x.v, at = case_upload_i32(pos, 1, &N);
    v.nd = 3, v.n[1] = heads, v.n[2] = D, v.s[1] = D, v.s[2] = 1;
    assert_ok(case_backend()->rope(case_device(), v, c.v, c.v, at, 0));
    double *want = tensor_doubles(N * heads * D);
    memcpy(want, x.x, (size_t)(N * heads * D) * sizeof *want);
    for (int64_t n = 0; n < N; n++)
        ref_rope(want + n * heads * D, heads, D, c.x + pos[n] * half, c.x + pos[n] * half, half);
    tensor_expect("rope, many rows", DT_BF16, tensor_get(x), want, N * heads * D, 1e-6);
    assert_int_equal(case_faults(), 0);
    free(pos);
    tensors_free();
}

static double act_slope(double gate, double up, enum mlp_kind kind, int of_gate)
{
    const double h = 1e-5;
    return of_gate ? (ref_act(gate + h, up, kind) - ref_act(gate - h, up, kind)) / (2 * h)
                   : (ref_act(gate, up + h, kind) - ref_act(gate, up - h, kind)) / (2 * h);
}

static void one_act(enum dtype type, enum mlp_kind kind, int64_t N, int64_t F, int64_t gap, int in_place, int want_y)
{
    const struct backend *k = case_backend();
    const int gated = mlp_is_gated(kind);
    char name[96];
    snprintf(name, sizeof name, "%s mlp kind %d N %d F %d gap %d in place %d", dtype_name(type), (int)kind, (int)N, (int)F, (int)gap, in_place);
    double *x = tensor_doubles(N * 2 * F);
    fill_random_f64(x, N * 2 * F, 31);
    for (int64_t i = 0; i < F && i < 16; i++) { /* far out, where exponentials overflow and vanish; never near relu's corner */
        x[i] *= 40;
        if (N > 1)
            x[3 * F + i] *= 12;
    }
    for (int64_t i = 0; i < N * 2 * F; i++)
        x[i] += fabs(x[i]) < 1e-3 ? 0.01 : 0;
    struct tensor both = tensor_of(type, N, 2 * F, gap, x), dy = tensor_random(type, N, F, gap, 32, 1);
    struct tensor y = tensor_output(type, N, F, gap), y2 = tensor_output(type, N, F, gap),
                  dboth = in_place ? both : tensor_output(type, N, 2 * F, gap);
    struct view gate = view_slice(both.v, 1, 0, F), up = view_slice(both.v, 1, F, F);
    struct view dgate = view_slice(dboth.v, 1, 0, F), dup = view_slice(dboth.v, 1, F, F);
    double *want = tensor_doubles(N * F), *dg = tensor_doubles(N * F), *du = tensor_doubles(N * F);
    for (int64_t i = 0; i < N * F; i++) {
        const double g = both.x[i / F * 2 * F + i % F], u = both.x[i / F * 2 * F + F + i % F];
        want[i] = ref_act(g, u, kind);
        dg[i] = gated ? dy.x[i] * act_slope(g, u, kind, 1) : 0;
        du[i] = dy.x[i] * act_slope(g, u, kind, 0);
    }
    assert_ok(k->act_fwd(case_device(), y.v, gated ? gate : view_none(), up, kind));
    tensor_expect(name, type, tensor_get(y), want, N * F, 1e-5);
    assert_ok(k->act_bwd(case_device(), gated ? dgate : view_none(), dup, want_y ? y2.v : view_none(), dy.v, gated ? gate : view_none(), up, kind));
    if (gated)
        tensor_expect(name, type, tensor_get_view(dgate), dg, N * F, 2e-5);
    tensor_expect(name, type, tensor_get_view(dup), du, N * F, 2e-5);
    if (want_y)
        tensor_expect(name, type, tensor_get(y2), want, N * F, 1e-5);
    assert_true(tensor_gaps_ok(y) && tensor_gaps_ok(dboth) && tensor_gaps_ok(y2));
    assert_int_equal(case_faults(), 0);
    tensors_free();
}

static void test_act(void **state)
{
    (void)state;
    for (size_t t = 0; t < COUNT_OF(types); t++)
        for (int kind = MLP_SWIGLU; kind <= MLP_RELU; kind++) {
            one_act(types[t], (enum mlp_kind)kind, 5, 1, 3, 0, 1);
            one_act(types[t], (enum mlp_kind)kind, 3, 100, 3, 1, 0);
            one_act(types[t], (enum mlp_kind)kind, 33, 24, 8, 0, 1);
            one_act(types[t], (enum mlp_kind)kind, 1, 2056, 8, 1, 1);
        }
    struct tensor x = tensor_random(DT_F32, 2, 8, 0, 1, 1);
    assert_refused(case_backend()->act_fwd(case_device(), x.v, view_none(), x.v, MLP_SWIGLU), ERR_UNSUPPORTED, "gate");
    assert_refused(case_backend()->act_fwd(case_device(), x.v, view_none(), x.v, (enum mlp_kind)77), ERR_UNSUPPORTED, "unknown");
    tensors_free();
}

/* Small whole numbers: sums of them are exact in any order. */
static struct tensor tensor_whole(enum dtype type, int64_t rows, int64_t cols, int64_t gap, uint64_t seed)
{
    double *x = tensor_doubles(rows * cols);
    for (int64_t i = 0; i < rows * cols; i++)
        x[i] = (double)random_int(seed, (uint64_t)i, -8, 8);
    return tensor_of(type, rows, cols, gap, x);
}

static void test_bias(void **state)
{
    (void)state;
    const struct backend *k = case_backend();
    static const int64_t shapes[][2] = {{1, 1}, {5, 7}, {33, 24}, {700, 100}, {130, 264}, {5, 4104}};
    for (size_t t = 0; t < COUNT_OF(types); t++)
        for (size_t s = 0; s < COUNT_OF(shapes); s++)
            for (int64_t gap = 0; gap < 9; gap += 4) {
                const int64_t N = shapes[s][0], C = shapes[s][1];
                struct tensor exact = tensor_whole(types[t], N, C, gap, 5), any = tensor_random(types[t], N, C, gap, 7, 1);
                double *truth = tensor_doubles(C), *got[2], *zero = tensor_doubles(C);
                for (int64_t c = 0; c < C; c++)
                    truth[c] = (double)c;
                struct view db = tensor_vector(truth, DT_F32, C);
                for (int64_t i = 0; i < N * C; i++)
                    truth[i % C] += exact.x[i];
                assert_ok(k->bias_grad(case_device(), db, exact.v));
                case_expect_near("bias_grad", tensor_get_view(db), truth, (size_t)C, 0, 0);
                for (int run = 0; run < 2; run++) {
                    struct view sum = tensor_vector(zero, DT_F32, C);
                    assert_ok(k->bias_grad(case_device(), sum, any.v));
                    got[run] = tensor_get_view(sum);
                }
                assert_memory_equal(got[0], got[1], (size_t)C * sizeof(double));
                assert_int_equal(case_faults(), 0);
                tensors_free();
            }
}

/* bf16 outputs get their bias from a pass of our own. */
static void test_matmul_bias(void **state)
{
    (void)state;
    static const int64_t widths[] = {1, 24, 100, 1032};
    for (size_t s = 0; s < COUNT_OF(widths); s++)
        for (int64_t gap = 3; gap < 9; gap += 5) {
            const int64_t M = 5, N = widths[s], K = 8;
            struct tensor a = tensor_whole(DT_BF16, M, K, 0, 1), b = tensor_whole(DT_BF16, N, K, 0, 2), c = tensor_output(DT_BF16, M, N, gap);
            double *bias = tensor_doubles(N), *want = tensor_doubles(M * N);
            fill_random_f64(bias, N, 3);
            struct view v = tensor_vector(bias, DT_F32, N);
            ref_matmul(want, a.x, b.x, NULL, M, N, K, 0, 1, 1, 0);
            for (int64_t i = 0; i < M * N; i++)
                want[i] = tensor_round(tensor_round(want[i], DT_BF16) + bias[i % N], DT_BF16);
            const enum code code = case_backend()->matmul(case_device(), c.v, a.v, b.v, v, 0, 1, 1, 0);
            if (code == ERR_UNSUPPORTED && gap == 3) { /* the library may want aligned rows */
                printf("skipped: %s\n", fail_text());
                tensors_free();
                continue;
            }
            assert_ok(code);
            case_expect_near("matmul with a bias", tensor_get(c), want, (size_t)(M * N), 0, 0);
            assert_true(tensor_gaps_ok(c));
            assert_int_equal(case_faults(), 0);
            tensors_free();
        }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rope), cmocka_unit_test(test_rope_many_rows), cmocka_unit_test(test_act),
                                       cmocka_unit_test(test_bias), cmocka_unit_test(test_matmul_bias)};
    return case_main(argc, argv, tests, COUNT_OF(tests));
}
