/* See attention_device_case.h; the table of cases is attention_device_table.c. */
#include "attention_device_case.h"

#include <math.h>

/* ---- one case: where its tensors lie ------------------------------------------------------------------------------ */

enum { Q, K, V, O, TENSORS };

/* Tensor i is heads [first, first + heads) of buffer `buffer`, whose rows are `width` elements per head. */
struct layout {
    int buffers;
    int64_t B, D, width, buffer_rows[TENSORS], buffer_heads[TENSORS];
    struct {
        int buffer;
        int64_t first, heads;
    } of[TENSORS];
};

static struct layout layout_make(const struct attention_device_case *c)
{
    struct layout l = {.B = c->B, .D = c->D, .width = c->strided ? c->D + 8 : c->D};
    const int64_t heads[TENSORS] = {c->H, c->G, c->G, c->H}, rows[TENSORS] = {c->T, c->S, c->S, c->T};
    for (int i = 0; i < TENSORS; i++) {
        const int joins = c->strided && (i == V || (i == K && c->T == c->S));
        const int j = joins ? l.buffers - 1 : l.buffers++;
        l.of[i].buffer = j;
        l.of[i].first = l.buffer_heads[j];
        l.of[i].heads = heads[i];
        l.buffer_heads[j] += heads[i];
        l.buffer_rows[j] = rows[i];
    }
    for (int j = 0; j < l.buffers; j++)
        l.buffer_heads[j] += c->strided;
    return l;
}

static int64_t tensor_count(const struct layout *l, int i)
{
    return l->B * l->buffer_rows[l->of[i].buffer] * l->of[i].heads * l->D;
}
static int64_t buffer_count(const struct layout *l, int j)
{
    return l->B * l->buffer_rows[j] * l->buffer_heads[j] * l->width;
}

/* Index in its buffer of the n-th element of tensor i. */
static int64_t place_of(const struct layout *l, int i, int64_t n)
{
    const int64_t d = n % l->D, h = n / l->D % l->of[i].heads, row = n / l->D / l->of[i].heads;
    return (row * l->buffer_heads[l->of[i].buffer] + l->of[i].first + h) * l->width + d;
}

static struct view tensor_view(const struct layout *l, int i, const struct view *buffer)
{
    return view_slice(view_slice(buffer[l->of[i].buffer], 2, l->of[i].first, l->of[i].heads), 3, 0, l->D);
}

static void *room(int64_t n, size_t size)
{
    void *p = calloc((size_t)n + 1, size);
    assert_non_null(p);
    return p;
}

/* Uploads the four tensors, gaps NaN; x[i] comes back rounded. */
static void layout_upload(const struct layout *l, struct view *buffer, double *const *x, enum dtype type)
{
    for (int j = 0; j < l->buffers; j++) {
        double *whole = room(buffer_count(l, j), sizeof(double));
        for (int64_t n = 0; n < buffer_count(l, j); n++)
            whole[n] = (double)NAN;
        for (int i = 0; i < TENSORS; i++)
            for (int64_t n = 0; l->of[i].buffer == j && n < tensor_count(l, i); n++)
                whole[place_of(l, i, n)] = x[i][n];
        buffer[j] = case_upload(whole, type, 4, (int64_t[]){l->B, l->buffer_rows[j], l->buffer_heads[j], l->width});
        for (int i = 0; i < TENSORS; i++)
            for (int64_t n = 0; l->of[i].buffer == j && n < tensor_count(l, i); n++)
                x[i][n] = whole[place_of(l, i, n)];
        free(whole);
    }
}

static void layout_outputs(const struct layout *l, struct view *buffer, enum dtype type)
{
    for (int j = 0; j < l->buffers; j++)
        buffer[j] = case_output(type, 4, (int64_t[]){l->B, l->buffer_rows[j], l->buffer_heads[j], l->width});
}

/* Tensors [from, to) of the buffers; what no tensor covers must still be NaN. */
static void layout_download(const struct layout *l, const struct view *buffer, double *const *x, int from, int to)
{
    for (int j = l->of[from].buffer; j <= l->of[to - 1].buffer; j++) {
        double *whole = room(buffer_count(l, j), sizeof(double));
        case_download(whole, buffer[j]);
        for (int i = from; i < to; i++)
            for (int64_t n = 0; l->of[i].buffer == j && n < tensor_count(l, i); n++) {
                x[i][n] = whole[place_of(l, i, n)];
                whole[place_of(l, i, n)] = (double)NAN;
            }
        for (int64_t n = 0; n < buffer_count(l, j); n++)
            if (!isnan(whole[n])) {
                print_error("%g was written between the heads, at element %lld of buffer %d\n", whole[n], (long long)n, j);
                assert_true(isnan(whole[n]));
            }
        free(whole);
    }
}

/* ---- the plain computation in low precision --------------------------------------------------------------------- */

