/* The cells: every combination of the grid, plus the controls a reader of the report needs: the original (G = H, alpha = 0), and
 * the original trained on the same data (G = H) for every alpha above 0. Combinations that mean the same are one cell: the
 * method and the grouping do not matter at G = H, the grouping not for method auto, which chooses it, the training loss not without training, and the seed only where there is training
 * (it orders the data) or a random start. */
#include "ablate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "data/data.h"

static void id_of(char id[17], const json_t *config)
{
    char *text = json_text(config, JSON_COMPACT | JSON_SORT_KEYS);
    CHECK(text);
    snprintf(id, 17, "%016llx", (unsigned long long)hash64(text, strlen(text)));
    free(text);
}

const char *ablate_calibration(const struct ablation *a, const struct cell *c)
{
    const char *method = c->method;
    int by_weights = c->G > 0 && (strcmp(method, "mean") == 0 || strcmp(method, "first") == 0 || strcmp(method, "random") == 0 || strcmp(method, "none") == 0);
    return by_weights ? NULL : a->config.calibration;
}

int64_t ablate_calibration_length(const struct ablation *a)
{
    return a->config.context <= CALIBRATION_LONGEST ? a->config.context : 0;
}

/* A file by name and size: one written anew with other contents is nearly always another size. */
static json_t *file_json(const char *path) { return json_pack("[s, I]", path, (json_int_t)io_file_bytes(path)); }

static json_t *files_json(const struct config_list *list)
{
    json_t *j = json_array();
    for (int i = 0; i < list->n; i++)
        json_array_append_new(j, file_json(((const char *const *)list->items)[i]));
    return j;
}

static json_t *perplexity_json(const struct ablation *a)
{
    const struct ablate_config *c = &a->config;
    json_t *j = json_pack("{s:o, s:I, s:I, s:I, s:b}", "data", files_json(&c->data), "context", (json_int_t)c->context, "stride", (json_int_t)c->stride, "limit",
                          (json_int_t)c->limit, "pack", c->pack);
    json_object_set_new(j, "windows", json_true());
    if (c->tokenizer)
        json_object_set_new(j, "tokenizer", json_string(c->tokenizer));
    if (c->kl)
        json_object_set_new(j, "kl", json_true());
    return j;
}

static void cell_ids(const struct ablation *a, struct cell *c)
{
    json_t *j = json_pack("{s:s, s:I, s:s, s:s}", "source", a->source_hash, "G", (json_int_t)c->G, "method", c->method, "grouping", c->grouping);
    if (c->G < 0) {
        json_object_del(j, "G");
        json_object_set_new(j, "kv_budget", json_string(ablate_budget(a, c->G)));
    }
    if (strncmp(c->method, "random", 6) == 0)
        json_object_set_new(j, "seed", json_integer(c->seed));
    if (ablate_calibration(a, c))
        json_object_set_new(j, "calibration", json_pack("{s:o, s:I, s:I}", "file", file_json(a->config.calibration), "tokens", (json_int_t)a->config.calibration_tokens,
                                                          "sequence_length", (json_int_t)ablate_calibration_length(a)));
    id_of(c->conversion, j);

    json_t *zero = json_pack("{s:s, s:o}", "conversion", c->conversion, "perplexity", perplexity_json(a));
    id_of(c->zero, zero);
    json_decref(zero);

    json_object_set_new(j, "loss", json_string(c->loss));
    json_object_set_new(j, "alpha", json_real(c->alpha));
    json_object_set_new(j, "seed", json_integer(c->seed));
    if (c->alpha > 0)
        json_object_set(j, "uptrain", a->uptrain);
    if (strcmp(c->loss, "distill") == 0)
        json_object_set(j, "distill", a->distill);
    id_of(c->training, j);

    json_object_set_new(j, "perplexity", perplexity_json(a));
    json_object_set_new(j, "tasks", files_json(&a->config.tasks));
    id_of(c->id, j);
    json_decref(j);
}

static enum code add_cell(struct ablation *a, int64_t G, const char *method, const char *grouping, const char *loss, double alpha, int64_t seed)
{
    struct cell c = { .G = G, .method = method, .grouping = grouping, .loss = loss, .alpha = alpha, .seed = seed };
    c.loss_zero_step = c.loss_final = c.loss_stderr = c.difference_stderr = c.bits_per_byte = c.kl_zero_step = c.kl = c.kl_stderr = (double)NAN;
    if (G == a->H) {
        c.method = "none";
        c.grouping = "consecutive";
    }
    if (strcmp(method, "auto") == 0)
        c.grouping = "consecutive"; /* auto chooses it too */
    if (alpha <= 0) {
        c.loss = "ce";
        if (strncmp(c.method, "random", 6) != 0)
            c.seed = 0;
    }
    cell_ids(a, &c);
    for (int i = 0; i < a->n_cells; i++)
        if (strcmp(a->cells[i].id, c.id) == 0)
            return OK;
    struct cell *more = realloc(a->cells, (size_t)(a->n_cells + 1) * sizeof *more);
    if (!more)
        return fail(ERR_MEMORY, "out of memory for %d cells", a->n_cells + 1);
    a->cells = more;
    a->cells[a->n_cells++] = c;
    return OK;
}

static int by_value(const void *x, const void *y)
{
    double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

/* Shares from small to large, so that the report of an ablation stopped half-way compares all starts at the small ones. */
enum code ablate_grid(struct ablation *a)
{
    const struct ablate_config *c = &a->config;
    const int64_t *G = c->groups.items, *seed = c->seed.items;
    const char *const *method = c->method.items, *const *grouping = c->grouping.items, *const *loss = c->loss.items;
    size_t n = (size_t)c->alpha.n;
    double *alpha = malloc((n + 1) * sizeof *alpha);
    if (!alpha)
        return fail(ERR_MEMORY, "out of memory for the grid");
    if (n)
        memcpy(alpha, c->alpha.items, n * sizeof *alpha);
    qsort(alpha, n, sizeof *alpha, by_value);
    enum code e = add_cell(a, a->H, "none", "consecutive", "ce", 0, 0);
    a->baseline = 0;
    for (size_t f = 0; f < n; f++)
        for (int s = 0; s < c->seed.n; s++)
            for (int x = 0; x < c->loss.n; x++) {
                if (e == OK)
                    e = add_cell(a, a->H, "none", "consecutive", loss[x], alpha[f], seed[s]);
                for (int g = 0; g < c->groups.n + c->budgets.n; g++)
                    for (int m = 0; m < c->method.n; m++)
                        for (int p = 0; e == OK && p < c->grouping.n; p++)
                            e = add_cell(a, g < c->groups.n ? G[g] : c->groups.n - g - 1, method[m], grouping[p], loss[x], alpha[f], seed[s]);
            }
    free(alpha);
    return e;
}
