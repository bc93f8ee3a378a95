/* wgmma (PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions"). The 128 threads of a warpgroup meet at a
 * product; it then runs on its own. What it reads of shared memory stays PENDING until some warp of the warpgroup has waited for its
 * group, and is read then (or at issue, GQAKIT_SIMT_ASYNC=early). A thread's accumulators hold NaNs from the first product on them until
 * the thread has waited for the last one; what is in them meanwhile lives here (`chain`). So a kernel that forgets a wait, or counts its
 * groups wrongly, computes NaN. */
#include <stdlib.h>
#include <string.h>

#include "sm90_model.h"

using namespace simt;

namespace {

#define GROUPS 64                   /* commits a thread may look back */
const uint32_t poison = 0x7fa0dead; /* a signalling NaN: arithmetic on it changes it */

/* One set of accumulators that products are in flight on. */
struct chain {
    struct chain *next;
    float *d[128];
    int n;
    long last;    /* number of the last product on it */
    int written;  /* threads that have their values back */
    float *value; /* [64][n] */
};

struct arrival {
    int n, ta, tb, add;
    float *d;
    const uint32_t *registers;
    uint64_t a, b;
    const char *file;
    int line;
};

struct warpgroup {
    const struct arrival *here[128];
    int arrived;
    unsigned meetings;
    struct wait_list waiters;
    long issued;
    struct sm90_product *first, **last;
    struct chain *chains;
} groups[SIMT_WARPS / 4];

/* How many products a thread had issued at its commits. */
struct thread_groups {
    long committed, seen; /* commits; products acquired */
    long issued_at[GROUPS];
    long issued;
    int fenced;
} of_thread[1024];

int poisoned(const float *d, int n)
{
    for (int i = 0; i < n; i++)
        if (memcmp(&d[i], &poison, 4) != 0)
            return 0;
    return 1;
}

struct chain *chain_of(struct warpgroup *w, const struct arrival *const *all)
{
    int n = all[0]->n;
    for (struct chain *c = w->chains; c != NULL; c = c->next) {
        int same = 0;
        for (int t = 0; t < 128; t++) {
            same += c->d[t] == all[t]->d;
            if (c->d[t] != all[t]->d && c->written == 0 && c->d[t] < all[t]->d + n / 2 && all[t]->d < c->d[t] + c->n / 2) {
                fault(SIMT_MODEL, self(), "wgmma: accumulators overlap those of a product in flight");
                return NULL;
            }
        }
        if (same == 0 || c->written > 0)
            continue;
        if (same < 128 || c->n != n) {
            fault(SIMT_MODEL, self(), "wgmma: a product in flight has the same accumulators in another shape");
            return NULL;
        }
        for (int t = 0; t < 128; t++)
            if (!poisoned(c->d[t], n / 2)) {
                fault(SIMT_ASYNC, self(), "wgmma: accumulators of thread %d were written while a product on them was in flight", t);
                break;
            }
        return c;
    }
    struct chain *c = (struct chain *)calloc(1, sizeof *c);
    c->n = n;
    c->value = (float *)malloc(sizeof(float) * 64 * (size_t)n);
    for (int t = 0; t < 128; t++) {
        c->d[t] = all[t]->d;
        for (int i = 0, row, column; i < n / 2; i++) {
            sm90_fragment_d(t, i, &row, &column);
            c->value[row * n + column] = c->d[t][i];
            memcpy(&c->d[t][i], &poison, 4);
        }
    }
    c->next = w->chains;
    w->chains = c;
    return c;
}

void issue(struct warpgroup *w)
{
    const struct arrival *const *all = w->here, *x = all[0];
    for (int t = 1; t < 128; t++) {
        const struct arrival *y = all[t];
        if (y->line != x->line || strcmp(y->file, x->file) != 0 || y->n != x->n || y->ta != x->ta || y->tb != x->tb ||
            (y->registers == NULL) != (x->registers == NULL)) {
            fault(SIMT_DIVERGENT, self(), "wgmma: the threads of a warpgroup are at different products (line %d and line %d)", x->line, y->line);
            return;
        }
        if (y->a != x->a || y->b != x->b || !y->add != !x->add) {
            fault(SIMT_MODEL, self(), "wgmma: thread %d of the warpgroup has other descriptors (or `add`) than thread 0", t);
            return;
        }
    }
    struct chain *c = chain_of(w, all);
    if (c == NULL)
        return;
    struct sm90_product *p = (struct sm90_product *)calloc(1, sizeof *p);
    p->number = c->last = ++w->issued;
    p->warpgroup = (int)(w - groups);
    p->n = x->n, p->ta = x->ta, p->tb = x->tb, p->add = x->add;
    p->value = c->value;
    p->from_registers = x->registers != NULL;
    for (int t = 0; t < 128 && p->from_registers; t++)
        memcpy(p->registers[t], all[t]->registers, sizeof p->registers[t]);
    /* One thread stands for all in the checks of order; another one each time, so that each gets its turn. */
    sm90_product_begin(p, x->a, x->b, thread((self()->index & ~127) + (int)(p->number * 37 % 128)));
    if (w->last == NULL)
        w->last = &w->first;
    *w->last = p;
    w->last = &p->next;
    if (lands_early())
        sm90_product_compute(p);
}

} // namespace

