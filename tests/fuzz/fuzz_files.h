/* Targets whose parser wants files: a folder of this process in memory, gone when it ends. */
#ifndef GQAKIT_FUZZ_FILES_H
#define GQAKIT_FUZZ_FILES_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/base.h"

static char fuzz_dir_path[64];
static pid_t fuzz_owner;

static void fuzz_dir_gone(void)
{
    if (getpid() == fuzz_owner && io_remove_tree(fuzz_dir_path) != OK)
        fuzz_dir_path[0] = 0;
}

static const char *fuzz_dir(void)
{
    if (!fuzz_dir_path[0]) {
        snprintf(fuzz_dir_path, sizeof fuzz_dir_path, "%s/gqakit-fuzz-%ld", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm", (long)getpid());
        CHECK(io_mkdirs(fuzz_dir_path) == OK);
        fuzz_owner = getpid();
        atexit(fuzz_dir_gone);
    }
    return fuzz_dir_path;
}

/* The path of a file of the folder; a static buffer. */
static const char *fuzz_path(const char *name)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", fuzz_dir(), name);
    return path;
}

static void fuzz_put(const char *name, const uint8_t *bytes, size_t n)
{
    FILE *f = fopen(fuzz_path(name), "wb");
    CHECK(f && fwrite(bytes, 1, n, f) == n);
    CHECK(fclose(f) == 0);
}

/* The next part of an input whose parts end with the byte 0x00; the last one takes the rest. */
static inline size_t fuzz_part(const uint8_t **bytes, size_t *n, const uint8_t **part)
{
    const uint8_t *nul = *n ? memchr(*bytes, 0, *n) : NULL;
    size_t size = nul ? (size_t)(nul - *bytes) : *n, taken = nul ? size + 1 : size;
    *part = *bytes;
    *bytes += taken;
    *n -= taken;
    return size;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);

#endif
