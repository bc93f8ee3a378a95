/* Life of a model: check the arch, measure every arena by carving with NULL bases, reserve, carve again. */
#include <stdlib.h>

#include "parts.h"

static int64_t positions_needed(const struct model_options *o)
{
    int64_t P = o->T > o->cache_S ? o->T : o->cache_S;
    return P > 1 ? P : 1;
}

static enum code tables_alloc(struct model *m)
{
    size_t L = (size_t)m->arch.stack[STACK_DEC].L;
    m->value.block = calloc(L, sizeof *m->value.block);
    m->grad.block = calloc(L, sizeof *m->grad.block);
    m->keep = calloc(L, sizeof *m->keep);
    m->host_pos = calloc((size_t)m->rows, sizeof *m->host_pos);
    m->host_lens = calloc((size_t)m->options.cache_B + 1, sizeof *m->host_lens);
    m->host_step = calloc((size_t)step_layout(m->options.cache_B, 8).count + 1, sizeof *m->host_step);
    if (m->options.cache_B > 0 && m->options.cache_S > 0)
        m->kv = calloc(L, sizeof *m->kv);
    if (!m->value.block || !m->grad.block || !m->keep || !m->host_pos || !m->host_lens || !m->host_step || (m->options.cache_B * m->options.cache_S > 0 && !m->kv))
        return fail(ERR_MEMORY, "out of memory for the tables of %zu layers", L);
    return OK;
}

/* With NULL bases this measures. */
static void carve(struct model *m)
{
    params_carve(m);
    activations_carve(m);
    cache_carve(m);
}

static enum code measure(struct model *m, const struct arch *arch, const struct backend *be, struct device *dev,
                         const struct model_options *options)
{
    m->be = be;
    m->dev = dev;
    m->options = *options;
    m->env.act = be->activation_dtype(dev, options->dtype);
    TRY(model_supports(arch, options, m->env.act));
    TRY(arch_copy(&m->arch, arch));
    m->rows = options->B * options->T;
    if (m->rows < 8 * options->cache_B)
        m->rows = 8 * options->cache_B;
    if (m->rows < 1)
        return fail(ERR_USAGE, "a model needs a batch of rows or a K/V cache to run");
    m->positions = positions_needed(options);
    m->env.be = be;
    m->env.dev = dev;
    m->env.arch = &m->arch;
    m->env.deterministic = options->deterministic;
    TRY(tables_alloc(m));
    TRY(params_plan(m));
    carve(m);
    m->memory.parameters = (int64_t)m->parameters.used;
    m->memory.gradients = (int64_t)m->gradients.used;
    m->memory.activations = (int64_t)m->activations.used;
    m->memory.scratch = (int64_t)m->scratch.used;
    m->memory.cache = (int64_t)m->cache.used;
    return OK;
}

static void tables_free(struct model *m)
{
    free(m->value.block);
    free(m->grad.block);
    free(m->keep);
    free(m->kv);
    free(m->param);
    free(m->host_pos);
    free(m->host_lens);
    free(m->host_step);
    arch_free(&m->arch);
}

enum code model_measure(const struct arch *arch, const struct backend *be, struct device *dev, const struct model_options *options,
                        struct model_memory *memory)
{
    struct model *m = calloc(1, sizeof *m);
    if (!m)
        return fail(ERR_MEMORY, "out of memory for a model");
    enum code c = measure(m, arch, be, dev, options);
    *memory = m->memory;
    tables_free(m);
    free(m);
    return c;
}

static enum code reserve(struct model *m, struct arena *a, const char *name)
{
    size_t bytes = a->used;
    if (!bytes)
        return OK;
    TRY(m->be->device_alloc(m->dev, a, name, bytes));
    a->used = 0;
    return OK;
}

static enum code rope_upload(struct model *m)
{
    if (m->arch.pos != POS_ROPE)
        return OK;
    size_t n = (size_t)(m->positions * (m->arch.rope.dims / 2)), bytes = n * sizeof(float);
    float *tables = malloc(2 * bytes);
    if (!tables)
        return fail(ERR_MEMORY, "out of memory for the rotary tables");
    enum code c = rope_tables_fill(&m->arch, m->positions, tables, tables + n);
    if (c == OK)
        c = m->be->device_copy(m->dev, m->env.rope_cos.p, tables, bytes);
    if (c == OK)
        c = m->be->device_copy(m->dev, m->env.rope_sin.p, tables + n, bytes);
    free(tables);
    return c;
}

static enum code open_measured(struct model *m)
{
    TRY(reserve(m, &m->parameters, "parameters"));
    TRY(reserve(m, &m->gradients, "gradients"));
    TRY(reserve(m, &m->activations, "activations"));
    TRY(reserve(m, &m->scratch, "scratch"));
    TRY(reserve(m, &m->cache, "K/V cache"));
    carve(m);
    TRY(alibi_upload(m));
    return rope_upload(m);
}

enum code model_open(struct model **out, const struct arch *arch, const struct backend *be, struct device *dev,
                     const struct model_options *options)
{
    *out = NULL;
    struct model *m = calloc(1, sizeof *m);
    if (!m)
        return fail(ERR_MEMORY, "out of memory for a model");
    enum code c = measure(m, arch, be, dev, options);
    if (c == OK)
        c = open_measured(m);
    if (c != OK) {
        model_close(m);
        return c;
    }
    *out = m;
    return OK;
}

void model_close(struct model *m)
{
    if (!m)
        return;
    if (m->be && m->dev)
        decode_close(m);
    struct arena *arenas[] = {&m->parameters, &m->gradients, &m->activations, &m->scratch, &m->cache};
    for (size_t i = 0; i < sizeof arenas / sizeof *arenas; i++)
        if (arenas[i]->base)
            m->be->device_free(m->dev, arenas[i]);
    tables_free(m);
    free(m);
}

const struct arch *model_arch(const struct model *m)
{
    return &m->arch;
}

const struct model_memory *model_memory(const struct model *m)
{
    return &m->memory;
}
