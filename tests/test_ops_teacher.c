/* The teacher of xent on the CPU: losses and gradients of both its forms against the double reference and its finite differences, for every
 * instruction set; what must hold to the bit; refusals. */
#include <math.h>

#include "ops.h"
#include "reference/teacher.h"

void harness_boot(int argc, char **argv) { kernels_boot(argc, argv); }

struct form {
    int64_t N, C, V, Ct; /* Ct 0: K tokens instead of a head */
    int64_t K;
    float scale, cap, weight, tau;
    int bias, gradients;
    float sharpness; /* the teacher's logit scale */
};

/* Everything a call needs; the f64 copies are what the reference reads. */
struct both {
    struct form f;
    struct view x, w, bias, hidden, head, teacher_bias, ids, logp, targets, w16, head16;
    double *x64, *w64, *b64, *h64, *t64, *tb64, *logp64;
    struct ref_head student, teacher;
    struct ref_teacher t;
    int64_t valid;
    float inv;
};

static int32_t *ids_of(struct view v) { return v.p; }

static void tokens_make(struct both *b)
{
    const struct form *f = &b->f;
    b->ids = view_2d(calloc((size_t)(f->N * f->K), 4), DT_I32, f->N, f->K);
    b->logp = ops_rows(f->N, f->K, 3, 0);
    b->logp64 = calloc((size_t)(f->N * f->K), 8);
    double *z = calloc((size_t)f->V, 8);
    for (int64_t n = 0; n < f->N; n++) {
        ref_logits(z, &b->teacher, n, f->V);
        ref_topk(ids_of(b->ids) + n * f->K, b->logp64 + n * f->K, z, f->V, f->K, (double)f->tau);
        for (int64_t k = 0; k < f->K; k++) {
            float *to = view_f32(b->logp) + n * b->logp.s[0] + k;
            *to = (float)b->logp64[n * f->K + k];
            b->logp64[n * f->K + k] = (double)*to;
            if (f->K > 2 && f->K < f->V && n % 3 == 1 && k % 3 == 2) {
                ids_of(b->ids)[n * f->K + k] = -1; /* unused, whatever is beside it */
                *to = NAN;
            }
        }
    }
    free(z);
}

static struct both make(struct form f)
{
    struct both b = {.f = f};
    const int64_t Ct = f.Ct ? f.Ct : f.C + 1;
    b.x = ops_rows(f.N, f.C, 3, 1), b.w = ops_rows(f.V, f.C, f.gradients ? 5 : 0, 2), b.bias = ops_vector(f.V, 3);
    b.hidden = ops_rows(f.N, Ct, 2, 11), b.head = ops_rows(f.V, Ct, f.gradients ? 1 : 0, 12), b.teacher_bias = ops_vector(f.V, 13);
    if (!f.gradients)
        b.w16 = ops_bf16(b.w), b.head16 = ops_bf16(b.head);
    int32_t *targets = calloc((size_t)f.N, 4);
    for (int64_t n = 0; n < f.N; n++) {
        targets[n] = n % 4 == 1 ? -1 : (int32_t)random_int(6, (uint64_t)n, 0, f.V - 1);
        b.valid += targets[n] >= 0;
    }
    b.targets = view_1d(targets, DT_I32, f.N);
    b.x64 = ops_f64(b.x), b.w64 = ops_f64(b.w), b.b64 = ops_f64(b.bias), b.h64 = ops_f64(b.hidden), b.t64 = ops_f64(b.head);
    b.tb64 = ops_f64(b.teacher_bias);
    b.student = (struct ref_head){b.x64, b.w64, f.bias ? b.b64 : NULL, f.C, (double)f.scale, (double)f.cap};
    b.teacher = (struct ref_head){b.h64, b.t64, f.bias ? b.tb64 : NULL, Ct, (double)f.sharpness, f.cap > 0 ? 4 : 0};
    b.inv = 1.0f / (float)(b.valid ? b.valid : 1);
    if (f.Ct == 0)
        tokens_make(&b);
    b.t = (struct ref_teacher){.ids = b.ids.p, .logp = b.logp64, .K = f.K, .weight = (double)f.weight, .tau = (double)f.tau};
    return b;
}

/* Once `b` lies where it stays: the reference points into it. */
static struct xent_teacher teacher_of(struct both *b, double *kl)
{
    const struct form *f = &b->f;
    b->t.head = f->Ct ? &b->teacher : NULL;
    struct xent_teacher t = {.logit_scale = f->sharpness, .logit_softcap = (float)b->teacher.cap, .weight = f->weight, .temperature = f->tau, .kl_sum = kl};
    if (f->Ct)
        t.hidden = b->hidden, t.head = f->gradients ? b->head : b->head16, t.bias = f->bias ? b->teacher_bias : view_none();
    else
        t.ids = b->ids, t.logp = b->logp;
    return t;
}

