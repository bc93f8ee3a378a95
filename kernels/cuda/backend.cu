/* The table of the CUDA backend, generated from KERNEL_OPS as its members are. */
#include "cuda.cuh"

#define CUDA_SLOT(op) CUDA_NS::cuda_##op,
static const struct backend backend_cuda = {"cuda", KERNEL_OPS(CUDA_SLOT)};

extern "C" const struct backend *cuda_backend(void) { return &backend_cuda; }
