/* Reading a teacher cache (layout: teacher_format.h). Nothing of the file is believed before its hash and its lengths agree with the bytes that
 * are there: header and facts, index and trailer when it is opened, a frame when it is read. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "data.h"
#include "teacher_format.h"

static const char advice[] = "delete it; the next run makes it again";

uint64_t teacher_frame_hash(int64_t window, const unsigned char *payload, int64_t bytes)
{
    unsigned char both[24];
    teacher_put(both, (uint64_t)window, 8);
    teacher_put(both + 8, (uint64_t)bytes, 8);
    teacher_put(both + 16, hash64(payload, (size_t)bytes), 8);
    return hash64(both, sizeof both);
}

int64_t teacher_raw_bytes(const struct teacher_about *about, int64_t windows)
{
    int64_t entries, bytes;
    return checked_mul(about->T, about->K, &entries) && checked_mul(entries, 2 + teacher_id_bytes(about->V), &bytes) && checked_mul(bytes, windows, &bytes)
               ? bytes : INT64_MAX;
}

/* The buffers of one window; no larger than what the file's bytes can expand to. */
static enum code buffers(struct teacher_cache *c)
{
    int64_t raw = teacher_raw_bytes(&c->about, 1);
    if (raw > (int64_t)1 << 32)
        return fail(ERR_INPUT, "%s: a window of %lld x %lld tokens cannot be", c->path, (long long)c->about.T, (long long)c->about.K);
    c->packed_bytes = (int64_t)compressBound((uLong)raw);
    c->packed = malloc((size_t)c->packed_bytes);
    c->raw = malloc((size_t)raw);
    return c->packed && c->raw ? OK : fail(ERR_MEMORY, "%s: out of memory for a window of %lld x %lld tokens", c->path, (long long)c->about.T,
                                           (long long)c->about.K);
}

static enum code header_numbers(struct teacher_cache *c, const unsigned char *h)
{
    struct teacher_about *a = &c->about;
    a->K = (int64_t)teacher_get(h + 8, 4);
    a->T = (int64_t)teacher_get(h + 12, 4);
    a->V = (int64_t)teacher_get(h + 16, 4);
    uint64_t windows = teacher_get(h + 24, 8);
    if (a->V < 1 || a->K < 1 || a->K > a->V || a->V > INT32_MAX || a->T < 1 || a->T > INT32_MAX || windows < 1 || windows > INT64_MAX / TEACHER_ENTRY)
        return fail(ERR_INPUT, "%s: %lld of %lld tokens, %lld positions and %llu windows cannot be; %s", c->path, (long long)a->K, (long long)a->V,
                    (long long)a->T, (unsigned long long)windows, advice);
    a->windows = (int64_t)windows;
    return OK;
}

static enum code read_header(struct teacher_cache *c)
{
    unsigned char h[TEACHER_HEADER + TEACHER_FACTS];
    if (c->bytes < TEACHER_HEADER)
        return fail(ERR_INPUT, "%s: %lld bytes are no teacher cache; %s", c->path, (long long)c->bytes, advice);
    TRY(io_pread(c->fd, c->path, h, TEACHER_HEADER, 0));
    if (memcmp(h, TEACHER_MAGIC, 8) != 0)
        return fail(ERR_INPUT, "%s is no teacher cache (it does not begin with " TEACHER_MAGIC "); name another file in distill.cache", c->path);
    int64_t facts = (int64_t)teacher_get(h + 20, 4);
    if (facts > TEACHER_FACTS || facts > c->bytes - TEACHER_HEADER)
        return fail(ERR_INPUT, "%s: its description of %lld bytes is longer than the file or the limit; %s", c->path, (long long)facts, advice);
    TRY(io_pread(c->fd, c->path, h + TEACHER_HEADER, (size_t)facts, TEACHER_HEADER));
    uint64_t hash = teacher_get(h + 32, 8);
    teacher_put(h + 32, 0, 8);
    if (hash != hash64(h, (size_t)(TEACHER_HEADER + facts)))
        return fail(ERR_INPUT, "%s: its header is damaged; %s", c->path, advice);
    TRY(header_numbers(c, h));
    c->data = TEACHER_HEADER + facts;
    TRY(json_parse_object((const char *)h + TEACHER_HEADER, (size_t)facts, c->path, &c->facts));
    c->about.facts = c->facts;
    if (!json_is_object(json_object_get(c->facts, "key")))
        return fail(ERR_INPUT, "%s: its description has no key; %s", c->path, advice);
    return OK;
}

