/* What a calibration tells: sizes beforehand, the loss and the fits afterwards. */
#include "calibrate.h"

#include <math.h>
#include <stdio.h>

#include "convert.h"

static json_t *share_json(double share) { return share > 0 ? json_real(share) : json_null(); }

json_t *calibration_json(const struct calibration_size *size, const struct calibration *c, const struct options *o)
{
    json_t *j = json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I}", "file", o->calibration, "refit", refit_name((enum refit)o->refit), "sequence_length",
                          (json_int_t)size->length, "sequences", (json_int_t)size->sequences, "held_out_sequences", (json_int_t)size->held_out,
                          "memory_bytes", (json_int_t)size->memory, "disk_bytes", (json_int_t)size->disk);
    if (!c)
        return j;
    json_object_set_new(j, "held_out_targets", json_integer(c->scored));
    json_object_set_new(j, "seconds", json_real(c->seconds));
    json_t *layers = json_array();
    for (int64_t l = 0; o->refit != REFIT_NONE && l < c->L; l++)
        json_array_append_new(layers, json_pack("{s:I, s:f, s:o, s:o, s:o}", "layer", (json_int_t)l, "hidden_rel_error", c->layer[l].error, "ridge_output",
                                                share_json(c->layer[l].share[0]), "ridge_down", share_json(c->layer[l].share[1]), "ridge_query",
                                                share_json(c->layer[l].share[2])));
    json_object_set_new(j, "fits", layers);
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

void calibration_sentence(const struct calibration *c, const struct plan *plan, const struct options *o, char *text, size_t n)
{
    double gap = c->loss_after - c->loss_before, relative = gap / c->loss_before;
    const char *expect = !plan->merges || gap < 0.005 ? "nothing to repair"
                         : relative < 0.05 ? "a short uptraining should close the rest"
                         : o->refit == REFIT_NONE && relative > 0.2 ? "--refit closes most of such a gap without training; uptraining the rest"
                         : relative < 0.5 ? "normal for a merge; uptraining closes it"
                                          : "much was lost: uptrain, or keep more heads";
    snprintf(text, n, "Starting loss %.3f against the original's %.3f, nats on %lld held-out tokens: %s", c->loss_after, c->loss_before, (long long)c->scored,
             expect);
}

void calibration_print(const struct calibration *c, const struct plan *plan, const struct options *o)
{
    char text[320];
    if (o->refit != REFIT_NONE) {
        printf("\nrelative distance of hidden states from the original's after each layer (held-out); ridge of the fits (0: left alone)\n%6s %10s %10s %10s %10s\n",
               "layer", "distance", "output", "down", "query");
        for (int64_t l = 0; l < c->L; l++)
            printf("%6lld %10.4f %10.1e %10.1e %10.1e\n", (long long)l, c->layer[l].error, c->layer[l].share[0], c->layer[l].share[1], c->layer[l].share[2]);
        printf("\n");
    }
    calibration_sentence(c, plan, o, text, sizeof text);
    printf("%s.\ncalibrated in %.2f s\n", text, c->seconds);
}
