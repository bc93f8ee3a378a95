/* See faults.h. These functions stand before libc's in the programs they are linked into: the library is linked statically, and shared libraries
 * find the program's symbols first. */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "faults.h"

const char *const FAULT_NAMES[FAULT_MODES] = {"none", "kill", "torn write", "EIO", "ENOSPC", "EDQUOT", "1-byte write", "EINTR", "EIO reading", "", "EINTR reading", "1-byte read", "EIO looking", "EIO reading, not in children"};

static enum fault mode;
static int fault_at, calls;
static pid_t armed_by;
static int *fired; /* shared with children of this process, who may be the ones that get there */
static struct fault_log *log_now;

void fault_arm(enum fault m, int at)
{
    mode = m;
    fault_at = at;
    calls = 0;
    armed_by = getpid();
    if (!fired)
        fired = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (m != FAULT_NONE)
        *fired = 0;
}

int fault_fired(void) { return *fired; }
void fault_record(struct fault_log *log) { log_now = log; }

/* ---- recording ------------------------------------------------------------------------------------------------------- */

static void note(enum fault_op_kind kind, const char *a, const char *b, int64_t offset, int64_t n, const void *bytes, size_t size)
{
    struct fault_log *l = log_now;
    size_t all = sizeof(struct fault_op) + (size + 7) / 8 * 8;
    if (!l)
        return;
    if (l->used + all > l->capacity || strlen(a) >= 400 || (b && strlen(b) >= 400)) {
        l->overflow = 1;
        return;
    }
    struct fault_op *op = (struct fault_op *)(void *)((char *)(l + 1) + l->used);
    memset(op, 0, sizeof *op);
    op->kind = kind;
    op->offset = offset;
    op->n = n;
    op->bytes = size;
    memcpy(op->a, a, strlen(a));
    if (b)
        memcpy(op->b, b, strlen(b));
    if (size)
        memcpy(op + 1, bytes, size);
    l->used += all;
    l->count++;
}

/* The path an open file has now. */
static const char *path_of(int fd, char text[400])
{
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = syscall(SYS_readlinkat, AT_FDCWD, link, text, 399);
    text[n > 0 ? n : 0] = 0;
    return text;
}

static const char *path_at(int at, const char *name, char text[800])
{
    char dir[400];
    if (at == AT_FDCWD || name[0] == '/')
        return name;
    snprintf(text, 800, "%s/%s", path_of(at, dir), name);
    return text;
}

/* ---- failing --------------------------------------------------------------------------------------------------------- */

enum what { PLAIN, WRITING };

/* -1: the call fails, errno is set. 1: a write of one byte, or a torn one. Kills the process itself. */
static int fault(enum what what)
{
    if (mode == FAULT_NONE || mode >= FAULT_READ_EIO || ++calls != fault_at)
        return 0;
    *fired = 1;
    switch (mode) {
    case FAULT_KILL: kill(getpid(), SIGKILL); break;
    case FAULT_TORN:
        if (what == WRITING)
            return 1;
        kill(getpid(), SIGKILL);
        break;
    case FAULT_EIO: errno = EIO; return -1;
    case FAULT_ENOSPC: errno = ENOSPC; return -1;
    case FAULT_EDQUOT: errno = EDQUOT; return -1;
    case FAULT_SHORT: return what == WRITING;
    case FAULT_EINTR:
        if (what != WRITING)
            return 0;
        errno = EINTR;
        return -1;
    default: break;
    }
    return 0;
}

/* -1: the call fails, errno is set. 1: a read of one byte. */
static int fault_reading(void)
{
    if (mode < FAULT_READ_EIO || mode == FAULT_LOOK_EIO || (mode == FAULT_READ_OWN && getpid() != armed_by) || ++calls != fault_at)
        return 0;
    *fired = 1;
    errno = mode == FAULT_READ_EINTR ? EINTR : EIO;
    return mode == FAULT_READ_SHORT ? 1 : -1;
}

static int fault_looking(void)
{
    if (mode != FAULT_LOOK_EIO || ++calls != fault_at)
        return 0;
    *fired = 1;
    errno = EIO;
    return 1;
}

ssize_t pwrite(int fd, const void *p, size_t n, off_t offset)
{
    char path[400];
    int f = fault(WRITING);
    if (f < 0)
        return -1;
    if (f && mode == FAULT_TORN) {
        syscall(SYS_pwrite64, fd, p, n / 2, offset);
        kill(getpid(), SIGKILL);
    }
    ssize_t done = syscall(SYS_pwrite64, fd, p, f && n ? 1 : n, offset);
    if (log_now && done > 0)
        note(OP_WRITE, path_of(fd, path), NULL, offset, done, p, (size_t)done);
    return done;
}

