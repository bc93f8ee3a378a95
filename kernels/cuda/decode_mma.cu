/* Decode attention for bf16 queries over a bf16 cache, whatever the number of rows: even one row (MHA, one new position) goes through the
 * tensor cores, padded to 16, because that costs fewer instructions than multiplying it out. A key and value of D = 128 take about 13 warp
 * instructions here, copies included, and 32 in a kernel of ordinary multiply-adds with its shuffles (counted by hand, not measured); at
 * an H200's bandwidth one arrives at an SM every 25 cycles, which is 100 issue slots.
 *
 * The four warps of a block work alone: each has a ring of STAGES stages in shared memory and fills it with cp.async for itself, so
 * the main loop holds no block barrier. A stage is KEYS keys and values; the warps take the stages of the split in turn. S = Q K^T and
 * O += P V by mma m16n8k16, P from S's registers as in FlashAttention-2; O is rescaled only when a maximum grew. At the end the four
 * states are put together through shared memory.
 *
 * Rows in shared memory are DT + 8 elements: an odd number of 16-byte pieces, so that the 8 rows of an ldmatrix fall into
 * different banks. Columns from W to DT are zeroed once and never written.
 *
 * Bytes in flight per SM (two blocks of four warps; D = 256: one block): at least STAGES - 1 stages of every warp wait while one is
 * worked on: D 64, 96, 128: 2 * 4 * 2 * 8 KiB = 128 KiB (96: 144), D = 256: 64 KiB. Bandwidth times latency is about 30 KiB. */
#include "decode.cuh"

namespace CUDA_NS {
namespace {

const int WARPS = 4;
const float LOG2E = 1.44269504088896f;

template <int DT> struct shape {
    static const int KEYS = DT == 64 ? 32 : 16, STAGES = DT == 96 ? 4 : DT == 256 ? 2 : 3;
    static const int LD = DT + 8, STAGE = 2 * KEYS * LD, RING = STAGES * STAGE; /* elements */
};
/* The ring of a warp also holds its final state: o [16 MT][DT + 8] and (m, l) [16 MT], f32. */
template <int DT, int MT> constexpr size_t mma_bytes() { return 2 * (size_t)(WARPS * shape<DT>::RING + 16 * MT * shape<DT>::LD); }

/* One lane's state: rows g and g + 8 of MT tiles of 16, fragments as mma_bf16 says. m in units of log2. */
template <int DT, int MT> struct state { float o[MT][DT / 8][4], m[MT][2], l[MT][2]; };

/* Keys and values of unit `unit` of the range to a stage; what lies beyond the range becomes zero. */
template <int DT>
__device__ __forceinline__ void stage_fill(const decode_problem &p, const decode_range &range, bf16 *stage, const bf16 *k, const bf16 *v, int unit)
{
    const int KEYS = shape<DT>::KEYS, LD = shape<DT>::LD, lane = threadIdx.x & 31, s0 = range.lo + unit * KEYS;
#pragma unroll
    for (int i = 0; i < KEYS * (DT / 8) / 32; i++) {
        const int piece = i * 32 + lane, key = piece / (DT / 8), d = piece % (DT / 8) * 8;
        const int valid = s0 + key < range.hi;
        const int64_t from = (int64_t)(valid ? s0 + key : range.lo) * p.W + d;
        if (d < p.W) {
            cp_async_16(smem_addr(stage + key * LD + d), k + from, valid);
            cp_async_16(smem_addr(stage + (KEYS + key) * LD + d), v + from, valid);
        }
    }
}

/* One stage: scores, new maxima, P, O. edge: some row may not see some of the keys. */
template <int DT, int MT>
__device__ __forceinline__ void stage_work(const decode_problem &p, const decode_range &range, state<DT, MT> &own, const bf16 *stage, const bf16 *q, int group,
                                           int n0, int s0)
{
    const int KEYS = shape<DT>::KEYS, LD = shape<DT>::LD, lane = threadIdx.x & 31, quarter = lane >> 3, g = lane >> 2, t = lane & 3;
    float s[MT][KEYS / 8][4] = {};
    uint32_t frag[4];
    /* Matrices of K: keys 0-7 d 0-7, keys 0-7 d 8-15, keys 8-15 d 0-7, keys 8-15 d 8-15; of Q: rows 0-7, rows 8-15, then d 8-15. */
    const uint32_t k_at = smem_addr(stage + ((quarter >> 1) * 8 + (lane & 7)) * LD + (quarter & 1) * 8);
    const uint32_t q_at = smem_addr(q + ((quarter & 1) * 8 + (lane & 7)) * LD + (quarter >> 1) * 8);
#pragma unroll
    for (int d = 0; d < DT; d += 16) {
        uint32_t q_frag[MT][4];
#pragma unroll
        for (int i = 0; i < MT; i++)
            ldmatrix_x4(q_frag[i], q_at + (uint32_t)(16 * i * LD + d) * 2);
#pragma unroll
        for (int j = 0; j < KEYS / 16; j++) {
            ldmatrix_x4(frag, k_at + (uint32_t)(16 * j * LD + d) * 2);
#pragma unroll
            for (int i = 0; i < MT; i++) {
                mma_bf16(s[i][2 * j], q_frag[i], frag[0], frag[1]);
                mma_bf16(s[i][2 * j + 1], q_frag[i], frag[2], frag[3]);
            }
        }
    }
    const float scale = p.scale * LOG2E;
    /* Every row sees the keys from lo + Tq - 1 to len. */
    const int edge = s0 + KEYS - 1 > range.len || (p.window >= 0 && s0 < range.lo + p.Tq);
    int grew = 0;
    float shrink[MT][2];
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float high = own.m[i][h];
            const int n = n0 + 16 * i + 8 * h + g, at = edge || p.slopes != NULL ? range.len + n / p.R : 0;
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (int e = 0; e < 2; e++)
                    s[i][j][2 * h + e] *= scale;
            if (p.slopes != NULL) {
                const float slope = p.slopes[group * p.R + n % p.R] * LOG2E, first = (float)(s0 + 2 * t - at);
#pragma unroll
                for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                    for (int e = 0; e < 2; e++)
                        s[i][j][2 * h + e] = fmaf(slope, first + (float)(8 * j + e), s[i][j][2 * h + e]);
            }
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float &x = s[i][j][2 * h + e];
                    const int key = s0 + 8 * j + 2 * t + e;
                    if (edge && (key >= range.hi || key > at || (p.window >= 0 && key < at - p.window)))
                        x = -INFINITY;
                    high = fmaxf(high, x);
                }
            high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 1));
            high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 2));
            const float base = high == -INFINITY ? 0.0f : high;
            grew |= high > own.m[i][h];
            shrink[i][h] = exp2_approx(own.m[i][h] - base);
            own.m[i][h] = high;
            own.l[i][h] *= shrink[i][h];
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float &x = s[i][j][2 * h + e];
                    x = exp2_approx(x - base);
                    own.l[i][h] += x;
                }
        }
    if (__any_sync(0xffffffffu, grew))
