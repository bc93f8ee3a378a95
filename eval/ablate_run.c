/* Driving the cells: convert (once per conversion), loss before training, uptrain, loss after, decode speed (once per group
 * count). Each step leaves a file when it is complete and is skipped when the file is there, so a stopped ablation continues. */
#include "ablate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RESULT_LIMIT (64u << 20)

struct paths { char root[1024], converted[1200], cell[1200], log[1300]; };

static void cell_paths(const struct ablation *a, const struct cell *c, struct paths *p)
{
    snprintf(p->root, sizeof p->root, "%s", a->config.output_dir);
    snprintf(p->converted, sizeof p->converted, "%s/converted/%s", p->root, c->conversion);
    snprintf(p->cell, sizeof p->cell, "%s/cells/%s", p->root, c->id);
    snprintf(p->log, sizeof p->log, "%s/log.txt", p->cell);
}

static enum code write_text(const char *path, const char *text) { return io_write_atomic(path, text, strlen(text)); }

/* The source itself at G = H: converting it would only copy. */
static const char *start_of(const struct ablation *a, const struct cell *c, const struct paths *p) { return c->G == a->H ? a->config.model : p->converted; }

static enum code convert_step(const struct ablation *a, struct cell *c, const struct paths *p)
{
    if (c->G == a->H)
        return OK;
    char record[1300], G[24], seed[24];
    snprintf(record, sizeof record, "%s.convert.json", p->converted);
    if (!io_exists(record)) {
        snprintf(G, sizeof G, "%lld", (long long)c->G);
        snprintf(seed, sizeof seed, "%lld", (long long)c->seed);
        char method[32], tokens[24];
        const char *plus = strchr(c->method, '+'), *calibration = ablate_calibration(a, c->method);
        snprintf(method, sizeof method, "%.*s", plus ? (int)(plus - c->method) : 31, c->method);
        snprintf(tokens, sizeof tokens, "%lld", (long long)a->config.calibration_tokens);
        const char *arguments[] = { a->config.model, p->converted, "--kv-heads", G, "--method", method, "--grouping", c->grouping, "--seed", seed, "--force",
                                    "--quiet", "--json", calibration ? "--calibration" : NULL, calibration, "--calibration-tokens", tokens, "--refit",
                                    plus ? plus + 1 : "none", NULL };
        char *out = NULL;
        TRY(child_program("gqa-convert", arguments, p->log, &out));
        enum code e = write_text(record, out);
        free(out);
        TRY(e);
    }
    json_t *j = NULL;
    TRY(json_read_file(record, RESULT_LIMIT, &j));
    const char *home = json_string_value(json_object_get(json_object_get(j, "target"), "sentence"));
    snprintf(c->home, sizeof c->home, "%s", home ? home : "");
    c->convert_s = json_number_value(json_object_get(j, "seconds"));
    json_decref(j);
    return OK;
}

struct loss_sums { double nats, tokens, variance, bits, bytes; };

/* Adds the result of gqa-eval perplexity on one file. An absent number is an error: read as 0 it would be the best loss there is. */
static enum code sums_add(struct loss_sums *s, const json_t *j)
{
    static const char where[] = "gqa-eval perplexity";
    double tokens, loss, se, bits = 0, bytes = 0;
    TRY(json_need_f64(j, where, "tokens", &tokens));
    TRY(json_need_f64(j, where, "nats_per_token", &loss));
    TRY(json_need_f64(j, where, "stderr", &se));
    TRY(json_want_f64(j, where, "bits_per_byte", &bits));
    TRY(json_want_f64(j, where, "bytes", &bytes));
    s->nats += loss * tokens;
    s->tokens += tokens;
    s->variance += se * se * tokens * tokens;
    s->bits += bits * bytes;
    s->bytes += bytes;
    return OK;
}

