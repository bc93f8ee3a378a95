/* The door of token files: which format a path is in, the check of every id when it is opened, and reading ranges. Files are
 * mapped, so opening costs one pass over the pages and no memory of its own. */
#include <stdlib.h>
#include <string.h>
#include "tokens.h"

/* ---- which format ---- */

static int ends_with(const char *path, size_t n, const char *end)
{
    size_t k = strlen(end);
    return n > k && memcmp(path + n - k, end, k) == 0;
}

static int has_sibling(const char *path, size_t stem, const char *end)
{
    char *other = NULL;
    int yes = asprintf(&other, "%.*s%s", (int)stem, path, end) >= 0 && io_exists(other);
    free(other);
    return yes;
}

static enum code read_head(const char *path, unsigned char head[8], size_t *n)
{
    struct io_map m;
    memset(head, 0, 8);
    TRY(io_map_open(path, &m));
    *n = m.n < 8 ? m.n : 8;
    memcpy(head, m.p, *n);
    io_map_close(&m);
    return OK;
}

static enum code refuse_tables(const char *path, const unsigned char head[8])
{
    int arrow = memcmp(head, "ARROW1", 6) == 0;
    if (!arrow && memcmp(head, "PAR1", 4) != 0)
        return OK;
    return fail(ERR_UNSUPPORTED, "%s: %s is not read here; export it once, for instance with Python: "
                "datasets.load_dataset(...).to_json(\"data.jsonl\")", path, arrow ? "an Arrow file" : "a Parquet file");
}

enum code data_detect_format(const char *path, enum data_format *format)
{
    size_t n = strlen(path), head_n = 0;
    unsigned char head[8];
    if (ends_with(path, n, ".idx") || (!io_exists(path) && has_sibling(path, n, ".idx"))) {
        *format = DATA_MEGATRON;
        return OK;
    }
    TRY(read_head(path, head, &head_n));
    TRY(refuse_tables(path, head));
    int gzip = head_n >= 2 && head[0] == 0x1F && head[1] == 0x8B;
    size_t stem = ends_with(path, n, ".gz") ? n - 3 : n;
    int32_t magic = (int32_t)read_le(head, 4);
    if (ends_with(path, stem, ".jsonl"))
        *format = DATA_JSONL;
    else if (ends_with(path, stem, ".txt") || gzip)
        *format = DATA_TEXT;
    else if (magic == LLMC_U16 || magic == LLMC_U32 || magic == LLMC_EVAL)
        *format = DATA_LLMC;
    else if (ends_with(path, n, ".bin") && has_sibling(path, n - 4, ".idx"))
        *format = DATA_MEGATRON;
    else if (ends_with(path, n, ".bin") || ends_with(path, n, ".npy"))
        *format = DATA_RAW;
    else
        return fail(ERR_INPUT, "%s: cannot tell its format by name or content (.bin .idx .npy .txt .jsonl); name it: data.format, or --format of gqa-eval", path);
    return OK;
}

/* ---- ids ---- */

static int64_t id_at(const struct tokens *t, const unsigned char *p)
{
    uint64_t v = read_le(p, t->width);
    int unused = 64 - 8 * t->width;
    return t->is_signed ? (int64_t)(v << unused) >> unused : (int64_t)v;
}

/* u16 and u32 in blocks whose maximum the compiler finds with vector instructions; the rest one by one. */
static int64_t first_bad(const struct tokens *t, const unsigned char *p, int64_t n, int64_t limit)
{
    enum { BLOCK = 4096 };
    if (t->width <= 2 && !t->is_signed && limit > UINT16_MAX)
        return -1;
    for (int64_t from = 0; from < n; from += BLOCK) {
        int64_t count = n - from < BLOCK ? n - from : BLOCK;
        uint32_t top = 0;
        if (t->width == 2 && !t->is_signed) {
            uint16_t block[BLOCK], top16 = 0;
            memcpy(block, p + 2 * from, 2 * (size_t)count);
            for (int64_t i = 0; i < count; i++)
                top16 = block[i] > top16 ? block[i] : top16;
            top = top16;
        } else if (t->width == 4) { /* negative i32 are large as u32 */
            uint32_t block[BLOCK];
            memcpy(block, p + 4 * from, 4 * (size_t)count);
            for (int64_t i = 0; i < count; i++)
                top = block[i] > top ? block[i] : top;
        } else {
            top = UINT32_MAX;
        }
        if (top < limit)
            continue;
        for (int64_t i = from; i < from + count; i++) {
            int64_t id = id_at(t, p + i * t->width);
            if (id < 0 || id >= limit)
                return i;
        }
    }
    return -1;
}

static const unsigned char *sequence_start(const struct tokens *t, int64_t i)
{
    return t->map.p + read_le(t->pointers + 8 * i, 8);
}

static enum code refuse_id(const struct tokens *t, int64_t i, const unsigned char *p, int64_t limit)
{
    char where[64] = "";
    if (t->memory == NULL)
        snprintf(where, sizeof where, " (byte %lld)", (long long)(p - t->map.p));
    return fail(ERR_INPUT, "%s: token %lld%s has the id %lld, but the vocabulary has %lld ids: another tokenizer than the model's made it", t->path, (long long)i, where,
                (long long)id_at(t, p), (long long)limit);
}

enum code tokens_check_ids(const struct tokens *t, int64_t V)
{
    int64_t limit = V > 0 ? V : (int64_t)1 << 31;
    if (t->starts == NULL) {
        int64_t bad = first_bad(t, t->ids, t->n, limit);
        return bad < 0 ? OK : refuse_id(t, bad, t->ids + bad * t->width, limit);
    }
    for (int64_t s = 0; s < t->n_sequences; s++) {
        const unsigned char *p = sequence_start(t, s);
        int64_t bad = first_bad(t, p, t->starts[s + 1] - t->starts[s], limit);
        if (bad >= 0)
            return refuse_id(t, t->starts[s] + bad, p + bad * t->width, limit);
    }
    return OK;
}

