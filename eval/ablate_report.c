/* report.md and report.html: the same content, the page with plots and without any outside resource. */
#include "ablate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void html_text(FILE *f, const char *s)
{
    for (; *s; s++)
        switch (*s) {
        case '<': fputs("&lt;", f); break;
        case '>': fputs("&gt;", f); break;
        case '&': fputs("&amp;", f); break;
        case '"': fputs("&quot;", f); break;
        default: fputc(*s, f);
        }
}

static const struct cell *baseline(const struct ablation *a) { return &a->cells[a->baseline]; }

static void number(FILE *f, const char *before, const char *format, double x, const char *after)
{
    fputs(before, f);
    if (isfinite(x))
        fprintf(f, format, x);
    else
        fputs("-", f);
    fputs(after, f);
}

/* One row of the quality table; `open`, `next`, `close` are the markup between fields. */
static void quality_row(FILE *f, const struct ablation *a, const struct cell *c, const char *open, const char *next, const char *close)
{
    fprintf(f, "%s%lld%s%s%s%s%g%s%lld%s%lld", open, (long long)c->G, next, c->method, grouping_text(c->grouping), next, c->alpha, next, (long long)c->seed, next, (long long)c->steps);
    if (!c->done) {
        fprintf(f, "%sfailed: ", next);
        html_text(f, c->error);
        fprintf(f, "%s", next);
        for (int i = 0; i < 5; i++)
            fputs(next, f);
        fputs(close, f);
        return;
    }
    number(f, next, "%.4f", c->loss_zero_step, "");
    number(f, next, "%.4f", c->loss_final, "");
    number(f, next, "%+.4f", c->loss_final - baseline(a)->loss_final, "");
    number(f, next, "%.4f", c->loss_stderr, "");
    number(f, next, "%.4f", c->bits_per_byte, "");
    fprintf(f, "%s%lld", next, (long long)c->kv_bytes);
    number(f, next, "%.2f", c->uptrain_s, close);
}

static void speed_rows(FILE *f, const struct ablation *a, const char *open, const char *next, const char *close)
{
    for (int i = 0; i < a->n_cells; i++) {
        const struct cell *c = &a->cells[i];
        int first = c->decode != NULL;
        for (int k = 0; k < i && first; k++)
            first = a->cells[k].G != c->G || !a->cells[k].decode;
        for (size_t r = 0; first && r < json_array_size(c->decode); r++) {
            const json_t *d = json_array_get(c->decode, r), *b = json_array_get(baseline(a)->decode, r);
            double ms = json_number_value(json_object_get(d, "ms_per_token"));
            fprintf(f, "%s%lld%s%lld%s%lld%s%.1f%s%.1f%s%.3f%s%.3f%s%.2fx%s%.0f%%%s%.1f%s", open, (long long)c->G, next, (long long)json_integer_value(json_object_get(d, "batch")), next,
                    (long long)json_integer_value(json_object_get(d, "context")), next, json_number_value(json_object_get(d, "prefill_tok_s")), next,
                    json_number_value(json_object_get(d, "decode_tok_s")), next, ms, next, json_number_value(json_object_get(d, "stdev")), next,
                    json_number_value(json_object_get(b, "ms_per_token")) / ms, next, 100 * json_number_value(json_object_get(d, "bandwidth_share")), next,
                    json_number_value(json_object_get(d, "measured_bandwidth")) / 1e9, close);
        }
    }
}

static const char *const quality_heads[] = { "K/V heads", "method", "alpha", "seed", "steps", "zero-step loss", "loss", "vs original", "std. error", "bits/byte", "K/V bytes/token", "uptraining, s" };
static const char *const speed_heads[] = { "K/V heads", "batch", "context", "prefill tok/s", "decode tok/s", "ms/token", "sd", "speed-up", "bandwidth share", "GB/s measured" };
#define COUNT(x) (sizeof(x) / sizeof((x)[0]))

static void markdown_head(FILE *f, const char *const *names, size_t n)
{
    for (size_t i = 0; i < n; i++)
        fprintf(f, "| %s ", names[i]);
    fputs("|\n", f);
    for (size_t i = 0; i < n; i++)
        fputs("|---", f);
    fputs("|\n", f);
}

static const char notes[] = "Loss is nats per token on held-out text; zero-step is before any training; the standard error treats windows of text as independent. "
                            "alpha is the share of the original pretraining tokens. The rows with the original number of heads are controls: untouched (alpha 0), and trained on the same data. "
                            "Speed-up compares decode time with the original in the same row; bandwidth share is the bytes a step must read over its time, relative to the bandwidth measured beside it.";

/* Which machine and command made the page; `text` writes a string that needs escaping. */
static void write_origin(FILE *f, const struct ablation *a, void (*text)(FILE *, const char *), const char *code, const char *code_end)
{
    json_t *j = ablate_origin(a);
    const json_t *host = json_object_get(j, "host");
    fprintf(f, "gqakit " GQAKIT_VERSION " on ");
    text(f, json_string_value(json_object_get(host, "cpu")));
    fprintf(f, ", %lld threads (%s). Command: %s", (long long)json_integer_value(json_object_get(host, "threads")), json_string_value(json_object_get(host, "isa")), code);
    text(f, json_string_value(json_object_get(j, "command")));
    fprintf(f, "%s.", code_end);
    json_decref(j);
}

static void plain_text(FILE *f, const char *s) { fputs(s, f); }

