/* gqa-convert's own parts: what is asked (options), what will be done (plan), the merging of heads (pool), the walk over the
 * tensors (stream), and what is told afterwards (report, card). Stands on checkpoints/ and base/ alone. */
#ifndef GQAKIT_CONVERT_CONVERT_H
#define GQAKIT_CONVERT_CONVERT_H

#include "base/base.h"
#include "checkpoints/checkpoint.h"
#include "auto.h"
#include "budget.h"
#include "calibrate.h"
#include "merge.h"

#define METHODS MERGE_METHODS "|auto"
enum { METHOD_AUTO = MERGE_SVD + 1 };
#define GROUPINGS "consecutive|similar"
enum grouping { GROUPING_CONSECUTIVE, GROUPING_SIMILAR };

#define MOMENTS_NAMES "none|carry"
enum { MOMENTS_NONE, MOMENTS_CARRY };

#define KV_HEADS_KEEP INT64_MIN
struct options {
    const char *source, *target;
    int inspect, dry_run, json, force, quiet, compress;
    int method, grouping;          /* enum merge_method or METHOD_AUTO, enum grouping; -1: not asked, until auto_choose */
    const char *calibration;       /* NULL: none */
    int64_t calibration_tokens, sequence_length, threads; /* 0: defaults */
    int refit;                     /* enum refit; -1 likewise */
    const char *kv_budget;         /* NULL: none */
    const struct budget *budget;   /* what was chosen under it */
    struct auto_choice choice;
    int64_t kv_heads;              /* KV_HEADS_KEEP: not asked; 0 is an answer, and refused */
    struct cli_ints kv_heads_per_layer; /* n 0: not asked */
    int home;                      /* enum ckpt_home */
    const char *family;            /* --target-family; NULL: not asked */
    int dtype;                     /* index into "keep|f32|bf16|f16" */
    int64_t seed, shard_mb, header_mb;
    int moments;                   /* MOMENTS_NONE, MOMENTS_CARRY */
    const char *verify;
};
enum dtype options_dtype(const struct options *o); /* DT_NONE: keep */

/* What a conversion will do. */
struct plan {
    struct arch arch;      /* of the result: its heads, at its home */
    struct arch from;      /* of the source */
    int64_t *pooled;       /* [L] heads that remain after merging; each is then written G / pooled times */
    int merges, repeats;   /* 1 if any layer has fewer heads, or copies of them */
    struct ckpt_choice choice;
    char note[320];        /* what the merge cannot do exactly, besides merging; "" */
    int64_t bytes_in, bytes_out;
    int whole_layers;      /* 1: heads are merged one attention layer in memory at a time (layers.c), 0: streamed (pool.c) */
    struct calibration_size calibration; /* sequences 0: none */
    int64_t layer_bytes;   /* what that takes, of the largest layer */
};
/* Refuses group counts that neither divide a layer's K/V heads nor are a multiple of them that divides its query heads, listing the
 * legal ones; chooses where the result lives. Free with plan_free. */
enum code plan_make(struct plan *p, struct checkpoint *source, const struct options *o) MUST_USE;
/* The arch with G key/value heads in every layer. */
enum code plan_groups(struct arch *a, int64_t G) MUST_USE;
void plan_free(struct plan *p);
/* "8 -> 2", "8 -> 2, repeated to 8", or a list by layer; `out` at least 256 bytes. */
void plan_groups_text(const struct plan *p, char *out, size_t n);

/* Squared distance of the pooled rows from the heads they replace, the squared size of those heads, and of the pooled rows (NULL: not
 * wanted), per pooled head. */
struct pool_error { double *distance, *size, *kept; int64_t G; }; /* [G] */

/* Pools the rows of one tensor that belong to K/V heads (weights [G0*D, C], biases and norms [G0*D]) from the source into the
 * writer, streaming in row blocks, and writes each pooled head `repeat` times. */
struct pool_job {
    struct checkpoint *source;
    const struct ckpt_tensor *in;
    struct ckpt_writer *writer; /* NULL: only measure */
    const struct ckpt_tensor *out;
    int64_t D;      /* rows per head */
    int64_t pooled; /* heads after merging; the result's are a multiple */
    enum merge_method method; /* MEAN, FIRST or RANDOM */
    uint64_t seed;
    double init_sd;         /* of MERGE_RANDOM: initializer_range of config.json, or 0.02 */
    const float *row_scale; /* [G0*D] factors of the source's rows, or NULL */
    void *buffer;
    size_t buffer_bytes;
};
enum code pool_tensor(const struct pool_job *job, struct pool_error *error) MUST_USE;
/* The same rows without merging: bytes as they are, each head `repeat` times; adds non-finite elements to *bad. */
enum code pool_repeat(const struct pool_job *job, int64_t *bad) MUST_USE;

