/* Quality of a cell: loss and KL to the original on held-out text (gqa-eval perplexity), before and after training, and tasks
 * (gqa-eval tasks). */
#include "ablate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RESULT_LIMIT (64u << 20)

struct loss_sums { double nats, tokens, variance, bits, bytes, kl, kl_variance; json_t *windows; };

/* Adds the result of gqa-eval perplexity on one file. An absent number is an error: read as 0 it would be the best loss there is. */
static enum code sums_add(struct loss_sums *s, const json_t *j, int with_kl)
{
    static const char where[] = "gqa-eval perplexity";
    double tokens, loss, se, bits = 0, bytes = 0, kl = 0, kl_se = 0;
    TRY(json_need_f64(j, where, "tokens", &tokens));
    TRY(json_need_f64(j, where, "nats_per_token", &loss));
    TRY(json_need_f64(j, where, "stderr", &se));
    TRY(json_want_f64(j, where, "bits_per_byte", &bits));
    TRY(json_want_f64(j, where, "bytes", &bytes));
    if (with_kl) {
        TRY(json_need_f64(j, where, "kl_per_token", &kl));
        TRY(json_want_f64(j, where, "kl_stderr", &kl_se));
    }
    s->nats += loss * tokens;
    s->tokens += tokens;
    s->variance += se * se * tokens * tokens;
    s->bits += bits * bytes;
    s->bytes += bytes;
    s->kl += kl * tokens;
    s->kl_variance += kl_se * kl_se * tokens * tokens;
    json_array_extend(s->windows, json_object_get(j, "windows"));
    return OK;
}

static enum code perplexity_of(const struct ablation *a, const char *checkpoint, const char *data, int with_kl, const char *log, struct loss_sums *sums)
{
    const struct ablate_config *c = &a->config;
    char context[24], stride[24], limit[24], threads[24], *out = NULL;
    snprintf(context, sizeof context, "%lld", (long long)c->context);
    snprintf(stride, sizeof stride, "%lld", (long long)c->stride);
    snprintf(limit, sizeof limit, "%lld", (long long)c->limit);
    snprintf(threads, sizeof threads, "%lld", (long long)c->threads);
    /* f32: differences of 0.01 nats are what the report is about */
    const char *arguments[24] = { "perplexity", checkpoint, "--json", "--data", data, "--context", context, "--stride", stride, "--limit", limit,
                                  "--threads", threads, "--device", c->device, "--dtype", "f32", "--windows" };
    int n = 18;
    if (c->tokenizer) {
        arguments[n++] = "--tokenizer";
        arguments[n++] = c->tokenizer;
    }
    if (c->pack)
        arguments[n++] = "--pack";
    if (with_kl) {
        arguments[n++] = "--reference";
        arguments[n++] = c->model;
    }
    TRY(child_program("gqa-eval", arguments, log, &out));
    json_t *j = NULL;
    enum code e = json_parse_object(out, strlen(out), "gqa-eval perplexity", &j);
    free(out);
    if (e == OK)
        e = sums_add(sums, j, with_kl);
    json_decref(j);
    return e;
}

/* Runs gqa-eval perplexity into `record` unless it is there. Several files of data are averaged by their tokens. */
static enum code perplexity_step(const struct ablation *a, const char *checkpoint, int with_kl, const char *record, const char *log, json_t **result)
{
    if (io_exists(record) && json_read_file(record, RESULT_LIMIT, result) == OK)
        return OK;
    struct loss_sums s = { .windows = json_array() };
    enum code e = OK;
    for (int i = 0; e == OK && i < a->config.data.n; i++)
        e = perplexity_of(a, checkpoint, ((const char *const *)a->config.data.items)[i], with_kl, log, &s);
    if (e != OK) {
        json_decref(s.windows);
        return e;
    }
    *result = json_pack("{s:f, s:f, s:f, s:f}", "tokens", s.tokens, "nats_per_token", s.nats / s.tokens, "stderr", sqrt(s.variance) / s.tokens, "bytes", s.bytes);
    if (!*result || json_object_set_new(*result, "windows", s.windows) != 0)
        return fail(ERR_NUMERIC, "%s: its loss is not finite", checkpoint);
    if (s.bytes > 0)
        json_object_set_new(*result, "bits_per_byte", json_real(s.bits / s.bytes));
    if (with_kl) {
        json_object_set_new(*result, "kl_per_token", json_real(s.kl / s.tokens));
        json_object_set_new(*result, "kl_stderr", json_real(sqrt(s.kl_variance) / s.tokens));
    }
    return json_write_file(record, *result);
}

/* What the text's choice adds to the difference from the original: the same windows, so what is hard for both cancels. */
static void pair_with_original(const struct ablation *a, struct cell *c, const json_t *scored)
{
    struct ablate_paths p;
    json_t *original = NULL;
    ablate_cell_paths(a, &a->cells[a->baseline], &p);
    c->difference_stderr = (double)NAN;
    if (json_read_file(p.zero, RESULT_LIMIT, &original) == OK)
        c->difference_stderr = ablate_paired_stderr(json_object_get(scored, "windows"), json_object_get(original, "windows"));
    json_decref(original);
}

