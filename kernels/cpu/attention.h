/* Private to kernels/cpu: what attention.c hands to the implementation of one instruction set.
 *
 * Causality, windows and non-decreasing document ids all make the keys a query sees one interval, and the ends of the
 * interval never move back as t grows. attention.c turns the mask into that table once per call (B*T pairs of int32);
 * the implementations know nothing else about masks: a tile pair with no visible key is skipped, one that is
 * fully visible is computed without masking, and the rest is masked by comparing key indices with [lo, hi). */
#ifndef GQAKIT_KERNELS_CPU_ATTENTION_H
#define GQAKIT_KERNELS_CPU_ATTENTION_H

#include "kernels/kernels.h"

struct attention_problem {
    int64_t B, T, S, H, G, D, R;
    float scale;
    const float *slopes; /* [H]: slopes[h] * (s - (t + q_offset)) is added to the scaled score; NULL: none */
    int64_t q_offset;    /* only for that: the table below has it already */
    int threads;
    struct view o, lse, q, k, v;    /* checked: f32, last stride 1; the backward only reads o and lse */
    struct view dq, dk, dv, dout;   /* backward only */
    const int32_t *key_lo, *key_hi; /* [B,T]: query (b,t) sees keys lo <= s < hi; lo == hi: none */
    void *scratch;                  /* what is left after the tables, 64-byte aligned */
};

/* Row (b, t) of head h of a [B,T,heads,D] view. */
static inline float *attention_row(struct view x, int64_t b, int64_t t, int64_t h)
{
    return (float *)x.p + b * x.s[0] + t * x.s[1] + h * x.s[2];
}

static inline int64_t attention_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t attention_max(int64_t a, int64_t b) { return a > b ? a : b; }

/* One per instruction set. scratch: bytes that fwd (or bwd) needs in p->scratch; only the dims and threads of p are set. */
struct attention_kernels {
    void (*fwd)(const struct attention_problem *p);
    void (*bwd)(const struct attention_problem *p);
    size_t (*fwd_scratch)(const struct attention_problem *p);
    size_t (*bwd_scratch)(const struct attention_problem *p);
};

extern const struct attention_kernels attention_plain, attention_avx2, attention_avx512;

#endif
