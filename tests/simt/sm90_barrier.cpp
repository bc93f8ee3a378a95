/* mbarrier (PTX ISA, "mbarrier"): a phase ends when all its arrivals are in and its transaction count is zero; then the next one
 * begins with the same number of arrivals. A bulk copy lands as late as it can: when somebody waits for a phase that only lacks the
 * bytes of copies in flight. Arrivals release, waits acquire; arrivals of earlier phases stay acquired (read-modify-writes of one
 * word are one release sequence). Sleeping waiters are woken only when a phase can end. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sm90_model.h"

using namespace simt;

unsigned sm90_init_fences[1024];

namespace {

#define BARRIERS 128
const uint32_t counts_most = (1u << 20) - 1;

struct mbarrier {
    uint32_t address;
    uint32_t count, pending;
    int64_t tx;        /* announced minus landed */
    int64_t in_flight; /* bytes of copies on their way */
    uint32_t phase;
    int maker;
    unsigned made_at; /* sm90_init_fences of the maker when it made this */
    int broken;       /* reported once */
    struct clock gathered, done;
    struct wait_list waiters;
    struct sm90_landing *first, **last;
};
struct mbarrier table[BARRIERS];
int made;

struct mbarrier *find(uint32_t address)
{
    for (int i = 0; i < made; i++)
        if (table[i].address == address)
            return &table[i];
    return NULL;
}

/* The barrier, after the check that its initialisation is ordered before; NULL after a report. */
struct mbarrier *look(uint32_t address, const char *what)
{
    struct mbarrier *b = find(address);
    if (b == NULL) {
        fault(SIMT_MODEL, self(), "%s: no mbarrier at %s", what, place(shared(address)));
        return NULL;
    }
    touch(self(), shared(address), 8, READ | ATOMIC, 8);
    return b;
}

int can_end(const struct mbarrier *b)
{
    return b->pending == 0 && b->tx <= b->in_flight;
}

void land_all(struct mbarrier *b)
{
    while (b->first != NULL) {
        struct sm90_landing *l = b->first;
        b->first = l->next;
        b->tx -= l->bytes;
        b->in_flight -= l->bytes;
        if (l->copy != NULL)
            l->copy(l);
        if (l->token != NULL)
            finish(l->token, &b->gathered, (int)(b - table));
        free(l->own);
        free(l);
    }
    b->last = &b->first;
}

void end_phase(struct mbarrier *b)
{
    if (b->tx < 0) {
        fault(SIMT_MODEL, self(), "mbarrier %s: %lld bytes landed more than were announced", place(shared(b->address)), (long long)-b->tx);
        b->tx = 0;
    }
    b->done = b->gathered;
    b->phase++;
    b->pending = b->count;
    wake_all(&b->waiters);
}

/* After every change: nothing in flight ends the phase at once; copies in flight land when somebody waits for them. */
void settle(struct mbarrier *b)
{
    if (!can_end(b))
        return;
    if (b->in_flight == 0)
        end_phase(b);
    else
        wake_all(&b->waiters);
}

} // namespace

int sm90_here(const char *what, const char *file, int line)
{
    at(file, line);
    if (arch() >= 90)
        return 1;
    fault(SIMT_MODEL, self(), "%s needs sm_90, this device is sm_%d", what, arch());
    return 0;
}

void sm90_barriers_begin()
{
    made = 0;
    memset(sm90_init_fences, 0, sizeof sm90_init_fences);
}

void sm90_barriers_end()
{
    for (int i = 0; i < made; i++) {
        struct mbarrier *b = &table[i];
        if (b->first != NULL && !b->broken)
            fault(SIMT_ASYNC, NULL, "mbarrier %s: the block ended with %lld bytes of bulk copies in flight", place(shared(b->address)),
                  (long long)b->in_flight);
        land_all(b);
    }
    made = 0;
}

