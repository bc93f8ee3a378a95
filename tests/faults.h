/* Faults on demand, shared by the tests of what is never lost. fault_io.c stands before libc's write, fsync, rename ... and is linked into the
 * programs the Makefile lists (FAULT_IO); fault_memory.c stands before malloc through the linker's --wrap (FAULT_MEMORY).
 * How many cases: few by default; GQAKIT_SOAK=1 (make soak) takes every one. */
#ifndef GQAKIT_TESTS_FAULTS_H
#define GQAKIT_TESTS_FAULTS_H

#include "harness.h"

int soak(void);               /* 1 under GQAKIT_SOAK=1 */
int soak_count(int ci, int n); /* n then, else ci */

/* ---- input and output ------------------------------------------------------------------------------------------------ */

enum fault { FAULT_NONE, FAULT_KILL, FAULT_TORN, FAULT_EIO, FAULT_ENOSPC, FAULT_EDQUOT, FAULT_SHORT, FAULT_EINTR, FAULT_READ_EIO, FAULTS,
             FAULT_READ_EINTR, FAULT_READ_SHORT, FAULT_LOOK_EIO, FAULT_READ_OWN, FAULT_MODES }; /* those beyond FAULTS: test_read_faults.c alone */
extern const char *const FAULT_NAMES[FAULT_MODES];
/* From here on this process's call number `at` (1-based) fails so: of those that change the disk, for FAULT_READ_... of those that read (FAULT_READ_OWN: not in its own children), for
 * FAULT_LOOK_EIO of open for reading, fstat and readdir. */
void fault_arm(enum fault mode, int at);
int fault_fired(void); /* 1 once that has happened, here or in a child */

/* What is tried at every call. `act` runs in a child; `after` fails the test unless the old or the new state is there, whole, and returns 1 for
 * the new one. `left`: entries of `dir` when nothing is left over. */
struct scene {
    const char *name, *dir;
    void (*before)(void);
    enum code (*act)(void);
    int (*after)(void);
    int left;
    int fresh;  /* there was nothing before: one entry less while the new state is not there */
    int same;   /* the new state cannot be told from the old one */
    int heals;  /* acting again removes what a kill has left */
    int stride; /* without soak; kills go by the third of it. 0: 3 */
    int space;  /* a full disk's sentence says how much is needed and free */
};
/* Every fault at every (stride-th) call. Prints a line per fault. */
void fault_play(const struct scene *s);
/* Exit status of the act with this fault; -1 when it was killed; 100 + status when the fault was never reached. */
int fault_run(const struct scene *s, enum fault mode, int at);
int fault_entries(const char *dir);

/* ---- power loss ------------------------------------------------------------------------------------------------------ */

/* Records what the act does to the disk, then plays it back as a machine that loses power might have kept it: what was synced (a file's bytes by
 * its own fsync, names by their directory's), and of the rest any part, in halves, in any order. Cut after every call, `random` times more at random;
 * `after` judges each. At the end, with only what was synced, the new state must be there. */
void fault_power(const struct scene *s, int random);

/* Recording, for fault_power.c. Memory shared with the child. */
enum fault_op_kind { OP_MAKE_FILE, OP_MAKE_DIR, OP_WRITE, OP_SIZE, OP_SYNC, OP_REMOVE, OP_RENAME, OP_EXCHANGE };
struct fault_op { enum fault_op_kind kind; int64_t offset, n; size_t bytes; char a[400], b[400]; }; /* then `bytes` bytes, to a multiple of 8 */
struct fault_log { size_t used, capacity; int overflow, count; };
void fault_record(struct fault_log *log); /* NULL: stop */

/* ---- memory ---------------------------------------------------------------------------------------------------------- */

void fault_memory_arm(long at, int all_after); /* the at-th allocation of our own code (and jansson's) fails; and all after it */
long fault_memory_calls(void);

/* The act in a child for every (stride-th) allocation that fails: it may do without, or end with a code and a sentence; it may not crash, hang, nor
 * leave a temporary in dir (NULL: none to look at). Up to 5000 allocations under soak. check (NULL: none) is run after each, with its status. */
struct memory_scene { const char *name, *dir; void (*before)(void); enum code (*act)(void); void (*check)(int status); int cases; /* about, without soak */ };
void fault_memory_play(const struct memory_scene *s);

#endif