/* Scores `checkpoint` and takes over the loss and what goes with it. The original's KL to itself is 0 and is not measured. */
static enum code loss_step(const struct ablation *a, struct cell *c, const char *checkpoint, const char *record, const char *log, double *loss, double *kl)
{
    json_t *j = NULL;
    int original = c->G == a->H && strcmp(checkpoint, a->config.model) == 0;
    enum code e = perplexity_step(a, checkpoint, a->config.kl && !original, record, log, &j);
    if (e == OK)
        e = json_need_f64(j, record, "nats_per_token", loss);
    if (e == OK)
        e = json_need_f64(j, record, "stderr", &c->loss_stderr);
    if (e == OK)
        pair_with_original(a, c, j);
    c->bits_per_byte = (double)NAN;
    if (e == OK)
        e = json_want_f64(j, record, "bits_per_byte", &c->bits_per_byte);
    c->kl_stderr = (double)NAN;
    if (e == OK && original && a->config.kl)
        *kl = c->kl_stderr = 0;
    if (e == OK && !original)
        e = json_want_f64(j, record, "kl_per_token", kl);
    if (e == OK && !original)
        e = json_want_f64(j, record, "kl_stderr", &c->kl_stderr);
    json_decref(j);
    return e;
}

enum code ablate_score_start(const struct ablation *a, struct cell *c, const struct ablate_paths *p)
{
    char dir[1100];
    snprintf(dir, sizeof dir, "%s/zero", p->root);
    TRY(io_mkdirs(dir));
    TRY(loss_step(a, c, ablate_start_path(a, c, p), p->zero, p->log, &c->loss_zero_step, &c->kl_zero_step));
    c->loss_final = c->loss_zero_step;
    c->kl = c->kl_zero_step;
    return OK;
}

/* One metric for each task: length-normalised accuracy, where there is one, else accuracy or exact match. */
json_t *ablate_task_values(const json_t *results)
{
    static const char *const metrics[] = { "acc_norm", "acc", "exact_match" };
    const json_t *all = json_object_get(results, "results"), *counts = json_object_get(results, "n-samples"), *task;
    if (!json_is_object(all) || json_object_size(all) == 0)
        return NULL;
    json_t *values = json_object();
    const char *name;
    json_object_foreach((json_t *)(uintptr_t)all, name, task) {
        for (size_t i = 0; i < sizeof metrics / sizeof metrics[0]; i++) {
            char key[64], se[64];
            snprintf(key, sizeof key, "%s,none", metrics[i]);
            snprintf(se, sizeof se, "%s_stderr,none", metrics[i]);
            const json_t *value = json_object_get(task, key), *error = json_object_get(task, se);
            if (!json_is_number(value))
                continue;
            json_t *j = json_pack("{s:s, s:f}", "metric", metrics[i], "value", json_number_value(value));
            json_object_set_new(j, "stderr", json_is_number(error) ? json_real(json_number_value(error)) : json_null());
            json_object_set_new(j, "n", json_integer(json_integer_value(json_object_get(json_object_get(counts, name), "effective"))));
            json_object_set_new(values, name, j);
            break;
        }
    }
    if (json_object_size(values) == 0) {
        json_decref(values);
        return NULL;
    }
    return values;
}

static enum code tasks_step(const struct ablation *a, struct cell *c, const struct ablate_paths *p, const char *checkpoint)
{
    if (a->config.tasks.n == 0)
        return OK;
    char record[1300], files[8192], threads[24], *out = NULL;
    size_t used = 0;
    snprintf(record, sizeof record, "%s/tasks.json", p->cell);
    json_t *j = NULL;
    if (!io_exists(record) || json_read_file(record, RESULT_LIMIT, &j) != OK) {
        for (int i = 0; i < a->config.tasks.n; i++) {
            used += (size_t)snprintf(files + used, sizeof files - used, "%s%s", i ? "," : "", ((const char *const *)a->config.tasks.items)[i]);
            if (used >= sizeof files)
                return fail(ERR_USAGE, "evaluate.tasks: the paths together are longer than %zu bytes", sizeof files);
        }
        snprintf(threads, sizeof threads, "%lld", (long long)a->config.threads);
        const char *arguments[] = { "tasks", checkpoint, "--tasks", files, "--threads", threads, "--device", a->config.device, "--json",
                                    a->config.tokenizer ? "--tokenizer" : NULL, a->config.tokenizer, NULL };
        TRY(child_program("gqa-eval", arguments, p->log, &out));
        enum code e = json_parse_object(out, strlen(out), "gqa-eval tasks", &j);
        free(out);
        TRY(e);
        TRY(json_write_file(record, j));
    }
    c->tasks = ablate_task_values(j);
    json_decref(j);
    return c->tasks ? OK : fail(ERR_INPUT, "%s: no accuracy and no exact match in it", record);
}

enum code ablate_score_result(const struct ablation *a, struct cell *c, const struct ablate_paths *p)
{
    char path[1300], record[1300];
    ablate_result_path(a, c, path, sizeof path);
    snprintf(record, sizeof record, "%s/final.json", p->cell);
    if (c->alpha > 0)
        TRY(loss_step(a, c, path, record, p->log, &c->loss_final, &c->kl));
    return tasks_step(a, c, p, path);
}
