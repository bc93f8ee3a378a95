/* Memory of the modelled device. Two address ranges are reserved once: shared memory (one block's, with guards) and device memory
 * (allocations one after the other, never at the same place again). Guards are ordinary pages, so that a faulty kernel goes on after
 * the report. Device memory has a byte of state for each byte, and 16 bytes per 4 for the last write and read (shadow.cpp); pages of the
 * shadow exist only where it was touched. */
#include <stdio.h>
#include <sys/mman.h>

#include "state.h"

extern "C" char _end;

namespace simt {

#define SHARED_GUARD ((size_t)1 << 20)
#define GLOBAL_BYTES ((size_t)64 << 30)
#define GLOBAL_GUARD ((size_t)4096)
enum { OUTSIDE, UNWRITTEN, WRITTEN, FREED }; /* state of a byte */

struct allocation { char *p; size_t bytes; int freed; };

char *shared_memory;
const void *access_pc;
static uint8_t shared_state[SIMT_SHARED_MAX + 16];
static char *global;           /* device memory */
static uint8_t *global_state;  /* by byte */
static uint64_t *global_cells; /* two by 4 bytes */
static size_t global_used = GLOBAL_GUARD;
static struct allocation *allocations;
static size_t n_allocations, max_allocations;

static void *map(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(p != MAP_FAILED);
    return p;
}

static void reserve()
{
    if (global != NULL)
        return;
    global = (char *)map(GLOBAL_BYTES);
    global_state = (uint8_t *)map(GLOBAL_BYTES);
    global_cells = (uint64_t *)map(GLOBAL_BYTES * 4);
    char *s = (char *)map(2 * SHARED_GUARD + (1 << 20));
    shared_memory = (char *)(((uintptr_t)s + SHARED_GUARD + 1023) & ~(uintptr_t)1023);
}

int is_shared_region(const void *p) { return (size_t)((const char *)p - shared_memory) + SHARED_GUARD < 2 * SHARED_GUARD; }
int is_global_region(const void *p) { return global != NULL && (size_t)((const char *)p - global) < GLOBAL_BYTES; }

void memory_block_begin()
{
    reserve();
    memset(shared_memory, 0xff, now.smem); /* NaN in every type */
    memset(shared_state, UNWRITTEN, now.smem);
}

void *shared(uint32_t address) { return shared_memory + ((int64_t)address - SIMT_SHARED_BASE); }
uint32_t shared_address(const void *p) { return (uint32_t)((const char *)p - shared_memory) + SIMT_SHARED_BASE; }

/* The allocation that holds p, or the nearest below or, failing that, above. */
static const struct allocation *nearest(const char *p)
{
    const struct allocation *best = NULL;
    for (size_t i = 0; i < n_allocations; i++) { /* in order of address */
        const struct allocation *a = &allocations[i];
        if (best != NULL && a->p > p && (size_t)(a->p - p) > GLOBAL_GUARD / 2)
            break;
        best = a;
    }
    return best;
}

const char *place(const void *p)
{
    static char text[4][128];
    static int turn;
    char *out = text[turn++ & 3];
    const char *c = (const char *)p;
    const size_t size = sizeof text[0];
    if (is_shared_region(p)) {
        const long long at = c - shared_memory;
        snprintf(out, size, "shared%s0x%llx%s", at < 0 ? "-" : "+", at < 0 ? -at : at, at < 0 || (size_t)at >= now.smem ? " (outside)" : "");
    } else if (is_global_region(p)) {
        const struct allocation *a = nearest(c);
        if (a == NULL)
            snprintf(out, size, "device memory, nothing allocated");
        else
            snprintf(out, size, "allocation of %zu bytes %+lld%s", a->bytes, (long long)(c - a->p),
                     a->freed ? " (freed)" : c < a->p || c >= a->p + a->bytes ? " (outside)" : "");
    } else
        snprintf(out, size, "%p", p);
    return out;
}

static void not_device_memory(struct fiber *who, const char *c, size_t bytes, unsigned flags)
{
    if (c >= who->stack && c < who->stack + STACK_BYTES)
        return;
    if (c >= now.closure && c < now.closure + now.closure_bytes) /* the arguments of the kernel */
        return;
    if (c >= &__executable_start && c < &_end) /* constants and tables of the program */
        return;
    const int other = c >= stacks && c < stacks + SIMT_WARPS * SIMT_LANES * STACK_BYTES;
    fault(SIMT_BOUNDS, who, "%s of %zu bytes at %p, %s", flags & WRITE ? "write" : "read", bytes, (const void *)c,
          other ? "the private memory of another thread" : c == NULL || (size_t)c < 65536 ? "a null pointer" : "which is no device memory");
}

static int check_state(struct fiber *who, const uint8_t *state, const char *c, size_t bytes, unsigned flags)
{
    for (size_t i = 0; i < bytes; i++)
        if (state[i] == UNWRITTEN) {
            fault(SIMT_UNINITIALISED, who, "read of %zu bytes at %s: byte %zu was never written", bytes, place(c), i);
            return 0;
        }
    (void)flags;
    return 1;
}

int touch(struct fiber *who, const void *p, size_t bytes, unsigned flags, size_t align)
{
    const char *c = (const char *)p;
    if (bytes == 0)
        return 1;
    if (is_shared_region(p)) {
        const size_t at = (size_t)(c - shared_memory);
        if (at >= now.smem || bytes > now.smem - at) {
            fault(SIMT_BOUNDS, who, "%s of %zu bytes at %s; the block has %zu bytes of shared memory", flags & WRITE ? "write" : "read", bytes, place(p), now.smem);
            return 0;
        }
        if (((uintptr_t)p & (align - 1)) != 0)
            fault(SIMT_MISALIGNED, who, "access of %zu bytes at %s, not a multiple of %zu", bytes, place(p), align);
        if (flags & WRITE)
            memset(shared_state + at, WRITTEN, bytes);
        shadow_shared(who, at, bytes, flags);
        if (!(flags & WRITE) || (flags & ATOMIC)) {
            check_state(who, shared_state + at, c, bytes, flags);
            memset(shared_state + at, WRITTEN, bytes); /* reported once */
        }
        return 1;
    }
    if (is_global_region(p)) {
        const size_t at = (size_t)(c - global);
        uint8_t *state = global_state + at;
        int inside = 1;
        for (size_t i = 0; i < bytes; i++)
            inside &= state[i] == UNWRITTEN || state[i] == WRITTEN;
        if (!inside) {
            fault(SIMT_BOUNDS, who, "%s of %zu bytes at %s", flags & WRITE ? "write" : "read", bytes, place(p));
            return 0;
        }
        if (((uintptr_t)p & (align - 1)) != 0)
            fault(SIMT_MISALIGNED, who, "access of %zu bytes at %s, not a multiple of %zu", bytes, place(p), align);
        if (!(flags & WRITE) || (flags & ATOMIC))
            check_state(who, state, c, bytes, flags);
        if (flags & WRITE)
            memset(state, WRITTEN, bytes);
        shadow_global(who, global_cells, at, bytes, flags);
        return 1;
    }
    not_device_memory(who, c, bytes, flags);
    return (uintptr_t)c >= 65536;
}

void load(struct fiber *who, void *to, const void *p, size_t bytes, size_t align)
{
    if (touch(who, p, bytes, READ, align))
        memcpy(to, p, bytes);
    else
        memset(to, 0, bytes);
}

void store(struct fiber *who, void *p, const void *from, size_t bytes, size_t align)
{
    if (touch(who, p, bytes, WRITE, align))
        memcpy(p, from, bytes);
}

} // namespace simt