static enum code perplexity_of(const struct ablation *a, const char *checkpoint, const char *data, const char *log, struct loss_sums *sums)
{
    const struct ablate_config *c = &a->config;
    char context[24], stride[24], limit[24], threads[24], *out = NULL;
    snprintf(context, sizeof context, "%lld", (long long)c->context);
    snprintf(stride, sizeof stride, "%lld", (long long)c->stride);
    snprintf(limit, sizeof limit, "%lld", (long long)c->limit);
    snprintf(threads, sizeof threads, "%lld", (long long)c->threads);
    /* f32: differences of 0.01 nats are what the report is about */
    const char *arguments[24] = { "perplexity", checkpoint, "--json", "--data", data, "--context", context, "--stride", stride, "--limit", limit,
                                  "--threads", threads, "--device", c->device, "--dtype", "f32" };
    int n = 17;
    if (c->tokenizer) {
        arguments[n++] = "--tokenizer";
        arguments[n++] = c->tokenizer;
    }
    if (c->pack)
        arguments[n++] = "--pack";
    TRY(child_program("gqa-eval", arguments, log, &out));
    json_t *j = NULL;
    enum code e = json_parse_object(out, strlen(out), "gqa-eval perplexity", &j);
    free(out);
    if (e == OK)
        e = sums_add(sums, j);
    json_decref(j);
    return e;
}

/* Runs gqa-eval perplexity into `record` unless it is there. Several files of data are averaged by their tokens. */
static enum code perplexity_step(const struct ablation *a, const char *checkpoint, const char *record, const char *log, json_t **result)
{
    if (io_exists(record))
        return json_read_file(record, RESULT_LIMIT, result);
    struct loss_sums s = { 0 };
    for (int i = 0; i < a->config.data.n; i++)
        TRY(perplexity_of(a, checkpoint, ((const char *const *)a->config.data.items)[i], log, &s));
    *result = json_pack("{s:f, s:f, s:f, s:f}", "tokens", s.tokens, "nats_per_token", s.nats / s.tokens, "stderr", __builtin_sqrt(s.variance) / s.tokens, "bytes",
                        s.bytes);
    if (s.bytes > 0)
        json_object_set_new(*result, "bits_per_byte", json_real(s.bits / s.bytes));
    return json_write_file(record, *result);
}

static enum code uptrain_config(const struct ablation *a, const struct cell *c, const struct paths *p, const char *path)
{
    char run[1300];
    snprintf(run, sizeof run, "%s/run", p->cell);
    json_t *j = config_to_json(a->config.uptrain);
    json_object_set_new(j, "model", json_pack("{s:s}", "path", start_of(a, c, p)));
    json_object_set_new(j, "uptrain_fraction", json_real(c->alpha));
    json_object_set_new(j, "seed", json_integer(c->seed));
    json_object_set_new(j, "output_dir", json_string(run));
    if (a->config.threads)
        json_object_set_new(j, "threads", json_integer(a->config.threads));
    char *text = config_json_to_yaml(j);
    json_decref(j);
    enum code e = text ? write_text(path, text) : fail(ERR_MEMORY, "out of memory for %s", path);
    free(text);
    return e;
}

/* [[step, loss]] of training and of evaluation, from the run's JSON lines. */
static enum code read_curves(struct cell *c, const char *log)
{
    char *bytes = NULL;
    size_t n = 0;
    TRY(io_read_all(log, RESULT_LIMIT, &bytes, &n));
    c->curve = json_array();
    c->evals = json_array();
    for (char *line = strtok(bytes, "\n"); line; line = strtok(NULL, "\n")) {
        json_t *j = json_loads(line, 0, NULL);
        const json_t *step = json_object_get(j, "step"), *loss = json_object_get(j, "loss"), *eval = json_object_get(j, "eval_loss");
        if (json_is_number(step) && json_is_number(loss))
            json_array_append_new(c->curve, json_pack("[O, O]", step, loss));
        if (json_is_number(step) && json_is_number(eval))
            json_array_append_new(c->evals, json_pack("[O, O]", step, eval));
        if (json_is_number(json_object_get(j, "tokens")))
            c->tokens = json_integer_value(json_object_get(j, "tokens"));
        if (json_is_number(step))
            c->steps = json_integer_value(step);
        c->uptrain_s = json_is_number(json_object_get(j, "time")) ? json_number_value(json_object_get(j, "time")) : c->uptrain_s;
        json_decref(j);
    }
    free(bytes);
    return OK;
}

