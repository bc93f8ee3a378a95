/* The ablation's YAML, and the source checkpoint it names. */
#include "ablate.h"

#include <math.h>
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
    F("grid.method", CONFIG_STRS, method, "[mean]", "mean, first, random, select, align, svd; with a refit after it: svd+all (or +output, +block)"),
    F("gqa.calibration", CONFIG_STR, calibration, NULL, "tokens or text for select, align, svd and every refit: see gqa-convert --calibration"),
    F_IN("gqa.calibration_tokens", CONFIG_INT, calibration_tokens, "0", 0, 1e12, "how many; 0: gqa-convert's default"),
    F("grid.grouping", CONFIG_STRS, grouping, "[consecutive]", "which heads share a group: consecutive, similar"),
    F("grid.loss", CONFIG_STRS, loss, "[ce]", "ce: cross-entropy"),
    F("grid.uptrain_fraction", CONFIG_FLOATS, alpha, "[0, 0.05]", "shares of the original pretraining tokens; 0 is no training"),
    F("grid.seed", CONFIG_INTS, seed, "[0]", "seeds of training (and of method random); summaries are over them"),
    F("uptrain", CONFIG_MAP, uptrain, NULL, "a gqa-uptrain config without model, gqa, output_dir, uptrain_fraction and seed"),
    F("evaluate.data", CONFIG_STRS, data, NULL, "held-out tokens or text"),
    F("evaluate.tokenizer", CONFIG_STR, tokenizer, NULL, "for text; default: the checkpoint's own"),
    F_IN("evaluate.context", CONFIG_INT, context, "0", 0, MOST_TOKENS, "see gqa-eval perplexity; default: uptrain's sequence_len"),
    F_IN("evaluate.stride", CONFIG_INT, stride, "0", 0, MOST_TOKENS, "see gqa-eval perplexity"),
    F_IN("evaluate.limit", CONFIG_INT, limit, "0", 0, 1e15, "score only so many tokens of each file"),
    F("evaluate.pack", CONFIG_BOOL, pack, "true", "attention stays inside documents, as gqa-uptrain trains by default"),
    F("evaluate.tasks", CONFIG_STRS, tasks, NULL, "not implemented in this version: must be absent or []"),
    F_IN("evaluate.decode.batch", CONFIG_INTS, decode_batch, "[1]", 1, 256, "see gqa-eval decode"),
    F_IN("evaluate.decode.context", CONFIG_INTS, decode_context, "[512, 4096]", 0, MOST_TOKENS, "see gqa-eval decode"),
    F_IN("evaluate.decode.new", CONFIG_INT, decode_new, "32", 1, 1 << 20, "see gqa-eval decode"),
    F_IN("evaluate.decode.repeats", CONFIG_INT, decode_repeats, "5", 1, 10000, "see gqa-eval decode"),
    F("margin", CONFIG_FLOAT, margin, "0.01", "nats per token a recommended model may lose against the original"),
    F_IN("threads", CONFIG_INT, threads, "0", 0, 4096, "0: all CPUs"),
    F("device", CONFIG_STR, device, "auto", "auto, cpu, cuda"),
};
enum { N_FIELDS = sizeof fields / sizeof fields[0] };

void ablate_config_help(void) { config_help(fields, N_FIELDS); }

/* Keys that the grid sets by itself: in the uptrain block they would fight it. */
static enum code refuse_grid_keys(const struct ablation *a)
{
    static const char *const keys[] = { "model", "gqa", "output_dir", "uptrain_fraction", "seed", "max_steps", "max_tokens", "init" };
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
        if (config_has(a->config.uptrain, keys[i]))
            return fail(ERR_USAGE, "%s: uptrain.%s is set by the grid; remove it", config_where(a->config_file, a->config.uptrain, keys[i]), keys[i]);
    return OK;
}

static enum code check_words(const struct ablation *a, const char *key, const struct config_list *list, const char *const *legal, int n)
{
    for (int i = 0; i < list->n; i++) {
        const char *word = ((const char *const *)list->items)[i];
        int known = 0;
        for (int k = 0; k < n; k++)
            known |= strcmp(word, legal[k]) == 0;
        if (!known) {
            char all[256] = "";
            for (int k = 0; k < n; k++)
                snprintf(all + strlen(all), sizeof all - strlen(all), "%s%s", k ? ", " : "", legal[k]);
            return fail(ERR_USAGE, "%s: %s: \"%s\" is not known here; legal: %s", config_where(a->config_file, config_root(a->config_file), key), key, word, all);
        }
    }
    return OK;
}