enum code teacher_open_header(struct teacher_cache **out, int fd, const char *path)
{
    struct stat s;
    *out = NULL;
    struct teacher_cache *c = calloc(1, sizeof *c);
    if (c)
        c->fd = fd;
    else
        close(fd);
    if (c)
        c->path = strdup(path);
    if (!c || !c->path) {
        teacher_cache_close(c);
        return fail(ERR_MEMORY, "%s: out of memory", path);
    }
    enum code e = fstat(fd, &s) == 0 ? OK : fail_errno(path, "reading");
    c->bytes = e == OK ? (int64_t)s.st_size : 0;
    if (e == OK)
        e = read_header(c);
    if (e != OK) {
        teacher_cache_close(c);
        return e;
    }
    *out = c;
    return OK;
}

static enum code index_entries(struct teacher_cache *c, const unsigned char *p, int64_t end)
{
    for (int64_t i = 0; i < c->n; i++, p += TEACHER_ENTRY) {
        uint64_t window = teacher_get(p, 8), offset = teacher_get(p + 8, 8), bytes = teacher_get(p + 16, 8);
        struct teacher_entry *e = &c->entry[i];
        if (window >= (uint64_t)c->about.windows || (i > 0 && (int64_t)window <= e[-1].window))
            return fail(ERR_INPUT, "%s: its index names window %llu out of order or beyond the %lld there are; %s", c->path, (unsigned long long)window,
                        (long long)c->about.windows, advice);
        if (offset < (uint64_t)(c->data + TEACHER_FRAME) || offset > (uint64_t)end || bytes > (uint64_t)end - offset || bytes < 1)
            return fail(ERR_INPUT, "%s: window %llu lies outside of the file; %s", c->path, (unsigned long long)window, advice);
        *e = (struct teacher_entry){(int64_t)window, (int64_t)offset, (int64_t)bytes, teacher_get(p + 24, 8)};
    }
    return OK;
}

enum code teacher_read_index(struct teacher_cache *c)
{
    unsigned char t[TEACHER_TRAILER];
    if (c->bytes < c->data + TEACHER_TRAILER)
        return fail(ERR_INPUT, "%s: it ends after its header; %s", c->path, advice);
    TRY(io_pread(c->fd, c->path, t, TEACHER_TRAILER, c->bytes - TEACHER_TRAILER));
    if (memcmp(t, TEACHER_END, 8) != 0 || teacher_get(t + 32, 8) != hash64(t, 32))
        return fail(ERR_INPUT, "%s: it has no end: it was cut, or is still being written; %s", c->path, advice);
    uint64_t at = teacher_get(t + 8, 8), n = teacher_get(t + 16, 8), end = (uint64_t)(c->bytes - TEACHER_TRAILER);
    if (at < (uint64_t)c->data || at > end || (end - at) % TEACHER_ENTRY != 0 || (end - at) / TEACHER_ENTRY != n)
        return fail(ERR_INPUT, "%s: its index of %llu windows does not fill its place; %s", c->path, (unsigned long long)n, advice);
    size_t bytes = (size_t)(end - at);
    unsigned char *index = malloc(bytes + 1);
    c->n = (int64_t)n;
    c->entry = calloc((size_t)n + 1, sizeof *c->entry);
    enum code e = index && c->entry ? OK : fail(ERR_MEMORY, "%s: out of memory for an index of %llu windows", c->path, (unsigned long long)n);
    if (e == OK)
        e = io_pread(c->fd, c->path, index, bytes, (int64_t)at);
    if (e == OK && hash64(index, bytes) != teacher_get(t + 24, 8))
        e = fail(ERR_INPUT, "%s: its index is damaged; %s", c->path, advice);
    if (e == OK)
        e = index_entries(c, index, (int64_t)at);
    free(index);
    int64_t most = 0; /* no window of the file can stand for more than its bytes expand to */
    for (int64_t i = 0; e == OK && i < c->n; i++)
        most = c->entry[i].bytes > most ? c->entry[i].bytes : most;
    if (e == OK && c->n > 0 && teacher_raw_bytes(&c->about, 1) / TEACHER_EXPANSION > most)
        e = fail(ERR_INPUT, "%s: no window of it is long enough for %lld x %lld tokens; %s", c->path, (long long)c->about.T, (long long)c->about.K, advice);
    return e == OK && c->n > 0 ? buffers(c) : e;
}

