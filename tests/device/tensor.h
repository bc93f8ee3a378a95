/* Matrices of device tests: rows of `cols` elements with a gap behind each that no operation may write. All are freed by tensors_free. */
#ifndef GQAKIT_TESTS_DEVICE_TENSOR_H
#define GQAKIT_TESTS_DEVICE_TENSOR_H

#include "device_case.h"

struct tensor {
    struct view v;     /* [rows, cols], row stride cols + gap, on the device */
    struct view whole; /* with the gaps */
    double *x;         /* [rows, cols] dense: what the device was given; NULL for outputs */
    int64_t gap;
};

/* Normals times `size`. gap 8 keeps rows 16-byte aligned, gap 3 does not. */
struct tensor tensor_random(enum dtype type, int64_t rows, int64_t cols, int64_t gap, uint64_t seed, double size);
struct tensor tensor_of(enum dtype type, int64_t rows, int64_t cols, int64_t gap, const double *x);
struct tensor tensor_output(enum dtype type, int64_t rows, int64_t cols, int64_t gap); /* NaN */
struct tensor tensor_copy(struct tensor t);                                            /* of what the device was given */
struct view tensor_vector(double *x, enum dtype type, int64_t n);
double *tensor_get(struct tensor t); /* dense */
double *tensor_get_view(struct view v);
int tensor_gaps_ok(struct tensor t); /* every element of every gap is still NaN */
double *tensor_doubles(int64_t n);   /* zeroed host memory */
double tensor_round(double x, enum dtype type);
void tensors_free(void);

/* got against truth, as close as the type allows: f32 within relative 1e-5 and `absolute`; bf16 within half a unit in the last place of
 * the rounded truth and `absolute`. */
void tensor_expect(const char *what, enum dtype type, const double *got, const double *truth, int64_t n, double absolute);

#endif
