/* Speed of one training step (forward, backward, AdamW) of a LLaMA shape as a share of the machine's f32 multiply-add peak, the
 * peak measured in this run before and after the steps, and where the time goes.
 *   bench_train [--C 768 --L 12 --H 12 --G 12 --D 64 --F 2048 --V 32000 --B 1 --T 1024 --steps 3 --threads 0 --recompute --untied]
 * FLOPs by convention (CONTRACTS 7): 6 x parameters x tokens + attention forward 4 B H D T T / 2, backward 2.5 times that. The parts
 * are timed by a backend table whose slots call the real ones; the products inside xent count as "loss". --json prints one line. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench_arch.h"

/* ---- a backend that keeps the time ------------------------------------------------------------------------------- */

enum part { P_GEMM, P_ATT_FWD, P_ATT_BWD, P_NORM, P_ACT, P_ROPE, P_EMBED, P_LOSS, P_ADAMW, PARTS };
static const char *const PART_NAMES[PARTS] = {"gemm", "attention fwd", "attention bwd", "norm", "act", "rope", "embed", "loss", "adamw"};
static double spent[PARTS];
static const struct backend *real;

/* The k-th call of every step is the same call: its fastest time over the steps is what it takes when nothing else runs. */
enum { CALLS_MAX = 1 << 16 };
static double fastest[CALLS_MAX];
static int n_calls;

static void spend(enum part part, double seconds)
{
    spent[part] += seconds;
    if (n_calls < CALLS_MAX) {
        double *f = &fastest[n_calls++];
        *f = *f == 0.0 || seconds < *f ? seconds : *f;
    }
}

#define TIMED(part, call)                   \
    double start = host_seconds();          \
    enum code c = real->call;               \
    spend(part, host_seconds() - start);    \
    return c

/* Products by shape, for --shapes. */
static struct shape { int64_t M, N, K; int ta, tb; double seconds; int64_t calls; } shapes[32];
static int n_shapes;

static void shape_add(int64_t M, int64_t N, int64_t K, int ta, int tb, double seconds)
{
    int i = 0;
    while (i < n_shapes && !(shapes[i].M == M && shapes[i].N == N && shapes[i].K == K && shapes[i].ta == ta && shapes[i].tb == tb))
        i++;
    if (i == 32)
        return;
    if (i == n_shapes) {
        struct shape s = {M, N, K, ta, tb, 0.0, 0};
        shapes[n_shapes++] = s;
    }
    shapes[i].seconds += seconds;
    shapes[i].calls++;
}

