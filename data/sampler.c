/* Which tokens a run sees, and in which order. File f of n tokens holds floor((n - 1) / T) windows: T inputs and the token after
 * them, at stride T. Windows of all files are numbered through; sample s is window P(s mod windows) of epoch
 * s / windows, P a permutation chosen by (seed, epoch) and computed, not stored (base/random.h). So a run's place in the data is its
 * sample number, whatever the batch size or the number of ranks.
 *
 * Packing: ids[t] == eos ends a document. Its target, the first token of the next document, is masked; from t + 1 on
 * positions start at 0 again and segments are one higher. A mask byte belongs to the target token. */
#include <stdlib.h>
#include "data.h"

enum code batch_alloc(struct batch *b, int64_t B, int64_t T)
{
    int64_t n = 0, bytes = 0;
    CHECK(B > 0 && T > 0);
    *b = (struct batch){.B = B, .T = T};
    if (!checked_mul(B, T, &n) || !checked_mul(n, 16, &bytes))
        return fail(ERR_MEMORY, "a batch of %lld x %lld tokens cannot be made", (long long)B, (long long)T);
    b->ids = calloc(1, (size_t)bytes);
    if (b->ids == NULL)
        return fail(ERR_MEMORY, "no memory for a batch of %lld x %lld tokens", (long long)B, (long long)T);
    b->targets = b->ids + n;
    b->positions = b->targets + n;
    b->segments = b->positions + n;
    return OK;
}

void batch_free(struct batch *b)
{
    free(b->ids);
    *b = (struct batch){0};
}

static int64_t file_windows(const struct sampler *s, int f)
{
    int64_t n = tokens_count(s->files[f]);
    return n > 0 ? (n - 1) / s->T : 0;
}

enum code sampler_init(struct sampler *s)
{
    CHECK(s->T > 0 && s->n_files >= 0);
    int64_t tokens = 0;
    s->windows = 0;
    for (int f = 0; f < s->n_files; f++) {
        s->windows += file_windows(s, f);
        tokens += tokens_count(s->files[f]);
    }
    if (s->windows == 0)
        return fail(ERR_INPUT, "the data (%d files, %lld tokens) holds no window of %lld + 1 tokens; use a shorter sequence_len",
                    s->n_files, (long long)tokens, (long long)s->T);
    return OK;
}

int64_t sampler_window(const struct sampler *s, int64_t sample)
{
    CHECK(sample >= 0 && s->windows > 0);
    int64_t w = sample % s->windows;
    return s->shuffle ? random_permute(s->seed, (uint64_t)(sample / s->windows), s->windows, w) : w;
}

/* Where sample i starts: its file, and the first token in it. */
static const struct tokens *sample_start(const struct sampler *s, int64_t sample, int64_t *from)
{
    int64_t w = sampler_window(s, sample);
    for (int f = 0; f < s->n_files; f++) {
        int64_t here = file_windows(s, f);
        if (w < here) {
            *from = w * s->T;
            return s->files[f];
        }
        w -= here;
    }
    CHECK(w < 0); /* the files have changed since sampler_init */
    return NULL;
}

/* One row of T; the T + 1 tokens are read as ids[0..T) and targets[0..T) = the same shifted by one. */
static int64_t fill_row(const struct sampler *s, int64_t sample, int64_t T, int32_t *ids, int32_t *targets, int32_t *positions,
                        int32_t *segments)
{
    int64_t from, valid = 0;
    const struct tokens *file = sample_start(s, sample, &from);
    tokens_get(file, from, T, ids);
    tokens_get(file, from + 1, T, targets);
    int masked = tokens_has_mask(file);
    int32_t position = 0, segment = 0;
    for (int64_t t = 0; t < T; t++) {
        uint8_t learn = 1;
        if (masked)
            tokens_get_mask(file, from + 1 + t, 1, &learn);
        int ends = s->pack && s->eos >= 0 && ids[t] == s->eos;
        positions[t] = position++;
        segments[t] = segment;
        if (ends || !learn)
            targets[t] = -1;
        else
            valid++;
        if (ends) {
            position = 0;
            segment++;
        }
    }
    return valid;
}

int64_t sampler_fill(const struct sampler *s, int64_t first, struct batch *b)
{
    CHECK(b->T == s->T);
    int64_t valid = 0;
    for (int64_t row = 0; row < b->B; row++) {
        int64_t at = row * b->T;
        valid += fill_row(s, first + row, b->T, b->ids + at, b->targets + at, b->positions + at, b->segments + at);
    }
    return valid;
}

/* ---- counting, without filling ---- */

static int64_t count_window(const struct sampler *s, const struct tokens *file, int64_t from)
{
    enum { BLOCK = 1024 };
    int32_t ids[BLOCK], eos = s->pack ? s->eos : -1;
    uint8_t mask[BLOCK];
    int64_t valid = 0;
    int masked = tokens_has_mask(file);
    for (int64_t t = 0; t < s->T; t += BLOCK) {
        int64_t n = s->T - t < BLOCK ? s->T - t : BLOCK;
        if (eos >= 0)
            tokens_get(file, from + t, n, ids);
        if (masked)
            tokens_get_mask(file, from + t + 1, n, mask);
        int64_t lost = 0;
        for (int64_t i = 0; i < n; i++)
            lost += (eos >= 0 && ids[i] == eos) || (masked && !mask[i]);
        valid += n - lost;
    }
    return valid;
}

static int64_t count_epoch(const struct sampler *s)
{
    int64_t valid = 0;
    for (int f = 0; f < s->n_files; f++)
        for (int64_t w = 0; w < file_windows(s, f); w++)
            valid += count_window(s, s->files[f], w * s->T);
    return valid;
}

int64_t sampler_count(const struct sampler *s, int64_t first, int64_t n)
{
    int every = !s->pack || s->eos < 0; /* every target is valid unless a mask says otherwise */
    CHECK(first >= 0 && n >= 0);
    for (int f = 0; f < s->n_files; f++)
        every = every && !tokens_has_mask(s->files[f]);
    if (every)
        return n * s->T;
    int64_t valid = 0, at = first, end = first + n, epoch_valid = -1;
    while (at < end) {
        if (at % s->windows == 0 && end - at >= s->windows) { /* a whole epoch is every window once, in whatever order */
            epoch_valid = epoch_valid >= 0 ? epoch_valid : count_epoch(s);
            int64_t epochs = (end - at) / s->windows;
            valid += epochs * epoch_valid;
            at += epochs * s->windows;
            continue;
        }
        int64_t from;
        const struct tokens *file = sample_start(s, at++, &from);
        valid += count_window(s, file, from);
    }
    return valid;
}
