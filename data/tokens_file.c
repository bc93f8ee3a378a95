/* Token files at rest. llm.c's form: 256 little-endian i32, [0] magic, [1] version, [2] number of tokens, then the ids: u16 after
 * magic 20240520 version 1, u32 after 20240801 version 7; the size of the file must be exactly that. Headerless (nanoGPT,
 * OLMo's .npy): ids only. Beside each may lie FILE.json, which says what the ids stand for:
 * {dtype, vocab, tokenizer_sha256, bytes, eos, input_sha256, tokens}. */
#include <stdlib.h>
#include <string.h>
#include "tokens.h"

enum code llmc_read_header(struct tokens *t, const unsigned char *p, size_t n, const char *where)
{
    if (n < LLMC_HEADER)
        return fail(ERR_INPUT, "%s: %zu bytes, the llm.c header alone has %d", where, n, LLMC_HEADER);
    int32_t magic = (int32_t)read_le(p, 4), version = (int32_t)read_le(p + 4, 4), count = (int32_t)read_le(p + 8, 4);
    if (magic == LLMC_EVAL)
        return fail(ERR_UNSUPPORTED, "%s: an llm.c evaluation file (magic 20240522), not a stream of tokens", where);
    if (magic != LLMC_U16 && magic != LLMC_U32)
        return fail(ERR_INPUT, "%s: magic %d is neither 20240520 nor 20240801, so this is no llm.c token file", where, magic);
    int want = magic == LLMC_U16 ? 1 : 7;
    if (version != want)
        return fail(ERR_UNSUPPORTED, "%s: version %d of magic %d is not known, only %d", where, version, magic, want);
    t->width = magic == LLMC_U16 ? 2 : 4;
    if (count < 0)
        return fail(ERR_INPUT, "%s: the header says %d tokens", where, count);
    if ((uint64_t)n != LLMC_HEADER + (uint64_t)count * (uint64_t)t->width)
        return fail(ERR_INPUT, "%s: the header says %d tokens of %d bytes, so %lld bytes; the file has %zu", where, count, t->width,
                    (long long)LLMC_HEADER + (long long)count * t->width, n);
    t->ids = p + LLMC_HEADER;
    t->n = count;
    return OK;
}

static enum code map_file(struct tokens *t, const char *path)
{
    t->path = strdup(path);
    if (t->path == NULL)
        return fail(ERR_MEMORY, "no memory to open %s", path);
    if (io_file_bytes(path) == 0)
        return fail(ERR_INPUT, "%s: the file is empty", path);
    return io_map_open(path, &t->map);
}

enum code tokens_open_llmc(struct tokens *t, const char *path)
{
    TRY(map_file(t, path));
    return llmc_read_header(t, t->map.p, t->map.n, path);
}

enum code tokens_open_raw(struct tokens *t, const char *path, enum dtype dtype, int64_t V)
{
    TRY(map_file(t, path));
    if (t->map.n >= 6 && memcmp(t->map.p, "\x93NUMPY", 6) == 0)
        return fail(ERR_UNSUPPORTED, "%s: a NumPy file with a header is not supported; write the ids alone: numpy.load(f).tofile(g)", path);
    if (dtype == DT_NONE) {
        dtype = V <= 65536 ? DT_U16 : DT_I32;
        log_info("%s has no header: read as %s, by the vocabulary of %lld (data.dtype says otherwise)", path,
                 dtype == DT_U16 ? "uint16" : "uint32", (long long)V);
    }
    if (dtype != DT_U16 && dtype != DT_I32)
        return fail(ERR_USAGE, "%s: token ids are uint16 or uint32, not %s", path, dtype_name(dtype));
    t->width = dtype == DT_U16 ? 2 : 4;
    if (t->map.n % (size_t)t->width != 0)
        return fail(ERR_INPUT, "%s: %zu bytes are not a whole number of %d-byte ids; is data.dtype right?", path, t->map.n, t->width);
    t->ids = t->map.p;
    t->n = (int64_t)(t->map.n / (size_t)t->width);
    return OK;
}

/* ---- sidecar ---- */

static enum code copy_hash(char dst[65], const char *hash, const char *path)
{
    if (hash != NULL && strlen(hash) > 64)
        return fail(ERR_INPUT, "%s: a hash longer than 64 characters", path);
    snprintf(dst, 65, "%s", hash != NULL ? hash : "");
    return OK;
}

