/* The walk: every tensor of the result in the order it is stored, copied in row blocks, pooled, or taken from a merged layer
 * (layers.c), while a second thread hashes the source's files for provenance. Without merged layers memory is two block buffers,
 * whatever the model's size. */
#include "convert.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Small enough that a block read, checked and written stays in the second-level cache or near it, large enough that system
 * calls do not count. */
#define BLOCK_BYTES (2u << 20)

/* ---- hashing ---- */

struct hasher { const char *dir; struct file_hash *files; int n; enum code code; char text[512]; };

static void *hash_files(void *arg)
{
    struct hasher *h = arg;
    int is_dir = io_is_dir(h->dir);
    for (int i = 0; i < h->n && h->code == OK; i++) {
        char *path = is_dir ? io_join(h->dir, h->files[i].path) : strdup(h->dir);
        if (!path) {
            h->code = fail(ERR_MEMORY, "out of memory while hashing %s", h->dir);
        } else {
            h->files[i].bytes = io_file_bytes(path);
            h->code = sha256_file(path, h->files[i].sha256);
        }
        free(path);
    }
    if (h->code != OK) /* the sentence belongs to this thread: carry it over */
        snprintf(h->text, sizeof h->text, "%s", fail_text());
    return NULL;
}

/* ---- copying ---- */

static void warn_nonfinite(struct checkpoint *source, const struct ckpt_tensor *in, int64_t bad, struct outcome *result)
{
    if (bad)
        log_warn("%s: tensor %s has %lld non-finite values; copied as they are", ckpt_path(source), in->source, (long long)bad);
    result->nonfinite_copied += bad;
}

/* The buffer holds BLOCK_BYTES, or a row of the widest tensor if that is more. */
static enum code copy_tensor(struct checkpoint *source, const struct ckpt_tensor *in, struct ckpt_writer *w, const struct ckpt_tensor *out,
                             void *buffer, struct outcome *result)
{
    /* Computed tensors (rewritings) are read as they were computed, so that a wider result is not rounded on the way. */
    enum dtype type = in->dtype == out->dtype || in->dtype == DT_F64 ? in->dtype : DT_F32;
    int64_t width = in->nd == 2 ? in->n[1] : 1, per_row = width * (int64_t)dtype_bytes(type);
    int64_t step = per_row > BLOCK_BYTES ? 1 : BLOCK_BYTES / per_row;
    size_t bad = 0;
    for (int64_t row = 0; row < in->n[0]; row += step) {
        int64_t rows = in->n[0] - row < step ? in->n[0] - row : step;
        TRY(ckpt_read(source, in, row, rows, buffer, type));
        bad += count_nonfinite(buffer, type, (size_t)(rows * width));
        TRY(ckpt_write(w, out, row, rows, buffer, type));
    }
    warn_nonfinite(source, in, (int64_t)bad, result);
    return OK;
}

double initializer_range(const struct arch *a)
{
    double sd = 0.02;
    json_t *config = a->source_config ? json_loads(a->source_config, 0, NULL) : NULL;
    const json_t *x = json_object_get(config, "initializer_range");
    if (json_is_number(x) && json_number_value(x) > 0)
        sd = json_number_value(x);
    json_decref(config);
    return sd;
}

enum code error_table(struct pool_error *e, int64_t G)
{
    e->G = G;
    e->distance = calloc((size_t)G, sizeof *e->distance);
    e->size = calloc((size_t)G, sizeof *e->size);
    return e->distance && e->size ? OK : fail(ERR_MEMORY, "out of memory for the error table");
}

static enum code write_constant(struct ckpt_writer *w, const struct ckpt_tensor *t, double constant)
{
    float value = (float)constant;
    for (int64_t row = 0; row < t->n[0]; row++)
        TRY(ckpt_write(w, t, row, 1, &value, DT_F32));
    return OK;
}

