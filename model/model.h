/* Floor 3: the transformer in motion. Parameters carved layer-major in one allocation, forward, backward, K/V cache.
 * A model holds no globals: a teacher and a student live in one process. A block's forward sees one layer's parameters
 * only. Nothing here allocates inside a step. */
#ifndef GQAKIT_MODEL_MODEL_H
#define GQAKIT_MODEL_MODEL_H

#include "base/base.h"
#include "checkpoints/checkpoint.h"
#include "data/data.h"
#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

struct model;

struct model_options {
    int train;         /* gradients and kept activations */
    int recompute;     /* training: keep only each block's input, run the block's forward again in backward */
    enum dtype dtype;  /* of the parameters: DT_F32 or DT_BF16. Training in bf16 needs a backend with bf16 activations (CUDA) */
    int no_master;     /* training in bf16: 1 = no f32 master weights, the bf16 values are the only ones (stochastic rounding) */
    int deterministic; /* no float atomics in attention's backward: same bits in every run (the CPU: always) */
    int64_t B, T;      /* largest batch for forward/backward, scoring and prefill; 0 with cache only decodes */
    int64_t cache_B, cache_S; /* K/V cache for this many sequences and positions; 0: none */
    enum dtype cache_dtype;   /* DT_F32 or DT_BF16 */
    int layered;              /* one part of the parameters in memory at a time, see "one layer at a time"; f32, no training, no cache */
    int64_t taught;           /* tokens per row that its teacher gives at most (model_teach), -1: all, a teacher model; 0: no teacher */
    int64_t topk;             /* tokens per row that model_topk is asked for at most; 0: it is not asked */
};

/* Bytes, as they will be reserved. parameters: with the bf16 copy and the master weights; gradients: f32, as large as one moment. */
struct model_memory { int64_t parameters, gradients, activations, scratch, cache; };

/* Measures without allocating (the same carving code with a NULL base): what --plan prints. */
enum code model_measure(const struct arch *arch, const struct backend *backend, struct device *device, const struct model_options *options,
                        struct model_memory *memory) MUST_USE;
/* ERR_UNSUPPORTED names what of the arch the transformer does not do yet (encoder stack, cross-attention, ...). Parameters are zero. */
enum code model_open(struct model **m, const struct arch *arch, const struct backend *backend, struct device *device,
                     const struct model_options *options) MUST_USE;
void model_close(struct model *m); /* NULL is fine */
const struct arch *model_arch(const struct model *m);
const struct model_memory *model_memory(const struct model *m);

/* ---- parameters --------------------------------------------------------------------------------------------------- */

struct model_param {
    struct tensor_spec spec;
    int64_t offset; /* elements of its own dtype into the flat range. q|k|v and gate|up (and their biases) follow each other without
                     * a gap; every such group and every other parameter is 64-byte aligned, the padding is zero and stays zero */
    int64_t count;
    struct view value, grad; /* what forward reads; grad.p NULL when not training */
    struct view master;      /* what the optimiser updates and checkpoints keep: f32 when training with master weights, else value */
};
int model_param_count(const struct model *m);
const struct model_param *model_param_at(const struct model *m, int i); /* memory order */
const struct model_param *model_param_find(const struct model *m, const char *canonical);
/* All parameters (and gradients) as one range of n elements, padding included: for optimiser, norms, checkpoints, collectives.
 * Training in bf16: params is the f32 master (NULL without), low the bf16 working copy of the same layout; vectors without master
 * weights lie apart, in model_param.master. A bf16 model that does not train (matrices bf16, vectors and position table f32) has no
 * such range: all NULL, n 0. Everything is device memory. */
struct model_flat { void *params; float *grads; uint16_t *low; int64_t n; };
struct model_flat model_flat(const struct model *m);
/* After masters were written from outside (model_load and model_init do it themselves): the bf16 working copy again. */
enum code model_refresh(struct model *m) MUST_USE;

