/* Step directories, shared by step_*.c and native_h5.c. Internal to checkpoints/; see checkpoint.h for the protocol.
 * MANIFEST.json: {"schema": "gqakit/step/1", "step", "files": [{"path", "bytes", "xxh128"}], "arch", "meta", "digest"}.
 * "digest", the last key, is the SHA-256 of the file's own text with 64 zeros in the digest's place: no byte of the
 * manifest can change unseen. */
#ifndef GQAKIT_CHECKPOINTS_STEP_H
#define GQAKIT_CHECKPOINTS_STEP_H

#include "base/base.h"

#define STEP_MANIFEST "MANIFEST.json"
#define STEP_FILE "rank-00000.h5"

/* Hashes dir's files and writes dir/MANIFEST.json. */
enum code manifest_write(const char *dir, int64_t step, const char *const *files, int n, const json_t *arch, const json_t *meta) MUST_USE;
/* Text to JSON: digest and fields checked, no file touched. Fuzz entry. */
enum code manifest_parse(const char *bytes, size_t n, const char *where, json_t **root) MUST_USE;
/* Reads and checks the manifest of dir and re-hashes its files; ERR_INPUT names the bad one. root may be NULL. */
enum code manifest_verify(const char *dir, json_t **root, int *files_checked) MUST_USE;

struct step_name { int64_t step; char name[32]; };
int step_name_parse(const char *name, int64_t *step);     /* 1 for "step-00001000" */
int step_temporary_pid(const char *name, long *pid);      /* 1 for "step-00001000.tmp-4242" (and .old-) */
/* Step directories of a run, newest first, whole or not. Free with free(). */
enum code step_names(const char *run_dir, struct step_name **list, int *n) MUST_USE;
int step_is_dir(const char *path);     /* a step directory: by its manifest or its name */
int step_is_run_dir(const char *path); /* holds at least one step directory; -1: cannot be listed (ERR_IO), as fail_text says */
/* The directory to read: path itself when it is a step directory (must verify), else the newest of a run that verifies, with a
 * warning for each newer one that does not. No step at all: *dir = NULL and OK. All bad: ERR_INPUT. */
enum code step_choose(const char *path, char **dir, json_t **manifest) MUST_USE;
/* Rows of an array that go through host memory at once: those of a chunk, so that none is written twice. */
int64_t step_block_rows(enum dtype dtype, int64_t columns);

#endif
