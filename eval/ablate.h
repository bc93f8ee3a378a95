/* The group-count ablation: a grid of cells, each converted, uptrained and evaluated by the sibling programs, then one report.
 *
 *   RUN = runs/NAME/
 *     converted/ID/      one per (groups, method, grouping, calibration; seed where the method is random)
 *     zero/ID.json       its loss before any training: shared by every cell that starts there
 *     trained/ID/        uptrain.yaml, run/ (of gqa-uptrain): one per (conversion, loss, alpha, seed)
 *     teacher/           the original's predictions, computed once for every cell with loss distill
 *     cells/ID/          final.json, tasks.json, result.json, log.txt (a cell with a complete result.json is done)
 *     decode/gG-ID.json  speed: depends on the shape only, one per group count
 *     results.json results.csv report.md report.html
 *
 * Every id is a hash of exactly what it depends on, with the source's bytes: after a change in the config the same command redoes
 * what the change touches and nothing else (other evaluation data: no training is repeated).
 *
 * A "start" is a method, a grouping and a training loss. Loss "distill" trains against the original's predictions. */
#ifndef GQAKIT_EVAL_ABLATE_H
#define GQAKIT_EVAL_ABLATE_H

#include <stdio.h>

#include "base/base.h"

enum { MOST_DECODE = 64 /* batches, contexts: what gqa-eval decode takes */, MOST_PATH = 900 /* bytes of the run's folder */, MOST_TASKS = 32, MOST_BUDGETS = 16 };

struct ablate_config {
    const char *name, *model, *output_dir; /* output_dir defaults to runs/NAME */
    struct config_list groups, budgets, method, grouping, loss, alpha, seed; /* i64, str, str, str, str, f64, i64 */
    const char *calibration;    /* for the methods that use one; NULL: none */
    int64_t calibration_tokens; /* 0: gqa-convert's default */
    const struct config_node *uptrain, *distill;
    struct config_list data, tasks; /* validation files, task files */
    const char *tokenizer;
    int64_t context, stride, limit;
    int pack, kl, keep_all;
    struct config_list decode_batch, decode_context; /* i64 */
    int64_t decode_new, decode_repeats;
    double margin; /* nats a recommended cell may lose against the original */
    int64_t threads;
    const char *device;
};

struct cell {
    char id[17], conversion[17], zero[17], training[17];
    int64_t G; /* below 0: a budget, see ablate_heads.c */
    const char *method, *grouping, *loss; /* method "none" at G = H; "svd+all": svd, then --refit all. loss "ce" at alpha 0 */
    double alpha;
    int64_t seed;
    /* results; NaN or 0 until known */
    int done;
    int64_t steps, kv_bytes, tokens;
    double loss_zero_step, loss_final, loss_stderr, difference_stderr /* of loss_final - the original's, window by window */, bits_per_byte, kl_zero_step, kl, kl_stderr, convert_s, uptrain_s;
    double seconds; /* everything measured for this cell, training included: what the time left is estimated from */
    json_t *curve;  /* [[step, loss], ...] */
    json_t *evals;  /* [[step, validation loss], ...] as gqa-uptrain measured */
    json_t *tasks;  /* {NAME: {metric, value, stderr, n}} */
    json_t *decode; /* rows of gqa-eval decode */
    char error[256];
    char home[512];  /* what gqa-convert said of where the result lives; "" for the original */
    char chosen[160]; /* what method auto turned out to be, and the layers' heads under a budget; "" otherwise */
};

struct measure { double mean, sd; int n; }; /* over seeds; n 0: nothing measured, mean NaN. sd 0 at n 1 */

struct summary {
    int64_t G, kv_bytes;
    const char *method, *grouping, *loss;
    double alpha;
    int n, failed;   /* cells done, cells failed */
    int best;        /* index of the cell with the lowest loss, -1: none done */
    struct measure zero, final, difference_stderr, kl, bits, task /* mean over tasks */, convert_s, uptrain_s;
    double ms, ms_sd, prefill, decode; /* of the first row of gqa-eval decode; NaN unknown */
};

/* The answer: indices into summaries and cells, -1 none. `reason` is the sentence; path and command use the checkpoint, next says
 * what to try when nothing qualifies, warning what spoils every cell (or ""). */
struct advice {
    int pick, nearest, cell;
    int headline; /* bytes of the reason's first sentence */
    char reason[1200], path[1200], command[1400], next[600], warning[320];
};

