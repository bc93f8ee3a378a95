/* The answer. Recommended is the smallest K/V cache (fewest heads, on average over the layers) for which
 *
 *     mean loss over seeds + standard error of its difference <= loss of the original + margin,
 *
 * and among its starts the one with the lowest mean loss. The standard error has two parts: the text's, of the differences window by
 * window (every model is scored on the same ones), and the seeds', sd / sqrt(seeds); with one seed the latter is unknown, and the
 * sentence says so. */
#include "ablate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static double original_loss(const struct ablation *a) { return a->cells[a->baseline].loss_final; }
static double upper_difference(const struct ablation *a, const struct summary *s) { return s->final.mean + ablate_uncertainty(s) - original_loss(a); }

/* "svd+all, distill, uptrained on 0.5%", "svd+all, not trained". */
static void describe(const struct ablation *a, const struct summary *s, char out[192])
{
    char start[96], share[24];
    ablate_start_name(a, s, start);
    ablate_percent(share, s->alpha);
    if (s->alpha > 0)
        snprintf(out, 192, "%s, uptrained on %s of the original tokens", start, share);
    else
        snprintf(out, 192, "%s, not trained", start);
}

/* "0.9152 +- 0.0011 (3 seeds), +0.0017 against the original's 0.9135". */
static void losses(const struct ablation *a, const struct summary *s, char out[256])
{
    char spread[80], seeds[48] = "";
    if (s->final.n > 1)
        snprintf(seeds, sizeof seeds, " (%d seeds)", s->final.n);
    else if (s->alpha > 0)
        snprintf(seeds, sizeof seeds, " (one seed: spread unknown)");
    snprintf(spread, sizeof spread, " +- %.4f%s", ablate_uncertainty(s), seeds);
    snprintf(out, 256, "%.4f, %+.4f%s nats per token against the original's %.4f", s->final.mean, s->final.mean - original_loss(a), ablate_uncertainty(s) > 0 ? spread : seeds,
             original_loss(a));
}

static int fewer(const struct ablation *a, const struct summary *x, const struct summary *y) { return ablate_heads(a, x->G) < ablate_heads(a, y->G); }

static void choose(struct ablation *a)
{
    struct advice *d = &a->advice;
    d->pick = d->nearest = d->cell = -1;
    for (int i = 0; i < a->n_summaries; i++) {
        const struct summary *s = &a->summaries[i];
        if (s->G == a->H || s->n == 0)
            continue;
        const struct summary *pick = d->pick >= 0 ? &a->summaries[d->pick] : NULL;
        if (upper_difference(a, s) <= a->config.margin && (!pick || fewer(a, s, pick) || (!fewer(a, pick, s) && s->final.mean < pick->final.mean)))
            d->pick = i;
        if (d->nearest < 0 || upper_difference(a, s) < upper_difference(a, &a->summaries[d->nearest]))
            d->nearest = i;
    }
}

/* The smallest share at which another start of the same count qualifies too: less training than the best one needs. */
static void mention_cheaper(const struct ablation *a, const struct summary *pick, char *out, size_t n)
{
    const struct summary *cheap = pick;
    for (int i = 0; i < a->n_summaries; i++) {
        const struct summary *s = &a->summaries[i];
        if (s->n > 0 && s->G == pick->G && s->alpha < cheap->alpha && upper_difference(a, s) <= a->config.margin)
            cheap = s;
    }
    out[0] = 0;
    if (cheap == pick)
        return;
    char what[192];
    describe(a, cheap, what);
    snprintf(out, n, " Enough would be: %s (%+.4f).", what, cheap->final.mean - original_loss(a));
}

int ablate_noisy(const struct ablation *a, const struct summary *s)
{
    const struct summary *base = ablate_find(a, a->H, "none", "consecutive", "ce", 0);
    return s->ms_sd > 0.15 * s->ms || (base && base->ms_sd > 0.15 * base->ms);
}

