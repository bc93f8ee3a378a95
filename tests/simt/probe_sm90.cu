/* Probe kernels of the sm_90a models (probe_sm90.h). Also compiled by nvcc: what the executor accepts must be CUDA. */
#include "tests/simt/probe_sm90.h"

#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/tensor_map.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace CUDA_NS {
namespace {

#define STAGES 3
#define CONSUMERS 2 /* warpgroups of 64 rows each */

/* Seeded bugs exist in the executor only. */
#ifdef GQAKIT_SIMT
#define BUG(b) (bug == (b))
#else
#define BUG(b) ((void)bug, 0)
#endif

/* A [ROWS, SW / 2] tile of K-major rows, or a [SW / 2, ROWS] tile in panels of SW / 2 elements. */
template <int ROWS, int T, int SW> struct tile {
    static constexpr int panels = T ? (ROWS * 2 + SW - 1) / SW : 1;
    static constexpr int box_rows = T ? SW / 2 : ROWS;
    static constexpr int panel_bytes = box_rows * SW;
    static constexpr int bytes = panels * panel_bytes;
    static __device__ void load(uint32_t to, const tensor_map *map, uint32_t bar, int row, int k)
    {
        for (int i = 0; i < panels; i++)
            tma_load_4d(to + (uint32_t)(i * panel_bytes), map, bar, T ? row + i * (SW / 2) : k, T ? k : row, 0, 0);
    }
    static __device__ uint64_t operand(uint32_t at, int step)
    {
        return wgmma_descriptor(at + (uint32_t)(T ? 16 * SW * step : 32 * step), T ? panel_bytes : 16, 8 * SW, SW);
    }
};

template <int N, int TA, int TB, int SW, int RS>
__global__ void __launch_bounds__(128 + 128 * CONSUMERS, 1)
    gemm(float *out, const uint16_t *a, const __grid_constant__ tensor_map map_a, const __grid_constant__ tensor_map map_b, int m, int k, int bug)
{
    typedef tile<64, TA, SW> tile_a;
    typedef tile<N, TB, SW> tile_b;
    constexpr uint32_t a_bytes = RS ? 0 : CONSUMERS * tile_a::bytes, stage_bytes = a_bytes + tile_b::bytes;
    static_assert(stage_bytes % 512 == 0, "stages keep the alignment of the swizzle");
    SMEM(unsigned char, smem);
    const uint32_t base = smem_addr(smem) + (BUG(BUG_BASE_MISALIGNED) ? 128u : 0u);
    const uint32_t full = smem_addr(smem) + STAGES * stage_bytes + 1024, empty = full + 8 * STAGES;
    const int t = (int)threadIdx.x, group = t / 128, tiles = (k + SW / 2 - 1) / (SW / 2), row = (int)blockIdx.x * 64 * CONSUMERS;
    if (BUG(BUG_LOAD_NO_FENCE))
        smem[t] = 0;
    if (t == 0 && !BUG(BUG_NO_INIT)) {
        for (int s = 0; s < STAGES; s++) {
            mbarrier_init(full + 8 * (uint32_t)s, 1);
            mbarrier_init(empty + 8 * (uint32_t)s, 128 * CONSUMERS);
            if (BUG(BUG_INIT_TWICE))
                mbarrier_init(full + 8 * (uint32_t)s, 1);
        }
        if (!BUG(BUG_NO_INIT_FENCE))
            fence_mbarrier_init();
    }
    if (!BUG(BUG_NO_INIT_BARRIER))
        __syncthreads();
    if (group == CONSUMERS) {
        registers_shrink<40>();
        if (t == 128 * CONSUMERS) {
            tma_prefetch(&map_a);
            for (int i = 0; i < tiles; i++) {
                const uint32_t s = (uint32_t)(i % STAGES), at = base + s * stage_bytes;
                uint32_t bytes = a_bytes + tile_b::bytes;
                if (BUG(BUG_BYTES_FEW))
                    bytes -= 16;
                if (BUG(BUG_BYTES_MANY))
                    bytes += 16;
                mbarrier_wait(empty + 8 * s, (uint32_t)(i / STAGES & 1) ^ 1u);
                mbarrier_arrive_expect(full + 8 * s, bytes);
                for (int c = 0; c < CONSUMERS && !RS; c++)
                    tile_a::load(at + (uint32_t)(c * tile_a::bytes), &map_a, full + 8 * s, row + 64 * c, i * (SW / 2));
                tile_b::load(at + a_bytes, &map_b, full + 8 * s, 0, i * (SW / 2));
                if (BUG(BUG_ARRIVE_TWICE))
                    mbarrier_arrive(full + 8 * s);
            }
        }
        return;
    }
    if (BUG(BUG_GROW_TOO_FAR))
        registers_grow<240>();
    else
        registers_grow<232>();
    float d[N / 2];
    const int g = t % 32 / 4, first = row + 16 * (t / 32) + g, column = 2 * (t % 4);
    for (int i = 0; i < tiles; i++) {
        const uint32_t s = (uint32_t)(i % STAGES), at = base + s * stage_bytes, at_a = at + (uint32_t)(group * tile_a::bytes), at_b = at + a_bytes;
        uint32_t fragments[SW / 32][4];
        if (RS) {
            for (int step = 0; step < SW / 32; step++)
                for (int r = 0; r < 4; r++) {
                    int x = first + 8 * (r & 1), y = i * (SW / 2) + 16 * step + column + 8 * (r >> 1);
                    fragments[step][r] = x < m && y < k ? *reinterpret_cast<const uint32_t *>(a + (int64_t)x * k + y) : 0u;
                }
        }
        if (!BUG(BUG_NO_FULL_WAIT) && !(BUG(BUG_WARP_NO_WAIT) && t / 32 == 6))
            mbarrier_wait(full + 8 * s, (uint32_t)(i / STAGES & 1));
        wgmma_fence();
        if (!(BUG(BUG_ONE_WARP_MISSING) && t < 32)) {
#pragma unroll
            for (int step = 0; step < SW / 32; step++) {
                if (RS)
                    wgmma_rs<N, TB>(d, fragments[step], tile_b::operand(at_b, step), i + step > 0);
                else
                    wgmma_ss<N, TA, TB>(d, tile_a::operand(at_a, step), tile_b::operand(at_b, step), i + step > 0);
            }
        }
        wgmma_commit();
        if (BUG(BUG_EARLY_RELEASE))
            mbarrier_arrive(empty + 8 * s);
        if (!BUG(BUG_NO_WGMMA_WAIT) && !BUG(BUG_EARLY_RELEASE) && !BUG(BUG_FEW_WGMMA_WAIT))
            wgmma_wait<0>();
        if (!BUG(BUG_EARLY_RELEASE))
            mbarrier_arrive(empty + 8 * s);
    }
    if (BUG(BUG_FEW_WGMMA_WAIT))
        wgmma_wait<1>();
    if (BUG(BUG_EARLY_RELEASE))
        wgmma_wait<0>();
    if (BUG(BUG_TOUCHED)) {
        wgmma_fence();
        wgmma_ss<N, TA, TB>(d, tile_a::operand(base, 0), tile_b::operand(base + a_bytes, 0), 1);
        wgmma_commit();
        d[3] = 1.0f;
        wgmma_wait<0>();
    }
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
        int x = first + 8 * (i >> 1 & 1), y = 8 * (i >> 2) + column + (i & 1);
        if (x < m)
            out[(int64_t)x * N + y] = d[i];
    }
}

