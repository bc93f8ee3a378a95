/* What a layer costs at each legal number of heads: the original runs over the calibration's tokens, layer by layer; at each, its heads are
 * merged under the moments of the tokens that are not held out, the merged heads are copied out to the original's number (the same
 * function, so one model in memory serves all), and the layer's output on held-out tokens is compared with the original's. */
#include "budget.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calibrate_parts.h"
#include "calibrate_tokens.h"

struct walk {
    struct calibrating c; /* its m0, tokens, x0 */
    float *held;          /* [held-out rows, C] hidden states before the layer */
    float *out;           /* [batch, C] */
};

static void walk_close(struct walk *w)
{
    struct calibrating *c = &w->c;
    model_close(c->m0);
    if (c->dev)
        c->be->device_close(c->dev);
    calibration_tokens_close(&c->t);
    batch_free(&c->batch);
    spill_close(&c->spill);
    free(w->out);
}

static enum code walk_open(struct walk *w)
{
    struct calibrating *c = &w->c;
    const struct arch *a = ckpt_arch(c->source);
    struct device_options device = {(int)c->o->threads};
    TRY(backend_find("cpu", &c->be));
    host_threads_set((int)c->o->threads);
    TRY(c->be->device_open(&c->dev, &device));
    TRY(calibration_tokens_open(&c->t, c->source, c->o, 1));
    c->C = a->C;
    c->N = c->t.sequences * c->t.length;
    c->fit_rows = (c->t.sequences - c->t.held_out) * c->t.length;
    c->batch_rows = calibration_batch(&c->t);
    struct model_options mo = {.dtype = DT_F32, .B = c->batch_rows, .T = c->t.length, .layered = 1};
    int64_t states = (2 * c->N - c->fit_rows) * c->C;
    c->spill = (struct spill){.dir = "/tmp", .on_disk = states * 4 > host_memory_total() / 4};
    TRY(batch_alloc(&c->batch, c->batch_rows, c->t.length));
    TRY(spill_take(&c->spill, c->N * c->C, &c->x0));
    TRY(spill_take(&c->spill, (c->N - c->fit_rows) * c->C, &w->held));
    w->out = malloc((size_t)(c->batch_rows * c->t.length * c->C) * sizeof *w->out);
    if (!w->out)
        return fail(ERR_MEMORY, "out of memory for a batch of hidden states");
    return model_open(&c->m0, a, c->be, c->dev, &mo);
}

static enum code embed(struct calibrating *c)
{
    struct span s = {0};
    TRY(model_part_load(c->m0, c->source, MODEL_PART_EMBED));
    while (span_next(c, &s, 0, c->t.sequences))
        TRY(model_part_embed(c->m0, span_batch(c, &s), rows_at(c->x0, s.row, c->C)));
    return OK;
}

/* x0 becomes the layer's output, `held` its input; moments of the attention's input. */
static enum code original(struct walk *w, int64_t layer, struct gram *moments)
{
    struct calibrating *c = &w->c;
    struct span s = {0};
    TRY(model_part_load(c->m0, c->source, layer));
    memcpy(w->held, c->x0 + c->fit_rows * c->C, (size_t)((c->N - c->fit_rows) * c->C) * sizeof *w->held);
    while (span_next(c, &s, 0, c->t.sequences)) {
        struct model_block_values v;
        TRY(model_block_attend(c->m0, span_batch(c, &s), rows_at(c->x0, s.row, c->C), &v));
        if (s.row < c->fit_rows)
            gram_add(moments, view_f32(v.n), c->C, NULL, 0, s.rows);
        TRY(model_block_finish(c->m0, rows_at(c->x0, s.row, c->C), &v));
    }
    moments_finish(moments);
    return OK;
}

