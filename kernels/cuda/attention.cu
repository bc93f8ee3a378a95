/* Attention: argument checks, the choice of kernels, the carving of scratch. No arithmetic. */
#include "attention.cuh"

namespace CUDA_NS {

static int64_t tile_of(int64_t D) { return D <= 64 ? 64 : D <= 96 ? 96 : D <= 128 ? 128 : 256; }
static size_t round_256(size_t bytes) { return (bytes + 255) & ~(size_t)255; }

size_t cuda_attention_scratch(struct device *dev, int64_t B, int64_t T, int64_t S, int64_t H, int64_t G, int64_t D, int bwd)
{
    (void)dev, (void)S, (void)G;
    if (!bwd)
        return 256;
    const int64_t rows = B * H * (ceil_div(T, 128) * 128);
    return round_256((size_t)rows * 4) + round_256((size_t)(rows * tile_of(D)) * 4);
}

static enum code check_heads(const char *op, const char *name, struct view x, enum dtype type, int64_t B, int64_t T, int64_t heads, int64_t D)
{
    TRY(cuda_check(op, name, x, type, 4, B, T, 0));
    if (x.n[2] != heads || x.n[3] != D)
        return fail(ERR_UNSUPPORTED, "%s: %s has %lld heads of %lld, must be %lld of %lld", op, name, (long long)x.n[2], (long long)x.n[3],
                    (long long)heads, (long long)D);
    if (type == DT_BF16 && ((uintptr_t)x.p % 16 != 0 || x.s[0] % 8 != 0 || x.s[1] % 8 != 0 || x.s[2] % 8 != 0))
        return fail(ERR_UNSUPPORTED, "%s: the rows of %s are not 16-byte aligned", op, name);
    return OK;
}

static enum code check_mask(const char *op, const struct attention_args *args, int64_t B, int64_t T, int64_t S, int64_t H)
{
    const struct attention_mask *m = &args->mask;
    if (m->dilation != NULL || m->global_index.p != NULL || m->rel_bias.p != NULL || m->blocks != NULL)
        return fail(ERR_UNSUPPORTED, "%s: the CUDA backend does causal masks, windows, packed documents and ALiBi; other masks and biases are not done", op);
    if (args->dropout.rate != 0)
        return fail(ERR_UNSUPPORTED, "%s: the CUDA backend has no dropout in attention", op);
    if ((m->seg_q.p == NULL) != (m->seg_k.p == NULL))
        return fail(ERR_UNSUPPORTED, "%s: document ids are given for one of queries and keys only", op);
    TRY(cuda_check(op, "alibi_slopes", m->alibi_slopes, DT_F32, 1, H, -1, 1));
    TRY(cuda_check(op, "seg_q", m->seg_q, DT_I32, 2, B, T, 1));
    return cuda_check(op, "seg_k", m->seg_k, DT_I32, 2, B, S, 1);
}

static heads_view heads_of(struct view x)
{
    heads_view h = {x.p, x.s[0], x.s[1], x.s[2]};
    return h;
}

static enum code problem_make(attention_problem *p, const char *op, struct view o, struct view lse, struct view q, struct view k, struct view v,
                              const struct attention_args *args)
{
    TRY(cuda_check_type(op, q));
    if (q.nd != 4 || k.nd != 4)
        return fail(ERR_UNSUPPORTED, "%s: q and k must be [batch, position, head, width]", op);
    const int64_t B = q.n[0], T = q.n[1], H = q.n[2], D = q.n[3], S = k.n[1], G = k.n[2];
    if (G < 1 || H % G != 0)
        return fail(ERR_UNSUPPORTED, "%s: %lld query heads cannot be shared evenly by %lld key/value heads", op, (long long)H, (long long)G);
    if (D > 256 || (q.dtype == DT_BF16 && D % 8 != 0))
        return fail(ERR_UNSUPPORTED, "%s: head width %lld; the CUDA backend does multiples of 8 up to 256", op, (long long)D);
    TRY(check_heads(op, "q", q, q.dtype, B, T, H, D));
    TRY(check_heads(op, "k", k, q.dtype, B, S, G, D));
    TRY(check_heads(op, "v", v, q.dtype, B, S, G, D));
    TRY(check_heads(op, "o", o, q.dtype, B, T, H, D));
    TRY(cuda_check(op, "lse", lse, DT_F32, 3, B, H, 0));
    TRY(check_mask(op, args, B, T, S, H));
    if (T > INT32_MAX / 2 || S > INT32_MAX / 2 || args->mask.q_offset > INT32_MAX / 4 || args->mask.q_offset < -(INT32_MAX / 4))
        return fail(ERR_UNSUPPORTED, "%s: %lld queries and %lld keys; the CUDA backend takes up to 2^30", op, (long long)T, (long long)S);
    attention_problem r = {};
    r.o = heads_of(o), r.q = heads_of(q), r.k = heads_of(k), r.v = heads_of(v);
    r.lse = ptr<float>(lse), r.lse_batch = lse.s[0], r.lse_head = lse.s[1];
    r.B = (int)B, r.T = (int)T, r.S = (int)S, r.H = (int)H, r.G = (int)G, r.R = (int)(H / G), r.D = (int)D;
    r.causal = args->mask.causal, r.q_offset = (int)args->mask.q_offset;
    r.window_left = args->mask.window_left < 0 ? -1 : (int)least(args->mask.window_left, INT32_MAX / 4);
    r.window_right = args->mask.window_right < 0 ? -1 : (int)least(args->mask.window_right, INT32_MAX / 4);
    r.seg_q = ptr<const int32_t>(args->mask.seg_q), r.seg_k = ptr<const int32_t>(args->mask.seg_k);
    r.seg_q_batch = args->mask.seg_q.s[0], r.seg_k_batch = args->mask.seg_k.s[0];
    r.slopes = ptr<const float>(args->mask.alibi_slopes);
    r.scale = args->scale;
    r.unscale = args->scale != 0 ? 1 / args->scale : 0;
    r.deterministic = args->deterministic;
    r.Tp = ceil_div(T, 128) * 128, r.Dp = tile_of(D);
    *p = r;
    return OK;
}

/* f32; and a bias of raw scores that would not be finite. */
static bool plain_only(const attention_problem &p, enum dtype type) { return type == DT_F32 || (p.slopes != NULL && !(fabsf(p.scale) > 1e-20f)); }

enum code cuda_attention_fwd(struct device *dev, struct view o, struct view lse, struct view q, struct view k, struct view v,
                             const struct attention_args *args, void *scratch)
{
    attention_problem p;
    (void)scratch;
    TRY(problem_make(&p, "attention_fwd", o, lse, q, k, v, args));
    if (p.B * p.T == 0)
        return OK;
    if (plain_only(p, q.dtype))
        return attention_fwd_plain(dev, p, q.dtype);
    return dev->arch >= 90 ? attention_fwd_sm90(dev, p) : attention_fwd_sm80(dev, p);
}

enum code cuda_attention_bwd(struct device *dev, struct view dq, struct view dk, struct view dv, struct view dout, struct view o, struct view lse,
                             struct view q, struct view k, struct view v, const struct attention_args *args, void *scratch)
{
    const char *op = "attention_bwd";
    attention_problem p;
    TRY(problem_make(&p, op, o, lse, q, k, v, args));
    TRY(check_heads(op, "dq", dq, q.dtype, p.B, p.T, p.H, p.D));
    TRY(check_heads(op, "dk", dk, q.dtype, p.B, p.S, p.G, p.D));
    TRY(check_heads(op, "dv", dv, q.dtype, p.B, p.S, p.G, p.D));
    TRY(check_heads(op, "dout", dout, q.dtype, p.B, p.T, p.H, p.D));
    if (p.B == 0)
        return OK;
    if (p.T == 0)
        return fail(ERR_UNSUPPORTED, "%s: no queries, so nothing would write dk and dv", op);
    CHECK(scratch != NULL && (uintptr_t)scratch % 64 == 0);
    p.dout = heads_of(dout), p.dq = heads_of(dq), p.dk = heads_of(dk), p.dv = heads_of(dv);
    p.delta = (float *)scratch;
    p.dq_sum = (float *)((char *)scratch + round_256((size_t)(p.B * p.H * p.Tp) * 4));
    TRY(attention_delta(dev, p, q.dtype));
    if (plain_only(p, q.dtype))
        return attention_bwd_plain(dev, p, q.dtype);
    return dev->arch >= 90 ? attention_bwd_sm90(dev, p) : attention_bwd_sm80(dev, p);
}

} // namespace CUDA_NS
