/* Values cut off at +-limit on strided matrices (the clipped q, k, v of MPT and OLMo), and the gradient of that: 0 where the value was cut. A
 * thread does eight elements of one row. NaN stays NaN. Limit: memory; 4 bytes an element forward in bf16, 6 backward. */
#include "rows.cuh"

namespace CUDA_NS {
namespace {

#define BLOCK 128

/* y = x cut off; or (BACKWARD) y becomes 0 where x is beyond the limit. */
template <class T, bool BACKWARD, bool VEC>
__global__ void __launch_bounds__(BLOCK) clip_k(T *y, int64_t ldy, const T *x, int64_t ldx, float limit, int64_t F, unsigned parts)
{
    const int64_t n = blockIdx.x / parts, c = ((int64_t)(blockIdx.x % parts) * BLOCK + threadIdx.x) * 8, left = F - c;
    if (left <= 0)
        return;
    float v[8], to[8];
    load8<VEC>(v, x + n * ldx + c, left);
    if (BACKWARD)
        load8<VEC>(to, y + n * ldy + c, left);
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (BACKWARD)
            to[i] = fabsf(v[i]) > limit ? 0.0f : to[i];
        else
            to[i] = v[i] > limit ? limit : v[i] < -limit ? -limit : v[i];
    store8<VEC>(y + n * ldy + c, to, left);
}

template <class T, bool BACKWARD> enum code run(struct device *dev, const char *op, struct view y, struct view x, float limit)
{
    const int64_t parts = ceil_div(x.n[1], BLOCK * 8);
    unsigned blocks;
    TRY(grid_of(op, x.n[0] * parts, 1, &blocks));
    return rows_aligned(x) && rows_aligned(y) ? LAUNCH(dev, (clip_k<T, BACKWARD, true>), blocks, BLOCK, 0, ptr<T>(y), y.s[0], ptr<const T>(x), x.s[0],
                                                       limit, x.n[1], (unsigned)parts)
                                              : LAUNCH(dev, (clip_k<T, BACKWARD, false>), blocks, BLOCK, 0, ptr<T>(y), y.s[0], ptr<const T>(x), x.s[0],
                                                       limit, x.n[1], (unsigned)parts);
}

enum code check(const char *op, const char *name, struct view y, struct view x)
{
    TRY(cuda_check_type(op, x));
    TRY(cuda_check(op, "x", x, x.dtype, 2, -1, -1, 0));
    return cuda_check(op, name, y, x.dtype, 2, x.n[0], x.n[1], 0);
}

} // namespace

enum code cuda_clip_fwd(struct device *dev, struct view y, struct view x, float limit)
{
    TRY(check("clip_fwd", "y", y, x));
    if (x.n[0] == 0 || x.n[1] == 0)
        return OK;
    return WITH_TYPE(x.dtype, (run<T, false>(dev, "clip_fwd", y, x, limit)));
}

enum code cuda_clip_bwd(struct device *dev, struct view dx, struct view x, float limit)
{
    TRY(check("clip_bwd", "dx", dx, x));
    if (x.n[0] == 0 || x.n[1] == 0)
        return OK;
    return WITH_TYPE(x.dtype, (run<T, true>(dev, "clip_bwd", dx, x, limit)));
}

} // namespace CUDA_NS
