/* Where a result may go, and how it gets there. A result is built under PATH.tmp-PID and appears at PATH whole or not at
 * all: renameat2 refuses to replace (no force) or swaps old and new in one step (force), so no crash leaves PATH half
 * made or absent. The source is never touched: same place, or one inside the other, is refused with links resolved. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "form.h"

/* Absolute path without links, of something that may not exist yet: the nearest existing parent resolved, the rest kept. */
static enum code resolve(const char *path, char **out)
{
    char *head = strdup(path), *tail = NULL, *real = NULL;
    enum code c = OK;
    while (head) {
        real = realpath(*head ? head : ".", NULL);
        if (real || errno != ENOENT)
            break;
        char *slash = strrchr(head, '/'), *joined = NULL;
        const char *last = slash ? slash + 1 : head;
        if (!strcmp(last, "..") || asprintf(&joined, "%s%s%s", last, tail ? "/" : "", tail ? tail : "") < 0)
            break;
        free(tail);
        tail = joined;
        if (slash == head)
            head[1] = 0;
        else if (slash)
            *slash = 0;
        else
            *head = 0;
    }
    if (!real)
        c = fail_errno(path, "cannot resolve");
    else if (!tail)
        *out = strdup(real);
    else if (asprintf(out, "%s/%s", real, tail) < 0)
        *out = NULL;
    if (c == OK && !*out)
        c = fail(ERR_MEMORY, "%s: out of memory", path);
    free(real);
    free(tail);
    free(head);
    return c;
}

/* 1 if `inner` is `outer` or lies below it. */
static int inside(const char *inner, const char *outer)
{
    size_t n = strlen(outer);
    return !strncmp(inner, outer, n) && (inner[n] == 0 || inner[n] == '/' || (n && outer[n - 1] == '/'));
}

static enum code source_check(const char *path, const char *source)
{
    char *target = NULL, *from = NULL;
    struct stat a, b;
    enum code c = resolve(path, &target);
    if (c == OK)
        c = resolve(source, &from);
    if (c == OK && !stat(path, &a) && !stat(source, &b) && a.st_dev == b.st_dev && a.st_ino == b.st_ino)
        c = fail(ERR_USAGE, "%s: the target is the source itself; choose another target", path);
    if (c == OK && inside(target, from))
        c = fail(ERR_USAGE, "%s: the target lies inside the source %s; choose another target", path, source);
    if (c == OK && inside(from, target))
        c = fail(ERR_USAGE, "%s: the source %s lies inside the target; choose another target", path, source);
    free(target);
    free(from);
    return c;
}

/* What --force may remove: a file, an empty directory, or a directory that holds a model. Never somebody's home. */
static enum code replace_check(const char *path)
{
    char **names;
    int n, good;
    if (!io_is_dir(path))
        return OK;
    TRY(io_list(path, &names, &n));
    good = n == 0;
    for (int i = 0; i < n; i++) {
        const char *dot = strrchr(names[i], '.');
        good |= !strcmp(names[i], "config.json") || (dot && !strcmp(dot, ".safetensors"));
    }
    io_names_free(names, n);
    return good ? OK : fail(ERR_USAGE, "%s: exists and holds no model, so it will not be replaced; choose another target", path);
}

enum code target_check(const char *path, const char *source_path, int force)
{
    struct stat st;
    if (!*path)
        return fail(ERR_USAGE, "the target path is empty");
    if (source_path)
        TRY(source_check(path, source_path));
    if (lstat(path, &st))
        return OK;
    if (!force)
        return fail(ERR_USAGE, "%s: exists already; give --force to replace it", path);
    return replace_check(path);
}

enum code target_space(const char *path, int64_t bytes)
{
    int64_t free_bytes;
    char needed[16], have[16];
    TRY(io_free_bytes(path, &free_bytes));
    if (free_bytes >= bytes)
        return OK;
    format_bytes(needed, (double)bytes);
    format_bytes(have, (double)free_bytes);
    return fail(ERR_IO, "%s: the result needs %s, the disk has %s free", path, needed, have);
}

enum code target_full(enum code c, const char *path, int64_t bytes)
{
    int64_t free_bytes;
    char needed[16], have[16], sentence[1024];
    if (c == OK || !fail_full())
        return c;
    snprintf(sentence, sizeof sentence, "%s", fail_text());
    if (io_free_bytes(path, &free_bytes) != OK)
        return fail(c, "%s", sentence);
    format_bytes(needed, (double)bytes);
    format_bytes(have, (double)free_bytes);
    return fail(c, "%s; %s needed, %s free without the unfinished result, which was removed", sentence, needed, have);
}

