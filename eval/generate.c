/* gqa-eval generate: continue a prompt, streaming the text to stdout. Sampling: temperature, top-k, top-p (Holtzman et al. 2020);
 * random numbers are counter-based, so a seed gives the same text whatever the machine's thread count leaves unchanged. */
#include "eval.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct options {
    const char *prompt, *tokenizer, *device;
    int64_t new_tokens, top_k, seed, threads;
    double temperature, top_p;
    int dtype, json, ignore_eos;
};

#define FLAG(name, type, field, arg, help) { name, type, offsetof(struct options, field), arg, help }
static const struct cli_flag flags[] = {
    FLAG("--prompt", CLI_STR, prompt, "STR", "text to continue (default: empty)"),
    FLAG("--new", CLI_INT, new_tokens, "N", "most tokens to add (default 128)"),
    FLAG("--temperature", CLI_FLOAT, temperature, "X", "0 is greedy (default 0.8)"),
    FLAG("--top-k", CLI_INT, top_k, "K", "only the K most likely tokens (default 0: all)"),
    FLAG("--top-p", CLI_FLOAT, top_p, "P", "only the most likely tokens that make up probability P (default 0.95)"),
    FLAG("--seed", CLI_INT, seed, "N", "default 0"),
    FLAG("--ignore-eos", CLI_SET, ignore_eos, NULL, "go on after an end of text"),
    FLAG("--tokenizer", CLI_STR, tokenizer, "PATH|bytes|model", "default model"),
    FLAG("--dtype", CLI_CHOICE, dtype, SESSION_DTYPES, "element type of the weights in memory (default keep)"),
    FLAG("--device", CLI_STR, device, "auto|cpu|cuda", "default auto"),
    FLAG("--threads", CLI_INT, threads, "N", "default 0: all CPUs"),
    FLAG("--json", CLI_SET, json, NULL, "prompt, text, ids and speed as JSON instead of streaming"),
};
static const struct cli cli = {
    "gqa-eval generate", "CKPT [--prompt STR] [flags]", "Prints the prompt and what the model adds to it.", flags, (int)(sizeof flags / sizeof flags[0]), 1, 1,
};

struct candidate { float logit; int32_t id; };

static int by_logit(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    return x->logit != y->logit ? (x->logit < y->logit) - (x->logit > y->logit) : (x->id > y->id) - (x->id < y->id);
}

/* NaN has no place in an order: sampling from such logits would be arbitrary. */
static enum code check_finite(const float *logits, int64_t V, int64_t position)
{
    size_t bad = count_nonfinite(logits, DT_F32, (size_t)V);
    return bad ? fail(ERR_NUMERIC, "%zu of the %lld logits after token %lld are not finite", bad, (long long)V, (long long)position) : OK;
}

/* Vocabularies are padded: ids from `named` on have no text, so they are no choice unless they end the text. Returns how many remain. */
static int64_t candidates(const float *logits, int64_t V, int64_t named, const struct stops *stops, struct candidate *list)
{
    int64_t n = 0;
    for (int64_t i = 0; i < V; i++)
        if (i < named || stops_has(stops, (int32_t)i))
            list[n++] = (struct candidate){ logits[i], (int32_t)i };
    qsort(list, (size_t)n, sizeof *list, by_logit);
    return n;
}

/* Of V candidates, the most likely first. */
static int32_t sample(const struct candidate *list, int64_t V, const struct options *o, int64_t step)
{
    if (o->temperature <= 0)
        return list[0].id;
    int64_t n = o->top_k > 0 && o->top_k < V ? o->top_k : V, kept = 0;
    double total = 0, sum = 0;
    for (int64_t i = 0; i < n; i++)
        total += exp(((double)list[i].logit - (double)list[0].logit) / o->temperature);
    while (kept < n && (kept == 0 || sum < o->top_p * total))
        sum += exp(((double)list[kept++].logit - (double)list[0].logit) / o->temperature);
    double u = random_uniform((uint64_t)o->seed, STREAM_SAMPLE, (uint64_t)step, 0) * sum;
    for (int64_t i = 0; i < kept; i++) {
        u -= exp(((double)list[i].logit - (double)list[0].logit) / o->temperature);
        if (u < 0)
            return list[i].id;
    }
    return list[kept - 1].id;
}

struct writer { const struct tokenizer *tokenizer; size_t printed; int quiet; char *text; };

/* Decodes everything so far and prints what is new; a character that is not complete yet (U+FFFD at the end) waits. */
static enum code writer_update(struct writer *w, const int32_t *ids, int64_t n, int last)
{
    size_t bytes = 0;
    free(w->text);
    w->text = NULL;
    TRY(tokenizer_decode(w->tokenizer, ids, n, &w->text, &bytes));
    size_t show = bytes;
    if (!last && bytes >= 3 && memcmp(w->text + bytes - 3, "\xEF\xBF\xBD", 3) == 0)
        show = bytes - 3;
    if (!w->quiet && show > w->printed) {
        fwrite(w->text + w->printed, 1, show - w->printed, stdout);
        fflush(stdout);
        w->printed = show;
    }
    return OK;
}

