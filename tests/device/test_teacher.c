/* The teacher of xent on the device, both forms: CE, KL and gradients. f32 against the double reference and its closed form, which
 * tests/test_ops_teacher.c holds against differences; bf16 by the 2x rule, the plain computation rounding the logits' gradient to bf16. */
#include <math.h>

#include "reference/teacher.h"
#include "tensor.h"

struct form {
    int64_t N, C, V, Ct, K; /* Ct 0: K tokens */
    float scale, cap, weight, tau;
    int bias, gradients;
};

/* What a run takes: on the device and as doubles. */
struct both {
    struct form f;
    enum dtype type;
    struct tensor x, w, hidden, head;
    struct view bias, teacher_bias, ids, logp, targets;
    struct ref_head student, teacher;
    struct ref_teacher t;
    int32_t target[512];
    int64_t valid;
    float *inv;
    double want_ce, want_kl;
};

static double to_bf16(double x) { return tensor_round(x, DT_BF16); }

static void *upload(const void *p, size_t bytes)
{
    void *to = case_bytes(bytes);
    assert_ok(case_backend()->device_copy(case_device(), to, p, bytes));
    return to;
}

static void tokens_make(struct both *b)
{
    const struct form *f = &b->f;
    int32_t *ids = calloc((size_t)(f->N * f->K), 4);
    double *logp = tensor_doubles(f->N * f->K), *z = tensor_doubles(f->V);
    for (int64_t n = 0; n < f->N; n++) {
        ref_logits(z, &b->teacher, n, f->V);
        ref_topk(ids + n * f->K, logp + n * f->K, z, f->V, f->K, (double)f->tau);
        for (int64_t k = 0; k < f->K; k++)
            if (f->K > 2 && f->K < f->V && n % 3 == 1 && k % 3 == 2)
                ids[n * f->K + k] = -1;
    }
    b->ids = case_upload_i32(ids, 2, (int64_t[]){f->N, f->K});
    b->logp = case_upload(logp, DT_F32, 2, (int64_t[]){f->N, f->K});
    int32_t *kept = (int32_t *)(void *)tensor_doubles(f->N * f->K);
    memcpy(kept, ids, (size_t)(f->N * f->K) * 4);
    free(ids);
    b->t.ids = kept, b->t.logp = logp, b->t.K = f->K;
}

static void make(struct both *b, struct form f, enum dtype type, int64_t gap)
{
    memset(b, 0, sizeof *b);
    b->f = f, b->type = type;
    const int64_t Ct = f.Ct ? f.Ct : f.C;
    b->x = tensor_random(type, f.N, f.C, gap, 1, 1), b->w = tensor_random(type, f.V, f.C, gap, 2, 1);
    b->hidden = tensor_random(type, f.N, Ct, gap, 11, 1), b->head = tensor_random(type, f.V, Ct, gap, 12, 1);
    double *b64 = tensor_doubles(f.V), *tb64 = tensor_doubles(f.V);
    fill_random_f64(b64, f.V, 3), fill_random_f64(tb64, f.V, 13);
    b->bias = f.bias ? tensor_vector(b64, DT_F32, f.V) : view_none(), b->teacher_bias = f.bias ? tensor_vector(tb64, DT_F32, f.V) : view_none();
    CHECK(f.N <= 512);
    for (int64_t n = 0; n < f.N; n++) {
        b->target[n] = n % 4 == 1 ? -1 : (int32_t)random_int(6, (uint64_t)n, 0, f.V - 1);
        b->valid += b->target[n] >= 0;
    }
    b->targets = case_upload_i32(b->target, 1, &f.N);
    b->student = (struct ref_head){b->x.x, b->w.x, f.bias ? b64 : NULL, f.C, (double)f.scale, (double)f.cap};
    b->teacher = (struct ref_head){b->hidden.x, b->head.x, f.bias ? tb64 : NULL, Ct, 0.9, f.cap > 0 ? 4 : 0};
    b->teacher.scale = (double)(float)0.9;
    b->t.weight = (double)f.weight, b->t.tau = (double)f.tau;
    if (f.Ct)
        b->t.head = &b->teacher;
    else
        tokens_make(b);
    const float inv = 1.0f / (float)(b->valid ? b->valid : 1);
    b->inv = upload(&inv, sizeof inv);
    ref_teacher_loss(&b->student, &b->t, b->target, f.N, f.V, &b->want_ce, &b->want_kl);
}

