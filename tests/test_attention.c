/* Attention of the CPU against the double oracle: shapes, masks, strides, groups, bits. The program runs itself again for
 * every instruction set below the machine's best, with GQAKIT_ISA. */
#include <math.h>
#include <unistd.h>

#include "harness.h"
#include "kernels/kernels.h"
#include "reference/attention.h"

#define GUARD 8 /* floats after every row, which nobody may write */

static struct device *device; /* of all allowed CPUs, unless a test opens another */

struct problem {
    struct ref_attention a;
    int strided; /* q, k, v are slices of rows that also hold GUARD floats; else each is contiguous */
    float *rows_q, *rows_kv, *drows_q, *drows_kv, *o_rows, *dout_rows, *lse;
    double *q, *k, *v, *dout;                  /* the same numbers */
    double *o, *lse_want, *dq, *dk, *dv;       /* what the oracle says */
    struct view vq, vk, vv, vdq, vdk, vdv, vo, vdout, vlse;
    struct attention_args args;
    void *scratch;
    size_t scratch_bytes;
};

static void *alloc(int64_t n, size_t size)
{
    void *p = calloc((size_t)n + 1, size);
    assert_non_null(p);
    return p;
}

/* [B,T,heads,D] view into rows of `row` floats, starting at float `first` of each. */
static struct view view_rows(float *rows, int64_t B, int64_t T, int64_t heads, int64_t D, int64_t row, int64_t first)
{
    return (struct view){.p = rows + first, .dtype = DT_F32, .nd = 4, .n = {B, T, heads, D}, .s = {T * row, row, D, 1}};
}

static void view_put(struct view x, const double *from)
{
    for (int64_t b = 0; b < x.n[0]; b++)
        for (int64_t t = 0; t < x.n[1]; t++)
            for (int64_t h = 0; h < x.n[2]; h++)
                for (int64_t d = 0; d < x.n[3]; d++)
                    view_f32(x)[b * x.s[0] + t * x.s[1] + h * x.s[2] + d] = (float)*from++;
}

static void view_get(float *to, struct view x)
{
    for (int64_t b = 0; b < x.n[0]; b++)
        for (int64_t t = 0; t < x.n[1]; t++)
            for (int64_t h = 0; h < x.n[2]; h++)
                for (int64_t d = 0; d < x.n[3]; d++)
                    *to++ = view_f32(x)[b * x.s[0] + t * x.s[1] + h * x.s[2] + d];
}

/* Random numbers that a float holds exactly. */
static double *random_floats(int64_t n, uint64_t seed)
{
    float *f = alloc(n, sizeof *f);
    double *x = alloc(n, sizeof *x);
    fill_random(f, n, seed);
    for (int64_t i = 0; i < n; i++)
        x[i] = (double)f[i];
    free(f);
    return x;
}

static void poison_outputs(struct problem *p)
{
    const struct ref_attention *a = &p->a;
    fill_nan(p->drows_q, a->B * a->T * (p->vq.s[1]));
    fill_nan(p->drows_kv, a->B * a->S * (p->vk.s[1]));
    if (p->drows_kv != p->drows_q && !p->strided)
        fill_nan(p->vdv.p, a->B * a->S * a->G * a->D);
    fill_nan(p->o_rows, a->B * a->T * (a->H * a->D + GUARD));
    fill_nan(p->lse, a->B * a->H * a->T);
    memset(p->scratch, 0xff, p->scratch_bytes + 64);
}

