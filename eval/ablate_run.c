/* Driving the cells, one after the other, with the time left. Each step of a cell leaves a file when it is complete and is skipped
 * when the file is there, so a stopped ablation continues. */
#include "ablate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void ablate_cell_paths(const struct ablation *a, const struct cell *c, struct ablate_paths *p)
{
    snprintf(p->root, sizeof p->root, "%s", a->config.output_dir);
    snprintf(p->converted, sizeof p->converted, "%s/converted/%s", p->root, c->conversion);
    snprintf(p->zero, sizeof p->zero, "%s/zero/%s.json", p->root, c->zero);
    snprintf(p->trained, sizeof p->trained, "%s/trained/%s", p->root, c->training);
    snprintf(p->teacher, sizeof p->teacher, "%s/teacher/", p->root); /* a folder, says the last byte */
    snprintf(p->cell, sizeof p->cell, "%s/cells/%s", p->root, c->id);
    snprintf(p->log, sizeof p->log, "%s/log.txt", p->cell);
}

/* The source itself at G = H: converting it would only copy. */
const char *ablate_start_path(const struct ablation *a, const struct cell *c, const struct ablate_paths *p) { return c->G == a->H ? a->config.model : p->converted; }

void ablate_result_path(const struct ablation *a, const struct cell *c, char *path, size_t n)
{
    struct ablate_paths p;
    ablate_cell_paths(a, c, &p);
    if (c->alpha > 0)
        snprintf(path, n, "%s/run/final", p.trained);
    else
        snprintf(path, n, "%s", ablate_start_path(a, c, &p));
}

/* What a record that was refused left behind. */
static void forget(struct cell *c)
{
    json_decref(c->curve);
    json_decref(c->evals);
    json_decref(c->tasks);
    c->curve = c->evals = c->tasks = NULL;
}

static enum code run_cell(const struct ablation *a, struct cell *c)
{
    struct ablate_paths p;
    char result[1300];
    ablate_cell_paths(a, c, &p);
    snprintf(result, sizeof result, "%s/result.json", p.cell);
    if (io_exists(result) && ablate_record_load(c, result) == OK) {
        c->done = 1;
        return OK;
    }
    forget(c);
    double start = host_seconds();
    TRY(io_mkdirs(p.cell));
    TRY(ablate_convert(a, c, &p));
    TRY(ablate_score_start(a, c, &p));
    TRY(ablate_uptrain(a, c, &p));
    TRY(ablate_score_result(a, c, &p));
    c->seconds = host_seconds() - start;
    json_t *j = ablate_record(c);
    enum code e = j ? json_write_file(result, j) : fail(ERR_NUMERIC, "a loss of cell %s is not finite", c->id);
    json_decref(j);
    TRY(e);
    c->done = 1;
    return OK;
}

/* Two rates from the finished cells: seconds per training token for each loss, and seconds per cell for the rest. A share of a
 * cell trained before (its measuring repeated) counts as measured. */
double ablate_time_left(const struct ablation *a)
{
    double train_s[2] = { 0, 0 }, tokens[2] = { 0, 0 }, rest_s = 0, left = 0;
    int rest_n = 0;
    for (int i = 0; i < a->n_cells; i++) {
        const struct cell *c = &a->cells[i];
        int distill = strcmp(c->loss, "distill") == 0;
        if (!c->done || !(c->seconds > 0))
            continue;
        train_s[distill] += c->uptrain_s;
        tokens[distill] += c->alpha > 0 ? (double)c->tokens : 0;
        rest_s += c->seconds > c->uptrain_s ? c->seconds - c->uptrain_s : 0;
        rest_n++;
    }
    for (int i = 0; i < a->n_cells; i++) {
        const struct cell *c = &a->cells[i];
        int k = strcmp(c->loss, "distill") == 0;
        if (c->done || *c->error)
            continue;
        if (rest_n == 0 || (c->alpha > 0 && !(tokens[0] + tokens[1] > 0)))
            return (double)NAN;
        if (!(tokens[k] > 0))
            k = !k;
        left += rest_s / rest_n;
        if (c->alpha > 0)
            left += c->alpha * a->original_tokens * train_s[k] / tokens[k];
    }
    return left;
}

static void announce(const struct ablation *a, int i, double start)
{
    const struct cell *c = &a->cells[i];
    int done = 0;
    char share[24], left[32], so_far[32], heads[96], training[64] = "";
    for (int k = 0; k < a->n_cells; k++)
        done += a->cells[k].done;
    ablate_percent(share, c->alpha);
    ablate_heads_name(a, c->G, "key/value ", heads);
    ablate_duration(left, ablate_time_left(a));
    ablate_duration(so_far, host_seconds() - start);
    if (c->alpha > 0)
        snprintf(training, sizeof training, ", %s on %s, seed %lld", c->loss, share, (long long)c->seed);
    log_info("cell %d of %d (%d done, %s so far, left: %s): %s, %s%s%s", i + 1, a->n_cells, done, so_far,
             isfinite(ablate_time_left(a)) ? left : "not known yet", heads, c->G == a->H ? "the original" : c->method, grouping_text(c->grouping), training);
}

enum code ablate_run(struct ablation *a)
{
    double start = host_seconds();
    for (int i = 0; i < a->n_cells; i++) {
        struct cell *c = &a->cells[i];
        announce(a, i, start);
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
    return ablate_decode(a);
}
