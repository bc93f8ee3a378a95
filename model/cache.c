/* The K/V cache: one carve per layer in the backend's own layout, and the lengths, on the device for the kernels and mirrored on
 * the host for the checks. */
#include "parts.h"

void cache_carve(struct model *m)
{
    const struct model_options *o = &m->options;
    if (!m->kv)
        return;
    for (int64_t l = 0; l < m->arch.stack[STACK_DEC].L; l++) {
        const struct arch_block *b = &m->arch.stack[STACK_DEC].block[l];
        size_t bytes = m->be->cache_bytes(m->dev, o->cache_B, b->G, o->cache_S, b->D, o->cache_dtype);
        struct kv_layer kv = {arena_carve(&m->cache, bytes), o->cache_dtype, o->cache_B, b->G, o->cache_S, b->D};
        m->kv[l] = kv;
    }
}

void model_cache_set_length(struct model *m, int64_t length)
{
    CHECK(m->kv && length >= 0 && length <= m->options.cache_S);
    for (int64_t b = 0; b < m->options.cache_B; b++)
        m->host_lens[b] = (int32_t)length;
}

void model_cache_reset(struct model *m)
{
    model_cache_set_length(m, 0);
}

int64_t model_cache_length(const struct model *m, int64_t b)
{
    CHECK(m->kv && b >= 0 && b < m->options.cache_B);
    return m->host_lens[b];
}
