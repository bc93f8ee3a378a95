/* gqa-eval decode: what a user of the model feels: prefill and decode tokens/s by batch and context, against the bytes a step
 * must read and the bandwidth of this machine measured in the same run. Decode at depth starts from a cache that is declared
 * full (its contents do not matter to the time); prefill is measured on real tokens. */
#include "eval.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct options {
    struct cli_ints batch, context;
    int64_t new_tokens, repeats, threads;
    const char *device;
    int dtype, cache_dtype, json;
};

#define FLAG(name, type, field, arg, help) { name, type, offsetof(struct options, field), arg, help }
static const struct cli_flag flags[] = {
    FLAG("--batch", CLI_INTS, batch, "B,...", "sequences decoded together (default 1)"),
    FLAG("--context", CLI_INTS, context, "S,...", "tokens already in the cache (default 512)"),
    FLAG("--new", CLI_INT, new_tokens, "N", "tokens decoded per measurement (default 32)"),
    FLAG("--repeats", CLI_INT, repeats, "N", "measurements, for mean and standard deviation (default 5)"),
    FLAG("--dtype", CLI_CHOICE, dtype, SESSION_DTYPES, "weights in memory (default keep)"),
    FLAG("--cache-dtype", CLI_CHOICE, cache_dtype, SESSION_DTYPES, "K/V cache (default keep: as the weights)"),
    FLAG("--device", CLI_STR, device, "auto|cpu|cuda", "default auto"),
    FLAG("--threads", CLI_INT, threads, "N", "default 0: all CPUs"),
    FLAG("--json", CLI_SET, json, NULL, "result as JSON"),
};
static const struct cli cli = {
    "gqa-eval decode", "CKPT [flags]",
    "Every batch with every context. Prefill is timed on at most 512 tokens of each sequence (8192 on a GPU). `share` is the bytes a decode\n"
    "step must read (weights once, K/V cache of every sequence) over its time, relative to the read bandwidth measured beside it.",
    flags, (int)(sizeof flags / sizeof flags[0]), 1, 1,
};

struct row { int64_t batch, context; double prefill, ms, sd, bytes, bandwidth; };

static enum code time_prefill(struct session *s, int64_t B, int64_t T, double *tokens_per_second)
{
    int32_t *ids = malloc((size_t)(B * T) * sizeof *ids);
    if (!ids)
        return fail(ERR_MEMORY, "out of memory for %lld tokens", (long long)(B * T));
    for (int64_t i = 0; i < B * T; i++)
        ids[i] = (int32_t)(random_philox(1, STREAM_TEST, 0, (uint64_t)i).v[0] % (uint32_t)ckpt_arch(s->checkpoint)->V);
    enum code c = OK;
    double best = HUGE_VAL;
    for (int rep = 0; c == OK && rep < 3; rep++) {
        model_cache_reset(s->model);
        double t = host_seconds();
        c = model_prefill(s->model, ids, B, T, NULL);
        if (c == OK)
            c = s->backend->device_sync(s->device);
        t = host_seconds() - t;
        best = t < best ? t : best;
    }
    free(ids);
    *tokens_per_second = (double)(B * T) / best;
    return c;
}

static enum code decode_wait(struct session *s, const int32_t *ids, int64_t batch)
{
    TRY(model_decode_queue(s->model, ids, batch, 1, 1));
    return s->backend->device_sync(s->device);
}

/* Every step is waited for, as a caller that chooses the next token must; the logits stay on the device, where it could choose. */
static enum code time_decode(struct session *s, const struct options *o, struct row *r)
{
    int32_t ids[256];
    double sum = 0, squares = 0;
    for (int64_t b = 0; b < r->batch; b++)
        ids[b] = (int32_t)(b % ckpt_arch(s->checkpoint)->V);
    for (int64_t rep = -1; rep < o->repeats; rep++) { /* the first warms up */
        model_cache_set_length(s->model, r->context);
        double bandwidth = s->backend->probe_bandwidth(s->device);
        double t = host_seconds();
        for (int64_t i = 0; i < o->new_tokens; i++)
            TRY(decode_wait(s, ids, r->batch));
        t = (host_seconds() - t) / (double)o->new_tokens;
        if (rep < 0)
            continue;
        sum += t;
        squares += t * t;
        r->bandwidth += bandwidth / (double)o->repeats;
    }
    double n = (double)o->repeats, mean = sum / n, var = n > 1 ? (squares - n * mean * mean) / (n - 1) : 0;
    r->ms = mean * 1e3;
    r->sd = sqrt(var > 0 ? var : 0) * 1e3;
    return OK;
}

/* Enough for the matrix products to be large, not so many that a long batch waits minutes. */
static int64_t prefill_tokens(const struct session *s, int64_t batch, int64_t context)
{
    int64_t all = strcmp(s->backend->name, "cpu") ? 16384 : 1024, T = all / batch < 64 ? 64 : all / batch;
    T = T < all / 2 ? T : all / 2;
    return context < T ? (context > 0 ? context : 1) : T;
}

