/* What every form shares: making the common part of a checkpoint or a writer, and the strings both own. */
#include "form.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const char *form_string(struct strings *pool, const char *s)
{
    char **v = realloc(pool->v, (size_t)(pool->n + 1) * sizeof *v);
    if (!v)
        return NULL;
    pool->v = v;
    v[pool->n] = strdup(s);
    return v[pool->n] ? v[pool->n++] : NULL;
}

static char *path_copy(const char *path)
{
    char *copy = strdup(path);
    size_t n = copy ? strlen(copy) : 0;
    while (n > 1 && copy[n - 1] == '/')
        copy[--n] = 0;
    return copy;
}

enum code form_checkpoint_new(struct checkpoint **out, size_t bytes, const struct ckpt_form *form, const char *path)
{
    CHECK(bytes >= sizeof(struct checkpoint));
    struct checkpoint *ck = calloc(1, bytes);
    *out = ck;
    if (ck) {
        ck->form = form;
        ck->path = path_copy(path);
    }
    if (ck && ck->path)
        return OK;
    free(ck);
    *out = NULL;
    return fail(ERR_MEMORY, "%s: out of memory", path);
}

static void tensor_from_spec(struct ckpt_tensor *t, const struct tensor_spec *s)
{
    memset(t, 0, sizeof *t);
    memcpy(t->name, s->name, sizeof t->name);
    t->source = t->file = "";
    t->nd = s->nd;
    t->n[0] = s->n[0];
    t->n[1] = s->n[1];
    t->pool = s->pool;
    t->layer = s->layer;
}

static enum code tensors_from_arch(const struct arch *a, struct ckpt_tensor **tensors, int *n, const char *where)
{
    struct tensor_spec *specs;
    TRY(arch_tensors(a, &specs, n));
    *tensors = malloc((size_t)*n * sizeof **tensors);
    for (int i = 0; *tensors && i < *n; i++)
        tensor_from_spec(&(*tensors)[i], &specs[i]);
    free(specs);
    return *tensors ? OK : fail(ERR_MEMORY, "%s: out of memory for the tensor table", where);
}

enum code form_tensors(struct checkpoint *ck) { return tensors_from_arch(&ck->arch, &ck->tensors, &ck->n_tensors, ck->path); }

enum code form_tensor_set(struct checkpoint *ck, int i, enum dtype dtype, const char *source, const char *file)
{
    struct ckpt_tensor *t = &ck->tensors[i];
    t->dtype = dtype;
    t->bytes = t->n[0] * t->n[1] * (int64_t)dtype_bytes(dtype);
    t->source = form_string(&ck->strings, source);
    t->file = t->source ? form_string(&ck->strings, file) : NULL;
    if (t->file)
        return OK;
    t->source = t->file = "";
    return fail(ERR_MEMORY, "%s: out of memory", ck->path);
}

int form_tensor_index(const struct ckpt_tensor *tensors, int n, const char *canonical)
{
    for (int i = 0; i < n; i++)
        if (!strcmp(tensors[i].name, canonical))
            return i;
    return -1;
}

static int compare_names(const void *a, const void *b, void *tensors)
{
    const struct ckpt_tensor *t = tensors;
    return strcmp(t[*(const int *)a].name, t[*(const int *)b].name);
}

enum code form_index(struct checkpoint *ck)
{
    ck->by_name = malloc((size_t)(ck->n_tensors ? ck->n_tensors : 1) * sizeof *ck->by_name);
    if (!ck->by_name)
        return fail(ERR_MEMORY, "%s: out of memory", ck->path);
    for (int i = 0; i < ck->n_tensors; i++)
        ck->by_name[i] = i;
    qsort_r(ck->by_name, (size_t)ck->n_tensors, sizeof *ck->by_name, compare_names, ck->tensors);
    return OK;
}

enum code form_add_fileref(struct checkpoint *ck, const char *name)
{
    const char **files = realloc(ck->files, (size_t)(ck->n_files + 1) * sizeof *files);
    if (files) {
        ck->files = files;
        files[ck->n_files] = form_string(&ck->strings, name);
        if (files[ck->n_files]) {
            ck->n_files++;
            return OK;
        }
    }
    return fail(ERR_MEMORY, "%s: out of memory", ck->path);
}

/* ---- writers ------------------------------------------------------------------------------------------------------ */

