/* Who touched which byte last. Shared memory: for every 4 bytes a list of records, each with the bytes, the lanes of a warp and
 * their time (generation, lane clock). A write drops the records of the bytes it covers (a later access in conflict with them is
 * in conflict with the write as well, or they were reported already); a read drops the reads it is ordered after. So the list holds
 * the last writes and every read since that is still unordered: no race between accesses that happened is missed.
 * Device memory: for every 4 bytes the last write and the last read of a block alone, so some races there are missed. */
#include "state.h"

namespace simt {

struct record {
    uint32_t gen;
    uint32_t lanes;
    uint32_t where;
    uint16_t tick;
    uint8_t warp;  /* SIMT_WARPS: asynchronous unit, lanes then is its queue */
    uint8_t kind;  /* low 4 bits: bytes of the granule; high 4: flags */
};
struct cell {
    struct record r[3];
    uint32_t serial; /* of the block; others are empty */
    uint32_t n;      /* records in this cell */
    struct cell *more; /* only when this one is full */
};

static struct cell cells[SIMT_SHARED_MAX / 4 + 1];
#define POOL 65536
static struct cell *pool;
static size_t pool_used;

void shadow_block_begin() { pool_used = 0; }

static inline unsigned bytes_of(const struct record *r) { return r->kind & 15u; }
static inline unsigned flags_of(const struct record *r) { return r->kind >> 4; }

/* Is everything in r ordered before the next event of f? */
static int known(const struct record *r, const struct fiber *f)
{
    const struct clock *c = &f->clock;
    const int w = r->warp;
    if (r->gen < c->gen[w])
        return 1;
    uint32_t lanes = r->lanes;
    if (w == f->warp)
        lanes &= ~(1u << f->lane);
    if (lanes == 0)
        return 1;
    if (r->gen > c->gen[w] || !(c->dense >> w & 1))
        return 0;
    for (; lanes != 0; lanes &= lanes - 1)
        if (c->lanes[w][__builtin_ctz(lanes)] < r->tick)
            return 0;
    return 1;
}

/* Ordinary writes must be fenced before an asynchronous unit reads or overwrites them. */
static int fenced(const struct record *r)
{
    for (uint32_t lanes = r->lanes; lanes != 0; lanes &= lanes - 1) {
        const struct fiber *f = &fibers[r->warp * SIMT_LANES + __builtin_ctz(lanes)];
        if (r->gen > f->fence_gen || (r->gen == f->fence_gen && r->tick > f->fence_tick))
            return 0;
    }
    return 1;
}

static const char *verb(unsigned flags) { return flags & ATOMIC ? "atomic" : flags & WRITE ? "write" : "read"; }

static void report(struct fiber *who, const struct record *r, const void *p, size_t bytes, unsigned flags)
{
    const enum simt_fault_kind kind = flags_of(r) & PENDING ? SIMT_ASYNC : SIMT_RACE;
    if (!fault_prints(kind, who)) {
        fault(kind, who, "-");
        return;
    }
    char other[64];
    const int first = r->warp * SIMT_LANES + (r->lanes != 0 ? __builtin_ctz(r->lanes) : 0);
    if (r->warp == SIMT_WARPS)
        snprintf(other, sizeof other, "an asynchronous copy");
    else
        snprintf(other, sizeof other, "thread %d%s", first, (r->lanes & (r->lanes - 1)) != 0 ? " and others" : "");
    if (kind == SIMT_ASYNC)
        fault(kind, who, "%s of %zu bytes at %s, where an asynchronous %s of %s (%s) has not been waited for", verb(flags), bytes, place(p),
              verb(flags_of(r)), other, source_of(r->where));
    else
        fault(kind, who, "%s of %zu bytes at %s: not ordered after the %s of %s (%s)", verb(flags), bytes, place(p), verb(flags_of(r)), other,
              source_of(r->where));
}

/* The list of a cell as an array: record i, append, remove. */
static struct record *record_at(struct cell *c, uint32_t i)
{
    for (; i >= 3; i -= 3)
        c = c->more;
    return &c->r[i];
}
static void record_add(struct cell *c, const struct record *r)
{
    uint32_t i = c->n;
    if (i < 3)
        c->more = NULL;
    if (i >= 3 * 64) /* a broadcast to more threads than a block has warps and clocks: enough is kept */
        return;
    struct cell *at = c;
    for (; i >= 3; i -= 3) {
        if (i == 3 && c->n % 3 == 0) {
            if (pool == NULL)
                CHECK((pool = (struct cell *)malloc(POOL * sizeof pool[0])) != NULL);
            if (pool_used == POOL)
                return;
            at->more = &pool[pool_used++];
        }
        at = at->more;
    }
    at->r[i] = *r;
    c->n++;
}
static void record_remove(struct cell *c, uint32_t i)
{
    c->n--;
    if (i != c->n)
        *record_at(c, i) = *record_at(c, c->n);
}

/* The common case of a read, for speed: its warp has read the bytes in this generation, and every write is of an earlier one. */
static inline int read_again(struct fiber *who, struct cell *c, const struct record *mine)
{
    if (c->serial != now.serial)
        return 0;
    struct record *same = NULL;
    struct cell *at = c;
    for (uint32_t i = 0, n = c->n, k = 0; i < n; i++, k++) {
        if (k == 3)
            at = at->more, k = 0;
        struct record *r = &at->r[k];
        if (r->warp == mine->warp && r->gen == mine->gen && r->tick == mine->tick && r->kind == mine->kind)
            same = r;
        else if (r->gen >= who->clock.gen[r->warp] && (flags_of(r) & (WRITE | PENDING)))
            return 0;
    }
    if (same == NULL)
        return 0;
    same->lanes |= mine->lanes;
    return 1;
}

static void access_cell(struct fiber *who, struct cell *c, unsigned mask, unsigned flags, const void *p, size_t bytes, const struct record *mine)
{
    if (c->serial != now.serial)
        c->serial = now.serial, c->n = 0;
    int reported = 0, merged = 0;
    for (uint32_t i = 0; i < c->n;) {
        struct record *r = c->n <= 3 ? &c->r[i] : record_at(c, i);
        const unsigned rf = flags_of(r);
        if ((bytes_of(r) & mask) == 0) {
            i++;
            continue;
        }
        if (((rf | flags) & WRITE) && !(rf & flags & ATOMIC) && !reported && ((rf & PENDING) || !known(r, who))) {
            report(who, r, p, bytes, flags);
            reported = 1;
        }
        if ((flags & ASYNC) && (rf & WRITE) && !(rf & (ASYNC | PENDING)) && !reported && r->warp < SIMT_WARPS && !fenced(r)) {
            fault(SIMT_ASYNC, who, "an asynchronous unit reads %s, written by ordinary stores (%s) without fence_async_shared", place(p), fault_prints(SIMT_ASYNC, who) ? source_of(r->where) : "");
            reported = 1;
        }
        int drop = 0;
        if (!(rf & PENDING)) {
            if (flags & WRITE) {
                if (!(flags & ATOMIC) || known(r, who)) {
                    r->kind = (uint8_t)(r->kind & ~mask);
                    drop = bytes_of(r) == 0;
                }
            } else if (!(rf & WRITE)) {
                if (r->warp == mine->warp && r->gen == mine->gen && r->tick == mine->tick && r->kind == mine->kind) {
                    r->lanes |= mine->lanes;
                    merged = 1;
                } else if ((bytes_of(r) & ~mask) == 0) {
                    if (r->gen < who->clock.gen[r->warp])
                        drop = 1;
                    else if (r->warp == who->warp) {
                        r->lanes &= ~mine->lanes;
                        drop = r->lanes == 0;
                    }
                }
            }
        }
        if (drop)
            record_remove(c, i);
        else
            i++;
    }
    if (!merged)
        record_add(c, mine);
}

void shadow_shared(struct fiber *who, size_t offset, size_t bytes, unsigned flags)
{
    struct record mine = {who->clock.gen[who->warp], 1u << who->lane, where_now(who), who->tick, (uint8_t)who->warp, 0};
    const size_t first = offset / 4, last = (offset + bytes - 1) / 4;
    for (size_t g = first; g <= last; g++) {
        unsigned mask = 15;
        if (g == first)
            mask &= 15u << (offset & 3);
        if (g == last)
            mask &= 15u >> (3 - ((offset + bytes - 1) & 3));
        mine.kind = (uint8_t)(mask | flags << 4);
        if (flags == READ && read_again(who, &cells[g], &mine))
            continue;
        access_cell(who, &cells[g], mask, flags, shared_memory + (g == first ? offset : g * 4), bytes, &mine);
    }
}

void shadow_finish(const struct token *t, size_t offset, int warp, unsigned lanes, uint32_t gen, uint16_t tick)
{
    struct record mine = {gen, lanes, 0, tick, (uint8_t)warp, 0};
    const size_t first = offset / 4, last = (offset + t->bytes - 1) / 4;
    const unsigned pending = t->flags | PENDING;
    for (size_t g = first; g <= last; g++) {
        unsigned mask = 15;
        if (g == first)
            mask &= 15u << (offset & 3);
        if (g == last)
            mask &= 15u >> (3 - ((offset + t->bytes - 1) & 3));
        struct cell *c = &cells[g];
        if (c->serial != now.serial)
            continue;
        for (uint32_t i = 0; i < c->n; i++) {
            struct record *r = record_at(c, i);
            if (r->kind == (uint8_t)(mask | pending << 4) && r->gen == t->gen && r->tick == t->tick && r->warp == t->who->warp &&
                r->lanes == 1u << t->who->lane) {
                mine.where = r->where;
                record_remove(c, i);
                break;
            }
        }
        mine.kind = (uint8_t)(mask | t->flags << 4);
        int merged = 0;
        for (uint32_t i = 0; i < c->n && !merged; i++) {
            struct record *r = record_at(c, i);
            if (!(t->flags & WRITE) && r->kind == mine.kind && r->warp == mine.warp && r->gen == gen && r->tick == tick) {
                r->lanes |= lanes;
                merged = 1;
            }
        }
        if (!merged)
            record_add(c, &mine);
    }
}

/* A cell of device memory is two events, the last write and the last read. An event: gen 32 | tick 16 | thread 10 | bytes 4 | atomic 1,
 * from the top; 0: none. */
static int event_races(uint64_t v, const struct fiber *who, unsigned mask, unsigned flags)
{
    if ((v >> 1 & mask) == 0 || (v & 1 && flags & ATOMIC))
        return 0;
    const int other = (int)(v >> 5 & 1023), warp = other / SIMT_LANES;
    if (other >= now.n_threads) /* of an earlier block, as everything is that who's clock has passed */
        return 0;
    return other != who->index && (uint32_t)(v >> 32) >= who->clock.gen[warp] &&
           !lane_knows(&who->clock, warp, (uint32_t)(v >> 32), other % SIMT_LANES, (uint16_t)(v >> 16));
}

void shadow_global(struct fiber *who, uint64_t *global_cells, size_t offset, size_t bytes, unsigned flags)
{
    const size_t first = offset / 4, last = (offset + bytes - 1) / 4;
    const uint64_t me = (uint64_t)who->clock.gen[who->warp] << 32 | (uint64_t)who->tick << 16 | (uint64_t)who->index << 5 | (flags & ATOMIC ? 1u : 0u);
    for (size_t g = first; g <= last; g++) {
        unsigned mask = 15;
        if (g == first)
            mask &= 15u << (offset & 3);
        if (g == last)
            mask &= 15u >> (3 - ((offset + bytes - 1) & 3));
        uint64_t *cell = global_cells + 2 * g;
        const uint64_t v = cell[0] != 0 && event_races(cell[0], who, mask, flags) ? cell[0]
                           : flags & WRITE && cell[1] != 0 && event_races(cell[1], who, mask, flags) ? cell[1] : 0;
        if (v != 0)
            fault(SIMT_RACE, who, "%s of %zu bytes in device memory: not ordered after the %s of thread %d of the same block", verb(flags), bytes,
                  v == cell[1] ? "read" : v & 1 ? "atomic" : "write", (int)(v >> 5 & 1023));
        cell[flags & WRITE ? 0 : 1] = me | (uint64_t)mask << 1;
    }
}

} // namespace simt
