/* Hidden states of all calibration tokens: anonymous memory, or pages of a file that is unlinked as soon as it is open, so that it goes
 * with the process whatever happens. */
#include "calibrate.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static enum code file_map(const char *dir, size_t bytes, void **p)
{
    char *path = io_join(dir, ".gqa-convert-XXXXXX");
    if (!path)
        return fail(ERR_MEMORY, "out of memory for a path");
    int fd = mkstemp(path), error = 0;
    if (fd >= 0) {
        unlink(path);
        error = posix_fallocate(fd, 0, (off_t)bytes);
        *p = error ? MAP_FAILED : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        error = error ? error : errno;
        close(fd);
    }
    enum code c = OK;
    if (fd < 0 || *p == MAP_FAILED) {
        errno = fd < 0 ? errno : error;
        c = fail_errno(dir, "a temporary file for the hidden states of calibration");
    }
    free(path);
    return c;
}

enum code spill_take(struct spill *s, int64_t floats, float **out)
{
    int64_t bytes = 0;
    void *p = MAP_FAILED;
    CHECK(floats >= 0);
    if (!checked_mul(floats > 0 ? floats : 1, sizeof(float), &bytes))
        return fail(ERR_MEMORY, "%lld values of calibration do not fit any memory", (long long)floats);
    struct spill_piece *grown = realloc(s->piece, ((size_t)s->n + 1) * sizeof *grown);
    if (!grown)
        return fail(ERR_MEMORY, "out of memory");
    s->piece = grown;
    if (s->on_disk)
        TRY(file_map(s->dir, (size_t)bytes, &p));
    else
        p = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return fail(ERR_MEMORY, "out of memory for %lld bytes of hidden states", (long long)bytes);
    s->piece[s->n].p = p;
    s->piece[s->n++].bytes = (size_t)bytes;
    *out = p;
    return OK;
}

void spill_close(struct spill *s)
{
    for (int i = 0; i < s->n; i++)
        munmap(s->piece[i].p, s->piece[i].bytes);
    free(s->piece);
    s->piece = NULL;
    s->n = 0;
}
