/* Homes, on the small models that transformers saved (tests/golden/hf): every rewriting alone keeps the logits; every class that
 * is chosen, written to a directory and read again, gives the logits of the source; our own form keeps every byte. */
#include <dirent.h>
#include <math.h>

#include "harness.h"
#include "model_logits.h"

#include "checkpoints/rewrite.h"

#define GOLDEN "tests/golden/hf"
#define LIMIT 1e-5
enum { LENGTH = 13 };
/* Each alone; centring needs what makes it a LayerNorm with weights, or a head of its own. */
static const unsigned STEPS[] = {1, 2, 4, 8 | REWRITE_NORM_ONES, 8 | REWRITE_UNTIE, 16, 32, 64, 128, 256};

static int64_t length_of(const struct arch *a, unsigned steps)
{
    int64_t context = rewrite_context(a, steps);
    return context < LENGTH ? context : LENGTH;
}

/* The source through `steps`; what it computes against what the source does. */
static double rewritten_distance(const char *dir, unsigned steps, const char *family)
{
    struct checkpoint *was, *source, *now;
    assert_ok(ckpt_open(&was, dir, NULL));
    assert_ok(ckpt_open(&source, dir, NULL));
    assert_ok(rewrite_open(&now, source, steps, family));
    int64_t T = length_of(ckpt_arch(was), steps);
    float *a = model_logits(was, T), *b = model_logits(now, T);
    if (!a || !b)
        print_error("%s: %s\n", dir, fail_text());
    double d = a && b ? logits_distance(a, b, 2 * ckpt_arch(was)->V) : HUGE_VAL;
    free(a);
    free(b);
    ckpt_close(was);
    ckpt_close(now);
    return d;
}

typedef void case_fn(const char *name, const char *dir, struct checkpoint *ck, void *context);

static int is_case(const struct dirent *e) { return e->d_name[0] != '.'; }

static void for_each_golden(case_fn *fn, void *context)
{
    struct dirent **entries;
    int n = scandir(GOLDEN, &entries, is_case, alphasort);
    assert_true(n > 0);
    for (int i = 0; i < n; i++) {
        char *dir = io_join(GOLDEN, entries[i]->d_name);
        struct checkpoint *ck;
        if (ckpt_open(&ck, dir, NULL) == OK) {
            fn(entries[i]->d_name, dir, ck, context);
            ckpt_close(ck);
        } else {
            print_message("skipped: %s\n", fail_text());
        }
        free(dir);
        free(entries[i]);
    }
    free(entries);
}

/* ---- steps -------------------------------------------------------------------------------------------------------- */

/* Two models of a family are enough for each step. */
struct checked { char family[32]; int here[COUNT_OF(STEPS)], all[COUNT_OF(STEPS)]; };

static void steps_of(const char *name, const char *dir, struct checkpoint *ck, void *context)
{
    struct checked *checked = context;
    if (strcmp(checked->family, ckpt_arch(ck)->family) != 0)
        memset(checked->here, 0, sizeof checked->here);
    snprintf(checked->family, sizeof checked->family, "%s", ckpt_arch(ck)->family);
    for (int s = 0; s < (int)COUNT_OF(STEPS); s++) {
        struct arch a;
        unsigned step = STEPS[s];
        if (checked->here[s] == 2 || rewrite_needed(ckpt_arch(ck), step) != step)
            continue;
        assert_ok(arch_copy(&a, ckpt_arch(ck)));
        enum code c = rewrite_arch(&a, step);
        arch_free(&a);
        if (c != OK) {
            assert_int_equal(c, ERR_UNSUPPORTED);
            continue;
        }
        double d = rewritten_distance(dir, step, "");
        char words[128];
        rewrite_words(step, words, sizeof words);
        if (!(d <= LIMIT))
            print_error("%s: %s: %g of the logits' scale\n", name, words, d);
        assert_true(d <= LIMIT);
        checked->here[s]++;
        checked->all[s]++;
    }
}

static void each_step_keeps_the_logits(void **state)
{
    (void)state;
    struct checked checked = {0};
    for_each_golden(steps_of, &checked);
    for (int s = 0; s < (int)COUNT_OF(STEPS); s++) {
        char words[128];
        rewrite_words(STEPS[s], words, sizeof words);
        print_message("%3d models: %s\n", checked.all[s], words);
        assert_true(checked.all[s] > 0);
    }
}

/* ---- directories -------------------------------------------------------------------------------------------------- */

static struct checkpoint *write_home(const char *dir, const struct ckpt_choice *choice, const char *name, enum dtype dtype)
{
    struct checkpoint *source, *ck;
    struct ckpt_writer *w;
    struct arch a;
    char *to = temp_path(name);
    assert_ok(ckpt_open(&source, dir, NULL));
    assert_ok(arch_copy(&a, ckpt_arch(source)));
    assert_ok(ckpt_choice_arch(&a, choice));
    assert_ok(ckpt_rewritten(&source, source, choice));
    struct ckpt_target target = {.path = to, .arch = &a, .source = source, .dtype = dtype, .force = 1};
    assert_ok(ckpt_create(&w, &target));
    for (int i = 0; i < ckpt_writer_count(w); i++) {
        const struct ckpt_tensor *t = ckpt_writer_at(w, i), *in = ckpt_find(source, t->name);
        assert_non_null(in);
        enum dtype as = dtype == DT_NONE ? in->dtype : dtype;
        void *x = malloc((size_t)(t->n[0] * t->n[1]) * dtype_bytes(as));
        assert_ok(ckpt_read(source, in, 0, t->n[0], x, as));
        assert_ok(ckpt_write(w, t, 0, t->n[0], x, as));
        free(x);
    }
    assert_ok(ckpt_commit(w));
    ckpt_close(source);
    arch_free(&a);
    assert_ok(ckpt_open(&ck, to, NULL));
    free(to);
    return ck;
}

