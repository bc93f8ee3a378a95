/* gqa-convert and where its results live, as its users run it, on the small models that transformers saved: what is chosen, that every
 * home of one result computes the same, copies of heads, merging under norms of the keys, and what JSON and model card say. */
#include "harness.h"
#include "model_logits.h"
#include "programs.h"

#include <math.h>

#define GOLDEN(name) "tests/golden/hf/" name

static struct checkpoint *opened(const char *path)
{
    struct checkpoint *ck = NULL;
    assert_ok(ckpt_open(&ck, path, NULL));
    return ck;
}

static double distance(const char *x, const char *y)
{
    struct checkpoint *p = opened(x), *q = opened(y);
    float *a = model_logits(p, 11), *b = model_logits(q, 11);
    assert_non_null(a);
    assert_non_null(b);
    double d = logits_distance(a, b, 2 * ckpt_arch(p)->V);
    free(a);
    free(b);
    ckpt_close(p);
    ckpt_close(q);
    return d;
}

/* ---- which home --------------------------------------------------------------------------------------------------- */

static void homes_by_family(void **state)
{
    (void)state;
    static const struct { const char *model; int64_t G; enum ckpt_home home; const char *family; } table[] = {
        {"llama-mha", 1, HOME_NATIVE, "llama"}, {"mistral-window", 1, HOME_NATIVE, "mistral"}, {"qwen2-mha", 1, HOME_NATIVE, "qwen2"},
        {"qwen3-mha-tied", 1, HOME_NATIVE, "qwen3"}, {"olmo-mha", 1, HOME_NATIVE, "olmo"}, {"olmo2-mha", 2, HOME_NATIVE, "olmo2"},
        {"gemma-mha", 1, HOME_NATIVE, "gemma"}, {"phi-mha", 1, HOME_NATIVE, "phi"}, {"phi3-mha", 1, HOME_NATIVE, "phi3"},
        {"stablelm-mha", 1, HOME_NATIVE, "stablelm"}, {"stablelm-parallel", 1, HOME_NATIVE, "stablelm"},
        {"starcoder2-mha-window", 1, HOME_NATIVE, "starcoder2"}, {"gpt_bigcode-mha", 6, HOME_NATIVE, "gpt_bigcode"},
        {"gpt_bigcode-mha", 1, HOME_NATIVE, "gpt_bigcode"}, {"gpt_bigcode-mha", 3, HOME_CUSTOM, "gqakit"}, {"gpt2-plain", 6, HOME_NATIVE, "gpt2"},
        {"gpt2-plain", 1, HOME_RETARGET, "gpt_bigcode"}, {"gpt2-plain", 2, HOME_CUSTOM, "gqakit"}, {"gpt_neox-parallel", 2, HOME_RETARGET, "phi"},
        {"gpt_neox-parallel", 4, HOME_NATIVE, "gpt_neox"}, {"gpt_neox-sequential", 2, HOME_CUSTOM, "gqakit"}, {"gptj-plain", 2, HOME_RETARGET, "phi"},
        {"opt-plain", 1, HOME_RETARGET, "gpt_bigcode"}, {"opt-plain", 3, HOME_CUSTOM, "gqakit"}, {"opt-350m", 1, HOME_CUSTOM, "gqakit"},
        {"gpt_neo-global", 1, HOME_RETARGET, "gpt_bigcode"}, {"gpt_neo-local", 1, HOME_CUSTOM, "gqakit"}, {"bloom-plain", 3, HOME_CUSTOM, "gqakit"},
        {"mpt-plain", 1, HOME_CUSTOM, "gqakit"}, {"falcon-mha", 3, HOME_NATIVE, "falcon"}, {"falcon-alibi", 1, HOME_NATIVE, "falcon"},
        {"falcon-alibi", 3, HOME_CUSTOM, "gqakit"}};
    for (size_t i = 0; i < COUNT_OF(table); i++) {
        struct ckpt_choice c;
        struct arch a;
        char *path = io_join("tests/golden/hf", table[i].model);
        struct checkpoint *ck = opened(path);
        assert_ok(arch_copy(&a, ckpt_arch(ck)));
        for (int64_t l = 0; l < a.stack[STACK_DEC].L; l++) {
            assert_int_equal(a.stack[STACK_DEC].block[l].G % table[i].G, 0);
            a.stack[STACK_DEC].block[l].G = table[i].G;
        }
        assert_ok(ckpt_choose(&a, "somewhere", HOME_AUTO, NULL, &c));
        if (c.home != table[i].home || strcmp(c.family, table[i].family) != 0)
            print_error("%s with %lld: %s, %s: %s\n", table[i].model, (long long)table[i].G, ckpt_home_name(c.home), c.family, c.sentence);
        assert_int_equal(c.home, table[i].home);
        assert_string_equal(c.family, table[i].family);
        assert_true(c.exact);
        assert_true(strlen(c.sentence) > 20);
        assert_ok(ckpt_choose(&a, "model.h5", HOME_AUTO, NULL, &c));
        assert_int_equal(c.home, HOME_NATIVE);
        assert_ok(ckpt_choose(&a, "somewhere", HOME_EXPANDED, NULL, &c));
        assert_ok(ckpt_choose(&a, "somewhere", HOME_CUSTOM, NULL, &c));
        arch_free(&a);
        ckpt_close(ck);
        free(path);
    }
}

