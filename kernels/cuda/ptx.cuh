/* Every PTX instruction the kernels use, one wrapper each (PTX ISA 9.0; section titles in the comments). The executor of
 * tests/simt replaces the bodies by models with the same fragment layouts, swizzles and descriptors (simt_ptx.h). The
 * wrappers of the sm_90a instructions may only be called from files named *_sm90.cu; wgmma itself is in wgmma.cuh.
 * Shared memory is named by its 32-bit address (smem_addr). `lane` below is threadIdx.x & 31, g = lane >> 2, t = lane & 3. */
#ifndef GQAKIT_KERNELS_CUDA_PTX_CUH
#define GQAKIT_KERNELS_CUDA_PTX_CUH

#include "launch.cuh"

namespace CUDA_NS {

/* A TMA descriptor (CUtensorMap on the GPU, 128-byte aligned since CUDA 13). Passed by value: `const __grid_constant__ tensor_map m`. */
struct alignas(128) tensor_map { uint64_t opaque[16]; };

/* "Matrix Descriptor Format" of wgmma (PTX ISA; strides: "Canonical Layouts" in the section before it). Byte offsets are
 * multiples of 16 below 2^18. swizzle: the width in bytes, 128, 64, 32 or 0 (none).
 *   K-major tile (rows of the M or N axis, K contiguous, a row is swizzle bytes): SBO = bytes between groups of 8 rows (8 x swizzle
 *     when packed); LBO is not used. The next K step of 16 bf16 starts 32 bytes later, up to the swizzle width.
 *   MN-major tile (transposed operand: the M or N axis contiguous): a panel is swizzle/2 elements wide, one swizzle width per K row;
 *     LBO = bytes between panels (not used when one holds all of M or N), SBO = bytes between groups of 8 K rows (8 x swizzle when
 *     packed). The next K step of 16 starts 2 SBO later. The tables show whole panels only; that N may end inside the last one (80 in
 *     panels of 64) follows from the addresses.
 *   swizzle 0 (8 x 16-byte core matrices): K-major LBO = between the two along K, SBO = between groups of 8 rows; MN-major the other
 *     way round, LBO = between groups of 8 K rows, SBO = between 8-wide panels. Public code contradicts this table: avoid it.
 * The swizzle acts on bits of the shared address. The base offset (bits 49-51) is 0 here: the pattern starts at a multiple of 8 x swizzle
 * bytes, so a tile starts in row 0 of a pattern (a multiple of that, plus the K step or panel column within the swizzle width). */
__host__ __device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t smem, uint32_t lbo, uint32_t sbo, int swizzle)
{
    uint64_t mode = swizzle == 128 ? 1 : swizzle == 64 ? 2 : swizzle == 32 ? 3 : 0;
    return (uint64_t)((smem & 0x3ffffu) >> 4) | (uint64_t)(lbo >> 4 & 0x3fffu) << 16 | (uint64_t)(sbo >> 4 & 0x3fffu) << 32 | mode << 62;
}

} // namespace CUDA_NS

#ifdef GQAKIT_SIMT
#include "simt_ptx.h"
#else
namespace CUDA_NS {
#define PTX __device__ __forceinline__

PTX uint32_t smem_addr(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

/* ---- arithmetic ---- */

/* cvt.rn.bf16x2.f32: `low` in bits 0-15, `high` in bits 16-31. */
PTX uint32_t pack_bf16(float low, float high)
{
    uint32_t d;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}
PTX float exp2_approx(float x) /* ex2.approx.ftz.f32: 2 ulp; -inf gives 0 */
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
PTX void red_add_f32x4(float *p, float a, float b, float c, float d) /* global, 16-byte aligned; sm_90: one instruction */
{
#if __CUDA_ARCH__ >= 900
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(p), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
#else
    atomicAdd(p, a), atomicAdd(p + 1, b), atomicAdd(p + 2, c), atomicAdd(p + 3, d);
#endif
}
PTX void red_add_f32x2(float *p, float a, float b) /* global, 8-byte aligned */
{
#if __CUDA_ARCH__ >= 900
    asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(p), "f"(a), "f"(b) : "memory");
#else
    atomicAdd(p, a), atomicAdd(p + 1, b);
#endif
}

/* ---- sm_80: ldmatrix, mma, cp.async ---- */

/* ldmatrix.sync.aligned.m8n8.x4.shared.b16: lane i gives the 16-byte aligned address of row i % 8 of matrix i / 8; r[m] gets row g,
 * columns 2t and 2t + 1 of matrix m. _trans: row and column exchanged. x2 uses the addresses of lanes 0-15. */
PTX void ldmatrix_x4(uint32_t (&r)[4], uint32_t row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row) : "memory");
}
PTX void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row) : "memory");
}
PTX void ldmatrix_x2(uint32_t (&r)[2], uint32_t row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(row) : "memory");
}
PTX void ldmatrix_x2_trans(uint32_t (&r)[2], uint32_t row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(row) : "memory");
}
/* mma.sync m16n8k16, bf16 in, f32 out: d += a b. a[r] half h: row g + 8 (r & 1), k 2t + h + 8 (r >> 1). b[r] half h: k 2t + h + 8 r,
 * column g. d[i]: row g + 8 (i >> 1), column 2t + (i & 1). */