/* Rows of `rows` elements along the M or N axis and k along K: [rows][k], or [k][rows] when t. */
enum code operand_map(tensor_map *map, const uint16_t *p, int rows, int k, int t, int swizzle, int box_rows)
{
    struct tensor_map_spec s = {};
    int inner = t ? rows : k, outer = t ? k : rows;
    s.base = (void *)p;
    s.type = DT_BF16;
    s.rank = 4;
    s.n[0] = inner, s.n[1] = outer, s.n[2] = 1, s.n[3] = 1;
    s.stride_bytes[0] = 2 * inner;
    s.stride_bytes[1] = s.stride_bytes[2] = (int64_t)2 * inner * outer;
    s.box[0] = swizzle / 2, s.box[1] = t ? swizzle / 2 : box_rows, s.box[2] = 1, s.box[3] = 1;
    s.swizzle = swizzle;
    return tensor_map_make(map, &s);
}

template <int N, int TA, int TB, int SW, int RS>
enum code run_gemm(struct device *dev, const struct sm90_probe_gemm *p, float *out, const uint16_t *a, const uint16_t *b)
{
    tensor_map map_a, map_b;
    TRY(operand_map(&map_a, a, p->m, p->k, TA, SW, 64));
    TRY(operand_map(&map_b, b, N, p->k, TB, SW, N));
    const size_t smem = STAGES * ((RS ? 0 : CONSUMERS * tile<64, TA, SW>::bytes) + tile<N, TB, SW>::bytes) + 2048;
    return LAUNCH(dev, (gemm<N, TA, TB, SW, RS>), dim3((unsigned)(p->m + 64 * CONSUMERS - 1) / (64 * CONSUMERS)), dim3(128 + 128 * CONSUMERS), smem,
                  out, a, map_a, map_b, p->m, p->k, (int)p->bug);
}

