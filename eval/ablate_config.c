/* The ablation's YAML, and the source checkpoint it names. */
#include "ablate.h"

#include <stdlib.h>
#include <string.h>

#include "checkpoints/checkpoint.h"

#define F_IN(key, type, field, def, lo, hi, help) { key, type, offsetof(struct ablate_config, field), def, NULL, NULL, help, lo, hi }
#define F(key, type, field, def, help) F_IN(key, type, field, def, 0, 0, help)
#define MOST_TOKENS (1 << 24) /* as gqa-eval's own commands allow: what they refuse is refused here, before hours of training */
static const struct config_field fields[] = {
    F("name", CONFIG_STR, name, NULL, "of the run; results go to runs/NAME"),
    F("output_dir", CONFIG_STR, output_dir, NULL, "instead of runs/NAME"),
    F("model.path", CONFIG_STR, model, NULL, "the checkpoint to start from"),
    F("grid.num_key_value_heads", CONFIG_INTS, groups, NULL, "group counts to try; default: every legal one"),
    F("grid.kv_budget", CONFIG_STRS, budgets, NULL, "K/V budgets to try beside them, a share (25%) or bytes per token: heads chosen for each layer, see gqa-convert --kv-budget; alone, no counts are tried"),
    F("grid.method", CONFIG_STRS, method, "[mean]", "mean, first, random, select, align, svd, auto; with a refit after it: svd+all (or +output, +block)"),
    F("gqa.calibration", CONFIG_STR, calibration, NULL, "tokens or text for select, align, svd, auto and every refit, read in sequences of evaluate.context (at most 1024): see gqa-convert --calibration"),
    F_IN("gqa.calibration_tokens", CONFIG_INT, calibration_tokens, "0", 0, 1e12, "how many; 0: gqa-convert's default"),
    F("grid.grouping", CONFIG_STRS, grouping, "[consecutive]", "which heads share a group: consecutive, similar"),
    F("grid.loss", CONFIG_STRS, loss, "[ce]", "ce: cross-entropy; distill: against the original's predictions, by the `distill` block"),
    F("grid.uptrain_fraction", CONFIG_FLOATS, alpha, "[0, 0.05]", "shares of the original pretraining tokens; 0 is no training"),
    F("grid.seed", CONFIG_INTS, seed, "[0]", "seeds of training (and of method random); summaries are over them"),
    F("uptrain", CONFIG_MAP, uptrain, NULL, "a gqa-uptrain config without model, gqa, output_dir, uptrain_fraction and seed"),
    F("distill", CONFIG_MAP, distill, NULL, "for loss distill: gqa-uptrain's keys weight, temperature, top_k, cache; the teacher is model.path"),
    F("evaluate.data", CONFIG_STRS, data, NULL, "held-out tokens or text"),
    F("evaluate.tokenizer", CONFIG_STR, tokenizer, NULL, "for text; default: the checkpoint's own"),
    F_IN("evaluate.context", CONFIG_INT, context, "0", 0, MOST_TOKENS, "see gqa-eval perplexity; default: uptrain's sequence_len"),
    F_IN("evaluate.stride", CONFIG_INT, stride, "0", 0, MOST_TOKENS, "see gqa-eval perplexity"),
    F_IN("evaluate.limit", CONFIG_INT, limit, "0", 0, 1e15, "score only so many tokens of each file"),
    F("evaluate.pack", CONFIG_BOOL, pack, "true", "attention stays inside documents, as gqa-uptrain trains by default"),
    F("evaluate.tasks", CONFIG_STRS, tasks, NULL, "task files for gqa-eval tasks (JSON lines)"),
    F("evaluate.kl", CONFIG_BOOL, kl, "true", "measure KL(original || result); costs a forward pass of the original for each evaluation"),
    F_IN("evaluate.decode.batch", CONFIG_INTS, decode_batch, "[1]", 1, 256, "see gqa-eval decode"),
    F_IN("evaluate.decode.context", CONFIG_INTS, decode_context, "[512, 4096]", 0, MOST_TOKENS, "see gqa-eval decode"),
    F_IN("evaluate.decode.new", CONFIG_INT, decode_new, "32", 1, 1 << 20, "see gqa-eval decode"),
    F_IN("evaluate.decode.repeats", CONFIG_INT, decode_repeats, "5", 1, 10000, "see gqa-eval decode"),
    F("margin", CONFIG_FLOAT, margin, "0.01", "nats per token a recommended model may lose against the original"),
    { "keep", CONFIG_CHOICE, offsetof(struct ablate_config, keep_all), "final", "final|all", NULL, "of a finished training: its result and log, or also its checkpoints (12 bytes per parameter) and tokenised text", 0, 0 },
    F_IN("threads", CONFIG_INT, threads, "0", 0, 4096, "0: all CPUs"),
    F("device", CONFIG_STR, device, "auto", "auto, cpu, cuda"),
};
enum { N_FIELDS = sizeof fields / sizeof fields[0] };

