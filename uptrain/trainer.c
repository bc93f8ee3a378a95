/* The loop. At every step boundary, in this order: evaluation if due, log line if due, checkpoint if due or asked for, end, stop. So a
 * checkpoint says exactly which of these are done (state.eval_step, state.line_step), and a resumed run goes on with the next.
 *
 * A step s (1-based) sees the samples [(s-1) GB, s GB) of the training order. Its valid targets are counted first, so the loss is
 * sum / valid of the whole global batch however it is cut into micro-batches. A non-finite loss or gradient norm raises the skip flag:
 * parameters and moments stay as they are, and after max_skips of those in a row the run ends. Nothing in a step allocates, and the
 * host waits for the device once, at its end. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "run.h"
#include "signals.h"

struct loop {
    int64_t fault_from, fault_to; /* steps whose gradient gets a NaN, for tests: environment GQAKIT_FAULT_NAN=FROM:TO */
    double mark, step_seconds;    /* clock at the last boundary; smoothed seconds per step, 0 unknown */
    int warned_empty;
    char *touch;                  /* output_dir/save-now */
};

static int every(int64_t step, int64_t n)
{
    return n > 0 && step % n == 0;
}

static int eval_due(const struct run *r)
{
    int64_t s = r->state.step;
    return r->data.eval_windows > 0 && r->state.eval_step < s && (s == 0 || s == r->budget.steps || every(s, r->options.eval_steps));
}

static enum code step_gradients(struct run *r, int64_t valid)
{
    int64_t B = r->options.micro_batch_size, first = r->state.step * r->options.global_batch_size;
    struct step_scalars *s = r->optimizer.step;
    TRY(optimizer_begin(&r->optimizer, valid));
    for (int64_t micro = 0; micro < r->options.accumulation; micro++) {
        r->batch.B = B;
        sampler_fill(&r->data.train_order, first + micro * B, &r->batch);
        TRY(distill_batch(r, first + micro * B));
        TRY(model_forward_backward(r->model, &r->batch, &s->inv_count, &s->loss_sum, &s->count));
    }
    return OK;
}

static enum code abort_numeric(const struct run *r, int64_t step)
{
    const struct progress_state *s = &r->state;
    return fail(ERR_NUMERIC, "step %lld: loss %g, gradient norm %g: %lld steps in a row were not finite and were skipped (max_skips %lld); "
                "parameters are those of step %lld; last good checkpoint: %s. Try a lower optimizer.lr, a longer warm-up, or check the data",
                (long long)step, s->loss, s->grad_norm, (long long)s->skips_row, (long long)r->options.max_skips,
                (long long)(step - s->skips_row), r->saved_path ? r->saved_path : "none yet");
}

static enum code one_step(struct run *r, struct loop *l)
{
    const struct options *o = &r->options;
    struct progress_state *s = &r->state;
    int64_t step = s->step + 1;
    int64_t valid = sampler_count(&r->data.train_order, s->step * o->global_batch_size, o->global_batch_size);
    if (valid == 0 && !l->warned_empty) {
        log_warn("step %lld: no sample has a target to learn (all masked); such steps change nothing", (long long)step);
        l->warned_empty = 1;
    }
    s->lr = o->optimizer.lr * schedule_factor(&r->schedule, step);
    TRY(step_gradients(r, valid));
    if (step >= l->fault_from && step <= l->fault_to)
        TRY(r->backend->fill(r->device, model_flat(r->model).grads, NAN, 1));
    TRY(optimizer_norm(&r->optimizer, o->max_grad_norm));
    if (valid > 0) /* the update's number leaves skipped steps out: their moments were not updated */
        TRY(optimizer_step(&r->optimizer, &o->optimizer, s->lr, s->moments_updates + step - s->skips));
    struct step_scalars result;
    TRY(optimizer_result(&r->optimizer, &result));
    double sums[] = {result.loss_sum, result.kl_sum};
    TRY(comm_single()->all_reduce(comm_single(), sums, 2));
    s->loss = valid > 0 ? sums[0] / (double)valid : 0.0;
    s->kl = !r->distill.checkpoint ? (double)NAN : valid > 0 ? sums[1] / (double)valid : 0.0;
    s->grad_norm = result.norm;
    int skipped = result.skip != 0;
    s->step = step;
    s->tokens += r->budget.tokens_per_step;
    s->skips += skipped;
    s->skips_row = skipped ? s->skips_row + 1 : 0;
    if (skipped)
        log_warn("step %lld: loss %g, gradient norm %g: skipped", (long long)step, s->loss, s->grad_norm);
    if (s->skips_row >= o->max_skips)
        return abort_numeric(r, step);
    return OK;
}

