/* See bf16_backend.h. Every bf16 view of a call is replaced by an f32 copy; copies of outputs are rounded back after it. Memory of the
 * copies is malloc'ed: this is for tests. */
#include "bf16_backend.h"

#include <stdlib.h>
#include <string.h>

enum { VIEWS = 12 };
struct job { struct view narrow[VIEWS], wide[VIEWS]; int out[VIEWS], n; };

/* Copies between a strided bf16 view and the dense f32 one of the same shape. */
static void transfer(struct view narrow, struct view wide, int to_narrow)
{
    float *w = wide.p;
    uint16_t *base = narrow.p;
    for (int64_t a = 0; a < narrow.n[0]; a++)
        for (int64_t b = 0; b < narrow.n[1]; b++)
            for (int64_t c = 0; c < narrow.n[2]; c++)
                for (int64_t d = 0; d < narrow.n[3]; d++, w++) {
                    int64_t at = a * narrow.s[0] + (narrow.nd > 1 ? b * narrow.s[1] : 0) + (narrow.nd > 2 ? c * narrow.s[2] : 0) + (narrow.nd > 3 ? d * narrow.s[3] : 0);
                    if (to_narrow)
                        base[at] = bf16_from_f32(*w);
                    else
                        *w = f32_from_bf16(base[at]);
                }
}

static struct view add(struct job *j, struct view v, int read, int write)
{
    if (!v.p || v.dtype != DT_BF16)
        return v;
    CHECK(j->n < VIEWS);
    float *p = aligned_alloc(64, ((size_t)view_count(v) * sizeof *p + 127) / 64 * 64);
    CHECK(p);
    struct view wide = v.nd == 1   ? view_1d(p, DT_F32, v.n[0])
                       : v.nd == 2 ? view_2d(p, DT_F32, v.n[0], v.n[1])
                       : v.nd == 3 ? view_3d(p, DT_F32, v.n[0], v.n[1], v.n[2])
                                   : view_4d(p, DT_F32, v.n[0], v.n[1], v.n[2], v.n[3]);
    if (read)
        transfer(v, wide, 0);
    j->narrow[j->n] = v;
    j->wide[j->n] = wide;
    j->out[j->n++] = write;
    return wide;
}
#define IN(v) add(&j, (v), 1, 0)
#define OUT(v) add(&j, (v), 0, 1)
#define INOUT(v) add(&j, (v), 1, 1)

static enum code done(struct job *j, enum code c)
{
    for (int i = 0; i < j->n; i++) {
        if (j->out[i] && c == OK)
            transfer(j->narrow[i], j->wide[i], 1);
        free(j->wide[i].p);
    }
    return c;
}

static enum code bf16_embed_fwd(struct device *dev, struct view y, struct view ids, struct view table, struct view pos_table, struct view pos, float scale)
{
    struct job j = {.n = 0};
    struct view wy = OUT(y);
    return done(&j, cpu_embed_fwd(dev, wy, ids, table, pos_table, pos, scale));
}

static enum code bf16_embed_bwd(struct device *dev, struct view dtable, struct view dpos_table, struct view dy, struct view ids, struct view pos, float scale)
{
    struct job j = {.n = 0};
    struct view wdy = IN(dy);
    return done(&j, cpu_embed_bwd(dev, dtable, dpos_table, wdy, ids, pos, scale));
}

static enum code bf16_norm_fwd(struct device *dev, struct view y, struct view sum, struct view mean, struct view rstd, struct view x,
                               struct view residual, struct view w, struct view b, enum norm_kind kind, float eps)
{
    struct job j = {.n = 0};
    struct view wy = OUT(y), ws = OUT(sum), wx = IN(x), wr = IN(residual);
    return done(&j, cpu_norm_fwd(dev, wy, ws, mean, rstd, wx, wr, w, b, kind, eps));
}

static enum code bf16_norm_add_fwd(struct device *dev, struct view y, struct view mean, struct view rstd, struct view x, struct view base,
                                   struct view w, struct view b, enum norm_kind kind, float eps)
{
    struct job j = {.n = 0};
    struct view wy = OUT(y), wx = IN(x), wbase = IN(base);
    return done(&j, cpu_norm_add_fwd(dev, wy, mean, rstd, wx, wbase, w, b, kind, eps));
}

static enum code bf16_norm_bwd(struct device *dev, struct view dx, struct view dw, struct view db, struct view dy, struct view dresidual,
                               struct view x, struct view w, struct view mean, struct view rstd, enum norm_kind kind)
{
    struct job j = {.n = 0};
    struct view wdx = OUT(dx), wdy = IN(dy), wr = IN(dresidual), wx = IN(x);
    return done(&j, cpu_norm_bwd(dev, wdx, dw, db, wdy, wr, wx, w, mean, rstd, kind));
}

