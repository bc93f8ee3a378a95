/* ALiBi (Press et al. 2022) in the CPU's attention, forward and backward: against the double oracle with every mask, and what must
 * hold to the bit. */
#include <math.h>

#include "attention_case.h"

/* No two heads alike, so that a group's heads cannot be taken for one another; steep ones, and one that is none. */
static const float slopes6[6] = {0.5f, 0.03125f, 0.70710678f, 0, 0.125f, 0.0078125f}, gentle6[6] = {0.06f, 0.004f, -0.09f, 0, 0.015f, 0.001f};

static void documents(int32_t *ids, int64_t B, int64_t T, int64_t longest)
{
    for (int64_t b = 0; b < B; b++)
        for (int64_t t = 0; t < T; t++)
            ids[b * T + t] = (int32_t)((t + 5 * b) / longest);
}

static void test_shapes(void **state)
{
    (void)state;
    const int64_t widths[] = {1, 4, 20, 33, 64, 128}, lengths[] = {1, 2, 63, 65, 131}, groups[] = {3, 1, 6};
    size_t turn = 0;
    for (size_t i = 0; i < COUNT_OF(widths); i++)
        for (size_t j = 0; j < COUNT_OF(lengths); j++, turn++) {
            struct ref_attention a = attention_case_causal(2, lengths[j], 6, groups[turn % 3], widths[i]);
            a.slopes = slopes6;
            attention_case_check(&a, turn % 5 != 4);
        }
}

/* Offsets, windows and documents; S other than T; keys on both sides, which the formula gives both signs. */
static void test_masks(void **state)
{
    (void)state;
    const int64_t lengths[][2] = {{131, 131}, {65, 199}, {1, 77}, {149, 41}}, windows[][2] = {{-1, -1}, {17, -1}, {64, 3}};
    int32_t *seg_q = test_alloc(2 * 200, sizeof *seg_q), *seg_k = test_alloc(2 * 200, sizeof *seg_k);
    for (size_t l = 0; l < COUNT_OF(lengths); l++)
        for (size_t w = 0; w < COUNT_OF(windows); w++)
            for (int kind = 0; kind < 8; kind++) { /* causal, with an offset, with documents: each or not */
                struct ref_attention a = attention_case_causal(2, lengths[l][0], 6, (l + w) % 2 ? 1 : 3, 20);
                a.S = lengths[l][1];
                a.causal = kind % 2;
                a.window_left = windows[w][0];
                a.window_right = windows[w][1];
                a.q_offset = kind & 2 ? (a.S > a.T ? a.S - a.T : 9) : 0;
                /* Without causality a far key on the right has a score of slope * distance, of which f32 keeps 7 digits. */
                a.slopes = a.causal ? slopes6 : gentle6;
                if (kind & 4) {
                    documents(seg_q, a.B, a.T, 37);
                    documents(seg_k, a.B, a.S, 37);
                    a.seg_q = seg_q;
                    a.seg_k = seg_k;
                }
                attention_case_check(&a, (int)(w % 2));
            }
    free(seg_q);
    free(seg_k);
}

/* Several tiles of rows and keys, and ranges of rows within one group. */
static void test_long(void **state)
{
    (void)state;
    struct ref_attention a = attention_case_causal(1, 701, 6, 1, 16);
    a.slopes = slopes6;
    attention_case_check(&a, 1);
    a = attention_case_causal(1, 517, 6, 3, 32);
    a.slopes = slopes6;
    a.window_left = 150;
    attention_case_check(&a, 1);
}

struct outputs { float *o, *lse, *dq, *dkv; size_t n_o, n_lse, n_q, n_kv; };

static struct outputs run(const struct ref_attention *a)
{
    struct attention_case p;
    attention_case_open(&p, a, 0);
    attention_case_fwd(&p);
    attention_case_bwd(&p);
    struct outputs r = {.n_o = (size_t)(a->B * a->T * p.vo.s[1]) * 4, .n_lse = (size_t)(a->B * a->H * a->T) * 4, .n_q = (size_t)view_count(p.vdq) * 4,
                        .n_kv = 2 * (size_t)view_count(p.vdk) * 4};
    r.o = memcpy(test_alloc((int64_t)r.n_o, 1), p.o_rows, r.n_o);
    r.lse = memcpy(test_alloc((int64_t)r.n_lse, 1), p.lse, r.n_lse);
    r.dq = memcpy(test_alloc((int64_t)r.n_q, 1), p.drows_q, r.n_q);
    r.dkv = memcpy(test_alloc((int64_t)r.n_kv, 1), p.drows_kv, r.n_kv);
    attention_case_close(&p);
    return r;
}

static void outputs_free(struct outputs *r) { free(r->o), free(r->lse), free(r->dq), free(r->dkv); }

static void assert_same_bits(struct outputs x, struct outputs y)
{
    assert_memory_equal(x.o, y.o, x.n_o);
    assert_memory_equal(x.lse, y.lse, x.n_lse);
    assert_memory_equal(x.dq, y.dq, x.n_q);
    assert_memory_equal(x.dkv, y.dkv, x.n_kv);
}

