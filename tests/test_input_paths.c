/* R27 to R29 with the programs: paths that lead out of a model, paths with spaces and other people's letters, targets that are the source in
 * disguise, and one changed byte anywhere in the input, which the result's provenance shows. */
#include <sys/stat.h>
#include <unistd.h>

#include "damage.h"
#include "hf_case.h"
#include "programs.h"
#include "runs.h"
#include "small_checkpoint.h"

static char *model(const char *name)
{
    struct arch a;
    char *path = temp_path(name);
    small_arch(&a, 6, 6, DT_F32);
    small_write(path, &a, 1, 1, NULL);
    arch_free(&a);
    return path;
}

/* ---- R28 ------------------------------------------------------------------------------------------------------------ */

static void refused_index(const char *dir, const char *name, const char *part)
{
    char text[400];
    snprintf(text, sizeof text, "{\"weight_map\": {\"model.norm.weight\": \"%s\"}}", name);
    hf_put(dir, "model.safetensors.index.json", text, strlen(text));
    program_refused(CONVERT("--inspect", dir), 3, part);
}

static void test_escapes(void **state)
{
    (void)state;
    char *dir = hf_make("escape", 1, DT_F32, 3000), *single = temp_path("escape/model.safetensors"), *index = temp_path("escape/model.safetensors.index.json");
    static const char *const names[] = {"../other/model.safetensors", "/etc/hostname", "a/../../b", "..", "./..", "a/..", ""};
    char *text;
    size_t n;
    assert_false(io_exists(single));
    assert_ok(io_read_all(index, 1 << 20, &text, &n));
    for (size_t i = 0; i < COUNT_OF(names); i++)
        refused_index(dir, names[i], "leaves the directory");
    refused_index(dir, "a\\u0000b", "not valid JSON");
    refused_index(dir, "no-such-file", "which is missing");
    refused_index(dir, ".", "");

    /* Links: within the directory and into the hub's cache they are followed, elsewhere refused. */
    hf_put(dir, "model.safetensors.index.json", text, n);
    program_ok(CONVERT("--inspect", dir));
    const char *end = strstr(text, ".safetensors\""), *begin = end;
    assert_non_null(end);
    while (begin[-1] != '"')
        begin--;
    char shard[128];
    snprintf(shard, sizeof shard, "%.*s.safetensors", (int)(end - begin), begin);
    char *at = io_join(dir, shard), *out = temp_path("outside.safetensors"), *in = io_join(dir, "blob"), *twin = temp_path("escape2");
    assert_int_equal(rename(at, in), 0);
    assert_int_equal(symlink("blob", at), 0);
    program_ok(CONVERT("--inspect", dir));
    unlink(at);
    assert_int_equal(rename(in, out), 0);
    assert_int_equal(symlink(out, at), 0);
    program_refused(CONVERT("--inspect", dir), 3, "a link out of the directory");
    unlink(at);
    assert_int_equal(symlink("../outside.safetensors", at), 0);
    program_refused(CONVERT("--inspect", dir), 3, "a link out of the directory");
    assert_int_equal(rename(dir, twin), 0); /* a sibling whose name begins like the directory's is outside too */
    assert_ok(io_mkdirs(dir));
    char *kept = io_join(dir, "w");
    assert_int_equal(rename(out, kept), 0);
    free(at);
    at = io_join(twin, shard);
    unlink(at);
    assert_int_equal(symlink(kept, at), 0);
    program_refused(CONVERT("--inspect", twin), 3, "a link out of the directory");

    char *cache = temp_path("models--me--m/snapshots/abc"), *blobs = temp_path("models--me--m/blobs"), *blob = temp_path("models--me--m/blobs/0123");
    char *snapshots = temp_path("models--me--m/snapshots");
    assert_ok(io_mkdirs(snapshots));
    assert_ok(io_mkdirs(blobs));
    unlink(at);
    assert_int_equal(rename(kept, blob), 0);
    assert_int_equal(rename(twin, cache), 0);
    free(at);
    at = io_join(cache, shard);
    assert_int_equal(symlink("../../blobs/0123", at), 0);
    program_ok(CONVERT("--inspect", cache));
    free(text), free(dir), free(single), free(index), free(at), free(out), free(in), free(twin), free(kept), free(cache), free(blobs), free(blob), free(snapshots);
}

static void test_recorded_names(void **state)
{
    (void)state;
    static const char *const names[] = {"../x", "/etc/hostname", "a/../../x", ""};
    char *dir = temp_path("recorded");
    assert_ok(io_mkdirs(dir));
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        char text[300];
        snprintf(text, sizeof text, "{\"schema\": \"gqakit/provenance/1\", \"outputs\": [{\"path\": \"%s\", \"bytes\": 1, \"xxh128\": \"0\"}]}", names[i]);
        hf_put(dir, "PROVENANCE.json", text, strlen(text));
        program_refused(CONVERT("--verify", dir), 3, "leaves the directory");
    }
    free(dir);
}

