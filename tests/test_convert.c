/* gqa-convert as its users run it, against the laws a conversion must keep: identity, only K and V change, the mean by a
 * double loop, equal heads lose nothing, pooling in steps is pooling at once; and every refusal. */
#include "harness.h"
#include "programs.h"
#include "small_checkpoint.h"

#include <math.h>

static char *make(const char *name, int64_t H, int64_t G, enum dtype t, int64_t repeat, small_edit_fn *edit)
{
    struct arch a;
    small_arch(&a, H, G, t);
    char *path = temp_path(name);
    small_write(path, &a, 7, repeat, edit);
    arch_free(&a);
    return path;
}

/* Number of tensors whose bytes differ; all of them K or V of a layer when `only_kv`. */
static int differing(const char *a, const char *b, int only_kv)
{
    struct checkpoint *x = NULL, *y = NULL;
    assert_ok(ckpt_open(&x, a, NULL));
    assert_ok(ckpt_open(&y, b, NULL));
    assert_int_equal(ckpt_count(x), ckpt_count(y));
    int n = 0;
    for (int i = 0; i < ckpt_count(x); i++) {
        const struct ckpt_tensor *s = ckpt_at(x, i), *t = ckpt_find(y, s->name);
        assert_non_null(t);
        int same = s->bytes == t->bytes && s->dtype == t->dtype;
        if (same) {
            void *p = malloc((size_t)s->bytes), *q = malloc((size_t)s->bytes);
            assert_ok(ckpt_read(x, s, 0, s->n[0], p, DT_NONE));
            assert_ok(ckpt_read(y, t, 0, t->n[0], q, DT_NONE));
            same = memcmp(p, q, (size_t)s->bytes) == 0;
            free(p);
            free(q);
        }
        n += !same;
        if (!same && only_kv)
            assert_int_equal(s->pool, POOL_KV);
    }
    ckpt_close(x);
    ckpt_close(y);
    return n;
}

static void identity_keeps_every_byte(void **state)
{
    (void)state;
    static const enum dtype types[] = { DT_F32, DT_BF16, DT_F16 };
    for (int i = 0; i < 3; i++) {
        char *src = make("id-src", 6, 6, types[i], 1, NULL), *dst = temp_path("id-dst"), *h5 = temp_path("id.h5"), *back = temp_path("id-back");
        CONVERT_OK(src, dst, "--force");
        assert_int_equal(differing(src, dst, 0), 0);
        CONVERT_OK(src, dst, "--force", "--kv-heads", "6");
        assert_int_equal(differing(src, dst, 0), 0);
        CONVERT_OK(src, h5, "--force");
        CONVERT_OK(h5, back, "--force");
        assert_int_equal(differing(src, back, 0), 0);
        free(src);
        free(dst);
        free(h5);
        free(back);
    }
}

static void only_k_and_v_change(void **state)
{
    (void)state;
    char *src = make("kv-src", 6, 6, DT_F32, 1, NULL), *dst = temp_path("kv-dst");
    for (int G = 1; G < 6; G++) {
        if (6 % G)
            continue;
        char g[4];
        snprintf(g, sizeof g, "%d", G);
        CONVERT_OK(src, dst, "--kv-heads", g, "--force");
        assert_int_equal(differing(src, dst, 1), 4); /* K and V of two layers */
    }
    free(src);
    free(dst);
}

static void check_mean(const char *src, const char *dst, int64_t G0, int64_t G, double rtol, double atol)
{
    struct checkpoint *x = NULL, *y = NULL;
    assert_ok(ckpt_open(&x, src, NULL));
    assert_ok(ckpt_open(&y, dst, NULL));
    static const char *const names[] = { "dec.0.attn.k.w", "dec.0.attn.v.w", "dec.1.attn.k.w", "dec.1.attn.v.w" };
    int64_t m = G0 / G, head = 8 * 24;
    for (int i = 0; i < 4; i++) {
        float *in = small_read(x, names[i]), *out = small_read(y, names[i]);
        double *want = calloc((size_t)(G * head), sizeof *want);
        for (int64_t g = 0; g < G; g++)
            for (int64_t e = 0; e < head; e++) {
                double sum = 0;
                for (int64_t j = 0; j < m; j++)
                    sum += (double)in[(g * m + j) * head + e];
                want[g * head + e] = sum / (double)m;
            }
        assert_f32(names[i], out, want, G * head, rtol, atol);
        free(in);
        free(out);
        free(want);
    }
    ckpt_close(x);
    ckpt_close(y);
}

