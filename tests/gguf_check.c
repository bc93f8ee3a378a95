#include "gguf_check.h"

#include <fcntl.h>
#include <unistd.h>

#include "harness.h"

static const size_t SIZES[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8}; /* by value type; 8 string, 9 array */
enum { STRING = 8, ARRAY = 9 };

struct reader { const unsigned char *p; size_t n, at; };

static const unsigned char *take(struct reader *r, size_t n)
{
    assert_true(n <= r->n - r->at);
    r->at += n;
    return r->p + r->at - n;
}

static uint32_t take_u32(struct reader *r)
{
    uint32_t v;
    memcpy(&v, take(r, 4), 4);
    return v;
}

static uint64_t take_u64(struct reader *r)
{
    uint64_t v;
    memcpy(&v, take(r, 8), 8);
    return v;
}

static const char *take_string(struct reader *r, size_t *n)
{
    *n = take_u64(r);
    return (const char *)take(r, *n);
}

static void skip_value(struct reader *r, uint32_t type)
{
    size_t n;
    assert_true(type <= 12);
    if (type == STRING) {
        take_string(r, &n);
    } else if (type == ARRAY) {
        uint32_t each = take_u32(r);
        assert_int_not_equal(each, ARRAY);
        for (uint64_t i = 0, count = take_u64(r); i < count; i++)
            skip_value(r, each);
    } else {
        take(r, SIZES[type]);
    }
}

static void values_read(struct gguf_file *f, struct reader *r)
{
    f->values = calloc(f->n_values, sizeof *f->values);
    for (uint64_t i = 0; i < f->n_values; i++) {
        struct gguf_value *v = &f->values[i];
        v->key = take_string(r, &v->key_n);
        assert_true(v->key_n > 0);
        for (uint64_t k = 0; k < i; k++)
            assert_false(v->key_n == f->values[k].key_n && !memcmp(v->key, f->values[k].key, v->key_n));
        v->type = take_u32(r);
        v->p = r->p + r->at;
        skip_value(r, v->type);
    }
}

static uint64_t tensor_bytes(const struct gguf_entry *t)
{
    uint64_t n = t->type == 0 ? 4 : 2;
    assert_true(t->type == 0 || t->type == 1 || t->type == 30);
    for (uint32_t d = 0; d < t->nd; d++)
        n *= t->ne[d];
    return n;
}

void gguf_check_open(struct gguf_file *f, const char *path)
{
    char *bytes;
    memset(f, 0, sizeof *f);
    assert_ok(io_read_all(path, (size_t)1 << 30, &bytes, &f->n));
    f->bytes = (unsigned char *)bytes;
    struct reader r = {f->bytes, f->n, 0};
    assert_memory_equal(take(&r, 4), "GGUF", 4);
    assert_int_equal(take_u32(&r), 3);
    f->n_tensors = take_u64(&r);
    f->n_values = take_u64(&r);
    assert_true(f->n_tensors < 100000 && f->n_values < 1000);
    values_read(f, &r);
    uint64_t *offset = calloc(f->n_tensors, sizeof *offset), expected = 0;
    f->tensors = calloc(f->n_tensors, sizeof *f->tensors);
    for (uint64_t i = 0; i < f->n_tensors; i++) {
        struct gguf_entry *t = &f->tensors[i];
        size_t n;
        const char *name = take_string(&r, &n);
        assert_true(n > 0 && n < sizeof t->name);
        memcpy(t->name, name, n);
        assert_ptr_equal(gguf_check_tensor(f, t->name), t); /* once */
        t->nd = take_u32(&r);
        assert_true(t->nd >= 1 && t->nd <= 4);
        for (uint32_t d = 0; d < t->nd; d++)
            t->ne[d] = take_u64(&r);
        t->type = take_u32(&r);
        offset[i] = take_u64(&r);
        assert_true(offset[i] == expected && offset[i] % 32 == 0);
        expected += (tensor_bytes(t) + 31) / 32 * 32;
    }
    size_t data = (r.at + 31) / 32 * 32;
    assert_true(data + expected == f->n); /* nothing is missing or left over */
    for (uint64_t i = 0; i < f->n_tensors; i++)
        f->tensors[i].p = f->bytes + data + offset[i];
    free(offset);
}