#pragma unroll
        for (int i = 0; i < MT; i++)
#pragma unroll
            for (int d = 0; d < DT / 8; d++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    own.o[i][d][e] *= shrink[i][e >> 1];
    /* Matrices of V, transposed: keys 0-7 d 0-7, keys 8-15 d 0-7, then d 8-15. */
    const uint32_t v_at = smem_addr(stage + (KEYS + (quarter & 1) * 8 + (lane & 7)) * LD + (quarter >> 1) * 8);
#pragma unroll
    for (int j = 0; j < KEYS / 16; j++) {
        uint32_t prob[MT][4];
#pragma unroll
        for (int i = 0; i < MT; i++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                prob[i][e] = pack_bf16(s[i][2 * j + (e >> 1)][2 * (e & 1)], s[i][2 * j + (e >> 1)][2 * (e & 1) + 1]);
#pragma unroll
        for (int d = 0; d < DT; d += 16) {
            ldmatrix_x4_trans(frag, v_at + (uint32_t)(16 * j * LD + d) * 2);
#pragma unroll
            for (int i = 0; i < MT; i++) {
                mma_bf16(own.o[i][d / 8], prob[i], frag[0], frag[1]);
                mma_bf16(own.o[i][d / 8 + 1], prob[i], frag[2], frag[3]);
            }
        }
    }
}

/* A warp's state to its ring, as decode_combine reads it. */
template <int DT, int MT> __device__ __forceinline__ void state_store(state<DT, MT> &own, float *to)
{
    const int LDO = DT + 8, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int r = 16 * i + 8 * h + g;
            float l = own.l[i][h];
            l += __shfl_xor_sync(0xffffffffu, l, 1);
            l += __shfl_xor_sync(0xffffffffu, l, 2);
#pragma unroll
            for (int d = 0; d < DT / 8; d++)
                *reinterpret_cast<float2 *>(to + r * LDO + 8 * d + 2 * t) = make_float2(own.o[i][d][2 * h], own.o[i][d][2 * h + 1]);
            if (t == 0)
                *reinterpret_cast<float2 *>(to + 16 * MT * LDO + 2 * r) = make_float2(own.m[i][h], l);
        }
}

