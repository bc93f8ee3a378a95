/* The likeliest tokens of each row, in chunks of rows as in xent: logits = x w^T, then a block a row. The logits become unsigned keys of the
 * same order; the K-th largest key is found bit by bit, counting the row's keys at least as large (a row stays in L2), which ends early
 * where exactly K are; those above it and the first of those equal to it are gathered by rising id, and each takes its place by counting
 * what goes before it: K^2 / threads comparisons, little for the K of a teacher's tokens.
 * Scratch: logits f32 [rows, V rounded up to eight], then the gathered (logit, id) [rows, K]. */
#include "xent.cuh"

namespace CUDA_NS {
namespace {

struct token { float z; int32_t id; };

struct topk_rows {
    float *logits;
    token *found; /* [rows, K] */
    int32_t *ids;
    float *logp;
    int64_t ld, ld_ids, ld_logp, V, K;
    xent_form form;
    float inv_tau;
};

/* Larger for larger floats; +0 and -0 are one. */
__device__ __forceinline__ uint32_t key_of(float z)
{
    const uint32_t bits = __float_as_uint(z + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* Sum over the block, known to every thread. part: 32 of shared memory; a barrier stands before they are written. */
__device__ __forceinline__ uint32_t block_count(uint32_t n, uint32_t *part)
{
#pragma unroll
    for (int i = 16; i > 0; i >>= 1)
        n += __shfl_xor_sync(0xffffffffu, n, i);
    __syncthreads();
    if ((threadIdx.x & 31) == 0)
        part[threadIdx.x >> 5] = n;
    __syncthreads();
    n = 0;
    for (int i = 0; i < (int)blockDim.x / 32; i++)
        n += part[i];
    return n;
}

/* How many of the block's earlier threads say yes; *all: how many do. part as above. */
__device__ __forceinline__ uint32_t block_before(bool yes, uint32_t *all, uint32_t *part)
{
    const uint32_t votes = __ballot_sync(0xffffffffu, yes), lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    uint32_t before = (uint32_t)__popc(votes & ((1u << lane) - 1u)), sum = 0;
    __syncthreads();
    if (lane == 0)
        part[warp] = (uint32_t)__popc(votes);
    __syncthreads();
    for (uint32_t i = 0; i < blockDim.x / 32; i++) {
        before += i < warp ? part[i] : 0;
        sum += part[i];
    }
    *all = sum;
    return before;
}

__global__ void __launch_bounds__(1024, 1) topk_rows_k(topk_rows p)
{
    SMEM(running, part);
    uint32_t *counts = (uint32_t *)(void *)(part + 32);
    float *row = p.logits + (int64_t)blockIdx.x * p.ld;
    token *found = p.found + (int64_t)blockIdx.x * p.K;
    int32_t *ids = p.ids + (int64_t)blockIdx.x * p.ld_ids;
    float *logp = p.logp + (int64_t)blockIdx.x * p.ld_logp;
    const uint32_t K = (uint32_t)p.K;
    running all = running_none();
    for (int64_t v = (int64_t)threadIdx.x * 8; v < p.V; v += (int64_t)blockDim.x * 8) {
        float z[8];
        seen8(z, p.form, p.V, row, v);
        running_add8(all, z, p.inv_tau);
        store_f32x8(row + v, z); /* rows are padded to eight */
    }
    all = block_merge(all, part, p.inv_tau);
    const double lse = log((double)all.sum);
    if (!isfinite(lse)) {
        for (int64_t k = threadIdx.x; k < p.K; k += blockDim.x)
            ids[k] = -1, logp[k] = __uint_as_float(0x7fc00000u);
        return;
    }
    uint32_t least = 0; /* at least K keys are as large; so are all */
    bool exact = false;
    for (uint32_t bit = 0x80000000u; bit != 0 && !exact; bit >>= 1) {
        uint32_t n = 0;
        for (int64_t v = threadIdx.x; v < p.V; v += blockDim.x)
            n += key_of(row[v]) >= (least | bit);
        n = block_count(n, counts);
        if (n >= K)
            least |= bit;
        exact = n == K;
    }
    uint32_t above = 0; /* keys larger than `least`; where exactly K are at least as large, all K of them */
    if (!exact) {
        for (int64_t v = threadIdx.x; v < p.V; v += blockDim.x)
            above += key_of(row[v]) > least;
        above = block_count(above, counts);
    }
    uint32_t larger = 0, equal = 0; /* gathered so far */
    for (int64_t v0 = 0; v0 < p.V; v0 += blockDim.x) {
        const int64_t v = v0 + threadIdx.x;
        const float z = v < p.V ? row[v] : -INFINITY;
        const uint32_t key = key_of(z);
        const bool in = v < p.V, takes = in && (exact ? key >= least : key > least), ties = in && !exact && key == least;
        uint32_t n, at = block_before(takes, &n, counts) + larger, m = 0, tie = 0;
        if (!exact && equal < K - above)
            tie = block_before(ties, &m, counts) + equal;
        if (takes)
            found[at].z = z, found[at].id = (int32_t)v;
        if (ties && equal < K - above && tie < K - above)
            found[above + tie].z = z, found[above + tie].id = (int32_t)v;
        larger += n, equal += m;
    }
    __syncthreads();
    for (uint32_t k = threadIdx.x; k < K; k += blockDim.x) {
        const token mine = found[k];
        uint32_t before = 0;
        for (uint32_t j = 0; j < K; j++)
            before += found[j].z > mine.z || (found[j].z == mine.z && found[j].id < mine.id);
        ids[before] = mine.id;
        logp[before] = (float)(((double)mine.z - (double)all.max) * (double)p.inv_tau - lse);
    }
}

enum code check(struct view ids, struct view logp, struct view x, struct view w, struct view bias, float temperature)
{
    const char *op = "topk";
    TRY(cuda_check_type(op, x));
    TRY(cuda_check(op, "x", x, x.dtype, 2, -1, -1, 0));
    TRY(cuda_check(op, "w", w, x.dtype, 2, -1, x.n[1], 0));
    TRY(cuda_check(op, "bias", bias, DT_F32, 1, w.n[0], -1, 1));
    TRY(cuda_check(op, "ids", ids, DT_I32, 2, x.n[0], -1, 0));
    TRY(cuda_check(op, "logp", logp, DT_F32, 2, x.n[0], ids.n[1], 0));
    if (ids.n[1] < 1 || ids.n[1] > w.n[0])
        return fail(ERR_UNSUPPORTED, "%s: %lld tokens of a vocabulary of %lld; there must be 1 to all of them", op, (long long)ids.n[1], (long long)w.n[0]);
    if (w.n[0] > INT32_MAX / 4)
        return fail(ERR_UNSUPPORTED, "%s: a vocabulary of %lld; the CUDA backend takes 2^29", op, (long long)w.n[0]);
    if (!(temperature > 0 && temperature < INFINITY))
        return fail(ERR_UNSUPPORTED, "%s: a temperature of %g; it must be above 0", op, (double)temperature);
    return OK;
}

} // namespace

size_t cuda_topk_scratch(struct device *dev, int64_t N, int64_t C, int64_t V, int64_t K)
{
    (void)dev, (void)C;
    const int64_t rows = N < 1 ? 1 : least(N, xent_chunk_most(V));
    return xent_round(rows * xent_padded(V) * 4) + xent_round(rows * K * (int64_t)sizeof(token));
}

enum code cuda_topk(struct device *dev, struct view ids, struct view logp, struct view x, struct view w, struct view bias, float logit_scale,
                    float logit_softcap, float temperature, void *scratch)
{
    TRY(check(ids, logp, x, w, bias, temperature));
    const int64_t N = x.n[0], V = w.n[0], chunk = xent_chunk_rows(N, V);
    if (N == 0)
        return OK;
    CHECK(scratch != NULL && (uintptr_t)scratch % 64 == 0);
    topk_rows p = {};
    p.ld = xent_padded(V), p.V = V, p.K = ids.n[1], p.inv_tau = 1.0f / temperature;
    p.logits = (float *)scratch, p.found = (token *)(void *)((char *)scratch + xent_round(chunk * p.ld * 4));
    p.form.bias = ptr<const float>(bias), p.form.scale = logit_scale, p.form.softcap = logit_softcap;
    p.ld_ids = ids.s[0], p.ld_logp = logp.s[0];
    for (int64_t n0 = 0; n0 < N; n0 += chunk) {
        const int64_t rows = least(N - n0, chunk);
        struct view logits = view_2d(p.logits, DT_F32, rows, V);
        logits.s[0] = p.ld;
        TRY(cuda_matmul(dev, logits, view_slice(x, 0, n0, rows), w, view_none(), 0, 1, logit_scale, 0));
        p.ids = ptr<int32_t>(ids) + n0 * p.ld_ids, p.logp = ptr<float>(logp) + n0 * p.ld_logp;
        TRY(LAUNCH(dev, topk_rows_k, (unsigned)rows, xent_threads(V), 32 * sizeof(running) + 32 * sizeof(uint32_t), p));
    }
    return OK;
}

} // namespace CUDA_NS
