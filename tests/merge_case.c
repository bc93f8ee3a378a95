#include "merge_case.h"

#include <math.h>

#include "harness.h"

enum { C0 = 20, D0 = 6 };

const char *kind_name(enum merge_kind k)
{
    static const char *const names[] = {"rotary", "partial rotary", "learned", "alibi", "head norm", "head norm with gains", "layer norm per head", "full norm"};
    return names[k];
}

void merge_arch(struct arch *a, enum merge_kind kind, int64_t H, int64_t G)
{
    enum { BIASES = BIAS_Q | BIAS_K | BIAS_V | BIAS_O };
    assert_ok(arch_init(a, 2));
    snprintf(a->family, sizeof a->family, "gqakit");
    a->C = C0;
    a->V = 29;
    a->max_positions = 32;
    for (int l = 0; l < 2; l++)
        a->stack[STACK_DEC].block[l] = (struct arch_block){.H = H, .G = G, .D = D0, .Dv = D0, .F = 12};
    a->norm = NORM_RMS;
    a->norm_eps = 1e-5;
    a->pos = POS_ROPE;
    a->rope.dims = D0;
    a->rope.theta = 100;
    a->attn_scale = 1 / sqrt((double)D0);
    a->tied = 1;
    a->dtype = DT_F32;
    if (kind == KIND_PARTIAL) {
        a->rope.dims = 4;
        a->bias = BIASES;
    }
    if (kind == KIND_LEARNED || kind == KIND_ALIBI) {
        a->pos = kind == KIND_ALIBI ? POS_ALIBI : POS_LEARNED;
        a->bias = BIASES;
        a->alibi_bias_max = 8;
    }
    if (kind == KIND_HEAD_NORM || kind == KIND_HEAD_GAINS)
        a->qk_norm = QK_NORM_HEAD;
    if (kind == KIND_LAYER_NORM) {
        a->norm = NORM_LAYER;
        a->qk_norm = QK_NORM_PER_HEAD;
    }
    if (kind == KIND_FULL_NORM)
        a->qk_norm = QK_NORM_FULL;
}

static int equal_gains(const struct attention_layer *a)
{
    for (int64_t p = 0; a->qk_norm == QK_NORM_HEAD && p < a->rotary / 2; p++)
        if (fabs(a->k_norm[p] - a->k_norm[p + a->rotary / 2]) > 1e-9 || fabs(a->q_norm[p] - a->q_norm[p + a->rotary / 2]) > 1e-9)
            return 0;
    return 1;
}

void random_layer(struct attention_layer *a, const struct arch *arch, uint64_t seed)
{
    static const char *const names[] = {"attn.q.w", "attn.k.w", "attn.v.w", "attn.o.w", "attn.q.b", "attn.k.b", "attn.v.b"};
    assert_ok(attention_layer_new(a, arch, 0, 0));
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        int64_t n;
        double *p = attention_layer_tensor(a, names[i], &n);
        if (p)
            fill_random_f64(p, n, seed * 100 + i);
        for (int64_t k = 0; k < n; k++)
            p[k] *= 0.4;
    }
    int64_t n, h2 = a->rotary / 2;
    for (int side = 0; side < 2; side++) {
        double *p = attention_layer_tensor(a, side ? "attn.k_norm.w" : "attn.q_norm.w", &n);
        for (int64_t k = 0; k < n; k++)
            p[k] = 1 + 0.1 * (double)(random_int(seed, (uint64_t)(7 * k + side), 0, 9));
        for (int64_t k = 0; a->qk_norm == QK_NORM_HEAD && k < h2; k++)
            p[k + h2] = p[k];
    }
}

void copy_layer(struct attention_layer *to, const struct attention_layer *from, const struct arch *arch)
{
    static const char *const names[] = {"attn.q.w", "attn.k.w", "attn.v.w", "attn.o.w", "attn.q.b", "attn.k.b", "attn.v.b", "attn.q_norm.w", "attn.k_norm.w"};
    assert_ok(attention_layer_new(to, arch, from->layer, from->G));
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        int64_t n;
        const double *p = attention_layer_tensor(from, names[i], &n);
        if (p)
            memcpy(attention_layer_tensor(to, names[i], &n), p, (size_t)n * sizeof *p);
    }
}

/* ---- changes of basis ---------------------------------------------------------------------------------------------------- */

struct map { double to[D0][D0], back[D0][D0]; }; /* x -> to x; back is to's inverse */

static double uniform(uint64_t seed, uint64_t i) { return random_uniform(seed, STREAM_TEST, 3, i); }

static void one(struct map *m)
{
    memset(m, 0, sizeof *m);
    for (int i = 0; i < D0; i++)
        m->to[i][i] = m->back[i][i] = 1;
}

