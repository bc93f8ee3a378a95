/* Hugging Face directories: written, read, copied, refused. */
#include "harness.h"
#include "hf_case.h"

#include <fcntl.h>
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checkpoints/checkpoint.h"
#include "checkpoints/safetensors.h"

static void test_written_and_read(void **state)
{
    (void)state;
    for (int tied = 0; tied < 2; tied++) {
        char *dir = hf_make("plain", tied, DT_NONE, 0);
        struct checkpoint *ck;
        char slashed[4096];
        snprintf(slashed, sizeof slashed, "%s//", dir);
        assert_ok(ckpt_open(&ck, slashed, NULL));
        assert_string_equal(ckpt_path(ck), dir);
        assert_string_equal(ckpt_form_name(ck), "Hugging Face directory");
        assert_int_equal(ckpt_count(ck), 1 + 3 * 9 + 1 + !tied);
        assert_int_equal(ckpt_arch(ck)->stack[STACK_DEC].block[2].G, 3);
        assert_null(ckpt_find(ck, "nothing"));
        assert_int_equal(ckpt_find(ck, "head.w") != NULL, !tied);
        const char *last = "";
        for (int i = 0; i < ckpt_count(ck); i++) {
            const struct ckpt_tensor *t = ckpt_at(ck, i);
            assert_true(strcmp(t->source, last) > 0); /* the rule of a new file: sorted by name */
            last = t->source;
            int64_t n = t->n[0] * t->n[1];
            float *x = malloc((size_t)n * 4), *want = malloc((size_t)n * 4);
            fill_nan(x, n);
            random_normal_f32(want, n, 0, 1, 7, random_stream_of(t->name), 0);
            assert_ok(ckpt_read(ck, t, 0, t->n[0], x, DT_F32));
            assert_memory_equal(x, want, (size_t)n * 4);
            assert_int_equal(t->bytes, n * 4);
            double *wide = malloc((size_t)n * 8);
            assert_ok(ckpt_read(ck, t, 1, t->n[0] - 1, wide, DT_F64));
            for (int64_t k = 0; k < n - t->n[1]; k++)
                assert_true(!(wide[k] < (double)want[k + t->n[1]]) && !(wide[k] > (double)want[k + t->n[1]]));
            free(wide);
            free(want);
            free(x);
        }
        const struct ckpt_companion *companions;
        assert_int_equal(ckpt_companions(ck, &companions), 3);
        assert_string_equal(companions[1].name, "chat_template.jinja");
        assert_memory_equal(companions[1].bytes, "x\0y", 3);
        assert_int_equal(companions[1].n, 3);
        const char *const *files;
        assert_int_equal(ckpt_files(ck, &files), 5);
        assert_string_equal(files[0], "config.json");
        assert_string_equal(files[1], "model.safetensors");
        ckpt_close(ck);
        free(dir);
    }
    assert_true(hf_no_temporaries());
}

static void test_copies_are_byte_identical(void **state)
{
    (void)state;
    char *dir = hf_make("plain", 0, DT_NONE, 0), *to = temp_path("copy"), *back = temp_path("back");
    assert_ok(hf_copy(dir, to, DT_NONE, 0, 1));
    hf_same_dir(dir, to);
    assert_ok(hf_copy(dir, to, DT_NONE, 4000, 1)); /* into shards, and back into one file */
    assert_false(io_exists(back));
    char *index = io_join(to, "model.safetensors.index.json"), *single = io_join(to, "model.safetensors");
    assert_true(io_exists(index) && !io_exists(single));
    assert_ok(hf_copy(to, back, DT_NONE, (int64_t)1 << 40, 1));
    hf_same_dir(dir, back);
    assert_ok(hf_copy(to, back, DT_NONE, 0, 1)); /* shards are kept */
    hf_same_dir(to, back);
    assert_ok(hf_copy(dir, back, DT_BF16, 0, 1));
    struct checkpoint *a, *b;
    assert_ok(ckpt_open(&a, dir, NULL));
    assert_ok(ckpt_open(&b, back, NULL));
    assert_int_equal(ckpt_arch(b)->dtype, DT_BF16);
    for (int i = 0; i < ckpt_count(a); i++) {
        const struct ckpt_tensor *x = ckpt_at(a, i), *y = ckpt_at(b, i);
        assert_string_equal(x->name, y->name);
        assert_int_equal(y->dtype, DT_BF16);
        size_t n = (size_t)(x->n[0] * x->n[1]);
        uint16_t *p = malloc(n * 2), *q = malloc(n * 2);
        assert_ok(ckpt_read(a, x, 0, x->n[0], p, DT_BF16));
        assert_ok(ckpt_read(b, y, 0, y->n[0], q, DT_NONE));
        assert_memory_equal(p, q, n * 2);
        free(p);
        free(q);
    }
    ckpt_close(a);
    ckpt_close(b);
    free(index);
    free(single);
    free(dir);
    free(to);
    free(back);
    assert_true(hf_no_temporaries());
}

