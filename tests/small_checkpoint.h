/* Small LLaMA-layout checkpoints for tests: shapes that see mistakes (H = 6, D != C/H, odd widths). */
#ifndef GQAKIT_TESTS_SMALL_CHECKPOINT_H
#define GQAKIT_TESTS_SMALL_CHECKPOINT_H

#include "checkpoints/checkpoint.h"

/* C 24, L 2, H heads, G key/value heads, D 8, F 20, V 37, rotary, RMSNorm, SwiGLU, tied. */
void small_arch(struct arch *a, int64_t H, int64_t G, enum dtype dtype);
/* Random values from `seed`. If repeat > 1, each `repeat` consecutive K (and V) heads are equal. edit (may be NULL) may change
 * a tensor's f32 values before they are written. */
typedef void small_edit_fn(const struct ckpt_tensor *t, float *values);
void small_write(const char *path, const struct arch *a, uint64_t seed, int64_t repeat, small_edit_fn *edit);
/* Whole tensor as f32; free by the caller. The tensor must exist. */
float *small_read(struct checkpoint *ck, const char *name);

#endif
