/* The Gauss-Newton system of one layer: what is missing, and the products with J and its transpose (newton_system.h). */
#include <string.h>

#include "newton_system.h"

static struct span span_of(const struct newton *w, int64_t sequence)
{
    int64_t T = w->a.T;
    return (struct span){sequence, 1, sequence * T, T};
}

/* What the layer lacks of the original on these rows, into r. */
enum code newton_missing(struct newton *w, const struct span *s, struct model_block_values *v, float *r)
{
    struct calibrating *c = w->c;
    int64_t n = s->rows * c->C;
    const float *target = rows_at(c->to.residual == RESIDUAL_SEQUENTIAL ? c->mid0 : c->next0, s->row, c->C), *x = rows_at(c->x1, s->row, c->C);
    if (c->to.residual != RESIDUAL_SEQUENTIAL) {
        TRY(model_block_finish(c->m1, r, v));
    } else {
        const struct map *o = &w->part[3].map;
        memcpy(r, x, (size_t)n * sizeof *r);
        TRY(c->be->matmul(c->dev, view_2d(r, DT_F32, s->rows, c->C), view_2d(v->o.p, DT_F32, s->rows, o->w->spec.n[1]), o->w->value,
                          o->b ? o->b->value : view_none(), 0, 1, (float)c->to.residual_scale, 1.0f));
    }
    for (int64_t i = 0; i < n; i++)
        r[i] = target[i] - r[i];
    return OK;
}

static void rows_copy(float *to, struct view from, int64_t rows, int64_t width)
{
    for (int64_t i = 0; i < rows; i++)
        memcpy(to + i * width, view_f32(from) + i * from.s[1], (size_t)width * sizeof *to);
}

/* q, k, v, o, n, p and r of all sequences, at the present weights. */
enum code newton_linearise(struct newton *w, int64_t window)
{
    struct linearised *a = &w->a;
    int64_t hd = a->H * a->D, gd = a->G * a->D;
    for (int64_t i = 0; i < a->count; i++) {
        struct span s = span_of(w, w->sequence[i]);
        const struct batch *b = span_batch(w->c, &s);
        struct model_block_values v;
        TRY(model_block_attend(w->c->m1, b, rows_at(w->c->x1, s.row, a->C), &v));
        memcpy(a->n + i * a->T * a->C, v.n.p, (size_t)(a->T * a->C) * sizeof *a->n);
        rows_copy(a->q + i * a->T * hd, v.q, a->T, hd);
        rows_copy(a->k + i * a->T * gd, v.k, a->T, gd);
        rows_copy(a->v + i * a->T * gd, v.v, a->T, gd);
        memcpy(a->o + i * a->T * hd, v.o.p, (size_t)(a->T * hd) * sizeof *a->o);
        attention_fill(a, i, b->segments, view_f32(v.lse), v.alibi.p ? view_f32(v.alibi) : NULL, window);
        TRY(newton_missing(w, &s, &v, w->r + i * a->T * a->C));
    }
    return OK;
}

/* to = u x^T + beta to, u [N, width], x [rows, width]. */
static void project(const struct newton *w, float *to, const float *u, const float *x, int64_t rows, int64_t width, float alpha, float beta)
{
    scores_gemm(to, rows, u, width, 0, x, width, 1, w->a.N, rows, width, alpha, beta);
}

static enum code rotate(struct newton *w, float *x, int64_t heads, int transposed)
{
    int64_t T = w->a.T;
    for (int64_t i = 0; i < w->a.count; i++) {
        struct span s = span_of(w, w->sequence[i]);
        TRY(model_block_rotate(w->c->m1, span_batch(w->c, &s), x + i * T * heads * w->a.D, heads, transposed));
    }
    return OK;
}

/* e = J x, x in the parts' p. */
enum code newton_forward(struct newton *w)
{
    struct linearised *a = &w->a;
    int64_t hd = a->H * a->D, gd = a->G * a->D, C = a->C;
    float scale = (float)w->c->to.residual_scale;
    project(w, w->dq, a->n, w->part[0].p, hd, C, 1.0f, 0.0f);
    project(w, w->dk, a->n, w->part[1].p, gd, C, 1.0f, 0.0f);
    project(w, w->dv, a->n, w->part[2].p, gd, C, 1.0f, 0.0f);
    TRY(rotate(w, w->dq, a->H, 0));
    TRY(rotate(w, w->dk, a->G, 0));
    attention_change(a, w->d_o, w->dq, w->dk, w->dv);
    project(w, w->e, w->d_o, view_f32(w->part[3].map.w->value), C, hd, scale, 0.0f);
    project(w, w->e, a->o, w->part[3].p, C, hd, scale, 1.0f);
    return OK;
}

/* g = J^T e. */
enum code newton_backward(struct newton *w, const float *e)
{
    struct linearised *a = &w->a;
    int64_t hd = a->H * a->D, gd = a->G * a->D, C = a->C, N = a->N;
    float scale = (float)w->c->to.residual_scale;
    scores_gemm(w->part[3].g, hd, e, C, 1, a->o, hd, 0, C, hd, N, scale, 0.0f);
    scores_gemm(w->d_o, hd, e, C, 0, view_f32(w->part[3].map.w->value), hd, 0, N, hd, C, scale, 0.0f);
    attention_gradient(a, w->d_o, w->dq, w->dk, w->dv);
    TRY(rotate(w, w->dq, a->H, 1));
    TRY(rotate(w, w->dk, a->G, 1));
    scores_gemm(w->part[0].g, C, w->dq, hd, 1, a->n, C, 0, hd, C, N, 1.0f, 0.0f);
    scores_gemm(w->part[1].g, C, w->dk, gd, 1, a->n, C, 0, gd, C, N, 1.0f, 0.0f);
    scores_gemm(w->part[2].g, C, w->dv, gd, 1, a->n, C, 0, gd, C, N, 1.0f, 0.0f);
    return OK;
}
