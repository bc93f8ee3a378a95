/* One side (K or V) of one group: its share of the layer's moments, the maps of a method put together from planes and the rest, and
 * what they cost. With S' = A S A^T and C_j = E[x_j x'^T] = (A S)_j^T,
 *   E (x_j - E_j x')(..)^T = S_jj - C_j E_j^T - E_j C_j^T + E_j S' E_j^T. */
#include <stdlib.h>
#include <string.h>

#include "linalg.h"
#include "merge_parts.h"

enum code side_new(struct side *s, const struct moments *of, enum side_kind kind, const int64_t *members, int64_t m)
{
    int64_t D = of->D, n = m * D, all = of->heads * D;
    int is_k = kind == SIDE_K;
    const double *S = is_k ? of->kk : of->vv, *M = is_k ? of->kw : of->vw;
    *s = (struct side){.m = m, .D = D, .planes = is_k ? of->planes : 0, .plane = of->plane, .rest = is_k ? of->rest : FREE,
                       .layer_size = is_k ? of->k_size : of->v_size};
    s->memory = malloc((size_t)(n * n + 3 * n * D) * sizeof(double));
    if (!s->memory)
        return fail(ERR_MEMORY, "out of memory for a group of %lld heads", (long long)m);
    s->S = s->memory;
    s->M = s->S + n * n;
    s->A = s->M + n * D;
    s->E = s->A + n * D;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < m; j++)
            memcpy(s->S + i * n + j * D, S + (members[i / D] * D + i % D) * all + members[j] * D, (size_t)D * sizeof *S);
    for (int64_t j = 0; j < m; j++)
        memcpy(s->M + j * D * D, M + members[j] * D * D, (size_t)(D * D) * sizeof *M);
    return OK;
}

void side_free(struct side *s)
{
    free(s->memory);
    *s = (struct side){0};
}

static double *a_at(const struct side *s, int64_t row, int64_t j, int64_t col) { return s->A + row * s->m * s->D + j * s->D + col; }
static double *e_at(const struct side *s, int64_t j, int64_t row, int64_t col) { return s->E + (j * s->D + row) * s->D + col; }

/* E = 1 on dims [from, to) and A the mean, or one head when pick >= 0. */
static void keep_dims(struct side *s, int64_t from, int64_t to, int64_t pick)
{
    for (int64_t j = 0; j < s->m; j++)
        for (int64_t i = from; i < to; i++) {
            *a_at(s, i, j, i) = pick < 0 ? 1 / (double)s->m : (double)(j == pick);
            *e_at(s, j, i, i) = 1;
        }
}

/* A complex number as a map of the dims (p, p + planes): [re -im; im re]. */
static void put_complex(double *top, double *bottom, int64_t h2, double re, double im)
{
    top[0] = re;
    top[h2] = -im;
    bottom[0] = im;
    bottom[h2] = re;
}

static enum code solve_plane(struct side *s, int64_t p, enum freedom freedom, double *room)
{
    int64_t m = s->m, D = s->D, n = m * D, h2 = s->planes;
    struct complex_list a = {room, room + m}, e = {room + 2 * m, room + 3 * m}, S = {room + 5 * m, room + 5 * m + m * m};
    double *w2 = room + 4 * m;
    for (int64_t i = 0; i < m; i++) {
        const double *re = s->S + (i * D + p) * n, *im = s->S + (i * D + p + h2) * n;
        w2[i] = s->M[(i * D + p) * D + p];
        for (int64_t j = 0; j < m; j++) {
            S.re[i * m + j] = re[j * D + p] + im[j * D + p + h2];
            S.im[i * m + j] = im[j * D + p] - re[j * D + p + h2];
        }
    }
    TRY(plane_solve(a, e, S, w2, m, freedom));
    for (int64_t j = 0; j < m; j++) {
        put_complex(a_at(s, p, j, p), a_at(s, p + h2, j, p), h2, a.re[j], a.im[j]);
        put_complex(e_at(s, j, p, p), e_at(s, j, p + h2, p), h2, e.re[j], e.im[j]);
    }
    return OK;
}

static enum code solve_planes(struct side *s, enum merge_method method)
{
    int64_t m = s->m;
    double *room = malloc((size_t)(5 * m + 2 * m * m) * sizeof *room);
    if (!room)
        return fail(ERR_MEMORY, "out of memory for the planes of %lld heads", (long long)m);
    enum code c = OK;
    for (int64_t p = 0; c == OK && p < s->planes; p++) {
        if (s->plane[p] == FIXED) {
            keep_dims(s, p, p + 1, -1);
            keep_dims(s, p + s->planes, p + s->planes + 1, -1);
        } else {
            c = solve_plane(s, p, method == MERGE_SVD ? s->plane[p] : TURN, room);
        }
    }
    free(room);
    return c;
}

