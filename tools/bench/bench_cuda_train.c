/* Speed of a training step on a GPU: the 1.3B LLaMA shape in bf16 with f32 master weights, moments and gradients, as gqa-uptrain takes
 * it (norm, clip factor and loss stay on the device; one wait for all timed steps together).
 *   bench_cuda_train [--C 2048 --L 24 --H 16 --G 16 --D 128 --F 5504 --V 32000 --B 8 --T 2048 --steps 10 --device auto --json]
 * FLOPs by convention (CONTRACTS 7): model_train_flops_per_token. MFU is against the rate of a large bf16 product in this run. */
#include <stddef.h>
#include <stdio.h>

#include "bench_device.h"
#include "bench_arch.h"

struct options {
    int64_t C, L, H, G, D, F, V, B, T, steps;
    const char *device;
    int deterministic, recompute, no_master, json;
};

static const struct cli_flag FLAGS[] = {
    {"--C", CLI_INT, offsetof(struct options, C), "N", "model width (2048)"},
    {"--L", CLI_INT, offsetof(struct options, L), "N", "layers (24)"},
    {"--H", CLI_INT, offsetof(struct options, H), "N", "query heads (16)"},
    {"--G", CLI_INT, offsetof(struct options, G), "N", "key/value heads (as H)"},
    {"--D", CLI_INT, offsetof(struct options, D), "N", "head width (128)"},
    {"--F", CLI_INT, offsetof(struct options, F), "N", "MLP width (5504)"},
    {"--V", CLI_INT, offsetof(struct options, V), "N", "vocabulary (32000)"},
    {"--B", CLI_INT, offsetof(struct options, B), "N", "rows per step (8)"},
    {"--T", CLI_INT, offsetof(struct options, T), "N", "tokens per row (2048)"},
    {"--steps", CLI_INT, offsetof(struct options, steps), "N", "timed steps after three others (10)"},
    {"--device", CLI_STR, offsetof(struct options, device), "auto|cpu|cuda", "default auto"},
    {"--deterministic", CLI_SET, offsetof(struct options, deterministic), NULL, "no float atomics"},
    {"--recompute", CLI_SET, offsetof(struct options, recompute), NULL, "keep only block inputs"},
    {"--no-master", CLI_SET, offsetof(struct options, no_master), NULL, "bf16 weights only, stochastic rounding"},
    {"--json", CLI_SET, offsetof(struct options, json), NULL, "one JSON line"},
};

struct scalars {
    double loss, norm;
    int64_t count;
    float inv_count, clip;
    int32_t skip;
};

struct state {
    struct model *model;
    struct batch batch;
    struct arena moments;
    float *m, *v;
    double *partials;
    int64_t n_partials, steps;
    struct scalars *scalars; /* device */
};

static void carve(struct state *s)
{
    const size_t bytes = (size_t)model_flat(s->model).n * sizeof(float);
    s->m = arena_carve(&s->moments, bytes);
    s->v = arena_carve(&s->moments, bytes);
    s->partials = arena_carve(&s->moments, (size_t)s->n_partials * sizeof(double));
    s->scalars = arena_carve(&s->moments, sizeof *s->scalars);
}

static enum code optimise(struct bench *b, struct state *s)
{
    struct model_flat f = model_flat(s->model);
    struct scalars *d = s->scalars;
    struct adamw_args args = {
        .lr = 1e-4f, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .step = ++s->steps, .clip = &d->clip, .skip = &d->skip, .zero_grad = 1};
    TRY(b->be->sumsq(b->dev, s->partials, f.grads, f.n));
    TRY(b->be->grad_clip(b->dev, &d->norm, &d->clip, &d->skip, s->partials, s->n_partials, &d->loss, 1.0));
    for (int i = 0, j; i < model_param_count(s->model); i = j) {
        const struct model_param *first = model_param_at(s->model, i), *last = first;
        for (j = i + 1; j < model_param_count(s->model); j++) {
            const struct model_param *next = model_param_at(s->model, j);
            if (next->spec.decay != first->spec.decay || next->master.dtype != first->master.dtype)
                break;
            last = next;
        }
        const int64_t at = first->offset, n = last->offset + last->count - at;
        float *p = first->master.dtype == DT_F32 ? first->master.p : NULL;
        args.weight_decay = first->spec.decay ? 0.1f : 0.0f;
        args.low = f.low && (f.params || !p) ? f.low + at : NULL;
        args.first = at;
        TRY(b->be->adamw(b->dev, p, f.grads + at, s->m + at, s->v + at, n, &args));
    }
    return OK;
}

static enum code step(struct bench *b, void *context)
{
    struct state *s = context;
    struct scalars start = {0};
    start.inv_count = 1.0f / (float)(s->batch.B * s->batch.T);
    TRY(b->be->device_copy(b->dev, s->scalars, &start, sizeof start));
    TRY(model_forward_backward(s->model, &s->batch, &s->scalars->inv_count, &s->scalars->loss, &s->scalars->count));
    return optimise(b, s);
}

