/* Private to the sm_80 attention kernels: tiles of bf16 in shared memory, their copies to and from global memory, and the
 * fragments of mma_bf16 read out of them.
 *
 * A tile has rows of W bf16 without padding. The 16-byte chunk c of row r lies at place c ^ key(r), so that the eight rows of one
 * matrix of ldmatrix, and the eight rows that a warp writes fragments to, fall on eight different groups of four banks:
 *   W % 64 == 0: key = r & 7.  W = 96 or 32 (rows of 12 or 4 chunks; every second row starts in the middle of the banks):
 *   key = r >> 1 & 3.  W = 16: key = r >> 2 & 1.
 * Packed rows: the R query heads of a group are rows of one tile, row n = (t = n / R, r = n % R), head g R + r. A tile then needs
 * each key once for all heads of the group, short T fills tiles, and a causal diagonal is R times narrower. */
#ifndef GQAKIT_KERNELS_CUDA_ATTENTION_SM80_TILE_CUH
#define GQAKIT_KERNELS_CUDA_ATTENTION_SM80_TILE_CUH

#include "attention.cuh"

namespace CUDA_NS {

template <int W> struct tile_shape {
    static const int CHUNKS = W / 8;
    static const int MASK = CHUNKS % 8 == 0 ? 7 : CHUNKS % 4 == 0 ? 3 : 1;
    static const int SHIFT = MASK == 7 ? 0 : MASK == 3 ? 1 : 2;
};
/* Byte offset of chunk c of row r. */
template <int W> __device__ __forceinline__ uint32_t tile_offset(int r, int c)
{
    return (uint32_t)(r * W * 2 + ((c ^ (r >> tile_shape<W>::SHIFT & tile_shape<W>::MASK)) * 16));
}

/* ---- fragments ---- */

/* Addresses that this lane gives to ldmatrix for the 16 x 16 block at row 0, chunk 0. by_rows: matrices 0, 1 are rows 0-7, 8-15 of
 * chunk 0, matrices 2, 3 of chunk 1 (an A operand; transposed: two B operands of 8 columns whose k is the row).
 * by_chunks: matrices 0, 1 are chunks 0, 1 of rows 0-7 (two B operands of 8 columns whose columns are the rows; transposed: an A
 * operand whose rows are the columns of the tile). */
template <int W> __device__ __forceinline__ uint32_t fragment_by_rows(uint32_t tile)
{
    const int lane = threadIdx.x & 31;
    return tile + tile_offset<W>(lane & 15, lane >> 4);
}
template <int W> __device__ __forceinline__ uint32_t fragment_by_chunks(uint32_t tile)
{
    const int lane = threadIdx.x & 31;
    return tile + tile_offset<W>((lane & 7) + (lane >> 4) * 8, lane >> 3 & 1);
}
/* The same for the block at row r (a multiple of 8) and chunk c (even). Tiles start at multiples of 128 bytes, so the chunk's low
 * bits are exchanged by one xor and the rest is a constant displacement. */
template <int W> __device__ __forceinline__ uint32_t fragment_at(uint32_t first, int r, int c)
{
    return (first ^ (uint32_t)((c & tile_shape<W>::MASK) * 16)) + (uint32_t)(r * W * 2 + (c & ~tile_shape<W>::MASK) * 16);
}

/* The same address, of which the compiler no longer knows that it is the same in every turn of a loop: the four exchanged addresses per
 * tile are then made where they are used instead of being kept in registers that the accumulators need. No instruction. */
__device__ __forceinline__ uint32_t address_again(uint32_t x)
{
    asm volatile("" : "+r"(x));
    return x;
}

/* Accumulators of two neighbouring 16 x 8 blocks become the A operand of the next product. */
__device__ __forceinline__ void fragment_pack(uint32_t (&a)[4], const float (&left)[4], const float (&right)[4])
{
    a[0] = pack_bf16(left[0], left[1]);
    a[1] = pack_bf16(left[2], left[3]);
    a[2] = pack_bf16(right[0], right[1]);
    a[3] = pack_bf16(right[2], right[3]);
}

template <int M, int N> __device__ __forceinline__ void fragment_zero(float (&d)[M][N][4])
{
#pragma unroll
    for (int i = 0; i < M; i++)
#pragma unroll
        for (int j = 0; j < N; j++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                d[i][j][e] = 0.0f;
}

/* d[M][N] += a b over the W columns of both tiles; a: fragment_by_rows at its first row; b: fragment_by_chunks at its first row, whose
 * rows are the columns of d. */
template <int W, int M, int N> __device__ __forceinline__ void product_rows(float (&d)[M][N][4], uint32_t a, uint32_t b)
{
    const int PERIOD = (tile_shape<W>::MASK + 1) / 2; /* steps of 16 columns after which the exchange repeats */
#pragma unroll 1
    for (int turn = 0; turn < W / 16 / PERIOD; turn++, a += PERIOD * 32, b += PERIOD * 32) {
#pragma unroll
        for (int k = 0; k < PERIOD; k++) {
            uint32_t fa[M][4];
#pragma unroll
            for (int i = 0; i < M; i++)
                ldmatrix_x4(fa[i], fragment_at<W>(a, 16 * i, 2 * k));
#pragma unroll
            for (int j = 0; j < N; j += 2) {
                uint32_t fb[4];
                ldmatrix_x4(fb, fragment_at<W>(b, 8 * j, 2 * k));
#pragma unroll
                for (int i = 0; i < M; i++) {
                    mma_bf16(d[i][j], fa[i], fb[0], fb[1]);
                    mma_bf16(d[i][j + 1], fa[i], fb[2], fb[3]);
                }
            }
        }
    }
}
/* The same with a in registers: a[k][i] is block (i, k). */
template <int W, int M, int N, int C> __device__ __forceinline__ void product_rows_kept(float (&d)[M][N][4], const uint32_t (&a)[C][M][4], uint32_t b)
{
#pragma unroll
    for (int k = 0; k < W / 16; k++)
#pragma unroll
        for (int j = 0; j < N; j += 2) {
            uint32_t fb[4];
            ldmatrix_x4(fb, fragment_at<W>(b, 8 * j, 2 * k));
#pragma unroll
            for (int i = 0; i < M; i++) {
                mma_bf16(d[i][j], a[k][i], fb[0], fb[1]);
                mma_bf16(d[i][j + 1], a[k][i], fb[2], fb[3]);
            }
        }
}
/* d[M][N] += a b for the 16 rows of tile b that begin at row r; b: fragment_by_rows at its first row and chunk; columns of d are columns of b. */
template <int W, int M, int N>
__device__ __forceinline__ void product_columns(float (&d)[M][N][4], const uint32_t (&a)[M][4], uint32_t b, int r, int c)
{
#pragma unroll
    for (int j = 0; j < N; j += 2) {
        uint32_t fb[4];
        ldmatrix_x4_trans(fb, fragment_at<W>(b, r, c + j));
#pragma unroll
        for (int i = 0; i < M; i++) {
            mma_bf16(d[i][j], a[i], fb[0], fb[1]);
            mma_bf16(d[i][j + 1], a[i], fb[2], fb[3]);
        }
    }
}

/* ---- copies ---- */

/* n / d for n < 2^31 without a division (Granlund and Montgomery 1994, fig. 4.1). */
struct divider {
    uint32_t times, shift;
};
static inline divider divider_make(int d)
{
    divider r = {1, 0};
    while ((1u << r.shift) < (uint32_t)d)
        r.shift++;
    r.times = (uint32_t)((((uint64_t)1 << 32) * (((uint64_t)1 << r.shift) - (uint64_t)d)) / (uint64_t)d + 1);
    return r;
}
__device__ __forceinline__ int divide(divider d, int n)
{
    return (int)(((uint32_t)((uint64_t)d.times * (uint32_t)n >> 32) + (uint32_t)n) >> d.shift);
}

/* Packed row n of sequence b, group g. */
struct packed_row {
    int t, h;
};
__device__ __forceinline__ packed_row packed_row_of(divider by_r, int R, int g, int n)
{
    packed_row w;
    w.t = divide(by_r, n);
    w.h = g * R + n - w.t * R;
    return w;
}

/* How THREADS threads share the chunks of a tile: LANES neighbours per row (rows of 12 chunks: each lane three of them). */
template <int W, int THREADS> struct tile_turns {
    static const int LANES = tile_shape<W>::CHUNKS % 12 == 0 ? 4 : tile_shape<W>::CHUNKS, STEP = THREADS / LANES;
};
/* Where this thread begins in rows that are `stride` elements apart. */
template <int W, int THREADS> __device__ __forceinline__ const bf16 *tile_source(const bf16 *x, int64_t stride)
{
    const int LANES = tile_turns<W, THREADS>::LANES;
    return x + (int)threadIdx.x / LANES * stride + (int)threadIdx.x % LANES * 8;
}
/* Starts the copy of ROWS rows to a tile, `from` being this thread's tile_source; rows from `valid` on and columns from D on become zero.
 * The pointer moves from row to row: multiples of the stride would be kept in registers. */
template <int W, int ROWS, int THREADS> __device__ __forceinline__ void tile_load(uint32_t tile, const bf16 *from, int64_t stride, int valid, int D)
{
    const int LANES = tile_turns<W, THREADS>::LANES, STEP = tile_turns<W, THREADS>::STEP;
    const int first = (int)threadIdx.x / LANES, lane = (int)threadIdx.x % LANES;
#pragma unroll
    for (int i = 0; i < (ROWS + STEP - 1) / STEP; i++) {
        if (ROWS % STEP == 0 || first + i * STEP < ROWS)
#pragma unroll
            for (int c = 0; c < tile_shape<W>::CHUNKS; c += LANES)
                cp_async_16(tile + tile_offset<W>(first + i * STEP, c + lane), from + c * 8, first + i * STEP < valid && (c + lane) * 8 < D);
        from += STEP * stride;
    }
}
/* The same for packed rows n .. n + ROWS of group g of one sequence (x: its first row and head); rows from `end` on are zero. */
template <int W, int ROWS, int THREADS>
__device__ __forceinline__ void tile_load_packed(uint32_t tile, const bf16 *x, const heads_view &v, divider by_r, int R, int g, int n, int end, int D)
{
    const int LANES = tile_turns<W, THREADS>::LANES, STEP = tile_turns<W, THREADS>::STEP;
    const int first = (int)threadIdx.x / LANES, lane = (int)threadIdx.x % LANES;
#pragma unroll
    for (int i = 0; i < (ROWS + STEP - 1) / STEP; i++)
        if (ROWS % STEP == 0 || first + i * STEP < ROWS) {
            const packed_row w = packed_row_of(by_r, R, g, n + first + i * STEP);
            const bf16 *from = x + w.t * v.row + w.h * v.head + lane * 8;
#pragma unroll
            for (int c = 0; c < tile_shape<W>::CHUNKS; c += LANES)
                cp_async_16(tile + tile_offset<W>(first + i * STEP, c + lane), from + c * 8, n + first + i * STEP < end && (c + lane) * 8 < D);
        }
}

/* Writes one 16 x 8 block of accumulators, times `factor0` in rows g and `factor1` in rows g + 8, to rows r .. r + 15, chunk c. */
template <int W> __device__ __forceinline__ void tile_put(unsigned char *tile, int r, int c, const float (&d)[4], float factor0, float factor1)
{
    const int lane = threadIdx.x & 31, row = r + (lane >> 2);
    *reinterpret_cast<uint32_t *>(tile + tile_offset<W>(row, c) + (lane & 3) * 4) = pack_bf16(d[0] * factor0, d[1] * factor0);
    *reinterpret_cast<uint32_t *>(tile + tile_offset<W>(row + 8, c) + (lane & 3) * 4) = pack_bf16(d[2] * factor1, d[3] * factor1);
}
template <int W> __device__ __forceinline__ uint4 tile_get(const unsigned char *tile, int r, int c)
{
    return *reinterpret_cast<const uint4 *>(tile + tile_offset<W>(r, c));
}

} // namespace CUDA_NS
#endif
