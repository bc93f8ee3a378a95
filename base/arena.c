/* Layout of a carve: [payload][zero padding to 64][redzone, ASan builds only]. The padding may be read (full vector
 * loads), the redzone may not. */
#include "base/arena.h"

#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#define ARENA_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ARENA_ASAN 1
#endif
#endif

#ifdef ARENA_ASAN
#include <sanitizer/asan_interface.h>
enum { REDZONE = 128 };
#else
enum { REDZONE = 0 };
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

enum { ALIGN = 64 };

enum code arena_reserve(struct arena *a, const char *name, size_t bytes)
{
    void *p = mmap(NULL, bytes ? bytes : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return fail(ERR_MEMORY, "no memory: cannot reserve %.1f MiB for %s", (double)bytes / 1048576.0, name);
    madvise(p, bytes ? bytes : 1, MADV_HUGEPAGE);
    a->base = p;
    a->used = 0;
    a->capacity = bytes;
    a->name = name;
    a->host = 1;
    ASAN_POISON_MEMORY_REGION(a->base, a->capacity);
    return OK;
}

void *arena_carve(struct arena *a, size_t bytes)
{
    CHECK(bytes <= SIZE_MAX / 2 && a->used <= SIZE_MAX / 2 - ALIGN - REDZONE);
    size_t padded = (bytes + ALIGN - 1) / ALIGN * ALIGN, start = a->used;
    a->used += padded + REDZONE;
    if (!a->base)
        return NULL;
    CHECK(a->used <= a->capacity);
    char *p = a->base + start;
    if (!a->host)
        return p;
    ASAN_UNPOISON_MEMORY_REGION(p, padded);
    memset(p + bytes, 0, padded - bytes); /* after a rewind the bytes may be old */
    return p;
}

void arena_rewind(struct arena *a, size_t used)
{
    CHECK(used <= a->used);
    if (a->base && a->host)
        ASAN_POISON_MEMORY_REGION(a->base + used, a->used - used);
    a->used = used;
}

void arena_release(struct arena *a)
{
    if (a->base) {
        ASAN_UNPOISON_MEMORY_REGION(a->base, a->capacity);
        munmap(a->base, a->capacity ? a->capacity : 1);
    }
    a->base = NULL;
    a->used = a->capacity = 0;
    a->host = 0;
}
