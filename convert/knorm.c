/* Merging heads whose keys pass through a norm. The norm is not linear, so the merged key is not the mean of the old keys, whatever is
 * done; training repairs the rest. For one RMSNorm over all heads (OLMo 2), k = gamma * (W x) / rms(W x), the naive merge shrinks W x,
 * the norm inflates it again, and gamma cannot be shared. So gamma moves into the rows of W before they are pooled, and the new norm
 * gets one constant c, for which k' = c (W' x) / rms(W' x) has the size of the mean of the old keys, W' x / rms(W x): c = rms(W' x) /
 * rms(W x), estimated from the weights alone (as if x had no direction it prefers): the root of the ratio of their mean squared rows. */
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

void knorm_note(const struct arch *a, char *out, size_t n)
{
    static const char *const notes[] = {
        [QK_NORM_NONE] = "",
        [QK_NORM_HEAD] = "the norm of the keys is kept and now acts on merged keys: they are not exactly the mean of the old ones",
        [QK_NORM_PER_HEAD] = "each merged head has the mean of its heads' key norms: an approximation",
        [QK_NORM_FULL] = "the weights of the key norm were moved into the keys before merging, and the new norm has one constant per layer, "
                         "estimated from the weights: an approximation"};
    snprintf(out, n, "%s%s%s", notes[a->qk_norm], *notes[a->qk_norm] && a->clip_qkv > 0 ? "; " : "",
             a->clip_qkv > 0 ? "keys and values are clipped after the merge instead of before it: the same only where nothing is clipped" : "");
}

enum code knorm_scale(const struct plan *plan, struct checkpoint *source, int64_t layer, float **scale)
{
    *scale = NULL;
    if (plan->from.qk_norm != QK_NORM_FULL || plan->pooled[layer] == plan->from.stack[STACK_DEC].block[layer].G)
        return OK;
    const struct ckpt_tensor *t = of_layer(source, layer, "attn.k_norm.w");
    *scale = malloc((size_t)t->n[0] * sizeof **scale);
    if (!*scale)
        return fail(ERR_MEMORY, "out of memory for %s", t->name);
    enum code c = ckpt_read(source, t, 0, t->n[0], *scale, DT_F32);
    if (c == OK && count_nonfinite(*scale, DT_F32, (size_t)t->n[0]))
        c = fail(ERR_INPUT, "%s: tensor %s has non-finite values; merging would spread them. Repair the source first", ckpt_path(source), t->source);
    if (c != OK) {
        free(*scale);
        *scale = NULL;
    }
    return c;
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

enum code knorm_constant(const struct plan *plan, const struct pool_job *keys, double *constant)
{
    struct pool_job job = *keys;
    double pooled, source;
    job.writer = NULL;
    TRY(squares(&job, 1, &pooled));
    job.row_scale = NULL;
    TRY(squares(&job, 0, &source));
    int64_t G0 = plan->from.stack[STACK_DEC].block[keys->in->layer].G;
    *constant = source > 0 ? sqrt(pooled / (double)keys->pooled / (source / (double)G0)) : 1;
    return OK;
}
