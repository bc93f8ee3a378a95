/* Merging heads whose keys pass through a norm. The norm is not linear, so the merged key is not the mean of the old keys, whatever is
 * done; training repairs the rest. For one RMSNorm over all heads (OLMo 2), k = gamma * (W x) / rms(W x), the naive merge shrinks W x,
 * the norm inflates it again, and gamma cannot be shared. So gamma moves into the rows of W before they are pooled, and the new norm
 * gets one constant c, for which k' = c (W' x) / rms(W' x) has the size of the mean of the old keys, W' x / rms(W x): c = rms(W' x) /
 * rms(W x), estimated from the weights alone (as if x had no direction it prefers): the root of the ratio of their mean squared rows.
 * What is stored is W' / c, so that the norm's epsilon weighs as much as it did. */
#include "convert.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static const struct ckpt_tensor *of_layer(struct checkpoint *ck, int64_t layer, const char *name)
{
    char canonical[64];
    snprintf(canonical, sizeof canonical, "dec.%lld.%s", (long long)layer, name);
    return ckpt_find(ck, canonical);
}

void knorm_note(const struct arch *a, enum merge_method method, char *out, size_t n)
{
    static const char *const notes[] = {
        [QK_NORM_NONE] = "",
        [QK_NORM_HEAD] = "the norm of the keys is kept and now acts on merged keys: they are not exactly the mean of the old ones",
        [QK_NORM_PER_HEAD] = "each merged head has the mean of its heads' key norms: an approximation",
        [QK_NORM_FULL] = "the weights of the key norm were moved into the keys before merging, the new norm has one constant per layer: an approximation"};
    static const char *const turned[] = {
        [QK_NORM_NONE] = "",
        [QK_NORM_HEAD] = "; under that norm keys are only turned, plane by plane, where its weights allow it",
        [QK_NORM_PER_HEAD] = "; under that norm keys are merged by their mean, values by the method",
        [QK_NORM_FULL] = "; under that norm keys are merged by their mean, values by the method"};
    int maps = method == MERGE_ALIGN || method == MERGE_SVD;
    snprintf(out, n, "%s%s%s%s%s", notes[a->qk_norm], maps ? turned[a->qk_norm] : "", *notes[a->qk_norm] && a->clip_qkv > 0 ? "; " : "",
             a->clip_qkv > 0 ? "keys and values are clipped after the merge instead of before it: the same only where nothing is clipped" : "",
             maps && a->clip_qkv > 0 ? " (queries too)" : "");
}

/* Sum of squares of the pooled rows (kept) or of the source's (size), all groups together. */
static enum code squares(const struct pool_job *job, int kept, double *sum)
{
    int64_t P = job->pooled;
    double *room = calloc((size_t)(3 * P), sizeof *room);
    if (!room)
        return fail(ERR_MEMORY, "out of memory for %lld groups", (long long)P);
    struct pool_error e = {.distance = room, .size = room + P, .kept = room + 2 * P, .G = P};
    enum code c = pool_tensor(job, &e);
    *sum = 0;
    for (int64_t g = 0; g < P; g++)
        *sum += kept ? e.kept[g] : e.size[g];
    free(room);
    return c;
}

/* c, when the rows of W are scaled by gamma. */
static enum code constant_of(const struct plan *plan, struct pool_job job, int64_t layer, const float *gamma, double *constant)
{
    double pooled, source;
    job.in = job.out = of_layer(job.source, layer, "attn.k.w");
    job.writer = NULL;
    job.row_scale = gamma;
    TRY(squares(&job, 1, &pooled));
    job.row_scale = NULL;
    TRY(squares(&job, 0, &source));
    int64_t G0 = plan->from.stack[STACK_DEC].block[layer].G;
    *constant = source > 0 && pooled > 0 ? sqrt(pooled / (double)job.pooled / (source / (double)G0)) : 1;
    return OK;
}

enum code knorm_scale(const struct plan *plan, const struct pool_job *job, int64_t layer, float **scale, double *constant)
{
    *scale = NULL;
    *constant = 1;
    if (plan->from.qk_norm != QK_NORM_FULL)
        return OK;
    const struct ckpt_tensor *t = of_layer(job->source, layer, "attn.k_norm.w");
    float *gamma = malloc((size_t)t->n[0] * sizeof *gamma);
    if (!gamma)
        return fail(ERR_MEMORY, "out of memory for %s", t->name);
    enum code c = ckpt_read(job->source, t, 0, t->n[0], gamma, DT_F32);
    if (c == OK && count_nonfinite(gamma, DT_F32, (size_t)t->n[0]))
        c = fail(ERR_INPUT, "%s: tensor %s has non-finite values; merging would spread them. Repair the source first", ckpt_path(job->source), t->source);
    if (c == OK)
        c = constant_of(plan, *job, layer, gamma, constant);
    for (int64_t i = 0; c == OK && i < t->n[0]; i++)
        gamma[i] = (float)((double)gamma[i] / *constant);
    if (c == OK)
        *scale = gamma;
    else
        free(gamma);
    return c;
}
