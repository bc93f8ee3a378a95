/* gqa-eval tasks on a tiny byte-level model: the sums are those of gqa-eval score, the predictions and errors follow from the sums by
 * arithmetic done again here, what was decoded is what gqa-eval generate says, and every wrong line is named. */
#include "harness.h"
#include "programs.h"
#include "small_checkpoint.h"

#include <math.h>

static char *byte_model(const char *name, int bos)
{
    struct arch a;
    small_arch(&a, 6, 3, DT_F32);
    a.V = a.original_vocab = 256;
    a.bos = bos;
    a.eos = -1;
    char *path = temp_path(name);
    small_write(path, &a, 3, 1, NULL);
    arch_free(&a);
    return path;
}

static char *write_lines(const char *name, const char *text)
{
    temp_write(name, text, strlen(text));
    return temp_path(name);
}

/* All JSON lines of a text. */
static json_t *lines_of(const char *text)
{
    json_t *list = json_array();
    for (const char *p = text, *end; *p; p = *end ? end + 1 : end) {
        end = p + strcspn(p, "\n");
        if (end > p) {
            json_t *j = json_loadb(p, (size_t)(end - p), 0, NULL);
            assert_non_null(j);
            json_array_append_new(list, j);
        }
    }
    return list;
}

static json_t *samples_at(const char *path)
{
    char *text = NULL;
    size_t n = 0;
    assert_ok(io_read_all(path, 1 << 24, &text, &n));
    json_t *list = lines_of(text);
    free(text);
    return list;
}

static double metric(const json_t *result, const char *task, const char *key)
{
    return json_number_at(json_object_get(json_object_get(result, "results"), task), key);
}

/* ln p of the last `scored` bytes of a text, the first byte having id `lead` before it unless that is -1. */
static double sum_by_score(const char *model, int lead, const char *text, size_t scored)
{
    char line[2048] = "{\"ids\": [";
    int used = (int)strlen(line);
    if (lead >= 0)
        used += snprintf(line + used, sizeof line - (size_t)used, "%d,", lead);
    for (const char *p = text; *p; p++)
        used += snprintf(line + used, sizeof line - (size_t)used, "%d%s", (unsigned char)*p, p[1] ? "," : "]}");
    char *path = write_lines("one.jsonl", line);
    json_t *j = program_json(EVAL("score", model, "--tokens", path));
    const json_t *logp = json_object_get(j, "logprob");
    double sum = 0;
    assert_true(json_array_size(logp) >= scored);
    for (size_t i = json_array_size(logp) - scored; i < json_array_size(logp); i++)
        sum += json_real_value(json_array_get(logp, i));
    json_decref(j);
    free(path);
    return sum;
}

static double sum_at(const json_t *sample, size_t i) { return json_real_value(json_array_get(json_object_get(sample, "loglikelihoods"), i)); }
static int64_t tokens_at(const json_t *sample, size_t i) { return json_integer_value(json_array_get(json_object_get(sample, "tokens"), i)); }

static void sums_are_those_of_score(void **state)
{
    (void)state;
    char *model = byte_model("t-model", -1), *samples = temp_path("samples.jsonl");
    char *task = write_lines("choice.jsonl", "{\"query\": \"The cat\", \"choices\": [\"sat\", \"flew away\", \"is\"], \"gold\": 1}\n\n"
                                             "{\"question\": \"Two plus two is \", \"choices\": [\"4\", \"five\"], \"answer\": \"five\", \"id\": 7}\r\n"
                                             "{\"context\": \"x\", \"choices\": [\"a longer choice than the others are\", \"b\"], \"label\": 0}");
    json_t *r = program_json(EVAL("tasks", model, "--tasks", task, "--samples", samples, "--json"));
    json_t *s = samples_at(samples);
    assert_int_equal(json_array_size(s), 3);
    static const struct { size_t item, choice; const char *whole; size_t scored; } want[] = {
        { 0, 0, "The cat sat", 4 }, { 0, 1, "The cat flew away", 10 }, { 0, 2, "The cat is", 3 },
        { 1, 0, "Two plus two is  4", 3 }, { 1, 1, "Two plus two is  five", 6 }, /* the space moves to the choice, before the delimiter */
        { 2, 0, "x a longer choice than the others are", 36 }, { 2, 1, "x b", 2 },
    };
    for (size_t i = 0; i < COUNT_OF(want); i++) {
        const json_t *sample = json_array_get(s, want[i].item);
        double sum = sum_by_score(model, -1, want[i].whole, want[i].scored);
        assert_int_equal(tokens_at(sample, want[i].choice), want[i].scored);
        assert_true(fabs(sum_at(sample, want[i].choice) - sum) < 1e-4);
    }
    assert_int_equal(json_integer_value(json_object_get(json_array_get(s, 1), "line")), 3);
    assert_int_equal(json_integer_value(json_object_get(json_array_get(s, 1), "target")), 1);
    const json_t *n = json_object_get(json_object_get(r, "n-samples"), "choice");
    assert_int_equal(json_integer_value(json_object_get(n, "original")), 3);
    assert_int_equal(json_integer_value(json_object_get(n, "effective")), 3);
    assert_string_equal(json_string_value(json_object_get(r, "schema")), "gqakit/tasks/1");
    json_decref(r);
    json_decref(s);
    free(model);
    free(samples);
    free(task);
}