static void problem_open(struct problem *p, const struct ref_attention *a, int strided)
{
    *p = (struct problem){.a = *a, .strided = strided};
    int64_t nq = a->B * a->T * a->H * a->D, nk = a->B * a->S * a->G * a->D, ns = a->B * a->H * a->T, hd = a->H * a->D, gd = a->G * a->D;
    p->q = random_floats(nq, 1);
    p->k = random_floats(nk, 2);
    p->v = random_floats(nk, 3);
    p->dout = random_floats(nq, 4);
    p->o = alloc(nq, sizeof(double));
    p->lse_want = alloc(ns, sizeof(double));
    p->dq = alloc(nq, sizeof(double));
    p->dk = alloc(nk, sizeof(double));
    p->dv = alloc(nk, sizeof(double));
    ref_attention_fwd(a, p->o, p->lse_want, p->q, p->k, p->v);
    ref_attention_bwd(a, p->dq, p->dk, p->dv, p->dout, p->q, p->k, p->v);
    p->lse = alloc(ns, sizeof(float));
    p->o_rows = alloc(a->B * a->T * (hd + GUARD), sizeof(float));
    p->dout_rows = alloc(a->B * a->T * (hd + GUARD), sizeof(float));
    p->vo = view_rows(p->o_rows, a->B, a->T, a->H, a->D, hd + GUARD, 0);
    p->vdout = view_rows(p->dout_rows, a->B, a->T, a->H, a->D, hd + GUARD, 0);
    p->vlse = view_3d(p->lse, DT_F32, a->B, a->H, a->T);
    if (strided && a->T == a->S) { /* one [N, (H+2G)D] buffer, as the model has it */
        int64_t row = hd + 2 * gd + GUARD;
        p->rows_q = p->rows_kv = alloc(a->B * a->T * row, sizeof(float));
        p->drows_q = p->drows_kv = alloc(a->B * a->T * row, sizeof(float));
        p->vq = view_rows(p->rows_q, a->B, a->T, a->H, a->D, row, 0);
        p->vk = view_rows(p->rows_q, a->B, a->T, a->G, a->D, row, hd);
        p->vv = view_rows(p->rows_q, a->B, a->T, a->G, a->D, row, hd + gd);
        p->vdq = view_rows(p->drows_q, a->B, a->T, a->H, a->D, row, 0);
        p->vdk = view_rows(p->drows_q, a->B, a->T, a->G, a->D, row, hd);
        p->vdv = view_rows(p->drows_q, a->B, a->T, a->G, a->D, row, hd + gd);
    } else {
        p->strided = 0;
        p->rows_q = alloc(nq, sizeof(float));
        p->drows_q = alloc(nq, sizeof(float));
        p->rows_kv = alloc(2 * nk, sizeof(float));
        p->drows_kv = alloc(2 * nk, sizeof(float));
        p->vq = view_rows(p->rows_q, a->B, a->T, a->H, a->D, hd, 0);
        p->vk = view_rows(p->rows_kv, a->B, a->S, a->G, a->D, gd, 0);
        p->vv = view_rows(p->rows_kv + nk, a->B, a->S, a->G, a->D, gd, 0);
        p->vdq = view_rows(p->drows_q, a->B, a->T, a->H, a->D, hd, 0);
        p->vdk = view_rows(p->drows_kv, a->B, a->S, a->G, a->D, gd, 0);
        p->vdv = view_rows(p->drows_kv + nk, a->B, a->S, a->G, a->D, gd, 0);
    }
    view_put(p->vq, p->q);
    view_put(p->vk, p->k);
    view_put(p->vv, p->v);
    view_put(p->vdout, p->dout);
    p->args = (struct attention_args){.mask = attention_mask_causal(), .scale = (float)a->scale, .deterministic = 1};
    p->args.mask.causal = a->causal;
    p->args.mask.q_offset = a->q_offset;
    p->args.mask.window_left = a->window_left;
    p->args.mask.window_right = a->window_right;
    if (a->seg_q != NULL) {
        p->args.mask.seg_q = view_2d((void *)(uintptr_t)a->seg_q, DT_I32, a->B, a->T);
        p->args.mask.seg_k = view_2d((void *)(uintptr_t)a->seg_k, DT_I32, a->B, a->S);
    }
    p->scratch_bytes = (cpu_attention_scratch(device, a->B, a->T, a->S, a->H, a->G, a->D, 1) + 63) / 64 * 64;
    p->scratch = aligned_alloc(64, p->scratch_bytes + 64);
    assert_non_null(p->scratch);
    poison_outputs(p);
}

static void problem_close(struct problem *p)
{
    void *all[] = {p->q, p->k, p->v, p->dout, p->o, p->lse_want, p->dq, p->dk, p->dv, p->lse, p->o_rows, p->dout_rows, p->rows_q, p->drows_q,
                   p->rows_kv == p->rows_q ? NULL : p->rows_kv, p->drows_kv == p->drows_q ? NULL : p->drows_kv, p->scratch};
    for (size_t i = 0; i < COUNT_OF(all); i++)
        free(all[i]);
}

static void run_fwd(struct problem *p)
{
    assert_ok(cpu_attention_fwd(device, p->vo, p->vlse, p->vq, p->vk, p->vv, &p->args, p->scratch));
}

static void run_bwd(struct problem *p)
{
    assert_ok(cpu_attention_bwd(device, p->vdq, p->vdk, p->vdv, p->vdout, p->vo, p->vlse, p->vq, p->vk, p->vv, &p->args, p->scratch));
}

