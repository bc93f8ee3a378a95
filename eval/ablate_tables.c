/* The tables of the report. */
#include "ablate_tables.h"

#include <math.h>
#include <string.h>

void table_escape(FILE *f, int html, const char *text)
{
    for (; *text; text++) {
        const char *name = !html ? NULL : *text == '<' ? "&lt;" : *text == '>' ? "&gt;" : *text == '&' ? "&amp;" : *text == '"' ? "&quot;" : NULL;
        if (name)
            fputs(name, f);
        else if (!html && *text == '|')
            fputs("\\|", f);
        else
            fputc(*text == '\n' ? ' ' : *text, f);
    }
}

void table_begin(struct table *t, const char *const *heads, int n)
{
    fputs(t->html ? "<div class=wide><table><thead><tr>" : "", t->f);
    for (int i = 0; i < n; i++) {
        int words = strcmp(heads[i], "start") == 0 || strcmp(heads[i], "status") == 0 || strcmp(heads[i], "id") == 0;
        fputs(!t->html ? "| " : words ? "<th scope=col class=t>" : "<th scope=col>", t->f);
        table_escape(t->f, t->html, heads[i]);
        fputs(t->html ? "</th>" : " ", t->f);
    }
    fputs(t->html ? "</tr></thead><tbody>\n" : "|\n", t->f);
    for (int i = 0; !t->html && i < n; i++)
        fputs(i == n - 1 ? "|---|\n" : "|---", t->f);
}

void table_row(struct table *t, const char *class_name)
{
    if (t->html && *class_name)
        fprintf(t->f, "<tr class=\"%s\">", class_name);
    else
        fputs(t->html ? "<tr>" : "|", t->f);
}

void table_text(struct table *t, const char *text)
{
    fputs(t->html ? "<td class=t>" : " ", t->f);
    table_escape(t->f, t->html, text);
    fputs(t->html ? "</td>" : " |", t->f);
}

static void field(struct table *t, double sort, const char *text)
{
    if (!t->html)
        fprintf(t->f, " %s |", text);
    else if (isfinite(sort))
        fprintf(t->f, "<td data-v=\"%.9g\">%s</td>", sort, text);
    else
        fprintf(t->f, "<td>%s</td>", text);
}

/* The formats are literals of this file; a reader of warnings sees them at each call. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
void table_number(struct table *t, const char *format, double x)
{
    char text[64] = "-";
    if (isfinite(x))
        snprintf(text, sizeof text, format, x);
    field(t, x, text);
}

void table_measure(struct table *t, const char *format, struct measure m)
{
    char text[160] = "-", sd[64];
    if (m.n > 0)
        snprintf(text, sizeof text, format, m.mean);
    if (m.n > 1) {
        snprintf(sd, sizeof sd, format, m.sd);
        size_t used = strlen(text);
        snprintf(text + used, sizeof text - used, t->html ? " <small>&plusmn;&#8239;%s</small>" : " +- %s", sd + (sd[0] == '+'));
    }
    field(t, m.mean, text);
}
#pragma GCC diagnostic pop

/* Sorted by the heads that a budget allows. */
static void table_heads(struct table *t, const struct ablation *a, int64_t G)
{
    char text[48];
    ablate_heads_short(a, G, text);
    field(t, ablate_heads(a, G), text);
}

void table_row_end(struct table *t) { fputs(t->html ? "</tr>\n" : "\n", t->f); }
void table_end(struct table *t) { fputs(t->html ? "</tbody></table></div>\n" : "\n", t->f); }

static const struct cell *baseline(const struct ablation *a) { return &a->cells[a->baseline]; }

static struct measure above(const struct ablation *a, struct measure m)
{
    m.mean -= baseline(a)->loss_final;
    return m;
}

static const char *row_class(const struct ablation *a, const struct summary *s)
{
    return a->advice.pick >= 0 && s == &a->summaries[a->advice.pick] ? "pick" : s->G == a->H ? "control" : "";
}

