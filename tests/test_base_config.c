/* YAML configs: values, refusals with their marks, limits, overrides, dumps. */
#include <math.h>
#include <unistd.h>

#include "harness.h"

struct sample {
    const char *path;
    int64_t steps;
    double lr, decay;
    int flag, schedule;
    struct config_list groups, rates, names;
    const struct config_node *arch;
};

#define AT(m) offsetof(struct sample, m)
static const struct config_field table[] = {
    {"model.path", CONFIG_STR, AT(path), NULL, NULL, "model.name_or_path|checkpoint", "where the model is", 0, 0},
    {"model.arch", CONFIG_MAP, AT(arch), NULL, NULL, NULL, "architecture", 0, 0},
    {"max_steps", CONFIG_INT, AT(steps), "100", NULL, "steps|num_steps", "steps", 1, 1e12},
    {"optimizer.lr", CONFIG_FLOAT, AT(lr), "3e-4", NULL, "learning_rate", "learning rate", 0, 10},
    {"optimizer.weight_decay", CONFIG_FLOAT, AT(decay), "0.1", NULL, NULL, "decay", 0, 0},
    {"lr_scheduler.type", CONFIG_CHOICE, AT(schedule), "cosine", "constant|cosine|wsd", NULL, "schedule", 0, 0},
    {"deterministic", CONFIG_BOOL, AT(flag), "true", NULL, NULL, "same bits", 0, 0},
    {"ablate.groups", CONFIG_INTS, AT(groups), "[1, 2]", NULL, NULL, "group counts", 1, 128},
    {"ablate.alphas", CONFIG_FLOATS, AT(rates), NULL, NULL, NULL, "shares", 0, 0},
    {"ablate.methods", CONFIG_STRS, AT(names), NULL, NULL, NULL, "methods", 0, 0},
};
enum { N_FIELDS = COUNT_OF(table) };

/* Parses and binds; the config stays alive in *c when OK. */
static enum code load(const char *yaml, struct config **c, struct sample *s)
{
    memset(s, 0, sizeof *s);
    TRY(config_parse(c, yaml, strlen(yaml), "a.yaml"));
    enum code code = config_bind(*c, config_root(*c), table, N_FIELDS, s);
    if (code != OK) {
        config_free(*c);
        *c = NULL;
    }
    return code;
}

static void refuse(const char *yaml, const char *part)
{
    struct config *c = NULL;
    struct sample s;
    assert_refused(load(yaml, &c, &s), ERR_USAGE, part);
}

static const char sample_yaml[] = "# a config\n"
                                  "model:\n"
                                  "  path: checkpoints/sample-mha\n"
                                  "  arch: {hidden_size: 64, \"q\": \"12\", deep: [1, [2.5, x], {}]}\n"
                                  "max_steps: 1_000\n"
                                  "optimizer: {lr: 2e-5, weight_decay: 0}\n"
                                  "lr_scheduler:\n"
                                  "  type: wsd\n"
                                  "deterministic: no\n"
                                  "ablate:\n"
                                  "  groups: [1, 2, 8]\n"
                                  "  alphas: 0.05\n"
                                  "  methods: [mean, first]\n";

static void test_values(void **state)
{
    (void)state;
    struct config *c;
    struct sample s;
    assert_ok(load(sample_yaml, &c, &s));
    assert_string_equal(s.path, "checkpoints/sample-mha");
    assert_int_equal(s.steps, 1000);
    assert_true(s.lr == 2e-5 && s.decay == 0.0);
    assert_int_equal(s.schedule, 2);
    assert_int_equal(s.flag, 0);
    assert_int_equal(s.groups.n, 3);
    assert_int_equal(((const int64_t *)s.groups.items)[2], 8);
    assert_int_equal(s.rates.n, 1);
    assert_true(((const double *)s.rates.items)[0] == 0.05);
    assert_string_equal(((const char *const *)s.names.items)[1], "first");
    assert_true(s.arch != NULL && s.arch == config_at(config_root(c), "model.arch"));
    assert_string_equal(config_where(c, NULL, NULL), "a.yaml");
    assert_string_equal(config_where(c, config_root(c), "optimizer.lr"), "a.yaml:6:13");
    assert_true(config_has(config_root(c), "lr_scheduler.type") && !config_has(config_root(c), "lr_scheduler.warmup"));
    assert_true(!config_has(config_root(c), "max_steps.x"));
    config_free(c);
}