/* With a beginning of text the first token is scored too, without one it is not, for there is nothing before it. */
static void sentences_alone(void **state)
{
    (void)state;
    char *with = byte_model("with-bos", 1), *without = byte_model("without-bos", -1), *samples = temp_path("pairs.out");
    char *task = write_lines("pairs.jsonl", "{\"sentence_good\": \"ab cd\", \"sentence_bad\": \"cd ab x\", \"UID\": \"u\"}\n");
    json_t *r = program_json(EVAL("tasks", with, "--tasks", task, "--samples", samples, "--json")), *s = samples_at(samples);
    assert_int_equal(tokens_at(json_array_get(s, 0), 0), 5);
    assert_true(fabs(sum_at(json_array_get(s, 0), 0) - sum_by_score(with, 1, "ab cd", 5)) < 1e-4);
    assert_true(fabs(sum_at(json_array_get(s, 0), 1) - sum_by_score(with, 1, "cd ab x", 7)) < 1e-4);
    assert_true(json_is_null(json_object_get(json_object_get(json_object_get(r, "results"), "pairs"), "acc_stderr,none"))); /* n = 1 */
    json_decref(s);
    struct child c = EVAL("tasks", without, "--tasks", task, "--samples", samples);
    assert_int_equal(c.status, 0);
    assert_non_null(strstr(c.err, "first token is not scored"));
    child_free(&c);
    s = samples_at(samples);
    assert_int_equal(tokens_at(json_array_get(s, 0), 0), 4);
    assert_true(fabs(sum_at(json_array_get(s, 0), 0) - sum_by_score(without, -1, "ab cd", 4)) < 1e-4);
    json_decref(s);
    json_decref(r);
    program_refused(EVAL("tasks", without, "--tasks", task, "--bos", "yes"), 2, "--bos yes");
    free(with);
    free(without);
    free(samples);
    free(task);
}

/* --bos yes puts the token before a context as well. */
static void beginning_before_contexts(void **state)
{
    (void)state;
    char *model = byte_model("bos-model", 1), *samples = temp_path("bos.out");
    char *task = write_lines("bos.jsonl", "{\"query\": \"ab\", \"choices\": [\"c\", \"de\"], \"gold\": 0}\n");
    for (int yes = 0; yes < 2; yes++) {
        program_ok(EVAL("tasks", model, "--tasks", task, "--samples", samples, "--bos", yes ? "yes" : "auto", "--delimiter", "="));
        json_t *s = samples_at(samples);
        assert_true(fabs(sum_at(json_array_get(s, 0), 1) - sum_by_score(model, yes ? 1 : -1, "ab=de", 3)) < 1e-4);
        json_decref(s);
    }
    free(model);
    free(samples);
    free(task);
}

enum { RANDOM_ITEMS = 60 };