static void speed_text(const struct ablation *a, const struct summary *s, char *out, size_t n)
{
    const struct summary *base = ablate_find(a, a->H, "none", "consecutive", "ce", 0);
    out[0] = 0;
    if (base && s->ms > 0 && base->ms > 0)
        snprintf(out, n, ", decode at %.2f x the original's speed%s", base->ms / s->ms,
                 ablate_noisy(a, s) ? " (timings spread widely: a busy machine)" : "");
}

static void say_pick(struct ablation *a)
{
    struct advice *d = &a->advice;
    const struct summary *s = &a->summaries[d->pick];
    const struct cell *c = &a->cells[s->best];
    char what[192], loss[256], speed[128], cheaper[320];
    describe(a, s, what);
    losses(a, s, loss);
    speed_text(a, s, speed, sizeof speed);
    mention_cheaper(a, s, cheaper, sizeof cheaper);
    d->cell = s->best;
    char heads[96], budget[48];
    ablate_heads_name(a, s->G, "key/value ", heads);
    if (s->G < 0) {
        ablate_heads_short(a, s->G, budget);
        snprintf(heads, sizeof heads, "A K/V budget of %s", budget);
    }
    d->headline = snprintf(d->reason, sizeof d->reason, "%s instead of %lld%s: %s.", heads, (long long)a->H, s->G < 0 ? " heads" : "", what);
    snprintf(d->reason + d->headline, sizeof d->reason - (size_t)d->headline, " %.3g%% of the K/V cache%s, loss %s. It is the smallest K/V cache within the margin of %g nats.%s",
             100.0 * ablate_heads(a, s->G) / (double)a->H, speed, loss, a->config.margin, cheaper);
    ablate_result_path(a, c, d->path, sizeof d->path);
    snprintf(d->command, sizeof d->command, "gqa-eval generate %s --prompt \"Once upon a time\"", d->path);
}

static int has_word(const struct config_list *list, const char *part)
{
    for (int i = 0; i < list->n; i++)
        if (strstr(((const char *const *)list->items)[i], part))
            return 1;
    return 0;
}

/* What has not been tried yet, the cheapest first. */
static void say_next(struct ablation *a)
{
    struct advice *d = &a->advice;
    const struct summary *s = &a->summaries[d->nearest];
    double shares[64];
    int n = ablate_shares(a, shares, 64);
    double most = n ? shares[n - 1] : 0;
    size_t used = (size_t)snprintf(d->next, sizeof d->next, "What to try next: ");
    const char *sep = "";
    if (!has_word(&a->config.method, "+") && !has_word(&a->config.method, "auto")) {
        used += (size_t)snprintf(d->next + used, sizeof d->next - used, "add align+all to grid.method%s", a->config.calibration ? "" : " (with gqa.calibration)");
        sep = "; ";
    }
    if (!has_word(&a->config.loss, "distill")) {
        used += (size_t)snprintf(d->next + used, sizeof d->next - used, "%sadd distill to grid.loss", sep);
        sep = "; ";
    }
    if (s->alpha < most) {
        char share[24];
        ablate_percent(share, most);
        used += (size_t)snprintf(d->next + used, sizeof d->next - used, "%sfinish the cells at %s", sep, share);
    } else {
        used += (size_t)snprintf(d->next + used, sizeof d->next - used, "%s%s: add %g to grid.uptrain_fraction (what is done is kept)", sep, most > 0 ? "uptrain longer" : "uptrain",
                                 most > 0 ? 2 * most : 0.05);
    }
    if (upper_difference(a, s) < 0.25) /* beyond that it is another model */
        used += (size_t)snprintf(d->next + used, sizeof d->next - used, "; or accept the difference with margin: %.2g", 1.05 * upper_difference(a, s));
    snprintf(d->next + used, sizeof d->next - used, ".");
}

