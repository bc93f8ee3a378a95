/* Everything a run is told: the YAML keys as one struct, bound by one table (which is also --help and the resolved config). */
#ifndef GQAKIT_UPTRAIN_OPTIONS_H
#define GQAKIT_UPTRAIN_OPTIONS_H

#include "base/base.h"

#define UNSET_INT INT64_MIN /* a number the config does not give; UNSET_FLOAT is NaN, an unset string NULL */

enum { INIT_PRETRAINED, INIT_RANDOM };
enum { OPTIMIZER_ADAMW, OPTIMIZER_ADAFACTOR };
enum { PRECISION_FP32, PRECISION_BF16 };

struct arch_options { /* init: random */
    const char *family;
    int64_t hidden_size, layers, heads, kv_heads, head_dim, intermediate_size, vocab_size, max_positions, bos, eos;
    double norm_eps, rope_theta, init_sd;
    int tied;
};

/* One of kv_heads and kv_budget, or neither: no conversion. */
struct gqa_options { int64_t kv_heads, calibration_tokens; const char *kv_budget, *method, *calibration, *refit, *grouping; };

struct data_options {
    struct config_list train, validation; /* const char * */
    int format;                           /* enum data_format */
    int dtype;                            /* 0 auto, 1 uint16, 2 uint32 */
    const char *text_field, *tokenizer;
    int pack;
};

enum { MOMENTS_ZERO, MOMENTS_AUTO };
struct optimizer_options {
    int name, moments;
    double lr, eps, weight_decay;
    struct config_list betas_list;
    double beta1, beta2; /* adam_beta1, adam_beta2; after options_load always set */
};

struct schedule_options { int name; int64_t warmup_steps; double warmup_ratio, min_lr_ratio, decay_ratio; };

struct distill_options {
    const char *teacher;    /* after options_load set when on */
    double weight, temperature;
    int64_t top_k;          /* 0: the teacher in memory */
    const char *cache;      /* file or directory; NULL: output_dir/cache */
    int on;                 /* the block is there and its weight is not 0 */
};

struct options {
    struct config *config; /* owns the strings */
    const char *file;
    const char *model_path;
    int init, dtype; /* dtype: 0 keep, 1 f32, 2 bf16, 3 f16 */
    struct arch_options arch;
    struct gqa_options gqa;
    struct data_options data;
    int64_t sequence_len, micro_batch_size, global_batch_size, accumulation; /* after options_load the last two are set */
    double original_tokens, uptrain_fraction, max_tokens;
    int64_t max_steps;
    struct optimizer_options optimizer;
    double max_grad_norm;
    struct schedule_options schedule;
    int precision, master_weights, checkpointing;
    struct config_list freeze;
    struct distill_options distill;
    int64_t save_steps, eval_steps, eval_batches, logging_steps, save_total_limit;
    const char *resume; /* "auto", "never" or a path */
    int64_t seed, threads, max_skips;
    int deterministic;
    const char *output_dir;
    int log_jsonl, log_tensorboard;
};

/* Steps of the run from the budget: steps = ceil(tokens / (global_batch_size * sequence_len)). */
struct budget { int64_t steps, tokens_per_step, tokens; int64_t warmup, decay; };

/* Reads, binds, checks. ERR_USAGE names file:line and the key; ERR_UNSUPPORTED what this build cannot do. */
enum code options_load(struct options *o, const char *path, int n_overrides, char **overrides) MUST_USE;
void options_free(struct options *o);
void options_help(void); /* every key with default and meaning, on stdout */
/* Only the contradictions; options_load calls it. */
enum code options_check(struct options *o) MUST_USE;
/* 1 when gqa asks for a conversion before training. */
int options_converts(const struct options *o);
enum code options_budget(const struct options *o, struct budget *b) MUST_USE;
/* The resolved config: every key with its value, unset ones left out; it is itself a legal config. NULL: out of memory. */
json_t *options_to_json(const struct options *o);

#endif