/* Dims x and y: turned by an angle. */
static void givens(struct map *m, int x, int y, double angle)
{
    double c = cos(angle), s = sin(angle);
    for (int k = 0; k < D0; k++) {
        double a = m->to[x][k], b = m->to[y][k];
        m->to[x][k] = c * a - s * b;
        m->to[y][k] = s * a + c * b;
        a = m->back[k][x];
        b = m->back[k][y];
        m->back[k][x] = c * a - s * b;
        m->back[k][y] = s * a + c * b;
    }
}

static void stretch(struct map *m, int x, double g)
{
    for (int k = 0; k < D0; k++) {
        m->to[x][k] *= g;
        m->back[k][x] /= g;
    }
}

/* Anything on dims [from, D). */
static void mix(struct map *m, int from, int gains, uint64_t seed)
{
    for (int pass = 0; pass < 2; pass++) {
        for (int x = from; x < D0; x++)
            for (int y = from; y < x; y++)
                givens(m, x, y, 6 * uniform(seed, (uint64_t)(100 * pass + 10 * x + y)));
        for (int x = from; gains && !pass && x < D0; x++)
            stretch(m, x, 0.5 + 1.5 * uniform(seed, (uint64_t)(500 + x)));
    }
}

static void key_map(struct map *m, const struct attention_layer *a, int gains, uint64_t seed)
{
    int h2 = (int)a->rotary / 2;
    one(m);
    if (a->qk_norm != QK_NORM_NONE && (a->qk_norm != QK_NORM_HEAD || !a->norm_rms || !equal_gains(a)))
        return;
    for (int p = 0; p < h2; p++) {
        givens(m, p, p + h2, 6 * uniform(seed, (uint64_t)(1000 + p)));
        double g = gains && a->qk_norm == QK_NORM_NONE ? 0.5 + 1.5 * uniform(seed, (uint64_t)(2000 + p)) : 1;
        stretch(m, p, g);
        stretch(m, p + h2, g);
    }
    if (a->qk_norm == QK_NORM_NONE)
        mix(m, 2 * h2, gains, seed + 1);
}

/* rows [D, n] = M rows (or M^T rows). */
static void left(double *rows, int64_t n, double m[D0][D0], int transposed)
{
    for (int64_t c = 0; c < n; c++) {
        double t[D0];
        for (int x = 0; x < D0; x++) {
            t[x] = 0;
            for (int y = 0; y < D0; y++)
                t[x] += (transposed ? m[y][x] : m[x][y]) * rows[y * n + c];
        }
        for (int x = 0; x < D0; x++)
            rows[x * n + c] = t[x];
    }
}

/* columns [., D] with leading dimension ld, times M. */
static void right(double *columns, int64_t rows, int64_t ld, double m[D0][D0])
{
    for (int64_t r = 0; r < rows; r++) {
        double t[D0] = {0};
        for (int x = 0; x < D0; x++)
            for (int y = 0; y < D0; y++)
                t[x] += columns[r * ld + y] * m[y][x];
        memcpy(columns + r * ld, t, sizeof t);
    }
}

static void take(double *rows, int64_t width, int64_t j, int64_t i, double m[D0][D0])
{
    if (!rows)
        return;
    if (i != j)
        memcpy(rows + j * D0 * width, rows + i * D0 * width, (size_t)(D0 * width) * sizeof *rows);
    left(rows + j * D0 * width, width, m, 0);
}

void map_head(struct attention_layer *a, int64_t j, int64_t i, int gains, uint64_t seed)
{
    struct map k, v;
    int64_t R = a->H / a->G, ld = a->H * D0;
    key_map(&k, a, gains, seed * 31 + 5);
    one(&v);
    mix(&v, 0, gains, seed * 37 + 6);
    take(a->k, a->C, j, i, k.to);
    take(a->k_bias, 1, j, i, k.to);
    take(a->v, a->C, j, i, v.to);
    take(a->v_bias, 1, j, i, v.to);
    if (i != j && a->k_norm && a->qk_norm != QK_NORM_HEAD)
        memcpy(a->k_norm + j * D0, a->k_norm + i * D0, D0 * sizeof *a->k_norm);
    for (int64_t h = j * R; h < (j + 1) * R; h++) {
        left(a->q + h * D0 * a->C, a->C, k.back, 1);
        if (a->q_bias)
            left(a->q_bias + h * D0, 1, k.back, 1);
        right(a->o + h * D0, a->C, ld, v.back);
    }
}

/* ---- the oracle ---------------------------------------------------------------------------------------------------------- */

