/* gqa-eval perplexity: loss, perplexity and bits per byte. */
#include "eval.h"

#include <math.h>
#include <stdio.h>

struct options {
    const char *data, *reference, *tokenizer, *device;
    int64_t context, stride, limit, threads;
    int dtype, format, pack, windows, json;
};

#define FLAG(name, type, field, arg, help) { name, type, offsetof(struct options, field), arg, help }
static const struct cli_flag flags[] = {
    FLAG("--data", CLI_STR, data, "FILE", "tokens (llm.c .bin, raw, Megatron) or text (.txt, .jsonl, each also .gz)"),
    FLAG("--reference", CLI_STR, reference, "CKPT", "also the divergence from this model, of the same tokens: KL(reference || CKPT) in nats per token"),
    FLAG("--format", CLI_CHOICE, format, "auto|llmc|raw|megatron|text|jsonl", "of --data (default auto: by magic and extension)"),
    FLAG("--tokenizer", CLI_STR, tokenizer, "PATH|bytes|model", "for text (default model: the checkpoint's own)"),
    FLAG("--context", CLI_INT, context, "N", "tokens a prediction may see (default: the model's positions, at most 1024)"),
    FLAG("--stride", CLI_INT, stride, "N", "tokens between windows; smaller means more context for each token (default: --context)"),
    FLAG("--limit", CLI_INT, limit, "N", "score only the first N tokens of the file (default 0: all)"),
    FLAG("--pack", CLI_SET, pack, NULL, "attention stays inside documents, the token after an end of document is not scored (as gqa-uptrain trains)"),
    FLAG("--dtype", CLI_CHOICE, dtype, SESSION_DTYPES, "element type of the weights in memory (default keep: bf16 if stored so, else f32)"),
    FLAG("--device", CLI_STR, device, "auto|cpu|cuda", "default auto"),
    FLAG("--threads", CLI_INT, threads, "N", "default 0: all CPUs"),
    FLAG("--windows", CLI_SET, windows, NULL, "with --json: also [sum of nats, tokens] of every window, so that two models can be compared window by window"),
    FLAG("--json", CLI_SET, json, NULL, "result as JSON"),
};
static const struct cli cli = {
    "gqa-eval perplexity", "CKPT --data FILE [flags]",
    "Scores every token of FILE by sliding windows and prints the mean loss in nats per token with its standard error, the\n"
    "perplexity exp(loss), and bits per byte of text, which can be compared between tokenizers. With --reference also how far the\n"
    "probabilities are from those of another model of the same tokens, the one before its conversion say.",
    flags, (int)(sizeof flags / sizeof flags[0]), 1, 1,
};

static void print_result(struct session *s, const struct options *o, const struct window_options *w, const struct window_result *r, int64_t bytes)
{
    double loss = r->nats / (double)r->tokens, bits = bytes > 0 ? r->nats / log(2.0) / (double)bytes : (double)NAN;
    if (o->json) {
        json_t *j = json_result("perplexity", s->backend->device_name(s->device));
        json_object_set_new(j, "checkpoint", json_string(ckpt_path(s->checkpoint)));
        json_object_set_new(j, "data", json_string(o->data));
        json_object_set_new(j, "tokens", json_integer(r->tokens));
        json_object_set_new(j, "nats_per_token", json_real(loss));
        json_object_set_new(j, "stderr", json_real(r->stderr_nats));
        json_object_set_new(j, "perplexity", json_real(exp(loss)));
        json_object_set_new(j, "bytes", bytes > 0 ? json_integer(bytes) : json_null());
        json_object_set_new(j, "bits_per_byte", bytes > 0 ? json_real(bits) : json_null());
        if (s->reference) {
            json_object_set_new(j, "reference", json_string(ckpt_path(s->reference_checkpoint)));
            json_object_set_new(j, "kl_per_token", json_real(r->kl / (double)r->tokens));
            json_object_set_new(j, "kl_stderr", json_real(r->kl_stderr));
        }
        json_object_set_new(j, "context", json_integer(w->context));
        json_object_set_new(j, "stride", json_integer(w->stride));
        if (w->windows)
            json_object_set(j, "windows", w->windows);
        json_print(j, 2);
        json_decref(j);
        return;
    }
    printf("tokens scored      %lld\nnats per token     %.4f +- %.4f\nperplexity         %.4f\n", (long long)r->tokens, loss, r->stderr_nats, exp(loss));
    if (bytes > 0)
        printf("bits per byte      %.4f\n", bits);
    if (s->reference)
        printf("KL to reference    %.5f +- %.5f\n", r->kl / (double)r->tokens, r->kl_stderr);
    printf("context, stride    %lld, %lld\n", (long long)w->context, (long long)w->stride);
}

