/* AdamW's moments through gqa-convert into gqa-uptrain: sums over the groups where heads are merged plainly, the merge's own maps where
 * heads are turned (found again here from the weights, by least squares), the very gradient of the merged model where heads were equal, and
 * a run that goes on as if nothing had happened where nothing was merged. */
#include "carry_case.h"
#include "programs.h"
#include "runs.h"
#include "small_checkpoint.h"

#include <math.h>

/* ---- plain merges ------------------------------------------------------------------------------------------------------ */

static void plain_sums(void **state)
{
    (void)state;
    static const char *const methods[] = {"mean", "first", "select"};
    char *model = carry_model("plain", 6, 1), *run = carry_train(model, "plain-run", "seed=1", NULL, NULL, NULL), *to = temp_path("plain-g2");
    for (size_t k = 0; k < COUNT_OF(methods); k++) {
        CONVERT_OK(run, to, "--kv-heads", "2", "--method", methods[k], "--moments", "carry", "--force");
        char *opt = carry_beside(to);
        for (int layer = 0; layer < L; layer++)
            for (int t = 0; t < 4; t++) {
                const char *name = t & 1 ? "attn.k.w" : "attn.v.w";
                char which = t & 2 ? 'v' : 'm';
                float *x = carry_moment(run, which, layer, name, H * D, C), *y = carry_moment(opt, which, layer, name, 2 * D, C);
                for (int64_t i = 0; i < 2 * CD; i++) {
                    const float *head = x + i / CD * 3 * CD + i % CD;
                    assert_true(y[i] == (float)((double)head[0] + (double)head[CD] + (double)head[2 * CD]));
                }
                free(x);
                free(y);
            }
        static const struct { const char *name; int64_t n0, n1; } same[] = {{"m/embed.weight", 256, C}, {"v/embed.weight", 256, C}, {"m/dec.1.attn.q.w", H * D, C},
            {"v/dec.1.attn.o.w", C, H * D}, {"m/dec.0.mlp.down.w", C, 20}, {"v/dec.final_norm.w", C, 1}, {"m/dec.0.attn_norm.w", C, 1}};
        for (size_t i = 0; i < COUNT_OF(same); i++) {
            float *x = carry_values(run, same[i].name, same[i].n0, same[i].n1), *y = carry_values(opt, same[i].name, same[i].n0, same[i].n1);
            assert_memory_equal(x, y, (size_t)(same[i].n0 * same[i].n1) * sizeof *x);
            free(x);
            free(y);
        }
        free(opt);
    }
    json_t *facts = NULL;
    char *path = io_join(to, "PROVENANCE.json");
    assert_ok(json_read_file(path, 1 << 20, &facts));
    assert_int_equal(json_integer_value(json_object_get(json_object_get(facts, "optimizer"), "updates")), 3);
    json_decref(facts);
    CONVERT_OK("--verify", to);
    free(path);
    free(model);
    free(run);
    free(to);
}

static int64_t head_among(const float *head, const float *all)
{
    for (int64_t i = 0; i < H; i++)
        if (!memcmp(head, all + i * CD, CD * sizeof *head))
            return i;
    assert_true(0);
    return -1;
}

