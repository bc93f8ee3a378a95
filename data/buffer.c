/* Growing arrays for bytes and ids: doubling, with the sizes checked. */
#include <stdlib.h>
#include <string.h>
#include "tokenizer.h"

enum code buffer_need(struct buffer *b, size_t more)
{
    if (more <= b->capacity - b->n)
        return OK;
    if (more > (SIZE_MAX >> 2) - b->n)
        return fail(ERR_MEMORY, "a text buffer of %zu bytes cannot be made", b->n);
    size_t capacity = b->capacity < 256 ? 256 : b->capacity;
    while (capacity < b->n + more)
        capacity *= 2;
    char *p = realloc(b->p, capacity);
    if (p == NULL)
        return fail(ERR_MEMORY, "no memory for a text buffer of %zu bytes", capacity);
    b->p = p;
    b->capacity = capacity;
    return OK;
}

enum code buffer_add(struct buffer *b, const void *bytes, size_t n)
{
    TRY(buffer_need(b, n));
    if (n > 0)
        memcpy(b->p + b->n, bytes, n);
    b->n += n;
    return OK;
}

static enum code id_list_need(struct id_list *l, int64_t more)
{
    if (more <= l->capacity - l->n)
        return OK;
    int64_t capacity = l->capacity < 64 ? 64 : l->capacity;
    while (capacity < l->n + more)
        capacity *= 2;
    int32_t *p = realloc(l->p, (size_t)capacity * sizeof *p);
    if (p == NULL)
        return fail(ERR_MEMORY, "no memory for %lld token ids", (long long)capacity);
    l->p = p;
    l->capacity = capacity;
    return OK;
}

enum code id_list_add(struct id_list *l, int32_t id)
{
    TRY(id_list_need(l, 1));
    l->p[l->n++] = id;
    return OK;
}

enum code id_list_add_all(struct id_list *l, const int32_t *ids, int64_t n)
{
    TRY(id_list_need(l, n));
    if (n > 0)
        memcpy(l->p + l->n, ids, (size_t)n * sizeof *ids);
    l->n += n;
    return OK;
}
