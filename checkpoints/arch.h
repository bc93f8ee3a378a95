/* struct arch: everything a config.json says about a decoder (or encoder-decoder) transformer, one struct for all families,
 * attention per layer. A family fills every field; nothing above checkpoints/ knows what a family is. */
#ifndef GQAKIT_CHECKPOINTS_ARCH_H
#define GQAKIT_CHECKPOINTS_ARCH_H

#include "base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Where attn_norm and mlp_norm stand: before their sublayer (x + f(norm(x)), final norm at the end); on its output
 * (x + norm(f(x)), final norm at the end: OLMo 2); on the sum (norm(x + f(x)), no final norm: OPT-350m, as in the original Transformer). */
enum norm_place { NORM_PRE, NORM_POST_SUBLAYER, NORM_POST_RESIDUAL };
/* Parallel: x + attention(n1(x)) + mlp(n2(x)), with n2 = n1 in the one-norm form (then there is no mlp_norm). */
enum residual_kind { RESIDUAL_SEQUENTIAL, RESIDUAL_PARALLEL_ONE_NORM, RESIDUAL_PARALLEL_TWO_NORMS };
enum pos_kind { POS_NONE, POS_ROPE, POS_LEARNED, POS_ALIBI, POS_REL_BIAS };
enum rope_kind { ROPE_DEFAULT, ROPE_LINEAR, ROPE_DYNAMIC, ROPE_YARN, ROPE_LONGROPE, ROPE_LLAMA3 };
/* On q and k before the rotation, of the arch's norm kind, without bias: one weight [D] for all heads; one [D] for each head; over
 * the whole width [H*D] or [G*D]. */
enum qk_norm_kind { QK_NORM_NONE, QK_NORM_HEAD, QK_NORM_PER_HEAD, QK_NORM_FULL };
enum bias_bit { BIAS_Q = 1, BIAS_K = 2, BIAS_V = 4, BIAS_O = 8, BIAS_MLP_IN = 16, BIAS_MLP_OUT = 32, BIAS_NORM = 64, BIAS_HEAD = 128 };

struct arch_block {
    int64_t H, G, D, Dv, F; /* query heads, key/value heads, head width, value width, MLP width */
    int64_t window;         /* 0: full attention; else a query sees itself and window-1 keys to the left */
    double scale;           /* softmax scale of this layer alone; 0: the arch's attn_scale */
    int32_t *dilation;      /* [H] or NULL */
    int global_tokens, blocksparse, cross;
    int64_t G_cross;
};

struct arch_rope {
    int64_t dims; /* r: rotated dims of each head, even */
    double theta;
    enum rope_kind kind;
    double factor, low_freq_factor, high_freq_factor, beta_fast, beta_slow, attention_factor; /* by kind; 0 = not given */
    int64_t original_max_positions;
    double *long_factor, *short_factor; /* [r/2] or NULL */
};

struct arch_stack { int present; int64_t L; int causal; struct arch_block *block; /* [L] */ };
enum { STACK_DEC = 0, STACK_ENC = 1 };

struct arch {
    char family[32]; /* config.json's model_type */
    char *source_config; /* raw bytes of config.json (NUL ended), NULL when the source had none */
    int64_t C, V, max_positions, original_vocab;
    struct arch_stack stack[2];
    enum norm_kind norm;
    double norm_eps;
    enum norm_place norm_place;
    enum residual_kind residual;
    double residual_scale;
    enum pos_kind pos;
    int64_t pos_offset, rel_buckets, rel_max_distance;
    double alibi_bias_max; /* slopes 2^(-bias_max * i / n), i = 1..n, n a power of two (Press et al. 2022); 8 but for MPT */
    int alibi_scaled;      /* the bias too is multiplied by attn_scale (Falcon) */
    struct arch_rope rope;
    enum mlp_kind mlp;
    unsigned bias; /* enum bias_bit */
    enum qk_norm_kind qk_norm;
    double attn_scale, embed_scale, logit_scale, logit_softcap, clip_qkv; /* softcap, clip: 0 = none */
    int tied, embed_norm;
    int64_t embed_proj; /* C_e: the embedding's and the head's width, projected to and from C; 0 = none */
    int bos, eos, pad, decoder_start; /* -1 none */
    enum dtype dtype; /* what torch_dtype says the weights are; DT_F32 when silent */
};

/* Preset: empty strings, scales 1, ids -1, decoder present and causal with L blocks zeroed. */
enum code arch_init(struct arch *a, int64_t L) MUST_USE;
enum code arch_copy(struct arch *dst, const struct arch *src) MUST_USE; /* deep */
void arch_free(struct arch *a);
/* Refuses what cannot be: dims zero or negative, H % G, odd rope dims, products beyond int64, numbers that are not finite or of the
 * wrong sign, longrope without its factors. `where` for the sentence. */
