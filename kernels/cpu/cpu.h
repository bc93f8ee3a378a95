/* Private to kernels/cpu: the open device, argument checks and the cutting of work into ranges.
 * The workspaces are reserved when the device is opened (address space only; pages appear when first used), so that no
 * operation allocates. */
#ifndef GQAKIT_KERNELS_CPU_CPU_H
#define GQAKIT_KERNELS_CPU_CPU_H

#include "kernels/kernels.h"
#include "loops.h"

#define CPU_TILE_BYTES ((size_t)4 << 20)    /* per thread */
#define CPU_SHARED_BYTES ((size_t)32 << 20) /* one per device */
#define CPU_SERIAL_BYTES 65536              /* work that touches less than this is not worth waking the team */

struct device {
    int threads;
    enum isa isa;
    const struct loops *loops;
    struct arena work; /* threads tiles, then the shared part, then packed operands of our GEMM (AVX-512 only) */
    char *tiles, *shared, *gemm;
    char name[64];
};

const struct loops *cpu_loops(enum isa isa);
static inline void *cpu_tile(const struct device *dev, int thread) { return dev->tiles + (size_t)thread * CPU_TILE_BYTES; }
/* Team for work that touches about this many bytes. */
static inline int cpu_team(const struct device *dev, int64_t bytes) { return bytes < CPU_SERIAL_BYTES ? 1 : dev->threads; }

/* Part i of `parts` nearly equal ranges of [0, n), cut at multiples of `align`. */
struct range { int64_t lo, hi; };
static inline struct range cpu_range(int64_t n, int64_t align, int parts, int i)
{
    int64_t units = (n + align - 1) / align, lo = units * i / parts * align, hi = units * (i + 1) / parts * align;
    struct range r;
    r.lo = lo < n ? lo : n;
    r.hi = hi < n ? hi : n;
    return r;
}

/* Refusals, all ERR_UNSUPPORTED: wrong dtype, axes, extents (-1: any) or a last stride that is not 1. An absent view is
 * refused unless `optional`. */
enum code cpu_check(const char *op, const char *name, struct view x, enum dtype dtype, int nd, int64_t n0, int64_t n1, int optional) MUST_USE;

/* Plain GEMM on this device's team, ours with AVX-512, else the BLAS: c [M,N] = alpha op(a) op(b) + beta c, row-major f32. */
void cpu_sgemm(const struct device *dev, int trans_a, int trans_b, int64_t M, int64_t N, int64_t K, float alpha, const float *a, int64_t lda,
               const float *b, int64_t ldb, float beta, float *c, int64_t ldc);

#endif
