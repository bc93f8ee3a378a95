/* Header of a llama2.c .bin, see llama2c.c. Internal to checkpoints/; the parser is apart for tests and fuzzing. */
#ifndef GQAKIT_CHECKPOINTS_LLAMA2C_H
#define GQAKIT_CHECKPOINTS_LLAMA2C_H

#include "arch.h"

enum { LLAMA2C_HEAD = 256, LLAMA2C_GROUPS = 13 };

struct llama2c_layout {
    int version;                      /* 0 or 1 */
    int64_t offset[T_SLOTS];          /* byte of layer 0's tensor (or the only one); the layers follow each other */
    int64_t bytes;                    /* what the file must have */
};

/* The first min(n, LLAMA2C_HEAD) bytes of a file of file_bytes -> arch and layout. */
enum code llama2c_parse(struct arch *a, struct llama2c_layout *layout, const unsigned char *head, size_t n, int64_t file_bytes,
                        const char *where) MUST_USE;

#endif
