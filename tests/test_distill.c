/* A model taught by another: gradients against central differences of the double reference, the same teacher from its most likely tokens, and what
 * must not change anything. */
#include <math.h>

#include "model_checks.h"
#include "small_checkpoint.h"

enum { N = TINY_B * TINY_T, V = TINY_V };

/* Another model of the same tokens: other width, other heads, capped logits, a bias on them. */
static void teacher_arch(struct arch *a)
{
    fixture_arch(a);
    a->C = 18;
    a->tied = 0;
    a->logit_softcap = 6.0;
    a->bias = BIAS_HEAD;
    for (int l = 0; l < 2; l++) {
        a->stack[STACK_DEC].block[l].H = 4;
        a->stack[STACK_DEC].block[l].G = 2;
    }
}

/* Student and teacher on one device. */
struct pair {
    struct tiny student;
    struct arch arch;
    struct reference_model ref;
    struct model *teacher;
    double *logits; /* of the teacher [N,V] */
    struct model_teacher lesson;
    double kl;
};

static void pair_open(struct pair *p, double weight, double tau, int64_t taught)
{
    struct arch a;
    struct model_options so = tiny_options(1), to = tiny_options(0);
    memset(p, 0, sizeof *p);
    fixture_arch(&a);
    so.taught = taught;
    to.topk = V;
    tiny_open(&p->student, &a, &so);
    teacher_arch(&p->arch);
    reference_model_init(&p->ref, &p->arch);
    reference_model_fill(&p->ref, 11);
    assert_ok(model_open(&p->teacher, &p->arch, p->student.be, p->student.dev, &to));
    for (int i = 0; i < p->ref.count; i++)
        convert_elements(model_param_find(p->teacher, p->ref.tensor[i].name)->value.p, DT_F32, p->ref.tensor[i].p, DT_F64, (size_t)p->ref.tensor[i].n);
    const struct batch *b = &p->student.batch;
    p->logits = calloc(N * V, sizeof *p->logits);
    reference_logits(&p->ref, b->B, b->T, b->ids, b->positions, b->segments, p->logits);
    p->lesson = (struct model_teacher){.model = p->teacher, .weight = (float)weight, .temperature = (float)tau, .kl_sum = &p->kl};
    model_teach(p->student.m, &p->lesson);
}

static void pair_close(struct pair *p)
{
    model_close(p->teacher);
    reference_model_free(&p->ref);
    arch_free(&p->arch);
    free(p->logits);
    tiny_close(&p->student);
}

static double lse(const double *z, double tau)
{
    double most = -HUGE_VAL, sum = 0.0;
    for (int v = 0; v < V; v++)
        most = fmax(most, z[v] / tau);
    for (int v = 0; v < V; v++)
        sum += exp(z[v] / tau - most);
    return most + log(sum);
}

/* Of all valid rows: the loss, and KL alone. ids NULL: all tokens; else K each, the rest one class. */
static double taught_loss(const struct pair *p, double weight, double tau, const int32_t *ids, int K, double *kl_sum)
{
    const struct batch *b = &p->student.batch;
    double *z = calloc(N * V, sizeof *z), total = 0.0, all = 0.0;
    reference_logits(&p->student.ref, b->B, b->T, b->ids, b->positions, b->segments, z);
    for (int n = 0; n < N; n++) {
        const double *s = z + n * V, *t = p->logits + n * V;
        double ls = lse(s, tau), lt = lse(t, tau), kl = 0.0, ps = 1.0, pt = 1.0;
        if (b->targets[n] < 0)
            continue;
        for (int k = 0; k < (ids ? K : V); k++) {
            int v = ids ? ids[n * K + k] : k;
            double lp = t[v] / tau - lt, lq = s[v] / tau - ls;
            kl += exp(lp) * (lp - lq);
            pt -= exp(lp);
            ps -= exp(lq);
        }
        if (ids && K < V)
            kl += pt * (log(pt) - log(ps));
        all += kl;
        total += (1.0 - weight) * (lse(s, 1.0) - s[b->targets[n]]) + weight * tau * tau * kl;
    }
    free(z);
    if (kl_sum)
        *kl_sum = all;
    return total;
}

