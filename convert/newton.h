/* Private to the refit: the attention of one layer, linearised at its present weights (newton_attention.c), for refit_newton.c. */
#ifndef GQAKIT_CONVERT_NEWTON_H
#define GQAKIT_CONVERT_NEWTON_H

#include "base/base.h"

/* Everything of `count` sequences of T tokens, N = count * T rows, one after the other. Queries and keys as the attention read them. */
struct linearised {
    int64_t count, T, N, C, H, G, D, R; /* R = H / G */
    float scale;                        /* of the scores */
    float *n;                           /* [N,C] what q, k and v are projected from */
    float *q, *o;                       /* [N,H*D] */
    float *k, *v;                       /* [N,G*D] */
    float *p;                           /* attention, [count, H, attention_floats(T)] */
    float *memory;                      /* [threads, 2 * ATTENTION_ROWS * (T + ATTENTION_ROWS)] */
};
enum { ATTENTION_ROWS = 32 };
/* The attention of one head and sequence: blocks of ATTENTION_ROWS rows, each over the keys up to its last row. */
int64_t attention_floats(int64_t T);
/* p of this sequence, from its q and k: segment [T], lse [H,T] and slopes [H] (NULL: no ALiBi) as the model has them; window 0: none. */
void attention_fill(const struct linearised *a, int64_t sequence, const int32_t *segment, const float *lse, const float *slopes, int64_t window);
/* out [N,H*D]: change of o when q, k and v change by dq, dk and dv. */
void attention_change(const struct linearised *a, float *out, const float *dq, const float *dk, const float *dv);
/* The transposed map: from do [N,H*D] to dq, dk, dv. */
void attention_gradient(const struct linearised *a, const float *d_o, float *dq, float *dk, float *dv);

#endif
