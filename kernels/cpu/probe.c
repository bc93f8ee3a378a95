/* What the machine can do in this run: the ceilings that measured speeds are compared with. */
#include "cpu.h"

#include <omp.h>

#define READ_BYTES ((int64_t)256 << 20) /* far beyond any last cache we know a share of */
#define READ_ROUNDS 6
#define FMA_SECONDS 0.02
#define FMA_ROUNDS 5

double cpu_probe_bandwidth(struct device *dev)
{
    struct arena a;
    if (arena_reserve(&a, "the bandwidth probe", READ_BYTES + 4096) != OK)
        return 0;
    float *x = arena_carve(&a, READ_BYTES);
    const int64_t n = READ_BYTES / 4;
    double best = 0;
    volatile float keep = 0;
    for (int round = 0; round <= READ_ROUNDS; round++) { /* round 0 makes the pages */
        double start = host_seconds();
        float total = 0;
#pragma omp parallel num_threads(dev->threads) reduction(+ : total)
        {
            struct range r = cpu_range(n, 256, omp_get_num_threads(), omp_get_thread_num());
            if (round == 0)
                dev->loops->fill(x + r.lo, 1, r.hi - r.lo);
            else
                total += dev->loops->read(x + r.lo, r.hi - r.lo);
        }
        keep = keep + total;
        double rate = (double)READ_BYTES / (host_seconds() - start);
        if (round > 0 && rate > best)
            best = rate;
    }
    arena_release(&a);
    return best;
}

double cpu_probe_flops(struct device *dev)
{
    double best = 0;
    int64_t loops = 1 << 16;
    for (int round = 0; round < FMA_ROUNDS; round++) {
        double flops = 0, start = host_seconds();
#pragma omp parallel num_threads(dev->threads) reduction(+ : flops)
        {
            float keep = 1;
            flops += dev->loops->fma(loops, &keep);
            if (keep == 0.5f)
                flops += 1; /* never: keeps the result alive */
        }
        double seconds = host_seconds() - start;
        best = flops / seconds > best ? flops / seconds : best;
        loops = 1 + (int64_t)((double)loops * FMA_SECONDS / seconds);
    }
    return best;
}
