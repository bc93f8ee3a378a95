/* A teacher's most likely tokens of every position of the training windows, on disk: written once, read by every run that is taught
 * by the same teacher on the same data. Layout and losses of the encoding: teacher_cache.c. */
#ifndef GQAKIT_DATA_TEACHER_CACHE_H
#define GQAKIT_DATA_TEACHER_CACHE_H

#include <jansson.h>
#include "base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

struct teacher_about {
    int64_t K, T, V, windows; /* tokens kept per position, positions per window, vocabulary, windows of the data */
    const json_t *facts;      /* {"key": {...}, "about": {...}}: `key` decides whether a file fits, `about` is for people. Borrowed */
};

/* ---- reading ---- */
struct teacher_cache;
/* Reads header and index. A file that is torn or contradicts itself is ERR_INPUT. */
enum code teacher_cache_open(struct teacher_cache **c, const char *path) MUST_USE;
void teacher_cache_close(struct teacher_cache *c); /* NULL is fine */
const struct teacher_about *teacher_cache_about(const struct teacher_cache *c);
int64_t teacher_cache_count(const struct teacher_cache *c); /* windows in it */
int64_t teacher_cache_bytes(const struct teacher_cache *c); /* of the file */
int teacher_cache_has(const struct teacher_cache *c, int64_t window);
/* ids i32, logp f32 [T,K] of one window, most likely first, logp <= 0; unused places are id -1. Checks the block's hash, its lengths and every
 * id. Allocates nothing. One thread at a time. */
enum code teacher_cache_read(struct teacher_cache *c, int64_t window, int32_t *ids, float *logp) MUST_USE;
/* ERR_USAGE names what of the key differs, with both values. */
enum code teacher_about_same(const struct teacher_about *found, const struct teacher_about *wanted, const char *path) MUST_USE;

/* ---- writing ----
 * Windows go to PATH.part in any order; commit makes it PATH. What an existing PATH holds is taken over, and so is what an interrupted
 * PATH.part holds. Another process at the same file is ERR_LOCKED. */
struct teacher_writer;
enum code teacher_writer_open(struct teacher_writer **w, const char *path, const struct teacher_about *about) MUST_USE;
int teacher_writer_has(const struct teacher_writer *w, int64_t window);
/* logp of the most likely tokens first; a value that is NaN or not a logarithm of a probability is ERR_NUMERIC. */
enum code teacher_writer_add(struct teacher_writer *w, int64_t window, const int32_t *ids, const float *logp) MUST_USE;
enum code teacher_writer_commit(struct teacher_writer *w) MUST_USE;
void teacher_writer_close(struct teacher_writer *w); /* PATH.part stays for the next time; NULL is fine */

/* Bytes of n windows before compression. */
int64_t teacher_raw_bytes(const struct teacher_about *about, int64_t windows);

#ifdef __cplusplus
}
#endif
#endif
