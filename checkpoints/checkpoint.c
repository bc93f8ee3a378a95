/* The dispatcher: finds the form of a path and forwards. It does no work on tensors; forms are listed in form.h. */
#include "checkpoint.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blocks.h"
#include "form.h"
#include "gguf.h"

#define FORM_ADDRESS(form) &form,
static const struct ckpt_form *const FORMS[] = {CKPT_FORMS(FORM_ADDRESS)};
enum { N_FORMS = sizeof FORMS / sizeof *FORMS };

static void strings_free(struct strings *s)
{
    for (int i = 0; i < s->n; i++)
        free(s->v[i]);
    free(s->v);
}

/* ---- reading ------------------------------------------------------------------------------------------------------ */

enum code ckpt_open(struct checkpoint **ck, const char *path, const struct ckpt_options *options)
{
    static const struct ckpt_options defaults;
    *ck = NULL;
    if (!io_exists(path)) {
        const char *slash = strchr(path, '/');
        if (slash && slash != path && path[0] != '.' && slash[1] && !strchr(slash + 1, '/')) /* OWNER/NAME */
            return fail(ERR_IO, "%s: no such file or directory; a model of the Hugging Face hub is downloaded first, then its directory is named here", path);
        errno = ENOENT;
        return fail_errno(path, "open");
    }
    for (int f = 0; f < N_FORMS; f++) {
        if (!FORMS[f]->probe(path))
            continue;
        enum code c = FORMS[f]->open(ck, path, options ? options : &defaults);
        if (c == OK && (c = form_index(*ck)) != OK)
            ckpt_close(*ck);
        if (c != OK)
            *ck = NULL;
        return c;
    }
    if (io_is_dir(path))
        return fail(ERR_INPUT, "%s: holds no model: expected config.json with model.safetensors, or the steps of a training run", path);
    return fail(ERR_INPUT, "%s: not a model file: expected a Hugging Face directory, a .h5 or a llama2.c .bin", path);
}

void ckpt_close(struct checkpoint *ck)
{
    if (!ck)
        return;
    if (ck->form->close)
        ck->form->close(ck);
    arch_free(&ck->arch);
    form_free_companions(ck->companions, ck->n_companions);
    strings_free(&ck->strings);
    free(ck->files);
    free(ck->tensors);
    free(ck->by_name);
    free(ck->path);
    free(ck);
}

const struct arch *ckpt_arch(const struct checkpoint *ck) { return &ck->arch; }
const char *ckpt_path(const struct checkpoint *ck) { return ck->path; }
const char *ckpt_form_name(const struct checkpoint *ck) { return ck->form->name; }
int ckpt_count(const struct checkpoint *ck) { return ck->n_tensors; }

const struct ckpt_tensor *ckpt_at(const struct checkpoint *ck, int i)
{
    CHECK(i >= 0 && i < ck->n_tensors);
    return &ck->tensors[i];
}