/* Every program, with everything it reads and writes below names that a shell or a careless join would trip over. */
static void test_odd_names(void **state)
{
    (void)state;
    static const char odd[] = "a b/\xe6\xa8\xa1\xe5\x9e\x8b 'x' \"y\" $HOME `z` %s #1;&\\n";
    char *top = temp_path(odd), *text = io_join(top, "h\xc3\xa9ld out.txt"), *out = io_join(top, "out put"), *native = io_join(top, "\xc3\xa9.h5");
    char *run = io_join(top, "run"), *yaml = io_join(top, "my config.yaml"), *last = io_join(run, "final"), *gguf = io_join(top, "m m.gguf"), name[300];
    assert_ok(io_mkdirs(top));
    snprintf(name, sizeof name, "%s/so urce", odd);
    char *from = model(name);
    CONVERT_OK(from, out, "--kv-heads", "3", "--quiet");
    CONVERT_OK(from, native, "--kv-heads", "2", "--quiet");
    CONVERT_OK(from, gguf, "--kv-heads", "2", "--quiet");
    CONVERT_OK("--verify", out);
    CONVERT_OK("--verify", native);
    snprintf(name, sizeof name, "%s/h\xc3\xa9ld out.txt", odd);
    char words[700];
    for (size_t i = 0; i < sizeof words; i++)
        words[i] = (char)(i * 7 % 11 ? 1 + i * 5 % 30 : ' ');
    damage_put(name, words, sizeof words); /* ids below the model's 37 */
    program_ok(EVAL("perplexity", native, "--data", text, "--tokenizer", "bytes", "--format", "text", "--context", "20"));
    json_t *j = json_pack("{s:{s:s}, s:{s:[s], s:[s], s:s}, s:i, s:i, s:s, s:i}", "model", "path", out, "data", "train", text, "validation", text, "tokenizer", "bytes",
                          "sequence_len", 16, "max_steps", 2, "output_dir", run, "threads", 1);
    char *config = config_json_to_yaml(j);
    assert_ok(io_write_atomic(yaml, config, strlen(config)));
    program_ok(UPTRAIN(yaml, "--quiet"));
    CONVERT_OK("--verify", last);
    CONVERT_OK("--verify", run);
    program_ok(EVAL("perplexity", last, "--data", text, "--tokenizer", "bytes", "--format", "text", "--context", "20"));
    json_decref(j);
    free(config), free(top), free(text), free(out), free(native), free(run), free(yaml), free(last), free(gguf), free(from);
}

/* ---- R29 ------------------------------------------------------------------------------------------------------------ */

static uint64_t tree_sum(const char *dir)
{
    char **names;
    int n;
    uint64_t sum = 0;
    assert_ok(io_list(dir, &names, &n));
    for (int i = 0; i < n; i++) {
        char hex[65], *path = io_join(dir, names[i]);
        assert_ok(sha256_file(path, hex));
        sum = damage_add(damage_add(sum, names[i], strlen(names[i])), hex, 64);
        free(path);
    }
    io_names_free(names, n);
    return sum;
}

static void test_onto_the_source(void **state)
{
    (void)state;
    char *source = model("in/source"), *link_to = temp_path("in/link"), *round = temp_path("in/x/../source"), *dot = temp_path("in/./source/."), *inner = temp_path("in/source/sub");
    char *file = temp_path("in/source/model.safetensors"), *parent = temp_path("in"), *x = temp_path("in/x"), *slash = temp_path("in/source///"), *deep = temp_path("in/link/sub");
    assert_ok(io_mkdirs(x));
    assert_int_equal(symlink("source", link_to), 0);
    uint64_t sum = tree_sum(source);
    const char *const targets[] = {source, link_to, round, dot, inner, file, parent, slash, deep};
    for (size_t i = 0; i < COUNT_OF(targets); i++)
        for (int by_link = 0; by_link < 2; by_link++) {
            program_refused(CONVERT(by_link ? link_to : source, targets[i], "--kv-heads", "3", "--force"), 2, "");
            program_refused(CONVERT(by_link ? link_to : source, targets[i], "--kv-heads", "3", "--force", "--dry-run"), 2, "");
            assert_true(tree_sum(source) == sum);
        }
    assert_true(hf_no_temporaries());

    /* .h5: itself, a link, a hard link, and the folder it is in */
    char *h5 = temp_path("in/m.h5"), *soft = temp_path("in/soft.h5"), *hard = temp_path("in/hard.h5"), before[65], after[65];
    CONVERT_OK(source, h5, "--quiet");
    assert_int_equal(symlink("m.h5", soft), 0);
    assert_int_equal(link(h5, hard), 0);
    assert_ok(sha256_file(h5, before));
    const char *const files[] = {h5, soft, hard, parent};
    for (size_t i = 0; i < COUNT_OF(files); i++) {
        program_refused(CONVERT(h5, files[i], "--kv-heads", "3", "--force"), 2, "");
        assert_ok(sha256_file(h5, after));
        assert_string_equal(before, after);
    }

    /* A target whose files are hard links to the source's is replaced as a directory: the source keeps its bytes. */
    char *copy = temp_path("copy"), *shared = temp_path("copy/model.safetensors"), *config = temp_path("copy/config.json"), *own = temp_path("in/source/config.json");
    assert_ok(io_mkdirs(copy));
    assert_int_equal(link(file, shared), 0);
    assert_int_equal(link(own, config), 0);
    CONVERT_OK(source, copy, "--kv-heads", "3", "--force", "--quiet");
    assert_true(tree_sum(source) == sum);
    CONVERT_OK("--verify", copy);
    free(source), free(link_to), free(round), free(dot), free(inner), free(file), free(parent), free(x), free(slash), free(deep), free(h5), free(soft), free(hard);
    free(copy), free(shared), free(config), free(own);
}

