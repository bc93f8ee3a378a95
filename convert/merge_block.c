/* The dims of a group's heads where any linear map is legal (V, and keys that positions do not rotate): x = (x_1; ...; x_m) with second
 * moments S, weights M_j, one shared x' = A x, x_j rebuilt as E_j x'.
 *   svd    least squares of M_j^(1/2) (x_j - E_j x'): with L = diag(M_j^(1/2)), U the N leading eigenvectors of L S L:
 *          A = U^T L, E_j = M_j^(-1/2) U_j (the singular value decomposition of L Z through the moments of Z).
 *   align  E_j = R_j orthogonal. For given R the best x' is B^-1 sum R_j^T M_j x_j, B = sum R_j^T M_j R_j, and J = sum tr(M_j S_jj) -
 *          tr(B S'). For given x' (C_j = E[x_j x'^T], S' = E[x' x'^T]) no closed form minimises under a weight, but replacing M_j by its
 *          largest eigenvalue l_j where it enters squared bounds J from above, and touches it at the present R_j:
 *          R_j <- nearest orthogonal of M_j C_j + (l_j - M_j) R_j S', which is plain Procrustes when M_j = 1. J only falls. Two starts, the
 *          unweighted svd's nearest orthogonal matrices (exact when the heads are turned copies) and 1 (so never worse than the mean).
 * x' is free by an invertible map: taken so that sum E_j^T E_j = m, and turned so that the E_j lie round 1: equal heads stay as they are. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "linalg.h"
#include "merge_parts.h"

#define MOST_ROUNDS 60
#define ENOUGH 1e-5 /* a round that lowers J by a smaller share is the last */

static enum code turn_round_one(double *A, double *E, int64_t m, int64_t N)
{
    double *sum = calloc((size_t)(2 * N * N + m * N * N), sizeof *sum);
    if (!sum)
        return fail(ERR_MEMORY, "out of memory for a basis of %lld dims", (long long)N);
    double *Q = sum + N * N, *old = Q + N * N;
    for (int64_t j = 0; j < m; j++)
        for (int64_t i = 0; i < N * N; i++)
            sum[i] += E[j * N * N + i];
    enum code c = nearest_orthogonal(Q, sum, N);
    if (c == OK) {
        memcpy(old, E, (size_t)(m * N * N) * sizeof *old);
        mul(E, N, old, N, PLAIN, Q, N, TRANSPOSED, m * N, N, N, 1, 0);
        memcpy(old, A, (size_t)(m * N * N) * sizeof *old);
        mul(A, m * N, Q, N, PLAIN, old, m * N, PLAIN, N, m * N, N, 1, 0);
    }
    free(sum);
    return c;
}

/* sum E_j^T E_j = m, then the turn. */
static enum code choose_basis(double *A, double *E, int64_t m, int64_t N)
{
    double *gram = malloc((size_t)(3 * N * N + m * N * N) * sizeof *gram);
    if (!gram)
        return fail(ERR_MEMORY, "out of memory for a basis of %lld dims", (long long)N);
    double *root = gram + N * N, *inverse = root + N * N, *old = inverse + N * N;
    mul(gram, N, E, N, TRANSPOSED, E, N, PLAIN, N, N, m * N, 1 / (double)m, 0);
    enum code c = matrix_roots(root, inverse, gram, N);
    if (c == OK) {
        memcpy(old, E, (size_t)(m * N * N) * sizeof *old);
        mul(E, N, old, N, PLAIN, inverse, N, PLAIN, m * N, N, N, 1, 0);
        memcpy(old, A, (size_t)(m * N * N) * sizeof *old);
        mul(A, m * N, root, N, PLAIN, old, m * N, PLAIN, N, m * N, N, 1, 0);
    }
    free(gram);
    return c == OK ? turn_round_one(A, E, m, N) : c;
}

/* T = L S L. L [m, N, N] symmetric. */
static void weigh(double *T, const double *S, const double *L, int64_t m, int64_t N, double *room)
{
    int64_t n = m * N;
    for (int64_t j = 0; j < m; j++)
        mul(room + j * N * n, n, L + j * N * N, N, PLAIN, S + j * N * n, n, PLAIN, N, n, N, 1, 0);
    for (int64_t j = 0; j < m; j++)
        mul(T + j * N, n, room + j * N, n, PLAIN, L + j * N * N, N, PLAIN, n, N, N, 1, 0);
}

enum code block_svd(double *A, double *E, const double *S, const double *M, int64_t m, int64_t N)
{
    int64_t n = m * N;
    double *T = malloc((size_t)(2 * n * n + 4 * n * N + N + N * N) * sizeof *T);
    if (!T)
        return fail(ERR_MEMORY, "out of memory for a group of %lld heads", (long long)m);
    double *room = T + n * n, *L = room + n * n, *inverse = L + n * N, *U = inverse + n * N, *values = U + n * N, *copy = values + N;
    enum code c = OK;
    for (int64_t j = 0; c == OK && j < m; j++) {
        memcpy(copy, M + j * N * N, (size_t)(N * N) * sizeof *copy);
        c = matrix_roots(L + j * N * N, inverse + j * N * N, copy, N);
    }
    if (c == OK) {
        weigh(T, S, L, m, N, room);
        c = eigen_top(values, U, T, n, N);
    }
    for (int64_t j = 0; c == OK && j < m; j++) { /* U holds U^T: rows */
        mul(A + j * N, n, U + j * N, n, PLAIN, L + j * N * N, N, PLAIN, N, N, N, 1, 0);
        mul(E + j * N * N, N, inverse + j * N * N, N, PLAIN, U + j * N, n, TRANSPOSED, N, N, N, 1, 0);
    }
    free(T);
    return c == OK ? choose_basis(A, E, m, N) : c;
}