/* One result at its several homes: the same logits. */
static void homes_agree(void **state)
{
    (void)state;
    static const struct { const char *model, *G, *family; double limit; } table[] = {
        {GOLDEN("gpt_neox-parallel"), "2", "phi", 1e-5},  {GOLDEN("gptj-plain"), "2", "phi", 1e-5},  {GOLDEN("gpt2-plain"), "1", "gpt_bigcode", 1e-5},
        {GOLDEN("opt-plain"), "1", "gpt_bigcode", 1e-5},  {GOLDEN("gpt_neo-global"), "1", "gpt_bigcode", 1e-5}, {GOLDEN("bloom-plain"), "3", "gqakit", 1e-5},
        {GOLDEN("mpt-plain"), "2", "gqakit", 1e-5},       {GOLDEN("falcon-mha"), "3", "falcon", 1e-5}, {GOLDEN("phi3-mha"), "2", "phi3", 1e-5},
        {GOLDEN("starcoder2-mha-window"), "3", "starcoder2", 1e-5}, {GOLDEN("olmo2-mha"), "3", "olmo2", 1e-5}, {GOLDEN("qwen3-mha-tied"), "2", "qwen3", 1e-5}};
    char *chosen = temp_path("chosen"), *custom = temp_path("custom"), *expanded = temp_path("expanded"), *h5 = temp_path("home.h5"), *again = temp_path("again");
    for (size_t i = 0; i < COUNT_OF(table); i++) {
        CONVERT_OK(table[i].model, chosen, "--kv-heads", table[i].G, "--dtype", "f32", "--force");
        CONVERT_OK(table[i].model, custom, "--kv-heads", table[i].G, "--dtype", "f32", "--force", "--target", "custom");
        CONVERT_OK(table[i].model, expanded, "--kv-heads", table[i].G, "--dtype", "f32", "--force", "--target", "expanded");
        struct checkpoint *ck = opened(chosen);
        if (strcmp(ckpt_arch(ck)->family, table[i].family) != 0)
            print_error("%s: %s\n", table[i].model, ckpt_arch(ck)->family);
        assert_string_equal(ckpt_arch(ck)->family, table[i].family);
        assert_int_equal(ckpt_arch(ck)->stack[STACK_DEC].block[0].G, atoi(table[i].G));
        ckpt_close(ck);
        double c = distance(chosen, custom), e = distance(chosen, expanded);
        print_message("%-42s %s: custom %.1e, expanded %.1e\n", table[i].model, table[i].G, c, e);
        assert_true(c <= table[i].limit);
        assert_true(e <= table[i].limit);
        /* H heads that are copies: merged to G again, the mean of equal values is that value */
        CONVERT_OK(expanded, again, "--kv-heads", table[i].G, "--force", "--target", "custom");
        assert_true(distance(again, custom) <= 1e-6);
        CONVERT_OK(custom, h5, "--force");
        CONVERT_OK(h5, again, "--force"); /* our own form, through a .h5 and back */
        assert_true(distance(again, custom) == 0.0);
    }
    free(chosen);
    free(custom);
    free(expanded);
    free(h5);
    free(again);
}

/* ---- copies of heads ---------------------------------------------------------------------------------------------- */

static void *bytes_of(struct checkpoint *ck, const char *name, int64_t *n)
{
    const struct ckpt_tensor *t = ckpt_find(ck, name);
    assert_non_null(t);
    void *x = malloc((size_t)t->bytes);
    assert_ok(ckpt_read(ck, t, 0, t->n[0], x, DT_NONE));
    *n = t->bytes;
    return x;
}

