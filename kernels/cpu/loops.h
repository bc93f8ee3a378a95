/* The single-threaded inner loops of the CPU backend, one table per instruction set. They are written once, in
 * loops_*.inc over vec.h, and compiled by loops_plain.c, loops_avx2.c and loops_avx512.c. The operations (norm.c,
 * matmul.c, ...) check their arguments, cut the work into ranges that do not depend on each other, and call these. */
#ifndef GQAKIT_KERNELS_CPU_LOOPS_H
#define GQAKIT_KERNELS_CPU_LOOPS_H

#include "kernels/kernels.h"

/* c[m][n] = alpha * a[m].w[n] + beta * c[m][n] + bias[n] for n in [n0, n1); w rows of K, f32 or bf16. */
struct gemv_job {
    float *c;
    const float *a, *bias; /* bias NULL: none */
    const void *w;
    int w_is_bf16;
    int64_t ldc, lda, ldw, M, K;
    float alpha, beta; /* beta 0: c is not read */
};

/* Strides are of rows. NULL where the operation's argument is absent. */
struct norm_job {
    float *y, *sum, *mean, *rstd;
    const float *x, *residual, *base, *w, *b; /* base, NULL or not, is added to the normalised row */
    int64_t ldy, ldsum, ldx, ldr, ldbase, C;
    enum norm_kind kind;
    float eps;
};
struct norm_bwd_job {
    float *dx;
    const float *dy, *dres, *x, *w, *mean, *rstd;
    int64_t lddx, lddy, lddres, ldx, C;
    enum norm_kind kind;
};

struct act_job {
    float *y, *dgate, *dup;
    const float *gate, *up, *dy;
    int64_t ldy, lddgate, lddup, ldgate, ldup, lddy, F;
    enum mlp_kind kind;
};

/* One row of logits l (raw dot products times logit_scale): z = softcap(l + bias). */
struct xent_row {
    float *l;
    const float *bias; /* already times logit_scale, or NULL */
    int64_t V;
    float softcap;     /* 0: none */
};

/* A row of the student and one of its teacher: a = (y - ymax) / tau, b = (z - zmax) / tau. */
struct xent_pair {
    const float *z;
    float *y;
    int64_t V;
    float zmax, ymax, inv_tau;
    int keep_exp; /* y becomes exp(a) */
};
/* Gradient of a row with a teacher: (plain exp(z - max) + soft exp((z - soft_max) / tau) - hard y) (1 - (z / cap)^2). */
struct xent_mix {
    float *l;       /* z, becomes the gradient */
    const float *y; /* NULL: none */
    int64_t V;
    float max, soft_max, inv_tau, inv_cap; /* inv_cap 0: no cap */
    float plain, soft, hard;
};

struct adamw_job {
    float *p, *g, *m, *v;
    float clip, beta1, beta2, step_size, inv_bc2, eps, decay; /* p = p * decay - step_size * m / (sqrt(v * inv_bc2) + eps) */
    int zero_grad;
};

/* ---- decode: cache layout and one range of it ----
 * The cache of one (b, g) is a sequence of tiles of DECODE_TILE positions: the K part, then the V part.
 *   K: [DECODE_TILE/16][Dk/2 or Dk][16] f32: kblock[d][s]; bf16: pairs, kblock[d/2][s][d%2]; Dk = D (f32), D rounded to 2 (bf16)
 *   V: [DECODE_TILE][Dv], Dv = D rounded to 16
 * so one pass over the cache is one linear read. */
#define DECODE_TILE 64
#define DECODE_D_MAX 256
#define DECODE_Q_STRIDE 272 /* floats between packed query rows, and between rows of scores: no power of two, so that rows */
#define DECODE_P_STRIDE 80  /* do not all fall into the same few sets of the first-level cache */
#define DECODE_ROWS_MAX 768 /* query rows (Tq * R) of one group */
struct decode_job {
    const void *tiles; /* of one (b, g) */
    int bf16;
    int64_t D, Dk, Dv;
    int64_t rows;            /* query rows r = j * R + h */
    int64_t R, len, window_left; /* row r sees positions (max(0, len + r/R - window_left)) .. len + r/R */
    const float *slopes;     /* ALiBi of the R heads: slopes[r % R] * (s - (len + r/R)) is added to the score; NULL: none */
    const float *q;          /* [rows][DECODE_Q_STRIDE], times the softmax scale, zero from D to Dk */
    float *o;                /* [rows][Dv]: sum of p V, not yet divided */
    float *max, *sum;        /* [rows] */
    float *scores;           /* [DECODE_RB_MAX][DECODE_P_STRIDE] */
};
#define DECODE_RB_MAX 12 /* query rows that share one pass over a tile's registers */

struct loops {
    const char *name;
    /* pack: M * (K rounded up to 16) floats of this thread's */
    void (*gemv)(const struct gemv_job *job, float *pack, int64_t n0, int64_t n1);
    void (*norm_fwd)(const struct norm_job *job, int64_t lo, int64_t hi);
    /* dw, db: this range's own sums [C], accumulated; NULL: not wanted */
    void (*norm_bwd)(const struct norm_bwd_job *job, float *dw, float *db, int64_t lo, int64_t hi);
    /* Rotates heads x[0], x[stride], ...; half = r/2. */
    void (*rope)(float *x, int64_t heads, int64_t stride, const float *cosines, const float *sines, int64_t half, int inverse);
    void (*act_fwd)(const struct act_job *job, int64_t lo, int64_t hi);
    void (*act_bwd)(const struct act_job *job, int64_t lo, int64_t hi);
    /* l becomes z; returns its maximum and the sum of exp(z - max). keep_exp: l becomes exp(z - max) instead. */
    void (*xent_stats)(const struct xent_row *row, int keep_exp, float *max, double *sum);
    /* l becomes z; returns its maximum (NaN is passed over) */
    float (*xent_see)(const struct xent_row *row);
    /* sum of exp((z - max) / tau) */
    double (*xent_sum)(const float *z, int64_t V, float max, float inv_tau);
    /* sums: of exp(b), of exp(a), of exp(a) (a - b); the first two are added up alike, so that they are equal where a is b */
    void (*xent_pair_sums)(const struct xent_pair *pair, double sums[3]);
    void (*xent_mix_grad)(const struct xent_mix *mix);
    /* l from what xent_stats left: factor * (softmax - [target]) through the softcap; is_exp as keep_exp was. */
    void (*xent_grad)(const struct xent_row *row, int is_exp, float max, double sum, int64_t target, float factor);
    /* y[i] = a * x[i] + b * y[i] (b 0: y is not read) */
    void (*axpby)(float *y, const float *x, float a, float b, int64_t n);
    void (*fill)(float *y, float a, int64_t n);
    void (*clip)(float *y, const float *x, float limit, int64_t n);        /* NaN stays NaN; y may be x */
    void (*clip_grad)(float *dx, const float *x, float limit, int64_t n);  /* 0 where |x| > limit */
    void (*from_bf16)(float *y, const uint16_t *x, int64_t n);
    double (*sumsq)(const float *x, int64_t n);
    void (*adamw)(const struct adamw_job *job, int64_t n);
    void (*decode)(const struct decode_job *job, int64_t tile_lo, int64_t tile_hi);
    float (*read)(const float *x, int64_t n);      /* bandwidth probe: sums; n a multiple of 256 */
    double (*fma)(int64_t rounds, float *keep);    /* peak probe: floating-point operations done */
};

extern const struct loops loops_plain;
#ifndef GQAKIT_NO_SIMD
extern const struct loops loops_avx2, loops_avx512;
#endif

#endif