const struct ckpt_tensor *ckpt_find(const struct checkpoint *ck, const char *canonical)
{
    int low = 0, high = ck->n_tensors;
    while (low < high) {
        int middle = low + (high - low) / 2;
        const struct ckpt_tensor *t = &ck->tensors[ck->by_name[middle]];
        int order = strcmp(canonical, t->name);
        if (order == 0)
            return t;
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

enum code ckpt_read(struct checkpoint *ck, const struct ckpt_tensor *t, int64_t row, int64_t rows, void *dst, enum dtype as)
{
    CHECK(t >= ck->tensors && t < ck->tensors + ck->n_tensors);
    TRY(interrupt_check());
    return blocks_read(ck, (int)(t - ck->tensors), row, rows, dst, as);
}

int ckpt_files(const struct checkpoint *ck, const char *const **names)
{
    *names = ck->files;
    return ck->n_files;
}

int ckpt_companions(const struct checkpoint *ck, const struct ckpt_companion **list)
{
    *list = ck->companions;
    return ck->n_companions;
}

/* ---- writing ------------------------------------------------------------------------------------------------------ */

static enum code form_of_target(const char *path, const struct ckpt_form **form)
{
    for (int pass = 0; pass < 2; pass++) /* forms that claim by extension first, then the one that takes the rest */
        for (int f = 0; f < N_FORMS; f++)
            if (FORMS[f]->claims && (FORMS[f] == &form_hf) == pass && FORMS[f]->claims(path)) {
                *form = FORMS[f];
                return OK;
            }
    return fail(ERR_USAGE, "%s: a target is a directory name (Hugging Face) or a name ending in .h5 or .gguf", path);
}

enum code ckpt_target_check(const struct ckpt_target *target)
{
    const struct ckpt_form *form;
    TRY(form_of_target(target->path, &form));
    TRY(target_check(target->path, target->source ? target->source->path : NULL, target->force));
    char *text = NULL; /* what config.json cannot say is refused here too */
    enum code c = form == &form_hf ? arch_to_config_json(target->arch, target->dtype == DT_NONE ? target->arch->dtype : target->dtype, &text) : OK;
    free(text);
    const struct gguf_row *row;
    return c == OK && form == &form_gguf ? gguf_row_of(target->arch, &row) : c;
}

enum code ckpt_create(struct ckpt_writer **w, const struct ckpt_target *target)
{
    const struct ckpt_form *form;
    *w = NULL;
    TRY(form_of_target(target->path, &form));
    enum code c = form->create(w, target);
    if (c != OK)
        *w = NULL;
    return c;
}

int ckpt_writer_count(const struct ckpt_writer *w) { return w->n_tensors; }

const struct ckpt_tensor *ckpt_writer_at(const struct ckpt_writer *w, int i)
{
    CHECK(i >= 0 && i < w->n_tensors);
    return &w->tensors[i];
}

enum code ckpt_write(struct ckpt_writer *w, const struct ckpt_tensor *t, int64_t row, int64_t rows, const void *src, enum dtype type)
{
    CHECK(t >= w->tensors && t < w->tensors + w->n_tensors);
    TRY(interrupt_check());
    return blocks_write(w, (int)(t - w->tensors), row, rows, src, type);
}

enum code ckpt_add_file(struct ckpt_writer *w, const char *name, const void *bytes, size_t n)
{
    if (!io_name_is_safe(name))
        return fail(ERR_USAGE, "%s: \"%s\" is not a plain file name", w->path, name);
    return form_add_companion(&w->companions, &w->n_companions, name, bytes, n);
}

void ckpt_provenance(struct ckpt_writer *w, const json_t *facts)
{
    json_decref(w->facts);
    w->facts = json_incref((json_t *)(uintptr_t)facts);
}

const char *ckpt_writer_dir(const struct ckpt_writer *w)
{
    return io_is_dir(w->temporary) ? w->temporary : NULL;
}

static void writer_free(struct ckpt_writer *w)
{
    arch_free(&w->arch);
    form_free_companions(w->companions, w->n_companions);
    strings_free(&w->strings);
    for (int i = 0; w->rows_done && i < w->n_tensors; i++)
        free(w->rows_done[i]);
    free(w->rows_done);
    free(w->rows_left);
    free(w->tensors);
    for (int i = 0; i < 2; i++)
        io_lock_drop(&w->locks[i]);
    json_decref(w->facts);
    free(w->temporary);
    free(w->path);
    free(w);
}

/* Removes what is at the temporary name without disturbing the sentence of an error that is on its way up. */
static void temporary_remove(const struct ckpt_writer *w)
{
    char *sentence = strdup(fail_text());
    if (w->temporary && io_remove_tree(w->temporary) != OK)
        log_warn("%s", fail_text());
    if (sentence && *sentence)
        fail(ERR_INTERNAL, "%s", sentence);
    free(sentence);
    if (w->bytes)
        target_full(ERR_IO, w->path, w->bytes);
}

enum code ckpt_commit(struct ckpt_writer *w)
{
    enum code c = blocks_complete(w);
    if (c == OK)
        c = w->form->finish(w);
    if (w->form->drop)
        w->form->drop(w);
    if (c == OK && w->facts && io_is_dir(w->temporary))
        c = provenance_write(w->temporary, w->facts);
    if (c == OK)
        c = target_install(w->temporary, w->path, w->force);
    if (c != OK)
        temporary_remove(w);
    writer_free(w);
    return c;
}

void ckpt_abandon(struct ckpt_writer *w)
{
    if (!w)
        return;
    if (w->form->drop)
        w->form->drop(w);
    temporary_remove(w);
    writer_free(w);
}
