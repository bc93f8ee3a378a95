/* Speed of decode attention on a GPU against copying: for every number of key/value heads, context and batch, the K/V bytes that a
 * step must read over the time of attention_decode, as a share of the copy bandwidth (read + write) probed in this run.
 *   bench_cuda_decode [--G 1,8,32 --context 4096,16384,65536,131072 --batch 1,8,64 --H 32 --D 128 --device auto --json]
 * The caches are read in turn, enough of them to be far larger than the L2 cache, and their calls are recorded as one graph, as the
 * decode loop runs them. Contexts that do not fit into --memory are left out. */
#include <math.h>
#include <stddef.h>
#include <stdio.h>

#include "bench_device.h"

struct options {
    struct cli_ints G, context, batch;
    int64_t H, D, memory;
    const char *device;
    double seconds;
    int json;
};

static const struct cli_flag FLAGS[] = {
    {"--G", CLI_INTS, offsetof(struct options, G), "LIST", "key/value heads (1,8,32)"},
    {"--context", CLI_INTS, offsetof(struct options, context), "LIST", "cached positions (4096,16384,65536,131072)"},
    {"--batch", CLI_INTS, offsetof(struct options, batch), "LIST", "sequences (1,8,64)"},
    {"--H", CLI_INT, offsetof(struct options, H), "N", "query heads (32)"},
    {"--D", CLI_INT, offsetof(struct options, D), "N", "head width (128)"},
    {"--memory", CLI_INT, offsetof(struct options, memory), "MiB", "most memory for caches (65536)"},
    {"--device", CLI_STR, offsetof(struct options, device), "auto|cpu|cuda", "default auto"},
    {"--seconds", CLI_FLOAT, offsetof(struct options, seconds), "S", "time per figure (0.15)"},
    {"--json", CLI_SET, offsetof(struct options, json), NULL, "JSON lines"},
};

enum { CACHES_MAX = 64 };
#define SPREAD_BYTES ((int64_t)512 << 20) /* what one pass over the caches should read at least: eight times an H200's L2 */

struct call {
    struct view o, q, lens;
    struct kv_layer cache[CACHES_MAX];
    int n;
    struct attention_args args;
    void *scratch;
    struct graph *graph;
};

static enum code once_through(struct bench *b, void *context)
{
    struct call *c = context;
    if (c->graph)
        return b->be->graph_run(b->dev, c->graph);
    for (int i = 0; i < c->n; i++)
        TRY(b->be->attention_decode(b->dev, c->o, c->q, &c->cache[i], c->lens, &c->args, 0, c->scratch));
    return OK;
}

static void carve(struct bench *b, struct call *c, int64_t B, int64_t H, int64_t G, int64_t S, int64_t D)
{
    const int64_t bytes = (int64_t)b->be->cache_bytes(b->dev, B, G, S, D, DT_BF16);
    c->q = bench_view(b, b->type, B, 1, H, D);
    c->o = bench_view(b, b->type, B, 1, H, D);
    c->lens = view_1d(bench_view(b, DT_I32, 1, 1, 1, B).p, DT_I32, B);
    for (int i = 0; i < c->n; i++) {
        struct kv_layer k = {bench_view(b, DT_U8, 1, 1, 1, bytes).p, DT_BF16, B, G, S, D};
        c->cache[i] = k;
    }
    c->scratch = bench_view(b, DT_U8, 1, 1, 1, (int64_t)b->be->attention_decode_scratch(b->dev, B, 1, H, D, S) + 64).p;
}

static enum code prepare(struct bench *b, struct call *c, int64_t B, int64_t S)
{
    int recording = 0;
    int32_t *lens = malloc((size_t)B * sizeof *lens);
    CHECK(lens);
    for (int64_t i = 0; i < B; i++)
        lens[i] = (int32_t)(S - 1);
    enum code done = b->be->device_copy(b->dev, c->lens.p, lens, (size_t)B * sizeof *lens);
    free(lens);
    TRY(done);
    TRY(bench_random(b, c->q, 1));
    for (int i = 0; i < c->n; i++) /* whatever the layout: what a backend keeps behind the keys and values (counters) must stay zero */
        TRY(bench_random(b, view_1d(c->cache[i].p, DT_BF16, 2 * B * c->cache[i].G * S * c->cache[i].D), (uint64_t)i + 2));
    TRY(once_through(b, c)); /* what is chosen at the first call is chosen before the recording */
    TRY(b->be->graph_begin(b->dev, &recording));
    if (!recording)
        return OK;
    TRY(once_through(b, c));
    return b->be->graph_end(b->dev, &c->graph);
}

