/* Models that Hugging Face transformers made and saved (tests/golden/hf, written by tools/make_goldens.py), at least one for
 * each family and each trap of its config.json and its file layout: they must give the logits, log-probabilities and the greedy
 * continuation that transformers gives, by scoring, prefill and decode. The sequences run past trained positions and windows.
 *
 * A name in PENDING, or a whole family "bloom-*", is a case that gqakit does not get right yet: it is reported as skipped, and the
 * test fails as soon as it passes, so that the list can only shrink. */
#include <dirent.h>
#include <math.h>

#include "harness.h"
#include "model/model.h"

#define GOLDEN "tests/golden/hf"
#define LIMIT 1e-5 /* of the logits' scale; the promise is 1e-4 */

static const char *const PENDING[] = {NULL};

enum { POSITIONS = 3, GREEDY = 8, PROMPT = 3 };

struct golden {
    int64_t n, V, position[POSITIONS];
    int32_t *ids;
    double *logp, *logits, scale; /* logits [POSITIONS, V] */
    int has_greedy;
    int32_t greedy[GREEDY];
};

static const json_t *list_of(const json_t *root, const char *key, int64_t n)
{
    const json_t *list = json_object_get(root, key);
    assert_int_equal(json_array_size(list), n);
    return list;
}

static void golden_read(struct golden *g, const char *dir)
{
    json_t *root;
    char *path = io_join(dir, "expected.json");
    assert_ok(json_read_file(path, 1 << 20, &root));
    g->n = (int64_t)json_array_size(json_object_get(root, "ids"));
    g->V = (int64_t)json_array_size(json_array_get(json_object_get(root, "logits"), 0));
    g->scale = json_number_value(json_object_get(root, "scale"));
    assert_true(g->n > 8 && g->V > 8 && g->scale > 0.1);
    g->ids = calloc((size_t)g->n, sizeof *g->ids);
    g->logp = calloc((size_t)g->n, sizeof *g->logp);
    g->logits = calloc((size_t)(POSITIONS * g->V), sizeof *g->logits);
    const json_t *ids = list_of(root, "ids", g->n), *logp = list_of(root, "logprob", g->n - 1);
    const json_t *positions = list_of(root, "positions", POSITIONS), *logits = list_of(root, "logits", POSITIONS);
    for (int64_t i = 0; i < g->n; i++)
        g->ids[i] = (int32_t)json_integer_value(json_array_get(ids, (size_t)i));
    for (int64_t i = 0; i + 1 < g->n; i++)
        g->logp[i] = json_number_value(json_array_get(logp, (size_t)i));
    for (int64_t p = 0; p < POSITIONS; p++) {
        const json_t *row = json_array_get(logits, (size_t)p);
        assert_int_equal(json_array_size(row), g->V);
        g->position[p] = json_integer_value(json_array_get(positions, (size_t)p));
        for (int64_t v = 0; v < g->V; v++)
            g->logits[p * g->V + v] = json_number_value(json_array_get(row, (size_t)v));
    }
    g->has_greedy = json_is_array(json_object_get(root, "greedy"));
    for (size_t i = 0; g->has_greedy && i < GREEDY; i++)
        g->greedy[i] = (int32_t)json_integer_value(json_array_get(list_of(root, "greedy", GREEDY), i));
    json_decref(root);
    free(path);
}

static void golden_free(struct golden *g)
{
    free(g->ids);
    free(g->logp);
    free(g->logits);
}

/* The largest difference; infinity for a NaN. */
static double furthest(const float *got, const double *want, int64_t n)
{
    double worst = 0.0;
    for (int64_t i = 0; i < n; i++) {
        double d = fabs((double)got[i] - want[i]);
        worst = d <= HUGE_VAL ? fmax(worst, d) : HUGE_VAL;
    }
    return worst;
}