struct ablation {
    struct config *config_file;
    struct ablate_config config;
    int64_t H; /* key/value heads of the source: the baseline's G */
    double budget_share[MOST_BUDGETS]; /* of the source's K/V bytes */
    char source_hash[33];
    double original_tokens; /* 0 unknown */
    json_t *uptrain, *distill; /* the resolved blocks, without each other; NULL: absent */
    struct cell *cells;
    int n_cells, baseline; /* index of G = H, alpha = 0 */
    struct summary *summaries;
    int n_summaries;
    struct advice advice;
};

/* ---- config and grid ---- */

void ablate_config_help(void); /* the keys of the YAML */
enum code ablate_load(struct ablation *a, const char *path, int n_overrides, char **overrides) MUST_USE; /* config and source checks */
enum code ablate_check(const struct ablation *a) MUST_USE; /* what a table of fields cannot say; ablate_load calls it */
enum code ablate_grid(struct ablation *a) MUST_USE;        /* cells, deduplicated */
void ablate_free(struct ablation *a);
/* The file that this cell's conversion runs over; NULL: none. */
const char *ablate_calibration(const struct ablation *a, const struct cell *c);
/* Tokens of its sequences: those of the evaluation, so that both see the same positions; 0: gqa-convert's default. */
int64_t ablate_calibration_length(const struct ablation *a);

/* ---- running ---- */

enum code ablate_run(struct ablation *a) MUST_USE; /* ERR_STOPPED on a signal; a failing cell is recorded and the others go on */

struct ablate_paths { char root[1024], converted[1200], zero[1200], trained[1200], teacher[1200], cell[1200], log[1300]; };
void ablate_cell_paths(const struct ablation *a, const struct cell *c, struct ablate_paths *p);
const char *ablate_start_path(const struct ablation *a, const struct cell *c, const struct ablate_paths *p); /* the checkpoint training starts from */
/* The checkpoint that a cell stands for: trained, converted, or the original itself. */
void ablate_result_path(const struct ablation *a, const struct cell *c, char *path, size_t n);

/* Steps of a cell; each leaves a file when complete and only reads it when it is there. */
enum code ablate_convert(const struct ablation *a, struct cell *c, const struct ablate_paths *p) MUST_USE;
enum code ablate_uptrain(const struct ablation *a, struct cell *c, const struct ablate_paths *p) MUST_USE;
enum code ablate_score_start(const struct ablation *a, struct cell *c, const struct ablate_paths *p) MUST_USE;  /* loss, KL before training */
enum code ablate_score_result(const struct ablation *a, struct cell *c, const struct ablate_paths *p) MUST_USE; /* the same after it, and tasks */
enum code ablate_decode(struct ablation *a) MUST_USE; /* every group count, one after the other */
json_t *ablate_record(const struct cell *c);          /* result.json; NULL when a loss is not finite */
enum code ablate_record_load(struct cell *c, const char *path) MUST_USE;
json_t *ablate_task_values(const json_t *results); /* {NAME: {metric, value, stderr, n}} from gqa-eval tasks --json; NULL: not such a result */

/* Seconds until every cell is done, from those that are; NaN while too little is known. */
double ablate_time_left(const struct ablation *a);

/* ---- from cells to an answer ---- */

enum code ablate_summarise(struct ablation *a) MUST_USE;
struct measure ablate_measure(const double *x, int n); /* values that are not finite are left out */
struct measure ablate_task(const struct ablation *a, const struct summary *s, const char *task);
int ablate_task_names(const struct ablation *a, const char **names /* [MOST_TASKS] */);
/* Of the difference of final.mean to the original's loss: the text's part (windows paired) and, with several seeds, theirs. */
double ablate_uncertainty(const struct summary *s);
/* Standard error of the mean difference of two models on the same windows, [[nats, tokens], ...] each. NaN when they are not the same. */
double ablate_paired_stderr(const json_t *x, const json_t *y);
int ablate_noisy(const struct ablation *a, const struct summary *s); /* its decode time, or the original's, spreads by more than 15% */
void ablate_advise(struct ablation *a);             /* fills advice; ablate_summarise calls it */
/* The summary of a start at a share; alpha 0 stands for every loss. NULL: no such, or nothing done. */
const struct summary *ablate_find(const struct ablation *a, int64_t G, const char *method, const char *grouping, const char *loss, double alpha);
/* The best start at (G, alpha), NULL: none done. */
const struct summary *ablate_best(const struct ablation *a, int64_t G, double alpha);
/* The start others are compared with: the first method of the grid with the first grouping and loss. */
const struct summary *ablate_plain(const struct ablation *a, int64_t G, double alpha);
int ablate_groups(const struct ablation *a, int64_t *G, int max);   /* counts with a finished cell, falling */
int ablate_shares(const struct ablation *a, double *alpha, int max); /* shares with a finished cell, rising */
int64_t ablate_focus(const struct ablation *a); /* the group count that figures of one count show: the recommended one, else the nearest */
/* "2 heads: svd+all, distill reaches with 0.5% what mean, ce needs 5% for." 0 when there is nothing to compare. */
int ablate_worth(const struct ablation *a, int64_t G, char *sentence, size_t n);

