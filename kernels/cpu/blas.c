/* OpenBLAS: the one place that calls it, and its choice of kernels. It chooses when it is loaded, before any line of ours, and
 * by CPU family; a family newer than the library falls back to AVX2 kernels at half the speed. The environment is the only
 * way to tell it otherwise, and its constructor reads it before ours could write it: hence the second exec. */
#include "cpu.h"
#include "gemm.h"

#include <cblas.h>
#include <errno.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#define OURS_FROM 1e6 /* multiply-adds from which our GEMM is used: below, packing and waking the team are not worth it */
#define BOOTED "GQAKIT_BOOTED" /* guards against executing for ever */

static enum isa core_isa(const char *core)
{
    static const char *const avx512[] = {"SkylakeX", "Cooperlake", "SapphireRapids"}, *const avx2[] = {"Haswell", "Zen", "Excavator"};
    for (size_t i = 0; i < sizeof avx512 / sizeof *avx512; i++)
        if (strcmp(core, avx512[i]) == 0)
            return ISA_AVX512;
    for (size_t i = 0; i < sizeof avx2 / sizeof *avx2; i++)
        if (strcmp(core, avx2[i]) == 0)
            return ISA_AVX2;
    return ISA_PLAIN;
}

/* OpenBLAS maps a work buffer of 128 MiB at its first call, and when it gets none tries again for ever. Under a limit of the address space (ulimit -v)
 * that is found out here, and the buffer of the first thread taken (blas_take) before we need memory ourselves. */
static int limited(struct rlimit *limit) { return getrlimit(RLIMIT_AS, limit) == 0 && limit->rlim_cur != RLIM_INFINITY; }

static void blas_room(void)
{
    enum { ROOM = 160 << 20 };
    struct rlimit limit;
    if (!limited(&limit))
        return;
    void *p = mmap(NULL, ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        exit(fail_exit(program_invocation_short_name, fail(ERR_MEMORY, "the address space is limited to %lld MiB (ulimit -v), which leaves no memory for the 128 MiB that "
                                                           "OpenBLAS takes; raise the limit", (long long)(limit.rlim_cur >> 20))));
    munmap(p, ROOM);
}

static void blas_take(void)
{
    enum { N = 128 }; /* more than the small forms of 0.3.21, up to a product of 1e6, which need no buffer */
    struct rlimit limit;
    double *a = limited(&limit) ? calloc(3 * N * N, sizeof *a) : NULL;
    if (a)
        cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, N, N, N, 1, a, N, a + N * N, N, 0, a + 2 * N * N, N);
    free(a);
}

void kernels_boot(int argc, char **argv)
{
    (void)argc;
    blas_room();
    const char *booted = getenv(BOOTED), *asked = getenv("OPENBLAS_CORETYPE");
    if (booted != NULL) {
        unsetenv(BOOTED); /* children decide for themselves */
        blas_take();
        return;
    }
    if ((asked != NULL && *asked) || host_isa() == ISA_PLAIN || core_isa(openblas_get_corename()) >= host_isa()) {
        blas_take();
        return;
    }
    char path[4096];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    if (n <= 0) {
        blas_take();
        return;
    }
    path[n] = 0;
    setenv("OPENBLAS_CORETYPE", host_isa() == ISA_AVX512 ? "SkylakeX" : "Haswell", 1);
    setenv(BOOTED, "1", 1);
    execv(path, argv); /* on failure go on with what there is */
    unsetenv(BOOTED);
    unsetenv("OPENBLAS_CORETYPE");
    blas_take();
}

void cpu_sgemm(const struct device *dev, int trans_a, int trans_b, int64_t M, int64_t N, int64_t K, float alpha, const float *a, int64_t lda,
               const float *b, int64_t ldb, float beta, float *c, int64_t ldc)
{
#ifndef GQAKIT_NO_SIMD
    if (dev->gemm != NULL && K > 0 && (double)M * (double)N * (double)K >= OURS_FROM) {
        const struct gemm_job job = {c, a, b, M, N, K, lda, ldb, ldc, trans_a, trans_b, dev->threads, alpha, beta, (float *)(void *)dev->gemm};
        cpu_gemm_avx512(&job);
        return;
    }
#endif
    int before = omp_get_max_threads(); /* OpenBLAS follows it at every call */
    if (before != dev->threads)
        omp_set_num_threads(dev->threads);
    cblas_sgemm(CblasRowMajor, trans_a ? CblasTrans : CblasNoTrans, trans_b ? CblasTrans : CblasNoTrans, (blasint)M, (blasint)N, (blasint)K, alpha,
                a, (blasint)lda, b, (blasint)ldb, beta, c, (blasint)ldc);
    if (before != dev->threads)
        omp_set_num_threads(before);
}
