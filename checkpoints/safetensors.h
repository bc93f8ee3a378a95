/* safetensors: u64 little-endian n | n bytes of JSON | data. The JSON maps a tensor name to {"dtype", "shape",
 * "data_offsets": [begin, end]} relative to the data, and "__metadata__" to strings. Source: the format's README and the
 * checks of its reference reader. Internal to checkpoints/. */
#ifndef GQAKIT_CHECKPOINTS_SAFETENSORS_H
#define GQAKIT_CHECKPOINTS_SAFETENSORS_H

#include "base/base.h"

#define ST_HEADER_MAX ((int64_t)100000000)     /* the format's own cap */
#define ST_HEADER_DEFAULT ((int64_t)16 << 20)  /* what we read unless told otherwise: no real model comes near */
enum { ST_DIMS = 8 };

struct st_tensor {
    char *name;
    char dtype_name[16]; /* as the file spells it */
    enum dtype dtype;    /* DT_NONE for those we do not compute with (F8_E4M3 ...) */
    int nd;
    int64_t n[ST_DIMS];
    int64_t begin, end; /* bytes, relative to the data */
};

struct st_header {
    struct st_tensor *tensors; /* sorted by offset */
    int count;
    int64_t data; /* offset of the data in the file */
};

/* The length in the first 8 bytes of a file of file_bytes; `head` holds min(8, file_bytes) bytes. Refused over `limit`. */
enum code st_length(const unsigned char *head, int64_t file_bytes, int64_t limit, const char *where, int64_t *length) MUST_USE;
/* The JSON. Offsets must tile the data of a file of file_bytes exactly. */
enum code st_parse(struct st_header *h, const char *json, int64_t length, int64_t file_bytes, const char *where) MUST_USE;
void st_free(struct st_header *h);
/* Opens a file and reads its header; *fd stays open for the data. */
enum code st_open(struct st_header *h, int *fd, const char *path, int64_t limit) MUST_USE;
/* Name of a dtype in a header ("BF16"), "" when it has none. */
const char *st_dtype_name(enum dtype t);
/* The first bytes of a file for tensors already laid out in `tensors` (names, dtype, shape, begin, end): length, JSON, spaces up
 * to a multiple of 8. malloc'ed. */
enum code st_header_make(const struct st_tensor *tensors, int count, char **bytes, size_t *n, const char *where) MUST_USE;

/* model.safetensors.index.json: which file holds which tensor. */
struct st_index_entry { char *tensor; int file; };
struct st_index {
    struct st_index_entry *entries; /* sorted by tensor name */
    int count;
    char **files; /* sorted, unique */
    int n_files;
};
enum code st_index_parse(struct st_index *x, const char *bytes, size_t n, const char *where) MUST_USE;
const struct st_index_entry *st_index_find(const struct st_index *x, const char *tensor); /* NULL if absent */
void st_index_free(struct st_index *x);

#endif
