/* The config table: one row per YAML key, from which binding, --help and the resolved config are made. Spellings of other
 * trainers (Hugging Face, axolotl, litgpt, torchtune, OLMo, Megatron) are aliases, accepted with one warning each. */
#include "options.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "schedule.h"

#define AT(member) offsetof(struct options, member)
#define KEY(key, type, member, def, alias, help, lo, hi) {key, type, AT(member), def, NULL, alias, help, lo, hi}
#define CHOICE(key, member, def, choices, alias, help) {key, CONFIG_CHOICE, AT(member), def, choices, alias, help, 0, 0}
#define BIG 9e15

static const struct config_field fields[] = {
    KEY("model.path", CONFIG_STR, model_path, NULL, "base_model|model_name_or_path|initial_checkpoint_dir|load_path",
        "checkpoint to start from: Hugging Face directory, .h5, llama2.c .bin, run directory", 0, 0),
    CHOICE("model.dtype", dtype, "keep", "keep|f32|bf16|f16", NULL, "element type of the result in output_dir/final (keep: as the source)"),
    CHOICE("model.init", init, "pretrained", "pretrained|random", NULL, "random: a new model from model.arch instead of model.path"),
    KEY("model.arch.family", CONFIG_STR, arch.family, "llama", NULL, "model_type of the new config.json: llama, mistral, qwen2, qwen3, olmo2, phi3", 0, 0),
    KEY("model.arch.hidden_size", CONFIG_INT, arch.hidden_size, NULL, NULL, "model width C", 1, 1 << 20),
    KEY("model.arch.num_hidden_layers", CONFIG_INT, arch.layers, NULL, NULL, "layers L", 1, 10000),
    KEY("model.arch.num_attention_heads", CONFIG_INT, arch.heads, NULL, NULL, "query heads H", 1, 65536),
    KEY("model.arch.num_key_value_heads", CONFIG_INT, arch.kv_heads, NULL, NULL, "K/V heads G (default: as many as query heads)", 1, 65536),
    KEY("model.arch.head_dim", CONFIG_INT, arch.head_dim, NULL, NULL, "head width D (default: C / H)", 1, 65536),
    KEY("model.arch.intermediate_size", CONFIG_INT, arch.intermediate_size, NULL, NULL, "MLP width F", 1, 1 << 24),
    KEY("model.arch.vocab_size", CONFIG_INT, arch.vocab_size, NULL, NULL, "vocabulary V (default: the tokenizer's)", 1, 1 << 28),
    KEY("model.arch.max_position_embeddings", CONFIG_INT, arch.max_positions, NULL, NULL, "longest context (default: sequence_len)", 1, 1 << 28),
    KEY("model.arch.tie_word_embeddings", CONFIG_BOOL, arch.tied, "false", NULL, "one table for input and output", 0, 0),
    KEY("model.arch.rms_norm_eps", CONFIG_FLOAT, arch.norm_eps, "1e-5", NULL, "epsilon of the norms", 1e-12, 1),
    KEY("model.arch.rope_theta", CONFIG_FLOAT, arch.rope_theta, "10000", NULL, "rotary base", 1, 1e12),
    KEY("model.arch.initializer_range", CONFIG_FLOAT, arch.init_sd, "0.02", NULL, "standard deviation of the initial weights", 1e-9, 10),
    KEY("model.arch.bos_token_id", CONFIG_INT, arch.bos, NULL, NULL, "begin of text (default: the tokenizer's)", -1, 1 << 28),
    KEY("model.arch.eos_token_id", CONFIG_INT, arch.eos, NULL, NULL, "end of document (default: the tokenizer's)", -1, 1 << 28),
    KEY("gqa.num_key_value_heads", CONFIG_INT, gqa.kv_heads, NULL, "n_query_groups|n_kv_heads|num_query_groups",
        "convert model.path to this many K/V heads first (by gqa-convert, into output_dir/converted)", 1, 65536),
    KEY("gqa.kv_budget", CONFIG_STR, gqa.kv_budget, NULL, NULL, "instead, with gqa.calibration: all layers' K/V bytes per token, as a share of model.path's (25%) or in bytes; "
        "the number of heads is chosen for each layer, see gqa-convert --kv-budget", 0, 0),
    KEY("gqa.method", CONFIG_STR, gqa.method, "mean", NULL, "how heads of a group become one: see gqa-convert --help", 0, 0),
    KEY("gqa.calibration", CONFIG_STR, gqa.calibration, NULL, NULL, "tokens or text: merge by what attention reads, see gqa-convert --calibration; in sequences of sequence_len, of 1024 at most", 0, 0),
    KEY("gqa.calibration_tokens", CONFIG_INT, gqa.calibration_tokens, NULL, NULL, "how many of them (default 32768)", 1, BIG),
    KEY("gqa.refit", CONFIG_STR, gqa.refit, NULL, NULL, "none, output, block or all: see gqa-convert --refit; needs gqa.calibration", 0, 0),
    KEY("gqa.grouping", CONFIG_STR, gqa.grouping, NULL, NULL, "which heads share a group: consecutive (default) or similar, see gqa-convert --help", 0, 0),
    KEY("data.train", CONFIG_STRS, data.train, NULL, "data.paths|data.train_files", "training files", 0, 0),
    KEY("data.validation", CONFIG_STRS, data.validation, NULL, "data.val|data.validation_files", "validation files (none: no evaluation)", 0, 0),
    CHOICE("data.format", data.format, "auto", "auto|llmc|raw|megatron|text|jsonl", NULL, "auto: by magic and extension"),
    CHOICE("data.dtype", data.dtype, "auto", "auto|uint16|uint32", NULL, "of headerless token files (auto: uint16 if V <= 65536)"),
    KEY("data.text_field", CONFIG_STR, data.text_field, "text", NULL, "field of each .jsonl line", 0, 0),
    KEY("data.tokenizer", CONFIG_STR, data.tokenizer, NULL, NULL, "PATH, bytes, or model (the model directory's); default model when text is read", 0, 0),
    KEY("data.pack", CONFIG_BOOL, data.pack, "true", NULL, "attention and positions stay inside documents", 0, 0),
    KEY("sequence_len", CONFIG_INT, sequence_len, NULL, "seq_length|max_seq_len|max_seq_length|train.max_seq_length", "tokens per sample T (required)", 1, 1 << 28),
    KEY("micro_batch_size", CONFIG_INT, micro_batch_size, "1", "train.micro_batch_size|per_device_train_batch_size|batch_size|device_train_microbatch_size",
        "sequences per forward and backward", 1, 1 << 20),
    KEY("global_batch_size", CONFIG_INT, global_batch_size, NULL, "train.global_batch_size|global_train_batch_size", "sequences per update (default: one micro-batch)", 1, 1 << 28),
    KEY("gradient_accumulation_steps", CONFIG_INT, accumulation, NULL, NULL, "the same as global_batch_size / micro_batch_size; give one of the two", 1, 1 << 28),
    KEY("original_tokens", CONFIG_FLOAT, original_tokens, NULL, NULL, "tokens of the original pretraining", 1, 1e18),
    KEY("uptrain_fraction", CONFIG_FLOAT, uptrain_fraction, NULL, NULL, "alpha: share of original_tokens to train on (0: evaluate and copy)", 0, 1000),
    KEY("max_steps", CONFIG_INT, max_steps, NULL, "train.max_steps|train_iters", "budget as updates, instead of uptrain_fraction", 0, BIG),
    KEY("max_tokens", CONFIG_FLOAT, max_tokens, NULL, "train.max_tokens", "budget as tokens, instead of uptrain_fraction", 0, 1e18),
    CHOICE("optimizer.name", optimizer.name, "adamw", "adamw|adafactor", NULL, "adafactor comes with T5"),
    KEY("optimizer.lr", CONFIG_FLOAT, optimizer.lr, "1e-4", "learning_rate|optimizer.learning_rate", "peak learning rate", 0, 1e3),
    KEY("optimizer.betas", CONFIG_FLOATS, optimizer.betas_list, NULL, NULL, "[beta1, beta2] (default [0.9, 0.95])", 0, 1),
    KEY("optimizer.adam_beta1", CONFIG_FLOAT, optimizer.beta1, NULL, "adam_beta1", "the same as betas[0]", 0, 1),
    KEY("optimizer.adam_beta2", CONFIG_FLOAT, optimizer.beta2, NULL, "adam_beta2", "the same as betas[1]", 0, 1),
    KEY("optimizer.eps", CONFIG_FLOAT, optimizer.eps, "1e-8", "adam_epsilon", "added to the root of the second moment", 1e-30, 1),
    KEY("optimizer.weight_decay", CONFIG_FLOAT, optimizer.weight_decay, "0.1", "weight_decay", "decoupled; matrices only, not embeddings, norms or biases", 0, 10),
    CHOICE("optimizer.moments", optimizer.moments, "zero", "zero|auto", NULL,
           "auto: start from the moments that belong to model.path (another run's directory, or gqa-convert --moments carry), if there are any"),
    KEY("max_grad_norm", CONFIG_FLOAT, max_grad_norm, "1.0", "max_norm|clip_grad_norm", "gradients are scaled down to this norm; 0: never", 0, 1e9),
    CHOICE("lr_scheduler.name", schedule.name, "cosine", SCHEDULE_NAMES, "lr_scheduler_type", "shape of the learning rate after the warm-up"),
    KEY("lr_scheduler.warmup_steps", CONFIG_INT, schedule.warmup_steps, NULL, "warmup_steps", "updates of linear warm-up", 0, BIG),
    KEY("lr_scheduler.warmup_ratio", CONFIG_FLOAT, schedule.warmup_ratio, NULL, "warmup_ratio", "the same as a share of all updates (default 0)", 0, 1),
    KEY("lr_scheduler.min_lr_ratio", CONFIG_FLOAT, schedule.min_lr_ratio, "0", "min_lr_ratio|cosine_min_lr_ratio", "last learning rate as a share of the peak", 0, 1),
    KEY("lr_scheduler.decay_ratio", CONFIG_FLOAT, schedule.decay_ratio, "0.1", NULL, "wsd: share of the updates in which the rate falls", 0, 1),
    CHOICE("precision", precision, "fp32", "fp32|bf16", NULL, "of matrices and activations; vectors, moments and gradients are always fp32 (the CPU does fp32)"),
    KEY("master_weights", CONFIG_BOOL, master_weights, "true", NULL,
        "precision bf16: f32 weights beside the bf16 ones; false: only bf16, rounded stochastically", 0, 0),
    CHOICE("activation_checkpointing", checkpointing, "none", "none|block|false|true", "gradient_checkpointing|enable_activation_checkpointing",
           "block: keep each block's input only and compute the block again in the backward pass"),
    KEY("freeze", CONFIG_STRS, freeze, NULL, NULL, "globs of tensor names that stay as they are, e.g. [embed.*, dec.0.*]; \"!glob\" takes some back: ['*', '!*.attn.*'] trains attention only", 0, 0),
    KEY("distill.teacher", CONFIG_STR, distill.teacher, NULL, "distill.model", "checkpoint whose probabilities are learned too (default: the model before gqa converts it)", 0, 0),
    KEY("distill.weight", CONFIG_FLOAT, distill.weight, "0.9", "distill.alpha", "w: the loss is (1-w) cross-entropy + w temperature^2 KL(teacher || model); 0: no teacher", 0, 1),
    KEY("distill.temperature", CONFIG_FLOAT, distill.temperature, "1", NULL, "of both softmaxes in that KL", 0.01, 100),
    KEY("distill.top_k", CONFIG_INT, distill.top_k, "0", NULL, "keep the teacher's k most likely tokens on disk, computed once; 0: all tokens, the teacher in memory", 0, 1 << 20),
    KEY("distill.cache", CONFIG_STR, distill.cache, NULL, NULL, "FILE or DIR for them, shared between runs (default: output_dir/cache)", 0, 0),
    KEY("save_steps", CONFIG_INT, save_steps, "500", "save_interval|train.save_interval", "checkpoint every so many steps and at the end; 0: only on a signal", 0, BIG),
    KEY("save_total_limit", CONFIG_INT, save_total_limit, "2", "save_num_checkpoints_to_keep", "checkpoints kept (at least 2: the last one may be damaged)", 2, 1 << 20),
    KEY("eval_steps", CONFIG_INT, eval_steps, "250", "eval_interval|run_val_every_n_steps", "validation loss every so many steps; 0: first and last only", 0, BIG),
    KEY("eval_batches", CONFIG_INT, eval_batches, "50", "eval_iters|eval_max_batches", "micro-batches of validation data; 0: all of it", 0, BIG),
    KEY("logging_steps", CONFIG_INT, logging_steps, "10", "log_interval|log_every_n_steps|console_log_interval", "a log line every so many steps", 1, BIG),
    KEY("logging.jsonl", CONFIG_BOOL, log_jsonl, "true", NULL, "output_dir/log.jsonl", 0, 0),
    KEY("logging.tensorboard", CONFIG_BOOL, log_tensorboard, "true", NULL, "output_dir/tensorboard/", 0, 0),
    KEY("resume", CONFIG_STR, resume, "auto", "resume_from_checkpoint", "auto: from the newest checkpoint of output_dir if there is one; never; PATH", 0, 0),
    KEY("seed", CONFIG_INT, seed, "0", NULL, "of data order, initial weights and everything random", 0, BIG),
    KEY("deterministic", CONFIG_BOOL, deterministic, "true", NULL, "same bits for the same seed, threads and machine (always so on the CPU)", 0, 0),
    KEY("threads", CONFIG_INT, threads, "0", NULL, "CPU threads; 0: all allowed", 0, 4096),
    KEY("max_skips", CONFIG_INT, max_skips, "10", NULL, "skipped (non-finite) steps in a row that end the run", 1, 1 << 20),
    KEY("output_dir", CONFIG_STR, output_dir, NULL, "out_dir|save_folder", "where everything of this run goes (required)", 0, 0),
};
#define N_FIELDS ((int)(sizeof fields / sizeof *fields))

