/* R4 and R5 of checkpoints (tokens and tokenizers: test_input_damage_data.c): every file that comes from outside, cut at every byte and with every bit of its header flipped, opened as the programs
 * open it. It is refused with one sentence within a second, or what is read is what was written; where a format has no check
 * of its own (a digit of config.json), the number of those that read as another file is printed. */
#include <unistd.h>

#include "checkpoints/checkpoint.h"
#include "checkpoints/provenance.h"
#include "checkpoints/step.h"
#include "damage.h"

/* ---- checkpoints -------------------------------------------------------------------------------------------------- */

static void tiny_arch(struct arch *a)
{
    assert_ok(arch_init(a, 1));
    memcpy(a->family, "llama", sizeof "llama");
    a->C = 4, a->V = a->original_vocab = 5, a->max_positions = 8;
    a->norm = NORM_RMS, a->norm_eps = 1e-5;
    a->pos = POS_ROPE, a->rope.dims = 2, a->rope.theta = 10000;
    a->mlp = MLP_SWIGLU, a->attn_scale = 0.7071067811865475, a->tied = 1;
    struct arch_block *b = a->stack[STACK_DEC].block;
    b->H = 2, b->G = 2, b->D = b->Dv = 2, b->F = 3;
}

static void model_write(const char *name, int64_t shard_bytes, int64_t V)
{
    struct arch a;
    struct ckpt_writer *w;
    char *path = temp_path(name);
    tiny_arch(&a);
    a.V = a.original_vocab = V;
    struct ckpt_target target = {.path = path, .arch = &a, .dtype = DT_F32, .force = 1, .shard_bytes = shard_bytes};
    assert_ok(ckpt_create(&w, &target));
    for (int i = 0; i < ckpt_writer_count(w); i++) {
        const struct ckpt_tensor *t = ckpt_writer_at(w, i);
        float *x = malloc((size_t)(t->n[0] * t->n[1]) * sizeof *x);
        fill_random(x, t->n[0] * t->n[1], (uint64_t)i);
        assert_ok(ckpt_write(w, t, 0, t->n[0], x, DT_F32));
        free(x);
    }
    assert_ok(ckpt_commit(w));
    arch_free(&a);
    free(path);
}

static void tiny_write(const char *name, int64_t shard_bytes) { model_write(name, shard_bytes, 5); }

static enum code checkpoint_sum(const char *path, uint64_t *sum)
{
    struct checkpoint *ck;
    TRY(ckpt_open(&ck, path, NULL));
    enum code c = OK;
    json_t *j = arch_to_json(ckpt_arch(ck));
    json_object_del(j, "source_config");
    char *text = json_dumps(j, JSON_COMPACT);
    *sum = damage_add(0, text, strlen(text));
    free(text);
    json_decref(j);
    for (int i = 0; c == OK && i < ckpt_count(ck); i++) {
        const struct ckpt_tensor *t = ckpt_find(ck, ckpt_at(ck, i)->name);
        char block[256];
        assert_true(t->bytes <= (int64_t)sizeof block);
        c = ckpt_read(ck, t, 0, t->n[0], block, DT_NONE);
        if (c == OK)
            *sum = damage_add(damage_add(*sum, t->name, strlen(t->name)), block, (size_t)t->bytes);
    }
    ckpt_close(ck);
    return c;
}

static enum code read_folder(const char *name, uint64_t *sum)
{
    char *dir = damage_folder(name);
    enum code c = checkpoint_sum(dir, sum);
    free(dir);
    return c;
}

static enum code read_file(const char *name, uint64_t *sum)
{
    char *path = temp_path(name);
    enum code c = checkpoint_sum(path, sum);
    free(path);
    return c;
}

static enum code read_verified(const char *name, uint64_t *sum)
{
    int files = 0;
    char *dir = damage_folder(name);
    enum code c = ckpt_verify(dir, &files);
    *sum = (uint64_t)files;
    free(dir);
    return c;
}

/* All bits of the safetensors header, then the rest of the format: 8 bytes of length before it. */
static int64_t header_bits(const char *name)
{
    char *path = temp_path(name), *bytes;
    size_t n;
    assert_ok(io_read_all(path, 1 << 20, &bytes, &n));
    int64_t length = 0;
    memcpy(&length, bytes, 8);
    free(bytes);
    free(path);
    return 8 * (8 + length);
}

