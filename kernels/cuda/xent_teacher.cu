/* The teacher of xent; the formulas are those of kernels/cpu/xent_teacher.c. A block a row.
 * xent_whole_k: one pass over the student's and the teacher's raw logits keeps running sums (student at 1 and at tau, teacher at tau) and the
 * moment sum exp((y - max y) / tau) (y - z), of which KL = moment / (tau sum) - lse(y / tau) + lse(z / tau); the second pass writes the gradient.
 * xent_tokens_k: the raw logits of the K tokens are put aside and made -inf in the row, so that a second pass sums the rest alone; the
 * gradient pass writes the rest, then the K. A token outside [-1, V) counts as unused and turns the row's loss into NaN, which grad_clip
 * takes for a step to skip.
 * Scratch, after xent's: the teacher's logits, or the K put aside, f32 [rows, K rounded up to eight]; divergences f64 [rows]. */
#include "xent.cuh"

namespace CUDA_NS {
namespace {

#define TOKEN_SUMS 3

/* Factors of a row's gradient: the cross-entropy's, the divergence's. */
struct mix { float plain, soft; };

__device__ __forceinline__ mix mix_of(const xent_rows &p, const xent_teach &q)
{
    const float factor = *p.inv_count * p.form.scale;
    mix m;
    m.plain = (1.0f - q.weight) * factor, m.soft = q.weight * q.tau * factor;
    return m;
}

__device__ __forceinline__ float slope(float z, float inv_cap) { return 1.0f - z * inv_cap * (z * inv_cap); }

template <class T> __global__ void __launch_bounds__(1024) xent_whole_k(xent_rows p, xent_teach q)
{
    SMEM(running, part);
    float *row = p.logits + (int64_t)blockIdx.x * p.ld;
    const float *other = q.room + (int64_t)blockIdx.x * q.ld;
    T *to = (T *)(void *)row;
    const int64_t n = blockIdx.x, step = (int64_t)blockDim.x * 8;
    const int32_t target = p.targets[n];
    if (target < 0 || target >= p.V) {
        row_masked(p, n, to);
        if (threadIdx.x == 0)
            q.kl[n] = 0;
        return;
    }
    const bool warm = q.tau != 1.0f;
    running plain = running_none(), soft = running_none(), hard = running_none();
    float moment = 0;
    for (int64_t v = (int64_t)threadIdx.x * 8; v < p.V; v += step) {
        float z[8], y[8], most = hard.max;
        seen8(z, p.form, p.V, row, v);
        seen8(y, q.form, p.V, other, v);
        running_add8(plain, z, 1.0f);
        if (warm)
            running_add8(soft, z, q.inv_tau);
#pragma unroll
        for (int i = 0; i < 8; i++)
            most = y[i] > most ? y[i] : most;
        if (most > hard.max) {
            const float down = expf((hard.max - most) * q.inv_tau);
            hard.sum *= down, moment *= down;
            hard.max = most;
        }
        const float shift = most == -INFINITY ? 0.0f : most;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float e = expf((y[i] - shift) * q.inv_tau);
            hard.sum += e;
            moment += v + i < p.V ? e * (y[i] - z[i]) : 0.0f;
        }
    }
    const float mine = hard.max;
    plain = block_merge(plain, part, 1.0f);
    soft = warm ? block_merge(soft, part + 32, q.inv_tau) : plain;
    hard = block_merge(hard, part + 64, q.inv_tau);
    moment = block_sum(mine == -INFINITY ? moment : moment * expf((mine - hard.max) * q.inv_tau), (float *)(void *)(part + 96));
    if (threadIdx.x == 0) {
        row_loss(p, n, plain, seen(p.form, row[target], target));
        q.kl[n] = (double)moment * (double)q.inv_tau / (double)hard.sum +
                  (((double)soft.max * (double)q.inv_tau + log((double)soft.sum)) - ((double)hard.max * (double)q.inv_tau + log((double)hard.sum)));
    }
    if (!p.gradient)
        return;
    const mix m = mix_of(p, q);
    const float inv_cap = p.form.softcap > 0 ? 1.0f / p.form.softcap : 0.0f;
    float of_plain = m.plain / plain.sum, of_soft = m.soft / soft.sum;
    const float of_hard = m.soft / hard.sum;
    if (!warm)
        of_soft += of_plain, of_plain = 0;
    /* As in xent_rows_k: a narrower T is written over logits that all have read. */
    for (int64_t v0 = 0; v0 < p.ld; v0 += step) {
        const int64_t v = v0 + (int64_t)threadIdx.x * 8;
        float z[8], y[8];
        if (v < p.ld) {
            seen8(z, p.form, p.V, row, v);
            seen8(y, q.form, p.V, other, v);
        }
        __syncthreads();
        if (v >= p.ld)
            continue;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float d = of_soft * expf((z[i] - soft.max) * q.inv_tau) - of_hard * expf((y[i] - hard.max) * q.inv_tau);
            if (warm)
                d += of_plain * expf(z[i] - plain.max);
            if (v + i == target)
                d -= m.plain;
            if (p.form.softcap > 0)
                d *= slope(z[i], inv_cap);
            z[i] = v + i < p.V ? d : 0.0f;
        }
        store_f32x8(to + v, z);
    }
}

