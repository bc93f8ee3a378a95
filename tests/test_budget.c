/* Numbers of heads under a budget: the dynamic program against every choice there is, the sentences of its refusals, and the program: never
 * over the budget, what is told is what is written, targets that cannot hold it refused. */
#include <math.h>

#include "convert/budget.h"
#include "data/data.h"
#include "model_fixture.h"
#include "model_variants.h"
#include "programs.h"
#include "small_checkpoint.h"

enum { LAYERS = 5, OPTIONS = 4 };

/* ---- the dynamic program ---- */

/* 8, 4, 2, 1 heads in each of five layers, of widths that differ when `widths`. */
static void make(struct budget *b, struct budget_layer *layer, int widths)
{
    *b = (struct budget){.asked = "test", .L = LAYERS, .layer = layer};
    for (int l = 0; l < LAYERS; l++) {
        layer[l] = (struct budget_layer){.n = OPTIONS};
        for (int i = 0; i < OPTIONS; i++)
            layer[l].option[i] = (struct budget_option){8 >> i, (8 >> i) * (widths && l % 2 ? 24 : 16), 0};
        b->most += layer[l].option[0].bytes;
        b->least += layer[l].option[OPTIONS - 1].bytes;
    }
}

static void total(const struct budget_layer *layer, const int *pick, double *cost, int64_t *bytes)
{
    *cost = 0;
    *bytes = 0;
    for (int l = 0; l < LAYERS; l++) {
        *cost += layer[l].option[pick[l]].cost;
        *bytes += layer[l].option[pick[l]].bytes;
    }
}

static double best_by_trying(const struct budget *b)
{
    double best = HUGE_VAL, cost;
    for (int code = 0; code < 1024; code++) {
        int pick[LAYERS];
        int64_t bytes;
        for (int l = 0; l < LAYERS; l++)
            pick[l] = code >> 2 * l & 3;
        total(b->layer, pick, &cost, &bytes);
        if (bytes <= b->bytes && cost < best)
            best = cost;
    }
    return best;
}

static void optimal_and_within(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 300; seed++) {
        struct budget b;
        struct budget_layer layer[LAYERS];
        int pick[LAYERS];
        double cost;
        int64_t bytes;
        make(&b, layer, seed % 2);
        for (int l = 0; l < LAYERS; l++)
            for (int i = 1; i < OPTIONS; i++) /* not always rising, and equal now and then */
                layer[l].option[i].cost = (double)random_int(seed, (uint64_t)(l * 8 + i), 0, 40) / 8;
        b.bytes = b.least + (int64_t)random_int(seed, 99, 0, (uint32_t)(b.most - b.least + 8));
        assert_ok(budget_solve(&b));
        for (int l = 0; l < LAYERS; l++)
            pick[l] = layer[l].chosen;
        total(layer, pick, &cost, &bytes);
        assert_true(bytes <= b.bytes && bytes == b.used);
        assert_true(fabs(cost - best_by_trying(&b)) < 1e-12);
    }
}

/* The same falling gains in every layer: half the heads everywhere under half the bytes, and as many as fit under a little more. */
static void equal_layers_are_uniform(void **state)
{
    (void)state;
    struct budget b;
    struct budget_layer layer[LAYERS];
    static const double cost[OPTIONS] = {0, 1, 3, 7};
    for (int i = 0; i < OPTIONS; i++) {
        make(&b, layer, 0);
        for (int l = 0; l < LAYERS; l++)
            for (int k = 0; k < OPTIONS; k++)
                layer[l].option[k].cost = cost[k];
        b.bytes = b.most >> i;
        assert_ok(budget_solve(&b));
        for (int l = 0; l < LAYERS; l++)
            assert_int_equal(layer[l].chosen, i);
        assert_int_equal(b.used, b.bytes);
    }
    make(&b, layer, 0); /* copies of one head: nothing is lost down to two, and no more is kept */
    for (int l = 0; l < LAYERS; l++)
        layer[l].option[3].cost = 1;
    b.bytes = b.most;
    assert_ok(budget_solve(&b));
    for (int l = 0; l < LAYERS; l++)
        assert_int_equal(layer[l].option[layer[l].chosen].G, 2);
}