/* The dims from `from` on, by a block solver. */
static enum code solve_rest(struct side *s, int64_t from, enum merge_method method)
{
    int64_t m = s->m, D = s->D, N = D - from, n = m * N;
    double *S = malloc((size_t)(n * n + 3 * n * N) * sizeof *S);
    if (!S)
        return fail(ERR_MEMORY, "out of memory for a group of %lld heads", (long long)m);
    double *M = S + n * n, *A = M + n * N, *E = A + n * N;
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < m; j++)
            memcpy(S + i * n + j * N, s->S + (i / N * D + from + i % N) * m * D + j * D + from, (size_t)N * sizeof *S);
        memcpy(M + i * N, s->M + (i / N * D + from + i % N) * D + from, (size_t)N * sizeof *M);
    }
    enum code c = method == MERGE_SVD ? block_svd(A, E, S, M, m, N) : block_align(A, E, S, M, m, N);
    for (int64_t i = 0; c == OK && i < N; i++)
        for (int64_t j = 0; j < m; j++) {
            memcpy(a_at(s, from + i, j, from), A + i * n + j * N, (size_t)N * sizeof *A);
            memcpy(e_at(s, j, from + i, from), E + (j * N + i) * N, (size_t)N * sizeof *E);
        }
    free(S);
    return c;
}

enum code side_solve(struct side *s, enum merge_method method, int64_t pick)
{
    int64_t D = s->D, rotary = 2 * s->planes;
    memset(s->A, 0, (size_t)(s->m * D * D) * sizeof *s->A);
    memset(s->E, 0, (size_t)(s->m * D * D) * sizeof *s->E);
    s->plain = s->m == 1 || (method != MERGE_ALIGN && method != MERGE_SVD);
    if (s->plain) {
        keep_dims(s, 0, D, method == MERGE_MEAN || s->m == 1 ? -1 : pick);
        return OK;
    }
    TRY(solve_planes(s, method));
    if (s->rest == FIXED)
        keep_dims(s, rotary, D, -1);
    else if (rotary < D)
        TRY(solve_rest(s, rotary, method));
    return OK;
}

/* tr(M X), M NULL: tr X. */
static double weighted_trace(const double *M, const double *X, int64_t D)
{
    double sum = 0;
    for (int64_t i = 0; i < D; i++)
        for (int64_t k = M ? 0 : i; k < (M ? D : i + 1); k++)
            sum += (M ? M[i * D + k] : 1) * X[k * D + i];
    return sum;
}

double side_energy(const struct side *s, int64_t j)
{
    double sum = 0;
    for (int64_t i = 0; i < s->D; i++)
        for (int64_t k = 0; k < s->D; k++)
            sum += s->M[(j * s->D + i) * s->D + k] * s->S[(j * s->D + k) * s->m * s->D + j * s->D + i];
    return s->layer_size > 0 ? sum / s->layer_size : 0;
}

int64_t pick_head(const struct side *k, const struct side *v, enum merge_method method)
{
    int64_t best = 0;
    double most = -1;
    for (int64_t j = 0; method == MERGE_SELECT && j < k->m; j++) {
        double e = side_energy(k, j) + side_energy(v, j);
        if (e > most) {
            most = e;
            best = j;
        }
    }
    return best;
}

enum code side_cost(const struct side *s, struct side_cost *cost)
{
    int64_t D = s->D, n = s->m * D;
    double *AS = malloc((size_t)(n * D + 3 * D * D) * sizeof *AS);
    if (!AS)
        return fail(ERR_MEMORY, "out of memory for a group of %lld heads", (long long)s->m);
    double *shared = AS + n * D, *error = shared + D * D, *t = error + D * D, size = 0, distance = 0;
    mul(AS, n, s->A, n, PLAIN, s->S, n, PLAIN, D, n, n, 1, 0);
    mul(shared, D, AS, n, PLAIN, s->A, n, TRANSPOSED, D, D, n, 1, 0);
    cost->j = 0;
    for (int64_t j = 0; j < s->m; j++) {
        const double *E = s->E + j * D * D;
        for (int64_t i = 0; i < D; i++)
            memcpy(error + i * D, s->S + (j * D + i) * n + j * D, (size_t)D * sizeof *error);
        size += weighted_trace(NULL, error, D);
        mul(error, D, AS + j * D, n, TRANSPOSED, E, D, TRANSPOSED, D, D, D, -1, 1);
        mul(error, D, E, D, PLAIN, AS + j * D, n, PLAIN, D, D, D, -1, 1);
        mul(t, D, E, D, PLAIN, shared, D, PLAIN, D, D, D, 1, 0);
        mul(error, D, t, D, PLAIN, E, D, TRANSPOSED, D, D, D, 1, 1);
        cost->j += weighted_trace(s->M + j * D * D, error, D);
        distance += weighted_trace(NULL, error, D);
    }
    cost->j = s->layer_size > 0 && cost->j > 0 ? cost->j / s->layer_size : 0;
    cost->relative = size > 0 && distance > 0 ? distance / size : 0;
    free(AS);
    return OK;
}
