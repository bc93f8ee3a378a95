/* Embedding on the device: both directions, ids outside the tables, runs of tokens, repeated ids, the same bits again. */
#include <math.h>

#include "tensor.h"

static const enum dtype types[] = {DT_F32, DT_BF16};

static void one_embed(enum dtype type, int64_t N, int64_t C, int64_t V, int64_t gap, int with_pos, int with_bad)
{
    const struct backend *k = case_backend();
    struct device *dev = case_device();
    const int64_t P = N > 2 ? N / 2 : 1;
    char name[96];
    snprintf(name, sizeof name, "embed %s N %d C %d V %d gap %d pos %d bad %d", dtype_name(type), (int)N, (int)C, (int)V, (int)gap, with_pos,
             with_bad);
    struct tensor table = tensor_random(type, V, C, gap, 41, 1), where = tensor_random(DT_F32, P, C, gap, 42, 1), y = tensor_output(type, N, C, gap);
    struct tensor dy = tensor_random(type, N, C, gap, 43, 1), dtable = tensor_random(DT_F32, V, C, gap, 45, 1),
                  dpos = tensor_random(DT_F32, P, C, gap, 46, 1);
    int32_t *ids = calloc((size_t)N, sizeof *ids), *pos = calloc((size_t)N, sizeof *pos);
    double *want = tensor_doubles(N * C), *dtable64 = tensor_doubles(V * C), *dpos64 = tensor_doubles(P * C);
    memcpy(dtable64, dtable.x, (size_t)(V * C) * sizeof *want);
    memcpy(dpos64, dpos.x, (size_t)(P * C) * sizeof *want);
    for (int64_t n = 0; n < N; n++) {
        ids[n] = n % 3 == 0 ? 0 : (int32_t)random_int(44, (uint64_t)n, 0, V - 1); /* one id in three is the same */
        pos[n] = (int32_t)(n % P);
        if (with_bad && n % 5 == 1)
            ids[n] = n % 2 ? (int32_t)V : -1;
        if (with_bad && n % 5 == 3)
            pos[n] = n % 2 ? (int32_t)P : INT32_MIN;
        const int known_id = ids[n] >= 0 && ids[n] < V, known_pos = pos[n] >= 0 && pos[n] < P;
        for (int64_t c = 0; c < C; c++) {
            want[n * C + c] =
                known_id && (known_pos || !with_pos) ? 1.5 * table.x[ids[n] * C + c] + (with_pos ? where.x[pos[n] * C + c] : 0) : (double)NAN;
            if (known_id)
                dtable64[ids[n] * C + c] += 1.5 * dy.x[n * C + c];
            if (known_pos)
                dpos64[pos[n] * C + c] += dy.x[n * C + c];
        }
    }
    const struct view vids = case_upload_i32(ids, 1, &N), vpos = case_upload_i32(pos, 1, &N);
    assert_ok(k->embed_fwd(dev, y.v, vids, table.v, with_pos ? where.v : view_none(), with_pos ? vpos : view_none(), 1.5f));
    double *got = tensor_get(y);
    for (int64_t i = 0; i < N * C; i++)
        if (isnan(want[i])) {
            assert_true(isnan(got[i]));
            got[i] = want[i] = 0;
        }
    tensor_expect(name, type, got, want, N * C, 1e-6);
    assert_true(tensor_gaps_ok(y));

    double *first[2] = {NULL, NULL};
    for (int run = 0; run < 2; run++) { /* accumulates onto what is there; the second time onto a copy */
        struct tensor dt = run ? tensor_copy(dtable) : dtable, dp = run ? tensor_copy(dpos) : dpos;
        assert_ok(k->embed_bwd(dev, dt.v, with_pos ? dp.v : view_none(), dy.v, vids, with_pos ? vpos : view_none(), 1.5f));
        double *dt64 = tensor_get(dt), *dp64 = tensor_get(dp);
        const double terms = N > 1000 ? 40 : 1; /* rounding grows with the length of the sums */
        case_expect_near(name, dt64, dtable64, (size_t)(V * C), terms * 1e-5, 1e-5);
        case_expect_near(name, dp64, with_pos ? dpos64 : dpos.x, (size_t)(P * C), 1e-5, 1e-5);
        assert_true(tensor_gaps_ok(dt) && tensor_gaps_ok(dp));
        if (run == 1) {
            assert_memory_equal(dt64, first[0], (size_t)(V * C) * sizeof *dt64);
            assert_memory_equal(dp64, first[1], (size_t)(P * C) * sizeof *dp64);
        }
        first[0] = dt64, first[1] = dp64;
    }
    assert_int_equal(case_faults(), 0);
    free(ids), free(pos);
    tensors_free();
}

static void test_embed(void **state)
{
    (void)state;
    static const int64_t widths[] = {1, 7, 24, 100, 768, 4104};
    for (size_t t = 0; t < COUNT_OF(types); t++)
        for (size_t i = 0; i < COUNT_OF(widths); i++)
            for (int with_pos = 0; with_pos < 2; with_pos++) {
                const int64_t C = widths[i];
                one_embed(types[t], 1, C, 3, 8, with_pos, 0);
                one_embed(types[t], C > 1000 ? 5 : 33, C, 11, 8, with_pos, 1);
                if (C <= 100)
                    one_embed(types[t], 50, C, 11, 3, with_pos, 0);
            }
}

/* More tokens than a run of the sort, and stretches of equal ids longer than eight. */
static void test_embed_runs(void **state)
{
    (void)state;
    one_embed(DT_BF16, 4096 + 1500, 8, 300, 0, 1, 1);
    one_embed(DT_F32, 2 * 4096, 8, 50, 0, 0, 0);
    one_embed(DT_F32, 700, 8, 1, 8, 0, 0);
}

static void test_refusals(void **state)
{
    (void)state;
    const struct backend *k = case_backend();
    const int64_t N = 2;
    const int32_t zeros[2] = {0, 0};
    struct tensor table = tensor_random(DT_BF16, 3, 8, 0, 1, 1), y = tensor_output(DT_F32, N, 8, 0), narrow = tensor_random(DT_F32, 3, 7, 0, 1, 1);
    const struct view ids = case_upload_i32(zeros, 1, &N);
    assert_refused(k->embed_fwd(case_device(), y.v, ids, table.v, view_none(), view_none(), 1), ERR_UNSUPPORTED, "table is bf16");
    assert_refused(k->embed_fwd(case_device(), y.v, ids, narrow.v, view_none(), view_none(), 1), ERR_UNSUPPORTED, "must be 8");
    assert_refused(k->embed_bwd(case_device(), table.v, view_none(), y.v, ids, view_none(), 1), ERR_UNSUPPORTED, "dtable is bf16");
    tensors_free();
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_embed), cmocka_unit_test(test_embed_runs), cmocka_unit_test(test_refusals)};
    return case_main(argc, argv, tests, COUNT_OF(tests));
}