static void refused_costs(void **state)
{
    (void)state;
    static const double bad[] = {(double)NAN, HUGE_VAL, -1};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        struct budget b;
        struct budget_layer layer[LAYERS];
        make(&b, layer, 0);
        b.bytes = b.most / 2;
        layer[3].option[2].cost = bad[i];
        assert_refused(budget_solve(&b), ERR_NUMERIC, "layer 3 merged to 2 heads");
    }
    struct budget b;
    struct budget_layer layer[LAYERS];
    make(&b, layer, 0);
    b.bytes = b.least - 1;
    assert_refused(budget_solve(&b), ERR_USAGE, "less than one head in every layer");
}

static void budgets_in_words(void **state)
{
    (void)state;
    int64_t bytes;
    assert_ok(kv_budget_parse(&bytes, "--kv-budget", "50%", 1000, 100));
    assert_int_equal(bytes, 500);
    assert_ok(kv_budget_parse(&bytes, "--kv-budget", "33.3%", 1000, 100));
    assert_int_equal(bytes, 333);
    assert_ok(kv_budget_parse(&bytes, "--kv-budget", "777", 1000, 100));
    assert_int_equal(bytes, 777);
    assert_ok(kv_budget_parse(&bytes, "--kv-budget", "100%", 1000, 100));
    assert_int_equal(bytes, 1000);
    static const char *const wrong[] = {"", "%", "half", "50%%", "50 %", "-1", "0", "0%", "nan", "inf", "1e999", "2.5", "50%x"};
    for (size_t i = 0; i < COUNT_OF(wrong); i++)
        assert_refused(kv_budget_parse(&bytes, "--kv-budget", wrong[i], 1000, 100), ERR_USAGE, "expected a share");
    assert_refused(kv_budget_parse(&bytes, "--kv-budget", "9%", 1000, 100), ERR_USAGE, "one head in every layer takes 100 (10.0%");
}

/* What a plan takes before anything is measured: legal counts within the budget that nothing more fits into, even where layers are alike. */
static void spread_before_measuring(void **state)
{
    (void)state;
    for (int uneven = 0; uneven < 2; uneven++)
        for (int64_t bytes = 128; bytes <= 800; bytes++) {
            struct arch from, a;
            small_arch(&from, 6, 6, DT_F32);
            if (uneven)
                from.stack[STACK_DEC].block[1].G = 2;
            assert_ok(arch_copy(&a, &from));
            kv_budget_spread(&a, &from, bytes, DT_F32);
            const struct arch_block *b = a.stack[STACK_DEC].block, *all = from.stack[STACK_DEC].block;
            int64_t used = arch_kv_bytes_per_token(&a, 0, DT_F32);
            assert_true(used <= bytes);
            int64_t next = 0;
            for (int l = 0; l < 2; l++) {
                next = b[l].G + 1;
                while (next < all[l].G && all[l].G % next)
                    next++;
                assert_true(b[l].G >= 1 && all[l].G % b[l].G == 0);
                assert_true(b[l].G == all[l].G || used + (next - b[l].G) * 64 > bytes);
            }
            assert_true(uneven || b[0].G == b[1].G || b[0].G == next);
            arch_free(&from);
            arch_free(&a);
        }
}

/* ---- the program ---- */

static char *token_file(void)
{
    char *path = temp_path("tokens.bin");
    int32_t ids[32 * 60 + 1];
    for (size_t i = 0; i < COUNT_OF(ids); i++)
        ids[i] = (int32_t)random_int(9, i, 0, 36);
    assert_ok(tokens_write(path, ids, (int64_t)COUNT_OF(ids), 37, -1, -1, NULL));
    return path;
}

static void check_written(const char *target, const json_t *j, int64_t most)
{
    struct checkpoint *ck;
    const json_t *budget = json_object_get(j, "kv_budget"), *layers = json_object_get(budget, "layers");
    assert_ok(ckpt_open(&ck, target, NULL));
    int64_t bytes = arch_kv_bytes_per_token(ckpt_arch(ck), 0, ckpt_arch(ck)->dtype);
    assert_true(bytes <= most);
    assert_true(json_number_at(budget, "used") == (double)bytes && json_number_at(j, "kv_bytes_per_token") == (double)bytes);
    assert_int_equal(json_array_size(layers), 2);
    for (size_t l = 0; l < 2; l++) {
        const json_t *layer = json_array_get(layers, l);
        int64_t G = ckpt_arch(ck)->stack[STACK_DEC].block[l].G;
        assert_true(json_number_at(layer, "kv_heads") == (double)G);
        assert_true(json_number_at(json_object_get(layer, "errors"), "6") == 0.0);
        assert_true(json_number_at(json_object_get(layer, "errors"), "1") > 0.0);
    }
    ckpt_close(ck);
}

