/* Parameters as one flat range, in the memory order of arch_tensors: embed | pos | layers | final norm | head.
 * A group of tensors that one GEMM reads (q|k|v, gate|up, and their biases) is packed without gaps; every group starts on a
 * 64-byte boundary and the padding before the next one is zero. The range is one carve, so an AddressSanitizer redzone never
 * splits it. Of a bf16 model the matrices are bf16 and the vectors and position table f32, as the kernels read them.
 * Training in bf16 has three ranges of one layout: gradients f32, master weights f32, the bf16 copy (where padding and the vectors'
 * places are unused). Without master weights the vectors are packed behind the bf16 range. */
#include <stdlib.h>
#include <string.h>

#include "parts.h"

enum { ALIGN = 64, ALIGN_ELEMENTS = 32 }; /* the second keeps bf16 groups on 64 bytes when offsets count f32 elements */

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

/* The position table is f32, as the embedding adds it, unless it is itself the table that the embedding reads (embed.c). */
static int is_matrix(const struct model *m, const struct tensor_spec *spec)
{
    return spec->nd == 2 && (spec->slot != T_POS || m->arch.embed_proj);
}

static enum dtype stored_dtype(const struct model *m, const struct tensor_spec *spec)
{
    return is_matrix(m, spec) ? m->options.dtype : DT_F32;
}

static int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* Where the vector i starts among the vectors packed so far. */
static int64_t vector_place(const struct model *m, int i, int64_t packed)
{
    return i > 0 && joins_previous(m->param[i].spec.slot, m->param[i - 1].spec.slot) ? packed : round_up(packed, ALIGN_ELEMENTS);
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
    int64_t at = 0, align = trains_bf16(m) ? ALIGN_ELEMENTS * (int64_t)sizeof(float) : ALIGN;
    for (int i = 0; i < n; i++) {
        struct model_param *p = &m->param[i];
        p->spec = specs[i];
        p->count = specs[i].n[0] * specs[i].n[1];
        int64_t width = (int64_t)dtype_bytes(trains_bf16(m) ? DT_F32 : stored_dtype(m, &specs[i]));
        if (i == 0 || !joins_previous(specs[i].slot, specs[i - 1].slot))
            at = round_up(at, align);
        p->offset = at / width;
        at += p->count * width;
        if (m->options.no_master && !is_matrix(m, &specs[i]))
            m->n_vectors = vector_place(m, i, m->n_vectors) + p->count;
    }
    m->n_params = n;
    m->param_bytes = (size_t)round_up(at, align);
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
    case T_EMBED_PROJ_IN: w->proj_in = v; break;
    case T_EMBED_NORM_W: w->embed_norm_w = v; break;
    case T_EMBED_NORM_B: w->embed_norm_b = v; break;
    case T_POS: w->pos = view_slice(v, 0, m->arch.pos_offset, v.n[0] - m->arch.pos_offset); break;
    case T_ATTN_NORM_W: b->attn_norm_w = v; break;
    case T_ATTN_NORM_B: b->attn_norm_b = v; break;
    case T_Q_W: case T_K_W: case T_V_W: view_set(&b->qkv_w, v); break;
    case T_Q_B: case T_K_B: case T_V_B: view_set(&b->qkv_b, v); break;
    case T_Q_NORM_W: b->q_norm_w = v; break;
    case T_K_NORM_W: b->k_norm_w = v; break;
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
    case T_EMBED_PROJ_OUT: w->proj_out = v; break;
    case T_HEAD_W: w->head = v; break;
    case T_HEAD_B: w->head_b = v; break;
    case T_SLOTS: CHECK(0);
    }
}

int param_in_part(const struct model *m, const struct tensor_spec *s, int64_t part)
{
    int64_t L = m->arch.stack[STACK_DEC].L;
    if (s->layer >= 0)
        return s->layer == part;
    switch (s->slot) {
    case T_EMBED: return part == MODEL_PART_EMBED || (part == L && m->arch.tied);
    case T_FINAL_NORM_W: case T_FINAL_NORM_B: case T_EMBED_PROJ_OUT: case T_HEAD_W: case T_HEAD_B: return part == L;
    default: return part == MODEL_PART_EMBED;
    }
}