static void test_hugging_face(void **state)
{
    (void)state;
    tiny_write("one", 0);
    tiny_write("many", 200);
    static const struct damage_subject one = {"model.safetensors", "one/model.safetensors", read_folder, DAMAGE_SEEN, DAMAGE_SEEN};
    static const struct damage_subject rest[] = {
        {"config.json", "one/config.json", read_folder, DAMAGE_SEEN, DAMAGE_PARTIAL},
        {"index.json", "many/model.safetensors.index.json", read_folder, DAMAGE_SEEN, DAMAGE_SEEN},
    };
    struct damage_count c = damage_cut(&one, 1);
    damage_print("cut", &one, &c);
    assert_int_equal(c.refused, c.cases);
    c = damage_flip(&one, 0, header_bits("one/model.safetensors"), 1);
    damage_print("bit", &one, &c);
    for (size_t i = 0; i < COUNT_OF(rest); i++) {
        c = damage_cut(&rest[i], 1);
        damage_print("cut", &rest[i], &c);
        c = damage_flip(&rest[i], 0, -1, 1);
        damage_print("bit", &rest[i], &c);
    }
    char *shard = temp_path("many/model-00001-of-00002.safetensors");
    if (!io_exists(shard)) { /* whatever the writer made of 200 bytes a shard */
        char **names, *dir = temp_path("many");
        int n;
        assert_ok(io_list(dir, &names, &n));
        free(shard);
        shard = NULL;
        for (int i = 0; i < n && !shard; i++)
            if (strstr(names[i], ".safetensors") && !strstr(names[i], ".json"))
                assert_true(asprintf(&shard, "many/%s", names[i]) > 0);
        io_names_free(names, n);
        free(dir);
    }
    struct damage_subject part = {"a shard", shard, read_folder, DAMAGE_SEEN, DAMAGE_SEEN};
    c = damage_cut(&part, 1);
    damage_print("cut", &part, &c);
    assert_int_equal(c.refused, c.cases);
    c = damage_flip(&part, 0, header_bits(shard), 1);
    damage_print("bit", &part, &c);
    free(shard);
}

/* The values themselves: safetensors has no check of its own, PROVENANCE.json's hash has. */
static void test_payload(void **state)
{
    (void)state;
    static const struct damage_subject plain = {"values, opened", "one/model.safetensors", read_folder, DAMAGE_SEEN, DAMAGE_PARTIAL};
    static const struct damage_subject verified = {"values, --verify", "one/model.safetensors", read_verified, DAMAGE_SEEN, DAMAGE_SEEN};
    static const struct damage_subject config = {"config.json, --verify", "one/config.json", read_verified, DAMAGE_SEEN, DAMAGE_SEEN};
    static const struct damage_subject record = {"PROVENANCE.json", "one/PROVENANCE.json", read_verified, DAMAGE_SEEN, DAMAGE_SEEN};
    tiny_write("one", 0);
    char *dir = temp_path("one"), *path = temp_path("one/model.safetensors");
    assert_ok(provenance_write(dir, NULL));
    int64_t from = header_bits("one/model.safetensors") / 8, to = io_file_bytes(path);
    struct damage_count c = damage_flip_random(&plain, from, to, 3000, 1);
    damage_print("3000 bits", &plain, &c);
    assert_int_equal(c.other, 3000); /* nothing can be seen without a hash: the README says so */
    c = damage_flip_random(&verified, from, to, 3000, 2);
    damage_print("3000 bits", &verified, &c);
    assert_int_equal(c.refused, 3000);
    c = damage_flip(&config, 0, -1, 1);
    damage_print("bit", &config, &c);
    assert_int_equal(c.refused, c.cases);
    c = damage_cut(&record, 1);
    damage_print("cut", &record, &c);
    c = damage_flip(&record, 0, -1, 1);
    damage_print("bit", &record, &c);
    free(dir);
    free(path);
}

static enum code read_verified_file(const char *name, uint64_t *sum)
{
    int files = 0;
    char *path = temp_path(name);
    enum code c = ckpt_verify(path, &files);
    *sum = (uint64_t)files;
    free(path);
    return c;
}

