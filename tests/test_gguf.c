/* GGUF: the container, every tensor's values against the source by a second, naive description of llama.cpp's layouts, metadata,
 * refusals. Tokenizers are test_gguf_tokenizer.c; llama.cpp itself runs the files in tools/check-llamacpp. */
#include <dirent.h>
#include <fcntl.h>
#include <math.h>

#include "checkpoints/rewrite.h"
#include "gguf_check.h"
#include "harness.h"
#include "hf_case.h"
#include "small_checkpoint.h"

#define GOLDEN "tests/golden/hf"

/* Values of the canonical tensor dec.L.NAME (L < 0: NAME), as the file of type `type` holds them. */
static float *canonical(struct checkpoint *ck, int64_t layer, const char *name, enum dtype type, int64_t *n)
{
    char full[96];
    if (layer < 0)
        snprintf(full, sizeof full, "%s", name);
    else
        snprintf(full, sizeof full, "dec.%lld.%s", (long long)layer, name);
    const struct ckpt_tensor *t = ckpt_find(ck, full);
    if (!t)
        return NULL;
    *n = t->n[0] * t->n[1];
    float *x = malloc((size_t)*n * sizeof *x);
    void *raw = malloc((size_t)*n * 8);
    assert_ok(ckpt_read(ck, t, 0, t->n[0], raw, DT_NONE)); /* as stored: a rewriting rounds to that */
    convert_elements(x, DT_F32, raw, t->dtype, (size_t)*n);
    free(raw);
    for (int64_t i = 0; i < *n; i++)
        x[i] = type == DT_BF16 ? f32_from_bf16(bf16_from_f32(x[i])) : type == DT_F16 ? f32_from_f16(f16_from_f32(x[i])) : x[i];
    return x;
}

/* Which canonical tensors stand one after the other in a file's tensor. */
static const struct { const char *file; const char *parts[3]; } LAYOUT[] = {
    {"attn_norm.weight", {"attn_norm.w"}}, {"attn_norm.bias", {"attn_norm.b"}},
    {"attn_q.weight", {"attn.q.w"}}, {"attn_k.weight", {"attn.k.w"}}, {"attn_v.weight", {"attn.v.w"}},
    {"attn_q.bias", {"attn.q.b"}}, {"attn_k.bias", {"attn.k.b"}}, {"attn_v.bias", {"attn.v.b"}},
    {"attn_qkv.weight", {"attn.q.w", "attn.k.w", "attn.v.w"}}, {"attn_qkv.bias", {"attn.q.b", "attn.k.b", "attn.v.b"}},
    {"attn_output.weight", {"attn.o.w"}}, {"attn_output.bias", {"attn.o.b"}},
    {"attn_q_norm.weight", {"attn.q_norm.w"}}, {"attn_k_norm.weight", {"attn.k_norm.w"}},
    {"ffn_norm.weight", {"mlp_norm.w"}}, {"ffn_norm.bias", {"mlp_norm.b"}},
    {"post_attention_norm.weight", {"attn_norm.w"}}, {"post_ffw_norm.weight", {"mlp_norm.w"}},
    {"attn_norm_2.weight", {"attn_norm.w"}}, {"attn_norm_2.bias", {"attn_norm.b"}},
    {"ffn_gate.weight", {"mlp.gate.w"}}, {"ffn_up.weight", {"mlp.up.w"}}, {"ffn_down.weight", {"mlp.down.w"}},
    {"ffn_gate.bias", {"mlp.gate.b"}}, {"ffn_up.bias", {"mlp.up.b"}}, {"ffn_down.bias", {"mlp.down.b"}},
    {"token_embd.weight", {"embed.weight"}}, {"token_embd_norm.weight", {"embed_norm.w"}}, {"token_embd_norm.bias", {"embed_norm.b"}},
    {"position_embd.weight", {"pos.weight"}}, {"output_norm.weight", {"dec.final_norm.w"}}, {"output_norm.bias", {"dec.final_norm.b"}},
    {"output.weight", {"head.w"}}, {"output.bias", {"head.b"}},
};

static int is(const struct gguf_file *f, const char *name) { return gguf_check_is(f, "general.architecture", name); }

/* Row r of a canonical q or k, in an architecture that rotates neighbours: where it stands. */
static int64_t neighbour(int64_t r, int64_t D)
{
    int64_t head = r / D, i = r % D;
    return head * D + (i < D / 2 ? 2 * i : 2 * (i - D / 2) + 1);
}

