/* Cross-entropy fused with the output projection, in chunks of rows: logits = x w^T (one product, f32), each row's log-sum-exp and
 * gradient by a block, dx = dlogits w and dw += dlogits^T x (two products).
 * Scratch: logits f32 [rows, ld], ld = V rounded up to eight; then loss terms f64 [rows]; then a teacher's (xent_teacher.cu). With bf16 activations the gradient is bf16 and
 * takes the first half of its row's logits (row stride 2 ld): one buffer, so a chunk has half as many rows again as with two.
 * xent_rows_k: pass 1 keeps a running maximum and sum a thread (online softmax), pass 2 reads the logits again, from L2 while
 * the rows in flight fit there. Limit: memory; 4 bytes written by the product, 4 + 4 read, 2 written, 2 x 2 read by the products.
 * Sums: f32 within a thread, then over the block in a fixed order; losses are f64 and added in a fixed order.
 * A target outside [-1, V) cannot be reported from a step that nothing reads back: it counts as masked and turns *loss_sum into
 * NaN, which grad_clip takes for a step to skip. */
#include "xent.cuh"

namespace CUDA_NS {
namespace {

#ifdef GQAKIT_SIMT
#define SCRATCH_BYTES ((int64_t)64 << 10) /* so that small tests have several chunks */
#else
#define SCRATCH_BYTES ((int64_t)512 << 20)
#endif
#define ROWS_UNIT 128 /* whole tiles of the products */
#define SUM_THREADS 256

template <class T> __global__ void __launch_bounds__(1024) xent_rows_k(xent_rows p)
{
    SMEM(running, part);
    float *row = p.logits + (int64_t)blockIdx.x * p.ld;
    T *to = (T *)(void *)row;
    const int64_t n = blockIdx.x, step = (int64_t)blockDim.x * 8;
    const int32_t target = p.targets[n];
    if (target < 0 || target >= p.V) {
        row_masked(p, n, to);
        return;
    }
    running mine = running_none();
    for (int64_t v = (int64_t)threadIdx.x * 8; v < p.V; v += step) {
        float z[8];
        seen8(z, p.form, p.V, row, v);
        running_add8(mine, z, 1.0f);
    }
    mine = block_merge(mine, part, 1.0f);
    if (threadIdx.x == 0)
        row_loss(p, n, mine, seen(p.form, row[target], target));
    if (!p.gradient)
        return;
    const float factor = *p.inv_count * p.form.scale, weight = factor / mine.sum, inv_cap = p.form.softcap > 0 ? 1.0f / p.form.softcap : 0.0f;
    /* A narrower T is written over logits that this step or an earlier one has read: the barrier says that all have. */
    for (int64_t v0 = 0; v0 < p.ld; v0 += step) {
        const int64_t v = v0 + (int64_t)threadIdx.x * 8;
        float z[8];
        if (v < p.ld)
            seen8(z, p.form, p.V, row, v);
        __syncthreads();
        if (v >= p.ld)
            continue;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float d = v + i < p.V ? expf(z[i] - mine.max) * weight : 0.0f;
            if (v + i == target)
                d -= factor;
            if (p.form.softcap > 0 && v + i < p.V)
                d *= 1.0f - z[i] * inv_cap * (z[i] * inv_cap);
            z[i] = d;
        }
        store_f32x8(to + v, z);
    }
}

/* One block: adds the losses, the divergences (kl_sum NULL: none wanted) and the number of valid targets of a chunk. */
__global__ void __launch_bounds__(SUM_THREADS) xent_sum_k(double *loss_sum, double *kl_sum, int64_t *count, const double *loss, const double *kl,
                                                           const int32_t *targets, int64_t rows, int64_t V)
{
    SMEM(double, part);
    double sum = 0, valid = 0, bad = 0, apart = 0;
    for (int64_t n = threadIdx.x; n < rows; n += SUM_THREADS) {
        const int32_t target = targets[n];
        sum += loss[n];
        apart += kl_sum != NULL ? kl[n] : 0;
        valid += target >= 0 && target < V ? 1 : 0;
        bad += target < -1 || target >= V ? 1 : 0;
    }
    sum = block_sum_f64(sum, part);
    __syncthreads();
    valid = block_sum_f64(valid, part);
    __syncthreads();
    bad = block_sum_f64(bad, part);
    __syncthreads();
    apart = block_sum_f64(apart, part);
    if (threadIdx.x == 0) {
        *loss_sum += bad > 0 ? (double)__uint_as_float(0x7fc00000u) : sum;
        *count += (int64_t)valid;
        if (kl_sum != NULL)
            *kl_sum += apart;
    }
}

enum code check(struct view logp, struct view dx, struct view dw, struct view x, struct view w, struct view targets, const struct xent_args *args)
{
    const char *op = "xent";
    TRY(cuda_check_type(op, x));
    TRY(cuda_check(op, "x", x, x.dtype, 2, -1, -1, 0));
    const int64_t N = x.n[0], C = x.n[1];
    TRY(cuda_check(op, "w", w, x.dtype, 2, -1, C, 0));
    const int64_t V = w.n[0];
    TRY(cuda_check(op, "targets", targets, DT_I32, 1, N, -1, 0));
    TRY(cuda_check(op, "logp", logp, DT_F32, 1, N, -1, 1));
    TRY(cuda_check(op, "dx", dx, x.dtype, 2, N, C, 1));
    TRY(cuda_check(op, "dw", dw, DT_F32, 2, V, C, 1));
    TRY(cuda_check(op, "bias", args->bias, DT_F32, 1, V, -1, 1));
    TRY(cuda_check(op, "dbias", args->dbias, DT_F32, 1, V, -1, 1));
    if (args->teacher != NULL)
        TRY(xent_teacher_check(args->teacher, N, V));
    if (dx.p == NULL && dw.p != NULL)
        return fail(ERR_UNSUPPORTED, "%s: a gradient of the head is wanted without one of its input", op);
    if (dx.p != NULL && args->inv_count == NULL)
        return fail(ERR_UNSUPPORTED, "%s: gradients need inv_count", op);
    if (V > INT32_MAX / 4)
        return fail(ERR_UNSUPPORTED, "%s: a vocabulary of %lld; the CUDA backend takes 2^29", op, (long long)V);
    return OK;
}

template <class T> enum code rows_run(struct device *dev, const xent_rows &p, int64_t rows)
{
    return LAUNCH(dev, (xent_rows_k<T>), (unsigned)rows, xent_threads(p.V), 32 * sizeof(running), p);
}

} // namespace

