/* Private to model/: what an open model is made of.
 *
 * Memory: five device arenas, each measured by running its carving with a NULL base, then reserved once.
 *   parameters   [embed | pos | layer 0 | layer 1 | ... | final norm | head], one carve: the flat range. Training in bf16: the same
 *                range in f32 (master weights), then in bf16, where the matrices' views point; the vectors' stay in the first
 *   gradients    the same layout in f32, training only
 *   activations  kept per layer for backward (struct block_keep), the inputs of the step, the rotary tables
 *   scratch      shared by all layers: norm output, branch, the union `u`, the kernels' own scratch
 *   cache        K/V per layer
 *
 * The residual stream is added inside a norm wherever a norm reads the sum: a block ends with a pair, (mid, branch) or (x, branch),
 * whose sum is the block's output, and the next norm adds, stores and normalises in one pass. */
#ifndef GQAKIT_MODEL_PARTS_H
#define GQAKIT_MODEL_PARTS_H

#include "model.h"

/* One layer's parameters, or its gradients (p NULL where the arch has none). q|k|v and gate|up are adjacent in memory. */
struct block_params {
    struct view attn_norm_w, attn_norm_b; /* [C] */
    struct view qkv_w, qkv_b;             /* [(H+2G)*D, C], [(H+2G)*D] */
    struct view q_norm_w, k_norm_w;       /* [D], [H*D] or [G*D] */
    struct view alibi;                    /* f32 [H] slopes: fixed, no gradient */
    struct view o_w, o_b;                 /* [C, H*D], [C] */
    struct view mlp_norm_w, mlp_norm_b;   /* [C] */
    struct view in_w, in_b;               /* gate|up [2F, C], [2F]; ungated: up [F, C], [F] */
    struct view down_w, down_b;           /* [C, F], [C] */
};

/* All parameters, or all gradients. head is embed when tied. pos starts at the row of position 0. */
struct weights {
    struct view embed, proj_in, pos, embed_norm_w, embed_norm_b; /* [V,E], [C,E], [P,C], [C], [C] */
    struct view final_norm_w, final_norm_b, proj_out, head, head_b; /* [C], [C], [E,C], [V,E], [V] */
    struct block_params *block; /* [L] */
};

/* What a block's forward leaves behind. Rows are the N = B*T of the pass, packed; capacity is for the largest pass. Elements are
 * activations (block_env.act) where the pointer is void. Without training all layers share one set, with recompute all but x.
 * What an arch has no use for is NULL. */
struct block_keep {
    void *x;    /* [N,C] the block's input, summed */
    void *raw;  /* [N,(H+2G)*D] the projection itself, when clipping or norms change it and backward needs both */
    void *qkv;  /* [N,(H+2G)*D] q and k normalised and rotated; q|k alone when v is read from raw */
    void *o;    /* [N,H*D] attention output */
    float *lse; /* [B,H,T] */
    void *mid;  /* [N,C] x + attention branch: sequential forms whose MLP or norm reads it */
    void *in;   /* [N,2F] gate|up or [N,F] up; backward turns it into its own gradient */
    void *sub1, *sub2; /* [N,C] what the two norms normalise when they stand after their sublayer; training only */
    void *out;  /* [N,C] where a block whose norm comes last writes its output: the next block's x, or env.n or env.branch. Borrowed */
    float *mean1, *rstd1, *mean2, *rstd2; /* [N] of the two norms; means only for LayerNorm kinds */
    float *q_mean, *q_rstd, *k_mean, *k_rstd; /* [N*heads] of the norms of queries and keys; training only */
};

enum block_attention { ATTEND_BATCH, ATTEND_PREFILL, ATTEND_CACHE };

/* What every block of a pass shares. A block sees this, one layer's parameters and one block_keep, nothing else. */
struct block_env {
    const struct backend *be;
    struct device *dev;
    const struct arch *arch;
    int64_t B, T; /* of this pass; T = new tokens per sequence when attending the cache */
    enum block_attention attention;
    int deterministic;
    enum dtype act; /* of activations: what the backend has beside matrices of this model's type */
    struct view ids, pos, seg;      /* i32 [N], [N], [B,T]; seg p NULL: one document per row */
    struct view rope_cos, rope_sin; /* f32 [P,r/2]; p NULL: no rotation */
    struct view lens;               /* i32 [B]: cached positions before this pass */
    void *n;       /* [N,C] norm output */
    void *branch;  /* [N,C] the sublayer's output, not yet added; in backward the gradient of a norm's output */
    void *d;       /* [N,C] gradient of the residual stream, training only */
    void *u;       /* two halves: MLP hidden [N,F] and its gradient, or dqkv [N,(H+2G)*D] and dout [N,H*D]: never alive together */
    void *scratch; /* for kernels */
};

