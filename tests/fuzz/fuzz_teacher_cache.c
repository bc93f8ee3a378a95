/* A teacher cache, finished or interrupted: opened, every window read, and scanned for whole frames. The hashes are made right first, of the bytes as
 * they are, so that what stands behind them is reached; an input whose first byte is not 'g' is taken without that. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "data/teacher_format.h"

static int file_of(const uint8_t *data, size_t n)
{
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    CHECK(fd >= 0 && write(fd, data, n) == (ssize_t)n);
    return fd;
}

static void repair_frames(uint8_t *p, size_t n, size_t index, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint8_t *e = p + index + i * TEACHER_ENTRY;
        uint64_t at = teacher_get(e + 8, 8), bytes = teacher_get(e + 16, 8);
        if (at >= TEACHER_FRAME && at <= n && bytes <= n - at)
            teacher_put(e + 24, teacher_frame_hash((int64_t)teacher_get(e, 8), p + at, (int64_t)bytes), 8);
    }
    for (size_t at = TEACHER_HEADER; at + TEACHER_FRAME <= n; at++) { /* frames of an interrupted one */
        uint64_t bytes = teacher_get(p + at + 4, 4);
        if (teacher_get(p + at, 4) == TEACHER_FRAME_MAGIC && bytes <= n - at - TEACHER_FRAME)
            teacher_put(p + at + 16, teacher_frame_hash((int64_t)teacher_get(p + at + 8, 8), p + at + TEACHER_FRAME, (int64_t)bytes), 8);
    }
}

static void repair(uint8_t *p, size_t n)
{
    if (n < TEACHER_HEADER || p[0] != 'g')
        return;
    uint8_t *t = n >= TEACHER_HEADER + TEACHER_TRAILER ? p + n - TEACHER_TRAILER : NULL;
    uint64_t at = t ? teacher_get(t + 8, 8) : 0, end = n - TEACHER_TRAILER, count = t ? teacher_get(t + 16, 8) : 0;
    int index = t && at <= end && count == (end - at) / TEACHER_ENTRY;
    repair_frames(p, n, index ? at : 0, index ? count : 0);
    if (index)
        teacher_put(t + 24, hash64(p + at, end - at), 8);
    if (t && index)
        teacher_put(t + 32, hash64(t, 32), 8);
    uint64_t facts = teacher_get(p + 20, 4);
    if (facts > n - TEACHER_HEADER)
        return;
    teacher_put(p + 32, 0, 8);
    teacher_put(p + 32, hash64(p, TEACHER_HEADER + facts), 8);
}

static void read_all(struct teacher_cache *c)
{
    const struct teacher_about *a = &c->about;
    size_t entries = (size_t)(a->T * a->K);
    int32_t *ids = malloc(entries * sizeof *ids);
    float *logp = malloc(entries * sizeof *logp);
    CHECK(ids && logp);
    for (int64_t i = 0; i < c->n; i++) {
        if (teacher_cache_read(c, c->entry[i].window, ids, logp) != OK)
            continue;
        for (size_t k = 0; k < entries; k++)
            CHECK(ids[k] >= -1 && ids[k] < a->V && logp[k] <= 0);
    }
    free(ids);
    free(logp);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct teacher_cache *c;
    uint8_t *copy = malloc(n + 1);
    CHECK(copy);
    memcpy(copy, data, n);
    repair(copy, n);
    int fd = file_of(copy, n);
    free(copy);
    if (teacher_open_header(&c, fd, "fuzz") != OK)
        return 0;
    if (teacher_read_index(c) == OK) {
        if (c->n > 0)
            read_all(c);
    } else if (c->about.T * c->about.K < 1 << 16 && !c->raw) {
        struct teacher_entry e;
        int whole = 1;
        for (int64_t at = c->data; whole && teacher_read_frame(c, at, c->bytes, &e, &whole) == OK; at = e.offset + e.bytes)
            ;
    }
    teacher_cache_close(c);
    return 0;
}
