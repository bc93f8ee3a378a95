/* Floor 2: arithmetic. One signature per operation, written once as a function type and listed once in KERNEL_OPS, which
 * makes the `struct backend` members and every prototype (cpu_norm_fwd, later cuda_norm_fwd).
 *
 * Legend, for the whole project:
 *   B batch   T query length   S key length   C model width   H query heads   G key/value heads   D head width (a field of
 *   its own, never C/H)   R = H/G   F MLP width   V vocabulary   L layers   N = B*T rows
 * Query head h reads key/value head h / R.
 *
 * Conventions: argument order is outputs, inputs, dims, scalars. Tensors are `struct view`s, row-major with any row stride
 * (the last axis has stride 1). On the CPU activations are f32; weights may be f32 or bf16 where an operation says so. On CUDA
 * activations and matrices are both f32 or both bf16; vectors (norm weights, biases, the position table) and gradients of
 * parameters are f32.
 * Statistics and log-sum-exp are f32, loss sums f64. Every function returns a code; an unsupported dtype, shape or mask is
 * ERR_UNSUPPORTED with a sentence and leaves the outputs alone. "Accumulates" means += . No operation allocates: what
 * it needs beyond per-thread tiles is the `scratch` argument, sized by the matching *_scratch slot.
 * Determinism: same inputs, threads and instruction set give the same bits. */
#ifndef GQAKIT_KERNELS_KERNELS_H
#define GQAKIT_KERNELS_KERNELS_H

#include "base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

struct device; /* one per open device: threads, per-thread tiles; on CUDA stream and handles. No globals. */

struct device_options {
    int threads; /* CPU: 0 = all allowed */
};

/* ---- attention ------------------------------------------------------------------------------------------------ */

/* Which keys query t of sequence b may see. Absolute query position = t + q_offset; key position s = its index.
 * Visible iff (!causal || s <= t + q_offset) && window conditions && segments equal. A row that sees no key gives O = 0,
 * lse = -inf and no gradient. */
struct attention_mask {
    int causal;
    int64_t q_offset;
    int64_t window_left;  /* < 0: no limit; else s >= t + q_offset - window_left */
    int64_t window_right; /* < 0: no limit (only meaningful when not causal) */
    struct view seg_q, seg_k; /* i32 [B,T], [B,S] document ids, non-decreasing along T; p NULL: one document */
    /* Beyond ALiBi, reserved for the Longformer and T5 masks; a backend refuses what it does not do. */
    const int32_t *dilation;         /* [H], NULL */
    struct view global_index;        /* i32 list, p NULL */
    struct view alibi_slopes;        /* f32 [H], p NULL: slope[h] * (s - (t + q_offset)) is added to the scaled score (Press et al. 2022) */
    struct view rel_bias;            /* f32 [buckets, H], p NULL */
    const struct block_sparse *blocks; /* NULL */
};
struct attention_mask attention_mask_causal(void); /* causal, no window, nothing else */

struct attention_dropout { float rate; uint64_t seed, step; uint64_t layer; }; /* rate 0: none */

struct attention_args {
    struct attention_mask mask;
    float scale; /* softmax scale; always given, never D^-0.5 by itself */
    struct attention_dropout dropout;
    int deterministic; /* the CPU always is */
};

/* O [B,T,H,D], lse f32 [B,H,T]; q [B,T,H,D], k,v [B,S,G,D], all strided (last axis 1). lse = ln sum exp(scale q.k), natural log.
 * Tiles with online softmax; never expands K/V to H heads, never holds T x S (Dao 2023, FlashAttention-2, alg. 1). */
typedef enum code attention_fwd_fn(struct device *dev, struct view o, struct view lse, struct view q, struct view k, struct view v,
                                   const struct attention_args *args, void *scratch);
/* dq, dk, dv written (not accumulated), shapes as q, k, v; scores are recomputed from lse (ibid., alg. 2). */
typedef enum code attention_bwd_fn(struct device *dev, struct view dq, struct view dk, struct view dv, struct view dout, struct view o,
                                   struct view lse, struct view q, struct view k, struct view v,
                                   const struct attention_args *args, void *scratch);
/* Bytes of scratch for the worse of forward and (if bwd) backward at these dims or any smaller B, T, S; linear in T and S. */
typedef size_t attention_scratch_fn(struct device *dev, int64_t B, int64_t T, int64_t S, int64_t H, int64_t G, int64_t D, int bwd);

