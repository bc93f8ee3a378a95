/* Reading, writing and replacing single files. Directories and locks are in io_dir.c. */
#include "base/io.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum code io_read_all(const char *path, size_t limit, char **bytes, size_t *n)
{
    *bytes = NULL;
    *n = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe that nobody writes to opens too, and ends at once */
    if (fd < 0)
        return fail_errno(path, "open");
    struct stat st;
    enum code c = OK;
    char *p = NULL;
    if (fstat(fd, &st) != 0 || fcntl(fd, F_SETFL, 0) != 0)
        TRY_GOTO(c, fail_errno(path, "stat"), done);
    if (S_ISDIR(st.st_mode))
        TRY_GOTO(c, fail(ERR_INPUT, "%s: expected a file, found a directory", path), done);
    if (S_ISREG(st.st_mode) && (uint64_t)st.st_size > limit)
        TRY_GOTO(c, fail(ERR_INPUT, "%s: %lld bytes, more than the %zu allowed here", path, (long long)st.st_size, limit), done);
    size_t capacity = S_ISREG(st.st_mode) ? (size_t)st.st_size + 1 : 4096, used = 0; /* pipes and /proc grow */
    if (!(p = malloc(capacity)))
        TRY_GOTO(c, fail(ERR_MEMORY, "%s: no memory for its %zu bytes", path, capacity), done);
    for (;;) {
        if (used + 1 >= capacity) {
            size_t larger = capacity * 2 + 64;
            char *q = realloc(p, larger);
            if (!q)
                TRY_GOTO(c, fail(ERR_MEMORY, "%s: no memory for its %zu bytes", path, larger), done);
            p = q;
            capacity = larger;
        }
        ssize_t got = read(fd, p + used, capacity - used - 1);
        if (got == 0)
            break;
        if (got < 0) {
            if (errno == EINTR)
                continue;
            TRY_GOTO(c, fail_errno(path, "read"), done);
        }
        used += (size_t)got;
        if (used > limit)
            TRY_GOTO(c, fail(ERR_INPUT, "%s: more than the %zu bytes allowed here", path, limit), done);
    }
    if (used == 0 && S_ISFIFO(st.st_mode))
        TRY_GOTO(c, fail(ERR_INPUT, "%s: a pipe out of which nothing comes", path), done);
    p[used] = 0;
    *bytes = p;
    *n = used;
    p = NULL;
done:
    free(p);
    close(fd);
    return c;
}

enum code io_open_regular(const char *path, int *fd)
{
    struct stat st;
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* no waiting for the other end of a pipe; for files it means nothing */
    if (*fd < 0)
        return fail_errno(path, "open");
    enum code c = fstat(*fd, &st) != 0 ? fail_errno(path, "stat")
                  : !S_ISREG(st.st_mode) ? fail(ERR_INPUT, "%s: expected a regular file, found %s", path, S_ISDIR(st.st_mode) ? "a directory" : "a pipe or device")
                                         : OK;
    if (c != OK) {
        close(*fd);
        *fd = -1;
    }
    return c;
}

