/* Rotary positions, in place on [N,heads,D]: the first r = 2 half dims of every head turn in pairs (i, i + half) by the angle of row
 * pos[n] of f32 tables (Su et al. 2021). A block takes one row: threadIdx.x is a chunk of eight pairs, whose cosines and sines stay
 * in registers while threadIdx.y walks the heads. With few rows (decode) the heads are cut among blocks too.
 * A position outside the table turns its row into NaN, which the loss shows: nothing can be reported from here.
 * Limit: memory; 4 bytes an element of the rotated part in bf16 (the tables come from L2). */
#include "rows.cuh"

namespace CUDA_NS {
namespace {

#define BLOCK 128

struct rope_rows {
    void *x;
    const float *cosines, *sines;
    const int32_t *pos;
    int64_t row, head, ldcos, ldsin; /* strides of x and of the tables */
    int64_t P;
    int heads, half;
    float sign;
};

template <class T, bool VEC> __global__ void __launch_bounds__(BLOCK) rope_k(rope_rows p)
{
    const int64_t n = blockIdx.x;
    const int32_t at = p.pos[n];
    const bool known = at >= 0 && at < p.P;
    for (int i = (int)threadIdx.x * 8; i < p.half; i += (int)blockDim.x * 8) {
        const int left = p.half - i;
        float c[8], s[8];
#pragma unroll
        for (int k = 0; k < 8; k++)
            c[k] = s[k] = __uint_as_float(0x7fc00000u);
        if (known) {
            load8<VEC>(c, p.cosines + at * p.ldcos + i, left);
            load8<VEC>(s, p.sines + at * p.ldsin + i, left);
        }
        for (int h = (int)(blockIdx.y * blockDim.y + threadIdx.y); h < p.heads; h += (int)(gridDim.y * blockDim.y)) {
            T *x = (T *)p.x + n * p.row + h * p.head + i;
            float a[8], b[8];
            load8<VEC>(a, x, left);
            load8<VEC>(b, x + p.half, left);
#pragma unroll
            for (int k = 0; k < 8; k++) {
                const float u = a[k], v = b[k], sine = s[k] * p.sign;
                a[k] = u * c[k] - v * sine;
                b[k] = u * sine + v * c[k];
            }
            store8<VEC>(x, a, left);
            store8<VEC>(x + p.half, b, left);
        }
    }
}

template <class T> enum code run(struct device *dev, const rope_rows &p, dim3 grid, dim3 block, bool vec)
{
    return vec ? LAUNCH(dev, (rope_k<T, true>), grid, block, 0, p) : LAUNCH(dev, (rope_k<T, false>), grid, block, 0, p);
}

} // namespace

enum code rope_check(struct view x, struct view cos_table, struct view sin_table, struct view pos)
{
    const char *op = "rope";
    TRY(cuda_check_type(op, x));
    TRY(cuda_check(op, "x", x, x.dtype, 3, -1, -1, 0));
    TRY(cuda_check(op, "cos table", cos_table, DT_F32, 2, -1, -1, 0));
    TRY(cuda_check(op, "sin table", sin_table, DT_F32, 2, cos_table.n[0], cos_table.n[1], 0));
    TRY(cuda_check(op, "pos", pos, DT_I32, 1, x.n[0], -1, 0));
    if (2 * cos_table.n[1] > x.n[2])
        return fail(ERR_UNSUPPORTED, "%s: %lld rotary dims, but heads are %lld wide", op, (long long)(2 * cos_table.n[1]), (long long)x.n[2]);
    return OK;
}

enum code cuda_rope(struct device *dev, struct view x, struct view cos_table, struct view sin_table, struct view pos, int inverse)
{
    const char *op = "rope";
    TRY(rope_check(x, cos_table, sin_table, pos));
    const int64_t N = x.n[0], heads = x.n[1], half = cos_table.n[1];
    if (N == 0 || heads == 0 || half == 0)
        return OK;
    if (heads > 65535 || half > INT32_MAX / 16)
        return fail(ERR_UNSUPPORTED, "%s: %lld heads of %lld; the CUDA backend takes 65535 heads", op, (long long)heads, (long long)x.n[2]);
    rope_rows p = {};
    p.x = x.p, p.cosines = ptr<const float>(cos_table), p.sines = ptr<const float>(sin_table), p.pos = ptr<const int32_t>(pos);
    p.row = x.s[0], p.head = x.s[1], p.ldcos = cos_table.s[0], p.ldsin = sin_table.s[0];
    p.P = cos_table.n[0], p.heads = (int)heads, p.half = (int)half, p.sign = inverse ? -1.0f : 1.0f;
    /* Chunks start at multiples of eight from the head and from its middle, so both must be aligned. */
    const bool vec = half % 8 == 0 && rows_aligned(cos_table) && rows_aligned(sin_table) && (uintptr_t)x.p % 16 == 0 &&
                     (N == 1 || x.s[0] % 8 == 0) && (heads == 1 || x.s[1] % 8 == 0);
    const unsigned across = (unsigned)least(ceil_div(half, 8), BLOCK), down = BLOCK / across;
    unsigned rows;
    TRY(grid_of(op, N, 1, &rows));
    const dim3 grid(rows, N < 2 * dev->sm_count ? (unsigned)ceil_div(heads, down) : 1);
    return WITH_TYPE(x.dtype, (run<T>(dev, p, grid, dim3(across, down), vec)));
}

} // namespace CUDA_NS
