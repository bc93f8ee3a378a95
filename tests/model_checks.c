/* See model_checks.h. */
#include "model_checks.h"

#include <math.h>

double largest_error(const float *a, const double *b, int64_t n)
{
    double worst = 0.0;
    for (int64_t i = 0; i < n; i++) {
        double e = fabs((double)a[i] - b[i]);
        worst = worse_error(worst, e);
    }
    return worst;
}

void check_score(struct arch *a, const char *what, int train)
{
    enum { N = TINY_B * TINY_T };
    struct tiny t;
    struct model_options o = tiny_options(train);
    float logp[N];
    double want[N], loss = 0.0;
    int64_t count = 0;
    tiny_open(&t, a, &o);
    fill_nan(logp, N);
    double want_loss = tiny_reference_loss(&t, want);
    assert_ok(model_score(t.m, &t.batch, view_2d(logp, DT_F32, TINY_B, TINY_T), &loss, &count));
    print_message("%-28s largest error of ln p %.2g\n", what, largest_error(logp, want, N));
    assert_f32(what, logp, want, N, 0.0, 1e-5);
    assert_int_equal(count, t.valid);
    assert_true(fabs(loss - want_loss) <= 1e-4);
    assert_ok(model_score(t.m, &t.batch, view_none(), &loss, &count));
    assert_int_equal(count, 2 * t.valid);
    tiny_close(&t);
}

void gradients(struct tiny *t, double *loss)
{
    struct model_flat f = model_flat(t->m);
    float inv = 1.0f / (float)t->valid;
    int64_t count = 0;
    *loss = 0.0;
    memset(f.grads, 0, (size_t)f.n * sizeof *f.grads);
    assert_ok(model_forward_backward(t->m, &t->batch, &inv, loss, &count));
    assert_int_equal(count, t->valid);
}

/* At most `most` elements of a tensor, spread over it. */
static void check_tensor(const struct tiny *t, struct reference_tensor *r, int64_t most)
{
    const struct model_param *p = model_param_find(t->m, r->name);
    const float *grad = p->grad.p;
    double *want = calloc((size_t)most, sizeof *want), scale = 0.0;
    float *got = calloc((size_t)most, sizeof *got);
    int64_t n = r->n < most ? r->n : most;
    for (int64_t i = 0; i < n; i++) {
        int64_t at = i * r->n / n;
        double kept = r->p[at], h = 1e-6; /* narrow: ReLU and clipping have kinks */
        r->p[at] = kept + h;
        double up = tiny_reference_loss(t, NULL);
        r->p[at] = kept - h;
        double down = tiny_reference_loss(t, NULL);
        r->p[at] = kept;
        want[i] = (up - down) / (2.0 * h) / (double)t->valid;
        got[i] = grad[at];
        scale = fmax(scale, fabs(want[i]));
    }
    assert_f32(r->name, got, want, n, 1e-4, 1e-5 * fmax(scale, 0.05));
    free(want);
    free(got);
}

void check_gradients(struct arch *a, int recompute, int64_t most)
{
    struct tiny t;
    struct model_options o = tiny_options(1);
    double loss;
    o.recompute = recompute;
    tiny_open(&t, a, &o);
    gradients(&t, &loss);
    double want = tiny_reference_loss(&t, NULL);
    assert_true(fabs(loss - want) <= 1e-4);
    for (int i = 0; i < t.ref.count; i++)
        check_tensor(&t, &t.ref.tensor[i], most);
    tiny_close(&t);
}

struct model_options cached_options(enum dtype weights, enum dtype cache)
{
    struct model_options o = tiny_options(0);
    o.dtype = weights;
    o.cache_B = TINY_B;
    o.cache_S = TINY_T + 5;
    o.cache_dtype = cache;
    return o;
}

void check_decode(struct arch *a, const char *what, const struct model_options *o, int64_t first, int64_t step, double tolerance)
{
    struct tiny t;
    tiny_open(&t, a, o);
    double *want = calloc(TINY_B * TINY_T * TINY_V, sizeof *want);
    float *logits = calloc(TINY_B * TINY_V, sizeof *logits);
    int32_t ids[TINY_B * TINY_T];
    reference_logits(&t.ref, TINY_B, TINY_T, t.batch.ids, NULL, NULL, want);
    for (int64_t at = 0, n = first > 0 ? first : step; at < TINY_T; at += n, n = step) {
        n = n < TINY_T - at ? n : TINY_T - at;
        for (int64_t b = 0; b < TINY_B; b++)
            memcpy(ids + b * n, t.batch.ids + b * TINY_T + at, (size_t)n * sizeof *ids);
        fill_nan(logits, TINY_B * TINY_V);
        if (at == 0 && first > 0)
            assert_ok(model_prefill(t.m, ids, TINY_B, n, logits));
        else
            assert_ok(model_decode(t.m, ids, TINY_B, n, logits));
        for (int64_t b = 0; b < TINY_B; b++) {
            assert_int_equal(model_cache_length(t.m, b), at + n);
            assert_f32(what, logits + b * TINY_V, want + (b * TINY_T + at + n - 1) * TINY_V, TINY_V, tolerance, tolerance);
        }
    }
    free(want);
    free(logits);
    tiny_close(&t);
}
