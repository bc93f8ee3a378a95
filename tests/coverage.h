/* Included before everything else in a COV=1 build: a child that ends by _exit writes what it ran, too. Else the check of an .h5 (h5_guard.c) and
 * what the tests run under faults would count as never run. */
#ifndef GQAKIT_TESTS_COVERAGE_H
#define GQAKIT_TESTS_COVERAGE_H

#include <unistd.h>

void __gcov_dump(void);
__attribute__((weak)) int coverage_dumping; /* no fault is for this (fault_memory.c) */

static inline _Noreturn void coverage_exit(int status)
{
    coverage_dumping = 1;
    __gcov_dump();
    _exit(status);
}
#define _exit coverage_exit

#endif
