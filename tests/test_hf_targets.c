/* Where results may go: refused targets, --force, the header limit, a full disk; nothing temporary is ever left behind. */
#include "harness.h"
#include "hf_case.h"

#include <fcntl.h>
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checkpoints/checkpoint.h"
#include "checkpoints/safetensors.h"

static void test_targets(void **state)
{
    (void)state;
    char *dir = hf_make("source", 0, DT_NONE, 0), *to = temp_path("target"), *link = temp_path("link"), *home = temp_path("home");
    size_t n, m;
    char *before = hf_slurp(dir, "model.safetensors", &n);
    char path[4096];
    for (int force = 0; force < 2; force++) {
        assert_refused(hf_copy(dir, dir, DT_NONE, 0, force), ERR_USAGE, "the target is the source");
        snprintf(path, sizeof path, "%s/inner/more", dir);
        assert_refused(hf_copy(dir, path, DT_NONE, 0, force), ERR_USAGE, "inside the source");
        snprintf(path, sizeof path, "%s/../source/", dir);
        assert_refused(hf_copy(dir, path, DT_NONE, 0, force), ERR_USAGE, "the target is the source");
        assert_refused(hf_copy(dir, temp_dir(), DT_NONE, 0, force), ERR_USAGE, "lies inside the target");
    }
    assert_int_equal(symlink(dir, link), 0);
    assert_refused(hf_copy(dir, link, DT_NONE, 0, 1), ERR_USAGE, "the target is the source");
    assert_refused(hf_copy(link, dir, DT_NONE, 0, 1), ERR_USAGE, "the target is the source");
    snprintf(path, sizeof path, "%s/deep/er", link);
    assert_refused(hf_copy(dir, path, DT_NONE, 0, 1), ERR_USAGE, "inside the source");
    snprintf(path, sizeof path, "%s/deep", dir);
    assert_false(io_exists(path));
    assert_refused(hf_copy(dir, "", DT_NONE, 0, 1), ERR_USAGE, "a target is");
    snprintf(path, sizeof path, "%s/no/../../x", to);
    assert_refused(hf_copy(dir, path, DT_NONE, 0, 1), ERR_IO, "cannot resolve");

    assert_ok(hf_copy(dir, to, DT_NONE, 0, 0));
    assert_refused(hf_copy(dir, to, DT_NONE, 0, 0), ERR_USAGE, "exists already; give --force");
    hf_put(to, "stale", "x", 1);
    assert_ok(hf_copy(dir, to, DT_NONE, 0, 1));
    hf_same_dir(dir, to);
    assert_ok(io_mkdirs(home));
    hf_put(home, "letter.txt", "dear", 4);
    assert_refused(hf_copy(dir, home, DT_NONE, 0, 1), ERR_USAGE, "holds no model");
    snprintf(path, sizeof path, "%s/new/parents/target", home);
    assert_ok(hf_copy(dir, path, DT_NONE, 0, 0));
    hf_same_dir(dir, path);
    char *after = hf_slurp(dir, "model.safetensors", &m);
    assert_int_equal(n, m);
    assert_memory_equal(before, after, n);
    assert_true(hf_no_temporaries());

    /* appears while being written */
    struct checkpoint *ck;
    struct ckpt_writer *w;
    char *late = temp_path("late");
    assert_ok(ckpt_open(&ck, dir, NULL));
    struct ckpt_target target = {.path = late, .arch = ckpt_arch(ck), .source = ck};
    assert_ok(ckpt_create(&w, &target));
    hf_copy_rows(ck, w, 100);
    assert_ok(io_mkdirs(late));
    assert_refused(ckpt_commit(w), ERR_USAGE, "appeared while");
    assert_ok(io_remove_tree(late));

    /* rows missing, rows twice, abandoned */
    assert_ok(ckpt_create(&w, &target));
    float row[64] = {0};
    assert_ok(ckpt_write(w, ckpt_writer_at(w, 0), 2, 1, row, DT_F32));
    assert_ok(ckpt_write(w, ckpt_writer_at(w, 0), 0, 0, row, DT_F32));
    assert_refused(ckpt_write(w, ckpt_writer_at(w, 0), 2, 1, row, DT_F32), ERR_INTERNAL, "written twice");
    assert_refused(ckpt_add_file(w, "../x", "", 0), ERR_USAGE, "../x");
    assert_refused(ckpt_commit(w), ERR_INTERNAL, "rows of");
    assert_ok(ckpt_create(&w, &target));
    ckpt_abandon(w);
    ckpt_abandon(NULL);
    ckpt_close(NULL);
    assert_false(io_exists(late));
    ckpt_close(ck);
    assert_true(hf_no_temporaries());
    free(before);
    free(after);
    free(late);
    free(dir);
    free(to);
    free(link);
    free(home);
}

/* Every tensor in a file of its own, then q, k, v and gate, up as one: each file that is left holds something and is listed. */
static void test_fused_shards(void **state)
{
    (void)state;
    char *dir = hf_make("apart", 0, DT_NONE, 1), *to = temp_path("fused"), **names;
    struct checkpoint *ck;
    struct arch a;
    struct ckpt_choice choice;
    struct ckpt_writer *w;
    assert_ok(ckpt_open(&ck, dir, NULL));
    assert_ok(arch_copy(&a, ckpt_arch(ck)));
    assert_ok(ckpt_choose(&a, to, HOME_RETARGET, "phi3", &choice));
    assert_ok(ckpt_choice_arch(&a, &choice));
    assert_ok(ckpt_rewritten(&ck, ck, &choice));
    struct ckpt_target target = {.path = to, .arch = &a, .source = ck};
    assert_ok(ckpt_create(&w, &target));
    hf_copy_rows(ck, w, 7);
    assert_ok(ckpt_commit(w));
    int n, files = 0;
    size_t bytes;
    char *index = hf_slurp(to, "model.safetensors.index.json", &bytes);
    assert_ok(io_list(to, &names, &n));
    for (int i = 0; i < n; i++)
        if (strstr(names[i], ".safetensors") && !strstr(names[i], ".json")) {
            assert_non_null(strstr(index, names[i]));
            files++;
        }
    assert_int_equal(files, 3 + 3 * 6);
    assert_ok(hf_opened(to));
    io_names_free(names, n);
    ckpt_close(ck);
    arch_free(&a);
    free(index);
    free(dir);
    free(to);
}

static void test_header_limit(void **state)
{
    (void)state;
    char *dir = hf_make("plain", 0, DT_NONE, 0);
    struct checkpoint *ck;
    struct ckpt_options options = {.header_limit = 100};
    assert_refused(ckpt_open(&ck, dir, &options), ERR_INPUT, "exceeds the limit of 100");
    free(dir);
}

static void test_space_and_faults(void **state)
{
    (void)state;
    struct arch a;
    struct ckpt_writer *w;
    char *path = temp_path("huge");
    hf_arch(&a, 1);
    a.V = INT32_MAX;
    a.C = 1 << 20;
    struct ckpt_target target = {.path = path, .arch = &a};
    assert_refused(ckpt_create(&w, &target), ERR_IO, "the result needs");
    assert_false(io_exists(path));
    arch_free(&a);
    free(path);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_targets),
        cmocka_unit_test(test_fused_shards),
        cmocka_unit_test(test_header_limit),
        cmocka_unit_test(test_space_and_faults),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
