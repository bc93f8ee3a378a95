/* TensorBoard event files by hand.
 *
 * TFRecord framing (tensorflow/core/lib/io/record_writer.h): u64 length, u32 masked crc of those 8 bytes, data, u32 masked crc
 * of data, all little endian; masked = rotate_right(crc32c, 15) + 0xa282ead8. CRC-32C: reflected polynomial 0x82f63b78.
 *
 * Messages (protobuf wire format; key byte = field << 3 | type, types 0 varint, 1 64-bit, 2 bytes, 5 32-bit):
 *   Event      {1: wall_time double, 2: step int64, 3: file_version string, 5: Summary, 7: SessionLog}
 *   Summary    {1: repeated Value}      Value {1: tag string, 2: simple_value float}
 *   SessionLog {1: status enum}         START = 1, with the step from which earlier events are void. */
#include "tensorboard.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MESSAGE_MAX 1024

struct message { unsigned char bytes[MESSAGE_MAX]; size_t n; };

uint32_t tensorboard_crc32c(const void *bytes, size_t n)
{
    const unsigned char *p = bytes;
    uint32_t crc = 0xffffffffu;
    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (0x82f63b78u & (0u - (crc & 1u)));
    }
    return ~crc;
}

static void put_le(unsigned char *out, uint64_t v, int n)
{
    for (int i = 0; i < n; i++)
        out[i] = (unsigned char)(v >> (8 * i));
}

static uint32_t masked(const void *bytes, size_t n)
{
    uint32_t crc = tensorboard_crc32c(bytes, n);
    return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

size_t tensorboard_frame(unsigned char *out, const void *data, size_t n)
{
    put_le(out, n, 8);
    put_le(out + 8, masked(out, 8), 4);
    memcpy(out + 12, data, n);
    put_le(out + 12 + n, masked(data, n), 4);
    return n + 16;
}

static void put_bytes(struct message *m, const void *bytes, size_t n)
{
    CHECK(m->n + n <= MESSAGE_MAX);
    memcpy(m->bytes + m->n, bytes, n);
    m->n += n;
}

static void put_varint(struct message *m, uint64_t v)
{
    unsigned char b[10];
    size_t n = 0;
    do {
        b[n] = (unsigned char)((v & 0x7f) | (v > 0x7f ? 0x80 : 0));
        v >>= 7;
        n++;
    } while (v);
    put_bytes(m, b, n);
}

static void put_key(struct message *m, unsigned field, unsigned type)
{
    put_varint(m, field << 3 | type);
}

static void put_field(struct message *m, unsigned field, const void *bytes, size_t n)
{
    put_key(m, field, 2);
    put_varint(m, n);
    put_bytes(m, bytes, n);
}

static void event_begin(struct message *m, int64_t step)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    double wall = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
    uint64_t bits;
    unsigned char le[8];
    memcpy(&bits, &wall, 8);
    put_le(le, bits, 8);
    m->n = 0;
    put_key(m, 1, 1);
    put_bytes(m, le, 8);
    put_key(m, 2, 0);
    put_varint(m, (uint64_t)step);
}

static enum code event_write(struct tensorboard *t, const struct message *m)
{
    unsigned char frame[MESSAGE_MAX + 16];
    size_t n = tensorboard_frame(frame, m->bytes, m->n), done = 0;
    while (done < n) {
        ssize_t k = write(t->fd, frame + done, n - done);
        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0)
            return fail_errno(t->path, "writing");
        done += (size_t)k;
    }
    return OK;
}

enum code tensorboard_open(struct tensorboard *t, const char *dir, int64_t first_step)
{
    char host[64] = "localhost", name[160];
    struct message m, inner = {.n = 0};
    static const char version[] = "brain.Event:2";
    t->fd = -1;
    t->path = NULL;
    TRY(io_mkdirs(dir));
    gethostname(host, sizeof host - 1);
    snprintf(name, sizeof name, "events.out.tfevents.%lld.%s.%ld", (long long)time(NULL), host, (long)getpid());
    t->path = io_join(dir, name);
    if (!t->path)
        return fail(ERR_MEMORY, "%s: out of memory", dir);
    t->fd = open(t->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (t->fd < 0)
        return fail_errno(t->path, "creating");
    event_begin(&m, 0);
    put_field(&m, 3, version, sizeof version - 1);
    TRY(event_write(t, &m));
    if (first_step <= 0)
        return OK;
    event_begin(&m, first_step);
    put_key(&inner, 1, 0);
    put_varint(&inner, 1);
    put_field(&m, 7, inner.bytes, inner.n);
    return event_write(t, &m);
}

enum code tensorboard_add(struct tensorboard *t, int64_t step, const struct tensorboard_scalar *scalars, int n)
{
    struct message m, summary = {.n = 0}, value;
    if (t->fd < 0)
        return OK;
    for (int i = 0; i < n; i++) {
        float x = (float)scalars[i].value;
        uint32_t bits;
        unsigned char le[4];
        memcpy(&bits, &x, 4);
        put_le(le, bits, 4);
        value.n = 0;
        put_field(&value, 1, scalars[i].tag, strlen(scalars[i].tag));
        put_key(&value, 2, 5);
        put_bytes(&value, le, 4);
        put_field(&summary, 1, value.bytes, value.n);
    }
    event_begin(&m, step);
    put_field(&m, 5, summary.bytes, summary.n);
    return event_write(t, &m);
}

void tensorboard_close(struct tensorboard *t)
{
    if (t->fd >= 0)
        close(t->fd);
    free(t->path);
    t->fd = -1;
    t->path = NULL;
}