void sm90_deadlock(char *text, size_t size)
{
    size_t used = strlen(text);
    for (int i = 0; i < made && used < size - 1; i++) {
        struct mbarrier *b = &table[i];
        if (b->waiters.head != NULL)
            used +=
                (size_t)snprintf(text + used, size - used, "; mbarrier %s in phase %u (parity %u) lacks %u of %u arrivals and %lld announced bytes",
                                 place(shared(b->address)), b->phase, b->phase & 1, b->pending, b->count, (long long)(b->tx - b->in_flight));
    }
}

void sm90_mbarrier_init(uint32_t bar, uint32_t count, const char *file, int line)
{
    if (!sm90_here("mbarrier_init", file, line))
        return;
    if (count < 1 || count > counts_most)
        fault(SIMT_MODEL, self(), "mbarrier_init: a count of %u, expected 1 to 2^20 - 1", count);
    struct mbarrier *b = find(bar);
    if (b != NULL) {
        fault(SIMT_MODEL, self(), "mbarrier_init: %s already is an mbarrier", place(shared(bar)));
        return;
    }
    static const uint64_t word = 0;
    if (!touch(self(), shared(bar), 8, WRITE, 8))
        return;
    memcpy(shared(bar), &word, 8);
    if (made == BARRIERS) {
        fault(SIMT_MODEL, self(), "mbarrier_init: the model has room for %d mbarriers in a block", BARRIERS);
        return;
    }
    b = &table[made++];
    memset(b, 0, sizeof *b);
    b->address = bar;
    b->count = b->pending = count;
    b->maker = self()->index;
    b->made_at = sm90_init_fences[b->maker];
    b->last = &b->first;
}

void sm90_mbarrier_arrive(uint32_t bar, int expects, uint32_t bytes, const char *file, int line)
{
    if (!sm90_here("mbarrier_arrive", file, line))
        return;
    struct mbarrier *b = look(bar, "mbarrier_arrive");
    if (b == NULL)
        return;
    if (expects && (bytes > counts_most || b->tx + bytes > counts_most))
        fault(SIMT_MODEL, self(), "mbarrier %s: %lld bytes announced, at most 2^20 - 1", place(shared(bar)), (long long)(b->tx + bytes));
    if (b->pending == 0) {
        fault(SIMT_MODEL, self(), "mbarrier %s: an arrival more than the %u of phase %u", place(shared(bar)), b->count, b->phase);
        return;
    }
    b->tx += expects ? bytes : 0;
    b->pending--;
    release(&b->gathered);
    settle(b);
}

void sm90_mbarrier_wait(uint32_t bar, uint32_t parity, const char *file, int line)
{
    if (!sm90_here("mbarrier_wait", file, line))
        return;
    struct mbarrier *b = look(bar, "mbarrier_wait");
    if (b == NULL)
        return;
    if (parity > 1)
        fault(SIMT_MODEL, self(), "mbarrier_wait: a parity of %u", parity);
    while ((b->phase & 1) == parity) {
        if (can_end(b)) {
            land_all(b);
            end_phase(b);
        } else {
            sleep_in(&b->waiters, "mbarrier");
        }
    }
    acquire(&b->done);
}

void sm90_fence(int of_shared, const char *file, int line)
{
    if (!sm90_here("a fence", file, line))
        return;
    sm90_init_fences[self()->index]++;
    if (of_shared)
        fence_async();
}

int sm90_barrier_track(uint32_t bar, struct sm90_landing *l)
{
    struct mbarrier *b = look(bar, "tma_load");
    if (b == NULL)
        return 0;
    if (sm90_init_fences[b->maker] == b->made_at && !b->broken) {
        fault(SIMT_MODEL, self(), "mbarrier %s: no fence_mbarrier_init() since its initialisation, bulk copies may not see it", place(shared(bar)));
        b->broken = 1;
    }
    l->next = NULL;
    *b->last = l;
    b->last = &l->next;
    b->in_flight += l->bytes;
    settle(b);
    return 1;
}

void simt::sm90_block_begin()
{
    sm90_barriers_begin();
    sm90_bulk_begin();
    sm90_wgmma_begin();
    sm90_registers_begin();
}

void simt::sm90_block_end()
{
    sm90_wgmma_end();
    sm90_bulk_end();
    sm90_barriers_end();
    sm90_registers_end();
}
