/* The report's plots, by gnuplot, as SVG text to be inlined. They follow the figures of the GQA paper (Ainslie et al. 2023):
 * quality against time per token (figure 3), time per token against groups (figure 6), quality against the share of uptraining
 * (figure 5); and the training curves. */
#include "ablate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *const titles[N_PLOTS] = { "Quality against time per token", "Time per token against key/value heads", "Loss against the share of uptraining",
                                             "Loss while uptraining" };
const char *ablate_plot_title(enum ablate_plot which) { return titles[which]; }

static const char *const head = "set terminal svg size 720,440 dynamic font 'sans-serif,13' background '#ffffff'\nset output\nset grid lc rgb '#dddddd'\nset key outside right top\n"
                                "set border 3 lc rgb '#555555'\nset tics nomirror\n";
static const char *const colours[] = { "#1b6ca8", "#d1495b", "#2e8b57", "#edae49", "#6a4c93", "#00798c", "#8d6a4f", "#444444" };
#define COLOUR(i) colours[(size_t)(i) % (sizeof colours / sizeof colours[0])]

/* Distinct group counts of finished cells, descending. */
static int group_counts(const struct ablation *a, int64_t *G, int max)
{
    int n = 0;
    for (int i = 0; i < a->n_cells; i++) {
        int k = 0;
        while (k < n && G[k] != a->cells[i].G)
            k++;
        if (k == n && n < max && a->cells[i].done)
            G[n++] = a->cells[i].G;
    }
    for (int i = 0; i < n; i++)
        for (int k = i + 1; k < n; k++)
            if (G[k] > G[i]) {
                int64_t t = G[i];
                G[i] = G[k];
                G[k] = t;
            }
    return n;
}

static int distinct_alphas(const struct ablation *a, double *alpha, int max)
{
    int n = 0;
    for (int i = 0; i < a->n_summaries; i++) {
        int k = 0;
        while (k < n && fabs(alpha[k] - a->summaries[i].alpha) > 0)
            k++;
        if (k == n && n < max)
            alpha[n++] = a->summaries[i].alpha;
    }
    return n;
}

static int quality_time(const struct ablation *a, FILE *f)
{
    double alpha[16];
    int n = distinct_alphas(a, alpha, 16);
    fprintf(f, "set xlabel 'decode time per token, ms'\nset ylabel 'held-out loss, nats per token'\nset offsets graph 0.08, graph 0.08, graph 0.08, graph 0.08\n");
    for (int k = 0; k < n; k++) {
        fprintf(f, "$d%d << EOD\n", k);
        for (int i = 0; i < a->n_summaries; i++)
            if (!(fabs(a->summaries[i].alpha - alpha[k]) > 0))
                fprintf(f, "%g %g \"%lld\"\n", a->summaries[i].ms, a->summaries[i].mean, (long long)a->summaries[i].G);
        fprintf(f, "EOD\n");
    }
    fprintf(f, "plot ");
    for (int k = 0; k < n; k++)
        fprintf(f, "%s$d%d using 1:2 with points pt 7 ps 1 lc rgb '%s' title 'alpha %g', $d%d using 1:2:3 with labels offset 0,0.9 tc rgb '%s' font ',11' notitle", k ? ", " : "", k,
                COLOUR(k), alpha[k], k, COLOUR(k));
    fprintf(f, ", %g with lines dt 2 lc rgb '#888888' title 'original'\n", a->cells[a->baseline].loss_final);
    return n > 0;
}

static int time_groups(const struct ablation *a, FILE *f)
{
    int64_t G[64];
    int n = group_counts(a, G, 64);
    const json_t *rows = a->cells[a->baseline].decode;
    size_t lines = json_array_size(rows);
    fprintf(f, "set xlabel 'key/value heads'\nset ylabel 'decode time per token and sequence, ms'\nset logscale x 2\nset yrange [0:*]\nset offsets graph 0.05, graph 0.05, graph 0.05, 0\n");
    for (size_t r = 0; r < lines; r++) {
        fprintf(f, "$d%zu << EOD\n", r);
        for (int k = 0; k < n; k++)
            for (int i = 0; i < a->n_cells; i++)
                if (a->cells[i].G == G[k] && a->cells[i].decode) {
                    const json_t *row = json_array_get(a->cells[i].decode, r);
                    double batch = json_number_value(json_object_get(row, "batch"));
                    fprintf(f, "%lld %g %g\n", (long long)G[k], json_number_value(json_object_get(row, "ms_per_token")) / batch, json_number_value(json_object_get(row, "stdev")) / batch);
                    break;
                }
        fprintf(f, "EOD\n");
    }
    fprintf(f, "plot ");
    for (size_t r = 0; r < lines; r++) {
        const json_t *row = json_array_get(rows, r);
        fprintf(f, "%s$d%zu using 1:2:3 with yerrorlines pt 7 ps 0.8 lw 2 lc rgb '%s' title 'batch %lld, context %lld'", r ? ", " : "", r, COLOUR(r),
                (long long)json_integer_value(json_object_get(row, "batch")), (long long)json_integer_value(json_object_get(row, "context")));
    }
    fprintf(f, "\n");
    return lines > 0 && n > 0;
}

