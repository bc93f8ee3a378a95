/* A directory of our own modeling file (family gqakit) whose config.json says another model than its tensors are; and what the family cannot hold. */
#include "checkpoints/checkpoint.h"
#include "harness.h"
#include "input_files.h"

static void test_own_family(void **state)
{
    (void)state;
    struct arch a;
    struct ckpt_writer *w;
    json_t *config, *arch;
    char *dir = temp_path("own"), *path = temp_path("own/config.json");
    static const float zeros[64];
    struct { const char *key; json_t *value; enum code code; const char *part; } cases[] = {
        {"tied", json_integer(1), ERR_INPUT, "model.safetensors: tensor \"head.w\" belongs to no part of the model that config.json describes"},
        {"V", json_integer(6), ERR_INPUT, "expected shape [6, 4] from config.json, found [5, 4]"},
        {NULL, json_string("llama"), ERR_INPUT, "config.json: \"arch\" is missing or no object"},
    };
    assert_ok(arch_from_config_json(&a, INPUT_CONFIG, sizeof INPUT_CONFIG - 1, "config"));
    memcpy(a.family, "gqakit", sizeof "gqakit");
    free(a.source_config);
    a.source_config = NULL;
    a.tied = 0;
    struct ckpt_target target = {.path = dir, .arch = &a, .dtype = DT_F32};
    assert_ok(ckpt_create(&w, &target));
    for (int i = 0; i < ckpt_writer_count(w); i++)
        assert_ok(ckpt_write(w, ckpt_writer_at(w, i), 0, ckpt_writer_at(w, i)->n[0], zeros, DT_F32));
    assert_ok(ckpt_commit(w));
    assert_ok(input_open("own"));
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        assert_ok(json_read_file(path, 1 << 20, &config));
        arch = json_deep_copy(json_object_get(config, "arch"));
        json_t *good = json_deep_copy(config);
        if (cases[i].key)
            json_object_set(arch, cases[i].key, cases[i].value);
        json_object_set(config, "arch", cases[i].key ? arch : cases[i].value);
        json_object_set(config, "vocab_size", json_object_get(arch, "V"));
        json_object_set_new(config, "tie_word_embeddings", json_boolean(json_integer_value(json_object_get(arch, "tied"))));
        assert_ok(json_write_file(path, config));
        assert_refused(input_open("own"), cases[i].code, cases[i].part);
        assert_ok(json_write_file(path, good));
        json_decref(good), json_decref(arch), json_decref(config), json_decref(cases[i].value);
    }
    assert_ok(input_open("own"));
    a.stack[STACK_DEC].block[0].global_tokens = 1;
    char *other = temp_path("sparse");
    target.path = other;
    assert_refused(ckpt_create(&w, &target), ERR_UNSUPPORTED, "no sparse and no cross attention (layer 0)");
    assert_false(io_exists(other));
    arch_free(&a);
    free(dir), free(path), free(other);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_own_family)};
    log_quiet(1);
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
