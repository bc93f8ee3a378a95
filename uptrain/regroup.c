/* What `gqa:` will make of the model's heads, known before anything is converted: a plan does not convert, it changes a copy of the
 * architecture as gqa-convert would. Under a budget the layers' numbers are unknown until gqa-convert has measured them: a plan takes even
 * ones of the same bytes. */
#include "run.h"

static const char *at(const struct run *r, const char *key)
{
    return config_where(r->options.config, config_root(r->options.config), key);
}

/* Layers will have numbers of their own: is there a directory that can say so? */
static enum code check_home(const struct run *r, const struct arch *source)
{
    struct arch a;
    struct ckpt_choice choice;
    int differs;
    TRY(kv_budget_uneven(&a, &differs, source));
    enum code c = differs ? ckpt_choose(&a, r->options.output_dir, HOME_AUTO, NULL, &choice) : OK;
    arch_free(&a);
    if (c != ERR_UNSUPPORTED && c != ERR_INPUT)
        return c;
    char why[512];
    snprintf(why, sizeof why, "%s", fail_text());
    return fail(ERR_UNSUPPORTED, "%s: gqa.kv_budget gives layers different numbers of key/value heads, which no directory can hold for this model (%s); choose one "
                "number with gqa.num_key_value_heads", at(r, "gqa.kv_budget"), why);
}

enum code regroup_check(struct run *r)
{
    struct checkpoint *source;
    char name[600];
    TRY(ckpt_open(&source, r->options.model_path, NULL));
    const struct arch *a = ckpt_arch(source);
    snprintf(name, sizeof name, "%s: gqa.kv_budget", at(r, "gqa.kv_budget"));
    r->kv_bytes_source = arch_kv_bytes_per_token(a, 0, a->dtype);
    enum code c = kv_budget_of(&r->kv_bytes, name, r->options.gqa.kv_budget, a, a->dtype);
    if (c == OK)
        c = check_home(r, a);
    ckpt_close(source);
    return c;
}

static enum code set_groups(struct run *r, int64_t G)
{
    for (int64_t l = 0; l < r->arch.stack[STACK_DEC].L; l++) {
        struct arch_block *b = &r->arch.stack[STACK_DEC].block[l];
        if (b->G % G != 0 && !(G > b->G && G % b->G == 0 && b->H % G == 0))
            return fail(ERR_USAGE, "%s: %lld K/V heads of layer %lld cannot become %lld; use a divisor", at(r, "gqa.num_key_value_heads"),
                        (long long)b->G, (long long)l, (long long)G);
        b->G = G;
    }
    return OK;
}

enum code regroup(struct run *r)
{
    struct ckpt_choice choice;
    enum data_format format;
    if (r->options.gqa.calibration)
        TRY(fail_in(data_detect_format(r->options.gqa.calibration, &format), "gqa.calibration"));
    if (r->kv_bytes)
        kv_budget_spread(&r->arch, ckpt_arch(r->source), r->kv_bytes, r->arch.dtype);
    else
        TRY(set_groups(r, r->options.gqa.kv_heads));
    TRY(ckpt_choose(&r->arch, r->options.output_dir, HOME_AUTO, NULL, &choice));
    return ckpt_choice_arch(&r->arch, &choice);
}
