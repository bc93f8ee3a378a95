/* The walk of a calibration. For each layer, with hidden states of all tokens at hand:
 *
 *   original   x0 -> moments of the attention's input; x0 -> next0, mid0
 *   merge      of the source's heads under those moments (layers.c)
 *   converted  refit none: held-out rows alone, for the loss. Else x1 -> fits of the layer's maps -> x1 (refit.c)
 *
 * Only one layer of either model is in memory. Moments are those of the original's hidden states, the fits see the converted ones, so
 * that a layer repairs also what earlier layers left. The merged and fitted tensors go into the overlay. */
#include "calibrate_parts.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calibrate_tokens.h"

#define BATCH_TOKENS 2048

const char *refit_name(enum refit r)
{
    static const char *const names[] = {"none", "output", "block", "all"};
    return names[r];
}

/* ---- sizes ---- */

int64_t calibration_batch(const struct calibration_tokens *t)
{
    int64_t rows = BATCH_TOKENS / t->length;
    return rows < 1 ? 1 : rows > t->sequences ? t->sequences : rows;
}

/* Floats by token kept for all tokens. */
static int64_t state_width(const struct arch *a, const struct options *o)
{
    int64_t width = 2 * a->C, most = 0;
    if (o->refit == REFIT_NONE)
        return width;
    for (int64_t l = 0; l < a->stack[STACK_DEC].L; l++) {
        int64_t w = refit_width(a, &a->stack[STACK_DEC].block[l]);
        most = w > most ? w : most;
    }
    return width + 3 * a->C + most;
}

static int64_t overlay_bytes(const struct arch *a, const struct plan *plan, const struct options *o)
{
    int64_t bytes = 0;
    for (int64_t l = 0; l < a->stack[STACK_DEC].L; l++) {
        const struct arch_block *b = &a->stack[STACK_DEC].block[l];
        bytes += (2 * b->H + 2 * plan->pooled[l]) * b->D * a->C * 4;
        bytes += o->refit >= REFIT_BLOCK ? b->F * a->C * 4 : 0;
    }
    return bytes;
}

static struct model_options layered_options(const struct calibration_tokens *t)
{
    struct model_options m = {.dtype = DT_F32, .B = calibration_batch(t), .T = t->length, .layered = 1};
    return m;
}

static enum code sizes(struct calibration_size *s, const struct calibrating *c)
{
    const struct arch *a = ckpt_arch(c->source);
    struct model_options mo = layered_options(&c->t);
    struct model_memory m;
    int64_t layer = 0, states = c->t.sequences * c->t.length * state_width(a, c->o) * 4 + overlay_bytes(a, c->plan, c->o) + mean_beside_floats(c) * 4;
    TRY(model_measure(a, c->be, c->dev, &mo, &m));
    for (int64_t l = 0; l < a->stack[STACK_DEC].L; l++) {
        const struct arch_block *b = &a->stack[STACK_DEC].block[l];
        int64_t merge = merge_bytes(a, l, c->plan->pooled[l]), fit = c->o->refit == REFIT_NONE ? 0 : 3 * gram_bytes(refit_width(a, b), a->C);
        layer = merge > layer ? merge : layer;
        layer = fit > layer ? fit : layer;
        int64_t queries = c->o->refit == REFIT_ALL ? refit_scores_bytes(b, c->plan->pooled[l], c->t.length) + gram_bytes(a->C, b->H * b->D) : 0;
        layer = queries > layer ? queries : layer;
        int64_t newton = c->o->refit == REFIT_ALL ? refit_newton_bytes(a, b, c->plan->pooled[l], c->t.length, (c->t.sequences - c->t.held_out) * c->t.length) : 0;
        layer = newton > layer ? newton : layer;
    }
    int large = states > host_memory_total() / 4;
    *s = (struct calibration_size){c->t.sequences, c->t.held_out, c->t.length, 0, large ? states : 0};
    s->memory = 2 * (m.parameters + m.activations + m.scratch) + layer + (large ? 0 : states);
    return OK;
}

/* ---- opening ---- */

