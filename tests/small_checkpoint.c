#include "harness.h"
#include "small_checkpoint.h"

#include <math.h>

void small_arch(struct arch *a, int64_t H, int64_t G, enum dtype dtype)
{
    memset(a, 0, sizeof *a);
    assert_ok(arch_init(a, 2));
    snprintf(a->family, sizeof a->family, "llama");
    a->C = 24;
    a->V = a->original_vocab = 37;
    a->max_positions = 64;
    a->norm = NORM_RMS;
    a->norm_eps = 1e-5;
    a->pos = POS_ROPE;
    a->rope.dims = 8;
    a->rope.theta = 10000;
    a->mlp = MLP_SWIGLU;
    a->attn_scale = 1 / sqrt(8.0);
    a->tied = 1;
    a->bos = 1;
    a->eos = 2;
    a->dtype = dtype;
    for (int64_t l = 0; l < 2; l++) {
        struct arch_block *b = &a->stack[STACK_DEC].block[l];
        b->H = H;
        b->G = G;
        b->D = b->Dv = 8;
        b->F = 20;
    }
}

void small_write(const char *path, const struct arch *a, uint64_t seed, int64_t repeat, small_edit_fn *edit)
{
    struct ckpt_target target = { .path = path, .arch = a, .dtype = a->dtype, .force = 1 };
    struct ckpt_writer *w = NULL;
    assert_ok(ckpt_create(&w, &target));
    for (int i = 0; i < ckpt_writer_count(w); i++) {
        const struct ckpt_tensor *t = ckpt_writer_at(w, i);
        int64_t n = t->n[0] * t->n[1], head = 8 * t->n[1];
        float *x = malloc((size_t)n * sizeof *x);
        assert_non_null(x);
        random_normal_f32(x, n, 0, 0.3f, seed, random_stream_of(t->name), 0);
        for (int64_t j = 0; repeat > 1 && t->pool == POOL_KV && j < n / head; j++)
            memcpy(x + j * head, x + j / repeat * repeat * head, (size_t)head * sizeof *x);
        if (edit)
            edit(t, x);
        assert_ok(ckpt_write(w, t, 0, t->n[0], x, DT_F32));
        free(x);
    }
    assert_ok(ckpt_commit(w));
}

float *small_read(struct checkpoint *ck, const char *name)
{
    const struct ckpt_tensor *t = ckpt_find(ck, name);
    assert_non_null(t);
    float *x = malloc((size_t)(t->n[0] * t->n[1]) * sizeof *x);
    assert_non_null(x);
    assert_ok(ckpt_read(ck, t, 0, t->n[0], x, DT_F32));
    return x;
}
