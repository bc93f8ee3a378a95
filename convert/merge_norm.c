/* Restoring the size that merging takes away: a shared head rebuilds less than all of its heads, so keys come out short and the
 * softmax flat. By measurement, from the same moments:
 *   align   one gain for K and one for V: E|x'|^2 becomes the mean of E|x_j|^2.
 *   svd, K  a gain for each source head (in E_j): for each rotated plane, E|e_j z|^2 becomes E|k_j|^2; for the dims that are not rotated
 *           E (M_j-weighted) of E_j x' becomes that of x_j.
 *   svd, V  one gain: the M-weighted size of what is rebuilt, all heads together.
 * Zero-step loss of a rotary model of 8 query and 4 K/V heads (babyllama, tinystories, 10k tokens, nats, original 0.747), merged to 2 / 1:
 *   weight-only   svd without gains 1.881 / 2.571, with 1.654 / 2.400; one gain for K and none for V 1.822 / 2.499
 *   calibrated    svd without gains 1.385 / 2.072, with 1.363 / 2.016; K's gains alone 1.383 / 2.068 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "linalg.h"
#include "merge_parts.h"

struct sizes { double full, kept; }; /* of x_j, and of what is rebuilt */

/* tr(M X) over the dims from `from` on, M [D, D], X with leading dimension ld. */
static double weighted(const double *M, const double *X, int64_t ld, int64_t from, int64_t D)
{
    double sum = 0;
    for (int64_t i = from; i < D; i++)
        for (int64_t k = from; k < D; k++)
            sum += M[i * D + k] * X[k * ld + i];
    return sum;
}

static double gain_of(struct sizes s) { return s.full > 0 && s.kept > 1e-12 * s.full ? sqrt(s.full / s.kept) : 1; }

/* Dims [from, to) of the rows of E_j. */
static void scale_rows(const struct side *s, int64_t j, int64_t from, int64_t to, double gain)
{
    for (int64_t i = (j * s->D + from) * s->D; i < (j * s->D + to) * s->D; i++)
        s->E[i] *= gain;
}

static void restore_keys(const struct side *s, int64_t j, const double *kept)
{
    int64_t D = s->D, ld = s->m * D, h2 = s->planes;
    const double *full = s->S + j * D * ld + j * D;
    for (int64_t p = 0; p < h2; p++) {
        int64_t b = p + h2;
        double gain = gain_of((struct sizes){full[p * ld + p] + full[b * ld + b], kept[p * D + p] + kept[b * D + b]});
        scale_rows(s, j, p, p + 1, gain);
        scale_rows(s, j, b, b + 1, gain);
    }
    const double *M = s->M + j * D * D;
    if (2 * h2 < D)
        scale_rows(s, j, 2 * h2, D, gain_of((struct sizes){weighted(M, full, ld, 2 * h2, D), weighted(M, kept, D, 2 * h2, D)}));
}

static double trace(const double *X, int64_t ld, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += X[i * ld + i];
    return sum;
}

enum code side_restore(struct side *s, enum side_kind kind, enum merge_method method)
{
    int64_t D = s->D, n = s->m * D;
    double *AS = malloc((size_t)(n * D + 3 * D * D) * sizeof *AS);
    if (!AS)
        return fail(ERR_MEMORY, "out of memory for a group of %lld heads", (long long)s->m);
    double *shared = AS + n * D, *t = shared + D * D, *kept = t + D * D;
    struct sizes all = {0, 0};
    mul(AS, n, s->A, n, PLAIN, s->S, n, PLAIN, D, n, n, 1, 0);
    mul(shared, D, AS, n, PLAIN, s->A, n, TRANSPOSED, D, D, n, 1, 0);
    if (method == MERGE_ALIGN)
        all = (struct sizes){trace(s->S, n, n) / (double)s->m, trace(shared, D, D)};
    for (int64_t j = 0; method == MERGE_SVD && j < s->m; j++) {
        const double *E = s->E + j * D * D, *M = s->M + j * D * D;
        mul(t, D, E, D, PLAIN, shared, D, PLAIN, D, D, D, 1, 0);
        mul(kept, D, t, D, PLAIN, E, D, TRANSPOSED, D, D, D, 1, 0);
        if (kind == SIDE_K)
            restore_keys(s, j, kept);
        all.full += kind == SIDE_V ? weighted(M, s->S + j * D * n + j * D, n, 0, D) : 0;
        all.kept += kind == SIDE_V ? weighted(M, kept, D, 0, D) : 0;
    }
    double gain = gain_of(all);
    for (int64_t i = 0; i < n * D; i++)
        s->A[i] *= gain;
    free(AS);
    return OK;
}
