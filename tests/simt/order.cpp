/* Vector clocks (executor.h): what each fiber knows of what the others did. */
#include "state.h"

namespace simt {

static uint32_t highest = 0; /* generation in use anywhere */

static void lanes_clear(struct clock *c, int w)
{
    if (c->dense >> w & 1)
        return;
    memset(c->lanes[w], 0, sizeof c->lanes[w]);
    c->dense |= (uint64_t)1 << w;
}

void clock_join(struct clock *into, const struct clock *from)
{
    for (int w = 0; w <= SIMT_WARPS; w++) {
        if (w == now.n_warps)
            w = SIMT_WARPS;
        const uint64_t bit = (uint64_t)1 << w;
        if (from->gen[w] < into->gen[w])
            continue;
        if (from->gen[w] > into->gen[w]) {
            into->gen[w] = from->gen[w];
            into->dense &= ~bit;
        }
        if (!(from->dense & bit))
            continue;
        lanes_clear(into, w);
        for (int l = 0; l < SIMT_LANES; l++)
            into->lanes[w][l] = into->lanes[w][l] < from->lanes[w][l] ? from->lanes[w][l] : into->lanes[w][l];
    }
}

/* Own events of f up to now enter c. */
static void include_own(struct clock *c, struct fiber *f)
{
    const uint32_t gen = f->clock.gen[f->warp];
    if (c->gen[f->warp] > gen)
        return;
    lanes_clear(c, f->warp);
    if (c->lanes[f->warp][f->lane] < f->tick)
        c->lanes[f->warp][f->lane] = f->tick;
    CHECK(f->tick < UINT16_MAX); /* 65534 releases of one lane without its warp meeting */
    f->tick++;
}

void release(struct clock *into)
{
    clock_join(into, &current->clock);
    include_own(into, current);
}

/* A fiber's own generation never comes from others: they know at most its own. */
void acquire(const struct clock *from) { clock_join(&current->clock, from); }

void fence_async()
{
    current->fence_gen = current->clock.gen[current->warp];
    current->fence_tick = current->tick++;
}

/* A copy of what is in use. */
static void clock_copy(struct clock *to, const struct clock *from)
{
    to->dense = from->dense;
    memcpy(to->gen, from->gen, (size_t)now.n_warps * sizeof to->gen[0]);
    to->gen[SIMT_WARPS] = from->gen[SIMT_WARPS];
    for (uint64_t d = from->dense; d != 0; d &= d - 1) {
        const int w = __builtin_ctzll(d);
        memcpy(to->lanes[w], from->lanes[w], sizeof to->lanes[w]);
    }
}

void meet(struct fiber *const *who, int n, const struct clock *extra)
{
    static struct clock all;
    unsigned here[SIMT_WARPS];
    memset(here, 0, sizeof here);
    clock_copy(&all, &who[0]->clock);
    for (int i = 0; i < n; i++) {
        here[who[i]->warp] |= 1u << who[i]->lane;
        if (i > 0)
            clock_join(&all, &who[i]->clock);
    }
    if (extra != NULL)
        clock_join(&all, extra);
    for (int i = 0; i < n; i++) {
        struct fiber *f = who[i];
        const int w = f->warp;
        if (here[w] == now.alive[w]) { /* the whole warp: a new generation, of which nothing is known */
            if (f->lane == __builtin_ctz(here[w])) {
                all.gen[w] = f->clock.gen[w] + 1;
                all.dense &= ~((uint64_t)1 << w);
                highest = highest < all.gen[w] ? all.gen[w] : highest;
            }
            f->tick = 1;
        } else
            include_own(&all, f);
    }
    for (int i = 0; i < n; i++)
        clock_copy(&who[i]->clock, &all);
}

uint32_t generation_new() { return ++highest; }

void order_block_begin()
{
    highest++;
    for (int i = 0; i < now.n_threads; i++) {
        struct fiber *f = &fibers[i];
        f->tick = 1, f->fence_gen = 0, f->fence_tick = 0;
        f->clock.dense = 0;
        for (int w = 0; w < now.n_warps; w++)
            f->clock.gen[w] = highest;
        f->clock.gen[SIMT_WARPS] = highest;
    }
}

} // namespace simt
