/* gqa-eval tasks: reads the files, asks the model, prints the accuracies. */
#include "tasks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct options {
    const char *tasks, *samples, *tokenizer, *device, *delimiter;
    int64_t context, batch, new_tokens, limit, threads;
    int dtype, bos, json;
};

#define FLAG(name, type, field, arg, help) { name, type, offsetof(struct options, field), arg, help }
static const struct cli_flag flags[] = {
    FLAG("--tasks", CLI_STR, tasks, "A.jsonl,B.jsonl...", "one task each, named after the file; a directory stands for its *.jsonl, with their mean"),
    FLAG("--samples", CLI_STR, samples, "FILE", "write one JSON line per item: log-likelihoods, prediction, or what was decoded"),
    FLAG("--limit", CLI_INT, limit, "N", "only the first N items of each task (default 0: all)"),
    FLAG("--delimiter", CLI_STR, delimiter, "STR", "between context and choice (default one space)"),
    FLAG("--bos", CLI_CHOICE, bos, TASK_BOS_CHOICES, "put the beginning of text before every text: as the tokenizer does (default), always, never"),
    FLAG("--new", CLI_INT, new_tokens, "N", "exact match: most tokens to decode (default 64)"),
    FLAG("--context", CLI_INT, context, "N", "most tokens the model reads at once; longer contexts lose their beginning (default: the model's positions)"),
    FLAG("--batch", CLI_INT, batch, "N", "rows scored or prompts decoded at once (default 0: rows for 2048 tokens, 8 prompts)"),
    FLAG("--tokenizer", CLI_STR, tokenizer, "PATH|bytes|model", "default model: the checkpoint's own"),
    FLAG("--dtype", CLI_CHOICE, dtype, SESSION_DTYPES, "element type of the weights in memory (default keep)"),
    FLAG("--device", CLI_STR, device, "auto|cpu|cuda", "default auto"),
    FLAG("--threads", CLI_INT, threads, "N", "default 0: all CPUs"),
    FLAG("--json", CLI_SET, json, NULL, "result as JSON in lm-evaluation-harness's schema instead of a table"),
};
static const struct cli cli = {
    "gqa-eval tasks", "CKPT --tasks A.jsonl[,B.jsonl...] [flags]",
    "Accuracy on questions with known answers. A task is a file of JSON lines, all of one kind:\n"
    "  multiple choice  {\"query\": TEXT, \"choices\": [TEXT, ...], \"gold\": index from 0, or the right text}\n"
    "                   (\"question\", \"context\", \"prompt\"; \"answer\", \"label\" mean the same)\n"
    "  minimal pairs    {\"sentence_good\": TEXT, \"sentence_bad\": TEXT}, as in BLiMP\n"
    "  exact match      {\"prompt\": TEXT, \"answer\" or \"target\": TEXT, or a list of accepted ones}\n"
    "Choices and sentences are compared by their log-probability (acc), by it per character (acc_norm) and per byte (acc_bytes); exact\n"
    "match decodes greedily to the first newline or end of text. Texts are tokenised as lm-evaluation-harness does; BLiMP's sentences\n"
    "without its leading space. No few-shot examples and no templates: write them into the texts.\n"
    "JSON: {\"results\": {TASK: {\"alias\", \"acc,none\", \"acc_stderr,none\", \"acc_norm,none\", ... or \"exact_match,none\", ...}},\n"
    "\"groups\": {DIRECTORY: ...}, \"n-samples\": {TASK: {\"original\", \"effective\"}}, \"configs\", \"higher_is_better\"}.",
    flags, (int)(sizeof flags / sizeof flags[0]), 1, 1,
};

/* Everything to ask, as ids. */
struct work { struct task_request *request; int64_t n_requests; struct task_prompt *prompt; int64_t n_prompts; };