using namespace simt;

void *simt_alloc(size_t bytes, int initialised)
{
    reserve();
    const size_t rounded = (bytes + 255) & ~(size_t)255;
    if (global_used + rounded + 2 * GLOBAL_GUARD > GLOBAL_BYTES)
        return NULL;
    if (n_allocations == max_allocations) {
        max_allocations = 2 * max_allocations + 64;
        allocations = (struct allocation *)realloc(allocations, max_allocations * sizeof allocations[0]);
        CHECK(allocations != NULL);
    }
    char *p = global + global_used;
    /* Whole pages, so that simt_free can give them back. */
    global_used = (global_used + rounded + GLOBAL_GUARD + 4095) & ~(size_t)4095;
    memset(global_state + (p - global), initialised ? WRITTEN : UNWRITTEN, bytes);
    if (!initialised)
        memset(p, 0xff, bytes);
    allocations[n_allocations++] = {p, bytes, 0};
    return p;
}

void simt_free(void *p)
{
    if (p == NULL)
        return;
    for (size_t i = n_allocations; i-- > 0;) {
        struct allocation *a = &allocations[i];
        if (a->p != p)
            continue;
        CHECK(!a->freed);
        a->freed = 1;
        const size_t at = (size_t)(a->p - global), end = (at + a->bytes + 4095) & ~(size_t)4095;
        madvise(global + at, end - at, MADV_DONTNEED);
        madvise(global_state + at, end - at, MADV_DONTNEED);
        madvise(global_cells + at / 2, (end - at) * 4, MADV_DONTNEED);
        return;
    }
    CHECK(!"simt_free: not an allocation");
}

static int in_one_allocation(const void *p, size_t bytes)
{
    for (size_t i = 0; i < n_allocations; i++) {
        const struct allocation *a = &allocations[i];
        if (!a->freed && (const char *)p >= a->p && (const char *)p + bytes <= a->p + a->bytes)
            return 1;
    }
    return 0;
}

int simt::host_touch(const void *p, size_t bytes, int write)
{
    if (bytes == 0)
        return 1;
    if (!is_global_region(p) || !in_one_allocation(p, bytes)) {
        fault(SIMT_BOUNDS, NULL, "%s of %zu bytes at %s", write ? "write" : "read", bytes, place(p));
        return is_global_region(p) && (const char *)p + bytes <= global + GLOBAL_BYTES;
    }
    uint8_t *state = global_state + ((const char *)p - global);
    if (write)
        memset(state, WRITTEN, bytes);
    else if (memchr(state, UNWRITTEN, bytes) != NULL)
        fault(SIMT_UNINITIALISED, NULL, "read of %zu bytes at %s: byte %zu was never written", bytes, place(p),
              (size_t)((uint8_t *)memchr(state, UNWRITTEN, bytes) - state));
    return 1;
}

/* The host may look at bytes that nobody wrote: tests do, to see that. */
void simt_copy(void *dst, const void *src, size_t bytes)
{
    if (bytes == 0)
        return;
    now.name = "a copy";
    if (is_global_region(src) && !in_one_allocation(src, bytes))
        fault(SIMT_BOUNDS, NULL, "copy of %zu bytes from %s", bytes, place(src));
    if (is_global_region(dst))
        host_touch(dst, bytes, 1);
    memmove(dst, src, bytes);
}

void simt_forget(void *p, size_t bytes)
{
    CHECK(is_global_region(p) && in_one_allocation(p, bytes));
    memset(global_state + ((char *)p - global), UNWRITTEN, bytes);
}