static double largest(const double *x, int64_t n)
{
    double top = 0;
    for (int64_t i = 0; i < n; i++)
        top = fmax(top, fabs(x[i]));
    return top;
}

/* Against the oracle, to a few float roundings of the largest element (of the inputs, which are about 1, where all cancels). */
static int same_view(const char *name, struct view got, const double *want)
{
    int64_t n = view_count(got);
    float *flat = alloc(n, sizeof *flat);
    view_get(flat, got);
    int same = compare_f32(name, flat, want, n, 4e-6, 4e-6 * fmax(1, largest(want, n)));
    free(flat);
    return same;
}

static int same_lse(const struct problem *p)
{
    int64_t n = p->a.B * p->a.H * p->a.T;
    float *got = alloc(n, sizeof *got);
    double *want = alloc(n, sizeof *want);
    for (int64_t i = 0; i < n; i++) {
        int none = p->lse_want[i] == -HUGE_VAL && p->lse[i] == -INFINITY; /* a row that sees nothing */
        got[i] = none ? 0 : p->lse[i];
        want[i] = none ? 0 : p->lse_want[i];
    }
    int same = compare_f32("lse", got, want, n, 1e-6, 2e-6);
    free(got);
    free(want);
    return same;
}

/* Nothing outside the views was written: the guards of the rows, and what follows the scratch. */
static int guards_whole(const struct problem *p)
{
    int whole = 1;
    for (int64_t n = 0; n < p->a.B * p->a.T; n++)
        for (int i = 0; i < GUARD; i++) {
            whole &= isnan(p->o_rows[n * p->vo.s[1] + p->a.H * p->a.D + i]) != 0;
            if (p->strided)
                whole &= isnan(p->drows_q[(n + 1) * p->vdq.s[1] - 1 - i]) != 0;
        }
    for (size_t i = 0; i < 64; i++)
        whole &= ((const unsigned char *)p->scratch)[p->scratch_bytes + i] == 0xff;
    return whole;
}

static void check_case(const struct ref_attention *a, int strided)
{
    struct problem p;
    problem_open(&p, a, strided);
    run_fwd(&p);
    int good = same_view("o", p.vo, p.o) && same_lse(&p);
    memset(p.scratch, 0xff, p.scratch_bytes + 64); /* the backward must not lean on what the forward left */
    run_bwd(&p);
    good = good && same_view("dq", p.vdq, p.dq) && same_view("dk", p.vdk, p.dk) && same_view("dv", p.vdv, p.dv) && guards_whole(&p);
    if (!good)
        print_error("B %lld T %lld S %lld H %lld G %lld D %lld causal %d offset %lld window %lld %lld segments %d strided %d\n", (long long)a->B,
                    (long long)a->T, (long long)a->S, (long long)a->H, (long long)a->G, (long long)a->D, a->causal, (long long)a->q_offset,
                    (long long)a->window_left, (long long)a->window_right, a->seg_q != NULL, strided);
    problem_close(&p);
    assert_true(good);
}

static struct ref_attention causal_case(int64_t B, int64_t T, int64_t H, int64_t G, int64_t D)
{
    return (struct ref_attention){.B = B, .T = T, .S = T, .H = H, .G = G, .D = D, .scale = 1 / sqrt((double)D), .causal = 1,
                                  .window_left = -1, .window_right = -1};
}

/* Documents of 1..longest tokens. */
static void random_segments(int32_t *ids, int64_t B, int64_t T, int64_t longest, uint64_t seed)
{
    for (int64_t b = 0; b < B; b++) {
        int32_t id = (int32_t)b;
        for (int64_t t = 0, left = 0; t < T; t++, left--) {
            if (left == 0) {
                left = random_int(seed, (uint64_t)(b * T + t), 1, longest);
                id += (int32_t)random_int(seed + 1, (uint64_t)(b * T + t), 1, 2);
            }
            ids[b * T + t] = id;
        }
    }
}

/* ---- the oracle itself ---------------------------------------------------------------------------------------- */

static double objective(const struct ref_attention *a, const double *dout, const double *q, const double *k, const double *v)
{
    int64_t n = a->B * a->T * a->H * a->D;
    double *o = alloc(n, sizeof *o), *lse = alloc(a->B * a->H * a->T, sizeof *lse), sum = 0;
    ref_attention_fwd(a, o, lse, q, k, v);
    for (int64_t i = 0; i < n; i++)
        sum += o[i] * dout[i];
    free(o);
    free(lse);
    return sum;
}

