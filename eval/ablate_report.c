/* report.md, the texts it shares with the page, and writing the four files. */
#include "ablate_tables.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const char report_notes[] =
    "Loss is nats per token on held-out text, zero-step before any training; +- is the standard deviation over seeds. KL is KL(original || result), nats per token. "
    "Shares are of the original pretraining tokens. Rows with the original number of heads are controls: untouched, and trained on the same data. "
    "The standard error of a cell treats windows of text as independent. All cells see the same windows: the error of a difference from the original is taken window by window, "
    "and with several seeds theirs (sd / sqrt(seeds)) is added in squares; the recommendation counts both. "
    "Speed-up compares decode time with the original in the same row; bandwidth share is the bytes a step must read over its time, relative to the bandwidth measured beside it.";

void report_origin(FILE *f, const struct ablation *a, int html)
{
    json_t *j = ablate_origin(a);
    const json_t *host = json_object_get(j, "host");
    fprintf(f, "Model %s", html ? "<code>" : "`");
    table_escape(f, html, a->config.model);
    fprintf(f, "%s, source hash %s. gqakit " GQAKIT_VERSION " on ", html ? "</code>" : "`", a->source_hash);
    table_escape(f, html, json_string_value(json_object_get(host, "cpu")));
    fprintf(f, ", %lld threads (%s). Command: %s", (long long)json_integer_value(json_object_get(host, "threads")), json_string_value(json_object_get(host, "isa")),
            html ? "<code>" : "`");
    table_escape(f, html, json_string_value(json_object_get(j, "command")));
    fprintf(f, "%s. The same numbers as data: results.json, results.csv.", html ? "</code>" : "`");
    json_decref(j);
}

int report_failures(const struct ablation *a, char *text, size_t n)
{
    int failed = 0, waiting = 0;
    for (int i = 0; i < a->n_cells; i++) {
        failed += !a->cells[i].done && *a->cells[i].error;
        waiting += !a->cells[i].done && !*a->cells[i].error;
    }
    text[0] = 0;
    if (failed)
        snprintf(text, n, "%d of %d cells failed; their reasons stand in the table of all cells. Running the same command again repeats only them.", failed, a->n_cells);
    else if (waiting)
        snprintf(text, n, "%d of %d cells have not run yet: the ablation was stopped. The same command continues it.", waiting, a->n_cells);
    return failed + waiting;
}

char *ablate_markdown(const struct ablation *a)
{
    char *text = NULL, line[512];
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    if (!f)
        return NULL;
    struct table t = { f, 0 };
    const struct advice *d = &a->advice;
    fprintf(f, "# How many key/value heads? %s\n\n**%.*s**%s\n", a->config.name ? a->config.name : "", d->headline, d->reason, d->reason + d->headline);
    if (*d->next)
        fprintf(f, "\n%s\n", d->next);
    if (*d->command)
        fprintf(f, "\nThe checkpoint: `%s`. Try it: `%s`.%s%s%s\n", d->path, d->command, *a->cells[d->cell].home ? " Home: " : "", a->cells[d->cell].home,
                *a->cells[d->cell].home ? "." : "");
    if (*d->warning)
        fprintf(f, "\n%s\n", d->warning);
    if (report_failures(a, line, sizeof line))
        fprintf(f, "\n%s\n", line);
    fputs("\n## What each start is worth\n\nNats per token above the original, held out.\n\n", f);
    tables_starts(a, &t);
    int64_t G[64];
    int groups = ablate_groups(a, G, 64);
    for (int g = 0; g < groups; g++)
        if (ablate_worth(a, G[g], line, sizeof line))
            fprintf(f, "* %s\n", line);
    fputs("\n## Quality, size, speed\n\n", f);
    tables_summary(a, &t);
    fputs("## Decode speed\n\n", f);
    tables_speed(a, &t);
    fputs("## All cells\n\n", f);
    tables_cells(a, &t);
    fprintf(f, "%s\n\n", report_notes);
    report_origin(f, a, 0);
    fputc('\n', f);
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
    char *json = results ? json_text(results, JSON_INDENT(2)) : NULL;
    json_decref(results);
    TRY(write_file(a, "results.json", json));
    TRY(write_file(a, "results.csv", ablate_csv(a)));
    TRY(write_file(a, "report.md", ablate_markdown(a)));
    return write_file(a, "report.html", ablate_html(a));
}
