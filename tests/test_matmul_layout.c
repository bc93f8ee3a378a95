/* The translation of row-major products into cuBLASLt's column-major ones (kernels/cuda/matmul_layout.h), without a GPU: the library's
 * definition, D[i + j ldd] = sum over p of op(A)(i, p) op(B)(p, j) + bias[i], in plain loops on the translated arguments must give
 * what kernels.h asks of c = op(a) op(b) + bias. Values are small integers, so every sum is exact. */
#include "harness.h"

#include <math.h>

#include "kernels/cuda/matmul_layout.h"

enum { SPARE = 3 }; /* columns beyond a view's, where its row stride says so */

static float at(const float *p, const struct matmul_matrix *x, int64_t i, int64_t j) /* element (i, j) of op(X) */
{
    const int64_t row = x->transposed ? j : i, col = x->transposed ? i : j;
    assert_true(row < x->rows && col < x->cols);
    return p[row + col * x->ld];
}

static struct view matrix(int64_t rows, int64_t cols, int strided)
{
    const int64_t stride = cols + (strided ? SPARE : 0);
    float *p = malloc((size_t)(rows * stride) * sizeof *p);
    assert_non_null(p);
    struct view v = view_2d(p, DT_F32, rows, cols);
    v.s[0] = stride;
    for (int64_t i = 0; i < rows * stride; i++)
        p[i] = i % stride < cols ? (float)((i * 7919 + rows * 31 + cols) % 13 - 6) : NAN;
    return v;
}

static float value(struct view v, int64_t i, int64_t j, int transposed)
{
    return view_f32(v)[(transposed ? j : i) * v.s[0] + (transposed ? i : j)];
}

static void product(int64_t M, int64_t N, int64_t K, int ta, int tb, int strided)
{
    struct view a = matrix(ta ? K : M, ta ? M : K, strided), b = matrix(tb ? N : K, tb ? K : N, strided), c = matrix(M, N, strided);
    const struct matmul_layout l = matmul_layout_of(c, a, b, ta, tb);
    assert_true(l.m == N && l.n == M && l.k == K);
    /* What the library demands of its arguments. */
    assert_true(l.A.ld >= l.A.rows && l.B.ld >= l.B.rows && l.D.ld >= l.D.rows && l.D.rows == l.m && l.D.cols == l.n && !l.D.transposed);
    assert_true((l.A.transposed ? l.A.cols : l.A.rows) == l.m && (l.A.transposed ? l.A.rows : l.A.cols) == l.k);
    assert_true((l.B.transposed ? l.B.cols : l.B.rows) == l.k && (l.B.transposed ? l.B.rows : l.B.cols) == l.n);
    for (int64_t j = 0; j < l.n; j++)
        for (int64_t i = 0; i < l.m; i++) {
            float sum = (float)(i * 3); /* the bias of row i of D */
            for (int64_t k = 0; k < l.k; k++)
                sum += at(b.p, &l.A, i, k) * at(a.p, &l.B, k, j);
            ((float *)c.p)[i + j * l.D.ld] = sum;
        }
    for (int64_t m = 0; m < M; m++)
        for (int64_t n = 0; n < N; n++) {
            float want = (float)(n * 3); /* the bias of column n of c */
            for (int64_t k = 0; k < K; k++)
                want += value(a, m, k, ta) * value(b, k, n, tb);
            if (!(value(c, m, n, 0) == want))
                print_error("M %d N %d K %d ta %d tb %d strided %d: c[%d,%d]\n", (int)M, (int)N, (int)K, ta, tb, strided, (int)m, (int)n);
            assert_true(value(c, m, n, 0) == want);
        }
    for (int64_t i = 0; strided && i < M; i++) /* nothing is written between the rows */
        for (int64_t j = N; j < N + SPARE; j++)
            assert_true(isnan(view_f32(c)[i * c.s[0] + j]));
    free(a.p), free(b.p), free(c.p);
}

static void test_every_transpose(void **state)
{
    (void)state;
    const int64_t shapes[][3] = {{5, 7, 3}, {1, 9, 4}, {6, 1, 5}, {4, 3, 1}, {1, 1, 1}, {17, 16, 15}};
    for (size_t i = 0; i < COUNT_OF(shapes); i++)
        for (int bits = 0; bits < 8; bits++)
            product(shapes[i][0], shapes[i][1], shapes[i][2], bits & 1, bits >> 1 & 1, bits >> 2);
}

/* The stride of an axis of one element means nothing and may be anything, also less than a row. */
static void test_single_rows(void **state)
{
    (void)state;
    float p[64] = {0};
    struct view row = view_2d(p, DT_F32, 1, 8), column = view_2d(p, DT_F32, 8, 1);
    row.s[0] = 0;
    column.s[0] = 5;
    assert_int_equal(matmul_matrix_of(row, 0).ld, 8);
    assert_int_equal(matmul_matrix_of(column, 1).ld, 5);
    row.s[0] = INT64_MAX;
    assert_int_equal(matmul_matrix_of(row, 0).ld, 8);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_transpose), cmocka_unit_test(test_single_rows)};
    return harness_main(argc, argv, tests, COUNT_OF(tests));
}
