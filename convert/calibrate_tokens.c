/* The tokens of a calibration: windows spread evenly over the file, so that a long file is seen in all its parts. Attention and
 * positions stay inside documents, as gqa-uptrain trains. */
#include <stdlib.h>

#include "calibrate_parts.h"
#include "calibrate_tokens.h"

static enum code open_tokens(struct tokens **t, struct checkpoint *source, const struct options *o, int *eos)
{
    const struct arch *a = ckpt_arch(source);
    enum data_format format;
    struct tokenizer *tokenizer = NULL;
    TRY(data_detect_format(o->calibration, &format));
    struct tokens_options to = {.format = format, .V = a->V, .eos = a->eos, .bos = a->bos};
    if (format == DATA_TEXT || format == DATA_JSONL) {
        TRY(fail_in(model_tokenizer(&tokenizer, source), "--calibration %s", o->calibration));
        to.tokenizer = tokenizer;
        to.bos = tokenizer_bos(tokenizer) >= 0 ? tokenizer_bos(tokenizer) : a->bos;
        to.eos = tokenizer_eos(tokenizer) >= 0 ? tokenizer_eos(tokenizer) : a->eos;
    }
    *eos = to.eos;
    enum code c = tokens_open(t, o->calibration, &to);
    tokenizer_close(tokenizer);
    return c;
}

static enum code choose(struct calibration_tokens *t, const struct tokens *from, const struct arch *a, const struct options *o)
{
    int64_t count = tokens_count(from), asked = o->calibration_tokens ? o->calibration_tokens : CALIBRATION_TOKENS;
    t->length = o->sequence_length;
    if (!t->length)
        t->length = a->max_positions > 0 && a->max_positions < CALIBRATION_LONGEST ? a->max_positions : CALIBRATION_LONGEST;
    if (a->max_positions > 0 && t->length > a->max_positions)
        return fail(ERR_USAGE, "--sequence-length %lld is more than the model's %lld positions", (long long)t->length, (long long)a->max_positions);
    if (t->length > (count - 1) / (o->sequence_length ? 2 : 10)) { /* a short file: ten sequences, one of them held out */
        t->length = (count - 1) / 10;
        if (o->sequence_length && t->length > 0)
            log_info("%s: its %lld tokens are not two sequences of %lld; ten of %lld are taken", o->calibration, (long long)count, (long long)o->sequence_length,
                     (long long)t->length);
    }
    int64_t windows = t->length > 0 ? (count - 1) / t->length : 0;
    t->sequences = t->length > 0 ? (asked + t->length - 1) / t->length : 0;
    t->sequences = t->sequences < windows ? t->sequences : windows;
    if (t->sequences < 2)
        return fail(ERR_INPUT, "%s: %lld tokens are too few for a calibration (two sequences of %lld at least, %lld tokens asked)",
                    o->calibration, (long long)count, (long long)t->length, (long long)asked);
    t->held_out = t->sequences / 10 > 1 ? t->sequences / 10 : 1;
    return OK;
}

static enum code read_windows(struct calibration_tokens *t, const struct tokens *from)
{
    int64_t width = t->length + 1, windows = (tokens_count(from) - 1) / t->length;
    t->ids = malloc((size_t)(t->sequences * width) * sizeof *t->ids);
    t->mask = malloc((size_t)(t->sequences * width));
    if (!t->ids || !t->mask)
        return fail(ERR_MEMORY, "out of memory for %lld calibration tokens", (long long)(t->sequences * width));
    for (int64_t i = 0; i < t->sequences; i++) {
        int64_t first = (int64_t)((double)i * (double)windows / (double)t->sequences) * t->length;
        tokens_get(from, first, width, t->ids + i * width);
        tokens_get_mask(from, first, width, t->mask + i * width);
    }
    return OK;
}

enum code calibration_tokens_open(struct calibration_tokens *t, struct checkpoint *source, const struct options *o, int read)
{
    struct tokens *from = NULL;
    *t = (struct calibration_tokens){0};
    TRY(open_tokens(&from, source, o, &t->eos));
    enum code c = choose(t, from, ckpt_arch(source), o);
    if (c == OK && read)
        c = read_windows(t, from);
    tokens_close(from);
    return c;
}

void calibration_tokens_close(struct calibration_tokens *t)
{
    free(t->ids);
    free(t->mask);
    *t = (struct calibration_tokens){0};
}

int span_next(const struct calibrating *c, struct span *s, int64_t from, int64_t to)
{
    int64_t first = s->count ? s->first + s->count : from, fit = c->t.sequences - c->t.held_out;
    int64_t end = first < fit && fit < to ? fit : to;
    s->first = first;
    s->count = end - first < c->batch_rows ? end - first : c->batch_rows;
    s->row = first * c->t.length;
    s->rows = s->count * c->t.length;
    return first < to;
}

const struct batch *span_batch(struct calibrating *c, const struct span *s)
{
    int64_t T = c->t.length;
    struct batch *b = &c->batch;
    b->B = s->count;
    b->T = T;
    for (int64_t i = 0; i < s->count; i++) {
        const int32_t *ids = c->t.ids + (s->first + i) * (T + 1);
        const uint8_t *mask = c->t.mask + (s->first + i) * (T + 1);
        int32_t position = 0, segment = 0;
        for (int64_t t = 0; t < T; t++) {
            int64_t k = i * T + t;
            int ends = c->t.eos >= 0 && ids[t] == c->t.eos;
            b->ids[k] = ids[t];
            b->targets[k] = mask[t + 1] && !ends ? ids[t + 1] : -1;
            b->positions[k] = position;
            b->segments[k] = segment;
            position = ends ? 0 : position + 1;
            segment += ends;
        }
    }
    return b;
}