enum code arch_check(const struct arch *a, const char *where) MUST_USE;
json_t *arch_to_json(const struct arch *a);
enum code arch_from_json(struct arch *a, const json_t *j, const char *where) MUST_USE; /* inverse, for the native form */
/* Counts. Parameters counts a tied table once. KV bytes per token = sum over layers of G*(D+Dv)*element bytes. */
int64_t arch_parameters(const struct arch *a);
int64_t arch_kv_bytes_per_token(const struct arch *a, int64_t G /* 0: as is */, enum dtype t);
/* Legal group counts: divisors of every layer's current G, descending; returns how many (at most max). */
int arch_legal_groups(const struct arch *a, int64_t *groups, int max);

/* ---- the tensor table ----------------------------------------------------------------------------------------------
 * Canonical form: unfused, [out, in], rotate-half rotary order. X(slot, name, pool, decay): per-layer names are
 * "dec.N.NAME", others "dec.NAME" / "embed.weight" ... The table generates carving, file names, conversion, decay flags and
 * test names. Memory order: embed first; per layer norm, q|k|v adjacent, o, mlp norm, gate|up adjacent, down; head last. */
enum pool_kind { POOL_NONE, POOL_QUERY, POOL_KV, POOL_OUT, POOL_QKNORM };

#define ARCH_TENSORS(X)                                   \
    X(T_EMBED, "embed.weight", POOL_NONE, 0)              \
    X(T_EMBED_PROJ_IN, "embed_proj_in.w", POOL_NONE, 1)   \
    X(T_EMBED_NORM_W, "embed_norm.w", POOL_NONE, 0)       \
    X(T_EMBED_NORM_B, "embed_norm.b", POOL_NONE, 0)       \
    X(T_POS, "pos.weight", POOL_NONE, 0)                  \
    X(T_ATTN_NORM_W, "attn_norm.w", POOL_NONE, 0)         \
    X(T_ATTN_NORM_B, "attn_norm.b", POOL_NONE, 0)         \
    X(T_Q_W, "attn.q.w", POOL_QUERY, 1)                   \
    X(T_K_W, "attn.k.w", POOL_KV, 1)                      \
    X(T_V_W, "attn.v.w", POOL_KV, 1)                      \
    X(T_Q_B, "attn.q.b", POOL_QUERY, 0)                   \
    X(T_K_B, "attn.k.b", POOL_KV, 0)                      \
    X(T_V_B, "attn.v.b", POOL_KV, 0)                      \
    X(T_Q_NORM_W, "attn.q_norm.w", POOL_NONE, 0)          \
    X(T_K_NORM_W, "attn.k_norm.w", POOL_QKNORM, 0)        \
    X(T_O_W, "attn.o.w", POOL_OUT, 1)                     \
    X(T_O_B, "attn.o.b", POOL_NONE, 0)                    \
    X(T_MLP_NORM_W, "mlp_norm.w", POOL_NONE, 0)           \
    X(T_MLP_NORM_B, "mlp_norm.b", POOL_NONE, 0)           \
    X(T_GATE_W, "mlp.gate.w", POOL_NONE, 1)               \
    X(T_UP_W, "mlp.up.w", POOL_NONE, 1)                   \
    X(T_GATE_B, "mlp.gate.b", POOL_NONE, 0)               \
    X(T_UP_B, "mlp.up.b", POOL_NONE, 0)                   \
    X(T_DOWN_W, "mlp.down.w", POOL_NONE, 1)               \
    X(T_DOWN_B, "mlp.down.b", POOL_NONE, 0)               \
    X(T_FINAL_NORM_W, "final_norm.w", POOL_NONE, 0)       \
    X(T_FINAL_NORM_B, "final_norm.b", POOL_NONE, 0)       \
    X(T_EMBED_PROJ_OUT, "embed_proj_out.w", POOL_NONE, 1) \
    X(T_HEAD_W, "head.w", POOL_NONE, 1)                   \
    X(T_HEAD_B, "head.b", POOL_NONE, 0)

#define ARCH_TENSOR_ENUM(slot, name, pool, decay) slot,
enum tensor_slot { ARCH_TENSORS(ARCH_TENSOR_ENUM) T_SLOTS };

struct tensor_spec {
    char name[64]; /* canonical: "embed.weight", "dec.3.attn.k.w", "dec.final_norm.w", "head.w" */
    enum tensor_slot slot;
    int stack;     /* STACK_DEC ... */
    int64_t layer; /* -1 outside the layers */
    int nd;
    int64_t n[2]; /* n[1] = 1 for vectors */
    enum pool_kind pool;
    int decay;
};

/* Every tensor present for this arch, in memory order. Free with free(). */
enum code arch_tensors(const struct arch *a, struct tensor_spec **specs, int *n) MUST_USE;

#ifdef __cplusplus
}
#endif
#endif