static void test_defaults(void **state)
{
    (void)state;
    static const char *const empty[] = {"", "# nothing\n", "---\n", "{}", "max_steps:\nmodel:\noptimizer: ~\nlr_scheduler: {type: null}\n"};
    for (size_t i = 0; i < COUNT_OF(empty); i++) {
        struct config *c;
        struct sample s;
        assert_ok(load(empty[i], &c, &s));
        assert_true(s.path == NULL && s.arch == NULL && s.rates.n == 0);
        assert_int_equal(s.steps, 100);
        assert_true(s.lr == 3e-4);
        assert_int_equal(s.schedule, 1);
        assert_int_equal(s.flag, 1);
        assert_int_equal(s.groups.n, 2);
        config_free(c);
    }
}

static void test_aliases(void **state)
{
    (void)state;
    static const char *const forms[] = {"learning_rate: 1e-3\n", "optimizer: {learning_rate: 1e-3}\n", "optimizer: {lr: 1.0E-3}\n"};
    struct config *c;
    struct sample s;
    for (size_t i = 0; i < COUNT_OF(forms); i++) {
        assert_ok(load(forms[i], &c, &s));
        assert_true(s.lr == 1e-3);
        config_free(c);
    }
    assert_ok(load("num_steps: 2e3\nmodel: {name_or_path: x}\n", &c, &s));
    assert_int_equal(s.steps, 2000);
    assert_string_equal(s.path, "x");
    config_free(c);
    refuse("learning_rate: 1\noptimizer: {lr: 2}\n", "keep one");
}

static void test_refused_keys(void **state)
{
    (void)state;
    refuse("max_stesp: 4\n", "a.yaml:1:1: unknown key 'max_stesp'; did you mean 'max_steps'?");
    refuse("optimizer:\n  lr: 1\n  weight_deacy: 2\n", "a.yaml:3:3: unknown key 'optimizer.weight_deacy'; did you mean 'optimizer.weight_decay'?");
    refuse("weight_decay: 1\n", "did you mean 'optimizer.weight_decay'?");
    refuse("zebra: 1\n", "keys here: model, max_steps, optimizer, lr_scheduler, deterministic, ablate");
    refuse("optimizer.lr: 1\n", "nested");
    refuse("optimizer: 5\n", "a.yaml:1:12: optimizer: expected a mapping of keys, found '5'");
    refuse("max_steps: 1\nmax_steps: 2\n", "a.yaml:2:1: 'max_steps' is given twice, first at line 1");
    refuse("? [a]\n: 1\n", "a key must be a plain word");
    refuse("\"\": 1\n", "a key is empty");
    refuse("- a\n", "expected 'key: value'");
    refuse("text\n", "expected 'key: value'");
}

static void test_refused_values(void **state)
{
    (void)state;
    refuse("max_steps: many\n", "a.yaml:1:12: max_steps: expected an integer, found 'many'");
    refuse("max_steps: 1.5\n", "expected an integer");
    refuse("max_steps: 99999999999999999999\n", "expected an integer");
    refuse("max_steps: 0\n", "expected an integer from 1 to");
    refuse("max_steps: \"7\"\n", "found the quoted text \"7\"");
    refuse("max_steps: [1]\n", "found a list");
    refuse("max_steps: 1__0\n", "expected an integer");
    refuse("optimizer: {lr: -1}\n", "expected a number from 0 to 10");
    refuse("optimizer: {lr: nan}\n", "expected a number");
    refuse("optimizer: {lr: 1e999}\n", "expected a number");
    refuse("optimizer: {lr: 0x10}\n", "expected a number");
    refuse("optimizer: {lr: inf}\n", "expected a number from");
    refuse("lr_scheduler: {type: cosin}\n", "one of constant, cosine, wsd, found 'cosin'");
    refuse("lr_scheduler: {type: [cosine]}\n", "one of constant, cosine, wsd, found a list");
    refuse("deterministic: maybe\n", "expected true or false");
    refuse("ablate: {groups: [1, x]}\n", "a.yaml:1:22: ablate.groups: expected an integer");
    refuse("ablate: {groups: {a: 1}}\n", "expected a list");
    refuse("ablate: {methods: [[a]]}\n", "expected a text");
    refuse("model: {path: [a]}\n", "expected a text");
    refuse("model: {arch: 3}\n", "expected a mapping");
}

