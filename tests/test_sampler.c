/* Batches against a slow second implementation that builds every window in the plainest way; counts; the order of an epoch. */
#include "harness.h"
#include "data/data.h"

enum { EOS = 7 };

static void write_tokens(const char *name, int64_t n, uint64_t seed, int masked)
{
    int32_t *ids = malloc((size_t)(n ? n : 1) * sizeof *ids);
    uint8_t *mask = malloc((size_t)(n ? n : 1));
    char *path = temp_path(name), mask_name[64];
    for (int64_t i = 0; i < n; i++) {
        ids[i] = (int32_t)random_int(seed, (uint64_t)i, 0, 40);
        mask[i] = (uint8_t)random_int(seed + 1, (uint64_t)i, 0, 1);
    }
    assert_ok(tokens_write(path, ids, n, 41, -1, EOS, NULL));
    snprintf(mask_name, sizeof mask_name, "%s.mask", name);
    if (masked)
        temp_write(mask_name, mask, (size_t)n);
    free(path);
    free(ids);
    free(mask);
}

static struct tokens *open_tokens(const char *name)
{
    struct tokens_options o = {.V = 41, .eos = EOS, .bos = -1};
    struct tokens *t;
    char *path = temp_path(name);
    assert_ok(tokens_open(&t, path, &o));
    free(path);
    return t;
}

/* The w-th of all windows, found by listing them; one token at a time. */
static int64_t slow_row(const struct sampler *s, int64_t w, int32_t *ids, int32_t *targets, int32_t *positions, int32_t *segments)
{
    int64_t seen = 0, valid = 0;
    for (int f = 0; f < s->n_files; f++)
        for (int64_t from = 0; from + s->T + 1 <= tokens_count(s->files[f]); from += s->T) {
            if (seen++ != w)
                continue;
            for (int64_t t = 0; t < s->T; t++) {
                uint8_t m;
                int64_t start = 0, docs = 0;
                for (int64_t k = 0; k < t && s->pack; k++) {
                    int32_t id;
                    tokens_get(s->files[f], from + k, 1, &id);
                    if (id == s->eos)
                        start = k + 1, docs++;
                }
                tokens_get(s->files[f], from + t, 1, &ids[t]);
                tokens_get(s->files[f], from + t + 1, 1, &targets[t]);
                tokens_get_mask(s->files[f], from + t + 1, 1, &m);
                positions[t] = (int32_t)(t - start);
                segments[t] = (int32_t)docs;
                if (!m || (s->pack && ids[t] == s->eos))
                    targets[t] = -1;
                else
                    valid++;
            }
            return valid;
        }
    assert_true(0);
    return 0;
}

static void check_all(struct sampler *s)
{
    int64_t T = s->T, total = 0;
    struct batch b;
    int32_t *want[4];
    for (int k = 0; k < 4; k++)
        want[k] = malloc((size_t)T * sizeof **want);
    assert_ok(sampler_init(s));
    assert_ok(batch_alloc(&b, 2, T));
    for (int64_t i = 0; i < 3 * s->windows; i += 2) {
        memset(b.ids, 0x7F, (size_t)(8 * T) * sizeof *b.ids);
        int64_t valid = sampler_fill(s, i, &b), slow = 0;
        for (int64_t r = 0; r < 2; r++) {
            int64_t j = i + r, w = s->shuffle ? random_permute(s->seed, (uint64_t)(j / s->windows), s->windows, j % s->windows) : j % s->windows;
            slow += slow_row(s, w, want[0], want[1], want[2], want[3]);
            assert_memory_equal(b.ids + r * T, want[0], (size_t)T * 4);
            assert_memory_equal(b.targets + r * T, want[1], (size_t)T * 4);
            assert_memory_equal(b.positions + r * T, want[2], (size_t)T * 4);
            assert_memory_equal(b.segments + r * T, want[3], (size_t)T * 4);
        }
        assert_int_equal(valid, slow);
        assert_int_equal(sampler_count(s, i, 2), slow);
        total += slow;
        assert_int_equal(sampler_count(s, 0, i + 2), total); /* whole epochs are counted another way */
    }
    batch_free(&b);
    for (int k = 0; k < 4; k++)
        free(want[k]);
}