/* Another order of the heads: queries, output columns and their moments move alike, and K is summed over those that share. */
static void heads_move(void **state)
{
    (void)state;
    char *model = carry_model("moved", 6, 1), *run = carry_train(model, "moved-run", "seed=2", NULL, NULL, NULL), *to = temp_path("moved-g2");
    CONVERT_OK(run, to, "--kv-heads", "2", "--grouping", "similar", "--moments", "carry", "--force");
    char *opt = carry_beside(to);
    int moved = 0;
    for (int layer = 0; layer < L; layer++) {
        float *q0 = carry_weight(run, layer, "attn.q.w"), *q1 = carry_weight(to, layer, "attn.q.w");
        float *mq0 = carry_moment(run, 'm', layer, "attn.q.w", H * D, C), *mq1 = carry_moment(opt, 'm', layer, "attn.q.w", H * D, C);
        float *vo0 = carry_moment(run, 'v', layer, "attn.o.w", C, H * D), *vo1 = carry_moment(opt, 'v', layer, "attn.o.w", C, H * D);
        float *vk0 = carry_moment(run, 'v', layer, "attn.k.w", H * D, C), *vk1 = carry_moment(opt, 'v', layer, "attn.k.w", 2 * D, C);
        double sum[2 * CD] = {0};
        for (int64_t i = 0; i < H; i++) {
            int64_t from = head_among(q1 + i * CD, q0);
            moved += from != i;
            assert_memory_equal(mq1 + i * CD, mq0 + from * CD, CD * sizeof *mq1);
            for (int64_t c = 0; c < C; c++)
                assert_memory_equal(vo1 + c * H * D + i * D, vo0 + c * H * D + from * D, D * sizeof *vo1);
            for (int64_t k = 0; k < CD; k++)
                sum[i / 3 * CD + k] += (double)vk0[from * CD + k];
        }
        for (int64_t k = 0; k < 2 * CD; k++)
            assert_true(vk1[k] == (float)sum[k]);
        float *all[] = {q0, q1, mq0, mq1, vo0, vo1, vk0, vk1};
        for (size_t i = 0; i < COUNT_OF(all); i++)
            free(all[i]);
    }
    assert_true(moved > 0);
    free(opt);
    free(model);
    free(run);
    free(to);
}

/* ---- turned heads ------------------------------------------------------------------------------------------------------- */

/* x [D, D] with a x = b, by elimination with pivots; a and b are destroyed. */
static void solve(double *a, double *b)
{
    for (int64_t i = 0; i < D; i++) {
        int64_t p = i;
        for (int64_t r = i + 1; r < D; r++)
            p = fabs(a[r * D + i]) > fabs(a[p * D + i]) ? r : p;
        for (int64_t c = 0; c < D; c++) {
            double t = a[i * D + c], u = b[i * D + c];
            a[i * D + c] = a[p * D + c];
            a[p * D + c] = t;
            b[i * D + c] = b[p * D + c];
            b[p * D + c] = u;
        }
        for (int64_t r = 0; r < D; r++) {
            double f = r == i ? 0 : a[r * D + i] / a[i * D + i];
            for (int64_t c = 0; c < D && f != 0; c++) {
                a[r * D + c] -= f * a[i * D + c];
                b[r * D + c] -= f * b[i * D + c];
            }
        }
    }
    for (int64_t i = 0; i < D * D; i++)
        b[i] /= a[i / D * D + i / D];
}

/* Element (d, c) of a head: rows of q, or columns of o. */
struct head_view { const float *p; int64_t down, right; };
static double at(struct head_view v, int64_t d, int64_t c) { return (double)v.p[d * v.down + c * v.right]; }

/* The map T [D, D] with y = T x, for y and x [D, C]: T (x x^T) = y x^T. E^T for queries and outputs alike. */
static void map_between(double *T, struct head_view x, struct head_view y)
{
    double a[D * D] = {0}, b[D * D] = {0};
    for (int64_t i = 0; i < D; i++)
        for (int64_t k = 0; k < D; k++)
            for (int64_t c = 0; c < C; c++) {
                a[i * D + k] += at(x, i, c) * at(x, k, c);
                b[i * D + k] += at(x, i, c) * at(y, k, c); /* (x y^T): its solution is T^T = E */
            }
    solve(a, b);
    memcpy(T, b, sizeof b);
}

/* B = 1.1 (E^T E + ridge)^-1 E^T, the ridge a tenth of the mean of E^T E's diagonal: the inverse where E keeps angles. */
static void inverse_of(double *B, const double *E)
{
    double a[D * D] = {0}, trace = 0;
    for (int64_t i = 0; i < D * D; i++) {
        for (int64_t k = 0; k < D; k++)
            a[i] += E[k * D + i / D] * E[k * D + i % D];
        trace += i / D == i % D ? a[i] : 0;
        B[i] = 1.1 * E[i % D * D + i / D];
    }
    for (int64_t i = 0; i < D; i++)
        a[i * D + i] += 0.1 * trace / D;
    solve(a, B);
}

static double far(double got, double want, double scale) { return fabs(got - want) / scale; }