ssize_t write(int fd, const void *p, size_t n)
{
    char path[400];
    struct stat st;
    if (fd <= 2 || syscall(SYS_fstat, fd, &st) || !S_ISREG(st.st_mode))
        return syscall(SYS_write, fd, p, n);
    int f = fault(WRITING);
    if (f < 0)
        return -1;
    if (f && mode == FAULT_TORN) {
        syscall(SYS_write, fd, p, n / 2);
        kill(getpid(), SIGKILL);
    }
    ssize_t done = syscall(SYS_write, fd, p, f && n ? 1 : n);
    if (log_now && done > 0)
        note(OP_WRITE, path_of(fd, path), NULL, (int64_t)syscall(SYS_lseek, fd, 0, SEEK_CUR) - done, done, p, (size_t)done);
    return done;
}

ssize_t pread(int fd, void *p, size_t n, off_t offset)
{
    int f = fault_reading();
    return f < 0 ? -1 : syscall(SYS_pread64, fd, p, f && n ? 1 : n, offset);
}

ssize_t read(int fd, void *p, size_t n)
{
    struct stat st;
    int f = fd > 2 && syscall(SYS_fstat, fd, &st) == 0 && S_ISREG(st.st_mode) ? fault_reading() : 0;
    return f < 0 ? -1 : syscall(SYS_read, fd, p, f && n ? 1 : n);
}

int fstat(int fd, struct stat *st) { return fault_looking() ? -1 : (int)syscall(SYS_fstat, fd, st); }

struct dirent *readdir(DIR *d)
{
    static struct dirent *(*real)(DIR *);
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "readdir");
    return fault_looking() ? NULL : real(d);
}

int fsync(int fd) /* nothing is on its way to a disk here: power loss is played, not waited for */
{
    char path[400];
    if (fault(PLAIN) < 0)
        return -1;
    if (log_now)
        note(OP_SYNC, path_of(fd, path), NULL, 0, 0, NULL, 0);
    return 0;
}

int ftruncate(int fd, off_t n)
{
    char path[400];
    int r = fault(PLAIN) < 0 ? -1 : (int)syscall(SYS_ftruncate, fd, n);
    if (!r && log_now)
        note(OP_SIZE, path_of(fd, path), NULL, 0, n, NULL, 0);
    return r;
}

int mkdir(const char *path, mode_t m)
{
    int r = fault(PLAIN) < 0 ? -1 : (int)syscall(SYS_mkdirat, AT_FDCWD, path, m);
    if (!r)
        note(OP_MAKE_DIR, path, NULL, 0, 0, NULL, 0);
    return r;
}

int unlinkat(int at, const char *name, int flags)
{
    char text[800];
    const char *path = path_at(at, name, text);
    int r = fault(PLAIN) < 0 ? -1 : (int)syscall(SYS_unlinkat, at, name, flags);
    if (!r)
        note(OP_REMOVE, path, NULL, 0, 0, NULL, 0);
    return r;
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }

int renameat2(int x, const char *a, int y, const char *b, unsigned flags)
{
    char one[800], two[800];
    const char *from = path_at(x, a, one), *to = path_at(y, b, two);
    int r = fault(PLAIN) < 0 ? -1 : (int)syscall(SYS_renameat2, x, a, y, b, flags);
    if (!r)
        note(flags & RENAME_EXCHANGE ? OP_EXCHANGE : OP_RENAME, from, to, 0, 0, NULL, 0);
    return r;
}

int rename(const char *a, const char *b) { return renameat2(AT_FDCWD, a, AT_FDCWD, b, 0); }

int open(const char *path, int flags, ...)
{
    va_list args;
    struct stat st;
    va_start(args, flags);
    int m = flags & (O_CREAT | __O_TMPFILE) ? va_arg(args, int) : 0;
    va_end(args);
    if (flags & O_CREAT ? fault(PLAIN) < 0 : fault_looking())
        return -1;
    int there = log_now && (flags & O_CREAT) && syscall(SYS_newfstatat, AT_FDCWD, path, &st, AT_SYMLINK_NOFOLLOW) == 0;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, flags, m);
    if (fd >= 0 && log_now && (flags & O_CREAT) && !there)
        note(OP_MAKE_FILE, path, NULL, 0, 0, NULL, 0);
    if (fd >= 0 && log_now && (flags & O_TRUNC) && there)
        note(OP_SIZE, path, NULL, 0, 0, NULL, 0);
    return fd;
}
