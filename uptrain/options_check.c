/* What the table cannot say: keys that exclude or need each other, what this version does not do, and the budget. Every
 * sentence starts with file:line:col of the key it is about. */
#include <math.h>
#include <string.h>

#include "options.h"

static const char *at(const struct options *o, const char *key)
{
    return config_where(o->config, config_root(o->config), key);
}

static int has(const struct options *o, const char *key)
{
    return config_has(config_root(o->config), key);
}

int options_converts(const struct options *o) { return o->gqa.kv_heads != UNSET_INT || o->gqa.kv_budget != NULL; }

/* gqa-convert would refuse these too, but only once it runs: --plan shall say it. */
static enum code check_gqa(const struct options *o)
{
    static const char *const refits[] = {"none", "output", "block", "all"};
    int known = o->gqa.refit == NULL;
    for (size_t i = 0; i < sizeof refits / sizeof *refits; i++)
        known |= o->gqa.refit && !strcmp(o->gqa.refit, refits[i]);
    if (o->gqa.kv_budget && o->gqa.kv_heads != UNSET_INT)
        return fail(ERR_USAGE, "%s: gqa.num_key_value_heads and gqa.kv_budget exclude each other; keep one", at(o, "gqa.kv_budget"));
    if (o->gqa.kv_budget && !o->gqa.calibration)
        return fail(ERR_USAGE, "%s: gqa.kv_budget needs gqa.calibration: weights alone do not say which layers matter (a file of tokens or text like the training data)",
                    at(o, "gqa.kv_budget"));
    if (!known)
        return fail(ERR_USAGE, "%s: gqa.refit: \"%s\" is not known; legal: none, output, block, all", at(o, "gqa.refit"), o->gqa.refit);
    if (!o->gqa.calibration && o->gqa.refit && strcmp(o->gqa.refit, "none"))
        return fail(ERR_USAGE, "%s: gqa.refit needs gqa.calibration: a file of tokens or text like the training data", at(o, "gqa.refit"));
    if (!o->gqa.calibration && o->gqa.calibration_tokens != UNSET_INT)
        return fail(ERR_USAGE, "%s: gqa.calibration_tokens needs gqa.calibration", at(o, "gqa.calibration_tokens"));
    return OK;
}

static enum code check_model(const struct options *o)
{
    const struct { const char *key; int64_t v; } need[] = {{"hidden_size", o->arch.hidden_size}, {"num_hidden_layers", o->arch.layers},
        {"num_attention_heads", o->arch.heads}, {"intermediate_size", o->arch.intermediate_size}};
    if (o->init == INIT_RANDOM) {
        if (o->model_path)
            return fail(ERR_USAGE, "%s: model.path and model.init: random exclude each other; remove one", at(o, "model.path"));
        if (options_converts(o))
            return fail(ERR_USAGE, "%s: gqa converts a checkpoint, but model.init is random; set model.arch.num_key_value_heads instead",
                        at(o, "gqa"));
        for (size_t i = 0; i < sizeof need / sizeof *need; i++)
            if (need[i].v == UNSET_INT)
                return fail(ERR_USAGE, "%s: model.init: random needs model.arch.%s", at(o, "model"), need[i].key);
        return OK;
    }
    if (!o->model_path)
        return fail(ERR_USAGE, "%s: no model.path; give a checkpoint, or model.init: random with a model.arch block", at(o, "model"));
    if (has(o, "model.arch"))
        return fail(ERR_USAGE, "%s: model.arch only goes with model.init: random; the architecture comes from %s", at(o, "model.arch"),
                    o->model_path);
    if (has(o, "gqa") && !options_converts(o))
        return fail(ERR_USAGE, "%s: gqa needs num_key_value_heads or kv_budget; remove the gqa block to train the model as it is", at(o, "gqa"));
    return check_gqa(o);
}

static enum code check_batch(struct options *o)
{
    if (o->sequence_len == UNSET_INT)
        return fail(ERR_USAGE, "%s: sequence_len is required: tokens per sample", at(o, "sequence_len"));
    if (o->global_batch_size != UNSET_INT && o->accumulation != UNSET_INT)
        return fail(ERR_USAGE, "%s: global_batch_size and gradient_accumulation_steps say the same; remove one",
                    at(o, "gradient_accumulation_steps"));
    if (o->accumulation != UNSET_INT && !checked_mul(o->accumulation, o->micro_batch_size, &o->global_batch_size))
        return fail(ERR_USAGE, "%s: the batch is too large", at(o, "gradient_accumulation_steps"));
    if (o->global_batch_size == UNSET_INT)
        o->global_batch_size = o->micro_batch_size;
    if (o->global_batch_size % o->micro_batch_size != 0)
        return fail(ERR_USAGE, "%s: global_batch_size %lld is no multiple of micro_batch_size %lld", at(o, "global_batch_size"),
                    (long long)o->global_batch_size, (long long)o->micro_batch_size);
    o->accumulation = o->global_batch_size / o->micro_batch_size;
    return OK;
}

static enum code check_budget(const struct options *o)
{
    int fraction = !isnan(o->uptrain_fraction), steps = o->max_steps != UNSET_INT, tokens = !isnan(o->max_tokens);
    if (fraction + steps + tokens > 1)
        return fail(ERR_USAGE, "%s: uptrain_fraction, max_steps and max_tokens exclude each other; keep one",
                    at(o, steps && (fraction || tokens) ? "max_steps" : "max_tokens"));
    if (fraction + steps + tokens == 0)
        return fail(ERR_USAGE, "%s: no budget; give original_tokens with uptrain_fraction, or max_steps, or max_tokens", at(o, "max_steps"));
    if (fraction && isnan(o->original_tokens))
        return fail(ERR_USAGE, "%s: uptrain_fraction is a share of original_tokens, which is missing (alpha 0.05 of 5.0e9 tokens is 250M tokens)",
                    at(o, "uptrain_fraction"));
    return OK;
}