/* K (or V) of every group, and the first reader's queries (or output columns), of one layer. */
static void check_side(const char *run, const char *to, const char *opt, int layer, int values)
{
    const char *rows = values ? "attn.v.w" : "attn.k.w", *other = values ? "attn.o.w" : "attn.q.w";
    int64_t n0 = values ? C : H * D, n1 = values ? H * D : C, step = values ? D : CD, down = values ? 1 : C, right = values ? H * D : 1;
    float *w0 = carry_weight(run, layer, other), *w1 = carry_weight(to, layer, other);
    for (int squared = 0; squared < 2; squared++) {
        char which = squared ? 'v' : 'm';
        float *k0 = carry_moment(run, which, layer, rows, H * D, C), *k1 = carry_moment(opt, which, layer, rows, 2 * D, C);
        float *q0 = carry_moment(run, which, layer, other, n0, n1), *q1 = carry_moment(opt, which, layer, other, n0, n1);
        double sum[2 * CD] = {0}, size = 0, worst = 0, q_size = 0, q_worst = 0;
        for (int64_t j = 0; j < H; j++) {
            double E[D * D], B[D * D];
            map_between(E, (struct head_view){w0 + j * step, down, right}, (struct head_view){w1 + j * step, down, right});
            inverse_of(B, E);
            for (int64_t d = 0; d < D; d++)
                for (int64_t c = 0; c < C; c++) {
                    double q = 0;
                    for (int64_t k = 0; k < D; k++) {
                        double e = E[k * D + d], b = B[d * D + k];
                        sum[j / 3 * CD + d * C + c] += (squared ? e * e : e) * (double)k0[j * CD + k * C + c];
                        q += (squared ? b * b : b) * (double)q0[j * step + k * down + c * right];
                    }
                    double got = (double)q1[j * step + d * down + c * right];
                    q_size = fmax(q_size, fabs(q));
                    q_worst = worse_error(q_worst, fabs(got - q));
                }
        }
        for (int64_t i = 0; i < 2 * CD; i++) {
            size = fmax(size, fabs(sum[i]));
            worst = worse_error(worst, fabs((double)k1[i] - sum[i]));
        }
        if (!(worst <= 1e-4 * size) || !(q_worst <= 1e-3 * q_size))
            print_error("layer %d %s %c: %g of %g, %s %g of %g\n", layer, rows, which, worst, size, other, q_worst, q_size);
        assert_true(worst <= 1e-4 * size);
        assert_true(q_worst <= 1e-3 * q_size);
        free(k0);
        free(k1);
        free(q0);
        free(q1);
    }
    free(w0);
    free(w1);
}

static void turned_heads(void **state)
{
    (void)state;
    static const char *const methods[] = {"align", "svd"};
    char *model = carry_model("turned", 6, 1), *run = carry_train(model, "turned-run", "seed=3", NULL, NULL, NULL), *to = temp_path("turned-g2");
    for (size_t k = 0; k < COUNT_OF(methods); k++) {
        CONVERT_OK(run, to, "--kv-heads", "2", "--method", methods[k], "--moments", "carry", "--force");
        char *opt = carry_beside(to);
        for (int i = 0; i < 2 * L; i++)
            check_side(run, to, opt, i / 2, i % 2);
        free(opt);
    }
    free(model);
    free(run);
    free(to);
}

/* ---- gradients ------------------------------------------------------------------------------------------------------------ */

/* The heads of each group are equal, so the merged model is the same function: its first moment after a step is the carried one. */
static void equal_heads_are_exact(void **state)
{
    (void)state;
    char *model = carry_model("equal", 6, 3), *to = temp_path("equal-g2");
    char *a = carry_train(model, "equal-a", "max_steps=1", "optimizer.lr=0", "max_grad_norm=0", NULL);
    CONVERT_OK(a, to, "--kv-heads", "2", "--moments", "carry", "--force");
    char *b = carry_train(to, "equal-b", "max_steps=1", "optimizer.lr=0", "max_grad_norm=0", NULL), *opt = carry_beside(to);
    static const struct { const char *name; int64_t n0, n1; } tensors[] = {{"m/dec.0.attn.k.w", 2 * D, C}, {"m/dec.1.attn.v.w", 2 * D, C}, {"m/dec.0.attn.q.w", H * D, C},
        {"m/dec.1.attn.o.w", C, H * D}, {"m/embed.weight", 256, C}, {"v/dec.0.mlp.up.w", 20, C}};
    for (size_t i = 0; i < COUNT_OF(tensors); i++) {
        float *x = carry_values(opt, tensors[i].name, tensors[i].n0, tensors[i].n1), *y = carry_values(b, tensors[i].name, tensors[i].n0, tensors[i].n1);
        double size = 0;
        for (int64_t k = 0; k < tensors[i].n0 * tensors[i].n1; k++)
            size = fmax(size, fabs((double)y[k]));
        for (int64_t k = 0; k < tensors[i].n0 * tensors[i].n1; k++)
            assert_true(far((double)x[k], (double)y[k], size) < 1e-4);
        assert_true(size > 0);
        free(x);
        free(y);
    }
    free(model);
    free(to);
    free(a);
    free(b);
    free(opt);
}