void calibrating_close(struct calibrating *c)
{
    model_close(c->m0);
    model_close(c->m1);
    if (c->dev)
        c->be->device_close(c->dev);
    calibration_tokens_close(&c->t);
    batch_free(&c->batch);
    spill_close(&c->spill);
    arch_free(&c->to);
    free(c->part);
}

static enum code device_open(struct calibrating *c)
{
    struct device_options device = {(int)c->o->threads};
    TRY(refit_check(ckpt_arch(c->source), (enum refit)c->o->refit));
    TRY(backend_find("cpu", &c->be));
    host_threads_set((int)c->o->threads);
    return c->be->device_open(&c->dev, &device);
}

enum code calibration_measure(struct calibration_size *size, struct checkpoint *source, const struct plan *plan, const struct options *o)
{
    struct calibrating c = {.plan = plan, .o = o, .source = source};
    enum code code = device_open(&c);
    if (code == OK)
        code = calibration_tokens_open(&c.t, source, o, 0);
    if (code == OK)
        code = sizes(size, &c);
    calibrating_close(&c);
    return code;
}

static enum code states_take(struct calibrating *c)
{
    const struct arch *a = ckpt_arch(c->source);
    int64_t NC = c->N * c->C;
    c->part = malloc((size_t)(c->batch_rows * c->t.length * c->C) * sizeof *c->part);
    if (!c->part)
        return fail(ERR_MEMORY, "out of memory for a batch of hidden states");
    TRY(spill_take(&c->spill, NC, &c->x0));
    TRY(spill_take(&c->spill, NC, &c->x1));
    c->next0 = c->x0;
    if (c->o->refit == REFIT_NONE)
        return OK;
    TRY(spill_take(&c->spill, NC, &c->next0));
    TRY(spill_take(&c->spill, NC, &c->mid0));
    TRY(spill_take(&c->spill, NC, &c->mid1));
    return spill_take(&c->spill, c->N * (state_width(a, c->o) - 5 * c->C), &c->features);
}

static enum code models_open(struct calibrating *c)
{
    const struct arch *a = ckpt_arch(c->source);
    struct model_options mo = layered_options(&c->t);
    TRY(arch_copy(&c->to, a));
    for (int64_t l = 0; l < c->to.stack[STACK_DEC].L; l++)
        c->to.stack[STACK_DEC].block[l].G = c->plan->pooled[l];
    TRY(model_open(&c->m0, a, c->be, c->dev, &mo));
    return model_open(&c->m1, &c->to, c->be, c->dev, &mo);
}

/* Where large states go: beside the target, on the disk that must hold the result anyway. */
char *calibration_directory(const char *target)
{
    size_t n = strlen(target);
    while (n > 1 && target[n - 1] == '/')
        n--;
    while (n > 0 && target[n - 1] != '/')
        n--;
    char *dir = n ? strndup(target, n) : strdup(".");
    if (dir && !io_is_dir(dir)) {
        free(dir);
        dir = strdup("/tmp");
    }
    return dir;
}

static enum code calibrating_open(struct calibrating *c)
{
    struct calibration *r = c->result;
    TRY(device_open(c));
    TRY(calibration_tokens_open(&c->t, c->source, c->o, 1));
    TRY(sizes(&r->size, c));
    r->L = ckpt_arch(c->source)->stack[STACK_DEC].L;
    r->layer = calloc((size_t)r->L, sizeof *r->layer);
    if (!r->layer)
        return fail(ERR_MEMORY, "out of memory for %lld layers", (long long)r->L);
    char *dir = calibration_directory(c->o->target);
    if (!dir)
        return fail(ERR_MEMORY, "out of memory for a path");
    c->spill = (struct spill){.dir = dir, .on_disk = r->size.disk > 0};
    r->overlay.memory = c->spill;
    r->spill_dir = dir;
    c->batch_rows = calibration_batch(&c->t);
    c->N = c->t.sequences * c->t.length;
    c->fit_rows = (c->t.sequences - c->t.held_out) * c->t.length;
    c->C = ckpt_arch(c->source)->C;
    TRY(batch_alloc(&c->batch, c->batch_rows, c->t.length));
    TRY(states_take(c));
    return models_open(c);
}

/* ---- the layers ---- */

