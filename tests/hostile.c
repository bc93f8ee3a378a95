/* See hostile.h. Each operation of the table is wrapped by hand: check the arguments, open the memory, run, close it. */
#include "hostile.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ALLOCATIONS = 256 };
static struct { char *p; size_t bytes; } held[ALLOCATIONS];
static struct hostile_counts counts;
static const struct backend *inner;

struct hostile_counts hostile_counts(void) { return counts; }

/* ---- memory ------------------------------------------------------------------------------------------------------------ */

static void rights(int prot)
{
    for (int i = 0; i < ALLOCATIONS; i++)
        if (held[i].p)
            CHECK(mprotect(held[i].p, held[i].bytes, prot) == 0);
}

/* 1: [p, p + bytes) lies in one allocation; 0: wholly outside all of them; -1: neither. */
static int place(const void *p, size_t bytes)
{
    const char *from = p, *to = from + bytes;
    for (int i = 0; i < ALLOCATIONS; i++) {
        if (!held[i].p || to <= held[i].p || from >= held[i].p + held[i].bytes)
            continue;
        return from >= held[i].p && to <= held[i].p + held[i].bytes ? 1 : -1;
    }
    return 0;
}

static enum code need(const char *op, const void *p, size_t bytes)
{
    if (p && place(p, bytes ? bytes : 1) != 1)
        return fail(ERR_INTERNAL, "%s: an argument of %zu bytes is not device memory", op, bytes);
    return OK;
}

static enum code need_view(const char *op, struct view v)
{
    size_t last = 0;
    if (!v.p || view_count(v) == 0)
        return OK;
    for (int i = 0; i < v.nd; i++)
        last += (size_t)((v.n[i] - 1) * v.s[i]);
    return need(op, v.p, (last + 1) * dtype_bytes(v.dtype));
}

static enum code need_views(const char *op, int n, const struct view *v)
{
    for (int i = 0; i < n; i++)
        TRY(need_view(op, v[i]));
    return OK;
}
#define NEED(op, ...) \
    TRY(need_views(op, (int)(sizeof((struct view[]){__VA_ARGS__}) / sizeof(struct view)), (const struct view[]){__VA_ARGS__}))

static enum code need_mask(const char *op, const struct attention_args *a)
{
    NEED(op, a->mask.seg_q, a->mask.seg_k, a->mask.global_index, a->mask.alibi_slopes, a->mask.rel_bias);
    return OK;
}

static void enter(void)
{
    counts.operations++;
    rights(PROT_READ | PROT_WRITE);
}

static enum code leave(enum code c)
{
    rights(PROT_NONE);
    return c;
}
#define RUN(call) (enter(), leave(call))

static enum code hostile_device_alloc(struct device *dev, struct arena *a, const char *name, size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), whole = (bytes + page) / page * page;
    (void)dev;
    char *p = mmap(NULL, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < ALLOCATIONS; i++)
        if (p != MAP_FAILED && !held[i].p) {
            held[i].p = p;
            held[i].bytes = whole;
            counts.allocations++;
            *a = (struct arena){.base = p, .used = 0, .capacity = bytes, .name = name, .host = 0};
            return OK;
        }
    return fail(ERR_MEMORY, "cannot reserve %zu bytes for %s", bytes, name);
}

static void hostile_device_free(struct device *dev, struct arena *a)
{
    (void)dev;
    for (int i = 0; i < ALLOCATIONS; i++)
        if (held[i].p && held[i].p == a->base) {
            munmap(held[i].p, held[i].bytes);
            held[i].p = NULL;
        }
    a->base = NULL;
    a->used = a->capacity = 0;
}

static enum code hostile_device_copy(struct device *dev, void *dst, const void *src, size_t bytes)
{
    int to = place(dst, bytes), from = place(src, bytes);
    if (bytes && (to < 0 || from < 0))
        return fail(ERR_INTERNAL, "device_copy: %zu bytes reach over the end of an allocation", bytes);
    counts.reads += from == 1 && to == 0;
    counts.writes += from == 0 && to == 1;
    return RUN(inner->device_copy(dev, dst, src, bytes));
}

/* ---- recording --------------------------------------------------------------------------------------------------------- */

