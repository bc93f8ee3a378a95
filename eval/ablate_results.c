/* Results for programs (gqakit/ablation/1, CSV) and the table for people. */
#include "ablate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static json_t *number(double x) { return isfinite(x) ? json_real(x) : json_null(); }

static json_t *cell_json(const struct cell *c)
{
    json_t *j = json_pack("{s:s, s:I, s:s, s:s, s:s, s:f, s:I, s:I, s:I}", "id", c->id, "G", (json_int_t)c->G, "method", c->method, "grouping", c->grouping, "loss",
                          c->loss, "alpha", c->alpha, "seed", (json_int_t)c->seed, "steps", (json_int_t)c->steps, "tokens", (json_int_t)c->tokens);
    json_object_set_new(j, "loss_zero_step", number(c->loss_zero_step));
    json_object_set_new(j, "loss_final", number(c->loss_final));
    json_object_set_new(j, "loss_stderr", number(c->loss_stderr));
    json_object_set_new(j, "kl", json_null());
    json_object_set_new(j, "bits_per_byte", number(c->bits_per_byte));
    json_object_set_new(j, "tasks", json_object());
    json_object_set_new(j, "curve", c->curve ? json_incref(c->curve) : json_array());
    json_object_set_new(j, "evals", c->evals ? json_incref(c->evals) : json_array());
    json_object_set_new(j, "decode", c->decode ? json_incref(c->decode) : json_array());
    json_object_set_new(j, "kv_bytes", json_integer(c->kv_bytes));
    json_object_set_new(j, "convert_s", number(c->convert_s));
    json_object_set_new(j, "uptrain_s", number(c->uptrain_s));
    json_object_set_new(j, "home", *c->home ? json_string(c->home) : json_null());
    json_object_set_new(j, "status", json_string(c->done ? "done" : "failed"));
    json_object_set_new(j, "error", c->done ? json_null() : json_string(c->error));
    return j;
}

json_t *ablate_origin(const struct ablation *a)
{
    json_t *j = json_result("ablation", "cpu");
    int threads = a->config.threads > 0 ? (int)a->config.threads : host_cpus(); /* the cells run in processes of their own */
    json_object_set_new(json_object_get(j, "host"), "threads", json_integer(threads));
    return j;
}

json_t *ablate_results(const struct ablation *a)
{
    json_t *j = ablate_origin(a), *cells = json_array(), *summary = json_array();
    json_object_set_new(j, "model", json_string(a->config.model));
    json_object_set_new(j, "source_hash", json_string(a->source_hash));
    json_object_set_new(j, "original_tokens", number(a->original_tokens));
    json_object_set_new(j, "baseline", json_string(a->cells[a->baseline].id));
    for (int i = 0; i < a->n_cells; i++)
        json_array_append_new(cells, cell_json(&a->cells[i]));
    for (int i = 0; i < a->n_summaries; i++) {
        const struct summary *s = &a->summaries[i];
        json_array_append_new(summary, json_pack("{s:{s:I, s:s, s:s, s:s, s:f}, s:f, s:f, s:i, s:f}", "key", "G", (json_int_t)s->G, "method", s->method, "grouping",
                                                 s->grouping, "loss", s->loss, "alpha", s->alpha, "mean", s->mean, "sd", s->sd, "n", s->n, "ms_per_token", s->ms));
    }
    json_object_set_new(j, "cells", cells);
    json_object_set_new(j, "summary", summary);
    json_object_set_new(j, "recommendation", json_pack("{s:o, s:f, s:s}", "cell", a->recommended >= 0 ? json_incref(json_object_get(json_array_get(summary, (size_t)a->recommended), "key")) : json_null(),
                                                       "margin", a->config.margin, "reason", a->reason));
    return j;
}

char *ablate_csv(const struct ablation *a)
{
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    if (!f)
        return NULL;
    fprintf(f, "id,num_key_value_heads,method,grouping,loss,uptrain_fraction,seed,steps,tokens,loss_zero_step,loss_final,loss_stderr,bits_per_byte,kv_bytes_per_token,"
               "batch,context,prefill_tok_s,decode_tok_s,ms_per_token,bandwidth_share,convert_s,uptrain_s,status\n");
    for (int i = 0; i < a->n_cells; i++) {
        const struct cell *c = &a->cells[i];
        size_t rows = json_array_size(c->decode);
        for (size_t r = 0; r < (rows ? rows : 1); r++) {
            const json_t *d = json_array_get(c->decode, r);
            fprintf(f, "%s,%lld,%s,%s,%s,%g,%lld,%lld,%lld,%.6f,%.6f,%.6f,%.6f,%lld,", c->id, (long long)c->G, c->method, c->grouping, c->loss, c->alpha,
                    (long long)c->seed, (long long)c->steps, (long long)c->tokens, c->loss_zero_step, c->loss_final, c->loss_stderr, c->bits_per_byte,
                    (long long)c->kv_bytes);
            fprintf(f, "%lld,%lld,%.2f,%.2f,%.4f,%.3f,%.2f,%.2f,%s\n", (long long)json_integer_value(json_object_get(d, "batch")),
                    (long long)json_integer_value(json_object_get(d, "context")), json_number_value(json_object_get(d, "prefill_tok_s")),
                    json_number_value(json_object_get(d, "decode_tok_s")), json_number_value(json_object_get(d, "ms_per_token")),
                    json_number_value(json_object_get(d, "bandwidth_share")), c->convert_s, c->uptrain_s, c->done ? "done" : "failed");
        }
    }
    return fclose(f) == 0 ? text : (free(text), NULL);
}

const char *grouping_text(const char *grouping) { return strcmp(grouping, "consecutive") == 0 ? "" : " similar"; }

void ablate_table(const struct ablation *a, FILE *f)
{
    const struct cell *base = &a->cells[a->baseline];
    double base_ms = json_number_value(json_object_get(json_array_get(base->decode, 0), "ms_per_token"));
    fprintf(f, "%8s %-13s %6s %5s %7s | %9s %9s %9s %8s | %11s %10s %8s\n", "kv heads", "method", "alpha", "seed", "steps", "zero-step", "loss", "vs orig.", "+-", "KV B/token",
            "ms/token", "speed-up");
    for (int i = 0; i < a->n_cells; i++) {
        const struct cell *c = &a->cells[i];
        double ms = json_number_value(json_object_get(json_array_get(c->decode, 0), "ms_per_token"));
        char method[40];
        snprintf(method, sizeof method, "%s%s", c->method, grouping_text(c->grouping));
        if (!c->done) {
            fprintf(f, "%8lld %-13s %6g %5lld  failed: %s\n", (long long)c->G, method, c->alpha, (long long)c->seed, c->error);
            continue;
        }
        fprintf(f, "%8lld %-13s %6g %5lld %7lld | %9.4f %9.4f %+9.4f %8.4f | %11lld %10.3f %7.2fx\n", (long long)c->G, method, c->alpha, (long long)c->seed,
                (long long)c->steps, c->loss_zero_step, c->loss_final, c->loss_final - base->loss_final, c->loss_stderr, (long long)c->kv_bytes, ms, base_ms / ms);
    }
    const json_t *row = json_array_get(base->decode, 0);
    fprintf(f, "\nloss: nats per token, held out. ms/token: decode at batch %lld, context %lld.\n%s\n", (long long)json_integer_value(json_object_get(row, "batch")),
            (long long)json_integer_value(json_object_get(row, "context")), a->reason);
}