/* ---- numbers of heads and budgets (ablate_heads.c) ---- */

const char *ablate_budget(const struct ablation *a, int64_t G);  /* NULL: G is a number of heads */
double ablate_heads(const struct ablation *a, int64_t G);        /* under a budget as many as it allows on average */
void ablate_heads_short(const struct ablation *a, int64_t G, char out[48]);                  /* "4", "25%", "2048 B" */
void ablate_heads_name(const struct ablation *a, int64_t G, const char *kind, char out[96]); /* "4 heads"; kind "key/value ": "4 key/value heads"; "budget 25%", "budget 2048 B" */
int ablate_same_shape(const struct cell *x, const struct cell *y); /* conversions under one budget may give the layers different numbers */
struct arch;
enum code ablate_budgets_read(struct ablation *a, const struct arch *source) MUST_USE; /* checks grid.kv_budget, fills budget_share */
void ablate_heads_chosen(const json_t *groups, char *out, size_t n); /* groups: of gqa-convert --json */

/* ---- words (ablate_words.c) ---- */

const char *grouping_text(const char *grouping);                             /* after a method's name: "" or " similar" */
void ablate_percent(char out[24], double alpha);                             /* 0.005 -> "0.5%" */
void ablate_start_name(const struct ablation *a, const struct summary *s, char out[96]); /* "svd+all similar, distill" */
void ablate_duration(char out[32], double seconds);                          /* "3 min" */

/* ---- output ---- */

json_t *ablate_origin(const struct ablation *a);                     /* the common head of JSON results: version, command, host of the cells */
json_t *ablate_results(const struct ablation *a);                    /* schema gqakit/ablation/1 */
char *ablate_csv(const struct ablation *a);                          /* malloc'ed, like the other texts */
char *ablate_markdown(const struct ablation *a);
char *ablate_html(const struct ablation *a);
void ablate_table(const struct ablation *a, FILE *f);                /* what the command prints */
enum code ablate_write(const struct ablation *a) MUST_USE;           /* the four files, atomically */

/* The report's plots, named after the figures of the GQA paper they follow. */
enum ablate_plot { PLOT_QUALITY_TIME /* 3 */, PLOT_RECOVERY, PLOT_METHODS /* 4 */, PLOT_SHARE /* 5 */, PLOT_TIME_GROUPS /* 6 */, N_PLOTS };
/* The gnuplot script (malloc'ed), NULL when there is nothing to draw. G: the group count shown where a plot shows one. Colours are the
 * placeholders of ablate_svg.c. */
char *ablate_plot_script(const struct ablation *a, enum ablate_plot which, int64_t G);
void ablate_plot_caption(const struct ablation *a, enum ablate_plot which, int64_t G, char *title, size_t n_title, char *note, size_t n_note);
int ablate_have_gnuplot(void);
/* Runs gnuplot; the SVG (malloc'ed) has CSS variables for colours and ids that begin with `prefix`. NULL when it fails. */
char *ablate_svg(const char *script, const char *prefix);

/* ---- child programs (child.c) ---- */

/* Runs a sibling program (found beside this one, else on PATH) and waits. Its stderr is passed on and appended to log (NULL: not);
 * stdout is captured when out is given (malloc'ed). The code is the child's exit status; the sentence names the program and
 * repeats its last line. Signals that stop this process are left to the child, which saves and exits 75. */
enum code child_program(const char *program, const char *const *arguments, const char *log, char **out) MUST_USE;

#endif
