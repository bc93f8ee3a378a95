/* Results for programs (gqakit/ablation/1, CSV) and the table for people. */
#include "ablate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static json_t *number(double x) { return isfinite(x) ? json_real(x) : json_null(); }
static json_t *copy(json_t *j, json_t *otherwise) { return j ? (json_decref(otherwise), json_incref(j)) : otherwise; }

/* {"G", "kv_budget"}: one of them, the other null. */
static void set_heads(const struct ablation *a, json_t *j, int64_t G)
{
    json_object_set_new(j, "G", G < 0 ? json_null() : json_integer(G));
    json_object_set_new(j, "kv_budget", G < 0 ? json_string(ablate_budget(a, G)) : json_null());
}

static json_t *cell_json(const struct ablation *a, const struct cell *c)
{
    json_t *j = json_pack("{s:s, s:I, s:s, s:s, s:s, s:f, s:I, s:I, s:I}", "id", c->id, "G", (json_int_t)c->G, "method", c->method, "grouping", c->grouping, "loss",
                          c->loss, "alpha", c->alpha, "seed", (json_int_t)c->seed, "steps", (json_int_t)c->steps, "tokens", (json_int_t)c->tokens);
    set_heads(a, j, c->G);
    json_object_set_new(j, "chosen", *c->chosen ? json_string(c->chosen) : json_null());
    json_object_set_new(j, "loss_zero_step", number(c->loss_zero_step));
    json_object_set_new(j, "loss_final", number(c->loss_final));
    json_object_set_new(j, "loss_stderr", number(c->loss_stderr));
    json_object_set_new(j, "difference_stderr", number(c->difference_stderr));
    json_object_set_new(j, "kl_zero_step", number(c->kl_zero_step));
    json_object_set_new(j, "kl", number(c->kl));
    json_object_set_new(j, "kl_stderr", number(c->kl_stderr));
    json_object_set_new(j, "bits_per_byte", number(c->bits_per_byte));
    json_object_set_new(j, "tasks", copy(c->tasks, json_object()));
    json_object_set_new(j, "curve", copy(c->curve, json_array()));
    json_object_set_new(j, "evals", copy(c->evals, json_array()));
    json_object_set_new(j, "decode", copy(c->decode, json_array()));
    json_object_set_new(j, "kv_bytes", json_integer(c->kv_bytes));
    json_object_set_new(j, "convert_s", number(c->convert_s));
    json_object_set_new(j, "uptrain_s", number(c->uptrain_s));
    json_object_set_new(j, "home", *c->home ? json_string(c->home) : json_null());
    json_object_set_new(j, "status", json_string(c->done ? "done" : *c->error ? "failed" : "waiting"));
    json_object_set_new(j, "error", c->done || !*c->error ? json_null() : json_string(c->error));
    return j;
}

json_t *ablate_origin(const struct ablation *a)
{
    json_t *j = json_result("ablation", "cpu");
    int threads = a->config.threads > 0 ? (int)a->config.threads : host_cpus(); /* the cells run in processes of their own */
    json_object_set_new(json_object_get(j, "host"), "threads", json_integer(threads));
    return j;
}

static json_t *measure_json(struct measure m) { return m.n ? json_pack("{s:f, s:f, s:i}", "mean", m.mean, "sd", m.sd, "n", m.n) : json_null(); }

static json_t *summary_json(const struct ablation *a, const struct summary *s)
{
    const char *tasks[MOST_TASKS];
    int n = ablate_task_names(a, tasks);
    json_t *j = json_pack("{s:{s:I, s:s, s:s, s:s, s:f}, s:o, s:f, s:i, s:i}", "key", "G", (json_int_t)s->G, "method", s->method, "grouping", s->grouping, "loss", s->loss,
                          "alpha", s->alpha, "mean", number(s->final.mean), "sd", s->final.sd, "n", s->n, "failed", s->failed);
    set_heads(a, json_object_get(j, "key"), s->G);
    json_object_set_new(j, "loss_zero_step", measure_json(s->zero));
    json_object_set_new(j, "loss_final", measure_json(s->final));
    json_object_set_new(j, "kl", measure_json(s->kl));
    json_object_set_new(j, "bits_per_byte", measure_json(s->bits));
    json_t *values = json_object();
    for (int i = 0; i < n; i++)
        json_object_set_new(values, tasks[i], measure_json(ablate_task(a, s, tasks[i])));
    json_object_set_new(j, "tasks", values);
    json_object_set_new(j, "convert_s", measure_json(s->convert_s));
    json_object_set_new(j, "uptrain_s", measure_json(s->uptrain_s));
    json_object_set_new(j, "ms_per_token", number(s->ms));
    json_object_set_new(j, "kv_bytes", json_integer(s->kv_bytes));
    return j;
}

