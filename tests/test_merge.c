/* The mathematics of merging on one layer, in double, against an attention by plain loops: every change of basis keeps the function,
 * heads that are one head in different bases merge without loss, errors are ordered, groupings are the best there are. */
#include <math.h>
#include <omp.h>

#include "harness.h"
#include "merge_case.h"

static const enum merge_method METHODS[] = {MERGE_MEAN, MERGE_FIRST, MERGE_RANDOM, MERGE_SELECT, MERGE_ALIGN, MERGE_SVD};

static int keys_are_free(enum merge_kind k) { return k != KIND_HEAD_GAINS && k != KIND_LAYER_NORM && k != KIND_FULL_NORM; }

static void uneven_gains(struct attention_layer *a, enum merge_kind kind)
{
    for (int64_t d = 0; kind == KIND_HEAD_GAINS && d < a->D; d++)
        a->q_norm[d] = 1 + 0.2 * (double)d;
}

static void make(struct arch *arch, struct attention_layer *a, enum merge_kind kind, int64_t H, int64_t G, uint64_t seed)
{
    merge_arch(arch, kind, H, G);
    random_layer(a, arch, seed);
    uneven_gains(a, kind);
}

static void changes_of_basis_keep_the_function(void **state)
{
    (void)state;
    for (int kind = 0; kind < KINDS; kind++) {
        struct arch arch;
        struct attention_layer a, b;
        make(&arch, &a, (enum merge_kind)kind, 8, 4, 1);
        copy_layer(&b, &a, &arch);
        for (int64_t j = 0; j < 4; j++)
            map_head(&b, j, j, 1, (uint64_t)j);
        double d = output_distance(&a, &b, &arch);
        if (!(d < 1e-12))
            print_error("%s: %g\n", kind_name((enum merge_kind)kind), d);
        assert_true(d < 1e-12);
        attention_layer_free(&a);
        attention_layer_free(&b);
        arch_free(&arch);
    }
}

static void permutations_keep_the_function(void **state)
{
    (void)state;
    static const int64_t order[] = {2, 0, 3, 1};
    for (int kind = 0; kind < KINDS; kind++) {
        struct arch arch;
        struct attention_layer a, b;
        if (kind == KIND_ALIBI)
            continue;
        make(&arch, &a, (enum merge_kind)kind, 8, 4, 2);
        for (size_t m = 0; m < COUNT_OF(METHODS); m++) {
            assert_ok(attention_layer_new(&b, &arch, 0, 0));
            assert_ok(merge_heads(&b, &a, NULL, METHODS[m], order, NULL));
            assert_memory_equal(b.k, a.k + 2 * 6 * 20, 6 * 20 * sizeof *a.k);
            assert_true(output_distance(&a, &b, &arch) < 1e-12);
            attention_layer_free(&b);
        }
        attention_layer_free(&a);
        arch_free(&arch);
    }
}

static void as_many_heads_change_nothing(void **state)
{
    (void)state;
    for (int kind = 0; kind < KINDS; kind++)
        for (size_t m = 0; m < COUNT_OF(METHODS); m++) {
            struct arch arch;
            struct attention_layer a, b;
            make(&arch, &a, (enum merge_kind)kind, 8, 4, 3);
            assert_ok(attention_layer_new(&b, &arch, 0, 0));
            assert_ok(merge_heads(&b, &a, NULL, METHODS[m], NULL, NULL));
            static const char *const names[] = {"attn.q.w", "attn.k.w", "attn.v.w", "attn.o.w", "attn.q.b", "attn.k.b", "attn.v.b", "attn.q_norm.w", "attn.k_norm.w"};
            for (size_t i = 0; i < COUNT_OF(names); i++) {
                int64_t n;
                const double *p = attention_layer_tensor(&a, names[i], &n);
                if (p)
                    assert_memory_equal(p, attention_layer_tensor(&b, names[i], &n), (size_t)n * sizeof *p);
            }
            attention_layer_free(&a);
            attention_layer_free(&b);
            arch_free(&arch);
        }
}

