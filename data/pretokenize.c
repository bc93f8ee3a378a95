/* Pre-tokenizer steps: a piece of text is cut into pieces, each goes to the next step, and what leaves the last step is one
 * word for BPE. The five ways to cut at the matches of a pattern are those of the Hugging Face library:
 *
 *   removed     a-b--c -> a b c          isolated    a-b--c -> a - b - - c       contiguous  a-b--c -> a - b -- c
 *   previous    a-b--c -> a- b- - c      next        a-b--c -> a -b - -c  */
#include <string.h>
#include "tokenizer.h"

struct cutter {
    struct encoder *e;
    int step;
    const char *text;
    size_t n;
    int head;               /* the text is the start of the input */
    enum split_behavior behavior;
    size_t from, to;        /* held piece, not sent on yet */
    int held, held_match;
};

static enum code run_step(struct encoder *e, int step, const char *text, size_t n, int head);

static enum code send(struct cutter *c, size_t from, size_t to)
{
    return from == to ? OK : run_step(c->e, c->step + 1, c->text + from, to - from, c->head && from == 0);
}

static enum code flush(struct cutter *c)
{
    if (!c->held)
        return OK;
    c->held = 0;
    return send(c, c->from, c->to);
}

/* Pieces arrive in order, without gaps. One is held back where the next may join it. */
static enum code cut(struct cutter *c, size_t from, size_t to, int match)
{
    int join = 0;
    switch (c->behavior) {
    case SPLIT_REMOVED: return match ? OK : send(c, from, to);
    case SPLIT_ISOLATED: return send(c, from, to);
    case SPLIT_CONTIGUOUS: join = c->held && c->held_match == match; break;
    case SPLIT_PREVIOUS: join = c->held && match && !c->held_match; break;
    case SPLIT_NEXT: join = c->held && !match && c->held_match; break;
    }
    if (!join) {
        TRY(flush(c));
        c->from = from;
    }
    c->to = to;
    c->held = 1;
    c->held_match = match;
    return OK;
}

static enum code cut_by_pattern(struct cutter *c, const struct step *s)
{
    size_t taken = 0, start, end;
    for (size_t at = 0; at <= c->n;) {
        int found;
        TRY(pattern_find(s->pattern, c->e->patterns, c->text, c->n, at, &found, &start, &end));
        if (!found)
            break;
        if (start > taken)
            TRY(cut(c, taken, start, s->b));
        if (end > start)
            TRY(cut(c, start, end, !s->b));
        taken = end;
        at = end > start ? end : end < c->n ? end + utf8_length((unsigned char)c->text[end]) : c->n + 1;
    }
    if (taken < c->n)
        TRY(cut(c, taken, c->n, s->b));
    return flush(c);
}

static int in_class(enum char_class k, uint32_t ch)
{
    return k == CLASS_SPACE ? char_is_space(ch) : k == CLASS_NUMERIC ? char_is_numeric(ch) : char_is_punctuation(ch);
}

/* Each character of the class is a match of its own; what lies between is one piece. */
static enum code cut_by_class(struct cutter *c, const struct step *s)
{
    size_t taken = 0, length;
    for (size_t i = 0; i < c->n; i += length) {
        if (!in_class(s->class, utf8_read(c->text + i, &length)))
            continue;
        if (i > taken)
            TRY(cut(c, taken, i, 0));
        TRY(cut(c, i, i + length, 1));
        taken = i + length;
    }
    if (taken < c->n)
        TRY(cut(c, taken, c->n, 0));
    return flush(c);
}

/* Spaces become the replacement; one is put in front if the scheme says so; then the text is cut before each. */
static enum code run_metaspace(struct encoder *e, int step, const struct step *s, const char *text, size_t n, int head)
{
    struct buffer *b = &e->scratch[step];
    b->n = 0;
    int has = text[0] == ' ' || (n >= s->text_n && memcmp(text, s->text, s->text_n) == 0);
    if (!has && (s->a == PREPEND_ALWAYS || (s->a == PREPEND_FIRST && head)))
        TRY(buffer_add(b, s->text, s->text_n));
    for (size_t i = 0; i < n;) {
        const char *space = memchr(text + i, ' ', n - i);
        size_t to = space != NULL ? (size_t)(space - text) : n;
        TRY(buffer_add(b, text + i, to - i));
        if (space != NULL)
            TRY(buffer_add(b, s->text, s->text_n));
        i = to + (space != NULL);
    }
    if (!s->b)
        return run_step(e, step + 1, b->p, b->n, head);
    struct step at = {.pattern = s->pattern};
    struct cutter c = {.e = e, .step = step, .text = b->p, .n = b->n, .head = head, .behavior = SPLIT_NEXT};
    return cut_by_pattern(&c, &at);
}

static enum code run_prefix_space(struct encoder *e, int step, const char *text, size_t n, int head)
{
    if (text[0] == ' ')
        return run_step(e, step + 1, text, n, head);
    struct buffer *b = &e->scratch[step];
    b->n = 0;
    TRY(buffer_add(b, " ", 1));
    TRY(buffer_add(b, text, n));
    return run_step(e, step + 1, b->p, b->n, head);
}

static enum code run_byte_map(struct encoder *e, int step, const char *text, size_t n, int head)
{
    struct buffer *b = &e->scratch[step];
    b->n = 0;
    TRY(byte_chars_add(b, text, n));
    return run_step(e, step + 1, b->p, b->n, head);
}

static enum code run_step(struct encoder *e, int step, const char *text, size_t n, int head)
{
    if (n == 0)
        return OK;
    if (step == e->t->pretokenizer.n)
        return bpe_encode(&e->t->bpe, &e->bpe, text, n, e->out);
    const struct step *s = &e->t->pretokenizer.v[step];
    struct cutter c = {.e = e, .step = step, .text = text, .n = n, .head = head, .behavior = (enum split_behavior)s->a};
    switch (s->kind) {
    case STEP_PREFIX_SPACE: return run_prefix_space(e, step, text, n, head);
    case STEP_BYTE_MAP: return run_byte_map(e, step, text, n, head);
    case STEP_METASPACE: return run_metaspace(e, step, s, text, n, head);
    default: CHECK(s->kind == STEP_SPLIT); return s->class != CLASS_NONE ? cut_by_class(&c, s) : cut_by_pattern(&c, s);
    }
}

enum code pretokenize_piece(struct encoder *e, const char *text, size_t n, int head) { return run_step(e, 0, text, n, head); }
