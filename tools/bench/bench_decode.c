/* Speed of one decode step of a LLaMA shape against plain reading: before every step the same number of bytes is read from an array
 * of its own (sumsq), since the bandwidth of a shared machine changes within seconds. Share = median read time / median step time.
 *   bench_decode [--G 12,1] [--depth 128,4096] [--C 768 --L 12 --H 12 --D 64 --F 2048 --V 32000 --B 1 --tokens 24 --threads 0]
 * Bytes per step by convention (model.h): all weights once, with a tied table as the head, plus the K/V cache up to the depth. The
 * quartiles are of the shares of single pairs of read and step. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include "bench_arch.h"

struct options { int64_t C, L, H, D, F, V, B, tokens, threads; struct cli_ints G, depth; };

static const struct cli_flag FLAGS[] = {
    {"--G", CLI_INTS, offsetof(struct options, G), "LIST", "key/value heads (H,1)"},
    {"--depth", CLI_INTS, offsetof(struct options, depth), "LIST", "cached positions (128,4096)"},
    {"--C", CLI_INT, offsetof(struct options, C), "N", "model width (768)"},
    {"--L", CLI_INT, offsetof(struct options, L), "N", "layers (12)"},
    {"--H", CLI_INT, offsetof(struct options, H), "N", "query heads (12)"},
    {"--D", CLI_INT, offsetof(struct options, D), "N", "head width (64)"},
    {"--F", CLI_INT, offsetof(struct options, F), "N", "MLP width (2048)"},
    {"--V", CLI_INT, offsetof(struct options, V), "N", "vocabulary (32000)"},
    {"--B", CLI_INT, offsetof(struct options, B), "N", "sequences (1)"},
    {"--tokens", CLI_INT, offsetof(struct options, tokens), "N", "timed steps (24)"},
    {"--threads", CLI_INT, offsetof(struct options, threads), "N", "threads, 0 = all (0)"},
};

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

struct samples { double *step, *read, *share; }; /* seconds, seconds, read / step; [tokens] each */

static enum code sample(const struct options *o, const struct backend *be, struct device *dev, struct model *m, int64_t bytes, struct samples s)
{
    struct arena a = {0};
    int64_t n = bytes / (int64_t)sizeof(float), parts = n / SUMSQ_BLOCK + 1;
    float *logits = malloc((size_t)(o->B * o->V) * sizeof *logits);
    int32_t *ids = calloc((size_t)o->B, sizeof *ids);
    CHECK(logits && ids);
    TRY(be->device_alloc(dev, &a, "the array read beside", (size_t)n * sizeof(float) + (size_t)parts * sizeof(double) + 4096));
    float *x = arena_carve(&a, (size_t)n * sizeof(float));
    double *partial = arena_carve(&a, (size_t)parts * sizeof(double));
    TRY(be->fill(dev, x, 1.0f, n));
    for (int64_t i = -2; i < o->tokens; i++) {
        double start = host_seconds();
        TRY(be->sumsq(dev, partial, x, n));
        TRY(be->device_sync(dev));
        double middle = host_seconds();
        TRY(model_decode(m, ids, o->B, 1, logits));
        double end = host_seconds();
        if (i < 0)
            continue;
        s.read[i] = middle - start;
        s.step[i] = end - middle;
        s.share[i] = s.read[i] / s.step[i];
    }
    be->device_free(dev, &a);
    free(logits);
    free(ids);
    return OK;
}

static enum code measure(const struct options *o, const struct backend *be, struct device *dev, int64_t G, int64_t depth, enum dtype type)
{
    struct arch arch;
    struct model *m;
    struct model_options options = {.dtype = type, .cache_B = o->B, .cache_S = depth + o->tokens + 4, .cache_dtype = type};
    size_t n = (size_t)o->tokens;
    double *times = malloc(3 * n * sizeof *times);
    CHECK(times);
    struct samples s = {times, times + n, times + 2 * n};
    struct bench_shape shape = {o->C, o->L, o->H, G, o->D, o->F, o->V, options.cache_S, 1};
    TRY(bench_arch(&arch, &shape, "bench_decode"));
    TRY(model_open(&m, &arch, be, dev, &options));
    TRY(model_init(m, 0.02, 1));
    double bytes = model_decode_bytes(&arch, o->B, depth + o->tokens / 2, type, type);
    model_cache_set_length(m, depth);
    TRY(sample(o, be, dev, m, (int64_t)bytes, s));
    for (int i = 0; i < 3; i++)
        qsort(times + (size_t)i * n, n, sizeof *times, compare);
    double step = s.step[n / 2], read = s.read[n / 2];
    printf("%4s  G %3lld  depth %5lld  %7.2f ms  %7.1f tokens/s  %6.1f MB  %5.1f GB/s = %5.1f%% of %5.1f read in turns (pairs %.1f - %.1f%%)\n",
           dtype_name(type), (long long)G, (long long)depth, 1e3 * step, (double)o->B / step, bytes * 1e-6, bytes / step * 1e-9, 100.0 * read / step,
           bytes / read * 1e-9, 100.0 * s.share[n / 4], 100.0 * s.share[n - 1 - n / 4]);
    model_close(m);
    arch_free(&arch);
    free(times);
    return OK;
}

static enum code run(const struct options *o)
{
    const struct backend *be;
    struct device *dev;
    struct device_options device = {.threads = (int)o->threads};
    static const enum dtype TYPES[] = {DT_F32, DT_BF16};
    TRY(backend_find("cpu", &be));
    TRY(be->device_open(&dev, &device));
    printf("%s, B %lld\n", be->device_name(dev), (long long)o->B);
    for (int t = 0; t < 2; t++)
        for (int d = 0; d < o->depth.n; d++)
            for (int g = 0; g < o->G.n; g++)
                TRY(measure(o, be, dev, o->G.v[g], o->depth.v[d], TYPES[t]));
    be->device_close(dev);
    return OK;
}

int main(int argc, char **argv)
{
    kernels_boot(argc, argv);
    struct options o = {.C = 768, .L = 12, .H = 12, .D = 64, .F = 2048, .V = 32000, .B = 1, .tokens = 24};
    struct cli cli = {"bench_decode", "[flags]", "Speed of decode steps of a LLaMA shape.", FLAGS, sizeof FLAGS / sizeof *FLAGS, 0, 0};
    struct cli_words words;
    int shown = 0;
    enum code c = cli_parse(&cli, argc, argv, &o, &words, &shown);
    if (c == OK && !shown) {
        host_threads_set((int)o.threads);
        if (!o.G.n) {
            o.G.n = 2;
            o.G.v[0] = o.H;
            o.G.v[1] = 1;
        }
        if (!o.depth.n) {
            o.depth.n = 2;
            o.depth.v[0] = 128;
            o.depth.v[1] = 4096;
        }
        c = run(&o);
    }
    return fail_exit("bench_decode", c);
}
