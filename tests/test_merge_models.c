/* gqa-convert's merging methods as their users run them: rewrites and lossless merges through the model in f32, what is written and
 * what is copied, every home, refusals, and the order of the methods on a real checkpoint. */
#include <dirent.h>
#include <math.h>

#include "harness.h"
#include "merge_case.h"
#include "model_logits.h"

#define LIMIT 1e-5
enum { LENGTH = 13 };

static struct child convert(const char *const *arguments)
{
    const char *argv[24];
    char *program = program_path("gqa-convert");
    int n = 0;
    argv[n++] = program;
    for (; *arguments; arguments++)
        argv[n++] = *arguments;
    argv[n] = NULL;
    struct child c = child_run(argv, NULL);
    free(program);
    return c;
}
#define CONVERT(...) convert((const char *const[]){ __VA_ARGS__, NULL })
#define CONVERT_OK(...) convert_ok((const char *const[]){ __VA_ARGS__, NULL })
static void convert_ok(const char *const *arguments)
{
    struct child c = convert(arguments);
    if (c.status != 0)
        print_error("%s%s", c.out, c.err);
    assert_int_equal(c.status, 0);
    child_free(&c);
}

/* A checkpoint with these two attention layers; everything else random and the same for every call. */
static void write_model(const char *path, const struct arch *arch, struct attention_layer layers[2])
{
    struct ckpt_writer *w;
    struct ckpt_target target = {.path = path, .arch = arch, .force = 1};
    assert_ok(ckpt_create(&w, &target));
    for (int i = 0; i < ckpt_writer_count(w); i++) {
        const struct ckpt_tensor *t = ckpt_writer_at(w, i);
        int64_t n = t->n[0] * (t->nd == 2 ? t->n[1] : 1), count = 0;
        float *values = malloc((size_t)n * sizeof *values);
        const double *from = t->layer >= 0 ? attention_layer_tensor(&layers[t->layer], t->name, &count) : NULL;
        random_normal_f32(values, n, 0, 0.4f, 3, random_stream_of(t->name), 0);
        for (int64_t k = 0; k < n; k++)
            values[k] = from ? (float)from[k] : strstr(t->name, "norm.w") ? 1 + 0.2f * values[k] : values[k];
        assert_true(!from || count == n);
        assert_ok(ckpt_write(w, t, 0, t->n[0], values, DT_F32));
        free(values);
    }
    assert_ok(ckpt_commit(w));
}

static float *logits_of(const char *path, int64_t *n)
{
    struct checkpoint *ck;
    assert_ok(ckpt_open(&ck, path, NULL));
    float *logits = model_logits(ck, LENGTH);
    if (!logits)
        print_error("%s: %s\n", path, fail_text());
    assert_non_null(logits);
    *n = 2 * ckpt_arch(ck)->V;
    ckpt_close(ck);
    return logits;
}

static double distance(const char *a, const char *b)
{
    int64_t n;
    float *x = logits_of(a, &n), *y = logits_of(b, &n);
    double d = logits_distance(x, y, n);
    free(x);
    free(y);
    return d;
}

static void make_layers(struct attention_layer layers[2], const struct arch *arch, uint64_t seed)
{
    for (int l = 0; l < 2; l++) {
        random_layer(&layers[l], arch, seed + (uint64_t)l);
        layers[l].layer = l;
    }
}

static void free_layers(struct attention_layer layers[2])
{
    attention_layer_free(&layers[0]);
    attention_layer_free(&layers[1]);
}

static const enum merge_kind MODELS[] = {KIND_ROTARY, KIND_PARTIAL, KIND_LEARNED, KIND_ALIBI, KIND_HEAD_NORM, KIND_FULL_NORM};

