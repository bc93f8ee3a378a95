/* Rewritings against their definition, in double, on tensors: what a rewritten block computes from a normalised input equals what the
 * source computes (W (w x + b) + b0 = W' x + b'), and what is not touched keeps its bytes. */
#include "harness.h"

#include <math.h>
#include <pthread.h>

#include "checkpoints/checkpoint.h"
#include "checkpoints/rewrite.h"

enum { C = 20, H = 6, D = 8, F = 22, V = 31, L = 2, P = 40 };

/* A model with everything a rewriting can meet; written as .h5, which holds any architecture. */
static void base_arch(struct arch *a)
{
    assert_ok(arch_init(a, L));
    a->C = C;
    a->V = a->original_vocab = V;
    a->max_positions = P;
    a->norm = NORM_LAYER;
    a->norm_eps = 1e-5;
    a->residual = RESIDUAL_PARALLEL_TWO_NORMS;
    a->pos = POS_LEARNED;
    a->mlp = MLP_GELU_TANH;
    a->bias = BIAS_Q | BIAS_K | BIAS_V | BIAS_O | BIAS_MLP_IN | BIAS_MLP_OUT | BIAS_NORM;
    a->attn_scale = 1 / sqrt((double)D);
    for (int l = 0; l < L; l++) {
        struct arch_block *b = &a->stack[STACK_DEC].block[l];
        b->H = H;
        b->G = 3;
        b->D = b->Dv = D;
        b->F = F;
    }
}

static struct checkpoint *make(const char *name, const struct arch *a, enum dtype dtype)
{
    char *path = temp_path(name);
    struct ckpt_target target = {.path = path, .arch = a, .dtype = dtype, .force = 1};
    struct ckpt_writer *w;
    struct checkpoint *ck;
    assert_ok(ckpt_create(&w, &target));
    for (int i = 0; i < ckpt_writer_count(w); i++) {
        const struct ckpt_tensor *t = ckpt_writer_at(w, i);
        int64_t n = t->n[0] * t->n[1];
        float *x = malloc((size_t)n * sizeof *x);
        random_normal_f32(x, n, 0, 0.5f, 3, random_stream_of(t->name), 0);
        for (int64_t k = 0; k < n; k++)
            x[k] += strstr(t->name, "norm.w") ? 1 : 0.125f; /* means that are not zero */
        assert_ok(ckpt_write(w, t, 0, t->n[0], x, DT_F32));
        free(x);
    }
    assert_ok(ckpt_add_file(w, "tokenizer.json", "{}", 2));
    assert_ok(ckpt_commit(w));
    assert_ok(ckpt_open(&ck, path, NULL));
    free(path);
    return ck;
}

static struct checkpoint *rewritten(const char *name, const struct arch *a, enum dtype dtype, unsigned steps)
{
    struct checkpoint *ck;
    assert_ok(rewrite_open(&ck, make(name, a, dtype), steps, ""));
    return ck;
}

static double *load(struct checkpoint *ck, const char *name)
{
    const struct ckpt_tensor *t = ckpt_find(ck, name);
    assert_non_null(t);
    double *x = malloc((size_t)(t->n[0] * t->n[1]) * sizeof *x);
    for (int64_t row = 0; row < t->n[0]; row += 7) { /* odd blocks */
        int64_t rows = t->n[0] - row < 7 ? t->n[0] - row : 7;
        assert_ok(ckpt_read(ck, t, row, rows, x + row * t->n[1], DT_F64));
    }
    return x;
}

static void product(const double *W, const double *x, const double *b, int64_t rows, int64_t columns, double *y)
{
    for (int64_t r = 0; r < rows; r++) {
        y[r] = b ? b[r] : 0;
        for (int64_t k = 0; k < columns; k++)
            y[r] += W[r * columns + k] * x[k];
    }
}

