/* Reading a safetensors header. The checks and their order: length there (8 bytes), length within the cap, length within the
 * file, UTF-8 and JSON, each entry's form, then over all tensors sorted by offset: no hole and no overlap from 0 on, shape
 * times dtype without overflow and in whole bytes, equal to the offsets, and the last one ends where the file ends. So no
 * byte of the file is outside a tensor, and no two readers can see two different models in it. */
#include "safetensors.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct st_dtype { const char *name; int bits; enum dtype dtype; };
static const struct st_dtype DTYPES[] = {
    {"F32", 32, DT_F32},      {"BF16", 16, DT_BF16},       {"F16", 16, DT_F16},         {"F64", 64, DT_F64},
    {"I64", 64, DT_I64},      {"I32", 32, DT_I32},         {"I16", 16, DT_I16},         {"U16", 16, DT_U16},
    {"I8", 8, DT_I8},         {"U8", 8, DT_U8},            {"BOOL", 8, DT_BOOL},        {"U32", 32, DT_NONE},
    {"U64", 64, DT_NONE},     {"C64", 64, DT_NONE},        {"F8_E5M2", 8, DT_NONE},     {"F8_E4M3", 8, DT_NONE},
    {"F8_E8M0", 8, DT_NONE},  {"F8_E4M3FNUZ", 8, DT_NONE}, {"F8_E5M2FNUZ", 8, DT_NONE}, {"F6_E2M3", 6, DT_NONE},
    {"F6_E3M2", 6, DT_NONE},  {"F4", 4, DT_NONE},
};
enum { N_DTYPES = sizeof DTYPES / sizeof *DTYPES };

const char *st_dtype_name(enum dtype t)
{
    for (int i = 0; i < N_DTYPES; i++)
        if (t != DT_NONE && DTYPES[i].dtype == t)
            return DTYPES[i].name;
    return "";
}

enum code st_length(const unsigned char *head, int64_t file_bytes, int64_t limit, const char *where, int64_t *length)
{
    if (file_bytes < 8)
        return fail(ERR_INPUT, "%s: %lld bytes are too few for a safetensors file (truncated?)", where, (long long)file_bytes);
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--)
        n = n << 8 | head[i];
    if (n > (uint64_t)ST_HEADER_MAX)
        return fail(ERR_INPUT, "%s: its header claims %llu bytes, safetensors allows %lld", where, (unsigned long long)n,
                    (long long)ST_HEADER_MAX);
    if ((int64_t)n > limit)
        return fail(ERR_INPUT, "%s: its header of %llu bytes exceeds the limit of %lld; raise the header limit if the file is to be trusted",
                    where, (unsigned long long)n, (long long)limit);
    if ((int64_t)n > file_bytes - 8)
        return fail(ERR_INPUT, "%s: its header claims %llu bytes, the file has %lld more (truncated?)", where, (unsigned long long)n,
                    (long long)(file_bytes - 8));
    *length = (int64_t)n;
    return OK;
}

/* ---- one entry ---------------------------------------------------------------------------------------------------- */

static enum code metadata_check(const json_t *meta, const char *where)
{
    const char *key;
    json_t *v;
    if (!json_is_object(meta))
        return fail(ERR_INPUT, "%s: \"__metadata__\" must be an object of strings", where);
    json_object_foreach ((json_t *)meta, key, v)
        if (!json_is_string(v))
            return fail(ERR_INPUT, "%s: \"__metadata__\": \"%.40s\" is no string", where, key);
    return OK;
}

static const struct st_dtype *dtype_find(const char *name)
{
    for (int i = 0; i < N_DTYPES; i++)
        if (!strcmp(DTYPES[i].name, name))
            return &DTYPES[i];
    return NULL;
}

static int integers(const json_t *list, size_t max, int64_t *out, int *n)
{
    size_t size = json_array_size(list);
    if (!json_is_array(list) || size > max)
        return 0;
    for (size_t i = 0; i < size; i++) {
        const json_t *v = json_array_get(list, i);
        if (!json_is_integer(v) || json_integer_value(v) < 0)
            return 0;
        out[i] = json_integer_value(v);
    }
    *n = (int)size;
    return 1;
}