template <int N, int SW> enum code run_n_sw(struct device *dev, const struct sm90_probe_gemm *p, float *out, const uint16_t *a, const uint16_t *b)
{
    if constexpr (N == 64) {
        if (p->from_registers)
            return p->tb ? run_gemm<N, 0, 1, SW, 1>(dev, p, out, a, b) : run_gemm<N, 0, 0, SW, 1>(dev, p, out, a, b);
        if (p->ta)
            return p->tb ? run_gemm<N, 1, 1, SW, 0>(dev, p, out, a, b) : run_gemm<N, 1, 0, SW, 0>(dev, p, out, a, b);
    } else if (p->from_registers || p->ta) {
        return fail(ERR_UNSUPPORTED, "sm90_probe_gemm: a from registers or transposed only with n = 64");
    }
    return p->tb ? run_gemm<N, 0, 1, SW, 0>(dev, p, out, a, b) : run_gemm<N, 0, 0, SW, 0>(dev, p, out, a, b);
}

template <int N> enum code run_n(struct device *dev, const struct sm90_probe_gemm *p, float *out, const uint16_t *a, const uint16_t *b)
{
    return p->swizzle == 128 ? run_n_sw<N, 128>(dev, p, out, a, b) : run_n_sw<N, 64>(dev, p, out, a, b);
}

/* ---- one product ---- */

template <int N, int TA, int TB>
__global__ void __launch_bounds__(128, 1) product(float *out, const uint16_t *shared, uint64_t a, uint64_t b, int add)
{
    SMEM(uint16_t, smem);
    const int t = (int)threadIdx.x;
    for (int i = t; i < 16384; i += 128)
        smem[i] = shared[i];
    fence_async_shared();
    __syncthreads();
    /* The descriptors are relative to the dynamic shared memory. */
    const uint64_t from = smem_addr(smem) >> 4;
    float d[N / 2];
    for (int i = 0; i < N / 2; i++)
        d[i] = 1000.0f;
    wgmma_keep(d);
    wgmma_fence();
    wgmma_ss<N, TA, TB>(d, a + from, b + from, add);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_keep(d);
    for (int i = 0; i < N / 2; i++)
        out[t * (N / 2) + i] = d[i];
}

template <int N> enum code run_product(struct device *dev, const struct sm90_probe_product *p, float *d, const uint16_t *shared)
{
    uint64_t a = wgmma_descriptor(p->a_start, p->a_lbo, p->a_sbo, p->a_swizzle), b = wgmma_descriptor(p->b_start, p->b_lbo, p->b_sbo, p->b_swizzle);
    if (p->ta)
        return p->tb ? LAUNCH(dev, (product<N, 1, 1>), dim3(1), dim3(128), 32768, d, shared, a, b, p->add)
                     : LAUNCH(dev, (product<N, 1, 0>), dim3(1), dim3(128), 32768, d, shared, a, b, p->add);
    return p->tb ? LAUNCH(dev, (product<N, 0, 1>), dim3(1), dim3(128), 32768, d, shared, a, b, p->add)
                 : LAUNCH(dev, (product<N, 0, 0>), dim3(1), dim3(128), 32768, d, shared, a, b, p->add);
}

/* ---- stores ---- */

/* Two tiles of 64 x 64 one after the other through one tile of shared memory, then a bulk sum of 64 x 64 f32. */
__global__ void __launch_bounds__(128, 1) store(const __grid_constant__ tensor_map map, const uint16_t *x, float *sum, int m, int bug)
{
    SMEM(unsigned char, smem);
    const int t = (int)threadIdx.x;
    float *sums = reinterpret_cast<float *>(smem + 8192);
    for (int pass = 0; pass < 2; pass++) {
        const int row = (int)blockIdx.x * 128 + pass * 64;
        if (pass > 0) {
            if (t == 0 && !BUG(BUG_NO_READ_WAIT))
                bulk_wait_read<0>();
            __syncthreads();
        }
        for (int i = t; i < 64 * 64; i += 128) {
            const int r = i / 64, c = i % 64, at = r * 128 + ((c / 8 ^ (r & 7)) * 16) + c % 8 * 2;
            float v = 0.0f;
            if (row + r < m)
                v = __uint_as_float((uint32_t)x[(int64_t)(row + r) * 64 + c] << 16) + 1.0f;
            *reinterpret_cast<uint16_t *>(smem + at) = (uint16_t)pack_bf16(v, 0.0f);
            if (pass == 1)
                sums[i] = v;
        }
        if (!BUG(BUG_NO_FENCE_ASYNC))
            fence_async_shared();
        __syncthreads();
        if (t == 0) {
            tma_store_4d(&map, smem_addr(smem), 0, row, 0, 0);
            if (pass == 1)
                for (int r = 0; r < 64; r++)
                    bulk_add_f32(sum + 64 * r, smem_addr(sums) + 256 * (uint32_t)r, 256);
            if (!BUG(BUG_NO_COMMIT))
                bulk_commit();
        }
    }
    if (t == 0 && !BUG(BUG_NO_END_WAIT))
        bulk_wait<0>();
}