/* Choices of 1 to 12 characters of one or two bytes. */
static char *random_task(void)
{
    static char text[1 << 16];
    int used = 0;
    for (uint64_t i = 0; i < RANDOM_ITEMS; i++) {
        used += snprintf(text + used, sizeof text - (size_t)used, "{\"query\": \"q%d\", \"choices\": [", (int)i);
        for (uint64_t k = 0; k < 4; k++) {
            used += snprintf(text + used, sizeof text - (size_t)used, "%s\"", k ? ", " : "");
            for (int64_t n = random_int(5, i * 4 + k, 1, 12); n > 0; n--)
                used += snprintf(text + used, sizeof text - (size_t)used, "%s", k % 2 ? "\xC3\xA9" : "e");
            used += snprintf(text + used, sizeof text - (size_t)used, "\"");
        }
        used += snprintf(text + used, sizeof text - (size_t)used, "], \"gold\": %d}\n", (int)random_int(6, i, 0, 3));
    }
    return write_lines("random.jsonl", text);
}

static int best(const json_t *sample, const double *length)
{
    int b = 0;
    for (size_t k = 1; k < 4; k++)
        if (sum_at(sample, k) / length[k] > sum_at(sample, (size_t)b) / length[b])
            b = (int)k;
    return b;
}

static void predictions_and_errors(void **state)
{
    (void)state;
    char *model = byte_model("r-model", -1), *samples = temp_path("random.out"), *task = random_task();
    json_t *r = program_json(EVAL("tasks", model, "--tasks", task, "--samples", samples, "--json")), *s = samples_at(samples);
    double right[3] = { 0 };
    int flips = 0, byte_flips = 0;
    for (uint64_t i = 0; i < RANDOM_ITEMS; i++) {
        const json_t *sample = json_array_get(s, (size_t)i);
        double one[4], chars[4], bytes[4];
        for (uint64_t k = 0; k < 4; k++) {
            one[k] = 1;
            chars[k] = (double)random_int(5, i * 4 + k, 1, 12);
            bytes[k] = chars[k] * (k % 2 ? 2 : 1);
        }
        int gold = (int)random_int(6, i, 0, 3), pred = best(sample, one), norm = best(sample, chars), by_bytes = best(sample, bytes);
        assert_int_equal(json_integer_value(json_object_get(sample, "pred")), pred);
        assert_int_equal(json_integer_value(json_object_get(sample, "pred_norm")), norm);
        assert_int_equal(json_integer_value(json_object_get(sample, "acc_bytes")), by_bytes == gold);
        right[0] += pred == gold;
        right[1] += norm == gold;
        right[2] += by_bytes == gold;
        flips += pred != norm;
        byte_flips += norm != by_bytes;
    }
    assert_true(flips > 0 && byte_flips > 0);
    static const char *const names[][2] = { { "acc,none", "acc_stderr,none" }, { "acc_norm,none", "acc_norm_stderr,none" }, { "acc_bytes,none", "acc_bytes_stderr,none" } };
    for (size_t m = 0; m < 3; m++) {
        double p = right[m] / RANDOM_ITEMS;
        assert_true(fabs(metric(r, "random", names[m][0]) - p) < 1e-12);
        assert_true(fabs(metric(r, "random", names[m][1]) - sqrt(p * (1 - p) / (RANDOM_ITEMS - 1))) < 1e-12);
    }
    json_decref(r);
    json_decref(s);
    free(model);
    free(samples);
    free(task);
}

/* How texts are put into batches changes nothing but the last bits. */
static void batches_change_nothing(void **state)
{
    (void)state;
    char *model = byte_model("b-model", -1), *a = temp_path("a.out"), *b = temp_path("b.out"), *task = random_task();
    program_ok(EVAL("tasks", model, "--tasks", task, "--samples", a));
    program_ok(EVAL("tasks", model, "--tasks", task, "--samples", b, "--batch", "1", "--threads", "1"));
    json_t *x = samples_at(a), *y = samples_at(b);
    for (size_t i = 0; i < RANDOM_ITEMS; i++)
        for (size_t k = 0; k < 4; k++)
            assert_true(fabs(sum_at(json_array_get(x, i), k) - sum_at(json_array_get(y, i), k)) < 1e-4);
    json_decref(x);
    json_decref(y);
    free(model);
    free(a);
    free(b);
    free(task);
}

