/* The figures that compare starts at one group count: the methods (figure 4 of Ainslie et al. 2023), before and after training, and
 * the recovery curves: validation loss against training tokens. */
#include "ablate_plot.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static double original_loss(const struct ablation *a) { return a->cells[a->baseline].loss_final; }
static double y_of(const json_t *points, size_t i) { return json_number_value(json_array_get(json_array_get(points, i), 1)); }
static double x_of(const json_t *points, size_t i) { return json_number_value(json_array_get(json_array_get(points, i), 0)); }

static int in_summary(const struct summary *s, const struct cell *c)
{
    return c->done && c->G == s->G && strcmp(c->method, s->method) == 0 && strcmp(c->grouping, s->grouping) == 0 && strcmp(c->loss, s->loss) == 0 &&
           !(fabs(c->alpha - s->alpha) > 0);
}

struct curve { double x[512], y[512]; size_t n; int seeds; };

/* Validation loss against tokens, the mean over the seeds that were evaluated at the same steps. */
static void curve_of(const struct ablation *a, const struct summary *s, struct curve *v)
{
    memset(v, 0, sizeof *v);
    for (int i = 0; i < a->n_cells; i++) {
        const struct cell *c = &a->cells[i];
        size_t n = json_array_size(c->evals);
        if (!in_summary(s, c) || n < 2 || c->steps < 1 || (v->seeds && n != v->n))
            continue;
        v->n = n < 512 ? n : 512;
        for (size_t k = 0; k < v->n; k++) {
            v->x[k] = x_of(c->evals, k) / (double)c->steps * (double)c->tokens;
            v->y[k] += y_of(c->evals, k);
        }
        v->seeds++;
    }
    for (size_t k = 0; k < v->n; k++)
        v->y[k] /= v->seeds;
}

/* The original on the validation data of training: where the control starts. Without one, the held-out loss. */
static double original_validation(const struct ablation *a)
{
    for (int i = 0; i < a->n_cells; i++)
        if (a->cells[i].G == a->H && a->cells[i].done && json_array_size(a->cells[i].evals) > 0 && !(x_of(a->cells[i].evals, 0) > 0))
            return y_of(a->cells[i].evals, 0);
    return original_loss(a);
}

int plot_recovery(const struct ablation *a, int64_t G, FILE *f)
{
    const struct summary *list[MOST_STARTS];
    int n = plot_largest_share(a) > 0 ? plot_starts(a, G, plot_largest_share(a), list) : 0, drawn = 0;
    struct curve *curves = calloc((size_t)n + 1, sizeof *curves);
    if (!curves)
        return 0;
    /* A curve that starts far above the others enters the picture from the top: what matters is how it comes down. */
    double line = original_validation(a), low = line, high = line, lowest_start = (double)INFINITY, most = 0;
    for (int i = 0; i < n; i++) {
        curve_of(a, list[i], &curves[i]);
        const struct curve *v = &curves[i];
        if (v->n == 0)
            continue;
        drawn++;
        lowest_start = fmin(lowest_start, v->y[0]);
        most = fmax(most, v->x[v->n - 1]);
        for (size_t k = 0; k < v->n; k++)
            low = fmin(low, v->y[k]);
        high = fmax(high, v->y[v->n > 3 ? 2 : 1]);
    }
    high = drawn ? fmax(high, lowest_start) : high;
    double unit = most >= 2e9 ? 1e9 : most >= 2e6 ? 1e6 : most >= 2e3 ? 1e3 : 1;
    plot_head(f, 600, 400 + 24 * ((drawn + 2) / 2));
    fprintf(f, "set xlabel 'training, %stokens'\nset ylabel 'validation loss, nats per token'\n", unit > 5e8 ? "billion " : unit > 5e5 ? "million " : unit > 5e2 ? "thousand " : "");
    fprintf(f, "set xrange [0:%.6g]\nset yrange [%.6g:%.6g]\n", most / unit * 1.02, low - 0.06 * (high - low), high + 0.06 * (high - low));
    for (int i = 0; i < n; i++) {
        fprintf(f, "$c%d << EOD\n", i);
        for (size_t k = 0; k < curves[i].n; k++)
            fprintf(f, "%.6g %.6g\n", curves[i].x[k] / unit, curves[i].y[k]);
        fputs("EOD\n", f);
    }
    fputs("plot ", f);
    for (int i = 0; i < n; i++) {
        struct plot_style s = plot_style(i);
        char name[96];
        if (curves[i].n == 0)
            continue;
        ablate_start_name(a, list[i], name);
        fprintf(f, "$c%d with linespoints lw 2 pt %d ps 0.6 dt %d lc rgb '%s' title ", i, s.marker, s.dash, s.colour);
        plot_quoted(f, name);
        fputs(", ", f);
    }
    fprintf(f, "%.6g with lines dt 2 lw 2 lc rgb '" INK_REFERENCE "' title 'original'\n", line);
    free(curves);
    return drawn > 0;
}

