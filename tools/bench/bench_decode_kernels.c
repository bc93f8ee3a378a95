/* Decode kernels against the read bandwidth of the same run: the matrix-vector products and the cache attention of one token
 * of a 110M LLaMA shape (C 768, 12 layers, 12 heads of 64, F 2048, V 32000), every weight and cache byte in its own place, so
 * that nothing is found in a cache. Probe and rows alternate; the best of the rounds is printed, and the share of the probe.
 *   bench_decode_kernels [rounds]                       (about 3 s a round) */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"

#define LAYERS 12
static const int64_t C = 768, H = 12, D = 64, F = 2048, V = 32000;

struct model {
    struct arena weights, cache;
    enum dtype dtype;
    int64_t G;
    char *qkv[LAYERS], *out[LAYERS], *gate_up[LAYERS], *down[LAYERS], *head;
    struct kv_layer kv[LAYERS];
    double weight_bytes, cache_bytes;
};

static const struct backend *be;
static struct device *dev;

static struct view weight(char *p, enum dtype t, int64_t n, int64_t k) { return view_2d(p, t, n, k); }

static char *carve(struct model *m, int64_t n, int64_t k)
{
    size_t bytes = (size_t)(n * k) * dtype_bytes(m->dtype);
    char *p = arena_carve(&m->weights, bytes);
    memset(p, 0x3c, bytes); /* small numbers in f32 and bf16 */
    m->weight_bytes += (double)bytes;
    return p;
}

static void model_make(struct model *m, enum dtype dtype, int64_t G, int64_t S, int64_t B)
{
    memset(m, 0, sizeof *m);
    m->dtype = dtype;
    m->G = G;
    if (arena_reserve(&m->weights, "weights", ((size_t)1 << 20) * 560) != OK)
        exit(fail_exit("bench_decode_kernels", ERR_MEMORY));
    const size_t layer = be->cache_bytes(dev, B, G, S, D, dtype);
    if (arena_reserve(&m->cache, "cache", LAYERS * layer + 4096) != OK)
        exit(fail_exit("bench_decode_kernels", ERR_MEMORY));
    for (int l = 0; l < LAYERS; l++) {
        m->qkv[l] = carve(m, (H + 2 * G) * D, C);
        m->out[l] = carve(m, C, H * D);
        m->gate_up[l] = carve(m, 2 * F, C);
        m->down[l] = carve(m, C, F);
        m->kv[l] = (struct kv_layer){.p = arena_carve(&m->cache, layer), .dtype = dtype, .B = B, .G = G, .S = S, .D = D};
        memset(m->kv[l].p, 0x3c, layer);
    }
    m->head = carve(m, V, C);
}

static void model_free(struct model *m)
{
    arena_release(&m->weights);
    arena_release(&m->cache);
}

static void must(enum code code)
{
    if (code != OK)
        exit(fail_exit("bench_decode_kernels", code));
}

static struct { float x[16 * 768], qkv[16 * 2304], o[16 * 768], gate_up[16 * 4096], h[16 * 2048], logits[16 * 32000]; } act;
static void *scratch;

