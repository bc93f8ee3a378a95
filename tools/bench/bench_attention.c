/* Speed of attention as a share of the machine's f32 multiply-add peak, both measured in this run and in turns.
 *   bench_attention [--lengths 512,1024,2048,4096] [--groups 12,3,1] [--heads H] [--width D] [--batch B] [--rounds N] [--threads N]
 * FLOPs by convention: forward 4 B H D T T / 2 (causal), backward 2.5 times that; what the diagonal tiles compute in vain does not
 * count. Each figure is the best of the rounds; the share is taken against the best peak of the same rounds. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/kernels.h"

struct options {
    struct cli_ints lengths, groups;
    int64_t heads, width, batch, rounds, threads;
};

static const struct cli_flag flags[] = {
    {"--lengths", CLI_INTS, offsetof(struct options, lengths), "T,T", "sequence lengths (default 512,1024,2048,4096)"},
    {"--groups", CLI_INTS, offsetof(struct options, groups), "G,G", "key/value heads (default 12,3,1)"},
    {"--heads", CLI_INT, offsetof(struct options, heads), "H", "query heads (default 12)"},
    {"--width", CLI_INT, offsetof(struct options, width), "D", "head width (default 64)"},
    {"--batch", CLI_INT, offsetof(struct options, batch), "B", "sequences (default 1)"},
    {"--rounds", CLI_INT, offsetof(struct options, rounds), "N", "rounds per line, the best counts (default 5)"},
    {"--threads", CLI_INT, offsetof(struct options, threads), "N", "threads (default: all allowed CPUs)"},
};

static const struct cli cli = {
    .program = "bench_attention",
    .synopsis = "[flags]",
    .about = "Causal attention, forward and forward + backward, against the f32 multiply-add peak of the same run.",
    .flags = flags,
    .n_flags = sizeof flags / sizeof flags[0],
};

static double best_rate(double best, double flops, double seconds) { return fmax(best, flops / seconds * 1e-9); }

struct line { double peak, fwd, both; };

static enum code measure(struct line *line, struct device *dev, const struct options *o, int64_t T, int64_t G)
{
    int64_t B = o->batch, H = o->heads, D = o->width, row = (H + 2 * G) * D, N = B * T;
    struct arena arena = {0};
    size_t scratch_bytes = cpu_attention_scratch(dev, B, T, T, H, G, D, 1);
    TRY(arena_reserve(&arena, "attention benchmark", (size_t)(2 * N * row + 2 * N * H * D + B * H * T) * sizeof(float) + scratch_bytes + 4096));
    float *qkv = arena_carve(&arena, (size_t)(N * row) * sizeof(float)), *dqkv = arena_carve(&arena, (size_t)(N * row) * sizeof(float));
    struct view out = view_4d(arena_carve(&arena, (size_t)(N * H * D) * sizeof(float)), DT_F32, B, T, H, D);
    struct view dout = view_4d(arena_carve(&arena, (size_t)(N * H * D) * sizeof(float)), DT_F32, B, T, H, D);
    struct view lse = view_3d(arena_carve(&arena, (size_t)(B * H * T) * sizeof(float)), DT_F32, B, H, T);
    void *scratch = arena_carve(&arena, scratch_bytes);
    random_normal_f32(qkv, N * row, 0, 1.0f, 1, STREAM_TEST, 0);
    random_normal_f32(dout.p, N * H * D, 0, 1.0f, 2, STREAM_TEST, 0);
    struct view x[6]; /* q k v dq dk dv: slices of the two buffers, as the model passes them */
    for (int i = 0; i < 6; i++)
        x[i] = (struct view){.p = (i < 3 ? qkv : dqkv) + (i % 3 == 0 ? 0 : (H + (i % 3 - 1) * G) * D), .dtype = DT_F32, .nd = 4,
                             .n = {B, T, i % 3 == 0 ? H : G, D}, .s = {T * row, row, D, 1}};
    struct attention_args args = {.mask = attention_mask_causal(), .scale = (float)(1 / sqrt((double)D))};
    double flops = 2.0 * (double)B * (double)H * (double)D * (double)T * (double)T;
    *line = (struct line){0, 0, 0};
    for (int64_t i = 0; i < o->rounds; i++) {
        line->peak = fmax(line->peak, cpu_probe_flops(dev) * 1e-9);
        double start = host_seconds();
        TRY(cpu_attention_fwd(dev, out, lse, x[0], x[1], x[2], &args, scratch));
        double middle = host_seconds();
        TRY(cpu_attention_bwd(dev, x[3], x[4], x[5], dout, out, lse, x[0], x[1], x[2], &args, scratch));
        line->fwd = best_rate(line->fwd, flops, middle - start);
        line->both = best_rate(line->both, 3.5 * flops, host_seconds() - start);
    }
    arena_release(&arena);
    return OK;
}

int main(int argc, char **argv)
{
    struct options o = {.lengths = {4, {512, 1024, 2048, 4096}}, .groups = {3, {12, 3, 1}}, .heads = 12, .width = 64, .batch = 1, .rounds = 5};
    struct cli_words words = {0};
    int help_shown = 0;
    enum code c = cli_parse(&cli, argc, argv, &o, &words, &help_shown);
    if (c != OK || help_shown)
        return fail_exit(cli.program, c);
    host_threads_set((int)o.threads);
    struct device *dev = NULL;
    c = cpu_device_open(&dev, NULL);
    if (c != OK)
        return fail_exit(cli.program, c);
    printf("%s, %s; causal, B %lld, H %lld, D %lld; GFLOP/s, best of %lld\n", host_cpu_name(), cpu_device_name(dev), (long long)o.batch,
           (long long)o.heads, (long long)o.width, (long long)o.rounds);
    printf("%6s %4s %8s %9s %6s %9s %6s\n", "T", "G", "FMA peak", "forward", "share", "fwd+bwd", "share");
    for (int g = 0; g < o.groups.n; g++)
        for (int t = 0; t < o.lengths.n; t++) {
            struct line line;
            c = measure(&line, dev, &o, o.lengths.v[t], o.groups.v[g]);
            if (c != OK)
                return fail_exit(cli.program, c);
            printf("%6lld %4lld %8.0f %9.1f %5.1f%% %9.1f %5.1f%%\n", (long long)o.lengths.v[t], (long long)o.groups.v[g], line.peak, line.fwd,
                   100 * line.fwd / line.peak, line.both, 100 * line.both / line.peak);
            fflush(stdout);
        }
    cpu_device_close(dev);
    return 0;
}