static void values_check(const struct gguf_file *f, const struct gguf_entry *t, struct checkpoint *ck, int64_t layer, const char *const parts[3],
                         enum dtype type)
{
    const struct arch *a = ckpt_arch(ck);
    int64_t D = a->stack[STACK_DEC].block[0].D, columns = t->nd == 2 ? (int64_t)t->ne[0] : 1, at = 0, n = 0, bad = 0;
    int pairs = is(f, "llama") || is(f, "olmo") || is(f, "deci");
    for (int p = 0; p < 3 && parts[p]; p++) {
        float *x = canonical(ck, layer, parts[p], t->type ? type : DT_F32, &n);
        if (!x)
            print_error("%s: the source has no %s\n", t->name, parts[p]);
        assert_non_null(x);
        int moved = pairs && (strstr(parts[p], "attn.q.") || strstr(parts[p], "attn.k."));
        float plus = is(f, "gemma") && a->norm == NORM_RMS1P && strstr(parts[p], "norm") ? 1 : 0;
        for (int64_t i = 0; i < n; i++) {
            int64_t row = i / columns, to = moved ? neighbour(row, D) * columns + i % columns : i;
            bad += !(gguf_check_element(t, (uint64_t)(at + to)) == (t->type ? x[i] : (float)((double)x[i] + (double)plus)));
        }
        at += n;
        free(x);
    }
    uint64_t elements = t->nd == 2 ? t->ne[0] * t->ne[1] : t->ne[0];
    if (bad || elements != (uint64_t)at)
        print_error("%s: %lld of %lld values differ, %llu elements\n", t->name, (long long)bad, (long long)at, (unsigned long long)elements);
    assert_true(bad == 0 && elements == (uint64_t)at);
}

/* Every tensor of the file has the values of the checkpoint, and every tensor of the checkpoint is there. */
static void file_check(const char *path, struct checkpoint *ck, enum dtype type)
{
    struct gguf_file f;
    gguf_check_open(&f, path);
    int covered = 0;
    for (uint64_t i = 0; i < f.n_tensors; i++) {
        const struct gguf_entry *t = &f.tensors[i];
        const char *name = t->name;
        long layer = -1;
        if (!strncmp(name, "rope_f", 6))
            continue;
        if (!strncmp(name, "blk.", 4)) {
            layer = strtol(name + 4, (char **)&name, 10);
            name++;
        }
        size_t k = 0;
        while (k < COUNT_OF(LAYOUT) && strcmp(LAYOUT[k].file, name) != 0)
            k++;
        if (k == COUNT_OF(LAYOUT))
            print_error("unknown tensor %s\n", t->name);
        assert_true(k < COUNT_OF(LAYOUT));
        const char *const two[3] = {"mlp.gate.w", "mlp.up.w", NULL}, *const mlp_norm[3] = {strstr(name, "bias") ? "mlp_norm.b" : "mlp_norm.w", NULL, NULL};
        const char *const *parts = LAYOUT[k].parts;
        if (is(&f, "phi3") && !strcmp(name, "ffn_up.weight"))
            parts = two;
        if (is(&f, "falcon") && ckpt_arch(ck)->residual == RESIDUAL_PARALLEL_TWO_NORMS && !strncmp(name, "attn_norm.", 10))
            parts = mlp_norm;
        assert_int_equal(t->type, t->nd == 1 || strstr(name, "norm") || !strncmp(name, "position", 8) ? 0 : type == DT_F32 ? 0 : type == DT_F16 ? 1 : 30);
        values_check(&f, t, ck, layer, parts, type);
        for (int p = 0; p < 3 && parts[p]; p++)
            covered++;
    }
    assert_int_equal(covered, ckpt_count(ck));
    gguf_check_close(&f);
}

static enum code to_gguf(const char *from, const char *path, enum dtype type, int64_t step, struct checkpoint **kept, struct ckpt_choice *choice)
{
    struct checkpoint *ck;
    struct ckpt_writer *w;
    TRY(ckpt_open(&ck, from, NULL));
    enum code c = ckpt_choose(ckpt_arch(ck), path, HOME_AUTO, NULL, choice);
    if (c != OK) {
        ckpt_close(ck);
        return c;
    }
    TRY(ckpt_rewritten(&ck, ck, choice));
    struct ckpt_target target = {.path = path, .arch = ckpt_arch(ck), .source = ck, .dtype = type, .force = 1};
    c = ckpt_target_check(&target);
    gguf_check_hush(1);
    if (c == OK)
        c = ckpt_create(&w, &target);
    gguf_check_hush(0);
    if (c == OK) {
        hf_copy_rows(ck, w, step);
        c = ckpt_commit(w);
    }
    *kept = ck;
    if (c != OK)
        ckpt_close(ck);
    return c;
}