/* A call by its arguments: what a decode step uses. Views v in the order of the operation's own. */
enum call_kind { CALL_EMBED, CALL_NORM, CALL_NORM_ADD, CALL_HEAD_NORM, CALL_CLIP, CALL_MATMUL, CALL_ROPE, CALL_ACT, CALL_CACHE_WRITE, CALL_ROPE_CACHE_WRITE, CALL_DECODE };
struct call {
    enum call_kind kind;
    struct view v[8];
    float x, y;
    int i, j;
    struct kv_layer kv;
    struct attention_args args;
    void *scratch;
};
struct graph { struct call *call; int n, capacity; };
static struct graph *recording;

static enum code call_run(struct device *dev, const struct call *c)
{
    const struct view *v = c->v;
    switch (c->kind) {
    case CALL_EMBED: return RUN(inner->embed_fwd(dev, v[0], v[1], v[2], v[3], v[4], c->x));
    case CALL_NORM: return RUN(inner->norm_fwd(dev, v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], (enum norm_kind)c->i, c->x));
    case CALL_NORM_ADD: return RUN(inner->norm_add_fwd(dev, v[0], v[1], v[2], v[3], v[4], v[5], v[6], (enum norm_kind)c->i, c->x));
    case CALL_HEAD_NORM: return RUN(inner->head_norm_fwd(dev, v[0], v[1], v[2], v[3], v[4], (enum norm_kind)c->i, c->x));
    case CALL_CLIP: return RUN(inner->clip_fwd(dev, v[0], v[1], c->x));
    case CALL_MATMUL: return RUN(inner->matmul(dev, v[0], v[1], v[2], v[3], c->i, c->j, c->x, c->y));
    case CALL_ROPE: return RUN(inner->rope(dev, v[0], v[1], v[2], v[3], c->i));
    case CALL_ACT: return RUN(inner->act_fwd(dev, v[0], v[1], v[2], (enum mlp_kind)c->i));
    case CALL_CACHE_WRITE: return RUN(inner->cache_write(dev, &c->kv, v[0], v[1], v[2]));
    case CALL_ROPE_CACHE_WRITE: return RUN(inner->rope_cache_write(dev, &c->kv, v[0], v[1], v[2], v[3], v[4], v[5], v[6]));
    case CALL_DECODE: return RUN(inner->attention_decode(dev, v[0], v[1], &c->kv, v[2], &c->args, c->i, c->scratch));
    }
    return fail(ERR_INTERNAL, "unknown call");
}

static enum code call_take(struct device *dev, struct call c)
{
    if (!recording)
        return call_run(dev, &c);
    if (recording->n == recording->capacity) {
        recording->capacity = recording->capacity ? 2 * recording->capacity : 64;
        recording->call = realloc(recording->call, (size_t)recording->capacity * sizeof *recording->call);
        CHECK(recording->call);
    }
    recording->call[recording->n++] = c;
    return OK;
}

/* What cannot be recorded must not happen meanwhile. */
static enum code not_recording(const char *op)
{
    return recording ? fail(ERR_INTERNAL, "%s: not while a graph is recorded", op) : OK;
}

static enum code hostile_graph_begin(struct device *dev, int *on)
{
    (void)dev;
    TRY(not_recording("graph_begin"));
    recording = calloc(1, sizeof *recording);
    CHECK(recording);
    *on = 1;
    return OK;
}

static enum code hostile_graph_end(struct device *dev, struct graph **graph)
{
    (void)dev;
    *graph = recording;
    recording = NULL;
    return *graph ? OK : fail(ERR_INTERNAL, "graph_end without graph_begin");
}

static enum code hostile_graph_run(struct device *dev, struct graph *graph)
{
    counts.graph_runs++;
    for (int i = 0; i < graph->n; i++)
        TRY(call_run(dev, &graph->call[i]));
    return OK;
}

static void hostile_graph_free(struct device *dev, struct graph *graph)
{
    (void)dev;
    if (graph)
        free(graph->call);
    free(graph);
}

/* ---- operations --------------------------------------------------------------------------------------------------------- */

static enum code hostile_embed_fwd(struct device *dev, struct view y, struct view ids, struct view table, struct view pos_table, struct view pos, float scale)
{
    NEED("embed_fwd", y, ids, table, pos_table, pos);
    return call_take(dev, (struct call){.kind = CALL_EMBED, .v = {y, ids, table, pos_table, pos}, .x = scale});
}