static void heads_are_repeated_and_merged_back(void **state)
{
    (void)state;
    char *mha = temp_path("mha"), *back = temp_path("back");
    CONVERT_OK(GOLDEN("qwen2-gqa-tied"), mha, "--kv-heads", "6", "--force");
    CONVERT_OK(mha, back, "--kv-heads", "3", "--force");
    struct checkpoint *gqa = opened(GOLDEN("qwen2-gqa-tied")), *full = opened(mha), *again = opened(back);
    const struct arch_block *b = &ckpt_arch(gqa)->stack[STACK_DEC].block[0];
    assert_int_equal(b->H, 6);
    assert_int_equal(b->G, 3);
    static const char *const names[] = {"dec.0.attn.k.w", "dec.1.attn.v.w", "dec.1.attn.k.b", "dec.0.attn.v.b"};
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        int64_t n, m, k;
        char *x = bytes_of(gqa, names[i], &n), *y = bytes_of(full, names[i], &m), *z = bytes_of(again, names[i], &k);
        assert_int_equal(m, 2 * n);
        assert_int_equal(k, n);
        assert_memory_equal(x, z, (size_t)n);
        int64_t head = n / 3;
        for (int64_t h = 0; h < 6; h++)
            assert_memory_equal(y + h * head, x + h / 2 * head, (size_t)head);
        free(x);
        free(y);
        free(z);
    }
    ckpt_close(gqa);
    ckpt_close(full);
    ckpt_close(again);
    assert_true(distance(GOLDEN("qwen2-gqa-tied"), mha) <= 1e-6);
    struct child c = CONVERT(GOLDEN("qwen2-gqa-tied"), back, "--kv-heads", "4", "--force");
    assert_int_equal(c.status, 2);
    assert_non_null(strstr(c.err, "3, 1; by repeating heads 6"));
    child_free(&c);
    free(mha);
    free(back);
}

/* GQA and MQA to MHA, in every layout a family has. */
static void expansion_by_family(void **state)
{
    (void)state;
    static const struct { const char *model, *family; } table[] = {
        {GOLDEN("gpt_bigcode-mqa"), "gpt_bigcode"}, {GOLDEN("falcon-mqa"), "falcon"}, {GOLDEN("falcon-new-gqa"), "falcon"},
        {GOLDEN("gemma-gqa"), "gemma"}, {GOLDEN("phi-gqa"), "phi"}, {GOLDEN("starcoder2-gqa"), "starcoder2"},
        {GOLDEN("olmo2-gqa"), "olmo2"}, {GOLDEN("qwen3-gqa"), "qwen3"}, {GOLDEN("phi3-gqa-window"), "phi3"},
        {GOLDEN("stablelm-qk-layernorm"), "stablelm"}, {GOLDEN("llama-wide-heads-gqa"), "llama"}};
    char *mha = temp_path("mha-of");
    for (size_t i = 0; i < COUNT_OF(table); i++) {
        struct checkpoint *ck = opened(table[i].model);
        const struct arch_block *b = &ckpt_arch(ck)->stack[STACK_DEC].block[0];
        char H[24];
        snprintf(H, sizeof H, "%lld", (long long)b->H);
        assert_true(b->G < b->H);
        ckpt_close(ck);
        CONVERT_OK(table[i].model, mha, "--kv-heads", H, "--force");
        ck = opened(mha);
        assert_string_equal(ckpt_arch(ck)->family, table[i].family);
        assert_int_equal(ckpt_arch(ck)->stack[STACK_DEC].block[0].G, ckpt_arch(ck)->stack[STACK_DEC].block[0].H);
        ckpt_close(ck);
        double d = distance(table[i].model, mha);
        if (!(d <= 1e-6))
            print_error("%s: %g\n", table[i].model, d);
        assert_true(d <= 1e-6);
    }
    free(mha);
}

/* ---- norms of keys ------------------------------------------------------------------------------------------------ */

