/* See faults.h. The linker sends our own objects' malloc and its relatives here (--wrap in the Makefile), whatever the allocator beneath, so this
 * also works under AddressSanitizer; jansson asks base/json.c. Other libraries keep theirs. */
#include <stdatomic.h>

#include "faults.h"

static atomic_long calls;
static long fault_at;
static int all_after;

void fault_memory_arm(long at, int all)
{
    atomic_store(&calls, 0);
    fault_at = at;
    all_after = all;
}

long fault_memory_calls(void) { return atomic_load(&calls); }

static int refused(void)
{
#ifdef GQAKIT_TESTS_COVERAGE_H
    if (coverage_dumping)
        return 0;
#endif
    long k = atomic_fetch_add(&calls, 1) + 1;
    return fault_at > 0 && (k == fault_at || (all_after && k > fault_at));
}

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
char *__real_strdup(const char *s);
char *__real_strndup(const char *s, size_t n);
int __real_posix_memalign(void **p, size_t alignment, size_t n);
void *__real_aligned_alloc(size_t alignment, size_t n);
FILE *__real_open_memstream(char **p, size_t *n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
char *__wrap_strdup(const char *s);
char *__wrap_strndup(const char *s, size_t n);
int __wrap_posix_memalign(void **p, size_t alignment, size_t n);
void *__wrap_aligned_alloc(size_t alignment, size_t n);
FILE *__wrap_open_memstream(char **p, size_t *n);
int __wrap_asprintf(char **p, const char *format, ...);
int __wrap___asprintf_chk(char **p, int flag, const char *format, ...);

void *__wrap_malloc(size_t n) { return refused() ? NULL : __real_malloc(n); }
void *__wrap_calloc(size_t n, size_t size) { return refused() ? NULL : __real_calloc(n, size); }
void *__wrap_realloc(void *p, size_t n) { return refused() ? NULL : __real_realloc(p, n); }
char *__wrap_strdup(const char *s) { return refused() ? NULL : __real_strdup(s); }
char *__wrap_strndup(const char *s, size_t n) { return refused() ? NULL : __real_strndup(s, n); }
int __wrap_posix_memalign(void **p, size_t alignment, size_t n) { return refused() ? 12 /* ENOMEM */ : __real_posix_memalign(p, alignment, n); }
void *__wrap_aligned_alloc(size_t alignment, size_t n) { return refused() ? NULL : __real_aligned_alloc(alignment, n); }
FILE *__wrap_open_memstream(char **p, size_t *n) { return refused() ? NULL : __real_open_memstream(p, n); }

static int print(char **p, const char *format, va_list args)
{
    *p = NULL; /* as glibc since 2.36; what it was before is undefined */
    return refused() ? -1 : vasprintf(p, format, args);
}

int __wrap_asprintf(char **p, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = print(p, format, args);
    va_end(args);
    return n;
}

int __wrap___asprintf_chk(char **p, int flag, const char *format, ...)
{
    va_list args;
    (void)flag;
    va_start(args, format);
    int n = print(p, format, args);
    va_end(args);
    return n;
}
