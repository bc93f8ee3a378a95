/* gqa-eval score: log-probability of every token of given sequences, one JSON line each:
 * {"index", "ids", "logprob": [n-1 entries, ln p(ids[i+1] | ids[0..i])], "sum"}. */
#include "eval.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LINE_LIMIT (256u << 20)

struct options { const char *tokens, *text, *out, *tokenizer, *device; int64_t context, threads; int dtype; };

#define FLAG(name, type, field, arg, help) { name, type, offsetof(struct options, field), arg, help }
static const struct cli_flag flags[] = {
    FLAG("--tokens", CLI_STR, tokens, "FILE", "JSON lines {\"ids\": [...]} (.jsonl), or a token file, cut into sequences of --context tokens"),
    FLAG("--text", CLI_STR, text, "STR", "one sequence: this text, tokenised with the tokenizer's special tokens"),
    FLAG("--out", CLI_STR, out, "FILE", "write the lines here (default: stdout)"),
    FLAG("--tokenizer", CLI_STR, tokenizer, "PATH|bytes|model", "for --text (default model)"),
    FLAG("--context", CLI_INT, context, "N", "sequence length for token files (default: the model's positions, at most 1024)"),
    FLAG("--dtype", CLI_CHOICE, dtype, SESSION_DTYPES, "element type of the weights in memory (default keep)"),
    FLAG("--device", CLI_STR, device, "auto|cpu|cuda", "default auto"),
    FLAG("--threads", CLI_INT, threads, "N", "default 0: all CPUs"),
};
static const struct cli cli = {
    "gqa-eval score", "CKPT (--tokens FILE | --text STR) [flags]",
    "Prints natural-log probabilities, one JSON line per sequence; the first token of a sequence has none.",
    flags, (int)(sizeof flags / sizeof flags[0]), 1, 1,
};

struct sequences { int32_t **ids; int64_t *n; int64_t count, capacity, longest; };

/* Takes ids (malloc'ed). */
static enum code sequences_add(struct sequences *s, int32_t *ids, int64_t n)
{
    if (s->count == s->capacity) {
        int64_t more = s->capacity ? 2 * s->capacity : 16;
        int32_t **p = realloc(s->ids, (size_t)more * sizeof *p);
        if (p)
            s->ids = p;
        int64_t *q = p ? realloc(s->n, (size_t)more * sizeof *q) : NULL;
        if (!q) {
            free(ids);
            return fail(ERR_MEMORY, "out of memory for %lld sequences", (long long)more);
        }
        s->n = q;
        s->capacity = more;
    }
    s->ids[s->count] = ids;
    s->n[s->count++] = n;
    s->longest = n > s->longest ? n : s->longest;
    return OK;
}

static void sequences_free(struct sequences *s)
{
    for (int64_t i = 0; i < s->count; i++)
        free(s->ids[i]);
    free(s->ids);
    free(s->n);
}

static enum code ids_of_line(const json_t *line, const char *where, int64_t V, struct sequences *s)
{
    const json_t *list = json_object_get(line, "ids");
    size_t n = json_array_size(list);
    if (n < 1)
        return fail(ERR_INPUT, "%s: expected {\"ids\": [at least one integer]}", where);
    int32_t *ids = malloc(n * sizeof *ids);
    if (!ids)
        return fail(ERR_MEMORY, "%s: out of memory for %zu ids", where, n);
    for (size_t i = 0; i < n; i++) {
        const json_t *x = json_array_get(list, i);
        json_int_t id = json_is_integer(x) ? json_integer_value(x) : -1;
        if (id < 0 || id >= V) {
            free(ids);
            return fail(ERR_INPUT, "%s: ids[%zu] is not an integer between 0 and %lld", where, i, (long long)V - 1);
        }
        ids[i] = (int32_t)id;
    }
    return sequences_add(s, ids, (int64_t)n);
}

static enum code read_json_lines(const char *path, int64_t V, struct sequences *s)
{
    char *bytes = NULL;
    size_t n = 0;
    TRY(io_read_all(path, LINE_LIMIT, &bytes, &n));
    enum code c = OK;
    int64_t number = 1;
    for (char *p = bytes, *end = bytes + n; c == OK && p < end; number++) {
        char *stop = memchr(p, '\n', (size_t)(end - p));
        size_t length = (size_t)((stop ? stop : end) - p);
        char where[512];
        snprintf(where, sizeof where, "%s:%lld", path, (long long)number);
        json_t *line = NULL;
        if (strspn(p, " \t\r") < length) {
            c = json_parse_object(p, length, where, &line);
            if (c == OK)
                c = ids_of_line(line, where, V, s);
            json_decref(line);
        }
        p += length + 1;
    }
    free(bytes);
    return c;
}

static enum code read_token_file(const char *path, const struct arch *a, int64_t context, struct sequences *s)
{
    struct tokens_options o = { .V = a->V, .eos = a->eos, .bos = a->bos };
    struct tokens *t = NULL;
    TRY(tokens_open(&t, path, &o));
    enum code c = OK;
    for (int64_t from = 0; c == OK && from < tokens_count(t); from += context) {
        int64_t n = tokens_count(t) - from < context ? tokens_count(t) - from : context;
        int32_t *ids = malloc((size_t)n * sizeof *ids);
        if (!ids) {
            c = fail(ERR_MEMORY, "%s: out of memory for a sequence", path);
            break;
        }
        tokens_get(t, from, n, ids);
        c = sequences_add(s, ids, n);
    }
    tokens_close(t);
    return c;
}

