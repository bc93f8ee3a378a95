/* Sliding-window scoring. Window i predicts targets [i*stride, i*stride + context) of the stream, target j being token j+1; only
 * targets that no earlier window scored are counted, so stride < context gives every token at least context - stride of
 * left context (except the first window). Windows are batched; every file starts afresh.
 *
 * The standard error treats windows as independent blocks: sd of (window sum - mean * window count) over sqrt of their number,
 * because losses of neighbouring tokens are correlated and a per-token formula would be too small. */
#include "eval.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct blocks { double n, sum, count, ss, sc, cc; }; /* moments of (window sum s, window count c) */

static void blocks_add(struct blocks *b, double s, double c)
{
    b->n += 1;
    b->sum += s;
    b->count += c;
    b->ss += s * s;
    b->sc += s * c;
    b->cc += c * c;
}

static double blocks_stderr(const struct blocks *b)
{
    if (b->n < 2 || b->count <= 0)
        return 0.0;
    double mean = b->sum / b->count;
    double var = (b->ss - 2 * mean * b->sc + mean * mean * b->cc) / (b->n - 1);
    return sqrt((var > 0 ? var : 0) * b->n) / b->count;
}

/* Row r of the batch: the window at `first`; targets already scored (below `from`) or masked are -1. */
static void fill_row(const struct tokens *t, const struct window_options *o, struct batch *b, int64_t r, int64_t first, int64_t from, int64_t end,
                     int32_t *ids, uint8_t *mask)
{
    int64_t T = b->T, n = end - first < T ? end - first : T; /* predictions in this window */
    tokens_get(t, first, n + 1, ids);
    tokens_get_mask(t, first, n + 1, mask);
    int32_t position = 0, segment = 0;
    for (int64_t i = 0; i < T; i++) {
        int64_t k = r * T + i;
        int in = i < n;
        b->ids[k] = in ? ids[i] : 0;
        int boundary = o->pack && in && o->eos >= 0 && ids[i] == o->eos;
        b->targets[k] = in && first + i >= from && mask[i + 1] && !boundary ? ids[i + 1] : -1;
        b->positions[k] = position;
        b->segments[k] = in ? segment : segment + 1; /* the padding is a document of its own */
        position = boundary ? 0 : position + 1;
        segment += boundary;
    }
}

struct scorer {
    struct session *s;
    const struct window_options *o;
    struct batch b;
    float *logp;
    double *kl; /* [B], with a reference */
    int32_t *ids;
    uint8_t *mask;
    struct blocks blocks, kl_blocks;
    struct progress p;
    int64_t done;
};

static enum code add_rows(struct scorer *scorer, const struct batch *b, int64_t rows, struct window_result *r)
{
    for (int64_t row = 0; row < rows; row++) {
        double s = 0, c = 0;
        for (int64_t k = row * b->T; k < (row + 1) * b->T; k++)
            if (b->targets[k] >= 0) {
                s -= (double)scorer->logp[k];
                c += 1;
                if (scorer->o->bytes)
                    TRY(text_bytes_add(scorer->o->bytes, b->ids[k], b->targets[k], &r->bytes));
            }
        if (c > 0)
            blocks_add(&scorer->blocks, s, c);
        if (c > 0 && scorer->o->windows)
            json_array_append_new(scorer->o->windows, json_pack("[f, I]", s, (json_int_t)c));
        if (c > 0 && scorer->s->reference)
            blocks_add(&scorer->kl_blocks, scorer->kl[row], c);
        r->kl += scorer->kl[row];
        r->nats += s;
        r->tokens += (int64_t)c;
    }
    return OK;
}

static enum code score_file(struct scorer *k, const struct tokens *t, struct window_result *r)
{
    const struct window_options *o = k->o;
    int64_t end = tokens_count(t) - 1, scored = 0; /* predictions in the file; those scored so far */
    if (o->limit > 0 && end > o->limit)
        end = o->limit;
    for (int64_t first = 0; scored < end;) {
        struct batch b = k->b;
        int64_t rows = 0;
        for (; rows < k->b.B && scored < end; rows++) {
            fill_row(t, o, &b, rows, first, scored, end, k->ids, k->mask);
            scored = first + o->context < end ? first + o->context : end;
            first += o->stride;
        }
        b.B = rows;
        double loss = 0;
        int64_t count = 0;
        memset(k->kl, 0, (size_t)k->b.B * sizeof *k->kl);
        TRY(model_score(k->s->model, &b, view_2d(k->logp, DT_F32, rows, b.T), &loss, &count));
        TRY(add_rows(k, &b, rows, r));
        char text[48];
        snprintf(text, sizeof text, "nats %.4f", r->tokens ? r->nats / (double)r->tokens : 0.0);
        progress_update(&k->p, k->done + scored, text);
    }
    k->done += scored;
    return OK;
}

int64_t window_rows(int64_t context) { return context < 2048 ? 2048 / context : 1; }

enum code score_windows(struct session *s, struct tokens *const *files, int n_files, const struct window_options *o, struct window_result *r)
{
    memset(r, 0, sizeof *r);
    if (o->context < 1 || o->stride < 1 || o->stride > o->context)
        return fail(ERR_USAGE, "--context must be at least 1 and --stride between 1 and --context");
    struct scorer k = { .s = s, .o = o };
    int64_t total = 0;
    TRY(batch_alloc(&k.b, window_rows(o->context), o->context));
    k.logp = malloc((size_t)(k.b.B * k.b.T) * sizeof *k.logp);
    k.ids = malloc((size_t)(o->context + 1) * sizeof *k.ids);
    k.mask = malloc((size_t)(o->context + 1));
    k.kl = calloc((size_t)k.b.B, sizeof *k.kl);
    struct model_teacher teacher = { .model = s->reference, .weight = 1.0f, .temperature = 1.0f, .kl_rows = k.kl };
    model_teach(s->model, s->reference ? &teacher : NULL);
    enum code c = k.logp && k.ids && k.mask && k.kl ? OK : fail(ERR_MEMORY, "out of memory for windows of %lld tokens", (long long)o->context);
    for (int i = 0; i < n_files; i++)
        total += tokens_count(files[i]) - 1;
    progress_begin(&k.p, "score", o->limit > 0 && total > o->limit * n_files ? o->limit * n_files : total);
    for (int i = 0; c == OK && i < n_files; i++)
        c = score_file(&k, files[i], r);
    progress_end(&k.p);
    model_teach(s->model, NULL);
    r->stderr_nats = blocks_stderr(&k.blocks);
    r->kl_stderr = blocks_stderr(&k.kl_blocks);
    free(k.logp);
    free(k.kl);
    free(k.ids);
    free(k.mask);
    batch_free(&k.b);
    if (c == OK && r->tokens == 0)
        c = fail(ERR_INPUT, "the data holds no token to predict");
    if (c == OK && !(isfinite(r->nats) && isfinite(r->kl)))
        c = fail(ERR_NUMERIC, "%s: the loss is not finite; look for NaN or infinite weights with gqa-convert", ckpt_path(s->checkpoint));
    return c;
}
