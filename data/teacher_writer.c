/* Writing a teacher cache (layout: teacher_format.h). Frames are appended to PATH.part, which says by itself how far it came: after a crash its
 * whole frames stay and the rest is cut off. The index and the trailer come last, then the file is synced and takes its name. The lock is
 * on PATH.part itself. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "data.h"
#include "teacher_format.h"

struct teacher_writer {
    struct teacher_cache *part; /* its header, descriptor and buffers */
    char *path;
    unsigned char *has;         /* [windows / 8] */
    int64_t at, capacity;       /* where the next frame goes; of part->entry */
};

enum { PACK_LEVEL = 6 };

static int get_bit(const unsigned char *bits, int64_t i) { return bits[i >> 3] >> (i & 7) & 1; }

static enum code note(struct teacher_writer *w, const struct teacher_entry *e)
{
    struct teacher_cache *c = w->part;
    if (c->n == w->capacity) {
        int64_t more = w->capacity ? 2 * w->capacity : 256;
        struct teacher_entry *grown = realloc(c->entry, (size_t)more * sizeof *grown);
        if (!grown)
            return fail(ERR_MEMORY, "%s: out of memory for its index", c->path);
        c->entry = grown;
        w->capacity = more;
    }
    c->entry[c->n++] = *e;
    w->has[e->window >> 3] |= (unsigned char)(1 << (e->window & 7));
    w->at = e->offset + e->bytes;
    return OK;
}

/* Appends the payload in part->packed. */
static enum code append(struct teacher_writer *w, int64_t window, int64_t bytes)
{
    unsigned char h[TEACHER_FRAME];
    struct teacher_cache *c = w->part;
    struct teacher_entry e = {window, w->at + TEACHER_FRAME, bytes, teacher_frame_hash(window, c->packed, bytes)};
    teacher_put(h, TEACHER_FRAME_MAGIC, 4);
    teacher_put(h + 4, (uint64_t)bytes, 4);
    teacher_put(h + 8, (uint64_t)window, 8);
    teacher_put(h + 16, e.hash, 8);
    TRY(io_pwrite(c->fd, c->path, h, sizeof h, w->at));
    TRY(io_pwrite(c->fd, c->path, c->packed, (size_t)bytes, e.offset));
    return note(w, &e);
}

struct header { unsigned char bytes[TEACHER_HEADER + TEACHER_FACTS]; size_t n; };

static enum code make_header(struct header *out, const char *path, const struct teacher_about *a)
{
    unsigned char *h = out->bytes;
    char *text = json_text(a->facts, JSON_COMPACT);
    size_t n = text ? strlen(text) : 0;
    if (!text || n > TEACHER_FACTS) {
        free(text);
        return text ? fail(ERR_USAGE, "%s: its description takes too many bytes (%zu)", path, n) : fail(ERR_MEMORY, "%s: out of memory", path);
    }
    memset(out, 0, sizeof *out);
    memcpy(h, TEACHER_MAGIC, 8);
    teacher_put(h + 8, (uint64_t)a->K, 4);
    teacher_put(h + 12, (uint64_t)a->T, 4);
    teacher_put(h + 16, (uint64_t)a->V, 4);
    teacher_put(h + 20, n, 4);
    teacher_put(h + 24, (uint64_t)a->windows, 8);
    memcpy(h + TEACHER_HEADER, text, n);
    free(text);
    out->n = TEACHER_HEADER + n;
    teacher_put(h + 32, hash64(h, out->n), 8);
    return OK;
}

