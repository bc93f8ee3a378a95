/* Rotary frequencies of every kind against values worked out from the published formulas by a separate script. */
#include <math.h>

#include "harness.h"
#include "model/parts.h"

struct expected { int64_t i; double f; };

static void check(const struct arch *a, int64_t length, const struct expected *e, size_t n, double attention_factor)
{
    struct rope_frequencies *f = rope_frequencies(a, length);
    assert_non_null(f);
    for (size_t k = 0; k < n; k++)
        if (!(fabs(f->inverse[e[k].i] - e[k].f) <= 1e-14 * e[k].f)) {
            print_error("pair %lld: got %.17g, want %.17g\n", (long long)e[k].i, f->inverse[e[k].i], e[k].f);
            assert_true(0);
        }
    assert_true(fabs(f->attention_factor - attention_factor) <= 1e-15);
    free(f);
}

static struct arch rope_arch(int64_t dims, double theta, enum rope_kind kind, double factor)
{
    struct arch a;
    memset(&a, 0, sizeof a);
    a.pos = POS_ROPE;
    a.rope.dims = dims;
    a.rope.theta = theta;
    a.rope.kind = kind;
    a.rope.factor = factor;
    return a;
}

static void test_default_and_linear(void **state)
{
    (void)state;
    static const struct expected plain[] = {{0, 1.0}, {32, 0.01}}, linear[] = {{0, 0.25}, {32, 0.0025}};
    struct arch a = rope_arch(128, 10000.0, ROPE_DEFAULT, 0.0);
    a.max_positions = 4096;
    check(&a, 4096, plain, COUNT_OF(plain), 1.0);
    a.rope.kind = ROPE_LINEAR;
    a.rope.factor = 4.0;
    check(&a, 4096, linear, COUNT_OF(linear), 1.0);
}

static void test_dynamic(void **state)
{
    (void)state;
    static const struct expected longer[] = {{0, 1.0}, {1, 0.83962574256431133}, {32, 0.0037217213402149121}, {63, 1.649688549556369e-05}}, within[] = {{0, 1.0}, {1, 0.86596432336006535}, {32, 0.01}, {63, 0.00011547819846894582}};
    struct arch a = rope_arch(128, 10000.0, ROPE_DYNAMIC, 2.0);
    a.max_positions = 2048;
    check(&a, 8192, longer, COUNT_OF(longer), 1.0);
    check(&a, 1024, within, COUNT_OF(within), 1.0);
}

static void test_llama3(void **state)
{
    (void)state;
    static const struct expected e[] = {{0, 1.0}, {20, 0.016560440080994446}, {28, 0.0032114459947525913}, {30, 0.0013718935677611381},
                                        {32, 0.00052484616099295468}, {36, 7.7846552739324498e-05}, {63, 3.0689259889145111e-07}};
    struct arch a = rope_arch(128, 500000.0, ROPE_LLAMA3, 8.0);
    a.max_positions = 131072;
    a.rope.original_max_positions = 8192;
    a.rope.low_freq_factor = 1.0;
    a.rope.high_freq_factor = 4.0;
    check(&a, 131072, e, COUNT_OF(e), 1.0);
}

static void test_yarn(void **state)
{
    (void)state;
    static const struct expected e[] = {{0, 1.0}, {16, 0.1}, {24, 0.02797399468610489}, {32, 0.0065384615384615381}, {40, 0.0013378867023789293},
                                        {47, 0.00028869549617236453}, {63, 2.8869549617236455e-05}};
    struct arch a = rope_arch(128, 10000.0, ROPE_YARN, 4.0);
    a.max_positions = 16384;
    a.rope.original_max_positions = 4096;
    check(&a, 16384, e, COUNT_OF(e), 1.1386294361119891);
    a.rope.attention_factor = 1.5;
    check(&a, 16384, e, COUNT_OF(e), 1.5);
}

static void test_longrope(void **state)
{
    (void)state;
    static const struct expected stretched[] = {{3, 0.3748942167935661}}, near[] = {{3, 0.44987306015227924}};
    double long_factor[48], short_factor[48];
    struct arch a = rope_arch(96, 10000.0, ROPE_LONGROPE, 0.0);
    for (int i = 0; i < 48; i++) {
        long_factor[i] = 1.5;
        short_factor[i] = 1.25;
    }
    a.max_positions = 131072;
    a.rope.original_max_positions = 4096;
    a.rope.long_factor = long_factor;
    a.rope.short_factor = short_factor;
    check(&a, 8192, stretched, 1, 1.1902380714238083);
    check(&a, 4096, near, 1, 1.1902380714238083);
}

static void test_tables(void **state)
{
    (void)state;
    struct arch a = rope_arch(6, 100.0, ROPE_YARN, 2.0);
    float c[5 * 3], s[5 * 3];
    a.max_positions = 32;
    a.rope.original_max_positions = 16;
    assert_ok(rope_tables_fill(&a, 5, c, s));
    struct rope_frequencies *f = rope_frequencies(&a, 5);
    for (int p = 0; p < 5; p++)
        for (int i = 0; i < 3; i++) {
            double angle = p * f->inverse[i];
            assert_true(fabs((double)c[p * 3 + i] - cos(angle) * f->attention_factor) <= 1e-7);
            assert_true(fabs((double)s[p * 3 + i] - sin(angle) * f->attention_factor) <= 1e-7);
        }
    free(f);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_default_and_linear), cmocka_unit_test(test_dynamic), cmocka_unit_test(test_llama3),
        cmocka_unit_test(test_yarn), cmocka_unit_test(test_longrope), cmocka_unit_test(test_tables),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