static enum code hostile_norm_fwd(struct device *dev, struct view y, struct view sum, struct view mean, struct view rstd, struct view x,
                                  struct view residual, struct view w, struct view b, enum norm_kind kind, float eps)
{
    NEED("norm_fwd", y, sum, mean, rstd, x, residual, w, b);
    return call_take(dev, (struct call){.kind = CALL_NORM, .v = {y, sum, mean, rstd, x, residual, w, b}, .i = (int)kind, .x = eps});
}

static enum code hostile_norm_add_fwd(struct device *dev, struct view y, struct view mean, struct view rstd, struct view x, struct view base,
                                      struct view w, struct view b, enum norm_kind kind, float eps)
{
    NEED("norm_add_fwd", y, mean, rstd, x, base, w, b);
    return call_take(dev, (struct call){.kind = CALL_NORM_ADD, .v = {y, mean, rstd, x, base, w, b}, .i = (int)kind, .x = eps});
}

static enum code hostile_head_norm_fwd(struct device *dev, struct view y, struct view mean, struct view rstd, struct view x, struct view w,
                                       enum norm_kind kind, float eps)
{
    NEED("head_norm_fwd", y, mean, rstd, x, w);
    return call_take(dev, (struct call){.kind = CALL_HEAD_NORM, .v = {y, mean, rstd, x, w}, .i = (int)kind, .x = eps});
}

static enum code hostile_clip_fwd(struct device *dev, struct view y, struct view x, float limit)
{
    NEED("clip_fwd", y, x);
    return call_take(dev, (struct call){.kind = CALL_CLIP, .v = {y, x}, .x = limit});
}

static enum code hostile_matmul(struct device *dev, struct view c, struct view a, struct view b, struct view bias, int ta, int tb, float alpha, float beta)
{
    NEED("matmul", c, a, b, bias);
    return call_take(dev, (struct call){.kind = CALL_MATMUL, .v = {c, a, b, bias}, .i = ta, .j = tb, .x = alpha, .y = beta});
}

static enum code hostile_rope(struct device *dev, struct view x, struct view cos_table, struct view sin_table, struct view pos, int inverse)
{
    NEED("rope", x, cos_table, sin_table, pos);
    return call_take(dev, (struct call){.kind = CALL_ROPE, .v = {x, cos_table, sin_table, pos}, .i = inverse});
}

static enum code hostile_act_fwd(struct device *dev, struct view y, struct view gate, struct view up, enum mlp_kind kind)
{
    NEED("act_fwd", y, gate, up);
    return call_take(dev, (struct call){.kind = CALL_ACT, .v = {y, gate, up}, .i = (int)kind});
}

static enum code need_cache(const char *op, struct device *dev, const struct kv_layer *kv)
{
    return need(op, kv->p, inner->cache_bytes(dev, kv->B, kv->G, kv->S, kv->D, kv->dtype));
}

static enum code hostile_cache_write(struct device *dev, const struct kv_layer *cache, struct view k, struct view v, struct view lens)
{
    NEED("cache_write", k, v, lens);
    TRY(need_cache("cache_write", dev, cache));
    return call_take(dev, (struct call){.kind = CALL_CACHE_WRITE, .v = {k, v, lens}, .kv = *cache});
}

static enum code hostile_rope_cache_write(struct device *dev, const struct kv_layer *cache, struct view q, struct view k, struct view v, struct view lens,
                                          struct view cos_table, struct view sin_table, struct view pos)
{
    NEED("rope_cache_write", q, k, v, lens, cos_table, sin_table, pos);
    TRY(need_cache("rope_cache_write", dev, cache));
    return call_take(dev, (struct call){.kind = CALL_ROPE_CACHE_WRITE, .v = {q, k, v, lens, cos_table, sin_table, pos}, .kv = *cache});
}

static enum code hostile_attention_decode(struct device *dev, struct view o, struct view q, const struct kv_layer *cache, struct view lens,
                                          const struct attention_args *args, int splits, void *scratch)
{
    NEED("attention_decode", o, q, lens);
    TRY(need_mask("attention_decode", args));
    TRY(need_cache("attention_decode", dev, cache));
    TRY(need("attention_decode", scratch, inner->attention_decode_scratch(dev, q.n[0], q.n[1], q.n[2], q.n[3], cache->S)));
    return call_take(dev, (struct call){.kind = CALL_DECODE, .v = {o, q, lens}, .kv = *cache, .args = *args, .i = splits, .scratch = scratch});
}

