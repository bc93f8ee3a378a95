/* The machine: instruction set, threads, clock, names for reports. */
#ifndef GQAKIT_BASE_HOST_H
#define GQAKIT_BASE_HOST_H

#include <stddef.h>
#include <stdint.h>
#include "error.h"

#ifdef __cplusplus
extern "C" {
#endif

#define GQAKIT_VERSION "0.1.0"

enum isa { ISA_PLAIN, ISA_AVX2 /* with FMA and F16C */, ISA_AVX512 /* F BW VL DQ */ };
/* Best the machine can, or less if the environment's GQAKIT_ISA says plain|avx2|avx512. Read once. */
enum isa host_isa(void);
int host_has_avx512_bf16(void); /* 0 when host_isa() is below AVX-512 */
const char *host_isa_name(enum isa isa);
const char *host_cpu_name(void);    /* model name of /proc/cpuinfo, or "unknown" */
int host_cpus(void);                /* CPUs this process may use (sched_getaffinity) */
size_t host_l1d_bytes(void);        /* per core; 32 KiB when unknown */
size_t host_l2_bytes(void);         /* per core; 256 KiB when unknown */
/* Sets the OpenMP team (0 = host_cpus()) and pins thread i to the i-th allowed CPU. Call once, before any parallel region. */
/* Children made by fork get the whole set back (posix_spawn, system and popen children stay on one CPU). With OMP_PROC_BIND or
 * OMP_PLACES in the environment nothing is pinned. */
void host_threads_set(int threads);
int host_threads(void);
double host_seconds(void);          /* monotonic clock */
int64_t host_peak_rss(void);        /* bytes; VmHWM */
int64_t host_memory_total(void);    /* bytes */

#ifdef __cplusplus
}
#endif
#endif
