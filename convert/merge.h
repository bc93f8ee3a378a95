/* Merging the key/value heads of one attention layer, in f64, one layer in memory at a time (CONVERSION of the house notes; GQA,
 * Ainslie et al. 2023, is the mean). Input and output are whole tensors of the layer; what is exact for a family is decided here by
 * the layer's own facts, never by a family name. */
#ifndef GQAKIT_CONVERT_MERGE_H
#define GQAKIT_CONVERT_MERGE_H

#include "base/base.h"
#include "checkpoints/checkpoint.h"

/* One layer's attention. Row-major: q [H*D, C], k and v [G*D, C], o [C, H*D]; biases [H*D], [G*D], NULL where there is none. */
struct attention_layer {
    int64_t C, D, H, G;    /* G: K/V heads held here */
    int64_t rotary;        /* rotated dims of every head, pairs (i, i + rotary/2); 0: none */
    enum qk_norm_kind qk_norm;
    int fixed_heads;       /* 1: heads may not be permuted (ALiBi, windows or scales by head) */
    double *q, *k, *v, *o;
    double *q_bias, *k_bias, *v_bias;
};
enum code attention_layer_new(struct attention_layer *a, const struct arch *arch, int64_t layer, int64_t G) MUST_USE; /* zeroed */
void attention_layer_free(struct attention_layer *a);

/* How much each direction of the layer's input matters: E[(n; 1)(n; 1)^T], [C+1, C+1], n the normed input of q, k and v. Everything
 * else (moments of q, k, v) follows from it and the weights. NULL stands for the weight-only form (identity). */
struct merge_input { const double *moments; };

enum merge_method { MERGE_MEAN, MERGE_FIRST, MERGE_RANDOM, MERGE_SELECT, MERGE_ALIGN, MERGE_SVD };

/* What a merge cost, per group: relative squared errors of K and V under the moments (each head's k or v against what its query
 * heads now read, mapped back), and the weighted error J that align and svd minimise. */
struct merge_cost { double *k, *v, *j; /* [G] */ };

/* from (G0 heads) -> to (to->G heads, allocated): group g holds the heads members[g*m .. g*m+m-1], m = G0 / to->G (members NULL:
 * consecutive; another order permutes q and o with it). q and o change too where the method turns heads into a common basis. */
enum code merge_heads(struct attention_layer *to, const struct attention_layer *from, const struct merge_input *input,
                      enum merge_method method, const int64_t *members, struct merge_cost *cost) MUST_USE;
/* Which heads should share a group, by J of `method`: members [G0]. The identity where heads may not be permuted. */
enum code merge_grouping(const struct attention_layer *from, const struct merge_input *input, enum merge_method method, int64_t G,
                         int64_t *members) MUST_USE;

#endif