static enum code hostile_attention_fwd(struct device *dev, struct view o, struct view lse, struct view q, struct view k, struct view v,
                                       const struct attention_args *args, void *scratch)
{
    const char *op = "attention_fwd";
    TRY(not_recording(op));
    NEED(op, o, lse, q, k, v);
    TRY(need_mask(op, args));
    TRY(need(op, scratch, inner->attention_scratch(dev, q.n[0], q.n[1], k.n[1], q.n[2], k.n[2], q.n[3], 0)));
    return RUN(inner->attention_fwd(dev, o, lse, q, k, v, args, scratch));
}

static enum code hostile_attention_bwd(struct device *dev, struct view dq, struct view dk, struct view dv, struct view dout, struct view o,
                                       struct view lse, struct view q, struct view k, struct view v, const struct attention_args *args, void *scratch)
{
    const char *op = "attention_bwd";
    TRY(not_recording(op));
    NEED(op, dq, dk, dv, dout, o, lse, q, k, v);
    TRY(need_mask(op, args));
    TRY(need(op, scratch, inner->attention_scratch(dev, q.n[0], q.n[1], k.n[1], q.n[2], k.n[2], q.n[3], 1)));
    return RUN(inner->attention_bwd(dev, dq, dk, dv, dout, o, lse, q, k, v, args, scratch));
}

static enum code hostile_bias_grad(struct device *dev, struct view db, struct view dy)
{
    NEED("bias_grad", db, dy);
    return RUN(inner->bias_grad(dev, db, dy));
}

static enum code hostile_embed_bwd(struct device *dev, struct view dtable, struct view dpos_table, struct view dy, struct view ids, struct view pos, float scale)
{
    NEED("embed_bwd", dtable, dpos_table, dy, ids, pos);
    return RUN(inner->embed_bwd(dev, dtable, dpos_table, dy, ids, pos, scale));
}

static enum code hostile_norm_bwd(struct device *dev, struct view dx, struct view dw, struct view db, struct view dy, struct view dresidual,
                                  struct view x, struct view w, struct view mean, struct view rstd, enum norm_kind kind)
{
    NEED("norm_bwd", dx, dw, db, dy, dresidual, x, w, mean, rstd);
    return RUN(inner->norm_bwd(dev, dx, dw, db, dy, dresidual, x, w, mean, rstd, kind));
}

static enum code hostile_head_norm_bwd(struct device *dev, struct view dx, struct view dw, struct view dy, struct view x, struct view w,
                                       struct view mean, struct view rstd, enum norm_kind kind)
{
    NEED("head_norm_bwd", dx, dw, dy, x, w, mean, rstd);
    return RUN(inner->head_norm_bwd(dev, dx, dw, dy, x, w, mean, rstd, kind));
}

static enum code hostile_clip_bwd(struct device *dev, struct view dx, struct view x, float limit)
{
    NEED("clip_bwd", dx, x);
    return RUN(inner->clip_bwd(dev, dx, x, limit));
}

static enum code hostile_act_bwd(struct device *dev, struct view dgate, struct view dup, struct view y, struct view dy, struct view gate,
                                 struct view up, enum mlp_kind kind)
{
    NEED("act_bwd", dgate, dup, y, dy, gate, up);
    return RUN(inner->act_bwd(dev, dgate, dup, y, dy, gate, up, kind));
}

static enum code hostile_xent(struct device *dev, double *loss_sum, int64_t *count, struct view logp, struct view dx, struct view dw, struct view x,
                              struct view w, struct view targets, const struct xent_args *args, void *scratch)
{
    const char *op = "xent";
    TRY(not_recording(op));
    NEED(op, logp, dx, dw, x, w, targets, args->bias, args->dbias);
    const struct xent_teacher *t = args->teacher;
    const int64_t K = t == NULL ? 0 : t->head.p != NULL ? w.n[0] : t->ids.n[1];
    if (t != NULL) {
        NEED(op, t->hidden, t->head, t->bias, t->ids, t->logp);
        TRY(need(op, t->kl_sum, sizeof *t->kl_sum));
    }
    TRY(need(op, loss_sum, sizeof *loss_sum));
    TRY(need(op, count, sizeof *count));
    TRY(need(op, args->inv_count, sizeof *args->inv_count));
    TRY(need(op, scratch, inner->xent_scratch(dev, x.n[0], x.n[1], w.n[0], K)));
    return RUN(inner->xent(dev, loss_sum, count, logp, dx, dw, x, w, targets, args, scratch));
}