__global__ void stmatrix(uint16_t *out, const uint32_t *r)
{
    SMEM(uint16_t, smem);
    const int lane = (int)threadIdx.x;
    const uint32_t mine[4] = {r[4 * lane], r[4 * lane + 1], r[4 * lane + 2], r[4 * lane + 3]};
    stmatrix_x4(smem_addr(smem) + 16 * (uint32_t)lane, mine);
    __syncwarp();
    for (int i = 0; i < 8; i++)
        out[8 * lane + i] = smem[8 * lane + i];
}

/* ---- boxes ---- */

__global__ void box(unsigned char *out, const __grid_constant__ tensor_map map, int c0, int c1, int c2, int c3, uint32_t offset, uint32_t bytes)
{
    SMEM(unsigned char, smem);
    const uint32_t bar = smem_addr(smem), at = bar + 1024 + offset;
    if (threadIdx.x == 0) {
        mbarrier_init(bar, 1);
        fence_mbarrier_init();
        mbarrier_arrive_expect(bar, bytes);
        tma_load_4d(at, &map, bar, c0, c1, c2, c3);
    }
    __syncthreads();
    mbarrier_wait(bar, 0);
    for (uint32_t i = threadIdx.x; i < bytes; i += 32)
        out[i] = smem[1024 + offset + i];
}

} // namespace
} // namespace CUDA_NS

using namespace CUDA_NS;

enum code sm90_probe_gemm(struct device *dev, const struct sm90_probe_gemm *p, float *out, const uint16_t *a, const uint16_t *b)
{
    return p->n == 64    ? run_n<64>(dev, p, out, a, b)
           : p->n == 80  ? run_n<80>(dev, p, out, a, b)
           : p->n == 128 ? run_n<128>(dev, p, out, a, b)
                         : run_n<256>(dev, p, out, a, b);
}

enum code sm90_probe_product(struct device *dev, const struct sm90_probe_product *p, float *d, const uint16_t *shared)
{
    return p->n == 16 ? run_product<16>(dev, p, d, shared) : p->n == 64 ? run_product<64>(dev, p, d, shared) : run_product<80>(dev, p, d, shared);
}

enum code sm90_probe_store(struct device *dev, int m, enum sm90_bug bug, uint16_t *out, const uint16_t *x, float *sum)
{
    tensor_map map;
    TRY(operand_map(&map, out, m, 64, 0, 128, 64));
    return LAUNCH(dev, CUDA_NS::store, dim3((unsigned)(m + 127) / 128), dim3(128), 8192 + 16384, map, x, sum, m, (int)bug);
}

enum code sm90_probe_stmatrix(struct device *dev, uint16_t *out, const uint32_t *r)
{
    return LAUNCH(dev, CUDA_NS::stmatrix, dim3(1), dim3(32), 512, out, r);
}

enum code sm90_probe_box(struct device *dev, const struct sm90_probe_box *p, void *out, void *base)
{
    tensor_map map;
    struct tensor_map_spec s = {};
    uint32_t bytes = (uint32_t)dtype_bytes((enum dtype)p->type);
    s.base = base;
    s.type = (enum dtype)p->type;
    s.rank = 4;
    s.swizzle = p->swizzle;
    for (int i = 0; i < 4; i++) {
        s.n[i] = p->n[i];
        s.box[i] = p->box[i];
        bytes *= (uint32_t)p->box[i];
        if (i > 0)
            s.stride_bytes[i - 1] = p->stride_bytes[i - 1];
    }
    TRY(tensor_map_make(&map, &s));
    return LAUNCH(dev, CUDA_NS::box, dim3(1), dim3(32), 65536, (unsigned char *)out, map, p->c[0], p->c[1], p->c[2], p->c[3], p->offset, bytes);
}