/* Every head turned by a legal map, then every head at another place: the model in f32 computes what it did. */
static void rewrites_keep_the_logits(void **state)
{
    (void)state;
    static const int64_t order[] = {2, 0, 3, 1};
    char *was = temp_path("was.h5"), *now = temp_path("now.h5");
    for (size_t i = 0; i < COUNT_OF(MODELS); i++) {
        struct arch arch;
        struct attention_layer layers[2], moved[2];
        merge_arch(&arch, MODELS[i], 8, 4);
        make_layers(layers, &arch, 1);
        write_model(was, &arch, layers);
        for (int l = 0; l < 2; l++) {
            assert_ok(attention_layer_new(&moved[l], &arch, l, 0));
            assert_ok(merge_heads(&moved[l], &layers[l], NULL, MERGE_MEAN, MODELS[i] == KIND_ALIBI ? NULL : order, NULL));
            for (int64_t j = 0; j < 4; j++)
                map_head(&layers[l], j, j, 1, (uint64_t)(j + 10 * l));
        }
        write_model(now, &arch, layers);
        double turned = distance(was, now);
        write_model(now, &arch, moved);
        double permuted = distance(was, now);
        if (!(turned <= LIMIT && permuted <= LIMIT))
            print_error("%s: turned %g, permuted %g\n", kind_name(MODELS[i]), turned, permuted);
        assert_true(turned <= LIMIT && permuted <= LIMIT);
        free_layers(layers);
        free_layers(moved);
        arch_free(&arch);
    }
    free(was);
    free(now);
}

/* Heads 0, 2, ... and copies of them in other bases, neighbours or not: merged by gqa-convert, the same logits; mean pooling loses. */
static void lossless_merges(void **state)
{
    (void)state;
    char *src = temp_path("copies.h5"), *dst = temp_path("merged.h5");
    for (size_t i = 0; i < COUNT_OF(MODELS); i++)
        for (int variant = 0; variant < 4; variant++) {
            struct arch arch;
            struct attention_layer layers[2];
            int svd = variant & 1, apart = variant & 2 ? 1 : 0;
            if (MODELS[i] == KIND_FULL_NORM || (apart && MODELS[i] == KIND_ALIBI))
                continue;
            merge_arch(&arch, MODELS[i], 8, 8);
            make_layers(layers, &arch, 5);
            for (int l = 0; l < 2; l++)
                for (int64_t j = 0; j < 4; j++)
                    map_head(&layers[l], apart ? (j + 1) % 4 + 4 : 2 * j + 1, apart ? j : 2 * j, svd, (uint64_t)(j + 20 * l));
            write_model(src, &arch, layers);
            CONVERT_OK(src, dst, "--kv-heads", "4", "--method", svd ? "svd" : "align", "--grouping", apart ? "similar" : "consecutive", "--force", "--quiet");
            double d = distance(src, dst);
            if (!(d <= LIMIT))
                print_error("%s, variant %d: %g\n", kind_name(MODELS[i]), variant, d);
            assert_true(d <= LIMIT);
            CONVERT_OK(src, dst, "--kv-heads", "4", "--force", "--quiet");
            assert_true(distance(src, dst) > 100 * LIMIT);
            free_layers(layers);
            arch_free(&arch);
        }
    free(src);
    free(dst);
}

static int same_tensor(struct checkpoint *a, struct checkpoint *b, const char *name)
{
    const struct ckpt_tensor *s = ckpt_find(a, name), *t = ckpt_find(b, name);
    assert_non_null(s);
    assert_non_null(t);
    if (s->bytes != t->bytes)
        return 0;
    void *p = malloc((size_t)s->bytes), *q = malloc((size_t)s->bytes);
    assert_ok(ckpt_read(a, s, 0, s->n[0], p, DT_NONE));
    assert_ok(ckpt_read(b, t, 0, t->n[0], q, DT_NONE));
    int same = memcmp(p, q, (size_t)s->bytes) == 0;
    free(p);
    free(q);
    return same;
}

