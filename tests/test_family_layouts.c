/* How the families of the GPT-2 line lay q, k and v out in their files, with prefixes or without, in shards and other types; which
 * numbers of key/value heads their classes hold and how config.json then says so; what gpt_bigcode can hold of another family. */
#include "family_case.h"

#include <math.h>
#include <pthread.h>

#include "checkpoints/family.h"
#include "hf_case.h"

/* H 6, D 8, V 37 */
#define TYPE(name) "'model_type': '" name "', 'vocab_size': 37, "
#define GPT "'n_embd': 48, 'n_layer': 2, 'n_head': 6, 'n_positions': 40"
#define USUAL "'hidden_size': 48, 'num_hidden_layers': 2, 'num_attention_heads': 6"
#define NEOX USUAL ", 'intermediate_size': 20"
#define OPT USUAL ", 'ffn_dim': 20, 'max_position_embeddings': 40"
#define MPT "'d_model': 48, 'n_layers': 2, 'n_heads': 6, 'max_seq_len': 40"

/* ---- how rows lie in the files ------------------------------------------------------------------------------------ */

/* part 0, 1, 2: q, k, v; head h; dimension d of it -> row of the fused tensor, as the modelling code of each class slices it. */
struct layout { const char *config, *tensor; int64_t G; int64_t (*row)(int part, int64_t h, int64_t d); int transposed; };
static int64_t parts_mha(int part, int64_t h, int64_t d) { return part * 48 + h * 8 + d; }            /* [3, H, D] */
static int64_t by_head(int part, int64_t h, int64_t d) { return (h * 3 + part) * 8 + d; }             /* [H, 3, D] */
static int64_t multi_query(int part, int64_t h, int64_t d) { return part * 8 + (part ? 40 : 0) + h * 8 + d; } /* H heads of q, k, v */
static int64_t groups_of_3(int part, int64_t h, int64_t d)                                            /* [3, 2 + 2, D] */
{
    return part == 0 ? (h / 2 * 4 + h % 2) * 8 + d : (h * 4 + 1 + part) * 8 + d;
}

/* A file with 1000 * row (or column) + the other index in it, so that every element says where it stood. */
static void layout_check(const struct layout *l)
{
    struct arch a;
    struct ckpt_writer *w;
    struct checkpoint *ck;
    char *path = temp_path("layout");
    assert_ok(family_config(&a, l->config));
    struct ckpt_target target = {.path = path, .arch = &a, .dtype = DT_F32, .force = 1};
    assert_ok(ckpt_create(&w, &target));
    for (int i = 0; i < ckpt_writer_count(w); i++) { /* canonical tensors filled by what the layout says of their rows */
        const struct ckpt_tensor *t = ckpt_writer_at(w, i);
        int part = strstr(t->name, "attn.q.w") ? 0 : strstr(t->name, "attn.k.w") ? 1 : strstr(t->name, "attn.v.w") ? 2 : -1;
        float *x = calloc((size_t)(t->n[0] * t->n[1]), sizeof *x);
        for (int64_t r = 0; part >= 0 && r < t->n[0]; r++)
            for (int64_t c = 0; c < t->n[1]; c++)
                x[r * t->n[1] + c] = (float)(1000 * l->row(part, r / 8, r % 8) + c);
        assert_ok(ckpt_write(w, t, 0, t->n[0], x, DT_F32));
        free(x);
    }
    assert_ok(ckpt_commit(w));
    size_t n;
    char *bytes = hf_slurp(path, "model.safetensors", &n);
    uint64_t head;
    memcpy(&head, bytes, 8);
    json_t *root;
    assert_ok(json_parse_object(bytes + 8, head, "header", &root));
    const json_t *entry = json_object_get(root, l->tensor);
    assert_non_null(entry);
    int64_t begin = json_integer_value(json_array_get(json_object_get(entry, "data_offsets"), 0));
    int64_t rows = json_integer_value(json_array_get(json_object_get(entry, "shape"), 0));
    int64_t columns = json_integer_value(json_array_get(json_object_get(entry, "shape"), 1));
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++) {
            float x;
            memcpy(&x, bytes + 8 + head + (size_t)begin + (size_t)(r * columns + c) * 4, 4);
            assert_int_equal((int64_t)x, l->transposed ? 1000 * c + r : 1000 * r + c);
        }
    json_decref(root);
    free(bytes);
    assert_ok(ckpt_open(&ck, path, NULL));
    assert_int_equal(ckpt_arch(ck)->stack[STACK_DEC].block[1].G, l->G);
    ckpt_close(ck);
    arch_free(&a);
    free(path);
}

