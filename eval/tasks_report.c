/* Results in the schema of lm-evaluation-harness's results.json: {"results": {TASK: {"alias", "acc,none", "acc_stderr,none", ...}}}, so
 * that whatever reads theirs reads ours. A standard error is that of a mean of n zeros and ones, sqrt(p (1-p) / (n-1)); null at n = 1.
 * A directory is a group: the plain mean over its tasks, with the standard error sqrt(sum of squares) / tasks. */
#include "tasks.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ACC, ACC_NORM, ACC_BYTES, MATCH, N_METRICS };
static const char *const metrics[N_METRICS] = { "acc", "acc_norm", "acc_bytes", "exact_match" };

static int has_metric(const struct task *t, int metric) { return (t->kind == TASK_MATCH) == (metric == MATCH); }

static int right(const struct task *t, int64_t i, int metric)
{
    const struct task_outcome *o = &t->outcome[i];
    const int said[N_METRICS] = { o->pred, o->pred_norm, o->pred_bytes, 0 };
    return metric == MATCH ? o->matched : said[metric] == t->item[i].gold;
}

struct mean { double p, se; }; /* se NAN: not known */

static struct mean mean_of(const struct task *t, int metric)
{
    double n = (double)t->n, sum = 0;
    for (int64_t i = 0; i < t->n; i++)
        sum += right(t, i, metric);
    double p = sum / n;
    return (struct mean){ p, n > 1 ? sqrt(p * (1 - p) / (n - 1)) : (double)NAN };
}

/* The group's mean; *tasks: how many of it have this metric. */
static struct mean mean_of_group(const struct tasks *t, int group, int metric, int *tasks)
{
    struct mean m = { 0, 0 };
    *tasks = 0;
    for (int i = 0; i < t->n; i++)
        if (t->v[i].group == group && has_metric(&t->v[i], metric)) {
            struct mean one = mean_of(&t->v[i], metric);
            m.p += one.p;
            m.se += one.se * one.se;
            ++*tasks;
        }
    m.p /= *tasks;
    m.se = sqrt(m.se) / *tasks;
    return m;
}

static void set_mean(json_t *j, const char *metric, struct mean m)
{
    char key[48];
    snprintf(key, sizeof key, "%s,none", metric);
    json_object_set_new(j, key, json_real(m.p));
    snprintf(key, sizeof key, "%s_stderr,none", metric);
    json_object_set_new(j, key, isfinite(m.se) ? json_real(m.se) : json_null());
}

/* A file's name need not be UTF-8. */
static json_t *text_json(const char *text, size_t n)
{
    json_t *j = json_stringn(text, n);
    char *plain = j ? NULL : malloc(n + 1);
    if (!plain)
        return j;
    for (size_t i = 0; i < n; i++)
        plain[i] = (unsigned char)text[i] < 0x80 ? text[i] : '?';
    j = json_stringn(plain, n);
    free(plain);
    return j;
}

static void set_named(json_t *object, const char *name, json_t *value)
{
    json_t *key = text_json(name, strlen(name));
    json_object_set_new(object, json_string_value(key), value);
    json_decref(key);
}

static void add_task(const struct task *t, json_t *results, json_t *samples, json_t *configs, json_t *better)
{
    json_t *r = json_object(), *b = json_object();
    json_object_set_new(r, "alias", text_json(t->name, strlen(t->name)));
    for (int m = 0; m < N_METRICS; m++)
        if (has_metric(t, m)) {
            set_mean(r, metrics[m], mean_of(t, m));
            json_object_set_new(b, metrics[m], json_true());
        }
    set_named(results, t->name, r);
    set_named(better, t->name, b);
    set_named(samples, t->name, json_pack("{s:I, s:I}", "original", (json_int_t)t->lines, "effective", (json_int_t)t->n));
    set_named(configs, t->name, json_pack("{s:o, s:s, s:s, s:i}", "task", text_json(t->name, strlen(t->name)), "output_type",
                                          t->kind == TASK_MATCH ? "generate_until" : "multiple_choice", "kind", task_kind_name(t->kind), "num_fewshot", 0));
}