static struct xent_teacher teacher_of(const struct both *b)
{
    struct xent_teacher t = {.logit_scale = (float)b->teacher.scale, .logit_softcap = (float)b->teacher.cap, .weight = b->f.weight, .temperature = b->f.tau};
    if (b->f.Ct)
        t.hidden = b->hidden.v, t.head = b->head.v, t.bias = b->teacher_bias;
    else
        t.ids = b->ids, t.logp = b->logp;
    return t;
}

struct result { struct tensor dx, dw; struct view db, logp; double loss, kl; int64_t count; };

/* t NULL: without a teacher; kl: whether its divergence is wanted. */
static struct result run(const struct both *b, const struct xent_teacher *t, int kl)
{
    const struct backend *k = case_backend();
    struct device *dev = case_device();
    const struct form *f = &b->f;
    const double zero[2] = {0, 0};
    const int64_t none = 0;
    struct result r = {.dx = tensor_output(b->type, f->N, f->C, 3), .dw = tensor_random(DT_F32, f->V, f->C, 3, 4, 1), .logp = case_output(DT_F32, 1, &f->N)};
    double *db64 = tensor_doubles(f->V), *sums = upload(zero, sizeof zero);
    int64_t *count = upload(&none, sizeof none);
    r.db = tensor_vector(db64, DT_F32, f->V);
    struct xent_teacher teacher = t != NULL ? *t : (struct xent_teacher){.weight = 0};
    teacher.kl_sum = kl ? sums + 1 : NULL;
    const struct xent_args args = {.logit_scale = f->scale, .logit_softcap = f->cap, .inv_count = b->inv, .bias = b->bias,
                                   .dbias = f->bias && f->gradients ? r.db : view_none(), .teacher = t != NULL ? &teacher : NULL};
    assert_ok(k->xent(dev, sums, count, r.logp, f->gradients ? r.dx.v : view_none(), f->gradients ? r.dw.v : view_none(), b->x.v, b->w.v, b->targets, &args,
                      case_bytes(k->xent_scratch(dev, f->N, f->C, f->V, t == NULL ? 0 : f->Ct ? f->V : f->K))));
    double got[2];
    assert_ok(k->device_copy(dev, got, sums, sizeof got));
    assert_ok(k->device_copy(dev, &r.count, count, sizeof r.count));
    assert_ok(k->device_sync(dev));
    r.loss = got[0], r.kl = got[1];
    assert_int_equal(case_faults(), 0);
    return r;
}

static void one(struct form f, enum dtype type, int64_t gap)
{
    static struct both b;
    make(&b, f, type, gap);
    char name[160];
    snprintf(name, sizeof name, "teacher %s N %d C %d V %d Ct %d K %d bias %d scale %g cap %g weight %g tau %g gap %d", dtype_name(type), (int)f.N, (int)f.C, (int)f.V,
             (int)f.Ct, (int)f.K, f.bias, (double)f.scale, (double)f.cap, (double)f.weight, (double)f.tau, (int)gap);
    const struct xent_teacher t = teacher_of(&b);
    struct result r = run(&b, &t, 1), again = run(&b, &t, 1), without = run(&b, NULL, 0);
    case_expect_near(name, &r.loss, &b.want_ce, 1, 1e-5, 1e-6);
    case_expect_near(name, &r.kl, &b.want_kl, 1, 4e-6 * (double)b.valid, 4e-6);
    assert_int_equal(r.count, b.valid);
    assert_true(r.loss == again.loss && r.kl == again.kl && r.loss == without.loss);
    assert_memory_equal(tensor_get_view(r.logp), tensor_get_view(without.logp), (size_t)f.N * 8);
    if (f.gradients) {
        const int64_t n[3] = {f.N * f.C, f.V * f.C, f.bias ? f.V : 0};
        double *want[2][3], *got[3] = {tensor_get(r.dx), tensor_get(r.dw), tensor_get_view(r.db)};
        double *same[3] = {tensor_get(again.dx), tensor_get(again.dw), tensor_get_view(again.db)};
        double *plain[3] = {tensor_get(without.dx), tensor_get(without.dw), tensor_get_view(without.db)};
        for (int low = 0; low < 2; low++) {
            for (int i = 0; i < 3; i++)
                want[low][i] = tensor_doubles(n[i] + 1);
            memcpy(want[low][1], r.dw.x, (size_t)n[1] * 8);
            ref_teacher_gradient(want[low][0], want[low][1], f.bias ? want[low][2] : NULL, &b.student, &b.t, b.target, f.N, f.V,
                                 (double)(1.0f / (float)(b.valid ? b.valid : 1)), low && type == DT_BF16 ? to_bf16 : NULL);
        }
        for (int64_t i = 0; i < n[0]; i++)
            want[1][0][i] = tensor_round(want[1][0][i], type);
        for (int i = 0; i < (f.bias ? 3 : 2); i++) {
            case_expect_2x(name, got[i], want[0][i], want[1][i], (size_t)n[i], 2e-6 + 1e-9 * (double)f.V);
            assert_memory_equal(got[i], same[i], (size_t)n[i] * 8);
            if (f.weight == 0)
                assert_memory_equal(got[i], plain[i], (size_t)n[i] * 8);
        }
        assert_true(tensor_gaps_ok(r.dx) && tensor_gaps_ok(r.dw));
    }
    tensors_free();
}

