/* What a teacher costs in the fused cross-entropy, with gradients: the time with one (as wide as the student) over the time without one plus
 * the teacher's projection alone, the one product that no implementation can leave out; and topk over that product. All in turns, since
 * the speed of a shared machine changes within seconds; the fastest of each.
 *   bench_xent [--C 288 --V 32000,512 --rows 512 --K 32 --rounds 7 --temperature 1 --device auto --threads 0] */
#include <stddef.h>
#include <stdio.h>

#include "bench_device.h"

struct options { int64_t C, rows, K, rounds, threads; struct cli_ints V; double temperature; const char *device; };

static const struct cli_flag FLAGS[] = {
    {"--C", CLI_INT, offsetof(struct options, C), "N", "width (288)"},
    {"--V", CLI_INTS, offsetof(struct options, V), "LIST", "vocabularies (32000,512)"},
    {"--rows", CLI_INT, offsetof(struct options, rows), "N", "rows (512)"},
    {"--K", CLI_INT, offsetof(struct options, K), "N", "tokens of the top-k form (32)"},
    {"--rounds", CLI_INT, offsetof(struct options, rounds), "N", "timed rounds (7)"},
    {"--temperature", CLI_FLOAT, offsetof(struct options, temperature), "X", "temperature (1)"},
    {"--device", CLI_STR, offsetof(struct options, device), "NAME", "auto, cpu, cuda (auto)"},
    {"--threads", CLI_INT, offsetof(struct options, threads), "N", "CPU threads, 0 = all (0)"},
};

enum { PLAIN, PROJECTION, WHOLE, TOKENS, TOPK, KINDS };

/* Everything on the device; the carving runs twice. */
struct memory { struct view x, w, hidden, head, dx, dw, logits, targets, ids, logp, sums, scratch; };

static void carve(struct bench *b, struct memory *m, const struct options *o, int64_t V)
{
    const int64_t N = o->rows, C = o->C, K = o->K < V ? o->K : V;
    struct view *rows[] = {&m->x, &m->hidden, &m->dx}, *heads[] = {&m->w, &m->head};
    size_t bytes = b->be->xent_scratch(b->dev, N, C, V, V), topk = b->be->topk_scratch(b->dev, N, C, V, K);
    for (int i = 0; i < 3; i++)
        *rows[i] = view_2d(bench_view(b, b->type, 1, 1, N, C).p, b->type, N, C);
    for (int i = 0; i < 2; i++)
        *heads[i] = view_2d(bench_view(b, b->type, 1, 1, V, C).p, b->type, V, C);
    m->dw = view_2d(bench_view(b, DT_F32, 1, 1, V, C).p, DT_F32, V, C);
    m->logits = view_2d(bench_view(b, DT_F32, 1, 1, N, V).p, DT_F32, N, V);
    m->targets = view_1d(bench_view(b, DT_I32, 1, 1, 1, N).p, DT_I32, N);
    m->ids = view_2d(bench_view(b, DT_I32, 1, 1, N, K).p, DT_I32, N, K);
    m->logp = view_2d(bench_view(b, DT_F32, 1, 1, N, K).p, DT_F32, N, K);
    m->sums = bench_view(b, DT_F32, 1, 1, 1, 8); /* loss f64, KL f64, count i64, 1 / count f32 */
    m->scratch = bench_view(b, DT_F32, 1, 1, 1, (int64_t)((bytes > topk ? bytes : topk) / 4));
}

static enum code once(struct bench *b, const struct memory *m, const struct options *o, int kind)
{
    char *sums = m->sums.p;
    struct xent_teacher t = {.weight = 0.5f, .temperature = (float)o->temperature, .kl_sum = (double *)(void *)(sums + 8)};
    const struct xent_args args = {.logit_scale = 1, .inv_count = (float *)(void *)(sums + 24), .teacher = kind == PLAIN ? NULL : &t};
    const struct view none = view_none();
    if (kind == PROJECTION)
        return b->be->matmul(b->dev, m->logits, m->hidden, m->head, none, 0, 1, 1, 0);
    if (kind == TOPK)
        return b->be->topk(b->dev, m->ids, m->logp, m->hidden, m->head, none, 1, 0, (float)o->temperature, m->scratch.p);
    if (kind == WHOLE)
        t.hidden = m->hidden, t.head = m->head, t.logit_scale = 1;
    else
        t.ids = m->ids, t.logp = m->logp;
    return b->be->xent(b->dev, (double *)(void *)sums, (int64_t *)(void *)(sums + 16), none, m->dx, m->dw, m->x, m->w, m->targets, &args, m->scratch.p);
}