static void check_taught_gradients(struct pair *p, double weight, double tau, const int32_t *ids, int K)
{
    enum { MOST = 8 };
    double loss, kl, plain;
    p->kl = 0.0;
    gradients(&p->student, &loss);
    (void)taught_loss(p, weight, tau, ids, K, &kl);
    plain = tiny_reference_loss(&p->student, NULL);
    assert_true(fabs(loss - plain) <= 1e-4); /* the loss stays plain cross-entropy */
    assert_true(fabs(p->kl - kl) <= 1e-4 * kl + 1e-5);
    for (int i = 0; i < p->student.ref.count; i++) {
        struct reference_tensor *r = &p->student.ref.tensor[i];
        const float *grad = model_param_find(p->student.m, r->name)->grad.p;
        double want[MOST], scale = 0.0;
        float got[MOST];
        int64_t n = r->n < MOST ? r->n : MOST;
        for (int64_t k = 0; k < n; k++) {
            int64_t at = k * r->n / n;
            double kept = r->p[at], h = 1e-6;
            r->p[at] = kept + h;
            double up = taught_loss(p, weight, tau, ids, K, NULL);
            r->p[at] = kept - h;
            double down = taught_loss(p, weight, tau, ids, K, NULL);
            r->p[at] = kept;
            want[k] = (up - down) / (2.0 * h) / (double)p->student.valid;
            got[k] = grad[at];
            scale = fmax(scale, fabs(want[k]));
        }
        assert_f32(r->name, got, want, n, 2e-4, 2e-5 * fmax(scale, 0.05));
    }
}

static void test_gradient_with_a_teacher_in_memory(void **state)
{
    (void)state;
    static const struct { double weight, tau; } cases[] = {{0.4, 1.0}, {1.0, 2.0}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct pair p;
        pair_open(&p, cases[i].weight, cases[i].tau, -1);
        check_taught_gradients(&p, cases[i].weight, cases[i].tau, NULL, 0);
        pair_close(&p);
    }
}

/* The teacher's words on each position, as a cache would give them. */
static void ask(struct pair *p, int K, double tau, int32_t *ids, float *logp)
{
    memset(ids, 0xee, (size_t)(N * K) * sizeof *ids);
    fill_nan(logp, N * K);
    assert_ok(model_topk(p->teacher, &p->student.batch, (float)tau, view_2d(ids, DT_I32, N, K), view_2d(logp, DT_F32, N, K)));
    p->lesson.model = NULL;
    p->lesson.ids = view_2d(ids, DT_I32, N, K);
    p->lesson.logp = view_2d(logp, DT_F32, N, K);
}

static void test_gradient_with_kept_tokens(void **state)
{
    (void)state;
    enum { K = 5 };
    int32_t ids[N * K];
    float logp[N * K];
    struct pair p;
    pair_open(&p, 0.7, 1.5, K);
    ask(&p, K, 1.5, ids, logp);
    for (int n = 0; n < N; n++) {
        double rest = lse(p.logits + n * V, 1.5);
        for (int k = 0; k < K; k++) {
            assert_true(fabs((double)logp[n * K + k] - (p.logits[n * V + ids[n * K + k]] / 1.5 - rest)) <= 1e-5);
            assert_true(k == 0 || logp[n * K + k] <= logp[n * K + k - 1]);
        }
    }
    check_taught_gradients(&p, 0.7, 1.5, ids, K);
    pair_close(&p);
}

static double distance(const float *a, const float *b, int64_t n)
{
    double d = 0.0, s = 0.0;
    for (int64_t i = 0; i < n; i++) {
        d += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        s += (double)b[i] * (double)b[i];
    }
    return sqrt(d / s);
}

static float *grads_of(struct pair *p)
{
    double loss;
    p->kl = 0.0;
    gradients(&p->student, &loss);
    struct model_flat f = model_flat(p->student.m);
    float *copy = malloc((size_t)f.n * sizeof *copy);
    assert_non_null(copy);
    memcpy(copy, f.grads, (size_t)f.n * sizeof *copy);
    return copy;
}

