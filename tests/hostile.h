/* The operations of a backend whose memory is the host's, on memory that the host must not touch, as a GPU's is: what finds every
 * place above kernels/ that reads or writes device memory itself, or hands host memory to an operation.
 *   - device_alloc gives pages without any access rights; they are opened while an operation or a copy runs, and only then, so a
 *     direct access ends the program with SIGSEGV;
 *   - every view and pointer an operation gets must lie in one allocation, whole; else the operation is refused by name;
 *   - decode operations can be recorded and run again, as CUDA graphs are. */
#ifndef GQAKIT_TESTS_HOSTILE_H
#define GQAKIT_TESTS_HOSTILE_H

#include "kernels/kernels.h"

/* One at a time: a second call replaces the first. */
const struct backend *hostile_backend(const struct backend *of);

/* Since the program started. */
struct hostile_counts { int64_t allocations, reads /* copies to the host */, writes /* copies from it */, operations, graph_runs; };
struct hostile_counts hostile_counts(void);

#endif
