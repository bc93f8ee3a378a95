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

/* One wgmma.mma_async in flight (sm90_product.cpp). */
struct sm90_product {
    struct sm90_product *next;
    long number; /* within the warpgroup */
    int warpgroup;
    int n, ta, tb, add, from_registers;
    struct sm90_operand a, b;
    uint32_t registers[128][4];
    struct simt::clock clock; /* of its reads, once complete */
    int waited;               /* warps that have waited for it */
    float *value;             /* [64][n] */
    struct simt::token **token;
    int tokens;
    int readable; /* every byte of the operands is inside shared memory */
    int done;
};
/* Checks the descriptors as accesses of `who` and begins the reads of shared memory. */
void sm90_product_begin(struct sm90_product *p, uint64_t a, uint64_t b, struct simt::fiber *who);
void sm90_product_compute(struct sm90_product *p);  /* reads the operands and adds to value; once */
void sm90_product_complete(struct sm90_product *p); /* ... and ends the reads */

/* ---- boxes of a tensor (sm90_box.cpp) ---- */

/* What the executor keeps in the 128 bytes of a tensor map. */
struct sm90_map {
    uint32_t magic;
    uint8_t rank, size, swizzle;
    char *base;
    int64_t n[4], stride[4]; /* stride[0] is the element */
    int32_t box[4];
};
/* 1, and *m, when `map` is a tensor map of four axes; else reports. */
int sm90_map_read(struct sm90_map *m, const void *map, const char *what);
int sm90_box_aligned(const struct sm90_map *m, uint32_t address, const char *what); /* 1, or reports */
uint32_t sm90_box_row_bytes(const struct sm90_map *m);
int sm90_box_rows(const struct sm90_map *m);
/* Row r of the box at coordinates c: elements [from, to) of it lie in the tensor, the first at *p. 0: none. */
int sm90_box_row(const struct sm90_map *m, const int *c, int r, int *from, int *to, char **p);
/* The box between shared memory and `packed`, a copy of it without swizzle. */
void sm90_box_copy(const struct sm90_map *m, uint32_t address, char *packed, int to_shared);

/* 1 on a device of generation 90; else reports. Every wrapper asks. */
int sm90_here(const char *what, const char *file, int line);

#endif