/* [T, n] = x W^T + b */
static double *project(const double *w, const double *b, const double *x, int64_t T, int64_t n, int64_t C)
{
    double *y = calloc((size_t)(T * n), sizeof *y);
    for (int64_t t = 0; t < T; t++)
        for (int64_t i = 0; i < n; i++) {
            y[t * n + i] = b ? b[i] : 0;
            for (int64_t c = 0; c < C; c++)
                y[t * n + i] += w[i * C + c] * x[t * C + c];
        }
    return y;
}

static void normalise(double *y, int64_t n, const double *w, int rms)
{
    double mean = 0, square = 0;
    for (int64_t i = 0; !rms && i < n; i++)
        mean += y[i] / (double)n;
    for (int64_t i = 0; i < n; i++)
        square += (y[i] - mean) * (y[i] - mean) / (double)n;
    for (int64_t i = 0; i < n; i++)
        y[i] = (y[i] - mean) / sqrt(square + 1e-5) * w[i];
}

static void norms_and_positions(double *y, const struct attention_layer *a, int64_t heads, const double *w, int64_t T)
{
    int64_t n = heads * D0, h2 = a->rotary / 2;
    for (int64_t t = 0; t < T; t++) {
        if (a->qk_norm == QK_NORM_FULL)
            normalise(y + t * n, n, w, a->norm_rms);
        for (int64_t h = 0; h < heads; h++) {
            double *head = y + t * n + h * D0;
            if (a->qk_norm == QK_NORM_HEAD || a->qk_norm == QK_NORM_PER_HEAD)
                normalise(head, D0, a->qk_norm == QK_NORM_HEAD ? w : w + h * D0, a->norm_rms);
            for (int64_t p = 0; p < h2; p++) {
                double angle = (double)t * pow(100, -2.0 * (double)p / (double)a->rotary), c = cos(angle), s = sin(angle), re = head[p], im = head[p + h2];
                head[p] = c * re - s * im;
                head[p + h2] = s * re + c * im;
            }
        }
    }
}

double *layer_output(const struct attention_layer *a, const struct arch *arch, const double *x, int64_t T)
{
    int64_t H = a->H, R = H / a->G, n = H * D0, m = a->G * D0;
    double *q = project(a->q, a->q_bias, x, T, n, a->C), *k = project(a->k, a->k_bias, x, T, m, a->C), *v = project(a->v, a->v_bias, x, T, m, a->C);
    double *y = calloc((size_t)(T * n), sizeof *y), weights[64];
    norms_and_positions(q, a, H, a->q_norm, T);
    norms_and_positions(k, a, a->G, a->k_norm, T);
    for (int64_t t = 0; t < T; t++)
        for (int64_t h = 0; h < H; h++) {
            double sum = 0;
            for (int64_t s = 0; s <= t; s++) {
                double score = arch->pos == POS_ALIBI ? -pow(2, -8.0 * (double)(h + 1) / (double)H) * (double)(t - s) : 0;
                for (int64_t d = 0; d < D0; d++)
                    score += q[t * n + h * D0 + d] * k[s * m + h / R * D0 + d] * arch->attn_scale;
                sum += weights[s] = exp(score);
            }
            for (int64_t s = 0; s <= t; s++)
                for (int64_t d = 0; d < D0; d++)
                    y[t * n + h * D0 + d] += weights[s] / sum * v[s * m + h / R * D0 + d];
        }
    double *out = project(a->o, NULL, y, T, a->C, n);
    free(q);
    free(k);
    free(v);
    free(y);
    return out;
}

double output_distance(const struct attention_layer *a, const struct attention_layer *b, const struct arch *arch)
{
    enum { T = 9 };
    double x[T * C0], worst = 0, scale = 0;
    fill_random_f64(x, T * C0, 77);
    double *p = layer_output(a, arch, x, T), *q = layer_output(b, arch, x, T);
    for (int64_t i = 0; i < T * a->C; i++) {
        double d = fabs(p[i] - q[i]);
        worst = worse_error(worst, d);
        scale = fmax(scale, fabs(p[i]));
    }
    free(p);
    free(q);
    return worst / scale;
}

double *random_moments(int64_t C, uint64_t seed)
{
    enum { SAMPLES = 200 };
    int64_t L = C + 1;
    double *N = calloc((size_t)(L * L), sizeof *N), *x = calloc((size_t)L, sizeof *x);
    for (int s = 0; s < SAMPLES; s++) {
        fill_random_f64(x, C, seed * 1000 + (uint64_t)s);
        for (int64_t c = 0; c < C; c++)
            x[c] = x[c] * (0.2 + 2 * uniform(seed, (uint64_t)c)) + uniform(seed, (uint64_t)(c + 99));
        x[C] = 1;
        for (int64_t i = 0; i < L; i++)
            for (int64_t k = 0; k < L; k++)
                N[i * L + k] += x[i] * x[k] / SAMPLES;
    }
    free(x);
    return N;
}
