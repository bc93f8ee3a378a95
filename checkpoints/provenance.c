/* See provenance.h. Paths in the file are base names: one that leaves the directory is refused. */
#include "provenance.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint.h"
#include "step.h"

#define FILE_NAME "PROVENANCE.json"
#define SCHEMA "gqakit/provenance/1"
#define FILE_LIMIT (16u << 20)

static enum code output_entry(const char *dir, const char *name, json_t *outputs)
{
    char *path = io_join(dir, name);
    if (!path)
        return fail(ERR_MEMORY, "%s: out of memory while hashing", dir);
    int64_t bytes = io_file_bytes(path);
    char hex[33];
    enum code c = OK;
    if (bytes >= 0) {
        c = xxh128_file(path, hex);
        if (c == OK && json_array_append_new(outputs, json_pack("{s:s, s:I, s:s}", "path", name, "bytes", (json_int_t)bytes,
                                                                "xxh128", hex)) != 0)
            c = fail(ERR_MEMORY, "%s: out of memory while hashing", dir);
    }
    free(path);
    return c;
}

/* Of everything else in the file: its text without spaces, keys in order. */
static enum code digest_of(json_t *root, const char *where, char hex[65])
{
    json_object_del(root, "digest");
    char *text = json_text(root, JSON_COMPACT | JSON_SORT_KEYS);
    if (!text)
        return fail(ERR_MEMORY, "%s: out of memory while hashing", where);
    sha256_of(text, strlen(text), hex);
    free(text);
    return OK;
}

enum code provenance_write(const char *dir, const json_t *facts)
{
    json_t *root = json_pack("{s:s}", "schema", SCHEMA);
    json_t *outputs = json_array();
    char **names = NULL, *path = io_join(dir, FILE_NAME);
    int n = 0;
    enum code c = OK;
    if (!root || !outputs || !path || (facts && json_object_update(root, (json_t *)facts) != 0))
        c = fail(ERR_MEMORY, "%s: out of memory while writing " FILE_NAME, dir);
    if (c == OK)
        c = io_list(dir, &names, &n);
    for (int i = 0; c == OK && i < n; i++)
        if (strcmp(names[i], FILE_NAME) != 0)
            c = output_entry(dir, names[i], outputs);
    char hex[65] = "";
    if (c == OK && (json_object_set_new(root, "schema", json_string(SCHEMA)) != 0 || json_object_set(root, "outputs", outputs) != 0))
        c = fail(ERR_MEMORY, "%s: out of memory while writing " FILE_NAME, dir);
    if (c == OK)
        c = digest_of(root, path, hex);
    if (c == OK && json_object_set_new(root, "digest", json_string(hex)) != 0)
        c = fail(ERR_MEMORY, "%s: out of memory while writing " FILE_NAME, dir);
    if (c == OK)
        c = json_write_file(path, root);
    io_names_free(names, n);
    free(path);
    json_decref(outputs);
    json_decref(root);
    return c;
}

static enum code verify_entry(const char *dir, const char *where, const json_t *entry)
{
    const char *name, *xxh = NULL, *sha = NULL;
    int64_t bytes;
    TRY(json_need_str(entry, where, "path", &name));
    TRY(json_need_i64(entry, where, "bytes", 0, INT64_MAX, &bytes));
    TRY(json_want_str(entry, where, "xxh128", &xxh));
    TRY(json_want_str(entry, where, "sha256", &sha));
    if (!io_name_is_safe(name))
        return fail(ERR_INPUT, "%s: output path \"%s\" leaves the directory", where, name);
    if (!xxh && !sha)
        return fail(ERR_INPUT, "%s: output %s has neither xxh128 nor sha256", where, name);
    char *path = io_join(dir, name);
    if (!path)
        return fail(ERR_MEMORY, "%s: out of memory while verifying", dir);
    int64_t found = io_file_bytes(path);
    enum code c = OK;
    char hex[65] = "";
    if (found < 0)
        c = fail(ERR_INPUT, "%s: listed in " FILE_NAME " but missing", path);
    else if (found != bytes)
        c = fail(ERR_INPUT, "%s: %lld bytes recorded, %lld found: the file was changed or damaged", path, (long long)bytes, (long long)found);
    else if ((c = xxh ? xxh128_file(path, hex) : sha256_file(path, hex)) == OK && strcmp(hex, xxh ? xxh : sha) != 0)
        c = fail(ERR_INPUT, "%s: hash %s recorded, %s found: the file was changed or damaged", path, xxh ? xxh : sha, hex);
    free(path);
    return c;
}