static enum code t_matmul(struct device *dev, struct view c, struct view a, struct view b, struct view bias, int ta, int tb, float al, float be)
{
    double start = host_seconds();
    enum code done = real->matmul(dev, c, a, b, bias, ta, tb, al, be);
    double took = host_seconds() - start;
    spend(P_GEMM, took);
    shape_add(c.n[0], c.n[1], a.n[ta ? 0 : 1], ta, tb, took);
    return done;
}
static enum code t_attention_fwd(struct device *dev, struct view o, struct view lse, struct view q, struct view k, struct view v,
                                 const struct attention_args *args, void *scratch)
{ TIMED(P_ATT_FWD, attention_fwd(dev, o, lse, q, k, v, args, scratch)); }
static enum code t_attention_bwd(struct device *dev, struct view dq, struct view dk, struct view dv, struct view dout, struct view o,
                                 struct view lse, struct view q, struct view k, struct view v, const struct attention_args *args, void *scratch)
{ TIMED(P_ATT_BWD, attention_bwd(dev, dq, dk, dv, dout, o, lse, q, k, v, args, scratch)); }
static enum code t_norm_fwd(struct device *dev, struct view y, struct view sum, struct view mean, struct view rstd, struct view x,
                            struct view residual, struct view w, struct view b, enum norm_kind kind, float eps)
{ TIMED(P_NORM, norm_fwd(dev, y, sum, mean, rstd, x, residual, w, b, kind, eps)); }
static enum code t_norm_bwd(struct device *dev, struct view dx, struct view dw, struct view db, struct view dy, struct view dr,
                            struct view x, struct view w, struct view mean, struct view rstd, enum norm_kind kind)
{ TIMED(P_NORM, norm_bwd(dev, dx, dw, db, dy, dr, x, w, mean, rstd, kind)); }
static enum code t_act_fwd(struct device *dev, struct view y, struct view gate, struct view up, enum mlp_kind kind)
{ TIMED(P_ACT, act_fwd(dev, y, gate, up, kind)); }
static enum code t_act_bwd(struct device *dev, struct view dgate, struct view dup, struct view y, struct view dy, struct view gate,
                           struct view up, enum mlp_kind kind)
{ TIMED(P_ACT, act_bwd(dev, dgate, dup, y, dy, gate, up, kind)); }
static enum code t_rope(struct device *dev, struct view x, struct view ct, struct view st, struct view pos, int inverse)
{ TIMED(P_ROPE, rope(dev, x, ct, st, pos, inverse)); }
static enum code t_embed_fwd(struct device *dev, struct view y, struct view ids, struct view table, struct view pt, struct view pos, float s)
{ TIMED(P_EMBED, embed_fwd(dev, y, ids, table, pt, pos, s)); }
static enum code t_embed_bwd(struct device *dev, struct view dt, struct view dpt, struct view dy, struct view ids, struct view pos, float s)
{ TIMED(P_EMBED, embed_bwd(dev, dt, dpt, dy, ids, pos, s)); }
static enum code t_xent(struct device *dev, double *loss, int64_t *count, struct view logp, struct view dx, struct view dw, struct view x,
                        struct view w, struct view targets, const struct xent_args *args, void *scratch)
{ TIMED(P_LOSS, xent(dev, loss, count, logp, dx, dw, x, w, targets, args, scratch)); }
static enum code t_adamw(struct device *dev, float *p, float *g, float *m, float *v, int64_t n, const struct adamw_args *args)
{ TIMED(P_ADAMW, adamw(dev, p, g, m, v, n, args)); }

static struct backend timed_backend(const struct backend *be)
{
    struct backend t = *be;
    real = be;
    t.matmul = t_matmul;
    t.attention_fwd = t_attention_fwd;
    t.attention_bwd = t_attention_bwd;
    t.norm_fwd = t_norm_fwd;
    t.norm_bwd = t_norm_bwd;
    t.act_fwd = t_act_fwd;
    t.act_bwd = t_act_bwd;
    t.rope = t_rope;
    t.embed_fwd = t_embed_fwd;
    t.embed_bwd = t_embed_bwd;
    t.xent = t_xent;
    t.adamw = t_adamw;
    return t;
}

/* ---- the step ------------------------------------------------------------------------------------------------------ */

struct options { int64_t C, L, H, G, D, F, V, B, T, steps, threads; int recompute, untied, json, shapes; };

static const struct cli_flag FLAGS[] = {
    {"--C", CLI_INT, offsetof(struct options, C), "N", "model width (768)"},
    {"--L", CLI_INT, offsetof(struct options, L), "N", "layers (12)"},
    {"--H", CLI_INT, offsetof(struct options, H), "N", "query heads (12)"},
    {"--G", CLI_INT, offsetof(struct options, G), "N", "key/value heads (as H)"},
    {"--D", CLI_INT, offsetof(struct options, D), "N", "head width (64)"},
    {"--F", CLI_INT, offsetof(struct options, F), "N", "MLP width (2048)"},
    {"--V", CLI_INT, offsetof(struct options, V), "N", "vocabulary (32000)"},
    {"--B", CLI_INT, offsetof(struct options, B), "N", "rows per step (1)"},
    {"--T", CLI_INT, offsetof(struct options, T), "N", "tokens per row (1024)"},
    {"--steps", CLI_INT, offsetof(struct options, steps), "N", "timed steps after one warm-up step (3)"},
    {"--threads", CLI_INT, offsetof(struct options, threads), "N", "threads, 0 = all (0)"},
    {"--recompute", CLI_SET, offsetof(struct options, recompute), NULL, "keep only block inputs"},
    {"--untied", CLI_SET, offsetof(struct options, untied), NULL, "an output matrix of its own"},
    {"--shapes", CLI_SET, offsetof(struct options, shapes), NULL, "the rate of every shape of matrix product"},
    {"--json", CLI_SET, offsetof(struct options, json), NULL, "one JSON line on stdout"},
};

