/* See family_case.h. */
#include "family_case.h"

#include <math.h>

#include "checkpoints/family.h"
#include "hf_case.h"

static char *quoted(const char *text)
{
    char *copy = strdup(text);
    for (char *p = copy; *p; p++)
        *p = *p == '\'' ? '"' : *p;
    return copy;
}

static enum code config_read(struct arch *a, const char *text) { return arch_from_config_json(a, text, strlen(text), "config.json"); }

enum code family_config(struct arch *a, const char *config)
{
    char *text = quoted(config);
    enum code c = config_read(a, text);
    free(text);
    return c;
}

/* Every member of `want` is in `have`; arrays are compared element by element. */
static int contains(const json_t *have, const json_t *want)
{
    if (json_is_number(have) && json_is_number(want)) {
        double x = json_number_value(have), y = json_number_value(want);
        return fabs(x - y) <= 1e-9 * fabs(y);
    }
    if (json_is_object(have) && json_is_object(want)) {
        const char *key;
        json_t *v;
        json_object_foreach ((json_t *)want, key, v)
            if (!contains(json_object_get(have, key), v)) {
                print_error("member %s\n", key);
                return 0;
            }
        return 1;
    }
    if (json_is_array(have) && json_is_array(want)) {
        int same = json_array_size(have) == json_array_size(want);
        for (size_t i = 0; same && i < json_array_size(have); i++)
            same = contains(json_array_get(have, i), json_array_get(want, i));
        return same;
    }
    return have && want && json_equal(have, want);
}

static void arch_says(const struct arch *a, const char *expected)
{
    char *text = quoted(expected);
    json_t *want, *have = arch_to_json(a);
    assert_ok(json_parse_object(text, strlen(text), "the expected arch", &want));
    int good = contains(have, want);
    if (!good) {
        json_object_del(have, "source_config");
        char *found = json_dumps(have, JSON_COMPACT);
        print_error("expected %s\nfound    %s\n", text, found);
        free(found);
    }
    json_decref(have);
    json_decref(want);
    free(text);
    assert_true(good);
}

/* ---- tensors ------------------------------------------------------------------------------------------------------ */

/* Adds "name[2,3] " to the list unless it is there. */
static void list_add(char *list, size_t n, const struct family_place *p)
{
    for (int i = 0; i < (p->pieces > 1 ? p->pieces : 1); i++) {
        char name[160], item[256];
        family_place_name(p, i, name);
        if (p->nd == 2)
            snprintf(item, sizeof item, "%s[%lld,%lld] ", name, (long long)p->n[0], (long long)p->n[1]);
        else
            snprintf(item, sizeof item, "%s[%lld] ", name, (long long)p->n[0]);
        size_t k = strlen(list);
        if (!strstr(list, item))
            snprintf(list + k, n - k, "%s", item);
    }
}

static void tensors_are(const struct arch *a, const char *expected)
{
    struct tensor_spec *specs;
    int n;
    char list[8192] = "", want[8192];
    assert_ok(arch_tensors(a, &specs, &n));
    for (int i = 0; i < n; i++)
        if (specs[i].layer <= 0) {
            struct family_place p;
            family_of(a->family)->place(a, &specs[i], &p);
            list_add(list, sizeof list, &p);
        }
    free(specs);
    snprintf(want, sizeof want, "%s ", expected);
    size_t found = 0;
    for (char *next = NULL, *item = strtok_r(want, " ", &next); item; item = strtok_r(NULL, " ", &next)) {
        char spaced[256];
        snprintf(spaced, sizeof spaced, "%s ", item);
        if (!strstr(list, spaced))
            print_error("no tensor %s; there are %s\n", item, list);
        assert_non_null(strstr(list, spaced));
        found += strlen(spaced);
    }
    if (found != strlen(list))
        print_error("more tensors than expected: %s\n", list);
    assert_int_equal(found, strlen(list));
}

/* ---- config.json out ---------------------------------------------------------------------------------------------- */

static void fresh_says_the_same(const struct arch *source)
{
    struct arch a, b;
    char *text;
    assert_ok(arch_copy(&a, source));
    free(a.source_config);
    a.source_config = NULL;
    assert_ok(arch_to_config_json(&a, DT_NONE, &text));
    assert_ok(config_read(&b, text));
    free(b.source_config);
    b.source_config = NULL;
    json_t *x = arch_to_json(&a), *y = arch_to_json(&b);
    if (!contains(y, x))
        print_error("%s\n", text);
    assert_true(contains(y, x) && contains(x, y));
    json_decref(x);
    json_decref(y);
    free(text);
    arch_free(&a);
    arch_free(&b);
}