static void mean_is_the_mean(void **state)
{
    (void)state;
    char *dst = temp_path("mean-dst"), *src = make("mean-src", 6, 6, DT_F32, 1, NULL);
    CONVERT_OK(src, dst, "--kv-heads", "2", "--force");
    check_mean(src, dst, 6, 2, 6e-8, 0);
    CONVERT_OK(src, dst, "--kv-heads", "1", "--method", "mean", "--force");
    check_mean(src, dst, 6, 1, 6e-8, 0);
    free(src);
    src = make("mean-src", 6, 6, DT_BF16, 1, NULL);
    CONVERT_OK(src, dst, "--kv-heads", "3", "--force");
    check_mean(src, dst, 6, 3, 0.00392, 0);
    free(src);
    free(dst);
}

static void first_and_random(void **state)
{
    (void)state;
    char *src = make("m-src", 6, 6, DT_F32, 1, NULL), *dst = temp_path("m-dst"), *again = temp_path("m-again"), *other = temp_path("m-other");
    CONVERT_OK(src, dst, "--kv-heads", "3", "--method", "first");
    struct checkpoint *x = NULL, *y = NULL;
    assert_ok(ckpt_open(&x, src, NULL));
    assert_ok(ckpt_open(&y, dst, NULL));
    float *in = small_read(x, "dec.1.attn.v.w"), *out = small_read(y, "dec.1.attn.v.w");
    for (int64_t g = 0; g < 3; g++)
        assert_memory_equal(out + g * 192, in + g * 2 * 192, 192 * sizeof *in);
    free(in);
    free(out);
    ckpt_close(x);
    ckpt_close(y);
    CONVERT_OK(src, again, "--kv-heads", "3", "--method", "random", "--seed", "5");
    CONVERT_OK(src, dst, "--kv-heads", "3", "--method", "random", "--seed", "5", "--force");
    CONVERT_OK(src, other, "--kv-heads", "3", "--method", "random", "--seed", "6");
    assert_int_equal(differing(dst, again, 0), 0);
    assert_int_equal(differing(dst, other, 1), 4);
    free(src);
    free(dst);
    free(again);
    free(other);
}

static void equal_heads_lose_nothing(void **state)
{
    (void)state;
    static const enum dtype types[] = { DT_F32, DT_BF16, DT_F16 };
    for (int i = 0; i < 3; i++) {
        char *src = make("eq-src", 6, 6, types[i], 3, NULL), *dst = temp_path("eq-dst"), *first = temp_path("eq-first");
        CONVERT_OK(src, dst, "--kv-heads", "2", "--force");
        CONVERT_OK(src, first, "--kv-heads", "2", "--method", "first", "--force");
        assert_int_equal(differing(dst, first, 0), 0);
        free(src);
        free(dst);
        free(first);
    }
}

static void pooling_in_steps(void **state)
{
    (void)state;
    char *src = make("st-src", 8, 8, DT_F32, 1, NULL), *half = temp_path("st-half"), *two = temp_path("st-two");
    CONVERT_OK(src, half, "--kv-heads", "4");
    CONVERT_OK(half, two, "--kv-heads", "2");
    check_mean(src, two, 8, 2, 0, 6e-8);
    free(src);
    free(half);
    free(two);
}

static void refusals(void **state)
{
    (void)state;
    char *src = make("r-src", 6, 6, DT_F32, 1, NULL), *dst = temp_path("r-dst");
    static const struct { const char *v[5]; int status; const char *part; } cases[] = {
        { { "--kv-heads", "4" }, 2, "6, 3, 2, 1" },
        { { "--kv-heads", "12" }, 2, "6, 3, 2, 1" },
        { { "--kv-heads", "-1" }, 2, "legal counts" },
        { { "--kv-heads", "0" }, 2, "legal counts" },
        { { "--shard-size", "-5" }, 2, "--shard-size" },
        { { "--kv-heads-per-layer", "3,2,1" }, 2, "one per layer" },
        { { "--kv-heads-per-layer", "3,2", "--target", "native" }, 4, "layer" },
        { { "--target", "gguf" }, 2, "*.gguf" },
        { { "--target", "expanded", "--target-family", "phi" }, 2, "retarget" },
        { { "--target-family", "lama" }, 2, "llama" },
        { { "--target", "retarget" }, 4, "gpt_neox -> phi" },
        { { "--kv-heads", "2", "--kv-heads-per-layer", "3,3" }, 2, "exclude" },
        { { "--method", "median" }, 2, "mean" },
        { { "--kvheads", "2" }, 2, "--kv-heads" },
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct child c = CONVERT(src, dst, cases[i].v[0], cases[i].v[1], cases[i].v[2], cases[i].v[3]);
        if (c.status != cases[i].status || !strstr(c.err, cases[i].part))
            print_error("case %zu: status %d, %s", i, c.status, c.err);
        assert_int_equal(c.status, cases[i].status);
        assert_non_null(strstr(c.err, cases[i].part));
        assert_false(io_exists(dst));
        child_free(&c);
    }
    struct child c = CONVERT(src, src, "--kv-heads", "2", "--force");
    assert_int_equal(c.status, 2);
    child_free(&c);
    CONVERT_OK(src, dst);
    c = CONVERT(src, dst);
    assert_int_equal(c.status, 2);
    assert_non_null(strstr(c.err, "--force"));
    child_free(&c);
    free(src);
    free(dst);
}

