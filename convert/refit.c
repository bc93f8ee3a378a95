/* Fitting the linear maps of one converted layer so that its hidden states follow the original's: ridge regression of what is missing
 * on the features the map reads (gram.c), nothing else.
 *
 *   sequential   W_O   on the attention's heads, of mid0 - mid1        then  W_down on the MLP's hidden units, of next0 - out1
 *   parallel     both on [heads | hidden units] at once, of next0 - out1  (output alone: W_O on the heads)
 *
 * mid and out: hidden states after the attention and after the layer; 0 the original's, 1 the converted model's with the maps as they are,
 * both with the errors of earlier layers in them. A bias is fitted where the class has one. */
#include "calibrate_parts.h"
#include "linalg.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum code refit_check(const struct arch *a, enum refit r)
{
    if (r == REFIT_NONE)
        return OK;
    if (a->norm_place != NORM_PRE)
        return fail(ERR_UNSUPPORTED, "%s: a norm follows each sublayer, so the hidden state is no linear function of its output projection: --refit %s is "
                    "not possible (calibration without --refit is)", a->family, refit_name(r));
    if (r == REFIT_ALL && (a->qk_norm != QK_NORM_NONE || a->clip_qkv > 0.0))
        return fail(ERR_UNSUPPORTED, "%s: queries are %s before the attention, so scores are not linear in the query projection: use --refit block", a->family,
                    a->clip_qkv > 0.0 ? "clipped" : "normalised");
    return OK;
}

int64_t refit_width(const struct arch *a, const struct arch_block *b)
{
    (void)a;
    return b->H * b->D + b->F;
}

/* ---- one regression ---- */

/* y [rows,C] += sign * (u delta), the constant's row included. */
static enum code add_product(const struct calibrating *c, const struct regression *r, float *y, const float *u, int64_t rows, const float *delta, float sign)
{
    struct view to = view_2d(y, DT_F32, rows, r->C), from = view_2d((float *)(uintptr_t)u, DT_F32, rows, r->width);
    struct view map = view_2d((float *)(uintptr_t)delta, DT_F32, r->width, r->C);
    from.s[0] = r->ld;
    TRY(c->be->matmul(c->dev, to, from, map, view_none(), 0, 0, sign, 1.0f));
    for (int64_t i = 0; r->g.ones && i < rows; i++)
        TRY(c->be->axpy(c->dev, y + i * r->C, delta + r->width * r->C, sign, r->C));
    return OK;
}

/* What the held-out rows keep of the residual under this ridge; delta is left in `delta`. */
static enum code try_share(const struct calibrating *c, const struct regression *r, double share, double *wide, float *delta, float *rest, double *error)
{
    int64_t held = r->rows - r->fit_rows, n = r->g.n * r->C;
    TRY(ridge_solve(&r->g, &r->parts, share, wide));
    for (int64_t i = 0; i < n; i++)
        delta[i] = (float)wide[i];
    memcpy(rest, r->residual + r->fit_rows * r->C, (size_t)(held * r->C) * sizeof *rest);
    TRY(add_product(c, r, rest, r->u + r->fit_rows * r->ld, held, delta, -1.0f));
    *error = dot_f32(rest, rest, held * r->C);
    return OK;
}