/* The layer's attention with each merged head as often as it has readers in the original's form. */
static void load_expanded(struct calibrating *c, const struct attention_layer *to, int64_t repeat)
{
    for (int i = 0; i < model_param_count(c->m0); i++) {
        const struct model_param *p = model_param_at(c->m0, i);
        int64_t n = 0;
        const double *from = p->value.p && strstr(p->spec.name, ".attn.") ? attention_layer_tensor(to, p->spec.name, &n) : NULL;
        float *x = from ? view_f32(p->value) : NULL;
        int64_t head = from && n < p->count ? n / to->G : n, copies = from && n < p->count ? repeat : 1;
        CHECK(!from || n * copies == p->count);
        for (int64_t k = 0; from && k < p->count; k++)
            x[k] = (float)from[k / (head * copies) * head + k % head];
    }
}

static enum code distance(struct walk *w, double *share)
{
    struct calibrating *c = &w->c;
    struct span s = {0};
    double wrong = 0, size = 0;
    while (span_next(c, &s, c->t.sequences - c->t.held_out, c->t.sequences)) {
        struct model_block_values v;
        const float *right = rows_at(c->x0, s.row, c->C);
        TRY(model_block_attend(c->m0, span_batch(c, &s), w->held + (s.row - c->fit_rows) * c->C, &v));
        TRY(model_block_finish(c->m0, w->out, &v));
        for (int64_t i = 0; i < s.rows * c->C; i++) {
            double d = (double)w->out[i] - (double)right[i];
            wrong += d * d;
            size += (double)right[i] * (double)right[i];
        }
    }
    *share = wrong / size;
    return OK;
}

static enum code merged(struct walk *w, const struct attention_layer *from, const struct gram *moments, int64_t G, double *share)
{
    struct calibrating *c = &w->c;
    struct merge_input input = {.moments = moments->a, .seed = (uint64_t)c->o->seed, .init_sd = initializer_range(ckpt_arch(c->source))};
    struct attention_layer to = {0};
    enum merge_method method = (enum merge_method)c->o->method;
    int64_t *members = malloc((size_t)from->G * sizeof *members);
    enum code code = members ? attention_layer_new(&to, ckpt_arch(c->source), from->layer, G) : fail(ERR_MEMORY, "out of memory for a layer's heads");
    for (int64_t i = 0; code == OK && i < from->G; i++)
        members[i] = i;
    if (code == OK && c->o->grouping == GROUPING_SIMILAR)
        code = merge_grouping(from, &input, method, G, members);
    if (code == OK)
        code = merge_heads(&to, from, &input, method, members, NULL);
    if (code == OK) {
        load_expanded(c, &to, from->G / G);
        code = distance(w, share);
    }
    attention_layer_free(&to);
    free(members);
    return code;
}

static enum code layer_costs(struct walk *w, int64_t layer, struct budget_layer *y)
{
    struct gram moments;
    struct attention_layer from = {0};
    TRY(gram_open(&moments, w->c.C, 1, 0));
    enum code code = original(w, layer, &moments);
    if (code == OK && y->n > 1)
        code = attention_layer_read(&from, w->c.source, layer);
    for (int i = 1; code == OK && i < y->n; i++)
        code = merged(w, &from, &moments, y->option[i].G, &y->option[i].cost);
    attention_layer_free(&from);
    gram_close(&moments);
    return code;
}

static enum code costs(struct walk *w, struct budget *b)
{
    struct progress p;
    enum code code = OK;
    TRY(walk_open(w));
    TRY(embed(&w->c));
    progress_begin(&p, "budget", b->L);
    for (int64_t l = 0; code == OK && l < b->L; l++) {
        progress_update(&p, l, "layers");
        code = layer_costs(w, l, &b->layer[l]);
    }
    progress_end(&p);
    return code;
}

enum code budget_costs(struct budget *b, struct checkpoint *source, const struct options *o)
{
    struct walk w = {.c = {.o = o, .source = source}};
    enum code code = costs(&w, b);
    walk_close(&w);
    return code;
}
