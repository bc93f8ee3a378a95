/* The attention linearised (convert/newton.h): its change against differences of an attention by plain loops in double, and its gradient as the
 * transposed map; with groups, several sequences, documents that end, a window, ALiBi, and a length that is no multiple of a block. */
#include <math.h>
#include <omp.h>

#include "convert/newton.h"
#include "harness.h"

enum { COUNT = 2, T = 75, H = 6, G = 3, D = 5, N = COUNT * T };

struct form { int64_t window; int slopes, documents; };

static int64_t segment_of(const struct form *f, int64_t t) { return f->documents ? t / 31 : 0; }
static float slope_of(const struct form *f, int64_t h) { return f->slopes ? 0.1f * (float)(h + 1) : 0.0f; }

/* o [N,H*D] and lse [COUNT,H,T] in double. */
static void attend(double *o, double *lse, const double *q, const double *k, const double *v, const struct form *f)
{
    for (int64_t i = 0; i < COUNT * H * T; i++) {
        int64_t b = i / (H * T), h = i / T % H, t = i % T;
        double p[T], sum = 0;
        for (int64_t s = 0; s <= t; s++) {
            double score = 0;
            for (int64_t d = 0; d < D; d++)
                score += q[(b * T + t) * H * D + h * D + d] * k[(b * T + s) * G * D + h / (H / G) * D + d];
            int sees = segment_of(f, s) == segment_of(f, t) && (f->window == 0 || s > t - f->window);
            p[s] = sees ? exp(0.3 * score + (double)slope_of(f, h) * (double)(s - t)) : 0;
            sum += p[s];
        }
        lse[i] = log(sum);
        for (int64_t d = 0; d < D; d++) {
            double x = 0;
            for (int64_t s = 0; s <= t; s++)
                x += p[s] / sum * v[(b * T + s) * G * D + h / (H / G) * D + d];
            o[(b * T + t) * H * D + h * D + d] = x;
        }
    }
}

static float *random_floats(int64_t n, uint64_t seed)
{
    float *x = malloc((size_t)n * sizeof *x);
    fill_random(x, n, seed);
    return x;
}

/* a + by * b */
static double *moved(const float *a, const float *b, double by, int64_t n)
{
    double *x = malloc((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++)
        x[i] = (double)a[i] + by * (double)b[i];
    return x;
}

static double inner(const float *a, const float *b, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += (double)a[i] * (double)b[i];
    return sum;
}

static void check(const struct form *f)
{
    enum { HD = N * H * D, GD = N * G * D };
    float *q = random_floats(HD, 1), *k = random_floats(GD, 2), *v = random_floats(GD, 3), *dq = random_floats(HD, 4), *dk = random_floats(GD, 5);
    float *dv = random_floats(GD, 6), *e = random_floats(HD, 7), *o = malloc(sizeof(float) * HD), *out = malloc(sizeof(float) * HD), slopes[H];
    float *gq = malloc(sizeof(float) * HD), *gk = malloc(sizeof(float) * GD), *gv = malloc(sizeof(float) * GD), lse[COUNT * H * T];
    double *wide[2] = {malloc(sizeof(double) * HD), malloc(sizeof(double) * HD)}, *sums = malloc(sizeof(double) * COUNT * H * T), worst = 0;
    int32_t segment[T];
    for (int64_t t = 0; t < T; t++)
        segment[t] = (int32_t)segment_of(f, t);
    for (int64_t h = 0; h < H; h++)
        slopes[h] = slope_of(f, h);
    for (int side = 0; side < 3; side++) { /* as it is, and a little to both sides */
        double by = side == 0 ? 0 : side == 1 ? 1e-4 : -1e-4, *x = moved(q, dq, by, HD), *y = moved(k, dk, by, GD), *z = moved(v, dv, by, GD);
        attend(wide[side == 1], sums, x, y, z, f);
        for (int64_t i = 0; side == 0 && i < HD; i++)
            o[i] = (float)wide[0][i];
        for (int64_t i = 0; side == 0 && i < COUNT * H * T; i++)
            lse[i] = (float)sums[i];
        free(x);
        free(y);
        free(z);
    }
    struct linearised a = {.count = COUNT, .T = T, .N = N, .C = 1, .H = H, .G = G, .D = D, .R = H / G, .scale = 0.3f, .q = q, .k = k, .v = v, .o = o};
    a.p = malloc((size_t)(COUNT * H * attention_floats(T)) * sizeof *a.p);
    a.memory = malloc((size_t)(omp_get_max_threads() * 2 * ATTENTION_ROWS * (T + ATTENTION_ROWS)) * sizeof *a.memory);
    for (int64_t i = 0; i < COUNT; i++)
        attention_fill(&a, i, segment, lse + i * H * T, f->slopes ? slopes : NULL, f->window);
    for (int64_t i = 0; i < HD; i++)
        out[i] = gq[i] = NAN;
    attention_change(&a, out, dq, dk, dv);
    for (int64_t i = 0; i < HD; i++) {
        worst = worse_error(worst, fabs((double)out[i] - (wide[1][i] - wide[0][i]) / 2e-4));
    }
    attention_gradient(&a, e, gq, gk, gv);
    double there = inner(out, e, HD), back = inner(gq, dq, HD) + inner(gk, dk, GD) + inner(gv, dv, GD);
    print_message("window %d, slopes %d, documents %d: change %.1e, transposed %.1e\n", (int)f->window, f->slopes, f->documents, worst, fabs(there - back));
    assert_true(worst < 1e-5);
    assert_true(fabs(there - back) < 1e-4 * sqrt(inner(out, out, HD) * inner(e, e, HD)));
    float *all[] = {q, k, v, dq, dk, dv, e, o, out, gq, gk, gv, a.p, a.memory};
    for (size_t i = 0; i < COUNT_OF(all); i++)
        free(all[i]);
    free(wide[0]);
    free(wide[1]);
    free(sums);
}

static void changes_and_their_transpose(void **state)
{
    (void)state;
    static const struct form forms[] = {{0, 0, 0}, {0, 0, 1}, {20, 0, 0}, {0, 1, 0}, {40, 1, 1}};
    for (size_t i = 0; i < COUNT_OF(forms); i++)
        check(&forms[i]);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(changes_and_their_transpose)};
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