static void test_oracle_gradients_are_finite_differences(void **state)
{
    (void)state;
    static const int32_t seg_q[2 * 5] = {0, 0, 1, 1, 3, 2, 2, 2, 4, 4}, seg_k[2 * 6] = {0, 0, 1, 1, 2, 2, 2, 2, 2, 3, 4, 4};
    const struct ref_attention kinds[] = {
        {.B = 2, .T = 5, .S = 6, .H = 4, .G = 2, .D = 3, .scale = 0.7, .causal = 1, .q_offset = 1, .window_left = -1, .window_right = -1},
        {.B = 2, .T = 5, .S = 6, .H = 4, .G = 1, .D = 3, .scale = 0.7, .window_left = 1, .window_right = 2},
        {.B = 2, .T = 5, .S = 6, .H = 4, .G = 4, .D = 3, .scale = 0.7, .window_left = -1, .window_right = -1, .seg_q = seg_q, .seg_k = seg_k},
        {.B = 2, .T = 5, .S = 6, .H = 4, .G = 2, .D = 3, .scale = 0.7, .causal = 1, .q_offset = -1, .window_left = 2, .window_right = -1},
    };
    for (size_t c = 0; c < COUNT_OF(kinds); c++) {
        struct problem p;
        problem_open(&p, &kinds[c], 0);
        double *inputs[3] = {p.q, p.k, p.v}, *grads[3] = {p.dq, p.dk, p.dv};
        for (int i = 0; i < 3; i++) {
            int64_t n = view_count(i == 0 ? p.vq : p.vk);
            for (int64_t j = 0; j < n; j++) {
                double eps = 1e-5, x = inputs[i][j];
                inputs[i][j] = x + eps;
                double up = objective(&p.a, p.dout, p.q, p.k, p.v);
                inputs[i][j] = x - eps;
                double down = objective(&p.a, p.dout, p.q, p.k, p.v);
                inputs[i][j] = x;
                assert_true(fabs((up - down) / (2 * eps) - grads[i][j]) <= 1e-8);
            }
        }
        problem_close(&p);
    }
}

/* ---- shapes and masks ----------------------------------------------------------------------------------------- */

static void test_shapes(void **state)
{
    (void)state;
    const int64_t widths[] = {4, 16, 20, 64, 80, 128, 256}, lengths[] = {1, 2, 63, 64, 65, 127, 130}, groups[] = {3, 1, 6};
    size_t turn = 0;
    for (size_t i = 0; i < COUNT_OF(widths); i++)
        for (size_t j = 0; j < COUNT_OF(lengths); j++, turn++) {
            struct ref_attention a = causal_case(2, lengths[j], 6, groups[turn % 3], widths[i]);
            a.causal = turn % 4 != 3;
            check_case(&a, turn % 5 != 4);
        }
}

static void test_odd_widths(void **state)
{
    (void)state;
    const int64_t widths[] = {1, 3, 17, 33, 66, 100};
    for (size_t i = 0; i < COUNT_OF(widths); i++) {
        struct ref_attention a = causal_case(2, 70, 4, 2, widths[i]);
        check_case(&a, 1);
    }
}

static void test_masks(void **state)
{
    (void)state;
    const int64_t lengths[][2] = {{130, 130}, {65, 200}, {150, 40}, {1, 77}, {200, 200}};
    const int64_t windows[][2] = {{-1, -1}, {0, -1}, {17, -1}, {64, 3}, {-1, 0}, {5, 70}};
    int32_t *seg_q = alloc(2 * 200, sizeof *seg_q), *seg_k = alloc(2 * 200, sizeof *seg_k);
    for (size_t l = 0; l < COUNT_OF(lengths); l++)
        for (size_t w = 0; w < COUNT_OF(windows); w++)
            for (int kind = 0; kind < 6; kind++) { /* causal or not, with and without offset, with and without documents */
                struct ref_attention a = causal_case(2, lengths[l][0], 6, 3, 20);
                a.S = lengths[l][1];
                a.causal = kind % 2;
                a.window_left = windows[w][0];
                a.window_right = windows[w][1];
                a.q_offset = kind == 2 || kind == 3 ? a.S - a.T : kind == 5 ? 9 : 0;
                if (kind >= 3) {
                    random_segments(seg_q, a.B, a.T, w < 3 ? 90 : 20, 7 * l + w);
                    random_segments(seg_k, a.B, a.S, w < 3 ? 90 : 20, 7 * l + (a.T == a.S ? w : w + 1));
                    a.seg_q = seg_q;
                    a.seg_k = seg_k;
                }
                check_case(&a, (int)(w % 2));
            }
    free(seg_q);
    free(seg_k);
}

