/* Tiles of f32 in shared memory and the two products over them, for attention_plain*.cu. 256 threads as 16 x 16, thread (ty, tx);
 * a product of TILE x TILE or TILE x DT gives each thread N = TILE / 16 rows: ty * N + i.
 *
 * A tile of rows is [TILE][DT + 4] floats, columns from D to DT zero: with 4 floats of padding the 16-byte reads of 8 neighbouring
 * rows fall into different banks. Rows are read from any type and any strides.
 *
 * Query rows of a group are packed: row m of group g is position m / R of head g * R + m % R, so that one K/V tile serves all
 * R heads and a tile is full even when T is small. */
#ifndef GQAKIT_KERNELS_CUDA_ATTENTION_PLAIN_CUH
#define GQAKIT_KERNELS_CUDA_ATTENTION_PLAIN_CUH

#include "attention.cuh"

namespace CUDA_NS {
namespace {

const int THREADS = 256;
const float LOG2E = 1.44269504088896f, LN2 = 0.693147180559945f;

__device__ __forceinline__ float4 load4(const float *p) { return *reinterpret_cast<const float4 *>(p); }
__device__ __forceinline__ float4 load4(const bf16 *p)
{
    const uint2 u = *reinterpret_cast<const uint2 *>(p);
    float4 x = {__uint_as_float(u.x << 16), __uint_as_float(u.x & 0xffff0000u), __uint_as_float(u.y << 16), __uint_as_float(u.y & 0xffff0000u)};
    return x;
}
__device__ __forceinline__ void store4(float *p, float4 x) { *reinterpret_cast<float4 *>(p) = x; }
__device__ __forceinline__ void store4(bf16 *p, float4 x)
{
    uint2 u;
    u.x = pack_bf16(x.x, x.y), u.y = pack_bf16(x.z, x.w);
    *reinterpret_cast<uint2 *>(p) = u;
}

template <class T> __device__ __forceinline__ T *row_of(const heads_view &x, int b, int t, int h)
{
    return (T *)x.p + b * x.batch + t * x.row + h * x.head;
}
/* Row m of group g, see above. */
template <class T> __device__ __forceinline__ T *packed_row(const attention_problem &p, const heads_view &x, int b, int g, int m)
{
    return row_of<T>(x, b, m / p.R, g * p.R + m % p.R);
}

/* tile <- rows [0, rows) given by row(r), the rest of TILE rows zero. aligned: four elements may be read at once. */
template <class T, int DT, int TILE, class Row> __device__ __forceinline__ void load_tile(float *tile, int D, int aligned, int rows, Row row)
{
    const int LD = DT + 4;
    if (aligned)
#pragma unroll 2
        for (int i = threadIdx.x; i < TILE * (DT / 4); i += THREADS) {
            const int r = i / (DT / 4), d = i % (DT / 4) * 4;
            float4 x = {0, 0, 0, 0};
            if (r < rows && d < D)
                x = load4(row(r) + d);
            store4(tile + r * LD + d, x);
        }
    else
#pragma unroll 2
        for (int i = threadIdx.x; i < TILE * DT; i += THREADS) {
            const int r = i / DT, d = i % DT;
            tile[r * LD + d] = r < rows && d < D ? f32_of(row(r)[d]) : 0.0f;
        }
}

/* s[i][j] = dot(row ty * N + i of a, row tx + 16 j of b). */
template <int DT, int N> __device__ __forceinline__ void dot_tile(float (&s)[N][N], const float *a, const float *b, int D)
{
    const int LD = DT + 4;
    const float *x = a + (threadIdx.x >> 4) * N * LD, *y = b + (threadIdx.x & 15) * LD;
#pragma unroll
    for (int i = 0; i < N; i++)
#pragma unroll
        for (int j = 0; j < N; j++)
            s[i][j] = 0;
#pragma unroll 1
    for (int d = 0; d < D; d += 4) {
        float4 u[N], w[N];
#pragma unroll
        for (int i = 0; i < N; i++)
            u[i] = load4(x + i * LD + d), w[i] = load4(y + 16 * i * LD + d);
#pragma unroll
        for (int i = 0; i < N; i++)
#pragma unroll
            for (int j = 0; j < N; j++)
                s[i][j] += u[i].x * w[j].x + u[i].y * w[j].y + u[i].z * w[j].z + u[i].w * w[j].w;
    }
}

/* acc[i][4 c + e] += sum over k of s[ty * N + i][k] * v[k][64 c + 4 tx + e]; s is [TILE][TILE + 4]. */
template <int DT, int N> __device__ __forceinline__ void add_tile(float (&acc)[N][DT / 16], const float *s, const float *v)
{
    const int TILE = 16 * N, LD = DT + 4, LS = TILE + 4;
    const float *x = s + (threadIdx.x >> 4) * N * LS, *y = v + (threadIdx.x & 15) * 4;
#pragma unroll 1
    for (int k = 0; k < TILE; k += 4) {
        float4 u[N];
#pragma unroll
        for (int i = 0; i < N; i++)
            u[i] = load4(x + i * LS + k);
#pragma unroll
        for (int e = 0; e < 4; e++)
#pragma unroll
            for (int c = 0; c < DT / 64; c++) {
                const float4 w = load4(y + (k + e) * LD + 64 * c);
#pragma unroll
                for (int i = 0; i < N; i++) {
                    const float f = e == 0 ? u[i].x : e == 1 ? u[i].y : e == 2 ? u[i].z : u[i].w;
                    acc[i][4 * c] += f * w.x, acc[i][4 * c + 1] += f * w.y, acc[i][4 * c + 2] += f * w.z, acc[i][4 * c + 3] += f * w.w;
                }
            }
    }
}

/* A thread's part of one row of acc, times f, to the row `to`. */
template <class T, int DT> __device__ __forceinline__ void store_row(T *to, const float (&acc)[DT / 16], float f, int D, int aligned)
{
    const int tx = threadIdx.x & 15;
#pragma unroll
    for (int c = 0; c < DT / 64; c++) {
        const int d = 64 * c + 4 * tx;
        const float4 x = {acc[4 * c] * f, acc[4 * c + 1] * f, acc[4 * c + 2] * f, acc[4 * c + 3] * f};
        if (aligned && d < D)
            store4(to + d, x);
        else if (d < D) {
            to[d] = num_of<T>(x.x);
            if (d + 1 < D)
                to[d + 1] = num_of<T>(x.y);
            if (d + 2 < D)
                to[d + 2] = num_of<T>(x.z);
            if (d + 3 < D)
                to[d + 3] = num_of<T>(x.w);
        }
    }
}

/* How queries [t0, t1) of sequence b and keys [s0, s1) meet. */
enum meeting { MEET_NONE, MEET_SOME, MEET_ALL };
__device__ __forceinline__ enum meeting tiles_meet(const attention_problem &p, int b, int t0, int t1, int s0, int s1)
{
    const int first = t0 + p.q_offset, last = t1 - 1 + p.q_offset;
    if (p.seg_q != NULL) {
        const int32_t *q = p.seg_q + b * p.seg_q_batch, *k = p.seg_k + b * p.seg_k_batch;
        if (k[s1 - 1] < q[t0] || k[s0] > q[t1 - 1])
            return MEET_NONE;
        if (k[s0] != k[s1 - 1] || q[t0] != q[t1 - 1])
            return MEET_SOME;
    }
    return (p.causal && s1 - 1 > first) || (p.window_left >= 0 && s0 < last - p.window_left) || (p.window_right >= 0 && s1 - 1 > first + p.window_right)
               ? MEET_SOME
               : MEET_ALL;
}

/* Bit 4 i + j: whether the thread's query row i sees its key j (dot_tile) by the mask, among keys [s0, s0 + n_keys); 0 for rows from
 * `rows` on. One word instead of sixteen tests in the middle of the arithmetic, which would cost registers. */
template <int N>
__device__ __forceinline__ uint32_t seen_keys(const attention_problem &p, enum meeting meeting, int b, int m0, int rows, int s0, int n_keys)
{
    const int tx = threadIdx.x & 15, ty = threadIdx.x >> 4;
    uint32_t bits = 0;
#pragma unroll 1
    for (int i = 0; i < N && ty * N + i < rows; i++) {
        const int t = (m0 + ty * N + i) / p.R;
        const int seg_t = p.seg_q == NULL ? 0 : p.seg_q[b * p.seg_q_batch + t];
#pragma unroll 1
        for (int key = tx; key < n_keys; key += 16) {
            const int seg_s = p.seg_k == NULL ? 0 : p.seg_k[b * p.seg_k_batch + s0 + key];
            if (meeting == MEET_ALL || attention_visible(p, t, s0 + key, seg_t, seg_s))
                bits |= 1u << (4 * i + key / 16);
        }
    }
    return bits;
}

/* Products of rows m0 + .. of group g and keys s0 + .. (as in dot_tile) become scores in base 2, ALiBi included. */
template <int N> __device__ __forceinline__ void scale_tile(float (&s)[N][N], const attention_problem &p, int g, int m0, int s0)
{
    const float scale = p.scale * LOG2E;
#pragma unroll
    for (int i = 0; i < N; i++)
#pragma unroll
        for (int j = 0; j < N; j++)
            s[i][j] *= scale;
    if (p.slopes == NULL)
        return;
#pragma unroll
    for (int i = 0; i < N; i++) {
        const int m = m0 + (int)(threadIdx.x >> 4) * N + i, t = m / p.R;
        const float slope = p.slopes[g * p.R + m - t * p.R] * LOG2E, first = (float)(s0 + (int)(threadIdx.x & 15) - t - p.q_offset);
#pragma unroll
        for (int j = 0; j < N; j++)
            s[i][j] += slope * (first + (float)(16 * j));
    }
}

} // namespace
} // namespace CUDA_NS
#endif
