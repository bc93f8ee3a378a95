/* See model_fixture.h. */
#include "model_fixture.h"

#include <math.h>

void fixture_arch(struct arch *a)
{
    assert_ok(arch_init(a, 2));
    snprintf(a->family, sizeof a->family, "llama");
    a->C = 24;
    a->V = 37;
    a->max_positions = 64;
    a->norm = NORM_RMS;
    a->norm_eps = 1e-5;
    a->norm_place = NORM_PRE;
    a->residual = RESIDUAL_SEQUENTIAL;
    a->pos = POS_ROPE;
    a->rope.dims = 8;
    a->rope.theta = 10000.0;
    a->rope.kind = ROPE_DEFAULT;
    a->mlp = MLP_SWIGLU;
    a->attn_scale = 1.0 / sqrt(8.0);
    a->tied = 1;
    a->dtype = DT_F32;
    for (int l = 0; l < 2; l++) {
        struct arch_block *b = &a->stack[STACK_DEC].block[l];
        b->H = 6;
        b->G = 3;
        b->D = b->Dv = 8;
        b->F = 20;
    }
}

struct model_options tiny_options(int train)
{
    struct model_options o = {.train = train, .dtype = DT_F32, .B = TINY_B, .T = TINY_T};
    return o;
}

/* Documents of uneven length, targets across a boundary and two others masked. */
static int64_t fill_batch(struct batch *b, int64_t V)
{
    int64_t valid = 0;
    for (int64_t i = 0; i < b->B * b->T; i++) {
        int64_t row = i / b->T, t = i % b->T, cut = row == 0 ? 4 : 9, second = t >= cut;
        b->ids[i] = (int32_t)random_int(77, (uint64_t)i, 0, V - 1);
        b->segments[i] = (int32_t)second;
        b->positions[i] = (int32_t)(second ? t - cut : t);
        b->targets[i] = t == cut - 1 || i == 2 || i == 17 ? -1 : (int32_t)random_int(78, (uint64_t)i, 0, V - 1);
        valid += b->targets[i] >= 0;
    }
    return valid;
}

void tiny_upload(const struct tiny *t)
{
    for (int i = 0; i < t->ref.count; i++) {
        const struct model_param *p = model_param_find(t->m, t->ref.tensor[i].name);
        assert_non_null(p);
        assert_int_equal(p->count, t->ref.tensor[i].n);
        convert_elements(p->value.p, p->value.dtype, t->ref.tensor[i].p, DT_F64, (size_t)p->count);
    }
}

void tiny_open(struct tiny *t, struct arch *arch, const struct model_options *options)
{
    struct device_options device = {0};
    memset(t, 0, sizeof *t);
    t->arch = *arch;
    assert_ok(backend_find("cpu", &t->be));
    assert_ok(t->be->device_open(&t->dev, &device));
    reference_model_init(&t->ref, &t->arch);
    reference_model_fill(&t->ref, 5);
    assert_ok(model_open(&t->m, &t->arch, t->be, t->dev, options));
    tiny_upload(t);
    assert_ok(batch_alloc(&t->batch, TINY_B, TINY_T));
    t->valid = fill_batch(&t->batch, arch->V);
}

void tiny_close(struct tiny *t)
{
    model_close(t->m);
    t->be->device_close(t->dev);
    reference_model_free(&t->ref);
    batch_free(&t->batch);
    arch_free(&t->arch);
}

double tiny_reference_loss(const struct tiny *t, double *logp)
{
    const struct batch *b = &t->batch;
    return reference_loss(&t->ref, b->B, b->T, b->ids, b->positions, b->segments, b->targets, logp);
}
