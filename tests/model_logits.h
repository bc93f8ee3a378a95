/* The logits of a checkpoint, for tests that ask whether two checkpoints compute the same. */
#ifndef GQAKIT_TESTS_MODEL_LOGITS_H
#define GQAKIT_TESTS_MODEL_LOGITS_H

#include "checkpoints/checkpoint.h"

/* [2, V]: after T - 5 (at least 1) and after T ids of a fixed random sequence, f32 on the CPU; malloc'ed. NULL when the model cannot be opened: fail_text() says why. */
float *model_logits(struct checkpoint *ck, int64_t T);
/* The largest difference as a share of the largest logit of a; HUGE_VAL for a non-finite value. */
double logits_distance(const float *a, const float *b, int64_t n);

#endif
