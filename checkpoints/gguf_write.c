/* The container of GGUF version 3 (ggml, docs/gguf.md): little-endian,
 *   "GGUF"  u32 version = 3  i64 tensors  i64 pairs
 *   pairs    string key, u32 type, value          string: u64 bytes, bytes        array: u32 type, u64 count, values
 *   tensors  string name (< 64 bytes), u32 nd, u64 extents with the fastest first, u32 type, u64 offset into the data
 *   padding to 32, then the data: every tensor padded to 32, offsets are the running sum
 * The header is made whole in memory (a vocabulary of 256k tokens takes some 10 MB), the data is written by form_gguf.c. */
#include "gguf_write.h"

#include <stdlib.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "GGUF is written as it lies in memory: little-endian machines only"
#endif

enum { V_U32 = 4, V_I32 = 5, V_F32 = 6, V_BOOL = 7, V_STRING = 8, V_ARRAY = 9 };

static void put(struct gguf_buffer *b, const void *bytes, size_t n)
{
    if (b->failed || !n)
        return;
    if (n > b->capacity - b->n) {
        size_t capacity = b->capacity ? b->capacity : 4096;
        while (capacity - b->n < n && capacity <= SIZE_MAX / 2)
            capacity *= 2;
        char *grown = capacity - b->n < n ? NULL : realloc(b->bytes, capacity);
        if (!grown) {
            b->failed = 1;
            return;
        }
        b->bytes = grown;
        b->capacity = capacity;
    }
    memcpy(b->bytes + b->n, bytes, n);
    b->n += n;
}

static void put_u32(struct gguf_buffer *b, uint32_t v) { put(b, &v, sizeof v); }
static void put_u64(struct gguf_buffer *b, uint64_t v) { put(b, &v, sizeof v); }

static void put_string(struct gguf_buffer *b, const char *bytes, size_t n)
{
    put_u64(b, n);
    put(b, bytes, n);
}

static void put_key(struct gguf_buffer *b, const char *key, uint32_t type)
{
    put_string(b, key, strlen(key));
    put_u32(b, type);
    b->pairs++;
}

static void put_array(struct gguf_buffer *b, const char *key, uint32_t type, const void *v, size_t n, size_t each)
{
    put_key(b, key, V_ARRAY);
    put_u32(b, type);
    put_u64(b, n);
    put(b, v, n * each);
}

void gguf_buffer_free(struct gguf_buffer *b)
{
    free(b->bytes);
    memset(b, 0, sizeof *b);
}

void gguf_put_u32(struct gguf_buffer *b, const char *key, uint32_t v)
{
    put_key(b, key, V_U32);
    put_u32(b, v);
}

void gguf_put_f32(struct gguf_buffer *b, const char *key, double v)
{
    float f = (float)v;
    put_key(b, key, V_F32);
    put(b, &f, sizeof f);
}

void gguf_put_bool(struct gguf_buffer *b, const char *key, int v)
{
    unsigned char byte = v != 0;
    put_key(b, key, V_BOOL);
    put(b, &byte, 1);
}

void gguf_put_bytes(struct gguf_buffer *b, const char *key, const char *bytes, size_t n)
{
    put_key(b, key, V_STRING);
    put_string(b, bytes, n);
}

void gguf_put_text(struct gguf_buffer *b, const char *key, const char *text) { gguf_put_bytes(b, key, text, strlen(text)); }
void gguf_put_u32s(struct gguf_buffer *b, const char *key, const uint32_t *v, size_t n) { put_array(b, key, V_U32, v, n, sizeof *v); }
void gguf_put_i32s(struct gguf_buffer *b, const char *key, const int32_t *v, size_t n) { put_array(b, key, V_I32, v, n, sizeof *v); }
void gguf_put_f32s(struct gguf_buffer *b, const char *key, const float *v, size_t n) { put_array(b, key, V_F32, v, n, sizeof *v); }
void gguf_put_bools(struct gguf_buffer *b, const char *key, const unsigned char *v, size_t n) { put_array(b, key, V_BOOL, v, n, 1); }
void gguf_begin_texts(struct gguf_buffer *b, const char *key, size_t n) { put_array(b, key, V_STRING, NULL, n, 0); }
void gguf_add_text(struct gguf_buffer *b, const char *bytes, size_t n) { put_string(b, bytes, n); }

/* ---- header --------------------------------------------------------------------------------------------------------- */

static uint32_t type_number(enum dtype t)
{
    CHECK(t == DT_F32 || t == DT_F16 || t == DT_BF16);
    return t == DT_F32 ? 0 : t == DT_F16 ? 1 : 30;
}

static int padded(int64_t n, int64_t *out) { return checked_add(n, (GGUF_ALIGNMENT - n % GGUF_ALIGNMENT) % GGUF_ALIGNMENT, out); }

static enum code tensor_place(struct gguf_tensor *t, const char *where, int64_t *at)
{
    int64_t count, end;
    CHECK(strlen(t->name) < 64 && (t->nd == 1 || t->nd == 2));
    t->offset = *at;
    if (!checked_mul(t->n[0], t->n[1], &count) || !checked_mul(count, (int64_t)dtype_bytes(t->dtype), &t->bytes) ||
        !checked_add(*at, t->bytes, &end) || !padded(end, at))
        return fail(ERR_UNSUPPORTED, "%s: tensor %s is too large", where, t->name);
    return OK;
}

static void tensor_put(struct gguf_buffer *b, const struct gguf_tensor *t)
{
    put_string(b, t->name, strlen(t->name));
    put_u32(b, (uint32_t)t->nd);
    if (t->nd == 2)
        put_u64(b, (uint64_t)t->n[1]);
    put_u64(b, (uint64_t)t->n[0]);
    put_u32(b, type_number(t->dtype));
    put_u64(b, (uint64_t)t->offset);
}

enum code gguf_header(const struct gguf_buffer *pairs, struct gguf_tensor *tensors, int n, const char *where, char **head, int64_t *data,
                      int64_t *total)
{
    static const char zeros[GGUF_ALIGNMENT];
    struct gguf_buffer b = {0};
    int64_t at = 0;
    for (int i = 0; i < n; i++)
        TRY(tensor_place(&tensors[i], where, &at));
    put(&b, "GGUF", 4);
    put_u32(&b, 3);
    put_u64(&b, (uint64_t)n);
    put_u64(&b, pairs->pairs);
    put(&b, pairs->bytes, pairs->n);
    for (int i = 0; i < n; i++)
        tensor_put(&b, &tensors[i]);
    put(&b, zeros, (GGUF_ALIGNMENT - b.n % GGUF_ALIGNMENT) % GGUF_ALIGNMENT);
    if (b.failed || pairs->failed || !checked_add((int64_t)b.n, at, total)) {
        gguf_buffer_free(&b);
        return fail(ERR_MEMORY, "%s: out of memory for the header", where);
    }
    *head = b.bytes;
    *data = (int64_t)b.n;
    return OK;
}
