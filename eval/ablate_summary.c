/* Cells to summaries: mean and spread over the seeds of everything measured, and the look-ups that the report is made of. */
#include "ablate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int same(double x, double y) { return !(x < y) && !(x > y); }

static int same_key(const struct summary *s, const struct cell *c)
{
    return s->G == c->G && strcmp(s->method, c->method) == 0 && strcmp(s->grouping, c->grouping) == 0 && strcmp(s->loss, c->loss) == 0 && same(s->alpha, c->alpha);
}

struct measure ablate_measure(const double *x, int n)
{
    struct measure m = { 0, 0, 0 };
    for (int i = 0; i < n; i++)
        if (isfinite(x[i])) {
            m.mean += x[i];
            m.n++;
        }
    m.mean = m.n ? m.mean / m.n : (double)NAN;
    for (int i = 0; i < n; i++)
        m.sd += isfinite(x[i]) ? (x[i] - m.mean) * (x[i] - m.mean) : 0;
    m.sd = m.n > 1 ? sqrt(m.sd / (m.n - 1)) : 0;
    return m;
}

static double task_value(const struct cell *c, const char *name)
{
    const json_t *value = json_object_get(json_object_get(c->tasks, name), "value");
    return json_is_number(value) ? json_number_value(value) : (double)NAN;
}

/* Mean over the tasks of a cell, as the GQA paper averages its tasks; NaN without any. */
static double task_mean(const struct ablation *a, const struct cell *c)
{
    const char *names[MOST_TASKS];
    int n = ablate_task_names(a, names);
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += task_value(c, names[i]);
    return n ? sum / n : (double)NAN;
}

int ablate_task_names(const struct ablation *a, const char **names)
{
    int n = 0;
    for (int i = 0; i < a->n_cells; i++) {
        const char *name;
        json_t *value;
        if (!a->cells[i].done)
            continue;
        json_object_foreach(a->cells[i].tasks, name, value) {
            int k = 0;
            while (k < n && strcmp(names[k], name) != 0)
                k++;
            if (k == n && n < MOST_TASKS)
                names[n++] = name;
        }
    }
    return n;
}

struct measure ablate_task(const struct ablation *a, const struct summary *s, const char *task)
{
    double x[256];
    int n = 0;
    for (int i = 0; i < a->n_cells && n < 256; i++)
        if (a->cells[i].done && same_key(s, &a->cells[i]))
            x[n++] = task_value(&a->cells[i], task);
    return ablate_measure(x, n);
}

double ablate_uncertainty(const struct summary *s)
{
    double seeds = s->final.n > 1 ? s->final.sd / sqrt(s->final.n) : 0, text = s->difference_stderr.n > 0 ? s->difference_stderr.mean : 0;
    return sqrt(seeds * seeds + text * text); /* every seed is scored on the same text: its part does not average out */
}

double ablate_paired_stderr(const json_t *x, const json_t *y)
{
    size_t n = json_array_size(x);
    double difference = 0, tokens = 0, squares = 0;
    if (n < 2 || json_array_size(y) != n)
        return (double)NAN;
    for (int pass = 0; pass < 2; pass++)
        for (size_t i = 0; i < n; i++) {
            const json_t *p = json_array_get(x, i), *q = json_array_get(y, i);
            double d = json_number_value(json_array_get(p, 0)) - json_number_value(json_array_get(q, 0)), c = json_number_value(json_array_get(p, 1));
            if (fabs(c - json_number_value(json_array_get(q, 1))) > 0)
                return (double)NAN;
            if (pass) {
                squares += (d - difference / tokens * c) * (d - difference / tokens * c);
            } else {
                difference += d;
                tokens += c;
            }
        }
    return sqrt(squares * (double)n / (double)(n - 1)) / tokens;
}

static double first_row(const struct cell *c, const char *key)
{
    const json_t *value = json_object_get(json_array_get(c->decode, 0), key);
    return json_is_number(value) ? json_number_value(value) : (double)NAN;
}