static void test_refused_yaml(void **state)
{
    (void)state;
    refuse("a: &x 1\n", "anchors");
    refuse("a: &x {b: 1}\n", "anchors");
    refuse("a: &x [1]\n", "anchors");
    refuse("a: *x\n", "aliases");
    refuse("a: !!int 1\n", "tags");
    refuse("a: !foo [1]\n", "tags");
    refuse("<<: {a: 1}\n", "merge keys");
    refuse("a: [1, 2\n", "not valid YAML");
    refuse("a: \"\\0\"\n", "NUL");
    refuse("a: 1\n---\nb: 2\n", "a.yaml:2:1: a second document");
    refuse("a: \xff\xfe\n", "not text");
    refuse("\t- a: b: c\n", "a.yaml:1:");
}

static void test_limits_are_fast(void **state)
{
    (void)state;
    enum { MANY = 10000 };
    struct config *c = NULL;
    double start = host_seconds();
    char *deep = malloc(4 * MANY + 8);
    memset(deep, '[', MANY);
    assert_refused(config_parse(&c, deep, MANY, "deep"), ERR_USAGE, "deep:1:33: nested deeper than 32 levels");
    memset(deep, '{', MANY);
    assert_int_equal(config_parse(&c, deep, MANY, "deep"), ERR_USAGE);
    for (int i = 0; i < MANY; i++)
        memcpy(deep + 3 * i, "a: ", 3);
    assert_int_equal(config_parse(&c, deep, 3 * MANY, "deep"), ERR_USAGE);
    for (int i = 0; i < MANY; i++)
        memcpy(deep + 2 * i, "- ", 2);
    assert_int_equal(config_parse(&c, deep, 2 * MANY, "deep"), ERR_USAGE);
    free(deep);
    size_t n = (1 << 20) + 1;
    char *large = malloc(n);
    memset(large, '#', n);
    assert_refused(config_parse(&c, large, n, "large"), ERR_USAGE, "at most 1 MiB");
    size_t used = 0; /* many keys in one mapping */
    for (int i = 0; i < MANY; i++)
        used += (size_t)sprintf(large + used, "k%d: 1\n", i);
    assert_refused(config_parse(&c, large, used, "keys"), ERR_USAGE, "more than 1024 keys");
    free(large);
    double spent = host_seconds() - start;
    if (!(spent < 0.5))
        print_error("took %.2f s\n", spent);
    assert_true(spent < 0.5);
}

static void test_truncated_everywhere(void **state)
{
    (void)state;
    for (size_t n = 0; n < sizeof sample_yaml; n++) {
        char *exact = malloc(n ? n : 1); /* so that a sanitizer sees a read past the end */
        memcpy(exact, sample_yaml, n);
        struct config *c = NULL;
        struct sample s;
        enum code code = config_parse(&c, exact, n, "cut");
        if (code == OK)
            code = config_bind(c, config_root(c), table, N_FIELDS, &s);
        assert_true(code == OK || code == ERR_USAGE);
        config_free(c);
        free(exact);
    }
}

static void test_mutated_bytes(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < 4000; i++) {
        char bytes[sizeof sample_yaml];
        memcpy(bytes, sample_yaml, sizeof bytes);
        for (uint64_t k = 0; k < 1 + i % 3; k++)
            bytes[random_int(i, 2 * k, 0, sizeof bytes - 2)] = (char)random_int(i, 2 * k + 1, 0, 255);
        struct config *c = NULL;
        struct sample s;
        log_quiet(1);
        enum code code = config_parse(&c, bytes, sizeof bytes - 1, "mutated");
        if (code == OK)
            code = config_bind(c, config_root(c), table, N_FIELDS, &s);
        assert_true(code == OK || code == ERR_USAGE);
        config_free(c);
        log_quiet(0);
    }
}