static void written_within_the_budget(void **state)
{
    (void)state;
    struct arch a;
    small_arch(&a, 6, 6, DT_F32);
    char *source = temp_path("source"), *tokens = token_file();
    static const char *const targets[] = {"native.h5", "directory"}, *const budgets[] = {"50%", "25%", "400", "100%"};
    static const int64_t most[] = {384, 192, 400, 768}; /* 2 layers of K and V, 6 heads of 8 in f32: 768 */
    int64_t whole = arch_kv_bytes_per_token(&a, 0, DT_F32);
    assert_int_equal(whole, 768);
    small_write(source, &a, 41, 1, NULL);
    for (int t = 0; t < 2; t++)
        for (int i = 0; i < 4; i++) {
            char *target = temp_path(targets[t]);
            json_t *j = program_json(CONVERT(source, target, "--force", "--quiet", "--json", "--calibration", tokens, "--sequence-length", "32", "--threads", "1",
                                             "--method", i % 2 ? "svd" : "auto", "--kv-budget", budgets[i]));
            check_written(target, j, most[i]);
            assert_true(i < 3 || json_number_at(j, "kv_bytes_per_token") == (double)whole); /* room for every head, and no two are copies */
            json_decref(j);
            free(target);
        }
    arch_free(&a);
    free(source);
    free(tokens);
}

/* Every form that a model can have, one byte less than all of it: something must be given up, by whatever refit the form allows. */
static void every_form(void **state)
{
    (void)state;
    char *source = temp_path("form.h5"), *target = temp_path("form-gqa.h5"), *tokens = token_file(), budget[24];
    for (int i = 0; i < model_variants(); i++) {
        struct arch a;
        fixture_arch(&a);
        MODEL_VARIANTS[i].change(&a);
        a.eos = -1;
        int64_t most = arch_kv_bytes_per_token(&a, 0, a.dtype), merges = 0;
        for (int64_t l = 0; l < 2; l++)
            merges |= a.stack[STACK_DEC].block[l].G > 1;
        small_write(source, &a, 31, 1, NULL);
        snprintf(budget, sizeof budget, "%lld", (long long)most - 1);
        json_t *j = merges ? program_json(CONVERT(source, target, "--force", "--quiet", "--json", "--calibration", tokens, "--sequence-length", "32", "--threads", "1",
                                                  "--method", "auto", "--kv-budget", budget))
                           : NULL;
        if (j && !(json_number_at(json_object_get(j, "kv_budget"), "used") < (double)most)) {
            print_error("%s\n", MODEL_VARIANTS[i].name);
            assert_true(0);
        }
        json_decref(j);
        arch_free(&a);
    }
    free(source);
    free(target);
    free(tokens);
}

static void refusals(void **state)
{
    (void)state;
    struct arch a;
    small_arch(&a, 6, 6, DT_F32);
    char *source = temp_path("source"), *target = temp_path("refused"), *tokens = token_file();
    small_write(source, &a, 41, 1, NULL);
    program_refused(CONVERT(source, target, "--kv-budget", "50%"), 2, "--kv-budget needs --calibration FILE");
    program_refused(CONVERT(source, target, "--kv-budget", "50%", "--calibration", tokens, "--kv-heads", "3"), 2, "without --kv-heads");
    program_refused(CONVERT(source, target, "--kv-budget", "50%", "--calibration", tokens, "--kv-heads-per-layer", "3,3"), 2, "without --kv-heads");
    program_refused(CONVERT(source, target, "--kv-budget", "1%", "--calibration", tokens), 2, "one head in every layer takes 128");
    program_refused(CONVERT(source, target, "--kv-budget", "some", "--calibration", tokens), 2, "expected a share");
    program_refused(CONVERT(source, target, "--kv-budget", "50%", "--calibration", tokens, "--target", "native"), 4, "a .h5 and --target custom can");
    assert_false(io_exists(target));
    arch_free(&a);
    free(source);
    free(target);
    free(tokens);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(optimal_and_within), cmocka_unit_test(equal_layers_are_uniform),  cmocka_unit_test(refused_costs),
        cmocka_unit_test(budgets_in_words),   cmocka_unit_test(written_within_the_budget), cmocka_unit_test(refusals),
        cmocka_unit_test(every_form),         cmocka_unit_test(spread_before_measuring),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