void sm90_wgmma(int n, int ta, int tb, float *d, const uint32_t *registers, uint64_t a, uint64_t b, int add, const char *file, int line)
{
    if (!sm90_here("wgmma", file, line))
        return;
    struct warpgroup *w = &groups[self()->warp / 4];
    const int t = self()->index % 128;
    const struct arrival mine = {n, ta, tb, add, d, registers, a, b, file, line};
    if (of_thread[self()->index].issued++ == 0 && !of_thread[self()->index].fenced)
        fault(SIMT_MODEL, self(), "wgmma without a wgmma_fence before it");
    w->here[t] = &mine;
    if (++w->arrived == 128) {
        issue(w);
        w->arrived = 0;
        w->meetings++;
        wake_all(&w->waiters);
    } else {
        for (unsigned now = w->meetings; w->meetings == now;)
            sleep_in(&w->waiters, "wgmma, the other threads of its warpgroup");
    }
}

/* Writes of registers are not seen, so all that can be asked for is one fence before the first product (ptxas reports the others, C7519). */
void sm90_wgmma_fence(const char *file, int line)
{
    if (sm90_here("wgmma_fence", file, line))
        of_thread[self()->index].fenced = 1;
}

void sm90_wgmma_commit(const char *file, int line)
{
    if (!sm90_here("wgmma_commit", file, line))
        return;
    struct thread_groups *g = &of_thread[self()->index];
    g->issued_at[g->committed++ % GROUPS] = g->issued;
}

namespace {

struct wait_arg {
    long upto;
    struct clock *clock; /* of what this wait made known, or NULL */
};
struct clock known[SIMT_WARPS];

void chain_return(struct chain *c, int thread)
{
    if (!poisoned(c->d[thread], c->n / 2))
        fault(SIMT_ASYNC, self(), "wgmma: accumulators of thread %d were written while a product on them was in flight", thread);
    for (int i = 0, row, column; i < c->n / 2; i++) {
        sm90_fragment_d(thread, i, &row, &column);
        c->d[thread][i] = c->value[row * c->n + column];
    }
    c->written++;
}

/* All lanes of a warp: completes the products up to `upto`, hands out accumulators that no product is left on. */
void wait_warp(void *const *arg, unsigned mask)
{
    const int warp = self()->warp, lane0 = 32 * (warp % 4);
    struct warpgroup *w = &groups[warp / 4];
    const long upto = ((struct wait_arg *)arg[__builtin_ctz(mask)])->upto, before = of_thread[32 * warp].seen;
    if (mask != 0xffffffffu)
        fault(SIMT_DIVERGENT, self(), "wgmma_wait by a part of the warp");
    for (int i = 0; i < 32; i++)
        if ((mask >> i & 1) && ((struct wait_arg *)arg[i])->upto != upto) {
            fault(SIMT_DIVERGENT, self(), "wgmma_wait: the lanes of the warp have committed different products");
            break;
        }
    if (upto <= before)
        return;
    struct clock *k = &known[warp];
    memset(k, 0, sizeof *k);
    for (struct sm90_product **at = &w->first, *p; (p = *at) != NULL && p->number <= upto;) {
        if (p->number > before) {
            sm90_product_complete(p);
            clock_join(k, &p->clock);
            p->waited++;
        }
        if (p->waited == 4) {
            *at = p->next;
            if (p->next == NULL)
                w->last = at;
            free(p->token);
            free(p);
        } else {
            at = &p->next;
        }
    }
    for (struct chain **at = &w->chains, *c; (c = *at) != NULL;) {
        if (c->last <= upto && c->last > before)
            for (int i = 0; i < 32; i++)
                chain_return(c, lane0 + i);
        if (c->written == 128) {
            *at = c->next;
            free(c->value);
            free(c);
        } else {
            at = &c->next;
        }
    }
    for (int i = 0; i < 32; i++) {
        of_thread[32 * warp + i].seen = upto;
        if (mask >> i & 1)
            ((struct wait_arg *)arg[i])->clock = k;
    }
}

} // namespace

void sm90_wgmma_wait(int pending, const char *file, int line)
{
    if (!sm90_here("wgmma_wait", file, line))
        return;
    struct thread_groups *g = &of_thread[self()->index];
    long group = g->committed - pending;
    struct wait_arg mine = {0, NULL};
    if (group > 0)
        mine.upto = pending < GROUPS ? g->issued_at[(group - 1) % GROUPS] : 0;
    collective("wgmma_wait", wait_warp, 0xffffffffu, &mine, 0);
    if (mine.clock != NULL)
        acquire(mine.clock);
}

void sm90_wgmma_begin()
{
    memset(groups, 0, sizeof groups);
    memset(of_thread, 0, sizeof of_thread);
}

void sm90_wgmma_end()
{
    for (int i = 0; i < SIMT_WARPS / 4; i++) {
        struct warpgroup *w = &groups[i];
        if (w->first != NULL)
            fault(SIMT_ASYNC, NULL, "wgmma: the block ended with products that warpgroup %d has not waited for", i);
        while (w->first != NULL) {
            struct sm90_product *p = w->first;
            w->first = p->next;
            sm90_product_complete(p);
            free(p->token);
            free(p);
        }
        while (w->chains != NULL) {
            struct chain *c = w->chains;
            w->chains = c->next;
            free(c->value);
            free(c);
        }
    }
}