PTX void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
/* cp.async.cg 16 bytes; when `valid` is 0 nothing is read and zeros are written. Both addresses 16-byte aligned. */
PTX void cp_async_16(uint32_t dst, const void *src, int valid)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(valid ? 16 : 0) : "memory");
}
PTX void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> PTX void cp_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); } /* at most N groups still pending */

/* ---- named barriers: bar.sync, bar.arrive; id 1-15, threads a multiple of 32 ---- */
PTX void named_barrier_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
PTX void named_barrier_arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
/* ---- sm_90: mbarrier (8 bytes of shared memory), one phase per completion; a waiter gives the parity of the phase it waits for ---- */
PTX void mbarrier_init(uint32_t bar, uint32_t count) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory"); }
PTX void mbarrier_arrive(uint32_t bar) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory"); }
/* One arrival that also announces `bytes` of bulk copies; the phase ends when all arrivals and all announced bytes are in. */
PTX void mbarrier_arrive_expect(uint32_t bar, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
/* Blocks until the phase of this parity is complete. A fresh barrier is in phase 0: waiting for parity 1 returns at once. */
PTX void mbarrier_wait(uint32_t bar, uint32_t parity)
{
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@p bra done;\n"
                 "bra again;\n"
                 "done:\n"
                 "}" ::"r"(bar), "r"(parity) : "memory");
}
PTX void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
/* Orders ordinary writes to shared memory before later reads by wgmma and bulk copies; by each writing thread, before the barrier. */
PTX void fence_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/* ---- sm_90: bulk tensor copies (TMA). Issued by one thread. Coordinates are in elements, innermost first; what lies outside the
 * tensor reads as zero (counted in the barrier's bytes all the same) and is not written ---- */
PTX void tma_prefetch(const tensor_map *map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }
PTX void tma_load_4d(uint32_t dst, const tensor_map *map, uint32_t bar, int c0, int c1, int c2, int c3)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(dst),
                 "l"(map), "r"(bar), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
                 : "memory");
}
PTX void tma_store_4d(const tensor_map *map, uint32_t src, int c0, int c1, int c2, int c3)
{
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(map), "r"(src), "r"(c0), "r"(c1),
                 "r"(c2), "r"(c3)
                 : "memory");
}
/* Adds a contiguous run of f32 in shared memory to global memory (cp.reduce.async.bulk.add.f32); both 16-byte aligned, bytes % 16 == 0. */
PTX void bulk_add_f32(float *dst, uint32_t src, uint32_t bytes)
{
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(dst), "r"(src), "r"(bytes) : "memory");
}
PTX void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int N> PTX void bulk_wait_read() { asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory"); } /* sources may be reused */
template <int N> PTX void bulk_wait() { asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory"); }           /* results are written */

/* setmaxnreg: every warp of a warpgroup; the kernel has __launch_bounds__(threads, 1). */
template <int N> PTX void registers_grow() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> PTX void registers_shrink() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }

/* stmatrix.sync.aligned.m8n8.x4.shared.b16: the inverse of ldmatrix_x4. */
PTX void stmatrix_x4(uint32_t row, const uint32_t (&r)[4])
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
}
#endif
} // namespace CUDA_NS
#endif
#endif
