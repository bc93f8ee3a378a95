/* Attention of the CPU against the double oracle: the oracle itself, shapes, masks, strides. */
#include <math.h>

#include "attention_case.h"

/* Documents of 1..longest tokens. */
static void random_segments(int32_t *ids, int64_t B, int64_t T, int64_t longest, uint64_t seed)
{
    for (int64_t b = 0; b < B; b++) {
        int32_t id = (int32_t)b;
        for (int64_t t = 0, left = 0; t < T; t++, left--) {
            if (left == 0) {
                left = random_int(seed, (uint64_t)(b * T + t), 1, longest);
                id += (int32_t)random_int(seed + 1, (uint64_t)(b * T + t), 1, 2);
            }
            ids[b * T + t] = id;
        }
    }
}

/* ---- the oracle itself ---------------------------------------------------------------------------------------- */

static double objective(const struct ref_attention *a, const double *dout, const double *q, const double *k, const double *v)
{
    int64_t n = a->B * a->T * a->H * a->D;
    double *o = test_alloc(n, sizeof *o), *lse = test_alloc(a->B * a->H * a->T, sizeof *lse), sum = 0;
    ref_attention_fwd(a, o, lse, q, k, v);
    for (int64_t i = 0; i < n; i++)
        sum += o[i] * dout[i];
    free(o);
    free(lse);
    return sum;
}

static void test_oracle_gradients_are_finite_differences(void **state)
{
    (void)state;
    static const float slopes[4] = {0.5f, -0.25f, 1.5f, 0};
    static const int32_t seg_q[2 * 5] = {0, 0, 1, 1, 3, 2, 2, 2, 4, 4}, seg_k[2 * 6] = {0, 0, 1, 1, 2, 2, 2, 2, 2, 3, 4, 4};
    const struct ref_attention kinds[] = {
        {.B = 2, .T = 5, .S = 6, .H = 4, .G = 2, .D = 3, .scale = 0.7, .causal = 1, .q_offset = 1, .window_left = -1, .window_right = -1},
        {.B = 2, .T = 5, .S = 6, .H = 4, .G = 1, .D = 3, .scale = 0.7, .window_left = 1, .window_right = 2},
        {.B = 2, .T = 5, .S = 6, .H = 4, .G = 4, .D = 3, .scale = 0.7, .window_left = -1, .window_right = -1, .seg_q = seg_q, .seg_k = seg_k},
        {.B = 2, .T = 5, .S = 6, .H = 4, .G = 2, .D = 3, .scale = 0.7, .causal = 1, .q_offset = -1, .window_left = 2, .window_right = -1},
        {.B = 2, .T = 5, .S = 6, .H = 4, .G = 2, .D = 3, .scale = 0.7, .causal = 1, .q_offset = 1, .window_left = 3, .window_right = -1, .slopes = slopes},
    };
    for (size_t c = 0; c < COUNT_OF(kinds); c++) {
        struct attention_case p;
        attention_case_open(&p, &kinds[c], 0);
        double *inputs[3] = {p.q, p.k, p.v}, *grads[3] = {p.dq, p.dk, p.dv};
        for (int i = 0; i < 3; i++) {
            int64_t n = view_count(i == 0 ? p.vq : p.vk);
            for (int64_t j = 0; j < n; j++) {
                double eps = 1e-5, x = inputs[i][j];
                inputs[i][j] = x + eps;
                double up = objective(&p.a, p.dout, p.q, p.k, p.v);
                inputs[i][j] = x - eps;
                double down = objective(&p.a, p.dout, p.q, p.k, p.v);
                inputs[i][j] = x;
                assert_true(fabs((up - down) / (2 * eps) - grads[i][j]) <= 1e-8);
            }
        }
        attention_case_close(&p);
    }
}

/* ---- shapes and masks ----------------------------------------------------------------------------------------- */

static void test_shapes(void **state)
{
    (void)state;
    const int64_t widths[] = {4, 16, 20, 64, 80, 128, 256}, lengths[] = {1, 2, 63, 64, 65, 127, 130}, groups[] = {3, 1, 6};
    size_t turn = 0;
    for (size_t i = 0; i < COUNT_OF(widths); i++)
        for (size_t j = 0; j < COUNT_OF(lengths); j++, turn++) {
            struct ref_attention a = attention_case_causal(2, lengths[j], 6, groups[turn % 3], widths[i]);
            a.causal = turn % 4 != 3;
            attention_case_check(&a, turn % 5 != 4);
        }
}

static void test_odd_widths(void **state)
{
    (void)state;
    const int64_t widths[] = {1, 3, 17, 33, 66, 100};
    for (size_t i = 0; i < COUNT_OF(widths); i++) {
        struct ref_attention a = attention_case_causal(2, 70, 4, 2, widths[i]);
        attention_case_check(&a, 1);
    }
}

