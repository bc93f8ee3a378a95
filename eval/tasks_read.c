/* Task files and directories of them: every line checked, one kind of item in a file, no name twice. */
#include "tasks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_LIMIT ((size_t)1 << 30)
#define LINE_LIMIT ((size_t)8 << 20)

static void outcome_free(struct task_outcome *o)
{
    free(o->sum);
    free(o->said);
}

static void task_free(struct task *t)
{
    for (int64_t i = 0; i < t->n; i++) {
        task_item_free(&t->item[i]);
        if (t->outcome) /* there once the whole file has been read */
            outcome_free(&t->outcome[i]);
    }
    free(t->item);
    free(t->outcome);
    free(t->name);
    free(t->path);
}

void tasks_free(struct tasks *t)
{
    for (int i = 0; i < t->n; i++)
        task_free(&t->v[i]);
    for (int i = 0; i < t->n_groups; i++)
        free(t->group[i]);
    free(t->v);
    free(t->group);
    *t = (struct tasks){ 0 };
}

/* Room for element n of an array of elements of `size` bytes that doubles. */
static void *grow(void *array, int64_t n, size_t size)
{
    return n & (n - 1) ? array : realloc(array, (size_t)(n ? 2 * n : 1) * size);
}

static enum code no_room(const char *path) { return fail(ERR_MEMORY, "%s: out of memory", path); }

static enum code add_item(struct task *t, struct task_item *item, const char *where, int64_t limit)
{
    if (t->lines == 0)
        t->kind = item->kind;
    else if (item->kind != t->kind)
        return fail(ERR_INPUT, "%s: expected a %s as in the lines before, found a %s: one file holds one kind", where, task_kind_name(t->kind), task_kind_name(item->kind));
    t->lines++;
    if (limit > 0 && t->n >= limit) {
        task_item_free(item);
        return OK;
    }
    struct task_item *more = grow(t->item, t->n, sizeof *more);
    if (!more)
        return no_room(where);
    t->item = more;
    t->item[t->n++] = *item;
    *item = (struct task_item){ 0 };
    return OK;
}

static enum code read_lines(struct task *t, char *bytes, size_t n, int64_t limit)
{
    int64_t number = 1;
    for (char *p = bytes, *end = bytes + n; p < end; number++) {
        char *stop = memchr(p, '\n', (size_t)(end - p)), *where = NULL;
        size_t length = (size_t)((stop ? stop : end) - p);
        struct task_item item = { 0 };
        if (asprintf(&where, "%s:%lld", t->path, (long long)number) < 0)
            return no_room(t->path);
        enum code c = length > LINE_LIMIT ? fail(ERR_INPUT, "%s: expected a line of at most %zu bytes, found %zu", where, LINE_LIMIT, length) : OK;
        if (c == OK && strspn(p, " \t\r") < length) { /* the newline or the NUL after the last byte ends the span */
            c = task_line_parse(&item, p, length, where);
            item.number = number;
            if (c == OK)
                c = add_item(t, &item, where, limit);
            task_item_free(&item);
        }
        free(where);
        TRY(c);
        p += length + 1;
    }
    return OK;
}

static enum code read_file(struct task *t, int64_t limit)
{
    char *bytes = NULL;
    size_t n = 0;
    TRY(io_read_all(t->path, FILE_LIMIT, &bytes, &n));
    enum code c = read_lines(t, bytes, n, limit);
    free(bytes);
    TRY(c);
    if (t->n == 0)
        return fail(ERR_INPUT, "%s: expected JSON lines, found none", t->path);
    t->outcome = calloc((size_t)t->n, sizeof *t->outcome);
    return t->outcome ? OK : no_room(t->path);
}

static char *base_name(const char *path)
{
    const char *end = path + strlen(path);
    while (end > path + 1 && end[-1] == '/')
        end--;
    const char *start = end;
    while (start > path && start[-1] != '/')
        start--;
    char *name = strndup(start, (size_t)(end - start));
    char *dot = name ? strrchr(name, '.') : NULL;
    if (dot && dot > name && !strcmp(dot, ".jsonl"))
        *dot = 0;
    return name;
}

/* Takes path (malloc'ed). */
static enum code add_file(struct tasks *t, char *path, int group, int64_t limit)
{
    struct task *more = path ? grow(t->v, t->n, sizeof *more) : NULL;
    if (!more) {
        free(path);
        return no_room("--tasks");
    }
    t->v = more;
    struct task *task = &t->v[t->n++];
    *task = (struct task){ .path = path, .name = base_name(path), .group = group };
    if (!task->name)
        return no_room(path);
    for (int i = 0; i < t->n - 1; i++)
        if (!strcmp(t->v[i].name, task->name))
            return fail(ERR_USAGE, "--tasks: %s and %s would both be the task \"%s\"; rename one", t->v[i].path, path, task->name);
    return read_file(task, limit);
}

static enum code add_directory(struct tasks *t, const char *path, int64_t limit)
{
    char **names = NULL;
    int n = 0, before = t->n;
    char **more = grow(t->group, t->n_groups, sizeof *more);
    if (!more)
        return no_room(path);
    t->group = more;
    if (!(t->group[t->n_groups] = base_name(path)))
        return no_room(path);
    t->n_groups++;
    TRY(io_list(path, &names, &n));
    enum code c = OK;
    for (int i = 0; c == OK && i < n; i++) {
        const char *dot = strrchr(names[i], '.');
        if (names[i][0] != '.' && dot && !strcmp(dot, ".jsonl"))
            c = add_file(t, io_join(path, names[i]), t->n_groups - 1, limit);
    }
    io_names_free(names, n);
    if (c == OK && t->n == before)
        c = fail(ERR_INPUT, "%s: expected files named *.jsonl in this directory, found none", path);
    return c;
}

enum code tasks_read(struct tasks *t, const char *list, int64_t limit)
{
    enum code c = OK;
    while (c == OK && *list) {
        size_t n = strcspn(list, ",");
        char *path = strndup(list, n);
        list += n + (list[n] == ',');
        if (!path)
            c = no_room("--tasks");
        else if (!*path)
            c = fail(ERR_USAGE, "--tasks: expected FILE.jsonl,FILE.jsonl..., found an empty name");
        else if (io_is_dir(path))
            c = add_directory(t, path, limit);
        else {
            c = add_file(t, path, -1, limit);
            path = NULL;
        }
        free(path);
    }
    return c == OK && t->n == 0 ? fail(ERR_USAGE, "--tasks: expected at least one file") : c;
}