static float round_to(enum dtype type, float x)
{
    return type == DT_BF16 ? f32_from_bf16(bf16_from_f32(x)) : x;
}

static float dot_f32(const double *x, const double *y, int64_t n)
{
    float sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += (float)x[i] * (float)y[i];
    return sum;
}

/* Everything of one query row: P (f32), O, dq; adds to dk and dv. dk NULL: the forward alone. */
static void plain_row(const struct ref_attention *a, enum dtype type, double *const *x, double *const *y, float *dk, float *dv, float *p, int64_t b,
                      int64_t t, int64_t h)
{
    const int64_t D = a->D, g = h / (a->H / a->G), q_at = ((b * a->T + t) * a->H + h) * D;
    float top = -HUGE_VALF, sum = 0, delta = 0;
    for (int64_t s = 0; s < a->S; s++) {
        const int64_t k_at = ((b * a->S + s) * a->G + g) * D;
        p[s] = ref_attention_visible(a, b, t, s) ? (float)a->scale * dot_f32(x[Q] + q_at, x[K] + k_at, D) : -HUGE_VALF;
        if (a->slopes != NULL)
            p[s] += a->slopes[h] * (float)(s - t - a->q_offset);
        top = fmaxf(top, p[s]);
    }
    for (int64_t s = 0; s < a->S; s++)
        sum += p[s] = p[s] == -HUGE_VALF ? 0 : expf(p[s] - top);
    for (int64_t s = 0; s < a->S && sum > 0; s++)
        p[s] /= sum;
    for (int64_t d = 0; d < D; d++) {
        float o = 0;
        for (int64_t s = 0; s < a->S; s++)
            o += round_to(type, p[s]) * (float)x[V][((b * a->S + s) * a->G + g) * D + d];
        o = round_to(type, o);
        y[O][q_at + d] = (double)o;
        delta += o * (float)x[O][q_at + d];
    }
    if (dk == NULL)
        return;
    float *dq = room(D, sizeof(float));
    for (int64_t s = 0; s < a->S; s++) {
        const int64_t k_at = ((b * a->S + s) * a->G + g) * D;
        if (p[s] == 0)
            continue;
        const float ds = round_to(type, p[s] * (dot_f32(x[O] + q_at, x[V] + k_at, D) - delta)), low = round_to(type, p[s]);
        for (int64_t d = 0; d < D; d++) {
            dv[k_at + d] += low * (float)x[O][q_at + d];
            dk[k_at + d] += ds * (float)x[Q][q_at + d];
            dq[d] += ds * (float)x[K][k_at + d];
        }
    }
    for (int64_t d = 0; d < D; d++)
        y[Q][q_at + d] = (double)round_to(type, (float)a->scale * dq[d]);
    free(dq);
}

/* x: q, k, v, dout. y: dq, dk, dv (with_bwd) and o. */
static void plain_attention(const struct ref_attention *a, enum dtype type, double *const *x, double *const *y, int with_bwd)
{
    const int64_t n = a->B * a->S * a->G * a->D;
    float *p = room(a->S, sizeof(float)), *dk = room(n, sizeof(float)), *dv = room(n, sizeof(float));
    for (int64_t b = 0; b < a->B; b++)
        for (int64_t t = 0; t < a->T; t++)
            for (int64_t h = 0; h < a->H; h++)
                plain_row(a, type, x, y, with_bwd ? dk : NULL, dv, p, b, t, h);
    for (int64_t i = 0; with_bwd && i < n; i++) {
        y[K][i] = (double)round_to(type, (float)a->scale * dk[i]);
        y[V][i] = (double)round_to(type, dv[i]);
    }
    free(p), free(dk), free(dv);
}

/* ---- the check -------------------------------------------------------------------------------------------------- */

struct run {
    struct layout layout;
    struct ref_attention a;
    struct attention_args args;
    double *x[TENSORS], *truth[TENSORS], *plain[TENSORS], *got[TENSORS], *lse;
    int32_t *seg_q, *seg_k;
    float slopes[32];
    struct view in[TENSORS], o_buffer[TENSORS], lse_view;
    char title[160];
    enum dtype type;
};

/* Position at of a sequence: documents are numbered from 5. */
static int32_t document_of(const struct attention_device_case *c, int at)
{
    const int rest = c->S - c->boundary;
    return at < c->boundary ? 5 : 6 + (int32_t)((int64_t)(at - c->boundary) * (c->documents - 1) / (rest > 0 ? rest : 1));
}