static void random_batch(struct batch *b, int64_t V, uint64_t seed)
{
    for (int64_t i = 0; i < b->B * b->T; i++) {
        b->ids[i] = (int32_t)(random_uniform(seed, STREAM_TEST, 0, (uint64_t)i) * (double)V);
        b->targets[i] = (int32_t)(random_uniform(seed, STREAM_TEST, 1, (uint64_t)i) * (double)V);
        b->positions[i] = (int32_t)(i % b->T);
        b->segments[i] = 0;
    }
}

/* AdamW over the flat range in two kinds of ranges, as the training loop does: matrices decay, vectors do not. */
static enum code optimise(struct model *m, const struct backend *be, struct device *dev, float *m1, float *m2, int64_t step)
{
    const float clip = 1.0f;
    const int32_t skip = 0;
    struct model_flat f = model_flat(m);
    float *p = f.params;
    struct adamw_args args = {.lr = 1e-4f, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .step = step, .clip = &clip, .skip = &skip, .zero_grad = 1};
    for (int i = 0, j; i < model_param_count(m); i = j) {
        const struct model_param *first = model_param_at(m, i), *last = first;
        for (j = i + 1; j < model_param_count(m) && model_param_at(m, j)->spec.decay == first->spec.decay; j++)
            last = model_param_at(m, j);
        int64_t n = last->offset + last->count - first->offset, at = first->offset;
        args.weight_decay = first->spec.decay ? 0.1f : 0.0f;
        TRY(be->adamw(dev, p + at, f.grads + at, m1 + at, m2 + at, n, &args));
    }
    return OK;
}

static void report(const struct options *o, const struct model *m, double seconds, double best, double peak, double loss, size_t moment_bytes)
{
    double tokens = (double)(o->B * o->T), flops = model_train_flops_per_token(model_arch(m), o->T) * tokens, parts = 0.0, quiet = 0.0;
    const struct model_memory *mem = model_memory(m);
    for (int i = 0; i < PARTS; i++)
        parts += spent[i];
    if (o->json) {
        printf("{\"who\": \"gqakit\", \"step_s\": %.4f, \"tok_s\": %.1f, \"gflops\": %.1f, \"peak_gflops\": %.1f, \"share\": %.3f, \"rss_mb\": %.0f, \"loss\": %.4f}\n",
               best, tokens / best, flops / best * 1e-9, peak * 1e-9, flops / best / peak, (double)host_peak_rss() / 1048576.0, loss);
        return;
    }
    printf("%.1fM parameters, B %lld, T %lld, %d threads; memory MiB: parameters %.0f gradients %.0f moments %.0f activations %.0f scratch %.0f\n",
           (double)arch_parameters(model_arch(m)) * 1e-6, (long long)o->B, (long long)o->T, host_threads(), (double)mem->parameters / 1048576.0,
           (double)mem->gradients / 1048576.0, (double)moment_bytes / 1048576.0, (double)mem->activations / 1048576.0, (double)mem->scratch / 1048576.0);
    printf("best step %.3f s (mean %.3f), %.0f tokens/s, %.0f GFLOP/s = %.1f%% of the FMA peak of this run (%.0f), peak RSS %.0f MiB, loss %.4f\n",
           best, seconds / (double)o->steps, tokens / best, flops / best * 1e-9, 100.0 * flops / best / peak, peak * 1e-9,
           (double)host_peak_rss() / 1048576.0, loss);
    for (int i = 0; i < PARTS; i++)
        printf("  %-14s %8.1f ms  %5.1f%%\n", PART_NAMES[i], 1e3 * spent[i] / (double)o->steps, 100.0 * spent[i] / seconds);
    printf("  %-14s %8.1f ms  %5.1f%%\n", "other", 1e3 * (seconds - parts) / (double)o->steps, 100.0 * (seconds - parts) / seconds);
    for (int i = 0; i < n_calls; i++)
        quiet += fastest[i];
    printf("sum of the fastest time of each of %d calls: %.3f s, %.0f GFLOP/s = %.1f%% (what a quiet machine would give)\n", n_calls, quiet,
           flops / quiet * 1e-9, 100.0 * flops / quiet / peak);
    for (int i = 0; o->shapes && i < n_shapes; i++) {
        const struct shape *s = &shapes[i];
        printf("  gemm %s%s %6lld x %6lld x %6lld  %7.1f ms  %6.1f GFLOP/s\n", s->ta ? "T" : "N", s->tb ? "T" : "N", (long long)s->M, (long long)s->N,
               (long long)s->K, 1e3 * s->seconds / (double)o->steps, 2e-9 * (double)(s->M * s->N) * (double)(s->K * s->calls) / s->seconds);
    }
}

