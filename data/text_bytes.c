/* How many bytes of text a token stands for, from the decoder: behind other text decode(x x) - decode(x), because decoders treat the first
 * token of a text otherwise (the space that Llama's tokenizer puts before a text is dropped again); decode(x) where a document begins. */
#include <stdlib.h>
#include <string.h>

#include "data.h"

struct text_bytes {
    const struct tokenizer *t;
    int64_t V;
    int bos, eos;
    int32_t *first, *later; /* [V]; -1: not asked for yet */
};

enum code text_bytes_open(struct text_bytes **b, const struct tokenizer *t, int64_t V, int bos, int eos)
{
    *b = malloc(sizeof **b);
    int32_t *room = *b ? malloc((size_t)(2 * V) * sizeof *room) : NULL;
    if (!room) {
        free(*b);
        *b = NULL;
        return fail(ERR_MEMORY, "out of memory for the lengths of %lld tokens", (long long)V);
    }
    memset(room, 0xff, (size_t)(2 * V) * sizeof *room);
    **b = (struct text_bytes){t, V, bos, eos, room, room + V};
    return OK;
}

void text_bytes_close(struct text_bytes *b)
{
    if (b)
        free(b->first);
    free(b);
}

static enum code decoded(const struct tokenizer *t, int32_t id, int64_t times, int64_t *bytes)
{
    const int32_t ids[2] = {id, id};
    char *text;
    size_t n;
    enum code c = tokenizer_decode(t, ids, times, &text, &n);
    if (c == OK)
        free(text);
    *bytes = c == OK ? (int64_t)n : 0;
    return c == ERR_INPUT ? OK : c; /* rows of a vocabulary that stand for nothing */
}

enum code text_bytes_add(struct text_bytes *b, int32_t before, int32_t id, int64_t *sum)
{
    CHECK(id >= 0 && id < b->V);
    if (b->first[id] < 0) {
        int64_t one, two;
        TRY(decoded(b->t, id, 1, &one));
        TRY(decoded(b->t, id, 2, &two));
        b->first[id] = (int32_t)one;
        b->later[id] = (int32_t)(two > one ? two - one : 0);
    }
    *sum += before < 0 || before == b->bos || before == b->eos ? b->first[id] : b->later[id];
    return OK;
}
