/* How much memory and arithmetic a layer's Gauss-Newton system takes, and how many tokens and steps a budget allows (newton_system.h). */
#include <omp.h>

#include "newton_system.h"

enum { TOKENS = 32768, FEWEST = 4096 };
/* The first for which the budget allows TOKENS, else the last, if it allows FEWEST. */
static const struct effort EFFORTS[] = {{10, 12}, {10, 5}, {6, 4}, {4, 4}, {3, 3}};
enum { N_EFFORTS = sizeof EFFORTS / sizeof *EFFORTS };
#define LAYERS 2.0
#define COST 1.2e13 /* operations, of all layers together */

/* Operations of the preconditioner whatever the number of tokens: to apply it once, or (double precision, twice the time) to invert its moments. */
static double precondition_cost(const struct arch *a, const struct arch_block *b, int64_t G, int invert)
{
    double C = (double)a->C, q = (double)(b->H * b->D), kv = (double)(G * b->D);
    if (invert)
        return 2.0 * 7.0 / 3.0 * (C * C * C + 2 * q * q * q + 2 * kv * kv * kv);
    return 2.0 * (q * C * (C + q) + 2 * kv * C * (C + kv) + C * q * q);
}

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
        double fixed = effort->rounds * (effort->iterations * precondition_cost(a, b, G, 0) + precondition_cost(a, b, G, 1));
        n = budget > fixed ? (int64_t)((budget - fixed) / (each * (effort->rounds * (effort->iterations + 1.5)))) : 0;
    }
    return n < enough ? (n * T < FEWEST ? 0 : n) : enough;
}

int64_t newton_floats(const struct linearised *a)
{
    int64_t hd = a->H * a->D, gd = a->G * a->D, maps = 2 * (hd + gd) * a->C;
    return a->N * (3 * a->C + 4 * hd + 4 * gd) + a->count * a->H * attention_floats(a->T) + omp_get_max_threads() * 2 * ATTENTION_ROWS * (a->T + ATTENTION_ROWS) +
           6 * maps + 3 * a->C * a->C + 2 * hd * hd + 2 * gd * gd + hd * a->C;
}

struct linearised newton_shape(struct effort *effort, const struct arch *a, const struct arch_block *b, int64_t G, int64_t T, int64_t rows)
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
    struct linearised l = newton_shape(&effort, a, b, G, length, rows);
    return newton_floats(&l) * (int64_t)sizeof(float);
}

static float *carve(float **at, int64_t n)
{
    float *p = *at;
    *at += n;
    return p;
}

void newton_place(struct newton *w)
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
    CHECK(at - w->memory == newton_floats(a));
}
