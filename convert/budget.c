/* See budget.h. The table of the dynamic program: best[u], the least cost of the layers so far within u units of bytes (the greatest
 * common divisor of all options), and by layer the option that reaches it. */
#include "budget.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "convert.h"

#define TIE 1e-12 /* a smaller share of the cost is no difference */

/* ---- the program ---- */

static int64_t divisor(int64_t a, int64_t b)
{
    while (b) {
        int64_t t = a % b;
        a = b;
        b = t;
    }
    return a;
}

static enum code check_costs(const struct budget *b)
{
    for (int64_t l = 0; l < b->L; l++)
        for (int i = 0; i < b->layer[l].n; i++)
            if (!isfinite(b->layer[l].option[i].cost) || b->layer[l].option[i].cost < 0)
                return fail(ERR_NUMERIC, "layer %lld merged to %lld heads has an error of %g: no budget can be chosen by it", (long long)l,
                            (long long)b->layer[l].option[i].G, b->layer[l].option[i].cost);
    return OK;
}

static void sum_chosen(const struct budget *b, double *cost, int64_t *bytes)
{
    *cost = 0;
    *bytes = 0;
    for (int64_t l = 0; l < b->L; l++) {
        const struct budget_option *o = &b->layer[l].option[b->layer[l].chosen];
        *cost += o->cost;
        *bytes += o->bytes;
    }
}

/* best and the next layer's best [units + 1], by [L, units + 1]. Among equal costs at the end the fewest units. */
static void solve(struct budget *b, int64_t unit, int64_t units, double *best, double *next, uint8_t *by)
{
    for (int64_t u = 0; u <= units; u++)
        best[u] = u == 0 ? 0 : HUGE_VAL;
    for (int64_t l = 0; l < b->L; l++) {
        const struct budget_layer *y = &b->layer[l];
        uint8_t *at = by + l * (units + 1);
        for (int64_t u = 0; u <= units; u++) {
            next[u] = HUGE_VAL;
            at[u] = 0;
            for (int i = 0; i < y->n; i++) {
                int64_t rest = u - y->option[i].bytes / unit;
                double cost = rest >= 0 ? best[rest] + y->option[i].cost : HUGE_VAL;
                if (cost < next[u]) {
                    next[u] = cost;
                    at[u] = (uint8_t)i;
                }
            }
        }
        memcpy(best, next, (size_t)(units + 1) * sizeof *best);
    }
    int64_t u = 0;
    for (int64_t k = 1; k <= units; k++)
        if (best[k] < best[u] * (1 - TIE) || (isinf(best[u]) && !isinf(best[k])))
            u = k;
    for (int64_t l = b->L; l-- > 0;) {
        b->layer[l].chosen = by[l * (units + 1) + u];
        u -= b->layer[l].option[b->layer[l].chosen].bytes / unit;
    }
}

/* One number for all layers, the largest that fits, when it costs no more. */
static void prefer_uniform(struct budget *b)
{
    double cost, uniform;
    int64_t bytes;
    int same = 1;
    sum_chosen(b, &cost, &bytes);
    for (int64_t l = 1; l < b->L; l++)
        same &= b->layer[l].n == b->layer[0].n && b->layer[l].option[0].G == b->layer[0].option[0].G;
    for (int i = 0; same && i < b->layer[0].n; i++) {
        uniform = 0;
        int64_t sum = 0;
        for (int64_t l = 0; l < b->L; l++) {
            uniform += b->layer[l].option[i].cost;
            sum += b->layer[l].option[i].bytes;
        }
        if (sum <= bytes && uniform <= cost * (1 + TIE)) {
            for (int64_t l = 0; l < b->L; l++)
                b->layer[l].chosen = i;
            return;
        }
    }
}

enum code budget_solve(struct budget *b)
{
    int64_t unit = 0, units, cells;
    TRY(check_costs(b));
    if (b->bytes < b->least)
        return fail(ERR_USAGE, "a K/V budget of %lld bytes per token is less than one head in every layer takes, %lld", (long long)b->bytes, (long long)b->least);
    for (int64_t l = 0; l < b->L; l++)
        for (int i = 0; i < b->layer[l].n; i++)
            unit = divisor(b->layer[l].option[i].bytes, unit);
    units = (b->bytes < b->most ? b->bytes : b->most) / unit;
    if (!checked_mul(b->L, units + 1, &cells))
        return fail(ERR_MEMORY, "out of memory for a budget of %lld steps", (long long)units);
    double *best = malloc((size_t)(2 * (units + 1)) * sizeof *best);
    uint8_t *by = malloc((size_t)cells);
    if (best && by)
        solve(b, unit, units, best, best + units + 1, by);
    enum code c = best && by ? OK : fail(ERR_MEMORY, "out of memory for a budget of %lld steps", (long long)units);
    free(best);
    free(by);
    TRY(c);
    prefer_uniform(b);
    double cost;
    sum_chosen(b, &cost, &b->used);
    CHECK(b->used <= b->bytes);
    return OK;
}

