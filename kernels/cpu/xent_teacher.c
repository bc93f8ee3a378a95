/* The teacher of xent. p and q are the softmax of the teacher's logits y and the student's z, over tau; the loss of a row is
 * (1 - w) CE + w tau^2 KL(p || q), its gradient by z  (1 - w) (softmax(z) - [target]) + w tau (q - p), times the cap's slope.
 *   A teacher with a head: KL = sum p (a - b) - ln sum e^a + ln sum e^b, a = (y - max y) / tau and b = (z - max z) / tau, from one pass
 *   over both rows.
 *   Tokens: K classes and the rest. The rest of q is a log-sum-exp of its own over the other tokens, never 1 - the K, so it keeps its
 *   digits however small it is; that of p is 1 - p[0], by expm1, minus the others. d KL / d(z_v / tau) of a token v of the rest
 *   is (q_rest - p_rest) softmax of the rest (z / tau)_v. */
#include "xent.h"

#include <math.h>

size_t xent_teacher_scratch(int64_t rows, int64_t V, int64_t K)
{
    return K > 0 ? xent_round(rows * K * 4) + xent_round(V * 4) + xent_round(rows * 8) : 0;
}

enum code xent_teacher_check(const struct xent_teacher *t, int64_t N, int64_t V)
{
    const char *op = "xent";
    if (!(t->temperature > 0 && isfinite(t->temperature)))
        return fail(ERR_UNSUPPORTED, "%s: a teacher's temperature of %g; it must be above 0", op, (double)t->temperature);
    if (!(t->weight >= 0 && t->weight <= 1))
        return fail(ERR_UNSUPPORTED, "%s: a teacher's weight of %g; it must be from 0 to 1", op, (double)t->weight);
    if ((t->head.p != NULL) == (t->ids.p != NULL))
        return fail(ERR_UNSUPPORTED, "%s: the teacher has %s a head and tokens", op, t->head.p != NULL ? "both" : "neither");
    if (t->head.p != NULL) {
        TRY(cpu_check(op, "the teacher's hidden", t->hidden, DT_F32, 2, N, -1, 0));
        TRY(cpu_check(op, "the teacher's head", t->head, t->head.dtype == DT_BF16 ? DT_BF16 : DT_F32, 2, V, t->hidden.n[1], 0));
        return cpu_check(op, "the teacher's bias", t->bias, DT_F32, 1, V, -1, 1);
    }
    TRY(cpu_check(op, "the teacher's ids", t->ids, DT_I32, 2, N, -1, 0));
    TRY(cpu_check(op, "the teacher's logp", t->logp, DT_F32, 2, N, t->ids.n[1], 0));
    if (t->ids.n[1] < 1 || t->ids.n[1] > V)
        return fail(ERR_UNSUPPORTED, "%s: %lld tokens of a teacher, a vocabulary of %lld", op, (long long)t->ids.n[1], (long long)V);
    for (int64_t n = 0; n < N; n++)
        for (int64_t k = 0; k < t->ids.n[1]; k++) {
            const int32_t id = ((const int32_t *)t->ids.p)[n * t->ids.s[0] + k];
            if (id < -1 || id >= V)
                return fail(ERR_INTERNAL, "%s: the teacher's token %d of row %lld is outside the vocabulary of %lld", op, (int)id, (long long)n, (long long)V);
        }
    return OK;
}

void xent_teach_init(const struct device *dev, struct xent_teach *teach, const struct xent_teacher *t, int64_t rows, int64_t V, void *scratch)
{
    const int64_t K = t->head.p != NULL ? V : t->ids.n[1];
    float *bias = (float *)(void *)((char *)scratch + xent_round(rows * K * 4));
    teach->t = t, teach->V = V, teach->K = K, teach->room = scratch;
    teach->kl = (double *)(void *)((char *)bias + xent_round(V * 4));
    teach->bias = t->head.p != NULL && t->bias.p != NULL ? bias : NULL;
    teach->ids = NULL, teach->logp = NULL, teach->ld_ids = teach->ld_logp = 0;
    if (teach->bias != NULL)
        dev->loops->axpby(bias, t->bias.p, t->logit_scale, 0, V);
}

enum code xent_teach_chunk(struct device *dev, struct xent_teach *teach, int64_t n0, int64_t rows)
{
    const struct xent_teacher *t = teach->t;
    if (t->head.p == NULL) {
        teach->ld_ids = t->ids.s[0], teach->ld_logp = t->logp.s[0];
        teach->ids = (const int32_t *)t->ids.p + n0 * teach->ld_ids, teach->logp = view_f32(t->logp) + n0 * teach->ld_logp;
        return OK;
    }
    return cpu_matmul(dev, view_2d(teach->room, DT_F32, rows, teach->V), view_slice(t->hidden, 0, n0, rows), t->head, view_none(), 0, 1, t->logit_scale, 0);
}

static float slope(float z, float softcap) { return softcap > 0 ? 1.0f - z / softcap * (z / softcap) : 1.0f; }

