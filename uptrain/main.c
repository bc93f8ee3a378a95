/* gqa-uptrain: continue pretraining from a YAML config. stdout carries the result, stderr everything else. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "run.h"
#include "signals.h"

struct arguments { int plan, json, quiet, device; const char *resume; };

static const char *const devices[] = {"auto", "cpu", "cuda"};

static const struct cli_flag flags[] = {
    {"--plan", CLI_SET, offsetof(struct arguments, plan), NULL, "print steps, tokens, FLOPs, memory and disk, check the data, do not train"},
    {"--resume", CLI_STR, offsetof(struct arguments, resume), "auto|never|PATH", "over the config's resume (default auto)"},
    {"--device", CLI_CHOICE, offsetof(struct arguments, device), "auto|cpu|cuda", "where to compute (default auto)"},
    {"--json", CLI_SET, offsetof(struct arguments, json), NULL, "the result as JSON"},
    {"--quiet", CLI_SET, offsetof(struct arguments, quiet), NULL, "no progress, warnings only"},
};

static const struct cli cli = {
    .program = "gqa-uptrain", .synopsis = "CONFIG.yaml [key.sub=value ...] [flags]",
    .about = "Continues the pretraining of a checkpoint (or pretrains a new model) as CONFIG.yaml says and writes output_dir/final.\n"
             "  gqa-uptrain configs/uptrain-5-percent.yaml model.path=my-model --plan\n"
             "  gqa-uptrain configs/uptrain-5-percent.yaml model.path=my-model optimizer.lr=1e-4\n"
             "The same command continues a stopped run. SIGTERM or Ctrl-C saves and ends with status 75; SIGHUP, SIGUSR1 or a file\n"
             "output_dir/save-now saves and goes on.\n",
    .flags = flags, .n_flags = (int)(sizeof flags / sizeof *flags), .min_words = 1, .max_words = 64,
};

static void print_memory(const struct plan *p)
{
    double mib = 1.0 / (1 << 20);
    log_info("memory: %.1f MiB = parameters %.1f + gradients %.1f + moments %.1f + activations %.1f + scratch %.1f", (double)p->total * mib,
             (double)p->memory.parameters * mib, (double)p->memory.gradients * mib, (double)p->moments * mib,
             (double)p->memory.activations * mib, (double)p->memory.scratch * mib);
    if (p->teacher_total)
        log_info("teacher: %.1f MiB of its own%s", (double)p->teacher_total * mib, p->cache.windows ? ", only while its tokens are computed" : "");
}

static enum code write_config(const struct run *r)
{
    json_t *j = options_to_json(&r->options);
    char *yaml = j ? config_json_to_yaml(j) : NULL, *path = io_join(r->options.output_dir, "resolved-config.yaml");
    enum code c = yaml && path ? io_write_atomic(path, yaml, strlen(yaml)) : fail(ERR_MEMORY, "out of memory for the resolved config");
    free(yaml);
    free(path);
    json_decref(j);
    return c;
}

static json_t *real(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

static void print_summary(const struct run *r, const char *final)
{
    const struct progress_state *s = &r->state;
    double rate = s->seconds > 0.0 ? (double)s->tokens / s->seconds : 0.0;
    if (r->json) {
        json_t *j = json_result("uptrain", r->backend->name);
        json_object_update_missing_new(j, json_pack("{s:I, s:I, s:o, s:o, s:o, s:I, s:f, s:f, s:I, s:s}", "steps", (json_int_t)s->step, "tokens",
                                                    (json_int_t)s->tokens, "loss_zero_step", real(s->loss_zero), "loss_final", real(s->loss_eval),
                                                    "train_loss", real(s->loss), "skipped", (json_int_t)s->skips, "seconds", s->seconds, "tok_s",
                                                    rate, "peak_rss", (json_int_t)host_peak_rss(), "final", final));
        if (isfinite(s->kl))
            json_object_set_new(j, "kl", json_real(s->kl));
        json_print(j, 2);
        json_decref(j);
        return;
    }
    char spent[16], count[16];
    format_duration(spent, s->seconds);
    format_count(count, rate);
    printf("steps        %lld\ntokens       %lld\n", (long long)s->step, (long long)s->tokens);
    if (isfinite(s->loss_zero))
        printf("loss before  %.4f nats/token\n", s->loss_zero);
    if (isfinite(s->loss_eval))
        printf("loss after   %.4f nats/token\n", s->loss_eval);
    if (isfinite(s->loss))
        printf("train loss   %.4f\n", s->loss);
    if (isfinite(s->kl))
        printf("KL           %.4f nats/token to the teacher (last step)\n", s->kl);
    printf("skipped      %lld\ntime         %s, %s tokens/s\nresult       %s\n", (long long)s->skips, spent, count, final);
}

static enum code take_lock(struct run *r)
{
    TRY(io_mkdirs(r->options.output_dir));
    TRY(io_lock_take(r->options.output_dir, &r->lock));
    r->locked = 1;
    return OK;
}

static enum code train(struct run *r, const struct plan *plan, int quiet)
{
    int resumed = 0;
    char *final = NULL;
    print_memory(plan);
    TRY(distill_cache_make(r));
    TRY(setup_model(r));
    TRY(distill_attach(r));
    TRY(state_resume(r, &resumed));
    if (!resumed)
        TRY(moments_take(r));
    if (resumed)
        log_info("resumed at step %lld of %lld from %s", (long long)r->state.step, (long long)r->budget.steps, r->saved_path);
    if (r->optimizer.frozen)
        log_info("freeze: %lld of %lld parameters stay as they are", (long long)r->optimizer.frozen, (long long)plan->parameters);
    TRY(write_config(r));
    TRY(runlog_open(&r->log, r->options.output_dir, r->options.log_jsonl, r->options.log_tensorboard, resumed ? r->state.line_step : -1));
    r->log.quiet = quiet;
    TRY(trainer_run(r));
    enum code c = final_write(r, &final);
    if (c == OK)
        print_summary(r, final);
    free(final);
    return c;
}

static enum code run_all(struct run *r, const struct arguments *a, const struct cli_words *words)
{
    struct plan plan;
    TRY(options_load(&r->options, words->v[0], words->n - 1, (char **)(uintptr_t)&words->v[1]));
    if (a->resume)
        r->options.resume = a->resume;
    host_threads_set((int)r->options.threads);
    TRY(options_budget(&r->options, &r->budget));
    if (r->budget.steps > 0 && r->budget.warmup > r->budget.steps)
        log_warn("%s: the warm-up of %lld steps is longer than the run of %lld; the peak learning rate is never reached",
                 config_where(r->options.config, config_root(r->options.config), "lr_scheduler"), (long long)r->budget.warmup,
                 (long long)r->budget.steps);
    r->schedule = (struct schedule){(enum schedule_kind)r->options.schedule.name, r->budget.steps, r->budget.warmup, r->budget.decay,
                                    r->options.schedule.min_lr_ratio};
    TRY(setup_device(r, devices[a->device]));
    if (!r->plan)
        TRY(take_lock(r));
    TRY(setup_source(r));
    TRY(setup_data(r));
    TRY(distill_open(r));
    TRY(distill_cache_path(r));
    TRY(plan_make(r, &plan));
    if (r->plan)
        plan_print(r, &plan);
    TRY(plan_check(r, &plan));
    return r->plan ? OK : train(r, &plan, a->quiet);
}

static void run_close(struct run *r)
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
    free(r->converted);
    if (r->locked)
        io_lock_drop(&r->lock);
    options_free(&r->options);
}

int main(int argc, char **argv)
{
    struct arguments a = {0, 0, 0, 0, NULL};
    struct cli_words words;
    int help = 0;
    kernels_boot(argc, argv);
    signals_install();
    json_result_command(argc, argv);
    enum code c = cli_parse(&cli, argc, argv, &a, &words, &help);
    if (c == OK && help) {
        if (argc > 1 && !strcmp(argv[argc - 1], "--version"))
            return 0;
        printf("\nkeys of CONFIG.yaml, also as key.sub=value:\n");
        options_help();
        return 0;
    }
    if (c != OK)
        return fail_exit("gqa-uptrain", c);
    log_quiet(a.quiet);
    struct run r;
    memset(&r, 0, sizeof r);
    r.plan = a.plan;
    r.json = a.json;
    r.log.fd = r.log.board.fd = -1;
    r.state = (struct progress_state){.eval_step = -1, .line_step = -1, .loss = (double)NAN, .grad_norm = (double)NAN, .lr = (double)NAN, .kl = (double)NAN,
                                      .loss_zero = (double)NAN, .loss_eval = (double)NAN};
    c = run_all(&r, &a, &words);
    int status = fail_exit("gqa-uptrain", c);
    run_close(&r);
    return status;
}