static void test_layouts(void **state)
{
    (void)state;
    static const struct layout layouts[] = {
        {"{" TYPE("gpt2") GPT "}", "transformer.h.1.attn.c_attn.weight", 6, parts_mha, 1},
        {"{" TYPE("gpt_bigcode") GPT "}", "transformer.h.1.attn.c_attn.weight", 1, multi_query, 0},
        {"{" TYPE("gpt_bigcode") GPT ", 'multi_query': false}", "transformer.h.1.attn.c_attn.weight", 6, by_head, 0},
        {"{" TYPE("gpt_neox") NEOX "}", "gpt_neox.layers.1.attention.query_key_value.weight", 6, by_head, 0},
        {"{" TYPE("bloom") "'hidden_size': 48, 'n_layer': 2, 'n_head': 6}", "transformer.h.1.self_attention.query_key_value.weight", 6, by_head, 0},
        {"{" TYPE("mpt") MPT "}", "transformer.blocks.1.attn.Wqkv.weight", 6, parts_mha, 0},
        {"{" TYPE("falcon") USUAL "}", "transformer.h.1.self_attention.query_key_value.weight", 1, multi_query, 0},
        {"{" TYPE("falcon") USUAL ", 'multi_query': false}", "transformer.h.1.self_attention.query_key_value.weight", 6, by_head, 0},
        {"{" TYPE("falcon") USUAL ", 'new_decoder_architecture': true, 'num_kv_heads': 3}", "transformer.h.1.self_attention.query_key_value.weight", 3,
         groups_of_3, 0},
    };
    for (size_t i = 0; i < COUNT_OF(layouts); i++)
        layout_check(&layouts[i]);
}

/* GPT-J's heads in the file: the pairs of the first rotary_dim rows side by side. */
static int64_t rotary_row(int part, int64_t h, int64_t d)
{
    int64_t i = part == 2 || d >= 4 ? d : d < 2 ? 2 * d : 2 * (d - 2) + 1;
    return h * 8 + i;
}

static void test_rotary_layout(void **state)
{
    (void)state;
    static const char *const tensors[] = {"transformer.h.1.attn.q_proj.weight", "transformer.h.1.attn.k_proj.weight", "transformer.h.1.attn.v_proj.weight"};
    for (size_t i = 0; i < COUNT_OF(tensors); i++)
        layout_check(&(struct layout){"{" TYPE("gptj") GPT ", 'rotary_dim': 4}", tensors[i], 6, rotary_row, 0});
}

/* ---- prefixes, shards, types -------------------------------------------------------------------------------------- */

/* The text with every `from` taken out, padded at the end of the header so that its length stays. */
static void prefix_remove(const char *dir, const char *prefix)
{
    size_t n, k = strlen(prefix);
    char *bytes = hf_slurp(dir, "model.safetensors", &n);
    uint64_t head;
    memcpy(&head, bytes, 8);
    char *end = bytes + 8 + head, *at;
    while ((at = memmem(bytes + 8, head, prefix, k))) {
        memmove(at, at + k, (size_t)(end - at) - k);
        memset(end - k, ' ', k);
    }
    hf_put(dir, "model.safetensors", bytes, n);
    free(bytes);
}