static enum code sidecar_bind(struct sidecar *s, const json_t *root, const char *path)
{
    const char *dtype = NULL, *tokenizer = NULL, *input = NULL;
    int64_t eos = -1;
    TRY(json_want_str(root, path, "dtype", &dtype));
    TRY(json_want_i64(root, path, "vocab", 0, (int64_t)1 << 31, &s->vocab));
    TRY(json_want_i64(root, path, "bytes", -1, INT64_MAX, &s->bytes));
    TRY(json_want_i64(root, path, "eos", -1, INT32_MAX, &eos));
    TRY(json_want_str(root, path, "tokenizer_sha256", &tokenizer));
    TRY(json_want_str(root, path, "input_sha256", &input));
    s->eos = (int)eos;
    if (dtype != NULL)
        s->dtype = strcmp(dtype, "uint16") == 0 ? DT_U16 : strcmp(dtype, "uint32") == 0 ? DT_I32 : DT_NONE;
    if (dtype != NULL && s->dtype == DT_NONE)
        return fail(ERR_INPUT, "%s: dtype \"%.40s\" is neither uint16 nor uint32", path, dtype);
    TRY(copy_hash(s->tokenizer_sha256, tokenizer, path));
    return copy_hash(s->input_sha256, input, path);
}

static char *sidecar_path(const char *token_path)
{
    char *path = NULL;
    return asprintf(&path, "%s.json", token_path) < 0 ? NULL : path;
}

enum code sidecar_read(struct sidecar *s, const char *token_path, int *found)
{
    *s = (struct sidecar){.dtype = DT_NONE, .vocab = 0, .bytes = -1, .eos = -1};
    char *path = sidecar_path(token_path);
    if (path == NULL)
        return fail(ERR_MEMORY, "no memory for a path");
    *found = io_exists(path);
    json_t *root = NULL;
    enum code c = *found ? json_read_file(path, 1 << 20, &root) : OK;
    if (c == OK && *found)
        c = sidecar_bind(s, root, path);
    json_decref(root);
    free(path);
    return c;
}

static enum code sidecar_write(const struct sidecar *s, const char *token_path, int64_t n)
{
    char *path = sidecar_path(token_path);
    json_t *root = json_object();
    json_object_set_new(root, "dtype", json_string(s->dtype == DT_U16 ? "uint16" : "uint32"));
    json_object_set_new(root, "vocab", json_integer(s->vocab));
    json_object_set_new(root, "tokenizer_sha256", json_string(s->tokenizer_sha256));
    json_object_set_new(root, "bytes", s->bytes >= 0 ? json_integer(s->bytes) : json_null());
    json_object_set_new(root, "eos", json_integer(s->eos));
    json_object_set_new(root, "input_sha256", s->input_sha256[0] != 0 ? json_string(s->input_sha256) : json_null());
    json_object_set_new(root, "tokens", json_integer(n));
    enum code c = path == NULL || root == NULL ? fail(ERR_MEMORY, "no memory for %s.json", token_path) : json_write_file(path, root);
    json_decref(root);
    free(path);
    return c;
}

static void write_le(unsigned char *p, uint32_t v, int width)
{
    for (int i = 0; i < width; i++)
        p[i] = (unsigned char)(v >> 8 * i);
}

enum code tokens_store(const char *path, const int32_t *ids, int64_t n, const struct sidecar *given)
{
    struct sidecar s = *given;
    s.dtype = s.vocab <= 65536 ? DT_U16 : DT_I32;
    int width = s.dtype == DT_U16 ? 2 : 4;
    if (n > INT32_MAX)
        return fail(ERR_UNSUPPORTED, "%s: %lld tokens are more than an llm.c file can hold (2^31 - 1); split the input", path,
                    (long long)n);
    unsigned char *bytes = calloc(1, LLMC_HEADER + (size_t)n * (size_t)width);
    if (bytes == NULL)
        return fail(ERR_MEMORY, "no memory for the %lld tokens of %s", (long long)n, path);
    write_le(bytes, width == 2 ? LLMC_U16 : LLMC_U32, 4);
    write_le(bytes + 4, width == 2 ? 1 : 7, 4);
    write_le(bytes + 8, (uint32_t)n, 4);
    enum code c = OK;
    for (int64_t i = 0; i < n && c == OK; i++) {
        if (ids[i] < 0 || ids[i] >= s.vocab)
            c = fail(ERR_INPUT, "%s: token %lld has the id %d, outside the vocabulary of %lld", path, (long long)i, ids[i],
                     (long long)s.vocab);
        write_le(bytes + LLMC_HEADER + i * width, (uint32_t)ids[i], width);
    }
    if (c == OK)
        c = io_write_atomic(path, bytes, LLMC_HEADER + (size_t)n * (size_t)width);
    free(bytes);
    return c == OK ? sidecar_write(&s, path, n) : c;
}

enum code tokens_write(const char *path, const int32_t *ids, int64_t n, int64_t V, int64_t bytes, int eos, const char *tokenizer_sha256)
{
    struct sidecar s = {.vocab = V, .bytes = bytes, .eos = eos};
    TRY(copy_hash(s.tokenizer_sha256, tokenizer_sha256, path));
    return tokens_store(path, ids, n, &s);
}