/* ---- align --------------------------------------------------------------------------------------------------------- */

struct align {
    const double *S, *M;
    int64_t m, N;
    double *R;     /* [m*N, N] */
    double *A;     /* [N, m*N] of this R */
    double *AS;    /* [N, m*N]: C_j^T side by side */
    double *shared, *B, *t, *u, *largest; /* [N, N] each, [m] */
    double J;
};

/* A, AS, S' and J of the present R. */
static enum code best_shared(struct align *a)
{
    int64_t N = a->N, n = a->m * N;
    memset(a->B, 0, (size_t)(N * N) * sizeof *a->B);
    double total = 0;
    for (int64_t j = 0; j < a->m; j++) {
        mul(a->A + j * N, n, a->R + j * N * N, N, TRANSPOSED, a->M + j * N * N, N, PLAIN, N, N, N, 1, 0);
        mul(a->B, N, a->A + j * N, n, PLAIN, a->R + j * N * N, N, PLAIN, N, N, N, 1, 1);
        for (int64_t x = 0; x < N; x++)
            for (int64_t y = 0; y < N; y++)
                total += a->M[(j * N + x) * N + y] * a->S[(j * N + y) * n + j * N + x];
    }
    memcpy(a->t, a->B, (size_t)(N * N) * sizeof *a->t);
    TRY(solve_spd(a->A, a->t, N, n));
    mul(a->AS, n, a->A, n, PLAIN, a->S, n, PLAIN, N, n, n, 1, 0);
    mul(a->shared, N, a->AS, n, PLAIN, a->A, n, TRANSPOSED, N, N, n, 1, 0);
    a->J = total;
    for (int64_t i = 0; i < N; i++)
        for (int64_t k = 0; k < N; k++)
            a->J -= a->B[i * N + k] * a->shared[k * N + i];
    return OK;
}

static enum code turn_heads(struct align *a)
{
    int64_t N = a->N, n = a->m * N;
    for (int64_t j = 0; j < a->m; j++) {
        double *R = a->R + j * N * N;
        const double *M = a->M + j * N * N;
        mul(a->u, N, R, N, PLAIN, a->shared, N, PLAIN, N, N, N, 1, 0);
        for (int64_t x = 0; x < N; x++)
            for (int64_t y = 0; y < N; y++) {
                a->t[x * N + y] = a->largest[j] * a->u[x * N + y];
                a->u[x * N + y] = a->AS[y * n + j * N + x] - a->u[x * N + y];
            }
        mul(a->t, N, M, N, PLAIN, a->u, N, PLAIN, N, N, N, 1, 1);
        TRY(nearest_orthogonal(R, a->t, N));
    }
    return OK;
}

static enum code descend(struct align *a)
{
    TRY(best_shared(a));
    for (int round = 0; round < MOST_ROUNDS; round++) {
        double before = a->J;
        TRY(turn_heads(a));
        TRY(best_shared(a));
        if (!(a->J < before * (1 - ENOUGH)))
            break;
    }
    return OK;
}

static enum code first_start(struct align *a, double *E)
{
    int64_t N = a->N, n = a->m * N;
    double *one = calloc((size_t)(n * N), sizeof *one);
    if (!one)
        return fail(ERR_MEMORY, "out of memory for a group of %lld heads", (long long)a->m);
    for (int64_t i = 0; i < n; i++)
        one[i * N + i % N] = 1;
    enum code c = block_svd(a->A, E, a->S, one, a->m, N);
    for (int64_t j = 0; c == OK && j < a->m; j++)
        c = nearest_orthogonal(a->R + j * N * N, E + j * N * N, N);
    free(one);
    return c;
}

static enum code both_starts(struct align *a, double *A, double *E)
{
    int64_t N = a->N, n = a->m * N;
    TRY(first_start(a, E));
    TRY(descend(a));
    double J = a->J;
    memcpy(A, a->A, (size_t)(n * N) * sizeof *A);
    memcpy(E, a->R, (size_t)(n * N) * sizeof *E);
    memset(a->R, 0, (size_t)(n * N) * sizeof *a->R);
    for (int64_t i = 0; i < n; i++)
        a->R[i * N + i % N] = 1;
    TRY(descend(a));
    if (a->J <= J) {
        memcpy(A, a->A, (size_t)(n * N) * sizeof *A);
        memcpy(E, a->R, (size_t)(n * N) * sizeof *E);
    }
    return turn_round_one(A, E, a->m, N);
}

enum code block_align(double *A, double *E, const double *S, const double *M, int64_t m, int64_t N)
{
    int64_t n = m * N;
    double *room = malloc((size_t)(3 * n * N + 4 * N * N + m) * sizeof *room);
    if (!room)
        return fail(ERR_MEMORY, "out of memory for a group of %lld heads", (long long)m);
    struct align a = {.S = S, .M = M, .m = m, .N = N, .R = room, .A = room + n * N, .AS = room + 2 * n * N};
    a.shared = room + 3 * n * N;
    a.B = a.shared + N * N;
    a.t = a.B + N * N;
    a.u = a.t + N * N;
    a.largest = a.u + N * N;
    enum code c = OK;
    for (int64_t j = 0; c == OK && j < m; j++) {
        memcpy(a.t, M + j * N * N, (size_t)(N * N) * sizeof *a.t);
        c = eigen_top(&a.largest[j], a.u, a.t, N, 1);
    }
    if (c == OK)
        c = both_starts(&a, A, E);
    free(room);
    return c;
}
