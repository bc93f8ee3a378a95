/* The native form in the table of forms: a bare .h5 in and out; a training run's step directory (or its run directory) in.
 * The layout is in h5.h. Tensors keep their order, name, dtype and file of the source, so that .h5 -> Hugging Face gives
 * back what went in. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "form.h"
#include "native.h"
#include "step.h"

enum { COMPANION_LIMIT = 256 << 20 };

struct native_reader { struct checkpoint ck; struct h5_file *f; int *order; };
struct native_writer { struct ckpt_writer w; struct h5_file *f; int compress; };

static int has_suffix(const char *path, const char *suffix)
{
    size_t n = strlen(path), m = strlen(suffix);
    return n > m && !strcmp(path + n - m, suffix);
}

static void dataset_name(char out[H5_NAME_MAX], const char *tensor) { snprintf(out, H5_NAME_MAX, "param/%s", tensor); }

/* ---- reading ------------------------------------------------------------------------------------------------------ */

static enum code tensor_open(struct native_reader *r, int i, const char *file)
{
    struct checkpoint *ck = &r->ck;
    const struct ckpt_tensor *t = &ck->tensors[i];
    char name[H5_NAME_MAX], source[H5_NAME_MAX], source_file[H5_NAME_MAX], order[16];
    struct h5_array a;
    dataset_name(name, t->name);
    if (!h5_has(r->f, name))
        return fail(ERR_INPUT, "%s: tensor %s is missing", ck->path, t->name);
    TRY(h5_array_info(r->f, name, &a));
    if (a.nd != t->nd || a.n[0] != t->n[0] || a.n[1] != t->n[1])
        return fail(ERR_INPUT, "%s: tensor %s: expected [%lld, %lld], found [%lld, %lld]", ck->path, t->name, (long long)t->n[0],
                    (long long)t->n[1], (long long)a.n[0], (long long)a.n[1]);
    if (a.dtype != DT_F32 && a.dtype != DT_BF16 && a.dtype != DT_F16 && a.dtype != DT_F64)
        return fail(ERR_INPUT, "%s: tensor %s: %s is no type for weights; expected f32, bf16, f16 or f64", ck->path, t->name, dtype_name(a.dtype));
    TRY(h5_text_get(r->f, name, "source", source, sizeof source));
    TRY(h5_text_get(r->f, name, "source_file", source_file, sizeof source_file));
    TRY(h5_text_get(r->f, name, "order", order, sizeof order));
    r->order[i] = *order ? atoi(order) : i;
    return form_tensor_set(ck, i, a.dtype, source, *source_file ? source_file : file);
}

static int by_order(const void *a, const void *b, void *order)
{
    const int *o = order, x = *(const int *)a, y = *(const int *)b;
    return o[x] != o[y] ? (o[x] > o[y]) - (o[x] < o[y]) : (x > y) - (x < y);
}

static enum code sort_tensors(struct native_reader *r)
{
    int n = r->ck.n_tensors;
    struct ckpt_tensor *sorted = malloc((size_t)(n ? n : 1) * sizeof *sorted);
    int *index = malloc((size_t)(n ? n : 1) * sizeof *index);
    if (!sorted || !index) {
        free(sorted);
        free(index);
        return fail(ERR_MEMORY, "%s: out of memory", r->ck.path);
    }
    for (int i = 0; i < n; i++)
        index[i] = i;
    qsort_r(index, (size_t)n, sizeof *index, by_order, r->order);
    for (int i = 0; i < n; i++)
        sorted[i] = r->ck.tensors[index[i]];
    free(index);
    free(r->ck.tensors);
    r->ck.tensors = sorted;
    return OK;
}

static enum code tensors_open(struct native_reader *r, const char *file)
{
    struct checkpoint *ck = &r->ck;
    char **names;
    int n;
    TRY(form_tensors(ck));
    r->order = calloc((size_t)ck->n_tensors + 1, sizeof *r->order);
    if (!r->order)
        return fail(ERR_MEMORY, "%s: out of memory", ck->path);
    TRY(h5_list(r->f, "param", &names, &n));
    enum code c = OK;
    for (int i = 0; c == OK && i < n; i++)
        if (form_tensor_index(ck->tensors, ck->n_tensors, names[i]) < 0)
            c = fail(ERR_INPUT, "%s: tensor %s does not belong to this architecture", ck->path, names[i]);
    io_names_free(names, n);
    for (int i = 0; c == OK && i < ck->n_tensors; i++)
        c = tensor_open(r, i, file);
    return c == OK ? sort_tensors(r) : c;
}

static enum code companions_open(struct native_reader *r)
{
    char **names, dataset[H5_NAME_MAX + 16], *bytes;
    size_t size;
    int n;
    TRY(h5_list(r->f, "companions", &names, &n));
    enum code c = OK;
    for (int i = 0; c == OK && i < n; i++) {
        snprintf(dataset, sizeof dataset, "companions/%s", names[i]);
        if (!io_name_is_safe(names[i]))
            c = fail(ERR_INPUT, "%s: companion \"%.80s\" is not a plain file name", r->ck.path, names[i]);
        if (c == OK && (c = h5_bytes_get(r->f, dataset, COMPANION_LIMIT, &bytes, &size)) == OK) {
            c = form_add_companion(&r->ck.companions, &r->ck.n_companions, names[i], bytes, size);
            free(bytes);
        }
    }
    io_names_free(names, n);
    return c;
}