enum code teacher_read_frame(struct teacher_cache *c, int64_t at, int64_t end, struct teacher_entry *e, int *whole)
{
    unsigned char h[TEACHER_FRAME];
    *whole = 0;
    if (!c->raw)
        TRY(buffers(c));
    if (end - at < TEACHER_FRAME)
        return OK;
    TRY(io_pread(c->fd, c->path, h, TEACHER_FRAME, at));
    *e = (struct teacher_entry){(int64_t)teacher_get(h + 8, 8), at + TEACHER_FRAME, (int64_t)teacher_get(h + 4, 4), teacher_get(h + 16, 8)};
    if (teacher_get(h, 4) != TEACHER_FRAME_MAGIC || e->window < 0 || e->window >= c->about.windows || e->bytes < 1 || e->bytes > c->packed_bytes ||
        e->bytes > end - e->offset)
        return OK;
    TRY(io_pread(c->fd, c->path, c->packed, (size_t)e->bytes, e->offset));
    *whole = teacher_frame_hash(e->window, c->packed, e->bytes) == e->hash;
    return OK;
}

static int32_t raw_id(const unsigned char *planes, int64_t i, int64_t entries, int width)
{
    uint32_t v = 0;
    for (int b = 0; b < width; b++)
        v |= (uint32_t)planes[b * entries + i] << (8 * b);
    return v == (width == 4 ? UINT32_MAX : (UINT32_C(1) << (8 * width)) - 1) ? -1 : v > INT32_MAX ? INT32_MAX : (int32_t)v;
}

enum code teacher_unpack(struct teacher_cache *c, int64_t window, int64_t bytes, int32_t *ids, float *logp)
{
    int64_t T = c->about.T, K = c->about.K, entries = T * K;
    int width = teacher_id_bytes(c->about.V);
    uLongf n = (uLongf)teacher_raw_bytes(&c->about, 1);
    if (uncompress(c->raw, &n, c->packed, (uLong)bytes) != Z_OK || (int64_t)n != teacher_raw_bytes(&c->about, 1))
        return fail(ERR_INPUT, "%s: window %lld does not hold %lld x %lld tokens; %s", c->path, (long long)window, (long long)T, (long long)K, advice);
    const unsigned char *low = c->raw + width * entries, *high = low + entries;
    for (int64_t t = 0; t < T; t++) {
        uint16_t x = 0;
        for (int64_t k = 0; k < K; k++) {
            int64_t from = k * T + t, to = t * K + k;
            x = (uint16_t)(x + (low[from] | high[from] << 8));
            ids[to] = raw_id(c->raw, from, entries, width);
            logp[to] = -f32_from_f16(x);
            if (ids[to] >= c->about.V || x > 0x7bff)
                return fail(ERR_INPUT, "%s: window %lld: token %d with logarithm %g at position %lld; %s", c->path, (long long)window, ids[to],
                            (double)logp[to], (long long)t, advice);
        }
    }
    return OK;
}