static enum code hostile_topk(struct device *dev, struct view ids, struct view logp, struct view x, struct view w, struct view bias, float logit_scale,
                              float logit_softcap, float temperature, void *scratch)
{
    const char *op = "topk";
    TRY(not_recording(op));
    NEED(op, ids, logp, x, w, bias);
    TRY(need(op, scratch, inner->topk_scratch(dev, x.n[0], x.n[1], w.n[0], ids.n[1])));
    return RUN(inner->topk(dev, ids, logp, x, w, bias, logit_scale, logit_softcap, temperature, scratch));
}

static enum code hostile_sumsq(struct device *dev, double *partial, const float *x, int64_t n)
{
    TRY(need("sumsq", partial, (size_t)((n + SUMSQ_BLOCK - 1) / SUMSQ_BLOCK) * sizeof *partial));
    TRY(need("sumsq", x, (size_t)n * sizeof *x));
    return RUN(inner->sumsq(dev, partial, x, n));
}

static enum code hostile_grad_clip(struct device *dev, double *norm, float *clip, int32_t *skip, const double *partial, int64_t n_partials,
                                   const double *loss_sum, double max_norm)
{
    const char *op = "grad_clip";
    TRY(need(op, norm, sizeof *norm));
    TRY(need(op, clip, sizeof *clip));
    TRY(need(op, skip, sizeof *skip));
    TRY(need(op, partial, (size_t)n_partials * sizeof *partial));
    TRY(need(op, loss_sum, sizeof *loss_sum));
    return RUN(inner->grad_clip(dev, norm, clip, skip, partial, n_partials, loss_sum, max_norm));
}

static enum code hostile_adamw(struct device *dev, float *p, float *g, float *m, float *v, int64_t n, const struct adamw_args *args)
{
    const char *op = "adamw";
    const void *const flat[] = {p, g, m, v};
    for (size_t i = 0; i < 4; i++)
        TRY(need(op, flat[i], (size_t)n * sizeof(float)));
    TRY(need(op, args->clip, sizeof *args->clip));
    TRY(need(op, args->skip, sizeof *args->skip));
    TRY(need(op, args->low, (size_t)n * sizeof *args->low));
    return RUN(inner->adamw(dev, p, g, m, v, n, args));
}

static enum code hostile_axpy(struct device *dev, float *y, const float *x, float a, int64_t n)
{
    TRY(need("axpy", y, (size_t)n * sizeof *y));
    TRY(need("axpy", x, (size_t)n * sizeof *x));
    return RUN(inner->axpy(dev, y, x, a, n));
}

static enum code hostile_fill(struct device *dev, float *y, float a, int64_t n)
{
    TRY(need("fill", y, (size_t)n * sizeof *y));
    return RUN(inner->fill(dev, y, a, n));
}

static enum code hostile_cast(struct device *dev, void *y, enum dtype y_type, const void *x, enum dtype x_type, int64_t n)
{
    TRY(need("cast", y, (size_t)n * dtype_bytes(y_type)));
    TRY(need("cast", x, (size_t)n * dtype_bytes(x_type)));
    return RUN(inner->cast(dev, y, y_type, x, x_type, n));
}

#define OVER(op) table.op = hostile_##op;
#define OVER_ALL(X)                                                                                                                  \
    X(device_alloc) X(device_free) X(device_copy) X(attention_fwd) X(attention_bwd) X(cache_write) X(rope_cache_write) X(attention_decode) X(matmul)     \
    X(bias_grad) X(embed_fwd) X(embed_bwd) X(norm_fwd) X(norm_add_fwd) X(norm_bwd) X(head_norm_fwd) X(head_norm_bwd) X(clip_fwd)              \
    X(clip_bwd) X(rope) X(act_fwd) X(act_bwd) X(xent) X(topk) X(sumsq) X(grad_clip) X(adamw) X(axpy) X(fill)         \
    X(cast) X(graph_begin) X(graph_end) X(graph_run) X(graph_free)

const struct backend *hostile_backend(const struct backend *of)
{
    static struct backend table;
    inner = of;
    table = *of; /* what takes no memory stays */
    table.name = "hostile";
    OVER_ALL(OVER)
    return &table;
}
