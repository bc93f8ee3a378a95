/* Counts for reports: what a training token costs, what a decode step must read. */
#include "parts.h"

/* Keys seen by a query, averaged over a sequence of T: T/2, or less with a window w. */
static double mean_keys(int64_t T, int64_t window)
{
    double t = (double)T, w = window > 0 && window < T ? (double)window : t;
    return w - w * w / (2.0 * t);
}

double model_train_flops_per_token(const struct arch *a, int64_t T)
{
    double attention = 0.0;
    for (int64_t l = 0; l < a->stack[STACK_DEC].L; l++) {
        const struct arch_block *b = &a->stack[STACK_DEC].block[l];
        attention += 4.0 * (double)(b->H * b->D) * mean_keys(T, b->window);
    }
    return 6.0 * (double)arch_parameters(a) + 3.5 * attention;
}

double model_decode_bytes(const struct arch *a, int64_t B, int64_t S, enum dtype weights, enum dtype cache)
{
    double bytes = 0.0, wide = (double)dtype_bytes(weights), kv = (double)dtype_bytes(cache);
    for (int64_t l = 0; l < a->stack[STACK_DEC].L; l++) {
        const struct arch_block *b = &a->stack[STACK_DEC].block[l];
        int64_t seen = b->window > 0 && b->window < S ? b->window : S;
        double heads = (double)((b->H + b->G) * b->D + (b->G + b->H) * b->Dv); /* rows of q, k, v and columns of o */
        bytes += wide * (double)a->C * (heads + (double)(in_width(a, b) + b->F));
        bytes += kv * (double)B * (double)seen * (double)(b->G * (b->D + b->Dv));
    }
    double E = (double)embed_width(a), projections = a->embed_proj ? 2.0 * E * (double)a->C : 0.0;
    return bytes + wide * ((double)a->V * E + projections);
}