static enum code check_evaluate(const struct ablation *a)
{
    const struct ablate_config *c = &a->config;
    const struct config_node *root = config_root(a->config_file);
    if (c->tasks.n > 0)
        return fail(ERR_UNSUPPORTED, "%s: evaluate.tasks: scoring tasks is not implemented in this version; remove the key (loss and bits per byte are measured)",
                    config_where(a->config_file, root, "evaluate.tasks"));
    if (c->context > 0 && c->stride > c->context)
        return fail(ERR_USAGE, "%s: evaluate.stride %lld is above evaluate.context %lld: tokens between the windows would not be scored",
                    config_where(a->config_file, root, "evaluate.stride"), (long long)c->stride, (long long)c->context);
    const struct { const char *key; int n; } lists[] = { { "evaluate.decode.batch", c->decode_batch.n }, { "evaluate.decode.context", c->decode_context.n } };
    for (int i = 0; i < 2; i++)
        if (lists[i].n < 1 || lists[i].n > MOST_DECODE)
            return fail(ERR_USAGE, "%s: %s needs 1 to %d numbers, has %d", config_where(a->config_file, root, lists[i].key), lists[i].key, MOST_DECODE, lists[i].n);
    return OK;
}

static int one_of(const char *word, size_t n, const char *const *legal)
{
    for (; *legal; legal++)
        if (strlen(*legal) == n && strncmp(word, *legal, n) == 0)
            return 1;
    return 0;
}

/* "svd", "mean+block": a method, and a refit after it. */
static enum code check_methods(const struct ablation *a)
{
    static const char *const methods[] = { "mean", "first", "random", "select", "align", "svd", NULL }, *const refits[] = { "output", "block", "all", NULL };
    const char *where = config_where(a->config_file, config_root(a->config_file), "grid.method");
    for (int i = 0; i < a->config.method.n; i++) {
        const char *word = ((const char *const *)a->config.method.items)[i], *plus = strchr(word, '+');
        size_t n = plus ? (size_t)(plus - word) : strlen(word);
        if (!one_of(word, n, methods) || (plus && !one_of(plus + 1, strlen(plus + 1), refits)))
            return fail(ERR_USAGE, "%s: grid.method: \"%s\" is not known here; legal: mean, first, random, select, align, svd, each also with +output, +block or +all",
                        where, word);
        if (plus && !a->config.calibration)
            return fail(ERR_USAGE, "%s: grid.method: \"%s\" needs gqa.calibration: tokens or text like the training data", where, word);
    }
    return OK;
}

static enum code check_config(struct ablation *a)
{
    static const char *const groupings[] = { "consecutive", "similar" }, *const losses[] = { "ce" };
    const struct ablate_config *c = &a->config;
    const char *where = config_where(a->config_file, config_root(a->config_file), NULL);
    if (!c->name && !c->output_dir)
        return fail(ERR_USAGE, "%s: `name` is missing: what shall the run be called?", where);
    const char *dir = c->output_dir ? c->output_dir : c->name;
    if (!*dir || strlen(dir) > MOST_PATH)
        return fail(ERR_USAGE, "%s: the run's folder needs a name of 1 to %d bytes", where, MOST_PATH);
    if (!c->model)
        return fail(ERR_USAGE, "%s: model.path is missing", where);
    if (c->data.n == 0)
        return fail(ERR_USAGE, "%s: evaluate.data is missing: quality needs held-out text", where);
    TRY(check_methods(a));
    TRY(check_words(a, "grid.grouping", &c->grouping, groupings, 2));
    TRY(check_words(a, "grid.loss", &c->loss, losses, 1));
    TRY(check_evaluate(a));
    const double *alpha = c->alpha.items;
    for (int i = 0; i < c->alpha.n; i++) {
        if (!(alpha[i] >= 0 && alpha[i] <= 10))
            return fail(ERR_USAGE, "%s: grid.uptrain_fraction: %g is not between 0 and 10", where, alpha[i]);
        if (alpha[i] > 0 && !c->uptrain)
            return fail(ERR_USAGE, "%s: grid.uptrain_fraction is above 0 but there is no `uptrain` block", where);
    }
    return c->uptrain ? refuse_grid_keys(a) : OK;
}

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
    if (a->config.groups.n == 0) {
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
        c = hash_source(ck, a->source_hash);
    ckpt_close(ck);
    return c;
}

enum code ablate_load(struct ablation *a, const char *path, int n_overrides, char **overrides)
{
    memset(a, 0, sizeof *a);
    a->recommended = -1;
    TRY(config_load(&a->config_file, path, n_overrides, overrides));
    TRY(config_bind(a->config_file, config_root(a->config_file), fields, N_FIELDS, &a->config));
    TRY(check_config(a));
    if (a->config.uptrain) {
        json_t *u = config_to_json(a->config.uptrain);
        a->original_tokens = json_number_value(json_object_get(u, "original_tokens"));
        if (a->config.context == 0)
            a->config.context = json_integer_value(json_object_get(u, "sequence_len"));
        json_decref(u);
        const double *alpha = a->config.alpha.items;
        for (int i = 0; i < a->config.alpha.n; i++)
            if (alpha[i] > 0 && !(a->original_tokens > 0))
                return fail(ERR_USAGE, "%s: uptrain.original_tokens is missing: uptrain_fraction is a share of it", config_where(a->config_file, a->config.uptrain, NULL));
    }
    return read_source(a);
}

void ablate_free(struct ablation *a)
{
    for (int i = 0; i < a->n_cells; i++) {
        json_decref(a->cells[i].curve);
        json_decref(a->cells[i].evals);
        json_decref(a->cells[i].decode);
    }
    free(a->cells);
    free(a->summaries);
    config_free(a->config_file);
}