/* Places the part's parameters as a flat range of their own; returns its bytes. base NULL: only that. */
static int64_t part_place(struct model *m, int64_t part, char *base)
{
    int64_t at = 0;
    for (int i = 0; i < m->n_params; i++) {
        struct model_param *p = &m->param[i];
        if (!param_in_part(m, &p->spec, part))
            continue;
        int64_t width = (int64_t)dtype_bytes(stored_dtype(m, &p->spec));
        if (i == 0 || !joins_previous(p->spec.slot, m->param[i - 1].spec.slot))
            at = round_up(at, ALIGN);
        p->offset = at / width;
        if (base) {
            p->value = p->master = param_view(&p->spec, stored_dtype(m, &p->spec), base, p->offset);
            weights_add(&m->value, m, &p->spec, p->value);
        }
        at += p->count * width;
    }
    return round_up(at, ALIGN);
}

static void part_forget(struct model *m)
{
    struct block_params *blocks = m->value.block, none;
    memset(&none, 0, sizeof none);
    for (int i = 0; i < m->n_params; i++)
        m->param[i].value = m->param[i].master = m->param[i].grad = view_none();
    for (int64_t l = 0; l < m->arch.stack[STACK_DEC].L; l++) {
        struct view alibi = blocks[l].alibi;
        blocks[l] = none;
        blocks[l].alibi = alibi;
    }
    memset(&m->value, 0, sizeof m->value);
    m->value.block = blocks;
}

void params_part(struct model *m, int64_t part)
{
    part_forget(m);
    (void)part_place(m, part, m->parameters.base);
    if (m->arch.tied && part == m->arch.stack[STACK_DEC].L)
        m->value.head = m->value.embed;
    m->part = part;
}

/* The largest part. */
static void parts_carve(struct model *m)
{
    int64_t most = 0;
    for (int64_t part = MODEL_PART_EMBED; part <= m->arch.stack[STACK_DEC].L; part++) {
        int64_t bytes = part_place(m, part, NULL);
        most = bytes > most ? bytes : most;
    }
    (void)arena_carve(&m->parameters, (size_t)most);
    m->part = PART_NONE;
}

/* The range of each type, or what stands for it. */
struct ranges { void *whole, *low, *vectors; };

static struct ranges ranges_carve(struct model *m)
{
    struct ranges r = {NULL, NULL, NULL};
    int master = !trains_bf16(m) || !m->options.no_master;
    r.whole = master ? arena_carve(&m->parameters, m->param_bytes) : NULL;
    r.low = trains_bf16(m) ? arena_carve(&m->parameters, m->param_bytes / 2) : NULL;
    r.vectors = master ? NULL : arena_carve(&m->parameters, (size_t)round_up(m->n_vectors, ALIGN_ELEMENTS) * sizeof(float));
    return r;
}

static void values_set(const struct model *m, struct model_param *p, const struct ranges *r, int64_t vector)
{
    if (!trains_bf16(m)) {
        p->value = p->master = param_view(&p->spec, stored_dtype(m, &p->spec), r->whole, p->offset);
        return;
    }
    struct view low = param_view(&p->spec, DT_BF16, r->low, p->offset);
    p->master = r->whole ? param_view(&p->spec, DT_F32, r->whole, p->offset) : is_matrix(m, &p->spec) ? low : param_view(&p->spec, DT_F32, r->vectors, vector);
    p->value = is_matrix(m, &p->spec) ? low : p->master;
}

void params_carve(struct model *m)
{
    if (m->options.layered) {
        parts_carve(m);
        return;
    }
    struct ranges r = ranges_carve(m);
    char *grads = m->options.train ? arena_carve(&m->gradients, m->param_bytes) : NULL;
    int64_t vectors = 0;
    if (!m->parameters.base)
        return; /* measuring */
    m->low = r.low;
    for (int i = 0; i < m->n_params; i++) {
        struct model_param *p = &m->param[i];
        int64_t place = is_matrix(m, &p->spec) ? 0 : vector_place(m, i, vectors);
        values_set(m, p, &r, place);
        vectors = is_matrix(m, &p->spec) ? vectors : place + p->count;
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
    struct model_flat f = {NULL, NULL, NULL, 0};
    if ((m->options.dtype != DT_F32 && !m->options.train) || m->options.layered)
        return f;
    f.params = trains_bf16(m) && m->options.no_master ? NULL : m->parameters.base;
    f.grads = (float *)(void *)m->gradients.base;
    f.low = m->low;
    f.n = (int64_t)(m->param_bytes / sizeof(float));
    return f;
}

enum code model_refresh(struct model *m)
{
    struct model_flat f = model_flat(m);
    return f.low && f.params ? m->be->cast(m->dev, f.low, DT_BF16, f.params, DT_F32, f.n) : OK;
}
