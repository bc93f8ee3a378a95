/* Scalars for TensorBoard: one event file per start of the program, in DIR. */
#ifndef GQAKIT_UPTRAIN_TENSORBOARD_H
#define GQAKIT_UPTRAIN_TENSORBOARD_H

#include <stddef.h>
#include <stdint.h>

#include "base/base.h"

struct tensorboard { int fd; char *path; }; /* fd < 0: closed, adding is a no-op */
struct tensorboard_scalar { const char *tag; double value; };

/* Creates DIR/events.out.tfevents.SECONDS.HOST.PID. first_step > 0: a resumed run, events at and after it are purged by readers. */
enum code tensorboard_open(struct tensorboard *t, const char *dir, int64_t first_step) MUST_USE;
/* One event with n scalars (n <= 8, tags under 64 bytes). Non-finite values are written as they are. */
enum code tensorboard_add(struct tensorboard *t, int64_t step, const struct tensorboard_scalar *scalars, int n) MUST_USE;
void tensorboard_close(struct tensorboard *t);

/* For tests. CRC-32C (Castagnoli), and the framing of n bytes into out[n + 16]. */
uint32_t tensorboard_crc32c(const void *bytes, size_t n);
size_t tensorboard_frame(unsigned char *out, const void *data, size_t n);

#endif
