/* Norms, rotary positions, activations and embedding against the double reference; gradients against its finite differences. */
#include <math.h>

#include "ops.h"
#include "reference/ops.h"

static const char *const norm_names[] = {"rms", "rms1p", "layer", "layer_nop"};

struct norm_context { double *x, *w, *b, *y; const double *dy; int64_t N, C; enum norm_kind kind; };

static double norm_loss(void *context)
{
    struct norm_context *k = context;
    ref_norm(k->y, NULL, NULL, k->x, k->w, k->b, k->N, k->C, k->kind, 1e-5);
    double s = 0;
    for (int64_t i = 0; i < k->N * k->C; i++)
        s += k->dy[i] * k->y[i];
    return s;
}

static void one_norm(struct device *dev, int64_t N, int64_t C, enum norm_kind kind, int residual, int in_place)
{
    const int64_t gap = 7;
    struct view x = ops_rows(N, C, gap, 11), r = ops_rows(N, C, 0, 12), w = ops_vector(C, 13), b = ops_vector(C, 14);
    struct view y = ops_rows(N, C, gap, 0), sum = in_place ? r : ops_rows(N, C, gap, 0), mean = ops_vector(N, 0), rstd = ops_vector(N, 0);
    for (int64_t i = 0; i < C; i++)
        view_f32(x)[i] += 3; /* a mean to subtract */
    const int has_b = kind == NORM_LAYER;
    double *x64 = ops_f64(x), *r64 = ops_f64(r), *w64 = ops_f64(w), *b64 = has_b ? ops_f64(b) : NULL;
    double *y64 = calloc((size_t)(N * C), 8), *mean64 = calloc((size_t)N, 8), *rstd64 = calloc((size_t)N, 8);
    for (int64_t i = 0; residual && i < N * C; i++)
        x64[i] = (double)((float)x64[i] + (float)r64[i]);
    ref_norm(y64, mean64, rstd64, x64, w64, b64, N, C, kind, 1e-5);
    assert_ok(cpu_norm_fwd(dev, y, residual ? sum : view_none(), mean, rstd, x, residual ? r : view_none(), w, has_b ? b : view_none(), kind, 1e-5f));
    char name[96];
    snprintf(name, sizeof name, "%s %s N %d C %d residual %d", dev->loops->name, norm_names[kind], (int)N, (int)C, residual);
    assert_true(ops_compare(name, y, y64, 1e-5, 1e-5));
    assert_true(ops_gaps_ok(y, gap));
    assert_true(ops_compare(name, rstd, rstd64, 1e-5, 1e-6));
    assert_true(ops_compare(name, mean, mean64, 1e-5, 1e-6));
    if (residual)
        assert_true(ops_compare(name, sum, x64, 0, 0));

    struct view from = residual ? sum : x, dy = ops_rows(N, C, gap, 15), dres = ops_rows(N, C, 3, 16), dw = ops_vector(C, 17), db = ops_vector(C, 18);
    double *dy64 = ops_f64(dy), *dx64 = calloc((size_t)(N * C), 8), *want_w = calloc((size_t)C, 8), *want_b = calloc((size_t)C, 8);
    double *dw0 = ops_f64(dw), *db0 = ops_f64(db), *dres64 = ops_f64(dres);
    struct norm_context k = {x64, w64, b64, y64, dy64, N, C, kind};
    ops_differences(norm_loss, &k, x64, N * C, dx64);
    ops_differences(norm_loss, &k, w64, C, want_w);
    if (has_b)
        ops_differences(norm_loss, &k, b64, C, want_b);
    for (int64_t i = 0; residual && i < N * C; i++)
        dx64[i] += dres64[i];
    for (int64_t i = 0; i < C; i++) {
        want_w[i] += dw0[i];
        want_b[i] += db0[i];
    }
    struct view dx = in_place ? dres : ops_rows(N, C, gap, 0);
    const int has_w = kind != NORM_LAYER_NOP;
    assert_ok(cpu_norm_bwd(dev, dx, has_w ? dw : view_none(), has_b ? db : view_none(), dy, residual ? dres : view_none(), from, w,
                           kind == NORM_LAYER || kind == NORM_LAYER_NOP ? mean : view_none(), rstd, kind));
    assert_true(ops_compare(name, dx, dx64, 2e-5, 2e-5));
    if (has_w)
        assert_true(ops_compare(name, dw, want_w, 2e-5, 2e-5));
    if (has_b)
        assert_true(ops_compare(name, db, want_b, 2e-5, 2e-5));
    if (!in_place)
        free(sum.p), free(dx.p);
    free(x.p), free(r.p), free(w.p), free(b.p), free(y.p), free(mean.p), free(rstd.p), free(dy.p), free(dres.p), free(dw.p), free(db.p);
    free(x64), free(r64), free(w64), free(b64), free(y64), free(mean64), free(rstd64), free(dy64), free(dx64), free(want_w), free(want_b), free(dw0);
    free(db0), free(dres64);
}

