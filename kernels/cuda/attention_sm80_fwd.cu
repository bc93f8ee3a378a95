/* Attention forward for sm_80 and later (bf16): FlashAttention-2 (Dao 2023, alg. 1) with mma.sync, ldmatrix and cp.async.
 *
 * A block takes 16 M WARPS packed rows (attention_sm80_tile.cuh) of one sequence and group; each warp owns 16 M of them through the whole
 * pass, so softmax needs no exchange beyond the four lanes that hold a row. K and V tiles of KEYS rows stream through one buffer
 * each: V is copied while S = Q K^T is computed, the next K during softmax and P V (two barriers per tile; shared memory stays
 * small enough for two blocks per SM on the A100). P goes from accumulators to operand registers. M = 2 feeds four mma with each
 * ldmatrix of K or V: a 512-byte read (4 cycles of shared memory) for 8 cycles of the tensor cores, so that is no limit.
 * A block whose rows see everything in a tile skips the mask; tiles that nobody sees are not visited; tiles begin at the first visible key.
 *
 * Softmax in base 2. The running maximum m of a row follows the true one only when it grew by more than 8 (a factor of 256 in P):
 * bf16 and f32 lose nothing by that, and the accumulators are then rarely rescaled. o and lse do not depend on which m was used.
 *
 * Blocks of one sequence and group follow each other in the grid, those with most keys (the last rows) first: their K and V are
 * shared through L2, and short blocks fill the end. */
#include "attention_sm80_mask.cuh"