/* Groups of m heads, each a copy of one in another basis. Keys that no positions rotate may differ by any constant besides. */
static void copies(struct attention_layer *a, int64_t m, int gains)
{
    for (int64_t j = 0; j < a->G; j++)
        if (j % m)
            map_head(a, j, j / m * m, gains, (uint64_t)(17 + j));
    if (a->k_bias && !a->rotary)
        fill_random_f64(a->k_bias, a->G * a->D, 5);
}

static void one_head_in_many_bases_is_recovered(void **state)
{
    (void)state;
    for (int kind = 0; kind < KINDS; kind++)
        for (int variant = 0; variant < 8; variant++) {
            struct arch arch;
            struct attention_layer a, b;
            int svd = variant & 1, m = variant & 2 ? 4 : 2, calibrated = variant & 4;
            if (kind == KIND_FULL_NORM) /* its norm makes every merge of keys an approximation */
                continue;
            make(&arch, &a, (enum merge_kind)kind, 8, 8, 4);
            copies(&a, m, svd);
            assert_ok(attention_layer_new(&b, &arch, 0, 8 / m));
            double *N = calibrated ? random_moments(a.C, 3) : NULL, k[4], v[4], j[4], mean_j[4];
            struct merge_input input = {.moments = N};
            struct merge_cost cost = {.k = k, .v = v, .j = j, .mean_j = mean_j};
            assert_ok(merge_heads(&b, &a, calibrated ? &input : NULL, svd ? MERGE_SVD : MERGE_ALIGN, NULL, &cost));
            double d = output_distance(&a, &b, &arch);
            if (!(d < 1e-6) || !(j[0] < 1e-9))
                print_error("%s, variant %d: output %g, J %g\n", kind_name((enum merge_kind)kind), variant, d, j[0]);
            assert_true(d < 1e-6);
            for (int g = 0; g < 8 / m; g++) {
                assert_true(k[g] < 1e-9 && v[g] < 1e-9 && j[g] < 1e-9);
                assert_true(mean_j[g] > 0.01);
            }
            free(N);
            attention_layer_free(&a);
            attention_layer_free(&b);
            arch_free(&arch);
        }
}

static void total(const struct attention_layer *a, const struct arch *arch, const double *N, enum merge_method method, int64_t G, double *J, double *mean)
{
    struct attention_layer b;
    double k[8], v[8], j[8], m[8];
    struct merge_input input = {.moments = N};
    struct merge_cost cost = {.k = k, .v = v, .j = j, .mean_j = m};
    assert_ok(attention_layer_new(&b, arch, 0, G));
    assert_ok(merge_heads(&b, a, &input, method, NULL, &cost));
    *J = *mean = 0;
    for (int64_t g = 0; g < G; g++) {
        *J += j[g];
        *mean += m[g];
        assert_true(isfinite(k[g]) && isfinite(v[g]) && k[g] >= 0 && v[g] >= 0);
    }
    attention_layer_free(&b);
}

static void errors_are_ordered(void **state)
{
    (void)state;
    for (int kind = 0; kind < KINDS; kind++)
        for (uint64_t seed = 1; seed < 7; seed++) {
            struct arch arch;
            struct attention_layer a;
            double *N = seed % 3 ? random_moments(20, seed) : NULL, svd, align, mean, first, from_svd, t;
            int64_t G = seed % 2 ? 4 : 2;
            make(&arch, &a, (enum merge_kind)kind, 8, 8, seed);
            total(&a, &arch, N, MERGE_SVD, G, &svd, &from_svd);
            total(&a, &arch, N, MERGE_ALIGN, G, &align, &t);
            total(&a, &arch, N, MERGE_MEAN, G, &mean, &t);
            total(&a, &arch, N, MERGE_FIRST, G, &first, &t);
            if (!(svd <= align * (1 + 1e-9) && align <= mean * (1 + 1e-9)))
                print_error("%s, seed %d: svd %.12g align %.12g mean %.12g\n", kind_name((enum merge_kind)kind), (int)seed, svd, align, mean);
            assert_true(svd <= align * (1 + 1e-9));
            assert_true(align <= mean * (1 + 1e-9));
            if (keys_are_free((enum merge_kind)kind))
                assert_true(svd < 0.95 * mean && align < 0.95 * mean);
            assert_true(mean < first);
            assert_true(fabs(from_svd - mean) <= 1e-9 * mean);
            free(N);
            attention_layer_free(&a);
            arch_free(&arch);
        }
}