static void test_overrides(void **state)
{
    (void)state;
    temp_write("a.yaml", sample_yaml, sizeof sample_yaml - 1);
    char *path = temp_path("a.yaml"), *none = temp_path("none.yaml");
    struct config *c = NULL;
    struct sample s = {0};
    char *good[] = {"max_steps=7", "optimizer.learning_rate=1e-4", "ablate.groups=[4]", "model={path: elsewhere}", "lr_scheduler.type="};
    assert_ok(config_load(&c, path, COUNT_OF(good), good));
    assert_ok(config_bind(c, config_root(c), table, N_FIELDS, &s));
    assert_int_equal(s.steps, 7);
    assert_true(s.lr == 1e-4);
    assert_int_equal(s.groups.n, 1);
    assert_string_equal(s.path, "elsewhere");
    assert_int_equal(s.schedule, 1);
    assert_string_equal(config_where(c, config_root(c), "max_steps"), "command line");
    config_free(c);
    static const struct { const char *override, *part; } bad[] = {
        {"max_steps", "expected key.sub=value"}, {"=3", "expected key.sub=value"}, {"a..b=3", "expected key.sub=value"},
        {".a=3", "expected key.sub=value"},      {"a.=3", "expected key.sub=value"}, {"max_steps=[", "command line"},
        {"max_steps.x=3", "not a mapping"},
    };
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        char *one[] = {(char *)(uintptr_t)bad[i].override};
        assert_refused(config_load(&c, path, 1, one), ERR_USAGE, bad[i].part);
    }
    char *unknown[] = {"optimizer.lrr=3"}, *value[] = {"max_steps=abc"};
    assert_ok(config_load(&c, path, 1, unknown));
    assert_refused(config_bind(c, config_root(c), table, N_FIELDS, &s), ERR_USAGE, "command line: unknown key 'optimizer.lrr'");
    config_free(c);
    assert_ok(config_load(&c, path, 1, value));
    assert_refused(config_bind(c, config_root(c), table, N_FIELDS, &s), ERR_USAGE, "command line: max_steps: expected an integer");
    config_free(c);
    assert_refused(config_load(&c, none, 0, NULL), ERR_USAGE, "no such config file");
    assert_refused(config_load(&c, temp_dir(), 0, NULL), ERR_USAGE, "directory");
    free(path);
    free(none);
}

static void test_json_and_yaml_forms(void **state)
{
    (void)state;
    struct config *c, *again;
    struct sample s;
    assert_ok(load(sample_yaml, &c, &s));
    json_t *root = config_to_json(config_root(c));
    char *flat = json_dumps(json_object_get(json_object_get(root, "model"), "arch"), JSON_COMPACT);
    assert_string_equal(flat, "{\"hidden_size\":64,\"q\":\"12\",\"deep\":[1,[2.5,\"x\"],{}]}");
    free(flat);
    static const char *const words[] = {"", "true", "No", "null", "~", "12", "1e5", "1_0", "0x1f", "a: b", "- x", "#c", "'", "\"\\",
                                        "two\nlines ", "\t", "\x7f", "\xc2\x85", "h\xc3\xa9", "*a", "&a", "!t", "@", "%", "y", "12:30", ".inf"};
    for (size_t i = 0; i < COUNT_OF(words); i++) {
        char key[16];
        snprintf(key, sizeof key, "w%zu", i);
        json_object_set_new(root, key, json_string(words[i]));
    }
    json_object_set_new(root, "third", json_real(1.0 / 3.0));
    json_object_set_new(root, "whole", json_real(2.0));
    json_object_set_new(root, "big", json_integer(INT64_MAX));
    json_object_set_new(root, "none", json_null());
    json_object_set_new(root, "true", json_pack("[{s:b}]", "on", 1));
    char *yaml = config_json_to_yaml(root);
    assert_non_null(yaml);
    assert_ok(config_parse(&again, yaml, strlen(yaml), "again"));
    json_t *back = config_to_json(config_root(again));
    if (!json_equal(root, back))
        print_error("%s\n", yaml);
    assert_true(json_equal(root, back));
    free(yaml);
    json_decref(root);
    json_decref(back);
    config_free(c);
    config_free(again);
    assert_true(json_is_null(config_to_json(NULL)));
}

static void test_nearest(void **state)
{
    (void)state;
    static const char *const words[] = {"learning_rate", "lr", "max_steps", "seed"};
    assert_string_equal(config_nearest("leraning_rate", words, 4), "learning_rate");
    assert_string_equal(config_nearest("max_step", words, 4), "max_steps");
    assert_string_equal(config_nearest("sede", words, 4), "seed");
    assert_string_equal(config_nearest("learning", words, 4), "learning_rate");
    assert_null(config_nearest("zebra_crossing", words, 4));
    assert_null(config_nearest("x", NULL, 0));
    char longer[300];
    memset(longer, 'a', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    assert_null(config_nearest(longer, words, 4));
    config_help(table, N_FIELDS);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),          cmocka_unit_test(test_defaults),       cmocka_unit_test(test_aliases),
        cmocka_unit_test(test_refused_keys),    cmocka_unit_test(test_refused_values), cmocka_unit_test(test_refused_yaml),
        cmocka_unit_test(test_limits_are_fast), cmocka_unit_test(test_truncated_everywhere),
        cmocka_unit_test(test_mutated_bytes),   cmocka_unit_test(test_overrides),      cmocka_unit_test(test_json_and_yaml_forms),
        cmocka_unit_test(test_nearest),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
