/* Exact match: greedy decoding of a prompt until a newline, an end of text or a number of tokens; what was decoded, without the
 * white space around it, must be one of the answers, without theirs. Prompts of one length are decoded together. */
#include "tasks.h"

#include <stdlib.h>
#include <string.h>

static int by_length(const void *a, const void *b)
{
    const struct task_prompt *x = a, *y = b;
    return x->n != y->n ? (x->n > y->n) - (x->n < y->n) : (x->item->number > y->item->number) - (x->item->number < y->item->number);
}

/* Text of ids up to its first newline; *ended: there is one. */
static enum code read_back(const struct tokenizer *t, const int32_t *ids, int64_t n, char **text, size_t *bytes, int *ended)
{
    free(*text);
    *text = NULL;
    TRY(tokenizer_decode(t, ids, n, text, bytes));
    char *newline = memchr(*text, '\n', *bytes);
    *ended = newline != NULL;
    if (newline) {
        *bytes = (size_t)(newline - *text);
        *newline = 0;
    }
    return OK;
}

static void trim(const char **text, size_t *n)
{
    while (*n > 0 && strchr(" \t\r\n", **text) && **text)
        ++*text, --*n;
    while (*n > 0 && strchr(" \t\r\n", (*text)[*n - 1]) && (*text)[*n - 1])
        --*n;
}

static void compare(const struct task_item *item, struct task_outcome *o)
{
    const char *said = o->said;
    size_t n = o->said_n;
    trim(&said, &n);
    for (int i = 0; i < item->n && !o->matched; i++) {
        const char *want = item->text[i];
        size_t n_want = strlen(want);
        trim(&want, &n_want);
        o->matched = n == n_want && memcmp(said, want, n) == 0;
    }
}

struct decoder {
    struct session *s;
    const struct tokenizer *t;
    struct stops stops;
    int64_t rows, V, named, new_tokens;
    int32_t *ids, *next; /* [rows * longest prompt], [rows] */
    int32_t *said;       /* [rows, new_tokens] */
    int64_t *n_said;
    int *ended;
    float *logits;
};

/* The most likely id that has a text or ends it: vocabularies are padded. -1: a logit is not finite. */
static int32_t likeliest(const struct decoder *d, const float *logits)
{
    int32_t best = -1;
    if (count_nonfinite(logits, DT_F32, (size_t)d->V))
        return -1;
    for (int64_t i = 0; i < d->V; i++)
        if ((i < d->named || stops_has(&d->stops, (int32_t)i)) && (best < 0 || logits[i] > logits[best]))
            best = (int32_t)i;
    return best;
}

/* One token more of every sequence; *open: how many go on. */
static enum code take(struct decoder *d, struct task_prompt *p, int64_t n, int64_t *open)
{
    *open = 0;
    for (int64_t r = 0; r < n; r++) {
        if (d->ended[r])
            continue;
        int32_t id = likeliest(d, d->logits + r * d->V);
        if (id < 0)
            return fail(ERR_NUMERIC, "%s: the logits are not finite; look for NaN or infinite weights with gqa-convert", ckpt_path(d->s->checkpoint));
        d->next[r] = id;
        d->ended[r] = stops_has(&d->stops, id);
        if (d->ended[r])
            continue;
        d->said[r * d->new_tokens + d->n_said[r]++] = id;
        TRY(read_back(d->t, d->said + r * d->new_tokens, d->n_said[r], &p[r].outcome->said, &p[r].outcome->said_n, &d->ended[r]));
        *open += !d->ended[r];
    }
    return OK;
}

/* n prompts of one length; the rows beyond them repeat the last. */
static enum code decode(struct decoder *d, struct task_prompt *p, int64_t n)
{
    int64_t T = p[0].n, open = 0;
    for (int64_t r = 0; r < d->rows; r++) {
        memcpy(d->ids + r * T, p[r < n ? r : n - 1].ids, (size_t)T * sizeof *d->ids);
        d->ended[r] = 0;
        d->n_said[r] = 0;
        d->next[r] = p[n - 1].ids[T - 1];
    }
    model_cache_reset(d->s->model);
    TRY(model_prefill(d->s->model, d->ids, d->rows, T, d->logits));
    TRY(take(d, p, n, &open));
    for (int64_t step = 1; open > 0 && step < d->new_tokens; step++) {
        TRY(model_decode(d->s->model, d->next, d->rows, 1, d->logits));
        TRY(take(d, p, n, &open));
    }
    for (int64_t r = 0; r < n; r++)
        compare(p[r].item, p[r].outcome);
    return OK;
}

enum code task_match(struct session *s, const struct tokenizer *t, struct task_prompt *prompts, int64_t n, int64_t rows, int64_t new_tokens, struct progress *p)
{
    struct decoder d = { .s = s, .t = t, .rows = rows, .V = ckpt_arch(s->checkpoint)->V, .named = tokenizer_vocab(t), .new_tokens = new_tokens };
    qsort(prompts, (size_t)n, sizeof *prompts, by_length);
    stops_of(&d.stops, s->checkpoint);
    size_t longest = (size_t)prompts[n - 1].n, B = (size_t)rows;
    d.ids = malloc(B * longest * sizeof *d.ids);
    d.next = malloc(B * sizeof *d.next);
    d.said = malloc(B * (size_t)new_tokens * sizeof *d.said);
    d.n_said = malloc(B * sizeof *d.n_said);
    d.ended = malloc(B * sizeof *d.ended);
    d.logits = malloc(B * (size_t)d.V * sizeof *d.logits);
    enum code c = d.ids && d.next && d.said && d.n_said && d.ended && d.logits ? OK : fail(ERR_MEMORY, "out of memory for %lld prompts", (long long)rows);
    for (int64_t from = 0, count; c == OK && from < n; from += count) {
        for (count = 1; count < rows && from + count < n && prompts[from + count].n == prompts[from].n;)
            count++;
        c = decode(&d, prompts + from, count);
        progress_update(p, p->done + count, NULL);
    }
    free(d.ids);
    free(d.next);
    free(d.said);
    free(d.n_said);
    free(d.ended);
    free(d.logits);
    return c;
}
