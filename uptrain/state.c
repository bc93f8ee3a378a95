/* Saving and resuming. A step directory holds param/NAME, m/NAME, v/NAME and this meta object, enough to continue bit for bit:
 *   config (resolved), data {train, validation [{path, sha256, tokens}], tokenizer, bos, eos}, threads, isa, device,
 *   teacher (hash of its files, with distillation),
 *   state {step, tokens, moments_updates, skips, skips_row, eval_step, line_step, loss, grad_norm, lr, kl, loss_zero, loss_eval, seconds}.
 * Data order is a function of the step, so there is no position to store. A resume is refused when what decides the bits of a step
 * has changed (data, batch geometry, seed, architecture), and says what else has changed. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "run.h"

static enum code copy(void *context, void *dst, const void *src, size_t bytes)
{
    struct run *r = context;
    return r->backend->device_copy(r->device, dst, src, bytes);
}

enum code state_arrays(struct run *r)
{
    static const char *const prefix[] = {"param/", "m/", "v/"};
    int n = model_param_count(r->model);
    r->arrays = calloc(3 * (size_t)n + 1, sizeof *r->arrays);
    if (!r->arrays)
        return fail(ERR_MEMORY, "out of memory for the list of %d arrays", 3 * n);
    r->copy = (struct step_copy){copy, r};
    for (int k = 0; k < 3; k++)
        for (int i = 0; i < n; i++) {
            const struct model_param *q = model_param_at(r->model, i);
            struct step_array *a = &r->arrays[r->n_arrays++];
            snprintf(a->name, sizeof a->name, "%s%s", prefix[k], q->spec.name);
            a->dtype = k == 0 ? q->master.dtype : DT_F32;
            a->nd = q->spec.nd;
            a->n[0] = q->spec.n[0];
            a->n[1] = q->spec.nd > 1 ? q->spec.n[1] : 1;
            a->p = k == 0 ? q->master.p : (k == 1 ? r->optimizer.m : r->optimizer.v) + q->offset;
            a->through = r->optimizer.moments.host ? NULL : &r->copy;
        }
    return OK;
}

/* JSON has no NaN: it is null. A double survives as 17 digits. */
static json_t *real(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

static json_t *state_json(const struct progress_state *s)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:o, s:o, s:o, s:o, s:f}", "step", (json_int_t)s->step, "tokens",
                     (json_int_t)s->tokens, "moments_updates", (json_int_t)s->moments_updates, "skips", (json_int_t)s->skips, "skips_row",
                     (json_int_t)s->skips_row, "eval_step",
                     (json_int_t)s->eval_step, "line_step", (json_int_t)s->line_step, "loss", real(s->loss), "grad_norm",
                     real(s->grad_norm), "lr", real(s->lr), "kl", real(s->kl), "loss_zero", real(s->loss_zero), "loss_eval", real(s->loss_eval), "seconds",
                     s->seconds);
}

static enum code state_of_json(struct progress_state *s, const json_t *j, const char *where)
{
    const struct { const char *key; int64_t *to; } ints[] = {{"step", &s->step}, {"tokens", &s->tokens}, {"skips", &s->skips},
        {"skips_row", &s->skips_row}, {"eval_step", &s->eval_step}, {"line_step", &s->line_step}};
    const struct { const char *key; double *to; } reals[] = {{"loss", &s->loss}, {"grad_norm", &s->grad_norm}, {"lr", &s->lr}, {"kl", &s->kl},
        {"loss_zero", &s->loss_zero}, {"loss_eval", &s->loss_eval}, {"seconds", &s->seconds}};
    for (size_t i = 0; i < sizeof ints / sizeof *ints; i++)
        TRY(json_need_i64(j, where, ints[i].key, -1, INT64_MAX, ints[i].to));
    s->moments_updates = 0; /* what older checkpoints do not say */
    TRY(json_want_i64(j, where, "moments_updates", 0, INT64_MAX / 4, &s->moments_updates));
    for (size_t i = 0; i < sizeof reals / sizeof *reals; i++) {
        *reals[i].to = (double)NAN;
        TRY(json_want_f64(j, where, reals[i].key, reals[i].to));
    }
    return OK;
}

