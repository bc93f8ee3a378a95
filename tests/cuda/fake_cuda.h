/* The CUDA runtime without a GPU: what kernels/cuda calls, on host memory, so that its host parts run as they are (nvcc's own objects
 * are linked). Kernels do nothing, but every launch is checked against the limits of compute capability 9.0.
 * As late as the rules allow: what is put on the stream runs when the host waits for it (stream, event, or memory read back) and no
 * sooner, so a buffer used again too early or a result read too early gives wrong bytes. */
#ifndef GQAKIT_TESTS_FAKE_CUDA_H
#define GQAKIT_TESTS_FAKE_CUDA_H

#include <stddef.h>

struct fake_cuda {
    /* What the machine is; fake_cuda_reset gives a driver of this toolkit's version and one device 9.0. */
    int driver, devices, major, minor;
    int fail_at; /* the n-th allocation from now fails (1: the next); 0: none */
    int dry;     /* large fills and all products are skipped: for sizes nobody wants to wait for */
    int no_bias; /* the fake cuBLASLt has no algorithm with a bias epilogue */
    int nothing; /* ... and none at all */
    /* What happened. */
    long allocations, live;             /* device and pinned allocations made; those not freed */
    long launches, products, questions; /* kernels; products; questions to the heuristic */
    long waits;                         /* the host waited for something not done yet */
    long captured;                      /* operations recorded into graphs */
    size_t device_bytes;                /* in use */
    char fault[400];                    /* the first broken rule; "" when none */
};
extern struct fake_cuda fake;
void fake_cuda_reset(void);
/* For the fake cuBLASLt: puts a copy of the context on the stream. */
void fake_enqueue(void (*run)(void *context), const void *context, size_t bytes);
void fake_fault(const char *format, ...) __attribute__((format(printf, 1, 2)));
int fake_is_device(const void *p, size_t bytes); /* inside one device allocation */

#endif
