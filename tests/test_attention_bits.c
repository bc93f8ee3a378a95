/* Attention of the CPU: rounding against the plain f32 computation, groups, bits, memory, refusals. */
#include <math.h>

#include "attention_case.h"

/* ---- accuracy against the same computation done plainly in f32 ------------------------------------------------- */

static void plain_f32(const struct attention_case *p, float *o, float *dq, float *dk, float *dv)
{
    const struct ref_attention *a = &p->a;
    float *prob = test_alloc(2 * a->S, sizeof *prob), *dp = prob + a->S;
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
        worst = worse_error(worst, err);
    }
    return worst;
}

/* The attention_largest error may exceed twice the plain one by an eps of the attention_largest element: delta = sum dO*O does not cancel the
 * rounding of dO.v as the plain sum of p dp does, which shows in the rows of few keys. The root mean square has no such room. */
static void check_error(int64_t D, const char *name, const float *ours, const float *plain, const double *want, int64_t n)
{
    double err = error_of(ours, want, n), err_plain = error_of(plain, want, n);
    double rms = sqrt(nmse_f32(ours, want, n)), rms_plain = sqrt(nmse_f32(plain, want, n));
    int good = err <= 2 * err_plain + 1.2e-7 * attention_largest(want, n) && rms <= 1.5 * rms_plain;
    if (!good || getenv("VERBOSE") != NULL)
        print_error("D %lld %s: attention_largest error %.3g, plain f32 %.3g; relative rms %.3g, plain f32 %.3g\n", (long long)D, name, err, err_plain, rms,
                    rms_plain);
    assert_true(good);
}

static void test_error_is_at_most_twice_that_of_plain_f32(void **state)
{
    (void)state;
    const int64_t widths[] = {20, 64, 128};
    for (size_t i = 0; i < COUNT_OF(widths); i++) {
        struct ref_attention a = attention_case_causal(1, 260, 4, 2, widths[i]);
        struct attention_case p;
        attention_case_open(&p, &a, 1);
        attention_case_fwd(&p);
        attention_case_bwd(&p);
        const char *names[4] = {"o", "dq", "dk", "dv"};
        const double *want[4] = {p.o, p.dq, p.dk, p.dv};
        struct view got[4] = {p.vo, p.vdq, p.vdk, p.vdv};
        float *plain[4], *flat = test_alloc(view_count(p.vq), sizeof *flat);
        for (int j = 0; j < 4; j++)
            plain[j] = test_alloc(view_count(got[j]), sizeof(float));
        plain_f32(&p, plain[0], plain[1], plain[2], plain[3]);
        for (int j = 0; j < 4; j++) {
            int64_t n = view_count(got[j]);
            attention_view_get(flat, got[j]);
            check_error(a.D, names[j], flat, plain[j], want[j], n);
        }
        for (int j = 0; j < 4; j++)
            free(plain[j]);
        free(flat);
        attention_case_close(&p);
    }
}

/* ---- groups ---------------------------------------------------------------------------------------------------- */

