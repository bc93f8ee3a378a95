/* Learning-rate schedules as a factor on optimizer.lr, a pure function of the update's number. */
#ifndef GQAKIT_UPTRAIN_SCHEDULE_H
#define GQAKIT_UPTRAIN_SCHEDULE_H

#include <stdint.h>

enum schedule_kind { SCHEDULE_CONSTANT, SCHEDULE_LINEAR, SCHEDULE_COSINE, SCHEDULE_WSD, SCHEDULE_INVERSE_SQRT };
#define SCHEDULE_NAMES "constant|linear|cosine|wsd|inverse_sqrt" /* in the order of the enum */

struct schedule {
    enum schedule_kind kind;
    int64_t steps;     /* N, updates of the whole run */
    int64_t warmup;    /* W: linear from 1/W at update 1 to 1 at update W */
    int64_t decay;     /* wsd: the last updates, where the rate falls */
    double min_ratio;  /* value at the last update; a floor for inverse_sqrt */
};

/* Factor of update `step`, 1 <= step <= N. */
double schedule_factor(const struct schedule *s, int64_t step);

#endif
