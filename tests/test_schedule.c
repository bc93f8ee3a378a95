/* Learning-rate schedules: their values at the corners, and that none leaves [0, 1] or jumps. */
#include <math.h>

#include "harness.h"

#include "uptrain/schedule.c"

#define near(a, b) assert_true(fabs((a) - (b)) <= 1e-12)

static void test_warmup_is_linear_for_all_kinds(void **state)
{
    (void)state;
    for (int kind = SCHEDULE_CONSTANT; kind <= SCHEDULE_INVERSE_SQRT; kind++) {
        struct schedule s = {(enum schedule_kind)kind, 100, 10, 10, 0.1};
        for (int64_t i = 1; i <= 10; i++)
            near(schedule_factor(&s, i), (double)i / 10.0);
    }
}

static void test_values(void **state)
{
    (void)state;
    struct schedule s = {SCHEDULE_CONSTANT, 100, 0, 0, 0.1};
    near(schedule_factor(&s, 1), 1.0);
    near(schedule_factor(&s, 100), 1.0);
    s.kind = SCHEDULE_LINEAR;
    near(schedule_factor(&s, 50), 1.0 - 0.9 * 0.5);
    near(schedule_factor(&s, 100), 0.1);
    s.kind = SCHEDULE_COSINE;
    near(schedule_factor(&s, 50), 0.55);
    near(schedule_factor(&s, 100), 0.1);
    s.warmup = 20;
    near(schedule_factor(&s, 20), 1.0);
    near(schedule_factor(&s, 60), 0.55);
    near(schedule_factor(&s, 40), 0.1 + 0.9 * 0.5 * (1.0 + cos(PI * 0.25)));
    s.kind = SCHEDULE_WSD;
    s.decay = 10;
    near(schedule_factor(&s, 90), 1.0);
    near(schedule_factor(&s, 95), 0.55);
    near(schedule_factor(&s, 100), 0.1);
    s.kind = SCHEDULE_INVERSE_SQRT;
    near(schedule_factor(&s, 80), 0.5);
    s.warmup = 0;
    near(schedule_factor(&s, 4), 0.5);
    near(schedule_factor(&s, 400), 0.1);
}

static void test_bounds_and_degenerate_runs(void **state)
{
    (void)state;
    for (int kind = SCHEDULE_CONSTANT; kind <= SCHEDULE_INVERSE_SQRT; kind++)
        for (int64_t n = 1; n <= 12; n++)
            for (int64_t w = 0; w <= n; w++)
                for (int64_t d = 0; d <= n; d++) {
                    struct schedule s = {(enum schedule_kind)kind, n, w, d, 0.25};
                    double before = 2.0;
                    for (int64_t i = 1; i <= n + 3; i++) {
                        double f = schedule_factor(&s, i);
                        assert_true(f > 0.0 && f <= 1.0);
                        if (i > w) {
                            assert_true(f >= 0.25 - 1e-12);
                            assert_true(f <= before); /* never rises after the warm-up */
                            before = f;
                        }
                    }
                }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_warmup_is_linear_for_all_kinds), cmocka_unit_test(test_values),
                                       cmocka_unit_test(test_bounds_and_degenerate_runs)};
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