struct score_sums { double loss, kl; int64_t count; };

enum { PART_NONE = -2 };

/* A decode step of one shape: the first runs as it is, the second is recorded, the others run the record. */
enum decode_state { DECODE_NEW, DECODE_WARM, DECODE_RECORDED, DECODE_PLAIN };
struct decode_graph { enum decode_state state; struct graph *graph; };

struct model {
    struct arch arch;
    const struct backend *be;
    struct device *dev;
    struct model_options options;
    struct model_memory memory;
    struct arena parameters, gradients, activations, scratch, cache;
    struct model_param *param;
    int n_params;
    size_t param_bytes; /* of the flat range; training in bf16: of its f32 form */
    int64_t n_vectors;  /* elements of the f32 vectors that lie apart: training in bf16 without master weights */
    uint16_t *low;      /* the bf16 working copy of the flat range: training in bf16 */
    struct weights value, grad;
    struct block_keep *keep; /* [L] */
    struct kv_layer *kv;     /* [L], cache only */
    struct block_env env;    /* pointers fixed at open; B, T and the views are set per pass */
    int64_t part;            /* of a layered model: which is in memory; PART_NONE */
    int64_t rows;            /* capacity of a pass: max(B*T, 8*cache_B) */
    int64_t positions;       /* P: rows of the rotary tables */
    int32_t *ids, *targets, *pos, *seg, *lens; /* device: [rows] x 4, [cache_B] */
    int32_t *host_pos, *host_lens;             /* mirrors, malloc'ed */
    int32_t *step, *host_step;                 /* ids, positions and lengths of a decode step in one piece: device, malloc'ed */
    float *final_mean, *final_rstd;            /* device: [rows] */
    float *embed_mean, *embed_rstd;            /* device: [rows]; of the norm after the embedding */
    float *logp, *logits;                      /* device, on their way to the host: [B*T], [cache_B,V] */
    struct score_sums *sums;                   /* device */
    struct decode_graph decode[8][2];          /* by new tokens - 1, and whether logits are wanted */
    const struct model_teacher *teacher;
    struct xent_teacher lesson; /* of the batch in the pass */
    int32_t *top_ids; /* device, on their way to the host: [B*T, options.topk] */
    float *top_logp;
    model_grad_ready_fn *ready;
    void *ready_context;
};

/* params.c */
/* Of a layered model: 1 when the parameter belongs to this part; points the views of the part's parameters into the arena, all others
 * nowhere. */
int param_in_part(const struct model *m, const struct tensor_spec *spec, int64_t part);
void params_part(struct model *m, int64_t part);
enum code params_plan(struct model *m) MUST_USE; /* the list with offsets, from arch_tensors */
void params_carve(struct model *m);              /* parameters, gradients and all views of them */
/* 1 when the matrices are trained in bf16: one flat f32 layout for gradients and master weights, and a bf16 copy of it. */
static inline int trains_bf16(const struct model *m) { return m->options.train && m->options.dtype == DT_BF16; }

/* activations.c: carves activations and scratch for the options; with NULL bases it only measures. */
void activations_carve(struct model *m);

/* cache.c */
void cache_carve(struct model *m);

/* decode.c. Where the parts of a decode step's input lie, in i32: ids at 0, then positions, then lengths, on 64-byte boundaries. */
struct step_layout { int64_t pos, lens, count; };
struct step_layout step_layout(int64_t B, int64_t Tq);
/* Frees the recorded steps. */
void decode_close(struct model *m);

/* rope_table.c */
struct rope_frequencies {
    double attention_factor; /* on cos and sin */
    double inverse[];        /* [r/2] */
};
/* Frequencies for sequences of at most `length` positions. free() the result; NULL when out of memory. */
struct rope_frequencies *rope_frequencies(const struct arch *arch, int64_t length);
/* cos and sin of position p and pair i at [p * r/2 + i]. */
enum code rope_tables_fill(const struct arch *arch, int64_t positions, float *cos_table, float *sin_table) MUST_USE;