/* The same tensors under the same names in the files, in the same order, with the same bytes. */
static void tensors_same(const char *x, const char *y)
{
    struct checkpoint *a, *b;
    assert_ok(ckpt_open(&a, x, NULL));
    assert_ok(ckpt_open(&b, y, NULL));
    for (int i = 0; i < ckpt_count(a); i++) {
        const struct ckpt_tensor *s = ckpt_at(a, i), *t = ckpt_at(b, i);
        char *p = malloc((size_t)s->bytes), *q = malloc((size_t)s->bytes);
        assert_string_equal(s->name, t->name);
        assert_string_equal(s->source, t->source);
        assert_int_equal(s->bytes, t->bytes);
        assert_ok(ckpt_read(a, s, 0, s->n[0], p, DT_NONE));
        assert_ok(ckpt_read(b, t, 0, t->n[0], q, DT_NONE));
        assert_memory_equal(p, q, (size_t)s->bytes);
        free(p);
        free(q);
    }
    ckpt_close(a);
    ckpt_close(b);
}

static void test_bare_names_stay_bare(void **state)
{
    (void)state;
    static const struct { const char *config, *prefix, *name; } cases[] = {
        {"{" TYPE("gpt2") GPT "}", "transformer.", "h.1.attn.c_attn.weight"},
        {"{" TYPE("bloom") "'hidden_size': 48, 'n_layer': 2, 'n_head': 6}", "transformer.", "h.1.self_attention.query_key_value.weight"},
        {"{" TYPE("opt") OPT "}", "model.", "decoder.layers.1.self_attn.q_proj.weight"},
        {"{" TYPE("gpt_neox") NEOX "}", "gpt_neox.", "layers.1.attention.query_key_value.weight"},
    };
    char *dir = temp_path("bare"), *to = temp_path("bare-copy"), *h5 = temp_path("bare.h5");
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct arch a;
        struct ckpt_writer *w;
        struct checkpoint *ck;
        assert_ok(family_config(&a, cases[i].config));
        struct ckpt_target target = {.path = dir, .arch = &a, .dtype = DT_F32, .force = 1};
        assert_ok(ckpt_create(&w, &target));
        hf_fill(w);
        assert_ok(ckpt_commit(w));
        prefix_remove(dir, cases[i].prefix);
        assert_ok(ckpt_open(&ck, dir, NULL));
        assert_string_equal(ckpt_find(ck, "dec.1.attn.q.w")->source, cases[i].name);
        ckpt_close(ck);
        assert_ok(hf_copy(dir, to, DT_NONE, 0, 1));
        tensors_same(dir, to);
        assert_ok(hf_copy(dir, h5, DT_NONE, 0, 1)); /* the native form remembers the spelling */
        assert_ok(hf_copy(h5, to, DT_NONE, 0, 1));
        tensors_same(dir, to);
        arch_free(&a);
    }
    free(dir);
    free(to);
    free(h5);
}

/* Pieces may stand in any order in a file; here 2 before 1. */
static void pieces_swap(const char *dir)
{
    size_t n;
    char *bytes = hf_slurp(dir, "model.safetensors", &n), *at = bytes;
    while ((at = memmem(at, (size_t)(bytes + n - at), "norms.", 6))) {
        at += 6;
        *at = *at == '1' ? '2' : *at == '2' ? '1' : *at;
    }
    hf_put(dir, "model.safetensors", bytes, n);
    free(bytes);
}

