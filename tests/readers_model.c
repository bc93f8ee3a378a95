/* The readers of models; see readers.h: a Hugging Face directory in shards, what travels with it and vouches for it, an .h5, a run and its moments,
 * every family's config.json. */
#include <unistd.h>

#include "checkpoints/checkpoint.h"
#include "checkpoints/step.h"
#include "native_model.h"
#include "readers.h"
#include "small_checkpoint.h"

enum code reader_again(const struct reader *r, uint64_t want)
{
    uint64_t sum = 0;
    char *path = temp_path(r->file); /* NULL when memory is out already */
    if (!path)
        return fail(ERR_MEMORY, "no memory for the test's path");
    enum code c = r->read(path, &sum);
    free(path);
    return c != OK ? c : sum == want ? OK : fail(ERR_NUMERIC, "something else was read");
}

uint64_t reader_sum(const struct reader *r)
{
    uint64_t sum = 0;
    char *path = temp_path(r->file);
    assert_ok(r->read(path, &sum));
    free(path);
    return sum;
}

/* ---- models ------------------------------------------------------------------------------------------------------------ */

static enum code read_model(const char *path, uint64_t *sum)
{
    struct checkpoint *ck = NULL;
    static char block[1 << 16];
    const struct ckpt_companion *list;
    TRY(ckpt_open(&ck, path, NULL));
    enum code c = OK;
    *sum = (uint64_t)ckpt_count(ck);
    for (int i = 0; c == OK && i < ckpt_count(ck); i++) {
        const struct ckpt_tensor *t = ckpt_at(ck, i);
        CHECK(t->bytes <= (int64_t)sizeof block);
        c = ckpt_read(ck, t, 0, t->n[0], block, DT_NONE);
        *sum = damage_add(damage_add(*sum, t->name, strlen(t->name)), block, (size_t)t->bytes);
    }
    for (int i = 0, n = ckpt_companions(ck, &list); i < n; i++)
        *sum = damage_add(damage_add(*sum, list[i].name, strlen(list[i].name)), list[i].bytes, list[i].n);
    ckpt_close(ck);
    return c;
}

/* The licence of the model's card; a card that cannot be read is a warning and inherits nothing. */
static enum code read_card(const char *path, uint64_t *sum)
{
    struct checkpoint *ck = NULL;
    TRY(ckpt_open(&ck, path, NULL));
    char *lines = card_inherited(ck);
    ckpt_close(ck);
    if (!lines || !*lines) {
        free(lines);
        return strstr(fail_text(), "memory") ? ERR_MEMORY : ERR_IO; /* as the warning says */
    }
    *sum = damage_add(0, lines, strlen(lines));
    free(lines);
    return OK;
}

static enum code read_verified(const char *path, uint64_t *sum)
{
    int files = 0;
    TRY(ckpt_verify(path, &files));
    *sum = (uint64_t)files;
    return OK;
}

static void make_models(void)
{
    struct arch a;
    struct ckpt_writer *w;
    char *to = temp_path("shards"), *cache = temp_path("models/snapshots/1"), *blobs = temp_path("models/blobs"), *h5 = temp_path("m.h5");
    small_arch(&a, 6, 3, DT_F32);
    struct ckpt_target target = {.path = to, .arch = &a, .dtype = DT_F32, .shard_bytes = 20000};
    assert_ok(ckpt_create(&w, &target));
    assert_ok(ckpt_add_file(w, "tokenizer.json", "{\"a\": 1}\n", 9));
    assert_ok(ckpt_add_file(w, "LICENSE", "", 0));
    assert_ok(ckpt_add_file(w, "README.md", "---\nlicense: mit\nlanguage:\n- en\n---\n", 37));
    json_t *facts = json_pack("{s:s}", "made", "here");
    ckpt_provenance(w, facts);
    model_fill(w, 5);
    assert_ok(ckpt_commit(w));
    json_decref(facts);
    assert_ok(io_mkdirs(cache)); /* files there are links into blobs/ */
    assert_ok(io_mkdirs(blobs));
    char **names;
    int n;
    assert_ok(io_list(to, &names, &n));
    for (int i = 0; i < n; i++) {
        char *from = io_join(to, names[i]), *blob = io_join(blobs, names[i]), *link = io_join(cache, names[i]), place[300];
        snprintf(place, sizeof place, "../../blobs/%s", names[i]);
        assert_ok(io_copy_file(from, blob));
        assert_int_equal(symlink(place, link), 0);
        free(from), free(blob), free(link);
    }
    io_names_free(names, n);
    model_convert(to, h5, DT_NONE);
    arch_free(&a);
    free(to), free(cache), free(blobs), free(h5);
}

