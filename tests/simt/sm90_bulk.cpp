/* Bulk stores and sums out of shared memory (PTX ISA, "cp.async.bulk.tensor", "cp.reduce.async.bulk", "cp.async.bulk.wait_group"). Shared memory
 * is read at the wait (or at issue, GQAKIT_SIMT_ASYNC=early), global memory written at the wait that is not .read, or when the block
 * has ended. Groups belong to the thread that issued them. */
#include <stdlib.h>
#include <string.h>

#include "sm90_model.h"
#include "kernels/cuda/ptx.cuh"

using namespace simt;

namespace {

/* One copy: a box of a map, or a run of f32 that is added. */
struct bulk {
    struct bulk *next;
    struct fiber *who;
    struct sm90_map map;
    int c[4];
    uint32_t shared; /* address of the box */
    float *sum;      /* destination of bulk_add_f32, else NULL */
    uint32_t bytes;
    char *read; /* the box as it was read, NULL: not yet */
    int group;
    struct token **token;
    int tokens;
    const char *file;
    int line;
};
struct thread_bulk {
    struct bulk *first, **last;
    int committed; /* groups */
} of_thread[1024];

/* Announces that [address, + bytes) of shared memory will be read. */
void will_read(struct bulk *b, uint32_t address, uint32_t bytes)
{
    struct token *t = begin(b->who, shared(address), bytes, READ | ASYNC, 1);
    if (t == NULL)
        return;
    b->token = (struct token **)realloc(b->token, sizeof *b->token * (size_t)(b->tokens + 1));
    b->token[b->tokens++] = t;
}

void read_source(struct bulk *b)
{
    if (b->read != NULL)
        return;
    b->read = (char *)malloc(b->bytes);
    if (b->sum != NULL)
        memcpy(b->read, shared(b->shared), b->bytes);
    else
        sm90_box_copy(&b->map, b->shared, b->read, 0);
}

void end_read(struct bulk *b)
{
    read_source(b);
    for (int i = 0; i < b->tokens; i++)
        finish(b->token[i], NULL, 0);
    b->tokens = 0;
}

void write_out(struct bulk *b)
{
    end_read(b);
    if (b->sum != NULL) {
        if (touch(b->who, b->sum, b->bytes, WRITE | ATOMIC, 16))
            for (uint32_t i = 0; i < b->bytes / 4; i++)
                b->sum[i] += reinterpret_cast<float *>(b->read)[i];
    } else {
        char *p;
        for (int r = 0, from, to; r < sm90_box_rows(&b->map); r++)
            if (sm90_box_row(&b->map, b->c, r, &from, &to, &p) && touch(b->who, p, (size_t)(to - from) * b->map.size, WRITE, 1))
                memcpy(p, b->read + (size_t)r * sm90_box_row_bytes(&b->map) + (size_t)from * b->map.size, (size_t)(to - from) * b->map.size);
    }
    free(b->read);
    free(b->token);
    free(b);
}

void append(struct bulk *b)
{
    struct thread_bulk *t = &of_thread[self()->index];
    if (t->first == NULL)
        t->last = &t->first;
    b->next = NULL;
    b->group = t->committed;
    *t->last = b;
    t->last = &b->next;
    if (lands_early())
        read_source(b);
}

} // namespace

void sm90_tma_store(const void *map, uint32_t src, int c0, int c1, int c2, int c3, const char *file, int line)
{
    struct sm90_map m;
    if (!sm90_here("tma_store", file, line) || !sm90_map_read(&m, map, "tma_store") || !sm90_box_aligned(&m, src, "tma_store"))
        return;
    uint32_t row = sm90_box_row_bytes(&m), bytes = row * (uint32_t)sm90_box_rows(&m);
    if (src < SIMT_SHARED_BASE || src + bytes > SIMT_SHARED_BASE + SIMT_SHARED_MAX) {
        touch(self(), shared(src), bytes, READ, 1);
        return;
    }
    struct bulk *b = (struct bulk *)calloc(1, sizeof *b);
    b->who = self();
    b->map = m;
    b->c[0] = c0, b->c[1] = c1, b->c[2] = c2, b->c[3] = c3;
    b->shared = src;
    b->bytes = bytes;
    b->file = file, b->line = line;
    /* Rows outside the tensor may never have been written; neighbouring rows inside are one range. */
    uint32_t from = 0, n = 0;
    for (int r = 0, e0, e1; r < sm90_box_rows(&m); r++) {
        char *p;
        if (sm90_box_row(&m, b->c, r, &e0, &e1, &p)) {
            from = n == 0 ? (uint32_t)r * row : from;
            n += row;
        } else if (n > 0) {
            will_read(b, src + from, n);
            n = 0;
        }
    }
    if (n > 0)
        will_read(b, src + from, n);
    append(b);
}

void sm90_bulk_add(float *dst, uint32_t src, uint32_t bytes, const char *file, int line)
{
    if (!sm90_here("bulk_add_f32", file, line))
        return;
    if ((uintptr_t)dst % 16 != 0 || src % 16 != 0 || bytes % 16 != 0 || bytes == 0) {
        fault(SIMT_MISALIGNED, self(), "bulk_add_f32: %u bytes from %s to %p, all must be multiples of 16", bytes, place(shared(src)), (void *)dst);
        return;
    }
    struct bulk *b = (struct bulk *)calloc(1, sizeof *b);
    b->who = self();
    b->shared = src;
    b->sum = dst;
    b->bytes = bytes;
    b->file = file, b->line = line;
    will_read(b, src, bytes);
    if (b->tokens == 0) {
        free(b);
        return;
    }
    append(b);
}

void sm90_bulk_commit(const char *file, int line)
{
    if (sm90_here("bulk_commit", file, line))
        of_thread[self()->index].committed++;
}

void sm90_bulk_wait(int pending, int only_read, const char *file, int line)
{
    if (!sm90_here("bulk_wait", file, line))
        return;
    struct thread_bulk *t = &of_thread[self()->index];
    if (only_read) {
        for (struct bulk *b = t->first; b != NULL && b->group < t->committed - pending; b = b->next)
            end_read(b);
        return;
    }
    while (t->first != NULL && t->first->group < t->committed - pending) {
        struct bulk *b = t->first;
        t->first = b->next;
        write_out(b);
    }
}

void sm90_bulk_begin()
{
    memset(of_thread, 0, sizeof of_thread);
}

void sm90_bulk_end()
{
    for (int i = 0; i < 1024; i++) {
        struct thread_bulk *t = &of_thread[i];
        while (t->first != NULL) {
            struct bulk *b = t->first;
            t->first = b->next;
            if (b->tokens > 0) {
                b->who->file = b->file, b->who->line = b->line;
                fault(SIMT_ASYNC, b->who, "the block ended before this bulk copy had read shared memory (%s)",
                      b->group < t->committed ? "bulk_wait_read<0>" : "no bulk_commit");
            }
            write_out(b);
        }
    }
}
