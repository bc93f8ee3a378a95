/* How many heads a cell has: one number G for all layers, or a K/V budget under which gqa-convert gives every layer its own. Budgets go by
 * negative G, -1 for the first of grid.kv_budget, so that what is keyed by G needs to know nothing more. */
#include "ablate.h"

#include <stdlib.h>
#include <string.h>

#include "checkpoints/checkpoint.h"

const char *ablate_budget(const struct ablation *a, int64_t G) { return G < 0 ? ((const char *const *)a->config.budgets.items)[-G - 1] : NULL; }

double ablate_heads(const struct ablation *a, int64_t G) { return G < 0 ? a->budget_share[-G - 1] * (double)a->H : (double)G; }

/* Beside numbers of heads a bare number would read as one. */
static const char *unit(const char *budget) { return strchr(budget, '%') ? "" : " B"; }

void ablate_heads_short(const struct ablation *a, int64_t G, char out[48])
{
    if (G < 0)
        snprintf(out, 48, "%.30s%s", ablate_budget(a, G), unit(ablate_budget(a, G)));
    else
        snprintf(out, 48, "%lld", (long long)G);
}

void ablate_heads_name(const struct ablation *a, int64_t G, const char *kind, char out[96])
{
    if (G < 0)
        snprintf(out, 96, "budget %.30s%s", ablate_budget(a, G), unit(ablate_budget(a, G)));
    else
        snprintf(out, 96, "%lld %shead%s", (long long)G, kind, G == 1 ? "" : "s");
}

int ablate_same_shape(const struct cell *x, const struct cell *y) { return x->G == y->G && (x->G > 0 || strcmp(x->conversion, y->conversion) == 0); }

/* Other sentences than gqa-convert's would be seen only after the first cells. */
enum code ablate_budgets_read(struct ablation *a, const struct arch *source)
{
    const struct config_list *list = &a->config.budgets;
    const char *where = config_where(a->config_file, config_root(a->config_file), "grid.kv_budget");
    char name[600];
    struct arch uneven;
    struct ckpt_choice choice;
    int differs;
    snprintf(name, sizeof name, "%s: grid.kv_budget", where);
    if (list->n > MOST_BUDGETS)
        return fail(ERR_USAGE, "%s has %d entries, at most %d are taken", name, list->n, MOST_BUDGETS);
    if (list->n && !a->config.calibration)
        return fail(ERR_USAGE, "%s needs gqa.calibration: weights alone do not say which layers matter", name);
    for (int i = 0; i < list->n; i++) {
        int64_t bytes, most = arch_kv_bytes_per_token(source, 0, source->dtype);
        const char *text = ((const char *const *)list->items)[i];
        TRY(kv_budget_of(&bytes, name, text, source, source->dtype));
        if (bytes >= most)
            return fail(ERR_USAGE, "%s: %s keeps every head: that is the original, which is always measured", name, text);
        a->budget_share[i] = (double)bytes / (double)most;
    }
    if (list->n == 0)
        return OK;
    TRY(kv_budget_uneven(&uneven, &differs, source));
    enum code c = differs ? ckpt_choose(&uneven, "a directory", HOME_AUTO, NULL, &choice) : OK;
    arch_free(&uneven);
    return fail_in(c, "%s", name);
}

/* "4 1 1 2", or what of it fits. */
void ablate_heads_chosen(const json_t *groups, char *out, size_t n)
{
    size_t used = 0, l = 0, count = json_array_size(groups);
    out[0] = 0;
    for (; l < count && used + 16 < n; l++)
        used += (size_t)snprintf(out + used, n - used, "%s%lld", l ? " " : "", (long long)json_integer_value(json_array_get(groups, l)));
    if (l < count && used + 5 < n)
        snprintf(out + used, n - used, " ...");
}
