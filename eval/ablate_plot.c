/* The figures that compare group counts, after the GQA paper (Ainslie et al. 2023): quality against time per token (figure 3), loss
 * against the share of uptraining (figure 5), time per token against groups (figure 6). Scripts for gnuplot; data inline. */
#include "ablate_plot.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct plot_style plot_style(int series)
{
    static const int markers[] = { 7, 5, 9, 13, 11, 15, 6, 4 };
    struct plot_style s = { .marker = markers[series % N_COLOURS], .dash = 1 + series / N_COLOURS };
    snprintf(s.colour, sizeof s.colour, "#0a00%02x", (unsigned)(16 + series % N_COLOURS) & 0xff);
    return s;
}

void plot_quoted(FILE *f, const char *text)
{
    fputc('\'', f);
    for (; *text; text++) {
        if (*text == '\'')
            fputc('\'', f);
        if ((unsigned char)*text >= 32)
            fputc(*text, f);
    }
    fputc('\'', f);
}

/* noenhanced: an underscore in a name is an underscore. */
void plot_head(FILE *f, int width, int height)
{
    fprintf(f, "set terminal svg size %d,%d dynamic noenhanced font 'sans-serif,16'\nset output\n", width, height);
    fputs("set border 3 lc rgb '" INK_AXIS "'\nset tics nomirror scale 0.5 textcolor rgb '" INK_TEXT "'\nset grid lt 1 lw 1 lc rgb '" INK_GRID "'\n"
          "set key outside top center horizontal Left reverse maxcols 2 samplen 2.2 width -3 textcolor rgb '" INK_TEXT "'\nset xlabel textcolor rgb '" INK_TEXT
          "'\nset ylabel textcolor rgb '" INK_TEXT "'\nset errorbars small\n",
          f);
}

double plot_largest_share(const struct ablation *a)
{
    double shares[64];
    int n = ablate_shares(a, shares, 64);
    return n ? shares[n - 1] : 0;
}

int plot_starts(const struct ablation *a, int64_t G, double share, const struct summary **list)
{
    int n = 0;
    for (int i = 0; i < a->n_summaries && n < MOST_STARTS; i++) {
        const struct summary *s = &a->summaries[i];
        if (s->n > 0 && s->G == G && !(fabs(s->alpha - share) > 0))
            list[n++] = s;
    }
    return n;
}

static double original_loss(const struct ablation *a) { return a->cells[a->baseline].loss_final; }

static void reference_line(FILE *f, double y, const char *title)
{
    fprintf(f, "%.6g with lines dt 2 lw 2 lc rgb '" INK_REFERENCE "' title ", y);
    plot_quoted(f, title);
}

static void margin_band(const struct ablation *a, FILE *f)
{
    double y = original_loss(a);
    fprintf(f, "set object 1 rectangle from graph 0, first %.6g to graph 1, first %.6g behind clip fc rgb '" INK_MARGIN "' fs transparent solid 0.16 noborder\n", y,
            y + a->config.margin);
}

static void point_name(const struct ablation *a, const struct summary *s, FILE *f)
{
    char heads[96];
    ablate_heads_name(a, s->G, "", heads);
    fprintf(f, "%.6g %.6g \"%s\"\n", s->ms, s->final.mean, heads);
}

/* "4 heads" below or above the points of one share, in turns where they are nearer than `near` milliseconds. */
static void label_points(const struct ablation *a, FILE *f, double share, double near)
{
    int64_t G[MOST_GROUPS];
    int n = ablate_groups(a, G, MOST_GROUPS), below[MOST_GROUPS] = { 0 };
    double last = -(double)INFINITY;
    for (int g = n - 1; g >= 0; g--) {
        const struct summary *s = ablate_best(a, G[g], share);
        below[g] = 1;
        if (s && isfinite(s->ms)) {
            below[g] = g < n - 1 && fabs(s->ms - last) < near ? !below[g + 1] : 1;
            last = s->ms;
        }
    }
    for (int side = 1; side >= 0; side--) {
        fputs(side ? "$below << EOD\n" : "$above << EOD\n", f);
        for (int g = n - 1; g >= 0; g--) {
            const struct summary *s = ablate_best(a, G[g], share);
            if (s && isfinite(s->ms) && below[g] == side)
                point_name(a, s, f);
        }
        fputs("EOD\n", f);
    }
}

