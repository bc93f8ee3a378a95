/* What a layer costs at each legal number of heads: the original runs over the calibration's tokens, layer by layer; at each, its heads are
 * merged under the moments of the tokens that are not held out, the layer is fitted as the conversion will fit it (--refit), and its
 * output on held-out tokens is compared with the original's. Only the layer's own error is seen: its input is the original's. A refit costs
 * more than all else, so it takes a quarter of the tokens here: enough to tell layers apart. */
#include "budget.h"

#include <stdlib.h>
#include <string.h>

#include "calibrate_parts.h"
#include "calibrate_tokens.h"

#define FEW_TOKENS 8192

struct walk {
    struct calibrating c; /* m0 the original, m1 one merged layer */
    struct options o;     /* c.o */
    struct calibration result;
    float *mid0;          /* [N,C] the original's behind the attention, kept while c.mid0 is worked on; NULL: no refit */
    char *dir;
};

static void walk_close(struct walk *w)
{
    calibrating_close(&w->c);
    overlay_close(&w->result.overlay);
    free(w->result.layer);
    free(w->dir);
}

/* As the refit of a conversion finds them: calibrate.c. */
static enum code states_take(struct walk *w)
{
    struct calibrating *c = &w->c;
    const struct arch *a = ckpt_arch(c->source);
    int64_t NC = c->N * c->C, width = 0, refits = w->o.refit != REFIT_NONE;
    for (int64_t l = 0; refits && l < a->stack[STACK_DEC].L; l++) {
        int64_t one = refit_width(a, &a->stack[STACK_DEC].block[l]);
        width = one > width ? one : width;
    }
    c->spill = (struct spill){.dir = w->dir, .on_disk = (NC * (refits ? 6 : 3) + c->N * width) * 4 > host_memory_total() / 4};
    w->result.overlay.memory = (struct spill){.dir = w->dir};
    TRY(spill_take(&c->spill, NC, &c->x0));
    TRY(spill_take(&c->spill, NC, &c->x1));
    TRY(spill_take(&c->spill, NC, &c->next0));
    if (!refits)
        return OK;
    TRY(spill_take(&c->spill, NC, &w->mid0));
    TRY(spill_take(&c->spill, NC, &c->mid0));
    TRY(spill_take(&c->spill, NC, &c->mid1));
    return spill_take(&c->spill, c->N * width, &c->features);
}

