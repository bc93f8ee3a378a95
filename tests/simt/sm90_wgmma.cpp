/* wgmma (PTX ISA 9.0, 9.7.15): the 128 threads of a warpgroup meet at a product; it then runs on its own. What it reads of shared memory
 * stays PENDING until some warp of the warpgroup has waited for its group, and is read then (or at issue, GQAKIT_SIMT_ASYNC=early).
 * A thread's accumulators hold NaNs from the first product on them until the thread has waited for the last one; what is in them meanwhile
 * lives here (`chain`). So a kernel that forgets a wait, or counts its groups wrongly, computes NaN.
 * Sums are f32 in the order of k within a product, then added to the accumulator. */
#include <stdlib.h>
#include <string.h>

#include "sm90_model.h"

using namespace simt;

namespace {

#define GROUPS 64 /* commits a thread may look back */
const uint32_t poison = 0x7fc0dead;

/* One set of accumulators that products are in flight on. */
struct chain {
    struct chain *next;
    float *d[128];
    int n;
    long last;    /* number of the last product on it */
    int written;  /* threads that have their values back */
    float *value; /* [64][n] */
};

struct product {
    int group;
    struct product *next;
    long number;
    struct chain *chain;
    int n, ta, tb, add, from_registers, done;
    struct sm90_operand a, b;
    uint32_t registers[128][4];
    struct token **token;
    int tokens;
    int readable; /* every byte of the operands is inside shared memory */
    struct clock clock;
    int waited; /* warps that have waited for it */
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
    struct product *first, **last;
    struct chain *chains;
} groups[SIMT_WARPS / 4];

/* How many products a thread had issued at its commits. */
struct thread_groups {
    long committed, seen; /* commits; products acquired */
    long issued_at[GROUPS];
    long issued;
} of_thread[1024];

float f32_of_bits(uint16_t b)
{
    uint32_t u = (uint32_t)b << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* ---- operands ---- */

void chunk_read(float *x, uint32_t address)
{
    uint16_t u[8];
    memcpy(u, shared(address), 16);
    for (int i = 0; i < 8; i++)
        x[i] = f32_of_bits(u[i]);
}

/* x[k][row], k of 16, `rows` rows. */
void operand_read(float *x, const struct sm90_operand *o, int mn_major, int rows)
{
    float c[8];
    if (mn_major) {
        for (int k = 0; k < 16; k++)
            for (int j = 0; j < rows / 8; j++)
                chunk_read(x + k * rows + 8 * j, sm90_chunk_mn_major(o, j, k));
    } else {
        for (int r = 0; r < rows; r++)
            for (int h = 0; h < 2; h++) {
                chunk_read(c, sm90_chunk_k_major(o, r, h));
                for (int i = 0; i < 8; i++)
                    x[(8 * h + i) * rows + r] = c[i];
            }
    }
}

#define CHUNKS ((SIMT_SHARED_BASE + SIMT_SHARED_MAX + 65536) / 16)

void mark(uint64_t *set, uint32_t address, int *outside)
{
    if (address / 16 < CHUNKS)
        set[address / 1024] |= (uint64_t)1 << (address / 16 % 64);
    else
        *outside = 1;
}

/* Begins the reads of an operand: its chunks, neighbours together. */
void operand_begin(struct product *p, const struct sm90_operand *o, int mn_major, int rows, struct fiber *who)
{
    static uint64_t set[CHUNKS / 64 + 2];
    int outside = 0;
    memset(set, 0, sizeof set);
    if (mn_major) {
        for (int k = 0; k < 16; k++)
            for (int j = 0; j < rows / 8; j++)
                mark(set, sm90_chunk_mn_major(o, j, k), &outside);
    } else {
        for (int r = 0; r < rows; r++)
            mark(set, sm90_chunk_k_major(o, r, 0), &outside), mark(set, sm90_chunk_k_major(o, r, 1), &outside);
    }
    if (outside) {
        fault(SIMT_BOUNDS, who, "wgmma: an operand lies past the end of shared memory");
        p->readable = 0;
        return;
    }
    for (size_t i = 0; i < CHUNKS;) {
        if (set[i / 64] >> (i % 64) == 0) {
            i = (i / 64 + 1) * 64;
            continue;
        }
        i += (size_t)__builtin_ctzll(set[i / 64] >> (i % 64));
        size_t end = i;
        while (end < CHUNKS && (set[end / 64] >> (end % 64) & 1))
            end++;
        struct token *t = begin(who, (char *)shared((uint32_t)(16 * i)), 16 * (end - i), READ | ASYNC, 16);
        if (t != NULL)
            p->token[p->tokens++] = t;
        else
            p->readable = 0;
        i = end;
    }
}

/* ---- arithmetic ---- */

__attribute__((target_clones("avx512f", "avx2", "default"), optimize("O3"))) void multiply(float *value, const float *a, const float *b, int n, int add)
{
    float sum[256];
    for (int m = 0; m < 64; m++) {
        for (int j = 0; j < n; j++)
            sum[j] = 0.0f;
        for (int k = 0; k < 16; k++) {
            float x = a[64 * k + m];
            for (int j = 0; j < n; j++)
                sum[j] += x * b[n * k + j];
        }
        for (int j = 0; j < n; j++)
            value[m * n + j] = add ? value[m * n + j] + sum[j] : sum[j];
    }
}

void compute(struct product *p)
{
    static float a[16 * 64], b[16 * 256];
    if (p->done)
        return;
    p->done = 1;
    if (p->readable) {
        if (p->from_registers) {
            for (int t = 0; t < 128; t++)
                for (int r = 0; r < 4; r++)
                    for (int h = 0, row, k; h < 2; h++) {
                        sm90_fragment_a(t, r, h, &row, &k);
                        a[64 * k + row] = f32_of_bits((uint16_t)(p->registers[t][r] >> (16 * h)));
                    }
        } else {
            operand_read(a, &p->a, p->ta, 64);
        }
        operand_read(b, &p->b, p->tb, p->n);
        multiply(p->chain->value, a, b, p->n, p->add);
    }
}

/* The reads of shared memory are over. */
void complete(struct product *p)
{
    compute(p);
    for (int i = 0; i < p->tokens; i++)
        finish(p->token[i], &p->clock, 24 + p->group);
    p->tokens = 0;
}

/* ---- issue ---- */

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
    struct product *p = (struct product *)calloc(1, sizeof *p);
    p->number = ++w->issued;
    p->group = (int)(w - groups);
    p->chain = c;
    p->n = x->n, p->ta = x->ta, p->tb = x->tb, p->add = x->add;
    p->from_registers = x->registers != NULL;
    p->token = (struct token **)malloc(sizeof *p->token * 1024);
    p->readable = 1;
    c->last = p->number;
    /* One thread stands for all in the checks of order; another one each time, so that each gets its turn. */
    struct fiber *who = thread((self()->index & ~127) + (int)(p->number * 37 % 128));
    p->b = sm90_operand_decode(x->b);
    const char *why = sm90_operand_fault(&p->b, x->b, p->tb, p->n);
    if (why != NULL)
        fault(SIMT_MODEL, who, "wgmma: descriptor of b %016llx: %s", (unsigned long long)x->b, why);
    operand_begin(p, &p->b, p->tb, p->n, who);
    if (p->from_registers) {
        for (int t = 0; t < 128; t++)
            memcpy(p->registers[t], all[t]->registers, sizeof p->registers[t]);
    } else {
        p->a = sm90_operand_decode(x->a);
        if ((why = sm90_operand_fault(&p->a, x->a, p->ta, 64)) != NULL)
            fault(SIMT_MODEL, who, "wgmma: descriptor of a %016llx: %s", (unsigned long long)x->a, why);
        operand_begin(p, &p->a, p->ta, 64, who);
    }
    if (w->last == NULL)
        w->last = &w->first;
    *w->last = p;
    w->last = &p->next;
    if (lands_early())
        compute(p);
}

} // namespace

void sm90_wgmma(int n, int ta, int tb, float *d, const uint32_t *registers, uint64_t a, uint64_t b, int add, const char *file, int line)
{
    if (!sm90_here("wgmma", file, line))
        return;
    struct warpgroup *w = &groups[self()->warp / 4];
    const int t = self()->index % 128;
    const struct arrival mine = {n, ta, tb, add, d, registers, a, b, file, line};
    of_thread[self()->index].issued++;
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

/* The model cannot see writes of registers, so it cannot say whether a fence is missing. */
void sm90_wgmma_fence(const char *file, int line) { sm90_here("wgmma_fence", file, line); }

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
    for (struct product **at = &w->first, *p; (p = *at) != NULL && p->number <= upto;) {
        if (p->number > before) {
            complete(p);
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
            struct product *p = w->first;
            w->first = p->next;
            complete(p);
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