/* Starts of one count: each (method, grouping, loss) once, in the grid's order; without training the loss does not matter. */
static void starts_of(const struct ablation *a, int64_t G, const double *shares, int n, struct table *t)
{
    const struct ablate_config *c = &a->config;
    int losses = n > 0 && shares[n - 1] > 0 ? c->loss.n : 1;
    for (int m = 0; m < (G == a->H ? 1 : c->method.n); m++)
        for (int p = 0; p < (G == a->H ? 1 : c->grouping.n); p++)
            for (int x = 0; x < losses; x++) {
                const char *method = ((const char *const *)c->method.items)[m], *grouping = ((const char *const *)c->grouping.items)[p],
                           *loss = ((const char *const *)c->loss.items)[x];
                const struct summary like = { .G = G, .method = method, .grouping = grouping, .loss = loss, .alpha = shares[n - 1] };
                char name[96];
                if (p > 0 && strcmp(method, "auto") == 0)
                    continue;
                ablate_start_name(a, &like, name);
                table_row(t, G == a->H ? "control" : "");
                table_heads(t, a, G);
                table_text(t, name);
                for (int k = 0; k < n; k++) {
                    const struct summary *s = ablate_find(a, G, method, grouping, loss, shares[k]);
                    table_measure(t, "%+.4f", s ? above(a, s->final) : (struct measure){ (double)NAN, 0, 0 });
                }
                table_row_end(t);
            }
}

void tables_starts(const struct ablation *a, struct table *t)
{
    double shares[16];
    int64_t G[64];
    char text[18][40];
    const char *heads[18] = { "K/V heads", "start" };
    int n = ablate_shares(a, shares, 16), groups = ablate_groups(a, G, 64);
    for (int k = 0; k < n; k++) {
        char share[24];
        ablate_percent(share, shares[k]);
        snprintf(text[k], sizeof text[k], "%s%s", shares[k] > 0 ? "uptrained on " : "not trained", shares[k] > 0 ? share : "");
        heads[2 + k] = text[k];
    }
    table_begin(t, heads, 2 + n);
    for (int g = 0; n > 0 && g < groups; g++)
        starts_of(a, G[g], shares, n, t);
    table_end(t);
}

/* The method, and what auto chose there. */
static void name_with_choice(const struct ablation *a, const struct summary *s, char out[300])
{
    char name[96];
    ablate_start_name(a, s, name);
    const char *chosen = s->best >= 0 ? a->cells[s->best].chosen : "";
    snprintf(out, 300, "%s%s%s%s", name, *chosen ? " (" : "", chosen, *chosen ? ")" : "");
}

static const char *metric_of(const struct ablation *a, const char *task)
{
    for (int i = 0; i < a->n_cells; i++) {
        const char *metric = json_string_value(json_object_get(json_object_get(a->cells[i].tasks, task), "metric"));
        if (metric)
            return metric;
    }
    return "";
}

void tables_summary(const struct ablation *a, struct table *t)
{
    const char *tasks[MOST_TASKS], *heads[20 + MOST_TASKS] = { "K/V heads", "start", "trained on", "seeds", "zero-step loss", "loss", "vs original", "KL to original", "bits/byte" };
    char task_heads[MOST_TASKS][96];
    int n = ablate_task_names(a, tasks), k = 9;
    for (int i = 0; i < n; i++) {
        const char *metric = metric_of(a, tasks[i]);
        snprintf(task_heads[i], sizeof task_heads[i], "%s%s%s", tasks[i], *metric ? ", " : "", metric);
        heads[k++] = task_heads[i];
    }
    static const char *const rest[] = { "K/V bytes/token", "prefill tok/s", "decode tok/s", "conversion, s", "uptraining, s" };
    for (int i = 0; i < 5; i++)
        heads[k++] = rest[i];
    table_begin(t, heads, k);
    for (int i = 0; i < a->n_summaries; i++) {
        const struct summary *s = &a->summaries[i];
        char name[300], share[24];
        if (s->n == 0)
            continue;
        name_with_choice(a, s, name);
        ablate_percent(share, s->alpha);
        table_row(t, row_class(a, s));
        table_heads(t, a, s->G);
        table_text(t, name);
        field(t, s->alpha, s->alpha > 0 ? share : "-");
        table_number(t, "%.0f", s->n);
        table_measure(t, "%.4f", s->zero);
        table_measure(t, "%.4f", s->final);
        table_number(t, "%+.4f", s->final.mean - baseline(a)->loss_final);
        table_measure(t, "%.4f", s->kl);
        table_measure(t, "%.4f", s->bits);
        for (int q = 0; q < n; q++)
            table_measure(t, "%.3f", ablate_task(a, s, tasks[q]));
        table_number(t, "%.0f", s->kv_bytes > 0 ? (double)s->kv_bytes : (double)NAN);
        table_number(t, "%.0f", s->prefill);
        table_number(t, "%.0f", s->decode);
        table_number(t, "%.1f", s->G == a->H ? (double)NAN : s->convert_s.mean);
        table_number(t, "%.1f", s->alpha > 0 ? s->uptrain_s.mean : (double)NAN);
        table_row_end(t);
    }
    table_end(t);
}