static void near(const double *got, const double *want, int64_t n, double tolerance)
{
    double scale = 0, worst = 0;
    for (int64_t i = 0; i < n; i++) {
        scale = fabs(want[i]) > scale ? fabs(want[i]) : scale;
        worst = !(fabs(got[i] - want[i]) <= worst) ? fabs(got[i] - want[i]) : worst;
    }
    if (!(worst <= tolerance * scale))
        print_error("worst difference %g at scale %g\n", worst, scale);
    assert_true(worst <= tolerance * scale);
}

static void same_bytes(struct checkpoint *a, struct checkpoint *b, const char *name, int64_t row0)
{
    const struct ckpt_tensor *s = ckpt_find(a, name), *t = ckpt_find(b, name);
    assert_non_null(s);
    assert_non_null(t);
    char *x = malloc((size_t)s->bytes), *y = malloc((size_t)t->bytes);
    assert_ok(ckpt_read(a, s, row0, t->n[0], x, DT_NONE));
    assert_ok(ckpt_read(b, t, 0, t->n[0], y, DT_NONE));
    assert_memory_equal(x, y, (size_t)t->bytes);
    free(x);
    free(y);
}

/* W' x + b' against W (w x + b_norm) + b0 for one reader of a norm. */
static void check_fold(struct checkpoint *was, struct checkpoint *now, int layer, const char *norm, const char *reader)
{
    char name[5][64];
    static const char *const parts[] = {".w", ".b"};
    double x[C], normed[C];
    fill_random_f64(x, C, 5);
    for (int k = 0; k < 2; k++) {
        snprintf(name[k], 64, "dec.%d.%s%s", layer, norm, parts[k]);
        snprintf(name[2 + k], 64, "dec.%d.%s%s", layer, reader, parts[k]);
    }
    int64_t rows = ckpt_find(now, name[2])->n[0];
    double *nw = load(was, name[0]), *nb = ckpt_find(was, name[1]) ? load(was, name[1]) : NULL, *W = load(was, name[2]),
           *b = ckpt_find(was, name[3]) ? load(was, name[3]) : NULL, *W1 = load(now, name[2]), *b1 = ckpt_find(now, name[3]) ? load(now, name[3]) : NULL;
    double plus = ckpt_arch(was)->norm == NORM_RMS1P ? 1 : 0;
    for (int k = 0; k < C; k++)
        normed[k] = (nw[k] + plus) * x[k] + (nb ? nb[k] : 0);
    double *want = malloc((size_t)rows * sizeof *want), *got = malloc((size_t)rows * sizeof *got);
    product(W, normed, b, rows, C, want);
    product(W1, x, b1, rows, C, got);
    near(got, want, rows, 1e-6);
    free(nw);
    free(nb);
    free(W);
    free(b);
    free(W1);
    free(b1);
    free(want);
    free(got);
}

static void all_equal(struct checkpoint *ck, const char *name, double value)
{
    double *x = load(ck, name);
    const struct ckpt_tensor *t = ckpt_find(ck, name);
    for (int64_t i = 0; i < t->n[0] * t->n[1]; i++)
        assert_true(x[i] == value);
    free(x);
}

static void folds_two_parallel_norms_into_one(void **state)
{
    (void)state;
    struct arch a;
    base_arch(&a);
    struct checkpoint *was = make("fold.h5", &a, DT_F32), *now = rewritten("fold2.h5", &a, DT_F32, REWRITE_FOLD_NORMS);
    assert_int_equal(ckpt_arch(now)->residual, RESIDUAL_PARALLEL_ONE_NORM);
    assert_null(ckpt_find(now, "dec.1.mlp_norm.w"));
    for (int l = 0; l < L; l++) {
        check_fold(was, now, l, "attn_norm", "attn.q");
        check_fold(was, now, l, "attn_norm", "attn.k");
        check_fold(was, now, l, "attn_norm", "attn.v");
        check_fold(was, now, l, "mlp_norm", "mlp.up");
    }
    all_equal(now, "dec.0.attn_norm.w", 1);
    all_equal(now, "dec.1.attn_norm.b", 0);
    static const char *const kept[] = {"embed.weight", "pos.weight", "dec.1.attn.o.w", "dec.0.mlp.down.b", "dec.final_norm.w", "head.w"};
    for (size_t i = 0; i < COUNT_OF(kept); i++)
        same_bytes(was, now, kept[i], 0);
    ckpt_close(was);
    ckpt_close(now);
    arch_free(&a);
}