/* Which tensors each method touches; random by whole layers draws what the stream draws; the report says what it cost. */
static void what_is_written(void **state)
{
    (void)state;
    static const struct { const char *method; int turns; } cases[] = {{"mean", 0}, {"first", 0}, {"random", 0}, {"select", 0}, {"align", 1}, {"svd", 1}};
    char *src = temp_path("written.h5"), *dst = temp_path("written-out.h5");
    struct arch arch;
    struct attention_layer layers[2], fresh;
    merge_arch(&arch, KIND_PARTIAL, 8, 8);
    make_layers(layers, &arch, 9);
    write_model(src, &arch, layers);
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct checkpoint *a, *b;
        CONVERT_OK(src, dst, "--kv-heads", "2", "--method", cases[i].method, "--force", "--quiet");
        assert_ok(ckpt_open(&a, src, NULL));
        assert_ok(ckpt_open(&b, dst, NULL));
        for (int t = 0; t < ckpt_count(a); t++) {
            const struct ckpt_tensor *s = ckpt_at(a, t);
            int touched = s->pool == POOL_KV || (cases[i].turns && (s->pool == POOL_QUERY || s->pool == POOL_OUT));
            assert_int_equal(same_tensor(a, b, s->name), !touched);
        }
        if (!strcmp(cases[i].method, "random")) {
            float values[2 * 6 * 20];
            const struct ckpt_tensor *t = ckpt_find(b, "dec.1.attn.k.w");
            assert_ok(ckpt_read(b, t, 0, 12, values, DT_F32));
            assert_ok(attention_layer_new(&fresh, &arch, 1, 2));
            assert_ok(merge_heads(&fresh, &layers[1], NULL, MERGE_RANDOM, NULL, NULL));
            for (int k = 0; k < 240; k++)
                assert_true((double)values[k] == fresh.k[k]);
            attention_layer_free(&fresh);
        }
        ckpt_close(a);
        ckpt_close(b);
    }
    struct child c = CONVERT(src, dst, "--kv-heads", "2", "--method", "svd", "--grouping", "similar", "--json", "--force", "--quiet");
    json_t *j = json_loads(c.out, 0, NULL);
    const json_t *layer = json_array_get(json_object_get(j, "layers"), 1);
    assert_string_equal(json_string_value(json_object_get(j, "method")), "svd");
    assert_string_equal(json_string_value(json_object_get(j, "grouping")), "similar");
    assert_int_equal(json_array_size(json_object_get(layer, "members")), 8);
    for (size_t g = 0; g < 2; g++) {
        double error = json_number_value(json_array_get(json_object_get(layer, "weighted_error"), g));
        assert_true(error > 0 && error < json_number_value(json_array_get(json_object_get(layer, "weighted_error_of_mean"), g)));
    }
    assert_non_null(strstr(json_string_value(json_object_get(j, "expect")), "plain mean"));
    assert_true(json_integer_value(json_object_get(j, "merge_memory_bytes")) > 0);
    json_decref(j);
    child_free(&c);
    c = CONVERT(src, dst, "--kv-heads", "2", "--method", "svd", "--dry-run", "--force");
    assert_non_null(strstr(c.out, "merging memory"));
    child_free(&c);
    free_layers(layers);
    arch_free(&arch);
    free(src);
    free(dst);
}

static void same_bytes(const char *a, const char *b)
{
    struct checkpoint *x, *y;
    assert_ok(ckpt_open(&x, a, NULL));
    assert_ok(ckpt_open(&y, b, NULL));
    assert_int_equal(ckpt_count(x), ckpt_count(y));
    for (int t = 0; t < ckpt_count(x); t++)
        assert_true(same_tensor(x, y, ckpt_at(x, t)->name));
    ckpt_close(x);
    ckpt_close(y);
}

/* As many heads as before: every byte stays, whatever the method. Twice the same conversion: the same bytes. ALiBi refuses a permutation. */
static void identities_and_refusals(void **state)
{
    (void)state;
    char *src = temp_path("id.h5"), *dst = temp_path("id-out.h5"), *again = temp_path("id-again.h5");
    struct arch arch;
    struct attention_layer layers[2];
    merge_arch(&arch, KIND_ALIBI, 8, 8);
    make_layers(layers, &arch, 9);
    write_model(src, &arch, layers);
    CONVERT_OK(src, dst, "--kv-heads", "8", "--method", "svd", "--force", "--quiet");
    same_bytes(src, dst);
    CONVERT_OK(src, dst, "--kv-heads", "4", "--method", "svd", "--force", "--quiet");
    CONVERT_OK(src, again, "--kv-heads", "4", "--method", "svd", "--force", "--quiet");
    same_bytes(dst, again);
    struct child c = CONVERT(src, dst, "--kv-heads", "4", "--grouping", "similar", "--force", "--quiet");
    assert_int_equal(c.status, 4);
    assert_non_null(strstr(c.err, "ALiBi"));
    child_free(&c);
    free_layers(layers);
    layers[0] = layers[1] = (struct attention_layer){0};
    arch_free(&arch);
    free(src);
    free(dst);
    free(again);
}

