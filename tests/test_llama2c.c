/* llama2.c .bin against the same model as a Hugging Face directory (made by other people's tools), and its malformed headers. */
#include "harness.h"

#include <unistd.h>

#include "checkpoints/checkpoint.h"
#include "checkpoints/llama2c.h"

static void same_model(const char *bin, const char *dir)
{
    char *a_path = data_path(bin), *b_path = data_path(dir);
    if (a_path && b_path) {
        struct checkpoint *a, *b;
        assert_ok(ckpt_open(&a, a_path, NULL));
        assert_ok(ckpt_open(&b, b_path, NULL));
        assert_int_equal(ckpt_count(a), ckpt_count(b));
        assert_string_equal(ckpt_arch(a)->family, "llama");
        assert_int_equal(ckpt_arch(a)->tied, ckpt_arch(b)->tied);
        assert_int_equal(ckpt_arch(a)->max_positions, ckpt_arch(b)->max_positions);
        assert_int_equal(arch_parameters(ckpt_arch(a)), arch_parameters(ckpt_arch(b)));
        for (int i = 0; i < ckpt_count(b); i++) {
            const struct ckpt_tensor *tb = ckpt_at(b, i), *ta = ckpt_find(a, tb->name);
            assert_non_null(ta);
            assert_int_equal(ta->bytes, tb->bytes);
            char *x = malloc((size_t)ta->bytes), *y = malloc((size_t)tb->bytes);
            assert_ok(ckpt_read(b, tb, 0, tb->n[0], y, DT_NONE));
            for (int64_t r = 0; r < ta->n[0];) { /* odd blocks cut through heads */
                int64_t rows = ta->n[0] - r < 5 ? ta->n[0] - r : 5;
                assert_ok(ckpt_read(a, ta, r, rows, x + r * ta->n[1] * 4, DT_F32));
                r += rows;
            }
            assert_memory_equal(x, y, (size_t)ta->bytes);
            free(x);
            free(y);
        }
        ckpt_close(a);
        ckpt_close(b);
    }
    free(a_path);
    free(b_path);
}

static void test_real_models_equal_their_hf_form(void **state)
{
    (void)state;
    same_model("models/babyllama-tok105/model5000.bin", "models/babyllama-tok105-hf");
    same_model("models/babyllama-tok105-mha/model.bin", "models/babyllama-tok105-mha-hf");
    same_model("models/stories260K/stories260K.bin", "models/stories260K-hf");
    same_model("models/stories260K/stories260K_v1.bin", "models/stories260K-hf");
    same_model("models/stories260K-mha/model.bin", "models/stories260K-mha-hf");
}

/* C 12, F 8, L 2, H 2, G 1, V 5 (untied), T 4: head width 6. */
enum { C = 12, F = 8, L = 2, H = 2, G = 1, V = 5, T = 4, D = C / H };
static const int32_t SMALL[7] = {C, F, L, H, G, -V, T};

static int64_t small_bytes(int version, int untied)
{
    int64_t floats = V * C + L * (2 * C + H * D * C + 2 * G * D * C + C * H * D + 3 * F * C) + C + (untied ? V * C : 0);
    return version ? 256 + 4 * floats : 28 + 4 * (floats + T * D);
}

static void test_untied_version_0(void **state)
{
    (void)state;
    int64_t bytes = small_bytes(0, 1);
    float *file = calloc(1, (size_t)bytes), *x = (float *)((char *)file + 28);
    memcpy(file, SMALL, sizeof SMALL);
    for (int64_t i = 0; i < (bytes - 28) / 4; i++)
        x[i] = (float)i;
    temp_write("small.bin", file, (size_t)bytes);
    char *path = temp_path("small.bin");
    struct checkpoint *ck;
    assert_ok(ckpt_open(&ck, path, NULL));
    assert_string_equal(ckpt_form_name(ck), "llama2.c file");
    assert_int_equal(ckpt_arch(ck)->tied, 0);
    float row[C];
    const struct ckpt_tensor *head = ckpt_find(ck, "head.w");
    assert_non_null(head);
    assert_ok(ckpt_read(ck, head, V - 1, 1, row, DT_F32));
    assert_float_equal(row[C - 1], (float)((bytes - 28) / 4 - 1), 0); /* the last float of the file */
    const struct ckpt_tensor *q = ckpt_find(ck, "dec.0.attn.q.w");
    assert_ok(ckpt_read(ck, q, D + 1, 1, row, DT_F32)); /* head 1, pair 1, first half: file row D + 2 */
    assert_float_equal(row[0], (float)(V * C + L * C + (D + 2) * C), 0);
    assert_ok(ckpt_read(ck, q, D + 4, 1, row, DT_F32)); /* head 1, pair 1, second half: file row D + 3 */
    assert_float_equal(row[0], (float)(V * C + L * C + (D + 3) * C), 0);
    const char *const *files;
    assert_int_equal(ckpt_files(ck, &files), 1);
    assert_string_equal(files[0], "small.bin");
    ckpt_close(ck);
    free(path);
    free(file);
}

