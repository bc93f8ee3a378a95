/* jansson with our limits. Numbers: jansson keeps integers as long long and refuses larger ones; such a literal (python
 * writes model_max_length as 1000000000000000019884624838656) is read as a real instead. */
#include "base/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/host.h"
#include "base/io.h"

/* jansson 2.14 loses bytes of a token, or asserts, when an allocation fails in its lexer. So none fails: the first that does is served from a
 * reserve, which is not given back, the failure is remembered, and what is written from then on is refused (json_starved). A reserve used up, or a
 * piece of more than all of it, ends the program. */
enum { RESERVE = 1 << 18, ALIGNMENT = 16 };
static int starved;
static size_t reserve_used;
static _Alignas(16) char reserve[RESERVE];

static void *watched(size_t n)
{
    void *p = malloc(n);
    if (p)
        return p;
    __atomic_store_n(&starved, 1, __ATOMIC_RELAXED);
    size_t bytes = n <= RESERVE ? (n + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT : RESERVE + 1;
    size_t at = __atomic_fetch_add(&reserve_used, bytes, __ATOMIC_RELAXED);
    if (at > RESERVE || bytes > RESERVE - at) {
        static const char sentence[] = "gqakit: error: out of memory for JSON\n";
        ssize_t ignored = write(STDERR_FILENO, sentence, sizeof sentence - 1);
        (void)ignored;
        _exit(ERR_MEMORY);
    }
    return reserve + at;
}

static void released(void *p)
{
    if ((char *)p < reserve || (char *)p >= reserve + RESERVE)
        free(p);
}

/* Before main: everything of jansson's comes from one allocator. */
__attribute__((constructor)) static void watch(void) { json_set_alloc_funcs(watched, released); }

int json_starved(void) { return __atomic_load_n(&starved, __ATOMIC_RELAXED); }

char *json_text(const json_t *root, size_t flags)
{
    char *text = json_dumps(root, flags);
    if (!json_starved())
        return text;
    released(text);
    return NULL;
}

/* A copy of the text with ".0" after every integer literal of 19 digits or more that is not inside a string. */
static char *widen_integers(const char *bytes, size_t n, size_t *out_n)
{
    char *out = malloc(n + n / 9 + 3);
    if (!out)
        return NULL;
    size_t o = 0;
    for (size_t i = 0; i < n;) {
        if (bytes[i] == '"') {
            do {
                if (bytes[i] == '\\' && i + 1 < n)
                    out[o++] = bytes[i++];
                out[o++] = bytes[i++];
            } while (i < n && bytes[i] != '"');
            if (i < n)
                out[o++] = bytes[i++];
            continue;
        }
        size_t run = 0;
        while (i + run < n && bytes[i + run] >= '0' && bytes[i + run] <= '9')
            run++;
        if (run == 0) {
            size_t word = 1; /* past a fraction or exponent in one piece, so that its digits are no integer */
            if (strchr(".eE", bytes[i]) && bytes[i])
                while (i + word < n && bytes[i + word] && strchr("0123456789+-eE.", bytes[i + word]))
                    word++;
            memcpy(out + o, bytes + i, word);
            o += word;
            i += word;
            continue;
        }
        memcpy(out + o, bytes + i, run);
        o += run;
        i += run;
        if (run >= 19 && !(i < n && bytes[i] && strchr(".eE", bytes[i]))) {
            out[o++] = '.';
            out[o++] = '0';
        }
    }
    *out_n = o;
    return out;
}

enum code json_parse_object(const char *bytes, size_t n, const char *where, json_t **root)
{
    json_error_t e;
    *root = NULL;
    json_t *r = json_loadb(bytes, n, JSON_REJECT_DUPLICATES, &e);
    if (!r && json_error_code(&e) == json_error_numeric_overflow) {
        size_t m = 0;
        char *wide = widen_integers(bytes, n, &m);
        if (wide)
            r = json_loadb(wide, m, JSON_REJECT_DUPLICATES, &e);
        free(wide);
    }
    if (!r && (json_starved() || json_error_code(&e) == json_error_out_of_memory))
        return fail(ERR_MEMORY, "%s: no memory to parse it", where);
    if (!r)
        return fail(ERR_INPUT, "%s: not valid JSON at line %d column %d: %s", where, e.line, e.column, e.text);
    if (!json_is_object(r)) {
        json_decref(r);
        return fail(ERR_INPUT, "%s: expected a JSON object { ... } at the top", where);
    }
    *root = r;
    return OK;
}

enum code json_read_file(const char *path, size_t limit, json_t **root)
{
    char *bytes;
    size_t n;
    *root = NULL;
    TRY(io_read_all(path, limit, &bytes, &n));
    enum code c = json_parse_object(bytes, n, path, root);
    free(bytes);
    return c;
}

enum code json_write_file(const char *path, const json_t *root)
{
    char *text = json_text(root, JSON_INDENT(2));
    if (!text)
        return fail(json_starved() ? ERR_MEMORY : ERR_INTERNAL, "%s: the result cannot be written as JSON (a non-finite number, or out of memory)", path);
    size_t n = strlen(text);
    text[n] = '\n'; /* in place of the NUL: the length is passed on */
    enum code c = io_write_atomic(path, text, n + 1);
    free(text);
    return c;
}

void json_print(const json_t *root, int indent)
{
    if (json_dumpf(root, stdout, indent > 0 ? JSON_INDENT((size_t)indent) : 0) != 0)
        printf("null");
    putchar('\n');
}

static const char *type_name(const json_t *v)
{
    static const char *const names[] = {"an object", "a list", "a string", "an integer", "a number", "true", "false", "null"};
    return v ? names[json_typeof(v)] : "nothing";
}

static enum code wrong(const char *where, const char *key, const char *expected, const json_t *v)
{
    if (json_is_string(v))
        return fail(ERR_INPUT, "%s: \"%s\": expected %s, found the string \"%.60s\"", where, key, expected, json_string_value(v));
    return fail(ERR_INPUT, "%s: \"%s\": expected %s, found %s", where, key, expected, type_name(v));
}

static const json_t *present(const json_t *object, const char *key)
{
    const json_t *v = json_object_get(object, key);
    return json_is_null(v) ? NULL : v;
}

enum code json_want_i64(const json_t *object, const char *where, const char *key, int64_t lo, int64_t hi, int64_t *out)
{
    const json_t *v = present(object, key);
    if (!v)
        return OK;
    if (!json_is_integer(v))
        return wrong(where, key, "an integer", v);
    int64_t i = json_integer_value(v);
    if (i < lo || i > hi)
        return fail(ERR_INPUT, "%s: \"%s\": expected an integer from %lld to %lld, found %lld", where, key, (long long)lo,
                    (long long)hi, (long long)i);
    *out = i;
    return OK;
}

enum code json_want_f64(const json_t *object, const char *where, const char *key, double *out)
{
    const json_t *v = present(object, key);
    if (v && !json_is_number(v))
        return wrong(where, key, "a number", v);
    if (v)
        *out = json_number_value(v);
    return OK;
}

enum code json_want_bool(const json_t *object, const char *where, const char *key, int *out)
{
    const json_t *v = present(object, key);
    if (v && !json_is_boolean(v))
        return wrong(where, key, "true or false", v);
    if (v)
        *out = json_is_true(v);
    return OK;
}

enum code json_want_str(const json_t *object, const char *where, const char *key, const char **out)
{
    const json_t *v = present(object, key);
    if (v && !json_is_string(v))
        return wrong(where, key, "a string", v);
    if (v)
        *out = json_string_value(v);
    return OK;
}

static enum code need(const json_t *object, const char *where, const char *key, const char *expected)
{
    const json_t *v = json_object_get(object, key);
    return v && !json_is_null(v) ? OK : wrong(where, key, expected, v);
}

enum code json_need_i64(const json_t *object, const char *where, const char *key, int64_t lo, int64_t hi, int64_t *out)
{
    TRY(need(object, where, key, "an integer"));
    return json_want_i64(object, where, key, lo, hi, out);
}

enum code json_need_f64(const json_t *object, const char *where, const char *key, double *out)
{
    TRY(need(object, where, key, "a number"));
    return json_want_f64(object, where, key, out);
}

enum code json_need_str(const json_t *object, const char *where, const char *key, const char **out)
{
    TRY(need(object, where, key, "a string"));
    return json_want_str(object, where, key, out);
}

static char *command;

void json_result_command(int argc, char **argv)
{
    size_t n = 1;
    for (int i = 0; i < argc; i++)
        n += strlen(argv[i]) + 1;
    char *joined = malloc(n), *p = joined;
    free(command);
    command = joined;
    if (!joined) /* results say no command then */
        return;
    for (int i = 0; i < argc; i++)
        p += sprintf(p, "%s%s", i ? " " : "", argv[i]);
    *p = 0;
}

json_t *json_result(const char *name, const char *device)
{
    json_t *text = json_string(command ? command : "");
    if (!text) /* an argument that is not UTF-8 */
        text = json_string("(not valid UTF-8)");
    return json_pack("{s:s++, s:s, s:o, s:{s:s, s:i, s:s, s:s}}", "schema", "gqakit/", name, "/1", "version", GQAKIT_VERSION,
                     "command", text, "host", "cpu", host_cpu_name(), "threads", host_threads(), "isa",
                     host_isa_name(host_isa()), "device", device);
}