/* A model like `from`, in f32, whose K/V heads are equal two by two, and its key norm weights `gamma`. */
static void make_equal(const char *from, const char *to, float gamma)
{
    struct checkpoint *source = opened(from);
    struct ckpt_writer *w;
    struct ckpt_target target = {.path = to, .arch = ckpt_arch(source), .source = source, .dtype = DT_F32, .force = 1};
    assert_ok(ckpt_create(&w, &target));
    for (int i = 0; i < ckpt_writer_count(w); i++) {
        const struct ckpt_tensor *t = ckpt_writer_at(w, i), *in = ckpt_find(source, t->name);
        int64_t n = t->n[0] * t->n[1];
        float *x = malloc((size_t)n * sizeof *x);
        assert_ok(ckpt_read(source, in, 0, t->n[0], x, DT_F32));
        int64_t heads = t->layer >= 0 ? ckpt_arch(source)->stack[STACK_DEC].block[t->layer].G : 1, head = n / heads;
        int keys = t->pool == POOL_KV || (t->pool == POOL_QKNORM && ckpt_arch(source)->qk_norm != QK_NORM_HEAD);
        for (int64_t h = 0; keys && h < heads; h++)
            memcpy(x + h * head, x + h / 2 * 2 * head, (size_t)head * sizeof *x);
        for (int64_t k = 0; gamma > 0 && t->pool == POOL_QKNORM && k < n; k++)
            x[k] = gamma;
        assert_ok(ckpt_write(w, t, 0, t->n[0], x, DT_F32));
        free(x);
    }
    assert_ok(ckpt_commit(w));
    ckpt_close(source);
}

/* Equal heads lose nothing under any key norm; for the norm over all heads when its weights are equal too. */
static void equal_heads_under_key_norms(void **state)
{
    (void)state;
    static const struct { const char *model; float gamma; const char *note; } table[] = {
        {GOLDEN("qwen3-mha-tied"), 0, "acts on merged keys"},
        {GOLDEN("olmo2-mha"), 1.5f, "one constant per layer"},
        {GOLDEN("stablelm-qk-layernorm"), 0, "mean of its heads' key norms"}};
    char *equal = temp_path("equal"), *merged = temp_path("merged");
    for (size_t i = 0; i < COUNT_OF(table); i++) {
        struct checkpoint *ck = opened(table[i].model);
        char G[16];
        snprintf(G, sizeof G, "%d", (int)ckpt_arch(ck)->stack[STACK_DEC].block[0].G / 2);
        ckpt_close(ck);
        make_equal(table[i].model, equal, table[i].gamma);
        struct child c = CONVERT(equal, merged, "--kv-heads", G, "--force", "--json");
        assert_int_equal(c.status, 0);
        json_t *j = json_loads(c.out, 0, NULL);
        assert_non_null(strstr(json_string_value(json_object_get(j, "approximate")), table[i].note));
        json_decref(j);
        child_free(&c);
        double d = distance(equal, merged);
        print_message("%-42s %s: %.1e\n", table[i].model, G, d);
        assert_true(d <= 1e-5);
    }
    free(equal);
    free(merged);
}

/* OLMo 2: the merged keys keep the size of the mean of the old keys better than with pooled weights of the norm: |k'| at the mean. */
static void constant_of_the_key_norm(void **state)
{
    (void)state;
    char *merged = temp_path("olmo2");
    CONVERT_OK(GOLDEN("olmo2-mha"), merged, "--kv-heads", "1", "--dtype", "f32", "--force");
    struct checkpoint *ck = opened(merged), *was = opened(GOLDEN("olmo2-mha"));
    const struct arch_block *b = &ckpt_arch(was)->stack[STACK_DEC].block[0];
    int64_t C = ckpt_arch(was)->C, rows = b->G * b->D;
    for (int l = 0; l < 2; l++) {
        char name[3][64];
        static const char *const parts[] = {"k_norm.w", "k.w", "k_norm.w"};
        for (int i = 0; i < 3; i++)
            snprintf(name[i], 64, "dec.%d.attn.%s", l, parts[i]);
        float *gamma = malloc((size_t)rows * sizeof *gamma), *W = malloc((size_t)(rows * C) * sizeof *W), *now = malloc((size_t)b->D * sizeof *now),
              *W1 = malloc((size_t)(b->D * C) * sizeof *W1);
        assert_ok(ckpt_read(was, ckpt_find(was, name[0]), 0, rows, gamma, DT_F32));
        assert_ok(ckpt_read(was, ckpt_find(was, name[1]), 0, rows, W, DT_F32));
        assert_ok(ckpt_read(ck, ckpt_find(ck, name[0]), 0, b->D, now, DT_F32));
        assert_ok(ckpt_read(ck, ckpt_find(ck, name[1]), 0, b->D, W1, DT_F32));
        double source = 0, pooled = 0;
        for (int64_t i = 0; i < rows * C; i++)
            source += (double)W[i] * (double)W[i];
        for (int64_t d = 0; d < b->D; d++)
            for (int64_t k = 0; k < C; k++) {
                double mean = 0;
                for (int64_t h = 0; h < b->G; h++)
                    mean += (double)gamma[h * b->D + d] * (double)W[(h * b->D + d) * C + k] / (double)b->G;
                assert_true(fabs(mean - (double)W1[d * C + k] * (double)now[d]) < 1e-6); /* stored: W' / c */
                pooled += mean * mean;
            }
        double want = sqrt(pooled / (double)b->D / (source / (double)rows));
        for (int64_t d = 0; d < b->D; d++)
            assert_true(fabs((double)now[d] - want) <= 1e-5 * want);
        free(gamma);
        free(W);
        free(now);
        free(W1);
    }
    ckpt_close(ck);
    ckpt_close(was);
    free(merged);
}