static enum code check_optimizer(struct options *o)
{
    struct optimizer_options *p = &o->optimizer;
    if (p->name == OPTIMIZER_ADAFACTOR)
        return fail(ERR_UNSUPPORTED, "%s: optimizer adafactor comes with the T5 family; use adamw", at(o, "optimizer.name"));
    if (p->betas_list.n != 0 && (!isnan(p->beta1) || !isnan(p->beta2)))
        return fail(ERR_USAGE, "%s: optimizer.betas and adam_beta1/adam_beta2 say the same; keep one", at(o, "optimizer.betas"));
    if (p->betas_list.n != 0 && p->betas_list.n != 2)
        return fail(ERR_USAGE, "%s: optimizer.betas takes two numbers, found %d", at(o, "optimizer.betas"), p->betas_list.n);
    if (p->betas_list.n == 2) {
        p->beta1 = ((const double *)p->betas_list.items)[0];
        p->beta2 = ((const double *)p->betas_list.items)[1];
    }
    p->beta1 = isnan(p->beta1) ? 0.9 : p->beta1;
    p->beta2 = isnan(p->beta2) ? 0.95 : p->beta2;
    if (!(p->beta1 < 1.0 && p->beta2 < 1.0))
        return fail(ERR_USAGE, "%s: optimizer.betas must be below 1, found [%g, %g]", at(o, "optimizer.betas"), p->beta1, p->beta2);
    if (o->schedule.warmup_steps != UNSET_INT && !isnan(o->schedule.warmup_ratio))
        return fail(ERR_USAGE, "%s: warmup_steps and warmup_ratio exclude each other; keep one", at(o, "lr_scheduler.warmup_ratio"));
    return OK;
}

static enum code check_distill(struct options *o)
{
    struct distill_options *d = &o->distill;
    d->on = has(o, "distill") && d->weight > 0.0;
    if (d->cache && d->top_k == 0)
        return fail(ERR_USAGE, "%s: distill.cache holds the teacher's most likely tokens, so it needs distill.top_k (32, say); without top_k the "
                    "teacher stays in memory", at(o, "distill.cache"));
    if (!d->on)
        return OK;
    if (d->teacher && !*d->teacher)
        return fail(ERR_USAGE, "%s: distill.teacher is empty", at(o, "distill.teacher"));
    if (!d->teacher && !options_converts(o))
        return fail(ERR_USAGE, "%s: distill needs a teacher: only with a gqa block it is the model before conversion; set distill.teacher to the original "
                    "checkpoint", at(o, "distill"));
    if (!d->teacher)
        d->teacher = o->model_path;
    return OK;
}

enum code options_check(struct options *o)
{
    if (!o->output_dir || !*o->output_dir)
        return fail(ERR_USAGE, "%s: output_dir is required: where checkpoints, logs and the result go", at(o, "output_dir"));
    TRY(check_model(o));
    if (o->data.train.n == 0)
        return fail(ERR_USAGE, "%s: data.train is required: a list of token or text files", at(o, "data.train"));
    TRY(check_batch(o));
    TRY(check_budget(o));
    TRY(check_optimizer(o));
    TRY(check_distill(o));
    if (has(o, "master_weights") && !o->master_weights && o->precision != PRECISION_BF16)
        return fail(ERR_USAGE, "%s: master_weights: false goes with precision: bf16; fp32 weights are their own masters", at(o, "master_weights"));
    if (!*o->resume)
        return fail(ERR_USAGE, "%s: resume is empty; use auto, never or a path", at(o, "resume"));
    o->checkpointing &= 1; /* false and true are none and block */
    struct budget b;
    return options_budget(o, &b);
}

enum code options_budget(const struct options *o, struct budget *b)
{
    if (!checked_mul(o->global_batch_size, o->sequence_len, &b->tokens_per_step))
        return fail(ERR_USAGE, "%s: global_batch_size * sequence_len is too large", at(o, "global_batch_size"));
    double tokens = 0;
    if (o->max_steps != UNSET_INT)
        b->steps = o->max_steps;
    else {
        tokens = isnan(o->max_tokens) ? round(o->uptrain_fraction * o->original_tokens) : round(o->max_tokens);
        if (!(tokens <= 9e18))
            return fail(ERR_USAGE, "%s: a budget of %g tokens is too large", at(o, "max_tokens"), tokens);
        int64_t whole = (int64_t)tokens;
        b->steps = whole / b->tokens_per_step + (whole % b->tokens_per_step != 0);
    }
    if (!checked_mul(b->steps, b->tokens_per_step, &b->tokens))
        return fail(ERR_USAGE, "%s: the budget is too large", at(o, "max_steps"));
    double n = (double)b->steps;
    b->warmup = o->schedule.warmup_steps != UNSET_INT ? o->schedule.warmup_steps
                                                      : isnan(o->schedule.warmup_ratio) ? 0 : (int64_t)ceil(o->schedule.warmup_ratio * n);
    b->decay = (int64_t)round(o->schedule.decay_ratio * n);
    return OK;
}