struct readers readers_models(void)
{
    static const struct reader subjects[] = {
        {"a directory of shards", "shards", read_model, 300},  {"the licence of its card", "shards", read_card, 60}, {"its PROVENANCE.json", "shards", read_verified, 1000},
        {"a directory as in a hub's cache", "models/snapshots/1", read_model, 60}, {"an .h5 with companions", "m.h5", read_model, 60},
    };
    static int made;
    if (!made++)
        make_models();
    return (struct readers){subjects, COUNT_OF(subjects)};
}

/* ---- runs -------------------------------------------------------------------------------------------------------------- */

static enum code copy(void *context, void *dst, const void *src, size_t bytes)
{
    *(int *)context += 1;
    memcpy(dst, src, bytes);
    return OK;
}

static enum code read_moments(const char *path, uint64_t *sum)
{
    struct step_reader *r;
    int64_t updates, n[2] = {101, 1};
    int found = 0, blocks = 0;
    float flat[101], rows[101];
    TRY(moments_open(&r, path, &updates, &found));
    if (!found)
        return fail(ERR_NUMERIC, "no moments");
    struct step_copy through = {copy, &blocks};
    struct step_array a = {.name = "m/flat", .dtype = DT_F32, .nd = 1, .n = {101, 1}, .p = flat, .through = &through};
    enum code c = step_read(r, &a);
    if (c == OK)
        c = step_read_rows(r, "m/flat", n, 7, 90, rows);
    if (c == OK && (blocks != 1 || memcmp(flat + 7, rows, 90 * sizeof *rows) != 0))
        c = fail(ERR_NUMERIC, "other rows");
    *sum = damage_add((uint64_t)updates, flat, sizeof flat);
    step_close(r);
    return c;
}

static void make_runs(void)
{
    struct arch a;
    char *run = temp_path("run"), *beside = temp_path("beside/" MOMENTS_DIR);
    native_arch(&a, 8, 0);
    struct step_made m;
    json_t *meta = json_pack("{s:{s:i, s:i}}", "state", "step", 20, "skips", 3);
    step_make(&m, &a, 20);
    struct step_content content = {.step = 20, .arch = &a, .arrays = m.arrays, .n_arrays = m.n, .meta = meta};
    assert_ok(step_save(run, &content, 2));
    assert_ok(io_mkdirs(beside));
    assert_ok(step_save(beside, &content, 2));
    step_unmake(&m);
    json_decref(meta);
    arch_free(&a);
    free(run), free(beside);
}

struct readers readers_runs(void)
{
    static const struct reader subjects[] = {
        {"a run", "run", read_model, 60},
        {"a step", "run/step-00000020/", read_model, 60},
        {"the moments of a run", "run", read_moments, 60},
        {"the moments beside a model", "beside", read_moments, 60},
        {"verifying a run", "run", read_verified, 60},
        {"verifying a step", "run/step-00000020/", read_verified, 60},
    };
    static int made;
    if (!made++)
        make_runs();
    return (struct readers){subjects, COUNT_OF(subjects)};
}

/* ---- configs ----------------------------------------------------------------------------------------------------------- */

/* Every family's config.json to an arch, the arch to JSON and back, and to a config.json. */
static enum code read_config(const char *dir, uint64_t *sum)
{
    char *path = io_join(dir, "config.json"), *bytes = NULL, *text = NULL;
    size_t n = 0;
    struct arch a, b;
    enum code c = path ? io_read_all(path, 1 << 20, &bytes, &n) : fail(ERR_MEMORY, "no memory for the test's path");
    if (c == OK && (c = arch_from_config_json(&a, bytes, n, "config.json")) == OK) {
        json_t *j = arch_to_json(&a);
        c = j ? arch_from_json(&b, j, "arch") : fail(ERR_MEMORY, "no memory for the arch");
        json_decref(j);
        if (c == OK) {
            c = arch_to_config_json(&b, DT_NONE, &text);
            if (c == OK)
                *sum = damage_add(*sum, text, strlen(text));
            free(text);
            arch_free(&b);
        }
        arch_free(&a);
    }
    free(bytes);
    free(path);
    return c;
}

static enum code read_configs(const char *path, uint64_t *sum)
{
    char **names;
    int n;
    *sum = 0;
    (void)path;
    TRY(io_list("tests/golden/hf", &names, &n));
    enum code c = OK;
    for (int i = 0; c == OK && i < n; i++) {
        char *dir = io_join("tests/golden/hf", names[i]);
        c = !dir ? fail(ERR_MEMORY, "no memory for the test's path") : io_is_dir(dir) ? read_config(dir, sum) : OK;
        free(dir);
    }
    io_names_free(names, n);
    return c;
}

struct readers readers_configs(void)
{
    static const struct reader subject = {"every family's config.json", "", read_configs, 60};
    return (struct readers){&subject, 1};
}
