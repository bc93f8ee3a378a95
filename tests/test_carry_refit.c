/* AdamW's moments through a conversion with --refit: a fit adds to a tensor in the coordinates that the merge gave it, so every array is that of
 * the same conversion without the fit, bit for bit, and it tells of the fitted model's gradients more than zeros would: where the heads of a
 * group are nearly equal, nearly all. */
#include "carry_case.h"
#include "data/data.h"
#include "programs.h"
#include "small_checkpoint.h"

#include <math.h>

static const struct tensor { const char *name; int64_t n0, n1; } TENSORS[] = {{"attn.q.w", H * D, C}, {"attn.k.w", 2 * D, C}, {"attn.v.w", 2 * D, C},
                                                                               {"attn.o.w", C, H * D}, {"mlp.down.w", C, 20}, {"mlp.up.w", 20, C}};
static const char *const METHODS[] = {"align", "svd"}, *const REFITS[] = {"output", "block", "all"};

/* The training text's bytes as tokens. */
static char *calibration(void)
{
    char *text = temp_path("carry.txt"), *path = temp_path("carry.bin"), *bytes = NULL;
    size_t n = 0;
    assert_ok(io_read_all(text, 1 << 20, &bytes, &n));
    int32_t *ids = malloc(n * sizeof *ids);
    assert_non_null(ids);
    for (size_t i = 0; i < n; i++)
        ids[i] = (unsigned char)bytes[i];
    assert_ok(tokens_write(path, ids, (int64_t)n, 256, -1, -1, NULL));
    free(ids);
    free(bytes);
    free(text);
    return path;
}

/* A run whose moments are gradients at its own weights. repeat 3: the heads of a group are equal but for two updates. */
static char *run_of(const char *name, int64_t repeat)
{
    char first[40], then[40], at_rest[40];
    snprintf(first, sizeof first, "%s-model", name);
    snprintf(then, sizeof then, "%s-moved", name);
    snprintf(at_rest, sizeof at_rest, "%s-run", name);
    char *model = carry_model(first, 6, repeat), *moved = carry_train(model, then, "max_steps=2", "optimizer.lr=2e-3", NULL, NULL), *final = io_join(moved, "final");
    char *run = carry_train(final, at_rest, "max_steps=1", "optimizer.lr=0", "max_grad_norm=0", NULL);
    free(model);
    free(moved);
    free(final);
    return run;
}

static void convert(const char *run, const char *to, const char *method, const char *refit, const char *tokens)
{
    struct child c = CONVERT(run, to, "--kv-heads", "2", "--method", method, "--refit", refit, "--calibration", tokens, "--sequence-length", "24", "--threads", "1",
                             "--moments", "carry", "--force");
    assert_true(c.status != 0 || strstr(c.err, "moments of 1 updates are carried") != NULL);
    assert_true(c.status != 0 || !strcmp(refit, "none") == (strstr(c.err, "fitted tensors have the moments of before the fit") == NULL));
    program_ok(c);
}

/* Bit for bit those of the merge alone, while the weights are not. */
static void a_fit_keeps_them(void **state)
{
    (void)state;
    char *run = run_of("kept", 1), *tokens = calibration(), *plain = temp_path("kept-none"), *to = temp_path("kept-fit");
    for (size_t m = 0; m < COUNT_OF(METHODS); m++) {
        convert(run, plain, METHODS[m], "none", tokens);
        for (size_t k = 0; k < COUNT_OF(REFITS); k++) {
            convert(run, to, METHODS[m], REFITS[k], tokens);
            char *want = carry_beside(plain), *got = carry_beside(to);
            int fitted = 0;
            for (size_t i = 0; i < COUNT_OF(TENSORS); i++)
                for (int layer = 0; layer < L; layer++) {
                    const struct tensor *t = &TENSORS[i];
                    size_t bytes = (size_t)(t->n0 * t->n1) * sizeof(float);
                    float *w0 = carry_weight(plain, layer, t->name), *w1 = carry_weight(to, layer, t->name);
                    fitted += memcmp(w0, w1, bytes) != 0;
                    for (int which = 0; which < 2; which++) {
                        float *x = carry_moment(want, "mv"[which], layer, t->name, t->n0, t->n1), *y = carry_moment(got, "mv"[which], layer, t->name, t->n0, t->n1);
                        assert_memory_equal(x, y, bytes);
                        free(x);
                        free(y);
                    }
                    free(w0);
                    free(w1);
                }
            assert_true(fitted > 0);
            free(want);
            free(got);
        }
    }
    json_t *facts = NULL;
    char *path = io_join(to, "PROVENANCE.json");
    assert_ok(json_read_file(path, 1 << 20, &facts));
    assert_non_null(strstr(json_string_value(json_object_get(json_object_get(facts, "optimizer"), "note")), "before the fit"));
    json_decref(facts);
    CONVERT_OK("--verify", to);
    free(path);
    free(run);
    free(tokens);
    free(plain);
    free(to);
}

/* |carried - true| / |true| over both layers of a tensor: 1 is what zeros have. */
static double distance(const char *carried, const char *trained, const struct tensor *t)
{
    double far = 0, size = 0;
    for (int layer = 0; layer < L; layer++) {
        float *x = carry_moment(carried, 'm', layer, t->name, t->n0, t->n1), *y = carry_moment(trained, 'm', layer, t->name, t->n0, t->n1);
        for (int64_t i = 0; i < t->n0 * t->n1; i++) {
            far += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
            size += (double)y[i] * (double)y[i];
        }
        free(x);
        free(y);
    }
    return sqrt(far / size);
}

static void better_than_zeros(void **state)
{
    (void)state;
    char *run = run_of("near", 3), *tokens = calibration(), *to = temp_path("near-fit"), *opt = carry_beside(to);
    for (size_t m = 0; m < COUNT_OF(METHODS); m++)
        for (size_t k = 0; k < COUNT_OF(REFITS); k++) {
            convert(run, to, METHODS[m], REFITS[k], tokens);
            char *truth = carry_train(to, "near-true", "max_steps=1", "optimizer.lr=0", "max_grad_norm=0", NULL);
            for (size_t i = 0; i < COUNT_OF(TENSORS); i++) {
                double d = distance(opt, truth, &TENSORS[i]);
                if (!(d < 0.5))
                    print_error("%s, refit %s, %s: %g\n", METHODS[m], REFITS[k], TENSORS[i].name, d);
                assert_true(d < 0.5);
            }
            assert_ok(io_remove_tree(truth));
            free(truth);
        }
    free(run);
    free(tokens);
    free(to);
    free(opt);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_fit_keeps_them), cmocka_unit_test(better_than_zeros)};
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
