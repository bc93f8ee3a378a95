/* Attention in double precision, written to be checked against the formula by eye; the oracle of every backend.
 * Arrays are contiguous: q, o, dout, dq [B,T,H,D]; k, v, dk, dv [B,S,G,D]; lse [B,H,T]. */
#ifndef GQAKIT_TESTS_REFERENCE_ATTENTION_H
#define GQAKIT_TESTS_REFERENCE_ATTENTION_H

#include <stdint.h>

struct ref_attention {
    int64_t B, T, S, H, G, D;
    double scale;
    int causal;
    int64_t q_offset, window_left, window_right; /* windows < 0: no limit */
    const int32_t *seg_q, *seg_k;                /* [B,T], [B,S]; NULL: one document */
    const float *slopes;                         /* [H]: slope (s - (t + q_offset)) is added to the scaled score; NULL: none */
};

int ref_attention_visible(const struct ref_attention *a, int64_t b, int64_t t, int64_t s);
void ref_attention_fwd(const struct ref_attention *a, double *o, double *lse, const double *q, const double *k, const double *v);
/* Gradients of sum(dout * O). */
void ref_attention_bwd(const struct ref_attention *a, double *dq, double *dk, double *dv, const double *dout, const double *q,
                       const double *k, const double *v);

#endif