void ablate_config_help(void) { config_help(fields, N_FIELDS); }

/* XXH3-128 over the hashes of the files, in the order of the checkpoint: any changed byte gives other cells. */
static enum code hash_source(struct checkpoint *ck, char hex[33])
{
    const char *const *names;
    int n = ckpt_files(ck, &names);
    char *all = calloc((size_t)n + 1, 33), one[33] = "";
    if (!all)
        return fail(ERR_MEMORY, "out of memory for %d hashes", n);
    enum code c = OK;
    for (int i = 0; c == OK && i < n; i++) {
        char *path = io_is_dir(ckpt_path(ck)) ? io_join(ckpt_path(ck), names[i]) : strdup(ckpt_path(ck));
        c = path ? xxh128_file(path, one) : fail(ERR_MEMORY, "out of memory for a path");
        memcpy(all + 32 * i, one, 32);
        free(path);
    }
    uint64_t low = hash64(all, 32 * (size_t)n);
    memcpy(all + 32 * n, "x", 1);
    uint64_t high = hash64(all, 32 * (size_t)n + 1);
    snprintf(hex, 33, "%016llx%016llx", (unsigned long long)high, (unsigned long long)low);
    free(all);
    return c;
}

static enum code read_source(struct ablation *a)
{
    struct checkpoint *ck = NULL;
    TRY(ckpt_open(&ck, a->config.model, NULL));
    a->H = ckpt_arch(ck)->stack[STACK_DEC].block[0].G;
    static int64_t legal[64];
    if (a->config.groups.n == 0 && a->config.budgets.n == 0) {
        a->config.groups.n = arch_legal_groups(ckpt_arch(ck), legal, 64);
        a->config.groups.items = legal;
    }
    const int64_t *G = a->config.groups.items;
    enum code c = OK;
    for (int i = 0; c == OK && i < a->config.groups.n; i++)
        if (G[i] < 1 || G[i] > a->H || a->H % G[i] != 0)
            c = fail(ERR_USAGE, "%s: grid.num_key_value_heads: %lld does not divide the %lld of %s", config_where(a->config_file, config_root(a->config_file), "grid"),
                     (long long)G[i], (long long)a->H, a->config.model);
    if (c == OK)
        c = ablate_budgets_read(a, ckpt_arch(ck));
    if (c == OK)
        c = hash_source(ck, a->source_hash);
    ckpt_close(ck);
    return c;
}

/* The uptrain block without its distill block, and the distill block with the teacher filled in. */
static enum code split_blocks(struct ablation *a)
{
    a->uptrain = a->config.uptrain ? config_to_json(a->config.uptrain) : NULL;
    a->distill = a->config.distill ? config_to_json(a->config.distill) : NULL;
    json_t *inner = json_object_get(a->uptrain, "distill");
    if (inner && a->distill)
        return fail(ERR_USAGE, "%s: both `distill` and `uptrain.distill` are given; keep one", config_where(a->config_file, a->config.uptrain, "distill"));
    if (inner)
        a->distill = json_incref(inner);
    if (inner)
        json_object_del(a->uptrain, "distill");
    if (!a->distill)
        a->distill = json_object();
    if (!json_is_object(a->distill))
        return fail(ERR_USAGE, "%s: `distill` must be a mapping: {weight: 0.5, temperature: 2}", config_where(a->config_file, config_root(a->config_file), NULL));
    if (!json_object_get(a->distill, "teacher"))
        json_object_set_new(a->distill, "teacher", json_string(a->config.model));
    return OK;
}

enum code ablate_load(struct ablation *a, const char *path, int n_overrides, char **overrides)
{
    memset(a, 0, sizeof *a);
    a->advice.pick = a->advice.nearest = a->advice.cell = -1;
    TRY(config_load(&a->config_file, path, n_overrides, overrides));
    TRY(config_bind(a->config_file, config_root(a->config_file), fields, N_FIELDS, &a->config));
    TRY(split_blocks(a));
    if (a->uptrain) {
        a->original_tokens = json_number_value(json_object_get(a->uptrain, "original_tokens"));
        if (a->config.context == 0)
            a->config.context = json_integer_value(json_object_get(a->uptrain, "sequence_len"));
    }
    TRY(ablate_check(a));
    return read_source(a);
}

void ablate_free(struct ablation *a)
{
    for (int i = 0; i < a->n_cells; i++) {
        json_decref(a->cells[i].curve);
        json_decref(a->cells[i].evals);
        json_decref(a->cells[i].tasks);
        json_decref(a->cells[i].decode);
    }
    free(a->cells);
    free(a->summaries);
    json_decref(a->uptrain);
    json_decref(a->distill);
    config_free(a->config_file);
}