/* The directory around path, malloc'ed; *name (may be NULL) is path's own name. */
static enum code parent_of(const char *path, char **parent, const char **name)
{
    const char *slash = strrchr(path, '/');
    *parent = !slash ? strdup(".") : slash == path ? strdup("/") : strndup(path, (size_t)(slash - path));
    if (name)
        *name = slash ? slash + 1 : path;
    return *parent ? OK : fail(ERR_MEMORY, "%s: out of memory", path);
}

static enum code parent_fsync(const char *path)
{
    char *parent;
    TRY(parent_of(path, &parent, NULL));
    enum code c = io_fsync_path(parent);
    free(parent);
    return c;
}

enum code target_locks(const char *path, struct io_lock *locks)
{
    char *parent;
    TRY(parent_of(path, &parent, NULL));
    enum code c = io_lock_share(parent, &locks[0]);
    if (c == OK && io_is_dir(path))
        c = io_lock_share(path, &locks[1]);
    free(parent);
    return c;
}

/* Seconds since the temporary, or a file right below it, was last written. */
static double age_of(const char *path)
{
    struct stat st;
    char **names = NULL;
    int n = 0;
    time_t newest = lstat(path, &st) ? time(NULL) : st.st_mtime;
    if (io_is_dir(path) && io_list(path, &names, &n) != OK)
        n = 0;
    for (int i = 0; i < n; i++) {
        char *file = io_join(path, names[i]);
        if (file && !lstat(file, &st) && st.st_mtime > newest)
            newest = st.st_mtime;
        free(file);
    }
    io_names_free(names, n);
    return difftime(time(NULL), newest);
}

void target_stale(const char *path, int alone)
{
    char *parent, **names = NULL, *end;
    const char *name;
    int n = 0;
    if (parent_of(path, &parent, &name) != OK)
        return;
    if (io_list(parent, &names, &n) != OK)
        n = 0;
    size_t length = strlen(name);
    for (int i = 0; i < n; i++) {
        const char *tail = names[i] + length;
        if (strncmp(names[i], name, length) || strncmp(tail, ".tmp-", 5) || tail[5] < '1' || tail[5] > '9')
            continue;
        long pid = strtol(tail + 5, &end, 10);
        if (*end || kill((pid_t)pid, 0) == 0 || errno != ESRCH)
            continue;
        char *stale = io_join(parent, names[i]);
        if (stale && !alone && age_of(stale) < 600)
            log_warn("%s was left by a process that no longer runs here; remove it if none of another machine writes it", stale);
        else if (stale && io_remove_tree(stale) == OK)
            log_info("removed %s, left by a process that did not finish", stale);
        free(stale);
    }
    io_names_free(names, n);
    free(parent);
}

/* For file systems without renameat2: a moment without PATH, but never without a whole copy of one of the two. */
static enum code install_aside(const char *temporary, const char *path)
{
    char aside[PATH_MAX];
    if (snprintf(aside, sizeof aside, "%s.old-%ld", path, (long)getpid()) >= (int)sizeof aside)
        return fail(ERR_USAGE, "%s: the path is too long", path);
    TRY(io_rename(path, aside));
    enum code c = io_rename(temporary, path);
    if (c != OK) {
        if (rename(aside, path))
            return fail_in(c, "%s: the old target is now at %s", path, aside);
        return c;
    }
    return io_remove_tree(aside);
}

enum code target_install(const char *temporary, const char *path, int force)
{
    struct stat st;
    int present = !lstat(path, &st);
    if (present && !force)
        return fail(ERR_USAGE, "%s: appeared while its replacement was being written; give --force to replace it", path);
    if (!present) {
        if (!renameat2(AT_FDCWD, temporary, AT_FDCWD, path, RENAME_NOREPLACE))
            return parent_fsync(path);
        if (errno == EEXIST)
            return fail(ERR_USAGE, "%s: appeared while its replacement was being written; give --force to replace it", path);
        return io_rename(temporary, path);
    }
    if (renameat2(AT_FDCWD, temporary, AT_FDCWD, path, RENAME_EXCHANGE))
        return install_aside(temporary, path);
    TRY(parent_fsync(path));
    return io_remove_tree(temporary);
}