static void test_real_model_copied(void **state)
{
    (void)state;
    static const char *const models[] = {"models/babyllama-tok105-hf", "models/stories260K-mha-hf"};
    char *to = temp_path("real");
    for (size_t i = 0; i < COUNT_OF(models); i++) {
        char *dir = data_path(models[i]);
        if (!dir)
            continue;
        assert_ok(hf_copy(dir, to, DT_NONE, 0, 1));
        hf_same_file(dir, to, "config.json");
        hf_same_file(dir, to, "tokenizer.json");
        struct checkpoint *a, *b;
        assert_ok(ckpt_open(&a, dir, NULL));
        assert_ok(ckpt_open(&b, to, NULL));
        for (int t = 0; t < ckpt_count(a); t++) {
            size_t n = (size_t)ckpt_at(a, t)->bytes;
            char *x = malloc(n), *y = malloc(n);
            assert_string_equal(ckpt_at(a, t)->source, ckpt_at(b, t)->source);
            assert_ok(ckpt_read(a, ckpt_at(a, t), 0, ckpt_at(a, t)->n[0], x, DT_NONE));
            assert_ok(ckpt_read(b, ckpt_at(b, t), 0, ckpt_at(b, t)->n[0], y, DT_NONE));
            assert_memory_equal(x, y, n);
            free(x);
            free(y);
        }
        ckpt_close(a);
        ckpt_close(b);
        free(dir);
    }
    free(to);
}

static void test_fewer_groups_and_tying(void **state)
{
    (void)state;
    char *dir = hf_make("plain", 0, DT_NONE, 2000), *to = temp_path("fewer");
    struct checkpoint *ck;
    struct arch a;
    struct ckpt_writer *w;
    assert_ok(ckpt_open(&ck, dir, NULL));
    assert_ok(arch_copy(&a, ckpt_arch(ck)));
    for (int l = 0; l < 3; l++)
        a.stack[STACK_DEC].block[l].G = 1;
    struct ckpt_target target = {.path = to, .arch = &a, .source = ck, .force = 1};
    assert_ok(ckpt_create(&w, &target));
    for (int i = 0; i < ckpt_count(ck); i++) {
        assert_string_equal(ckpt_writer_at(w, i)->name, ckpt_at(ck, i)->name);
        assert_string_equal(ckpt_writer_at(w, i)->file, ckpt_at(ck, i)->file);
    }
    hf_fill(w);
    assert_ok(ckpt_commit(w));
    struct checkpoint *b;
    assert_ok(ckpt_open(&b, to, NULL));
    assert_int_equal(ckpt_arch(b)->stack[STACK_DEC].block[1].G, 1);
    assert_int_equal(ckpt_find(b, "dec.1.attn.k.w")->n[0], 10);
    ckpt_close(b);
    a.tied = 1;
    assert_ok(ckpt_create(&w, &target));
    hf_fill(w);
    assert_ok(ckpt_commit(w));
    assert_ok(ckpt_open(&b, to, NULL));
    assert_int_equal(ckpt_arch(b)->tied, 1);
    target.source = b; /* and untied again: the source has no head */
    char *untied = temp_path("untied");
    target.path = untied;
    a.tied = 0;
    assert_ok(ckpt_create(&w, &target));
    hf_fill(w);
    assert_ok(ckpt_commit(w));
    assert_ok(hf_opened(untied));
    ckpt_close(b);
    target.source = ck;
    a.stack[STACK_DEC].block[1].G = 3;
    assert_refused(ckpt_create(&w, &target), ERR_UNSUPPORTED, "layer 0 has 1 and layer 1 has 3");
    ckpt_close(ck);
    arch_free(&a);
    free(untied);
    free(dir);
    free(to);
}