/* The control says what the training itself does: an original that gets worse on its own kind of data is trained too hard. */
static void say_warning(struct ablation *a)
{
    for (int i = 0; i < a->n_summaries; i++) {
        const struct summary *s = &a->summaries[i];
        double worse = s->final.mean - original_loss(a) - ablate_uncertainty(s);
        char share[24];
        if (s->G != a->H || s->n == 0 || !(s->alpha > 0) || !(worse > fmax(0.25 * a->config.margin, 0.002)))
            continue;
        ablate_percent(share, s->alpha);
        snprintf(a->advice.warning, sizeof a->advice.warning,
                 "Training made even the original worse: %+.4f nats after %s (%s). Every cell suffers from that. A lower learning rate, or data more like the original's, would help them all.",
                 s->final.mean - original_loss(a), share, s->loss);
        return;
    }
}

void ablate_advise(struct ablation *a)
{
    struct advice *d = &a->advice;
    memset(d, 0, sizeof *d);
    choose(a);
    say_warning(a);
    if (d->pick >= 0) {
        say_pick(a);
    } else if (d->nearest >= 0) {
        const struct summary *s = &a->summaries[d->nearest];
        char what[192], loss[256], heads[96];
        describe(a, s, what);
        losses(a, s, loss);
        ablate_heads_name(a, s->G, "", heads);
        d->cell = s->best;
        ablate_result_path(a, &a->cells[s->best], d->path, sizeof d->path);
        d->headline = snprintf(d->reason, sizeof d->reason, "Nothing below %lld key/value heads is within %g nats of the original.", (long long)a->H, a->config.margin);
        snprintf(d->reason + d->headline, sizeof d->reason - (size_t)d->headline, " Nearest: %s (%s), loss %s.", heads, what, loss);
        say_next(a);
    } else {
        d->headline = snprintf(d->reason, sizeof d->reason, "No cell with fewer key/value heads than the original's %lld finished, so there is nothing to recommend.", (long long)a->H);
    }
}

int64_t ablate_focus(const struct ablation *a)
{
    int i = a->advice.pick >= 0 ? a->advice.pick : a->advice.nearest;
    return i >= 0 ? a->summaries[i].G : 0;
}

/* Compared is the plain start at its largest share with every other start at the smallest share that gets at least as low. */
int ablate_worth(const struct ablation *a, int64_t G, char *sentence, size_t n)
{
    double shares[64];
    int n_shares = ablate_shares(a, shares, 64);
    const struct summary *plain = n_shares ? ablate_plain(a, G, shares[n_shares - 1]) : NULL, *found = NULL;
    if (!plain || G == a->H || !(plain->alpha > 0))
        return 0;
    for (int i = 0; i < n_shares && !found; i++) {
        const struct summary *best = ablate_best(a, G, shares[i]);
        if (best && best != plain && best->final.mean <= plain->final.mean)
            found = best;
    }
    char share[24], name[96], their_share[24], their_name[96], factor[48] = "", heads[96];
    ablate_heads_name(a, G, "", heads);
    ablate_percent(share, plain->alpha);
    ablate_start_name(a, plain, name);
    if (!found) {
        const struct summary *other = ablate_best(a, G, plain->alpha);
        if (!other || other == plain)
            snprintf(sentence, n, "%s: no other start gets below what %s reaches with %s (%.4f).", heads, name, share, plain->final.mean);
        return other == plain;
    }
    ablate_percent(their_share, found->alpha);
    ablate_start_name(a, found, their_name);
    if (found->alpha > 0 && found->alpha < plain->alpha)
        snprintf(factor, sizeof factor, ": %.3g times less training", plain->alpha / found->alpha);
    if (found->alpha > 0)
        snprintf(sentence, n, "%s: %s reaches %.4f with %s; %s needs %s for %.4f%s.", heads, their_name, found->final.mean, their_share, name, share,
                 plain->final.mean, factor);
    else
        snprintf(sentence, n, "%s: %s starts at %.4f without any training; %s needs %s for %.4f.", heads, their_name, found->final.mean, name, share,
                 plain->final.mean);
    return 1;
}