/* ---- every family, as transformers saved it -------------------------------------------------------------------------- */

static void every_golden(void **state)
{
    (void)state;
    static const enum dtype types[] = {DT_F32, DT_BF16, DT_F16};
    static const char *const refused[] = {"opt-", "relu", "falcon-alibi", "falcon-sequential", "qwen3-biases"};
    DIR *dir = opendir(GOLDEN);
    char *path = temp_path("golden.gguf");
    struct dirent *entry;
    int written = 0, turned_down = 0;
    log_quiet(1);
    assert_non_null(dir);
    while ((entry = readdir(dir))) {
        struct checkpoint *ck;
        struct ckpt_choice choice;
        if (entry->d_name[0] == '.')
            continue;
        char *from = io_join(GOLDEN, entry->d_name);
        enum code c = to_gguf(from, path, types[written % 3], 7, &ck, &choice);
        int expected = 0;
        for (size_t i = 0; i < COUNT_OF(refused); i++)
            expected |= strstr(entry->d_name, refused[i]) != NULL;
        if (c == OK) {
            file_check(path, ck, types[written % 3]);
            ckpt_close(ck);
            written++;
        } else if (strstr(fail_text(), "is not supported; supported are")) { /* a family still to come */
            print_message("skipped: %s\n", entry->d_name);
        } else {
            if (!expected || c != ERR_UNSUPPORTED)
                print_error("%s: %s\n", entry->d_name, fail_text());
            assert_true(expected && c == ERR_UNSUPPORTED);
            turned_down++;
        }
        free(from);
    }
    print_message("%d written and compared, %d refused\n", written, turned_down);
    assert_true(written > 30);
    closedir(dir);
    free(path);
}

/* ---- one model closely ----------------------------------------------------------------------------------------------- */

/* However the rows arrive, the file is the same. */
static void any_order(void **state)
{
    (void)state;
    char *from = hf_make("order", 0, DT_F32, 0), *a = temp_path("a.gguf"), *b = temp_path("b.gguf");
    static const int64_t steps[] = {1, 3, 10, 20, 1000};
    size_t na, nb;
    char *x, *y;
    struct checkpoint *ck;
    struct ckpt_choice choice;
    free(hf_slurp(from, "tokenizer.json", &na));
    for (size_t s = 0; s < COUNT_OF(steps); s++) {
        char *no_tokenizer = io_join(from, "tokenizer.json");
        remove(no_tokenizer);
        free(no_tokenizer);
        assert_ok(to_gguf(from, a, DT_BF16, steps[s], &ck, &choice));
        file_check(a, ck, DT_BF16);
        ckpt_close(ck);
        assert_ok(to_gguf(from, b, DT_BF16, 7, &ck, &choice));
        ckpt_close(ck);
        assert_ok(io_read_all(a, 1 << 24, &x, &na));
        assert_ok(io_read_all(b, 1 << 24, &y, &nb));
        assert_int_equal(na, nb);
        x[0] = y[0]; /* the names differ in one letter: general.name */
        size_t differ = 0;
        for (size_t i = 0; i < na; i++)
            differ += x[i] != y[i];
        assert_int_equal(differ, 1);
        free(x);
        free(y);
    }
    assert_int_equal(choice.exact, 1);
    assert_true(hf_no_temporaries());
    free(from);
    free(a);
    free(b);
}

static struct gguf_file written(const struct arch *a)
{
    struct gguf_file f;
    char *path = temp_path("meta.gguf");
    gguf_check_hush(1);
    small_write(path, a, 1, 1, NULL);
    gguf_check_hush(0);
    gguf_check_open(&f, path);
    free(path);
    return f;
}