static void test_teacher(void **state)
{
    (void)state;
    static const struct form forms[] = {
        /* N   C    V  Ct   K scale cap weight tau bias grad */
        {5, 7, 11, 9, 0, 1, 0, 0.3f, 1, 0, 1},        {33, 8, 33, 4, 0, 1, 0, 1, 1, 1, 1},     {19, 5, 64, 5, 0, 0.7f, 3, 0.5f, 1, 1, 1},
        {6, 8, 150, 3, 0, 2, 0, 0.25f, 2, 0, 1},      {6, 4, 83, 11, 0, 1, 5, 0.7f, 2, 1, 1},  {5, 6, 600, 6, 0, 1, 0, 1, 0.5f, 1, 1},
        {3, 16, 2, 5, 0, 1, 30, 0.5f, 1, 1, 1},       {2, 3, 1, 4, 0, 1, 0, 0.5f, 2, 1, 1},    {6, 4, 70, 3, 0, 1, 2, 0, 1, 1, 1},
        {3, 8, 2500, 9, 0, 1, 0, 0.5f, 1, 1, 1},      {2, 8, 16500, 5, 0, 1, 0, 0.5f, 2, 0, 1}, {9, 24, 517, 17, 0, 0.5f, 5, 0.5f, 2, 1, 0},
        {300, 8, 150, 6, 0, 1, 0, 0.5f, 1, 1, 1}, /* three chunks in the executor */
        {5, 7, 11, 0, 4, 1, 0, 0.3f, 1, 0, 1},        {33, 8, 33, 0, 5, 1, 0, 1, 1, 1, 1},     {19, 5, 64, 0, 3, 0.7f, 3, 0.5f, 1, 1, 1},
        {6, 8, 150, 0, 20, 2, 0, 0.25f, 2, 0, 1},     {6, 4, 83, 0, 1, 1, 5, 0.7f, 2, 1, 1},   {5, 6, 600, 0, 599, 1, 0, 1, 0.5f, 1, 1},
        {5, 6, 600, 0, 600, 1, 0, 1, 0.5f, 1, 1},     {3, 16, 2, 0, 1, 1, 30, 0.5f, 1, 1, 1},  {2, 3, 1, 0, 1, 1, 0, 0.5f, 2, 1, 1},
        {6, 4, 70, 0, 9, 1, 2, 0, 1, 1, 1},           {3, 8, 2500, 0, 70, 1, 0, 0.5f, 1, 1, 1}, {2, 8, 16500, 0, 32, 1, 0, 0.5f, 2, 0, 1},
        {9, 24, 517, 0, 8, 0.5f, 5, 0.5f, 2, 1, 0},   {300, 8, 150, 0, 6, 1, 0, 0.5f, 1, 1, 1}};
    for (size_t i = 0; i < COUNT_OF(forms); i++)
        for (int bf16 = 0; bf16 < 2; bf16++)
            one(forms[i], bf16 ? DT_BF16 : DT_F32, i % 2 ? 8 : 3);
}