/* Into shards and back, one row at a time and in other types; a transposed tensor is gathered from any of them. */
static void test_shards_and_types(void **state)
{
    (void)state;
    static const char *const configs[] = {"{" TYPE("gpt2") GPT "}", "{" TYPE("gptj") GPT ", 'rotary_dim': 4}",
                                          "{" TYPE("falcon") USUAL ", 'new_decoder_architecture': true, 'num_kv_heads': 3, 'bias': true}",
                                          "{" TYPE("stablelm") NEOX ", 'num_key_value_heads': 3, 'qk_layernorm': true}"};
    char *dir = temp_path("whole"), *shards = temp_path("shards"), *back = temp_path("again"), *half = temp_path("half");
    for (size_t i = 0; i < COUNT_OF(configs); i++) {
        struct arch a;
        struct ckpt_writer *w;
        struct checkpoint *x, *y;
        assert_ok(family_config(&a, configs[i]));
        struct ckpt_target target = {.path = dir, .arch = &a, .dtype = DT_F32, .force = 1};
        assert_ok(ckpt_create(&w, &target));
        hf_fill(w);
        assert_ok(ckpt_commit(w));
        assert_ok(hf_copy(dir, shards, DT_NONE, 9000, 1));
        assert_ok(hf_copy(shards, back, DT_NONE, (int64_t)1 << 40, 1));
        hf_same_dir(dir, back);
        assert_ok(hf_copy(shards, back, DT_NONE, 0, 1));
        hf_same_dir(shards, back);
        pieces_swap(dir);
        assert_ok(hf_copy(dir, back, DT_NONE, 0, 1));
        hf_same_dir(dir, back);
        assert_ok(hf_copy(dir, half, DT_BF16, 0, 1));
        assert_ok(ckpt_open(&x, dir, NULL));
        assert_ok(ckpt_open(&y, half, NULL));
        for (int t = 0; t < ckpt_count(x); t++) {
            const struct ckpt_tensor *f = ckpt_at(x, t), *g = ckpt_find(y, f->name);
            size_t n = (size_t)(f->n[0] * f->n[1]);
            uint16_t *p = malloc(2 * n), *q = malloc(2 * n);
            for (int64_t row = 0; row < f->n[0]; row++)
                assert_ok(ckpt_read(x, f, row, 1, p + row * f->n[1], DT_BF16));
            assert_ok(ckpt_read(y, g, 0, g->n[0], q, DT_NONE));
            assert_memory_equal(p, q, 2 * n);
            free(p);
            free(q);
        }
        ckpt_close(x);
        ckpt_close(y);
        arch_free(&a);
    }
    free(dir);
    free(shards);
    free(back);
    free(half);
}

/* ---- several readers ---------------------------------------------------------------------------------------------- */

struct reader { pthread_t thread; struct checkpoint *ck; int number, wrong; };

static void *read_all(void *arg)
{
    struct reader *r = arg;
    int n = ckpt_count(r->ck);
    float *row = calloc(64, sizeof *row), *want = calloc(64, sizeof *want);
    for (int i = 0; i < 40 * n; i++) { /* each in an order of its own: the one tensor kept in memory changes all the time */
        const struct ckpt_tensor *t = ckpt_at(r->ck, (int)random_int((uint64_t)r->number, (uint64_t)i, 0, n - 1));
        int64_t at = random_int((uint64_t)r->number + 10, (uint64_t)i, 0, t->n[0] - 1);
        if (t->n[1] > 64)
            continue;
        random_normal_f32(want, t->n[1], at * t->n[1], 1, 7, random_stream_of(t->name), 0);
        r->wrong += ckpt_read(r->ck, t, at, 1, row, DT_F32) != OK || memcmp(row, want, (size_t)t->n[1] * sizeof *row) != 0;
    }
    free(row);
    free(want);
    return NULL;
}