static void run_open(struct run *r, const struct attention_device_case *c, enum dtype type, int deterministic)
{
    memset(r, 0, sizeof *r);
    snprintf(r->title, sizeof r->title, "%s, B=%d T=%d S=%d H=%d G=%d D=%d %s%s", c->name, c->B, c->T, c->S, c->H, c->G, c->D, dtype_name(type),
             deterministic ? " deterministic" : "");
    r->type = type;
    r->layout = layout_make(c);
    for (int i = 0; i < TENSORS; i++) {
        const int64_t n = tensor_count(&r->layout, i);
        double **const arrays[] = {&r->x[i], &r->truth[i], &r->plain[i], &r->got[i]};
        for (size_t k = 0; k < COUNT_OF(arrays); k++)
            *arrays[k] = room(n, sizeof(double));
        fill_random_f64(r->x[i], n, (uint64_t)(71 + i));
        for (int64_t j = 0; j < n && c->sharp && i == K; j++)
            r->x[K][j] *= 2 + 2 * (double)(j / (c->G * c->D) % c->S) / c->S;
    }
    const double scale = 1.25 / sqrt(c->D);
    r->args = (struct attention_args){.mask = attention_mask_causal(), .scale = (float)scale, .deterministic = deterministic};
    r->args.mask.causal = c->causal;
    r->args.mask.q_offset = c->q_offset;
    r->args.mask.window_left = c->window_left;
    r->args.mask.window_right = c->window_right;
    if (c->documents > 0) {
        r->seg_q = room(c->B * c->T, sizeof(int32_t)), r->seg_k = room(c->B * c->S, sizeof(int32_t));
        for (int b = 0; b < c->B; b++) {
            for (int t = 0; t < c->T; t++)
                r->seg_q[b * c->T + t] = document_of(c, t + c->q_offset + 3 * b);
            for (int s = 0; s < c->S; s++)
                r->seg_k[b * c->S + s] = document_of(c, s + 3 * b);
        }
        r->args.mask.seg_q = case_upload_i32(r->seg_q, 2, (int64_t[]){c->B, c->T});
        r->args.mask.seg_k = case_upload_i32(r->seg_k, 2, (int64_t[]){c->B, c->S});
    }
    if (c->alibi) {
        double *slopes = room(c->H, sizeof(double));
        for (int h = 0; h < c->H; h++)
            slopes[h] = c->alibi == 1 ? exp2(-8.0 * (h + 1) / c->H) : (h % 2 ? -0.05 : 0.15) * (h + 1);
        r->args.mask.alibi_slopes = case_upload(slopes, DT_F32, 1, (int64_t[]){c->H});
        for (int h = 0; h < c->H; h++)
            r->slopes[h] = (float)slopes[h];
        free(slopes);
    }
    layout_upload(&r->layout, r->in, r->x, type);
    r->a = (struct ref_attention){.B = c->B,
                                  .T = c->T,
                                  .S = c->S,
                                  .H = c->H,
                                  .G = c->G,
                                  .D = c->D,
                                  .scale = (double)(float)scale,
                                  .causal = c->causal,
                                  .q_offset = c->q_offset,
                                  .window_left = c->window_left,
                                  .window_right = c->window_right,
                                  .seg_q = r->seg_q,
                                  .seg_k = r->seg_k,
                                  .slopes = c->alibi ? r->slopes : NULL};
    r->lse = room((int64_t)c->B * c->H * c->T, sizeof(double));
    ref_attention_fwd(&r->a, r->truth[O], r->lse, r->x[Q], r->x[K], r->x[V]);
}

static void run_close(struct run *r)
{
    for (int i = 0; i < TENSORS; i++)
        free(r->x[i]), free(r->truth[i]), free(r->plain[i]), free(r->got[i]);
    free(r->lse), free(r->seg_q), free(r->seg_k);
    case_free();
}

static void run_compare(const struct run *r, int i, const char *what)
{
    char name[200];
    const int64_t n = tensor_count(&r->layout, i);
    double top = 0;
    for (int64_t j = 0; j < n; j++)
        top = fmax(top, fabs(r->truth[i][j]));
    snprintf(name, sizeof name, "%s: %s", r->title, what);
    /* The floor matters where the plain computation is exact by luck (a row of one key). */
    case_expect_2x(name, r->got[i], r->truth[i], r->plain[i], (size_t)n, r->type == DT_BF16 ? 1e-3 * top + 1e-4 : 4e-6 * top + 1e-5);
}

/* The device's lse: -inf exactly where a row sees nothing. */
static void run_compare_lse(const struct run *r)
{
    const int64_t n = r->a.B * r->a.H * r->a.T;
    double *got = room(n, sizeof(double)), *want = room(n, sizeof(double));
    char name[200];
    case_download(got, r->lse_view);
    for (int64_t i = 0; i < n; i++) {
        want[i] = r->lse[i];
        if (want[i] == -HUGE_VAL && got[i] == -HUGE_VAL)
            want[i] = got[i] = 0;
    }
    snprintf(name, sizeof name, "%s: lse", r->title);
    case_expect_near(name, got, want, (size_t)n, 2e-5, 3e-6);
    free(got), free(want);
}