static enum code run_tokens(struct session *s, const struct options *o, int32_t *ids, int64_t n_prompt, int64_t *n, struct writer *w)
{
    const struct arch *a = ckpt_arch(s->checkpoint);
    struct stops stops = { { 0 }, 0 };
    if (!o->ignore_eos)
        stops_of(&stops, s->checkpoint);
    float *logits = malloc((size_t)a->V * sizeof *logits);
    struct candidate *list = malloc((size_t)a->V * sizeof *list);
    enum code c = logits && list ? model_prefill(s->model, ids, 1, n_prompt, logits) : fail(ERR_MEMORY, "out of memory for logits");
    *n = n_prompt;
    if (c == OK)
        c = writer_update(w, ids, *n, 0);
    for (int64_t step = 0; c == OK && step < o->new_tokens; step++) {
        c = check_finite(logits, a->V, *n);
        if (c != OK)
            break;
        int32_t id = sample(list, candidates(logits, a->V, tokenizer_vocab(w->tokenizer), &stops, list), o, step);
        if (stops_has(&stops, id))
            break;
        ids[(*n)++] = id;
        c = writer_update(w, ids, *n, 0);
        if (c == OK && step + 1 < o->new_tokens)
            c = model_decode(s->model, &id, 1, 1, logits);
    }
    if (c == OK)
        c = writer_update(w, ids, *n, 1);
    free(logits);
    free(list);
    return c;
}

static void print_json(struct session *s, const struct options *o, const int32_t *ids, int64_t n_prompt, int64_t n, const char *text, double seconds)
{
    json_t *j = json_result("generate", s->backend->device_name(s->device)), *list = json_array();
    for (int64_t i = 0; i < n; i++)
        json_array_append_new(list, json_integer(ids[i]));
    json_object_set_new(j, "prompt", json_string(o->prompt));
    json_object_set_new(j, "text", json_string(text));
    json_object_set_new(j, "ids", list);
    json_object_set_new(j, "prompt_tokens", json_integer(n_prompt));
    json_object_set_new(j, "new_tokens", json_integer(n - n_prompt));
    json_object_set_new(j, "tok_s", json_real((double)(n - n_prompt) / seconds));
    json_print(j, 2);
    json_decref(j);
}

static enum code generate(struct session *s, struct session_options *so, const struct options *o)
{
    const struct arch *a = ckpt_arch(s->checkpoint);
    struct tokenizer *tokenizer = NULL;
    int32_t *prompt = NULL, *ids = NULL;
    int64_t n_prompt = 0, n = 0;
    so->dtype = session_dtype(o->dtype, a);
    TRY(eval_tokenizer(s->checkpoint, o->tokenizer, &tokenizer));
    enum code c = tokenizer_encode(tokenizer, o->prompt, strlen(o->prompt), 1, &prompt, &n_prompt);
    if (c == OK) {
        ids = malloc((size_t)(n_prompt + 1 + o->new_tokens) * sizeof *ids);
        c = ids ? OK : fail(ERR_MEMORY, "out of memory for the ids");
    }
    if (c == OK && tokenizer_vocab(tokenizer) < 1)
        c = fail(ERR_INPUT, "the tokenizer has no tokens; name another one with --tokenizer");
    if (c == OK) {
        memcpy(ids, prompt, (size_t)n_prompt * sizeof *ids);
        if (n_prompt == 0)
            ids[n_prompt++] = a->bos >= 0 ? a->bos : a->eos >= 0 ? a->eos : 0;
        c = eval_ids_check(ids, n_prompt, a);
    }
    if (c == OK && a->pos == POS_LEARNED && n_prompt + o->new_tokens > a->max_positions)
        c = fail(ERR_USAGE, "%lld tokens of the prompt and %lld new ones: the model has learned positions for %lld only; lower --new", (long long)n_prompt,
                 (long long)o->new_tokens, (long long)a->max_positions);
    if (c == OK)
        c = session_model(s, so, (struct model_options){ .B = 1, .T = n_prompt, .cache_B = 1, .cache_S = n_prompt + o->new_tokens, .cache_dtype = so->dtype });
    struct writer w = { tokenizer, 0, o->json, NULL };
    double start = host_seconds();
    if (c == OK)
        c = run_tokens(s, o, ids, n_prompt, &n, &w);
    double seconds = host_seconds() - start;
    if (c == OK && o->json) {
        print_json(s, o, ids, n_prompt, n, w.text, seconds);
    } else if (c == OK) {
        putchar('\n');
        log_info("%lld tokens in %.2f s, prompt included", (long long)n, seconds);
    }
    free(w.text);
    free(ids);
    free(prompt);
    tokenizer_close(tokenizer);
    return c;
}

enum code command_generate(int argc, char **argv)
{
    struct options o = { .prompt = "", .new_tokens = 128, .temperature = 0.8, .top_p = 0.95 };
    struct cli_words words;
    int help = 0;
    TRY(cli_parse(&cli, argc, argv, &o, &words, &help));
    if (help)
        return OK;
    if (o.new_tokens < 1 || o.new_tokens > (1 << 20) || o.top_p <= 0 || o.temperature < 0)
        return fail(ERR_USAGE, "--new must be positive, --top-p above 0, --temperature at least 0");
    struct session s;
    struct session_options so = { .path = words.v[0], .device = o.device, .threads = (int)o.threads };
    enum code c = session_open(&s, &so);
    if (c == OK)
        c = generate(&s, &so, &o);
    session_close(&s);
    return c;
}