static void both_free(struct both *b)
{
    free(b->x.p), free(b->w.p), free(b->bias.p), free(b->hidden.p), free(b->head.p), free(b->teacher_bias.p), free(b->ids.p), free(b->logp.p);
    free(b->targets.p), free(b->w16.p), free(b->head16.p), free(b->x64), free(b->w64), free(b->b64), free(b->h64), free(b->t64), free(b->tb64);
    free(b->logp64);
}

struct result { struct view dx, dw, dbias, logp; double loss, kl; int64_t count; };

/* teacher NULL: a run without one. dw and dbias start at their random values. */
static struct result run(struct device *dev, struct both *b, const struct xent_teacher *teacher)
{
    const struct form *f = &b->f;
    struct result r = {.dx = ops_rows(f->N, f->C, 2, 0), .dw = ops_rows(f->V, f->C, 0, 4), .dbias = ops_vector(f->V, 5), .logp = ops_vector(f->N, 0)};
    struct xent_teacher t = teacher != NULL ? *teacher : (struct xent_teacher){.weight = 0};
    if (t.kl_sum != NULL)
        t.kl_sum = &r.kl;
    const struct xent_args args = {.logit_scale = f->scale, .logit_softcap = f->cap, .inv_count = &b->inv, .bias = f->bias ? b->bias : view_none(),
                                   .dbias = f->bias && f->gradients ? r.dbias : view_none(), .teacher = teacher != NULL ? &t : NULL};
    const size_t bytes = cpu_xent_scratch(dev, f->N, f->C, f->V, teacher == NULL ? 0 : f->Ct ? f->V : f->K);
    char *scratch = aligned_alloc(64, (bytes + 127) / 64 * 64);
    memset(scratch, 0xff, bytes);
    scratch[bytes] = 0x5a;
    assert_ok(cpu_xent(dev, &r.loss, &r.count, r.logp, f->gradients ? r.dx : view_none(), f->gradients ? r.dw : view_none(), b->x,
                       f->gradients ? b->w : b->w16, b->targets, &args, scratch));
    assert_int_equal(scratch[bytes], 0x5a);
    free(scratch);
    return r;
}

static void result_free(struct result *r) { free(r->dx.p), free(r->dw.p), free(r->dbias.p), free(r->logp.p); }

static double loss_of(void *context)
{
    struct both *b = context;
    return ref_teacher_loss(&b->student, &b->t, b->targets.p, b->f.N, b->f.V, NULL, NULL);
}

/* How many are not within 1e-7 of each other. */
static int64_t apart(const double *a, const double *b, int64_t n)
{
    int64_t bad = 0;
    for (int64_t i = 0; i < n; i++)
        bad += !(fabs(a[i] - b[i]) <= 1e-7 * (1 + fabs(b[i])));
    return bad;
}

static void one(struct device *dev, struct form f)
{
    struct both b = make(f);
    double some = 0, ce, kl;
    const struct xent_teacher t = teacher_of(&b, &some);
    char name[160];
    snprintf(name, sizeof name, "%s N %d C %d V %d Ct %d K %d bias %d scale %g cap %g weight %g tau %g", dev->loops->name, (int)f.N, (int)f.C, (int)f.V,
             (int)f.Ct, (int)f.K, f.bias, (double)f.scale, (double)f.cap, (double)f.weight, (double)f.tau);
    ref_teacher_loss(&b.student, &b.t, b.targets.p, f.N, f.V, &ce, &kl);
    struct result r = run(dev, &b, &t);
    if (!(fabs(r.loss - ce) <= 2e-6 * (1 + fabs(ce))) || !(fabs(r.kl - kl) <= 2e-6 * ((double)b.valid + fabs(kl))))
        print_error("%s: CE %.9g, expected %.9g; KL %.9g, expected %.9g\n", name, r.loss, ce, r.kl, kl);
    assert_true(fabs(r.loss - ce) <= 2e-6 * (1 + fabs(ce)));
    assert_true(fabs(r.kl - kl) <= 2e-6 * ((double)b.valid + fabs(kl)));
    assert_int_equal(r.count, b.valid);
    if (f.gradients) {
        const int64_t sizes[3] = {f.N * f.C, f.V * f.C, f.bias ? f.V : 0};
        double *d = calloc((size_t)(f.N * f.C + f.V * f.C + f.V), 8), *want = calloc((size_t)(f.N * f.C + f.V * f.C + f.V), 8);
        double *starts[3] = {NULL, NULL, NULL}, *at[3] = {want, want + f.N * f.C, want + f.N * f.C + f.V * f.C}, *inputs[3] = {b.x64, b.w64, b.b64};
        struct view outputs[3] = {r.dx, r.dw, r.dbias}, before_w = ops_rows(f.V, f.C, 0, 4), before_b = ops_vector(f.V, 5);
        starts[1] = ops_f64(before_w), starts[2] = ops_f64(before_b);
        ref_teacher_gradient(at[0], at[1], f.bias ? at[2] : NULL, &b.student, &b.t, b.targets.p, f.N, f.V, 1, NULL);
        for (int i = 0; i < 3; i++) {
            if (sizes[i] == 0)
                continue;
            ops_differences(loss_of, &b, inputs[i], sizes[i], d);
            assert_int_equal(apart(at[i], d, sizes[i]), 0);
            for (int64_t j = 0; j < sizes[i]; j++)
                at[i][j] = at[i][j] * (double)b.inv + (starts[i] != NULL ? starts[i][j] : 0);
            assert_true(ops_compare(name, outputs[i], at[i], 2e-5, 1e-6));
        }
        assert_true(ops_gaps_ok(r.dx, 2));
        free(d), free(want), free(starts[1]), free(starts[2]), free(before_w.p), free(before_b.p);
    }
    result_free(&r), both_free(&b);
}