static enum code bf16_head_norm_fwd(struct device *dev, struct view y, struct view mean, struct view rstd, struct view x, struct view w,
                                    enum norm_kind kind, float eps)
{
    struct job j = {.n = 0};
    struct view wy = OUT(y), wx = IN(x);
    return done(&j, cpu_head_norm_fwd(dev, wy, mean, rstd, wx, w, kind, eps));
}

static enum code bf16_head_norm_bwd(struct device *dev, struct view dx, struct view dw, struct view dy, struct view x, struct view w,
                                    struct view mean, struct view rstd, enum norm_kind kind)
{
    struct job j = {.n = 0};
    struct view wdx = OUT(dx), wdy = IN(dy), wx = IN(x);
    return done(&j, cpu_head_norm_bwd(dev, wdx, dw, wdy, wx, w, mean, rstd, kind));
}

static enum code bf16_clip_fwd(struct device *dev, struct view y, struct view x, float limit)
{
    struct job j = {.n = 0};
    struct view wy = OUT(y), wx = IN(x);
    return done(&j, cpu_clip_fwd(dev, wy, wx, limit));
}

static enum code bf16_clip_bwd(struct device *dev, struct view dx, struct view x, float limit)
{
    struct job j = {.n = 0};
    struct view wdx = INOUT(dx), wx = IN(x);
    return done(&j, cpu_clip_bwd(dev, wdx, wx, limit));
}

static enum code bf16_matmul(struct device *dev, struct view c, struct view a, struct view b, struct view bias, int ta, int tb, float alpha, float beta)
{
    struct job j = {.n = 0};
    if (a.dtype != b.dtype)
        return fail(ERR_UNSUPPORTED, "matmul: a is %s and b is %s; they must be alike", dtype_name(a.dtype), dtype_name(b.dtype));
    struct view wc = INOUT(c), wa = IN(a), wb = IN(b);
    return done(&j, cpu_matmul(dev, wc, wa, wb, bias, ta, tb, alpha, beta));
}

static enum code bf16_bias_grad(struct device *dev, struct view db, struct view dy)
{
    struct job j = {.n = 0};
    struct view wdy = IN(dy);
    return done(&j, cpu_bias_grad(dev, db, wdy));
}

static enum code bf16_rope(struct device *dev, struct view x, struct view cos_table, struct view sin_table, struct view pos, int inverse)
{
    struct job j = {.n = 0};
    struct view wx = INOUT(x);
    return done(&j, cpu_rope(dev, wx, cos_table, sin_table, pos, inverse));
}

static enum code bf16_act_fwd(struct device *dev, struct view y, struct view gate, struct view up, enum mlp_kind kind)
{
    struct job j = {.n = 0};
    struct view wy = OUT(y), wg = IN(gate), wu = IN(up);
    return done(&j, cpu_act_fwd(dev, wy, wg, wu, kind));
}

static enum code bf16_act_bwd(struct device *dev, struct view dgate, struct view dup, struct view y, struct view dy, struct view gate,
                              struct view up, enum mlp_kind kind)
{
    struct job j = {.n = 0};
    struct view wdg = OUT(dgate), wdu = OUT(dup), wy = OUT(y), wdy = IN(dy), wg = IN(gate), wu = IN(up);
    return done(&j, cpu_act_bwd(dev, wdg, wdu, wy, wdy, wg, wu, kind));
}

static enum code bf16_attention_fwd(struct device *dev, struct view o, struct view lse, struct view q, struct view k, struct view v,
                                    const struct attention_args *args, void *scratch)
{
    struct job j = {.n = 0};
    struct view wo = OUT(o), wq = IN(q), wk = IN(k), wv = IN(v);
    return done(&j, cpu_attention_fwd(dev, wo, lse, wq, wk, wv, args, scratch));
}

static enum code bf16_attention_bwd(struct device *dev, struct view dq, struct view dk, struct view dv, struct view dout, struct view o,
                                    struct view lse, struct view q, struct view k, struct view v, const struct attention_args *args, void *scratch)
{
    struct job j = {.n = 0};
    struct view wdq = OUT(dq), wdk = OUT(dk), wdv = OUT(dv), wdo = IN(dout), wo = IN(o), wq = IN(q), wk = IN(k), wv = IN(v);
    return done(&j, cpu_attention_bwd(dev, wdq, wdk, wdv, wdo, wo, lse, wq, wk, wv, args, scratch));
}

static enum code bf16_cache_write(struct device *dev, const struct kv_layer *cache, struct view k, struct view v, struct view lens)
{
    struct job j = {.n = 0};
    struct view wk = IN(k), wv = IN(v);
    return done(&j, cpu_cache_write(dev, cache, wk, wv, lens));
}

