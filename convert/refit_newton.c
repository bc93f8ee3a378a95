/* The four projections of one layer's attention together, by Gauss-Newton: with r what the layer's output lacks (of the original's), J
 * the change of the output by changes x of W_Q, W_K, W_V and W_O (newton_attention.c), on some of the calibration's sequences
 *
 *      min over x of  |J x - r|^2 + mu |x|_M^2           (J^T J + mu M) x = J^T r
 *
 * is solved by conjugate gradients, then steps of 1, 1/2, 1/4 and 1/8 of x are tried on held-out sequences and the best one is taken, if
 * there is one. M, which also preconditions, is for each projection N E[d d^T] x E[u u^T] (Kronecker; each and a little of 1), u the
 * projection's input and d what reaches its output of a random change of the layer's: what J^T J would be if the two were independent and
 * tokens and projections too (Martens, Grosse 2015, section 3).
 * Biases stay; that of W_O is fitted afterwards (refit.c). Sequences are as many as a budget of arithmetic allows. */
#include <cblas.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "calibrate_parts.h"
#include "linalg.h"
#include "newton.h"
#include "refit_scores.h"

enum { PARTS = 4, TOKENS = 32768, FEWEST = 4096 };
/* The first for which the budget allows TOKENS, else the last, if it allows FEWEST. */
static const struct effort { int rounds, iterations; } EFFORTS[] = {{10, 12}, {10, 5}, {6, 4}, {4, 4}, {3, 3}};
enum { N_EFFORTS = sizeof EFFORTS / sizeof *EFFORTS };
#define DAMPING 1e-3 /* mu */
#define RIDGE 1e-3   /* of M: of the mean diagonal */
#define LAYERS 2.0
#define COST 1.2e13 /* operations, of all layers together */

/* inverse [width, width] of E[u u^T], inverse_out [rows, rows] of E[d d^T]; NULL for W_O, where that is the square of the output's scale. */
struct part { struct map map; int64_t rows, width; float *x, *best, *g, *p, *mp, *was; float *inverse, *inverse_out; };

struct newton {
    struct calibrating *c;
    struct linearised a;
    struct effort effort;
    struct part part[PARTS];      /* q, k, v, o */
    int64_t *sequence;            /* [count] */
    float *r, *e;                 /* [N,C] what is missing; J p */
    float *dq, *dk, *dv, *d_o;    /* as q, k, v, o */
    float *mid;                   /* [held rows, C] */
    float *half;                  /* as the largest part */
    float *memory;
};

static struct span span_of(const struct newton *w, int64_t sequence)
{
    int64_t T = w->a.T;
    return (struct span){sequence, 1, sequence * T, T};
}

/* What the layer lacks of the original on these rows, into r. */
static enum code missing(struct newton *w, const struct span *s, struct model_block_values *v, float *r)
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
static enum code linearise(struct newton *w, int64_t window)
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
        TRY(missing(w, &s, &v, w->r + i * a->T * a->C));
    }
    return OK;
}