static void test_teacher(void **state)
{
    (void)state;
    static const struct form forms[] = {
        /*  N   C   V  Ct   K scale cap weight tau bias grad sharpness */
        {5, 7, 11, 9, 0, 1, 0, 0.3f, 1, 0, 1, 1},        {21, 8, 33, 4, 0, 1, 0, 1, 1, 1, 1, 1},
        {9, 5, 64, 5, 0, 0.7f, 3, 0.5f, 1, 1, 1, 0.5f},  {6, 5, 150, 3, 0, 2, 0, 0.25f, 2, 0, 1, 1},
        {6, 4, 83, 11, 0, 1, 5, 0.7f, 2, 1, 1, 1},       {6, 6, 40, 6, 0, 1, 0, 1, 0.5f, 1, 1, 0.3f},
        {3, 16, 2, 5, 0, 1, 30, 0.5f, 1, 1, 1, 1},       {2, 3, 1, 4, 0, 1, 0, 0.5f, 2, 1, 1, 1},
        {6, 4, 17, 3, 0, 1, 0, 0, 1, 1, 1, 1},           {40, 24, 1003, 17, 0, 1, 0, 0.5f, 1, 0, 0, 1},
        {40, 24, 157, 17, 0, 0.5f, 5, 0.5f, 2, 1, 0, 1}, {2100, 4, 77, 3, 0, 1, 0, 1, 1, 0, 0, 1},
        {5, 7, 11, 0, 4, 1, 0, 0.3f, 1, 0, 1, 1},        {21, 8, 33, 0, 5, 1, 0, 1, 1, 1, 1, 1},
        {9, 5, 64, 0, 3, 0.7f, 3, 0.5f, 1, 1, 1, 0.5f},  {6, 5, 150, 0, 20, 2, 0, 0.25f, 2, 0, 1, 1},
        {6, 4, 83, 0, 1, 1, 5, 0.7f, 2, 1, 1, 1},        {6, 6, 40, 0, 39, 1, 0, 1, 0.5f, 1, 1, 0.3f},
        {6, 6, 40, 0, 40, 1, 0, 1, 0.5f, 1, 1, 0.3f},    {3, 16, 2, 0, 1, 1, 30, 0.5f, 1, 1, 1, 1},
        {2, 3, 1, 0, 1, 1, 0, 0.5f, 2, 1, 1, 1},         {9, 24, 300, 0, 8, 1, 0, 0.5f, 1, 1, 1, 4}, /* a sharp teacher: little is left for the rest */
        {40, 24, 1003, 0, 8, 1, 0, 0.5f, 1, 0, 0, 1},    {2100, 4, 77, 0, 3, 1, 0, 1, 2, 0, 0, 1},
    };
    FOR_EACH_ISA(isa) {
        struct device *dev = ops_device((enum isa)isa, 2);
        for (size_t i = 0; i < COUNT_OF(forms); i++)
            one(dev, forms[i]);
        cpu_device_close(dev);
    }
}