/* One line per share: the best start of every count. Labels only at the largest share, alternating below and above where points are close. */
int plot_quality_time(const struct ablation *a, FILE *f)
{
    int64_t G[MOST_GROUPS];
    double shares[MOST_SHARES], low = (double)INFINITY, high = -(double)INFINITY;
    int n_groups = ablate_groups(a, G, MOST_GROUPS), n = ablate_shares(a, shares, MOST_SHARES), first = n > 1 && !(shares[0] > 0), drawn = 0;
    const struct summary *original = ablate_find(a, a->H, "none", "consecutive", "ce", 0);
    for (int i = 0; i < a->n_summaries; i++)
        if (isfinite(a->summaries[i].ms) && a->summaries[i].n > 0) {
            low = fmin(low, a->summaries[i].ms);
            high = fmax(high, a->summaries[i].ms);
        }
    if (!original || !isfinite(low) || n_groups < 2)
        return 0;
    plot_head(f, 600, 410 + 24 * ((n - first + 2) / 2));
    fputs("set xlabel 'decode time, ms per token'\nset ylabel 'held-out loss, nats per token'\nset offsets graph 0.10, graph 0.12, graph 0.10, graph 0.12\n", f);
    margin_band(a, f);
    for (int k = first; k < n; k++) {
        fprintf(f, "$d%d << EOD\n", k);
        for (int g = n_groups - 1; g >= 0; g--) {
            const struct summary *s = ablate_best(a, G[g], shares[k]);
            if (!s || !isfinite(s->ms))
                continue;
            fprintf(f, "%.6g %.6g %.6g\n", s->ms, s->final.mean, s->final.n > 1 ? s->final.sd : 0);
            drawn++;
        }
        fputs("EOD\n", f);
    }
    label_points(a, f, shares[n - 1], 0.16 * (high - low));
    fprintf(f, "$o << EOD\n%.6g %.6g\nEOD\nplot ", original->ms, original->final.mean);
    for (int k = first; k < n; k++) {
        struct plot_style s = plot_style(n - 1 - k);
        char share[24];
        ablate_percent(share, shares[k]);
        fprintf(f, "$d%d using 1:2:3 with yerrorlines lw 2 pt %d ps 0.8 dt %d lc rgb '%s' title 'best start, %s%s', ", k, s.marker, s.dash, s.colour,
                shares[k] > 0 ? "uptrained on " : "not trained", shares[k] > 0 ? share : "");
    }
    fputs("$below using 1:2:3 with labels offset 0,-1 tc rgb '" INK_TEXT "' notitle, $above using 1:2:3 with labels offset 0,1 tc rgb '" INK_TEXT "' notitle, ", f);
    fputs("$o with points pt 6 ps 1.3 lw 2 lc rgb '" INK_REFERENCE "' notitle, ", f);
    reference_line(f, original->final.mean, "original (band: margin)");
    fputc('\n', f);
    return drawn > 0;
}

int plot_time_groups(const struct ablation *a, FILE *f)
{
    int64_t G[MOST_GROUPS];
    int n = 0, all = ablate_groups(a, G, MOST_GROUPS);
    for (int k = 0; k < all; k++) /* a budget is no number of heads */
        if (G[k] > 0)
            G[n++] = G[k];
    const json_t *rows = a->cells[a->baseline].decode;
    int lines = (int)json_array_size(rows) < 8 ? (int)json_array_size(rows) : 8;
    if (lines == 0 || n < 2)
        return 0;
    plot_head(f, 600, 390 + 24 * ((lines + 1) / 2));
    fputs("set xlabel 'key/value heads'\nset ylabel 'decode time, ms per token and sequence'\nset logscale x 2\nset yrange [0:*]\n"
          "set offsets graph 0.05, graph 0.05, graph 0.08, 0\nset xtics (",
          f);
    for (int k = 0; k < n; k++)
        fprintf(f, "%s%lld", k ? ", " : "", (long long)G[k]);
    fputs(")\n", f);
    for (int r = 0; r < lines; r++) {
        fprintf(f, "$d%d << EOD\n", r);
        for (int k = 0; k < n; k++)
            for (int i = 0; i < a->n_cells; i++)
                if (a->cells[i].G == G[k] && a->cells[i].decode) {
                    const json_t *row = json_array_get(a->cells[i].decode, (size_t)r);
                    double batch = json_number_value(json_object_get(row, "batch"));
                    fprintf(f, "%lld %.6g %.6g\n", (long long)G[k], json_number_value(json_object_get(row, "ms_per_token")) / batch,
                            json_number_value(json_object_get(row, "stdev")) / batch);
                    break;
                }
        fputs("EOD\n", f);
    }
    fputs("plot ", f);
    for (int r = 0; r < lines; r++) {
        const json_t *row = json_array_get(rows, (size_t)r);
        struct plot_style s = plot_style(r);
        fprintf(f, "%s$d%d using 1:2:3 with yerrorlines pt %d ps 0.8 lw 2 lc rgb '%s' title 'batch %lld, context %lld'", r ? ", " : "", r, s.marker, s.colour,
                (long long)json_integer_value(json_object_get(row, "batch")), (long long)json_integer_value(json_object_get(row, "context")));
    }
    fputc('\n', f);
    return 1;
}

