/* Copies from ordinary memory to the device that do not wait for the device: through a ring of pinned memory (device.cuh). */
#include "device.cuh"

#include <string.h>

namespace CUDA_NS {

enum code staging_open(struct staging *s)
{
    TRY(cuda_result("pinned memory for copies", cudaMallocHost((void **)&s->ring, STAGING_BYTES)));
    for (int i = 0; i < STAGING_PIECES; i++)
        TRY(cuda_result("events for copies", cudaEventCreateWithFlags(&s->piece[i].done, cudaEventDisableTiming)));
    return OK;
}

void staging_close(struct staging *s)
{
    for (int i = 0; i < STAGING_PIECES; i++)
        if (s->piece[i].done != NULL)
            cudaEventDestroy(s->piece[i].done);
    if (s->ring != NULL)
        cudaFreeHost(s->ring);
    memset(s, 0, sizeof *s);
}

static int busy(const struct staging *s, size_t from, size_t to)
{
    for (int i = 0; i < s->count; i++) {
        const int k = (s->first + i) % STAGING_PIECES;
        if (from < s->piece[k].to && s->piece[k].from < to)
            return 1;
    }
    return 0;
}

static enum code oldest_wait(struct staging *s)
{
    TRY(cuda_result("device_copy", cudaEventSynchronize(s->piece[s->first].done)));
    s->first = (s->first + 1) % STAGING_PIECES;
    s->count--;
    return OK;
}

enum code staging_copy(struct staging *s, cudaStream_t stream, void *dst, const void *src, size_t bytes)
{
    for (size_t at = 0; at < bytes;) {
        const size_t n = bytes - at < STAGING_PIECE ? bytes - at : STAGING_PIECE;
        if (s->next + n > STAGING_BYTES)
            s->next = 0;
        /* Pieces end in the order they were queued, so waiting for the oldest until the range is free waits for no more than needed. */
        while (s->count == STAGING_PIECES || busy(s, s->next, s->next + n))
            TRY(oldest_wait(s));
        memcpy(s->ring + s->next, (const char *)src + at, n);
        TRY(cuda_result("device_copy", cudaMemcpyAsync((char *)dst + at, s->ring + s->next, n, cudaMemcpyHostToDevice, stream)));
        const int k = (s->first + s->count) % STAGING_PIECES;
        TRY(cuda_result("device_copy", cudaEventRecord(s->piece[k].done, stream)));
        s->piece[k].from = s->next, s->piece[k].to = s->next + n;
        s->count++;
        s->next = (s->next + n + 255) & ~(size_t)255;
        at += n;
    }
    return OK;
}

} // namespace CUDA_NS
