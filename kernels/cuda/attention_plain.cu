/* Attention in f32 with ordinary multiply-adds: the f32 mode, and the oracle for the fast kernels on a GPU. Reads f32 or bf16 of any
 * strides, any D up to 256, every mask of attention_visible, ALiBi.
 *
 * Forward (FlashAttention-2, Dao 2023, alg. 1): a block owns TILE packed query rows of one group (attention_plain.cuh) and visits
 * the K/V tiles they see; running maximum and sum per row, O in registers. K and V take turns in one buffer.
 * Backward (ibid., alg. 2), in two kernels so that every sum has one owner and needs no atomics:
 *   dq_k   owns query rows, visits key tiles:     dQ = scale dS K
 *   dkv_k  owns the keys of one group, visits the packed rows of all its R heads: dV = P^T dO, dK = scale dS^T Q
 * with P = exp(scale q.k - lse), dS = P (dO.v - delta).
 *
 * Expected limit: shared memory. A thread's 4 x 4 outputs take 8 reads of 16 bytes for 64 multiply-adds, about half of the
 * f32 peak. Forward: two blocks per SM for D <= 128; D = 256: one, in 150 KiB of shared memory (an A100 has 163). */
#include "attention_plain.cuh"

namespace CUDA_NS {
namespace {

/* Floats of shared memory: `tiles` of rows and one of scores. */
template <int DT, int N> constexpr size_t plain_bytes(int tiles) { return sizeof(float) * 16 * N * (size_t)(tiles * (DT + 4) + 16 * N + 4); }

template <class T, int DT, int N> __global__ void __launch_bounds__(THREADS) fwd_k(attention_problem p, int aligned)
{
    const int TILE = 16 * N, LD = DT + 4, LS = TILE + 4;
    SMEM(float, smem);
    float *q_tile = smem, *kv_tile = q_tile + TILE * LD, *scores = kv_tile + TILE * LD;
    /* Rows that see most first: the last tiles of a causal mask. */
    const int m0 = (int)(gridDim.x - 1 - blockIdx.x) * TILE, g = blockIdx.y, b = blockIdx.z, tx = threadIdx.x & 15, ty = threadIdx.x >> 4;
    const int rows = p.T * p.R - m0 < TILE ? p.T * p.R - m0 : TILE, t0 = m0 / p.R, t1 = (m0 + rows - 1) / p.R + 1;
    float top[N], sum[N], acc[N][DT / 16] = {};
    for (int i = 0; i < N; i++)
        top[i] = -INFINITY, sum[i] = 0;
    load_tile<T, DT, TILE>(q_tile, p.D, aligned, rows, [&](int r) { return packed_row<const T>(p, p.q, b, g, m0 + r); });

    const key_range keys = attention_keys(p, t0, t1);
    for (int s0 = keys.lo; s0 < keys.hi; s0 += TILE) {
        const int n_keys = p.S - s0 < TILE ? p.S - s0 : TILE;
        const enum meeting meeting = tiles_meet(p, b, t0, t1, s0, s0 + n_keys);
        if (meeting == MEET_NONE)
            continue;
        const uint32_t seen = seen_keys<N>(p, meeting, b, m0, rows, s0, n_keys);
        float s[N][N];
        __syncthreads(); /* nobody reads the last V any more */
        load_tile<T, DT, TILE>(kv_tile, p.D, aligned, n_keys, [&](int r) { return row_of<const T>(p.k, b, s0 + r, g); });
        __syncthreads();
        dot_tile<DT, N>(s, q_tile, kv_tile, p.D);
        scale_tile(s, p, g, m0, s0);
#pragma unroll
        for (int i = 0; i < N; i++) {
            float high = top[i];
#pragma unroll
            for (int j = 0; j < N; j++) {
                s[i][j] = seen >> (4 * i + j) & 1 ? s[i][j] : -INFINITY;
                high = fmaxf(high, s[i][j]);
            }
#pragma unroll
            for (int k = 8; k > 0; k >>= 1)
                high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, k));
            const float base = high == -INFINITY ? 0.0f : high, shrink = exp2_approx(top[i] - base);
            top[i] = high;
            sum[i] *= shrink;
#pragma unroll
            for (int j = 0; j < N; j++) {
                s[i][j] = exp2_approx(s[i][j] - base);
                sum[i] += s[i][j];
                scores[(ty * N + i) * LS + tx + 16 * j] = s[i][j];
            }
#pragma unroll
            for (int c = 0; c < DT / 16; c++)
                acc[i][c] *= shrink;
        }
        __syncthreads();
        load_tile<T, DT, TILE>(kv_tile, p.D, aligned, n_keys, [&](int r) { return row_of<const T>(p.v, b, s0 + r, g); });
        __syncthreads();
        add_tile<DT, N>(acc, scores, kv_tile);
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
        const int m = m0 + ty * N + i, h = g * p.R + m % p.R;
#pragma unroll
        for (int k = 8; k > 0; k >>= 1)
            sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], k);
        if (ty * N + i >= rows)
            continue;
        store_row<T, DT>(row_of<T>(p.o, b, m / p.R, h), acc[i], sum[i] > 0 ? 1 / sum[i] : 0.0f, p.D, aligned);
        if (tx == 0)
            p.lse[b * p.lse_batch + h * p.lse_head + m / p.R] = sum[i] > 0 ? top[i] * LN2 + logf(sum[i]) : -INFINITY;
    }
}