int64_t teacher_find(const struct teacher_cache *c, int64_t window)
{
    int64_t from = 0, to = c->n;
    while (from < to) {
        int64_t mid = from + (to - from) / 2;
        if (c->entry[mid].window < window)
            from = mid + 1;
        else
            to = mid;
    }
    return from < c->n && c->entry[from].window == window ? from : -1;
}

/* ---- the door ---- */

enum code teacher_cache_open(struct teacher_cache **c, const char *path)
{
    *c = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return fail_errno(path, "opening");
    TRY(teacher_open_header(c, fd, path));
    enum code e = teacher_read_index(*c);
    if (e != OK) {
        teacher_cache_close(*c);
        *c = NULL;
    }
    return e;
}

void teacher_cache_close(struct teacher_cache *c)
{
    if (!c)
        return;
    close(c->fd);
    json_decref(c->facts);
    free(c->path);
    free(c->entry);
    free(c->packed);
    free(c->raw);
    free(c);
}

const struct teacher_about *teacher_cache_about(const struct teacher_cache *c) { return &c->about; }
int64_t teacher_cache_count(const struct teacher_cache *c) { return c->n; }
int64_t teacher_cache_bytes(const struct teacher_cache *c) { return c->bytes; }
int teacher_cache_has(const struct teacher_cache *c, int64_t window) { return teacher_find(c, window) >= 0; }

enum code teacher_cache_read(struct teacher_cache *c, int64_t window, int32_t *ids, float *logp)
{
    int64_t i = teacher_find(c, window);
    if (i < 0)
        return fail(ERR_INPUT, "%s: it holds no window %lld", c->path, (long long)window);
    const struct teacher_entry *e = &c->entry[i];
    if (e->bytes > c->packed_bytes)
        return fail(ERR_INPUT, "%s: window %lld takes more bytes than it can; %s", c->path, (long long)window, advice);
    TRY(io_pread(c->fd, c->path, c->packed, (size_t)e->bytes, e->offset));
    if (teacher_frame_hash(window, c->packed, e->bytes) != e->hash)
        return fail(ERR_INPUT, "%s: window %lld is damaged; %s", c->path, (long long)window, advice);
    return teacher_unpack(c, window, e->bytes, ids, logp);
}

static void as_text(char out[80], const json_t *v)
{
    char *text = v ? json_text(v, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
    snprintf(out, 80, "%.79s", text ? text : "not given");
    free(text);
}

/* The first member of a that b has not, or has otherwise. */
static const char *difference(json_t *a, const json_t *b)
{
    const char *name;
    json_t *value;
    json_object_foreach(a, name, value)
    {
        const json_t *other = json_object_get(b, name);
        if (!other || !json_equal(value, other))
            return name;
    }
    return NULL;
}

enum code teacher_about_same(const struct teacher_about *found, const struct teacher_about *wanted, const char *path)
{
    json_t *a = json_object_get(found->facts, "key"), *b = json_object_get(wanted->facts, "key");
    const char *name = difference(b, a);
    char x[80], y[80], p[80], q[80];
    if (!name)
        name = difference(a, b);
    if (!name && found->K == wanted->K && found->T == wanted->T && found->V == wanted->V && found->windows == wanted->windows)
        return OK;
    name = name ? name : "shape";
    as_text(x, json_object_get(a, name));
    as_text(y, json_object_get(b, name));
    as_text(p, json_object_get(json_object_get(found->facts, "about"), "teacher"));
    as_text(q, json_object_get(json_object_get(wanted->facts, "about"), "teacher"));
    return fail(ERR_USAGE, "%s was made for another run: its %s is %s (teacher %s), here it is %s (teacher %s); name another file in distill.cache, or a "
                "directory, which keeps one for each", path, name, x, p, y, q);
}