/* Source order first, so that walking the writer's list reads the source sequentially; what the source lacks comes last. */
static void sort_like_source(struct ckpt_tensor *tensors, int n, const struct checkpoint *source)
{
    int done = 0;
    for (int s = 0; s < source->n_tensors; s++) {
        int i = form_tensor_index(tensors + done, n - done, source->tensors[s].name);
        if (i < 0)
            continue;
        struct ckpt_tensor t = tensors[done + i];
        memmove(&tensors[done + 1], &tensors[done], (size_t)i * sizeof t);
        t.source = source->tensors[s].source;
        t.file = source->tensors[s].file;
        t.dtype = source->tensors[s].dtype;
        tensors[done++] = t;
    }
}

static enum code writer_tensors(struct ckpt_writer *w, const struct ckpt_target *target, int64_t *bytes)
{
    TRY(tensors_from_arch(&w->arch, &w->tensors, &w->n_tensors, w->path));
    if (target->source)
        sort_like_source(w->tensors, w->n_tensors, target->source);
    w->rows_done = calloc((size_t)w->n_tensors, sizeof *w->rows_done);
    w->rows_left = calloc((size_t)w->n_tensors, sizeof *w->rows_left);
    if (!w->rows_done || !w->rows_left)
        return fail(ERR_MEMORY, "%s: out of memory", w->path);
    enum dtype silent = target->source && w->n_tensors ? w->tensors[0].dtype : DT_F32;
    *bytes = 0;
    for (int i = 0; i < w->n_tensors; i++) {
        struct ckpt_tensor *t = &w->tensors[i];
        if (target->dtype != DT_NONE)
            t->dtype = target->dtype;
        else if (t->dtype == DT_NONE)
            t->dtype = silent;
        t->bytes = t->n[0] * t->n[1] * (int64_t)dtype_bytes(t->dtype);
        t->source = form_string(&w->strings, t->source);
        t->file = t->source ? form_string(&w->strings, t->file) : NULL;
        if (!t->file)
            return fail(ERR_MEMORY, "%s: out of memory", w->path);
        w->rows_left[i] = t->n[0];
        *bytes += t->bytes;
    }
    return OK;
}

/* The folders above the target, where they are missing. */
static enum code parents_make(const char *path)
{
    char *parent = strdup(path), *slash = parent ? strrchr(parent, '/') : NULL;
    enum code c = parent ? OK : fail(ERR_MEMORY, "%s: out of memory", path);
    if (slash && slash != parent) {
        *slash = 0;
        c = io_mkdirs(parent);
    }
    free(parent);
    return c;
}

static enum code writer_fill(struct ckpt_writer *w, const struct ckpt_target *target)
{
    int64_t bytes = 0;
    const struct checkpoint *source = target->source;
    TRY(target_check(w->path, source ? source->path : NULL, target->force));
    TRY(arch_copy(&w->arch, target->arch));
    TRY(writer_tensors(w, target, &bytes));
    for (int i = 0; source && i < source->n_companions; i++) {
        const struct ckpt_companion *c = &source->companions[i];
        TRY(form_add_companion(&w->companions, &w->n_companions, c->name, c->bytes, c->n));
        bytes += (int64_t)c->n;
    }
    w->bytes = bytes + (1 << 20); /* headers, config, index */
    TRY(target_space(w->path, w->bytes));
    TRY(target_locks(w->path, w->locks));
    target_stale(w->path, w->locks[0].own);
    return parents_make(w->path);
}

enum code form_writer_new(struct ckpt_writer **out, size_t bytes, const struct ckpt_form *form, const struct ckpt_target *target)
{
    CHECK(bytes >= sizeof(struct ckpt_writer));
    struct ckpt_writer *w = calloc(1, bytes);
    *out = w;
    if (!w)
        return fail(ERR_MEMORY, "%s: out of memory", target->path);
    fail_full_forget();
    w->form = form;
    w->force = target->force;
    w->locks[0].fd = w->locks[1].fd = -1;
    w->path = path_copy(target->path);
    enum code c = fail(ERR_MEMORY, "%s: out of memory", target->path);
    if (w->path) {
        c = writer_fill(w, target);
        if (c == OK && asprintf(&w->temporary, "%s.tmp-%ld", w->path, (long)getpid()) < 0) {
            w->temporary = NULL;
            c = fail(ERR_MEMORY, "%s: out of memory", w->path);
        }
        if (c == OK)
            c = io_remove_tree(w->temporary); /* left by a crashed process that had our number */
    }
    if (c != OK) {
        ckpt_abandon(w);
        *out = NULL;
    }
    return c;
}
