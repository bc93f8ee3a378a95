/* Embedding. Forward: a block a row. Backward, in order and without atomics, for any repetition of ids:
 *   1. The N tokens are cut into runs of RUN. One block sorts each run by (id, position) in shared memory (bitonic, all runs at
 *      once): equal ids become neighbours, in the order in which they came.
 *   2. Run after run (launches on one stream are the order), one block for each stretch of equal ids and 1024 columns adds the
 *      stretch's rows in registers and then to the table. Blocks that do not stand at the start of a stretch leave at once.
 * Time: dy once, and a read and a write of a table row for every distinct id of every run; a stretch is added eight rows at a
 * time, so an id that is 5% of the tokens costs about 25 round trips to memory a run, beside the run's other work. One id alone
 * (a batch of nothing but padding) would take 512 a run.
 * An id outside the table: the forward writes NaN into the row, the backward leaves it out. */
#include "rows.cuh"

namespace CUDA_NS {
namespace {

#define BLOCK 128
#define RUN 4096           /* tokens; 32 KB of keys */
#define POSITION_BITS 32

struct embed_rows {
    void *y;
    const void *table;
    const float *pos_table;
    const int32_t *ids, *pos;
    int64_t ldy, ldtable, ldpos, V, P, C;
    float scale;
};

template <class T, bool VEC> __global__ void __launch_bounds__(BLOCK) embed_fwd_k(embed_rows p)
{
    const int64_t n = blockIdx.x;
    const int32_t id = p.ids[n], at = p.pos_table != NULL ? p.pos[n] : 0;
    const bool known = id >= 0 && id < p.V && (p.pos_table == NULL || (at >= 0 && at < p.P));
    for (int64_t c = (int64_t)threadIdx.x * 8; c < p.C; c += BLOCK * 8) {
        float x[8], w[8];
#pragma unroll
        for (int i = 0; i < 8; i++)
            x[i] = __uint_as_float(0x7fc00000u);
        if (known) {
            load8<VEC>(x, (const T *)p.table + id * p.ldtable + c, p.C - c);
#pragma unroll
            for (int i = 0; i < 8; i++)
                x[i] *= p.scale;
            if (p.pos_table != NULL) {
                load8<VEC>(w, p.pos_table + at * p.ldpos + c, p.C - c);
#pragma unroll
                for (int i = 0; i < 8; i++)
                    x[i] += w[i];
            }
        }
        store8<VEC>((T *)p.y + n * p.ldy + c, x, p.C - c);
    }
}

/* keys [N]: block r sorts the tokens of run r. A key is id << 32 | position; an id outside [0,V) becomes the largest and ends
 * up last, as does the padding to `size`, a power of two not below the run. */
__global__ void __launch_bounds__(1024) embed_sort_k(uint64_t *keys, const int32_t *ids, int64_t N, int64_t V, int size)
{
    SMEM(uint64_t, key);
    const int64_t n0 = (int64_t)blockIdx.x * RUN;
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        const bool there = n0 + i < N && i < RUN;
        const int32_t id = there ? ids[n0 + i] : -1;
        const uint64_t high = id >= 0 && id < V ? (uint64_t)id : 0xffffffffu;
        key[i] = high << POSITION_BITS | (uint32_t)i;
    }
    for (int width = 2; width <= size; width *= 2)
        for (int step = width / 2; step > 0; step /= 2) {
            __syncthreads();
            for (int t = threadIdx.x; t < size / 2; t += blockDim.x) {
                const int low = t / step * 2 * step + t % step, high = low + step;
                const uint64_t a = key[low], b = key[high];
                const bool up = (low & width) == 0;
                if ((a > b) == up) {
                    key[low] = b;
                    key[high] = a;
                }
            }
        }
    __syncthreads();
    for (int i = threadIdx.x; i < RUN && n0 + i < N; i += blockDim.x)
        keys[n0 + i] = key[i];
}

/* One run: keys and dy are those of its first token, n its tokens. */
template <class T, bool VEC>
__global__ void __launch_bounds__(BLOCK) embed_add_k(float *dtable, int64_t ldtable, const T *dy, int64_t lddy, const uint64_t *keys, int n,
                                                     int64_t V, int64_t C, float scale)
{
    const int first = blockIdx.x;
    const uint32_t id = (uint32_t)(keys[first] >> POSITION_BITS);
    if (id >= V || (first > 0 && (uint32_t)(keys[first - 1] >> POSITION_BITS) == id))
        return;
    const int64_t c = ((int64_t)blockIdx.y * BLOCK + threadIdx.x) * 8;
    if (c >= C)
        return;
    float sum[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    for (int i = first; i < n; i += 8) {
        float x[8][8];
        bool mine[8];
#pragma unroll
        for (int k = 0; k < 8; k++) {
            const uint64_t key = i + k < n ? keys[i + k] : ~(uint64_t)0;
            mine[k] = (uint32_t)(key >> POSITION_BITS) == id;
            if (mine[k])
                load8<VEC>(x[k], dy + (int64_t)(uint32_t)key * lddy + c, C - c);
        }
#pragma unroll
        for (int k = 0; k < 8; k++)
            if (mine[k])
#pragma unroll
                for (int j = 0; j < 8; j++)
                    sum[j] += x[k][j];
        if (!mine[7])
            break;
    }
    float *to = dtable + (int64_t)id * ldtable + c, x[8];
    load8<VEC>(x, to, C - c);
#pragma unroll
    for (int j = 0; j < 8; j++)
        x[j] += scale * sum[j];
    store8<VEC>(to, x, C - c);
}

template <class T> enum code fwd_run(struct device *dev, const embed_rows &p, unsigned rows, bool vec)
{
    return vec ? LAUNCH(dev, (embed_fwd_k<T, true>), rows, BLOCK, 0, p) : LAUNCH(dev, (embed_fwd_k<T, false>), rows, BLOCK, 0, p);
}

template <class T> enum code add_run(struct device *dev, struct view dtable, struct view dy, struct view ids, float scale)
{
    const int64_t N = dy.n[0], C = dy.n[1];
    uint64_t *keys = (uint64_t *)(void *)dev->work;
    int size = 2;
    while (size < least(N, RUN))
        size *= 2;
    TRY(LAUNCH(dev, embed_sort_k, (unsigned)ceil_div(N, RUN), (unsigned)(size < 64 ? 32 : least(size / 2, 1024)), (size_t)size * sizeof(uint64_t), keys,
               ptr<const int32_t>(ids), N, dtable.n[0], size));
    const bool vec = rows_aligned(dtable) && rows_aligned(dy);
    for (int64_t n0 = 0; n0 < N; n0 += RUN) {
        const int n = (int)least(N - n0, RUN);
        const dim3 grid((unsigned)n, (unsigned)ceil_div(C, BLOCK * 8));
        const T *from = ptr<const T>(dy) + n0 * dy.s[0];
        TRY(vec ? LAUNCH(dev, (embed_add_k<T, true>), grid, BLOCK, 0, ptr<float>(dtable), dtable.s[0], from, dy.s[0], keys + n0, n, dtable.n[0], C, scale)
                : LAUNCH(dev, (embed_add_k<T, false>), grid, BLOCK, 0, ptr<float>(dtable), dtable.s[0], from, dy.s[0], keys + n0, n, dtable.n[0], C, scale));
    }
    return OK;
}

enum code check_size(const char *op, int64_t N, int64_t C)
{
    if (N > INT32_MAX || C > (int64_t)65535 * BLOCK * 8)
        return fail(ERR_UNSUPPORTED, "%s: [%lld,%lld] is too large for the CUDA backend", op, (long long)N, (long long)C);
    return OK;
}

} // namespace

enum code cuda_embed_fwd(struct device *dev, struct view y, struct view ids, struct view table, struct view pos_table, struct view pos, float scale)
{
    const char *op = "embed_fwd";
    TRY(cuda_check_type(op, y));
    TRY(cuda_check(op, "y", y, y.dtype, 2, -1, -1, 0));
    const int64_t N = y.n[0], C = y.n[1];
    TRY(cuda_check(op, "ids", ids, DT_I32, 1, N, -1, 0));
    TRY(cuda_check(op, "table", table, y.dtype, 2, -1, C, 0));
    TRY(cuda_check(op, "pos_table", pos_table, DT_F32, 2, -1, C, 1));
    if (pos_table.p != NULL)
        TRY(cuda_check(op, "pos", pos, DT_I32, 1, N, -1, 0));
    TRY(check_size(op, N, C));
    if (N == 0 || C == 0)
        return OK;
    embed_rows p = {};
    p.y = y.p, p.table = table.p, p.pos_table = ptr<const float>(pos_table), p.ids = ptr<const int32_t>(ids), p.pos = ptr<const int32_t>(pos);
    p.ldy = y.s[0], p.ldtable = table.s[0], p.ldpos = pos_table.s[0];
    p.V = table.n[0], p.P = pos_table.p != NULL ? pos_table.n[0] : 0, p.C = C, p.scale = scale;
    const bool vec = rows_aligned(y) && rows_aligned(table) && rows_aligned(pos_table);
    return WITH_TYPE(y.dtype, (fwd_run<T>(dev, p, (unsigned)N, vec)));
}

enum code cuda_embed_bwd(struct device *dev, struct view dtable, struct view dpos_table, struct view dy, struct view ids, struct view pos, float scale)
{
    const char *op = "embed_bwd";
    TRY(cuda_check_type(op, dy));
    TRY(cuda_check(op, "dy", dy, dy.dtype, 2, -1, -1, 0));
    const int64_t N = dy.n[0], C = dy.n[1];
    TRY(cuda_check(op, "ids", ids, DT_I32, 1, N, -1, 0));
    TRY(cuda_check(op, "dtable", dtable, DT_F32, 2, -1, C, 0));
    TRY(cuda_check(op, "dpos_table", dpos_table, DT_F32, 2, -1, C, 1));
    if (dpos_table.p != NULL)
        TRY(cuda_check(op, "pos", pos, DT_I32, 1, N, -1, 0));
    TRY(check_size(op, N, C));
    if (N > (int64_t)(dev->work_bytes / sizeof(uint64_t)))
        return fail(ERR_UNSUPPORTED, "%s: %lld tokens; the workspace holds the order of %zu", op, (long long)N, dev->work_bytes / sizeof(uint64_t));
    if (N == 0 || C == 0)
        return OK;
    TRY(WITH_TYPE(dy.dtype, (add_run<T>(dev, dtable, dy, ids, scale))));
    return dpos_table.p != NULL ? WITH_TYPE(dy.dtype, (add_run<T>(dev, dpos_table, dy, pos, 1.0f))) : OK;
}

} // namespace CUDA_NS
