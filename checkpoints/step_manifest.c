/* MANIFEST.json of a step directory; see step.h. */
#include "step.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SCHEMA "gqakit/step/1"
#define DIGEST_TAIL "\"\n}\n" /* what follows the 64 digits */
#define DIGEST_HEAD "\"digest\": \""
enum { LIMIT = 64 << 20, FILES_MAX = 1 << 16, HEX = 64, TAIL = sizeof DIGEST_TAIL - 1, HEAD = sizeof DIGEST_HEAD - 1 };

/* Where the 64 digits stand in the text; NULL when it does not end as we write it. */
static char *digest_place(char *text, size_t n)
{
    if (n < HEAD + HEX + TAIL || memcmp(text + n - TAIL, DIGEST_TAIL, TAIL) || memcmp(text + n - TAIL - HEX - HEAD, DIGEST_HEAD, HEAD))
        return NULL;
    return text + n - TAIL - HEX;
}

static enum code file_entry(const char *dir, const char *name, json_t *files)
{
    char hex[33], *path = io_join(dir, name);
    if (!path)
        return fail(ERR_MEMORY, "%s: out of memory for its manifest", dir);
    int64_t bytes = io_file_bytes(path);
    enum code c = xxh128_file(path, hex);
    free(path);
    if (c == OK && json_array_append_new(files, json_pack("{s:s, s:I, s:s}", "path", name, "bytes", (json_int_t)bytes, "xxh128", hex)))
        c = fail(ERR_MEMORY, "%s: out of memory for its manifest", dir);
    return c;
}

enum code manifest_write(const char *dir, int64_t step, const char *const *names, int n, const json_t *arch, const json_t *meta)
{
    static const char zeros[] = "0000000000000000000000000000000000000000000000000000000000000000";
    json_t *root = json_pack("{s:s, s:I}", "schema", SCHEMA, "step", (json_int_t)step), *files = json_array();
    char *text = NULL, *path = io_join(dir, STEP_MANIFEST), hex[HEX + 1];
    enum code c = root && files && path ? OK : fail(ERR_MEMORY, "%s: out of memory for its manifest", dir);
    for (int i = 0; c == OK && i < n; i++)
        c = file_entry(dir, names[i], files);
    if (c == OK && (json_object_set(root, "files", files) || json_object_set(root, "arch", (json_t *)(uintptr_t)arch) ||
                    (meta && json_object_set(root, "meta", (json_t *)(uintptr_t)meta)) || json_object_set_new(root, "digest", json_string(zeros)) ||
                    !(text = json_text(root, JSON_INDENT(2)))))
        c = fail(ERR_MEMORY, "%s: out of memory, or not valid UTF-8", path);
    if (c == OK) {
        size_t size = strlen(text);
        char *whole = realloc(text, size + 2), *digits = NULL;
        if (whole) {
            text = whole;
            memcpy(text + size++, "\n", 2);
            digits = digest_place(text, size);
        }
        if (digits) {
            sha256_of(text, size, hex);
            memcpy(digits, hex, HEX);
            c = io_write_atomic(path, text, size);
        } else
            c = fail(whole ? ERR_INTERNAL : ERR_MEMORY, "%s: cannot be made", path);
    }
    free(text);
    free(path);
    json_decref(files);
    json_decref(root);
    return c;
}

static enum code digest_check(const char *bytes, size_t n, const char *where)
{
    char hex[HEX + 1], *copy = malloc(n + 1);
    if (!copy)
        return fail(ERR_MEMORY, "%s: out of memory", where);
    memcpy(copy, bytes, n);
    char *digits = digest_place(copy, n);
    if (digits) {
        memset(digits, '0', HEX);
        sha256_of(copy, n, hex);
    }
    free(copy);
    if (!digits)
        return fail(ERR_INPUT, "%s: does not end with its digest: cut, changed or no manifest of gqakit", where);
    if (memcmp(hex, bytes + n - TAIL - HEX, HEX))
        return fail(ERR_INPUT, "%s: its digest does not match: the file was changed or damaged", where);
    return OK;
}

