/* The group-count ablation: a grid of cells, each converted, uptrained and evaluated by the sibling programs, then one report.
 *
 *   RUN = runs/NAME/
 *     converted/ID/      one per (groups, method, grouping, seed): shared by the cells that differ in training only
 *     cells/ID/          zero.json (loss before training), uptrain.yaml, run/ (of gqa-uptrain), final.json, result.json
 *                        (a cell with a complete one is done)
 *     decode/gG-ID.json  decode speed: depends on the shape only, one per group count
 *     results.json results.csv report.md report.html
 *
 * The id of a cell is a hash of its resolved config and of the source's bytes, so changing one and running again redoes
 * exactly what depends on it. */
#ifndef GQAKIT_EVAL_ABLATE_H
#define GQAKIT_EVAL_ABLATE_H

#include <stdio.h>

#include "base/base.h"

enum { MOST_DECODE = 64 /* batches, contexts: what gqa-eval decode takes */, MOST_PATH = 900 /* bytes of the run's folder */ };

struct ablate_config {
    const char *name, *model, *output_dir; /* output_dir defaults to runs/NAME */
    struct config_list groups, method, grouping, loss, alpha, seed; /* i64, str, str, str, f64, i64 */
    const char *calibration;    /* for the methods that use one; NULL: none */
    int64_t calibration_tokens; /* 0: gqa-convert's default */
    const struct config_node *uptrain;
    struct config_list data, tasks; /* validation files; refused */
    const char *tokenizer;
    int64_t context, stride, limit;
    int pack;
    struct config_list decode_batch, decode_context; /* i64 */
    int64_t decode_new, decode_repeats;
    double margin; /* nats a recommended cell may lose against the baseline */
    int64_t threads;
    const char *device;
};

struct cell {
    char id[17], conversion[17];
    int64_t G;
    const char *method, *grouping, *loss; /* method "none" at G = H; "svd+all": svd, then --refit all */
    double alpha;
    int64_t seed;
    /* results; NaN or 0 until known */
    int done;
    int64_t steps, kv_bytes, tokens;
    double loss_zero_step, loss_final, loss_stderr, bits_per_byte, convert_s, uptrain_s;
    json_t *curve;  /* [[step, loss], ...] */
    json_t *evals;  /* [[step, validation loss], ...] as gqa-uptrain measured */
    json_t *decode; /* rows of gqa-eval decode */
    char error[256];
    char home[512]; /* what gqa-convert said of where the result lives; "" for the original */
};

struct summary { int64_t G; const char *method, *grouping, *loss; double alpha; double mean, sd; int n; double ms; }; /* over seeds; ms: decode, first row, per token */

struct ablation {
    struct config *config_file;
    struct ablate_config config;
    int64_t H; /* key/value heads of the source: the baseline's G */
    char source_hash[33];
    double original_tokens; /* 0 unknown */
    struct cell *cells;
    int n_cells, baseline; /* index of G = H, alpha = 0 */
    struct summary *summaries;
    int n_summaries, recommended; /* index into summaries, -1 none */
    char reason[1100];
};

void ablate_config_help(void); /* the keys of the YAML */
enum code ablate_load(struct ablation *a, const char *path, int n_overrides, char **overrides) MUST_USE; /* config and source checks */
enum code ablate_grid(struct ablation *a) MUST_USE;                                                      /* cells, deduplicated */
enum code ablate_run(struct ablation *a) MUST_USE; /* ERR_STOPPED on a signal; a failing cell is recorded and the others go on */
enum code ablate_summarise(struct ablation *a) MUST_USE;
void ablate_free(struct ablation *a);

json_t *ablate_origin(const struct ablation *a);                     /* the common head of JSON results: version, command, host of the cells */
/* The file that a conversion by this method runs over; NULL: none. */
const char *ablate_calibration(const struct ablation *a, const char *method);
json_t *ablate_results(const struct ablation *a);                    /* schema gqakit/ablation/1 */
char *ablate_csv(const struct ablation *a);                          /* malloc'ed, like the other texts */
char *ablate_markdown(const struct ablation *a);
char *ablate_html(const struct ablation *a);
const char *grouping_text(const char *grouping);                      /* after a method's name: "" or " similar" */
void ablate_table(const struct ablation *a, FILE *f);                /* what the command prints */
/* The report's plots as SVG text (malloc'ed), NULL when gnuplot is missing or there is nothing to draw. */
enum ablate_plot { PLOT_QUALITY_TIME, PLOT_TIME_GROUPS, PLOT_LOSS_SHARE, PLOT_CURVES, N_PLOTS };
char *ablate_plot_svg(const struct ablation *a, enum ablate_plot which);
const char *ablate_plot_title(enum ablate_plot which);
enum code ablate_write(const struct ablation *a) MUST_USE; /* the four files, atomically */

/* ---- child programs (child.c) ---- */

/* Runs a sibling program (found beside this one, else on PATH) and waits. Its stderr is passed on and appended to log (NULL: not);
 * stdout is captured when out is given (malloc'ed). The code is the child's exit status; the sentence names the program and
 * repeats its last line. Signals that stop this process are left to the child, which saves and exits 75. */
enum code child_program(const char *program, const char *const *arguments, const char *log, char **out) MUST_USE;

#endif