static enum code measure(struct bench *b, const struct options *o, int64_t V)
{
    struct memory m;
    double best[KINDS] = {0};
    const float size = 0.1f;
    bench_measure(b);
    carve(b, &m, o, V);
    TRY(bench_reserve(b));
    carve(b, &m, o, V);
    struct view filled[] = {m.x, m.w, m.hidden, m.head};
    for (int i = 0; i < 4; i++)
        TRY(bench_random(b, filled[i], (uint64_t)i));
    TRY(b->be->fill(b->dev, (float *)m.sums.p + 6, size, 1));
    int32_t *targets = malloc((size_t)o->rows * sizeof *targets);
    CHECK(targets);
    for (int64_t n = 0; n < o->rows; n++)
        targets[n] = (int32_t)(n * 7919 % V);
    TRY(b->be->device_copy(b->dev, m.targets.p, targets, (size_t)o->rows * sizeof *targets));
    TRY(b->be->device_sync(b->dev));
    free(targets);
    for (int64_t i = -1; i < o->rounds; i++)
        for (int k = KINDS - 1; k >= 0; k--) { /* topk first: the others read its tokens */
            const double start = host_seconds();
            TRY(once(b, &m, o, k));
            TRY(b->be->device_sync(b->dev));
            const double seconds = host_seconds() - start;
            if (i >= 0)
                best[k] = i == 0 || seconds < best[k] ? seconds : best[k];
        }
    printf("V %6lld  C %4lld  rows %5lld  plain %8.3f ms  projection %8.3f ms  teacher %8.3f ms = %.2f of both  %lld tokens %8.3f ms = %.2f of plain  topk %8.3f ms = %.2f of the projection\n",
           (long long)V, (long long)o->C, (long long)o->rows, 1e3 * best[PLAIN], 1e3 * best[PROJECTION], 1e3 * best[WHOLE],
           best[WHOLE] / (best[PLAIN] + best[PROJECTION]), (long long)(o->K < V ? o->K : V), 1e3 * best[TOKENS], best[TOKENS] / best[PLAIN],
           1e3 * best[TOPK], best[TOPK] / best[PROJECTION]);
    bench_release(b);
    return OK;
}

static enum code run(const struct options *o)
{
    struct bench b;
    const struct device_options device = {.threads = (int)o->threads};
    memset(&b, 0, sizeof b);
    TRY(backend_find(o->device ? o->device : "auto", &b.be));
    TRY(b.be->device_open(&b.dev, &device));
    b.type = b.be->activation_dtype(b.dev, DT_BF16);
    printf("%s, %s, temperature %g\n", b.be->device_name(b.dev), dtype_name(b.type), o->temperature);
    for (int i = 0; i < o->V.n; i++)
        TRY(measure(&b, o, o->V.v[i]));
    bench_close(&b);
    return OK;
}

int main(int argc, char **argv)
{
    kernels_boot(argc, argv);
    struct options o = {.C = 288, .rows = 512, .K = 32, .rounds = 7, .temperature = 1};
    struct cli cli = {"bench_xent", "[flags]", "What a teacher costs in the fused cross-entropy.", FLAGS, sizeof FLAGS / sizeof *FLAGS, 0, 0};
    struct cli_words words;
    int shown = 0;
    enum code c = cli_parse(&cli, argc, argv, &o, &words, &shown);
    if (c == OK && !shown) {
        host_threads_set((int)o.threads);
        if (!o.V.n) {
            o.V.n = 2;
            o.V.v[0] = 32000;
            o.V.v[1] = 512;
        }
        c = run(&o);
    }
    return fail_exit("bench_xent", c);
}
