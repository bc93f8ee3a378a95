/* Flash attention backward on Hopper: the choice of kernels. See attention_bwd_sm90.cuh and attention_dq_sm90.cuh. */
#include "attention_bwd_sm90.cuh"

namespace CUDA_NS {
namespace {

template <int D> enum code run(struct device *dev, const attention_problem &p)
{
    if (p.deterministic) {
        TRY((bwd_run<D, false>(dev, p)));
        return dq_run<D>(dev, p);
    }
    TRY((bwd_run<D, true>(dev, p)));
    return dq_store_run<D>(dev, p);
}

} // namespace

/* delta is there and, unless deterministic, dq_sum is zero (attention_delta). */
enum code attention_bwd_sm90(struct device *dev, const attention_problem &p)
{
    if (p.S == 0 || !(p.scale > 0)) /* as in the forward */
        return attention_bwd_plain(dev, p, DT_BF16);
    if (p.Dp == 64)
        return run<64>(dev, p);
    if (p.Dp == 96)
        return run<96>(dev, p);
    if (p.Dp == 256)
        return run<256>(dev, p);
    return run<128>(dev, p);
}

} // namespace CUDA_NS
