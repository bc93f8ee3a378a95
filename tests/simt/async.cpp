/* cp.async and the tokens of asynchronous accesses. A copy reads its source at issue; its bytes land at the wait that covers it
 * ('l'ate, the latest time a GPU may choose: a missing wait is seen in the result), or at issue ('e'arly: overwriting a buffer too
 * soon is seen in the result). In both modes nobody may touch the bytes in between. */
#include <stdio.h>

#include "state.h"

namespace simt {

struct copy { struct token *token; unsigned char bytes[16]; int group; };
struct async_state {
    struct copy *copies; /* in order of issue */
    int n, max;
    int group, waited;   /* number of the group being filled; groups below `waited` have landed */
};

static char async_mode;

int lands_early()
{
    if (async_mode == 0) {
        const char *text = getenv("GQAKIT_SIMT_ASYNC");
        async_mode = text != NULL && text[0] == 'e' ? 'e' : 'l';
    }
    return async_mode == 'e';
}

struct token *begin(struct fiber *who, void *p, size_t bytes, unsigned flags, size_t align)
{
    if (!is_shared_region(p)) {
        fault(SIMT_BOUNDS, who, "an asynchronous access of %s, which is not in shared memory", place(p));
        return NULL;
    }
    if (!touch(who, p, bytes, flags | PENDING, align))
        return NULL;
    struct token *t = (struct token *)malloc(sizeof *t);
    CHECK(t != NULL);
    *t = {who, (char *)p, bytes, flags, who->clock.gen[who->warp], who->tick};
    return t;
}

static uint32_t gen;                    /* of asynchronous units */
static uint16_t landings[SIMT_LANES]; /* per queue, in this generation */

void finish(struct token *t, struct clock *into, int queue)
{
    const size_t offset = (size_t)(t->p - shared_memory);
    if (into == NULL && current == NULL) {} /* left over at the end of a block */
    else if (into == NULL)
        shadow_finish(t, offset, current->warp, 1u << current->lane, current->clock.gen[current->warp], current->tick);
    else {
        const int q = queue & (SIMT_LANES - 1);
        if (landings[q] == UINT16_MAX) { /* a new generation: what landed before it counts as known to who acquires anything later */
            memset(landings, 0, sizeof landings);
            gen = generation_new();
        }
        landings[q]++;
        shadow_finish(t, offset, SIMT_WARPS, 1u << q, gen, landings[q]);
        static struct clock done;
        done.gen[SIMT_WARPS] = gen;
        done.dense = (uint64_t)1 << SIMT_WARPS;
        memset(done.lanes[SIMT_WARPS], 0, sizeof done.lanes[0]);
        done.lanes[SIMT_WARPS][q] = landings[q];
        clock_join(into, &done);
    }
    free(t);
}

static void drop(struct async_state *a)
{
    for (int i = 0; i < a->n; i++)
        free(a->copies[i].token);
    a->n = a->group = a->waited = 0;
}

void async_block_begin()
{
    memset(landings, 0, sizeof landings);
    gen = fibers[0].clock.gen[SIMT_WARPS];
    for (int i = 0; i < now.n_threads; i++)
        if (fibers[i].async != NULL)
            drop(fibers[i].async);
}

static struct async_state *mine()
{
    if (current->async == NULL)
        CHECK((current->async = (struct async_state *)calloc(1, sizeof *current->async)) != NULL);
    return current->async;
}

} // namespace simt

using namespace simt;

void simt_set_async(char when)
{
    CHECK(when == 'l' || when == 'e');
    async_mode = when;
}

void simt_cp_async(uint32_t dst, const void *src, int valid, const char *file, int line)
{
    at(file, line);
    struct async_state *a = mine();
    if (a->n == a->max) {
        a->max = 2 * a->max + 16;
        a->copies = (struct copy *)realloc(a->copies, (size_t)a->max * sizeof a->copies[0]);
        CHECK(a->copies != NULL);
    }
    struct copy *c = &a->copies[a->n];
    if (valid && (is_shared_region(src) || !is_global_region(src)))
        fault(SIMT_BOUNDS, current, "cp.async from %s, which is not device memory", place(src));
    memset(c->bytes, 0, sizeof c->bytes);
    if (valid)
        load(current, c->bytes, src, 16, 16);
    c->token = begin(current, shared(dst), 16, WRITE, 16);
    if (c->token == NULL)
        return;
    c->group = a->group;
    a->n++;
    if (lands_early())
        memcpy(c->token->p, c->bytes, 16);
}

void simt_cp_async_commit(const char *file, int line)
{
    at(file, line);
    mine()->group++;
}

/* Groups older than the `pending` last ones land; copies not committed stay. */
void simt_cp_async_wait(int pending, const char *file, int line)
{
    at(file, line);
    struct async_state *a = mine();
    const int below = a->group - pending;
    int done = 0;
    for (; done < a->n && a->copies[done].group < below; done++) {
        struct copy *c = &a->copies[done];
        if (!lands_early())
            memcpy(c->token->p, c->bytes, 16);
        finish(c->token, NULL, 0);
    }
    memmove(a->copies, a->copies + done, (size_t)(a->n - done) * sizeof a->copies[0]);
    a->n -= done;
}
