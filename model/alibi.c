/* ALiBi (Press, Smith, Lewis 2022): a bias slope[h] * (key position - query position) on the scores. With n the largest power of two
 * <= H and m = bias_max (8; a setting of MPT): slope_i = 2^(-m i / n) for i = 1..n; the heads beyond n take the odd steps of the sequence
 * for 2n: 2^(-m (2j - 1) / (2n)), j = 1, 2, ... Falcon multiplies the bias by the softmax scale as well. */
#include <math.h>
#include <stdlib.h>

#include "parts.h"

void alibi_slopes(const struct arch *a, const struct arch_block *b, float *slopes)
{
    int64_t n = 1;
    while (2 * n <= b->H)
        n *= 2;
    double scale = !a->alibi_scaled ? 1.0 : b->scale > 0.0 ? b->scale : a->attn_scale;
    for (int64_t h = 0; h < b->H; h++) {
        double step = h < n ? (double)(h + 1) / (double)n : (double)(2 * (h - n) + 1) / (double)(2 * n);
        slopes[h] = (float)(scale * exp2(-a->alibi_bias_max * step));
    }
}

enum code alibi_upload(struct model *m)
{
    const struct arch_stack *s = &m->arch.stack[STACK_DEC];
    for (int64_t l = 0; l < s->L && m->arch.pos == POS_ALIBI; l++) {
        size_t bytes = (size_t)s->block[l].H * sizeof(float);
        float *slopes = malloc(bytes);
        if (!slopes)
            return fail(ERR_MEMORY, "out of memory for the ALiBi slopes of %lld heads", (long long)s->block[l].H);
        alibi_slopes(&m->arch, &s->block[l], slopes);
        enum code c = m->be->device_copy(m->dev, m->value.block[l].alibi.p, slopes, bytes);
        free(slopes);
        TRY(c);
    }
    return OK;
}
