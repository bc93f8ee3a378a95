/* Hugging Face directory, reading: config.json, model.safetensors or the shards that model.safetensors.index.json names, and
 * the small files beside them. Every tensor of the architecture must be there with its shape, and nothing of meaning may be
 * left over. Rows are read by pread at the place the family says (family.h, rows.h), or gathered from
 * one whole tensor (hf_whole.c). The writer is hf_write.c. */
#include "hf.h"

#include <stdlib.h>
#include <string.h>

#define CONFIG_LIMIT ((size_t)4 << 20)

/* One tensor of the files, for finding by name. */
struct found { const struct st_tensor *tensor; int shard; int used; };

/* Where a file's tensor begins in its shard. Canonical tensors that share one have an entry each. */
struct stored { const char *name; int shard; int64_t offset, bytes; };

struct hf {
    struct checkpoint base;
    struct hf_files files;
    struct found *found; /* sorted by name; only while opening */
    int n_found;
    struct hf_rows *rows; /* [n_tensors] */
    struct stored *stored; /* [n_stored] */
    int n_stored;
    struct hf_whole whole;
};

static int hf_probe(const char *path)
{
    return io_is_dir(path) && (hf_has(path, "config.json") || hf_has(path, HF_SINGLE) || hf_has(path, HF_INDEX));
}

static enum code config_read(struct hf *hf)
{
    char *path, *bytes;
    size_t n;
    enum code c = hf_read_in(hf->base.path, "config.json", CONFIG_LIMIT, &path, &bytes, &n);
    if (c == OK)
        c = arch_from_config_json(&hf->base.arch, bytes, n, path);
    free(bytes);
    free(path);
    return c == OK ? form_add_fileref(&hf->base, "config.json") : c;
}

/* ---- tensors ------------------------------------------------------------------------------------------------------ */

static int by_name(const void *a, const void *b)
{
    const struct found *x = a, *y = b;
    return strcmp(x->tensor->name, y->tensor->name);
}

static enum code found_make(struct hf *hf)
{
    int n = 0;
    for (int s = 0; s < hf->files.n; s++)
        n += hf->files.shard[s].header.count;
    hf->found = calloc((size_t)n + 1, sizeof *hf->found);
    if (!hf->found)
        return fail(ERR_MEMORY, "%s: out of memory", hf->base.path);
    for (int s = 0; s < hf->files.n; s++)
        for (int i = 0; i < hf->files.shard[s].header.count; i++)
            hf->found[hf->n_found++] = (struct found){&hf->files.shard[s].header.tensors[i], s, 0};
    qsort(hf->found, (size_t)n, sizeof *hf->found, by_name);
    return OK;
}

static enum code shape_check(const struct hf *hf, const struct found *f, const struct family_place *p)
{
    const struct st_tensor *t = f->tensor;
    char want[64], have[ST_DIMS * 21 + 4] = "[";
    int same = t->nd == p->nd;
    for (int d = 0; d < t->nd; d++) {
        same = same && t->n[d] == p->n[d];
        size_t k = strlen(have);
        snprintf(have + k, sizeof have - k, "%s%lld", d ? ", " : "", (long long)t->n[d]);
    }
    if (p->nd == 2)
        snprintf(want, sizeof want, "[%lld, %lld]", (long long)p->n[0], (long long)p->n[1]);
    else
        snprintf(want, sizeof want, "[%lld]", (long long)p->n[0]);
    if (!same)
        return fail(ERR_INPUT, "%s: tensor \"%s\": expected shape %s from config.json, found %s]", hf->files.shard[f->shard].path, t->name, want,
                    have);
    if (t->dtype == DT_F32 || t->dtype == DT_BF16 || t->dtype == DT_F16 || t->dtype == DT_F64)
        return OK;
    return fail(ERR_UNSUPPORTED, "%s: tensor \"%s\" is stored as %s; supported are F32, BF16, F16 and F64", hf->files.shard[f->shard].path, t->name,
                t->dtype_name);
}

/* Under the name, or without the prefix that the family lets go. */
static struct found *found_named(const struct hf *hf, const char *name, const char *prefix)
{
    struct st_tensor key;
    struct found want = {&key, 0, 0};
    size_t n = prefix ? strlen(prefix) : 0;
    for (int bare = 0; bare < 2; bare++) {
        if (bare && (!n || strncmp(name, prefix, n) != 0))
            break;
        key.name = (char *)(uintptr_t)(name + (bare ? n : 0)); /* only compared */
        struct found *f = bsearch(&want, hf->found, (size_t)hf->n_found, sizeof want, by_name);
        if (f)
            return f;
    }
    return NULL;
}

