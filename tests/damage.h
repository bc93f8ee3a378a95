/* Damage to files, for tests of every reader: a subject is a small good file, what it lies among, and a reader that opens it as the
 * programs do and sums up all that it read. */
#ifndef GQAKIT_TESTS_DAMAGE_H
#define GQAKIT_TESTS_DAMAGE_H

#include "harness.h"

enum damage_promise {
    DAMAGE_SEEN,    /* every damage is refused, or leaves what is read as it was */
    DAMAGE_PARTIAL, /* the format has no check of its own: some damage reads as another valid file */
};

struct damage_subject {
    const char *name;
    const char *file; /* below the temporary directory */
    /* OK with the hash of everything read, else the refusal. */
    enum code (*read)(const char *name, uint64_t *sum);
    enum damage_promise cut, flip;
};

struct damage_count { int64_t cases, refused, same, other; double slowest; /* processor seconds of one reading */ };

/* GQAKIT_SOAK=1: the long forms. */
int damage_soak(void);
/* The file cut to every `step`-th length below its own. Asserts the promise, codes 2, 3 and 4 alone, and a second a reading. */
struct damage_count damage_cut(const struct damage_subject *s, int64_t step);
/* Bits [from, to) of the file, each `step`-th, flipped one at a time. to -1: all. */
struct damage_count damage_flip(const struct damage_subject *s, int64_t from, int64_t to, int64_t step);
/* n flips of one random bit of bytes [from, to). */
struct damage_count damage_flip_random(const struct damage_subject *s, int64_t from, int64_t to, int64_t n, uint64_t seed);
void damage_print(const char *what, const struct damage_subject *s, const struct damage_count *c);

void damage_put(const char *name, const void *bytes, size_t n); /* without the fsync of temp_write */
char *damage_folder(const char *name); /* the folder of a file below the temporary directory; free by the caller */
void damage_text(const char *name, const char *text);
uint64_t damage_add(uint64_t sum, const void *bytes, size_t n);

#endif
