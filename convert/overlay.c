/* Tensors of the result that are not the source's, by canonical name, f32. */
#include "calibrate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct overlay_tensor *overlay_find(const struct overlay *o, const char *name)
{
    for (int i = 0; o && i < o->n; i++)
        if (strcmp(o->tensor[i].name, name) == 0)
            return &o->tensor[i];
    return NULL;
}

enum code overlay_add(struct overlay *o, const char *name, int64_t n0, int64_t n1, float **values)
{
    const struct overlay_tensor *there = overlay_find(o, name);
    if (there) {
        CHECK(there->n[0] == n0 && there->n[1] == n1);
        *values = there->values;
        return OK;
    }
    struct overlay_tensor *grown = realloc(o->tensor, ((size_t)o->n + 1) * sizeof *grown);
    if (!grown)
        return fail(ERR_MEMORY, "out of memory for the list of changed tensors");
    o->tensor = grown;
    struct overlay_tensor *t = &o->tensor[o->n];
    memset(t, 0, sizeof *t);
    CHECK(strlen(name) < sizeof t->name);
    memcpy(t->name, name, strlen(name));
    t->n[0] = n0;
    t->n[1] = n1;
    TRY(spill_take(&o->memory, n0 * n1, &t->values));
    o->n++;
    *values = t->values;
    return OK;
}

void overlay_close(struct overlay *o)
{
    spill_close(&o->memory);
    free(o->tensor);
    o->tensor = NULL;
    o->n = 0;
}