static void test_several_readers(void **state)
{
    (void)state;
    struct arch a;
    struct ckpt_writer *w;
    struct checkpoint *ck;
    struct reader readers[4];
    char *dir = temp_path("readers");
    assert_ok(family_config(&a, "{" TYPE("gpt2") GPT ", 'n_inner': 20}"));
    struct ckpt_target target = {.path = dir, .arch = &a, .dtype = DT_F32, .force = 1};
    assert_ok(ckpt_create(&w, &target));
    hf_fill(w);
    assert_ok(ckpt_commit(w));
    assert_ok(ckpt_open(&ck, dir, NULL));
    for (int i = 0; i < 4; i++) {
        readers[i] = (struct reader){.ck = ck, .number = i};
        assert_int_equal(pthread_create(&readers[i].thread, NULL, read_all, &readers[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        assert_int_equal(pthread_join(readers[i].thread, NULL), 0);
        assert_int_equal(readers[i].wrong, 0);
    }
    ckpt_close(ck);
    arch_free(&a);
    free(dir);
}

/* ---- key/value heads ---------------------------------------------------------------------------------------------- */

/* The config's arch with G heads in every layer -> its new config.json, read back; `says` must be in the text. */
static enum code regrouped(const char *config, int64_t G, const char *says)
{
    struct arch a, b;
    char *text = NULL;
    assert_ok(family_config(&a, config));
    for (int64_t l = 0; l < a.stack[STACK_DEC].L; l++)
        a.stack[STACK_DEC].block[l].G = G;
    enum code c = arch_to_config_json(&a, DT_NONE, &text);
    if (c == OK) {
        if (!strstr(text, says))
            print_error("expected %s in %s\n", says, text);
        assert_non_null(strstr(text, says));
        assert_ok(arch_from_config_json(&b, text, strlen(text), "result"));
        assert_int_equal(b.stack[STACK_DEC].block[1].G, G);
        assert_int_equal(arch_parameters(&b), arch_parameters(&a));
        assert_int_equal(b.residual, a.residual);
        arch_free(&b);
    }
    free(text);
    arch_free(&a);
    return c;
}

static void test_groups(void **state)
{
    (void)state;
    static const char *const mha[] = {"{" TYPE("gpt2") GPT "}", "{" TYPE("gpt_neo") USUAL ", 'attention_layers': ['local', 'global']}",
                                      "{" TYPE("gpt_neox") NEOX "}", "{" TYPE("gptj") GPT ", 'rotary_dim': 4}", "{" TYPE("opt") OPT "}",
                                      "{" TYPE("bloom") "'hidden_size': 48, 'n_layer': 2, 'n_head': 6}", "{" TYPE("mpt") MPT "}"};
    for (size_t i = 0; i < COUNT_OF(mha); i++)
        for (int64_t G = 1; G <= 3; G++)
            assert_refused(regrouped(mha[i], G, ""), ERR_UNSUPPORTED, "as many key/value heads as query heads, 6");
    const char *bigcode = "{" TYPE("gpt_bigcode") GPT ", 'multi_query': false, 'num_key_value_heads': 6}";
    assert_ok(regrouped(bigcode, 1, "\"multi_query\": true, \"num_key_value_heads\": 1"));
    assert_ok(regrouped("{" TYPE("gpt_bigcode") GPT "}", 6, "\"n_head\": 6, \"multi_query\": false"));
    assert_refused(regrouped(bigcode, 3, ""), ERR_UNSUPPORTED, "layer 0 has 3");
    const char *rw = "{" TYPE("falcon") USUAL ", 'alibi': true, 'multi_query': false, 'parallel_attn': false}";
    assert_ok(regrouped(rw, 1, "\"multi_query\": true"));
    assert_refused(regrouped(rw, 3, ""), ERR_UNSUPPORTED, "only with parallel residuals");
    assert_ok(regrouped("{" TYPE("falcon") USUAL ", 'multi_query': false}", 3, "\"new_decoder_architecture\": true"));
    assert_ok(regrouped("{" TYPE("falcon") USUAL ", 'multi_query': true, 'num_kv_heads': 6}", 6, "\"multi_query\": false"));
    assert_ok(regrouped("{" TYPE("falcon") USUAL ", 'new_decoder_architecture': true, 'num_kv_heads': 6}", 2, "\"num_kv_heads\": 2"));
    assert_ok(regrouped("{" TYPE("falcon") USUAL ", 'new_decoder_architecture': true}", 2, "\"num_kv_heads\": 2"));
    /* a model of Mosaic's own code that has groups already: read, and copied as it is */
    const char *mosaic = "{" TYPE("mpt") MPT ", 'attn_config': {'attn_type': 'grouped_query_attention', 'kv_n_heads': 3}}";
    assert_ok(regrouped(mosaic, 3, "kv_n_heads"));
    assert_refused(regrouped(mosaic, 1, ""), ERR_UNSUPPORTED, "as many key/value heads");
    assert_ok(regrouped("{" TYPE("mpt") MPT ", 'attn_config': {'attn_type': 'multiquery_attention'}}", 1, "multiquery"));
}

/* ---- gpt_bigcode as a home ---------------------------------------------------------------------------------------- */

static enum code as_bigcode(const char *config, int64_t G)
{
    struct arch a, b;
    char *text = NULL;
    assert_ok(family_config(&a, config));
    free(a.source_config);
    a.source_config = NULL;
    snprintf(a.family, sizeof a.family, "gpt_bigcode");
    for (int64_t l = 0; l < a.stack[STACK_DEC].L; l++)
        a.stack[STACK_DEC].block[l].G = G;
    enum code c = arch_to_config_json(&a, DT_NONE, &text);
    if (c == OK) {
        assert_ok(arch_from_config_json(&b, text, strlen(text), "result"));
        assert_int_equal(arch_parameters(&a), arch_parameters(&b));
        assert_int_equal(a.mlp, b.mlp);
        assert_true(fabs(a.attn_scale - b.attn_scale) < 1e-15);
        arch_free(&b);
    }
    free(text);
    arch_free(&a);
    return c;
}

static void test_bigcode_holds_others(void **state)
{
    (void)state;
    assert_ok(as_bigcode("{" TYPE("gpt2") GPT "}", 1));
    assert_ok(as_bigcode("{" TYPE("gpt2") GPT ", 'activation_function': 'relu', 'scale_attn_weights': false, 'tie_word_embeddings': false}", 1));
    assert_ok(as_bigcode("{" TYPE("gpt2") GPT ", 'n_inner': 20, 'layer_norm_epsilon': 1e-6}", 6));
    assert_refused(as_bigcode("{" TYPE("gpt2") GPT "}", 2), ERR_UNSUPPORTED, "one key/value head");
    assert_refused(as_bigcode("{" TYPE("gpt2") GPT ", 'scale_attn_by_inverse_layer_idx': true}", 1), ERR_UNSUPPORTED, "blocks[0]");
    assert_refused(as_bigcode("{" TYPE("opt") OPT "}", 1), ERR_UNSUPPORTED, "pos_offset");
    assert_refused(as_bigcode("{" TYPE("gpt_neo") USUAL ", 'attention_types': [[['global'], 2]]}", 1), ERR_UNSUPPORTED, "bias");
    assert_refused(as_bigcode("{" TYPE("bloom") "'hidden_size': 48, 'n_layer': 2, 'n_head': 6}", 1), ERR_UNSUPPORTED, "embed_norm");
    assert_refused(as_bigcode("{" TYPE("llama") NEOX "}", 1), ERR_UNSUPPORTED, "gated");
}

/* A real GPT-2 file with bare names and mask buffers: all but those copied, also to .h5 and back. */
static void test_real_gpt2(void **state)
{
    (void)state;
    char *dir = data_path("models/gpt-nano-sort-hf"), *to = temp_path("nano"), *h5 = temp_path("nano.h5");
    if (dir) {
        assert_ok(hf_copy(dir, to, DT_NONE, 0, 1));
        hf_same_file(dir, to, "config.json");
        tensors_same(dir, to);
        assert_ok(hf_copy(dir, h5, DT_NONE, 0, 1));
        assert_ok(hf_copy(h5, to, DT_NONE, 0, 1));
        tensors_same(dir, to);
    }
    free(dir);
    free(to);
    free(h5);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layouts), cmocka_unit_test(test_rotary_layout), cmocka_unit_test(test_bare_names_stay_bare),
        cmocka_unit_test(test_shards_and_types), cmocka_unit_test(test_several_readers), cmocka_unit_test(test_groups), cmocka_unit_test(test_bigcode_holds_others),
        cmocka_unit_test(test_real_gpt2),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
