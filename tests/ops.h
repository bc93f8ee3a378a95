/* What the tests of kernels/cpu share: a device for each instruction set, and random views with guarded gaps between rows. */
#ifndef GQAKIT_TESTS_OPS_H
#define GQAKIT_TESTS_OPS_H

#include "harness.h"
#include "kernels/cpu/cpu.h"
#include "kernels/kernels.h"

/* A device whose loops are those of `isa`, whatever host_isa() says. */
struct device *ops_device(enum isa isa, int threads);
#define FOR_EACH_ISA(isa) for (int isa = ISA_PLAIN; isa <= (int)host_isa(); isa++)

/* A 2-d f32 view of [n0, n1] in rows of n1 + gap floats. Gaps hold a pattern that ops_gaps_ok finds unchanged.
 * Values: normals (seed != 0) or NaN (seed 0). Free .p - nothing: ops_free. */
struct view ops_rows(int64_t n0, int64_t n1, int64_t gap, uint64_t seed);
int ops_gaps_ok(struct view x, int64_t gap);
struct view ops_vector(int64_t n, uint64_t seed);
struct view ops_bf16(struct view x); /* rounded copy, contiguous; x takes the rounded values */
double *ops_f64(struct view x);      /* dense copy in double; malloc'ed */
float *ops_dense(struct view x);     /* dense copy; malloc'ed */
/* compare_f32 of a strided view with a dense double array. */
int ops_compare(const char *name, struct view got, const double *want, double rtol, double atol);
/* d/dx_i of f(context) by central differences over n doubles at x. */
void ops_differences(double (*f)(void *context), void *context, double *x, int64_t n, double *grad);

#endif
