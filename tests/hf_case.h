/* What the tests of Hugging Face directories share: a small model with odd shapes, copies, comparisons byte for byte. */
#ifndef GQAKIT_TESTS_HF_CASE_H
#define GQAKIT_TESTS_HF_CASE_H

#include "checkpoints/checkpoint.h"

void hf_arch(struct arch *a, int tied); /* 3 layers, C 24, H 6, G 3, D 10 (not C / H), F 20, V 31 */
void hf_fill(struct ckpt_writer *w);    /* every tensor, from its name */
/* A random model at a path below the temporary directory; the caller frees the path. */
char *hf_make(const char *name, int tied, enum dtype dtype, int64_t shard_bytes);
void hf_copy_rows(struct checkpoint *ck, struct ckpt_writer *w, int64_t step); /* every tensor, `step` rows at a time */
enum code hf_copy(const char *from, const char *to, enum dtype dtype, int64_t shard_bytes, int force);
char *hf_slurp(const char *dir, const char *name, size_t *n);
void hf_same_file(const char *a, const char *b, const char *name);
void hf_same_dir(const char *a, const char *b);
void hf_put(const char *dir, const char *name, const void *bytes, size_t n);
int hf_no_temporaries(void);
enum code hf_opened(const char *path);

#endif
