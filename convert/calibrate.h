/* Calibrated conversion: the source runs over tokens layer by layer, one layer's parameters in memory at a time, and the result is built
 * beside it: moments of every attention's input for the merge, then (refit) the layer's linear maps fitted so that the converted
 * model's hidden states follow the original's. What comes out is a set of tensors that the walk writes in place of the source's. */
#ifndef GQAKIT_CONVERT_CALIBRATE_H
#define GQAKIT_CONVERT_CALIBRATE_H

#include "base/base.h"
#include "checkpoints/checkpoint.h"
#include "merge.h"

enum refit { REFIT_NONE, REFIT_OUTPUT, REFIT_BLOCK, REFIT_ALL };
#define REFIT_NAMES "none|output|block|all"
const char *refit_name(enum refit r);

/* ---- spill.c: arrays that are memory when they fit and an unlinked file when they are large ---- */

struct spill { const char *dir; int on_disk; int n; struct spill_piece { void *p; size_t bytes; } *piece; };
enum code spill_take(struct spill *s, int64_t floats, float **p) MUST_USE; /* zeroed; freed with all others */
void spill_close(struct spill *s);

/* ---- overlay.c: tensors that replace the source's ---- */

struct overlay_tensor { char name[64]; int64_t n[2]; float *values; };
struct overlay { int n; struct overlay_tensor *tensor; struct spill memory; };
/* A tensor of that name for the caller to fill; the one there is, if there is one. */
enum code overlay_add(struct overlay *o, const char *name, int64_t n0, int64_t n1, float **values) MUST_USE;
const struct overlay_tensor *overlay_find(const struct overlay *o, const char *name); /* NULL: none; o may be NULL */
void overlay_close(struct overlay *o);

/* ---- gram.c: least squares ---- */

/* Sums over rows u of features (and a one, `ones`) and r of residuals: a = sum u u^T (upper), b = sum u r^T, in f64 over blocks in f32.
 * n counts the one. */
struct gram { int64_t n, C; int ones; double *a, *b; float *block, *rows; int64_t count; };
enum code gram_open(struct gram *g, int64_t width, int ones, int64_t C /* 0: a alone */) MUST_USE;
void gram_close(struct gram *g);
void gram_add(struct gram *g, const float *u, int64_t ldu, const float *r, int64_t ldr, int64_t rows);
int64_t gram_bytes(int64_t width, int64_t C);

/* Features in up to two parts with a ridge of their own, each a share of the mean diagonal of its part. */
struct ridge_parts { int64_t first; /* width of the first part; the second is the rest, may be empty */ };
/* delta [n, C]: argmin |U delta - R|^2 + mu |delta|^2, mu = share x mean diagonal. */
enum code ridge_solve(const struct gram *g, const struct ridge_parts *parts, double share, double *delta) MUST_USE;

/* ---- calibrate.c ---- */

struct plan;
struct options;
struct outcome;

/* What a calibration takes: sequences of `length` tokens, the last held_out of them only to choose and to judge. */
struct calibration_size { int64_t sequences, held_out, length, memory, disk; };

struct calibration_layer {
    double error;    /* refit: relative distance of the hidden state after the layer from the original's, held-out tokens; NaN: not measured */
    double entropy[2]; /* sums over held-out tokens and heads of the attention's entropy, nats: the original's, the result's */
    int64_t entropy_rows[2];
    double share[3]; /* chosen ridge of the output, down and query (last step) projections; 0: not fitted or left alone */
};

struct calibration {
    struct overlay overlay;
    struct calibration_size size;
    struct calibration_layer *layer; /* [L] */
    int64_t L, scored;
    char *spill_dir;
    double loss_before, loss_after; /* nats per held-out token */
    double loss_mean;               /* what a plain mean of the same heads would start at; NaN: not measured */
    double seconds;
};

/* Opens tokens and sizes; computes nothing. For dry runs, and the first thing a calibration does. */
enum code calibration_measure(struct calibration_size *size, struct checkpoint *source, const struct plan *plan, const struct options *o) MUST_USE;
/* Into out->calibration, and the cost of the merges into out->layers. */
enum code calibration_run(struct calibration *c, struct checkpoint *source, const struct plan *plan, const struct options *o, struct outcome *out) MUST_USE;
void calibration_close(struct calibration *c); /* of a zeroed struct too */

/* calibrate_report.c; c NULL: a dry run */
json_t *number_json(double x); /* null where it is not finite */
json_t *calibration_json(const struct calibration_size *size, const struct calibration *c, const struct options *o);
void calibration_print_size(const struct calibration_size *size, const struct options *o);
void calibration_print(const struct calibration *c, const struct plan *plan, const struct options *o);
/* Of attention, mean over heads and held-out tokens, nats; NaN where nothing was measured. */
double calibration_entropy(const struct calibration_layer *l, int after);
/* The loss before and after, and what to expect of it. */
void calibration_sentence(const struct calibration *c, const struct plan *plan, const struct options *o, char *text, size_t n);

#endif
