/* The few things the native form needs of HDF5, each checked, under one process-wide lock (libhdf5 is not thread-safe).
 * Internal to checkpoints/. Every function may be called from any thread.
 *
 * Layout of a native file (format "gqakit/checkpoint/1"), readable with h5py and h5dump:
 *   /                     attribute schema
 *   /arch.json            u8 [n]  struct arch as JSON, without the config text
 *   /config.json          u8 [n]  the source's config.json, byte for byte (absent when the source had none)
 *   /companions/NAME      u8 [n]  tokenizer.json ..., byte for byte
 *   /param/NAME           one dataset for each canonical tensor; in a training step also /m/NAME, /v/NAME ...
 * bf16 and f16 are stored as u16. Attributes of a tensor: dtype ("bf16"), source (its name in the source), source_dtype,
 * source_file, order (position in the source). Chunks of about 4 MiB of whole rows, fletcher32; optional shuffle + deflate 1.
 * A file of its own (not a training step's shard, which has MANIFEST.json) starts with a 512-byte user block: one line of
 * text with the size and the XXH3-128 of all bytes after it, so damage is refused before libhdf5 parses anything. */
#ifndef GQAKIT_CHECKPOINTS_H5_H
#define GQAKIT_CHECKPOINTS_H5_H

#include "base/base.h"

#define H5_SCHEMA "gqakit/checkpoint/1"
enum { H5_USER_BLOCK = 512, H5_NAME_MAX = 256 };

struct h5_file;

/* A new file (must not exist). sealed: with the user block, filled in by h5_finish. */
enum code h5_create(struct h5_file **f, const char *path, int sealed) MUST_USE;
/* Read only, unguarded: the caller has let h5_guard or a manifest vouch for the bytes. */
enum code h5_open(struct h5_file **f, const char *path) MUST_USE;
/* Written files: flush, close, seal, fsync. Frees f in every case; the first error since h5_create is the one reported. */
enum code h5_finish(struct h5_file *f) MUST_USE;
void h5_close(struct h5_file *f); /* without keeping what was written; NULL is fine */

int h5_has(struct h5_file *f, const char *name); /* "param/embed.weight"; any depth */
/* Names in a group, sorted; absent group: none. Free with io_names_free. */
enum code h5_list(struct h5_file *f, const char *group, char ***names, int *n) MUST_USE;

enum code h5_text_put(struct h5_file *f, const char *name, const char *key, const char *text) MUST_USE; /* an attribute; name "/" is the root */
enum code h5_text_get(struct h5_file *f, const char *name, const char *key, char *text, size_t size) MUST_USE; /* absent: "" */
enum code h5_bytes_put(struct h5_file *f, const char *name, const void *bytes, size_t n) MUST_USE;
enum code h5_bytes_get(struct h5_file *f, const char *name, size_t limit, char **bytes, size_t *n) MUST_USE; /* malloc'ed, NUL ended */

struct h5_array { enum dtype dtype; int nd; int64_t n[2]; };
enum code h5_array_create(struct h5_file *f, const char *name, const struct h5_array *a, int compress) MUST_USE;
enum code h5_array_info(struct h5_file *f, const char *name, struct h5_array *a) MUST_USE;
/* Rows [row, row+rows) of a; a must be what h5_array_info says. */
enum code h5_rows_write(struct h5_file *f, const char *name, const struct h5_array *a, int64_t row, int64_t rows, const void *src) MUST_USE;
enum code h5_rows_read(struct h5_file *f, const char *name, const struct h5_array *a, int64_t row, int64_t rows, void *dst) MUST_USE;

/* ---- h5_seal.c ----------------------------------------------------------------------------------------------------- */

/* 1: a sealed file; 0: a plain HDF5 file, nothing recorded; -1: neither (not HDF5, or a damaged seal); -2: unreadable, as fail_text says. */
int h5_sealed(const char *path);
/* Re-hashes a sealed file; ERR_INPUT says what differs. */
enum code h5_seal_verify(const char *path) MUST_USE;
/* The line of the user block for `bytes` bytes of this hash, NUL padded to H5_USER_BLOCK. */
void h5_seal_text(char block[512], int64_t bytes, const char *xxh128);
enum code h5_seal_hash(int fd, const char *path, int64_t *bytes, char hex[33]) MUST_USE; /* bytes after the user block */

/* ---- h5_guard.c ---------------------------------------------------------------------------------------------------- */

/* Walks the file in a forked child: structure (plain links, chunked or contiguous numeric datasets, known filters, sane sizes) and,
 * with `data`, every chunk. ERR_INPUT when the child refuses it, dies or takes too long: the parent's libhdf5 never sees it. */
enum code h5_walk_forked(const char *path, int data) MUST_USE;
/* What a bare .h5 goes through before h5_open: the seal, then the walk (with data when there is no seal). */
enum code h5_guard(const char *path) MUST_USE;

#endif