static enum code uptrain_step(const struct ablation *a, struct cell *c, const struct paths *p)
{
    char yaml[1300], final[1300], log[1300];
    snprintf(yaml, sizeof yaml, "%s/uptrain.yaml", p->cell);
    snprintf(final, sizeof final, "%s/run/final/config.json", p->cell);
    snprintf(log, sizeof log, "%s/run/log.jsonl", p->cell);
    if (!io_exists(final)) {
        TRY(uptrain_config(a, c, p, yaml));
        const char *arguments[] = { yaml, "--resume", "auto", "--device", a->config.device, NULL };
        double start = host_seconds();
        char *out = NULL;
        TRY(child_program("gqa-uptrain", arguments, p->log, &out));
        free(out);
        c->uptrain_s = host_seconds() - start;
    }
    double measured = c->uptrain_s;
    TRY(read_curves(c, log));
    if (measured > c->uptrain_s) /* the log's time covers all resumes, but training alone */
        c->uptrain_s = measured;
    return OK;
}

static json_t *cell_record(const struct cell *c)
{
    json_t *j = json_pack("{s:s, s:I, s:I, s:f, s:f, s:f, s:f, s:f}", "id", c->id, "steps", (json_int_t)c->steps, "tokens", (json_int_t)c->tokens, "loss_zero_step",
                          c->loss_zero_step, "loss_final", c->loss_final, "loss_stderr", c->loss_stderr, "convert_s", c->convert_s, "uptrain_s", c->uptrain_s);
    if (c->bits_per_byte == c->bits_per_byte)
        json_object_set_new(j, "bits_per_byte", json_real(c->bits_per_byte));
    json_object_set(j, "curve", c->curve);
    json_object_set(j, "evals", c->evals);
    json_object_set_new(j, "home", json_string(c->home));
    return j;
}

static enum code load_record(struct cell *c, const char *path)
{
    json_t *j = NULL;
    TRY(json_read_file(path, RESULT_LIMIT, &j));
    c->steps = json_integer_value(json_object_get(j, "steps"));
    c->tokens = json_integer_value(json_object_get(j, "tokens"));
    c->loss_stderr = json_number_value(json_object_get(j, "loss_stderr"));
    c->convert_s = json_number_value(json_object_get(j, "convert_s"));
    c->uptrain_s = json_number_value(json_object_get(j, "uptrain_s"));
    const char *home = json_string_value(json_object_get(j, "home"));
    snprintf(c->home, sizeof c->home, "%s", home ? home : "");
    c->curve = json_incref(json_object_get(j, "curve"));
    c->evals = json_incref(json_object_get(j, "evals"));
    if (json_object_get(j, "bits_per_byte"))
        c->bits_per_byte = json_number_value(json_object_get(j, "bits_per_byte"));
    enum code e = json_need_f64(j, path, "loss_zero_step", &c->loss_zero_step);
    if (e == OK)
        e = json_need_f64(j, path, "loss_final", &c->loss_final);
    json_decref(j);
    return e;
}

/* Scores `checkpoint` (recorded as NAME in the cell's folder) and takes over the loss, its standard error and bits per byte. */
static enum code loss_step(const struct ablation *a, struct cell *c, const struct paths *p, const char *checkpoint, const char *name, double *loss)
{
    char record[1300];
    json_t *j = NULL;
    snprintf(record, sizeof record, "%s/%s", p->cell, name);
    enum code e = perplexity_step(a, checkpoint, record, p->log, &j);
    if (e == OK)
        e = json_need_f64(j, record, "nats_per_token", loss);
    if (e == OK)
        e = json_need_f64(j, record, "stderr", &c->loss_stderr);
    if (e == OK)
        e = json_want_f64(j, record, "bits_per_byte", &c->bits_per_byte);
    json_decref(j);
    return e;
}

static enum code measure_cell(const struct ablation *a, struct cell *c, const struct paths *p)
{
    char final[1300];
    TRY(io_mkdirs(p->cell));
    TRY(convert_step(a, c, p));
    TRY(loss_step(a, c, p, start_of(a, c, p), "zero.json", &c->loss_zero_step));
    c->loss_final = c->loss_zero_step;
    if (c->alpha <= 0)
        return OK;
    TRY(uptrain_step(a, c, p));
    snprintf(final, sizeof final, "%s/run/final", p->cell);
    return loss_step(a, c, p, final, "final.json", &c->loss_final);
}

/* What a record that was refused left behind. */
static void forget_curves(struct cell *c)
{
    json_decref(c->curve);
    json_decref(c->evals);
    c->curve = c->evals = NULL;
}

