/* Directories, names and the lock of a directory. */
#include "base/io.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum code io_mkdirs(const char *path)
{
    char *p = strdup(path);
    if (!p)
        return fail(ERR_MEMORY, "%s: no memory for its name", path);
    enum code c = *path ? OK : fail(ERR_USAGE, "cannot make a directory without a name");
    for (char *slash = p; c == OK && slash; *slash ? (void)(*slash = '/') : (void)0) {
        slash = strchr(slash + 1, '/');
        char *end = slash ? slash : p + strlen(p);
        char keep = *end;
        *end = 0;
        if (mkdir(p, 0777) != 0 && !(errno == EEXIST && io_is_dir(p)))
            c = fail_errno(p, "make directory");
        *end = keep;
        if (!slash)
            break;
    }
    free(p);
    return c;
}

static enum code remove_below(int parent, const char *name, const char *path)
{
    if (unlinkat(parent, name, 0) == 0 || errno == ENOENT)
        return OK;
    if (errno != EISDIR && errno != EPERM)
        return fail_errno(path, "remove");
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    if (!d) {
        enum code c = fail_errno(path, "remove");
        if (fd >= 0)
            close(fd);
        return c;
    }
    enum code c = OK;
    struct dirent *e;
    while (c == OK && (e = readdir(d))) {
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
            continue;
        char *below = io_join(path, e->d_name);
        c = remove_below(dirfd(d), e->d_name, below ? below : e->d_name);
        free(below);
    }
    closedir(d);
    if (c == OK && unlinkat(parent, name, AT_REMOVEDIR) != 0 && errno != ENOENT)
        c = fail_errno(path, "remove directory");
    return c;
}

enum code io_remove_tree(const char *path)
{
    return remove_below(AT_FDCWD, path, path);
}

enum code io_free_bytes(const char *path, int64_t *bytes)
{
    char *p = strdup(path);
    if (!p)
        return fail(ERR_MEMORY, "%s: no memory for its name", path);
    struct statvfs v;
    int r;
    while ((r = statvfs(*p ? p : ".", &v)) != 0 && errno == ENOENT && *p) {
        char *slash = strrchr(p, '/');
        if (slash == p && p[1])
            p[1] = 0;
        else
            *(slash ? slash : p) = 0;
    }
    enum code c = r == 0 ? OK : fail_errno(path, "free space");
    free(p);
    if (c == OK)
        *bytes = (int64_t)v.f_bavail * (int64_t)v.f_frsize;
    return c;
}

char *io_join(const char *dir, const char *name)
{
    char *out = NULL;
    size_t n = strlen(dir);
    return asprintf(&out, "%s%s%s", dir, n && dir[n - 1] != '/' ? "/" : "", name) >= 0 ? out : NULL;
}

int io_name_is_safe(const char *name)
{
    if (!name || !*name || *name == '/')
        return 0;
    for (const char *p = name;;) {
        size_t n = strcspn(p, "/");
        if (n == 2 && p[0] == '.' && p[1] == '.')
            return 0;
        if (!p[n])
            return 1;
        p += n + 1;
    }
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

enum code io_list(const char *dir, char ***names, int *n)
{
    *names = NULL;
    *n = 0;
    DIR *d = opendir(dir);
    if (!d)
        return fail_errno(dir, "list");
    char **list = NULL;
    int used = 0, capacity = 0;
    struct dirent *e;
    enum code c = OK;
    while ((errno = 0, e = readdir(d))) {
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
            continue;
        if (used == capacity) {
            capacity = capacity ? 2 * capacity : 16;
            char **larger = realloc(list, (size_t)capacity * sizeof *list);
            if (!larger)
                TRY_GOTO(c, fail(ERR_MEMORY, "%s: no memory to list it", dir), done);
            list = larger;
        }
        if (!(list[used] = strdup(e->d_name)))
            TRY_GOTO(c, fail(ERR_MEMORY, "%s: no memory to list it", dir), done);
        used++;
    }
    if (errno)
        c = fail_errno(dir, "list");
done:
    closedir(d);
    if (c != OK) {
        io_names_free(list, used);
        return c;
    }
    if (used)
        qsort(list, (size_t)used, sizeof *list, by_name);
    *names = list;
    *n = used;
    return OK;
}

void io_names_free(char **names, int n)
{
    for (int i = 0; i < n; i++)
        free(names[i]);
    free(names);
}

static enum code refuse_lock(int fd, const char *dir, char holder[256])
{
    ssize_t n = pread(fd, holder, 255, 0);
    holder[n > 0 ? n : 0] = 0;
    holder[strcspn(holder, "\n")] = 0;
    return fail(ERR_LOCKED, "%s: in use by another run (%s); wait for it or use another directory", dir, holder[0] ? holder : "holder unknown");
}

static int try_lock(int fd, int how)
{
    int r;
    while ((r = flock(fd, how | LOCK_NB)) != 0 && errno == EINTR)
        ;
    return r;
}

enum code io_lock_share(const char *dir, struct io_lock *l)
{
    *l = (struct io_lock){-1, 1, 0};
    char *path = io_join(dir, ".lock"), holder[256] = "";
    if (!path)
        return fail(ERR_MEMORY, "%s: no memory for its lock's name", dir);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    free(path);
    if (fd < 0) /* no run was ever here, or none of ours may look */
        return OK;
    enum code c = OK;
    if (try_lock(fd, LOCK_SH) == 0)
        l->fd = fd;
    else if (errno == EWOULDBLOCK) {
        long pid = -1;
        c = refuse_lock(fd, dir, holder);
        if (sscanf(holder, "pid %ld ", &pid) == 1 && (pid == (long)getpid() || pid == (long)getppid()))
            c = OK;
        l->own = pid == (long)getpid();
    }
    if (l->fd < 0)
        close(fd);
    return c;
}

enum code io_lock_take(const char *dir, struct io_lock *l)
{
    *l = (struct io_lock){-1, 0, 0};
    char *path = io_join(dir, ".lock"), holder[256] = "";
    enum code c = OK;
    if (!path)
        return fail(ERR_MEMORY, "%s: no memory for its lock's name", dir);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0)
        TRY_GOTO(c, fail_errno(path, "open"), done);
    int r = try_lock(fd, LOCK_EX);
    if (r != 0)
        TRY_GOTO(c, errno == EWOULDBLOCK ? refuse_lock(fd, dir, holder) : fail_errno(path, "lock"), done);
    char host[128] = "unknown host";
    gethostname(host, sizeof host - 1);
    int n = snprintf(holder, sizeof holder, "pid %ld on %s\n", (long)getpid(), host);
    if (ftruncate(fd, 0) != 0)
        TRY_GOTO(c, fail_errno(path, "write"), done);
    TRY_GOTO(c, io_pwrite(fd, path, holder, (size_t)n, 0), done);
    l->fd = fd;
done:
    if (c != OK && fd >= 0)
        close(fd);
    free(path);
    return c;
}

/* The file stays: removing it would let two holders lock two different files of the same name. */
void io_lock_drop(struct io_lock *l)
{
    if (l->fd >= 0) {
        if (!l->shared && ftruncate(l->fd, 0) != 0)
            errno = 0;
        close(l->fd);
    }
    l->fd = -1;
}

char *io_sibling_program(const char *name)
{
    char self[4096];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = 0;
    char *slash = strrchr(self, '/');
    if (slash) {
        *slash = 0;
        char *beside = io_join(self, name);
        if (beside && access(beside, X_OK) == 0)
            return beside;
        free(beside);
    }
    return strdup(name);
}