/* y: the teacher's logits of this row. */
static double row_whole(const struct device *dev, const struct xent_teach *teach, float *y, const struct xent_row *row, float max, int keep, struct xent_mix *mix)
{
    const float inv_tau = 1.0f / teach->t->temperature;
    const struct xent_row seen = {.l = y, .bias = teach->bias, .V = row->V, .softcap = teach->t->logit_softcap};
    const struct xent_pair pair = {.z = row->l, .y = y, .V = row->V, .zmax = max, .ymax = dev->loops->xent_see(&seen), .inv_tau = inv_tau, .keep_exp = keep};
    double sums[3];
    dev->loops->xent_pair_sums(&pair, sums);
    mix->y = y, mix->soft_max = max;
    mix->hard = (float)((double)mix->soft / sums[1]);
    mix->soft = (float)((double)mix->soft / sums[0]);
    return sums[2] / sums[1] + (log(sums[0]) - log(sums[1]));
}

/* The student's and the teacher's classes. */
struct classes { double lse, p_rest, q_rest, rest_sum; };

static double row_tokens(const struct device *dev, const struct xent_teach *teach, float *z, const int32_t *ids, const float *logp,
                         const struct xent_row *row, float max, struct classes *c, float *rest_max)
{
    const double tau = (double)teach->t->temperature;
    const int64_t K = teach->K, V = row->V;
    int64_t left = V, first = -1;
    for (int64_t k = 0; k < K; k++)
        z[k] = ids[k] >= 0 ? row->l[ids[k]] : 0.0f;
    for (int64_t k = 0; k < K; k++)
        if (ids[k] >= 0) {
            row->l[ids[k]] = -INFINITY;
            first = first < 0 ? k : first;
            left--;
        }
    const struct xent_row rest = {.l = row->l, .bias = NULL, .V = V, .softcap = 0};
    *rest_max = max;
    c->rest_sum = 0;
    if (left > 0) {
        *rest_max = dev->loops->xent_see(&rest);
        c->rest_sum = dev->loops->xent_sum(row->l, V, *rest_max, 1.0f / teach->t->temperature);
    }
    const double rest_ln = left > 0 ? ((double)*rest_max - (double)max) / tau + log(c->rest_sum) : -HUGE_VAL;
    double total = exp(rest_ln), kl = 0;
    c->p_rest = first < 0 ? 1 : -expm1((double)logp[first]);
    for (int64_t k = 0; k < K; k++)
        if (ids[k] >= 0) {
            total += exp(((double)z[k] - (double)max) / tau);
            c->p_rest -= k == first ? 0 : exp((double)logp[k]);
        }
    c->lse = log(total);
    if (left <= 0 || c->p_rest < 0) /* rounding of logp */
        c->p_rest = 0;
    c->q_rest = left > 0 ? exp(rest_ln - c->lse) : 0;
    for (int64_t k = 0; k < K; k++)
        if (ids[k] >= 0) {
            row->l[ids[k]] = z[k];
            kl += exp((double)logp[k]) * ((double)logp[k] - (((double)z[k] - (double)max) / tau - c->lse));
        }
    return c->p_rest == 0 ? kl : kl + c->p_rest * (log(c->p_rest) - (rest_ln - c->lse));
}

void xent_teach_row(const struct device *dev, const struct xent_teach *teach, int64_t n, const struct xent_row *row, float max, double sum,
                    int32_t target, int gradient, float factor)
{
    const struct xent_teacher *t = teach->t;
    const int mixed = gradient && t->weight > 0;
    const double plain = (1 - (double)t->weight) * (double)factor, soft = (double)t->weight * (double)t->temperature * (double)factor;
    const float z_target = row->l[target];
    float *room = teach->room + n * teach->K;
    struct xent_mix mix = {.l = row->l, .V = row->V, .max = max, .inv_tau = 1.0f / t->temperature, .inv_cap = row->softcap > 0 ? 1.0f / row->softcap : 0.0f,
                           .plain = (float)(plain / sum), .soft = (float)soft};
    if (teach->ids == NULL) {
        teach->kl[n] = row_whole(dev, teach, room, row, max, mixed, &mix);
        if (mixed)
            dev->loops->xent_mix_grad(&mix);
    } else {
        const int32_t *ids = teach->ids + n * teach->ld_ids;
        const float *logp = teach->logp + n * teach->ld_logp;
        struct classes c;
        teach->kl[n] = row_tokens(dev, teach, room, ids, logp, row, max, &c, &mix.soft_max);
        if (mixed) {
            mix.soft = c.rest_sum == 0 ? 0.0f : (float)(soft * (c.q_rest - c.p_rest) / c.rest_sum);
            dev->loops->xent_mix_grad(&mix);
            for (int64_t k = 0; k < teach->K; k++)
                if (ids[k] >= 0) {
                    const double above = (double)room[k] - (double)max, q = exp(above / (double)t->temperature - c.lse);
                    row->l[ids[k]] = (float)(plain * exp(above) / sum + soft * (q - exp((double)logp[k]))) * slope(room[k], row->softcap);
                }
        }
    }
    if (mixed)
        row->l[target] -= (float)plain * slope(z_target, row->softcap);
    else if (gradient)
        dev->loops->xent_grad(row, 0, max, sum, target, factor);
}
