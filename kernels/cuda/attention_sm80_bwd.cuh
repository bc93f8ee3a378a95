/* Private to the two files of the sm_80 attention backward. */
#ifndef GQAKIT_KERNELS_CUDA_ATTENTION_SM80_BWD_CUH
#define GQAKIT_KERNELS_CUDA_ATTENTION_SM80_BWD_CUH

#include "attention_sm80_mask.cuh"

namespace CUDA_NS {
/* dQ without atomics, from lse and p.delta: the deterministic mode's second kernel (attention_sm80_bwd_dq.cu). */
enum code attention_bwd_dq_sm80(struct device *dev, const attention_problem &p);
} // namespace CUDA_NS
#endif
