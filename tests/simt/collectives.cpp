/* Where threads meet: warp collectives (the last lane to arrive computes for all), __syncthreads, named barriers, atomics. */
#include <stdio.h>

#include "state.h"

namespace simt {

/* ---- warps ---- */

struct meeting {
    collective_fn *op;
    const char *name;
    unsigned mask, arrived;
    int active, order;
    void *arg[SIMT_LANES];
    struct wait_list sleepers;
};
#define MEETINGS 8 /* of one warp at the same time: diverged parts of it */
static struct meeting meetings[SIMT_WARPS][MEETINGS];

static void complete(struct meeting *m, int warp)
{
    if (m->order) {
        struct fiber *who[SIMT_LANES];
        int n = 0;
        for (int l = 0; l < SIMT_LANES; l++)
            if (m->arrived >> l & 1)
                who[n++] = &fibers[warp * SIMT_LANES + l];
        meet(who, n, NULL);
    }
    if (m->op != NULL)
        m->op(m->arg, m->arrived);
    m->active = 0;
    wake_all(&m->sleepers);
}

void collective(const char *name, collective_fn *op, unsigned mask, void *mine, int order)
{
    struct fiber *f = current;
    if (!(mask >> f->lane & 1))
        fault(SIMT_MODEL, f, "%s: the lane is not in its own mask 0x%08x", name, mask);
    mask |= 1u << f->lane;
    struct meeting *m = NULL;
    for (int i = 0; i < MEETINGS; i++) {
        struct meeting *x = &meetings[f->warp][i];
        if (x->active && x->op == op && x->mask == mask && x->order == order && x->name == name && !(x->arrived >> f->lane & 1)) {
            m = x;
            break;
        }
        if (!x->active && m == NULL)
            m = x;
    }
    CHECK(m != NULL);
    if (!m->active) {
        m->op = op, m->name = name, m->mask = mask, m->arrived = 0, m->active = 1, m->order = order, m->sleepers.head = NULL;
        memset(m->arg, 0, sizeof m->arg);
    }
    m->arg[f->lane] = mine;
    m->arrived |= 1u << f->lane;
    if (m->arrived == (mask & now.alive[f->warp]))
        complete(m, f->warp);
    else
        sleep_in(&m->sleepers, name);
}

/* ---- blocks ---- */

static struct {
    int arrived, line, mixed_lines, any, all, count;
    const char *file;
    struct fiber *first;
    struct wait_list sleepers;
    int result_any, result_all, result_count;
} block_barrier;

static void block_complete()
{
    struct fiber *who[SIMT_WARPS * SIMT_LANES];
    int n = 0;
    for (int i = 0; i < now.n_threads; i++)
        if (!fibers[i].done)
            who[n++] = &fibers[i];
    if (n < now.n_threads)
        fault(SIMT_DIVERGENT, block_barrier.first, "__syncthreads is reached by %d of %d threads, the others have returned", n, now.n_threads);
    meet(who, n, NULL);
    block_barrier.result_any = block_barrier.any, block_barrier.result_all = block_barrier.all, block_barrier.result_count = block_barrier.count;
    block_barrier.arrived = 0, block_barrier.mixed_lines = 0;
    wake_all(&block_barrier.sleepers);
}

static void block_meet(int predicate, const char *file, int line)
{
    at(file, line);
    struct fiber *f = current;
    if (block_barrier.arrived == 0) {
        block_barrier.first = f, block_barrier.line = line, block_barrier.file = file;
        block_barrier.any = 0, block_barrier.all = 1, block_barrier.count = 0;
    } else if ((line != block_barrier.line || strcmp(file, block_barrier.file) != 0) && !block_barrier.mixed_lines) {
        block_barrier.mixed_lines = 1;
        fault(SIMT_DIVERGENT, f, "__syncthreads meets the one of thread %d at line %d", block_barrier.first->index, block_barrier.line);
    }
    block_barrier.arrived++;
    block_barrier.any |= predicate != 0, block_barrier.all &= predicate != 0, block_barrier.count += predicate != 0;
    f->barriers++;
    if (block_barrier.arrived == now.n_threads - now.n_done)
        block_complete();
    else
        sleep_in(&block_barrier.sleepers, "__syncthreads");
}

/* ---- named barriers ---- */

static struct named {
    int expected, arrived, n_sleepers;
    struct fiber *who[SIMT_WARPS * SIMT_LANES]; /* those that sleep */
    struct wait_list sleepers;
    struct clock arrivals; /* of those that only arrived */
    int any_arrivals;
} named[16];

static void named_complete(struct named *b)
{
    if (b->n_sleepers > 0)
        meet(b->who, b->n_sleepers, b->any_arrivals ? &b->arrivals : NULL);
    b->expected = b->arrived = b->n_sleepers = b->any_arrivals = 0;
    wake_all(&b->sleepers);
}

void collectives_block_begin()
{
    for (int w = 0; w < now.n_warps; w++)
        for (int i = 0; i < MEETINGS; i++)
            meetings[w][i].active = 0;
    block_barrier.arrived = 0, block_barrier.mixed_lines = 0, block_barrier.sleepers.head = NULL;
    for (struct named &b : named)
        b.expected = b.arrived = b.n_sleepers = b.any_arrivals = 0, b.sleepers.head = NULL;
}

void collectives_return(struct fiber *f)
{
    for (int i = 0; i < MEETINGS; i++) {
        struct meeting *m = &meetings[f->warp][i];
        if (m->active && m->arrived == (m->mask & now.alive[f->warp]))
            complete(m, f->warp);
    }
    if (block_barrier.arrived > 0 && block_barrier.arrived == now.n_threads - now.n_done)
        block_complete();
}

} // namespace simt

