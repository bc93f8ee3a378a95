/* Merging the key (or value) heads of each group into one (Ainslie et al. 2023, section 2.1): with G0 source heads, P pooled ones
 * and m = G0/P, group g is made from heads g*m .. g*m+m-1 (consecutive, the order every runtime assumes):
 *
 *   mean    row (g, d) = (1/m) * sum over j < m of s * row (g*m + j, d)     summed in double; s: row_scale, usually 1
 *   first   row (g, d) = s * row (g*m, d)
 *   random  row (g, d) ~ Normal(0, init_sd), biases 0, norms 1 (the paper's ablation, section 3.3)
 *
 * A result with G > P heads holds each pooled head G/P times in a row, which changes nothing that attention computes.
 * Layout: weights are [G0*D, C], head-major rows; biases [G0*D] are rows of one element. In double the mean of m equal
 * values is that value, so merging equal heads loses nothing. Rows are streamed; memory is the caller's buffer. */
#include "convert.h"

#include <string.h>

struct block { /* carved from job->buffer for `rows` output rows of `width` elements */
    float *member; /* [rows, width], one head's rows */
    double *sum;   /* [rows, width] */
    float *result; /* [rows, width]: what is written, as f32 (f64 sources are out of scope: weights are f32 or narrower) */
    int64_t rows, width;
};

static struct block block_carve(const struct pool_job *job)
{
    struct block b;
    b.width = job->out->nd == 2 ? job->out->n[1] : 1;
    size_t per_row = (size_t)b.width * (2 * sizeof(float) + sizeof(double));
    b.rows = (int64_t)(job->buffer_bytes / per_row);
    CHECK(b.rows > 0);
    if (b.rows > job->D)
        b.rows = job->D;
    size_t n = (size_t)(b.rows * b.width);
    b.sum = job->buffer;
    b.member = (float *)(b.sum + n);
    b.result = b.member + n;
    return b;
}

static enum code member_read(const struct pool_job *job, const struct block *b, int64_t head, int64_t row, int64_t rows)
{
    int64_t first = head * job->D + row;
    TRY(ckpt_read(job->source, job->in, first, rows, b->member, DT_F32));
    size_t bad = count_nonfinite(b->member, DT_F32, (size_t)(rows * b->width));
    if (bad)
        return fail(ERR_INPUT, "%s: tensor %s, head %lld has %zu non-finite values; merging would spread them. Repair the source first",
                    ckpt_path(job->source), *job->in->source ? job->in->source : job->in->name, (long long)head, bad);
    for (int64_t r = 0; job->row_scale && r < rows; r++)
        for (int64_t i = 0; i < b->width; i++)
            b->member[r * b->width + i] *= job->row_scale[first + r];
    return OK;
}

static enum code merge_rows(const struct pool_job *job, const struct block *b, int64_t g, int64_t m, int64_t row, int64_t rows)
{
    int64_t n = rows * b->width;
    if (job->method == MERGE_RANDOM) {
        for (int64_t i = 0; job->out->nd == 1 && i < n; i++)
            b->result[i] = job->out->pool == POOL_QKNORM ? 1 : 0;
        if (job->out->nd == 2)
            random_normal_f32(b->result, n, (g * job->D + row) * b->width, (float)job->init_sd, job->seed, random_stream_of(job->out->name), 0);
        return OK;
    }
    memset(b->sum, 0, (size_t)n * sizeof *b->sum);
    int64_t used = job->method == MERGE_MEAN ? m : 1;
    for (int64_t j = 0; j < used; j++) {
        TRY(member_read(job, b, g * m + j, row, rows));
        for (int64_t i = 0; i < n; i++)
            b->sum[i] += (double)b->member[i];
    }
    for (int64_t i = 0; i < n; i++)
        b->result[i] = (float)(b->sum[i] / (double)used);
    return OK;
}

/* Second pass over the members: the error is against what was kept, which the first pass does not know yet. */
static enum code add_error(const struct pool_job *job, const struct block *b, struct pool_error *e, int64_t g, int64_t m, int64_t row,
                           int64_t rows)
{
    int64_t n = rows * b->width;
    for (int64_t i = 0; e->kept && i < n; i++)
        e->kept[g] += (double)b->result[i] * (double)b->result[i];
    for (int64_t j = 0; j < m; j++) {
        TRY(member_read(job, b, g * m + j, row, rows));
        double distance = 0, size = 0;
        for (int64_t i = 0; i < n; i++) {
            double x = (double)b->member[i], d = x - (double)b->result[i];
            distance += d * d;
            size += x * x;
        }
        e->distance[g] += distance;
        e->size[g] += size;
    }
    return OK;
}

enum code pool_tensor(const struct pool_job *job, struct pool_error *error)
{
    int64_t G0 = job->in->n[0] / job->D, G = job->out->n[0] / job->D, P = job->pooled;
    CHECK(P > 0 && G0 % P == 0 && G % P == 0);
    int64_t m = G0 / P, repeat = G / P;
    struct block b = block_carve(job);
    for (int64_t g = 0; g < P; g++) {
        for (int64_t row = 0; row < job->D; row += b.rows) {
            int64_t rows = job->D - row < b.rows ? job->D - row : b.rows;
            TRY(merge_rows(job, &b, g, m, row, rows));
            for (int64_t k = 0; job->writer && k < repeat; k++)
                TRY(ckpt_write(job->writer, job->out, (g * repeat + k) * job->D + row, rows, b.result, DT_F32));
            if (error)
                TRY(add_error(job, &b, error, g, m, row, rows));
        }
    }
    return OK;
}

enum code pool_repeat(const struct pool_job *job, int64_t *bad)
{
    int64_t G0 = job->in->n[0] / job->D, repeat = job->out->n[0] / job->in->n[0];
    int64_t width = job->in->nd == 2 ? job->in->n[1] : 1, per_row = width * (int64_t)dtype_bytes(job->in->dtype), step = (int64_t)job->buffer_bytes / per_row;
    CHECK(step > 0 && job->out->n[0] == repeat * job->in->n[0]);
    step = step < job->D ? step : job->D;
    for (int64_t g = 0; g < G0; g++)
        for (int64_t row = 0; row < job->D; row += step) {
            int64_t rows = job->D - row < step ? job->D - row : step;
            TRY(ckpt_read(job->source, job->in, g * job->D + row, rows, job->buffer, DT_NONE));
            *bad += (int64_t)count_nonfinite(job->buffer, job->in->dtype, (size_t)(rows * width));
            for (int64_t k = 0; k < repeat; k++)
                TRY(ckpt_write(job->writer, job->out, (g * repeat + k) * job->D + row, rows, job->buffer, job->in->dtype));
        }
    return OK;
}