/* Per layer counts, repeats (a home where every head has its own copy) and narrower types go with the maps. */
static void homes_and_types(void **state)
{
    (void)state;
    char *src = temp_path("homes.h5"), *once = temp_path("homes-2.h5"), *twice = temp_path("homes-2-8.h5"), *layered = temp_path("homes-l.h5");
    struct arch arch;
    struct attention_layer layers[2];
    merge_arch(&arch, KIND_ROTARY, 8, 8);
    make_layers(layers, &arch, 14);
    for (int l = 0; l < 2; l++)
        for (int64_t j = 0; j < 8; j++)
            map_head(&layers[l], j, l ? j / 2 * 2 : 0, 1, (uint64_t)j);
    write_model(src, &arch, layers);
    CONVERT_OK(src, layered, "--kv-heads-per-layer", "1,4", "--method", "svd", "--quiet");
    assert_true(distance(src, layered) <= LIMIT);
    CONVERT_OK(src, once, "--kv-heads", "2", "--method", "svd", "--quiet");
    CONVERT_OK(once, twice, "--kv-heads", "8", "--quiet");
    assert_true(distance(once, twice) <= LIMIT);
    CONVERT_OK(src, once, "--kv-heads", "4", "--method", "svd", "--dtype", "bf16", "--force", "--quiet");
    assert_true(distance(src, once) <= 0.05);
    free_layers(layers);
    arch_free(&arch);
    free(src);
    free(once);
    free(twice);
    free(layered);
}

static int is_case(const struct dirent *e) { return e->d_name[0] != '.'; }

/* Half the heads, each then twice: merged by svd and similar into the home that auto chooses, after its rewritings, nothing is lost. 1: looked at. */
static int family_case(const char *dir)
{
    char *half = temp_path("half.h5"), *twice = temp_path("twice.h5"), *home = temp_path("home"), n[2][24];
    struct checkpoint *ck;
    int fits = ckpt_open(&ck, dir, NULL) == OK;
    const struct arch_block *b = fits ? ckpt_arch(ck)->stack[STACK_DEC].block : NULL;
    int64_t L = fits ? ckpt_arch(ck)->stack[STACK_DEC].L : 0;
    fits = fits && ckpt_arch(ck)->qk_norm != QK_NORM_FULL && b->G > 1 && b->G % 2 == 0;
    for (int64_t l = 0; fits && l < L; l++)
        fits = b[l].G == b[0].G;
    if (fits) {
        snprintf(n[0], sizeof n[0], "%lld", (long long)b->G);
        snprintf(n[1], sizeof n[1], "%lld", (long long)(b->G / 2));
        const char *grouping = ckpt_arch(ck)->pos == POS_ALIBI ? "consecutive" : "similar";
        CONVERT_OK(dir, half, "--kv-heads", n[1], "--dtype", "f32", "--force", "--quiet");
        CONVERT_OK(half, twice, "--kv-heads", n[0], "--force", "--quiet");
        CONVERT_OK(twice, home, "--kv-heads", n[1], "--method", "svd", "--grouping", grouping, "--force", "--quiet");
        double d = distance(half, home);
        if (!(d <= LIMIT))
            print_error("%s: %g\n", dir, d);
        assert_true(d <= LIMIT);
    }
    ckpt_close(ck);
    free(half);
    free(twice);
    free(home);
    return fits;
}

static void every_family(void **state)
{
    (void)state;
    struct dirent **entries;
    int n = scandir("tests/golden/hf", &entries, is_case, alphasort), looked = 0;
    assert_true(n > 0);
    for (int i = 0; i < n; i++) {
        char *dir = io_join("tests/golden/hf", entries[i]->d_name);
        looked += family_case(dir);
        free(dir);
        free(entries[i]);
    }
    free(entries);
    print_message("%d models of %d\n", looked, n);
    assert_true(looked > 10);
}

static double loss(const char *model, const char *tokens)
{
    char *program = program_path("gqa-eval");
    const char *argv[] = {program, "perplexity", model, "--data", tokens, "--limit", "10000", "--pack", "--json", NULL};
    struct child c = child_run(argv, NULL);
    if (c.status)
        print_error("%s", c.err);
    json_t *j = json_loads(c.out, 0, NULL);
    double nats = json_number_value(json_object_get(j, "nats_per_token"));
    assert_true(nats > 0);
    json_decref(j);
    child_free(&c);
    free(program);
    return nats;
}