/* Tensors whose rows belong to K/V heads: merged, repeated, or both. */
static enum code convert_heads(struct checkpoint *source, const struct plan *plan, const struct options *o, struct ckpt_writer *w,
                               const struct ckpt_tensor *in, const struct ckpt_tensor *out, void *buffer, size_t buffer_bytes, struct outcome *result)
{
    int64_t G0 = plan->from.stack[STACK_DEC].block[in->layer].G, P = plan->pooled[in->layer];
    int keys = strstr(in->name, ".k.") != NULL;
    struct pool_job job = { source, in, w, out, in->n[0] / G0, P, (enum merge_method)o->method, (uint64_t)o->seed, initializer_range(&plan->from),
                            NULL, buffer, buffer_bytes };
    if (P == G0) {
        int64_t bad = 0;
        TRY(pool_repeat(&job, &bad));
        warn_nonfinite(source, in, bad, result);
        return OK;
    }
    struct pool_error *e = NULL;
    if (in->pool == POOL_KV && in->nd == 2) {
        e = &result->layers[in->layer].error[!keys];
        TRY(error_table(e, P));
    }
    float *scale = NULL;
    double constant;
    if (keys || in->pool == POOL_QKNORM)
        TRY(knorm_scale(plan, &job, in->layer, &scale, &constant));
    job.row_scale = scale;
    enum code c = in->pool == POOL_QKNORM && scale ? write_constant(w, out, constant) : pool_tensor(&job, e);
    free(scale);
    return c;
}

static enum code convert_tensor(struct checkpoint *source, const struct plan *plan, const struct options *o, struct layers *layers, struct ckpt_writer *w,
                                const struct ckpt_tensor *out, void *buffer, size_t buffer_bytes, struct outcome *result)
{
    const struct ckpt_tensor *in = ckpt_find(source, out->name);
    if (!in)
        return fail(ERR_INTERNAL, "%s: result tensor %s has no source", ckpt_path(source), out->name);
    const struct overlay_tensor *made = result->calibrated ? overlay_find(&result->calibration.overlay, out->name) : NULL;
    if (made)
        return layers_write_rows(w, out, made->values, made->n[0] * made->n[1], plan->from.stack[STACK_DEC].block[in->layer].D);
    if (layers && layers_holds(layers, in))
        return layers_write(layers, in, w, out);
    if (in->layer >= 0 && (in->pool == POOL_KV || (in->pool == POOL_QKNORM && plan->from.qk_norm != QK_NORM_HEAD))) {
        int64_t G0 = plan->from.stack[STACK_DEC].block[in->layer].G, G = plan->arch.stack[STACK_DEC].block[in->layer].G;
        if (plan->pooled[in->layer] != G0 || G != G0)
            return convert_heads(source, plan, o, w, in, out, buffer, buffer_bytes, result);
    }
    CHECK(in->nd == out->nd && in->n[0] == out->n[0] && in->n[1] == out->n[1]);
    return copy_tensor(source, in, w, out, buffer, result);
}

static enum code walk(struct checkpoint *source, const struct plan *plan, const struct options *o, struct ckpt_writer *w, struct outcome *out)
{
    size_t widest = 0;
    for (int i = 0; i < ckpt_count(source); i++) {
        const struct ckpt_tensor *t = ckpt_at(source, i);
        size_t row = (size_t)(t->nd == 2 ? t->n[1] : 1) * 16;
        widest = row > widest ? row : widest;
    }
    size_t bytes = widest > BLOCK_BYTES ? widest : BLOCK_BYTES;
    void *buffer = NULL;
    if (posix_memalign(&buffer, 4096, bytes) != 0)
        return fail(ERR_MEMORY, "out of memory for a %zu byte block", bytes);
    struct progress p;
    char name[96];
    progress_begin(&p, "convert", plan->bytes_out >> 20);
    int64_t done = 0;
    struct layers *layers = NULL;
    enum code c = plan->whole_layers && !out->calibrated ? layers_open(&layers, source, plan, o, out) : OK;
    for (int i = 0; c == OK && i < ckpt_writer_count(w); i++) {
        const struct ckpt_tensor *t = ckpt_writer_at(w, i);
        snprintf(name, sizeof name, "MiB %s", t->name);
        progress_update(&p, done >> 20, name);
        c = convert_tensor(source, plan, o, layers, w, t, buffer, bytes, out);
        done += t->bytes;
    }
    progress_end(&p);
    layers_close(layers);
    free(buffer);
    return c;
}

