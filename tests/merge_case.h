/* One attention layer for the tests of merging: random ones of every kind that merging treats differently, an oracle that computes the
 * layer's output by plain loops in double, legal changes of a head's basis, random moments. C = 20, H = 8, D = 6 (H*D != C). */
#ifndef GQAKIT_TESTS_MERGE_CASE_H
#define GQAKIT_TESTS_MERGE_CASE_H

#include "checkpoints/checkpoint.h"
#include "convert/merge.h"

enum merge_kind {
    KIND_ROTARY, KIND_PARTIAL /* rotary 4 of 6, biases */, KIND_LEARNED /* biases, positions outside */, KIND_ALIBI,
    KIND_HEAD_NORM /* RMS, gains agree inside planes */, KIND_HEAD_GAINS /* they do not */, KIND_LAYER_NORM /* per head, LayerNorm */,
    KIND_FULL_NORM, KINDS
};
const char *kind_name(enum merge_kind k);

/* H query and G K/V heads, two layers; a model that model/ runs. */
void merge_arch(struct arch *a, enum merge_kind kind, int64_t H, int64_t G);
void random_layer(struct attention_layer *a, const struct arch *arch, uint64_t seed);
void copy_layer(struct attention_layer *to, const struct attention_layer *from, const struct arch *arch);

/* K/V head j becomes a copy of head i (may be j) in another basis, its readers' queries and output columns go with it: each of them
 * computes what it did with head i. gains: lengths change too. Keys only turn as far as the kind allows. */
void map_head(struct attention_layer *a, int64_t j, int64_t i, int gains, uint64_t seed);

/* The layer's output, [T, C], for normed inputs x [T, C] at positions 0 .. T-1: causal, rotary theta 100, ALiBi slopes by head. */
double *layer_output(const struct attention_layer *a, const struct arch *arch, const double *x, int64_t T);
/* Largest difference as a share of the largest element. */
double output_distance(const struct attention_layer *a, const struct attention_layer *b, const struct arch *arch);

/* E[(n; 1)(n; 1)^T] of 200 random inputs that prefer some directions, and do not have mean zero. malloc'ed. */
double *random_moments(int64_t C, uint64_t seed);

#endif