/* 300 bits of a payload of 2 MB, or 3000 of 100 MB with GQAKIT_SOAK=1. */
static void test_large_payload(void **state)
{
    (void)state;
    static const struct damage_subject subjects[] = {{"safetensors, --verify", "big/model.safetensors", read_verified, DAMAGE_SEEN, DAMAGE_SEEN},
                                                     {"native .h5, --verify", "big.h5", read_verified_file, DAMAGE_SEEN, DAMAGE_SEEN}};
    int64_t V = damage_soak() ? 6400000 : 128000;
    model_write("big", 0, V);
    model_write("big.h5", 0, V);
    char *dir = temp_path("big");
    assert_ok(provenance_write(dir, NULL));
    for (size_t i = 0; i < COUNT_OF(subjects); i++) {
        char *path = temp_path(subjects[i].file);
        struct damage_count c = damage_flip_random(&subjects[i], 0, io_file_bytes(path), damage_soak() ? 3000 : 300, 10 + i);
        printf("%lld MB: ", (long long)(io_file_bytes(path) / 1000000));
        damage_print("bit", &subjects[i], &c);
        assert_int_equal(c.refused, c.cases);
        unlink(path);
        free(path);
    }
    free(dir);
}

static void test_llama2c(void **state)
{
    (void)state;
    static const int32_t head[7] = {4, 3, 1, 2, 2, 5, 8};
    static const struct damage_subject subjects[] = {{"llama2.c version 0", "v0.bin", read_file, DAMAGE_SEEN, DAMAGE_SEEN},
                                                     {"llama2.c version 1", "v1.bin", read_file, DAMAGE_SEEN, DAMAGE_PARTIAL} /* its seq_len is bound to nothing */};
    int64_t floats = 5 * 4 + 2 * 4 + 4 * 16 + 3 * 12 + 4;
    unsigned char *file = calloc(1, (size_t)(256 + 4 * floats));
    for (int64_t i = 0; i < 4 * floats; i++)
        file[256 + i] = (unsigned char)i;
    memcpy(file, "24ka\1\0\0\0", 8);
    memcpy(file + 8, head, sizeof head);
    file[36] = 1;
    damage_put("v1.bin", file, (size_t)(256 + 4 * floats));
    memcpy(file + 228 - 4 * 16, head, sizeof head); /* version 0 has the two tables more; their values do not matter */
    unsigned char *old = calloc(1, (size_t)(28 + 4 * (floats + 16)));
    memcpy(old, head, sizeof head);
    damage_put("v0.bin", old, (size_t)(28 + 4 * (floats + 16)));
    free(old);
    free(file);
    for (size_t i = 0; i < COUNT_OF(subjects); i++) {
        struct damage_count c = damage_cut(&subjects[i], 1);
        damage_print("cut", &subjects[i], &c);
        assert_int_equal(c.refused, c.cases);
        c = damage_flip(&subjects[i], 0, i ? 8 * 37 : 8 * 28, 1); /* the zeros behind the header of version 1 mean nothing */
        damage_print("bit", &subjects[i], &c);
    }
}

static void test_native(void **state)
{
    (void)state;
    static const struct damage_subject sealed = {"native .h5", "s.h5", read_file, DAMAGE_SEEN, DAMAGE_SEEN};
    static const struct damage_subject bare = {".h5 without a seal", "bare.h5", read_file, DAMAGE_SEEN, DAMAGE_PARTIAL};
    int soak = damage_soak();
    tiny_write("s.h5", 0);
    char *path = temp_path("s.h5"), *bytes;
    size_t n;
    assert_ok(io_read_all(path, 1 << 20, &bytes, &n));
    damage_put("bare.h5", bytes + 512, n - 512);
    struct damage_count c = damage_cut(&sealed, soak ? 1 : 37);
    damage_print("cut", &sealed, &c);
    assert_int_equal(c.refused, c.cases);
    c = damage_flip(&sealed, 0, 8 * 512, 1);
    damage_print("bit (seal)", &sealed, &c);
    assert_int_equal(c.refused, c.cases);
    c = damage_flip_random(&sealed, 512, (int64_t)n, soak ? 300000 : 3000, 3);
    damage_print("bit", &sealed, &c);
    assert_int_equal(c.refused, c.cases);
    c = damage_cut(&bare, soak ? 6 : 997);
    damage_print("cut", &bare, &c);
    assert_int_equal(c.refused, c.cases);
    free(bytes);
    free(path);
}

