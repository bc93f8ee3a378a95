/* A context and the text after it become ids as in lm-evaluation-harness (api/model.py): white space at the end of the context moves to
 * the text, for tokenizers join a space with the word after it; then both are encoded as one string, and what the string has more than
 * the context alone are the text's tokens. A text without context starts after the tokenizer's beginning of text, else its
 * end of text. Too long: the left end goes. Before a context stands a beginning of text when the tokenizer would put it there.
 *
 *   ids     [lead] c0 c1 ... | t0 t1 ... tn     scored: t0 ... tn
 * Special tokens spelled out in a text are plain text. White space is ASCII's here. */
#include "tasks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum code task_encoder_open(struct task_encoder *e, const struct tokenizer *t, const struct arch *a, int bos)
{
    int32_t *ids = NULL;
    int64_t n = 0;
    e->tokenizer = t;
    e->V = a->V;
    int start = tokenizer_bos(t) >= 0 ? tokenizer_bos(t) : a->bos, end = tokenizer_eos(t) >= 0 ? tokenizer_eos(t) : a->eos;
    TRY(tokenizer_encode(t, "", 0, 1, &ids, &n)); /* what it puts around a text, if anything */
    int own = n > 0 && ids[0] == start ? start : -1;
    free(ids);
    e->alone = start >= 0 ? start : end;
    e->lead = bos == TASK_BOS_YES ? e->alone : bos == TASK_BOS_AUTO ? own : -1;
    if (bos == TASK_BOS_YES && e->alone < 0)
        return fail(ERR_USAGE, "--bos yes: neither the tokenizer nor the model names a token that begins or ends a text");
    int32_t put = e->alone;
    return put >= 0 ? eval_ids_check(&put, 1, a) : OK;
}

static enum code encode(const struct task_encoder *e, const char *text, size_t n, int32_t **ids, int64_t *n_ids)
{
    TRY(tokenizer_encode(e->tokenizer, text, n, 0, ids, n_ids));
    for (int64_t i = 0; i < *n_ids; i++)
        if ((*ids)[i] >= e->V) {
            int32_t id = (*ids)[i];
            free(*ids);
            *ids = NULL;
            return fail(ERR_INPUT, "the tokenizer gives the id %d, but the model's vocabulary has %lld: this is not the tokenizer it was trained with; "
                        "name that one with --tokenizer", id, (long long)e->V);
        }
    return OK;
}

/* ids become [lead] ids; lead -1: as they are. */
static enum code put_lead(int32_t **ids, int64_t *n, int lead)
{
    if (lead < 0)
        return OK;
    int32_t *more = realloc(*ids, (size_t)(*n + 1) * sizeof *more);
    if (!more)
        return fail(ERR_MEMORY, "out of memory for %lld ids", (long long)*n + 1);
    memmove(more + 1, more, (size_t)*n * sizeof *more);
    more[0] = lead;
    *ids = more;
    *n += 1;
    return OK;
}

static size_t without_blanks(const char *text)
{
    size_t n = strlen(text);
    while (n > 0 && strchr(" \t\n\v\f\r", text[n - 1]))
        n--;
    return n;
}

/* Keeps the last `most` ids. */
static int cut_left(int32_t *ids, int64_t *n, int64_t most)
{
    if (*n <= most)
        return 0;
    memmove(ids, ids + (*n - most), (size_t)most * sizeof *ids);
    *n = most;
    return 1;
}

/* n_context: tokens of the context alone, 0 when there is none. */
static enum code encode_text(struct task_encoder *e, const struct task_item *item, int i, int64_t n_context, struct task_request *r)
{
    char *whole = NULL;
    int bytes = asprintf(&whole, "%s%s%s", item->context, item->kind == TASK_CHOICE ? e->delimiter : "", item->text[i]);
    if (bytes < 0)
        return fail(ERR_MEMORY, "out of memory for a text");
    enum code c = encode(e, whole, (size_t)bytes, &r->ids, &r->n);
    free(whole);
    TRY(c);
    int lead = n_context == 0 ? e->alone : e->lead;
    r->scored = r->n - n_context;
    TRY(put_lead(&r->ids, &r->n, lead));
    if (r->scored == r->n) { /* nothing stands before the first token */
        r->scored--;
        e->headless++;
    }
    if (r->scored < 1)
        return fail(ERR_INPUT, "text %d (\"%.40s\") adds no token to what stands before it, so it has no probability", i, item->text[i]);
    if (r->scored > e->context)
        return fail(ERR_INPUT, "text %d has %lld tokens, more than the %lld that the model reads at once", i, (long long)r->scored, (long long)e->context);
    e->cut += cut_left(r->ids, &r->n, e->context + 1);
    return OK;
}

enum code task_encode(struct task_encoder *e, const struct task_item *item, const char *path, struct task_sum *sum, struct task_request *out)
{
    int32_t *ids = NULL;
    int64_t n = 0;
    size_t end = without_blanks(item->context);
    enum code c = end > 0 ? encode(e, item->context, end, &ids, &n) : OK;
    free(ids);
    for (int i = 0; c == OK && i < item->n; i++) {
        out[i].sum = sum + i;
        c = encode_text(e, item, i, n, &out[i]);
        if (c == OK)
            sum[i].tokens = out[i].scored;
    }
    return fail_in(c, "%s:%lld", path, (long long)item->number);
}

enum code task_encode_prompt(struct task_encoder *e, const struct task_item *item, const char *path, int64_t new_tokens, int32_t **ids, int64_t *n)
{
    enum code c = encode(e, item->context, strlen(item->context), ids, n);
    if (c == OK)
        c = put_lead(ids, n, *n == 0 ? e->alone : e->lead);
    if (c == OK && *n == 0)
        c = fail(ERR_INPUT, "the prompt has no token to continue");
    if (c == OK && new_tokens >= e->context)
        c = fail(ERR_USAGE, "--new %lld leaves no room for a prompt: the model reads %lld tokens at once", (long long)new_tokens, (long long)e->context);
    if (c == OK)
        e->cut += cut_left(*ids, n, e->context - new_tokens);
    return fail_in(c, "%s:%lld", path, (long long)item->number);
}
