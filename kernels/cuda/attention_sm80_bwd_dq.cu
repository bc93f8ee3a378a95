/* Attention backward for sm_80 and later (bf16), deterministic mode: dQ by rows, no atomics.
 *
 * The same walk as the forward (attention_sm80_fwd.cu): a warp owns 16 packed rows, K and V tiles stream through two stages of shared
 * memory, and with S, P = exp2(scale log2 e S - lse log2 e), dP = dO V' and dS = P (dP - delta) recomputed, dQ += dS K stays in
 * registers. Its sum has one order: keys ascending. Three products beside the four of the other kernel, against five in one.
 * Up to W = 128 the fragments of Q and dO are kept in registers: 0.5 ldmatrix per mma, else 0.83. */
#include "attention_sm80_bwd.cuh"

namespace CUDA_NS {
namespace {

struct dq_params {
    attention_problem p;
    divider by_r;
    int tiles;
    float scale2;
};

const int WARPS = 4, ROWS = 16 * WARPS, THREADS = 32 * WARPS;

template <int W, int KEYS> struct dq_shape {
    static const int TILE = KEYS * W * 2, Q = 0, DOUT = Q + ROWS * W * 2, K = DOUT + ROWS * W * 2, V = K + 2 * TILE, BYTES = V + 2 * TILE;
};

template <int W, int KEYS, int KEPT> __global__ void __launch_bounds__(THREADS, W > 128 ? 1 : 2) dq_k(dq_params f)
{
    using shape = dq_shape<W, KEYS>;
    const int N = KEYS / 8, DN = W / 8;
    const attention_problem &p = f.p;
    SMEM(unsigned char, smem);
    const uint32_t at = smem_addr(smem);
    const int lane = threadIdx.x & 31, own = (threadIdx.x >> 5) * 16;
    const int bg = blockIdx.x / f.tiles, b = bg / p.G, g = bg % p.G;
    const int n0 = (f.tiles - 1 - (int)(blockIdx.x % f.tiles)) * ROWS, n1 = min(n0 + ROWS, p.T * p.R);
    const tile_range keys = range_of_rows(p, b, divide(f.by_r, n0), divide(f.by_r, n1 - 1) + 1);
    const bf16 *k = tile_source<W, THREADS>((const bf16 *)p.k.p + b * p.k.batch + g * p.k.head + keys.lo * p.k.row, p.k.row);
    const bf16 *v = tile_source<W, THREADS>((const bf16 *)p.v.p + b * p.v.batch + g * p.v.head + keys.lo * p.v.row, p.v.row);

    if (keys.lo < keys.hi) {
        tile_load_packed<W, ROWS, THREADS>(at + shape::Q, (const bf16 *)p.q.p + b * p.q.batch, p.q, f.by_r, p.R, g, n0, n1, p.D);
        tile_load_packed<W, ROWS, THREADS>(at + shape::DOUT, (const bf16 *)p.dout.p + b * p.dout.batch, p.dout, f.by_r, p.R, g, n0, n1, p.D);
        tile_load<W, KEYS, THREADS>(at + shape::K, k, p.k.row, keys.hi - keys.lo, p.D);
        tile_load<W, KEYS, THREADS>(at + shape::V, v, p.v.row, keys.hi - keys.lo, p.D);
        cp_async_commit();
    }
    float lse2[2], delta[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int n = n0 + own + 8 * half + (lane >> 2);
        lse2[half] = INFINITY, delta[half] = 0.0f; /* a row that does not exist or sees no key: P = 0 */
        if (n < n1) {
            const packed_row w = packed_row_of(f.by_r, p.R, g, n);
            const float lse = p.lse[b * p.lse_batch + w.h * p.lse_head + w.t];
            lse2[half] = lse == -INFINITY ? INFINITY : lse * 1.4426950408889634f;
            delta[half] = p.delta[((int64_t)b * p.H + w.h) * p.Tp + w.t];
        }
    }
    const uint32_t q_at = fragment_by_rows<W>(at + shape::Q + own * W * 2), dout_at = fragment_by_rows<W>(at + shape::DOUT + own * W * 2);
    uint32_t q_kept[KEPT ? W / 16 : 1][1][4], dout_kept[KEPT ? W / 16 : 1][1][4];
    float dq[1][DN][4];
    fragment_zero(dq);

    int stage = 0; /* bytes */
    for (int s0 = keys.lo; s0 < keys.hi; s0 += KEYS) {
        float s[1][N][4], dp[1][N][4];
        cp_async_wait<0>();
        __syncthreads(); /* this tile is here, the other stage is read */
        k += KEYS * p.k.row;
        v += KEYS * p.v.row;
        if (s0 + KEYS < keys.hi) {
            tile_load<W, KEYS, THREADS>(at + shape::K + (stage ^ shape::TILE), k, p.k.row, keys.hi - s0 - KEYS, p.D);
            tile_load<W, KEYS, THREADS>(at + shape::V + (stage ^ shape::TILE), v, p.v.row, keys.hi - s0 - KEYS, p.D);
            cp_async_commit();
        }
        const uint32_t k_at = fragment_by_chunks<W>(at + shape::K + stage), v_at = fragment_by_chunks<W>(at + shape::V + stage);
        fragment_zero(s);
        fragment_zero(dp);
        if (KEPT) {
            if (s0 == keys.lo)
#pragma unroll
                for (int c = 0; c < W / 16; c++) {
                    ldmatrix_x4(q_kept[KEPT ? c : 0][0], fragment_at<W>(q_at, 0, 2 * c));
                    ldmatrix_x4(dout_kept[KEPT ? c : 0][0], fragment_at<W>(dout_at, 0, 2 * c));
                }
            product_rows_kept<W>(s, q_kept, k_at);
            product_rows_kept<W>(dp, dout_kept, v_at);
        } else {
            product_rows<W>(s, q_at, k_at);
            product_rows<W>(dp, dout_at, v_at);
        }
        if (p.slopes != NULL)
            scores_bias(s, p, f.by_r, g, n0 + own, s0, p.unscale);
#pragma unroll
        for (int j = 0; j < N; j++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                s[0][j][e] = exp2_approx(fmaf(s[0][j][e], f.scale2, -lse2[e >> 1]));
        if (s0 < keys.inner_lo || s0 + KEYS > keys.inner_hi)
            scores_mask(s, p, f.by_r, b, n0 + own, s0, 1.0f, 0.0f);
#pragma unroll
        for (int j = 0; j < N; j++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                s[0][j][e] *= dp[0][j][e] - delta[e >> 1];
        const uint32_t k_columns = fragment_by_rows<W>(at + shape::K + stage);
#pragma unroll
        for (int i = 0; i < KEYS / 16; i++) {
            uint32_t a[1][4];
            fragment_pack(a[0], s[0][2 * i], s[0][2 * i + 1]);
            product_columns<W>(dq, a, k_columns, 16 * i, 0);
        }
        stage ^= shape::TILE;
    }

    /* Out through the warp's own rows of Q's tile, in whole 16-byte chunks. */
    __syncwarp();
#pragma unroll
    for (int j = 0; j < DN; j++)
        tile_put<W>(smem + shape::Q, own, j, dq[0][j], p.scale, p.scale);
    __syncwarp();
    bf16 *out = (bf16 *)p.dq.p + b * p.dq.batch;
    for (int e = lane; e < 16 * DN; e += 32) {
        const int r = own + e / DN, c = e % DN;
        if (n0 + r < n1 && c * 8 < p.D) {
            const packed_row w = packed_row_of(f.by_r, p.R, g, n0 + r);
            *reinterpret_cast<uint4 *>(out + w.t * p.dq.row + w.h * p.dq.head + c * 8) = tile_get<W>(smem + shape::Q, r, c);
        }
    }
}

template <int W, int KEYS, int KEPT> enum code dq_launch(struct device *dev, const attention_problem &p)
{
    using shape = dq_shape<W, KEYS>;
    dq_params f = {};
    f.p = p;
    f.by_r = divider_make(p.R);
    f.tiles = (int)ceil_div((int64_t)p.T * p.R, ROWS);
    f.scale2 = p.scale * 1.4426950408889634f;
    const int64_t blocks = (int64_t)f.tiles * p.B * p.G;
    if (blocks > INT32_MAX)
        return fail(ERR_UNSUPPORTED, "attention_bwd: %lld blocks of rows; a launch takes 2^31", (long long)blocks);
    if (dev->smem_max < (size_t)shape::BYTES)
        return fail(ERR_UNSUPPORTED, "attention_bwd: heads of %d need %d bytes of shared memory per block, this GPU gives %zu", p.D, shape::BYTES,
                    dev->smem_max);
    return LAUNCH(dev, (dq_k<W, KEYS, KEPT>), dim3((unsigned)blocks), dim3(THREADS), shape::BYTES, f);
}

} // namespace

enum code attention_bwd_dq_sm80(struct device *dev, const attention_problem &p)
{
    if (p.Dp == 64)
        return dq_launch<64, 64, 1>(dev, p);
    if (p.Dp == 96)
        return dq_launch<96, 32, 1>(dev, p);
    if (p.Dp == 128)
        return dq_launch<128, 32, 1>(dev, p);
    return dq_launch<256, 16, 0>(dev, p);
}

} // namespace CUDA_NS
