/* Attention backward for sm_80 and later (bf16): dK and dV, and dQ by addition (FlashAttention-2, Dao 2023, alg. 2).
 *
 * A block takes KEYS = 16 GROUPS keys of one sequence and key/value head and loops over the packed rows (attention_sm80_tile.cuh)
 * that see them: all R query heads of the group, so dK and dV are summed over the group in registers, without atomics or an
 * expanded buffer. Per tile of ROWS rows, with scores transposed so that P and dS stay in registers as operands:
 *
 *   S' = K Q',  P' = exp2(scale log2e S' - lse log2e),  dP' = V dO',  dS' = P' (dP' - delta),  dV += P' dO,  dK += dS' Q
 *
 * dS' then goes to shared memory (32-bit stores, no bank conflicts) and the block computes dQ = dS K, rows and columns shared out among
 * the warps, which is added to dq_sum in f32: red.add through L2. In deterministic mode that product is left out and
 * attention_sm80_bwd_dq.cu computes dQ: 4 + 3 products instead of 5.
 *
 * SPLIT = 1: a warp owns 16 keys and all columns of dK and dV. SPLIT = 2 (W = 256, whose accumulators would not fit): two warps own the
 * same 16 keys, half of the rows of S' and half of the columns each, and exchange P' and dS' through shared memory.
 * STAGES = 2: Q and dO of the next tile are copied during the whole current one. STAGES = 1: during its dQ product alone.
 * Two barriers per tile. Operands are read by ldmatrix, 0.55 per mma (4 cycles of shared memory for 512 bytes, 2 of an A100 SM's
 * tensor cores per mma): shared memory bandwidth, not the tensor cores, is the limit of this kernel, at about 85 % of the peak.
 *
 * Key tiles of one head follow each other in the grid, the first keys (most rows under a causal mask) first. */
#include "attention_sm80_bwd.cuh"