static enum code fields_check(const json_t *root, const char *where)
{
    const char *text;
    int64_t v;
    const json_t *files = json_object_get(root, "files"), *meta = json_object_get(root, "meta");
    TRY(json_need_str(root, where, "schema", &text));
    if (strcmp(text, SCHEMA))
        return fail(ERR_INPUT, "%s: schema \"%.40s\", expected \"" SCHEMA "\"", where, text);
    TRY(json_need_i64(root, where, "step", 0, INT64_MAX, &v));
    if (!json_is_array(files) || json_array_size(files) < 1 || json_array_size(files) > FILES_MAX)
        return fail(ERR_INPUT, "%s: \"files\" must be a list of 1 to %d files", where, FILES_MAX);
    if (meta && !json_is_object(meta))
        return fail(ERR_INPUT, "%s: \"meta\" must be an object", where);
    for (size_t i = 0; i < json_array_size(files); i++) {
        const json_t *entry = json_array_get(files, i);
        if (!json_is_object(entry))
            return fail(ERR_INPUT, "%s: \"files\" must hold objects", where);
        TRY(json_need_str(entry, where, "path", &text));
        if (!io_name_is_safe(text))
            return fail(ERR_INPUT, "%s: file \"%.80s\" leaves the directory", where, text);
        TRY(json_need_i64(entry, where, "bytes", 0, INT64_MAX, &v));
        TRY(json_need_str(entry, where, "xxh128", &text));
    }
    return OK;
}

enum code manifest_parse(const char *bytes, size_t n, const char *where, json_t **root)
{
    *root = NULL;
    TRY(digest_check(bytes, n, where));
    TRY(json_parse_object(bytes, n, where, root));
    enum code c = fields_check(*root, where);
    if (c != OK) {
        json_decref(*root);
        *root = NULL;
    }
    return c;
}

static enum code file_check(const char *dir, const json_t *entry)
{
    const char *xxh = json_string_value(json_object_get(entry, "xxh128"));
    int64_t want = json_integer_value(json_object_get(entry, "bytes"));
    char hex[33] = "", *path = io_join(dir, json_string_value(json_object_get(entry, "path")));
    if (!path)
        return fail(ERR_MEMORY, "%s: out of memory while verifying", dir);
    int64_t found = io_file_bytes(path);
    enum code c = OK;
    if (found < 0)
        c = fail(ERR_INPUT, "%s: listed in " STEP_MANIFEST " but missing", path);
    else if (found != want)
        c = fail(ERR_INPUT, "%s: %lld bytes recorded, %lld found: the file was cut, changed or damaged", path, (long long)want, (long long)found);
    else if ((c = xxh128_file(path, hex)) == OK && strcmp(hex, xxh))
        c = fail(ERR_INPUT, "%s: hash %s recorded, %s found: the file was changed or damaged", path, xxh, hex);
    free(path);
    return c;
}

enum code manifest_verify(const char *dir, json_t **out, int *files_checked)
{
    char *bytes = NULL, *where = io_join(dir, STEP_MANIFEST);
    size_t size = 0;
    json_t *root = NULL;
    int checked = 0;
    int64_t named;
    if (!where)
        return fail(ERR_MEMORY, "%s: out of memory while verifying", dir);
    enum code c = io_exists(where) ? io_read_all(where, LIMIT, &bytes, &size)
                                   : fail(ERR_INPUT, "%s: missing: not a whole step directory", where);
    if (c == OK)
        c = manifest_parse(bytes, size, where, &root);
    const char *base = strrchr(dir, '/') ? strrchr(dir, '/') + 1 : dir;
    if (c == OK && step_name_parse(base, &named) && named != json_integer_value(json_object_get(root, "step")))
        c = fail(ERR_INPUT, "%s: is of step %lld, but the directory says step %lld", where,
                 (long long)json_integer_value(json_object_get(root, "step")), (long long)named);
    const json_t *files = json_object_get(root, "files");
    for (size_t i = 0; c == OK && i < json_array_size(files); i++) {
        c = file_check(dir, json_array_get(files, i));
        checked += c == OK;
    }
    if (files_checked)
        *files_checked += checked;
    if (c == OK && out)
        *out = json_incref(root);
    json_decref(root);
    free(bytes);
    free(where);
    return c;
}