static void retarget_of(const char *name, const char *dir, struct checkpoint *ck, void *context)
{
    struct ckpt_choice choice;
    enum code c = ckpt_choose(ckpt_arch(ck), "x", HOME_RETARGET, NULL, &choice);
    if (c != OK) {
        assert_int_equal(c, ERR_UNSUPPORTED);
        if (!strstr(fail_text(), "no other class is known"))
            print_message("%-24s refused: %s\n", name, fail_text());
        return;
    }
    struct checkpoint *now = write_home(dir, &choice, "retarget", DT_F32);
    assert_string_equal(ckpt_arch(now)->family, choice.family);
    int64_t T = length_of(ckpt_arch(ck), choice.rewrite);
    float *a = model_logits(ck, T), *b = model_logits(now, T);
    assert_non_null(a);
    assert_non_null(b);
    double d = logits_distance(a, b, 2 * ckpt_arch(ck)->V);
    print_message("%-24s %.1e %s\n", name, d, choice.sentence);
    assert_true(d <= LIMIT);
    ++*(int *)context;
    free(a);
    free(b);
    ckpt_close(now);
}

static void retargets_keep_the_logits(void **state)
{
    (void)state;
    int n = 0;
    for_each_golden(retarget_of, &n);
    assert_true(n > 10);
}

static void same_arch(const struct arch *a, const struct arch *b)
{
    json_t *x = arch_to_json(a), *y = arch_to_json(b);
    static const char *const own[] = {"family", "source_config"};
    for (int i = 0; i < 2; i++) {
        json_object_del(x, own[i]);
        json_object_del(y, own[i]);
    }
    assert_true(json_equal(x, y));
    json_decref(x);
    json_decref(y);
}

struct seen { char family[32]; int n; };

static void custom_of(const char *name, const char *dir, struct checkpoint *ck, void *context)
{
    struct seen *seen = context;
    struct ckpt_choice choice;
    enum code c = ckpt_choose(ckpt_arch(ck), "x", HOME_AUTO, NULL, &choice); /* as it came, it fits where it came from */
    if (c != OK || choice.home != HOME_NATIVE)
        print_error("%s: %s\n", name, c == OK ? choice.sentence : fail_text());
    assert_true(c == OK && choice.home == HOME_NATIVE);
    c = ckpt_choose(ckpt_arch(ck), "x", HOME_CUSTOM, NULL, &choice);
    if (c != OK)
        print_error("%s: %s\n", name, fail_text());
    assert_int_equal(c, OK);
    assert_true(choice.exact);
    struct checkpoint *now = write_home(dir, &choice, "custom", DT_NONE);
    assert_string_equal(ckpt_arch(now)->family, "gqakit");
    assert_int_equal(ckpt_count(ck), ckpt_count(now));
    for (int i = 0; i < ckpt_count(ck); i++) {
        const struct ckpt_tensor *s = ckpt_at(ck, i), *t = ckpt_find(now, s->name);
        assert_non_null(t);
        assert_int_equal(s->bytes, t->bytes);
        char *x = malloc((size_t)s->bytes), *y = malloc((size_t)s->bytes);
        assert_ok(ckpt_read(ck, s, 0, s->n[0], x, DT_NONE));
        assert_ok(ckpt_read(now, t, 0, t->n[0], y, DT_NONE));
        assert_memory_equal(x, y, (size_t)s->bytes);
        free(x);
        free(y);
    }
    same_arch(ckpt_arch(ck), ckpt_arch(now));
    if (strcmp(seen->family, ckpt_arch(ck)->family) != 0) {
        float *a = model_logits(ck, 7), *b = model_logits(now, 7);
        assert_non_null(a);
        assert_non_null(b);
        assert_memory_equal(a, b, (size_t)(2 * ckpt_arch(ck)->V) * sizeof *a);
        free(a);
        free(b);
    }
    snprintf(seen->family, sizeof seen->family, "%s", ckpt_arch(ck)->family);
    seen->n++;
    ckpt_close(now);
}

static void our_own_form_keeps_every_byte(void **state)
{
    (void)state;
    struct seen seen = {0};
    for_each_golden(custom_of, &seen);
    print_message("%d models\n", seen.n);
    assert_true(seen.n > 100);
    char *python = temp_path("custom/modeling_gqakit.py");
    assert_true(io_exists(python));
    free(python);
}

static void our_own_config_is_checked(void **state)
{
    (void)state;
    static const struct { const char *text, *part; } cases[] = {
        {"{\"model_type\": \"gqakit\", \"vocab_size\": 8}", "\"arch\" is missing"},
        {"{\"model_type\": \"gqakit\", \"vocab_size\": 8, \"arch\": []}", "\"arch\" is missing"},
        {"{\"model_type\": \"gqakit\", \"vocab_size\": 8, \"arch\": {}}", "blocks"},
        {"{\"model_type\": \"gqakit\", \"vocab_size\": 8, \"arch\": {\"decoder\": {\"blocks\": []}}}", "layers"}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct arch a;
        assert_refused(arch_from_config_json(&a, cases[i].text, strlen(cases[i].text), "config.json"), ERR_INPUT, cases[i].part);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_step_keeps_the_logits),
        cmocka_unit_test(retargets_keep_the_logits),
        cmocka_unit_test(our_own_form_keeps_every_byte),
        cmocka_unit_test(our_own_config_is_checked),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