/* support.c */
enum code model_supports(const struct arch *arch, const struct model_options *options, enum dtype activations) MUST_USE;

/* alibi.c. slopes [H], by Press et al. 2022. */
void alibi_slopes(const struct arch *arch, const struct arch_block *dims, float *slopes);
/* Fills the table that every layer's block_params.alibi points into. */
enum code alibi_upload(struct model *m) MUST_USE;

/* block_forward.c. The block's input is base + env->branch, stored in keep->x (base p NULL: keep->x already holds it). Leaves its
 * output as block_output says; with `for_backward` it may stop once everything in keep is there. */
enum code block_forward(const struct block_env *env, const struct arch_block *dims, const struct block_params *w,
                        const struct block_keep *keep, const struct kv_layer *kv, struct view base, int for_backward) MUST_USE;
/* Its two halves: up to the attention's o in keep (n, what the projection read, is in env->n, or keep->x where norms come last), and what
 * follows. block_norm_in: env->n once more from keep->x, pre-norm forms. */
enum code block_attend(const struct block_env *env, const struct arch_block *dims, const struct block_params *w, const struct block_keep *keep,
                       const struct kv_layer *kv, struct view base) MUST_USE;
enum code block_rest(const struct block_env *env, const struct arch_block *dims, const struct block_params *w, const struct block_keep *keep,
                     int for_backward) MUST_USE;
enum code block_norm_in(const struct block_env *env, const struct arch_block *dims, const struct block_params *w,
                        const struct block_keep *keep) MUST_USE;
/* A block's output is the sum of the two, not yet added; branch p NULL: base alone. */
struct block_output { struct view base, branch; };
struct block_output block_output(const struct block_env *env, const struct block_keep *keep);
/* block_backward.c. env->d holds the gradient of the block's output, then of its input. Destroys keep->in. */
enum code block_backward(const struct block_env *env, const struct arch_block *dims, const struct block_params *w,
                         const struct block_params *dw, const struct block_keep *keep) MUST_USE;

/* block_views.c: views of a keep set for the B and T of a pass. */
struct block_views {
    struct view x, mid, sub1, sub2, out;     /* [N,C] */
    struct view mean1, rstd1, mean2, rstd2;  /* [N] */
    struct view q_mean, q_rstd, k_mean, k_rstd; /* [N*heads] */
    struct view proj;          /* [N,(H+2G)*D] what the projection writes: raw, or qkv itself */
    struct view qkv;           /* [N,(H+2G)*D] or [N,(H+G)*D] */
    struct view q, k, v;       /* [B,T,H,D], [B,T,G,D] as attention reads them */
    struct view rotated;       /* [N,H+G,D] q|k */
    struct view o, o4, lse;    /* [N,H*D], [B,T,H,D], [B,H,T] */
    struct view in, gate, up;  /* [N,2F] and its halves [N,F] (ungated: gate p NULL) */
};
struct block_views block_views(const struct block_env *env, const struct arch_block *dims, const struct block_keep *keep);
/* Heads [first, first + count) of a packed [N,heads*D] buffer as [B,T,count,D]. */
struct view heads_4d(const struct block_env *env, const struct arch_block *dims, struct view packed, int64_t first, int64_t count);
struct view heads_3d(const struct arch_block *dims, struct view packed, int64_t first, int64_t count); /* [N,count,D] */

/* The two sublayers. n is what they read, dy the gradient of their output.
 * attention.c: attn_forward leaves o in keep, attn_output = beta out + o Wo^T + b. attn_backward: dn = beta dn + ...; n and dn may be the
 * same when beta is 0. */
enum code attn_forward(const struct block_env *env, const struct arch_block *dims, const struct block_params *w, const struct block_views *v,
                       const struct kv_layer *kv, struct view n) MUST_USE;
enum code attn_output(const struct block_env *env, const struct block_params *w, const struct block_views *v, struct view out, float beta) MUST_USE;
enum code attn_backward(const struct block_env *env, const struct arch_block *dims, const struct block_params *w, const struct block_params *dw,
                        const struct block_views *v, struct view dy, struct view n, struct view dn, float beta) MUST_USE;
/* mlp.c: mlp_forward leaves gate|up in keep, mlp_output = beta out + h Wdown^T + b. */
enum code mlp_forward(const struct block_env *env, const struct block_params *w, const struct block_views *v, struct view n) MUST_USE;
enum code mlp_output(const struct block_env *env, const struct arch_block *dims, const struct block_params *w, const struct block_views *v,
                     struct view out, float beta) MUST_USE;
