/* optimizer.moments: auto. A run that starts from a checkpoint with AdamW's moments takes them: from model.path when it is another run's
 * directory, or from what gqa-convert --moments carry left beside a converted model. Updates then count on from theirs in the bias
 * correction 1 - beta^t, so nothing is scaled up as if the averages were young; steps, data order and learning rate begin at 0. */
#include <string.h>

#include "run.h"

static enum code read_all(struct run *r, struct step_reader *reader)
{
    for (int i = 0; i < r->n_arrays; i++)
        if (!strncmp(r->arrays[i].name, "m/", 2) || !strncmp(r->arrays[i].name, "v/", 2))
            TRY(step_read(reader, &r->arrays[i]));
    return OK;
}

enum code moments_take(struct run *r)
{
    struct step_reader *reader = NULL;
    int64_t updates = 0;
    int found = 0;
    if (r->options.optimizer.moments == MOMENTS_ZERO || !r->source_path)
        return OK;
    TRY(moments_open(&reader, r->source_path, &updates, &found));
    if (!found) {
        log_info("moments: zero, %s has none", r->source_path);
        return OK;
    }
    enum code c = fail_in(read_all(r, reader), "optimizer.moments: auto (zero starts without them)");
    step_close(reader);
    if (c == OK) {
        r->state.moments_updates = updates;
        log_info("moments: those of %lld updates, from %s", (long long)updates, r->source_path);
    }
    return c;
}