static enum code embed_all(struct calibrating *c)
{
    struct span s = {0};
    TRY(model_part_load(c->m0, c->source, MODEL_PART_EMBED));
    while (span_next(c, &s, 0, c->t.sequences))
        TRY(model_part_embed(c->m0, span_batch(c, &s), rows_at(c->x0, s.row, c->C)));
    memcpy(c->x1, c->x0, (size_t)(c->N * c->C) * sizeof *c->x1);
    return mean_beside_open(c);
}

/* Moments [C+1, C+1] of the attention's input over the rows that are not held out, and the original's states. */
static enum code original_layer(struct calibrating *c, int64_t layer, struct gram *moments)
{
    struct span s = {0};
    TRY(model_part_load(c->m0, c->source, layer));
    while (span_next(c, &s, 0, c->t.sequences)) {
        struct model_block_values v;
        TRY(model_block_attend(c->m0, span_batch(c, &s), rows_at(c->x0, s.row, c->C), &v));
        TRY(entropy_take(c, layer, 0, &s, &v));
        if (s.row < c->fit_rows)
            gram_add(moments, view_f32(v.n), c->C, NULL, 0, s.rows);
        TRY(model_block_finish(c->m0, rows_at(c->next0, s.row, c->C), &v));
        if (c->mid0 && v.mid.p)
            memcpy(rows_at(c->mid0, s.row, c->C), v.mid.p, (size_t)(s.rows * c->C) * sizeof(float));
    }
    return OK;
}

void moments_finish(struct gram *g)
{
    double inverse = 1.0 / (double)g->count;
    for (int64_t i = 0; i < g->n; i++)
        for (int64_t j = i; j < g->n; j++)
            g->a[i * g->n + j] = g->a[j * g->n + i] = g->a[i * g->n + j] * inverse;
}

/* A merged layer's tensors into the overlay. */
static enum code merged_keep(struct calibrating *c, const struct attention_layer *to)
{
    struct tensor_spec *specs;
    int n;
    enum code code = OK;
    TRY(arch_tensors(&c->to, &specs, &n));
    for (int i = 0; code == OK && i < n; i++) {
        int64_t count;
        const char *short_name = strstr(specs[i].name, ".attn.");
        const double *from = specs[i].layer == to->layer && short_name ? attention_layer_tensor(to, specs[i].name, &count) : NULL;
        float *values;
        if (!from)
            continue;
        CHECK(count == specs[i].n[0] * specs[i].n[1]);
        code = overlay_add(&c->result->overlay, specs[i].name, specs[i].n[0], specs[i].n[1], &values);
        for (int64_t k = 0; code == OK && k < count; k++)
            values[k] = (float)from[k];
    }
    free(specs);
    return code;
}

static enum code merge_layer(struct calibrating *c, int64_t layer, const struct gram *moments, struct outcome *out)
{
    struct attention_layer from = {0}, to = {0};
    enum code code = attention_layer_read(&from, c->source, layer);
    if (code == OK)
        code = attention_layer_new(&to, ckpt_arch(c->source), layer, c->plan->pooled[layer]);
    if (code == OK)
        code = layers_merge(&to, &from, c->plan, c->o, moments->a, out);
    if (code == OK)
        code = merged_keep(c, &to);
    attention_layer_free(&from);
    attention_layer_free(&to);
    return code;
}

/* The converted layer into m1: the source's tensors where the overlay has no others. */
static enum code converted_load(struct calibrating *c, int64_t layer)
{
    model_part_set(c->m1, layer);
    for (int i = 0; i < model_param_count(c->m1); i++) {
        const struct model_param *p = model_param_at(c->m1, i);
        const struct overlay_tensor *t = p->value.p ? overlay_find(&c->result->overlay, p->spec.name) : NULL;
        if (!p->value.p)
            continue;
        if (t) {
            memcpy(p->value.p, t->values, (size_t)p->count * sizeof(float));
            continue;
        }
        const struct ckpt_tensor *in = ckpt_find(c->source, p->spec.name);
        CHECK(in && in->n[0] * in->n[1] == p->count);
        TRY(ckpt_read(c->source, in, 0, in->n[0], p->value.p, DT_F32));
    }
    return OK;
}

