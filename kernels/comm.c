/* One process talking to nobody: every collective is already done. */
#include "kernels.h"

#include <stdlib.h>

static enum code single_all_reduce(struct comm *c, double *values, int n)
{
    (void)c, (void)values, (void)n;
    return OK;
}

static enum code single_exchange(struct comm *c, float *values, int64_t n)
{
    (void)c, (void)values, (void)n;
    return OK;
}

static enum code single_broadcast(struct comm *c, void *bytes, size_t n, int root)
{
    (void)c, (void)bytes, (void)n, (void)root;
    return OK;
}

static void single_abort(struct comm *c)
{
    (void)c;
    abort();
}

struct comm *comm_single(void)
{
    static struct comm single = {.size = 1, .rank = 0, .all_reduce = single_all_reduce, .reduce_scatter = single_exchange,
                                 .all_gather = single_exchange, .broadcast = single_broadcast, .abort = single_abort};
    return &single;
}
