/* Private to kernels/cpu: our own matrix product, for the instruction set where it keeps up with or beats the BLAS. */
#ifndef GQAKIT_KERNELS_CPU_GEMM_H
#define GQAKIT_KERNELS_CPU_GEMM_H

#include <stddef.h>
#include <stdint.h>

struct gemm_job {
    float *c;
    const float *a, *b; /* row-major; op(a) [M,K], op(b) [K,N] */
    int64_t M, N, K, lda, ldb, ldc;
    int trans_a, trans_b, threads;
    float alpha, beta;
    float *work; /* cpu_gemm_avx512_bytes(threads), 64-byte aligned */
};

void cpu_gemm_avx512(const struct gemm_job *job);
size_t cpu_gemm_avx512_bytes(int threads);

#endif