using namespace simt;

void simt_named_barrier(int id, int threads, int wait, const char *file, int line)
{
    at(file, line);
    static const char *const names[16] = {"", "named barrier 1", "named barrier 2", "named barrier 3", "named barrier 4", "named barrier 5",
                                          "named barrier 6", "named barrier 7", "named barrier 8", "named barrier 9", "named barrier 10",
                                          "named barrier 11", "named barrier 12", "named barrier 13", "named barrier 14", "named barrier 15"};
    if (id < 1 || id > 15 || threads < 32 || threads % 32 != 0 || threads > (now.n_threads + 31) / 32 * 32) {
        fault(SIMT_MODEL, current, "named barrier %d with %d threads: ids are 1-15, threads a multiple of 32 up to the block's %d", id, threads, now.n_threads);
        stop_launch();
    }
    struct named *b = &named[id];
    if (b->arrived == 0) {
        b->expected = threads;
        memset(&b->arrivals.gen, 0, sizeof b->arrivals.gen);
        b->arrivals.dense = 0;
    } else if (b->expected != threads)
        fault(SIMT_MODEL, current, "named barrier %d with %d threads meets one with %d", id, threads, b->expected);
    b->arrived++;
    if (wait)
        b->who[b->n_sleepers++] = current;
    else {
        release(&b->arrivals);
        b->any_arrivals = 1;
    }
    if (b->arrived >= b->expected)
        named_complete(b);
    else if (wait)
        sleep_in(&b->sleepers, names[id]);
}

void __syncthreads(const char *file, int line) { block_meet(0, file, line); }
int __syncthreads_or(int predicate, const char *file, int line)
{
    block_meet(predicate, file, line);
    return block_barrier.result_any;
}
int __syncthreads_and(int predicate, const char *file, int line)
{
    block_meet(predicate, file, line);
    return block_barrier.result_all;
}
int __syncthreads_count(int predicate, const char *file, int line)
{
    block_meet(predicate, file, line);
    return block_barrier.result_count;
}

void __syncwarp(unsigned mask, const char *file, int line)
{
    at(file, line);
    collective("__syncwarp", NULL, mask, NULL, 1);
}

/* Lanes that have not returned; diverged lanes are not told apart from converged ones. */
unsigned __activemask() { return warp_alive(); }

struct vote { int predicate; unsigned ballot; };
static void vote_op(void *const *arg, unsigned mask)
{
    unsigned ballot = 0;
    for (int l = 0; l < SIMT_LANES; l++)
        if (mask >> l & 1 && ((struct vote *)arg[l])->predicate)
            ballot |= 1u << l;
    for (int l = 0; l < SIMT_LANES; l++)
        if (mask >> l & 1)
            ((struct vote *)arg[l])->ballot = ballot;
}
unsigned __ballot_sync(unsigned mask, int predicate, const char *file, int line)
{
    at(file, line);
    struct vote v = {predicate, 0};
    collective("a vote", vote_op, mask, &v, 0);
    return v.ballot;
}
int __all_sync(unsigned mask, int predicate, const char *file, int line) { return __ballot_sync(mask, !predicate, file, line) == 0; }