static void metadata(void **state)
{
    (void)state;
    struct arch a;
    small_arch(&a, 6, 3, DT_F16); /* C 24, D 8: not C / H */
    a.rope.theta = 12345;
    struct gguf_file f = written(&a);
    assert_true(gguf_check_is(&f, "general.architecture", "llama") && gguf_check_u32(&f, "general.file_type") == 1);
    assert_true(gguf_check_u32(&f, "general.alignment") == 32 && gguf_check_is(&f, "general.name", "meta"));
    assert_true(gguf_check_u32(&f, "llama.context_length") == 64 && gguf_check_u32(&f, "llama.embedding_length") == 24);
    assert_true(gguf_check_u32(&f, "llama.block_count") == 2 && gguf_check_u32(&f, "llama.feed_forward_length") == 20);
    assert_true(gguf_check_u32(&f, "llama.attention.head_count") == 6 && gguf_check_u32(&f, "llama.attention.head_count_kv") == 3);
    assert_true(gguf_check_u32(&f, "llama.attention.key_length") == 8 && gguf_check_u32(&f, "llama.attention.value_length") == 8);
    assert_true(gguf_check_u32(&f, "llama.rope.dimension_count") == 8 && gguf_check_f32(&f, "llama.rope.freq_base") == 12345.0);
    assert_true(!gguf_check_value(&f, "llama.rope.scaling.type") && gguf_check_u32(&f, "llama.vocab_size") == 37);
    assert_true(gguf_check_is(&f, "tokenizer.ggml.model", "no_vocab") && !gguf_check_tensor(&f, "output.weight"));
    assert_true(gguf_check_tensor(&f, "token_embd.weight")->ne[0] == 24 && gguf_check_tensor(&f, "token_embd.weight")->ne[1] == 37);
    gguf_check_close(&f);

    a.stack[STACK_DEC].block[1].G = 2;
    f = written(&a);
    assert_true(gguf_check_is(&f, "general.architecture", "deci") && gguf_check_length(&f, "deci.attention.head_count_kv") == 2);
    assert_true(gguf_check_i32(&f, "deci.attention.head_count_kv", 0) == 3 && gguf_check_i32(&f, "deci.attention.head_count_kv", 1) == 2);
    gguf_check_close(&f);
    arch_free(&a);
}

static void rotary_scaling(void **state)
{
    (void)state;
    struct arch a;
    small_arch(&a, 6, 3, DT_F32);
    a.rope.kind = ROPE_LINEAR;
    a.rope.factor = 4;
    struct gguf_file f = written(&a);
    assert_true(gguf_check_is(&f, "llama.rope.scaling.type", "linear") && gguf_check_f32(&f, "llama.rope.scaling.factor") == 4.0);
    gguf_check_close(&f);

    a.rope.kind = ROPE_YARN;
    a.rope.original_max_positions = 16;
    a.rope.beta_fast = 32;
    a.rope.beta_slow = 1;
    a.rope.attention_factor = 0.9;
    f = written(&a);
    assert_true(gguf_check_is(&f, "llama.rope.scaling.type", "yarn") && gguf_check_u32(&f, "llama.rope.scaling.original_context_length") == 16);
    assert_true(fabs(gguf_check_f32(&f, "llama.rope.scaling.attn_factor") - 0.9 / (0.1 * log(4) + 1)) <= 1e-6);
    gguf_check_close(&f);

    a.rope.kind = ROPE_LLAMA3;
    a.rope.low_freq_factor = 1;
    a.rope.high_freq_factor = 4;
    f = written(&a);
    const struct gguf_entry *t = gguf_check_tensor(&f, "rope_freqs.weight");
    assert_true(t && t->nd == 1 && t->ne[0] == 4 && t->type == 0);
    for (int i = 0; i < 4; i++) { /* theta 10000, 8 dims: wavelengths 2 pi 10^i against 16 / 4 and 16 / 1 */
        double wave = 2 * M_PI * pow(10, i), blend = (16 / wave - 1) / 3;
        double want = i == 0 ? 1 / ((1 - blend) / 4 + blend) : 4;
        assert_true(fabs((double)gguf_check_element(t, (uint64_t)i) - want) <= 1e-6);
    }
    gguf_check_close(&f);

    a.rope.kind = ROPE_LONGROPE;
    a.rope.long_factor = malloc(4 * sizeof(double));
    a.rope.short_factor = malloc(4 * sizeof(double));
    for (int i = 0; i < 4; i++) {
        a.rope.long_factor[i] = 2 + i;
        a.rope.short_factor[i] = 1 + i / 4.0;
    }
    f = written(&a);
    assert_true(gguf_check_element(gguf_check_tensor(&f, "rope_factors_long.weight"), 3) == 5.0f);
    assert_true(gguf_check_element(gguf_check_tensor(&f, "rope_factors_short.weight"), 3) == 1.75f);
    assert_true(fabs(gguf_check_f32(&f, "llama.rope.scaling.attn_factor") - 0.9) <= 1e-6);
    gguf_check_close(&f);
    arch_free(&a);
}

/* ---- choices --------------------------------------------------------------------------------------------------------- */

static enum code choose(const struct arch *a, struct ckpt_choice *choice) { return ckpt_choose(a, "x.gguf", HOME_AUTO, NULL, choice); }

