/* What the paper's mean would start at: the source's layers with plainly averaged heads, run over the held-out tokens beside the
 * calibration. It shares the converted model's memory, before the converted layer is loaded. */
#include "calibrate_parts.h"

#include <math.h>
#include <string.h>

static int64_t first_held(const struct calibrating *c) { return c->t.sequences - c->t.held_out; }

/* Rows of hidden states follow each other from the first that is held out. */
static float *state(const struct calibrating *c, const struct span *s) { return c->mean + (s->row - c->fit_rows) * c->C; }

int64_t mean_beside_floats(const struct calibrating *c)
{
    int is_mean = c->o->method == MERGE_MEAN && c->o->refit == REFIT_NONE && c->o->grouping != GROUPING_SIMILAR;
    return c->plan->merges && !is_mean ? c->t.held_out * c->t.length * ckpt_arch(c->source)->C : 0;
}

enum code mean_beside_open(struct calibrating *c)
{
    int64_t n = mean_beside_floats(c);
    if (n == 0)
        return OK;
    TRY(spill_take(&c->spill, n, &c->mean));
    memcpy(c->mean, c->x0 + c->fit_rows * c->C, (size_t)n * sizeof *c->mean);
    return OK;
}

enum code merged_load(struct calibrating *c, int64_t layer, const struct attention_layer *merged)
{
    model_part_set(c->m1, layer);
    for (int i = 0; i < model_param_count(c->m1); i++) {
        const struct model_param *p = model_param_at(c->m1, i);
        if (!p->value.p)
            continue;
        int64_t n = 0;
        const double *from = merged->k && strstr(p->spec.name, ".attn.") ? attention_layer_tensor(merged, p->spec.name, &n) : NULL;
        if (from) {
            CHECK(n == p->count);
            for (int64_t k = 0; k < n; k++)
                view_f32(p->value)[k] = (float)from[k];
            continue;
        }
        const struct ckpt_tensor *in = ckpt_find(c->source, p->spec.name);
        CHECK(in && in->n[0] * in->n[1] == p->count);
        TRY(ckpt_read(c->source, in, 0, in->n[0], p->value.p, DT_F32));
    }
    return OK;
}

static enum code run(struct calibrating *c)
{
    struct span s = {0};
    while (span_next(c, &s, first_held(c), c->t.sequences)) {
        struct model_block_values v;
        TRY(model_block_attend(c->m1, span_batch(c, &s), state(c, &s), &v));
        TRY(model_block_finish(c->m1, state(c, &s), &v));
    }
    return OK;
}

enum code mean_beside_layer(struct calibrating *c, int64_t layer)
{
    struct attention_layer from = {0}, to = {0};
    int merges = c->plan->pooled[layer] < ckpt_arch(c->source)->stack[STACK_DEC].block[layer].G;
    if (!c->mean)
        return OK;
    enum code code = merges ? attention_layer_read(&from, c->source, layer) : OK;
    if (code == OK && merges)
        code = attention_layer_new(&to, ckpt_arch(c->source), layer, c->plan->pooled[layer]);
    if (code == OK && merges)
        code = merge_heads(&to, &from, NULL, MERGE_MEAN, NULL, NULL);
    attention_layer_free(&from);
    if (code == OK)
        code = merged_load(c, layer, &to);
    attention_layer_free(&to);
    return code == OK ? run(c) : code;
}

enum code mean_beside_loss(struct calibrating *c)
{
    struct calibration *r = c->result;
    struct span s = {0};
    double sum = 0;
    int64_t count = 0;
    r->loss_mean = c->mean || !c->plan->merges ? (double)NAN : r->loss_after;
    while (c->mean && span_next(c, &s, first_held(c), c->t.sequences))
        TRY(model_part_score(c->m0, span_batch(c, &s), state(c, &s), view_none(), &sum, &count));
    if (count > 0)
        r->loss_mean = sum / (double)count;
    return OK;
}