json_t *ablate_results(const struct ablation *a)
{
    const struct advice *d = &a->advice;
    json_t *j = ablate_origin(a), *cells = json_array(), *summary = json_array();
    json_object_set_new(j, "model", json_string(a->config.model));
    json_object_set_new(j, "source_hash", json_string(a->source_hash));
    json_object_set_new(j, "original_tokens", number(a->original_tokens));
    json_object_set_new(j, "baseline", json_string(a->cells[a->baseline].id));
    for (int i = 0; i < a->n_cells; i++)
        json_array_append_new(cells, cell_json(a, &a->cells[i]));
    for (int i = 0; i < a->n_summaries; i++)
        json_array_append_new(summary, summary_json(a, &a->summaries[i]));
    json_object_set_new(j, "cells", cells);
    json_object_set_new(j, "summary", summary);
    json_t *r = json_pack("{s:o, s:f, s:s}", "cell", d->pick >= 0 ? json_incref(json_object_get(json_array_get(summary, (size_t)d->pick), "key")) : json_null(), "margin",
                          a->config.margin, "reason", d->reason);
    json_object_set_new(r, "nearest", d->nearest >= 0 ? json_incref(json_object_get(json_array_get(summary, (size_t)d->nearest), "key")) : json_null());
    json_object_set_new(r, "path", *d->path ? json_string(d->path) : json_null());
    json_object_set_new(r, "command", *d->command ? json_string(d->command) : json_null());
    json_object_set_new(r, "next", *d->next ? json_string(d->next) : json_null());
    json_object_set_new(r, "warning", *d->warning ? json_string(d->warning) : json_null());
    json_object_set_new(j, "recommendation", r);
    return j;
}

static void csv_number(FILE *f, const char *format_before, double x)
{
    fputs(format_before, f);
    if (isfinite(x))
        fprintf(f, "%.6f", x);
}