static enum code prepare(const struct options *o, struct bench *b, struct state *s, const struct arch *arch)
{
    struct model_options options = {
        .train = 1, .recompute = o->recompute, .no_master = o->no_master, .deterministic = o->deterministic, .dtype = b->type, .B = o->B, .T = o->T};
    TRY(model_open(&s->model, arch, b->be, b->dev, &options));
    TRY(model_init(s->model, 0.02, 1));
    s->n_partials = (model_flat(s->model).n + SUMSQ_BLOCK - 1) / SUMSQ_BLOCK;
    carve(s);
    const size_t bytes = s->moments.used;
    memset(&s->moments, 0, sizeof s->moments);
    TRY(b->be->device_alloc(b->dev, &s->moments, "moments", bytes));
    carve(s);
    TRY(batch_alloc(&s->batch, o->B, o->T));
    for (int64_t i = 0; i < o->B * o->T; i++) {
        s->batch.ids[i] = (int32_t)(random_uniform(7, STREAM_TEST, 0, (uint64_t)i) * (double)o->V);
        s->batch.targets[i] = (int32_t)(random_uniform(7, STREAM_TEST, 1, (uint64_t)i) * (double)o->V);
        s->batch.positions[i] = (int32_t)(i % o->T);
        s->batch.segments[i] = 0;
    }
    return OK;
}

static enum code measure(const struct options *o, struct bench *b, struct state *s)
{
    struct scalars end;
    const double peak = b->be->probe_flops(b->dev);
    for (int i = 0; i < 3; i++)
        TRY(step(b, s));
    TRY(b->be->device_sync(b->dev));
    double start = host_seconds();
    for (int64_t i = 0; i < o->steps; i++)
        TRY(step(b, s));
    const double queued = (host_seconds() - start) / (double)o->steps;
    TRY(b->be->device_sync(b->dev));
    const double seconds = (host_seconds() - start) / (double)o->steps;
    const double again = b->be->probe_flops(b->dev), rate = again > peak ? again : peak;
    TRY(b->be->device_copy(b->dev, &end, s->scalars, sizeof end));
    const struct arch *a = model_arch(s->model);
    const struct model_memory *mem = model_memory(s->model);
    const double tokens = (double)(o->B * o->T), flops = model_train_flops_per_token(a, o->T) * tokens;
    const double MiB = 1048576.0;
    if (o->json)
        printf("{\"bench\": \"train\", \"who\": \"gqakit\", \"parameters\": %lld, \"B\": %lld, \"T\": %lld, \"G\": %lld, \"dtype\": \"%s\", "
               "\"deterministic\": %s, "
               "\"step_s\": %.5f, \"queue_s\": %.5f, \"tok_s\": %.1f, \"tflops\": %.2f, \"gemm_tflops\": %.2f, \"mfu\": %.4f, \"loss\": %.4f, "
               "\"memory_mib\": {\"parameters\": %.0f, \"gradients\": %.0f, \"moments\": %.0f, \"activations\": %.0f, \"scratch\": %.0f}}\n",
               (long long)arch_parameters(a), (long long)o->B, (long long)o->T, (long long)o->G, dtype_name(b->type),
               o->deterministic ? "true" : "false", seconds, queued, tokens / seconds, flops / seconds * 1e-12, rate * 1e-12, flops / seconds / rate,
               end.loss / tokens, (double)mem->parameters / MiB, (double)mem->gradients / MiB, (double)s->moments.used / MiB,
               (double)mem->activations / MiB, (double)mem->scratch / MiB);
    else
        printf("%.1fM parameters, %s, B %lld, T %lld: step %.2f ms (%.2f to queue it), %.0f tokens/s, %.1f TFLOP/s = %.1f%% of the product rate of "
               "this run (%.1f), loss %.4f; MiB: parameters %.0f gradients %.0f moments %.0f activations %.0f scratch %.0f\n",
               (double)arch_parameters(a) * 1e-6, dtype_name(b->type), (long long)o->B, (long long)o->T, 1e3 * seconds, 1e3 * queued,
               tokens / seconds, flops / seconds * 1e-12, 100.0 * flops / seconds / rate, rate * 1e-12, end.loss / tokens,
               (double)mem->parameters / MiB, (double)mem->gradients / MiB, (double)s->moments.used / MiB, (double)mem->activations / MiB,
               (double)mem->scratch / MiB);
    return OK;
}

static enum code run(const struct options *o)
{
    struct bench_shape shape = {o->C, o->L, o->H, o->G, o->D, o->F, o->V, o->T, 0};
    struct bench b;
    struct state s;
    struct arch arch;
    memset(&s, 0, sizeof s);
    memset(&arch, 0, sizeof arch);
    enum code c = bench_open(&b, o->device);
    if (c == OK)
        c = bench_arch(&arch, &shape, "bench_cuda_train");
    if (c == OK)
        c = prepare(o, &b, &s, &arch);
    if (c == OK)
        c = measure(o, &b, &s);
    model_close(s.model);
    if (s.moments.base)
        b.be->device_free(b.dev, &s.moments);
    batch_free(&s.batch);
    bench_close(&b);
    arch_free(&arch);
    return c;
}

int main(int argc, char **argv)
{
    kernels_boot(argc, argv);
    struct options o = {.C = 2048, .L = 24, .H = 16, .D = 128, .F = 5504, .V = 32000, .B = 8, .T = 2048, .steps = 10};
    struct cli cli = {"bench_cuda_train", "[flags]", "Speed of a training step on a GPU.", FLAGS, sizeof FLAGS / sizeof *FLAGS, 0, 0};
    struct cli_words words;
    int shown = 0;
    enum code c = cli_parse(&cli, argc, argv, &o, &words, &shown);
    if (c == OK && !shown) {
        host_threads_set(0);
        o.G = o.G ? o.G : o.H;
        c = run(&o);
    }
    return fail_exit("bench_cuda_train", c);
}
