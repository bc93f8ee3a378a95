/* See kv_budget.h. */
#include <math.h>
#include <stdlib.h>

#include "kv_budget.h"

enum code kv_budget_parse(int64_t *bytes, const char *name, const char *text, int64_t most, int64_t least)
{
    char *end;
    double x = strtod(text, &end);
    int percent = *end == '%';
    if (end == text || end[percent] || !isfinite(x) || x <= 0 || x > 1e18 || (!percent && x != floor(x)))
        return fail(ERR_USAGE, "%s \"%s\": expected a share of the source's K/V bytes per token (50%%) or a number of bytes (of %lld)", name, text, (long long)most);
    *bytes = (int64_t)floor(percent ? (double)most * x / 100 + 1e-6 : x);
    if (*bytes < least)
        return fail(ERR_USAGE, "%s %s is %lld bytes per token, but one head in every layer takes %lld (%.1f%% of the source's %lld)", name, text, (long long)*bytes,
                    (long long)least, 100 * (double)least / (double)most, (long long)most);
    return OK;
}

enum code kv_budget_of(int64_t *bytes, const char *name, const char *text, const struct arch *source, enum dtype type)
{
    return kv_budget_parse(bytes, name, text, arch_kv_bytes_per_token(source, 0, type), arch_kv_bytes_per_token(source, 1, type));
}

/* The next legal count above G. */
static int64_t above(int64_t G, int64_t all)
{
    do
        G++;
    while (all % G != 0);
    return G;
}

/* Layer after layer one count up, the one with the smallest share of its heads first, until nothing more fits. */
void kv_budget_spread(struct arch *a, const struct arch *source, int64_t bytes, enum dtype type)
{
    struct arch_stack *s = &a->stack[STACK_DEC];
    const struct arch_block *all = source->stack[STACK_DEC].block;
    int64_t best, cost = 0, left = bytes - arch_kv_bytes_per_token(source, 1, type);
    for (int64_t l = 0; l < s->L; l++)
        s->block[l].G = 1;
    do {
        best = -1;
        for (int64_t l = 0; l < s->L; l++) {
            const struct arch_block *b = &s->block[l];
            if (b->G == all[l].G || (best >= 0 && b->G * all[best].G >= s->block[best].G * all[l].G))
                continue;
            int64_t more = (above(b->G, all[l].G) - b->G) * (b->D + b->Dv) * (int64_t)dtype_bytes(type);
            if (more <= left) {
                best = l;
                cost = more;
            }
        }
        if (best >= 0) {
            s->block[best].G = above(s->block[best].G, all[best].G);
            left -= cost;
        }
    } while (best >= 0);
}

enum code kv_budget_uneven(struct arch *a, int *differs, const struct arch *source)
{
    TRY(arch_copy(a, source));
    struct arch_stack *s = &a->stack[STACK_DEC];
    *differs = s->L > 1 && s->block[0].G > 1;
    if (*differs)
        s->block[0].G = 1;
    return OK;
}
