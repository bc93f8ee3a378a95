/* A decoder transformer in double precision with plain loops over the arch and tensors by name: the oracle for model/. It
 * follows the papers, not the code under test: no fusion, no cache, attention rows written out, rotary angles recomputed here. */
#ifndef GQAKIT_TESTS_REFERENCE_TRANSFORMER_H
#define GQAKIT_TESTS_REFERENCE_TRANSFORMER_H

#include "checkpoints/checkpoint.h"

/* Tensors by canonical name, all in double. */
struct reference_tensor { char name[64]; double *p; int64_t n; };
struct reference_model { const struct arch *arch; struct reference_tensor *tensor; int count; };

void reference_model_init(struct reference_model *m, const struct arch *arch); /* all tensors zero */
void reference_model_free(struct reference_model *m);
double *reference_tensor(const struct reference_model *m, const char *name); /* NULL when the arch has none */
/* Fills every tensor with deterministic normals of a size that keeps activations near 1 (norm weights around 1). */
void reference_model_fill(struct reference_model *m, uint64_t seed);

/* ids, positions, segments [B,T]; positions NULL: 0..T-1; segments NULL: one document. logits [B,T,V]. */
void reference_logits(const struct reference_model *m, int64_t B, int64_t T, const int32_t *ids, const int32_t *positions,
                      const int32_t *segments, double *logits);
/* Sum of -ln p(target) over targets >= 0; logp [B,T] (may be NULL): ln p(target), 0 where masked. */
double reference_loss(const struct reference_model *m, int64_t B, int64_t T, const int32_t *ids, const int32_t *positions,
                      const int32_t *segments, const int32_t *targets, double *logp);

#endif
