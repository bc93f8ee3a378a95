/* Limits on activations: not on CUDA yet; every call is refused. */
#include "cuda.cuh"

namespace CUDA_NS {

enum code cuda_clip_fwd(struct device *, struct view, struct view, float)
{
    return fail(ERR_UNSUPPORTED, "clip_fwd: the CUDA backend does not have it yet; use --device cpu");
}

enum code cuda_clip_bwd(struct device *, struct view, struct view, float)
{
    return fail(ERR_UNSUPPORTED, "clip_bwd: the CUDA backend does not have it yet; use --device cpu");
}

} // namespace CUDA_NS
