/* Private to matmul.cu and device.cu: cuBLASLt, opened at run time. A program of this toolkit starts, and computes on the CPU, on a
 * machine that has no CUDA libraries; the price is this list of the functions that are used. */
#ifndef GQAKIT_KERNELS_CUDA_BLAS_CUH
#define GQAKIT_KERNELS_CUDA_BLAS_CUH

#include <cublasLt.h>

#include "kernels/kernels.h"

#define BLAS_FUNCTIONS(X)                                                                                                       \
    X(cublasLtCreate) X(cublasLtDestroy) X(cublasLtGetStatusString) X(cublasLtMatmul) X(cublasLtMatmulAlgoGetHeuristic)         \
    X(cublasLtMatmulDescCreate) X(cublasLtMatmulDescDestroy) X(cublasLtMatmulDescSetAttribute) X(cublasLtMatrixLayoutCreate)    \
    X(cublasLtMatrixLayoutDestroy) X(cublasLtMatmulPreferenceCreate) X(cublasLtMatmulPreferenceDestroy)                         \
    X(cublasLtMatmulPreferenceSetAttribute)

#define BLAS_MEMBER(f) decltype(&::f) f;
struct blas { BLAS_FUNCTIONS(BLAS_MEMBER) };

namespace CUDA_NS {

/* The library's functions, the same table for every device of the process. ERR_DEVICE when it is not there (the rest of a sentence). */
enum code blas_load(const struct blas **blas) MUST_USE;

} // namespace CUDA_NS
#endif
