/* One run of gqa-uptrain: what main builds up and every file of this folder works on. The order is that of a run:
 * options -> convert_first -> source and arch -> dataset -> model, optimizer -> resume -> trainer -> final. */
#ifndef GQAKIT_UPTRAIN_RUN_H
#define GQAKIT_UPTRAIN_RUN_H

#include <stdio.h>

#include "base/base.h"
#include "checkpoints/checkpoint.h"
#include "data/data.h"
#include "kernels/kernels.h"
#include "model/model.h"

#include "options.h"
#include "runlog.h"
#include "schedule.h"

struct dataset {
    struct tokenizer *tokenizer; /* NULL: the files are tokens */
    int bos, eos;
    struct tokens **train, **validation;
    int n_train, n_validation;
    struct sampler train_order, validation_order; /* validation: file order */
    int64_t eval_windows;                         /* samples one evaluation scores */
};

/* One contiguous piece of the flat parameters with the same treatment. */
struct optimizer_range { int64_t from, count; int decay, frozen; float *p; uint16_t *low; };

/* What a step computes with and leaves, in device memory: written before it and read after it by one copy each, so that nothing in
 * between waits for the device. */
struct step_scalars {
    double loss_sum, norm; /* sum of -ln p; of the accumulated gradients, NaN or inf when the step was skipped */
    double kl_sum;         /* of KL(teacher || model) over the valid targets */
    int64_t count;         /* valid targets */
    float inv_count, clip;
    int32_t skip;
};

struct optimizer {
    const struct backend *backend;
    struct device *device;
    const struct model *model;
    struct arena moments, scalars; /* m then v, n floats each | the partial sums and scalars below, in device memory */
    float *m, *v;
    int64_t n, n_partials;
    double *partials;
    struct step_scalars *step;
    uint64_t seed; /* of stochastic rounding */
    struct optimizer_range *ranges;
    int n_ranges;
    int64_t frozen; /* parameters (elements) that stay as they are */
};

/* What a checkpoint keeps beside parameters and moments. */
struct progress_state {
    int64_t step, tokens;
    int64_t moments_updates;          /* updates that the moments had behind them at step 0 */
    int64_t skips, skips_row;         /* skipped steps: all, and in a row up to now */
    int64_t eval_step, line_step;     /* last step evaluated, last step logged; -1 none */
    double loss, grad_norm, lr, kl;   /* of the last step; NaN before the first, kl also without a teacher */
    double loss_zero, loss_eval;      /* validation loss at step 0 and at eval_step; NaN when there is none */
    double seconds;                   /* of training, over all resumes */
};

/* The teacher of a run: a model beside the student, or its most likely tokens on disk. */
struct distill {
    struct checkpoint *checkpoint; /* NULL: no teacher */
    char hash[33];                 /* of its files, in the order of their names */
    struct model *model;           /* in memory; with a cache only while that is made */
    struct teacher_cache *cache;
    char *cache_path;
    struct model_teacher teacher;  /* what the student holds */
    struct arena arena;            /* device: ids and logp of a micro-batch */
    int32_t *ids;                  /* host: of one window */
    float *logp;
};

struct run {
    struct options options;
    int plan, json;
    struct budget budget;
    struct schedule schedule;
    const struct backend *backend;
    struct device *device;
    const char *source_path; /* model.path, or output_dir/converted; NULL for init: random */
    char *converted;         /* owns the latter */
    struct checkpoint *source;
    struct arch arch;
    int arch_known;
    struct ckpt_choice home; /* of output_dir/final: the model's own class, or our own form */
    int64_t kv_bytes, kv_bytes_source; /* gqa.kv_budget: allowed per token, and those of model.path; 0: none */
    struct dataset data;
    struct model *model;
    struct optimizer optimizer;
    struct distill distill;
    struct batch batch;
    struct progress_state state;
    struct runlog log;
    struct io_lock lock;
    int locked;
    char *saved_path; /* newest good checkpoint, NULL when none */
    double saved_at;
    struct step_array *arrays; /* parameters and moments by name, for step_save and step_read */
    struct step_copy copy;     /* through the device, where the host cannot read its memory */
    int n_arrays;
};

/* convert_first.c. Runs gqa-convert into output_dir/converted unless it is complete there for the same inputs. */
enum code convert_first(struct run *r) MUST_USE;

