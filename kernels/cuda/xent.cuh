/* Private to xent.cu, xent_teacher.cu and topk.cu: a row of raw logits seen through bias and cap, its running log-sum-exp, and how rows
 * are cut into chunks. */
#ifndef GQAKIT_KERNELS_CUDA_XENT_CUH
#define GQAKIT_KERNELS_CUDA_XENT_CUH

#include "rows.cuh"

namespace CUDA_NS {

/* What the softmax sees of a raw logit l: cap tanh((l + scale bias[v]) / cap). */
struct xent_form {
    const float *bias; /* NULL: none */
    float scale, softcap;
};

struct xent_rows {
    float *logits;
    double *loss;
    float *logp; /* NULL: not wanted */
    const int32_t *targets;
    const float *inv_count;
    int64_t ld, V;
    xent_form form;
    int gradient;
};

/* A teacher beside a chunk. */
struct xent_teach {
    double *kl;   /* [rows], 0 where masked */
    float *room;  /* [rows, ld] the teacher's raw logits; or [rows, ld] where the student's raw logits of its tokens are kept */
    int64_t ld, K;
    const int32_t *ids; /* NULL: a teacher with a head */
    const float *logp;
    int64_t ld_ids, ld_logp;
    xent_form form;
    float weight, tau, inv_tau;
};

static inline int64_t xent_padded(int64_t V) { return ceil_div(V, 8) * 8; }
static inline size_t xent_round(int64_t bytes) { return (size_t)((bytes + 255) / 256 * 256); }
static inline int xent_threads(int64_t V) { return V >= 16384 ? 1024 : V >= 2048 ? 256 : 64; }
/* Rows of the largest chunk of any pass, and of each chunk of a pass of N (xent.cu). */
int64_t xent_chunk_most(int64_t V);
int64_t xent_chunk_rows(int64_t N, int64_t V);

/* xent_teacher.cu. Refusals; nothing is written. */
enum code xent_teacher_check(const struct xent_teacher *t, int64_t N, int64_t V) MUST_USE;
size_t xent_teacher_scratch(int64_t rows, int64_t K);
xent_teach xent_teach_of(const struct xent_teacher *t, int64_t rows, int64_t V, void *scratch);
/* The chunk [n0, n0 + rows) of raw logits p.logits: the teacher's logits, then losses, divergences and, with p.gradient, the gradient of the
 * mixed loss, of this type, in place. Without it the logits stay. */
enum code xent_teach_run(struct device *dev, xent_teach q, const struct xent_teacher *t, const xent_rows &p, enum dtype type, int64_t n0, int64_t rows) MUST_USE;

#if defined(__CUDACC__) || defined(GQAKIT_SIMT)

/* The running log-sum-exp: sum of exp((z - max) / tau), max -inf at first. A NaN among the logits makes the sum NaN. */
struct running { float max, sum; };

__device__ __forceinline__ running running_none()
{
    running r;
    r.max = -INFINITY, r.sum = 0;
    return r;
}

__device__ __forceinline__ running merge(running a, running b, float inv_tau)
{
    running r;
    r.max = a.max > b.max ? a.max : b.max;
    r.sum = (a.max == -INFINITY ? a.sum : a.sum * expf((a.max - r.max) * inv_tau)) + (b.max == -INFINITY ? b.sum : b.sum * expf((b.max - r.max) * inv_tau));
    return r;
}

__device__ __forceinline__ void running_add8(running &r, const float (&z)[8], float inv_tau)
{
    float most = r.max;
#pragma unroll
    for (int i = 0; i < 8; i++)
        most = z[i] > most ? z[i] : most;
    if (most > r.max) {
        r.sum *= expf((r.max - most) * inv_tau);
        r.max = most;
    }
    const float shift = most == -INFINITY ? 0.0f : most;
#pragma unroll
    for (int i = 0; i < 8; i++)
        r.sum += expf((z[i] - shift) * inv_tau);
}

/* Over the block, known to every thread. part: 32 of shared memory that nothing else in flight uses. */
__device__ __forceinline__ running block_merge(running mine, running *part, float inv_tau)
{
#pragma unroll
    for (int i = 16; i > 0; i >>= 1) {
        running other;
        other.max = __shfl_xor_sync(0xffffffffu, mine.max, i);
        other.sum = __shfl_xor_sync(0xffffffffu, mine.sum, i);
        mine = threadIdx.x & i ? merge(other, mine, inv_tau) : merge(mine, other, inv_tau); /* the same order in both lanes */
    }
    if ((threadIdx.x & 31) == 0)
        part[threadIdx.x >> 5] = mine;
    __syncthreads();
    mine = part[0];
    for (int i = 1; i < (int)blockDim.x / 32; i++)
        mine = merge(mine, part[i], inv_tau);
    return mine;
}

__device__ __forceinline__ float seen(const xent_form &f, float logit, int64_t v)
{
    if (f.bias != NULL)
        logit += f.scale * f.bias[v];
    return f.softcap > 0 ? f.softcap * tanhf(logit / f.softcap) : logit;
}

/* Eight logits from v on; those past the vocabulary are -inf (their memory is not even initialised). */
__device__ __forceinline__ void seen8(float (&z)[8], const xent_form &f, int64_t V, const float *row, int64_t v)
{
    if (v + 8 <= V)
        load_f32x8(z, row + v);
    else
#pragma unroll
        for (int i = 0; i < 8; i++)
            z[i] = v + i < V ? row[v + i] : -INFINITY;
    if (f.bias != NULL || f.softcap > 0)
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (v + i < V)
                z[i] = seen(f, z[i], v + i);
}

/* Of a row without a target: no loss, no gradient. */
template <class T> __device__ __forceinline__ void row_masked(const xent_rows &p, int64_t n, T *to)
{
    const float zero[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    if (p.gradient)
        for (int64_t v = (int64_t)threadIdx.x * 8; v < p.ld; v += (int64_t)blockDim.x * 8)
            store_f32x8(to + v, zero);
    if (threadIdx.x == 0) {
        p.loss[n] = 0;
        if (p.logp != NULL)
            p.logp[n] = 0;
    }
}

/* Thread 0's part of a row with a target; z: its logit as the softmax sees it. */
__device__ __forceinline__ void row_loss(const xent_rows &p, int64_t n, running all, float z)
{
    const double loss = (double)all.max + log((double)all.sum) - (double)z;
    p.loss[n] = loss;
    if (p.logp != NULL)
        p.logp[n] = (float)-loss;
}
#endif

} // namespace CUDA_NS
#endif
