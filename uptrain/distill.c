/* The teacher of a run (Hinton, Vinyals, Dean 2015): by default the model before its conversion. With distill.top_k 0 it stands beside the
 * student on the same device and is run on every micro-batch; else what it says was kept on disk (distill_cache.c) and only that is read. */
#include <stdlib.h>
#include <string.h>

#include "run.h"

static const char *at(const struct run *r, const char *key)
{
    return config_where(r->options.config, config_root(r->options.config), key);
}

/* Hash of the names and bytes of the teacher's files. */
static enum code teacher_hash(const struct run *r, char hex[33])
{
    const char *const *names;
    const char *path = ckpt_path(r->distill.checkpoint);
    int n = ckpt_files(r->distill.checkpoint, &names);
    struct sha256 *h = sha256_begin();
    enum code c = h ? OK : fail(ERR_MEMORY, "out of memory while hashing %s", path);
    for (int i = 0; c == OK && i < n; i++) {
        char one[33], *file = io_is_dir(path) ? io_join(path, names[i]) : strdup(path);
        c = file ? xxh128_file(file, one) : fail(ERR_MEMORY, "out of memory while hashing %s", path);
        free(file);
        if (c == OK) {
            sha256_add(h, names[i], strlen(names[i]) + 1);
            sha256_add(h, one, 32);
        }
    }
    char whole[65];
    if (h)
        sha256_end(h, whole);
    if (c == OK)
        snprintf(hex, 33, "%.32s", whole);
    return c;
}

static enum code check_teacher(const struct run *r)
{
    const struct options *o = &r->options;
    const struct arch *a = ckpt_arch(r->distill.checkpoint);
    if (r->source)
        TRY(fail_in(model_same_tokens(r->distill.checkpoint, r->source), "%s: distill.teacher", at(r, "distill")));
    if (a->V != r->arch.V)
        return fail(ERR_USAGE, "%s: distill.teacher %s has a vocabulary of %lld tokens, this model one of %lld", at(r, "distill"), o->distill.teacher,
                    (long long)a->V, (long long)r->arch.V);
    if (o->distill.top_k > a->V)
        return fail(ERR_USAGE, "%s: distill.top_k %lld is more than the %lld tokens there are", at(r, "distill.top_k"), (long long)o->distill.top_k,
                    (long long)a->V);
    if (a->max_positions > 0 && o->sequence_len > a->max_positions)
        return fail(ERR_USAGE, "%s: sequence_len %lld is beyond the teacher's max_position_embeddings %lld; lower it", at(r, "sequence_len"),
                    (long long)o->sequence_len, (long long)a->max_positions);
    return OK;
}

enum code distill_open(struct run *r)
{
    struct distill *d = &r->distill;
    if (!r->options.distill.on)
        return OK;
    TRY(fail_in(ckpt_open(&d->checkpoint, r->options.distill.teacher, NULL), "%s: distill.teacher", at(r, "distill")));
    TRY(check_teacher(r));
    return teacher_hash(r, d->hash);
}

/* Weights stored in bf16 stay so where activations are f32 beside them all the same. */
struct model_options distill_model_options(const struct run *r)
{
    const struct options *o = &r->options;
    int narrow = ckpt_arch(r->distill.checkpoint)->dtype == DT_BF16 && r->backend->activation_dtype(r->device, DT_BF16) == DT_F32;
    return (struct model_options){.dtype = o->precision == PRECISION_BF16 || narrow ? DT_BF16 : DT_F32, .deterministic = o->deterministic,
                                  .B = o->micro_batch_size, .T = o->sequence_len, .topk = o->distill.top_k};
}

/* With NULL bases it measures. */
static void carve(struct run *r)
{
    struct distill *d = &r->distill;
    int64_t N = r->options.micro_batch_size * r->options.sequence_len, K = r->options.distill.top_k;
    d->teacher.ids = view_2d(arena_carve(&d->arena, (size_t)(N * K) * sizeof(int32_t)), DT_I32, N, K);
    d->teacher.logp = view_2d(arena_carve(&d->arena, (size_t)(N * K) * sizeof(float)), DT_F32, N, K);
}

