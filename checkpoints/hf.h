/* What the reader (hf.c) and the writer (hf_write.c) of Hugging Face directories share. Internal to checkpoints/. */
#ifndef GQAKIT_CHECKPOINTS_HF_H
#define GQAKIT_CHECKPOINTS_HF_H

#include <pthread.h>

#include "form.h"
#include "rows.h"
#include "safetensors.h"

#define HF_SINGLE "model.safetensors"
#define HF_INDEX "model.safetensors.index.json"

/* How the rows of one canonical tensor lie in the files' tensors; entry `at` of the reader's or the writer's list says which, at + 1 ...
 * those of further pieces. */
struct hf_rows { struct row_map map; int at; };

/* One whole tensor of a file in memory, for places whose rows do not lie in rows there. Safe from several threads. */
struct hf_whole { pthread_mutex_t lock; char *bytes; int64_t capacity, offset; int fd; };
void hf_whole_init(struct hf_whole *h);
void hf_whole_free(struct hf_whole *h);
/* Canonical rows [row, row + rows) of the tensor of `bytes` bytes at `offset` of the open file, which is read unless it is here. */
enum code hf_whole_gather(struct hf_whole *h, int fd, const char *path, int64_t offset, int64_t bytes, const struct row_map *map, int64_t row,
                          int64_t rows, void *dst, size_t element) MUST_USE;

struct hf_shard { const char *name; char *path; int fd; struct st_header header; };
struct hf_files { struct hf_shard *shard; int n; };
int hf_has(const char *dir, const char *name);
enum code hf_read_in(const char *dir, const char *name, size_t limit, char **path, char **bytes, size_t *n) MUST_USE;
/* Adds the files' names to ck. The caller closes, after an error too. */
enum code hf_files_open(struct checkpoint *ck, struct hf_files *files, const struct ckpt_options *options) MUST_USE;
void hf_files_close(struct hf_files *files);

/* Where a Hugging Face directory has a file tensor of this name: the file, and in *order a number that grows with its place. NULL: not
 * there, or another form. */
const char *hf_stored_in(const struct checkpoint *source, const char *name, int64_t *order);

int hf_claims(const char *path);
enum code hf_create(struct ckpt_writer **w, const struct ckpt_target *target);
enum code hf_write(struct ckpt_writer *w, int i, int64_t row, int64_t rows, const void *src);
enum code hf_finish(struct ckpt_writer *w);
void hf_drop(struct ckpt_writer *w);

#endif