static enum code walk_open(struct walk *w)
{
    struct calibrating *c = &w->c;
    const struct arch *a = ckpt_arch(c->source);
    struct device_options device = {(int)w->o.threads};
    TRY(refit_check(a, (enum refit)w->o.refit));
    TRY(backend_find("cpu", &c->be));
    host_threads_set((int)w->o.threads);
    TRY(c->be->device_open(&c->dev, &device));
    int64_t asked = w->o.calibration_tokens ? w->o.calibration_tokens : CALIBRATION_TOKENS;
    if (w->o.refit != REFIT_NONE && asked > FEW_TOKENS)
        w->o.calibration_tokens = asked / 4 > FEW_TOKENS ? asked / 4 : FEW_TOKENS;
    TRY(calibration_tokens_open(&c->t, c->source, &w->o, 1));
    c->C = a->C;
    c->N = c->t.sequences * c->t.length;
    c->fit_rows = (c->t.sequences - c->t.held_out) * c->t.length;
    c->batch_rows = calibration_batch(&c->t);
    w->dir = calibration_directory(w->o.target);
    w->result.layer = calloc((size_t)a->stack[STACK_DEC].L, sizeof *w->result.layer);
    c->part = malloc((size_t)(c->batch_rows * c->t.length * c->C) * sizeof *c->part);
    if (!w->dir || !w->result.layer || !c->part)
        return fail(ERR_MEMORY, "out of memory for a batch of hidden states");
    struct model_options mo = {.dtype = DT_F32, .B = c->batch_rows, .T = c->t.length, .layered = 1};
    TRY(batch_alloc(&c->batch, c->batch_rows, c->t.length));
    TRY(states_take(w));
    TRY(arch_copy(&c->to, a));
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

/* next0 and mid0 from x0, and the moments of the attention's input. */
static enum code original(struct walk *w, int64_t layer, struct gram *moments)
{
    struct calibrating *c = &w->c;
    struct span s = {0};
    TRY(model_part_load(c->m0, c->source, layer));
    while (span_next(c, &s, 0, c->t.sequences)) {
        struct model_block_values v;
        TRY(model_block_attend(c->m0, span_batch(c, &s), rows_at(c->x0, s.row, c->C), &v));
        if (s.row < c->fit_rows)
            gram_add(moments, view_f32(v.n), c->C, NULL, 0, s.rows);
        TRY(model_block_finish(c->m0, rows_at(c->next0, s.row, c->C), &v));
        if (w->mid0 && v.mid.p)
            memcpy(rows_at(w->mid0, s.row, c->C), v.mid.p, (size_t)(s.rows * c->C) * sizeof(float));
    }
    moments_finish(moments);
    return OK;
}

/* The layer in m1 over held-out tokens: its squared error as a share. */
static enum code distance(struct walk *w, double *share)
{
    struct calibrating *c = &w->c;
    struct span s = {0};
    double wrong = 0, size = 0;
    while (span_next(c, &s, c->t.sequences - c->t.held_out, c->t.sequences)) {
        struct model_block_values v;
        const float *right = rows_at(c->next0, s.row, c->C);
        TRY(model_block_attend(c->m1, span_batch(c, &s), rows_at(c->x0, s.row, c->C), &v));
        TRY(model_block_finish(c->m1, c->part, &v));
        for (int64_t i = 0; i < s.rows * c->C; i++) {
            double d = (double)c->part[i] - (double)right[i];
            wrong += d * d;
            size += (double)right[i] * (double)right[i];
        }
    }
    *share = wrong / size;
    return OK;
}

/* The merged layer in m1, fitted; m0's heads in the same order. */
static enum code fitted(struct walk *w, const struct attention_layer *to, const int64_t *members, double *share)
{
    struct calibrating *c = &w->c;
    TRY(merged_load(c, to->layer, to));
    if (w->o.refit == REFIT_NONE)
        return distance(w, share);
    if (w->o.refit == REFIT_ALL) {
        TRY(model_part_load(c->m0, c->source, to->layer));
        TRY(heads_in_order(c, to->layer, members));
    }
    memcpy(c->x1, c->x0, (size_t)(c->N * c->C) * sizeof *c->x1);
    memcpy(c->mid0, w->mid0, (size_t)(c->N * c->C) * sizeof *c->mid0);
    enum code code = refit_layer(c, to->layer);
    struct spill empty = {.dir = w->dir};
    overlay_close(&w->result.overlay);
    w->result.overlay.memory = empty;
    *share = w->result.layer[to->layer].error * w->result.layer[to->layer].error;
    return code;
}

static enum code option_cost(struct walk *w, const struct attention_layer *from, const struct gram *moments, struct budget_option *option)
{
    struct calibrating *c = &w->c;
    struct merge_input input = {.moments = moments->a, .seed = (uint64_t)w->o.seed, .init_sd = initializer_range(ckpt_arch(c->source))};
    struct model_options mo = {.dtype = DT_F32, .B = c->batch_rows, .T = c->t.length, .layered = 1};
    struct attention_layer to = {0};
    enum merge_method method = (enum merge_method)w->o.method;
    int64_t *members = malloc((size_t)from->G * sizeof *members);
    enum code code = members ? attention_layer_new(&to, ckpt_arch(c->source), from->layer, option->G) : fail(ERR_MEMORY, "out of memory for a layer's heads");
    for (int64_t i = 0; code == OK && i < from->G; i++)
        members[i] = i;
    if (code == OK && w->o.grouping == GROUPING_SIMILAR)
        code = merge_grouping(from, &input, method, option->G, members);
    if (code == OK)
        code = merge_heads(&to, from, &input, method, members, NULL);
    c->to.stack[STACK_DEC].block[from->layer].G = option->G;
    if (code == OK)
        code = model_open(&c->m1, &c->to, c->be, c->dev, &mo);
    if (code == OK)
        code = fitted(w, &to, members, &option->cost);
    model_close(c->m1);
    c->m1 = NULL;
    attention_layer_free(&to);
    free(members);
    return code;
}

static enum code layer_costs(struct walk *w, int64_t layer, struct budget_layer *y)
{
    struct calibrating *c = &w->c;
    struct gram moments;
    struct attention_layer from = {0};
    TRY(gram_open(&moments, c->C, 1, 0));
    enum code code = original(w, layer, &moments);
    if (code == OK && y->n > 1)
        code = attention_layer_read(&from, c->source, layer);
    for (int i = 1; code == OK && i < y->n; i++)
        code = option_cost(w, &from, &moments, &y->option[i]);
    attention_layer_free(&from);
    gram_close(&moments);
    float *swap = c->x0;
    c->x0 = c->next0;
    c->next0 = swap;
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
    struct walk w = {.o = *o};
    w.c = (struct calibrating){.o = &w.o, .source = source, .result = &w.result};
    enum code code = costs(&w, b);
    walk_close(&w);
    return code;
}