/* Ridge shares are tried by factors of ten from 1e-2, in the direction that helps. */
static enum code regression_choose(const struct calibrating *c, struct regression *r, float *delta, double *chosen)
{
    int64_t n = r->g.n * r->C, held = (r->rows - r->fit_rows) * r->C;
    double *wide = malloc((size_t)n * sizeof *wide), best = dot_f32(r->residual + r->fit_rows * r->C, r->residual + r->fit_rows * r->C, held), at = 1e-2;
    float *tried = malloc((size_t)n * sizeof *tried), *rest = malloc((size_t)held * sizeof *rest);
    enum code code = wide && tried && rest ? OK : fail(ERR_MEMORY, "out of memory for a regression");
    *chosen = 0;
    memset(delta, 0, (size_t)n * sizeof *delta);
    if (code == OK)
        gram_add(&r->g, r->u, r->ld, r->residual, r->C, r->fit_rows);
    static const double factors[] = {1, 10, 0.1};
    for (int direction = 0; code == OK && direction < 3; direction++) {
        double share = at * factors[direction], error = 0;
        int better = 1;
        while (code == OK && better && share < 1e3 && share > 1e-7) {
            code = try_share(c, r, share, wide, tried, rest, &error);
            better = code == OK && error < best;
            code = code == ERR_NUMERIC ? OK : code; /* too little ridge for features that nearly depend on each other */
            if (better) {
                best = error;
                *chosen = share;
                memcpy(delta, tried, (size_t)n * sizeof *delta);
            }
            if (direction == 0)
                break;
            share *= factors[direction];
        }
        if (direction == 1 && *chosen > at)
            break; /* more ridge was better: less is not */
    }
    free(wide);
    free(tried);
    free(rest);
    return code;
}

/* ---- maps ---- */

struct map map_of(const struct calibrating *c, int64_t layer, const char *name)
{
    char canonical[64];
    struct map m;
    snprintf(canonical, sizeof canonical, "dec.%lld.%s.w", (long long)layer, name);
    m.w = model_param_find(c->m1, canonical);
    snprintf(canonical, sizeof canonical, "dec.%lld.%s.b", (long long)layer, name);
    m.b = model_param_find(c->m1, canonical);
    CHECK(m.w && m.w->value.p);
    return m;
}

static enum code param_keep(struct calibrating *c, const struct model_param *p)
{
    float *values;
    if (!p)
        return OK;
    TRY(overlay_add(&c->result->overlay, p->spec.name, p->spec.n[0], p->spec.n[1], &values));
    memcpy(values, p->value.p, (size_t)p->count * sizeof *values);
    return OK;
}

enum code map_keep(struct calibrating *c, const struct map *m)
{
    TRY(param_keep(c, m->w));
    return param_keep(c, m->b);
}

void map_add(const struct map *m, const float *delta, int64_t C, float scale)
{
    float *w = view_f32(m->w->value);
    int64_t width = m->w->spec.n[1];
    for (int64_t r = 0; r < C; r++)
        for (int64_t i = 0; i < width; i++)
            w[r * width + i] += delta[i * C + r] / scale;
}

void bias_add(const struct map *m, const float *delta, int64_t C)
{
    float *b = view_f32(m->b->value);
    for (int64_t r = 0; r < C; r++)
        b[r] += delta[r];
}

/* y [rows,C] = base + scale * u w^T + b */
static enum code apply(const struct calibrating *c, const struct map *m, float *y, const float *base, float *u, int64_t rows)
{
    struct view to = view_2d(y, DT_F32, rows, c->C), none = view_none();
    if (y != base)
        memcpy(y, base, (size_t)(rows * c->C) * sizeof *y);
    return c->be->matmul(c->dev, to, view_2d(u, DT_F32, rows, m->w->spec.n[1]), m->w->value, m->b ? m->b->value : none, 0, 1,
                         (float)c->to.residual_scale, 1.0f);
}

static void subtract(float *y, const float *a, const float *b, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = a[i] - b[i];
}

enum code regression_run(const struct calibrating *c, struct regression *r, int ones, float **delta, double *share)
{
    TRY(gram_open(&r->g, r->width, ones, r->C));
    *delta = malloc((size_t)(r->g.n * r->C) * sizeof **delta);
    if (!*delta)
        return fail(ERR_MEMORY, "out of memory for a regression");
    return regression_choose(c, r, *delta, share);
}

/* ---- sequential ---- */

struct fit { struct calibrating *c; int64_t layer; struct calibration_layer *report; struct map o, down; int64_t heads, hidden; float *f, *h; };

