/* Learning-rate schedules. With x = (s - W) / (N - W), the share of the time after the warm-up:
 *   warm-up       s / W                                  for s <= W, all kinds
 *   constant      1
 *   linear        1 - (1 - min) x
 *   cosine        min + (1 - min) (1 + cos(pi x)) / 2    (Loshchilov, Hutter 2017, SGDR, eq. 5, one cycle)
 *   wsd           1, then linear to min over the last D updates  (Hu et al. 2024, MiniCPM, section 4.2)
 *   inverse_sqrt  max(min, sqrt(max(W, 1) / s))          (Raffel et al. 2020, T5, section 3.1.2) */
#include "schedule.h"

#include <math.h>

#include "base/base.h"

#define PI 3.14159265358979323846

double schedule_factor(const struct schedule *s, int64_t step)
{
    CHECK(step >= 1);
    if (step <= s->warmup)
        return (double)step / (double)s->warmup;
    double last = (double)(s->steps - s->warmup), x = last > 0.0 ? (double)(step - s->warmup) / last : 1.0;
    if (!(x <= 1.0))
        x = 1.0;
    double fall = 1.0 - s->min_ratio;
    switch (s->kind) {
    case SCHEDULE_CONSTANT:
        return 1.0;
    case SCHEDULE_LINEAR:
        return 1.0 - fall * x;
    case SCHEDULE_COSINE:
        return s->min_ratio + fall * 0.5 * (1.0 + cos(PI * x));
    case SCHEDULE_WSD: {
        int64_t into = step - (s->steps - s->decay);
        if (into <= 0 || s->decay <= 0)
            return 1.0;
        return 1.0 - fall * fmin(1.0, (double)into / (double)s->decay);
    }
    case SCHEDULE_INVERSE_SQRT:
        return fmax(s->min_ratio, sqrt((double)(s->warmup > 0 ? s->warmup : 1) / (double)step));
    }
    return 1.0;
}