/* "optimizer/step-00000200/MANIFEST.json" and nothing else; the directory is malloc'ed. */
static enum code moments_dir(const char *dir, const char *where, const char *manifest, char **step)
{
    char name[32], whole[80];
    int64_t number;
    size_t n = strlen(MOMENTS_DIR "/");
    const char *at = strncmp(manifest, MOMENTS_DIR "/", n) ? "" : manifest + n;
    snprintf(name, sizeof name, "%.*s", (int)strcspn(at, "/") < 31 ? (int)strcspn(at, "/") : 31, at);
    snprintf(whole, sizeof whole, MOMENTS_DIR "/%s/" STEP_MANIFEST, name);
    if (!step_name_parse(name, &number) || strcmp(whole, manifest))
        return fail(ERR_INPUT, "%s: \"optimizer\": \"%.80s\" is no manifest of moments", where, manifest);
    char *parent = io_join(dir, MOMENTS_DIR);
    *step = parent ? io_join(parent, name) : NULL;
    free(parent);
    return *step ? OK : fail(ERR_MEMORY, "%s: out of memory while verifying", dir);
}

/* The optimizer's moments beside a converted model: the files by their manifest, the manifest by its hash here. */
static enum code verify_moments(const char *dir, const char *where, const json_t *entry, int *files_checked)
{
    const char *manifest, *sha;
    char hex[65] = "", *step = NULL;
    if (!json_is_object(entry))
        return fail(ERR_INPUT, "%s: \"optimizer\" must be an object", where);
    TRY(json_need_str(entry, where, "manifest", &manifest));
    TRY(json_need_str(entry, where, "sha256", &sha));
    TRY(moments_dir(dir, where, manifest, &step));
    enum code c = manifest_verify(step, NULL, files_checked);
    char *path = io_join(step, STEP_MANIFEST);
    if (c == OK)
        c = path ? sha256_file(path, hex) : fail(ERR_MEMORY, "%s: out of memory while verifying", dir);
    if (c == OK && strcmp(hex, sha))
        c = fail(ERR_INPUT, "%s: hash %s recorded, %s found: these are other moments than those of this model", path, sha, hex);
    *files_checked += c == OK;
    free(path);
    free(step);
    return c;
}

/* Last, so that a file that differs is named first. */
static enum code digest_verify(json_t *root, const char *where)
{
    const char *text;
    char want[65] = "", found[65];
    TRY(json_need_str(root, where, "digest", &text));
    snprintf(want, sizeof want, "%s", text);
    TRY(digest_of(root, where, found));
    return strcmp(want, found) ? fail(ERR_INPUT, "%s: its digest does not match: the file was changed or damaged", where) : OK;
}

enum code provenance_verify(const char *dir, int *files_checked)
{
    char *where = io_join(dir, FILE_NAME);
    json_t *root = NULL;
    *files_checked = 0;
    if (!where)
        return fail(ERR_MEMORY, "%s: out of memory while verifying", dir);
    enum code c;
    if (!io_exists(where))
        c = fail(ERR_INPUT, "%s: no " FILE_NAME " to verify against", dir);
    else
        c = json_read_file(where, FILE_LIMIT, &root);
    const char *schema;
    if (c == OK && (c = json_need_str(root, where, "schema", &schema)) == OK && strcmp(schema, SCHEMA))
        c = fail(ERR_INPUT, "%s: schema \"%.40s\", expected \"" SCHEMA "\"", where, schema);
    const json_t *outputs = c == OK ? json_object_get(root, "outputs") : NULL;
    if (c == OK && !json_is_array(outputs))
        c = fail(ERR_INPUT, "%s: \"outputs\" must be an array", where);
    for (size_t i = 0; c == OK && i < json_array_size(outputs); i++) {
        c = verify_entry(dir, where, json_array_get(outputs, i));
        *files_checked += c == OK;
    }
    const json_t *moments = c == OK ? json_object_get(root, "optimizer") : NULL;
    if (moments)
        c = verify_moments(dir, where, moments, files_checked);
    if (c == OK)
        c = digest_verify(root, where);
    json_decref(root);
    free(where);
    return c;
}
