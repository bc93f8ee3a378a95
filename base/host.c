/* What this machine is. Pinning: a parallel region of a millisecond is over before the kernel has spread freshly woken
 * threads, so each thread is told its CPU once. */
#include "base/host.h"

#if defined(__x86_64__) && !defined(GQAKIT_NO_SIMD)
#include <cpuid.h>
#endif
#include <omp.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"

static const char *const isa_names[] = {"plain", "avx2", "avx512"};

static enum isa machine_isa(void)
{
#if defined(__x86_64__) && !defined(GQAKIT_NO_SIMD)
    unsigned a, b, c = 0, d;
    __builtin_cpu_init(); /* also asks whether the operating system saves the wide registers */
    int f16c = __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1u);
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !f16c)
        return ISA_PLAIN;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        return ISA_AVX512;
    return ISA_AVX2;
#else
    return ISA_PLAIN;
#endif
}

static enum isa chosen_isa;

static void choose_isa(void)
{
    enum isa best = machine_isa();
    const char *asked = getenv("GQAKIT_ISA");
    chosen_isa = best;
    if (!asked || !*asked)
        return;
    for (int i = ISA_PLAIN; i <= ISA_AVX512; i++)
        if (!strcmp(asked, isa_names[i])) {
            if (i > (int)best)
                log_warn("GQAKIT_ISA=%s: this machine can do %s at most", asked, isa_names[best]);
            else
                chosen_isa = (enum isa)i;
            return;
        }
    log_warn("GQAKIT_ISA=%s: expected plain, avx2 or avx512; using %s", asked, isa_names[best]);
}

enum isa host_isa(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, choose_isa);
    return chosen_isa;
}

int host_has_avx512_bf16(void)
{
#if defined(__x86_64__) && !defined(GQAKIT_NO_SIMD)
    return host_isa() >= ISA_AVX512 && __builtin_cpu_supports("avx512bf16");
#else
    return 0;
#endif
}

const char *host_isa_name(enum isa isa)
{
    CHECK((unsigned)isa <= ISA_AVX512);
    return isa_names[isa];
}

/* The value after the colon of the first line of a /proc file that begins with key; 0 when there is none. */
static int proc_value(const char *path, const char *key, char *out, size_t n)
{
    FILE *f = fopen(path, "re");
    char line[512];
    int found = 0;
    while (f && !found && fgets(line, sizeof line, f)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, key, strlen(key)) != 0 || !colon)
            continue;
        colon += 1 + strspn(colon + 1, " \t");
        colon[strcspn(colon, "\n")] = 0;
        snprintf(out, n, "%s", colon);
        found = 1;
    }
    if (f)
        fclose(f);
    return found;
}

static char cpu_name[128] = "unknown";

static void read_cpu_name(void)
{
    proc_value("/proc/cpuinfo", "model name", cpu_name, sizeof cpu_name);
}

const char *host_cpu_name(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, read_cpu_name);
    return cpu_name;
}

static cpu_set_t allowed; /* what we were started with, before any pinning */
static int allowed_count;
static pthread_once_t allowed_once = PTHREAD_ONCE_INIT;

static void read_allowed(void)
{
    CPU_ZERO(&allowed);
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0)
        allowed_count = CPU_COUNT(&allowed);
    if (allowed_count < 1) {
        CPU_SET(0, &allowed);
        allowed_count = 1;
    }
}

int host_cpus(void)
{
    pthread_once(&allowed_once, read_allowed);
    return allowed_count;
}

static size_t cache_bytes(int name, size_t otherwise)
{
    long n = sysconf(name);
    return n > 0 ? (size_t)n : otherwise;
}

size_t host_l1d_bytes(void)
{
    return cache_bytes(_SC_LEVEL1_DCACHE_SIZE, 32 << 10);
}

size_t host_l2_bytes(void)
{
    return cache_bytes(_SC_LEVEL2_CACHE_SIZE, 256 << 10);
}

/* A forked child would inherit the one CPU of its parent thread. */
static void unpin_child(void)
{
    sched_setaffinity(0, sizeof allowed, &allowed);
}

static int team;

void host_threads_set(int threads)
{
    int cpus = host_cpus();
    team = threads > 0 ? threads : cpus;
    omp_set_dynamic(0);
    omp_set_num_threads(team);
    const char *bind = getenv("OMP_PROC_BIND"), *places = getenv("OMP_PLACES");
    if ((bind && *bind) || (places && *places))
        return; /* the user has said where threads go */
    static int registered;
    if (!registered)
        registered = pthread_atfork(NULL, NULL, unpin_child) == 0;
    size_t order[CPU_SETSIZE];
    int n = 0;
    for (size_t i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &allowed))
            order[n++] = i;
    if (team > n)
        return; /* more threads than CPUs: the scheduler shares better than a fixed map */
#pragma omp parallel num_threads(team)
    {
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(order[omp_get_thread_num() % n], &one);
        sched_setaffinity(0, sizeof one, &one); /* a refusal only costs speed */
    }
}

int host_threads(void)
{
    return team ? team : omp_get_max_threads();
}

double host_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int64_t host_peak_rss(void)
{
    char text[64];
    return proc_value("/proc/self/status", "VmHWM", text, sizeof text) ? 1024 * strtoll(text, NULL, 10) : 0;
}

int64_t host_memory_total(void)
{
    return (int64_t)sysconf(_SC_PHYS_PAGES) * (int64_t)sysconf(_SC_PAGESIZE);
}
