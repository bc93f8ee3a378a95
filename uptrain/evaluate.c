/* Validation loss: the first eval_windows samples in file order, sum of -ln p over valid targets / their number. A signal ends it
 * between batches, so that a stop never waits for a long evaluation; the checkpoint then says it is still due. */
#include <math.h>

#include "run.h"
#include "signals.h"

static enum code score_all(struct run *r, double *loss, int *stopped)
{
    double sum = 0.0;
    int64_t count = 0, B = r->options.micro_batch_size;
    *loss = (double)NAN;
    *stopped = 0;
    for (int64_t at = 0; at < r->data.eval_windows; at += B) {
        if (signals_stop()) {
            *stopped = 1;
            return OK;
        }
        struct batch b = r->batch;
        b.B = r->data.eval_windows - at < B ? r->data.eval_windows - at : B;
        sampler_fill(&r->data.validation_order, at, &b);
        TRY(model_score(r->model, &b, view_none(), &sum, &count));
    }
    if (count > 0)
        *loss = sum / (double)count;
    return OK;
}

/* A teacher has no part in it. */
enum code evaluate(struct run *r, double *loss, int *stopped)
{
    distill_teach(r, 0);
    enum code c = score_all(r, loss, stopped);
    distill_teach(r, 1);
    return c;
}