/* Mean square of what is missing on the held-out rows. */
static enum code held_error(struct newton *w, double *error)
{
    struct calibrating *c = w->c;
    struct span s = {0};
    *error = 0;
    while (span_next(c, &s, c->t.sequences - c->t.held_out, c->t.sequences)) {
        struct model_block_values v;
        TRY(model_block_attend(c->m1, span_batch(c, &s), rows_at(c->x1, s.row, c->C), &v));
        TRY(missing(w, &s, &v, w->mid));
        *error += dot_f32(w->mid, w->mid, s.rows * c->C);
    }
    return isfinite(*error) ? OK : fail(ERR_NUMERIC, "hidden states of a layer are not finite");
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
static enum code forward(struct newton *w)
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
static enum code backward(struct newton *w, const float *e)
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
static void precondition(const struct newton *w, const struct part *s, float *to, const float *from)
{
    float scale = (float)(1.0 / (double)w->a.N), out = (float)w->c->to.residual_scale;
    scores_gemm(s->inverse_out ? w->half : to, s->width, from, s->width, 0, s->inverse, s->width, 0, s->rows, s->width, s->width,
                s->inverse_out ? scale : scale / (out * out), 0.0f);
    if (s->inverse_out)
        scores_gemm(to, s->width, s->inverse_out, s->rows, 0, w->half, s->width, 0, s->rows, s->width, s->rows, 1.0f, 0.0f);
}

/* Of the present inputs and outputs; the layer's input stays what it is. */
static enum code preconditioner(struct newton *w, int first)
{
    struct linearised *a = &w->a;
    size_t bytes = (size_t)(a->C * a->C) * sizeof(float);
    if (first)
        TRY(invert_moments(w->part[0].inverse, a->n, a->N, a->C));
    memcpy(w->part[1].inverse, w->part[0].inverse, bytes);
    memcpy(w->part[2].inverse, w->part[0].inverse, bytes);
    TRY(invert_moments(w->part[3].inverse, a->o, a->N, a->H * a->D));
    random_normal_f32(w->e, a->N * a->C, 0, 1, 0, 0, 0);
    TRY(backward(w, w->e));
    const float *reached[] = {w->dq, w->dk, w->dv};
    for (int i = 0; i < 3; i++)
        TRY(invert_moments(w->part[i].inverse_out, reached[i], a->N, w->part[i].rows));
    return OK;
}

/* x of all parts; part->best is the room for z. */
static enum code solve(struct newton *w)
{
    double rz = 0;
    TRY(backward(w, w->r));
    for (int i = 0; i < PARTS; i++) {
        struct part *s = &w->part[i];
        int64_t n = s->rows * s->width;
        memset(s->x, 0, (size_t)n * sizeof *s->x);
        memcpy(s->was, s->g, (size_t)n * sizeof *s->g); /* the residual of the system */
        precondition(w, s, s->p, s->was);
        memcpy(s->mp, s->was, (size_t)n * sizeof *s->mp);
        rz += dot_f32(s->was, s->p, n);
    }
    double first = rz;
    for (int it = 0; it < w->effort.iterations && rz > 1e-6 * first; it++) {
        TRY(forward(w));
        double pap = dot_f32(w->e, w->e, w->a.N * w->a.C), next = 0;
        for (int i = 0; i < PARTS; i++)
            pap += DAMPING * dot_f32(w->part[i].p, w->part[i].mp, w->part[i].rows * w->part[i].width);
        if (!(pap > 0))
            break;
        float alpha = (float)(rz / pap);
        TRY(backward(w, w->e));
        for (int i = 0; i < PARTS; i++) {
            struct part *s = &w->part[i];
            int64_t n = s->rows * s->width;
            for (int64_t k = 0; k < n; k++) {
                s->x[k] += alpha * s->p[k];
                s->was[k] -= alpha * (s->g[k] + (float)DAMPING * s->mp[k]);
            }
            precondition(w, s, s->best, s->was);
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

/* ---- sizes ---- */

/* Sequences, and how long to work on them: what costs LAYERS times the layer's own forward over all rows, or its share of COST, if that is more. */
static int64_t sequences_wanted(struct effort *effort, const struct arch *a, const struct arch_block *b, int64_t G, int64_t T, int64_t rows)
{
    double each = 8.0 * (double)(T * T) * (double)(b->D * b->H) + 8.0 * (double)(T * a->C) * (double)((b->H + G) * b->D);
    double layer = 2.0 * (double)rows * (double)a->C * (double)((2 * b->H + 2 * G) * b->D + (mlp_is_gated(a->mlp) ? 3 : 2) * b->F);
    double share = COST / (double)a->stack[STACK_DEC].L, budget = LAYERS * layer > share ? LAYERS * layer : share;
    int64_t most = rows / T, enough = (TOKENS + T - 1) / T, n = 0;
    enough = enough < most ? enough : most;
    for (int i = 0; i < N_EFFORTS && n < enough; i++) {
        *effort = EFFORTS[i];
        n = (int64_t)(budget / (each * (effort->rounds * (effort->iterations + 1.5))));
    }
    return n < enough ? (n * T < FEWEST ? 0 : n) : enough;
}

static int64_t floats(const struct linearised *a)
{
    int64_t hd = a->H * a->D, gd = a->G * a->D, maps = 2 * (hd + gd) * a->C;
    return a->N * (3 * a->C + 4 * hd + 4 * gd) + a->count * a->H * attention_floats(a->T) + omp_get_max_threads() * 2 * ATTENTION_ROWS * (a->T + ATTENTION_ROWS) +
           6 * maps + 3 * a->C * a->C + 2 * hd * hd + 2 * gd * gd + hd * a->C;
}

static struct linearised shape(struct effort *effort, const struct arch *a, const struct arch_block *b, int64_t G, int64_t T, int64_t rows)
{
    struct linearised l = {.T = T, .C = a->C, .H = b->H, .G = G, .D = b->D, .R = b->H / G};
    l.count = sequences_wanted(effort, a, b, G, T, rows);
    l.N = l.count * T;
    l.scale = (float)(b->scale > 0.0 ? b->scale : a->attn_scale);
    return l;
}

int64_t refit_newton_bytes(const struct arch *a, const struct arch_block *b, int64_t G, int64_t length, int64_t rows)
{
    struct effort effort;
    struct linearised l = shape(&effort, a, b, G, length, rows);
    return floats(&l) * (int64_t)sizeof(float);
}

static float *carve(float **at, int64_t n)
{
    float *p = *at;
    *at += n;
    return p;
}

static void place(struct newton *w)
{
    struct linearised *a = &w->a;
    int64_t hd = a->H * a->D, gd = a->G * a->D;
    float *at = w->memory;
    a->n = carve(&at, a->N * a->C);
    w->r = carve(&at, a->N * a->C);
    w->e = carve(&at, a->N * a->C);
    float **wide[] = {&a->q, &a->o, &w->dq, &w->d_o}, **narrow[] = {&a->k, &a->v, &w->dk, &w->dv};
    for (int i = 0; i < 4; i++) {
        *wide[i] = carve(&at, a->N * hd);
        *narrow[i] = carve(&at, a->N * gd);
    }
    a->p = carve(&at, a->count * a->H * attention_floats(a->T));
    a->memory = carve(&at, omp_get_max_threads() * 2 * ATTENTION_ROWS * (a->T + ATTENTION_ROWS));
    for (int i = 0; i < PARTS; i++) {
        struct part *s = &w->part[i];
        s->rows = i == 3 ? a->C : i == 0 ? hd : gd;
        s->width = i == 3 ? hd : a->C;
        float **each[] = {&s->x, &s->best, &s->g, &s->p, &s->mp, &s->was};
        for (int k = 0; k < 6; k++)
            *each[k] = carve(&at, s->rows * s->width);
        s->inverse = carve(&at, s->width * s->width);
        s->inverse_out = i == 3 ? NULL : carve(&at, s->rows * s->rows);
    }
    w->half = carve(&at, hd * a->C);
    CHECK(at - w->memory == floats(a));
}

static enum code rounds(struct newton *w, int64_t window)
{
    double error, before;
    TRY(held_error(w, &error));
    for (int round = 0; round < w->effort.rounds; round++) {
        before = error;
        TRY(linearise(w, window));
        TRY(preconditioner(w, round == 0));
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
    w.a = shape(&w.effort, &c->to, b, b->G, c->t.length, c->fit_rows);
    if (w.a.count == 0)
        return OK;
    w.memory = calloc((size_t)floats(&w.a), sizeof *w.memory);
    w.mid = malloc((size_t)(c->batch_rows * w.a.T * c->C) * sizeof *w.mid);
    w.sequence = malloc((size_t)w.a.count * sizeof *w.sequence);
    enum code code = w.memory && w.mid && w.sequence ? OK : fail(ERR_MEMORY, "out of memory for the attention of %lld tokens", (long long)w.a.N);
    if (code == OK) {
        place(&w);
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