/* K = V: kept tokens are the teacher itself; through the file they are it to f16. */
static void test_all_tokens_kept_are_the_teacher(void **state)
{
    (void)state;
    int32_t *ids = calloc(N * V, sizeof *ids);
    float *logp = calloc(N * V, sizeof *logp), *grad[3];
    struct pair p;
    pair_open(&p, 0.9, 1.0, V);
    ask(&p, V, 1.0, ids, logp);
    grad[1] = grads_of(&p);
    double kl[3] = {0.0, p.kl, 0.0};
    json_t *facts = json_pack("{s:{s:i}}", "key", "a", 1);
    struct teacher_about about = {V, TINY_T, V, TINY_B, facts};
    char *path = temp_path("all.topk");
    struct teacher_writer *w;
    struct teacher_cache *c;
    assert_ok(teacher_writer_open(&w, path, &about));
    for (int b = 0; b < TINY_B; b++)
        assert_ok(teacher_writer_add(w, b, ids + b * TINY_T * V, logp + b * TINY_T * V));
    assert_ok(teacher_writer_commit(w));
    teacher_writer_close(w);
    memset(ids, 0, N * V * sizeof *ids);
    assert_ok(teacher_cache_open(&c, path));
    for (int b = 0; b < TINY_B; b++)
        assert_ok(teacher_cache_read(c, b, ids + b * TINY_T * V, logp + b * TINY_T * V));
    teacher_cache_close(c);
    grad[2] = grads_of(&p);
    kl[2] = p.kl;
    int64_t n = model_flat(p.student.m).n;
    struct pair q;
    pair_open(&q, 0.9, 1.0, -1);
    grad[0] = grads_of(&q);
    kl[0] = q.kl;
    print_message("gradient from kept tokens against the teacher's: %.2g in f32, %.2g through the file; KL %.6f, %.6f, %.6f\n", distance(grad[1], grad[0], n),
                  distance(grad[2], grad[0], n), kl[0] / (double)q.student.valid, kl[1] / (double)q.student.valid, kl[2] / (double)q.student.valid);
    assert_true(distance(grad[1], grad[0], n) <= 1e-5);
    assert_true(distance(grad[2], grad[0], n) <= 1e-3);
    assert_true(fabs(kl[1] - kl[0]) <= 1e-5 * kl[0] && fabs(kl[2] - kl[0]) <= 1e-3 * kl[0]);
    for (int i = 0; i < 3; i++)
        free(grad[i]);
    pair_close(&p);
    pair_close(&q);
    json_decref(facts);
    free(path);
    free(ids);
    free(logp);
}

static void test_nothing_to_learn_from_oneself(void **state)
{
    (void)state;
    struct arch a;
    struct tiny t;
    struct model_options o = tiny_options(1), score = tiny_options(0);
    double loss, kl = 0.0, largest = 0.0, plain = 0.0;
    o.taught = -1;
    fixture_arch(&a);
    tiny_open(&t, &a, &o);
    gradients(&t, &loss);
    struct model_flat f = model_flat(t.m);
    for (int64_t i = 0; i < f.n; i++)
        plain = worse_error(plain, fabs((double)f.grads[i]));
    struct model *self;
    assert_ok(model_open(&self, &t.arch, t.be, t.dev, &score));
    for (int i = 0; i < t.ref.count; i++)
        convert_elements(model_param_find(self, t.ref.tensor[i].name)->value.p, DT_F32, t.ref.tensor[i].p, DT_F64, (size_t)t.ref.tensor[i].n);
    struct model_teacher lesson = {.model = self, .weight = 1.0f, .temperature = 1.0f, .kl_sum = &kl};
    model_teach(t.m, &lesson);
    gradients(&t, &loss);
    for (int64_t i = 0; i < f.n; i++)
        largest = worse_error(largest, fabs((double)f.grads[i]));
    print_message("taught by itself: largest gradient %.2g (cross-entropy %.2g), KL %.2g\n", largest, plain, kl);
    assert_true(isfinite(plain) && largest <= 1e-6 * plain && fabs(kl) <= 1e-6);
    model_teach(t.m, NULL);
    model_close(self);
    tiny_close(&t);
}

static void test_weight_zero_changes_no_bit(void **state)
{
    (void)state;
    struct pair p;
    double loss;
    pair_open(&p, 0.0, 2.0, -1);
    float *taught = grads_of(&p);
    assert_true(p.kl > 0.1);
    model_teach(p.student.m, NULL);
    gradients(&p.student, &loss);
    assert_memory_equal(taught, model_flat(p.student.m).grads, (size_t)model_flat(p.student.m).n * sizeof *taught);
    free(taught);
    pair_close(&p);
}

