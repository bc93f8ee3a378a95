/* The original's heads in the order that grouping gave the result's, so that head h of one is head h of the other. A rewriting that changes
 * no function: rows of q, k and v and columns of o move, in the loaded layer alone. */
#include "calibrate_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Blocks of `size` floats in each of `rows` rows: block i becomes what block order[i / per] * per + i % per was. */
static void blocks_move(float *x, float *copy, int64_t rows, int64_t blocks, int64_t size, const int64_t *order, int64_t per)
{
    memcpy(copy, x, (size_t)(rows * blocks * size) * sizeof *x);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < blocks; i++)
            memcpy(x + (r * blocks + i) * size, copy + (r * blocks + order[i / per] * per + i % per) * size, (size_t)size * sizeof *x);
}

enum code heads_in_order(struct calibrating *c, int64_t layer, const int64_t *members)
{
    static const struct { const char *name; int reads; } maps[] = {{"q.w", 1}, {"q.b", 1}, {"k.w", 0}, {"k.b", 0}, {"v.w", 0}, {"v.b", 0}, {"o.w", 1}};
    const struct arch_block *b = &ckpt_arch(c->source)->stack[STACK_DEC].block[layer];
    int moved = 0;
    for (int64_t i = 0; members && i < b->G; i++)
        moved |= members[i] != i;
    float *copy = moved ? malloc((size_t)(b->H * b->D * c->C) * sizeof *copy) : NULL;
    if (moved && !copy)
        return fail(ERR_MEMORY, "out of memory for layer %lld's heads", (long long)layer);
    for (size_t i = 0; moved && i < sizeof maps / sizeof *maps; i++) {
        char name[64];
        snprintf(name, sizeof name, "dec.%lld.attn.%s", (long long)layer, maps[i].name);
        const struct model_param *p = model_param_find(c->m0, name);
        if (!p)
            continue;
        int64_t heads = maps[i].reads ? b->H : b->G, columns = strcmp(maps[i].name, "o.w") == 0;
        blocks_move(view_f32(p->value), copy, columns ? c->C : 1, heads, columns ? b->D : p->count / heads, members, maps[i].reads ? b->H / b->G : 1);
    }
    free(copy);
    return OK;
}