/* One layer's K/V cache. Its physical layout belongs to the backend: only cache_write and attention_decode touch it. */
struct kv_layer {
    void *p; /* cache_bytes(...) bytes, 64-byte aligned, zeroed once */
    enum dtype dtype; /* f32 or bf16 */
    int64_t B, G, S, D; /* S = capacity */
};
typedef size_t cache_bytes_fn(struct device *dev, int64_t B, int64_t G, int64_t S, int64_t D, enum dtype dtype);
/* k, v f32 [B,Tq,G,D] (already rotated) go to positions lens[b] .. lens[b]+Tq-1; lens i32 [B] (device memory), not changed here. */
typedef enum code cache_write_fn(struct device *dev, const struct kv_layer *cache, struct view k, struct view v, struct view lens);
/* rope of q [B,Tq,H,D] and k, in place, and cache_write of the result in one pass. Rows of q and of k follow each other at one
 * stride over all of B*Tq; pos i32 [B*Tq]. */
typedef enum code rope_cache_write_fn(struct device *dev, const struct kv_layer *cache, struct view q, struct view k, struct view v, struct view lens,
                                      struct view cos_table, struct view sin_table, struct view pos);
/* O f32 [B,Tq,H,D]; q f32 [B,Tq,H,D], Tq <= 8: query j of sequence b is at position lens[b]+j and sees positions <= its own
 * (after cache_write), window and ALiBi applied. A group's query heads share one pass over K and V (Flash-Decoding on a CPU: the
 * cache is also split over positions when B*G is smaller than the team). splits 0: chosen by the backend. */
typedef enum code attention_decode_fn(struct device *dev, struct view o, struct view q, const struct kv_layer *cache, struct view lens,
                                      const struct attention_args *args, int splits, void *scratch);
typedef size_t attention_decode_scratch_fn(struct device *dev, int64_t B, int64_t Tq, int64_t H, int64_t D, int64_t S);

/* ---- dense ---------------------------------------------------------------------------------------------------- */

/* c = alpha * op(a) op(b) + beta * c (+ bias on every row). 2-d views, op = transpose when the flag is set.
 * c f32 [M,Nc]; a f32; b f32, or bf16 when trans_b (a weight [out,in]). CUDA: a and b alike, f32 or bf16; c f32 or a's type. Few rows (decode) take our own matrix-vector kernels,
 * many take the BLAS. bias f32 [Nc] or p NULL. */
typedef enum code matmul_fn(struct device *dev, struct view c, struct view a, struct view b, struct view bias, int trans_a, int trans_b,
                            float alpha, float beta);
/* db [Nc] accumulates the column sums of dy [N,Nc]. */
typedef enum code bias_grad_fn(struct device *dev, struct view db, struct view dy);

/* ---- per-row -------------------------------------------------------------------------------------------------- */

/* y [N,C] = scale * table[ids] (+ pos_table[pos]); ids, pos i32 [N] (any id outside the table is ERR_INTERNAL: data is checked
 * before). table f32 or bf16 [V,C]; pos_table p NULL: none. */
typedef enum code embed_fwd_fn(struct device *dev, struct view y, struct view ids, struct view table, struct view pos_table,
                               struct view pos, float scale);
/* dtable, dpos_table accumulate; no atomics, deterministic. dpos_table p NULL: none. */
typedef enum code embed_bwd_fn(struct device *dev, struct view dtable, struct view dpos_table, struct view dy, struct view ids,
                               struct view pos, float scale);

/* y = norm(x + residual) * w + b over the last axis of 2-d views [N,C]; sum (p NULL: not wanted) = x + residual (residual p NULL:
 * x alone). mean, rstd f32 [N] are saved when p != NULL (mean unused by RMS kinds). w, b by kind, b may be p NULL.
 * y may be x or sum's neighbour but must not overlap them; sum may be x itself or residual itself. */
typedef enum code norm_fwd_fn(struct device *dev, struct view y, struct view sum, struct view mean, struct view rstd, struct view x,
                              struct view residual, struct view w, struct view b, enum norm_kind kind, float eps);
/* y = base + norm(x) * w + b: a norm on a sublayer's output (OLMo 2). y may be x or base. Its backward is norm_bwd without dresidual. */
typedef enum code norm_add_fwd_fn(struct device *dev, struct view y, struct view mean, struct view rstd, struct view x, struct view base,
                                  struct view w, struct view b, enum norm_kind kind, float eps);
