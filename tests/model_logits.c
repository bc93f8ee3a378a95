#include "model_logits.h"

#include <math.h>

#include "harness.h"
#include "model/model.h"

static enum code compute(struct checkpoint *ck, const struct backend *be, struct device *dev, int64_t T, float *logits)
{
    const struct arch *a = ckpt_arch(ck);
    struct model_options o = {.dtype = DT_F32, .B = 1, .T = T, .cache_B = 1, .cache_S = T, .cache_dtype = DT_F32};
    struct model *m = NULL;
    int32_t ids[256];
    CHECK(T <= 256);
    for (int64_t t = 0; t < T; t++)
        ids[t] = (int32_t)random_int(11, (uint64_t)t, 0, a->V - 1);
    enum code c = model_open(&m, a, be, dev, &o);
    if (c == OK)
        c = model_load(m, ck);
    for (int64_t i = 0; c == OK && i < 2; i++) {
        model_cache_reset(m);
        c = model_prefill(m, ids, 1, i ? T : T > 6 ? T - 5 : 1, logits + i * a->V);
    }
    model_close(m);
    return c;
}

float *model_logits(struct checkpoint *ck, int64_t T)
{
    const struct backend *be;
    struct device *dev;
    struct device_options device = {0};
    int64_t n = 2 * ckpt_arch(ck)->V;
    float *logits = malloc((size_t)n * sizeof *logits);
    assert_non_null(logits);
    fill_nan(logits, n);
    assert_ok(backend_find("cpu", &be));
    assert_ok(be->device_open(&dev, &device));
    enum code c = compute(ck, be, dev, T, logits);
    be->device_close(dev);
    if (c == OK)
        return logits;
    free(logits);
    return NULL;
}

double logits_distance(const float *a, const float *b, int64_t n)
{
    double worst = 0, scale = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= HUGE_VAL) || !isfinite(a[i]))
            return HUGE_VAL;
        worst = fmax(worst, d);
        scale = fmax(scale, fabs((double)a[i]));
    }
    return scale > 0 ? worst / scale : HUGE_VAL;
}