/* Long enough for several tiles of every size, and for work to be split within one group. */
static void test_long(void **state)
{
    (void)state;
    struct ref_attention a = causal_case(1, 700, 3, 1, 16);
    check_case(&a, 1);
    a = causal_case(1, 517, 2, 2, 64);
    check_case(&a, 1);
    a.causal = 0;
    check_case(&a, 1);
    a = causal_case(1, 600, 4, 2, 32);
    a.window_left = 150;
    check_case(&a, 1);
    int32_t ids[600];
    random_segments(ids, 1, 600, 250, 3);
    a.window_left = -1;
    a.seg_q = a.seg_k = ids;
    check_case(&a, 1);
}

static void test_rows_without_keys(void **state)
{
    (void)state;
    struct ref_attention a = causal_case(2, 90, 6, 3, 20);
    a.q_offset = -70; /* the first 70 queries are before every key */
    check_case(&a, 1);
    a.q_offset = 500; /* all keys lie left of every window */
    a.window_left = 30;
    check_case(&a, 1);
    struct problem p;
    problem_open(&p, &a, 1);
    run_fwd(&p);
    run_bwd(&p);
    for (int64_t i = 0; i < a.B * a.T * (a.H * a.D + GUARD); i++)
        assert_true(i % (a.H * a.D + GUARD) >= a.H * a.D || p.o_rows[i] == 0);
    for (int64_t i = 0; i < a.B * a.H * a.T; i++)
        assert_true(p.lse[i] == -INFINITY);
    problem_close(&p);
}

/* Scores far apart and far from zero: what the running maximum is for. */
static void test_large_scores(void **state)
{
    (void)state;
    struct ref_attention a = causal_case(1, 200, 2, 1, 32);
    a.scale = 8;
    struct problem p;
    problem_open(&p, &a, 1);
    run_fwd(&p);
    run_bwd(&p);
    float *flat = alloc(view_count(p.vo), sizeof *flat);
    view_get(flat, p.vo);
    /* A score is a few hundred here, so a probability keeps about 5 digits. */
    assert_f32("o", flat, p.o, view_count(p.vo), 0, 1e-3);
    view_get(flat, p.vdq);
    assert_f32("dq", flat, p.dq, view_count(p.vdq), 0, 1e-3 * largest(p.dq, view_count(p.vdq)));
    free(flat);
    problem_close(&p);
}

/* ---- accuracy against the same computation done plainly in f32 ------------------------------------------------- */

static void plain_f32(const struct problem *p, float *o, float *dq, float *dk, float *dv)
{
    const struct ref_attention *a = &p->a;
    float *prob = alloc(2 * a->S, sizeof *prob), *dp = prob + a->S;
    int64_t D = a->D;
    for (int64_t t = 0; t < a->T; t++)
        for (int64_t h = 0; h < a->H; h++) {
            int64_t at = (t * a->H + h) * D, n = t + 1, g = h / (a->H / a->G);
            float top = -INFINITY, sum = 0, mean = 0;
            for (int64_t s = 0; s < n; s++) {
                prob[s] = dp[s] = 0;
                for (int64_t d = 0; d < D; d++) {
                    prob[s] += (float)p->q[at + d] * (float)p->k[(s * a->G + g) * D + d];
                    dp[s] += (float)p->dout[at + d] * (float)p->v[(s * a->G + g) * D + d];
                }
                prob[s] *= (float)a->scale;
                top = fmaxf(top, prob[s]);
            }
            for (int64_t s = 0; s < n; s++)
                sum += prob[s] = expf(prob[s] - top);
            for (int64_t s = 0; s < n; s++) {
                prob[s] /= sum;
                mean += prob[s] * dp[s];
            }
            for (int64_t s = 0; s < n; s++)
                for (int64_t d = 0; d < D; d++) {
                    float ds = (float)a->scale * prob[s] * (dp[s] - mean);
                    int64_t k_at = (s * a->G + g) * D + d;
                    o[at + d] += prob[s] * (float)p->v[k_at];
                    dq[at + d] += ds * (float)p->k[k_at];
                    dk[k_at] += ds * (float)p->q[at + d];
                    dv[k_at] += prob[s] * (float)p->dout[at + d];
                }
        }
    free(prob);
}

