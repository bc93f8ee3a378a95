/* See attention_case.h. */
#include "attention_case.h"

#include <math.h>
#include <unistd.h>

struct device *attention_device;

void *test_alloc(int64_t n, size_t size)
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

void attention_view_get(float *to, struct view x)
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
    float *f = test_alloc(n, sizeof *f);
    double *x = test_alloc(n, sizeof *x);
    fill_random(f, n, seed);
    for (int64_t i = 0; i < n; i++)
        x[i] = (double)f[i];
    free(f);
    return x;
}

static void poison_outputs(struct attention_case *p)
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

void attention_case_open(struct attention_case *p, const struct ref_attention *a, int strided)
{
    *p = (struct attention_case){.a = *a, .strided = strided};
    int64_t nq = a->B * a->T * a->H * a->D, nk = a->B * a->S * a->G * a->D, ns = a->B * a->H * a->T, hd = a->H * a->D, gd = a->G * a->D;
    p->q = random_floats(nq, 1);
    p->k = random_floats(nk, 2);
    p->v = random_floats(nk, 3);
    p->dout = random_floats(nq, 4);
    p->o = test_alloc(nq, sizeof(double));
    p->lse_want = test_alloc(ns, sizeof(double));
    p->dq = test_alloc(nq, sizeof(double));
    p->dk = test_alloc(nk, sizeof(double));
    p->dv = test_alloc(nk, sizeof(double));
    ref_attention_fwd(a, p->o, p->lse_want, p->q, p->k, p->v);
    ref_attention_bwd(a, p->dq, p->dk, p->dv, p->dout, p->q, p->k, p->v);
    p->lse = test_alloc(ns, sizeof(float));
    p->o_rows = test_alloc(a->B * a->T * (hd + GUARD), sizeof(float));
    p->dout_rows = test_alloc(a->B * a->T * (hd + GUARD), sizeof(float));
    p->vo = view_rows(p->o_rows, a->B, a->T, a->H, a->D, hd + GUARD, 0);
    p->vdout = view_rows(p->dout_rows, a->B, a->T, a->H, a->D, hd + GUARD, 0);
    p->vlse = view_3d(p->lse, DT_F32, a->B, a->H, a->T);
    if (strided && a->T == a->S) { /* one [N, (H+2G)D] buffer, as the model has it */
        int64_t row = hd + 2 * gd + GUARD;
        p->rows_q = p->rows_kv = test_alloc(a->B * a->T * row, sizeof(float));
        p->drows_q = p->drows_kv = test_alloc(a->B * a->T * row, sizeof(float));
        p->vq = view_rows(p->rows_q, a->B, a->T, a->H, a->D, row, 0);
        p->vk = view_rows(p->rows_q, a->B, a->T, a->G, a->D, row, hd);
        p->vv = view_rows(p->rows_q, a->B, a->T, a->G, a->D, row, hd + gd);
        p->vdq = view_rows(p->drows_q, a->B, a->T, a->H, a->D, row, 0);
        p->vdk = view_rows(p->drows_q, a->B, a->T, a->G, a->D, row, hd);
        p->vdv = view_rows(p->drows_q, a->B, a->T, a->G, a->D, row, hd + gd);
    } else {
        p->strided = 0;
        p->rows_q = test_alloc(nq, sizeof(float));
        p->drows_q = test_alloc(nq, sizeof(float));
        p->rows_kv = test_alloc(2 * nk, sizeof(float));
        p->drows_kv = test_alloc(2 * nk, sizeof(float));
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
    if (a->slopes != NULL)
        p->args.mask.alibi_slopes = view_1d((void *)(uintptr_t)a->slopes, DT_F32, a->H);
    if (a->seg_q != NULL) {
        p->args.mask.seg_q = view_2d((void *)(uintptr_t)a->seg_q, DT_I32, a->B, a->T);
        p->args.mask.seg_k = view_2d((void *)(uintptr_t)a->seg_k, DT_I32, a->B, a->S);
    }
    p->scratch_bytes = (cpu_attention_scratch(attention_device, a->B, a->T, a->S, a->H, a->G, a->D, 1) + 63) / 64 * 64;
    p->scratch = aligned_alloc(64, p->scratch_bytes + 64);
    assert_non_null(p->scratch);
    poison_outputs(p);
}

void attention_case_close(struct attention_case *p)
{
    void *all[] = {p->q, p->k, p->v, p->dout, p->o, p->lse_want, p->dq, p->dk, p->dv, p->lse, p->o_rows, p->dout_rows, p->rows_q, p->drows_q,
                   p->rows_kv == p->rows_q ? NULL : p->rows_kv, p->drows_kv == p->drows_q ? NULL : p->drows_kv, p->scratch};
    for (size_t i = 0; i < COUNT_OF(all); i++)
        free(all[i]);
}

void attention_case_fwd(struct attention_case *p)
{
    assert_ok(cpu_attention_fwd(attention_device, p->vo, p->vlse, p->vq, p->vk, p->vv, &p->args, p->scratch));
}

void attention_case_bwd(struct attention_case *p)
{
    assert_ok(cpu_attention_bwd(attention_device, p->vdq, p->vdk, p->vdv, p->vdout, p->vo, p->vlse, p->vq, p->vk, p->vv, &p->args, p->scratch));
}

double attention_largest(const double *x, int64_t n)
{
    double top = 0;
    for (int64_t i = 0; i < n; i++)
        top = fmax(top, fabs(x[i]));
    return top;
}

/* Against the oracle, to a few float roundings of the attention_largest element (of the inputs, which are about 1, where all cancels). */
static int same_view(const char *name, struct view got, const double *want)
{
    int64_t n = view_count(got);
    float *flat = test_alloc(n, sizeof *flat);
    attention_view_get(flat, got);
    int same = compare_f32(name, flat, want, n, 4e-6, 4e-6 * fmax(1, attention_largest(want, n)));
    free(flat);
    return same;
}

static int same_lse(const struct attention_case *p)
{
    int64_t n = p->a.B * p->a.H * p->a.T;
    float *got = test_alloc(n, sizeof *got);
    double *want = test_alloc(n, sizeof *want);
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
static int guards_whole(const struct attention_case *p)
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

void attention_case_check(const struct ref_attention *a, int strided)
{
    struct attention_case p;
    attention_case_open(&p, a, strided);
    attention_case_fwd(&p);
    int good = same_view("o", p.vo, p.o) && same_lse(&p);
    memset(p.scratch, 0xff, p.scratch_bytes + 64); /* the backward must not lean on what the forward left */
    attention_case_bwd(&p);
    good = good && same_view("dq", p.vdq, p.dq) && same_view("dk", p.vdk, p.dk) && same_view("dv", p.vdv, p.dv) && guards_whole(&p);
    if (!good)
        print_error("B %lld T %lld S %lld H %lld G %lld D %lld causal %d offset %lld window %lld %lld segments %d alibi %d strided %d\n", (long long)a->B,
                    (long long)a->T, (long long)a->S, (long long)a->H, (long long)a->G, (long long)a->D, a->causal, (long long)a->q_offset,
                    (long long)a->window_left, (long long)a->window_right, a->seg_q != NULL, a->slopes != NULL, strided);
    attention_case_close(&p);
    assert_true(good);
}

struct ref_attention attention_case_causal(int64_t B, int64_t T, int64_t H, int64_t G, int64_t D)
{
    return (struct ref_attention){.B = B, .T = T, .S = T, .H = H, .G = G, .D = D, .scale = 1 / sqrt((double)D), .causal = 1,
                                  .window_left = -1, .window_right = -1};
}

void test_attention_every_isa(void **state)
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

int attention_case_main(int argc, char **argv, const struct CMUnitTest *tests, size_t n)
{
    host_threads_set(0);
    if (cpu_device_open(&attention_device, NULL) != OK)
        return fail_exit(argv[0], ERR_MEMORY);
    int status = harness_main(argc, argv, tests, n);
    cpu_device_close(attention_device);
    return status;
}
