/* What every test of a device backend shares. The same test is linked twice: with the kernels in the SIMT executor
 * (build/tests/simt_*) and, where nvcc is, with the real ones (build/tests/cuda_*, skipped without a GPU).
 * Errors are judged by the 2x rule: at most twice the error of the plain computation in the same low precision, both against
 * double precision on the same rounded inputs; NaN fails. */
#ifndef GQAKIT_TESTS_DEVICE_DEVICE_CASE_H
#define GQAKIT_TESTS_DEVICE_DEVICE_CASE_H

#include "harness.h"
#include "kernels/kernels.h"

/* The backend under test, by the link: "simt" or "cuda". */
const struct backend *case_backend(void);
struct device *case_device(void);
/* Opens the device once per program (cmocka group setup). Executor: as generation `arch`, 80 or 90, given by case_arch (default 90).
 * No GPU: prints why and ends the program as skipped. */
int case_open(void **state);
int case_close(void **state);
/* main of a device test: opens, runs, closes. int main(int argc, char **argv) { return case_main(argc, argv, tests, COUNT_OF(tests)); } */
int case_main(int argc, char **argv, const struct CMUnitTest *tests, size_t n);
/* Reopens as generation 80 or 90 (what was uploaded is freed). 0 on a GPU that is older: skip that case; a newer GPU runs the older kernels. */
int case_arch(int arch);

/* A tensor in device memory, an allocation of its own with unreadable bytes on both sides in the executor. `x` is rounded in
 * place to `type` first, so that references use what the device sees. Freed by case_free. n[] outermost first. */
struct view case_upload(double *x, enum dtype type, int nd, const int64_t *n);
struct view case_upload_i32(const int32_t *x, int nd, const int64_t *n);
struct view case_output(enum dtype type, int nd, const int64_t *n); /* filled with NaN */
void case_download(double *x, struct view v);                       /* any strides; x dense */
void *case_bytes(size_t bytes);                                     /* scratch: uninitialised for the executor */
void case_free(void);                                               /* everything allocated since case_open */

/* max |got - truth| <= 2 max |plain - truth| + floor; prints both when not. */
void case_expect_2x(const char *what, const double *got, const double *truth, const double *plain, size_t n, double floor);
/* |got - truth| <= absolute + relative |truth| for every element. */
void case_expect_near(const char *what, const double *got, const double *truth, size_t n, double absolute, double relative);
/* Executor: number of faults reported since the last call (races, bounds, uninitialised, divergence), which it prints; GPU: 0. */
int case_faults(void);

#endif