char *ablate_markdown(const struct ablation *a)
{
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    if (!f)
        return NULL;
    fprintf(f, "# How many key/value heads? %s\n\n**%s**\n\n## Quality\n\n", a->config.name ? a->config.name : "", a->reason);
    markdown_head(f, quality_heads, COUNT(quality_heads));
    for (int i = 0; i < a->n_cells; i++)
        quality_row(f, a, &a->cells[i], "| ", " | ", " |\n");
    fprintf(f, "\n## Speed\n\n");
    markdown_head(f, speed_heads, COUNT(speed_heads));
    speed_rows(f, a, "| ", " | ", " |\n");
    fprintf(f, "\n%s\n\nModel `%s`, source hash %s. ", notes, a->config.model, a->source_hash);
    write_origin(f, a, plain_text, "`", "`");
    fputc('\n', f);
    return fclose(f) == 0 ? text : (free(text), NULL);
}

static const char style[] = "body{font:16px/1.5 system-ui,sans-serif;color:#222;max-width:60rem;margin:2rem auto;padding:0 1rem}h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2rem}"
                            "table{border-collapse:collapse;font-size:.85rem;width:100%}td,th{padding:.3rem .5rem;border-bottom:1px solid #ddd;text-align:right}th{background:#f5f5f5;vertical-align:bottom}"
                            ".answer{background:#eef5fb;border-left:4px solid #1b6ca8;padding:.8rem 1rem;font-size:1.05rem}figure{margin:1.5rem 0}figcaption{font-weight:600}svg{max-width:100%;height:auto}"
                            ".pick td{background:#eef5fb;font-weight:600}.note{color:#555;font-size:.85rem}.wide{overflow-x:auto}";

static void html_head_row(FILE *f, const char *const *names, size_t n)
{
    fputs("<div class=wide><table><thead><tr>", f);
    for (size_t i = 0; i < n; i++)
        fprintf(f, "<th>%s</th>", names[i]);
    fputs("</tr></thead><tbody>\n", f);
}

static int is_pick(const struct ablation *a, const struct cell *c)
{
    if (a->recommended < 0)
        return 0;
    const struct summary *s = &a->summaries[a->recommended];
    return s->G == c->G && strcmp(s->method, c->method) == 0 && strcmp(s->grouping, c->grouping) == 0 && !(fabs(s->alpha - c->alpha) > 0);
}

/* gnuplot numbers its markers and clips the same in every plot: ids get the plot's own prefix, as all share one page. */
static void inline_svg(FILE *f, const char *svg, int which)
{
    static const char *const marks[] = { "id='", "url(#", "href='#" };
    while (*svg) {
        size_t skip = 0;
        for (int i = 0; i < 3 && !skip; i++)
            if (strncmp(svg, marks[i], strlen(marks[i])) == 0)
                skip = strlen(marks[i]);
        if (skip) {
            fwrite(svg, 1, skip, f);
            fprintf(f, "p%d", which);
            svg += skip;
        } else {
            fputc(*svg++, f);
        }
    }
}

char *ablate_html(const struct ablation *a)
{
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    if (!f)
        return NULL;
    fprintf(f, "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>How many key/value heads?</title><style>%s</style>\n<h1>How many key/value heads? ", style);
    html_text(f, a->config.name ? a->config.name : "");
    fputs("</h1>\n<p class=answer>", f);
    html_text(f, a->reason);
    fputs("</p>\n", f);
    int drawn = 0;
    for (int p = 0; p < N_PLOTS; p++) {
        char *svg = ablate_plot_svg(a, (enum ablate_plot)p);
        if (svg) {
            fprintf(f, "<figure><figcaption>%s</figcaption>\n", ablate_plot_title((enum ablate_plot)p));
            inline_svg(f, svg, p);
            fputs("</figure>\n", f);
            drawn++;
        }
        free(svg);
    }
    if (!drawn)
        fputs("<p class=note>No plots: gnuplot was not found when this report was written.</p>\n", f);
    fputs("<h2>Quality</h2>\n", f);
    html_head_row(f, quality_heads, COUNT(quality_heads));
    for (int i = 0; i < a->n_cells; i++)
        quality_row(f, a, &a->cells[i], is_pick(a, &a->cells[i]) ? "<tr class=pick><td>" : "<tr><td>", "</td><td>", "</td></tr>\n");
    fputs("</tbody></table></div>\n<h2>Speed</h2>\n", f);
    html_head_row(f, speed_heads, COUNT(speed_heads));
    speed_rows(f, a, "<tr><td>", "</td><td>", "</td></tr>\n");
    fprintf(f, "</tbody></table></div>\n<p class=note>%s</p>\n<p class=note>Model <code>", notes);
    html_text(f, a->config.model);
    fprintf(f, "</code>, source hash %s. ", a->source_hash);
    write_origin(f, a, html_text, "<code>", "</code>");
    fprintf(f, " Figures as data: results.json, results.csv.</p></html>\n");
    return fclose(f) == 0 ? text : (free(text), NULL);
}

static enum code write_file(const struct ablation *a, const char *name, char *text)
{
    char *path = io_join(a->config.output_dir, name);
    enum code c = path && text ? io_write_atomic(path, text, strlen(text)) : fail(ERR_MEMORY, "out of memory for %s", name);
    free(path);
    free(text);
    return c;
}

enum code ablate_write(const struct ablation *a)
{
    json_t *results = ablate_results(a);
    char *json = results ? json_dumps(results, JSON_INDENT(2)) : NULL;
    json_decref(results);
    TRY(write_file(a, "results.json", json));
    TRY(write_file(a, "results.csv", ablate_csv(a)));
    TRY(write_file(a, "report.md", ablate_markdown(a)));
    return write_file(a, "report.html", ablate_html(a));
}