enum code io_pread(int fd, const char *path, void *dst, size_t n, int64_t offset)
{
    size_t done = 0;
    while (done < n) {
        ssize_t got = pread(fd, (char *)dst + done, n - done, offset + (int64_t)done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return fail_errno(path, "read");
        if (got == 0)
            return fail(ERR_INPUT, "%s: expected %zu bytes at offset %lld, the file ends after %zu of them (truncated?)", path,
                        n, (long long)offset, done);
        done += (size_t)got;
    }
    return OK;
}

enum code io_pwrite(int fd, const char *path, const void *src, size_t n, int64_t offset)
{
    size_t done = 0;
    while (done < n) {
        ssize_t put = pwrite(fd, (const char *)src + done, n - done, offset + (int64_t)done);
        if (put < 0 && errno == EINTR)
            continue;
        if (put == 0)
            errno = EIO;
        if (put <= 0)
            return fail_errno(path, "write");
        done += (size_t)put;
    }
    return OK;
}

/* Of the directory that holds path, after a rename: nothing that could be refused stands between the two. */
static enum code fsync_parent(const char *path)
{
    char dir[PATH_MAX];
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/')
        n--;
    while (n > 0 && path[n - 1] != '/')
        n--;
    while (n > 1 && path[n - 1] == '/')
        n--;
    if (n >= sizeof dir)
        return fail(ERR_IO, "%s: too long a name", path);
    memcpy(dir, n ? path : ".", n ? n : 1);
    dir[n ? n : 1] = 0;
    return io_fsync_path(dir);
}

enum code io_write_atomic(const char *path, const void *bytes, size_t n)
{
    char *temporary = NULL;
    if (asprintf(&temporary, "%s.tmp-%ld", path, (long)getpid()) < 0)
        return fail(ERR_MEMORY, "%s: no memory for its temporary name", path);
    enum code c = OK;
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0)
        TRY_GOTO(c, fail_errno(temporary, "create"), done);
    c = io_pwrite(fd, temporary, bytes, n, 0);
    if (c == OK && fsync(fd) != 0)
        c = fail_errno(temporary, "fsync");
    if (close(fd) != 0 && c == OK)
        c = fail_errno(temporary, "close");
    if (c == OK)
        c = io_rename(temporary, path);
    if (c != OK)
        unlink(temporary);
done:
    free(temporary);
    return c;
}

enum code io_copy_file(const char *from, const char *to)
{
    enum { BLOCK = 1 << 20 };
    enum code c = OK;
    char *block = NULL;
    int out = -1, in;
    TRY(io_open_regular(from, &in));
    if ((out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666)) < 0)
        TRY_GOTO(c, fail_errno(to, "create"), done);
    if (!(block = malloc(BLOCK)))
        TRY_GOTO(c, fail(ERR_MEMORY, "%s: no memory to copy it", from), done);
    for (int64_t at = 0;;) {
        ssize_t got = read(in, block, BLOCK);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            TRY_GOTO(c, fail_errno(from, "read"), done);
        if (got == 0)
            break;
        TRY_GOTO(c, io_pwrite(out, to, block, (size_t)got, at), done);
        at += got;
    }
    if (fsync(out) != 0)
        c = fail_errno(to, "fsync");
done:
    if (out >= 0 && close(out) != 0 && c == OK)
        c = fail_errno(to, "close");
    close(in);
    free(block);
    return c;
}

enum code io_fsync_path(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return fail_errno(path, "open");
    enum code c = OK;
    /* Some file systems refuse to sync a directory: nothing more can be done there. */
    if (fsync(fd) != 0 && errno != EINVAL && errno != EROFS)
        c = fail_errno(path, "fsync");
    close(fd);
    return c;
}

enum code io_rename(const char *from, const char *to)
{
    if (rename(from, to) != 0)
        return fail_errno(to, "rename into place");
    return fsync_parent(to);
}

int io_exists(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0;
}

int io_is_dir(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

int64_t io_file_bytes(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode) ? (int64_t)st.st_size : -1;
}

enum code io_map_open(const char *path, struct io_map *m)
{
    m->p = NULL;
    m->n = 0;
    int fd;
    TRY(io_open_regular(path, &fd));
    enum code c = OK;
    struct stat st;
    if (fstat(fd, &st) != 0)
        c = fail_errno(path, "stat");
    else if (st.st_size == 0)
        m->p = (const unsigned char *)"";
    else {
        void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED)
            c = fail_errno(path, "map");
        else {
            m->p = p;
            m->n = (size_t)st.st_size;
        }
    }
    close(fd);
    return c;
}

void io_map_close(struct io_map *m)
{
    if (m->n)
        munmap((void *)(uintptr_t)m->p, m->n);
    m->p = NULL;
    m->n = 0;
}