static enum code attend_all(const struct fit *t)
{
    struct calibrating *c = t->c;
    struct span s = {0};
    while (span_next(c, &s, 0, c->t.sequences)) {
        struct model_block_values v;
        float *x = rows_at(c->x1, s.row, c->C), *f = rows_at(t->f, s.row, t->heads), *mid = rows_at(c->mid1, s.row, c->C);
        TRY(model_block_attend(c->m1, span_batch(c, &s), x, &v));
        TRY(entropy_take(c, t->layer, 1, &s, &v));
        memcpy(f, v.o.p, (size_t)(s.rows * t->heads) * sizeof *f);
        TRY(apply(c, &t->o, mid, x, f, s.rows));
        subtract(rows_at(c->mid0, s.row, c->C), rows_at(c->mid0, s.row, c->C), mid, s.rows * c->C);
    }
    return OK;
}

static enum code fit_output(const struct fit *t)
{
    struct calibrating *c = t->c;
    struct regression r = {.parts = {t->heads}, .u = t->f, .ld = t->heads, .residual = c->mid0, .width = t->heads, .C = c->C,
                           .rows = c->N, .fit_rows = c->fit_rows};
    float *delta = NULL;
    enum code code = regression_run(c, &r, t->o.b != NULL, &delta, &t->report->share[0]);
    if (code == OK) {
        map_add(&t->o, delta, c->C, (float)c->to.residual_scale);
        if (t->o.b)
            bias_add(&t->o, delta + t->heads * c->C, c->C);
    }
    gram_close(&r.g);
    free(delta);
    return code;
}

/* x1 becomes the layer's output, mid0 what it lacks. */
static enum code hidden_all(const struct fit *t)
{
    struct calibrating *c = t->c;
    struct span s = {0};
    while (span_next(c, &s, 0, c->t.sequences)) {
        struct model_block_values v;
        float *x = rows_at(c->x1, s.row, c->C), *h = rows_at(t->h, s.row, t->hidden);
        TRY(model_block_hidden(c->m1, span_batch(c, &s), x, rows_at(t->f, s.row, t->heads), &v));
        memcpy(h, v.hidden.p, (size_t)(s.rows * t->hidden) * sizeof *h);
        TRY(apply(c, &t->down, x, v.mid.p, h, s.rows));
        subtract(rows_at(c->mid0, s.row, c->C), rows_at(c->next0, s.row, c->C), x, s.rows * c->C);
    }
    return OK;
}

static enum code fit_down(const struct fit *t)
{
    struct calibrating *c = t->c;
    struct regression r = {.parts = {t->hidden}, .u = t->h, .ld = t->hidden, .residual = c->mid0, .width = t->hidden, .C = c->C,
                           .rows = c->N, .fit_rows = c->fit_rows};
    float *delta = NULL;
    enum code code = regression_run(c, &r, t->down.b != NULL, &delta, &t->report->share[1]);
    if (code == OK) {
        map_add(&t->down, delta, c->C, (float)c->to.residual_scale);
        if (t->down.b)
            bias_add(&t->down, delta + t->hidden * c->C, c->C);
        code = add_product(c, &r, c->x1, t->h, c->N, delta, 1.0f);
    }
    gram_close(&r.g);
    free(delta);
    return code;
}

/* The output projection alone, the original's states as they were: a start for all projections of the attention together. */
static enum code fit_output_first(struct fit *t)
{
    struct calibrating *c = t->c;
    t->f = c->features;
    TRY(attend_all(t));
    enum code code = fit_output(t);
    for (int64_t i = 0; i < c->N * c->C; i++)
        c->mid0[i] += c->mid1[i];
    return code;
}

static enum code fit_sequential(struct fit *t)
{
    t->f = t->c->features;
    t->h = t->f + t->c->N * t->heads;
    TRY(attend_all(t));
    TRY(fit_output(t));
    TRY(hidden_all(t));
    return t->c->o->refit >= REFIT_BLOCK ? fit_down(t) : OK;
}

