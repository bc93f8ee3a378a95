/* What the ablation refuses before it starts, so that hours of training do not end in a misspelt word. */
#include "ablate.h"

#include <string.h>

static const char *at(const struct ablation *a, const char *key) { return config_where(a->config_file, config_root(a->config_file), key); }
static const char *word_of(const struct config_list *list, int i) { return ((const char *const *)list->items)[i]; }

/* Keys that the grid sets by itself: in the uptrain block they would fight it. */
static enum code refuse_grid_keys(const struct ablation *a)
{
    static const char *const keys[] = { "model", "gqa", "output_dir", "uptrain_fraction", "seed", "max_steps", "max_tokens", "init" };
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
        if (config_has(a->config.uptrain, keys[i]))
            return fail(ERR_USAGE, "%s: uptrain.%s is set by the grid; remove it", config_where(a->config_file, a->config.uptrain, keys[i]), keys[i]);
    return OK;
}

static int one_of(const char *word, size_t n, const char *const *legal)
{
    for (; *legal; legal++)
        if (strlen(*legal) == n && strncmp(word, *legal, n) == 0)
            return 1;
    return 0;
}

static enum code check_words(const struct ablation *a, const char *key, const struct config_list *list, const char *const *legal)
{
    if (list->n < 1)
        return fail(ERR_USAGE, "%s: %s is empty: there would be nothing to compare", at(a, key), key);
    for (int i = 0; i < list->n; i++)
        if (!one_of(word_of(list, i), strlen(word_of(list, i)), legal))
            return fail(ERR_USAGE, "%s: %s: \"%s\" is not known here; legal: %s, %s", at(a, key), key, word_of(list, i), legal[0], legal[1]);
    return OK;
}

/* "svd", "mean+block": a method, and a refit after it; "auto" chooses both by itself. */
static enum code check_methods(const struct ablation *a)
{
    static const char *const methods[] = { "mean", "first", "random", "select", "align", "svd", NULL }, *const refits[] = { "output", "block", "all", NULL };
    const struct config_list *list = &a->config.method;
    if (list->n < 1)
        return fail(ERR_USAGE, "%s: grid.method is empty: there would be nothing to compare", at(a, "grid.method"));
    for (int i = 0; i < list->n; i++) {
        const char *word = word_of(list, i), *plus = strchr(word, '+');
        size_t n = plus ? (size_t)(plus - word) : strlen(word);
        if (strcmp(word, "auto") == 0)
            continue;
        if (!one_of(word, n, methods) || (plus && !one_of(plus + 1, strlen(plus + 1), refits)))
            return fail(ERR_USAGE, "%s: grid.method: \"%s\" is not known here; legal: auto, mean, first, random, select, align, svd, each but auto also with +output, +block or +all",
                        at(a, "grid.method"), word);
        if (plus && !a->config.calibration)
            return fail(ERR_USAGE, "%s: grid.method: \"%s\" needs gqa.calibration: tokens or text like the training data", at(a, "grid.method"), word);
    }
    return OK;
}

static enum code check_shares(const struct ablation *a)
{
    const double *alpha = a->config.alpha.items;
    for (int i = 0; i < a->config.alpha.n; i++) {
        if (!(alpha[i] >= 0 && alpha[i] <= 10))
            return fail(ERR_USAGE, "%s: grid.uptrain_fraction: %g is not between 0 and 10", at(a, NULL), alpha[i]);
        if (alpha[i] > 0 && !a->uptrain)
            return fail(ERR_USAGE, "%s: grid.uptrain_fraction is above 0 but there is no `uptrain` block", at(a, NULL));
        if (alpha[i] > 0 && !(a->original_tokens > 0))
            return fail(ERR_USAGE, "%s: uptrain.original_tokens is missing: uptrain_fraction is a share of it", config_where(a->config_file, a->config.uptrain, NULL));
    }
    return OK;
}

static enum code check_evaluate(const struct ablation *a)
{
    const struct ablate_config *c = &a->config;
    if (c->tasks.n > MOST_TASKS)
        return fail(ERR_USAGE, "%s: evaluate.tasks has %d files, at most %d are taken", at(a, "evaluate.tasks"), c->tasks.n, MOST_TASKS);
    for (int i = 0; i < c->tasks.n; i++)
        if (strchr(word_of(&c->tasks, i), ',') || !io_exists(word_of(&c->tasks, i)))
            return fail(ERR_USAGE, "%s: evaluate.tasks: %s: %s", at(a, "evaluate.tasks"), word_of(&c->tasks, i),
                        strchr(word_of(&c->tasks, i), ',') ? "gqa-eval tasks separates files by commas; rename the file" : "no such file");
    if (c->context > 0 && c->stride > c->context)
        return fail(ERR_USAGE, "%s: evaluate.stride %lld is above evaluate.context %lld: tokens between the windows would not be scored", at(a, "evaluate.stride"),
                    (long long)c->stride, (long long)c->context);
    const struct { const char *key; int n; } lists[] = { { "evaluate.decode.batch", c->decode_batch.n }, { "evaluate.decode.context", c->decode_context.n } };
    for (int i = 0; i < 2; i++)
        if (lists[i].n < 1 || lists[i].n > MOST_DECODE)
            return fail(ERR_USAGE, "%s: %s needs 1 to %d numbers, has %d", at(a, lists[i].key), lists[i].key, MOST_DECODE, lists[i].n);
    return OK;
}

enum code ablate_check(const struct ablation *a)
{
    static const char *const groupings[] = { "consecutive", "similar", NULL }, *const losses[] = { "ce", "distill", NULL };
    const struct ablate_config *c = &a->config;
    if (!c->name && !c->output_dir)
        return fail(ERR_USAGE, "%s: `name` is missing: what shall the run be called?", at(a, NULL));
    const char *dir = c->output_dir ? c->output_dir : c->name;
    if (!*dir || strlen(dir) > MOST_PATH)
        return fail(ERR_USAGE, "%s: the run's folder needs a name of 1 to %d bytes", at(a, NULL), MOST_PATH);
    if (!c->model)
        return fail(ERR_USAGE, "%s: model.path is missing", at(a, NULL));
    if (c->data.n == 0)
        return fail(ERR_USAGE, "%s: evaluate.data is missing: quality needs held-out text", at(a, NULL));
    TRY(check_methods(a));
    TRY(check_words(a, "grid.grouping", &c->grouping, groupings));
    TRY(check_words(a, "grid.loss", &c->loss, losses));
    TRY(check_evaluate(a));
    TRY(check_shares(a));
    return c->uptrain ? refuse_grid_keys(a) : OK;
}
