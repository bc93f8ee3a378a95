/* Kernels that are not written yet: each refuses by name until its file is there (weak definitions give way to it). */
#include "attention.cuh"

namespace CUDA_NS {

#define PENDING(f)                                                                      \
    __attribute__((weak)) enum code f(struct device *, const attention_problem &) \
    {                                                                                   \
        return fail(ERR_UNSUPPORTED, #f ": not written yet; use --device cpu");         \
    }
__attribute__((weak)) enum code bias_add(struct device *, struct view, struct view)
{
    return fail(ERR_UNSUPPORTED, "bias_add: not written yet; use --device cpu");
}
PENDING(attention_fwd_sm80)
PENDING(attention_bwd_sm80)
PENDING(attention_fwd_sm90)
PENDING(attention_bwd_sm90)

} // namespace CUDA_NS
