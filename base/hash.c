/* Hashes of bytes and files, thin over libcrypto and libxxhash. */
#include "base/hash.h"

#include <errno.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/io.h"

enum { BLOCK = 1 << 20 };

static void hex_of(const unsigned char *raw, size_t n, char *hex)
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < n; i++) {
        hex[2 * i] = digits[raw[i] >> 4];
        hex[2 * i + 1] = digits[raw[i] & 15];
    }
    hex[2 * n] = 0;
}

struct sha256 *sha256_begin(void)
{
    EVP_MD_CTX *c = EVP_MD_CTX_new();
    if (c && EVP_DigestInit_ex(c, EVP_sha256(), NULL) != 1) {
        EVP_MD_CTX_free(c);
        c = NULL;
    }
    return (struct sha256 *)c;
}

void sha256_add(struct sha256 *h, const void *bytes, size_t n)
{
    CHECK(EVP_DigestUpdate((EVP_MD_CTX *)h, bytes, n) == 1);
}

void sha256_end(struct sha256 *h, char hex[65])
{
    unsigned char raw[32];
    unsigned n = 0;
    CHECK(EVP_DigestFinal_ex((EVP_MD_CTX *)h, raw, &n) == 1 && n == 32);
    EVP_MD_CTX_free((EVP_MD_CTX *)h);
    hex_of(raw, 32, hex);
}

void sha256_of(const void *bytes, size_t n, char hex[65])
{
    struct sha256 *h = sha256_begin();
    CHECK(h);
    sha256_add(h, bytes, n);
    sha256_end(h, hex);
}

static enum code feed_file(const char *path, void (*add)(void *, const void *, size_t), void *state)
{
    int fd;
    TRY(io_open_regular(path, &fd));
    char *block = malloc(BLOCK);
    enum code c = block ? OK : fail(ERR_MEMORY, "%s: no memory to hash it", path);
    while (c == OK) {
        ssize_t n = read(fd, block, BLOCK);
        if (n > 0)
            add(state, block, (size_t)n);
        else if (n == 0)
            break;
        else if (errno != EINTR)
            c = fail_errno(path, "read");
    }
    free(block);
    close(fd);
    return c;
}

static void add_sha(void *h, const void *bytes, size_t n)
{
    sha256_add(h, bytes, n);
}

static void add_xxh(void *h, const void *bytes, size_t n)
{
    CHECK(XXH3_128bits_update(h, bytes, n) == XXH_OK);
}

enum code sha256_file(const char *path, char hex[65])
{
    hex[0] = 0;
    struct sha256 *h = sha256_begin();
    if (!h)
        return fail(ERR_MEMORY, "%s: no memory to hash it", path);
    enum code c = feed_file(path, add_sha, h);
    if (c == OK)
        sha256_end(h, hex);
    else
        EVP_MD_CTX_free((EVP_MD_CTX *)h);
    return c;
}

enum code xxh128_file(const char *path, char hex[33])
{
    hex[0] = 0;
    XXH3_state_t *h = XXH3_createState();
    if (!h)
        return fail(ERR_MEMORY, "%s: no memory to hash it", path);
    XXH3_128bits_reset(h);
    enum code c = feed_file(path, add_xxh, h);
    if (c == OK) {
        XXH128_canonical_t raw;
        XXH128_canonicalFromHash(&raw, XXH3_128bits_digest(h));
        hex_of(raw.digest, 16, hex);
    }
    XXH3_freeState(h);
    return c;
}

uint64_t hash64(const void *bytes, size_t n)
{
    return XXH3_64bits(bytes, n);
}

static uint64_t process_key;

static void key_draw(void)
{
    struct timespec t;
    if (getrandom(&process_key, sizeof process_key, GRND_NONBLOCK) == (ssize_t)sizeof process_key)
        return;
    clock_gettime(CLOCK_REALTIME, &t); /* before the system has gathered any randomness: better than nothing */
    process_key = hash64(&t, sizeof t) ^ (uint64_t)getpid();
}

uint64_t hash_key(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    CHECK(pthread_once(&once, key_draw) == 0);
    return process_key;
}

uint64_t hash64_keyed(const void *bytes, size_t n, uint64_t key) { return XXH3_64bits_withSeed(bytes, n, key); }