static enum code outcome_init(struct outcome *out, struct checkpoint *source, const struct plan *plan)
{
    const char *const *names;
    out->L = plan->arch.stack[STACK_DEC].L;
    out->n_inputs = ckpt_files(source, &names);
    out->layers = calloc((size_t)out->L + 1, sizeof *out->layers);
    out->inputs = calloc((size_t)out->n_inputs + 1, sizeof *out->inputs);
    if (!out->layers || !out->inputs)
        return fail(ERR_MEMORY, "out of memory for the result table");
    for (int i = 0; i < out->n_inputs; i++)
        out->inputs[i].path = names[i];
    return OK;
}

void outcome_free(struct outcome *o)
{
    for (int64_t l = 0; o->layers && l < o->L; l++) {
        for (int k = 0; k < 2; k++) {
            free(o->layers[l].error[k].distance);
            free(o->layers[l].error[k].size);
        }
        free(o->layers[l].j);
        free(o->layers[l].mean_j);
        free(o->layers[l].members);
        free(o->layers[l].e_k);
    }
    free(o->layers);
    free(o->inputs);
    calibration_close(&o->calibration);
}

static json_t *provenance_facts(struct checkpoint *source, const struct plan *plan, const struct options *o, const struct outcome *out)
{
    json_t *j = report_convert(source, plan, o, out);
    json_t *facts = json_object();
    json_object_set(facts, "conversion", j);
    json_object_del(json_object_get(facts, "conversion"), "layers");
    json_decref(j);
    return facts;
}

static struct ckpt_target target_of(struct checkpoint *source, const struct plan *plan, const struct options *o)
{
    return (struct ckpt_target){ o->target, &plan->arch, source, options_dtype(o), o->shard_mb * 1000000, o->force, o->compress };
}

enum code stream_check(struct checkpoint *source, const struct plan *plan, const struct options *o)
{
    struct ckpt_target target = target_of(source, plan, o);
    return ckpt_target_check(&target);
}

enum code stream_convert(struct checkpoint *source, const struct plan *plan, const struct options *o, struct outcome *out)
{
    double start = host_seconds();
    TRY(outcome_init(out, source, plan));
    struct ckpt_target target = target_of(source, plan, o);
    struct ckpt_writer *w = NULL;
    struct carry *carry = NULL;
    char why[160];
    TRY(carry_open(&carry, plan, o, out, why, sizeof why));
    if (*why)
        log_info("the optimizer's moments are not carried: %s", why);
    enum code created = ckpt_create(&w, &target);
    if (created != OK) {
        carry_close(carry);
        return created;
    }
    if (o->calibration) {
        out->calibrated = 1;
        enum code calibrated = calibration_run(&out->calibration, source, plan, o, out);
        if (calibrated != OK) {
            carry_close(carry);
            ckpt_abandon(w);
            return calibrated;
        }
    }
    struct hasher hasher = { ckpt_path(source), out->inputs, out->n_inputs, OK, "" };
    pthread_t thread;
    int threaded = pthread_create(&thread, NULL, hash_files, &hasher) == 0;
    enum code c = walk(source, plan, o, w, out);
    if (threaded)
        pthread_join(thread, NULL);
    else
        hash_files(&hasher);
    if (c == OK && hasher.code != OK)
        c = fail(hasher.code, "%s", hasher.text);
    if (c == OK) {
        char *card = card_text(source, plan, o, out);
        c = card ? ckpt_add_file(w, "README.md", card, strlen(card)) : fail(ERR_MEMORY, "out of memory for the model card");
        free(card);
    }
    out->seconds = host_seconds() - start;
    json_t *facts = c == OK ? provenance_facts(source, plan, o, out) : NULL;
    if (c == OK && carry)
        c = carry_write(carry, w, facts);
    carry_close(carry);
    if (c != OK) {
        json_decref(facts);
        ckpt_abandon(w);
        return c;
    }
    ckpt_provenance(w, facts);
    json_decref(facts);
    c = ckpt_commit(w);
    out->seconds = host_seconds() - start;
    return c;
}
