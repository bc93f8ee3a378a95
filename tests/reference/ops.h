/* The operations of kernels.h other than attention in double precision, forward only: gradients are checked against finite
 * differences of these. All arrays are dense. */
#ifndef GQAKIT_TESTS_REFERENCE_OPS_H
#define GQAKIT_TESTS_REFERENCE_OPS_H

#include <stdint.h>

#include "base/kinds.h"

/* c [M,N] = alpha op(a) op(b) + beta c + bias; bias may be NULL. */
void ref_matmul(double *c, const double *a, const double *b, const double *bias, int64_t M, int64_t N, int64_t K, int trans_a, int trans_b,
                double alpha, double beta);
/* y [N,C]; mean, rstd [N] or NULL; w, b may be NULL. */
void ref_norm(double *y, double *mean, double *rstd, const double *x, const double *w, const double *b, int64_t N, int64_t C, enum norm_kind kind,
              double eps);
/* In place on x [heads,D] at one position: cosines, sines [half]. */
void ref_rope(double *x, int64_t heads, int64_t D, const double *cosines, const double *sines, int64_t half);
/* One element; gate ignored by ungated kinds. */
double ref_act(double gate, double up, enum mlp_kind kind);
/* Returns the sum of -ln p over targets >= 0; logp [N] (0 where masked) or NULL. bias may be NULL, softcap 0: none. */
double ref_xent(double *logp, const double *x, const double *w, const double *bias, const int32_t *targets, int64_t N, int64_t C, int64_t V,
                double logit_scale, double softcap);
/* One step for one element. */
void ref_adamw(double *p, double *m, double *v, double g, double lr, double beta1, double beta2, double eps, double decay, int64_t step);

#endif
