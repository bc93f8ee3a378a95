/* Rewritings, the arch side: which steps a model needs, whether they are exact for it, what it is afterwards. The tensor side is
 * rewrite_read.c; both follow the definitions in rewrite.h. */
#include "rewrite.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PROJECTION_BIASES ((unsigned)(BIAS_Q | BIAS_K | BIAS_V | BIAS_O | BIAS_MLP_IN | BIAS_MLP_OUT))
/* The biases of what reads a block's norms. */
#define READER_BIASES ((unsigned)(BIAS_Q | BIAS_K | BIAS_V | BIAS_MLP_IN))

static double layer_scale(const struct arch *a, const struct arch_block *b) { return b->scale > 0 ? b->scale : a->attn_scale; }

static int scales_differ(const struct arch *a)
{
    const struct arch_stack *s = &a->stack[STACK_DEC];
    for (int64_t l = 0; l < s->L; l++) {
        double want = 1 / sqrt((double)s->block[l].D);
        if (s->block[l].scale > 0 || !(fabs(layer_scale(a, &s->block[l]) - want) <= 1e-12 * want))
            return 1;
    }
    return 0;
}

static int has_windows(const struct arch *a)
{
    int windows = 0;
    for (int64_t l = 0; l < a->stack[STACK_DEC].L; l++)
        windows |= a->stack[STACK_DEC].block[l].window > 0;
    return windows;
}

/* What ZERO_BIASES adds when the norm kind is `norm`. */
static unsigned biases_of(enum norm_kind norm) { return PROJECTION_BIASES | (norm == NORM_LAYER ? (unsigned)BIAS_NORM : 0); }

unsigned rewrite_needed(const struct arch *a, unsigned steps)
{
    unsigned needed = 0, bias = a->bias;
    enum norm_kind norm = a->norm;
    if (steps & REWRITE_NORM_ONES && norm == NORM_LAYER_NOP) {
        needed |= REWRITE_NORM_ONES;
        norm = NORM_LAYER;
    }
    if (steps & REWRITE_FOLD_NORMS && a->norm != NORM_LAYER_NOP) {
        needed |= REWRITE_FOLD_NORMS;
        bias |= bias & BIAS_NORM ? READER_BIASES : 0;
    }
    if (steps & REWRITE_FOLD_NORMS && a->residual == RESIDUAL_PARALLEL_TWO_NORMS)
        needed |= REWRITE_FOLD_NORMS;
    if (steps & REWRITE_CENTRE && norm == NORM_LAYER) {
        needed |= REWRITE_CENTRE;
        norm = NORM_RMS;
    }
    if (steps & REWRITE_ZERO_BIASES && biases_of(norm) & ~bias)
        needed |= REWRITE_ZERO_BIASES;
    if (steps & REWRITE_ZERO_HEAD_BIAS && !(bias & BIAS_HEAD))
        needed |= REWRITE_ZERO_HEAD_BIAS;
    if (steps & REWRITE_SCALE_Q && scales_differ(a))
        needed |= REWRITE_SCALE_Q;
    if (steps & REWRITE_POS_OFFSET && a->pos == POS_LEARNED && a->pos_offset)
        needed |= REWRITE_POS_OFFSET;
    if (steps & REWRITE_UNTIE && a->tied)
        needed |= REWRITE_UNTIE;
    if (steps & REWRITE_DROP_WINDOWS && has_windows(a))
        needed |= REWRITE_DROP_WINDOWS;
    return needed;
}

int rewrite_rounds(unsigned steps) { return (steps & (REWRITE_FOLD_NORMS | REWRITE_CENTRE | REWRITE_SCALE_Q)) != 0; }

int64_t rewrite_context(const struct arch *a, unsigned steps)
{
    int64_t context = a->max_positions;
    for (int64_t l = 0; steps & REWRITE_DROP_WINDOWS && l < a->stack[STACK_DEC].L; l++) {
        int64_t window = a->stack[STACK_DEC].block[l].window;
        context = window && window < context ? window : context;
    }
    return context;
}

/* ---- steps -------------------------------------------------------------------------------------------------------- */

