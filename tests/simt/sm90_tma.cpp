/* Bulk loads (PTX ISA, "cp.async.bulk.tensor"): a box of a tensor to shared memory, zeros where it leaves the tensor. All its
 * bytes count on the mbarrier, which says when the data lands (sm90_barrier.cpp); at issue with GQAKIT_SIMT_ASYNC=early. */
#include <stdlib.h>
#include <string.h>

#include "sm90_model.h"
#include "kernels/cuda/ptx.cuh"

using namespace simt;

namespace {

struct load_box {
    struct sm90_map map;
    int c[4];
    uint32_t dst;
};

void load_copy(struct sm90_landing *l)
{
    struct load_box *b = (struct load_box *)l->own;
    if (l->token == NULL)
        return;
    char *packed = (char *)calloc(1, l->bytes), *p;
    for (int r = 0, from, to; r < sm90_box_rows(&b->map); r++)
        if (sm90_box_row(&b->map, b->c, r, &from, &to, &p))
            memcpy(packed + (size_t)r * sm90_box_row_bytes(&b->map) + (size_t)from * b->map.size, p, (size_t)(to - from) * b->map.size);
    sm90_box_copy(&b->map, b->dst, packed, 1);
    free(packed);
}

} // namespace

void sm90_tma_prefetch(const void *map, const char *file, int line)
{
    struct sm90_map m;
    if (sm90_here("tma_prefetch", file, line))
        sm90_map_read(&m, map, "tma_prefetch");
}

void sm90_tma_load(uint32_t dst, const void *map, uint32_t bar, int c0, int c1, int c2, int c3, const char *file, int line)
{
    struct sm90_map m;
    if (!sm90_here("tma_load", file, line) || !sm90_map_read(&m, map, "tma_load") || !sm90_box_aligned(&m, dst, "tma_load"))
        return;
    struct load_box *b = (struct load_box *)malloc(sizeof *b);
    struct sm90_landing *l = (struct sm90_landing *)calloc(1, sizeof *l);
    *b = {m, {c0, c1, c2, c3}, dst};
    l->own = b;
    l->bytes = sm90_box_row_bytes(&m) * (uint32_t)sm90_box_rows(&m);
    l->copy = load_copy;
    char *p;
    for (int r = 0, from, to; r < sm90_box_rows(&m); r++)
        if (sm90_box_row(&m, b->c, r, &from, &to, &p) && !touch(self(), p, (size_t)(to - from) * m.size, READ, 1))
            l->copy = NULL; /* reported; the host must not read there */
    l->token = begin(self(), shared(dst), l->bytes, WRITE | ASYNC, 1);
    if (lands_early() && l->copy != NULL) {
        l->copy(l);
        l->copy = NULL;
    }
    if (!sm90_barrier_track(bar, l)) {
        if (l->token != NULL)
            finish(l->token, NULL, 0);
        free(b);
        free(l);
    }
}
