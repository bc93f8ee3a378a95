/* What every test includes: cmocka, comparisons that a NaN fails, a temporary directory, real data, child programs.
 * A test file ends with: int main(int argc, char **argv) { return harness_main(argc, argv, tests, COUNT_OF(tests)); } */
#ifndef GQAKIT_TESTS_HARNESS_H
#define GQAKIT_TESTS_HARNESS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#undef fail /* cmocka's macro hides base/error.h's function; assert_true(0) says the same */

#include "base/base.h"

#define COUNT_OF(a) (sizeof(a) / sizeof((a)[0]))
#define assert_ok(expr) harness_ok((expr), #expr, __FILE__, __LINE__)
/* The call is refused with this code and a sentence that contains `part`. */
#define assert_refused(expr, code, part) harness_refused((expr), (code), (part), #expr, __FILE__, __LINE__)
#define assert_f32(name, got, want, n, rtol, atol) \
    assert_true(compare_f32((name), (got), (want), (n), (rtol), (atol)))

/* Runs the tests and returns the exit status of the program. Calls harness_boot, host_threads_set(0); sets GQAKIT_DEVICE, what
 * `--device auto` means, to GQAKIT_TEST_DEVICE (default cpu); removes the temporary directory. An argument is a cmocka filter: build/tests/test_x 'test_name*'. */
int harness_main(int argc, char **argv, const struct CMUnitTest *tests, size_t n);
int harness_run(const struct CMUnitTest *tests, size_t n); /* the same without arguments */
/* Called first thing in main: kernels_boot, which may execute the program again. A test may define its own. */
void harness_boot(int argc, char **argv);

void harness_ok(enum code code, const char *expr, const char *file, int line);
void harness_refused(enum code got, enum code want, const char *part, const char *expr, const char *file, int line);

/* 1 when every element obeys |got - want| <= atol + rtol * |want|. Otherwise prints the number of non-finite values, the
 * worst element with its index and both values, and the NMSE. A non-finite value on either side fails. Elements are
 * contiguous. */
int compare_f32(const char *name, const float *got, const double *want, int64_t n, double rtol, double atol);
int compare_view(const char *name, struct view got, const double *want, double rtol, double atol); /* contiguous, any float type */
/* Normalised mean squared error: sum (got - want)^2 / sum want^2. */
double nmse_f32(const float *got, const double *want, int64_t n);

/* The larger of two errors; one that is not a finite number is infinitely large (fmax alone drops a NaN), and stays so. */
double worse_error(double worst, double error);

void fill_nan(float *p, int64_t n);
void fill_random(float *p, int64_t n, uint64_t seed);   /* normals times 1 */
void fill_random_f64(double *p, int64_t n, uint64_t seed);
int64_t random_int(uint64_t seed, uint64_t i, int64_t lo, int64_t hi); /* inclusive */

const char *temp_dir(void);               /* one directory per test program, under $TMPDIR or /tmp */
char *temp_path(const char *name);        /* inside it; free by the caller */
void temp_write(const char *name, const void *bytes, size_t n); /* a file inside it */

/* A path below $GQAKIT_DATA (default ../shared/data), or NULL after printing what is skipped. Free by the caller. */
char *data_path(const char *relative);

struct child { int status; /* exit status, 128 + signal when killed */ char *out, *err; };
/* Runs a program (argv ends with NULL), waits, captures. An environment pair list NAME=VALUE may be NULL. */
struct child child_run(const char *const *argv, const char *const *env);
void child_free(struct child *c);
char *program_path(const char *name); /* "gqa-convert" beside the tests: BUILD/name; free by the caller */

#endif
