/* The CPU as a device: its team, instruction set and workspaces; memory, copies and checks. */
#include "cpu.h"
#include "gemm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct loops *cpu_loops(enum isa isa)
{
#ifndef GQAKIT_NO_SIMD
    if (isa == ISA_AVX512)
        return &loops_avx512;
    if (isa == ISA_AVX2)
        return &loops_avx2;
#endif
    (void)isa;
    return &loops_plain;
}

enum code cpu_device_open(struct device **dev, const struct device_options *options)
{
    int threads = options != NULL && options->threads > 0 ? options->threads : host_threads();
    struct device *d = calloc(1, sizeof *d);
    if (d == NULL)
        return fail(ERR_MEMORY, "cannot open the CPU: out of memory");
    d->threads = threads;
    d->isa = host_isa();
    d->loops = cpu_loops(d->isa);
    size_t tiles = (size_t)threads * CPU_TILE_BYTES, gemm = 0;
#ifndef GQAKIT_NO_SIMD
    gemm = d->isa == ISA_AVX512 ? cpu_gemm_avx512_bytes(threads) : 0;
#endif
    enum code code = arena_reserve(&d->work, "the CPU's workspace", tiles + CPU_SHARED_BYTES + gemm + 1024);
    if (code != OK) {
        free(d);
        return code;
    }
    d->tiles = arena_carve(&d->work, tiles);
    d->shared = arena_carve(&d->work, CPU_SHARED_BYTES);
    d->gemm = gemm ? arena_carve(&d->work, gemm) : NULL;
    snprintf(d->name, sizeof d->name, "cpu %s, %d thread%s", d->loops->name, threads, threads == 1 ? "" : "s");
    *dev = d;
    return OK;
}

void cpu_device_close(struct device *dev)
{
    if (dev == NULL)
        return;
    arena_release(&dev->work);
    free(dev);
}

enum code cpu_device_alloc(struct device *dev, struct arena *a, const char *name, size_t bytes)
{
    (void)dev;
    return arena_reserve(a, name, bytes);
}

void cpu_device_free(struct device *dev, struct arena *a)
{
    (void)dev;
    arena_release(a);
}

enum code cpu_device_copy(struct device *dev, void *dst, const void *src, size_t bytes)
{
    (void)dev;
    if (bytes > 0)
        memcpy(dst, src, bytes);
    return OK;
}

enum code cpu_device_sync(struct device *dev)
{
    (void)dev;
    return OK;
}

/* The CPU records nothing: its operations are calls already. */
enum code cpu_graph_begin(struct device *dev, int *recording)
{
    (void)dev;
    *recording = 0;
    return OK;
}

enum code cpu_graph_end(struct device *dev, struct graph **graph)
{
    (void)dev;
    *graph = NULL;
    return OK;
}

enum code cpu_graph_run(struct device *dev, struct graph *graph)
{
    (void)dev, (void)graph;
    return fail(ERR_INTERNAL, "graph_run: the CPU backend records no graphs");
}

void cpu_graph_free(struct device *dev, struct graph *graph)
{
    (void)dev, (void)graph;
}

enum dtype cpu_activation_dtype(struct device *dev, enum dtype matrices)
{
    (void)dev, (void)matrices;
    return DT_F32;
}

const char *cpu_device_name(struct device *dev) { return dev->name; }

enum code cpu_check(const char *op, const char *name, struct view x, enum dtype dtype, int nd, int64_t n0, int64_t n1, int optional)
{
    if (x.p == NULL)
        return optional ? OK : fail(ERR_UNSUPPORTED, "%s: %s is missing", op, name);
    if (x.dtype != dtype)
        return fail(ERR_UNSUPPORTED, "%s: %s is %s; the CPU backend takes %s here", op, name, dtype_name(x.dtype), dtype_name(dtype));
    if (x.nd != nd)
        return fail(ERR_UNSUPPORTED, "%s: %s has %d axes, must have %d", op, name, x.nd, nd);
    const int64_t want[2] = {n0, n1};
    for (int i = 0; i < nd && i < 2; i++)
        if (want[i] >= 0 && x.n[i] != want[i])
            return fail(ERR_UNSUPPORTED, "%s: axis %d of %s is %lld, must be %lld", op, i, name, (long long)x.n[i], (long long)want[i]);
    if (x.n[nd - 1] > 1 && x.s[nd - 1] != 1)
        return fail(ERR_UNSUPPORTED, "%s: the last axis of %s has stride %lld, must be 1", op, name, (long long)x.s[nd - 1]);
    return OK;
}