static void test_norm(void **state)
{
    (void)state;
    static const int64_t widths[] = {1, 5, 16, 33, 64};
    FOR_EACH_ISA(isa) {
        struct device *dev = ops_device((enum isa)isa, 2);
        for (int kind = NORM_RMS; kind <= NORM_LAYER_NOP; kind++)
            for (size_t i = 0; i < COUNT_OF(widths); i++)
                for (int residual = 0; residual < 2; residual++)
                    one_norm(dev, 9, widths[i], (enum norm_kind)kind, residual, residual && i % 2);
        cpu_device_close(dev);
    }
}

/* base + norm(x), written apart, over x or over base; the statistics are norm_fwd's own. */
static void one_norm_add(struct device *dev, int64_t C, enum norm_kind kind, int where)
{
    const int64_t N = 9, gap = 5;
    struct view x = ops_rows(N, C, gap, 31), base = ops_rows(N, C, 3, 32), w = ops_vector(C, 33), b = ops_vector(C, 34);
    struct view y = where == 1 ? x : where == 2 ? base : ops_rows(N, C, gap, 0), mean = ops_vector(N, 0), rstd = ops_vector(N, 0);
    const int has_b = kind == NORM_LAYER;
    double *x64 = ops_f64(x), *base64 = ops_f64(base), *w64 = ops_f64(w), *b64 = has_b ? ops_f64(b) : NULL;
    double *y64 = calloc((size_t)(N * C), 8), *mean64 = calloc((size_t)N, 8), *rstd64 = calloc((size_t)N, 8);
    ref_norm(y64, mean64, rstd64, x64, w64, b64, N, C, kind, 1e-5);
    for (int64_t i = 0; i < N * C; i++)
        y64[i] += base64[i];
    assert_ok(cpu_norm_add_fwd(dev, y, mean, rstd, x, base, w, has_b ? b : view_none(), kind, 1e-5f));
    char name[96];
    snprintf(name, sizeof name, "%s %s added, C %d, y %s", dev->loops->name, norm_names[kind], (int)C, where == 1 ? "is x" : where == 2 ? "is base" : "apart");
    assert_true(ops_compare(name, y, y64, 1e-5, 1e-5));
    assert_true(ops_compare(name, rstd, rstd64, 1e-5, 1e-6));
    assert_true(ops_compare(name, mean, mean64, 1e-5, 1e-6));
    if (where == 0)
        free(y.p);
    free(x.p), free(base.p), free(w.p), free(b.p), free(mean.p), free(rstd.p);
    free(x64), free(base64), free(w64), free(b64), free(y64), free(mean64), free(rstd64);
}

static void test_norm_add(void **state)
{
    (void)state;
    static const int64_t widths[] = {1, 5, 16, 33, 64};
    FOR_EACH_ISA(isa) {
        struct device *dev = ops_device((enum isa)isa, 2);
        for (int kind = NORM_RMS; kind <= NORM_LAYER_NOP; kind++)
            for (size_t i = 0; i < COUNT_OF(widths); i++)
                for (int where = 0; where < 3; where++)
                    one_norm_add(dev, widths[i], (enum norm_kind)kind, where);
        struct view x = ops_rows(2, 5, 0, 1), none = view_none();
        assert_refused(cpu_norm_add_fwd(dev, x, none, none, x, none, none, none, NORM_RMS, 1e-5f), ERR_UNSUPPORTED, "base is missing");
        free(x.p);
        cpu_device_close(dev);
    }
}

/* Row blocks for dw do not follow the team: one thread and three give the same bits. */
static void test_norm_same_bits(void **state)
{
    (void)state;
    const int64_t N = 333, C = 96;
    struct view x = ops_rows(N, C, 0, 1), dy = ops_rows(N, C, 0, 2), w = ops_vector(C, 3), mean = ops_vector(N, 0), rstd = ops_vector(N, 0);
    struct view dx[2], dw[2], db[2];
    for (int i = 0; i < 2; i++) {
        struct device *dev = ops_device(host_isa(), i ? 3 : 1);
        dx[i] = ops_rows(N, C, 0, 0), dw[i] = ops_vector(C, 4), db[i] = ops_vector(C, 5);
        assert_ok(cpu_norm_fwd(dev, dx[i], view_none(), mean, rstd, x, view_none(), w, view_none(), NORM_LAYER, 1e-5f));
        assert_ok(cpu_norm_bwd(dev, dx[i], dw[i], db[i], dy, view_none(), x, w, mean, rstd, NORM_LAYER));
        cpu_device_close(dev);
    }
    assert_memory_equal(dx[0].p, dx[1].p, (size_t)(N * C) * 4);
    assert_memory_equal(dw[0].p, dw[1].p, (size_t)C * 4);
    assert_memory_equal(db[0].p, db[1].p, (size_t)C * 4);
    for (int i = 0; i < 2; i++)
        free(dx[i].p), free(dw[i].p), free(db[i].p);
    free(x.p), free(dy.p), free(w.p), free(mean.p), free(rstd.p);
}