static double error_of(const float *got, const double *want, int64_t n)
{
    double worst = 0;
    for (int64_t i = 0; i < n; i++) {
        double err = fabs((double)got[i] - want[i]);
        worst = err <= worst ? worst : err; /* a NaN becomes the worst and stays */
    }
    return worst;
}

/* The largest error may exceed twice the plain one by an eps of the largest element: delta = sum dO*O does not cancel the
 * rounding of dO.v as the plain sum of p dp does, which shows in the rows of few keys. The root mean square has no such room. */
static void check_error(int64_t D, const char *name, const float *ours, const float *plain, const double *want, int64_t n)
{
    double err = error_of(ours, want, n), err_plain = error_of(plain, want, n);
    double rms = sqrt(nmse_f32(ours, want, n)), rms_plain = sqrt(nmse_f32(plain, want, n));
    int good = err <= 2 * err_plain + 1.2e-7 * largest(want, n) && rms <= 1.5 * rms_plain;
    if (!good || getenv("VERBOSE") != NULL)
        print_error("D %lld %s: largest error %.3g, plain f32 %.3g; relative rms %.3g, plain f32 %.3g\n", (long long)D, name, err, err_plain, rms,
                    rms_plain);
    assert_true(good);
}

static void test_error_is_at_most_twice_that_of_plain_f32(void **state)
{
    (void)state;
    const int64_t widths[] = {20, 64, 128};
    for (size_t i = 0; i < COUNT_OF(widths); i++) {
        struct ref_attention a = causal_case(1, 260, 4, 2, widths[i]);
        struct problem p;
        problem_open(&p, &a, 1);
        run_fwd(&p);
        run_bwd(&p);
        const char *names[4] = {"o", "dq", "dk", "dv"};
        const double *want[4] = {p.o, p.dq, p.dk, p.dv};
        struct view got[4] = {p.vo, p.vdq, p.vdk, p.vdv};
        float *plain[4], *flat = alloc(view_count(p.vq), sizeof *flat);
        for (int j = 0; j < 4; j++)
            plain[j] = alloc(view_count(got[j]), sizeof(float));
        plain_f32(&p, plain[0], plain[1], plain[2], plain[3]);
        for (int j = 0; j < 4; j++) {
            int64_t n = view_count(got[j]);
            view_get(flat, got[j]);
            check_error(a.D, names[j], flat, plain[j], want[j], n);
        }
        for (int j = 0; j < 4; j++)
            free(plain[j]);
        free(flat);
        problem_close(&p);
    }
}

/* ---- groups ---------------------------------------------------------------------------------------------------- */

/* GQA is MHA with K and V repeated, to the bit in the forward and in dq; dk is the sum over the group. */
static void test_expansion(void **state)
{
    (void)state;
    const int64_t H = 6;
    for (int64_t G = 1; G <= 3; G += 2) {
        struct ref_attention a = causal_case(2, 150, H, G, 20), wide = a;
        wide.G = H;
        struct problem p, e;
        problem_open(&p, &a, 1);
        problem_open(&e, &wide, 0);
        for (int64_t n = 0; n < a.B * a.S; n++)
            for (int64_t h = 0; h < H; h++)
                for (int64_t d = 0; d < a.D; d++) {
                    view_f32(e.vk)[(n * H + h) * a.D + d] = (float)p.k[(n * G + h / (H / G)) * a.D + d];
                    view_f32(e.vv)[(n * H + h) * a.D + d] = (float)p.v[(n * G + h / (H / G)) * a.D + d];
                }
        run_fwd(&p);
        run_fwd(&e);
        assert_memory_equal(p.o_rows, e.o_rows, (size_t)(a.B * a.T * p.vo.s[1]) * sizeof(float));
        assert_memory_equal(p.lse, e.lse, (size_t)(a.B * H * a.T) * sizeof(float));
        run_bwd(&p);
        run_bwd(&e);
        int64_t n_q = view_count(p.vq), n_k = view_count(p.vk);
        float *one = alloc(n_q, sizeof *one), *two = alloc(n_q, sizeof *two);
        view_get(one, p.vdq);
        view_get(two, e.vdq);
        assert_memory_equal(one, two, (size_t)n_q * sizeof(float));
        for (int which = 0; which < 2; which++) {
            view_get(one, which ? p.vdv : p.vdk);
            view_get(two, which ? e.vdv : e.vdk);
            double *sum = alloc(n_k, sizeof *sum);
            for (int64_t n = 0; n < a.B * a.S; n++)
                for (int64_t h = 0; h < H; h++)
                    for (int64_t d = 0; d < a.D; d++)
                        sum[(n * G + h / (H / G)) * a.D + d] += (double)two[(n * H + h) * a.D + d];
            assert_f32(which ? "dv" : "dk", one, sum, n_k, 2e-6, 2e-6 * largest(sum, n_k));
            free(sum);
        }
        free(one);
        free(two);
        problem_close(&p);
        problem_close(&e);
    }
}

