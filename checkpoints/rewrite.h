/* Exact rewritings of a model into the form that another family's class can hold: each changes tensors and arch, none the function
 * (in exact arithmetic). A rewritten checkpoint is a checkpoint: it reads its source and computes rows as they are asked for.
 *
 *   FOLD_NORMS   w, b of attn_norm and mlp_norm move into what reads them: W' = W diag(w), b' = b + W b_norm. Norms stay with w = 1, b = 0.
 *                Two parallel norms of one input become one (NeoX -> Phi).
 *   ZERO_BIASES  every bias the family has and the model lacks is there and zero (GPT-J -> Phi).
 *   NORM_ONES    a norm without parameters gets w = 1 (and b = 0 with ZERO_BIASES).
 *   CENTRE       LayerNorm without bias -> RMSNorm: embed, pos, o and down lose their mean over C, so the residual stream has mean zero
 *                (OLMo -> Llama). Needs pre-norm and no embed_norm.
 *   SCALE_Q      q's weights and biases are scaled so that attn_scale becomes D^-0.5 (GPT-Neo).
 *   POS_OFFSET   the first pos_offset rows of the position table go (OPT).
 *   UNTIE        head.w is a copy of embed.weight. */
#ifndef GQAKIT_CHECKPOINTS_REWRITE_H
#define GQAKIT_CHECKPOINTS_REWRITE_H

#include "checkpoint.h"

enum rewrite_step {
    REWRITE_FOLD_NORMS = 1, REWRITE_ZERO_BIASES = 2, REWRITE_NORM_ONES = 4, REWRITE_CENTRE = 8, REWRITE_SCALE_Q = 16,
    REWRITE_POS_OFFSET = 32, REWRITE_UNTIE = 64
};

/* The arch after the steps. ERR_UNSUPPORTED, with the reason, when a step would not be exact here. */
enum code rewrite_arch(struct arch *a, unsigned steps) MUST_USE;
/* 1 when the tensor values pass through arithmetic (and so through one more rounding in bf16). */
int rewrite_rounds(unsigned steps);

#endif
