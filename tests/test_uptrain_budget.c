/* gqa.kv_budget: gqa-uptrain converts under a budget, trains a model whose layers have different numbers of heads, resumes it, and ends with a
 * directory that says what was chosen; a plan and the refusals come before anything is written. */
#include "data/data.h"
#include "programs.h"
#include "runs.h"
#include "small_checkpoint.h"

enum { HEADS = 6, WHOLE = 768, ONE_LESS = WHOLE - 1 }; /* 2 layers of K and V, 6 heads of 8 in f32: 768 bytes a token */

static char *source(void)
{
    struct arch a;
    char *path = temp_path("source");
    small_arch(&a, HEADS, HEADS, DT_F32);
    a.eos = -1;
    assert_int_equal(arch_kv_bytes_per_token(&a, 0, DT_F32), WHOLE);
    if (!io_exists(path))
        small_write(path, &a, 41, 1, NULL);
    arch_free(&a);
    return path;
}

/* A config without its gqa block's number; budgets and what else goes on the command line. */
static char *config(void)
{
    char text[2000], *model = source(), *tokens = temp_path("tokens.bin");
    int32_t ids[1500];
    for (size_t i = 0; i < COUNT_OF(ids); i++)
        ids[i] = (int32_t)random_int(9, i, 0, 36);
    assert_ok(tokens_write(tokens, ids, (int64_t)COUNT_OF(ids), 37, -1, -1, NULL));
    int n = snprintf(text, sizeof text, "model: {path: %s}\ngqa: {calibration: %s, method: svd}\ndata: {train: [%s], validation: [%s]}\nsequence_len: 24\n"
                     "micro_batch_size: 2\nmax_steps: 4\nlr_scheduler: {name: constant}\nsave_steps: 2\neval_batches: 2\nthreads: 1\noutput_dir: %s/unset\n", model, tokens, tokens, tokens, temp_dir());
    temp_write("budget.yaml", text, (size_t)n);
    free(model);
    free(tokens);
    return temp_path("budget.yaml");
}

static struct child train(const char *out, const char *budget, const char *a, const char *b)
{
    char dir[600], key[100], *yaml = config();
    snprintf(dir, sizeof dir, "output_dir=%s/%s", temp_dir(), out);
    snprintf(key, sizeof key, "gqa.kv_budget=%s", budget);
    struct child c = UPTRAIN(yaml, dir, key, a, b);
    free(yaml);
    return c;
}

/* The layers' numbers in a checkpoint; its bytes per token. */
static int64_t heads_of(const char *out, const char *name, int64_t G[2])
{
    struct checkpoint *ck;
    char *path = runs_path(out, name);
    int checked;
    assert_ok(ckpt_open(&ck, path, NULL));
    for (int l = 0; l < 2; l++)
        G[l] = ckpt_arch(ck)->stack[STACK_DEC].block[l].G;
    int64_t bytes = arch_kv_bytes_per_token(ckpt_arch(ck), 0, DT_F32);
    ckpt_close(ck);
    if (io_is_dir(path))
        assert_ok(ckpt_verify(path, &checked));
    free(path);
    return bytes;
}