/* Solid: the best start at each share; dotted in the same colour: the plain one. With little training the plain start may lie far above
 * everything else and is left outside; its end never is. */
int plot_share(const struct ablation *a, FILE *f)
{
    int64_t G[MOST_GROUPS];
    double shares[MOST_SHARES], high = original_loss(a), low = high;
    int n_groups = ablate_groups(a, G, MOST_GROUPS), n = ablate_shares(a, shares, MOST_SHARES), plain[MOST_GROUPS] = { 0 }, lines = 1;
    if (n < 2 || n_groups < 2)
        return 0;
    for (int g = 0; g < n_groups; g++) {
        for (int k = 0; k < n; k++) {
            const struct summary *best = ablate_best(a, G[g], shares[k]), *other = G[g] == a->H ? NULL : ablate_plain(a, G[g], shares[k]);
            high = best ? fmax(high, best->final.mean + best->final.sd) : high;
            low = best ? fmin(low, best->final.mean - best->final.sd) : low;
            high = other && k == n - 1 ? fmax(high, other->final.mean + other->final.sd) : high;
            plain[g] |= other && other != best;
        }
        lines += 1 + plain[g];
    }
    plot_head(f, 600, 400 + 24 * ((lines + 1) / 2));
    fputs("set xlabel 'uptraining, % of the original tokens'\nset ylabel 'held-out loss, nats per token'\n", f);
    fprintf(f, "set xrange [%g:%g]\nset yrange [%.6g:%.6g]\n", -3 * shares[n - 1], 103 * shares[n - 1], low - 0.06 * (high - low), high + 0.08 * (high - low));
    for (int g = 0; g < n_groups; g++)
        for (int which = 0; which <= plain[g]; which++) {
            fprintf(f, "$%c%d << EOD\n", which ? 'p' : 'b', g);
            for (int k = 0; k < n; k++) {
                const struct summary *s = which ? ablate_plain(a, G[g], shares[k]) : ablate_best(a, G[g], shares[k]);
                if (s)
                    fprintf(f, "%.6g %.6g %.6g\n", 100 * shares[k], s->final.mean, s->final.n > 1 ? s->final.sd : 0);
            }
            fputs("EOD\n", f);
        }
    fputs("plot ", f);
    for (int g = 0; g < n_groups; g++) {
        struct plot_style s = plot_style(G[0] == a->H && g > 0 ? g - 1 : g);
        const char *ink = G[g] == a->H ? INK_REFERENCE : s.colour;
        char heads[96];
        ablate_heads_name(a, G[g], "", heads);
        fprintf(f, "$b%d using 1:2:3 with yerrorlines pt %d ps 0.8 lw 2 lc rgb '%s' title '%s, %s', ", g, s.marker, ink, heads,
                G[g] == a->H ? "same data" : "best start");
        if (plain[g])
            fprintf(f, "$p%d using 1:2:3 with yerrorlines pt %d ps 0.5 lw 1.5 dt 3 lc rgb '%s' title '%s, %s', ", g, s.marker, s.colour, heads,
                    *(const char *const *)a->config.method.items);
    }
    reference_line(f, original_loss(a), "original");
    fputc('\n', f);
    return 1;
}
