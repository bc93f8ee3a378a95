#include "native_model.h"

#include "harness.h"

void native_arch(struct arch *a, int64_t C, int per_layer)
{
    assert_ok(arch_init(a, 2));
    snprintf(a->family, sizeof a->family, "llama");
    a->C = C;
    a->V = 37;
    a->max_positions = 64;
    a->norm = NORM_RMS;
    a->norm_eps = 1e-5;
    a->pos = POS_ROPE;
    a->rope.dims = 4;
    a->rope.theta = 10000;
    a->mlp = MLP_SWIGLU;
    a->attn_scale = 0.5;
    a->bos = 1;
    a->eos = 2;
    for (int64_t l = 0; l < 2; l++) {
        struct arch_block *b = &a->stack[STACK_DEC].block[l];
        b->H = 6;
        b->G = l && per_layer ? 2 : 3;
        b->D = b->Dv = 4;
        b->F = 19;
    }
    assert_ok(arch_check(a, "native_arch"));
}

float model_value(const char *tensor, int64_t i)
{
    return (float)((double)(int64_t)(hash64(tensor, strlen(tensor)) % 1000) / 500 - 1 + (double)(i % 8191) / 4096);
}

void model_fill(struct ckpt_writer *w, int64_t rows)
{
    for (int i = 0; i < ckpt_writer_count(w); i++) {
        const struct ckpt_tensor *t = ckpt_writer_at(w, i);
        float *block = malloc((size_t)(t->n[0] * t->n[1]) * sizeof *block);
        for (int64_t k = 0; k < t->n[0] * t->n[1]; k++)
            block[k] = model_value(t->name, k);
        for (int64_t row = 0; row < t->n[0]; row += rows) {
            int64_t n = t->n[0] - row < rows ? t->n[0] - row : rows;
            assert_ok(ckpt_write(w, t, row, n, block + row * t->n[1], DT_F32));
        }
        free(block);
    }
}

void model_make(const char *path, const struct arch *a, enum dtype dtype, int compress)
{
    struct ckpt_writer *w;
    struct ckpt_target target = {.path = path, .arch = a, .dtype = dtype, .compress = compress, .force = 1};
    assert_ok(ckpt_create(&w, &target));
    assert_ok(ckpt_add_file(w, "tokenizer.json", "{\"a\":\0\"b\"}", 10));
    model_fill(w, 5);
    assert_ok(ckpt_commit(w));
}

void model_check(struct checkpoint *ck, enum dtype rounded)
{
    for (int i = 0; i < ckpt_count(ck); i++) {
        const struct ckpt_tensor *t = ckpt_at(ck, i);
        int64_t n = t->n[0] * t->n[1];
        float *got = malloc((size_t)n * 4), *want = malloc((size_t)n * 4);
        uint16_t half;
        fill_nan(got, n);
        for (int64_t k = 0; k < n; k++) {
            want[k] = model_value(t->name, k);
            convert_elements(&half, rounded == DT_F16 ? DT_F16 : DT_BF16, &want[k], DT_F32, 1);
            if (rounded == DT_F16 || rounded == DT_BF16)
                convert_elements(&want[k], DT_F32, &half, rounded, 1);
        }
        for (int64_t row = 0; row < t->n[0]; row += 7) {
            int64_t rows = t->n[0] - row < 7 ? t->n[0] - row : 7;
            assert_ok(ckpt_read(ck, t, row, rows, got + row * t->n[1], DT_F32));
        }
        if (memcmp(got, want, (size_t)n * 4))
            printf("tensor %s differs\n", t->name);
        assert_memory_equal(got, want, (size_t)n * 4);
        free(got);
        free(want);
    }
}

void model_convert(const char *from, const char *to, enum dtype dtype)
{
    struct checkpoint *ck;
    struct ckpt_writer *w;
    assert_ok(ckpt_open(&ck, from, NULL));
    struct ckpt_target target = {.path = to, .arch = ckpt_arch(ck), .source = ck, .dtype = dtype, .force = 1};
    assert_ok(ckpt_create(&w, &target));
    for (int i = 0; i < ckpt_writer_count(w); i++) {
        const struct ckpt_tensor *t = ckpt_writer_at(w, i), *s = ckpt_find(ck, t->name);
        void *block = malloc((size_t)s->bytes);
        assert_ok(ckpt_read(ck, s, 0, s->n[0], block, DT_NONE));
        assert_ok(ckpt_write(w, t, 0, t->n[0], block, s->dtype));
        free(block);
    }
    assert_ok(ckpt_commit(w));
    ckpt_close(ck);
}

/* ---- steps -------------------------------------------------------------------------------------------------------- */

static void add_array(struct step_made *m, const char *name, int nd, int64_t n0, int64_t n1, int64_t step)
{
    struct step_array *a = &m->arrays[m->n++];
    memset(a, 0, sizeof *a);
    snprintf(a->name, sizeof a->name, "%s", name);
    a->dtype = DT_F32;
    a->nd = nd;
    a->n[0] = n0;
    a->n[1] = n1;
    float *p = a->p = malloc((size_t)(n0 * n1) * 4);
    for (int64_t i = 0; i < n0 * n1; i++)
        p[i] = model_value(strncmp(name, "param/", 6) ? name : name + 6, i + 17 * step);
}

void step_make(struct step_made *m, const struct arch *a, int64_t step)
{
    struct tensor_spec *specs;
    int n;
    assert_ok(arch_tensors(a, &specs, &n));
    m->arrays = calloc((size_t)n + 2, sizeof *m->arrays);
    m->n = 0;
    for (int i = 0; i < n; i++) {
        char name[80];
        snprintf(name, sizeof name, "param/%s", specs[i].name);
        add_array(m, name, specs[i].nd, specs[i].n[0], specs[i].n[1], step);
    }
    add_array(m, "m/flat", 1, 101, 1, step);
    add_array(m, "v/embed.weight", 2, a->V, a->C, step);
    free(specs);
}

void step_unmake(struct step_made *m)
{
    for (int i = 0; i < m->n; i++)
        free(m->arrays[i].p);
    free(m->arrays);
}

enum code step_put(const char *run, const struct arch *a, int64_t step, int keep)
{
    struct step_made m;
    step_make(&m, a, step);
    json_t *meta = json_pack("{s:I, s:f, s:s}", "position", (json_int_t)(3 * step), "lr", 0.1, "isa", "plain");
    struct step_content content = {.step = step, .arch = a, .arrays = m.arrays, .n_arrays = m.n, .meta = meta};
    enum code c = step_save(run, &content, keep);
    json_decref(meta);
    step_unmake(&m);
    return c;
}

int64_t step_found(const char *path, const struct arch *a)
{
    struct step_reader *r;
    struct step_made m;
    int found;
    if (step_open(&r, path, &found) != OK)
        return -2;
    if (!found)
        return -1;
    int64_t step = step_number(r);
    step_make(&m, a, step);
    assert_int_equal(json_integer_value(json_object_get(step_meta(r), "position")), 3 * step);
    assert_int_equal(step_arch(r)->C, a->C);
    for (int i = 0; i < m.n; i++) {
        struct step_array got = m.arrays[i];
        size_t bytes = (size_t)(got.n[0] * got.n[1]) * 4;
        got.p = malloc(bytes);
        fill_nan(got.p, got.n[0] * got.n[1]);
        assert_ok(step_read(r, &got));
        assert_memory_equal(got.p, m.arrays[i].p, bytes);
        free(got.p);
    }
    step_unmake(&m);
    step_close(r);
    return step;
}