enum code state_save(struct run *r)
{
    const struct options *o = &r->options;
    json_t *meta = json_pack("{s:s, s:o, s:o, s:o, s:i, s:s, s:s, s:s?}", "program", "gqa-uptrain", "config", options_to_json(o), "data",
                             dataset_to_json(&r->data, o), "state", state_json(&r->state), "threads", host_threads(), "isa",
                             host_isa_name(host_isa()), "device", r->backend->name, "teacher", r->distill.checkpoint ? r->distill.hash : NULL);
    if (!meta)
        return fail(ERR_MEMORY, "out of memory for the checkpoint's description");
    struct step_content content = {.step = r->state.step, .arch = &r->arch, .source = r->source, .arrays = r->arrays,
                                   .n_arrays = r->n_arrays, .meta = meta, .compress = 0};
    enum code c = r->backend->device_sync(r->device);
    if (c == OK)
        c = step_save(o->output_dir, &content, (int)o->save_total_limit);
    json_decref(meta);
    TRY(c);
    char name[32];
    snprintf(name, sizeof name, "step-%08lld", (long long)r->state.step);
    free(r->saved_path);
    r->saved_path = io_join(o->output_dir, name);
    r->saved_at = host_seconds();
    return r->saved_path ? OK : fail(ERR_MEMORY, "%s: out of memory for a path", o->output_dir);
}

static const json_t *path_get(const json_t *root, const char *path)
{
    char part[64];
    for (const char *dot; root && (dot = strchr(path, '.')) != NULL; path = dot + 1) {
        snprintf(part, sizeof part, "%.*s", (int)(dot - path), path);
        root = json_object_get(root, part);
    }
    return json_object_get(root, path);
}

static void as_text(char out[80], const json_t *v)
{
    char *text = v ? json_text(v, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
    snprintf(out, 80, "%.79s", text ? text : "not given");
    free(text);
}

/* Keys that decide the bits of a step, or which samples it sees. */
static enum code check_config(const struct run *r, const json_t *then, const json_t *now, const char *where)
{
    static const char *const fixed[] = {"seed", "sequence_len", "micro_batch_size", "global_batch_size", "data.pack", "gqa.num_key_value_heads", "gqa.kv_budget",
                                        "model.init", "precision", "master_weights"};
    static const char *const told[] = {"max_steps", "max_tokens", "uptrain_fraction", "original_tokens", "optimizer", "lr_scheduler",
                                       "max_grad_norm", "freeze", "eval_batches", "model.path", "activation_checkpointing", "distill.weight",
                                       "distill.temperature", "distill.top_k"};
    char a[80], b[80];
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++) {
        const json_t *x = path_get(then, fixed[i]), *y = path_get(now, fixed[i]);
        if (x == y || (x && y && json_equal(x, y)))
            continue;
        as_text(a, x);
        as_text(b, y);
        return fail(ERR_USAGE, "%s: cannot resume: the checkpoint %s was made with %s %s, now it is %s; restore it, or choose another "
                    "output_dir", r->options.file, where, fixed[i], a, b);
    }
    for (size_t i = 0; i < sizeof told / sizeof *told; i++) {
        const json_t *x = path_get(then, told[i]), *y = path_get(now, told[i]);
        if (x == y || (x && y && json_equal(x, y)))
            continue;
        as_text(a, x);
        as_text(b, y);
        log_warn("resume: %s was %s, now it is %s", told[i], a, b);
    }
    return OK;
}

static enum code check_data(const struct run *r, const json_t *then, const json_t *now, const char *where)
{
    const json_t *x = json_object_get(then, "train"), *y = json_object_get(now, "train");
    size_t n = json_array_size(x), m = json_array_size(y);
    for (size_t i = 0; i < (n > m ? n : m); i++) {
        const char *p = json_string_value(json_object_get(json_array_get(x, i), "sha256"));
        const char *q = json_string_value(json_object_get(json_array_get(y, i), "sha256"));
        const char *path = json_string_value(json_object_get(json_array_get(i < m ? y : x, i), "path"));
        if (!p || !q || strcmp(p, q) != 0)
            return fail(ERR_INPUT, "%s: cannot resume: data.train has changed since checkpoint %s: %s had sha256 %.16s, now %.16s; restore "
                        "the file, or choose another output_dir", r->options.file, where, path ? path : "?", p ? p : "(no such file)",
                        q ? q : "(no such file)");
    }
    if (!json_equal(json_object_get(then, "tokenizer"), json_object_get(now, "tokenizer")) ||
        !json_equal(json_object_get(then, "eos"), json_object_get(now, "eos")))
        return fail(ERR_INPUT, "%s: cannot resume: data.tokenizer has changed since checkpoint %s", r->options.file, where);
    if (!json_equal(json_object_get(then, "validation"), json_object_get(now, "validation")))
        log_warn("resume: data.validation has changed; losses before and after step %lld are of different text", (long long)r->state.step);
    return OK;
}

