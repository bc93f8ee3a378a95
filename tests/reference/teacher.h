/* Cross-entropy mixed with a teacher's distribution, and the likeliest tokens, in double precision. All arrays are dense. */
#ifndef GQAKIT_TESTS_REFERENCE_TEACHER_H
#define GQAKIT_TESTS_REFERENCE_TEACHER_H

#include <stdint.h>

struct ref_head { /* logits z = cap tanh(scale (x w^T + bias) / cap) */
    const double *x, *w, *bias; /* [N,C], [V,C], [V] or NULL */
    int64_t C;
    double scale, cap; /* cap 0: none */
};
struct ref_teacher {
    const struct ref_head *head; /* NULL: tokens instead */
    const int32_t *ids;          /* [N,K], -1: unused */
    const double *logp;          /* [N,K] */
    int64_t K;
    double weight, tau;
};

/* z [V]: the logits of row n. */
void ref_logits(double *z, const struct ref_head *h, int64_t n, int64_t V);
/* Over rows with a target: the sum of (1 - weight) CE + weight tau^2 KL, and of CE and KL alone (NULL: not wanted). */
double ref_teacher_loss(const struct ref_head *student, const struct ref_teacher *t, const int32_t *targets, int64_t N, int64_t V, double *ce, double *kl);
/* The gradient of factor times that loss in closed form, added to dx [N,C], dw [V,C], db [V] (NULL: not wanted). round_logit (NULL: none) is
 * applied to the gradient of every logit. */
void ref_teacher_gradient(double *dx, double *dw, double *db, const struct ref_head *student, const struct ref_teacher *t, const int32_t *targets,
                          int64_t N, int64_t V, double factor, double (*round_logit)(double));
/* ids, logp [K] of logits z: the largest first, equal ones by their number; ln of the softmax of z / tau. */
void ref_topk(int32_t *ids, double *logp, const double *z, int64_t V, int64_t K, double tau);

#endif
