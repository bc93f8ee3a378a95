/* Flash attention forward on Hopper: the choice of tiles. See attention_fwd_sm90.cuh. */
#include "attention_fwd_sm90.cuh"

namespace CUDA_NS {

/* Shared memory: D = 64 89 KiB, 96 121 KiB, 128 161 or 209 KiB, 256 225 KiB. Wider key tiles mean fewer passes over the softmax's
 * overhead, but a diagonal tile wastes more under a mask. */
enum code attention_fwd_sm90(struct device *dev, const attention_problem &p)
{
    if (p.S == 0 || !(p.scale > 0)) /* no tensor to describe; the running maximum assumes that the scale keeps the order */
        return attention_fwd_plain(dev, p, DT_BF16);
    if (p.Dp == 64)
        return fwd_run<64, 3, 128>(dev, p);
    if (p.Dp == 96)
        return fwd_run<96, 2, 128>(dev, p);
    if (p.Dp == 256)
        return fwd_run<256, 2, 80>(dev, p);
    return p.causal || p.window_left >= 0 || p.window_right >= 0 ? fwd_run<128, 2, 128>(dev, p) : fwd_run<128, 2, 176>(dev, p);
}

} // namespace CUDA_NS