/* `file` is the HDF5 file, `path` what the user named; both outlive the call only as copies. */
static enum code reader_open(struct checkpoint **out, const struct ckpt_form *form, const char *path, const char *file)
{
    const char *slash = strrchr(file, '/'), *base = slash ? slash + 1 : file;
    TRY(form_checkpoint_new(out, sizeof(struct native_reader), form, path));
    struct native_reader *r = (struct native_reader *)*out;
    enum code c = h5_open(&r->f, file);
    if (c == OK)
        c = native_arch_read(r->f, file, &r->ck.arch);
    if (c == OK)
        c = tensors_open(r, base);
    if (c == OK)
        c = companions_open(r);
    if (c != OK) {
        ckpt_close(*out);
        *out = NULL;
    }
    return c;
}

static enum code native_read(struct checkpoint *ck, int i, int64_t row, int64_t rows, void *dst)
{
    const struct ckpt_tensor *t = &ck->tensors[i];
    struct h5_array a = {t->dtype, t->nd, {t->n[0], t->n[1]}};
    char name[H5_NAME_MAX];
    dataset_name(name, t->name);
    return h5_rows_read(((struct native_reader *)ck)->f, name, &a, row, rows, dst);
}

static void native_close(struct checkpoint *ck)
{
    struct native_reader *r = (struct native_reader *)ck;
    h5_close(r->f);
    free(r->order);
}

static int h5_probe(const char *path)
{
    return !io_is_dir(path) && (has_suffix(path, ".h5") || has_suffix(path, ".hdf5") || h5_sealed(path) != -1); /* unreadable: opening says why */
}

static enum code h5_form_open(struct checkpoint **ck, const char *path, const struct ckpt_options *options)
{
    (void)options;
    TRY(h5_guard(path));
    TRY(reader_open(ck, &form_h5, path, path));
    const char *slash = strrchr((*ck)->path, '/');
    enum code c = form_add_fileref(*ck, slash ? slash + 1 : (*ck)->path);
    if (c != OK)
        ckpt_close(*ck);
    return c;
}

/* ---- writing ------------------------------------------------------------------------------------------------------ */

static int h5_claims(const char *path) { return has_suffix(path, ".h5") || has_suffix(path, ".hdf5"); }

static enum code h5_form_create(struct ckpt_writer **out, const struct ckpt_target *target)
{
    TRY(form_writer_new(out, sizeof(struct native_writer), &form_h5, target));
    struct native_writer *n = (struct native_writer *)*out;
    struct ckpt_writer *w = *out;
    n->compress = target->compress;
    enum code c = h5_create(&n->f, w->temporary, 1);
    if (c == OK)
        c = native_arch_write(n->f, &w->arch);
    for (int i = 0; c == OK && i < w->n_tensors; i++) {
        const struct ckpt_tensor *t = &w->tensors[i], *from = target->source ? ckpt_find(target->source, t->name) : NULL;
        struct h5_array a = {t->dtype, t->nd, {t->n[0], t->n[1]}};
        struct native_origin origin = {t->source, t->file, from ? from->dtype : DT_NONE, i};
        char name[H5_NAME_MAX];
        dataset_name(name, t->name);
        c = h5_array_create(n->f, name, &a, n->compress);
        if (c == OK)
            c = native_origin_write(n->f, name, &origin);
    }
    if (c != OK)
        ckpt_abandon(w);
    return c;
}

static enum code h5_form_write(struct ckpt_writer *w, int i, int64_t row, int64_t rows, const void *src)
{
    const struct ckpt_tensor *t = &w->tensors[i];
    struct h5_array a = {t->dtype, t->nd, {t->n[0], t->n[1]}};
    char name[H5_NAME_MAX];
    dataset_name(name, t->name);
    return h5_rows_write(((struct native_writer *)w)->f, name, &a, row, rows, src);
}

static enum code h5_form_finish(struct ckpt_writer *w)
{
    struct native_writer *n = (struct native_writer *)w;
    TRY(native_companions_write(n->f, w->companions, w->n_companions));
    struct h5_file *f = n->f;
    n->f = NULL;
    return h5_finish(f);
}

static void h5_form_drop(struct ckpt_writer *w)
{
    struct native_writer *n = (struct native_writer *)w;
    h5_close(n->f);
    n->f = NULL;
}

const struct ckpt_form form_h5 = {
    .name = "native HDF5 file",
    .probe = h5_probe,
    .open = h5_form_open,
    .read = native_read,
    .close = native_close,
    .claims = h5_claims,
    .create = h5_form_create,
    .write = h5_form_write,
    .finish = h5_form_finish,
    .drop = h5_form_drop,
};

/* ---- step and run directories, read only --------------------------------------------------------------------------- */

static int step_probe(const char *path) { return step_is_dir(path) || step_is_run_dir(path) != 0; }

static enum code step_form_open(struct checkpoint **ck, const char *path, const struct ckpt_options *options)
{
    char *dir, *file = NULL;
    json_t *manifest;
    (void)options;
    *ck = NULL;
    TRY(step_choose(path, &dir, &manifest));
    if (!dir)
        return fail(ERR_INPUT, "%s: holds no step of a training run", path);
    file = io_join(dir, STEP_FILE);
    enum code c = file ? h5_walk_forked(file, 0) : fail(ERR_MEMORY, "%s: out of memory for a path", path);
    if (c == OK)
        c = reader_open(ck, &form_step, dir, file);
    if (c == OK)
        c = form_add_fileref(*ck, STEP_FILE);
    if (c == OK)
        c = form_add_fileref(*ck, STEP_MANIFEST);
    if (c != OK) {
        ckpt_close(*ck);
        *ck = NULL;
    }
    json_decref(manifest);
    free(file);
    free(dir);
    return c;
}

const struct ckpt_form form_step = {
    .name = "training step directory",
    .probe = step_probe,
    .open = step_form_open,
    .read = native_read,
    .close = native_close,
};
