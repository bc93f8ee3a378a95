/* JSON by jansson, with our limits and our sentences. Reading: duplicates, NUL escapes, trailing bytes and depth bombs are
 * refused. The getters take `where` ("config.json", "a.safetensors: tensor x") for the sentence they leave. */
#ifndef GQAKIT_BASE_JSON_H
#define GQAKIT_BASE_JSON_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>
#include "error.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Parses exactly n bytes; the root must be an object. Caller json_decref's *root. */
enum code json_parse_object(const char *bytes, size_t n, const char *where, json_t **root) MUST_USE;
enum code json_read_file(const char *path, size_t limit, json_t **root) MUST_USE;
/* jansson drops what it has no memory for: an object may lack a key and nobody was told. So every allocation of its is watched and served; once one has failed,
 * json_starved() is 1 for good and json_text (json_dumps, which it replaces wherever text is kept) gives NULL. */
int json_starved(void);
char *json_text(const json_t *root, size_t flags); /* free by the caller */
/* Atomic, indented by 2, keys in insertion order, newline at the end. */
enum code json_write_file(const char *path, const json_t *root) MUST_USE;
/* One line or indented to stdout, newline at the end. */
void json_print(const json_t *root, int indent);

/* Required fields: ERR_INPUT says what was expected and found. Integers are refused outside [lo, hi]. */
enum code json_need_i64(const json_t *object, const char *where, const char *key, int64_t lo, int64_t hi, int64_t *out) MUST_USE;
enum code json_need_f64(const json_t *object, const char *where, const char *key, double *out) MUST_USE;
enum code json_need_str(const json_t *object, const char *where, const char *key, const char **out) MUST_USE;
/* Optional fields: absent or null leaves *out as it is; a wrong type is still ERR_INPUT. */
enum code json_want_i64(const json_t *object, const char *where, const char *key, int64_t lo, int64_t hi, int64_t *out) MUST_USE;
enum code json_want_f64(const json_t *object, const char *where, const char *key, double *out) MUST_USE;
enum code json_want_bool(const json_t *object, const char *where, const char *key, int *out) MUST_USE;
enum code json_want_str(const json_t *object, const char *where, const char *key, const char **out) MUST_USE;

/* A result document: {"schema": "gqakit/NAME/1", "version", "command": argv joined, "host": {cpu, threads, isa, device}}. */
void json_result_command(int argc, char **argv); /* main calls it once; what "command" will hold */
json_t *json_result(const char *name, const char *device);

#ifdef __cplusplus
}
#endif
#endif