/* J by its definition, from samples: sum over readers of E (q . (k - k^))^2 for keys without positions, of E |W_O (v - v^)|^2 for values;
 * mean pooling, where k^ is the pooled key. */
static void cost_is_what_samples_say(void **state)
{
    (void)state;
    struct arch arch;
    struct attention_layer a;
    make(&arch, &a, KIND_LEARNED, 8, 8, 9);
    memset(a.k_bias, 0, 48 * sizeof *a.k_bias);
    memset(a.q_bias, 0, 48 * sizeof *a.q_bias);
    double k_error = 0, k_size = 0, v_error = 0, v_size = 0, J, mean;
    for (int64_t h = 0; h < 8; h++)
        for (int64_t c = 0; c < 20; c++) /* inputs of unit variance: sums over the axes */
            for (int64_t e = 0; e < 20; e++) {
                double error = 0, size = 0;
                for (int64_t d = 0; d < 6; d++) {
                    double q = a.q[(h * 6 + d) * 20 + e], k = a.k[(h * 6 + d) * 20 + c], pooled = (a.k[((h & ~1) * 6 + d) * 20 + c] + a.k[((h | 1) * 6 + d) * 20 + c]) / 2;
                    error += q * (k - pooled);
                    size += q * k;
                }
                k_error += error * error;
                k_size += size * size;
                error = size = 0;
                for (int64_t d = 0; d < 6; d++) {
                    double o = a.o[e * 48 + h * 6 + d], v = a.v[(h * 6 + d) * 20 + c], pooled = (a.v[((h & ~1) * 6 + d) * 20 + c] + a.v[((h | 1) * 6 + d) * 20 + c]) / 2;
                    error += o * (v - pooled);
                    size += o * v;
                }
                v_error += error * error;
                v_size += size * size;
            }
    memset(a.v_bias, 0, 48 * sizeof *a.v_bias);
    total(&a, &arch, NULL, MERGE_MEAN, 4, &J, &mean);
    assert_true(fabs(J - k_error / k_size - v_error / v_size) < 1e-4 * J); /* the ridge */
    attention_layer_free(&a);
    arch_free(&arch);
}

static void plain_methods(void **state)
{
    (void)state;
    struct arch arch;
    struct attention_layer a, b;
    make(&arch, &a, KIND_PARTIAL, 8, 4, 11);
    int64_t head = 6 * 20;
    for (int64_t i = 0; i < 2 * head; i++) { /* the readers of head 3 matter more */
        a.q[6 * head + i] *= 10;
        a.o[i] *= 1;
    }
    assert_ok(attention_layer_new(&b, &arch, 0, 2));
    assert_ok(merge_heads(&b, &a, NULL, MERGE_SELECT, NULL, NULL));
    assert_memory_equal(b.k + head, a.k + 3 * head, (size_t)head * sizeof *a.k);
    assert_memory_equal(b.v + head, a.v + 3 * head, (size_t)head * sizeof *a.v);
    assert_memory_equal(b.q, a.q, (size_t)(8 * head) * sizeof *a.q);
    assert_ok(merge_heads(&b, &a, NULL, MERGE_FIRST, NULL, NULL));
    assert_memory_equal(b.v + head, a.v + 2 * head, (size_t)head * sizeof *a.v);
    assert_ok(merge_heads(&b, &a, NULL, MERGE_MEAN, NULL, NULL));
    for (int64_t i = 0; i < head; i++)
        assert_true(fabs(b.k[head + i] - (a.k[2 * head + i] + a.k[3 * head + i]) / 2) < 1e-14);
    for (int64_t i = 0; i < 6; i++)
        assert_true(fabs(b.v_bias[i] - (a.v_bias[i] + a.v_bias[6 + i]) / 2) < 1e-14);
    assert_memory_equal(b.o, a.o, (size_t)(8 * head) * sizeof *a.o);
    attention_layer_free(&a);
    attention_layer_free(&b);
    arch_free(&arch);
}