/* x is the sum of the forward. dx [N,C] = (dresidual p NULL ? 0 : dresidual) + d norm; dx may be dresidual itself.
 * dw, db [C] accumulate (p NULL: not wanted). */
typedef enum code norm_bwd_fn(struct device *dev, struct view dx, struct view dw, struct view db, struct view dy, struct view dresidual,
                              struct view x, struct view w, struct view mean, struct view rstd, enum norm_kind kind);

/* In place on x [N,heads,D] (3-d, strided): the first r = 2*cos.n[1] dims of every head are rotated in pairs (i, i + r/2) by
 * the angle of row pos[n] (Su et al. 2021). cos, sin f32 [P,r/2]. inverse: -angle, which is the backward. */
typedef enum code rope_fn(struct device *dev, struct view x, struct view cos_table, struct view sin_table, struct view pos, int inverse);

/* Norms of queries and keys: y [N,heads,D] = norm(x over D) * w, 3-d strided views; w [D] for all heads or [heads*D], one row per head; the
 * full width is heads 1. y may be x. mean, rstd f32 [N*heads] are saved when p != NULL (mean unused by RMS kinds). */
typedef enum code head_norm_fwd_fn(struct device *dev, struct view y, struct view mean, struct view rstd, struct view x, struct view w,
                                   enum norm_kind kind, float eps);
/* x is the input of the forward. dx written, may be dy itself; dw accumulates (p NULL: not wanted). */
typedef enum code head_norm_bwd_fn(struct device *dev, struct view dx, struct view dw, struct view dy, struct view x, struct view w,
                                   struct view mean, struct view rstd, enum norm_kind kind);

/* y = min(max(x, -limit), limit) on 2-d strided views; y may be x. */
typedef enum code clip_fwd_fn(struct device *dev, struct view y, struct view x, float limit);
/* dx becomes 0 where |x| > limit; x is the input of the forward. */
typedef enum code clip_bwd_fn(struct device *dev, struct view dx, struct view x, float limit);

/* y [N,F] = act(gate) * up, or act(up) for ungated kinds (gate p NULL). Strided: gate and up may be halves of one buffer. */
typedef enum code act_fwd_fn(struct device *dev, struct view y, struct view gate, struct view up, enum mlp_kind kind);
/* dgate, dup from dy; dgate may be gate itself and dup up itself (in place). y, when p != NULL, also receives the forward value. */
typedef enum code act_bwd_fn(struct device *dev, struct view dgate, struct view dup, struct view y, struct view dy, struct view gate,
                             struct view up, enum mlp_kind kind);

/* ---- loss ----------------------------------------------------------------------------------------------------- */

/* Distillation (Hinton, Vinyals, Dean 2015, section 2). The loss of a row that has a target becomes (1 - weight) CE + weight tau^2 KL(p || q),
 * p and q the softmax of the teacher's and the student's logits / tau (after scale, bias and cap of either). The teacher gives either
 *   hidden [N,Ct], head [V,Ct], bias [V] or p NULL: projected chunk by chunk beside the student's, so that no [N,V] pair of logits ever
 *   exists. On the CPU hidden is f32, head f32 or bf16; on CUDA both f32 or both bf16, whatever the student's are. No gradient reaches them;
 * or, head.p NULL,
 *   ids i32 [N,K], logp f32 [N,K], what topk writes at this temperature: K tokens of each row (distinct; -1: unused) and ln of their
 *   probability; all other tokens are one further class on both sides.
 * With weight 0 every other output has the bits it has without a teacher. */
struct xent_teacher {
    struct view hidden, head, bias;
    float logit_scale, logit_softcap;
    struct view ids, logp;
    float weight, temperature; /* 0 .. 1; > 0 */
    double *kl_sum;            /* device memory: += sum over valid targets of KL(p || q), without tau^2; NULL: not wanted */
};