static void test_rope(void **state)
{
    (void)state;
    static const int64_t dims[][2] = {{8, 4}, {20, 10}, {64, 32}, {80, 16}, {10, 3}, {128, 64}};
    FOR_EACH_ISA(isa) {
        struct device *dev = ops_device((enum isa)isa, 2);
        for (size_t k = 0; k < COUNT_OF(dims); k++) {
            const int64_t N = 13, heads = 3, D = dims[k][0], half = dims[k][1], P = 40, gap = 9;
            struct view rows = ops_rows(N, heads * D, gap, 21), cosines = ops_rows(P, half, 0, 22), sines = ops_rows(P, half, 2, 23);
            struct view x = {.p = rows.p, .dtype = DT_F32, .nd = 3, .n = {N, heads, D, 1}, .s = {rows.s[0], D, 1, 1}};
            double *want = ops_f64(rows), *before = ops_f64(rows), *c64, *s64;
            int32_t pos[13];
            for (int64_t n = 0; n < N; n++) {
                pos[n] = (int32_t)random_int(24, (uint64_t)n, 0, P - 1);
                double angle = (double)pos[n];
                for (int64_t i = 0; i < half; i++) {
                    view_f32(cosines)[pos[n] * cosines.s[0] + i] = (float)cos(angle / (double)(i + 1));
                    view_f32(sines)[pos[n] * sines.s[0] + i] = (float)sin(angle / (double)(i + 1));
                }
            }
            c64 = ops_f64(cosines), s64 = ops_f64(sines);
            for (int64_t n = 0; n < N; n++)
                ref_rope(want + n * heads * D, heads, D, c64 + pos[n] * half, s64 + pos[n] * half, half);
            struct view at = view_1d(pos, DT_I32, N);
            assert_ok(cpu_rope(dev, x, cosines, sines, at, 0));
            assert_true(ops_compare("rope", rows, want, 1e-6, 1e-6));
            assert_ok(cpu_rope(dev, x, cosines, sines, at, 1));
            assert_true(ops_compare("rope and back", rows, before, 1e-5, 1e-5));
            assert_true(ops_gaps_ok(rows, gap));
            pos[3] = P;
            assert_refused(cpu_rope(dev, x, cosines, sines, at, 0), ERR_INTERNAL, "position 40 of row 3");
            free(rows.p), free(cosines.p), free(sines.p), free(want), free(before), free(c64), free(s64);
        }
        cpu_device_close(dev);
    }
}

static double act_slope(double gate, double up, enum mlp_kind kind, int of_gate)
{
    const double h = 1e-5;
    return of_gate ? (ref_act(gate + h, up, kind) - ref_act(gate - h, up, kind)) / (2 * h) : (ref_act(gate, up + h, kind) - ref_act(gate, up - h, kind)) / (2 * h);
}

static void one_act(struct device *dev, enum mlp_kind kind, int64_t N, int64_t F, int in_place)
{
    struct view both = ops_rows(N, 2 * F, 3, 31), dy = ops_rows(N, F, 1, 32), y = ops_rows(N, F, 4, 0), y2 = ops_rows(N, F, 0, 0);
    for (int64_t i = 0; i < F && i < 16; i++) { /* far out, where exponentials overflow and vanish */
        view_f32(both)[i] *= 40;
        view_f32(both)[both.s[0] + F + i] *= 12;
    }
    struct view gate = view_slice(both, 1, 0, F), up = view_slice(both, 1, F, F), dboth = in_place ? both : ops_rows(N, 2 * F, 3, 0);
    const int gated = mlp_is_gated(kind);
    double *g64 = ops_f64(gate), *u64 = ops_f64(up), *dy64 = ops_f64(dy);
    double *want = calloc((size_t)(N * F), 8), *dg = calloc((size_t)(N * F), 8), *du = calloc((size_t)(N * F), 8);
    for (int64_t i = 0; i < N * F; i++) {
        want[i] = ref_act(g64[i], u64[i], kind);
        dg[i] = gated ? dy64[i] * act_slope(g64[i], u64[i], kind, 1) : 0;
        du[i] = dy64[i] * act_slope(g64[i], u64[i], kind, 0);
    }
    assert_ok(cpu_act_fwd(dev, y, gated ? gate : view_none(), up, kind));
    char name[64];
    snprintf(name, sizeof name, "%s mlp kind %d F %d", dev->loops->name, (int)kind, (int)F);
    assert_true(ops_compare(name, y, want, 2e-6, 2e-6));
    assert_true(ops_gaps_ok(y, 4));
    struct view dgate = view_slice(dboth, 1, 0, F), dup = view_slice(dboth, 1, F, F);
    assert_ok(cpu_act_bwd(dev, gated ? dgate : view_none(), dup, y2, dy, gated ? gate : view_none(), up, kind));
    if (gated)
        assert_true(ops_compare(name, dgate, dg, 1e-5, 1e-5));
    assert_true(ops_compare(name, dup, du, 1e-5, 1e-5));
    assert_true(ops_compare(name, y2, want, 2e-6, 2e-6));
    assert_true(ops_gaps_ok(dboth, 3));
    if (!in_place)
        free(dboth.p);
    free(both.p), free(dy.p), free(y.p), free(y2.p), free(g64), free(u64), free(dy64), free(want), free(dg), free(du);
}

