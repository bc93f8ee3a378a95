/* Arch, companions and origins inside a native file; the layout is in h5.h. */
#include "native.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TEXT_LIMIT = 64 << 20 };

enum code native_arch_write(struct h5_file *f, const struct arch *a)
{
    json_t *j = arch_to_json(a);
    if (j)
        json_object_del(j, "source_config"); /* stored byte for byte beside it */
    char *text = j ? json_text(j, JSON_COMPACT) : NULL;
    enum code c = text ? h5_bytes_put(f, "arch.json", text, strlen(text)) : fail(ERR_MEMORY, "out of memory for arch.json");
    free(text);
    json_decref(j);
    if (c == OK && a->source_config)
        c = h5_bytes_put(f, "config.json", a->source_config, strlen(a->source_config));
    return c;
}

enum code native_arch_read(struct h5_file *f, const char *where, struct arch *a)
{
    char *text, *label = io_join(where, "arch.json");
    size_t n;
    json_t *j = NULL;
    memset(a, 0, sizeof *a);
    enum code c = h5_bytes_get(f, "arch.json", TEXT_LIMIT, &text, &n);
    if (c == OK) {
        c = json_parse_object(text, n, label, &j);
        free(text);
    }
    if (c == OK)
        c = arch_from_json(a, j, label);
    json_decref(j);
    free(label);
    if (c != OK)
        return c;
    free(a->source_config);
    a->source_config = NULL;
    if (h5_has(f, "config.json"))
        c = h5_bytes_get(f, "config.json", TEXT_LIMIT, &a->source_config, &n);
    if (c != OK)
        arch_free(a);
    return c;
}

enum code native_companions_write(struct h5_file *f, const struct ckpt_companion *list, int n)
{
    for (int i = 0; i < n; i++) {
        char name[H5_NAME_MAX];
        if (strchr(list[i].name, '/') || snprintf(name, sizeof name, "companions/%s", list[i].name) >= (int)sizeof name)
            return fail(ERR_UNSUPPORTED, "companion \"%.80s\": a native file takes plain names of less than %d bytes", list[i].name, H5_NAME_MAX - 11);
        TRY(h5_bytes_put(f, name, list[i].bytes, list[i].n));
    }
    return OK;
}

enum code native_origin_write(struct h5_file *f, const char *dataset, const struct native_origin *o)
{
    char order[16];
    snprintf(order, sizeof order, "%d", o->order);
    TRY(h5_text_put(f, dataset, "order", order));
    if (*o->source)
        TRY(h5_text_put(f, dataset, "source", o->source));
    if (*o->file)
        TRY(h5_text_put(f, dataset, "source_file", o->file));
    if (o->dtype != DT_NONE)
        TRY(h5_text_put(f, dataset, "source_dtype", dtype_name(o->dtype)));
    return OK;
}