static enum code stored_add(struct hf *hf, const struct found *f)
{
    if ((hf->n_stored & (hf->n_stored - 1)) == 0) { /* full: its size is a power of two */
        struct stored *more = realloc(hf->stored, (size_t)(hf->n_stored ? 2 * hf->n_stored : 1) * sizeof *more);
        if (!more)
            return fail(ERR_MEMORY, "%s: out of memory", hf->base.path);
        hf->stored = more;
    }
    const struct st_tensor *t = f->tensor;
    hf->stored[hf->n_stored++] = (struct stored){t->name, f->shard, hf->files.shard[f->shard].header.data + t->begin, t->end - t->begin};
    return OK;
}

static enum code tensor_find(struct hf *hf, int i, const struct family *family, const struct tensor_spec *spec)
{
    struct family_place p;
    char name[160];
    const struct found *first = NULL;
    family->place(&hf->base.arch, spec, &p);
    hf->rows[i] = (struct hf_rows){row_map_make(&p, spec->n[0], spec->n[1]), hf->n_stored};
    for (int piece = 0; piece < (p.pieces > 1 ? p.pieces : 1); piece++) {
        family_place_name(&p, piece, name);
        struct found *f = found_named(hf, name, family->prefix);
        if (!f)
            return fail(ERR_INPUT, "%s: tensor \"%s\" is missing%s", hf->base.path, name,
                        spec->slot == T_HEAD_W ? " (config.json does not tie it to the embedding)" : "");
        TRY(shape_check(hf, f, &p));
        f->used = 1;
        first = first ? first : f;
        if (f->tensor->dtype != first->tensor->dtype)
            return fail(ERR_UNSUPPORTED, "%s: tensor \"%s\" is stored as %s, but \"%s\", of which it is a part, as %s",
                        hf->files.shard[f->shard].path, name, f->tensor->dtype_name, first->tensor->name, first->tensor->dtype_name);
        TRY(stored_add(hf, f));
    }
    return form_tensor_set(&hf->base, i, first->tensor->dtype, first->tensor->name, hf->files.shard[first->shard].name);
}

static enum code leftovers_check(const struct hf *hf, const struct family *family)
{
    for (int i = 0; i < hf->n_found; i++) {
        const struct found *f = &hf->found[i];
        if (f->used)
            continue;
        if (!family->ignores(&hf->base.arch, f->tensor->name))
            return fail(ERR_INPUT, "%s: tensor \"%.80s\" belongs to no part of the model that config.json describes",
                        hf->files.shard[f->shard].path, f->tensor->name);
        if (!strcmp(f->tensor->name, "lm_head.weight"))
            log_info("%s: lm_head.weight is left out: config.json ties it to the embedding", hf->base.path);
    }
    return OK;
}

struct order { int shard; int64_t offset, first; int i; };

static int by_place(const void *a, const void *b)
{
    const struct order *x = a, *y = b;
    if (x->shard != y->shard)
        return x->shard < y->shard ? -1 : 1;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    return x->first < y->first ? -1 : x->first > y->first;
}

/* Tensors into the order of the files, so that walking them reads sequentially. */
static enum code tensors_sort(struct hf *hf)
{
    int n = hf->base.n_tensors;
    struct order *order = malloc((size_t)n * sizeof *order);
    struct ckpt_tensor *tensors = malloc((size_t)n * sizeof *tensors);
    struct hf_rows *rows = malloc((size_t)n * sizeof *rows);
    if (!order || !tensors || !rows) {
        free(order);
        free(tensors);
        free(rows);
        return fail(ERR_MEMORY, "%s: out of memory", hf->base.path);
    }
    for (int i = 0; i < n; i++) {
        const struct stored *s = &hf->stored[hf->rows[i].at];
        order[i] = (struct order){s->shard, s->offset, hf->rows[i].map.first, i};
    }
    qsort(order, (size_t)n, sizeof *order, by_place);
    for (int i = 0; i < n; i++) {
        tensors[i] = hf->base.tensors[order[i].i];
        rows[i] = hf->rows[order[i].i];
    }
    free(order);
    free(hf->base.tensors);
    free(hf->rows);
    hf->base.tensors = tensors;
    hf->rows = rows;
    return OK;
}

