/* The K/V cache and attention over it for a few new positions. Layout of the cache in loops.h; the arithmetic is
 * loops_decode.inc. Work items are (sequence, group, split of the positions); split results are merged by log-sum-exp in
 * split order, so a result depends on the number of splits only.
 * Scratch per item and row: max, sum, then o [Dv]. */
#include "cpu.h"

#include <math.h>
#include <omp.h>
#include <string.h>

#define TQ_MAX 8
#define SPLITS_MAX 16 /* more are clamped */

static int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
static int64_t k_width(enum dtype t, int64_t D) { return t == DT_BF16 ? round_up(D, 2) : D; }
static int64_t tile_elements(enum dtype t, int64_t D) { return DECODE_TILE * (k_width(t, D) + round_up(D, 16)); }
static int64_t tile_count(int64_t S) { return (S + DECODE_TILE - 1) / DECODE_TILE; }

size_t cpu_cache_bytes(struct device *dev, int64_t B, int64_t G, int64_t S, int64_t D, enum dtype dtype)
{
    (void)dev;
    return (size_t)(B * G * tile_count(S) * tile_elements(dtype, D)) * dtype_bytes(dtype);
}

static enum code check_cache(const char *op, const struct kv_layer *cache, struct view lens, int64_t Tq)
{
    if (cache->dtype != DT_F32 && cache->dtype != DT_BF16)
        return fail(ERR_UNSUPPORTED, "%s: a cache of %s; the CPU backend keeps f32 or bf16", op, dtype_name(cache->dtype));
    if (cache->D < 1 || cache->D > DECODE_D_MAX)
        return fail(ERR_UNSUPPORTED, "%s: head width %lld; the CPU backend does 1 to %d", op, (long long)cache->D, DECODE_D_MAX);
    TRY(cpu_check(op, "lens", lens, DT_I32, 1, cache->B, -1, 0));
    for (int64_t b = 0; b < cache->B; b++) {
        int32_t len = ((const int32_t *)lens.p)[b];
        if (len < 0 || len + Tq > cache->S)
            return fail(ERR_INTERNAL, "%s: sequence %lld holds %d positions and gets %lld more; the cache has room for %lld", op, (long long)b,
                        (int)len, (long long)Tq, (long long)cache->S);
    }
    return OK;
}

static enum code check_rows(const char *op, const char *name, struct view x, int64_t B, int64_t Tq, int64_t heads, int64_t D)
{
    TRY(cpu_check(op, name, x, DT_F32, 4, B, Tq, 0));
    if (x.n[2] != heads || x.n[3] != D)
        return fail(ERR_UNSUPPORTED, "%s: %s has %lld heads of %lld, must be %lld of %lld", op, name, (long long)x.n[2], (long long)x.n[3],
                    (long long)heads, (long long)D);
    return OK;
}

static const float *row_of(struct view x, int64_t b, int64_t t, int64_t h) { return view_f32(x) + b * x.s[0] + t * x.s[1] + h * x.s[2]; }

static char *tiles_of(const struct kv_layer *cache, int64_t b, int64_t g)
{
    return (char *)cache->p + (size_t)((b * cache->G + g) * tile_count(cache->S) * tile_elements(cache->dtype, cache->D)) * dtype_bytes(cache->dtype);
}

static void write_position(const struct kv_layer *cache, char *tiles, int64_t at, const float *k, const float *v)
{
    const int64_t D = cache->D, Dk = k_width(cache->dtype, D), Dv = round_up(D, 16), s = at % DECODE_TILE;
    const int64_t tile = at / DECODE_TILE * tile_elements(cache->dtype, D), k_part = tile + s / 16 * 16 * Dk, v_part = tile + DECODE_TILE * Dk + s * Dv;
    if (cache->dtype == DT_F32) {
        float *p = (float *)(void *)tiles;
        for (int64_t d = 0; d < D; d++)
            p[k_part + d * 16 + s % 16] = k[d];
        memcpy(p + v_part, v, (size_t)D * sizeof(float));
        return;
    }
    uint16_t *p = (uint16_t *)(void *)tiles;
    for (int64_t d = 0; d < D; d++)
        p[k_part + d / 2 * 32 + s % 16 * 2 + d % 2] = bf16_from_f32(k[d]);
    convert_elements(p + v_part, DT_BF16, v, DT_F32, (size_t)D);
}

