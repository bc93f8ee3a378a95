/* What our own programs read back: configs, and the records they keep for themselves.
 * R26: mutated configs of gqa-uptrain and gqa-eval ablate, read as the programs read them. A refused one is exit 2 with file and line (or 4 by
 * name, for what this build cannot do), in half a second of processor time. 500 of each here, 10 000 with GQAKIT_SOAK=1. */
#include <ctype.h>
#include <time.h>

#include "damage.h"
#include "eval/ablate.h"
#include "eval/eval.h"
#include "small_checkpoint.h"
#include "uptrain/options.h"

static const char UPTRAIN[] =
    "# a comment\nmodel:\n  path: source\n  dtype: keep\ngqa: {num_key_value_heads: 2, method: mean, refit: none, grouping: consecutive}\ndata:\n  train: [a.bin, 'b c.txt']\n"
    "  validation:\n  - v.bin\n  tokenizer: model\n  text_field: text\n  pack: true\nsequence_len: 64\nmicro_batch_size: 2\nglobal_batch_size: 8\noriginal_tokens: 3.0e6\n"
    "uptrain_fraction: 0.05\noptimizer: {name: adamw, lr: 1.0e-4, betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.1}\nmax_grad_norm: 1.0\n"
    "lr_scheduler: {name: wsd, warmup_ratio: 0.02, min_lr_ratio: 0.1, decay_ratio: 0.2}\nfreeze: [\"embed.*\", mlp]\nsave_steps: 200\nsave_total_limit: 2\neval_steps: 100\n"
    "eval_batches: 20\nlogging_steps: 10\nresume: auto\nseed: 0\nthreads: 1\nmax_skips: 3\ndeterministic: true\noutput_dir: \"runs/a \\u00e9\"\nlogging: {jsonl: true, tensorboard: false}\n"
    "precision: fp32\nactivation_checkpointing: none\n";

static const char ABLATE[] =
    "name: a\noutput_dir: out\nmodel: {path: \"SOURCE\"}\ngrid:\n  num_key_value_heads: [6, 3, 1]\n  method: [mean, first]\n  uptrain_fraction: [0, 0.05]\n  seed: [0, 1]\n"
    "uptrain:\n  data: {train: [a.bin]}\n  sequence_len: 16\n  original_tokens: 1e6\n  optimizer: {lr: 1e-3}\nevaluate:\n  data: [v.bin]\n  tokenizer: bytes\n  context: 64\n  stride: 32\n  limit: 1000\n"
    "  decode: {batch: [1, 2], context: [16, 32], new: 4, repeats: 2}\nmargin: 0.01\nthreads: 1\ndevice: cpu\n";

static const char *const PIECES[] = {
    "9223372036854775808", "-9223372036854775808", "9223372036854775807", "1e309", "-1e-320", ".nan", ".inf", "NaN", "0x10", "1_0", "-0", "0", "~", "null", "true", "[]", "{}", "[[]]",
    "''", "\"\\0\"", "\"\\u0000\"", "&a", "*a", "!!int", "<<", "? ", ": ", "- ", "---\n", "...\n", "%TAG ! x\n", "|\n", ">\n", "\t", "\r", "\xef\xbb\xbf", "\xff", "\xc2\x85", "\xe2\x80\xa8",
    "# ", "{", "}", "[", "]", ",", "\"", "'", "..", "../../etc/passwd", "%s%n", "a: b: c", "1e3", "2147483648", "4294967296", "0.9999999999999999999999999", "999999999999", "1e15",
};