/* ---- bits, memory, refusals ------------------------------------------------------------------------------------ */

static void test_same_bits_for_every_team(void **state)
{
    (void)state;
    const struct ref_attention cases[] = {causal_case(1, 700, 3, 1, 16), causal_case(2, 130, 6, 3, 20)};
    struct device *all = device;
    for (size_t c = 0; c < COUNT_OF(cases); c++) {
        struct problem p;
        float *first_o = NULL, *first_dq = NULL, *first_dkv = NULL;
        size_t n_o = 0, n_dq = 0, n_dkv = 0;
        const int teams[] = {1, 2, 2, 3, 7};
        for (size_t i = 0; i < COUNT_OF(teams); i++) {
            assert_ok(cpu_device_open(&device, &(struct device_options){.threads = teams[i]}));
            problem_open(&p, &cases[c], 0);
            run_fwd(&p);
            run_bwd(&p);
            if (i == 0) {
                n_o = (size_t)(p.a.B * p.a.T * p.vo.s[1]) * sizeof(float);
                n_dq = (size_t)view_count(p.vdq) * sizeof(float);
                n_dkv = 2 * (size_t)view_count(p.vdk) * sizeof(float);
                first_o = memcpy(alloc((int64_t)n_o, 1), p.o_rows, n_o);
                first_dq = memcpy(alloc((int64_t)n_dq, 1), p.drows_q, n_dq);
                first_dkv = memcpy(alloc((int64_t)n_dkv, 1), p.drows_kv, n_dkv);
            }
            assert_memory_equal(p.o_rows, first_o, n_o);
            assert_memory_equal(p.drows_q, first_dq, n_dq);
            assert_memory_equal(p.drows_kv, first_dkv, n_dkv);
            problem_close(&p);
            cpu_device_close(device);
        }
        free(first_o);
        free(first_dq);
        free(first_dkv);
    }
    device = all;
}

static void test_scratch_is_linear(void **state)
{
    (void)state;
    const int64_t shapes[][3] = {{12, 12, 64}, {12, 3, 64}, {12, 1, 64}, {6, 3, 20}, {8, 8, 256}};
    for (size_t i = 0; i < COUNT_OF(shapes); i++) {
        int64_t H = shapes[i][0], G = shapes[i][1], D = shapes[i][2];
        for (int bwd = 0; bwd < 2; bwd++)
            for (int64_t T = 4096; T <= 65536; T *= 2) { /* from where the number of partial sums stays the same */
                size_t one = cpu_attention_scratch(device, 1, T, T, H, G, D, bwd), four = cpu_attention_scratch(device, 1, 4 * T, 4 * T, H, G, D, bwd);
                assert_true(four <= 4 * one);
                /* An absolute bound too: so many bytes per position; T x S scores would be 4 T of them. */
                assert_true(one <= (size_t)T * (size_t)(64 * (H + 2 * G) * D) + (8u << 20));
            }
    }
}

