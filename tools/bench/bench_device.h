/* What the benchmarks of one operation on a device share: the device, memory with random numbers in it, times between two waits for
 * the device. On the CPU (--device cpu) the same programs run in f32, which proves the programs, not the GPU. */
#ifndef GQAKIT_TOOLS_BENCH_DEVICE_H
#define GQAKIT_TOOLS_BENCH_DEVICE_H

#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "kernels/kernels.h"

struct bench {
    const struct backend *be;
    struct device *dev;
    struct arena memory;
    enum dtype type; /* of activations and matrices: bf16 on a GPU */
    int measuring;   /* bench_view carves nothing yet, counts */
};

static inline enum code bench_open(struct bench *b, const char *device)
{
    const struct device_options options = {0};
    memset(b, 0, sizeof *b);
    TRY(backend_find(device ? device : "auto", &b->be));
    TRY(b->be->device_open(&b->dev, &options));
    b->type = b->be->activation_dtype(b->dev, DT_BF16);
    return OK;
}

static inline void bench_close(struct bench *b)
{
    if (b->dev)
        b->be->device_close(b->dev);
}

/* Carving runs twice, as everywhere: bench_measure(), the bench_view calls, bench_reserve(), the same calls again. */
static inline void bench_measure(struct bench *b)
{
    memset(&b->memory, 0, sizeof b->memory);
    b->measuring = 1;
}

static inline enum code bench_reserve(struct bench *b)
{
    size_t bytes = b->memory.used;
    b->measuring = 0;
    memset(&b->memory, 0, sizeof b->memory);
    return b->be->device_alloc(b->dev, &b->memory, "a benchmark", bytes);
}

static inline void bench_release(struct bench *b)
{
    if (b->memory.base)
        b->be->device_free(b->dev, &b->memory);
}

/* Contiguous [n0,n1,n2,n3], from 256-byte boundaries. */
static inline struct view bench_view(struct bench *b, enum dtype type, int64_t n0, int64_t n1, int64_t n2, int64_t n3)
{
    size_t bytes = (size_t)(n0 * n1 * n2 * n3) * dtype_bytes(type);
    char *p = arena_carve(&b->memory, bytes + 256);
    p = p ? (char *)(((uintptr_t)p + 255) & ~(uintptr_t)255) : NULL;
    return view_4d(p, type, n0, n1, n2, n3);
}

/* About normal numbers (sum of uniforms), different in every element: a block of them is made here and laid down again and again. */
static inline enum code bench_random(struct bench *b, struct view v, uint64_t seed)
{
    enum { BLOCK = 1 << 20 };
    static float f32[BLOCK];
    static uint16_t bf16[BLOCK];
    const size_t size = dtype_bytes(v.dtype), n = (size_t)view_count(v);
    for (size_t i = 0; i < BLOCK; i++) {
        uint64_t h = (i + seed * 0x9e3779b97f4a7c15u + 1) * 0xbf58476d1ce4e5b9u;
        h = (h ^ h >> 31) * 0x94d049bb133111ebu;
        h ^= h >> 29;
        f32[i] = ((float)(h & 0xffff) + (float)(h >> 16 & 0xffff) + (float)(h >> 32 & 0xffff) + (float)(h >> 48)) / 37837.0f - 3.4641f;
        bf16[i] = bf16_from_f32(f32[i]);
    }
    size_t done = n < BLOCK ? n : BLOCK;
    TRY(b->be->device_copy(b->dev, v.p, v.dtype == DT_BF16 ? (const void *)bf16 : (const void *)f32, done * size));
    for (size_t more; done < n; done += more) { /* doubled on the device */
        more = n - done < done ? n - done : done;
        TRY(b->be->device_copy(b->dev, (char *)v.p + done * size, v.p, more * size));
    }
    return b->be->device_sync(b->dev);
}

typedef enum code bench_fn(struct bench *b, void *context);

static inline int bench_compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median seconds of one call, over `rounds` rounds of as many calls as take about `budget` seconds in all. Two calls come first. */
static inline enum code bench_time(struct bench *b, bench_fn *call, void *context, double budget, double *seconds)
{
    enum { ROUNDS = 7 };
    double times[ROUNDS], start;
    TRY(call(b, context));
    TRY(b->be->device_sync(b->dev));
    start = host_seconds();
    TRY(call(b, context));
    TRY(b->be->device_sync(b->dev));
    double once = host_seconds() - start, want = budget / ROUNDS / (once > 1e-7 ? once : 1e-7);
    int64_t calls = want < 1.0 ? 1 : want > 10000.0 ? 10000 : (int64_t)want;
    for (int r = 0; r < ROUNDS; r++) {
        start = host_seconds();
        for (int64_t i = 0; i < calls; i++)
            TRY(call(b, context));
        TRY(b->be->device_sync(b->dev));
        times[r] = (host_seconds() - start) / (double)calls;
    }
    qsort(times, ROUNDS, sizeof *times, bench_compare);
    *seconds = times[ROUNDS / 2];
    return OK;
}

#endif