static enum code measure(struct session *s, struct session_options *so, const struct options *o, enum dtype cache, struct row *r)
{
    int64_t T = prefill_tokens(s, r->batch, r->context);
    struct model_options shape = { .B = r->batch, .T = T, .cache_B = r->batch, .cache_S = r->context + o->new_tokens + 1, .cache_dtype = cache };
    if (shape.cache_S < T + 1)
        shape.cache_S = T + 1;
    const struct arch *a = ckpt_arch(s->checkpoint);
    enum code c = session_model(s, so, shape);
    if (c == OK)
        c = time_prefill(s, r->batch, T, &r->prefill);
    if (c == OK)
        c = time_decode(s, o, r);
    r->bytes = model_decode_bytes(a, r->batch, r->context + o->new_tokens / 2, so->dtype, cache);
    model_close(s->model);
    s->model = NULL;
    return c;
}

/* Without meaning when the bandwidth could not be measured (0). */
static double row_share(const struct row *r) { return r->bytes / (r->ms * 1e-3) / r->bandwidth; }

static void print_rows(struct session *s, const struct options *o, enum dtype cache, const struct row *rows, int n)
{
    int64_t kv = arch_kv_bytes_per_token(ckpt_arch(s->checkpoint), 0, cache);
    if (!o->json) {
        printf("%6s %8s %6s %14s %14s %10s %8s %12s %14s %7s\n", "batch", "context", "new", "prefill tok/s", "decode tok/s", "ms/token", "sd", "KV B/token", "GB/s measured", "share");
        for (int i = 0; i < n; i++)
            printf("%6lld %8lld %6lld %14.1f %14.1f %10.3f %8.3f %12lld %14.1f %6.0f%%\n", (long long)rows[i].batch, (long long)rows[i].context,
                   (long long)o->new_tokens, rows[i].prefill, (double)rows[i].batch / rows[i].ms * 1e3, rows[i].ms, rows[i].sd, (long long)kv,
                   rows[i].bandwidth / 1e9, 100 * row_share(&rows[i]));
        return;
    }
    json_t *j = json_result("decode", s->backend->device_name(s->device)), *list = json_array();
    json_object_set_new(j, "checkpoint", json_string(ckpt_path(s->checkpoint)));
    for (int i = 0; i < n; i++)
        json_array_append_new(list, json_pack("{s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:I, s:f, s:o, s:f}", "batch", (json_int_t)rows[i].batch, "context",
                                              (json_int_t)rows[i].context, "new", (json_int_t)o->new_tokens, "prefill_tok_s", rows[i].prefill,
                                              "decode_tok_s", (double)rows[i].batch / rows[i].ms * 1e3, "ms_per_token", rows[i].ms, "stdev",
                                              rows[i].sd, "kv_bytes_per_token", (json_int_t)kv, "bytes_read", rows[i].bytes, "bandwidth_share",
                                              rows[i].bandwidth > 0 ? json_real(row_share(&rows[i])) : json_null(), "measured_bandwidth", rows[i].bandwidth));
    json_object_set_new(j, "rows", list);
    json_print(j, 2);
    json_decref(j);
}

static enum code check(struct options *o)
{
    if (o->batch.n == 0)
        o->batch = (struct cli_ints){ 1, { 1 } };
    if (o->context.n == 0)
        o->context = (struct cli_ints){ 1, { 512 } };
    o->new_tokens = o->new_tokens ? o->new_tokens : 32;
    o->repeats = o->repeats ? o->repeats : 5;
    for (int i = 0; i < o->batch.n; i++)
        if (o->batch.v[i] < 1 || o->batch.v[i] > 256)
            return fail(ERR_USAGE, "--batch: %lld is outside 1 to 256", (long long)o->batch.v[i]);
    for (int i = 0; i < o->context.n; i++)
        if (o->context.v[i] < 0 || o->context.v[i] > (1 << 24))
            return fail(ERR_USAGE, "--context: %lld is outside 0 to %d", (long long)o->context.v[i], 1 << 24);
    if (o->new_tokens < 1 || o->new_tokens > (1 << 20) || o->repeats < 1 || o->repeats > 10000)
        return fail(ERR_USAGE, "--new must be between 1 and %d, --repeats between 1 and 10000", 1 << 20);
    return OK;
}

enum code command_decode(int argc, char **argv)
{
    struct options o = { 0 };
    struct cli_words words;
    int help = 0, n = 0;
    TRY(cli_parse(&cli, argc, argv, &o, &words, &help));
    if (help)
        return OK;
    TRY(check(&o));
    static struct row rows[64 * 64];
    struct session s;
    struct session_options so = { .path = words.v[0], .device = o.device, .threads = (int)o.threads };
    enum code c = session_open(&s, &so);
    enum dtype cache = DT_F32;
    if (c == OK) {
        so.dtype = session_dtype(o.dtype, ckpt_arch(s.checkpoint));
        cache = o.cache_dtype == 0 ? so.dtype : session_dtype(o.cache_dtype, ckpt_arch(s.checkpoint));
    }
    struct progress p;
    progress_begin(&p, "decode", (int64_t)o.batch.n * o.context.n);
    for (int b = 0; b < o.batch.n; b++)
        for (int x = 0; c == OK && x < o.context.n; x++) {
            rows[n] = (struct row){ .batch = o.batch.v[b], .context = o.context.v[x] };
            c = measure(&s, &so, &o, cache, &rows[n]);
            progress_update(&p, ++n, NULL);
        }
    progress_end(&p);
    if (c == OK)
        print_rows(&s, &o, cache, rows, n);
    session_close(&s);
    return c;
}
