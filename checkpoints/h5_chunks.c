/* What libhdf5 takes on trust of a chunk: that its filters give back as many bytes as the chunk has. 1.10's checksum filter reads before
 * its buffer where fewer than 4 are stored, and a short inflated chunk is read beyond its end. So each chunk's stored size is compared,
 * and a deflated one inflated here, before libhdf5 reads any (HDF5 File Format Specification 3.0, section III.A, and H5Z's pipeline order). */
#include <stdlib.h>
#include <zlib.h>

#include "h5_private.h"

enum { CHECKSUM = 4 };

struct filters { int deflate, checksum; };

/* As we write them: shuffle, deflate, checksum, each at most once. */
static const char *read_filters(hid_t dcpl, struct filters *f)
{
    int last = 0, n = H5Pget_nfilters(dcpl);
    *f = (struct filters){0};
    for (int i = 0; i < n; i++) {
        size_t none = 0;
        unsigned flags, config;
        H5Z_filter_t id = H5Pget_filter2(dcpl, (unsigned)i, &flags, &none, NULL, 0, NULL, &config);
        int rank = id == H5Z_FILTER_SHUFFLE ? 1 : id == H5Z_FILTER_DEFLATE ? 2 : id == H5Z_FILTER_FLETCHER32 ? 3 : 0;
        if (rank == 0)
            return "an unknown filter";
        if (rank <= last)
            return "filters in another order than a native checkpoint's";
        last = rank;
        f->deflate |= rank == 2;
        f->checksum |= rank == 3;
    }
    return NULL;
}

const char H5_NO_MEMORY[] = "no memory to check it";
static const char NOT_ITS_SIZE[] = "damaged, a chunk cannot be inflated to its size";

/* NULL if the n bytes at p inflate to exactly `want`. */
static const char *inflate_problem(unsigned char *p, size_t n, hsize_t want)
{
    unsigned char out[1 << 15];
    z_stream z = {.next_in = p, .avail_in = (uInt)n};
    hsize_t got = 0;
    int r = Z_OK;
    if (inflateInit(&z) != Z_OK)
        return H5_NO_MEMORY;
    while (r == Z_OK && got <= want) {
        z.next_out = out;
        z.avail_out = sizeof out;
        r = inflate(&z, Z_NO_FLUSH);
        got += sizeof out - z.avail_out;
    }
    inflateEnd(&z);
    return r == Z_STREAM_END && got == want ? NULL : r == Z_MEM_ERROR ? H5_NO_MEMORY : NOT_ITS_SIZE;
}

static const char *deflated_problem(hid_t set, const hsize_t at[2], const struct filters *f, hsize_t stored, hsize_t bytes)
{
    hsize_t added = f->checksum ? CHECKSUM : 0;
    uint32_t mask = 0;
    if (stored < added || stored - added > 2 * bytes + 1024)
        return "damaged, a chunk has an impossible size";
    unsigned char *raw = malloc(stored + 1);
    if (!raw)
        return H5_NO_MEMORY;
    const char *problem = NULL;
    if (H5Dread_chunk(set, H5P_DEFAULT, at, &mask, raw) < 0)
        problem = NOT_ITS_SIZE;
    else if (mask != 0)
        problem = "a chunk that was written without its filters";
    else
        problem = inflate_problem(raw, stored - added, bytes);
    free(raw);
    return problem;
}

/* Sizes by the lookup that reading uses. Without deflate a filter that was left out leaves too many bytes, never too few. */
static const char *chunk_problem(hid_t set, const hsize_t at[2], const struct filters *f, hsize_t bytes)
{
    hsize_t stored = 0;
    if (H5Dget_chunk_storage_size(set, at, &stored) < 0)
        return NULL; /* there is none: reading fills it, or fails */
    if (f->deflate)
        return deflated_problem(set, at, f, stored, bytes);
    return stored == bytes + (f->checksum ? CHECKSUM : 0) ? NULL : "damaged, a chunk has an impossible size";
}

const char *h5_chunks_problem(hid_t set, hid_t dcpl, int nd, const hsize_t n[2], const hsize_t chunk[2], size_t size)
{
    struct filters f;
    const char *problem = read_filters(dcpl, &f);
    hsize_t at[2], bytes = chunk[0] * (nd > 1 ? chunk[1] : 1) * size;
    for (at[0] = 0; !problem && at[0] < n[0]; at[0] += chunk[0])
        for (at[1] = 0; !problem && at[1] < n[1]; at[1] += nd > 1 ? chunk[1] : 1)
            problem = chunk_problem(set, at, &f, bytes);
    return problem;
}