/* ---- going on ------------------------------------------------------------------------------------------------------------- */

/* 4 + 4 updates with a conversion that changes nothing between are 8 updates, bit for bit, when every step sees the same window; so is a run
 * that starts from the other run's directory; without the moments it is another run. And a stopped one resumes with their number. */
static void goes_on(void **state)
{
    (void)state;
    char *model = carry_model("on", 3, 1), data[700], *to = temp_path("on-copy");
    snprintf(data, sizeof data, "data.train=[%s/window.txt]", temp_dir());
    char *eight = carry_train(model, "on-8", data, "max_steps=8", "save_steps=8", NULL), *four = carry_train(model, "on-4", data, "max_steps=4", "save_steps=4", NULL);
    CONVERT_OK(four, to, "--moments", "carry", "--force");
    char *a = carry_train(to, "on-a", data, "max_steps=4", "optimizer.moments=auto", "moments: those of 4 updates");
    char *b = carry_train(four, "on-b", data, "max_steps=4", "optimizer.moments=auto", "moments: those of 4 updates");
    char *z = carry_train(to, "on-z", data, "max_steps=4", "optimizer.moments=zero", NULL);
    free(carry_train(to, "on-r", data, "max_steps=2", "optimizer.moments=auto", NULL));
    char *r = carry_train(to, "on-r", data, "max_steps=4", "optimizer.moments=auto", "resumed at step 2");
    const char *want = runs_weights("on-8");
    assert_string_equal(runs_weights("on-a"), want);
    assert_string_equal(runs_weights("on-b"), want);
    want = runs_weights("on-8");
    assert_string_equal(runs_weights("on-r"), want);
    assert_string_not_equal(runs_weights("on-z"), want);
    char *again = temp_path("on-again"); /* what a run carried counts for the next */
    CONVERT_OK(a, again, "--moments", "carry", "--force");
    free(carry_train(again, "on-c", data, "max_steps=1", "optimizer.moments=auto", "moments: those of 8 updates"));
    free(model);
    free(to);
    free(eight);
    free(four);
    free(a);
    free(b);
    free(z);
    free(r);
    free(again);
}

/* gqa: in the config carries too; what cannot be carried says why. */
static void told(void **state)
{
    (void)state;
    char *model = carry_model("told", 6, 1), *run = carry_train(model, "told-run", NULL, NULL, NULL, NULL), *to = temp_path("told-to"), *h5 = temp_path("told.h5"), *none = temp_path("told-none");
    free(carry_train(run, "told-gqa", "gqa.num_key_value_heads=2", "optimizer.moments=auto", "max_steps=1", "moments: those of 3 updates"));
    free(carry_train(model, "told-zero", "optimizer.moments=auto", "max_steps=1", NULL, "has none"));
    struct child c = CONVERT(run, to, "--kv-heads", "2", "--method", "random", "--moments", "carry", "--force");
    runs_expect(&c, 0, "not carried: fresh heads");
    c = CONVERT(run, h5, "--kv-heads", "2", "--moments", "carry", "--force");
    runs_expect(&c, 0, "not carried: a .h5");
    c = CONVERT(model, to, "--kv-heads", "2", "--moments", "carry", "--force");
    runs_expect(&c, 0, "not carried: the source has none");
    CONVERT_OK(run, none, "--kv-heads", "2", "--force");
    char *opt = carry_beside(none);
    assert_false(io_exists(opt));
    CONVERT_OK(run, to, "--kv-heads", "3", "--moments", "carry", "--force"); /* moments of another model */
    char *from = carry_beside(to);
    assert_int_equal(rename(from, opt), 0);
    char *yaml = carry_config(), path[700], dir[700];
    snprintf(path, sizeof path, "model.path=%s", none);
    snprintf(dir, sizeof dir, "output_dir=%s/told-wrong", temp_dir());
    program_refused(UPTRAIN(yaml, path, dir, "optimizer.moments=auto"), 3, "optimizer.moments");
    program_refused(CONVERT(none, to, "--moments", "carry", "--force"), 3, "belong to another model");
    free(model);
    free(run);
    free(to);
    free(h5);
    free(none);
    free(opt);
    free(from);
    free(yaml);
}