/* Deterministic, from the seed: bytes changed, pieces put in or over a value, lines lost, doubled, exchanged, cut off. */
static size_t mutate(char *to, size_t room, const char *from, uint64_t seed)
{
    size_t n = strlen(from);
    uint64_t draw = 0;
#define DRAW(lo, hi) ((size_t)random_int(seed, draw++, (int64_t)(lo), (int64_t)(hi)))
    memcpy(to, from, n);
    for (size_t k = DRAW(1, 3); k > 0; k--) {
        size_t at = n ? DRAW(0, n - 1) : 0, most = n - at, length;
        const char *piece = PIECES[DRAW(0, COUNT_OF(PIECES) - 1)];
        size_t piece_n = strlen(piece);
        switch (DRAW(0, 7)) {
        case 0:
            if (n)
                to[at] = (char)DRAW(0, 255);
            break;
        case 1: /* a piece put in */
        case 2: /* a piece over the value that begins here */
        case 3:
            while (at < n && at > 0 && to[at - 1] != ' ' && to[at - 1] != '[' && to[at - 1] != ',')
                at--;
            for (length = 0; at + length < n && length < 24 && (isalnum((unsigned char)to[at + length]) || to[at + length] == '.' || to[at + length] == '-');)
                length++;
            length = k % 2 ? length : 0;
            if (n - length + piece_n < room) {
                memmove(to + at + piece_n, to + at + length, n - at - length);
                memcpy(to + at, piece, piece_n);
                n = n - length + piece_n;
            }
            break;
        case 4: /* some bytes out */
            length = most ? DRAW(1, most < 40 ? most : 40) : 0;
            memmove(to + at, to + at + length, n - at - length);
            n -= length;
            break;
        case 5: /* from here on a second time */
            length = most < 200 ? most : 200;
            if (n + length < room) {
                memmove(to + at + length, to + at, n - at);
                n += length;
            }
            break;
        case 6: /* cut off, seldom */
            n = DRAW(0, 9) ? n : at;
            break;
        default: /* spaces at the beginning of a line */
            while (at > 0 && to[at - 1] != '\n')
                at--;
            length = DRAW(1, 3);
            if (n + length < room) {
                memmove(to + at + length, to + at, n - at);
                memset(to + at, ' ', length);
                n += length;
            }
        }
    }
#undef DRAW
    return n;
}

