/* The ablation's YAML, and the source checkpoint it names. */
#include "ablate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/checkpoint.h"

#define F(key, type, field, def, choices, help) { key, type, offsetof(struct ablate_config, field), def, choices, NULL, help, 0, 0 }
static const struct config_field fields[] = {
    F("name", CONFIG_STR, name, NULL, NULL, "of the run; results go to runs/NAME"),
    F("output_dir", CONFIG_STR, output_dir, NULL, NULL, "instead of runs/NAME"),
    F("model.path", CONFIG_STR, model, NULL, NULL, "the checkpoint to start from"),
    F("grid.num_key_value_heads", CONFIG_INTS, groups, NULL, NULL, "group counts to try; default: every legal one"),
    F("grid.method", CONFIG_STRS, method, "[mean]", NULL, "mean, first, random"),
    F("grid.grouping", CONFIG_STRS, grouping, "[consecutive]", NULL, "consecutive"),
    F("grid.loss", CONFIG_STRS, loss, "[ce]", NULL, "ce: cross-entropy"),
    F("grid.uptrain_fraction", CONFIG_FLOATS, alpha, "[0, 0.05]", NULL, "shares of the original pretraining tokens; 0 is no training"),
    F("grid.seed", CONFIG_INTS, seed, "[0]", NULL, "seeds of training (and of method random); summaries are over them"),
    F("uptrain", CONFIG_MAP, uptrain, NULL, NULL, "a gqa-uptrain config without model, gqa, output_dir, uptrain_fraction and seed"),
    F("evaluate.data", CONFIG_STRS, data, NULL, NULL, "held-out tokens or text"),
    F("evaluate.tokenizer", CONFIG_STR, tokenizer, NULL, NULL, "for text; default: the checkpoint's own"),
    F("evaluate.context", CONFIG_INT, context, "0", NULL, "see gqa-eval perplexity; default: uptrain's sequence_len"),
    F("evaluate.stride", CONFIG_INT, stride, "0", NULL, "see gqa-eval perplexity"),
    F("evaluate.limit", CONFIG_INT, limit, "0", NULL, "score only so many tokens of each file"),
    F("evaluate.pack", CONFIG_BOOL, pack, "true", NULL, "attention stays inside documents, as gqa-uptrain trains by default"),
    F("evaluate.decode.batch", CONFIG_INTS, decode_batch, "[1]", NULL, "see gqa-eval decode"),
    F("evaluate.decode.context", CONFIG_INTS, decode_context, "[512, 4096]", NULL, "see gqa-eval decode"),
    F("evaluate.decode.new", CONFIG_INT, decode_new, "32", NULL, "see gqa-eval decode"),
    F("evaluate.decode.repeats", CONFIG_INT, decode_repeats, "5", NULL, "see gqa-eval decode"),
    F("margin", CONFIG_FLOAT, margin, "0.01", NULL, "nats per token a recommended model may lose against the original"),
    F("threads", CONFIG_INT, threads, "0", NULL, "0: all CPUs"),
    F("device", CONFIG_STR, device, "auto", NULL, "auto, cpu, cuda"),
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
        if (!known)
            return fail(ERR_USAGE, "%s: %s: \"%s\" is not known here; legal: %s%s%s%s%s", config_where(a->config_file, config_root(a->config_file), key), key, word,
                        legal[0], n > 1 ? ", " : "", n > 1 ? legal[1] : "", n > 2 ? ", " : "", n > 2 ? legal[2] : "");
    }
    return OK;
}

static enum code check_config(struct ablation *a)
{
    static const char *const methods[] = { "mean", "first", "random" }, *const groupings[] = { "consecutive" }, *const losses[] = { "ce" };
    const struct ablate_config *c = &a->config;
    const char *where = config_where(a->config_file, config_root(a->config_file), NULL);
    if (!c->name && !c->output_dir)
        return fail(ERR_USAGE, "%s: `name` is missing: what shall the run be called?", where);
    if (!c->model)
        return fail(ERR_USAGE, "%s: model.path is missing", where);
    if (c->data.n == 0)
        return fail(ERR_USAGE, "%s: evaluate.data is missing: quality needs held-out text", where);
    TRY(check_words(a, "grid.method", &c->method, methods, 3));
    TRY(check_words(a, "grid.grouping", &c->grouping, groupings, 1));
    TRY(check_words(a, "grid.loss", &c->loss, losses, 1));
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
    char *all = calloc((size_t)n + 1, 33), one[33];
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
