/* The four projections of one layer's attention together, by Gauss-Newton (newton_system.h): each system is solved by conjugate gradients under the
 * preconditioner of newton_precondition.c, then steps of 1, 1/2, 1/4 and 1/8 of x are tried on held-out sequences and the best one is taken, if there is one.
 * Biases stay; that of W_O is fitted afterwards (refit.c). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "linalg.h"
#include "newton_system.h"

#define DAMPING 1e-3 /* mu */

/* Mean square of what is missing on the held-out rows. */
static enum code held_error(struct newton *w, double *error)
{
    struct calibrating *c = w->c;
    struct span s = {0};
    *error = 0;
    while (span_next(c, &s, c->t.sequences - c->t.held_out, c->t.sequences)) {
        struct model_block_values v;
        TRY(model_block_attend(c->m1, span_batch(c, &s), rows_at(c->x1, s.row, c->C), &v));
        TRY(newton_missing(w, &s, &v, w->mid));
        *error += dot_f32(w->mid, w->mid, s.rows * c->C);
    }
    return isfinite(*error) ? OK : fail(ERR_NUMERIC, "hidden states of a layer are not finite");
}

/* x of all parts; part->best is the room for z. */
static enum code solve(struct newton *w)
{
    double rz = 0;
    TRY(newton_backward(w, w->r));
    for (int i = 0; i < PARTS; i++) {
        struct part *s = &w->part[i];
        int64_t n = s->rows * s->width;
        memset(s->x, 0, (size_t)n * sizeof *s->x);
        memcpy(s->was, s->g, (size_t)n * sizeof *s->g); /* the residual of the system */
        newton_precondition(w, s, s->p, s->was);
        memcpy(s->mp, s->was, (size_t)n * sizeof *s->mp);
        rz += dot_f32(s->was, s->p, n);
    }
    double first = rz;
    for (int it = 0; it < w->effort.iterations && rz > 1e-6 * first; it++) {
        TRY(newton_forward(w));
        double pap = dot_f32(w->e, w->e, w->a.N * w->a.C), next = 0;
        for (int i = 0; i < PARTS; i++)
            pap += DAMPING * dot_f32(w->part[i].p, w->part[i].mp, w->part[i].rows * w->part[i].width);
        if (!(pap > 0))
            break;
        float alpha = (float)(rz / pap);
        TRY(newton_backward(w, w->e));
        for (int i = 0; i < PARTS; i++) {
            struct part *s = &w->part[i];
            int64_t n = s->rows * s->width;
            for (int64_t k = 0; k < n; k++) {
                s->x[k] += alpha * s->p[k];
                s->was[k] -= alpha * (s->g[k] + (float)DAMPING * s->mp[k]);
            }
            newton_precondition(w, s, s->best, s->was);
            next += dot_f32(s->was, s->best, n);
        }
        float beta = (float)(next / rz);
        rz = next;
        for (int i = 0; i < PARTS; i++) {
            struct part *s = &w->part[i];
            for (int64_t k = 0; k < s->rows * s->width; k++) {
                s->p[k] = s->best[k] + beta * s->p[k];
                s->mp[k] = s->was[k] + beta * s->mp[k];
            }
        }
    }
    return OK;
}

static void move(struct newton *w, float to)
{
    for (int i = 0; i < PARTS; i++) {
        struct part *s = &w->part[i];
        float *value = view_f32(s->map.w->value);
        if (to == 0) /* x may not be finite */
            memcpy(value, s->was, (size_t)(s->rows * s->width) * sizeof *value);
        for (int64_t k = 0; to != 0 && k < s->rows * s->width; k++)
            value[k] = s->was[k] + to * s->x[k];
    }
}

/* The best of the steps on held-out rows; 0: none is better. */
static enum code take_step(struct newton *w, double *error)
{
    float best = 0;
    for (int i = 0; i < PARTS; i++)
        memcpy(w->part[i].was, w->part[i].map.w->value.p, (size_t)(w->part[i].rows * w->part[i].width) * sizeof(float));
    double least = *error;
    for (float step = 1; step > 0.1f; step /= 2) {
        double now;
        move(w, step);
        enum code c = held_error(w, &now);
        if (c != OK && c != ERR_NUMERIC) /* a step too far gives infinities; everything else is a failure */
            return c;
        if (c == OK && now < least) {
            least = now;
            best = step;
        } else if (best > 0) {
            break;
        }
    }
    *error = least;
    move(w, best);
    return OK;
}

static enum code rounds(struct newton *w, int64_t window)
{
    double error, before;
    TRY(held_error(w, &error));
    for (int round = 0; round < w->effort.rounds; round++) {
        before = error;
        TRY(newton_linearise(w, window));
        TRY(newton_preconditioner(w, round == 0));
        TRY(solve(w));
        TRY(take_step(w, &error));
        if (!(error < 0.99 * before))
            break;
    }
    return OK;
}

enum code refit_newton(struct calibrating *c, int64_t layer)
{
    const struct arch_block *b = &c->to.stack[STACK_DEC].block[layer];
    struct newton w = {.c = c};
    int64_t fit = c->t.sequences - c->t.held_out;
    static const char *const names[PARTS] = {"attn.q", "attn.k", "attn.v", "attn.o"};
    w.a = newton_shape(&w.effort, &c->to, b, b->G, c->t.length, c->fit_rows);
    if (w.a.count == 0)
        return OK;
    w.memory = calloc((size_t)newton_floats(&w.a), sizeof *w.memory);
    w.mid = malloc((size_t)(c->batch_rows * w.a.T * c->C) * sizeof *w.mid);
    w.sequence = malloc((size_t)w.a.count * sizeof *w.sequence);
    enum code code = w.memory && w.mid && w.sequence ? OK : fail(ERR_MEMORY, "out of memory for the attention of %lld tokens", (long long)w.a.N);
    if (code == OK) {
        newton_place(&w);
        for (int64_t i = 0; i < w.a.count; i++)
            w.sequence[i] = i * fit / w.a.count;
        for (int i = 0; i < PARTS; i++)
            w.part[i].map = map_of(c, layer, names[i]);
        code = rounds(&w, b->window);
    }
    for (int i = 0; code == OK && i < 3; i++)
        code = map_keep(c, &w.part[i].map);
    free(w.memory);
    free(w.mid);
    free(w.sequence);
    return code;
}