static void test_refusals(void **state)
{
    (void)state;
    struct ref_attention a = causal_case(2, 5, 6, 3, 8);
    struct problem p;
    problem_open(&p, &a, 1);
    struct attention_args args = p.args;
    int32_t dilation[6] = {1, 1, 1, 1, 1, 1}, ids[10] = {0, 0, 0, 1, 1, 0, 0, 1, 0, 1};
    float floats[64] = {0};
#define REFUSED(part)                                                                                                                        \
    do {                                                                                                                                     \
        assert_refused(cpu_attention_fwd(device, p.vo, p.vlse, p.vq, p.vk, p.vv, &args, p.scratch), ERR_UNSUPPORTED, part);                    \
        assert_refused(cpu_attention_bwd(device, p.vdq, p.vdk, p.vdv, p.vdout, p.vo, p.vlse, p.vq, p.vk, p.vv, &args, p.scratch),              \
                       ERR_UNSUPPORTED, part);                                                                                               \
        args = p.args;                                                                                                                       \
    } while (0)
    args.mask.dilation = dilation;
    REFUSED("dilated windows");
    args.mask.global_index = view_1d(ids, DT_I32, 2);
    REFUSED("global tokens");
    args.mask.alibi_slopes = view_1d(floats, DT_F32, 6);
    REFUSED("ALiBi");
    args.mask.rel_bias = view_2d(floats, DT_F32, 8, 6);
    REFUSED("relative position bias");
    args.mask.blocks = (const struct block_sparse *)(const void *)floats;
    REFUSED("block-sparse");
    args.dropout.rate = 0.1f;
    REFUSED("dropout");
    args.mask.seg_q = view_2d(ids, DT_I32, 2, 5);
    REFUSED("queries only");
    args.mask.seg_q = args.mask.seg_k = view_2d(ids, DT_I32, 2, 5);
    REFUSED("fall from 1 to 0 at position 3");
    args.mask.seg_q = args.mask.seg_k = view_2d(ids, DT_I32, 2, 4);
    REFUSED("must be i32 [2,5]");
#undef REFUSED
    struct view bad = p.vk;
    bad.n[2] = 4;
    assert_refused(cpu_attention_fwd(device, p.vo, p.vlse, p.vq, bad, p.vv, &args, p.scratch), ERR_UNSUPPORTED, "cannot be shared evenly");
    bad = p.vv;
    bad.n[1] = 4;
    assert_refused(cpu_attention_fwd(device, p.vo, p.vlse, p.vq, p.vk, bad, &args, p.scratch), ERR_UNSUPPORTED, "v has 4 axes");
    bad = p.vo;
    bad.dtype = DT_BF16;
    assert_refused(cpu_attention_fwd(device, bad, p.vlse, p.vq, p.vk, p.vv, &args, p.scratch), ERR_UNSUPPORTED, "o is bf16");
    bad = p.vdk;
    bad.s[3] = 2;
    assert_refused(cpu_attention_bwd(device, p.vdq, bad, p.vdv, p.vdout, p.vo, p.vlse, p.vq, p.vk, p.vv, &args, p.scratch), ERR_UNSUPPORTED,
                   "last axis of dk has stride 2");
    bad = p.vq;
    bad.n[3] = 260;
    assert_refused(cpu_attention_fwd(device, p.vo, p.vlse, bad, p.vk, p.vv, &args, p.scratch), ERR_UNSUPPORTED, "head width 260");
    assert_true(isnan(p.o_rows[0]) && isnan(p.lse[0]) && isnan(*view_f32(p.vdq))); /* outputs left alone */
    problem_close(&p);
}

static void test_every_instruction_set(void **state)
{
    (void)state;
    if (getenv("GQAKIT_ISA") != NULL)
        return;
    char self[1024] = {0};
    assert_true(readlink("/proc/self/exe", self, sizeof self - 1) > 0);
    for (enum isa isa = ISA_PLAIN; isa < host_isa(); isa = (enum isa)((int)isa + 1)) {
        char setting[64];
        snprintf(setting, sizeof setting, "GQAKIT_ISA=%s", isa == ISA_PLAIN ? "plain" : "avx2");
        struct child c = child_run((const char *const[]){self, NULL}, (const char *const[]){setting, NULL});
        if (c.status != 0)
            print_error("with %s:\n%s%s", setting, c.out, c.err);
        assert_int_equal(c.status, 0);
        child_free(&c);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_oracle_gradients_are_finite_differences),
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_odd_widths),
        cmocka_unit_test(test_masks),
        cmocka_unit_test(test_long),
        cmocka_unit_test(test_rows_without_keys),
        cmocka_unit_test(test_large_scores),
        cmocka_unit_test(test_error_is_at_most_twice_that_of_plain_f32),
        cmocka_unit_test(test_expansion),
        cmocka_unit_test(test_same_bits_for_every_team),
        cmocka_unit_test(test_scratch_is_linear),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_every_instruction_set),
    };
    if (cpu_device_open(&device, NULL) != OK)
        return fail_exit("test_attention", ERR_MEMORY);
    int status = harness_main(argc, argv, tests, COUNT_OF(tests));
    cpu_device_close(device);
    return status;
}
