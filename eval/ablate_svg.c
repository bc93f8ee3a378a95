/* gnuplot's SVG, made part of a page: placeholder colours become CSS variables of the page (light and dark), ids get a prefix of
 * their own, as gnuplot numbers its markers the same in every figure, and the title element goes. */
#include "ablate_plot.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int ablate_have_gnuplot(void)
{
    static int known = -1;
    if (known < 0)
        known = system("command -v gnuplot >/dev/null 2>&1") == 0;
    return known;
}

/* The script as a file, SVG from stdout; NULL when gnuplot fails. */
static char *run_gnuplot(const char *script)
{
    const char *dir = getenv("TMPDIR");
    char path[1024], command[1100], *svg = NULL, buffer[8192];
    snprintf(path, sizeof path, "%s/gqakit-plot-XXXXXX", dir && *dir && !strchr(dir, '\'') && strlen(dir) < 900 ? dir : "/tmp");
    int fd = mkstemp(path);
    if (fd < 0)
        return NULL;
    size_t length = strlen(script), n = 0, used = 0;
    int bad = write(fd, script, length) != (ssize_t)length;
    close(fd);
    snprintf(command, sizeof command, "gnuplot '%s' 2>/dev/null", path);
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

/* "rgb( 10,   0,  16)" at p: writes the variable and returns the length; 0: another colour. */
static size_t colour_at(const char *p, FILE *f)
{
    static const char *const inks[] = { "axis", "text", "grid", "reference", "margin" };
    int r, g, b, length = 0;
    if (strncmp(p, "rgb(", 4) != 0 || sscanf(p, "rgb(%d,%d,%d)%n", &r, &g, &b, &length) != 3 || length == 0 || r != 10 || g != 0)
        return 0;
    if (b >= 1 && b <= 5)
        fprintf(f, "var(--%s)", inks[b - 1]);
    else if (b >= 16 && b < 16 + N_COLOURS)
        fprintf(f, "var(--s%d)", b - 16);
    else
        return 0;
    return (size_t)length;
}

char *ablate_svg(const char *script, const char *prefix)
{
    static const char *const marks[] = { "id='", "id=\"", "url(#", "href='#" };
    char *raw = ablate_have_gnuplot() ? run_gnuplot(script) : NULL, *text = NULL;
    size_t n = 0;
    FILE *f = raw ? open_memstream(&text, &n) : NULL;
    for (const char *p = raw; f && *p;) {
        size_t skip = colour_at(p, f);
        if (skip == 0 && strncmp(p, "<title>", 7) == 0 && strstr(p, "</title>"))
            skip = (size_t)(strstr(p, "</title>") + 8 - p);
        if (skip == 0 && strncmp(p, "<desc>", 6) == 0 && strstr(p, "</desc>"))
            skip = (size_t)(strstr(p, "</desc>") + 7 - p);
        if (skip == 0)
            for (int i = 0; i < 4 && skip == 0; i++)
                if (strncmp(p, marks[i], strlen(marks[i])) == 0) {
                    skip = strlen(marks[i]);
                    fwrite(p, 1, skip, f);
                    fputs(prefix, f);
                }
        if (skip == 0) {
            fputc(*p, f);
            skip = 1;
        }
        p += skip;
    }
    free(raw);
    if (f && fclose(f) != 0) {
        free(text);
        text = NULL;
    }
    return text;
}

char *ablate_plot_script(const struct ablation *a, enum ablate_plot which, int64_t G)
{
    char *script = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&script, &n);
    if (!f)
        return NULL;
    int any = which == PLOT_QUALITY_TIME ? plot_quality_time(a, f)
              : which == PLOT_RECOVERY   ? plot_recovery(a, G, f)
              : which == PLOT_METHODS    ? plot_methods(a, G, f)
              : which == PLOT_SHARE      ? plot_share(a, f)
                                         : plot_time_groups(a, f);
    fclose(f);
    if (!any) {
        free(script);
        script = NULL;
    }
    return script;
}

static int noisy(const struct ablation *a)
{
    for (int i = 0; i < a->n_summaries; i++)
        if (a->summaries[i].n > 0 && ablate_noisy(a, &a->summaries[i]))
            return 1;
    return 0;
}

void ablate_plot_caption(const struct ablation *a, enum ablate_plot which, int64_t G, char *title, size_t n_title, char *note, size_t n_note)
{
    char share[24], heads[96];
    ablate_heads_name(a, G, "key/value ", heads);
    ablate_percent(share, plot_largest_share(a));
    note[0] = 0;
    switch (which) {
    case PLOT_QUALITY_TIME:
        snprintf(title, n_title, "Quality against time per token");
        snprintf(note, n_note, "Each point is the best start of that number of heads. Down and left is better.%s", noisy(a) ? " The timings spread widely: the machine was busy." : "");
        break;
    case PLOT_RECOVERY:
        snprintf(title, n_title, "Recovery with %s%s", G < 0 ? "a K/V " : "", heads);
        snprintf(note, n_note, "Validation loss while uptraining on %s of the original tokens, mean over seeds. A start far above the others enters from the top.", share);
        break;
    case PLOT_METHODS:
        snprintf(title, n_title, "What each start loses, %s%s", G < 0 ? "K/V " : "", heads);
        snprintf(note, n_note, "Nats per token above the original, held out. Whiskers: standard deviation over seeds. The panels have scales of their own.");
        break;
    case PLOT_SHARE:
        snprintf(title, n_title, "Loss against the share of uptraining");
        snprintf(note, n_note, "Solid: the best start at each share. Dotted: %s, which may enter from the top. Same data: the original, trained on the same tokens.", *(const char *const *)a->config.method.items);
        break;
    case PLOT_TIME_GROUPS:
    case N_PLOTS:
        snprintf(title, n_title, "Time per token against key/value heads");
        snprintf(note, n_note, "Bars: standard deviation over repeats.");
        break;
    }
}