/* ---- from a checkpoint ---- */

enum code budget_open(struct budget *b, const struct arch *a, enum dtype type)
{
    const struct arch_stack *s = &a->stack[STACK_DEC];
    b->L = s->L;
    b->most = b->least = 0;
    b->layer = calloc((size_t)s->L, sizeof *b->layer);
    if (!b->layer)
        return fail(ERR_MEMORY, "out of memory for %lld layers", (long long)s->L);
    for (int64_t l = 0; l < s->L; l++) {
        struct budget_layer *y = &b->layer[l];
        for (int64_t G = s->block[l].G; G >= 1 && y->n < (int)(sizeof y->option / sizeof *y->option); G--)
            if (s->block[l].G % G == 0)
                y->option[y->n++] = (struct budget_option){G, G * (s->block[l].D + s->block[l].Dv) * (int64_t)dtype_bytes(type), 0};
        b->most += y->option[0].bytes;
        b->least += y->option[y->n - 1].bytes;
    }
    return OK;
}

/* A number of its own for a layer: can the target say it? */
static enum code check_home(const struct arch *from, const struct options *o)
{
    struct arch a;
    struct ckpt_choice choice;
    int differs;
    TRY(kv_budget_uneven(&a, &differs, from));
    enum code c = differs ? ckpt_choose(&a, o->target, (enum ckpt_home)o->home, o->family, &choice) : OK;
    arch_free(&a);
    if (c != ERR_UNSUPPORTED && c != ERR_INPUT)
        return c;
    char why[512];
    snprintf(why, sizeof why, "%s", fail_text());
    return fail(ERR_UNSUPPORTED, "--kv-budget gives layers different numbers of key/value heads, which this target cannot hold (%s); a .h5 and --target custom can, "
                "a *.gguf can for a LLaMA, or choose one number with --kv-heads", why);
}

enum code budget_choose(struct budget *b, struct checkpoint *source, const struct options *o)
{
    const struct arch *a = ckpt_arch(source);
    *b = (struct budget){.asked = o->kv_budget};
    if (o->kv_heads != KV_HEADS_KEEP || o->kv_heads_per_layer.n)
        return fail(ERR_USAGE, "--kv-budget chooses the numbers of heads: without --kv-heads and --kv-heads-per-layer");
    if (!o->calibration)
        return fail(ERR_USAGE, "--kv-budget needs --calibration FILE: weights alone do not say which layers matter (any text like the training data will do)");
    TRY(budget_open(b, a, options_dtype(o) == DT_NONE ? a->dtype : options_dtype(o)));
    TRY(kv_budget_parse(&b->bytes, "--kv-budget", b->asked, b->most, b->least));
    TRY(check_home(a, o));
    TRY(budget_costs(b, source, o)); /* where every head fits too: heads that are copies cost nothing, and without a cost the fewest would do */
    return budget_solve(b);
}

void budget_free(struct budget *b)
{
    free(b->layer);
    b->layer = NULL;
}

/* ---- told ---- */

json_t *budget_json(const struct budget *b)
{
    json_t *layers = json_array();
    for (int64_t l = 0; l < b->L; l++) {
        const struct budget_layer *y = &b->layer[l];
        json_t *errors = json_object();
        for (int i = 0; i < y->n; i++) {
            char key[24];
            snprintf(key, sizeof key, "%lld", (long long)y->option[i].G);
            json_object_set_new(errors, key, number_json(y->option[i].cost));
        }
        json_array_append_new(layers, json_pack("{s:I, s:I, s:o}", "layer", (json_int_t)l, "kv_heads", (json_int_t)y->option[y->chosen].G, "errors", errors));
    }
    return json_pack("{s:s, s:I, s:I, s:I, s:o}", "asked", b->asked, "bytes", (json_int_t)b->bytes, "used", (json_int_t)b->used, "source_bytes", (json_int_t)b->most,
                     "layers", layers);
}

void budget_print(const struct budget *b)
{
    printf("K/V budget         %s: %lld of %lld bytes per token, %lld used\n", b->asked, (long long)b->bytes, (long long)b->most, (long long)b->used);
    printf("\nshare of the hidden state behind a layer that is wrong when it alone is merged to so many heads; * chosen\n%6s", "layer");
    for (int i = 0; i < b->layer[0].n; i++)
        printf(" %9lld ", (long long)b->layer[0].option[i].G);
    printf("\n");
    for (int64_t l = 0; l < b->L; l++) {
        const struct budget_layer *y = &b->layer[l];
        printf("%6lld", (long long)l);
        for (int i = 0; i < y->n; i++)
            printf(" %9.2e%s", y->option[i].cost, i == y->chosen ? "*" : " ");
        printf(y->option[0].G == b->layer[0].option[0].G ? "\n" : "   (from %lld heads)\n", (long long)y->option[0].G);
    }
    printf("\n");
}