static enum code entry_read(struct st_tensor *t, const char *name, const json_t *v, const char *where)
{
    const char *key, *dtype = json_string_value(json_object_get(v, "dtype"));
    json_t *member;
    int64_t offsets[2];
    int n = 0;
    json_object_foreach ((json_t *)v, key, member)
        if (strcmp(key, "dtype") != 0 && strcmp(key, "shape") != 0 && strcmp(key, "data_offsets") != 0)
            return fail(ERR_INPUT, "%s: tensor \"%.80s\" has the unknown member \"%.40s\"", where, name, key);
    if (!dtype)
        return fail(ERR_INPUT, "%s: tensor \"%.80s\" needs \"dtype\", \"shape\" and \"data_offsets\"", where, name);
    if (!dtype_find(dtype))
        return fail(ERR_INPUT, "%s: tensor \"%.80s\" has the unknown dtype \"%.40s\"", where, name, dtype);
    if (!integers(json_object_get(v, "shape"), ST_DIMS, t->n, &t->nd))
        return fail(ERR_INPUT, "%s: tensor \"%.80s\": \"shape\" must be a list of at most %d sizes", where, name, ST_DIMS);
    if (!integers(json_object_get(v, "data_offsets"), 2, offsets, &n) || n != 2 || offsets[0] > offsets[1])
        return fail(ERR_INPUT, "%s: tensor \"%.80s\": \"data_offsets\" must be [begin, end] with begin <= end", where, name);
    memcpy(t->dtype_name, dtype, strlen(dtype) + 1); /* known names fit */
    t->dtype = dtype_find(dtype)->dtype;
    t->begin = offsets[0];
    t->end = offsets[1];
    t->name = strdup(name);
    return t->name ? OK : fail(ERR_MEMORY, "%s: out of memory", where);
}

/* ---- all together ------------------------------------------------------------------------------------------------- */

static int by_offset(const void *a, const void *b)
{
    const struct st_tensor *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    if (x->end != y->end)
        return x->end < y->end ? -1 : 1;
    return strcmp(x->name, y->name);
}

static enum code size_check(const struct st_tensor *t, const char *where)
{
    int64_t bits = dtype_find(t->dtype_name)->bits;
    for (int i = 0; i < t->nd; i++)
        if (!checked_mul(bits, t->n[i], &bits))
            return fail(ERR_INPUT, "%s: tensor \"%.80s\": its shape overflows", where, t->name);
    if (bits % 8)
        return fail(ERR_INPUT, "%s: tensor \"%.80s\": its %lld bits are no whole bytes", where, t->name, (long long)bits);
    if (bits / 8 != t->end - t->begin)
        return fail(ERR_INPUT, "%s: tensor \"%.80s\": shape and dtype need %lld bytes, its offsets span %lld", where, t->name,
                    (long long)(bits / 8), (long long)(t->end - t->begin));
    return OK;
}

static enum code layout_check(const struct st_header *h, int64_t data_bytes, const char *where)
{
    int64_t end = 0;
    for (int i = 0; i < h->count; i++) {
        const struct st_tensor *t = &h->tensors[i];
        if (t->begin != end)
            return fail(ERR_INPUT, "%s: tensor \"%.80s\" begins at byte %lld where %lld was expected: %s", where, t->name,
                        (long long)t->begin, (long long)end, t->begin < end ? "tensors overlap" : "there is a hole");
        end = t->end;
    }
    for (int i = 0; i < h->count; i++)
        TRY(size_check(&h->tensors[i], where));
    if (end != data_bytes)
        return fail(ERR_INPUT, "%s: its tensors span %lld bytes, the file holds %lld: %s", where, (long long)end, (long long)data_bytes,
                    end > data_bytes ? "it is truncated" : "there are extra bytes behind them");
    return OK;
}