struct xent_args {
    float logit_scale;        /* 1 */
    float logit_softcap;      /* 0: none; else cap * tanh(x / cap) */
    const float *inv_count;   /* device memory: 1 / valid targets of the whole global batch; scales gradients only */
    struct view bias;         /* f32 [V] or p NULL; its gradient goes to dbias */
    struct view dbias;        /* accumulates; p NULL: not wanted */
    const struct xent_teacher *teacher; /* NULL: none */
};
/* Cross-entropy fused with the output projection: hidden x [N,C], head w [V,C] (f32; bf16 allowed when no gradient is wanted),
 * targets i32 [N], -1 = masked. Works in chunks of rows so that [N,V] logits never exist.
 * loss_sum += sum of -ln p(target) over valid targets (f64), count += their number; both in device memory. A teacher changes neither,
 * only gradients and *kl_sum; without gradients it is compared with.
 * logp f32 [N] or p NULL: ln p(target), 0 where masked. dx [N,C] written (p NULL: no gradient at all), dw [V,C] accumulates
 * (p NULL with dx given: head frozen). */
typedef enum code xent_fn(struct device *dev, double *loss_sum, int64_t *count, struct view logp, struct view dx, struct view dw, struct view x,
                          struct view w, struct view targets, const struct xent_args *args, void *scratch);
/* Bytes of scratch for N rows or fewer. K: tokens a teacher gives for each row, or fewer; V for a teacher with a head, 0 without a teacher. */
typedef size_t xent_scratch_fn(struct device *dev, int64_t N, int64_t C, int64_t V, int64_t K);

/* The K likeliest tokens of each row at a temperature: ids i32 [N,K] by falling probability (equal logits: lower id first), logp f32 [N,K].
 * Hidden x [N,C], head w [V,C] (f32 or bf16), bias f32 [V] or p NULL, as in xent and chunked as there; 1 <= K <= V. A row whose logits are
 * not all numbers gets ids -1 and logp NaN. */
typedef enum code topk_fn(struct device *dev, struct view ids, struct view logp, struct view x, struct view w, struct view bias, float logit_scale,
                          float logit_softcap, float temperature, void *scratch);
/* Bytes of scratch for N rows and K tokens, or fewer. */
typedef size_t topk_scratch_fn(struct device *dev, int64_t N, int64_t C, int64_t V, int64_t K);

/* ---- flat ranges ---------------------------------------------------------------------------------------------- */

/* Gradient norm in a fixed order: partial[i] = f64 sum of squares of elements [i*65536, (i+1)*65536) of x (n elements). */
#define SUMSQ_BLOCK 65536
typedef enum code sumsq_fn(struct device *dev, double *partial, const float *x, int64_t n);

/* From the partials, added in a fixed order (the CPU: one after the other): norm = sqrt(sum); skip = 1 when the norm or *loss_sum is not finite; clip = min(1, max_norm / norm)
 * (max_norm 0, or skip: 1). All pointers but max_norm are device memory: nothing waits for the device. */
typedef enum code grad_clip_fn(struct device *dev, double *norm, float *clip, int32_t *skip, const double *partial, int64_t n_partials,
                               const double *loss_sum, double max_norm);

struct adamw_args {
    float lr, beta1, beta2, eps, weight_decay; /* weight_decay already 0 for ranges that do not decay */
    int64_t step;       /* 1-based, for bias correction */
    const float *clip;  /* device memory: factor on every gradient, min(1, max_norm / norm) */
    const int32_t *skip; /* device memory: non-zero leaves p, m, v as they are (gradients are still zeroed) */
    int zero_grad;      /* 1: g becomes 0 in the same pass */
    /* bf16 training (CUDA): the working copy of p, written in the same pass; NULL: none. With p (f32 master weights) it is p to
     * nearest. With p NULL it is the only copy: read, updated and rounded stochastically with f(seed, step, first + i). */
    uint16_t *low;
    uint64_t seed;
    int64_t first; /* index of p[0] in the flat range */
};
/* Decoupled weight decay (Loshchilov, Hutter 2019, alg. 2), one fused pass over n f32 elements. */
typedef enum code adamw_fn(struct device *dev, float *p, float *g, float *m, float *v, int64_t n, const struct adamw_args *args);
typedef enum code axpy_fn(struct device *dev, float *y, const float *x, float a, int64_t n); /* y += a x */
typedef enum code fill_fn(struct device *dev, float *y, float a, int64_t n);
typedef enum code cast_fn(struct device *dev, void *y, enum dtype y_type, const void *x, enum dtype x_type, int64_t n); /* f32 <-> bf16, or a copy */

/* ---- device --------------------------------------------------------------------------------------------------- */