static enum code run_cell(const struct ablation *a, struct cell *c)
{
    struct paths p;
    char result[1300];
    cell_paths(a, c, &p);
    snprintf(result, sizeof result, "%s/result.json", p.cell);
    if (io_exists(result) && load_record(c, result) == OK) {
        c->done = 1;
        return OK;
    }
    forget_curves(c);
    TRY(measure_cell(a, c, &p));
    json_t *j = cell_record(c);
    enum code e = j ? json_write_file(result, j) : fail(ERR_NUMERIC, "a loss of cell %s is not finite", c->id);
    json_decref(j);
    TRY(e);
    c->done = 1;
    return OK;
}

/* ---- decode speed: by shape, all counts one after the other at the end, so that they see the same machine ---- */

static void join(char *out, size_t n, const struct config_list *list)
{
    size_t used = 0;
    out[0] = 0;
    for (int i = 0; i < list->n && used + 24 <= n; i++)
        used += (size_t)snprintf(out + used, n - used, "%s%lld", i ? "," : "", (long long)((const int64_t *)list->items)[i]);
}

static enum code decode_rows(const struct ablation *a, const struct cell *c, json_t **rows)
{
    struct paths p;
    char record[1300], key[4096], batch[MOST_DECODE * 24], context[MOST_DECODE * 24], new_tokens[24], repeats[24], threads[24];
    cell_paths(a, c, &p);
    join(batch, sizeof batch, &a->config.decode_batch);
    join(context, sizeof context, &a->config.decode_context);
    snprintf(new_tokens, sizeof new_tokens, "%lld", (long long)a->config.decode_new);
    snprintf(repeats, sizeof repeats, "%lld", (long long)a->config.decode_repeats);
    snprintf(threads, sizeof threads, "%lld", (long long)a->config.threads);
    int n = snprintf(key, sizeof key, "%s %lld %s %s %s %s", a->source_hash, (long long)c->G, batch, context, new_tokens, repeats);
    if (a->config.threads > 0)
        n += snprintf(key + n, sizeof key - (size_t)n, " threads %s", threads);
    snprintf(record, sizeof record, "%s/decode", p.root);
    TRY(io_mkdirs(record));
    snprintf(record, sizeof record, "%s/decode/g%lld-%016llx.json", p.root, (long long)c->G, (unsigned long long)hash64(key, (size_t)n));
    json_t *j = NULL;
    if (!io_exists(record)) {
        const char *arguments[] = { "decode", start_of(a, c, &p), "--batch", batch, "--context", context, "--new", new_tokens, "--repeats", repeats,
                                    "--threads", threads, "--device", a->config.device, "--json", NULL };
        char *out = NULL;
        TRY(child_program("gqa-eval", arguments, p.log, &out));
        enum code e = write_text(record, out);
        free(out);
        TRY(e);
    }
    TRY(json_read_file(record, RESULT_LIMIT, &j));
    *rows = json_incref(json_object_get(j, "rows"));
    json_decref(j);
    return OK;
}

static enum code run_decode(struct ablation *a)
{
    for (int i = 0; i < a->n_cells; i++) {
        struct cell *c = &a->cells[i];
        if (!c->done)
            continue;
        for (int k = 0; k < i && !c->decode; k++)
            if (a->cells[k].G == c->G)
                c->decode = json_incref(a->cells[k].decode);
        if (!c->decode)
            TRY(decode_rows(a, c, &c->decode));
        c->kv_bytes = json_integer_value(json_object_get(json_array_get(c->decode, 0), "kv_bytes_per_token"));
    }
    return OK;
}

enum code ablate_run(struct ablation *a)
{
    for (int i = 0; i < a->n_cells; i++) {
        struct cell *c = &a->cells[i];
        log_info("cell %d/%d: %lld key/value heads, method %s, alpha %g, seed %lld", i + 1, a->n_cells, (long long)c->G, c->method, c->alpha, (long long)c->seed);
        enum code e = run_cell(a, c);
        if (e == ERR_STOPPED || e == ERR_LOCKED)
            return e;
        if (e != OK && i == a->baseline) /* nothing could be compared with it */
            return fail_in(e, "the baseline (the original checkpoint) failed");
        if (e != OK) {
            snprintf(c->error, sizeof c->error, "%s", fail_text());
            log_warn("cell %s failed: %s", c->id, c->error);
        }
    }
    return run_decode(a);
}