static void equal_heads_stay_as_they_are(void **state)
{
    (void)state;
    struct arch arch;
    struct attention_layer a, b;
    make(&arch, &a, KIND_PARTIAL, 8, 8, 12);
    int64_t head = 6 * 20;
    for (int64_t j = 1; j < 8; j += 2) {
        memcpy(a.k + j * head, a.k + (j - 1) * head, (size_t)head * sizeof *a.k);
        memcpy(a.v + j * head, a.v + (j - 1) * head, (size_t)head * sizeof *a.v);
        memcpy(a.k_bias + j * 6, a.k_bias + (j - 1) * 6, 6 * sizeof *a.k);
        memcpy(a.v_bias + j * 6, a.v_bias + (j - 1) * 6, 6 * sizeof *a.v);
    }
    assert_ok(attention_layer_new(&b, &arch, 0, 4));
    for (int method = MERGE_ALIGN; method <= MERGE_SVD; method++) {
        assert_ok(merge_heads(&b, &a, NULL, (enum merge_method)method, NULL, NULL));
        for (int64_t g = 0; g < 4; g++)
            for (int64_t i = 0; i < head; i++) {
                assert_true(fabs(b.k[g * head + i] - a.k[2 * g * head + i]) < 1e-7);
                assert_true(fabs(b.v[g * head + i] - a.v[2 * g * head + i]) < 1e-7);
            }
        assert_true(output_distance(&a, &b, &arch) < 1e-7);
    }
    attention_layer_free(&a);
    attention_layer_free(&b);
    arch_free(&arch);
}

static double of_partition(const struct attention_layer *a, const struct arch *arch, enum merge_method method, int64_t G, const int64_t *members)
{
    struct attention_layer b;
    double k[8], v[8], j[8], J = 0;
    struct merge_cost cost = {.k = k, .v = v, .j = j};
    assert_ok(attention_layer_new(&b, arch, 0, G));
    assert_ok(merge_heads(&b, a, NULL, method, members, &cost));
    for (int64_t g = 0; g < G; g++)
        J += j[g];
    attention_layer_free(&b);
    return J;
}

/* By the method's own cost; align's by svd's, unless neighbours are better by its own. */
static void the_best_of_all_partitions(void **state)
{
    (void)state;
    for (int kind = 0; kind < KINDS; kind++)
        for (size_t m = 0; m < COUNT_OF(METHODS); m++) {
            struct arch arch;
            struct attention_layer a;
            int64_t found[6];
            make(&arch, &a, (enum merge_kind)kind, 6, 6, 13);
            assert_ok(merge_grouping(&a, NULL, METHODS[m], 3, found));
            if (kind == KIND_ALIBI || METHODS[m] == MERGE_RANDOM) {
                for (int64_t i = 0; i < 6; i++)
                    assert_int_equal(found[i], i);
            } else {
                enum merge_method judge = METHODS[m] == MERGE_ALIGN ? MERGE_SVD : METHODS[m];
                const int64_t neighbours[6] = {0, 1, 2, 3, 4, 5};
                double best = HUGE_VAL, got = of_partition(&a, &arch, judge, 3, found), own = of_partition(&a, &arch, METHODS[m], 3, neighbours);
                for (int64_t x = 1; x < 6; x++) /* the 15 partitions into pairs; first's and select's heads in ascending order */
                    for (int64_t y = 0; y < 3; y++) {
                        int64_t rest[4], n = 0;
                        for (int64_t i = 1; i < 6; i++)
                            if (i != x)
                                rest[n++] = i;
                        int64_t p[6] = {0, x, rest[0], rest[y + 1], rest[y == 0 ? 2 : 1], rest[y == 2 ? 2 : 3]};
                        best = fmin(best, of_partition(&a, &arch, judge, 3, p));
                    }
                assert_true(fabs(got - best) <= 1e-9 * best || (judge != METHODS[m] && memcmp(found, neighbours, sizeof found) == 0));
                assert_true(of_partition(&a, &arch, METHODS[m], 3, found) <= own * (1 + 1e-9));
            }
            attention_layer_free(&a);
            arch_free(&arch);
        }
}

