/* Which tensors the files of a new Hugging Face directory hold, in which order and shard, and where each canonical row goes.
 * With a Hugging Face source, its tensor order, shards and spelling of names are kept: a copy reads and writes sequentially.
 * Without one, tensors are sorted by alignment, then name, as the format's own writer does, and shards split at 5 GB. */
#include "hf_layout.h"

#include <stdlib.h>
#include <string.h>

#define SHARD_BYTES ((int64_t)5000000000)

/* A canonical tensor and its place, while the order is still open. */
struct item { struct ckpt_tensor tensor; struct family_place place; };

static int by_alignment(const void *a, const void *b)
{
    const struct item *x = a, *y = b;
    size_t p = dtype_bytes(x->tensor.dtype), q = dtype_bytes(y->tensor.dtype);
    if (p != q)
        return p > q ? -1 : 1;
    int order = strcmp(x->place.name, y->place.name);
    return order ? order : x->place.first < y->place.first ? -1 : x->place.first > y->place.first;
}

static enum code items_make(struct hf_writer *w, struct item *items, int sort)
{
    const struct family *family = family_of(w->base.arch.family);
    size_t prefix = family->prefix ? strlen(family->prefix) : 0;
    struct tensor_spec *specs;
    int n, bare = 0;
    TRY(arch_tensors(&w->base.arch, &specs, &n));
    CHECK(n == w->base.n_tensors);
    for (int i = 0; i < n; i++) {
        int at = form_tensor_index(w->base.tensors, n, specs[i].name);
        CHECK(at >= 0);
        items[at].tensor = w->base.tensors[at];
        family->place(&w->base.arch, &specs[i], &items[at].place);
        if (specs[i].slot == T_EMBED && prefix)
            bare = !strcmp(items[at].tensor.source, items[at].place.name + prefix);
    }
    free(specs);
    for (int i = 0; i < n && bare; i++) {
        char *name = items[i].place.name;
        if (!strncmp(name, family->prefix, prefix))
            memmove(name, name + prefix, strlen(name + prefix) + 1);
    }
    if (sort)
        qsort(items, (size_t)n, sizeof *items, by_alignment);
    return OK;
}

static int stored_named(const struct hf_writer *w, const char *name)
{
    int s = w->n_stored - 1;
    while (s >= 0 && strcmp(w->stored[s].tensor.name, name) != 0)
        s--;
    return s;
}

static enum code stored_add(struct hf_writer *w, const char *name, const struct family_place *p)
{
    struct st_tensor *t = &w->stored[w->n_stored].tensor;
    t->name = strdup(name);
    if (!t->name)
        return fail(ERR_MEMORY, "%s: out of memory", w->base.path);
    w->n_stored++;
    t->nd = p->nd;
    t->n[0] = p->n[0];
    t->n[1] = p->n[1];
    return OK;
}

/* Of parts that share a file tensor and differ in type: the type that holds them all. */
static enum dtype dtype_join(enum dtype a, enum dtype b)
{
    if (a == DT_NONE || a == b)
        return b;
    return a == DT_F64 || b == DT_F64 ? DT_F64 : DT_F32;
}

