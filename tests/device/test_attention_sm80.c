/* bf16 attention with mma.sync, as on an A100: every case forward and backward, dQ by addition and in deterministic mode. */
#include "attention_device_case.h"

#include <math.h>

#define CAUSAL .causal = 1, .window_left = -1, .window_right = -1

static int open_80(void **state)
{
    (void)state;
    assert_true(case_arch(80));
    return 0;
}

/* 99 KB of shared memory per block: narrower tiles of heads of 128 and 256 (executor; a GPU with more takes its usual ones). */
static void test_less_shared_memory(void **state)
{
    (void)state;
    if (!case_arch(86)) {
        printf("sm_86 is not done: this GPU is older\n");
        return;
    }
    const struct attention_device_case cases[] = {
        {"99 KB", 1, 129, 129, 2, 1, 128, CAUSAL, .strided = 1, .sharp = 1},
        {"99 KB", 2, 33, 45, 6, 3, 128, .causal = 0, .q_offset = 3, .window_left = 20, .window_right = 5},
        {"99 KB, documents", 1, 140, 140, 2, 1, 128, CAUSAL, .documents = 3, .boundary = 64},
        {"99 KB", 1, 80, 80, 4, 2, 256, CAUSAL, .strided = 1, .sharp = 1},
        {"99 KB", 1, 70, 70, 2, 1, 96, CAUSAL},
        {"99 KB", 1, 70, 70, 2, 1, 64, CAUSAL},
        {"99 KB, alibi", 1, 71, 71, 6, 3, 128, CAUSAL, .alibi = 1},
        {"99 KB, alibi", 1, 71, 71, 4, 2, 256, CAUSAL, .alibi = 2},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        for (int deterministic = 0; deterministic < 2; deterministic++)
            attention_device_check(&cases[i], DT_BF16, deterministic, ATTENTION_FWD | ATTENTION_BWD);
}

static void test_every_case(void **state)
{
    (void)state;
    attention_device_check_all(DT_BF16, 0, ATTENTION_FWD | ATTENTION_BWD, 1, 256);
}

/* dK and dV come from the same kernel without its dQ product, dQ from its own kernel: one case of each width and kind of mask. */
static void test_deterministic(void **state)
{
    (void)state;
    const struct attention_device_case cases[] = {
        {"deterministic", 2, 33, 33, 6, 3, 40, CAUSAL, .strided = 1},
        {"deterministic", 1, 129, 129, 2, 1, 64, CAUSAL, .documents = 3, .boundary = 64},
        {"deterministic", 1, 90, 80, 2, 1, 96, .causal = 0, .q_offset = -4, .window_left = 5, .window_right = 9},
        {"deterministic", 1, 70, 110, 3, 1, 128, CAUSAL, .q_offset = 40, .sharp = 1},
        {"deterministic", 1, 70, 70, 2, 2, 256, .causal = 1, .window_left = 20, .window_right = -1},
        {"deterministic, alibi", 1, 71, 71, 6, 3, 64, CAUSAL, .alibi = 1, .strided = 1},
        {"deterministic, alibi", 1, 71, 71, 6, 3, 80, .causal = 1, .window_left = 40, .window_right = -1, .alibi = 2},
        {"deterministic, alibi", 1, 71, 111, 3, 1, 128, CAUSAL, .q_offset = 40, .alibi = 2},
        {"deterministic, alibi", 1, 71, 71, 2, 1, 256, CAUSAL, .documents = 2, .boundary = 30, .alibi = 1},
        {"deterministic, rows seeing nothing", 1, 80, 73, 6, 3, 64, CAUSAL, .q_offset = -40},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        attention_device_check(&cases[i], DT_BF16, 1, ATTENTION_FWD | ATTENTION_BWD);
}

/* On the reference's O and lse, so that a mistake shared by both passes shows. */
static void test_backward_alone(void **state)
{
    (void)state;
    const struct attention_device_case c = {"backward alone",  1, 70, 90, 6, 3, 80, .causal = 1, .q_offset = 15, .window_left = 60,
                                            .window_right = -1};
    attention_device_check(&c, DT_BF16, 0, ATTENTION_BWD);
    attention_device_check(&c, DT_BF16, 1, ATTENTION_BWD);
}

static void test_repeat(void **state)
{
    (void)state;
    const struct attention_device_case c = {"repeat", 1, 130, 130, 4, 1, 64, CAUSAL};
    attention_device_check_repeat(&c, DT_BF16);
}

/* The largest score is the smallest product when the scale is negative, and there is none when it is 0. */
static void test_any_scale(void **state)
{
    (void)state;
    enum { T = 70, D = 40 };
    static const double scales[] = {-0.3, 0, 1e-30, 2};
    double *q = calloc(4 * T * D, sizeof *q), *k = q + T * D, *v = k + T * D, *o = v + T * D;
    double *got = calloc(T * D, sizeof *got), lse[T], lse_got[T];
    assert_non_null(q);
    assert_non_null(got);
    for (int i = 0; i < 3 * T * D; i++)
        q[i] = sin(0.7 * i) + (i % 11 == 0 ? 2 : 0);
    for (size_t i = 0; i < 2 * COUNT_OF(scales); i++) {
        const size_t n = i / 2;
        const float slope = 0.125f; /* every other time, ALiBi */
        struct attention_args args = {.mask = attention_mask_causal(), .scale = (float)scales[n]};
        const struct ref_attention a = {1, T, T, 1, 1, D, (double)args.scale, 1, 0, -1, -1, NULL, NULL, i % 2 ? &slope : NULL};
        if (i % 2)
            args.mask.alibi_slopes = case_upload((double[]){0.125}, DT_F32, 1, (int64_t[]){1});
        const int64_t shape[] = {1, T, 1, D};
        struct view vq = case_upload(q, DT_BF16, 4, shape), vk = case_upload(k, DT_BF16, 4, shape), vv = case_upload(v, DT_BF16, 4, shape);
        struct view vo = case_output(DT_BF16, 4, shape), vlse = case_output(DT_F32, 3, (int64_t[]){1, 1, T});
        ref_attention_fwd(&a, o, lse, q, k, v);
        assert_int_equal(case_backend()->attention_fwd(case_device(), vo, vlse, vq, vk, vv, &args, case_bytes(256)), OK);
        case_download(got, vo);
        case_download(lse_got, vlse);
        case_expect_near("o", got, o, T * D, 0.01, 0.01);
        case_expect_near("lse", lse_got, lse, T, 1e-4, 1e-5);
        case_free();
    }
    free(q);
    free(got);
    assert_int_equal(case_faults(), 0);
}

/* A tile whose last key, or first key or row, is the one that makes it need the mask. */
static void test_tile_edges(void **state)
{
    (void)state;
    const struct attention_device_case cases[] = {
        {"one past the diagonal", 1, 130, 192, 1, 1, 64, CAUSAL, .q_offset = 62},
        {"one past the diagonal", 1, 68, 130, 1, 1, 128, CAUSAL, .q_offset = 46},
        {"one before the window", 1, 2, 110, 2, 1, 64, .causal = 1, .q_offset = 100, .window_left = 70, .window_right = -1},
        {"one after the window", 1, 66, 140, 1, 1, 64, .causal = 0, .window_left = -1, .window_right = 62},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        for (int deterministic = 0; deterministic < 2; deterministic++)
            attention_device_check(&cases[i], DT_BF16, deterministic, ATTENTION_FWD | ATTENTION_BWD);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_every_case, open_80),
        cmocka_unit_test_setup(test_deterministic, open_80),
        cmocka_unit_test_setup(test_backward_alone, open_80),
        cmocka_unit_test_setup(test_repeat, open_80),
        cmocka_unit_test_setup(test_tile_edges, open_80),
        cmocka_unit_test_setup(test_any_scale, open_80),
        cmocka_unit_test(test_less_shared_memory),
    };
    return case_main(argc, argv, tests, COUNT_OF(tests));
}
