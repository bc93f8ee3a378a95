/* Private to kernels/cuda: the open device, the prototypes of the operations, and argument checks. kernels/cuda/x.cu mirrors
 * kernels/cpu/x.c; the arithmetic of an operation is a kernel in an anonymous namespace, its host part checks and launches.
 *
 * Types: activations are f32 or bf16 (all views of one call alike unless an operation says otherwise), matrices the type of
 * the activations, vectors (norm weights, biases, position table) f32, gradients of parameters f32, statistics f32.
 * All work goes to one stream; no operation waits for it or allocates. The workspace serves one operation at a time. */
#ifndef GQAKIT_KERNELS_CUDA_CUDA_CUH
#define GQAKIT_KERNELS_CUDA_CUDA_CUH

#include "kernels/kernels.h"
#include "num.cuh"

#define CUDA_WORK_BYTES ((size_t)64 << 20) /* least size of the workspace; kernels that need more take what scratch they are given */

struct device {
    int arch;        /* 80: mma.sync kernels, 90: wgmma kernels too */
    int sm_count;
    size_t smem_max; /* dynamic shared memory a block may have, bytes */
    void *stream;    /* cudaStream_t; NULL in the executor */
    char *work;      /* device memory */
    size_t work_bytes;
    struct device_private *own; /* device.cu: library handles, staging, events */
    char name[96];
};

namespace CUDA_NS {

#define CUDA_PROTOTYPE(op) op##_fn cuda_##op;
KERNEL_OPS(CUDA_PROTOTYPE)

/* Refusals, all ERR_UNSUPPORTED, as cpu_check: dtype, axes, extents (-1: any), last stride. An absent view is refused unless optional. */
enum code cuda_check(const char *op, const char *name, struct view x, enum dtype dtype, int nd, int64_t n0, int64_t n1, int optional) MUST_USE;
/* x is f32 or bf16. */
enum code cuda_check_type(const char *op, struct view x) MUST_USE;

/* y += bias on every row; y f32 or bf16 [N,C], bias f32 [C] (bias.cu; matmul.cu calls it). */
enum code bias_add(struct device *dev, struct view y, struct view bias) MUST_USE;

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
template <class T> static inline T *ptr(struct view v) { return (T *)v.p; }

} // namespace CUDA_NS

/* return WITH_TYPE(x.dtype, (run<T>(...))): the call with T = float or bf16. */
#define WITH_TYPE(type, call) \
    ((type) == DT_BF16 ? [&]() { using T = CUDA_NS::bf16; return call; }() : [&]() { using T = float; return call; }())

#endif
