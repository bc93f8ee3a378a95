/* SHA-256 (libcrypto) for provenance, XXH3-128 (libxxhash) where speed matters. Hex output is lower case, NUL ended. */
#ifndef GQAKIT_BASE_HASH_H
#define GQAKIT_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>
#include "error.h"

#ifdef __cplusplus
extern "C" {
#endif

struct sha256;                             /* incremental */
struct sha256 *sha256_begin(void);         /* NULL when out of memory */
void sha256_add(struct sha256 *h, const void *bytes, size_t n);
void sha256_end(struct sha256 *h, char hex[65]); /* frees h */
void sha256_of(const void *bytes, size_t n, char hex[65]);
enum code sha256_file(const char *path, char hex[65]) MUST_USE;

enum code xxh128_file(const char *path, char hex[33]) MUST_USE;
uint64_t hash64(const void *bytes, size_t n); /* XXH3-64 */
/* For tables in memory over words from files: a random number of this process, and the hash under it, so that no file can choose words that
 * fall on one place. Never part of a result. */
uint64_t hash_key(void);
uint64_t hash64_keyed(const void *bytes, size_t n, uint64_t key);

#ifdef __cplusplus
}
#endif
#endif
