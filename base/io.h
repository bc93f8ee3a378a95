/* Files: complete reads and writes, atomic replacement, directories, locks. Every function names the path when it fails. */
#ifndef GQAKIT_BASE_IO_H
#define GQAKIT_BASE_IO_H

#include <stddef.h>
#include <stdint.h>
#include "error.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Whole file into malloc'ed memory with a NUL after the last byte (not counted). A file over `limit` bytes is ERR_INPUT. */
enum code io_read_all(const char *path, size_t limit, char **bytes, size_t *n) MUST_USE;
/* For reading; ERR_INPUT for anything but a regular file (opening a pipe waits for its writer, reading a device need not end). */
enum code io_open_regular(const char *path, int *fd) MUST_USE;
/* Exactly n bytes at offset; short file is ERR_INPUT, EINTR and short reads are handled. */
enum code io_pread(int fd, const char *path, void *dst, size_t n, int64_t offset) MUST_USE;
enum code io_pwrite(int fd, const char *path, const void *src, size_t n, int64_t offset) MUST_USE;
/* Writes PATH.tmp-PID, fsyncs, renames over PATH, fsyncs the parent. */
enum code io_write_atomic(const char *path, const void *bytes, size_t n) MUST_USE;
enum code io_copy_file(const char *from, const char *to) MUST_USE; /* bytes, then fsync */
enum code io_fsync_path(const char *path) MUST_USE;                /* file or directory */
enum code io_rename(const char *from, const char *to) MUST_USE;    /* and fsyncs the parent of `to` */
enum code io_mkdirs(const char *path) MUST_USE;                    /* like mkdir -p */
enum code io_remove_tree(const char *path) MUST_USE;               /* absent is OK; does not follow links */
enum code io_free_bytes(const char *path, int64_t *bytes) MUST_USE; /* statvfs of the nearest existing parent */
int io_exists(const char *path);
int io_is_dir(const char *path);
int64_t io_file_bytes(const char *path); /* -1 if not a regular file */
/* "dir/name" in malloc'ed memory; NULL when there is none. */
char *io_join(const char *dir, const char *name);
/* How to run a program of ours: its path beside the running executable, so that a build directory and an installation each use
 * their own; else `name` alone, to be looked up in PATH. malloc'ed, NULL when out of memory. */
char *io_sibling_program(const char *name);
/* 1 if `name` stays inside the directory it is joined to: relative, no "..", no NUL, not empty. */
int io_name_is_safe(const char *name);
/* Sorted names in a directory without . and ..; free with io_names_free. */
enum code io_list(const char *dir, char ***names, int *n) MUST_USE;
void io_names_free(char **names, int n);

/* Read-only mapping of a whole file. Truncation of a mapped file by others is outside our promise. */
struct io_map { const unsigned char *p; size_t n; };
enum code io_map_open(const char *path, struct io_map *m) MUST_USE;
void io_map_close(struct io_map *m);

/* Exclusive lock on DIR/.lock (flock), holding pid and host. ERR_LOCKED names the holder. */
struct io_lock { int fd, shared, own /* io_lock_share: this process's own run has it */; };
enum code io_lock_take(const char *dir, struct io_lock *l) MUST_USE;
/* For a program that writes beside a run: ERR_LOCKED when another process (not this one, nor its parent) holds DIR/.lock; else no run can
 * take it until it is dropped. Without a DIR/.lock there is nothing to hold. */
enum code io_lock_share(const char *dir, struct io_lock *l) MUST_USE;
void io_lock_drop(struct io_lock *l);

#ifdef __cplusplus
}
#endif
#endif
