/* Philox against its published vectors, permutations, normals. */
#include <math.h>

#include "harness.h"

static void test_philox_known_answers(void **state)
{
    (void)state;
    static const struct { uint64_t seed, stream, step, index; uint32_t want[4]; } known[] = {
        {0, 0, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {UINT64_MAX, 0xffffffff, 0xffffffff, UINT64_MAX, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {0x299f31d0a4093822, 0x03707344, 0x13198a2e, 0x85a308d3243f6a88, {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < COUNT_OF(known); i++) {
        struct random_u32x4 r = random_philox(known[i].seed, known[i].stream, known[i].step, known[i].index);
        assert_memory_equal(r.v, known[i].want, sizeof r.v);
    }
}

/* Every bit of every argument changes the value. */
static void test_philox_uses_all_arguments(void **state)
{
    (void)state;
    uint32_t seen[256];
    for (int bit = 0; bit < 256; bit++) {
        uint64_t a[4] = {0, 0, 0, 0};
        a[bit / 64] = (uint64_t)1 << (bit % 64);
        seen[bit] = random_philox(a[0], a[1], a[2], a[3]).v[0];
        for (int j = 0; j < bit; j++)
            assert_int_not_equal(seen[bit], seen[j]);
    }
}

static void test_permutations_are_bijective(void **state)
{
    (void)state;
    static const int64_t sizes[] = {1, 2, 3, 4, 5, 7, 16, 17, 64, 65, 1000, 4097};
    static unsigned char seen[4097];
    for (size_t k = 0; k < COUNT_OF(sizes); k++)
        for (uint64_t epoch = 0; epoch < 3; epoch++) {
            memset(seen, 0, sizeof seen);
            for (int64_t i = 0; i < sizes[k]; i++) {
                int64_t j = random_permute(7, epoch, sizes[k], i);
                assert_in_range(j, 0, sizes[k] - 1);
                assert_int_equal(seen[j]++, 0);
            }
        }
    int64_t fixed = 0, same = 0;
    for (int64_t i = 0; i < 1000; i++) {
        fixed += random_permute(7, 0, 1000, i) == i;
        same += random_permute(7, 0, 1000, i) == random_permute(7, 1, 1000, i);
    }
    assert_true(fixed < 20 && same < 20);
    int64_t far = random_permute(1, 1, INT64_MAX, INT64_MAX - 1);
    assert_true(far >= 0 && far < INT64_MAX);
}

static void test_normals_do_not_depend_on_the_split(void **state)
{
    (void)state;
    enum { N = 40001 };
    float *whole = malloc(N * sizeof *whole), *parts = malloc(N * sizeof *parts);
    fill_nan(whole, N);
    fill_nan(parts, N);
    random_normal_f32(whole, N, 0, 2.0f, 3, 4, 5);
    for (int64_t at = 0; at < N;) {
        int64_t n = 1 + at % 13;
        n = n < N - at ? n : N - at;
        random_normal_f32(parts + at, n, at, 2.0f, 3, 4, 5);
        at += n;
    }
    assert_memory_equal(whole, parts, N * sizeof *whole);
    double sum = 0.0, square = 0.0, fourth = 0.0;
    for (int i = 0; i < N; i++) {
        double x = (double)whole[i] / 2.0;
        sum += x;
        square += x * x;
        fourth += x * x * x * x;
    }
    assert_true(fabs(sum / N) < 0.02 && fabs(square / N - 1.0) < 0.03 && fabs(fourth / N - 3.0) < 0.25);
    free(whole);
    free(parts);
}

static void test_uniform_range_and_streams(void **state)
{
    (void)state;
    double sum = 0.0;
    for (uint64_t i = 0; i < 10000; i++) {
        double u = random_uniform(1, STREAM_TEST, 0, i);
        assert_true(u >= 0.0 && u < 1.0);
        sum += u;
    }
    assert_true(fabs(sum / 10000 - 0.5) < 0.02);
    assert_true(random_stream_of("dec.0.attn.q.w") != random_stream_of("dec.1.attn.q.w"));
    assert_true(random_stream_of("dec.0.attn.q.w") >= STREAM_INIT);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox_known_answers),       cmocka_unit_test(test_philox_uses_all_arguments),
        cmocka_unit_test(test_permutations_are_bijective), cmocka_unit_test(test_normals_do_not_depend_on_the_split),
        cmocka_unit_test(test_uniform_range_and_streams),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
