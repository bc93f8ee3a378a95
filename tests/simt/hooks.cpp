/* The hooks that g++ puts before every load and store of a kernel source (-fsanitize=thread) and where an alignment or an array bound
 * can be checked (-fsanitize=alignment,bounds,...). The sanitizers' own runtimes are not linked. */
#include "state.h"

namespace simt {

static void plain(const void *p, size_t bytes, unsigned flags, size_t align, const void *pc)
{
    struct fiber *f = current;
    if (f == NULL) {
        if (is_global_region(p)) {
            access_pc = pc;
            fault(SIMT_BOUNDS, NULL, "host code %s device memory (%s), at %s", flags & WRITE ? "writes" : "reads", place(p), source_of(where_now(NULL)));
            access_pc = NULL;
        }
        return;
    }
    if ((size_t)((const char *)p - f->stack) < STACK_BYTES)
        return;
    access_pc = pc;
    touch(f, p, bytes, flags, align);
    access_pc = NULL;
}

struct location { const char *file; uint32_t line, column; };

static void ub(enum simt_fault_kind kind, const struct location *at, const char *what, const void *p)
{
    if (current == NULL) {
        fault(kind, NULL, "%s:%u: %s", at->file, at->line, what);
        return;
    }
    const char *file = current->file;
    const int line = current->line;
    current->file = at->file, current->line = (int)at->line;
    fault(kind, current, "%s%s%s", what, p != NULL ? " at " : "", p != NULL ? place(p) : "");
    current->file = file, current->line = line;
}

} // namespace simt

using namespace simt;

#define PC __builtin_return_address(0)
#define HOOK(n)                                                                              \
    void __tsan_read##n(void *p) { plain(p, n, READ, n, PC); }                               \
    void __tsan_write##n(void *p) { plain(p, n, WRITE, n, PC); }                             \
    void __tsan_volatile_read##n(void *p) { plain(p, n, READ, n, PC); }                      \
    void __tsan_volatile_write##n(void *p) { plain(p, n, WRITE, n, PC); }
#define HOOK_UNALIGNED(n)                                                                    \
    void __tsan_unaligned_read##n(void *p) { plain(p, n, READ, 1, PC); }                     \
    void __tsan_unaligned_write##n(void *p) { plain(p, n, WRITE, 1, PC); }                   \
    void __tsan_unaligned_volatile_read##n(void *p) { plain(p, n, READ, 1, PC); }            \
    void __tsan_unaligned_volatile_write##n(void *p) { plain(p, n, WRITE, 1, PC); }

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void *, void *) {}
void __tsan_vptr_read(void *) {}
HOOK(1)
HOOK(2)
HOOK(4)
HOOK(8)
HOOK(16)
HOOK_UNALIGNED(2)
HOOK_UNALIGNED(4)
HOOK_UNALIGNED(8)
HOOK_UNALIGNED(16)
void __tsan_read_range(void *p, unsigned long n) { plain(p, n, READ, 1, PC); }
void __tsan_write_range(void *p, unsigned long n) { plain(p, n, WRITE, 1, PC); }

void __ubsan_handle_type_mismatch_v1(struct location *at, void *p) { ub(SIMT_MISALIGNED, at, "an access not aligned to its type", p); }
void __ubsan_handle_out_of_bounds(struct location *at, void *) { ub(SIMT_BOUNDS, at, "an index beyond a private array", NULL); }
void __ubsan_handle_shift_out_of_bounds(struct location *at, void *, void *) { ub(SIMT_MODEL, at, "a shift by a negative or too large count", NULL); }
void __ubsan_handle_divrem_overflow(struct location *at, void *, void *) { ub(SIMT_MODEL, at, "a division by zero", NULL); }
void __ubsan_handle_builtin_unreachable(struct location *at) { ub(SIMT_MODEL, at, "__builtin_unreachable was reached", NULL); stop_launch(); }
}