namespace CUDA_NS {
namespace {

struct fwd_params {
    attention_problem p;
    divider by_r;
    int tiles;    /* of packed rows */
    float scale2; /* |scale| log2 e; 1 when the scale is 0 */
    float sign;   /* of the scale: scores are multiplied by it where they are masked; not 1: every tile is */
    float grown;  /* by how much a raw score must exceed m to replace it */
};

template <int W, int M, int KEYS, int WARPS> struct fwd_shape {
    static const int ROWS = 16 * M * WARPS, Q = 0, K = Q + ROWS * W * 2, V = K + KEYS * W * 2, BYTES = V + KEYS * W * 2;
};

/* Softmax state of the rows 16 i + 8 half + g of this warp's tile. `sum` is this lane's share. */
template <int M> struct softmax_rows {
    float m[M][2], sum[M][2];
};

/* Raw scores s become P; o and the sums are rescaled when a maximum moved. */
template <int M, int N, int ON>
__device__ __forceinline__ void softmax_step(softmax_rows<M> &row, float (&s)[M][N][4], float (&o)[M][ON][4], float scale2, float grown)
{
    float next[M][2];
    int moved = 0;
#pragma unroll
    for (int i = 0; i < M; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float top = s[i][0][2 * half];
#pragma unroll
            for (int j = 0; j < N; j++)
                top = fmaxf(top, fmaxf(s[i][j][2 * half], s[i][j][2 * half + 1]));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
            const int grew = top > row.m[i][half] + grown;
            next[i][half] = grew ? top : row.m[i][half];
            moved |= grew;
        }
    if (__any_sync(0xffffffffu, moved)) {
#pragma unroll
        for (int i = 0; i < M; i++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                /* Both -inf: no key so far, the difference would be NaN. */
                const float keep = next[i][half] == row.m[i][half] ? 1.0f : exp2_approx((row.m[i][half] - next[i][half]) * scale2);
                row.m[i][half] = next[i][half];
                row.sum[i][half] *= keep;
#pragma unroll
                for (int j = 0; j < ON; j++) {
                    o[i][j][2 * half] *= keep;
                    o[i][j][2 * half + 1] *= keep;
                }
            }
    }
#pragma unroll
    for (int i = 0; i < M; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float base = row.m[i][half] == -INFINITY ? 0.0f : row.m[i][half] * scale2;
#pragma unroll
            for (int j = 0; j < N; j++)
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; e++) {
                    s[i][j][e] = exp2_approx(fmaf(s[i][j][e], scale2, -base));
                    row.sum[i][half] += s[i][j][e];
                }
        }
}

/* IN_REGISTERS: Q's fragments are read once and kept. */
template <int W, int M, int KEYS, int WARPS, int IN_REGISTERS, int BLOCKS, int ALIBI>
__global__ void __launch_bounds__(WARPS * 32, BLOCKS) fwd_k(fwd_params f)
{
    using shape = fwd_shape<W, M, KEYS, WARPS>;
    const int THREADS = WARPS * 32, N = KEYS / 8, ON = W / 8;
    const attention_problem &p = f.p;
    SMEM(unsigned char, smem);
    const uint32_t at = smem_addr(smem);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const int bg = blockIdx.x / f.tiles, b = bg / p.G, g = bg % p.G;
    const int rows = p.T * p.R, n0 = (f.tiles - 1 - (int)(blockIdx.x % f.tiles)) * shape::ROWS, n1 = min(n0 + shape::ROWS, rows);
    const int own = warp * 16 * M; /* first row of this warp's */
    const tile_range keys = range_of_rows(p, b, divide(f.by_r, n0), divide(f.by_r, n1 - 1) + 1);
    const bf16 *k = tile_source<W, THREADS>((const bf16 *)p.k.p + b * p.k.batch + g * p.k.head + keys.lo * p.k.row, p.k.row);
    const bf16 *v = tile_source<W, THREADS>((const bf16 *)p.v.p + b * p.v.batch + g * p.v.head + keys.lo * p.v.row, p.v.row);

    const uint32_t q_at = fragment_by_rows<W>(at + shape::Q + own * W * 2), k_at = fragment_by_chunks<W>(at + shape::K),
                   v_at = fragment_by_rows<W>(at + shape::V);
    uint32_t q[IN_REGISTERS ? W / 16 : 1][M][4];
    float o[M][ON][4];
    softmax_rows<M> row;
    if (keys.lo < keys.hi) {
        tile_load_packed<W, shape::ROWS, THREADS>(at + shape::Q, (const bf16 *)p.q.p + b * p.q.batch, p.q, f.by_r, p.R, g, n0, n1, p.D);
        tile_load<W, KEYS, THREADS>(at + shape::K, k, p.k.row, keys.hi - keys.lo, p.D);
        cp_async_commit();
    }
    fragment_zero(o);
#pragma unroll
    for (int i = 0; i < M; i++)
        row.m[i][0] = row.m[i][1] = -INFINITY, row.sum[i][0] = row.sum[i][1] = 0.0f;
    for (int s0 = keys.lo; s0 < keys.hi; s0 += KEYS) {
        float s[M][N][4];
        fragment_zero(s);
        cp_async_wait<0>(); /* K */
        __syncthreads();    /* everyone's K; V of the last tile is read */
        tile_load<W, KEYS, THREADS>(at + shape::V, v, p.v.row, keys.hi - s0, p.D);
        v += KEYS * p.v.row;
        cp_async_commit();
        if (IN_REGISTERS) {
            if (s0 == keys.lo)
#pragma unroll
                for (int c = 0; c < W / 16; c++)
#pragma unroll
                    for (int i = 0; i < M; i++)
                        ldmatrix_x4(q[IN_REGISTERS ? c : 0][i], fragment_at<W>(q_at, 16 * i, 2 * c));
            product_rows_kept<W>(s, q, address_again(k_at));
        } else
            product_rows<W>(s, address_again(q_at), address_again(k_at));
        cp_async_wait<0>(); /* V */
        __syncthreads();    /* everyone's V; K is read */
        k += KEYS * p.k.row;
        if (s0 + KEYS < keys.hi)
            tile_load<W, KEYS, THREADS>(at + shape::K, k, p.k.row, keys.hi - s0 - KEYS, p.D);
        cp_async_commit();
        if (s0 < keys.inner_lo || s0 + KEYS > keys.inner_hi || f.sign != 1.0f)
            scores_mask(s, p, f.by_r, b, n0 + own, s0, f.sign, -INFINITY);
        if (ALIBI)
            scores_bias(s, p, f.by_r, g, n0 + own, s0, fabsf(p.unscale));
        const uint32_t v_now = address_again(v_at);
        softmax_step(row, s, o, f.scale2, f.grown);
#pragma unroll
        for (int c = 0; c < KEYS / 16; c++) {
            uint32_t a[M][4];
#pragma unroll
            for (int i = 0; i < M; i++)
                fragment_pack(a[i], s[i][2 * c], s[i][2 * c + 1]);
            product_columns<W>(o, a, v_now, 16 * c, 0);
        }
    }

    /* Rows of Q's tile are read by their own warp alone: O goes out through them in whole 16-byte chunks. */
    __syncwarp();
#pragma unroll
    for (int i = 0; i < M; i++) {
        float factor[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = row.sum[i][half];
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            factor[half] = sum == 0.0f ? 0.0f : 1.0f / sum;
            const int n = n0 + own + 16 * i + 8 * half + (lane >> 2);
            const packed_row w = packed_row_of(f.by_r, p.R, g, n);
            if ((lane & 3) == 0 && n < n1)
                p.lse[b * p.lse_batch + w.h * p.lse_head + w.t] =
                    sum == 0.0f ? -INFINITY : row.m[i][half] * f.scale2 * 0.6931471805599453f + logf(sum);
        }
#pragma unroll
        for (int j = 0; j < ON; j++)
            tile_put<W>(smem + shape::Q, own + 16 * i, j, o[i][j], factor[0], factor[1]);
    }
    __syncwarp();
    bf16 *out = (bf16 *)p.o.p + b * p.o.batch;
    for (int e = lane; e < 16 * M * ON; e += 32) {
        const int r = own + e / ON, c = e % ON;
        if (n0 + r < n1 && c * 8 < p.D) {
            const packed_row w = packed_row_of(f.by_r, p.R, g, n0 + r);
            *reinterpret_cast<uint4 *>(out + w.t * p.o.row + w.h * p.o.head + c * 8) = tile_get<W>(smem + shape::Q, r, c);
        }
    }
}

template <int W, int M, int KEYS, int WARPS, int IN_REGISTERS, int BLOCKS, int ALIBI = 0> enum code fwd_launch(struct device *dev, const attention_problem &p)
{
    using shape = fwd_shape<W, M, KEYS, WARPS>;
    const float scale2 = fabsf(p.scale) * 1.4426950408889634f;
    fwd_params f = {};
    f.p = p;
    f.by_r = divider_make(p.R);
    f.tiles = (int)ceil_div((int64_t)p.T * p.R, shape::ROWS);
    f.scale2 = scale2 > 0 ? scale2 : 1.0f;
    f.sign = p.scale > 0 ? 1.0f : p.scale < 0 ? -1.0f : 0.0f;
    f.grown = 8.0f / f.scale2 < 1e30f ? 8.0f / f.scale2 : 1e30f;
    const int64_t blocks = (int64_t)f.tiles * p.B * p.G;
    if (blocks > INT32_MAX)
        return fail(ERR_UNSUPPORTED, "attention_fwd: %lld blocks of rows; a launch takes 2^31", (long long)blocks);
    if (dev->smem_max < (size_t)shape::BYTES)
        return fail(ERR_UNSUPPORTED, "attention_fwd: heads of %d need %d bytes of shared memory per block, this GPU gives %zu", p.D, shape::BYTES,
                    dev->smem_max);
    return LAUNCH(dev, (fwd_k<W, M, KEYS, WARPS, IN_REGISTERS, BLOCKS, ALIBI>), dim3((unsigned)blocks), dim3(WARPS * 32), shape::BYTES, f);
}

/* With ALiBi, whose distances need registers: tiles of fewer keys, of one kind for each width. */
enum code fwd_choose_alibi(struct device *dev, const attention_problem &p)
{
    if (p.Dp == 64)
        return fwd_launch<64, 2, 64, 4, 1, 2, 1>(dev, p);
    if (p.Dp == 96)
        return fwd_launch<96, 2, 48, 4, 0, 2, 1>(dev, p);
    return p.Dp == 128 ? fwd_launch<128, 2, 32, 4, 0, 2, 1>(dev, p) : fwd_launch<256, 1, 32, 8, 0, 1, 1>(dev, p);
}

} // namespace

