/* What the tests of attention share: one problem with its inputs in float views and in doubles, NaN-filled outputs with guards
 * around them, and what the oracle says. */
#ifndef GQAKIT_TESTS_ATTENTION_CASE_H
#define GQAKIT_TESTS_ATTENTION_CASE_H

#include "harness.h"
#include "kernels/kernels.h"
#include "reference/attention.h"

#define GUARD 8 /* floats after every row, which nobody may write */

extern struct device *attention_device; /* of all allowed CPUs, unless a test opens another */

struct attention_case {
    struct ref_attention a;
    int strided; /* q, k, v are slices of rows that also hold GUARD floats; else each is contiguous */
    float *rows_q, *rows_kv, *drows_q, *drows_kv, *o_rows, *dout_rows, *lse;
    double *q, *k, *v, *dout;                  /* the same numbers */
    double *o, *lse_want, *dq, *dk, *dv;       /* what the oracle says */
    struct view vq, vk, vv, vdq, vdk, vdv, vo, vdout, vlse;
    struct attention_args args;
    void *scratch;
    size_t scratch_bytes;
};

/* D wide heads, T queries and keys, causal, scale D^-0.5. */
struct ref_attention attention_case_causal(int64_t B, int64_t T, int64_t H, int64_t G, int64_t D);
void attention_case_open(struct attention_case *p, const struct ref_attention *a, int strided);
void attention_case_close(struct attention_case *p);
void attention_case_fwd(struct attention_case *p);
void attention_case_bwd(struct attention_case *p);
/* Opens, runs both passes, compares everything with the oracle and the guards with what they were, closes. */
void attention_case_check(const struct ref_attention *a, int strided);

void *test_alloc(int64_t n, size_t size); /* zeroed; never NULL */
void attention_view_get(float *to, struct view x); /* copies a strided view */
double attention_largest(const double *x, int64_t n); /* of the absolute values */

/* A test: runs the program again for every instruction set below the machine's best, with GQAKIT_ISA. */
void test_attention_every_isa(void **state);
/* main of a test program: opens attention_device, runs, closes. */
int attention_case_main(int argc, char **argv, const struct CMUnitTest *tests, size_t n);

#endif