/* The student's logits without those put aside, which are -inf. */
__device__ __forceinline__ void rest8(float (&z)[8], const xent_rows &p, const float *row, int64_t v)
{
    xent_form raw;
    raw.bias = NULL, raw.scale = 1, raw.softcap = 0;
    seen8(z, raw, p.V, row, v);
    if (p.form.bias != NULL || p.form.softcap > 0)
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (v + i < p.V && z[i] != -INFINITY)
                z[i] = seen(p.form, z[i], v + i);
}

template <class T> __global__ void __launch_bounds__(1024) xent_tokens_k(xent_rows p, xent_teach q)
{
    SMEM(running, part);
    double *sums = (double *)(void *)(part + 64), *result = sums + blockDim.x;
    float *row = p.logits + (int64_t)blockIdx.x * p.ld, *aside = q.room + (int64_t)blockIdx.x * q.ld;
    T *to = (T *)(void *)row;
    const int64_t n = blockIdx.x, step = (int64_t)blockDim.x * 8;
    const int32_t *ids = q.ids + n * q.ld_ids, target = p.targets[n];
    const float *logp = q.logp + n * q.ld_logp;
    if (target < 0 || target >= p.V) {
        row_masked(p, n, to);
        if (threadIdx.x == 0)
            q.kl[n] = 0;
        return;
    }
    running plain = running_none(), rest = running_none();
    for (int64_t v = (int64_t)threadIdx.x * 8; v < p.V; v += step) {
        float z[8];
        seen8(z, p.form, p.V, row, v);
        running_add8(plain, z, 1.0f);
    }
    plain = block_merge(plain, part, 1.0f);
    if (threadIdx.x == 0)
        row_loss(p, n, plain, seen(p.form, row[target], target));
    for (int64_t k = threadIdx.x; k < q.K; k += blockDim.x)
        aside[k] = ids[k] >= 0 && ids[k] < p.V ? row[ids[k]] : 0.0f;
    __syncthreads();
    int bad = 0;
    for (int64_t k = threadIdx.x; k < q.K; k += blockDim.x) {
        if (ids[k] >= 0 && ids[k] < p.V)
            row[ids[k]] = -INFINITY;
        bad |= ids[k] < -1 || ids[k] >= p.V;
    }
    bad = __syncthreads_or(bad);
    for (int64_t v = (int64_t)threadIdx.x * 8; v < p.V; v += step) {
        float z[8];
        rest8(z, p, row, v);
        running_add8(rest, z, q.inv_tau);
    }
    rest = block_merge(rest, part + 32, q.inv_tau);

    /* Of the K: sum of exp((z - max) / tau), of p but the first, of p (ln p - (z - max) / tau). */
    double s[TOKEN_SUMS] = {0, 0, 0};
#pragma unroll 1
    for (int64_t k = threadIdx.x; k < q.K; k += blockDim.x)
        if (ids[k] >= 0 && ids[k] < p.V) {
            const double above = ((double)seen(p.form, aside[k], ids[k]) - (double)plain.max) * (double)q.inv_tau, ln = (double)logp[k], prob = exp(ln);
            s[0] += exp(above);
            s[1] += k > 0 ? prob : 0;
            s[2] += prob * (ln - above);
        }
    for (int i = 0; i < TOKEN_SUMS; i++) {
        s[i] = block_sum_f64(s[i], sums);
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        const bool empty = rest.sum == 0; /* else its largest alone makes it 1 */
        const double rest_ln = empty ? -HUGE_VAL : ((double)rest.max - (double)plain.max) * (double)q.inv_tau + log((double)rest.sum);
        const double lse = log(s[0] + exp(rest_ln)), first = ids[0] >= 0 && ids[0] < p.V ? expm1((double)logp[0]) : -1; /* p[0] - 1 */
        double p_rest = -first - s[1];
        if (empty || p_rest < 0) /* rounding of logp */
            p_rest = 0;
        q.kl[n] = s[2] + (s[1] + (first + 1)) * lse + (p_rest == 0 ? 0 : p_rest * (log(p_rest) - (rest_ln - lse)));
        if (bad)
            p.loss[n] = q.kl[n] = (double)__uint_as_float(0x7fc00000u);
        result[0] = lse;
        result[1] = empty ? 0 : (exp(rest_ln - lse) - p_rest) / (double)rest.sum;
    }
    __syncthreads();
    if (!p.gradient) {
        for (int64_t k = threadIdx.x; k < q.K; k += blockDim.x)
            if (ids[k] >= 0 && ids[k] < p.V)
                row[ids[k]] = aside[k];
        return;
    }
    const mix m = mix_of(p, q);
    const float of_plain = m.plain / plain.sum, of_rest = (float)((double)m.soft * result[1]), inv_cap = p.form.softcap > 0 ? 1.0f / p.form.softcap : 0.0f;
    const float shift = rest.sum == 0 ? 0.0f : rest.max;
    for (int64_t v0 = 0; v0 < p.ld; v0 += step) {
        const int64_t v = v0 + (int64_t)threadIdx.x * 8;
        float z[8];
        if (v < p.ld)
            rest8(z, p, row, v);
        __syncthreads();
        if (v >= p.ld)
            continue;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float d = of_plain * expf(z[i] - plain.max) + of_rest * expf((z[i] - shift) * q.inv_tau);
            if (v + i == target)
                d -= m.plain;
            if (p.form.softcap > 0)
                d *= slope(z[i], inv_cap);
            z[i] = v + i < p.V ? d : 0.0f;
        }
        store_f32x8(to + v, z);
    }
    __syncthreads();
    const double lse = result[0];
