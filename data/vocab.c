/* The vocabulary: strings to ids by open addressing (XXH3-64 of the string under a key of the process, linear probing, at most half full), ids to strings
 * by an array. Ids may have holes; two strings for one id are refused by the reader. */
#include <stdlib.h>
#include <string.h>
#include "tokenizer.h"

static uint32_t vocab_slot(const struct vocab *v, const char *s, size_t n)
{
    uint32_t mask = v->n_slots - 1, i = (uint32_t)hash64_keyed(s, n, v->key) & mask;
    for (; v->slots[i] != 0; i = (i + 1) & mask) {
        const struct vocab_entry *e = &v->entries[v->slots[i] - 1];
        if (e->n == n && memcmp(v->text.p + e->at, s, n) == 0)
            break;
    }
    return i;
}

static enum code vocab_grow(struct vocab *v)
{
    int64_t capacity = v->capacity == 0 ? 256 : v->capacity * 2;
    v->key = hash_key();
    struct vocab_entry *entries = realloc(v->entries, (size_t)capacity * sizeof *entries);
    if (entries == NULL)
        return fail(ERR_MEMORY, "no memory for a vocabulary of %lld entries", (long long)capacity);
    v->entries = entries;
    v->capacity = capacity;
    free(v->slots);
    v->n_slots = (uint32_t)capacity * 2;
    v->slots = calloc(v->n_slots, sizeof *v->slots);
    if (v->slots == NULL)
        return fail(ERR_MEMORY, "no memory for a vocabulary of %lld entries", (long long)capacity);
    for (int64_t k = 0; k < v->n; k++)
        v->slots[vocab_slot(v, v->text.p + entries[k].at, entries[k].n)] = (uint32_t)k + 1;
    return OK;
}

enum code vocab_add(struct vocab *v, const char *s, size_t n, int32_t id)
{
    if (v->n == v->capacity)
        TRY(vocab_grow(v));
    uint32_t i = vocab_slot(v, s, n);
    CHECK(v->slots[i] == 0 && n <= UINT32_MAX && id >= 0);
    v->entries[v->n] = (struct vocab_entry){v->text.n, (uint32_t)n, id};
    TRY(buffer_add(&v->text, s, n));
    v->slots[i] = (uint32_t)++v->n;
    if (id >= v->n_ids)
        v->n_ids = (int64_t)id + 1;
    return OK;
}

int32_t vocab_find(const struct vocab *v, const char *s, size_t n)
{
    if (v->n == 0)
        return -1;
    uint32_t k = v->slots[vocab_slot(v, s, n)];
    return k == 0 ? -1 : v->entries[k - 1].id;
}

enum code vocab_index(struct vocab *v)
{
    v->by_id = malloc((size_t)(v->n_ids > 0 ? v->n_ids : 1) * sizeof *v->by_id);
    if (v->by_id == NULL)
        return fail(ERR_MEMORY, "no memory for %lld ids", (long long)v->n_ids);
    for (int64_t id = 0; id < v->n_ids; id++)
        v->by_id[id] = -1;
    for (int64_t k = 0; k < v->n; k++) {
        int32_t id = v->entries[k].id;
        if (v->by_id[id] >= 0)
            return fail(ERR_INPUT, "two vocabulary entries have the id %d", id);
        v->by_id[id] = (int32_t)k;
    }
    return OK;
}

const char *vocab_text(const struct vocab *v, int32_t id, size_t *n)
{
    if (id < 0 || id >= v->n_ids || v->by_id[id] < 0)
        return NULL;
    const struct vocab_entry *e = &v->entries[v->by_id[id]];
    *n = e->n;
    return v->text.p + e->at;
}

void vocab_free(struct vocab *v)
{
    free(v->text.p);
    free(v->entries);
    free(v->slots);
    free(v->by_id);
    *v = (struct vocab){0};
}