/* One key/value head instead of many, and back: one key differs, and nothing else. */
static void groups_edit_one_key(const struct arch *source)
{
    const struct family *family = family_of(source->family);
    struct arch a, b;
    char *text;
    if (source->stack[STACK_DEC].block[0].G == 1 || family->set_groups)
        return;
    assert_ok(arch_copy(&a, source));
    for (int64_t l = 0; l < a.stack[STACK_DEC].L; l++)
        a.stack[STACK_DEC].block[l].G = 1;
    if (family->holds && family->holds(&a) != OK) {
        arch_free(&a);
        return;
    }
    assert_ok(arch_to_config_json(&a, DT_NONE, &text));
    assert_ok(config_read(&b, text));
    assert_int_equal(b.stack[STACK_DEC].block[0].G, 1);
    assert_int_equal(arch_parameters(&b), arch_parameters(&a));
    json_t *was, *is;
    assert_ok(json_parse_object(source->source_config, strlen(source->source_config), "source", &was));
    assert_ok(json_parse_object(text, strlen(text), "result", &is));
    json_object_del(was, family->groups_key);
    json_object_del(is, family->groups_key);
    assert_true(json_equal(was, is));
    json_decref(was);
    json_decref(is);
    free(text);
    arch_free(&a);
    arch_free(&b);
}

/* ---- weights ------------------------------------------------------------------------------------------------------ */

static void values_are(const char *path)
{
    struct checkpoint *ck;
    assert_ok(ckpt_open(&ck, path, NULL));
    for (int i = 0; i < ckpt_count(ck); i++) {
        const struct ckpt_tensor *t = ckpt_at(ck, i);
        int64_t n = t->n[0] * t->n[1];
        float *want = malloc((size_t)n * sizeof *want), *got = malloc((size_t)n * sizeof *got);
        random_normal_f32(want, n, 0, 1, 7, random_stream_of(t->name), 0);
        fill_nan(got, n);
        int64_t third = (t->n[0] + 2) / 3;
        for (int64_t row = 0; row < t->n[0]; row += third)
            assert_ok(ckpt_read(ck, t, row, row + third > t->n[0] ? t->n[0] - row : third, got + row * t->n[1], DT_F32));
        if (memcmp(got, want, (size_t)n * sizeof *want) != 0)
            print_error("%s differs\n", t->name);
        assert_memory_equal(got, want, (size_t)n * sizeof *want);
        free(want);
        free(got);
    }
    ckpt_close(ck);
}

static void weights_round_trip(const struct arch *source)
{
    struct arch a;
    struct ckpt_writer *w;
    char *path = temp_path("family"), *copy = temp_path("family-copy");
    assert_ok(arch_copy(&a, source));
    struct ckpt_target target = {.path = path, .arch = &a, .dtype = DT_F32, .force = 1};
    assert_ok(ckpt_create(&w, &target));
    hf_fill(w);
    assert_ok(ckpt_commit(w));
    values_are(path);
    assert_ok(hf_copy(path, copy, DT_NONE, 0, 1));
    hf_same_dir(path, copy);
    arch_free(&a);
    free(path);
    free(copy);
}

/* Large only in what absent keys mean: not worth a file. */
static int is_small(const struct arch *a) { return arch_parameters(a) < 1 << 20; }

void family_cases_check(const struct family_case *cases, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        struct arch a;
        print_message("%.120s\n", cases[i].config);
        assert_ok(family_config(&a, cases[i].config));
        arch_says(&a, cases[i].arch);
        if (cases[i].tensors)
            tensors_are(&a, cases[i].tensors);
        fresh_says_the_same(&a);
        groups_edit_one_key(&a);
        if (is_small(&a))
            weights_round_trip(&a);
        arch_free(&a);
    }
}

void family_refusals_check(const struct family_refusal *refusals, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        struct arch a;
        enum code c = family_config(&a, refusals[i].config);
        if (c == OK)
            print_error("not refused: %s\n", refusals[i].config);
        assert_refused(c, refusals[i].code, refusals[i].part);
    }
}