enum code model_load(struct model *m, struct checkpoint *ck) MUST_USE; /* arch must agree; converts dtypes */
/* Normal(0, sd), output projections (o, down) scaled by 1/sqrt(2L) (Radford 2019), norms 1, biases 0. Stream init per tensor name. */
enum code model_init(struct model *m, double sd, uint64_t seed) MUST_USE;

/* The tokenizer that lies with a checkpoint: its tokenizer.json, or vocab.json + merges.txt of a directory, or bytes when there is
 * neither and V = 256. ERR_USAGE when it has none. Free with tokenizer_close. */
enum code model_tokenizer(struct tokenizer **t, struct checkpoint *ck) MUST_USE;

/* OK when a token means the same to both: as many of them, and the same pieces where both have tokenizer files. ERR_USAGE says what differs. */
enum code model_same_tokens(struct checkpoint *a, struct checkpoint *b) MUST_USE;

/* ---- forward and backward ------------------------------------------------------------------------------------------ */

/* Adds this micro-batch's gradients to model_flat().grads, the sum of -ln p to *loss_sum and the valid targets to *count.
 * inv_count points to 1 / valid targets of the whole global batch. All three are device memory, and nothing waits for the device.
 * b->B <= options.B, b->T <= options.T. */
enum code model_forward_backward(struct model *m, const struct batch *b, const float *inv_count, double *loss_sum, int64_t *count) MUST_USE;
/* Backward announces ranges of the flat gradient that are final for this micro-batch, last layer first (for overlapped
 * reduction). NULL: none. */
typedef void model_grad_ready_fn(void *context, int64_t from, int64_t to);
void model_on_grad_ready(struct model *m, model_grad_ready_fn *fn, void *context);
/* No gradients. logp f32 [B,T] (p NULL: not wanted): ln p(target), 0 where masked. logp and the sums, which are added to, are host
 * memory; returns when they are there. Works on training and non-training models. */
enum code model_score(struct model *m, const struct batch *b, struct view logp, double *loss_sum, int64_t *count) MUST_USE;

/* ---- distillation ---------------------------------------------------------------------------------------------------
 * The loss of struct xent_teacher (kernels.h): (1 - weight) cross-entropy + weight temperature^2 KL(teacher || model). */

struct model_teacher {
    struct model *model;   /* on the same device and of the same vocabulary, opened without train for at least the same batch; run on every
                            * batch before the one it teaches. NULL: ids and logp */
    struct view ids, logp; /* device memory [B*T,K] i32 and f32, of the batch that comes next: see struct xent_teacher */
    float weight, temperature;
    double *kl_sum;        /* device memory or NULL: += sum over valid targets of KL(teacher || model), without temperature^2 */
    double *kl_rows;       /* host memory [B] or NULL: model_score adds the same sum of every sequence */
};
/* From now on model_forward_backward and model_score are taught; the loss sums they give stay plain cross-entropies. The struct is kept
 * by pointer, its views may be changed between calls. NULL: no teacher. */
void model_teach(struct model *m, const struct model_teacher *teacher);
/* The K = ids.n[1] <= options.topk most likely next tokens of every position, most likely first, and ln of their probabilities at this
 * temperature. ids i32, logp f32 [B*T,K] in host memory; returns when they are there. Targets are not looked at. */
enum code model_topk(struct model *m, const struct batch *b, float temperature, struct view ids, struct view logp) MUST_USE;

/* ---- one layer at a time --------------------------------------------------------------------------------------------
 * For models larger than memory: opened with options.layered, a model holds the embedding, one block, or the final norm and head. Whoever
 * walks the parts keeps the hidden states x [N,C] f32, N = B*T rows of a batch, in host memory. model_param_find gives the parameters of
 * the part in memory (value.p NULL for all others), which may be written before the next call. */

