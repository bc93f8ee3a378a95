/* Tensor maps: the constraints of cuTensorMapEncodeTiled (CUDA driver API 13.0, "Tensor Map Object Management") as sentences, then
 * the driver's encoding. The entry point comes from the runtime, so that libcuda is not linked. In the executor the same constraints
 * hold, and tests/simt/sm90_tma.cpp packs the spec. */
#include "tensor_map.cuh"

#ifndef GQAKIT_SIMT
#include <cuda.h>
#endif

namespace CUDA_NS {
namespace {

enum code check_spec(const struct tensor_map_spec *s)
{
    const int64_t size = (int64_t)dtype_bytes(s->type);
    if (s->type != DT_F32 && s->type != DT_BF16 && s->type != DT_F16)
        return fail(ERR_UNSUPPORTED, "tensor map: type is %s, expected f32, bf16 or f16", dtype_name(s->type));
    if (s->rank < 1 || s->rank > 4)
        return fail(ERR_UNSUPPORTED, "tensor map: %d axes, expected 1 to 4", s->rank);
    if (s->base == NULL || (uintptr_t)s->base % 16 != 0)
        return fail(ERR_UNSUPPORTED, "tensor map: the tensor at %p is not 16-byte aligned", s->base);
    if (s->swizzle != 0 && s->swizzle != 32 && s->swizzle != 64 && s->swizzle != 128)
        return fail(ERR_UNSUPPORTED, "tensor map: swizzle is %d bytes, expected 0, 32, 64 or 128", s->swizzle);
    for (int i = 0; i < s->rank; i++) {
        if (s->n[i] < 1 || s->n[i] > (int64_t)1 << 32)
            return fail(ERR_UNSUPPORTED, "tensor map: axis %d has %lld elements, expected 1 to 2^32", i, (long long)s->n[i]);
        if (s->box[i] < 1 || s->box[i] > 256)
            return fail(ERR_UNSUPPORTED, "tensor map: the box has %d elements along axis %d, expected 1 to 256", s->box[i], i);
        if (i > 0 && (s->stride_bytes[i - 1] < 16 || s->stride_bytes[i - 1] % 16 != 0 || s->stride_bytes[i - 1] >= (int64_t)1 << 40))
            return fail(ERR_UNSUPPORTED, "tensor map: axis %d has a stride of %lld bytes, expected a multiple of 16 below 2^40", i,
                        (long long)s->stride_bytes[i - 1]);
    }
    if (s->box[0] * size % 16 != 0)
        return fail(ERR_UNSUPPORTED, "tensor map: a row of the box is %lld bytes, expected a multiple of 16", (long long)(s->box[0] * size));
    /* The driver also accepts narrower rows, but does not say how they are packed. */
    if (s->swizzle != 0 && s->box[0] * size != s->swizzle)
        return fail(ERR_UNSUPPORTED, "tensor map: a row of the box is %lld bytes, expected the width of the swizzle, %d",
                    (long long)(s->box[0] * size), s->swizzle);
    return OK;
}

#ifndef GQAKIT_SIMT
static_assert(sizeof(tensor_map) == sizeof(CUtensorMap) && alignof(tensor_map) >= alignof(CUtensorMap), "tensor_map stands for CUtensorMap");

typedef CUresult(CUDAAPI *encode_fn)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *, const cuuint64_t *,
                                     const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                                     CUtensorMapFloatOOBfill);

encode_fn encode_find()
{
    void *entry = NULL;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    cudaError_t e = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
#else
    cudaError_t e = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &entry, cudaEnableDefault, &found);
#endif
    return e == cudaSuccess && found == cudaDriverEntryPointSuccess ? (encode_fn)entry : NULL;
}

enum code encode(tensor_map *map, const struct tensor_map_spec *s)
{
    static const encode_fn entry = encode_find();
    if (entry == NULL)
        return fail(ERR_DEVICE, "tensor map: the CUDA driver has no cuTensorMapEncodeTiled; update it (12.0 or later)");
    cuuint64_t n[4], stride[3];
    cuuint32_t box[4], step[4];
    for (int i = 0; i < s->rank; i++) {
        n[i] = (cuuint64_t)s->n[i];
        box[i] = (cuuint32_t)s->box[i];
        step[i] = 1;
        /* The driver's documentation wants each stride to be a multiple of the one before. An axis of one element is never stepped
         * along, so it gets what would follow the axis before it. */
        if (i > 0)
            stride[i - 1] = i > 1 && s->n[i] == 1 ? stride[i - 2] * n[i - 1] : (cuuint64_t)s->stride_bytes[i - 1];
    }
    CUtensorMapSwizzle swizzle = s->swizzle == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                                 : s->swizzle == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                 : s->swizzle == 32 ? CU_TENSOR_MAP_SWIZZLE_32B
                                                    : CU_TENSOR_MAP_SWIZZLE_NONE;
    CUtensorMapDataType type = s->type == DT_F32    ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32
                               : s->type == DT_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                    : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    CUresult r = entry(reinterpret_cast<CUtensorMap *>(map), type, (cuuint32_t)s->rank, s->base, n, stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
                       swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (r != CUDA_SUCCESS)
        return fail(ERR_DEVICE, "tensor map: the CUDA driver refuses it (error %d)", (int)r);
    return OK;
}
#else
enum code encode(tensor_map *map, const struct tensor_map_spec *s)
{
    tensor_map_pack(map, s);
    return OK;
}
#endif

} // namespace

enum code tensor_map_make(tensor_map *map, const struct tensor_map_spec *spec)
{
    TRY(check_spec(spec));
    return encode(map, spec);
}

} // namespace CUDA_NS