static void test_step(void **state)
{
    (void)state;
    static const struct damage_subject manifest = {"MANIFEST.json", "run/step-00000007/MANIFEST.json", read_folder, DAMAGE_SEEN, DAMAGE_SEEN};
    static const struct damage_subject shard = {"rank-00000.h5", "run/step-00000007/rank-00000.h5", read_folder, DAMAGE_SEEN, DAMAGE_SEEN};
    struct arch a;
    tiny_arch(&a);
    char *run = temp_path("run"), *one = temp_path("one");
    struct checkpoint *ck;
    tiny_write("one", 0);
    assert_ok(ckpt_open(&ck, one, NULL));
    struct step_array arrays[32] = {0};
    struct step_content content = {.step = 7, .arch = &a, .source = ck, .arrays = arrays, .n_arrays = ckpt_count(ck)};
    for (int i = 0; i < content.n_arrays; i++) {
        const struct ckpt_tensor *t = ckpt_at(ck, i);
        struct step_array *x = &arrays[i];
        snprintf(x->name, sizeof x->name, "param/%s", t->name);
        x->dtype = DT_F32, x->nd = t->nd, x->n[0] = t->n[0], x->n[1] = t->n[1];
        x->p = calloc(64, 4);
        assert_ok(ckpt_read(ck, t, 0, t->n[0], x->p, DT_F32));
    }
    assert_ok(io_mkdirs(run));
    assert_ok(step_save(run, &content, 0));
    for (int i = 0; i < content.n_arrays; i++)
        free(arrays[i].p);
    ckpt_close(ck);
    struct damage_count c = damage_cut(&manifest, 1);
    damage_print("cut", &manifest, &c);
    assert_int_equal(c.refused, c.cases);
    c = damage_flip(&manifest, 0, -1, damage_soak() ? 1 : 3);
    damage_print("bit", &manifest, &c);
    assert_int_equal(c.refused, c.cases);
    c = damage_cut(&shard, damage_soak() ? 1 : 37);
    damage_print("cut", &shard, &c);
    assert_int_equal(c.refused, c.cases);
    char *path = temp_path(shard.file);
    c = damage_flip_random(&shard, 0, io_file_bytes(path), damage_soak() ? 100000 : 3000, 4);
    damage_print("bit", &shard, &c);
    assert_int_equal(c.refused, c.cases);
    arch_free(&a);
    free(path);
    free(run);
    free(one);
}

/* Parsers without files of their own: the family configs of the fuzz corpus. */
static enum code read_config(const char *name, uint64_t *sum)
{
    struct arch a;
    char *path = temp_path(name), *bytes;
    size_t n;
    assert_ok(io_read_all(path, 1 << 20, &bytes, &n));
    enum code c = arch_from_config_json(&a, bytes, n, name);
    if (c == OK) {
        json_t *j = arch_to_json(&a);
        json_object_del(j, "source_config");
        char *text = json_dumps(j, JSON_COMPACT);
        *sum = damage_add(0, text, strlen(text));
        free(text);
        json_decref(j);
        arch_free(&a);
    }
    free(bytes);
    free(path);
    return c;
}

static void test_configs(void **state)
{
    (void)state;
    static const char corpus[] = "tests/fuzz/corpus/hf_config";
    char **names;
    int n, families = 0;
    int64_t cuts = 0, flips = 0, other = 0;
    assert_ok(io_list(corpus, &names, &n));
    for (int i = 0; i < n; i++) {
        if (strspn(names[i], "0123456789abcdef") == 40) /* a fuzzer's find; families have names */
            continue;
        families++;
        char *path = io_join(corpus, names[i]), *bytes;
        size_t size;
        struct arch a;
        assert_ok(io_read_all(path, 1 << 20, &bytes, &size));
        if (arch_from_config_json(&a, bytes, size, path) == OK) { /* the corpus holds refused ones too */
            arch_free(&a);
            damage_put(names[i], bytes, size);
            struct damage_subject s = {names[i], names[i], read_config, DAMAGE_SEEN, DAMAGE_PARTIAL};
            struct damage_count c = damage_cut(&s, 1);
            cuts += c.cases;
            c = damage_flip(&s, 0, -1, damage_soak() ? 1 : 5);
            flips += c.cases;
            other += c.other;
        }
        free(bytes);
        free(path);
    }
    printf("config.json of %d families: %lld cuts, all refused or the same; %lld bits, %lld read as another valid config\n", families, (long long)cuts, (long long)flips,
           (long long)other);
    assert_true(cuts > 8000);
    io_names_free(names, n);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hugging_face), cmocka_unit_test(test_payload), cmocka_unit_test(test_large_payload), cmocka_unit_test(test_llama2c), cmocka_unit_test(test_native),
        cmocka_unit_test(test_step),         cmocka_unit_test(test_configs),
    };
    log_quiet(1);
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