static void per_layer_counts_in_native_form(void **state)
{
    (void)state;
    char *src = make("pl-src", 6, 6, DT_F32, 1, NULL), *dst = temp_path("pl.h5");
    CONVERT_OK(src, dst, "--kv-heads-per-layer", "3,1");
    struct checkpoint *ck = NULL;
    assert_ok(ckpt_open(&ck, dst, NULL));
    assert_int_equal(ckpt_arch(ck)->stack[STACK_DEC].block[0].G, 3);
    assert_int_equal(ckpt_arch(ck)->stack[STACK_DEC].block[1].G, 1);
    assert_int_equal(ckpt_find(ck, "dec.1.attn.k.w")->n[0], 8);
    ckpt_close(ck);
    free(src);
    free(dst);
}

static void put_nan_in_k(const struct ckpt_tensor *t, float *x) { if (strcmp(t->name, "dec.1.attn.k.w") == 0) x[100] = (float)NAN; }
static void put_inf_in_mlp(const struct ckpt_tensor *t, float *x) { if (strcmp(t->name, "dec.0.mlp.up.w") == 0) x[3] = (float)INFINITY; }

static void nonfinite_values(void **state)
{
    (void)state;
    char *src = make("nf-src", 6, 6, DT_F32, 1, put_nan_in_k), *dst = temp_path("nf-dst");
    struct child c = CONVERT(src, dst, "--kv-heads", "3");
    assert_int_equal(c.status, 3);
    assert_non_null(strstr(c.err, "layers.1.self_attn.k_proj"));
    assert_false(io_exists(dst));
    child_free(&c);
    free(src);
    src = make("nf-src", 6, 6, DT_F32, 1, put_inf_in_mlp);
    c = CONVERT(src, dst, "--kv-heads", "3");
    assert_int_equal(c.status, 0);
    assert_non_null(strstr(c.err, "non-finite"));
    child_free(&c);
    free(src);
    free(dst);
}

static void dry_run_and_json(void **state)
{
    (void)state;
    char *src = make("d-src", 6, 6, DT_F32, 1, NULL), *dst = temp_path("d-dst");
    struct child c = CONVERT(src, dst, "--kv-heads", "2", "--dry-run", "--json");
    assert_int_equal(c.status, 0);
    assert_false(io_exists(dst));
    child_free(&c);
    c = CONVERT(src, dst, "--kv-heads-per-layer", "3,1", "--target", "native", "--dry-run"); /* what the real run refuses, the dry one does */
    assert_int_equal(c.status, 4);
    child_free(&c);
    c = CONVERT(src, src, "--dry-run", "--force");
    assert_int_equal(c.status, 2);
    child_free(&c);
    c = CONVERT(src, "model.gguf", "--target", "custom", "--dry-run");
    assert_int_equal(c.status, 2);
    child_free(&c);
    c = CONVERT(src, dst, "--kv-heads", "2", "--json");
    json_t *j = json_loads(c.out, 0, NULL);
    assert_string_equal(json_string_value(json_object_get(j, "schema")), "gqakit/convert/1");
    assert_int_equal(json_integer_value(json_array_get(json_object_get(j, "groups"), 1)), 2);
    const json_t *file = json_array_get(json_object_get(j, "files"), 0);
    char hex[65], *path = io_join(src, json_string_value(json_object_get(file, "path")));
    assert_ok(sha256_file(path, hex));
    assert_string_equal(hex, json_string_value(json_object_get(file, "sha256")));
    const json_t *layer = json_array_get(json_object_get(j, "layers"), 0);
    double error = json_real_value(json_array_get(json_object_get(layer, "k_rel_error"), 1));
    assert_true(error > 0.5 && error < 1.0); /* three independent heads: sqrt(2/3) expected */
    json_decref(j);
    free(path);
    child_free(&c);
    c = CONVERT("--inspect", src, "--json");
    j = json_loads(c.out, 0, NULL);
    assert_int_equal(json_array_size(json_object_get(j, "legal_kv_heads")), 4);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(j, "kv_bytes_per_token"), "3")), 2 * 2 * 3 * 8 * 4);
    json_decref(j);
    child_free(&c);
    free(src);
    free(dst);
}