static void preset(struct options *o)
{
    memset(o, 0, sizeof *o);
    for (int i = 0; i < N_FIELDS; i++) {
        char *at = (char *)o + fields[i].offset;
        if (fields[i].def)
            continue;
        if (fields[i].type == CONFIG_INT)
            *(int64_t *)(void *)at = UNSET_INT;
        if (fields[i].type == CONFIG_FLOAT)
            *(double *)(void *)at = (double)NAN;
    }
}

enum code options_load(struct options *o, const char *path, int n_overrides, char **overrides)
{
    preset(o);
    TRY(config_load(&o->config, path, n_overrides, overrides));
    o->file = path;
    TRY(config_bind(o->config, config_root(o->config), fields, N_FIELDS, o));
    return options_check(o);
}

void options_free(struct options *o)
{
    config_free(o->config);
    o->config = NULL;
}

void options_help(void)
{
    config_help(fields, N_FIELDS);
}

/* ---- the resolved config --------------------------------------------------------------------------------------------- */

static json_t *choice_json(const char *choices, int index)
{
    for (; index > 0; index--)
        choices = strchr(choices, '|') + 1;
    return json_stringn(choices, strcspn(choices, "|"));
}

static json_t *list_json(const struct config_list *list, enum config_type type)
{
    json_t *a = json_array();
    for (int i = 0; i < list->n; i++)
        json_array_append_new(a, type == CONFIG_STRS ? json_string(((const char *const *)list->items)[i])
                                                     : json_real(((const double *)list->items)[i]));
    return a;
}