/* grid (splits, row blocks, B * G) */
template <int DT, int MT> __global__ void __launch_bounds__(32 * WARPS, DT == 256 ? 1 : 2) decode_mma_k(decode_problem p)
{
    typedef shape<DT> Z;
    SMEM(bf16, smem);
    bf16 *q = smem + WARPS * Z::RING, *ring = smem + (int)(threadIdx.x / 32) * Z::RING;
    const int split = blockIdx.x, n0 = (int)blockIdx.y * 16 * MT, b = blockIdx.z / p.G, g = blockIdx.z % p.G, warp = threadIdx.x / 32;
    const int rows = p.R * p.Tq - n0 < 16 * MT ? p.R * p.Tq - n0 : 16 * MT;
    const decode_range range = decode_range_of(p, b, n0, rows, split, Z::KEYS);
    const bf16 *k = (const bf16 *)p.k + ((int64_t)b * p.G + g) * p.S * p.W, *v = (const bf16 *)p.v + ((int64_t)b * p.G + g) * p.S * p.W;

#pragma unroll
    for (int i = 0; i < Z::STAGES - 1; i++) {
        if (range.from + warp + i * WARPS < range.to)
            stage_fill<DT>(p, range, ring + i * Z::STAGE, k, v, range.from + warp + i * WARPS);
        cp_async_commit();
    }
    /* While the first stages travel: the queries, and zeros where no copy goes. */
    const uint4 zero = {0, 0, 0, 0};
    for (int i = threadIdx.x; i < 16 * MT * (DT / 8); i += 32 * WARPS) {
        const int r = i / (DT / 8), d = i % (DT / 8) * 8, n = n0 + r;
        const bf16 *from = (const bf16 *)p.q.p + b * p.q.batch + n / p.R * p.q.row + (g * p.R + n % p.R) * p.q.head + d;
        bf16 *to = q + r * Z::LD + d;
        const int whole = r < rows && d + 8 <= p.D && (uintptr_t)from % 16 == 0;
        *reinterpret_cast<uint4 *>(to) = whole ? *reinterpret_cast<const uint4 *>(from) : zero;
        if (!whole && r < rows)
            for (int e = 0; e < 8 && d + e < p.D; e++)
                to[e] = from[e];
    }
    if (p.W < DT)
        for (int i = threadIdx.x & 31; i < 2 * Z::STAGES * Z::KEYS; i += 32)
            for (int d = p.W; d < DT; d += 8)
                *reinterpret_cast<uint4 *>(ring + i * Z::LD + d) = zero;
    __syncthreads();

    state<DT, MT> own;
#pragma unroll
    for (int i = 0; i < MT; i++) {
        own.m[i][0] = own.m[i][1] = -INFINITY;
        own.l[i][0] = own.l[i][1] = 0;
#pragma unroll
        for (int d = 0; d < DT / 8; d++)
            own.o[i][d][0] = own.o[i][d][1] = own.o[i][d][2] = own.o[i][d][3] = 0;
    }
    int at = 0; /* the stage to work on */
    for (int unit = range.from + warp; unit < range.to; unit += WARPS) {
        cp_async_wait<Z::STAGES - 2>();
        __syncwarp(); /* all lanes' copies are in, and all lanes are done with the stage before, which is filled now */
        const int free_stage = at == 0 ? Z::STAGES - 1 : at - 1;
        if (unit + (Z::STAGES - 1) * WARPS < range.to)
            stage_fill<DT>(p, range, ring + free_stage * Z::STAGE, k, v, unit + (Z::STAGES - 1) * WARPS);
        cp_async_commit();
        stage_work<DT, MT>(p, range, own, ring + at * Z::STAGE, q, g, n0, range.lo + unit * Z::KEYS);
        at = at + 1 == Z::STAGES ? 0 : at + 1;
    }
    cp_async_wait<0>();
    __syncwarp();
    state_store<DT, MT>(own, reinterpret_cast<float *>(ring));
    __syncthreads();
    decode_combine(p, reinterpret_cast<const float *>(smem), Z::RING / 2, WARPS, DT + 8, 16 * MT * (DT + 8), rows, b, g, n0, split);
    if (p.counters != NULL)
        decode_last_merges(p, reinterpret_cast<unsigned *>(q), b, g, blockIdx.y, gridDim.y, n0, rows);
}

template <int DT, int MT> enum code run(struct device *dev, const decode_problem &p)
{
    static_assert(2 * shape<DT>::RING >= 4 * 16 * MT * (DT + 8 + 2), "the final state fits a ring");
    const dim3 grid((unsigned)p.splits, (unsigned)ceil_div(p.R * p.Tq, 16 * MT), (unsigned)(p.B * p.G));
    return LAUNCH(dev, (decode_mma_k<DT, MT>), grid, dim3(32 * WARPS), (mma_bytes<DT, MT>()), p);
}

} // namespace

size_t decode_mma_bytes(int64_t D, int rows, int *row_tile)
{
    *row_tile = rows > 16 && D <= 128 ? 32 : 16;
    if (D > 128)
        return mma_bytes<256, 1>();
    if (*row_tile == 16)
        return D <= 64 ? mma_bytes<64, 1>() : D <= 96 ? mma_bytes<96, 1>() : mma_bytes<128, 1>();
    return D <= 64 ? mma_bytes<64, 2>() : D <= 96 ? mma_bytes<96, 2>() : mma_bytes<128, 2>();
}

enum code decode_mma(struct device *dev, const decode_problem &p)
{
    if (p.D > 128)
        return run<256, 1>(dev, p);
    if (p.row_tile == 16)
        return p.D <= 64 ? run<64, 1>(dev, p) : p.D <= 96 ? run<96, 1>(dev, p) : run<128, 1>(dev, p);
    return p.D <= 64 ? run<64, 2>(dev, p) : p.D <= 96 ? run<96, 2>(dev, p) : run<128, 2>(dev, p);
}

} // namespace CUDA_NS
