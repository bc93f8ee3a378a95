/* Flat ranges: AdamW, the gradient norm's partial sums, y += a x, fills. Cut at multiples of 16 floats (one line). */
#include "cpu.h"

#include <math.h>
#include <omp.h>

enum code cpu_sumsq(struct device *dev, double *partial, const float *x, int64_t n)
{
    const int64_t blocks = (n + SUMSQ_BLOCK - 1) / SUMSQ_BLOCK;
#pragma omp parallel for num_threads(cpu_team(dev, n * 4)) schedule(static)
    for (int64_t i = 0; i < blocks; i++) {
        int64_t left = n - i * SUMSQ_BLOCK;
        partial[i] = dev->loops->sumsq(x + i * SUMSQ_BLOCK, left < SUMSQ_BLOCK ? left : SUMSQ_BLOCK);
    }
    return OK;
}

enum code cpu_grad_clip(struct device *dev, double *norm, float *clip, int32_t *skip, const double *partial, int64_t n_partials,
                        const double *loss_sum, double max_norm)
{
    (void)dev;
    double sum = 0;
    for (int64_t i = 0; i < n_partials; i++)
        sum += partial[i];
    *norm = sqrt(sum);
    *skip = !isfinite(*norm) || !isfinite(*loss_sum);
    *clip = *skip == 0 && max_norm > 0 && *norm > max_norm ? (float)(max_norm / *norm) : 1.0f;
    return OK;
}

enum code cpu_adamw(struct device *dev, float *p, float *g, float *m, float *v, int64_t n, const struct adamw_args *args)
{
    if (args->step < 1)
        return fail(ERR_INTERNAL, "adamw: step %lld, must be at least 1", (long long)args->step);
    if (p == NULL || args->low != NULL)
        return fail(ERR_UNSUPPORTED, "adamw: the CPU backend trains f32 parameters only");
    if (args->skip != NULL && *args->skip != 0)
        return args->zero_grad ? cpu_fill(dev, g, 0, n) : OK;
    const double bc1 = 1 - pow((double)args->beta1, (double)args->step), bc2 = 1 - pow((double)args->beta2, (double)args->step);
    const struct adamw_job whole = {.p = p, .g = g, .m = m, .v = v, .clip = args->clip != NULL ? *args->clip : 1.0f, .beta1 = args->beta1,
                                    .beta2 = args->beta2, .step_size = (float)((double)args->lr / bc1), .inv_bc2 = (float)(1 / bc2),
                                    .eps = args->eps, .decay = (float)(1 - (double)args->lr * (double)args->weight_decay),
                                    .zero_grad = args->zero_grad};
#pragma omp parallel num_threads(cpu_team(dev, n * 16))
    {
        struct range r = cpu_range(n, 16, omp_get_num_threads(), omp_get_thread_num());
        struct adamw_job job = whole;
        job.p += r.lo;
        job.g += r.lo;
        job.m += r.lo;
        job.v += r.lo;
        dev->loops->adamw(&job, r.hi - r.lo);
    }
    return OK;
}

enum code cpu_axpy(struct device *dev, float *y, const float *x, float a, int64_t n)
{
#pragma omp parallel num_threads(cpu_team(dev, n * 8))
    {
        struct range r = cpu_range(n, 16, omp_get_num_threads(), omp_get_thread_num());
        dev->loops->axpby(y + r.lo, x + r.lo, a, 1, r.hi - r.lo);
    }
    return OK;
}

enum code cpu_fill(struct device *dev, float *y, float a, int64_t n)
{
#pragma omp parallel num_threads(cpu_team(dev, n * 4))
    {
        struct range r = cpu_range(n, 16, omp_get_num_threads(), omp_get_thread_num());
        dev->loops->fill(y + r.lo, a, r.hi - r.lo);
    }
    return OK;
}

enum code cpu_cast(struct device *dev, void *y, enum dtype y_type, const void *x, enum dtype x_type, int64_t n)
{
    const int64_t wide = (int64_t)dtype_bytes(y_type), from = (int64_t)dtype_bytes(x_type);
#pragma omp parallel num_threads(cpu_team(dev, n * (wide + from)))
    {
        struct range r = cpu_range(n, 16, omp_get_num_threads(), omp_get_thread_num());
        convert_elements((char *)y + r.lo * wide, y_type, (const char *)x + r.lo * from, x_type, (size_t)(r.hi - r.lo));
    }
    return OK;
}