static enum code shape(const struct options *o, struct bench *b, double copy, int64_t G, int64_t S, int64_t B)
{
    struct call c;
    const int64_t bytes = 2 * B * G * S * o->D * 2; /* of K and V of one layer */
    double seconds = 0;
    memset(&c, 0, sizeof c);
    if (bytes / 1048576 > o->memory)
        return OK;
    c.n = (int)(SPREAD_BYTES / bytes < 1 ? 1 : SPREAD_BYTES / bytes > CACHES_MAX ? CACHES_MAX : SPREAD_BYTES / bytes);
    if (o->memory < 1024) /* a rehearsal */
        c.n = 2;
    c.args.mask = attention_mask_causal();
    c.args.scale = 1.0f / sqrtf((float)o->D);
    bench_measure(b);
    carve(b, &c, B, o->H, G, S, o->D);
    TRY(bench_reserve(b));
    carve(b, &c, B, o->H, G, S, o->D);
    enum code done = prepare(b, &c, B, S);
    if (done == OK)
        done = bench_time(b, once_through, &c, o->seconds, &seconds);
    b->be->graph_free(b->dev, c.graph);
    TRY(done);
    const double rate = (double)(bytes * c.n) / seconds;
    if (o->json)
        printf("{\"bench\": \"decode\", \"who\": \"gqakit\", \"B\": %lld, \"H\": %lld, \"G\": %lld, \"D\": %lld, \"context\": %lld, \"us\": %.3f, "
               "\"gb_s\": %.1f, \"copy_gb_s\": %.1f, \"share\": %.4f}\n",
               (long long)B, (long long)o->H, (long long)G, (long long)o->D, (long long)S, 1e6 * seconds / c.n, rate * 1e-9, copy * 1e-9,
               rate / copy);
    else
        printf("G %2lld/%lld  D %lld  B %3lld  context %7lld  %10.2f us  %8.1f GB/s = %5.1f%% of copying (%.0f)\n", (long long)G, (long long)o->H,
               (long long)o->D, (long long)B, (long long)S, 1e6 * seconds / c.n, rate * 1e-9, 100.0 * rate / copy, copy * 1e-9);
    fflush(stdout);
    return OK;
}

static enum code run(const struct options *o)
{
    struct bench b;
    enum code c = bench_open(&b, o->device);
    double copy = c == OK ? b.be->probe_bandwidth(b.dev) : 0.0;
    for (int s = 0; c == OK && s < o->context.n; s++)
        for (int n = 0; c == OK && n < o->batch.n; n++)
            for (int g = 0; c == OK && g < o->G.n; g++) {
                c = shape(o, &b, copy, o->G.v[g], o->context.v[s], o->batch.v[n]);
                bench_release(&b);
            }
    bench_close(&b);
    return c;
}

int main(int argc, char **argv)
{
    kernels_boot(argc, argv);
    struct options o = {.G = {3, {1, 8, 32}},
                        .context = {4, {4096, 16384, 65536, 131072}},
                        .batch = {3, {1, 8, 64}},
                        .H = 32,
                        .D = 128,
                        .memory = 65536,
                        .seconds = 0.15};
    struct cli cli = {"bench_cuda_decode", "[flags]", "Speed of decode attention on a GPU.", FLAGS, sizeof FLAGS / sizeof *FLAGS, 0, 0};
    struct cli_words words;
    int shown = 0;
    enum code c = cli_parse(&cli, argc, argv, &o, &words, &shown);
    if (c == OK && !shown) {
        host_threads_set(0);
        c = run(&o);
    }
    return fail_exit("bench_cuda_decode", c);
}