static double cpu(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static enum code uptrain_read(const char *path)
{
    struct options o;
    struct budget b;
    enum code c = options_load(&o, path, 0, NULL);
    if (c == OK) {
        json_t *j = options_to_json(&o);
        char *text = config_json_to_yaml(j);
        struct config *again;
        assert_non_null(text);
        if (config_parse(&again, text, strlen(text), "resolved") != OK)
            print_error("the resolved config is no config: %s\n%s\n", fail_text(), text);
        else
            config_free(again);
        free(text);
        json_decref(j);
        if (options_budget(&o, &b) == OK)
            assert_true(b.steps >= 0 && b.warmup <= b.steps);
    }
    options_free(&o);
    return c;
}

static enum code ablate_read(const char *path)
{
    struct ablation a;
    memset(&a, 0, sizeof a);
    enum code c = ablate_load(&a, path, 0, NULL);
    if (c == OK)
        c = ablate_grid(&a);
    ablate_free(&a);
    return c;
}

static void run(const char *what, const char *text, enum code (*read)(const char *))
{
    int64_t n = damage_soak() ? 10000 : 500, good = 0, refused = 0, unsupported = 0, elsewhere = 0;
    double slowest = 0;
    size_t room = 4 * strlen(text) + 4096;
    char *mutant = malloc(room), *path = temp_path("c.yaml");
    damage_put("c.yaml", text, strlen(text));
    if (read(path) != OK)
        print_error("%s: the good config is refused: %s\n", what, fail_text());
    for (int64_t i = 0; i < n; i++) {
        size_t size = mutate(mutant, room, text, (uint64_t)i);
        damage_put("c.yaml", mutant, size);
        double start = cpu();
        enum code c = read(path);
        double spent = cpu() - start;
        slowest = spent > slowest ? spent : slowest;
        const char *said = fail_text(), *at = strstr(said, "c.yaml");
        good += c == OK;
        refused += c == ERR_USAGE;
        unsupported += c == ERR_UNSUPPORTED;
        elsewhere += c == ERR_INPUT || c == ERR_IO; /* the ablation's model: by a path that the mutant has bent */
        int right = c == OK || ((c == ERR_USAGE || c == ERR_UNSUPPORTED) && at && !strchr(said, '\n')) || ((c == ERR_INPUT || c == ERR_IO) && read == ablate_read);
        if (!right || spent > 0.5) {
            print_error("%s, mutant %lld: code %d, %.2f s: %s\n", what, (long long)i, (int)c, spent, said);
            fwrite(mutant, 1, size, stderr);
        }
        assert_true(right);
        assert_true(spent <= 0.5);
    }
    printf("%s: %lld mutants, %lld good, %lld exit 2, %lld exit 4, %lld point at another model; slowest %.3f s\n", what, (long long)n, (long long)good, (long long)refused,
           (long long)unsupported, (long long)elsewhere, slowest);
    assert_true(refused > n / 4 && good > n / 50);
    free(mutant);
    free(path);
}

static void test_uptrain(void **state)
{
    (void)state;
    run("gqa-uptrain", UPTRAIN, uptrain_read);
}

static void test_ablate(void **state)
{
    (void)state;
    struct arch a;
    char *model = temp_path("source"), *text = NULL;
    small_arch(&a, 6, 6, DT_F32);
    small_write(model, &a, 1, 1, NULL);
    assert_true(asprintf(&text, "%.*s%s%s", (int)(strstr(ABLATE, "SOURCE") - ABLATE), ABLATE, model, strstr(ABLATE, "SOURCE") + 6) > 0);
    run("gqa-eval ablate", text, ablate_read);
    arch_free(&a);
    free(model);
    free(text);
}

/* ---- records --------------------------------------------------------------------------------------------------------- */

static enum code read_record(const char *name, uint64_t *sum)
{
    struct cell c;
    memset(&c, 0, sizeof c);
    char *path = temp_path(name);
    enum code code = ablate_record_load(&c, path);
    *sum = damage_add(0, &c.loss_final, sizeof c.loss_final);
    json_decref(c.curve);
    json_decref(c.evals);
    json_decref(c.tasks);
    free(path);
    return code;
}

/* A damaged generation_config.json stops nothing: the ids of config.json hold then. */
static enum code read_stops(const char *name, uint64_t *sum)
{
    struct checkpoint *ck;
    struct stops s;
    char *dir = temp_path(name);
    *strrchr(dir, '/') = 0;
    assert_ok(ckpt_open(&ck, dir, NULL));
    stops_of(&s, ck);
    assert_true(s.n >= 0 && s.n <= STOPS_MAX);
    *sum = damage_add(0, s.id, (size_t)s.n * sizeof s.id[0]);
    ckpt_close(ck);
    free(dir);
    return OK;
}

static void test_records(void **state)
{
    (void)state;
    static const struct damage_subject subjects[] = {{"result.json of a cell", "result.json", read_record, DAMAGE_SEEN, DAMAGE_PARTIAL},
                                                     {"generation_config.json", "stops/generation_config.json", read_stops, DAMAGE_PARTIAL, DAMAGE_PARTIAL}};
    struct arch a;
    char *model = temp_path("stops");
    small_arch(&a, 6, 6, DT_F32);
    small_write(model, &a, 1, 1, NULL);
    damage_text("stops/generation_config.json", "{\"eos_token_id\": [2, 7, 36], \"temperature\": 0.6}");
    damage_text("result.json", "{\"id\": \"c\", \"steps\": 3, \"tokens\": 99, \"loss_zero_step\": 2.5, \"loss_final\": 2.25, \"loss_stderr\": 0.125, \"curve\": [[1, 2.5]], "
                               "\"evals\": [], \"tasks\": null, \"home\": \"native\", \"chosen\": \"\"}");
    for (size_t i = 0; i < COUNT_OF(subjects); i++) {
        struct damage_count c = damage_cut(&subjects[i], 1);
        damage_print("cut", &subjects[i], &c);
        c = damage_flip(&subjects[i], 0, -1, 1);
        damage_print("bit", &subjects[i], &c);
    }
    arch_free(&a);
    free(model);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_uptrain), cmocka_unit_test(test_ablate), cmocka_unit_test(test_records)};
    log_quiet(1);
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