static void test_slope_0_is_none(void **state)
{
    (void)state;
    static const float none[6] = {0, -0.0f, 0, 0, 0, 0};
    for (int64_t G = 1; G <= 3; G += 2) {
        struct ref_attention a = attention_case_causal(2, 133, 6, G, 20);
        a.window_left = G == 1 ? 50 : -1;
        struct outputs plain = run(&a);
        a.slopes = none;
        struct outputs zero = run(&a);
        assert_same_bits(plain, zero);
        outputs_free(&plain);
        outputs_free(&zero);
    }
}

/* A query and its keys moved by the same number of positions: ALiBi sees only their distance. */
static void test_only_distance_counts(void **state)
{
    (void)state;
    const int64_t T = 66, moved = 67;
    struct ref_attention a = attention_case_causal(1, T, 6, 3, 20), b;
    a.slopes = slopes6;
    b = a;
    b.S = T + moved;
    b.q_offset = moved;
    b.window_left = 40; /* keys before `moved` - 40 are out of sight, and the others zero */
    a.window_left = 40;
    struct attention_case p, q;
    attention_case_open(&p, &a, 0);
    attention_case_open(&q, &b, 0);
    int32_t *seg_q = test_alloc(T, 4), *seg_k = test_alloc(b.S, 4);
    for (int64_t s = 0; s < b.S; s++)
        seg_k[s] = s >= moved;
    for (int64_t t = 0; t < T; t++)
        seg_q[t] = 1;
    q.args.mask.seg_q = view_2d(seg_q, DT_I32, 1, T);
    q.args.mask.seg_k = view_2d(seg_k, DT_I32, 1, b.S);
    for (int64_t i = 0; i < T * a.G * a.D; i++) {
        view_f32(q.vk)[moved * a.G * a.D + i] = view_f32(p.vk)[i];
        view_f32(q.vv)[moved * a.G * a.D + i] = view_f32(p.vv)[i];
    }
    attention_case_fwd(&p);
    attention_case_fwd(&q);
    float *one = test_alloc(view_count(p.vo), 4), *two = test_alloc(view_count(p.vo), 4);
    double *want = test_alloc(view_count(p.vo), 8);
    attention_view_get(one, p.vo);
    attention_view_get(two, q.vo);
    for (int64_t i = 0; i < view_count(p.vo); i++)
        want[i] = (double)two[i];
    assert_f32("o", one, want, view_count(p.vo), 2e-6, 2e-6);
    free(one), free(two), free(want), free(seg_q), free(seg_k);
    attention_case_close(&p);
    attention_case_close(&q);
}

static void test_same_bits_for_every_team(void **state)
{
    (void)state;
    struct device *all = attention_device;
    struct ref_attention a = attention_case_causal(1, 600, 6, 3, 16);
    a.slopes = slopes6;
    struct outputs first = {0};
    for (int threads = 1; threads <= 3; threads++) {
        assert_ok(cpu_device_open(&attention_device, &(struct device_options){.threads = threads}));
        struct outputs now = run(&a);
        if (threads == 1)
            first = now;
        else {
            assert_same_bits(first, now);
            outputs_free(&now);
        }
        cpu_device_close(attention_device);
    }
    outputs_free(&first);
    attention_device = all;
}

static void test_refusals(void **state)
{
    (void)state;
    struct ref_attention a = attention_case_causal(2, 5, 6, 3, 8);
    struct attention_case p;
    attention_case_open(&p, &a, 1);
    float floats[16] = {0};
    struct view bad[3] = {view_1d(floats, DT_F32, 3), view_1d(floats, DT_BF16, 6), view_1d(floats, DT_F32, 6)};
    bad[2].s[0] = 2;
    const char *const why[3] = {"ALiBi slopes", "ALiBi slopes is bf16", "ALiBi slopes has stride 2"};
    for (int i = 0; i < 3; i++) {
        p.args.mask.alibi_slopes = bad[i];
        assert_refused(cpu_attention_fwd(attention_device, p.vo, p.vlse, p.vq, p.vk, p.vv, &p.args, p.scratch), ERR_UNSUPPORTED, why[i]);
        assert_refused(cpu_attention_bwd(attention_device, p.vdq, p.vdk, p.vdv, p.vdout, p.vo, p.vlse, p.vq, p.vk, p.vv, &p.args, p.scratch),
                       ERR_UNSUPPORTED, why[i]);
    }
    attention_case_close(&p);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes),          cmocka_unit_test(test_masks),
        cmocka_unit_test(test_long),            cmocka_unit_test(test_slope_0_is_none),
        cmocka_unit_test(test_only_distance_counts), cmocka_unit_test(test_same_bits_for_every_team),
        cmocka_unit_test(test_refusals),        cmocka_unit_test(test_attention_every_isa),
    };
    return attention_case_main(argc, argv, tests, COUNT_OF(tests));
}