/* GQA is MHA with K and V repeated, to the bit in the forward and in dq; dk is the sum over the group. */
static void test_expansion(void **state)
{
    (void)state;
    const int64_t H = 6;
    for (int64_t G = 1; G <= 3; G += 2) {
        struct ref_attention a = attention_case_causal(2, 150, H, G, 20), wide = a;
        wide.G = H;
        struct attention_case p, e;
        attention_case_open(&p, &a, 1);
        attention_case_open(&e, &wide, 0);
        for (int64_t n = 0; n < a.B * a.S; n++)
            for (int64_t h = 0; h < H; h++)
                for (int64_t d = 0; d < a.D; d++) {
                    view_f32(e.vk)[(n * H + h) * a.D + d] = (float)p.k[(n * G + h / (H / G)) * a.D + d];
                    view_f32(e.vv)[(n * H + h) * a.D + d] = (float)p.v[(n * G + h / (H / G)) * a.D + d];
                }
        attention_case_fwd(&p);
        attention_case_fwd(&e);
        assert_memory_equal(p.o_rows, e.o_rows, (size_t)(a.B * a.T * p.vo.s[1]) * sizeof(float));
        assert_memory_equal(p.lse, e.lse, (size_t)(a.B * H * a.T) * sizeof(float));
        attention_case_bwd(&p);
        attention_case_bwd(&e);
        int64_t n_q = view_count(p.vq), n_k = view_count(p.vk);
        float *one = test_alloc(n_q, sizeof *one), *two = test_alloc(n_q, sizeof *two);
        attention_view_get(one, p.vdq);
        attention_view_get(two, e.vdq);
        assert_memory_equal(one, two, (size_t)n_q * sizeof(float));
        for (int which = 0; which < 2; which++) {
            attention_view_get(one, which ? p.vdv : p.vdk);
            attention_view_get(two, which ? e.vdv : e.vdk);
            double *sum = test_alloc(n_k, sizeof *sum);
            for (int64_t n = 0; n < a.B * a.S; n++)
                for (int64_t h = 0; h < H; h++)
                    for (int64_t d = 0; d < a.D; d++)
                        sum[(n * G + h / (H / G)) * a.D + d] += (double)two[(n * H + h) * a.D + d];
            assert_f32(which ? "dv" : "dk", one, sum, n_k, 2e-6, 2e-6 * attention_largest(sum, n_k));
            free(sum);
        }
        free(one);
        free(two);
        attention_case_close(&p);
        attention_case_close(&e);
    }
}

/* ---- bits, memory, refusals ------------------------------------------------------------------------------------ */

static void test_same_bits_for_every_team(void **state)
{
    (void)state;
    const struct ref_attention cases[] = {attention_case_causal(1, 700, 3, 1, 16), attention_case_causal(2, 130, 6, 3, 20)};
    struct device *all = attention_device;
    for (size_t c = 0; c < COUNT_OF(cases); c++) {
        struct attention_case p;
        float *first_o = NULL, *first_dq = NULL, *first_dkv = NULL;
        size_t n_o = 0, n_dq = 0, n_dkv = 0;
        const int teams[] = {1, 2, 2, 3, 7};
        for (size_t i = 0; i < COUNT_OF(teams); i++) {
            assert_ok(cpu_device_open(&attention_device, &(struct device_options){.threads = teams[i]}));
            attention_case_open(&p, &cases[c], 0);
            attention_case_fwd(&p);
            attention_case_bwd(&p);
            if (i == 0) {
                n_o = (size_t)(p.a.B * p.a.T * p.vo.s[1]) * sizeof(float);
                n_dq = (size_t)view_count(p.vdq) * sizeof(float);
                n_dkv = 2 * (size_t)view_count(p.vdk) * sizeof(float);
                first_o = memcpy(test_alloc((int64_t)n_o, 1), p.o_rows, n_o);
                first_dq = memcpy(test_alloc((int64_t)n_dq, 1), p.drows_q, n_dq);
                first_dkv = memcpy(test_alloc((int64_t)n_dkv, 1), p.drows_kv, n_dkv);
            }
            assert_memory_equal(p.o_rows, first_o, n_o);
            assert_memory_equal(p.drows_q, first_dq, n_dq);
            assert_memory_equal(p.drows_kv, first_dkv, n_dkv);
            attention_case_close(&p);
            cpu_device_close(attention_device);
        }
        free(first_o);
        free(first_dq);
        free(first_dkv);
    }
    attention_device = all;
}