static void the_first_of_equals(void **state)
{
    (void)state;
    char *model = byte_model("tie-model", -1);
    char *first = write_lines("tie0.jsonl", "{\"query\": \"q\", \"choices\": [\"same\", \"same\", \"same\"], \"gold\": 0}\n");
    char *last = write_lines("tie2.jsonl", "{\"query\": \"q\", \"choices\": [\"same\", \"same\", \"same\"], \"gold\": 2}\n");
    char both[512];
    snprintf(both, sizeof both, "%s,%s", first, last);
    json_t *r = program_json(EVAL("tasks", model, "--tasks", both, "--json"));
    assert_true(metric(r, "tie0", "acc,none") == 1 && metric(r, "tie0", "acc_norm,none") == 1);
    assert_true(metric(r, "tie2", "acc,none") == 0 && metric(r, "tie2", "acc_bytes,none") == 0);
    json_decref(r);
    free(model);
    free(first);
    free(last);
}

static void long_contexts_lose_their_beginning(void **state)
{
    (void)state;
    char *model = byte_model("l-model", -1), *samples = temp_path("long.out");
    char *task = write_lines("long.jsonl", "{\"query\": \"abcdefghijklmnopqrstuvwxyz\", \"choices\": [\"1\", \"234\"], \"gold\": 0}\n");
    struct child c = EVAL("tasks", model, "--tasks", task, "--samples", samples, "--context", "8");
    assert_int_equal(c.status, 0);
    assert_non_null(strstr(c.err, "2 texts are longer than the 8 tokens"));
    child_free(&c);
    json_t *s = samples_at(samples);
    assert_true(fabs(sum_at(json_array_get(s, 0), 0) - sum_by_score(model, -1, "tuvwxyz 1", 2)) < 1e-4);
    assert_true(fabs(sum_at(json_array_get(s, 0), 1) - sum_by_score(model, -1, "vwxyz 234", 4)) < 1e-4);
    json_decref(s);
    program_refused(EVAL("tasks", model, "--tasks", task, "--context", "3"), 3, "long.jsonl:1");
    free(model);
    free(samples);
    free(task);
}

/* What generate says at temperature 0, up to its first newline. */
static char *greedy(const char *model, const char *prompt, const char *new_tokens)
{
    json_t *j = program_json(EVAL("generate", model, "--prompt", prompt, "--new", new_tokens, "--temperature", "0", "--json"));
    const char *text = json_string_value(json_object_get(j, "text")) + strlen(prompt);
    char *said = strndup(text, strcspn(text, "\n"));
    json_decref(j);
    return said;
}

static void exact_match(void **state)
{
    (void)state;
    static const char model[] = "checkpoints/sample-mha";
    static const char *const prompts[] = { "Once upon a time", "Lily and Tom are", "One day, a dog", "Once upon a tree" };
    char *samples = temp_path("match.out"), *path = temp_path("match.jsonl");
    FILE *f = fopen(path, "w");
    for (size_t i = 0; i < COUNT_OF(prompts); i++) {
        char *said = greedy(model, prompts[i], "24");
        json_t *j = i == 1 ? json_pack("{s:s, s:[s, s]}", "prompt", prompts[i], "target", "no", said)
                           : json_pack("{s:s, s:s}", "prompt", prompts[i], "answer", i == 2 ? "something else" : said + strspn(said, " "));
        assert_int_equal(json_dumpf(j, f, JSON_COMPACT), 0);
        fputc('\n', f);
        json_decref(j);
        free(said);
    }
    fclose(f);
    for (int batch = 1; batch <= 3; batch += 2) { /* two prompts have the same length */
        json_t *r = program_json(EVAL("tasks", model, "--tasks", path, "--samples", samples, "--new", "24", "--json", "--batch", batch == 1 ? "1" : "3"));
        json_t *s = samples_at(samples);
        for (size_t i = 0; i < COUNT_OF(prompts); i++) {
            char *said = greedy(model, prompts[i], "24");
            assert_string_equal(json_string_value(json_object_get(json_array_get(s, i), "said")), said);
            assert_int_equal(json_integer_value(json_object_get(json_array_get(s, i), "exact_match")), i != 2);
            free(said);
        }
        assert_true(metric(r, "match", "exact_match,none") == 0.75);
        assert_true(fabs(metric(r, "match", "exact_match_stderr,none") - 0.25) < 1e-12);
        json_decref(r);
        json_decref(s);
    }
    free(samples);
    free(path);
}

