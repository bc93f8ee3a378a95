/* Rotary position tables. Pair i of a head turns by the angle p * f_i at position p (Su et al. 2021, RoFormer); the kinds
 * differ in f_i and in a factor on cos and sin, computed here in double:
 *   default   f_i = theta^(-2i/r)
 *   linear    f_i / factor (Chen et al. 2023, position interpolation)
 *   dynamic   theta grows with the sequence length beyond the trained one (NTK-aware scaling)
 *   llama3    long wavelengths are divided by factor, short ones kept, between them a smooth blend
 *   yarn      the same idea with a ramp over i (Peng et al. 2023), and a factor on the attention logits
 *   longrope  one divisor per pair, a short and a long list (Ding et al. 2024)
 * dynamic and longrope depend on the length of the sequence at hand; the table is made once for the longest one the model was
 * opened for. */
#include <math.h>
#include <stdlib.h>

#include "parts.h"

static double trained_positions(const struct arch *a)
{
    return (double)(a->rope.original_max_positions > 0 ? a->rope.original_max_positions : a->max_positions);
}

static double dynamic_theta(const struct arch *a, int64_t length)
{
    const struct arch_rope *r = &a->rope;
    double trained = trained_positions(a), seen = fmax((double)length, trained), dims = (double)r->dims;
    return r->theta * pow(r->factor * seen / trained - (r->factor - 1.0), dims / (dims - 2.0));
}

static double llama3_frequency(const struct arch_rope *r, double trained, double f)
{
    double wavelength = 2.0 * M_PI / f;
    if (wavelength < trained / r->high_freq_factor)
        return f;
    if (wavelength > trained / r->low_freq_factor)
        return f / r->factor;
    double smooth = (trained / wavelength - r->low_freq_factor) / (r->high_freq_factor - r->low_freq_factor);
    return (1.0 - smooth) * f / r->factor + smooth * f;
}

/* The pair index at which a wave makes `turns` turns over the trained length (Peng et al. 2023, section 3.2). */
static double yarn_index(const struct arch_rope *r, double trained, double turns)
{
    return (double)r->dims * log(trained / (turns * 2.0 * M_PI)) / (2.0 * log(r->theta));
}

static double yarn_frequency(const struct arch_rope *r, double trained, int64_t i, double f)
{
    double fast = r->beta_fast > 0.0 ? r->beta_fast : 32.0, slow = r->beta_slow > 0.0 ? r->beta_slow : 1.0;
    double low = fmax(floor(yarn_index(r, trained, fast)), 0.0);
    double high = fmin(ceil(yarn_index(r, trained, slow)), (double)r->dims - 1.0);
    if (low == high)
        high += 0.001;
    double ramp = fmin(fmax(((double)i - low) / (high - low), 0.0), 1.0);
    return f / r->factor * ramp + f * (1.0 - ramp);
}

static double default_attention_factor(const struct arch *a)
{
    const struct arch_rope *r = &a->rope;
    double trained = trained_positions(a);
    if (r->attention_factor > 0.0)
        return r->attention_factor;
    if (r->kind == ROPE_YARN)
        return r->factor > 1.0 ? 0.1 * log(r->factor) + 1.0 : 1.0;
    if (r->kind == ROPE_LONGROPE) {
        double factor = r->original_max_positions > 0 ? (double)a->max_positions / trained : r->factor;
        return factor > 1.0 ? sqrt(1.0 + log(factor) / log(trained)) : 1.0;
    }
    return 1.0;
}

struct rope_frequencies *rope_frequencies(const struct arch *a, int64_t length)
{
    const struct arch_rope *r = &a->rope;
    int64_t half = r->dims / 2;
    struct rope_frequencies *out = malloc(sizeof *out + (size_t)half * sizeof *out->inverse);
    if (!out)
        return NULL;
    double trained = trained_positions(a), theta = r->kind == ROPE_DYNAMIC ? dynamic_theta(a, length) : r->theta;
    const double *divisor = (double)length > trained ? r->long_factor : r->short_factor;
    out->attention_factor = default_attention_factor(a);
    for (int64_t i = 0; i < half; i++) {
        double f = pow(theta, -2.0 * (double)i / (double)r->dims);
        switch (r->kind) {
        case ROPE_DEFAULT: case ROPE_DYNAMIC: break;
        case ROPE_LINEAR: f /= r->factor; break;
        case ROPE_LLAMA3: f = llama3_frequency(r, trained, f); break;
        case ROPE_YARN: f = yarn_frequency(r, trained, i, f); break;
        case ROPE_LONGROPE: f /= divisor ? divisor[i] : 1.0; break;
        }
        out->inverse[i] = f;
    }
    return out;
}

enum code rope_tables_fill(const struct arch *a, int64_t positions, float *cos_table, float *sin_table)
{
    struct rope_frequencies *f = rope_frequencies(a, positions);
    if (!f)
        return fail(ERR_MEMORY, "out of memory for the rotary frequencies");
    int64_t half = a->rope.dims / 2;
    for (int64_t p = 0; p < positions; p++)
        for (int64_t i = 0; i < half; i++) {
            double angle = (double)p * f->inverse[i];
            cos_table[p * half + i] = (float)(cos(angle) * f->attention_factor);
            sin_table[p * half + i] = (float)(sin(angle) * f->attention_factor);
        }
    free(f);
    return OK;
}