static double score_error(struct model *m, const struct golden *g)
{
    struct batch b;
    double loss = 0.0;
    int64_t count = 0, T = g->n - 1;
    float *logp = calloc((size_t)T, sizeof *logp);
    assert_ok(batch_alloc(&b, 1, T));
    for (int64_t t = 0; t < T; t++) {
        b.ids[t] = g->ids[t];
        b.targets[t] = g->ids[t + 1];
        b.positions[t] = (int32_t)t;
        b.segments[t] = 0;
    }
    fill_nan(logp, T);
    assert_ok(model_score(m, &b, view_2d(logp, DT_F32, 1, T), &loss, &count));
    assert_int_equal(count, T);
    batch_free(&b);
    double worst = furthest(logp, g->logp, T);
    free(logp);
    return worst;
}

/* Token by token through the cache after a prompt: every log-probability, and the logits of the recorded positions. */
static double decode_error(struct model *m, const struct golden *g, float *logits)
{
    double worst = 0.0;
    for (int64_t t = PROMPT - 1; t + 1 < g->n; t++) {
        double sum = 0.0, top = -HUGE_VAL;
        fill_nan(logits, g->V);
        if (t == PROMPT - 1) {
            model_cache_reset(m);
            assert_ok(model_prefill(m, g->ids, 1, PROMPT, logits));
        } else {
            assert_ok(model_decode(m, g->ids + t, 1, 1, logits));
        }
        for (int64_t v = 0; v < g->V; v++)
            top = fmax(top, (double)logits[v]);
        for (int64_t v = 0; v < g->V; v++)
            sum += exp((double)logits[v] - top);
        float logp = (float)((double)logits[g->ids[t + 1]] - top - log(sum));
        worst = fmax(worst, furthest(&logp, &g->logp[t], 1));
        for (int64_t p = 0; p < POSITIONS; p++)
            if (g->position[p] == t)
                worst = fmax(worst, furthest(logits, g->logits + p * g->V, g->V));
    }
    return worst;
}

static double prefill_error(struct model *m, const struct golden *g, float *logits)
{
    double worst = 0.0;
    for (int64_t p = 0; p < POSITIONS; p++) {
        fill_nan(logits, g->V);
        model_cache_reset(m);
        assert_ok(model_prefill(m, g->ids, 1, g->position[p] + 1, logits));
        worst = fmax(worst, furthest(logits, g->logits + p * g->V, g->V));
    }
    return worst;
}

/* Ids of the continuation that agree, from the first on. */
static int greedy_agreement(struct model *m, const struct golden *g, float *logits)
{
    int agree = 0;
    model_cache_reset(m);
    assert_ok(model_prefill(m, g->ids, 1, g->n, logits));
    for (; agree < GREEDY; agree++) {
        int32_t best = 0;
        for (int32_t v = 1; v < g->V; v++)
            best = logits[v] > logits[best] ? v : best;
        if (best != g->greedy[agree])
            break;
        if (agree + 1 < GREEDY)
            assert_ok(model_decode(m, &best, 1, 1, logits));
    }
    return agree;
}

static enum code model_of(struct model **m, struct checkpoint *ck, struct device *dev, const struct backend *be, int64_t T)
{
    struct model_options o = {.dtype = DT_F32, .B = 1, .T = T, .cache_B = 1, .cache_S = T, .cache_dtype = DT_F32};
    TRY(model_open(m, ckpt_arch(ck), be, dev, &o));
    return model_load(*m, ck);
}