static enum code fold_norms(struct arch *a)
{
    if (a->norm_place != NORM_PRE)
        return fail(ERR_UNSUPPORTED, "its norms stand behind their sublayers and cannot be folded into what reads them");
    if (a->bias & BIAS_NORM)
        a->bias |= READER_BIASES;
    if (a->residual == RESIDUAL_PARALLEL_TWO_NORMS)
        a->residual = RESIDUAL_PARALLEL_ONE_NORM;
    return OK;
}

static enum code centre(struct arch *a, int final_norm_scales, unsigned steps)
{
    const char *why = NULL;
    if (a->norm_place != NORM_PRE)
        why = "its norms stand behind their sublayers";
    else if (a->bias & BIAS_NORM)
        why = "its LayerNorms have biases";
    else if (a->embed_norm)
        why = "a norm follows the embedding";
    else if (a->embed_proj)
        why = "the embedding is projected";
    else if (a->tied && final_norm_scales && !(steps & REWRITE_UNTIE))
        why = "the embedding is also the head, and the final norm has weights";
    if (why)
        return fail(ERR_UNSUPPORTED, "its LayerNorms cannot become RMSNorms: %s", why);
    a->norm = NORM_RMS;
    return OK;
}

static enum code scale_q(struct arch *a)
{
    struct arch_stack *s = &a->stack[STACK_DEC];
    if (a->clip_qkv > 0)
        return fail(ERR_UNSUPPORTED, "the softmax scale cannot move into the queries: they are clipped (clip_qkv)");
    if (a->pos == POS_ALIBI && a->alibi_scaled)
        return fail(ERR_UNSUPPORTED, "the softmax scale cannot move into the queries: it also scales the ALiBi bias");
    for (int64_t l = 0; l < s->L; l++) {
        if (s->block[l].D != s->block[0].D)
            return fail(ERR_UNSUPPORTED, "the softmax scale cannot move into the queries: layers have different head widths");
        s->block[l].scale = 0;
    }
    a->attn_scale = 1 / sqrt((double)s->block[0].D);
    return OK;
}

enum code rewrite_arch(struct arch *a, unsigned steps)
{
    int final_norm_scales = a->norm != NORM_LAYER_NOP;
    steps = rewrite_needed(a, steps);
    if (!steps)
        return OK;
    if (steps & REWRITE_NORM_ONES)
        a->norm = NORM_LAYER;
    if (steps & REWRITE_FOLD_NORMS)
        TRY(fold_norms(a));
    if (steps & REWRITE_CENTRE)
        TRY(centre(a, final_norm_scales, steps));
    if (steps & REWRITE_ZERO_BIASES)
        a->bias |= biases_of(a->norm);
    if (steps & REWRITE_ZERO_HEAD_BIAS)
        a->bias |= BIAS_HEAD;
    if (steps & REWRITE_SCALE_Q)
        TRY(scale_q(a));
    if (steps & REWRITE_POS_OFFSET)
        a->pos_offset = 0;
    if (steps & REWRITE_UNTIE)
        a->tied = 0;
    for (int64_t l = 0; steps & REWRITE_DROP_WINDOWS && l < a->stack[STACK_DEC].L; l++)
        a->stack[STACK_DEC].block[l].window = 0;
    free(a->source_config);
    a->source_config = NULL;
    return OK;
}

void rewrite_words(unsigned steps, char *out, size_t n)
{
    static const struct { unsigned step; const char *words; } table[] = {
        {REWRITE_NORM_ONES, "norms with weights of one"},
        {REWRITE_FOLD_NORMS, "norm weights folded into the matrices that read them"},
        {REWRITE_CENTRE, "LayerNorm made RMSNorm by centring what writes the residual stream"},
        {REWRITE_ZERO_BIASES, "zero biases added"},
        {REWRITE_ZERO_HEAD_BIAS, "a zero bias of the head added"},
        {REWRITE_SCALE_Q, "the softmax scale moved into the queries"},
        {REWRITE_POS_OFFSET, "the unused first rows of the position table dropped"},
        {REWRITE_UNTIE, "the head a copy of the embedding"},
        {REWRITE_DROP_WINDOWS, "local attention made full"},
    };
    size_t used = 0;
    if (n)
        out[0] = 0;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (steps & table[i].step && used < n)
            used += (size_t)snprintf(out + used, n - used, "%s%s", used ? ", " : "", table[i].words);
}
