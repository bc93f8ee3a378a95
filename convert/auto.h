/* --method auto: what gave the lowest starting loss on the checkpoints that README names, as far as the architecture and a calibration allow. */
#ifndef GQAKIT_CONVERT_AUTO_H
#define GQAKIT_CONVERT_AUTO_H

#include "base/base.h"
#include "checkpoints/checkpoint.h"

struct options;
struct plan;

struct auto_refusal { char what[24], why[256]; };
struct auto_choice {
    int chosen, lossless;
    char why[320];
    int n_refused;
    struct auto_refusal refused[3]; /* stronger forms that this architecture does not allow */
};

/* Fills what was not asked for: method, grouping, refit. Without --method auto: their defaults. */
void auto_choose(struct auto_choice *c, struct options *o, const struct arch *a);
/* After plan_make: 1 in c->lossless, and the paper's mean, where the heads of every group are equal bit for bit; the plan must be made again. */
enum code auto_lossless(struct auto_choice *c, struct options *o, struct checkpoint *source, const struct plan *plan) MUST_USE;

json_t *auto_refused_json(const struct auto_choice *c);

#endif
