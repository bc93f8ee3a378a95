/* Between the files that merge heads: the moments of a layer's heads, one side (K or V) of one group, and the solvers of its parts.
 * A side's stacked heads are x = (x_1; ...; x_m), m*D elements; A is [D, m*D], E is [m*D, D]. */
#ifndef GQAKIT_CONVERT_MERGE_PARTS_H
#define GQAKIT_CONVERT_MERGE_PARTS_H

#include "merge.h"

/* What a map E of a key may do to a rotated plane, or to the dims that positions leave alone. */
enum freedom { FIXED /* nothing: E = 1 */, TURN /* keep lengths */, FREE };

/* Moments of the heads of one layer, all that methods and costs are computed from. */
struct moments {
    int64_t heads, D, planes;  /* source K/V heads; rotated planes of K */
    enum freedom *plane, rest; /* [planes]; of K */
    double *kk, *vv;           /* [heads*D, heads*D] second moments of k and v */
    double *kw, *vw;           /* [heads, D, D]: M_j; K's is diagonal over the rotated dims, and never mixes them with the others */
    double k_size, v_size;     /* sum over heads of tr(M_j S_jj) */
    void *memory;
};
/* The layer with the keys that are merged: under a norm over the whole width its weights have moved into the rows (knorm.c). *memory is
 * theirs, to be freed; NULL when they are a's own. */
enum code keys_to_merge(struct attention_layer *source, double **memory, const struct attention_layer *a, int64_t m) MUST_USE;
enum code moments_new(struct moments *s, const struct attention_layer *a, const struct merge_input *input) MUST_USE;
void moments_free(struct moments *s);

/* One side of one group. */
struct side {
    int64_t m, D, planes;
    const enum freedom *plane;
    enum freedom rest;
    double *S; /* [m*D, m*D] */
    double *M; /* [m, D, D] */
    double *A, *E;
    double layer_size;
    int plain; /* E is 1: queries or output columns stay as they are */
    void *memory;
};
enum side_kind { SIDE_K, SIDE_V };
enum code side_new(struct side *s, const struct moments *of, enum side_kind kind, const int64_t *members, int64_t m) MUST_USE;
void side_free(struct side *s);
/* Fills A and E. pick: the head that first and select keep. */
enum code side_solve(struct side *s, enum merge_method method, int64_t pick) MUST_USE;
struct side_cost { double j, relative; };
enum code side_cost(const struct side *s, struct side_cost *cost) MUST_USE;
/* merge_norm.c: makes the shared head as large as the heads it stands for. After align or svd. */
enum code side_restore(struct side *s, enum side_kind kind, enum merge_method method) MUST_USE;
/* A head's share of the layer's weighted size. */
double side_energy(const struct side *s, int64_t j);
/* The head that first (0) and select (the largest energy, K's and V's together) keep. */
int64_t pick_head(const struct side *k, const struct side *v, enum merge_method method);

/* N dims of m heads without planes: S [m*N, m*N], M [m, N, N], positive definite -> A [N, m*N], E [m*N, N]. */
enum code block_svd(double *A, double *E, const double *S, const double *M, int64_t m, int64_t N) MUST_USE;
enum code block_align(double *A, double *E, const double *S, const double *M, int64_t m, int64_t N) MUST_USE;

/* One plane of m heads: S Hermitian, S_ij = E[k_i conj(k_j)] as real and imaginary parts [m, m]; w2 [m] the weights w^2 -> a, e: z = sum a_j k_j,
 * k_j is rebuilt as e_j z. freedom TURN or FREE. */
struct complex_list { double *re, *im; };
enum code plane_solve(struct complex_list a, struct complex_list e, struct complex_list S, const double *w2, int64_t m, enum freedom freedom) MUST_USE;

#endif
