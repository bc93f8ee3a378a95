/* Argument checks shared by the operations' host parts. */
#include "cuda.cuh"

namespace CUDA_NS {

enum code cuda_check(const char *op, const char *name, struct view x, enum dtype dtype, int nd, int64_t n0, int64_t n1, int optional)
{
    if (x.p == NULL)
        return optional ? OK : fail(ERR_UNSUPPORTED, "%s: %s is missing", op, name);
    if (x.dtype != dtype)
        return fail(ERR_UNSUPPORTED, "%s: %s is %s; the CUDA backend takes %s here", op, name, dtype_name(x.dtype), dtype_name(dtype));
    if (x.nd != nd)
        return fail(ERR_UNSUPPORTED, "%s: %s has %d axes, must have %d", op, name, x.nd, nd);
    const int64_t want[2] = {n0, n1};
    for (int i = 0; i < nd && i < 2; i++)
        if (want[i] >= 0 && x.n[i] != want[i])
            return fail(ERR_UNSUPPORTED, "%s: axis %d of %s is %lld, must be %lld", op, i, name, (long long)x.n[i], (long long)want[i]);
    if (x.n[nd - 1] > 1 && x.s[nd - 1] != 1)
        return fail(ERR_UNSUPPORTED, "%s: the last axis of %s has stride %lld, must be 1", op, name, (long long)x.s[nd - 1]);
    return OK;
}

enum code cuda_check_type(const char *op, struct view x)
{
    if (x.p == NULL)
        return fail(ERR_UNSUPPORTED, "%s: an argument is missing", op);
    if (x.dtype != DT_F32 && x.dtype != DT_BF16)
        return fail(ERR_UNSUPPORTED, "%s: %s; the CUDA backend computes in f32 or bf16", op, dtype_name(x.dtype));
    return OK;
}

enum dtype cuda_activation_dtype(struct device *dev, enum dtype matrices)
{
    (void)dev;
    return matrices == DT_BF16 ? DT_BF16 : DT_F32;
}

} // namespace CUDA_NS