static void test_act(void **state)
{
    (void)state;
    FOR_EACH_ISA(isa) {
        struct device *dev = ops_device((enum isa)isa, 2);
        for (int kind = MLP_SWIGLU; kind <= MLP_RELU; kind++) {
            one_act(dev, (enum mlp_kind)kind, 5, 1, 0);
            one_act(dev, (enum mlp_kind)kind, 7, 37, 0);
            one_act(dev, (enum mlp_kind)kind, 70, 333, 1);
        }
        struct view x = ops_rows(2, 3, 0, 1);
        assert_refused(cpu_act_fwd(dev, x, view_none(), x, MLP_SWIGLU), ERR_UNSUPPORTED, "gate");
        assert_refused(cpu_act_fwd(dev, x, view_none(), x, (enum mlp_kind)77), ERR_UNSUPPORTED, "unknown");
        free(x.p);
        cpu_device_close(dev);
    }
}

static void test_embed(void **state)
{
    (void)state;
    const int64_t N = 50, C = 37, V = 11, P = 64;
    FOR_EACH_ISA(isa)
        for (int bf16 = 0; bf16 < 2; bf16++) {
            struct device *dev = ops_device((enum isa)isa, 2);
            struct view table = ops_rows(V, C, bf16 ? 0 : 3, 41), where = ops_rows(P, C, 0, 42), y = ops_rows(N, C, 2, 0), dy = ops_rows(N, C, 2, 43);
            struct view t16 = ops_bf16(table), p16 = ops_bf16(where);
            double *t64 = ops_f64(table), *p64 = ops_f64(where), *dy64 = ops_f64(dy), *want = calloc((size_t)(N * C), 8);
            int32_t ids[50], pos[50];
            for (int64_t n = 0; n < N; n++) {
                ids[n] = (int32_t)random_int(44, (uint64_t)n, 0, V - 1);
                pos[n] = (int32_t)(n % P);
                for (int64_t c = 0; c < C; c++)
                    want[n * C + c] = 1.5 * t64[ids[n] * C + c] + p64[pos[n] * C + c];
            }
            struct view vids = view_1d(ids, DT_I32, N), vpos = view_1d(pos, DT_I32, N);
            assert_ok(cpu_embed_fwd(dev, y, vids, bf16 ? t16 : table, bf16 ? p16 : where, vpos, 1.5f));
            assert_true(ops_compare("embed", y, want, 1e-6, 1e-6));
            assert_true(ops_gaps_ok(y, 2));
            for (int64_t n = 0; n < N; n++)
                for (int64_t c = 0; c < C; c++) {
                    t64[ids[n] * C + c] += 1.5 * dy64[n * C + c];
                    p64[pos[n] * C + c] += dy64[n * C + c];
                }
            assert_ok(cpu_embed_bwd(dev, table, where, dy, vids, vpos, 1.5f)); /* accumulates onto the tables' own values */
            assert_true(ops_compare("dtable", table, t64, 1e-5, 1e-5));
            assert_true(ops_compare("dpos_table", where, p64, 1e-5, 1e-5));
            assert_ok(cpu_embed_fwd(dev, y, vids, table, view_none(), view_none(), 1));
            ids[7] = (int32_t)V;
            assert_refused(cpu_embed_fwd(dev, y, vids, table, view_none(), view_none(), 1), ERR_INTERNAL, "id 11 of row 7");
            assert_refused(cpu_embed_bwd(dev, table, view_none(), dy, vids, view_none(), 1), ERR_INTERNAL, "id 11 of row 7");
            free(table.p), free(where.p), free(y.p), free(dy.p), free(t16.p), free(p16.p), free(t64), free(p64), free(dy64), free(want);
            cpu_device_close(dev);
        }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_norm), cmocka_unit_test(test_norm_add), cmocka_unit_test(test_norm_same_bits), cmocka_unit_test(test_rope),
                                       cmocka_unit_test(test_act), cmocka_unit_test(test_embed)};
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