static void test_missing_and_left_over(void **state)
{
    (void)state;
    char *dir = hf_make("plain", 0, DT_NONE, 0);
    size_t n, m;
    char *config = hf_slurp(dir, "config.json", &n), *weights = hf_slurp(dir, "model.safetensors", &m);
    struct { const char *from, *to; enum code code; const char *part; } cases[] = {
        {"model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.xp_proj.weight", ERR_INPUT, "\"model.layers.1.mlp.up_proj.weight\" is missing"},
        {"lm_head.weight", "lm_tail.weight", ERR_INPUT, "does not tie it"},
        {"\"shape\":[60,24]", "\"shape\":[24,60]", ERR_INPUT, "expected shape [60, 24] from config.json, found [24, 60]"},
        {"\"shape\":[60,24]", "\"shape\":[1440]", ERR_INPUT, "found [1440]"},
        {"\"F32\",\"shape\":[60,24]", "\"I32\",\"shape\":[60,24]", ERR_UNSUPPORTED, "is stored as I32"},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        char *edit = malloc(m);
        memcpy(edit, weights, m);
        char *at = memmem(edit, m, cases[i].from, strlen(cases[i].from));
        assert_non_null(at);
        size_t k = strlen(cases[i].from), l = strlen(cases[i].to);
        memset(at, ' ', k);
        memcpy(at, cases[i].to, l);
        hf_put(dir, "model.safetensors", edit, m);
        assert_refused(hf_opened(dir), cases[i].code, cases[i].part);
        free(edit);
    }
    hf_put(dir, "model.safetensors", weights, m);
    assert_ok(hf_opened(dir));
    /* a config with fewer layers leaves tensors over */
    char *at = strstr(config, "\"num_hidden_layers\": 3");
    at[strlen("\"num_hidden_layers\": ")] = '2';
    hf_put(dir, "config.json", config, n);
    assert_refused(hf_opened(dir), ERR_INPUT, "\"model.layers.2.input_layernorm.weight\" belongs to no part");
    at[strlen("\"num_hidden_layers\": ")] = '3';
    /* tied although lm_head is there: transformers uses the embedding, so do we */
    char *tie = strstr(config, "\"tie_word_embeddings\": false");
    memcpy(tie, "\"tie_word_embeddings\": true ", strlen("\"tie_word_embeddings\": false"));
    hf_put(dir, "config.json", config, n);
    log_quiet(1);
    struct checkpoint *ck;
    assert_ok(ckpt_open(&ck, dir, NULL));
    assert_null(ckpt_find(ck, "head.w"));
    ckpt_close(ck);
    log_quiet(0);
    hf_put(dir, "config.json", config, 20);
    assert_refused(hf_opened(dir), ERR_INPUT, "config.json: not valid JSON");
    /* no weights */
    char *path = io_join(dir, "model.safetensors");
    unlink(path);
    memcpy(tie, "\"tie_word_embeddings\": false", strlen("\"tie_word_embeddings\": false"));
    hf_put(dir, "config.json", config, n);
    assert_refused(hf_opened(dir), ERR_INPUT, "neither model.safetensors nor");
    hf_put(dir, "pytorch_model.bin", "x", 1);
    assert_refused(hf_opened(dir), ERR_UNSUPPORTED, "pytorch_model.bin");
    free(path);
    path = io_join(dir, "config.json");
    unlink(path);
    assert_refused(hf_opened(dir), ERR_INPUT, "holds no model");
    assert_refused(hf_opened("/nowhere/at/all"), ERR_IO, "/nowhere/at/all");
    temp_write("note.txt", "x", 1);
    free(path);
    path = temp_path("note.txt");
    assert_refused(hf_opened(path), ERR_INPUT, "not a model file");
    free(path);
    free(config);
    free(weights);
    assert_ok(io_remove_tree(dir));
    free(dir);
}

static void test_index_disagreements(void **state)
{
    (void)state;
    char *dir = hf_make("sharded", 0, DT_NONE, 4000);
    assert_ok(hf_opened(dir));
    size_t n;
    char *index = hf_slurp(dir, "model.safetensors.index.json", &n);
    json_t *root;
    assert_ok(json_parse_object(index, n, "index", &root));
    json_t *map = json_object_get(root, "weight_map");
    const char *other = json_string_value(json_object_get(map, "model.norm.weight"));
    assert_non_null(other);
    struct { const char *tensor, *file; enum code code; const char *part; } cases[] = {
        {"model.layers.2.input_layernorm.weight", NULL, ERR_INPUT, "does not list tensor \"model.layers.2.input_layernorm.weight\""},
        {"lm_head.weight", "model.norm's", ERR_INPUT, "says tensor \"lm_head.weight\" is in"},
        {"extra.weight", "model.norm's", ERR_INPUT, "which does not hold it"},
        {"lm_head.weight", "absent.safetensors", ERR_INPUT, "absent.safetensors"},
        {"lm_head.weight", "../plain/model.safetensors", ERR_INPUT, "leaves the directory"},
        {"lm_head.weight", "/etc/passwd", ERR_INPUT, "leaves the directory"},
        {"lm_head.weight", "config.json", ERR_INPUT, "config.json: "},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        json_t *edit = json_deep_copy(root);
        map = json_object_get(edit, "weight_map");
        if (cases[i].file)
            json_object_set_new(map, cases[i].tensor, json_string(strcmp(cases[i].file, "model.norm's") ? cases[i].file : other));
        else
            json_object_del(map, cases[i].tensor);
        char *text = json_dumps(edit, 0);
        hf_put(dir, "model.safetensors.index.json", text, strlen(text));
        assert_refused(hf_opened(dir), cases[i].code, cases[i].part);
        free(text);
        json_decref(edit);
    }
    hf_put(dir, "model.safetensors.index.json", index, n);
    assert_ok(hf_opened(dir));
    json_decref(root);
    free(index);
    free(dir);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_written_and_read),
        cmocka_unit_test(test_copies_are_byte_identical),
        cmocka_unit_test(test_real_model_copied),
        cmocka_unit_test(test_fewer_groups_and_tying),
        cmocka_unit_test(test_missing_and_left_over),
        cmocka_unit_test(test_index_disagreements),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