/* The student as its own teacher: neither divergence nor gradient. And a weight of 0 whose divergence nobody wants is no teacher. */
static void test_same(void **state)
{
    (void)state;
    static struct both b;
    for (int i = 0; i < 8; i++) {
        const enum dtype type = i & 1 ? DT_BF16 : DT_F32;
        make(&b, (struct form){9, 8, 70, 8, 0, 1, i & 2 ? 4.0f : 0.0f, 1, i & 4 ? 2.0f : 1.0f, 1, 1}, type, 3);
        struct xent_teacher t = teacher_of(&b);
        t.hidden = b.x.v, t.head = b.w.v, t.bias = b.bias, t.logit_scale = 1, t.logit_softcap = b.f.cap;
        struct result r = run(&b, &t, 1);
        assert_true(r.kl == 0);
        double *dx = tensor_get(r.dx);
        for (int64_t j = 0; j < 9 * 8; j++)
            assert_true(fabs(dx[j]) <= 1e-7);
        t.weight = 0;
        struct result off = run(&b, &t, 0), without = run(&b, NULL, 0);
        assert_memory_equal(tensor_get(off.dx), tensor_get(without.dx), 9 * 8 * 8);
        assert_memory_equal(tensor_get(off.dw), tensor_get(without.dw), 70 * 8 * 8);
        assert_true(off.loss == without.loss && off.kl == 0);
        tensors_free();
    }
}

/* What is not finite, and tokens outside the vocabulary, reach the sums that a step is judged by. */
static void test_bad(void **state)
{
    (void)state;
    static struct both b;
    for (int i = 0; i < 12; i++) {
        const int tokens = i & 1, what = i / 4; /* a NaN of the student, one of the teacher, a bad token (a teacher with a head: none) */
        const int row = i & 2 ? 5 : 6;          /* 5 has no target */
        make(&b, (struct form){9, 8, 40, tokens ? 0 : 8, 4, 1, 0, 0.5f, 1, 1, 1}, DT_F32, 0);
        struct xent_teacher t = teacher_of(&b);
        const float nan = NAN;
        const int32_t outside = i & 2 ? -2 : 40;
        const int harmless = row == 5 || (what == 2 && !tokens);
        struct view to = what == 0 ? b.x.v : tokens ? b.logp : b.hidden.v;
        if (what < 2)
            assert_ok(case_backend()->device_copy(case_device(), (float *)to.p + row * to.s[0], &nan, 4));
        else if (tokens)
            assert_ok(case_backend()->device_copy(case_device(), (int32_t *)b.ids.p + row * b.ids.s[0] + 1, &outside, 4));
        struct result r = run(&b, &t, 1);
        assert_true(isnan(r.loss) == (!harmless && what != 1));
        assert_true(isnan(r.kl) == !harmless);
        double *dx = tensor_get(r.dx);
        for (int n = 0; n < 9; n++)
            assert_true(isfinite(dx[n * 8]) == (n != row || harmless || what == 2));
        tensors_free();
    }
}

static void test_refusals(void **state)
{
    (void)state;
    static struct both b;
    const struct backend *k = case_backend();
    make(&b, (struct form){4, 8, 20, 8, 0, 1, 0, 0.5f, 1, 0, 0}, DT_F32, 0);
    struct tensor low = tensor_random(DT_BF16, 20, 8, 0, 1, 1);
    const struct xent_teacher good = teacher_of(&b);
    struct xent_teacher t = good;
    const struct xent_args args = {.logit_scale = 1, .teacher = &t};
#define REFUSED(part) \
    assert_refused(k->xent(case_device(), NULL, NULL, view_none(), view_none(), view_none(), b.x.v, b.w.v, b.targets, &args, NULL), ERR_UNSUPPORTED, part)
    t.temperature = 0;
    REFUSED("temperature");
    t = good, t.weight = -0.1f;
    REFUSED("weight");
    t = good, t.head = low.v;
    REFUSED("teacher's head is bf16");
    t = good, t.head = view_slice(good.head, 0, 0, 19);
    REFUSED("teacher's head");
    t = good, t.ids = b.targets;
    REFUSED("both");
    t = good, t.head = view_none();
    REFUSED("neither");
    for (int64_t N = 1, largest = 0; N < 9000; N += N < 300 ? 7 : 997) {
        const int64_t bytes = (int64_t)k->xent_scratch(case_device(), N, 64, 32000, 32000), some = (int64_t)k->xent_scratch(case_device(), N, 64, 32000, 64);
        assert_true(bytes >= largest && bytes <= ((int64_t)1026 << 20) && some < bytes);
        largest = bytes;
    }
    tensors_free();
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_teacher), cmocka_unit_test(test_same), cmocka_unit_test(test_bad), cmocka_unit_test(test_refusals)};
    return case_main(argc, argv, tests, COUNT_OF(tests));
}