static enum code run(const struct options *o)
{
    const struct backend *be;
    struct device *dev;
    struct device_options device = {.threads = (int)o->threads};
    struct model_options options = {.train = 1, .recompute = o->recompute, .dtype = DT_F32, .B = o->B, .T = o->T};
    struct arch arch;
    struct model *m;
    struct batch batch;
    struct arena moments;
    double seconds = 0.0, best = 1e30, loss = 0.0;
    float inv = 1.0f / (float)(o->B * o->T);
    TRY(backend_find("cpu", &be));
    TRY(be->device_open(&dev, &device));
    struct backend timed = timed_backend(be);
    struct bench_shape shape = {o->C, o->L, o->H, o->G, o->D, o->F, o->V, o->T, !o->untied};
    TRY(bench_arch(&arch, &shape, "bench_train"));
    TRY(model_open(&m, &arch, &timed, dev, &options));
    TRY(model_init(m, 0.02, 1));
    size_t n = (size_t)model_flat(m).n, moment_bytes = 2 * n * sizeof(float);
    TRY(be->device_alloc(dev, &moments, "moments", moment_bytes + 4096));
    float *m1 = arena_carve(&moments, n * sizeof *m1), *m2 = arena_carve(&moments, n * sizeof *m2);
    TRY(batch_alloc(&batch, o->B, o->T));
    double peak = be->probe_flops(dev);
    for (int64_t step = 0; step <= o->steps; step++) {
        int64_t count = 0;
        loss = 0.0;
        n_calls = 0;
        random_batch(&batch, o->V, 7);
        double start = host_seconds();
        TRY(model_forward_backward(m, &batch, &inv, &loss, &count));
        TRY(optimise(m, &timed, dev, m1, m2, step + 1));
        double took = host_seconds() - start;
        if (step == 0) {
            memset(spent, 0, sizeof spent);
            n_shapes = 0;
            continue;
        }
        seconds += took;
        best = took < best ? took : best;
        double again = be->probe_flops(dev);
        peak = again > peak ? again : peak;
    }
    report(o, m, seconds, best, peak, loss * (double)inv, moment_bytes);
    batch_free(&batch);
    model_close(m);
    be->device_free(dev, &moments);
    be->device_close(dev);
    arch_free(&arch);
    return OK;
}

int main(int argc, char **argv)
{
    kernels_boot(argc, argv);
    struct options o = {.C = 768, .L = 12, .H = 12, .D = 64, .F = 2048, .V = 32000, .B = 1, .T = 1024, .steps = 3};
    struct cli cli = {"bench_train", "[flags]", "Speed of a training step of a LLaMA shape.", FLAGS, sizeof FLAGS / sizeof *FLAGS, 0, 0};
    struct cli_words words;
    int shown = 0;
    enum code c = cli_parse(&cli, argc, argv, &o, &words, &shown);
    if (c == OK && !shown) {
        host_threads_set((int)o.threads);
        o.G = o.G ? o.G : o.H;
        c = run(&o);
    }
    return fail_exit("bench_train", c);
}
