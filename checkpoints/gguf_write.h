/* The container of GGUF version 3, see gguf_write.c. Internal to checkpoints/. */
#ifndef GQAKIT_CHECKPOINTS_GGUF_WRITE_H
#define GQAKIT_CHECKPOINTS_GGUF_WRITE_H

#include "base/base.h"

enum { GGUF_ALIGNMENT = 32 };

/* Growing bytes. Running out of memory is remembered: the caller asks once, by gguf_header. */
struct gguf_buffer { char *bytes; size_t n, capacity; uint64_t pairs; int failed; };
void gguf_buffer_free(struct gguf_buffer *b);

/* Key-value pairs. Keys are ours, ASCII, and occur once. */
void gguf_put_u32(struct gguf_buffer *b, const char *key, uint32_t v);
void gguf_put_f32(struct gguf_buffer *b, const char *key, double v);
void gguf_put_bool(struct gguf_buffer *b, const char *key, int v);
void gguf_put_text(struct gguf_buffer *b, const char *key, const char *text);
void gguf_put_bytes(struct gguf_buffer *b, const char *key, const char *bytes, size_t n); /* a string that may hold anything */
void gguf_put_u32s(struct gguf_buffer *b, const char *key, const uint32_t *v, size_t n);
void gguf_put_i32s(struct gguf_buffer *b, const char *key, const int32_t *v, size_t n);
void gguf_put_f32s(struct gguf_buffer *b, const char *key, const float *v, size_t n);
void gguf_put_bools(struct gguf_buffer *b, const char *key, const unsigned char *v, size_t n);
/* An array of strings: begin, then n times add. */
void gguf_begin_texts(struct gguf_buffer *b, const char *key, size_t n);
void gguf_add_text(struct gguf_buffer *b, const char *bytes, size_t n);

/* A tensor of the file: n[0] rows of n[1] elements (n[1] = 1 and nd 1: a vector). */
struct gguf_tensor { const char *name; enum dtype dtype; int nd; int64_t n[2]; int64_t bytes, offset; };

/* Sets bytes and offset (from the start of the data) of every tensor and makes everything before the data: malloc'ed, *data bytes.
 * *total: of the whole file. */
enum code gguf_header(const struct gguf_buffer *pairs, struct gguf_tensor *tensors, int n, const char *where, char **head, int64_t *data,
                      int64_t *total) MUST_USE;

#endif
