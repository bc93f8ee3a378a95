/* The two steps that make checkpoints: gqa-convert (once per conversion) and gqa-uptrain (once per conversion, loss, share, seed). */
#include "ablate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RESULT_LIMIT (64u << 20)

/* What method auto turned out to be, and the layers' heads under a budget: "align+all similar; heads 4 1 1 2". */
static void read_choice(struct cell *c, const json_t *record)
{
    char heads[120];
    const char *method = json_string_value(json_object_get(record, "method")), *refit = json_string_value(json_object_get(record, "refit")),
               *grouping = json_string_value(json_object_get(record, "grouping"));
    c->chosen[0] = 0;
    ablate_heads_chosen(json_object_get(record, "groups"), heads, sizeof heads);
    if (c->G < 0)
        snprintf(c->chosen, sizeof c->chosen, "heads %s", heads);
    if (!method || strcmp(c->method, "auto") != 0 || strcmp(method, "auto") == 0)
        return;
    int fitted = refit && strcmp(refit, "none") != 0;
    snprintf(c->chosen, sizeof c->chosen, "%.12s%s%.12s%s%s%s", method, fitted ? "+" : "", fitted ? refit : "", grouping ? grouping_text(grouping) : "",
             c->G < 0 ? "; heads " : "", c->G < 0 ? heads : "");
}

enum code ablate_convert(const struct ablation *a, struct cell *c, const struct ablate_paths *p)
{
    if (c->G == a->H)
        return OK;
    char record[1300], G[24], seed[24];
    snprintf(record, sizeof record, "%s.convert.json", p->converted);
    if (!io_exists(record)) {
        snprintf(G, sizeof G, "%lld", (long long)c->G);
        snprintf(seed, sizeof seed, "%lld", (long long)c->seed);
        char method[32], tokens[24], length[24];
        const char *plus = strchr(c->method, '+'), *calibration = ablate_calibration(a, c), *budget = ablate_budget(a, c->G);
        snprintf(method, sizeof method, "%.*s", plus ? (int)(plus - c->method) : 31, c->method);
        snprintf(tokens, sizeof tokens, "%lld", (long long)a->config.calibration_tokens);
        snprintf(length, sizeof length, "%lld", (long long)ablate_calibration_length(a));
        const char *arguments[24] = { a->config.model, p->converted, budget ? "--kv-budget" : "--kv-heads", budget ? budget : G, "--method", method, "--seed", seed, "--force", "--quiet", "--json" };
        int n = 11;
        if (strcmp(c->method, "auto") != 0) { /* which chooses refit and grouping by itself */
            arguments[n++] = "--grouping";
            arguments[n++] = c->grouping;
        }
        if (calibration) {
            arguments[n++] = "--calibration";
            arguments[n++] = calibration;
            arguments[n++] = "--calibration-tokens";
            arguments[n++] = tokens;
        }
        if (calibration && ablate_calibration_length(a)) {
            arguments[n++] = "--sequence-length";
            arguments[n++] = length;
        }
        if (plus) {
            arguments[n++] = "--refit";
            arguments[n++] = plus + 1;
        }
        char *out = NULL;
        TRY(child_program("gqa-convert", arguments, p->log, &out));
        enum code e = io_write_atomic(record, out, strlen(out));
        free(out);
        TRY(e);
    }
    json_t *j = NULL;
    TRY(json_read_file(record, RESULT_LIMIT, &j));
    const char *home = json_string_value(json_object_get(json_object_get(j, "target"), "sentence"));
    snprintf(c->home, sizeof c->home, "%s", home ? home : "");
    c->convert_s = json_number_value(json_object_get(j, "seconds"));
    read_choice(c, j);
    json_decref(j);
    return OK;
}

