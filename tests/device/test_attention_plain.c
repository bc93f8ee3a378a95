/* f32 attention on a device: the plain kernels, which also serve as an oracle on a GPU. */
#include "attention_device_case.h"

static void test_every_case(void **state)
{
    (void)state;
    attention_device_check_all(DT_F32, 0, ATTENTION_FWD | ATTENTION_BWD, 1, 256);
}

/* Widths that bf16 does not do, rows on no 16-byte boundary. */
static void test_odd_widths(void **state)
{
    (void)state;
    const struct attention_device_case cases[] = {
        {"odd width", 2, 70, 70, 6, 3, 33, .causal = 1, .window_left = -1, .window_right = -1, .strided = 1},
        {"odd width", 1, 20, 31, 2, 1, 250, .causal = 0, .window_left = -1, .window_right = -1},
        {"alibi, odd width", 1, 70, 81, 6, 3, 33, .causal = 1, .q_offset = 11, .window_left = -1, .window_right = -1, .alibi = 2},
        {"width one", 1, 66, 66, 2, 1, 1, .causal = 1, .window_left = -1, .window_right = -1},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        attention_device_check(&cases[i], DT_F32, 0, ATTENTION_FWD | ATTENTION_BWD);
}

/* The backward on the reference's O and lse, so that a mistake shared by both passes shows. */
static void test_backward_alone(void **state)
{
    (void)state;
    const struct attention_device_case c = {"backward alone",  1, 70, 90, 6, 3, 80, .causal = 1, .q_offset = 15, .window_left = 60,
                                            .window_right = -1};
    attention_device_check(&c, DT_F32, 1, ATTENTION_BWD);
}

static void test_repeat(void **state)
{
    (void)state;
    const struct attention_device_case c = {"repeat", 1, 130, 130, 4, 1, 64, .causal = 1, .window_left = -1, .window_right = -1};
    attention_device_check_repeat(&c, DT_F32);
}

/* What the backend does not do is refused by a sentence, before anything is written. */
static void test_refusals(void **state)
{
    (void)state;
    const struct backend *be = case_backend();
    struct view q = case_output(DT_F32, 4, (int64_t[]){1, 4, 2, 264}), k = case_output(DT_F32, 4, (int64_t[]){1, 4, 2, 64});
    struct view lse = case_output(DT_F32, 3, (int64_t[]){1, 2, 4}), h = case_output(DT_BF16, 4, (int64_t[]){1, 4, 2, 60});
    struct attention_args args = {.mask = attention_mask_causal(), .scale = 1};
    assert_refused(be->attention_fwd(case_device(), q, lse, q, q, q, &args, NULL), ERR_UNSUPPORTED, "head width 264");
    assert_refused(be->attention_fwd(case_device(), h, lse, h, h, h, &args, NULL), ERR_UNSUPPORTED, "head width 60");
    assert_refused(be->attention_fwd(case_device(), k, lse, k, k, h, &args, NULL), ERR_UNSUPPORTED, "v is bf16");
    args.mask.alibi_slopes = view_1d(lse.p, DT_F32, 3);
    assert_refused(be->attention_fwd(case_device(), k, lse, k, k, k, &args, NULL), ERR_UNSUPPORTED, "axis 0 of alibi_slopes is 3, must be 2");
    args.mask.alibi_slopes = view_none();
    args.mask.rel_bias = lse;
    assert_refused(be->attention_fwd(case_device(), k, lse, k, k, k, &args, NULL), ERR_UNSUPPORTED, "biases");
    case_free();
    assert_int_equal(case_faults(), 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_case), cmocka_unit_test(test_odd_widths), cmocka_unit_test(test_backward_alone),
        cmocka_unit_test(test_repeat),     cmocka_unit_test(test_refusals),
    };
    return case_main(argc, argv, tests, COUNT_OF(tests));
}