/* Gathers canonical tensors into those of the files: one each, unless the family fuses or splits some. */
static enum code stored_make(struct hf_writer *w, const struct item *items)
{
    int n = w->base.n_tensors, placed = 0;
    size_t most = 0;
    char name[160];
    for (int i = 0; i < n; i++)
        most += items[i].place.pieces > 1 ? (size_t)items[i].place.pieces : 1;
    w->stored = calloc(most, sizeof *w->stored);
    w->rows = calloc((size_t)n, sizeof *w->rows);
    w->place = calloc(most, sizeof *w->place);
    if (!w->stored || !w->rows || !w->place)
        return fail(ERR_MEMORY, "%s: out of memory", w->base.path);
    for (int i = 0; i < n; i++) {
        const struct family_place *p = &items[i].place;
        const struct ckpt_tensor *t = &items[i].tensor;
        for (int piece = 0; piece < (p->pieces > 1 ? p->pieces : 1); piece++) {
            family_place_name(p, piece, name);
            int s = stored_named(w, name);
            if (s < 0) {
                TRY(stored_add(w, name, p));
                s = w->n_stored - 1;
            }
            if (piece == 0)
                w->rows[i] = (struct hf_rows){row_map_make(p, t->n[0], t->n[1]), placed};
            w->place[placed++] = s;
            w->stored[s].tensor.dtype = dtype_join(w->stored[s].tensor.dtype, t->dtype);
            w->stored[s].left += w->rows[i].map.piece;
        }
        w->base.tensors[i] = *t;
        w->base.rows_left[i] = t->n[0];
    }
    for (int i = 0; i < w->n_stored; i++) {
        struct st_tensor *t = &w->stored[i].tensor;
        t->end = t->n[0] * t->n[1] * (int64_t)dtype_bytes(t->dtype);
    }
    for (int i = 0; i < n; i++) {
        struct ckpt_tensor *t = &w->base.tensors[i];
        t->dtype = w->stored[w->place[w->rows[i].at]].tensor.dtype;
        t->bytes = t->n[0] * t->n[1] * (int64_t)dtype_bytes(t->dtype);
    }
    return OK;
}

struct moved { struct hf_stored stored; int was; };

static int by_order(const void *a, const void *b)
{
    const struct moved *x = a, *y = b;
    if (x->stored.order != y->stored.order)
        return x->stored.order < y->stored.order ? -1 : 1;
    return x->was < y->was ? -1 : x->was > y->was;
}

/* File tensors into the order and the files of the source. Canonical order is not enough where one tensor lies in pieces, which
 * may stand in any order and in several shards. */
static enum code stored_sort(struct hf_writer *w, const struct checkpoint *source)
{
    size_t n = (size_t)w->n_stored;
    struct moved *moved = malloc(n * sizeof *moved);
    int *now = malloc(n * sizeof *now);
    enum code c = moved && now ? OK : fail(ERR_MEMORY, "%s: out of memory", w->base.path);
    for (size_t i = 0; c == OK && i < n; i++) {
        moved[i] = (struct moved){w->stored[i], (int)i};
        moved[i].stored.order = INT64_MAX;
        moved[i].stored.file = hf_stored_in(source, w->stored[i].tensor.name, &moved[i].stored.order);
    }
    if (c == OK) {
        qsort(moved, n, sizeof *moved, by_order);
        for (size_t i = 0; i < n; i++) {
            w->stored[i] = moved[i].stored;
            now[moved[i].was] = (int)i;
        }
        for (int i = 0; i < w->base.n_tensors; i++)
            for (int64_t piece = 0; piece < w->base.tensors[i].n[0] / w->rows[i].map.piece; piece++)
                w->place[w->rows[i].at + piece] = now[w->place[w->rows[i].at + piece]];
    }
    free(moved);
    free(now);
    return c;
}

static int shard_named(const struct hf_writer *w, const char *name)
{
    for (int s = 0; s < w->n_shards; s++)
        if (!strcmp(w->shards[s].name, name))
            return s;
    return -1;
}

static enum code shard_of(struct hf_writer *w, const char *file, int *shard)
{
    *shard = *file ? shard_named(w, file) : w->n_shards ? w->n_shards - 1 : 0;
    if (*shard >= 0 && w->n_shards)
        return OK;
    const char *name = form_string(&w->base.strings, *file ? file : HF_SINGLE);
    if (!name)
        return fail(ERR_MEMORY, "%s: out of memory", w->base.path);
    *shard = w->n_shards++;
    w->shards[*shard].name = name;
    return OK;
}

