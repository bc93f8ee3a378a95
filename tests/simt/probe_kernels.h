/* The kernels of probe_kernels.cu as test_simt.c calls them. All pointers are device memory. */
#ifndef GQAKIT_TESTS_SIMT_PROBE_KERNELS_H
#define GQAKIT_TESTS_SIMT_PROBE_KERNELS_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

enum probe_bug {
    PROBE_RIGHT,
    PROBE_NO_BARRIER, PROBE_EARLY_WRITE, PROBE_NO_WAIT, /* of probe_reduce and probe_gemm */
    PROBE_SHARED_BOUNDS, PROBE_GLOBAL_BOUNDS, PROBE_GLOBAL_BOUNDS_WRITE, PROBE_SHARED_UNINITIALISED, PROBE_GLOBAL_UNINITIALISED,
    PROBE_DIVERGENT_RETURN, PROBE_DIVERGENT_LINES, PROBE_DEADLOCK, PROBE_DEADLOCK_WARP, PROBE_MISALIGNED, PROBE_MISALIGNED_SHARED,
    PROBE_WARP_RACE, PROBE_WARP_ORDER, PROBE_NAMED_ORDER, PROBE_NAMED_RACE, PROBE_MANY_READERS, PROBE_GLOBAL_RACE, PROBE_GLOBAL_EARLY_WRITE, PROBE_ATOMIC_ORDER,
    PROBE_ATOMIC_RACE, PROBE_PRIVATE_BOUNDS, PROBE_SHUFFLE_RETURNED, PROBE_CP_MISALIGNED
};

/* out [rows] = sums of the rows of in [rows,n]. */
enum code probe_reduce(struct device *dev, float *out, const float *in, int rows, int n, int bug);
/* c f32 [M,N] = a bf16 [M,K] times b bf16 [N,K] transposed; M, N multiples of 64, K of 32. */
enum code probe_gemm(struct device *dev, float *c, const void *a, const void *b, int M, int N, int K, int bug);
/* out [32 lanes, 4 registers] of ldmatrix from in [32 rows, 8]; how: x4, x4.trans, x2, x2.trans. */
enum code probe_fragment(struct device *dev, uint32_t *out, const uint16_t *in, int how);
enum code probe_mma(struct device *dev, float *d, const uint32_t *a, const uint32_t *b); /* registers [32,4], [32,4], [32,2] */
/* 128 threads with one bug (or a right counterpart); in [n], n = 128, out [128]. */
enum code probe_bugs(struct device *dev, float *out, const float *in, int bug, int n);
enum code probe_launch(struct device *dev, float *out, const float *in, unsigned grid, unsigned block, size_t smem);

/* A random program for 96 threads, i32: for every phase [PER_PHASE, THREADS] accesses (kind | bytes << 4 | first byte << 8 | word << 12),
 * then how all meet. */
#define PROBE_SCRIPT_THREADS 96
#define PROBE_SCRIPT_PHASES 6
#define PROBE_SCRIPT_PER_PHASE 2
enum { PROBE_NOTHING, PROBE_READ, PROBE_WRITE, PROBE_ATOMIC };
enum { PROBE_SYNC_NONE, PROBE_SYNC_BLOCK, PROBE_SYNC_WARP, PROBE_SYNC_HALF, PROBE_SYNC_NAMED, PROBE_SYNC_ARRIVE };
enum code probe_script(struct device *dev, const int32_t *script);

#ifdef __cplusplus
}
#endif
#endif