static void test_masks(void **state)
{
    (void)state;
    const int64_t lengths[][2] = {{130, 130}, {65, 200}, {150, 40}, {1, 77}, {200, 200}};
    const int64_t windows[][2] = {{-1, -1}, {0, -1}, {17, -1}, {64, 3}, {-1, 0}, {5, 70}};
    int32_t *seg_q = test_alloc(2 * 200, sizeof *seg_q), *seg_k = test_alloc(2 * 200, sizeof *seg_k);
    for (size_t l = 0; l < COUNT_OF(lengths); l++)
        for (size_t w = 0; w < COUNT_OF(windows); w++)
            for (int kind = 0; kind < 6; kind++) { /* causal or not, with and without offset, with and without documents */
                struct ref_attention a = attention_case_causal(2, lengths[l][0], 6, 3, 20);
                a.S = lengths[l][1];
                a.causal = kind % 2;
                a.window_left = windows[w][0];
                a.window_right = windows[w][1];
                a.q_offset = kind == 2 || kind == 3 ? a.S - a.T : kind == 5 ? 9 : 0;
                if (kind >= 3) {
                    random_segments(seg_q, a.B, a.T, w < 3 ? 90 : 20, 7 * l + w);
                    random_segments(seg_k, a.B, a.S, w < 3 ? 90 : 20, 7 * l + (a.T == a.S ? w : w + 1));
                    a.seg_q = seg_q;
                    a.seg_k = seg_k;
                }
                attention_case_check(&a, (int)(w % 2));
            }
    free(seg_q);
    free(seg_k);
}

/* Long enough for several tiles of every size, and for work to be split within one group. */
static void test_long(void **state)
{
    (void)state;
    struct ref_attention a = attention_case_causal(1, 700, 3, 1, 16);
    attention_case_check(&a, 1);
    a = attention_case_causal(1, 517, 2, 2, 64);
    attention_case_check(&a, 1);
    a.causal = 0;
    attention_case_check(&a, 1);
    a = attention_case_causal(1, 600, 4, 2, 32);
    a.window_left = 150;
    attention_case_check(&a, 1);
    int32_t ids[600];
    random_segments(ids, 1, 600, 250, 3);
    a.window_left = -1;
    a.seg_q = a.seg_k = ids;
    attention_case_check(&a, 1);
}

static void test_rows_without_keys(void **state)
{
    (void)state;
    struct ref_attention a = attention_case_causal(2, 90, 6, 3, 20);
    a.q_offset = -70; /* the first 70 queries are before every key */
    attention_case_check(&a, 1);
    a.q_offset = 500; /* all keys lie left of every window */
    a.window_left = 30;
    attention_case_check(&a, 1);
    struct attention_case p;
    attention_case_open(&p, &a, 1);
    attention_case_fwd(&p);
    attention_case_bwd(&p);
    for (int64_t i = 0; i < a.B * a.T * (a.H * a.D + GUARD); i++)
        assert_true(i % (a.H * a.D + GUARD) >= a.H * a.D || p.o_rows[i] == 0);
    for (int64_t i = 0; i < a.B * a.H * a.T; i++)
        assert_true(p.lse[i] == -INFINITY);
    attention_case_close(&p);
}

/* Scores far apart and far from zero: what the running maximum is for. */
static void test_large_scores(void **state)
{
    (void)state;
    struct ref_attention a = attention_case_causal(1, 200, 2, 1, 32);
    a.scale = 8;
    struct attention_case p;
    attention_case_open(&p, &a, 1);
    attention_case_fwd(&p);
    attention_case_bwd(&p);
    float *flat = test_alloc(view_count(p.vo), sizeof *flat);
    attention_view_get(flat, p.vo);
    /* A score is a few hundred here, so a probability keeps about 5 digits. */
    assert_f32("o", flat, p.o, view_count(p.vo), 0, 1e-3);
    attention_view_get(flat, p.vdq);
    assert_f32("dq", flat, p.dq, view_count(p.vdq), 0, 1e-3 * attention_largest(p.dq, view_count(p.vdq)));
    free(flat);
    attention_case_close(&p);
}

/* A model reserves scratch once, for its largest pass; a pass with fewer or shorter sequences must fit in it. */
static void test_scratch_only_grows(void **state)
{
    (void)state;
    struct device *dev = NULL;
    struct device_options options = {.threads = 4};
    assert_ok(cpu_device_open(&dev, &options));
    static const int64_t G[] = {1, 2, 3, 8}, T[] = {1, 64, 200, 511, 512, 513, 767, 768, 1000, 1023, 1024, 2047, 2048, 3000, 4096, 9000};
    for (size_t g = 0; g < COUNT_OF(G); g++)
        for (int64_t B = 1; B <= 9; B++)
            for (size_t t = 0; t < COUNT_OF(T); t++) {
                size_t bytes = cpu_attention_scratch(dev, B, T[t], T[t], 24, G[g], 40, 1);
                if (B > 1)
                    assert_true(bytes >= cpu_attention_scratch(dev, B - 1, T[t], T[t], 24, G[g], 40, 1));
                if (t > 0)
                    assert_true(bytes >= cpu_attention_scratch(dev, B, T[t - 1], T[t - 1], 24, G[g], 40, 1));
            }
    cpu_device_close(dev);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_oracle_gradients_are_finite_differences),
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_odd_widths),
        cmocka_unit_test(test_masks),
        cmocka_unit_test(test_long),
        cmocka_unit_test(test_rows_without_keys),
        cmocka_unit_test(test_large_scores),
        cmocka_unit_test(test_attention_every_isa),
        cmocka_unit_test(test_scratch_only_grows),
    };
    return attention_case_main(argc, argv, tests, COUNT_OF(tests));
}
