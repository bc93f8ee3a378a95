/* --plan: what a run would take, from the same carving code and the same checks, without training. FLOPs are 6 x parameters x tokens +
 * attention (model_train_flops_per_token). Time is FLOPs at 75% of the matrix-multiplication rate, which is measured for a
 * moment on a 512^3 product (4096^3 on a GPU): the right order of magnitude, no promise. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "run.h"

#define PROBE 512
#define PROBE_SECONDS 0.2
#define PROBE_TOO_SMALL 5e12 /* FLOP/s: a product of this size takes so little that waiting for it is part of its time */
#define SHARE_OF_GEMM 0.75

/* FLOP/s of products of n x n matrices in the type the run computes in. */
static enum code gemm_rate(const struct run *r, int64_t n, double *flops_per_second)
{
    struct arena a = {0};
    enum dtype type = r->options.precision == PRECISION_BF16 ? DT_BF16 : DT_F32;
    size_t bytes = dtype_bytes(type) * (size_t)(n * n);
    for (int i = 0; i < 3; i++)
        arena_carve(&a, bytes);
    size_t whole = a.used;
    TRY(r->backend->device_alloc(r->device, &a, "probe", whole));
    struct view x[3];
    for (int i = 0; i < 3; i++)
        x[i] = view_2d(arena_carve(&a, bytes), type, n, n);
    enum code c = r->backend->matmul(r->device, x[0], x[1], x[2], view_none(), 0, 1, 1.0f, 0.0f);
    if (c == OK)
        c = r->backend->device_sync(r->device);
    double start = host_seconds(), spent = 0.0;
    int count = 0;
    while (c == OK && spent < PROBE_SECONDS) {
        c = r->backend->matmul(r->device, x[0], x[1], x[2], view_none(), 0, 1, 1.0f, 0.0f);
        if (c == OK)
            c = r->backend->device_sync(r->device);
        count++;
        spent = host_seconds() - start;
    }
    r->backend->device_free(r->device, &a);
    *flops_per_second = 2.0 * (double)(n * n) * (double)n * count / spent;
    return c;
}

/* A teacher in memory stands beside the student; one whose tokens are kept on disk was there before it. */
static enum code plan_teacher(struct run *r, struct plan *p)
{
    const struct model_memory *t = &p->teacher;
    if (!r->distill.checkpoint)
        return OK;
    struct model_options m = distill_model_options(r);
    TRY(fail_in(model_measure(ckpt_arch(r->distill.checkpoint), r->backend, r->device, &m, &p->teacher), "distill.teacher"));
    p->teacher_total = t->parameters + t->activations + t->scratch;
    TRY(distill_cache_need(r, &p->cache));
    if (!r->distill.cache_path) {
        p->total += p->teacher_total;
        return OK;
    }
    if (p->cache.missing > 0 && p->teacher_total > p->total)
        p->total = p->teacher_total;
    return io_free_bytes(r->distill.cache_path, &p->cache_free);
}

enum code plan_make(struct run *r, struct plan *p)
{
    static const int64_t width[] = {0, 4, 2, 2};
    const struct options *o = &r->options;
    struct model_options m = setup_model_options(r);
    double rate;
    memset(p, 0, sizeof *p);
    TRY(model_measure(&r->arch, r->backend, r->device, &m, &p->memory));
    p->moments = 2 * p->memory.gradients; /* one layout */
    p->total = p->memory.parameters + p->memory.gradients + p->moments + p->memory.activations + p->memory.scratch;
    TRY(plan_teacher(r, p));
    p->parameters = arch_parameters(&r->arch);
    p->flops = model_train_flops_per_token(&r->arch, o->sequence_len) * (double)r->budget.tokens;
    int64_t element = width[o->dtype] ? width[o->dtype] : o->init == INIT_RANDOM ? 4 : (int64_t)dtype_bytes(r->arch.dtype);
    int64_t step = p->moments + (m.no_master ? p->memory.parameters : p->memory.gradients), result = p->parameters * element;
    p->disk_needed = (o->save_steps > 0 && r->budget.steps > 0 ? (o->save_total_limit + 1) * step : step) + result;
    if (r->plan && options_converts(o))
        p->disk_needed += result;
    TRY(io_free_bytes(o->output_dir, &p->disk_free));
    if (r->plan) {
        TRY(gemm_rate(r, PROBE, &rate));
        if (rate > PROBE_TOO_SMALL)
            TRY(gemm_rate(r, 8 * PROBE, &rate));
        p->seconds = p->flops / (rate * SHARE_OF_GEMM);
    }
    return OK;
}