/* Tiles by head width, and by shared memory where it decides: 163 KB per block (A100: two blocks of 64 KB per SM) or 99 KB (sm_86, sm_89:
 * narrower tiles of keys, so that two blocks or one of 8 warps fit). */
enum code attention_fwd_sm80(struct device *dev, const attention_problem &p)
{
    if ((int64_t)p.T * p.R > INT32_MAX / 2)
        return fail(ERR_UNSUPPORTED, "attention_fwd: %d queries of %d heads per key/value head; the CUDA backend takes up to 2^30 rows", p.T, p.R);
    if (p.slopes != NULL)
        return fwd_choose_alibi(dev, p);
    const int wide = dev->smem_max >= (size_t)128 * 1024;
    if (p.Dp == 64)
        return fwd_launch<64, 2, 64, 4, 1, 2>(dev, p);
    if (p.Dp == 96)
        return fwd_launch<96, 2, 64, 4, 0, 2>(dev, p);
    if (p.Dp == 128)
        return wide ? fwd_launch<128, 2, 48, 4, 0, 2>(dev, p) : fwd_launch<128, 2, 32, 4, 0, 2>(dev, p);
    return wide ? fwd_launch<256, 1, 64, 8, 0, 1>(dev, p) : fwd_launch<256, 1, 32, 8, 0, 1>(dev, p);
}

} // namespace CUDA_NS