namespace CUDA_NS {
namespace {

template <int W, int ROWS_, int GROUPS, int SPLIT, int STAGES> struct bwd_shape {
    static const int ROWS = ROWS_, KEYS = 16 * GROUPS, WARPS = GROUPS * SPLIT, THREADS = WARPS * 32;
    static const int TILE = ROWS * W * 2, K = 0, V = K + KEYS * W * 2, Q = V + KEYS * W * 2, DOUT = Q + STAGES * TILE;
    static const int DS = DOUT + STAGES * TILE, P = DS + KEYS * ROWS * 2; /* P' only with SPLIT 2 */
    static const int INFO = P + (SPLIT > 1 ? KEYS * ROWS * 2 : 0), BYTES = INFO + (int)sizeof(rows_info<ROWS>);
    /* dQ: a warp takes 32 rows and COLUMNS columns, which begin where the exchange of chunks repeats or divide its period. */
    static const int ROW_WARPS = ROWS / 32, COLUMNS = W / (WARPS / ROW_WARPS);
    static_assert(COLUMNS * (WARPS / ROW_WARPS) == W && COLUMNS % 16 == 0 && (COLUMNS & (COLUMNS - 1)) == 0, "dQ is not shared out evenly");
};

/* dQ's share of this warp, dS K, added to dq_sum. */
template <class shape, int W> __device__ __forceinline__ void dq_add(const bwd_params &f, uint32_t at, int b, int g, int n, int end)
{
    const attention_problem &p = f.p;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const int row = shape::ROW_WARPS > 1 ? warp % shape::ROW_WARPS * 32 : 0, column = warp / shape::ROW_WARPS * shape::COLUMNS;
    const uint32_t ds_at = fragment_at<shape::ROWS>(fragment_by_chunks<shape::ROWS>(at + shape::DS), 0, row / 8);
    const uint32_t k_at = fragment_at<W>(fragment_by_rows<W>(at + shape::K), 0, column / 8);
    float dq[2][shape::COLUMNS / 8][4];
    fragment_zero(dq);
#pragma unroll
    for (int i = 0; i < shape::KEYS / 16; i++) {
        uint32_t a[2][4];
#pragma unroll
        for (int m = 0; m < 2; m++)
            ldmatrix_x4_trans(a[m], fragment_at<shape::ROWS>(ds_at, 16 * i, 2 * m));
        product_columns<W>(dq, a, k_at, 16 * i, 0);
    }
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int r = n + row + 16 * m + 8 * half + (lane >> 2);
            if (r < end) {
                const packed_row w = packed_row_of(f.by_r, p.R, g, r);
                float *to = p.dq_sum + (((int64_t)b * p.H + w.h) * p.Tp + w.t) * W + column + (lane & 3) * 2;
#pragma unroll
                for (int j = 0; j < shape::COLUMNS / 8; j++)
                    if (column + 8 * j < p.D)
                        red_add_f32x2(to + 8 * j, dq[m][j][2 * half] * p.scale, dq[m][j][2 * half + 1] * p.scale);
            }
        }
}

/* KEPT: the fragments of K and V stay in registers. */
template <int W, int ROWS, int GROUPS, int SPLIT, int STAGES, int KEPT, int WITH_DQ, int ALIBI>
__global__ void __launch_bounds__(GROUPS * SPLIT * 32, GROUPS * SPLIT > 4 ? 1 : 2) bwd_k(bwd_params f)
{
    using shape = bwd_shape<W, ROWS, GROUPS, SPLIT, STAGES>;
    const int KEYS = shape::KEYS, THREADS = shape::THREADS;
    const int N = ROWS / 8 / SPLIT, DN = W / 8 / SPLIT; /* blocks of 8: rows of this warp's scores, its columns of dK and dV */
    const attention_problem &p = f.p;
    SMEM(unsigned char, smem);
    const uint32_t at = smem_addr(smem);
    const int warp = threadIdx.x >> 5, own = (SPLIT > 1 ? warp % GROUPS : warp) * 16, part = SPLIT > 1 ? warp / GROUPS : 0,
              part_row = part * (ROWS / SPLIT);
    const int bg = blockIdx.x / f.tiles, b = bg / p.G, g = bg % p.G, s0 = (int)(blockIdx.x % f.tiles) * KEYS;
    const tile_range seen = range_of_keys(p, b, s0, min(s0 + KEYS, p.S), s0 + KEYS <= p.S);
    const int begin = min(seen.lo, p.T) * p.R, end = min(seen.hi, p.T) * p.R; /* packed rows */
    const int inner_begin = min(seen.inner_lo, p.T) * p.R, inner_end = min(seen.inner_hi, p.T) * p.R;
    const bf16 *q = (const bf16 *)p.q.p + b * p.q.batch, *dout = (const bf16 *)p.dout.p + b * p.dout.batch;
    rows_info<ROWS> *info = reinterpret_cast<rows_info<ROWS> *>(smem + shape::INFO);

    if (begin < end) {
        const bf16 *k = (const bf16 *)p.k.p + b * p.k.batch + g * p.k.head + s0 * p.k.row;
        const bf16 *v = (const bf16 *)p.v.p + b * p.v.batch + g * p.v.head + s0 * p.v.row;
        tile_load<W, KEYS, THREADS>(at + shape::K, tile_source<W, THREADS>(k, p.k.row), p.k.row, p.S - s0, p.D);
        tile_load<W, KEYS, THREADS>(at + shape::V, tile_source<W, THREADS>(v, p.v.row), p.v.row, p.S - s0, p.D);
        tile_load_packed<W, ROWS, THREADS>(at + shape::Q, q, p.q, f.by_r, p.R, g, begin, end, p.D);
        tile_load_packed<W, ROWS, THREADS>(at + shape::DOUT, dout, p.dout, f.by_r, p.R, g, begin, end, p.D);
        cp_async_commit();
        if ((int)threadIdx.x < ROWS)
            row_info_put<ALIBI>(info, row_info_load<ALIBI>(f, b, g, begin + (int)threadIdx.x, end));
    }
    const uint32_t k_at = fragment_by_rows<W>(at + shape::K + own * W * 2), v_at = fragment_by_rows<W>(at + shape::V + own * W * 2);
    uint32_t k_kept[KEPT ? W / 16 : 1][1][4], v_kept[KEPT ? W / 16 : 1][1][4];
    float dk[1][DN][4], dv[1][DN][4];
    fragment_zero(dk);
    fragment_zero(dv);

    int stage = 0; /* bytes */
    for (int n = begin; n < end; n += ROWS) {
        const int next = n + ROWS;
        const uint32_t q_at = at + shape::Q + stage, dout_at = at + shape::DOUT + stage;
        float s[1][N][4], dp[1][N][4];
        cp_async_wait<0>();
        __syncthreads(); /* this tile is here; the last one's dS' and (STAGES 2) buffers are read */
        if (STAGES == 2 && next < end) {
            tile_load_packed<W, ROWS, THREADS>(at + shape::Q + (stage ^ shape::TILE), q, p.q, f.by_r, p.R, g, next, end, p.D);
            tile_load_packed<W, ROWS, THREADS>(at + shape::DOUT + (stage ^ shape::TILE), dout, p.dout, f.by_r, p.R, g, next, end, p.D);
            cp_async_commit();
        }
        if (KEPT && n == begin)
#pragma unroll
            for (int c = 0; c < W / 16; c++) {
                ldmatrix_x4(k_kept[KEPT ? c : 0][0], fragment_at<W>(k_at, 0, 2 * c));
                ldmatrix_x4(v_kept[KEPT ? c : 0][0], fragment_at<W>(v_at, 0, 2 * c));
            }
        const uint32_t q_rows = fragment_by_chunks<W>(q_at + part_row * W * 2), dout_rows = fragment_by_chunks<W>(dout_at + part_row * W * 2);
        const int whole = n >= inner_begin && min(next, end) <= inner_end;
        const uint32_t hidden = whole ? 0 : scores_hidden<N>(info, part_row, p, b, s0 + own + (int)(threadIdx.x >> 2 & 7));
        fragment_zero(s);
        fragment_zero(dp);
        if (KEPT)
            product_rows_kept<W>(s, k_kept, q_rows);
        else
            product_rows<W>(s, k_at, q_rows);
        if (ALIBI)
            scores_bias_rows(s, info, part_row, s0 - p.q_offset + own + (int)(threadIdx.x >> 2 & 7));
        scores_exp(s, info, part_row, f.scale2, hidden);
        if (KEPT)
            product_rows_kept<W>(dp, v_kept, dout_rows);
        else
            product_rows<W>(dp, v_at, dout_rows);
        scores_grad(dp, s, info, part_row);

        const uint32_t q_columns = fragment_by_rows<W>(q_at + part * (W / SPLIT) * 2),
                       dout_columns = fragment_by_rows<W>(dout_at + part * (W / SPLIT) * 2);
        uint32_t a[1][4];
        if (SPLIT == 1) {
#pragma unroll
            for (int i = 0; i < N / 2; i++) {
                fragment_pack(a[0], s[0][2 * i], s[0][2 * i + 1]);
                product_columns<W>(dv, a, dout_columns, 16 * i, 0);
            }
#pragma unroll
            for (int i = 0; i < N / 2; i++) {
                fragment_pack(a[0], dp[0][2 * i], dp[0][2 * i + 1]);
                if (WITH_DQ)
                    operand_put<ROWS>(smem + shape::DS, own, 2 * i, a[0]);
                product_columns<W>(dk, a, q_columns, 16 * i, 0);
            }
        } else {
#pragma unroll
            for (int i = 0; i < N / 2; i++) {
                fragment_pack(a[0], s[0][2 * i], s[0][2 * i + 1]);
                operand_put<ROWS>(smem + shape::P, own, part * N + 2 * i, a[0]);
                fragment_pack(a[0], dp[0][2 * i], dp[0][2 * i + 1]);
                operand_put<ROWS>(smem + shape::DS, own, part * N + 2 * i, a[0]);
            }
            __syncthreads();
            const uint32_t p_at = fragment_by_rows<ROWS>(at + shape::P + own * ROWS * 2),
                           ds_at = fragment_by_rows<ROWS>(at + shape::DS + own * ROWS * 2);
#pragma unroll
            for (int i = 0; i < ROWS / 16; i++) {
                ldmatrix_x4(a[0], fragment_at<ROWS>(p_at, 0, 2 * i));
                product_columns<W>(dv, a, dout_columns, 16 * i, 0);
                ldmatrix_x4(a[0], fragment_at<ROWS>(ds_at, 0, 2 * i));
                product_columns<W>(dk, a, q_columns, 16 * i, 0);
            }
        }
        __syncthreads(); /* dS' is here; this tile's Q, dO and info are read */
        if (STAGES == 1 && next < end) {
            tile_load_packed<W, ROWS, THREADS>(at + shape::Q, q, p.q, f.by_r, p.R, g, next, end, p.D);
            tile_load_packed<W, ROWS, THREADS>(at + shape::DOUT, dout, p.dout, f.by_r, p.R, g, next, end, p.D);
            cp_async_commit();
        }
        row_info more = {};
        if ((int)threadIdx.x < ROWS)
            more = row_info_load<ALIBI>(f, b, g, next + (int)threadIdx.x, end);
        if (WITH_DQ)
            dq_add<shape, W>(f, address_again(at), b, g, n, end);
        if ((int)threadIdx.x < ROWS)
            row_info_put<ALIBI>(info, more);
        if (STAGES == 2)
            stage ^= shape::TILE;
    }

    /* dK and dV leave through the tiles of K and V in whole 16-byte chunks. */
    __syncthreads();
#pragma unroll
    for (int j = 0; j < DN; j++) {
        tile_put<W>(smem + shape::K, own, part * DN + j, dk[0][j], p.scale, p.scale);
        tile_put<W>(smem + shape::V, own, part * DN + j, dv[0][j], 1.0f, 1.0f);
    }
    __syncthreads();
    bf16 *dk_out = (bf16 *)p.dk.p + b * p.dk.batch + g * p.dk.head, *dv_out = (bf16 *)p.dv.p + b * p.dv.batch + g * p.dv.head;
    for (int e = threadIdx.x; e < KEYS * (W / 8); e += THREADS) {
        const int r = e / (W / 8), c = e % (W / 8);
        if (s0 + r < p.S && c * 8 < p.D) {
            *reinterpret_cast<uint4 *>(dk_out + (s0 + r) * p.dk.row + c * 8) = tile_get<W>(smem + shape::K, r, c);
            *reinterpret_cast<uint4 *>(dv_out + (s0 + r) * p.dv.row + c * 8) = tile_get<W>(smem + shape::V, r, c);
        }
    }
}

template <int W, int ROWS, int GROUPS, int SPLIT, int STAGES, int KEPT, int ALIBI> enum code bwd_launch(struct device *dev, const attention_problem &p)
{
    using shape = bwd_shape<W, ROWS, GROUPS, SPLIT, STAGES>;
    bwd_params f = {};
    f.p = p;
    f.by_r = divider_make(p.R);
    f.tiles = (int)ceil_div(p.S, shape::KEYS);
    f.scale2 = p.scale * 1.4426950408889634f;
    const int64_t blocks = (int64_t)f.tiles * p.B * p.G;
    if (blocks > INT32_MAX)
        return fail(ERR_UNSUPPORTED, "attention_bwd: %lld blocks of keys; a launch takes 2^31", (long long)blocks);
    if (dev->smem_max < (size_t)shape::BYTES)
        return fail(ERR_UNSUPPORTED, "attention_bwd: heads of %d need %d bytes of shared memory per block, this GPU gives %zu", p.D, shape::BYTES,
                    dev->smem_max);
    const dim3 grid((unsigned)blocks), block(shape::THREADS);
    if (blocks == 0)
        return OK;
    if (p.deterministic)
        return LAUNCH(dev, (bwd_k<W, ROWS, GROUPS, SPLIT, STAGES, KEPT, 0, ALIBI>), grid, block, shape::BYTES, f);
    return LAUNCH(dev, (bwd_k<W, ROWS, GROUPS, SPLIT, STAGES, KEPT, 1, ALIBI>), grid, block, shape::BYTES, f);
}

/* By head width, and for 128 by shared memory: 163 KB per block (A100) or 99 KB (sm_86, sm_89). */
template <int ALIBI> enum code bwd_choose(struct device *dev, const attention_problem &p)
{
    if (p.Dp == 64)
        return bwd_launch<64, 64, 8, 1, 2, 1, ALIBI>(dev, p);
    if (p.Dp == 96)
        return bwd_launch<96, 64, 6, 1, 2, 0, ALIBI>(dev, p);
    if (p.Dp == 128)
        return dev->smem_max >= (size_t)148 * 1024 ? bwd_launch<128, 64, 8, 1, 2, 0, ALIBI>(dev, p) : bwd_launch<128, 32, 8, 1, 1, 0, ALIBI>(dev, p);
    return bwd_launch<256, 32, 2, 2, 1, 0, ALIBI>(dev, p);
}

} // namespace

enum code attention_bwd_sm80(struct device *dev, const attention_problem &p)
{
    if ((int64_t)p.T * p.R > INT32_MAX / 2)
        return fail(ERR_UNSUPPORTED, "attention_bwd: %d queries of %d heads per key/value head; the CUDA backend takes up to 2^30 rows", p.T, p.R);
    TRY(p.slopes != NULL ? bwd_choose<1>(dev, p) : bwd_choose<0>(dev, p));
    return p.deterministic ? attention_bwd_dq_sm80(dev, p) : attention_dq_store(dev, p);
}

} // namespace CUDA_NS
