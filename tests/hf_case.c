#include "hf_case.h"

#include <math.h>

#include "harness.h"

void hf_arch(struct arch *a, int tied)
{
    assert_ok(arch_init(a, 3));
    memcpy(a->family, "llama", sizeof "llama");
    a->C = 24;
    a->V = a->original_vocab = 31;
    a->max_positions = 64;
    a->norm = NORM_RMS;
    a->norm_eps = 1e-5;
    a->mlp = MLP_SWIGLU;
    a->pos = POS_ROPE;
    a->rope.dims = 10; /* not C / H */
    a->rope.theta = 10000;
    a->attn_scale = 1 / sqrt(10.0);
    a->tied = tied;
    for (int l = 0; l < 3; l++) {
        struct arch_block *b = &a->stack[STACK_DEC].block[l];
        b->H = 6;
        b->G = 3;
        b->D = b->Dv = 10;
        b->F = 20;
    }
}

void hf_fill(struct ckpt_writer *w)
{
    for (int i = 0; i < ckpt_writer_count(w); i++) {
        const struct ckpt_tensor *t = ckpt_writer_at(w, i);
        int64_t n = t->n[0] * t->n[1];
        float *x = malloc((size_t)n * sizeof *x);
        random_normal_f32(x, n, 0, 1, 7, random_stream_of(t->name), 0);
        int64_t half = t->n[0] / 2; /* second half first: order is free */
        assert_ok(ckpt_write(w, t, half, t->n[0] - half, x + half * t->n[1], DT_F32));
        assert_ok(ckpt_write(w, t, 0, half, x, DT_F32));
        free(x);
    }
}

/* A random model at a path below the temporary directory; the caller frees the path. */
char *hf_make(const char *name, int tied, enum dtype dtype, int64_t shard_bytes)
{
    struct arch a;
    struct ckpt_writer *w;
    char *path = temp_path(name);
    hf_arch(&a, tied);
    struct ckpt_target target = {.path = path, .arch = &a, .dtype = dtype, .shard_bytes = shard_bytes, .force = 1};
    assert_ok(ckpt_create(&w, &target));
    hf_fill(w);
    assert_ok(ckpt_add_file(w, "tokenizer.json", "{\"a\": 1}\n", 9));
    assert_ok(ckpt_add_file(w, "LICENSE.txt", "", 0));
    assert_ok(ckpt_add_file(w, "chat_template.jinja", "x\0y", 3));
    assert_ok(ckpt_commit(w));
    arch_free(&a);
    return path;
}

void hf_copy_rows(struct checkpoint *ck, struct ckpt_writer *w, int64_t step)
{
    for (int i = 0; i < ckpt_writer_count(w); i++) {
        const struct ckpt_tensor *to = ckpt_writer_at(w, i), *from = ckpt_find(ck, to->name);
        assert_non_null(from);
        char *buffer = malloc((size_t)(step * from->n[1] * 8));
        for (int64_t r = 0; r < to->n[0]; r += step) {
            int64_t rows = to->n[0] - r < step ? to->n[0] - r : step;
            assert_ok(ckpt_read(ck, from, r, rows, buffer, DT_NONE));
            assert_ok(ckpt_write(w, to, r, rows, buffer, from->dtype));
        }
        free(buffer);
    }
}

enum code hf_copy(const char *from, const char *to, enum dtype dtype, int64_t shard_bytes, int force)
{
    struct checkpoint *ck;
    struct ckpt_writer *w;
    TRY(ckpt_open(&ck, from, NULL));
    struct ckpt_target target = {.path = to, .arch = ckpt_arch(ck), .source = ck, .dtype = dtype, .shard_bytes = shard_bytes, .force = force};
    enum code c = ckpt_create(&w, &target);
    if (c == OK) {
        hf_copy_rows(ck, w, 7);
        c = ckpt_commit(w);
    }
    ckpt_close(ck);
    return c;
}

/* noinline: gcc 12 else believes the result points to a local of it */
__attribute__((noinline)) char *hf_slurp(const char *dir, const char *name, size_t *n)
{
    char *path = io_join(dir, name), *bytes;
    assert_ok(io_read_all(path, 1 << 26, &bytes, n));
    free(path);
    return bytes;
}

void hf_same_file(const char *a, const char *b, const char *name)
{
    size_t n, m;
    char *x = hf_slurp(a, name, &n), *y = hf_slurp(b, name, &m);
    assert_int_equal(n, m);
    assert_memory_equal(x, y, n);
    free(x);
    free(y);
}

void hf_same_dir(const char *a, const char *b)
{
    char **names, **others;
    int n, m;
    assert_ok(io_list(a, &names, &n));
    assert_ok(io_list(b, &others, &m));
    assert_int_equal(n, m);
    for (int i = 0; i < n; i++)
        hf_same_file(a, b, names[i]);
    io_names_free(names, n);
    io_names_free(others, m);
}

void hf_put(const char *dir, const char *name, const void *bytes, size_t n)
{
    char *path = io_join(dir, name);
    assert_ok(io_write_atomic(path, bytes, n));
    free(path);
}

int hf_no_temporaries(void)
{
    char **names;
    int n, none = 1;
    assert_ok(io_list(temp_dir(), &names, &n));
    for (int i = 0; i < n; i++)
        none = none && !strstr(names[i], ".tmp-") && !strstr(names[i], ".old-");
    io_names_free(names, n);
    return none;
}

enum code hf_opened(const char *path)
{
    struct checkpoint *ck;
    enum code c = ckpt_open(&ck, path, NULL);
    if (c == OK)
        ckpt_close(ck);
    return c;
}
