/* Private to the calibration's files: its state while the layers go by. */
#ifndef GQAKIT_CONVERT_CALIBRATE_PARTS_H
#define GQAKIT_CONVERT_CALIBRATE_PARTS_H

#include "calibrate.h"
#include "convert.h"
#include "data/data.h"
#include "kernels/kernels.h"
#include "model/model.h"

/* Tokens of all sequences: [sequences, length + 1], mask alike. */
struct calibration_tokens { int64_t sequences, held_out, length; int eos; int32_t *ids; uint8_t *mask; };

/* Rows are tokens: N = sequences * length, sequence-major; those from fit_rows on are held out. */
struct calibrating {
    const struct plan *plan;
    const struct options *o;
    struct checkpoint *source;
    struct calibration *result;
    const struct backend *be;
    struct device *dev;
    struct arch to;               /* the source's arch with the result's K/V heads */
    struct model *m0, *m1;        /* original and converted, layered */
    struct calibration_tokens t;
    struct batch batch;
    int64_t batch_rows;           /* sequences of a full batch */
    struct spill spill;
    int64_t N, fit_rows, C;
    float *x0, *x1;               /* [N,C] hidden states before the layer, original and converted; x1 NULL until needed */
    float *next0;                 /* [N,C] the original's after the layer; x0 itself where x0 is not needed again */
    float *mid0;                  /* [N,C] the original's after the attention, then residuals; refit of sequential forms */
    float *mid1;                  /* [N,C] */
    float *features;              /* [N, W] */
    float *part;                  /* [batch, C] */
    float *mean;                  /* [held-out rows, C] of a model merged by plain means (mean_beside.c); NULL: none is run */
};

void calibrating_close(struct calibrating *c); /* of a zeroed struct too */
/* Sequences of a full batch. */
int64_t calibration_batch(const struct calibration_tokens *t);
/* Where large states go: the target's folder, or /tmp; malloc'ed. */
char *calibration_directory(const char *target);
/* Sums into means, and the lower half too. */
void moments_finish(struct gram *g);

/* A batch: sequences [first, first + count), rows [row, row + rows). Never across the held-out boundary. */
struct span { int64_t first, count, row, rows; };
/* The next one after `s` (zeroed: the first at sequence `from`); 0 at `to`. */
int span_next(const struct calibrating *c, struct span *s, int64_t from, int64_t to);
const struct batch *span_batch(struct calibrating *c, const struct span *s);

/* refit.c. The layer in m1 is merged and loaded, x1 its input, next0 and mid0 the original's states; leaves x1 its output. */
enum code refit_layer(struct calibrating *c, int64_t layer) MUST_USE;
int64_t refit_width(const struct arch *a, const struct arch_block *b); /* floats of features by row */
/* refit_scores.c. The projections of queries and keys, before the others; m0 holds the same layer of the original. */
enum code refit_scores(struct calibrating *c, int64_t layer) MUST_USE;
/* refit_newton.c. Nothing where the budget allows too few tokens; else all four projections of the attention together, to bring mid0 - mid1 (or, in parallel forms, next0 - out1) to zero. */
enum code refit_newton(struct calibrating *c, int64_t layer) MUST_USE;
int64_t refit_newton_bytes(const struct arch *a, const struct arch_block *b, int64_t G, int64_t length, int64_t rows); /* newton_size.c */
int64_t refit_scores_bytes(const struct arch_block *b, int64_t G, int64_t length); /* of all threads */
/* ERR_UNSUPPORTED with the reason where a family's form does not allow what is asked. */
enum code refit_check(const struct arch *a, enum refit r) MUST_USE;

/* entropy.c. Adds, for the rows of `batch` that v holds, the entropy of every head's attention; `arch` is of the model that computed v. */
enum code attention_entropy(double *sum, const struct model_block_values *v, const struct batch *batch, const struct arch *arch, int64_t layer) MUST_USE;
/* The same into the layer's report, when the span is held out; after 0: the original. */
enum code entropy_take(struct calibrating *c, int64_t layer, int after, const struct span *s, const struct model_block_values *v) MUST_USE;

/* head_order.c. m0's layer with its heads in this order, as layers_merge left it in the outcome; NULL: as they are. */
enum code heads_in_order(struct calibrating *c, int64_t layer, const int64_t *members) MUST_USE;

/* mean_beside.c. Open after the embedding; a layer before the converted one is loaded into m1; the loss when m0 holds the head. */
int64_t mean_beside_floats(const struct calibrating *c); /* 0: the conversion is a plain mean itself, or merges nothing */
enum code mean_beside_open(struct calibrating *c) MUST_USE;
/* The layer into m1: these heads, everything else the source's; merged->k NULL: all of it. */
enum code merged_load(struct calibrating *c, int64_t layer, const struct attention_layer *merged) MUST_USE;
enum code mean_beside_layer(struct calibrating *c, int64_t layer) MUST_USE;
enum code mean_beside_loss(struct calibrating *c) MUST_USE;

/* One regression over rows of tokens, the first fit_rows to fit and the rest held out: residual [rows,C] on features of stride ld, with the ridge chosen on held-out rows. *delta,
 * malloc'ed [width, C] and with `ones` a row for the constant; zero when no ridge beats leaving things alone. gram_close(&r->g) afterwards,
 * also on an error. */
struct regression { struct gram g; struct ridge_parts parts; const float *u; int64_t ld; const float *residual; int64_t width, C, rows, fit_rows; };
enum code regression_run(const struct calibrating *c, struct regression *r, int ones, float **delta, double *share) MUST_USE;

/* A linear map of m1's layer: "attn.o", "mlp.down", "attn.q". */
struct map { const struct model_param *w, *b; /* b NULL: none */ };
struct map map_of(const struct calibrating *c, int64_t layer, const char *name);
enum code map_keep(struct calibrating *c, const struct map *m) MUST_USE; /* into the overlay */
void map_add(const struct map *m, const float *delta, int64_t rows, float scale); /* w [rows, width] += delta [width, rows] transposed / scale */
void bias_add(const struct map *m, const float *delta, int64_t rows);

static inline float *rows_at(float *p, int64_t row, int64_t width) { return p + row * width; }

#endif
