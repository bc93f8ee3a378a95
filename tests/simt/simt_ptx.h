/* The wrappers of kernels/cuda/ptx.cuh and wgmma.cuh in the executor: same signatures (plus the caller's line), bodies in ptx.cpp and
 * sm90*.cpp. Included by ptx.cuh. */
#ifndef GQAKIT_TESTS_SIMT_PTX_H
#define GQAKIT_TESTS_SIMT_PTX_H

#include "simt.h"

uint32_t simt_smem_addr(const void *p, const char *file, int line);
void simt_ldmatrix(uint32_t *r, int n, int trans, uint32_t row, const char *file, int line);
void simt_mma_bf16(float *d, const uint32_t *a, uint32_t b0, uint32_t b1, const char *file, int line);
void simt_cp_async(uint32_t dst, const void *src, int valid, const char *file, int line);
void simt_cp_async_commit(const char *file, int line);
void simt_cp_async_wait(int pending, const char *file, int line);
void simt_named_barrier(int id, int threads, int wait, const char *file, int line);
void simt_red_add(float *p, int n, float a, float b, float c, float d, const char *file, int line);

namespace CUDA_NS {
#define PTX static inline

PTX uint32_t smem_addr(const void *p, SIMT_LINE) { return simt_smem_addr(p, file, line); }

/* To nearest even; a NaN becomes 0x7fff, as cvt does. */
PTX uint32_t simt_bf16_of(float x)
{
    uint32_t u = __float_as_uint(x);
    return (u & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
}
PTX uint32_t pack_bf16(float low, float high) { return simt_bf16_of(low) | simt_bf16_of(high) << 16; }
PTX float exp2_approx(float x)
{
    float y = exp2f(x);
    return y < 1.17549435e-38f ? 0.0f * y : y; /* .ftz; NaN and infinities pass */
}
PTX void red_add_f32x4(float *p, float a, float b, float c, float d, SIMT_LINE) { simt_red_add(p, 4, a, b, c, d, file, line); }
PTX void red_add_f32x2(float *p, float a, float b, SIMT_LINE) { simt_red_add(p, 2, a, b, 0, 0, file, line); }

PTX void ldmatrix_x4(uint32_t (&r)[4], uint32_t row, SIMT_LINE) { simt_ldmatrix(r, 4, 0, row, file, line); }
PTX void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row, SIMT_LINE) { simt_ldmatrix(r, 4, 1, row, file, line); }
PTX void ldmatrix_x2(uint32_t (&r)[2], uint32_t row, SIMT_LINE) { simt_ldmatrix(r, 2, 0, row, file, line); }
PTX void ldmatrix_x2_trans(uint32_t (&r)[2], uint32_t row, SIMT_LINE) { simt_ldmatrix(r, 2, 1, row, file, line); }
PTX void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, SIMT_LINE) { simt_mma_bf16(d, a, b0, b1, file, line); }
PTX void cp_async_16(uint32_t dst, const void *src, int valid, SIMT_LINE) { simt_cp_async(dst, src, valid, file, line); }
PTX void cp_async_commit(SIMT_LINE) { simt_cp_async_commit(file, line); }
template <int N> PTX void cp_async_wait(SIMT_LINE) { simt_cp_async_wait(N, file, line); }
PTX void named_barrier_sync(int id, int threads, SIMT_LINE) { simt_named_barrier(id, threads, 1, file, line); }
PTX void named_barrier_arrive(int id, int threads, SIMT_LINE) { simt_named_barrier(id, threads, 0, file, line); }

template <int N, int TA, int TB> struct wgmma_product; /* simt_sm90.h, as everything of sm_90 */
} // namespace CUDA_NS

#if __has_include("simt_sm90.h")
#include "simt_sm90.h"
#endif
#endif
