/* The sm_90a wrappers of kernels/cuda/ptx.cuh and wgmma.cuh in the executor: same names and arguments, plus the caller's line; the
 * models are in sm90_*.cpp. Included by simt_ptx.h, compiled with instrumentation. */
#ifndef GQAKIT_TESTS_SIMT_SM90_H
#define GQAKIT_TESTS_SIMT_SM90_H

#include <stdint.h>
#include "simt.h"

#define SM90_LINE const char *file, int line
void sm90_mbarrier_init(uint32_t bar, uint32_t count, SM90_LINE);
void sm90_mbarrier_arrive(uint32_t bar, int expects, uint32_t bytes, SM90_LINE);
void sm90_mbarrier_wait(uint32_t bar, uint32_t parity, SM90_LINE);
void sm90_fence(int of_shared, SM90_LINE);
void sm90_tma_prefetch(const void *map, SM90_LINE);
void sm90_tma_load(uint32_t dst, const void *map, uint32_t bar, int c0, int c1, int c2, int c3, SM90_LINE);
void sm90_tma_store(const void *map, uint32_t src, int c0, int c1, int c2, int c3, SM90_LINE);
void sm90_bulk_add(float *dst, uint32_t src, uint32_t bytes, SM90_LINE);
void sm90_bulk_commit(SM90_LINE);
void sm90_bulk_wait(int pending, int only_read, SM90_LINE);
void sm90_registers(int n, int grow, SM90_LINE);
void sm90_stmatrix(uint32_t row, const uint32_t *r, SM90_LINE);
/* d: n / 2 accumulators; registers: A's four, or NULL when a is a descriptor. */
void sm90_wgmma(int n, int ta, int tb, float *d, const uint32_t *registers, uint64_t a, uint64_t b, int add, SM90_LINE);
void sm90_wgmma_fence(SM90_LINE);
void sm90_wgmma_commit(SM90_LINE);
void sm90_wgmma_wait(int pending, SM90_LINE);

namespace CUDA_NS {
struct tensor_map_spec;
void tensor_map_pack(tensor_map *map, const struct tensor_map_spec *spec); /* for tensor_map.cu */

PTX void mbarrier_init(uint32_t bar, uint32_t count, SIMT_LINE) { sm90_mbarrier_init(bar, count, file, line); }
PTX void mbarrier_arrive(uint32_t bar, SIMT_LINE) { sm90_mbarrier_arrive(bar, 0, 0, file, line); }
PTX void mbarrier_arrive_expect(uint32_t bar, uint32_t bytes, SIMT_LINE) { sm90_mbarrier_arrive(bar, 1, bytes, file, line); }
PTX void mbarrier_wait(uint32_t bar, uint32_t parity, SIMT_LINE) { sm90_mbarrier_wait(bar, parity, file, line); }
PTX void fence_mbarrier_init(SIMT_LINE) { sm90_fence(0, file, line); }
PTX void fence_async_shared(SIMT_LINE) { sm90_fence(1, file, line); }

PTX void tma_prefetch(const tensor_map *map, SIMT_LINE) { sm90_tma_prefetch(map, file, line); }
PTX void tma_load_4d(uint32_t dst, const tensor_map *map, uint32_t bar, int c0, int c1, int c2, int c3, SIMT_LINE)
{
    sm90_tma_load(dst, map, bar, c0, c1, c2, c3, file, line);
}
PTX void tma_store_4d(const tensor_map *map, uint32_t src, int c0, int c1, int c2, int c3, SIMT_LINE)
{
    sm90_tma_store(map, src, c0, c1, c2, c3, file, line);
}
PTX void bulk_add_f32(float *dst, uint32_t src, uint32_t bytes, SIMT_LINE) { sm90_bulk_add(dst, src, bytes, file, line); }
PTX void bulk_commit(SIMT_LINE) { sm90_bulk_commit(file, line); }
template <int N> PTX void bulk_wait_read(SIMT_LINE) { sm90_bulk_wait(N, 1, file, line); }
template <int N> PTX void bulk_wait(SIMT_LINE) { sm90_bulk_wait(N, 0, file, line); }
template <int N> PTX void registers_grow(SIMT_LINE)
{
    static_assert(N >= 24 && N <= 256 && N % 8 == 0, "setmaxnreg: a multiple of 8 from 24 to 256");
    sm90_registers(N, 1, file, line);
}
template <int N> PTX void registers_shrink(SIMT_LINE)
{
    static_assert(N >= 24 && N <= 256 && N % 8 == 0, "setmaxnreg: a multiple of 8 from 24 to 256");
    sm90_registers(N, 0, file, line);
}
PTX void stmatrix_x4(uint32_t row, const uint32_t (&r)[4], SIMT_LINE) { sm90_stmatrix(row, r, file, line); }

PTX void wgmma_fence(SIMT_LINE) { sm90_wgmma_fence(file, line); }
PTX void wgmma_commit(SIMT_LINE) { sm90_wgmma_commit(file, line); }
template <int N> PTX void wgmma_wait(SIMT_LINE) { sm90_wgmma_wait(N, file, line); }
template <int N> PTX void wgmma_keep(float (&)[N]) {}
/* The list of wgmma.cuh. */
constexpr bool wgmma_has(int n) { return (n >= 16 && n <= 192 && n % 16 == 0) || n == 256; }
template <int N, int TA, int TB> PTX void wgmma_ss(float (&d)[N / 2], uint64_t a, uint64_t b, int add, SIMT_LINE)
{
    static_assert(wgmma_has(N), "no such wgmma_product");
    sm90_wgmma(N, TA, TB, d, nullptr, a, b, add, file, line);
}
template <int N, int TB> PTX void wgmma_rs(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, int add, SIMT_LINE)
{
    static_assert(wgmma_has(N), "no such wgmma_product");
    sm90_wgmma(N, 0, TB, d, a, 0, b, add, file, line);
}
} // namespace CUDA_NS
#endif