#pragma unroll 1
    for (int64_t k = threadIdx.x; k < q.K; k += blockDim.x)
        if (ids[k] >= 0 && ids[k] < p.V) {
            const float z = seen(p.form, aside[k], ids[k]);
            const double above = (double)z - (double)plain.max, apart = exp(above * (double)q.inv_tau - lse) - exp((double)logp[k]);
            float d = of_plain * expf((float)above) + (float)((double)m.soft * apart) - (ids[k] == target ? m.plain : 0.0f);
            if (p.form.softcap > 0)
                d *= slope(z, inv_cap);
            to[ids[k]] = num_of<T>(d);
        }
}

template <class T> enum code teach_run(struct device *dev, const xent_rows &p, const xent_teach &q, int64_t rows)
{
    const int threads = xent_threads(p.V);
    if (q.ids == NULL)
        return LAUNCH(dev, (xent_whole_k<T>), (unsigned)rows, threads, 112 * sizeof(running), p, q);
    return LAUNCH(dev, (xent_tokens_k<T>), (unsigned)rows, threads, 64 * sizeof(running) + ((size_t)threads + 2) * sizeof(double), p, q);
}

} // namespace

enum code xent_teacher_check(const struct xent_teacher *t, int64_t N, int64_t V)
{
    const char *op = "xent";
    if (!(t->temperature > 0 && t->temperature < INFINITY))
        return fail(ERR_UNSUPPORTED, "%s: a teacher's temperature of %g; it must be above 0", op, (double)t->temperature);
    if (!(t->weight >= 0 && t->weight <= 1))
        return fail(ERR_UNSUPPORTED, "%s: a teacher's weight of %g; it must be from 0 to 1", op, (double)t->weight);
    if ((t->head.p != NULL) == (t->ids.p != NULL))
        return fail(ERR_UNSUPPORTED, "%s: the teacher has %s a head and tokens", op, t->head.p != NULL ? "both" : "neither");
    if (t->head.p != NULL) {
        TRY(cuda_check_type(op, t->hidden));
        TRY(cuda_check(op, "the teacher's hidden", t->hidden, t->hidden.dtype, 2, N, -1, 0));
        TRY(cuda_check(op, "the teacher's head", t->head, t->hidden.dtype, 2, V, t->hidden.n[1], 0));
        return cuda_check(op, "the teacher's bias", t->bias, DT_F32, 1, V, -1, 1);
    }
    TRY(cuda_check(op, "the teacher's ids", t->ids, DT_I32, 2, N, -1, 0));
    TRY(cuda_check(op, "the teacher's logp", t->logp, DT_F32, 2, N, t->ids.n[1], 0));
    if (t->ids.n[1] < 1 || t->ids.n[1] > V)
        return fail(ERR_UNSUPPORTED, "%s: %lld tokens of a teacher, a vocabulary of %lld", op, (long long)t->ids.n[1], (long long)V);
    return OK;
}