/* Validation every twelfth of the run, on the evaluation's data, unless the config says otherwise: the recovery curves. */
static void ask_for_curves(const struct ablation *a, const struct cell *c, json_t *j)
{
    json_t *data = json_object_get(j, "data");
    if (data && !json_object_get(data, "validation")) {
        json_t *files = json_array();
        for (int i = 0; i < a->config.data.n; i++)
            json_array_append_new(files, json_string(((const char *const *)a->config.data.items)[i]));
        json_object_set_new(data, "validation", files);
    }
    if (json_object_get(j, "eval_steps"))
        return;
    double micro = json_number_value(json_object_get(j, "micro_batch_size")), batch = json_number_value(json_object_get(j, "global_batch_size"));
    double accumulation = json_number_value(json_object_get(j, "gradient_accumulation_steps")), T = json_number_value(json_object_get(j, "sequence_len"));
    if (!(batch > 0))
        batch = (micro > 0 ? micro : 1) * (accumulation > 0 ? accumulation : 1);
    double steps = T > 0 ? ceil(c->alpha * a->original_tokens / (batch * T)) : 12;
    json_object_set_new(j, "eval_steps", json_integer(steps > 12 && steps < 1e9 ? (json_int_t)(steps / 12) : 1));
}

/* The teacher's predictions, when they are kept (top_k), lie in one folder for all cells: computed once. */
static json_t *distill_block(const struct ablation *a, const struct ablate_paths *p)
{
    json_t *d = json_deep_copy(a->distill);
    if (json_number_value(json_object_get(d, "top_k")) > 0 && !json_object_get(d, "cache"))
        json_object_set_new(d, "cache", json_string(p->teacher));
    return d;
}

static enum code uptrain_config(const struct ablation *a, const struct cell *c, const struct ablate_paths *p, const char *path)
{
    char run[1300];
    snprintf(run, sizeof run, "%s/run", p->trained);
    json_t *j = json_deep_copy(a->uptrain);
    ask_for_curves(a, c, j);
    json_object_set_new(j, "model", json_pack("{s:s}", "path", ablate_start_path(a, c, p)));
    json_object_set_new(j, "uptrain_fraction", json_real(c->alpha));
    json_object_set_new(j, "seed", json_integer(c->seed));
    json_object_set_new(j, "output_dir", json_string(run));
    if (strcmp(c->loss, "distill") == 0)
        json_object_set_new(j, "distill", distill_block(a, p));
    if (a->config.threads)
        json_object_set_new(j, "threads", json_integer(a->config.threads));
    char *text = config_json_to_yaml(j);
    json_decref(j);
    enum code e = text ? io_write_atomic(path, text, strlen(text)) : fail(ERR_MEMORY, "out of memory for %s", path);
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

/* Checkpoints and tokenised text of a finished run: several times its result, and nothing reads them again. */
static void tidy(const struct ablation *a, const struct ablate_paths *p)
{
    char run[1300], **names = NULL;
    int n = 0;
    snprintf(run, sizeof run, "%s/run", p->trained);
    if (a->config.keep_all || io_list(run, &names, &n) != OK)
        return;
    for (int i = 0; i < n; i++)
        if (strncmp(names[i], "step-", 5) == 0 || strcmp(names[i], "cache") == 0) {
            char *path = io_join(run, names[i]);
            if (!path || io_remove_tree(path) != OK)
                log_warn("%s of a finished run was not removed: %s", names[i], fail_text());
            free(path);
        }
    io_names_free(names, n);
}

enum code ablate_uptrain(const struct ablation *a, struct cell *c, const struct ablate_paths *p)
{
    if (c->alpha <= 0)
        return OK;
    char yaml[1300], final[1300], log[1300];
    snprintf(yaml, sizeof yaml, "%s/uptrain.yaml", p->trained);
    snprintf(final, sizeof final, "%s/run/final/config.json", p->trained);
    snprintf(log, sizeof log, "%s/run/log.jsonl", p->trained);
    TRY(io_mkdirs(p->trained));
    double measured = 0;
    if (!io_exists(final)) {
        TRY(uptrain_config(a, c, p, yaml));
        const char *arguments[] = { yaml, "--resume", "auto", "--device", a->config.device, NULL };
        double start = host_seconds();
        char *out = NULL;
        TRY(child_program("gqa-uptrain", arguments, p->log, &out));
        free(out);
        measured = host_seconds() - start;
        tidy(a, p);
    }
    TRY(read_curves(c, log));
    if (measured > c->uptrain_s) /* the log's time covers all resumes, but training alone */
        c->uptrain_s = measured;
    return OK;
}