void gguf_check_close(struct gguf_file *f)
{
    free(f->bytes);
    free(f->values);
    free(f->tensors);
    memset(f, 0, sizeof *f);
}

const struct gguf_value *gguf_check_value(const struct gguf_file *f, const char *key)
{
    for (uint64_t i = 0; i < f->n_values; i++)
        if (f->values[i].key_n == strlen(key) && !memcmp(f->values[i].key, key, strlen(key)))
            return &f->values[i];
    return NULL;
}

static const unsigned char *typed(const struct gguf_file *f, const char *key, uint32_t type)
{
    const struct gguf_value *v = gguf_check_value(f, key);
    if (!v)
        print_error("no key %s\n", key);
    assert_non_null(v);
    assert_int_equal(v->type, type);
    return v->p;
}

uint32_t gguf_check_u32(const struct gguf_file *f, const char *key)
{
    uint32_t v;
    memcpy(&v, typed(f, key, 4), 4);
    return v;
}

double gguf_check_f32(const struct gguf_file *f, const char *key)
{
    float v;
    memcpy(&v, typed(f, key, 6), 4);
    return (double)v;
}

int gguf_check_bool(const struct gguf_file *f, const char *key) { return *typed(f, key, 7); }

int gguf_check_is(const struct gguf_file *f, const char *key, const char *text)
{
    const unsigned char *p = typed(f, key, STRING);
    uint64_t n;
    memcpy(&n, p, 8);
    return n == strlen(text) && !memcmp(p + 8, text, n);
}

/* The array's values behind its type and count. */
static struct reader array_of(const struct gguf_file *f, const char *key, uint32_t *type, uint64_t *count)
{
    const unsigned char *p = typed(f, key, ARRAY);
    struct reader r = {p, (size_t)(f->bytes + f->n - p), 0};
    *type = take_u32(&r);
    *count = take_u64(&r);
    return r;
}

uint64_t gguf_check_length(const struct gguf_file *f, const char *key)
{
    uint32_t type;
    uint64_t count;
    array_of(f, key, &type, &count);
    return count;
}

const char *gguf_check_text(const struct gguf_file *f, const char *key, uint64_t i, size_t *n)
{
    uint32_t type;
    uint64_t count;
    struct reader r = array_of(f, key, &type, &count);
    assert_true(type == STRING && i < count);
    for (uint64_t k = 0; k < i; k++)
        take_string(&r, n);
    return take_string(&r, n);
}

int32_t gguf_check_i32(const struct gguf_file *f, const char *key, uint64_t i)
{
    uint32_t type;
    uint64_t count;
    int32_t v;
    struct reader r = array_of(f, key, &type, &count);
    assert_true((type == 4 || type == 5) && i < count);
    memcpy(&v, r.p + r.at + 4 * i, 4);
    return v;
}

double gguf_check_real(const struct gguf_file *f, const char *key, uint64_t i)
{
    uint32_t type;
    uint64_t count;
    float v;
    struct reader r = array_of(f, key, &type, &count);
    assert_true(type == 6 && i < count);
    memcpy(&v, r.p + r.at + 4 * i, 4);
    return (double)v;
}

const struct gguf_entry *gguf_check_tensor(const struct gguf_file *f, const char *name)
{
    for (uint64_t i = 0; i < f->n_tensors; i++)
        if (!strcmp(f->tensors[i].name, name))
            return &f->tensors[i];
    return NULL;
}

float gguf_check_element(const struct gguf_entry *t, uint64_t i)
{
    uint16_t half;
    float v;
    if (t->type == 0) {
        memcpy(&v, t->p + 4 * i, 4);
        return v;
    }
    memcpy(&half, t->p + 2 * i, 2);
    return t->type == 1 ? f32_from_f16(half) : f32_from_bf16(half);
}

void gguf_check_hush(int on)
{
    static int kept = -1;
    fflush(stderr);
    if (on) {
        kept = dup(2);
        int null = open("/dev/null", O_WRONLY);
        dup2(null, 2);
        close(null);
    } else {
        dup2(kept, 2);
        close(kept);
    }
}
