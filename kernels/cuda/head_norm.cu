/* Norms of queries and keys: not on CUDA yet; every call is refused. */
#include "cuda.cuh"

namespace CUDA_NS {

enum code cuda_head_norm_fwd(struct device *, struct view, struct view, struct view, struct view, struct view, enum norm_kind, float)
{
    return fail(ERR_UNSUPPORTED, "head_norm_fwd: the CUDA backend does not have it yet; use --device cpu");
}

enum code cuda_head_norm_bwd(struct device *, struct view, struct view, struct view, struct view, struct view, struct view, struct view, enum norm_kind)
{
    return fail(ERR_UNSUPPORTED, "head_norm_bwd: the CUDA backend does not have it yet; use --device cpu");
}

} // namespace CUDA_NS