typedef enum code device_open_fn(struct device **dev, const struct device_options *options);
typedef void device_close_fn(struct device *dev);
typedef enum code device_alloc_fn(struct device *dev, struct arena *a, const char *name, size_t bytes); /* zeroed; a->host says who may touch it */
typedef void device_free_fn(struct device *dev, struct arena *a);
typedef enum code device_copy_fn(struct device *dev, void *dst, const void *src, size_t bytes); /* any direction */
typedef enum code device_sync_fn(struct device *dev);
typedef const char *device_name_fn(struct device *dev); /* "cpu AVX-512, 2 threads" */
/* The type of activations beside matrices of this type (f32 or bf16): f32 on the CPU, theirs on CUDA. */
typedef enum dtype activation_dtype_fn(struct device *dev, enum dtype matrices);
/* What this device can do at best, measured now (each under 0.3 s): bytes per second of reading an array far beyond the last
 * cache, and f32 multiply-add FLOP per second from registers at the instruction set in use. 0 when memory is lacking. */
typedef double probe_bandwidth_fn(struct device *dev);
typedef double probe_flops_fn(struct device *dev);

/* Recording a fixed sequence of operations, to run it again with one call (CUDA graphs): arguments are frozen, memory contents are not.
 * A backend without it sets *recording = 0, operations run as they are called, and graph_end leaves NULL. */
struct graph;
typedef enum code graph_begin_fn(struct device *dev, int *recording);
typedef enum code graph_end_fn(struct device *dev, struct graph **graph);
typedef enum code graph_run_fn(struct device *dev, struct graph *graph);
typedef void graph_free_fn(struct device *dev, struct graph *graph); /* NULL is fine */

#define KERNEL_OPS(X)                                                                                                            \
    X(device_open) X(device_close) X(device_alloc) X(device_free) X(device_copy) X(device_sync) X(device_name) X(activation_dtype) \
    X(attention_fwd) X(attention_bwd) X(attention_scratch) X(cache_bytes) X(cache_write) X(rope_cache_write) X(attention_decode)                    \
    X(attention_decode_scratch) X(matmul) X(bias_grad) X(embed_fwd) X(embed_bwd) X(norm_fwd) X(norm_add_fwd) X(norm_bwd) X(head_norm_fwd)          \
    X(head_norm_bwd) X(clip_fwd) X(clip_bwd) X(rope) X(act_fwd) X(act_bwd) X(xent) X(xent_scratch) X(topk) X(topk_scratch) X(sumsq) X(grad_clip)  \
    X(adamw) X(axpy) X(fill) X(cast) X(graph_begin) X(graph_end) X(graph_run) X(graph_free) X(probe_bandwidth) X(probe_flops)

#define KERNEL_MEMBER(op) op##_fn *op;
struct backend {
    const char *name; /* "cpu" */
    KERNEL_OPS(KERNEL_MEMBER)
};
#define KERNEL_PROTOTYPE(op) op##_fn cpu_##op;
KERNEL_OPS(KERNEL_PROTOTYPE)
/* Builds with nvcc only (GQAKIT_CUDA). cuda_usable: OK when a device can be opened, else why not; opens nothing. */
const struct backend *cuda_backend(void);
enum code cuda_usable(void) MUST_USE;

/* "auto", "cpu" or "cuda". ERR_DEVICE when asked for a device this build or machine lacks, saying why. "auto" takes a GPU when there
 * is one; when the build could use one and cannot, it says why in one line of the log and takes the CPU. */
enum code backend_find(const char *name, const struct backend **backend) MUST_USE;

/* main's first line in every program that computes: OpenBLAS chooses its kernels when it is loaded, by CPU family, and Debian's
 * 0.3.21 picks AVX2 ones on newer AVX-512 machines. If the choice is below host_isa() this sets OPENBLAS_CORETYPE and
 * executes the program again (once). */
void kernels_boot(int argc, char **argv);

/* ---- several devices ------------------------------------------------------------------------------------------ */

/* Collectives behind one table; comm_single() is the single-process default, whose operations do nothing. */
struct comm {
    int size, rank;
    enum code (*all_reduce)(struct comm *c, double *values, int n);                      /* sum, in rank order */
    enum code (*reduce_scatter)(struct comm *c, float *values, int64_t n);               /* sum; rank keeps its slice */
    enum code (*all_gather)(struct comm *c, float *values, int64_t n);
    enum code (*broadcast)(struct comm *c, void *bytes, size_t n, int root);
    void (*abort)(struct comm *c);
};
struct comm *comm_single(void);

#ifdef __cplusplus
}
#endif
#endif
