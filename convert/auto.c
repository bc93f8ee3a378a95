/* See auto.h. Measured (docs/merging.md): with a calibration the strongest refit, after align if that is `all` (which moves
 * the bases itself, and ends lower from align's), else after svd; without one, svd. Groups by likeness where heads may be permuted. Heads that are copies need nothing: their mean is each of them. */
#include "auto.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calibrate_parts.h"
#include "convert.h"

static void refuse(struct auto_choice *c, const char *what)
{
    if (c->n_refused == (int)(sizeof c->refused / sizeof *c->refused))
        return;
    struct auto_refusal *r = &c->refused[c->n_refused++];
    snprintf(r->what, sizeof r->what, "%s", what);
    snprintf(r->why, sizeof r->why, "%s", fail_text());
}

/* The strongest that the architecture allows. */
static enum refit strongest(struct auto_choice *c, const struct arch *a)
{
    enum refit r = REFIT_ALL;
    while (r > REFIT_NONE && refit_check(a, r) != OK) {
        char what[24];
        snprintf(what, sizeof what, "refit %s", refit_name(r));
        refuse(c, what);
        r--;
    }
    return r;
}

void auto_choose(struct auto_choice *c, struct options *o, const struct arch *a)
{
    *c = (struct auto_choice){.chosen = o->method == METHOD_AUTO};
    int grouping = o->grouping, refit = o->refit;
    if (!c->chosen) {
        o->method = o->method < 0 ? MERGE_MEAN : o->method;
        o->grouping = grouping < 0 ? GROUPING_CONSECUTIVE : grouping;
        o->refit = refit < 0 ? REFIT_NONE : refit;
        return;
    }
    o->grouping = grouping >= 0 ? grouping : a->pos == POS_ALIBI || !o->calibration ? GROUPING_CONSECUTIVE : GROUPING_SIMILAR;
    o->refit = refit >= 0 ? refit : o->calibration ? (int)strongest(c, a) : REFIT_NONE;
    o->method = o->refit == REFIT_ALL ? MERGE_ALIGN : MERGE_SVD;
    if (!o->calibration)
        snprintf(c->why, sizeof c->why, "mostly the lowest start by weights alone; with --calibration FILE it starts lower still");
    else if (refit >= 0)
        snprintf(c->why, sizeof c->why, "a low start with the refit that was asked for");
    else if (c->n_refused)
        snprintf(c->why, sizeof c->why, "the strongest that %s allows (%.200s)", a->family[0] ? a->family : "this model", c->refused[0].why);
    else
        snprintf(c->why, sizeof c->why, "the lowest start of nearly all that was measured");
}

/* ---- equal heads ---- */

/* 0 in *equal at the first group whose rows differ. */
static enum code tensor_equal(const struct pool_job *job, int *equal)
{
    int64_t G0 = job->in->n[0] / job->D, m = G0 / job->pooled, width = job->in->nd == 2 ? job->in->n[1] : 1;
    size_t row = (size_t)width * dtype_bytes(job->in->dtype);
    char *first = job->buffer, *other = first + row;
    for (int64_t head = 0; *equal && head < G0; head++)
        for (int64_t d = 0; *equal && head % m && d < job->D; d++) {
            TRY(ckpt_read(job->source, job->in, head / m * m * job->D + d, 1, first, job->in->dtype));
            TRY(ckpt_read(job->source, job->in, head * job->D + d, 1, other, job->in->dtype));
            *equal = memcmp(first, other, row) == 0;
        }
    return OK;
}

enum code auto_lossless(struct auto_choice *c, struct options *o, struct checkpoint *source, const struct plan *plan)
{
    int equal = plan->merges && plan->from.qk_norm != QK_NORM_FULL; /* a norm over all heads sees how often each is there */
    for (int i = 0; c->chosen && equal && i < ckpt_count(source); i++) {
        const struct ckpt_tensor *t = ckpt_at(source, i);
        int heads = t->layer >= 0 && (t->pool == POOL_KV || (t->pool == POOL_QKNORM && strstr(t->name, ".k_norm.") && plan->from.qk_norm != QK_NORM_HEAD));
        int64_t G0 = heads ? plan->from.stack[STACK_DEC].block[t->layer].G : 1;
        if (!heads || plan->pooled[t->layer] == G0)
            continue;
        struct pool_job job = {.source = source, .in = t, .D = t->n[0] / G0, .pooled = plan->pooled[t->layer]};
        job.buffer = malloc(2 * (size_t)(t->nd == 2 ? t->n[1] : 1) * dtype_bytes(t->dtype));
        enum code code = job.buffer ? tensor_equal(&job, &equal) : fail(ERR_MEMORY, "out of memory for a row of %s", t->name);
        free(job.buffer);
        TRY(code);
    }
    c->lossless = c->chosen && equal;
    if (c->lossless) {
        o->method = MERGE_MEAN;
        o->grouping = GROUPING_CONSECUTIVE;
        o->refit = REFIT_NONE;
        snprintf(c->why, sizeof c->why, "the heads of every group are equal, so nothing is lost");
    }
    return OK;
}

json_t *auto_refused_json(const struct auto_choice *c)
{
    json_t *list = json_array();
    for (int i = 0; i < c->n_refused; i++)
        json_array_append_new(list, json_pack("{s:s, s:s}", "what", c->refused[i].what, "why", c->refused[i].why));
    return list;
}
