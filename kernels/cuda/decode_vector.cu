/* Decode attention by ordinary multiply-adds, for an f32 cache or f32 queries (bf16 over bf16 is decode_mma.cu's, for any number of rows).
 * A row of K or V is spread over the least power of two of lanes that covers it in pieces of 8; every such group of lanes walks positions
 * of its own with its own maximum, sum and O in registers, and reads AHEAD positions before it computes: 128 bytes in flight per
 * thread (64 for four rows over bf16: registers), 64 KiB per SM at two blocks. Shuffles make it slower per
 * position than the tensor cores; an f32 cache is for checks. */
#include "decode.cuh"

namespace CUDA_NS {
namespace {

const int THREADS = 256, UNIT = 32; /* UNIT: positions, the grain of a split */
const float LOG2E = 1.44269504088896f;

/* Floats of shared memory for the state of one group of lanes. */
__host__ __device__ __forceinline__ int part_floats(int NR, int W) { return NR * W + (2 * NR + 3) / 4 * 4; }

/* grid (splits, row blocks, B * G); NR rows. lanes: power of two, lanes * 8 >= W. */
template <class C, int NR> __global__ void __launch_bounds__(THREADS, 2) decode_vector_k(decode_problem p, int lanes)
{
    const int AHEAD = sizeof(C) == 2 && NR == 1 ? 4 : 2;
    SMEM(float, parts);
    const int split = blockIdx.x, n0 = (int)blockIdx.y * NR, b = blockIdx.z / p.G, g = blockIdx.z % p.G;
    const int d = (threadIdx.x & (lanes - 1)) * 8, group = threadIdx.x / lanes, groups = THREADS / lanes;
    const int rows = p.R * p.Tq - n0 < NR ? p.R * p.Tq - n0 : NR;
    const decode_range range = decode_range_of(p, b, n0, rows, split, UNIT);
    const int from = range.lo + range.from * UNIT, end = range.lo + range.to * UNIT, to = end < range.hi ? end : range.hi;
    const int64_t cache = ((int64_t)b * p.G + g) * p.S * p.W + d;
    const C *k = (const C *)p.k + cache, *v = (const C *)p.v + cache;

    float q[NR][8], o[NR][8] = {}, m[NR], l[NR] = {};
#pragma unroll
    for (int r = 0; r < NR; r++) {
        const int n = n0 + r;
        const int64_t row = b * p.q.batch + n / p.R * p.q.row + (g * p.R + n % p.R) * p.q.head + d;
        m[r] = -INFINITY;
#pragma unroll
        for (int e = 0; e < 8; e++)
            q[r][e] = r >= rows || d + e >= p.D ? 0.0f : p.q_bf16 ? f32_of(((const bf16 *)p.q.p)[row + e]) : ((const float *)p.q.p)[row + e];
    }
    for (int s0 = from; s0 < to; s0 += groups * AHEAD) {
        float x[AHEAD][8], y[AHEAD][8];
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            const int s = s0 + u * groups + group;
#pragma unroll
            for (int e = 0; e < 8; e++)
                x[u][e] = y[u][e] = 0;
            if (s < to && d < p.W) {
                load_f32x8(x[u], k + (int64_t)s * p.W);
                load_f32x8(y[u], v + (int64_t)s * p.W);
            }
        }
#pragma unroll
        for (int r = 0; r < NR; r++) {
            const int at = range.len + (n0 + r) / p.R;
            float score[AHEAD], high = m[r];
#pragma unroll
            for (int u = 0; u < AHEAD; u++) {
                const int s = s0 + u * groups + group;
                float sum = 0;
#pragma unroll
                for (int e = 0; e < 8; e++)
                    sum += q[r][e] * x[u][e];
                for (int i = lanes / 2; i > 0; i >>= 1)
                    sum += __shfl_xor_sync(0xffffffffu, sum, i);
                score[u] = s < to && s <= at && (p.window < 0 || s >= at - p.window) ? sum * (p.scale * LOG2E) : -INFINITY;
            }
            if (NR == 1 && p.slopes != NULL) {
                const float slope = p.slopes[g * p.R + n0 % p.R] * LOG2E;
#pragma unroll
                for (int u = 0; u < AHEAD; u++)
                    score[u] += slope * (float)(s0 + u * groups + group - at);
            }
#pragma unroll
            for (int u = 0; u < AHEAD; u++)
                high = fmaxf(high, score[u]);
            const float base = high == -INFINITY ? 0.0f : high, shrink = exp2_approx(m[r] - base);
            m[r] = high;
            l[r] *= shrink;
#pragma unroll
            for (int e = 0; e < 8; e++)
                o[r][e] *= shrink;
#pragma unroll
            for (int u = 0; u < AHEAD; u++) {
                const float prob = exp2_approx(score[u] - base);
                l[r] += prob;
#pragma unroll
                for (int e = 0; e < 8; e++)
                    o[r][e] += prob * y[u][e];
            }
        }
    }
    float *part = parts + group * part_floats(NR, p.W);
#pragma unroll
    for (int r = 0; r < NR; r++) {
        if (d < p.W)
            store_f32x8(part + r * p.W + d, o[r]);
        if (d == 0)
            part[NR * p.W + 2 * r] = m[r], part[NR * p.W + 2 * r + 1] = l[r];
    }
    __syncthreads();
    decode_combine(p, parts, part_floats(NR, p.W), groups, p.W, NR * p.W, rows, b, g, n0, split);
    if (p.counters != NULL) {
        __syncthreads();
        decode_last_merges(p, (unsigned *)parts, b, g, blockIdx.y, gridDim.y, n0, rows);
    }
}

int lanes_of(int64_t D)
{
    int lanes = 1;
    while (lanes * 8 < D)
        lanes *= 2;
    return lanes;
}

template <class C, int NR> enum code run_vector(struct device *dev, const decode_problem &p)
{
    const dim3 grid((unsigned)p.splits, (unsigned)ceil_div(p.R * p.Tq, NR), (unsigned)(p.B * p.G));
    const int lanes = lanes_of(p.D);
    return LAUNCH(dev, (decode_vector_k<C, NR>), grid, dim3(THREADS), sizeof(float) * (size_t)(THREADS / lanes * part_floats(NR, p.W)), p, lanes);
}

} // namespace

size_t decode_vector_bytes(int64_t D, int rows, int *row_tile)
{
    *row_tile = rows < 4 ? 1 : 4;
    return sizeof(float) * (size_t)(THREADS / lanes_of(D) * part_floats(*row_tile, (int)ceil_div(D, 8) * 8));
}

enum code decode_vector(struct device *dev, const decode_problem &p, enum dtype cache)
{
    if (cache == DT_BF16)
        return p.row_tile == 1 ? run_vector<bf16, 1>(dev, p) : run_vector<bf16, 4>(dev, p);
    return p.row_tile == 1 ? run_vector<float, 1>(dev, p) : run_vector<float, 4>(dev, p);
}

} // namespace CUDA_NS
