/* One whole file tensor kept in memory. GPT-2's c_attn is [C, 3C]: a canonical row of q, k or v is a column of it, so reading it
 * row by row would read the file once for every row. Kept until another such tensor is wanted, so that q, then k, then v in
 * row blocks read the file once; a conversion holds one tensor of memory more. */
#include <stdlib.h>

#include "hf.h"

void hf_whole_init(struct hf_whole *h)
{
    *h = (struct hf_whole){.fd = -1};
    pthread_mutex_init(&h->lock, NULL);
}

void hf_whole_free(struct hf_whole *h)
{
    free(h->bytes);
    pthread_mutex_destroy(&h->lock);
}

static enum code whole_read(struct hf_whole *h, int fd, const char *path, int64_t offset, int64_t bytes)
{
    if (h->fd == fd && h->offset == offset)
        return OK;
    h->fd = -1;
    if (bytes > h->capacity) {
        free(h->bytes);
        h->capacity = 0;
        h->bytes = malloc((size_t)bytes);
        if (!h->bytes)
            return fail(ERR_MEMORY, "%s: out of memory for a tensor of %lld bytes", path, (long long)bytes);
        h->capacity = bytes;
    }
    TRY(io_pread(fd, path, h->bytes, (size_t)bytes, offset));
    h->fd = fd;
    h->offset = offset;
    return OK;
}

enum code hf_whole_gather(struct hf_whole *h, int fd, const char *path, int64_t offset, int64_t bytes, const struct row_map *map, int64_t row,
                          int64_t rows, void *dst, size_t element)
{
    pthread_mutex_lock(&h->lock);
    enum code c = whole_read(h, fd, path, offset, bytes);
    if (c == OK)
        rows_gather(dst, map, h->bytes, row, rows, element);
    pthread_mutex_unlock(&h->lock);
    return c;
}
