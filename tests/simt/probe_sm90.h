/* Kernels that use every sm_90a instruction as the product's do, with bugs to seed: probe_sm90.cu, for test_simt_sm90.c. C11 and C++17. */
#ifndef GQAKIT_TESTS_SIMT_PROBE_SM90_H
#define GQAKIT_TESTS_SIMT_PROBE_SM90_H

#include <stdint.h>
#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

enum sm90_bug {
    BUG_NONE,
    BUG_NO_FULL_WAIT,     /* the consumer does not wait for its stage */
    BUG_WARP_NO_WAIT,     /* ... one warp of eight does not */
    BUG_EARLY_RELEASE,    /* the stage is released before wgmma_wait */
    BUG_NO_WGMMA_WAIT,    /* the accumulators are read without wgmma_wait */
    BUG_FEW_WGMMA_WAIT,   /* wgmma_wait<1> where <0> is needed */
    BUG_BYTES_FEW,        /* the announced bytes are fewer than the copies bring */
    BUG_BYTES_MANY,       /* ... and more */
    BUG_NO_INIT_FENCE,    /* no fence_mbarrier_init */
    BUG_NO_INIT_BARRIER,  /* no __syncthreads after mbarrier_init */
    BUG_INIT_TWICE,
    BUG_NO_INIT,
    BUG_ARRIVE_TWICE,     /* the producer arrives twice on a stage */
    BUG_ONE_WARP_MISSING, /* three of four warps execute the product */
    BUG_BASE_MISALIGNED,  /* stages begin 128 bytes off the swizzle's pattern */
    BUG_GROW_TOO_FAR,     /* registers_grow asks for more than the block has */
    BUG_NO_FENCE_ASYNC,   /* ordinary stores are read by a bulk copy or wgmma without fence_async_shared */
    BUG_LOAD_NO_FENCE,    /* a bulk load into bytes that ordinary stores wrote, without fence_async_shared */
    BUG_NO_READ_WAIT,     /* the source of a bulk store is overwritten without bulk_wait_read */
    BUG_NO_END_WAIT,      /* the block ends with a bulk store in flight */
    BUG_NO_COMMIT,        /* ... that was never committed */
    BUG_TOUCHED           /* accumulators written while a product is in flight */
};

/* out[m][n] = a b, f32. a: [m][k], or [k][m] when ta; b: [n][k], or [k][n] when tb; bf16. from_registers: a goes through registers.
 * Pointers are device memory; n is 64, 80, 128 or 256, and 64 with ta or from_registers. */
struct sm90_probe_gemm {
    int m, n, k;
    int ta, tb, swizzle, from_registers;
    enum sm90_bug bug;
};
enum code sm90_probe_gemm(struct device *dev, const struct sm90_probe_gemm *p, float *out, const uint16_t *a, const uint16_t *b);

/* One product a [64,16] b [n,16], n = 16, 64 or 80, onto 1000 when `add`: the descriptors point into shared memory that first gets
 * `shared` (device memory, 32 KiB), so that any layout can be tried. d: [128][n / 2], as the threads hold it. */
struct sm90_probe_product {
    int n, ta, tb, add;
    uint32_t a_start, a_lbo, a_sbo, b_start, b_lbo, b_sbo;
    int a_swizzle, b_swizzle;
};
enum code sm90_probe_product(struct device *dev, const struct sm90_probe_product *p, float *d, const uint16_t *shared);

/* out[m][n] = x + 1, bf16, [m][n] with n = 64: stmatrix or ordinary stores, then tensor copies out, two per block from one tile.
 * sum [64 * 64] += the last tile as f32, by bulk sums. */
enum code sm90_probe_store(struct device *dev, int m, enum sm90_bug bug, uint16_t *out, const uint16_t *x, float *sum);

/* stmatrix: lane l brings r[l][4]; row i of matrix j goes to row 8 j + i of out [32][8]. */
enum code sm90_probe_stmatrix(struct device *dev, uint16_t *out, const uint32_t *r);

/* A box of the tensor as it lies in shared memory: out gets the box's bytes. The map is made from `spec` fields. */
struct sm90_probe_box {
    int type; /* enum dtype */
    int64_t n[4], stride_bytes[3];
    int box[4], c[4], swizzle;
    uint32_t offset; /* of the box in shared memory */
};
enum code sm90_probe_box(struct device *dev, const struct sm90_probe_box *p, void *out, void *base);

#ifdef __cplusplus
}
#endif
#endif
