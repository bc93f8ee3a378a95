/* Fibers, their switch, the queue of runnable ones, and the launch: blocks in order of blockIdx, each until all its fibers have returned. */
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>

#include "state.h"
#include "sm90_model.h"

/* void simt_switch(void **save, void *resume): pushes the callee-saved registers, exchanges stacks, pops. MXCSR and the x87 control
 * word are not saved: nothing here changes them. */
extern "C" void simt_switch(void **save, void *resume);
asm(".text\n"
    ".globl simt_switch\n"
    ".type simt_switch, @function\n"
    "simt_switch:\n"
    "    pushq %rbp\n    pushq %rbx\n    pushq %r12\n    pushq %r13\n    pushq %r14\n    pushq %r15\n"
    "    movq %rsp, (%rdi)\n"
    "    movq %rsi, %rsp\n"
    "    popq %r15\n    popq %r14\n    popq %r13\n    popq %r12\n    popq %rbx\n    popq %rbp\n"
    "    ret\n"
    ".size simt_switch, .-simt_switch\n"
    ".section .note.GNU-stack,\"\",@progbits\n"
    ".text\n");

namespace simt {

struct launch_state now;
struct fiber fibers[SIMT_WARPS * SIMT_LANES];
struct fiber *current;
char *stacks;
char order_mode;
static uint32_t order_seed, order_state;
static void *main_sp;
static int stopped;

/* Runnable fibers: a ring, at most all of them. */
#define RING (SIMT_WARPS * SIMT_LANES * 2)
static struct fiber *ring[RING];
static unsigned ring_head, ring_tail;

uint32_t random_next()
{
    order_state ^= order_state << 13, order_state ^= order_state >> 17, order_state ^= order_state << 5;
    return order_state;
}

static void push(struct fiber *f)
{
    f->waits_for = NULL;
    ring[ring_tail++ % RING] = f;
}

static struct fiber *pop()
{
    const unsigned n = ring_tail - ring_head;
    if (n == 0)
        return NULL;
    if (order_mode == 'x' && n > 1) {
        const unsigned at = ring_head + random_next() % n;
        struct fiber *f = ring[at % RING];
        ring[at % RING] = ring[ring_head % RING];
        ring[ring_head % RING] = f;
    }
    return ring[ring_head++ % RING];
}

/* Leaves the running context for the next runnable fiber, or for the launcher when there is none. */
static void go_on(void **save)
{
    struct fiber *next = pop();
    current = next;
    simt_switch(save, next != NULL ? next->sp : main_sp);
}

static void leave_fiber()
{
    struct fiber *f = current;
    f->done = 1;
    now.n_done++;
    now.alive[f->warp] &= ~(1u << f->lane);
    collectives_return(f);
    void *dead;
    go_on(&dead);
    __builtin_unreachable();
}

static void fiber_main()
{
    now.call(now.closure);
    leave_fiber();
}

struct fiber *self() { return current; }
struct fiber *thread(int i) { return &fibers[i]; }
struct fiber *lane(int i) { return &fibers[current->warp * SIMT_LANES + i]; }
int threads() { return now.n_threads; }
int arch() { return now.arch; }
unsigned warp_alive() { return now.alive[current->warp]; }
void at(const char *file, int line)
{
    if (current == NULL) {
        fprintf(stderr, "simt: %s:%d: device code called outside a kernel\n", file, line);
        abort();
    }
    current->file = file, current->line = line;
}

void sleep_in(struct wait_list *list, const char *waits_for)
{
    struct fiber *f = current;
    f->waits_for = waits_for;
    f->next = list->head;
    list->head = f;
    go_on(&f->sp);
}

/* In the order they fell asleep, or the opposite in reverse order. */
void wake_all(struct wait_list *list)
{
    struct fiber *f = list->head, *turned = NULL;
    list->head = NULL;
    if (order_mode != 'r') {
        while (f != NULL) {
            struct fiber *next = f->next;
            f->next = turned, turned = f, f = next;
        }
        f = turned;
    }
    while (f != NULL) {
        struct fiber *next = f->next;
        push(f);
        f = next;
    }
}

void reschedule()
{
    struct fiber *f = current;
    push(f);
    go_on(&f->sp);
}

void stop_launch()
{
    stopped = 1;
    if (current == NULL)
        abort();
    void *dead;
    current = NULL;
    ring_head = ring_tail = 0;
    simt_switch(&dead, main_sp);
    __builtin_unreachable();
}

static void stacks_map()
{
    if (stacks != NULL)
        return;
    const size_t n = SIMT_WARPS * SIMT_LANES;
    void *p = mmap(NULL, n * STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(p != MAP_FAILED);
    stacks = (char *)p;
    for (size_t i = 0; i < n; i++) {
        fibers[i].stack = stacks + i * STACK_BYTES;
        CHECK(mprotect(fibers[i].stack, 4096, PROT_NONE) == 0); /* a stack that grows too far stops the program here */
    }
}

static void fiber_start(int i)
{
    struct fiber *f = &fibers[i];
    f->index = i, f->warp = i / SIMT_LANES, f->lane = i % SIMT_LANES;
    f->x = (uint32_t)i % now.block.x, f->y = (uint32_t)i / now.block.x % now.block.y, f->z = (uint32_t)i / (now.block.x * now.block.y);
    f->done = 0, f->waits_for = NULL, f->line = 0, f->file = NULL, f->barriers = 0;
    f->sm90 = NULL;
    void **top = (void **)(f->stack + STACK_BYTES - 64);
    *--top = NULL; /* so that fiber_main begins with the alignment of a called function */
    *--top = (void *)fiber_main;
    for (int r = 0; r < 6; r++)
        *--top = NULL;
    f->sp = top;
}

static void report_deadlock()
{
    char text[1024];
    size_t used = 0;
    struct fiber *first = NULL;
    text[0] = 0;
    /* Threads that wait for the same thing on the same line are named together. */
    for (int i = 0; i < now.n_threads; i++) {
        struct fiber *f = &fibers[i];
        if (f->done || f->waits_for == NULL)
            continue;
        int count = 0, seen = 0;
        for (int j = 0; j < now.n_threads; j++)
            if (!fibers[j].done && fibers[j].waits_for == f->waits_for && fibers[j].line == f->line) {
                seen |= j < i;
                count++;
            }
        first = first == NULL ? f : first;
        if (seen || used > sizeof text - 160)
            continue;
        used += (size_t)snprintf(text + used, sizeof text - used, "%s%d thread%s (first %d) wait%s for %s at line %d", used > 0 ? "; " : "", count,
                                 count == 1 ? "" : "s", i, count == 1 ? "s" : "", f->waits_for, f->line);
    }
    sm90_deadlock(text, sizeof text);
    fault(SIMT_DEADLOCK, first, "%d of %d threads have returned; %s", now.n_done, now.n_threads, text);
}

static enum code run_block()
{
    now.n_done = 0;
    now.serial++;
    ring_head = ring_tail = 0;
    for (int w = 0; w < now.n_warps; w++) {
        const int lanes = now.n_threads - w * SIMT_LANES;
        now.alive[w] = lanes >= SIMT_LANES ? 0xffffffffu : (1u << lanes) - 1;
    }
    for (int i = 0; i < now.n_threads; i++) {
        fiber_start(i);
        push(&fibers[order_mode == 'r' ? now.n_threads - 1 - i : i]);
    }
    order_block_begin();
    memory_block_begin();
    shadow_block_begin();
    collectives_block_begin();
    async_block_begin();
    sm90_block_begin();
    stopped = 0;
    go_on(&main_sp);
    current = NULL;
    if (stopped)
        return fail(ERR_DEVICE, "%s: the launch was stopped by a fault", now.name);
    if (now.n_done < now.n_threads) {
        report_deadlock();
        return fail(ERR_DEVICE, "%s: deadlock", now.name);
    }
    sm90_block_end();
    return OK;
}

static enum code refuse(const char *what, size_t found, size_t limit)
{
    fault(SIMT_LAUNCH, NULL, "%s: %zu, the limit is %zu", what, found, limit);
    return fail(ERR_DEVICE, "%s: cannot be launched: %s: %zu, the limit is %zu", now.name, what, found, limit);
}

/* A wild pointer or a stack that grew too far ends the program; say where. Fibers have small stacks, so this one runs on its own. */
static struct sigaction old_action;
static void on_segv(int number, siginfo_t *info, void *context)
{
    (void)number, (void)context;
    const char *p = (const char *)info->si_addr;
    sigaction(SIGSEGV, &old_action, NULL); /* the instruction runs again and meets who was there before */
    struct fiber *f = current;
    if (f == NULL)
        return;
    fprintf(stderr, "simt: %s: block (%u,%u,%u), thread (%u,%u,%u), after line %d: %s at %p\n", now.name, now.block_index.x, now.block_index.y,
            now.block_index.z, f->x, f->y, f->z, f->line,
            p >= f->stack && p < f->stack + 4096 ? "the thread's stack is full (private arrays too large, or recursion)" : "a wild pointer", (const void *)p);
}

static void catch_segv(int on)
{
    static char alternate[65536];
    if (!on) {
        sigaction(SIGSEGV, &old_action, NULL);
        return;
    }
    stack_t stack = {};
    stack.ss_sp = alternate, stack.ss_size = sizeof alternate;
    sigaltstack(&stack, NULL);
    struct sigaction action = {};
    action.sa_sigaction = on_segv;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &old_action);
}

static enum code run_blocks()
{
    for (uint32_t z = 0; z < now.grid.z; z++)
        for (uint32_t y = 0; y < now.grid.y; y++)
            for (uint32_t x = 0; x < now.grid.x; x++) {
                now.block_index = {x, y, z};
                TRY(run_block());
            }
    return OK;
}

static void order_from_environment()
{
    if (order_mode != 0)
        return;
    const char *text = getenv("GQAKIT_SIMT_ORDER");
    simt_set_order(text != NULL ? (strncmp(text, "random", 6) == 0 ? 'x' : text[0]) : 'f',
                   text != NULL && strchr(text, ':') != NULL ? (unsigned)atoi(strchr(text, ':') + 1) : 1);
}

} // namespace simt