/* ---- damage ---------------------------------------------------------------------------------------------------------------- */

static void flip(const char *path, long from_end)
{
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, -from_end, SEEK_END), 0);
    int byte = fgetc(f);
    assert_int_equal(fseek(f, -from_end, SEEK_END), 0);
    fputc(byte ^ 1, f);
    assert_int_equal(fclose(f), 0);
}

/* --verify hashes the moments too: a flipped byte, other moments, a missing file, each named. */
static void verified(void **state)
{
    (void)state;
    char *model = carry_model("verified", 6, 1), *run = carry_train(model, "verified-run", NULL, NULL, NULL, NULL), *to = temp_path("verified-to"), *opt = carry_beside(to);
    CONVERT_OK(run, to, "--kv-heads", "2", "--moments", "carry", "--force");
    struct child c = CONVERT("--verify", to);
    assert_non_null(strstr(c.out, "5 files match")); /* config, weights, README; moments and their manifest */
    program_ok(c);
    char *step = io_join(opt, "step-00000003"), *values = io_join(step, "rank-00000.h5"), *manifest = io_join(step, "MANIFEST.json");
    flip(values, 900);
    program_refused(CONVERT("--verify", to), 3, "optimizer/step-00000003/rank-00000.h5: hash");
    flip(values, 900);
    CONVERT_OK("--verify", to);
    flip(manifest, 300);
    program_refused(CONVERT("--verify", to), 3, "optimizer/step-00000003/MANIFEST.json");
    flip(manifest, 300);

    char *other = temp_path("verified-other"), *theirs = carry_beside(other), *away = temp_path("verified-away"); /* whole, but not this model's */
    CONVERT_OK(run, other, "--kv-heads", "3", "--moments", "carry", "--force");
    assert_int_equal(rename(opt, away), 0);
    program_refused(CONVERT("--verify", to), 3, "MANIFEST.json: missing");
    assert_int_equal(rename(theirs, opt), 0);
    program_refused(CONVERT("--verify", to), 3, "other moments than those of this model");
    assert_int_equal(rename(opt, theirs), 0);
    assert_int_equal(rename(away, opt), 0);
    CONVERT_OK("--verify", to);

    static const char *const wrong[] = {"../../etc/step-00000003/MANIFEST.json", "optimizer/../MANIFEST.json", "optimizer/step-00000003/rank-00000.h5", "optimizer/", ""};
    char *path = io_join(to, "PROVENANCE.json");
    for (size_t i = 0; i < COUNT_OF(wrong); i++) {
        json_t *facts = NULL;
        assert_ok(json_read_file(path, 1 << 20, &facts));
        json_object_set_new(json_object_get(facts, "optimizer"), "manifest", json_string(wrong[i]));
        assert_ok(json_write_file(path, facts));
        json_decref(facts);
        program_refused(CONVERT("--verify", to), 3, "is no manifest of moments");
    }
    char *all[] = {model, run, to, opt, step, values, manifest, other, theirs, away, path};
    for (size_t i = 0; i < COUNT_OF(all); i++)
        free(all[i]);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_sums), cmocka_unit_test(heads_move), cmocka_unit_test(turned_heads),
        cmocka_unit_test(equal_heads_are_exact), cmocka_unit_test(goes_on), cmocka_unit_test(told), cmocka_unit_test(verified),
    };
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