static void test_scratch_is_linear(void **state)
{
    (void)state;
    const int64_t shapes[][3] = {{12, 12, 64}, {12, 3, 64}, {12, 1, 64}, {6, 3, 20}, {8, 8, 256}};
    for (size_t i = 0; i < COUNT_OF(shapes); i++) {
        int64_t H = shapes[i][0], G = shapes[i][1], D = shapes[i][2];
        for (int bwd = 0; bwd < 2; bwd++)
            for (int64_t T = 4096; T <= 65536; T *= 2) { /* from where the number of partial sums stays the same */
                size_t one = cpu_attention_scratch(attention_device, 1, T, T, H, G, D, bwd), four = cpu_attention_scratch(attention_device, 1, 4 * T, 4 * T, H, G, D, bwd);
                assert_true(four <= 4 * one);
                /* An absolute bound too: so many bytes per position; T x S scores would be 4 T of them. */
                assert_true(one <= (size_t)T * (size_t)(64 * (H + 2 * G) * D) + (8u << 20));
            }
    }
}

static void test_refusals(void **state)
{
    (void)state;
    struct ref_attention a = attention_case_causal(2, 5, 6, 3, 8);
    struct attention_case p;
    attention_case_open(&p, &a, 1);
    struct attention_args args = p.args;
    int32_t dilation[6] = {1, 1, 1, 1, 1, 1}, ids[10] = {0, 0, 0, 1, 1, 0, 0, 1, 0, 1};
    float floats[64] = {0};
#define REFUSED(part)                                                                                                                        \
    do {                                                                                                                                     \
        assert_refused(cpu_attention_fwd(attention_device, p.vo, p.vlse, p.vq, p.vk, p.vv, &args, p.scratch), ERR_UNSUPPORTED, part);                    \
        assert_refused(cpu_attention_bwd(attention_device, p.vdq, p.vdk, p.vdv, p.vdout, p.vo, p.vlse, p.vq, p.vk, p.vv, &args, p.scratch),              \
                       ERR_UNSUPPORTED, part);                                                                                               \
        args = p.args;                                                                                                                       \
    } while (0)
    args.mask.dilation = dilation;
    REFUSED("dilated windows");
    args.mask.global_index = view_1d(ids, DT_I32, 2);
    REFUSED("global tokens");
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
    assert_refused(cpu_attention_fwd(attention_device, p.vo, p.vlse, p.vq, bad, p.vv, &args, p.scratch), ERR_UNSUPPORTED, "cannot be shared evenly");
    bad = p.vv;
    bad.n[1] = 4;
    assert_refused(cpu_attention_fwd(attention_device, p.vo, p.vlse, p.vq, p.vk, bad, &args, p.scratch), ERR_UNSUPPORTED, "v has 4 axes");
    bad = p.vo;
    bad.dtype = DT_BF16;
    assert_refused(cpu_attention_fwd(attention_device, bad, p.vlse, p.vq, p.vk, p.vv, &args, p.scratch), ERR_UNSUPPORTED, "o is bf16");
    bad = p.vdk;
    bad.s[3] = 2;
    assert_refused(cpu_attention_bwd(attention_device, p.vdq, bad, p.vdv, p.vdout, p.vo, p.vlse, p.vq, p.vk, p.vv, &args, p.scratch), ERR_UNSUPPORTED,
                   "last axis of dk has stride 2");
    bad = p.vq;
    bad.n[3] = 260;
    assert_refused(cpu_attention_fwd(attention_device, p.vo, p.vlse, bad, p.vk, p.vv, &args, p.scratch), ERR_UNSUPPORTED, "head width 260");
    assert_true(isnan(p.o_rows[0]) && isnan(p.lse[0]) && isnan(*view_f32(p.vdq))); /* outputs left alone */
    attention_case_close(&p);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_error_is_at_most_twice_that_of_plain_f32),
        cmocka_unit_test(test_expansion),
        cmocka_unit_test(test_same_bits_for_every_team),
        cmocka_unit_test(test_scratch_is_linear),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_attention_every_isa),
    };
    return attention_case_main(argc, argv, tests, COUNT_OF(tests));
}