char *ablate_csv(const struct ablation *a)
{
    const char *tasks[MOST_TASKS];
    int n_tasks = ablate_task_names(a, tasks);
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    if (!f)
        return NULL;
    fprintf(f, "id,num_key_value_heads,kv_budget,method,chosen,grouping,loss,uptrain_fraction,seed,steps,tokens,loss_zero_step,loss_final,loss_stderr,difference_stderr,kl_zero_step,kl,kl_stderr,bits_per_byte,"
               "kv_bytes_per_token,batch,context,prefill_tok_s,decode_tok_s,ms_per_token,bandwidth_share,convert_s,uptrain_s,status");
    for (int k = 0; k < n_tasks; k++) {
        fputs(",\"", f);
        for (const char *s = tasks[k]; *s; s++)
            fputs(*s == '"' ? "\"\"" : (char[]){ *s, 0 }, f);
        fputc('"', f);
    }
    fputc('\n', f);
    for (int i = 0; i < a->n_cells; i++) {
        const struct cell *c = &a->cells[i];
        size_t rows = json_array_size(c->decode);
        for (size_t r = 0; r < (rows ? rows : 1); r++) {
            const json_t *d = json_array_get(c->decode, r);
            char heads[48] = "";
            const char *budget = ablate_budget(a, c->G);
            if (!budget)
                ablate_heads_short(a, c->G, heads);
            fprintf(f, "%s,%s,%s,%s,%s,%s,%s,%g,%lld,%lld,%lld", c->id, heads, budget ? budget : "", c->method, c->chosen, c->grouping, c->loss, c->alpha, (long long)c->seed,
                    (long long)c->steps, (long long)c->tokens);
            const double numbers[] = { c->loss_zero_step, c->loss_final, c->loss_stderr, c->difference_stderr, c->kl_zero_step, c->kl, c->kl_stderr, c->bits_per_byte };
            for (size_t k = 0; k < sizeof numbers / sizeof numbers[0]; k++)
                csv_number(f, ",", numbers[k]);
            fprintf(f, ",%lld,%lld,%lld,%.2f,%.2f,%.4f,%.3f,%.2f,%.2f,%s", (long long)c->kv_bytes, (long long)json_integer_value(json_object_get(d, "batch")),
                    (long long)json_integer_value(json_object_get(d, "context")), json_number_value(json_object_get(d, "prefill_tok_s")),
                    json_number_value(json_object_get(d, "decode_tok_s")), json_number_value(json_object_get(d, "ms_per_token")),
                    json_number_value(json_object_get(d, "bandwidth_share")), c->convert_s, c->uptrain_s, c->done ? "done" : *c->error ? "failed" : "waiting");
            for (int k = 0; k < n_tasks; k++) {
                const json_t *value = json_object_get(json_object_get(c->tasks, tasks[k]), "value");
                csv_number(f, ",", json_is_number(value) ? json_number_value(value) : (double)NAN);
            }
            fputc('\n', f);
        }
    }
    return fclose(f) == 0 ? text : (free(text), NULL);
}

static void optional(FILE *f, double x)
{
    if (isfinite(x))
        fprintf(f, "%8.4f ", x);
    else
        fprintf(f, "%8s ", "-");
}

void ablate_table(const struct ablation *a, FILE *f)
{
    const struct cell *base = &a->cells[a->baseline];
    const json_t *row = json_array_get(base->decode, 0);
    double base_ms = json_number_value(json_object_get(row, "ms_per_token"));
    fprintf(f, "%8s %-24s %7s %5s | %9s %9s %9s %8s %8s | %11s %9s %8s\n", "kv heads", "start", "share", "seeds", "zero-step", "loss", "vs orig.", "sd", "KL", "KV B/token", "ms/token",
            "speed-up");
    for (int i = 0; i < a->n_summaries; i++) {
        const struct summary *s = &a->summaries[i];
        char name[96], share[24], heads[48];
        ablate_start_name(a, s, name);
        ablate_percent(share, s->alpha);
        if (s->n == 0)
            continue;
        ablate_heads_short(a, s->G, heads);
        fprintf(f, "%8s %-24s %7s %5d | %9.4f %9.4f %+9.4f ", heads, name, share, s->n, s->zero.mean, s->final.mean, s->final.mean - base->loss_final);
        optional(f, s->final.n > 1 ? s->final.sd : (double)NAN);
        optional(f, s->kl.mean);
        fprintf(f, "| %11lld %9.3f %7.2fx\n", (long long)s->kv_bytes, s->ms, base_ms / s->ms);
    }
    for (int i = 0; i < a->n_cells; i++) {
        const struct cell *c = &a->cells[i];
        char heads[48];
        ablate_heads_short(a, c->G, heads);
        if (!c->done && *c->error)
            fprintf(f, "%8s %s%s, %s, %g, seed %lld failed: %s\n", heads, c->method, grouping_text(c->grouping), c->loss, c->alpha, (long long)c->seed, c->error);
    }
    fprintf(f, "\nloss: nats per token, held out. ms/token: decode at batch %lld, context %lld.\n\n%s\n", (long long)json_integer_value(json_object_get(row, "batch")),
            (long long)json_integer_value(json_object_get(row, "context")), a->advice.reason);
    if (*a->advice.next)
        fprintf(f, "%s\n", a->advice.next);
    if (*a->advice.warning)
        fprintf(f, "%s\n", a->advice.warning);
    if (*a->advice.command)
        fprintf(f, "checkpoint: %s\n%s\n", a->advice.path, a->advice.command);
}