static void work_free(struct work *w)
{
    for (int64_t i = 0; i < w->n_requests; i++)
        free(w->request[i].ids);
    for (int64_t i = 0; i < w->n_prompts; i++)
        free(w->prompt[i].ids);
    free(w->request);
    free(w->prompt);
}

static enum code work_room(struct work *w, const struct tasks *t)
{
    size_t requests = 0, prompts = 0;
    for (int k = 0; k < t->n; k++)
        for (int64_t i = 0; i < t->v[k].n; i++)
            t->v[k].kind == TASK_MATCH ? prompts++ : (requests += (size_t)t->v[k].item[i].n);
    w->request = calloc(requests + 1, sizeof *w->request);
    w->prompt = calloc(prompts + 1, sizeof *w->prompt);
    return w->request && w->prompt ? OK : fail(ERR_MEMORY, "out of memory for %zu texts", requests + prompts);
}

static enum code work_add(struct work *w, struct task_encoder *e, struct task *t, int64_t i, int64_t new_tokens)
{
    struct task_item *item = &t->item[i];
    struct task_outcome *o = &t->outcome[i];
    if (t->kind == TASK_MATCH) {
        struct task_prompt *p = &w->prompt[w->n_prompts++];
        p->item = item;
        p->outcome = o;
        return task_encode_prompt(e, item, t->path, new_tokens, &p->ids, &p->n);
    }
    o->sum = calloc((size_t)item->n, sizeof *o->sum);
    if (!o->sum)
        return fail(ERR_MEMORY, "out of memory for %d sums", item->n);
    struct task_request *r = w->request + w->n_requests;
    w->n_requests += item->n;
    return task_encode(e, item, t->path, o->sum, r);
}

static enum code work_of(struct work *w, struct task_encoder *e, struct tasks *t, int64_t new_tokens)
{
    TRY(work_room(w, t));
    for (int k = 0; k < t->n; k++) {
        e->cut = e->headless = 0;
        for (int64_t i = 0; i < t->v[k].n; i++)
            TRY(work_add(w, e, &t->v[k], i, new_tokens));
        if (e->cut > 0)
            log_warn("%s: %lld texts are longer than the %lld tokens the model reads at once; the beginning of their contexts was cut off", t->v[k].path,
                     (long long)e->cut, (long long)e->context);
        if (e->headless > 0)
            log_warn("%s: %lld texts have no context, and the tokenizer has no token for the beginning of a text: their first token is not scored",
                     t->v[k].path, (long long)e->headless);
    }
    return OK;
}

/* The longest sequence for which the model is what it was trained to be: two rotary scalings change with the length of the batch. */
static int64_t context_of(const struct arch *a)
{
    int64_t trained = a->rope.original_max_positions;
    if (a->pos == POS_ROPE && (a->rope.kind == ROPE_DYNAMIC || a->rope.kind == ROPE_LONGROPE) && trained > 0)
        return trained;
    return a->max_positions > 0 ? a->max_positions : 2048;
}

struct shape { int64_t T, rows, prompts, longest; };

static struct model_options shape_of(const struct work *w, const struct options *o, struct shape *s)
{
    *s = (struct shape){ .prompts = o->batch > 0 ? o->batch : 8 };
    for (int64_t i = 0; i < w->n_requests; i++)
        s->T = w->request[i].n - 1 > s->T ? w->request[i].n - 1 : s->T;
    for (int64_t i = 0; i < w->n_prompts; i++)
        s->longest = w->prompt[i].n > s->longest ? w->prompt[i].n : s->longest;
    s->rows = o->batch > 0 ? o->batch : window_rows(s->T > 0 ? s->T : 1);
    s->prompts = w->n_prompts < s->prompts ? w->n_prompts : s->prompts;
    struct model_options m = { .B = s->rows > s->prompts ? s->rows : s->prompts, .T = s->T > s->longest ? s->T : s->longest };
    m.cache_B = s->prompts;
    m.cache_S = w->n_prompts > 0 ? s->longest + o->new_tokens : 0;
    return m;
}

