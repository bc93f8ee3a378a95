/* Speed of attention on a GPU: forward and backward (with and without float atomics), causal, bf16, B x T constant as in the papers
 * on FlashAttention.
 *   bench_cuda_attention [--D 64,128 --T 2048,4096,8192,16384 --H 32 --G 8,32 --tokens 16384 --device auto --json]
 * FLOPs by convention: forward 4 B H D T T / 2, backward 2.5 times that. The median of seven rounds of calls. */
#include <math.h>
#include <stddef.h>
#include <stdio.h>

#include "bench_device.h"

struct options {
    struct cli_ints D, T, G;
    int64_t H, tokens;
    const char *device;
    double seconds;
    int json;
};

static const struct cli_flag FLAGS[] = {
    {"--D", CLI_INTS, offsetof(struct options, D), "LIST", "head widths (64,128)"},
    {"--T", CLI_INTS, offsetof(struct options, T), "LIST", "lengths (2048,4096,8192,16384)"},
    {"--H", CLI_INT, offsetof(struct options, H), "N", "query heads (32)"},
    {"--G", CLI_INTS, offsetof(struct options, G), "LIST", "key/value heads (8,32)"},
    {"--tokens", CLI_INT, offsetof(struct options, tokens), "N", "tokens per call, B = tokens / T (16384)"},
    {"--device", CLI_STR, offsetof(struct options, device), "auto|cpu|cuda", "default auto"},
    {"--seconds", CLI_FLOAT, offsetof(struct options, seconds), "S", "time per figure (0.2)"},
    {"--json", CLI_SET, offsetof(struct options, json), NULL, "JSON lines"},
};

struct call {
    struct view o, lse, q, k, v, dout, dq, dk, dv;
    struct attention_args args;
    void *scratch;
};

static enum code forward(struct bench *b, void *context)
{
    struct call *c = context;
    return b->be->attention_fwd(b->dev, c->o, c->lse, c->q, c->k, c->v, &c->args, c->scratch);
}

static enum code backward(struct bench *b, void *context)
{
    struct call *c = context;
    return b->be->attention_bwd(b->dev, c->dq, c->dk, c->dv, c->dout, c->o, c->lse, c->q, c->k, c->v, &c->args, c->scratch);
}

static void carve(struct bench *b, struct call *c, int64_t B, int64_t T, int64_t H, int64_t G, int64_t D)
{
    struct view *heads[] = {&c->q, &c->o, &c->dout, &c->dq}, *shared[] = {&c->k, &c->v, &c->dk, &c->dv};
    for (int i = 0; i < 4; i++)
        *heads[i] = bench_view(b, b->type, B, T, H, D);
    for (int i = 0; i < 4; i++)
        *shared[i] = bench_view(b, b->type, B, T, G, D);
    c->lse = bench_view(b, DT_F32, 1, B, H, T);
    c->lse = view_3d(c->lse.p, DT_F32, B, H, T);
    size_t bytes = b->be->attention_scratch(b->dev, B, T, T, H, G, D, 1);
    c->scratch = bench_view(b, DT_U8, 1, 1, 1, (int64_t)bytes + 64).p;
}

static void report(const struct options *o, const struct bench *b, const char *pass, int deterministic, int64_t B, int64_t T, int64_t G, int64_t D,
                   double flops, double seconds)
{
    if (o->json)
        printf("{\"bench\": \"attention\", \"who\": \"gqakit\", \"pass\": \"%s\", \"deterministic\": %s, \"B\": %lld, \"T\": %lld, \"H\": %lld, "
               "\"G\": %lld, "
               "\"D\": %lld, \"dtype\": \"%s\", \"ms\": %.4f, \"tflops\": %.2f}\n",
               pass, deterministic ? "true" : "false", (long long)B, (long long)T, (long long)o->H, (long long)G, (long long)D, dtype_name(b->type),
               1e3 * seconds, flops / seconds * 1e-12);
    else
        printf("D %3lld  G %2lld/%lld  B %3lld  T %6lld  %s%-14s %9.3f ms  %8.2f TFLOP/s\n", (long long)D, (long long)G, (long long)o->H,
               (long long)B, (long long)T, pass, deterministic ? " deterministic" : "", 1e3 * seconds, flops / seconds * 1e-12);
    fflush(stdout);
}

static enum code shape(const struct options *o, struct bench *b, int64_t T, int64_t G, int64_t D)
{
    struct call c;
    const int64_t B = o->tokens / T > 0 ? o->tokens / T : 1;
    const double flops = 2.0 * (double)(B * o->H * D) * (double)T * (double)T;
    double seconds = 0;
    memset(&c, 0, sizeof c);
    c.args.mask = attention_mask_causal();
    c.args.scale = 1.0f / sqrtf((float)D);
    bench_measure(b);
    carve(b, &c, B, T, o->H, G, D);
    TRY(bench_reserve(b));
    carve(b, &c, B, T, o->H, G, D);
    TRY(bench_random(b, c.q, 1));
    TRY(bench_random(b, c.k, 2));
    TRY(bench_random(b, c.v, 3));
    TRY(bench_random(b, c.dout, 4));
    TRY(bench_time(b, forward, &c, o->seconds, &seconds));
    report(o, b, "forward", 0, B, T, G, D, flops, seconds);
    for (c.args.deterministic = 0; c.args.deterministic < 2; c.args.deterministic++) {
        TRY(bench_time(b, backward, &c, o->seconds, &seconds));
        report(o, b, "backward", c.args.deterministic, B, T, G, D, 2.5 * flops, seconds);
    }
    return OK;
}

static enum code run(const struct options *o)
{
    struct bench b;
    enum code c = bench_open(&b, o->device);
    for (int d = 0; c == OK && d < o->D.n; d++)
        for (int g = 0; c == OK && g < o->G.n; g++)
            for (int t = 0; c == OK && t < o->T.n; t++) {
                c = shape(o, &b, o->T.v[t], o->G.v[g], o->D.v[d]);
                bench_release(&b);
            }
    bench_close(&b);
    return c;
}

int main(int argc, char **argv)
{
    kernels_boot(argc, argv);
    struct options o = {.D = {2, {64, 128}}, .T = {4, {2048, 4096, 8192, 16384}}, .G = {2, {8, 32}}, .H = 32, .tokens = 16384, .seconds = 0.2};
    struct cli cli = {"bench_cuda_attention", "[flags]", "Speed of attention on a GPU.", FLAGS, sizeof FLAGS / sizeof *FLAGS, 0, 0};
    struct cli_words words;
    int shown = 0;
    enum code c = cli_parse(&cli, argc, argv, &o, &words, &shown);
    if (c == OK && !shown) {
        host_threads_set(0);
        c = run(&o);
    }
    return fail_exit("bench_cuda_attention", c);
}