enum code cpu_cache_write(struct device *dev, const struct kv_layer *cache, struct view k, struct view v, struct view lens)
{
    const char *op = "cache_write";
    if (k.nd != 4)
        return fail(ERR_UNSUPPORTED, "%s: k has %d axes, must be [batch, position, head, width]", op, k.nd);
    const int64_t B = cache->B, G = cache->G, Tq = k.n[1];
    TRY(check_rows(op, "k", k, B, Tq, G, cache->D));
    TRY(check_rows(op, "v", v, B, Tq, G, cache->D));
    TRY(check_cache(op, cache, lens, Tq));
#pragma omp parallel for collapse(2) num_threads(cpu_team(dev, B * G * Tq * cache->D * 16)) schedule(static)
    for (int64_t b = 0; b < B; b++)
        for (int64_t g = 0; g < G; g++)
            for (int64_t t = 0; t < Tq; t++)
                write_position(cache, tiles_of(cache, b, g), ((const int32_t *)lens.p)[b] + t, row_of(k, b, t, g), row_of(v, b, t, g));
    return OK;
}

/* [B,T,heads,D] whose rows are evenly spaced as [B*T,heads,D]. */
static enum code as_rows(const char *name, struct view x, struct view *rows)
{
    if (x.nd != 4 || (x.n[0] > 1 && x.s[0] != x.n[1] * x.s[1]))
        return fail(ERR_UNSUPPORTED, "rope_cache_write: the rows of %s are not evenly spaced", name);
    *rows = view_3d(x.p, x.dtype, x.n[0] * x.n[1], x.n[2], x.n[3]);
    rows->s[0] = x.s[1];
    rows->s[1] = x.s[2];
    return OK;
}

enum code cpu_rope_cache_write(struct device *dev, const struct kv_layer *cache, struct view q, struct view k, struct view v, struct view lens,
                               struct view cos_table, struct view sin_table, struct view pos)
{
    struct view q_rows, k_rows;
    TRY(as_rows("q", q, &q_rows));
    TRY(as_rows("k", k, &k_rows));
    TRY(cpu_rope(dev, q_rows, cos_table, sin_table, pos, 0));
    TRY(cpu_rope(dev, k_rows, cos_table, sin_table, pos, 0));
    return cpu_cache_write(dev, cache, k, v, lens);
}

/* ---- attention over the cache --------------------------------------------------------------------------------- */

struct problem {
    struct view o, q;
    const struct kv_layer *cache;
    const int32_t *lens;
    float scale;
    const float *slopes; /* [H] or NULL */
    int64_t window_left, Tq, H, R, splits;
    char *scratch;
};

struct partial { float *max, *sum, *o; }; /* [rows], [rows], [rows][Dv] */

static size_t item_bytes(int64_t rows, int64_t D) { return (size_t)round_up(rows * (2 + round_up(D, 16)) * (int64_t)sizeof(float), 64); }

static struct partial partial_of(const struct problem *p, int64_t item)
{
    const int64_t rows = p->Tq * p->R, D = p->cache->D;
    float *at = (float *)(void *)(p->scratch + (size_t)item * item_bytes(rows, D));
    return (struct partial){.o = at, .max = at + rows * round_up(D, 16), .sum = at + rows * round_up(D, 16) + rows};
}

size_t cpu_attention_decode_scratch(struct device *dev, int64_t B, int64_t Tq, int64_t H, int64_t D, int64_t S)
{
    (void)S;
    const int64_t splits = dev->threads > SPLITS_MAX ? dev->threads : SPLITS_MAX;
    return (size_t)(B * H * splits) * item_bytes(Tq, D) + 64; /* a group's rows take no more than its heads' one by one */
}

/* Enough splits for items to go round evenly; none when sequences and groups are many. */
static int64_t choose_splits(int64_t items, int threads)
{
    if (items >= 4 * threads)
        return 1;
    int64_t splits = 1;
    while (splits < threads && items * splits % threads != 0)
        splits++;
    return splits;
}

static void run_item(const struct device *dev, const struct problem *p, int64_t item, void *tile)
{
    const struct kv_layer *cache = p->cache;
    const int64_t split = item % p->splits, g = item / p->splits % cache->G, b = item / p->splits / cache->G;
    const int64_t rows = p->Tq * p->R, D = cache->D, Dv = round_up(D, 16), len = p->lens[b];
    float *q = tile, *scores = q + rows * DECODE_Q_STRIDE;
    struct partial out = partial_of(p, item);
    for (int64_t r = 0; r < rows; r++) {
        const float *from = row_of(p->q, b, r / p->R, g * p->R + r % p->R);
        for (int64_t d = 0; d < D; d++)
            q[r * DECODE_Q_STRIDE + d] = from[d] * p->scale;
        if (D % 2 == 1)
            q[r * DECODE_Q_STRIDE + D] = 0;
        out.max[r] = -INFINITY;
        out.sum[r] = 0;
    }
    memset(out.o, 0, (size_t)(rows * Dv) * sizeof(float));
    const struct decode_job job = {.tiles = tiles_of(cache, b, g), .bf16 = cache->dtype == DT_BF16, .D = D, .Dk = k_width(cache->dtype, D), .Dv = Dv,
                                   .rows = rows, .R = p->R, .len = len, .window_left = p->window_left,
                                   .slopes = p->slopes ? p->slopes + g * p->R : NULL, .q = q, .o = out.o, .max = out.max, .sum = out.sum,
                                   .scores = scores};
    int64_t first = p->window_left >= 0 && len > p->window_left ? (len - p->window_left) / DECODE_TILE : 0, last = tile_count(len + p->Tq);
    dev->loops->decode(&job, first + (last - first) * split / p->splits, first + (last - first) * (split + 1) / p->splits);
}