/* With weight 0 every output but kl_sum has the bits it has without a teacher; loss, count and logp always. */
static void test_weight_zero(void **state)
{
    (void)state;
    FOR_EACH_ISA(isa) {
        struct device *dev = ops_device((enum isa)isa, 2);
        for (int i = 0; i < 16; i++) {
            const struct form f = {19, 7, 65, i & 1 ? 5 : 0, 6, 1, i & 2 ? 3 : 0, i & 8 ? 0.5f : 0, i & 4 ? 2 : 1, 1, 1, 1};
            struct both b = make(f);
            double some = 0;
            struct xent_teacher t = teacher_of(&b, &some);
            for (int wanted = 0; wanted < 2; wanted++) {
                t.kl_sum = wanted ? &some : NULL;
                struct result with = run(dev, &b, &t), without = run(dev, &b, NULL);
                assert_true(with.loss == without.loss && with.count == without.count);
                assert_memory_equal(with.logp.p, without.logp.p, (size_t)f.N * 4);
                if (f.weight == 0) {
                    assert_memory_equal(with.dx.p, without.dx.p, (size_t)(f.N * (f.C + 2)) * 4 - 8);
                    assert_memory_equal(with.dw.p, without.dw.p, (size_t)(f.V * f.C) * 4);
                    assert_memory_equal(with.dbias.p, without.dbias.p, (size_t)f.V * 4);
                }
                assert_true(wanted ? with.kl > 0 : with.kl == 0);
                result_free(&with), result_free(&without);
            }
            both_free(&b);
        }
        cpu_device_close(dev);
    }
}

/* A teacher that is the student: no divergence and no gradient, exactly. */
static void test_same(void **state)
{
    (void)state;
    FOR_EACH_ISA(isa) {
        struct device *dev = ops_device((enum isa)isa, 2);
        for (int i = 0; i < 6; i++) {
            const struct form f = {.N = 21, .C = 7, .V = 70, .Ct = 7, .scale = 0.7f, .cap = i % 2 ? 4.0f : 0.0f, .weight = 1, .tau = i < 2 ? 1 : i < 4 ? 2 : 0.5f, .bias = 1,
                                   .gradients = 1, .sharpness = 0.7f};
            struct both b = make(f);
            double some = 0;
            struct xent_teacher t = teacher_of(&b, &some);
            t.hidden = b.x, t.head = b.w, t.bias = b.bias, t.logit_softcap = f.cap;
            struct result r = run(dev, &b, &t);
            assert_true(r.kl == 0 && r.loss > 0);
            for (int64_t n = 0; n < f.N; n++)
                for (int64_t c = 0; c < f.C; c++)
                    assert_true(view_f32(r.dx)[n * r.dx.s[0] + c] == 0);
            result_free(&r), both_free(&b);
        }
        cpu_device_close(dev);
    }
}

/* All V tokens given are the whole distribution; and chunks add up. */
static void test_all_tokens(void **state)
{
    (void)state;
    FOR_EACH_ISA(isa) {
        struct device *dev = ops_device((enum isa)isa, 2);
        for (int i = 0; i < 4; i++) {
            struct form f = {.N = i == 3 ? 1500 : 23, .C = 6, .V = 37, .Ct = 7, .K = 37, .scale = 1, .cap = i == 1 ? 6.0f : 0.0f, .weight = 0.6f, .tau = i == 2 ? 2 : 1,
                             .bias = 1, .gradients = 1, .sharpness = 1};
            struct both whole = make(f);
            f.Ct = 0;
            struct both tokens = make(f);
            double some = 0;
            const struct xent_teacher tw = teacher_of(&whole, &some), tt = teacher_of(&tokens, &some);
            struct result a = run(dev, &whole, &tw), c = run(dev, &tokens, &tt);
            assert_true(fabs(a.kl - c.kl) <= 2e-6 * (double)f.N && a.loss == c.loss);
            double *dx = ops_f64(c.dx), *dw = ops_f64(c.dw), *db = ops_f64(c.dbias);
            assert_true(ops_compare("dx", a.dx, dx, 1e-5, 1e-6));
            assert_true(ops_compare("dw", a.dw, dw, 1e-5, 2e-6));
            assert_true(ops_compare("dbias", a.dbias, db, 1e-5, 2e-6));
            free(dx), free(dw), free(db);
            result_free(&a), result_free(&c), both_free(&whole), both_free(&tokens);
        }
        cpu_device_close(dev);
    }
}

