/* The seal of a native .h5, against damage: 512 bytes of text before the HDF5 file, "gqakit/checkpoint/1 bytes N xxh128 HEX\n", NULs to the
 * end; N and HEX of all bytes after it. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "h5_private.h"

enum { BLOCK = 1 << 20 };

void h5_seal_text(char block[512], int64_t bytes, const char *xxh128)
{
    memset(block, 0, H5_USER_BLOCK);
    snprintf(block, H5_USER_BLOCK, H5_SCHEMA " bytes %lld xxh128 %s\n", (long long)bytes, xxh128);
}

enum code h5_seal_hash(int fd, const char *path, int64_t *bytes, char hex[33])
{
    struct stat st;
    if (fstat(fd, &st))
        return fail_errno(path, "stat");
    char *block = malloc(BLOCK);
    XXH3_state_t *h = XXH3_createState();
    enum code c = block && h && XXH3_128bits_reset(h) == XXH_OK ? OK : fail(ERR_MEMORY, "%s: out of memory while hashing", path);
    for (int64_t at = H5_USER_BLOCK; c == OK && at < st.st_size; at += BLOCK) {
        size_t n = st.st_size - at < BLOCK ? (size_t)(st.st_size - at) : BLOCK;
        c = io_pread(fd, path, block, n, at);
        if (c == OK)
            XXH3_128bits_update(h, block, n);
    }
    *bytes = st.st_size - H5_USER_BLOCK;
    if (c == OK) {
        XXH128_hash_t digest = XXH3_128bits_digest(h);
        snprintf(hex, 33, "%016llx%016llx", (unsigned long long)digest.high64, (unsigned long long)digest.low64);
    }
    XXH3_freeState(h);
    free(block);
    return c;
}

static const unsigned char SIGNATURE[8] = {0x89, 'H', 'D', 'F', '\r', '\n', 0x1a, '\n'};

/* As much of the user block as there is. */
static enum code head_read(const char *path, char head[H5_USER_BLOCK])
{
    int fd;
    struct stat st;
    memset(head, 0, H5_USER_BLOCK);
    TRY(io_open_regular(path, &fd));
    enum code c = fstat(fd, &st) ? fail_errno(path, "stat") : st.st_size < 8 ? fail(ERR_INPUT, "%s: too short for a native checkpoint", path) : OK;
    if (c == OK)
        c = io_pread(fd, path, head, st.st_size < H5_USER_BLOCK ? (size_t)st.st_size : H5_USER_BLOCK, 0);
    close(fd);
    return c;
}

int h5_sealed(const char *path)
{
    char head[H5_USER_BLOCK];
    enum code c = head_read(path, head);
    if (c != OK)
        return c == ERR_IO ? -2 : -1;
    if (!memcmp(head, SIGNATURE, sizeof SIGNATURE))
        return 0;
    return strncmp(head, H5_SCHEMA " ", sizeof H5_SCHEMA) ? -1 : 1;
}

enum code h5_seal_verify(const char *path)
{
    char head[H5_USER_BLOCK], want[H5_USER_BLOCK], hex[33] = "";
    int64_t bytes = 0;
    TRY(head_read(path, head));
    int fd;
    TRY(io_open_regular(path, &fd));
    struct stat st;
    long long recorded = -1;
    enum code c = OK;
    if (fstat(fd, &st))
        c = fail_errno(path, "stat");
    else if (memchr(head, 0, sizeof head) && sscanf(head, H5_SCHEMA " bytes %lld xxh128 ", &recorded) == 1 &&
             recorded != (long long)st.st_size - H5_USER_BLOCK)
        c = fail(ERR_INPUT, "%s: %lld bytes recorded, %lld found: the file was cut, changed or damaged", path, recorded + H5_USER_BLOCK,
                 (long long)st.st_size);
    if (c == OK)
        c = h5_seal_hash(fd, path, &bytes, hex);
    close(fd);
    if (c == OK) {
        h5_seal_text(want, bytes, hex);
        if (memcmp(head, want, sizeof head))
            c = fail(ERR_INPUT, "%s: its bytes (xxh128 %s) are not those its first line records: the file was changed or damaged", path, hex);
    }
    return c;
}
