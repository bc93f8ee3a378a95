/* What preconditions and damps a layer's Gauss-Newton system: M is for each projection N E[d d^T] x E[u u^T] (Kronecker; each and a little of 1), u the
 * projection's input and d what reaches its output of a random change of the layer's: what J^T J would be if the two were independent and
 * tokens and projections too (Martens, Grosse 2015, section 3). */
#include <stdlib.h>
#include <string.h>

#include "linalg.h"
#include "newton_system.h"

#define RIDGE 1e-3 /* of M: of the mean diagonal */

/* inverse [width, width] of E[u u^T] with its ridge. */
static enum code invert_moments(float *inverse, const float *u, int64_t N, int64_t width)
{
    struct gram g;
    TRY(gram_open(&g, width, 0, 0));
    gram_add(&g, u, width, NULL, 0, N);
    double trace = 0, *one = calloc((size_t)(width * width), sizeof *one);
    for (int64_t i = 0; i < width; i++)
        trace += g.a[i * width + i] / (double)N;
    for (int64_t i = 0; one && i < width; i++) {
        for (int64_t k = i; k < width; k++)
            g.a[i * width + k] /= (double)N;
        g.a[i * width + i] += trace > 0 ? RIDGE * trace / (double)width : 1;
        one[i * width + i] = 1;
    }
    enum code c = one ? solve_spd(one, g.a, width, width) : fail(ERR_MEMORY, "out of memory for the moments of %lld features", (long long)width);
    for (int64_t i = 0; c == OK && i < width * width; i++)
        inverse[i] = (float)one[i];
    free(one);
    gram_close(&g);
    return c;
}

/* to = M^-1 from, by parts. */
void newton_precondition(const struct newton *w, const struct part *s, float *to, const float *from)
{
    float scale = (float)(1.0 / (double)w->a.N), out = (float)w->c->to.residual_scale;
    scores_gemm(s->inverse_out ? w->half : to, s->width, from, s->width, 0, s->inverse, s->width, 0, s->rows, s->width, s->width,
                s->inverse_out ? scale : scale / (out * out), 0.0f);
    if (s->inverse_out)
        scores_gemm(to, s->width, s->inverse_out, s->rows, 0, w->half, s->width, 0, s->rows, s->width, s->rows, 1.0f, 0.0f);
}

/* Of the present inputs and outputs; the layer's input stays what it is. */
enum code newton_preconditioner(struct newton *w, int first)
{
    struct linearised *a = &w->a;
    size_t bytes = (size_t)(a->C * a->C) * sizeof(float);
    if (first)
        TRY(invert_moments(w->part[0].inverse, a->n, a->N, a->C));
    memcpy(w->part[1].inverse, w->part[0].inverse, bytes);
    memcpy(w->part[2].inverse, w->part[0].inverse, bytes);
    TRY(invert_moments(w->part[3].inverse, a->o, a->N, a->H * a->D));
    random_normal_f32(w->e, a->N * a->C, 0, 1, 0, 0, 0);
    TRY(newton_backward(w, w->e));
    const float *reached[] = {w->dq, w->dk, w->dv};
    for (int i = 0; i < 3; i++)
        TRY(invert_moments(w->part[i].inverse_out, reached[i], a->N, w->part[i].rows));
    return OK;
}