/* Gemma's weights are stored as w - 1; readers without biases get them; a gated MLP has two readers; the one norm of a parallel block feeds both. */
static void folds_other_forms(void **state)
{
    (void)state;
    struct arch a;
    base_arch(&a);
    a.norm = NORM_RMS1P;
    a.residual = RESIDUAL_SEQUENTIAL;
    a.mlp = MLP_SWIGLU;
    a.bias = 0;
    struct checkpoint *was = make("fold3.h5", &a, DT_F32), *now = rewritten("fold4.h5", &a, DT_F32, REWRITE_FOLD_NORMS);
    check_fold(was, now, 1, "attn_norm", "attn.v");
    check_fold(was, now, 1, "mlp_norm", "mlp.gate");
    check_fold(was, now, 1, "mlp_norm", "mlp.up");
    all_equal(now, "dec.1.mlp_norm.w", 0);
    ckpt_close(was);
    ckpt_close(now);
    a.norm = NORM_LAYER;
    a.bias = BIAS_NORM;
    a.residual = RESIDUAL_PARALLEL_ONE_NORM;
    was = make("fold3.h5", &a, DT_F32);
    now = rewritten("fold4.h5", &a, DT_F32, REWRITE_FOLD_NORMS);
    assert_int_equal(ckpt_arch(now)->bias, BIAS_NORM | BIAS_Q | BIAS_K | BIAS_V | BIAS_MLP_IN);
    check_fold(was, now, 0, "attn_norm", "attn.k");
    check_fold(was, now, 0, "attn_norm", "mlp.gate");
    ckpt_close(was);
    ckpt_close(now);
    a.norm_place = NORM_POST_SUBLAYER;
    assert_refused(rewrite_arch(&a, REWRITE_FOLD_NORMS), ERR_UNSUPPORTED, "behind their sublayers");
    arch_free(&a);
}

static void adds_what_is_missing(void **state)
{
    (void)state;
    struct arch a;
    base_arch(&a);
    a.bias = BIAS_NORM | BIAS_MLP_IN;
    unsigned steps = REWRITE_ZERO_BIASES | REWRITE_ZERO_HEAD_BIAS;
    struct checkpoint *was = make("zero.h5", &a, DT_BF16), *now = rewritten("zero2.h5", &a, DT_BF16, steps);
    all_equal(now, "dec.0.attn.q.b", 0);
    all_equal(now, "dec.1.mlp.down.b", 0);
    all_equal(now, "head.b", 0);
    assert_int_equal(ckpt_find(now, "head.b")->dtype, DT_BF16);
    for (int i = 0; i < ckpt_count(was); i++)
        same_bytes(was, now, ckpt_at(was, i)->name, 0);
    assert_false(rewrite_rounds(steps));
    const struct ckpt_companion *list;
    assert_int_equal(ckpt_companions(now, &list), 1);
    ckpt_close(was);
    ckpt_close(now);

    a.tied = 1;
    a.pos_offset = 2;
    was = make("offset.h5", &a, DT_F32);
    now = rewritten("offset2.h5", &a, DT_F32, REWRITE_POS_OFFSET | REWRITE_UNTIE);
    assert_int_equal(ckpt_find(now, "pos.weight")->n[0], P);
    same_bytes(was, now, "pos.weight", 2);
    double *x = load(was, "embed.weight"), *y = load(now, "head.w");
    assert_memory_equal(x, y, V * C * sizeof *x);
    free(x);
    free(y);
    ckpt_close(was);
    ckpt_close(now);
    arch_free(&a);
}