static void verify_sees_a_flipped_byte(void **state)
{
    (void)state;
    char *src = make("v-src", 6, 6, DT_F32, 1, NULL), *dst = temp_path("v-dst");
    CONVERT_OK(src, dst, "--kv-heads", "2");
    CONVERT_OK("--verify", dst);
    char *path = io_join(dst, "model.safetensors");
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    fseek(f, -5, SEEK_END);
    int byte = fgetc(f);
    fseek(f, -5, SEEK_END);
    fputc(byte ^ 1, f);
    fclose(f);
    struct child c = CONVERT("--verify", dst);
    assert_int_equal(c.status, 3);
    assert_non_null(strstr(c.err, "model.safetensors"));
    child_free(&c);
    free(path);
    free(src);
    free(dst);
}

static void card_is(const char *front, const char *want)
{
    char *got = card_front_lines(front, strlen(front));
    assert_non_null(got);
    assert_string_equal(got, want);
    free(got);
}

/* The front matter of a model card is other people's text: whole members, nothing else, nothing when it is not closed. */
static void card_lines(void **state)
{
    (void)state;
    card_is("---\nlicense: mit\n---\n", "license: mit\n");
    card_is("\xEF\xBB\xBF---\r\nlanguage:\r\n- en\r\n- de\r\ntags:\r\n- x\r\nlicense: other\r\nlicense_name: a\r\n---\r\nlicense: no\r\n",
            "language:\n- en\n- de\nlicense: other\nlicense_name: a\n");
    card_is("---\nlicense:\n    apache-2.0\nlicense: mit\nlicense_link: LICENSE\nlicensed: 1\n---", "license:\n    apache-2.0\nlicense_link: LICENSE\n");
    card_is("---\ntags:\n- language: en\n  license: mit\n---\n", "");
    card_is("---\nlicense: mit\n", "");
    card_is("license: mit\n---\n", "");
    card_is("---\nlicense: m\001t\n---\n", "");
    card_is("", "");
    card_is("---", "");
}

static char *read_card(const char *dir)
{
    char *path = io_join(dir, "README.md"), *text = NULL;
    size_t n = 0;
    assert_ok(io_read_all(path, 1 << 16, &text, &n));
    free(path);
    return text;
}

/* From directory to directory, and through a .h5: the licence stays in the card, once. */
static void card_keeps_the_licence(void **state)
{
    (void)state;
    static const char readme[] = "---\nlanguage:\n- en\nlicense: cc-by-4.0\ntags:\n- old\n---\n\n# A model\nlicense: none\n";
    char *source = make("licensed", 6, 6, DT_F32, 1, NULL), *native = temp_path("licensed.h5"), *out = temp_path("licensed-gqa"), *again = temp_path("licensed-again");
    temp_write("licensed/README.md", readme, sizeof readme - 1);
    CONVERT_OK(source, out, "--kv-heads", "3", "--quiet");
    CONVERT_OK(source, native, "--kv-heads", "3", "--quiet");
    CONVERT_OK(native, again, "--quiet");
    char *cards[] = {read_card(out), read_card(again)};
    for (int i = 0; i < 2; i++) {
        assert_ptr_equal(strstr(cards[i], "---\nlanguage:\n- en\nlicense: cc-by-4.0\nlibrary_name: transformers\n"), cards[i]);
        assert_null(strstr(cards[i], "- old"));
        assert_null(strstr(strstr(cards[i], "license:") + 1, "license:"));
        free(cards[i]);
    }
    free(source);
    free(native);
    free(out);
    free(again);
}

/* A result that could not be written is exit 5: scripts look at nothing else. */
static void full_standard_output(void **state)
{
    (void)state;
    char *src = make("out-src", 6, 6, DT_F32, 1, NULL), *program = program_path("gqa-convert"), command[2048];
    snprintf(command, sizeof command, "'%s' --inspect '%s' --json > /dev/full", program, src);
    struct child c = child_run((const char *const[]){ "/bin/sh", "-c", command, NULL }, NULL);
    assert_int_equal(c.status, 5);
    assert_non_null(strstr(c.err, "standard output"));
    child_free(&c);
    free(src);
    free(program);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(identity_keeps_every_byte), cmocka_unit_test(only_k_and_v_change),
        cmocka_unit_test(mean_is_the_mean),          cmocka_unit_test(first_and_random),
        cmocka_unit_test(equal_heads_lose_nothing),  cmocka_unit_test(pooling_in_steps),
        cmocka_unit_test(refusals),                  cmocka_unit_test(per_layer_counts_in_native_form),
        cmocka_unit_test(nonfinite_values),          cmocka_unit_test(dry_run_and_json),
        cmocka_unit_test(verify_sees_a_flipped_byte), cmocka_unit_test(card_lines),
        cmocka_unit_test(card_keeps_the_licence),    cmocka_unit_test(full_standard_output),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