static void test_against_slow(void **state)
{
    (void)state;
    static const int64_t lengths[] = {100, 57, 8, 1, 0};
    struct tokens *files[5];
    char name[16];
    for (int k = 0; k < 5; k++) {
        snprintf(name, sizeof name, "s%d.bin", k);
        write_tokens(name, lengths[k], (uint64_t)k + 1, k == 1);
        files[k] = open_tokens(name);
    }
    assert_true(tokens_has_mask(files[1]) && !tokens_has_mask(files[0]));
    for (int64_t T = 1; T <= 13; T += 3)
        for (int mode = 0; mode < 8; mode++) {
            struct sampler s = {.files = files, .n_files = mode & 4 ? 1 : 5, .T = T, .eos = EOS, .pack = mode & 1, .shuffle = mode >> 1 & 1, .seed = 9};
            check_all(&s);
            if (mode == 3) {
                s.eos = -1;
                check_all(&s);
            }
        }
    for (int k = 0; k < 5; k++)
        tokens_close(files[k]);
}

static void test_window_edges(void **state)
{
    (void)state;
    write_tokens("edge.bin", 13, 5, 0);
    struct tokens *f = open_tokens("edge.bin");
    struct sampler s = {.files = &f, .n_files = 1, .T = 12, .eos = -1};
    assert_ok(sampler_init(&s));
    assert_int_equal(s.windows, 1); /* T + 1 tokens are just enough */
    s.T = 13;
    assert_refused(sampler_init(&s), ERR_INPUT, "13 tokens");
    s.T = 6;
    assert_ok(sampler_init(&s));
    assert_int_equal(s.windows, 2);
    s.n_files = 0;
    assert_refused(sampler_init(&s), ERR_INPUT, "0 files");
    struct batch b;
    assert_refused(batch_alloc(&b, INT64_MAX / 2, 8), ERR_MEMORY, "batch");
    tokens_close(f);
}

/* Every window once in each epoch, in another order; the same sample number gives the same row. */
static void test_epochs(void **state)
{
    (void)state;
    int32_t ids[1001];
    for (int i = 0; i < 1001; i++)
        ids[i] = i;
    char *path = temp_path("epoch.bin");
    assert_ok(tokens_write(path, ids, 1001, 70000, -1, -1, NULL));
    struct tokens_options o = {.V = 70000, .eos = -1, .bos = -1};
    struct tokens *f;
    assert_ok(tokens_open(&f, path, &o));
    struct sampler s = {.files = &f, .n_files = 1, .T = 10, .eos = -1, .shuffle = 1, .seed = 3};
    struct batch b;
    assert_ok(sampler_init(&s));
    assert_ok(batch_alloc(&b, 1, 10));
    int order[2][100], seen[2][100] = {{0}}, same = 0;
    for (int i = 0; i < 200; i++) {
        assert_int_equal(sampler_fill(&s, i, &b), 10);
        order[i / 100][i % 100] = b.ids[0] / 10;
        seen[i / 100][b.ids[0] / 10]++;
        assert_int_equal(b.targets[9], b.ids[9] + 1);
    }
    for (int w = 0; w < 100; w++) {
        assert_int_equal(seen[0][w], 1);
        assert_int_equal(seen[1][w], 1);
        same += order[0][w] == order[1][w];
    }
    assert_true(same < 20);
    s.seed = 4;
    int differs = 0;
    for (int i = 0; i < 100; i++) {
        sampler_fill(&s, i, &b);
        differs += order[0][i] != b.ids[0] / 10;
    }
    assert_true(differs > 80);
    batch_free(&b);
    tokens_close(f);
    free(path);
}

static void test_real_sort_masks(void **state)
{
    (void)state;
    char *path = data_path("tokens/sort_train.bin");
    if (path == NULL)
        return;
    struct tokens_options o = {.V = 3, .eos = -1, .bos = -1};
    struct tokens *f;
    struct batch b;
    assert_ok(tokens_open(&f, path, &o));
    assert_true(tokens_has_mask(f));
    assert_int_equal(tokens_count(f), 240000);
    struct sampler s = {.files = &f, .n_files = 1, .T = 12, .eos = -1};
    assert_ok(sampler_init(&s));
    assert_ok(batch_alloc(&b, 1, 12));
    int64_t valid = sampler_fill(&s, 0, &b);
    assert_int_equal(valid, 6); /* the six sorted symbols of a document of 12 */
    assert_int_equal(sampler_count(&s, 0, s.windows), 6 * s.windows);
    batch_free(&b);
    tokens_close(f);
    free(path);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {cmocka_unit_test(test_against_slow), cmocka_unit_test(test_window_edges), cmocka_unit_test(test_epochs),
                                              cmocka_unit_test(test_real_sort_masks)};
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