enum code mlp_backward(const struct block_env *env, const struct arch_block *dims, const struct block_params *w, const struct block_params *dw,
                       const struct block_views *v, struct view dy, struct view n, struct view dn, float beta) MUST_USE;
/* Of y = x w^T + b: dw += alpha dy^T x, db += columns of dy, dx = alpha dy w + beta dx (dx p NULL: not wanted). x is read before dx is
 * written. */
enum code linear_backward(const struct block_env *env, struct view dx, struct view dw, struct view db, struct view dy, struct view x,
                          struct view w, float alpha, float beta) MUST_USE;

/* embed.c: keep[0].x from ids and positions, and the gradient in env.d into the tables. */
enum code embed_forward(struct model *m) MUST_USE;
enum code embed_backward(struct model *m) MUST_USE;
/* head.c. What the head reads, for rows of the last block's output: the final norm into n (with its statistics; sum, p NULL or not, gets
 * what it normalises), then the projection to the embedding's width. */
struct head_norm { struct view n, sum, mean, rstd; };
enum code head_input(struct model *m, struct block_output rows, const struct head_norm *norm, struct view *hidden) MUST_USE;
/* Loss and the gradient of the last block's output into env.d. */
enum code head_forward_backward(struct model *m, const float *inv_count, double *loss_sum, int64_t *count) MUST_USE;

static inline int64_t qkv_width(const struct arch_block *b) { return (b->H + 2 * b->G) * b->D; }
static inline int64_t embed_width(const struct arch *a) { return a->embed_proj ? a->embed_proj : a->C; }
static inline int has_final_norm(const struct arch *a) { return a->norm_place != NORM_POST_RESIDUAL; }
static inline int is_parallel(const struct arch *a) { return a->residual != RESIDUAL_SEQUENTIAL; }
/* 1 when q, k or v are not what the projection gives. */
static inline int changes_qkv(const struct arch *a) { return a->qk_norm != QK_NORM_NONE || a->clip_qkv > 0.0; }
static inline int64_t in_width(const struct arch *a, const struct arch_block *b) { return mlp_is_gated(a->mlp) ? 2 * b->F : b->F; }
/* A contiguous activation [n0,n1]. */
static inline struct view act_2d(const struct block_env *e, void *p, int64_t n0, int64_t n1) { return view_2d(p, e->act, n0, n1); }
/* Bytes of n activations, and the second half of u behind a first of n: on a 64-byte boundary. */
static inline size_t act_bytes(const struct block_env *e, int64_t n) { return (size_t)n * dtype_bytes(e->act); }
static inline size_t act_padded(const struct block_env *e, int64_t n) { return (act_bytes(e, n) + 63) & ~(size_t)63; }
static inline void *u_second(const struct block_env *e, int64_t n) { return (char *)e->u + act_padded(e, n); }
static inline int norm_has_mean(enum norm_kind k) { return k == NORM_LAYER || k == NORM_LAYER_NOP; }

/* forward.c. Puts the batch on the device and sets env for it (positions NULL: 0..T-1; segments, targets NULL: none). */
enum code pass_begin(struct model *m, int64_t B, int64_t T, const int32_t *ids, const int32_t *positions, const int32_t *segments,
                     const int32_t *targets) MUST_USE;
/* Embedding and all blocks. */
enum code pass_blocks(struct model *m) MUST_USE;
/* Of the last block of the pass. */
struct block_output pass_output(const struct model *m);
struct xent_args model_xent_args(const struct model *m);
/* teach.c. Runs the teacher on the batch; what the student's loss then needs of it is left in m->lesson. No teacher: nothing. */
enum code teacher_run(struct model *m, const struct batch *b) MUST_USE;
/* Of it what rows [from, from + rows) of the pass need; NULL without a teacher. */
const struct xent_teacher *lesson_rows(const struct model *m, int64_t from, int64_t rows, double *kl_sum, struct xent_teacher *lesson);
/* score.c: the rest of model_score, from the output of the last block of a pass. */
enum code score_rows(struct model *m, struct block_output rows, struct view logp, double *loss_sum, int64_t *count) MUST_USE;
/* load.c */
enum code load_part(struct model *m, struct checkpoint *ck, int64_t part) MUST_USE;

#endif