/* Where tensors of several files become one, files may be left with none. */
static void shards_drop_empty(struct hf_writer *w)
{
    int kept = 0;
    for (int s = 0; s < w->n_shards; s++) {
        int used = 0;
        for (int i = 0; i < w->n_stored; i++)
            if (w->stored[i].shard == s) {
                w->stored[i].shard = kept;
                used = 1;
            }
        if (used)
            w->shards[kept++] = w->shards[s];
    }
    w->n_shards = kept;
}

/* The source's files again. What the source lacks (an untied head) joins the last of them. */
static enum code shards_like_source(struct hf_writer *w)
{
    for (int i = 0; i < w->base.n_tensors; i++)
        for (int64_t piece = 0; piece < w->base.tensors[i].n[0] / w->rows[i].map.piece; piece++) {
            struct hf_stored *s = &w->stored[w->place[w->rows[i].at + piece]];
            TRY(shard_of(w, s->file ? s->file : w->base.tensors[i].file, &s->shard));
        }
    shards_drop_empty(w);
    return OK;
}

static enum code shards_by_size(struct hf_writer *w, int64_t limit)
{
    int64_t filled = 0;
    int s = 0;
    for (int i = 0; i < w->n_stored; i++) {
        int64_t bytes = w->stored[i].tensor.end;
        if (filled && bytes > limit - filled) {
            s++;
            filled = 0;
        }
        filled += bytes;
        w->stored[i].shard = s;
    }
    w->n_shards = s + 1;
    for (int i = 0; i < w->n_shards; i++) {
        char name[64];
        snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", i + 1, w->n_shards);
        w->shards[i].name = form_string(&w->base.strings, w->n_shards == 1 ? HF_SINGLE : name);
        if (!w->shards[i].name)
            return fail(ERR_MEMORY, "%s: out of memory", w->base.path);
    }
    return OK;
}

/* Offsets within each shard, and the final names of the canonical tensors. */
static enum code offsets_assign(struct hf_writer *w)
{
    for (int i = 0; i < w->n_stored; i++) {
        struct hf_out_shard *s = &w->shards[w->stored[i].shard];
        w->stored[i].tensor.begin = s->bytes;
        w->stored[i].tensor.end += s->bytes;
        s->bytes = w->stored[i].tensor.end;
    }
    for (int i = 0; i < w->base.n_tensors; i++) {
        const struct hf_stored *s = &w->stored[w->place[w->rows[i].at]];
        w->base.tensors[i].file = w->shards[s->shard].name;
        w->base.tensors[i].source = s->tensor.name;
    }
    return OK;
}

/* A Hugging Face directory, or a native file made from one (which remembers the shard of every tensor). */
static int from_safetensors(const struct checkpoint *source)
{
    for (int i = 0; source && i < source->n_tensors; i++) {
        const char *dot = strrchr(source->tensors[i].file, '.');
        if (!dot || strcmp(dot, ".safetensors") || !io_name_is_safe(source->tensors[i].file))
            return 0;
    }
    return source != NULL;
}

enum code hf_layout_make(struct hf_writer *w, const struct ckpt_target *target)
{
    int like_source = from_safetensors(target->source);
    int n = w->base.n_tensors;
    struct item *items = malloc((size_t)n * sizeof *items);
    enum code c = items ? items_make(w, items, !like_source) : fail(ERR_MEMORY, "%s: out of memory", w->base.path);
    if (c == OK)
        c = stored_make(w, items);
    free(items);
    if (c == OK && like_source)
        c = stored_sort(w, target->source);
    TRY(c);
    n += w->n_stored; /* no more shards than either has tensors */
    w->shards = calloc((size_t)n, sizeof *w->shards);
    if (!w->shards)
        return fail(ERR_MEMORY, "%s: out of memory", w->base.path);
    for (int s = 0; s < n; s++)
        w->shards[s].fd = -1;
    if (like_source && !target->shard_bytes)
        TRY(shards_like_source(w));
    else
        TRY(shards_by_size(w, target->shard_bytes > 0 ? target->shard_bytes : SHARD_BYTES));
    return offsets_assign(w);
}