static void copy_ids(const struct tokens *t, const unsigned char *p, int64_t n, int32_t *ids)
{
    if (t->width == 4) {
        memcpy(ids, p, 4 * (size_t)n);
    } else if (t->width == 2 && !t->is_signed) {
        for (int64_t i = 0; i < n; i++)
            ids[i] = (int32_t)(p[2 * i] | p[2 * i + 1] << 8);
    } else {
        for (int64_t i = 0; i < n; i++)
            ids[i] = (int32_t)id_at(t, p + i * t->width);
    }
}

void tokens_get(const struct tokens *t, int64_t from, int64_t n, int32_t *ids)
{
    CHECK(from >= 0 && n >= 0 && from <= t->n && n <= t->n - from);
    if (n == 0)
        return;
    if (t->starts == NULL) {
        copy_ids(t, t->ids + from * t->width, n, ids);
        return;
    }
    int64_t low = 0, high = t->n_sequences; /* starts[low] <= from < starts[high] */
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (t->starts[middle] <= from)
            low = middle;
        else
            high = middle;
    }
    for (int64_t s = low; n > 0; s++) {
        int64_t skip = from - t->starts[s], count = t->starts[s + 1] - from < n ? t->starts[s + 1] - from : n;
        copy_ids(t, sequence_start(t, s) + skip * t->width, count, ids);
        ids += count;
        from += count;
        n -= count;
    }
}

void tokens_get_mask(const struct tokens *t, int64_t from, int64_t n, uint8_t *mask)
{
    CHECK(from >= 0 && n >= 0 && from <= t->n && n <= t->n - from);
    for (int64_t i = 0; i < n; i++)
        mask[i] = t->mask.p == NULL || t->mask.p[from + i] != 0;
}

/* ---- opening ---- */

static enum code open_mask(struct tokens *t)
{
    char *path = NULL;
    if (asprintf(&path, "%s.mask", t->path) < 0)
        return fail(ERR_MEMORY, "no memory for a path");
    enum code c = io_exists(path) ? io_map_open(path, &t->mask) : OK;
    if (c == OK && t->mask.p != NULL && t->mask.n != (size_t)t->n)
        c = fail(ERR_INPUT, "%s: %zu bytes; expected one for each of the %lld tokens of %s", path, t->mask.n, (long long)t->n, t->path);
    free(path);
    return c;
}

static enum code open_ids(struct tokens *t, const char *path, enum data_format format, const struct tokens_options *o)
{
    struct sidecar s;
    int found = 0;
    if (format != DATA_MEGATRON)
        TRY(sidecar_read(&s, path, &found));
    if (format == DATA_LLMC)
        TRY(tokens_open_llmc(t, path));
    else if (format == DATA_RAW)
        TRY(tokens_open_raw(t, path, o->dtype == DT_NONE && found ? s.dtype : o->dtype, o->V));
    else
        TRY(tokens_open_megatron(t, path));
    t->bytes = found ? s.bytes : -1;
    if (found && o->tokenizer != NULL && s.tokenizer_sha256[0] != 0 && strcmp(s.tokenizer_sha256, tokenizer_sha256(o->tokenizer)) != 0)
        log_warn("%s.json: these tokens were made by another tokenizer (sha256 %.12s...)", path, s.tokenizer_sha256);
    TRY(open_mask(t));
    return tokens_check_ids(t, o->V);
}

enum code tokens_open(struct tokens **out, const char *path, const struct tokens_options *o)
{
    enum data_format format = o->format;
    *out = NULL;
    if (format == DATA_AUTO)
        TRY(data_detect_format(path, &format));
    struct tokens *t = calloc(1, sizeof *t);
    if (t == NULL)
        return fail(ERR_MEMORY, "no memory to open %s", path);
    enum code c = format == DATA_TEXT || format == DATA_JSONL ? tokens_open_text(t, path, o, format == DATA_JSONL)
                                                              : open_ids(t, path, format, o);
    if (c != OK) {
        tokens_close(t);
        return c;
    }
    *out = t;
    return OK;
}

void tokens_close(struct tokens *t)
{
    if (t == NULL)
        return;
    io_map_close(&t->map);
    io_map_close(&t->mask);
    io_map_close(&t->index);
    free(t->memory);
    free(t->starts);
    free(t->path);
    free(t);
}

int64_t tokens_count(const struct tokens *t) { return t->n; }
int64_t tokens_bytes(const struct tokens *t) { return t->bytes; }
int tokens_has_mask(const struct tokens *t) { return t->mask.p != NULL; }

/* Of the file as it is mapped; of .idx and .bin together for Megatron; of the text for tokenised text. Made when first asked for. */
const char *tokens_sha256(const struct tokens *t)
{
    if (t->sha256[0] == 0) {
        char hex[2][65];
        char *dst = (char *)(uintptr_t)t->sha256; /* a cache inside, the value is fixed */
        sha256_of(t->map.p, t->map.n, hex[0]);
        memcpy(dst, hex[0], 65);
        if (t->index.p != NULL) {
            char both[128];
            sha256_of(t->index.p, t->index.n, hex[1]);
            memcpy(both, hex[1], 64);
            memcpy(both + 64, hex[0], 64);
            sha256_of(both, sizeof both, dst);
        }
    }
    return t->sha256;
}