static void choices(void **state)
{
    (void)state;
    struct arch a;
    struct ckpt_choice choice;
    small_arch(&a, 6, 3, DT_F32);
    assert_ok(choose(&a, &choice));
    assert_true(choice.home == HOME_GGUF && choice.exact && !choice.rewrite && strstr(choice.sentence, "architecture llama"));
    a.stack[STACK_DEC].block[0].window = 16;
    assert_ok(choose(&a, &choice));
    assert_true(!choice.exact && strstr(choice.sentence, "sliding window"));
    a.stack[STACK_DEC].block[0].window = 64; /* as long as the context */
    assert_ok(choose(&a, &choice));
    assert_true(choice.exact);
    a.attn_scale = 1;
    assert_ok(choose(&a, &choice));
    assert_true(choice.exact && choice.rewrite == REWRITE_SCALE_Q);
    a.attn_scale = 1 / sqrt(8);
    a.rope.kind = ROPE_DYNAMIC;
    a.rope.factor = 2;
    assert_ok(choose(&a, &choice));
    assert_true(!choice.exact);
    assert_ok(ckpt_choose(&a, "A.GGUF", HOME_AUTO, NULL, &choice)); /* by the names that the writers claim */
    assert_int_equal(choice.home, HOME_GGUF);
    a.stack[STACK_DEC].block[1].G = 1;
    assert_ok(ckpt_choose(&a, "a.hdf5", HOME_AUTO, NULL, &choice));
    assert_int_equal(choice.home, HOME_NATIVE);
    arch_free(&a);
}

static void refusals(void **state)
{
    (void)state;
    struct arch a;
    struct ckpt_choice choice;
    small_arch(&a, 6, 3, DT_F32);
#define REFUSED(change, undo, part)                             \
    do {                                                        \
        change;                                                 \
        assert_refused(choose(&a, &choice), ERR_UNSUPPORTED, part); \
        undo;                                                   \
    } while (0)
    REFUSED(a.mlp = MLP_RELU, a.mlp = MLP_SWIGLU, "MLP");
    REFUSED(a.embed_proj = 12, a.embed_proj = 0, "embedding");
    REFUSED(a.logit_softcap = 30, a.logit_softcap = 0, "logits");
    REFUSED(a.clip_qkv = 8, a.clip_qkv = 0, "clip");
    REFUSED(a.embed_scale = 3, a.embed_scale = 1, "embedding");
    REFUSED(a.rope.dims = 4, a.rope.dims = 8, "llama");
    REFUSED(a.stack[STACK_DEC].block[1].F = 24, a.stack[STACK_DEC].block[1].F = 20, "layers differ");
    REFUSED(a.stack[STACK_DEC].block[1].Dv = 4, a.stack[STACK_DEC].block[1].Dv = 8, "width");
    REFUSED(a.norm_place = NORM_POST_RESIDUAL, a.norm_place = NORM_PRE, "norms");
#undef REFUSED
    char *path = temp_path("refused.gguf"), *other = temp_path("short.gguf");
    a.mlp = MLP_RELU;
    struct ckpt_target target = {.path = path, .arch = &a};
    struct ckpt_writer *w;
    assert_refused(ckpt_target_check(&target), ERR_UNSUPPORTED, "llama.cpp");
    assert_refused(ckpt_create(&w, &target), ERR_UNSUPPORTED, "llama.cpp");
    a.mlp = MLP_SWIGLU;
    a.attn_scale = 1;
    assert_refused(ckpt_create(&w, &target), ERR_UNSUPPORTED, "rewritten");
    a.attn_scale = 1 / sqrt(8);
    small_write(path, &a, 1, 1, NULL);
    assert_refused(hf_opened(path), ERR_UNSUPPORTED, "written, not read");
    int input = fcntl(0, F_GETFD);
    assert_refused(ckpt_create(&w, &target), ERR_USAGE, "--force");
    assert_int_equal(fcntl(0, F_GETFD), input); /* nothing of others is closed */
    char *deep = temp_path("not/there/yet.gguf");
    small_write(deep, &a, 1, 1, NULL);
    assert_true(io_exists(deep));
    free(deep);
    temp_write("short.gguf", "GG", 2);
    assert_refused(hf_opened(other), ERR_UNSUPPORTED, "written, not read");
    assert_true(hf_no_temporaries());
    arch_free(&a);
    free(path);
    free(other);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_golden), cmocka_unit_test(any_order), cmocka_unit_test(metadata),
        cmocka_unit_test(rotary_scaling), cmocka_unit_test(choices), cmocka_unit_test(refusals),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