/* A real rotary model, without calibration: svd < align < mean wherever mean costs something; heads that were repeated merge back. */
static void real_checkpoint(void **state)
{
    (void)state;
    char *model = data_path("models/babyllama-tok105-hf"), *mha = data_path("models/babyllama-tok105-mha-hf"), *tokens = data_path("tokens/tinystories_tok105_val.bin"),
         *dst = temp_path("real");
    static const char *const methods[] = {"mean", "align", "svd"};
    if (model && mha && tokens) {
        double original = loss(model, tokens);
        for (int G = 2; G >= 1; G--) {
            double nats[3];
            char g[12];
            snprintf(g, sizeof g, "%d", G);
            for (int m = 0; m < 3; m++) {
                CONVERT_OK(model, dst, "--kv-heads", g, "--method", methods[m], "--force", "--quiet");
                nats[m] = loss(dst, tokens);
            }
            print_message("babyllama 4 -> %d: original %.4f, mean %.4f, align %.4f, svd %.4f\n", G, original, nats[0], nats[1], nats[2]);
            assert_true(original < nats[2] && nats[2] < nats[1] && nats[1] < nats[0]);
        }
        for (int m = 0; m < 3; m++) {
            CONVERT_OK(mha, dst, "--kv-heads", "4", "--method", methods[m], "--force", "--quiet");
            assert_true(fabs(loss(dst, tokens) - original) < 1e-5);
        }
    }
    free(model);
    free(mha);
    free(tokens);
    free(dst);
}

static double total_cost(const struct attention_layer *from, struct checkpoint *ck, int64_t layer, const double *moments, enum merge_method method, int64_t G)
{
    struct attention_layer to;
    struct merge_input input = {.moments = moments};
    double k[64], v[64], j[64], sum = 0;
    struct merge_cost cost = {.k = k, .v = v, .j = j};
    assert_true(G <= 64);
    assert_ok(attention_layer_new(&to, ckpt_arch(ck), layer, G));
    assert_ok(merge_heads(&to, from, moments ? &input : NULL, method, NULL, &cost));
    for (int64_t g = 0; g < G; g++)
        sum += j[g];
    attention_layer_free(&to);
    return sum;
}

/* J(svd) <= J(align) <= J(mean) on every layer of the real models, for every number of heads: without moments, with those guessed from the
 * weights of the norm, and with others. */
static void real_layers_are_ordered(void **state)
{
    (void)state;
    static const char *const names[] = {"models/babyllama-tok105-hf", "models/stories260K-hf", NULL};
    int looked = 0;
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        char *path = names[i] ? data_path(names[i]) : strdup("checkpoints/sample-mha");
        struct checkpoint *ck = NULL;
        if (path)
            assert_ok(ckpt_open(&ck, path, NULL));
        for (int64_t l = 0; ck && l < ckpt_arch(ck)->stack[STACK_DEC].L; l++) {
            struct attention_layer from = {0};
            double *moments[3] = {NULL, NULL, random_moments(ckpt_arch(ck)->C, (uint64_t)l)};
            assert_ok(merge_input_guess(&moments[1], ck, l));
            assert_non_null(moments[1]);
            assert_ok(attention_layer_read(&from, ck, l));
            for (int64_t G = 1; G < from.G; G++)
                for (int m = 0; from.G % G == 0 && m < 3; m++, looked++) {
                    double svd = total_cost(&from, ck, l, moments[m], MERGE_SVD, G), align = total_cost(&from, ck, l, moments[m], MERGE_ALIGN, G);
                    double mean = total_cost(&from, ck, l, moments[m], MERGE_MEAN, G);
                    if (!(svd <= align * (1 + 1e-9) && align <= mean * (1 + 1e-9)))
                        print_error("%s, layer %d, %d heads, moments %d: svd %.9g align %.9g mean %.9g\n", path, (int)l, (int)G, m, svd, align, mean);
                    assert_true(svd <= align * (1 + 1e-9) && align <= mean * (1 + 1e-9));
                }
            attention_layer_free(&from);
            free(moments[1]);
            free(moments[2]);
        }
        ckpt_close(ck);
        free(path);
    }
    print_message("%d merges of real layers\n", looked);
    assert_true(looked > 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rewrites_keep_the_logits), cmocka_unit_test(lossless_merges), cmocka_unit_test(what_is_written),
        cmocka_unit_test(identities_and_refusals), cmocka_unit_test(homes_and_types), cmocka_unit_test(every_family), cmocka_unit_test(real_checkpoint), cmocka_unit_test(real_layers_are_ordered),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
