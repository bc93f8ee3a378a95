/* Attention on the CPU: checks, refusals, the table of visible keys, and the choice of instruction set. No arithmetic.
 * Masks done here: causal, q_offset, window_left/right, segment ids; ALiBi is left to the implementations. Dropout, dilation, global
 * tokens, relative bias and block-sparse layouts are refused. */
#include "attention.h"
#include "cpu.h"

#define D_MAX 256 /* the accumulators of one row must fit the tiles of every implementation */

static const struct attention_kernels *kernels_of(enum isa isa)
{
#ifndef GQAKIT_NO_SIMD
    if (isa == ISA_AVX512)
        return &attention_avx512;
    if (isa == ISA_AVX2)
        return &attention_avx2;
#endif
    (void)isa;
    return &attention_plain;
}

static size_t round_64(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

/* Two tables of int32 [B,T] before the scratch of the implementation. */
static size_t table_bytes(int64_t B, int64_t T) { return round_64((size_t)B * (size_t)T * 2 * sizeof(int32_t)); }

/* ---- checks --------------------------------------------------------------------------------------------------- */

static enum code check_view(const char *op, const char *name, struct view x, int nd, const int64_t *n)
{
    if (x.p == NULL || x.dtype != DT_F32)
        return fail(ERR_UNSUPPORTED, "%s: %s is %s; the CPU's attention takes f32", op, name, x.p == NULL ? "missing" : dtype_name(x.dtype));
    for (int i = 0; i < nd; i++)
        if (x.nd != nd || x.n[i] != n[i])
            return fail(ERR_UNSUPPORTED, "%s: %s has %d axes, [%lld,%lld,%lld,%lld]; axis %d of %d must be %lld", op, name, x.nd, (long long)x.n[0],
                        (long long)x.n[1], (long long)x.n[2], (long long)x.n[3], i, nd, (long long)n[i]);
    if (x.n[nd - 1] > 1 && x.s[nd - 1] != 1)
        return fail(ERR_UNSUPPORTED, "%s: the last axis of %s has stride %lld, must be 1", op, name, (long long)x.s[nd - 1]);
    return OK;
}

static enum code check_features(const char *op, const struct attention_args *args)
{
    const struct attention_mask *m = &args->mask;
    const char *missing = m->dilation != NULL         ? "dilated windows"
                          : m->global_index.p != NULL ? "global tokens"
                          : m->rel_bias.p != NULL     ? "relative position bias"
                          : m->blocks != NULL         ? "block-sparse layouts"
                          : args->dropout.rate != 0   ? "attention dropout"
                                                      : NULL;
    if (missing != NULL)
        return fail(ERR_UNSUPPORTED, "%s: the CPU backend does not do %s yet", op, missing);
    if ((m->seg_q.p == NULL) != (m->seg_k.p == NULL))
        return fail(ERR_UNSUPPORTED, "%s: segment ids are given for %s only; give both or none", op, m->seg_q.p != NULL ? "queries" : "keys");
    return OK;
}

static enum code check_segments(const char *op, const char *name, struct view ids, int64_t B, int64_t T)
{
    if (ids.dtype != DT_I32 || ids.nd != 2 || ids.n[0] != B || ids.n[1] != T)
        return fail(ERR_UNSUPPORTED, "%s: %s must be i32 [%lld,%lld], is %s [%lld,%lld]", op, name, (long long)B, (long long)T, dtype_name(ids.dtype),
                    (long long)ids.n[0], (long long)ids.n[1]);
    for (int64_t b = 0; b < B; b++)
        for (int64_t t = 1; t < T; t++) {
            const int32_t *id = (const int32_t *)ids.p + b * ids.s[0] + t * ids.s[1];
            if (id[0] < id[-ids.s[1]])
                return fail(ERR_UNSUPPORTED, "%s: %s of sequence %lld fall from %d to %d at position %lld; they must not decrease", op, name,
                            (long long)b, (int)id[-ids.s[1]], (int)id[0], (long long)t);
        }
    return OK;
}

/* Fills the dims and the forward's views; every refusal of forward and backward that does not concern gradients. */
static enum code problem_check(struct attention_problem *p, const char *op, struct device *dev, struct view o, struct view lse, struct view q,
                               struct view k, struct view v, const struct attention_args *args)
{
    if (q.nd != 4 || k.nd != 4)
        return fail(ERR_UNSUPPORTED, "%s: q has %d axes and k %d; both must be [batch, position, head, width]", op, q.nd, k.nd);
    *p = (struct attention_problem){.B = q.n[0], .T = q.n[1], .S = k.n[1], .H = q.n[2], .G = k.n[2], .D = q.n[3], .scale = args->scale,
                                    .slopes = args->mask.alibi_slopes.p, .q_offset = args->mask.q_offset, .threads = dev->threads, .o = o, .lse = lse, .q = q, .k = k, .v = v};
    if (p->G < 1 || p->H < 1 || p->H % p->G != 0)
        return fail(ERR_UNSUPPORTED, "%s: %lld query heads cannot be shared evenly by %lld key/value heads", op, (long long)p->H, (long long)p->G);
    if (p->D < 1 || p->D > D_MAX)
        return fail(ERR_UNSUPPORTED, "%s: head width %lld; the CPU backend does 1 to %d", op, (long long)p->D, D_MAX);
    if (p->S >= INT32_MAX || p->T >= INT32_MAX)
        return fail(ERR_UNSUPPORTED, "%s: %lld positions; the CPU backend does fewer than 2^31", op, (long long)attention_max(p->S, p->T));
    p->R = p->H / p->G;
    const int64_t rows[4] = {p->B, p->T, p->H, p->D}, keys[4] = {p->B, p->S, p->G, p->D}, stats[3] = {p->B, p->H, p->T};
    TRY(check_view(op, "q", q, 4, rows));
    TRY(check_view(op, "k", k, 4, keys));
    TRY(check_view(op, "v", v, 4, keys));
    TRY(check_view(op, "o", o, 4, rows));
    TRY(check_view(op, "lse", lse, 3, stats));
    TRY(check_features(op, args));
    if (p->slopes != NULL)
        TRY(check_view(op, "ALiBi slopes", args->mask.alibi_slopes, 1, &p->H));
    if (args->mask.seg_q.p != NULL) {
        TRY(check_segments(op, "segment ids of the queries", args->mask.seg_q, p->B, p->T));
        TRY(check_segments(op, "segment ids of the keys", args->mask.seg_k, p->B, p->S));
    }
    return OK;
}

/* ---- which keys a query sees ---------------------------------------------------------------------------------- */

/* Both ends only grow with t: each is a maximum or minimum of limits that only grow, and hi is raised to lo, not lo lowered. */
static void fill_tables(struct attention_problem *p, const struct attention_mask *m, void *scratch)
{
    int32_t *lo_table = scratch, *hi_table = lo_table + p->B * p->T;
    for (int64_t b = 0; b < p->B; b++) {
        int64_t seg_lo = 0, seg_hi = 0; /* the keys of the current query's document; both walk forward with t */
        for (int64_t t = 0; t < p->T; t++) {
            int64_t at = t + m->q_offset, lo = 0, hi = p->S;
            if (m->seg_q.p != NULL) {
                int32_t id = ((const int32_t *)m->seg_q.p)[b * m->seg_q.s[0] + t * m->seg_q.s[1]];
                const int32_t *seg_k = (const int32_t *)m->seg_k.p + b * m->seg_k.s[0];
                while (seg_lo < p->S && seg_k[seg_lo * m->seg_k.s[1]] < id)
                    seg_lo++;
                seg_hi = attention_max(seg_hi, seg_lo);
                while (seg_hi < p->S && seg_k[seg_hi * m->seg_k.s[1]] == id)
                    seg_hi++;
                lo = seg_lo;
                hi = seg_hi;
            }
            if (m->causal)
                hi = attention_min(hi, at + 1);
            if (m->window_right >= 0)
                hi = attention_min(hi, at + m->window_right + 1);
            if (m->window_left >= 0)
                lo = attention_max(lo, at - m->window_left);
            lo = attention_min(lo, p->S);
            lo_table[b * p->T + t] = (int32_t)lo;
            hi_table[b * p->T + t] = (int32_t)attention_max(hi, lo);
        }
    }
    p->key_lo = lo_table;
    p->key_hi = hi_table;
    p->scratch = (char *)scratch + table_bytes(p->B, p->T);
}

/* ---- the operations ------------------------------------------------------------------------------------------- */

struct attention_mask attention_mask_causal(void)
{
    return (struct attention_mask){.causal = 1, .window_left = -1, .window_right = -1};
}

enum code cpu_attention_fwd(struct device *dev, struct view o, struct view lse, struct view q, struct view k, struct view v,
                            const struct attention_args *args, void *scratch)
{
    struct attention_problem p;
    TRY(problem_check(&p, "attention_fwd", dev, o, lse, q, k, v, args));
    CHECK(scratch != NULL && (uintptr_t)scratch % 64 == 0);
    fill_tables(&p, &args->mask, scratch);
    kernels_of(dev->isa)->fwd(&p);
    return OK;
}

enum code cpu_attention_bwd(struct device *dev, struct view dq, struct view dk, struct view dv, struct view dout, struct view o, struct view lse,
                            struct view q, struct view k, struct view v, const struct attention_args *args, void *scratch)
{
    struct attention_problem p;
    TRY(problem_check(&p, "attention_bwd", dev, o, lse, q, k, v, args));
    TRY(check_view("attention_bwd", "dq", dq, 4, q.n));
    TRY(check_view("attention_bwd", "dk", dk, 4, k.n));
    TRY(check_view("attention_bwd", "dv", dv, 4, k.n));
    TRY(check_view("attention_bwd", "dout", dout, 4, q.n));
    p.dq = dq;
    p.dk = dk;
    p.dv = dv;
    p.dout = dout;
    CHECK(scratch != NULL && (uintptr_t)scratch % 64 == 0);
    fill_tables(&p, &args->mask, scratch);
    kernels_of(dev->isa)->bwd(&p);
    return OK;
}

size_t cpu_attention_scratch(struct device *dev, int64_t B, int64_t T, int64_t S, int64_t H, int64_t G, int64_t D, int bwd)
{
    CHECK(G > 0 && H % G == 0);
    const struct attention_problem p = {.B = B, .T = T, .S = S, .H = H, .G = G, .D = D, .R = H / G, .threads = dev->threads};
    const struct attention_kernels *kernels = kernels_of(dev->isa);
    size_t bytes = kernels->fwd_scratch(&p);
    if (bwd && kernels->bwd_scratch(&p) > bytes)
        bytes = kernels->bwd_scratch(&p);
    return 64 + table_bytes(B, T) + round_64(bytes);
}
