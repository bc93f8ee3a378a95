/* merge_heads: moments, then each side of each group on its own, then the maps applied to the layer's tensors. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "linalg.h"
#include "merge_parts.h"

const char *merge_method_name(enum merge_method m)
{
    static const char *const names[] = {"mean", "first", "random", "select", "align", "svd"};
    return names[m];
}

/* What one call works on. */
struct job {
    struct attention_layer *to;
    const struct attention_layer *from;
    struct attention_layer source; /* from, but with the keys that are merged: those of FULL carry their norm's weights */
    double *scaled;                /* those keys and their bias; NULL when they are from's own */
    const int64_t *members;
    int64_t m, D, C;
    enum merge_method method;
    struct side *sides; /* [2 * G]: K and V of each group */
};

static int64_t readers(const struct attention_layer *a) { return a->H / a->G; }

/* ---- keys under a norm over the whole width: see knorm.c ------------------------------------------------------------- */

static double mean_square(const double *x, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += x[i] * x[i];
    return sum / (double)n;
}

/* As plain as the keys under it: the mean or one head's. Random keys start afresh. */
static void mean_key_norm(const struct job *job)
{
    int64_t D = job->D;
    for (int64_t i = 0; i < job->to->G * D; i++) {
        const struct side *s = &job->sides[2 * (i / D)];
        double sum = 0;
        for (int64_t j = 0; j < job->m; j++)
            sum += s->A[i % D * job->m * D + j * D + i % D] * job->from->k_norm[job->members[i / D * job->m + j] * D + i % D];
        job->to->k_norm[i] = job->method == MERGE_RANDOM ? 1 : sum;
    }
}

/* One constant, whose share the keys lose. */
static void constant_key_norm(const struct job *job)
{
    const struct attention_layer *a = job->from;
    struct attention_layer *to = job->to;
    int64_t n = to->G * job->D;
    double merged = mean_square(to->k, n * job->C), old = mean_square(a->k, a->G * job->D * job->C);
    double constant = job->method == MERGE_RANDOM || !(merged > 0 && old > 0) ? 1 : sqrt(merged / old);
    for (int64_t i = 0; i < n; i++)
        to->k_norm[i] = constant;
    for (int64_t i = 0; i < n * job->C; i++)
        to->k[i] /= constant;
    for (int64_t i = 0; to->k_bias && i < n; i++)
        to->k_bias[i] /= constant;
}

static void finish_key_norm(const struct job *job)
{
    const struct attention_layer *a = job->from;
    int64_t D = job->D;
    if (a->qk_norm == QK_NORM_HEAD)
        memcpy(job->to->k_norm, a->k_norm, (size_t)D * sizeof *a->k_norm);
    else if (a->qk_norm != QK_NORM_NONE && job->m == 1)
        for (int64_t g = 0; g < job->to->G; g++)
            memcpy(job->to->k_norm + g * D, a->k_norm + job->members[g] * D, (size_t)D * sizeof *a->k_norm);
    else if (a->qk_norm == QK_NORM_PER_HEAD)
        mean_key_norm(job);
    else if (a->qk_norm == QK_NORM_FULL)
        constant_key_norm(job);
}

/* ---- solving ----------------------------------------------------------------------------------------------------------- */

/* Fresh heads know nothing of the old ones: nothing of those is kept, and the new ones' size adds to the error. */
static void random_cost(struct side_cost *c) { *c = (struct side_cost){.j = 0, .relative = 1}; }

static enum code solve_side(const struct job *job, struct side *s, enum side_kind kind, int64_t pick, struct merge_cost *cost, int64_t g)
{
    struct side_cost c;
    if (cost && cost->mean_j) {
        TRY(side_solve(s, MERGE_MEAN, 0));
        TRY(side_cost(s, &c));
#pragma omp atomic
        cost->mean_j[g] += c.j;
    }
    TRY(side_solve(s, job->method, pick));
    if (job->method == MERGE_RANDOM) {
        random_cost(&c);
        for (int64_t j = 0; j < s->m; j++)
            c.j += side_energy(s, j);
    } else {
        TRY(side_cost(s, &c));
    }
    double j = c.j;
    if (!s->plain && (kind == SIDE_V || job->from->qk_norm == QK_NORM_NONE)) {
        TRY(side_restore(s, kind, job->method));
        TRY(side_cost(s, &c));
    }
    if (cost) {
        (kind == SIDE_K ? cost->k : cost->v)[g] = c.relative;
#pragma omp atomic
        cost->j[g] += j;
    }
    return OK;
}