/* Another teacher is like other data. One that comes or goes is said by its weight (check_config). */
static enum code check_teacher(const struct run *r, const json_t *then, const char *where)
{
    const char *hash = json_string_value(then);
    if (!hash || !r->distill.checkpoint || !strcmp(hash, r->distill.hash))
        return OK;
    return fail(ERR_INPUT, "%s: cannot resume: the teacher %s has changed since checkpoint %s (its files had hash %.16s, now %.16s); restore it, or choose "
                "another output_dir", r->options.file, r->options.distill.teacher, where, hash, r->distill.hash);
}

static void warn_host(const struct run *r, const json_t *meta)
{
    const char *isa = json_string_value(json_object_get(meta, "isa")), *device = json_string_value(json_object_get(meta, "device"));
    int threads = (int)json_integer_value(json_object_get(meta, "threads"));
    if (threads != host_threads())
        log_warn("resume: threads were %d, now %d: the run stays correct but not bit-equal to an uninterrupted one", threads, host_threads());
    if (isa && strcmp(isa, host_isa_name(host_isa())) != 0)
        log_warn("resume: the instruction set was %s, now %s: correct, not bit-equal", isa, host_isa_name(host_isa()));
    if (device && strcmp(device, r->backend->name) != 0)
        log_warn("resume: the device was %s, now %s: correct, not bit-equal", device, r->backend->name);
}

static enum code same_arch(const struct run *r, const struct arch *then, const char *where)
{
    struct tensor_spec *a = NULL, *b = NULL;
    int n = 0, m = 0;
    enum code c = arch_tensors(then, &a, &n);
    if (c == OK)
        c = arch_tensors(&r->arch, &b, &m);
    int same = c == OK && n == m;
    for (int i = 0; same && i < n; i++)
        same = !strcmp(a[i].name, b[i].name) && a[i].nd == b[i].nd && a[i].n[0] == b[i].n[0] && a[i].n[1] == b[i].n[1];
    free(a);
    free(b);
    if (c == OK && !same)
        c = fail(ERR_USAGE, "%s: cannot resume: the model of checkpoint %s has other tensors than the one configured (model, gqa); restore "
                 "the config, or choose another output_dir", r->options.file, where);
    return c;
}

static enum code restore(struct run *r, const struct step_reader *reader, const char *where)
{
    const json_t *meta = step_meta(reader), *state = json_object_get(meta, "state");
    if (!json_is_object(state) || !json_is_object(json_object_get(meta, "config")))
        return fail(ERR_INPUT, "%s: step %lld is no checkpoint of gqa-uptrain", where, (long long)step_number(reader));
    TRY(same_arch(r, step_arch(reader), where));
    json_t *config = options_to_json(&r->options), *data = dataset_to_json(&r->data, &r->options);
    enum code c = state_of_json(&r->state, state, where);
    if (c == OK)
        c = check_config(r, json_object_get(meta, "config"), config, where);
    if (c == OK)
        c = check_data(r, json_object_get(meta, "data"), data, where);
    json_decref(config);
    json_decref(data);
    TRY(c);
    TRY(check_teacher(r, json_object_get(meta, "teacher"), where));
    warn_host(r, meta);
    for (int i = 0; i < r->n_arrays; i++)
        TRY(step_read((struct step_reader *)(uintptr_t)reader, &r->arrays[i]));
    return model_refresh(r->model);
}

enum code state_resume(struct run *r, int *resumed)
{
    const struct options *o = &r->options;
    int never = !strcmp(o->resume, "never"), automatic = !strcmp(o->resume, "auto"), found = 0;
    const char *from = never || automatic ? o->output_dir : o->resume;
    struct step_reader *reader = NULL;
    *resumed = 0;
    TRY(step_open(&reader, from, &found));
    if (!found)
        return never || automatic ? OK : fail(ERR_USAGE, "%s: resume: %s holds no checkpoint", o->file, from);
    enum code c = never ? fail(ERR_USAGE, "%s: resume is never, but %s already holds checkpoints (newest: step %lld); use --resume auto to "
                               "continue, or choose another output_dir", o->file, o->output_dir, (long long)step_number(reader))
                        : restore(r, reader, from);
    if (c == OK && r->state.step > r->budget.steps)
        c = fail(ERR_USAGE, "%s: %s is at step %lld, beyond the %lld steps of this config; raise the budget or choose another output_dir",
                 o->file, from, (long long)r->state.step, (long long)r->budget.steps);
    if (c == OK) {
        *resumed = 1;
        char name[32];
        snprintf(name, sizeof name, "step-%08lld", (long long)r->state.step);
        r->saved_path = automatic ? io_join(o->output_dir, name) : strdup(from);
        r->saved_at = host_seconds();
        c = r->saved_path ? OK : fail(ERR_MEMORY, "%s: out of memory for a path", o->output_dir);
    }
    step_close(reader);
    return c;
}
