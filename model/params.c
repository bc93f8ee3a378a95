/* Parameters as one flat range, in the memory order of arch_tensors: embed | pos | layers | final norm | head.
 * A group of tensors that one GEMM reads (q|k|v, gate|up, and their biases) is packed without gaps; every group starts on a
 * 64-byte boundary and the padding before the next one is zero. The range is one carve, so an AddressSanitizer redzone never
 * splits it. Of a bf16 model the matrices are bf16 and the vectors and position table f32, as the kernels read them. */
#include <stdlib.h>
#include <string.h>

#include "parts.h"

enum { ALIGN = 64 };

/* 1 when `s` continues the group of the tensor before it. */
static int joins_previous(enum tensor_slot s, enum tensor_slot previous)
{
    switch (s) {
    case T_K_W: return previous == T_Q_W;
    case T_V_W: return previous == T_K_W;
    case T_K_B: return previous == T_Q_B;
    case T_V_B: return previous == T_K_B;
    case T_UP_W: return previous == T_GATE_W;
    case T_UP_B: return previous == T_GATE_B;
    default: return 0;
    }
}

static enum dtype stored_dtype(const struct model *m, const struct tensor_spec *spec)
{
    return spec->nd == 2 && spec->slot != T_POS ? m->options.dtype : DT_F32;
}

enum code params_plan(struct model *m)
{
    struct tensor_spec *specs;
    int n;
    TRY(arch_tensors(&m->arch, &specs, &n));
    m->param = calloc((size_t)n, sizeof *m->param);
    if (!m->param) {
        free(specs);
        return fail(ERR_MEMORY, "out of memory for the table of %d parameters", n);
    }
    int64_t at = 0;
    for (int i = 0; i < n; i++) {
        struct model_param *p = &m->param[i];
        p->spec = specs[i];
        p->count = specs[i].n[0] * specs[i].n[1];
        int64_t width = (int64_t)dtype_bytes(stored_dtype(m, &specs[i]));
        if (i == 0 || !joins_previous(specs[i].slot, specs[i - 1].slot))
            at = (at + ALIGN - 1) / ALIGN * ALIGN;
        p->offset = at / width;
        at += p->count * width;
    }
    m->n_params = n;
    m->param_bytes = (size_t)((at + ALIGN - 1) / ALIGN * ALIGN);
    free(specs);
    return OK;
}

static struct view param_view(const struct tensor_spec *spec, enum dtype t, void *base, int64_t offset)
{
    char *p = base ? (char *)base + (size_t)offset * dtype_bytes(t) : NULL;
    return spec->nd == 2 ? view_2d(p, t, spec->n[0], spec->n[1]) : view_1d(p, t, spec->n[0]);
}

/* Grows the view of a group by the rows of its next tensor, which must follow it in memory. */
static void view_join(struct view *group, struct view next)
{
    CHECK(group->nd == next.nd && group->n[1] == next.n[1] && group->dtype == next.dtype);
    CHECK((char *)group->p + (size_t)view_count(*group) * dtype_bytes(group->dtype) == (char *)next.p);
    group->n[0] += next.n[0];
    if (group->nd == 1)
        return;
    group->s[0] = group->n[1];
}

static void view_set(struct view *group, struct view next)
{
    if (group->p)
        view_join(group, next);
    else
        *group = next;
}

static void weights_add(struct weights *w, const struct model *m, const struct tensor_spec *spec, struct view v)
{
    struct block_params *b = spec->layer >= 0 ? &w->block[spec->layer] : NULL;
    switch (spec->slot) {
    case T_EMBED: w->embed = v; break;
    case T_POS: w->pos = view_slice(v, 0, m->arch.pos_offset, v.n[0] - m->arch.pos_offset); break;
    case T_ATTN_NORM_W: b->attn_norm_w = v; break;
    case T_ATTN_NORM_B: b->attn_norm_b = v; break;
    case T_Q_W: case T_K_W: case T_V_W: view_set(&b->qkv_w, v); break;
    case T_Q_B: case T_K_B: case T_V_B: view_set(&b->qkv_b, v); break;
    case T_O_W: b->o_w = v; break;
    case T_O_B: b->o_b = v; break;
    case T_MLP_NORM_W: b->mlp_norm_w = v; break;
    case T_MLP_NORM_B: b->mlp_norm_b = v; break;
    case T_GATE_W: case T_UP_W: view_set(&b->in_w, v); break;
    case T_GATE_B: case T_UP_B: view_set(&b->in_b, v); break;
    case T_DOWN_W: b->down_w = v; break;
    case T_DOWN_B: b->down_b = v; break;
    case T_FINAL_NORM_W: w->final_norm_w = v; break;
    case T_FINAL_NORM_B: w->final_norm_b = v; break;
    case T_HEAD_W: w->head = v; break;
    case T_HEAD_B: w->head_b = v; break;
    case T_SLOTS: CHECK(0);
    }
}

void params_carve(struct model *m)
{
    char *base = arena_carve(&m->parameters, m->param_bytes);
    char *grads = m->options.train ? arena_carve(&m->gradients, m->param_bytes) : NULL;
    if (!base)
        return; /* measuring */
    for (int i = 0; i < m->n_params; i++) {
        struct model_param *p = &m->param[i];
        p->value = param_view(&p->spec, stored_dtype(m, &p->spec), base, p->offset);
        p->grad = grads ? param_view(&p->spec, DT_F32, grads, p->offset) : view_none();
        weights_add(&m->value, m, &p->spec, p->value);
        if (grads)
            weights_add(&m->grad, m, &p->spec, p->grad);
    }
    if (m->arch.tied) {
        m->value.head = m->value.embed;
        m->grad.head = m->grad.embed;
    }
}

int model_param_count(const struct model *m)
{
    return m->n_params;
}

const struct model_param *model_param_at(const struct model *m, int i)
{
    CHECK(i >= 0 && i < m->n_params);
    return &m->param[i];
}

const struct model_param *model_param_find(const struct model *m, const char *canonical)
{
    for (int i = 0; i < m->n_params; i++)
        if (!strcmp(m->param[i].spec.name, canonical))
            return &m->param[i];
    return NULL;
}

struct model_flat model_flat(const struct model *m)
{
    struct model_flat f = {NULL, NULL, 0};
    if (m->options.dtype != DT_F32)
        return f;
    f.params = m->parameters.base;
    f.grads = (float *)(void *)m->gradients.base;
    f.n = (int64_t)(m->param_bytes / sizeof(float));
    return f;
}