static enum code ask(struct session *s, const struct session_options *so, const struct options *o, const struct tokenizer *tokenizer, struct work *w)
{
    struct shape shape;
    struct model_options m = shape_of(w, o, &shape);
    m.cache_dtype = so->dtype;
    TRY(session_model(s, so, m));
    struct progress p;
    progress_begin(&p, "tasks", w->n_requests + w->n_prompts);
    enum code c = w->n_requests > 0 ? task_score(s, w->request, w->n_requests, shape.rows, shape.T, &p) : OK;
    if (c == OK && w->n_prompts > 0)
        c = task_match(s, tokenizer, w->prompt, w->n_prompts, shape.prompts, o->new_tokens, &p);
    progress_end(&p);
    return c;
}

static enum code print_result(struct session *s, const struct options *o, const struct tasks *t, double seconds)
{
    int64_t items = 0;
    for (int k = 0; k < t->n; k++)
        items += t->v[k].n;
    if (o->samples)
        TRY(tasks_samples(t, o->samples));
    if (!o->json) {
        tasks_table(t);
        log_info("%lld items in %.2f s", (long long)items, seconds);
        return OK;
    }
    json_t *j = tasks_result(s, t);
    json_object_set_new(j, "items_s", json_real((double)items / (seconds > 1e-9 ? seconds : 1e-9)));
    json_object_set_new(j, "total_evaluation_time_seconds", json_real(seconds));
    json_print(j, 2);
    json_decref(j);
    return OK;
}

static enum code run(struct session *s, struct session_options *so, const struct options *o, struct tasks *t)
{
    const struct arch *a = ckpt_arch(s->checkpoint);
    struct tokenizer *tokenizer = NULL;
    struct work w = { 0 };
    so->dtype = session_dtype(o->dtype, a);
    TRY(eval_tokenizer(s->checkpoint, o->tokenizer, &tokenizer));
    struct task_encoder e = { .delimiter = o->delimiter, .context = o->context > 0 ? o->context : context_of(a) };
    double start = host_seconds();
    enum code c = task_encoder_open(&e, tokenizer, a, o->bos);
    if (c == OK)
        c = work_of(&w, &e, t, o->new_tokens);
    if (c == OK)
        c = ask(s, so, o, tokenizer, &w);
    for (int k = 0; c == OK && k < t->n; k++)
        for (int64_t i = 0; t->v[k].kind != TASK_MATCH && i < t->v[k].n; i++)
            task_judge(&t->v[k].item[i], &t->v[k].outcome[i]);
    if (c == OK)
        c = print_result(s, o, t, host_seconds() - start);
    work_free(&w);
    tokenizer_close(tokenizer);
    return c;
}

enum code command_tasks(int argc, char **argv)
{
    struct options o = { .delimiter = " ", .new_tokens = 64 };
    struct cli_words words;
    int help = 0;
    TRY(cli_parse(&cli, argc, argv, &o, &words, &help));
    if (help)
        return OK;
    if (!o.tasks)
        return fail(ERR_USAGE, "gqa-eval tasks needs --tasks FILE.jsonl");
    if (o.new_tokens < 1 || o.new_tokens > (1 << 20) || o.batch < 0 || o.batch > (1 << 16) || o.context < 0 || o.context > (1 << 24) || o.limit < 0)
        return fail(ERR_USAGE, "--new must be between 1 and %d, --batch at most %d, --context at most %d, --limit positive", 1 << 20, 1 << 16, 1 << 24);
    struct session s = { 0 };
    struct session_options so = { .path = words.v[0], .device = o.device, .threads = (int)o.threads };
    struct tasks t = { 0 };
    enum code c = tasks_read(&t, o.tasks, o.limit);
    if (c == OK)
        c = session_open(&s, &so);
    if (c == OK)
        c = run(&s, &so, &o, &t);
    session_close(&s);
    tasks_free(&t);
    return c;
}
