/* What the files of the executor share beyond executor.h: the running launch, and the seams between them. */
#ifndef GQAKIT_TESTS_SIMT_STATE_H
#define GQAKIT_TESTS_SIMT_STATE_H

#include "executor.h"
#include "simt.h"

extern "C" char __executable_start; /* of the program, from the linker */

namespace simt {

struct launch_state {
    const char *name;
    int arch;
    dim3 grid, block;
    uint3 block_index;
    size_t smem;
    void (*call)(void *);
    char *closure;
    size_t closure_bytes;
    int n_threads, n_warps, n_done;
    uint32_t serial;                /* of the block, over all launches */
    unsigned alive[SIMT_WARPS];     /* lanes that have not returned */
};
extern struct launch_state now;
extern struct fiber fibers[SIMT_WARPS * SIMT_LANES];
extern struct fiber *current; /* NULL: host code */
extern char *stacks;          /* all stacks, contiguous */
#define STACK_BYTES ((size_t)128 * 1024)

/* execute.cpp */
extern char order_mode; /* 'f', 'r', 'x' */
uint32_t random_next();

/* order.cpp */
void order_block_begin(); /* new generations, above all earlier ones */
uint32_t generation_new(); /* one above all in use */
/* The fibers meet: each learns what all of them and *extra (NULL: nothing) know. */
void meet(struct fiber *const *who, int n, const struct clock *extra);
static inline int lane_knows(const struct clock *c, int warp, uint32_t gen, int lane, uint16_t tick)
{
    return gen < c->gen[warp] || (gen == c->gen[warp] && (c->dense >> warp & 1) && c->lanes[warp][lane] >= tick);
}

/* collectives.cpp: a fiber has returned; barriers may be complete without it. */
void collectives_block_begin();
void collectives_return(struct fiber *f);

/* memory.cpp */
extern char *shared_memory;   /* first byte of dynamic shared memory; readable and writable guards around */
void memory_block_begin();
extern const void *access_pc; /* return address of a plain access; NULL for modelled ones, whose line is known */
/* 1: p belongs to shared memory or the device memory region, guards included */
int is_shared_region(const void *p);
int is_global_region(const void *p);

/* An access of device memory by host code of the executor (matmul, copies): inside one allocation, written before it is read. */
int host_touch(const void *p, size_t bytes, int write);

/* shadow.cpp: the accesses of shared memory, per 4 bytes; of device memory, the last write */
void shadow_block_begin();
void shadow_shared(struct fiber *who, size_t offset, size_t bytes, unsigned flags);
void shadow_finish(const struct token *t, size_t offset, int warp, unsigned lanes, uint32_t gen, uint16_t tick);
void shadow_global(struct fiber *who, uint64_t *cells, size_t offset, size_t bytes, unsigned flags);

/* async.cpp */
void async_block_begin();

/* faults.cpp */
/* Will a fault of this kind be printed here? If not, there is no need to put its sentence together. */
int fault_prints(enum simt_fault_kind kind, const struct fiber *who);
const char *source_of(uint32_t where); /* WHERE_LINE | line, or an offset into the program */
#define WHERE_LINE 0x80000000u
static inline uint32_t where_now(const struct fiber *who)
{
    if (access_pc != NULL)
        return (uint32_t)((const char *)access_pc - &__executable_start - 1) & ~WHERE_LINE; /* of the call, not after it */
    return who != NULL ? WHERE_LINE | (uint32_t)who->line : 0;
}

} // namespace simt
#endif
