/* Private to sm90_*.cpp: what the models share. One block runs at a time, on one OS thread, so all state is static and is thrown
 * away between blocks. */
#ifndef GQAKIT_TESTS_SIMT_SM90_MODEL_H
#define GQAKIT_TESTS_SIMT_SM90_MODEL_H

#include "executor.h"
#include "sm90_layout.h"

/* Fences a thread executed that make its mbarrier_init visible to bulk copies. */
extern unsigned sm90_init_fences[1024];

/* Each of these is empty at the beginning of a block; `end` looks for what a kernel must not leave behind. */
void sm90_barriers_begin();
void sm90_barriers_end();
void sm90_bulk_begin();
void sm90_bulk_end();
void sm90_wgmma_begin();
void sm90_wgmma_end();
void sm90_registers_begin();
void sm90_registers_end();

/* A bulk copy whose bytes count on an mbarrier. land() copies the data (unless it landed early), finishes the token and frees. */
struct sm90_landing {
    struct sm90_landing *next;
    struct simt::token *token; /* NULL: out of bounds, nothing to copy */
    uint32_t bytes;
    void (*copy)(struct sm90_landing *); /* NULL: copied already */
    void *own;
};
/* Adds a copy in flight to the barrier, or reports that there is none and returns 0. */
int sm90_barrier_track(uint32_t bar, struct sm90_landing *l);

/* Appends the mbarriers that threads wait for to the report of a deadlock. */
void sm90_deadlock(char *text, size_t size);

/* 1 on a device of generation 90; else reports. Every wrapper asks. */
int sm90_here(const char *what, const char *file, int line);

#endif