/* Without a refit the converted model runs over the held-out rows alone. */
static enum code converted_forward(struct calibrating *c, int64_t layer)
{
    struct span s = {0};
    int64_t fit = c->t.sequences - c->t.held_out;
    while (span_next(c, &s, fit, c->t.sequences)) {
        struct model_block_values v;
        float *x = rows_at(c->x1, s.row, c->C);
        TRY(model_block_attend(c->m1, span_batch(c, &s), x, &v));
        TRY(entropy_take(c, layer, 1, &s, &v));
        TRY(model_block_finish(c->m1, x, &v));
    }
    return OK;
}

static enum code layer_run(struct calibrating *c, int64_t layer, struct outcome *out)
{
    struct gram moments;
    int merges = c->plan->pooled[layer] < ckpt_arch(c->source)->stack[STACK_DEC].block[layer].G;
    TRY(gram_open(&moments, c->C, 1, 0));
    enum code code = original_layer(c, layer, &moments);
    moments_finish(&moments);
    if (code == OK && merges)
        code = merge_layer(c, layer, &moments, out);
    gram_close(&moments);
    if (code == OK && c->o->refit == REFIT_ALL) /* scores are compared head by head */
        code = heads_in_order(c, layer, out->layers[layer].members);
    if (code == OK)
        code = mean_beside_layer(c, layer);
    if (code == OK)
        code = converted_load(c, layer);
    if (code == OK)
        code = c->o->refit == REFIT_NONE ? converted_forward(c, layer) : refit_layer(c, layer);
    float *swap = c->x0;
    c->x0 = c->next0;
    c->next0 = swap;
    return code;
}

static enum code losses(struct calibrating *c)
{
    struct calibration *r = c->result;
    struct view none = view_none();
    double sum0 = 0, sum1 = 0;
    int64_t count0 = 0, count1 = 0;
    struct span s = {0};
    TRY(model_part_load(c->m0, c->source, r->L));
    while (span_next(c, &s, c->t.sequences - c->t.held_out, c->t.sequences)) {
        const struct batch *b = span_batch(c, &s);
        TRY(model_part_score(c->m0, b, rows_at(c->x0, s.row, c->C), none, &sum0, &count0));
        TRY(model_part_score(c->m0, b, rows_at(c->x1, s.row, c->C), none, &sum1, &count1));
    }
    if (count0 == 0)
        return fail(ERR_INPUT, "%s: no target among the held-out calibration tokens", c->o->calibration);
    r->scored = count0;
    r->loss_before = sum0 / (double)count0;
    r->loss_after = sum1 / (double)count1;
    TRY(mean_beside_loss(c));
    if (!isfinite(r->loss_before) || !isfinite(r->loss_after))
        return fail(ERR_NUMERIC, "%s: the loss on calibration tokens is not finite (%g before, %g after the conversion)", ckpt_path(c->source), r->loss_before,
                    r->loss_after);
    return OK;
}

static enum code run(struct calibrating *c, struct outcome *out)
{
    struct progress p;
    TRY(calibrating_open(c));
    TRY(embed_all(c));
    progress_begin(&p, "calibrate", c->result->L);
    enum code code = OK;
    for (int64_t l = 0; code == OK && l < c->result->L; l++) {
        progress_update(&p, l, "layers");
        c->result->layer[l].error = (double)NAN;
        code = layer_run(c, l, out);
    }
    progress_end(&p);
    return code == OK ? losses(c) : code;
}

enum code calibration_run(struct calibration *r, struct checkpoint *source, const struct plan *plan, const struct options *o, struct outcome *out)
{
    double start = host_seconds();
    struct calibrating c = {.plan = plan, .o = o, .source = source, .result = r};
    memset(r, 0, sizeof *r);
    enum code code = run(&c, out);
    calibrating_close(&c);
    r->seconds = host_seconds() - start;
    return code;
}

void calibration_close(struct calibration *r)
{
    overlay_close(&r->overlay);
    free(r->layer);
    free(r->spill_dir);
    r->layer = NULL;
    r->spill_dir = NULL;
}
