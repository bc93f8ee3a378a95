/* The SIMT executor as tests see it: a backend whose kernels are the CUDA sources compiled by g++ and run on the CPU
 * (tests/simt/executor.h says how), its device memory, and the faults it found. C11 and C++17. */
#ifndef GQAKIT_TESTS_SIMT_HOST_H
#define GQAKIT_TESTS_SIMT_HOST_H

#include <stddef.h>
#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

enum simt_fault_kind {
    SIMT_RACE,          /* two accesses to one byte, at least one a write, not ordered by a barrier */
    SIMT_BOUNDS,        /* an address outside shared memory or outside an allocation; also memory of the host */
    SIMT_UNINITIALISED, /* a byte read that nobody has written */
    SIMT_MISALIGNED,    /* an access not aligned to its size */
    SIMT_ASYNC,         /* bytes of an asynchronous copy or product touched before they were waited for */
    SIMT_DIVERGENT,     /* a __syncthreads not reached by all threads, or reached on different lines */
    SIMT_DEADLOCK,      /* every thread waits; the launch ends */
    SIMT_LAUNCH,        /* a launch no GPU would accept */
    SIMT_MODEL,         /* an instruction used against its rules (register fragments, descriptors, generation) */
    SIMT_FAULT_KINDS
};

const struct backend *simt_backend(void);
/* The generation that device_open of the backend opens from now on: 80 or 90 (at first 90). */
void simt_open_as(int arch);

/* Device memory, 256-byte aligned, unreadable bytes on both sides. initialised: zeroed and counted as written. */
void *simt_alloc(size_t bytes, int initialised);
void simt_free(void *p);
/* Copies from host code, any direction; bytes that arrive in device memory count as written. */
void simt_copy(void *dst, const void *src, size_t bytes);
/* Counts [p, p + bytes) of device memory as never written (again). */
void simt_forget(void *p, size_t bytes);

/* Faults since the last call, which forgets them. Each kind prints its first few when found, unless quiet; this prints the totals. */
int simt_faults(void);
/* Faults of one kind since the last simt_faults(). */
int simt_fault_count(enum simt_fault_kind kind);
void simt_quiet(int quiet); /* for tests that seed bugs */
/* Order in which the threads of a block run: 'f'orward, 'r'everse, or 'x' pseudo-random by seed. And when asynchronous copies land:
 * 'l'ate (at the wait) or 'e'arly (at issue). Defaults come from GQAKIT_SIMT_ORDER=forward|reverse|random:SEED, GQAKIT_SIMT_ASYNC=late|early. */
void simt_set_order(char order, unsigned seed);
void simt_set_async(char when);

#ifdef __cplusplus
}
#endif
#endif