static int by_alpha(const void *x, const void *y)
{
    const struct summary *s = *(const struct summary *const *)x, *t = *(const struct summary *const *)y;
    return (s->alpha > t->alpha) - (s->alpha < t->alpha);
}

static int loss_share(const struct ablation *a, FILE *f)
{
    double alpha[16];
    int64_t G[64];
    int n = group_counts(a, G, 64);
    if (distinct_alphas(a, alpha, 16) < 2)
        return 0;
    fprintf(f, "set xlabel 'alpha: uptraining tokens / original pretraining tokens'\nset ylabel 'held-out loss, nats per token'\nset offsets graph 0.03, graph 0.03, graph 0.05, graph 0.05\n");
    for (int k = 0; k < n; k++) {
        const struct summary *list[256];
        size_t m = 0;
        for (int i = 0; i < a->n_summaries && m < 256; i++)
            if (a->summaries[i].G == G[k])
                list[m++] = &a->summaries[i];
        qsort(list, m, sizeof *list, by_alpha);
        fprintf(f, "$d%d << EOD\n", k);
        for (size_t i = 0; i < m; i++) /* one line per method: at equal alpha the curve would fold, so only the best is drawn */
            if (i == 0 || list[i]->alpha > list[i - 1]->alpha) {
                double best = list[i]->mean;
                for (size_t q = i; q < m && !(list[q]->alpha > list[i]->alpha); q++)
                    best = list[q]->mean < best ? list[q]->mean : best;
                fprintf(f, "%g %g\n", list[i]->alpha, best);
            }
        fprintf(f, "EOD\n");
    }
    fprintf(f, "plot ");
    for (int k = 0; k < n; k++)
        fprintf(f, "%s$d%d using 1:2 with linespoints pt 7 ps 0.8 lw 2 lc rgb '%s' title '%lld head%s%s'", k ? ", " : "", k, COLOUR(k), (long long)G[k], G[k] == 1 ? "" : "s",
                G[k] == a->H ? " (control)" : "");
    fprintf(f, ", %g with lines dt 2 lc rgb '#888888' title 'original'\n", a->cells[a->baseline].loss_final);
    return 1;
}

static int curves(const struct ablation *a, FILE *f)
{
    int n = 0;
    fprintf(f, "set xlabel 'step'\nset ylabel 'training loss, nats per token'\n");
    for (int i = 0; i < a->n_cells; i++) {
        if (json_array_size(a->cells[i].curve) < 2)
            continue;
        fprintf(f, "$c%d << EOD\n", i);
        for (size_t k = 0; k < json_array_size(a->cells[i].curve); k++) {
            const json_t *p = json_array_get(a->cells[i].curve, k);
            fprintf(f, "%g %g\n", json_number_value(json_array_get(p, 0)), json_number_value(json_array_get(p, 1)));
        }
        fprintf(f, "EOD\n");
    }
    for (int i = 0; i < a->n_cells; i++)
        if (json_array_size(a->cells[i].curve) >= 2) {
            fprintf(f, "%s$c%d using 1:2 with lines lw 1.5 lc rgb '%s' title '%lld head%s, %s, %g'", n ? ", " : "plot ", i, COLOUR(n), (long long)a->cells[i].G,
                    a->cells[i].G == 1 ? "" : "s", a->cells[i].method,
                    a->cells[i].alpha);
            n++;
        }
    fprintf(f, "\n");
    return n > 0;
}

/* gnuplot reads a script file and writes SVG to stdout. The prologue before <svg is dropped: the page inlines it. */
static char *run_gnuplot(const char *script)
{
    char path[] = "/tmp/gqakit-plot-XXXXXX", command[128], *svg = NULL, buffer[8192];
    int fd = mkstemp(path);
    if (fd < 0)
        return NULL;
    size_t length = strlen(script), n = 0, used = 0;
    int bad = write(fd, script, length) != (ssize_t)length;
    close(fd);
    snprintf(command, sizeof command, "gnuplot %s 2>/dev/null", path);
    FILE *pipe = bad ? NULL : popen(command, "r");
    FILE *f = open_memstream(&svg, &used);
    while (pipe && f && (n = fread(buffer, 1, sizeof buffer, pipe)) > 0)
        fwrite(buffer, 1, n, f);
    int status = pipe ? pclose(pipe) : -1;
    if (f)
        fclose(f);
    unlink(path);
    char *start = svg && status == 0 ? strstr(svg, "<svg") : NULL;
    char *result = start ? strdup(start) : NULL;
    free(svg);
    return result;
}

char *ablate_plot_svg(const struct ablation *a, enum ablate_plot which)
{
    static int (*const draw[N_PLOTS])(const struct ablation *, FILE *) = { quality_time, time_groups, loss_share, curves };
    char *script = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&script, &n);
    if (!f)
        return NULL;
    fputs(head, f);
    int any = draw[which](a, f);
    fclose(f);
    char *svg = any ? run_gnuplot(script) : NULL;
    free(script);
    return svg;
}
