/* What is checked of any architecture, against the double reference of tests/reference/transformer.c. Each takes over the arch. */
#ifndef GQAKIT_TESTS_MODEL_CHECKS_H
#define GQAKIT_TESTS_MODEL_CHECKS_H

#include "model_fixture.h"

enum { TINY_V = 37 };

/* ln p of a packed batch, twice: sums are added to. */
void check_score(struct arch *a, const char *what, int train);
/* Gradients of one batch into model_flat().grads, from zero. */
void gradients(struct tiny *t, double *loss);
/* Every tensor's gradient, at most `most` elements of each, against central differences. */
void check_gradients(struct arch *a, int recompute, int64_t most);
/* A K/V cache for the tiny batch. */
struct model_options cached_options(enum dtype weights, enum dtype cache);
/* Prefills `first` tokens, then `step` at a time; every last-position row of logits is compared with the whole forward. */
void check_decode(struct arch *a, const char *what, const struct model_options *o, int64_t first, int64_t step, double tolerance);
/* Largest |a - b|; infinite when a value is not finite. */
double largest_error(const float *a, const double *b, int64_t n);

#endif
