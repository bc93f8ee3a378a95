/* What a calibration tells: sizes beforehand; afterwards the loss, the fits, and what became of attention. */
#include "calibrate.h"

#include <math.h>
#include <stdio.h>

#include "convert.h"

json_t *number_json(double x) { return isfinite(x) ? json_real(x) : json_null(); }

static json_t *share_json(double share) { return share > 0 ? json_real(share) : json_null(); }

double calibration_entropy(const struct calibration_layer *l, int after)
{
    return l->entropy_rows[after] > 0 ? l->entropy[after] / (double)l->entropy_rows[after] : (double)NAN;
}

json_t *calibration_json(const struct calibration_size *size, const struct calibration *c, const struct options *o)
{
    json_t *j = json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I}", "file", o->calibration, "refit", refit_name((enum refit)o->refit), "sequence_length",
                          (json_int_t)size->length, "sequences", (json_int_t)size->sequences, "held_out_sequences", (json_int_t)size->held_out,
                          "memory_bytes", (json_int_t)size->memory, "disk_bytes", (json_int_t)size->disk);
    if (!c)
        return j;
    json_object_set_new(j, "held_out_targets", json_integer(c->scored));
    json_object_set_new(j, "seconds", json_real(c->seconds));
    json_t *fits = json_array(), *entropy = json_array();
    for (int64_t l = 0; l < c->L; l++) {
        const struct calibration_layer *at = &c->layer[l];
        json_array_append_new(entropy, json_pack("{s:I, s:o, s:o}", "layer", (json_int_t)l, "before", number_json(calibration_entropy(at, 0)), "after",
                                                 number_json(calibration_entropy(at, 1))));
        if (o->refit != REFIT_NONE)
            json_array_append_new(fits, json_pack("{s:I, s:o, s:o, s:o, s:o}", "layer", (json_int_t)l, "hidden_rel_error", number_json(at->error), "ridge_output",
                                                  share_json(at->share[0]), "ridge_down", share_json(at->share[1]), "ridge_query", share_json(at->share[2])));
    }
    json_object_set_new(j, "attention_entropy", entropy);
    json_object_set_new(j, "fits", fits);
    return j;
}

void calibration_print_size(const struct calibration_size *s, const struct options *o)
{
    char memory[16], disk[16];
    format_bytes(memory, (double)s->memory);
    format_bytes(disk, (double)s->disk);
    printf("calibration        %lld sequences of %lld tokens, %lld of them held out; refit %s\n", (long long)s->sequences, (long long)s->length,
           (long long)s->held_out, refit_name((enum refit)o->refit));
    printf("calibration needs  %s of memory, %s of disk%s\n", memory, disk, s->disk ? " (temporary, beside the target)" : "");
}

/* ---- what to expect ---- */

/* "svd with refit all at 2:1" */
static void made_by(const struct plan *plan, const struct options *o, char *text, size_t n)
{
    const struct arch_stack *s = &plan->from.stack[STACK_DEC];
    int64_t from = 0, to = 0, first = s->block[0].G / plan->pooled[0], same = 1;
    for (int64_t l = 0; l < s->L; l++) {
        from += s->block[l].G;
        to += plan->pooled[l];
        same &= s->block[l].G / plan->pooled[l] == first;
    }
    int used = snprintf(text, n, "%s%s%s", merge_method_name((enum merge_method)o->method), o->refit != REFIT_NONE ? " with refit " : "",
                        o->refit != REFIT_NONE ? refit_name((enum refit)o->refit) : "");
    if (same)
        snprintf(text + used, n - (size_t)used, " at %lld:1", (long long)first);
    else
        snprintf(text + used, n - (size_t)used, " keeping %.0f%% of the K/V heads", 100 * (double)to / (double)from);
}

/* The share of mean's gap that is usually closed at once, at the least: measured on the checkpoints that docs/merging.md names. */
static double usual_share(const struct options *o)
{
    if (o->refit != REFIT_NONE)
        return 0.75;
    return o->method == MERGE_SVD || o->method == MERGE_ALIGN ? 0.4 : 0.0;
}

void calibration_sentence(const struct calibration *c, const struct plan *plan, const struct options *o, char *text, size_t n)
{
    double gap = c->loss_after - c->loss_before, mean_gap = c->loss_mean - c->loss_before, closed = mean_gap > 0.01 ? 1 - gap / mean_gap : (double)NAN;
    char by[80], mean[96] = "";
    int used = snprintf(text, n, "Starting loss %.3f against the original's %.3f (nats, %lld held-out tokens): ", c->loss_after, c->loss_before, (long long)c->scored);
    text += used;
    n -= (size_t)used;
    if (!plan->merges) {
        snprintf(text, n, "nothing to repair");
        return;
    }
    made_by(plan, o, by, sizeof by);
    int is_mean = o->method == MERGE_MEAN && o->refit == REFIT_NONE;
    if (!is_mean && isfinite(c->loss_mean))
        snprintf(mean, sizeof mean, "; mean would start at %.3f", c->loss_mean);
    if (gap < 0.005)
        snprintf(text, n, "nothing to repair%s", mean);
    else if (closed < usual_share(o))
        snprintf(text, n, "more than is usual for %s%s: try other tokens, or keep more heads", by, mean);
    else if (gap < 0.05 * c->loss_before)
        snprintf(text, n, "normal for %s%s; a short uptraining should close the rest", by, mean);
    else if (o->refit == REFIT_NONE)
        snprintf(text, n, "normal for %s%s; --refit closes most of it without training, uptraining the rest", by, mean);
    else
        snprintf(text, n, "normal for %s%s; uptraining closes it", by, mean);
}

void calibration_print(const struct calibration *c, const struct plan *plan, const struct options *o)
{
    char text[400];
    int fits = o->refit != REFIT_NONE;
    printf("\nentropy of attention on held-out tokens, nats: the original's, the result's%s\n%6s %9s %9s",
           fits ? "; relative distance of hidden states from the\noriginal's after each layer; ridge of the fits (0: left alone)" : "", "layer", "original", "result");
    printf(fits ? " %10s %10s %10s %10s\n" : "\n", "distance", "output", "down", "query");
    for (int64_t l = 0; l < c->L; l++) {
        const struct calibration_layer *at = &c->layer[l];
        printf("%6lld %9.3f %9.3f", (long long)l, calibration_entropy(at, 0), calibration_entropy(at, 1));
        if (fits)
            printf(" %10.4f %10.1e %10.1e %10.1e", at->error, at->share[0], at->share[1], at->share[2]);
        printf("\n");
    }
    calibration_sentence(c, plan, o, text, sizeof text);
    printf("\n%s.\ncalibrated in %.2f s\n", text, c->seconds);
}