struct reduction { char how; int value, result; };
static void reduce_op(void *const *arg, unsigned mask)
{
    int sum = 0, first = 1;
    for (int l = 0; l < SIMT_LANES; l++) {
        if (!(mask >> l & 1))
            continue;
        const struct reduction *r = (struct reduction *)arg[l];
        if (first)
            sum = r->value;
        else
            sum = r->how == '+' ? (int)((unsigned)sum + (unsigned)r->value) : r->how == '>' ? (r->value > sum ? r->value : sum) : r->value < sum ? r->value : sum;
        first = 0;
    }
    for (int l = 0; l < SIMT_LANES; l++)
        if (mask >> l & 1)
            ((struct reduction *)arg[l])->result = sum;
}
int simt_reduce_sync(char how, unsigned mask, int value, const char *file, int line)
{
    at(file, line);
    struct reduction r = {how, value, 0};
    collective("a warp reduction", reduce_op, mask, &r, 0);
    return r.result;
}

struct shuffle { uint64_t value, result; int by, width; char how; };
static void shuffle_op(void *const *arg, unsigned mask)
{
    for (int l = 0; l < SIMT_LANES; l++) {
        if (!(mask >> l & 1))
            continue;
        struct shuffle *s = (struct shuffle *)arg[l];
        const int base = l & ~(s->width - 1);
        int from = l;
        if (s->how == 'i')
            from = base + (s->by & (s->width - 1));
        else if (s->how == 'x')
            from = (l ^ s->by) < base + s->width ? l ^ s->by : l;
        else if (s->how == 'd')
            from = l + s->by < base + s->width ? l + s->by : l;
        else
            from = l - s->by >= base ? l - s->by : l;
        if (arg[from] == NULL || !(mask >> from & 1)) {
            fault(SIMT_MODEL, &fibers[current->warp * SIMT_LANES + l], "a shuffle from lane %d, which does not take part", from);
            s->result = 0xffffffffffffffffu;
        } else
            s->result = ((struct shuffle *)arg[from])->value;
    }
}
uint64_t simt_shuffle(char how, unsigned mask, uint64_t bits, int by, int width, const char *file, int line)
{
    at(file, line);
    struct shuffle s = {bits, 0, by, width, how};
    collective("a shuffle", shuffle_op, mask, &s, 0);
    return s.result;
}

/* ---- atomics ---- */
template <class T, class F> static T atomic(T *p, F f, const char *file, int line)
{
    at(file, line);
    T old = 0;
    if (touch(current, p, sizeof *p, WRITE | ATOMIC, sizeof *p)) {
        old = *p;
        *p = f(old);
    }
    return old;
}
#define ATOMIC_OP(name, T, expression) \
    T name(T *p, T v, const char *file, int line) { return atomic(p, [=](T old) { return (T)(expression); }, file, line); }
ATOMIC_OP(atomicAdd, int, (unsigned)old + (unsigned)v)
ATOMIC_OP(atomicAdd, unsigned, old + v)
ATOMIC_OP(atomicAdd, unsigned long long, old + v)
ATOMIC_OP(atomicAdd, float, old + v)
ATOMIC_OP(atomicAdd, double, old + v)
ATOMIC_OP(atomicMax, int, old > v ? old : v)
ATOMIC_OP(atomicMax, unsigned, old > v ? old : v)
ATOMIC_OP(atomicMin, int, old < v ? old : v)
ATOMIC_OP(atomicMin, unsigned, old < v ? old : v)
ATOMIC_OP(atomicOr, int, old | v)
ATOMIC_OP(atomicOr, unsigned, old | v)
ATOMIC_OP(atomicExch, int, ((void)old, v))
ATOMIC_OP(atomicExch, unsigned, ((void)old, v))
#define ATOMIC_CAS(T)                                                                   \
    T atomicCAS(T *p, T expected, T desired, const char *file, int line)                \
    {                                                                                   \
        return atomic(p, [=](T old) { return old == expected ? desired : old; }, file, line); \
    }
ATOMIC_CAS(int)
ATOMIC_CAS(unsigned)
ATOMIC_CAS(unsigned long long)

void simt_trap(const char *file, int line)
{
    at(file, line);
    fault(SIMT_MODEL, current, "__trap");
    stop_launch();
}

long long clock64()
{
    static long long ticks;
    return ticks += 100;
}