static int by_loss(const void *x, const void *y)
{
    const struct summary *s = *(const struct summary *const *)x, *t = *(const struct summary *const *)y;
    return (s->final.mean > t->final.mean) - (s->final.mean < t->final.mean);
}

/* Horizontal bars of the nats above the original, one panel; the value stands at the end of the bar. */
static void panel(const struct ablation *a, const struct summary *const *list, const struct summary *const *grid, int n, int after, double left, double right, FILE *f)
{
    double low = 0, high = 0;
    fprintf(f, "set lmargin at screen %g\nset rmargin at screen %g\n$b%d << EOD\n", left, right, after);
    for (int i = 0; i < n; i++) {
        const struct measure *m = after ? &list[i]->final : &list[i]->zero;
        double v = m->mean - original_loss(a), sd = m->n > 1 ? m->sd : 0;
        int colour = 0;
        while (colour < n && grid[colour] != list[i])
            colour++;
        if (!isfinite(v))
            continue;
        low = fmin(low, v - sd);
        high = fmax(high, v + sd);
        fprintf(f, "%.6g %d %.6g %.6g %g %g %d %.6g \" %+.3f\"\n", v, i, fmin(v, 0), fmax(v, 0), i - 0.36, i + 0.36, 0x0a0010 + colour % N_COLOURS, sd, v);
    }
    double room = fmax(high - low, 1e-4);
    fprintf(f, "EOD\nset xrange [%.6g:%.6g]\n", low - 0.04 * room, high + 0.55 * room);
    fprintf(f, "plot $b%d using 1:2:3:4:5:6:7 with boxxyerror fs solid 0.85 noborder lc rgb variable notitle, ", after);
    fprintf(f, "$b%d using 1:2:8 with xerrorbars pt 0 lw 1.5 lc rgb '" INK_TEXT "' notitle, ", after);
    fprintf(f, "$b%d using ($4+$8):2:9 with labels left tc rgb '" INK_TEXT "' notitle\n", after);
}

int plot_methods(const struct ablation *a, int64_t G, FILE *f)
{
    const struct summary *grid[MOST_STARTS], *list[MOST_STARTS];
    double share = plot_largest_share(a);
    int n = plot_starts(a, G, share, grid);
    if (n < 2)
        return 0;
    memcpy(list, grid, sizeof list);
    qsort(list, (size_t)n, sizeof *list, by_loss);
    int height = 96 + 30 * n;
    plot_head(f, 600, height);
    fprintf(f, "unset key\nunset grid\nunset xtics\nset border 2\nset multiplot\nset tmargin at screen %g\nset bmargin at screen %g\nset yrange [%g:-0.6]\nset ytics scale 0 (",
            1 - 56.0 / height, 16.0 / height, n - 0.4);
    for (int i = 0; i < n; i++) {
        char name[96];
        ablate_start_name(a, list[i], name);
        fputs(i ? ", " : "", f);
        plot_quoted(f, name);
        fprintf(f, " %d", i);
    }
    fputs(")\n", f);
    char percent[24];
    ablate_percent(percent, share);
    fprintf(f, "set title 'before training' tc rgb '" INK_TEXT "'\n");
    panel(a, list, grid, n, 0, 0.30, share > 0 ? 0.62 : 0.98, f);
    if (share > 0) {
        fprintf(f, "set title 'uptrained on %s' tc rgb '" INK_TEXT "'\nunset ytics\n", percent);
        panel(a, list, grid, n, 1, 0.66, 0.98, f);
    }
    fputs("unset multiplot\n", f);
    return 1;
}
