/* Inside of data/: the layout that teacher_cache.c reads and teacher_writer.c writes. Numbers are little-endian.
 *
 *   header   "gqatopk1" | u32 K | u32 T | u32 V | u32 facts bytes | u64 windows | u64 hash of the 32 bytes before it and the facts | facts (JSON)
 *   frames   u32 magic | u32 bytes | u64 window | u64 hash of these 16 bytes and the payload | payload: one zlib stream
 *   index    per window, ascending: u64 window | u64 offset of the payload | u64 bytes | u64 the frame's hash
 *   trailer  "gqatopkE" | u64 offset of the index | u64 windows in it | u64 hash of the index | u64 hash of the 32 bytes before
 *
 * PATH.part ends after its last whole frame. Hashes are XXH3-64.
 *
 * A payload is T x K entries, by rank and then position (k T + t), in byte planes: ids (1, 2 or 4 bytes, as V needs; all bits set: unused),
 * then -logp as f16, each as the difference to the rank before. f16 of a logarithm x is off by at most |x| / 2048, so a probability p is off by
 * at most p |ln p| / 2048 < 0.0002. */
#ifndef GQAKIT_DATA_TEACHER_FORMAT_H
#define GQAKIT_DATA_TEACHER_FORMAT_H

#include "teacher_cache.h"

enum { TEACHER_HEADER = 48, TEACHER_FRAME = 24, TEACHER_ENTRY = 32, TEACHER_TRAILER = 40, TEACHER_FACTS = 1 << 16 };
#define TEACHER_MAGIC "gqatopk1"
#define TEACHER_END "gqatopkE"
#define TEACHER_FRAME_MAGIC 0x31776b74u
/* A deflate stream expands at most 1032 times. */
enum { TEACHER_EXPANSION = 1032 };

struct teacher_entry { int64_t window, offset, bytes; uint64_t hash; };

struct teacher_cache {
    char *path;
    int fd;
    struct teacher_about about;
    json_t *facts;
    int64_t bytes, data; /* of the file; where its frames begin */
    struct teacher_entry *entry; /* ascending windows */
    int64_t n;
    unsigned char *packed, *raw; /* one payload, and what it stands for */
    int64_t packed_bytes;
};

static inline void teacher_put(unsigned char *p, uint64_t v, int width)
{
    for (int i = 0; i < width; i++)
        p[i] = (unsigned char)(v >> (8 * i));
}

static inline uint64_t teacher_get(const unsigned char *p, int width)
{
    uint64_t v = 0;
    for (int i = width - 1; i >= 0; i--)
        v = v << 8 | p[i];
    return v;
}

static inline int teacher_id_bytes(int64_t V) { return V < 256 ? 1 : V < 65536 ? 2 : 4; }

/* Opens around a descriptor (which it takes over), header only: the fuzz entry and the writer go on from there. */
enum code teacher_open_header(struct teacher_cache **c, int fd, const char *path) MUST_USE;
enum code teacher_read_index(struct teacher_cache *c) MUST_USE;
/* Of the frame at `at`, whose payload is read to c->packed; *whole 0: no whole frame stands there. `end`: where frames end. */
enum code teacher_read_frame(struct teacher_cache *c, int64_t at, int64_t end, struct teacher_entry *e, int *whole) MUST_USE;
/* c->packed (bytes) to entries. */
enum code teacher_unpack(struct teacher_cache *c, int64_t window, int64_t bytes, int32_t *ids, float *logp) MUST_USE;
uint64_t teacher_frame_hash(int64_t window, const unsigned char *payload, int64_t bytes);
/* Position in c->entry, -1 when absent. */
int64_t teacher_find(const struct teacher_cache *c, int64_t window);

#endif