/* ---- parallel ---- */

/* mid1 becomes the output with the maps as they are, mid0 what it lacks; features [heads | hidden]. */
static enum code both_all(const struct fit *t)
{
    struct calibrating *c = t->c;
    struct span s = {0};
    int64_t ld = t->heads + t->hidden;
    while (span_next(c, &s, 0, c->t.sequences)) {
        struct model_block_values v;
        float *out = rows_at(c->mid1, s.row, c->C), *u = rows_at(t->f, s.row, ld);
        TRY(model_block_attend(c->m1, span_batch(c, &s), rows_at(c->x1, s.row, c->C), &v));
        TRY(entropy_take(c, t->layer, 1, &s, &v));
        for (int64_t i = 0; i < s.rows; i++)
            memcpy(u + i * ld, view_f32(v.o) + i * t->heads, (size_t)t->heads * sizeof *u);
        TRY(model_block_finish(c->m1, out, &v));
        for (int64_t i = 0; i < s.rows; i++)
            memcpy(u + i * ld + t->heads, view_f32(v.hidden) + i * t->hidden, (size_t)t->hidden * sizeof *u);
        subtract(rows_at(c->mid0, s.row, c->C), rows_at(c->next0, s.row, c->C), out, s.rows * c->C);
    }
    return OK;
}

static enum code fit_parallel(struct fit *t)
{
    struct calibrating *c = t->c;
    int block = c->o->refit >= REFIT_BLOCK;
    const struct map *biased = t->o.b ? &t->o : block && t->down.b ? &t->down : NULL;
    t->f = c->features;
    TRY(both_all(t));
    struct regression r = {.parts = {t->heads}, .u = t->f, .ld = t->heads + t->hidden, .residual = c->mid0, .width = t->heads + (block ? t->hidden : 0), .C = c->C,
                           .rows = c->N, .fit_rows = c->fit_rows};
    float *delta = NULL;
    enum code code = regression_run(c, &r, biased != NULL, &delta, &t->report->share[0]);
    if (code == OK) {
        map_add(&t->o, delta, c->C, (float)c->to.residual_scale);
        if (block)
            map_add(&t->down, delta + t->heads * c->C, c->C, (float)c->to.residual_scale);
        if (biased)
            bias_add(biased, delta + r.width * c->C, c->C);
        t->report->share[1] = block ? t->report->share[0] : 0;
        memcpy(c->x1, c->mid1, (size_t)(c->N * c->C) * sizeof(float));
        code = add_product(c, &r, c->x1, t->f, c->N, delta, 1.0f);
    }
    gram_close(&r.g);
    free(delta);
    return code;
}

enum code refit_layer(struct calibrating *c, int64_t layer)
{
    const struct arch_block *b = &c->to.stack[STACK_DEC].block[layer];
    struct fit t = {c, layer, &c->result->layer[layer], map_of(c, layer, "attn.o"), map_of(c, layer, "mlp.down"), b->H * b->D, b->F, NULL, NULL};
    if (c->o->refit == REFIT_ALL) {
        TRY(refit_scores(c, layer));
        if (c->to.residual == RESIDUAL_SEQUENTIAL)
            TRY(fit_output_first(&t));
        TRY(refit_newton(c, layer));
    }
    TRY(c->to.residual == RESIDUAL_SEQUENTIAL ? fit_sequential(&t) : fit_parallel(&t));
    int64_t first = c->fit_rows * c->C, held = (c->N - c->fit_rows) * c->C;
    subtract(c->mid0 + first, c->next0 + first, c->x1 + first, held);
    t.report->error = sqrt(dot_f32(c->mid0 + first, c->mid0 + first, held) / dot_f32(c->next0 + first, c->next0 + first, held));
    TRY(map_keep(c, &t.o));
    return c->o->refit == REFIT_OUTPUT ? OK : map_keep(c, &t.down);
}