static enum code bf16_rope_cache_write(struct device *dev, const struct kv_layer *cache, struct view q, struct view k, struct view v, struct view lens,
                                       struct view cos_table, struct view sin_table, struct view pos)
{
    struct job j = {.n = 0};
    struct view wq = INOUT(q), wk = INOUT(k), wv = IN(v);
    return done(&j, cpu_rope_cache_write(dev, cache, wq, wk, wv, lens, cos_table, sin_table, pos));
}

static enum code bf16_attention_decode(struct device *dev, struct view o, struct view q, const struct kv_layer *cache, struct view lens,
                                       const struct attention_args *args, int splits, void *scratch)
{
    struct job j = {.n = 0};
    struct view wo = OUT(o), wq = IN(q);
    return done(&j, cpu_attention_decode(dev, wo, wq, cache, lens, args, splits, scratch));
}

static enum code bf16_xent(struct device *dev, double *loss_sum, int64_t *count, struct view logp, struct view dx, struct view dw, struct view x,
                           struct view w, struct view targets, const struct xent_args *args, void *scratch)
{
    struct job j = {.n = 0};
    struct view wdx = OUT(dx), wx = IN(x), ww = IN(w);
    struct xent_args plain = *args;
    struct xent_teacher teacher;
    if (args->teacher) {
        teacher = *args->teacher;
        teacher.hidden = IN(teacher.hidden);
        teacher.head = IN(teacher.head);
        plain.teacher = &teacher;
    }
    return done(&j, cpu_xent(dev, loss_sum, count, logp, wdx, dw, wx, ww, targets, &plain, scratch));
}

static enum code bf16_topk(struct device *dev, struct view ids, struct view logp, struct view x, struct view w, struct view bias, float logit_scale,
                           float logit_softcap, float temperature, void *scratch)
{
    struct job j = {.n = 0};
    struct view wx = IN(x), ww = IN(w);
    return done(&j, cpu_topk(dev, ids, logp, wx, ww, bias, logit_scale, logit_softcap, temperature, scratch));
}

/* To a neighbour of x in bf16, the nearer one more likely; r is uniform in 16 bits. */
static uint16_t round_stochastically(float x, uint32_t r)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + (r & 0xffff)) >> 16);
}

static enum code bf16_adamw(struct device *dev, float *p, float *g, float *m, float *v, int64_t n, const struct adamw_args *args)
{
    struct adamw_args plain = *args;
    plain.low = NULL;
    if (!args->low || (args->skip && *args->skip))
        return cpu_adamw(dev, p ? p : m, g, m, v, n, &plain);
    float *q = p ? p : malloc((size_t)n * sizeof *q);
    CHECK(q);
    if (!p)
        convert_elements(q, DT_F32, args->low, DT_BF16, (size_t)n);
    enum code c = cpu_adamw(dev, q, g, m, v, n, &plain);
    for (int64_t i = 0; i < n && c == OK; i++)
        args->low[i] = p ? bf16_from_f32(q[i])
                         : round_stochastically(q[i], random_philox(args->seed, STREAM_TEST, (uint64_t)args->step, (uint64_t)(args->first + i)).v[0]);
    if (!p)
        free(q);
    return c;
}

static enum dtype bf16_activation_dtype(struct device *dev, enum dtype matrices)
{
    (void)dev;
    return matrices;
}

/* The rest is the CPU's own. */
#define bf16_device_open cpu_device_open
#define bf16_device_close cpu_device_close
#define bf16_device_alloc cpu_device_alloc
#define bf16_device_free cpu_device_free
#define bf16_device_copy cpu_device_copy
#define bf16_device_sync cpu_device_sync
#define bf16_device_name cpu_device_name
#define bf16_attention_scratch cpu_attention_scratch
#define bf16_cache_bytes cpu_cache_bytes
#define bf16_attention_decode_scratch cpu_attention_decode_scratch
#define bf16_xent_scratch cpu_xent_scratch
#define bf16_topk_scratch cpu_topk_scratch
#define bf16_sumsq cpu_sumsq
#define bf16_grad_clip cpu_grad_clip
#define bf16_axpy cpu_axpy
#define bf16_fill cpu_fill
#define bf16_cast cpu_cast
#define bf16_graph_begin cpu_graph_begin
#define bf16_graph_end cpu_graph_end
#define bf16_graph_run cpu_graph_run
#define bf16_graph_free cpu_graph_free
#define bf16_probe_bandwidth cpu_probe_bandwidth
#define bf16_probe_flops cpu_probe_flops

#define BF16_SLOT(op) .op = bf16_##op,
const struct backend *bf16_backend(void)
{
    static const struct backend table = {.name = "bf16", KERNEL_OPS(BF16_SLOT)};
    return &table;
}