/* regroup.c. What gqa will make of the heads, before it is done. check: gqa.kv_budget against model.path; regroup: a plan's architecture. */
enum code regroup_check(struct run *r) MUST_USE;
enum code regroup(struct run *r) MUST_USE;

/* dataset.c */
enum code dataset_tokenizer(struct dataset *d, const struct options *o, struct checkpoint *source /* or NULL */) MUST_USE;
enum code dataset_open(struct dataset *d, const struct options *o, const struct arch *arch, const char *cache_dir) MUST_USE;
void dataset_close(struct dataset *d);
json_t *dataset_to_json(const struct dataset *d, const struct options *o); /* paths, hashes, counts */

/* setup.c. Opens the source, decides the arch (source, gqa in a plan, or model.arch), device, data. */
enum code setup_source(struct run *r) MUST_USE;
enum code setup_device(struct run *r, const char *name) MUST_USE;
enum code setup_data(struct run *r) MUST_USE;
enum code setup_model(struct run *r) MUST_USE; /* model, optimizer, batch; parameters from the source or random */
struct model_options setup_model_options(const struct run *r);

/* optimizer.c */
enum code optimizer_open(struct optimizer *p, struct model *model, const struct backend *backend, struct device *device,
                         const struct options *o) MUST_USE;
void optimizer_close(struct optimizer *p);
/* Before the first micro-batch of a step: sums zero, inv_count = 1 / valid (0: no valid target). */
enum code optimizer_begin(struct optimizer *p, int64_t valid) MUST_USE;
/* Norm of the accumulated gradients, clip factor and skip flag: queued, not waited for. */
enum code optimizer_norm(struct optimizer *p, double max_norm) MUST_USE;
/* AdamW over the ranges; gradients become zero. step is 1-based. Queued. */
enum code optimizer_step(struct optimizer *p, const struct optimizer_options *o, double lr, int64_t step) MUST_USE;
/* Waits for the step and tells what it left. */
enum code optimizer_result(struct optimizer *p, struct step_scalars *result) MUST_USE;

/* distill.c. open: the checkpoint, and whether it can teach this run. attach: after setup_model. batch: what the cache holds of the samples
 * from `first` on that are in r->batch. teach 0: pauses, for plain evaluation. */
enum code distill_open(struct run *r) MUST_USE;
enum code distill_attach(struct run *r) MUST_USE;
enum code distill_batch(struct run *r, int64_t first) MUST_USE;
void distill_teach(struct run *r, int on);
void distill_close(struct run *r);
struct model_options distill_model_options(const struct run *r);
void distill_card(const struct run *r, FILE *f);
json_t *distill_to_json(const struct run *r); /* for provenance; null without a teacher */
/* distill_cache.c. The file this run reads (NULL: none), what of it is missing, and making that. */
struct distill_need { int64_t windows, missing, bytes; }; /* that the run sees; not in the file yet; bytes they take at most */
enum code distill_cache_need(struct run *r, struct distill_need *n) MUST_USE;
enum code distill_cache_make(struct run *r) MUST_USE;
enum code distill_cache_path(struct run *r) MUST_USE;

/* evaluate.c. Nats per token over the first eval_windows samples of the validation data. *stopped: a signal ended it early. */
enum code evaluate(struct run *r, double *loss, int *stopped) MUST_USE;

/* state.c */
enum code state_arrays(struct run *r) MUST_USE;
enum code state_save(struct run *r) MUST_USE;
enum code state_resume(struct run *r, int *resumed) MUST_USE;

/* moments.c. At step 0: the moments that belong to the source, if they are wanted and there are any. */
enum code moments_take(struct run *r) MUST_USE;

/* trainer.c. ERR_STOPPED after a signal, with a checkpoint; ERR_NUMERIC after too many skipped steps. */
enum code trainer_run(struct run *r) MUST_USE;

/* plan.c */
struct plan {
    struct model_memory memory, teacher; /* teacher: a model that only scores */
    int64_t moments, teacher_total, total, disk_needed, disk_free, parameters;
    struct distill_need cache;
    int64_t cache_free; /* bytes where the cache will be */
    double flops, seconds;
};
enum code plan_make(struct run *r, struct plan *p) MUST_USE;
void plan_print(const struct run *r, const struct plan *p);
enum code plan_check(const struct run *r, const struct plan *p) MUST_USE; /* ERR_MEMORY, ERR_IO when it will not fit */

/* final.c. Writes output_dir/final. *path malloc'ed. */
enum code final_write(struct run *r, char **path) MUST_USE;

#endif