/* All the measures of one summary. */
static void fill(const struct ablation *a, struct summary *s)
{
    enum { MOST = 256 };
    double final[MOST], zero[MOST], text[MOST], kl[MOST], bits[MOST], task[MOST], convert_s[MOST], uptrain_s[MOST];
    int n = 0;
    s->best = -1;
    s->ms = s->ms_sd = s->prefill = s->decode = (double)NAN;
    for (int i = 0; i < a->n_cells && n < MOST; i++) {
        const struct cell *c = &a->cells[i];
        if (!same_key(s, c))
            continue;
        s->failed += !c->done && *c->error;
        if (!c->done)
            continue;
        if (s->best < 0 || c->loss_final < a->cells[s->best].loss_final)
            s->best = i;
        if (c->decode) {
            s->ms = first_row(c, "ms_per_token");
            s->ms_sd = first_row(c, "stdev");
            s->prefill = first_row(c, "prefill_tok_s");
            s->decode = first_row(c, "decode_tok_s");
            s->kv_bytes = c->kv_bytes;
        }
        final[n] = c->loss_final;
        zero[n] = c->loss_zero_step;
        text[n] = c->difference_stderr;
        kl[n] = c->kl;
        bits[n] = c->bits_per_byte;
        task[n] = task_mean(a, c);
        convert_s[n] = c->convert_s;
        uptrain_s[n++] = c->uptrain_s;
    }
    s->n = n;
    s->final = ablate_measure(final, n);
    s->zero = ablate_measure(zero, n);
    s->difference_stderr = ablate_measure(text, n);
    s->kl = ablate_measure(kl, n);
    s->bits = ablate_measure(bits, n);
    s->task = ablate_measure(task, n);
    s->convert_s = ablate_measure(convert_s, n);
    s->uptrain_s = ablate_measure(uptrain_s, n);
}

enum code ablate_summarise(struct ablation *a)
{
    free(a->summaries);
    a->n_summaries = 0;
    a->summaries = calloc((size_t)a->n_cells + 1, sizeof *a->summaries);
    if (!a->summaries)
        return fail(ERR_MEMORY, "out of memory for the summaries");
    for (int i = 0; i < a->n_cells; i++) {
        const struct cell *c = &a->cells[i];
        int k = 0;
        while (k < a->n_summaries && !same_key(&a->summaries[k], c))
            k++;
        if (k == a->n_summaries)
            a->summaries[a->n_summaries++] = (struct summary){ .G = c->G, .method = c->method, .grouping = c->grouping, .loss = c->loss, .alpha = c->alpha };
    }
    for (int i = 0; i < a->n_summaries; i++)
        fill(a, &a->summaries[i]);
    ablate_advise(a);
    return OK;
}

const struct summary *ablate_find(const struct ablation *a, int64_t G, const char *method, const char *grouping, const char *loss, double alpha)
{
    for (int i = 0; i < a->n_summaries; i++) {
        const struct summary *s = &a->summaries[i];
        int start = G == a->H || (strcmp(s->method, method) == 0 && (strcmp(method, "auto") == 0 || strcmp(s->grouping, grouping) == 0));
        if (s->n > 0 && s->G == G && start && same(s->alpha, alpha) && (!(alpha > 0) || strcmp(s->loss, loss) == 0))
            return s;
    }
    return NULL;
}

const struct summary *ablate_best(const struct ablation *a, int64_t G, double alpha)
{
    const struct summary *best = NULL;
    for (int i = 0; i < a->n_summaries; i++) {
        const struct summary *s = &a->summaries[i];
        if (s->n > 0 && s->G == G && same(s->alpha, alpha) && (!best || s->final.mean < best->final.mean))
            best = s;
    }
    return best;
}

const struct summary *ablate_plain(const struct ablation *a, int64_t G, double alpha)
{
    const struct ablate_config *c = &a->config;
    return ablate_find(a, G, *(const char *const *)c->method.items, *(const char *const *)c->grouping.items, *(const char *const *)c->loss.items, alpha);
}

/* More heads first; of as many one number before a budget, and budgets in the grid's order. */
static int before(const struct ablation *a, int64_t x, int64_t y)
{
    double difference = ablate_heads(a, x) - ablate_heads(a, y);
    return difference > 0 || (!(difference < 0) && x > y);
}

int ablate_groups(const struct ablation *a, int64_t *G, int max)
{
    int n = 0;
    for (int i = 0; i < a->n_summaries; i++) {
        int at = 0;
        if (a->summaries[i].n == 0)
            continue;
        while (at < n && before(a, G[at], a->summaries[i].G))
            at++;
        if (n == max || (at < n && G[at] == a->summaries[i].G))
            continue;
        memmove(G + at + 1, G + at, (size_t)(n - at) * sizeof *G);
        G[at] = a->summaries[i].G;
        n++;
    }
    return n;
}

int ablate_shares(const struct ablation *a, double *alpha, int max)
{
    int n = 0;
    for (int i = 0; i < a->n_summaries; i++) {
        int at = 0;
        if (a->summaries[i].n == 0)
            continue;
        while (at < n && alpha[at] < a->summaries[i].alpha)
            at++;
        if (n == max || (at < n && same(alpha[at], a->summaries[i].alpha)))
            continue;
        memmove(alpha + at + 1, alpha + at, (size_t)(n - at) * sizeof *alpha);
        alpha[at] = a->summaries[i].alpha;
        n++;
    }
    return n;
}