static enum code read_text(struct session *session, const struct options *o, struct sequences *s)
{
    struct tokenizer *t = NULL;
    int32_t *ids = NULL;
    int64_t n = 0;
    TRY(eval_tokenizer(session->checkpoint, o->tokenizer, &t));
    enum code c = tokenizer_encode(t, o->text, strlen(o->text), 1, &ids, &n);
    tokenizer_close(t);
    TRY(c);
    c = eval_ids_check(ids, n, ckpt_arch(session->checkpoint));
    if (c == OK)
        return sequences_add(s, ids, n);
    free(ids);
    return c;
}

static enum code score_sequence(struct model *m, const int32_t *ids, int64_t n, struct batch *b, float *logp)
{
    struct batch one = *b;
    one.B = 1;
    one.T = n - 1;
    for (int64_t i = 0; i < n - 1; i++) {
        one.ids[i] = ids[i];
        one.targets[i] = ids[i + 1];
        one.positions[i] = (int32_t)i;
        one.segments[i] = 0;
    }
    double loss = 0;
    int64_t count = 0;
    return n > 1 ? model_score(m, &one, view_2d(logp, DT_F32, 1, n - 1), &loss, &count) : OK;
}

static enum code write_line(FILE *f, int64_t index, const int32_t *ids, int64_t n, const float *logp)
{
    json_t *j = json_object(), *list = json_array(), *values = json_array();
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        json_array_append_new(list, json_integer(ids[i]));
    for (int64_t i = 0; i + 1 < n; i++) {
        sum += (double)logp[i];
        if (json_array_append_new(values, json_real((double)logp[i])) != 0) { /* jansson refuses non-finite numbers */
            json_decref(j);
            json_decref(list);
            json_decref(values);
            return fail(ERR_NUMERIC, "sequence %lld: the log-probability of token %lld is not finite", (long long)index, (long long)i + 1);
        }
    }
    json_object_set_new(j, "index", json_integer(index));
    json_object_set_new(j, "ids", list);
    json_object_set_new(j, "logprob", values);
    json_object_set_new(j, "sum", json_real(sum));
    int bad = json_dumpf(j, f, JSON_COMPACT | JSON_REAL_PRECISION(9)) != 0 || fputc('\n', f) == EOF;
    json_decref(j);
    return bad ? fail(ERR_IO, "cannot write the result lines") : OK;
}

/* The length to open the model for, so that a sequence of T tokens gets the rotary tables it would have alone: two scalings follow
 * the length of the sequence beyond the trained one. Sequences with the same answer share a model. */
static int64_t length_for(const struct arch *a, int64_t T, int64_t longest)
{
    int64_t trained = a->rope.original_max_positions;
    if (a->pos != POS_ROPE || (a->rope.kind != ROPE_DYNAMIC && a->rope.kind != ROPE_LONGROPE))
        return longest;
    if (T <= trained)
        return trained < longest ? trained : longest;
    return a->rope.kind == ROPE_DYNAMIC ? T : longest;
}

static enum code open_for(struct session *s, const struct session_options *so, int64_t T)
{
    model_close(s->model);
    s->model = NULL;
    return session_model(s, so, (struct model_options){ .B = 1, .T = T });
}

static enum code score_all(struct session *s, const struct session_options *so, const struct sequences *q, const char *out)
{
    int64_t T = q->longest > 1 ? q->longest - 1 : 1, opened = 0;
    struct batch b = { 0 };
    TRY(batch_alloc(&b, 1, T));
    float *logp = malloc((size_t)T * sizeof *logp);
    FILE *f = out ? fopen(out, "w") : stdout;
    enum code c = !logp ? fail(ERR_MEMORY, "out of memory for %lld tokens", (long long)T) : !f ? fail_errno(out, "cannot create") : OK;
    for (int64_t i = 0; c == OK && i < q->count; i++) {
        int64_t length = length_for(ckpt_arch(s->checkpoint), q->n[i] - 1, T);
        if (length != opened)
            c = open_for(s, so, opened = length);
        if (c == OK)
            c = score_sequence(s->model, q->ids[i], q->n[i], &b, logp);
        if (c == OK)
            c = write_line(f, i, q->ids[i], q->n[i], logp);
    }
    if (out && f && fclose(f) != 0 && c == OK)
        c = fail_errno(out, "cannot write");
    free(logp);
    batch_free(&b);
    return c;
}

enum code command_score(int argc, char **argv)
{
    struct options o = { 0 };
    struct cli_words words;
    int help = 0;
    TRY(cli_parse(&cli, argc, argv, &o, &words, &help));
    if (help)
        return OK;
    if (!o.tokens == !o.text)
        return fail(ERR_USAGE, "gqa-eval score needs either --tokens FILE or --text STR");
    if (o.context < 0)
        return fail(ERR_USAGE, "--context must be at least 1");
    struct session s;
    struct session_options so = { .path = words.v[0], .device = o.device, .threads = (int)o.threads };
    struct sequences q = { 0 };
    enum code c = session_open(&s, &so);
    if (c == OK) {
        const struct arch *a = ckpt_arch(s.checkpoint);
        int64_t context = o.context > 0 ? o.context : (a->max_positions < 1024 ? a->max_positions : 1024);
        const char *dot = o.tokens ? strrchr(o.tokens, '.') : NULL;
        so.dtype = session_dtype(o.dtype, a);
        c = o.text ? read_text(&s, &o, &q) : dot && strcmp(dot, ".jsonl") == 0 ? read_json_lines(o.tokens, a->V, &q) : read_token_file(o.tokens, a, context, &q);
    }
    if (c == OK && q.count == 0)
        c = fail(ERR_INPUT, "%s holds no sequence", o.tokens ? o.tokens : "the text");
    if (c == OK)
        c = score_all(&s, &so, &q, o.out);
    sequences_free(&q);
    session_close(&s);
    return c;
}