enum { MODEL_PART_EMBED = -1 }; /* 0 .. L-1 are the blocks, L is the head */
/* Tensors must have this arch's shapes, the rest of the checkpoint's arch is not looked at (its K/V heads may differ in other parts). */
enum code model_part_load(struct model *m, struct checkpoint *ck, int64_t part) MUST_USE;
/* The part without reading any values: for a part that the caller fills. */
void model_part_set(struct model *m, int64_t part);
enum code model_part_embed(struct model *m, const struct batch *b, float *x) MUST_USE;

/* What a block's forward has in its hands, device memory, valid until the next call. p NULL where the form has no such thing. */
struct model_block_values {
    struct view n;       /* [N,C] what q, k and v were projected from */
    struct view q, k, v; /* [B,T,H,D], [B,T,G,D]: as attention read them, normed and rotated */
    struct view lse;     /* [B,H,T] of the attention */
    struct view alibi;   /* [H] slopes */
    struct view o;       /* [N,H*D] the attention's output, heads side by side: what the output projection reads */
    struct view mid;     /* [N,C] x + attention: sequential forms */
    struct view hidden;  /* [N,F] what the MLP's down projection reads */
};
/* Up to the attention: n, q, k, v, lse, o. */
enum code model_block_attend(struct model *m, const struct batch *b, const float *x, struct model_block_values *v) MUST_USE;
/* After model_block_attend: out [N,C], the block's output (x itself is fine); mid and hidden. */
enum code model_block_finish(struct model *m, float *out, struct model_block_values *v) MUST_USE;
/* Pre-norm forms. mid and hidden from x and an o [N,H*D] kept from model_block_attend, by the output projection as it is now. */
enum code model_block_hidden(struct model *m, const struct batch *b, const float *x, const float *o, struct model_block_values *v) MUST_USE;
/* q [N, heads*D] in host memory, of the batch's positions, rotated as the block's queries are, or by the transposed map. */
enum code model_block_rotate(struct model *m, const struct batch *b, float *q, int64_t heads, int transposed) MUST_USE;
/* q [N, heads*D] in host memory, of the batch's positions: what gives q when it is rotated as the block's queries are. */
enum code model_block_unrotate(struct model *m, const struct batch *b, float *q, int64_t heads) MUST_USE;
/* As model_score, from the last block's output x. */
enum code model_part_score(struct model *m, const struct batch *b, const float *x, struct view logp, double *loss_sum, int64_t *count) MUST_USE;

/* ---- K/V cache ------------------------------------------------------------------------------------------------------ */

void model_cache_reset(struct model *m); /* all lengths 0 */
int64_t model_cache_length(const struct model *m, int64_t b);
/* ids [B,T] row-major, all sequences empty before, T <= options.T; logits f32 [B,V] of the last position (NULL: not wanted). */
enum code model_prefill(struct model *m, const int32_t *ids, int64_t B, int64_t T, float *logits) MUST_USE;
/* Tq <= 8 new tokens per sequence; logits [B,V] of the last one (NULL: not wanted). ERR_USAGE when the cache is full. */
enum code model_decode(struct model *m, const int32_t *ids, int64_t B, int64_t Tq, float *logits) MUST_USE;
/* The same step without waiting for it; logits, when wanted, are computed and stay on the device: for benchmarks. */
enum code model_decode_queue(struct model *m, const int32_t *ids, int64_t B, int64_t Tq, int want_logits) MUST_USE;
/* Pretends every sequence has `length` cached positions (contents: whatever is there): for decode benchmarks at depth. */
void model_cache_set_length(struct model *m, int64_t length);

/* ---- counting -------------------------------------------------------------------------------------------------------- */

/* Model FLOPs of one training token at length T: 6 x parameters (a tied table once) + attention (forward 2*H*D*T causal, x 3.5). */
double model_train_flops_per_token(const struct arch *arch, int64_t T);
/* Bytes a decode step at depth S must read: weights once (embedding rows and, untied, the table excluded) + B x K/V cache. */
double model_decode_bytes(const struct arch *arch, int64_t B, int64_t S, enum dtype weights, enum dtype cache);

#ifdef __cplusplus
}
#endif
#endif