/* Sentences belong to their thread: the first task's that failed, carried to the caller. */
struct trouble { enum code code; int64_t task; char text[512]; };
static void note(struct trouble *t, enum code c, int64_t task)
{
    if (c == OK)
        return;
#pragma omp critical(merge_trouble)
    if (t->code == OK || task < t->task) {
        t->code = c;
        t->task = task;
        snprintf(t->text, sizeof t->text, "%s", fail_text());
    }
}

static enum code solve_groups(const struct job *job, const struct moments *moments, struct merge_cost *cost)
{
    int64_t G = job->to->G;
    struct trouble trouble = {OK, 0, ""};
    for (int64_t g = 0; g < G; g++) {
        const int64_t *members = job->members + g * job->m;
        TRY(side_new(&job->sides[2 * g], moments, SIDE_K, members, job->m));
        TRY(side_new(&job->sides[2 * g + 1], moments, SIDE_V, members, job->m));
        if (cost)
            cost->j[g] = 0;
        if (cost && cost->mean_j)
            cost->mean_j[g] = 0;
    }
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < 2 * G; i++) {
        int64_t g = i / 2, pick = pick_head(&job->sides[2 * g], &job->sides[2 * g + 1], job->method);
        note(&trouble, solve_side(job, &job->sides[i], i % 2 ? SIDE_V : SIDE_K, pick, cost, g), i);
    }
    return trouble.code == OK ? OK : fail(trouble.code, "%s", trouble.text);
}

/* ---- applying ---------------------------------------------------------------------------------------------------------- */

/* Rows [D, width] of head g of the result: sum over its members of A_j times their rows. */
static void apply_heads(double *to, const double *from, int64_t width, const struct job *job, const struct side *s, int64_t g)
{
    int64_t D = job->D;
    double *out = to + g * D * width;
    if (job->m == 1) {
        memcpy(out, from + job->members[g] * D * width, (size_t)(D * width) * sizeof *out);
        return;
    }
    for (int64_t j = 0; j < job->m; j++)
        mul(out, width, s->A + j * D, job->m * D, PLAIN, from + job->members[g * job->m + j] * D * width, width, PLAIN, D, width, D, 1, j > 0);
}

/* Query head `to` of the result is head `from` of the source, turned by E_j. */
static void apply_query(const struct job *job, const struct side *k, const struct side *v, int64_t j, int64_t to, int64_t from)
{
    int64_t D = job->D, C = job->C, ld = job->from->H * D;
    const struct attention_layer *a = job->from;
    struct attention_layer *b = job->to;
    const double *E = k->E + j * D * D;
    if (k->plain) {
        memcpy(b->q + to * D * C, a->q + from * D * C, (size_t)(D * C) * sizeof *b->q);
        if (a->q_bias)
            memcpy(b->q_bias + to * D, a->q_bias + from * D, (size_t)D * sizeof *b->q_bias);
    } else {
        mul(b->q + to * D * C, C, E, D, TRANSPOSED, a->q + from * D * C, C, PLAIN, D, C, D, 1, 0);
        if (a->q_bias)
            mul(b->q_bias + to * D, 1, E, D, TRANSPOSED, a->q_bias + from * D, 1, PLAIN, D, 1, D, 1, 0);
    }
    if (a->q_norm && a->qk_norm != QK_NORM_HEAD)
        memcpy(b->q_norm + to * D, a->q_norm + from * D, (size_t)D * sizeof *b->q_norm);
    if (!v->plain)
        mul(b->o + to * D, ld, a->o + from * D, ld, PLAIN, v->E + j * D * D, D, PLAIN, C, D, D, 1, 0);
    for (int64_t c = 0; v->plain && c < C; c++)
        memcpy(b->o + c * ld + to * D, a->o + c * ld + from * D, (size_t)D * sizeof *b->o);
}

static void apply_maps(const struct job *job)
{
    const struct attention_layer *a = &job->source;
    struct attention_layer *b = job->to;
    int64_t R = readers(job->from), G0 = a->G;
    if (a->qk_norm == QK_NORM_HEAD)
        memcpy(b->q_norm, a->q_norm, (size_t)job->D * sizeof *b->q_norm);
#pragma omp parallel for schedule(dynamic)
    for (int64_t s = 0; s < G0; s++) {
        int64_t g = s / job->m;
        const struct side *k = &job->sides[2 * g], *v = k + 1;
        for (int64_t r = 0; r < R; r++)
            apply_query(job, k, v, s % job->m, s * R + r, job->members[s] * R + r);
        if (s % job->m)
            continue;
        apply_heads(b->k, a->k, job->C, job, k, g);
        apply_heads(b->v, a->v, job->C, job, v, g);
        if (b->k_bias)
            apply_heads(b->k_bias, a->k_bias, 1, job, k, g);
        if (b->v_bias)
            apply_heads(b->v_bias, a->v_bias, 1, job, v, g);
    }
}