enum code plan_check(const struct run *r, const struct plan *p)
{
    char need[16], have[16];
    int64_t memory = host_memory_total();
    if (!strcmp(r->backend->name, "cpu") && memory > 0 && p->total > memory) {
        format_bytes(need, (double)p->total);
        format_bytes(have, (double)memory);
        return fail(ERR_MEMORY, "%s: training takes %s, this machine has %s; lower micro_batch_size (now %lld) or sequence_len, or set "
                    "activation_checkpointing: block%s", r->options.file, need, have, (long long)r->options.micro_batch_size,
                    p->teacher_total && !r->distill.cache_path ? ", or distill.top_k, which keeps the teacher's words on disk instead of the teacher in memory" : "");
    }
    if (r->distill.cache_path && p->cache.bytes > p->cache_free) {
        format_bytes(need, (double)p->cache.bytes);
        format_bytes(have, (double)p->cache_free);
        return fail(ERR_IO, "%s: the teacher's tokens take up to %s, %s are free; free space, lower distill.top_k, or name another distill.cache",
                    r->distill.cache_path, need, have);
    }
    if (p->disk_needed > p->disk_free) {
        format_bytes(need, (double)p->disk_needed);
        format_bytes(have, (double)p->disk_free);
        return fail(ERR_IO, "%s: checkpoints and result take %s, %s are free; free space, lower save_total_limit, or choose another "
                    "output_dir", r->options.output_dir, need, have);
    }
    return OK;
}

static const char *schedule_name(const struct run *r, char out[32])
{
    const char *names = SCHEDULE_NAMES;
    for (int i = (int)r->schedule.kind; i > 0; i--)
        names = strchr(names, '|') + 1;
    snprintf(out, 32, "%.*s", (int)strcspn(names, "|"), names);
    return out;
}

static void print_json(const struct run *r, const struct plan *p)
{
    const struct options *o = &r->options;
    char name[32];
    json_t *j = json_result("plan", r->backend->name);
    json_object_update_missing_new(j, json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:{s:I, s:I, s:I, s:I, s:I, s:I}, s:{s:I, s:I}, s:o, s:I, s:{s:s, s:f, s:f, s:I, s:I}, s:o}", "steps",
        (json_int_t)r->budget.steps, "tokens", (json_int_t)r->budget.tokens, "tokens_per_step", (json_int_t)r->budget.tokens_per_step,
        "gradient_accumulation_steps", (json_int_t)o->accumulation, "parameters", (json_int_t)p->parameters, "flops", p->flops,
        "estimated_seconds", p->seconds, "memory", "parameters", (json_int_t)p->memory.parameters, "gradients",
        (json_int_t)p->memory.gradients, "moments", (json_int_t)p->moments, "activations", (json_int_t)p->memory.activations, "scratch",
        (json_int_t)p->memory.scratch, "total", (json_int_t)p->total, "disk", "needed", (json_int_t)p->disk_needed, "free",
        (json_int_t)p->disk_free, "data", dataset_to_json(&r->data, o), "windows", (json_int_t)r->data.train_order.windows, "schedule", "name",
        schedule_name(r, name), "lr", o->optimizer.lr, "min_lr", o->optimizer.lr * o->schedule.min_lr_ratio, "warmup_steps",
        (json_int_t)r->budget.warmup, "decay_steps", (json_int_t)r->budget.decay, "config", options_to_json(o)));
    if (r->distill.checkpoint)
        json_object_set_new(j, "teacher", json_pack("{s:s, s:I, s:s?, s:I, s:I, s:I}", "path", o->distill.teacher, "memory", (json_int_t)p->teacher_total,
                                                    "cache", r->distill.cache_path, "windows", (json_int_t)p->cache.windows, "missing",
                                                    (json_int_t)p->cache.missing, "cache_bytes_at_most", (json_int_t)p->cache.bytes));
    if (r->kv_bytes)
        json_object_set_new(j, "kv_budget", json_pack("{s:s, s:I, s:I}", "asked", o->gqa.kv_budget, "bytes", (json_int_t)r->kv_bytes, "source_bytes",
                                                      (json_int_t)r->kv_bytes_source));
    json_print(j, 2);
    json_decref(j);
}