/* lse (base 2) and delta of a thread's rows. A row that does not exist or sees nothing gets lse = +inf: its P is 0 everywhere. */
template <int N> __device__ __forceinline__ void load_stats(const attention_problem &p, float (&lse)[N], float (&delta)[N], int b, int g, int m0, int rows)
{
#pragma unroll
    for (int i = 0; i < N; i++) {
        const int r = (threadIdx.x >> 4) * N + i, m = m0 + r, t = m / p.R, h = g * p.R + m % p.R;
        lse[i] = INFINITY, delta[i] = 0;
        if (r >= rows)
            continue;
        const float x = p.lse[b * p.lse_batch + h * p.lse_head + t];
        lse[i] = x == -INFINITY ? INFINITY : x * LOG2E;
        delta[i] = p.delta[((int64_t)b * p.H + h) * p.Tp + t];
    }
}

/* prob = P and ds = dS of TILE query rows and TILE keys; rows as in dot_tile. */
template <int DT, int N>
__device__ __forceinline__ void gradient_tile(const attention_problem &p, float (&prob)[N][N], float (&ds)[N][N], const float *q, const float *dout,
                                              const float *k, const float *v, const float (&lse)[N], const float (&delta)[N], uint32_t seen, int g,
                                              int m0, int s0)
{
    dot_tile<DT, N>(prob, q, k, p.D);
    scale_tile(prob, p, g, m0, s0);
    dot_tile<DT, N>(ds, dout, v, p.D);
#pragma unroll
    for (int i = 0; i < N; i++)
#pragma unroll
        for (int j = 0; j < N; j++) {
            prob[i][j] = seen >> (4 * i + j) & 1 ? exp2_approx(prob[i][j] - lse[i]) : 0.0f;
            ds[i][j] = prob[i][j] * (ds[i][j] - delta[i]);
        }
}

