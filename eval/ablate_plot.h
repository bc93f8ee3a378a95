/* Private to the plots: colours as placeholders that ablate_svg.c turns into CSS variables (rgb 10,0,i), so that one figure reads
 * in light and dark, and the scripts of each figure. */
#ifndef GQAKIT_EVAL_ABLATE_PLOT_H
#define GQAKIT_EVAL_ABLATE_PLOT_H

#include "ablate.h"

#define INK_AXIS "#0a0001"
#define INK_TEXT "#0a0002"
#define INK_GRID "#0a0003"
#define INK_REFERENCE "#0a0004" /* the original */
#define INK_MARGIN "#0a0005"    /* the band of the margin */
enum { N_COLOURS = 8, MOST_STARTS = 24, MOST_GROUPS = 32, MOST_SHARES = 16 };

struct plot_style { char colour[8]; int marker, dash; };
struct plot_style plot_style(int series);            /* colour, marker and dash differ together */
void plot_head(FILE *f, int width, int height);      /* terminal, borders, grid, legend below the data */
void plot_quoted(FILE *f, const char *text);         /* a gnuplot string */
/* The starts measured at (G, share), in the grid's order: the position is the colour in every figure. */
int plot_starts(const struct ablation *a, int64_t G, double share, const struct summary **list /* [MOST_STARTS] */);
double plot_largest_share(const struct ablation *a); /* 0: nothing trained */

/* 1 when something was drawn. */
int plot_quality_time(const struct ablation *a, FILE *f);
int plot_time_groups(const struct ablation *a, FILE *f);
int plot_share(const struct ablation *a, FILE *f);
int plot_recovery(const struct ablation *a, int64_t G, FILE *f);
int plot_methods(const struct ablation *a, int64_t G, FILE *f);

#endif
