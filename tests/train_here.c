/* See train_here.h. The order of the calls is that of uptrain/main.c, without lock, plan and summary. */
#include "train_here.h"

#include "runs.h"

#include <math.h>

enum code train_here_open(struct run *r, const struct train_here *t)
{
    char *overrides[24], dir[600];
    int n = 0, resumed = 0;
    memset(r, 0, sizeof *r);
    r->log.fd = r->log.board.fd = -1;
    r->state = (struct progress_state){.eval_step = -1, .line_step = -1, .loss = (double)NAN, .grad_norm = (double)NAN, .lr = (double)NAN,
                                       .kl = (double)NAN, .loss_zero = (double)NAN, .loss_eval = (double)NAN};
    r->backend = t->backend;
    snprintf(dir, sizeof dir, "output_dir=%s/%s", temp_dir(), t->out);
    overrides[n++] = dir;
    for (const char *const *a = t->args; a && *a; a++)
        overrides[n++] = (char *)(uintptr_t)*a;
    TRY(options_load(&r->options, runs_config(), n, overrides));
    host_threads_set((int)r->options.threads);
    TRY(options_budget(&r->options, &r->budget));
    r->schedule = (struct schedule){(enum schedule_kind)r->options.schedule.name, r->budget.steps, r->budget.warmup, r->budget.decay,
                                    r->options.schedule.min_lr_ratio};
    if (t->stop_at > 0)
        r->budget.steps = t->stop_at;
    TRY(setup_device(r, "auto"));
    TRY(io_mkdirs(r->options.output_dir));
    TRY(setup_source(r));
    TRY(setup_data(r));
    TRY(distill_open(r));
    TRY(distill_cache_path(r));
    TRY(distill_cache_make(r));
    TRY(setup_model(r));
    TRY(distill_attach(r));
    TRY(state_resume(r, &resumed));
    TRY(runlog_open(&r->log, r->options.output_dir, 1, 0, resumed ? r->state.line_step : -1));
    r->log.quiet = 1;
    return OK;
}

void train_here_close(struct run *r)
{
    runlog_close(&r->log);
    free(r->arrays);
    free(r->saved_path);
    batch_free(&r->batch);
    distill_close(r);
    if (r->optimizer.backend)
        optimizer_close(&r->optimizer);
    model_close(r->model);
    dataset_close(&r->data);
    ckpt_close(r->source);
    if (r->arch_known)
        arch_free(&r->arch);
    if (r->device)
        r->backend->device_close(r->device);
    options_free(&r->options);
}

enum code train_here(const struct train_here *t)
{
    struct run r;
    char *final = NULL;
    enum code c = train_here_open(&r, t);
    if (c == OK)
        c = trainer_run(&r);
    if (c == OK && !t->stop_at)
        c = final_write(&r, &final);
    free(final);
    train_here_close(&r);
    return c;
}