/* knorm.c. What a norm of the keys becomes when heads are merged. FULL (one RMSNorm over all heads): the weights move into W_k (and its
 * bias) before it is pooled: *scale, malloc'ed [G0*D], NULL for other kinds; every weight of the result is *constant. `job` is that of any
 * tensor of the layer's keys. */
enum code knorm_scale(const struct plan *plan, const struct pool_job *job, int64_t layer, float **scale, double *constant) MUST_USE;
/* Sentence for people; "" when a merge under this arch is nothing special. */
void knorm_note(const struct arch *a, enum merge_method method, char *out, size_t n);

/* rel error of layer l, group g: sqrt(distance / size). kind 0 = K weights, 1 = V weights. */
struct layer_errors {
    struct pool_error error[2];
    double *j, *mean_j; /* [G]: J of the method and of a plain mean (merge.h); NULL when the layer was streamed */
    int64_t *members;   /* [G0]; NULL: consecutive */
    int64_t heads;      /* G0 */
    double *e_k, *e_v;  /* [G0, D, D] maps E_j (merge.h); NULL: 1. One allocation, e_k */
};

struct file_hash { const char *path; char sha256[65]; int64_t bytes; };

struct outcome {
    struct layer_errors *layers; /* [L]; G 0 where nothing was merged */
    int64_t L;
    struct file_hash *inputs;
    int n_inputs;
    double seconds;
    int calibrated;           /* 1: calibration holds something */
    struct calibration calibration;
    int keep_maps;            /* layers[].e_k and e_v are wanted */
    int64_t nonfinite_copied; /* elements in tensors that were only copied */
};
void outcome_free(struct outcome *o);
enum code error_table(struct pool_error *e, int64_t G) MUST_USE; /* zeroed */

/* layers.c: merging whole attention layers while the tensors go by in the writer's order. A layer is computed when its first tensor is
 * asked for; its results are held, in f32, until each is written. */
struct layers;
enum code layers_open(struct layers **s, struct checkpoint *source, const struct plan *plan, const struct options *o, struct outcome *out) MUST_USE;
void layers_close(struct layers *s); /* NULL is fine */
/* 1 when this tensor's values come from a merged layer. */
int layers_holds(const struct layers *s, const struct ckpt_tensor *in);
/* One layer under these moments (merge.h; NULL: by weights), grouped as asked; what it cost goes to out->layers. */
enum code layers_merge(struct attention_layer *to, const struct attention_layer *from, const struct plan *plan, const struct options *o,
                       const double *moments, struct outcome *out) MUST_USE;
/* Rows of heads as merged, each `repeat` times in a row where the result repeats them; other tensors as they are. */
enum code layers_write_rows(struct ckpt_writer *w, const struct ckpt_tensor *out, const float *values, int64_t count, int64_t head) MUST_USE;
enum code layers_write(struct layers *s, const struct ckpt_tensor *in, struct ckpt_writer *w, const struct ckpt_tensor *out) MUST_USE;
double initializer_range(const struct arch *a); /* of config.json, or 0.02 */

/* carry.c: the optimiser's moments, merged as the weights were. *out is NULL when there are none to carry; *why says why when there are
 * some that cannot be, else "". Before the tensors are walked. */
struct carry;
enum code carry_open(struct carry **out, const struct plan *plan, const struct options *o, struct outcome *outcome, char *why, size_t n) MUST_USE;
/* After the walk: writes them below the target's directory, and says what was written in facts. */
enum code carry_write(struct carry *c, struct ckpt_writer *w, json_t *facts) MUST_USE;
void carry_close(struct carry *c); /* NULL is fine */

/* What opening the target would refuse; writes nothing. */
enum code stream_check(struct checkpoint *source, const struct plan *plan, const struct options *o) MUST_USE;
/* Everything from opening the writer to the finished target. */
enum code stream_convert(struct checkpoint *source, const struct plan *plan, const struct options *o, struct outcome *out) MUST_USE;

/* README.md of the result, malloc'ed. */
char *card_text(struct checkpoint *source, const struct plan *plan, const struct options *o, const struct outcome *out);
json_t *report_convert(struct checkpoint *source, const struct plan *plan, const struct options *o, const struct outcome *out); /* out NULL: dry run */
void report_convert_table(struct checkpoint *source, const struct plan *plan, const struct options *o, const struct outcome *out);

double layer_error(const struct pool_error *e); /* relative, over all groups */
json_t *report_home(const struct ckpt_choice *choice); /* {home, family, exact, sentence} */

void describe(const struct arch *a); /* one line on stdout: norms, residuals, positions, MLP, biases ... */
enum code inspect_run(const struct options *o) MUST_USE;

#endif