template <class T, int DT, int N> __global__ void __launch_bounds__(THREADS) dq_k(attention_problem p, int aligned)
{
    const int TILE = 16 * N, LD = DT + 4, LS = TILE + 4;
    SMEM(float, smem);
    float *q_tile = smem, *dout_tile = q_tile + TILE * LD, *k_tile = dout_tile + TILE * LD, *v_tile = k_tile + TILE * LD, *scores = v_tile + TILE * LD;
    const int m0 = (int)(gridDim.x - 1 - blockIdx.x) * TILE, g = blockIdx.y, b = blockIdx.z, tx = threadIdx.x & 15, ty = threadIdx.x >> 4;
    const int rows = p.T * p.R - m0 < TILE ? p.T * p.R - m0 : TILE, t0 = m0 / p.R, t1 = (m0 + rows - 1) / p.R + 1;
    float lse[N], delta[N], acc[N][DT / 16] = {};
    load_stats<N>(p, lse, delta, b, g, m0, rows);
    load_tile<T, DT, TILE>(q_tile, p.D, aligned, rows, [&](int r) { return packed_row<const T>(p, p.q, b, g, m0 + r); });
    load_tile<T, DT, TILE>(dout_tile, p.D, aligned, rows, [&](int r) { return packed_row<const T>(p, p.dout, b, g, m0 + r); });

    const key_range keys = attention_keys(p, t0, t1);
    for (int s0 = keys.lo; s0 < keys.hi; s0 += TILE) {
        const int n_keys = p.S - s0 < TILE ? p.S - s0 : TILE;
        const enum meeting meeting = tiles_meet(p, b, t0, t1, s0, s0 + n_keys);
        if (meeting == MEET_NONE)
            continue;
        float prob[N][N], ds[N][N];
        __syncthreads(); /* nobody reads the last tiles any more */
        load_tile<T, DT, TILE>(k_tile, p.D, aligned, n_keys, [&](int r) { return row_of<const T>(p.k, b, s0 + r, g); });
        load_tile<T, DT, TILE>(v_tile, p.D, aligned, n_keys, [&](int r) { return row_of<const T>(p.v, b, s0 + r, g); });
        __syncthreads();
        gradient_tile<DT, N>(p, prob, ds, q_tile, dout_tile, k_tile, v_tile, lse, delta,
                             seen_keys<N>(p, meeting, b, m0, rows, s0, n_keys), g, m0, s0);
#pragma unroll
        for (int i = 0; i < N; i++)
#pragma unroll
            for (int j = 0; j < N; j++)
                scores[(ty * N + i) * LS + tx + 16 * j] = ds[i][j];
        __syncthreads();
        add_tile<DT, N>(acc, scores, k_tile);
    }
#pragma unroll
    for (int i = 0; i < N; i++)
        if (ty * N + i < rows)
            store_row<T, DT>(packed_row<T>(p, p.dq, b, g, m0 + ty * N + i), acc[i], p.scale, p.D, aligned);
}

template <class T, int DT, int N> __global__ void __launch_bounds__(THREADS) dkv_k(attention_problem p, int aligned)
{
    const int TILE = 16 * N, LD = DT + 4, LS = TILE + 4;
    SMEM(float, smem);
    float *q_tile = smem, *dout_tile = q_tile + TILE * LD, *k_tile = dout_tile + TILE * LD, *v_tile = k_tile + TILE * LD, *scores = v_tile + TILE * LD;
    const int s0 = (int)blockIdx.x * TILE, g = blockIdx.y, b = blockIdx.z, tx = threadIdx.x & 15, ty = threadIdx.x >> 4;
    const int n_keys = p.S - s0 < TILE ? p.S - s0 : TILE;
    float dk[N][DT / 16] = {}, dv[N][DT / 16] = {};
    load_tile<T, DT, TILE>(k_tile, p.D, aligned, n_keys, [&](int r) { return row_of<const T>(p.k, b, s0 + r, g); });
    load_tile<T, DT, TILE>(v_tile, p.D, aligned, n_keys, [&](int r) { return row_of<const T>(p.v, b, s0 + r, g); });

    const key_range queries = attention_queries(p, s0, s0 + n_keys);
    for (int m0 = queries.lo * p.R; m0 < queries.hi * p.R; m0 += TILE) {
        const int rows = p.T * p.R - m0 < TILE ? p.T * p.R - m0 : TILE;
        const enum meeting meeting = tiles_meet(p, b, m0 / p.R, (m0 + rows - 1) / p.R + 1, s0, s0 + n_keys);
        if (meeting == MEET_NONE)
            continue;
        float prob[N][N], ds[N][N], lse[N], delta[N];
        load_stats<N>(p, lse, delta, b, g, m0, rows);
        __syncthreads(); /* nobody reads the last tiles any more */
        load_tile<T, DT, TILE>(q_tile, p.D, aligned, rows, [&](int r) { return packed_row<const T>(p, p.q, b, g, m0 + r); });
        load_tile<T, DT, TILE>(dout_tile, p.D, aligned, rows, [&](int r) { return packed_row<const T>(p, p.dout, b, g, m0 + r); });
        __syncthreads();
        gradient_tile<DT, N>(p, prob, ds, q_tile, dout_tile, k_tile, v_tile, lse, delta,
                             seen_keys<N>(p, meeting, b, m0, rows, s0, n_keys), g, m0, s0);
        /* Transposed: the keys are the rows from here on. */
#pragma unroll
        for (int i = 0; i < N; i++)
#pragma unroll
            for (int j = 0; j < N; j++)
                scores[(tx + 16 * j) * LS + ty * N + i] = prob[i][j];
        __syncthreads();
        add_tile<DT, N>(dv, scores, dout_tile);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < N; i++)
#pragma unroll
            for (int j = 0; j < N; j++)
                scores[(tx + 16 * j) * LS + ty * N + i] = ds[i][j];
        __syncthreads();
        add_tile<DT, N>(dk, scores, q_tile);
    }