static void directories_and_limits(void **state)
{
    (void)state;
    char *model = byte_model("dir-model", 1), *dir = temp_path("group");
    assert_ok(io_mkdirs(dir));
    static const char a[] = "{\"sentence_good\": \"aa\", \"sentence_bad\": \"bb\"}\n{\"sentence_good\": \"bb\", \"sentence_bad\": \"aa\"}\n"
                            "{\"sentence_good\": \"ac\", \"sentence_bad\": \"bd\"}\n";
    temp_write("group/one.jsonl", a, sizeof a - 1);
    temp_write("group/two.jsonl", a, sizeof a - 1);
    temp_write("group/readme.txt", "x", 1);
    json_t *r = program_json(EVAL("tasks", model, "--tasks", dir, "--limit", "2", "--json"));
    assert_int_equal(json_object_size(json_object_get(r, "results")), 2);
    assert_true(metric(r, "one", "acc,none") == 0.5 && metric(r, "two", "acc,none") == 0.5);
    const json_t *group = json_object_get(json_object_get(r, "groups"), "group");
    assert_true(json_number_at(group, "acc,none") == 0.5);
    assert_true(fabs(json_number_at(group, "acc_stderr,none") - sqrt(2 * 0.25) / 2) < 1e-12);
    const json_t *n = json_object_get(json_object_get(r, "n-samples"), "two");
    assert_int_equal(json_integer_value(json_object_get(n, "original")), 3);
    assert_int_equal(json_integer_value(json_object_get(n, "effective")), 2);
    json_decref(r);
    char twice[1024];
    snprintf(twice, sizeof twice, "%s,%s/one.jsonl", dir, dir);
    program_refused(EVAL("tasks", model, "--tasks", twice), 2, "would both be the task \"one\"");
    struct child c = EVAL("tasks", model, "--tasks", dir);
    assert_int_equal(c.status, 0);
    assert_non_null(strstr(c.out, "group"));
    child_free(&c);
    free(model);
    free(dir);
}

static void broken_lines(void **state)
{
    (void)state;
    static const char good[] = "{\"query\": \"q\", \"choices\": [\"a\", \"b\"], \"gold\": 1}\n";
    static const struct { const char *line, *part; } cases[] = {
        { "{\"query\": \"q\", ", "not valid JSON" },
        { "[1]", "expected a JSON object" },
        { "{\"choices\": [\"a\", \"b\"], \"gold\": 1}", "expected \"query\"" },
        { "{\"query\": 7, \"choices\": [\"a\", \"b\"], \"gold\": 1}", "\"query\": expected a string" },
        { "{\"query\": \"q\", \"context\": \"c\", \"choices\": [\"a\", \"b\"], \"gold\": 1}", "found both" },
        { "{\"query\": \"q\", \"choices\": [\"a\"], \"gold\": 0}", "expected a list of 2" },
        { "{\"query\": \"q\", \"choices\": \"ab\", \"gold\": 0}", "expected a list of 2" },
        { "{\"query\": \"q\", \"choices\": [\"a\", 3], \"gold\": 0}", "expected a string as text 1" },
        { "{\"query\": \"q\", \"choices\": [\"a\", \"\"], \"gold\": 0}", "text 1 is empty" },
        { "{\"query\": \"q\", \"choices\": [\"a\", \"b\"]}", "beside \"choices\"" },
        { "{\"query\": \"q\", \"choices\": [\"a\", \"b\"], \"gold\": 2}", "from 0 to 1, found 2" },
        { "{\"query\": \"q\", \"choices\": [\"a\", \"b\"], \"gold\": -1}", "from 0 to 1, found -1" },
        { "{\"query\": \"q\", \"choices\": [\"a\", \"b\"], \"gold\": \"B\"}", "found \"B\"" },
        { "{\"query\": \"q\", \"choices\": [\"a\", \"b\"], \"gold\": 0.5}", "the index of the right choice" },
        { "{\"query\": \"q\", \"choices\": [\"a\", \"b\"], \"gold\": 1, \"label\": 1}", "found both" },
        { "{\"query\": \"q\"}", "expected \"choices\", or \"answer\"" },
        { "{\"query\": \"q\", \"answer\": \"a\\nb\"}", "several lines" },
        { "{\"query\": \"q\", \"answer\": \" \"}", "only white space" },
        { "{\"query\": \"q\", \"answer\": []}", "expected a list of 1" },
        { "{\"query\": \"q\", \"answer\": \"a\"}", "one file holds one kind" },
        { "{\"sentence_good\": \"a\", \"sentence_bad\": \"b\"}", "one file holds one kind" },
        { "{\"sentence_good\": \"a\"}", "\"sentence_bad\": expected a string" },
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        char text[512];
        snprintf(text, sizeof text, "%s\n%s\n", good, cases[i].line);
        char *task = write_lines("broken.jsonl", text);
        struct child c = EVAL("tasks", "/nonexistent", "--tasks", task); /* the files are read first */
        if (c.status != 3 || !strstr(c.err, cases[i].part) || !strstr(c.err, "broken.jsonl:3"))
            print_error("case %zu: exit %d, %s", i, c.status, c.err);
        assert_int_equal(c.status, 3);
        assert_non_null(strstr(c.err, "broken.jsonl:3"));
        assert_non_null(strstr(c.err, cases[i].part));
        child_free(&c);
        free(task);
    }
}

