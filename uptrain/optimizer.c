/* AdamW over flat ranges. All parameters lie in one allocation (model_flat); consecutive ones with the same weight-decay flag and
 * the same freeze flag are one range, updated by one kernel call. Moments are two more flat arrays of the same layout.
 *
 * Gradient norm: the backend writes one double per 65536 elements of the whole flat gradient and adds them in order, so the norm
 * depends neither on the ranges nor on threads. Clip factor and skip flag stay in device memory, where adamw reads them: the whole
 * step is queued before the host looks at its loss and norm.
 * Training in bf16, adamw also writes the working copy; without master weights the copy of the matrices is all there is.
 * Frozen gradients are zeroed first: they are no part of the norm. Padding between parameters is zero and stays zero (its
 * gradient and moments are zero, and weight decay of zero is zero). */
#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>

#include "run.h"

/* The last pattern that matches decides: "!glob" takes a tensor back from those before it. */
static int frozen(const struct options *o, const char *name, unsigned char *used)
{
    int hit = 0;
    for (int i = 0; i < o->freeze.n; i++) {
        const char *glob = ((const char *const *)o->freeze.items)[i];
        int back = *glob == '!';
        if (fnmatch(glob + back, name, 0) == 0) {
            used[i] = 1;
            hit = !back;
        }
    }
    return hit;
}

static struct optimizer_range range_from(const struct optimizer *p, const struct model_param *q, int is_frozen)
{
    struct model_flat flat = model_flat(p->model);
    struct optimizer_range r = {q->offset, 0, q->spec.decay, is_frozen, NULL, NULL};
    if (q->master.dtype == DT_F32)
        r.p = q->master.p;
    if (flat.low && (flat.params || !r.p)) /* vectors without master weights are read where they are */
        r.low = flat.low + q->offset;
    return r;
}

static enum code make_ranges(struct optimizer *p, const struct options *o)
{
    int count = model_param_count(p->model);
    unsigned char *used = calloc((size_t)o->freeze.n + 1, 1);
    p->ranges = calloc((size_t)count + 1, sizeof *p->ranges);
    if (!p->ranges || !used) {
        free(used);
        return fail(ERR_MEMORY, "out of memory for the optimizer's %d ranges", count);
    }
    for (int i = 0; i < count; i++) {
        const struct model_param *q = model_param_at(p->model, i);
        int64_t end = i + 1 < count ? model_param_at(p->model, i + 1)->offset : p->n;
        int is_frozen = frozen(o, q->spec.name, used);
        struct optimizer_range *last = p->n_ranges ? &p->ranges[p->n_ranges - 1] : NULL;
        if (!last || last->decay != q->spec.decay || last->frozen != is_frozen || !last->p != (q->master.dtype == DT_BF16)) {
            last = &p->ranges[p->n_ranges++];
            *last = range_from(p, q, is_frozen);
        }
        last->count = end - last->from;
        p->frozen += is_frozen ? q->count : 0;
    }
    enum code c = OK;
    for (int i = 0; i < o->freeze.n && c == OK; i++)
        if (!used[i])
            c = fail(ERR_USAGE, "%s: freeze: '%s' matches no tensor; names are embed.weight, dec.0.attn.q.w, dec.final_norm.w, head.w ...",
                     config_where(o->config, config_root(o->config), "freeze"), ((const char *const *)o->freeze.items)[i]);
    free(used);
    return c;
}

/* Run twice: with NULL bases it measures. */
static void carve(struct optimizer *p)
{
    size_t bytes = (size_t)p->n * sizeof(float);
    p->m = arena_carve(&p->moments, bytes);
    p->v = arena_carve(&p->moments, bytes);
    p->partials = arena_carve(&p->scalars, (size_t)p->n_partials * sizeof(double));
    p->step = arena_carve(&p->scalars, sizeof *p->step);
}

enum code optimizer_open(struct optimizer *p, struct model *model, const struct backend *backend, struct device *device,
                         const struct options *o)
{
    memset(p, 0, sizeof *p);
    p->backend = backend;
    p->device = device;
    p->model = model;
    p->n = model_flat(model).n;
    p->n_partials = (p->n + SUMSQ_BLOCK - 1) / SUMSQ_BLOCK;
    p->seed = (uint64_t)o->seed;
    TRY(make_ranges(p, o));
    carve(p);
    size_t moments = p->moments.used, scalars = p->scalars.used;
    TRY(backend->device_alloc(device, &p->moments, "moments", moments));
    TRY(backend->device_alloc(device, &p->scalars, "optimizer scalars", scalars));
    carve(p);
    return OK;
}

void optimizer_close(struct optimizer *p)
{
    if (p->moments.base)
        p->backend->device_free(p->device, &p->moments);
    if (p->scalars.base)
        p->backend->device_free(p->device, &p->scalars);
    free(p->ranges);
    memset(p, 0, sizeof *p);
}

enum code optimizer_begin(struct optimizer *p, int64_t valid)
{
    struct step_scalars s;
    memset(&s, 0, sizeof s);
    s.inv_count = valid > 0 ? 1.0f / (float)valid : 0.0f;
    return p->backend->device_copy(p->device, p->step, &s, sizeof s);
}

enum code optimizer_norm(struct optimizer *p, double max_norm)
{
    float *grads = model_flat(p->model).grads;
    struct step_scalars *s = p->step;
    for (int i = 0; i < p->n_ranges; i++)
        if (p->ranges[i].frozen)
            TRY(p->backend->fill(p->device, grads + p->ranges[i].from, 0.0f, p->ranges[i].count));
    TRY(p->backend->sumsq(p->device, p->partials, grads, p->n));
    return p->backend->grad_clip(p->device, &s->norm, &s->clip, &s->skip, p->partials, p->n_partials, &s->loss_sum, max_norm);
}

enum code optimizer_step(struct optimizer *p, const struct optimizer_options *o, double lr, int64_t step)
{
    float *grads = model_flat(p->model).grads;
    struct adamw_args a = {.lr = (float)lr, .beta1 = (float)o->beta1, .beta2 = (float)o->beta2, .eps = (float)o->eps, .weight_decay = 0.0f,
                           .step = step, .clip = &p->step->clip, .skip = &p->step->skip, .zero_grad = 1, .seed = p->seed};
    for (int i = 0; i < p->n_ranges; i++) {
        const struct optimizer_range *g = &p->ranges[i];
        if (g->frozen)
            continue;
        a.weight_decay = g->decay ? (float)o->weight_decay : 0.0f;
        a.low = g->low;
        a.first = g->from;
        TRY(p->backend->adamw(p->device, g->p, grads + g->from, p->m + g->from, p->v + g->from, g->count, &a));
    }
    return OK;
}

enum code optimizer_result(struct optimizer *p, struct step_scalars *result)
{
    return p->backend->device_copy(p->device, result, p->step, sizeof *result);
}