using namespace simt;

void simt_set_order(char order, unsigned seed)
{
    CHECK(order == 'f' || order == 'r' || order == 'x');
    order_mode = order;
    order_seed = seed * 2654435761u | 1u;
}

uint3 simt_thread_index() { return {current->x, current->y, current->z}; }
uint3 simt_block_index() { return now.block_index; }
dim3 simt_block_dim() { return now.block; }
dim3 simt_grid_dim() { return now.grid; }
void *simt_shared_memory() { return shared_memory; }

enum code simt_launch(int arch, size_t smem_max, const char *name, dim3 grid, dim3 block, size_t smem, void (*call)(void *), void *closure,
                      size_t closure_bytes)
{
    CHECK(current == NULL);
    stacks_map();
    order_from_environment();
    order_state = order_seed;
    now.name = name, now.arch = arch, now.grid = grid, now.block = block, now.smem = smem;
    now.call = call, now.closure = (char *)closure, now.closure_bytes = closure_bytes;
    now.block_index = {0, 0, 0};
    const size_t n = (size_t)block.x * block.y * block.z;
    if (n == 0 || n > 1024 || block.z > 64)
        return refuse("threads of a block (at least one, z at most 64)", n, 1024);
    if (smem > smem_max || smem > SIMT_SHARED_MAX)
        return refuse("bytes of shared memory", smem, smem_max < SIMT_SHARED_MAX ? smem_max : SIMT_SHARED_MAX);
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu)
        return refuse("blocks along x (no extent may be 0)", grid.x, 0x7fffffffu);
    if (grid.y > 65535 || grid.z > 65535)
        return refuse("blocks along y or z", grid.y > grid.z ? grid.y : grid.z, 65535);
    now.n_threads = (int)n;
    now.n_warps = (now.n_threads + SIMT_LANES - 1) / SIMT_LANES;
    catch_segv(1);
    const enum code code = run_blocks();
    catch_segv(0);
    return code;
}