static enum code fresh_tensor(double *to, const struct attention_layer *a, const struct merge_input *input, const char *name)
{
    char canonical[64];
    int64_t n = a->G * a->D * a->C;
    float *values = malloc((size_t)n * sizeof *values);
    if (!values)
        return fail(ERR_MEMORY, "out of memory for layer %lld's fresh heads", (long long)a->layer);
    snprintf(canonical, sizeof canonical, "dec.%lld.%s", (long long)a->layer, name);
    double sd = input && input->init_sd > 0 ? input->init_sd : 0.02;
    random_normal_f32(values, n, 0, (float)sd, input ? input->seed : 0, random_stream_of(canonical), 0);
    for (int64_t i = 0; i < n; i++)
        to[i] = (double)values[i];
    free(values);
    return OK;
}

static enum code draw_fresh(struct attention_layer *to, const struct merge_input *input)
{
    TRY(fresh_tensor(to->k, to, input, "attn.k.w"));
    TRY(fresh_tensor(to->v, to, input, "attn.v.w"));
    if (to->k_bias)
        memset(to->k_bias, 0, (size_t)(to->G * to->D) * sizeof *to->k_bias);
    if (to->v_bias)
        memset(to->v_bias, 0, (size_t)(to->G * to->D) * sizeof *to->v_bias);
    return OK;
}

/* The result has the source's shape but for G; `members` names every head once. */
static void check_shapes(const struct attention_layer *to, const struct attention_layer *from, const int64_t *members)
{
    CHECK(to->C == from->C && to->D == from->D && to->H == from->H && to->G > 0 && from->G % to->G == 0 && to->qk_norm == from->qk_norm);
    int64_t sum = 0;
    for (int64_t i = 0; i < from->G; i++) {
        CHECK(members[i] >= 0 && members[i] < from->G && (members[i] == i || !from->fixed_heads));
        for (int64_t k = 0; k < i; k++)
            CHECK(members[k] != members[i]);
        sum += members[i];
    }
    CHECK(sum == from->G * (from->G - 1) / 2);
}

static void keep_maps(const struct job *job, double *maps, enum side_kind kind)
{
    int64_t DD = job->D * job->D;
    for (int64_t i = 0; maps && i < job->to->G * job->m; i++)
        memcpy(maps + job->members[i] * DD, job->sides[2 * (i / job->m) + (kind == SIDE_V)].E + i % job->m * DD, (size_t)DD * sizeof *maps);
}

static enum code merge(struct job *job, const struct merge_input *input, struct merge_cost *cost)
{
    struct moments moments;
    TRY(keys_to_merge(&job->source, &job->scaled, job->from, job->m));
    TRY(moments_new(&moments, &job->source, input));
    enum code c = solve_groups(job, &moments, cost);
    moments_free(&moments);
    TRY(c);
    if (cost) {
        keep_maps(job, cost->e_k, SIDE_K);
        keep_maps(job, cost->e_v, SIDE_V);
    }
    apply_maps(job);
    if (job->method == MERGE_RANDOM && job->m > 1)
        TRY(draw_fresh(job->to, input));
    finish_key_norm(job);
    return OK;
}

enum code merge_heads(struct attention_layer *to, const struct attention_layer *from, const struct merge_input *input, enum merge_method method,
                      const int64_t *members, struct merge_cost *cost)
{
    int64_t *order = malloc((size_t)from->G * sizeof *order);
    struct job job = {.to = to, .from = from, .members = order, .m = from->G / to->G, .D = from->D, .C = from->C, .method = method};
    job.sides = calloc((size_t)(2 * to->G), sizeof *job.sides);
    if (!order || !job.sides) {
        free(order);
        free(job.sides);
        return fail(ERR_MEMORY, "out of memory for layer %lld's groups", (long long)from->layer);
    }
    for (int64_t i = 0; i < from->G; i++)
        order[i] = members ? members[i] : i;
    check_shapes(to, from, order);
    enum code c = merge(&job, input, cost);
    for (int64_t i = 0; i < 2 * to->G; i++)
        side_free(&job.sides[i]);
    free(job.sides);
    free(job.scaled);
    free(order);
    return c;
}