static double of(const json_t *row, const char *key)
{
    const json_t *value = json_object_get(row, key);
    return json_is_number(value) ? json_number_value(value) : (double)NAN;
}

/* "25% (heads 4 1 1 2)": conversions under one budget may differ. */
static void shape_heads(struct table *t, const struct ablation *a, const struct cell *c)
{
    char text[48], whole[240];
    const char *heads = c->G < 0 ? strstr(c->chosen, "heads ") : NULL;
    ablate_heads_short(a, c->G, text);
    snprintf(whole, sizeof whole, "%s%s%s%s", text, heads ? " (" : "", heads ? heads : "", heads ? ")" : "");
    field(t, ablate_heads(a, c->G), whole);
}

void tables_speed(const struct ablation *a, struct table *t)
{
    static const char *const heads[] = { "K/V heads", "batch", "context", "prefill tok/s", "decode tok/s", "ms/token", "sd", "speed-up", "bandwidth share", "GB/s measured" };
    table_begin(t, heads, 10);
    for (int i = 0; i < a->n_cells; i++) {
        const struct cell *c = &a->cells[i];
        int first = c->decode != NULL;
        for (int k = 0; k < i && first; k++)
            first = !ablate_same_shape(&a->cells[k], c) || !a->cells[k].decode;
        for (size_t r = 0; first && r < json_array_size(c->decode); r++) {
            const json_t *d = json_array_get(c->decode, r), *b = json_array_get(baseline(a)->decode, r);
            table_row(t, c->G == a->H ? "control" : "");
            shape_heads(t, a, c);
            table_number(t, "%.0f", of(d, "batch"));
            table_number(t, "%.0f", of(d, "context"));
            table_number(t, "%.1f", of(d, "prefill_tok_s"));
            table_number(t, "%.1f", of(d, "decode_tok_s"));
            table_number(t, "%.3f", of(d, "ms_per_token"));
            table_number(t, "%.3f", of(d, "stdev"));
            table_number(t, "%.2fx", of(b, "ms_per_token") / of(d, "ms_per_token"));
            table_number(t, "%.0f%%", 100 * of(d, "bandwidth_share"));
            table_number(t, "%.1f", of(d, "measured_bandwidth") / 1e9);
            table_row_end(t);
        }
    }
    table_end(t);
}

void tables_cells(const struct ablation *a, struct table *t)
{
    static const char *const heads[] = { "K/V heads", "start", "trained on", "seed", "steps", "zero-step loss", "loss", "std. error", "KL to original", "uptraining, s", "status", "id" };
    table_begin(t, heads, 12);
    for (int i = 0; i < a->n_cells; i++) {
        const struct cell *c = &a->cells[i];
        const struct summary like = { .G = c->G, .method = c->method, .grouping = c->grouping, .loss = c->loss, .alpha = c->alpha };
        char name[96], share[24], status[300];
        ablate_start_name(a, &like, name);
        ablate_percent(share, c->alpha);
        snprintf(status, sizeof status, "%s%s", c->done ? "done" : *c->error ? "failed: " : "not run yet", c->done ? "" : c->error);
        table_row(t, c->done ? "" : "failed");
        table_heads(t, a, c->G);
        table_text(t, name);
        field(t, c->alpha, c->alpha > 0 ? share : "-");
        table_number(t, "%.0f", (double)c->seed);
        table_number(t, "%.0f", (double)c->steps);
        table_number(t, "%.4f", c->loss_zero_step);
        table_number(t, "%.4f", c->done ? c->loss_final : (double)NAN);
        table_number(t, "%.4f", c->done ? c->loss_stderr : (double)NAN);
        table_number(t, "%.4f", c->done ? c->kl : (double)NAN);
        table_number(t, "%.1f", c->alpha > 0 && c->done ? c->uptrain_s : (double)NAN);
        table_text(t, status);
        table_text(t, c->id);
        table_row_end(t);
    }
    table_end(t);
}
