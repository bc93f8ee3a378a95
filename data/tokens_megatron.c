/* Megatron-LM's indexed dataset: NAME.bin holds ids, NAME.idx says where. Little-endian, packed:
 *
 *   "MMIDIDX\0\0" (9 bytes)   u64 version = 1   u8 dtype   u64 sequences   u64 documents
 *   i32 length[sequences]     i64 byte offset in .bin [sequences]   i64 document[documents]   (i8 mode[sequences], multimodal only)
 *
 * dtype: 1 u8, 2 i8, 3 i16, 4 i32, 5 i64, 8 u16 (6 and 7 are floats: refused). The stream is the sequences in order, one after
 * another, also where the .bin stores them otherwise. Document boundaries in the index are checked but not used: packing
 * goes by the eos id in the stream, which Megatron's preprocessing appends with --append-eod. */
#include <stdlib.h>
#include <string.h>
#include "tokens.h"

enum { INDEX_HEADER = 34 };

struct index_parts { const unsigned char *lengths, *pointers, *documents; uint64_t n, n_documents; };

static enum code index_parts(struct index_parts *x, struct tokens *t, const unsigned char *p, size_t n, const char *where)
{
    static const int widths[9] = {0, 1, 1, 2, 4, 8, 0, 0, 2};
    if (n < INDEX_HEADER)
        return fail(ERR_INPUT, "%s: %zu bytes, the header alone has %d", where, n, INDEX_HEADER);
    if (memcmp(p, "MMIDIDX\0\0", 9) != 0)
        return fail(ERR_INPUT, "%s: does not start with MMIDIDX, so this is no Megatron index", where);
    if (read_le(p + 9, 8) != 1)
        return fail(ERR_UNSUPPORTED, "%s: index version %llu is not known, only 1", where, (unsigned long long)read_le(p + 9, 8));
    int dtype = p[17];
    if (dtype > 8 || widths[dtype] == 0)
        return fail(ERR_INPUT, "%s: dtype code %d is no integer type", where, dtype);
    t->width = widths[dtype];
    t->is_signed = dtype >= 2 && dtype <= 5;
    x->n = read_le(p + 18, 8);
    x->n_documents = read_le(p + 26, 8);
    uint64_t left = n - INDEX_HEADER;
    if (x->n > left / 12 || x->n_documents > (left - 12 * x->n) / 8)
        return fail(ERR_INPUT, "%s: %llu sequences and %llu documents do not fit into %zu bytes", where, (unsigned long long)x->n,
                    (unsigned long long)x->n_documents, n);
    left -= 12 * x->n + 8 * x->n_documents;
    if (left != 0 && left != x->n)
        return fail(ERR_INPUT, "%s: %llu bytes are left after the last array", where, (unsigned long long)left);
    x->lengths = p + INDEX_HEADER;
    x->pointers = x->lengths + 4 * x->n;
    x->documents = x->pointers + 8 * x->n;
    return OK;
}

static enum code check_documents(const struct index_parts *x, const char *where)
{
    uint64_t before = 0;
    for (uint64_t i = 0; i < x->n_documents; i++) {
        uint64_t d = read_le(x->documents + 8 * i, 8);
        if (d < before || d > x->n)
            return fail(ERR_INPUT, "%s: document %llu starts at sequence %llu; expected one in [%llu, %llu]", where,
                        (unsigned long long)i, (unsigned long long)d, (unsigned long long)before, (unsigned long long)x->n);
        before = d;
    }
    return OK;
}

enum code megatron_read_index(struct tokens *t, const unsigned char *p, size_t n, const char *where, int64_t bin_bytes)
{
    struct index_parts x = {0};
    TRY(index_parts(&x, t, p, n, where));
    TRY(check_documents(&x, where));
    int contiguous = 1;
    int64_t expected = x.n > 0 ? (int64_t)read_le(x.pointers, 8) : 0;
    for (uint64_t i = 0; i < x.n; i++) {
        int32_t length = (int32_t)read_le(x.lengths + 4 * i, 4);
        int64_t at = (int64_t)read_le(x.pointers + 8 * i, 8);
        if (length < 0)
            return fail(ERR_INPUT, "%s: sequence %llu has the length %d", where, (unsigned long long)i, length);
        if (at < 0 || at > bin_bytes || length > (bin_bytes - at) / t->width)
            return fail(ERR_INPUT, "%s: sequence %llu is %d ids of %d bytes at byte %lld, beyond the %lld bytes of the .bin", where,
                        (unsigned long long)i, length, t->width, (long long)at, (long long)bin_bytes);
        contiguous = contiguous && at == expected;
        expected = at + (int64_t)length * t->width;
        if (!checked_add(t->n, length, &t->n))
            return fail(ERR_INPUT, "%s: the lengths overflow", where);
    }
    t->ids = t->map.p != NULL && x.n > 0 ? t->map.p + read_le(x.pointers, 8) : t->map.p;
    if (contiguous)
        return OK;
    t->ids = NULL;
    t->n_sequences = (int64_t)x.n;
    t->pointers = x.pointers;
    t->starts = malloc((x.n + 1) * sizeof *t->starts);
    if (t->starts == NULL)
        return fail(ERR_MEMORY, "no memory for the %llu sequences of %s", (unsigned long long)x.n, where);
    t->starts[0] = 0;
    for (uint64_t i = 0; i < x.n; i++)
        t->starts[i + 1] = t->starts[i] + (int32_t)read_le(x.lengths + 4 * i, 4);
    return OK;
}

static enum code open_pair(struct tokens *t, const char *index, const char *bin)
{
    TRY(io_map_open(index, &t->index));
    TRY(io_map_open(bin, &t->map));
    return megatron_read_index(t, t->index.p, t->index.n, index, (int64_t)t->map.n);
}

enum code tokens_open_megatron(struct tokens *t, const char *path)
{
    size_t n = strlen(path);
    int has_end = n > 4 && (strcmp(path + n - 4, ".idx") == 0 || strcmp(path + n - 4, ".bin") == 0);
    char *index = NULL;
    int stem = (int)(has_end ? n - 4 : n);
    if (asprintf(&index, "%.*s.idx", stem, path) < 0)
        index = NULL;
    if (asprintf(&t->path, "%.*s.bin", stem, path) < 0)
        t->path = NULL;
    enum code c = index == NULL || t->path == NULL ? fail(ERR_MEMORY, "no memory for a path") : open_pair(t, index, t->path);
    free(index);
    return c;
}