static void measure(struct run *r, struct loop *l)
{
    double now = host_seconds(), spent = now - l->mark;
    l->mark = now;
    r->state.seconds += spent;
    l->step_seconds = l->step_seconds > 0.0 ? 0.9 * l->step_seconds + 0.1 * spent : spent;
}

static enum code report(struct run *r, struct loop *l, int evaluated)
{
    struct progress_state *s = &r->state;
    int due = s->line_step < s->step && (evaluated || every(s->step, r->options.logging_steps) || s->step == r->budget.steps);
    struct runlog_line line = {.step = s->step, .steps = r->budget.steps, .tokens = s->tokens, .skipped = s->skips, .loss = s->loss, .lr = s->lr,
                               .grad_norm = s->grad_norm, .kl = s->kl, .time = s->seconds, .tok_s = (double)NAN, .eval_loss = (double)NAN};
    if (l->step_seconds > 0.0)
        line.tok_s = (double)r->budget.tokens_per_step / l->step_seconds;
    if (evaluated)
        line.eval_loss = s->loss_eval;
    if (s->step == 0 && due)
        log_info("step 0: validation loss %.4f", s->loss_eval);
    else if (s->step > 0)
        runlog_progress(&r->log, &line, l->step_seconds > 0.0 ? l->step_seconds * (double)(r->budget.steps - s->step) : -1.0,
                        r->saved_path ? host_seconds() - r->saved_at : -1.0, due);
    if (!due)
        return OK;
    s->line_step = s->step;
    return runlog_add(&r->log, &line);
}

static int save_asked(const struct loop *l)
{
    int asked = signals_take_save();
    if (access(l->touch, F_OK) == 0) {
        unlink(l->touch);
        asked = 1;
    }
    return asked;
}

static enum code stop(struct run *r, int64_t saved_step)
{
    int n = signals_stop();
    runlog_progress_end(&r->log);
    if (saved_step != r->state.step)
        TRY(state_save(r));
    return fail(ERR_STOPPED, "stopped by signal %d (%s) after step %lld; checkpoint %s; the same command continues", n, strsignal(n),
                (long long)r->state.step, r->saved_path);
}

static enum code boundary(struct run *r, struct loop *l, int64_t *saved_step)
{
    struct progress_state *s = &r->state;
    int evaluated = 0, stopped = 0;
    if (!signals_stop() && eval_due(r)) {
        double loss;
        TRY(evaluate(r, &loss, &stopped));
        l->mark = host_seconds(); /* evaluation is no training time */
        if (!stopped) {
            evaluated = 1;
            s->loss_eval = loss;
            s->eval_step = s->step;
            if (s->step == 0)
                s->loss_zero = loss;
        }
    }
    if (!signals_stop() && (evaluated || s->step > 0))
        TRY(report(r, l, evaluated));
    int last = s->step == r->budget.steps && r->options.save_steps > 0 && s->step > 0;
    int due = (s->step > 0 && every(s->step, r->options.save_steps)) || last;
    if ((save_asked(l) || due) && *saved_step != s->step && !signals_stop()) {
        TRY(state_save(r));
        *saved_step = s->step;
        l->mark = host_seconds();
    }
    return signals_stop() ? stop(r, *saved_step) : OK;
}

enum code trainer_run(struct run *r)
{
    struct loop l = {.fault_from = 0, .fault_to = -1, .mark = host_seconds(), .touch = io_join(r->options.output_dir, "save-now")};
    int64_t saved_step = r->saved_path ? r->state.step : -1;
    const char *fault = getenv("GQAKIT_FAULT_NAN");
    long long from, to;
    if (!l.touch)
        return fail(ERR_MEMORY, "out of memory for a path");
    if (fault && sscanf(fault, "%lld:%lld", &from, &to) == 2) {
        l.fault_from = from;
        l.fault_to = to;
    }
    enum code c;
    for (;;) {
        c = boundary(r, &l, &saved_step);
        if (c != OK || r->state.step >= r->budget.steps)
            break;
        l.mark = host_seconds();
        c = one_step(r, &l);
        measure(r, &l);
        if (c != OK)
            break;
    }
    runlog_progress_end(&r->log);
    free(l.touch);
    return c;
}