static enum code entries_read(struct st_header *h, const json_t *root, const char *where)
{
    const char *key;
    json_t *v;
    size_t size = json_object_size(root);
    h->tensors = calloc(size ? size : 1, sizeof *h->tensors);
    if (!h->tensors)
        return fail(ERR_MEMORY, "%s: out of memory for %zu tensors", where, size);
    json_object_foreach ((json_t *)root, key, v) {
        if (!strcmp(key, "__metadata__")) {
            TRY(metadata_check(v, where));
            continue;
        }
        TRY(entry_read(&h->tensors[h->count], key, v, where));
        h->count++;
    }
    return OK;
}

enum code st_parse(struct st_header *h, const char *json, int64_t length, int64_t file_bytes, const char *where)
{
    json_t *root;
    memset(h, 0, sizeof *h);
    h->data = 8 + length;
    TRY(json_parse_object(json, (size_t)length, where, &root));
    enum code c = entries_read(h, root, where);
    json_decref(root);
    if (c == OK) {
        qsort(h->tensors, (size_t)h->count, sizeof *h->tensors, by_offset);
        c = layout_check(h, file_bytes - h->data, where);
    }
    if (c != OK)
        st_free(h);
    return c;
}

void st_free(struct st_header *h)
{
    for (int i = 0; i < h->count; i++)
        free(h->tensors[i].name);
    free(h->tensors);
    memset(h, 0, sizeof *h);
}

static enum code header_read(struct st_header *h, int fd, const char *path, int64_t limit)
{
    struct stat st;
    unsigned char head[8];
    int64_t length;
    if (fstat(fd, &st))
        return fail_errno(path, "stat");
    if (st.st_size >= 8)
        TRY(io_pread(fd, path, head, 8, 0));
    TRY(st_length(head, st.st_size, limit, path, &length));
    char *json = malloc((size_t)length + 1);
    if (!json)
        return fail(ERR_MEMORY, "%s: out of memory for its header of %lld bytes", path, (long long)length);
    enum code c = io_pread(fd, path, json, (size_t)length, 8);
    if (c == OK)
        c = st_parse(h, json, length, st.st_size, path);
    free(json);
    return c;
}

enum code st_open(struct st_header *h, int *fd, const char *path, int64_t limit)
{
    memset(h, 0, sizeof *h);
    TRY(io_open_regular(path, fd));
    enum code c = header_read(h, *fd, path, limit);
    if (c != OK) {
        close(*fd);
        *fd = -1;
    }
    return c;
}

/* ---- writing ------------------------------------------------------------------------------------------------------ */

enum code st_header_make(const struct st_tensor *tensors, int count, char **bytes, size_t *n, const char *where)
{
    json_t *root = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
    for (int i = 0; root && i < count; i++) {
        const struct st_tensor *t = &tensors[i];
        json_t *shape = json_array();
        for (int d = 0; d < t->nd; d++)
            json_array_append_new(shape, json_integer(t->n[d]));
        json_object_set_new(root, t->name, json_pack("{s:s, s:o, s:[I, I]}", "dtype", st_dtype_name(t->dtype), "shape", shape,
                                                     "data_offsets", (json_int_t)t->begin, (json_int_t)t->end));
    }
    char *text = root ? json_text(root, JSON_COMPACT) : NULL;
    json_decref(root);
    size_t length = text ? strlen(text) : 0, padded = (length + 7) / 8 * 8;
    *bytes = text ? malloc(8 + padded) : NULL;
    *n = 8 + padded;
    if (*bytes) {
        for (int i = 0; i < 8; i++)
            (*bytes)[i] = (char)(padded >> (8 * i) & 255);
        memcpy(*bytes + 8, text, length);
        memset(*bytes + 8 + length, ' ', padded - length);
    }
    free(text);
    if (!*bytes)
        return fail(ERR_MEMORY, "%s: out of memory for its header", where);
    if ((int64_t)padded > ST_HEADER_MAX)
        return fail(ERR_UNSUPPORTED, "%s: its header would have %zu bytes, safetensors allows %lld", where, padded, (long long)ST_HEADER_MAX);
    return OK;
}