static void row_bytes(const char *name, int64_t bytes)
{
    char text[16];
    format_bytes(text, (double)bytes);
    printf("  %-20s %s\n", name, text);
}

static void print_teacher(const struct run *r, const struct plan *p)
{
    const struct distill_options *d = &r->options.distill;
    char most[16], about[16];
    if (!r->distill.checkpoint)
        return;
    printf("distill                %s, weight %g, temperature %g, %s\n", d->teacher, d->weight, d->temperature,
           d->top_k > 0 ? "from its most likely tokens" : "the teacher in memory");
    if (!r->distill.cache_path)
        return;
    format_bytes(most, (double)p->cache.bytes);
    format_bytes(about, 0.5 * (double)p->cache.bytes); /* compressed: 0.48 to 0.62 measured */
    printf("  cache                %s: %lld tokens of each position, %lld of %lld samples missing, which take about %s, at most %s\n", r->distill.cache_path,
           (long long)d->top_k, (long long)p->cache.missing, (long long)p->cache.windows, about, most);
}

void plan_print(const struct run *r, const struct plan *p)
{
    const struct options *o = &r->options;
    char a[32], b[16];
    if (r->json) {
        print_json(r, p);
        return;
    }
    format_count(a, (double)p->parameters);
    printf("model                  %s, %s parameters\n", r->arch.family, a);
    if (r->kv_bytes)
        printf("K/V budget             %s: %lld of %lld bytes per token; gqa-convert chooses each layer's number of heads\n", o->gqa.kv_budget, (long long)r->kv_bytes,
               (long long)r->kv_bytes_source);
    printf("steps                  %lld of %lld sequences (%lld x %lld) of %lld tokens\n", (long long)r->budget.steps,
           (long long)o->global_batch_size, (long long)o->accumulation, (long long)o->micro_batch_size, (long long)o->sequence_len);
    format_count(a, (double)r->budget.tokens);
    double samples = (double)r->budget.steps * (double)o->global_batch_size;
    printf("tokens                 %s, %.2f epochs of %lld samples\n", a, samples / (double)r->data.train_order.windows,
           (long long)r->data.train_order.windows);
    printf("schedule               %s, lr %g to %g, warm-up %lld steps", schedule_name(r, a), o->optimizer.lr,
           o->optimizer.lr * o->schedule.min_lr_ratio, (long long)r->budget.warmup);
    if (r->schedule.kind == SCHEDULE_WSD)
        printf(", decay over the last %lld", (long long)r->budget.decay);
    format_duration(b, p->seconds);
    printf("\ncompute                %.3g FLOPs, about %s on %s\n", p->flops, b, r->backend->device_name(r->device));
    print_teacher(r, p);
    printf("memory\n");
    row_bytes("parameters", p->memory.parameters);
    row_bytes("gradients", p->memory.gradients);
    row_bytes("moments", p->moments);
    row_bytes("activations", p->memory.activations);
    row_bytes("scratch", p->memory.scratch);
    if (p->teacher_total)
        row_bytes(r->distill.cache_path ? "teacher (before)" : "teacher", p->teacher_total);
    row_bytes("total", p->total);
    printf("disk\n");
    row_bytes("needed", p->disk_needed);
    row_bytes("free", p->disk_free);
    printf("data\n");
    for (int i = 0; i < r->data.n_train; i++)
        printf("  train      %s: %lld tokens\n", ((const char *const *)o->data.train.items)[i], (long long)tokens_count(r->data.train[i]));
    for (int i = 0; i < r->data.n_validation; i++)
        printf("  validation %s: %lld tokens\n", ((const char *const *)o->data.validation.items)[i],
               (long long)tokens_count(r->data.validation[i]));
}