#pragma unroll
    for (int i = 0; i < N; i++)
        if (ty * N + i < n_keys) {
            store_row<T, DT>(row_of<T>(p.dk, b, s0 + ty * N + i, g), dk[i], p.scale, p.D, aligned);
            store_row<T, DT>(row_of<T>(p.dv, b, s0 + ty * N + i, g), dv[i], 1.0f, p.D, aligned);
        }
}

/* Four elements of every row may be read or written at once. */
int aligned4(const attention_problem &p, enum dtype type, int bwd)
{
    const heads_view views[] = {p.q, p.k, p.v, p.o, p.dout, p.dq, p.dk, p.dv};
    int aligned = p.D % 4 == 0;
    for (int i = 0; i < (bwd ? 8 : 4); i++)
        aligned = aligned && (uintptr_t)views[i].p % (4 * dtype_bytes(type)) == 0 && views[i].batch % 4 == 0 && views[i].row % 4 == 0 && views[i].head % 4 == 0;
    return aligned;
}

enum code check_plain(const char *op, const attention_problem &p)
{
    if ((int64_t)p.T * p.R > INT32_MAX / 2 || p.B > 65535 || p.G > 65535)
        return fail(ERR_UNSUPPORTED, "%s: %d sequences of %d positions, %d query heads in %d groups: too many for the f32 kernels", op, p.B, p.T, p.H, p.G);
    return OK;
}

template <class T, int DT, int N> enum code run_fwd(struct device *dev, const attention_problem &p, int aligned)
{
    const dim3 grid((unsigned)ceil_div((int64_t)p.T * p.R, 16 * N), (unsigned)p.G, (unsigned)p.B);
    return LAUNCH(dev, (fwd_k<T, DT, N>), grid, dim3(THREADS), (plain_bytes<DT, N>(2)), p, aligned);
}

template <class T, int DT, int N> enum code run_bwd(struct device *dev, const attention_problem &p, int aligned)
{
    const dim3 rows((unsigned)ceil_div((int64_t)p.T * p.R, 16 * N), (unsigned)p.G, (unsigned)p.B);
    const dim3 keys((unsigned)ceil_div(p.S, 16 * N), (unsigned)p.G, (unsigned)p.B);
    if (p.S > 0)
        TRY(LAUNCH(dev, (dkv_k<T, DT, N>), keys, dim3(THREADS), (plain_bytes<DT, N>(4)), p, aligned));
    return LAUNCH(dev, (dq_k<T, DT, N>), rows, dim3(THREADS), (plain_bytes<DT, N>(4)), p, aligned);
}

} // namespace

enum code attention_fwd_plain(struct device *dev, const attention_problem &p, enum dtype type)
{
    const int aligned = aligned4(p, type, 0);
    TRY(check_plain("attention_fwd", p));
    if (p.D <= 64)
        return WITH_TYPE(type, (run_fwd<T, 64, 4>(dev, p, aligned)));
    if (p.D <= 128)
        return WITH_TYPE(type, (run_fwd<T, 128, 4>(dev, p, aligned)));
    return WITH_TYPE(type, (run_fwd<T, 256, 4>(dev, p, aligned)));
}

enum code attention_bwd_plain(struct device *dev, const attention_problem &p, enum dtype type)
{
    const int aligned = aligned4(p, type, 1);
    TRY(check_plain("attention_bwd", p));
    if (p.D <= 64)
        return WITH_TYPE(type, (run_bwd<T, 64, 4>(dev, p, aligned)));
    if (p.D <= 128)
        return WITH_TYPE(type, (run_bwd<T, 128, 4>(dev, p, aligned)));
    return WITH_TYPE(type, (run_bwd<T, 256, 2>(dev, p, aligned)));
}

} // namespace CUDA_NS