static json_t *group_json(const struct tasks *t, int group)
{
    json_t *r = json_object();
    json_object_set_new(r, "alias", text_json(t->group[group], strlen(t->group[group])));
    for (int m = 0; m < N_METRICS; m++) {
        int tasks;
        struct mean mean = mean_of_group(t, group, m, &tasks);
        if (tasks > 0)
            set_mean(r, metrics[m], mean);
    }
    return r;
}

json_t *tasks_result(const struct session *s, const struct tasks *t)
{
    json_t *j = json_result("tasks", s->backend->device_name(s->device));
    json_t *results = json_object(), *samples = json_object(), *configs = json_object(), *better = json_object(), *groups = json_object();
    for (int i = 0; i < t->n; i++)
        add_task(&t->v[i], results, samples, configs, better);
    for (int g = 0; g < t->n_groups; g++)
        set_named(groups, t->group[g], group_json(t, g));
    json_object_set_new(j, "checkpoint", text_json(ckpt_path(s->checkpoint), strlen(ckpt_path(s->checkpoint))));
    json_object_set_new(j, "results", results);
    json_object_set_new(j, "groups", groups);
    json_object_set_new(j, "configs", configs);
    json_object_set_new(j, "higher_is_better", better);
    json_object_set_new(j, "n-samples", samples);
    return j;
}

static void table_line(const char *name, const char *items, const char *metric, struct mean m)
{
    printf("%-44.44s %7s  %-11s %.4f", name, items, metric, m.p);
    isfinite(m.se) ? printf(" +- %.4f\n", m.se) : printf("\n");
}

void tasks_table(const struct tasks *t)
{
    printf("%-44s %7s  %-11s %s\n", "task", "items", "metric", "value");
    for (int i = 0; i < t->n; i++) {
        char items[24];
        snprintf(items, sizeof items, "%lld", (long long)t->v[i].n);
        for (int m = 0; m < N_METRICS; m++)
            if (has_metric(&t->v[i], m))
                table_line(t->v[i].name, items, metrics[m], mean_of(&t->v[i], m));
    }
    for (int g = 0; g < t->n_groups; g++)
        for (int m = 0; m < N_METRICS; m++) {
            int tasks;
            struct mean mean = mean_of_group(t, g, m, &tasks);
            if (tasks > 0)
                table_line(t->group[g], "group", metrics[m], mean);
        }
}

static json_t *sample_json(const struct task *t, int64_t i)
{
    const struct task_item *item = &t->item[i];
    const struct task_outcome *o = &t->outcome[i];
    json_t *j = json_pack("{s:o, s:I, s:I}", "task", text_json(t->name, strlen(t->name)), "doc_id", (json_int_t)i, "line", (json_int_t)item->number);
    for (int m = 0; m < N_METRICS; m++)
        if (has_metric(t, m))
            json_object_set_new(j, metrics[m], json_integer(right(t, i, m)));
    if (t->kind == TASK_MATCH) {
        json_object_set_new(j, "target", json_string(item->text[0]));
        json_object_set_new(j, "said", text_json(o->said ? o->said : "", o->said_n));
        return j;
    }
    json_t *lls = json_array(), *tokens = json_array();
    for (int k = 0; k < item->n; k++) {
        json_array_append_new(lls, json_real(o->sum[k].logp));
        json_array_append_new(tokens, json_integer(o->sum[k].tokens));
    }
    json_object_set_new(j, "target", json_integer(item->gold));
    json_object_set_new(j, "pred", json_integer(o->pred));
    json_object_set_new(j, "pred_norm", json_integer(o->pred_norm));
    json_object_set_new(j, "loglikelihoods", lls);
    json_object_set_new(j, "tokens", tokens);
    return j;
}

enum code tasks_samples(const struct tasks *t, const char *path)
{
    FILE *f = fopen(path, "w");
    if (!f)
        return fail_errno(path, "cannot create");
    int bad = 0;
    for (int i = 0; i < t->n; i++)
        for (int64_t k = 0; k < t->v[i].n && !bad; k++) {
            json_t *j = sample_json(&t->v[i], k);
            bad = json_dumpf(j, f, JSON_COMPACT | JSON_REAL_PRECISION(9)) != 0 || fputc('\n', f) == EOF;
            json_decref(j);
        }
    if (fclose(f) != 0)
        bad = 1;
    return bad ? fail_errno(path, "cannot write") : OK;
}
