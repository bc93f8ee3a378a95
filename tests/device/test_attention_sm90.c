/* bf16 attention on Hopper: wgmma, TMA, pipelines of two stages. The short list has tiles of every kind; the cases here are long enough for the
 * pipelines to come round, and for a block to work on several tiles. */
#include "attention_device_case.h"

#define CAUSAL .causal = 1, .window_left = -1, .window_right = -1
#define FULL .causal = 0, .window_left = -1, .window_right = -1

static int open_sm90(void **state)
{
    (void)state;
    if (case_arch(90))
        return 0;
    print_message("skipped: the device is not of generation 90\n");
    skip();
    return 0;
}

static void forward(int D_min, int D_max) { attention_device_check_all(DT_BF16, 0, ATTENTION_FWD, D_min, D_max); }
static void test_forward_64(void **state) { open_sm90(state), forward(1, 64); }
static void test_forward_96(void **state) { open_sm90(state), forward(65, 96); }
static void test_forward_128(void **state) { open_sm90(state), forward(97, 128); }
static void test_forward_256(void **state) { open_sm90(state), forward(129, 256); }

/* More than two stages of keys: every barrier completes several phases. */
static void test_forward_long(void **state)
{
    const struct attention_device_case cases[] = {
        {"seven key tiles", 1, 70, 870, 1, 1, 64, FULL, .sharp = 1},
        {"six key tiles", 1, 40, 700, 2, 1, 128, CAUSAL, .q_offset = 660, .strided = 1},
        {"five key tiles, wide", 1, 33, 850, 1, 1, 128, FULL},
        {"six key tiles", 1, 130, 460, 1, 1, 256, CAUSAL, .q_offset = 330},
        {"five key tiles", 1, 66, 600, 1, 1, 96, .causal = 1, .q_offset = 534, .window_left = 400, .window_right = -1},
        {"many documents", 1, 400, 400, 1, 1, 64, CAUSAL, .documents = 9, .boundary = 200},
        {"more tiles than blocks", 3, 20, 400, 4, 4, 64, FULL},
        {"more tiles than blocks", 5, 33, 300, 2, 2, 128, CAUSAL, .q_offset = 270, .strided = 1},
        {"four heads in a tile", 2, 50, 180, 8, 2, 128, CAUSAL, .q_offset = 130, .strided = 1},
        {"eight heads in a tile", 1, 30, 170, 8, 1, 64, .causal = 1, .q_offset = 140, .window_left = 60, .window_right = -1, .strided = 1},
        {"two heads in a tile", 2, 75, 75, 4, 2, 96, CAUSAL, .documents = 3, .boundary = 30},
        {"alibi, eight heads in a tile", 1, 31, 171, 8, 1, 64, CAUSAL, .q_offset = 140, .alibi = 2, .strided = 1},
        {"alibi, sixteen heads in a tile", 2, 7, 75, 16, 1, 64, CAUSAL, .q_offset = 68, .alibi = 1},
        {"alibi, five key tiles", 1, 33, 603, 4, 2, 128, CAUSAL, .q_offset = 570, .alibi = 1},
        {"alibi, six key tiles", 1, 131, 461, 1, 1, 256, CAUSAL, .q_offset = 330, .alibi = 1},
        {"heads in tiles of their own", 2, 75, 75, 6, 2, 96, CAUSAL, .documents = 3, .boundary = 30},
    };
    open_sm90(state);
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        attention_device_check(&cases[i], DT_BF16, 0, ATTENTION_FWD);
}

static void backward(int D_min, int D_max)
{
    attention_device_check_all(DT_BF16, 0, ATTENTION_BWD, D_min, D_max);
    attention_device_check_all(DT_BF16, 1, ATTENTION_BWD, D_min, D_max);
}
static void test_backward_64(void **state) { open_sm90(state), backward(1, 64); }
static void test_backward_96(void **state) { open_sm90(state), backward(65, 96); }
static void test_backward_128(void **state) { open_sm90(state), backward(97, 128); }
static void test_backward_256(void **state) { open_sm90(state), backward(129, 256); }

/* More than two stages of queries, and of keys where dQ has a kernel of its own. */
static void test_backward_long(void **state)
{
    const struct attention_device_case cases[] = {
        {"five query tiles", 1, 600, 70, 1, 1, 64, FULL},
        {"two heads, two tiles of keys", 1, 200, 200, 2, 1, 128, CAUSAL, .strided = 1, .sharp = 1},
        {"five query tiles", 1, 300, 140, 2, 1, 96, FULL, .strided = 1},
        {"two heads, two tiles of keys", 1, 140, 100, 2, 1, 256, .causal = 1, .q_offset = -20, .window_left = 90, .window_right = -1},
        {"many documents", 1, 400, 400, 1, 1, 64, CAUSAL, .documents = 9, .boundary = 200},
        {"alibi, two heads, two tiles of keys", 1, 203, 203, 2, 1, 128, CAUSAL, .alibi = 2, .strided = 1},
    };
    open_sm90(state);
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        for (int deterministic = 0; deterministic < 2; deterministic++)
            attention_device_check(&cases[i], DT_BF16, deterministic, ATTENTION_FWD | ATTENTION_BWD);
}

static void test_backward_repeat(void **state)
{
    const struct attention_device_case c = {"repeat", 1, 130, 130, 4, 1, 128, CAUSAL};
    open_sm90(state);
    attention_device_check_repeat(&c, DT_BF16);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forward_64),  cmocka_unit_test(test_forward_96),   cmocka_unit_test(test_forward_128),
        cmocka_unit_test(test_forward_256), cmocka_unit_test(test_forward_long),
        cmocka_unit_test(test_backward_64), cmocka_unit_test(test_backward_96),  cmocka_unit_test(test_backward_128),
        cmocka_unit_test(test_backward_256), cmocka_unit_test(test_backward_long), cmocka_unit_test(test_backward_repeat),
    };
    return case_main(argc, argv, tests, COUNT_OF(tests));
}
