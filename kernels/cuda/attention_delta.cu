/* What the backward kernels of every generation share: before them, delta = rowsum(dO * O) (FlashAttention-2, Dao 2023, alg. 2
 * line 4) and the zeroing of dQ's accumulator; after them, dQ from the accumulator.
 *
 * Both kernels move bytes and nothing else. A block takes 64 positions of one head: rows lie [B,T,H,D], so blocks of neighbouring
 * heads read neighbouring bytes and the head is the fastest index of the grid. A row is spread over the least power of two
 * of lanes that covers it in pieces of 8 elements, and a thread asks for its pieces of four rows (f32: two) of o and dO before it
 * adds: 128 bytes in flight, 128 KiB per SM at 1024 threads. */
#include "attention.cuh"

namespace CUDA_NS {
namespace {

const int THREADS = 256, ROWS = 64;

__device__ __forceinline__ void load_piece(float (&x)[8], const bf16 *p) { load_f32x8(x, p); }
__device__ __forceinline__ void load_piece(float (&x)[8], const float *p) { load_f32x8(x, p); }
template <class T> __device__ __forceinline__ void load_piece(float (&x)[1], const T *p) { x[0] = f32_of(*p); }

/* delta [B,H,Tp]; rows from T to Tp are 0. dq_sum [B,H,Tp,Dp] becomes 0 unless NULL. PIECE: elements per access, 8 or 1 (f32 rows of any
 * alignment). lanes: a power of two up to 32, lanes * 8 >= D when PIECE is 8. Whole warps enter and leave the outer loop, so the
 * shuffles may use the full mask. */
template <class T, int PIECE> __global__ void __launch_bounds__(THREADS) delta_k(attention_problem p, int lanes, float *dq_sum)
{
    const int BATCH = sizeof(T) == 2 ? 4 : 2;
    const int h = blockIdx.x % p.H, t0 = blockIdx.x / p.H * ROWS, b = blockIdx.y;
    const int lane = threadIdx.x & (lanes - 1), first = threadIdx.x / lanes, step = THREADS / lanes;
    const T *o = (const T *)p.o.p + b * p.o.batch + h * p.o.head, *dout = (const T *)p.dout.p + b * p.dout.batch + h * p.dout.head;
    float *delta = p.delta + ((int64_t)b * p.H + h) * p.Tp;
    for (int r = first; r < ROWS; r += BATCH * step) {
        float sum[BATCH];
#pragma unroll
        for (int j = 0; j < BATCH; j++) {
            const int t = t0 + r + j * step;
            sum[j] = 0;
            if (r + j * step < ROWS && t < p.T)
                for (int d = lane * PIECE; d < p.D; d += lanes * PIECE) {
                    float x[PIECE], y[PIECE];
                    load_piece(x, o + t * p.o.row + d);
                    load_piece(y, dout + t * p.dout.row + d);
#pragma unroll
                    for (int i = 0; i < PIECE; i++)
                        sum[j] += x[i] * y[i];
                    if (PIECE == 8)
                        break;
                }
        }
#pragma unroll
        for (int j = 0; j < BATCH; j++) {
            for (int i = lanes / 2; i > 0; i >>= 1)
                sum[j] += __shfl_xor_sync(0xffffffffu, sum[j], i);
            if (lane == 0 && r + j * step < ROWS)
                delta[t0 + r + j * step] = sum[j];
        }
    }
    if (dq_sum != NULL) {
        float4 *sums = (float4 *)(dq_sum + (((int64_t)b * p.H + h) * p.Tp + t0) * p.Dp);
        const float4 zero = {0, 0, 0, 0};
        for (int i = threadIdx.x; i < ROWS * (int)p.Dp / 4; i += THREADS)
            sums[i] = zero;
    }
}

__global__ void __launch_bounds__(THREADS) dq_store_k(attention_problem p, int lanes)
{
    const int h = blockIdx.x % p.H, t0 = blockIdx.x / p.H * ROWS, b = blockIdx.y;
    const int d = (threadIdx.x & (lanes - 1)) * 8, first = threadIdx.x / lanes, step = THREADS / lanes;
    const float *sum = p.dq_sum + (((int64_t)b * p.H + h) * p.Tp + t0) * p.Dp + d;
    bf16 *dq = (bf16 *)p.dq.p + b * p.dq.batch + h * p.dq.head + t0 * p.dq.row + d;
    if (d >= p.D)
        return;
#pragma unroll 4
    for (int row = first; row < ROWS; row += step)
        if (t0 + row < p.T) {
            float x[8];
            load_f32x8(x, sum + row * p.Dp);
            store_f32x8(dq + row * p.dq.row, x);
        }
}

int lanes_for(int pieces)
{
    int lanes = 1;
    while (lanes < pieces && lanes < 32)
        lanes *= 2;
    return lanes;
}

int rows_aligned(const heads_view &x, size_t size)
{
    const int64_t piece = 16 / (int64_t)size;
    return (uintptr_t)x.p % 16 == 0 && x.batch % piece == 0 && x.row % piece == 0 && x.head % piece == 0;
}

} // namespace

enum code attention_delta(struct device *dev, const attention_problem &p, enum dtype type)
{
    const dim3 grid((unsigned)(p.H * (p.Tp / ROWS)), (unsigned)p.B);
    if (type == DT_BF16)
        return LAUNCH(dev, (delta_k<bf16, 8>), grid, dim3(THREADS), 0, p, lanes_for(p.D / 8), p.deterministic ? (float *)NULL : p.dq_sum);
    if (p.D % 8 == 0 && rows_aligned(p.o, 4) && rows_aligned(p.dout, 4))
        return LAUNCH(dev, (delta_k<float, 8>), grid, dim3(THREADS), 0, p, lanes_for(p.D / 8), (float *)NULL);
    return LAUNCH(dev, (delta_k<float, 1>), grid, dim3(THREADS), 0, p, lanes_for(p.D), (float *)NULL);
}

enum code attention_dq_store(struct device *dev, const attention_problem &p)
{
    const dim3 grid((unsigned)(p.H * ceil_div(p.T, ROWS)), (unsigned)p.B);
    return LAUNCH(dev, dq_store_k, grid, dim3(THREADS), 0, p, lanes_for(p.D / 8));
}

} // namespace CUDA_NS