static struct view in_view(const struct run *r, int i)
{
    return tensor_view(&r->layout, i, r->in);
}

static void run_fwd(struct run *r)
{
    const struct backend *be = case_backend();
    const struct ref_attention *a = &r->a;
    layout_outputs(&r->layout, r->o_buffer, r->type);
    r->lse_view = case_output(DT_F32, 3, (int64_t[]){a->B, a->H, a->T});
    void *scratch = case_bytes(be->attention_scratch(case_device(), a->B, a->T, a->S, a->H, a->G, a->D, 0));
    assert_ok(be->attention_fwd(case_device(), tensor_view(&r->layout, O, r->o_buffer), r->lse_view, in_view(r, Q), in_view(r, K), in_view(r, V),
                                &r->args, scratch));
    assert_ok(be->device_sync(case_device()));
}

/* What the backward reads when the forward was not run. */
static void run_reference_fwd(struct run *r)
{
    const struct ref_attention *a = &r->a;
    double *y[TENSORS];
    for (int i = 0; i < TENSORS; i++) {
        y[i] = room(tensor_count(&r->layout, i), sizeof(double));
        if (i == O)
            memcpy(y[i], r->truth[i], (size_t)tensor_count(&r->layout, i) * sizeof(double));
    }
    layout_upload(&r->layout, r->o_buffer, y, r->type);
    for (int i = 0; i < TENSORS; i++)
        free(y[i]);
    double *lse = room(a->B * a->H * a->T, sizeof(double));
    memcpy(lse, r->lse, (size_t)(a->B * a->H * a->T) * sizeof(double));
    r->lse_view = case_upload(lse, DT_F32, 3, (int64_t[]){a->B, a->H, a->T});
    free(lse);
}

/* Gradients into fresh buffers. */
static void run_bwd(struct run *r, struct view *d_buffer)
{
    const struct backend *be = case_backend();
    const struct ref_attention *a = &r->a;
    layout_outputs(&r->layout, d_buffer, r->type);
    void *scratch = case_bytes(be->attention_scratch(case_device(), a->B, a->T, a->S, a->H, a->G, a->D, 1));
    assert_ok(be->attention_bwd(case_device(), tensor_view(&r->layout, Q, d_buffer), tensor_view(&r->layout, K, d_buffer),
                                tensor_view(&r->layout, V, d_buffer), in_view(r, O), tensor_view(&r->layout, O, r->o_buffer), r->lse_view,
                                in_view(r, Q), in_view(r, K), in_view(r, V), &r->args, scratch));
    assert_ok(be->device_sync(case_device()));
}

void attention_device_check(const struct attention_device_case *c, enum dtype type, int deterministic, int passes)
{
    struct run r;
    struct view d_buffer[TENSORS];
    run_open(&r, c, type, deterministic);
    plain_attention(&r.a, type, r.x, r.plain, (passes & ATTENTION_BWD) != 0);
    if (passes & ATTENTION_FWD) {
        run_fwd(&r);
        layout_download(&r.layout, r.o_buffer, r.got, O, O + 1);
        run_compare(&r, O, "o");
        run_compare_lse(&r);
    } else
        run_reference_fwd(&r);
    if (passes & ATTENTION_BWD) {
        ref_attention_bwd(&r.a, r.truth[Q], r.truth[K], r.truth[V], r.x[O], r.x[Q], r.x[K], r.x[V]);
        run_bwd(&r, d_buffer);
        layout_download(&r.layout, d_buffer, r.got, Q, V + 1);
        run_compare(&r, Q, "dq");
        run_compare(&r, K, "dk");
        run_compare(&r, V, "dv");
    }
    run_close(&r);
    assert_int_equal(case_faults(), 0);
}

void attention_device_check_all(enum dtype type, int deterministic, int passes, int D_min, int D_max)
{
    int n;
    const struct attention_device_case *c = attention_device_cases(&n);
    for (int i = 0; i < n; i++)
        if (c[i].D >= D_min && c[i].D <= D_max)
            attention_device_check(&c[i], type, deterministic, passes);
}

void attention_device_check_repeat(const struct attention_device_case *c, enum dtype type)
{
    struct run r;
    struct view d_buffer[2][TENSORS];
    run_open(&r, c, type, 1);
    run_fwd(&r);
    for (int k = 0; k < 2; k++)
        run_bwd(&r, d_buffer[k]);
    layout_download(&r.layout, d_buffer[0], r.got, Q, V + 1);
    layout_download(&r.layout, d_buffer[1], r.plain, Q, V + 1);
    for (int i = Q; i <= V; i++)
        assert_memory_equal(r.got[i], r.plain[i], (size_t)tensor_count(&r.layout, i) * sizeof(double));
    run_close(&r);
    assert_int_equal(case_faults(), 0);
}