/* ---- what is said ------------------------------------------------------------------------------------------------- */

static void json_and_card(void **state)
{
    (void)state;
    char *dst = temp_path("said"), *text = NULL, *readme = io_join(dst, "README.md");
    size_t n = 0;
    struct child c = CONVERT(GOLDEN("gpt_neox-parallel"), dst, "--kv-heads", "2", "--json", "--force");
    assert_int_equal(c.status, 0);
    json_t *j = json_loads(c.out, 0, NULL), *target = json_object_get(j, "target");
    assert_string_equal(json_string_value(json_object_get(target, "home")), "retarget");
    assert_string_equal(json_string_value(json_object_get(target, "family")), "phi");
    assert_true(json_is_true(json_object_get(target, "exact")));
    assert_string_equal(json_string_value(json_object_get(target, "path")), dst);
    assert_ok(io_read_all(readme, 1 << 16, &text, &n));
    assert_non_null(strstr(text, json_string_value(json_object_get(target, "sentence"))));
    free(text);
    json_decref(j);
    child_free(&c);
    c = CONVERT(GOLDEN("gpt_neo-local"), dst, "--kv-heads", "1", "--target", "retarget", "--json", "--force");
    assert_int_equal(c.status, 0);
    j = json_loads(c.out, 0, NULL);
    target = json_object_get(j, "target");
    assert_true(json_is_false(json_object_get(target, "exact")));
    assert_non_null(strstr(json_string_value(json_object_get(target, "sentence")), "only for contexts up to"));
    json_decref(j);
    child_free(&c);
    c = CONVERT(GOLDEN("olmo-mha"), dst, "--target-family", "llama", "--force");
    assert_int_equal(c.status, 0);
    assert_non_null(strstr(c.out, "LlamaForCausalLM"));
    child_free(&c);
    c = CONVERT(GOLDEN("olmo-clip"), dst, "--target-family", "llama", "--force");
    assert_int_equal(c.status, 4);
    assert_non_null(strstr(c.err, "clip_qkv"));
    child_free(&c);
    c = CONVERT(GOLDEN("olmo-clip"), dst, "--kv-heads", "1", "--force");
    assert_int_equal(c.status, 0);
    assert_non_null(strstr(c.out, "clipped after the merge"));
    child_free(&c);
    c = CONVERT("--inspect", GOLDEN("gpt2-plain"), "--json");
    j = json_loads(c.out, 0, NULL);
    const json_t *homes = json_object_get(j, "homes");
    assert_string_equal(json_string_value(json_object_get(json_object_get(homes, "1"), "family")), "gpt_bigcode");
    assert_string_equal(json_string_value(json_object_get(json_object_get(homes, "3"), "home")), "custom");
    json_decref(j);
    child_free(&c);
    c = CONVERT(GOLDEN("llama-mha"), dst, "--kv-heads-per-layer", "1,2", "--force");
    if (c.status)
        print_error("%s", c.err);
    assert_int_equal(c.status, 0);
    struct checkpoint *ck = opened(dst);
    assert_string_equal(ckpt_arch(ck)->family, "gqakit");
    assert_int_equal(ckpt_arch(ck)->stack[STACK_DEC].block[1].G, 2);
    ckpt_close(ck);
    child_free(&c);
    free(readme);
    free(dst);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(homes_by_family),           cmocka_unit_test(homes_agree),
        cmocka_unit_test(heads_are_repeated_and_merged_back), cmocka_unit_test(expansion_by_family), cmocka_unit_test(equal_heads_under_key_norms),
        cmocka_unit_test(constant_of_the_key_norm),  cmocka_unit_test(json_and_card),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
