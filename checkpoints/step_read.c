/* Finding and reading step directories: the newest whose manifest verifies, with a warning for each newer one that does not. */
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint.h"
#include "h5.h"
#include "native.h"
#include "step.h"

/* ---- names -------------------------------------------------------------------------------------------------------- */

/* Digits after "step-", at least 8; returns what follows them or NULL. */
static const char *after_step(const char *name, int64_t *step)
{
    if (strncmp(name, "step-", 5))
        return NULL;
    size_t digits = strspn(name + 5, "0123456789");
    if (digits < 8 || digits > 18)
        return NULL;
    *step = strtoll(name + 5, NULL, 10);
    return name + 5 + digits;
}

int step_name_parse(const char *name, int64_t *step)
{
    const char *rest = after_step(name, step);
    return rest && !*rest;
}

int step_temporary_pid(const char *name, long *pid)
{
    int64_t step;
    const char *rest = after_step(name, &step);
    char *end;
    if (!rest || (strncmp(rest, ".tmp-", 5) && strncmp(rest, ".old-", 5)) || rest[5] < '0' || rest[5] > '9')
        return 0;
    *pid = strtol(rest + 5, &end, 10);
    return !*end;
}

static int newest_first(const void *a, const void *b)
{
    int64_t x = ((const struct step_name *)a)->step, y = ((const struct step_name *)b)->step;
    return (x < y) - (x > y);
}

enum code step_names(const char *run_dir, struct step_name **list, int *n)
{
    char **names;
    int count, used = 0;
    TRY(io_list(run_dir, &names, &count));
    *list = calloc((size_t)count + 1, sizeof **list);
    for (int i = 0; *list && i < count; i++) {
        struct step_name *s = &(*list)[used];
        if (step_name_parse(names[i], &s->step)) {
            snprintf(s->name, sizeof s->name, "%s", names[i]);
            used++;
        }
    }
    io_names_free(names, count);
    if (!*list)
        return fail(ERR_MEMORY, "%s: out of memory", run_dir);
    qsort(*list, (size_t)used, sizeof **list, newest_first);
    *n = used;
    return OK;
}

int step_is_dir(const char *path)
{
    if (!io_is_dir(path))
        return 0;
    char text[PATH_MAX];
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/')
        n--;
    if (n + sizeof STEP_MANIFEST + 1 > sizeof text)
        return 0;
    snprintf(text, sizeof text, "%.*s", (int)n, path);
    const char *slash = strrchr(text, '/');
    int64_t step;
    if (step_name_parse(slash ? slash + 1 : text, &step))
        return 1;
    snprintf(text, sizeof text, "%.*s/" STEP_MANIFEST, (int)n, path);
    return io_exists(text);
}

/* Without an allocation of ours: a run shall not pass for something else because memory is out. */
int step_is_run_dir(const char *path)
{
    if (!io_is_dir(path))
        return 0;
    DIR *d = opendir(path);
    const struct dirent *e = NULL;
    int64_t step;
    int found = 0;
    errno = 0;
    while (d && !found && (e = readdir(d)))
        found = step_name_parse(e->d_name, &step);
    if (!d || (!e && errno))
        found = fail_errno(path, "list") == OK ? 0 : -1;
    if (d)
        closedir(d);
    return found;
}

/* ---- choosing ----------------------------------------------------------------------------------------------------- */

static enum code choose_newest(const char *run_dir, char **dir, json_t **manifest)
{
    struct step_name *list;
    char *first = NULL;
    int n;
    TRY(step_names(run_dir, &list, &n));
    enum code c = OK, newest = ERR_INPUT;
    for (int i = 0; i < n && !*dir; i++) {
        char *path = io_join(run_dir, list[i].name);
        c = path ? manifest_verify(path, manifest, NULL) : fail(ERR_MEMORY, "%s: out of memory", run_dir);
        if (c == OK) {
            *dir = path;
            break;
        }
        free(path);
        if (c == ERR_MEMORY)
            break;
        log_warn("%s; trying the step before", fail_text());
        newest = i == 0 ? c : newest;
        if (!first)
            first = strdup(fail_text());
    }
    free(list);
    if (c != OK && c != ERR_MEMORY)
        c = fail(newest, "%s: holds %d step%s, but none verifies; the newest: %s", run_dir, n, n == 1 ? "" : "s", first ? first : "");
    free(first);
    return c;
}

enum code step_choose(const char *path, char **dir, json_t **manifest)
{
    *dir = NULL;
    *manifest = NULL;
    if (!io_is_dir(path))
        return fail(ERR_INPUT, "%s: expected a run directory or a step directory", path);
    if (!step_is_dir(path))
        return choose_newest(path, dir, manifest);
    char *copy = strdup(path);
    if (!copy)
        return fail(ERR_MEMORY, "%s: out of memory", path);
    for (size_t n = strlen(copy); n > 1 && copy[n - 1] == '/';)
        copy[--n] = 0;
    enum code c = manifest_verify(copy, manifest, NULL);
    if (c == OK)
        *dir = copy;
    else
        free(copy);
    return c;
}

/* ---- reading ------------------------------------------------------------------------------------------------------ */

struct step_reader { struct h5_file *f; json_t *manifest; struct arch arch; char *dir; };