/* Numbers that are none: the student's reach the loss, the teacher's the divergence and the gradients; a masked row stays out of it. */
static void test_not_finite(void **state)
{
    (void)state;
    FOR_EACH_ISA(isa) {
        struct device *dev = ops_device((enum isa)isa, 2);
        for (int i = 0; i < 8; i++) {
            const int tokens = i & 1, of_student = i & 2, masked = i & 4;
            const struct form f = {.N = 9, .C = 5, .V = 40, .Ct = tokens ? 0 : 6, .K = 4, .scale = 1, .weight = 0.5f, .tau = 1, .bias = 1, .gradients = 1, .sharpness = 1};
            struct both b = make(f);
            double some = 0;
            const struct xent_teacher t = teacher_of(&b, &some);
            const int64_t row = masked ? 5 : 6; /* 5 has no target */
            struct view into = of_student ? b.x : tokens ? b.logp : b.hidden;
            view_f32(into)[row * into.s[0]] = NAN;
            struct result r = run(dev, &b, &t);
            assert_true(isnan(r.loss) == (of_student && !masked));
            assert_true(isnan(r.kl) == !masked);
            for (int64_t n = 0; n < f.N; n++)
                assert_true(isnan(view_f32(r.dx)[n * r.dx.s[0]]) == (n == row && !masked));
            result_free(&r), both_free(&b);
        }
        cpu_device_close(dev);
    }
}

static void test_refusals(void **state)
{
    (void)state;
    struct device *dev = ops_device(host_isa(), 2);
    const struct form f = {.N = 5, .C = 4, .V = 12, .Ct = 6, .K = 3, .scale = 1, .weight = 0.5f, .tau = 1, .gradients = 1, .sharpness = 1};
    struct form g = f;
    g.Ct = 0;
    struct both b = make(f), k = make(g);
    double loss = 5, some = 0;
    int64_t count = 0;
    const struct xent_teacher whole = teacher_of(&b, &some), tokens = teacher_of(&k, &some);
    struct view dx = ops_rows(f.N, f.C, 0, 0), dw = ops_rows(f.V, f.C, 0, 4);
    void *scratch = aligned_alloc(64, (cpu_xent_scratch(dev, f.N, f.C, f.V, f.V) + 63) / 64 * 64);
#define REFUSED(t, code, part)                                                                                                            \
    do {                                                                                                                                  \
        const struct xent_args args = {.logit_scale = 1, .inv_count = &b.inv, .teacher = &(t)};                                           \
        assert_refused(cpu_xent(dev, &loss, &count, view_none(), dx, dw, b.x, b.w, b.targets, &args, scratch), code, part);               \
    } while (0)
    struct xent_teacher t = whole;
    t.temperature = 0;
    REFUSED(t, ERR_UNSUPPORTED, "temperature");
    t.temperature = NAN;
    REFUSED(t, ERR_UNSUPPORTED, "temperature");
    t = whole, t.weight = 1.5f;
    REFUSED(t, ERR_UNSUPPORTED, "weight");
    t = whole, t.hidden = view_slice(t.hidden, 0, 0, 4);
    REFUSED(t, ERR_UNSUPPORTED, "teacher's hidden");
    t = whole, t.head = view_slice(t.head, 0, 0, 11);
    REFUSED(t, ERR_UNSUPPORTED, "teacher's head");
    t = whole, t.ids = tokens.ids, t.logp = tokens.logp;
    REFUSED(t, ERR_UNSUPPORTED, "both");
    t = (struct xent_teacher){.weight = 0.5f, .temperature = 1};
    REFUSED(t, ERR_UNSUPPORTED, "neither");
    t = tokens, t.logp = view_slice(t.logp, 1, 0, 2);
    REFUSED(t, ERR_UNSUPPORTED, "teacher's logp");
    ids_of(k.ids)[7] = 12;
    REFUSED(tokens, ERR_INTERNAL, "token 12 of row 2");
    ids_of(k.ids)[7] = -2;
    REFUSED(tokens, ERR_INTERNAL, "token -2 of row 2");
    assert_true(loss == 5 && count == 0 && some == 0);
    free(dx.p), free(dw.p), free(scratch);
    both_free(&b), both_free(&k);
    for (int64_t V = 100; V < 200000; V *= 11)
        for (int64_t K = 0, before = 0; K <= V; K += K < 9 ? 1 : 1 + V / 7)
            for (int64_t N = 1; N < 2600; N = N * 3 + 1) {
                const int64_t bytes = (int64_t)cpu_xent_scratch(dev, N, 64, V, K), more = (int64_t)cpu_xent_scratch(dev, N + 1, 64, V, K);
                assert_true(bytes <= more && (N > 1 || bytes >= before));
                before = N == 1 ? bytes : before;
            }
    cpu_device_close(dev);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_teacher),    cmocka_unit_test(test_weight_zero), cmocka_unit_test(test_same),
                                       cmocka_unit_test(test_all_tokens), cmocka_unit_test(test_not_finite),  cmocka_unit_test(test_refusals)};
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