/* ---- R27 ------------------------------------------------------------------------------------------------------------ */

static void flip_at(const char *path, int64_t at)
{
    FILE *f = fopen(path, "r+b");
    assert_true(f && fseek(f, at, SEEK_SET) == 0);
    int byte = fgetc(f);
    assert_int_equal(fseek(f, at, SEEK_SET), 0);
    assert_int_equal(fputc(byte ^ 1, f), byte ^ 1);
    assert_int_equal(fclose(f), 0);
}

/* The recorded sha256 of an input file. */
static void recorded(const char *dir, const char *name, char hex[65])
{
    char *path = io_join(dir, "PROVENANCE.json");
    json_t *j;
    size_t i;
    const json_t *file;
    assert_ok(json_read_file(path, 1 << 20, &j));
    hex[0] = 0;
    json_array_foreach (json_object_get(json_object_get(j, "conversion"), "files"), i, file)
        if (!strcmp(json_string_value(json_object_get(file, "path")), name))
            snprintf(hex, 65, "%s", json_string_value(json_object_get(file, "sha256")));
    assert_int_equal(strlen(hex), 64);
    json_decref(j);
    free(path);
}

static void test_provenance(void **state)
{
    (void)state;
    char *source = model("prov"), *out = temp_path("prov-out"), first[65], second[65], real[65];
    hf_put(source, "tokenizer.json", "{\"model\": {}}\n", 14);
    static const struct { const char *name; int from_end; int at; } flips[] = {{"model.safetensors", 1, 6}, {"tokenizer.json", 0, 13}};
    CONVERT_OK(source, out, "--kv-heads", "3", "--quiet");
    for (size_t i = 0; i < COUNT_OF(flips); i++) {
        char *path = io_join(source, flips[i].name);
        int64_t at = flips[i].from_end ? io_file_bytes(path) - flips[i].at : flips[i].at;
        recorded(out, flips[i].name, first);
        assert_ok(sha256_file(path, real));
        assert_string_equal(first, real);
        flip_at(path, at);
        CONVERT_OK(source, out, "--kv-heads", "3", "--force", "--quiet");
        recorded(out, flips[i].name, second);
        assert_ok(sha256_file(path, real));
        assert_string_equal(second, real);
        assert_string_not_equal(first, second);
        flip_at(path, at);
        free(path);
    }
    /* Every file of the result, one bit in its first, middle and last byte; and one file lost. */
    char **names;
    int n, seen = 0;
    assert_ok(io_list(out, &names, &n));
    for (int i = 0; i < n; i++) {
        char *path = io_join(out, names[i]), *aside = temp_path("aside");
        int64_t bytes = io_file_bytes(path);
        for (int k = 0; k < 3; k++, seen++) {
            flip_at(path, k * (bytes - 1) / 2);
            program_refused(CONVERT("--verify", out), 3, strcmp(names[i], "PROVENANCE.json") ? names[i] : "");
            flip_at(path, k * (bytes - 1) / 2);
        }
        assert_int_equal(rename(path, aside), 0);
        program_refused(CONVERT("--verify", out), 3, names[i]);
        assert_int_equal(rename(aside, path), 0);
        free(path);
        free(aside);
    }
    CONVERT_OK("--verify", out);
    printf("%d flips in %d files of a result, each seen by --verify\n", seen, n);
    io_names_free(names, n);
    free(source);
    free(out);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_escapes), cmocka_unit_test(test_recorded_names), cmocka_unit_test(test_odd_names),
        cmocka_unit_test(test_onto_the_source), cmocka_unit_test(test_provenance),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
