/* model.safetensors.index.json = {"metadata": {...}, "weight_map": {tensor: file}}. File names must stay inside the
 * directory: an index from elsewhere must not make us read what is not the model. */
#include <stdlib.h>
#include <string.h>

#include "safetensors.h"

static int by_string(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static int by_tensor(const void *a, const void *b)
{
    const struct st_index_entry *x = a, *y = b;
    return strcmp(x->tensor, y->tensor);
}

static enum code names_check(const json_t *map, const char *where)
{
    const char *tensor;
    json_t *v;
    json_object_foreach ((json_t *)map, tensor, v) {
        const char *file = json_string_value(v);
        if (!file)
            return fail(ERR_INPUT, "%s: \"weight_map\": \"%.80s\" must name a file", where, tensor);
        if (strlen(file) != json_string_length(v) || !io_name_is_safe(file))
            return fail(ERR_INPUT, "%s: \"weight_map\": \"%.80s\" is said to be in \"%.80s\", which leaves the directory", where, tensor, file);
    }
    return OK;
}

static enum code entries_read(struct st_index *x, const json_t *map, const char *where)
{
    const char *tensor;
    json_t *v;
    size_t n = json_object_size(map);
    if (n == 0)
        return fail(ERR_INPUT, "%s: \"weight_map\" is empty", where);
    x->entries = calloc(n, sizeof *x->entries);
    x->files = calloc(n, sizeof *x->files);
    if (!x->entries || !x->files)
        return fail(ERR_MEMORY, "%s: out of memory for %zu tensors", where, n);
    json_object_foreach ((json_t *)map, tensor, v)
        if (!(x->files[x->n_files++] = strdup(json_string_value(v))))
            return fail(ERR_MEMORY, "%s: out of memory", where);
    qsort(x->files, (size_t)x->n_files, sizeof *x->files, by_string);
    int unique = 0;
    for (int i = 0; i < x->n_files; i++)
        if (unique && !strcmp(x->files[unique - 1], x->files[i]))
            free(x->files[i]);
        else
            x->files[unique++] = x->files[i];
    x->n_files = unique;
    json_object_foreach ((json_t *)map, tensor, v) {
        const char *name = json_string_value(v);
        char **found = bsearch(&name, x->files, (size_t)x->n_files, sizeof *x->files, by_string);
        CHECK(found);
        struct st_index_entry *e = &x->entries[x->count];
        e->file = (int)(found - x->files);
        if (!(e->tensor = strdup(tensor)))
            return fail(ERR_MEMORY, "%s: out of memory", where);
        x->count++;
    }
    qsort(x->entries, (size_t)x->count, sizeof *x->entries, by_tensor);
    return OK;
}

enum code st_index_parse(struct st_index *x, const char *bytes, size_t n, const char *where)
{
    json_t *root;
    memset(x, 0, sizeof *x);
    TRY(json_parse_object(bytes, n, where, &root));
    const json_t *map = json_object_get(root, "weight_map");
    enum code c = json_is_object(map) ? names_check(map, where) : fail(ERR_INPUT, "%s: \"weight_map\" is missing or no object", where);
    if (c == OK)
        c = entries_read(x, map, where);
    json_decref(root);
    if (c != OK)
        st_index_free(x);
    return c;
}

const struct st_index_entry *st_index_find(const struct st_index *x, const char *tensor)
{
    struct st_index_entry key = {(char *)tensor, 0};
    return x->count ? bsearch(&key, x->entries, (size_t)x->count, sizeof *x->entries, by_tensor) : NULL;
}

void st_index_free(struct st_index *x)
{
    for (int i = 0; i < x->count; i++)
        free(x->entries[i].tensor);
    for (int i = 0; i < x->n_files; i++)
        free(x->files[i]);
    free(x->entries);
    free(x->files);
    memset(x, 0, sizeof *x);
}