/* One token for each of B sequences at `len`; returns the seconds of everything and adds those of attention. */
static double token(struct model *m, int64_t B, int32_t len, double *attention)
{
    int32_t lens[16];
    for (int64_t b = 0; b < B; b++)
        lens[b] = len;
    struct view vl = view_1d(lens, DT_I32, B), x = view_2d(act.x, DT_F32, B, C), none = view_none();
    const int64_t width = (H + 2 * m->G) * D;
    struct view qkv = view_2d(act.qkv, DT_F32, B, width), q = {.p = act.qkv, .dtype = DT_F32, .nd = 4, .n = {B, 1, H, D}, .s = {width, width, D, 1}};
    struct view k = {.p = act.qkv + H * D, .dtype = DT_F32, .nd = 4, .n = {B, 1, m->G, D}, .s = {width, width, D, 1}}, v = k;
    v.p = act.qkv + (H + m->G) * D;
    struct view o4 = view_4d(act.o, DT_F32, B, 1, H, D), o = view_2d(act.o, DT_F32, B, H * D), gu = view_2d(act.gate_up, DT_F32, B, 2 * F),
                h = view_2d(act.h, DT_F32, B, F);
    const struct attention_args args = {.mask = attention_mask_causal(), .scale = 0.125f};
    double start = host_seconds(), in_attention = 0;
    for (int l = 0; l < LAYERS; l++) {
        must(be->matmul(dev, qkv, x, weight(m->qkv[l], m->dtype, width, C), none, 0, 1, 1, 0));
        double t = host_seconds();
        must(be->cache_write(dev, &m->kv[l], k, v, vl));
        must(be->attention_decode(dev, o4, q, &m->kv[l], vl, &args, 0, scratch));
        in_attention += host_seconds() - t;
        must(be->matmul(dev, x, o, weight(m->out[l], m->dtype, C, H * D), none, 0, 1, 1, 0));
        must(be->matmul(dev, gu, x, weight(m->gate_up[l], m->dtype, 2 * F, C), none, 0, 1, 1, 0));
        must(be->act_fwd(dev, h, view_slice(gu, 1, 0, F), view_slice(gu, 1, F, F), MLP_SWIGLU));
        must(be->matmul(dev, x, h, weight(m->down[l], m->dtype, C, F), none, 0, 1, 1, 0));
    }
    must(be->matmul(dev, view_2d(act.logits, DT_F32, B, V), x, weight(m->head, m->dtype, V, C), none, 0, 1, 1, 0));
    *attention += in_attention;
    return host_seconds() - start;
}

int main(int argc, char **argv)
{
    kernels_boot(argc, argv);
    host_threads_set(0);
    must(backend_find("cpu", &be));
    must(be->device_open(&dev, NULL));
    const int rounds = argc > 1 ? atoi(argv[1]) : 3;
    static const struct { enum dtype t; int64_t B, G; int32_t len; } rows[] = {
        {DT_F32, 1, 12, 128}, {DT_F32, 1, 12, 4090}, {DT_F32, 1, 1, 4090}, {DT_BF16, 1, 12, 128}, {DT_BF16, 1, 12, 4090}, {DT_BF16, 1, 1, 4090},
        {DT_F32, 8, 12, 1000}, {DT_F32, 8, 1, 1000}, {DT_BF16, 8, 12, 1000}, {DT_BF16, 8, 1, 1000}};
    printf("%s, %s\n%-5s %3s %3s %6s %9s %9s %9s %8s %8s %8s %9s\n", be->device_name(dev), host_cpu_name(), "dtype", "B", "G", "len", "ms/token", "tok/s",
           "MB", "GB/s", "probe", "share", "attn share");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct model m;
        const int64_t S = rows[i].len + 6;
        model_make(&m, rows[i].t, rows[i].G, S, rows[i].B);
        scratch = aligned_alloc(64, (be->attention_decode_scratch(dev, rows[i].B, 1, H, D, S) + 63) / 64 * 64);
        double attention = 0, best = 1e9, best_attention = 1e9, probe = 0;
        token(&m, rows[i].B, rows[i].len, &attention);
        for (int r = 0; r < rounds; r++) {
            double p = be->probe_bandwidth(dev);
            probe = p > probe ? p : probe;
            for (int n = 0; n < 6; n++) {
                attention = 0;
                double t = token(&m, rows[i].B, rows[i].len, &attention);
                best = t < best ? t : best;
                best_attention = attention < best_attention ? attention : best_attention;
            }
        }
        const double cache = 2.0 * (double)(LAYERS * rows[i].B * rows[i].G * D * rows[i].len) * (double)dtype_bytes(rows[i].t),
                     bytes = m.weight_bytes + cache;
        printf("%-5s %3d %3d %6d %9.3f %9.1f %9.1f %8.1f %8.1f %7.1f%% %8.1f%%\n", dtype_name(rows[i].t), (int)rows[i].B, (int)rows[i].G, rows[i].len,
               best * 1e3, (double)rows[i].B / best, bytes / 1e6, bytes / best / 1e9, probe / 1e9, 100 * bytes / best / probe,
               100 * cache / best_attention / probe);
        fflush(stdout);
        free(scratch);
        model_free(&m);
    }
    be->device_close(dev);
    return 0;
}