static enum code attach_cache(struct run *r)
{
    struct distill *d = &r->distill;
    int64_t n = r->options.sequence_len * r->options.distill.top_k;
    TRY(teacher_cache_open(&d->cache, d->cache_path));
    d->ids = malloc((size_t)n * sizeof *d->ids);
    d->logp = malloc((size_t)n * sizeof *d->logp);
    if (!d->ids || !d->logp)
        return fail(ERR_MEMORY, "out of memory for what the teacher says of one sample");
    carve(r);
    size_t bytes = d->arena.used;
    TRY(r->backend->device_alloc(r->device, &d->arena, "teacher", bytes));
    d->arena.used = 0;
    carve(r);
    return OK;
}

enum code distill_attach(struct run *r)
{
    struct distill *d = &r->distill;
    const struct distill_options *o = &r->options.distill;
    if (!d->checkpoint)
        return OK;
    d->teacher.weight = (float)o->weight;
    d->teacher.temperature = (float)o->temperature;
    d->teacher.kl_sum = &r->optimizer.step->kl_sum;
    if (o->top_k > 0)
        TRY(attach_cache(r));
    else {
        struct model_options m = distill_model_options(r);
        TRY(fail_in(model_open(&d->model, ckpt_arch(d->checkpoint), r->backend, r->device, &m), "distill.teacher"));
        TRY(model_load(d->model, d->checkpoint));
        d->teacher.model = d->model;
    }
    distill_teach(r, 1);
    log_info("distill: %s teaches with weight %g at temperature %g%s", o->teacher, o->weight, o->temperature, o->top_k > 0 ? ", from its kept tokens" : "");
    return OK;
}

void distill_teach(struct run *r, int on)
{
    model_teach(r->model, on && r->distill.checkpoint ? &r->distill.teacher : NULL);
}

enum code distill_batch(struct run *r, int64_t first)
{
    struct distill *d = &r->distill;
    if (!d->cache)
        return OK;
    int64_t n = r->options.sequence_len * r->options.distill.top_k;
    for (int64_t b = 0; b < r->batch.B; b++) {
        TRY(teacher_cache_read(d->cache, sampler_window(&r->data.train_order, first + b), d->ids, d->logp));
        TRY(r->backend->device_copy(r->device, (int32_t *)d->teacher.ids.p + b * n, d->ids, (size_t)n * sizeof *d->ids));
        TRY(r->backend->device_copy(r->device, (float *)d->teacher.logp.p + b * n, d->logp, (size_t)n * sizeof *d->logp));
    }
    return OK;
}

void distill_close(struct run *r)
{
    struct distill *d = &r->distill;
    if (r->model)
        model_teach(r->model, NULL);
    model_close(d->model);
    teacher_cache_close(d->cache);
    ckpt_close(d->checkpoint);
    if (d->arena.base)
        r->backend->device_free(r->device, &d->arena);
    free(d->cache_path);
    free(d->ids);
    free(d->logp);
    memset(d, 0, sizeof *d);
}

/* ---- what the result says of it ---- */

json_t *distill_to_json(const struct run *r)
{
    const struct distill_options *o = &r->options.distill;
    if (!r->distill.checkpoint)
        return json_null();
    return json_pack("{s:s, s:s, s:f, s:f, s:I}", "teacher", o->teacher, "teacher_hash", r->distill.hash, "weight", o->weight, "temperature", o->temperature,
                     "top_k", (json_int_t)o->top_k);
}

void distill_card(const struct run *r, FILE *f)
{
    const struct distill_options *o = &r->options.distill;
    if (!r->distill.checkpoint)
        return;
    fprintf(f, "| distilled from | %s (hash %s) |\n| distillation | weight %g, temperature %g", o->teacher, r->distill.hash, o->weight, o->temperature);
    if (o->top_k > 0)
        fprintf(f, ", its %lld most likely tokens", (long long)o->top_k);
    fprintf(f, " |\n");
}
