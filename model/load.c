/* Parameters from a checkpoint, in row blocks through a staging buffer, converted to the model's dtype. */
#include <stdlib.h>

#include "parts.h"

/* What may differ between the checkpoint's arch and the model's without changing any result. */
static const char *const HARMLESS[] = {"family", "source_config", "dtype",   "bos", "eos", "pad", "decoder_start", "original_vocab",
                                       "max_positions"};

static enum code arch_agrees(const struct arch *mine, const struct arch *theirs, const char *path)
{
    json_t *a = arch_to_json(mine), *b = arch_to_json(theirs), *value;
    const char *key;
    enum code c = OK;
    for (size_t i = 0; i < sizeof HARMLESS / sizeof *HARMLESS; i++) {
        json_object_del(a, HARMLESS[i]);
        json_object_del(b, HARMLESS[i]);
    }
    json_object_foreach(a, key, value)
        if (c == OK && !json_equal(value, json_object_get(b, key)))
            c = fail(ERR_INPUT, "%s: its architecture differs from the model's in \"%s\"", path, key);
    if (c == OK && json_object_size(a) != json_object_size(b))
        c = fail(ERR_INPUT, "%s: its architecture has parts that the model's has not", path);
    json_decref(a);
    json_decref(b);
    return c;
}

static enum code load_tensor(struct model *m, const struct model_param *p, struct checkpoint *ck, char *staging, int64_t staging_bytes)
{
    const struct ckpt_tensor *t = ckpt_find(ck, p->spec.name);
    if (!t || t->n[0] != p->spec.n[0] || (p->spec.nd == 2 && t->n[1] != p->spec.n[1]))
        return fail(ERR_INPUT, "%s: tensor %s is %s; expected [%lld, %lld]", ckpt_path(ck), p->spec.name, t ? "of another shape" : "missing",
                    (long long)p->spec.n[0], (long long)p->spec.n[1]);
    int64_t row_bytes = p->spec.n[1] * (int64_t)dtype_bytes(p->master.dtype), rows = staging_bytes / row_bytes;
    for (int64_t row = 0; row < p->spec.n[0]; row += rows) {
        int64_t now = p->spec.n[0] - row < rows ? p->spec.n[0] - row : rows;
        TRY(ckpt_read(ck, t, row, now, staging, p->master.dtype));
        TRY(m->be->device_copy(m->dev, (char *)p->master.p + row * row_bytes, staging, (size_t)(now * row_bytes)));
    }
    return OK;
}

static enum code load_tensors(struct model *m, struct checkpoint *ck, int64_t part)
{
    int64_t bytes = 8 << 20;
    for (int i = 0; i < m->n_params; i++) {
        int64_t row = m->param[i].spec.n[1] * (int64_t)sizeof(float);
        bytes = row > bytes ? row : bytes;
    }
    char *staging = malloc((size_t)bytes);
    if (!staging)
        return fail(ERR_MEMORY, "out of memory for a block of parameters");
    enum code c = OK;
    for (int i = 0; i < m->n_params && c == OK; i++)
        if (part == PART_NONE || param_in_part(m, &m->param[i].spec, part))
            c = load_tensor(m, &m->param[i], ck, staging, bytes);
    free(staging);
    return c;
}

enum code load_part(struct model *m, struct checkpoint *ck, int64_t part)
{
    return load_tensors(m, ck, part);
}

enum code model_load(struct model *m, struct checkpoint *ck)
{
    CHECK(!m->options.layered);
    TRY(arch_agrees(&m->arch, ckpt_arch(ck), ckpt_path(ck)));
    TRY(load_tensors(m, ck, PART_NONE));
    return model_refresh(m);
}