static void test_score_gives_each_sequence_its_distance(void **state)
{
    (void)state;
    struct pair p;
    double rows[TINY_B] = {0.0, 0.0}, loss = 0.0, plain = 0.0, kl;
    int64_t count = 0, again = 0;
    float logp[N], want[N];
    pair_open(&p, 1.0, 1.0, -1);
    (void)taught_loss(&p, 1.0, 1.0, NULL, 0, &kl);
    assert_ok(model_score(p.student.m, &p.student.batch, view_none(), &loss, &count));
    assert_true(fabs(p.kl - kl) <= 1e-4 * kl);
    p.lesson.kl_rows = rows;
    loss = 0.0;
    count = 0;
    assert_ok(model_score(p.student.m, &p.student.batch, view_2d(logp, DT_F32, TINY_B, TINY_T), &loss, &count));
    assert_true(fabs(rows[0] + rows[1] - kl) <= 1e-4 * kl && rows[0] > 0 && rows[1] > 0);
    model_teach(p.student.m, NULL);
    assert_ok(model_score(p.student.m, &p.student.batch, view_2d(want, DT_F32, TINY_B, TINY_T), &plain, &again));
    for (int i = 0; i < N; i++)
        assert_true(fabsf(logp[i] - want[i]) <= 1e-5f);
    assert_true(count == again && fabs(loss - plain) <= 1e-6 * plain);
    pair_close(&p);
}

static void test_refusals(void **state)
{
    (void)state;
    struct pair p;
    double loss = 0.0;
    int64_t count = 0;
    int32_t ids[N * 3] = {0};
    float logp[N * 3] = {0};
    pair_open(&p, 1.0, 1.0, 0);
    assert_refused(model_score(p.student.m, &p.student.batch, view_none(), &loss, &count), ERR_USAGE, "without room for a teacher");
    pair_close(&p);
    pair_open(&p, 1.0, 1.0, 2);
    p.lesson.model = NULL;
    assert_refused(model_score(p.student.m, &p.student.batch, view_none(), &loss, &count), ERR_USAGE, "needs a model");
    p.lesson.ids = view_2d(ids, DT_I32, N, 3);
    p.lesson.logp = view_2d(logp, DT_F32, N, 3);
    assert_refused(model_score(p.student.m, &p.student.batch, view_none(), &loss, &count), ERR_USAGE, "3 tokens do not go with a batch");
    pair_close(&p);
}

/* Two checkpoints with tokenizers: the same pieces in other spelling are fine, other pieces are not. */
static void test_tokens_must_be_the_same(void **state)
{
    (void)state;
    static const char *const text[] = {"{\"model\": {\"vocab\": {\"a\": 0, \"b\": 1}}}", "{\"model\": {\"vocab\": {\"b\": 1, \"a\": 0}, \"merges\": []}}",
                                       "{\"model\": {\"vocab\": {\"a\": 1, \"b\": 0}}}"};
    struct checkpoint *ck[3], *wide;
    for (int i = 0; i < 3; i++) {
        struct arch a;
        char name[40];
        snprintf(name, sizeof name, "tokens%d", i);
        char *path = temp_path(name);
        small_arch(&a, 6, 3, DT_F32);
        small_write(path, &a, 1, 1, NULL);
        snprintf(name, sizeof name, "tokens%d/tokenizer.json", i);
        temp_write(name, text[i], strlen(text[i]));
        assert_ok(ckpt_open(&ck[i], path, NULL));
        arch_free(&a);
        free(path);
    }
    struct arch a;
    char *path = temp_path("tokens-wide");
    small_arch(&a, 6, 3, DT_F32);
    a.V = a.original_vocab = 40;
    small_write(path, &a, 1, 1, NULL);
    assert_ok(ckpt_open(&wide, path, NULL));
    assert_ok(model_same_tokens(ck[0], ck[0]));
    assert_ok(model_same_tokens(ck[0], ck[1]));
    assert_refused(model_same_tokens(ck[1], ck[2]), ERR_USAGE, "different tokenizers (tokenizer.json)");
    assert_refused(model_same_tokens(ck[0], wide), ERR_USAGE, "vocabulary of 37 tokens");
    for (int i = 0; i < 3; i++)
        ckpt_close(ck[i]);
    ckpt_close(wide);
    arch_free(&a);
    free(path);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_gradient_with_a_teacher_in_memory), cmocka_unit_test(test_gradient_with_kept_tokens),
    cmocka_unit_test(test_all_tokens_kept_are_the_teacher),   cmocka_unit_test(test_nothing_to_learn_from_oneself),
    cmocka_unit_test(test_weight_zero_changes_no_bit),        cmocka_unit_test(test_score_gives_each_sequence_its_distance),
    cmocka_unit_test(test_refusals),                          cmocka_unit_test(test_tokens_must_be_the_same),
};
int main(int argc, char **argv) { return harness_main(argc, argv, tests, COUNT_OF(tests)); }
