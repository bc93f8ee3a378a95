/* Rewritings of a model into the form that another family's class (or a GGUF architecture) can hold: each changes tensors and arch,
 * none the function (in exact arithmetic). A rewritten checkpoint is a checkpoint: it reads its source and computes rows as they are
 * asked for, in double, and rounds once to the stored type. The steps apply in this order; a step with nothing to do changes nothing.
 *
 *   NORM_ONES    a norm without parameters gets w = 1.
 *   FOLD_NORMS   w, b of attn_norm and mlp_norm move into what reads them: W' = W diag(w), b' = b + W b_norm (the biases then exist).
 *                The norms stay with w = 1, b = 0. Two parallel norms of one input become one (NeoX -> Phi). Needs norms before their
 *                sublayer. The final norm stays as it is.
 *   CENTRE       LayerNorm without bias -> RMSNorm: embed, pos, o and down lose their mean over C, so the residual stream has mean zero
 *                (OLMo -> Llama). Needs norms before their sublayer, no embed_norm, no embed_proj; a tied model whose final norm has
 *                weights needs UNTIE (the head keeps the old rows).
 *   ZERO_BIASES  the biases the model lacks are there and zero (GPT-J -> Phi): of q, k, v, o and the MLP, and of a LayerNorm with weights.
 *   ZERO_HEAD_BIAS  the same for the head's.
 *   SCALE_Q      q's weights and biases (under a query norm, that norm's weights) are scaled so that every layer's softmax scale becomes
 *                D^-0.5 (GPT-Neo).
 *   POS_OFFSET   the first pos_offset rows of the position table go (OPT).
 *   UNTIE        head.w is a copy of embed.weight.
 *   DROP_WINDOWS local attention becomes full: exact for contexts up to rewrite_context() only (GPT-Neo). */
#ifndef GQAKIT_CHECKPOINTS_REWRITE_H
#define GQAKIT_CHECKPOINTS_REWRITE_H

#include "checkpoint.h"

enum rewrite_step {
    REWRITE_FOLD_NORMS = 1, REWRITE_ZERO_BIASES = 2, REWRITE_NORM_ONES = 4, REWRITE_CENTRE = 8, REWRITE_SCALE_Q = 16,
    REWRITE_POS_OFFSET = 32, REWRITE_UNTIE = 64, REWRITE_ZERO_HEAD_BIAS = 128, REWRITE_DROP_WINDOWS = 256
};

/* The arch after the steps (its source_config is dropped when anything changed). ERR_UNSUPPORTED, with the reason, when a step would
 * not be exact here. */
enum code rewrite_arch(struct arch *a, unsigned steps) MUST_USE;
/* Those of the steps that change something in this model. */
unsigned rewrite_needed(const struct arch *a, unsigned steps);
/* 1 when the tensor values pass through arithmetic (and so through one more rounding in bf16). */
int rewrite_rounds(unsigned steps);
/* The longest context for which the steps are exact: max_positions, or the smallest window that DROP_WINDOWS takes away. */
int64_t rewrite_context(const struct arch *a, unsigned steps);
/* "both norms folded into what reads them, zero biases": for sentences; "" without steps. */
void rewrite_words(unsigned steps, char *out, size_t n);

/* rewrite_read.c: `source` through the steps, under a family's name and without its config.json ("": both as they are). Takes over
 * source, also on an error. */
enum code rewrite_open(struct checkpoint **out, struct checkpoint *source, unsigned steps, const char *family) MUST_USE;

#endif
