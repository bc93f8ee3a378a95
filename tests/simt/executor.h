/* Inside the SIMT executor. A launch runs its blocks one after the other on one OS thread; every CUDA thread of a block is a fiber
 * (a stack of its own, a switch of some ns), and a fiber runs until it has to wait. What the kernels read and write is seen through
 * the hooks of -fsanitize=thread, which g++ puts into the kernel sources and hooks.cpp defines (the sanitizer's own runtime is
 * not linked). The files of the executor are compiled without that flag.
 *
 * Order between threads ("happens before") is a vector clock per fiber. Events of a warp are numbered by (generation, lane clock):
 * the generation counts the points where the whole warp synchronised, the lane clock the releases of one lane since. A clock
 * holds for every warp the generation that is wholly known and, for the current generation, one clock per lane (rarely needed: the
 * `dense` bit says whether any is non-zero). Generations only grow, also from block to block, so shadow memory is never cleared. */
#ifndef GQAKIT_TESTS_SIMT_EXECUTOR_H
#define GQAKIT_TESTS_SIMT_EXECUTOR_H

#include <stdint.h>
#include <stddef.h>
#include "simt_host.h"

#define SIMT_WARPS 32   /* of a block: 1024 threads */
#define SIMT_LANES 32
#define SIMT_SHARED_MAX ((size_t)227 * 1024)
#define SIMT_SHARED_BASE 1024u /* 32-bit address of the first byte of dynamic shared memory, as on a GPU */

namespace simt {

struct clock {
    uint64_t dense; /* bit w: lanes[w] has non-zero entries; else it is not even read */
    uint32_t gen[SIMT_WARPS + 1]; /* the last entry stands for asynchronous units, its lanes for their queues (mbarriers) */
    uint16_t lanes[SIMT_WARPS + 1][SIMT_LANES];
};

struct wait_list { struct fiber *head; }; /* fibers asleep; {} is empty */

struct fiber {
    void *sp;
    char *stack; /* lowest address */
    int index, warp, lane;
    uint32_t x, y, z; /* threadIdx */
    int done;
    struct fiber *next;      /* in a wait list or the queue of runnable fibers */
    const char *waits_for;   /* NULL: runnable; a word or two for the report of a deadlock */
    int line;                /* source line of the executor call it is in */
    const char *file;
    int barriers;            /* __syncthreads executed */
    uint16_t tick;           /* own lane clock, from 1 */
    uint32_t fence_gen;      /* events up to (fence_gen, fence_tick) are visible to asynchronous reads */
    uint16_t fence_tick;
    struct clock clock;
    struct async_state *async; /* cp.async groups (async.cpp) */
    void *sm90;                /* for sm90*.cpp */
};

/* ---- who runs ---- */
struct fiber *self();         /* NULL in host code */
struct fiber *lane(int i);    /* of the running fiber's warp; may be done */
struct fiber *thread(int i);  /* of the block; i < threads() */
int threads();                /* of the block */
int arch();                   /* 80 or 90: the device of the launch */
unsigned warp_alive();        /* lanes of the running fiber's warp that have not returned */
/* Sets file and line of the running fiber; every wrapper begins with it. */
void at(const char *file, int line);

/* ---- waiting ---- */
/* Puts the running fiber to sleep in the list. Returns when somebody wakes it; the caller looks at its condition again. */
void sleep_in(struct wait_list *list, const char *waits_for);
void wake_all(struct wait_list *list);
void reschedule(); /* lets the other runnable fibers run first */

/* ---- collectives ---- */
/* Lanes of mask (those that have not returned) meet: each brings a pointer, the last one calls op(arg, mask) with arg[lane], then all
 * go on. Calls meet when op and mask are the same. order: memory is ordered too (__syncwarp); else not (shuffles, votes, mma). */
typedef void collective_fn(void *const *arg, unsigned mask);
void collective(const char *name, collective_fn *op, unsigned mask, void *mine, int order);

/* ---- order. A struct clock of zeros knows nothing ---- */
void release(struct clock *into);        /* everything this fiber did so far is known to who acquires `into` later */
void acquire(const struct clock *from);
void clock_join(struct clock *into, const struct clock *from);
/* The running fiber's ordinary writes up to now may be read by asynchronous units (fence.proxy.async). */
void fence_async();

/* ---- memory ---- */
enum {
    READ = 0,
    WRITE = 1,
    ATOMIC = 2,   /* with WRITE: not in conflict with other atomics */
    PENDING = 4,  /* an asynchronous unit will touch the bytes until finish(): nobody may, except by the same kind of read */
    ASYNC = 8,    /* by an asynchronous unit (TMA, wgmma): ordinary writes must have been fenced (fence_async) */
};
void *shared(uint32_t address);            /* host pointer of a 32-bit shared address, in bounds or not */
uint32_t shared_address(const void *p);
/* Checks an access of `who` (self(), a lane): bounds, written before, alignment (1: any), order; reports faults and records it.
 * 1: in bounds, the bytes may be touched. */
int touch(struct fiber *who, const void *p, size_t bytes, unsigned flags, size_t align);
/* touch and copy; a load out of bounds gives zeros, a store out of bounds does nothing. */
void load(struct fiber *who, void *to, const void *p, size_t bytes, size_t align);
void store(struct fiber *who, void *p, const void *from, size_t bytes, size_t align);

/* An asynchronous access of shared memory: begin() checks it at issue like any access of `who` and makes the bytes PENDING; finish()
 * ends that and records it as done. into NULL: by the running fiber, whose wait ended it (wait_group: it alone knows, a barrier tells the
 * others). Else by an asynchronous unit: `into` is the clock of the mbarrier that will tell (whoever calls acquire(into) later knows),
 * queue 0-31 numbers that mbarrier (sharing a number only makes races harder to see). flags: READ or WRITE, and ASYNC. */
struct token {
    struct fiber *who;
    char *p;
    size_t bytes;
    unsigned flags;
    uint32_t gen;
    uint16_t tick;
};
struct token *begin(struct fiber *who, void *p, size_t bytes, unsigned flags, size_t align); /* NULL: out of bounds, reported */
void finish(struct token *t, struct clock *into, int queue); /* and frees it. Of a write: store the bytes with memcpy around this */
int lands_early(); /* GQAKIT_SIMT_ASYNC=early: move the data at issue */

/* ---- faults ---- */
/* Prints (the first few of a kind) and counts: kernel, block, thread of `who`, its line, then the sentence. */
void fault(enum simt_fault_kind kind, struct fiber *who, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* "shared+0x120", "allocation of 4096 bytes + 4100 (outside)"; a static buffer of a few. */
const char *place(const void *p);
/* Ends the launch after a fault nothing can go on from; LAUNCH returns ERR_DEVICE. Does not return. */
void stop_launch() __attribute__((noreturn));

/* sm90*.cpp: forget everything about the last block; and look at what a finished block left behind. */
void sm90_block_begin();
void sm90_block_end();

} // namespace simt
#endif
