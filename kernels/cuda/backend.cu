/* The table of the CUDA backend, and what backend.c may ask of it. An operation whose file is not written yet refuses by name. */
#include "cuda.cuh"

namespace CUDA_NS {

#define CUDA_WEAK(op) extern op##_fn cuda_##op __attribute__((weak));
KERNEL_OPS(CUDA_WEAK)

template <class F> struct missing;
template <class R, class... A> struct missing<R(A...)> {
    static R call(A...)
    {
        if constexpr (__is_same(R, enum code))
            return fail(ERR_UNSUPPORTED, "the CUDA backend does not have this operation yet; use --device cpu");
        else if constexpr (!__is_same(R, void))
            return R();
    }
};

} // namespace CUDA_NS

extern "C" const struct backend *cuda_backend(void)
{
    static struct backend table;
    if (table.name == nullptr) {
#define CUDA_SLOT(op) table.op = CUDA_NS::cuda_##op != nullptr ? CUDA_NS::cuda_##op : CUDA_NS::missing<op##_fn>::call;
        KERNEL_OPS(CUDA_SLOT)
        table.name = "cuda";
    }
    return &table;
}