static void merge(const struct problem *p, int64_t bg)
{
    const int64_t rows = p->Tq * p->R, D = p->cache->D, Dv = round_up(D, 16), g = bg % p->cache->G, b = bg / p->cache->G;
    for (int64_t r = 0; r < rows; r++) {
        float *o = view_f32(p->o) + b * p->o.s[0] + r / p->R * p->o.s[1] + (g * p->R + r % p->R) * p->o.s[2], max = -INFINITY, sum = 0;
        for (int64_t s = 0; s < p->splits; s++) {
            float m = partial_of(p, bg * p->splits + s).max[r];
            max = m > max ? m : max;
        }
        for (int64_t d = 0; d < D; d++)
            o[d] = 0;
        for (int64_t s = 0; s < p->splits; s++) {
            struct partial part = partial_of(p, bg * p->splits + s);
            if (part.sum[r] == 0)
                continue; /* nothing visible in this split */
            float weight = part.max[r] == max ? 1.0f : expf(part.max[r] - max);
            sum += weight * part.sum[r];
            for (int64_t d = 0; d < D; d++)
                o[d] += weight * part.o[r * Dv + d];
        }
        float inv = 1.0f / sum; /* a row sees at least its own position */
        for (int64_t d = 0; d < D; d++)
            o[d] *= inv;
    }
}

enum code cpu_attention_decode(struct device *dev, struct view o, struct view q, const struct kv_layer *cache, struct view lens,
                               const struct attention_args *args, int splits, void *scratch)
{
    const char *op = "attention_decode";
    const struct attention_mask *m = &args->mask;
    if (q.nd != 4 || q.n[1] < 1 || q.n[1] > TQ_MAX)
        return fail(ERR_UNSUPPORTED, "%s: q has %d axes and %lld positions; it must be [batch, 1 to %d, head, width]", op, q.nd, (long long)q.n[1], TQ_MAX);
    const int64_t Tq = q.n[1], H = q.n[2], G = cache->G;
    if (G < 1 || H % G != 0)
        return fail(ERR_UNSUPPORTED, "%s: %lld query heads cannot be shared evenly by %lld key/value heads", op, (long long)H, (long long)G);
    if (Tq * (H / G) > DECODE_ROWS_MAX)
        return fail(ERR_UNSUPPORTED, "%s: %lld query heads per key/value head at %lld positions; the CPU backend does %d rows", op, (long long)(H / G),
                    (long long)Tq, DECODE_ROWS_MAX);
    TRY(check_rows(op, "q", q, cache->B, Tq, H, cache->D));
    TRY(check_rows(op, "o", o, cache->B, Tq, H, cache->D));
    TRY(check_cache(op, cache, lens, Tq));
    TRY(cpu_check(op, "ALiBi slopes", m->alibi_slopes, DT_F32, 1, H, -1, 1));
    if (!m->causal || m->dilation != NULL || m->global_index.p != NULL || m->rel_bias.p != NULL || m->blocks != NULL ||
        m->seg_q.p != NULL || args->dropout.rate != 0)
        return fail(ERR_UNSUPPORTED, "%s: the CPU backend decodes causally with an optional window and ALiBi; other masks, biases and dropout are not done",
                    op);
    CHECK(scratch != NULL && (uintptr_t)scratch % 64 == 0);
    struct problem p = {.o = o, .q = q, .cache = cache, .lens = lens.p, .scale = args->scale, .slopes = m->alibi_slopes.p,
                        .window_left = m->window_left, .Tq = Tq, .H = H, .R = H / G, .scratch = scratch};
    const int64_t pairs = cache->B * G, splits_max = dev->threads > SPLITS_MAX ? dev->threads : SPLITS_MAX;
    p.splits = splits > 0 ? splits : choose_splits(pairs, dev->threads);
    p.splits = p.splits > splits_max ? splits_max : p.splits;
    int64_t positions = 0;
    for (int64_t b = 0; b < cache->B; b++)
        positions += p.lens[b] + Tq;
    const int team = cpu_team(dev, positions * G * cache->D * 8);
#pragma omp parallel num_threads(team)
    {
#pragma omp for schedule(dynamic, 1)
        for (int64_t item = 0; item < pairs * p.splits; item++)
            run_item(dev, &p, item, cpu_tile(dev, omp_get_thread_num()));
#pragma omp for schedule(static)
        for (int64_t bg = 0; bg < pairs; bg++)
            merge(&p, bg);
    }
    return OK;
}