int64_t xent_chunk_most(int64_t V)
{
    const int64_t rows = SCRATCH_BYTES / (xent_padded(V) * 4) / ROWS_UNIT * ROWS_UNIT;
    return rows < ROWS_UNIT ? ROWS_UNIT : rows > (1 << 20) ? 1 << 20 : rows;
}

int64_t xent_chunk_rows(int64_t N, int64_t V)
{
    const int64_t most = xent_chunk_most(V), chunks = ceil_div(N, most); /* of nearly equal size */
    return chunks > 1 ? ceil_div(ceil_div(N, chunks), ROWS_UNIT) * ROWS_UNIT : N;
}

size_t cuda_xent_scratch(struct device *dev, int64_t N, int64_t C, int64_t V, int64_t K)
{
    (void)dev, (void)C;
    const int64_t rows = N < 1 ? 1 : least(N, xent_chunk_most(V)); /* not xent_chunk_rows(N): fewer rows than N may make larger chunks */
    return xent_round(rows * xent_padded(V) * 4) + xent_round(rows * 8) + (K > 0 ? xent_teacher_scratch(rows, K) : 0);
}

enum code cuda_xent(struct device *dev, double *loss_sum, int64_t *count, struct view logp, struct view dx, struct view dw, struct view x,
                    struct view w, struct view targets, const struct xent_args *args, void *scratch)
{
    TRY(check(logp, dx, dw, x, w, targets, args));
    const int64_t N = x.n[0], V = w.n[0], ld = xent_padded(V), chunk = xent_chunk_rows(N, V);
    if (N == 0)
        return OK;
    CHECK(scratch != NULL && (uintptr_t)scratch % 64 == 0);
    xent_rows p = {};
    p.logits = (float *)scratch, p.loss = (double *)(void *)((char *)scratch + xent_round(chunk * ld * 4));
    p.form.bias = ptr<const float>(args->bias), p.form.scale = args->logit_scale, p.form.softcap = args->logit_softcap;
    p.ld = ld, p.V = V, p.inv_count = args->inv_count, p.gradient = dx.p != NULL;
    const struct xent_teacher *t = args->teacher;
    const bool taught = t != NULL && (t->weight > 0 || t->kl_sum != NULL);
    xent_teach q = {};
    if (taught)
        q = xent_teach_of(t, chunk, V, (char *)(void *)p.loss + xent_round(chunk * 8));
    for (int64_t n0 = 0; n0 < N; n0 += chunk) {
        const int64_t rows = least(N - n0, chunk);
        const struct view xs = view_slice(x, 0, n0, rows);
        struct view logits = view_2d(p.logits, DT_F32, rows, V), dlogits = view_2d(p.logits, x.dtype, rows, V);
        logits.s[0] = ld, dlogits.s[0] = x.dtype == DT_BF16 ? 2 * ld : ld;
        p.targets = ptr<const int32_t>(targets) + n0;
        p.logp = logp.p != NULL ? ptr<float>(logp) + n0 : NULL;
        TRY(cuda_matmul(dev, logits, xs, w, view_none(), 0, 1, args->logit_scale, 0));
        if (taught)
            TRY(xent_teach_run(dev, q, t, p, x.dtype, n0, rows));
        if (!taught || (p.gradient && t->weight <= 0)) /* weight 0: as without a teacher, to the bit */
            TRY(WITH_TYPE(x.dtype, (rows_run<T>(dev, p, rows))));
        TRY(LAUNCH(dev, xent_sum_k, 1, SUM_THREADS, SUM_THREADS * sizeof(double), loss_sum, taught ? t->kl_sum : (double *)NULL, count, (const double *)p.loss,
                   (const double *)q.kl, p.targets, rows, V));
        if (dx.p == NULL)
            continue;
        TRY(cuda_matmul(dev, view_slice(dx, 0, n0, rows), dlogits, w, view_none(), 0, 0, 1, 0));
        if (dw.p != NULL)
            TRY(cuda_matmul(dev, dw, dlogits, xs, view_none(), 1, 0, 1, 1));
        if (args->dbias.p != NULL) /* the bias enters before the scale: its factor is in dlogits */
            TRY(cuda_bias_grad(dev, args->dbias, dlogits));
    }
    return OK;
}

} // namespace CUDA_NS