static void put_nan(const struct ckpt_tensor *t, float *x) { if (strcmp(t->name, "dec.1.mlp.up.w") == 0) x[7] = (float)NAN; }

static void refusals(void **state)
{
    (void)state;
    struct arch a;
    small_arch(&a, 6, 6, DT_F32);
    a.V = a.original_vocab = 256;
    a.bos = a.eos = -1;
    char *broken = temp_path("nan-model"), *model = byte_model("ok-model", -1), *dir = temp_path("empty");
    small_write(broken, &a, 3, 1, put_nan);
    arch_free(&a);
    assert_ok(io_mkdirs(dir));
    char *choice = write_lines("c.jsonl", "{\"query\": \"q\", \"choices\": [\"a\", \"b\"], \"gold\": 1}\n");
    char *match = write_lines("m.jsonl", "{\"prompt\": \"q\", \"answer\": \"a\"}\n"), *empty = write_lines("e.jsonl", "\n \n");
    char *one = write_lines("o.jsonl", "{\"query\": \"\", \"choices\": [\"a\", \"b\"], \"gold\": 1}\n");
    program_refused(EVAL("tasks", broken, "--tasks", choice), 7, "not finite");
    program_refused(EVAL("tasks", broken, "--tasks", match, "--new", "8"), 7, "not finite");
    program_refused(EVAL("tasks", model), 2, "--tasks");
    program_refused(EVAL("tasks", model, "--tasks", ""), 2, "--tasks");
    program_refused(EVAL("tasks", model, "--tasks", empty), 3, "found none");
    program_refused(EVAL("tasks", model, "--tasks", dir), 3, "*.jsonl");
    program_refused(EVAL("tasks", model, "--tasks", "/nonexistent.jsonl"), 5, "/nonexistent.jsonl");
    program_refused(EVAL("tasks", model, "--tasks", one, "--delimiter", ""), 3, "o.jsonl:1");
    program_refused(EVAL("tasks", model, "--tasks", match, "--context", "64"), 2, "--new 64");
    program_refused(EVAL("tasks", model, "--tasks", choice, "--batch", "-1"), 2, "--batch");
    program_refused(EVAL("tasks", model, "--tasks", choice, "--samples", "/nonexistent/x"), 5, "/nonexistent/x");
    free(broken);
    free(model);
    free(dir);
    free(choice);
    free(match);
    free(empty);
    free(one);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums_are_those_of_score), cmocka_unit_test(sentences_alone), cmocka_unit_test(beginning_before_contexts),
        cmocka_unit_test(predictions_and_errors), cmocka_unit_test(batches_change_nothing), cmocka_unit_test(the_first_of_equals),
        cmocka_unit_test(long_contexts_lose_their_beginning), cmocka_unit_test(exact_match), cmocka_unit_test(directories_and_limits),
        cmocka_unit_test(broken_lines), cmocka_unit_test(refusals),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