enum code step_open(struct step_reader **out, const char *path, int *found)
{
    struct step_reader *r = calloc(1, sizeof *r);
    char *file = NULL;
    *out = NULL;
    *found = 0;
    if (!r)
        return fail(ERR_MEMORY, "%s: out of memory", path);
    enum code c = step_choose(path, &r->dir, &r->manifest);
    if (c != OK || !r->dir)
        goto done;
    if (!(file = io_join(r->dir, STEP_FILE)))
        TRY_GOTO(c, fail(ERR_MEMORY, "%s: out of memory", path), done);
    TRY_GOTO(c, h5_walk_forked(file, 0), done);
    TRY_GOTO(c, h5_open(&r->f, file), done);
    TRY_GOTO(c, native_arch_read(r->f, file, &r->arch), done);
    *found = 1;
    *out = r;
done:
    free(file);
    if (!*out)
        step_close(r);
    return c;
}

int64_t step_number(const struct step_reader *r) { return json_integer_value(json_object_get(r->manifest, "step")); }
const json_t *step_meta(const struct step_reader *r) { return json_object_get(r->manifest, "meta"); }
const struct arch *step_arch(const struct step_reader *r) { return &r->arch; }

int64_t step_block_rows(enum dtype dtype, int64_t columns)
{
    int64_t rows = (4 << 20) / (columns * (int64_t)dtype_bytes(dtype));
    return rows > 0 ? rows : 1;
}

static enum code read_through(struct h5_file *f, const struct step_array *array, const struct h5_array *a)
{
    int64_t rows = step_block_rows(a->dtype, a->n[1]), row_bytes = a->n[1] * (int64_t)dtype_bytes(a->dtype);
    char *block = malloc((size_t)(rows * row_bytes) + 1);
    enum code c = block ? OK : fail(ERR_MEMORY, "out of memory for a block of %s", array->name);
    for (int64_t row = 0; c == OK && row < a->n[0]; row += rows) {
        int64_t now = a->n[0] - row < rows ? a->n[0] - row : rows;
        c = h5_rows_read(f, array->name, a, row, now, block);
        if (c == OK)
            c = array->through->copy(array->through->context, (char *)array->p + row * row_bytes, block, (size_t)(now * row_bytes));
    }
    free(block);
    return c;
}

enum code step_read(struct step_reader *r, const struct step_array *array)
{
    struct h5_array a;
    if (!h5_has(r->f, array->name))
        return fail(ERR_INPUT, "%s/" STEP_FILE ": array %s is missing", r->dir, array->name);
    TRY(h5_array_info(r->f, array->name, &a));
    int64_t columns = array->nd == 2 ? array->n[1] : 1;
    if (a.nd != array->nd || a.n[0] != array->n[0] || a.n[1] != columns || a.dtype != array->dtype)
        return fail(ERR_INPUT, "%s/" STEP_FILE ": array %s: expected %s [%lld, %lld], found %s [%lld, %lld]", r->dir, array->name,
                    dtype_name(array->dtype), (long long)array->n[0], (long long)columns, dtype_name(a.dtype), (long long)a.n[0], (long long)a.n[1]);
    return array->through ? read_through(r->f, array, &a) : h5_rows_read(r->f, array->name, &a, 0, a.n[0], array->p);
}

enum code step_read_rows(struct step_reader *r, const char *name, const int64_t n[2], int64_t row, int64_t rows, float *dst)
{
    struct h5_array a;
    if (!h5_has(r->f, name))
        return fail(ERR_INPUT, "%s/" STEP_FILE ": array %s is missing", r->dir, name);
    TRY(h5_array_info(r->f, name, &a));
    if (a.n[0] != n[0] || a.n[1] != n[1] || a.dtype != DT_F32)
        return fail(ERR_INPUT, "%s/" STEP_FILE ": array %s: expected f32 [%lld, %lld], found %s [%lld, %lld]", r->dir, name, (long long)n[0],
                    (long long)n[1], dtype_name(a.dtype), (long long)a.n[0], (long long)a.n[1]);
    return h5_rows_read(r->f, name, &a, row, rows, dst);
}

/* AdamW's t: updates of the run, those skipped left out, and those that its own moments had behind them. */
static enum code updates_of(const struct step_reader *r, int64_t *updates)
{
    const json_t *state = json_object_get(step_meta(r), "state");
    int64_t step = 0, skips = 0, before = 0;
    TRY(json_want_i64(state, r->dir, "step", 0, INT64_MAX / 4, &step));
    TRY(json_want_i64(state, r->dir, "skips", 0, step, &skips));
    TRY(json_want_i64(state, r->dir, "moments_updates", 0, INT64_MAX / 4, &before));
    *updates = step - skips + before;
    return OK;
}

enum code moments_open(struct step_reader **r, const char *path, int64_t *updates, int *found)
{
    *r = NULL;
    *found = 0;
    *updates = 0;
    if (!io_is_dir(path))
        return OK;
    char *beside = io_join(path, MOMENTS_DIR);
    if (!beside)
        return fail(ERR_MEMORY, "%s: out of memory", path);
    int own = step_is_dir(path) ? 1 : step_is_run_dir(path), there = own ? 0 : step_is_run_dir(beside);
    enum code c = own < 0 || there < 0 ? ERR_IO : own ? step_open(r, path, found) : there ? step_open(r, beside, found) : OK;
    free(beside);
    if (c == OK && *found)
        c = updates_of(*r, updates);
    if (c == OK && *found && *updates == 0) /* never moved: there is nothing to take */
        *found = 0;
    if (c != OK || !*found) {
        step_close(*r);
        *r = NULL;
    }
    return c;
}

void step_close(struct step_reader *r)
{
    if (!r)
        return;
    h5_close(r->f);
    json_decref(r->manifest);
    arch_free(&r->arch);
    free(r->dir);
    free(r);
}