static enum code parse(const unsigned char *head, size_t n, int64_t file_bytes)
{
    struct arch a;
    struct llama2c_layout layout;
    enum code c = llama2c_parse(&a, &layout, head, n, file_bytes, "x.bin");
    if (c == OK)
        arch_free(&a);
    return c;
}

static void test_malformed(void **state)
{
    (void)state;
    unsigned char head[256] = {0};
    memcpy(head, SMALL, sizeof SMALL);
    assert_ok(parse(head, 256, small_bytes(0, 1)));
    for (size_t n = 0; n < 28; n++)
        assert_refused(parse(head, n, (int64_t)n), ERR_INPUT, "too few");
    assert_refused(parse(head, 256, small_bytes(0, 1) - 1), ERR_INPUT, "its header asks for");
    assert_refused(parse(head, 256, small_bytes(0, 1) + 1), ERR_INPUT, "its header asks for");
    for (int i = 0; i < 7; i++) {
        int32_t v[7];
        memcpy(v, SMALL, sizeof v);
        v[i] = 0;
        memcpy(head, v, sizeof v);
        assert_refused(parse(head, 256, small_bytes(0, 1)), ERR_INPUT, "not a llama2.c model");
        v[i] = INT32_MIN;
        memcpy(head, v, sizeof v);
        assert_int_equal(parse(head, 256, small_bytes(0, 1)), ERR_INPUT);
        v[i] = INT32_MAX;
        memcpy(head, v, sizeof v);
        assert_int_equal(parse(head, 256, small_bytes(0, 1)), ERR_INPUT);
    }
    int32_t odd[7] = {C, F, L, H, G, V, T};
    odd[0] = 6; /* head width 3 */
    memcpy(head, odd, sizeof odd);
    assert_refused(parse(head, 256, 1000), ERR_INPUT, "rotary dimensions must be even");
    odd[0] = 13;
    memcpy(head, odd, sizeof odd);
    assert_refused(parse(head, 256, 1000), ERR_INPUT, "not a multiple of n_heads");

    memset(head, 0, sizeof head);
    uint32_t one[2] = {0x616b3432u, 1};
    int32_t seven[7] = {C, F, L, H, G, V, T};
    memcpy(head, one, 8);
    memcpy(head + 8, seven, 28);
    head[36] = 1;
    assert_ok(parse(head, 256, small_bytes(1, 0)));
    head[36] = 0;
    assert_ok(parse(head, 256, small_bytes(1, 1)));
    assert_refused(parse(head, 255, 255), ERR_INPUT, "too few");
    seven[5] = -V;
    memcpy(head + 8, seven, 28);
    assert_refused(parse(head, 256, small_bytes(1, 1)), ERR_INPUT, "negative");
    head[4] = 2;
    assert_refused(parse(head, 256, small_bytes(1, 1)), ERR_UNSUPPORTED, "version 2");
}

static void test_not_writable(void **state)
{
    (void)state;
    struct arch a;
    assert_ok(arch_init(&a, 1));
    struct ckpt_writer *w;
    struct ckpt_target target = {.path = "x.bin", .arch = &a};
    assert_refused(ckpt_create(&w, &target), ERR_USAGE, "a target is");
    arch_free(&a);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_real_models_equal_their_hf_form),
        cmocka_unit_test(test_untied_version_0),
        cmocka_unit_test(test_malformed),
        cmocka_unit_test(test_not_writable),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