size_t xent_teacher_scratch(int64_t rows, int64_t K) { return xent_round(rows * xent_padded(K) * 4) + xent_round(rows * 8); }

xent_teach xent_teach_of(const struct xent_teacher *t, int64_t rows, int64_t V, void *scratch)
{
    xent_teach q = {};
    q.K = t->head.p != NULL ? V : t->ids.n[1], q.ld = xent_padded(q.K);
    q.room = (float *)scratch, q.kl = (double *)(void *)((char *)scratch + xent_round(rows * q.ld * 4));
    q.form.bias = ptr<const float>(t->bias), q.form.scale = t->logit_scale, q.form.softcap = t->logit_softcap;
    q.weight = t->weight, q.tau = t->temperature, q.inv_tau = 1.0f / t->temperature;
    if (t->head.p == NULL)
        q.ids = ptr<const int32_t>(t->ids), q.logp = ptr<const float>(t->logp), q.ld_ids = t->ids.s[0], q.ld_logp = t->logp.s[0];
    return q;
}

enum code xent_teach_run(struct device *dev, xent_teach q, const struct xent_teacher *t, const xent_rows &p, enum dtype type, int64_t n0, int64_t rows)
{
    xent_rows mixed = p;
    mixed.gradient = p.gradient && t->weight > 0;
    if (q.ids == NULL) {
        struct view logits = view_2d(q.room, DT_F32, rows, p.V);
        logits.s[0] = q.ld;
        TRY(cuda_matmul(dev, logits, view_slice(t->hidden, 0, n0, rows), t->head, view_none(), 0, 1, t->logit_scale, 0));
    } else {
        q.ids += n0 * q.ld_ids, q.logp += n0 * q.ld_logp;
    }
    return WITH_TYPE(type, (teach_run<T>(dev, mixed, q, rows)));
}

} // namespace CUDA_NS
