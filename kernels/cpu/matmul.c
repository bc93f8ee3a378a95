/* Dense products. Few rows against a weight [out,in]: our matrix-vector loops, which read the weight once. Otherwise the BLAS;
 * a bf16 weight is widened block of rows by block of rows into the device's workspace on the way. */
#include "cpu.h"

#include <omp.h>

#define GEMV_ROWS_MAX 16
#define WIDEN_BYTES ((int64_t)8 << 20) /* one widened block: well inside the last cache */

/* c = beta c + bias, so that the product only has to be added. */
static void add_bias(const struct device *dev, struct view c, struct view bias, float beta)
{
    const int64_t M = c.n[0], N = c.n[1];
#pragma omp parallel for num_threads(cpu_team(dev, M * N * 4))
    for (int64_t m = 0; m < M; m++)
        if (beta == 0)
            dev->loops->axpby(view_f32(c) + m * c.s[0], bias.p, 1.0f, 0.0f, N);
        else {
            float *row = view_f32(c) + m * c.s[0];
            if (beta != 1)
                dev->loops->axpby(row, row, beta, 0.0f, N);
            dev->loops->axpby(row, bias.p, 1.0f, 1.0f, N);
        }
}

static void matmul_few(const struct device *dev, struct view c, struct view a, struct view b, struct view bias, float alpha, float beta)
{
    const int64_t N = c.n[1], K = a.n[1];
    const struct gemv_job job = {.c = c.p, .a = a.p, .bias = bias.p, .w = b.p, .w_is_bf16 = b.dtype == DT_BF16, .ldc = c.s[0], .lda = a.s[0],
                                 .ldw = b.s[0], .M = a.n[0], .K = K, .alpha = alpha, .beta = beta};
    const int team = cpu_team(dev, N * K * (job.w_is_bf16 ? 2 : 4));
#pragma omp parallel num_threads(team)
    {
        struct range r = cpu_range(N, 4, omp_get_num_threads(), omp_get_thread_num());
        dev->loops->gemv(&job, cpu_tile(dev, omp_get_thread_num()), r.lo, r.hi);
    }
}

static void matmul_bf16(const struct device *dev, struct view c, struct view a, struct view b, int trans_a, float alpha, float beta)
{
    const int64_t N = b.n[0], K = b.n[1];
    int64_t block = WIDEN_BYTES / (K * 4) / 64 * 64;
    if (block < 64)
        block = (int64_t)CPU_SHARED_BYTES / (K * 4) < 64 ? (int64_t)CPU_SHARED_BYTES / (K * 4) : 64;
    float *wide = (float *)(void *)dev->shared;
    for (int64_t n0 = 0; n0 < N; n0 += block) {
        const int64_t n = N - n0 < block ? N - n0 : block;
#pragma omp parallel for num_threads(cpu_team(dev, n * K * 4))
        for (int64_t i = 0; i < n; i++)
            dev->loops->from_bf16(wide + i * K, (const uint16_t *)b.p + (n0 + i) * b.s[0], K);
        cpu_sgemm(dev, trans_a, 1, c.n[0], n, K, alpha, a.p, a.s[0], wide, K, beta, view_f32(c) + n0, c.s[0]);
    }
}

enum code cpu_matmul(struct device *dev, struct view c, struct view a, struct view b, struct view bias, int trans_a, int trans_b, float alpha,
                     float beta)
{
    const char *op = "matmul";
    TRY(cpu_check(op, "c", c, DT_F32, 2, -1, -1, 0));
    const int64_t M = c.n[0], N = c.n[1];
    TRY(cpu_check(op, "a", a, DT_F32, 2, trans_a ? -1 : M, trans_a ? M : -1, 0));
    const int64_t K = a.n[trans_a ? 0 : 1];
    TRY(cpu_check(op, "b", b, b.dtype == DT_BF16 && trans_b ? DT_BF16 : DT_F32, 2, trans_b ? N : K, trans_b ? K : N, 0));
    TRY(cpu_check(op, "bias", bias, DT_F32, 1, N, -1, 1));
    if (M > INT32_MAX || N > INT32_MAX || K > INT32_MAX)
        return fail(ERR_UNSUPPORTED, "%s: [%lld,%lld] x %lld; the BLAS takes dims below 2^31", op, (long long)M, (long long)N, (long long)K);
    if (b.dtype == DT_BF16 && K * 4 > (int64_t)CPU_SHARED_BYTES)
        return fail(ERR_UNSUPPORTED, "%s: rows of %lld bf16 weights; the CPU backend widens at most %lld", op, (long long)K,
                    (long long)CPU_SHARED_BYTES / 4);
    if (M == 0 || N == 0)
        return OK;
    if (trans_b && !trans_a && M <= GEMV_ROWS_MAX && M * (K + 16) * 4 <= (int64_t)CPU_TILE_BYTES) {
        matmul_few(dev, c, a, b, bias, alpha, beta);
        return OK;
    }
    if (bias.p != NULL) {
        add_bias(dev, c, bias, beta);
        beta = 1.0f;
    }
    if (b.dtype == DT_BF16)
        matmul_bf16(dev, c, a, b, trans_a, alpha, beta);
    else
        cpu_sgemm(dev, trans_a, trans_b, M, N, K, alpha, a.p, a.s[0], b.p, b.s[0], beta, c.p, c.s[0]);
    return OK;
}

#define COLUMN_BLOCK 512 /* columns whose sums one thread keeps at hand */
#define ROW_BLOCK 64     /* rows summed before they are added to the total: shorter rounding chains */

enum code cpu_bias_grad(struct device *dev, struct view db, struct view dy)
{
    TRY(cpu_check("bias_grad", "dy", dy, DT_F32, 2, -1, -1, 0));
    TRY(cpu_check("bias_grad", "db", db, DT_F32, 1, dy.n[1], -1, 0));
    const int64_t M = dy.n[0], N = dy.n[1];
    int64_t block = (N / dev->threads + 15) / 16 * 16;
    block = block > COLUMN_BLOCK ? COLUMN_BLOCK : block < 16 ? 16 : block;
#pragma omp parallel for num_threads(cpu_team(dev, M * N * 4)) schedule(static)
    for (int64_t n0 = 0; n0 < N; n0 += block) {
        float part[COLUMN_BLOCK];
        const int64_t n = N - n0 < block ? N - n0 : block;
        for (int64_t m = 0; m < M; m++) {
            dev->loops->axpby(part, view_f32(dy) + m * dy.s[0] + n0, 1.0f, m % ROW_BLOCK == 0 ? 0.0f : 1.0f, n);
            if (m % ROW_BLOCK == ROW_BLOCK - 1 || m == M - 1)
                dev->loops->axpby(view_f32(db) + n0, part, 1.0f, 1.0f, n);
        }
    }
    return OK;
}
