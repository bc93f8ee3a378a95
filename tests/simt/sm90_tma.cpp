/* Tensor maps and bulk copies (PTX ISA 9.0, 9.7.9.27 "Tensor copy"; 9.7.9.25.4 cp.async.bulk; 9.7.9.25.6 wait_group). A box of the tensor
 * lies packed in shared memory, innermost axis first, every 16-byte chunk at its address swizzled by its own bits 7-9. What lies
 * outside the tensor is filled with zeros by a load (and counts on the mbarrier) and left out by a store.
 * Loads land when a waiter needs them (sm90_barrier.cpp); stores and sums read shared memory at the wait (or at issue, with
 * GQAKIT_SIMT_ASYNC=early) and write global memory at the wait that is not .read, or when the block has ended. */
#include <stdlib.h>
#include <string.h>

#include "simt.h"
#include "kernels/cuda/tensor_map.cuh"
#include "sm90_model.h"

using namespace simt;

namespace {

/* What the executor keeps in the 128 bytes of a tensor map. */
struct packed_map {
    uint32_t magic;
    uint8_t rank, size, swizzle;
    char *base;
    int64_t n[4], stride[4]; /* stride[0] is the element */
    int32_t box[4];
};
static_assert(sizeof(struct packed_map) <= sizeof(CUDA_NS::tensor_map), "fits");
const uint32_t magic = 0x7e4507a9;

/* One copy: a box of a map, or a run of f32 that is added. */
struct bulk {
    struct bulk *next;
    struct fiber *who;
    struct packed_map map;
    int c[4];
    uint32_t shared; /* address of the box */
    float *sum;      /* destination of bulk_add_f32, else NULL */
    uint32_t bytes;
    char *read;      /* the box as it was read, NULL: not yet */
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

int map_read(struct packed_map *m, const void *map, const char *what)
{
    memcpy(m, map, sizeof *m);
    if ((uintptr_t)map % 64 != 0 || m->magic != magic) {
        fault(SIMT_MODEL, self(), "%s: no tensor map at %p (tensor_map_make, passed by value as __grid_constant__)", what, map);
        return 0;
    }
    if (m->rank != 4) {
        fault(SIMT_MODEL, self(), "%s: the tensor map has %d axes, the instruction 4", what, m->rank);
        return 0;
    }
    return 1;
}

int box_aligned(const struct packed_map *m, uint32_t address, const char *what)
{
    uint32_t to = m->swizzle == 0 ? 128 : 8u * m->swizzle;
    if (address % to == 0)
        return 1;
    fault(SIMT_MISALIGNED, self(), "%s: the box at %s is not aligned to %u bytes (swizzle %d)", what, place(shared(address)), to, m->swizzle);
    return 0;
}

uint32_t row_bytes(const struct packed_map *m) { return (uint32_t)m->box[0] * m->size; }
int rows(const struct packed_map *m) { return m->box[1] * m->box[2] * m->box[3]; }

/* Row r of the box: elements [from, to) of it lie in the tensor, the first at *p. 0: none. */
int row_inside(const struct packed_map *m, const int *c, int r, int *from, int *to, char **p)
{
    int64_t at[4] = {c[0], c[1] + r % m->box[1], c[2] + r / m->box[1] % m->box[2], c[3] + r / m->box[1] / m->box[2]};
    char *q = m->base;
    for (int i = 1; i < 4; i++) {
        if (at[i] < 0 || at[i] >= m->n[i])
            return 0;
        q += at[i] * m->stride[i];
    }
    *from = at[0] < 0 ? (int)(at[0] < -m->box[0] ? m->box[0] : -at[0]) : 0;
    *to = at[0] + m->box[0] > m->n[0] ? (int)(m->n[0] - at[0]) : m->box[0];
    if (*from >= *to)
        return 0;
    *p = q + (at[0] + *from) * m->size;
    return 1;
}

/* The box between shared memory and `packed`, a copy of it without swizzle. */
void unswizzle(const struct packed_map *m, uint32_t address, char *packed, int to_shared)
{
    uint32_t bytes = row_bytes(m) * (uint32_t)rows(m);
    for (uint32_t i = 0; i < bytes; i += 16) {
        char *s = (char *)shared(sm90_swizzle(address + i, m->swizzle));
        memcpy(to_shared ? s : packed + i, to_shared ? packed + i : s, 16);
    }
}

/* ---- loads ---- */

struct load_box {
    struct packed_map map;
    int c[4];
    uint32_t dst;
};

void load_copy(struct sm90_landing *l)
{
    struct load_box *b = (struct load_box *)l->own;
    if (l->token == NULL)
        return;
    char *packed = (char *)calloc(1, l->bytes), *p;
    for (int r = 0, from, to; r < rows(&b->map); r++)
        if (row_inside(&b->map, b->c, r, &from, &to, &p))
            memcpy(packed + (size_t)r * row_bytes(&b->map) + (size_t)from * b->map.size, p, (size_t)(to - from) * b->map.size);
    unswizzle(&b->map, b->dst, packed, 1);
    free(packed);
}

} // namespace

void CUDA_NS::tensor_map_pack(tensor_map *map, const struct tensor_map_spec *s)
{
    struct packed_map m = {};
    m.magic = magic;
    m.rank = (uint8_t)s->rank;
    m.size = (uint8_t)dtype_bytes(s->type);
    m.swizzle = (uint8_t)s->swizzle;
    m.base = (char *)s->base;
    m.stride[0] = m.size;
    for (int i = 0; i < 4; i++) {
        m.n[i] = i < s->rank ? s->n[i] : 1;
        m.box[i] = i < s->rank ? s->box[i] : 1;
        if (i > 0)
            m.stride[i] = i < s->rank ? s->stride_bytes[i - 1] : 0;
    }
    memset(map, 0, sizeof *map);
    memcpy(map, &m, sizeof m);
}

void sm90_tma_prefetch(const void *map, const char *file, int line)
{
    struct packed_map m;
    if (sm90_here("tma_prefetch", file, line))
        map_read(&m, map, "tma_prefetch");
}

void sm90_tma_load(uint32_t dst, const void *map, uint32_t bar, int c0, int c1, int c2, int c3, const char *file, int line)
{
    struct packed_map m;
    if (!sm90_here("tma_load", file, line) || !map_read(&m, map, "tma_load") || !box_aligned(&m, dst, "tma_load"))
        return;
    struct load_box *b = (struct load_box *)malloc(sizeof *b);
    struct sm90_landing *l = (struct sm90_landing *)calloc(1, sizeof *l);
    *b = {m, {c0, c1, c2, c3}, dst};
    l->own = b;
    l->bytes = row_bytes(&m) * (uint32_t)rows(&m);
    l->copy = load_copy;
    char *p;
    for (int r = 0, from, to; r < rows(&m); r++)
        if (row_inside(&m, b->c, r, &from, &to, &p) && !touch(self(), p, (size_t)(to - from) * m.size, READ, 1))
            l->copy = NULL; /* reported; the host must not read there */
    l->token = begin(self(), shared(dst), l->bytes, WRITE | ASYNC, 1);
    if (lands_early() && l->copy != NULL) {
        l->copy(l);
        l->copy = NULL;
    }
    if (!sm90_barrier_track(bar, l)) {
        if (l->token != NULL)
            finish(l->token, NULL, 0);
        free(b);
        free(l);
    }
}

/* ---- stores and sums ---- */

namespace {

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
        unswizzle(&b->map, b->shared, b->read, 0);
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
        for (int r = 0, from, to; r < rows(&b->map); r++)
            if (row_inside(&b->map, b->c, r, &from, &to, &p) && touch(b->who, p, (size_t)(to - from) * b->map.size, WRITE, 1))
                memcpy(p, b->read + (size_t)r * row_bytes(&b->map) + (size_t)from * b->map.size, (size_t)(to - from) * b->map.size);
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
    struct packed_map m;
    if (!sm90_here("tma_store", file, line) || !map_read(&m, map, "tma_store") || !box_aligned(&m, src, "tma_store"))
        return;
    uint32_t row = row_bytes(&m), bytes = row * (uint32_t)rows(&m);
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
    for (int r = 0, e0, e1; r < rows(&m); r++) {
        char *p;
        if (row_inside(&m, b->c, r, &e0, &e1, &p)) {
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

void sm90_bulk_begin() { memset(of_thread, 0, sizeof of_thread); }

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