/* Copies in other bases are found wherever they stand: by looking at all sets, and by swaps where those are too many. */
static void copies_are_found(void **state)
{
    (void)state;
    static const int64_t places[] = {0, 5, 9, 14, 1, 7, 8, 15, 2, 4, 11, 12, 3, 6, 10, 13};
    for (int64_t m = 2; m <= 4; m += 2) {
        struct arch arch;
        struct attention_layer a;
        int64_t found[16];
        make(&arch, &a, KIND_ROTARY, 16, 16, 21);
        for (int64_t i = 0; i < 16; i++)
            if (i % m)
                map_head(&a, places[i], places[i / m * m], 1, (uint64_t)i);
        assert_ok(merge_grouping(&a, NULL, MERGE_SVD, 16 / m, found));
        for (int64_t i = 0; i < 16; i++)
            for (int64_t k = 0; k < 16; k++) {
                int64_t at[2] = {0, 0};
                for (int64_t p = 0; p < 16; p++) {
                    at[0] = found[p] == places[i] ? p : at[0];
                    at[1] = found[p] == places[k] ? p : at[1];
                }
                assert_int_equal(i / m == k / m, at[0] / m == at[1] / m);
            }
        attention_layer_free(&a);
        arch_free(&arch);
    }
}

/* Same bits whatever the number of threads, at a size where the BLAS would split. */
static void threads_change_no_bit(void **state)
{
    (void)state;
    struct arch arch;
    struct attention_layer a, b[3];
    merge_arch(&arch, KIND_PARTIAL, 8, 8);
    arch.C = 200;
    arch.rope.dims = 32;
    for (int l = 0; l < 2; l++)
        arch.stack[STACK_DEC].block[l].D = arch.stack[STACK_DEC].block[l].Dv = 64;
    random_layer(&a, &arch, 5);
    double *N = random_moments(200, 8);
    struct merge_input input = {.moments = N};
    int before = omp_get_max_threads();
    for (int method = MERGE_ALIGN; method <= MERGE_SVD; method++) {
        int64_t members[3][8];
        for (int i = 0; i < 3; i++) {
            omp_set_num_threads(i + 1);
            assert_ok(attention_layer_new(&b[i], &arch, 0, 2));
            assert_ok(merge_grouping(&a, &input, MERGE_MEAN, 2, members[i]));
            assert_ok(merge_heads(&b[i], &a, &input, (enum merge_method)method, members[i], NULL));
            assert_memory_equal(members[i], members[0], sizeof members[0]);
            assert_memory_equal(b[i].q, b[0].q, 512 * 200 * sizeof *a.q);
            assert_memory_equal(b[i].k, b[0].k, 128 * 200 * sizeof *a.k);
            assert_memory_equal(b[i].v, b[0].v, 128 * 200 * sizeof *a.v);
            assert_memory_equal(b[i].o, b[0].o, 512 * 200 * sizeof *a.o);
        }
        for (int i = 0; i < 3; i++)
            attention_layer_free(&b[i]);
    }
    omp_set_num_threads(before);
    free(N);
    attention_layer_free(&a);
    arch_free(&arch);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(changes_of_basis_keep_the_function), cmocka_unit_test(permutations_keep_the_function),
        cmocka_unit_test(as_many_heads_change_nothing), cmocka_unit_test(one_head_in_many_bases_is_recovered),
        cmocka_unit_test(errors_are_ordered), cmocka_unit_test(cost_is_what_samples_say), cmocka_unit_test(plain_methods),
        cmocka_unit_test(equal_heads_stay_as_they_are), cmocka_unit_test(the_best_of_all_partitions), cmocka_unit_test(copies_are_found),
        cmocka_unit_test(threads_change_no_bit),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