/* A descriptor of PATH.part with the lock; the file may have got its final name between opening and locking, then again. */
static enum code open_locked(const char *part, int *fd)
{
    for (;;) {
        struct stat a, b;
        *fd = open(part, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
        if (*fd < 0)
            return fail_errno(part, "creating");
        if (flock(*fd, LOCK_EX | LOCK_NB) != 0) {
            enum code e = errno == EWOULDBLOCK ? fail(ERR_LOCKED, "%s: another run is computing this teacher cache; wait for it, or name another distill.cache", part)
                                               : fail_errno(part, "locking");
            close(*fd);
            return e;
        }
        if (fstat(*fd, &a) == 0 && stat(part, &b) == 0 && a.st_ino == b.st_ino && a.st_dev == b.st_dev)
            return OK;
        close(*fd);
    }
}

/* 1 when the file begins with our header, parts of it still zeros: power was lost before it was on the disk. Nothing behind it is of use. */
static int header_torn(int fd, const struct header *h)
{
    unsigned char there[TEACHER_HEADER + TEACHER_FACTS];
    ssize_t n = pread(fd, there, h->n, 0);
    int zeros = n == (ssize_t)h->n;
    if (!zeros || !memcmp(there, h->bytes, h->n))
        return 0;
    for (size_t i = 0; zeros && i < h->n; i++)
        zeros = there[i] == 0 || there[i] == h->bytes[i];
    return zeros;
}

static enum code open_part(struct teacher_writer *w, const char *part, const struct teacher_about *about)
{
    int fd;
    struct stat s;
    struct header h;
    TRY(make_header(&h, part, about));
    TRY(open_locked(part, &fd));
    enum code e = fstat(fd, &s) == 0 ? OK : fail_errno(part, "reading");
    if (e == OK && ((size_t)s.st_size < h.n || header_torn(fd, &h))) /* new, or torn before its first frame */
        e = ftruncate(fd, 0) == 0 ? io_pwrite(fd, part, h.bytes, h.n, 0) : fail_errno(part, "emptying");
    if (e != OK) {
        close(fd);
        return e;
    }
    e = teacher_open_header(&w->part, fd, part);
    return e == OK ? teacher_about_same(&w->part->about, about, part) : e;
}

/* The whole frames of an interrupted part; what follows them is cut off. */
static enum code take_part(struct teacher_writer *w)
{
    struct teacher_cache *c = w->part;
    int whole = 1;
    w->at = c->data;
    while (whole) {
        struct teacher_entry e;
        TRY(teacher_read_frame(c, w->at, c->bytes, &e, &whole));
        if (whole && get_bit(w->has, e.window))
            whole = 0;
        if (whole)
            TRY(note(w, &e));
    }
    return w->at == c->bytes || ftruncate(c->fd, w->at) == 0 ? OK : fail_errno(c->path, "cutting");
}

/* The windows of a finished file that the part lacks, as they are. */
static enum code take_old(struct teacher_writer *w, const struct teacher_about *about)
{
    struct teacher_cache *old;
    if (!io_exists(w->path))
        return OK;
    TRY(teacher_cache_open(&old, w->path));
    enum code e = teacher_about_same(&old->about, about, w->path);
    for (int64_t i = 0; e == OK && i < old->n; i++) {
        const struct teacher_entry *x = &old->entry[i];
        if (get_bit(w->has, x->window))
            continue;
        if (x->bytes > w->part->packed_bytes)
            e = fail(ERR_INPUT, "%s: window %lld takes more bytes than it can", w->path, (long long)x->window);
        if (e == OK)
            e = io_pread(old->fd, old->path, w->part->packed, (size_t)x->bytes, x->offset);
        if (e == OK && teacher_frame_hash(x->window, w->part->packed, x->bytes) == x->hash) /* a damaged one is computed again */
            e = append(w, x->window, x->bytes);
    }
    teacher_cache_close(old);
    return e;
}

enum code teacher_writer_open(struct teacher_writer **out, const char *path, const struct teacher_about *about)
{
    *out = NULL;
    struct teacher_writer *w = calloc(1, sizeof *w);
    size_t n = strlen(path) + 8;
    char *part = malloc(n);
    if (w) {
        w->path = strdup(path);
        w->has = calloc((size_t)about->windows / 8 + 1, 1);
    }
    enum code e = w && part && w->path && w->has ? OK : fail(ERR_MEMORY, "%s: out of memory for a list of %lld windows", path, (long long)about->windows);
    if (e == OK) {
        snprintf(part, n, "%s.part", path);
        e = open_part(w, part, about);
    }
    if (e == OK)
        e = take_part(w);
    if (e == OK)
        e = take_old(w, about);
    free(part);
    if (e != OK)
        teacher_writer_close(w);
    else
        *out = w;
    return e;
}

int teacher_writer_has(const struct teacher_writer *w, int64_t window) { return get_bit(w->has, window); }

enum code teacher_writer_add(struct teacher_writer *w, int64_t window, const int32_t *ids, const float *logp)
{
    struct teacher_cache *c = w->part;
    int64_t T = c->about.T, K = c->about.K, entries = T * K, raw = teacher_raw_bytes(&c->about, 1);
    int width = teacher_id_bytes(c->about.V);
    unsigned char *low = c->raw + width * entries, *high = low + entries;
    CHECK(window >= 0 && window < c->about.windows && !get_bit(w->has, window));
    for (int64_t t = 0; t < T; t++) {
        uint16_t before = 0;
        for (int64_t k = 0; k < K; k++) {
            int64_t from = t * K + k, to = k * T + t;
            uint32_t id = (uint32_t)ids[from];
            float x = ids[from] < 0 && logp[from] == logp[from] ? 65504.0f : -logp[from];
            if (!(x > -1e-3f))
                return fail(ERR_NUMERIC, "the teacher gives token %d the logarithm %g at position %lld of window %lld; look for NaN or infinite weights", ids[from],
                            (double)logp[from], (long long)t, (long long)window);
            uint16_t now = f16_from_f32(x < 0.0f ? 0.0f : x > 65504.0f ? 65504.0f : x);
            for (int b = 0; b < width; b++)
                c->raw[b * entries + to] = (unsigned char)(id >> (8 * b));
            low[to] = (unsigned char)(now - before);
            high[to] = (unsigned char)((uint16_t)(now - before) >> 8);
            before = now;
        }
    }
    uLongf n = (uLongf)c->packed_bytes;
    if (compress2(c->packed, &n, c->raw, (uLong)raw, PACK_LEVEL) != Z_OK)
        return fail(ERR_MEMORY, "%s: out of memory while compressing", c->path);
    return append(w, window, (int64_t)n);
}

static int by_window(const void *a, const void *b)
{
    int64_t x = ((const struct teacher_entry *)a)->window, y = ((const struct teacher_entry *)b)->window;
    return (x > y) - (x < y);
}

static enum code write_end(struct teacher_writer *w)
{
    struct teacher_cache *c = w->part;
    unsigned char t[TEACHER_TRAILER];
    size_t bytes = (size_t)c->n * TEACHER_ENTRY;
    unsigned char *index = malloc(bytes + 1);
    if (!index)
        return fail(ERR_MEMORY, "%s: out of memory for its index", c->path);
    if (c->n > 0)
        qsort(c->entry, (size_t)c->n, sizeof *c->entry, by_window);
    for (int64_t i = 0; i < c->n; i++) {
        unsigned char *p = index + i * TEACHER_ENTRY;
        teacher_put(p, (uint64_t)c->entry[i].window, 8);
        teacher_put(p + 8, (uint64_t)c->entry[i].offset, 8);
        teacher_put(p + 16, (uint64_t)c->entry[i].bytes, 8);
        teacher_put(p + 24, c->entry[i].hash, 8);
    }
    memcpy(t, TEACHER_END, 8);
    teacher_put(t + 8, (uint64_t)w->at, 8);
    teacher_put(t + 16, (uint64_t)c->n, 8);
    teacher_put(t + 24, hash64(index, bytes), 8);
    teacher_put(t + 32, hash64(t, 32), 8);
    enum code e = io_pwrite(c->fd, c->path, index, bytes, w->at);
    free(index);
    return e == OK ? io_pwrite(c->fd, c->path, t, sizeof t, w->at + (int64_t)bytes) : e;
}

enum code teacher_writer_commit(struct teacher_writer *w)
{
    TRY(write_end(w));
    TRY(io_fsync_path(w->part->path));
    return io_rename(w->part->path, w->path);
}

void teacher_writer_close(struct teacher_writer *w)
{
    if (!w)
        return;
    teacher_cache_close(w->part);
    free(w->path);
    free(w->has);
    free(w);
}
