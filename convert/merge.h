/* Merging the key/value heads of one attention layer, in f64, one layer in memory at a time (GQA, Ainslie et al. 2023, is the mean).
 * Input and output are whole tensors of the layer; what is exact for a family is decided here by the layer's own facts, never by a
 * family name.
 *
 * Every linear method is two maps for each source head j of a group, [D, D], one pair for K and one for V:
 *
 *   shared head x' = sum over j of A_j x_j          x_j is rebuilt as E_j x'
 *   W_K' = sum A_j W_K,j     W_Q,h' = E_j^T W_Q,h   (scores q . k become q . E_j k')
 *   W_V' = sum A_j W_V,j     W_O,h' = W_O,h E_j     for every query head h that reads j
 *
 * on rows augmented with their biases, so biases are carried by the same maps. A legal E_j commutes with what stands between: the
 * rotary positions allow one complex number for each rotated plane (i, i + rotary/2) of a key, anything on the dims they leave alone,
 * anything for V; a norm of the keys allows less (merge_maps.c).
 *
 *   J = sum over j of E |M_j^(1/2) (x_j - E_j x')|^2,   M_j = sum over readers of E[q q^T] for K, of W_O^T W_O for V
 *
 * (one scalar for each plane where positions rotate) is what the attention sees of the error; svd is its minimum over all legal E, align
 * the minimum over those that keep lengths, mean has E = 1. Without rotary positions a constant added to every key is invisible to the
 * softmax, so there keys count without their mean. */
#ifndef GQAKIT_CONVERT_MERGE_H
#define GQAKIT_CONVERT_MERGE_H

#include "base/base.h"
#include "checkpoints/checkpoint.h"

/* One layer's attention. Row-major: q [H*D, C], k and v [G*D, C], o [C, H*D]; biases [H*D], [G*D], NULL where there is none. */
struct attention_layer {
    int64_t layer; /* its number in the model */
    int64_t C, D, H, G;    /* G: K/V heads held here */
    int64_t rotary;        /* rotated dims of every head, pairs (i, i + rotary/2); 0: none */
    enum qk_norm_kind qk_norm;
    int norm_rms;          /* the norm of q and k keeps directions (RMS): 0 for LayerNorm */
    int fixed_heads;       /* 1: heads may not be permuted (ALiBi) */
    double *q, *k, *v, *o;
    double *q_bias, *k_bias, *v_bias;
    double *q_norm, *k_norm; /* weights of the norms, NULL without: HEAD [D] both; PER_HEAD and FULL [H*D], [G*D] */
    void *memory;          /* all of the above in one piece */
};
/* Zeroed tensors of this layer of the arch, with G K/V heads (0: the arch's). */
enum code attention_layer_new(struct attention_layer *a, const struct arch *arch, int64_t layer, int64_t G) MUST_USE;
void attention_layer_free(struct attention_layer *a); /* of a zeroed struct too */
/* New, and filled from the checkpoint. A non-finite value is ERR_INPUT with its tensor's name. */
enum code attention_layer_read(struct attention_layer *a, struct checkpoint *ck, int64_t layer) MUST_USE;
/* The tensor of this canonical name ("dec.3.attn.k.w", or without "dec.3."), and its elements; NULL when it is no part of a. */
double *attention_layer_tensor(const struct attention_layer *a, const char *name, int64_t *n);

/* How much each direction of the layer's input matters: E[(n; 1)(n; 1)^T], [C+1, C+1], n the normed input of q, k and v. Everything
 * else (moments of q, k, v) follows from it and the weights. NULL: the identity. */
struct merge_input {
    const double *moments;
    uint64_t seed;  /* of MERGE_RANDOM */
    double init_sd; /* of MERGE_RANDOM; 0: 0.02 */
};

/* *moments of the weight-only form, malloc'ed: a normed input has the variances that its norm's weights give it (identity: all 1). NULL where no
 * norm stands before the attention. */
enum code merge_input_guess(double **moments, struct checkpoint *ck, int64_t layer) MUST_USE;

enum merge_method { MERGE_MEAN, MERGE_FIRST, MERGE_RANDOM, MERGE_SELECT, MERGE_ALIGN, MERGE_SVD };
#define MERGE_METHODS "mean|first|random|select|align|svd"
const char *merge_method_name(enum merge_method m);

/* What a merge cost, per group: relative squared errors of K and V under the moments (each head's k or v against what its query
 * heads now read, mapped back), and the weighted error J that align and svd minimise, before any norm is restored: K's and V's, each as
 * a share of the whole layer's weighted size, so that the sum over groups compares groupings. */
struct merge_cost {
    double *k, *v, *j; /* [G] */
    double *mean_j;    /* [G] J that the plain mean of the same heads would have; NULL: not wanted */
    double *e_k, *e_v; /* [G0, D, D] the maps E_j by source head, for what else lives in the heads' coordinates; NULL: not wanted */
};

/* from (G0 heads) -> to (to->G heads, allocated): group g holds the heads members[g*m .. g*m+m-1], m = G0 / to->G (members NULL:
 * consecutive; another order permutes q and o with it). q and o change too where the method turns heads into a common basis.
 *   mean, first   as the paper; select: the group's head with the largest share of the layer's weighted energy, K's and V's together
 *   random        fresh K and V, the values gqa-convert --method random draws
 *   align         E_j orthogonal (for a rotated plane of norm 1), and the norm of K and of V as large as the heads' on average
 *   svd           least squares; then each head's keys are rebuilt as large as they were (plane by plane where positions rotate), V is
 *                 as large under its weight as the heads' on average: measured, better with and without calibration (merge_norm.c)
 * Under a norm of the keys: HEAD allows turning planes whose gains agree (RMS only), PER_HEAD and FULL allow nothing for K, which is then
 * their mean (first's and select's: that head); FULL's weights move into the rows first, as knorm.c says. */
enum code merge_heads(struct attention_layer *to, const struct attention_layer *from, const struct merge_input *input,
                      enum merge_method method, const int64_t *members, struct merge_cost *cost) MUST_USE;
/* Which heads should share a group, by J of `method`: members [G0]. The identity where heads may not be permuted. */
enum code merge_grouping(const struct attention_layer *from, const struct merge_input *input, enum merge_method method, int64_t G,
                         int64_t *members) MUST_USE;
/* Bytes that merging this layer takes at its peak: source, result, moments and what stands between. */
int64_t merge_bytes(const struct arch *arch, int64_t layer, int64_t G);

#endif
