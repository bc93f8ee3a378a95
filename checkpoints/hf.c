/* Hugging Face directory, reading: config.json, model.safetensors or the shards that model.safetensors.index.json names, and
 * the small files beside them. Every tensor of the architecture must be there with its shape, and nothing of meaning may be
 * left over. Rows are read by pread at the place the family says (family.h). The writer is hf_write.c. */
#include "hf.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "safetensors.h"

#define CONFIG_LIMIT ((size_t)4 << 20)
#define INDEX_LIMIT ((size_t)64 << 20)

struct shard { const char *name; char *path; int fd; struct st_header header; };

/* One tensor of the files, for finding by name. */
struct found { const struct st_tensor *tensor; int shard; int used; };

struct hf {
    struct checkpoint base;
    struct shard *shards;
    int n_shards;
    struct found *found; /* sorted by name; only while opening */
    int n_found;
    struct hf_rows *rows; /* [n_tensors] */
};

static int has(const char *dir, const char *name)
{
    char *path = io_join(dir, name);
    int there = path && io_exists(path);
    free(path);
    return there;
}

static int hf_probe(const char *path)
{
    return io_is_dir(path) && (has(path, "config.json") || has(path, HF_SINGLE) || has(path, HF_INDEX));
}

static enum code read_in(const char *dir, const char *name, size_t limit, char **path, char **bytes, size_t *n)
{
    *bytes = NULL;
    *path = io_join(dir, name);
    if (!*path)
        return fail(ERR_MEMORY, "%s: out of memory", dir);
    return io_read_all(*path, limit, bytes, n);
}

static enum code config_read(struct hf *hf)
{
    char *path, *bytes;
    size_t n;
    enum code c = read_in(hf->base.path, "config.json", CONFIG_LIMIT, &path, &bytes, &n);
    if (c == OK)
        c = arch_from_config_json(&hf->base.arch, bytes, n, path);
    free(bytes);
    free(path);
    return c == OK ? form_add_fileref(&hf->base, "config.json") : c;
}

/* ---- files -------------------------------------------------------------------------------------------------------- */