/* 1 when everything agrees; prints what was found either way. */
static int check_model(const char *name, struct checkpoint *ck, const struct golden *g)
{
    const struct backend *be;
    struct device *dev;
    struct device_options device = {.threads = 1}; /* more only wait for each other in models this small */
    struct model *m = NULL;
    float *logits = calloc((size_t)g->V, sizeof *logits);
    assert_ok(backend_find("cpu", &be));
    assert_ok(be->device_open(&dev, &device));
    /* What depends on the length (dynamic rotary angles) is made for the sequence without its last id, as transformers was given it. */
    enum code c = model_of(&m, ck, dev, be, g->n - 1);
    int good = 0, agree = GREEDY;
    if (c == OK) {
        double scored = score_error(m, g), prefilled = prefill_error(m, g, logits), decoded = decode_error(m, g, logits);
        double worst = fmax(scored, fmax(prefilled, decoded)) / g->scale;
        model_close(m);
        m = NULL;
        if (g->has_greedy) {
            assert_ok(model_of(&m, ck, dev, be, g->n + GREEDY));
            agree = greedy_agreement(m, g, logits);
        }
        good = worst <= LIMIT && agree == GREEDY;
        print_message("%-28s %-5s of the scale: score %.1e, prefill %.1e, decode %.1e, %d of %d greedy%s\n", name, dtype_name(ckpt_at(ck, 0)->dtype),
                      scored / g->scale, prefilled / g->scale, decoded / g->scale, agree, GREEDY, g->has_greedy ? "" : " (none)");
    } else {
        print_message("%-28s %s\n", name, fail_text());
    }
    model_close(m);
    be->device_close(dev);
    free(logits);
    return good;
}

static int check_case(const char *name)
{
    struct golden g;
    struct checkpoint *ck;
    char *dir = io_join(GOLDEN, name);
    int good = 0;
    golden_read(&g, dir);
    if (ckpt_open(&ck, dir, NULL) == OK) {
        good = check_model(name, ck, &g);
        ckpt_close(ck);
    } else {
        print_message("%-28s %s\n", name, fail_text());
    }
    golden_free(&g);
    free(dir);
    return good;
}

static int pending(const char *name)
{
    for (const char *const *p = PENDING; *p; p++) {
        const char *star = strchr(*p, '*');
        if (star ? !strncmp(*p, name, (size_t)(star - *p)) : !strcmp(*p, name))
            return 1;
    }
    return 0;
}

static int is_case(const struct dirent *e) { return e->d_name[0] != '.'; }

static void test_goldens(void **state)
{
    (void)state;
    struct dirent **entries;
    int skipped = 0, wrong = 0, cases = scandir(GOLDEN, &entries, is_case, alphasort);
    assert_true(cases > 0);
    for (int i = 0; i < cases; i++) {
        const char *name = entries[i]->d_name;
        int good = check_case(name), wait = pending(name);
        skipped += wait && !good;
        wrong += good == wait;
        if (wait)
            print_message(good ? "%s: passes; take it off the list PENDING\n" : "%s: skipped, pending\n", name);
        else if (!good)
            print_message("%s: FAILED\n", name);
        free(entries[i]);
    }
    free(entries);
    print_message("%d cases, %d pending\n", cases, skipped);
    assert_int_equal(wrong, 0);
    assert_int_equal(cases, 106);
}

/* Stored in another type, every model still has a config.json (Gemma's embedding scale is rounded to the type). */
static void test_other_types(void **state)
{
    (void)state;
    static const enum dtype types[] = {DT_F32, DT_BF16, DT_F16};
    struct dirent **entries;
    int cases = scandir(GOLDEN, &entries, is_case, alphasort);
    for (int i = 0; i < cases; i++) {
        struct checkpoint *ck;
        char *dir = io_join(GOLDEN, entries[i]->d_name), *text;
        assert_ok(ckpt_open(&ck, dir, NULL));
        for (size_t t = 0; t < COUNT_OF(types); t++) {
            struct arch a, back;
            assert_ok(arch_copy(&a, ckpt_arch(ck)));
            a.dtype = types[t];
            assert_ok(arch_to_config_json(&a, types[t], &text));
            assert_ok(arch_from_config_json(&back, text, strlen(text), dir));
            assert_int_equal(back.dtype, types[t]);
            arch_free(&a);
            arch_free(&back);
            free(text);
        }
        ckpt_close(ck);
        free(dir);
        free(entries[i]);
    }
    free(entries);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_goldens), cmocka_unit_test(test_other_types)};
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
