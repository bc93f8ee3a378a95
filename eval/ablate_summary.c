/* From cells to an answer: means over seeds, and the recommendation: the fewest key/value heads whose loss stays within the margin
 * of the original's. The margin is in nats per token, plus nothing for noise: the report shows standard errors beside it. */
#include "ablate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int same_key(const struct summary *s, const struct cell *c)
{
    return s->G == c->G && strcmp(s->method, c->method) == 0 && strcmp(s->grouping, c->grouping) == 0 && strcmp(s->loss, c->loss) == 0 && !(s->alpha < c->alpha) &&
           !(s->alpha > c->alpha);
}

static double decode_ms(const struct cell *c) { return json_number_value(json_object_get(json_array_get(c->decode, 0), "ms_per_token")); }

static struct summary *summary_of(struct ablation *a, const struct cell *c)
{
    for (int i = 0; i < a->n_summaries; i++)
        if (same_key(&a->summaries[i], c))
            return &a->summaries[i];
    struct summary *s = &a->summaries[a->n_summaries++];
    *s = (struct summary){ .G = c->G, .method = c->method, .grouping = c->grouping, .loss = c->loss, .alpha = c->alpha, .ms = decode_ms(c) };
    return s;
}

/* Two passes over the cells: sums, then squared deviations. */
static void fill_moments(struct ablation *a)
{
    for (int i = 0; i < a->n_cells; i++)
        if (a->cells[i].done) {
            struct summary *s = summary_of(a, &a->cells[i]);
            s->mean += a->cells[i].loss_final;
            s->n++;
        }
    for (int i = 0; i < a->n_summaries; i++)
        a->summaries[i].mean /= a->summaries[i].n;
    for (int i = 0; i < a->n_cells; i++)
        if (a->cells[i].done) {
            struct summary *s = summary_of(a, &a->cells[i]);
            double d = a->cells[i].loss_final - s->mean;
            s->sd += d * d;
        }
    for (int i = 0; i < a->n_summaries; i++)
        a->summaries[i].sd = a->summaries[i].n > 1 ? sqrt(a->summaries[i].sd / (a->summaries[i].n - 1)) : 0;
}

static int better(const struct summary *x, const struct summary *y) { return x->G != y->G ? x->G < y->G : x->mean < y->mean; }

/* Where a result of that many heads lives: the same for every method and amount of training. */
static const char *home_of(const struct ablation *a, int64_t G)
{
    for (int i = 0; i < a->n_cells; i++)
        if (a->cells[i].G == G && *a->cells[i].home)
            return a->cells[i].home;
    return "";
}

static void recommend(struct ablation *a)
{
    const struct cell *base = &a->cells[a->baseline];
    int closest = -1;
    for (int i = 0; i < a->n_summaries; i++) {
        const struct summary *s = &a->summaries[i];
        if (s->G == a->H)
            continue;
        if (s->mean <= base->loss_final + a->config.margin && (a->recommended < 0 || better(s, &a->summaries[a->recommended])))
            a->recommended = i;
        if (closest < 0 || s->mean < a->summaries[closest].mean)
            closest = i;
    }
    if (a->recommended >= 0) {
        const struct summary *s = &a->summaries[a->recommended];
        const char *home = home_of(a, s->G);
        snprintf(a->reason, sizeof a->reason,
                 "%lld key/value heads (%s%s, alpha %g): loss %.4f against %.4f of the original (%+.4f, margin %.4f), %.2f x the decode speed. It is the fewest heads within the margin.%s%s%s",
                 (long long)s->G, s->method, grouping_text(s->grouping), s->alpha, s->mean, base->loss_final, s->mean - base->loss_final, a->config.margin, decode_ms(base) / s->ms,
                 *home ? " Home: " : "", home, *home ? "." : "");
    } else if (closest >= 0) {
        const struct summary *s = &a->summaries[closest];
        snprintf(a->reason, sizeof a->reason,
                 "Nothing below %lld heads is within %.4f nats of the original's %.4f. Closest: %lld heads (%s%s, alpha %g) at %.4f (%+.4f). Uptrain longer or accept the difference.",
                 (long long)a->H, a->config.margin, base->loss_final, (long long)s->G, s->method, grouping_text(s->grouping), s->alpha, s->mean, s->mean - base->loss_final);
    } else {
        snprintf(a->reason, sizeof a->reason, "No cell with fewer key/value heads finished.");
    }
}

enum code ablate_summarise(struct ablation *a)
{
    a->summaries = calloc((size_t)a->n_cells + 1, sizeof *a->summaries);
    if (!a->summaries)
        return fail(ERR_MEMORY, "out of memory for the summaries");
    fill_moments(a);
    recommend(a);
    return OK;
}