/* NULL when the key has no value. */
static json_t *value_json(const struct config_field *f, const struct options *o)
{
    const void *at = (const char *)o + f->offset;
    switch (f->type) {
    case CONFIG_INT: {
        int64_t v = *(const int64_t *)at;
        return v == UNSET_INT ? NULL : json_integer(v);
    }
    case CONFIG_FLOAT: {
        double v = *(const double *)at;
        if (isnan(v))
            return NULL;
        return v == floor(v) && fabs(v) < 1e15 ? json_integer((json_int_t)v) : json_real(v);
    }
    case CONFIG_BOOL:
        return json_boolean(*(const int *)at);
    case CONFIG_STR:
        return *(const char *const *)at ? json_string(*(const char *const *)at) : NULL;
    case CONFIG_CHOICE:
        return choice_json(f->choices, *(const int *)at);
    case CONFIG_FLOATS:
    case CONFIG_STRS: {
        const struct config_list *list = at;
        return list->n ? list_json(list, f->type) : NULL;
    }
    case CONFIG_INTS:
    case CONFIG_MAP:
        return NULL;
    }
    return NULL;
}

static int wanted(const struct options *o, const char *key)
{
    if (!strncmp(key, "model.arch.", 11) && o->init != INIT_RANDOM)
        return 0;
    if (!strncmp(key, "gqa.", 4) && !options_converts(o))
        return 0;
    if (!strncmp(key, "distill.", 8) && !o->distill.on)
        return 0;
    if (!strcmp(key, "master_weights") && o->precision != PRECISION_BF16)
        return 0;
    /* Each is said by another key of the resolved config. */
    return strcmp(key, "gradient_accumulation_steps") != 0 && strcmp(key, "optimizer.adam_beta1") != 0 &&
           strcmp(key, "optimizer.adam_beta2") != 0;
}

json_t *options_to_json(const struct options *o)
{
    json_t *root = json_object();
    for (int i = 0; i < N_FIELDS; i++) {
        json_t *value = wanted(o, fields[i].key) ? value_json(&fields[i], o) : NULL, *at = root;
        const char *key = fields[i].key, *dot;
        if (!strcmp(key, "optimizer.betas") && !value) /* the default, or adam_beta1 and adam_beta2 */
            value = json_pack("[f, f]", o->optimizer.beta1, o->optimizer.beta2);
        if (!value)
            continue;
        while ((dot = strchr(key, '.')) != NULL) {
            char part[64];
            size_t n = (size_t)(dot - key);
            memcpy(part, key, n);
            part[n] = 0;
            json_t *below = json_object_get(at, part);
            if (!below) {
                below = json_object();
                json_object_set_new(at, part, below);
            }
            at = below;
            key = dot + 1;
        }
        json_object_set_new(at, key, value);
    }
    return root;
}
