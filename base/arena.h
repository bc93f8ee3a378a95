/* One allocation, many named pointers. The same carving code runs twice: with a NULL base it measures, then the arena is
 * reserved once and it carves. Every carve is 64-byte aligned and its padding is zero. Under AddressSanitizer the gaps
 * between carves are poisoned redzones, so an overrun of one tensor into the next is seen. */
#ifndef GQAKIT_BASE_ARENA_H
#define GQAKIT_BASE_ARENA_H

#include <stddef.h>
#include "error.h"

#ifdef __cplusplus
extern "C" {
#endif

struct arena {
    char *base;  /* NULL while measuring */
    size_t used; /* bytes carved so far, including alignment and redzones */
    size_t capacity;
    const char *name; /* for messages: "gradients" */
    int host;         /* 1: the host may touch the bytes (arena_reserve); 0: device memory, which carving only counts in */
};

/* Zeroed pages (transparent huge pages asked for). used becomes 0. ERR_MEMORY names the arena and the bytes. */
enum code arena_reserve(struct arena *a, const char *name, size_t bytes) MUST_USE;
/* Returns NULL while measuring; CHECKs that a reserved arena is large enough. */
void *arena_carve(struct arena *a, size_t bytes);
/* Forgets what was carved after the first `used` bytes (a mark taken from a->used). */
void arena_rewind(struct arena *a, size_t used);
void arena_release(struct arena *a);

#ifdef __cplusplus
}
#endif
#endif
