/* Must fail: shows that a NaN does fail a comparison and that a failing test is counted as one. */
#include <math.h>

#include "harness.h"

static void test_canary_nan_is_not_one(void **state)
{
    (void)state;
    float got[2] = {1.0f, NAN};
    double want[2] = {1.0, 1.0};
    assert_f32("canary", got, want, 2, 1e30, 1e30);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_canary_nan_is_not_one)};
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