static void centring(void **state)
{
    (void)state;
    struct arch a;
    base_arch(&a);
    a.norm = NORM_LAYER_NOP;
    a.residual = RESIDUAL_SEQUENTIAL;
    a.bias = BIAS_O;
    a.tied = 1;
    struct checkpoint *was = make("centre.h5", &a, DT_F32), *now = rewritten("centre2.h5", &a, DT_F32, REWRITE_CENTRE | REWRITE_NORM_ONES);
    assert_int_equal(ckpt_arch(now)->norm, NORM_RMS);
    all_equal(now, "dec.final_norm.w", 1);
    static const char *const rows[] = {"embed.weight", "pos.weight"}, *const columns[] = {"dec.1.attn.o.w", "dec.0.mlp.down.w"};
    for (int i = 0; i < 2; i++) { /* y = x minus its mean over C: differences along C stay, sums vanish */
        int64_t n = ckpt_find(now, rows[i])->n[0], m = ckpt_find(now, columns[i])->n[1];
        double *x = load(was, rows[i]), *y = load(now, rows[i]);
        for (int64_t r = 0; r < n; r++) {
            double sum = 0;
            for (int k = 0; k < C; k++) {
                sum += y[r * C + k];
                assert_true(fabs(y[r * C + k] - y[r * C] - (x[r * C + k] - x[r * C])) < 1e-6);
            }
            assert_true(fabs(sum) < 1e-5);
        }
        free(x);
        free(y);
        x = load(was, columns[i]);
        y = load(now, columns[i]);
        for (int64_t k = 0; k < m; k++) {
            double sum = 0;
            for (int r = 0; r < C; r++) {
                sum += y[r * m + k];
                assert_true(fabs(y[r * m + k] - y[k] - (x[r * m + k] - x[k])) < 1e-6);
            }
            assert_true(fabs(sum) < 1e-5);
        }
        free(x);
        free(y);
    }
    double *b = load(now, "dec.0.attn.o.b"), sum = 0;
    for (int k = 0; k < C; k++)
        sum += b[k];
    assert_true(fabs(sum) < 1e-5);
    free(b);
    ckpt_close(was);
    ckpt_close(now);

    a.norm = NORM_LAYER; /* weights in the final norm: the head must keep the rows that are not centred */
    assert_refused(rewrite_arch(&a, REWRITE_CENTRE), ERR_UNSUPPORTED, "also the head");
    now = rewritten("centre3.h5", &a, DT_F32, REWRITE_CENTRE | REWRITE_UNTIE);
    was = make("centre.h5", &a, DT_F32);
    double *x = load(was, "embed.weight"), *y = load(now, "head.w");
    assert_memory_equal(x, y, V * C * sizeof *x);
    free(x);
    free(y);
    ckpt_close(was);
    ckpt_close(now);
    a.bias = BIAS_NORM;
    assert_refused(rewrite_arch(&a, REWRITE_CENTRE | REWRITE_UNTIE), ERR_UNSUPPORTED, "have biases");
    arch_free(&a);
}

static void scales(void **state)
{
    (void)state;
    struct arch a;
    base_arch(&a);
    a.attn_scale = 1;
    a.stack[STACK_DEC].block[1].scale = 0.5;
    a.stack[STACK_DEC].block[1].window = 16;
    for (int norm = 0; norm < 3; norm++) { /* no query norm; one; one whose weights are stored as w - 1 */
        a.qk_norm = norm ? QK_NORM_HEAD : QK_NORM_NONE;
        a.norm = norm == 2 ? NORM_RMS1P : NORM_LAYER;
        struct checkpoint *was = make("scale.h5", &a, DT_F32), *now = rewritten("scale2.h5", &a, DT_F32, REWRITE_SCALE_Q | REWRITE_DROP_WINDOWS);
        assert_true(fabs(ckpt_arch(now)->attn_scale - 1 / sqrt(8.0)) < 1e-15);
        assert_int_equal(ckpt_arch(now)->stack[STACK_DEC].block[1].window, 0);
        for (int l = 0; l < L; l++) {
            static const char *const names[] = {"attn.q.w", "attn.q.b", "attn.q_norm.w"};
            for (int k = 0; k < (norm ? 3 : 2); k++) {
                char name[64];
                snprintf(name, sizeof name, "dec.%d.%s", l, names[k]);
                double *x = load(was, name), *y = load(now, name), factor = (norm > 0) == (k == 2) ? (l ? 0.5 : 1) * sqrt(8.0) : 1, plus = norm == 2 && k == 2 ? 1 : 0;
                int64_t n = ckpt_find(was, name)->n[0] * ckpt_find(was, name)->n[1];
                for (int64_t i = 0; i < n; i++)
                    x[i] = (x[i] + plus) * factor - plus;
                near(y, x, n, 1e-7);
                free(x);
                free(y);
            }
        }
        ckpt_close(was);
        ckpt_close(now);
    }
    assert_int_equal(rewrite_context(&a, REWRITE_DROP_WINDOWS), 16);
    assert_int_equal(rewrite_context(&a, 0), P);
    a.clip_qkv = 8;
    assert_refused(rewrite_arch(&a, REWRITE_SCALE_Q), ERR_UNSUPPORTED, "clip");
    arch_free(&a);
}