/* Bytes of the text that the scored tokens make up: of all its bytes the tokenizer's share, so that what it changes in a text (Unicode forms,
 * the marks between documents) is spread evenly. Without a tokenizer only a whole file's are known; -1: not known. */
static enum code scored_bytes(const struct tokens *t, const struct window_options *w, const struct window_result *r, int64_t *bytes)
{
    int64_t n = tokens_count(t), of_all = 0;
    int32_t ids[1025];
    *bytes = w->limit == 0 && !tokens_has_mask(t) ? tokens_bytes(t) : -1;
    if (!w->bytes || tokens_bytes(t) < 0)
        return OK;
    ids[0] = -1; /* the token before */
    for (int64_t from = 0, count; from < n; from += count) {
        count = n - from < 1024 ? n - from : 1024;
        tokens_get(t, from, count, ids + 1);
        for (int64_t i = 0; i < count; i++)
            TRY(text_bytes_add(w->bytes, ids[i], ids[i + 1], &of_all));
        ids[0] = ids[count];
    }
    *bytes = of_all > 0 ? (int64_t)llround((double)tokens_bytes(t) * ((double)r->bytes / (double)of_all)) : -1;
    return OK;
}

static enum code measure(struct session *s, const struct session_options *so, struct options *o)
{
    const struct arch *a = ckpt_arch(s->checkpoint);
    struct window_options w = { o->context, o->stride, o->limit, o->pack, a->eos, o->windows && o->json ? json_array() : NULL, NULL };
    if (w.context == 0)
        w.context = a->max_positions < 1024 ? a->max_positions : 1024;
    if (w.stride == 0)
        w.stride = w.context;
    struct tokenizer *tokenizer = NULL;
    struct tokens *tokens = NULL;
    enum data_format format = (enum data_format)o->format;
    enum code c = format == DATA_AUTO ? data_detect_format(o->data, &format) : OK;
    struct tokens_options to = { .format = format, .V = a->V, .eos = a->eos, .bos = a->bos };
    if (c == OK && (format == DATA_TEXT || format == DATA_JSONL)) { /* token files need no tokenizer */
        c = eval_tokenizer(s->checkpoint, o->tokenizer, &tokenizer);
        if (c == OK) { /* the ends of documents are the tokenizer's, else the model's, as in training */
            to.tokenizer = tokenizer;
            to.bos = tokenizer_bos(tokenizer) >= 0 ? tokenizer_bos(tokenizer) : a->bos;
            to.eos = w.eos = tokenizer_eos(tokenizer) >= 0 ? tokenizer_eos(tokenizer) : a->eos;
            c = text_bytes_open(&w.bytes, tokenizer, a->V, to.bos, to.eos);
        }
    }
    struct window_result r;
    if (c == OK)
        c = tokens_open(&tokens, o->data, &to);
    struct model_options shape = { .B = window_rows(w.context), .T = w.context };
    if (c == OK && o->reference) {
        struct session_options other = *so;
        other.path = o->reference;
        other.dtype = o->dtype == 0 ? DT_NONE : so->dtype;
        c = session_reference(s, &other, shape);
        shape.taught = -1;
    }
    if (c == OK)
        c = session_model(s, so, shape);
    if (c == OK)
        c = score_windows(s, &tokens, 1, &w, &r);
    int64_t bytes;
    if (c == OK)
        c = scored_bytes(tokens, &w, &r, &bytes);
    if (c == OK)
        print_result(s, o, &w, &r, bytes);
    text_bytes_close(w.bytes);
    tokens_close(tokens);
    tokenizer_close(tokenizer);
    json_decref(w.windows);
    return c;
}

enum code command_perplexity(int argc, char **argv)
{
    struct options o = { 0 };
    struct cli_words words;
    int help = 0;
    TRY(cli_parse(&cli, argc, argv, &o, &words, &help));
    if (help)
        return OK;
    if (!o.data)
        return fail(ERR_USAGE, "gqa-eval perplexity needs --data FILE");
    if (o.context < 0 || o.context > (1 << 24) || o.stride < 0 || o.limit < 0)
        return fail(ERR_USAGE, "--context must be between 1 and %d, --stride and --limit positive", 1 << 24);
    struct session s;
    struct session_options so = { .path = words.v[0], .device = o.device, .threads = (int)o.threads };
    enum code c = session_open(&s, &so);
    if (c == OK) {
        so.dtype = session_dtype(o.dtype, ckpt_arch(s.checkpoint));
        c = measure(&s, &so, &o);
    }
    session_close(&s);
    return c;
}