static enum code tensors_open(struct hf *hf)
{
    const struct family *family = family_of(hf->base.arch.family);
    struct tensor_spec *specs;
    int n;
    CHECK(family);
    TRY(found_make(hf));
    TRY(form_tensors(&hf->base));
    hf->rows = calloc((size_t)hf->base.n_tensors, sizeof *hf->rows);
    if (!hf->rows)
        return fail(ERR_MEMORY, "%s: out of memory", hf->base.path);
    TRY(arch_tensors(&hf->base.arch, &specs, &n));
    enum code c = OK;
    for (int i = 0; c == OK && i < n; i++)
        c = tensor_find(hf, i, family, &specs[i]);
    free(specs);
    if (c == OK)
        c = leftovers_check(hf, family);
    free(hf->found);
    hf->found = NULL;
    return c == OK ? tensors_sort(hf) : c;
}

/* ---- the form ----------------------------------------------------------------------------------------------------- */

static enum code parts_open(struct hf *hf, const struct ckpt_options *options)
{
    TRY(config_read(hf));
    TRY(hf_files_open(&hf->base, &hf->files, options));
    TRY(tensors_open(hf));
    return companions_from_dir(&hf->base, hf->base.path);
}

static enum code hf_open(struct checkpoint **ck, const char *path, const struct ckpt_options *options)
{
    TRY(form_checkpoint_new(ck, sizeof(struct hf), &form_hf, path));
    hf_whole_init(&((struct hf *)*ck)->whole);
    enum code c = parts_open((struct hf *)*ck, options);
    if (c != OK)
        ckpt_close(*ck);
    return c;
}

/* Rows of one file tensor. */
static enum code stored_read(struct hf *hf, const struct stored *at, const struct row_map *m, int64_t row, int64_t rows, char *dst, size_t element)
{
    const struct hf_shard *s = &hf->files.shard[at->shard];
    int64_t row_bytes = m->length * (int64_t)element, run;
    if (row_map_scattered(m))
        return hf_whole_gather(&hf->whole, s->fd, s->path, at->offset, at->bytes, m, row, rows, dst, element);
    for (int64_t done = 0; done < rows; done += run) {
        int64_t there = row_map_at(m, row + done, rows - done, &run);
        TRY(io_pread(s->fd, s->path, dst + done * row_bytes, (size_t)(run * row_bytes), at->offset + there * row_bytes));
    }
    return OK;
}

static enum code hf_read(struct checkpoint *ck, int i, int64_t row, int64_t rows, void *dst)
{
    struct hf *hf = (struct hf *)ck;
    const struct hf_rows *r = &hf->rows[i];
    size_t element = dtype_bytes(ck->tensors[i].dtype);
    for (int64_t done = 0, now; done < rows; done += now) {
        int64_t piece = (row + done) / r->map.piece, within = (row + done) % r->map.piece;
        now = r->map.piece - within < rows - done ? r->map.piece - within : rows - done;
        TRY(stored_read(hf, &hf->stored[r->at + piece], &r->map, within, now, (char *)dst + done * r->map.length * (int64_t)element, element));
    }
    return OK;
}

const char *hf_stored_in(const struct checkpoint *source, const char *name, int64_t *order)
{
    const struct hf *hf = (const struct hf *)source;
    for (int i = 0; source && source->form == &form_hf && i < hf->n_stored; i++) {
        const struct stored *s = &hf->stored[i];
        if (strcmp(s->name, name) != 0)
            continue;
        *order = ((int64_t)s->shard << 48) + s->offset;
        return hf->files.shard[s->shard].name;
    }
    return NULL;
}

static void hf_close(struct checkpoint *ck)
{
    struct hf *hf = (struct hf *)ck;
    hf_files_close(&hf->files);
    free(hf->found);
    free(hf->rows);
    free(hf->stored);
    hf_whole_free(&hf->whole);
}

const struct ckpt_form form_hf = {
    .name = "Hugging Face directory",
    .probe = hf_probe,
    .open = hf_open,
    .read = hf_read,
    .close = hf_close,
    .claims = hf_claims,
    .create = hf_create,
    .write = hf_write,
    .finish = hf_finish,
    .drop = hf_drop,
};