/* Several readers at once get what one gets; computed rows come as f32 though bf16 is stored, without the rounding between. */
struct reader { struct checkpoint *ck; double *got; };
static void *read_o(void *p)
{
    struct reader *r = p;
    r->got = load(r->ck, "dec.1.attn.o.w");
    return NULL;
}

static void threads_and_types(void **state)
{
    (void)state;
    struct arch a;
    base_arch(&a);
    a.norm = NORM_LAYER_NOP;
    a.bias = 0;
    struct checkpoint *now = rewritten("threads.h5", &a, DT_BF16, REWRITE_CENTRE | REWRITE_NORM_ONES);
    struct reader r[4];
    pthread_t t[4];
    for (int i = 0; i < 4; i++) {
        r[i].ck = now;
        assert_int_equal(pthread_create(&t[i], NULL, read_o, &r[i]), 0);
    }
    for (int i = 0; i < 4; i++)
        pthread_join(t[i], NULL);
    const struct ckpt_tensor *o = ckpt_find(now, "dec.1.attn.o.w");
    int64_t n = o->n[0] * o->n[1], rounded = 0;
    uint16_t *stored = malloc((size_t)n * sizeof *stored);
    float *f = malloc((size_t)n * sizeof *f);
    assert_ok(ckpt_read(now, o, 0, o->n[0], stored, DT_NONE));
    assert_ok(ckpt_read(now, o, 0, o->n[0], f, DT_F32));
    for (int64_t i = 0; i < n; i++) {
        for (int k = 1; k < 4; k++)
            assert_true(r[k].got[i] == r[0].got[i]);
        assert_int_equal(bf16_from_f32(f[i]), stored[i]);
        rounded += (double)f32_from_bf16(stored[i]) != (double)f[i];
    }
    assert_true(rounded > n / 2);
    for (int i = 0; i < 4; i++)
        free(r[i].got);
    free(stored);
    free(f);
    ckpt_close(now);
    arch_free(&a);
}

static void nothing_needed_nothing_changes(void **state)
{
    (void)state;
    struct arch a;
    base_arch(&a);
    unsigned none = REWRITE_SCALE_Q | REWRITE_POS_OFFSET | REWRITE_UNTIE | REWRITE_NORM_ONES | REWRITE_DROP_WINDOWS | REWRITE_ZERO_BIASES;
    assert_int_equal(rewrite_needed(&a, none), 0);
    struct checkpoint *was = make("none.h5", &a, DT_F16), *now = rewritten("none2.h5", &a, DT_F16, none);
    assert_int_equal(ckpt_count(was), ckpt_count(now));
    for (int i = 0; i < ckpt_count(was); i++) {
        assert_string_equal(ckpt_at(was, i)->name, ckpt_at(now, i)->name);
        same_bytes(was, now, ckpt_at(was, i)->name, 0);
    }
    ckpt_close(was);
    ckpt_close(now);
    arch_free(&a);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(folds_two_parallel_norms_into_one), cmocka_unit_test(folds_other_forms),
        cmocka_unit_test(adds_what_is_missing),              cmocka_unit_test(centring),
        cmocka_unit_test(scales),                            cmocka_unit_test(threads_and_types),
        cmocka_unit_test(nothing_needed_nothing_changes),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