/* One byte less than everything: one layer gives up half its heads, the other none. */
static void layers_of_their_own(void **state)
{
    (void)state;
    char budget[24], *path, *text;
    size_t n;
    int64_t converted[2], final[2], step[2];
    snprintf(budget, sizeof budget, "%d", ONE_LESS);
    struct child c = train("own", budget, "max_steps=2", NULL);
    runs_expect(&c, 0, "under a K/V budget of 767 (svd)");
    c = train("own", budget, NULL, NULL);
    assert_non_null(strstr(c.err, "already converted"));
    runs_expect(&c, 0, "resumed at step 2");
    assert_int_equal(heads_of("own", "converted", converted), 3 * WHOLE / 4);
    assert_true(converted[0] + converted[1] == 9 && converted[0] != converted[1]);
    heads_of("own", "step-00000004", step);
    heads_of("own", "final", final);
    assert_memory_equal(step, converted, sizeof step);
    assert_memory_equal(final, converted, sizeof final);

    c = train("own-whole", budget, NULL, NULL); /* stopped and resumed is as run through */
    runs_expect(&c, 0, NULL);
    const char *want = runs_weights("own-whole");
    assert_string_equal(runs_weights("own"), want);

    json_t *facts = NULL;
    path = runs_path("own", "final/PROVENANCE.json");
    assert_ok(json_read_file(path, 1 << 20, &facts));
    const json_t *asked = json_object_get(json_object_get(json_object_get(facts, "source_provenance"), "conversion"), "kv_budget");
    assert_string_equal(json_string_value(json_object_get(asked, "asked")), budget);
    assert_string_equal(json_string_value(json_object_get(json_object_get(json_object_get(facts, "config"), "gqa"), "kv_budget")), budget);
    json_decref(facts);
    free(path);
    path = runs_path("own", "final/README.md");
    assert_ok(io_read_all(path, 1 << 20, &text, &n));
    char line[80];
    snprintf(line, sizeof line, "6 query heads; key/value heads by layer: %d %d.", (int)final[0], (int)final[1]);
    assert_non_null(strstr(text, line));
    free(text);
    free(path);

    c = train("own", "25%", NULL, NULL);
    runs_expect(&c, 2, "converted otherwise");
}

/* One number for all layers, where the error does not say otherwise, is a class of transformers; either way within the budget. */
static void shares(void **state)
{
    (void)state;
    static const char *const budgets[] = {"50%", "25%", "100%"};
    for (int i = 0; i < 3; i++) {
        int64_t G[2];
        char out[24];
        snprintf(out, sizeof out, "share%d", i);
        struct child c = train(out, budgets[i], "distill.weight=0.5", NULL); /* the teacher is the model before conversion */
        runs_expect(&c, 0, NULL);
        int64_t bytes = heads_of(out, "final", G);
        assert_true(i == 2 ? bytes == WHOLE : bytes <= (i == 0 ? WHOLE / 2 : WHOLE / 4));
    }
}

static void planned(void **state)
{
    (void)state;
    struct child c = train("planned", "25%", "--plan", NULL);
    assert_non_null(strstr(c.out, "K/V budget             25%: 192 of 768 bytes per token; gqa-convert chooses"));
    runs_expect(&c, 0, NULL);
    int64_t before = 0;
    static const char *const budgets[] = {"128", "25%", "575", "100%"};
    for (int i = 0; i < 4; i++) {
        json_t *j = program_json(train("planned", budgets[i], "--plan", "--json"));
        int64_t now = (int64_t)json_number_at(j, "parameters");
        assert_true(now > before);
        before = now;
        assert_true(json_number_at(json_object_get(j, "kv_budget"), "source_bytes") == WHOLE);
        json_decref(j);
    }
    char *dir = temp_path("planned");
    assert_false(io_exists(dir));
    free(dir);
}

static void refused(void **state)
{
    (void)state;
    static const struct { const char *budget, *part; } table[] = {
        {"some", "gqa.kv_budget \"some\": expected a share"}, {"0.25", "expected a share"}, {"1%", "gqa.kv_budget 1% is 7 bytes per token, but one head in every layer takes 128"}};
    for (size_t i = 0; i < COUNT_OF(table); i++) {
        program_refused(train("refused", table[i].budget, "--plan", NULL), 2, table[i].part);
        program_refused(train("refused", table[i].budget, NULL, NULL), 2, table[i].part);
    }
    char *converted = runs_path("refused", "converted");
    assert_false(io_exists(converted));
    free(converted);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(layers_of_their_own), cmocka_unit_test(shares), cmocka_unit_test(planned), cmocka_unit_test(refused)};
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