static enum code shard_add(struct hf *hf, const char *name, int64_t limit)
{
    struct shard *s = &hf->shards[hf->n_shards];
    s->fd = -1;
    TRY(form_add_fileref(&hf->base, name));
    s->name = hf->base.files[hf->base.n_files - 1];
    s->path = io_join(hf->base.path, name);
    if (!s->path)
        return fail(ERR_MEMORY, "%s: out of memory", hf->base.path);
    hf->n_shards++;
    TRY(st_open(&s->header, &s->fd, s->path, limit));
    posix_fadvise(s->fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    return OK;
}

static enum code shards_reserve(struct hf *hf, int n)
{
    hf->shards = calloc((size_t)n, sizeof *hf->shards);
    return hf->shards ? OK : fail(ERR_MEMORY, "%s: out of memory", hf->base.path);
}

/* Index and files must agree in both directions: serving tools refuse anything else. */
static enum code index_check(const struct hf *hf, const struct st_index *x)
{
    int in_files = 0;
    for (int s = 0; s < hf->n_shards; s++)
        for (int i = 0; i < hf->shards[s].header.count; i++, in_files++) {
            const char *name = hf->shards[s].header.tensors[i].name;
            const struct st_index_entry *e = st_index_find(x, name);
            if (!e)
                return fail(ERR_INPUT, "%s/" HF_INDEX ": does not list tensor \"%.80s\" of %s", hf->base.path, name, hf->shards[s].name);
            if (e->file != s)
                return fail(ERR_INPUT, "%s/" HF_INDEX ": says tensor \"%.80s\" is in %s, but %s holds it", hf->base.path, name,
                            x->files[e->file], hf->shards[s].name);
        }
    if (in_files == x->count)
        return OK;
    for (int i = 0; i < x->count; i++) {
        const struct shard *s = &hf->shards[x->entries[i].file];
        int there = 0;
        for (int t = 0; t < s->header.count && !there; t++)
            there = !strcmp(s->header.tensors[t].name, x->entries[i].tensor);
        if (!there)
            return fail(ERR_INPUT, "%s/" HF_INDEX ": says tensor \"%.80s\" is in %s, which does not hold it", hf->base.path,
                        x->entries[i].tensor, s->name);
    }
    return OK;
}

static enum code sharded_open(struct hf *hf, int64_t limit)
{
    char *path, *bytes;
    size_t n;
    struct st_index x = {0};
    enum code c = read_in(hf->base.path, HF_INDEX, INDEX_LIMIT, &path, &bytes, &n);
    if (c == OK)
        c = st_index_parse(&x, bytes, n, path);
    if (c == OK)
        c = form_add_fileref(&hf->base, HF_INDEX);
    if (c == OK)
        c = shards_reserve(hf, x.n_files);
    for (int f = 0; c == OK && f < x.n_files; f++)
        c = shard_add(hf, x.files[f], limit);
    if (c == OK)
        c = index_check(hf, &x);
    st_index_free(&x);
    free(bytes);
    free(path);
    return c;
}

static enum code files_open(struct hf *hf, const struct ckpt_options *options)
{
    const char *dir = hf->base.path;
    int64_t limit = options->header_limit ? options->header_limit : ST_HEADER_DEFAULT;
    if (has(dir, HF_SINGLE)) {
        TRY(shards_reserve(hf, 1));
        return shard_add(hf, HF_SINGLE, limit);
    }
    if (has(dir, HF_INDEX))
        return sharded_open(hf, limit);
    if (has(dir, "pytorch_model.bin") || has(dir, "pytorch_model.bin.index.json"))
        return fail(ERR_UNSUPPORTED, "%s: holds pytorch_model.bin, which can run code when opened and is not read; save the model as "
                    "safetensors first", dir);
    return fail(ERR_INPUT, "%s: holds neither " HF_SINGLE " nor " HF_INDEX, dir);
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
    for (int s = 0; s < hf->n_shards; s++)
        n += hf->shards[s].header.count;
    hf->found = calloc((size_t)n + 1, sizeof *hf->found);
    if (!hf->found)
        return fail(ERR_MEMORY, "%s: out of memory", hf->base.path);
    for (int s = 0; s < hf->n_shards; s++)
        for (int i = 0; i < hf->shards[s].header.count; i++)
            hf->found[hf->n_found++] = (struct found){&hf->shards[s].header.tensors[i], s, 0};
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
        return fail(ERR_INPUT, "%s: tensor \"%s\": expected shape %s from config.json, found %s]", hf->shards[f->shard].path, t->name, want,
                    have);
    if (t->dtype == DT_F32 || t->dtype == DT_BF16 || t->dtype == DT_F16 || t->dtype == DT_F64)
        return OK;
    return fail(ERR_UNSUPPORTED, "%s: tensor \"%s\" is stored as %s; supported are F32, BF16, F16 and F64", hf->shards[f->shard].path, t->name,
                t->dtype_name);
}

static enum code tensor_find(struct hf *hf, int i, const struct family *family, const struct tensor_spec *spec)
{
    struct family_place p;
    family->place(&hf->base.arch, spec, &p);
    struct st_tensor key = {.name = p.name};
    struct found want = {&key, 0, 0}, *f = bsearch(&want, hf->found, (size_t)hf->n_found, sizeof want, by_name);
    if (!f)
        return fail(ERR_INPUT, "%s: tensor \"%s\" is missing%s", hf->base.path, p.name,
                    spec->slot == T_HEAD_W ? " (config.json does not tie it to the embedding)" : "");
    TRY(shape_check(hf, f, &p));
    f->used = 1;
    const struct shard *s = &hf->shards[f->shard];
    hf->rows[i] = (struct hf_rows){f->shard, s->header.data + f->tensor->begin, p.first, p.inner, p.stride};
    return form_tensor_set(&hf->base, i, f->tensor->dtype, p.name, s->name);
}

static enum code leftovers_check(const struct hf *hf, const struct family *family)
{
    for (int i = 0; i < hf->n_found; i++) {
        const struct found *f = &hf->found[i];
        if (f->used)
            continue;
        if (!family->ignores(&hf->base.arch, f->tensor->name))
            return fail(ERR_INPUT, "%s: tensor \"%.80s\" belongs to no part of the model that config.json describes",
                        hf->shards[f->shard].path, f->tensor->name);
        if (!strcmp(f->tensor->name, "lm_head.weight"))
            log_info("%s: lm_head.weight is left out: config.json ties it to the embedding\n", hf->base.path);
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
    for (int i = 0; i < n; i++)
        order[i] = (struct order){hf->rows[i].shard, hf->rows[i].offset, hf->rows[i].first, i};
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
    TRY(files_open(hf, options));
    TRY(tensors_open(hf));
    return companions_from_dir(&hf->base, hf->base.path);
}

static enum code hf_open(struct checkpoint **ck, const char *path, const struct ckpt_options *options)
{
    TRY(form_checkpoint_new(ck, sizeof(struct hf), &form_hf, path));
    enum code c = parts_open((struct hf *)*ck, options);
    if (c != OK)
        ckpt_close(*ck);
    return c;
}

static enum code hf_read(struct checkpoint *ck, int i, int64_t row, int64_t rows, void *dst)
{
    const struct hf *hf = (const struct hf *)ck;
    const struct hf_rows *m = &hf->rows[i];
    const struct shard *s = &hf->shards[m->shard];
    int64_t row_bytes = ck->tensors[i].n[1] * (int64_t)dtype_bytes(ck->tensors[i].dtype);
    for (int64_t done = 0; done < rows;) {
        int64_t now, at = hf_rows_run(m, row + done, rows - done, &now);
        TRY(io_pread(s->fd, s->path, (char *)dst + done * row_bytes, (size_t)(now * row_bytes), m->offset + at * row_bytes));
        done += now;
    }
    return OK;
}

static void hf_close(struct checkpoint *ck)
{
    struct hf *hf = (struct hf *)ck;
    for (int s = 0; s < hf->n_shards; s++) {
        if (hf->shards[s].fd >= 0)
            close(hf->shards[s].fd);
        st_free(&hf->shards[s].header);
        free(hf->shards[s].path);
    }
    free(hf->shards);
    free(hf->found);
    free(hf->rows);
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
